//! The metadata group's state machine: nodes, topics, assignments, ids.
//!
//! Owns: what each command does, and the ids it hands out. Deterministic: nothing but the state and the command decides.
//! Never: choices that depend on who is alive; those are made before a command is proposed.

mod nodes;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use highwater_proto::internal::metadata_command::Command;
use highwater_proto::internal::{
    self, Founding, MetadataCommand, MetadataImage, MetadataOutcome, NodeImage, PartitionImage,
    ReplicaImage, TopicImage,
};
use prost::Message;
use tokio::sync::watch;

use super::registry::Registry;
use super::view::{ClusterView, NodeView, PartitionView, TopicView};
use super::{GroupId, NodeId, ReplicaId};
use crate::replica::StateMachine;

pub(crate) use nodes::{MetadataTarget, removed_message, too_old_message};

/// Voters of the metadata group; further nodes follow as learners.
const VOTERS_MAX: usize = 5;

/// The applied state. Cheap to clone: topics and services are shared.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metadata {
    pub(crate) cluster_id: String,
    pub(crate) feature_level: u32,
    pub(crate) nodes: BTreeMap<NodeId, NodeImage>,
    /// Nodes that have left.
    pub(crate) removed_nodes: BTreeSet<NodeId>,
    pub(crate) topics: BTreeMap<String, Arc<TopicView>>,
    /// Groups with a target: derived from `topics`.
    pub(crate) moving: BTreeSet<GroupId>,
    pub(crate) deleted_topic_ids: BTreeSet<String>,
    pub(crate) next_group_id: GroupId,
    pub(crate) next_replica_id: ReplicaId,
    pub(crate) next_producer_id: i64,
    pub(crate) registry: Arc<Registry>,
    /// Index of the last applied command. An image stands at an index of its own, which may be later: not every entry is a command.
    pub(crate) applied_index: u64,
}

impl Metadata {
    /// The state that a cluster is founded with: the same on every seed.
    pub(crate) fn founded(founding: &Founding) -> Self {
        let mut state = Self {
            cluster_id: founding.cluster_id.clone(),
            feature_level: founding.feature_level,
            next_group_id: 1,
            next_replica_id: 1,
            next_producer_id: 1,
            ..Self::default()
        };
        for member in &founding.members {
            let node = state.new_node(member.node_id, member);
            state.nodes.insert(member.node_id, node);
        }
        state
    }

    /// Replicas of the metadata group with their nodes: voters, then learners.
    pub(crate) fn metadata_members(
        founding: &Founding,
    ) -> (BTreeMap<ReplicaId, NodeId>, BTreeMap<ReplicaId, NodeId>) {
        let MetadataTarget { voters, learners } = Self::founded(founding).metadata_target();
        (voters, learners)
    }

    pub(crate) fn partitions(&self) -> usize {
        self.topics.values().map(|topic| topic.partitions.len()).sum()
    }

    fn apply(&mut self, index: u64, command: &MetadataCommand) -> MetadataOutcome {
        match &command.command {
            Some(Command::CreateTopic(create)) => self.create_topic(create),
            Some(Command::UpdateTopic(update)) => self.update_topic(update),
            Some(Command::DeleteTopic(delete)) => self.delete_topic(delete),
            Some(Command::NodeStarted(started)) => self.node_started(started),
            Some(Command::LeaseProducerIds(lease)) => {
                let first_producer_id = self.next_producer_id;
                self.next_producer_id += i64::from(lease.count.max(1));
                MetadataOutcome { first_producer_id, ..MetadataOutcome::default() }
            }
            Some(Command::ReassignPartition(reassign)) => self.reassign(reassign),
            Some(Command::FinishReassignment(finish)) => self.finish_reassignment(finish),
            Some(Command::JoinNode(join)) => self.join_node(join),
            Some(Command::AdmitNode(admit)) => self.admit_node(admit.node_id),
            Some(Command::DrainNode(drain)) => self.drain_node(drain.node_id),
            Some(Command::RetireNode(retire)) => self.retire_node(retire.node_id),
            Some(Command::AddPartitions(add)) => self.add_partitions(add),
            Some(Command::RaiseFeatureLevel(raise)) => self.raise_feature_level(raise),
            Some(Command::ReplaceMetadataReplica(lost)) => self.replace_metadata_replica(lost),
            Some(Command::GrantLease(grant)) => self.grant_lease(index, grant),
            Some(Command::EndLeases(end)) => self.end_leases(end),
            None => refused("INVALID_ARGUMENT", "a command that this version does not know"),
        }
    }

