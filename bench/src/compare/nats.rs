//! NATS JetStream: publishes in flight with awaited acknowledgements; reads through an ordered pull consumer.
//!
//! Owns: its client's calls. Never: measures.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::{self, stream};
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};

use super::peer::{Ack, Driver, Peer, Publisher, Values};
use super::{Server, Side};
use crate::env::Clock;

/// Publishes of one publisher that are under way when there is no schedule.
const WINDOW: usize = 1000;
/// Messages that a reader asks for at once.
const READ_AT_ONCE: usize = 10_000;
/// How long a stream with replicas may take to elect a leader.
const LEADER_PATIENCE: Duration = Duration::from_secs(10);
const LEADER_LOOK: Duration = Duration::from_millis(20);

struct Nats {
    addresses: Vec<String>,
    context: jetstream::Context,
    replicas: usize,
}

pub(super) async fn connect(server: &Server, sides: &mut Vec<Box<dyn Side>>) -> anyhow::Result<()> {
    let (replicas, durability) = match server.setting.as_str() {
        "nats-r1" => (1, "in the server's memory; synced every 2 minutes"),
        "nats-r1-always" => (1, "synced"),
        "nats-r3" => (3, "in a majority's memory; synced every 2 minutes"),
        _ => (3, "synced on a majority"),
    };
    let context = context(&server.addresses).await?;
    let driver = Nats { addresses: server.addresses.clone(), context, replicas };
    sides.push(Box::new(Peer::new(&server.setting, durability, &server.pids, driver)));
    Ok(())
}

async fn context(addresses: &[String]) -> anyhow::Result<jetstream::Context> {
    Ok(jetstream::new(async_nats::connect(addresses.to_vec()).await?))
}

impl Nats {
    /// Until the replicas of a new stream have a leader, nobody answers who publishes.
    async fn wait_for_leader(&self, stream: &str) -> anyhow::Result<()> {
        let clock = Clock::start();
        loop {
            let info = self.context.get_stream(stream).await?.get_info().await?;
            if info.cluster.is_some_and(|cluster| cluster.leader.is_some()) {
                return Ok(());
            }
            anyhow::ensure!(clock.now() < LEADER_PATIENCE, "the stream got no leader");
            tokio::time::sleep(LEADER_LOOK).await;
        }
    }
}

#[tonic::async_trait]
impl Driver for Nats {
    async fn create(&self, stream: &str) -> anyhow::Result<()> {
        let config = stream::Config {
            name: stream.to_owned(),
            subjects: vec![stream.to_owned()],
            storage: stream::StorageType::File,
            num_replicas: self.replicas,
            ..stream::Config::default()
        };
        self.context.create_stream(config).await?;
        if self.replicas > 1 {
            self.wait_for_leader(stream).await?;
        }
        Ok(())
    }

    async fn remove(&self, stream: &str) -> anyhow::Result<()> {
        self.context.delete_stream(stream).await?;
        Ok(())
    }

    async fn publisher(&self, stream: &str) -> anyhow::Result<Arc<dyn Publisher>> {
        let context = context(&self.addresses).await?;
        let publisher = NatsPublisher { context, subject: stream.to_owned() };
        Ok(Arc::new(publisher))
    }

    async fn read(&self, stream: &str) -> anyhow::Result<Values> {
        let stream = context(&self.addresses).await?.get_stream(stream).await?;
        let config = pull::Config {
            ack_policy: AckPolicy::None,
            deliver_policy: DeliverPolicy::All,
            memory_storage: true,
            num_replicas: 1,
            ..pull::Config::default()
        };
        let consumer = stream.create_consumer(config).await?;
        let messages = consumer.stream().max_messages_per_batch(READ_AT_ONCE).messages();
        let chunks = messages
            .await?
            .ready_chunks(1024)
            .map(|chunk| chunk.into_iter().map(|message| Ok(message?.message.payload)).collect());
        Ok(chunks.boxed())
    }

    fn window(&self) -> (usize, usize) {
        (1, WINDOW)
    }
}

struct NatsPublisher {
    context: jetstream::Context,
    subject: String,
}

impl Publisher for NatsPublisher {
    fn submit(&self, values: Vec<Bytes>) -> BoxFuture<'_, anyhow::Result<Ack>> {
        async move {
            let mut acks = Vec::with_capacity(values.len());
            for value in values {
                acks.push(self.context.publish(self.subject.clone(), value).await?);
            }
            let ack = async move {
                for ack in acks {
                    ack.await.context("a publish was not acknowledged")?;
                }
                Ok(())
            };
            Ok(ack.boxed())
        }
        .boxed()
    }
}
