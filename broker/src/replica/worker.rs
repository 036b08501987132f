//! A worker: drives many cores.
//!
//! Owns: the burst. Drain the inbox, step and tick the cores, propose what was asked, then in one go hand to the syncer what must
//! become durable, send one batch to each peer node, answer waiters. Never: waits for a disk sync or a socket.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use highwater_proto::internal::{GroupMessage, PeerBatch};
use highwater_storage::{DiskReserve, HardState, HardStateJournal};
use parking_lot::Mutex;
use raft::eraftpb::Message;
use tokio::sync::{mpsc, oneshot};

use super::convert;
use super::core::{Alarm, Answer, Core, Effects, Proposal};
use super::engine::{Outbox, PartitionSettings, Pull};
use super::handle::Shared;
use super::held::Held;
use super::inbox::{Inbox, Input, LITTLE_BYTES, Stay};
use super::pulses::{Change, Pulses, Watch};
use super::retention;
use super::syncer::{SyncRequest, Synced, Syncer};
use crate::env::Clock;
use crate::error::BrokerError;
use crate::metrics::Metrics;

/// Payload bytes after which a batch to a peer is sent and another begun. With one more message it still fits a request.
const PEER_BATCH_BYTES: usize = 3 << 20;
/// Ticks between two looks for room on a full disk.
const RESERVE_TICKS: u64 = 8;
/// Ticks between two refreshes of what a leader publishes about its followers.
const FOLLOWERS_TICKS: u64 = 4;

const _: () =
    assert!(PEER_BATCH_BYTES + highwater_proto::batch::BATCH_BYTES_MAX + (1 << 16) < 8 << 20);

/// Who waits for a proposal or a proof, and since when.
type Answers = HashMap<u64, (oneshot::Sender<Result<Answer, BrokerError>>, Duration)>;

/// A core with what the worker keeps beside it.
pub(crate) struct Replica {
    pub(crate) core: Core,
    pub(crate) shared: Arc<Shared>,
    pub(crate) settings: PartitionSettings,
    pub(crate) effects: Effects,
    pub(crate) proposals: Vec<Proposal>,
    /// Who asks for a proof that it leads: those of one burst share it.
    pub(crate) proofs: Vec<u64>,
    pub(crate) dirty: bool,
    pub(crate) alarm: Alarm,
    /// The files of a snapshot are being fetched.
    pub(crate) pulling: bool,
    pub(crate) elections_counted: u64,
    /// Where the active segment began at the last look at retention. When another one has begun there may be one too many.
    pub(crate) retained_at: u64,
}

impl std::fmt::Debug for Replica {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replica").field("group", &self.shared.group).finish_non_exhaustive()
    }
}

/// What a burst leaves to the thread that ran it.
pub(crate) enum Left {
    Nothing,
    /// To sync at once; the syncer waits for it.
    ToSync(Arc<Syncer>, Vec<Synced>),
    /// Nothing more is done, by anybody.
    Ended,
}

/// Many cores, and what was asked of them.
pub(crate) struct Worker {
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) syncer: Arc<Syncer>,
    pub(crate) journal: Arc<Mutex<HardStateJournal>>,
    pub(crate) outbox: Arc<dyn Outbox>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) pulls: mpsc::UnboundedSender<Pull>,
    pub(crate) tick: Duration,
    pub(crate) retention_check: Duration,
    pub(crate) reserve: Arc<DiskReserve>,
    pub(crate) fatal: Arc<dyn Fn(String) + Send + Sync>,
    pub(crate) leader_changed: Arc<dyn Fn(u64, u64, u64) + Send + Sync>,
    /// Boxed: a tree of large values is half empty.
    pub(crate) replicas: BTreeMap<u64, Box<Replica>>,
    pub(crate) answers: Answers,
    pub(crate) next_token: u64,
    pub(crate) dirty: Vec<u64>,
    /// Groups at which retention looks in the next burst: all from time to time, and those that have begun another segment and
    /// whose size is limited.
    pub(crate) to_retain: Vec<u64>,
    /// The groups that tick.
    pub(crate) awake: BTreeSet<u64>,
    /// Those that do not, by the tick at which they are looked at again. Some have been woken since.
    pub(crate) alarms: BTreeMap<u64, Vec<u64>>,
    pub(super) pulses: Arc<Pulses>,
    pub(super) watch: Watch,
    pub(crate) election_ticks: u32,
    pub(crate) ticks: u64,
    /// The same, for others to see.
    pub(crate) ticks_seen: Arc<AtomicU64>,
    /// Commits that are not told yet.
    pub(super) held: Held,
    /// Those who bring something may wait for a quick disk.
    pub(crate) may_stay: bool,
    pub(crate) next_tick: Duration,
    pub(crate) next_retention: Duration,
    /// The inputs of a burst, kept for the room they take.
    pub(crate) inputs: Vec<Input>,
    /// When this burst began.
    pub(crate) now: Duration,
}

