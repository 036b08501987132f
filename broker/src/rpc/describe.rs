//! The state of partitions, gathered from their leaders.
//!
//! Owns: asking every leader at once, and what the answers mean for a partition's state. Never: waits long for a node that
//! does not answer.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use highwater_proto::{internal, v1};

use super::door::{Door, wire_offset};
use crate::cluster::topic_config::complete;
use crate::cluster::{GroupId, NodeId, PartitionView, TopicView};
use crate::replica::PartitionStatus;

/// How long a leader has to answer.
const LEADER_ANSWER_MAX: Duration = Duration::from_secs(1);

impl Door {
    /// A topic with the state of its partitions.
    pub(super) async fn described(&self, topic: &TopicView) -> v1::Topic {
        let mut states = self.group_states(topic.partitions.iter().map(|place| place.group)).await;
        let partitions = topic
            .partitions
            .iter()
            .zip(0_u32..)
            .map(|(place, number)| self.partition(place, number, states.remove(&place.group)))
            .collect();
        v1::Topic {
            name: topic.name.clone(),
            id: topic.id.clone(),
            partitions,
            config: complete(&topic.config),
            replication_factor: replication_factor(topic),
        }
    }

    /// Every partition of every topic, with its topic's name.
    pub(super) async fn all_partitions(&self) -> Vec<(String, v1::Partition)> {
        let view = self.node.view();
        let topics: Vec<Arc<TopicView>> = view.topics.values().cloned().collect();
        let groups =
            topics.iter().flat_map(|topic| topic.partitions.iter()).map(|place| place.group);
        let mut states = self.group_states(groups.collect::<Vec<_>>()).await;
        let mut all = Vec::new();
        for topic in &topics {
            for (place, number) in topic.partitions.iter().zip(0_u32..) {
                let state = states.remove(&place.group);
                all.push((topic.name.clone(), self.partition(place, number, state)));
            }
        }
        all
    }

    /// What the leaders of these groups say; groups without a leader, or whose leader does not answer, are missing.
    async fn group_states(
        &self,
        groups: impl IntoIterator<Item = GroupId>,
    ) -> HashMap<GroupId, v1::Partition> {
        let view = self.node.view();
        let own = self.node.id();
        let mut states = HashMap::new();
        let mut elsewhere: BTreeMap<NodeId, Vec<GroupId>> = BTreeMap::new();
        for group in groups {
            match view.leaders.get(&group) {
                Some(&(leader, _)) if leader == own => states.extend(self.own_state(group)),
                Some(&(leader, _)) => elsewhere.entry(leader).or_default().push(group),
                None => {}
            }
        }
        let asked = elsewhere.into_iter().map(|(leader, group_ids)| async move {
            let address = self.internal_address_of(leader).ok()?;
            let request = internal::GetPartitionsRequest { group_ids };
            let answer = self.calls.get_partitions(&address, request);
            tokio::time::timeout(LEADER_ANSWER_MAX, answer).await.ok()?.ok()
        });
        for answer in join_all(asked).await.into_iter().flatten() {
            let answered = answer.groups.into_iter();
            states.extend(answered.filter_map(|state| Some((state.group_id, state.partition?))));
        }
        states
    }

    /// State of a group that this node leads.
    pub(super) fn own_state(&self, group: GroupId) -> Option<(GroupId, v1::Partition)> {
        let status = self.node.replica(group)?.status();
        let mut partition = from_status(&status, self.node.id());
        // Who holds everything but is not heard from is not in sync: the next batch would pass it by.
        partition.in_sync.retain(|&node| self.node.is_alive(node));
        status.is_leader.then_some((group, partition))
    }

    /// Puts together what the leader says and what everybody knows.
    fn partition(
        &self,
        place: &PartitionView,
        number: u32,
        answered: Option<v1::Partition>,
    ) -> v1::Partition {
        let replicas: Vec<NodeId> = place.replicas.iter().map(|&(_, node)| node).collect();
        let Some(mut partition) = answered else {
            // The leader did not answer, or there is none. One that is not alive will soon be no leader.
            let view = self.node.view();
            let (leader, epoch) = view.leaders.get(&place.group).copied().unwrap_or_default();
            let state = if leader == 0 || !self.node.is_alive(leader) {
                v1::PartitionState::Leaderless
            } else {
                v1::PartitionState::Unspecified
            };
            let leader = if state == v1::PartitionState::Leaderless { 0 } else { leader };
            return v1::Partition {
                partition: number,
                leader,
                epoch,
                replicas,
                state: state.into(),
                ..v1::Partition::default()
            };
        };
        partition.partition = number;
        if partition.state() == v1::PartitionState::Unspecified {
            let is_whole = replicas.iter().all(|node| partition.in_sync.contains(node));
            let state = if is_whole {
                v1::PartitionState::Healthy
            } else {
                v1::PartitionState::UnderReplicated
            };
            partition.set_state(state);
        }
        partition.replicas = replicas;
        partition
    }
}

/// Replicas of each partition.
pub(super) fn replication_factor(topic: &TopicView) -> u32 {
    let replicas = topic.partitions.first().map_or(0, |place| place.replicas.len());
    u32::try_from(replicas).unwrap_or(u32::MAX)
}

/// What a leader says of its partition; number and replicas are for the asker to add.
fn from_status(status: &PartitionStatus, node: NodeId) -> v1::Partition {
    let state = match status.quarantined {
        Some(_) => v1::PartitionState::Quarantined,
        None => v1::PartitionState::Unspecified,
    };
    v1::Partition {
        partition: 0,
        leader: node,
        epoch: status.leader_epoch,
        replicas: Vec::new(),
        in_sync: status.in_sync.clone(),
        log_start_offset: wire_offset(status.log_start_offset),
        high_watermark: wire_offset(status.high_watermark),
        size_bytes: status.size_bytes,
        state: state.into(),
    }
}
