//! `bench produce`: publishes, and waits for every acknowledgement.
//!
//! Owns: sending as fast as it goes and sending by a schedule. Never: loses a latency; each acknowledged record counts.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use highwater_client::{Client, Producer, Record, SendError, Ticket};
use tokio::sync::mpsc;

use crate::args::Load;
use crate::env::{Clock, spawn, spawn_punctual};
use crate::latency::Latencies;
use crate::pace::Share;
use crate::payload::Payloads;
use crate::report::Measured;

/// Without a schedule, finished tickets are looked for after so many records.
const LOOK_EVERY: u64 = 32;

/// What one producer did.
#[derive(Debug)]
pub(crate) struct Produced {
    pub(crate) acknowledged: u64,
    pub(crate) errors: u64,
    pub(crate) first_error: Option<SendError>,
    pub(crate) latencies: Latencies,
    /// When the last acknowledgement came.
    pub(crate) end: Duration,
}

impl Produced {
    pub(crate) fn new() -> Self {
        Self {
            acknowledged: 0,
            errors: 0,
            first_error: None,
            latencies: Latencies::new(),
            end: Duration::ZERO,
        }
    }

    fn note<T>(&mut self, outcome: Result<T, SendError>, due: Duration, now: Duration) {
        match outcome {
            Ok(_) => {
                self.acknowledged += 1;
                self.latencies.record(now.saturating_sub(due));
                self.end = now;
            }
            Err(error) => {
                self.errors += 1;
                self.first_error.get_or_insert(error);
            }
        }
    }
}

/// Measures. Only payload bytes count, not what a record needs beside them.
pub(crate) async fn run(client: &Client, load: &Load) -> anyhow::Result<Measured> {
    let payloads = Payloads::new(load.seed, load.record_bytes as usize);
    let tasks = start(client, load, load.rate, &payloads, None).await?;
    let mut all = Produced::new();
    for task in tasks {
        merge(&mut all, task.await?);
    }
    Ok(measured(&all, load))
}

/// The figures of all producers together.
pub(crate) fn measured(all: &Produced, load: &Load) -> Measured {
    Measured {
        records: all.acknowledged,
        bytes: all.acknowledged * u64::from(load.record_bytes),
        seconds: all.end.as_secs_f64(),
        errors: all.errors,
        first_error: all.first_error.as_ref().map(ToString::to_string).unwrap_or_default(),
        latency: all.latencies.percentiles(),
        ..Measured::default()
    }
}

/// Adds one producer's figures.
pub(crate) fn merge(all: &mut Produced, one: Produced) {
    all.acknowledged += one.acknowledged;
    all.errors += one.errors;
    all.latencies.add(&one.latencies);
    all.end = all.end.max(one.end);
    if let Some(error) = one.first_error {
        all.first_error.get_or_insert(error);
    }
}

/// Makes the producers, sends one record with each that does not count (connections, producer ids, metadata), then starts
/// them all on one clock. With `stamp`, each value begins with the nanosecond at which it was due.
pub(crate) async fn start(
    client: &Client,
    load: &Load,
    rate: Option<u64>,
    payloads: &Payloads,
    stamp: Option<Clock>,
) -> anyhow::Result<Vec<tokio::task::JoinHandle<Produced>>> {
    let mut producers = Vec::new();
    for index in 0..load.producers as usize {
        let producer = client
            .producer(&load.topic)
            .acks(load.acks)
            .compression(load.compression)
            .linger(Duration::from_millis(load.linger_ms))
            .batch_bytes_max(load.batch_bytes)
            .unacked_bytes_max(load.unacked_bytes)
            .build();
        let mut payloads = payloads.for_producer(index, load.producers as usize);
        let value = if stamp.is_some() { payloads.next_stamped(0) } else { payloads.next() };
        producer.send(Record::new(value)).await?.await.context("the first record failed")?;
        producers.push((producer, payloads));
    }
    let clock = stamp.unwrap_or_else(Clock::start);
    let begin = clock.now();
    let mut tasks = Vec::new();
    for (index, (producer, payloads)) in (0..).zip(producers) {
        let share = Share {
            index,
            producers: u64::from(load.producers),
            rate,
            records: load.records,
            duration: load.duration.map(Duration::from_secs),
        };
        let sender = Sender { producer, payloads, share, clock, begin, stamped: stamp.is_some() };
        tasks.push(match rate {
            None => spawn(sender.send_freely()),
            Some(_) => spawn(sender.send_by_schedule()),
        });
    }
    Ok(tasks)
}

