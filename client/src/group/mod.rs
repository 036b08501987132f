//! Reading as a member of a consumer group: [`GroupConsumerBuilder`] says how, [`GroupEvents`] is the stream, [`Delivery`] an event of
//! it.
//!
//! Owns: the public face. Never: who reads what; the coordinator decides, and `session` keeps in touch with it.

mod admin;
mod membership;
mod session;
mod tracker;
mod types;

use std::ops::Deref;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use tokio::sync::{mpsc, oneshot, watch};
use tonic::Code;

use crate::breaker::BreakerState;
use crate::consumer::{ConsumerBuilder, EventBatch, Events};
use crate::error::{ConsumeError, Refusal, reason};
use crate::record::Event;
use crate::types::Start;

pub use types::{
    GroupDescription, GroupListing, GroupMember, GroupOffset, GroupPartition, GroupState,
    PartitionFlow,
};

use membership::{Arrived, HandedOut, Membership, Next};
use session::{Ask, GroupSettings, Session};

/// Says how to read as a member of a group; from [`ConsumerBuilder::group`].
#[derive(Clone, Debug)]
pub struct GroupConsumerBuilder {
    consumer: ConsumerBuilder,
    static_id: String,
    session_timeout: Duration,
    progress_timeout: Duration,
    commit_interval: Duration,
    is_explicit: bool,
    undone_max: usize,
}

/// Events that a member may have in hand, unless it says otherwise.
const UNDONE_MAX: usize = 10_000;

impl GroupConsumerBuilder {
    pub(crate) fn new(consumer: ConsumerBuilder) -> Self {
        Self {
            consumer,
            static_id: String::new(),
            session_timeout: Duration::ZERO,
            progress_timeout: Duration::ZERO,
            commit_interval: Duration::from_millis(500),
            is_explicit: false,
            undone_max: UNDONE_MAX,
        }
    }

    /// Where partitions start that the group has no progress in. Default: [`Start::Earliest`].
    pub fn start(mut self, start: Start) -> Self {
        self.consumer = self.consumer.start(start);
        self
    }

    /// See [`ConsumerBuilder::credit_bytes`].
    pub fn credit_bytes(mut self, bytes: usize) -> Self {
        self.consumer = self.consumer.credit_bytes(bytes);
        self
    }

    /// See [`ConsumerBuilder::rack`].
    pub fn rack(mut self, rack: impl Into<String>) -> Self {
        self.consumer = self.consumer.rack(rack);
        self
    }

    /// A name that outlives the process, a pod's for example: if it is back within the session timeout, it has its partitions
    /// back and nothing moves. No two processes may use the same one at a time: the later one fences the earlier one. Such a
    /// member does not leave when it is closed.
    pub fn static_id(mut self, id: impl Into<String>) -> Self {
        self.static_id = id.into();
        self
    }

    /// How long the group waits for this member when nothing is heard from it. Default: the broker's (10 s).
    pub fn session_timeout(mut self, timeout: Duration) -> Self {
        self.session_timeout = timeout;
        self
    }

    /// How long this member may hold partitions without taking or finishing an event, while there are some to take. Default: the
    /// broker's (5 min). [`GroupEvents::extend`] puts it off.
    pub fn progress_timeout(mut self, timeout: Duration) -> Self {
        self.progress_timeout = timeout;
        self
    }

    /// How long progress may stay uncommitted. Default: 500 ms.
    pub fn commit_interval(mut self, interval: Duration) -> Self {
        self.commit_interval = interval;
        self
    }

    /// Events are done when [`Delivery::ack`] says so, in any order, and not before: for handlers that work on several at a time.
    /// Otherwise an event is done when the next one is asked for.
    pub fn explicit_acks(mut self) -> Self {
        self.is_explicit = true;
        self
    }

    /// With explicit acknowledgement, the most events that are not done, or are done behind one that is not. With so many the stream
    /// waits. At least 1. Default: 10,000.
    pub fn undone_max(mut self, events: usize) -> Self {
        self.undone_max = events.max(1);
        self
    }

