//! Subscribe: one task that pushes what becomes readable, as long as there is credit.
//!
//! Owns: the cursors of one stream and the turns they take. Waits for the high watermark without polling. Never: groups,
//! or any state that outlives the stream.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use futures::future::{AbortHandle, Abortable, Aborted, BoxFuture};
use futures::stream::FuturesUnordered;
use futures::{FutureExt, Stream, StreamExt};
use highwater_proto::v1;
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use v1::subscribe_request::Message as Request;
use v1::subscribe_response::Message as Response;

use super::credit::Credits;
use super::door::{Door, expired, wire_offset};
use super::fetch::{self, Chunk, ReadBounds};
use super::nearest::{LOOK_PAUSE, MISSES_MAX};
use super::screen::Call;
use super::status::CallError;
use super::turned_on;
use crate::cluster::{ClusterView, GroupId};
use crate::error::BrokerError;
use crate::replica::{PartitionHandle, Source};

/// About how many bytes go into one message.
const MESSAGE_BYTES_MAX: u64 = 1 << 20;

/// Messages between the task and the connection: one on its way, one being prepared.
const QUEUED_MAX: usize = 2;

/// Partitions whose positions are looked up at once when a stream begins.
const OPENED_AT_ONCE: usize = 64;

/// A stream that sent nothing for this long sends a heartbeat, so that a gap is less than twice this.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// The place of a cursor in its stream; given out anew with every seek.
type Turn = u64;

/// Starts the task of a stream.
pub(super) fn serve(
    door: Door,
    inbound: Streaming<v1::SubscribeRequest>,
    deadline: Option<Duration>,
) -> impl Stream<Item = Result<v1::SubscribeResponse, Status>> {
    let (outbound, pushed) = mpsc::channel(QUEUED_MAX);
    let guard = door.metrics.stream_opened("subscribe");
    let tasks = door.tasks.clone();
    let stopping = door.node.watch_stopping();
    let gone = outbound.clone();
    let subscription = Subscription {
        door,
        outbound,
        format: v1::FetchFormat::Records,
        credits: Credits::default(),
        cursors: HashMap::new(),
        turns: HashMap::new(),
        next_turn: 0,
        ready: VecDeque::new(),
        waiting: FuturesUnordered::new(),
        may_move: false,
        looking: None,
        has_sent: true,
    };
    tasks.spawn(async move {
        let _guard = guard;
        let ended = tokio::select! {
            // The connection dropped the other half: nobody listens any more.
            () = gone.closed() => return,
            () = expired(deadline) => Err(Ended::With(Status::deadline_exceeded(
                "the stream's deadline has passed",
            ))),
            ended = subscription.run(inbound, stopping) => ended,
        };
        if let Err(Ended::With(status)) = ended {
            // If the client has left meanwhile, there is nobody to tell.
            let _ = gone.send(Err(status)).await;
        }
    });
    ReceiverStream::new(pushed)
}

/// Why a stream ends other than by a drain.
enum Ended {
    /// With an error for the client.
    With(Status),
    /// The client has left.
    Gone,
}

impl From<Status> for Ended {
    fn from(status: Status) -> Self {
        Self::With(status)
    }
}

/// One partition of a stream.
struct Cursor {
    topic: String,
    topic_id: String,
    partition: u32,
    handle: PartitionHandle,
    source: Source,
    /// Where the client stands, if it wants to read from there.
    rack: String,
    /// Looks in a row at which this replica was not in sync.
    misses: u32,
    next_offset: u64,
    /// Ends the wait of this cursor.
    wait: Option<AbortHandle>,
}

impl Drop for Cursor {
    fn drop(&mut self) {
        if let Some(wait) = &self.wait {
            wait.abort();
        }
    }
}

/// The end of a wait: whose, and whether there is something to read.
type Waited = (Turn, Result<Result<(), BrokerError>, Aborted>);

/// Invariant: every cursor is either in `ready` once or has one wait in `waiting`. Turns of cursors that are gone may still
/// be in either; they are passed over.
struct Subscription {
    door: Door,
    outbound: mpsc::Sender<Result<v1::SubscribeResponse, Status>>,
    format: v1::FetchFormat,
    credits: Credits,
    cursors: HashMap<Turn, Cursor>,
    turns: HashMap<(String, u32), Turn>,
    next_turn: Turn,
    ready: VecDeque<Turn>,
    waiting: FuturesUnordered<BoxFuture<'static, Waited>>,
    /// Whether a cursor was given a rack, so that there may be a better replica to read from.
    may_move: bool,
    /// The question whether replicas here that do not lead are in sync, while it is on its way.
    looking: Option<BoxFuture<'static, Look>>,
    has_sent: bool,
}

