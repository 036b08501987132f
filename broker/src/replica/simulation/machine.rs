//! One simulated machine: its disk, its clock, and the process on it, which drives one core as a worker thread and its syncer do.
//!
//! Owns: the order within a burst (step, persist, then send and answer). Never: decides when anything fails.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use highwater_proto::internal::ReplicaCheckpoint;
use highwater_storage::{
    Disk, DiskReserve, HardStateJournal, LogOptions, SimDisk, SparePool, StorageError, sync_group,
};
use rand::Rng;
use rand::rngs::SmallRng;

use super::ledger::Ledger;
use super::network::Packet;
use super::oracle::View;
use super::plan::{Kind, Plant, Tally};
use crate::replica::checkpoint::SmallFiles;
use crate::replica::convert;
use crate::replica::core::{
    Alarm, Answer, Birth, Core, CoreConfig, Effects, OpenError, Persist, Proposal, ProposalBody,
    StateMachine, journal_key,
};
use crate::replica::engine::PartitionSettings;
use crate::replica::pulses::{Change, Pulses, Watch};
use crate::replica::retention;

pub(super) const GROUP: u64 = 7;
/// The founding replica on node N is N + this.
pub(super) const REPLICA_BASE: u64 = 100;
pub(super) const SLICE_MS: i64 = 10;
pub(super) const SLICES_PER_TICK: u64 = 5;
pub(super) const ELECTION_TICKS: u32 = 10;
const HEARTBEAT_TICKS: u32 = 2;
/// Fewer than in a broker: the simulated users are rarely quiet for long.
const QUIET_TICKS: u32 = 4;
const TICKS_PER_RETENTION_CHECK: u64 = 40;
/// Kept back for what must be written on a full disk: that includes all of the message that finds out.
const RESERVE_BYTES: u64 = 4 << 20;
const TICKS_PER_RESERVE_CHECK: u64 = 8;
/// Wall clock when the simulation begins.
const EPOCH_MS: i64 = 1_700_000_000_000;
const DIR: &str = "/data/groups/7";
const DATA_DIR: &str = "/data";

/// What all machines of a run have in common.
#[derive(Clone, Debug)]
pub(super) struct Setting {
    pub(super) kind: Kind,
    /// Nodes with the first replicas, of all that there are.
    pub(super) nodes: u64,
    pub(super) partition: PartitionSettings,
    pub(super) plant: Option<Plant>,
}

pub(super) struct Machine {
    pub(super) node: u64,
    pub(super) disk: SimDisk,
    /// The replica that belongs here.
    pub(super) replica: Option<u64>,
    /// That replica has been in service: its files must be there.
    pub(super) was_created: bool,
    /// `None` while it is down.
    pub(super) running: Option<Running>,
    /// Slice in which it starts again.
    pub(super) restart_at: u64,
    pub(super) boots: u64,
    /// When within a tick's length it ticks.
    tick_phase: u64,
    pub(super) paused_until: u64,
    pub(super) slow_until: u64,
    pub(super) full_until: u64,
    pub(super) clock_offset_ms: i64,
    pub(super) inbox: Vec<Packet>,
    pub(super) proposals: Vec<Proposal>,
    /// Tokens of those who ask where the partition ends.
    pub(super) questions: Vec<u64>,
    /// Asked to hand its leadership over, to this replica or to the most caught-up one.
    pub(super) transfer: Option<Option<u64>>,
    /// Nodes that do not hear what was sent to them.
    pub(super) unreachable: Vec<u64>,
}

pub(super) struct Running {
    pub(super) core: Core,
    journal: HardStateJournal,
    reserve: Arc<DiskReserve>,
    pub(super) ledger: Ledger,
    pub(super) view: View,
    elections_counted: u64,
    /// Which other nodes are heard from.
    pulses: Pulses,
    watch: Watch,
    ticks: u64,
    alarm: Alarm,
    /// Gathered while a sync runs.
    gathered: Syncing,
    /// The sync that runs, and the slice in which it is done.
    in_flight: Option<(u64, Syncing)>,
}

#[derive(Debug, Default)]
struct Syncing {
    points: Vec<Persist>,
    checkpoints: Vec<ReplicaCheckpoint>,
}

