//! Finds a group's coordinator: on this node, or the hint where it is.
//!
//! Owns: the offsets topic's existence, the coordinators of its partitions that this node leads, and the calls to them. Never: what a
//! call means; `shard` and below have that.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use highwater_proto::partitioner::partition_for_key;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use super::commands::{Answer, Command, Described, Heartbeat, Listed, Ticket, ToMember};
use super::engine::{JoinSpec, Owned, Place};
use super::offsets::{NewOffset, Progress};
use super::options::{
    CLIENT_ID_BYTES_MAX, COMMIT_OFFSETS_MAX, GroupOptions, MEMBER_ID_BYTES_MAX, MEMBER_TOPICS_MAX,
    NAME_BYTES_MAX, OFFSETS_TOPIC,
};
use super::shard::{Shard, Surroundings};
use crate::cluster::Node;
use crate::env::{Clock, Tasks};
use crate::error::BrokerError;
use crate::metrics::Metrics;

/// Things asked of a coordinator that wait; whoever asks more waits too.
const COMMANDS_MAX: usize = 1_024;
/// Messages to one member that its stream has not taken yet; with more it is cut off.
const OUTBOX_MAX: usize = 256;

/// Size of the offsets topic's segments, as a topic's configuration has it.
const SEGMENT_BYTES: &str = "8388608";

/// A coordinator that was started.
struct Running {
    leader_epoch: u64,
    commands: mpsc::Sender<Command>,
}

struct Inner {
    surroundings: Surroundings,
    tasks: Tasks,
    shards: Mutex<BTreeMap<u32, Running>>,
    sessions: AtomicU64,
}

/// The consumer groups of this node. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Groups {
    inner: Arc<Inner>,
}

/// A member's way to its coordinator.
#[derive(Clone)]
pub(crate) struct MemberLine {
    ticket: Ticket,
    commands: mpsc::Sender<Command>,
}

impl Groups {
    pub(crate) fn new(
        node: Node,
        clock: Arc<dyn Clock>,
        tasks: Tasks,
        metrics: Arc<Metrics>,
        options: GroupOptions,
    ) -> Self {
        let surroundings = Surroundings { node, clock, metrics, options };
        let (shards, sessions) = (Mutex::default(), AtomicU64::new(0));
        Self { inner: Arc::new(Inner { surroundings, tasks, shards, sessions }) }
    }

    /// What is configured.
    pub(crate) fn options(&self) -> &GroupOptions {
        &self.inner.surroundings.options
    }

    /// Takes a member in, or back: `returns` says that it was in the group before. What it is told arrives at the receiver, whose
    /// end means that this is not its coordinator any more.
    pub(crate) async fn join(
        &self,
        group: &str,
        mut spec: JoinSpec,
        returns: bool,
    ) -> Result<(MemberLine, mpsc::Receiver<ToMember>), BrokerError> {
        check_name("group", group)?;
        if !spec.static_id.is_empty() {
            check_name("static_id", &spec.static_id)?;
        }
        if spec.member_id.is_empty() || spec.member_id.len() > MEMBER_ID_BYTES_MAX {
            let why = format!("1 to {MEMBER_ID_BYTES_MAX} bytes, drawn by the member");
            return Err(BrokerError::InvalidArgument { field: "member_id".into(), why });
        }
        if spec.topics.is_empty() || spec.topics.len() > MEMBER_TOPICS_MAX {
            let why = format!("{} given; 1 to {MEMBER_TOPICS_MAX} are allowed", spec.topics.len());
            return Err(BrokerError::InvalidArgument { field: "topics".into(), why });
        }
        let view = self.inner.surroundings.node.member_view()?;
        if let Some(topic) = spec.topics.iter().find(|topic| !view.topics.contains_key(*topic)) {
            return Err(self.inner.surroundings.node.unknown_topic(topic));
        }
        spec.client_id.truncate(spec.client_id.floor_char_boundary(CLIENT_ID_BYTES_MAX));
        let commands = self.coordinator(group).await?;
        let ticket = Ticket {
            group: group.to_owned(),
            member_id: spec.member_id.clone(),
            session: self.inner.sessions.fetch_add(1, Ordering::Relaxed),
        };
        let (outbox, inbox) = mpsc::channel(OUTBOX_MAX);
        let line = MemberLine { ticket: ticket.clone(), commands: commands.clone() };
        ask(&commands, |answer| Command::Join { ticket, spec, returns, outbox, answer }).await?;
        Ok((line, inbox))
    }

