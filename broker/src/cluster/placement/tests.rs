//! Placement: evenness, racks, dead nodes, and plans that end.

use super::even::Planned;
use super::*;
use crate::cluster::PartitionView;

fn nodes(ids: std::ops::RangeInclusive<NodeId>) -> Nodes {
    Nodes { racks: ids.clone().map(|id| (id, String::new())).collect(), alive: ids.collect() }
}

fn racks(racks: &[&str]) -> Nodes {
    let racks: BTreeMap<NodeId, String> =
        (1..).zip(racks.iter().map(ToString::to_string)).collect();
    Nodes { alive: racks.keys().copied().collect(), racks }
}

fn empty(nodes: &Nodes) -> Loads {
    Loads::new(nodes, std::iter::empty())
}

fn topic(placed: &[&[NodeId]]) -> TopicView {
    let partition = |nodes: &&[NodeId]| PartitionView {
        group: 1,
        replicas: nodes.iter().map(|node| (*node, *node)).collect(),
        ..Default::default()
    };
    TopicView {
        name: "a".into(),
        id: "a".into(),
        partitions: placed.iter().map(partition).collect(),
        config: BTreeMap::new(),
    }
}

#[test]
fn leaders_and_replicas_are_spread_evenly() {
    let placed = place(&nodes(1..=5), empty(&nodes(1..=5)), 10, 3);
    let leaders = |node| placed.iter().filter(|nodes| nodes[0] == node).count();
    let replicas = |node| placed.iter().filter(|nodes| nodes.contains(&node)).count();
    for node in 1..=5 {
        assert_eq!((leaders(node), replicas(node)), (2, 6), "node {node}");
    }
    for nodes in &placed {
        assert_eq!(nodes.iter().collect::<BTreeSet<_>>().len(), 3, "no node twice");
    }
}

#[test]
fn leaders_are_spread_evenly_also_where_partitions_share_few_nodes() {
    for (count, partitions, factor) in [(3, 3, 2), (4, 8, 2)] {
        let placed = place(&nodes(1..=count), empty(&nodes(1..=count)), partitions, factor);
        for node in 1..=count {
            let leads = placed.iter().filter(|nodes| nodes[0] == node).count() as u64;
            assert_eq!(leads, u64::from(partitions) / count, "node {node} of {count}: {placed:?}");
        }
    }
}

#[test]
fn a_dead_node_is_used_only_when_the_live_ones_are_too_few() {
    let mut four = nodes(1..=4);
    four.alive.remove(&4);
    let placed = place(&four, empty(&four), 6, 3);
    assert!(placed.iter().all(|nodes| !nodes.contains(&4)));
    let mut three = nodes(1..=3);
    three.alive.remove(&3);
    let placed = place(&three, empty(&three), 6, 3);
    assert!(placed.iter().all(|nodes| nodes.contains(&3) && nodes[0] != 3));
}

#[test]
fn a_second_topic_evens_out_the_first() {
    let three = nodes(1..=3);
    let first = topic(&[&[1, 2]]);
    let placed = place(&three, Loads::new(&three, std::iter::once(&first)), 1, 1);
    assert_eq!(placed, [[3]]);
}

#[test]
fn replicas_go_to_different_racks_where_there_are_enough() {
    let four = racks(&["x", "x", "y", "y"]);
    for pair in place(&four, empty(&four), 8, 2) {
        assert_ne!(four.racks[&pair[0]], four.racks[&pair[1]], "{pair:?}");
    }
    let placed = place(&four, empty(&four), 4, 3);
    assert!(placed.iter().all(|nodes| nodes.len() == 3), "three replicas in two racks: {placed:?}");
}

