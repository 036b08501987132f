//! Publishing: the unary way and the stream.

use std::collections::BTreeMap;

use highwater_proto::partitioner::partition_for_key;
use highwater_proto::v1;
use v1::produce_stream_response::Message;

use crate::harness::*;

fn to(topic: &str, partition: u32, request_id: u64, batch: bytes::Bytes) -> v1::ProduceBatch {
    v1::ProduceBatch { request_id, topic: topic.to_owned(), partition, batch, ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn structured_records_come_back_as_they_were_published() {
    let broker = TestBroker::start().await;
    let clients = broker.clients();
    clients.create_topic("orders", 1).await;
    let full = v1::Record {
        key: Some("k".into()),
        value: Some("v".into()),
        headers: vec![
            v1::Header { key: "a".into(), value: Some("1".into()) },
            v1::Header { key: "a".into(), value: None },
        ],
        timestamp_ms: Some(1_234),
    };
    let request = v1::ProduceRequest {
        topic: "orders".into(),
        records: vec![full.clone(), v1::Record::default()],
        compression: v1::Compression::Zstd.into(),
        ..Default::default()
    };
    let acks = clients.producer().produce(request).await.unwrap().into_inner().acks;
    assert_eq!((acks[0].base_offset, acks[0].record_count), (0, 2));
    assert_eq!(acks[0].reached(), v1::Acks::QuorumFsync);
    assert!(acks[0].leader_epoch > 0 && acks[0].append_time_ms > 0);
    let fetched = clients.fetch("orders", 0, start()).await.unwrap();
    let first = &fetched.records[0];
    assert_eq!((first.offset, first.timestamp_ms), (0, 1_234));
    assert_eq!((&first.key, &first.value), (&full.key, &full.value));
    assert_eq!(first.headers, full.headers);
    let second = &fetched.records[1];
    assert_eq!((&second.key, &second.value), (&None, &None));
    assert!(second.timestamp_ms > 1_600_000_000_000, "the broker's clock");
    assert_eq!((fetched.next_offset, fetched.high_watermark), (2, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_decide_the_partition_and_each_partition_gets_one_ack() {
    let broker = TestBroker::start().await;
    let clients = broker.clients();
    clients.create_topic("orders", 4).await;
    let keys: Vec<String> = (0..40).map(|number| format!("key-{number}")).collect();
    let records =
        keys.iter().map(|key| v1::Record { key: Some(key.clone().into()), ..record(key) });
    let request = v1::ProduceRequest {
        topic: "orders".into(),
        records: records.collect(),
        ..Default::default()
    };
    let acks = clients.producer().produce(request).await.unwrap().into_inner().acks;
    let total: u32 = acks.iter().map(|ack| ack.record_count).sum();
    assert_eq!(total, 40);
    for ack in &acks {
        let fetched = clients.fetch("orders", ack.partition, start()).await.unwrap();
        let expected: Vec<String> = keys
            .iter()
            .filter(|key| partition_for_key(key.as_bytes(), 4) == ack.partition)
            .cloned()
            .collect();
        assert_eq!(values(&fetched.records), expected, "in the order published");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_answers_in_order_per_partition() {
    const BATCHES: u64 = 300;
    let broker = TestBroker::start().await;
    let clients = broker.clients();
    clients.create_topic("orders", 3).await;
    let mut stream = clients.produce_stream(v1::ProduceInit::default()).await;
    let initialized = stream.initialized().await;
    assert_eq!(initialized.producer_id, 0);
    assert_eq!(initialized.broker.as_ref().unwrap().node_id, broker.broker.node().id());
    assert!(initialized.batch_bytes_max > 0 && initialized.in_flight_bytes_max > 0);
    for request_id in 1..=BATCHES {
        let partition = u32::try_from(request_id % 3).unwrap();
        stream.send_batch(to("orders", partition, request_id, batch(&["a", "b"]))).await;
    }
    stream.close();
    let mut acks: BTreeMap<u32, Vec<v1::ProduceAck>> = BTreeMap::new();
    while let Some(answer) = stream.next().await {
        let Message::Ack(ack) = answer.unwrap() else { panic!("only acks") };
        acks.entry(ack.partition).or_default().push(ack);
    }
    assert_eq!(acks.values().map(Vec::len).sum::<usize>() as u64, BATCHES);
    for acks in acks.values() {
        assert!(acks.is_sorted_by_key(|ack| ack.request_id));
        let offsets: Vec<i64> = acks.iter().map(|ack| ack.base_offset).collect();
        let expected: Vec<i64> = (0..).step_by(2).take(acks.len()).collect();
        assert_eq!(offsets, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_bad_batch_fails_alone_and_the_stream_goes_on() {
    let broker = TestBroker::start().await;
    let clients = broker.clients();
    clients.create_topic("orders", 1).await;
    let mut stream = clients.produce_stream(v1::ProduceInit::default()).await;
    stream.initialized().await;
    let mut flipped = batch(&["x"]).to_vec();
    *flipped.last_mut().unwrap() ^= 1;
    let large = "x".repeat((1 << 20) + 1);
    let with_id = |topic_id: &str| v1::ProduceBatch {
        topic_id: topic_id.to_owned(),
        ..to("orders", 0, 5, batch(&["x"]))
    };
    let bad_acks = v1::ProduceBatch { acks: 77, ..to("orders", 0, 6, batch(&["x"])) };
    let mut too_large = batch(&["x"]).to_vec();
    too_large.resize((4 << 20) + 1, 0);
    let limits = highwater_proto::batch::BatchLimits::default();
    assert!(large.len() > limits.record_bytes_max);
    for (bad, expected) in [
        (to("orders", 0, 1, flipped.into()), "INVALID_BATCH"),
        (to("nowhere", 0, 2, batch(&["x"])), "UNKNOWN_TOPIC"),
        (to("orders", 9, 3, batch(&["x"])), "UNKNOWN_PARTITION"),
        (to("orders", 0, 4, "not a batch".into()), "INVALID_BATCH"),
        (with_id("11111111-2222-3333-4444-555555555555"), "TOPIC_ID_MISMATCH"),
        (bad_acks, "INVALID_ARGUMENT"),
        (to("orders", 0, 7, bytes::Bytes::new()), "INVALID_BATCH"),
        (to("orders", 0, 8, too_large.into()), "TOO_LARGE"),
    ] {
        let request_id = bad.request_id;
        stream.send_batch(bad).await;
        let error = stream.failure(request_id).await;
        assert_eq!(error.reason, expected, "{error:?}");
        assert!(!error.retriable && !error.may_have_been_written, "{error:?}");
        assert!(!error.message.is_empty());
    }
    stream.send_batch(to("orders", 0, 9, batch(&["fine"]))).await;
    assert_eq!(stream.ack().await.base_offset, 0, "nothing of the bad ones was written");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_batch_of_an_idempotent_producer_gets_its_first_answer() {
    let broker = TestBroker::start().await;
    let clients = broker.clients();
    clients.create_topic("orders", 1).await;
    let init = v1::ProduceInit { idempotent: true, ..Default::default() };
    let mut stream = clients.produce_stream(init.clone()).await;
    let producer_id = stream.initialized().await.producer_id;
    assert!(producer_id > 0);
    let first = batch_of(&["a", "b"], Some((producer_id, 0)));
    let second = batch_of(&["c"], Some((producer_id, 2)));
    for (request_id, batch) in [(1, &first), (2, &second), (3, &first), (4, &second)] {
        stream.send_batch(to("orders", 0, request_id, batch.clone())).await;
    }
    let mut answers = Vec::new();
    for _ in 0..4 {
        let ack = stream.ack().await;
        answers.push((ack.request_id, ack.base_offset, ack.duplicate));
    }
    assert_eq!(answers, [(1, 0, false), (2, 2, false), (3, 0, true), (4, 2, true)]);
    let gap = batch_of(&["e"], Some((producer_id, 9)));
    stream.send_batch(to("orders", 0, 5, gap)).await;
    let error = stream.failure(5).await;
    assert_eq!((error.reason.as_str(), error.retriable), ("OUT_OF_ORDER_SEQUENCE", false));
    // The same producer on another stream is recognised; another init gets another id.
    let known = v1::ProduceInit { producer_id, ..init.clone() };
    let mut again = clients.produce_stream(known).await;
    assert_eq!(again.initialized().await.producer_id, producer_id);
    again.send_batch(to("orders", 0, 1, first)).await;
    assert!(again.ack().await.duplicate);
    let mut other = clients.produce_stream(init).await;
    assert_ne!(other.initialized().await.producer_id, producer_id);
    let fetched = clients.fetch("orders", 0, start()).await.unwrap();
    assert_eq!(values(&fetched.records), ["a", "b", "c"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_level_of_acks_says_what_it_reached() {
    let broker = TestBroker::start().await;
    let clients = broker.clients();
    clients.create_topic("orders", 1).await;
    for acks in [v1::Acks::QuorumFsync, v1::Acks::Quorum, v1::Acks::Leader] {
        let request = v1::ProduceRequest {
            topic: "orders".into(),
            acks: acks.into(),
            records: vec![record("x")],
            ..Default::default()
        };
        let answer = clients.producer().produce(request).await.unwrap().into_inner();
        assert_eq!(answer.acks[0].reached(), acks);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_the_bound_in_flight_is_slowed_down_and_nothing_is_lost() {
    const BATCHES: u64 = 40;
    let broker = TestBroker::start_with(|config| {
        config.limits.in_flight_bytes_per_connection = 4 << 20;
        config.limits.in_flight_bytes = 4 << 20;
    })
    .await;
    let clients = broker.clients();
    clients.create_topic("orders", 1).await;
    let value = "x".repeat(900 << 10);
    let mut stream = clients.produce_stream(v1::ProduceInit::default()).await;
    assert_eq!(stream.initialized().await.in_flight_bytes_max, 4 << 20);
    for request_id in 0..BATCHES {
        stream.send_batch(to("orders", 0, request_id, batch(&[&value]))).await;
    }
    stream.close();
    let mut answered = 0;
    while let Some(answer) = stream.next().await {
        let Message::Ack(ack) = answer.unwrap() else { panic!("only acks") };
        assert_eq!((ack.request_id, ack.base_offset as u64), (answered, answered));
        answered += 1;
    }
    assert_eq!(answered, BATCHES);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_broker_says_goodbye_and_ends_the_stream() {
    let broker = TestBroker::start().await;
    let clients = broker.clients();
    clients.create_topic("orders", 1).await;
    let mut stream = clients.produce_stream(v1::ProduceInit::default()).await;
    stream.initialized().await;
    stream.send_batch(to("orders", 0, 1, batch(&["a"]))).await;
    assert_eq!(stream.ack().await.request_id, 1);
    let reading = async {
        let mut seen = Vec::new();
        while let Some(Ok(message)) = stream.next().await {
            seen.push(message);
        }
        seen
    };
    let (seen, ()) = tokio::join!(reading, soon("stopping", broker.broker.stop()));
    assert!(matches!(seen.as_slice(), [Message::Goodbye(_)]), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_are_created_by_writing_only_where_that_is_configured() {
    let request = || v1::ProduceRequest {
        topic: "new".into(),
        records: vec![record("x")],
        ..Default::default()
    };
    let strict = TestBroker::start().await;
    let refused = strict.clients().producer().produce(request()).await.unwrap_err();
    assert_eq!(reason(&refused), "UNKNOWN_TOPIC");
    let lenient = TestBroker::start_with(|config| {
        config.topics.auto_create = true;
        config.topics.default_partitions = 2;
    })
    .await;
    lenient.clients().producer().produce(request()).await.unwrap();
    let illegal = v1::ProduceRequest { topic: "a/b".into(), ..request() };
    let refused = lenient.clients().producer().produce(illegal).await.unwrap_err();
    assert_eq!(reason(&refused), "INVALID_ARGUMENT");
    let list = v1::TopicServiceListRequest::default();
    let topics = lenient.clients().topics().list(list).await.unwrap().into_inner().topics;
    assert_eq!((topics[0].name.as_str(), topics[0].partitions), ("new", 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topics_codec_is_what_batches_are_stored_with() {
    let broker = TestBroker::start().await;
    let clients = broker.clients();
    let request = v1::TopicServiceCreateRequest {
        name: "packed".into(),
        config: [("compression.type".to_owned(), "zstd".to_owned())].into(),
        ..Default::default()
    };
    clients.topics().create(request).await.unwrap();
    // Long enough that packing it pays: what would only grow is stored plain.
    let same = "same".repeat(100);
    clients.publish("packed", 0, &[&same, &same]).await;
    let mut stream = clients.produce_stream(v1::ProduceInit::default()).await;
    stream.initialized().await;
    let plain = "plain".repeat(100);
    stream.send_batch(to("packed", 0, 1, batch(&[&plain]))).await;
    assert_eq!(stream.ack().await.base_offset, 2);
    let request = v1::FetchRequest {
        topic: "packed".into(),
        format: v1::FetchFormat::Batches.into(),
        ..Default::default()
    };
    let batches = clients.consumer().fetch(request).await.unwrap().into_inner().batches;
    assert_eq!(batches.len(), 2);
    for batch in batches {
        let header = highwater_proto::batch::BatchHeader::read(&batch).unwrap();
        let zstd = highwater_proto::batch::Compression::Zstd;
        assert_eq!(header.compression().unwrap(), zstd);
    }
    let fetched = clients.fetch("packed", 0, start()).await.unwrap();
    assert_eq!(values(&fetched.records), [&same, &same, &plain].map(String::clone));
}