/// What a burst leaves for the world to carry out.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) packets: Vec<(u64, Packet)>,
    pub(super) answers: Vec<(u64, Result<Answer, crate::error::BrokerError>)>,
    /// Every other machine should hear that this one lives.
    pub(super) beats: bool,
    pub(super) installed: bool,
    /// The node chosen to take the leadership over, and the term in which.
    pub(super) transferee: Option<(u64, u64)>,
    /// The replica or the node has stopped, for this reason.
    pub(super) stopped: Option<String>,
}

impl Machine {
    pub(super) fn new(node: u64, seed: u64) -> Self {
        Self {
            node,
            disk: SimDisk::new(seed),
            replica: None,
            was_created: false,
            running: None,
            restart_at: 0,
            boots: 0,
            tick_phase: 0,
            paused_until: 0,
            slow_until: 0,
            full_until: 0,
            clock_offset_ms: 0,
            inbox: Vec::new(),
            proposals: Vec::new(),
            questions: Vec::new(),
            transfer: None,
            unreachable: Vec::new(),
        }
    }

    /// Up, and neither paused nor with a disk in trouble.
    pub(super) fn is_healthy(&self, now: u64) -> bool {
        let trouble = self.paused_until.max(self.slow_until).max(self.full_until);
        self.running.is_some() && trouble <= now
    }

    pub(super) fn leads(&self) -> bool {
        self.running.as_ref().is_some_and(|running| running.core.visible().is_leader)
    }

    pub(super) fn wall_ms(&self, now: u64) -> i64 {
        EPOCH_MS + i64::try_from(now).expect("a short run") * SLICE_MS + self.clock_offset_ms
    }

    /// Starts the process. A full disk may keep it from starting.
    pub(super) fn start(&mut self, setting: &Setting, seed: u64) -> Result<(), StorageError> {
        let disk: Arc<dyn Disk> = Arc::new(self.disk.clone());
        disk.create_dir_all("/data/groups".as_ref()).expect("a directory is made");
        for dir in ["/", DATA_DIR] {
            disk.sync_dir(dir.as_ref()).expect("a directory syncs");
        }
        let (journal, saved) = HardStateJournal::open(Arc::clone(&disk), DATA_DIR.as_ref())?;
        let reserve = DiskReserve::open(Arc::clone(&disk), DATA_DIR.as_ref(), RESERVE_BYTES)?;
        let reserve = Arc::new(reserve);
        let ledger = Ledger::default();
        let config = |ledger: &Ledger| CoreConfig {
            disk: Arc::clone(&disk),
            dir: PathBuf::from(DIR),
            log: LogOptions {
                segment_bytes: setting.partition.segment_bytes,
                index_interval_bytes: 1 << 10,
                spares: Some(SparePool::new(setting.partition.segment_bytes)),
                ..LogOptions::default()
            },
            reserve: Arc::clone(&reserve),
            settled: None,
            heartbeat_ticks: HEARTBEAT_TICKS,
            election_ticks: ELECTION_TICKS,
            quiet_ticks: QUIET_TICKS,
            seed,
            machine: (setting.kind == Kind::Machine)
                .then(|| Box::new(ledger.clone()) as Box<dyn StateMachine>),
            logger: slog::Logger::root(slog::Discard, slog::o!()),
        };
        let storage = |error: OpenError| match error {
            OpenError::Storage(error) => {
                // The next attempt may have the room.
                let _ = error.is_disk_full() && reserve.release();
                error
            }
            other => panic!("node {}: {other}", self.node),
        };
        let replica = self.replica.expect("a machine that starts has a replica");
        let key = self.journal_key();
        let core = match Core::open(config(&ledger), saved.get(&key).copied()).map_err(storage)? {
            Some(core) => core,
            None => {
                assert!(!self.was_created, "a replica that was created durably has vanished");
                Core::create(config(&ledger), birth(replica, setting)).map_err(storage)?
            }
        };
        assert_eq!(core.replica(), replica, "on node {}", self.node);
        self.was_created = true;
        self.boots += 1;
        self.tick_phase = seed % SLICES_PER_TICK;
        self.inbox.clear();
        self.running = Some(Running {
            core,
            journal,
            reserve,
            ledger,
            view: View::new(),
            elections_counted: 0,
            pulses: Pulses::default(),
            watch: Watch::default(),
            ticks: 0,
            alarm: Alarm::default(),
            gathered: Syncing::default(),
            in_flight: None,
        });
        Ok(())
    }

