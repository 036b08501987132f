//! `bench e2e`: publishes by a schedule with a reader beside, and measures from when an event was due until it was read.
//!
//! Owns: matching what was read to when it was due (the value begins with that time). Never: two clocks; both ends are in
//! this process.

use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use futures::{Stream, StreamExt};
use highwater_client::{Client, Start};

use crate::args::Load;
use crate::env::{Clock, spawn};
use crate::latency::Latencies;
use crate::payload::{Payloads, stamp_of};
use crate::produce::{self, Produced};
use crate::report::Measured;

/// The rate when none is given.
const RATE: u64 = 2_000;
/// How long the last records may take to arrive after their acknowledgement.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) async fn run(client: &Client, load: &Load) -> anyhow::Result<Measured> {
    let payloads = Payloads::new(load.seed, load.record_bytes as usize);
    let clock = Clock::start();
    let events = client.consumer(&load.topic).start(Start::Latest).subscribe().await?;
    let (enough, told) = tokio::sync::watch::channel(None);
    let values = events.map(|event| Ok(event?.value));
    let reader = spawn(read_stamped(values, clock, told));
    let rate = Some(load.rate.unwrap_or(RATE));
    let tasks = produce::start(client, load, rate, &payloads, Some(clock)).await?;
    let mut all = Produced::new();
    for task in tasks {
        produce::merge(&mut all, task.await?);
    }
    // The reader stops when it has seen as many as were acknowledged.
    enough.send_replace(Some(all.acknowledged));
    let read = tokio::time::timeout(PATIENCE, reader).await;
    let read = read.context("acknowledged records did not arrive")??;
    let mut measured = produce::measured(&all, load);
    measured.end_to_end = read?.percentiles();
    Ok(measured)
}

/// Reads until it has seen as many stamped records as `enough` says, once it says so. What arrives together is taken in together.
pub(crate) async fn read_stamped<T: IntoIterator<Item = Bytes>>(
    values: impl Stream<Item = anyhow::Result<T>>,
    clock: Clock,
    mut enough: tokio::sync::watch::Receiver<Option<u64>>,
) -> anyhow::Result<Latencies> {
    let mut values = std::pin::pin!(values);
    let mut latencies = Latencies::new();
    let mut seen = 0;
    loop {
        if enough.borrow_and_update().is_some_and(|enough| seen >= enough) {
            return Ok(latencies);
        }
        let arrived = tokio::select! {
            arrived = values.next() => arrived.context("the stream ended")??,
            Ok(()) = enough.changed() => continue,
        };
        let now_ns = clock.now_ns();
        // Zero marks the first record of each producer, which does not count.
        let stamps = arrived.into_iter().filter_map(|value| stamp_of(&value));
        for due_ns in stamps.filter(|due_ns| *due_ns > 0) {
            latencies.record(Duration::from_nanos(now_ns.saturating_sub(due_ns)));
            seen += 1;
        }
    }
}