impl Worker {
    /// How long nothing is due by the clock.
    pub(crate) fn until_due(&self) -> Duration {
        let due_at = self.held.due_at().map_or(self.next_tick, |at| at.min(self.next_tick));
        due_at.saturating_sub(self.clock.monotonic())
    }

    /// Does all that waits in the inbox; the worker's own thread also what is due by the clock, and what takes files away.
    pub(crate) fn burst(&mut self, stay: Stay, ticks: bool) -> Left {
        let mut inputs = std::mem::take(&mut self.inputs);
        self.inbox.take(&mut inputs);
        self.now = self.clock.monotonic();
        for input in inputs.drain(..) {
            if matches!(input, Input::Stop) {
                self.finish();
                return Left::Ended;
            }
            self.handle(input);
        }
        self.inputs = inputs;
        let now = self.now;
        if ticks && now >= self.next_tick {
            // A late thread ticks once: time in which it could not have heard a heartbeat is not held against the leader.
            self.next_tick = now + self.tick;
            self.tick();
        }
        if ticks && now >= self.next_retention {
            self.next_retention = now + self.retention_check;
            self.to_retain = self.replicas.keys().copied().collect();
        }
        if ticks {
            self.retain();
        }
        self.propose();
        let nothing_held = self.held.due_at().is_none();
        let left = self.flush(stay);
        let begins_to_hold = nothing_held && self.held.due_at().is_some();
        if !ticks && (begins_to_hold || !self.to_retain.is_empty()) {
            self.inbox.wake();
        }
        left
    }

    fn handle(&mut self, input: Input) {
        match input {
            Input::Step { group, node, message, wants_appended } => {
                if let Some(message) = self.without_files(group, node, message) {
                    self.on(group, |core, effects| {
                        let from = message.from;
                        let heard = core.hear(from, node);
                        let outcome =
                            heard.and_then(|()| core.step(message, wants_appended, effects));
                        note_refusal(group, from, outcome);
                    });
                }
            }
            Input::PeerAppended { node, ack } => {
                self.on(ack.group_id, |core, effects| {
                    let heard = core.hear(ack.from_replica, node);
                    let outcome = heard.map(|()| core.peer_appended(&ack, effects));
                    note_refusal(ack.group_id, ack.from_replica, outcome);
                });
            }
            Input::Quiesce { node, heard } => {
                self.on(heard.group_id, |core, effects| {
                    let outcome = core.hear(heard.from_replica, node);
                    let outcome = outcome.map(|()| core.step_quiesce(&heard, effects));
                    note_refusal(heard.group_id, heard.from_replica, outcome);
                });
            }
            Input::Propose { group, body, answer } => {
                if let Some((token, replica)) = self.expect_answer(group, answer) {
                    replica.proposals.push(Proposal { token, body });
                }
            }
            Input::Prove { group, answer } => {
                if let Some((token, replica)) = self.expect_answer(group, answer) {
                    replica.proofs.push(token);
                }
            }
            Input::Synced(synced) => {
                for Synced { group, number, point } in synced {
                    self.on(group, |core, effects| core.persisted(number, &point, effects));
                }
            }
            Input::Add(replica) => {
                let group = replica.shared.group;
                self.replicas.insert(group, replica);
                self.on(group, Core::begin);
            }
            Input::Remove { group, done } => {
                self.awake.remove(&group);
                if let Some(replica) = self.replicas.remove(&group) {
                    // Opened again, it must not know less than it does now of what had been durable.
                    let state = (group, replica.core.hard_state());
                    if let Err(error) = self.journal.lock().put(&[state]) {
                        tracing::warn!(group, %error, "the hard state of a replica could not be saved");
                    }
                    self.abandon(replica);
                }
                self.syncer.remove(group, done);
            }
            Input::Compacted { group, staged, done } => {
                let mut installed = false;
                self.on(group, |core, _| installed = core.swap_compacted(staged));
                let _ = done.send(installed);
            }
            Input::Received { group, message, staged } => {
                if let Some(replica) = self.replicas.get_mut(&group) {
                    replica.pulling = false;
                }
                match staged {
                    Ok(staged) => self.on(group, |core, effects| {
                        let from = message.from;
                        note_refusal(group, from, core.step_snapshot(message, staged, effects));
                    }),
                    Err(why) => {
                        // The leader sends another snapshot, of what it has by then.
                        tracing::warn!(group, %why, "the compacted segments of a snapshot could not be fetched");
                    }
                }
            }
            Input::Damaged { group, why } => {
                self.on(group, |core, effects| core.damaged(why, effects));
            }
            Input::Configure { group, settings } => {
                if let Some(replica) = self.replicas.get_mut(&group) {
                    replica.core.log_mut().set_segment_bytes(settings.segment_bytes);
                    *replica.shared.settings.lock() = settings;
                    replica.settings = settings;
                }
            }
            Input::Transfer { group, to, answer } => {
                let mut chosen = None;
                self.on(group, |core, effects| chosen = core.transfer_leadership(to, effects));
                let _ = answer.send(chosen);
            }
            Input::Unreachable { node } => self.unreachable(node),
            Input::Broke { node } => {
                self.on_all(|core, effects| core.leader_lost(node, effects));
            }
            Input::Stop => {}
        }
    }

