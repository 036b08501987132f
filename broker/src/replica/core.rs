//! The consensus core of one replica: raft over one segment log.
//!
//! Owns: the order of things: what is appended before what is sent, what is durable before what is promised, which
//! offsets a batch gets, who is told what. Synchronous: messages, ticks and proposals go in, [`Effects`] come out. Never: a
//! clock, a socket, a thread or an await; it runs in a plain `#[test]` and in the simulator.
//!
//! `core/propose.rs` takes proposals; `core/ready.rs` handles raft's Ready; `core/reads.rs` proves that it leads;
//! `core/quiesce.rs` lets groups sleep; `core/open.rs` creates and recovers; this file is what drivers call.

#[cfg(test)]
mod full_disk_tests;
#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod install_tests;
mod members;
#[cfg(test)]
mod members_tests;
mod open;
mod propose;
mod quiesce;
mod reads;
#[cfg(test)]
mod reads_tests;
mod ready;
mod rebuild;
#[cfg(test)]
mod reopen_tests;
#[cfg(test)]
mod test_access;
#[cfg(test)]
mod test_group;
mod waiters;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use highwater_proto::batch::BatchHeader;
use highwater_proto::internal::{
    AppendedAck, MembersChange, Quiesce, ReplicaCheckpoint, ReplicaState,
};
use highwater_proto::v1::Acks;
use highwater_storage::{
    Compacted, CompactedManifest, DiskReserve, HardState, Log, LogStart, StagedCompaction,
    SyncPoint,
};
use raft::eraftpb::{Message, MessageType};
use raft::{RawNode, StateRole};
use rand::Rng;
use rand::rngs::SmallRng;

pub(crate) use open::{Birth, CoreConfig, OpenError};
pub(crate) use quiesce::Alarm;
pub(crate) use waiters::Answer;
pub use waiters::Appended;

use self::quiesce::Quiescence;
use self::reads::Reads;
use self::ready::RoomFor;
use self::waiters::Waiters;
use super::checkpoint::SmallFiles;
use super::convert;
use super::envelope;
use super::members::Follower;
use super::partition_reader::PartitionReader;
use super::producers::Producers;
use super::raft_log::{RaftLog, decode_snapshot};
use crate::error::BrokerError;

/// Bytes that may be proposed and not yet committed, per group. Asserted against the batch limit below.
pub(crate) const UNCOMMITTED_BYTES_MAX: u64 = 64 << 20;
/// Entries that one append message carries, in bytes; an entry larger than this travels alone.
pub(crate) const MESSAGE_BYTES_MAX: u64 = 1 << 20;
/// Append messages in flight per peer and group.
pub(crate) const MESSAGES_IN_FLIGHT_MAX: usize = 16;
/// Longest wait for a leader whose connection broke, beyond the shortest election timeout.
const LOST_LEADER_TICKS_MAX: usize = 4;
/// Largest command for a state machine.
const COMMAND_BYTES_MAX: usize = 1 << 20;
/// Committed bytes that one Ready hands over.
const COMMITTED_BYTES_MAX: u64 = 16 << 20;

const _: () = assert!(highwater_proto::batch::BATCH_BYTES_MAX as u64 <= UNCOMMITTED_BYTES_MAX);
const _: () = assert!(MESSAGE_BYTES_MAX <= UNCOMMITTED_BYTES_MAX);

/// What a group's committed commands drive: the metadata group has one, partitions have none.
pub trait StateMachine: Send {
    /// Applies a committed command. Must depend on nothing but the state and the command.
    fn apply(&mut self, index: u64, command: &Bytes) -> Bytes;
    /// Replaces the state by an image that was taken after the command at `index`.
    fn restore(&mut self, index: u64, image: &Bytes) -> Result<(), String>;
    /// The whole state.
    fn image(&self) -> Bytes;
}

/// Something to append, with the token under which it will be answered.
#[derive(Debug)]
pub(crate) struct Proposal {
    pub(crate) token: u64,
    pub(crate) body: ProposalBody,
}

