//! Who waits for which entry, and how durable it must be before they are told.
//!
//! Owns: the queue of waiters. Never: decides what is committed.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use highwater_proto::v1::Acks;

use super::{Effects, Visible};
use crate::error::BrokerError;

/// A batch that reached the durability asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Offset of the first record.
    pub base_offset: u64,
    /// The leader epoch it was appended in.
    pub leader_epoch: u64,
    /// It had been written before; `base_offset` is the original's.
    pub duplicate: bool,
    /// When the leader appended it, in milliseconds since the Unix epoch.
    pub append_time_ms: i64,
}

/// What a proposal came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// A batch is as durable as was asked for.
    Appended(Appended),
    /// A command was applied, with this outcome.
    Applied(Bytes),
    /// The log starts here now.
    LogStart(u64),
    /// The members are as asked for.
    MembersChanged,
    /// This replica still led after it was asked, and sees this.
    Leads(Visible),
}

/// A proposal in the log that has not been answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiter {
    pub(super) token: u64,
    pub(super) index: u64,
    pub(super) acks: Acks,
    pub(super) appended: Appended,
    /// Answered when applied, not when committed.
    pub(super) applies: bool,
}

/// Invariant: `batches` is ordered by index.
#[derive(Debug, Default)]
pub(super) struct Waiters {
    batches: VecDeque<Waiter>,
    /// Waiters for the outcome of applying, by index.
    applied: BTreeMap<u64, u64>,
    /// How many of `batches` wait for a quorum without fsync.
    quorum: usize,
}

impl Waiters {
    pub(super) fn insert(&mut self, waiter: Waiter) {
        if waiter.applies {
            self.applied.insert(waiter.index, waiter.token);
            return;
        }
        self.quorum += usize::from(waiter.acks == Acks::Quorum);
        // Nearly always the last; a duplicate joins its original further ahead.
        let at = self.batches.partition_point(|other| other.index <= waiter.index);
        self.batches.insert(at, waiter);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.batches.is_empty() && self.applied.is_empty()
    }

    pub(super) fn has_quorum_waiters(&self) -> bool {
        self.quorum > 0
    }

    /// Everything up to `committed` is committed.
    pub(super) fn answer_committed(&mut self, committed: u64, effects: &mut Effects) {
        while let Some(waiter) = self.batches.pop_front_if(|waiter| waiter.index <= committed) {
            self.quorum -= usize::from(waiter.acks == Acks::Quorum);
            effects.answers.push((waiter.token, Ok(Answer::Appended(waiter.appended))));
        }
    }

    /// A majority has appended everything up to `index`.
    pub(super) fn answer_quorum(&mut self, index: u64, effects: &mut Effects) {
        self.batches.retain(|waiter| {
            let reached = waiter.acks == Acks::Quorum && waiter.index <= index;
            if reached {
                effects.answers.push((waiter.token, Ok(Answer::Appended(waiter.appended))));
            }
            !reached
        });
        self.quorum = self.batches.iter().filter(|waiter| waiter.acks == Acks::Quorum).count();
    }

    /// The entry at `index` was applied.
    pub(super) fn answer_applied(&mut self, index: u64, answer: Answer, effects: &mut Effects) {
        self.answer_outcome(index, Ok(answer), effects);
    }

    /// The same, where applying may come to nothing.
    pub(super) fn answer_outcome(
        &mut self,
        index: u64,
        outcome: Result<Answer, BrokerError>,
        effects: &mut Effects,
    ) {
        if let Some(token) = self.applied.remove(&index) {
            effects.answers.push((token, outcome));
        }
    }

    /// None of them will be known here.
    pub(super) fn fail_all(&mut self, effects: &mut Effects, error: impl Fn() -> BrokerError) {
        let batches = self.batches.drain(..).map(|waiter| waiter.token);
        let applied = std::mem::take(&mut self.applied).into_values();
        effects.answers.extend(batches.chain(applied).map(|token| (token, Err(error()))));
        self.quorum = 0;
    }
}
