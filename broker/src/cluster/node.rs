//! The node: what `rpc` asks and tells.
//!
//! Owns: the facade over metadata, routing and the replicas on this node. Never: gRPC.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use highwater_proto::internal;
use highwater_storage::{Disk, StorageError};
use tokio::sync::watch;

use super::peer::{PeerCalls, PeerEvents, PeerStreams};
use super::{GroupId, NodeId, ReplicaId};
use crate::env::{Clock, Tasks};
use crate::error::BrokerError;
use crate::metrics::Metrics;
use crate::replica::PartitionHandle;

/// The cluster as this node knows it; immutable, replaced as a whole.
#[derive(Clone, Debug, Default)]
pub struct ClusterView {
    /// The cluster's id; empty before founding.
    pub cluster_id: String,
    /// The cluster's feature level.
    pub feature_level: u32,
    /// Grows with every change, leaders included.
    pub version: u64,
    /// Nodes by id.
    pub nodes: BTreeMap<NodeId, NodeView>,
    /// Topics by name.
    pub topics: BTreeMap<String, Arc<TopicView>>,
    /// Leader and epoch of each group, as far as known (own groups and what leaders told).
    pub leaders: BTreeMap<GroupId, (NodeId, u64)>,
}

/// A node of the cluster.
#[derive(Clone, Debug)]
pub struct NodeView {
    /// Its id.
    pub id: NodeId,
    /// Where other nodes reach it.
    pub internal_address: String,
    /// Where clients reach it, by listener name.
    pub listeners: BTreeMap<String, String>,
    /// Its version.
    pub version: String,
}

/// A topic.
#[derive(Clone, Debug)]
pub struct TopicView {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: String,
    /// Its partitions, by number.
    pub partitions: Vec<PartitionView>,
    /// Configuration that differs from the defaults.
    pub config: BTreeMap<String, String>,
}

/// A partition.
#[derive(Clone, Debug)]
pub struct PartitionView {
    /// Its Raft group.
    pub group: GroupId,
    /// Its replicas with their nodes; the first is the preferred leader.
    pub replicas: Vec<(ReplicaId, NodeId)>,
}

/// Whether the node serves, and if not, why.
#[derive(Clone, Debug, Default)]
pub struct ReadyState {
    /// Joined, caught up, serving.
    pub ready: bool,
    /// One line for each check, for people: "ok metadata: ..." or "waiting for seed 10.0.0.2:7421: connection refused".
    pub checks: Vec<String>,
}

/// What a node needs to know to start.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Its id; `None` takes what the data directory holds, else its place in the seed list (1 without seeds).
    pub node_id: Option<NodeId>,
    /// Where everything is kept.
    pub data_dir: PathBuf,
    /// Internal addresses of the founding nodes, in the same order on every node; empty for a cluster of one.
    pub seeds: Vec<String>,
    /// Where other nodes reach this one.
    pub internal_advertise: String,
    /// Where clients reach it, by listener name.
    pub listeners: BTreeMap<String, String>,
    /// Raft's clock tick in milliseconds.
    pub tick_ms: u64,
    /// Ticks between a leader's heartbeats.
    pub heartbeat_ticks: u32,
    /// Shortest election timeout in ticks; the actual one is drawn between this and twice this.
    pub election_ticks: u32,
    /// Replicas of a partition when a topic does not say; bounded by the number of nodes.
    pub default_replication_factor: u32,
    /// Most topics in the cluster.
    pub topics_max: u32,
    /// Most partitions in the cluster, replicas not counted.
    pub partitions_max: u32,
    /// How often retention looks for segments to delete, in milliseconds.
    pub retention_check_ms: u64,
    /// Longest wait of a graceful stop for leaderships to move and appends to finish, in milliseconds.
    pub shutdown_ms_max: u64,
}

/// What a node runs on: everything that the simulator or a test replaces.
#[derive(Clone)]
pub struct NodeDeps {
    /// Unary calls to peers.
    pub calls: Arc<dyn PeerCalls>,
    /// Raft traffic to peers.
    pub streams: Arc<dyn PeerStreams>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// The disk.
    pub disk: Arc<dyn Disk>,
    /// Where tasks run.
    pub tasks: Tasks,
    /// Where figures go.
    pub metrics: Arc<Metrics>,
    /// Seeds every random choice of the node.
    pub seed: u64,
}

/// Why a node could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration does not fit the data directory or itself: exit code 2.
    #[error("{key}: {why}")]
    Config {
        /// The configuration key.
        key: &'static str,
        /// What is wrong and how to mend it.
        why: String,
    },
    /// The machine or the data failed: exit code 1.
    #[error("cannot start from {}: {source}", .data_dir.display())]
    Storage {
        /// The data directory.
        data_dir: PathBuf,
        /// What failed.
        source: StorageError,
    },
    /// A thread or socket could not be had: exit code 1.
    #[error("cannot start: {0}")]
    Io(#[from] std::io::Error),
}

/// This node. Cheap to clone.
#[derive(Clone)]
pub struct Node {}

