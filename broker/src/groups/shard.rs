//! The coordinator of the groups of one partition of the offsets topic, for as long as this node leads it in one leader epoch.
//!
//! Owns: one task. It reads the partition, takes what is asked in bursts, writes what follows as one batch, and says it when that
//! is on the disks of a majority; the next burst gathers meanwhile. Never: survives a doubt. Whatever goes wrong with a write ends the task
//! with everything it knows: the next coordinator, here or elsewhere, reads the log.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use highwater_proto::batch::{BatchBuilder, BatchView, Compression};
use tokio::sync::mpsc;

use super::commands::{Answer, Command, Heartbeat, Listed, Report, Ticket, ToMember};
use super::engine::{Group, JoinSpec, Owned, Place};
use super::offsets::{NewOffset, Progress};
use super::options::{
    GROUP_BYTES_MAX, GroupOptions, METADATA_BYTES_MAX, PROGRESS_TIMEOUT_MAX, PROOF_AGE_MAX,
};
use super::records::{self, Read, Written};
use super::state::{GroupState, Message, Outcome, topic_of};
use crate::cluster::{ClusterView, Node};
use crate::env::Clock;
use crate::error::BrokerError;
use crate::metrics::{GroupGauges, Metrics};
use crate::replica::{PartitionHandle, Source};

/// Things taken in one turn.
const BURST_MAX: usize = 256;
/// Bytes of one batch, about.
const BATCH_BYTES: usize = 512 << 10;
/// Bytes read at once while loading.
const LOAD_BYTES: u64 = 1 << 20;
/// How often a coordinator looks whether it still leads, and whether topics have changed.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// How often one that waits for metadata looks whether they have come.
const METADATA_PAUSE: Duration = Duration::from_millis(20);
/// How often it looks for groups whose progress has been kept long enough.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(30);
/// In how many steps of its retention it stores how long a group has been empty. With each coordinator up to so much is not counted.
const AGE_STEPS: u32 = 16;

/// What coordinators stand on.
#[derive(Clone)]
pub(super) struct Surroundings {
    pub(super) node: Node,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) options: GroupOptions,
}

/// An answer that waits for its turn's records to be committed.
type Saying = Box<dyn FnOnce() + Send>;

/// See the module.
pub(super) struct Shard {
    surroundings: Surroundings,
    handle: PartitionHandle,
    /// The leader epoch in which the log was read. In another one it may say something else.
    leader_epoch: u64,
    groups: HashMap<String, GroupState>,
    outcome: Outcome,
    sayings: Vec<Saying>,
    /// The cluster as it is taken to be in this turn: everything in a turn goes by the same topics.
    view: Arc<ClusterView>,
    /// The latest metadata whose topics were taken in, and the latest of which the log says that they were.
    taken_in: u64,
    seen: u64,
    expires_at: Duration,
    /// When what a majority has stored last was sent to it: at that time nobody else had taken over.
    proven_at: Duration,
    gauges: GroupGauges,
}

impl Shard {
    pub(super) fn new(
        surroundings: Surroundings,
        handle: PartitionHandle,
        leader_epoch: u64,
    ) -> Self {
        Self {
            gauges: surroundings.metrics.group_gauges(),
            surroundings,
            handle,
            leader_epoch,
            groups: HashMap::new(),
            outcome: Outcome::default(),
            sayings: Vec::new(),
            view: Arc::default(),
            taken_in: 0,
            seen: 0,
            expires_at: Duration::ZERO,
            proven_at: Duration::ZERO,
        }
    }

