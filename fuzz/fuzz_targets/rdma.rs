//! One frame over RDMA.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| collimate::fabric::fuzzing::rdma(input));
