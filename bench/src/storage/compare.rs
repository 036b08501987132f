//! Taking turns, and the table that comes of it.
//!
//! Owns: the rounds, medians and ranges, the targets. Never: what is measured.

use std::fmt;

use serde::Serialize;

use crate::env::Clock;

/// One of those that take turns.
pub(crate) trait Side {
    /// What is measured.
    fn operation(&mut self) -> anyhow::Result<()>;

    /// Between two rounds, not measured.
    fn rest(&mut self) -> anyhow::Result<()> {
        Ok(())
    }
}

/// A side without anything between its rounds.
pub(super) struct Repeat<F>(pub(super) F);

impl<F: FnMut() -> anyhow::Result<()>> Side for Repeat<F> {
    fn operation(&mut self) -> anyhow::Result<()> {
        (self.0)()
    }
}

/// How a case is run, and what it should come to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Case {
    pub(super) name: &'static str,
    /// Calls of `Side::operation` in a round.
    pub(super) calls: usize,
    /// Things that a call does, where it does many because one is too short to be timed; 0 counts as 1.
    pub(super) things: usize,
    /// Bytes of one thing, if a rate is to be shown.
    pub(super) bytes: usize,
    pub(super) target: Target,
}

/// What a case should come to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) enum Target {
    /// Shown only.
    #[default]
    None,
    /// At least this part of the bare loop's speed.
    Speed(f64),
    /// The same, p50 at most 1.2 times and p99 at most twice the bare loop's.
    SpeedAndLatency(f64),
    /// At least so many GB/s.
    Rate(f64),
}

/// Microseconds of one thing.
#[derive(Clone, Copy, Debug, Serialize)]
struct Figures {
    /// Of the rounds' means: the median, the fastest and the slowest.
    median_us: f64,
    fastest_us: f64,
    slowest_us: f64,
    /// Of single calls, over all rounds.
    p50_us: f64,
    p99_us: f64,
}

impl Figures {
    fn of(rounds: &[Vec<f64>]) -> Self {
        let mean = |calls: &Vec<f64>| calls.iter().sum::<f64>() / calls.len() as f64;
        let means = sorted(rounds.iter().map(mean).collect());
        let calls = sorted(rounds.concat());
        Self {
            median_us: at(&means, 0.5),
            fastest_us: at(&means, 0.0),
            slowest_us: at(&means, 1.0),
            p50_us: at(&calls, 0.5),
            p99_us: at(&calls, 0.99),
        }
    }
}

fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
}

/// The value below which this part of the sorted ones lies.
fn at(sorted: &[f64], part: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    let below = sorted.iter().enumerate().find(|(index, _)| *index as f64 >= part * last as f64);
    below.map_or(f64::NAN, |(_, value)| *value)
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { median_us, fastest_us, slowest_us, .. } = self;
        let digits = if *median_us < 100.0 { 2 } else { 0 };
        write!(f, "{median_us:.digits$} ({fastest_us:.digits$} to {slowest_us:.digits$})")
    }
}

/// A case beside its limit.
#[derive(Debug, Serialize)]
struct Row {
    case: &'static str,
    bare: Figures,
    log: Figures,
    /// The speed of the log in parts of the bare loop's, medians.
    of_bare: f64,
    gb_per_s: Option<f64>,
    target: String,
    reached: Option<bool>,
}

/// A figure without a bare loop beside it.
#[derive(Debug, Serialize)]
struct Fact {
    what: String,
    value: String,
    target: String,
    reached: Option<bool>,
}

/// One way of doing the same thing.
#[derive(Debug, Serialize)]
struct Way {
    way: &'static str,
    figures: Figures,
}

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    rounds: u32,
    optimized: bool,
    rows: Vec<Row>,
    ways: Vec<Way>,
    facts: Vec<Fact>,
}

impl Report {
    pub(super) fn new(rounds: u32) -> Self {
        Self {
            rounds,
            optimized: !cfg!(debug_assertions),
            rows: Vec::new(),
            ways: Vec::new(),
            facts: Vec::new(),
        }
    }

    /// Lets the bare loop and the log take turns.
    pub(super) fn compare(
        &mut self,
        case: Case,
        bare: &mut dyn Side,
        log: &mut dyn Side,
    ) -> anyhow::Result<()> {
        let figures = self.take_turns(&case, &mut [bare, log])?;
        let (bare, log) = (figures[0], figures[1]);
        self.add_row(&case, bare, log);
        Ok(())
    }

    /// Lets ways of doing the same thing take turns. The last one is the log; each becomes a line of the table of ways, and
    /// the log a row beside the ways in `limits` (by their number).
    pub(super) fn compare_ways(
        &mut self,
        cases: &[(Case, usize)],
        ways: &mut [(&'static str, Box<dyn Side + '_>)],
    ) -> anyhow::Result<()> {
        let Some((first, _)) = cases.first() else { return Ok(()) };
        let figures = {
            let mut sides: Vec<&mut dyn Side> =
                ways.iter_mut().map(|(_, side)| &mut **side as &mut dyn Side).collect();
            self.take_turns(first, &mut sides)?
        };
        let names = ways.iter().map(|(name, _)| *name);
        self.ways.extend(names.zip(&figures).map(|(way, figures)| Way { way, figures: *figures }));
        let Some(log) = figures.last() else { return Ok(()) };
        for (case, limit) in cases {
            self.add_row(case, figures[*limit], *log);
        }
        Ok(())
    }

