//! The shared fate of a batch's events, and the tickets that tell each of them.
//!
//! Owns: waiting. Never: decides an outcome.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

use crate::error::SendError;
use crate::record::{Ack, Acks};

/// Where a batch went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchAck {
    pub(crate) partition: u32,
    pub(crate) base_offset: i64,
    pub(crate) epoch: u64,
    pub(crate) duplicate: bool,
    pub(crate) reached: Acks,
    pub(crate) append_time_ms: i64,
}

/// What became of a batch.
pub(crate) type Outcome = Result<BatchAck, SendError>;

/// One for each batch, shared by its tickets: a ticket for each event must cost next to nothing.
///
/// Invariant: the outcome is set once and never changes; wakers registered before are woken.
#[derive(Debug, Default)]
pub(crate) struct Completion {
    outcome: OnceLock<Outcome>,
    wakers: Mutex<Vec<Waker>>,
}

impl Completion {
    /// Sets the outcome and wakes who waits. A second outcome is ignored.
    pub(crate) fn complete(&self, outcome: Outcome) {
        if self.outcome.set(outcome).is_ok() {
            let wakers = std::mem::take(&mut *self.wakers.lock());
            wakers.into_iter().for_each(Waker::wake);
        }
    }

    /// The outcome, or to be woken when it is there. `slot` remembers the caller's place among the wakers.
    fn poll(&self, slot: &mut Option<usize>, context: &mut Context<'_>) -> Poll<&Outcome> {
        if let Some(outcome) = self.outcome.get() {
            return Poll::Ready(outcome);
        }
        let mut wakers = self.wakers.lock();
        // Looked at again under the lock: `complete` takes the wakers after it has set the outcome.
        if let Some(outcome) = self.outcome.get() {
            return Poll::Ready(outcome);
        }
        match slot.and_then(|slot| wakers.get_mut(slot)) {
            Some(waker) => waker.clone_from(context.waker()),
            None => {
                *slot = Some(wakers.len());
                wakers.push(context.waker().clone());
            }
        }
        Poll::Pending
    }

    /// Waits for the outcome.
    pub(crate) async fn wait(&self) -> Outcome {
        let mut slot = None;
        std::future::poll_fn(|context| self.poll(&mut slot, context).map(Clone::clone)).await
    }
}

/// The promise of an [`Ack`]: a future that resolves when the event is acknowledged or has failed, within the delivery
/// timeout. Dropping it does not take the event back.
#[derive(Debug)]
#[must_use = "an event is durable only when its ticket says so (or `flush` does)"]
pub struct Ticket {
    completion: Arc<Completion>,
    /// Position of the event in its batch.
    index: u32,
    slot: Option<usize>,
}

impl Ticket {
    pub(crate) fn new(completion: Arc<Completion>, index: u32) -> Self {
        Self { completion, index, slot: None }
    }

    /// The outcome if it is there already.
    pub fn try_result(&self) -> Option<Result<Ack, SendError>> {
        self.completion.outcome.get().map(|outcome| self.of_event(outcome))
    }

    fn of_event(&self, outcome: &Outcome) -> Result<Ack, SendError> {
        outcome.as_ref().map_err(Clone::clone).map(|batch| Ack {
            partition: batch.partition,
            offset: batch.base_offset + i64::from(self.index),
            epoch: batch.epoch,
            duplicate: batch.duplicate,
            reached: batch.reached,
            append_time_ms: batch.append_time_ms,
        })
    }
}

impl Future for Ticket {
    type Output = Result<Ack, SendError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        match this.completion.poll(&mut this.slot, context) {
            Poll::Ready(outcome) => Poll::Ready(this.of_event(outcome)),
            Poll::Pending => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ack(base_offset: i64) -> BatchAck {
        BatchAck {
            partition: 3,
            base_offset,
            epoch: 2,
            duplicate: false,
            reached: Acks::QuorumFsync,
            append_time_ms: 0,
        }
    }

    #[tokio::test]
    async fn every_ticket_of_a_batch_gets_its_own_offset() {
        let completion = Arc::new(Completion::default());
        let tickets: Vec<_> = (0..3).map(|index| Ticket::new(completion.clone(), index)).collect();
        assert!(tickets[0].try_result().is_none());
        let waiting = tokio::task::LocalSet::new();
        let offsets = waiting.run_until(async {
            let all = futures::future::join_all(tickets);
            let complete = async { completion.complete(Ok(ack(40))) };
            futures::join!(all, complete).0
        });
        let offsets: Vec<_> = offsets.await.into_iter().map(|ack| ack.unwrap().offset).collect();
        assert_eq!(offsets, [40, 41, 42]);
    }

    #[test]
    fn polling_again_replaces_the_waker_instead_of_adding_one() {
        let completion = Completion::default();
        let mut slot = None;
        let mut context = Context::from_waker(Waker::noop());
        for _ in 0..10 {
            assert!(completion.poll(&mut slot, &mut context).is_pending());
        }
        assert_eq!(completion.wakers.lock().len(), 1);
    }

    #[test]
    fn the_first_outcome_stays() {
        let completion = Arc::new(Completion::default());
        completion.complete(Ok(ack(1)));
        completion.complete(Err(SendError::Closed));
        let ticket = Ticket::new(completion, 0);
        assert_eq!(ticket.try_result().unwrap().unwrap().offset, 1);
    }
}
