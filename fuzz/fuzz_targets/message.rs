//! One message between nodes.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| collimate::wire::fuzzing::message(input));
