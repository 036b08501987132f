//! Integration tests of the client, in one binary.
//!
//! `fake` is a broker reduced to what the wire contract promises, with faults on demand; the other modules hold the client to
//! what it promises over it.

mod consume;#![expect(clippy::unwrap_used, reason = "a test that panics says where")]

mod fake;
mod fake_streams;
mod produce;
