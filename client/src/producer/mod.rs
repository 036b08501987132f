//! Publishing: [`Producer`] takes events, [`Ticket`]s tell when they are durable.
//!
//! Owns: the public face and its settings. Never: sequences or streams (`partition`, `driver`).

mod completion;
mod driver;
mod gather;
mod partition;
mod shared;
mod stream;

use std::sync::Arc;
use std::time::Duration;

use crate::client::Client;
use crate::error::SendError;
use crate::event;
use crate::record::{Acks, Compression, Record};

pub use completion::Ticket;
use driver::Driver;
use shared::Shared;

/// The least a batch may be bounded to; less would put every record alone.
const BATCH_BYTES_MIN: usize = 1 << 10;
/// The most: what brokers accept, less room for a header.
const BATCH_BYTES_MAX: usize = highwater_proto::batch::BATCH_BYTES_MAX - (4 << 10);

/// Settings of a [`Producer`]; from [`Client::producer`].
#[derive(Clone, Debug)]
pub struct ProducerBuilder {
    client: Client,
    settings: Settings,
}

/// What a producer was told.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) topic: String,
    pub(crate) linger: Duration,
    pub(crate) batch_bytes_max: usize,
    pub(crate) unacked_bytes_max: usize,
    pub(crate) compression: Compression,
    pub(crate) acks: Acks,
    pub(crate) idempotent: bool,
    pub(crate) request_timeout: Duration,
    pub(crate) delivery_timeout: Duration,
    pub(crate) partition: Option<u32>,
    pub(crate) source: String,
}

impl ProducerBuilder {
    pub(crate) fn new(client: Client, topic: String) -> Self {
        let source = source_of(&client.shared.config.client_id);
        let settings = Settings {
            topic,
            source,
            linger: Duration::ZERO,
            batch_bytes_max: 1 << 20,
            unacked_bytes_max: 32 << 20,
            compression: Compression::None,
            acks: Acks::QuorumFsync,
            idempotent: true,
            request_timeout: Duration::from_secs(10),
            delivery_timeout: Duration::from_secs(30),
            partition: None,
        };
        Self { client, settings }
    }

    /// How long an event may wait for company. Default: zero, which sends as soon as the partition has nothing in flight; what
    /// arrives meanwhile goes together.
    pub fn linger(mut self, linger: Duration) -> Self {
        self.settings.linger = linger;
        self
    }

    /// About how large a batch may grow, in bytes before compression. Default: 1 MiB; at most 4 MiB less a little.
    pub fn batch_bytes_max(mut self, bytes: usize) -> Self {
        self.settings.batch_bytes_max = bytes.clamp(BATCH_BYTES_MIN, BATCH_BYTES_MAX);
        self
    }

    /// Bytes admitted and not yet acknowledged before `send` waits. Default: 32 MiB.
    pub fn unacked_bytes_max(mut self, bytes: usize) -> Self {
        self.settings.unacked_bytes_max = bytes;
        self
    }

    /// The codec of batches. Default: none.
    pub fn compression(mut self, compression: Compression) -> Self {
        self.settings.compression = compression;
        self
    }

    /// How durable an event must be before its ticket resolves. Default: [`Acks::QuorumFsync`].
    pub fn acks(mut self, acks: Acks) -> Self {
        self.settings.acks = acks;
        self
    }

    /// Whether the broker recognises batches that are sent twice. Default: true. Without it, a batch whose outcome is unknown
    /// is not sent again but fails, and only one batch of a partition is in flight at a time, so that order is kept.
    pub fn idempotent(mut self, idempotent: bool) -> Self {
        self.settings.idempotent = idempotent;
        self
    }