impl Node {
    /// Opens the data directory, starts workers and every replica in it, and begins to found, join or rejoin the cluster in
    /// the background. Serving may begin at once: what needs the cluster answers `NotReady` until then.
    pub fn start(config: NodeConfig, deps: NodeDeps) -> Result<Node, StartError> {
        let _ = (config, deps);
        todo!()
    }

    /// Stops gracefully: not ready, leaderships handed over, appends drained, everything synced, threads ended.
    pub async fn stop(&self) {
        todo!()
    }

    /// Completes with the reason when the node hit a fault it must not survive (a failed sync): the process exits with 1.
    pub async fn fatal_fault(&self) -> String {
        todo!()
    }

    /// Its id; 0 before founding when none was configured.
    pub fn id(&self) -> NodeId {
        todo!()
    }

    /// The cluster as this node knows it.
    pub fn view(&self) -> Arc<ClusterView> {
        todo!()
    }

    /// Changes whenever [`Node::view`] does.
    pub fn watch_view(&self) -> watch::Receiver<Arc<ClusterView>> {
        todo!()
    }

    /// Whether the node serves.
    pub fn ready_state(&self) -> ReadyState {
        todo!()
    }

    /// Becomes true when the node is asked to stop: streams say goodbye and end.
    pub fn watch_stopping(&self) -> watch::Receiver<bool> {
        todo!()
    }

    /// The replica on this node that leads the partition. Errors: unknown topic or partition, id mismatch (an empty
    /// `topic_id` matches any), `NotLeader` with a hint.
    pub fn route(
        &self,
        topic: &str,
        topic_id: &str,
        partition: u32,
    ) -> Result<(Arc<TopicView>, PartitionHandle), BrokerError> {
        let _ = (topic, topic_id, partition);
        todo!()
    }

    /// The replica of a group on this node, leading or not.
    pub fn replica(&self, group: GroupId) -> Option<PartitionHandle> {
        let _ = group;
        todo!()
    }

    /// All replicas on this node.
    pub fn replicas(&self) -> Vec<(GroupId, PartitionHandle)> {
        todo!()
    }

    /// Whether a node has been heard from within the election timeout. True for this node.
    pub fn is_alive(&self, node: NodeId) -> bool {
        let _ = node;
        todo!()
    }

    /// Leader of the metadata group; 0 if none is known.
    pub fn metadata_leader(&self) -> NodeId {
        todo!()
    }

    /// Applies a command to the metadata group, through its leader wherever that is, and waits until this node has applied it too. A
    /// refusal by the state machine becomes the matching [`BrokerError`].
    pub async fn propose_metadata(
        &self,
        command: internal::MetadataCommand,
    ) -> Result<internal::MetadataOutcome, BrokerError> {
        let _ = command;
        todo!()
    }

    /// The same on this node only: `NotLeader` unless it leads the metadata group. What NodeService.ProposeMetadata calls.
    pub async fn propose_metadata_here(
        &self,
        command: internal::MetadataCommand,
    ) -> Result<internal::MetadataOutcome, BrokerError> {
        let _ = command;
        todo!()
    }

    /// Creates a topic: checks name and limits, places replicas, proposes, waits until the partitions have leaders. `replication_factor` 0
    /// means the default. The configuration has been checked by the caller.
    pub async fn create_topic(
        &self,
        name: &str,
        partitions: u32,
        replication_factor: u32,
        config: BTreeMap<String, String>,
    ) -> Result<Arc<TopicView>, BrokerError> {
        let _ = (name, partitions, replication_factor, config);
        todo!()
    }

    /// A producer id that no one else has.
    pub async fn allocate_producer_id(&self) -> Result<i64, BrokerError> {
        todo!()
    }

    /// Answers NodeService.GetFoundingState.
    pub fn founding_state(
        &self,
        request: &internal::GetFoundingStateRequest,
    ) -> internal::GetFoundingStateResponse {
        let _ = request;
        todo!()
    }

    /// Answers NodeService.PromiseFounding; durable when it returns.
    pub async fn promise_founding(
        &self,
        request: internal::PromiseFoundingRequest,
    ) -> Result<(), BrokerError> {
        let _ = request;
        todo!()
    }

    /// Answers NodeService.ConfirmFounding.
    pub async fn confirm_founding(
        &self,
        request: internal::ConfirmFoundingRequest,
    ) -> Result<(), BrokerError> {
        let _ = request;
        todo!()
    }
}

impl PeerEvents for Node {
    fn hello(&self, from: &internal::PeerHello) -> Result<internal::PeerHello, BrokerError> {
        let _ = from;
        todo!()
    }

    fn own_hello(&self, to: NodeId) -> internal::PeerHello {
        let _ = to;
        todo!()
    }

    fn hello_answered(&self, answer: &internal::PeerHello) -> Result<(), BrokerError> {
        let _ = answer;
        todo!()
    }

    fn deliver(&self, from: NodeId, batch: internal::PeerBatch) {
        let _ = (from, batch);
        todo!()
    }

    fn unreachable(&self, node: NodeId) {
        let _ = node;
        todo!()
    }
}
