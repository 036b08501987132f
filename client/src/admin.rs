//! Administration and one-off reads: topics, cluster, trim, fetch.
//!
//! Owns: [`Admin`], whose calls go to any node and move on to the next one where that is safe. Never: streams.
//!
//! Answers are plain structs of this crate (`crate::types`), not protobuf messages, so that the wire can grow without
//! breaking services.

use std::sync::Arc;
use std::time::Duration;

use highwater_proto::v1;
use tonic::Request;

use crate::client::Client;
use crate::config::Backoff;
use crate::connections::{Guarded, Waits, cluster_service, consumer_service, topic_service};
use crate::error::{AdminError, Refusal};
use crate::metadata::{Order, within};
use crate::record::Event;
use crate::types::{
    ClusterHealth, ClusterInfo, ClusterMetadata, FetchOptions, Fetched, NewTopic, RebalancePlan,
    Start, TopicDescription, TopicListing, TopicOption, required,
};

/// What a node may take longer than a fetch waits for records.
const FETCH_GRACE: Duration = Duration::from_secs(5);

/// Whether a call may be made again when it is not known whether it took effect.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// It only reads.
    Freely,
    /// It changes something.
    UnlessItMayHaveHappened,
}

/// Administers a cluster; from [`Client::admin`]. Cheap to clone.
///
/// ```no_run
/// # async fn run(client: highwater_client::Client) -> Result<(), highwater_client::AdminError> {
/// use highwater_client::NewTopic;
///
/// let orders = NewTopic::new("orders").partitions(6).config("retention.ms", "86400000");
/// client.admin().create_topic(orders).await?;
/// for topic in client.admin().list_topics(false).await? {
///     println!("{} has {} partitions", topic.name, topic.partitions);
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Admin {
    pub(crate) client: Client,
}

impl Admin {
    pub(crate) fn new(client: Client) -> Self {
        Self { client }
    }

    /// Creates a topic and waits until its partitions have leaders.
    pub async fn create_topic(&self, topic: NewTopic) -> Result<TopicDescription, AdminError> {
        let request = v1::TopicServiceCreateRequest {
            name: topic.name,
            partitions: topic.partitions,
            replication_factor: topic.replication_factor,
            config: topic.config.into_iter().collect(),
        };
        let answer = self
            .call(Repeat::UnlessItMayHaveHappened, request, async |channel, request| {
                topic_service(channel).create(request).await
            })
            .await?;
        Ok(required(answer.topic, "topic")?.into())
    }

    /// Sets configuration keys, and puts those in `unset` back to their defaults.
    pub async fn update_topic(
        &self,
        name: &str,
        set: impl IntoIterator<Item = (String, String)>,
        unset: impl IntoIterator<Item = String>,
    ) -> Result<TopicDescription, AdminError> {
        let request = v1::TopicServiceUpdateRequest {
            name: name.to_owned(),
            set: set.into_iter().collect(),
            unset: unset.into_iter().collect(),
            partitions: 0,
        };
        // Setting keys to the same values twice is the same as once.
        let answer = self
            .call(Repeat::Freely, request, async |channel, request| {
                topic_service(channel).update(request).await
            })
            .await?;
        Ok(required(answer.topic, "topic")?.into())
    }

    /// Gives a topic more partitions, so that it has `partitions`, and waits until they have leaders. Keys go to other partitions
    /// from then on.
    pub async fn add_partitions(
        &self,
        name: &str,
        partitions: u32,
    ) -> Result<TopicDescription, AdminError> {
        let request = v1::TopicServiceUpdateRequest {
            name: name.to_owned(),
            partitions,
            ..v1::TopicServiceUpdateRequest::default()
        };
        // The number is what it is to become, not how many to add.
        let answer = self
            .call(Repeat::Freely, request, async |channel, request| {
                topic_service(channel).update(request).await
            })
            .await?;
        Ok(required(answer.topic, "topic")?.into())
    }

