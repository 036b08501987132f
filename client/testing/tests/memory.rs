//! A client's memory stays within what it was configured with, whoever stands still: the broker, or the service itself.
//!
//! In a process of its own, because every allocation counts: those of the broker in it as well, which does nothing meanwhile.

use std::time::Duration;

use futures::StreamExt;
use highwater_client::{Producer, Start, Ticket};
use highwater_testing::{Broker, soon};
use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATED: PeakAlloc = PeakAlloc;

const TOPIC: &str = "orders";
const RECORD_BYTES: usize = 1 << 10;
const MIB: usize = 1 << 20;
/// What a producer may have under way, and a consumer have waiting.
const BOUND: usize = 4 * MIB;
/// What everything else may take while nothing moves: tickets, messages around the batches, what the network in between holds.
const BESIDE: usize = 4 * MIB;
/// How long nothing moves. Without a bound, memory would grow by hundreds of MiB.
const STANDSTILL: Duration = Duration::from_secs(3);

fn mib(bytes: usize) -> f64 {
    bytes as f64 / MIB as f64
}

/// Publishes without waiting for any acknowledgement, until it has been held up once.
async fn send_until_held_up(producer: &Producer, record: &[u8]) -> Vec<Ticket> {
    let mut tickets = Vec::new();
    while let Ok(sent) = tokio::time::timeout(STANDSTILL, producer.send(record.to_vec())).await {
        tickets.push(sent.expect("it waits rather than refuse"));
        assert!(tickets.len() * RECORD_BYTES <= 64 * BOUND, "nothing holds it up");
    }
    tickets
}

// One test, so that no other one allocates beside it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_is_flat_while_a_broker_or_a_service_stands_still() {
    let broker = Broker::start().await;
    broker.create_topic(TOPIC, 1).await;
    let client = broker.client().await;
    let record = vec![7; RECORD_BYTES];

    // A broker that hangs: `send` waits.
    let producer = client.producer(TOPIC).unacked_bytes_max(BOUND).build();
    soon("publishing", async { producer.send(record.clone()).await?.await }).await.unwrap();
    let before = ALLOCATED.current_usage();
    broker.faults().stall();
    ALLOCATED.reset_peak_usage();
    let tickets = soon("being held up", send_until_held_up(&producer, &record)).await;
    assert!(tickets.len() * RECORD_BYTES <= BOUND, "{} records", tickets.len());
    let first = ALLOCATED.peak_usage() - before;
    assert!(first <= BOUND + BESIDE, "{:.1} MiB for {:.1}", mib(first), mib(BOUND));
    // What is tried again in the meantime is the same bytes.
    ALLOCATED.reset_peak_usage();
    tokio::time::sleep(STANDSTILL).await;
    let peak = ALLOCATED.peak_usage() - before;
    assert!(peak <= BOUND + BESIDE, "{:.1} MiB for {:.1}, later", mib(peak), mib(BOUND));
    println!("producer: {:.1} MiB, later {:.1}, for {:.1}", mib(first), mib(peak), mib(BOUND));
    broker.faults().clear();
    for ticket in tickets {
        soon("what waited", ticket).await.unwrap();
    }

    // A service that does not take its events.
    let producer = client.producer(TOPIC).build();
    let waiting = 16 * BOUND / RECORD_BYTES;
    let mut last = None;
    for _ in 0..waiting {
        last = Some(producer.send(record.clone()).await.unwrap());
    }
    let end = soon("publishing", last.unwrap()).await.unwrap().offset;
    drop(producer);
    let before = ALLOCATED.current_usage();
    ALLOCATED.reset_peak_usage();
    let consumer = client.consumer(TOPIC).start(Start::Earliest).credit_bytes(BOUND);
    let mut events = consumer.subscribe().await.unwrap();
    soon("reading", events.next()).await.unwrap().unwrap();
    tokio::time::sleep(STANDSTILL).await;
    let peak = ALLOCATED.peak_usage().saturating_sub(before);
    assert!(peak <= BOUND + BESIDE, "{:.1} MiB for {:.1}", mib(peak), mib(BOUND));
    println!("consumer: {:.1} MiB for {:.1}", mib(peak), mib(BOUND));
    let to_the_end = async { while events.next().await.unwrap().unwrap().offset != end {} };
    soon("reading to the end", to_the_end).await;
}
