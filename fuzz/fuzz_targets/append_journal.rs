//! Fuzz target: opening a journal of appends of arbitrary bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| highwater_storage::fuzzing::append_journal(data));
