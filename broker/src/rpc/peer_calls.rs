//! Unary calls to other nodes.
//!
//! Owns: one channel for each address, and a deadline for every call. Never: retries; the caller knows whether a call may
//! be repeated.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use highwater_proto::internal::node_service_client::NodeServiceClient;
use highwater_proto::{internal, v1};
use parking_lot::Mutex;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use super::dial::Dialer;
use super::peer_streams::GrpcPeerStreams;
use super::status::peer_error;
use super::{INTERNAL_MESSAGE_BYTES_MAX, sender};
use crate::cluster::peer::{PeerCalls, PeerError};

/// Longest wait for an answer, beside what the request itself may wait.
const CALL_MAX: Duration = Duration::from_secs(5);

/// Most addresses with a channel; there are only as many nodes, but an address may change.
const CHANNELS_MAX: usize = 64;

/// [`PeerCalls`] over gRPC.
pub(crate) struct GrpcPeerCalls {
    dialer: Dialer,
    /// Who this node is, and who the others are.
    streams: Arc<GrpcPeerStreams>,
    channels: Mutex<HashMap<String, Channel>>,
}

impl GrpcPeerCalls {
    /// Calls on connections of their own, beside the streams.
    pub(crate) fn new(dialer: Dialer, streams: Arc<GrpcPeerStreams>) -> Self {
        Self { dialer, streams, channels: Mutex::default() }
    }

    fn client(&self, address: &str) -> Result<NodeServiceClient<Channel>, PeerError> {
        let mut channels = self.channels.lock();
        let channel = match channels.get(address) {
            Some(channel) => channel.clone(),
            None => {
                if channels.len() >= CHANNELS_MAX {
                    channels.clear();
                }
                let streams = Arc::clone(&self.streams);
                let nodes_at = move |address: &str| streams.nodes_at(address);
                let channel = self.dialer.channel(address, nodes_at).map_err(|error| {
                    PeerError::Unreachable { address: address.to_owned(), why: error.to_string() }
                })?;
                channels.insert(address.to_owned(), channel.clone());
                channel
            }
        };
        Ok(NodeServiceClient::new(channel)
            .max_decoding_message_size(INTERNAL_MESSAGE_BYTES_MAX)
            .max_encoding_message_size(INTERNAL_MESSAGE_BYTES_MAX))
    }

    /// One call within its deadline; the other side is told the deadline too.
    async fn call<Q, A, F>(
        &self,
        address: &str,
        request: Q,
        extra: Duration,
        call: impl FnOnce(NodeServiceClient<Channel>, Request<Q>) -> F,
    ) -> Result<A, PeerError>
    where
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let deadline = CALL_MAX.saturating_add(extra);
        let mut request = Request::new(request);
        request.set_timeout(deadline);
        if let Some((cluster_id, node)) = self.streams.own_identity() {
            sender::put(request.metadata_mut(), &cluster_id, node);
        }
        match tokio::time::timeout(deadline, call(self.client(address)?, request)).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(peer_error(address, &status)),
            Err(_) => Err(PeerError::Unreachable {
                address: address.to_owned(),
                why: format!("no answer within {deadline:?}"),
            }),
        }
    }
}

#[async_trait]
impl PeerCalls for GrpcPeerCalls {
    async fn get_founding_state(
        &self,
        address: &str,
        request: internal::GetFoundingStateRequest,
    ) -> Result<internal::GetFoundingStateResponse, PeerError> {
        let call = |mut client: NodeServiceClient<Channel>, request| async move {
            client.get_founding_state(request).await
        };
        self.call(address, request, Duration::ZERO, call).await
    }

    async fn promise_founding(
        &self,
        address: &str,
        request: internal::PromiseFoundingRequest,
    ) -> Result<(), PeerError> {
        let call = |mut client: NodeServiceClient<Channel>, request| async move {
            client.promise_founding(request).await
        };
        self.call(address, request, Duration::ZERO, call).await.map(|_| ())
    }

