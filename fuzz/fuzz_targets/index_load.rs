//! Fuzz target: opening a log beside an arbitrary index file.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| highwater_storage::fuzzing::index_load(data));
