//! The broker as a client sees it: real sockets, real files, the services over gRPC. One binary; a module for each area.
#![expect(clippy::unwrap_used, reason = "a test that cannot unwrap has failed")]

mod bad_input;
mod certs;
mod cluster;
mod consume;
mod front;
mod groups;
mod harness;
mod produce;
mod tls;
mod topics;
