//! Credit of a Subscribe stream: what the consumer allows the broker to send.
//!
//! Owns: the two counts and the rule between them. Never: what is sent.

use highwater_proto::v1;

/// Bytes and records the broker may still send. Either may go below zero once, so that a large batch always fits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Credits {
    bytes: i64,
    records: i64,
}

impl Credits {
    /// Adds what the consumer allows. More than `i64::MAX` in all is taken as that.
    pub(super) fn add(&mut self, credit: &v1::Credit) {
        let clamp = |amount: u64| i64::try_from(amount).unwrap_or(i64::MAX);
        self.bytes = self.bytes.saturating_add(clamp(credit.bytes));
        self.records = self.records.saturating_add(clamp(credit.records));
    }

    /// Whether the broker may send.
    pub(super) fn allows(&self) -> bool {
        self.bytes > 0 && self.records > 0
    }

    /// How many bytes to read for the next message at the most: what is left, within `bytes_max`.
    pub(super) fn bytes_to_read(&self, bytes_max: u64) -> u64 {
        u64::try_from(self.bytes).unwrap_or(0).min(bytes_max)
    }

    /// The same for records.
    pub(super) fn records_to_read(&self) -> u64 {
        u64::try_from(self.records).unwrap_or(0)
    }

    /// Takes off what a message costs.
    pub(super) fn spend(&mut self, bytes: u64, records: u64) {
        let clamp = |amount: u64| i64::try_from(amount).unwrap_or(i64::MAX);
        self.bytes = self.bytes.saturating_sub(clamp(bytes));
        self.records = self.records.saturating_sub(clamp(records));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credits(bytes: u64, records: u64) -> Credits {
        let mut credits = Credits::default();
        credits.add(&v1::Credit { bytes, records });
        credits
    }

    #[test]
    fn both_counts_must_be_positive() {
        assert!(!credits(0, 1).allows());
        assert!(!credits(1, 0).allows());
        assert!(credits(1, 1).allows());
    }

    #[test]
    fn a_large_batch_overdraws_once_and_must_be_paid_back() {
        let mut credits = credits(10, 5);
        credits.spend(1_000, 1);
        assert!(!credits.allows());
        credits.add(&v1::Credit { bytes: 990, records: 0 });
        assert!(!credits.allows(), "exactly paid back is still nothing to spend");
        credits.add(&v1::Credit { bytes: 1, records: 0 });
        assert!(credits.allows());
        assert_eq!(credits.bytes_to_read(100), 1);
    }

    #[test]
    fn absurd_credit_is_bounded_and_does_not_wrap() {
        let mut credits = credits(u64::MAX, u64::MAX);
        credits.add(&v1::Credit { bytes: u64::MAX, records: u64::MAX });
        assert!(credits.allows());
        credits.spend(u64::MAX, u64::MAX);
        credits.spend(u64::MAX, u64::MAX);
        assert!(!credits.allows());
        assert_eq!(credits.bytes_to_read(7), 0);
    }
}
