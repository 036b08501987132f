//! `bench`: repeatable load against a running cluster: throughput, latency, and what it costs the brokers.
//!
//! Owns: the command line, connecting, the topic. Never: starts brokers, or measures without saying the settings.

mod args;
#[cfg(feature = "compare")]
mod compare;
mod consume;
mod end_to_end;
mod env;
mod failover;
mod latency;
mod pace;
mod payload;
mod processes;
mod produce;
mod rebalance;
mod report;
mod storage;

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Parser;
use highwater_client::{Client, ClientBuilder, NewTopic, reason};

use crate::args::{Cli, Command, Load, Output};
use crate::processes::Processes;
use crate::report::Report;

/// As in the broker: large blocks come and go, and the C library's allocator has the system clear them each time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How long to look for the cluster.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    let runtime = || tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let (kind, load) = match command {
        Command::Produce(load) => ("produce", load),
        Command::Consume(load) => ("consume", load),
        Command::E2e(load) => ("e2e", load),
        Command::Failover(args) => {
            let text = runtime()?.block_on(failover::run(&args))?;
            return std::io::stdout().write_all(text.as_bytes()).context("cannot print the result");
        }
        Command::Rebalance(args) => {
            let text = runtime()?.block_on(rebalance::run(&args))?;
            return std::io::stdout().write_all(text.as_bytes()).context("cannot print the result");
        }
        Command::Storage(args) => return storage::run(&args),
        #[cfg(feature = "compare")]
        Command::Compare(args) => return runtime()?.block_on(compare::run(&args)),
        #[cfg(feature = "compare")]
        Command::TonicLimit => return runtime()?.block_on(compare::serve_limit()),
        #[cfg(not(feature = "compare"))]
        Command::Compare => bail!(
            "this build has no drivers for other brokers: use scripts/compare, or build with --features compare"
        ),
    };
    runtime()?.block_on(measure(kind, &load))
}

async fn measure(kind: &'static str, load: &Load) -> anyhow::Result<()> {
    let client = ClientBuilder::from_env()?
        .servers(load.servers.as_str())
        .client_id("bench")
        .connect_timeout(CONNECT_TIMEOUT)
        .connect()
        .await?;
    prepare_topic(&client, load).await?;
    let processes = Processes::find(&client, &load.broker_pids).await;
    let before = processes.sample();
    let own_before = processes::own_cpu_seconds();
    let mut measured = match kind {
        "produce" => produce::run(&client, load).await?,
        "consume" => consume::run(&client, load).await?,
        _ => end_to_end::run(&client, load).await?,
    };
    measured.client_cpu_seconds = processes::own_cpu_seconds() - own_before;
    let report = Report::new(kind, load, &measured, &before, &processes.sample());
    let text = match load.output {
        Output::Json => serde_json::to_string_pretty(&report)? + "\n",
        Output::Text => report.to_string(),
    };
    std::io::stdout().write_all(text.as_bytes()).context("cannot print the result")?;
    if measured.errors > 0 {
        bail!("{} records were not acknowledged: {}", measured.errors, measured.first_error);
    }
    Ok(())
}

/// Creates the topic if `--create` says so and it does not exist.
async fn prepare_topic(client: &Client, load: &Load) -> anyhow::Result<()> {
    let admin = client.admin();
    match admin.get_topic(&load.topic).await {
        Ok(_) => Ok(()),
        Err(error) if error.reason() == reason::UNKNOWN_TOPIC && load.create => {
            let topic = NewTopic::new(&load.topic)
                .partitions(load.partitions)
                .replication_factor(load.replication_factor);
            admin.create_topic(topic).await.context("cannot create the topic")?;
            Ok(())
        }
        Err(error) => {
            Err(error).with_context(|| format!("topic '{}' (--create makes it)", load.topic))
        }
    }
}
