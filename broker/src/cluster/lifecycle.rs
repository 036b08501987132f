//! Starting a node, its background tasks, and stopping it.
//!
//! Owns: the order of both. Never: waits in `start` for other nodes.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use highwater_proto::internal::metadata_command::Command;
use highwater_proto::internal::{
    ConfirmFoundingRequest, Founding, FoundingMember, ListenerAddress, MetadataCommand,
    NodeStarted, PeerBatch, PromiseFoundingRequest, ProposeMetadataRequest,
    ProposeMetadataResponse,
};
use highwater_storage::{DirLock, DiskReserve, Identity, StorageError};
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::founding::{self, Founder, Round};
use super::held::Held;
use super::joining::Joined;
use super::leadership::Leadership;
use super::metadata::{Metadata, MetadataMachine, too_old_message};
use super::node::{Inner, Node};
use super::options::{NodeConfig, NodeDeps, StartError};
use super::peer::PeerStreams;
use super::view::ClusterView;
use super::{METADATA_GROUP, NodeId, commands};
use crate::error::BrokerError;
use crate::replica::{
    Engine, EngineConfig, NewReplica, Outbox, PartitionSettings, Pull, ReplicaError,
};

/// Threads that drive replicas.
const WORKERS: usize = 1;
/// Pause between two rounds of founding.
const FOUNDING_PAUSE: Duration = Duration::from_millis(200);
/// Pause after which own leaderships are told again, in case a message was lost.
const LEADERS_PAUSE: Duration = Duration::from_secs(2);
/// Pause between two looks at whether leaderships have moved, while stopping.
const STOP_PAUSE: Duration = Duration::from_millis(20);

struct ToPeers(Arc<dyn PeerStreams>);

impl Outbox for ToPeers {
    fn send(&self, node: u64, batch: PeerBatch) -> bool {
        self.0.send(node, batch)
    }
}

impl Node {
    /// Opens the data directory, starts workers and every replica in it, and begins to found, join or rejoin the cluster in
    /// the background. Serving may begin at once: what needs the cluster answers `NotReady` until then.
    pub fn start(config: NodeConfig, deps: NodeDeps) -> Result<Node, StartError> {
        let data_dir = config.data_dir.clone();
        let failed =
            |source: StorageError| StartError::Storage { data_dir: data_dir.clone(), source };
        deps.disk.create_dir_all(&config.data_dir).map_err(|source| {
            failed(StorageError::Io { operation: "create", path: config.data_dir.clone(), source })
        })?;
        let lock = DirLock::acquire(&config.data_dir).map_err(|error| match error {
            StorageError::Locked { .. } => StartError::Config {
                key: "node.data_dir",
                why: format!("{error}; give each broker a directory of its own"),
            },
            error => failed(error),
        })?;
        let reserve =
            DiskReserve::open(Arc::clone(&deps.disk), &config.data_dir, config.reserve_bytes);
        let reserve = Arc::new(reserve.map_err(failed)?);
        let identity = match open_identity(&config, &deps) {
            Err(IdentityError::Storage(error)) if error.is_disk_full() && reserve.release() => {
                open_identity(&config, &deps)
            }
            outcome => outcome,
        };
        let identity = identity.map_err(|error| error.into_start(&failed))?;
        let id = identity.node_id;
        let own = FoundingMember {
            node_id: id,
            incarnation: identity.incarnation.clone(),
            internal_address: config.internal_advertise.clone(),
            listeners: listeners(&config),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            rack: config.rack.clone(),
            feature_level: deps.feature_level,
        };
        let joined = Joined::open(Arc::clone(&deps.disk), &config.data_dir).map_err(failed)?;
        let promises = config.data_dir.join("founding");
        let promises = Held::open(Arc::clone(&deps.disk), promises, founding::MAGIC);
        let founder = Founder {
            calls: Arc::clone(&deps.calls),
            promises: promises.map_err(failed)?,
            seeds: config.seeds.clone(),
            own,
        };
        let leadership = Arc::new(Leadership::new(id));
        let fault = watch::Sender::new(None);
        let (pulls, wanted) = mpsc::unbounded_channel();
        let engine =
            Engine::start(engine_config(id, &config, &deps, &reserve, &leadership, &fault, pulls))
                .map_err(failed)?;
        let is_member = !identity.cluster_id.is_empty();
        let inner = Inner {
            id: AtomicU64::new(id),
            identity: Mutex::new(identity),
            founder,
            joined,
            engine,
            leadership,
            metadata: watch::Sender::new(Arc::default()),
            view: watch::Sender::new(Arc::default()),
            stopping: watch::Sender::new(false),
            fault,
            waiting: Mutex::new("starting".into()),
            heard: Mutex::default(),
            boots: Mutex::default(),
            levels: Mutex::default(),
            leases: Mutex::default(),
            producer_ids: tokio::sync::Mutex::new((0, 0)),
            unusable: Mutex::default(),
            repairing: Mutex::default(),
            replaced: Mutex::default(),
            registered: AtomicBool::new(false),
            misconfigured: AtomicBool::new(false),
            cancel: CancellationToken::new(),
            lock: Mutex::new(Some(lock)),
            config,
            deps,
        };
        let node = Node { inner: Arc::new(inner) };
        if is_member {
            node.open_metadata_or_repair().map_err(failed)?;
            node.open_all().map_err(failed)?;
        } else if node.inner.config.seeds.is_empty() {
            node.found_alone().map_err(failed)?;
        }
        node.start_tasks(wanted);
        Ok(node)
    }

