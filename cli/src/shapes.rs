//! What `-o json` and `-o yaml` print: keys and types are a contract with scripts, held by snapshot tests.
//!
//! Owns: the shapes. Never: prints them, or shares the client's types (those may change, these may only grow).

mod group;
mod service;

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use highwater_client::{
    Ack, ClusterHealth, ClusterInfo, Event, NodeDescription, PartitionDescription, PlannedMove,
    QuarantinedReplica, RebalancePlan, TopicDescription, TopicListing, TopicOption,
};
use serde::Serialize;

pub(crate) use group::{GroupListShape, GroupShape, LagShape, MovedShape, ResetShape};
pub(crate) use service::{ChangeShape, InstanceShape, ServiceShape};

/// A key, a value or a header's value: text where it is UTF-8, else `{"base64": ...}`.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum Text {
    Utf8(String),
    Binary { base64: String },
}

impl From<&Bytes> for Text {
    fn from(bytes: &Bytes) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) => Self::Utf8(text.to_owned()),
            Err(_) => Self::Binary { base64: STANDARD.encode(bytes) },
        }
    }
}

/// One record, as `consume` prints it.
#[derive(Debug, Serialize)]
pub(crate) struct RecordShape<'a> {
    topic: &'a str,
    partition: u32,
    offset: i64,
    timestamp_ms: i64,
    key: Option<Text>,
    value: Option<Text>,
    headers: Vec<HeaderShape<'a>>,
}

#[derive(Debug, Serialize)]
struct HeaderShape<'a> {
    key: &'a str,
    value: Option<Text>,
}

impl<'a> From<&'a Event> for RecordShape<'a> {
    fn from(event: &'a Event) -> Self {
        let headers = event.headers.iter().map(|header| HeaderShape {
            key: &header.key,
            value: header.value.as_ref().map(Text::from),
        });
        Self {
            topic: &event.topic,
            partition: event.partition,
            offset: event.offset,
            timestamp_ms: event.timestamp_ms,
            key: event.key.as_ref().map(Text::from),
            value: event.value.as_ref().map(Text::from),
            headers: headers.collect(),
        }
    }
}

/// Where a record went, as `produce` prints it.
#[derive(Debug, Serialize)]
pub(crate) struct AckShape<'a> {
    topic: &'a str,
    partition: u32,
    offset: i64,
    epoch: u64,
    duplicate: bool,
    acks: String,
}

impl<'a> AckShape<'a> {
    pub(crate) fn new(topic: &'a str, ack: &Ack) -> Self {
        Self {
            topic,
            partition: ack.partition,
            offset: ack.offset,
            epoch: ack.epoch,
            duplicate: ack.duplicate,
            acks: ack.reached.to_string(),
        }
    }
}

/// One topic, as `topic describe` prints it.
#[derive(Debug, Serialize)]
pub(crate) struct TopicShape {
    pub(crate) name: String,
    pub(crate) id: String,
    pub(crate) partitions: Vec<PartitionShape>,
    pub(crate) config: BTreeMap<String, String>,
}

#[derive(Debug, Serialize)]
pub(crate) struct PartitionShape {
    pub(crate) partition: u32,
    pub(crate) leader: Option<u64>,
    pub(crate) epoch: u64,
    pub(crate) replicas: Vec<u64>,
    pub(crate) in_sync: Vec<u64>,
    pub(crate) log_start_offset: i64,
    pub(crate) high_watermark: i64,
    pub(crate) size_bytes: u64,
    pub(crate) state: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) quarantined: Vec<QuarantinedShape>,
}

/// Only there when something is wrong.
#[derive(Debug, Serialize)]
pub(crate) struct QuarantinedShape {
    pub(crate) node: u64,
    pub(crate) why: String,
    pub(crate) repair: String,
}

impl From<QuarantinedReplica> for QuarantinedShape {
    fn from(replica: QuarantinedReplica) -> Self {
        let QuarantinedReplica { node, why, repair } = replica;
        Self { node, why, repair }
    }
}

