//! Changing the cluster's metadata: through the metadata group's leader, wherever that is.
//!
//! Owns: finding that leader, trying again, and waiting until this node sees the effect. Never: the commands' meaning
//! (`metadata`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use highwater_proto::internal::metadata_command::Command;
use highwater_proto::internal::{
    self, MetadataCommand, MetadataOutcome, PartitionPlacement, ProposeMetadataRequest,
};
use prost::Message;

use super::METADATA_GROUP;
use super::names::check_topic_name;
use super::node::Node;
use super::peer::PeerError;
use super::placement::{self, Loads};
use super::view::TopicView;
use crate::error::BrokerError;

/// Longest wait for the metadata group.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for the leaders of a new topic; it exists by then, whether they are there or not.
const LEADERS_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause between two tries to find the metadata group's leader.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// Producer ids leased at once.
const PRODUCER_IDS_PER_LEASE: u32 = 1_000;

impl Node {
    /// Applies a command to the metadata group, through its leader wherever that is, and waits until this node has applied it
    /// too. A refusal by the state machine becomes the matching [`BrokerError`].
    pub async fn propose_metadata(
        &self,
        command: MetadataCommand,
    ) -> Result<MetadataOutcome, BrokerError> {
        let cluster_level = self.inner.metadata.borrow().feature_level;
        check_level(&command, needed_level, cluster_level)?;
        let attempt = async {
            loop {
                match self.try_propose(&command).await {
                    Ok(outcome) => return outcome,
                    Err(error) => {
                        tracing::debug!(%error, "the metadata group does not answer; trying again");
                        tokio::time::sleep(RETRY_PAUSE).await;
                    }
                }
            }
        };
        let outcome = tokio::time::timeout(COMMAND_TIMEOUT, attempt).await.map_err(|_| {
            BrokerError::NotReady {
                why: "the metadata group has no leader; a majority of the nodes must be up".into(),
            }
        })?;
        let outcome = accepted(outcome, &command)?;
        self.wait_applied(outcome.applied_index).await?;
        Ok(outcome)
    }

    /// One try; an error is worth another.
    async fn try_propose(&self, command: &MetadataCommand) -> Result<MetadataOutcome, BrokerError> {
        let leader = self.metadata_leader();
        if leader == self.id() {
            return self.propose_metadata_here(command.clone()).await;
        }
        let view = self.view();
        let Some(node) = view.nodes.get(&leader) else {
            return Err(BrokerError::NotLeader { leader: None });
        };
        let request = ProposeMetadataRequest { command: Some(command.clone()) };
        let answer = self.inner.deps.calls.propose_metadata(&node.internal_address, request).await;
        match answer {
            Ok(answer) => Ok(answer.outcome.unwrap_or_default()),
            Err(error @ (PeerError::Unreachable { .. } | PeerError::Refused { .. })) => {
                Err(BrokerError::NotReady { why: error.to_string() })
            }
        }
    }

    /// The same on this node only: `NotLeader` unless it leads the metadata group. What NodeService.ProposeMetadata calls. The
    /// outcome may be a refusal by the state machine.
    pub async fn propose_metadata_here(
        &self,
        command: MetadataCommand,
    ) -> Result<MetadataOutcome, BrokerError> {
        let Some(replica) = self.replica(METADATA_GROUP) else {
            return Err(BrokerError::NotReady { why: self.inner.waiting.lock().clone() });
        };
        let outcome = replica.command(command.encode_to_vec().into()).await?;
        MetadataOutcome::decode(outcome).map_err(|error| BrokerError::Internal(error.to_string()))
    }

    async fn wait_applied(&self, index: u64) -> Result<(), BrokerError> {
        let mut view = self.inner.metadata.subscribe();
        let applied = view.wait_for(|metadata| metadata.applied_index >= index);
        // What it answers with locks the metadata, for as long as it lives: it must be gone before they are read again, since a
        // change that waits to be published keeps new readers out.
        let is_applied =
            tokio::time::timeout(COMMAND_TIMEOUT, applied).await.is_ok_and(|seen| seen.is_ok());
        match is_applied {
            true => {
                self.refresh_view();
                Ok(())
            }
            false => Err(BrokerError::NotReady {
                why: "the change was made, but this node is behind and does not see it yet".into(),
            }),
        }
    }