    fn start_tasks(&self, pulls: mpsc::UnboundedReceiver<Pull>) {
        let tasks = &self.inner.deps.tasks;
        tasks.spawn(self.clone().view_loop());
        tasks.spawn(self.clone().reconcile_loop());
        tasks.spawn(self.clone().ping_loop());
        tasks.spawn(self.clone().join_loop());
        tasks.spawn(self.clone().repair_loop());
        tasks.spawn(self.clone().pull_loop(pulls));
        tasks.spawn(self.clone().move_loop());
        tasks.spawn(self.clone().steward_loop());
        tasks.spawn(self.clone().lease_loop());
        tasks.spawn(self.clone().leader_balance_loop());
    }

    /// Without seeds: a cluster of one, at once.
    fn found_alone(&self) -> Result<(), StorageError> {
        let own = self.inner.founder.own.clone();
        let founding = Founding {
            cluster_id: uuid::Uuid::new_v4().to_string(),
            members: vec![own],
            seeds: Vec::new(),
            feature_level: self.inner.deps.feature_level,
        };
        self.become_member(&founding)
    }

    /// Makes this node a member: the promise is on disk before the identity, the identity before the metadata replica, so that
    /// a crash anywhere leaves something to continue from.
    fn become_member(&self, founding: &Founding) -> Result<(), StorageError> {
        if !self.inner.founder.is_among(founding) {
            let path = self.inner.config.data_dir.join("founding");
            let id = self.id();
            let detail = format!("node {id} has promised to found the cluster under another id");
            return Err(StorageError::Corrupt { path, index: 0, detail });
        }
        self.inner.founder.promises.hold(founding.clone())?;
        {
            let mut identity = self.inner.identity.lock();
            if !identity.cluster_id.is_empty() {
                return Ok(());
            }
            let mut member = identity.clone();
            member.cluster_id.clone_from(&founding.cluster_id);
            member.store(&*self.inner.deps.disk, &self.inner.config.data_dir)?;
            *identity = member;
        }
        tracing::info!(cluster = founding.cluster_id, node = self.id(), "cluster founded");
        self.open_metadata().map_err(|error| self.unusable_metadata(error))
    }

    /// Opens the metadata replica, or leaves a damaged one to be repaired if other nodes have it too.
    fn open_metadata_or_repair(&self) -> Result<(), StorageError> {
        let opened = match self.is_replaced(METADATA_GROUP) {
            // The node was stopped before the new one was in its place.
            true => Err(replaced_metadata(&self.inner.config.data_dir)),
            false => self.open_metadata(),
        };
        let Err(error) = opened else { return Ok(()) };
        let founding = self.inner.founder.promises.held().unwrap_or_default();
        let has_others = founding.members.len() > 1 || !self.inner.joined.nodes().is_empty();
        match &error {
            ReplicaError::Storage(StorageError::Corrupt { .. }) if has_others => {
                self.set_unusable(METADATA_GROUP, &error);
                Ok(())
            }
            _ => Err(self.unusable_metadata(error)),
        }
    }

    pub(super) fn unusable_metadata(&self, error: ReplicaError) -> StorageError {
        match error {
            ReplicaError::Storage(error) => error,
            error => StorageError::Corrupt {
                path: self.inner.config.data_dir.clone(),
                index: 0,
                detail: error.to_string(),
            },
        }
    }

