//! Orders from the shop while others break it, and proves afterwards that nothing went wrong: `scripts/shop` runs it.
//!
//! Owns: customers, and the verdict. Never: the rules (`highwater_shop::verify`).

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use futures::{StreamExt, TryStreamExt};
use highwater_shop::events::OrderPlaced;
use highwater_shop::orders::Summary;
use highwater_shop::verify::Stores;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Customers that order at the same time.
const CUSTOMERS: usize = 16;
/// How long to wait for a service that was killed.
const PATIENCE: Duration = Duration::from_secs(300);
const PAUSE: Duration = Duration::from_millis(100);

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Places orders, each until the shop has taken it.
    Place {
        /// Where the order service listens.
        #[arg(long, default_value = "127.0.0.1:8080")]
        shop: String,
        /// How many.
        #[arg(long, default_value_t = 1000)]
        orders: usize,
    },
    /// Waits until every order is decided.
    Wait {
        /// Where the order service listens.
        #[arg(long, default_value = "127.0.0.1:8080")]
        shop: String,
        /// How many there are.
        #[arg(long, default_value_t = 1000)]
        orders: usize,
    },
    /// Holds the stores of the services, which must have ended, against one another.
    Verify {
        /// The folder with the stores.
        #[arg(long, default_value = "./data/shop")]
        data: PathBuf,
        /// How many orders there are.
        #[arg(long, default_value_t = 1000)]
        orders: usize,
    },
}

#[tokio::main]
async fn main() -> Result<()> {
    match Arguments::parse().command {
        Command::Place { shop, orders } => {
            let placing = futures::stream::iter(0..orders).map(|number| place(&shop, number));
            placing.buffer_unordered(CUSTOMERS).try_collect::<()>().await?;
            println!("{orders} orders were placed");
        }
        Command::Wait { shop, orders } => {
            let decided = async {
                loop {
                    if let Ok(summary) = summary(&shop).await
                        && summary.open == 0
                        && summary.confirmed + summary.cancelled == orders
                    {
                        return;
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            };
            if tokio::time::timeout(PATIENCE, decided).await.is_err() {
                bail!("not every order is decided: {:?}", summary(&shop).await);
            }
        }
        Command::Verify { data, orders } => {
            let report = Stores::open(&data)?.verify(orders)?;
            for problem in &report.problems {
                println!("WRONG {problem}");
            }
            println!(
                "{} confirmed (paid and reserved), {} cancelled ({} refunded, {} released), {} problems",
                report.confirmed,
                report.cancelled,
                report.refunded,
                report.released,
                report.problems.len()
            );
            if !report.problems.is_empty() {
                bail!("the services do not agree");
            }
        }
    }
    Ok(())
}

/// Orders something, again and again until it is taken: the order's id is the customer's, so that twice is once.
async fn place(shop: &str, number: usize) -> Result<()> {
    let order = OrderPlaced {
        order_id: format!("o-{number:06}"),
        item: format!("item-{}", number % 5),
        quantity: 1 + u32::try_from(number % 9).unwrap_or(0),
        amount_cents: 1_000 + number as u64,
    };
    let body = serde_json::to_string(&order)?;
    let taken = async {
        loop {
            if let Ok((202, _)) = call(shop, "POST /orders", &body).await {
                return;
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    let taken = tokio::time::timeout(PATIENCE, taken).await;
    taken.with_context(|| format!("order {number} was not taken within {PATIENCE:?}"))
}

async fn summary(shop: &str) -> Result<Summary> {
    let (_, body) = call(shop, "GET /summary", "").await?;
    Ok(serde_json::from_str(&body)?)
}

/// One request over a connection of its own: status and body.
async fn call(shop: &str, what: &str, body: &str) -> Result<(u16, String)> {
    let exchange = async {
        let mut stream = TcpStream::connect(shop).await?;
        let head = format!(
            "{what} HTTP/1.1\r\nhost: shop\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(body.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        anyhow::Ok(answer)
    };
    let answer = tokio::time::timeout(Duration::from_secs(10), exchange).await??;
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
    Ok((status.context("no status")?, body.unwrap_or_default()))
}
