//! The client over real brokers in this process: real sockets, real files.

mod group;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::StreamExt;
use highwater_broker::Broker;
use highwater_broker::config::Config;
use highwater_client::{
    Ack, Acks, BreakerState, Client, Compression, Event, FetchOptions, NewTopic, PartitionState,
    Producer, Record, SendError, Start, Ticket, reason,
};
use highwater_testing::free_address;
use parking_lot::Mutex;
use tempfile::TempDir;

use crate::fake::soon;

const TOPIC: &str = "flights";

/// Nodes with directories and ports that stay theirs when they are started again.
struct Cluster {
    nodes: Vec<Slot>,
    seeds: Vec<String>,
}

struct Slot {
    broker: Option<Broker>,
    /// Of its own, so that ending it ends the node without a word to anybody.
    runtime: Option<tokio::runtime::Runtime>,
    dir: TempDir,
    client_address: String,
    internal_address: String,
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Cluster {
    async fn start(count: usize) -> Self {
        let slots = (0..count).map(|_| Slot {
            broker: None,
            runtime: None,
            dir: tempfile::tempdir().unwrap(),
            client_address: free_address(),
            internal_address: free_address(),
        });
        let nodes: Vec<Slot> = slots.collect();
        let seeds = nodes.iter().map(|slot| slot.internal_address.clone()).collect();
        let mut cluster = Self { nodes, seeds };
        for index in 0..count {
            cluster.launch(index).await;
        }
        for index in 0..count {
            cluster.wait_ready(index).await;
        }
        cluster
    }

    async fn launch(&mut self, index: usize) {
        let slot = &mut self.nodes[index];
        let mut config = Config::in_process(slot.dir.path());
        config.raft.tick_ms = if self.seeds.len() == 1 { 10 } else { 30 };
        config.node.shutdown_ms_max = 2_000;
        config.listen.client = slot.client_address.clone();
        config.listen.internal = slot.internal_address.clone();
        if self.seeds.len() > 1 {
            config.node.seeds = self.seeds.clone();
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let starting = runtime.spawn(Broker::start(config));
        slot.broker = Some(soon(starting).await.unwrap().unwrap());
        slot.runtime = Some(runtime);
    }

    async fn wait_ready(&self, index: usize) {
        soon(self.nodes[index].broker.as_ref().unwrap().wait_ready()).await;
    }

    /// Stops a node in good order and starts it again.
    async fn restart(&mut self, index: usize) {
        let broker = self.nodes[index].broker.take().unwrap();
        soon(broker.stop()).await;
        drop(broker);
        if let Some(runtime) = self.nodes[index].runtime.take() {
            runtime.shutdown_background();
        }
        self.launch(index).await;
        self.wait_ready(index).await;
    }

    /// Ends a node without a word to anybody: its connections break, its ports refuse, its files stay as they are.
    fn kill(&mut self, index: usize) {
        if let Some(runtime) = self.nodes[index].runtime.take() {
            runtime.shutdown_background();
        }
        self.nodes[index].broker = None;
    }

    /// The place of the node that leads a partition.
    async fn leader_of(&self, client: &Client, partition: usize) -> usize {
        let leader = async {
            loop {
                if let Ok(topic) = client.admin().get_topic(TOPIC).await
                    && let Some(leader) = topic.partitions[partition].leader
                {
                    let is_it = |slot: &Slot| {
                        slot.broker.as_ref().is_some_and(|broker| broker.node().id() == leader)
                    };
                    if let Some(index) = self.nodes.iter().position(is_it) {
                        return index;
                    }
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        soon(leader).await
    }

    async fn client(&self) -> Client {
        let addresses: Vec<_> = self.nodes.iter().map(|slot| slot.client_address.clone()).collect();
        let builder = Client::builder().servers(addresses.join(",")).client_id("tests");
        soon(builder.connect()).await.unwrap()
    }

    async fn stop(self) {
        let brokers: Vec<_> = self.nodes.iter().filter_map(|slot| slot.broker.as_ref()).collect();
        soon(futures::future::join_all(brokers.into_iter().map(Broker::stop))).await;
    }
}

async fn create(client: &Client, partitions: u32) {
    let topic = NewTopic::new(TOPIC).partitions(partitions);
    soon(client.admin().create_topic(topic)).await.unwrap();
}

/// What became of every value sent, by partition and in order of sending.
type Histories = BTreeMap<u32, Vec<(String, Result<Ack, SendError>)>>;

/// Publishes numbered values round robin until told to stop.
async fn publish_until(stop: Arc<AtomicBool>, producer: Producer, partitions: u32) -> Histories {
    let mut sent: BTreeMap<u32, Vec<(String, Ticket)>> = BTreeMap::new();
    let mut number = 0u32;
    while !stop.load(Ordering::Acquire) {
        let partition = number % partitions;
        let value = format!("{number}");
        let ticket = soon(producer.send_to_partition(partition, value.as_str())).await.unwrap();
        sent.entry(partition).or_default().push((value, ticket));
        number += 1;
        // Many small batches, so that some are in flight whatever happens.
        if number.is_multiple_of(20) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    let mut histories = Histories::new();
    for (partition, sent) in sent {
        for (value, ticket) in sent {
            let outcome = soon(ticket).await;
            histories.entry(partition).or_default().push((value, outcome));
        }
    }
    histories
}

/// Reads everything from the start while the rest goes on.
async fn read_until(stop: Arc<AtomicBool>, client: Client, read: Arc<Mutex<Vec<Event>>>) {
    let mut events = soon(client.consumer(TOPIC).subscribe()).await.unwrap();
    while !stop.load(Ordering::Acquire) {
        let next = tokio::time::timeout(Duration::from_millis(50), events.next()).await;
        match next {
            Ok(Some(Ok(event))) => read.lock().push(event),
            Ok(Some(Err(error))) => assert!(error.is_retriable(), "{error}"),
            Ok(None) => panic!("the stream ended"),
            Err(_nothing_yet) => {}
        }
    }
}

/// The oracle: acknowledged values once, at their offsets; others at most once; nothing out of order.
fn check(histories: &Histories, read: &[Event]) {
    let mut logs: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    for event in read {
        let log = logs.entry(event.partition).or_default();
        assert_eq!(event.offset, log.len() as i64, "partition {}", event.partition);
        log.push(event.value_str().unwrap().to_owned());
    }
    for (partition, history) in histories {
        let log = logs.remove(partition).unwrap_or_default();
        let mut numbers: Vec<u32> = log.iter().map(|value| value.parse().unwrap()).collect();
        for (value, outcome) in history {
            match outcome {
                Ok(ack) => {
                    let offset = usize::try_from(ack.offset).unwrap();
                    assert_eq!(log.get(offset), Some(value), "acknowledged at {offset}");
                }
                Err(error) => {
                    let there = log.contains(value);
                    assert!(error.may_have_been_written() || !there, "{value}: {error}");
                }
            }
        }
        assert!(numbers.is_sorted(), "partition {partition} is out of order");
        numbers.dedup();
        assert_eq!(numbers.len(), log.len(), "partition {partition} holds repeats");
    }
}

/// Publishes and reads while `trouble` goes on, then checks.
async fn under_load<T>(client: &Client, partitions: u32, trouble: impl Future<Output = T>) -> T {
    let (stop_publishing, stop_reading) = <(Arc<AtomicBool>, Arc<AtomicBool>)>::default();
    let read = Arc::new(Mutex::new(Vec::new()));
    let producer = client.producer(TOPIC).delivery_timeout(Duration::from_secs(45)).build();
    let publishing = publish_until(stop_publishing.clone(), producer, partitions);
    let reading = read_until(stop_reading.clone(), client.clone(), read.clone());
    let trouble = async {
        let outcome = trouble.await;
        stop_publishing.store(true, Ordering::Release);
        outcome
    };
    let finishing = async {
        let (histories, outcome) = futures::join!(publishing, trouble);
        let published: usize = histories.values().map(Vec::len).sum();
        let failed = histories.values().flatten().filter(|(_, outcome)| outcome.is_err()).count();
        assert_eq!(failed, 0, "of {published}");
        assert!(published > 100, "{published} is no load");
        let all_read = async {
            while read.lock().len() < published {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        soon(all_read).await;
        stop_reading.store(true, Ordering::Release);
        (histories, outcome)
    };
    let ((histories, outcome), ()) = futures::join!(finishing, reading);
    check(&histories, &read.lock());
    outcome
}

#[tokio::test(flavor = "multi_thread")]
async fn one_node_keeps_events_once_and_in_order_over_restarts() {
    let mut cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    create(&client, 3).await;
    under_load(&client, 3, async {
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_millis(300)).await;
            cluster.restart(0).await;
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    })
    .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_has_to_start_again_while_every_node_in_turn_does_twenty_times() {
    let mut cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    create(&client, 3).await;
    under_load(&client, 3, async {
        for restart in 0..20 {
            cluster.restart(restart % 3).await;
        }
    })
    .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_to_a_broker_that_is_gone_fail_at_once_until_it_is_back() {
    let mut cluster = Cluster::start(1).await;
    let builder = Client::builder()
        .servers(cluster.nodes[0].client_address.as_str())
        .request_timeout(Duration::from_millis(500));
    let client = soon(builder.connect()).await.unwrap();
    let state = || client.connections()[0].state;
    assert_eq!(state(), BreakerState::Closed);
    let broker = cluster.nodes[0].broker.take().unwrap();
    soon(broker.stop()).await;
    drop(broker);
    cluster.kill(0);
    let failing = async {
        loop {
            let error = client.admin().list_topics(false).await.unwrap_err();
            assert!(error.is_retriable(), "{error}");
            if error.reason() == reason::CIRCUIT_OPEN {
                assert!(!error.may_have_been_written());
                assert!(error.to_string().contains(&cluster.nodes[0].client_address), "{error}");
                return;
            }
        }
    };
    soon(failing).await;
    cluster.launch(0).await;
    cluster.wait_ready(0).await;
    let recovering = async {
        while client.admin().list_topics(false).await.is_err() || state() != BreakerState::Closed {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    soon(recovering).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_keep_events_once_and_in_order_while_leaders_move() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    create(&client, 3).await;
    let admin = client.admin();
    let moved = under_load(&client, 3, async {
        let mut moved = 0;
        for round in 0..9u32 {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let moving = admin.transfer_leadership(TOPIC, round % 3, None);
            moved += usize::from(soon(moving).await.is_ok());
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        moved
    })
    .await;
    assert!(moved >= 3, "{moved} leaders moved");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_keep_events_once_and_in_order_when_a_leader_vanishes_and_another_restarts() {
    let mut cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    create(&client, 2).await;
    under_load(&client, 2, async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        // Its threads keep the directory locked as long as this process lives, so that it cannot come back here; kill -9 and
        // return are for whole processes.
        let vanished = cluster.leader_of(&client, 0).await;
        cluster.kill(vanished);
        let restarted = loop {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let leader = cluster.leader_of(&client, 0).await;
            if leader != vanished {
                break leader;
            }
        };
        // Two of three are left: nothing can be written until it is back.
        cluster.restart(restarted).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
    })
    .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_come_back_as_they_were_sent_with_every_codec_and_level_of_acks() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    create(&client, 1).await;
    let mut sent = Vec::new();
    for (compression, acks) in
        Compression::ALL.into_iter().zip([Acks::QuorumFsync, Acks::Quorum, Acks::Leader].repeat(2))
    {
        let producer = client.producer(TOPIC).compression(compression).acks(acks).build();
        for n in 0..50i64 {
            let record = Record::new(format!("{compression} {n} {}", "z".repeat(100)))
                .with_key(format!("{n}"))
                .with_header("a", "1")
                .with_timestamp_ms(1_000 + n);
            sent.push(record.clone());
            drop(soon(producer.send(record)).await.unwrap());
        }
        sent.push(Record::tombstone("gone"));
        let ack = soon(soon(producer.send(Record::tombstone("gone"))).await.unwrap()).await;
        assert!(!ack.unwrap().duplicate);
        soon(producer.close()).await.unwrap();
    }
    let mut events = soon(client.consumer(TOPIC).subscribe()).await.unwrap();
    for (at, record) in sent.iter().enumerate() {
        let event = soon(events.next()).await.unwrap().unwrap();
        assert_eq!(event.offset, at as i64);
        assert_eq!(event.value, record.value);
        assert_eq!(event.key, record.key);
        assert_eq!(event.headers, record.headers);
        if let Some(timestamp_ms) = record.timestamp_ms {
            assert_eq!(event.timestamp_ms, timestamp_ms);
        }
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_start_position_means_what_it_says_on_a_real_log() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    create(&client, 1).await;
    let producer = client.producer(TOPIC).build();
    for n in 0..30i64 {
        let record = Record::new(format!("{n}")).with_timestamp_ms(n * 1_000);
        soon(soon(producer.send(record)).await.unwrap()).await.unwrap();
    }
    let cases = [
        (Start::Earliest, 0),
        (Start::Offset(12), 12),
        (Start::Timestamp(7_500), 8),
        (Start::Latest, 30),
    ];
    for (start, first) in cases {
        let mut events = soon(client.consumer(TOPIC).start(start).subscribe()).await.unwrap();
        if start == Start::Latest {
            let ticket = soon(producer.send("behind")).await.unwrap();
            soon(ticket).await.unwrap();
        }
        let event = soon(events.next()).await.unwrap().unwrap();
        assert_eq!(event.offset, first, "{start:?}");
        events.seek(0, Start::Offset(3)).unwrap();
        let event = soon(events.next()).await.unwrap().unwrap();
        assert_eq!(event.offset, 3, "{start:?}");
    }
    let behind = client.consumer(TOPIC).start(Start::Offset(500));
    let mut events = soon(behind.subscribe()).await.unwrap();
    let error = soon(events.next()).await.unwrap().unwrap_err();
    assert_eq!(error.reason(), "OFFSET_OUT_OF_RANGE");
    assert!(soon(events.next()).await.is_none());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_are_administered_and_read_once_from_any_node() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    let admin = client.admin();
    let topic = NewTopic::new(TOPIC).partitions(2).replication_factor(3);
    let created = soon(admin.create_topic(topic.clone())).await.unwrap();
    assert_eq!((created.partitions.len(), created.replication_factor), (2, 3));
    let twice = soon(admin.create_topic(topic)).await.unwrap_err();
    assert_eq!(twice.reason(), "TOPIC_EXISTS");
    assert!(!twice.is_retriable() && !twice.may_have_been_written());
    assert_eq!(twice.code(), highwater_client::Code::AlreadyExists);

    let set = [("retention.ms".to_owned(), "60000".to_owned())];
    let changed = soon(admin.update_topic(TOPIC, set, [])).await.unwrap();
    assert_eq!(changed.config["retention.ms"], "60000");
    let listed = soon(admin.list_topics(false)).await.unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].config["retention.ms"], "60000");
    let options = soon(admin.topic_options()).await.unwrap();
    assert!(options.iter().any(|option| option.key == "segment.bytes"));

    let producer = client.producer(TOPIC).partition(1).build();
    for n in 0..10 {
        soon(soon(producer.send(n.to_string())).await.unwrap()).await.unwrap();
    }
    let options = FetchOptions { start: Start::Offset(4), records_max: 3, ..Default::default() };
    for _ in 0..3 {
        let fetched = soon(admin.fetch(TOPIC, 1, options)).await.unwrap();
        let offsets: Vec<_> = fetched.events.iter().map(|event| event.offset).collect();
        assert_eq!(offsets, [4, 5, 6]);
        assert_eq!((fetched.next_offset, fetched.high_watermark), (7, 10));
    }
    assert_eq!(soon(admin.trim(TOPIC, 1, Start::Offset(6))).await.unwrap(), 6);
    let described = soon(admin.get_topic(TOPIC)).await.unwrap();
    assert_eq!(described.partitions[1].log_start_offset, 6);
    assert_eq!(described.partitions[1].high_watermark, 10);
    assert_ne!(described.partitions[1].state, PartitionState::Leaderless);

    let info = soon(admin.cluster_info()).await.unwrap();
    assert_eq!((info.nodes.len(), info.topics), (3, 1));
    assert!(info.metadata_leader.is_some() && !info.broker.cluster_id.is_empty());
    let routing = soon(admin.metadata(&[TOPIC])).await.unwrap();
    assert_eq!(routing.topics[0].partitions.len(), 2);
    let well = async {
        while !admin.health().await.unwrap().healthy {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    soon(well).await;

    let id = soon(admin.delete_topic(TOPIC)).await.unwrap();
    assert_eq!(id, created.id);
    // Nodes learn of it one after the other.
    let gone = async {
        loop {
            match admin.get_topic(TOPIC).await {
                Ok(_still_there) => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(error) => return error,
            }
        }
    };
    assert_eq!(soon(gone).await.reason(), "UNKNOWN_TOPIC");
    let orphan = async { producer.send("late").await?.await };
    let orphan = soon(orphan).await.unwrap_err();
    assert_eq!(orphan.reason(), "UNKNOWN_TOPIC");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_is_refused_with_its_reason_before_anything_is_written() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let admin = client.admin();
    let bad_name = soon(admin.create_topic(NewTopic::new("no spaces"))).await.unwrap_err();
    assert_eq!(bad_name.reason(), "INVALID_ARGUMENT");
    let bad_key = NewTopic::new(TOPIC).config("retention.mss", "1");
    assert_eq!(soon(admin.create_topic(bad_key)).await.unwrap_err().reason(), "INVALID_ARGUMENT");
    let small = NewTopic::new(TOPIC).config("max.message.bytes", "2000");
    soon(admin.create_topic(small)).await.unwrap();
    let producer = client.producer(TOPIC).build();
    let large = soon(producer.send("x".repeat(2_001))).await.unwrap_err();
    assert_eq!(large.reason(), "TOO_LARGE");
    soon(soon(producer.send("x".repeat(2_000))).await.unwrap()).await.unwrap();
    let builder = Client::builder().servers("127.0.0.1:1");
    let builder = builder.connect_timeout(Duration::from_millis(300));
    let unreachable = soon(builder.connect()).await.unwrap_err();
    assert!(unreachable.is_retriable());
    assert!(unreachable.to_string().contains("127.0.0.1:1"), "{unreachable}");
    cluster.stop().await;
}
