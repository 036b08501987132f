//! The service's end of a subscription: a stream of events, or of whole batches.
//!
//! Owns: decoding, and the order in which partitions' events are given. Never: talks to brokers.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::Stream;
use highwater_proto::batch::{BatchError, BatchView, RecordView, Records};
use tokio::sync::mpsc;

use crate::consumer::queue::{Chunk, Held, Item, Order, Place, Places, Seek};
use crate::error::ConsumeError;
use crate::record::{Event, Header};
use crate::types::Start;

/// The events of a subscription: each event once, in order within each partition, across reconnects and leader changes.
///
/// An `Err` item does not end the stream; it ends when every partition has ended (see [`ConsumeError`]), and a seek revives
/// it. Dropping it ends the subscription.
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
pub struct Events {
    topic: Arc<str>,
    items: mpsc::UnboundedReceiver<Item>,
    orders: mpsc::UnboundedSender<Order>,
    places: Places,
    current: Option<Current>,
    /// Comes after what `next_batch` gave.
    trouble: Option<ConsumeError>,
}

/// The chunk that events are taken from.
#[derive(Debug)]
struct Current {
    partition: u32,
    generation: u64,
    /// The next offset to give.
    position: i64,
    next_offset: i64,
    batches: std::vec::IntoIter<Bytes>,
    records: Option<Records>,
    held: Held,
}

impl Current {
    fn new(chunk: Chunk) -> Self {
        let Chunk { partition, generation, from, next_offset, batches, held } = chunk;
        let batches = batches.into_iter();
        Self { partition, generation, position: from, next_offset, batches, records: None, held }
    }

    /// The next record that is wanted.
    fn next(&mut self) -> Result<Option<RecordView>, BatchError> {
        loop {
            let Some(records) = &mut self.records else {
                let Some(batch) = self.batches.next() else { return Ok(None) };
                self.records = Some(BatchView::parse(batch)?.records()?);
                continue;
            };
            match records.next().transpose()? {
                Some(record) if record.offset < self.position => {}
                Some(record) => {
                    self.position = record.offset + 1;
                    return Ok(Some(record));
                }
                None => self.records = None,
            }
        }
    }
}

impl Events {
    pub(crate) fn new(
        topic: Arc<str>,
        items: mpsc::UnboundedReceiver<Item>,
        orders: mpsc::UnboundedSender<Order>,
        places: Places,
    ) -> Self {
        Self { topic, items, orders, places, current: None, trouble: None }
    }

    /// The next whole batch, for speed: all events of one partition that arrived together and were not yet taken one by one.
    /// `None` when every partition has ended.
    pub async fn next_batch(&mut self) -> Option<Result<EventBatch, ConsumeError>> {
        std::future::poll_fn(|context| self.poll_next_batch(context)).await
    }

