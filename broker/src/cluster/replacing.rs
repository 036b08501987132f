//! A replica on this node that cannot be repaired makes room for a new one, by itself.
//!
//! Owns: when that is safe to ask for, and how often; for the metadata group also the way from the old replica to the new one. Never:
//! repairs (`repair` has given up by then), or deletes; what is left of the old replica is set aside.

use std::sync::atomic::Ordering;
use std::time::Duration;

use highwater_proto::internal::{GetPartitionsRequest, JoinClusterRequest, JoinClusterResponse};

use super::metadata::Metadata;
use super::node::Node;
use super::repair::Stuck;
use super::view::PartitionView;
use super::{GroupId, METADATA_GROUP, NodeId, ReplicaId};

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
        self.check_pause(group)?;
        let number = u32::try_from(number).unwrap_or(u32::MAX);
        let asked = self.reassign_partition(&topic, number, Vec::new(), vec![self.id()]).await;
        asked.map_err(|error| error.to_string())?;
        self.note_replaced(group);
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

    fn check_pause(&self, group: GroupId) -> Result<(), String> {
        let now = self.inner.deps.clock.monotonic();
        let last = self.inner.replaced.lock().get(&group).copied();
        match last.is_some_and(|last| now.saturating_sub(last) < REPLACEMENT_PAUSE) {
            true => Err(format!(
                "it was replaced less than {} minutes ago; is the disk failing?",
                REPLACEMENT_PAUSE.as_secs() / 60
            )),
            false => Ok(()),
        }
    }

    fn note_replaced(&self, group: GroupId) {
        let now = self.inner.deps.clock.monotonic();
        self.inner.replaced.lock().insert(group, now);
    }

    /// Gets another replica of the metadata group for this node, in the place of the one here. The error says what it waits for, for
    /// people. That the others can decide on it is what makes it safe: a majority of them holds all that was committed, without the
    /// replica that is lost, and the new one has promised nothing.
    pub(super) async fn replace_metadata_here(&self) -> Result<(), String> {
        let is_decided =
            self.is_replaced(METADATA_GROUP) || self.inner.engine.has_nothing_of(METADATA_GROUP);
        if !is_decided {
            self.ask_for_metadata_replica().await?;
        }
        match self.begin_metadata_anew().await {
            Ok(()) => Ok(()),
            Err(Stuck::ForNow(why) | Stuck::ForGood(why)) => Err(why),
        }
    }

    /// Answers once the cluster has decided and this node has written down what.
    async fn ask_for_metadata_replica(&self) -> Result<(), String> {
        if !self.inner.config.replace_damaged {
            return Err("cluster.replace_damaged is off: stop the node, delete its data directory and let it join again with \
                 'broker-cli cluster add-node'"
                .to_owned());
        }
        self.check_pause(METADATA_GROUP)?;
        let lost = self.own_metadata_replica().ok_or("nothing says which replica this was")?;
        let mut own = self.inner.founder.own.clone();
        own.node_id = self.id();
        let cluster_id = self.inner.identity.lock().cluster_id.clone();
        let mut answers = Vec::new();
        for (node, address) in self.other_nodes() {
            let node_image = Some(own.clone());
            let request =
                JoinClusterRequest { node: node_image, replaces_metadata_replica_id: lost };
            match self.inner.deps.calls.join_cluster(&address, request).await {
                Ok(joined) if is_newer(&joined, &cluster_id, self.id(), lost) => {
                    return self.hold_metadata_replica(joined, lost).await;
                }
                Ok(_) => answers.push(format!(
                    "node {node} does not know how a replica of the metadata group is replaced; upgrade all nodes"
                )),
                Err(error) => answers.push(format!("node {node}: {error}")),
            }
        }
        Err(answers.join("; "))
    }

    async fn hold_metadata_replica(
        &self,
        joined: JoinClusterResponse,
        lost: ReplicaId,
    ) -> Result<(), String> {
        let new = joined.metadata_replica_id;
        let node = self.clone();
        let held = self.off_thread(move || node.inner.joined.hold(joined)).await;
        held.map_err(|error| error.to_string())?;
        self.note_replaced(METADATA_GROUP);
        tracing::warn!(
            lost,
            new,
            "a replica of the metadata group that cannot be repaired is replaced"
        );
        Ok(())
    }

    /// Sets the old replica of the metadata group aside, and puts the one into service that the node was last told of.
    pub(super) async fn begin_metadata_anew(&self) -> Result<(), Stuck> {
        let failed = |why: String| Stuck::ForNow(why);
        // Until it has caught up it knows less than the one before.
        self.inner.registered.store(false, Ordering::Release);
        if !self.inner.engine.has_nothing_of(METADATA_GROUP) {
            let to = self.inner.engine.set_aside(METADATA_GROUP).await;
            let to = to.map_err(|error| failed(error.to_string()))?;
            tracing::warn!(to = %to.display(), "the old replica of the metadata group is set aside");
        }
        let node = self.clone();
        let opened = self.off_thread(move || node.open_metadata()).await;
        opened.map_err(|error| failed(error.to_string()))?;
        self.inner.unusable.lock().remove(&METADATA_GROUP);
        Ok(())
    }

    /// The replica of the metadata group that this node was last told to have.
    fn own_metadata_replica(&self) -> Option<ReplicaId> {
        if let Some(joined) = self.inner.joined.metadata_replica() {
            return Some(joined.replica);
        }
        let founding = self.inner.founder.promises.held()?;
        let (voters, learners) = Metadata::metadata_members(&founding);
        let mut members = voters.into_iter().chain(learners);
        members.find(|(_, node)| *node == self.id()).map(|(replica, _)| replica)
    }
}

/// Whether a cluster has answered with another replica than the one that is lost.
fn is_newer(joined: &JoinClusterResponse, cluster_id: &str, node: NodeId, lost: ReplicaId) -> bool {
    joined.cluster_id == cluster_id && joined.node_id == node && joined.metadata_replica_id > lost
}