    fn create_topic(&mut self, create: &internal::CreateTopic) -> MetadataOutcome {
        if let Some(topic) = self.topics.get(&create.name) {
            // The same command proposed twice, because its first outcome was lost, is no conflict.
            if topic.id == create.id {
                return MetadataOutcome::default();
            }
            return refused("TOPIC_EXISTS", &format!("topic '{}' exists already", create.name));
        }
        let partitions = match self.new_partitions(&create.placements) {
            Ok(partitions) => partitions,
            Err(refusal) => return refusal,
        };
        let topic = TopicView {
            name: create.name.clone(),
            id: create.id.clone(),
            partitions,
            config: create.config.clone(),
        };
        self.topics.insert(create.name.clone(), Arc::new(topic));
        MetadataOutcome::default()
    }

    fn new_partitions(
        &mut self,
        placements: &[internal::PartitionPlacement],
    ) -> Result<Vec<PartitionView>, MetadataOutcome> {
        let mut placed = placements.iter().flat_map(|placement| &placement.nodes);
        if let Some(node) = placed.find(|node| !self.nodes.contains_key(node)) {
            let message = format!("node {node} is not in the cluster");
            return Err(refused("INVALID_ARGUMENT", &message));
        }
        let mut partitions = Vec::with_capacity(placements.len());
        for placement in placements {
            let group = self.next_group_id;
            self.next_group_id += 1;
            let mut replicas = Vec::with_capacity(placement.nodes.len());
            for node in &placement.nodes {
                replicas.push((self.next_replica_id, *node));
                self.next_replica_id += 1;
            }
            partitions.push(PartitionView { group, replicas, ..PartitionView::default() });
        }
        Ok(partitions)
    }

    fn add_partitions(&mut self, add: &internal::AddPartitions) -> MetadataOutcome {
        let Some(topic) = self.topics.get(&add.name).filter(|topic| topic.id == add.id) else {
            return unknown_topic(&add.name);
        };
        let has = topic.partitions.len();
        if usize::try_from(add.partitions) != Ok(has) {
            let message = format!("topic '{}' has {has} partitions by now; look again", add.name);
            return refused("STALE_PARTITIONS", &message);
        }
        match self.new_partitions(&add.placements) {
            Ok(partitions) => {
                if let Some(topic) = self.topics.get_mut(&add.name) {
                    Arc::make_mut(topic).partitions.extend(partitions);
                }
                MetadataOutcome::default()
            }
            Err(refusal) => refusal,
        }
    }

    fn update_topic(&mut self, update: &internal::UpdateTopic) -> MetadataOutcome {
        let Some(topic) = self.topics.get_mut(&update.name) else {
            return unknown_topic(&update.name);
        };
        let topic = Arc::make_mut(topic);
        for key in &update.unset {
            topic.config.remove(key);
        }
        topic.config.extend(update.set.clone());
        MetadataOutcome::default()
    }

