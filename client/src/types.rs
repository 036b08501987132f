//! What administration and positions look like to services.
//!
//! Owns: plain data and its conversion from protobuf. Never: I/O.

use std::collections::BTreeMap;
use std::time::Duration;

use highwater_proto::v1;

use crate::error::AdminError;
use crate::record::{Event, Header};

/// Where to start reading.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// At the first retained record.
    #[default]
    Earliest,
    /// Behind the last readable record: only what is committed from now on.
    Latest,
    /// At the record with this offset.
    Offset(i64),
    /// At the first record whose timestamp is at or after this many milliseconds since the Unix epoch.
    Timestamp(i64),
}

impl From<Start> for v1::Position {
    fn from(start: Start) -> Self {
        use v1::position::{At, End};
        let at = match start {
            Start::Earliest => At::Start(v1::position::Start {}),
            Start::Latest => At::End(End {}),
            Start::Offset(offset) => At::Offset(offset),
            Start::Timestamp(timestamp_ms) => At::TimestampMs(timestamp_ms),
        };
        Self { at: Some(at) }
    }
}

/// A topic to create.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewTopic {
    /// Letters, digits, `.`, `_` and `-`; at most 249.
    pub name: String,
    /// Number of partitions; 0 means 1.
    pub partitions: u32,
    /// Replicas of each partition; 0 means the cluster's default.
    pub replication_factor: u32,
    /// Configuration by key.
    pub config: BTreeMap<String, String>,
}

impl NewTopic {
    /// A topic with the cluster's defaults.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    /// Sets the number of partitions.
    pub fn partitions(mut self, partitions: u32) -> Self {
        self.partitions = partitions;
        self
    }

    /// Sets the number of replicas of each partition.
    pub fn replication_factor(mut self, replicas: u32) -> Self {
        self.replication_factor = replicas;
        self
    }

    /// Sets a configuration key.
    pub fn config(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.config.insert(key.into(), value.into());
        self
    }
}

/// A topic in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicListing {
    /// Its name.
    pub name: String,
    /// Its id; a topic deleted and created again has another one.
    pub id: String,
    /// Number of partitions.
    pub partitions: u32,
    /// Replicas of each partition.
    pub replication_factor: u32,
    /// Configuration that differs from the defaults.
    pub config: BTreeMap<String, String>,
}

/// A topic with the state of its partitions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicDescription {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: String,
    /// Replicas of each partition.
    pub replication_factor: u32,
    /// Its partitions, by number.
    pub partitions: Vec<PartitionDescription>,
    /// Configuration: every key, defaults included.
    pub config: BTreeMap<String, String>,
}

/// How a partition is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartitionState {
    /// Not known: its leader did not answer.
    Unknown,
    /// All replicas are in sync.
    Healthy,
    /// It has a leader and a quorum, but a replica lags or is away.
    UnderReplicated,
    /// It has no leader.
    Leaderless,
    /// A replica found damaged data and waits for repair.
    Quarantined,
}

impl std::fmt::Display for PartitionState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Unknown => "unknown",
            Self::Healthy => "healthy",
            Self::UnderReplicated => "under-replicated",
            Self::Leaderless => "leaderless",
            Self::Quarantined => "quarantined",
        })
    }
}

/// A partition as its leader sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionDescription {
    /// Its number, from 0.
    pub partition: u32,
    /// Node id of the leader, if there is one.
    pub leader: Option<u64>,
    /// The leader epoch.
    pub epoch: u64,
    /// Node ids of the replicas; the first is the preferred leader.
    pub replicas: Vec<u64>,
    /// Node ids of the replicas that hold everything committed, or nearly so.
    pub in_sync: Vec<u64>,
    /// First retained offset.
    pub log_start_offset: i64,
    /// First offset that is not readable yet.
    pub high_watermark: i64,
    /// Bytes of the leader's log.
    pub size_bytes: u64,
    /// Its state.
    pub state: PartitionState,
    /// Replicas that are out of service because of what is on their disks.
    pub quarantined: Vec<QuarantinedReplica>,
}

/// A replica that neither votes nor serves until it is mended. Its data is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuarantinedReplica {
    /// Its node.
    pub node: u64,
    /// Why, for people.
    pub why: String,
    /// How its repair goes, for people; empty before it has begun.
    pub repair: String,
}

/// A topic configuration key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicOption {
    /// For example `retention.ms`.
    pub key: String,
    /// Its default.
    pub default_value: String,
    /// Accepted values, for people.
    pub bounds: String,
    /// What it does, in a sentence.
    pub description: String,
}