    /// The key under which the journal holds what the replica on the disk has promised.
    fn journal_key(&self) -> u64 {
        let files = SmallFiles::new(Arc::new(self.disk.clone()), DIR.as_ref());
        files.load_state().ok().flatten().map_or(GROUP, |state| journal_key(&state))
    }

    /// Takes away all that is left of the replica; the process does not run.
    pub(super) fn clear(&mut self) -> Result<(), StorageError> {
        let key = self.journal_key();
        let disk: Arc<dyn Disk> = Arc::new(self.disk.clone());
        let (mut journal, _) = HardStateJournal::open(Arc::clone(&disk), DATA_DIR.as_ref())?;
        journal.remove(key)?;
        journal.sync_point().sync().expect("the journal syncs");
        if disk.exists(DIR.as_ref()) {
            disk.remove_dir_all(DIR.as_ref()).expect("a directory is removed");
            disk.sync_dir("/data/groups".as_ref()).expect("a directory syncs");
        }
        Ok(())
    }

    /// The disk breaks and an empty one takes its place.
    pub(super) fn lose_disk(&mut self, seed: u64, restart_at: u64) {
        self.stop(restart_at);
        self.disk = SimDisk::new(seed);
        self.replica = None;
        self.was_created = false;
        self.full_until = 0;
        self.restart_at = restart_at;
    }

    /// The checkpoints on the disk, by index and term, for whoever looks for what went wrong.
    pub(super) fn checkpoints(&self) -> Vec<(u64, Option<u64>)> {
        let files = SmallFiles::new(Arc::new(self.disk.clone()), DIR.as_ref());
        let indexes = files.checkpoints().unwrap_or_default();
        let term = |index| files.load_checkpoint(index).map(|checkpoint| checkpoint.term);
        indexes.into_iter().map(|index| (index, term(index))).collect()
    }

    /// Ends the process: with the power, or with what a clean end saves, or just so.
    pub(super) fn stop(&mut self, now: u64) {
        self.running = None;
        self.paused_until = self.paused_until.min(now);
        self.proposals.clear();
        self.questions.clear();
        self.inbox.clear();
    }

