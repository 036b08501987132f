//! Membership changes in the simulation: who is to belong to the group, and the machines and leaders that make it so.
//!
//! Owns: what the metadata group would say of the partition, and the parts of the reconciler and the mover that follow it. Never: the
//! steps themselves; those are the ones that the broker takes.

use std::collections::{BTreeMap, BTreeSet};

use rand::Rng;
use rand::seq::SliceRandom;

use super::World;
use super::ledger;
use super::machine::REPLICA_BASE;
use super::plan::Kind;
use crate::error::BrokerError;
use crate::replica::core::{Answer, Proposal, ProposalBody};
use crate::replica::members::{Members, Step};

/// Replicas that one run may see: the oracle keeps a bit for each.
pub(super) const REPLICAS_MAX: u64 = 120;
/// Tokens of a leader's proof that it still leads, from here on.
const PROOF_TOKENS: u64 = 1 << 62;
/// Client of the ledger whose commands are such proofs.
const PROOF_CLIENT: u64 = 1_000;

/// Where the group's replicas are, and are to be: replica ids with their nodes.
#[derive(Debug, Default)]
pub(super) struct Placement {
    pub(super) replicas: BTreeMap<u64, u64>,
    /// Empty while nothing changes.
    pub(super) target: BTreeMap<u64, u64>,
    /// Of targets that were given up.
    leaving: BTreeMap<u64, u64>,
    /// Were members and are not any more.
    removed: BTreeSet<u64>,
    changes: u64,
    next_replica: u64,
    /// Proofs that were committed in the ledger.
    proofs: u64,
}

impl Placement {
    pub(super) fn founded(nodes: u64) -> Self {
        Self {
            replicas: (1..=nodes).map(|node| (node + REPLICA_BASE, node)).collect(),
            next_replica: REPLICA_BASE + nodes + 1,
            ..Self::default()
        }
    }

    /// The replica that a node is to hold.
    pub(super) fn assigned_to(&self, node: u64) -> Option<u64> {
        let all = self.replicas.iter().chain(&self.target).chain(&self.leaving);
        all.filter(|(_, on)| **on == node).map(|(id, _)| *id).max()
    }

    /// The nodes with replicas once the change that is on its way is done.
    fn destined(&self) -> Vec<u64> {
        let placed = if self.target.is_empty() { &self.replicas } else { &self.target };
        placed.values().copied().collect()
    }

    /// As the metadata group does it: replicas that are there are kept, but for those on `replace`.
    fn reassign(&mut self, nodes: &[u64], replace: Option<u64>) {
        let mut target = BTreeMap::new();
        for node in nodes {
            let kept = self.assigned_to(*node).filter(|_| replace != Some(*node));
            let id = kept.unwrap_or_else(|| {
                self.next_replica += 1;
                self.next_replica - 1
            });
            target.insert(id, *node);
        }
        self.changes += 1;
        let given_up = std::mem::replace(&mut self.target, target);
        self.leaving.extend(given_up);
        let Self { replicas, target, leaving, .. } = self;
        leaving.retain(|id, _| !replicas.contains_key(id) && !target.contains_key(id));
    }

    fn finish(&mut self) {
        let before = std::mem::replace(&mut self.replicas, std::mem::take(&mut self.target));
        let gone = before.into_iter().chain(std::mem::take(&mut self.leaving));
        let gone = gone.map(|(id, _)| id).filter(|id| !self.replicas.contains_key(id));
        self.removed.extend(gone);
    }
}

impl World {
    /// Somebody decides on other members.
    pub(super) fn reassign(&mut self) {
        if self.placement.next_replica + 8 > REPLICA_BASE + REPLICAS_MAX {
            return;
        }
        let mut nodes = self.placement.destined();
        let mut free: Vec<u64> =
            self.nodes().into_iter().filter(|node| !nodes.contains(node)).collect();
        nodes.shuffle(&mut self.random);
        free.shuffle(&mut self.random);
        let is_moving = !self.placement.target.is_empty();
        let mut lost = None;
        match self.random.random_range(0..8) {
            // Back to where it was.
            0 | 1 if is_moving => {
                nodes = self.placement.replicas.values().copied().collect();
                self.tally.count("targets given up");
            }
            0 if nodes.len() >= 3 => lost = nodes.first().copied(),
            1 if nodes.len() >= 3 => {
                // A replica is given up though its data is there.
                self.tally.count("replicas replaced in place");
                let one = nodes[0];
                return self.decide(&nodes, Some(one));
            }
            2 if nodes.len() < 5 => nodes.extend(free.first()),
            3 if nodes.len() > 1 => {
                nodes.pop();
            }
            4 => {
                // All at once, as far as there are others.
                for (node, other) in nodes.iter_mut().zip(free) {
                    *node = other;
                }
            }
            _ => {
                if let (Some(node), Some(other)) = (nodes.first_mut(), free.first()) {
                    *node = *other;
                }
            }
        }
        if let Some(node) = lost {
            let seed = self.random.random();
            let restart_at = self.now + self.random.random_range(20..800);
            self.machine(node).lose_disk(seed, restart_at);
            self.tally.count("disks lost and replicas replaced");
        }
        self.decide(&nodes, lost);
    }

