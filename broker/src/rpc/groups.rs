//! GroupService of one listener: calls about groups. A member's stream is in `membership`.
//!
//! Owns: between messages and the coordinators' words. Never: what a group is.

use std::pin::Pin;

use futures::Stream;
use futures::stream::{StreamExt, TryStreamExt};
use highwater_proto::v1;
use highwater_proto::v1::group_service_server::GroupService;
use tonic::{Request, Response, Status, Streaming};

use super::door::{Door, deadline};
use super::membership;
use super::screen::Call;
use super::status::CallError;
use crate::groups::{Activity, Described, NewOffset, Standing};

/// Positions that a reset looks up at once.
const LOOKUPS_AT_ONCE: usize = 16;

/// GroupService of one listener.
pub(super) struct Groups {
    pub(super) door: Door,
}

impl Groups {
    fn answer<T>(&self, answer: Result<T, CallError>) -> Result<Response<T>, Status> {
        answer.map(Response::new).map_err(|error| self.door.status(&error))
    }

    async fn list_here(&self) -> Result<v1::GroupServiceListResponse, CallError> {
        let listed = self.door.groups.list().await?;
        let listings: Vec<v1::GroupListing> = listed
            .into_iter()
            .map(|listed| v1::GroupListing {
                group: listed.group,
                state: state(listed.standing).into(),
                members: count(listed.members),
                coordinator_node_id: self.door.node.id(),
            })
            .collect();
        let groups = listings.iter().map(|listing| listing.group.clone()).collect();
        Ok(v1::GroupServiceListResponse { groups, listings })
    }

    /// Where a reset would put each partition.
    async fn resolve(
        &self,
        request: &v1::ResetOffsetsRequest,
    ) -> Result<Vec<v1::CommittedOffset>, CallError> {
        let topic = self.door.topic(&request.topic, false).await?;
        let all = 0..u32::try_from(topic.partitions.len()).unwrap_or(u32::MAX);
        let partitions = match request.partitions.is_empty() {
            true => all.collect(),
            false => request.partitions.clone(),
        };
        futures::stream::iter(partitions)
            .map(|partition| self.position(request, &topic.id, partition))
            .buffered(LOOKUPS_AT_ONCE)
            .try_collect()
            .await
    }

    async fn position(
        &self,
        request: &v1::ResetOffsetsRequest,
        topic_id: &str,
        partition: u32,
    ) -> Result<v1::CommittedOffset, CallError> {
        let fetch = v1::FetchRequest {
            topic: request.topic.clone(),
            topic_id: topic_id.to_owned(),
            partition,
            position: request.to,
            bytes_max: 1,
            records_max: 1,
            ..Default::default()
        };
        let fetched = self.door.fetch(fetch).await?;
        let offset = fetched.records.first().map_or(fetched.next_offset, |record| record.offset);
        Ok(v1::CommittedOffset {
            topic: request.topic.clone(),
            topic_id: topic_id.to_owned(),
            partition,
            offset,
            ..Default::default()
        })
    }

    async fn reset(
        &self,
        request: v1::ResetOffsetsRequest,
    ) -> Result<v1::ResetOffsetsResponse, CallError> {
        let offsets = self.resolve(&request).await?;
        let new = offsets.iter().cloned().map(new_offset).collect();
        self.door.groups.reset(&request.group, new, request.dry_run).await?;
        Ok(v1::ResetOffsetsResponse { offsets })
    }

    async fn fetch(&self, group: &str) -> Result<v1::FetchOffsetsResponse, CallError> {
        let progress = self.door.groups.fetch(group).await?;
        let offsets =
            progress.into_iter().map(|((topic, partition), progress)| v1::CommittedOffset {
                topic,
                partition,
                offset: progress.offset,
                metadata: progress.metadata,
                committed_at_ms: progress.committed_at_ms,
                topic_id: progress.topic_id,
            });
        Ok(v1::FetchOffsetsResponse { offsets: offsets.collect() })
    }
}

#[tonic::async_trait]
impl GroupService for Groups {
    type JoinStream = Pin<Box<dyn Stream<Item = Result<v1::JoinResponse, Status>> + Send>>;

