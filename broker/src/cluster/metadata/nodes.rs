//! The metadata state machine's part about nodes: who belongs to the cluster, who comes and who goes.
//!
//! Owns: node ids, which are never used again, and who is to hold the metadata group. Never: where a node's replicas go when it
//! leaves; that is decided before a command is proposed.

use std::collections::BTreeMap;

use highwater_proto::internal::{
    FoundingMember, JoinNode, MetadataOutcome, NodeImage, NodeStarted, RaiseFeatureLevel,
    ReplaceMetadataReplica,
};

use super::{Metadata, VOTERS_MAX, refused};
use crate::cluster::{NodeId, ReplicaId};

/// Most nodes of a cluster.
const NODES_MAX: usize = 1_000;

/// Who is to hold the metadata group: replica ids with their nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct MetadataTarget {
    pub(crate) voters: BTreeMap<ReplicaId, NodeId>,
    pub(crate) learners: BTreeMap<ReplicaId, NodeId>,
}

impl Metadata {
    /// Who is to hold the metadata group. The nodes that are longest in it vote, up to five; all others follow, one that leaves
    /// for as long as it has replicas.
    pub(crate) fn metadata_target(&self) -> MetadataTarget {
        let mut target = MetadataTarget::default();
        let mut nodes: Vec<&NodeImage> =
            self.nodes.values().filter(|node| node.metadata_replica_id != 0).collect();
        nodes.sort_by_key(|node| node.metadata_replica_id);
        for node in nodes {
            if !node.is_draining && target.voters.len() < VOTERS_MAX {
                target.voters.insert(node.metadata_replica_id, node.id);
            } else if !node.is_draining || self.holds_anything(node.id) {
                target.learners.insert(node.metadata_replica_id, node.id);
            }
        }
        target
    }

    /// Whether any partition has, or is to have, a replica on a node.
    pub(crate) fn holds_anything(&self, node: NodeId) -> bool {
        let mut partitions = self.topics.values().flat_map(|topic| &topic.partitions);
        partitions.any(|partition| partition.assigned_to(node).is_some())
    }

    /// Nodes that new replicas may go to.
    pub(crate) fn staying_nodes(&self) -> impl Iterator<Item = &NodeImage> {
        self.nodes.values().filter(|node| !node.is_draining)
    }

    /// Never goes back: what was proposed under a level stays in the log.
    pub(super) fn raise_feature_level(&mut self, raise: &RaiseFeatureLevel) -> MetadataOutcome {
        if !self.nodes.keys().eq(&raise.node_ids) {
            return refused("STALE_NODES", "the cluster has other nodes by now; ask them first");
        }
        self.feature_level = self.feature_level.max(raise.to);
        MetadataOutcome::default()
    }

    /// Refuses a node whose software does not understand what may be in the log.
    fn check_level(&self, id: NodeId, version: &str, level: u32) -> Result<(), MetadataOutcome> {
        // The first versions did not say it.
        let level = level.max(1);
        match level < self.feature_level {
            true => Err(refused(
                "OLD_VERSION",
                &too_old_message(id, version, level, self.feature_level),
            )),
            false => Ok(()),
        }
    }

    pub(super) fn node_started(&mut self, started: &NodeStarted) -> MetadataOutcome {
        if self.removed_nodes.contains(&started.node_id) {
            return was_removed(started.node_id);
        }
        let level = self.check_level(started.node_id, &started.version, started.feature_level);
        let Some(node) = self.nodes.get_mut(&started.node_id) else {
            return no_such_node(started.node_id);
        };
        if node.incarnation != started.incarnation {
            let message = format!("node {} is registered with another data directory", node.id);
            return refused("FOREIGN_NODE", &message);
        }
        if started.boot_counter < node.boot_counter {
            let message = format!(
                "the data directory of node {} is an old copy: this is its start {}, start {} was seen",
                node.id, started.boot_counter, node.boot_counter
            );
            return refused("OLD_COPY", &message);
        }
        if let Err(refusal) = level {
            return refusal;
        }
        // It came back with what it had: nothing has to be built anew.
        node.awaits_directory = false;
        node.boot_counter = started.boot_counter;
        node.internal_address.clone_from(&started.internal_address);
        node.listeners.clone_from(&started.listeners);
        node.version.clone_from(&started.version);
        node.rack.clone_from(&started.rack);
        MetadataOutcome::default()
    }

    /// A node with an empty data directory becomes a member: under a new id, or under that of a node whose directory was lost and
    /// that an operator has told to come back.
    pub(super) fn join_node(&mut self, join: &JoinNode) -> MetadataOutcome {
        let Some(member) = &join.node else {
            return refused("INVALID_ARGUMENT", "a node that joins must say who it is");
        };
        if member.incarnation.is_empty() || member.internal_address.is_empty() {
            let message = "a node that joins must name its data directory and its address";
            return refused("INVALID_ARGUMENT", message);
        }
        if self.nodes.values().any(|node| node.incarnation == member.incarnation) {
            // Its first answer was lost.
            return MetadataOutcome::default();
        }
        let id = match member.node_id {
            0 => self.next_node_id(),
            asked => asked,
        };
        if self.removed_nodes.contains(&id) {
            return was_removed(id);
        }
        if let Err(refusal) = self.check_level(id, &member.version, member.feature_level) {
            return refusal;
        }
        let is_lost = match self.nodes.get(&id) {
            None if self.nodes.len() >= NODES_MAX => {
                let message =
                    format!("the cluster has {NODES_MAX} nodes, and more are not supported");
                return refused("INVALID_ARGUMENT", &message);
            }
            None => false,
            Some(known) if known.awaits_directory => true,
            Some(_) => {
                let message = format!(
                    "node {id} of the cluster has another data directory. If that is lost for good, \
                     'broker-cli cluster add-node {id}' lets this one take its place; a new node needs an id that is free"
                );
                return refused("FOREIGN_NODE", &message);
            }
        };
        let node = self.new_node(id, member);
        self.nodes.insert(id, node);
        if is_lost {
            self.replace_replicas_of(id);
        }
        MetadataOutcome::default()
    }