    /// Deletes a topic and its data; answers with the id it had.
    pub async fn delete_topic(&self, name: &str) -> Result<String, AdminError> {
        let request = v1::TopicServiceDeleteRequest { name: name.to_owned() };
        let answer = self
            .call(Repeat::UnlessItMayHaveHappened, request, async |channel, request| {
                topic_service(channel).delete(request).await
            })
            .await?;
        Ok(answer.id)
    }

    /// Describes a topic with the state of every partition.
    pub async fn get_topic(&self, name: &str) -> Result<TopicDescription, AdminError> {
        let request = v1::TopicServiceGetRequest { name: name.to_owned() };
        let answer = self
            .call(Repeat::Freely, request, async |channel, request| {
                topic_service(channel).get(request).await
            })
            .await?;
        Ok(required(answer.topic, "topic")?.into())
    }

    /// Lists topics by name; internal ones begin with two underscores.
    pub async fn list_topics(
        &self,
        include_internal: bool,
    ) -> Result<Vec<TopicListing>, AdminError> {
        let request = v1::TopicServiceListRequest { include_internal };
        let answer = self
            .call(Repeat::Freely, request, async |channel, request| {
                topic_service(channel).list(request).await
            })
            .await?;
        Ok(answer.topics.into_iter().map(Into::into).collect())
    }

    /// Deletes the records of a partition before `to`; answers with the new first offset.
    pub async fn trim(&self, topic: &str, partition: u32, to: Start) -> Result<i64, AdminError> {
        let name = topic.to_owned();
        let request = v1::TopicServiceTrimRequest { name, partition, to: Some(to.into()) };
        // A place by offset or time stays where it is; only the end moves on between two tries.
        let repeat = match to {
            Start::Latest => Repeat::UnlessItMayHaveHappened,
            Start::Earliest | Start::Offset(_) | Start::Timestamp(_) => Repeat::Freely,
        };
        let answer = self
            .call(repeat, request, async |channel, request| {
                topic_service(channel).trim(request).await
            })
            .await?;
        Ok(answer.log_start_offset)
    }

    /// Every topic configuration key with its default and bounds.
    pub async fn topic_options(&self) -> Result<Vec<TopicOption>, AdminError> {
        let request = v1::TopicServiceListOptionsRequest {};
        let answer = self
            .call(Repeat::Freely, request, async |channel, request| {
                topic_service(channel).list_options(request).await
            })
            .await?;
        Ok(answer.options.into_iter().map(Into::into).collect())
    }

    /// Who is in the cluster.
    pub async fn cluster_info(&self) -> Result<ClusterInfo, AdminError> {
        let client = Some(self.client.shared.connections.client_info());
        let request = v1::GetClusterRequest { client };
        let answer = self
            .call(Repeat::Freely, request, async |channel, request| {
                cluster_service(channel).get_cluster(request).await
            })
            .await?;
        Ok(answer.into())
    }

    /// Whether the cluster is well, and if not, why.
    pub async fn health(&self) -> Result<ClusterHealth, AdminError> {
        let request = v1::GetHealthRequest {};
        let answer = self
            .call(Repeat::Freely, request, async |channel, request| {
                cluster_service(channel).get_health(request).await
            })
            .await?;
        Ok(answer.into())
    }

    /// Addresses and partition leaders, of these topics or (if none are named) of all.
    pub async fn metadata(&self, topics: &[&str]) -> Result<ClusterMetadata, AdminError> {
        let client = Some(self.client.shared.connections.client_info());
        let topics = topics.iter().map(|&topic| topic.to_owned()).collect();
        let request = v1::GetMetadataRequest { client, topics };
        let answer = self
            .call(Repeat::Freely, request, async |channel, request| {
                cluster_service(channel).get_metadata(request).await
            })
            .await?;
        Ok(answer.into())
    }

