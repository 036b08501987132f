//! Real events for the examples and the end-to-end check: flights, the history of a run, and the one checker that judges it.
//!
//! Owns: what the example services share. Never: anything a service should import; that is `highwater-client`.

pub mod check;
pub mod env;
pub mod flight;
pub mod history;
