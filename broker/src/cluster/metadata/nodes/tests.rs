//! Nodes that join, lose their directory, leave: what the state machine makes of it.

use std::collections::BTreeSet;

use highwater_proto::internal::metadata_command::Command;
use highwater_proto::internal::{
    AdmitNode, DrainNode, FinishReassignment, FoundingMember, JoinNode, MetadataOutcome,
    NodeStarted, RaiseFeatureLevel, ReassignPartition, ReplaceMetadataReplica, RetireNode,
};

use super::super::tests::{apply, create, machine};
use super::super::{Metadata, MetadataMachine};
use crate::cluster::NodeId;
use crate::replica::StateMachine as _;

fn join(machine: &mut MetadataMachine, node_id: NodeId, incarnation: &str) -> MetadataOutcome {
    let node = FoundingMember {
        node_id,
        incarnation: incarnation.into(),
        internal_address: format!("{incarnation}:7421"),
        ..Default::default()
    };
    apply(machine, 6, Command::JoinNode(JoinNode { node: Some(node) }))
}

fn drain(machine: &mut MetadataMachine, node_id: NodeId) -> MetadataOutcome {
    apply(machine, 6, Command::DrainNode(DrainNode { node_id }))
}

fn retire(machine: &mut MetadataMachine, node_id: NodeId) -> MetadataOutcome {
    apply(machine, 6, Command::RetireNode(RetireNode { node_id }))
}

fn admit(machine: &mut MetadataMachine, node_id: NodeId) -> MetadataOutcome {
    apply(machine, 6, Command::AdmitNode(AdmitNode { node_id }))
}

fn started(node_id: NodeId, incarnation: &str) -> Command {
    let incarnation = incarnation.into();
    Command::NodeStarted(NodeStarted {
        node_id,
        incarnation,
        boot_counter: 3,
        ..Default::default()
    })
}

fn voters(state: &Metadata) -> Vec<NodeId> {
    state.metadata_target().voters.into_values().collect()
}

fn learners(state: &Metadata) -> BTreeSet<NodeId> {
    state.metadata_target().learners.into_values().collect()
}

#[test]
fn a_node_that_joins_gets_the_next_id_once_however_often_it_asks() {
    let mut machine = machine();
    assert_eq!(join(&mut machine, 0, "new").reason, "");
    assert_eq!(join(&mut machine, 0, "new").reason, "");
    assert_eq!(
        machine.state.nodes.keys().copied().collect::<Vec<_>>(),
        (1..=8).collect::<Vec<_>>()
    );
    assert_eq!(machine.state.nodes[&8].incarnation, "new");
    assert_eq!(learners(&machine.state), [6, 7, 8].into());
    assert_eq!(join(&mut machine, 20, "asks").reason, "");
    assert_eq!(machine.state.nodes[&20].incarnation, "asks");
    assert_eq!(join(&mut machine, 0, "").reason, "INVALID_ARGUMENT");
}

#[test]
fn another_directory_under_a_known_id_is_refused_with_the_command_that_lets_it_in() {
    let mut machine = machine();
    let refused = join(&mut machine, 3, "wiped");
    assert_eq!(refused.reason, "FOREIGN_NODE");
    assert!(refused.message.contains("broker-cli cluster add-node 3"), "{}", refused.message);
    assert_eq!(machine.state.nodes[&3].incarnation, "incarnation-3");
}

#[test]
fn a_lost_directory_comes_back_as_new_replicas_in_the_old_places() {
    let mut machine = machine();
    apply(&mut machine, 6, create("a", "id-1", &[1, 2, 3]));
    apply(&mut machine, 6, create("b", "id-2", &[1, 2]));
    let before = machine.state.topics["a"].partitions[0].clone();
    let old_metadata_replica = machine.state.nodes[&3].metadata_replica_id;
    assert_eq!(admit(&mut machine, 3).reason, "");
    assert_eq!(join(&mut machine, 3, "wiped").reason, "");
    let after = &machine.state.topics["a"].partitions[0];
    assert_eq!(after.target[..2], before.replicas[..2]);
    assert!(after.target[2].0 > before.replicas[2].0 && after.target[2].1 == 3);
    assert!(machine.state.topics["b"].partitions[0].target.is_empty());
    let node = &machine.state.nodes[&3];
    assert!(node.metadata_replica_id > old_metadata_replica && !node.awaits_directory);
    assert!(!machine.state.metadata_target().voters.contains_key(&old_metadata_replica));
    // The old directory is one of a stranger now, and the door is shut again.
    assert_eq!(apply(&mut machine, 9, started(3, "incarnation-3")).reason, "FOREIGN_NODE");
    assert_eq!(join(&mut machine, 3, "a third").reason, "FOREIGN_NODE");
}

