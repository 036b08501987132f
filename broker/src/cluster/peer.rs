//! How this node reaches other nodes: traits that `rpc` implements and tests replace.
//!
//! Owns: the shape of the traffic between nodes. Never: sockets or gRPC.

use async_trait::async_trait;
use highwater_proto::{internal, v1};

use super::NodeId;
use crate::error::BrokerError;

/// A call to another node that failed.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// Nothing was heard: not reachable, or no answer in time.
    #[error("{address} cannot be reached: {why}")]
    Unreachable {
        /// Where.
        address: String,
        /// What the transport said.
        why: String,
    },
    /// The other node answered with an error; `reason` as in [`BrokerError::reason`].
    #[error("{address} refused: {message} ({reason})")]
    Refused {
        /// Where.
        address: String,
        /// Machine-readable.
        reason: String,
        /// For people.
        message: String,
        /// Facts that go with the reason.
        metadata: std::collections::BTreeMap<String, String>,
    },
}

/// Unary calls to another node's internal address. Every call has a deadline of its own (a few seconds).
#[async_trait]
pub trait PeerCalls: Send + Sync + 'static {
    /// NodeService.GetFoundingState.
    async fn get_founding_state(
        &self,
        address: &str,
        request: internal::GetFoundingStateRequest,
    ) -> Result<internal::GetFoundingStateResponse, PeerError>;
    /// NodeService.PromiseFounding.
    async fn promise_founding(
        &self,
        address: &str,
        request: internal::PromiseFoundingRequest,
    ) -> Result<(), PeerError>;
    /// NodeService.ConfirmFounding.
    async fn confirm_founding(
        &self,
        address: &str,
        request: internal::ConfirmFoundingRequest,
    ) -> Result<(), PeerError>;
    /// NodeService.JoinCluster.
    async fn join_cluster(
        &self,
        address: &str,
        request: internal::JoinClusterRequest,
    ) -> Result<internal::JoinClusterResponse, PeerError>;
    /// NodeService.ProposeMetadata.
    async fn propose_metadata(
        &self,
        address: &str,
        request: internal::ProposeMetadataRequest,
    ) -> Result<internal::ProposeMetadataResponse, PeerError>;
    /// NodeService.FetchEntries.
    async fn fetch_entries(
        &self,
        address: &str,
        request: internal::FetchEntriesRequest,
    ) -> Result<internal::FetchEntriesResponse, PeerError>;
    /// NodeService.ReadCompacted.
    async fn read_compacted(
        &self,
        address: &str,
        request: internal::ReadCompactedRequest,
    ) -> Result<internal::ReadCompactedResponse, PeerError>;
    /// NodeService.GetPartitions.
    async fn get_partitions(
        &self,
        address: &str,
        request: internal::GetPartitionsRequest,
    ) -> Result<internal::GetPartitionsResponse, PeerError>;
    /// NodeService.TransferGroup.
    async fn transfer_group(
        &self,
        address: &str,
        request: internal::TransferGroupRequest,
    ) -> Result<internal::TransferGroupResponse, PeerError>;
    /// NodeService.ForwardProduce.
    async fn forward_produce(
        &self,
        address: &str,
        request: v1::ProduceRequest,
    ) -> Result<v1::ProduceResponse, PeerError>;
    /// NodeService.ForwardFetch; waits as long as the request asks for, plus the call's own deadline.
    async fn forward_fetch(
        &self,
        address: &str,
        request: v1::FetchRequest,
    ) -> Result<v1::FetchResponse, PeerError>;
    /// NodeService.ForwardTrim.
    async fn forward_trim(
        &self,
        address: &str,
        request: v1::TopicServiceTrimRequest,
    ) -> Result<v1::TopicServiceTrimResponse, PeerError>;
    /// NodeService.ForwardRenew.
    async fn forward_renew(
        &self,
        address: &str,
        request: v1::RegistryServiceRenewRequest,
    ) -> Result<v1::RegistryServiceRenewResponse, PeerError>;
}

/// Raft traffic to other nodes: one bounded queue and one stream a peer.
pub trait PeerStreams: Send + Sync + 'static {
    /// Queues a batch for a node. Never blocks: a full queue or a broken stream drops the batch and answers false, and the
    /// caller reports the node unreachable to its groups.
    fn send(&self, to: NodeId, batch: internal::PeerBatch) -> bool;
    /// The peers to keep streams to, by id and internal address. Called again whenever they change.
    fn set_peers(&self, peers: Vec<(NodeId, String)>);
    /// When a batch or hello from this node last arrived or a stream to it was last accepted is tracked by [`PeerEvents`]; this closes all streams.
    fn close(&self);
}

/// What the transport tells the node.
pub trait PeerEvents: Send + Sync + 'static {
    /// A peer said hello; the answer is ours. An error refuses the stream.
    fn hello(&self, from: &internal::PeerHello) -> Result<internal::PeerHello, BrokerError>;
    /// Our hello to a peer.
    fn own_hello(&self, to: NodeId) -> internal::PeerHello;
    /// A peer answered our hello with this one: checked as in `hello`; on error the stream is closed and retried later.
    fn hello_answered(&self, answer: &internal::PeerHello) -> Result<(), BrokerError>;
    /// A batch arrived from a node that has said hello. Blocks the stream's task (never others') while inboxes are full.
    fn deliver(&self, from: NodeId, batch: internal::PeerBatch);
    /// The stream to a peer broke or could not be opened.
    fn unreachable(&self, node: NodeId);
    /// A stream that stood has ended: as a rule the peer's process has.
    fn broke(&self, node: NodeId);
}