    /// Joins the group. When it returns, the group knows this member; events follow as partitions become free.
    pub async fn subscribe(self) -> Result<GroupEvents, ConsumeError> {
        let client = self.consumer.client.clone();
        let (start, topic) = (self.consumer.settings.start, self.consumer.settings.topic.clone());
        let group = self.consumer.settings.group.clone().unwrap_or_default();
        let env = client.shared.env.clone();
        let deadline = env.now() + client.shared.config.request_timeout;
        let reading = self.consumer.subscribe_to_nothing().await?;
        let topic_name: Arc<str> = Arc::from(topic.as_str());
        let membership = Arc::new(Membership::new(
            topic_name,
            start,
            self.undone_max,
            reading.orders,
            reading.places,
            reading.account,
        ));
        let draw = || env.below(u32::MAX);
        let settings = GroupSettings {
            group,
            topic: topic.clone(),
            member_id: format!("{:08x}{:08x}{:08x}{:08x}", draw(), draw(), draw(), draw()),
            static_id: self.static_id,
            session_timeout: self.session_timeout,
            progress_timeout: self.progress_timeout,
            commit_interval: self.commit_interval,
        };
        let member_id = settings.member_id.clone();
        let (asks, asked) = mpsc::unbounded_channel();
        let (joined_in, joined) = oneshot::channel();
        let session =
            Session::new(client.clone(), settings, Arc::clone(&membership), asked, joined_in);
        env.spawn(session.run());
        let events = GroupEvents {
            events: reading.events,
            membership,
            asks,
            member_id,
            is_explicit: self.is_explicit,
            last: None,
            run: None,
        };
        let late = || {
            let text = "no coordinator of the group could be reached in time";
            Refusal::local(reason::TIMEOUT, Code::DeadlineExceeded, text)
        };
        let outcome = match tokio::time::timeout_at(deadline, joined).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) | Err(_) => Err(late()),
        };
        match outcome {
            Ok(()) => Ok(events),
            Err(refusal) => Err(ConsumeError::CannotSubscribe { topic, refusal }),
        }
    }
}

/// The events of the partitions that this member of a group owns, each partition's in order.
///
/// Delivery is at least once: what was not committed when a process died, or a partition moved, comes again. An event is done when the
/// next one is asked for, or with [`GroupConsumerBuilder::explicit_acks`] when its [`Delivery`] is acknowledged. Progress is committed in
/// the background, never beyond an event that is not done. [`GroupEvents::close`] commits and leaves; dropping it does the same without
/// waiting, except that the last event does not count as done.
///
/// ```no_run
/// # async fn run(client: highwater_client::Client) -> Result<(), highwater_client::ConsumeError> {
/// use futures::StreamExt;
///
/// let mut events = client.consumer("orders").group("billing").subscribe().await?;
/// while let Some(event) = events.next().await {
///     let event = event?;
///     println!("{}:{} {:?}", event.partition, event.offset, event.value_str());
/// }
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct GroupEvents {
    events: Events,
    membership: Arc<Membership>,
    asks: mpsc::UnboundedSender<Ask>,
    member_id: String,
    is_explicit: bool,
    /// The event, run of events or batch that is done when the next one is asked for.
    last: Option<HandedOut>,
    /// `last` is a run: by which reading of its partition it came.
    run: Option<u64>,
}

impl GroupEvents {
    /// The partitions whose events this member is given now.
    pub fn partitions(&self) -> Vec<u32> {
        self.membership.partitions()
    }

    /// What the group knows this member by; drawn anew by every [`GroupConsumerBuilder::subscribe`].
    pub fn member_id(&self) -> &str {
        &self.member_id
    }

    /// Puts off the moment at which this member counts as stuck to `time` from now, unless it is later already.
    pub fn extend(&self, time: Duration) {
        self.membership.extend(u32::try_from(time.as_millis()).unwrap_or(u32::MAX));
    }

    /// See [`Membership::pauses_with`].
    pub(crate) fn pauses_with(&self, breaker: watch::Receiver<BreakerState>) {
        self.membership.pauses_with(breaker);
    }

    /// The next whole batch, for speed: all events of one partition that arrived together and were not yet taken one by one. `None` as
    /// for single events. A batch has no acknowledgement of its own: with [`GroupConsumerBuilder::explicit_acks`], too, all of
    /// it is done when the next batch or event is asked for, and not before.
    pub async fn next_batch(&mut self) -> Option<Result<EventBatch, ConsumeError>> {
        std::future::poll_fn(|context| self.poll_next_batch(context)).await
    }

