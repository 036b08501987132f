//! RabbitMQ: quorum queues over AMQP 0.9.1 with publisher confirms, streams over their own protocol.
//!
//! Owns: the calls of the AMQP client, and which setting is which. Never: measures; `rabbitmq_stream` speaks to streams.

use std::sync::Arc;

use anyhow::{Context, bail};
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, TryStreamExt};
use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions,
    QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};

use super::peer::{Ack, Driver, Peer, Publisher, Values};
use super::rabbitmq_stream::Streams;
use super::{Server, Side};

/// Publishes of one publisher that are under way when there is no schedule.
const WINDOW: usize = 1000;
/// Kept on disk.
const PERSISTENT: u8 = 2;

struct Queues {
    address: String,
    connection: Connection,
}

/// Adds the two kinds of queue. The first address speaks AMQP, the second one the protocol of streams.
pub(super) async fn connect(server: &Server, sides: &mut Vec<Box<dyn Side>>) -> anyhow::Result<()> {
    let [amqp, stream] = server.addresses.as_slice() else {
        bail!("give two addresses: that of AMQP and that of streams");
    };
    let connection = dial(amqp).await.context("AMQP")?;
    let queues = Queues { address: amqp.clone(), connection };
    let (name, durability) = ("rabbitmq-quorum", "synced");
    sides.push(Box::new(Peer::new(name, durability, &server.pids, queues)));
    let streams = Streams::new(stream).await.context("streams")?;
    let (name, durability) = ("rabbitmq-stream", "in the server's memory; synced by the kernel");
    sides.push(Box::new(Peer::new(name, durability, &server.pids, streams)));
    Ok(())
}

async fn dial(address: &str) -> anyhow::Result<Connection> {
    let uri = format!("amqp://{address}/%2f");
    Ok(Connection::connect(&uri, ConnectionProperties::default()).await?)
}

#[tonic::async_trait]
impl Driver for Queues {
    async fn create(&self, stream: &str) -> anyhow::Result<()> {
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let channel = self.connection.create_channel().await?;
        channel.queue_declare(stream.into(), options, arguments).await?;
        Ok(())
    }

    async fn remove(&self, stream: &str) -> anyhow::Result<()> {
        let channel = self.connection.create_channel().await?;
        channel.queue_delete(stream.into(), QueueDeleteOptions::default()).await?;
        Ok(())
    }

    async fn publisher(&self, stream: &str) -> anyhow::Result<Arc<dyn Publisher>> {
        let connection = dial(&self.address).await?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let queue = stream.to_owned();
        let publisher = QueuePublisher { _connection: connection, channel, queue };
        Ok(Arc::new(publisher))
    }

    async fn read(&self, stream: &str) -> anyhow::Result<Values> {
        let connection = dial(&self.address).await?;
        let channel = connection.create_channel().await?;
        // Without acknowledgements of what was read: the fastest there is.
        let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let consumer = channel
            .basic_consume(stream.into(), "bench".into(), options, FieldTable::default())
            .await?;
        let values = consumer.map_ok(|delivery| Bytes::from(delivery.data)).ready_chunks(1024);
        // The connection lives as long as who reads from it.
        let chunks = values.map(move |chunk| {
            let _ = &connection;
            Ok(chunk.into_iter().collect::<Result<Vec<Bytes>, _>>()?)
        });
        Ok(chunks.boxed())
    }

    fn window(&self) -> (usize, usize) {
        (1, WINDOW)
    }
}

struct QueuePublisher {
    _connection: Connection,
    channel: Channel,
    queue: String,
}

impl Publisher for QueuePublisher {
    fn submit(&self, values: Vec<Bytes>) -> BoxFuture<'_, anyhow::Result<Ack>> {
        async move {
            let mut confirms = Vec::with_capacity(values.len());
            for value in values {
                let properties = BasicProperties::default().with_delivery_mode(PERSISTENT);
                let (exchange, queue) = ("".into(), self.queue.as_str().into());
                let options = BasicPublishOptions::default();
                let sent = self.channel.basic_publish(exchange, queue, options, &value, properties);
                confirms.push(sent.await?);
            }
            let ack = async move {
                for confirm in confirms {
                    match confirm.await? {
                        Confirmation::Ack(None) => {}
                        other => bail!("a publish was not confirmed: {other:?}"),
                    }
                }
                Ok(())
            };
            Ok(ack.boxed())
        }
        .boxed()
    }
}
