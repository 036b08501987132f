//! All replicas of a node: opening, creating, removing, and the threads that drive them.
//!
//! Owns: the workers, the syncers and the hard-state journal of one node. Never: topics' names or addresses of nodes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use highwater_proto::internal::PeerBatch;
use highwater_storage::{
    Compacted, CompactedReceiver, Disk, DiskReserve, HardStateJournal, JournaledDisk, LogOptions,
    OpenSealed, Repair, Settled, SparePool, StagedCompaction, StorageError,
};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{mpsc, oneshot, watch};

use super::background::Background;
use super::births;
use super::checkpoint::SmallFiles;
use super::compactor::{self, CompactorConfig};
use super::convert;
use super::core::{Alarm, Birth, Core, CoreConfig, Effects, OpenError, Quarantine, StateMachine};
use super::handle::{PartitionHandle, Shared};
use super::held::Held;
use super::inbox::{Inbox, Input};
use super::pulses::{Pulses, Watch};
use super::scrubber;
use super::syncer::Syncer;
use super::worker::{Replica, Worker};
use crate::env::{self, Clock};
use crate::metrics::Metrics;

/// Sealed segments that a node keeps open. Each takes a descriptor and a mapping, of which a process has some ten thousand,
/// and every partition needs one of both for the segment it writes to.
const OPEN_SEALED_MAX: usize = 1024;
/// A group sleeps after so many election timeouts in which nothing happened.
const QUIET_TIMEOUTS: u32 = 4;
/// How long the thread that settles the journal of appends takes to notice that the node stops.
const SETTLE_PAUSE: Duration = Duration::from_millis(200);

/// Where batches for other nodes go. Never blocks; false when the batch was dropped.
pub trait Outbox: Send + Sync + 'static {
    /// Queues a batch for a node.
    fn send(&self, node: u64, batch: PeerBatch) -> bool;
}

/// Compacted segments to be fetched from the node that sent a snapshot, before that is installed. At most one for a group at
/// any time; `done` is called in any case.
pub struct Pull {
    /// The group.
    pub group: u64,
    /// The node that has the segments.
    pub from_node: u64,
    /// Says what is wanted, and takes it.
    pub receiver: CompactedReceiver,
    /// Takes what was received, or why it was not.
    pub done: Box<dyn FnOnce(Result<StagedCompaction, String>) + Send>,
}

/// What a topic's configuration means for a partition. `None` is "no limit".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionSettings {
    /// Age after which records may go, in milliseconds of append time.
    pub retention_ms: Option<i64>,
    /// Size of the log above which the oldest segments go.
    pub retention_bytes: Option<u64>,
    /// Size at which a segment is rolled.
    pub segment_bytes: u64,
    /// Age at which a segment is rolled, in milliseconds.
    pub segment_ms: Option<i64>,
    /// Of each key only the last record is kept.
    pub compact: bool,
    /// How long a compacted partition keeps tombstones, in milliseconds.
    pub delete_retention_ms: i64,
}

impl Default for PartitionSettings {
    fn default() -> Self {
        Self {
            retention_ms: None,
            retention_bytes: None,
            segment_bytes: LogOptions::default().segment_bytes,
            segment_ms: None,
            compact: false,
            delete_retention_ms: i64::MAX,
        }
    }
}

/// What an engine needs.
#[derive(Clone)]
pub struct EngineConfig {
    /// The node's data directory.
    pub dir: PathBuf,
    /// The node's id; 0 if it is to get one.
    pub node: u64,
    /// Length of a tick.
    pub tick: Duration,
    /// Ticks between heartbeats.
    pub heartbeat_ticks: u32,
    /// Shortest election timeout in ticks.
    pub election_ticks: u32,
    /// How often retention looks.
    pub retention_check: Duration,
    /// Bytes a second at which sealed segments are read again in search of rot; 0 means never.
    pub scrub_bytes_per_s: u64,
    /// Disk space for files of dropped segments that wait to hold the next ones.
    pub spare_bytes: u64,
    /// Memory for the keys of one compaction, in bytes.
    pub compaction_map_bytes: u64,
    /// Takes the transfers of compacted segments that snapshots call for.
    pub pulls: mpsc::UnboundedSender<Pull>,
    /// Worker threads.
    pub workers: usize,
    /// So many threads of the runtime as there are workers may wait for a disk that is quick, at a time.
    pub may_wait: bool,
    /// Seeds election timeouts.
    pub seed: u64,
    /// The disk.
    pub disk: Arc<dyn Disk>,
    /// Room for what must be written even on a full disk.
    pub reserve: Arc<DiskReserve>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// Figures.
    pub metrics: Arc<Metrics>,
    /// Where batches for other nodes go.
    pub outbox: Arc<dyn Outbox>,
    /// Called with the reason when the node must stop.
    pub fatal: Arc<dyn Fn(String) + Send + Sync>,
    /// Called with (group, node, term) when a replica here learns of another leader; node 0 when it knows none. Must be quick.
    pub leader_changed: Arc<dyn Fn(u64, u64, u64) + Send + Sync>,
}

