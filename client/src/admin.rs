//! Administration and one-off reads: topics, cluster, trim, fetch.
//!
//! Owns: [`Admin`], whose calls go to any node and move on to the next one where that is safe. Never: streams.
//!
//! Answers are plain structs of this crate (`crate::types`), not protobuf messages, so that the wire can grow without
//! breaking services.

use crate::client::Client;
use crate::error::AdminError;
use crate::types::{
    ClusterHealth, ClusterInfo, ClusterMetadata, FetchOptions, Fetched, NewTopic, Start,
    TopicDescription, TopicListing, TopicOption,
};

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
    client: Client,
}

impl Admin {
    pub(crate) fn new(client: Client) -> Self {
        Self { client }
    }

    /// Creates a topic and waits until its partitions have leaders.
    pub async fn create_topic(&self, topic: NewTopic) -> Result<TopicDescription, AdminError> {
        todo!("{:?} {topic:?}", self.client)
    }

    /// Sets configuration keys, and puts those in `unset` back to their defaults.
    pub async fn update_topic(
        &self,
        name: &str,
        set: impl IntoIterator<Item = (String, String)>,
        unset: impl IntoIterator<Item = String>,
    ) -> Result<TopicDescription, AdminError> {
        todo!("{name} {} {}", set.into_iter().count(), unset.into_iter().count())
    }

    /// Deletes a topic and its data; answers with the id it had.
    pub async fn delete_topic(&self, name: &str) -> Result<String, AdminError> {
        todo!("{name}")
    }

    /// Describes a topic with the state of every partition.
    pub async fn get_topic(&self, name: &str) -> Result<TopicDescription, AdminError> {
        todo!("{name}")
    }

    /// Lists topics by name; internal ones begin with two underscores.
    pub async fn list_topics(
        &self,
        include_internal: bool,
    ) -> Result<Vec<TopicListing>, AdminError> {
        todo!("{include_internal}")
    }

    /// Deletes the records of a partition before `to`; answers with the new first offset.
    pub async fn trim(&self, topic: &str, partition: u32, to: Start) -> Result<i64, AdminError> {
        todo!("{topic} {partition} {to:?}")
    }

    /// Every topic configuration key with its default and bounds.
    pub async fn topic_options(&self) -> Result<Vec<TopicOption>, AdminError> {
        todo!()
    }

    /// Who is in the cluster.
    pub async fn cluster_info(&self) -> Result<ClusterInfo, AdminError> {
        todo!()
    }

    /// Whether the cluster is well, and if not, why.
    pub async fn health(&self) -> Result<ClusterHealth, AdminError> {
        todo!()
    }

    /// Addresses and partition leaders, of these topics or (if none are named) of all.
    pub async fn metadata(&self, topics: &[&str]) -> Result<ClusterMetadata, AdminError> {
        todo!("{topics:?}")
    }

    /// Hands a partition's leadership to the replica on `to_node_id`, or to the most caught-up one; answers with the leader's
    /// node id.
    pub async fn transfer_leadership(
        &self,
        topic: &str,
        partition: u32,
        to_node_id: Option<u64>,
    ) -> Result<u64, AdminError> {
        todo!("{topic} {partition} {to_node_id:?}")
    }

    /// Reads once from a partition.
    pub async fn fetch(
        &self,
        topic: &str,
        partition: u32,
        options: FetchOptions,
    ) -> Result<Fetched, AdminError> {
        todo!("{topic} {partition} {options:?}")
    }
}