#[derive(Debug)]
pub(crate) enum ProposalBody {
    /// A validated batch.
    Batch { batch: Bytes, header: BatchHeader, acks: Acks, only_in: Option<u64> },
    /// A command for the state machine; answered with what `apply` returned.
    Command(Bytes),
    /// Moves the start of the log; answered with the new start once applied.
    AdvanceLogStart(u64),
    /// Changes the members; answered once applied.
    Members(MembersChange),
}

/// What a call asks its driver to do, in this order: persist (in the background), send, answer.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    /// To make durable; then call [`Core::persisted`]. A later one covers all earlier ones.
    pub(crate) persist: Option<Persist>,
    /// Derived state to write down at leisure.
    pub(crate) checkpoints: Vec<ReplicaCheckpoint>,
    /// To send now.
    pub(crate) messages: Vec<Outbound>,
    /// To send now: appended, not yet synced.
    pub(crate) appended: Vec<AppendedAck>,
    /// To send now: about sleeping.
    pub(crate) quiesces: Vec<Quiesce>,
    /// To tell publishers.
    pub(crate) answers: Vec<(u64, Result<Answer, BrokerError>)>,
    /// Bytes and entries appended, for the figures.
    pub(crate) appended_bytes: u64,
    pub(crate) appended_entries: u64,
}

/// A Raft message to another replica of the group.
#[derive(Debug)]
pub(crate) struct Outbound {
    pub(crate) message: Message,
    /// A publisher waits for `quorum`: the receiver should say as soon as it has appended.
    pub(crate) wants_appended: bool,
}

/// What must become durable.
#[derive(Debug)]
pub(crate) struct Persist {
    /// Hand it back to [`Core::persisted`].
    pub(crate) number: u64,
    /// The log's files.
    pub(crate) point: SyncPoint,
    /// To be put into the journal, and synced no later than the log.
    pub(crate) hard_state: Option<HardState>,
}

/// What readers and routers see of a replica.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Visible {
    pub(crate) is_leader: bool,
    /// In service, so that what is committed can be read here.
    pub(crate) serves: bool,
    /// The leader has committed an entry of its own term: its high watermark is not behind what others have seen.
    pub(crate) is_settled: bool,
    /// Replica id of the leader; 0 if none is known.
    pub(crate) leader: u64,
    pub(crate) term: u64,
    pub(crate) log_start_offset: u64,
    pub(crate) high_watermark: u64,
    pub(crate) log_end_offset: u64,
    /// The last entry known to be committed.
    pub(crate) committed_index: u64,
}

/// Why a replica is out of service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quarantine {
    /// For people.
    pub why: String,
    /// What is on disk is damaged: entries of other replicas may mend it.
    pub is_damage: bool,
}

/// A Ready whose state is being made durable, with the messages that wait for it.
struct Unpersisted {
    number: u64,
    /// The term in which it is.
    term: u64,
    messages: Vec<Message>,
}

/// An append after which a leader wants to hear at once.
struct AppendedAsk {
    leader_term: u64,
    /// The last entry it would leave in the log, and that entry's term: if both match, so does everything before.
    index: u64,
    entry_term: u64,
}

/// Derived state of the group's kind.
enum Derived {
    Partition(Producers),
    Machine(Box<dyn StateMachine>),
}

