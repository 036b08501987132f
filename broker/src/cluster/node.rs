//! The node: what `rpc` asks and tells.
//!
//! Owns: the facade over metadata, routing and the replicas on this node. Never: gRPC. The other files of this folder
//! add to [`Node`]: `lifecycle` starts and stops it, `commands` changes metadata, `events` hears from peers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use highwater_proto::internal;
use highwater_storage::{DirLock, Identity};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::founding::Founder;
use super::joining::Joined;
use super::leadership::Leadership;
use super::leases::Leases;
use super::metadata::Metadata;
use super::options::{NodeConfig, NodeDeps};
use super::repair::OutOfService;
use super::view::{ClusterView, ReadyState, TopicView};
use super::{GroupId, METADATA_GROUP, NodeId};
use crate::error::BrokerError;
use crate::replica::{Engine, PartitionHandle};

/// State of a node, shared by its tasks and its clones.
pub(super) struct Inner {
    /// 0 until the node has one.
    pub(super) id: AtomicU64,
    pub(super) config: NodeConfig,
    pub(super) deps: NodeDeps,
    pub(super) identity: Mutex<Identity>,
    pub(super) founder: Founder,
    pub(super) joined: Joined,
    pub(super) engine: Engine,
    pub(super) leadership: Arc<Leadership>,
    /// Written by the metadata state machine.
    pub(super) metadata: watch::Sender<Arc<Metadata>>,
    pub(super) view: watch::Sender<Arc<ClusterView>>,
    pub(super) stopping: watch::Sender<bool>,
    pub(super) fault: watch::Sender<Option<String>>,
    /// Why the node does not belong to a cluster yet.
    pub(super) waiting: Mutex<String>,
    /// When each peer was last heard from, by the monotonic clock.
    pub(super) heard: Mutex<BTreeMap<NodeId, Duration>>,
    /// The highest boot counter seen of each peer's data directory since this process started.
    pub(super) boots: Mutex<BTreeMap<NodeId, (String, u64)>>,
    /// The feature level that each peer said it understands when it last said hello.
    pub(super) levels: Mutex<BTreeMap<NodeId, u32>>,
    /// Renewals of services' leases, heard while this node leads the metadata group.
    pub(super) leases: Mutex<Leases>,
    /// Producer ids left of this node's lease: next and end.
    pub(super) producer_ids: tokio::sync::Mutex<(i64, i64)>,
    /// Replicas that are on disk here and cannot be used, and why.
    pub(super) unusable: Mutex<BTreeMap<GroupId, OutOfService>>,
    /// Groups whose directories a repair is working in.
    pub(super) repairing: Mutex<BTreeSet<GroupId>>,
    /// When replicas here were last replaced because they could not be repaired, by the monotonic clock.
    pub(super) replaced: Mutex<BTreeMap<GroupId, Duration>>,
    /// The metadata group knows of this start of the node.
    pub(super) registered: AtomicBool,
    /// The fault is one of the configuration, not of the machine.
    pub(super) misconfigured: AtomicBool,
    /// Ends the background tasks.
    pub(super) cancel: CancellationToken,
    /// Held for as long as the directory is used.
    pub(super) lock: Mutex<Option<DirLock>>,
}

/// This node. Cheap to clone.
#[derive(Clone)]
pub struct Node {
    pub(super) inner: Arc<Inner>,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("id", &self.id()).finish_non_exhaustive()
    }
}

impl Node {
    /// Its id; 0 where neither configuration, data directory nor seed list says one.
    pub fn id(&self) -> NodeId {
        self.inner.id.load(Ordering::Acquire)
    }

    /// The cluster's feature level; what this node understands while it knows of none.
    pub fn feature_level(&self) -> u32 {
        match self.view().feature_level {
            0 => self.inner.deps.feature_level,
            level => level,
        }
    }

    /// The cluster as this node knows it.
    pub fn view(&self) -> Arc<ClusterView> {
        self.inner.view.borrow().clone()
    }

