//! The node within its cluster: founding, the metadata group, who leads what, and which replicas live here.
//!
//! Owns: [`Node`], the metadata state machine, founding, the reconciler that creates and removes replicas. Never: gRPC
//! (peers are reached through the traits in [`peer`]), records.

mod balance;
mod commands;
mod events;
mod founding;
mod held;
mod joining;
mod leadership;
mod leases;
mod lifecycle;
mod metadata;
mod mover;
mod names;
mod node;
mod options;
pub mod peer;
mod placement;
mod pull;
mod reconcile;
mod registry;
mod repair;
mod replacing;
mod steward;
pub mod topic_config;
mod view;

pub use balance::PlannedMove;
pub(crate) use commands::{check_partitions, command};
pub use founding::FEATURE_LEVEL;
pub(crate) use names::check_topic_name;
pub use node::Node;
pub use options::{NodeConfig, NodeDeps, StartError};
pub(crate) use registry::check_service_name;
pub use registry::{Lease, Registry, Service};
pub use view::{ClusterView, NodeView, PartitionView, ReadyState, TopicView};

/// A broker process, for ever; from 1.
pub type NodeId = u64;
/// A Raft group; 0 is the metadata group.
pub type GroupId = u64;
/// A Raft peer of one group; never used again after its removal.
pub type ReplicaId = u64;

/// The metadata group.
pub const METADATA_GROUP: GroupId = 0;
