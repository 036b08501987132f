//! The one task behind a subscription: keeps one stream to each leader, and every partition on one of them.
//!
//! Owns: streams, credit, when to try again. Never: decoding (`events` does that where the service reads) or the rule of
//! continuity (`cursor` has it).
//!
//! Credit: the bytes bound is split evenly among the streams. What brokers may still send and what waits here add up to no
//! more than the bound, except that each broker's last message may exceed it, and that a stream which got its share when there
//! were fewer streams keeps that until it has used it up: twice the bound at the worst.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use highwater_proto::v1;
use highwater_proto::v1::subscribe_request::Message as Request;
use highwater_proto::v1::subscribe_response::Message as Response;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tonic::Code;

use crate::client::Client;
use crate::config::Backoff;
use crate::consumer::Settings;
use crate::consumer::cursor::Cursor;
use crate::consumer::queue::{Account, Chunk, Item, Order, Place, Places, Seek};
use crate::consumer::stream::{Heard, Stream};
use crate::error::{ConsumeError, Refusal, reason};
use crate::metadata::{Leader, TopicView};
use crate::refresher::{News, Refresher, earliest, sleep_until};
use crate::types::Start;

/// Records are not what bounds a subscription here: more than any stream will carry.
const RECORDS_UNBOUNDED: u64 = 1 << 50;
/// How much more than its credit a broker may send before its stream is given up: one message.
const OVERDRAFT_BYTES_MAX: i64 = 8 << 20;
/// Happenings taken in at once.
const EVENTS_AT_ONCE: usize = 64;

/// A stream and what is known of it.
struct Line {
    stream: Stream,
    address: Arc<str>,
    opened: bool,
    last_heard: Instant,
    /// Bytes that the broker may still send; below zero after a message that exceeded them.
    credit: i64,
}

impl Line {
    /// Says that a partition is not to be read any more.
    fn stop(&self, topic: &str, partition: u32) {
        let topic = topic.to_owned();
        self.stream.send(Request::Stop(v1::StopPartition { topic, partition }));
    }
}

/// Where a partition is read from: the replica nearby, if there is one, or the leader.
fn source<'a>(
    leaders: &'a [Option<Leader>],
    number: u32,
    cursor: &'a Cursor,
) -> Option<&'a Arc<str>> {
    let leader = leaders.get(number as usize).and_then(Option::as_ref);
    cursor.near.as_ref().or(leader.map(|leader| &leader.address))
}

/// What is asked for: a partition from the place on that its cursor has reached.
fn wanted(
    settings: &Settings,
    topic_id: &str,
    number: u32,
    cursor: &Cursor,
) -> v1::SubscribePartition {
    let asks_for_near = cursor.near.is_none() && cursor.near_again_at.is_none();
    v1::SubscribePartition {
        topic: settings.topic.clone(),
        topic_id: topic_id.to_owned(),
        partition: number,
        position: Some(cursor.next.into()),
        from_replica: cursor.near.is_some(),
        rack: if asks_for_near { settings.rack.clone() } else { String::new() },
    }
}

/// See the module.
pub(crate) struct Driver {
    client: Client,
    settings: Settings,
    topic_id: String,
    cursors: BTreeMap<u32, Cursor>,
    leaders: Vec<Option<Leader>>,
    lines: HashMap<u64, Line>,
    by_address: HashMap<Arc<str>, u64>,
    next_stream: u64,
    avoided: HashMap<Arc<str>, (Backoff, Instant)>,
    refresher: Refresher,
    account: Arc<Account>,
    places: Places,
    items: mpsc::UnboundedSender<Item>,
    orders: mpsc::UnboundedReceiver<Order>,
    /// Told when every partition's place is fixed.
    placed: Option<oneshot::Sender<()>>,
    heard_in: mpsc::UnboundedSender<(u64, Heard)>,
    heard: mpsc::UnboundedReceiver<(u64, Heard)>,
}

/// The ends of a subscription that its driver holds.
pub(crate) struct Ends {
    pub(crate) account: Arc<Account>,
    pub(crate) places: Places,
    pub(crate) items: mpsc::UnboundedSender<Item>,
    pub(crate) orders: mpsc::UnboundedReceiver<Order>,
    pub(crate) placed: oneshot::Sender<()>,
}

