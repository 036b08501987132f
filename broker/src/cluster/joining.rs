//! How a node with an empty data directory joins a cluster that exists, and how a member learns that it is one no more.
//!
//! Owns: the record of having joined in the data directory, and the order in which a node becomes a member: that record, then the
//! identity, then its replica of the metadata group, which begins empty and gets everything by snapshot. Never: decides who may
//! join; the metadata group does.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use highwater_proto::internal::metadata_command::Command;
use highwater_proto::internal::{
    JoinClusterRequest, JoinClusterResponse, JoinNode, MetadataImage, NodeImage,
    ReplaceMetadataReplica,
};
use highwater_storage::{Disk, StorageError};
use prost::Message;

use super::commands::command;
use super::held::Held;
use super::node::Node;
use super::{METADATA_GROUP, NodeId};
use crate::error::BrokerError;
use crate::replica::{NewReplica, PartitionSettings};

const MAGIC: [u8; 8] = *b"HWJOINED";
const FILE_NAME: &str = "joined";
/// Pause between two looks at whether the metadata group's leader still speaks to this node.
const ISOLATION_PAUSE: Duration = Duration::from_secs(2);

/// What a node was told when it joined, or when its replica of the metadata group was last replaced; none on a founding node.
pub(super) struct Joined(Held<JoinClusterResponse>);

impl Joined {
    pub(super) fn open(disk: Arc<dyn Disk>, data_dir: &Path) -> Result<Self, StorageError> {
        Held::open(disk, data_dir.join(FILE_NAME), MAGIC).map(Self)
    }

    /// The nodes there were when this one joined.
    pub(super) fn nodes(&self) -> Vec<NodeImage> {
        self.0.held().unwrap_or_default().nodes
    }

    /// Takes what the node was told, durably, in the place of what there was.
    pub(super) fn hold(&self, joined: JoinClusterResponse) -> Result<(), StorageError> {
        self.0.hold(joined)
    }

    /// The replica of the metadata group that a node which joined begins with: without members, so that it needs a snapshot, and
    /// with the nodes there were, so that it lets them in.
    pub(super) fn metadata_replica(&self) -> Option<NewReplica> {
        let joined = self.0.held()?;
        let image = MetadataImage {
            cluster_id: joined.cluster_id,
            feature_level: joined.feature_level,
            nodes: joined.nodes,
            ..MetadataImage::default()
        };
        Some(NewReplica {
            group: METADATA_GROUP,
            replica: joined.metadata_replica_id,
            topic_id: String::new(),
            partition: 0,
            preferred: false,
            is_founding: false,
            voters: Default::default(),
            learners: Default::default(),
            image: image.encode_to_vec().into(),
            settings: PartitionSettings::default(),
        })
    }
}

impl Node {
    /// Asks a member to be let in, and becomes one. The error says why not, for people; it is worth another try.
    pub(super) async fn join_through(&self, seed: &str, cluster_id: &str) -> Result<(), String> {
        let own = self.inner.founder.own.clone();
        let asked = own.node_id;
        let request = JoinClusterRequest { node: Some(own), replaces_metadata_replica_id: 0 };
        let answer = self.inner.deps.calls.join_cluster(seed, request).await;
        let joined = answer.map_err(|error| {
            format!("seed {seed} belongs to cluster {cluster_id}, and this data directory is empty: {error}")
        })?;
        let is_usable = joined.cluster_id == cluster_id
            && joined.metadata_replica_id != 0
            && joined.node_id != 0
            && (asked == 0 || asked == joined.node_id);
        if !is_usable {
            return Err(format!("seed {seed} let this node in, but its answer makes no sense"));
        }
        let node = self.clone();
        let done = self.off_thread(move || node.become_joined(joined)).await;
        done.map_err(|error| format!("the cluster lets this node in, but {error}"))
    }

    fn become_joined(&self, joined: JoinClusterResponse) -> Result<(), StorageError> {
        let (cluster_id, node_id) = (joined.cluster_id.clone(), joined.node_id);
        self.inner.joined.hold(joined)?;
        self.take_id(node_id);
        {
            let mut identity = self.inner.identity.lock();
            let mut member = identity.clone();
            member.cluster_id.clone_from(&cluster_id);
            member.node_id = node_id;
            member.store(&*self.inner.deps.disk, &self.inner.config.data_dir)?;
            *identity = member;
        }
        tracing::info!(cluster = cluster_id, node = node_id, "joined the cluster");
        self.open_metadata().map_err(|error| self.unusable_metadata(error))
    }

    /// Before the first replica.
    fn take_id(&self, id: NodeId) {
        self.inner.id.store(id, Ordering::Release);
        self.inner.engine.set_node(id);
        self.inner.leadership.set_own(id);
    }

    /// Answers NodeService.JoinCluster.
    pub async fn join_cluster(
        &self,
        request: JoinClusterRequest,
    ) -> Result<JoinClusterResponse, BrokerError> {
        self.member_view()?;
        let node = request.node.unwrap_or_default();
        let incarnation = node.incarnation.clone();
        let asked = match request.replaces_metadata_replica_id {
            0 => Command::JoinNode(JoinNode { node: Some(node) }),
            replica_id => Command::ReplaceMetadataReplica(ReplaceMetadataReplica {
                node_id: node.node_id,
                incarnation: node.incarnation,
                replica_id,
            }),
        };
        self.propose_metadata(command(asked)).await?;
        let metadata = self.inner.metadata.borrow().clone();
        let joined = metadata.nodes.values().find(|node| node.incarnation == incarnation);
        let joined = joined.ok_or_else(|| BrokerError::NotReady {
            why: "the node that joined is gone again".into(),
        })?;
        Ok(JoinClusterResponse {
            cluster_id: metadata.cluster_id.clone(),
            node_id: joined.id,
            metadata_replica_id: joined.metadata_replica_id,
            feature_level: metadata.feature_level,
            nodes: metadata.nodes.values().cloned().collect(),
        })
    }

    /// Runs until the node stops, or until a leader that has not spoken to it for a while says that it is no member any more.
    pub(super) async fn watch_membership(&self) {
        loop {
            tokio::time::sleep(ISOLATION_PAUSE).await;
            if !self.is_caught_up() {
                // Its replica of the metadata group began anew.
                self.register().await;
            }
            if self.is_alive(self.metadata_leader()) {
                continue;
            }
            if let Some(why) = self.refused_by_leader(&self.own_start()).await {
                return self.fail_directory(&format!("the cluster refuses it: {why}"));
            }
        }
    }
}