    fn next_node_id(&self) -> NodeId {
        let known = self.nodes.keys().chain(&self.removed_nodes);
        known.copied().max().unwrap_or(0).saturating_add(1)
    }

    /// A node with a replica of the metadata group that has never been in service.
    pub(super) fn new_node(&mut self, id: NodeId, member: &FoundingMember) -> NodeImage {
        let metadata_replica_id = self.next_replica_id;
        self.next_replica_id += 1;
        NodeImage {
            id,
            incarnation: member.incarnation.clone(),
            boot_counter: 0,
            internal_address: member.internal_address.clone(),
            listeners: member.listeners.clone(),
            version: member.version.clone(),
            metadata_replica_id,
            rack: member.rack.clone(),
            is_draining: false,
            awaits_directory: false,
        }
    }

    /// The replica of the metadata group on a node cannot be repaired: another one takes its place, and nothing else on the node changes.
    pub(super) fn replace_metadata_replica(
        &mut self,
        lost: &ReplaceMetadataReplica,
    ) -> MetadataOutcome {
        if self.removed_nodes.contains(&lost.node_id) {
            return was_removed(lost.node_id);
        }
        let new = self.next_replica_id;
        let Some(node) = self.nodes.get_mut(&lost.node_id) else {
            return no_such_node(lost.node_id);
        };
        if node.incarnation != lost.incarnation {
            let message = format!("node {} is registered with another data directory", node.id);
            return refused("FOREIGN_NODE", &message);
        }
        // Else its first answer was lost.
        if node.metadata_replica_id == lost.replica_id {
            node.metadata_replica_id = new;
            self.next_replica_id += 1;
        }
        MetadataOutcome::default()
    }

    /// Everything that a node held is gone: new replicas take the places of the old ones.
    fn replace_replicas_of(&mut self, node: NodeId) {
        let partitions = self.topics.values().flat_map(|topic| &topic.partitions);
        let affected: Vec<_> = partitions
            .filter_map(|partition| {
                let nodes: Vec<NodeId> = partition.destined().collect();
                nodes.contains(&node).then_some((partition.group, nodes, partition.reassignments))
            })
            .collect();
        for (group_id, node_ids, reassignments) in affected {
            let replace_node_ids = vec![node];
            self.reassign(&highwater_proto::internal::ReassignPartition {
                group_id,
                node_ids,
                replace_node_ids,
                reassignments,
            });
        }
    }

    pub(super) fn admit_node(&mut self, id: NodeId) -> MetadataOutcome {
        if self.removed_nodes.contains(&id) {
            return was_removed(id);
        }
        let Some(node) = self.nodes.get_mut(&id) else {
            let message = format!(
                "node {id} was never in the cluster. A new node joins by itself: start it with an empty data directory and \
                 the cluster's --seeds"
            );
            return refused("INVALID_ARGUMENT", &message);
        };
        if std::mem::take(&mut node.is_draining) {
            return MetadataOutcome::default();
        }
        node.awaits_directory = true;
        MetadataOutcome::default()
    }

    pub(super) fn drain_node(&mut self, id: NodeId) -> MetadataOutcome {
        if self.removed_nodes.contains(&id) {
            // Told twice.
            return MetadataOutcome::default();
        }
        if self.staying_nodes().all(|node| node.id == id) {
            return refused("INVALID_ARGUMENT", "the last node cannot leave");
        }
        match self.nodes.get_mut(&id) {
            Some(node) => {
                node.is_draining = true;
                node.awaits_directory = false;
                MetadataOutcome::default()
            }
            None => no_such_node(id),
        }
    }

    pub(super) fn retire_node(&mut self, id: NodeId) -> MetadataOutcome {
        if self.removed_nodes.contains(&id) {
            return MetadataOutcome::default();
        }
        if self.holds_anything(id) {
            return refused("INVALID_ARGUMENT", &format!("node {id} still holds replicas"));
        }
        match self.nodes.get(&id) {
            Some(node) if node.is_draining => {
                self.nodes.remove(&id);
                self.removed_nodes.insert(id);
                MetadataOutcome::default()
            }
            Some(_) => refused("INVALID_ARGUMENT", &format!("node {id} is not to leave")),
            None => no_such_node(id),
        }
    }
}

/// What to tell a node that is too old for its cluster, and whoever asks for it.
pub(crate) fn too_old_message(id: NodeId, version: &str, level: u32, cluster: u32) -> String {
    format!(
        "node {id} runs version {version}, which understands feature level {level}, and the cluster is at {cluster}, which never goes \
         back; start the node with the version that the others run"
    )
}

/// What to tell a node that has left, and whoever asks for it.
pub(crate) fn removed_message(id: NodeId) -> String {
    format!(
        "node {id} was removed from the cluster, and its id is never used again; to join as a new node start with an empty data \
         directory and without that id"
    )
}

fn was_removed(id: NodeId) -> MetadataOutcome {
    refused("NODE_REMOVED", &removed_message(id))
}

fn no_such_node(id: NodeId) -> MetadataOutcome {
    refused("INVALID_ARGUMENT", &format!("node {id} is not in the cluster"))
}

#[cfg(test)]
mod tests;
