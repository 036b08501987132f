//! The simulated network: delay, loss, doubles, and which machine hears which.
//!
//! Owns: messages on their way. Never: looks into them.

use std::collections::BTreeMap;

use highwater_proto::internal::{AppendedAck, Quiesce, RaftMessage};
use rand::Rng;
use rand::rngs::SmallRng;

use super::plan::{Faults, Tally};

/// A message on its way.
#[derive(Clone, Debug)]
pub(super) enum Packet {
    Raft {
        message: Box<RaftMessage>,
        from_node: u64,
        wants_appended: bool,
    },
    Appended(AppendedAck),
    Quiesce {
        heard: Quiesce,
        from_node: u64,
    },
    /// The sender lives.
    Beat {
        from_node: u64,
        boots: u64,
    },
}

/// A part of the network that failed.
#[derive(Clone, Debug)]
struct Cut {
    /// (from, to) that do not hear each other.
    links: Vec<(u64, u64)>,
    until: u64,
}

#[derive(Debug, Default)]
pub(super) struct Network {
    /// By arrival and then by number, so that the order is total.
    on_their_way: BTreeMap<(u64, u64), (u64, Packet)>,
    packets: u64,
    cuts: Vec<Cut>,
}

impl Network {
    /// Sends a packet; false if no link carries it now.
    pub(super) fn send(
        &mut self,
        (from, to): (u64, u64),
        packet: Packet,
        now: u64,
        faults: &Faults,
        random: &mut SmallRng,
        tally: &mut Tally,
    ) -> bool {
        if !self.is_open(from, to) {
            return false;
        }
        let chance =
            |random: &mut SmallRng, per_thousand: u32| random.random_range(0..1000) < per_thousand;
        if chance(random, faults.lose) {
            tally.count("messages lost");
            return true;
        }
        let is_double = chance(random, faults.duplicate);
        if is_double {
            tally.count("messages doubled");
        }
        for copy in 0..=u64::from(is_double) {
            let is_late = chance(random, faults.delay);
            if is_late {
                tally.count("messages delayed");
            }
            let delay = match is_late || copy > 0 {
                true => random.random_range(2..60),
                false => random.random_range(1..3),
            };
            self.packets += 1;
            self.on_their_way.insert((now + delay, self.packets), (to, packet.clone()));
        }
        true
    }

    /// The next packet that has arrived by now.
    pub(super) fn arrive(&mut self, now: u64) -> Option<(u64, Packet)> {
        let entry = self.on_their_way.first_entry()?;
        (entry.key().0 <= now).then(|| entry.remove())
    }

    pub(super) fn is_open(&self, from: u64, to: u64) -> bool {
        !self.cuts.iter().any(|cut| cut.links.contains(&(from, to)))
    }

    /// Ends the cuts whose time has come.
    pub(super) fn mend(&mut self, now: u64) {
        self.cuts.retain(|cut| cut.until > now);
    }

    pub(super) fn mend_all(&mut self) {
        self.cuts.clear();
    }

    /// Cuts some links until then, of this node first of all; says which kind of cut it is.
    pub(super) fn cut(
        &mut self,
        one: u64,
        mut others: Vec<u64>,
        until: u64,
        random: &mut SmallRng,
    ) -> (&'static str, Vec<(u64, u64)>) {
        // Fisher-Yates.
        for at in (1..others.len()).rev() {
            others.swap(at, random.random_range(0..=at));
        }
        let both = |a: u64, b: u64| [(a, b), (b, a)];
        let (kind, links): (_, Vec<(u64, u64)>) = match random.random_range(0..6) {
            0 | 1 => ("machines cut off", others.iter().flat_map(|b| both(one, *b)).collect()),
            2 => ("one-way cuts", others.iter().map(|b| (one, *b)).collect()),
            3 => ("one-way cuts", others.iter().map(|b| (*b, one)).collect()),
            // Everybody hears the first one, and the two sides do not hear each other.
            4 if others.len() >= 2 => {
                let (left, right) = others.split_at(others.len() / 2);
                let links = left.iter().flat_map(|a| right.iter().flat_map(|b| both(*a, *b)));
                ("bridges", links.collect())
            }
            _ => {
                others.insert(0, one);
                let (left, right) = others.split_at(others.len() / 2);
                let links = left.iter().flat_map(|a| right.iter().flat_map(|b| both(*a, *b)));
                ("halves", links.collect())
            }
        };
        self.cuts.push(Cut { links: links.clone(), until });
        (kind, links)
    }
}
