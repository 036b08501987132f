//! A compacted topic from the outside, over a real broker: what stays is the last value of each key, at the offset it was
//! acknowledged with.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use highwater_broker::Broker;
use highwater_broker::config::Config;
use highwater_client::{Client, Compression, Event, FetchOptions, NewTopic, Record, Start};
use tempfile::TempDir;

use crate::fake::soon;

const TOPIC: &str = "profiles";
const CODECS: [Compression; 5] = [
    Compression::None,
    Compression::Gzip,
    Compression::Snappy,
    Compression::Lz4,
    Compression::Zstd,
];

async fn start(dir: &TempDir) -> (Broker, Client) {
    let mut config = Config::in_process(dir.path());
    config.raft.tick_ms = 10;
    config.topics.retention_check_ms = 20;
    // A few hundred keys fit, so that it takes several passes.
    config.storage.compaction_map_bytes = 8 << 10;
    let broker = soon(Broker::start(config)).await.unwrap();
    soon(broker.wait_ready()).await;
    let address = broker.client_addr().to_string();
    let client = soon(Client::builder().servers(address).connect()).await.unwrap();
    (broker, client)
}

/// What should be there: value and offset by key.
type Live = BTreeMap<String, (String, i64)>;

async fn publish(client: &Client, codec: Compression, generation: u32, live: &mut Live) {
    let producer = client.producer(TOPIC).compression(codec).build();
    let mut tickets = Vec::new();
    for number in 0..60 {
        let key = format!("{codec}-{number}");
        let value = format!("{generation}-{number}-").repeat(250);
        let record = Record::new(value.clone()).with_key(key.clone());
        tickets.push((key, value, soon(producer.send(record)).await.unwrap()));
    }
    soon(producer.flush()).await.unwrap();
    for (key, value, ticket) in tickets {
        let ack = soon(ticket).await.unwrap();
        live.insert(key, (value, ack.offset));
    }
}

async fn publish_one(client: &Client, record: Record) -> i64 {
    let producer = client.producer(TOPIC).build();
    let ticket = soon(producer.send(record)).await.unwrap();
    soon(producer.flush()).await.unwrap();
    soon(ticket).await.unwrap().offset
}

/// Everything there is, page by page.
async fn fetch_all(client: &Client) -> Vec<Event> {
    let (mut events, mut start) = (Vec::new(), Start::Earliest);
    loop {
        let options = FetchOptions { start, ..FetchOptions::default() };
        let page = soon(client.admin().fetch(TOPIC, 0, options)).await.unwrap();
        events.extend(page.events);
        if page.next_offset >= page.high_watermark {
            return events;
        }
        start = Start::Offset(page.next_offset);
    }
}

fn text(bytes: Option<&str>) -> String {
    bytes.unwrap_or_default().to_owned()
}

/// Waits until nothing but the live values is left, and checks that a subscription sees the same.
async fn settles_to(client: &Client, live: &mut Live) {
    let mut events = Vec::new();
    for look in 0.. {
        assert!(look < 600, "{} records are left of {} keys", events.len(), live.len());
        if look % 60 == 0 {
            // Compaction begins when half of the log is new: one value that is larger than all others together sees to that.
            let value = look.to_string().repeat(400_000);
            let offset = publish_one(client, Record::new(value.clone()).with_key("large")).await;
            live.insert("large".into(), (value, offset));
        }
        events = fetch_all(client).await;
        if events.len() == live.len() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let found: Live = events
        .iter()
        .map(|event| (text(event.key_str()), (text(event.value_str()), event.offset)))
        .collect();
    assert!(found == *live, "every key has its last value, at its offset");
    let mut subscription = soon(client.consumer(TOPIC).subscribe()).await.unwrap();
    for expected in &events {
        let event = soon(subscription.next()).await.unwrap().unwrap();
        assert_eq!(event.offset, expected.offset);
        assert_eq!((event.key, event.value), (expected.key.clone(), expected.value.clone()));
    }
    // From within a gap, and by time.
    let (first, last) = (events.first().unwrap(), events.last().unwrap());
    let middle = events[events.len() / 2].offset;
    for (start, expected) in [
        (Start::Offset(0), first.offset),
        (Start::Offset(middle), middle),
        (Start::Offset(last.offset), last.offset),
        (Start::Timestamp(0), first.offset),
    ] {
        let mut events = soon(client.consumer(TOPIC).start(start).subscribe()).await.unwrap();
        assert_eq!(soon(events.next()).await.unwrap().unwrap().offset, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_last_value_of_each_key_stays_through_restarts_and_with_every_codec() {
    let dir = tempfile::tempdir().unwrap();
    let (mut broker, mut client) = start(&dir).await;
    let topic = NewTopic::new(TOPIC)
        .partitions(1)
        .config("cleanup.policy", "compact")
        .config("segment.bytes", "1048576")
        .config("segment.ms", "1000")
        .config("delete.retention.ms", "50");
    soon(client.admin().create_topic(topic)).await.unwrap();
    let mut live = Live::new();
    for generation in 0..3 {
        for codec in CODECS {
            publish(&client, codec, generation, &mut live).await;
        }
        if generation == 1 {
            settles_to(&client, &mut live).await;
        }
        drop(client);
        soon(broker.stop()).await;
        (broker, client) = start(&dir).await;
    }
    settles_to(&client, &mut live).await;
    // Tombstones take their keys away, and go themselves.
    for number in 0..30_usize {
        let key = format!("{}-{number}", CODECS[number % 5]);
        publish_one(&client, Record::tombstone(key.clone())).await;
        live.remove(&key);
    }
    settles_to(&client, &mut live).await;
    drop(client);
    soon(broker.stop()).await;
    let (broker, client) = start(&dir).await;
    settles_to(&client, &mut live).await;
    soon(broker.stop()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_compacted_topic_cannot_do_is_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let (broker, client) = start(&dir).await;
    let topic = NewTopic::new(TOPIC).partitions(1).config("cleanup.policy", "compact");
    soon(client.admin().create_topic(topic)).await.unwrap();
    let producer = client.producer(TOPIC).build();
    let ticket = soon(producer.send("no key")).await.unwrap();
    soon(producer.flush()).await.ok();
    let error = soon(ticket).await.unwrap_err();
    assert!(error.to_string().contains("no key"), "{error}");
    assert!(!error.may_have_been_written() && !error.is_retriable(), "{error}");
    let offset = publish_one(&client, Record::new("v").with_key("k")).await;
    assert_eq!(offset, 0, "the refused one has left no trace");
    let error = soon(client.admin().trim(TOPIC, 0, Start::Latest)).await.unwrap_err();
    assert!(error.to_string().contains("tombstones"), "{error}");
    soon(broker.stop()).await;
}