impl Driver {
    /// A driver for a topic that exists; `settings.partitions` have been checked against `view`.
    pub(crate) fn new(client: Client, settings: Settings, view: &TopicView, ends: Ends) -> Self {
        let now = client.shared.env.now();
        let refresher = Refresher::new(client.clone(), settings.topic.clone());
        let (heard_in, heard) = mpsc::unbounded_channel();
        let numbers: Vec<u32> = match &settings.partitions {
            Some(partitions) => partitions.clone(),
            None => (0..view.partitions()).collect(),
        };
        let start = |number| settings.starts.get(&number).copied().unwrap_or(settings.start);
        let cursors: BTreeMap<u32, Cursor> =
            numbers.into_iter().map(|number| (number, Cursor::new(start(number), now))).collect();
        let mut driver = Self {
            topic_id: view.id.clone(),
            cursors,
            leaders: Vec::new(),
            lines: HashMap::new(),
            by_address: HashMap::new(),
            next_stream: 0,
            avoided: HashMap::new(),
            refresher,
            account: ends.account,
            places: ends.places,
            items: ends.items,
            orders: ends.orders,
            placed: Some(ends.placed),
            heard_in,
            heard,
            client,
            settings,
        };
        driver.learn(view);
        driver
    }

    /// Runs until the service drops its end.
    pub(crate) async fn run(mut self) {
        let mut events = Vec::with_capacity(EVENTS_AT_ONCE);
        loop {
            let wake = self.turn();
            let account = self.account.clone();
            tokio::select! {
                _count = self.heard.recv_many(&mut events, EVENTS_AT_ONCE) => {
                    for (stream, heard) in events.drain(..) {
                        self.on_heard(stream, heard);
                    }
                }
                order = self.orders.recv() => match order {
                    Some(Order::Seek(seek)) => self.on_seek(&seek),
                    Some(Order::Stop(partition)) => self.on_stop(partition),
                    // The service has dropped its end.
                    None => return,
                },
                answer = self.refresher.answer() => self.on_metadata(answer),
                () = account.wake.notified() => {}
                () = sleep_until(wake) => {}
            }
        }
    }

    /// Puts every partition on a stream, gives out credit, notices silence; returns when to look again at the latest.
    fn turn(&mut self) -> Option<Instant> {
        let now = self.client.shared.env.now();
        let mut wake = self.give_up_silent(now);
        wake = earliest(wake, self.look_for_near(now));
        wake = earliest(wake, self.attach(now));
        wake = earliest(wake, self.report_stalled(now));
        self.give_credit();
        if self.placed.is_some()
            && self.cursors.values().all(Cursor::is_placed)
            && let Some(placed) = self.placed.take()
        {
            // Nobody may be waiting.
            _ = placed.send(());
        }
        earliest(wake, self.refresher.turn(now))
    }

    /// Gives up streams on which nothing was heard for too long.
    fn give_up_silent(&mut self, now: Instant) -> Option<Instant> {
        let silence_max = self.settings.silence_max;
        let mut wake = None;
        let (mut silent, mut suspect) = (Vec::new(), Vec::new());
        // A stream that has not opened yet has a deadline of its own.
        for (id, line) in self.lines.iter().filter(|(_, line)| line.opened) {
            let (suspect_at, until) =
                (line.last_heard + silence_max / 2, line.last_heard + silence_max);
            if until <= now {
                silent.push(*id);
            } else if suspect_at <= now {
                // Perhaps somebody else leads by now, and this node is cut off.
                self.refresher.want();
                suspect.push(*id);
                wake = earliest(wake, Some(until));
            } else {
                wake = earliest(wake, Some(suspect_at));
            }
        }
        for id in suspect {
            self.leave_replicas_of(id, now);
        }
        for id in silent {
            self.lose(id, &Refusal::connection(format!("nothing heard for {silence_max:?}")));
        }
        wake
    }

    /// Goes back to the leaders of what is read from replicas at the other end of a stream on which nothing is heard.
    fn leave_replicas_of(&mut self, stream: u64, now: Instant) {
        let until = now + self.client.shared.config.metadata_age_max;
        let Some(line) = self.lines.get(&stream) else { return };
        for (number, cursor) in &mut self.cursors {
            if cursor.stream == Some(stream) && cursor.leave_near(until) {
                cursor.detach(now, None);
                // If it is only slow, it need not go on with this.
                line.stop(&self.settings.topic, *number);
            }
        }
    }

