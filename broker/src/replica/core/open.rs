//! Creating a replica and opening it again after a stop or a crash.
//!
//! Owns: the order in which a replica's files come into being, and what is believed after a crash. Never: repairs; what
//! cannot be trusted is an error, and the data stays as it is.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use highwater_proto::internal::{ReplicaCheckpoint, ReplicaState};
use highwater_storage::{
    Compacted, Disk, DiskReserve, HardState, Log, LogOptions, LogStart, Settled, StorageError,
};
use raft::eraftpb::ConfState;
use raft::{RawNode, StateRole};
use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::members::{describe_members, take_from_checkpoint};
use super::quiesce::Quiescence;
use super::reads::Reads;
use super::{
    COMMITTED_BYTES_MAX, Core, Derived, MESSAGE_BYTES_MAX, MESSAGES_IN_FLIGHT_MAX, StateMachine,
    UNCOMMITTED_BYTES_MAX, Waiters, rebuild,
};
use crate::replica::checkpoint::SmallFiles;
use crate::replica::convert;
use crate::replica::raft_log::RaftLog;

/// Groups are born with a truncated index above 0, so that a replica that comes later always gets its members by
/// snapshot.
const INITIAL_INDEX: u64 = 5;
/// Term of the truncated entry.
const INITIAL_TERM: u64 = 5;
/// Ticks for which a new group's preferred leader campaigns early.
const BIRTH_TICKS: u32 = 20;

/// What a replica needs beside its files.
pub(crate) struct CoreConfig {
    pub(crate) disk: Arc<dyn Disk>,
    /// The replica's own directory.
    pub(crate) dir: PathBuf,
    pub(crate) log: LogOptions,
    /// Room for what must be written even on a full disk.
    pub(crate) reserve: Arc<DiskReserve>,
    /// Proof that the directory is on disk as it is, if nobody has written there since.
    pub(crate) settled: Option<Arc<Settled>>,
    pub(crate) heartbeat_ticks: u32,
    pub(crate) election_ticks: u32,
    /// Idle ticks after which the group may sleep; 0 is never.
    pub(crate) quiet_ticks: u32,
    pub(crate) seed: u64,
    /// Present for the metadata group only.
    pub(crate) machine: Option<Box<dyn StateMachine>>,
    pub(crate) logger: slog::Logger,
}

/// A replica that does not exist yet.
pub(crate) struct Birth {
    pub(crate) group: u64,
    pub(crate) replica: u64,
    pub(crate) topic_id: String,
    pub(crate) partition: u32,
    /// The group's first voters, with their nodes. None, and no learners either: it joins a group that exists.
    pub(crate) voters: BTreeMap<u64, u64>,
    /// Replicas that follow without a vote, with their nodes.
    pub(crate) learners: BTreeMap<u64, u64>,
    /// The state machine's first image; empty for partitions.
    pub(crate) image: Bytes,
    /// This replica should lead first.
    pub(crate) preferred: bool,
}

/// Why a replica cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error("raft: {0}")]
    Raft(#[from] raft::Error),
    #[error("the state machine's image cannot be read: {0}")]
    Image(String),
}

impl Core {
    /// Creates a replica. The file `replica` is written last: a directory without it was never a replica and is cleared away.
    pub(crate) fn create(config: CoreConfig, birth: Birth) -> Result<Self, OpenError> {
        let preferred = birth.preferred;
        Self::write_files(&config, birth)?;
        Self::open_new(config, preferred)
    }

