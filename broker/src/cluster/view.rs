//! The cluster as a node shows it to the layers above: immutable values, replaced as a whole.
//!
//! Owns: the types. Never: where the values come from (`metadata` puts them together).

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{GroupId, NodeId, ReplicaId};

/// The cluster as this node knows it; immutable, replaced as a whole.
#[derive(Clone, Debug, Default)]
pub struct ClusterView {
    /// The cluster's id; empty before founding.
    pub cluster_id: String,
    /// The cluster's feature level.
    pub feature_level: u32,
    /// Grows with every change, leaders included.
    pub version: u64,
    /// Nodes by id.
    pub nodes: BTreeMap<NodeId, NodeView>,
    /// Topics by name.
    pub topics: BTreeMap<String, Arc<TopicView>>,
    /// Leader and epoch of each group, as far as known (own groups and what leaders told).
    pub leaders: BTreeMap<GroupId, (NodeId, u64)>,
}

/// A node of the cluster.
#[derive(Clone, Debug)]
pub struct NodeView {
    /// Its id.
    pub id: NodeId,
    /// Where other nodes reach it.
    pub internal_address: String,
    /// Where clients reach it, by listener name.
    pub listeners: BTreeMap<String, String>,
    /// Its version.
    pub version: String,
}

/// A topic.
#[derive(Clone, Debug)]
pub struct TopicView {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: String,
    /// Its partitions, by number.
    pub partitions: Vec<PartitionView>,
    /// Configuration that differs from the defaults.
    pub config: BTreeMap<String, String>,
}

/// A partition.
#[derive(Clone, Debug)]
pub struct PartitionView {
    /// Its Raft group.
    pub group: GroupId,
    /// Its replicas with their nodes; the first is the preferred leader.
    pub replicas: Vec<(ReplicaId, NodeId)>,
}

/// Whether the node serves, and if not, why.
#[derive(Clone, Debug, Default)]
pub struct ReadyState {
    /// Joined, caught up, serving.
    pub ready: bool,
    /// One line for each check, for people: "ok metadata: ..." or "waiting for seed 10.0.0.2:7421: connection refused".
    pub checks: Vec<String>,
}