/// Groups that were looked at, and those of them whose replica here is in sync.
struct Look {
    asked: BTreeSet<GroupId>,
    in_sync: BTreeSet<GroupId>,
}

impl Subscription {
    async fn run(
        mut self,
        mut inbound: Streaming<v1::SubscribeRequest>,
        mut stopping: watch::Receiver<bool>,
    ) -> Result<(), Ended> {
        self.initialize(&mut inbound).await?;
        let mut heartbeat = tokio::time::interval(HEARTBEAT);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut looks = tokio::time::interval(LOOK_PAUSE);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut is_inbound_open = true;
        let mut views = self.door.node.watch_view();
        loop {
            let may_send = self.credits.allows() && !self.ready.is_empty();
            tokio::select! {
                biased;
                request = inbound.message(), if is_inbound_open => match request? {
                    Some(request) => {
                        if self.took(request).await? == Next::End {
                            return Ok(());
                        }
                    }
                    // A client that only listens, as grpcurl, closes its side at once.
                    None => is_inbound_open = false,
                },
                () = turned_on(&mut stopping) => return self.say_goodbye().await,
                _ = heartbeat.tick() => self.beat().await?,
                _ = looks.tick(), if self.may_move => self.look().await?,
                look = answer(&mut self.looking) => self.looked(look).await?,
                Ok(()) = views.changed() => {
                    let view = views.borrow_and_update().clone();
                    self.drop_deleted(&view).await?;
                }
                Some((turn, outcome)) = self.waiting.next(), if !self.waiting.is_empty() => {
                    self.waited(turn, outcome).await?;
                }
                () = std::future::ready(()), if may_send => self.push_next().await?,
            }
        }
    }

    async fn send(&mut self, message: Response) -> Result<(), Ended> {
        self.has_sent = true;
        let response = v1::SubscribeResponse { message: Some(message) };
        self.outbound.send(Ok(response)).await.map_err(|_| Ended::Gone)
    }

    async fn beat(&mut self) -> Result<(), Ended> {
        if !self.has_sent {
            self.send(Response::Heartbeat(v1::Heartbeat {})).await?;
        }
        self.has_sent = false;
        Ok(())
    }

    async fn initialize(
        &mut self,
        inbound: &mut Streaming<v1::SubscribeRequest>,
    ) -> Result<(), Ended> {
        let init = match inbound.message().await? {
            Some(v1::SubscribeRequest { message: Some(Request::Init(init)) }) => init,
            Some(_) => {
                return Err(Status::invalid_argument("the first message must be init").into());
            }
            None => return Err(Ended::Gone),
        };
        let refuse = |error: BrokerError| Ended::With(self.door.status(&CallError::Here(error)));
        if !init.group.is_empty() {
            let field = "group".to_owned();
            let why =
                "members have a stream of their own (GroupService.Join), which says what to read"
                    .to_owned();
            return Err(refuse(BrokerError::InvalidArgument { field, why }));
        }
        let partitions_max = self.door.config.limits.subscribe_partitions;
        let count = init.partitions.len();
        if count == 0 || u32::try_from(count).map_or(true, |count| count > partitions_max) {
            return Err(refuse(BrokerError::InvalidArgument {
                field: "partitions".to_owned(),
                why: format!("{count} given; a stream takes from 1 to {partitions_max}"),
            }));
        }
        self.format = fetch::format(init.format).map_err(refuse)?;
        self.credits.add(&init.credit.unwrap_or_default());
        // At once: where a partition ends has to be asked of a majority of its replicas.
        let door = self.door.clone();
        let mut opened = futures::stream::iter(init.partitions)
            .map(|wanted| async {
                let cursor = open(&door, &wanted).await;
                (wanted, cursor)
            })
            .buffered(OPENED_AT_ONCE);
        while let Some((wanted, cursor)) = opened.next().await {
            self.begin(wanted, cursor).await?;
        }
        Ok(())
    }

