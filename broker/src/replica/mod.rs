//! One partition's replica: the consensus core, the worker threads that drive many cores, and the handles through which
//! the rest of the broker appends and reads.
//!
//! Owns: the raft crate (only here), producer states, checkpoints, the order of append, sync, send. Never: gRPC, topics'
//! names.

mod background;
mod births;
mod checkpoint;
mod compactor;
#[cfg(test)]
mod compactor_tests;
mod convert;
mod core;
mod directories;
pub mod engine;
mod envelope;
pub mod handle;
mod held;
mod inbox;
mod key_map;
mod logging;
#[cfg(feature = "instructions")]
#[doc(hidden)]
pub mod measured;
pub mod members;
mod partition_reader;
mod producers;
mod pulses;
mod raft_log;
mod retention;
mod scrubber;
#[cfg(test)]
mod simulation;
mod syncer;
mod worker;

pub use self::core::{Appended, Quarantine, StateMachine};
pub use engine::{Engine, EngineConfig, NewReplica, Outbox, PartitionSettings, Pull, ReplicaError};
pub use handle::{AppendTicket, PartitionHandle, PartitionStatus, Source};
pub use members::{Members, Step};
pub use partition_reader::Stored;