    /// Asks the leaders of partitions whose replica nearby was left a while ago for another one.
    fn look_for_near(&mut self, now: Instant) -> Option<Instant> {
        let mut wake = None;
        for (number, cursor) in &mut self.cursors {
            let Some(at) = cursor.near_again_at else { continue };
            if at > now {
                wake = earliest(wake, Some(at));
                continue;
            }
            cursor.near_again_at = None;
            if let Some(line) = cursor.stream.and_then(|stream| self.lines.get(&stream)) {
                // The same place once more, now with the rack.
                cursor.awaiting += 1;
                let wanted = wanted(&self.settings, &self.topic_id, *number, cursor);
                line.stream.send(Request::Seek(wanted));
            }
        }
        wake
    }

    /// Opens streams for partitions that have none. A leader's stream carries all of its partitions: it is opened anew when
    /// one comes along.
    fn attach(&mut self, now: Instant) -> Option<Instant> {
        let mut wake = None;
        let mut wanting: BTreeSet<Arc<str>> = BTreeSet::new();
        for (number, cursor) in &self.cursors {
            if cursor.ended || cursor.stream.is_some() {
                continue;
            }
            if let Some(retry_at) = cursor.retry_at.filter(|at| *at > now) {
                wake = earliest(wake, Some(retry_at));
                continue;
            }
            let Some(address) = source(&self.leaders, *number, cursor) else {
                self.refresher.want();
                continue;
            };
            match self.avoided.get(address) {
                Some((_, again_at)) if *again_at > now => {
                    self.refresher.want();
                    wake = earliest(wake, Some(*again_at));
                }
                _ => _ = wanting.insert(address.clone()),
            }
        }
        // All that will be there, so that the first does not take everything.
        let anew = wanting.iter().filter(|address| self.by_address.contains_key(*address)).count();
        let share = self.share(self.lines.len() + wanting.len() - anew);
        for address in wanting {
            self.open(address, share, now);
        }
        wake
    }

    fn open(&mut self, address: Arc<str>, share: u64, now: Instant) {
        if let Some(old) = self.by_address.remove(&address) {
            self.lines.remove(&old);
        }
        self.next_stream += 1;
        let id = self.next_stream;
        let mut partitions = Vec::new();
        for (number, cursor) in &mut self.cursors {
            let is_there = source(&self.leaders, *number, cursor) == Some(&address);
            let free = cursor.stream.is_none_or(|stream| !self.lines.contains_key(&stream));
            let waits = cursor.retry_at.is_some_and(|at| at > now);
            if cursor.ended || !is_there || !free || waits {
                continue;
            }
            cursor.stream = Some(id);
            cursor.awaiting = 1;
            cursor.retry_at = None;
            partitions.push(wanted(&self.settings, &self.topic_id, *number, cursor));
        }
        let bytes = share.min(self.free_credit(share));
        let init = v1::SubscribeInit {
            client: Some(self.client.shared.connections.client_info()),
            group: String::new(),
            partitions,
            format: v1::FetchFormat::Batches.into(),
            credit: Some(v1::Credit { bytes, records: RECORDS_UNBOUNDED }),
        };
        let stream = Stream::open(&self.client, address.clone(), init, id, self.heard_in.clone());
        self.by_address.insert(address.clone(), id);
        let credit = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.lines.insert(id, Line { stream, address, opened: false, last_heard: now, credit });
    }

    /// A stream's part of the bound.
    fn share(&self, streams: usize) -> u64 {
        (self.settings.credit_bytes as u64 / streams.max(1) as u64).max(1)
    }

    /// What of the bound is neither held here nor given out, when each stream has this share.
    fn free_credit(&self, share: u64) -> u64 {
        let held = self.account.look((share / 4).max(1));
        // What a stream got when there were fewer counts only up to its share now: an idle stream must not starve others.
        let given: u64 = self
            .lines
            .values()
            .map(|line| u64::try_from(line.credit).unwrap_or(0).min(share))
            .sum();
        (self.settings.credit_bytes as u64).saturating_sub(held).saturating_sub(given)
    }

