//! The results: every measurement as JSON, and their medians with spread and ratios as Markdown tables.
//!
//! Owns: medians, ratios, units. Never: measures.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Side, Workload};
use crate::latency::Percentiles;
use crate::processes::Sample;
use crate::report::{Machine, Measured};

/// What the other brokers' ratios are of.
const OURS: [&str; 2] = ["highwater-1 quorum-fsync", "highwater-3 quorum-fsync"];

/// One measurement.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Slot {
    workload: String,
    side: String,
    durability: String,
    /// Zero is the cold one.
    round: u32,
    /// How long it was to take.
    seconds: u64,
    /// What to know about it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    note: String,
    records_per_second: f64,
    megabytes_per_second: f64,
    ack_latency_us: Option<Percentiles>,
    end_to_end_latency_us: Option<Percentiles>,
    server_cpu_seconds_per_million_records: Option<f64>,
    /// Of all its processes together, after the measurement; pages of mapped files left out.
    server_memory_bytes: Option<u64>,
}

impl Slot {
    pub(super) fn new(
        side: &dyn Side,
        workload: &Workload,
        (round, asked_seconds): (u32, u64),
        measured: &Measured,
        before: &[Sample],
        after: &[Sample],
    ) -> Self {
        let cpu = |samples: &[Sample]| samples.iter().map(|it| it.cpu_seconds).sum::<f64>();
        let seconds = measured.seconds.max(f64::MIN_POSITIVE);
        // A server that is not seen in full is not counted; and what a turn that reads spends also goes into publishing.
        let seen = !after.is_empty() && before.len() == after.len();
        let counted = seen && !workload.read;
        let per_million = (cpu(after) - cpu(before)) * 1e6 / measured.records.max(1) as f64;
        Self {
            workload: workload.name.to_owned(),
            side: side.name().to_owned(),
            durability: side.durability().to_owned(),
            round,
            seconds: asked_seconds,
            note: String::new(),
            records_per_second: measured.records as f64 / seconds,
            megabytes_per_second: measured.bytes as f64 / 1e6 / seconds,
            // As fast as it goes, latency is only the length of the queue.
            ack_latency_us: workload.rate.and(measured.latency.clone()),
            end_to_end_latency_us: measured.end_to_end.clone(),
            server_cpu_seconds_per_million_records: counted.then_some(per_million),
            server_memory_bytes: seen
                .then(|| after.iter().map(|sample| sample.rss_anonymous_bytes).sum()),
        }
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate = self.records_per_second;
        write!(f, "{rate:>10.0} records/s {:>7.1} MB/s", self.megabytes_per_second)?;
        if let Some(latency) = &self.ack_latency_us {
            write!(f, "  ack p50 {} p99 {} us", latency.p50, latency.p99)?;
        }
        Ok(())
    }
}

/// All measurements: of a run, and of earlier ones those workloads that it did not have.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Table {
    version: String,
    optimized: bool,
    machine: Machine,
    slots: Vec<Slot>,
}

/// The middle of some figures, with the least and the greatest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) least: f64,
    pub(super) greatest: f64,
}

/// A figure of a side, to be drawn as a bar.
pub(super) struct Bar {
    pub(super) side: String,
    /// What was acknowledged was synced.
    pub(super) synced: bool,
    pub(super) spread: Spread,
}

/// Latencies of a side, to be drawn as a curve: how much of everything was faster, and the microseconds.
pub(super) struct Curve {
    pub(super) side: String,
    pub(super) synced: bool,
    pub(super) points: Vec<(f64, f64)>,
}

impl Spread {
    fn of(figures: impl Iterator<Item = f64>) -> Option<Self> {
        let mut figures: Vec<f64> = figures.collect();
        figures.sort_by(f64::total_cmp);
        let (least, greatest) = (*figures.first()?, *figures.last()?);
        let half = figures.len() / 2;
        let median = match figures.len() % 2 {
            0 => f64::midpoint(figures[half - 1], figures[half]),
            _ => figures[half],
        };
        Some(Self { median, least, greatest })
    }