/// One replica.
///
/// Invariants:
/// - Entries are appended to `log` before raft learns of it, and answered or promised only as durable as they are.
/// - `log_start <= high_watermark <= log_end`; the high watermark is the end of the last committed entry here.
/// - Between calls every entry that raft knows is in `log`.
pub(crate) struct Core {
    group: u64,
    replica: u64,
    raw: RawNode<RaftLog>,
    log: Log,
    /// What lies below the log, in a partition that is compacted.
    compacted: Compacted,
    /// The files of the snapshot that is being stepped.
    received: Option<StagedCompaction>,
    files: SmallFiles,
    reserve: Arc<DiskReserve>,
    /// As the file `replica` holds it.
    state: ReplicaState,
    derived: Derived,
    unpersisted: VecDeque<Unpersisted>,
    /// The term that is durable.
    durable_term: u64,
    /// The hard state as last handed to the journal.
    saved: HardState,
    /// End offsets of appended entries above `committed`, by index.
    ends: VecDeque<(u64, u64)>,
    committed: u64,
    high_watermark: u64,
    /// Highest append time in the log; never goes back.
    append_time_ms: i64,
    waiters: Waiters,
    /// On the leader, in `role_term`: what followers have appended, not yet synced, by replica.
    appended: BTreeMap<u64, u64>,
    /// As a follower: the leader wants to hear when this is appended.
    wants_appended: Option<AppendedAsk>,
    role_term: (StateRole, u64),
    random: SmallRng,
    election_ticks: usize,
    timeout_ticks: usize,
    /// Ticks for which a preferred leader without a leader still campaigns early.
    birth_ticks: u32,
    /// The commit index at the last two heartbeats, for `in_sync`.
    committed_before: [u64; 2],
    ticks: u64,
    elections: u64,
    /// The file `replica` is behind `state`, because the disk was full.
    state_unsaved: bool,
    /// The applied index that the file `replica` holds.
    stored_applied: u64,
    broken: Option<Quarantine>,
    /// Nodes of replicas that are no members as far as is known here, and have written.
    strangers: BTreeMap<u64, u64>,
    /// Nobody has asked for the members since they changed.
    members_changed: bool,
    quiescence: Quiescence,
    reads: Reads,
}

impl Core {
    /// Enters service: the first call after `create` or `open`.
    pub(crate) fn begin(&mut self, effects: &mut Effects) {
        if self.birth_ticks > 0 {
            self.campaign();
        }
        self.settle(effects);
    }

    /// Lets a tick's worth of time pass. `live` are the other nodes that are heard from.
    pub(crate) fn tick(&mut self, live: &BTreeSet<u64>, effects: &mut Effects) {
        if self.broken.is_some() || self.is_asleep() {
            return;
        }
        if self.tick_towards_sleep(live, effects) {
            return;
        }
        self.ticks += 1;
        if self.ticks.is_multiple_of(self.election_ticks as u64) {
            self.committed_before = [self.committed_before[1], self.committed];
        }
        if !self.must_not_campaign() {
            self.raw.tick();
            self.campaign_at_birth();
        }
        self.settle(effects);
    }

    /// A preferred leader of a new group does not wait for a full election timeout, and tries again while its peers are
    /// still creating their replicas.
    fn campaign_at_birth(&mut self) {
        if self.birth_ticks == 0 {
            return;
        }
        self.birth_ticks -= 1;
        if self.raw.raft.leader_id != 0 {
            self.birth_ticks = 0;
        } else if self.birth_ticks.is_multiple_of(2) {
            self.campaign();
        }
    }

    /// A replica that is the only voter wins as soon as it stands for election, and the crate panics if it wins with entries that
    /// are not durable yet: it waits for its disk. Others wait by themselves, for votes that leave after a sync.
    fn must_not_campaign(&self) -> bool {
        let raft = &self.raw.raft;
        let members = &self.raw.store().members;
        let wins_alone = members.voters == [self.replica] && members.voters_outgoing.is_empty();
        let lags = raft.raft_log.persisted < raft.raft_log.last_index();
        wins_alone && lags && raft.state != StateRole::Leader
    }

    fn campaign(&mut self) {
        if !self.raw.raft.promotable() || self.must_not_campaign() {
            // One that knows no members yet would be elected by nobody at all.
            return;
        }
        if let Err(error) = self.raw.campaign() {
            tracing::debug!(group = self.group, %error, "campaign refused");
        }
    }

    /// The compacted segments that a message needs before it can be stepped: those of a snapshot that this replica lacks.
    pub(crate) fn files_wanted(&self, message: &Message) -> Option<CompactedManifest> {
        if message.get_msg_type() != MessageType::MsgSnapshot {
            return None;
        }
        let checkpoint = decode_snapshot(message.get_snapshot()).ok()?;
        let raft = &self.raw.raft;
        let known = checkpoint.index <= raft.raft_log.committed
            || raft.raft_log.match_term(checkpoint.index, checkpoint.term);
        if known || message.term < raft.term {
            return None;
        }
        checkpoint.compacted.map(|manifest| convert::manifest_from_wire(&manifest))
    }

