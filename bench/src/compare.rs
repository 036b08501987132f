//! `bench compare`: the same load on Highwater, on other brokers and on the machine's bare limits, taking turns in one run.
//!
//! Owns: the workloads, who takes part, the order of the turns. Never: starts servers; `scripts/compare` does.

mod highwater;
mod limits;
mod nats;
mod peer;
mod plots;
mod rabbitmq;
mod rabbitmq_stream;
mod redis;
mod table;
mod tonic_limit;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::Args;
use futures::future::BoxFuture;

use crate::env::Clock;
use crate::processes::Processes;
use crate::report::Measured;
use table::{Slot, Table};
pub(crate) use tonic_limit::serve as serve_limit;

/// All servers together are at rest when they take less than this part of a core; how often that is looked at, and how long.
const QUIET_CORES: f64 = 0.3;
const QUIET_LOOK: Duration = Duration::from_millis(300);
const QUIET_PATIENCE: Duration = Duration::from_secs(20);

/// The settings of `bench compare`.
#[derive(Args, Clone, Debug)]
pub(crate) struct CompareArgs {
    /// A server that runs, as SETTING=ADDRESS[,ADDRESS...]@PID[,PID...]; may be given many times. Settings: highwater-1,
    /// highwater-3, nats-r1, nats-r1-always, nats-r3, nats-r3-always, redis-everysec, redis-always, rabbitmq (AMQP, then streams).
    #[arg(long = "server", value_parser = parse_server)]
    servers: Vec<Server>,
    /// Where the bare limit of the disk writes: on the file system that the servers use.
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// Rounds that count. One more goes before them: the cold one, which is shown by itself.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// How long each measurement publishes, in seconds.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Only workloads with one of these names, comma separated; a part of a name is all that have it.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Where results.json, results.md and the plots go.
    #[arg(long, default_value = "compare-results")]
    out: PathBuf,
    /// Keep what results.json there has of workloads that this run leaves out.
    #[arg(long)]
    keep: bool,
    /// What to know about this run, as what else the machine did; stands above its tables and plots.
    #[arg(long, default_value = "")]
    note: String,
    /// Measure nothing: write the table and the plots of results.json again.
    #[arg(long, conflicts_with_all = ["servers", "keep"])]
    redraw: bool,
}

/// A running server.
#[derive(Clone, Debug)]
struct Server {
    setting: String,
    addresses: Vec<String>,
    pids: Vec<u32>,
}

fn parse_server(text: &str) -> Result<Server, String> {
    let form = "give it as SETTING=ADDRESS[,ADDRESS...]@PID[,PID...]";
    let (setting, rest) = text.split_once('=').ok_or(form)?;
    let (addresses, pids) = rest.rsplit_once('@').ok_or(form)?;
    let pids = pids.split(',').map(|pid| pid.parse().map_err(|_| format!("pid '{pid}': {form}")));
    Ok(Server {
        setting: setting.to_owned(),
        addresses: addresses.split(',').map(str::to_owned).collect(),
        pids: pids.collect::<Result<_, _>>()?,
    })
}

/// What is done to every side.
#[derive(Clone, Debug)]
struct Workload {
    name: &'static str,
    record_bytes: u32,
    producers: u32,
    partitions: u32,
    /// As fast as it goes without a rate.
    rate: Option<u64>,
    /// Whether what was published is read back from the start, which is what is measured.
    read: bool,
}

const WORKLOADS: &[Workload] = &[
    publish("publish-1k-1p", 1024, 1, 1),
    publish("publish-1k-4p", 1024, 4, 1),
    publish("publish-100b-1p", 100, 1, 1),
    publish("publish-100b-4p", 100, 4, 1),
    Workload { read: true, ..publish("read-1k", 1024, 4, 1) },
    Workload { rate: Some(2_000), ..publish("latency-2000", 1024, 1, 1) },
    Workload { rate: Some(20_000), ..publish("latency-20000", 1024, 1, 1) },
    publish("partitions-100", 1024, 4, 100),
    publish("partitions-1000", 1024, 4, 1000),
];

const fn publish(
    name: &'static str,
    record_bytes: u32,
    producers: u32,
    partitions: u32,
) -> Workload {
    Workload { name, record_bytes, producers, partitions, rate: None, read: false }
}

/// One who takes part: a broker with a setting, or a bare limit.
trait Side: Send + Sync {
    fn name(&self) -> &str;
    /// What an acknowledgement means here.
    fn durability(&self) -> &'static str;
    /// Its processes; a bare limit has none.
    fn pids(&self) -> &[u32] {
        &[]
    }
    /// `None`: this workload is nothing for it.
    fn run<'a>(
        &'a self,
        workload: &'a Workload,
        time: Duration,
    ) -> BoxFuture<'a, anyhow::Result<Option<Measured>>>;
}