    /// With the spread, in `digits` behind the point.
    fn text(found: Option<Self>, digits: usize) -> String {
        found.map_or_else(String::new, |Self { median, least, greatest }| {
            format!("{median:.digits$} ({least:.digits$} to {greatest:.digits$})")
        })
    }
}

impl Table {
    pub(super) fn new() -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            optimized: !cfg!(debug_assertions),
            machine: Machine::look(),
            slots: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, slot: Slot, note: &str) {
        self.slots.push(Slot { note: note.to_owned(), ..slot });
    }

    /// Takes over what an earlier run has measured of workloads other than these.
    pub(super) fn keep(&mut self, earlier: Self, but: &[&Workload]) {
        let measured_anew = |slot: &Slot| but.iter().any(|workload| workload.name == slot.workload);
        self.slots.extend(earlier.slots.into_iter().filter(|slot| !measured_anew(slot)));
    }

    /// The machine, and what to know about the build.
    pub(super) fn conditions(&self, workload: &str) -> String {
        let of_it = || self.slots.iter().filter(|slot| slot.workload == workload);
        let rounds = of_it().map(|slot| slot.round).max().unwrap_or(0);
        let seconds = of_it().map(|slot| slot.seconds).max().unwrap_or(0);
        let note = of_it().map(|slot| slot.note.as_str()).find(|note| !note.is_empty());
        let note = note.map_or_else(String::new, |note| format!(" {note}."));
        let slow = if self.optimized { "" } else { " NOT an optimised build." };
        format!(
            "Medians of {rounds} rounds of {seconds} s, sides taking turns. {}.{note}{slow}",
            self.machine
        )
    }

    /// The workloads in the order in which they came.
    pub(super) fn workloads(&self) -> Vec<String> {
        let mut workloads: Vec<String> = Vec::new();
        for slot in &self.slots {
            if !workloads.contains(&slot.workload) {
                workloads.push(slot.workload.clone());
            }
        }
        workloads
    }

    pub(super) fn is_latency(&self, workload: &str) -> bool {
        let timed = |slot: &Slot| slot.workload == workload && slot.ack_latency_us.is_some();
        self.slots.iter().any(timed)
    }

    /// Bars of a figure for the sides that have it.
    fn bars(&self, workload: &str, figure: fn(&Slot) -> Option<f64>) -> Vec<Bar> {
        let bar = |slot: &Slot| {
            let spread = self.spread(workload, &slot.side, figure)?;
            Some(Bar { side: slot.side.clone(), synced: is_synced(slot), spread })
        };
        self.sides(workload).into_iter().filter_map(bar).collect()
    }

    pub(super) fn rates(&self, workload: &str) -> Vec<Bar> {
        self.bars(workload, |slot| Some(slot.megabytes_per_second))
    }

    pub(super) fn cpu(&self, workload: &str) -> Vec<Bar> {
        self.bars(workload, |slot| slot.server_cpu_seconds_per_million_records)
    }

    pub(super) fn ack_curves(&self, workload: &str) -> Vec<Curve> {
        self.curves(workload, |slot| slot.ack_latency_us.as_ref())
    }

    pub(super) fn read_curves(&self, workload: &str) -> Vec<Curve> {
        self.curves(workload, |slot| slot.end_to_end_latency_us.as_ref())
    }

    /// Of every percentile the median over the rounds.
    fn curves(&self, workload: &str, latency: fn(&Slot) -> Option<&Percentiles>) -> Vec<Curve> {
        let curve = |slot: &Slot| {
            let rounds: Vec<&Percentiles> =
                self.counted(workload, &slot.side).filter_map(latency).collect();
            let places = rounds.iter().map(|round| round.curve.len()).min().unwrap_or(0);
            let point = |place: usize| {
                let of_all = rounds.iter().map(|round| round.curve[place].1 as f64);
                Some((rounds.first()?.curve[place].0, Spread::of(of_all)?.median))
            };
            let points = (0..places).filter_map(point).collect();
            Curve { side: slot.side.clone(), synced: is_synced(slot), points }
        };
        self.sides(workload).into_iter().map(curve).collect()
    }

    /// Sides of a workload in the order in which they came.
    fn sides(&self, workload: &str) -> Vec<&Slot> {
        let mut sides: Vec<&Slot> = Vec::new();
        for slot in self.slots.iter().filter(|slot| slot.workload == workload) {
            if !sides.iter().any(|seen| seen.side == slot.side) {
                sides.push(slot);
            }
        }
        sides
    }

    /// The rounds of a side that count.
    fn counted(&self, workload: &str, side: &str) -> impl Iterator<Item = &Slot> {
        let counts =
            move |slot: &&Slot| slot.workload == workload && slot.side == side && slot.round > 0;
        self.slots.iter().filter(counts)
    }

    /// A figure of a side over the rounds that count.
    fn spread(
        &self,
        workload: &str,
        side: &str,
        figure: impl Fn(&Slot) -> Option<f64>,
    ) -> Option<Spread> {
        Spread::of(self.counted(workload, side).filter_map(figure))
    }

    /// How many times a side's median our two settings reach.
    fn ratios(&self, workload: &str, side: &str, figure: fn(&Slot) -> Option<f64>) -> String {
        let median = |name: &str| Some(self.spread(workload, name, figure)?.median);
        let ratio = |ours: &str| {
            let ratio = median(ours)? / median(side)?;
            Some(format!("{ratio:.2} x"))
        };
        OURS.map(|ours| ratio(ours).unwrap_or_default()).join(" | ")
    }

    fn throughput(&self, f: &mut fmt::Formatter<'_>, workload: &str) -> fmt::Result {
        writeln!(
            f,
            "| side | durable when acknowledged | records/s | MB/s | cold, MB/s | server CPU-s per million | server memory, MiB | Highwater, 1 node | Highwater, 3 nodes |"
        )?;
        writeln!(f, "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")?;
        for Slot { side, durability, .. } in self.sides(workload) {
            let all = |figure: fn(&Slot) -> Option<f64>| self.spread(workload, side, figure);
            let rate = all(|slot| Some(slot.records_per_second));
            let cold = self
                .slots
                .iter()
                .find(|slot| slot.round == 0 && slot.workload == workload && slot.side == *side);
            writeln!(
                f,
                "| {side} | {durability} | {} | {} | {} | {} | {} | {} |",
                Spread::text(rate, 0),
                all(|slot| Some(slot.megabytes_per_second))
                    .map_or_else(String::new, |it| format!("{:.0}", it.median)),
                cold.map_or_else(String::new, |it| format!("{:.0}", it.megabytes_per_second)),
                Spread::text(all(|slot| slot.server_cpu_seconds_per_million_records), 2),
                all(|slot| Some(slot.server_memory_bytes? as f64 / f64::from(1 << 20)))
                    .map_or_else(String::new, |it| format!("{:.0}", it.median)),
                self.ratios(workload, side, |slot| Some(slot.records_per_second)),
            )?;
        }
        Ok(())
    }

    fn latency(&self, f: &mut fmt::Formatter<'_>, workload: &str) -> fmt::Result {
        writeln!(
            f,
            "| side | durable when acknowledged | records/s | ack p50, us | ack p99 | ack p99.9 | end to end p50 | end to end p99 | p99 of Highwater, 1 node | p99 of Highwater, 3 nodes |"
        )?;
        writeln!(f, "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")?;
        for Slot { side, durability, .. } in self.sides(workload) {
            let text = |figure: fn(&Slot) -> Option<f64>| {
                Spread::text(self.spread(workload, side, figure), 0)
            };
            writeln!(
                f,
                "| {side} | {durability} | {} | {} | {} | {} | {} | {} | {} |",
                text(|slot| Some(slot.records_per_second)),
                text(|slot| Some(slot.ack_latency_us.as_ref()?.p50 as f64)),
                text(|slot| Some(slot.ack_latency_us.as_ref()?.p99 as f64)),
                text(|slot| Some(slot.ack_latency_us.as_ref()?.p99_9 as f64)),
                text(|slot| Some(slot.end_to_end_latency_us.as_ref()?.p50 as f64)),
                text(|slot| Some(slot.end_to_end_latency_us.as_ref()?.p99 as f64)),
                self.ratios(workload, side, |slot| Some(slot.ack_latency_us.as_ref()?.p99 as f64)),
            )?;
        }
        Ok(())
    }
}