    /// Takes a message from a peer. What would make the raft crate panic is refused here, with the reason.
    pub(crate) fn step(
        &mut self,
        message: Message,
        wants_appended: bool,
        effects: &mut Effects,
    ) -> Result<(), String> {
        self.take(message, wants_appended, None, effects)
    }

    /// The same for a snapshot whose compacted segments, which [`Core::files_wanted`] named, are here.
    pub(crate) fn step_snapshot(
        &mut self,
        message: Message,
        received: StagedCompaction,
        effects: &mut Effects,
    ) -> Result<(), String> {
        self.take(message, false, Some(received), effects)
    }

    fn take(
        &mut self,
        message: Message,
        wants_appended: bool,
        received: Option<StagedCompaction>,
        effects: &mut Effects,
    ) -> Result<(), String> {
        if self.broken.is_some() {
            return Ok(());
        }
        if received.as_ref().is_some_and(|staged| !self.compacted.accepts(staged)) {
            return Err("the compacted segments were fetched for a replica that is gone".into());
        }
        if received.is_none() && self.files_wanted(&message).is_some() {
            return Err("the compacted segments of a snapshot come first".into());
        }
        if let Err(why) = self.check_message(&message) {
            self.settle(effects);
            return Err(why);
        }
        if message.get_msg_type() != MessageType::MsgHeartbeatResponse {
            // That may be of a heartbeat before the group fell asleep.
            self.wake(effects);
        }
        let appends = message.get_msg_type() == MessageType::MsgAppend;
        if appends && !message.entries.is_empty() {
            // A full disk is found out here, where the message can still be dropped: the leader sends it again.
            let bytes = message.entries.iter().map(|entry| entry.data.len() as u64).sum();
            let brings_batches = message.entries.iter().any(envelope::is_batch);
            let room_for = match brings_batches {
                true => RoomFor::LeadersBatches,
                false => RoomFor::Control,
            };
            self.make_room(bytes, message.entries.len(), room_for, effects)
                .map_err(|error| format!("no room to append: {error}"))?;
        }
        let last = message.entries.last();
        let asked = AppendedAsk {
            leader_term: message.term,
            index: last.map_or(message.index, |entry| entry.index),
            entry_term: last.map_or(message.log_term, |entry| entry.term),
        };
        if let Err(error) = self.raw.step(message) {
            return Err(error.to_string());
        }
        if appends && wants_appended {
            self.wants_appended = Some(asked);
        }
        self.received = received;
        self.settle(effects);
        // If raft had no use for the snapshot, nobody has one for these.
        self.received = None;
        Ok(())
    }

    /// Refuses what the crate would panic on; finds out when this replica has lost what it promised to hold.
    fn check_message(&mut self, message: &Message) -> Result<(), String> {
        let raft_log = &self.raw.raft.raft_log;
        let last_index = raft_log.last_index();
        if message.to != self.replica {
            return Err(format!("for replica {}, this is {}", message.to, self.replica));
        }
        self.check_sender(message)?;
        let current = message.term >= self.raw.raft.term;
        match message.get_msg_type() {
            MessageType::MsgTimeoutNow if self.must_not_campaign() => {
                Err("the only voter stands for election once its log is durable".into())
            }
            MessageType::MsgHeartbeat if current && message.commit > last_index => {
                let why = format!(
                    "the leader says entry {} was committed here, but the log ends at {last_index}",
                    message.commit
                );
                self.quarantine(why.clone());
                Err(why)
            }
            MessageType::MsgAppendResponse if !message.reject && message.index > last_index => {
                Err(format!("acknowledges entry {} beyond {last_index}", message.index))
            }
            MessageType::MsgAppend if current => {
                let conflict = message.entries.iter().find(|entry| {
                    entry.index <= raft_log.committed
                        && entry.index >= raft_log.first_index()
                        && !raft_log.match_term(entry.index, entry.term)
                });
                match conflict {
                    Some(entry) => {
                        let why = format!(
                            "the leader's entry {} differs from a committed one",
                            entry.index
                        );
                        self.quarantine(why.clone());
                        Err(why)
                    }
                    None => Ok(()),
                }
            }
            MessageType::MsgSnapshot => self.check_snapshot(message),
            _ => Ok(()),
        }
    }

