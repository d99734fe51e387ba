//! Frames of a TCP connection, cut anywhere.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| collimate::fabric::fuzzing::frames(input));
