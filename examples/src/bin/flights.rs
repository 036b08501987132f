//! `flights`: publishes flights, reads them back, and judges what happened. `scripts/demo` and `scripts/flights-check`
//! start the brokers around it.
//!
//! Owns: one producer, its readers, the history they write. Never: starts brokers; it runs one command midway, which may
//! kill one.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use highwater_client::{
    Acks, Client, ClientBuilder, Event, Events, NewTopic, Record, Start, Ticket,
};
use highwater_examples::check::Checker;
use highwater_examples::env::{Stopwatch, spawn};
use highwater_examples::flight::{Departure, departures};
use highwater_examples::history::{self, Happening, Recorder};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::sync::mpsc;

/// Tickets that may wait for the task that awaits them.
const TICKETS_MAX: usize = 50_000;
/// How long an event may take to be acknowledged, leader changes included.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a reader may make no progress before it counts as done.
const READ_PATIENCE: Duration = Duration::from_secs(60);
/// How often waiting tasks look.
const POLL: Duration = Duration::from_millis(50);

/// Publishes flights, reads them back, judges.
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create the topic, publish every row of the file with a reader beside, and judge.
    Run(Run),
    /// Read the topic from its start once more, add that to the history, and judge.
    Verify {
        #[command(flatten)]
        common: Common,
        /// A name for this reader.
        #[arg(long)]
        reader: String,
    },
    /// Judge a history file.
    Check {
        /// The file.
        history: PathBuf,
    },
}

#[derive(Debug, Args)]
struct Common {
    /// Brokers, comma separated.
    #[arg(long, env = "HIGHWATER_SERVERS", default_value = "127.0.0.1:7420")]
    servers: String,
    /// The topic.
    #[arg(long, default_value = "flights")]
    topic: String,
    /// Where the history is written.
    #[arg(long, default_value = "flights-history.jsonl")]
    history: PathBuf,
}

#[derive(Debug, Args)]
struct Run {
    #[command(flatten)]
    common: Common,
    /// The flights, as CSV, compressed or not.
    #[arg(long)]
    file: PathBuf,
    /// Partitions of the topic.
    #[arg(long, default_value_t = 6)]
    partitions: u32,
    /// Replicas of each partition.
    #[arg(long, default_value_t = 3)]
    replication_factor: u32,
    /// Events a second; 0 means as fast as it goes.
    #[arg(long, default_value_t = 0)]
    rate: u64,
    /// A shell command to run when half of the events are acknowledged; LEADER is the node that leads partition 0.
    #[arg(long)]
    midway: Option<String>,
}

/// What the tasks of a run share.
#[derive(Debug)]
struct Shared {
    recorder: Recorder,
    clock: Stopwatch,
    published: AtomicU64,
    acknowledged: AtomicU64,
    read: AtomicU64,
    /// The first offset behind the last acknowledged event, by partition.
    ends: Mutex<BTreeMap<u32, i64>>,
    /// The reader's next offset, by partition.
    positions: Mutex<BTreeMap<u32, i64>>,
}

impl Shared {
    fn new(recorder: Recorder) -> Self {
        Self {
            recorder,
            clock: Stopwatch::start(),
            published: AtomicU64::new(0),
            acknowledged: AtomicU64::new(0),
            read: AtomicU64::new(0),
            ends: Mutex::default(),
            positions: Mutex::default(),
        }
    }

    fn raise(offsets: &Mutex<BTreeMap<u32, i64>>, partition: u32, next: i64) {
        let mut offsets = offsets.lock().unwrap_or_else(PoisonError::into_inner);
        let offset = offsets.entry(partition).or_insert(0);
        *offset = next.max(*offset);
    }

    /// Whether the reader has passed every acknowledged event.
    fn reader_is_done(&self) -> bool {
        let positions = self.positions.lock().unwrap_or_else(PoisonError::into_inner);
        let ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        ends.iter().all(|(partition, end)| positions.get(partition).is_some_and(|at| at >= end))
    }