    /// Puts the files of a new replica into its directory.
    pub(crate) fn write_files(config: &CoreConfig, birth: Birth) -> Result<(), OpenError> {
        let disk = Arc::clone(&config.disk);
        let io = |operation: &'static str| {
            let path = config.dir.clone();
            move |source| StorageError::Io { operation, path, source }
        };
        if disk.exists(&config.dir) {
            disk.remove_dir_all(&config.dir).map_err(io("clear"))?;
        }
        disk.create_dir_all(&config.dir).map_err(io("create"))?;
        if let Some(parent) = config.dir.parent() {
            disk.sync_dir(parent).map_err(io("sync the parent of"))?;
        }
        let members = ConfState {
            voters: birth.voters.keys().copied().collect(),
            learners: birth.learners.keys().copied().collect(),
            ..ConfState::default()
        };
        let nodes: BTreeMap<u64, u64> = birth.voters.into_iter().chain(birth.learners).collect();
        // Without members it joins a group that exists: its log is behind every other, so that it needs a snapshot, and that
        // brings the members.
        let joined = nodes.is_empty();
        let (initial_index, initial_term) =
            if joined { (0, 0) } else { (INITIAL_INDEX, INITIAL_TERM) };
        let start =
            LogStart { first_index: initial_index + 1, prev_term: initial_term, next_offset: 0 };
        drop(Log::create(Arc::clone(&disk), &config.dir, start, config.log.clone())?);
        let files = SmallFiles::new(disk, &config.dir);
        files.store_checkpoint(&ReplicaCheckpoint {
            index: initial_index,
            term: initial_term,
            applied_index: initial_index,
            state_machine: birth.image,
            members: Some(convert::members_to_wire(&members)),
            ..ReplicaCheckpoint::default()
        })?;
        files.store_state(&ReplicaState {
            group_id: birth.group,
            replica_id: birth.replica,
            topic_id: birth.topic_id,
            partition: birth.partition,
            members: Some(convert::members_to_wire(&members)),
            log_start_offset: 0,
            applied_index: initial_index,
            highest_replica_id: nodes.keys().copied().max().unwrap_or(0),
            members_index: 0,
            nodes,
            joined,
        })?;
        Ok(())
    }

    /// Opens a replica for the first time. `preferred`: it should lead first.
    pub(crate) fn open_new(config: CoreConfig, preferred: bool) -> Result<Self, OpenError> {
        let mut core = Self::open(config, None)?.ok_or_else(|| {
            OpenError::Image("the replica that was just created is not there".into())
        })?;
        core.birth_ticks = if preferred { BIRTH_TICKS } else { 0 };
        Ok(core)
    }

    /// Opens a replica; `None` if the directory holds none. `saved` is what the journal knows of it.
    pub(crate) fn open(
        config: CoreConfig,
        saved: Option<HardState>,
    ) -> Result<Option<Self>, OpenError> {
        let files = SmallFiles::new(Arc::clone(&config.disk), &config.dir);
        let Some(mut state) = files.load_state()? else { return Ok(None) };
        let saved = saved.unwrap_or_default();
        // The file `replica` too shows what was committed, hence durable somewhere; but while a snapshot is being installed it is
        // behind the log, never ahead of it.
        let floor = saved.commit.max(state.applied_index);
        let disk = Arc::clone(&config.disk);
        let open_sealed = config.log.open_sealed.clone();
        let (mut log, report) = match &config.settled {
            Some(settled) => Log::open_settled(disk, &config.dir, config.log, floor, settled)?,
            None => Log::open(disk, &config.dir, config.log, floor)?,
        };
        tracing::debug!(group = state.group_id, ?report, "log recovered");
        let compacted = Compacted::open(Arc::clone(&config.disk), &config.dir, open_sealed)?;
        join_compacted(&mut log, &compacted, &files)?;
        if state.highest_replica_id == 0 {
            // A file from before members could change.
            state.highest_replica_id = state.nodes.keys().copied().max().unwrap_or(0);
        }
        let start = start_checkpoint(&files, &log, &mut state)?;
        let mut commit = floor.max(log.first_index() - 1);
        let (derived, applied, append_time_ms) = match config.machine {
            Some(mut machine) => {
                machine.restore(start.index, &start.state_machine).map_err(OpenError::Image)?;
                let time = start.append_time_ms.max(last_append_time(&log));
                (Derived::Machine(machine), start.index, time)
            }
            None => {
                let rebuilt = rebuild::as_of(log.last_index(), &files, &log.reader())?;
                // Starting from here raft hands over again only what may not be in the file `replica`.
                let applied = state.applied_index.max(rebuilt.applied_index);
                (Derived::Partition(rebuilt.producers), applied, rebuilt.append_time_ms)
            }
        };
        // What was dropped had been applied, even if nothing else remembers it; raft does not begin below the log.
        let applied = applied.max(log.first_index() - 1);
        commit = commit.max(applied);
        if commit > log.last_index() {
            return Err(OpenError::Storage(StorageError::Corrupt {
                path: config.dir,
                index: log.last_index() + 1,
                detail: format!("entries up to {commit} were committed here and are missing"),
            }));
        }
        let mut hard_state = saved;
        if log.last_term() > hard_state.term {
            // The journal is behind the log: whatever vote it holds was cast in an older term.
            hard_state = HardState { term: log.last_term(), vote: 0, ..hard_state };
        }
        hard_state.commit = commit;
        let members = state.members.clone().unwrap_or_default();
        let raft_config =
            raft_config(config.heartbeat_ticks, config.election_ticks, &state, applied);
        let raft_log = RaftLog {
            reader: log.reader(),
            compacted: compacted.reader(),
            members: convert::members_from_wire(&members),
            hard_state,
            snapshot: start,
            damage: Default::default(),
        };
        let high_watermark = log.reader().end_offset(commit).unwrap_or(log.start().next_offset);
        let raw = RawNode::new(&raft_config, raft_log, &config.logger)?;
        let election_ticks = config.election_ticks as usize;
        let mut core = Self {
            group: state.group_id,
            replica: state.replica_id,
            role_term: (StateRole::Follower, u64::MAX),
            raw,
            log,
            compacted,
            received: None,
            files,
            reserve: config.reserve,
            state,
            derived,
            unpersisted: VecDeque::new(),
            durable_term: hard_state.term,
            saved: hard_state,
            ends: VecDeque::new(),
            committed: commit,
            high_watermark,
            append_time_ms,
            waiters: Waiters::default(),
            appended: BTreeMap::new(),
            wants_appended: None,
            random: SmallRng::seed_from_u64(config.seed),
            election_ticks,
            timeout_ticks: election_ticks,
            birth_ticks: 0,
            committed_before: [0; 2],
            ticks: 0,
            elections: 0,
            state_unsaved: false,
            stored_applied: applied,
            broken: None,
            strangers: BTreeMap::new(),
            members_changed: true,
            quiescence: Quiescence::after(config.quiet_ticks),
            reads: Reads::default(),
        };
        core.follow_role(&mut super::Effects::default());
        Ok(Some(core))
    }
}

