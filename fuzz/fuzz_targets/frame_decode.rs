//! Fuzz target: the two headers of the log's files.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| highwater_storage::fuzzing::frame_decode(data));