    async fn join(
        &self,
        request: Request<Streaming<v1::JoinRequest>>,
    ) -> Result<Response<Self::JoinStream>, Status> {
        let time_left = deadline(request.metadata());
        let told = membership::serve(self.door.clone(), request.into_inner(), time_left);
        Ok(Response::new(Box::pin(told)))
    }

    async fn list(
        &self,
        _: Request<v1::GroupServiceListRequest>,
    ) -> Result<Response<v1::GroupServiceListResponse>, Status> {
        self.answer(self.list_here().await)
    }

    async fn describe(
        &self,
        request: Request<v1::GroupServiceDescribeRequest>,
    ) -> Result<Response<v1::GroupServiceDescribeResponse>, Status> {
        let group = request.into_inner().group;
        let described = self.door.groups.describe(&group).await;
        let node_id = self.door.node.id();
        self.answer(described.map(|it| describe(group, node_id, it)).map_err(Into::into))
    }

    async fn delete(
        &self,
        request: Request<v1::GroupServiceDeleteRequest>,
    ) -> Result<Response<v1::GroupServiceDeleteResponse>, Status> {
        let deleted = self.door.groups.delete(&request.into_inner().group).await;
        let done = |()| v1::GroupServiceDeleteResponse {};
        self.answer(deleted.map(done).map_err(Into::into))
    }

    async fn commit_offsets(
        &self,
        request: Request<v1::CommitOffsetsRequest>,
    ) -> Result<Response<v1::CommitOffsetsResponse>, Status> {
        let v1::CommitOffsetsRequest { group, offsets } = request.into_inner();
        let refused = offsets.iter().try_for_each(|it| self.door.check(Call::Commit, &it.topic));
        refused.map_err(|error| self.door.status(&error.into()))?;
        let offsets = offsets.into_iter().map(new_offset).collect();
        let stored = self.door.groups.commit(&group, offsets).await;
        let done = |()| v1::CommitOffsetsResponse {};
        self.answer(stored.map(done).map_err(Into::into))
    }

    async fn fetch_offsets(
        &self,
        request: Request<v1::FetchOffsetsRequest>,
    ) -> Result<Response<v1::FetchOffsetsResponse>, Status> {
        self.answer(self.fetch(&request.into_inner().group).await)
    }

    async fn reset_offsets(
        &self,
        request: Request<v1::ResetOffsetsRequest>,
    ) -> Result<Response<v1::ResetOffsetsResponse>, Status> {
        self.answer(self.reset(request.into_inner()).await)
    }
}

fn new_offset(offset: v1::CommittedOffset) -> NewOffset {
    let v1::CommittedOffset { topic, topic_id, partition, offset, metadata, .. } = offset;
    NewOffset { topic, topic_id, partition, offset, metadata }
}

fn state(standing: Standing) -> v1::GroupState {
    match standing {
        Standing::Empty => v1::GroupState::Empty,
        Standing::Rebalancing => v1::GroupState::Rebalancing,
        Standing::Stable => v1::GroupState::Stable,
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn describe(group: String, node_id: u64, it: Described) -> v1::GroupServiceDescribeResponse {
    let millis = |time: std::time::Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let members = it.members.into_iter().map(|member| v1::GroupMember {
        member_id: member.member_id,
        static_id: member.static_id,
        client_id: member.client_id,
        is_connected: member.is_connected,
        topics: member.topics,
        partitions: count(member.partitions),
        session_ends_in_ms: millis(member.session_ends_in),
        progress_due_in_ms: millis(member.progress_due_in),
    });
    let partitions = it.partitions.into_iter().map(|partition| {
        let (topic, number) = partition.place;
        let Activity(activity) = partition.activity;
        let progress = partition.progress;
        v1::GroupPartition {
            topic,
            partition: number,
            member_id: partition.member_id,
            epoch: partition.epoch,
            committed_offset: progress.as_ref().map(|progress| progress.offset),
            committed_at_ms: progress.as_ref().map_or(0, |progress| progress.committed_at_ms),
            is_moving: partition.is_moving,
            activity,
            metadata: progress.map(|progress| progress.metadata).unwrap_or_default(),
        }
    });
    v1::GroupServiceDescribeResponse {
        group,
        state: state(it.standing).into(),
        epoch: it.epoch,
        coordinator_node_id: node_id,
        members: members.collect(),
        partitions: partitions.collect(),
    }
}