/// A replica to create.
#[derive(Clone, Debug)]
pub struct NewReplica {
    /// Its group.
    pub group: u64,
    /// Its id.
    pub replica: u64,
    /// Its topic; empty for the metadata group.
    pub topic_id: String,
    /// Its partition's number.
    pub partition: u32,
    /// All voters of the group with their nodes. None, and no learners either: it joins a group that exists.
    pub voters: BTreeMap<u64, u64>,
    /// Replicas that follow without a vote, with their nodes.
    pub learners: BTreeMap<u64, u64>,
    /// First image of the state machine; empty for partitions.
    pub image: Bytes,
    /// It should lead first.
    pub preferred: bool,
    /// It belonged to its group when that was founded, even if it comes later.
    pub is_founding: bool,
    /// Its settings.
    pub settings: PartitionSettings,
}

impl From<NewReplica> for Birth {
    fn from(new: NewReplica) -> Self {
        Self {
            group: new.group,
            replica: new.replica,
            topic_id: new.topic_id,
            partition: new.partition,
            voters: new.voters,
            learners: new.learners,
            image: new.image,
            preferred: new.preferred,
        }
    }
}

/// Why a replica is not in service.
#[derive(Debug, thiserror::Error)]
pub enum ReplicaError {
    /// The log or a file beside it cannot be used.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The replica's state does not make sense.
    #[error("{0}")]
    State(String),
}

impl From<OpenError> for ReplicaError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Storage(error) => Self::Storage(error),
            OpenError::Raft(_) | OpenError::Image(_) => Self::State(error.to_string()),
        }
    }
}

struct WorkerThread {
    inbox: Arc<Inbox>,
    /// How often it has ticked.
    ticks: Arc<AtomicU64>,
    syncer: Arc<Syncer>,
    threads: Mutex<Vec<std::thread::JoinHandle<()>>>,
}

pub(super) struct Inner {
    pub(super) config: EngineConfig,
    /// The node's id; 0 before it has one, and then it has no replicas.
    node: AtomicU64,
    workers: Vec<WorkerThread>,
    pub(super) journal: Arc<Mutex<HardStateJournal>>,
    replicas: RwLock<HashMap<u64, PartitionHandle>>,
    pulses: Arc<Pulses>,
    spares: SparePool,
    open_sealed: OpenSealed,
    logger: slog::Logger,
    /// The disk that all replicas use.
    appends: JournaledDisk,
    scrubber: Background,
    compactor: Background,
    settler: Background,
}

/// All replicas of a node. Cheap to clone.
#[derive(Clone)]
pub struct Engine {
    pub(super) inner: Arc<Inner>,
}

