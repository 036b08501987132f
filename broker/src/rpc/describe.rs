//! The state of partitions, gathered from their leaders and from nodes with damaged replicas.
//!
//! Owns: asking every node at once, and what the answers mean for a partition's state. Never: waits long for a node that
//! does not answer.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use highwater_proto::{internal, v1};

use super::door::{Door, wire_offset};
use crate::cluster::topic_config::complete;
use crate::cluster::{ClusterView, GroupId, METADATA_GROUP, NodeId, PartitionView, TopicView};
use crate::replica::PartitionStatus;

/// How long a node has to answer.
const ANSWER_MAX: Duration = Duration::from_secs(1);
/// How long a leader has to prove that it leads. Shorter, so that of many groups on a node one does not cost the answer.
const PROOF_MAX: Duration = Duration::from_millis(700);

/// What the state of partitions is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// To know where they end: leaders prove that they lead, which wakes groups that sleep.
    Ends,
    /// To know how they are.
    Health,
}

/// What was heard of a group.
#[derive(Debug, Default)]
struct GroupState {
    /// From its leader.
    led: Option<v1::Partition>,
    /// From the nodes of replicas that are out of service.
    quarantined: Vec<v1::QuarantinedReplica>,
}

impl Door {
    /// A topic with the state of its partitions.
    pub(super) async fn described(&self, topic: &TopicView, what: Wanted) -> v1::Topic {
        let places: Vec<&PartitionView> = topic.partitions.iter().collect();
        let view = self.node.view();
        let mut states = self.group_states(&view, &places, what).await;
        let partitions = topic
            .partitions
            .iter()
            .zip(0_u32..)
            .map(|(place, number)| {
                let state = states.remove(&place.group).unwrap_or_default();
                self.partition(&view, place, number, state)
            })
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
        let places: Vec<&PartitionView> =
            topics.iter().flat_map(|topic| topic.partitions.iter()).collect();
        let mut states = self.group_states(&view, &places, Wanted::Health).await;
        let mut all = Vec::new();
        for topic in &topics {
            for (place, number) in topic.partitions.iter().zip(0_u32..) {
                let state = states.remove(&place.group).unwrap_or_default();
                all.push((topic.name.clone(), self.partition(&view, place, number, state)));
            }
        }
        all
    }

    /// What their leaders say of these groups, and every node of damaged replicas it holds. Groups without a leader, or whose
    /// leader does not answer, are missing unless such a replica is known.
    async fn group_states(
        &self,
        view: &ClusterView,
        places: &[&PartitionView],
        what: Wanted,
    ) -> HashMap<GroupId, GroupState> {
        let own = self.node.id();
        let mut states: HashMap<GroupId, GroupState> = HashMap::new();
        let mut elsewhere: BTreeMap<NodeId, Vec<GroupId>> = BTreeMap::new();
        for place in places {
            for (_, node) in place.replicas.iter().filter(|(_, node)| *node != own) {
                elsewhere.entry(*node).or_default().push(place.group);
            }
        }
        let wanted: HashSet<GroupId> = places.iter().map(|place| place.group).collect();
        for (group, replica) in self.node.quarantined_replicas() {
            if wanted.contains(&group) {
                states.entry(group).or_default().quarantined.push(replica);
            }
        }
        let alive = elsewhere.into_iter().filter(|(node, _)| self.node.is_alive(*node));
        let asked = alive.map(|(node, group_ids)| async move {
            let address = self.internal_address_of(node).ok()?;
            let wants_ends = what == Wanted::Ends;
            let request = internal::GetPartitionsRequest { group_ids, wants_ends };
            let answer = self.calls.get_partitions(&address, request);
            Some((node, tokio::time::timeout(ANSWER_MAX, answer).await.ok()?.ok()?))
        });
        let own = self.own_states(wanted.iter().copied(), what);
        let (own, answers) = futures::join!(own, join_all(asked));
        for (group, led) in own {
            states.entry(group).or_default().led = Some(led);
        }
        for (node, answer) in answers.into_iter().flatten() {
            for state in answer.groups {
                // Of two who think so the one that others follow is believed.
                if view.leaders.get(&state.group_id).is_some_and(|(leader, _)| *leader == node) {
                    states.entry(state.group_id).or_default().led = state.partition;
                }
            }
            for quarantined in answer.quarantined {
                let state = states.entry(quarantined.group_id).or_default();
                state.quarantined.extend(quarantined.replica);
            }
        }
        states
    }