impl From<PartitionDescription> for PartitionShape {
    fn from(partition: PartitionDescription) -> Self {
        Self {
            partition: partition.partition,
            leader: partition.leader,
            epoch: partition.epoch,
            replicas: partition.replicas,
            in_sync: partition.in_sync,
            log_start_offset: partition.log_start_offset,
            high_watermark: partition.high_watermark,
            size_bytes: partition.size_bytes,
            state: partition.state.to_string(),
            quarantined: partition.quarantined.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<TopicDescription> for TopicShape {
    fn from(topic: TopicDescription) -> Self {
        Self {
            name: topic.name,
            id: topic.id,
            partitions: topic.partitions.into_iter().map(Into::into).collect(),
            config: topic.config,
        }
    }
}

/// One line of `topic list`.
#[derive(Debug, Serialize)]
pub(crate) struct TopicListShape {
    pub(crate) name: String,
    pub(crate) id: String,
    pub(crate) partitions: u32,
    pub(crate) replication_factor: u32,
    pub(crate) config: BTreeMap<String, String>,
}

impl From<TopicListing> for TopicListShape {
    fn from(topic: TopicListing) -> Self {
        let TopicListing { name, id, partitions, replication_factor, config } = topic;
        Self { name, id, partitions, replication_factor, config }
    }
}

/// One line of `topic options`.
#[derive(Debug, Serialize)]
pub(crate) struct OptionShape {
    pub(crate) key: String,
    pub(crate) default: String,
    pub(crate) bounds: String,
    pub(crate) description: String,
}

impl From<TopicOption> for OptionShape {
    fn from(option: TopicOption) -> Self {
        Self {
            key: option.key,
            default: option.default_value,
            bounds: option.bounds,
            description: option.description,
        }
    }
}

/// What `topic trim` prints.
#[derive(Debug, Serialize)]
pub(crate) struct TrimShape {
    pub(crate) topic: String,
    pub(crate) partition: u32,
    pub(crate) log_start_offset: i64,
}

/// What `cluster info` prints.
#[derive(Debug, Serialize)]
pub(crate) struct ClusterShape {
    pub(crate) cluster_id: String,
    pub(crate) version: String,
    pub(crate) feature_level: u32,
    pub(crate) metadata_leader: Option<u64>,
    pub(crate) nodes: usize,
    pub(crate) nodes_alive: usize,
    pub(crate) topics: u32,
    pub(crate) partitions: u32,
}

impl From<ClusterInfo> for ClusterShape {
    fn from(cluster: ClusterInfo) -> Self {
        Self {
            nodes: cluster.nodes.len(),
            nodes_alive: cluster.nodes.iter().filter(|node| node.alive).count(),
            cluster_id: cluster.broker.cluster_id,
            version: cluster.broker.version,
            feature_level: cluster.broker.feature_level,
            metadata_leader: cluster.metadata_leader,
            topics: cluster.topics,
            partitions: cluster.partitions,
        }
    }
}

/// What `cluster health` prints.
#[derive(Debug, Serialize)]
pub(crate) struct HealthShape {
    pub(crate) healthy: bool,
    pub(crate) problems: Vec<String>,
    pub(crate) leaderless_partitions: u32,
    pub(crate) under_replicated_partitions: u32,
    pub(crate) dead_nodes: Vec<u64>,
    pub(crate) in_progress: Vec<String>,
}

impl From<ClusterHealth> for HealthShape {
    fn from(health: ClusterHealth) -> Self {
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

/// One line of `cluster members`.
#[derive(Debug, Serialize)]
pub(crate) struct NodeShape {
    pub(crate) id: u64,
    pub(crate) address: String,
    pub(crate) internal_address: String,
    pub(crate) alive: bool,
    pub(crate) leaders: u32,
    pub(crate) replicas: u32,
    pub(crate) version: String,
    pub(crate) state: String,
    pub(crate) rack: String,
}

impl NodeShape {
    /// A node that has left: of it only its id is known.
    pub(crate) fn removed(id: u64) -> Self {
        Self {
            id,
            address: String::new(),
            internal_address: String::new(),
            alive: false,
            leaders: 0,
            replicas: 0,
            version: String::new(),
            state: "removed".to_owned(),
            rack: String::new(),
        }
    }
}

impl From<NodeDescription> for NodeShape {
    fn from(node: NodeDescription) -> Self {
        Self {
            id: node.id,
            address: node.address,
            internal_address: node.internal_address,
            alive: node.alive,
            leaders: node.leaders,
            replicas: node.replicas,
            version: node.version,
            state: node.state.to_string(),
            rack: node.rack,
        }
    }
}

/// What `cluster rebalance` prints.
#[derive(Debug, Serialize)]
pub(crate) struct PlanShape {
    pub(crate) moves: Vec<MoveShape>,
    pub(crate) started: u32,
}

/// A partition whose nodes change.
#[derive(Debug, Serialize)]
pub(crate) struct MoveShape {
    pub(crate) topic: String,
    pub(crate) partition: u32,
    pub(crate) from: Vec<u64>,
    pub(crate) to: Vec<u64>,
}

impl From<RebalancePlan> for PlanShape {
    fn from(plan: RebalancePlan) -> Self {
        let shape =
            |PlannedMove { topic, partition, from, to }| MoveShape { topic, partition, from, to };
        Self { moves: plan.moves.into_iter().map(shape).collect(), started: plan.started }
    }
}

/// What `cluster transfer-leader` prints.
#[derive(Debug, Serialize)]
pub(crate) struct LeaderShape {
    pub(crate) topic: String,
    pub(crate) partition: u32,
    pub(crate) leader: u64,
}

/// One line of `profile list`.
#[derive(Debug, Serialize)]
pub(crate) struct ProfileShape {
    pub(crate) name: String,
    pub(crate) servers: String,
    pub(crate) current: bool,
}

/// What `version` prints.
#[derive(Debug, Serialize)]
pub(crate) struct VersionShape {
    pub(crate) version: &'static str,
}

#[cfg(test)]
mod tests;