    fn decide(&mut self, nodes: &[u64], replace: Option<u64>) {
        self.placement.reassign(nodes, replace);
        self.tally.count("membership changes begun");
        let target = format!("{:?}", self.placement.target);
        self.note(format_args!("target {target}, replaced on {replace:?}"));
    }

    /// Gives each machine the replica that belongs there, and takes away what was removed.
    pub(super) fn reconcile(&mut self) {
        for node in self.nodes() {
            let assigned = self.placement.assigned_to(node);
            let machine = &self.machines[&node];
            let held = machine.replica;
            let is_up = machine.restart_at <= self.now && machine.paused_until <= self.now;
            let is_removed = held.is_some_and(|held| self.placement.removed.contains(&held));
            // Nothing is deleted, or put aside, but for a replica that is newer or for one that was removed.
            let is_due = match (held, assigned) {
                (None, assigned) => assigned.is_some(),
                (Some(held), Some(assigned)) => held < assigned,
                (Some(_), None) => is_removed,
            };
            if !is_due || !is_up || !self.chance(100) {
                continue;
            }
            let now = self.now;
            let machine = self.machine(node);
            machine.stop(now);
            if held.is_some() && machine.clear().is_err() {
                // The disk is full; at the next look there may be room.
                continue;
            }
            machine.replica = assigned;
            machine.was_created = false;
            self.note(format_args!("{node} holds {assigned:?} in the place of {held:?}"));
            if assigned.is_some() {
                self.start(node);
            }
        }
    }

    /// Every replica that leads, or believes it does, takes the next step.
    pub(super) fn move_members(&mut self) {
        if self.placement.target.is_empty() {
            return;
        }
        for node in self.nodes() {
            let machine = &self.machines[&node];
            let running = machine.running.as_ref().filter(|_| machine.paused_until <= self.now);
            let Some(running) = running.filter(|running| running.core.is_leader()) else {
                continue;
            };
            let core = &running.core;
            let none = BTreeMap::new();
            let followers = core.followers();
            let target = &self.placement.target;
            let step = core.members().step_towards(target, &none, core.replica(), &followers);
            let log_start = core.visible().log_start_offset;
            match step {
                Step::Change(change) => {
                    let body = ProposalBody::Members(change);
                    self.machine(node).proposals.push(Proposal { token: 0, body });
                }
                Step::Transfer(to) => self.machine(node).transfer = Some(Some(to)),
                Step::Wait(_) => {}
                Step::Done => self.prove(node, log_start),
            }
        }
    }

    /// A leader that sees the target reached may be one that was deposed: only a commit proves that it is not.
    fn prove(&mut self, node: u64, log_start: u64) {
        let body = match self.setting.kind {
            Kind::Partition => ProposalBody::AdvanceLogStart(log_start),
            Kind::Machine => {
                ProposalBody::Command(ledger::command(PROOF_CLIENT, self.placement.proofs + 1, 0))
            }
        };
        let token = PROOF_TOKENS + self.placement.changes * 100 + node;
        self.machine(node).proposals.push(Proposal { token, body });
    }

    /// Whether an answer was one to a proof, and what follows from it.
    pub(super) fn proved(&mut self, token: u64, answer: &Result<Answer, BrokerError>) -> bool {
        if token < PROOF_TOKENS {
            return false;
        }
        let Ok(answer) = answer else { return true };
        if matches!(answer, Answer::Applied(_)) {
            self.placement.proofs = self.proofs_committed();
        }
        let of = token - PROOF_TOKENS;
        let (node, changes) = (of % 100, of / 100);
        let running = self.machines[&node].running.as_ref();
        let members = running.map(|running| running.core.members());
        let reached = members.is_some_and(|members| is_reached(&members, &self.placement.target));
        if reached && changes == self.placement.changes && !self.placement.target.is_empty() {
            self.placement.finish();
            self.tally.count("membership changes finished");
            let members = format!("{:?}", self.placement.replicas);
            self.note(format_args!("members are {members}"));
        }
        true
    }

    fn proofs_committed(&self) -> u64 {
        let ledgers = self.machines.values().filter_map(|machine| machine.running.as_ref());
        let last = ledgers.filter_map(|running| {
            running.ledger.0.lock().clients.get(&PROOF_CLIENT).map(|(sequence, _)| *sequence)
        });
        last.max().unwrap_or(0).max(self.placement.proofs)
    }

    /// Whether nothing is on its way any more, on any machine.
    pub(super) fn is_settled(&self) -> bool {
        self.placement.target.is_empty()
            && self
                .machines
                .values()
                .all(|machine| machine.replica == self.placement.assigned_to(machine.node))
    }
}

fn is_reached(members: &Members, target: &BTreeMap<u64, u64>) -> bool {
    members.outgoing.is_empty()
        && members.learners.is_empty()
        && members.voters.iter().eq(target.keys())
}
