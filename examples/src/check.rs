//! The checker: judges a history, whoever wrote it.
//!
//! Owns: what lost, duplicated, out of order and altered mean. Never: talks to a broker.
//!
//! The rules, for one producer that publishes its events in the order of their sequence numbers, and for every reader:
//! each acknowledged event is read exactly once, at the partition and offset that were acknowledged, with the bytes that
//! were published; an event that was not acknowledged is read at most once; within a partition events are read in the
//! order in which they were published, and the events of a key are all in one partition; what two readers saw at the same
//! place is the same.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::{self, Display, Write};

use crate::history::Happening;

/// Problems that are described; more are only counted.
const DESCRIBED_MAX: usize = 20;

/// What the checker found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Events given to the producer.
    pub published: u64,
    /// Events acknowledged.
    pub acknowledged: u64,
    /// Acknowledgements that said the event had been written by an earlier try.
    pub deduplicated: u64,
    /// Events that the producer gave up on, or that were never answered.
    pub unacknowledged: u64,
    /// Longest time between two acknowledgements of a partition, in milliseconds: how long the loss of a leader was felt.
    pub pause_ms_longest: u64,
    /// Longest time from publication to acknowledgement, in milliseconds.
    pub acknowledgement_ms_slowest: u64,
    /// From the first publication to the last acknowledgement, in milliseconds.
    pub duration_ms: u64,
    /// By name, in the order of the alphabet.
    pub readers: BTreeMap<String, Reading>,
    /// The first problems, in words.
    pub problems: Vec<String>,
}

/// What one reader saw.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// Events read.
    pub read: u64,
    /// Acknowledged events that it did not see.
    pub lost: u64,
    /// Events seen again.
    pub duplicated: u64,
    /// Events seen after a later one of their partition, or in another partition than earlier ones of their key.
    pub out_of_order: u64,
    /// Events seen elsewhere than acknowledged, with other bytes than published, never published, or not as another reader
    /// saw them.
    pub altered: u64,
}

impl Verdict {
    /// Whether everything that was published was acknowledged, and read by everyone exactly once and in order.
    pub fn is_clean(&self) -> bool {
        let clean = |reading: &Reading| {
            [reading.lost, reading.duplicated, reading.out_of_order, reading.altered] == [0; 4]
        };
        self.published > 0
            && self.unacknowledged == 0
            && !self.readers.is_empty()
            && self.readers.values().all(clean)
    }

    /// Acknowledged events a second.
    pub fn throughput(&self) -> f64 {
        self.acknowledged as f64 * 1000.0 / self.duration_ms.max(1) as f64
    }
}

/// A published event.
#[derive(Debug)]
struct Publication {
    key: String,
    hash: u32,
    at_ms: u64,
    place: Option<(u32, i64)>,
}

/// One reader's state while its lines are judged.
#[derive(Debug, Default)]
struct Reader {
    found: Reading,
    seen: HashSet<u64>,
    /// Highest sequence number seen, by partition.
    latest: HashMap<u32, u64>,
    partition_of_key: HashMap<String, u32>,
}

/// Judges a history.
#[derive(Debug, Default)]
pub struct Checker {
    verdict: Verdict,
    events: HashMap<u64, Publication>,
    readers: BTreeMap<String, Reader>,
    /// What the first reader saw at a place.
    places: HashMap<(u32, i64), (u64, u32)>,
    /// Reads, judged at the end: an event may be read before its acknowledgement is noted.
    reads: Vec<Happening>,
    first_ms: Option<u64>,
    last_ack_ms: Option<u64>,
    last_ack_ms_of_partition: HashMap<u32, u64>,
}

impl Checker {
    /// Takes in one line. Lines of one reader come in the order in which it read.
    pub fn add(&mut self, happening: Happening) {
        match happening {
            Happening::Published { sequence, key, hash, at_ms } => {
                self.verdict.published += 1;
                self.first_ms.get_or_insert(at_ms);
                let publication = Publication { key, hash, at_ms, place: None };
                if self.events.insert(sequence, publication).is_some() {
                    self.problem(format!("event {sequence} was published twice"));
                }
            }
            Happening::Acknowledged { sequence, partition, offset, duplicate, at_ms } => {
                self.verdict.acknowledged += 1;
                self.verdict.deduplicated += u64::from(duplicate);
                let last = self.last_ack_ms_of_partition.insert(partition, at_ms).unwrap_or(at_ms);
                let pause_ms = at_ms.saturating_sub(last);
                self.verdict.pause_ms_longest = self.verdict.pause_ms_longest.max(pause_ms);
                self.last_ack_ms = Some(at_ms);
                match self.events.get_mut(&sequence) {
                    Some(event) => {
                        event.place = Some((partition, offset));
                        let slowest = &mut self.verdict.acknowledgement_ms_slowest;
                        *slowest = at_ms.saturating_sub(event.at_ms).max(*slowest);
                    }
                    None => {
                        self.problem(format!("event {sequence} was acknowledged, not published"))
                    }
                }
            }
            Happening::Refused { sequence, may_have_been_written, .. } => {
                let maybe = if may_have_been_written { "may have been" } else { "was not" };
                self.problem(format!("event {sequence} was not acknowledged and {maybe} written"));
            }
            Happening::Read { .. } => self.reads.push(happening),
        }
    }

