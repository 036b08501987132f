//! What happens to an event between its arrival and its progress: order per key, attempts, outcomes.
//!
//! Owns: lanes (one for each key at hand, in which events wait for one another), the bounds, the attempts. Never: reads topics or commits;
//! it acknowledges deliveries, and the group's session does the rest.

use std::collections::{HashMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tower::{Service, ServiceExt};
use tracing::Instrument;

use super::dead_letter::bury;
use super::handler::{Context, HandlerService, Routes};
use super::inbox::{EventId, Inbox};
use super::{Outcome, WorkerError, WorkerStats};
use crate::breaker::CircuitBreaker;
use crate::client::Client;
use crate::config::RetryPolicy;
use crate::event;
use crate::group::Delivery;
use crate::producer::Producer;
use crate::record::Event;

/// How a worker comes to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// It takes events.
    Running,
    /// It takes no more events and finishes those it has.
    Draining,
    /// It lets go of what is not done.
    Abandoned,
}

/// Events with one key of one partition, which are handled one after the other.
pub(super) type LaneKey = (Arc<str>, u32, Bytes);

/// An event and its place within the bound of those at hand.
pub(super) struct Job {
    delivery: Delivery,
    _place: OwnedSemaphorePermit,
}

/// What one worker's lanes share.
pub(super) struct Lanes<S> {
    pub(super) client: Client,
    pub(super) group: String,
    pub(super) state: Arc<S>,
    pub(super) routes: Arc<Routes<S>>,
    pub(super) service: HandlerService<S>,
    pub(super) retry: RetryPolicy,
    pub(super) failures_max: u32,
    pub(super) inbox: Option<Arc<dyn Inbox>>,
    pub(super) graveyard: Producer,
    pub(super) breaker: Option<Arc<CircuitBreaker>>,
    /// Handlers that may run at once.
    pub(super) running: Arc<Semaphore>,
    /// Events that may be at hand, waiting ones included.
    pub(super) at_hand: Arc<Semaphore>,
    pub(super) at_hand_max: u32,
    pub(super) phase: watch::Sender<Phase>,
    pub(super) stats: Mutex<WorkerStats>,
    pub(super) error: Mutex<Option<WorkerError>>,
    pub(super) lanes: Mutex<HashMap<LaneKey, VecDeque<Job>>>,
}