    fn delete_topic(&mut self, delete: &internal::DeleteTopic) -> MetadataOutcome {
        let is_it = self.topics.get(&delete.name).is_some_and(|topic| topic.id == delete.id);
        if is_it {
            let gone = self.topics.remove(&delete.name);
            for partition in gone.iter().flat_map(|topic| &topic.partitions) {
                self.moving.remove(&partition.group);
            }
            self.deleted_topic_ids.insert(delete.id.clone());
        } else if !self.deleted_topic_ids.contains(&delete.id) {
            return unknown_topic(&delete.name);
        }
        MetadataOutcome::default()
    }

    fn reassign(&mut self, reassign: &internal::ReassignPartition) -> MetadataOutcome {
        let nodes = &reassign.node_ids;
        let distinct: BTreeSet<NodeId> = nodes.iter().copied().collect();
        if nodes.is_empty() || distinct.len() != nodes.len() {
            return refused(
                "INVALID_ARGUMENT",
                "the nodes of a partition are at least one, each once",
            );
        }
        if let Some(node) = nodes.iter().find(|node| !self.nodes.contains_key(node)) {
            return refused("INVALID_ARGUMENT", &format!("node {node} is not in the cluster"));
        }
        let mut next_replica_id = self.next_replica_id;
        let Some(partition) = self.partition_mut(reassign.group_id) else {
            return unknown_group(reassign.group_id);
        };
        if partition.reassignments != reassign.reassignments {
            return refused(
                "STALE_REASSIGNMENT",
                "the partition was reassigned by somebody else meanwhile; look again",
            );
        }
        let kept = |node: NodeId| match reassign.replace_node_ids.contains(&node) {
            true => None,
            false => partition.assigned_to(node),
        };
        let first_new = next_replica_id;
        let mut target = Vec::with_capacity(nodes.len());
        for node in nodes {
            let id = kept(*node).unwrap_or_else(|| {
                next_replica_id += 1;
                next_replica_id - 1
            });
            target.push((id, *node));
        }
        partition.reassignments += 1;
        if partition.joined_from == 0 {
            partition.joined_from = first_new;
        }
        let group = partition.group;
        let given_up = std::mem::replace(&mut partition.target, target);
        partition.leaving.extend(given_up);
        let PartitionView { replicas, target, leaving, .. } = partition;
        leaving.retain(|(id, _)| !replicas.iter().chain(&*target).any(|(other, _)| other == id));
        self.next_replica_id = next_replica_id;
        self.moving.insert(group);
        MetadataOutcome::default()
    }

    fn finish_reassignment(&mut self, finish: &internal::FinishReassignment) -> MetadataOutcome {
        let Some(partition) = self.partition_mut(finish.group_id) else {
            return unknown_group(finish.group_id);
        };
        if partition.reassignments != finish.reassignments {
            return refused("STALE_REASSIGNMENT", "the partition has another target by now");
        }
        if partition.target.is_empty() {
            // Told twice.
            return MetadataOutcome::default();
        }
        let before =
            std::mem::replace(&mut partition.replicas, std::mem::take(&mut partition.target));
        let leaving = std::mem::take(&mut partition.leaving);
        let is_kept = |id: &ReplicaId| partition.replicas.iter().any(|(kept, _)| kept == id);
        let gone = before.into_iter().chain(leaving).map(|(id, _)| id).filter(|id| !is_kept(id));
        partition.removed.extend(gone);
        self.moving.remove(&finish.group_id);
        MetadataOutcome::default()
    }

    fn grant_lease(&mut self, index: u64, grant: &internal::GrantLease) -> MetadataOutcome {
        let Some(instance) = &grant.instance else {
            return refused("INVALID_ARGUMENT", "a lease without an instance");
        };
        match Arc::make_mut(&mut self.registry).grant(instance, index) {
            Ok(()) => MetadataOutcome::default(),
            Err(limit) => refused("REGISTRY_FULL", &limit),
        }
    }

    fn end_leases(&mut self, end: &internal::EndLeases) -> MetadataOutcome {
        let registry = Arc::make_mut(&mut self.registry);
        end.leases.iter().for_each(|lease| registry.end(lease));
        MetadataOutcome::default()
    }