    /// Runs until the node does not lead the partition in this leader epoch any more.
    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        if let Err(error) = self.load().await {
            tracing::info!(%error, "a coordinator of consumer groups could not begin");
            return;
        }
        let mut burst = Vec::with_capacity(BURST_MAX);
        while self.leads() {
            let wait = self.until_due();
            let asked = commands.recv_many(&mut burst, BURST_MAX);
            // Time has passed, or something was asked: both are a turn. Unless nobody can ask any more.
            if let Ok(0) = tokio::time::timeout(wait, asked).await {
                return;
            }
            if *self.surroundings.node.watch_stopping().borrow() {
                return;
            }
            self.take_in_topics();
            for command in burst.drain(..) {
                self.take(command);
            }
            self.pass_time();
            if let Err(error) = self.flush().await {
                tracing::info!(%error, "a coordinator of consumer groups ends");
                return;
            }
            self.count();
        }
    }

    fn leads(&self) -> bool {
        self.handle.is_leader() && self.handle.leader_epoch() == self.leader_epoch
    }

    fn now(&self) -> Duration {
        self.surroundings.clock.monotonic()
    }

    fn until_due(&self) -> Duration {
        let due = self.groups.values().filter_map(|state| state.group.next_deadline()).min();
        let wait = due.map_or(LOOK_INTERVAL, |due| due.saturating_sub(self.now()));
        // A timer may fire a little early; a turn for nothing each millisecond is cheaper than a late one.
        wait.clamp(Duration::from_millis(1), LOOK_INTERVAL)
    }

    /// Reads everything that was committed before this leader epoch: a record of its own marks the end of that.
    async fn load(&mut self) -> Result<(), BrokerError> {
        let end = self.write(vec![records::beginning()]).await?;
        let mut values = HashMap::new();
        let mut from = self.handle.log_start_offset();
        while from < end {
            self.handle.wait_readable(from, Source::Leader).await?;
            let stored = self.handle.read(from, LOAD_BYTES, Source::Leader)?;
            if stored.entries.is_empty() && stored.next_offset <= from {
                break;
            }
            for entry in stored.entries {
                let unreadable = |error: highwater_proto::batch::BatchError| {
                    BrokerError::Internal(format!("a batch of the offsets topic: {error}"))
                };
                let batch = BatchView::parse(entry.payload).map_err(unreadable)?;
                for record in batch.records().map_err(unreadable)? {
                    match records::read(&record.map_err(unreadable)?) {
                        Read::Group(name, Some(value)) => _ = values.insert(name, value),
                        Read::Group(name, None) => _ = values.remove(&name),
                        Read::Offset(name, place, Some(progress)) => {
                            self.groups.entry(name).or_default().offsets.set(place, progress);
                        }
                        Read::Offset(name, place, None) => {
                            self.groups.entry(name).or_default().offsets.remove(&place);
                        }
                        Read::Seen(index) => self.seen = self.seen.max(index),
                        Read::Other => {}
                    }
                }
            }
            from = stored.next_offset;
            // Other tasks of the node want to run too.
            tokio::task::yield_now().await;
        }
        self.wait_for_metadata().await?;
        // What was committed after our mark, was committed by us: nothing.
        self.groups.retain(|name, state| values.contains_key(name) || !state.offsets.is_empty());
        let now = self.now();
        for (name, value) in values {
            let empty_for = Duration::from_millis(value.empty_for_ms);
            // The old coordinator may have answered members a little longer than the new one knows.
            let group = records::restore(now + PROOF_AGE_MAX, value);
            self.groups.entry(name).or_default().restored(now, group, empty_for);
        }
        tracing::info!(groups = self.groups.len(), "coordinating consumer groups");
        Ok(())
    }

    /// Waits until this node has seen as much of the metadata as earlier coordinators had: to it, a topic that they knew would look
    /// deleted, and so would what groups own and have done in it.
    async fn wait_for_metadata(&mut self) -> Result<(), BrokerError> {
        let node = &self.surroundings.node;
        while !node.is_caught_up() || node.view().metadata_index < self.seen {
            if !self.leads() || *node.watch_stopping().borrow() {
                return Err(BrokerError::NotCoordinator { leader: None });
            }
            tokio::time::sleep(METADATA_PAUSE).await;
        }
        Ok(())
    }

    /// Writes records; answers with the offset behind them once they are committed.
    async fn write(&mut self, records: Vec<Written>) -> Result<u64, BrokerError> {
        let invalid = |error: highwater_proto::batch::BatchError| BrokerError::InvalidBatch(error);
        let (began, timestamp_ms) = (self.now(), self.surroundings.clock.wall_ms());
        let mut tickets = Vec::new();
        let mut records = records.into_iter().peekable();
        while records.peek().is_some() {
            let mut builder = BatchBuilder::new(Compression::None);
            let mut bytes = 0;
            while bytes < BATCH_BYTES
                && let Some((key, value)) = records.next()
            {
                bytes += key.len() + value.as_ref().map_or(0, bytes::Bytes::len);
                builder.push(timestamp_ms, Some(&key), value.as_deref(), &[]).map_err(invalid)?;
            }
            let batch = builder.build().map_err(invalid)?;
            let header = *BatchView::parse(batch.clone()).map_err(invalid)?.header();
            tickets.push((self.handle.append_in_epoch(batch, &header, self.leader_epoch)?, header));
        }
        let mut end = 0;
        for (ticket, header) in tickets {
            let appended = ticket.await?;
            end = appended.base_offset + u64::from(header.offset_span());
        }
        self.proven_at = began;
        Ok(end)
    }

    /// Stores what this turn brought, then says it.
    async fn flush(&mut self) -> Result<(), BrokerError> {
        let Outcome { mut records, messages, moved } = std::mem::take(&mut self.outcome);
        let sayings = std::mem::take(&mut self.sayings);
        let says_something = !messages.is_empty() || !sayings.is_empty();
        let proof_age = self.now().saturating_sub(self.proven_at);
        if records.is_empty() && says_something && proof_age > PROOF_AGE_MAX / 2 {
            // Nothing is said on the word of this node alone: it may be slow to notice that another one leads.
            records.push(records::beginning());
        }
        if !records.is_empty() {
            if self.taken_in > self.seen {
                self.seen = self.taken_in;
                records.push(records::seen(self.seen));
            }
            self.write(records).await?;
        }
        if moved {
            self.surroundings.metrics.group_rebalanced();
        }
        for Message { outbox, body, to } in messages {
            // A stream that takes nothing any more has ended, or is ended by this: its member comes back with another.
            if outbox.try_send(body).is_err()
                && let Some(state) = self.groups.get_mut(&to.group)
            {
                state.disconnected(&to.member_id, to.session);
            }
        }
        for say in sayings {
            say();
        }
        Ok(())
    }

    /// Shows how many groups and members there are.
    fn count(&mut self) {
        let members: usize = self.groups.values().map(|state| state.group.members.len()).sum();
        self.gauges.set(self.groups.len(), members);
    }

    /// What the cluster's topics bring. Before anything else in a turn: nobody is told of progress in a topic that is not there any
    /// more.
    fn take_in_topics(&mut self) {
        self.view = self.surroundings.node.view();
        let now = self.now();
        let is_new = self.view.metadata_index != self.taken_in;
        self.taken_in = self.view.metadata_index;
        for (name, state) in &mut self.groups {
            if !is_new && state.group.left_out() == 0 {
                continue;
            }
            for place in
                state.offsets.forget_deleted(|topic| Some(&*self.view.topics.get(topic)?.id))
            {
                self.outcome.records.push(records::offset(name, &place, None));
            }
            state.set_topics(name, &self.view);
            state.settle(name, now, &mut self.outcome);
        }
    }

    /// What time brings.
    fn pass_time(&mut self) {
        let now = self.now();
        let retention = self.surroundings.options.offsets_retention;
        let expires = now >= self.expires_at;
        if expires {
            self.expires_at = now + EXPIRY_INTERVAL.min(retention / AGE_STEPS);
        }
        let mut over = Vec::new();
        for (name, state) in &mut self.groups {
            state.group.tick(now);
            state.settle(name, now, &mut self.outcome);
            if expires && state.is_over(now, retention) {
                state.erase(name, &mut self.outcome);
                over.push(name.clone());
            } else if expires {
                state.age(name, now, retention / AGE_STEPS, &mut self.outcome);
            }
        }
        for name in over {
            self.groups.remove(&name);
        }
    }

    /// Answers when this turn's records are committed.
    fn answer<T: Send + 'static>(&mut self, answer: Answer<T>, value: Result<T, BrokerError>) {
        // Nobody may be waiting any more.
        self.sayings.push(Box::new(move || _ = answer.send(value)));
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Join { ticket, spec, returns, outbox, answer } => {
                let joined = self.join(&ticket, spec, returns, outbox);
                self.answer(answer, joined);
            }
            Command::Heartbeat(ticket, heartbeat) => self.heartbeat(&ticket, heartbeat),
            Command::Release(ticket, partitions) => self.with_member(&ticket, |state, id| {
                state.group.release(id, &partitions);
            }),
            Command::Commit { ticket, request_id, offsets } => {
                self.commit(&ticket, request_id, offsets);
            }
            Command::Leave(ticket) => self.with_member(&ticket, |state, id| state.group.leave(id)),
            Command::Disconnected(ticket) => {
                if let Some(state) = self.groups.get_mut(&ticket.group) {
                    state.disconnected(&ticket.member_id, ticket.session);
                }
            }
            Command::CommitUnowned { group, offsets, answer } => {
                let done = self.store_unowned(&group, offsets, GroupState::advance);
                self.answer(answer, done);
            }
            Command::Reset { group, offsets, dry_run, answer } => {
                let done = match dry_run {
                    true => self.check_unowned(&group, &offsets),
                    false => self.store_unowned(&group, offsets, GroupState::reset),
                };
                self.answer(answer, done);
            }
            Command::Fetch { group, answer } => {
                let progress = self.groups.get(&group).map(|state| {
                    state.offsets.iter().map(|(place, it)| (place.clone(), it.clone())).collect()
                });
                self.answer(answer, Ok(progress.unwrap_or_default()));
            }
            Command::Describe { group, answer } => {
                let now = self.now();
                let found = self.groups.get(&group).map(|state| state.describe(now));
                self.answer(answer, found.ok_or(BrokerError::UnknownGroup { group }));
            }
            Command::Delete { group, answer } => {
                let deleted = self.delete(group);
                self.answer(answer, deleted);
            }
            Command::List { answer } => {
                let listed = self.groups.iter().map(|(group, state)| Listed {
                    group: group.clone(),
                    standing: state.standing(),
                    members: state.group.members.len(),
                });
                let listed = listed.collect();
                self.answer(answer, Ok(listed));
            }
        }
    }

    /// The group of this name; made if there is room for one.
    fn group(&mut self, name: &str) -> Result<&mut GroupState, BrokerError> {
        let groups_max = self.surroundings.options.groups_max;
        if !self.groups.contains_key(name) && self.groups.len() >= groups_max {
            let limit = groups_max.to_string();
            return Err(BrokerError::Overloaded { what: "groups of one coordinator", limit });
        }
        // Each record of a group made it grow by one at the most: no earlier group of this name came so far.
        let epoch = self.handle.high_watermark() + self.outcome.records.len() as u64;
        let new = || GroupState::new(Group::new(epoch));
        Ok(self.groups.entry(name.to_owned()).or_insert_with(new))
    }

    fn join(
        &mut self,
        ticket: &Ticket,
        spec: JoinSpec,
        returns: bool,
        outbox: mpsc::Sender<ToMember>,
    ) -> Result<(), BrokerError> {
        let now = self.now();
        let view = Arc::clone(&self.view);
        let members_max = self.surroundings.options.members_max;
        let state = self.group(&ticket.group)?;
        if returns && state.group.was_replaced(&spec) {
            return Err(BrokerError::replaced());
        }
        let members = &state.group.members;
        if !members.contains_key(&spec.member_id) && members.len() >= members_max {
            let limit = members_max.to_string();
            return Err(BrokerError::Overloaded { what: "members of one group", limit });
        }
        // What it would grow to is tried on a copy: a group that cannot be stored must not come to be.
        let mut grown = state.group.clone();
        grown.join(now, spec.clone());
        grown.set_topics(|name| topic_of(&view, name), usize::MAX);
        if records::places_max(&grown).is_none_or(|max| max < grown.places().count()) {
            let limit = format!("{GROUP_BYTES_MAX} bytes of members and partitions");
            return Err(BrokerError::Overloaded { what: "the group", limit });
        }
        let mut outcome = std::mem::take(&mut self.outcome);
        let state = self.group(&ticket.group)?;
        state.join(now, spec, ticket, outbox, &mut outcome);
        state.set_topics(&ticket.group, &view);
        state.settle(&ticket.group, now, &mut outcome);
        self.outcome = outcome;
        Ok(())
    }

    /// Does something for a member whose stream this is, and settles what follows.
    fn with_member(&mut self, ticket: &Ticket, act: impl FnOnce(&mut GroupState, &str)) {
        let now = self.now();
        let Some(state) = self.groups.get_mut(&ticket.group) else { return };
        if state.is_current(&ticket.member_id, ticket.session) {
            act(state, &ticket.member_id);
            state.settle(&ticket.group, now, &mut self.outcome);
        }
    }

    fn heartbeat(&mut self, ticket: &Ticket, heartbeat: Heartbeat) {
        let now = self.now();
        let Some(state) = self.groups.get_mut(&ticket.group) else { return };
        if !state.is_current(&ticket.member_id, ticket.session) {
            return;
        }
        let Heartbeat { sequence, has_progressed, extend, reports } = heartbeat;
        state.group.heard(now, &ticket.member_id, has_progressed, extend.min(PROGRESS_TIMEOUT_MAX));
        for Report { place, activity } in reports {
            state.report(&ticket.member_id, place, activity);
        }
        state.say(&ticket.member_id, ToMember::Heartbeat { sequence }, &mut self.outcome);
    }

    fn commit(&mut self, ticket: &Ticket, request_id: u64, offsets: Vec<(Owned, i64, String)>) {
        let (now, wall_ms) = (self.now(), self.surroundings.clock.wall_ms());
        let Some(state) = self.groups.get_mut(&ticket.group) else { return };
        if !state.is_current(&ticket.member_id, ticket.session) {
            return;
        }
        state.group.heard(now, &ticket.member_id, true, Duration::ZERO);
        let mut fenced = Vec::new();
        let wrong =
            offsets.iter().find_map(|(_, offset, metadata)| check_offset(*offset, metadata));
        if let Some(error) = wrong {
            let body = ToMember::Committed { request_id, outcome: Err(error) };
            return state.say(&ticket.member_id, body, &mut self.outcome);
        }
        for (owned, offset, metadata) in offsets {
            let topic = state.group.topics().get(&owned.topic);
            let (true, Some(topic)) = (state.group.owns(&ticket.member_id, &owned), topic) else {
                fenced.push(owned);
                continue;
            };
            // Of the topic that it was given, whatever has its name by now.
            let topic_id = topic.id.clone();
            let progress = Progress { offset, topic_id, metadata, committed_at_ms: wall_ms };
            let place = (owned.topic, owned.partition);
            state.advance(&ticket.group, place, progress, &mut self.outcome);
        }
        self.surroundings.metrics.group_committed();
        let body = ToMember::Committed { request_id, outcome: Ok(fenced) };
        state.say(&ticket.member_id, body, &mut self.outcome);
    }

    /// Whether progress may be stored by somebody who is no member: only where there are none.
    fn check_unowned(&self, group: &str, offsets: &[NewOffset]) -> Result<(), BrokerError> {
        let members = self.groups.get(group).map_or(0, |state| state.group.members.len());
        if members > 0 {
            return Err(BrokerError::GroupNotEmpty { group: group.to_owned(), members });
        }
        for new in offsets {
            let Some(topic) = self.view.topics.get(&new.topic) else {
                return Err(self.surroundings.node.unknown_topic(&new.topic));
            };
            if !new.topic_id.is_empty() && new.topic_id != topic.id {
                return Err(BrokerError::TopicIdMismatch {
                    topic: new.topic.clone(),
                    expected: new.topic_id.clone(),
                    found: topic.id.clone(),
                });
            }
            let partitions = u32::try_from(topic.partitions.len()).unwrap_or(u32::MAX);
            if new.partition >= partitions {
                let (topic, partition) = (new.topic.clone(), new.partition);
                return Err(BrokerError::UnknownPartition { topic, partition, partitions });
            }
            if let Some(error) = check_offset(new.offset, &new.metadata) {
                return Err(error);
            }
        }
        Ok(())
    }

    fn store_unowned(
        &mut self,
        group: &str,
        offsets: Vec<NewOffset>,
        store: fn(&mut GroupState, &str, Place, Progress, &mut Outcome),
    ) -> Result<(), BrokerError> {
        self.check_unowned(group, &offsets)?;
        let (now, wall_ms) = (self.now(), self.surroundings.clock.wall_ms());
        let view = Arc::clone(&self.view);
        self.group(group)?;
        let mut outcome = std::mem::take(&mut self.outcome);
        let state = self.groups.entry(group.to_owned()).or_default();
        state.touch(group, now, &mut outcome);
        for NewOffset { topic, partition, offset, metadata, topic_id: _ } in offsets {
            let topic_id = view.topics.get(&topic).map(|it| it.id.clone()).unwrap_or_default();
            let progress = Progress { offset, topic_id, metadata, committed_at_ms: wall_ms };
            store(state, group, (topic, partition), progress, &mut outcome);
        }
        self.outcome = outcome;
        Ok(())
    }

    fn delete(&mut self, group: String) -> Result<(), BrokerError> {
        let Some(state) = self.groups.get(&group) else {
            return Err(BrokerError::UnknownGroup { group });
        };
        let members = state.group.members.len();
        if members > 0 {
            return Err(BrokerError::GroupNotEmpty { group, members });
        }
        state.erase(&group, &mut self.outcome);
        self.groups.remove(&group);
        Ok(())
    }
}

fn check_offset(offset: i64, metadata: &str) -> Option<BrokerError> {
    let wrong = |field: &str, why: String| {
        Some(BrokerError::InvalidArgument { field: field.to_owned(), why })
    };
    if offset < 0 {
        return wrong("offset", format!("{offset} is none: offsets count from 0"));
    }
    if metadata.len() > METADATA_BYTES_MAX {
        return wrong("metadata", format!("{METADATA_BYTES_MAX} bytes are allowed"));
    }
    None
}