    fn poll_next_batch(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<EventBatch, ConsumeError>>> {
        let given = self.poll_given(context, false, |events, context| {
            events.poll_next_batch(context).map_ok(|batch| {
                let ends = batch.events().first().zip(batch.events().last());
                let arrived = ends.map(|(first, last)| Arrived {
                    partition: batch.partition(),
                    generation: batch.generation(),
                    first: first.offset,
                    last: last.offset,
                    events: batch.len(),
                });
                (batch, arrived)
            })
        });
        given.map_ok(|(batch, it)| {
            self.last = Some(it);
            batch
        })
    }

    /// The next event of the run, if there is one at hand and nothing else to look at.
    fn go_on(&mut self) -> Option<Event> {
        let (generation, last) = self.run.zip(self.last)?;
        if !self.membership.goes_on() {
            return None;
        }
        let event = self.events.next_at_hand(last.partition, generation)?;
        self.membership.gave(event.offset);
        Some(event)
    }

    /// What arrives next and may be handed out. `poll` takes it from the reading and says what it is.
    fn poll_given<T>(
        &mut self,
        context: &mut Context<'_>,
        begins_run: bool,
        poll: impl Fn(
            &mut Events,
            &mut Context<'_>,
        ) -> Poll<Option<Result<(T, Option<Arrived>), ConsumeError>>>,
    ) -> Poll<Option<Result<(T, HandedOut), ConsumeError>>> {
        self.run = None;
        match self.membership.next(self.last.take(), context.waker()) {
            Next::Event => {}
            Next::Trouble(trouble) => return Poll::Ready(Some(Err(trouble))),
            Next::Later => return Poll::Pending,
            Next::End => return Poll::Ready(None),
        }
        loop {
            let (given, arrived) = match poll(&mut self.events, context) {
                Poll::Ready(Some(Ok(it))) => it,
                Poll::Ready(Some(Err(error))) => {
                    if let ConsumeError::PartitionEnded { partition, refusal, .. } = &error
                        && refusal.reason() == reason::OFFSET_OUT_OF_RANGE
                    {
                        self.membership.begin_anew(*partition);
                    }
                    return Poll::Ready(Some(Err(error)));
                }
                // No partition at the moment: the next one brings the first event.
                Poll::Ready(None) | Poll::Pending => return Poll::Pending,
            };
            // What was read of a partition that is somebody else's now is not given.
            let Some(arrived) = arrived else { continue };
            if let Some(it) = self.membership.hand_out(arrived, begins_run) {
                self.run = begins_run.then_some(arrived.generation);
                return Poll::Ready(Some(Ok((given, it))));
            }
        }
    }

    /// Commits what is done, and waits until that is stored.
    pub async fn commit(&self) -> Result<(), ConsumeError> {
        let (answer, stored) = oneshot::channel();
        let gone =
            || Refusal::local(reason::MEMBER_FENCED, Code::FailedPrecondition, "not a member");
        let outcome = match self.asks.send(Ask::Commit(answer)) {
            Ok(()) => stored.await.unwrap_or_else(|_| Err(gone())),
            Err(_) => Err(gone()),
        };
        outcome.map_err(|refusal| ConsumeError::NotCommitted { refusal })
    }

    /// Commits what is done, the last event included, and leaves the group.
    pub async fn close(mut self) {
        if let Some(last) = self.last.take() {
            self.membership.done(last);
        }
        let (answer, done) = oneshot::channel();
        if self.asks.send(Ask::Close(answer)).is_ok() {
            // The session may have ended by itself.
            _ = done.await;
        }
    }
}

impl Stream for GroupEvents {
    type Item = Result<Delivery, ConsumeError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if let Some(event) = this.go_on() {
            return Poll::Ready(Some(Ok(Delivery { event, unsettled: None })));
        }
        let given = this.poll_given(context, !this.is_explicit, |events, context| {
            Pin::new(&mut *events).poll_next(context).map_ok(|event| {
                let arrived = events.generation_at_hand().map(|generation| Arrived {
                    partition: event.partition,
                    generation,
                    first: event.offset,
                    last: event.offset,
                    events: 1,
                });
                (event, arrived)
            })
        });
        given.map_ok(|(event, it)| {
            if this.is_explicit {
                let membership = Arc::clone(&this.membership);
                return Delivery { event, unsettled: Some((it, membership)) };
            }
            this.last = Some(it);
            Delivery { event, unsettled: None }
        })
    }
}

/// An event in the hands of a handler. With explicit acknowledgement, one that is dropped without it holds the partition's progress up:
/// it comes again to whoever reads the partition next. It counts as not done until then ([`GroupConsumerBuilder::undone_max`]): a member
/// that waits for it in vain loses its partitions when its progress timeout has passed.
#[derive(Debug)]
pub struct Delivery {
    event: Event,
    /// With explicit acknowledgement, until it is acknowledged. Without, asking for the next event says that this one is done: whoever
    /// keeps what was in it may still be at work.
    unsettled: Option<(HandedOut, Arc<Membership>)>,
}

impl Delivery {
    /// The event is done. Without [`GroupConsumerBuilder::explicit_acks`] this changes nothing: it is when the next one is asked for.
    pub fn ack(mut self) {
        if let Some((it, membership)) = self.unsettled.take() {
            membership.done(it);
        }
    }

    /// The event.
    pub fn event(&self) -> &Event {
        &self.event
    }
}

impl Deref for Delivery {
    type Target = Event;

    fn deref(&self) -> &Event {
        &self.event
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        if let Some((it, membership)) = &self.unsettled {
            membership.dropped(*it);
        }
    }
}
