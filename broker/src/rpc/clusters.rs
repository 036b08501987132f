//! ClusterService. Owns: how the cluster looks from outside, and its problems in plain words. Never: decides who belongs to it.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt};
use highwater_proto::v1::cluster_service_server::ClusterService;
use highwater_proto::{internal, v1};
use tokio_stream::wrappers::WatchStream;
use tonic::{Request, Response, Status};

use super::door::{Door, deadline, expired};
use super::status::{CallError, from_peer};
use super::turned_on;
use crate::cluster::topic_config::TopicConfig;
use crate::cluster::{ClusterView, NodeId, TopicView};
use crate::error::BrokerError;

/// ClusterService of one listener.
pub(super) struct Clusters {
    pub(super) door: Door,
}

#[tonic::async_trait]
impl ClusterService for Clusters {
    async fn get_cluster(
        &self,
        _: Request<v1::GetClusterRequest>,
    ) -> Result<Response<v1::GetClusterResponse>, Status> {
        let view = self.door.node.view();
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Ok(Response::new(v1::GetClusterResponse {
            broker: Some(self.door.broker_info()),
            metadata_leader: self.door.node.metadata_leader(),
            nodes: self.door.nodes(&view),
            topics: count(view.topics.len()),
            partitions: count(view.topics.values().map(|topic| topic.partitions.len()).sum()),
            removed_nodes: view.removed_nodes.clone(),
        }))
    }

    async fn get_health(
        &self,
        _: Request<v1::GetHealthRequest>,
    ) -> Result<Response<v1::GetHealthResponse>, Status> {
        Ok(Response::new(self.door.health().await))
    }

    async fn get_metadata(
        &self,
        request: Request<v1::GetMetadataRequest>,
    ) -> Result<Response<v1::GetMetadataResponse>, Status> {
        let view = self.door.node.view();
        let topics = &request.get_ref().topics;
        if let Some(missing) = topics.iter().find(|name| !view.topics.contains_key(*name))
            && !self.door.node.is_caught_up()
        {
            // Left out of the answer it would be taken for a topic that does not exist.
            let error = self.door.node.unknown_topic(missing);
            return Err(self.door.status(&error.into()));
        }
        Ok(Response::new(self.door.metadata(&view, topics)))
    }

    type WatchMetadataStream =
        Pin<Box<dyn Stream<Item = Result<v1::WatchMetadataResponse, Status>> + Send>>;

    async fn watch_metadata(
        &self,
        request: Request<v1::WatchMetadataRequest>,
    ) -> Result<Response<Self::WatchMetadataStream>, Status> {
        let time_left = deadline(request.metadata());
        let topics = request.into_inner().topics;
        let guard = self.door.metrics.stream_opened("metadata");
        let mut stopping = self.door.node.watch_stopping();
        let ended = async move {
            tokio::select! {
                () = turned_on(&mut stopping) => {}
                () = expired(time_left) => {}
            }
        };
        let door = self.door.clone();
        // Changes that come faster than the client reads are told as one.
        let changes = WatchStream::new(self.door.node.watch_view()).map(move |view| {
            let _open = &guard;
            Ok(v1::WatchMetadataResponse { metadata: Some(door.metadata(&view, &topics)) })
        });
        Ok(Response::new(Box::pin(changes.take_until(Box::pin(ended)))))
    }

    async fn transfer_leadership(
        &self,
        request: Request<v1::TransferLeadershipRequest>,
    ) -> Result<Response<v1::TransferLeadershipResponse>, Status> {
        let request = request.into_inner();
        let leader = self.door.until_led(|| self.door.transfer(&request)).await;
        leader
            .map(|leader| Response::new(v1::TransferLeadershipResponse { leader }))
            .map_err(|error| self.door.status(&error))
    }

    async fn reassign_partition(
        &self,
        request: Request<v1::ReassignPartitionRequest>,
    ) -> Result<Response<v1::ReassignPartitionResponse>, Status> {
        let v1::ReassignPartitionRequest { topic, partition, node_ids, replace_node_ids } =
            request.into_inner();
        let node = &self.door.node;
        let decided = node.reassign_partition(&topic, partition, node_ids, replace_node_ids).await;
        decided
            .map(|()| Response::new(v1::ReassignPartitionResponse {}))
            .map_err(|error| self.door.status(&error.into()))
    }