    /// Lets the process do what there is to do now; `None` if that is nothing. `begin` is its first burst.
    pub(super) fn burst(
        &mut self,
        now: u64,
        begin: bool,
        setting: &Setting,
        random: &mut SmallRng,
        tally: &mut Tally,
    ) -> Option<Outcome> {
        let ticks = (now + self.tick_phase).is_multiple_of(SLICES_PER_TICK);
        let wall_ms = self.wall_ms(now);
        let running = self.running.as_mut()?;
        let synced = running.in_flight.take_if(|(due, _)| *due <= now);
        let has_work = begin || ticks || self.transfer.is_some() || synced.is_some();
        if self.paused_until > now {
            running.in_flight = running.in_flight.take().or(synced);
            return None;
        }
        let is_asked = !self.proposals.is_empty() || !self.questions.is_empty();
        if !has_work && self.inbox.is_empty() && !is_asked {
            return None;
        }
        let mut effects = Effects::default();
        let mut outcome = Outcome::default();
        let core = &mut running.core;
        let producers = match setting.plant {
            Some(Plant::ReuseOffset) => core.producers().cloned(),
            _ => None,
        };
        let reader = core.reader();
        let before = (reader.last_index(), reader.term(reader.last_index()));
        if begin {
            core.begin(&mut effects);
        }
        if setting.plant == Some(Plant::AnswerUnproved) && core.visible().is_settled {
            // As by a thread that looks at what the replica has published, before it has taken in what has arrived.
            let visible = core.visible();
            let answered =
                self.questions.drain(..).map(|token| (token, Ok(Answer::Leads(visible))));
            effects.answers.extend(answered);
        }
        if let Some((_, syncing)) = synced {
            if setting.plant != Some(Plant::SkipSync) {
                running.journal.sync_point().sync().expect("the journal syncs");
                let points: Vec<_> = syncing.points.iter().map(|p| p.point.clone()).collect();
                sync_group(&points).expect("the log syncs");
            }
            if let Some(last) = syncing.points.last() {
                core.persisted(last.number, &last.point, &mut effects);
            }
            for checkpoint in syncing.checkpoints {
                match core.files().store_checkpoint_of(&core.reader(), &checkpoint) {
                    Err(error) if !error.is_disk_full() => panic!("a checkpoint: {error}"),
                    _ => {}
                }
            }
        }
        for node in self.unreachable.drain(..) {
            let there = core.nodes().iter().filter(|(_, on)| **on == node);
            let there: Vec<u64> = there.map(|(id, _)| *id).collect();
            there.into_iter().for_each(|id| core.peer_unreachable(id));
        }
        for packet in self.inbox.drain(..) {
            match &packet {
                Packet::Beat { from_node, boots } => running.pulses.heard(*from_node, *boots),
                Packet::Raft { from_node, .. } => running.pulses.heard(*from_node, 0),
                _ => {}
            }
            step(core, packet, &mut effects, &mut outcome);
            if setting.plant == Some(Plant::VoteTwice) {
                core.forget_vote();
            }
        }
        if ticks {
            if (now / SLICES_PER_TICK).is_multiple_of(TICKS_PER_RESERVE_CHECK) {
                let _ = running.reserve.refill();
            }
            running.ticks += 1;
            for change in running.watch.tick(&running.pulses, ELECTION_TICKS) {
                match change {
                    // A bug, if nobody listens.
                    Change::Silent(_) if setting.plant == Some(Plant::SleepOn) => {}
                    Change::Silent(node) => {
                        let was_asleep = core.is_asleep();
                        core.node_is_silent(node, &mut effects);
                        if was_asleep && !core.is_asleep() {
                            tally.count("woken by a silent node");
                        }
                    }
                    Change::Back(node) => core.node_is_back(node, &mut effects),
                }
            }
            if running.alarm.rings(running.ticks) && setting.plant != Some(Plant::SleepOn) {
                tally.count("looked at while asleep");
                core.rest_is_over(running.watch.live(), &mut effects);
            }
            core.tick(running.watch.live(), &mut effects);
            if running.ticks.is_multiple_of(u64::from(HEARTBEAT_TICKS)) {
                outcome.beats = true;
            }
        }
        let elections = core.elections();
        tally.add("elections begun", elections - running.elections_counted);
        running.elections_counted = elections;
        if ticks && (now / SLICES_PER_TICK).is_multiple_of(TICKS_PER_RETENTION_CHECK) {
            let start = retention::check(core, &setting.partition, wall_ms, &mut effects);
            if let Some(offset) = start {
                tally.count("retention proposed");
                let body = ProposalBody::AdvanceLogStart(offset);
                self.proposals.push(Proposal { token: 0, body });
            }
        }
        if let Some(to) = self.transfer.take() {
            let term = core.visible().term;
            let chosen = core.transfer_leadership(to, &mut effects);
            outcome.transferee = chosen.and_then(|replica| Some((core.node_of(replica)?, term)));
        }
        if !self.proposals.is_empty() {
            core.propose(std::mem::take(&mut self.proposals), wall_ms, &mut effects);
        }
        if !self.questions.is_empty() {
            core.prove_leadership(std::mem::take(&mut self.questions), &mut effects);
        }
        if let Some(producers) = producers
            && reader.term(before.0) != before.1
        {
            core.set_producers(producers);
        }
        if running.alarm.note(core, running.ticks).is_some() {
            tally.count(if core.is_leader() { "leaders asleep" } else { "followers asleep" });
        }
        self.flush(effects, &mut outcome);
        self.start_sync(now, random);
        Some(outcome)
    }