#[test]
fn a_directory_that_was_not_lost_after_all_shuts_the_door() {
    let mut machine = machine();
    admit(&mut machine, 3);
    assert_eq!(apply(&mut machine, 9, started(3, "incarnation-3")).reason, "");
    assert_eq!(join(&mut machine, 3, "wiped").reason, "FOREIGN_NODE");
}

#[test]
fn a_node_that_leaves_gives_up_its_vote_then_its_replicas_then_its_id() {
    let mut machine = machine();
    apply(&mut machine, 6, create("a", "id-1", &[1, 2, 3]));
    assert_eq!(retire(&mut machine, 2).reason, "INVALID_ARGUMENT", "nobody told it to leave");
    assert_eq!(drain(&mut machine, 2).reason, "");
    assert_eq!(voters(&machine.state), [1, 3, 4, 5, 6], "another one votes");
    assert_eq!(learners(&machine.state), [2, 7].into(), "it must hear where its replicas go");
    assert_eq!(retire(&mut machine, 2).reason, "INVALID_ARGUMENT", "it holds a replica");
    let moved = ReassignPartition { group_id: 1, node_ids: vec![1, 4, 3], ..Default::default() };
    apply(&mut machine, 7, Command::ReassignPartition(moved));
    assert_eq!(retire(&mut machine, 2).reason, "INVALID_ARGUMENT", "it still does");
    let finished = FinishReassignment { group_id: 1, reassignments: 1 };
    apply(&mut machine, 8, Command::FinishReassignment(finished));
    assert_eq!(learners(&machine.state), [7].into());
    assert_eq!(retire(&mut machine, 2).reason, "");
    assert_eq!(retire(&mut machine, 2).reason, "", "told twice");
    for outcome in [
        join(&mut machine, 2, "again"),
        apply(&mut machine, 9, started(2, "incarnation-2")),
        admit(&mut machine, 2),
    ] {
        assert_eq!(outcome.reason, "NODE_REMOVED");
    }
    assert_eq!(apply(&mut machine, 9, create("b", "id-2", &[2])).reason, "INVALID_ARGUMENT");
    let image = machine.image();
    machine.restore(9, &image).unwrap();
    assert_eq!(join(&mut machine, 2, "again").reason, "NODE_REMOVED");
}

#[test]
fn the_highest_id_is_not_given_out_again_after_its_node_left() {
    let mut machine = machine();
    drain(&mut machine, 7);
    retire(&mut machine, 7);
    join(&mut machine, 0, "new");
    assert!(machine.state.nodes.contains_key(&8));
}

#[test]
fn a_node_may_be_kept_after_all_and_the_last_one_cannot_leave() {
    let mut machine = machine();
    for node in 2..=7 {
        assert_eq!(drain(&mut machine, node).reason, "");
    }
    assert_eq!(drain(&mut machine, 1).reason, "INVALID_ARGUMENT");
    assert_eq!(admit(&mut machine, 4).reason, "");
    assert_eq!(voters(&machine.state), [1, 4]);
    assert_eq!(join(&mut machine, 4, "wiped").reason, "FOREIGN_NODE", "kept, not replaced");
    assert_eq!(admit(&mut machine, 99).reason, "INVALID_ARGUMENT");
}

