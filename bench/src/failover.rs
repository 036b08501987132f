//! `bench failover`: publishes by a schedule while something is done to the cluster, and says for how long nothing was acknowledged.
//!
//! Owns: the gap between acknowledgements. Never: does anything to a broker itself; that is the command's.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;
use highwater_client::{ClientBuilder, Record};

use crate::args::Output;
use crate::env::{Clock, spawn};

/// Pause between two records: what the gaps are measured in.
const PACE: Duration = Duration::from_millis(2);

#[derive(Clone, Debug, Args)]
pub(crate) struct FailoverArgs {
    /// Brokers, comma separated.
    #[arg(long, env = "HIGHWATER_SERVERS", default_value = "127.0.0.1:7420")]
    pub(crate) servers: String,
    /// The topic; its partition 0 is published to.
    #[arg(long)]
    pub(crate) topic: String,
    /// Run by `sh -c`, with the node id of the partition's leader in LEADER.
    #[arg(long)]
    pub(crate) fault: String,
    /// Milliseconds before the fault.
    #[arg(long, default_value_t = 500)]
    pub(crate) before_ms: u64,
    /// Milliseconds after it.
    #[arg(long, default_value_t = 4_000)]
    pub(crate) after_ms: u64,
    /// How to print the result.
    #[arg(short = 'o', long, value_enum, default_value = "text")]
    pub(crate) output: Output,
}

/// What the records' tasks note.
#[derive(Debug, Default)]
struct Noted {
    last_ns: AtomicU64,
    longest_ns: AtomicU64,
    acknowledged: AtomicU64,
}

impl Noted {
    fn acknowledged(&self, now_ns: u64) {
        let last_ns = self.last_ns.fetch_max(now_ns, Ordering::AcqRel);
        self.longest_ns.fetch_max(now_ns.saturating_sub(last_ns), Ordering::AcqRel);
        self.acknowledged.fetch_add(1, Ordering::AcqRel);
    }
}

pub(crate) async fn run(args: &FailoverArgs) -> anyhow::Result<String> {
    let builder = ClientBuilder::from_env()?.servers(args.servers.as_str()).client_id("bench");
    let client = builder.connect().await?;
    let producer = client.producer(&args.topic).partition(0).build();
    let record = || Record::new("x");
    // The first one pays for connections.
    producer.send(record()).await?.await?;
    let leader =
        client.admin().get_topic(&args.topic).await?.partitions.first().and_then(|p| p.leader);
    let leader = leader.context("partition 0 has no leader")?;
    let clock = Clock::start();
    let noted = Arc::new(Noted::default());
    let (before, after) =
        (Duration::from_millis(args.before_ms), Duration::from_millis(args.after_ms));
    let fault = spawn(inflict(args.fault.clone(), leader, before));
    let mut records = Vec::new();
    while clock.now() < before + after {
        let ticket = producer.send(record()).await?;
        let noted = Arc::clone(&noted);
        records.push(spawn(async move {
            let outcome = ticket.await;
            if outcome.is_ok() {
                noted.acknowledged(clock.now_ns());
            }
            outcome
        }));
        tokio::time::sleep(PACE).await;
    }
    fault.await??;
    let sent = records.len() as u64;
    for record in records {
        record.await?.context("a record was not acknowledged")?;
    }
    let pause_ms = noted.longest_ns.load(Ordering::Acquire) as f64 / 1e6;
    ensure!(noted.acknowledged.load(Ordering::Acquire) == sent, "records are missing");
    Ok(match args.output {
        Output::Json => {
            format!("{{\"leader\":{leader},\"records\":{sent},\"pause_ms\":{pause_ms:.1}}}\n")
        }
        Output::Text => format!("node {leader}: {sent} records, longest pause {pause_ms:.0} ms\n"),
    })
}

async fn inflict(command: String, leader: u64, after: Duration) -> anyhow::Result<()> {
    tokio::time::sleep(after).await;
    let run = move || {
        let status = std::process::Command::new("sh")
            .args(["-c", &command])
            .env("LEADER", leader.to_string())
            .status()?;
        ensure!(status.success(), "the fault command failed: {status}");
        Ok(())
    };
    tokio::task::spawn_blocking(run).await?
}
