//! What a seed decides before its run begins: the group's kind and size, the network's quality, which accidents happen how often.
//!
//! Owns: the names of everything that is counted. Never: makes any of it happen.

use std::collections::BTreeMap;

use rand::Rng;
use rand::rngs::SmallRng;

/// What the replicas replicate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Record batches.
    Partition,
    /// Commands for a state machine, as in the metadata group.
    Machine,
}

/// A known bug, planted to show that the oracle finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plant {
    /// A sync is reported as done and was not.
    SkipSync,
    /// The publisher is told "synced by a majority" as soon as its leader has appended.
    AckAtAppend,
    /// Producers' states survive the truncation of what they speak of, so that an offset is given out twice.
    ReuseOffset,
    /// A replica forgets whom it voted for.
    VoteTwice,
    /// A sleeping replica takes no notice of a leader's node that is gone.
    SleepOn,
    /// Where the partition ends is told by whoever believes to lead it.
    AnswerUnproved,
    /// Consumers are given what a replica has appended, committed or not.
    ReadAhead,
}

/// What goes wrong in a run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Faults {
    /// Each in parts of a thousand messages.
    pub(super) lose: u32,
    pub(super) duplicate: u32,
    pub(super) delay: u32,
    /// Mean time between accidents, in slices; `None` for none at all.
    pub(super) accident_slices: Option<u64>,
    /// The only accident, if not all of them happen.
    pub(super) only: Option<Accident>,
    pub(super) plant: Option<Plant>,
}

impl Faults {
    pub(super) const NONE: Self =
        Self { lose: 0, duplicate: 0, delay: 0, accident_slices: None, only: None, plant: None };

    /// All kinds of faults; how bad the network is and how often there are accidents differs from seed to seed.
    pub(super) fn all(random: &mut SmallRng) -> Self {
        let pick = |random: &mut SmallRng, from: [u32; 3]| from[random.random_range(0..from.len())];
        Self {
            lose: pick(random, [2, 10, 40]),
            duplicate: pick(random, [2, 10, 30]),
            delay: pick(random, [5, 20, 80]),
            accident_slices: Some(u64::from(pick(random, [200, 350, 600]))),
            only: None,
            plant: None,
        }
    }
}

/// The accidents, each with its weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Accident {
    /// The power of one machine fails: what was not synced is lost, or part of it.
    Crash,
    /// The power of all machines fails.
    CrashAll,
    /// The process of one machine is killed; what it wrote stays.
    Kill,
    /// A part of the network fails.
    Cut,
    /// A process stands still and goes on later.
    Pause,
    SlowDisk,
    FullDisk,
    ClockJump,
    Transfer,
    Trim,
    /// Nobody publishes for a while, and then the leader stands still for long.
    Quiet,
    /// Other members, or a replica in the place of one whose disk is lost.
    Members,
}

const WEIGHTS: [(Accident, u32); 12] = [
    (Accident::Crash, 20),
    (Accident::CrashAll, 4),
    (Accident::Kill, 12),
    (Accident::Cut, 24),
    (Accident::Pause, 8),
    (Accident::SlowDisk, 8),
    (Accident::FullDisk, 6),
    (Accident::ClockJump, 5),
    (Accident::Transfer, 12),
    (Accident::Trim, 12),
    (Accident::Quiet, 5),
    (Accident::Members, 24),
];

impl Accident {
    pub(super) fn draw(random: &mut SmallRng) -> Self {
        let sum: u32 = WEIGHTS.iter().map(|(_, weight)| weight).sum();
        let mut at = random.random_range(0..sum);
        for (accident, weight) in WEIGHTS {
            if at < weight {
                return accident;
            }
            at -= weight;
        }
        Self::Crash
    }
}

/// What happened in a run, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally(BTreeMap<&'static str, u64>);

/// What must not be rare, with how often it must happen in an hour of simulated time.
pub(super) const EXPECTED: &[(&str, u64)] = &[
    ("acknowledged: synced by a majority", 4_000),
    ("acknowledged: appended by a majority", 1_000),
    ("acknowledged: appended by the leader", 1_000),
    ("commands applied", 1_000),
    ("sent again", 5_000),
    ("duplicates recognised", 2_000),
    ("reads by consumers", 8_000),
    ("ends asked for", 10_000),
    ("ends told", 8_000),
    ("ends not told: not the leader, or lost the leadership", 500),
    ("ends asked of sleeping leaders", 10),
    ("elections begun", 200),
    ("leaders elected", 150),
    ("leaderships transferred", 30),
    ("truncations of a suffix", 15),
    ("log starts moved", 100),
    ("snapshots installed", 25),
    ("leaders asleep", 50),
    ("followers asleep", 100),
    ("woken by a silent node", 5),
    ("membership changes begun", 100),
    ("membership changes finished", 70),
    ("joint configurations", 70),
    ("targets given up", 5),
    ("replicas replaced in place", 5),
    ("disks lost and replicas replaced", 6),
    ("power losses", 100),
    ("power losses with lost pages", 100),
    ("power losses of all machines", 15),
    ("processes killed", 40),
    ("machines cut off", 30),
    ("one-way cuts", 30),
    ("bridges", 10),
    ("halves", 20),
    ("pauses", 30),
    ("leaders that stood still after a quiet time", 10),
    ("slow disks", 30),
    ("full disks", 25),
    ("refused by a full disk", 100),
    ("clocks that jumped", 15),
    ("messages lost", 500),
    ("messages doubled", 1_000),
    ("messages delayed", 1_000),
];

impl Tally {
    pub(super) fn count(&mut self, what: &'static str) {
        self.add(what, 1);
    }

    pub(super) fn add(&mut self, what: &'static str, times: u64) {
        *self.0.entry(what).or_insert(0) += times;
    }

    pub(super) fn get(&self, what: &str) -> u64 {
        self.0.get(what).copied().unwrap_or(0)
    }

    pub(super) fn add_all(&mut self, other: &Self) {
        for (what, times) in &other.0 {
            self.add(what, *times);
        }
    }

    /// What of [`EXPECTED`] happened less than half as often as expected in so many simulated seconds.
    pub(super) fn rare(&self, seconds: u64) -> Vec<String> {
        EXPECTED
            .iter()
            .filter(|(what, in_an_hour)| self.get(what) * 7_200 < in_an_hour * seconds)
            .map(|(what, in_an_hour)| {
                let times = self.get(what);
                format!("{what}: {times} in {seconds} s, want {in_an_hour} an hour")
            })
            .collect()
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|(what, times)| writeln!(f, "{what:<44} {times:>12}"))
    }
}