    async fn took(&mut self, request: v1::SubscribeRequest) -> Result<Next, Ended> {
        match request.message {
            Some(Request::Init(_)) => {
                return Err(Status::invalid_argument("init may come only once").into());
            }
            Some(Request::Credit(credit)) => self.credits.add(&credit),
            Some(Request::Seek(partition)) => {
                let is_new =
                    !self.turns.contains_key(&(partition.topic.clone(), partition.partition));
                let partitions_max = self.door.config.limits.subscribe_partitions as usize;
                if is_new && self.turns.len() >= partitions_max {
                    let what = "partitions of one stream";
                    let error = BrokerError::Overloaded { what, limit: partitions_max.to_string() };
                    return Err(Ended::With(self.door.status(&CallError::Here(error))));
                }
                self.assign(partition).await?;
            }
            // Progress is kept for group members only; what a newer client says beside that is ignored.
            Some(Request::Acks(_)) | None => {}
            Some(Request::Stop(stop)) => {
                if let Some(turn) = self.turns.remove(&(stop.topic, stop.partition)) {
                    self.cursors.remove(&turn);
                }
            }
            Some(Request::Drain(_)) => {
                self.drain().await?;
                return Ok(Next::End);
            }
        }
        Ok(Next::GoOn)
    }

    /// Begins to read a partition, or goes on elsewhere in it. What is wrong with one partition does not end the stream.
    async fn assign(&mut self, wanted: v1::SubscribePartition) -> Result<(), Ended> {
        let cursor = open(&self.door, &wanted).await;
        self.begin(wanted, cursor).await
    }

    async fn begin(
        &mut self,
        wanted: v1::SubscribePartition,
        cursor: Result<Cursor, BrokerError>,
    ) -> Result<(), Ended> {
        if let Some(turn) = self.turns.remove(&(wanted.topic.clone(), wanted.partition)) {
            self.cursors.remove(&turn);
        }
        let cursor = match cursor {
            Ok(cursor) => cursor,
            Err(error) => return self.revoke(wanted.topic, wanted.partition, &error).await,
        };
        let assigned = v1::Assigned {
            broker: Some(self.door.broker_info()),
            topic: wanted.topic.clone(),
            topic_id: cursor.topic_id.clone(),
            partition: wanted.partition,
            offset: wire_offset(cursor.next_offset),
            high_watermark: wire_offset(cursor.handle.high_watermark()),
            log_start_offset: wire_offset(cursor.handle.log_start_offset()),
        };
        self.send(Response::Assigned(assigned)).await?;
        let turn = self.next_turn;
        self.next_turn += 1;
        self.turns.insert((wanted.topic, wanted.partition), turn);
        self.may_move |= cursor.source == Source::Replica || !cursor.rack.is_empty();
        self.cursors.insert(turn, cursor);
        if self.send_nearer(turn).await? {
            return Ok(());
        }
        // Also when there is something to read: the wait finds out whether the offset is in range at all.
        self.wait(turn);
        Ok(())
    }

    /// Waits until a cursor has something to read.
    fn wait(&mut self, turn: Turn) {
        let Some(cursor) = self.cursors.get_mut(&turn) else { return };
        let (handle, offset) = (cursor.handle.clone(), cursor.next_offset);
        let (abort, registration) = AbortHandle::new_pair();
        cursor.wait = Some(abort);
        let source = cursor.source;
        let readable = async move { handle.wait_readable(offset, source).await };
        let wait = Abortable::new(readable, registration).map(move |outcome| (turn, outcome));
        self.waiting.push(wait.boxed());
    }

    async fn waited(
        &mut self,
        turn: Turn,
        outcome: Result<Result<(), BrokerError>, Aborted>,
    ) -> Result<(), Ended> {
        match outcome {
            Ok(Ok(())) if self.cursors.contains_key(&turn) => self.ready.push_back(turn),
            Ok(Err(error)) => self.fail(turn, &error).await?,
            Ok(Ok(())) | Err(Aborted) => {}
        }
        Ok(())
    }

