//! Highwater's broker as a library: replicates logs with Raft and serves them.
//!
//! Layers, each naming only those to its right: `rpc -> groups -> cluster -> replica -> storage`. [`Broker`] is the whole of it as one
//! value: several can live in one process, and nothing is global.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use highwater_broker::{Broker, config::Config};
//!
//! let broker = Broker::start(Config::in_process("/tmp/highwater")).await?;
//! broker.wait_ready().await;
//! println!("clients connect to {}", broker.client_addr());
//! broker.stop().await;
//! # Ok(())
//! # }
//! ```

mod broker;
pub mod cluster;
pub mod config;
pub mod env;
pub mod error;
mod groups;
mod http;
pub mod metrics;
pub mod open_files;
pub mod replica;
mod rpc;

pub use broker::{Broker, BrokerOptions};
pub use cluster::StartError;
pub use rpc::{Call, Screen};