    async fn confirm_founding(
        &self,
        address: &str,
        request: internal::ConfirmFoundingRequest,
    ) -> Result<(), PeerError> {
        let call = |mut client: NodeServiceClient<Channel>, request| async move {
            client.confirm_founding(request).await
        };
        self.call(address, request, Duration::ZERO, call).await.map(|_| ())
    }

    async fn join_cluster(
        &self,
        address: &str,
        request: internal::JoinClusterRequest,
    ) -> Result<internal::JoinClusterResponse, PeerError> {
        let call = |mut client: NodeServiceClient<Channel>, request| async move {
            client.join_cluster(request).await
        };
        self.call(address, request, Duration::ZERO, call).await
    }

    async fn propose_metadata(
        &self,
        address: &str,
        request: internal::ProposeMetadataRequest,
    ) -> Result<internal::ProposeMetadataResponse, PeerError> {
        let call = |mut client: NodeServiceClient<Channel>, request| async move {
            client.propose_metadata(request).await
        };
        self.call(address, request, Duration::ZERO, call).await
    }

    async fn fetch_entries(
        &self,
        address: &str,
        request: internal::FetchEntriesRequest,
    ) -> Result<internal::FetchEntriesResponse, PeerError> {
        let call = |mut client: NodeServiceClient<Channel>, request| async move {
            client.fetch_entries(request).await
        };
        self.call(address, request, Duration::ZERO, call).await
    }

    async fn read_compacted(
        &self,
        address: &str,
        request: internal::ReadCompactedRequest,
    ) -> Result<internal::ReadCompactedResponse, PeerError> {
        let call = |mut client: NodeServiceClient<Channel>, request| async move {
            client.read_compacted(request).await
        };
        self.call(address, request, Duration::ZERO, call).await
    }

    async fn get_partitions(
        &self,
        address: &str,
        request: internal::GetPartitionsRequest,
    ) -> Result<internal::GetPartitionsResponse, PeerError> {
        let call = |mut client: NodeServiceClient<Channel>, request| async move {
            client.get_partitions(request).await
        };
        self.call(address, request, Duration::ZERO, call).await
    }

    async fn transfer_group(
        &self,
        address: &str,
        request: internal::TransferGroupRequest,
    ) -> Result<internal::TransferGroupResponse, PeerError> {
        let call = |mut client: NodeServiceClient<Channel>, request| async move {
            client.transfer_group(request).await
        };
        self.call(address, request, Duration::ZERO, call).await
    }

    async fn forward_produce(
        &self,
        address: &str,
        request: v1::ProduceRequest,
    ) -> Result<v1::ProduceResponse, PeerError> {
        let wait = Duration::from_millis(match request.timeout_ms {
            0 => u64::from(super::append::TIMEOUT_MS_DEFAULT),
            ms => u64::from(ms),
        });
        let call = |mut client: NodeServiceClient<Channel>, request| async move {
            client.forward_produce(request).await
        };
        self.call(address, request, wait, call).await
    }

    async fn forward_fetch(
        &self,
        address: &str,
        request: v1::FetchRequest,
    ) -> Result<v1::FetchResponse, PeerError> {
        let wait = Duration::from_millis(u64::from(request.wait_ms_max));
        let call = |mut client: NodeServiceClient<Channel>, request| async move {
            client.forward_fetch(request).await
        };
        self.call(address, request, wait, call).await
    }

    async fn forward_trim(
        &self,
        address: &str,
        request: v1::TopicServiceTrimRequest,
    ) -> Result<v1::TopicServiceTrimResponse, PeerError> {
        let call = |mut client: NodeServiceClient<Channel>, request| async move {
            client.forward_trim(request).await
        };
        self.call(address, request, Duration::ZERO, call).await
    }

    async fn forward_renew(
        &self,
        address: &str,
        request: v1::RegistryServiceRenewRequest,
    ) -> Result<v1::RegistryServiceRenewResponse, PeerError> {
        let call = |mut client: NodeServiceClient<Channel>, request| async move {
            client.forward_renew(request).await
        };
        self.call(address, request, Duration::ZERO, call).await
    }
}
