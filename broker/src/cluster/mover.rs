//! Moves partitions: takes the groups that this node leads from the members they have to those the metadata says.
//!
//! Owns: when the next step is taken, and how many partitions are on their way at once. Never: remembers anything: the target is
//! metadata, the members are the group's, and whoever leads next goes on from there.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use highwater_proto::internal::metadata_command::Command;
use highwater_proto::internal::{FinishReassignment, ReassignPartition};
use tokio::sync::Semaphore;

use super::commands::command;
use super::node::Node;
use super::{GroupId, NodeId};
use crate::error::BrokerError;
use crate::replica::{PartitionHandle, Step};

/// Pause between two looks for partitions to move, and between two steps of one.
const LOOK_PAUSE: Duration = Duration::from_millis(100);

impl Node {
    /// Runs until the node stops.
    pub(super) async fn move_loop(self) {
        // The data of each goes over the network and to a disk.
        let slots = Semaphore::new(usize::try_from(self.inner.config.moves_max).unwrap_or(1));
        let mut under_way = BTreeSet::new();
        let mut moves = FuturesUnordered::new();
        loop {
            tokio::select! {
                () = self.inner.cancel.cancelled() => return,
                () = tokio::time::sleep(LOOK_PAUSE) => {
                    for group in self.reassigned_here() {
                        if under_way.insert(group) {
                            moves.push(self.move_while_leading(group, &slots));
                        }
                    }
                }
                Some(group) = moves.next() => {
                    under_way.remove(&group);
                }
            }
        }
    }

    /// Groups with a target that this node leads.
    fn reassigned_here(&self) -> Vec<GroupId> {
        let metadata = self.inner.metadata.borrow().clone();
        let moving = metadata.moving.iter().copied();
        let leads = |group: &GroupId| self.inner.engine.get(*group).is_some_and(|r| r.is_leader());
        moving.filter(leads).collect()
    }

    async fn move_while_leading(&self, group: GroupId, slots: &Semaphore) -> GroupId {
        let Ok(_slot) = slots.acquire().await else { return group };
        loop {
            match self.move_one_step(group).await {
                Ok(true) => tokio::time::sleep(LOOK_PAUSE).await,
                Ok(false) => return group,
                Err(error) => {
                    tracing::debug!(group, %error, "a step of a move failed; trying again");
                    tokio::time::sleep(LOOK_PAUSE).await;
                }
            }
        }
    }

    /// Takes one step; false when there is nothing (left) to do here.
    async fn move_one_step(&self, group: GroupId) -> Result<bool, BrokerError> {
        let metadata = self.inner.metadata.borrow().clone();
        let Some(partition) = metadata.partition(group).filter(|p| !p.target.is_empty()) else {
            return Ok(false);
        };
        let Some(replica) = self.inner.engine.get(group).filter(|r| r.is_leader()) else {
            return Ok(false);
        };
        let target: BTreeMap<u64, u64> = partition.target.iter().copied().collect();
        let step = replica.step_towards(&target, &BTreeMap::new());
        match &step {
            Step::Change(_) | Step::Wait(_) | Step::Transfer(_) => {
                self.carry_out(group, &replica, step).await?;
            }
            Step::Done => {
                // One that was deposed and does not know it yet may see a target as reached that was given up and chosen again, and
                // replicas would be deleted that are members. Only a commit proves that it leads.
                replica.confirm_leadership().await?;
                if replica.step_towards(&target, &BTreeMap::new()) != Step::Done {
                    return Ok(true);
                }
                let finish =
                    FinishReassignment { group_id: group, reassignments: partition.reassignments };
                self.propose_metadata(command(Command::FinishReassignment(finish))).await?;
                tracing::info!(group, "a partition has the replicas it was to get");
                if let Some((_, preferred)) = partition.target.first() {
                    // The balancing of leaders tries again if this comes to nothing.
                    let _ = replica.transfer_leadership(*preferred).await;
                }
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Takes a step of a group that this node leads.
    pub(super) async fn carry_out(
        &self,
        group: GroupId,
        replica: &PartitionHandle,
        step: Step,
    ) -> Result<(), BrokerError> {
        match step {
            Step::Change(change) => {
                tracing::info!(group, ?change, "changing the members of a group");
                replica.change_members(change).await?;
            }
            Step::Transfer(to) => replica.transfer_to(to).await,
            Step::Wait(_) | Step::Done => {}
        }
        Ok(())
    }

    /// Gives a partition other nodes, the first of them its preferred leader; none means those it has. Replicas on
    /// `replace` have lost their data and make room for new ones. Answers once that is decided; carrying it out takes longer.
    pub async fn reassign_partition(
        &self,
        topic: &str,
        partition: u32,
        nodes: Vec<NodeId>,
        replace: Vec<NodeId>,
    ) -> Result<(), BrokerError> {
        let view = self.member_view()?;
        let Some(found) = view.topics.get(topic) else {
            return Err(self.unknown_topic(topic));
        };
        let place = usize::try_from(partition).ok().and_then(|at| found.partitions.get(at));
        let Some(place) = place else {
            return Err(BrokerError::UnknownPartition {
                topic: topic.to_owned(),
                partition,
                partitions: u32::try_from(found.partitions.len()).unwrap_or(u32::MAX),
            });
        };
        let current = if place.target.is_empty() { &place.replicas } else { &place.target };
        let holders: Vec<NodeId> = current.iter().map(|(_, node)| *node).collect();
        let nodes = if nodes.is_empty() { holders.clone() } else { nodes };
        if let Some(node) = replace.iter().find(|node| !nodes.contains(node)) {
            let holders: Vec<String> = holders.iter().map(ToString::to_string).collect();
            return Err(BrokerError::InvalidArgument {
                field: "replace_node_ids".into(),
                why: format!("node {node} has no replica; nodes {} have", holders.join(", ")),
            });
        }
        let reassign = ReassignPartition {
            group_id: place.group,
            node_ids: nodes,
            replace_node_ids: replace,
            reassignments: place.reassignments,
        };
        self.propose_metadata(command(Command::ReassignPartition(reassign))).await.map(drop)
    }

    /// Has a partition go to other nodes; false if it was moved or deleted since it was looked at.
    pub(super) async fn send_to(
        &self,
        group_id: GroupId,
        reassignments: u64,
        node_ids: Vec<NodeId>,
    ) -> Result<bool, BrokerError> {
        let replace_node_ids = Vec::new();
        let reassign = ReassignPartition { group_id, node_ids, replace_node_ids, reassignments };
        match self.propose_metadata(command(Command::ReassignPartition(reassign))).await {
            Ok(_) => Ok(true),
            Err(BrokerError::InvalidArgument { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }
}