    /// Fills up the brokers' credit where it has run low.
    fn give_credit(&mut self) {
        let share = self.share(self.lines.len());
        let mut free = self.free_credit(share);
        for line in self.lines.values_mut() {
            let lacking = i64::try_from(share).unwrap_or(i64::MAX).saturating_sub(line.credit);
            // After an overdraft the broker's own count is below zero too: make up for that, within what is free.
            let bytes = u64::try_from(lacking).unwrap_or(0).min(free);
            if bytes == 0 || (line.credit > 0 && bytes < share / 4) {
                continue;
            }
            free -= bytes;
            line.credit = line.credit.saturating_add(i64::try_from(bytes).unwrap_or(i64::MAX));
            line.stream.send(Request::Credit(v1::Credit { bytes, records: 0 }));
        }
    }

    /// Tells the service about partitions that have had no leader to read from for long.
    fn report_stalled(&mut self, now: Instant) -> Option<Instant> {
        let timeout = self.settings.stall_timeout;
        let mut wake = None;
        for (number, cursor) in &mut self.cursors {
            let Some(since) = cursor.silent_since.filter(|_| !cursor.ended) else { continue };
            if since + timeout > now {
                wake = earliest(wake, Some(since + timeout));
                continue;
            }
            cursor.silent_since = Some(now);
            wake = earliest(wake, Some(now + timeout));
            let last = cursor.obstacle.clone();
            let error = ConsumeError::Stalled {
                topic: self.settings.topic.clone(),
                partition: *number,
                silent: timeout,
                last: last.unwrap_or_else(|| Refusal::connection("no leader is known")),
            };
            let generation = cursor.generation;
            let item = Item::Trouble { partition: *number, generation, ends: false, error };
            _ = self.items.send(item);
        }
        wake
    }

    fn on_heard(&mut self, stream: u64, heard: Heard) {
        let now = self.client.shared.env.now();
        // What comes from a stream that was given up is not wanted: its partitions go on elsewhere.
        let Some(line) = self.lines.get_mut(&stream) else { return };
        line.last_heard = now;
        match heard {
            Heard::Opened => line.opened = true,
            Heard::Message(Response::Assigned(assigned)) => self.on_assigned(stream, &assigned),
            Heard::Message(Response::Batch(batch)) => self.on_batch(stream, batch),
            Heard::Message(Response::Revoked(revoked)) => self.on_revoked(stream, revoked, now),
            Heard::Message(Response::Heartbeat(_)) => _ = self.avoided.remove(&line.address),
            Heard::Message(Response::Redirect(redirect)) => self.on_redirect(stream, redirect, now),
            Heard::Lost(refusal) => self.lose(stream, &refusal),
        }
    }

    /// The cursor that a message is about, if the stream that brought it reads that partition.
    fn cursor(&mut self, stream: u64, partition: u32) -> Option<&mut Cursor> {
        self.cursors.get_mut(&partition).filter(|cursor| cursor.stream == Some(stream))
    }

    fn on_assigned(&mut self, stream: u64, assigned: &v1::Assigned) {
        let number = assigned.partition;
        let Some(cursor) = self.cursor(stream, number) else { return };
        let generation = cursor.generation;
        match cursor.on_assigned(assigned) {
            Ok(true) => {
                let next = cursor.next;
                self.update_place(number, generation, |place| {
                    place.high_watermark = Some(assigned.high_watermark);
                    if let (None, Start::Offset(offset)) = (place.position, next) {
                        place.position = Some(offset);
                    }
                });
            }
            Ok(false) => {}
            Err(gap) => {
                let text = format!(
                    "offset {} is not in the log any more: it starts at {}",
                    gap.expected, gap.found
                );
                let refusal = Refusal::local(reason::OFFSET_OUT_OF_RANGE, Code::OutOfRange, text);
                self.end(number, refusal);
            }
        }
    }