impl Engine {
    /// Opens the journal and starts the threads; replicas are opened one by one.
    pub fn start(mut config: EngineConfig) -> Result<Self, StorageError> {
        let groups = config.dir.join("groups");
        let made = config.disk.create_dir_all(&groups);
        made.and_then(|()| config.disk.sync_dir(&config.dir))
            .map_err(|source| StorageError::Io { operation: "create", path: groups, source })?;
        let appends = open_append_journal(&config)?;
        config.disk = Arc::new(appends.clone());
        births::remove_unfinished(&*config.disk, &config.dir.join("groups"))?;
        let (journal, _) = HardStateJournal::open(Arc::clone(&config.disk), &config.dir)?;
        let journal = Arc::new(Mutex::new(journal));
        let pulses = Arc::new(Pulses::default());
        let mut workers = Vec::new();
        for number in 0..config.workers.max(1) {
            workers.push(start_worker(&config, &journal, &pulses, number)?);
        }
        let inner = Inner {
            spares: SparePool::new(config.spare_bytes),
            open_sealed: OpenSealed::new(OPEN_SEALED_MAX),
            node: AtomicU64::new(config.node),
            config,
            workers,
            journal,
            replicas: RwLock::default(),
            pulses,
            logger: super::logging::logger(),
            appends,
            scrubber: Background::default(),
            compactor: Background::default(),
            settler: Background::default(),
        };
        let engine = Self { inner: Arc::new(inner) };
        engine.start_background().map_err(|source| StorageError::Io {
            operation: "start a thread for",
            path: engine.inner.config.dir.clone(),
            source,
        })?;
        Ok(engine)
    }

    /// Starts what looks after sealed segments, and after the journal of appends.
    fn start_background(&self) -> std::io::Result<()> {
        let config = &self.inner.config;
        let (appends, fatal) = (self.inner.appends.clone(), Arc::clone(&config.fatal));
        self.inner.settler.start("settle", move |stopping| {
            while !stopping.within(Duration::ZERO) {
                if let Err(error) = appends.settle_full_half(SETTLE_PAUSE) {
                    fatal(format!("what was appended could not be synced ({error})"));
                    return;
                }
            }
        })?;
        let replicas = |weak: Weak<Inner>| {
            move || {
                let inner = weak.upgrade()?;
                Some(Engine { inner }.all().into_iter().map(|(_, handle)| handle).collect())
            }
        };
        if config.scrub_bytes_per_s > 0 {
            let metrics = Arc::clone(&config.metrics);
            let replicas = replicas(Arc::downgrade(&self.inner));
            let bytes_per_s = config.scrub_bytes_per_s;
            self.inner.scrubber.start("scrub", move |stopping| {
                scrubber::run(bytes_per_s, &metrics, replicas, stopping);
            })?;
        }
        let compaction = CompactorConfig {
            check: config.retention_check,
            map_bytes_max: config.compaction_map_bytes,
            seed: config.seed,
            clock: Arc::clone(&config.clock),
            metrics: Arc::clone(&config.metrics),
        };
        let replicas = replicas(Arc::downgrade(&self.inner));
        self.inner.compactor.start("compact", move |stopping| {
            compactor::run(&compaction, replicas, &stopping);
        })
    }

    /// The node has an id now. Before its first replica.
    pub fn set_node(&self, node: u64) {
        self.inner.node.store(node, Ordering::Release);
    }

    fn node(&self) -> u64 {
        self.inner.node.load(Ordering::Acquire)
    }

    /// Groups that have a directory here.
    pub fn groups_on_disk(&self) -> Result<Vec<u64>, StorageError> {
        let dir = self.groups_dir();
        let names = self.inner.config.disk.list(&dir).map_err(|source| StorageError::Io {
            operation: "list",
            path: dir,
            source,
        })?;
        let mut groups: Vec<u64> = names.iter().filter_map(|name| name.parse().ok()).collect();
        groups.sort_unstable();
        Ok(groups)
    }

    /// Makes everything that is on disk of all replicas durable in one step. Holds for those that are not in service, and is the
    /// way to open thousands of them.
    pub fn settle(&self) -> Result<Arc<Settled>, StorageError> {
        Settled::below(&*self.inner.config.disk, &self.groups_dir()).map(Arc::new)
    }

    /// Opens a replica that is on disk and puts it into service; `None` if the directory holds no complete replica.
    pub fn open(
        &self,
        group: u64,
        settings: PartitionSettings,
        machine: Option<Box<dyn StateMachine>>,
    ) -> Result<Option<PartitionHandle>, ReplicaError> {
        self.open_as(group, settings, machine, None)
    }

    /// Opens a replica of a partition that was on disk before `settle` and has not been in service since.
    pub fn open_settled(
        &self,
        group: u64,
        settings: PartitionSettings,
        settled: &Arc<Settled>,
    ) -> Result<Option<PartitionHandle>, ReplicaError> {
        self.open_as(group, settings, None, Some(settled))
    }