/// An acknowledgement means that what it is for was synced.
fn is_synced(slot: &Slot) -> bool {
    slot.durability.starts_with("synced")
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, workload) in self.workloads().iter().enumerate() {
            let gap = if number == 0 { "" } else { "\n" };
            writeln!(f, "{gap}### {workload}\n\n{}\n", self.conditions(workload))?;
            if self.is_latency(workload) {
                self.latency(f, workload)?;
            } else {
                self.throughput(f, workload)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::latency::Latencies;

    fn slot(side: &str, round: u32, records_per_second: f64) -> Slot {
        Slot {
            workload: "publish-1k-1p".to_owned(),
            side: side.to_owned(),
            durability: "synced".to_owned(),
            round,
            seconds: 1,
            note: String::new(),
            records_per_second,
            megabytes_per_second: records_per_second / 1000.0,
            ack_latency_us: None,
            end_to_end_latency_us: None,
            server_cpu_seconds_per_million_records: None,
            server_memory_bytes: None,
        }
    }

    impl Table {
        /// Two workloads with two sides, to be drawn.
        pub(in super::super) fn example() -> Self {
            let mut table = Self::new();
            for (round, ours, other) in [(1, 4000.0, 2000.0), (2, 6000.0, 1000.0)] {
                for (side, rate) in [(OURS[0], ours), ("nats-r1", other)] {
                    let published = Slot {
                        server_cpu_seconds_per_million_records: Some(rate / 1000.0),
                        ..slot(side, round, rate)
                    };
                    let mut latencies = Latencies::new();
                    (1..1000).for_each(|us| latencies.record(Duration::from_micros(us)));
                    let timed = Slot {
                        workload: "latency-2000".to_owned(),
                        ack_latency_us: latencies.percentiles(),
                        ..slot(side, round, rate)
                    };
                    table.slots.extend([published, timed]);
                }
            }
            table
        }
    }

    #[test]
    fn a_run_of_some_workloads_keeps_the_others() {
        let (mut now, mut earlier) = (Table::new(), Table::example());
        earlier.slots.retain(|slot| slot.round == 1);
        let again = [&super::super::WORKLOADS[0]];
        assert_eq!(again[0].name, "publish-1k-1p");
        now.add(slot(OURS[0], 1, 7.0), "");
        now.keep(earlier, &again);
        assert_eq!(now.workloads(), ["publish-1k-1p", "latency-2000"]);
        assert_eq!(now.slots.iter().filter(|slot| slot.workload == again[0].name).count(), 1);
    }

    #[test]
    fn a_note_stands_above_its_workload() {
        let mut table = Table::new();
        table.add(slot(OURS[0], 1, 7.0), "Busy");
        assert!(table.to_string().contains(". Busy."));
    }

    #[test]
    fn what_was_written_can_be_read_again() {
        let text = serde_json::to_string(&Table::example()).unwrap();
        let read: Table = serde_json::from_str(&text).unwrap();
        assert_eq!(read.to_string(), Table::example().to_string());
    }

    #[test]
    fn a_row_has_the_median_the_spread_the_cold_round_and_the_ratio() {
        let mut table = Table::new();
        for (round, ours, other) in [(0, 9e6, 1000.0), (1, 4000.0, 2000.0), (2, 6000.0, 1000.0)] {
            table.add(slot(OURS[0], round, ours), "");
            table.add(slot("other", round, other), "");
        }
        let text = table.to_string();
        let row = "| other | synced | 1500 (1000 to 2000) | 2 | 1 |  |  | 3.33 x |  |";
        assert!(text.contains(row), "{text}");
    }

    #[test]
    fn the_median_of_an_odd_number_is_the_middle_one() {
        let spread = Spread::of([3.0, 1.0, 20.0].into_iter()).unwrap();
        assert_eq!(spread, Spread { median: 3.0, least: 1.0, greatest: 20.0 });
        assert_eq!(Spread::of(std::iter::empty()), None);
    }
}
