//! The one task behind a producer: moves batches from lanes to streams, and answers back to tickets.
//!
//! Owns: streams, routes, and when to try again. Never: rules of order and sequence (`partition` has them) or admission
//! (`shared`).
//!
//! Each turn of the loop takes in what happened, then looks at every active partition once ("pump"), then sleeps until
//! something happens or the earliest deadline. Work for a turn grows with active partitions, not with events.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use highwater_proto::v1;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::Code;

use crate::config::Backoff;
use crate::error::{Refusal, SendError, reason};
use crate::metadata::{Leader, TopicView};
use crate::producer::completion::BatchAck;
use crate::producer::gather::{Gathered, Lane, Take};
use crate::producer::partition::{Identity, Partition, Pending, Sent};
use crate::producer::shared::Shared;
use crate::producer::stream::{Heard, Stream};
use crate::refresher::{News, Refresher, earliest, sleep_until};

/// What a broker may take longer than the request timeout it was told, before its stream is given up.
const ANSWER_GRACE: Duration = Duration::from_secs(1);
/// How long an answer may be out before the driver asks whether somebody else leads by now: a leader that is cut off answers
/// for other partitions only.
const SUSPICION: Duration = Duration::from_secs(1);
/// The same for a stream on which nothing at all is heard while answers are out: a broker that is stopped or unreachable. Shorter
/// than an election, so that it is the election that a publisher waits for; longer than most syncs of a busy disk.
const SILENCE: Duration = Duration::from_millis(300);
/// Happenings taken in at once.
const EVENTS_AT_ONCE: usize = 256;

/// A stream and what is known of it.
struct Line {
    stream: Stream,
    address: Arc<str>,
    ready: bool,
    /// The broker said goodbye: only answers come.
    leaving: bool,
    last_heard: Instant,
}

/// See the module.
pub(crate) struct Driver {
    shared: Arc<Shared>,
    partitions: Vec<Partition>,
    leaders: Vec<Option<Leader>>,
    /// Partitions with anything gathered or in flight.
    active: BTreeSet<u32>,
    /// Streams by id; ids are never used twice.
    lines: HashMap<u64, Line>,
    by_address: HashMap<Arc<str>, u64>,
    next_stream: u64,
    /// Addresses that could not be reached, and when to try them again.
    avoided: HashMap<Arc<str>, (Backoff, Instant)>,
    /// Tries under way: the partition and stream of each.
    requests: HashMap<u64, (u32, u64)>,
    next_request: u64,
    identity: Option<Identity>,
    refresher: Refresher,
    heard_in: mpsc::UnboundedSender<(u64, Heard)>,
    heard: mpsc::UnboundedReceiver<(u64, Heard)>,
}

impl Drop for Driver {
    /// The runtime may drop the task at any moment: tickets must not wait for ever.
    fn drop(&mut self) {
        for partition in &mut self.partitions {
            partition.fail_all(&Refusal::connection("the client's runtime stopped"));
            for resolved in partition.take_resolved() {
                let (id, cost) = (resolved.id, resolved.cost);
                self.shared.resolve(id, &resolved.completion, cost, resolved.outcome);
            }
        }
        self.shared.abandon();
    }
}