    fn open_as(
        &self,
        group: u64,
        settings: PartitionSettings,
        machine: Option<Box<dyn StateMachine>>,
        settled: Option<&Arc<Settled>>,
    ) -> Result<Option<PartitionHandle>, ReplicaError> {
        let saved = self.saved(group)?;
        let config = self.core_config(group, &settings, machine);
        let config = CoreConfig { settled: settled.cloned(), ..config };
        let core = Core::open(config, saved).map_err(ReplicaError::from).inspect_err(|error| {
            if matches!(error, ReplicaError::Storage(error) if error.is_disk_full()) {
                // Opening it again may have the room.
                self.inner.config.reserve.release();
            }
        })?;
        Ok(core.map(|core| self.add(core, settings)))
    }

    /// Creates a replica and puts it into service.
    pub fn create(
        &self,
        new: NewReplica,
        machine: Option<Box<dyn StateMachine>>,
    ) -> Result<PartitionHandle, ReplicaError> {
        self.check_is_new(&new)?;
        let config = self.core_config(new.group, &new.settings, machine);
        let settings = new.settings;
        Ok(self.add(Core::create(config, new.into())?, settings))
    }

    pub(super) fn core_config(
        &self,
        group: u64,
        settings: &PartitionSettings,
        machine: Option<Box<dyn StateMachine>>,
    ) -> CoreConfig {
        let config = &self.inner.config;
        CoreConfig {
            disk: Arc::clone(&config.disk),
            dir: self.group_dir(group),
            reserve: Arc::clone(&config.reserve),
            log: LogOptions {
                segment_bytes: settings.segment_bytes,
                spares: Some(self.inner.spares.clone()),
                open_sealed: self.inner.open_sealed.clone(),
                ..LogOptions::default()
            },
            settled: None,
            heartbeat_ticks: config.heartbeat_ticks,
            election_ticks: config.election_ticks,
            quiet_ticks: QUIET_TIMEOUTS * config.election_ticks,
            // Different for each group and node, the same for each run of a test.
            seed: config.seed ^ group.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ self.node(),
            machine,
            logger: self.inner.logger.clone(),
        }
    }

    pub(super) fn add(&self, mut core: Core, settings: PartitionSettings) -> PartitionHandle {
        core.log_mut().set_segment_bytes(settings.segment_bytes);
        let group = core.group();
        let shared = Arc::new(Shared {
            group,
            replica: core.replica(),
            node: self.node(),
            members: RwLock::new(Arc::new(core.members())),
            reader: core.partition_reader(),
            settings: Mutex::new(settings),
            settled: AtomicU64::new(core.settled_index()),
            visible: watch::Sender::new(core.visible()),
            followers: Mutex::default(),
            quarantined: Mutex::default(),
        });
        let inbox = Arc::clone(&self.worker(group).inbox);
        let handle = PartitionHandle { shared: Arc::clone(&shared), inbox };
        let replica = Replica {
            core,
            shared,
            settings,
            effects: Effects::default(),
            proposals: Vec::new(),
            proofs: Vec::new(),
            dirty: false,
            alarm: Alarm::default(),
            pulling: false,
            elections_counted: 0,
            retained_at: 0,
        };
        // Nobody may look between the two: once the worker has it the replica may lead, and then it must be found.
        let mut replicas = self.inner.replicas.write();
        handle.inbox.push(Input::Add(Box::new(replica)));
        replicas.insert(group, handle.clone());
        handle
    }

    /// The replica of a group, if it is in service here.
    pub fn get(&self, group: u64) -> Option<PartitionHandle> {
        self.inner.replicas.read().get(&group).cloned()
    }

    /// How many replicas are in service here.
    pub fn count(&self) -> usize {
        self.inner.replicas.read().len()
    }

    /// All replicas in service here.
    pub fn all(&self) -> Vec<(u64, PartitionHandle)> {
        let mut all: Vec<_> =
            self.inner.replicas.read().iter().map(|(id, handle)| (*id, handle.clone())).collect();
        all.sort_unstable_by_key(|(id, _)| *id);
        all
    }

    /// Those of them that are quarantined, and why. Looked at often: nothing is copied but what is found.
    pub(crate) fn quarantined(&self) -> Vec<(u64, Quarantine)> {
        let replicas = self.inner.replicas.read();
        replicas.iter().filter_map(|(id, handle)| Some((*id, handle.quarantined()?))).collect()
    }

