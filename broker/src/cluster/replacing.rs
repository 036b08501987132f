//! A replica on this node that cannot be repaired makes room for a new one, by itself.
//!
//! Owns: when that is safe to ask for, and how often. Never: repairs (`repair` has given up by then), or deletes; what is left of the old
//! replica is set aside.

use std::time::Duration;

use highwater_proto::internal::GetPartitionsRequest;

use super::node::Node;
use super::view::PartitionView;
use super::{GroupId, NodeId};

/// Shortest time between two replacements of the same replica: a disk that keeps rotting must not be filled again and again.
const REPLACEMENT_PAUSE: Duration = Duration::from_secs(600);

impl Node {
    /// Asks for a new replica in the place of the one here. The error says what it waits for, for people.
    pub(super) async fn replace_here(&self, group: GroupId) -> Result<(), String> {
        if !self.inner.config.replace_damaged {
            return Err(
                "'broker-cli cluster replace-replica' puts a new one in its place".to_owned()
            );
        }
        let metadata = self.inner.metadata.borrow().clone();
        let found = metadata.topics.values().find_map(|topic| {
            let number = topic.partitions.iter().position(|partition| partition.group == group)?;
            Some((topic.name.clone(), number, topic.partitions[number].clone()))
        });
        let Some((topic, number, partition)) = found else {
            return Err("its partition is not known here".to_owned());
        };
        if !partition.target.is_empty() {
            return Err("the partition is on its way to other replicas".to_owned());
        }
        self.check_others(&partition).await?;
        let now = self.inner.deps.clock.monotonic();
        let last = self.inner.replaced.lock().get(&group).copied();
        if last.is_some_and(|last| now.saturating_sub(last) < REPLACEMENT_PAUSE) {
            return Err(format!(
                "it was replaced less than {} minutes ago; is the disk failing?",
                REPLACEMENT_PAUSE.as_secs() / 60
            ));
        }
        let number = u32::try_from(number).unwrap_or(u32::MAX);
        let asked = self.reassign_partition(&topic, number, Vec::new(), vec![self.id()]).await;
        asked.map_err(|error| error.to_string())?;
        self.inner.replaced.lock().insert(group, now);
        tracing::warn!(group, topic, number, "a replica that cannot be repaired is replaced");
        Ok(())
    }

    /// Without this replica a majority must hold everything that was committed: no change could be agreed on otherwise, and what is
    /// left here might be the last copy.
    async fn check_others(&self, partition: &PartitionView) -> Result<(), String> {
        let needed = partition.replicas.len() / 2 + 1;
        let few = |count: usize| {
            format!("{count} other replicas are in sync, and {needed} are needed to replace it")
        };
        if partition.replicas.len() <= needed {
            return Err(few(partition.replicas.len().saturating_sub(1)));
        }
        let view = self.view();
        let leader = view.leaders.get(&partition.group).map(|(node, _)| *node);
        let leader = leader.filter(|node| *node != self.id() && self.is_alive(*node));
        let leader = leader.and_then(|node| view.nodes.get(&node));
        let leader = leader.ok_or("the partition has no leader")?;
        let request = GetPartitionsRequest { group_ids: vec![partition.group], wants_ends: false };
        let answer = self.inner.deps.calls.get_partitions(&leader.internal_address, request).await;
        let answer = answer.map_err(|error| error.to_string())?;
        let led = answer.groups.into_iter().find_map(|group| group.partition);
        let in_sync: Vec<NodeId> = led.ok_or("the partition has no leader")?.in_sync;
        let others = in_sync.iter().filter(|on| **on != self.id() && self.is_alive(**on)).count();
        if others < needed { Err(few(others)) } else { Ok(()) }
    }
}