    fn check_snapshot(&self, message: &Message) -> Result<(), String> {
        let checkpoint = decode_snapshot(message.get_snapshot())?;
        let Some(manifest) = checkpoint.compacted.as_ref().map(convert::manifest_from_wire) else {
            return match self.compacted.end() {
                Some(_) => Err("a snapshot without the segments that are compacted here".into()),
                None => Ok(()),
            };
        };
        let end = LogStart {
            first_index: checkpoint.index + 1,
            prev_term: checkpoint.term,
            next_offset: checkpoint.next_offset,
        };
        if !manifest.is_sound() || manifest.end != end {
            return Err("a snapshot whose compacted segments do not end where it stands".into());
        }
        Ok(())
    }

    /// A follower has appended, not yet synced.
    pub(crate) fn peer_appended(&mut self, ack: &AppendedAck, effects: &mut Effects) {
        let in_term = self.is_leader() && ack.term == self.raw.raft.term;
        if in_term && ack.index <= self.log.last_index() {
            let known = self.appended.entry(ack.from_replica).or_insert(0);
            *known = (*known).max(ack.index);
            self.answer_quorum(effects);
        }
    }

    /// Everything up to this [`Persist`] is durable.
    pub(crate) fn persisted(&mut self, number: u64, point: &SyncPoint, effects: &mut Effects) {
        if self.broken.is_some() {
            return;
        }
        self.log.mark_durable(point);
        self.raw.on_persist_ready(number);
        while let Some(front) = self.unpersisted.pop_front_if(|front| front.number <= number) {
            self.durable_term = self.durable_term.max(front.term);
            self.send(front.messages, false, effects);
        }
        self.settle(effects);
    }

    /// The last message to this replica may not have arrived.
    pub(crate) fn peer_unreachable(&mut self, replica: u64) {
        if self.broken.is_none() {
            self.raw.report_unreachable(replica);
        }
    }

    /// The connection to `node` broke. If this replica's leader is there it is most likely gone: the election timeout ends
    /// within a few ticks, unless the leader is heard from before. Others see the same, so that a majority agrees to an election.
    pub(crate) fn leader_lost(&mut self, node: u64, effects: &mut Effects) {
        let follows = self.raw.raft.state == StateRole::Follower && self.broken.is_none();
        if follows && self.leader_node() == Some(node) {
            self.wake(effects);
            // Not all at once: whoever is first should win.
            let ticks_max = LOST_LEADER_TICKS_MAX.min(self.election_ticks - 1);
            self.timeout_ticks = self.election_ticks + self.random.random_range(1..=ticks_max);
            self.raw.raft.set_randomized_election_timeout(self.timeout_ticks);
            self.raw.raft.election_elapsed =
                self.raw.raft.election_elapsed.max(self.election_ticks);
        }
    }

    /// Starts handing leadership over; answers with the replica chosen, or `None` if no other is fit.
    pub(crate) fn transfer_leadership(
        &mut self,
        to: Option<u64>,
        effects: &mut Effects,
    ) -> Option<u64> {
        if !self.is_leader() || self.broken.is_some() {
            return None;
        }
        let own = self.replica;
        self.wake(effects);
        let members = &self.raw.store().members;
        let best = self
            .raw
            .raft
            .prs()
            .iter()
            .filter(|(id, progress)| {
                **id != own
                    && to.is_none_or(|to| to == **id)
                    && members.voters.contains(id)
                    && (to.is_some() || progress.recent_active)
            })
            .max_by_key(|(id, progress)| (progress.matched, **id))
            .map(|(id, _)| *id)?;
        self.raw.transfer_leader(best);
        self.settle(effects);
        Some(best)
    }

