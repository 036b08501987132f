//! Which nodes are heard from: what many groups at once sleep by.
//!
//! Owns: counts of what arrived from each node, and a worker's view of how long ago that was. Never: a clock; a worker asks once a
//! tick, so that time in which it could not look is not held against anybody.

use std::collections::{BTreeMap, BTreeSet};

use parking_lot::Mutex;

/// How much arrived.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Heard {
    batches: u64,
    /// Of them with the word that all is well with the groups there.
    beats: u64,
    /// Changes when the node starts again.
    start: u64,
}

/// What arrived from each node.
#[derive(Debug, Default)]
pub(super) struct Pulses(Mutex<BTreeMap<u64, Heard>>);

impl Pulses {
    /// Something came from a node; with a beat, which is the same from its start to its end, or with none (0).
    pub(super) fn heard(&self, node: u64, beat: u64) {
        let mut nodes = self.0.lock();
        let heard = nodes.entry(node).or_default();
        heard.batches += 1;
        if beat != 0 {
            heard.beats += 1;
            heard.start = beat;
        }
    }
}

#[derive(Debug)]
struct Pulse {
    last: Heard,
    ticks_without_batch: u32,
    ticks_without_beat: u32,
}

/// Of a node that was never heard from.
const NEVER: Pulse = Pulse {
    last: Heard { batches: 0, beats: 0, start: 0 },
    ticks_without_batch: u32::MAX,
    ticks_without_beat: u32::MAX,
};

/// What changed about a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// No beat for an election timeout, or it has started again since.
    Silent(u64),
    /// A beat after such a time.
    Back(u64),
}

/// A worker's view of the other nodes.
#[derive(Debug, Default)]
pub(super) struct Watch {
    pulses: BTreeMap<u64, Pulse>,
    live: BTreeSet<u64>,
}

impl Watch {
    /// The nodes from which anything came within the last election timeout.
    pub(super) fn live(&self) -> &BTreeSet<u64> {
        &self.live
    }

    /// Looks once a tick.
    pub(super) fn tick(&mut self, nodes: &Pulses, election_ticks: u32) -> Vec<Change> {
        let mut changes = Vec::new();
        for (node, heard) in nodes.0.lock().iter() {
            let pulse = self.pulses.entry(*node).or_insert(NEVER);
            let count = |same: bool, ticks: u32| if same { ticks.saturating_add(1) } else { 0 };
            let was_silent = pulse.ticks_without_beat >= election_ticks;
            let has_restarted = !was_silent && pulse.last.start != heard.start;
            pulse.ticks_without_batch =
                count(pulse.last.batches == heard.batches, pulse.ticks_without_batch);
            pulse.ticks_without_beat =
                count(pulse.last.beats == heard.beats, pulse.ticks_without_beat);
            pulse.last = *heard;
            let is_silent = pulse.ticks_without_beat >= election_ticks;
            if has_restarted {
                changes.extend([Change::Silent(*node), Change::Back(*node)]);
            }
            match (was_silent, is_silent) {
                (false, true) => changes.push(Change::Silent(*node)),
                (true, false) => changes.push(Change::Back(*node)),
                _ => {}
            }
            if pulse.ticks_without_batch < election_ticks {
                self.live.insert(*node);
            } else {
                self.live.remove(node);
            }
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_silent_after_a_timeout_without_a_beat_and_back_with_the_next() {
        let (nodes, mut watch) = (Pulses::default(), Watch::default());
        assert_eq!(watch.tick(&nodes, 3), []);
        nodes.heard(2, 7);
        assert_eq!(watch.tick(&nodes, 3), [Change::Back(2)]);
        assert!(watch.live().contains(&2));
        // It lives, and one of its threads does not.
        for tick in 1..=5 {
            nodes.heard(2, 0);
            let expected = if tick == 3 { vec![Change::Silent(2)] } else { vec![] };
            assert_eq!(watch.tick(&nodes, 3), expected, "tick {tick}");
            assert!(watch.live().contains(&2));
        }
        for _ in 0..3 {
            assert_eq!(watch.tick(&nodes, 3), []);
        }
        assert!(!watch.live().contains(&2));
        nodes.heard(2, 7);
        assert_eq!(watch.tick(&nodes, 3), [Change::Back(2)]);
        assert!(watch.live().contains(&2));
        // So quick that nobody missed it.
        nodes.heard(2, 8);
        assert_eq!(watch.tick(&nodes, 3), [Change::Silent(2), Change::Back(2)]);
        nodes.heard(2, 8);
        assert_eq!(watch.tick(&nodes, 3), []);
    }
}