impl<S: Send + Sync + 'static> Lanes<S> {
    /// Moves on to a later phase.
    pub(super) fn enter(&self, phase: Phase) {
        self.phase.send_if_modified(|now| {
            let is_later = phase > *now;
            *now = phase.max(*now);
            is_later
        });
    }

    /// Completes when the worker is in this phase or a later one.
    pub(super) async fn reached(&self, phase: Phase) {
        let mut phases = self.phase.subscribe();
        // The sender lives as long as `self`.
        _ = phases.wait_for(|now| *now >= phase).await;
    }

    /// The worker cannot go on. The first reason counts.
    pub(super) fn fail(&self, error: WorkerError) {
        self.error.lock().get_or_insert(error);
        self.enter(Phase::Abandoned);
    }

    /// Waits until one more event may be at hand: while the breaker lets nothing through there is no use in more.
    pub(super) async fn place(&self) -> OwnedSemaphorePermit {
        if let Some(breaker) = &self.breaker {
            let env = &self.client.shared.env;
            // Leave that is given back at once: only the waiting counts.
            drop(breaker.pass(|| env.now()).await);
        }
        let place = Arc::clone(&self.at_hand).acquire_owned().await;
        place.expect("the semaphore is never closed")
    }

    /// Whether events wait for something that is not their handler.
    pub(super) fn is_waiting(&self) -> bool {
        let stats = self.stats.lock();
        stats.waiting > 0
    }

    /// Completes when no event is at hand.
    pub(super) async fn drained(&self) {
        let all = self.at_hand.acquire_many(self.at_hand_max).await;
        drop(all.expect("the semaphore is never closed"));
    }

    /// Takes in an event.
    pub(super) fn dispatch(self: &Arc<Self>, delivery: Delivery, place: OwnedSemaphorePermit) {
        if !self.routes.handle(&delivery) {
            self.stats.lock().skipped += 1;
            delivery.ack();
            return;
        }
        let key = delivery.key.clone();
        let job = Job { delivery, _place: place };
        let env = &self.client.shared.env;
        // Without a key there is no order to keep.
        let Some(key) = key else {
            let lanes = Arc::clone(self);
            env.spawn(async move { lanes.until_abandoned(lanes.work(job)).await });
            return;
        };
        let key = (job.delivery.topic.clone(), job.delivery.partition, key);
        let mut table = self.lanes.lock();
        if let Some(waiting) = table.get_mut(&key) {
            waiting.push_back(job);
            return;
        }
        table.insert(key.clone(), VecDeque::new());
        drop(table);
        let lanes = Arc::clone(self);
        env.spawn(async move { lanes.until_abandoned(lanes.run_lane(key, job)).await });
    }

    async fn run_lane(self: &Arc<Self>, key: LaneKey, first: Job) {
        let mut next = Some(first);
        while let Some(job) = next {
            self.work(job).await;
            // What follows an event that ended the worker must not overtake it.
            if *self.phase.borrow() == Phase::Abandoned {
                return;
            }
            let mut table = self.lanes.lock();
            next = table.get_mut(&key).and_then(VecDeque::pop_front);
            if next.is_none() {
                table.remove(&key);
            }
        }
    }

    async fn until_abandoned(&self, work: impl Future<Output = ()>) {
        tokio::select! {
            () = work => {}
            () = self.reached(Phase::Abandoned) => self.lanes.lock().clear(),
        }
    }

    /// Handles one event until something has become of it.
    async fn work(self: &Arc<Self>, job: Job) {
        let event = Arc::new(job.delivery.event().clone());
        let id = self.inbox.as_ref().and_then(|_| EventId::of(&event));
        let (mut attempts, mut failures) = (0_u32, 0_u32);
        // Why it goes to the dead-letter topic.
        let grave = loop {
            let outcome = match self.is_known(id.as_ref()).await {
                Ok(true) => {
                    self.stats.lock().duplicates += 1;
                    return job.delivery.ack();
                }
                Ok(false) => {
                    attempts += 1;
                    self.attempt(&event, attempts).await
                }
                Err(why) => (Outcome::Retry(why), false),
            };
            let (outcome, counts) = outcome;
            let pause = match outcome {
                Outcome::Done => break None,
                Outcome::Skip => {
                    self.stats.lock().skipped += 1;
                    return job.delivery.ack();
                }
                Outcome::Fatal(why) => {
                    let at = format!("{}:{}@{}", event.topic, event.partition, event.offset);
                    return self.fail(WorkerError::Fatal { at, why });
                }
                Outcome::DeadLetter(why) => break Some(why),
                Outcome::RetryAfter(pause) => pause,
                Outcome::Retry(why) => {
                    failures += u32::from(counts);
                    tracing::warn!(
                        topic = %event.topic, partition = event.partition, offset = event.offset,
                        attempts, why, "an event could not be handled"
                    );
                    if failures >= self.failures_max {
                        break Some(why);
                    }
                    self.retry.backoff(failures.max(1), &self.client.shared.env)
                }
            };
            self.stats.lock().retried += 1;
            self.wait(tokio::time::sleep(pause)).await;
        };
        match grave {
            None => {
                self.insist("remembering an event", || self.remember(id.as_ref())).await;
                self.stats.lock().done += 1;
            }
            Some(why) => {
                let bury = || bury(&self.graveyard, &self.group, &event, &why, attempts);
                self.insist("publishing a dead letter", bury).await;
                self.stats.lock().dead_lettered += 1;
            }
        }
        job.delivery.ack();
    }

    async fn is_known(&self, id: Option<&EventId>) -> Result<bool, String> {
        let (Some(inbox), Some(id)) = (&self.inbox, id) else { return Ok(false) };
        inbox.contains(id).await.map_err(|error| format!("the inbox: {error}"))
    }

    async fn remember(&self, id: Option<&EventId>) -> Result<(), event::Cause> {
        let (Some(inbox), Some(id)) = (&self.inbox, id) else { return Ok(()) };
        inbox.remember(id).await
    }

    /// Tries until it succeeds: progress must not pass what is not done.
    async fn insist<T, E: std::fmt::Display, F: Future<Output = Result<T, E>>>(
        &self,
        what: &str,
        mut step: impl FnMut() -> F,
    ) -> T {
        let mut failures = 0;
        loop {
            match step().await {
                Ok(output) => return output,
                Err(error) => tracing::warn!(%error, "{what} failed; it will be tried again"),
            }
            failures += 1;
            let pause = self.retry.backoff(failures, &self.client.shared.env);
            self.wait(tokio::time::sleep(pause)).await;
        }
    }

    /// Calls the handler once. Also says whether a failure is the event's own affair.
    async fn attempt(self: &Arc<Self>, event: &Arc<Event>, number: u32) -> (Outcome, bool) {
        let env = &self.client.shared.env;
        let (pass, slot) = loop {
            let slot = Arc::clone(&self.running).acquire_owned();
            let slot = slot.await.expect("the semaphore is never closed");
            let Some(breaker) = &self.breaker else { break (None, slot) };
            if let Ok(pass) = breaker.try_pass(env.now()) {
                break (Some(pass), slot);
            }
            // Whoever waits for the breaker keeps no handler from running.
            drop(slot);
            drop(self.wait(breaker.pass(|| env.now())).await);
        };
        let state = Arc::clone(&self.state);
        let context = Context::new(state, Arc::clone(event), number, self.client.clone());
        let mut service = self.service.clone();
        let trace = event.trace().and_then(|trace| trace.after(env.unique_half()));
        let span = tracing::info_span!(
            "handle",
            topic = %event.topic, partition = event.partition, offset = event.offset, attempt = number,
            event_type = event.event_type(), traceparent = trace.map(tracing::field::display),
        );
        let began = env.now();
        let handling = async move { service.ready().await?.call(context).await };
        let handling = event::within_trace(trace, handling.instrument(span));
        let outcome = match AssertUnwindSafe(handling).catch_unwind().await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(error)) => Outcome::Retry(error.to_string()),
            Err(panic) => Outcome::Retry(format!("the handler panicked: {}", text_of(&panic))),
        };
        drop(slot);
        let now = env.now();
        let Some(pass) = pass else { return (outcome, true) };
        let counts = match outcome {
            // It says nothing about how handlers fare.
            Outcome::RetryAfter(_) | Outcome::Fatal(_) => false,
            Outcome::Retry(_) => pass.over(true, now - began, now),
            Outcome::Done | Outcome::Skip | Outcome::DeadLetter(_) => {
                pass.over(false, now - began, now)
            }
        };
        (outcome, counts)
    }

    /// Waits for something that is not the handler, and says so.
    async fn wait<F: Future>(&self, future: F) -> F::Output {
        struct Waiting<'a>(&'a Mutex<WorkerStats>);
        impl Drop for Waiting<'_> {
            fn drop(&mut self) {
                self.0.lock().waiting -= 1;
            }
        }
        self.stats.lock().waiting += 1;
        let _waiting = Waiting(&self.stats);
        future.await
    }
}

fn text_of(panic: &Box<dyn std::any::Any + Send>) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

/// How long a member that waits for something that is not its handler asks not to be taken for stuck.
pub(super) const EXTENSION: Duration = Duration::from_secs(60);
