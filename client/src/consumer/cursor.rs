//! One partition of a subscription, as the driver sees it: where to go on, and whether what arrives fits.
//!
//! Owns: the rule that nothing is skipped and nothing comes twice. Never: sockets, clocks, tasks.

use std::sync::Arc;

use highwater_proto::batch::BatchHeader;
use highwater_proto::v1;
use tokio::time::Instant;

use crate::config::Backoff;
use crate::error::Refusal;
use crate::types::Start;

/// See the module.
///
/// Invariant: every record before `next` (from the place where the subscription began, or was sought to) has been handed over.
#[derive(Debug)]
pub(crate) struct Cursor {
    /// Where to go on: the start asked for, then an offset as soon as the broker has said which one that is.
    pub(crate) next: Start,
    /// Counts seeks.
    pub(crate) generation: u64,
    /// The stream that reads it.
    pub(crate) stream: Option<u64>,
    /// `Assigned` messages to wait for; what arrives before is of an earlier seek.
    pub(crate) awaiting: u32,
    /// Nothing follows until a seek.
    pub(crate) ended: bool,
    /// Since when no leader has served it; None while one does.
    pub(crate) silent_since: Option<Instant>,
    pub(crate) obstacle: Option<Refusal>,
    pub(crate) backoff: Backoff,
    pub(crate) retry_at: Option<Instant>,
    /// Where it is read from, if that is not the leader: a replica in the client's rack.
    pub(crate) near: Option<Arc<str>>,
    /// Such a replica was left; until then only the leader is read.
    pub(crate) near_again_at: Option<Instant>,
}

impl Cursor {
    pub(crate) fn new(next: Start, now: Instant) -> Self {
        Self {
            next,
            generation: 0,
            stream: None,
            awaiting: 0,
            ended: false,
            silent_since: Some(now),
            obstacle: None,
            backoff: Backoff::default(),
            retry_at: None,
            near: None,
            near_again_at: None,
        }
    }

    /// Goes back to the leader until then, if it is read from a replica in the client's rack; false if it is not.
    pub(crate) fn leave_near(&mut self, until: Instant) -> bool {
        let was_near = self.near.take().is_some();
        if was_near {
            self.near_again_at = Some(until);
        }
        was_near
    }

    /// Whether the place is fixed.
    pub(crate) fn is_placed(&self) -> bool {
        matches!(self.next, Start::Offset(_)) && self.silent_since.is_none() || self.ended
    }

    /// The stream is gone or does not read it any more.
    pub(crate) fn detach(&mut self, now: Instant, obstacle: Option<Refusal>) {
        self.stream = None;
        self.awaiting = 0;
        self.silent_since.get_or_insert(now);
        if obstacle.is_some() {
            self.obstacle = obstacle;
        }
    }

    /// The broker said where reading begins. True if that fixes the place; an error if it is behind the place asked for.
    pub(crate) fn on_assigned(&mut self, assigned: &v1::Assigned) -> Result<bool, Gap> {
        self.awaiting = self.awaiting.saturating_sub(1);
        if self.awaiting > 0 {
            return Ok(false);
        }
        match self.next {
            Start::Offset(offset) if assigned.offset > offset => {
                return Err(Gap { expected: offset, found: assigned.offset });
            }
            // A batch that begins before the offset may be announced by its beginning; the rest is skipped later.
            Start::Offset(_) => {}
            Start::Earliest | Start::Latest | Start::Timestamp(_) => {
                self.next = Start::Offset(assigned.offset);
            }
        }
        self.silent_since = None;
        self.obstacle = None;
        self.backoff.succeeded();
        Ok(true)
    }

    /// Checks that batches go on where the last ones ended; moves the place behind them. Returns the place before.
    pub(crate) fn on_batches(&mut self, message: &v1::FetchedBatch) -> Result<i64, Gap> {
        let Start::Offset(from) = self.next else {
            return Err(Gap { expected: 0, found: message.next_offset });
        };
        let mut end = from;
        for batch in &message.batches {
            let unreadable = |_| Gap { expected: end, found: -1 };
            let header = BatchHeader::read(batch).map_err(unreadable)?;
            // Only the first batch may begin early: the place asked for may lie within it. And compaction leaves gaps.
            let follows = header.base_offset == end
                || (end == from && header.base_offset < from)
                || (message.has_gaps && header.base_offset > end);
            let last = header.base_offset.checked_add(i64::from(header.offset_span()));
            match last {
                Some(last) if follows => end = last.max(end),
                _ => return Err(Gap { expected: end, found: header.base_offset }),
            }
        }
        if message.next_offset != end && !(message.has_gaps && message.next_offset > end) {
            return Err(Gap { expected: end, found: message.next_offset });
        }
        self.next = Start::Offset(message.next_offset);
        Ok(from)
    }
}