    /// Gives whoever asks something of a replica a token, under which the core will answer.
    fn expect_answer(
        &mut self,
        group: u64,
        answer: oneshot::Sender<Result<Answer, BrokerError>>,
    ) -> Option<(u64, &mut Replica)> {
        let token = self.next_token;
        self.next_token += 1;
        let Some(replica) = self.replicas.get_mut(&group) else {
            let _ = answer.send(Err(BrokerError::NotLeader { leader: None }));
            return None;
        };
        self.answers.insert(token, (answer, self.now));
        mark(&mut self.dirty, replica);
        Some((token, replica))
    }

    /// Passes a message on unless it is a snapshot with compacted segments: those are fetched first.
    fn without_files(&mut self, group: u64, from_node: u64, message: Message) -> Option<Message> {
        let Some(replica) = self.replicas.get_mut(&group) else { return Some(message) };
        let Some(manifest) = replica.core.files_wanted(&message) else { return Some(message) };
        if replica.pulling {
            return None;
        }
        tracing::info!(group, from_node, bytes = manifest.bytes(), "fetching compacted segments");
        let inbox = Arc::clone(&self.inbox);
        let pull = Pull {
            group,
            from_node,
            receiver: replica.shared.reader.compacted.receiver(manifest),
            done: Box::new(move |staged| inbox.push(Input::Received { group, message, staged })),
        };
        replica.pulling = self.pulls.send(pull).is_ok();
        None
    }

    /// Tells everyone who waits for a replica that it is gone.
    fn abandon(&mut self, mut replica: Box<Replica>) {
        replica.core.abandon(&mut replica.effects);
        for said in std::mem::take(&mut replica.effects.quiesces) {
            if let Some(node) = replica.core.node_of(said.to_replica) {
                self.outbox.send(node, PeerBatch { quiesces: vec![said], ..PeerBatch::default() });
            }
        }
        let proposals = replica.proposals.into_iter().map(|proposal| proposal.token);
        for token in proposals.chain(replica.proofs) {
            let refusal = BrokerError::NotLeader { leader: None };
            replica.effects.answers.push((token, Err(refusal)));
        }
        self.answer(replica.effects.answers);
        // Whoever waits for records of it is told to look again.
        replica.shared.visible.send_modify(|visible| {
            visible.is_leader = false;
            visible.serves = false;
        });
    }