    /// Sends one message of the cursor whose turn it is, which then queues behind all others.
    async fn push_next(&mut self) -> Result<(), Ended> {
        let Some(turn) = self.ready.pop_front() else { return Ok(()) };
        let Some(cursor) = self.cursors.get(&turn) else { return Ok(()) };
        let bounds = ReadBounds {
            bytes_max: self.credits.bytes_to_read(MESSAGE_BYTES_MAX),
            records_max: self.credits.records_to_read(),
        };
        let (handle, source) = (&cursor.handle, cursor.source);
        let chunk = self
            .door
            .check(Call::Read, &cursor.topic)
            .and_then(|()| fetch::read(handle, source, cursor.next_offset, self.format, bounds));
        let chunk = match chunk {
            Ok(chunk) => chunk,
            Err(error) => return self.fail(turn, &error).await,
        };
        let high_watermark = cursor.handle.high_watermark();
        if chunk.next_offset > cursor.next_offset {
            self.push_chunk(turn, chunk, high_watermark).await?;
        }
        let has_more =
            self.cursors.get(&turn).is_some_and(|cursor| cursor.next_offset < high_watermark);
        if has_more {
            self.ready.push_back(turn);
        } else {
            self.wait(turn);
        }
        Ok(())
    }

    async fn push_chunk(
        &mut self,
        turn: Turn,
        chunk: Chunk,
        high_watermark: u64,
    ) -> Result<(), Ended> {
        let Some(cursor) = self.cursors.get_mut(&turn) else { return Ok(()) };
        cursor.next_offset = chunk.next_offset;
        let batch = v1::FetchedBatch {
            topic: cursor.topic.clone(),
            partition: cursor.partition,
            records: chunk.records,
            batches: chunk.batches,
            next_offset: wire_offset(chunk.next_offset),
            high_watermark: wire_offset(high_watermark),
            record_count: u32::try_from(chunk.record_count).unwrap_or(u32::MAX),
            has_gaps: chunk.has_gaps,
        };
        self.credits.spend(chunk.bytes, chunk.record_count);
        self.door.metrics.fetched(chunk.record_count, chunk.bytes);
        if !cursor.handle.is_leader() {
            self.door.metrics.fetched_from_follower(chunk.bytes);
        }
        self.send(Response::Batch(batch)).await
    }

    /// Sends the client to a replica in its rack, if one is fit to be read.
    async fn send_nearer(&mut self, turn: Turn) -> Result<bool, Ended> {
        let Some(cursor) = self.cursors.get(&turn) else { return Ok(false) };
        let (handle, partition) = (&cursor.handle, cursor.partition);
        let Some((node, address)) = self.door.nearest(handle, partition, &cursor.rack) else {
            return Ok(false);
        };
        let topic = cursor.topic.clone();
        self.turns.remove(&(topic.clone(), partition));
        self.cursors.remove(&turn);
        let redirect = v1::Redirect {
            topic,
            partition,
            leader_node_id: node,
            leader_address: address,
            to_replica: true,
        };
        self.send(Response::Redirect(redirect)).await.map(|()| true)
    }

    /// Looks for nearer replicas, and asks whether those here are still in sync.
    async fn look(&mut self) -> Result<(), Ended> {
        let is_far = |cursor: &Cursor| cursor.source == Source::Leader && !cursor.rack.is_empty();
        let far = self.cursors.iter().filter(|(_, cursor)| is_far(cursor)).map(|(turn, _)| *turn);
        for turn in far.collect::<Vec<Turn>>() {
            self.send_nearer(turn).await?;
        }
        let here = self.cursors.values().filter(|cursor| cursor.source == Source::Replica);
        let asked: BTreeSet<GroupId> = here.map(|cursor| cursor.handle.group()).collect();
        if asked.is_empty() {
            return Ok(());
        }
        // Clients leave a replica that says nothing sooner than a leader: they can read elsewhere.
        self.send(Response::Heartbeat(v1::Heartbeat {})).await?;
        if self.looking.is_none() {
            let door = self.door.clone();
            let look = async move {
                let in_sync = door.in_sync_here(asked.clone()).await;
                Look { asked, in_sync }
            };
            self.looking = Some(look.boxed());
        }
        Ok(())
    }

    /// Sends those back to their leaders who read what is not in sync any more.
    async fn looked(&mut self, look: Look) -> Result<(), Ended> {
        self.looking = None;
        let mut behind = Vec::new();
        for (turn, cursor) in &mut self.cursors {
            let group = cursor.handle.group();
            if cursor.source != Source::Replica || !look.asked.contains(&group) {
                continue;
            }
            cursor.misses = if look.in_sync.contains(&group) { 0 } else { cursor.misses + 1 };
            if cursor.misses >= MISSES_MAX {
                behind.push((*turn, self.door.node.leader_of(group)));
            }
        }
        for (turn, leader) in behind {
            self.fail(turn, &BrokerError::NotLeader { leader }).await?;
        }
        Ok(())
    }