    fn on_batch(&mut self, stream: u64, batch: v1::FetchedBatch) {
        let number = batch.partition;
        let bytes: u64 = batch.batches.iter().map(|batch| batch.len() as u64).sum();
        let held = self.account.hold(bytes);
        let Some(line) = self.lines.get_mut(&stream) else { return };
        line.credit = line.credit.saturating_sub_unsigned(bytes);
        if line.credit < -OVERDRAFT_BYTES_MAX {
            self.lose(stream, &Refusal::connection("the broker sends more than it may"));
            return;
        }
        let Some(cursor) = self.cursor(stream, number) else { return };
        if cursor.awaiting > 0 {
            return;
        }
        let generation = cursor.generation;
        match cursor.on_batches(&batch) {
            Ok(from) => {
                if let Some(line) = self.lines.get(&stream) {
                    self.avoided.remove(&line.address);
                }
                let high_watermark = batch.high_watermark;
                self.update_place(number, generation, |place| {
                    place.high_watermark = Some(high_watermark);
                });
                if batch.batches.is_empty() {
                    return;
                }
                let next_offset = batch.next_offset;
                let batches = batch.batches;
                let partition = number;
                let chunk = Chunk { partition, generation, from, next_offset, batches, held };
                // The service may have dropped its end.
                _ = self.items.send(Item::Chunk(chunk));
            }
            Err(gap) => {
                tracing::warn!(partition = number, ?gap, "the broker left something out");
                let text = format!(
                    "partition {number}: expected offset {}, got {}",
                    gap.expected, gap.found
                );
                self.lose(stream, &Refusal::connection(text));
            }
        }
    }

    fn on_revoked(&mut self, stream: u64, revoked: v1::Revoked, now: Instant) {
        let number = revoked.partition;
        let refusal = Refusal::from_detail(&revoked.error.unwrap_or_default());
        let shared = self.client.shared.clone();
        let goes_on = refusal.is_retriable() || self.is_for_the_group(&refusal);
        let Some(cursor) = self.cursor(stream, number) else { return };
        // What a replica that does not lead refuses is for the leader to judge.
        let goes_on = cursor.leave_near(now + shared.config.metadata_age_max) || goes_on;
        if cursor.awaiting > 1 {
            // It concerns the place before a seek. Whether the broker still takes that seek is not known: ask anew.
            cursor.detach(now, None);
            return;
        }
        if goes_on {
            let hint = refusal.leader_hint();
            cursor.detach(now, Some(refusal));
            cursor.retry_at = Some(cursor.backoff.failed(&shared.config.retry, &shared.env));
            if let Some(hint) = hint {
                self.follow(number, hint.node_id, hint.address);
            }
            self.refresher.want();
        } else {
            self.end(number, refusal);
        }
    }

    fn on_redirect(&mut self, stream: u64, redirect: v1::Redirect, now: Instant) {
        let number = redirect.partition;
        let shared = self.client.shared.clone();
        let Some(cursor) = self.cursor(stream, number) else { return };
        if redirect.to_replica {
            self.read_near(number, redirect.leader_node_id, redirect.leader_address, now);
            return;
        }
        cursor.leave_near(now + shared.config.metadata_age_max);
        let text = "the partition is led by another node now";
        cursor.detach(now, Some(Refusal::local(reason::NOT_LEADER, Code::Unavailable, text)));
        let first = cursor.backoff.failures() == 0;
        let retry_at = cursor.backoff.failed(&shared.config.retry, &shared.env);
        let known = redirect.leader_node_id != 0
            && self.follow(number, redirect.leader_node_id, redirect.leader_address);
        if let Some(cursor) = self.cursors.get_mut(&number) {
            // The first hint is worth following at once; after that, nodes may be passing us back and forth.
            cursor.retry_at = (!(first && known)).then_some(retry_at);
        }
        if !(first && known) {
            self.refresher.want();
        }
    }

    /// The leader sent a partition to a replica in the client's rack, and does not read it any more.
    fn read_near(&mut self, number: u32, node_id: u64, address: String, now: Instant) {
        let address = self.address_of(node_id, address);
        let is_avoided = |address: &Arc<str>| {
            self.avoided.get(address).is_some_and(|(_, again_at)| *again_at > now)
        };
        let near = address.filter(|address| !is_avoided(address));
        let Some(cursor) = self.cursors.get_mut(&number) else { return };
        cursor.detach(now, None);
        let Some(near) = near else {
            cursor.near_again_at = Some(now + self.client.shared.config.metadata_age_max);
            return;
        };
        let stream = self.by_address.get(&near).copied();
        cursor.near = Some(near);
        if let Some((stream, line)) = stream.and_then(|id| Some((id, self.lines.get(&id)?))) {
            cursor.stream = Some(stream);
            cursor.awaiting = 1;
            let wanted = wanted(&self.settings, &self.topic_id, number, cursor);
            line.stream.send(Request::Seek(wanted));
        }
    }