    /// How long one try of a batch may take before it is tried again. Default: 10 s.
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.settings.request_timeout = timeout;
        self
    }

    /// How long an event may take from `send` to its acknowledgement, retries included. Default: 30 s.
    pub fn delivery_timeout(mut self, timeout: Duration) -> Self {
        self.settings.delivery_timeout = timeout;
        self
    }

    /// Sends every event to this partition, whatever its key. Default: by key, else spread.
    pub fn partition(mut self, partition: u32) -> Self {
        self.settings.partition = Some(partition);
        self
    }

    /// Who publishes, as [`Producer::publish`] says it of every event (`ce_source`): a URI reference. Default: `/` and the client's id.
    pub fn source(mut self, source: impl Into<String>) -> Self {
        self.settings.source = source.into();
        self
    }

    /// The producer. It connects when it has something to send.
    pub fn build(self) -> Producer {
        let env = self.client.shared.env.clone();
        let shared = Arc::new(Shared::new(self.client, self.settings));
        env.spawn(Driver::new(shared.clone()).run());
        Producer { handle: Arc::new(Handle { shared }) }
    }
}

/// A client's id is free text, and a source is a URI reference, which must not be empty.
fn source_of(client_id: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._~/".contains(c);
    let text: String = client_id.chars().map(|c| if plain(c) { c } else { '-' }).collect();
    format!("/{text}")
}

/// Publishes events to one topic. Cheap to clone; clones share batches and the bound on unacknowledged bytes.
///
/// Events of one partition are written in the order in which `send` admitted them. Dropping the last clone sends what was
/// admitted, in the background; [`Producer::close`] waits for it.
///
/// ```no_run
/// # async fn run(client: highwater_client::Client) -> Result<(), highwater_client::SendError> {
/// let producer = client.producer("orders").build();
/// let ticket = producer.send(("customer-7", "order placed")).await?; // admitted
/// let ack = ticket.await?; // durable
/// println!("partition {} offset {}", ack.partition, ack.offset);
/// producer.close().await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Producer {
    handle: Arc<Handle>,
}

/// Held by all clones of a producer; the driver holds only `shared`.
#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl Producer {
    /// Admits an event; waits while the bytes bound is reached. The ticket resolves when it is acknowledged or has failed.
    pub async fn send(&self, record: impl Into<Record>) -> Result<Ticket, SendError> {
        let record = record.into();
        let shared = &self.handle.shared;
        shared.prepare().await?;
        let cost = shared.cost_of(&record);
        shared.reserve(cost).await?;
        shared.admit(&record, cost)
    }

    /// Admits a typed event, with an id drawn for it, the time taken, and the trace of the event that is being handled if this is called
    /// within a handler. To say these yourself, [`Producer::send`] a [`Record::of`] it.
    pub async fn publish<E: event::Event>(&self, event: &E) -> Result<Ticket, SendError> {
        let shared = &self.handle.shared;
        let env = &shared.client.shared.env;
        let mut attributes =
            event::Attributes::new(format!("{:032x}", env.unique()), &shared.settings.source);
        attributes.time_ms = Some(env.wall_ms());
        attributes.trace = event::TraceContext::current();
        let record = Record::of(event, &attributes)?;
        self.send(record).await
    }

    /// The same as [`Producer::send`], to this partition whatever the key says.
    pub async fn send_to_partition(
        &self,
        partition: u32,
        record: impl Into<Record>,
    ) -> Result<Ticket, SendError> {
        self.send(record.into().with_partition(partition)).await
    }

    /// Admits an event without waiting: [`SendError::Full`] when the bound is reached (or the topic is not known yet: the
    /// first event goes through `send`).
    pub fn try_send(&self, record: impl Into<Record>) -> Result<Ticket, SendError> {
        let record = record.into();
        let shared = &self.handle.shared;
        let cost = shared.cost_of(&record);
        shared.try_reserve(cost)?;
        shared.admit(&record, cost)
    }

    /// Waits until everything admitted so far is acknowledged or has failed. Fails with the first failure since the last
    /// flush, also of events whose tickets were dropped.
    pub async fn flush(&self) -> Result<(), SendError> {
        self.handle.shared.flush().await
    }

    /// Admits no more events and flushes.
    pub async fn close(&self) -> Result<(), SendError> {
        self.handle.shared.close();
        self.handle.shared.flush().await
    }

    /// Bytes admitted and not yet acknowledged.
    pub fn unacked_bytes(&self) -> usize {
        self.handle.shared.unacked_bytes()
    }

    /// The topic.
    pub fn topic(&self) -> &str {
        &self.handle.shared.settings.topic
    }
}