    fn note_read(&self, reader: &str, event: &Event) -> anyhow::Result<()> {
        let value = event.value.as_deref().unwrap_or_default();
        let flight = Departure::from_json(value).with_context(|| {
            format!("partition {}, offset {} is no flight", event.partition, event.offset)
        })?;
        self.recorder.note(&Happening::Read {
            reader: reader.to_owned(),
            partition: event.partition,
            offset: event.offset,
            sequence: flight.sequence,
            key: event.key_str().unwrap_or_default().to_owned(),
            hash: history::hash(value),
            at_ms: self.clock.elapsed_ms(),
        })?;
        self.read.fetch_add(1, Ordering::Relaxed);
        Self::raise(&self.positions, event.partition, event.offset + 1);
        Ok(())
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Cli::parse().command).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> anyhow::Result<bool> {
    match command {
        Command::Run(options) => {
            publish_and_read(&options).await?;
            judge(&options.common.history)
        }
        Command::Verify { common, reader } => {
            read_again(&common, &reader).await?;
            judge(&common.history)
        }
        Command::Check { history } => judge(&history),
    }
}

/// Prints the verdict on a history file; true if it is clean.
fn judge(path: &std::path::Path) -> anyhow::Result<bool> {
    let mut checker = Checker::default();
    for line in history::read(path)? {
        checker.add(line?);
    }
    let verdict = checker.finish();
    writeln!(std::io::stdout(), "{verdict}").context("cannot print the verdict")?;
    Ok(verdict.is_clean())
}

async fn connect(servers: &str) -> anyhow::Result<Client> {
    let client = ClientBuilder::from_env()?
        .servers(servers)
        .client_id("flights")
        .connect_timeout(Duration::from_secs(15))
        .request_timeout(Duration::from_secs(30))
        .connect()
        .await?;
    Ok(client)
}

async fn publish_and_read(options: &Run) -> anyhow::Result<()> {
    let rows = departures(&options.file)?.count();
    let client = connect(&options.common.servers).await?;
    let topic = NewTopic::new(&options.common.topic)
        .partitions(options.partitions)
        .replication_factor(options.replication_factor);
    client.admin().create_topic(topic).await.context("cannot create the topic")?;

    let shared = Arc::new(Shared::new(Recorder::open(&options.common.history, true)?));
    let events = client.consumer(&options.common.topic).start(Start::Earliest).subscribe().await?;
    let reader = spawn(read(events, "live".to_owned(), Arc::clone(&shared)));
    let progress = spawn(show_progress(Arc::clone(&shared), rows as u64));
    let published = publish(&client, options, rows as u64, &shared).await;
    if published.is_ok() {
        wait_for_reader(&shared, &reader).await;
    }
    progress.abort();
    let read = if reader.is_finished() { reader.await? } else { stop(reader).await };
    shared.recorder.flush()?;
    published?;
    read
}

/// Ends a reader that has nothing left to read.
async fn stop(reader: tokio::task::JoinHandle<anyhow::Result<()>>) -> anyhow::Result<()> {
    reader.abort();
    match reader.await {
        Err(error) if error.is_cancelled() => Ok(()),
        ended => ended?,
    }
}

/// Publishes every row in order, and returns when each is acknowledged or refused.
async fn publish(
    client: &Client,
    options: &Run,
    rows: u64,
    shared: &Arc<Shared>,
) -> anyhow::Result<()> {
    let producer = client
        .producer(&options.common.topic)
        .acks(Acks::QuorumFsync)
        .linger(Duration::from_millis(5))
        .delivery_timeout(DELIVERY_TIMEOUT)
        .build();
    let (tickets, waiting) = mpsc::channel(TICKETS_MAX);
    let acknowledging = spawn(acknowledge(waiting, Arc::clone(shared)));
    let midway = spawn(midway(
        client.clone(),
        options.common.topic.clone(),
        options.midway.clone(),
        rows / 2,
        Arc::clone(shared),
    ));
    let begin = shared.clock.elapsed();
    for flight in departures(&options.file)? {
        let flight = flight?;
        if options.rate > 0 {
            // Open loop: an event's time to leave does not depend on how the earlier ones fared.
            let due = begin + Duration::from_secs(flight.sequence) / u32::try_from(options.rate)?;
            let early = due.saturating_sub(shared.clock.elapsed());
            if !early.is_zero() {
                tokio::time::sleep(early).await;
            }
        }
        let value = flight.to_json()?;
        shared.recorder.note(&Happening::Published {
            sequence: flight.sequence,
            key: flight.key().to_owned(),
            hash: history::hash(&value),
            at_ms: shared.clock.elapsed_ms(),
        })?;
        let record = Record::new(value).with_key(flight.key().to_owned());
        let ticket = producer.send(record).await.context("cannot publish")?;
        shared.published.fetch_add(1, Ordering::Relaxed);
        if tickets.send((flight.sequence, ticket)).await.is_err() {
            break;
        }
    }
    drop(tickets);
    acknowledging.await??;
    if shared.acknowledged.load(Ordering::Relaxed) < rows / 2 {
        midway.abort();
        bail!("fewer than half of the events were acknowledged");
    }
    midway.await??;
    // Refused events are in the history; the checker has the last word about them.
    let _refused = producer.close().await;
    Ok(())
}

/// Awaits tickets in whatever order they resolve and notes the outcomes.
async fn acknowledge(
    mut tickets: mpsc::Receiver<(u64, Ticket)>,
    shared: Arc<Shared>,
) -> anyhow::Result<()> {
    let mut pending = FuturesUnordered::new();
    let mut open = true;
    while open || !pending.is_empty() {
        tokio::select! {
            ticket = tickets.recv(), if open && pending.len() < TICKETS_MAX => match ticket {
                Some((sequence, ticket)) => pending.push(async move { (sequence, ticket.await) }),
                None => open = false,
            },
            Some((sequence, outcome)) = pending.next(), if !pending.is_empty() => {
                let at_ms = shared.clock.elapsed_ms();
                let happening = match outcome {
                    Ok(ack) => {
                        shared.acknowledged.fetch_add(1, Ordering::Relaxed);
                        Shared::raise(&shared.ends, ack.partition, ack.offset + 1);
                        let (partition, offset, duplicate) = (ack.partition, ack.offset, ack.duplicate);
                        Happening::Acknowledged { sequence, partition, offset, duplicate, at_ms }
                    }
                    Err(error) => {
                        let may_have_been_written = error.may_have_been_written();
                        eprintln!("event {sequence}: {error}");
                        Happening::Refused { sequence, may_have_been_written, at_ms }
                    }
                };
                shared.recorder.note(&happening)?;
            }
        }
    }
    Ok(())
}

/// Runs the command when half of the events are acknowledged.
async fn midway(
    client: Client,
    topic: String,
    command: Option<String>,
    half: u64,
    shared: Arc<Shared>,
) -> anyhow::Result<()> {
    let Some(command) = command else { return Ok(()) };
    while shared.acknowledged.load(Ordering::Relaxed) < half {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let described = client.admin().get_topic(&topic).await?;
    let leader = described.partitions.first().and_then(|partition| partition.leader);
    let leader = leader.context("partition 0 has no leader to kill")?;
    let acknowledged = shared.acknowledged.load(Ordering::Relaxed);
    eprintln!(
        "midway, after {acknowledged} acknowledgements: killing node {leader}, leader of partition 0"
    );
    let status = tokio::task::spawn_blocking(move || {
        std::process::Command::new("sh")
            .args(["-c", &command])
            .env("LEADER", leader.to_string())
            .status()
    });
    let status = status.await?.context("cannot run the midway command")?;
    if !status.success() {
        bail!("the midway command failed: {status}");
    }
    Ok(())
}

/// Reads for ever and notes what it reads.
async fn read(mut events: Events, reader: String, shared: Arc<Shared>) -> anyhow::Result<()> {
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => shared.note_read(&reader, &event)?,
            // The consumer keeps trying by itself; this is only news.
            Err(error) if error.is_retriable() => eprintln!("{reader}: {error}"),
            Err(error) => return Err(error).with_context(|| format!("reader '{reader}'")),
        }
    }
    bail!("reader '{reader}': the stream ended")
}