    /// Creates a topic: checks name and limits, places replicas, proposes, waits until the partitions have leaders.
    /// `replication_factor` 0 means the default. The configuration has been checked by the caller.
    pub async fn create_topic(
        &self,
        name: &str,
        partitions: u32,
        replication_factor: u32,
        config: BTreeMap<String, String>,
    ) -> Result<Arc<TopicView>, BrokerError> {
        check_topic_name(name)?;
        let view = self.member_view()?;
        if view.topics.contains_key(name) {
            return Err(BrokerError::TopicExists { topic: name.to_owned() });
        }
        let partitions = partitions.max(1);
        self.check_limits(partitions)?;
        let metadata = self.inner.metadata.borrow().clone();
        let nodes = self.placeable(&metadata);
        let staying = nodes.racks.len();
        let replication_factor = match usize::try_from(replication_factor).unwrap_or(usize::MAX) {
            0 => {
                let default = self.inner.config.default_replication_factor;
                usize::try_from(default).unwrap_or(1).clamp(1, staying)
            }
            asked if asked <= staying => asked,
            asked => {
                return Err(BrokerError::InvalidArgument {
                    field: "replication_factor".into(),
                    why: format!(
                        "{asked} replicas need as many nodes; the cluster has {staying} that stay"
                    ),
                });
            }
        };
        let loads = Loads::new(&nodes, view.topics.values().map(|topic| &**topic));
        let placed = placement::place(&nodes, loads, partitions, replication_factor);
        let create = internal::CreateTopic {
            name: name.to_owned(),
            id: uuid::Uuid::new_v4().to_string(),
            placements: placed.into_iter().map(|nodes| PartitionPlacement { nodes }).collect(),
            config,
        };
        self.propose_metadata(command(Command::CreateTopic(create))).await?;
        self.wait_for_leaders(name).await
    }

    /// Gives a topic more partitions, so that it has `partitions`, and waits until they have leaders. Nothing that is there moves; keys
    /// go to other partitions than before.
    pub async fn add_partitions(
        &self,
        name: &str,
        partitions: u32,
    ) -> Result<Arc<TopicView>, BrokerError> {
        let view = self.member_view()?;
        let Some(topic) = view.topics.get(name) else { return Err(self.unknown_topic(name)) };
        let has = u32::try_from(topic.partitions.len()).unwrap_or(u32::MAX);
        let more = check_partitions(topic, partitions)?;
        if more == 0 {
            return Ok(Arc::clone(topic));
        }
        self.check_partitions_limit(more)?;
        let metadata = self.inner.metadata.borrow().clone();
        let nodes = self.placeable(&metadata);
        let has_replicas = topic.partitions.iter().map(|partition| partition.destined().count());
        let replicas = has_replicas.max().unwrap_or(1).clamp(1, nodes.racks.len());
        let loads = Loads::new(&nodes, view.topics.values().map(|topic| &**topic));
        let placed = placement::place(&nodes, loads, more, replicas);
        let add = internal::AddPartitions {
            name: name.to_owned(),
            id: topic.id.clone(),
            partitions: has,
            placements: placed.into_iter().map(|nodes| PartitionPlacement { nodes }).collect(),
        };
        self.propose_metadata(command(Command::AddPartitions(add))).await?;
        self.wait_for_leaders(name).await
    }

    fn check_limits(&self, partitions: u32) -> Result<(), BrokerError> {
        let limit = self.inner.config.topics_max;
        let topics = self.inner.metadata.borrow().topics.len();
        if topics >= usize::try_from(limit).unwrap_or(usize::MAX) {
            let what = "number of topics (limits.topics)";
            return Err(BrokerError::Overloaded { what, limit: limit.to_string() });
        }
        self.check_partitions_limit(partitions)
    }

    fn check_partitions_limit(&self, more: u32) -> Result<(), BrokerError> {
        let limit = self.inner.config.partitions_max;
        let total = self.inner.metadata.borrow().partitions() as u64 + u64::from(more);
        if total > u64::from(limit) {
            let what = "number of partitions (limits.partitions)";
            return Err(BrokerError::Overloaded { what, limit: limit.to_string() });
        }
        Ok(())
    }

    async fn wait_for_leaders(&self, name: &str) -> Result<Arc<TopicView>, BrokerError> {
        let mut view = self.watch_view();
        let led = view.wait_for(|view| {
            view.topics.get(name).is_some_and(|topic| {
                topic.partitions.iter().all(|p| view.leaders.contains_key(&p.group))
            })
        });
        // The topic exists even if its leaders take longer; clients try again.
        let _ = tokio::time::timeout(LEADERS_TIMEOUT, led).await;
        let topic = self.view().topics.get(name).cloned();
        topic.ok_or_else(|| BrokerError::UnknownTopic { topic: name.to_owned() })
    }

