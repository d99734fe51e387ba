//! One frame over libfabric.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| collimate::fabric::fuzzing::ofi(input));
