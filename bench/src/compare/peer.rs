//! Other brokers under the load: what a driver offers, and the same measurements as Highwater's over it.
//!
//! Owns: windows, schedules, counting. Never: one broker's protocol.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{BoxStream, FuturesUnordered};
use futures::{FutureExt, StreamExt};
use tokio::sync::mpsc;

use super::{Side, Workload};
use crate::end_to_end::read_stamped;
use crate::env::{Clock, spawn, spawn_punctual};
use crate::latency::Latencies;
use crate::pace::Share;
use crate::payload::Payloads;
use crate::report::Measured;

/// How long records that were acknowledged may take to arrive, and acknowledgements after the last record.
const PATIENCE: Duration = Duration::from_secs(30);
/// Payloads are the same as Highwater's.
const SEED: u64 = 1;

/// Ends when all that was handed over is acknowledged.
pub(super) type Ack = BoxFuture<'static, anyhow::Result<()>>;
/// What is read, as it comes.
pub(super) type Values = BoxStream<'static, anyhow::Result<Vec<Bytes>>>;

/// A driver.
#[tonic::async_trait]
pub(super) trait Driver: Send + Sync {
    /// Creates a stream that is empty.
    async fn create(&self, stream: &str) -> anyhow::Result<()>;
    async fn remove(&self, stream: &str) -> anyhow::Result<()>;
    /// A publisher with a connection of its own.
    async fn publisher(&self, stream: &str) -> anyhow::Result<Arc<dyn Publisher>>;
    /// Reads from the start, and waits for more at the end.
    async fn read(&self, stream: &str) -> anyhow::Result<Values>;
    /// Without a schedule: records that are handed over at once, and how many such batches are under way.
    fn window(&self) -> (usize, usize);
}

/// Hands records over.
pub(super) trait Publisher: Send + Sync {
    fn submit(&self, values: Vec<Bytes>) -> BoxFuture<'_, anyhow::Result<Ack>>;
}

/// A broker with its setting.
pub(super) struct Peer<D> {
    pub(super) name: String,
    pub(super) durability: &'static str,
    pub(super) pids: Vec<u32>,
    pub(super) driver: D,
    streams: AtomicU64,
}

impl<D: Driver> Peer<D> {
    pub(super) fn new(name: &str, durability: &'static str, pids: &[u32], driver: D) -> Self {
        let streams = AtomicU64::new(0);
        Self { name: name.to_owned(), durability, pids: pids.to_vec(), driver, streams }
    }

    async fn measure(
        &self,
        workload: &Workload,
        time: Duration,
        stream: &str,
    ) -> anyhow::Result<Measured> {
        let clock = Clock::start();
        let latency = workload.rate.is_some();
        let (enough, told) = tokio::sync::watch::channel(None);
        let reader = if latency {
            let values = self.driver.read(stream).await?;
            Some(spawn(read_stamped(values, clock, told)))
        } else {
            None
        };
        let payloads = Payloads::new(SEED, workload.record_bytes as usize);
        let mut senders = Vec::new();
        for index in 0..u64::from(workload.producers) {
            let publisher = self.driver.publisher(stream).await?;
            let place = usize::try_from(index)?;
            let mut payloads = payloads.for_producer(place, workload.producers as usize);
            // The first record does not count, as with Highwater: connections are made, buffers grown.
            publisher.submit(vec![payloads.next_stamped(0)]).await?.await?;
            let share = Share {
                index,
                producers: u64::from(workload.producers),
                rate: workload.rate,
                records: None,
                duration: Some(time),
            };
            senders.push((publisher, payloads, share));
        }
        let begin = clock.now();
        let (batch, window) = self.driver.window();
        let tasks: Vec<_> = senders
            .into_iter()
            .map(|(publisher, payloads, share)| {
                let sender = Sender { publisher, payloads, share, clock, begin };
                if latency {
                    spawn(sender.send_by_schedule())
                } else {
                    spawn(sender.send_freely(batch, window))
                }
            })
            .collect();
        let mut all = Measured::default();
        let mut latencies = Latencies::new();
        for task in tasks {
            let (sent, of_one) = task.await??;
            all.records += sent;
            latencies.add(&of_one);
        }
        all.seconds = (clock.now() - begin).as_secs_f64();
        all.bytes = all.records * u64::from(workload.record_bytes);
        if let Some(reader) = reader {
            enough.send_replace(Some(all.records));
            let read = tokio::time::timeout(PATIENCE, reader).await;
            let read = read.context("acknowledged records did not arrive")??;
            all.end_to_end = read?.percentiles();
            all.latency = latencies.percentiles();
        }
        Ok(all)
    }

