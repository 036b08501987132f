//! The handle that everything starts from.
//!
//! Owns: [`Client`] and what its clones share: configuration, surroundings, connections, metadata. Never: the protocols of
//! producing and consuming.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::admin::Admin;
use crate::config::{Backoff, ClientBuilder, ClientConfig};
use crate::connections::{ConnectionState, Connections};
use crate::consumer::ConsumerBuilder;
use crate::env::Env;
use crate::error::{ConnectError, Refusal, reason};
use crate::metadata::{Metadata, Order};
use crate::producer::ProducerBuilder;
use crate::registry::Registry;

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
    pub(crate) connections: Connections,
    pub(crate) metadata: Metadata,
}

impl Client {
    /// Connects to the cluster that one of these addresses belongs to: `highwater://host:port,host:port`.
    pub async fn connect(servers: &str) -> Result<Self, ConnectError> {
        Self::builder().servers(servers).connect().await
    }

    /// Connects to the addresses in the environment variable `HIGHWATER_SERVERS`, or to `127.0.0.1:7420` if it is not set. The
    /// variables `HIGHWATER_CA_FILE`, `HIGHWATER_CERT_FILE` and `HIGHWATER_KEY_FILE` name PEM files for TLS.
    pub async fn from_env() -> Result<Self, ConnectError> {
        ClientBuilder::from_env()?.connect().await
    }

    /// For more settings than addresses.
    pub fn builder() -> ClientBuilder {
        ClientBuilder::default()
    }

    pub(crate) async fn connect_with(config: ClientConfig, env: Env) -> Result<Self, ConnectError> {
        let after = config.connect_timeout;
        let deadline = env.now() + after;
        let connections = Connections::new(&config, env.clone());
        let metadata = Metadata::new(&config, env.clone());
        let shared = Shared { config, env, connections, metadata };
        let client = Self { shared: Arc::new(shared) };
        let mut attempts = BTreeMap::new();
        let reached = tokio::time::timeout_at(deadline, client.reach_any(&mut attempts)).await;
        match reached {
            Ok(Ok(())) => Ok(client),
            Ok(Err(error)) => Err(error),
            Err(_late) => {
                let attempts = attempts.into_iter().collect();
                Err(ConnectError::Unreachable { after, attempts })
            }
        }
    }

    /// Asks address after address, round after round, until one answers.
    async fn reach_any(
        &self,
        attempts: &mut BTreeMap<String, Refusal>,
    ) -> Result<(), ConnectError> {
        let Shared { config, env, connections, metadata } = &*self.shared;
        let mut backoff = Backoff::default();
        loop {
            for address in metadata.candidates(Order::Turns) {
                match metadata.meet(connections, &address).await {
                    Ok(()) => return Ok(()),
                    Err(refusal) if refusal.reason() == reason::INVALID_ARGUMENT => {
                        return Err(ConnectError::InvalidOption {
                            what: "servers",
                            value: address.to_string(),
                            why: refusal.message,
                        });
                    }
                    Err(refusal) => _ = attempts.insert(address.to_string(), refusal),
                }
            }
            tokio::time::sleep_until(backoff.failed(&config.retry, env)).await;
        }
    }

    /// Publishes to a topic.
    pub fn producer(&self, topic: impl Into<String>) -> ProducerBuilder {
        ProducerBuilder::new(self.clone(), topic.into())
    }

    /// Reads a topic.
    pub fn consumer(&self, topic: impl Into<String>) -> ConsumerBuilder {
        ConsumerBuilder::new(self.clone(), topic.into())
    }

    /// The registry of services: who is there.
    pub fn registry(&self) -> Registry {
        Registry::new(self.clone())
    }

    /// The connections there are so far, and whether calls are let through on them.
    pub fn connections(&self) -> Vec<ConnectionState> {
        self.shared.connections.states()
    }

    /// Administers the cluster.
    pub fn admin(&self) -> Admin {
        Admin::new(self.clone())
    }
}