    /// The same, once the node belongs to a cluster; until then `NotReady` with what it waits for.
    pub fn member_view(&self) -> Result<Arc<ClusterView>, BrokerError> {
        let view = self.view();
        if view.cluster_id.is_empty() {
            return Err(BrokerError::NotReady { why: self.inner.waiting.lock().clone() });
        }
        Ok(view)
    }

    /// Whether this node has applied all metadata there was when it started.
    pub fn is_caught_up(&self) -> bool {
        self.inner.registered.load(Ordering::Acquire)
    }

    /// What to say of a topic that is not in the view: a node that is still catching up after its start does not know
    /// that it does not exist.
    pub fn unknown_topic(&self, topic: &str) -> BrokerError {
        if self.is_caught_up() {
            return BrokerError::UnknownTopic { topic: topic.to_owned() };
        }
        BrokerError::NotReady {
            why: "the node is still catching up with the cluster's metadata".into(),
        }
    }

    /// Changes whenever [`Node::view`] does.
    pub fn watch_view(&self) -> watch::Receiver<Arc<ClusterView>> {
        self.inner.view.subscribe()
    }

    /// Becomes true when the node is asked to stop: streams say goodbye and end.
    pub fn watch_stopping(&self) -> watch::Receiver<bool> {
        self.inner.stopping.subscribe()
    }

    /// Whether the node serves, check by check.
    pub fn ready_state(&self) -> ReadyState {
        let mut checks = Vec::new();
        let mut ready = true;
        let mut check = |ok: bool, what: &str, detail: String| {
            ready &= ok;
            checks.push(format!("{} {what}: {detail}", if ok { "ok" } else { "waiting" }));
        };
        if *self.inner.stopping.borrow() {
            check(false, "process", "the node is stopping".into());
        }
        let cluster_id = self.inner.identity.lock().cluster_id.clone();
        if cluster_id.is_empty() {
            check(false, "cluster", self.inner.waiting.lock().clone());
            return ReadyState { ready, checks };
        }
        check(true, "cluster", format!("member of {cluster_id} as node {}", self.id()));
        match self.metadata_leader() {
            0 => check(false, "metadata", "no leader; a majority of the nodes must be up".into()),
            leader => check(true, "metadata", format!("led by node {leader}")),
        }
        let registered = self.is_caught_up();
        let detail = if registered { "caught up" } else { "not caught up yet" };
        check(registered, "registration", detail.into());
        let (in_service, assigned) = self.replicas_in_service();
        check(in_service == assigned, "replicas", format!("{in_service} of {assigned} in service"));
        for (group, out) in self.inner.unusable.lock().iter() {
            let why = &out.quarantine.why;
            let repair = match out.repair.as_str() {
                "" => "not begun",
                how_it_goes => how_it_goes,
            };
            let detail = format!("group {group} is out of service here: {why}; repair: {repair}");
            check(true, "quarantine", detail);
        }
        ReadyState { ready, checks }
    }

    /// Replicas that are in service or known to be unusable, and those that belong here.
    fn replicas_in_service(&self) -> (usize, usize) {
        let metadata = self.inner.metadata.borrow().clone();
        let unusable = self.inner.unusable.lock();
        let mut counts = (0, 0);
        for partition in metadata.topics.values().flat_map(|topic| &topic.partitions) {
            if partition.replicas.iter().any(|(_, node)| *node == self.id()) {
                let served = self.inner.engine.get(partition.group).is_some()
                    || unusable.contains_key(&partition.group);
                counts = (counts.0 + usize::from(served), counts.1 + 1);
            }
        }
        counts
    }

    /// The replica on this node that leads the partition. Errors: unknown topic or partition, id mismatch (an empty
    /// `topic_id` matches any), `NotLeader` with a hint.
    pub fn route(
        &self,
        topic: &str,
        topic_id: &str,
        partition: u32,
    ) -> Result<(Arc<TopicView>, PartitionHandle), BrokerError> {
        self.find(topic, topic_id, partition, PartitionHandle::is_leader)
    }

    /// The replica of the partition on this node, leading or not. Errors are those of [`Node::route`].
    pub fn route_to_replica(
        &self,
        topic: &str,
        topic_id: &str,
        partition: u32,
    ) -> Result<(Arc<TopicView>, PartitionHandle), BrokerError> {
        self.find(topic, topic_id, partition, |_| true)
    }

