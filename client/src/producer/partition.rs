//! What is in flight for one partition: sequences, answers, and how to go on after a failure.
//!
//! Owns: the rules that keep events in order and written once. Never: sockets, clocks, tasks; time comes in as an argument,
//! so that every rule can be tested in a plain test.
//!
//! The rules:
//!
//! 1. A batch gets its sequence when it is first sent and keeps it, byte for byte, in every further try. The broker knows the
//!    last five batches of a producer, and no more than five are in flight: whatever is sent again is recognised.
//! 2. After any failure nothing new is sent until every answer still out has come or its stream is gone ("recovering"). Then
//!    all unresolved batches go again, in order, to whoever leads.
//! 3. Batches resolve from the front, so that tickets resolve in order.
//! 4. A batch that failed for good leaves a gap in the sequence. The partition then continues under the next producer epoch
//!    from sequence 0; that also fences what the network may still hold of the old one. Only batches that were certainly
//!    not written are carried over; those in doubt fail, and their errors say that they may have been written.
//! 5. OUT_OF_ORDER_SEQUENCE or UNKNOWN_PRODUCER for the first unresolved batch means that the leader's log does not hold what
//!    was acknowledged before it (possible with acks below quorum-fsync), or forgot the producer, or that the node only
//!    believes to lead. If nothing is in doubt, rule 4 applies at once; otherwise the batches are tried a few times more and
//!    then rule 4 applies.
//! 6. Without idempotence only one batch is in flight, and one whose outcome is unknown fails instead of going again.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use highwater_proto::batch::{BatchError, restamp_producer, sequence_add};
use tokio::time::Instant;

use crate::config::Backoff;
use crate::error::{Refusal, SendError, reason};
use crate::producer::completion::{BatchAck, Completion, Outcome};

/// Batches in flight of an idempotent producer: as many as the broker recognises.
const IN_FLIGHT_MAX: usize = 5;
/// How often batches in doubt are tried again when the broker says that their sequence is wrong.
const SEQUENCE_TRIES_MAX: u32 = 5;

/// A batch that has been sent at least once and is not settled yet.
#[derive(Debug)]
pub(crate) struct Pending {
    /// Its place in the producer's register of unresolved batches.
    pub(crate) id: u64,
    pub(crate) completion: Arc<Completion>,
    pub(crate) cost: usize,
    pub(crate) deadline: Instant,
    pub(crate) record_count: u32,
    pub(crate) batch: Bytes,
    /// The try under way, if there is one.
    pub(crate) sent: Option<Sent>,
    /// An earlier try may have been written.
    pub(crate) doubt: bool,
    /// The last try was refused because of its sequence.
    pub(crate) sequence_refused: bool,
    /// What became of it, until those before it are resolved too.
    pub(crate) outcome: Option<Outcome>,
    /// The last obstacle.
    pub(crate) last: Option<Refusal>,
}

/// One try of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sent {
    pub(crate) stream: u64,
    pub(crate) request_id: u64,
    pub(crate) at: Instant,
}

/// A batch whose fate is known.
#[derive(Debug)]
pub(crate) struct Resolved {
    pub(crate) id: u64,
    pub(crate) completion: Arc<Completion>,
    pub(crate) cost: usize,
    pub(crate) outcome: Outcome,
}

/// Who the batches say they are from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) producer_id: i64,
    pub(crate) epoch: i16,
}

/// One partition's flight.
///
/// Invariants: sequences of `pending` follow one another under `identity`; `pending` is no longer than the limit; its front has
/// no outcome; while `recovering`, nothing is sent.
#[derive(Debug)]
pub(crate) struct Partition {
    idempotent: bool,
    identity: Option<Identity>,
    next_sequence: i32,
    pending: VecDeque<Pending>,
    recovering: bool,
    /// A sequence was given out to a batch that failed: rule 4 is due.
    gap: bool,
    sequence_tries: u32,
    /// Set for good once a newer instance has taken the producer's place.
    pub(crate) fenced: Option<Refusal>,
    pub(crate) backoff: Backoff,
    /// Nothing is tried again before.
    pub(crate) retry_at: Option<Instant>,
    /// The last obstacle of the partition as a whole.
    pub(crate) obstacle: Option<Refusal>,
    resolved: Vec<Resolved>,
}

impl Partition {
    pub(crate) fn new(idempotent: bool) -> Self {
        Self {
            idempotent,
            identity: None,
            next_sequence: 0,
            pending: VecDeque::new(),
            recovering: false,
            gap: false,
            sequence_tries: 0,
            fenced: None,
            backoff: Backoff::default(),
            retry_at: None,
            obstacle: None,
            resolved: Vec::new(),
        }
    }

    /// The identity for the next batch, and its sequence.
    pub(crate) fn stamp(&mut self, of_producer: Identity) -> (Identity, i32) {
        (*self.identity.get_or_insert(of_producer), self.next_sequence)
    }

