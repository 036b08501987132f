//! Workers: async handlers of typed events, with everything around them that a service needs and nobody wants to write again.
//!
//! Owns: the public face, the reading of topics, the end of a worker. Never: what a handler does.
//!
//! ```no_run
//! use highwater_client::event::Event;
//! use highwater_client::worker::{Context, Outcome};
//! use highwater_client::Client;
//! use serde::{Deserialize, Serialize};
//! use std::time::Duration;
//!
//! #[derive(Serialize, Deserialize, Event)]
//! #[event(name = "order.placed", key = "order_id")]
//! struct OrderPlaced { order_id: String }
//!
//! struct Shop { /* pools, clients, settings */ }
//!
//! async fn charge(event: OrderPlaced, context: Context<Shop>) -> Outcome {
//!     // ...
//!     Outcome::Done
//! }
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::from_env().await?;
//! let worker = client.worker("payments", Shop {}).topic("orders").on(charge).start().await?;
//! worker.run_until(async { _ = tokio::signal::ctrl_c().await }, Duration::from_secs(20)).await?;
//! # Ok(()) }
//! ```
//!
//! # What can be relied on
//!
//! - An event is handled at least once, and its progress is committed only when something has become of it: done, skipped, or durable in
//!   the dead-letter topic. With an [`Inbox`] it is handled once, as far as the inbox remembers.
//! - Events with the same key are handled one after the other, in order, also while one of them is tried again. Others go on meanwhile.
//! - At most [`WorkerBuilder::concurrency`] handlers run at once, and a bounded number of events is at hand.
//! - While the [breaker](BreakerPolicy) is open nothing is read and no attempt is counted: a database that is down costs time, not
//!   events. Only what fails while others succeed goes to the dead-letter topic.

mod dead_letter;
mod handler;
mod inbox;
mod lanes;
mod outcome;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tower::util::{BoxCloneSyncService, ServiceExt};
use tower::{Layer, Service};

use crate::breaker::CircuitBreaker;
pub use crate::breaker::{BreakerPolicy, BreakerState};
use crate::client::Client;
use crate::config::RetryPolicy;
use crate::error::{AdminError, ConsumeError};
use crate::event::{self, Cause};
use crate::group::{GroupConsumerBuilder, GroupEvents};

pub use dead_letter::{
    DEAD_LETTER_ATTEMPTS, DEAD_LETTER_GROUP, DEAD_LETTER_OFFSET, DEAD_LETTER_PARTITION,
    DEAD_LETTER_REASON, DEAD_LETTER_TOPIC,
};
pub use handler::{Context, HandlerService};
pub use inbox::{EventId, Inbox, MemoryInbox};
pub use outcome::Outcome;

use handler::{Router, Routes};
use lanes::{EXTENSION, Lanes, Phase};

/// What a worker's members of the group are told.
type Membership = Box<dyn Fn(GroupConsumerBuilder) -> GroupConsumerBuilder + Send + Sync>;

/// A layer, whatever its type.
type Wrap<S> = Box<dyn FnOnce(HandlerService<S>) -> HandlerService<S> + Send>;

/// Says what to handle and how; from [`Client::worker`].
pub struct WorkerBuilder<S> {
    client: Client,
    group: String,
    state: Arc<S>,
    topics: Vec<String>,
    routes: Routes<S>,
    /// What is wrong with what was said.
    mistake: Option<String>,
    layers: Vec<Wrap<S>>,
    concurrency: usize,
    retry: RetryPolicy,
    failures_max: u32,
    dead_letter: Option<String>,
    inbox: Option<Arc<dyn Inbox>>,
    breaker: Option<BreakerPolicy>,
    membership: Membership,
}

impl<S> std::fmt::Debug for WorkerBuilder<S> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = formatter.debug_struct("WorkerBuilder");
        shown.field("group", &self.group).field("topics", &self.topics).finish_non_exhaustive()
    }
}

impl Client {
    /// Handles events as a member of a consumer group. All handlers share `state`; `()` if there is none.
    pub fn worker<S: Send + Sync + 'static>(
        &self,
        group: impl Into<String>,
        state: impl Into<Arc<S>>,
    ) -> WorkerBuilder<S> {
        WorkerBuilder {
            client: self.clone(),
            group: group.into(),
            state: state.into(),
            topics: Vec::new(),
            routes: Routes::default(),
            mistake: None,
            layers: Vec::new(),
            concurrency: 16,
            retry: RetryPolicy {
                backoff_first: Duration::from_millis(100),
                backoff_max: Duration::from_secs(30),
            },
            failures_max: 10,
            dead_letter: None,
            inbox: None,
            breaker: Some(BreakerPolicy::default()),
            membership: Box::new(|builder| builder),
        }
    }
}

