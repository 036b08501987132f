//! Tests of services without Docker: the real broker in the test's process.
//!
//! Owns: brokers with ports and directories of their own, the faults that a test commands, and time. Never: a broker that only
//! looks like one; what runs here is what runs in production, over real sockets and real files. Only that it does not wait for the disk:
//! a test's events need not outlive a power loss.
//!
//! ```
//! use highwater_testing::Broker;
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let broker = Broker::start().await;
//! broker.create_topic("orders", 3).await;
//!
//! let producer = broker.client().await.producer("orders").build();
//! producer.send(("customer-7", "order placed")).await?.await?;
//!
//! assert_eq!(broker.records("orders").await[0].value_str(), Some("order placed"));
//! # Ok(()) }
//! ```
//!
//! What a test commands:
//!
//! - processes: [`Broker::restart`], [`Cluster::kill`], [`Cluster::move_leader`];
//! - the network between clients and a broker: [`Faults`];
//! - errors that brokers answer with: [`Cluster::refuse`];
//! - events that come twice: [`Cluster::publish_again`];
//! - time, as brokers see it: [`Cluster::advance`].
//!
//! Everything here waits with a generous deadline and panics with what is wrong: a test has no use for an error that it would
//! unwrap.

mod cluster;
mod disk;
mod env;
mod faults;
mod node;
mod ports;
mod refusals;

pub use cluster::{Broker, Cluster, ClusterBuilder};
pub use env::{soon, until};
pub use faults::Faults;
/// What a client wants of a partition.
pub use highwater_broker::Call;
/// How a broker is configured; see [`ClusterBuilder::configure`].
pub use highwater_broker::config::Config;
pub use ports::free_address;
pub use refusals::Refusal;
