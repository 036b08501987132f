//! Looks after the nodes: who holds the metadata group, and how a node leaves.
//!
//! Owns: the next step of both, taken by whoever leads the metadata group, decided from nothing but metadata and members, so that the
//! next leader goes on. Never: moves a partition (`mover` does, on its leader), or remembers anything.

use std::collections::BTreeSet;
use std::time::Duration;

use highwater_proto::internal::metadata_command::Command;
use highwater_proto::internal::{AdmitNode, DrainNode, RaiseFeatureLevel, RetireNode};

use super::commands::command;
use super::metadata::{Metadata, MetadataTarget};
use super::node::Node;
use super::placement::{self, Loads};
use super::view::PartitionView;
use super::{METADATA_GROUP, NodeId};
use crate::error::BrokerError;
use crate::replica::{PartitionHandle, Step};

/// Pause between two looks.
const LOOK_PAUSE: Duration = Duration::from_millis(200);
/// Partitions that are on their way off leaving nodes at the same time, in the whole cluster: each has a replica more meanwhile.
const DRAINING_MAX: usize = 64;
/// Longest wait for one change of the metadata group's members.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(10);

impl Node {
    /// Runs until the node stops.
    pub(super) async fn steward_loop(self) {
        loop {
            tokio::select! {
                () = self.inner.cancel.cancelled() => return,
                () = tokio::time::sleep(LOOK_PAUSE) => {}
            }
            let metadata_replica = self.inner.engine.get(METADATA_GROUP);
            let Some(replica) = metadata_replica.filter(PartitionHandle::is_leader) else {
                continue;
            };
            let steps = self.look_after_nodes(&replica);
            tokio::select! {
                () = self.inner.cancel.cancelled() => return,
                outcome = tokio::time::timeout(CHANGE_TIMEOUT, steps) => {
                    if let Ok(Err(error)) = outcome {
                        tracing::debug!(%error, "looking after the nodes failed; trying again");
                    }
                }
            }
        }
    }

    async fn look_after_nodes(&self, replica: &PartitionHandle) -> Result<(), BrokerError> {
        let metadata = self.inner.metadata.borrow().clone();
        self.raise_feature_level(&metadata).await?;
        self.drain(&metadata).await?;
        let MetadataTarget { voters, learners } = metadata.metadata_target();
        match replica.step_towards(&voters, &learners) {
            Step::Done => self.retire(&metadata, replica).await,
            step => self.carry_out(METADATA_GROUP, replica, step).await,
        }
    }

