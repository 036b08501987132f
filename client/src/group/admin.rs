//! Administration of consumer groups.
//!
//! Owns: [`Admin`]'s calls about groups, and what is put together from several answers. Never: membership.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::stream::{StreamExt, TryStreamExt};
use highwater_proto::v1;

use super::types::{self, GroupDescription, GroupListing, GroupOffset, GroupPartition, Log};
use crate::admin::{Admin, Repeat};
use crate::connections::group_service;
use crate::error::{AdminError, reason};
use crate::metadata::within;
use crate::types::{FetchOptions, Start};

/// Partitions looked at at once.
const LOOKS_AT_ONCE: usize = 16;

impl Admin {
    /// Lists consumer groups by name. Each node knows those that it coordinates: all that are alive are asked.
    pub async fn list_groups(&self) -> Result<Vec<GroupListing>, AdminError> {
        let shared = &self.client.shared;
        let patience = shared.config.request_timeout;
        let mut groups = BTreeMap::new();
        for node in self.cluster_info().await?.nodes.into_iter().filter(|node| node.alive) {
            let address: Arc<str> = Arc::from(node.address);
            let channel = shared.connections.channel(&address).map_err(AdminError::Refused)?;
            let mut service = group_service(channel);
            let listed = within(patience, service.list(v1::GroupServiceListRequest {})).await;
            for listing in listed.map_err(AdminError::Refused)?.listings {
                groups.insert(listing.group.clone(), listing.into());
            }
        }
        Ok(groups.into_values().collect())
    }

    /// Describes a consumer group: members, partitions, lag, and why events do not flow where they do not.
    pub async fn describe_group(&self, group: &str) -> Result<GroupDescription, AdminError> {
        let request = v1::GroupServiceDescribeRequest { group: group.to_owned() };
        let described = self
            .call(Repeat::Freely, request, async |channel, request| {
                group_service(channel).describe(request).await
            })
            .await?;
        let state = described.state().into();
        let topics: BTreeSet<String> =
            described.partitions.iter().map(|partition| partition.topic.clone()).collect();
        let mut logs: BTreeMap<(String, u32), Log> = BTreeMap::new();
        for topic in topics {
            let found = match self.get_topic(&topic).await {
                Ok(found) => found,
                // Deleted just now.
                Err(error) if error.reason() == reason::UNKNOWN_TOPIC => continue,
                Err(error) => return Err(error),
            };
            for it in found.partitions {
                let log = Log {
                    has_leader: it.leader.is_some(),
                    log_start_offset: it.log_start_offset,
                    high_watermark: it.high_watermark,
                };
                logs.insert((topic.clone(), it.partition), log);
            }
        }
        let away: BTreeSet<&str> = described
            .members
            .iter()
            .filter(|member| !member.is_connected)
            .map(|member| member.member_id.as_str())
            .collect();
        let partitions: Vec<GroupPartition> = described
            .partitions
            .iter()
            .map(|it| {
                let log = logs.get(&(it.topic.clone(), it.partition)).copied().unwrap_or_default();
                types::partition(it.clone(), log, |member| away.contains(member))
            })
            .collect();
        let partitions = futures::stream::iter(partitions)
            .map(|partition| self.with_age(partition))
            .buffered(LOOKS_AT_ONCE)
            .try_collect()
            .await?;
        Ok(GroupDescription {
            group: described.group,
            state,
            epoch: described.epoch,
            coordinator: described.coordinator_node_id,
            members: described.members.into_iter().map(Into::into).collect(),
            partitions,
        })
    }

    /// Looks how old the first record is that is not done.
    async fn with_age(&self, mut partition: GroupPartition) -> Result<GroupPartition, AdminError> {
        let has_leader = partition.flow != types::PartitionFlow::LeaderMissing;
        if partition.lag > 0 && has_leader {
            let from = partition.committed_offset.unwrap_or(partition.log_start_offset);
            let start = Start::Offset(from.max(partition.log_start_offset));
            let options =
                FetchOptions { start, records_max: 1, bytes_max: 1, ..Default::default() };
            // Retention may pass it meanwhile: then its age is not known, and that is all.
            if let Ok(fetched) = self.fetch(&partition.topic, partition.partition, options).await {
                let now_ms = self.client.shared.env.wall_ms();
                let created = fetched.events.first().map(|event| event.timestamp_ms);
                partition.lag_ms = created.map(|created| now_ms.saturating_sub(created).max(0));
            }
        }
        Ok(partition)
    }

    /// The progress of a consumer group; empty if there is none.
    pub async fn group_offsets(&self, group: &str) -> Result<Vec<GroupOffset>, AdminError> {
        let request = v1::FetchOffsetsRequest { group: group.to_owned() };
        let answer = self
            .call(Repeat::Freely, request, async |channel, request| {
                group_service(channel).fetch_offsets(request).await
            })
            .await?;
        Ok(answer.offsets.into_iter().map(Into::into).collect())
    }

    /// Stores progress of a consumer group without members. Progress only grows: to go back, reset it.
    pub async fn commit_group_offsets(
        &self,
        group: &str,
        offsets: &[GroupOffset],
    ) -> Result<(), AdminError> {
        let offsets = offsets.iter().map(|offset| v1::CommittedOffset {
            topic: offset.topic.clone(),
            partition: offset.partition,
            offset: offset.offset,
            ..Default::default()
        });
        let request =
            v1::CommitOffsetsRequest { group: group.to_owned(), offsets: offsets.collect() };
        // Storing the same twice is the same as once.
        self.call(Repeat::Freely, request, async |channel, request| {
            group_service(channel).commit_offsets(request).await
        })
        .await
        .map(drop)
    }

    /// Moves the progress of a consumer group without members in a topic, in these partitions or (if none are named) in all;
    /// answers with where it is then. With `dry_run` it only says so.
    pub async fn reset_group_offsets(
        &self,
        group: &str,
        topic: &str,
        partitions: &[u32],
        to: Start,
        dry_run: bool,
    ) -> Result<Vec<GroupOffset>, AdminError> {
        let request = v1::ResetOffsetsRequest {
            group: group.to_owned(),
            topic: topic.to_owned(),
            to: Some(to.into()),
            dry_run,
            partitions: partitions.to_vec(),
        };
        // A place by offset or time stays where it is; only the end moves on between two tries.
        let repeat = match to {
            Start::Latest if !dry_run => Repeat::UnlessItMayHaveHappened,
            _ => Repeat::Freely,
        };
        let answer = self
            .call(repeat, request, async |channel, request| {
                group_service(channel).reset_offsets(request).await
            })
            .await?;
        Ok(answer.offsets.into_iter().map(Into::into).collect())
    }

    /// Deletes a consumer group without members, and its progress.
    pub async fn delete_group(&self, group: &str) -> Result<(), AdminError> {
        let request = v1::GroupServiceDeleteRequest { group: group.to_owned() };
        self.call(Repeat::UnlessItMayHaveHappened, request, async |channel, request| {
            group_service(channel).delete(request).await
        })
        .await
        .map(drop)
    }
}
