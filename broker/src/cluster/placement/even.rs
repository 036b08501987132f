//! What would make the cluster even: replicas first, then leaders.
//!
//! Owns: the plan, the shortest that this way of looking finds. Never: moves anything.

use std::collections::BTreeMap;

use super::{Loads, Nodes};
use crate::cluster::NodeId;

/// A partition with the nodes it has and those it is to have, in order of preference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Planned<K> {
    /// Which partition.
    pub(crate) partition: K,
    /// Its nodes now.
    pub(crate) from: Vec<NodeId>,
    /// Its nodes by this plan.
    pub(crate) to: Vec<NodeId>,
}

/// Nodes for partitions, so that no node holds two replicas more than another, or prefers to lead two partitions more, where racks
/// allow. Answers the partitions that change. Nodes that are dead get and lose nothing: their replicas are repaired or the node is
/// removed, which is for an operator to say.
pub(crate) fn even_out<K: Clone>(
    nodes: &Nodes,
    mut loads: Loads,
    partitions: Vec<(K, Vec<NodeId>)>,
) -> Vec<Planned<K>> {
    let mut planned: Vec<Planned<K>> = partitions
        .into_iter()
        .map(|(partition, from)| Planned { partition, to: from.clone(), from })
        .collect();
    let alive: Vec<NodeId> =
        nodes.racks.keys().copied().filter(|id| nodes.alive.contains(id)).collect();
    spread_racks(nodes, &mut loads, &alive, &mut planned);
    // Every round takes a replica from a node that has at least two more than the one it goes to: the sum of squares shrinks.
    while move_one(nodes, &mut loads, &alive, &mut planned) {}
    even_leaders(&mut loads, &alive, &mut planned);
    planned.retain(|one| one.from != one.to);
    planned
}

/// Moves replicas that share a rack while another rack has none. Every change takes one pair of rack mates away.
fn spread_racks<K>(nodes: &Nodes, loads: &mut Loads, alive: &[NodeId], planned: &mut [Planned<K>]) {
    for one in planned {
        for at in 0..one.to.len() {
            let leaving = one.to[at];
            let others: Vec<NodeId> = one.to.iter().copied().filter(|id| *id != leaving).collect();
            let mates = nodes.rack_mates(leaving, &others);
            if mates == 0 || !alive.contains(&leaving) {
                continue;
            }
            let free = alive.iter().copied().filter(|id| !one.to.contains(id));
            let heir =
                free.min_by_key(|id| (nodes.rack_mates(*id, &others), loads.of(*id).replicas));
            let Some(heir) = heir.filter(|id| nodes.rack_mates(*id, &others) < mates) else {
                continue;
            };
            replace(loads, one, at, heir);
        }
    }
}

fn move_one<K>(
    nodes: &Nodes,
    loads: &mut Loads,
    alive: &[NodeId],
    planned: &mut [Planned<K>],
) -> bool {
    let mut by_load = alive.to_vec();
    by_load.sort_by_key(|id| loads.of(*id).replicas);
    for full in by_load.iter().rev() {
        for empty in &by_load {
            if loads.of(*empty).replicas + 1 >= loads.of(*full).replicas {
                break;
            }
            let fits = |one: &Planned<K>| {
                one.to.contains(full) && !one.to.contains(empty) && {
                    let others: Vec<NodeId> =
                        one.to.iter().copied().filter(|id| id != full).collect();
                    nodes.rack_mates(*empty, &others) <= nodes.rack_mates(*full, &others)
                }
            };
            // One that moves anyway is moved rather than another.
            let moves_anyway = |one: &Planned<K>| one.from != one.to && fits(one);
            let found = planned.iter().position(moves_anyway);
            let Some(one) = found.or_else(|| planned.iter().position(fits)) else { continue };
            if let Some(at) = planned[one].to.iter().position(|id| id == full) {
                replace(loads, &mut planned[one], at, *empty);
                return true;
            }
        }
    }
    false
}

fn replace<K>(loads: &mut Loads, one: &mut Planned<K>, at: usize, heir: NodeId) {
    let leads = isize::from(at == 0);
    loads.change(one.to[at], -1, -leads);
    loads.change(heir, 1, leads);
    one.to[at] = heir;
}

/// Hands preferred leaderships from nodes with more to nodes with fewer, over several partitions where no single one does it.
fn even_leaders<K>(loads: &mut Loads, alive: &[NodeId], planned: &mut [Planned<K>]) {
    while let Some(path) = path_to_fewer(loads, alive, planned) {
        for (at, heir) in path {
            let one = &mut planned[at];
            let before = one.to[0];
            if let Some(place) = one.to.iter().position(|id| *id == heir) {
                one.to.swap(0, place);
                loads.change(before, 0, -1);
                loads.change(heir, 0, 1);
            }
        }
    }
}

/// A chain of partitions whose leaderships, each handed on by one, take one from a node to another that has at least two fewer.
fn path_to_fewer<K>(
    loads: &Loads,
    alive: &[NodeId],
    planned: &[Planned<K>],
) -> Option<Vec<(usize, NodeId)>> {
    let mut by_leaders = alive.to_vec();
    by_leaders.sort_by_key(|id| std::cmp::Reverse(loads.of(*id).leaders));
    for start in by_leaders {
        // How each node was reached: the partition, and the node that leads it.
        let mut reached: BTreeMap<NodeId, (usize, NodeId)> = BTreeMap::new();
        let mut frontier = vec![start];
        while let Some(node) = frontier.pop() {
            if loads.of(node).leaders + 1 < loads.of(start).leaders {
                let mut path = Vec::new();
                let mut at = node;
                while at != start {
                    let (partition, before) = *reached.get(&at)?;
                    path.push((partition, at));
                    at = before;
                }
                return Some(path);
            }
            for (at, one) in planned.iter().enumerate().filter(|(_, one)| one.to[0] == node) {
                for next in one.to.iter().skip(1) {
                    if *next != start && alive.contains(next) && !reached.contains_key(next) {
                        reached.insert(*next, (at, node));
                        frontier.push(*next);
                    }
                }
            }
        }
    }
    None
}
