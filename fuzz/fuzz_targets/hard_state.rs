//! Fuzz target: opening a journal of arbitrary bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| highwater_storage::fuzzing::hard_state(data));
