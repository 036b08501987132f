//! Makes the replicas on this node what the metadata says.
//!
//! Owns: creating, opening, configuring and removing replicas. Never: deletes data because metadata does not mention it; only the
//! recorded deletion of a topic or removal of a replica authorises that.

use std::sync::Arc;
use std::time::Duration;

use super::metadata::Metadata;
use super::node::Node;
use super::repair::OutOfService;
use super::topic_config::TopicConfig;
use super::view::{PartitionView, TopicView};
use super::{GroupId, METADATA_GROUP};
use crate::open_files;
use crate::replica::{NewReplica, PartitionSettings, ReplicaError};

/// Pause between two looks at whether a repair has let go of a directory.
const REPAIR_PAUSE: Duration = Duration::from_millis(50);

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
        self.clear_superseded(&metadata).await;
        let node = self.clone();
        let state = Arc::clone(&metadata);
        // Opening files blocks: not on the runtime's threads.
        let serving = self.inner.deps.tasks.spawn_blocking(move || {
            let mut missing = Vec::new();
            for topic in state.topics.values() {
                for (number, partition) in (0u32..).zip(&topic.partitions) {
                    if node.inner.cancel.is_cancelled() {
                        return;
                    }
                    missing.extend(node.serve(topic, number, partition));
                }
            }
            node.create(missing);
        });
        if serving.await.is_err() {
            tracing::error!("reconciling replicas failed; this is a defect");
        }
        for group in self.condemned(&metadata) {
            tracing::info!(group, "deleting the data of a deleted topic or a removed replica");
            self.inner.leadership.forget(group);
            self.inner.unusable.lock().remove(&group);
            if let Err(error) = self.inner.engine.remove(group).await {
                tracing::warn!(group, %error, "data could not be removed; trying again at the next change");
            }
            self.inner.unusable.lock().remove(&group);
        }
    }

    /// Makes room for replicas that come in the place of older ones on this node.
    async fn clear_superseded(&self, metadata: &Metadata) {
        // Only partitions that were ever reassigned can have such.
        let partitions = metadata.topics.values().flat_map(|topic| &topic.partitions);
        for partition in partitions.filter(|partition| partition.joined_from != 0) {
            let group = partition.group;
            let Some(assigned) = partition.assigned_to(self.id()) else { continue };
            if partition.is_founding(assigned) {
                continue;
            }
            let engine = self.inner.engine.clone();
            if self.off_thread(move || engine.is_superseded(group, assigned)).await {
                self.clear(partition).await;
            } else if self.inner.engine.get(group).is_none()
                && self.inner.engine.has_nothing_of(group)
            {
                // Its directory is gone; what stood in the way of an older replica is not in the way of a new one.
                self.inner.unusable.lock().remove(&group);
            }
        }
    }

    async fn clear(&self, partition: &PartitionView) {
        let group = partition.group;
        while self.inner.repairing.lock().contains(&group) {
            tokio::time::sleep(REPAIR_PAUSE).await;
        }
        let older = self.inner.engine.replica_of(group).ok().flatten();
        let was_removed = older.is_some_and(|older| partition.removed.contains(&older));
        self.inner.leadership.forget(group);
        let outcome = if was_removed {
            self.inner.engine.remove(group).await
        } else {
            self.inner.engine.set_aside(group).await.map(|to| {
                tracing::warn!(group, to = %to.display(), "a replica is replaced; its data is set aside");
            })
        };
        match outcome {
            Ok(()) => {
                self.inner.unusable.lock().remove(&group);
            }
            Err(error) => tracing::error!(group, %error, "an older replica cannot be moved away"),
        }
    }

    /// Puts the replica of a partition that belongs here into service, with its settings. Answers the one to create if there is none.
    fn serve(
        &self,
        topic: &TopicView,
        number: u32,
        partition: &PartitionView,
    ) -> Option<NewReplica> {
        let replica = partition.assigned_to(self.id())?;
        let group = partition.group;
        let settings = partition_settings(&TopicConfig::read(&topic.config));
        if self.inner.engine.get(group).is_some() {
            self.inner.engine.configure(group, settings);
            return None;
        }
        if self.inner.unusable.lock().contains_key(&group) {
            return None;
        }
        self.open_or_missing(topic, number, partition, replica, settings).unwrap_or_else(|error| {
            self.set_unusable(group, &error);
            None
        })
    }

    /// Opens a replica that is on disk, or answers the one to create.
    fn open_or_missing(
        &self,
        topic: &TopicView,
        number: u32,
        partition: &PartitionView,
        replica: u64,
        settings: PartitionSettings,
    ) -> Result<Option<NewReplica>, ReplicaError> {
        let group = partition.group;
        let new = || NewReplica {
            group,
            replica,
            topic_id: topic.id.clone(),
            partition: number,
            // Once members may have changed, they come with a snapshot.
            voters: match partition.joined_from {
                0 => partition.replicas.iter().copied().collect(),
                _ => Default::default(),
            },
            learners: Default::default(),
            image: Default::default(),
            preferred: partition.replicas.first().is_some_and(|(_, on)| *on == self.id()),
            is_founding: partition.is_founding(replica),
            settings,
        };
        Ok(self.inner.engine.open(group, settings, None)?.is_none().then(new))
    }

    fn create(&self, missing: Vec<NewReplica>) {
        if missing.is_empty() {
            return;
        }
        open_files::check(self.inner.engine.count() + missing.len());
        for (group, error) in self.inner.engine.create_many(missing) {
            self.set_unusable(group, &error);
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
        let Some(replica) = partition.assigned_to(self.id()) else { return Ok(()) };
        let settings = partition_settings(&TopicConfig::read(&topic.config));
        match self.open_or_missing(topic, number, partition, replica, settings)? {
            None => Ok(()),
            Some(new) => self.inner.engine.create(new, None).map(drop),
        }
    }

    /// Opens every replica that is on disk, before any metadata is known: partitions serve without the metadata group.
    pub(super) fn open_all(&self) -> Result<(), highwater_storage::StorageError> {
        let groups = self.inner.engine.groups_on_disk()?;
        open_files::check(groups.len());
        let settled = self.inner.engine.settle()?;
        for group in groups {
            if group == METADATA_GROUP {
                continue;
            }
            // The settings come with the metadata; nothing is deleted by the defaults.
            match self.inner.engine.open_settled(group, PartitionSettings::default(), &settled) {
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
            .chain(self.removed_here(metadata))
            .collect()
    }

    /// Groups whose replica here was taken from the members by a committed change.
    fn removed_here(&self, metadata: &Metadata) -> Vec<GroupId> {
        let partitions = metadata.topics.values().flat_map(|topic| &topic.partitions);
        let touched = partitions.filter(|partition| !partition.removed.is_empty());
        let is_removed = |partition: &&PartitionView| {
            let here = self.inner.engine.replica_of(partition.group);
            here.ok().flatten().is_some_and(|replica| partition.removed.contains(&replica))
        };
        touched.filter(is_removed).map(|partition| partition.group).collect()
    }
}

/// What a topic's configuration means for its replicas.
fn partition_settings(config: &TopicConfig) -> PartitionSettings {
    let signed = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX);
    // In a compacted topic keys decide what goes, not age and size.
    let is_deleted = !config.compact;
    PartitionSettings {
        retention_ms: config.retention_ms.filter(|_| is_deleted).map(signed),
        retention_bytes: config.retention_bytes.filter(|_| is_deleted),
        segment_bytes: config.segment_bytes,
        segment_ms: Some(signed(config.segment_ms)),
        compact: config.compact,
        delete_retention_ms: signed(config.delete_retention_ms),
    }
}
