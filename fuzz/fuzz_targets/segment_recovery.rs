//! Fuzz target: opening a directory of arbitrary segment files.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| highwater_storage::fuzzing::segment_recovery(data));
