//! `bench rebalance`: publishes at a rate to all partitions of a topic and reads them as a group, while a member joins, leaves and
//! crashes: how late events were, of partitions that moved and of those that did not.
//!
//! Owns: the members and what they note. Never: brokers, or the topic.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;
use futures::StreamExt;
use highwater_client::{Client, ClientBuilder, GroupEvents, Producer};
use tokio::sync::{mpsc, oneshot};

use crate::env::{Clock, spawn};
use crate::latency::Latencies;

/// Pause between two rounds of records.
const PACE: Duration = Duration::from_millis(2);

#[derive(Clone, Debug, Args)]
pub(crate) struct RebalanceArgs {
    /// Brokers, comma separated.
    #[arg(long, env = "HIGHWATER_SERVERS", default_value = "127.0.0.1:7420")]
    pub(crate) servers: String,
    /// The topic; all of its partitions are published to.
    #[arg(long)]
    pub(crate) topic: String,
    /// Members before another one joins.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub(crate) members: u32,
    /// Records in a second.
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(1..=500_000))]
    pub(crate) rate: u32,
    /// Seconds of each phase.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(2..=600))]
    pub(crate) seconds: u64,
    /// Session timeout of the members; the phase of the crash is longer by it.
    #[arg(long, default_value_t = 3_000, value_parser = clap::value_parser!(u64).range(500..=60_000))]
    pub(crate) session_timeout_ms: u64,
}

/// An event that a member was given.
#[derive(Clone, Copy, Debug)]
struct Given {
    partition: u32,
    offset: i64,
    member: u32,
    due: Duration,
    at: Duration,
}

/// A member that reads until it is told to leave.
struct Member {
    leave: oneshot::Sender<()>,
    left: tokio::task::JoinHandle<()>,
}

struct Bench {
    args: RebalanceArgs,
    clock: Clock,
    noted: mpsc::UnboundedSender<Given>,
}

impl Bench {
    async fn client(&self) -> anyhow::Result<Client> {
        let builder = ClientBuilder::from_env()?.servers(self.args.servers.as_str());
        Ok(builder.client_id("bench").connect().await?)
    }

    /// Joins with connections of its own, as a process would.
    async fn join(&self, number: u32) -> anyhow::Result<Member> {
        let client = self.client().await?;
        let timeout = Duration::from_millis(self.args.session_timeout_ms);
        let builder = client.consumer(&self.args.topic).group("bench-rebalance");
        let events = builder.session_timeout(timeout).subscribe().await?;
        let (leave, leaving) = oneshot::channel();
        let left = spawn(read(events, number, self.clock, self.noted.clone(), leaving));
        Ok(Member { leave, left })
    }
}

async fn read(
    mut events: GroupEvents,
    member: u32,
    clock: Clock,
    noted: mpsc::UnboundedSender<Given>,
    mut leaving: oneshot::Receiver<()>,
) {
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            _ = &mut leaving => break,
        };
        let Some(event) = event else { return };
        // Troubles pass, or show in the figures.
        let Ok(event) = event else { continue };
        let due = event.value.as_deref().and_then(|value| value.try_into().ok());
        let Some(due) = due.map(u64::from_be_bytes) else { continue };
        let (partition, offset) = (event.partition, event.offset);
        let due = Duration::from_nanos(due);
        // The other side is there as long as anything is measured.
        let _ = noted.send(Given { partition, offset, member, due, at: clock.now() });
    }
    events.close().await;
}

async fn publish(
    producer: Producer,
    partitions: u32,
    rate: u32,
    clock: Clock,
    stop: Arc<AtomicBool>,
) -> anyhow::Result<u64> {
    let mut sent = 0_u64;
    while !stop.load(Ordering::Acquire) {
        let due = clock.now();
        while u128::from(sent) < due.as_micros() * u128::from(rate) / 1_000_000 {
            let partition = u32::try_from(sent % u64::from(partitions))?;
            let value = u64::try_from(due.as_nanos())?.to_be_bytes().to_vec();
            // What became of it shows at the readers.
            drop(producer.send_to_partition(partition, value).await?);
            sent += 1;
        }
        tokio::time::sleep(PACE).await;
    }
    producer.flush().await?;
    Ok(sent)
}