    /// Calls a core and marks it for this burst's flush.
    fn on(&mut self, group: u64, call: impl FnOnce(&mut Core, &mut Effects)) {
        if let Some(replica) = self.replicas.get_mut(&group) {
            call(&mut replica.core, &mut replica.effects);
            mark(&mut self.dirty, replica);
        }
    }

    /// Calls every core, and marks those that have something to do for it.
    fn on_all(&mut self, mut call: impl FnMut(&mut Core, &mut Effects)) {
        for replica in self.replicas.values_mut() {
            let was_asleep = replica.core.is_asleep();
            call(&mut replica.core, &mut replica.effects);
            if was_asleep && !replica.core.is_asleep() {
                mark(&mut self.dirty, replica);
            }
        }
    }

    fn tick(&mut self) {
        self.ticks += 1;
        self.ticks_seen.store(self.ticks, Ordering::Relaxed);
        self.refill_reserve();
        for change in self.watch.tick(&self.pulses, self.election_ticks) {
            match change {
                Change::Silent(node) => {
                    self.on_all(|core, effects| core.node_is_silent(node, effects));
                }
                Change::Back(node) => self.on_all(|core, effects| core.node_is_back(node, effects)),
            }
        }
        self.look_at_sleepers();
        self.metrics.replicas_asleep(self.replicas.len() - self.awake.len());
        for group in &self.awake {
            let Some(replica) = self.replicas.get_mut(group) else { continue };
            replica.core.tick(self.watch.live(), &mut replica.effects);
            // Staggered, so that thousands of groups do not all refresh on the same tick.
            if (self.ticks + group).is_multiple_of(FOLLOWERS_TICKS) && replica.core.is_leader() {
                *replica.shared.followers.lock() = replica.core.followers();
            }
            let elections = replica.core.elections();
            self.metrics.elections_started(elections - replica.elections_counted);
            replica.elections_counted = elections;
            mark(&mut self.dirty, replica);
        }
    }

    /// Those whose time has come ask again, or are woken.
    fn look_at_sleepers(&mut self) {
        let later = self.alarms.split_off(&(self.ticks + 1));
        for group in std::mem::replace(&mut self.alarms, later).into_values().flatten() {
            let Some(replica) = self.replicas.get_mut(&group) else { continue };
            if replica.alarm.rings(self.ticks) {
                replica.core.rest_is_over(self.watch.live(), &mut replica.effects);
                mark(&mut self.dirty, replica);
            }
        }
    }

    /// Notes after a burst whether a replica ticks on, and if not, when it is looked at again.
    fn note_rest(&mut self, group: u64) {
        let Some(replica) = self.replicas.get_mut(&group) else { return };
        if let Some(tick) = replica.alarm.note(&replica.core, self.ticks) {
            self.alarms.entry(tick).or_default().push(group);
        }
        if replica.core.is_asleep() {
            self.awake.remove(&group);
        } else {
            self.awake.insert(group);
        }
    }

    /// Takes the reserve's room back once there is some, and publishing goes on.
    fn refill_reserve(&self) {
        if self.reserve.is_whole() || !self.ticks.is_multiple_of(RESERVE_TICKS) {
            return;
        }
        match self.reserve.refill() {
            Ok(()) => tracing::info!("the reserve of disk space is whole again"),
            Err(error) => tracing::debug!(%error, "the disk is still full"),
        }
    }

    fn unreachable(&mut self, node: u64) {
        for replica in self.replicas.values_mut().filter(|replica| replica.core.is_leader()) {
            let members = replica.core.nodes().iter().filter(|(_, on)| **on == node);
            let there: Vec<u64> = members.map(|(id, _)| *id).collect();
            for id in there {
                replica.core.peer_unreachable(id);
            }
        }
    }

    fn propose(&mut self) {
        let now_ms = self.clock.wall_ms();
        for group in &self.dirty {
            let Some(replica) = self.replicas.get_mut(group) else { continue };
            if !replica.proposals.is_empty() {
                let proposals = std::mem::take(&mut replica.proposals);
                replica.core.propose(proposals, now_ms, &mut replica.effects);
            }
            if !replica.proofs.is_empty() {
                let proofs = std::mem::take(&mut replica.proofs);
                replica.core.prove_leadership(proofs, &mut replica.effects);
            }
        }
    }

