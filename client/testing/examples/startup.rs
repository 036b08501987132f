//! Measures how long a broker takes to be ready inside a test process: `cargo run --release -p highwater-testing --example startup`.
//!
//! Owns: the measurement. Never: a verdict; figures depend on the machine.
#![expect(clippy::disallowed_methods, reason = "measures time")]

use std::time::{Duration, Instant};

use highwater_testing::Broker;

const ROUNDS: usize = 20;

#[tokio::main]
async fn main() {
    let mut ready: Vec<Duration> = Vec::new();
    let mut topics: Vec<Duration> = Vec::new();
    for _ in 0..ROUNDS {
        let begin = Instant::now();
        let broker = Broker::start().await;
        ready.push(begin.elapsed());
        broker.create_topic("orders", 3).await;
        topics.push(begin.elapsed());
        broker.stop().await;
    }
    for (what, mut times) in [("ready", ready), ("and a topic created", topics)] {
        times.sort();
        let (median, slowest) = (times[ROUNDS / 2], times[ROUNDS - 1]);
        println!("{what}: median {median:.1?}, slowest of {ROUNDS} {slowest:.1?}");
    }
}