/// What arrived does not follow what came before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gap {
    pub(crate) expected: i64,
    pub(crate) found: i64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use highwater_proto::batch::{BatchBuilder, Compression, stamped_prefix};

    use crate::env::Env;

    fn batch(base_offset: i64, records: u32) -> Bytes {
        let mut builder = BatchBuilder::new(Compression::None);
        for _ in 0..records {
            builder.push(0, None, Some(b"v"), &[]).unwrap();
        }
        let batch = builder.build().unwrap();
        let mut stamped = stamped_prefix(&batch, base_offset, 1).to_vec();
        stamped.extend_from_slice(&batch[16..]);
        Bytes::from(stamped)
    }

    fn message(batches: Vec<Bytes>, next_offset: i64) -> v1::FetchedBatch {
        v1::FetchedBatch { batches, next_offset, ..Default::default() }
    }

    fn cursor_at(offset: i64) -> Cursor {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let now = Env::new(runtime.handle().clone(), Some(1)).now();
        Cursor::new(Start::Offset(offset), now)
    }

    #[test]
    fn batches_that_follow_move_the_place_on() {
        let mut cursor = cursor_at(10);
        assert_eq!(cursor.on_batches(&message(vec![batch(10, 3), batch(13, 2)], 15)), Ok(10));
        assert_eq!(cursor.on_batches(&message(vec![], 15)), Ok(15));
        assert_eq!(cursor.next, Start::Offset(15));
    }

    #[test]
    fn a_first_batch_may_begin_before_the_place() {
        let mut cursor = cursor_at(11);
        assert_eq!(cursor.on_batches(&message(vec![batch(10, 3)], 13)), Ok(11));
        assert_eq!(cursor.next, Start::Offset(13));
    }

    #[test]
    fn a_gap_is_noticed_before_within_and_behind_the_batches() {
        let cases = [
            (message(vec![batch(11, 1)], 12), Gap { expected: 10, found: 11 }),
            (message(vec![batch(10, 1), batch(12, 1)], 13), Gap { expected: 11, found: 12 }),
            (message(vec![batch(10, 1)], 12), Gap { expected: 11, found: 12 }),
            (message(vec![], 11), Gap { expected: 10, found: 11 }),
            (message(vec![Bytes::from_static(b"short")], 11), Gap { expected: 10, found: -1 }),
        ];
        for (message, gap) in cases {
            let mut cursor = cursor_at(10);
            assert_eq!(cursor.on_batches(&message), Err(gap));
            assert_eq!(cursor.next, Start::Offset(10), "the place stays");
        }
    }

    #[test]
    fn gaps_that_compaction_left_are_passed_over_but_nothing_comes_twice() {
        let gaps = |batches, next_offset| v1::FetchedBatch {
            has_gaps: true,
            ..message(batches, next_offset)
        };
        let mut cursor = cursor_at(10);
        assert_eq!(cursor.on_batches(&gaps(vec![batch(12, 1), batch(20, 2)], 22)), Ok(10));
        assert_eq!(cursor.on_batches(&gaps(vec![], 30)), Ok(22));
        assert_eq!(cursor.next, Start::Offset(30));
        for wrong in [gaps(vec![batch(30, 2), batch(31, 1)], 32), gaps(vec![], 29)] {
            assert!(cursor.on_batches(&wrong).is_err());
        }
    }

    #[test]
    fn an_assignment_behind_the_place_is_a_gap_and_an_earlier_seek_does_not_count() {
        let assigned = |offset| v1::Assigned { offset, ..Default::default() };
        let mut cursor = cursor_at(10);
        cursor.awaiting = 2;
        assert_eq!(cursor.on_assigned(&assigned(99)), Ok(false));
        assert_eq!(cursor.on_assigned(&assigned(12)), Err(Gap { expected: 10, found: 12 }));
        cursor.next = Start::Latest;
        assert_eq!(cursor.on_assigned(&assigned(12)), Ok(true));
        assert_eq!(cursor.next, Start::Offset(12));
        assert!(cursor.is_placed());
    }
}