impl<S: Send + Sync + 'static> WorkerBuilder<S> {
    /// Reads this topic, too.
    pub fn topic(mut self, topic: impl Into<String>) -> Self {
        self.topics.push(topic.into());
        self
    }

    /// Handles events of type `E`. Events of types that have no handler are skipped; a record of type `E` that cannot be decoded goes to
    /// the dead-letter topic.
    pub fn on<E, F, Fut>(mut self, handler: F) -> Self
    where
        E: event::Event,
        F: Fn(E, Context<S>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output: Into<Outcome>> + Send + 'static,
    {
        if !self.routes.add(handler) {
            self.mistake = Some(format!("{} has two handlers; leave one", E::event_type()));
        }
        self
    }

    /// Puts a tower layer around all handlers; the last one said is the outermost. It wraps each attempt: what it answers with as an error
    /// is a failed attempt. A service that cannot be cloned, [`tower::limit::RateLimit`] for example, needs a buffer around it.
    ///
    /// ```no_run
    /// # use highwater_client::worker::WorkerBuilder;
    /// # fn with(builder: WorkerBuilder<()>) -> WorkerBuilder<()> {
    /// use std::time::Duration;
    ///
    /// use tower::ServiceBuilder;
    /// use tower::timeout::TimeoutLayer;
    ///
    /// builder
    ///     .layer(TimeoutLayer::new(Duration::from_secs(5)))
    ///     .layer(ServiceBuilder::new().buffer(64).rate_limit(100, Duration::from_secs(1)).into_inner())
    /// # }
    /// ```
    pub fn layer<L>(mut self, layer: L) -> Self
    where
        L: Layer<HandlerService<S>> + Send + 'static,
        L::Service: Service<Context<S>, Response = Outcome, Error: Into<Cause>, Future: Send>
            + Clone
            + Send
            + Sync
            + 'static,
    {
        self.layers.push(Box::new(move |inner| {
            BoxCloneSyncService::new(layer.layer(inner).map_err(Into::into))
        }));
        self
    }

    /// How many handlers run at once. Default: 16. Twice as many events are at hand at the most.
    pub fn concurrency(mut self, handlers: usize) -> Self {
        self.concurrency = handlers;
        self
    }

    /// How long to wait between attempts. Default: 100 ms doubling to 30 s, each shortened by a random part of up to half.
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.retry = policy;
        self
    }

    /// After so many failed attempts an event goes to the dead-letter topic. Default: 10. Attempts that failed while the breaker was about
    /// to open, open, or half-open do not count, which is why this must be more than [`BreakerPolicy::calls_min`].
    pub fn failures_max(mut self, failures: u32) -> Self {
        self.failures_max = failures;
        self
    }

    /// The dead-letter topic. Default: the group's name with `.dead-letter` behind. It is created with one partition if there is none.
    pub fn dead_letter(mut self, topic: impl Into<String>) -> Self {
        self.dead_letter = Some(topic.into());
        self
    }

    /// Does not handle again what is in this inbox. Default: none.
    pub fn inbox(mut self, inbox: impl Inbox) -> Self {
        self.inbox = Some(Arc::new(inbox));
        self
    }

    /// When to stop handling for a while because handlers keep failing. Default: [`BreakerPolicy::default`].
    pub fn breaker(mut self, policy: BreakerPolicy) -> Self {
        self.breaker = Some(policy);
        self
    }

    /// Handles on, however many handlers fail.
    pub fn without_breaker(mut self) -> Self {
        self.breaker = None;
        self
    }

    /// Changes how the group is joined: its timeouts, where it starts, a static id.
    pub fn membership(
        mut self,
        change: impl Fn(GroupConsumerBuilder) -> GroupConsumerBuilder + Send + Sync + 'static,
    ) -> Self {
        self.membership = Box::new(change);
        self
    }

    fn check(&self) -> Result<(), WorkerError> {
        let told = |why: &str| Err(WorkerError::Misconfigured { why: why.to_owned() });
        if let Some(mistake) = &self.mistake {
            return told(mistake);
        }
        if self.topics.is_empty() {
            return told("there is no topic to read: say .topic(\"...\")");
        }
        if self.routes.is_empty() {
            return told("there is no handler: say .on(...)");
        }
        if self.concurrency == 0 || self.failures_max == 0 {
            return told("concurrency and failures_max are numbers from 1 on");
        }
        let calls_min = self.breaker.map_or(0, |policy| policy.calls_min);
        if self.failures_max <= calls_min {
            let failures_max = self.failures_max;
            return told(&format!(
                "with failures_max {failures_max} an event is given up before the breaker can open after {calls_min} calls: \
                 let failures_max be more than the breaker's calls_min"
            ));
        }
        Ok(())
    }

    /// Joins the group and begins to handle.
    pub async fn start(self) -> Result<Worker, WorkerError> {
        self.check()?;
        let env = self.client.shared.env.clone();
        let graveyard_topic =
            self.dead_letter.unwrap_or_else(|| format!("{}.dead-letter", self.group));
        dead_letter::ensure(&self.client, &graveyard_topic).await.map_err(|error| {
            let (topic, error) = (graveyard_topic.clone(), Box::new(error));
            WorkerError::DeadLetterTopic { topic, error }
        })?;
        let routes = Arc::new(self.routes);
        let router = Router { routes: Arc::clone(&routes) };
        let router = router.map_err(|never: Infallible| -> Cause { match never {} });
        let mut service: HandlerService<S> = BoxCloneSyncService::new(router);
        for layer in self.layers {
            service = layer(service);
        }
        let at_hand_max = self.concurrency.saturating_mul(2).min(Semaphore::MAX_PERMITS);
        let at_hand_max = u32::try_from(at_hand_max).unwrap_or(u32::MAX);
        let (phase, _) = watch::channel(Phase::Running);
        let breaker = self.breaker.map(|policy| Arc::new(CircuitBreaker::new(policy, env.now())));
        let lanes = Arc::new(Lanes {
            graveyard: self.client.producer(graveyard_topic).build(),
            client: self.client.clone(),
            group: self.group.clone(),
            state: self.state,
            routes,
            service,
            retry: self.retry,
            failures_max: self.failures_max,
            inbox: self.inbox,
            breaker,
            running: Arc::new(Semaphore::new(self.concurrency.min(Semaphore::MAX_PERMITS))),
            at_hand: Arc::new(Semaphore::new(at_hand_max as usize)),
            at_hand_max,
            phase,
            stats: Mutex::default(),
            error: Mutex::default(),
            lanes: Mutex::default(),
        });
        let mut readers = Vec::new();
        for topic in self.topics {
            let member = self.client.consumer(topic).group(self.group.clone());
            let subscribed = (self.membership)(member).explicit_acks().subscribe().await;
            // Those that have begun end when the worker is dropped.
            let events = subscribed.map_err(|error| WorkerError::Consume(Box::new(error)))?;
            if let Some(breaker) = &lanes.breaker {
                events.pauses_with(breaker.watch());
            }
            readers.push(events);
        }
        let tasks =
            readers.into_iter().map(|events| env.spawn(read(Arc::clone(&lanes), events))).collect();
        Ok(Worker { hands: lanes, tasks })
    }
}

