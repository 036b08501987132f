//! Latencies: a histogram in microseconds.
//!
//! Owns: bounds and precision (1 us to 10 minutes, three digits). Never: what is measured.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// The longest latency told apart.
const LONGEST_US: u64 = 600_000_000;

/// Latencies of one kind.
#[derive(Clone, Debug)]
pub(crate) struct Latencies(Histogram<u64>);

/// Steps of a curve from one nine (90 %) to the next (99 %).
const STEPS_PER_NINE: i32 = 10;
const NINES_MAX: i32 = 4;
/// A percentile with fewer above it is chance.
const ABOVE_MIN: f64 = 5.0;

/// What is printed of them, in microseconds.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Percentiles {
    pub(crate) count: u64,
    pub(crate) p50: u64,
    pub(crate) p90: u64,
    pub(crate) p99: u64,
    pub(crate) p99_9: u64,
    pub(crate) max: u64,
    /// For drawing: which part took at most how long, in steps that grow finer towards the end.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) curve: Vec<(f64, u64)>,
}

impl Latencies {
    pub(crate) fn new() -> Self {
        let histogram = Histogram::new_with_bounds(1, LONGEST_US, 3);
        Self(histogram.expect("the bounds are constants that the histogram accepts"))
    }

    /// Notes one; longer ones than the bound count as the bound.
    pub(crate) fn record(&mut self, latency: Duration) {
        self.0.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(LONGEST_US));
    }

    /// Takes in those of another task.
    pub(crate) fn add(&mut self, other: &Self) {
        self.0.add(&other.0).expect("both have the same bounds");
    }

    /// The percentiles; `None` if nothing was recorded.
    pub(crate) fn percentiles(&self) -> Option<Percentiles> {
        let at = |quantile| self.0.value_at_quantile(quantile);
        (!self.0.is_empty()).then(|| Percentiles {
            count: self.0.len(),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p99_9: at(0.999),
            max: self.0.max(),
            curve: self.curve(),
        })
    }

    fn curve(&self) -> Vec<(f64, u64)> {
        (0..=NINES_MAX * STEPS_PER_NINE)
            .map(|step| 1.0 - 10_f64.powf(-f64::from(step) / f64::from(STEPS_PER_NINE)))
            .filter(|part| (1.0 - part) * self.0.len() as f64 >= ABOVE_MIN)
            .map(|part| (part, self.0.value_at_quantile(part)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_what_was_recorded() {
        let mut latencies = Latencies::new();
        assert_eq!(latencies.percentiles(), None);
        for us in 1..=1000 {
            latencies.record(Duration::from_micros(us));
        }
        let mut outlier = Latencies::new();
        outlier.record(Duration::from_secs(3600));
        latencies.add(&outlier);
        let found = latencies.percentiles().unwrap();
        assert_eq!((found.count, found.p50, found.p90), (1001, 501, 901));
        assert!(found.max >= LONGEST_US);
        // A thousand have no 99.9th percentile that says anything.
        let (part, us) = *found.curve.last().unwrap();
        assert!((0.99..0.999).contains(&part) && us > 980, "{part} {us}");
    }
}
