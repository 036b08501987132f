//! Highwater's client: publish events, read them, administer topics.
//!
//! Owns: the connection to a cluster, batching, retries, deduplication's client half, subscriptions. Never: knows the
//! broker's code; everything goes through the wire contract in `highwater-proto`.
//!
//! # Publish
//!
//! ```no_run
//! use highwater_client::{Client, Record};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::connect("highwater://127.0.0.1:7420").await?;
//! let producer = client.producer("orders").build();
//!
//! // Admitted: this is where a slow cluster is felt.
//! let ticket = producer.send(Record::new("order placed").with_key("customer-7")).await?;
//! // Durable: a majority of the replicas has it on disk.
//! let ack = ticket.await?;
//! println!("partition {}, offset {}", ack.partition, ack.offset);
//! # Ok(()) }
//! ```
//!
//! # Read
//!
//! ```no_run
//! use futures::StreamExt;
//! use highwater_client::{Client, Start};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::from_env().await?;
//! let mut events = client.consumer("orders").start(Start::Earliest).subscribe().await?;
//! while let Some(event) = events.next().await {
//!     let event = event?;
//!     println!("{:?} at {}", event.value_str(), event.offset);
//! }
//! # Ok(()) }
//! ```
//!
//! Services that handle typed events use [`event`] and [`worker`], which builds on all of this.
//!
//! # A whole round
//!
//! ```
//! use futures::StreamExt;
//! use highwater_client::{Client, NewTopic};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let config = highwater_broker::config::Config::in_process(dir.path());
//! # let broker = highwater_broker::Broker::start(config).await?;
//! # broker.wait_ready().await;
//! # let servers = broker.client_addr().to_string();
//! let client = Client::builder().servers(servers).client_id("billing").connect().await?;
//! client.admin().create_topic(NewTopic::new("orders").partitions(3)).await?;
//!
//! let producer = client.producer("orders").build();
//! for number in 0..10 {
//!     // Tickets may be dropped: `flush` tells of what failed.
//!     drop(producer.send((format!("customer-{number}"), "order placed")).await?);
//! }
//! producer.flush().await?;
//!
//! let mut events = client.consumer("orders").subscribe().await?;
//! for _ in 0..10 {
//!     let event = events.next().await.ok_or("ended")??;
//!     assert_eq!(event.value_str(), Some("order placed"));
//! }
//! # broker.stop().await;
//! # Ok(()) }
//! ```
//!
//! # What can be relied on
//!
//! - An event whose ticket gave an [`Ack`] with [`Acks::QuorumFsync`] is never lost, and is in the log once, however often
//!   the client had to send it (idempotent producers, the default).
//! - Events of one producer are in a partition in the order in which `send` admitted them.
//! - A subscription gives each event of a partition once and in order, across reconnects, restarts and leader changes.
//! - Every wait has a deadline; every error says whether to retry ([`SendError::is_retriable`]) and whether the event may
//!   have been written all the same ([`SendError::may_have_been_written`]).

mod admin;
mod breaker;
mod client;
mod config;
mod connections;
mod consumer;
mod env;
mod error;
pub mod event;
mod group;
mod metadata;
mod producer;
mod record;
mod refresher;
mod registry;
mod types;
pub mod worker;

pub use admin::Admin;
pub use breaker::{BreakerPolicy, BreakerState};
pub use client::Client;
pub use config::{ClientBuilder, DEFAULT_PORT, RetryPolicy, SERVERS_VARIABLE};
pub use connections::ConnectionState;
pub use consumer::{ConsumerBuilder, EventBatch, Events};
pub use error::{AdminError, ConnectError, ConsumeError, LeaderHint, Refusal, SendError, reason};
pub use group::{
    Delivery, GroupConsumerBuilder, GroupDescription, GroupEvents, GroupListing, GroupMember,
    GroupOffset, GroupPartition, GroupState, PartitionFlow,
};
pub use producer::{Producer, ProducerBuilder, Ticket};
pub use record::{Ack, Acks, Compression, Event, Header, Record};
pub use registry::{Instance, Instances, NewInstance, Registration, Registry};
/// The gRPC status codes that refusals carry.
pub use tonic::Code;
pub use types::{
    BrokerDescription, ClusterHealth, ClusterInfo, ClusterMetadata, FetchOptions, Fetched,
    NewTopic, NodeDescription, NodeState, PartitionDescription, PartitionRouting, PartitionState,
    PlannedMove, QuarantinedReplica, RebalancePlan, Start, TopicDescription, TopicListing,
    TopicOption, TopicRouting,
};
