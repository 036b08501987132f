//! Keeps the load of the nodes even: replicas when an operator asks for it, leaders by itself.
//!
//! Owns: what is proposed of a plan, and the pace at which leaderships go back to where they belong. Never: makes the plan
//! (`placement` does) or carries it out (`mover` does, a few partitions at a time).

use std::time::Duration;

use super::node::Node;
use super::placement::{self, Loads};
use super::{GroupId, NodeId};
use crate::error::BrokerError;

/// Pause between two leaderships that are handed back: elections and clients' redirects should not come all at once.
const HAND_BACK_PAUSE: Duration = Duration::from_millis(100);
/// Moves of a plan that one call puts on their way; another call goes on from there.
const STARTED_MAX: usize = 1_000;

/// A partition whose nodes change by a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedMove {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: u32,
    /// Its nodes now, the preferred leader first.
    pub from: Vec<NodeId>,
    /// Its nodes by the plan.
    pub to: Vec<NodeId>,
}

/// A partition as a plan knows it.
#[derive(Clone)]
struct Place {
    topic: String,
    partition: u32,
    group: GroupId,
    reassignments: u64,
}

impl Node {
    /// What would make replicas and preferred leaders even; with `execute` it is put on its way. Answers the plan and how many of
    /// its moves were started. Partitions that move already are left alone.
    pub async fn rebalance(&self, execute: bool) -> Result<(Vec<PlannedMove>, usize), BrokerError> {
        self.member_view()?;
        let metadata = self.inner.metadata.borrow().clone();
        let nodes = self.placeable(&metadata);
        let loads = Loads::new(&nodes, metadata.topics.values().map(|topic| &**topic));
        let mut partitions = Vec::new();
        for topic in metadata.topics.values() {
            for (number, partition) in (0u32..).zip(&topic.partitions) {
                if partition.target.is_empty() {
                    let place = Place {
                        topic: topic.name.clone(),
                        partition: number,
                        group: partition.group,
                        reassignments: partition.reassignments,
                    };
                    partitions.push((place, partition.destined().collect()));
                }
            }
        }
        // With many partitions it takes a while.
        let plan = self.off_thread(move || placement::even_out(&nodes, loads, partitions)).await;
        let mut started = 0;
        for one in plan.iter().take(if execute { STARTED_MAX } else { 0 }) {
            let Place { group, reassignments, .. } = one.partition;
            started += usize::from(self.send_to(group, reassignments, one.to.clone()).await?);
        }
        let shown = plan.into_iter().map(|one| PlannedMove {
            topic: one.partition.topic,
            partition: one.partition.partition,
            from: one.from,
            to: one.to,
        });
        Ok((shown.collect(), started))
    }

    /// Runs until the node stops: hands partitions that this node leads and should not to their preferred leaders.
    pub(super) async fn leader_balance_loop(self) {
        let pause = match self.inner.config.leader_balance_ms {
            0 => return,
            ms => Duration::from_millis(ms),
        };
        loop {
            tokio::select! {
                () = self.inner.cancel.cancelled() => return,
                () = tokio::time::sleep(pause) => self.hand_back_leaderships().await,
            }
        }
    }

    async fn hand_back_leaderships(&self) {
        let metadata = self.inner.metadata.borrow().clone();
        for partition in metadata.topics.values().flat_map(|topic| &topic.partitions) {
            let Some((_, preferred)) = partition.replicas.first() else { continue };
            let is_elsewhere = *preferred != self.id() && partition.target.is_empty();
            let stays = metadata.nodes.get(preferred).is_some_and(|node| !node.is_draining);
            if !is_elsewhere || !stays || !self.is_alive(*preferred) {
                continue;
            }
            let Some(replica) = self.inner.engine.get(partition.group) else { continue };
            if !replica.is_leader() || !replica.status().in_sync.contains(preferred) {
                continue;
            }
            if let Err(error) = replica.transfer_leadership(*preferred).await {
                tracing::debug!(group = partition.group, %error, "a leadership was not handed back");
            }
            tokio::select! {
                () = self.inner.cancel.cancelled() => return,
                () = tokio::time::sleep(HAND_BACK_PAUSE) => {}
            }
        }
    }
}
