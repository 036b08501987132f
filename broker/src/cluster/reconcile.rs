//! Makes the replicas on this node what the metadata says.
//!
//! Owns: creating, opening, configuring and removing replicas. Never: deletes data because metadata does not mention it; only the
//! recorded deletion of a topic authorises that.

use std::sync::Arc;

use super::metadata::Metadata;
use super::node::Node;
use super::placement::replica_on;
use super::repair::OutOfService;
use super::topic_config::TopicConfig;
use super::view::{PartitionView, TopicView};
use super::{GroupId, METADATA_GROUP};
use crate::replica::{NewReplica, PartitionSettings, ReplicaError};

impl Node {
    /// Runs until the node stops: once for each change of the metadata.
    pub(super) async fn reconcile_loop(self) {
        let mut changes = self.inner.metadata.subscribe();
        loop {
            let metadata = changes.borrow_and_update().clone();
            self.reconcile(metadata).await;
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = self.inner.cancel.cancelled() => return,
            }
        }
    }

    async fn reconcile(&self, metadata: Arc<Metadata>) {
        let node = self.clone();
        let state = Arc::clone(&metadata);
        // Opening files blocks: not on the runtime's threads.
        let serving = self.inner.deps.tasks.spawn_blocking(move || {
            for topic in state.topics.values() {
                for (number, partition) in (0u32..).zip(&topic.partitions) {
                    if node.inner.cancel.is_cancelled() {
                        return;
                    }
                    node.serve(topic, number, partition);
                }
            }
        });
        if serving.await.is_err() {
            tracing::error!("reconciling replicas failed; this is a defect");
        }
        for group in self.condemned(&metadata) {
            tracing::info!(group, "deleting the data of a deleted topic");
            self.inner.leadership.forget(group);
            if let Err(error) = self.inner.engine.remove(group).await {
                tracing::warn!(group, %error, "data of a deleted topic could not be removed; trying again at the next change");
            }
        }
    }

    /// Puts the replica of a partition that belongs here into service, with its settings.
    fn serve(&self, topic: &TopicView, number: u32, partition: &PartitionView) {
        let Some(replica) = replica_on(&partition.replicas, self.id()) else { return };
        let group = partition.group;
        let settings = partition_settings(&TopicConfig::read(&topic.config));
        if self.inner.engine.get(group).is_some() {
            self.inner.engine.configure(group, settings);
            return;
        }
        if self.inner.unusable.lock().contains_key(&group) {
            return;
        }
        if let Err(error) = self.open_or_create(topic, number, partition, replica, settings) {
            self.set_unusable(group, &error);
        }
    }

    fn open_or_create(
        &self,
        topic: &TopicView,
        number: u32,
        partition: &PartitionView,
        replica: u64,
        settings: PartitionSettings,
    ) -> Result<(), ReplicaError> {
        let group = partition.group;
        match self.inner.engine.open(group, settings, None)? {
            Some(_) => Ok(()),
            None => {
                let new = NewReplica {
                    group,
                    replica,
                    topic_id: topic.id.clone(),
                    partition: number,
                    voters: partition.replicas.iter().copied().collect(),
                    learners: Default::default(),
                    image: Default::default(),
                    preferred: partition.replicas.first().is_some_and(|(_, on)| *on == self.id()),
                    settings,
                };
                self.inner.engine.create(new, None).map(drop)
            }
        }
    }

    /// Puts a replica back into service that was out of it.
    pub(super) fn reopen(&self, group: GroupId) -> Result<(), ReplicaError> {
        if group == METADATA_GROUP {
            return self.open_metadata();
        }
        let metadata = self.inner.metadata.borrow().clone();
        let places = metadata.topics.values().flat_map(|topic| {
            let partitions = (0u32..).zip(&topic.partitions);
            partitions.map(move |(number, partition)| (topic, number, partition))
        });
        let place = places.into_iter().find(|(_, _, partition)| partition.group == group);
        let Some((topic, number, partition)) = place else {
            return self.inner.engine.open(group, PartitionSettings::default(), None).map(drop);
        };
        let Some(replica) = replica_on(&partition.replicas, self.id()) else { return Ok(()) };
        let settings = partition_settings(&TopicConfig::read(&topic.config));
        self.open_or_create(topic, number, partition, replica, settings)
    }

    /// Opens every replica that is on disk, before any metadata is known: partitions serve without the metadata group.
    pub(super) fn open_all(&self) -> Result<(), highwater_storage::StorageError> {
        for group in self.inner.engine.groups_on_disk()? {
            if group == METADATA_GROUP {
                continue;
            }
            // The settings come with the metadata; nothing is deleted by the defaults.
            match self.inner.engine.open(group, PartitionSettings::default(), None) {
                Ok(_) => {}
                Err(error) => self.set_unusable(group, &error),
            }
        }
        Ok(())
    }

    pub(super) fn set_unusable(&self, group: GroupId, error: &ReplicaError) {
        tracing::error!(group, %error, "replica out of service");
        self.inner.unusable.lock().insert(group, OutOfService::new(error));
    }

    /// Replicas here whose topics were deleted.
    fn condemned(&self, metadata: &Metadata) -> Vec<GroupId> {
        let assigned: std::collections::BTreeSet<GroupId> = metadata
            .topics
            .values()
            .flat_map(|topic| &topic.partitions)
            .map(|partition| partition.group)
            .collect();
        let on_disk = self.inner.engine.groups_on_disk().unwrap_or_default();
        let strangers =
            on_disk.into_iter().filter(|g| *g != METADATA_GROUP && !assigned.contains(g));
        strangers
            .filter(|group| match self.inner.engine.topic_of(*group) {
                Ok(Some(topic_id)) => metadata.deleted_topic_ids.contains(&topic_id),
                // No complete replica: its creation was cut short, and it never acknowledged anything.
                Ok(None) => false,
                Err(_) => false,
            })
            .collect()
    }
}

/// What a topic's configuration means for its replicas.
fn partition_settings(config: &TopicConfig) -> PartitionSettings {
    let signed = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX);
    PartitionSettings {
        retention_ms: config.retention_ms.map(signed),
        retention_bytes: config.retention_bytes,
        segment_bytes: config.segment_bytes,
        segment_ms: Some(signed(config.segment_ms)),
    }
}
