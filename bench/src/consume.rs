//! `bench consume`: reads a topic from its start, batch by batch.
//!
//! Owns: counting. Never: publishes; fill the topic with `bench produce` first.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, bail};
use highwater_client::{Client, FetchOptions, Start};

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
    let mut events = client.consumer(&load.topic).start(Start::Earliest).subscribe().await?;
    while !ends.is_empty() && measured.records < records_max && clock.now() < duration {
        let next = tokio::time::timeout(PATIENCE, events.next_batch()).await;
        let batch = next.context("nothing came for a while")?.context("the stream ended")??;
        measured.records += batch.len() as u64;
        for event in batch.events() {
            measured.bytes += event.value.as_ref().map_or(0, |value| value.len() as u64);
        }
        let last = batch.events().last().map_or(-1, |event| event.offset);
        if ends.get(&batch.partition()).is_some_and(|(_, end)| last + 1 >= *end) {
            ends.remove(&batch.partition());
        }
    }
    measured.seconds = clock.now().as_secs_f64();
    Ok(measured)
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
