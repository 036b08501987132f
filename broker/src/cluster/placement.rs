//! Where the replicas of a new topic go.
//!
//! Owns: the choice, made by whoever proposes the topic: even in replicas and in leaders, live nodes first. Never: moves
//! what is placed already.

use std::collections::{BTreeMap, BTreeSet};

use super::NodeId;
use super::view::TopicView;

/// How loaded a node is: (leaders, replicas).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Load {
    leaders: usize,
    replicas: usize,
}

/// Nodes for each partition; the first of each is its preferred leader. `nodes` must not be fewer than
/// `replication_factor`; dead ones are used only when the live ones are too few.
pub(crate) fn place<'a>(
    nodes: &BTreeSet<NodeId>,
    alive: &BTreeSet<NodeId>,
    topics: impl Iterator<Item = &'a TopicView>,
    partitions: u32,
    replication_factor: usize,
) -> Vec<Vec<NodeId>> {
    let mut loads: BTreeMap<NodeId, Load> = nodes.iter().map(|id| (*id, Load::default())).collect();
    for partition in topics.flat_map(|topic| &topic.partitions) {
        for (place, (_, node)) in partition.replicas.iter().enumerate() {
            count(&mut loads, *node, place == 0);
        }
    }
    let mut placed: Vec<Vec<NodeId>> = (0..partitions)
        .map(|number| {
            let mut by_load: Vec<NodeId> = nodes.iter().copied().collect();
            // Equal loads are taken in an order that starts at another node for each partition, so that followers too
            // are spread over pairs of nodes.
            let turn = usize::try_from(number).unwrap_or(0);
            let len = by_load.len().max(1);
            by_load.rotate_left(turn % len);
            by_load.sort_by_key(|id| (!alive.contains(id), loads[id].replicas, loads[id].leaders));
            let mut chosen: Vec<NodeId> = by_load.into_iter().take(replication_factor).collect();
            let leader = (0..chosen.len()).min_by_key(|at| {
                let id = &chosen[*at];
                (!alive.contains(id), loads[id].leaders)
            });
            if let Some(leader) = leader {
                chosen.swap(0, leader);
            }
            for (place, node) in chosen.iter().enumerate() {
                count(&mut loads, *node, place == 0);
            }
            chosen
        })
        .collect();
    even_leaders(&mut placed, &mut loads, alive);
    placed
}

/// Moves leaders among the replicas chosen, from nodes that lead more to nodes that lead less: one partition after the other
/// could not know what was to come. Ends because every move makes the loads more even.
fn even_leaders(
    placed: &mut [Vec<NodeId>],
    loads: &mut BTreeMap<NodeId, Load>,
    alive: &BTreeSet<NodeId>,
) {
    let mut has_moved = true;
    while has_moved {
        has_moved = false;
        for nodes in placed.iter_mut() {
            let mut candidates = (1..nodes.len()).filter(|at| alive.contains(&nodes[*at]));
            let leads = |id: &NodeId| loads[id].leaders;
            let Some(at) = candidates.find(|at| leads(&nodes[*at]) + 1 < leads(&nodes[0])) else {
                continue;
            };
            nodes.swap(0, at);
            for (id, change) in [(nodes[0], 1), (nodes[at], -1)] {
                if let Some(load) = loads.get_mut(&id) {
                    load.leaders = load.leaders.saturating_add_signed(change);
                }
            }
            has_moved = true;
        }
    }
}

fn count(loads: &mut BTreeMap<NodeId, Load>, node: NodeId, leads: bool) {
    if let Some(load) = loads.get_mut(&node) {
        load.replicas += 1;
        load.leaders += usize::from(leads);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(range: std::ops::RangeInclusive<u64>) -> BTreeSet<NodeId> {
        range.collect()
    }

    #[test]
    fn leaders_and_replicas_are_spread_evenly() {
        let placed = place(&ids(1..=5), &ids(1..=5), std::iter::empty(), 10, 3);
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
        for (nodes, partitions, factor) in [(3, 3, 2), (4, 8, 2)] {
            let placed =
                place(&ids(1..=nodes), &ids(1..=nodes), std::iter::empty(), partitions, factor);
            for node in 1..=nodes {
                let leads = placed.iter().filter(|nodes| nodes[0] == node).count() as u64;
                assert_eq!(
                    leads,
                    u64::from(partitions) / nodes,
                    "node {node} of {nodes}: {placed:?}"
                );
            }
        }
    }

    #[test]
    fn a_dead_node_is_used_only_when_the_live_ones_are_too_few() {
        let placed = place(&ids(1..=4), &ids(1..=3), std::iter::empty(), 6, 3);
        assert!(placed.iter().all(|nodes| !nodes.contains(&4)));
        let placed = place(&ids(1..=3), &ids(1..=2), std::iter::empty(), 6, 3);
        assert!(placed.iter().all(|nodes| nodes.contains(&3) && nodes[0] != 3));
    }

    #[test]
    fn a_second_topic_evens_out_the_first() {
        let partition = |nodes: &[u64]| super::super::PartitionView {
            group: 1,
            replicas: nodes.iter().map(|node| (*node, *node)).collect(),
            ..Default::default()
        };
        let first = TopicView {
            name: "a".into(),
            id: "a".into(),
            partitions: vec![partition(&[1, 2])],
            config: BTreeMap::new(),
        };
        let placed = place(&ids(1..=3), &ids(1..=3), std::iter::once(&first), 1, 1);
        assert_eq!(placed, [[3]]);
    }
}