    /// Puts the metadata replica into service; creates it if the node became a member and then crashed.
    pub(super) fn open_metadata(&self) -> Result<(), ReplicaError> {
        let machine = || Box::new(MetadataMachine::new(self.inner.metadata.clone()));
        let settings = PartitionSettings::default();
        let open = || self.inner.engine.open(METADATA_GROUP, settings, Some(machine()));
        let opened = match open() {
            Err(ReplicaError::Storage(error)) if error.is_disk_full() => open(),
            outcome => outcome,
        };
        if opened?.is_none() {
            self.create_metadata(machine())?;
        }
        self.refresh_view();
        Ok(())
    }

    fn create_metadata(&self, machine: Box<MetadataMachine>) -> Result<(), ReplicaError> {
        let corrupt = |detail: &str| StorageError::Corrupt {
            path: self.inner.config.data_dir.join("founding"),
            index: 0,
            detail: detail.to_owned(),
        };
        if let Some(mut new) = self.inner.joined.metadata_replica() {
            let known = self.inner.metadata.borrow().clone();
            if known.applied_index > 0 {
                // It comes in the place of one that was in service until now: what that knew is true until the snapshot is there.
                new.image = known.to_image().encode_to_vec().into();
            }
            return self.inner.engine.create(new, Some(machine)).map(drop);
        }
        let Some(founding) = self.inner.founder.promises.held() else {
            return Err(
                corrupt("the node is a member, but what it was founded with is missing").into()
            );
        };
        let (voters, learners) = Metadata::metadata_members(&founding);
        let mut members = voters.iter().chain(&learners);
        let Some((replica, _)) = members.find(|(_, node)| **node == self.id()) else {
            return Err(corrupt("the node is not among the founding members").into());
        };
        let new = NewReplica {
            group: METADATA_GROUP,
            replica: *replica,
            topic_id: String::new(),
            partition: 0,
            preferred: voters.first_key_value().is_some_and(|(first, _)| first == replica),
            is_founding: true,
            voters: voters.clone(),
            learners: learners.clone(),
            image: Metadata::founded(&founding).to_image().encode_to_vec().into(),
            settings: PartitionSettings::default(),
        };
        self.inner.engine.create(new, Some(machine)).map(drop)
    }

    /// Founds or waits until this node is a member, then tells the cluster that it has started.
    async fn join_loop(self) {
        let work = async {
            while self.inner.identity.lock().cluster_id.is_empty() {
                self.founding_round().await;
                tokio::time::sleep(FOUNDING_PAUSE).await;
            }
            self.register().await;
            self.watch_membership().await;
        };
        tokio::select! {
            () = work => {}
            () = self.inner.cancel.cancelled() => {}
        }
    }

    async fn founding_round(&self) {
        let new_cluster_id = uuid::Uuid::new_v4().to_string();
        match self.inner.founder.round(new_cluster_id).await {
            Round::Waiting(why) => self.note_waiting(why),
            Round::Exists { seed, cluster_id } => {
                if let Err(why) = self.join_through(&seed, &cluster_id).await {
                    self.note_waiting(why);
                }
            }
            Round::Founded(founding) => match self.become_member_off_thread(founding.clone()).await
            {
                Ok(()) => self.inner.founder.confirm(&founding.cluster_id).await,
                Err(error) => self.fail(format!("the cluster cannot be founded: {error}")),
            },
        }
    }

    fn note_waiting(&self, why: String) {
        let mut waiting = self.inner.waiting.lock();
        if *waiting != why {
            tracing::info!("{why}");
            *waiting = why;
        }
    }

    async fn become_member_off_thread(&self, founding: Founding) -> Result<(), BrokerError> {
        let node = self.clone();
        let done = self.inner.deps.tasks.spawn_blocking(move || node.become_member(&founding));
        match done.await {
            Ok(outcome) => outcome.map_err(|error| BrokerError::Internal(error.to_string())),
            Err(error) => Err(BrokerError::Internal(error.to_string())),
        }
    }