/// Makes sure that the log goes on where the compacted part ends. A log that begins before that still has what the part took over
/// (it goes at the next look at retention); one that does not reach it is what a snapshot was replacing when the node stopped,
/// and its checkpoint is there: it was durable first.
fn join_compacted(
    log: &mut Log,
    compacted: &Compacted,
    files: &SmallFiles,
) -> Result<(), StorageError> {
    let Some(end) = compacted.end() else { return Ok(()) };
    let corrupt = |index: u64, detail: &str| StorageError::Corrupt {
        path: files.dir().to_owned(),
        index,
        detail: detail.into(),
    };
    if log.first_index() > end.first_index {
        return Err(corrupt(
            end.first_index,
            "entries between the compacted part and the log are missing",
        ));
    }
    let before = end.first_index - 1;
    if log.reader().term(before) == Some(end.prev_term) {
        if log.last_index() == before {
            // The segment that began here was lost with the power, having no entries yet: what stands before it is to go.
            match log.roll() {
                // It goes once there is room for another segment; nobody reads it meanwhile.
                Err(error) if error.is_disk_full() => {}
                outcome => outcome?,
            }
        }
        return Ok(());
    }
    match files.load_checkpoint(before) {
        Some(checkpoint) if checkpoint.term == end.prev_term => log.reset(end),
        _ => Err(corrupt(log.last_index() + 1, "the log ends before the compacted part does")),
    }
}

/// The checkpoint that says what holds before the log's first entry: the source of snapshots. Finishes the installation
/// of a snapshot that a crash interrupted.
fn start_checkpoint(
    files: &SmallFiles,
    log: &Log,
    state: &mut ReplicaState,
) -> Result<ReplicaCheckpoint, StorageError> {
    let before = log.first_index() - 1;
    // A state machine's checkpoint may be ahead of the log's first entry; a partition's stands exactly before it.
    let index = files
        .checkpoints()?
        .into_iter()
        .rev()
        .filter(|index| *index >= before && *index <= log.last_index())
        .find_map(|index| {
            let found = files.load_checkpoint(index)?;
            let fits = log.reader().term(index) == Some(found.term);
            (fits && (index == before || !found.state_machine.is_empty())).then_some(found)
        });
    let Some(mut checkpoint) = index else {
        return Err(StorageError::Corrupt {
            path: files.dir().to_owned(),
            index: before,
            detail: "the checkpoint for the start of the log is missing or damaged".into(),
        });
    };
    if state.applied_index < before && checkpoint.members.is_some() {
        state.members = checkpoint.members.clone();
        take_from_checkpoint(&checkpoint, state);
        state.log_start_offset = checkpoint.log_start_offset;
        state.applied_index = checkpoint.index;
        files.store_state(state)?;
    }
    // Where the log starts *after* the checkpoint is for the entries behind it to say.
    checkpoint.log_start_offset = state.log_start_offset.min(checkpoint.next_offset);
    describe_members(state, &mut checkpoint);
    Ok(checkpoint)
}

/// Append time of the last entry.
pub(super) fn last_append_time(log: &Log) -> i64 {
    log.segments().iter().map(|segment| segment.last_append_time_ms).max().unwrap_or(0)
}

fn raft_config(
    heartbeat_ticks: u32,
    election_ticks: u32,
    state: &ReplicaState,
    applied: u64,
) -> raft::Config {
    raft::Config {
        id: state.replica_id,
        election_tick: election_ticks as usize,
        heartbeat_tick: heartbeat_ticks as usize,
        applied,
        max_size_per_msg: MESSAGE_BYTES_MAX,
        max_inflight_msgs: MESSAGES_IN_FLIGHT_MAX,
        check_quorum: true,
        pre_vote: true,
        max_uncommitted_size: UNCOMMITTED_BYTES_MAX,
        max_committed_size_per_ready: COMMITTED_BYTES_MAX,
        ..raft::Config::default()
    }
}