    fn partition_mut(&mut self, group: GroupId) -> Option<&mut PartitionView> {
        let holds = |topic: &&mut Arc<TopicView>| topic.partitions.iter().any(|p| p.group == group);
        let topic = Arc::make_mut(self.topics.values_mut().find(holds)?);
        topic.partitions.iter_mut().find(|partition| partition.group == group)
    }

    /// A partition by its group.
    pub(crate) fn partition(&self, group: GroupId) -> Option<&PartitionView> {
        let mut all = self.topics.values().flat_map(|topic| &topic.partitions);
        all.find(|partition| partition.group == group)
    }

    /// What is known now, with the leaders, as the `version`th view.
    pub(crate) fn view(
        &self,
        leaders: BTreeMap<GroupId, (NodeId, u64)>,
        version: u64,
    ) -> ClusterView {
        let node = |node: &NodeImage| NodeView {
            id: node.id,
            internal_address: node.internal_address.clone(),
            listeners: node
                .listeners
                .iter()
                .map(|listener| (listener.name.clone(), listener.address.clone()))
                .collect(),
            version: node.version.clone(),
            rack: node.rack.clone(),
            is_draining: node.is_draining,
        };
        ClusterView {
            cluster_id: self.cluster_id.clone(),
            feature_level: self.feature_level,
            version,
            metadata_index: self.applied_index,
            nodes: self.nodes.values().map(|image| (image.id, node(image))).collect(),
            removed_nodes: self.removed_nodes.iter().copied().collect(),
            topics: self.topics.clone(),
            registry: Arc::clone(&self.registry),
            leaders,
        }
    }

    pub(crate) fn to_image(&self) -> MetadataImage {
        let topic = |topic: &Arc<TopicView>| TopicImage {
            name: topic.name.clone(),
            id: topic.id.clone(),
            partitions: topic.partitions.iter().map(partition_image).collect(),
            config: topic.config.clone(),
        };
        MetadataImage {
            cluster_id: self.cluster_id.clone(),
            feature_level: self.feature_level,
            nodes: self.nodes.values().cloned().collect(),
            topics: self.topics.values().map(topic).collect(),
            deleted_topic_ids: self.deleted_topic_ids.iter().cloned().collect(),
            next_group_id: self.next_group_id,
            next_replica_id: self.next_replica_id,
            next_producer_id: self.next_producer_id,
            removed_node_ids: self.removed_nodes.iter().copied().collect(),
            applied_index: self.applied_index,
            leases: self.registry.to_image(),
        }
    }

    fn from_image(image: MetadataImage) -> Self {
        let topic = |topic: TopicImage| {
            let partitions = topic.partitions.iter().map(partition_view).collect();
            let view =
                TopicView { name: topic.name, id: topic.id, partitions, config: topic.config };
            (view.name.clone(), Arc::new(view))
        };
        let topics: BTreeMap<String, Arc<TopicView>> =
            image.topics.into_iter().map(topic).collect();
        let partitions = topics.values().flat_map(|topic| &topic.partitions);
        let moving = partitions.filter(|p| !p.target.is_empty()).map(|p| p.group).collect();
        Self {
            cluster_id: image.cluster_id,
            feature_level: image.feature_level,
            nodes: image.nodes.into_iter().map(|node| (node.id, node)).collect(),
            removed_nodes: image.removed_node_ids.into_iter().collect(),
            topics,
            moving,
            deleted_topic_ids: image.deleted_topic_ids.into_iter().collect(),
            next_group_id: image.next_group_id,
            next_replica_id: image.next_replica_id,
            next_producer_id: image.next_producer_id,
            registry: Arc::new(Registry::from_image(image.leases)),
            applied_index: image.applied_index,
        }
    }
}

