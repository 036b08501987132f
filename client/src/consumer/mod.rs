//! Reading: [`ConsumerBuilder`] says what, [`Events`] is the stream.
//!
//! Owns: the public face and its settings. Never: streams to brokers (`driver`).

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;

use crate::client::Client;
use crate::error::ConsumeError;
use crate::record::Event;
use crate::types::Start;

/// Says what to read; from [`Client::consumer`]. Clones subscribe independently.
#[derive(Clone, Debug)]
pub struct ConsumerBuilder {
    client: Client,
    settings: Settings,
}

/// What a consumer was told.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) topic: String,
    pub(crate) partitions: Option<Vec<u32>>,
    pub(crate) start: Start,
    pub(crate) starts: BTreeMap<u32, Start>,
    pub(crate) credit_bytes: usize,
    pub(crate) group: Option<String>,
    pub(crate) stall_timeout: Duration,
    pub(crate) silence_max: Duration,
}

impl ConsumerBuilder {
    pub(crate) fn new(client: Client, topic: String) -> Self {
        let settings = Settings {
            topic,
            partitions: None,
            start: Start::Earliest,
            starts: BTreeMap::new(),
            credit_bytes: 8 << 20,
            group: None,
            stall_timeout: Duration::from_secs(30),
            silence_max: Duration::from_secs(15),
        };
        Self { client, settings }
    }

    /// Reads only these partitions. Default: all, also those that are added later.
    pub fn partitions(mut self, partitions: impl IntoIterator<Item = u32>) -> Self {
        self.settings.partitions = Some(partitions.into_iter().collect());
        self
    }

    /// Where to start. Default: [`Start::Earliest`]. Partitions that are added later start at their beginning.
    pub fn start(mut self, start: Start) -> Self {
        self.settings.start = start;
        self
    }

    /// Where to start in one partition; goes before [`ConsumerBuilder::start`].
    pub fn start_at(mut self, partition: u32, start: Start) -> Self {
        self.settings.starts.insert(partition, start);
        self
    }

    /// About how many bytes may wait here, read and not yet taken. Default: 8 MiB. One batch of each broker may exceed it.
    pub fn credit_bytes(mut self, bytes: usize) -> Self {
        self.settings.credit_bytes = bytes.max(1);
        self
    }

    /// Reads as a member of a consumer group. Groups come with a later version: until then `subscribe` fails with reason
    /// UNIMPLEMENTED.
    pub fn group(mut self, group: impl Into<String>) -> Self {
        self.settings.group = Some(group.into());
        self
    }

    /// How long a partition may be unreachable before the stream says so ([`ConsumeError::Stalled`]), and again after as
    /// long. It keeps trying all the while. Default: 30 s.
    pub fn stall_timeout(mut self, timeout: Duration) -> Self {
        self.settings.stall_timeout = timeout;
        self
    }

    /// How long a broker may send nothing, not even a heartbeat, before the connection is given up and made anew. Brokers
    /// send something at least every ten seconds. Default: 15 s.
    pub fn silence_max(mut self, silence: Duration) -> Self {
        self.settings.silence_max = silence;
        self
    }

    /// Begins to read. When it returns, the topic exists and, for [`Start::Latest`] and [`Start::Timestamp`], every partition's
    /// place is fixed: an event published afterwards will be read.
    pub async fn subscribe(self) -> Result<Events, ConsumeError> {
        todo!("{:?} {:?}", self.client, self.settings)
    }
}

/// The events of a subscription: each event once, in order within each partition, across reconnects and leader changes.
///
/// An `Err` item does not end the stream unless every partition has ended; see [`ConsumeError`]. Dropping it ends the
/// subscription.
///
/// ```no_run
/// # async fn run(client: highwater_client::Client) -> Result<(), highwater_client::ConsumeError> {
/// use futures::StreamExt;
/// use highwater_client::Start;
///
/// let mut events = client.consumer("orders").start(Start::Latest).subscribe().await?;
/// while let Some(event) = events.next().await {
///     let event = event?;
///     println!("{}:{} {:?}", event.partition, event.offset, event.value_str());
/// }
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Events {}

impl Events {
    /// The next whole batch, for speed: all events of one partition that arrived together and were not yet taken one by one.
    /// `None` when every partition has ended.
    pub async fn next_batch(&mut self) -> Option<Result<EventBatch, ConsumeError>> {
        todo!()
    }

    /// Offset of the next event that this stream will give of a partition; `None` if it is not known yet, or the partition is
    /// not part of the subscription.
    pub fn position(&self, partition: u32) -> Option<i64> {
        todo!("{partition}")
    }

    /// All known positions, by partition.
    pub fn positions(&self) -> BTreeMap<u32, i64> {
        todo!()
    }

    /// First offset of a partition that was not readable yet when its broker last said something.
    pub fn high_watermark(&self, partition: u32) -> Option<i64> {
        todo!("{partition}")
    }

    /// Continues a partition somewhere else; also revives one that has ended. Events already waiting here are dropped.
    pub fn seek(&mut self, partition: u32, to: Start) -> Result<(), ConsumeError> {
        todo!("{partition} {to:?}")
    }

    /// The topic.
    pub fn topic(&self) -> &Arc<str> {
        todo!()
    }
}

impl Stream for Events {
    type Item = Result<Event, ConsumeError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        todo!("{context:?}")
    }
}

/// Events of one partition that arrived together, in order. Keys and values point into the received bytes.
#[derive(Debug)]
pub struct EventBatch {}

impl EventBatch {
    /// The partition.
    pub fn partition(&self) -> u32 {
        todo!()
    }

    /// Number of events.
    pub fn len(&self) -> usize {
        todo!()
    }

    /// Whether there are none (never so for a batch that `next_batch` gave).
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes as received, compressed if they were.
    pub fn encoded_bytes(&self) -> usize {
        todo!()
    }

    /// The events.
    pub fn events(&self) -> &[Event] {
        todo!()
    }

    /// The events, taken.
    pub fn into_events(self) -> Vec<Event> {
        todo!()
    }
}