    /// Hands a partition's leadership to the replica on `to_node_id`, or to the most caught-up one; answers with the leader's
    /// node id.
    pub async fn transfer_leadership(
        &self,
        topic: &str,
        partition: u32,
        to_node_id: Option<u64>,
    ) -> Result<u64, AdminError> {
        let to_node_id = to_node_id.unwrap_or(0);
        let request =
            v1::TransferLeadershipRequest { topic: topic.to_owned(), partition, to_node_id };
        let answer = self
            .call(Repeat::UnlessItMayHaveHappened, request, async |channel, request| {
                cluster_service(channel).transfer_leadership(request).await
            })
            .await?;
        Ok(answer.leader)
    }

    /// Gives a partition other nodes, the preferred leader first; returns once that is decided, and it is carried out in the
    /// background. Replicas on `replace` have lost their data: new ones take their place. No nodes means those that hold one now.
    pub async fn reassign_partition(
        &self,
        topic: &str,
        partition: u32,
        node_ids: &[u64],
        replace_node_ids: &[u64],
    ) -> Result<(), AdminError> {
        let request = v1::ReassignPartitionRequest {
            topic: topic.to_owned(),
            partition,
            node_ids: node_ids.to_vec(),
            replace_node_ids: replace_node_ids.to_vec(),
        };
        self.call(Repeat::UnlessItMayHaveHappened, request, async |channel, request| {
            cluster_service(channel).reassign_partition(request).await
        })
        .await
        .map(drop)
    }

    /// Keeps a draining node after all; lets any other node come back once with an empty data directory, in which its replicas are
    /// built anew. A node that was never a member joins by itself.
    pub async fn add_node(&self, node_id: u64) -> Result<(), AdminError> {
        let request = v1::AddNodeRequest { node_id };
        // Twice would first keep a node and then open the door to another data directory.
        self.call(Repeat::UnlessItMayHaveHappened, request, async |channel, request| {
            cluster_service(channel).add_node(request).await
        })
        .await
        .map(drop)
    }

    /// Lets a node leave, alive or dead: its replicas move to other nodes first. Returns once that is decided.
    pub async fn remove_node(&self, node_id: u64) -> Result<(), AdminError> {
        let request = v1::RemoveNodeRequest { node_id };
        self.call(Repeat::Freely, request, async |channel, request| {
            cluster_service(channel).remove_node(request).await
        })
        .await
        .map(drop)
    }

    /// What would make replicas and preferred leaders even over the nodes; with `execute` it is put on its way.
    pub async fn rebalance(&self, execute: bool) -> Result<RebalancePlan, AdminError> {
        let request = v1::RebalanceRequest { execute };
        // Partitions that move already are left alone.
        let answer = self
            .call(Repeat::Freely, request, async |channel, request| {
                cluster_service(channel).rebalance(request).await
            })
            .await?;
        Ok(answer.into())
    }

    /// Reads once from a partition. Any node takes it; for more than a look, subscribe.
    pub async fn fetch(
        &self,
        topic: &str,
        partition: u32,
        options: FetchOptions,
    ) -> Result<Fetched, AdminError> {
        let wait_max = options.wait_max;
        let wait_ms_max = u32::try_from(wait_max.as_millis()).unwrap_or(u32::MAX);
        let request = v1::FetchRequest {
            topic: topic.to_owned(),
            topic_id: String::new(),
            partition,
            position: Some(options.start.into()),
            bytes_max: options.bytes_max,
            records_max: options.records_max,
            wait_ms_max,
            // The broker skips what lies before the start, which only it can resolve.
            format: v1::FetchFormat::Records.into(),
            from_replica: false,
        };
        let patience = self.client.shared.config.request_timeout;
        let patience = patience.max(wait_max + FETCH_GRACE);
        let answer = self
            .call_within(patience, Repeat::Freely, request, async move |channel, mut request| {
                request.extensions_mut().insert(Waits(wait_max));
                consumer_service(channel).fetch(request).await
            })
            .await?;
        let topic: Arc<str> = Arc::from(topic);
        let event = |record: v1::FetchedRecord| Event {
            topic: topic.clone(),
            partition,
            offset: record.offset,
            timestamp_ms: record.timestamp_ms,
            key: record.key,
            value: record.value,
            headers: record.headers.into_iter().map(Into::into).collect(),
        };
        Ok(Fetched {
            events: answer.records.into_iter().map(event).collect(),
            next_offset: answer.next_offset,
            high_watermark: answer.high_watermark,
            log_start_offset: answer.log_start_offset,
            leader_epoch: answer.leader_epoch,
        })
    }