fn partition_image(partition: &PartitionView) -> PartitionImage {
    let images = |replicas: &[(ReplicaId, NodeId)]| {
        let image = |(replica_id, node_id): &(ReplicaId, NodeId)| ReplicaImage {
            replica_id: *replica_id,
            node_id: *node_id,
        };
        replicas.iter().map(image).collect()
    };
    PartitionImage {
        group_id: partition.group,
        replicas: images(&partition.replicas),
        target: images(&partition.target),
        leaving: images(&partition.leaving),
        removed_replica_ids: partition.removed.clone(),
        joined_from: partition.joined_from,
        reassignments: partition.reassignments,
    }
}

fn partition_view(image: &PartitionImage) -> PartitionView {
    let replicas = |images: &[ReplicaImage]| {
        images.iter().map(|image| (image.replica_id, image.node_id)).collect()
    };
    PartitionView {
        group: image.group_id,
        replicas: replicas(&image.replicas),
        target: replicas(&image.target),
        leaving: replicas(&image.leaving),
        removed: image.removed_replica_ids.clone(),
        joined_from: image.joined_from,
        reassignments: image.reassignments,
    }
}

fn unknown_group(group: GroupId) -> MetadataOutcome {
    refused("INVALID_ARGUMENT", &format!("group {group} belongs to no partition"))
}

fn refused(reason: &str, message: &str) -> MetadataOutcome {
    MetadataOutcome {
        reason: reason.to_owned(),
        message: message.to_owned(),
        ..MetadataOutcome::default()
    }
}

fn unknown_topic(name: &str) -> MetadataOutcome {
    refused("UNKNOWN_TOPIC", &format!("topic '{name}' does not exist"))
}

/// The state machine that the engine drives: applies commands and publishes each state.
pub(crate) struct MetadataMachine {
    state: Metadata,
    published: watch::Sender<Arc<Metadata>>,
}

impl MetadataMachine {
    pub(crate) fn new(published: watch::Sender<Arc<Metadata>>) -> Self {
        Self { state: Metadata::default(), published }
    }

    fn publish(&self) {
        self.published.send_replace(Arc::new(self.state.clone()));
    }
}

impl StateMachine for MetadataMachine {
    fn apply(&mut self, index: u64, command: &Bytes) -> Bytes {
        let mut outcome = match MetadataCommand::decode(command.clone()) {
            Ok(command) => self.state.apply(index, &command),
            Err(error) => refused("INVALID_ARGUMENT", &format!("undecodable command: {error}")),
        };
        outcome.applied_index = index;
        self.state.applied_index = index;
        self.publish();
        outcome.encode_to_vec().into()
    }

    fn restore(&mut self, index: u64, image: &Bytes) -> Result<(), String> {
        let image = MetadataImage::decode(image.clone()).map_err(|error| error.to_string())?;
        self.state = Metadata::from_image(image);
        if self.state.applied_index == 0 {
            // Images did not always say it.
            self.state.applied_index = index;
        }
        self.publish();
        Ok(())
    }

