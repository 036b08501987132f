//! Where admitted events gather until they are sent: batches under construction, one line for each partition.
//!
//! Owns: the order of admission and when a batch is full or has waited long enough. Never: sequences, streams, waiting.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use highwater_proto::batch::{BatchBuilder, BatchError, BatchLimits, Compression};
use tokio::time::Instant;

use crate::producer::completion::{Completion, Ticket};
use crate::record::Record;

/// What the encoding of a record takes beside its bytes, roughly; also what an empty record counts for.
pub(crate) const RECORD_OVERHEAD_BYTES: usize = 24;

/// A batch under construction or waiting to be sent.
#[derive(Debug)]
pub(crate) struct Gathered {
    /// Its place in the producer's register of unresolved batches.
    pub(crate) id: u64,
    pub(crate) builder: BatchBuilder,
    pub(crate) completion: Arc<Completion>,
    /// Bytes of the producer's bound that its events hold.
    pub(crate) cost: usize,
    /// When its first event was admitted.
    pub(crate) since: Instant,
}

/// The batches of one partition that have not been sent, oldest first: `sealed`, then `open`.
#[derive(Debug, Default)]
pub(crate) struct Lane {
    open: Option<Gathered>,
    sealed: VecDeque<Gathered>,
    /// A builder to use again.
    spare: Option<BatchBuilder>,
}

/// An event found its place.
#[derive(Debug)]
pub(crate) struct Pushed {
    pub(crate) ticket: Ticket,
    /// It is the first of a new batch, which must be registered: its id and completion.
    pub(crate) opened: Option<Arc<Completion>>,
    /// There is something to do for whoever sends.
    pub(crate) wake: bool,
}

/// What there is to send.
#[derive(Debug)]
pub(crate) enum Take {
    /// This batch.
    Batch(Gathered),
    /// A batch, but not before this moment.
    NotBefore(Instant),
    /// A batch, when nothing of the partition is in flight any more.
    WhenIdle,
    /// Nothing.
    Nothing,
}

/// What a lane is told with each event.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) compression: Compression,
    pub(crate) batch_bytes_max: usize,
    pub(crate) record_bytes_max: usize,
}

impl Lane {
    /// Puts an event behind the others. `id` and `now` are taken for a new batch only.
    pub(crate) fn push(
        &mut self,
        record: &Record,
        timestamp_ms: i64,
        cost: usize,
        limits: &Limits,
        fresh: impl FnOnce() -> (u64, Instant),
    ) -> Result<Pushed, BatchError> {
        let headers: Vec<(&str, Option<&[u8]>)> =
            record.headers.iter().map(|header| (&*header.key, header.value.as_deref())).collect();
        let (key, value) = (record.key.as_deref(), record.value.as_deref());
        let mut wake = false;
        if let Some(open) = &mut self.open {
            let full = open.builder.estimated_bytes() + cost > limits.batch_bytes_max;
            let pushed = match full {
                true => Err(None),
                false => open.builder.push(timestamp_ms, key, value, &headers).map_err(Some),
            };
            match pushed {
                Ok(()) => {
                    open.cost += cost;
                    let index = open.builder.record_count() - 1;
                    let ticket = Ticket::new(open.completion.clone(), index);
                    return Ok(Pushed { ticket, opened: None, wake: false });
                }
                Err(Some(error)) if !fits_a_new_batch(&error) => return Err(error),
                Err(_full) => {
                    self.seal();
                    wake = true;
                }
            }
        }
        let mut builder =
            self.spare.take().unwrap_or_else(|| BatchBuilder::new(limits.compression));
        builder.set_limits(BatchLimits {
            record_bytes_max: limits.record_bytes_max,
            ..BatchLimits::default()
        });
        if let Err(error) = builder.push(timestamp_ms, key, value, &headers) {
            self.spare = Some(builder);
            return Err(error);
        }
        let (id, since) = fresh();
        let completion = Arc::new(Completion::default());
        let ticket = Ticket::new(completion.clone(), 0);
        wake |= self.sealed.is_empty();
        let opened = Some(completion.clone());
        self.open = Some(Gathered { id, builder, completion, cost, since });
        Ok(Pushed { ticket, opened, wake })
    }

    /// Closes the batch under construction; true if there was one.
    pub(crate) fn seal(&mut self) -> bool {
        let open = self.open.take();
        let had = open.is_some();
        self.sealed.extend(open);
        had
    }

    /// The next batch to send. `idle` says that nothing of this partition is in flight.
    pub(crate) fn take(&mut self, now: Instant, linger: Duration, idle: bool) -> Take {
        if let Some(batch) = self.sealed.pop_front() {
            return Take::Batch(batch);
        }
        let Some(open) = &self.open else { return Take::Nothing };
        let due = open.since + linger;
        if linger.is_zero() && !idle {
            return Take::WhenIdle;
        }
        if now < due {
            return Take::NotBefore(due);
        }
        self.open.take().map_or(Take::Nothing, Take::Batch)
    }