    /// Whether another new batch may be sent now.
    pub(crate) fn has_room(&self) -> bool {
        let limit = if self.idempotent { IN_FLIGHT_MAX } else { 1 };
        !self.recovering && !self.gap && self.fenced.is_none() && self.pending.len() < limit
    }

    /// Whether nothing is in flight.
    pub(crate) fn is_idle(&self) -> bool {
        self.pending.is_empty()
    }

    /// Whether answers are still out, so that recovering has to wait.
    pub(crate) fn is_waiting(&self) -> bool {
        self.pending.iter().any(|pending| pending.sent.is_some())
    }

    /// Whether sending is suspended after a failure.
    pub(crate) fn is_recovering(&self) -> bool {
        self.recovering
    }

    /// Takes in a batch that is about to be sent for the first time, stamped with what [`Partition::stamp`] gave.
    pub(crate) fn add(&mut self, pending: Pending) {
        self.next_sequence = sequence_add(self.next_sequence, pending.record_count);
        self.pending.push_back(pending);
    }

    /// The first batch that should be on its way but is not.
    pub(crate) fn next_unsent(&mut self) -> Option<&mut Pending> {
        let gap = self.gap;
        self.pending
            .iter_mut()
            .take_while(|pending| !(gap && matches!(pending.outcome, Some(Err(_)))))
            .find(|pending| pending.sent.is_none() && pending.outcome.is_none())
    }

    /// A try succeeded. False if the answer fits no batch (any more).
    pub(crate) fn on_ack(&mut self, request_id: u64, ack: BatchAck) -> bool {
        let Some(pending) = self.by_request(request_id) else { return false };
        pending.sent = None;
        pending.outcome = Some(Ok(ack));
        self.backoff.succeeded();
        self.obstacle = None;
        self.sequence_tries = 0;
        self.settle();
        if self.gap && !self.gap_lies_behind() {
            self.begin_recovery();
        }
        true
    }

    /// A try failed. True if the partition has just begun to recover.
    pub(crate) fn on_failure(&mut self, request_id: u64, refusal: Refusal) -> bool {
        let idempotent = self.idempotent;
        let Some(pending) = self.by_request(request_id) else { return false };
        pending.sent = None;
        pending.doubt |= refusal.may_have_been_written();
        let about_sequence =
            matches!(refusal.reason(), reason::OUT_OF_ORDER_SEQUENCE | reason::UNKNOWN_PRODUCER);
        let again = if idempotent {
            refusal.is_retriable() || about_sequence
        } else {
            refusal.is_retriable() && !refusal.may_have_been_written()
        };
        pending.sequence_refused = about_sequence;
        pending.last = Some(refusal.clone());
        if !again {
            let may_have_been_written = pending.doubt;
            let refusal = refusal.clone();
            pending.outcome = Some(Err(SendError::Refused { refusal, may_have_been_written }));
            self.gap |= idempotent;
        }
        if refusal.reason() == reason::PRODUCER_FENCED {
            self.fenced = Some(refusal.clone());
        }
        self.obstacle = Some(refusal);
        self.settle();
        self.begin_recovery()
    }

    /// A stream broke: what was sent on it may have been written. True if the partition has just begun to recover.
    pub(crate) fn on_stream_lost(&mut self, stream: u64, refusal: &Refusal) -> bool {
        let mut touched = false;
        for pending in &mut self.pending {
            if pending.sent.is_none_or(|sent| sent.stream != stream) {
                continue;
            }
            touched = true;
            pending.sent = None;
            pending.doubt = true;
            pending.last = Some(refusal.clone());
            if !self.idempotent {
                let refusal = refusal.clone();
                pending.outcome =
                    Some(Err(SendError::Refused { refusal, may_have_been_written: true }));
            }
        }
        if !touched {
            return false;
        }
        self.obstacle = Some(refusal.clone());
        self.settle();
        self.begin_recovery()
    }

    /// Gives up what is out of time. Returns whether anything was.
    pub(crate) fn expire(&mut self, now: Instant, after: Duration) -> bool {
        let mut any = false;
        for pending in &mut self.pending {
            if pending.outcome.is_some() || pending.deadline > now {
                continue;
            }
            any = true;
            let may_have_been_written = pending.doubt || pending.sent.is_some();
            pending.sent = None;
            let last = pending.last.take().or_else(|| self.obstacle.clone());
            pending.outcome = Some(Err(SendError::TimedOut { after, may_have_been_written, last }));
        }
        if any {
            self.gap |= self.idempotent;
            self.settle();
            self.begin_recovery();
        }
        any
    }

    /// Fails everything in flight for good.
    pub(crate) fn fail_all(&mut self, refusal: &Refusal) {
        for pending in &mut self.pending {
            let may_have_been_written = pending.doubt || pending.sent.is_some();
            pending.sent = None;
            let refusal = refusal.clone();
            pending
                .outcome
                .get_or_insert(Err(SendError::Refused { refusal, may_have_been_written }));
        }
        self.gap |= self.idempotent;
        self.settle();
        self.begin_recovery();
    }