    /// Applies other settings.
    pub fn configure(&self, group: u64, settings: PartitionSettings) {
        self.worker(group).inbox.push(Input::Configure { group, settings });
    }

    /// Takes a replica out of service; its data stays as it is, and nothing uses it any more.
    pub(crate) async fn take_out(&self, group: u64) {
        let (done, removed) = oneshot::channel();
        self.inner.replicas.write().remove(&group);
        self.worker(group).inbox.push(Input::Remove { group, done });
        let _ = removed.await;
    }

    /// Looks through the log of a replica that is out of service for what is damaged. Blocks, for as long as reading it takes.
    pub(crate) fn begin_repair(&self, group: u64) -> Result<Repair, ReplicaError> {
        let dir = self.group_dir(group);
        let files = SmallFiles::new(Arc::clone(&self.inner.config.disk), &dir);
        let Some(state) = files.load_state()? else {
            return Err(ReplicaError::State(format!("{} holds no replica", dir.display())));
        };
        let saved = self.saved(group)?.unwrap_or_default();
        let floor = saved.commit.max(state.applied_index);
        let disk = &self.inner.config.disk;
        // Other replicas have compacted on their own: none has the same files.
        Compacted::open(Arc::clone(disk), &dir, self.inner.open_sealed.clone())?.verify()?;
        Ok(Repair::begin(Arc::clone(disk), &dir, LogOptions::default(), floor)?)
    }

    /// Takes what the replicas of a peer sent. Malformed messages are dropped and logged.
    pub fn deliver(&self, node: u64, batch: PeerBatch) {
        self.inner.pulses.heard(node, batch.beat);
        let mut by_worker: Vec<Vec<Input>> =
            self.inner.workers.iter().map(|_| Vec::new()).collect();
        let workers = by_worker.len() as u64;
        let slot = |group: u64| usize::try_from(group % workers).unwrap_or(0);
        for wire in batch.messages {
            let (group, wants_appended) = (wire.group_id, wire.wants_appended);
            match wire.message.map(convert::from_wire) {
                Some(Ok(message)) => {
                    by_worker[slot(group)].push(Input::Step {
                        group,
                        node,
                        message,
                        wants_appended,
                    });
                }
                Some(Err(error)) => tracing::warn!(group, %error, "message from a peer dropped"),
                None => tracing::warn!(group, "message from a peer without content dropped"),
            }
        }
        for ack in batch.appended {
            by_worker[slot(ack.group_id)].push(Input::PeerAppended { node, ack });
        }
        for heard in batch.quiesces {
            by_worker[slot(heard.group_id)].push(Input::Quiesce { node, heard });
        }
        for (worker, inputs) in self.inner.workers.iter().zip(by_worker) {
            if inputs.is_empty() {
                continue;
            }
            let dropped = worker.inbox.push_messages(inputs);
            self.inner.config.metrics.raft_messages_dropped(dropped as u64);
        }
    }

    /// How often each thread that drives replicas has ticked: one that does not any more does not keep its groups alive either.
    pub fn ticks(&self) -> Vec<u64> {
        self.inner.workers.iter().map(|worker| worker.ticks.load(Ordering::Relaxed)).collect()
    }

    /// Nothing sent to this node arrives.
    pub fn unreachable(&self, node: u64) {
        for worker in &self.inner.workers {
            worker.inbox.push(Input::Unreachable { node });
        }
    }

    /// The connection to this node broke: groups that it led need not wait for the whole election timeout.
    pub fn broke(&self, node: u64) {
        for worker in &self.inner.workers {
            worker.inbox.push(Input::Broke { node });
        }
    }

    /// Ends all threads after a last sync. Appends that are not answered by now fail with an unknown outcome.
    pub fn stop(&self) {
        self.inner.scrubber.stop();
        self.inner.compactor.stop();
        self.inner.settler.stop();
        for worker in &self.inner.workers {
            worker.inbox.push(Input::Stop);
            let mut threads = worker.threads.lock();
            // The worker first: it submits its last hard states before the syncer is told to end.
            for (n, thread) in threads.drain(..).enumerate() {
                if thread.join().is_err() {
                    tracing::error!("a thread of the engine panicked");
                }
                if n == 0 {
                    worker.syncer.stop();
                }
            }
        }
        if let Err(error) = self.inner.appends.settle_all() {
            tracing::error!(%error, "what was appended could not be synced in its place; the next start does it");
        }
        self.inner.replicas.write().clear();
    }