    /// Makes a call within the client's request timeout.
    pub(crate) async fn call<Q, A>(
        &self,
        repeat: Repeat,
        request: Q,
        call: impl AsyncFn(Guarded, Request<Q>) -> Result<tonic::Response<A>, tonic::Status>,
    ) -> Result<A, AdminError>
    where
        Q: Clone,
    {
        self.call_within(self.client.shared.config.request_timeout, repeat, request, call).await
    }

    /// Makes a call on one node after the other, round after round, until one answers or `patience` is over.
    pub(crate) async fn call_within<Q, A>(
        &self,
        patience: Duration,
        repeat: Repeat,
        request: Q,
        call: impl AsyncFn(Guarded, Request<Q>) -> Result<tonic::Response<A>, tonic::Status>,
    ) -> Result<A, AdminError>
    where
        Q: Clone,
    {
        let shared = &self.client.shared;
        let deadline = shared.env.now() + patience;
        let mut backoff = Backoff::default();
        loop {
            let mut last = None;
            let candidates = shared.metadata.candidates(Order::Steady);
            let others = u32::try_from(candidates.len()).unwrap_or(u32::MAX).max(1);
            for address in candidates {
                let left = deadline.saturating_duration_since(shared.env.now());
                // A node that has stopped answering must leave time for the others, where asking again is safe.
                let share = match repeat {
                    Repeat::Freely => left / others.min(2),
                    Repeat::UnlessItMayHaveHappened => left,
                };
                let mut request = Request::new(request.clone());
                request.set_timeout(share);
                let channel = shared.connections.channel(&address).map_err(AdminError::Refused)?;
                let refusal = match within(share, call(channel, request)).await {
                    Ok(answer) => {
                        shared.metadata.note(&address, true);
                        return Ok(answer);
                    }
                    Err(refusal) => refusal,
                };
                shared.metadata.note(&address, refusal.is_an_answer());
                if !worth_repeating(&refusal, repeat) || shared.env.now() >= deadline {
                    return Err(AdminError::Refused(refusal));
                }
                last = Some(refusal);
            }
            let next = backoff.failed(&shared.config.retry, &shared.env);
            if next >= deadline {
                let refusal = last.unwrap_or_else(|| Refusal::connection("no address to ask"));
                return Err(AdminError::Refused(refusal));
            }
            tokio::time::sleep_until(next).await;
        }
    }
}

fn worth_repeating(refusal: &Refusal, repeat: Repeat) -> bool {
    refusal.is_retriable() && (repeat == Repeat::Freely || !refusal.may_have_been_written())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::reason;
    use tonic::Code;

    #[test]
    fn a_change_is_not_made_again_when_it_may_have_happened() {
        let unknown = Refusal::connection("broken");
        let certain = Refusal::local(reason::NOT_READY, Code::Unavailable, "starting");
        let never = Refusal::local(reason::TOPIC_EXISTS, Code::AlreadyExists, "there");
        assert!(worth_repeating(&unknown, Repeat::Freely));
        assert!(!worth_repeating(&unknown, Repeat::UnlessItMayHaveHappened));
        assert!(worth_repeating(&certain, Repeat::UnlessItMayHaveHappened));
        assert!(!worth_repeating(&never, Repeat::Freely));
    }

    #[test]
    fn calls_can_be_made_from_spawned_tasks() {
        fn send<T: Send>(_: impl Fn(&'static Admin) -> T) {}
        send(|admin| admin.list_topics(false));
        send(|admin| admin.fetch("t", 0, FetchOptions::default()));
    }
}