    /// Persists, and hands on what is to be sent and answered, unless the journal cannot be written.
    fn flush(&mut self, effects: Effects, outcome: &mut Outcome) {
        let Some(running) = &mut self.running else { return };
        let Effects { persist, checkpoints, messages, appended, quiesces, answers, .. } = effects;
        running.gathered.checkpoints.extend(checkpoints);
        if let Some(persist) = persist {
            if let Some(hard_state) = persist.hard_state
                && let Err(error) = running.journal.put(&[(running.core.journal_key(), hard_state)])
            {
                // Nothing of this burst may be promised.
                outcome.stopped =
                    Some(format!("the hard-state journal cannot be written: {error}"));
                return;
            }
            running.gathered.points.push(persist);
        }
        for outbound in messages {
            let Some(to) = running.core.node_of(outbound.message.to) else { continue };
            let wants_appended = outbound.wants_appended;
            let message = Box::new(convert::to_wire(outbound.message));
            let from_node = self.node;
            outcome.packets.push((to, Packet::Raft { message, from_node, wants_appended }));
        }
        for ack in appended {
            if let Some(to) = running.core.node_of(ack.to_replica) {
                outcome.packets.push((to, Packet::Appended(ack)));
            }
        }
        for heard in quiesces {
            if let Some(to) = running.core.node_of(heard.to_replica) {
                let from_node = self.node;
                outcome.packets.push((to, Packet::Quiesce { heard, from_node }));
            }
        }
        outcome.answers = answers;
        let reserve = if running.reserve.is_whole() { "whole" } else { "in use" };
        outcome.stopped = running.core.broken().map(|quarantine| {
            format!("{}; the reserve of disk space is {reserve}", quarantine.why)
        });
    }

    /// While one sync runs, the next group gathers.
    fn start_sync(&mut self, now: u64, random: &mut SmallRng) {
        let Some(running) = &mut self.running else { return };
        let waits = !running.gathered.points.is_empty() || !running.gathered.checkpoints.is_empty();
        if running.in_flight.is_none() && waits {
            let slices = if self.slow_until > now {
                random.random_range(20..150)
            } else {
                random.random_range(1..4)
            };
            running.in_flight = Some((now + slices, std::mem::take(&mut running.gathered)));
        }
    }

    /// Leaves only so much room on the disk until then. Not while the reserve is in use: whoever takes that too can stop a
    /// replica until there is room and its process has started again.
    pub(super) fn fill_disk(&mut self, until: u64, room: u64) -> bool {
        let is_whole = self.running.as_ref().is_some_and(|running| running.reserve.is_whole());
        let fits = is_whole && self.full_until == 0;
        if fits {
            self.full_until = until;
            self.disk.set_capacity(Some(self.disk.used_bytes() + room));
        }
        fits
    }

    /// What an orderly end saves.
    pub(super) fn save_hard_state(&mut self) {
        let Some(running) = &mut self.running else { return };
        let state = running.core.hard_state();
        if running.journal.put(&[(running.core.journal_key(), state)]).is_ok() {
            running.journal.sync_point().sync().expect("the journal syncs");
        }
    }
}

fn step(core: &mut Core, packet: Packet, effects: &mut Effects, outcome: &mut Outcome) {
    match packet {
        Packet::Raft { message, from_node, wants_appended } => {
            core.hear(message.from, from_node).expect("a replica stays on its node");
            let snapshot = message.snapshot.as_ref().and_then(|snapshot| snapshot.metadata.clone());
            let first_before = core.reader().first_index();
            let message = convert::from_wire(*message).expect("peers send what is valid");
            // A refusal is an answer too: messages for a past membership, for example.
            let _ = core.step(message, wants_appended, effects);
            let first = core.reader().first_index();
            outcome.installed |= snapshot
                .is_some_and(|snapshot| first > first_before && first == snapshot.index + 1);
        }
        Packet::Appended(ack) => core.peer_appended(&ack, effects),
        Packet::Quiesce { heard, from_node } => {
            core.hear(heard.from_replica, from_node).expect("a replica stays on its node");
            core.step_quiesce(&heard, effects);
        }
        Packet::Beat { .. } => {}
    }
}

fn birth(replica: u64, setting: &Setting) -> Birth {
    let founders: BTreeMap<u64, u64> =
        (1..=setting.nodes).map(|node| (node + REPLICA_BASE, node)).collect();
    // One that joins gets its members with a snapshot.
    let voters = if founders.contains_key(&replica) { founders } else { BTreeMap::new() };
    Birth {
        group: GROUP,
        replica,
        topic_id: "topic".into(),
        partition: 0,
        voters,
        learners: BTreeMap::new(),
        image: match setting.kind {
            Kind::Partition => Bytes::new(),
            Kind::Machine => Ledger::default().image(),
        },
        preferred: replica == REPLICA_BASE + 1,
    }
}
