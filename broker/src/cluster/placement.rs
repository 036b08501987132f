//! Where replicas go: those of a new topic, those of a node that leaves, and what would make the cluster even.
//!
//! Owns: the choice, made by whoever proposes it: even in replicas and in leaders, different racks and live nodes first. Never:
//! moves anything; a choice is only data.

use std::collections::{BTreeMap, BTreeSet};

use super::NodeId;
use super::view::TopicView;

mod even;
#[cfg(test)]
mod tests;

pub(crate) use even::even_out;

/// The nodes that replicas may go to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Nodes {
    /// Their racks; empty where nobody says.
    pub(crate) racks: BTreeMap<NodeId, String>,
    /// Those that are heard from.
    pub(crate) alive: BTreeSet<NodeId>,
}

/// How loaded a node is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Load {
    leaders: usize,
    replicas: usize,
}

/// The loads of nodes.
#[derive(Clone, Debug)]
pub(crate) struct Loads(BTreeMap<NodeId, Load>);

impl Loads {
    /// What these topics put on the nodes, once the moves that are on their way are done.
    pub(crate) fn new<'a>(nodes: &Nodes, topics: impl Iterator<Item = &'a TopicView>) -> Self {
        let mut loads = Self(nodes.racks.keys().map(|id| (*id, Load::default())).collect());
        for partition in topics.flat_map(|topic| &topic.partitions) {
            for (place, node) in partition.destined().enumerate() {
                loads.count(node, place == 0);
            }
        }
        loads
    }

    fn count(&mut self, node: NodeId, leads: bool) {
        if let Some(load) = self.0.get_mut(&node) {
            load.replicas += 1;
            load.leaders += usize::from(leads);
        }
    }

    fn of(&self, node: NodeId) -> Load {
        self.0.get(&node).copied().unwrap_or_default()
    }

    fn change(&mut self, node: NodeId, replicas: isize, leaders: isize) {
        if let Some(load) = self.0.get_mut(&node) {
            load.replicas = load.replicas.saturating_add_signed(replicas);
            load.leaders = load.leaders.saturating_add_signed(leaders);
        }
    }
}

impl Nodes {
    /// How many of `others` stand in the same rack as a node. A node without one shares it with nobody.
    fn rack_mates(&self, node: NodeId, others: &[NodeId]) -> usize {
        let rack = self.racks.get(&node).filter(|rack| !rack.is_empty());
        let Some(rack) = rack else { return 0 };
        others.iter().filter(|other| **other != node && self.racks.get(other) == Some(rack)).count()
    }
}

/// Nodes for each partition; the first of each is its preferred leader. `nodes` must not be fewer than
/// `replication_factor`; dead ones are used only when the live ones are too few.
pub(crate) fn place(
    nodes: &Nodes,
    mut loads: Loads,
    partitions: u32,
    replication_factor: usize,
) -> Vec<Vec<NodeId>> {
    let mut placed: Vec<Vec<NodeId>> = (0..partitions)
        .map(|number| {
            let mut free: Vec<NodeId> = nodes.racks.keys().copied().collect();
            // Equal loads are taken in an order that starts at another node for each partition, so that followers too
            // are spread over pairs of nodes.
            let turn = usize::try_from(number).unwrap_or(0);
            let len = free.len().max(1);
            free.rotate_left(turn % len);
            let mut chosen: Vec<NodeId> = Vec::new();
            while chosen.len() < replication_factor {
                let best = (0..free.len()).min_by_key(|at| {
                    let (id, load) = (free[*at], loads.of(free[*at]));
                    let is_dead = !nodes.alive.contains(&id);
                    (is_dead, nodes.rack_mates(id, &chosen), load.replicas, load.leaders)
                });
                let Some(best) = best else { break };
                chosen.push(free.remove(best));
            }
            let leader = (0..chosen.len()).min_by_key(|at| {
                (!nodes.alive.contains(&chosen[*at]), loads.of(chosen[*at]).leaders)
            });
            if let Some(leader) = leader {
                chosen.swap(0, leader);
            }
            for (place, node) in chosen.iter().enumerate() {
                loads.count(*node, place == 0);
            }
            chosen
        })
        .collect();
    even_leaders(&mut placed, &mut loads, &nodes.alive);
    placed
}

/// Moves leaders among the replicas chosen, from nodes that lead more to nodes that lead less: one partition after the other
/// could not know what was to come. Ends because every move makes the loads more even.
fn even_leaders(placed: &mut [Vec<NodeId>], loads: &mut Loads, alive: &BTreeSet<NodeId>) {
    let mut has_moved = true;
    while has_moved {
        has_moved = false;
        for nodes in placed.iter_mut() {
            let mut candidates = (1..nodes.len()).filter(|at| alive.contains(&nodes[*at]));
            let leads = |id: NodeId| loads.of(id).leaders;
            let Some(at) = candidates.find(|at| leads(nodes[*at]) + 1 < leads(nodes[0])) else {
                continue;
            };
            nodes.swap(0, at);
            loads.change(nodes[0], 0, 1);
            loads.change(nodes[at], 0, -1);
            has_moved = true;
        }
    }
}

/// A partition's nodes without those that may hold no replicas: another in the place of each. `None` if there are too few.
pub(crate) fn without_strangers(
    nodes: &Nodes,
    loads: &mut Loads,
    holders: &[NodeId],
) -> Option<Vec<NodeId>> {
    let mut placed: Vec<NodeId> = holders.to_vec();
    for at in 0..placed.len() {
        let leaving = placed[at];
        if nodes.racks.contains_key(&leaving) {
            continue;
        }
        let others: Vec<NodeId> = placed.iter().copied().filter(|id| *id != leaving).collect();
        let free = nodes.racks.keys().filter(|id| !placed.contains(id) && nodes.alive.contains(id));
        let heir = free.copied().min_by_key(|id| {
            let load = loads.of(*id);
            (nodes.rack_mates(*id, &others), load.replicas, load.leaders)
        })?;
        loads.count(heir, at == 0);
        placed[at] = heir;
    }
    Some(placed)
}
