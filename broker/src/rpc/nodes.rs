//! NodeService: what other nodes ask, on the internal port only.
//!
//! Owns: nothing; turns calls into calls of [`crate::cluster::Node`]. A call that was passed on ends here: it is never
//! passed on again, so two nodes that each take the other for the leader cannot send it in circles.

use std::collections::HashSet;
use std::sync::Arc;

use highwater_proto::internal::node_service_server::NodeService;
use highwater_proto::{internal, v1};
use tonic::{Request, Response, Status};

use super::describe::Wanted;
use super::door::Door;
use super::in_flight::InFlight;
use super::{sender, status};
use crate::error::BrokerError;

/// NodeService of the internal listener.
pub(super) struct Nodes {
    pub(super) door: Door,
    /// Bounds what other nodes pass on.
    pub(super) in_flight: Arc<InFlight>,
}

impl Nodes {
    /// Who does not belong here is not answered, except where it asks which cluster this is.
    fn check<T>(&self, request: &Request<T>) -> Result<(), Status> {
        sender::check(request, &self.door.node.view().cluster_id)
    }
}

/// Other nodes know addresses by themselves.
fn answer<T>(outcome: Result<T, BrokerError>) -> Result<Response<T>, Status> {
    outcome.map(Response::new).map_err(|error| status::status(&error, |_| None))
}

fn required<T>(field: Option<T>, name: &str) -> Result<T, BrokerError> {
    field.ok_or_else(|| BrokerError::InvalidArgument {
        field: name.to_owned(),
        why: "is missing".to_owned(),
    })
}

#[tonic::async_trait]
impl NodeService for Nodes {
    async fn get_founding_state(
        &self,
        request: Request<internal::GetFoundingStateRequest>,
    ) -> Result<Response<internal::GetFoundingStateResponse>, Status> {
        Ok(Response::new(self.door.node.founding_state(request.get_ref())))
    }

    async fn promise_founding(
        &self,
        request: Request<internal::PromiseFoundingRequest>,
    ) -> Result<Response<internal::PromiseFoundingResponse>, Status> {
        self.check(&request)?;
        let promised = self.door.node.promise_founding(request.into_inner()).await;
        answer(promised.map(|()| internal::PromiseFoundingResponse {}))
    }

    async fn confirm_founding(
        &self,
        request: Request<internal::ConfirmFoundingRequest>,
    ) -> Result<Response<internal::ConfirmFoundingResponse>, Status> {
        self.check(&request)?;
        let confirmed = self.door.node.confirm_founding(request.into_inner()).await;
        answer(confirmed.map(|()| internal::ConfirmFoundingResponse {}))
    }

    async fn join_cluster(
        &self,
        request: Request<internal::JoinClusterRequest>,
    ) -> Result<Response<internal::JoinClusterResponse>, Status> {
        self.check(&request)?;
        let certified = sender::certified(&request);
        let join = request.into_inner();
        let asks_for = join.node.as_ref().map_or(0, |node| node.node_id);
        if let Err(why) = sender::check_node(certified, asks_for) {
            let field = "node id".to_owned();
            return answer(Err(BrokerError::InvalidArgument { field, why }));
        }
        answer(self.door.node.join_cluster(join).await)
    }

    async fn propose_metadata(
        &self,
        request: Request<internal::ProposeMetadataRequest>,
    ) -> Result<Response<internal::ProposeMetadataResponse>, Status> {
        self.check(&request)?;
        let outcome = match required(request.into_inner().command, "command") {
            Ok(command) => self.door.node.propose_metadata_here(command).await,
            Err(error) => Err(error),
        };
        answer(outcome.map(|outcome| internal::ProposeMetadataResponse { outcome: Some(outcome) }))
    }

    async fn fetch_entries(
        &self,
        request: Request<internal::FetchEntriesRequest>,
    ) -> Result<Response<internal::FetchEntriesResponse>, Status> {
        self.check(&request)?;
        let node = self.door.node.clone();
        // Cold pages are read from disk: not on the runtime's threads.
        let read = tokio::task::spawn_blocking(move || node.fetch_entries(request.get_ref()));
        let fetched = read.await.unwrap_or_else(|error| {
            Err(BrokerError::Internal(format!("reading entries failed: {error}")))
        });
        answer(fetched)
    }

    async fn read_compacted(
        &self,
        request: Request<internal::ReadCompactedRequest>,
    ) -> Result<Response<internal::ReadCompactedResponse>, Status> {
        self.check(&request)?;
        let node = self.door.node.clone();
        // Cold pages are read from disk: not on the runtime's threads.
        let read = tokio::task::spawn_blocking(move || node.read_compacted(request.get_ref()));
        let read = read.await.unwrap_or_else(|error| {
            Err(BrokerError::Internal(format!("reading compacted segments failed: {error}")))
        });
        answer(read)
    }

    async fn get_partitions(
        &self,
        request: Request<internal::GetPartitionsRequest>,
    ) -> Result<Response<internal::GetPartitionsResponse>, Status> {
        self.check(&request)?;
        let internal::GetPartitionsRequest { group_ids, wants_ends } = request.into_inner();
        let wanted: HashSet<u64> = group_ids.into_iter().collect();
        let what = if wants_ends { Wanted::Ends } else { Wanted::Health };
        let led = self.door.own_states(wanted.iter().copied(), what).await.into_iter();
        let groups = led.map(|(group_id, partition)| {
            let partition = Some(partition);
            internal::GroupState { group_id, partition }
        });
        let groups = groups.collect();
        let quarantined = self.door.node.quarantined_replicas().into_iter();
        let quarantined = quarantined
            .filter(|(group, _)| wanted.contains(group))
            .map(|(group_id, replica)| internal::QuarantinedGroup {
                group_id,
                replica: Some(replica),
            })
            .collect();
        Ok(Response::new(internal::GetPartitionsResponse { groups, quarantined }))
    }

    async fn forward_produce(
        &self,
        request: Request<v1::ProduceRequest>,
    ) -> Result<Response<v1::ProduceResponse>, Status> {
        self.check(&request)?;
        answer(self.door.produce_here(&self.in_flight, request.into_inner()).await)
    }

    async fn forward_fetch(
        &self,
        request: Request<v1::FetchRequest>,
    ) -> Result<Response<v1::FetchResponse>, Status> {
        self.check(&request)?;
        answer(self.door.fetch_here(request.get_ref()).await)
    }

    async fn forward_trim(
        &self,
        request: Request<v1::TopicServiceTrimRequest>,
    ) -> Result<Response<v1::TopicServiceTrimResponse>, Status> {
        self.check(&request)?;
        answer(self.door.trim_here(request.get_ref()).await)
    }

    async fn forward_renew(
        &self,
        request: Request<v1::RegistryServiceRenewRequest>,
    ) -> Result<Response<v1::RegistryServiceRenewResponse>, Status> {
        self.check(&request)?;
        answer(self.door.renew_here(request.get_ref()))
    }

    async fn transfer_group(
        &self,
        request: Request<internal::TransferGroupRequest>,
    ) -> Result<Response<internal::TransferGroupResponse>, Status> {
        self.check(&request)?;
        let internal::TransferGroupRequest { group_id, to_node_id } = request.into_inner();
        let chosen = self.door.transfer_here(group_id, to_node_id).await;
        answer(chosen.map(|to_node_id| internal::TransferGroupResponse { to_node_id }))
    }
}