    fn retain(&mut self) {
        if self.to_retain.is_empty() {
            return;
        }
        let now_ms = self.clock.wall_ms();
        for group in std::mem::take(&mut self.to_retain) {
            let Some(replica) = self.replicas.get_mut(&group) else { continue };
            replica.retained_at = replica.core.log_mut().active_since();
            let proposal = retention::check(
                &mut replica.core,
                &replica.settings,
                now_ms,
                &mut replica.effects,
            );
            mark(&mut self.dirty, replica);
            if let Some(offset) = proposal {
                let token = self.next_token;
                self.next_token += 1;
                let body = super::core::ProposalBody::AdvanceLogStart(offset);
                replica.proposals.push(Proposal { token, body });
                mark(&mut self.dirty, replica);
            }
        }
    }

    /// Carries out the effects of a burst: the sync starts first, and runs while messages and answers go out.
    fn flush(&mut self, stay: Stay) -> Left {
        let mut request = SyncRequest::default();
        let mut hard_states: Vec<(u64, HardState)> = Vec::new();
        let mut batches: BTreeMap<u64, PeerBatch> = BTreeMap::new();
        let mut bytes: BTreeMap<u64, usize> = BTreeMap::new();
        let mut answers = Vec::new();
        let mut messages = self.held.take_due(self.now);
        let mut appended_bytes = 0;
        for group in std::mem::take(&mut self.dirty) {
            let Some(replica) = self.replicas.get_mut(&group) else { continue };
            replica.dirty = false;
            let effects = std::mem::take(&mut replica.effects);
            if let Some(persist) = effects.persist {
                let key = replica.core.journal_key();
                hard_states.extend(persist.hard_state.map(|hard_state| (key, hard_state)));
                let (number, point) = (persist.number, persist.point);
                request.points.push(Synced { group, number, point });
            }
            for checkpoint in effects.checkpoints {
                let files = replica.core.files().clone();
                request.checkpoints.push((files, replica.core.reader(), checkpoint));
            }
            appended_bytes += effects.appended_bytes;
            if effects.appended_entries > 0 {
                self.metrics.append_done(effects.appended_bytes, effects.appended_entries);
                if replica.settings.retention_bytes.is_some()
                    && replica.core.log_mut().active_since() != replica.retained_at
                {
                    self.to_retain.push(group);
                }
            }
            for outbound in effects.messages {
                // The cluster's own decisions are awaited on every node.
                let passed = if replica.core.is_machine() {
                    Some(outbound)
                } else {
                    self.held.pass(group, outbound, self.now)
                };
                messages.extend(passed.map(|outbound| (group, outbound)));
            }
            for ack in effects.appended {
                if let Some(node) = replica.core.node_of(ack.to_replica) {
                    batches.entry(node).or_default().appended.push(ack);
                }
            }
            for said in effects.quiesces {
                if let Some(node) = replica.core.node_of(said.to_replica) {
                    batches.entry(node).or_default().quiesces.push(said);
                }
            }
            publish(replica, &self.metrics, &*self.leader_changed);
            answers.extend(effects.answers);
            self.note_rest(group);
        }
        for (group, outbound) in messages {
            let Some(replica) = self.replicas.get(&group) else { continue };
            let Some(node) = replica.core.node_of(outbound.message.to) else { continue };
            let size = bytes.entry(node).or_insert(0);
            *size += outbound.message.entries.iter().map(|e| e.data.len()).sum::<usize>();
            let batch = batches.entry(node).or_default();
            batch.messages.push(GroupMessage {
                group_id: group,
                message: Some(convert::to_wire(outbound.message)),
                wants_appended: outbound.wants_appended,
            });
            if *size >= PEER_BATCH_BYTES {
                let sent = std::mem::take(batch);
                send(&*self.outbox, &self.metrics, &self.inbox, node, sent, *size);
                *size = 0;
            }
        }
        // What is to go out must not wait for the disk.
        let has_news = !answers.is_empty() || !batches.is_empty();
        let is_little = appended_bytes <= LITTLE_BYTES as u64;
        let may_stay = self.may_stay && stay == Stay::ForTheDisk && is_little && !has_news;
        let left = self.start_sync(request, &hard_states, may_stay);
        if matches!(left, Left::Ended) {
            return left;
        }
        for (node, batch) in batches {
            if batch != PeerBatch::default() {
                let size = bytes.get(&node).copied().unwrap_or(0);
                send(&*self.outbox, &self.metrics, &self.inbox, node, batch, size);
            }
        }
        self.answer(answers);
        left
    }