    /// Answers everyone who still waits: the replica is about to go.
    pub(crate) fn abandon(&mut self, effects: &mut Effects) {
        self.wake_others(effects);
        self.waiters.fail_all(effects, || BrokerError::OutcomeUnknown {
            why: "the replica was removed; was its topic deleted?",
        });
        self.refuse_reads(effects);
    }

    /// Takes this replica out of service: it neither votes nor acknowledges any more, and says why. Its data stays.
    pub(crate) fn quarantine(&mut self, why: String) {
        self.take_out(Quarantine { why, is_damage: false });
    }

    /// The same, because what is on disk turned out to be damaged.
    pub(crate) fn damaged(&mut self, why: String, effects: &mut Effects) {
        self.take_out(Quarantine { why, is_damage: true });
        self.settle(effects);
    }

    fn take_out(&mut self, quarantine: Quarantine) {
        if self.broken.is_none() {
            let why = &quarantine.why;
            tracing::error!(group = self.group, replica = self.replica, %why, "replica quarantined");
            self.broken = Some(quarantine);
        }
    }

    /// After raft's state may have changed: handle what is ready, follow the commit, notice changes of role.
    fn settle(&mut self, effects: &mut Effects) {
        self.follow_role(effects);
        self.handle_ready(effects);
        self.follow_role(effects);
        if self.broken.is_some() {
            self.wake_others(effects);
            // What they wait for is in the log, and may well be committed by the next leader.
            self.waiters.fail_all(effects, || BrokerError::OutcomeUnknown {
                why: "the replica was quarantined before the batch was committed",
            });
            self.refuse_reads(effects);
        }
    }

    /// Quarantines the replica if raft met something unreadable in the log.
    fn notice_damage(&mut self) {
        let damage = self.raw.store().damage.borrow_mut().take();
        if let Some(damage) = damage {
            let why = format!("the log cannot be read: {damage}");
            self.take_out(Quarantine { why, is_damage: true });
        }
    }

    /// Notices elections: waiters of a lost leadership are told, and a fresh election timeout is drawn from our seed (the
    /// crate draws its own from a generator that no seed reaches).
    fn follow_role(&mut self, effects: &mut Effects) {
        let now = (self.raw.raft.state, self.raw.raft.term);
        if now != self.role_term {
            let before = std::mem::replace(&mut self.role_term, now);
            if before.0 == StateRole::Leader {
                self.waiters.fail_all(effects, || BrokerError::OutcomeUnknown {
                    why: "this replica lost the leadership before the batch was committed",
                });
                self.refuse_reads(effects);
            }
            if now.0 == StateRole::PreCandidate || now.0 == StateRole::Candidate {
                self.elections += 1;
            }
            self.appended.clear();
            // A new leader has heard from nobody yet: followers count as in sync until it knows better.
            self.committed_before = [0; 2];
            self.timeout_ticks =
                self.random.random_range(self.election_ticks..2 * self.election_ticks);
        }
        self.raw.raft.set_randomized_election_timeout(self.timeout_ticks);
    }

    /// Answers `quorum` waiters whose entries a majority has appended.
    fn answer_quorum(&mut self, effects: &mut Effects) {
        if !self.is_leader() || !self.waiters.has_quorum_waiters() {
            return;
        }
        let own = self.replica;
        let last_index = self.log.last_index();
        let prs = self.raw.raft.prs();
        let appended = &self.appended;
        let reached = |voters: &[u64]| {
            let mut indexes: Vec<u64> = voters
                .iter()
                .map(|id| {
                    if *id == own {
                        return last_index;
                    }
                    let synced = prs.get(*id).map_or(0, |progress| progress.matched);
                    synced.max(appended.get(id).copied().unwrap_or(0))
                })
                .collect();
            indexes.sort_unstable_by(|a, b| b.cmp(a));
            indexes.get(indexes.len() / 2).copied().unwrap_or(u64::MAX)
        };
        let members = &self.raw.store().members;
        // Both halves of a joint configuration must agree; without one the outgoing half is empty and always does.
        let index = reached(&members.voters).min(reached(&members.voters_outgoing));
        self.waiters.answer_quorum(index, effects);
    }