    pub(crate) fn poll_next_batch(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<EventBatch, ConsumeError>>> {
        loop {
            if let Some(trouble) = self.trouble.take() {
                return Poll::Ready(Some(Err(trouble)));
            }
            let Some(current) = &self.current else {
                match self.poll_item(context) {
                    Poll::Ready(Some(Ok(()))) => continue,
                    Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error))),
                    Poll::Ready(None) => return Poll::Ready(None),
                    Poll::Pending => return Poll::Pending,
                }
            };
            let (partition, generation) = (current.partition, current.generation);
            let encoded_bytes = usize::try_from(current.held.bytes).unwrap_or(usize::MAX);
            let mut events = Vec::new();
            while let Some(next) = self.next_of_current() {
                match next {
                    Ok(event) => events.push(event),
                    Err(error) => self.trouble = Some(error),
                }
            }
            if !events.is_empty() {
                return Poll::Ready(Some(Ok(EventBatch {
                    partition,
                    generation,
                    events,
                    encoded_bytes,
                })));
            }
        }
    }

    /// The next event of the chunk at hand; None if it is used up (and then there is none at hand any more).
    fn next_of_current(&mut self) -> Option<Result<Event, ConsumeError>> {
        let current = self.current.as_mut()?;
        let partition = current.partition;
        match current.next() {
            Ok(Some(record)) => Some(Ok(event_of(&self.topic, partition, record))),
            Ok(None) => {
                let next_offset = current.next_offset;
                self.put_down(|place| place.position = Some(next_offset));
                None
            }
            Err(source) => {
                let offset = current.position;
                self.put_down(|place| {
                    place.position = Some(offset);
                    // What follows the damage must not be given: there would be a gap.
                    place.ended = true;
                });
                let (topic, source) = (self.topic.to_string(), Arc::new(source));
                Some(Err(ConsumeError::Damaged { topic, partition, offset, source }))
            }
        }
    }

    /// Lets go of the chunk at hand.
    fn put_down(&mut self, update: impl FnOnce(&mut Place)) {
        let Some(current) = self.current.take() else { return };
        let mut places = self.places.lock();
        let place = places.get_mut(&current.partition);
        if let Some(place) = place.filter(|place| place.generation == current.generation) {
            update(place);
        }
    }

    /// Takes the next chunk in hand, or tells of trouble; None if every partition has ended.
    fn poll_item(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<(), ConsumeError>>> {
        loop {
            let item = match self.items.poll_recv(context) {
                Poll::Ready(Some(item)) => item,
                // The runtime stopped.
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => {
                    let all_ended = self.places.lock().values().all(|place| place.ended);
                    return if all_ended { Poll::Ready(None) } else { Poll::Pending };
                }
            };
            let mut places = self.places.lock();
            match item {
                Item::Chunk(chunk) => {
                    let place = places.get(&chunk.partition);
                    // What was asked for before a seek is not wanted any more.
                    if place.is_some_and(|it| it.generation == chunk.generation && !it.ended) {
                        drop(places);
                        self.current = Some(Current::new(chunk));
                        return Poll::Ready(Some(Ok(())));
                    }
                }
                Item::Trouble { partition, generation, ends, error } => {
                    let place = places.get_mut(&partition);
                    if let Some(place) = place.filter(|it| it.generation == generation && !it.ended)
                    {
                        place.ended = ends;
                        return Poll::Ready(Some(Err(error)));
                    }
                }
            }
        }
    }

    /// Offset of the next event that this stream will give of a partition; `None` if it is not known yet, or the partition is
    /// not part of the subscription.
    pub fn position(&self, partition: u32) -> Option<i64> {
        let place = self.places.lock().get(&partition).copied()?;
        self.with_current(partition, &place)
    }

    /// All known positions, by partition.
    pub fn positions(&self) -> BTreeMap<u32, i64> {
        let places = self.places.lock();
        let known = places.iter().filter_map(|(partition, place)| {
            Some((*partition, self.with_current(*partition, place)?))
        });
        known.collect()
    }

    fn with_current(&self, partition: u32, place: &Place) -> Option<i64> {
        let current = self.current.as_ref();
        let current = current.filter(|current| current.partition == partition);
        current.map_or(place.position, |current| Some(current.position))
    }

    /// First offset of a partition that was not readable yet when its broker last said something; `None` if it has not said
    /// anything yet. With [`Events::position`] it tells how far behind this reader is.
    pub fn high_watermark(&self, partition: u32) -> Option<i64> {
        self.places.lock().get(&partition)?.high_watermark
    }

    /// Partitions that have ended: their last error has been given, and nothing follows without a seek.
    pub fn ended(&self) -> Vec<u32> {
        let places = self.places.lock();
        places.iter().filter(|(_, place)| place.ended).map(|(partition, _)| *partition).collect()
    }

    /// Continues a partition somewhere else; also revives one that has ended. Events already waiting here are dropped.
    pub fn seek(&mut self, partition: u32, to: Start) -> Result<(), ConsumeError> {
        let mut places = self.places.lock();
        let Some(place) = places.get_mut(&partition) else {
            let topic = self.topic.to_string();
            return Err(ConsumeError::NoSuchPartition { topic, partition });
        };
        place.generation += 1;
        place.ended = false;
        place.position = match to {
            Start::Offset(offset) => Some(offset),
            Start::Earliest | Start::Latest | Start::Timestamp(_) => None,
        };
        let generation = place.generation;
        drop(places);
        self.current.take_if(|current| current.partition == partition);
        // The driver lives as long as this end, unless the runtime stopped; then the stream says so.
        _ = self.orders.send(Order::Seek(Seek { partition, to, generation, topic_id: None }));
        Ok(())
    }

    /// The next event, if it is at hand and of this reading of this partition.
    pub(crate) fn next_at_hand(&mut self, partition: u32, generation: u64) -> Option<Event> {
        let is_it = |it: &&Current| (it.partition, it.generation) == (partition, generation);
        if self.trouble.is_some() || self.current.as_ref().filter(is_it).is_none() {
            return None;
        }
        match self.next_of_current()? {
            Ok(event) => Some(event),
            Err(error) => {
                self.trouble = Some(error);
                None
            }
        }
    }

    /// How many seeks the partition of the last event had seen when that was asked for.
    pub(crate) fn generation_at_hand(&self) -> Option<u64> {
        self.current.as_ref().map(|current| current.generation)
    }

    /// The topic.
    pub fn topic(&self) -> &str {
        &self.topic
    }
}

impl Stream for Events {
    type Item = Result<Event, ConsumeError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if let Some(trouble) = this.trouble.take() {
            return Poll::Ready(Some(Err(trouble)));
        }
        loop {
            if let Some(event) = this.next_of_current() {
                return Poll::Ready(Some(event));
            }
            match this.poll_item(context) {
                Poll::Ready(Some(Ok(()))) => {}
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error))),
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

fn event_of(topic: &Arc<str>, partition: u32, record: RecordView) -> Event {
    let header = |(key, value): (Bytes, Option<Bytes>)| Header {
        // Brokers take text only.
        key: String::from_utf8_lossy(&key).into_owned(),
        value,
    };
    Event {
        topic: topic.clone(),
        partition,
        offset: record.offset,
        timestamp_ms: record.timestamp_ms,
        key: record.key,
        value: record.value,
        headers: record.headers.into_iter().map(header).collect(),
    }
}

/// Events of one partition that arrived together, in order. Keys and values point into the received bytes.
#[derive(Debug)]
pub struct EventBatch {
    partition: u32,
    generation: u64,
    events: Vec<Event>,
    encoded_bytes: usize,
}

impl EventBatch {
    /// The partition.
    pub fn partition(&self) -> u32 {
        self.partition
    }

    /// How many seeks the partition had seen when this was asked for.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// Number of events.
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// Whether there are none (never so for a batch that `next_batch` gave).
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// Bytes as received, compressed if they were.
    pub fn encoded_bytes(&self) -> usize {
        self.encoded_bytes
    }

    /// The events.
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// The events, taken.
    pub fn into_events(self) -> Vec<Event> {
        self.events
    }
}