/// A broker's word about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BrokerDescription {
    /// The cluster's id; empty while no cluster has been founded.
    pub cluster_id: String,
    /// The node that answered.
    pub node_id: u64,
    /// Its version.
    pub version: String,
    /// The cluster's feature level.
    pub feature_level: u32,
}

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeDescription {
    /// Its id.
    pub id: u64,
    /// Where clients reach it.
    pub address: String,
    /// Where other nodes reach it.
    pub internal_address: String,
    /// Whether the answering node has heard from it lately.
    pub alive: bool,
    /// Number of partitions it leads.
    pub leaders: u32,
    /// Number of replicas it holds.
    pub replicas: u32,
    /// Its version; empty if not known.
    pub version: String,
    /// Whether it stays.
    pub state: NodeState,
    /// The rack it stands in; empty if nobody says.
    pub rack: String,
}

/// Whether a node stays in the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeState {
    /// The broker does not say.
    Unknown,
    /// It is a member.
    Active,
    /// It is to leave, and its replicas are on their way to other nodes.
    Draining,
}

impl std::fmt::Display for NodeState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Unknown => "unknown",
            Self::Active => "active",
            Self::Draining => "draining",
        })
    }
}

/// What would make the cluster even.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RebalancePlan {
    /// Partitions whose nodes change; none if the cluster is even.
    pub moves: Vec<PlannedMove>,
    /// How many of them were put on their way.
    pub started: u32,
}

/// A partition whose nodes change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedMove {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: u32,
    /// Ids of its nodes now, the preferred leader first.
    pub from: Vec<u64>,
    /// Ids of its nodes by the plan.
    pub to: Vec<u64>,
}

impl From<v1::RebalanceResponse> for RebalancePlan {
    fn from(plan: v1::RebalanceResponse) -> Self {
        let planned = |planned: v1::PlannedMove| PlannedMove {
            topic: planned.topic,
            partition: planned.partition,
            from: planned.from_node_ids,
            to: planned.to_node_ids,
        };
        Self { moves: plan.moves.into_iter().map(planned).collect(), started: plan.started }
    }
}

/// Who is in the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterInfo {
    /// Who answered.
    pub broker: BrokerDescription,
    /// Node id of the metadata group's leader, if there is one.
    pub metadata_leader: Option<u64>,
    /// All nodes, by id.
    pub nodes: Vec<NodeDescription>,
    /// Number of topics.
    pub topics: u32,
    /// Number of partitions.
    pub partitions: u32,
    /// Ids of nodes that have left; never used again.
    pub removed_nodes: Vec<u64>,
}

/// Whether the cluster is well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterHealth {
    /// True if every node is alive and every partition has a leader and all its replicas in sync.
    pub healthy: bool,
    /// What is wrong, for people; empty when healthy.
    pub problems: Vec<String>,
    /// Number of partitions without a leader.
    pub leaderless_partitions: u32,
    /// Number of partitions with a replica that lags or is away.
    pub under_replicated_partitions: u32,
    /// Ids of nodes that are not alive.
    pub dead_nodes: Vec<u64>,
    /// What is on its way, for people: partitions that move, nodes that leave.
    pub in_progress: Vec<String>,
}

/// Addresses and partition leaders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterMetadata {
    /// Who answered.
    pub broker: BrokerDescription,
    /// All nodes, by id.
    pub nodes: Vec<NodeDescription>,
    /// The topics asked for that exist.
    pub topics: Vec<TopicRouting>,
}

/// Where a topic's partitions are led.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicRouting {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: String,
    /// Its partitions, by number.
    pub partitions: Vec<PartitionRouting>,
    /// Largest record in bytes (`max.message.bytes`).
    pub record_bytes_max: u32,
}

/// Where a partition is led.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionRouting {
    /// Its number.
    pub partition: u32,
    /// Node id of the leader, if there is one.
    pub leader: Option<u64>,
    /// The leader epoch this is known from.
    pub epoch: u64,
}

/// What to read with [`crate::Admin::fetch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FetchOptions {
    /// Where to start.
    pub start: Start,
    /// About how many bytes to return at the most; at least one batch comes.
    pub bytes_max: u32,
    /// How many records to return at the most; 0 means no limit.
    pub records_max: u32,
    /// How long to wait for a first record; at most a minute.
    pub wait_max: Duration,
}

impl Default for FetchOptions {
    /// From the start, about 1 MiB, without waiting.
    fn default() -> Self {
        Self {
            start: Start::Earliest,
            bytes_max: 1 << 20,
            records_max: 0,
            wait_max: Duration::ZERO,
        }
    }
}

/// What [`crate::Admin::fetch`] read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// The records, in order.
    pub events: Vec<Event>,
    /// Where the next fetch should start.
    pub next_offset: i64,
    /// First offset that is not readable yet.
    pub high_watermark: i64,
    /// First retained offset.
    pub log_start_offset: i64,
    /// The leader epoch of the node that answered.
    pub leader_epoch: u64,
}

/// Node ids on the wire use 0 for "none".
fn known(node_id: u64) -> Option<u64> {
    (node_id != 0).then_some(node_id)
}

