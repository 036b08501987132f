//! Reading from the nearest replica: which one that is, and whether it still may be read.
//!
//! The leader knows who is in sync: it sends clients that say where they stand to a replica in their rack. A replica serves what it knows
//! to be committed, and asks the leader now and then whether it is still in sync; if not, or if there is no answer, clients go back.
//!
//! Owns: that choice and that question. Never: streams.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::future::join_all;
use highwater_proto::internal;

use super::describe::Wanted;
use super::door::Door;
use crate::cluster::{GroupId, NodeId};
use crate::replica::PartitionHandle;

/// Between two looks at whether a partition is read from the right replica.
pub(super) const LOOK_PAUSE: Duration = Duration::from_secs(2);
/// A replica that was not in sync at so many looks in a row is not read any more.
pub(super) const MISSES_MAX: u32 = 2;
/// How long a leader has to answer.
const ANSWER_MAX: Duration = Duration::from_secs(1);

impl Door {
    /// Where a client in `rack` should read a partition that this node leads, if not here: another node in that rack whose replica is in
    /// sync, with the address for clients of this listener. Where there are several, partitions are spread over them.
    pub(super) fn nearest(
        &self,
        handle: &PartitionHandle,
        partition: u32,
        rack: &str,
    ) -> Option<(NodeId, String)> {
        let view = self.node.view();
        let stands_there = |node: &NodeId| view.nodes.get(node).is_some_and(|it| it.rack == rack);
        if rack.is_empty() || stands_there(&self.node.id()) {
            return None;
        }
        let fit = |node: &NodeId| {
            let leaves = view.nodes.get(node).is_none_or(|it| it.is_draining);
            stands_there(node) && !leaves && self.node.is_alive(*node)
        };
        let near: Vec<NodeId> = handle.status().in_sync.into_iter().filter(fit).collect();
        let at = usize::try_from(partition).unwrap_or(0) % near.len().max(1);
        let node = *near.get(at)?;
        Some((node, self.address_of(node)?))
    }

    /// Those of these groups whose leaders say that this node's replica is in sync.
    pub(super) async fn in_sync_here(&self, groups: BTreeSet<GroupId>) -> BTreeSet<GroupId> {
        let own = self.node.id();
        let view = self.node.view();
        let mut by_leader: BTreeMap<NodeId, Vec<GroupId>> = BTreeMap::new();
        for group in groups {
            if let Some((leader, _)) = view.leaders.get(&group) {
                by_leader.entry(*leader).or_default().push(group);
            }
        }
        let asked = by_leader.into_iter().map(|(leader, group_ids)| async move {
            if leader == own {
                let led = self.own_states(group_ids.into_iter(), Wanted::Health).await;
                return led.into_iter().map(|(group, state)| (group, state.in_sync)).collect();
            }
            let Ok(address) = self.internal_address_of(leader) else { return Vec::new() };
            let request = internal::GetPartitionsRequest { group_ids, wants_ends: false };
            let answer = self.calls.get_partitions(&address, request);
            let Ok(Ok(answer)) = tokio::time::timeout(ANSWER_MAX, answer).await else {
                return Vec::new();
            };
            let states = answer.groups.into_iter();
            states.filter_map(|it| Some((it.group_id, it.partition?.in_sync))).collect()
        });
        let states = join_all(asked).await.into_iter().flatten();
        states.filter(|(_, in_sync)| in_sync.contains(&own)).map(|(group, _)| group).collect()
    }
}