    /// The verdict over all lines taken in.
    pub fn finish(mut self) -> Verdict {
        for happening in std::mem::take(&mut self.reads) {
            if let Happening::Read { reader, partition, offset, sequence, key, hash, .. } =
                happening
            {
                self.judge_read(&reader, (partition, offset), sequence, key, hash);
            }
        }
        self.count_lost();
        self.verdict.unacknowledged =
            self.events.values().filter(|event| event.place.is_none()).count() as u64;
        self.verdict.duration_ms =
            self.last_ack_ms.unwrap_or(0).saturating_sub(self.first_ms.unwrap_or(0));
        self.verdict.readers =
            self.readers.into_iter().map(|(name, reader)| (name, reader.found)).collect();
        self.verdict
    }

    fn judge_read(&mut self, name: &str, place: (u32, i64), sequence: u64, key: String, hash: u32) {
        let mut wrong = Vec::new();
        let reader = self.readers.entry(name.to_owned()).or_default();
        reader.found.read += 1;
        if !reader.seen.insert(sequence) {
            reader.found.duplicated += 1;
            wrong.push("was read twice".to_owned());
        } else {
            let latest = reader.latest.entry(place.0).or_insert(sequence);
            if sequence < *latest {
                reader.found.out_of_order += 1;
                wrong.push(format!("was read after event {latest}"));
            }
            *latest = sequence.max(*latest);
        }
        let home = *reader.partition_of_key.entry(key.clone()).or_insert(place.0);
        if home != place.0 {
            reader.found.out_of_order += 1;
            wrong.push(format!("has key {key}, whose earlier events are in partition {home}"));
        }
        let before = wrong.len();
        match self.events.get(&sequence) {
            None => wrong.push("was never published".to_owned()),
            Some(event) if event.hash != hash || event.key != key => {
                wrong.push("was read with other bytes than published".to_owned());
            }
            Some(Publication { place: Some(acknowledged), .. }) if *acknowledged != place => {
                wrong.push(format!("was acknowledged at {}", show(*acknowledged)));
            }
            Some(_) => {}
        }
        let (first, first_hash) = *self.places.entry(place).or_insert((sequence, hash));
        if (first, first_hash) != (sequence, hash) {
            wrong.push(format!("was event {first} when it was read first"));
        }
        reader.found.altered += u64::from(wrong.len() > before);
        for why in wrong {
            self.problem(format!("{name}: event {sequence} at {} {why}", show(place)));
        }
    }

    fn count_lost(&mut self) {
        let mut lost = Vec::new();
        for (name, reader) in &mut self.readers {
            for (sequence, event) in &self.events {
                if let Some(place) = event.place
                    && !reader.seen.contains(sequence)
                {
                    reader.found.lost += 1;
                    lost.push((
                        *sequence,
                        format!("{name}: event {sequence} at {} is lost", show(place)),
                    ));
                }
            }
        }
        lost.sort_unstable();
        for (_, problem) in lost {
            self.problem(problem);
        }
    }

    fn problem(&mut self, problem: String) {
        if self.verdict.problems.len() < DESCRIBED_MAX {
            self.verdict.problems.push(problem);
        }
    }
}

fn show((partition, offset): (u32, i64)) -> String {
    format!("{partition}:{offset}")
}

impl Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        let seconds = |ms: u64| format!("{}.{:03} s", ms / 1000, ms % 1000);
        for (what, value) in [
            ("published", self.published.to_string()),
            ("acknowledged", self.acknowledged.to_string()),
            ("  written by an earlier try", self.deduplicated.to_string()),
            ("not acknowledged", self.unacknowledged.to_string()),
            ("longest pause", seconds(self.pause_ms_longest)),
            ("slowest acknowledgement", seconds(self.acknowledgement_ms_slowest)),
            ("duration", seconds(self.duration_ms)),
            ("throughput", format!("{:.0} events/s", self.throughput())),
        ] {
            writeln!(text, "{what:<28}{value:>16}")?;
        }
        for (name, reading) in &self.readers {
            writeln!(text, "reader '{name}'")?;
            for (what, value) in [
                ("  read", reading.read),
                ("  lost", reading.lost),
                ("  duplicated", reading.duplicated),
                ("  out of order", reading.out_of_order),
                ("  altered", reading.altered),
            ] {
                writeln!(text, "{what:<28}{value:>16}")?;
            }
        }
        for problem in &self.problems {
            writeln!(text, "problem: {problem}")?;
        }
        f.write_str(&text)
    }
}

#[cfg(test)]
mod tests;
