//! When each record is due, and when to stop.
//!
//! Owns: the schedule. Never: lets a late record move the ones behind it: that would hide the wait (coordinated omission).

use std::time::Duration;

/// One producer's share of the load.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Share {
    /// Its place among the producers.
    pub(crate) index: u64,
    /// How many producers there are.
    pub(crate) producers: u64,
    /// Records a second over all producers; `None`: as fast as it goes.
    pub(crate) rate: Option<u64>,
    /// Records over all producers; `None`: until the time is over.
    pub(crate) records: Option<u64>,
    /// How long to send.
    pub(crate) duration: Option<Duration>,
}

impl Share {
    /// When this producer's `n`th record is due, if there is a rate. Producers take turns.
    pub(crate) fn due(&self, n: u64) -> Option<Duration> {
        let rate = self.rate?;
        let place = n.saturating_mul(self.producers).saturating_add(self.index);
        let seconds = place / rate;
        let rest_ns = (place % rate).saturating_mul(1_000_000_000) / rate;
        Some(Duration::from_secs(seconds) + Duration::from_nanos(rest_ns))
    }

    /// Whether this producer's `n`th record is still to be sent at `now` (its due time, where there is a rate).
    pub(crate) fn includes(&self, n: u64, now: Duration) -> bool {
        match (self.records, self.duration) {
            (Some(records), _) => {
                let extra = u64::from(self.index < records % self.producers);
                n < records / self.producers + extra
            }
            (None, Some(duration)) => now < duration,
            (None, None) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(index: u64) -> Share {
        Share { index, producers: 3, rate: Some(1000), records: Some(10), duration: None }
    }

    #[test]
    fn producers_take_turns_at_the_rate() {
        let ms = Duration::from_millis;
        assert_eq!(share(0).due(0), Some(ms(0)));
        assert_eq!(share(1).due(0), Some(ms(1)));
        assert_eq!(share(2).due(0), Some(ms(2)));
        assert_eq!(share(0).due(1), Some(ms(3)));
        assert_eq!(share(0).due(1000), Some(ms(3000)));
    }

    #[test]
    fn the_schedule_does_not_drift() {
        let odd = Share { index: 0, producers: 1, rate: Some(7), records: None, duration: None };
        assert_eq!(odd.due(7_000_000), Some(Duration::from_secs(1_000_000)));
    }

    #[test]
    fn shares_add_up_to_the_records() {
        let count = |index| (0..).take_while(|n| share(index).includes(*n, Duration::MAX)).count();
        assert_eq!((count(0), count(1), count(2)), (4, 3, 3));
    }

    #[test]
    fn a_duration_ends_by_the_clock() {
        let share = Share { records: None, duration: Some(Duration::from_secs(2)), ..share(0) };
        assert!(share.includes(1 << 40, Duration::from_millis(1999)));
        assert!(!share.includes(0, Duration::from_secs(2)));
    }
}