/// Waits until the reader has passed every acknowledged event, or makes no progress any more.
async fn wait_for_reader(shared: &Shared, reader: &tokio::task::JoinHandle<anyhow::Result<()>>) {
    let mut last = (shared.read.load(Ordering::Relaxed), Stopwatch::start());
    while !shared.reader_is_done() && !reader.is_finished() {
        let read = shared.read.load(Ordering::Relaxed);
        if read != last.0 {
            last = (read, Stopwatch::start());
        } else if last.1.elapsed() > READ_PATIENCE {
            eprintln!("the reader has made no progress for {READ_PATIENCE:?}");
            return;
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn read_again(common: &Common, reader: &str) -> anyhow::Result<()> {
    let mut ends = BTreeMap::new();
    for line in history::read(&common.history)? {
        match line? {
            Happening::Acknowledged { partition, offset, .. } => {
                let end = ends.entry(partition).or_insert(0);
                *end = (offset + 1).max(*end);
            }
            Happening::Read { reader: earlier, .. } if earlier == reader => {
                bail!("the history has a reader '{reader}' already");
            }
            _ => {}
        }
    }
    let client = connect(&common.servers).await?;
    let shared = Arc::new(Shared::new(Recorder::open(&common.history, false)?));
    *shared.ends.lock().unwrap_or_else(PoisonError::into_inner) = ends;
    let events = client.consumer(&common.topic).start(Start::Earliest).subscribe().await?;
    let task = spawn(read(events, reader.to_owned(), Arc::clone(&shared)));
    wait_for_reader(&shared, &task).await;
    let read = if task.is_finished() { task.await? } else { stop(task).await };
    shared.recorder.flush()?;
    read
}

async fn show_progress(shared: Arc<Shared>, rows: u64) {
    let bar = ProgressBar::new(rows);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} acknowledged, {msg}") {
        bar.set_style(style);
    }
    loop {
        bar.set_position(shared.acknowledged.load(Ordering::Relaxed));
        let published = shared.published.load(Ordering::Relaxed);
        bar.set_message(format!(
            "{published} published, {} read",
            shared.read.load(Ordering::Relaxed)
        ));
        tokio::time::sleep(POLL).await;
    }
}