    /// What the nodes that are alive say of damaged replicas of the metadata group that they hold.
    pub(super) async fn damaged_metadata(&self) -> Vec<v1::QuarantinedReplica> {
        let view = self.node.view();
        let others = view.nodes.keys().filter(|node| **node != self.node.id());
        let asked = others.filter(|node| self.node.is_alive(**node)).map(|node| async move {
            let address = self.internal_address_of(*node).ok()?;
            let group_ids = vec![METADATA_GROUP];
            let request = internal::GetPartitionsRequest { group_ids, wants_ends: false };
            let answer = self.calls.get_partitions(&address, request);
            let answer = tokio::time::timeout(ANSWER_MAX, answer).await.ok()?.ok()?;
            Some(answer.quarantined.into_iter().filter_map(|it| it.replica))
        });
        let own = self.node.quarantined_replicas().into_iter();
        let own = own.filter(|(group, _)| *group == METADATA_GROUP).map(|(_, replica)| replica);
        own.chain(join_all(asked).await.into_iter().flatten().flatten()).collect()
    }

    /// State of those of these groups that this node leads; where their ends are wanted, of those for which it can prove that.
    pub(super) async fn own_states(
        &self,
        groups: impl Iterator<Item = GroupId>,
        what: Wanted,
    ) -> Vec<(GroupId, v1::Partition)> {
        let led = groups.filter_map(|group| {
            let replica = self.node.replica(group).filter(|replica| replica.is_leader())?;
            Some(async move {
                let status = match what {
                    Wanted::Health => replica.status(),
                    Wanted::Ends => {
                        let proof = tokio::time::timeout(PROOF_MAX, replica.proved_status());
                        proof.await.ok()?.ok()?
                    }
                };
                let mut partition = from_status(&status, self.node.id());
                // Who holds everything but is not heard from is not in sync: the next batch would pass it by.
                partition.in_sync.retain(|&node| self.node.is_alive(node));
                status.is_leader.then_some((group, partition))
            })
        });
        join_all(led).await.into_iter().flatten().collect()
    }

    /// Puts together what the leader says and what everybody knew before it was asked.
    fn partition(
        &self,
        view: &ClusterView,
        place: &PartitionView,
        number: u32,
        known: GroupState,
    ) -> v1::Partition {
        let replicas: Vec<NodeId> = place.replicas.iter().map(|&(_, node)| node).collect();
        let GroupState { led, quarantined } = known;
        let Some(mut partition) = led else {
            // The leader did not answer, or there is none. One that is not alive will soon be no leader.
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
                quarantined,
                ..v1::Partition::default()
            };
        };
        partition.partition = number;
        let is_whole = replicas.iter().all(|node| partition.in_sync.contains(node));
        partition.set_state(match (quarantined.is_empty(), is_whole) {
            (false, _) => v1::PartitionState::Quarantined,
            (true, true) => v1::PartitionState::Healthy,
            (true, false) => v1::PartitionState::UnderReplicated,
        });
        partition.replicas = replicas;
        partition.quarantined = quarantined;
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
    v1::Partition {
        partition: 0,
        leader: node,
        epoch: status.leader_epoch,
        replicas: Vec::new(),
        in_sync: status.in_sync.clone(),
        log_start_offset: wire_offset(status.log_start_offset),
        high_watermark: wire_offset(status.high_watermark),
        size_bytes: status.size_bytes,
        ..v1::Partition::default()
    }
}
