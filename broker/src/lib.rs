//! Highwater's broker as a library: replicates logs with Raft and serves them.
//!
//! Layers, each naming only those to its right: `rpc -> cluster -> replica -> storage`.

pub mod cluster;
pub mod config;
pub mod env;
pub mod error;
pub mod metrics;
pub mod replica;
pub mod rpc;