    fn image(&self) -> Bytes {
        self.state.to_image().encode_to_vec().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn founding() -> Founding {
        let member = |node_id| internal::FoundingMember {
            node_id,
            incarnation: format!("incarnation-{node_id}"),
            internal_address: format!("host{node_id}:7421"),
            ..Default::default()
        };
        Founding {
            cluster_id: "c".into(),
            members: (1..=7).map(member).collect(),
            seeds: Vec::new(),
            feature_level: 1,
        }
    }

    pub(super) fn machine() -> MetadataMachine {
        let mut machine = MetadataMachine::new(watch::Sender::new(Arc::default()));
        let image = Metadata::founded(&founding()).to_image().encode_to_vec();
        machine.restore(5, &image.into()).unwrap();
        machine
    }

    pub(super) fn apply(
        machine: &mut MetadataMachine,
        index: u64,
        command: Command,
    ) -> MetadataOutcome {
        let command = MetadataCommand { version: 1, command: Some(command) };
        MetadataOutcome::decode(machine.apply(index, &command.encode_to_vec().into())).unwrap()
    }

    pub(super) fn create(name: &str, id: &str, nodes: &[u64]) -> Command {
        Command::CreateTopic(internal::CreateTopic {
            name: name.into(),
            id: id.into(),
            placements: vec![internal::PartitionPlacement { nodes: nodes.to_vec() }],
            config: BTreeMap::new(),
        })
    }

    #[test]
    fn five_founders_vote_and_the_others_follow() {
        let (voters, learners) = Metadata::metadata_members(&founding());
        assert_eq!(voters.values().copied().collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
        assert_eq!(learners.values().copied().collect::<Vec<_>>(), [6, 7]);
    }

    #[test]
    fn ids_of_groups_and_replicas_are_never_used_again() {
        let mut machine = machine();
        apply(&mut machine, 6, create("a", "id-1", &[1, 2, 3]));
        let first = machine.state.topics["a"].partitions[0].clone();
        let delete =
            Command::DeleteTopic(internal::DeleteTopic { name: "a".into(), id: "id-1".into() });
        assert_eq!(apply(&mut machine, 7, delete.clone()).reason, "");
        apply(&mut machine, 8, create("a", "id-2", &[1, 2, 3]));
        let second = machine.state.topics["a"].partitions[0].clone();
        assert!(second.group > first.group);
        assert!(second.replicas[0].0 > first.replicas[2].0);
        assert!(machine.state.deleted_topic_ids.contains("id-1"));
        // The same delete, tried again because its first outcome was lost, leaves the new topic alone.
        assert_eq!(apply(&mut machine, 9, delete).reason, "");
        assert!(machine.state.topics.contains_key("a"));
    }

    #[test]
    fn creating_a_topic_twice_is_refused_unless_it_is_the_same_proposal() {
        let mut machine = machine();
        assert_eq!(apply(&mut machine, 6, create("a", "id-1", &[1])).reason, "");
        assert_eq!(apply(&mut machine, 7, create("a", "id-1", &[1])).reason, "");
        assert_eq!(apply(&mut machine, 8, create("a", "id-2", &[1])).reason, "TOPIC_EXISTS");
        assert_eq!(apply(&mut machine, 9, create("b", "id-3", &[99])).reason, "INVALID_ARGUMENT");
    }

    #[test]
    fn a_node_with_another_directory_or_an_old_copy_is_refused() {
        let mut machine = machine();
        let started = |incarnation: &str, boot_counter| {
            Command::NodeStarted(internal::NodeStarted {
                node_id: 2,
                incarnation: incarnation.into(),
                boot_counter,
                ..Default::default()
            })
        };
        assert_eq!(apply(&mut machine, 6, started("incarnation-2", 3)).reason, "");
        assert_eq!(apply(&mut machine, 7, started("other", 9)).reason, "FOREIGN_NODE");
        assert_eq!(apply(&mut machine, 8, started("incarnation-2", 2)).reason, "OLD_COPY");
    }

    fn reassign(nodes: &[u64], replace: &[u64], reassignments: u64) -> Command {
        Command::ReassignPartition(internal::ReassignPartition {
            group_id: 1,
            node_ids: nodes.to_vec(),
            replace_node_ids: replace.to_vec(),
            reassignments,
        })
    }

    fn finish(reassignments: u64) -> Command {
        Command::FinishReassignment(internal::FinishReassignment { group_id: 1, reassignments })
    }

    #[test]
    fn a_reassigned_partition_keeps_replicas_where_they_are_and_gives_new_ones_new_ids() {
        let mut machine = machine();
        apply(&mut machine, 6, create("a", "id-1", &[1, 2, 3]));
        let founded = machine.state.topics["a"].partitions[0].clone();
        let [first, second, third] = [0, 1, 2].map(|at| founded.replicas[at].0);
        assert!(founded.is_founding(third));
        assert_eq!(apply(&mut machine, 7, reassign(&[4, 1, 2], &[], 0)).reason, "");
        let moving = machine.state.topics["a"].partitions[0].clone();
        assert_eq!(moving.target, [(third + 1, 4), (first, 1), (second, 2)]);
        assert_eq!((moving.assigned_to(3), moving.assigned_to(4)), (Some(third), Some(third + 1)));
        assert!(moving.is_founding(third) && !moving.is_founding(third + 1));
        assert!(moving.removed.is_empty(), "nothing may go before the members have changed");
        assert_eq!(apply(&mut machine, 8, finish(0)).reason, "STALE_REASSIGNMENT");
        assert_eq!(apply(&mut machine, 9, finish(1)).reason, "");
        assert_eq!(apply(&mut machine, 10, finish(1)).reason, "", "told twice");
        let moved = machine.state.topics["a"].partitions[0].clone();
        assert_eq!((moved.replicas, moved.removed), (moving.target, vec![third]));
        assert_eq!(apply(&mut machine, 11, reassign(&[1], &[], 0)).reason, "STALE_REASSIGNMENT");
        assert_eq!(apply(&mut machine, 12, reassign(&[1, 1], &[], 1)).reason, "INVALID_ARGUMENT");
        assert_eq!(apply(&mut machine, 13, reassign(&[99], &[], 1)).reason, "INVALID_ARGUMENT");
    }

    #[test]
    fn a_replica_is_replaced_in_place_and_a_target_given_up_leaves_no_replica_behind() {
        let mut machine = machine();
        apply(&mut machine, 6, create("a", "id-1", &[1, 2, 3]));
        let lost = machine.state.topics["a"].partitions[0].replicas[2].0;
        assert_eq!(apply(&mut machine, 7, reassign(&[1, 2, 3], &[3], 0)).reason, "");
        let first_try = machine.state.topics["a"].partitions[0].assigned_to(3).unwrap();
        assert!(first_try > lost);
        assert_eq!(apply(&mut machine, 8, reassign(&[1, 2, 3], &[3], 1)).reason, "");
        let partition = machine.state.topics["a"].partitions[0].clone();
        assert!(partition.assigned_to(3).unwrap() > first_try);
        assert_eq!(partition.leaving, [(first_try, 3)]);
        assert_eq!(apply(&mut machine, 9, finish(2)).reason, "");
        let partition = &machine.state.topics["a"].partitions[0];
        assert_eq!(partition.removed, [lost, first_try]);
        assert!(partition.target.is_empty() && partition.leaving.is_empty());
    }

    #[test]
    fn an_image_restores_the_same_state() {
        let mut machine = machine();
        apply(&mut machine, 6, create("a", "id-1", &[1, 2, 3]));
        apply(&mut machine, 6, reassign(&[1, 2, 4], &[2], 0));
        apply(&mut machine, 6, reassign(&[1, 5], &[], 1));
        let lease = Command::LeaseProducerIds(internal::LeaseProducerIds { node_id: 1, count: 10 });
        assert_eq!(apply(&mut machine, 7, lease).first_producer_id, 1);
        let instance = highwater_proto::v1::ServiceInstance {
            service: "pricing".into(),
            id: "a".into(),
            ..Default::default()
        };
        let grant = Command::GrantLease(internal::GrantLease { instance: Some(instance) });
        assert_eq!(apply(&mut machine, 8, grant).reason, "");
        assert_eq!(machine.state.registry.service("pricing")["a"].granted_index, 8);
        let image = machine.image();
        let mut other = MetadataMachine::new(watch::Sender::new(Arc::default()));
        other.restore(8, &image).unwrap();
        assert_eq!(other.image(), image);
        assert_eq!(other.state.next_producer_id, 11);
        assert_eq!(other.state.registry.service("pricing")["a"].granted_index, 8);
    }
}