    fn answer(&mut self, answers: Vec<(u64, Result<Answer, BrokerError>)>) {
        let now = self.clock.monotonic();
        for (token, answer) in answers {
            if let Some((waiting, since)) = self.answers.remove(&token) {
                if answer.as_ref().is_ok_and(|answer| !matches!(answer, Answer::Leads(_))) {
                    self.metrics.commit_latency(now.saturating_sub(since).as_secs_f64());
                }
                let _ = waiting.send(answer);
            }
        }
    }

    fn start_sync(
        &mut self,
        mut request: SyncRequest,
        hard_states: &[(u64, HardState)],
        may_stay: bool,
    ) -> Left {
        if !hard_states.is_empty() {
            if let Err(error) = self.journal.lock().put(hard_states) {
                // Without it no vote may be cast and no entry of a new term acknowledged.
                (self.fatal)(format!("the hard-state journal cannot be written: {error}"));
                return Left::Ended;
            }
            request.journal = true;
        }
        let only_points = !request.journal && request.checkpoints.is_empty();
        if only_points && request.points.is_empty() {
            return Left::Nothing;
        }
        if only_points && may_stay && self.syncer.begin_here() {
            return Left::ToSync(Arc::clone(&self.syncer), request.points);
        }
        self.syncer.submit(request);
        Left::Nothing
    }

    /// Saves what makes the next start quick. Nothing depends on it.
    fn finish(&mut self) {
        let states: Vec<_> = self
            .replicas
            .values()
            .map(|replica| (replica.core.journal_key(), replica.core.hard_state()))
            .collect();
        if let Err(error) = self.journal.lock().put(&states) {
            tracing::warn!(%error, "hard states could not be saved at the end");
        }
        self.syncer.submit(SyncRequest { journal: true, ..SyncRequest::default() });
    }
}

fn note_refusal(group: u64, from: u64, outcome: Result<(), String>) {
    if let Err(why) = outcome {
        tracing::debug!(group, from, %why, "message refused");
    }
}

fn mark(dirty: &mut Vec<u64>, replica: &mut Replica) {
    if !replica.dirty {
        replica.dirty = true;
        dirty.push(replica.shared.group);
    }
}

fn send(
    outbox: &dyn Outbox,
    metrics: &Metrics,
    inbox: &Inbox,
    node: u64,
    batch: PeerBatch,
    bytes: usize,
) {
    let messages = batch.messages.len() as u64;
    if outbox.send(node, batch) {
        metrics.raft_messages_sent(messages, bytes as u64);
    } else {
        metrics.raft_messages_dropped(messages);
        inbox.push(Input::Unreachable { node });
    }
}

/// Shows readers and routers what changed.
fn publish(
    replica: &mut Replica,
    metrics: &Metrics,
    leader_changed: &(dyn Fn(u64, u64, u64) + Send + Sync),
) {
    replica.shared.settled.store(replica.core.settled_index(), Ordering::Release);
    if let Some(members) = replica.core.take_changed_members() {
        *replica.shared.members.write() = Arc::new(members);
        *replica.shared.followers.lock() = replica.core.followers();
    }
    let now = replica.core.visible();
    let mut before = now;
    replica.shared.visible.send_if_modified(|visible| {
        before = std::mem::replace(visible, now);
        before != now
    });
    if (before.leader, before.term, before.is_leader) != (now.leader, now.term, now.is_leader) {
        metrics.leader_changes(u64::from(before.leader != now.leader && now.leader != 0));
        let node = replica.core.leader_node().unwrap_or(0);
        leader_changed(replica.shared.group, node, now.term);
        *replica.shared.followers.lock() = replica.core.followers();
    }
    if let Some(quarantine) = replica.core.broken() {
        let mut quarantined = replica.shared.quarantined.lock();
        if quarantined.is_none() {
            *quarantined = Some(quarantine.clone());
        }
    }
}
