//! A service that publishes: every departure of a flights file, keyed by aircraft.
//!
//! Owns: how a producer is used well: admit, keep the tickets bounded, flush. Never: waits for each event by itself.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use highwater_client::{ClientBuilder, Compression, Record};
use highwater_examples::flight::departures;

/// Publishes the departures of a flights file.
#[derive(Debug, Parser)]
struct Cli {
    /// Brokers, comma separated.
    #[arg(long, env = "HIGHWATER_SERVERS", default_value = "127.0.0.1:7420")]
    servers: String,
    /// The topic; create it with `broker-cli topic create flights --partitions 6`.
    #[arg(long, default_value = "flights")]
    topic: String,
    /// The flights, as CSV, compressed or not.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/data/flights-week1.csv.gz"))]
    file: PathBuf,
    /// Time between two events, in milliseconds.
    #[arg(long, default_value_t = 0)]
    pause_ms: u64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let client = ClientBuilder::from_env()?.servers(&cli.servers).connect().await?;
    let producer = client
        .producer(&cli.topic)
        .linger(Duration::from_millis(5))
        .compression(Compression::Lz4)
        .build();
    let mut published = 0_u64;
    for flight in departures(&cli.file)? {
        let flight = flight?;
        let record = Record::new(flight.to_json()?).with_key(flight.key().to_owned());
        // Waits while too much is under way: a slow cluster slows the service down instead of filling its memory. The
        // ticket may be dropped, because `flush` reports the first failure of any event.
        let _ticket = producer.send(record).await?;
        published += 1;
        if cli.pause_ms > 0 {
            tokio::time::sleep(Duration::from_millis(cli.pause_ms)).await;
        }
    }
    producer.flush().await?;
    println!("published {published} departures, all of them durable");
    producer.close().await?;
    Ok(())
}