    async fn add_node(
        &self,
        request: Request<v1::AddNodeRequest>,
    ) -> Result<Response<v1::AddNodeResponse>, Status> {
        let node_id = request.into_inner().node_id;
        let decided = self.door.node.add_node(node_id).await;
        decided
            .map(|()| Response::new(v1::AddNodeResponse { node_id }))
            .map_err(|error| self.door.status(&error.into()))
    }

    async fn remove_node(
        &self,
        request: Request<v1::RemoveNodeRequest>,
    ) -> Result<Response<v1::RemoveNodeResponse>, Status> {
        let decided = self.door.node.remove_node(request.into_inner().node_id).await;
        decided
            .map(|()| Response::new(v1::RemoveNodeResponse {}))
            .map_err(|error| self.door.status(&error.into()))
    }

    async fn rebalance(
        &self,
        request: Request<v1::RebalanceRequest>,
    ) -> Result<Response<v1::RebalanceResponse>, Status> {
        let planned = self.door.node.rebalance(request.into_inner().execute).await;
        let (moves, started) = planned.map_err(|error| self.door.status(&error.into()))?;
        let moves = moves.into_iter().map(|planned| v1::PlannedMove {
            topic: planned.topic,
            partition: planned.partition,
            from_node_ids: planned.from,
            to_node_ids: planned.to,
        });
        Ok(Response::new(v1::RebalanceResponse {
            moves: moves.collect(),
            started: u32::try_from(started).unwrap_or(u32::MAX),
        }))
    }
}

impl Door {
    /// All nodes, by id, with the addresses of this listener.
    fn nodes(&self, view: &ClusterView) -> Vec<v1::Node> {
        let mut leaders: BTreeMap<NodeId, u32> = BTreeMap::new();
        let mut replicas: BTreeMap<NodeId, u32> = BTreeMap::new();
        for place in view.topics.values().flat_map(|topic| &topic.partitions) {
            for (_, node) in &place.replicas {
                *replicas.entry(*node).or_default() += 1;
            }
            if let Some((leader, _)) = view.leaders.get(&place.group) {
                *leaders.entry(*leader).or_default() += 1;
            }
        }
        let nodes = view.nodes.values().map(|node| v1::Node {
            id: node.id,
            address: self.node_address(node),
            internal_address: node.internal_address.clone(),
            alive: self.node.is_alive(node.id),
            leaders: leaders.get(&node.id).copied().unwrap_or_default(),
            replicas: replicas.get(&node.id).copied().unwrap_or_default(),
            version: node.version.clone(),
            state: match node.is_draining {
                true => v1::NodeState::Draining.into(),
                false => v1::NodeState::Active.into(),
            },
            rack: node.rack.clone(),
        });
        nodes.collect()
    }

    /// What a client needs to route; all topics if it names none.
    fn metadata(&self, view: &ClusterView, topics: &[String]) -> v1::GetMetadataResponse {
        let wanted: Vec<&Arc<TopicView>> = if topics.is_empty() {
            view.topics.values().collect()
        } else {
            topics.iter().filter_map(|name| view.topics.get(name)).collect()
        };
        v1::GetMetadataResponse {
            broker: Some(self.broker_info()),
            nodes: self.nodes(view),
            topics: wanted.into_iter().map(|topic| topic_metadata(view, topic)).collect(),
            version: view.version,
        }
    }

