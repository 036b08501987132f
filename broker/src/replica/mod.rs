//! One partition's replica: the consensus core, the worker threads that drive many cores, and the handles through which
//! the rest of the broker appends and reads.
//!
//! Owns: the raft crate (only here and nowhere above), producer states, checkpoints, the order of append, sync, send.
//! Never: gRPC, topics' names, which node a replica belongs to.

pub mod handle;

pub use handle::{AppendTicket, Appended, PartitionHandle, PartitionStatus};