    /// Where a node is: as was said, or as is known here if nothing was.
    fn address_of(&self, node_id: u64, said: String) -> Option<Arc<str>> {
        match said.is_empty() {
            true => self.client.shared.metadata.address_of(node_id),
            false => Some(Arc::from(said)),
        }
    }

    /// Takes in who leads a partition, by hearsay. False if nobody knows where that is.
    fn follow(&mut self, number: u32, node_id: u64, address: String) -> bool {
        let address = self.address_of(node_id, address);
        let (Some(address), Some(slot)) = (address, self.leaders.get_mut(number as usize)) else {
            return false;
        };
        let epoch = slot.as_ref().map_or(0, |leader| leader.epoch);
        *slot = Some(Leader { node_id, epoch, address });
        true
    }

    /// Ends a partition until a seek.
    fn end(&mut self, number: u32, refusal: Refusal) {
        let Some(cursor) = self.cursors.get_mut(&number) else { return };
        cursor.ended = true;
        cursor.stream = None;
        let generation = cursor.generation;
        let topic = self.settings.topic.clone();
        let error = ConsumeError::PartitionEnded { topic, partition: number, refusal };
        _ = self.items.send(Item::Trouble { partition: number, generation, ends: true, error });
    }

    /// Gives up a stream; its partitions go on where they were.
    fn lose(&mut self, stream: u64, refusal: &Refusal) {
        let Some(line) = self.lines.remove(&stream) else { return };
        tracing::debug!(address = %line.address, %refusal, "subscribe stream lost");
        if self.by_address.get(&line.address) == Some(&stream) {
            self.by_address.remove(&line.address);
        }
        let shared = self.client.shared.clone();
        let now = shared.env.now();
        for cursor in self.cursors.values_mut().filter(|cursor| cursor.stream == Some(stream)) {
            cursor.leave_near(now + shared.config.metadata_age_max);
            cursor.detach(now, Some(refusal.clone()));
        }
        let entry = self.avoided.entry(line.address.clone());
        let (backoff, again_at) = entry.or_insert_with(|| (Backoff::default(), now));
        *again_at = backoff.failed(&shared.config.retry, &shared.env);
        self.refresher.want();
    }

    /// Reads a partition no more.
    fn on_stop(&mut self, partition: u32) {
        let Some(cursor) = self.cursors.remove(&partition) else { return };
        if let Some(line) = cursor.stream.and_then(|stream| self.lines.get(&stream)) {
            line.stop(&self.settings.topic, partition);
        }
    }

    /// Begins a partition, for a member of a group: on the stream to its leader, if there is one.
    fn begin(&mut self, partition: u32, now: Instant) {
        let mut cursor = Cursor::new(Start::Earliest, now);
        let leader = self.leaders.get(partition as usize).and_then(Option::as_ref);
        cursor.stream = leader.and_then(|leader| self.by_address.get(&leader.address).copied());
        self.cursors.insert(partition, cursor);
    }

    /// The group reads another topic of the same name from now on. What was read of the one before has been taken away.
    fn change_topic(&mut self, topic_id: &str) {
        topic_id.clone_into(&mut self.topic_id);
        self.leaders.clear();
        self.refresher.want();
    }

    /// Whether a refusal says that the topic is not there any more. In a group, its coordinator says what follows: the partitions
    /// are taken away, and those of a new topic of the name are given.
    fn is_for_the_group(&self, refusal: &Refusal) -> bool {
        let gone = [reason::TOPIC_ID_MISMATCH, reason::UNKNOWN_TOPIC];
        self.settings.group.is_some() && gone.contains(&refusal.reason())
    }