    async fn health(&self) -> v1::GetHealthResponse {
        let view = self.node.view();
        let mut health = v1::GetHealthResponse::default();
        if view.cluster_id.is_empty() {
            health.problems = vec!["the node that answers belongs to no cluster yet".to_owned()];
            health.problems.extend(self.node.ready_state().checks);
            return health;
        }
        for node in view.nodes.values().filter(|node| !self.node.is_alive(node.id)) {
            health.dead_nodes.push(node.id);
            let address = &node.internal_address;
            health.problems.push(format!("node {} at {address} is not heard from", node.id));
        }
        if self.node.metadata_leader() == 0 {
            let problem = "the metadata group has no leader: topics cannot be changed";
            health.problems.push(problem.to_owned());
        }
        let (damaged, partitions) = futures::join!(self.damaged_metadata(), self.all_partitions());
        for replica in damaged {
            health.problems.push(quarantine_line("the metadata group", &replica));
        }
        for (topic, partition) in partitions {
            let problem = match partition.state() {
                v1::PartitionState::Healthy => continue,
                v1::PartitionState::Leaderless => {
                    health.leaderless_partitions += 1;
                    "has no leader".to_owned()
                }
                v1::PartitionState::UnderReplicated => {
                    health.under_replicated_partitions += 1;
                    let lagging = partition.replicas.iter();
                    let lagging = lagging.filter(|node| !partition.in_sync.contains(node));
                    let lagging: Vec<String> = lagging.map(u64::to_string).collect();
                    format!("has replicas that are not in sync, on node {}", lagging.join(", "))
                }
                v1::PartitionState::Quarantined => {
                    health.under_replicated_partitions += 1;
                    "has a quarantined replica".to_owned()
                }
                v1::PartitionState::Unspecified => {
                    health.under_replicated_partitions += 1;
                    format!("is led by node {}, which did not answer", partition.leader)
                }
            };
            health.problems.push(format!("{topic}/{} {problem}", partition.partition));
            for replica in &partition.quarantined {
                let name = format!("{topic}/{}", partition.partition);
                health.problems.push(quarantine_line(&name, replica));
            }
        }
        health.in_progress = self.node.in_progress();
        health.healthy = health.problems.is_empty();
        health
    }

    /// Hands a leadership over, wherever it is.
    async fn transfer(&self, request: &v1::TransferLeadershipRequest) -> Result<NodeId, CallError> {
        let topic = self.topic(&request.topic, false).await?;
        let place = usize::try_from(request.partition).ok();
        let Some(place) = place.and_then(|number| topic.partitions.get(number)) else {
            return Err(BrokerError::UnknownPartition {
                topic: request.topic.clone(),
                partition: request.partition,
                partitions: u32::try_from(topic.partitions.len()).unwrap_or(u32::MAX),
            }
            .into());
        };
        let to_node_id = request.to_node_id;
        if to_node_id != 0 && !place.replicas.iter().any(|&(_, node)| node == to_node_id) {
            let nodes: Vec<String> =
                place.replicas.iter().map(|(_, node)| node.to_string()).collect();
            return Err(BrokerError::InvalidArgument {
                field: "to_node_id".to_owned(),
                why: format!("node {to_node_id} has no replica; nodes {} have", nodes.join(", ")),
            }
            .into());
        }
        let leader = self.node.view().leaders.get(&place.group).map(|&(leader, _)| leader);
        match leader {
            None => Err(BrokerError::NotLeader { leader: None }.into()),
            Some(leader) if leader == self.node.id() => {
                Ok(self.transfer_here(place.group, to_node_id).await?)
            }
            Some(leader) => {
                let address = self.internal_address_of(leader)?;
                let transfer = internal::TransferGroupRequest { group_id: place.group, to_node_id };
                let answer = self.calls.transfer_group(&address, transfer).await;
                Ok(answer.map_err(from_peer)?.to_node_id)
            }
        }
    }

    /// Hands over a group that this node leads.
    pub(super) async fn transfer_here(
        &self,
        group: u64,
        to: NodeId,
    ) -> Result<NodeId, BrokerError> {
        let handle = self.node.replica(group).ok_or(BrokerError::NotLeader { leader: None })?;
        handle.transfer_leadership(to).await
    }
}

fn quarantine_line(name: &str, replica: &v1::QuarantinedReplica) -> String {
    let v1::QuarantinedReplica { node, why, repair } = replica;
    let repair = if repair.is_empty() { "not begun" } else { repair };
    format!("{name} is quarantined on node {node}: {why}; repair: {repair}")
}

fn topic_metadata(view: &ClusterView, topic: &TopicView) -> v1::TopicMetadata {
    let partitions = topic.partitions.iter().zip(0_u32..).map(|(place, partition)| {
        let (leader, leader_epoch) = view.leaders.get(&place.group).copied().unwrap_or_default();
        v1::PartitionMetadata { partition, leader, leader_epoch }
    });
    v1::TopicMetadata {
        name: topic.name.clone(),
        id: topic.id.clone(),
        partitions: partitions.collect(),
        record_bytes_max: TopicConfig::read(&topic.config).record_bytes_max,
    }
}