    /// Answers NodeService.PromiseFounding; durable when it returns.
    pub async fn promise_founding(
        &self,
        request: PromiseFoundingRequest,
    ) -> Result<(), BrokerError> {
        let founding = request.founding.unwrap_or_default();
        let member_of = self.inner.identity.lock().cluster_id.clone();
        if !member_of.is_empty() {
            return Err(BrokerError::InvalidArgument {
                field: "founding".into(),
                why: format!("this node belongs to cluster {member_of}"),
            });
        }
        let node = self.clone();
        let done =
            self.inner.deps.tasks.spawn_blocking(move || node.inner.founder.promise(founding));
        done.await.map_err(|error| BrokerError::Internal(error.to_string()))?
    }

    /// Answers NodeService.ConfirmFounding.
    pub async fn confirm_founding(
        &self,
        request: ConfirmFoundingRequest,
    ) -> Result<(), BrokerError> {
        match self.inner.founder.promises.held() {
            Some(promise) if promise.cluster_id == request.cluster_id => {
                self.become_member_off_thread(promise).await
            }
            _ => Err(BrokerError::InvalidArgument {
                field: "cluster_id".into(),
                why: format!("this node has not promised to join cluster {}", request.cluster_id),
            }),
        }
    }

    /// Tells the metadata group that this node has started, and with which addresses.
    pub(super) async fn register(&self) {
        loop {
            let command = self.own_start();
            match self.propose_metadata(command.clone()).await {
                Ok(_) => {
                    self.inner.registered.store(true, Ordering::Release);
                    return;
                }
                Err(error @ BrokerError::InvalidArgument { .. }) => {
                    return self.fail_directory(&format!("the cluster refuses it: {error}"));
                }
                Err(error) => {
                    tracing::debug!(%error, "not registered yet");
                    if let Some(why) = self.refused_by_leader(&command).await {
                        return self.fail_directory(&format!("the cluster refuses it: {why}"));
                    }
                    let cluster_id = self.inner.identity.lock().cluster_id.clone();
                    if let Some(why) = self.inner.founder.other_cluster(&cluster_id).await {
                        return self.fail_directory(&why);
                    }
                    tokio::time::sleep(FOUNDING_PAUSE).await;
                }
            }
        }
    }

    /// What the metadata group is told of this start.
    pub(super) fn own_start(&self) -> MetadataCommand {
        let identity = self.inner.identity.lock().clone();
        commands::command(Command::NodeStarted(NodeStarted {
            node_id: self.id(),
            incarnation: identity.incarnation,
            boot_counter: identity.boot_counter,
            internal_address: self.inner.config.internal_advertise.clone(),
            listeners: listeners(&self.inner.config),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            rack: self.inner.config.rack.clone(),
            feature_level: self.inner.deps.feature_level,
        }))
    }

    /// Tells every other node of this start; why, if the leader among them refuses it. Nodes that refuse our streams do not
    /// let us know who leads.
    pub(super) async fn refused_by_leader(&self, command: &MetadataCommand) -> Option<String> {
        let view = self.view();
        for node in view.nodes.values().filter(|node| node.id != self.id()) {
            let request = ProposeMetadataRequest { command: Some(command.clone()) };
            let answer = self.inner.deps.calls.propose_metadata(&node.internal_address, request);
            if let Ok(ProposeMetadataResponse { outcome: Some(outcome) }) = answer.await
                && !outcome.reason.is_empty()
            {
                return Some(outcome.message);
            }
        }
        None
    }

    /// Ends the node because its directory does not fit its cluster.
    pub(super) fn fail_directory(&self, why: &str) {
        self.inner.misconfigured.store(true, Ordering::Release);
        self.fail(format!("node.data_dir: {why}"));
    }

    /// Keeps the view, the list of peers and the peers' knowledge of leaderships won here up to date.
    async fn view_loop(self) {
        let mut metadata = self.inner.metadata.subscribe();
        loop {
            metadata.mark_unchanged();
            self.refresh_view();
            self.check_own_level();
            let leaders = self.inner.leadership.take_won();
            if !leaders.is_empty() {
                self.to_all_peers(&PeerBatch { leaders, ..PeerBatch::default() });
            }
            tokio::select! {
                changed = metadata.changed() => if changed.is_err() { return },
                () = self.inner.leadership.changed.notified() => {}
                () = self.inner.cancel.cancelled() => return,
            }
        }
    }

    /// Ends a node that does not understand what may be in the metadata group's log from here on: it would apply it wrongly.
    fn check_own_level(&self) {
        let (own, cluster) = (self.inner.deps.feature_level, self.view().feature_level);
        if cluster > own {
            let version = env!("CARGO_PKG_VERSION");
            self.inner.misconfigured.store(true, Ordering::Release);
            self.fail(too_old_message(self.id(), version, own, cluster));
        }
    }

