//! The node within its cluster: founding, the metadata group, who leads what, and which replicas live here.
//!
//! Owns: [`Node`], the metadata state machine, founding, the reconciler that creates and removes replicas. Never: gRPC
//! (peers are reached through the traits in [`peer`]), records.

pub mod node;
pub mod peer;
pub mod topic_config;

pub use node::{
    ClusterView, Node, NodeConfig, NodeDeps, NodeView, PartitionView, ReadyState, StartError, TopicView,
};

/// A broker process, for ever; from 1.
pub type NodeId = u64;
/// A Raft group; 0 is the metadata group.
pub type GroupId = u64;
/// A Raft peer of one group; never used again after its removal.
pub type ReplicaId = u64;