    /// The first round of each warms up and does not count.
    fn take_turns(&self, case: &Case, sides: &mut [&mut dyn Side]) -> anyhow::Result<Vec<Figures>> {
        let things = case.things.max(1) as f64;
        let mut times: Vec<Vec<Vec<f64>>> = sides.iter().map(|_| Vec::new()).collect();
        for round in 0..=self.rounds {
            for (side, times) in sides.iter_mut().zip(&mut times) {
                let mut calls = Vec::with_capacity(case.calls);
                for _ in 0..case.calls {
                    let clock = Clock::start();
                    side.operation()?;
                    calls.push(clock.now().as_secs_f64() * 1e6 / things);
                }
                if round > 0 {
                    times.push(calls);
                }
                side.rest()?;
            }
        }
        Ok(times.iter().map(|rounds| Figures::of(rounds)).collect())
    }

    fn add_row(&mut self, case: &Case, bare: Figures, log: Figures) {
        let of_bare = bare.median_us / log.median_us;
        let gb_per_s = (case.bytes > 0).then(|| case.bytes as f64 / log.median_us / 1e3);
        let percent = |part: f64| format!(">= {:.0} %", part * 100.0);
        let (target, reached) = match case.target {
            Target::None => (String::new(), None),
            Target::Speed(part) => (percent(part), Some(of_bare >= part)),
            Target::SpeedAndLatency(part) => (
                format!("{}, p50 <= 1.2 x, p99 <= 2 x", percent(part)),
                Some(
                    of_bare >= part
                        && log.p50_us <= 1.2 * bare.p50_us
                        && log.p99_us <= 2.0 * bare.p99_us,
                ),
            ),
            Target::Rate(rate) => (format!(">= {rate} GB/s"), gb_per_s.map(|is| is >= rate)),
        };
        self.rows.push(Row { case: case.name, bare, log, of_bare, gb_per_s, target, reached });
    }

    /// A figure by itself, and the most that it may be.
    pub(super) fn fact(&mut self, what: String, value: f64, unit: &str, most: Option<f64>) {
        let digits = if value < 100.0 { 2 } else { 0 };
        self.facts.push(Fact {
            what,
            value: format!("{value:.digits$} {unit}"),
            target: most.map_or(String::new(), |most| format!("<= {most} {unit}")),
            reached: most.map(|most| value <= most),
        });
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = |reached: Option<bool>| match reached {
            None => "",
            Some(true) => "yes",
            Some(false) => "NO",
        };
        writeln!(f, "microseconds: median of {} rounds (fastest to slowest)", self.rounds)?;
        if !self.optimized {
            writeln!(f, "NOT optimised: build with --release")?;
        }
        writeln!(f, "| case | bare | log | of bare | p50 | p99 | rate | target | reached |")?;
        writeln!(f, "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- | --- |")?;
        for row in &self.rows {
            let Row { case, bare, log, of_bare, gb_per_s, target, reached } = row;
            let part = of_bare * 100.0;
            let (p50, p99) = (log.p50_us / bare.p50_us, log.p99_us / bare.p99_us);
            let rate = gb_per_s.map_or(String::new(), |rate| format!("{rate:.2} GB/s"));
            writeln!(
                f,
                "| {case} | {bare} | {log} | {part:.0} % | {p50:.2} x | {p99:.2} x | {rate} | {target} | {} |",
                verdict(*reached)
            )?;
        }
        if !self.ways.is_empty() {
            writeln!(f, "\n| way | us | p99 |\n| --- | ---: | ---: |")?;
            for Way { way, figures } in &self.ways {
                writeln!(f, "| {way} | {figures} | {:.0} |", figures.p99_us)?;
            }
        }
        if !self.facts.is_empty() {
            writeln!(f, "\n| what | | target | reached |\n| --- | ---: | --- | --- |")?;
            for Fact { what, value, target, reached } in &self.facts {
                writeln!(f, "| {what} | {value} | {target} | {} |", verdict(*reached))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_taken_of_sorted_values() {
        let values = sorted(vec![3.0, 1.0, 2.0, 5.0, 4.0]);
        assert_eq!((at(&values, 0.0), at(&values, 0.5), at(&values, 1.0)), (1.0, 3.0, 5.0));
        assert_eq!(at(&values, 0.99), 5.0);
    }

    #[test]
    fn a_target_that_is_missed_is_said_so() {
        let case = |target| Case { name: "c", calls: 1, target, ..Case::default() };
        let figures = |us: f64| Figures::of(&[vec![us], vec![us]]);
        let mut report = Report::new(2);
        report.add_row(&case(Target::Speed(0.9)), figures(90.0), figures(100.0));
        report.add_row(&case(Target::Speed(0.9)), figures(80.0), figures(100.0));
        report.add_row(&case(Target::SpeedAndLatency(0.5)), figures(80.0), figures(100.0));
        report.fact("f".into(), 3.0, "s", Some(2.0));
        let reached: Vec<_> = report.rows.iter().map(|row| row.reached).collect();
        assert_eq!(reached, [Some(true), Some(false), Some(false)]);
        assert_eq!(report.facts[0].reached, Some(false));
        assert!(report.to_string().contains("| NO |"));
    }
}