    /// Stores progress of a group without members.
    pub(crate) async fn commit(
        &self,
        group: &str,
        offsets: Vec<NewOffset>,
    ) -> Result<(), BrokerError> {
        check_name("group", group)?;
        check_count(offsets.len())?;
        let commands = self.coordinator(group).await?;
        let group = group.to_owned();
        ask(&commands, |answer| Command::CommitUnowned { group, offsets, answer }).await
    }

    /// Moves progress of a group without members, or only looks whether that would be allowed.
    pub(crate) async fn reset(
        &self,
        group: &str,
        offsets: Vec<NewOffset>,
        dry_run: bool,
    ) -> Result<(), BrokerError> {
        check_name("group", group)?;
        check_count(offsets.len())?;
        let commands = self.coordinator(group).await?;
        let group = group.to_owned();
        ask(&commands, |answer| Command::Reset { group, offsets, dry_run, answer }).await
    }

    /// A group's progress.
    pub(crate) async fn fetch(&self, group: &str) -> Result<Vec<(Place, Progress)>, BrokerError> {
        let commands = self.coordinator(group).await?;
        let group = group.to_owned();
        ask(&commands, |answer| Command::Fetch { group, answer }).await
    }

    /// A group with its members and partitions.
    pub(crate) async fn describe(&self, group: &str) -> Result<Described, BrokerError> {
        let commands = self.coordinator(group).await?;
        let group = group.to_owned();
        ask(&commands, |answer| Command::Describe { group, answer }).await
    }

    /// Forgets a group without members.
    pub(crate) async fn delete(&self, group: &str) -> Result<(), BrokerError> {
        let commands = self.coordinator(group).await?;
        let group = group.to_owned();
        ask(&commands, |answer| Command::Delete { group, answer }).await
    }