    /// Takes out the batches whose first event was admitted at or before `latest`.
    pub(crate) fn take_older(&mut self, latest: Instant) -> Vec<Gathered> {
        let mut old = Vec::new();
        while self.sealed.front().is_some_and(|batch| batch.since <= latest) {
            old.extend(self.sealed.pop_front());
        }
        if self.sealed.is_empty() && self.open.as_ref().is_some_and(|open| open.since <= latest) {
            old.extend(self.open.take());
        }
        old
    }

    /// Takes out everything.
    pub(crate) fn take_all(&mut self) -> Vec<Gathered> {
        self.sealed.drain(..).chain(self.open.take()).collect()
    }

    /// When the first event of the oldest batch was admitted.
    pub(crate) fn oldest(&self) -> Option<Instant> {
        self.sealed.front().or(self.open.as_ref()).map(|batch| batch.since)
    }

    /// Gives a builder back for use again.
    pub(crate) fn recycle(&mut self, builder: BatchBuilder) {
        self.spare = Some(builder);
    }
}

/// Whether a record that this batch does not take would be taken by an empty one.
fn fits_a_new_batch(error: &BatchError) -> bool {
    matches!(
        error,
        BatchError::BatchTooLarge { .. }
            | BatchError::TooManyRecords { .. }
            | BatchError::TimestampOutOfRange { .. }
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::Env;

    const LIMITS: Limits =
        Limits { compression: Compression::None, batch_bytes_max: 400, record_bytes_max: 1000 };

    fn push(lane: &mut Lane, now: Instant, value: &str) -> Result<Pushed, BatchError> {
        let record = Record::from(value);
        lane.push(&record, 5, value.len() + RECORD_OVERHEAD_BYTES, &LIMITS, || (1, now))
    }

    fn start() -> Instant {
        Env::new(tokio::runtime::Handle::current(), Some(1)).now()
    }

    #[tokio::test]
    async fn a_full_batch_is_sealed_and_the_next_record_opens_another() {
        let mut lane = Lane::default();
        let now = start();
        let first = push(&mut lane, now, &"a".repeat(200)).unwrap();
        assert!(first.wake && first.opened.is_some());
        let second = push(&mut lane, now, &"b".repeat(200)).unwrap();
        assert!(second.wake && second.opened.is_some(), "sealing wakes the sender");
        let third = push(&mut lane, now, "c").unwrap();
        assert!(!third.wake && third.opened.is_none(), "joining needs nobody");
        let Take::Batch(batch) = lane.take(now, Duration::ZERO, false) else { panic!() };
        assert_eq!(batch.builder.record_count(), 1);
        assert!(matches!(lane.take(now, Duration::ZERO, false), Take::WhenIdle));
        let Take::Batch(batch) = lane.take(now, Duration::ZERO, true) else { panic!() };
        assert_eq!(batch.builder.record_count(), 2);
        assert_eq!(batch.cost, 201 + 2 * RECORD_OVERHEAD_BYTES);
        assert!(matches!(lane.take(now, Duration::ZERO, true), Take::Nothing));
    }

    #[tokio::test]
    async fn a_lingering_batch_is_given_out_when_its_time_has_come_or_it_is_sealed() {
        let mut lane = Lane::default();
        let now = start();
        let linger = Duration::from_millis(5);
        push(&mut lane, now, "a").unwrap().ticket.try_result();
        let Take::NotBefore(due) = lane.take(now, linger, true) else { panic!() };
        assert_eq!(due, now + linger);
        assert!(matches!(lane.take(due, linger, false), Take::Batch(_)));
        push(&mut lane, now, "b").unwrap().ticket.try_result();
        assert!(lane.seal());
        assert!(matches!(lane.take(now, linger, false), Take::Batch(_)));
    }

    #[tokio::test]
    async fn a_record_beyond_the_limit_is_refused_and_leaves_no_trace() {
        let mut lane = Lane::default();
        let now = start();
        let error = push(&mut lane, now, &"x".repeat(1001)).unwrap_err();
        assert!(matches!(error, BatchError::RecordTooLarge { .. }));
        assert_eq!(lane.oldest(), None);
        push(&mut lane, now, "a").unwrap().ticket.try_result();
        assert!(push(&mut lane, now, &"x".repeat(1001)).is_err());
        assert_eq!(lane.take_all().len(), 1);
    }

    #[tokio::test]
    async fn a_record_larger_than_a_batch_should_be_travels_alone() {
        let mut lane = Lane::default();
        let now = start();
        push(&mut lane, now, &"x".repeat(900)).unwrap().ticket.try_result();
        assert!(matches!(lane.take(now, Duration::ZERO, true), Take::Batch(_)));
    }
}
