//! `bench consume`: reads a topic from its start, batch by batch.
//!
//! Owns: counting. Never: publishes; fill the topic with `bench produce` first.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, bail};
use futures::StreamExt;
use highwater_client::{
    Client, ConsumeError, Event, EventBatch, Events, FetchOptions, GroupEvents, Start,
};

use crate::args::Load;
use crate::env::Clock;
use crate::report::Measured;

/// How long to wait for a next batch before giving up.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) async fn run(client: &Client, load: &Load) -> anyhow::Result<Measured> {
    let mut ends = ends(client, &load.topic).await?;
    let readable: i64 = ends.values().map(|(start, end)| end - start).sum();
    let records_max = load.records.unwrap_or(u64::MAX);
    if readable == 0 {
        bail!("topic '{}' is empty: fill it with 'bench produce' first", load.topic);
    }
    if load.records.is_some_and(|records| i64::try_from(records).is_ok_and(|n| n > readable)) {
        bail!("topic '{}' has only {readable} records", load.topic);
    }
    ends.retain(|_, (start, end)| start < end);
    let duration = load.duration.map_or(Duration::MAX, Duration::from_secs);
    let mut measured = Measured::default();
    let clock = Clock::start();
    let mut source = Source::open(client, load).await?;
    while !ends.is_empty() && measured.records < records_max && clock.now() < duration {
        let next = tokio::time::timeout(PATIENCE, source.next()).await;
        let read = next.context("nothing came for a while")?.context("the stream ended")??;
        measured.records += read.records;
        measured.bytes += read.bytes;
        if ends.get(&read.partition).is_some_and(|(_, end)| read.last + 1 >= *end) {
            ends.remove(&read.partition);
        }
    }
    measured.seconds = clock.now().as_secs_f64();
    Ok(measured)
}

/// What came at once, of one partition.
struct Read {
    partition: u32,
    records: u64,
    bytes: u64,
    /// Offset of the last one.
    last: i64,
}

impl Read {
    fn many(batch: &EventBatch) -> Self {
        Self {
            partition: batch.partition(),
            records: batch.len() as u64,
            bytes: batch.events().iter().map(value_bytes).sum(),
            last: batch.events().last().map_or(-1, |event| event.offset),
        }
    }

    fn one(event: &Event) -> Self {
        let bytes = value_bytes(event);
        Self { partition: event.partition, records: 1, bytes, last: event.offset }
    }
}

fn value_bytes(event: &Event) -> u64 {
    event.value.as_ref().map_or(0, |value| value.len() as u64)
}

/// The ways to read.
enum Source {
    Batches(Events),
    Each(Events),
    GroupBatches(GroupEvents),
    GroupEach(GroupEvents),
}

impl Source {
    async fn open(client: &Client, load: &Load) -> Result<Self, ConsumeError> {
        let consumer = client.consumer(&load.topic).start(Start::Earliest);
        Ok(match (&load.group, load.each) {
            (Some(group), true) => Self::GroupEach(consumer.group(group).subscribe().await?),
            (Some(group), false) => Self::GroupBatches(consumer.group(group).subscribe().await?),
            (None, true) => Self::Each(consumer.subscribe().await?),
            (None, false) => Self::Batches(consumer.subscribe().await?),
        })
    }

    async fn next(&mut self) -> Option<Result<Read, ConsumeError>> {
        Some(match self {
            Self::Batches(events) => events.next_batch().await?.map(|batch| Read::many(&batch)),
            Self::Each(events) => events.next().await?.map(|event| Read::one(&event)),
            Self::GroupBatches(events) => {
                events.next_batch().await?.map(|batch| Read::many(&batch))
            }
            Self::GroupEach(events) => events.next().await?.map(|event| Read::one(&event)),
        })
    }
}

/// First readable and first not readable offset of every partition.
async fn ends(client: &Client, topic: &str) -> anyhow::Result<BTreeMap<u32, (i64, i64)>> {
    let admin = client.admin();
    let mut ends = BTreeMap::new();
    for partition in admin.get_topic(topic).await?.partitions {
        let options = FetchOptions { start: Start::Latest, ..FetchOptions::default() };
        let fetched = admin.fetch(topic, partition.partition, options).await?;
        ends.insert(partition.partition, (fetched.log_start_offset, fetched.high_watermark));
    }
    Ok(ends)
}