    /// A producer id that no one else has.
    pub async fn allocate_producer_id(&self) -> Result<i64, BrokerError> {
        let mut left = self.inner.producer_ids.lock().await;
        if left.0 >= left.1 {
            let count = PRODUCER_IDS_PER_LEASE;
            let lease = internal::LeaseProducerIds { node_id: self.id(), count };
            let outcome = self.propose_metadata(command(Command::LeaseProducerIds(lease))).await?;
            *left = (outcome.first_producer_id, outcome.first_producer_id + i64::from(count));
        }
        left.0 += 1;
        Ok(left.0 - 1)
    }
}

/// How many partitions a topic lacks; an error if it has more than that.
pub(crate) fn check_partitions(topic: &TopicView, wanted: u32) -> Result<u32, BrokerError> {
    let has = u32::try_from(topic.partitions.len()).unwrap_or(u32::MAX);
    wanted.checked_sub(has).ok_or_else(|| BrokerError::InvalidArgument {
        field: "partitions".into(),
        why: format!(
            "topic '{}' has {has}; partitions can be added, not taken away: their records would be lost",
            topic.name
        ),
    })
}

/// The feature level of the cluster from which on a command may be proposed: then all nodes understand it. A new command, or a new
/// field that a state machine must not overlook, comes with the next level.
fn needed_level(command: &Command) -> u32 {
    match command {
        Command::CreateTopic(_)
        | Command::UpdateTopic(_)
        | Command::DeleteTopic(_)
        | Command::NodeStarted(_)
        | Command::LeaseProducerIds(_)
        | Command::ReassignPartition(_)
        | Command::FinishReassignment(_)
        | Command::JoinNode(_)
        | Command::AdmitNode(_)
        | Command::DrainNode(_)
        | Command::RetireNode(_)
        | Command::AddPartitions(_)
        | Command::RaiseFeatureLevel(_) => 1,
        Command::GrantLease(_) | Command::EndLeases(_) => 2,
        Command::ReplaceMetadataReplica(_) => 3,
    }
}

/// `cluster` is 0 while this node knows nothing of its cluster; what a node says then is of the first level.
fn check_level(
    command: &MetadataCommand,
    needed: fn(&Command) -> u32,
    cluster: u32,
) -> Result<(), BrokerError> {
    let cluster = cluster.max(1);
    let needed = command.command.as_ref().map_or(0, needed);
    match needed > cluster {
        true => Err(BrokerError::NotReady {
            why: format!(
                "this needs feature level {needed}, and the cluster is at {cluster} until every node runs a version that understands it"
            ),
        }),
        false => Ok(()),
    }
}

/// A command in the encoding of this version.
pub(crate) fn command(command: Command) -> MetadataCommand {
    MetadataCommand { version: 1, command: Some(command) }
}

/// Turns a refusal by the state machine into the error that clients know.
fn accepted(
    outcome: MetadataOutcome,
    command: &MetadataCommand,
) -> Result<MetadataOutcome, BrokerError> {
    let topic = match &command.command {
        Some(Command::CreateTopic(create)) => create.name.clone(),
        Some(Command::UpdateTopic(update)) => update.name.clone(),
        Some(Command::DeleteTopic(delete)) => delete.name.clone(),
        Some(Command::AddPartitions(add)) => add.name.clone(),
        _ => String::new(),
    };
    match outcome.reason.as_str() {
        "" => Ok(outcome),
        "TOPIC_EXISTS" => Err(BrokerError::TopicExists { topic }),
        "UNKNOWN_TOPIC" => Err(BrokerError::UnknownTopic { topic }),
        "REGISTRY_FULL" => Err(BrokerError::Overloaded {
            what: "the registry of services",
            limit: outcome.message,
        }),
        _ => Err(BrokerError::InvalidArgument {
            field: outcome.reason.to_lowercase(),
            why: outcome.message,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_waits_for_the_level_that_all_nodes_understand() {
        let raise = internal::RaiseFeatureLevel::default();
        let command = command(Command::RaiseFeatureLevel(raise));
        // Before a node knows its cluster, what it says is of the first level.
        for cluster in [0, 1, 2] {
            check_level(&command, needed_level, cluster).unwrap();
        }
        let why = check_level(&command, |_| 2, 1).unwrap_err().to_string();
        assert!(why.contains("feature level 2"), "{why}");
        check_level(&command, |_| 2, 2).unwrap();
    }

    #[test]
    fn services_are_announced_from_level_two_on() {
        let grant = command(Command::GrantLease(internal::GrantLease::default()));
        let end = command(Command::EndLeases(internal::EndLeases::default()));
        for command in [grant, end] {
            let why = check_level(&command, needed_level, 1).unwrap_err();
            assert!(why.is_retriable() && why.to_string().contains("feature level 2"), "{why}");
            check_level(&command, needed_level, 2).unwrap();
        }
    }
}