/// A message part that must be there.
pub(crate) fn required<T>(part: Option<T>, what: &str) -> Result<T, AdminError> {
    part.ok_or_else(|| AdminError::Malformed { what: format!("no {what} in the answer") })
}

impl From<v1::TopicSummary> for TopicListing {
    fn from(topic: v1::TopicSummary) -> Self {
        let v1::TopicSummary { name, id, partitions, replication_factor, config } = topic;
        Self { name, id, partitions, replication_factor, config: config.into_iter().collect() }
    }
}

impl From<v1::Topic> for TopicDescription {
    fn from(topic: v1::Topic) -> Self {
        Self {
            name: topic.name,
            id: topic.id,
            replication_factor: topic.replication_factor,
            partitions: topic.partitions.into_iter().map(Into::into).collect(),
            config: topic.config.into_iter().collect(),
        }
    }
}

impl From<v1::Partition> for PartitionDescription {
    fn from(partition: v1::Partition) -> Self {
        let state = match partition.state() {
            v1::PartitionState::Unspecified => PartitionState::Unknown,
            v1::PartitionState::Healthy => PartitionState::Healthy,
            v1::PartitionState::UnderReplicated => PartitionState::UnderReplicated,
            v1::PartitionState::Leaderless => PartitionState::Leaderless,
            v1::PartitionState::Quarantined => PartitionState::Quarantined,
        };
        Self {
            partition: partition.partition,
            leader: known(partition.leader),
            epoch: partition.epoch,
            replicas: partition.replicas,
            in_sync: partition.in_sync,
            log_start_offset: partition.log_start_offset,
            high_watermark: partition.high_watermark,
            size_bytes: partition.size_bytes,
            state,
            quarantined: partition
                .quarantined
                .into_iter()
                .map(|v1::QuarantinedReplica { node, why, repair }| QuarantinedReplica {
                    node,
                    why,
                    repair,
                })
                .collect(),
        }
    }
}

impl From<v1::TopicOption> for TopicOption {
    fn from(option: v1::TopicOption) -> Self {
        let v1::TopicOption { key, default_value, bounds, description } = option;
        Self { key, default_value, bounds, description }
    }
}

impl From<v1::BrokerInfo> for BrokerDescription {
    fn from(broker: v1::BrokerInfo) -> Self {
        let v1::BrokerInfo { cluster_id, node_id, version, feature_level } = broker;
        Self { cluster_id, node_id, version, feature_level }
    }
}

impl From<v1::Node> for NodeDescription {
    fn from(node: v1::Node) -> Self {
        let state = match node.state() {
            v1::NodeState::Unspecified => NodeState::Unknown,
            v1::NodeState::Active => NodeState::Active,
            v1::NodeState::Draining => NodeState::Draining,
        };
        Self {
            id: node.id,
            address: node.address,
            internal_address: node.internal_address,
            alive: node.alive,
            leaders: node.leaders,
            replicas: node.replicas,
            version: node.version,
            state,
            rack: node.rack,
        }
    }
}

impl From<v1::GetClusterResponse> for ClusterInfo {
    fn from(cluster: v1::GetClusterResponse) -> Self {
        Self {
            broker: cluster.broker.unwrap_or_default().into(),
            metadata_leader: known(cluster.metadata_leader),
            nodes: cluster.nodes.into_iter().map(Into::into).collect(),
            topics: cluster.topics,
            partitions: cluster.partitions,
            removed_nodes: cluster.removed_nodes,
        }
    }
}

impl From<v1::GetHealthResponse> for ClusterHealth {
    fn from(health: v1::GetHealthResponse) -> Self {
        Self {
            healthy: health.healthy,
            problems: health.problems,
            leaderless_partitions: health.leaderless_partitions,
            under_replicated_partitions: health.under_replicated_partitions,
            dead_nodes: health.dead_nodes,
            in_progress: health.in_progress,
        }
    }
}

impl From<v1::GetMetadataResponse> for ClusterMetadata {
    fn from(metadata: v1::GetMetadataResponse) -> Self {
        Self {
            broker: metadata.broker.unwrap_or_default().into(),
            nodes: metadata.nodes.into_iter().map(Into::into).collect(),
            topics: metadata.topics.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<v1::TopicMetadata> for TopicRouting {
    fn from(topic: v1::TopicMetadata) -> Self {
        let partitions = topic.partitions.into_iter().map(|partition| PartitionRouting {
            partition: partition.partition,
            leader: known(partition.leader),
            epoch: partition.leader_epoch,
        });
        Self {
            name: topic.name,
            id: topic.id,
            partitions: partitions.collect(),
            record_bytes_max: topic.record_bytes_max,
        }
    }
}

impl From<v1::Header> for Header {
    fn from(header: v1::Header) -> Self {
        Self { key: header.key, value: header.value }
    }
}