impl Driver {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        // Bounded by what is in flight: one answer for each try.
        let (heard_in, heard) = mpsc::unbounded_channel();
        let refresher = Refresher::new(shared.client.clone(), shared.settings.topic.clone());
        Self {
            shared,
            partitions: Vec::new(),
            leaders: Vec::new(),
            active: BTreeSet::new(),
            lines: HashMap::new(),
            by_address: HashMap::new(),
            next_stream: 0,
            avoided: HashMap::new(),
            requests: HashMap::new(),
            next_request: 0,
            identity: None,
            refresher,
            heard_in,
            heard,
        }
    }

    /// Runs until the producer is closed and everything is resolved.
    pub(crate) async fn run(mut self) {
        let mut events = Vec::with_capacity(EVENTS_AT_ONCE);
        loop {
            let wake = self.turn();
            if self.shared.is_finished() {
                return;
            }
            tokio::select! {
                _count = self.heard.recv_many(&mut events, EVENTS_AT_ONCE) => {
                    let now = self.shared.client.shared.env.now();
                    for (stream, heard) in events.drain(..) {
                        self.on_heard(stream, heard, now);
                    }
                }
                answer = self.refresher.answer() => self.on_metadata(answer),
                () = self.shared.wake.notified() => {}
                () = sleep_until(wake) => {}
            }
        }
    }

    /// Looks at every active partition; returns when to look again at the latest.
    fn turn(&mut self) -> Option<Instant> {
        self.active.extend(self.shared.take_dirty());
        if self.partitions.is_empty() && !self.active.is_empty() {
            let metadata = &self.shared.client.shared.metadata;
            if let Some(view) = metadata.cached(&self.shared.settings.topic) {
                self.learn(&view);
            }
        }
        let now = self.shared.client.shared.env.now();
        let mut wake: Option<Instant> = None;
        let mut stalled = BTreeSet::new();
        for number in self.active.clone() {
            let next = self.pump(number, now, &mut stalled);
            wake = earliest(wake, next);
            self.hand_out(number);
        }
        for stream in stalled {
            let text = format!("no answer within {:?}", self.try_max());
            self.lose(stream, &Refusal::connection(text));
            // What was sent on it goes again after the wait that `lose` set: another turn finds out when.
            wake = Some(now);
        }
        if self.active.is_empty() {
            // Nobody needs to know at the moment.
            return None;
        }
        earliest(wake, self.refresher.turn(now))
    }

    fn try_max(&self) -> Duration {
        self.shared.settings.request_timeout + ANSWER_GRACE
    }

    /// Moves one partition on as far as it goes now; returns when to look again although nothing happened.
    fn pump(&mut self, number: u32, now: Instant, stalled: &mut BTreeSet<u64>) -> Option<Instant> {
        let after = self.shared.settings.delivery_timeout;
        let try_max = self.try_max();
        let Some(partition) = self.partitions.get_mut(number as usize) else {
            self.refresher.want();
            return None;
        };
        partition.expire(now, after);
        self.expire_gathered(number, now);
        let partition = self.partitions.get_mut(number as usize)?;
        let gathered_until =
            self.shared.with_lane(number, |lane| lane.oldest()).flatten().map(|at| at + after);
        if let Some(refusal) = partition.fenced.clone() {
            partition.fail_all(&refusal);
            self.fail_gathered(number, &refusal);
            return None;
        }
        if partition.is_idle() && gathered_until.is_none() && !partition.is_recovering() {
            self.active.remove(&number);
            return None;
        }
        stalled.extend(partition.stalled_stream(now, try_max));
        let mut deadline = earliest(partition.next_deadline(try_max), gathered_until);
        if let Some(sent) = partition.oldest_sent() {
            let heard = self.lines.get(&sent.stream).map_or(sent.at, |line| line.last_heard);
            let suspect_at = (sent.at + SUSPICION).min(sent.at.max(heard) + SILENCE);
            if suspect_at <= now {
                self.refresher.want();
            } else {
                deadline = earliest(deadline, Some(suspect_at));
            }
        }
        if partition.is_recovering() {
            if partition.is_waiting() {
                return deadline;
            }
            if let Some(retry_at) =
                partition.retry_at.filter(|at| *at > now && !partition.is_idle())
            {
                return earliest(deadline, Some(retry_at));
            }
            if let Err(error) = partition.end_recovery() {
                let text = error.to_string();
                self.poison(&Refusal::local(reason::INTERNAL, Code::Internal, text));
                return None;
            }
        }
        match self.line_to(number, now) {
            Route::Ready(line) => earliest(deadline, self.send(number, line, now)),
            Route::NotBefore(at) => earliest(deadline, Some(at)),
            Route::Waiting => deadline,
        }
    }

    /// The stream to a partition's leader; opened if there is none.
    fn line_to(&mut self, number: u32, now: Instant) -> Route {
        let Some(leader) = self.leaders.get(number as usize).cloned().flatten() else {
            self.refresher.want();
            return Route::Waiting;
        };
        if let Some(id) = self.by_address.get(&leader.address) {
            return match self.lines.get(id) {
                Some(line) if line.leaving => {
                    self.refresher.want();
                    Route::Waiting
                }
                Some(line) if line.ready => Route::Ready(*id),
                _ => Route::Waiting,
            };
        }
        if let Some((_, again_at)) = self.avoided.get(&leader.address)
            && *again_at > now
        {
            self.refresher.want();
            return Route::NotBefore(*again_at);
        }
        // The first stream brings the producer id that all others carry too.
        let first = self.shared.settings.idempotent && self.identity.is_none();
        if !(first && self.lines.values().any(|line| !line.ready)) {
            self.open(leader.address, now);
        }
        Route::Waiting
    }

    fn open(&mut self, address: Arc<str>, now: Instant) {
        let client = &self.shared.client;
        let init = v1::ProduceInit {
            client: Some(client.shared.connections.client_info()),
            producer_id: self.identity.map_or(0, |identity| identity.producer_id),
            idempotent: self.shared.settings.idempotent,
        };
        self.next_stream += 1;
        let id = self.next_stream;
        let stream = Stream::open(client, address.clone(), init, id, self.heard_in.clone());
        self.by_address.insert(address.clone(), id);
        self.lines
            .insert(id, Line { stream, address, ready: false, leaving: false, last_heard: now });
    }

    /// Sends what is to be sent of a partition; returns when a lingering batch is due.
    fn send(&mut self, number: u32, line: u64, now: Instant) -> Option<Instant> {
        loop {
            let partition = self.partitions.get_mut(number as usize)?;
            if partition.next_unsent().is_none() {
                if !partition.has_room() {
                    return None;
                }
                match self.shared.take(number, now, partition.is_idle()) {
                    Take::Batch(gathered) => self.add(number, gathered),
                    Take::NotBefore(at) => return Some(at),
                    Take::WhenIdle | Take::Nothing => return None,
                }
                continue;
            }
            let request_id = self.next_request;
            let pending = partition.next_unsent()?;
            pending.sent = Some(Sent { stream: line, request_id, at: now });
            let settings = &self.shared.settings;
            let timeout_ms = settings.request_timeout.as_millis();
            let batch = v1::ProduceBatch {
                request_id,
                topic: settings.topic.clone(),
                topic_id: self.shared.topic_id().to_owned(),
                partition: number,
                acks: v1::Acks::from(settings.acks).into(),
                batch: pending.batch.clone(),
                timeout_ms: u32::try_from(timeout_ms).unwrap_or(u32::MAX),
            };
            self.next_request += 1;
            self.requests.insert(request_id, (number, line));
            if let Some(line) = self.lines.get(&line) {
                line.stream.send(batch);
            }
        }
    }

    /// Encodes a gathered batch and puts it in flight.
    fn add(&mut self, number: u32, mut gathered: Gathered) {
        let Some(partition) = self.partitions.get_mut(number as usize) else { return };
        if let Some(of_producer) = self.identity {
            let (Identity { producer_id, epoch }, sequence) = partition.stamp(of_producer);
            gathered.builder.set_producer(producer_id, epoch, sequence);
        }
        let record_count = gathered.builder.record_count();
        let batch = match gathered.builder.build() {
            Ok(batch) => batch,
            Err(error) => {
                let error = SendError::InvalidRecord { source: Arc::new(error) };
                self.shared.fail_gathered(vec![gathered], &error);
                return;
            }
        };
        let Gathered { id, builder, completion, cost, since } = gathered;
        partition.add(Pending {
            id,
            completion,
            cost,
            deadline: since + self.shared.settings.delivery_timeout,
            record_count,
            batch,
            sent: None,
            doubt: false,
            sequence_refused: false,
            outcome: None,
            last: None,
        });
        self.shared.recycle(number, builder);
        self.shared.move_sticky(number);
    }

    /// Fails gathered batches that are out of time.
    fn expire_gathered(&mut self, number: u32, now: Instant) {
        let after = self.shared.settings.delivery_timeout;
        let Some(latest) = now.checked_sub(after) else { return };
        let old = self.shared.with_lane(number, |lane| lane.take_older(latest)).unwrap_or_default();
        if !old.is_empty() {
            let last =
                self.partitions.get(number as usize).and_then(|known| known.obstacle.clone());
            let error = SendError::TimedOut { after, may_have_been_written: false, last };
            self.shared.fail_gathered(old, &error);
        }
    }

    fn fail_gathered(&mut self, number: u32, refusal: &Refusal) {
        let batches = self.shared.with_lane(number, Lane::take_all).unwrap_or_default();
        let refusal = refusal.clone();
        let error = SendError::Refused { refusal, may_have_been_written: false };
        self.shared.fail_gathered(batches, &error);
    }

    /// Tells the tickets what a partition has resolved.
    fn hand_out(&mut self, number: u32) {
        let Some(partition) = self.partitions.get_mut(number as usize) else { return };
        for resolved in partition.take_resolved() {
            let (id, cost) = (resolved.id, resolved.cost);
            self.shared.resolve(id, &resolved.completion, cost, resolved.outcome);
        }
    }

    fn on_heard(&mut self, stream: u64, heard: Heard, now: Instant) {
        let Some(line) = self.lines.get_mut(&stream) else {
            // Of a stream that was given up before: its batches have gone elsewhere.
            return;
        };
        line.last_heard = now;
        match heard {
            Heard::Opened(opened) => self.on_opened(stream, &opened),
            Heard::Ack(ack) => self.on_ack(stream, &ack),
            Heard::Failure(failure) => self.on_failure(failure),
            Heard::Goodbye => {
                if let Some(line) = self.lines.get_mut(&stream) {
                    line.leaving = true;
                }
                self.refresher.want();
            }
            Heard::Lost(refusal) => {
                self.lose(stream, &refusal);
                self.refresher.want();
            }
        }
    }

    fn on_opened(&mut self, stream: u64, opened: &v1::ProduceInitialized) {
        let Some(line) = self.lines.get_mut(&stream) else { return };
        line.ready = true;
        self.avoided.remove(&line.address);
        self.shared.limit_batches(opened.batch_bytes_max as usize);
        if self.shared.settings.idempotent && self.identity.is_none() {
            let epoch = i16::try_from(opened.producer_epoch).unwrap_or(i16::MAX);
            self.identity = Some(Identity { producer_id: opened.producer_id, epoch });
        }
    }

    fn on_ack(&mut self, stream: u64, ack: &v1::ProduceAck) {
        let Some((number, _)) = self.requests.get(&ack.request_id).copied() else { return };
        if ack.partition != number || ack.base_offset < 0 {
            let text = format!("an answer that makes no sense: {ack:?}");
            self.lose(stream, &Refusal::connection(text));
            return;
        }
        self.requests.remove(&ack.request_id);
        let Some(partition) = self.partitions.get_mut(number as usize) else { return };
        partition.on_ack(
            ack.request_id,
            BatchAck {
                partition: number,
                base_offset: ack.base_offset,
                epoch: ack.leader_epoch,
                duplicate: ack.duplicate,
                reached: ack.reached().into(),
                append_time_ms: ack.append_time_ms,
            },
        );
        self.hand_out(number);
    }

    fn on_failure(&mut self, failure: v1::ProduceFailure) {
        let Some((number, _)) = self.requests.remove(&failure.request_id) else { return };
        let Some(partition) = self.partitions.get_mut(number as usize) else { return };
        let refusal = Refusal::from_detail(&failure.error.unwrap_or_default());
        let hint = refusal.leader_hint();
        tracing::debug!(partition = number, %refusal, "batch not accepted");
        let begun = partition.on_failure(failure.request_id, refusal);
        let first = begun && partition.backoff.failures() == 0;
        if begun {
            self.delay(number);
        }
        self.hand_out(number);
        self.shared.move_sticky(number);
        let address = hint.as_ref().and_then(|hint| {
            let known = || self.shared.client.shared.metadata.address_of(hint.node_id);
            if hint.address.is_empty() { known() } else { Some(Arc::from(hint.address.as_str())) }
        });
        if let (Some(hint), Some(address)) = (hint, address)
            && let Some(slot) = self.leaders.get_mut(number as usize)
        {
            let elsewhere = slot.as_ref().is_none_or(|leader| leader.address != address);
            let epoch = slot.as_ref().map_or(0, |leader| leader.epoch);
            *slot = Some(Leader { node_id: hint.node_id, epoch, address });
            // The first hint is worth following at once; after that, nodes may be passing us back and forth.
            if first
                && elsewhere
                && let Some(partition) = self.partitions.get_mut(number as usize)
            {
                partition.retry_at = None;
                return;
            }
        }
        self.refresher.want();
    }

    /// Sets when a partition that has begun to recover may try again.
    fn delay(&mut self, number: u32) {
        let shared = &self.shared.client.shared;
        if let Some(partition) = self.partitions.get_mut(number as usize) {
            partition.retry_at = Some(partition.backoff.failed(&shared.config.retry, &shared.env));
        }
    }

    /// Gives up a stream: what was sent on it is in doubt.
    fn lose(&mut self, stream: u64, refusal: &Refusal) {
        let Some(line) = self.lines.remove(&stream) else { return };
        tracing::debug!(address = %line.address, %refusal, "produce stream lost");
        if self.by_address.get(&line.address) == Some(&stream) {
            self.by_address.remove(&line.address);
        }
        let shared = &self.shared.client.shared;
        if !line.leaving {
            let now = shared.env.now();
            let entry = self.avoided.entry(line.address.clone());
            let (backoff, again_at) = entry.or_insert_with(|| (Backoff::default(), now));
            *again_at = backoff.failed(&shared.config.retry, &shared.env);
        }
        self.requests.retain(|_, (_, on)| *on != stream);
        for number in self.active.clone() {
            let Some(partition) = self.partitions.get_mut(number as usize) else { continue };
            if partition.on_stream_lost(stream, refusal) {
                self.delay(number);
            }
            self.hand_out(number);
        }
        // Partitions that only waited for the stream say later what stood in their way.
        for number in &self.active {
            let Some(partition) = self.partitions.get_mut(*number as usize) else { continue };
            let leader = self.leaders.get(*number as usize).and_then(Option::as_ref);
            if leader.is_some_and(|leader| leader.address == line.address) {
                partition.obstacle.get_or_insert_with(|| refusal.clone());
            }
        }
    }

    fn on_metadata(&mut self, answer: Result<Arc<TopicView>, Refusal>) {
        match self.refresher.judge(answer) {
            News::View(view) => self.learn(&view),
            News::Gone(refusal) => self.poison(&refusal),
            News::Obstacle(refusal) => {
                for partition in &mut self.partitions {
                    partition.obstacle.get_or_insert_with(|| refusal.clone());
                }
            }
        }
    }

    /// Takes in where the partitions are led.
    fn learn(&mut self, view: &TopicView) {
        self.refresher.knows(view);
        if !self.shared.learn(view) {
            let topic = &self.shared.settings.topic;
            let text = format!("topic '{topic}' was deleted and created again");
            let refusal = Refusal::local(reason::TOPIC_ID_MISMATCH, Code::FailedPrecondition, text);
            self.poison(&refusal);
            return;
        }
        while self.partitions.len() < view.leaders.len() {
            self.partitions.push(Partition::new(self.shared.settings.idempotent));
        }
        let mut moved = Vec::new();
        self.leaders.resize(self.partitions.len(), None);
        for ((slot, new), number) in self.leaders.iter_mut().zip(&view.leaders).zip(0..) {
            let stale = match (&slot, new) {
                (Some(old), Some(new)) => old.epoch > new.epoch,
                _ => false,
            };
            if slot != new && !stale {
                let old = std::mem::replace(slot, new.clone());
                moved.push((number, old));
            }
        }
        for (number, old) in moved {
            self.refresher.was_new();
            let moved_away = match (&old, &self.leaders[number as usize]) {
                (Some(old), Some(new)) => old.address != new.address,
                _ => false,
            };
            if let Some(old) = old.filter(|_| moved_away && self.shared.settings.idempotent) {
                self.abandon_tries(number, &old.address);
            }
            if let Some(partition) = self.partitions.get_mut(number as usize) {
                // Whoever leads now has not refused anything yet.
                partition.retry_at = None;
            }
        }
    }

    /// Waits no longer for what a former leader has to say of a partition: it may be cut off. What it has written is
    /// recognised by the new one.
    fn abandon_tries(&mut self, number: u32, address: &Arc<str>) {
        let Some(line) = self.by_address.get(address).copied() else { return };
        self.requests.retain(|_, (of, on)| !(*of == number && *on == line));
        let text = format!("{address} does not lead the partition any more");
        let refusal = Refusal::local(reason::NOT_LEADER, Code::Unavailable, text);
        if let Some(partition) = self.partitions.get_mut(number as usize) {
            partition.on_stream_lost(line, &refusal);
        }
        self.hand_out(number);
    }

    /// Ends the producer: nothing that it holds or is given can be written any more.
    fn poison(&mut self, refusal: &Refusal) {
        self.shared.poison(refusal);
        for number in 0..self.partitions.len() {
            let Ok(number) = u32::try_from(number) else { break };
            if let Some(partition) = self.partitions.get_mut(number as usize) {
                partition.fail_all(refusal);
            }
            self.hand_out(number);
        }
    }
}

/// How a partition's leader can be reached.
enum Route {
    /// Over this stream.
    Ready(u64),
    /// Not before this moment.
    NotBefore(Instant),
    /// Not until something happens.
    Waiting,
}