    fn on_seek(&mut self, seek: &Seek) {
        let now = self.client.shared.env.now();
        if let Some(topic_id) = seek.topic_id.as_ref().filter(|id| ***id != *self.topic_id) {
            self.change_topic(topic_id);
        }
        if self.settings.group.is_some() && !self.cursors.contains_key(&seek.partition) {
            self.begin(seek.partition, now);
        }
        let Some(cursor) = self.cursors.get_mut(&seek.partition) else { return };
        cursor.generation = seek.generation;
        cursor.next = seek.to;
        if std::mem::take(&mut cursor.ended) {
            cursor.detach(now, None);
        }
        let line = cursor.stream.and_then(|stream| self.lines.get(&stream));
        if let (Some(_), Some(line)) = (cursor.near.take(), line) {
            // Only the leader knows where some places are.
            line.stop(&self.settings.topic, seek.partition);
            cursor.detach(now, None);
        }
        let line = cursor.stream.and_then(|stream| self.lines.get(&stream));
        match line {
            Some(line) => {
                cursor.awaiting += 1;
                let wanted = wanted(&self.settings, &self.topic_id, seek.partition, cursor);
                line.stream.send(Request::Seek(wanted));
            }
            None => cursor.detach(now, None),
        }
    }

    fn on_metadata(&mut self, answer: Result<Arc<TopicView>, Refusal>) {
        match self.refresher.judge(answer) {
            News::View(view) => self.learn(&view),
            News::Gone(refusal) => self.end_all(&refusal),
            News::Obstacle(refusal) => {
                for cursor in self.cursors.values_mut().filter(|cursor| cursor.stream.is_none()) {
                    cursor.obstacle = Some(refusal.clone());
                }
            }
        }
    }

    fn end_all(&mut self, refusal: &Refusal) {
        if self.is_for_the_group(refusal) {
            self.refresher.want();
            return;
        }
        let alive = self.cursors.iter().filter(|(_, cursor)| !cursor.ended);
        let alive: Vec<u32> = alive.map(|(number, _)| *number).collect();
        for number in alive {
            self.end(number, refusal.clone());
        }
    }

    /// Takes in where the partitions are led, and which there are.
    fn learn(&mut self, view: &TopicView) {
        self.refresher.knows(view);
        if view.id != self.topic_id {
            let topic = &self.settings.topic;
            let text = format!("topic '{topic}' was deleted and created again");
            let refusal = Refusal::local(reason::TOPIC_ID_MISMATCH, Code::FailedPrecondition, text);
            self.end_all(&refusal);
            return;
        }
        let now = self.client.shared.env.now();
        if self.settings.partitions.is_none() {
            for number in 0..view.partitions() {
                // A partition that is new to a running subscription is read whole, or its first events would be missed.
                self.cursors.entry(number).or_insert_with(|| Cursor::new(Start::Earliest, now));
            }
        }
        let mut places = self.places.lock();
        for (number, cursor) in &self.cursors {
            let position = match cursor.next {
                Start::Offset(offset) => Some(offset),
                Start::Earliest | Start::Latest | Start::Timestamp(_) => None,
            };
            places.entry(*number).or_insert_with(|| Place { position, ..Place::default() });
        }
        drop(places);
        self.leaders.resize(view.leaders.len().max(self.leaders.len()), None);
        for ((slot, new), number) in self.leaders.iter_mut().zip(&view.leaders).zip(0..) {
            let stale = match (&slot, new) {
                (Some(old), Some(new)) => old.epoch > new.epoch,
                _ => false,
            };
            if slot == new || stale {
                continue;
            }
            slot.clone_from(new);
            self.refresher.was_new();
            let Some(cursor) = self.cursors.get_mut(&number) else { continue };
            // Whoever leads now has not refused anything yet.
            cursor.retry_at = None;
            if cursor.near.is_some() {
                continue;
            }
            let line = cursor.stream.and_then(|stream| self.lines.get(&stream));
            if let (Some(line), Some(leader)) = (line, new)
                && line.address != leader.address
            {
                // The old leader may not know it yet, and would have nothing to say any more.
                cursor.detach(now, None);
            }
        }
    }

    fn update_place(&self, number: u32, generation: u64, update: impl FnOnce(&mut Place)) {
        let mut places = self.places.lock();
        let place = places.get_mut(&number).filter(|place| place.generation == generation);
        if let Some(place) = place {
            update(place);
        }
    }
}