#[test]
fn partitions_are_added_once() {
    let mut machine = machine();
    apply(&mut machine, 6, create("a", "id-1", &[1, 2, 3]));
    let add = |partitions, id: &str, nodes: &[NodeId]| {
        Command::AddPartitions(highwater_proto::internal::AddPartitions {
            name: "a".into(),
            id: id.into(),
            partitions,
            placements: vec![highwater_proto::internal::PartitionPlacement {
                nodes: nodes.to_vec(),
            }],
        })
    };
    assert_eq!(apply(&mut machine, 7, add(1, "id-1", &[4, 5])).reason, "");
    assert_eq!(apply(&mut machine, 8, add(1, "id-1", &[4, 5])).reason, "STALE_PARTITIONS");
    assert_eq!(apply(&mut machine, 8, add(2, "id-0", &[4, 5])).reason, "UNKNOWN_TOPIC");
    assert_eq!(apply(&mut machine, 8, add(2, "id-1", &[99])).reason, "INVALID_ARGUMENT");
    let partitions = &machine.state.topics["a"].partitions;
    assert_eq!(partitions.len(), 2);
    assert!(partitions[1].group > partitions[0].group);
    assert_eq!(partitions[1].replicas.iter().map(|(_, n)| *n).collect::<Vec<_>>(), [4, 5]);
}

#[test]
fn a_level_is_raised_once_all_nodes_were_asked_and_older_software_is_refused_from_then_on() {
    let mut machine = machine();
    let raise = |to, nodes: &[u64]| {
        Command::RaiseFeatureLevel(RaiseFeatureLevel { to, node_ids: nodes.to_vec() })
    };
    let all = [1, 2, 3, 4, 5, 6, 7];
    assert_eq!(apply(&mut machine, 6, raise(2, &all[..6])).reason, "STALE_NODES");
    assert_eq!(machine.state.feature_level, 1);
    assert_eq!(apply(&mut machine, 7, raise(2, &all)).reason, "");
    assert_eq!(apply(&mut machine, 8, raise(1, &all)).reason, "", "it never goes back");
    assert_eq!(machine.state.feature_level, 2);
    let started = |feature_level| {
        Command::NodeStarted(NodeStarted {
            node_id: 2,
            incarnation: "incarnation-2".into(),
            boot_counter: 3,
            feature_level,
            ..Default::default()
        })
    };
    // The first versions say nothing, which means 1.
    for (index, level) in [(9, 0), (10, 1)] {
        assert_eq!(apply(&mut machine, index, started(level)).reason, "OLD_VERSION");
    }
    assert_eq!(apply(&mut machine, 11, started(2)).reason, "");
    let join = |feature_level| {
        let node = FoundingMember {
            incarnation: "new".into(),
            internal_address: "host8:7421".into(),
            feature_level,
            ..Default::default()
        };
        Command::JoinNode(JoinNode { node: Some(node) })
    };
    assert_eq!(apply(&mut machine, 12, join(0)).reason, "OLD_VERSION");
    assert_eq!(apply(&mut machine, 13, join(3)).reason, "");
}

#[test]
fn a_lost_replica_of_the_metadata_group_is_replaced_once_and_only_for_its_own_node() {
    let mut machine = machine();
    let replace = |incarnation: &str, node_id, replica_id| {
        let incarnation = incarnation.into();
        Command::ReplaceMetadataReplica(ReplaceMetadataReplica { node_id, incarnation, replica_id })
    };
    let replica_of = |machine: &MetadataMachine| machine.state.nodes[&2].metadata_replica_id;
    let lost = replica_of(&machine);
    let before = machine.state.next_replica_id;
    assert_eq!(apply(&mut machine, 6, replace("other", 2, lost)).reason, "FOREIGN_NODE");
    assert_eq!(replica_of(&machine), lost);
    for _ in 0..2 {
        // The second time because the first answer was lost.
        assert_eq!(apply(&mut machine, 6, replace("incarnation-2", 2, lost)).reason, "");
        assert_eq!(replica_of(&machine), before);
    }
    assert_eq!(machine.state.next_replica_id, before + 1);
    // It is the youngest now: of seven nodes another one votes in its place.
    assert_eq!(voters(&machine.state), [1, 3, 4, 5, 6]);
    assert_eq!(learners(&machine.state), [2, 7].into());
    drain(&mut machine, 2);
    retire(&mut machine, 2);
    assert_eq!(apply(&mut machine, 6, replace("incarnation-2", 2, before)).reason, "NODE_REMOVED");
}
