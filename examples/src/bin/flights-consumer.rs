//! A service that subscribes: keeps the mean departure delay of each carrier, and prints it as it changes.
//!
//! Owns: how a consumer is used well: one stream, errors told apart by whether reading goes on. Never: remembers where it
//! was; it reads from the start each time (groups will remember).

use std::collections::BTreeMap;

use clap::Parser;
use futures::StreamExt;
use highwater_client::{ClientBuilder, Start};
use highwater_examples::flight::Departure;

/// Prints the mean departure delay of each carrier.
#[derive(Debug, Parser)]
struct Cli {
    /// Brokers, comma separated.
    #[arg(long, env = "HIGHWATER_SERVERS", default_value = "127.0.0.1:7420")]
    servers: String,
    /// The topic.
    #[arg(long, default_value = "flights")]
    topic: String,
    /// Print after this many departures.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    every: u64,
}

/// Departures of a carrier.
#[derive(Debug, Default)]
struct Tally {
    departed: u64,
    cancelled: u64,
    delay_minutes: i64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let client = ClientBuilder::from_env()?.servers(&cli.servers).connect().await?;
    let mut events = client.consumer(&cli.topic).start(Start::Earliest).subscribe().await?;
    let mut carriers: BTreeMap<String, Tally> = BTreeMap::new();
    let mut seen = 0_u64;
    while let Some(event) = events.next().await {
        let event = match event {
            Ok(event) => event,
            Err(error) if error.is_retriable() => {
                eprintln!("{error}");
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let Ok(flight) = Departure::from_json(event.value.as_deref().unwrap_or_default()) else {
            // An event that this version cannot read must not stop those behind it.
            eprintln!("partition {}, offset {} is no departure", event.partition, event.offset);
            continue;
        };
        let tally = carriers.entry(flight.row.carrier).or_default();
        match flight.row.dep_delay {
            Some(minutes) => {
                tally.departed += 1;
                tally.delay_minutes += i64::from(minutes);
            }
            None => tally.cancelled += 1,
        }
        seen += 1;
        if seen.is_multiple_of(cli.every) {
            print(seen, &carriers);
        }
    }
    Ok(())
}

fn print(seen: u64, carriers: &BTreeMap<String, Tally>) {
    println!("after {seen} departures:");
    for (carrier, tally) in carriers {
        let mean = tally.delay_minutes as f64 / tally.departed.max(1) as f64;
        let (departed, cancelled) = (tally.departed, tally.cancelled);
        println!(
            "  {carrier}  {departed:>6} departed {mean:>6.1} min late, {cancelled:>4} cancelled"
        );
    }
}
