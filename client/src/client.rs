//! The handle that everything starts from.
//!
//! Owns: [`Client`] and what its clones share: configuration, surroundings, connections, metadata. Never: the protocols of
//! producing and consuming.

use std::sync::Arc;

use crate::admin::Admin;
use crate::config::{ClientBuilder, ClientConfig, SERVERS_VARIABLE};
use crate::consumer::ConsumerBuilder;
use crate::env::Env;
use crate::error::ConnectError;
use crate::producer::ProducerBuilder;

/// A connection to a cluster: cheap to clone, `Send + Sync`, shared by any number of producers and consumers.
///
/// ```no_run
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// let client = highwater_client::Client::connect("highwater://h1:7420,h2:7420").await?;
/// let producer = client.producer("orders").build();
/// producer.send("hello").await?.await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Client {
    pub(crate) shared: Arc<Shared>,
}

/// What the clones of a client share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: ClientConfig,
    pub(crate) env: Env,
}

impl Client {
    /// Connects to the cluster that one of these addresses belongs to: `highwater://host:port,host:port`.
    pub async fn connect(servers: &str) -> Result<Self, ConnectError> {
        Self::builder().servers(servers).connect().await
    }

    /// Connects to the addresses in the environment variable `HIGHWATER_SERVERS`, or to `127.0.0.1:7420` if it is not set.
    pub async fn from_env() -> Result<Self, ConnectError> {
        match std::env::var(SERVERS_VARIABLE) {
            Ok(servers) => Self::connect(&servers).await,
            Err(_unset) => Self::builder().connect().await,
        }
    }

    /// For more settings than addresses.
    pub fn builder() -> ClientBuilder {
        ClientBuilder::default()
    }

    pub(crate) async fn connect_with(config: ClientConfig, env: Env) -> Result<Self, ConnectError> {
        Ok(Self { shared: Arc::new(Shared { config, env }) })
    }

    /// Publishes to a topic.
    pub fn producer(&self, topic: impl Into<String>) -> ProducerBuilder {
        ProducerBuilder::new(self.clone(), topic.into())
    }

    /// Reads a topic.
    pub fn consumer(&self, topic: impl Into<String>) -> ConsumerBuilder {
        ConsumerBuilder::new(self.clone(), topic.into())
    }

    /// Administers the cluster.
    pub fn admin(&self) -> Admin {
        Admin::new(self.clone())
    }
}