    /// Puts the view together again.
    pub(super) fn refresh_view(&self) {
        let mut peers_changed = false;
        self.inner.view.send_modify(|view| {
            // Read under the view's lock: of two refreshes at once the later one sees no less than the earlier.
            let metadata = self.inner.metadata.borrow().clone();
            let leaders = self.inner.leadership.leaders();
            let new = metadata.view(leaders, view.version + 1);
            let addresses = |view: &ClusterView| -> Vec<(NodeId, String)> {
                view.nodes.values().map(|n| (n.id, n.internal_address.clone())).collect()
            };
            peers_changed = addresses(view) != addresses(&new);
            *view = Arc::new(new);
        });
        if peers_changed {
            let view = self.view();
            let peers = view.nodes.values().filter(|node| node.id != self.id());
            let peers = peers.map(|node| (node.id, node.internal_address.clone())).collect();
            self.inner.deps.streams.set_peers(peers);
        }
    }

    fn to_all_peers(&self, batch: &PeerBatch) {
        for node in self.view().nodes.keys().filter(|node| **node != self.id()) {
            self.inner.deps.streams.send(*node, batch.clone());
        }
    }

    /// Lets every peer know that this node is alive, for its groups that sleep and so do not say it themselves.
    async fn ping_loop(self) {
        let config = &self.inner.config;
        let pause = Duration::from_millis(config.tick_ms) * config.heartbeat_ticks;
        // A thread that is busy for a while is alive; one that stands still for half an election timeout may not be.
        let stalled_pings_max = config.election_ticks / config.heartbeat_ticks / 2;
        let (mut ticks, mut stalled_pings) = (self.inner.engine.ticks(), 0);
        let mut since_leaders = Duration::ZERO;
        loop {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.inner.cancel.cancelled() => return,
            }
            // The groups are as alive as the thread that drives them.
            let ticks_before = std::mem::replace(&mut ticks, self.inner.engine.ticks());
            let moves = ticks.iter().zip(&ticks_before).all(|(now, before)| now != before);
            stalled_pings = if moves { 0 } else { stalled_pings + 1 };
            let is_alive = stalled_pings <= stalled_pings_max;
            let boots = self.inner.identity.lock().boot_counter;
            let beat = if is_alive { boots } else { 0 };
            since_leaders += pause;
            let mut leaders = Vec::new();
            if since_leaders >= LEADERS_PAUSE {
                since_leaders = Duration::ZERO;
                leaders = self.inner.leadership.own();
            }
            self.to_all_peers(&PeerBatch { leaders, beat, ..PeerBatch::default() });
        }
    }

    fn fail(&self, why: String) {
        tracing::error!(%why, "the node cannot go on");
        self.inner.fault.send_if_modified(|fault| match fault {
            Some(_) => false,
            None => {
                *fault = Some(why);
                true
            }
        });
    }

    /// Stops gracefully: not ready, leaderships handed over, appends drained, everything synced, threads ended.
    pub async fn stop(&self) {
        if self.inner.stopping.send_replace(true) {
            return;
        }
        let hand_over = self.hand_over_leaderships();
        let patience = Duration::from_millis(self.inner.config.shutdown_ms_max);
        if tokio::time::timeout(patience, hand_over).await.is_err() {
            tracing::warn!("stopping with leaderships still here; the others will hold elections");
        }
        self.inner.cancel.cancel();
        self.inner.deps.streams.close();
        let engine = self.inner.engine.clone();
        if self.inner.deps.tasks.spawn_blocking(move || engine.stop()).await.is_err() {
            tracing::error!("the engine did not stop cleanly");
        }
        self.inner.lock.lock().take();
    }

    /// Ends the node's threads and lets go of its directory without handing anything over. Blocks.
    pub fn abandon(&self) {
        self.inner.cancel.cancel();
        self.inner.deps.streams.close();
        self.inner.engine.stop();
        self.inner.lock.lock().take();
    }

    /// Moves every leadership that another node can take.
    async fn hand_over_leaderships(&self) {
        loop {
            let mut left = 0;
            for (_, replica) in self.inner.engine.all() {
                let elsewhere = replica.has_peers() && self.view().nodes.len() > 1;
                if replica.is_leader() && elsewhere {
                    left += 1;
                    // An error means that nobody is fit to lead; that may change while there is time.
                    let _ = replica.transfer_leadership(0).await;
                }
            }
            if left == 0 {
                return;
            }
            tokio::time::sleep(STOP_PAUSE).await;
        }
    }
}