    // What drivers and tests look at.

    pub(crate) fn group(&self) -> u64 {
        self.group
    }

    pub(crate) fn replica(&self) -> u64 {
        self.replica
    }

    pub(crate) fn is_leader(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    /// Node of the leader, as far as known.
    pub(crate) fn leader_node(&self) -> Option<u64> {
        self.node_of(self.raw.raft.leader_id)
    }

    pub(crate) fn nodes(&self) -> &BTreeMap<u64, u64> {
        &self.state.nodes
    }

    /// What the journal knows this replica's hard state by.
    pub(crate) fn journal_key(&self) -> u64 {
        journal_key(&self.state)
    }

    pub(crate) fn files(&self) -> &SmallFiles {
        &self.files
    }

    /// Whether this is the metadata group rather than a partition.
    pub(crate) fn is_machine(&self) -> bool {
        matches!(self.derived, Derived::Machine(_))
    }

    pub(crate) fn broken(&self) -> Option<&Quarantine> {
        self.broken.as_ref()
    }

    /// Elections started so far.
    pub(crate) fn elections(&self) -> u64 {
        self.elections
    }

    pub(crate) fn reader(&self) -> highwater_storage::LogReader {
        self.log.reader()
    }

    /// Reads what users read, compacted or not.
    pub(crate) fn partition_reader(&self) -> PartitionReader {
        PartitionReader { log: self.log.reader(), compacted: self.compacted.reader() }
    }

    /// The last entry that is applied and durable here: up to it nothing is ever truncated.
    pub(crate) fn settled_index(&self) -> u64 {
        self.raw.raft.raft_log.applied.min(self.log.durable_index())
    }

    pub(crate) fn log_mut(&mut self) -> &mut Log {
        &mut self.log
    }

    /// The hard state worth saving now: the commit never claims what is not durable here.
    pub(crate) fn hard_state(&self) -> HardState {
        let raft = &self.raw.raft;
        HardState {
            term: raft.term,
            vote: raft.vote,
            commit: raft.raft_log.committed.min(self.log.durable_index()),
        }
    }

    pub(crate) fn visible(&self) -> Visible {
        let is_leader = self.is_leader() && self.broken.is_none();
        Visible {
            is_leader,
            serves: self.broken.is_none(),
            is_settled: is_leader && self.raw.raft.commit_to_current_term(),
            leader: self.raw.raft.leader_id,
            term: self.raw.raft.term,
            log_start_offset: self.state.log_start_offset,
            high_watermark: self.high_watermark,
            log_end_offset: self.log.next_offset(),
            committed_index: self.committed,
        }
    }

    /// On the leader: entries each other replica lacks, and whether it holds all that was committed a moment ago.
    pub(crate) fn followers(&self) -> Vec<Follower> {
        if !self.is_leader() {
            return Vec::new();
        }
        let last_index = self.log.last_index();
        let followers = self.raw.raft.prs().iter().filter(|(id, _)| **id != self.replica);
        let mut followers: Vec<_> = followers
            .map(|(id, progress)| Follower {
                replica: *id,
                lag_entries: last_index.saturating_sub(progress.matched),
                in_sync: progress.matched >= self.committed_before[0],
                caught_up: self.committed_before[0] > 0
                    && progress.matched >= self.committed_before[0],
            })
            .collect();
        followers.sort_unstable_by_key(|follower| follower.replica);
        followers
    }
}

/// What the journal knows a replica's hard state by: a replica that joined later never inherits votes and terms of one that was here
/// before it.
pub(crate) fn journal_key(state: &ReplicaState) -> u64 {
    if state.joined { joined_key(state.replica_id) } else { state.group_id }
}

/// The key of a replica that joined a group that existed.
pub(crate) fn joined_key(replica: u64) -> u64 {
    replica | 1 << 63
}
