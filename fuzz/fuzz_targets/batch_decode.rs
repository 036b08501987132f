//! Fuzz target: batches from clients.
#![no_main]

#[path = "../batch.rs"]
mod batch;

libfuzzer_sys::fuzz_target!(|data: &[u8]| batch::decode(data));