    async fn read_back(&self, stream: &str, written: &Measured) -> anyhow::Result<Measured> {
        let clock = Clock::start();
        let mut values = self.driver.read(stream).await?;
        let mut measured = Measured::default();
        while measured.records < written.records {
            let next = tokio::time::timeout(PATIENCE, values.next()).await;
            let chunk = next.context("nothing came for a while")?.context("the stream ended")??;
            measured.records += chunk.len() as u64;
            measured.bytes += chunk.iter().map(|value| value.len() as u64).sum::<u64>();
        }
        measured.seconds = clock.now().as_secs_f64();
        Ok(measured)
    }
}

impl<D: Driver> Side for Peer<D> {
    fn name(&self) -> &str {
        &self.name
    }

    fn durability(&self) -> &'static str {
        self.durability
    }

    fn pids(&self) -> &[u32] {
        &self.pids
    }

    fn run<'a>(
        &'a self,
        workload: &'a Workload,
        time: Duration,
    ) -> BoxFuture<'a, anyhow::Result<Option<Measured>>> {
        async move {
            if workload.partitions > 1 {
                return Ok(None);
            }
            let number = self.streams.fetch_add(1, Ordering::Relaxed);
            let stream = format!("bench{number}");
            self.driver.create(&stream).await.context("cannot create the stream")?;
            let mut measured = self.measure(workload, time, &stream).await;
            if let (true, Ok(written)) = (workload.read, &measured) {
                measured = self.read_back(&stream, written).await;
            }
            self.driver.remove(&stream).await.context("cannot remove the stream")?;
            measured.map(Some)
        }
        .boxed()
    }
}

/// One publisher and its share of the load.
struct Sender {
    publisher: Arc<dyn Publisher>,
    payloads: Payloads,
    share: Share,
    clock: Clock,
    begin: Duration,
}

type Sent = anyhow::Result<(u64, Latencies)>;

impl Sender {
    fn elapsed(&self) -> Duration {
        self.clock.now().saturating_sub(self.begin)
    }

    async fn send_freely(mut self, batch: usize, window: usize) -> Sent {
        let mut acks: VecDeque<Ack> = VecDeque::new();
        let mut sent = 0;
        while self.share.includes(sent, self.elapsed()) {
            let values: Vec<Bytes> = (0..batch).map(|_| self.payloads.next()).collect();
            sent += values.len() as u64;
            acks.push_back(self.publisher.submit(values).await?);
            if acks.len() >= window
                && let Some(first) = acks.pop_front()
            {
                tokio::time::timeout(PATIENCE, first).await.context("no acknowledgement")??;
            }
        }
        for ack in acks {
            tokio::time::timeout(PATIENCE, ack).await.context("no acknowledgement")??;
        }
        Ok((sent, Latencies::new()))
    }

    /// Each record is handed over when it is due, by a thread of its own; its latency is from when it was due.
    async fn send_by_schedule(self) -> Sent {
        let (acks, mut waiting) = mpsc::unbounded_channel();
        let (clock, begin) = (self.clock, self.begin);
        // Its connection must outlive the thread: acknowledgements come later.
        let _publisher = Arc::clone(&self.publisher);
        let runtime = tokio::runtime::Handle::current();
        let thread = spawn_punctual(move || self.keep_schedule(&runtime, &acks));
        let mut latencies = Latencies::new();
        let mut sent = 0;
        let mut pending = FuturesUnordered::new();
        let mut open = true;
        while open || !pending.is_empty() {
            tokio::select! {
                next = waiting.recv(), if open => match next {
                    Some((due, ack)) => {
                        let ack: Ack = ack;
                        pending.push(async move { (due, tokio::time::timeout(PATIENCE, ack).await) });
                    }
                    None => open = false,
                },
                Some((due, outcome)) = pending.next(), if !pending.is_empty() => {
                    outcome.context("no acknowledgement")??;
                    sent += 1;
                    latencies.record((clock.now() - begin).saturating_sub(due));
                }
            }
        }
        match thread.join() {
            Ok(kept) => kept.map(|()| (sent, latencies)),
            Err(_) => anyhow::bail!("the thread that keeps the schedule panicked"),
        }
    }

    fn keep_schedule(
        mut self,
        runtime: &tokio::runtime::Handle,
        acks: &mpsc::UnboundedSender<(Duration, Ack)>,
    ) -> anyhow::Result<()> {
        // Drivers start tasks.
        let _entered = runtime.enter();
        for n in 0.. {
            let due = self.share.due(n).unwrap_or_default();
            if !self.share.includes(n, due) {
                break;
            }
            let early = due.saturating_sub(self.elapsed());
            if !early.is_zero() {
                std::thread::sleep(early);
            }
            let due_ns = u64::try_from((self.begin + due).as_nanos()).unwrap_or(u64::MAX);
            let value = self.payloads.next_stamped(due_ns);
            let ack = runtime.block_on(self.publisher.submit(vec![value]))?;
            if acks.send((due, ack)).is_err() {
                break;
            }
        }
        Ok(())
    }
}