    /// Ends the cursors whose topics are gone: their replicas will never have anything to read again.
    async fn drop_deleted(&mut self, view: &ClusterView) -> Result<(), Ended> {
        if !self.door.node.is_caught_up() {
            // A node that is catching up does not know what was deleted.
            return Ok(());
        }
        let is_gone = |cursor: &Cursor| {
            view.topics.get(&cursor.topic).is_none_or(|topic| topic.id != cursor.topic_id)
        };
        let gone: Vec<(Turn, String)> = self
            .cursors
            .iter()
            .filter(|(_, cursor)| is_gone(cursor))
            .map(|(turn, cursor)| (*turn, cursor.topic.clone()))
            .collect();
        for (turn, topic) in gone {
            self.fail(turn, &BrokerError::UnknownTopic { topic }).await?;
        }
        Ok(())
    }

    /// A cursor cannot go on.
    async fn fail(&mut self, turn: Turn, error: &BrokerError) -> Result<(), Ended> {
        let Some(cursor) = self.cursors.remove(&turn) else { return Ok(()) };
        let place = (cursor.topic.clone(), cursor.partition);
        self.turns.remove(&place);
        self.revoke(place.0, place.1, error).await
    }

    /// Tells the client that a partition is not read any more, or where it can be.
    async fn revoke(
        &mut self,
        topic: String,
        partition: u32,
        error: &BrokerError,
    ) -> Result<(), Ended> {
        let message = match error {
            BrokerError::NotLeader { leader } => {
                let address = leader.and_then(|leader| self.door.address_of(leader));
                Response::Redirect(v1::Redirect {
                    topic,
                    partition,
                    leader_node_id: leader.unwrap_or_default(),
                    leader_address: address.unwrap_or_default(),
                    to_replica: false,
                })
            }
            other => {
                let error = Some(self.door.detail(other));
                Response::Revoked(v1::Revoked { topic, partition, error })
            }
        };
        self.send(message).await
    }

    /// The client wants no more: every partition ends, then the stream.
    async fn drain(&mut self) -> Result<(), Ended> {
        for ((topic, partition), _) in std::mem::take(&mut self.turns) {
            let error = v1::ErrorDetail {
                code: tonic::Code::Ok.into(),
                reason: "DRAINED".to_owned(),
                message: "the stream was drained, as asked".to_owned(),
                ..v1::ErrorDetail::default()
            };
            let revoked = v1::Revoked { topic, partition, error: Some(error) };
            self.send(Response::Revoked(revoked)).await?;
        }
        Ok(())
    }

    /// The node stops: leaders are moving, and clients find the new ones by asking for metadata.
    async fn say_goodbye(&mut self) -> Result<(), Ended> {
        for ((topic, partition), _) in std::mem::take(&mut self.turns) {
            self.revoke(topic, partition, &BrokerError::NotLeader { leader: None }).await?;
        }
        Ok(())
    }
}

/// A cursor where the client wants to begin.
async fn open(door: &Door, wanted: &v1::SubscribePartition) -> Result<Cursor, BrokerError> {
    door.check(Call::Read, &wanted.topic)?;
    door.topic(&wanted.topic, false).await?;
    let (topic, topic_id, partition) = (&wanted.topic, &wanted.topic_id, wanted.partition);
    let start = fetch::start();
    let position = wanted.position.as_ref().unwrap_or(&start);
    let (topic, handle, source, next_offset) = if wanted.from_replica {
        let (topic, handle) = door.node.route_to_replica(topic, topic_id, partition)?;
        let next_offset = handle.resolve_here(position)?;
        (topic, handle, Source::Replica, next_offset)
    } else {
        let (topic, handle) = door.node.route(topic, topic_id, partition)?;
        let next_offset = handle.resolve(position).await?;
        (topic, handle, Source::Leader, next_offset)
    };
    Ok(Cursor {
        topic: topic.name.clone(),
        topic_id: topic.id.clone(),
        partition,
        handle,
        source,
        rack: wanted.rack.clone(),
        misses: 0,
        next_offset,
        wait: None,
    })
}

/// Waits for an answer; for ever if nothing was asked.
async fn answer(looking: &mut Option<BoxFuture<'static, Look>>) -> Look {
    match looking {
        Some(looking) => looking.await,
        None => std::future::pending().await,
    }
}

/// Whether the stream goes on after a request.
#[derive(PartialEq, Eq)]
enum Next {
    GoOn,
    End,
}