fn replaced_metadata(data_dir: &Path) -> ReplicaError {
    let detail = "another replica of the metadata group takes its place".to_owned();
    let path = data_dir.join("groups").join(METADATA_GROUP.to_string());
    StorageError::Corrupt { path, index: 0, detail }.into()
}

fn listeners(config: &NodeConfig) -> Vec<ListenerAddress> {
    let listener = |(name, address): (&String, &String)| ListenerAddress {
        name: name.clone(),
        address: address.clone(),
    };
    config.listeners.iter().map(listener).collect()
}

fn engine_config(
    node: NodeId,
    config: &NodeConfig,
    deps: &NodeDeps,
    reserve: &Arc<DiskReserve>,
    leadership: &Arc<Leadership>,
    fault: &watch::Sender<Option<String>>,
    pulls: mpsc::UnboundedSender<Pull>,
) -> EngineConfig {
    let leadership = Arc::clone(leadership);
    let fault = fault.clone();
    EngineConfig {
        dir: config.data_dir.clone(),
        node,
        tick: Duration::from_millis(config.tick_ms),
        heartbeat_ticks: config.heartbeat_ticks,
        election_ticks: config.election_ticks,
        retention_check: Duration::from_millis(config.retention_check_ms),
        scrub_bytes_per_s: config.scrub_bytes_per_s,
        spare_bytes: config.spare_bytes,
        compaction_map_bytes: config.compaction_map_bytes,
        pulls,
        workers: WORKERS,
        may_wait: deps.tasks.threads() >= WORKERS + 2,
        seed: deps.seed,
        disk: Arc::clone(&deps.disk),
        reserve: Arc::clone(reserve),
        clock: Arc::clone(&deps.clock),
        metrics: Arc::clone(&deps.metrics),
        outbox: Arc::new(ToPeers(Arc::clone(&deps.streams))),
        fatal: Arc::new(move |why| {
            tracing::error!(%why, "fatal fault");
            fault.send_if_modified(|fault| {
                fault.is_none() && {
                    *fault = Some(why);
                    true
                }
            });
        }),
        leader_changed: Arc::new(move |group, node, term| leadership.learn(group, node, term)),
    }
}

/// Why a data directory does not fit.
enum IdentityError {
    Storage(StorageError),
    Config(String),
}

impl IdentityError {
    fn into_start(self, failed: &impl Fn(StorageError) -> StartError) -> StartError {
        match self {
            Self::Storage(error) => failed(error),
            Self::Config(why) => StartError::Config { key: "node.id", why },
        }
    }
}

/// Loads or draws the node's identity and counts this start, durably.
fn open_identity(config: &NodeConfig, deps: &NodeDeps) -> Result<Identity, IdentityError> {
    let loaded = Identity::load(&*deps.disk, &config.data_dir).map_err(IdentityError::Storage)?;
    let mut identity = loaded.unwrap_or_else(|| Identity {
        cluster_id: String::new(),
        node_id: 0,
        incarnation: uuid::Uuid::new_v4().to_string(),
        boot_counter: 0,
    });
    let place = config.seeds.iter().position(|seed| *seed == config.internal_advertise);
    let by_place = match (place, config.seeds.is_empty()) {
        (Some(place), _) => place as u64 + 1,
        (None, true) => 1,
        (None, false) => 0,
    };
    if identity.cluster_id.is_empty() {
        // Nothing was founded with it yet: a mended id or seed list counts, not what stood here at an earlier start.
        identity.node_id = 0;
    }
    if let Some(configured) = config.node_id
        && identity.node_id != 0
        && identity.node_id != configured
    {
        return Err(IdentityError::Config(format!(
            "{configured} is configured, but {} is the data directory of node {}; give each node its own directory, or the id it has",
            config.data_dir.display(),
            identity.node_id
        )));
    }
    if identity.node_id == 0 {
        identity.node_id = config.node_id.unwrap_or(by_place);
    }
    identity.boot_counter += 1;
    identity.store(&*deps.disk, &config.data_dir).map_err(IdentityError::Storage)?;
    Ok(identity)
}