    fn find(
        &self,
        topic: &str,
        topic_id: &str,
        partition: u32,
        will_do: impl Fn(&PartitionHandle) -> bool,
    ) -> Result<(Arc<TopicView>, PartitionHandle), BrokerError> {
        let view = self.member_view()?;
        let Some(found) = view.topics.get(topic) else {
            return Err(self.unknown_topic(topic));
        };
        if !topic_id.is_empty() && topic_id != found.id && !self.is_caught_up() {
            return Err(self.unknown_topic(topic));
        }
        if !topic_id.is_empty() && topic_id != found.id {
            return Err(BrokerError::TopicIdMismatch {
                topic: topic.to_owned(),
                expected: topic_id.to_owned(),
                found: found.id.clone(),
            });
        }
        let slot = usize::try_from(partition).ok().and_then(|slot| found.partitions.get(slot));
        let Some(slot) = slot else {
            return Err(BrokerError::UnknownPartition {
                topic: topic.to_owned(),
                partition,
                partitions: u32::try_from(found.partitions.len()).unwrap_or(u32::MAX),
            });
        };
        match self.inner.engine.get(slot.group) {
            Some(replica) if will_do(&replica) => Ok((Arc::clone(found), replica)),
            _ => Err(BrokerError::NotLeader { leader: self.leader_of(slot.group) }),
        }
    }

    /// The other node that leads a group, as far as this one knows.
    pub fn leader_of(&self, group: GroupId) -> Option<NodeId> {
        self.view().leaders.get(&group).map(|(leader, _)| *leader).filter(|id| *id != self.id())
    }

    /// The replica of a group on this node, leading or not.
    pub fn replica(&self, group: GroupId) -> Option<PartitionHandle> {
        self.inner.engine.get(group)
    }

    /// All replicas of partitions on this node.
    pub fn replicas(&self) -> Vec<(GroupId, PartitionHandle)> {
        let mut all = self.inner.engine.all();
        all.retain(|(group, _)| *group != METADATA_GROUP);
        all
    }

    /// Whether a node has been heard from within the election timeout. True for this node.
    pub fn is_alive(&self, node: NodeId) -> bool {
        if node == self.id() {
            return true;
        }
        let config = &self.inner.config;
        let patience = Duration::from_millis(config.tick_ms) * config.election_ticks * 2;
        let now = self.inner.deps.clock.monotonic();
        self.inner
            .heard
            .lock()
            .get(&node)
            .is_some_and(|heard| now.saturating_sub(*heard) < patience)
    }

    /// Leader of the metadata group; 0 if none is known.
    pub fn metadata_leader(&self) -> NodeId {
        self.inner.engine.get(METADATA_GROUP).map_or(0, |replica| replica.status().leader_node)
    }

    /// Answers NodeService.GetFoundingState.
    pub fn founding_state(
        &self,
        _request: &internal::GetFoundingStateRequest,
    ) -> internal::GetFoundingStateResponse {
        let founder = &self.inner.founder;
        internal::GetFoundingStateResponse {
            cluster_id: self.inner.identity.lock().cluster_id.clone(),
            seeds: founder.seeds.clone(),
            member: Some(founder.own.clone()),
            promised_cluster_id: founder.promises.held().map(|f| f.cluster_id).unwrap_or_default(),
            feature_level: self.inner.deps.feature_level,
        }
    }

    /// Whether the fault that [`Node::fatal_fault`] told of is mended in the configuration: the process exits with 2.
    pub fn is_misconfigured(&self) -> bool {
        self.inner.misconfigured.load(std::sync::atomic::Ordering::Acquire)
    }

    /// Completes with the reason when the node hit a fault it must not survive (a failed sync): the process exits with 1.
    pub async fn fatal_fault(&self) -> String {
        let mut fault = self.inner.fault.subscribe();
        match fault.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or_default(),
            Err(_) => "the node was dropped".to_owned(),
        }
    }
}