/// Reads one topic until the worker ends; then waits until nothing is at hand, commits and leaves.
async fn read<S: Send + Sync + 'static>(lanes: Arc<Lanes<S>>, mut events: GroupEvents) {
    let mut sign = tokio::time::interval(EXTENSION / 4);
    let mut place = None;
    let ended = loop {
        let held = match place.take() {
            Some(held) => held,
            None => tokio::select! {
                held = lanes.place() => held,
                () = lanes.reached(Phase::Draining) => break None,
                _ = sign.tick() => {
                    extend(&lanes, &events);
                    continue;
                }
            },
        };
        let next = tokio::select! {
            next = events.next() => next,
            () = lanes.reached(Phase::Draining) => break None,
            _ = sign.tick() => {
                extend(&lanes, &events);
                place = Some(held);
                continue;
            }
        };
        match next {
            Some(Ok(delivery)) => lanes.dispatch(delivery, held),
            Some(Err(error @ ConsumeError::Fenced { .. })) => {
                break Some(WorkerError::Consume(Box::new(error)));
            }
            Some(Err(error)) => tracing::warn!(%error, "reading is disturbed"),
            None => break Some(WorkerError::Ended),
        }
    };
    if let Some(error) = ended {
        lanes.fail(error);
    }
    tokio::select! {
        () = lanes.drained() => {}
        () = lanes.reached(Phase::Abandoned) => {}
    }
    events.close().await;
}

/// Events that wait for something else than their handler do not make this member a stuck one.
fn extend<S: Send + Sync + 'static>(lanes: &Lanes<S>, events: &GroupEvents) {
    if lanes.is_waiting() {
        events.extend(EXTENSION);
    }
}

/// What a worker can be asked whatever its state's type.
trait Hands: Send + Sync {
    fn enter(&self, phase: Phase);
    fn stats(&self) -> WorkerStats;
    fn breaker(&self) -> Option<watch::Receiver<BreakerState>>;
    fn phases(&self) -> watch::Receiver<Phase>;
    fn take_error(&self) -> Option<WorkerError>;
}