#[test]
fn another_takes_the_place_of_a_node_that_leaves_in_another_rack_than_those_that_stay() {
    let mut staying = racks(&["x", "y", "x", "z"]);
    staying.racks.remove(&2);
    let mut loads = empty(&staying);
    assert_eq!(without_strangers(&staying, &mut loads, &[2, 1]), Some(vec![4, 1]));
    assert_eq!(without_strangers(&staying, &mut loads, &[1, 3, 4, 2]), None, "there is no other");
    staying.alive.remove(&4);
    assert_eq!(without_strangers(&staying, &mut loads, &[2, 1]), Some(vec![3, 1]), "4 is dead");
}

fn plan(nodes: &Nodes, placed: &[&[NodeId]]) -> (Vec<Planned<usize>>, Vec<Vec<NodeId>>) {
    let loads = Loads::new(nodes, std::iter::once(&topic(placed)));
    let partitions = placed.iter().map(|nodes| nodes.to_vec()).enumerate().collect();
    let planned = even_out(nodes, loads, partitions);
    let mut after: Vec<Vec<NodeId>> = placed.iter().map(|nodes| nodes.to_vec()).collect();
    for one in &planned {
        after[one.partition].clone_from(&one.to);
    }
    (planned, after)
}

#[test]
fn a_new_node_gets_its_share_and_no_more_moves_than_that() {
    let placed: Vec<&[NodeId]> = vec![&[1, 2, 3], &[2, 3, 1], &[3, 1, 2], &[1, 2, 3]];
    let (planned, after) = plan(&nodes(1..=4), &placed);
    let count = |node: NodeId| after.iter().filter(|nodes| nodes.contains(&node)).count();
    assert_eq!((1..=4).map(count).collect::<Vec<_>>(), [3, 3, 3, 3], "{planned:?}");
    for node in 1..=4 {
        assert_eq!(after.iter().filter(|nodes| nodes[0] == node).count(), 1, "{after:?}");
    }
    let moved = planned.iter().flat_map(|p| p.to.iter().filter(|n| !p.from.contains(n))).count();
    assert_eq!(moved, 3);
    let again: Vec<&[NodeId]> = after.iter().map(Vec::as_slice).collect();
    assert_eq!(plan(&nodes(1..=4), &again).0, [], "an even cluster is left alone");
}

#[test]
fn leaders_are_evened_without_moving_data_where_that_is_enough() {
    let placed: Vec<&[NodeId]> = vec![&[1, 2], &[1, 2], &[2, 3], &[3, 1], &[1, 3], &[2, 3]];
    let (planned, after) = plan(&nodes(1..=3), &placed);
    for node in 1..=3 {
        assert_eq!(after.iter().filter(|nodes| nodes[0] == node).count(), 2, "{after:?}");
    }
    for one in planned {
        let set = |nodes: &[NodeId]| nodes.iter().copied().collect::<BTreeSet<_>>();
        assert_eq!(set(&one.from), set(&one.to));
    }
}

#[test]
fn a_dead_node_neither_gets_nor_loses_replicas_by_a_plan() {
    let mut four = nodes(1..=4);
    four.alive.remove(&4);
    let placed: Vec<&[NodeId]> = vec![&[1, 2], &[1, 2], &[4, 2], &[4, 2]];
    let (_, after) = plan(&four, &placed);
    let with_4 = |nodes: &[Vec<NodeId>]| nodes.iter().filter(|n| n.contains(&4)).count();
    assert_eq!(with_4(&after), 2);
    let count = |node: NodeId| after.iter().filter(|nodes| nodes.contains(&node)).count();
    assert_eq!((1..=3).map(count).collect::<Vec<_>>(), [2, 2, 2]);
}

#[test]
fn replicas_that_share_a_rack_are_parted() {
    let four = racks(&["x", "x", "y", "y"]);
    let placed: Vec<&[NodeId]> = vec![&[1, 2], &[3, 4], &[1, 3], &[2, 4]];
    for pair in plan(&four, &placed).1 {
        assert_ne!(four.racks[&pair[0]], four.racks[&pair[1]], "{pair:?}");
    }
}
