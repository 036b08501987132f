//! Redis Streams: pipelines of XADD, and XREAD by the thousand.
//!
//! Owns: its client's calls. Never: measures.

use std::sync::Arc;

use anyhow::Context;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use redis::aio::MultiplexedConnection;
use redis::streams::{StreamReadOptions, StreamReadReply};
use redis::{AsyncCommands, AsyncConnectionConfig, Client};

use super::peer::{Ack, Driver, Peer, Publisher, Values};
use super::{Server, Side};
use crate::env::spawn;

/// Records of a pipeline, and pipelines of one publisher that are under way, when there is no schedule.
const WINDOW: (usize, usize) = (250, 4);
const READ_AT_ONCE: usize = 1000;
/// How long a reader at the end waits inside the server before it asks again.
const BLOCK_MS: usize = 1000;
const FIELD: &str = "v";

struct Redis {
    client: Client,
}

pub(super) async fn connect(server: &Server, sides: &mut Vec<Box<dyn Side>>) -> anyhow::Result<()> {
    let durability = match server.setting.as_str() {
        "redis-everysec" => "in the server's memory; synced every second",
        _ => "synced",
    };
    let address = server.addresses.first().context("no address is given")?;
    let driver = Redis { client: Client::open(format!("redis://{address}/"))? };
    let _: () = redis::cmd("PING").query_async(&mut driver.connection().await?).await?;
    sides.push(Box::new(Peer::new(&server.setting, durability, &server.pids, driver)));
    Ok(())
}

impl Redis {
    /// Without the client's limit on answers: XREAD blocks for longer.
    async fn connection(&self) -> anyhow::Result<MultiplexedConnection> {
        let config = AsyncConnectionConfig::new().set_response_timeout(None);
        Ok(self.client.get_multiplexed_async_connection_with_config(&config).await?)
    }
}

#[tonic::async_trait]
impl Driver for Redis {
    async fn create(&self, stream: &str) -> anyhow::Result<()> {
        self.remove(stream).await
    }

    async fn remove(&self, stream: &str) -> anyhow::Result<()> {
        let _: i64 = self.connection().await?.del(stream).await?;
        Ok(())
    }

    async fn publisher(&self, stream: &str) -> anyhow::Result<Arc<dyn Publisher>> {
        let connection = self.connection().await?;
        let publisher = RedisPublisher { connection, stream: stream.to_owned() };
        Ok(Arc::new(publisher))
    }

    async fn read(&self, stream: &str) -> anyhow::Result<Values> {
        let state = (self.connection().await?, stream.to_owned(), "0-0".to_owned());
        Ok(futures::stream::try_unfold(state, |(mut connection, stream, last)| async move {
            let options = StreamReadOptions::default().count(READ_AT_ONCE).block(BLOCK_MS);
            let reply: Option<StreamReadReply> =
                connection.xread_options(&[&stream], &[&last], &options).await?;
            let entries = reply.unwrap_or_default().keys.into_iter().flat_map(|key| key.ids);
            let mut values = Vec::new();
            let mut next = last;
            for entry in entries {
                let value: Vec<u8> = entry.get(FIELD).context("an entry has no value")?;
                values.push(Bytes::from(value));
                next = entry.id;
            }
            Ok(Some((values, (connection, stream, next))))
        })
        .boxed())
    }

    fn window(&self) -> (usize, usize) {
        WINDOW
    }
}

struct RedisPublisher {
    connection: MultiplexedConnection,
    stream: String,
}

impl Publisher for RedisPublisher {
    fn submit(&self, values: Vec<Bytes>) -> BoxFuture<'_, anyhow::Result<Ack>> {
        let mut pipeline = redis::pipe();
        for value in &values {
            let command = pipeline.cmd("XADD").arg(&self.stream).arg("*").arg(FIELD);
            command.arg(value.as_ref()).ignore();
        }
        let mut connection = self.connection.clone();
        // A task of its own sends it now; the acknowledgement is awaited later.
        let sent = spawn(async move {
            pipeline.exec_async(&mut connection).await.context("a pipeline failed")
        });
        let ack: Ack = async move { sent.await? }.boxed();
        futures::future::ready(Ok(ack)).boxed()
    }
}