/// One producer and its share of the load.
#[derive(Debug)]
struct Sender {
    producer: Producer,
    payloads: Payloads,
    share: Share,
    clock: Clock,
    /// The schedule's zero on the clock.
    begin: Duration,
    stamped: bool,
}

impl Sender {
    fn elapsed(&self) -> Duration {
        self.clock.now().saturating_sub(self.begin)
    }

    fn value(&mut self, due: Duration) -> Bytes {
        if self.stamped {
            let due_ns = (self.begin + due).as_nanos();
            return self.payloads.next_stamped(u64::try_from(due_ns).unwrap_or(u64::MAX));
        }
        self.payloads.next()
    }

    /// Sends as fast as the producer admits. A record is due when it is handed over, so its latency includes the wait for
    /// admission; tickets are awaited in the order of sending.
    async fn send_freely(mut self) -> Produced {
        let mut produced = Produced::new();
        let mut tickets: VecDeque<(Duration, Ticket)> = VecDeque::new();
        let mut n = 0;
        loop {
            let due = self.elapsed();
            if !self.share.includes(n, due) {
                break;
            }
            let value = self.value(due);
            match self.producer.send(Record::new(value)).await {
                Ok(ticket) => tickets.push_back((due, ticket)),
                Err(error) => produced.note::<()>(Err(error), due, due),
            }
            n += 1;
            if n % LOOK_EVERY == 0 {
                let now = self.elapsed();
                while let Some((due, ticket)) = tickets.front_mut() {
                    let Some(outcome) = ticket.now_or_never() else { break };
                    produced.note(outcome, *due, now);
                    tickets.pop_front();
                }
            }
        }
        for (due, ticket) in tickets {
            let outcome = ticket.await;
            produced.note(outcome, due, self.elapsed());
        }
        produced
    }

    /// Sends each record when it is due, from a thread of its own so that it is punctual, and awaits tickets in whatever
    /// order they resolve.
    async fn send_by_schedule(self) -> Produced {
        let (tickets, mut waiting) = mpsc::unbounded_channel();
        let clock = self.clock;
        let begin = self.begin;
        let runtime = tokio::runtime::Handle::current();
        let thread = spawn_punctual(move || self.keep_schedule(&runtime, &tickets));
        let mut produced = Produced::new();
        let mut pending = FuturesUnordered::new();
        let mut open = true;
        while open || !pending.is_empty() {
            tokio::select! {
                next = waiting.recv(), if open => match next {
                    Some((due, Ok(ticket))) => {
                        let ticket: Ticket = ticket;
                        pending.push(async move { (due, ticket.await) });
                    }
                    Some((due, Err(error))) => produced.note::<()>(Err(error), due, due),
                    None => open = false,
                },
                Some((due, outcome)) = pending.next(), if !pending.is_empty() => {
                    produced.note(outcome, due, clock.now().saturating_sub(begin));
                }
            }
        }
        // The channel is closed, so the thread has ended or is about to.
        if thread.join().is_err() {
            produced.errors += 1;
        }
        produced
    }

    fn keep_schedule(
        mut self,
        runtime: &tokio::runtime::Handle,
        tickets: &mpsc::UnboundedSender<(Duration, Result<Ticket, SendError>)>,
    ) {
        for n in 0.. {
            let due = self.share.due(n).unwrap_or_default();
            if !self.share.includes(n, due) {
                return;
            }
            let early = due.saturating_sub(self.elapsed());
            if !early.is_zero() {
                std::thread::sleep(early);
            }
            let value = self.value(due);
            let ticket = match self.producer.try_send(Record::new(value.clone())) {
                // Behind the schedule: the wait shows up in this record's latency and in those behind it.
                Err(SendError::Full) => runtime.block_on(self.producer.send(Record::new(value))),
                sent => sent,
            };
            if tickets.send((due, ticket)).is_err() {
                return;
            }
        }
    }
}