    /// The groups that this node coordinates, by name.
    pub(crate) async fn list(&self) -> Result<Vec<Listed>, BrokerError> {
        let view = self.inner.surroundings.node.member_view()?;
        let partitions = view.topics.get(OFFSETS_TOPIC).map_or(0, |topic| topic.partitions.len());
        let mut listed = Vec::new();
        for partition in 0..u32::try_from(partitions).unwrap_or(u32::MAX) {
            match self.shard(partition) {
                Ok(commands) => {
                    listed.extend(ask(&commands, |answer| Command::List { answer }).await?);
                }
                // Somebody else lists those.
                Err(BrokerError::NotCoordinator { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        listed.sort_by(|a, b| a.group.cmp(&b.group));
        Ok(listed)
    }

    /// The way to a group's coordinator. The offsets topic is created with the first question about any group.
    async fn coordinator(&self, group: &str) -> Result<mpsc::Sender<Command>, BrokerError> {
        let node = &self.inner.surroundings.node;
        let view = node.member_view()?;
        if !node.is_caught_up() {
            // What it does not know yet might look deleted.
            return Err(node.unknown_topic(OFFSETS_TOPIC));
        }
        let partitions = match view.topics.get(OFFSETS_TOPIC) {
            Some(topic) => topic.partitions.len(),
            None => self.create_topic().await?,
        };
        let partitions = u32::try_from(partitions).unwrap_or(u32::MAX).max(1);
        self.shard(partition_for_key(group.as_bytes(), partitions))
    }

    /// Creates the offsets topic; answers with the number of its partitions.
    async fn create_topic(&self) -> Result<usize, BrokerError> {
        let Surroundings { node, options, .. } = &self.inner.surroundings;
        let nodes = u32::try_from(node.view().nodes.len()).unwrap_or(u32::MAX);
        let replicas = options.offsets_replication_factor.min(nodes);
        // Small segments: what is not compacted yet is all that a new coordinator reads beside one record for each key.
        let config = [("cleanup.policy", "compact"), ("segment.bytes", SEGMENT_BYTES)]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into();
        let partitions = options.offsets_partitions;
        match node.create_topic(OFFSETS_TOPIC, partitions, replicas, config).await {
            Ok(topic) => Ok(topic.partitions.len()),
            // Somebody else was faster.
            Err(BrokerError::TopicExists { .. }) => {
                let topic = node.view().topics.get(OFFSETS_TOPIC).cloned();
                topic.map(|topic| topic.partitions.len()).ok_or_else(|| BrokerError::NotReady {
                    why: "the topic of the consumer groups is being created".into(),
                })
            }
            Err(error) => Err(error),
        }
    }

    /// The way to the coordinator of one partition, started if it does not run in the current leader epoch.
    fn shard(&self, partition: u32) -> Result<mpsc::Sender<Command>, BrokerError> {
        let Inner { surroundings, tasks, shards, .. } = &*self.inner;
        let (_, handle) = match surroundings.node.route(OFFSETS_TOPIC, "", partition) {
            Err(BrokerError::NotLeader { leader }) => {
                return Err(BrokerError::NotCoordinator { leader });
            }
            routed => routed?,
        };
        if *surroundings.node.watch_stopping().borrow() {
            return Err(BrokerError::NotCoordinator { leader: None });
        }
        let leader_epoch = handle.leader_epoch();
        let mut shards = shards.lock();
        if let Some(running) = shards.get(&partition)
            && running.leader_epoch == leader_epoch
            && !running.commands.is_closed()
        {
            return Ok(running.commands.clone());
        }
        let (commands, received) = mpsc::channel(COMMANDS_MAX);
        let shard = Shard::new(surroundings.clone(), handle, leader_epoch);
        tasks.spawn(shard.run(received));
        shards.insert(partition, Running { leader_epoch, commands: commands.clone() });
        Ok(commands)
    }
}

impl MemberLine {
    /// Passes a sign of life on.
    pub(crate) async fn heartbeat(&self, heartbeat: Heartbeat) {
        self.say(Command::Heartbeat(self.ticket.clone(), heartbeat)).await;
    }

    /// Passes on what is not read any more.
    pub(crate) async fn release(&self, partitions: Vec<Owned>) {
        self.say(Command::Release(self.ticket.clone(), partitions)).await;
    }

    /// Passes progress on; the answer comes with what the member is told.
    pub(crate) async fn commit(&self, request_id: u64, offsets: Vec<(Owned, i64, String)>) {
        let ticket = self.ticket.clone();
        self.say(Command::Commit { ticket, request_id, offsets }).await;
    }

    /// The member goes.
    pub(crate) async fn leave(&self) {
        self.say(Command::Leave(self.ticket.clone())).await;
    }

    /// Its stream has ended.
    pub(crate) async fn disconnected(&self) {
        self.say(Command::Disconnected(self.ticket.clone())).await;
    }

    async fn say(&self, command: Command) {
        // A coordinator that is none any more shows in the end of what the member is told.
        let _ = self.commands.send(command).await;
    }
}

/// Asks a coordinator. One that ends before it answers is none.
async fn ask<T>(
    commands: &mpsc::Sender<Command>,
    command: impl FnOnce(Answer<T>) -> Command,
) -> Result<T, BrokerError> {
    let (answer, answered) = oneshot::channel();
    let none = || BrokerError::NotCoordinator { leader: None };
    commands.send(command(answer)).await.map_err(|_| none())?;
    answered.await.map_err(|_| none())?
}

/// Names of groups and static ids: short, and without control characters.
fn check_name(field: &str, name: &str) -> Result<(), BrokerError> {
    let why = if name.is_empty() {
        "a name is needed".to_owned()
    } else if name.len() > NAME_BYTES_MAX {
        format!("{} bytes are more than the {NAME_BYTES_MAX} allowed", name.len())
    } else if name.chars().any(char::is_control) {
        "control characters are not allowed".to_owned()
    } else {
        return Ok(());
    };
    Err(BrokerError::InvalidArgument { field: field.to_owned(), why })
}

/// How many offsets one request may carry.
pub(crate) fn check_count(count: usize) -> Result<(), BrokerError> {
    if count <= COMMIT_OFFSETS_MAX {
        return Ok(());
    }
    let why = format!("{count} given; at most {COMMIT_OFFSETS_MAX} are allowed");
    Err(BrokerError::InvalidArgument { field: "offsets".to_owned(), why })
}