    /// Ends recovering: afterwards [`Partition::next_unsent`] gives what to send again. Call it only when no answer is out
    /// and the wait is over.
    ///
    /// # Errors
    /// If the producer's epochs are used up, or a batch cannot be stamped anew (memory was damaged).
    pub(crate) fn end_recovery(&mut self) -> Result<(), BatchError> {
        debug_assert!(!self.is_waiting(), "recovering waits for the answers that are out");
        let mut broken = false;
        if self.pending.front().is_some_and(|front| front.sequence_refused) {
            let in_doubt = self.pending.iter().any(|pending| pending.doubt);
            self.sequence_tries += 1;
            broken = !in_doubt || self.sequence_tries > SEQUENCE_TRIES_MAX;
        }
        // Batches before the gap are not touched by it: they go on under the old epoch first.
        if broken || (self.gap && !self.gap_lies_behind()) {
            self.start_over()?;
        }
        for pending in &mut self.pending {
            pending.sequence_refused = false;
        }
        self.recovering = false;
        self.retry_at = None;
        Ok(())
    }

    /// Rule 4: fails what is in doubt and puts the rest under the next epoch.
    fn start_over(&mut self) -> Result<(), BatchError> {
        // What stands before an acknowledged batch cannot follow it any more without changing the order.
        let acked = self.pending.iter().rposition(|pending| matches!(pending.outcome, Some(Ok(_))));
        for (at, pending) in self.pending.iter_mut().enumerate() {
            if pending.doubt || acked.is_some_and(|acked| at < acked) {
                let last = pending.last.take();
                let refusal =
                    last.unwrap_or_else(|| Refusal::connection("a batch before this one failed"));
                pending.outcome.get_or_insert(Err(SendError::SequenceBroken { refusal }));
            }
        }
        self.settle();
        self.gap = false;
        self.sequence_tries = 0;
        self.next_sequence = 0;
        let Some(identity) = &mut self.identity else { return Ok(()) };
        identity.epoch = identity.epoch.checked_add(1).ok_or(BatchError::InvalidField {
            field: "producer epoch",
            value: i64::from(identity.epoch),
            problem: "the epochs of this producer are used up; build another one",
        })?;
        let Identity { producer_id, epoch } = *identity;
        for pending in self.pending.iter_mut().filter(|pending| pending.outcome.is_none()) {
            let sequence = self.next_sequence;
            pending.batch = restamp_producer(&pending.batch, producer_id, epoch, sequence)?;
            self.next_sequence = sequence_add(sequence, pending.record_count);
        }
        Ok(())
    }

    /// When something has to happen although no answer comes: a batch is out of time or a try has taken too long.
    pub(crate) fn next_deadline(&self, try_max: Duration) -> Option<Instant> {
        let of = |pending: &Pending| match pending.sent {
            Some(sent) => pending.deadline.min(sent.at + try_max),
            None => pending.deadline,
        };
        self.pending.iter().filter(|pending| pending.outcome.is_none()).map(of).min()
    }

    /// The oldest try under way.
    pub(crate) fn oldest_sent(&self) -> Option<Sent> {
        self.pending.iter().filter_map(|pending| pending.sent).min_by_key(|sent| sent.at)
    }

    /// A stream on which a try has taken too long.
    pub(crate) fn stalled_stream(&self, now: Instant, try_max: Duration) -> Option<u64> {
        let sent = self.pending.iter().filter_map(|pending| pending.sent);
        sent.filter(|sent| sent.at + try_max <= now).map(|sent| sent.stream).next()
    }

    /// What has been resolved since the last call, in order.
    pub(crate) fn take_resolved(&mut self) -> Vec<Resolved> {
        std::mem::take(&mut self.resolved)
    }

    fn begin_recovery(&mut self) -> bool {
        !std::mem::replace(&mut self.recovering, true)
    }

    fn by_request(&mut self, request_id: u64) -> Option<&mut Pending> {
        let is_it =
            |pending: &&mut Pending| pending.sent.is_some_and(|sent| sent.request_id == request_id);
        self.pending.iter_mut().find(is_it)
    }

    /// Whether a batch failed for good while one before it is still to be resolved.
    fn gap_lies_behind(&self) -> bool {
        self.pending.iter().any(|pending| matches!(pending.outcome, Some(Err(_))))
    }

    /// Moves out what is resolved at the front.
    fn settle(&mut self) {
        while self.pending.front().is_some_and(|front| front.outcome.is_some()) {
            let front = self.pending.pop_front();
            if let Some(Pending { id, completion, cost, outcome: Some(outcome), .. }) = front {
                self.resolved.push(Resolved { id, completion, cost, outcome });
            }
        }
    }
}

#[cfg(test)]
mod tests;