    /// Lets the cluster use what all its nodes understand. One that has said nothing to this leader yet is waited for.
    async fn raise_feature_level(&self, metadata: &Metadata) -> Result<(), BrokerError> {
        let level_of = |node: &NodeId| match *node == self.id() {
            true => self.inner.deps.feature_level,
            false => self.inner.levels.lock().get(node).copied().unwrap_or(0),
        };
        let to = metadata.nodes.keys().map(level_of).min().unwrap_or(0);
        if to <= metadata.feature_level {
            return Ok(());
        }
        let node_ids = metadata.nodes.keys().copied().collect();
        let raise = RaiseFeatureLevel { to, node_ids };
        match self.propose_metadata(command(Command::RaiseFeatureLevel(raise))).await {
            Ok(_) => {
                tracing::info!(
                    level = to,
                    "all nodes understand a higher feature level; the cluster uses it"
                );
                Ok(())
            }
            // There are other nodes by now; the next look asks them too.
            Err(BrokerError::InvalidArgument { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Gives partitions of leaving nodes other nodes, a bounded number at a time.
    async fn drain(&self, metadata: &Metadata) -> Result<(), BrokerError> {
        let leaving = leaving_nodes(metadata);
        if leaving.is_empty() {
            return Ok(());
        }
        let nodes = self.placeable(metadata);
        let mut loads = Loads::new(&nodes, metadata.topics.values().map(|topic| &**topic));
        let room = DRAINING_MAX.saturating_sub(metadata.moving.len());
        let partitions = metadata.topics.values().flat_map(|topic| &topic.partitions);
        let to_move = partitions.filter(|p| p.destined().any(|node| leaving.contains(&node)));
        for partition in to_move.take(room) {
            let holders: Vec<NodeId> = partition.destined().collect();
            // Where there are too few nodes it waits; GetHealth says so.
            let Some(node_ids) = placement::without_strangers(&nodes, &mut loads, &holders) else {
                continue;
            };
            // If somebody was faster, the next look sees what they did.
            self.send_to(partition.group, partition.reassignments, node_ids).await?;
        }
        Ok(())
    }

    /// Lets those go that hold nothing any more, not even the metadata.
    async fn retire(
        &self,
        metadata: &Metadata,
        replica: &PartitionHandle,
    ) -> Result<(), BrokerError> {
        let members = replica.members();
        for node in leaving_nodes(metadata) {
            let follows = members.nodes.values().any(|on| *on == node);
            if !follows && !metadata.holds_anything(node) {
                let retire = RetireNode { node_id: node };
                self.propose_metadata(command(Command::RetireNode(retire))).await?;
                tracing::info!(node, "a node has left the cluster");
            }
        }
        Ok(())
    }

    /// The nodes that replicas may go to.
    pub(super) fn placeable(&self, metadata: &Metadata) -> placement::Nodes {
        let racks = metadata.staying_nodes().map(|node| (node.id, node.rack.clone()));
        let alive = metadata.staying_nodes().map(|node| node.id);
        placement::Nodes {
            racks: racks.collect(),
            alive: alive.filter(|node| self.is_alive(*node)).collect(),
        }
    }

    /// Keeps a draining node; lets another come back once with an empty data directory.
    pub async fn add_node(&self, node_id: NodeId) -> Result<(), BrokerError> {
        self.member_view()?;
        let admit = AdmitNode { node_id };
        self.propose_metadata(command(Command::AdmitNode(admit))).await.map(drop)
    }

    /// Lets a node leave. Answers once that is decided; carrying it out takes longer.
    pub async fn remove_node(&self, node_id: NodeId) -> Result<(), BrokerError> {
        self.member_view()?;
        check_room(&self.inner.metadata.borrow().clone(), node_id)?;
        let drain = DrainNode { node_id };
        self.propose_metadata(command(Command::DrainNode(drain))).await.map(drop)
    }

    /// What is on its way, for people.
    pub fn in_progress(&self) -> Vec<String> {
        let metadata = self.inner.metadata.borrow().clone();
        let mut lines = Vec::new();
        for node in leaving_nodes(&metadata) {
            lines.push(self.draining_line(&metadata, node));
        }
        lines.extend(self.metadata_members_line(&metadata));
        for node in metadata.nodes.values().filter(|node| node.awaits_directory) {
            lines.push(format!("node {} may come back with an empty data directory", node.id));
        }
        for topic in metadata.topics.values() {
            for (number, partition) in topic.partitions.iter().enumerate() {
                if !partition.target.is_empty() {
                    lines.push(moving_line(&topic.name, number, partition));
                }
            }
        }
        lines
    }

    /// That the metadata group does not have the members yet that it is to have.
    fn metadata_members_line(&self, metadata: &Metadata) -> Option<String> {
        let members = self.inner.engine.get(METADATA_GROUP)?.members();
        let target = metadata.metadata_target();
        let is_reached = members.outgoing.is_empty()
            && members.voters.iter().eq(target.voters.keys())
            && members.learners.iter().eq(target.learners.keys());
        let wanted = target.voters.iter().chain(&target.learners);
        let new = wanted.filter(|(replica, _)| !members.nodes.contains_key(replica));
        let new: Vec<String> = new.map(|(_, node)| node.to_string()).collect();
        match (is_reached, new.is_empty()) {
            (true, _) => None,
            (false, true) => Some("the members of the metadata group change".to_owned()),
            (false, false) => {
                let nodes = new.join(", ");
                Some(format!("the metadata group gets a new replica on node {nodes}"))
            }
        }
    }

    fn draining_line(&self, metadata: &Metadata, node: NodeId) -> String {
        let nodes = self.placeable(metadata);
        let mut loads = Loads::new(&nodes, std::iter::empty());
        let partitions = metadata.topics.values().flat_map(|topic| &topic.partitions);
        let left: Vec<_> = partitions.filter(|p| p.assigned_to(node).is_some()).collect();
        let stuck = left.iter().filter(|partition| {
            let holders: Vec<NodeId> = partition.destined().collect();
            placement::without_strangers(&nodes, &mut loads, &holders).is_none()
        });
        let stuck = stuck.count();
        let is_draining = format!("node {node} is draining");
        match (left.len(), stuck) {
            (0, _) => {
                format!(
                    "{is_draining}: it holds no partition any more and leaves the metadata group"
                )
            }
            (left, 0) => format!("{is_draining}: {left} replicas are still to move"),
            (left, stuck) => format!(
                "{is_draining}: {left} replicas are still to move, for {stuck} of them there is no live node; let another node join"
            ),
        }
    }
}

/// Whether as many nodes would stay as every partition of a node has replicas.
fn check_room(metadata: &Metadata, node_id: NodeId) -> Result<(), BrokerError> {
    let would_stay = metadata.staying_nodes().filter(|node| node.id != node_id).count();
    for topic in metadata.topics.values() {
        let affected = topic.partitions.iter().filter(|p| p.assigned_to(node_id).is_some());
        let replicas = affected.map(|partition| partition.destined().count()).max().unwrap_or(0);
        if replicas > would_stay {
            return Err(BrokerError::InvalidArgument {
                field: "node_id".into(),
                why: format!(
                    "topic '{}' keeps {replicas} replicas, and without node {node_id} {would_stay} nodes would stay; \
                     let another node join first",
                    topic.name
                ),
            });
        }
    }
    Ok(())
}

fn moving_line(topic: &str, number: usize, partition: &PartitionView) -> String {
    let list = |nodes: &[(u64, NodeId)]| {
        let ids: Vec<String> = nodes.iter().map(|(_, node)| node.to_string()).collect();
        ids.join(", ")
    };
    let (from, to) = (list(&partition.replicas), list(&partition.target));
    let is_new = |(id, _): &&(u64, NodeId)| !partition.replicas.iter().any(|(old, _)| old == id);
    let new: Vec<(u64, NodeId)> = partition.target.iter().filter(is_new).copied().collect();
    let was_there = |node: &NodeId| partition.replicas.iter().any(|(_, on)| on == node);
    match new.as_slice() {
        [] => format!("{topic}/{number} goes from nodes {from} to nodes {to}"),
        all if all.iter().all(|(_, node)| was_there(node)) => {
            format!(
                "{topic}/{number} gets a new replica in the place of its old one on node {}",
                list(all)
            )
        }
        _ => format!(
            "{topic}/{number} goes from nodes {from} to nodes {to}: node {} gets a new replica",
            list(&new)
        ),
    }
}

fn leaving_nodes(metadata: &Metadata) -> BTreeSet<NodeId> {
    metadata.nodes.values().filter(|node| node.is_draining).map(|node| node.id).collect()
}