impl<S: Send + Sync + 'static> Hands for Lanes<S> {
    fn enter(&self, phase: Phase) {
        Lanes::enter(self, phase);
    }

    fn stats(&self) -> WorkerStats {
        let mut stats = *self.stats.lock();
        let free = u32::try_from(self.at_hand.available_permits()).unwrap_or(0);
        stats.at_hand = self.at_hand_max.saturating_sub(free);
        stats
    }

    fn breaker(&self) -> Option<watch::Receiver<BreakerState>> {
        self.breaker.as_ref().map(|breaker| breaker.watch())
    }

    fn phases(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    fn take_error(&self) -> Option<WorkerError> {
        self.error.lock().take()
    }
}

/// A running worker. Dropped, it lets go of everything at once and leaves; what was not done comes again.
pub struct Worker {
    hands: Arc<dyn Hands>,
    tasks: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Worker").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.hands.enter(Phase::Abandoned);
    }
}

impl Worker {
    /// What it has done so far.
    pub fn stats(&self) -> WorkerStats {
        self.hands.stats()
    }

    /// The breaker's state, and how it changes; `None` without one.
    pub fn breaker(&self) -> Option<watch::Receiver<BreakerState>> {
        self.hands.breaker()
    }

    /// Completes when the worker has ended by itself: a handler said [`Outcome::Fatal`], or another process has its place in the group.
    pub async fn failed(&self) {
        let mut phases = self.hands.phases();
        // The sender lives as long as `self`.
        _ = phases.wait_for(|phase| *phase == Phase::Abandoned).await;
    }

    /// Ends in good order: takes no more events, lets handlers finish for at most `drain`, commits, leaves. What is not done by then is
    /// given up and comes again to whoever reads it next.
    pub async fn shutdown(mut self, drain: Duration) -> Result<(), WorkerError> {
        self.hands.enter(Phase::Draining);
        let tasks = std::mem::take(&mut self.tasks);
        let mut ending = futures::future::join_all(tasks);
        if tokio::time::timeout(drain, &mut ending).await.is_err() {
            self.hands.enter(Phase::Abandoned);
            // Leaving has a deadline of its own.
            ending.await;
        }
        self.hands.take_error().map_or(Ok(()), Err)
    }

    /// Works until `signal` completes, then ends as [`Worker::shutdown`] does; or until it ends by itself, with the reason.
    pub async fn run_until(
        self,
        signal: impl Future<Output = ()>,
        drain: Duration,
    ) -> Result<(), WorkerError> {
        tokio::select! {
            () = signal => {}
            () = self.failed() => {}
        }
        self.shutdown(drain).await
    }
}

/// What a worker has done since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkerStats {
    /// Events that were done.
    pub done: u64,
    /// Events that nobody handles, or whose handler skipped them.
    pub skipped: u64,
    /// Events that the inbox knew.
    pub duplicates: u64,
    /// Attempts that were followed by another one.
    pub retried: u64,
    /// Events that went to the dead-letter topic.
    pub dead_lettered: u64,
    /// Events at hand now.
    pub at_hand: u32,
    /// Those of them that wait for their next attempt or for the breaker.
    pub waiting: u32,
}

/// A worker that could not begin, or ended by itself.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorkerError {
    /// What it was told makes no sense.
    #[error("a worker cannot be set up like this: {why}")]
    Misconfigured {
        /// What is wrong and what would be right.
        why: String,
    },
    /// There is no dead-letter topic and none could be created.
    #[error("no dead-letter topic '{topic}': {error}")]
    DeadLetterTopic {
        /// Its name.
        topic: String,
        /// Why.
        error: Box<AdminError>,
    },
    /// A topic cannot be read.
    #[error(transparent)]
    Consume(Box<ConsumeError>),
    /// The membership of the group has ended without a reason.
    #[error("the membership of the group has ended")]
    Ended,
    /// A handler said that the service cannot go on.
    #[error("the handler of {at} ended the worker: {why}")]
    Fatal {
        /// The event: topic, partition and offset.
        at: String,
        /// The handler's reason.
        why: String,
    },
}

impl WorkerError {
    /// Whether the same may succeed later.
    pub fn is_retriable(&self) -> bool {
        match self {
            Self::DeadLetterTopic { error, .. } => error.is_retriable(),
            Self::Consume(error) => error.is_retriable(),
            Self::Ended => true,
            Self::Misconfigured { .. } | Self::Fatal { .. } => false,
        }
    }

    /// Whether something may have taken effect all the same: handlers may have run.
    pub fn may_have_been_written(&self) -> bool {
        matches!(self, Self::Fatal { .. })
    }
}
