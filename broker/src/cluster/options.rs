//! What a node is started with, and why it may not start.
//!
//! Owns: the types. Never: where the values come from.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use highwater_storage::{Disk, StorageError};

use super::NodeId;
use super::peer::{PeerCalls, PeerStreams};
use crate::env::{Clock, Tasks};
use crate::metrics::Metrics;

/// What a node needs to know to start.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Its id; `None` takes what the data directory holds, else its place in the seed list (1 without seeds), else what the cluster
    /// that it joins assigns.
    pub node_id: Option<NodeId>,
    /// The rack it stands in; empty if nobody says.
    pub rack: String,
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
    /// Partitions whose replicas this node moves at the same time.
    pub moves_max: u32,
    /// Pause between two looks for leaders that are not the preferred ones, in milliseconds; 0 means never.
    pub leader_balance_ms: u64,
    /// Whether a replica that cannot be repaired is replaced without an operator.
    pub replace_damaged: bool,
    /// Most topics in the cluster.
    pub topics_max: u32,
    /// Most partitions in the cluster, replicas not counted.
    pub partitions_max: u32,
    /// How often retention looks for segments to delete, in milliseconds.
    pub retention_check_ms: u64,
    /// Disk space kept back for what must still be written when the disk is full, in bytes; 0 means none.
    pub reserve_bytes: u64,
    /// Bytes a second at which sealed segments are read again in search of rot; 0 means never.
    pub scrub_bytes_per_s: u64,
    /// Disk space for files of dropped segments that wait to hold the next ones.
    pub spare_bytes: u64,
    /// Memory for the keys of one compaction, in bytes.
    pub compaction_map_bytes: u64,
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
    /// The highest feature level that the node understands.
    pub feature_level: u32,
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
