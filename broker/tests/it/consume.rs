//! Reading: the unary way and subscriptions.

use std::collections::BTreeMap;
use std::time::Duration;

use highwater_proto::batch::BatchView;
use highwater_proto::v1;
use v1::position::At;
use v1::subscribe_request::Message as Request;
use v1::subscribe_response::Message as Response;

use crate::harness::*;

const PLENTY: v1::Credit = v1::Credit { bytes: 1 << 30, records: 1 << 30 };

fn init(partitions: &[u32], at: At, credit: v1::Credit) -> v1::SubscribeInit {
    v1::SubscribeInit {
        partitions: partitions.iter().map(|&partition| wanted(partition, at)).collect(),
        credit: Some(credit),
        ..Default::default()
    }
}

fn wanted(partition: u32, at: At) -> v1::SubscribePartition {
    v1::SubscribePartition {
        topic: "orders".into(),
        partition,
        position: position(at),
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fetch_starts_where_the_position_says() {
    let broker = TestBroker::start().await;
    let clients = broker.clients();
    clients.create_topic("orders", 1).await;
    for number in 0..5_i64 {
        let request = v1::ProduceRequest {
            topic: "orders".into(),
            records: vec![v1::Record {
                timestamp_ms: Some(1_000 + number * 10),
                ..record(&number.to_string())
            }],
            ..Default::default()
        };
        clients.producer().produce(request).await.unwrap();
    }
    for (at, expected) in [
        (start(), 0),
        (At::Offset(3), 3),
        (At::TimestampMs(0), 0),
        (At::TimestampMs(1_020), 2),
        (At::TimestampMs(1_021), 3),
        (At::TimestampMs(9_999), 5),
        (At::End(v1::position::End {}), 5),
        (At::Offset(5), 5),
    ] {
        let fetched = clients.fetch("orders", 0, at).await.unwrap();
        let first = fetched.records.first().map_or(fetched.next_offset, |record| record.offset);
        assert_eq!(first, expected, "{at:?}");
        assert_eq!(fetched.records.len() as i64, 5 - expected, "{at:?}");
        assert_eq!(fetched.next_offset, 5);
    }
    for outside in [-1, 6, i64::MAX, i64::MIN] {
        let status = clients.fetch("orders", 0, At::Offset(outside)).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::OutOfRange, "{outside}: {status}");
        assert_eq!(reason(&status), "OFFSET_OUT_OF_RANGE");
        assert_eq!(fact(&status, "high_watermark").as_deref(), Some("5"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fetch_is_bounded_in_records_and_bytes_and_continues_without_a_gap() {
    let broker = TestBroker::start().await;
    let clients = broker.clients();
    clients.create_topic("orders", 1).await;
    let all: Vec<String> = (0..20).map(|number| format!("value-{number:03}")).collect();
    for chunk in all.chunks(5) {
        let chunk: Vec<&str> = chunk.iter().map(String::as_str).collect();
        clients.publish("orders", 0, &chunk).await;
    }
    for (records_max, bytes_max) in [(3, 0), (0, 1), (0, 40), (7, 1_000)] {
        let (mut seen, mut next) = (Vec::new(), 0);
        while next < 20 {
            let request = v1::FetchRequest {
                topic: "orders".into(),
                position: position(At::Offset(next)),
                records_max,
                bytes_max,
                ..Default::default()
            };
            let fetched = clients.consumer().fetch(request).await.unwrap().into_inner();
            assert!(!fetched.records.is_empty());
            assert!(records_max == 0 || fetched.records.len() <= records_max as usize);
            assert_eq!(fetched.records[0].offset, next);
            next = fetched.next_offset;
            seen.extend(values(&fetched.records));
        }
        assert_eq!(seen, all);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_fetch_wakes_up_when_something_is_published() {
    let broker = TestBroker::start().await;
    let clients = broker.clients();
    clients.create_topic("orders", 1).await;
    let waiting =
        v1::FetchRequest { topic: "orders".into(), wait_ms_max: 60_000, ..Default::default() };
    let mut consumer = clients.consumer();
    let mut fetching = std::pin::pin!(consumer.fetch(waiting));
    let early = tokio::time::timeout(Duration::from_millis(100), &mut fetching).await;
    assert!(early.is_err(), "there is nothing to read yet");
    clients.publish("orders", 0, &["late"]).await;
    let fetched = soon("waking up", fetching).await.unwrap().into_inner();
    assert_eq!(values(&fetched.records), ["late"]);
    let empty = v1::FetchRequest {
        topic: "orders".into(),
        position: position(At::Offset(1)),
        wait_ms_max: 50,
        ..Default::default()
    };
    let fetched = clients.consumer().fetch(empty).await.unwrap().into_inner();
    assert_eq!((fetched.records.len(), fetched.next_offset), (0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_reads_what_is_there_and_then_what_comes() {
    let broker = TestBroker::start().await;
    let clients = broker.clients();
    clients.create_topic("orders", 1).await;
    clients.publish("orders", 0, &["a", "b"]).await;
    let mut subscription = clients.subscribe(init(&[0], start(), PLENTY)).await;
    let assigned = subscription.assigned().await;
    assert_eq!((assigned.offset, assigned.high_watermark), (0, 2));
    assert!(!assigned.topic_id.is_empty());
    let first = subscription.batch().await;
    assert_eq!(values(&first.records), ["a", "b"]);
    assert_eq!((first.next_offset, first.record_count), (2, 2));
    assert!(subscription.is_silent().await);
    clients.publish("orders", 0, &["c"]).await;
    let second = subscription.batch().await;
    assert_eq!((values(&second.records), second.next_offset), (vec!["c".to_owned()], 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_sent_without_credit_for_both_bytes_and_records() {
    let broker = TestBroker::start().await;
    let clients = broker.clients();
    clients.create_topic("orders", 1).await;
    clients.publish("orders", 0, &["a", "b", "c", "d", "e"]).await;
    let nothing = v1::Credit::default();
    let mut subscription = clients.subscribe(init(&[0], start(), nothing)).await;
    subscription.assigned().await;
    assert!(subscription.is_silent().await);
    subscription.credit(1_000, 0).await;
    assert!(subscription.is_silent().await);
    subscription.credit(0, 2).await;
    assert_eq!(values(&subscription.batch().await.records), ["a", "b"]);
    assert!(subscription.is_silent().await);
    subscription.credit(0, 1).await;
    assert_eq!(values(&subscription.batch().await.records), ["c"]);
    subscription.credit(0, 100).await;
    assert_eq!(values(&subscription.batch().await.records), ["d", "e"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn stored_batches_overdraw_once_and_may_begin_before_the_position() {
    let broker = TestBroker::start().await;
    let clients = broker.clients();
    clients.create_topic("orders", 1).await;
    clients.publish("orders", 0, &["a", "b", "c"]).await;
    clients.publish("orders", 0, &["d", "e"]).await;
    let init = v1::SubscribeInit {
        format: v1::FetchFormat::Batches.into(),
        ..init(&[0], At::Offset(1), v1::Credit { bytes: 1, records: 1 })
    };
    let mut subscription = clients.subscribe(init).await;
    assert_eq!(subscription.assigned().await.offset, 1);
    let first = subscription.batch().await;
    assert_eq!((first.batches.len(), first.next_offset, first.record_count), (1, 3, 2));
    let view = BatchView::parse(first.batches[0].clone()).unwrap();
    assert_eq!(view.header().base_offset, 0, "stamped by the broker");
    let offsets: Vec<i64> = view.records().unwrap().map(|record| record.unwrap().offset).collect();
    assert_eq!(offsets, [0, 1, 2]);
    assert!(subscription.is_silent().await, "overdrawn");
    subscription.credit(1 << 20, 1 << 20).await;
    let second = subscription.batch().await;
    assert_eq!(BatchView::parse(second.batches[0].clone()).unwrap().header().base_offset, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_partitions_of_a_subscription_get_their_turn() {
    let broker = TestBroker::start().await;
    let clients = broker.clients();
    clients.create_topic("orders", 3).await;
    for partition in 0..3 {
        for number in 0..20 {
            clients.publish("orders", partition, &[&format!("{partition}-{number}")]).await;
        }
    }
    // One record at a time: after nine, each partition must have had three.
    let init = init(&[0, 1, 2], start(), v1::Credit { bytes: 1 << 20, records: 0 });
    let mut subscription = clients.subscribe(init).await;
    for _ in 0..3 {
        subscription.assigned().await;
    }
    let mut seen: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    for _ in 0..9 {
        subscription.credit(0, 1).await;
        let batch = subscription.batch().await;
        assert_eq!(batch.record_count, 1);
        seen.entry(batch.partition).or_default().extend(values(&batch.records));
    }
    for partition in 0..3 {
        let expected: Vec<String> = (0..3).map(|number| format!("{partition}-{number}")).collect();
        assert_eq!(seen[&partition], expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seek_continues_elsewhere_and_says_so() {
    let broker = TestBroker::start().await;
    let clients = broker.clients();
    clients.create_topic("orders", 2).await;
    clients.publish("orders", 0, &["a", "b", "c"]).await;
    clients.publish("orders", 1, &["other"]).await;
    let mut subscription = clients.subscribe(init(&[0], At::Offset(3), PLENTY)).await;
    assert_eq!(subscription.assigned().await.offset, 3);
    subscription.send(Request::Seek(wanted(0, At::Offset(1)))).await;
    assert_eq!(subscription.assigned().await.offset, 1);
    assert_eq!(values(&subscription.batch().await.records), ["b", "c"]);
    // A partition that was not read so far joins.
    subscription.send(Request::Seek(wanted(1, start()))).await;
    assert_eq!(subscription.assigned().await.partition, 1);
    assert_eq!(values(&subscription.batch().await.records), ["other"]);
    // The old cursor is gone: a new record comes once.
    clients.publish("orders", 0, &["d"]).await;
    assert_eq!(values(&subscription.batch().await.records), ["d"]);
    assert!(subscription.is_silent().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_ends_every_partition_and_then_the_stream() {
    let broker = TestBroker::start().await;
    let clients = broker.clients();
    clients.create_topic("orders", 2).await;
    let mut subscription = clients.subscribe(init(&[0, 1], start(), PLENTY)).await;
    subscription.assigned().await;
    subscription.assigned().await;
    subscription.send(Request::Drain(v1::Drain {})).await;
    for _ in 0..2 {
        assert_eq!(subscription.revoked().await.error.unwrap().reason, "DRAINED");
    }
    assert!(subscription.next().await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_one_partition_is_said_and_the_others_go_on() {
    let broker = TestBroker::start().await;
    let clients = broker.clients();
    clients.create_topic("orders", 2).await;
    clients.publish("orders", 0, &["a"]).await;
    let mut init = init(&[0, 1, 7], start(), PLENTY);
    init.partitions[1].position = position(At::Offset(99));
    init.partitions.push(v1::SubscribePartition { topic: "nowhere".into(), ..wanted(0, start()) });
    let mut subscription = clients.subscribe(init).await;
    let mut revoked = BTreeMap::new();
    let mut read = Vec::new();
    while revoked.len() < 3 || read.is_empty() {
        match subscription.next().await.unwrap().unwrap() {
            Response::Assigned(_) => {}
            Response::Batch(batch) => read.extend(values(&batch.records)),
            Response::Revoked(gone) => {
                revoked.insert((gone.topic, gone.partition), gone.error.unwrap().reason);
            }
            other => panic!("unexpected {other:?}"),
        }
    }
    assert_eq!(read, ["a"]);
    let reason = |topic: &str, partition| revoked[&(topic.to_owned(), partition)].as_str();
    assert_eq!(reason("orders", 1), "OFFSET_OUT_OF_RANGE");
    assert_eq!(reason("orders", 7), "UNKNOWN_PARTITION");
    assert_eq!(reason("nowhere", 0), "UNKNOWN_TOPIC");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_closes_its_side_goes_on_listening() {
    let broker = TestBroker::start().await;
    let clients = broker.clients();
    clients.create_topic("orders", 1).await;
    let message = Some(Request::Init(init(&[0], start(), PLENTY)));
    let only_init = tokio_stream::iter([v1::SubscribeRequest { message }]);
    let mut inbound = clients.consumer().subscribe(only_init).await.unwrap().into_inner();
    let assigned = soon("assigned", inbound.message()).await.unwrap().unwrap();
    assert!(matches!(assigned.message, Some(Response::Assigned(_))));
    clients.publish("orders", 0, &["a"]).await;
    let batch = soon("a batch", inbound.message()).await.unwrap().unwrap();
    assert!(matches!(batch.message, Some(Response::Batch(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_topic_ends_its_partitions() {
    let broker = TestBroker::start().await;
    let clients = broker.clients();
    clients.create_topic("orders", 1).await;
    let mut subscription = clients.subscribe(init(&[0], start(), PLENTY)).await;
    subscription.assigned().await;
    let delete = v1::TopicServiceDeleteRequest { name: "orders".into() };
    clients.topics().delete(delete).await.unwrap();
    assert_eq!(subscription.revoked().await.error.unwrap().reason, "UNKNOWN_TOPIC");
}
