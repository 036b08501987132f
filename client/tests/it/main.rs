//! Integration tests of the client, in one binary.
//!
//! `fake` is a broker reduced to what the wire contract promises, with faults on demand; `produce` and `consume` hold the client
//! to what it promises over it. `real` does so over brokers in this process, `compacted` for a compacted topic, `worker` for the
//! worker layer, `registry` for the registry of services.
#![expect(clippy::unwrap_used, reason = "a test that panics says where")]

mod compacted;
mod consume;
mod fake;
mod fake_streams;
mod produce;
mod real;
mod registry;
mod worker;