/// A span of time with one change at its beginning.
struct Phase {
    name: &'static str,
    from: Duration,
    to: Duration,
}

pub(crate) async fn run(args: &RebalanceArgs) -> anyhow::Result<String> {
    let (noted, mut taken) = mpsc::unbounded_channel();
    let bench = Bench { args: args.clone(), clock: Clock::start(), noted };
    let clock = bench.clock;
    let client = bench.client().await?;
    let topic = client.admin().get_topic(&args.topic).await?;
    let partitions = u32::try_from(topic.partitions.len())?;
    let mut members = Vec::new();
    for number in 0..args.members {
        members.push(bench.join(number).await?);
    }
    let stop = Arc::new(AtomicBool::new(false));
    let producer = client.producer(&args.topic).build();
    let publishing = spawn(publish(producer, partitions, args.rate, clock, Arc::clone(&stop)));
    let (span, session) =
        (Duration::from_secs(args.seconds), Duration::from_millis(args.session_timeout_ms));
    // What there is to be shared out at first is not measured.
    tokio::time::sleep(span).await;
    let mut phases = Vec::new();
    let mut phase = async |name, from: Duration, length: Duration| {
        tokio::time::sleep((from + length).saturating_sub(clock.now())).await;
        phases.push(Phase { name, from, to: from + length });
    };
    phase("nothing", clock.now(), span).await;
    let from = clock.now();
    let newcomer = bench.join(args.members).await?;
    phase("a member joins", from, span).await;
    let from = clock.now();
    let _ = newcomer.leave.send(());
    phase("a member leaves", from, span).await;
    newcomer.left.await?;
    // Its end is that of its connections: it says nothing any more.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let crashing = Bench { args: args.clone(), clock, noted: bench.noted.clone() };
    let number = args.members + 1;
    let joined = runtime.spawn(async move { crashing.join(number).await });
    let doomed = joined.await??;
    tokio::time::sleep(span).await;
    let from = clock.now();
    runtime.shutdown_background();
    phase("a member crashes", from, span + session).await;
    drop(doomed);
    stop.store(true, Ordering::Release);
    let sent = publishing.await??;
    let mut given = Vec::new();
    let mut first = BTreeSet::new();
    let everything = async {
        while first.len() < usize::try_from(sent).unwrap_or(usize::MAX) {
            let Some(it) = taken.recv().await else { break };
            if first.insert((it.partition, it.offset)) {
                given.push(it);
            }
        }
    };
    let outcome = tokio::time::timeout(Duration::from_secs(30), everything).await;
    ensure!(outcome.is_ok(), "only {} of {sent} events were read", first.len());
    for member in members {
        let _ = member.leave.send(());
        member.left.await?;
    }
    describe(&phases, &given, partitions).context("cannot print")
}

/// Who was given a partition's events at some time.
fn owners(given: &[Given], until: Duration) -> BTreeMap<u32, u32> {
    given.iter().filter(|it| it.at < until).map(|it| (it.partition, it.member)).collect()
}

fn describe(phases: &[Phase], given: &[Given], partitions: u32) -> anyhow::Result<String> {
    let mut text = String::new();
    for Phase { name, from, to } in phases {
        let (before, after) = (owners(given, *from), owners(given, *to));
        let (mut moved, mut stayed) = (Latencies::new(), Latencies::new());
        let mut moving = BTreeSet::new();
        for it in given.iter().filter(|it| it.due >= *from && it.due < *to) {
            let has_moved = before.get(&it.partition) != after.get(&it.partition);
            let latencies = if has_moved { &mut moved } else { &mut stayed };
            latencies.record(it.at - it.due);
            if has_moved {
                moving.insert(it.partition);
            }
        }
        write!(text, "{name}: {} of {partitions} partitions moved", moving.len())?;
        for (which, latencies) in [("stayed", stayed), ("moved", moved)] {
            if let Some(found) = latencies.percentiles() {
                let ms = |us: u64| us as f64 / 1e3;
                let (p50, p99, max) = (ms(found.p50), ms(found.p99), ms(found.max));
                write!(text, "; {which}: p50 {p50:.1} ms, p99 {p99:.1} ms, longest {max:.1} ms")?;
            }
        }
        writeln!(text)?;
    }
    Ok(text)
}