    fn worker(&self, group: u64) -> &WorkerThread {
        let workers = &self.inner.workers;
        let slot = usize::try_from(group % workers.len() as u64).unwrap_or(0);
        &workers[slot]
    }

    pub(super) fn disk(&self) -> &Arc<dyn Disk> {
        &self.inner.config.disk
    }

    pub(super) fn groups_dir(&self) -> PathBuf {
        self.inner.config.dir.join("groups")
    }

    pub(super) fn group_dir(&self, group: u64) -> PathBuf {
        self.groups_dir().join(group.to_string())
    }
}

/// The disk with the journal that makes the appends of many partitions durable at once.
fn open_append_journal(config: &EngineConfig) -> Result<JournaledDisk, StorageError> {
    let open = || JournaledDisk::open(Arc::clone(&config.disk), &config.dir);
    open().or_else(|error| {
        if !error.is_disk_full() {
            return Err(error);
        }
        config.reserve.release();
        open()
    })
}

fn start_worker(
    config: &EngineConfig,
    journal: &Arc<Mutex<HardStateJournal>>,
    pulses: &Arc<Pulses>,
    number: usize,
) -> Result<WorkerThread, StorageError> {
    let inbox = Arc::new(Inbox::default());
    let syncer = Arc::new(Syncer::new(
        Arc::clone(journal),
        Arc::clone(&config.clock),
        Arc::clone(&config.metrics),
        Arc::clone(&config.fatal),
    ));
    let ticks = Arc::new(AtomicU64::new(0));
    let now = config.clock.monotonic();
    inbox.begin(Worker {
        inbox: Arc::clone(&inbox),
        syncer: Arc::clone(&syncer),
        journal: Arc::clone(journal),
        outbox: Arc::clone(&config.outbox),
        clock: Arc::clone(&config.clock),
        metrics: Arc::clone(&config.metrics),
        pulls: config.pulls.clone(),
        tick: config.tick,
        retention_check: config.retention_check,
        reserve: Arc::clone(&config.reserve),
        fatal: Arc::clone(&config.fatal),
        leader_changed: Arc::clone(&config.leader_changed),
        replicas: BTreeMap::new(),
        answers: HashMap::new(),
        next_token: 1,
        dirty: Vec::new(),
        to_retain: Vec::new(),
        awake: BTreeSet::new(),
        alarms: BTreeMap::new(),
        pulses: Arc::clone(pulses),
        watch: Watch::default(),
        election_ticks: config.election_ticks,
        ticks: 0,
        ticks_seen: Arc::clone(&ticks),
        held: Held::default(),
        may_stay: config.may_wait,
        next_tick: now + config.tick,
        next_retention: now + config.retention_check,
        inputs: Vec::new(),
        now,
    });
    let thread =
        |name: String, fatal: Arc<dyn Fn(String) + Send + Sync>, body: Box<dyn FnOnce() + Send>| {
            let message = format!("the thread {name} panicked; this is a defect");
            env::spawn_thread(&name, move || {
                let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
                if outcome.is_err() {
                    // What this thread held in memory cannot be trusted any more, and half a node helps nobody.
                    fatal(message);
                }
            })
            .map_err(|source| StorageError::Io {
                operation: "start a thread for",
                path: config.dir.clone(),
                source,
            })
        };
    let threads = vec![
        thread(
            format!("raft-{number}"),
            Arc::clone(&config.fatal),
            Box::new({
                let inbox = Arc::clone(&inbox);
                move || inbox.run()
            }),
        )?,
        thread(
            format!("sync-{number}"),
            Arc::clone(&config.fatal),
            Box::new({
                let (syncer, inbox) = (Arc::clone(&syncer), Arc::clone(&inbox));
                move || syncer.run(&inbox)
            }),
        )?,
    ];
    Ok(WorkerThread { inbox, ticks, syncer, threads: Mutex::new(threads) })
}
