//! The cluster as a node shows it to the layers above: immutable values, replaced as a whole.
//!
//! Owns: the types. Never: where the values come from (`metadata` puts them together).

use std::collections::BTreeMap;
use std::sync::Arc;

use super::registry::Registry;
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
    /// Index of the last command of the metadata group that it reflects. Unlike the version, this means the same on every node.
    pub metadata_index: u64,
    /// Nodes by id.
    pub nodes: BTreeMap<NodeId, NodeView>,
    /// Nodes that have left.
    pub removed_nodes: Vec<NodeId>,
    /// Topics by name.
    pub topics: BTreeMap<String, Arc<TopicView>>,
    /// Services and their instances.
    pub registry: Arc<Registry>,
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
    /// The rack it stands in; empty if nobody says.
    pub rack: String,
    /// It is to leave.
    pub is_draining: bool,
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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PartitionView {
    /// Its Raft group.
    pub group: GroupId,
    /// Its replicas with their nodes; the first is the preferred leader.
    pub replicas: Vec<(ReplicaId, NodeId)>,
    /// The replicas it is to have instead; empty while it is not being reassigned.
    pub target: Vec<(ReplicaId, NodeId)>,
    /// Replicas of targets that were given up: they may still be members.
    pub leaving: Vec<(ReplicaId, NodeId)>,
    /// Replicas that were members and are not any more: their data may go.
    pub removed: Vec<ReplicaId>,
    /// Replicas from this id on joined after the group was founded; 0 if it was never reassigned.
    pub joined_from: ReplicaId,
    /// Reassignments so far.
    pub reassignments: u64,
}

impl PartitionView {
    /// The replica that a node is to hold: of two the newer, which comes in the other's place.
    pub fn assigned_to(&self, node: NodeId) -> Option<ReplicaId> {
        let all = self.replicas.iter().chain(&self.target).chain(&self.leaving);
        all.filter(|(_, on)| *on == node).map(|(id, _)| *id).max()
    }

    /// The nodes it has, or is to have once its move is done; the preferred leader first.
    pub fn destined(&self) -> impl Iterator<Item = NodeId> + '_ {
        let placed = if self.target.is_empty() { &self.replicas } else { &self.target };
        placed.iter().map(|(_, node)| *node)
    }

    /// Whether a replica was there when the group was founded.
    pub fn is_founding(&self, replica: ReplicaId) -> bool {
        self.joined_from == 0 || replica < self.joined_from
    }
}

/// Whether the node serves, and if not, why.
#[derive(Clone, Debug, Default)]
pub struct ReadyState {
    /// Joined, caught up, serving.
    pub ready: bool,
    /// One line for each check, for people: "ok metadata: ..." or "waiting for seed 10.0.0.2:7421: connection refused".
    pub checks: Vec<String>,
}