/// Runs all of it and writes the results.
pub(crate) async fn run(args: &CompareArgs) -> anyhow::Result<()> {
    if args.redraw {
        return write(&read(&args.out)?, &args.out);
    }
    let sides = connect(args).await?;
    let workloads: Vec<&Workload> =
        WORKLOADS.iter().filter(|workload| is_wanted(workload.name, &args.only)).collect();
    if workloads.is_empty() {
        let names: Vec<&str> = WORKLOADS.iter().map(|workload| workload.name).collect();
        bail!("--only names no workload; there are {}", names.join(", "));
    }
    fs::create_dir_all(&args.out)
        .with_context(|| format!("cannot create {}", args.out.display()))?;
    let all =
        Processes::of(&sides.iter().flat_map(|side| side.pids().to_vec()).collect::<Vec<_>>());
    let mut table = Table::new();
    if args.keep {
        table.keep(read(&args.out)?, &workloads);
    }
    let mut failed = 0;
    for round in 0..=args.rounds {
        for workload in &workloads {
            for place in 0..sides.len() {
                // Another one begins each round, so that none has the same one before it always.
                let side = &sides[(place + round as usize) % sides.len()];
                quiet(&all).await;
                let begin = format!("round {round} {:<16} {:<28}", workload.name, side.name());
                match turn(side.as_ref(), workload, args, round).await {
                    Ok(Some(slot)) => {
                        eprintln!("{begin} {slot}");
                        table.add(slot, &args.note);
                    }
                    Ok(None) => {}
                    // A server that has a bad moment does not cost what all others take half an hour for.
                    Err(error) => {
                        eprintln!("{begin} FAILED and is left out: {error:#}");
                        failed += 1;
                    }
                }
            }
        }
        // What a broken run has measured is there all the same.
        if round > 0 {
            write(&table, &args.out)?;
        }
    }
    print!("{table}");
    ensure!(failed == 0, "{failed} turns failed and were left out; what they said is above");
    Ok(())
}

/// A whole name is only that workload: "latency-2000" is not "latency-20000" too.
fn is_wanted(name: &str, only: &[String]) -> bool {
    let matches = |part: &String| {
        let is_whole = WORKLOADS.iter().any(|workload| workload.name == part);
        if is_whole { name == part } else { name.contains(part.as_str()) }
    };
    only.is_empty() || only.iter().any(matches)
}

fn write(table: &Table, out: &Path) -> anyhow::Result<()> {
    fs::write(out.join("results.json"), serde_json::to_string(table)? + "\n")?;
    fs::write(out.join("results.md"), table.to_string())?;
    plots::draw(table, out).context("cannot draw the plots")
}

/// What an earlier run has written.
fn read(out: &Path) -> anyhow::Result<Table> {
    let path = out.join("results.json");
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text)
        .with_context(|| format!("{} is not of this version; measure again", path.display()))
}

/// Waits until no server has anything left to do of the turn before, and the disk nothing left to write.
async fn quiet(servers: &Processes) {
    let clock = Clock::start();
    let used = || servers.sample().iter().map(|sample| sample.cpu_seconds).sum::<f64>();
    tokio::task::block_in_place(rustix::fs::sync);
    let mut before = used();
    while clock.now() < QUIET_PATIENCE {
        tokio::time::sleep(QUIET_LOOK).await;
        let now = used();
        if now - before < QUIET_CORES * QUIET_LOOK.as_secs_f64() {
            return;
        }
        before = now;
    }
}

/// One measurement.
async fn turn(
    side: &dyn Side,
    workload: &Workload,
    args: &CompareArgs,
    round: u32,
) -> anyhow::Result<Option<Slot>> {
    let processes = Processes::of(side.pids());
    let before = processes.sample();
    let measured = side.run(workload, Duration::from_secs(args.seconds)).await;
    let measured =
        measured.with_context(|| format!("{} under {} failed", side.name(), workload.name))?;
    let Some(measured) = measured else { return Ok(None) };
    if measured.errors > 0 {
        let error = &measured.first_error;
        bail!(
            "{} under {}: {} records failed: {error}",
            side.name(),
            workload.name,
            measured.errors
        );
    }
    Ok(Some(Slot::new(
        side,
        workload,
        (round, args.seconds),
        &measured,
        &before,
        &processes.sample(),
    )))
}

async fn connect(args: &CompareArgs) -> anyhow::Result<Vec<Box<dyn Side>>> {
    let mut sides: Vec<Box<dyn Side>> = Vec::new();
    for server in &args.servers {
        let connected = match server.setting.as_str() {
            "highwater-1" | "highwater-3" => highwater::connect(server, &mut sides).await,
            "nats-r1" | "nats-r1-always" | "nats-r3" | "nats-r3-always" => {
                nats::connect(server, &mut sides).await
            }
            "redis-everysec" | "redis-always" => redis::connect(server, &mut sides).await,
            "rabbitmq" => rabbitmq::connect(server, &mut sides).await,
            other => bail!("there is no setting '{other}'; see --server in the help"),
        };
        connected.with_context(|| format!("cannot connect to {}", server.setting))?;
    }
    sides.push(Box::new(limits::Disk::new(&args.dir)?));
    sides.push(Box::new(limits::Tcp));
    sides.push(Box::new(tonic_limit::BareTonic::start()?));
    Ok(sides)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_name_is_many_workloads_and_a_whole_one_is_one() {
        let count = |only: &str| {
            let only = [only.to_owned()];
            WORKLOADS.iter().filter(|workload| is_wanted(workload.name, &only)).count()
        };
        assert_eq!((count("latency"), count("latency-2000"), count("nothing")), (2, 1, 0));
    }

    #[test]
    fn a_server_is_a_setting_with_addresses_and_processes() {
        let server = parse_server("nats-r3=a:1,b:2@7,8").unwrap();
        assert_eq!(server.setting, "nats-r3");
        assert_eq!(server.addresses, ["a:1", "b:2"]);
        assert_eq!(server.pids, [7, 8]);
        for bad in ["nats-r3", "nats-r3=a:1", "nats-r3=a:1@x"] {
            assert!(parse_server(bad).unwrap_err().contains("SETTING="));
        }
    }
}
