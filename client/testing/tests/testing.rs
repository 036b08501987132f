//! What the crate for tests promises: real brokers, faults that are felt, time that passes.

use std::time::Duration;

use futures::StreamExt;
use highwater_client::event::Event;
use highwater_client::{Client, FetchOptions, NewTopic, Record, SendError, reason};
use highwater_testing::{Broker, Call, Cluster, Refusal, soon, until};
use serde::{Deserialize, Serialize};

#[derive(Debug, PartialEq, Serialize, Deserialize, Event)]
#[event(name = "order.placed", version = 2, key = "order_id")]
struct OrderPlaced {
    order_id: String,
}

#[derive(Debug, PartialEq, Serialize, Deserialize, Event)]
#[event(name = "order.paid", key = "order_id")]
struct OrderPaid {
    order_id: String,
}

const TOPIC: &str = "orders";

async fn publish(client: &Client, value: &str) -> Result<i64, SendError> {
    let producer = client.producer(TOPIC).build();
    let sent = async { producer.send(("key", value.to_owned())).await?.await };
    soon("publishing", sent).await.map(|ack| ack.offset)
}

async fn values(cluster: &Cluster) -> Vec<String> {
    let text = |event: &highwater_client::Event| event.value_str().unwrap_or("?").to_owned();
    cluster.records(TOPIC).await.iter().map(text).collect()
}

#[tokio::test]
async fn a_restarted_broker_keeps_its_port_and_its_events() {
    let broker = Broker::start().await;
    broker.create_topic(TOPIC, 3).await;
    let client = broker.client().await;
    publish(&client, "a").await.unwrap();
    broker.restart().await;
    publish(&client, "b").await.unwrap();
    assert_eq!(values(&broker).await, ["a", "b"]);
    broker.stop().await;
}

#[tokio::test]
async fn a_killed_broker_refuses_until_it_is_started_again() {
    let broker = Broker::start().await;
    broker.create_topic(TOPIC, 1).await;
    let client = broker.client().await;
    publish(&client, "a").await.unwrap();
    broker.kill(0).await;
    let patience = Duration::from_millis(200);
    let producer = client.producer(TOPIC).delivery_timeout(patience).build();
    let error = async { producer.send("lost").await?.await };
    assert!(soon("giving up", error).await.is_err());
    broker.start_again(0).await;
    publish(&client, "b").await.unwrap();
    assert_eq!(values(&broker).await, ["a", "b"]);
}

#[tokio::test]
async fn what_was_written_and_not_answered_is_known_to_be_uncertain() {
    let broker = Broker::start().await;
    broker.create_topic(TOPIC, 1).await;
    let client = broker.client().await;
    let producer = client.producer(TOPIC).delivery_timeout(Duration::from_secs(2)).build();
    soon("publishing", async { producer.send("a").await?.await }).await.unwrap();
    broker.faults().lose_answers();
    let error = soon("giving up", async { producer.send("b").await?.await }).await.unwrap_err();
    assert!(error.may_have_been_written(), "{error}");
    broker.faults().clear();
    assert_eq!(values(&broker).await, ["a", "b"]);
}

#[tokio::test]
async fn a_producer_outlives_connections_that_are_cut() {
    let broker = Broker::start().await;
    broker.create_topic(TOPIC, 1).await;
    let client = broker.client().await;
    let producer = client.producer(TOPIC).build();
    for number in 0..20 {
        if number % 5 == 0 {
            broker.faults().cut();
        }
        let sent = async { producer.send(number.to_string()).await?.await };
        soon("publishing", sent).await.unwrap();
    }
    let expected: Vec<String> = (0..20).map(|number| number.to_string()).collect();
    assert_eq!(values(&broker).await, expected);
}

#[tokio::test]
async fn a_network_that_refuses_is_well_again_when_cleared() {
    let broker = Broker::start().await;
    broker.create_topic(TOPIC, 1).await;
    let client = broker.client().await;
    broker.faults().refuse();
    let hurried = client.producer(TOPIC).delivery_timeout(Duration::from_millis(200)).build();
    let refused = soon("giving up", async { hurried.send("a").await?.await }).await;
    assert!(refused.is_err());
    broker.faults().clear();
    publish(&client, "b").await.unwrap();
}

#[tokio::test]
async fn events_published_again_are_equal_to_the_first() {
    let broker = Broker::start().await;
    broker.create_topic(TOPIC, 2).await;
    let producer = broker.client().await.producer(TOPIC).build();
    let record = Record::new("placed").with_key("k").with_header("ce_id", "1");
    soon("publishing", async { producer.send(record).await?.await }).await.unwrap();
    broker.publish_again(TOPIC).await;
    let records = broker.records(TOPIC).await;
    assert_eq!(records.len(), 2);
    let (first, again) = (&records[0], &records[1]);
    assert_ne!(first.offset, again.offset);
    assert_eq!(
        (&first.key, &first.value, &first.headers, first.timestamp_ms),
        (&again.key, &again.value, &again.headers, again.timestamp_ms)
    );
}

#[tokio::test]
async fn time_that_is_put_forward_passes_for_retention() {
    let broker = Broker::start_with(|config| config.topics.retention_check_ms = 10).await;
    let topic = NewTopic::new(TOPIC).partitions(1).config("retention.ms", "3600000");
    broker.create(topic.config("segment.bytes", "1048576")).await;
    let client = broker.client().await;
    let large = "x".repeat(400_000);
    for _ in 0..8 {
        publish(&client, &large).await.unwrap();
    }
    let first = async || client.admin().get_topic(TOPIC).await.unwrap().partitions[0].clone();
    assert_eq!(first().await.log_start_offset, 0);
    broker.advance(Duration::from_secs(2 * 3600));
    until("dropping what is old", async || first().await.log_start_offset > 0).await;
}

#[tokio::test]
async fn leaders_move_and_fail_while_a_reader_goes_on() {
    let cluster = Cluster::start(3).await;
    cluster.create_topic(TOPIC, 1).await;
    let client = cluster.client().await;
    let mut events = client.consumer(TOPIC).subscribe().await.unwrap();
    publish(&client, "a").await.unwrap();
    let leader = cluster.move_leader(TOPIC, 0).await;
    publish(&client, "b").await.unwrap();
    cluster.kill(leader).await;
    publish(&client, "c").await.unwrap();
    cluster.start_again(leader).await;
    let mut read = Vec::new();
    while read.len() < 3 {
        match soon("reading", events.next()).await.unwrap() {
            Ok(event) => read.push(event.value_str().unwrap().to_owned()),
            Err(error) => assert!(error.is_retriable(), "{error}"),
        }
    }
    assert_eq!(read, ["a", "b", "c"]);
}

#[tokio::test]
async fn typed_events_are_found_in_whatever_topic_one_after_the_other() {
    let broker = Broker::start().await;
    broker.create_topic(TOPIC, 3).await;
    broker.create_topic("payments", 1).await;
    let client = broker.client().await;
    let (orders, payments) = (client.producer(TOPIC).build(), client.producer("payments").build());
    for number in 1..=2 {
        let order_id = format!("o-{number}");
        let sent = async { orders.publish(&OrderPlaced { order_id }).await?.await };
        soon("publishing", sent).await.unwrap();
    }
    let late = {
        let paid = OrderPaid { order_id: "o-1".into() };
        tokio::join!(broker.expect_published::<OrderPaid>(), async {
            payments.publish(&paid).await.unwrap().await.unwrap();
        })
        .0
    };
    assert_eq!(late.order_id, "o-1");
    let mut placed = [
        broker.expect_published::<OrderPlaced>().await.order_id,
        broker.expect_published::<OrderPlaced>().await.order_id,
    ];
    placed.sort();
    assert_eq!(placed, ["o-1", "o-2"]);
    assert_eq!(broker.published::<OrderPlaced>().await.len(), 2);

    let record = &broker.records(TOPIC).await[0];
    assert_eq!(record.event_type(), Some("order.placed.v2"));
    assert_eq!(record.header_str("ce_source"), Some("/test"));
    assert_eq!(record.header_str("ce_specversion"), Some("1.0"));
    assert_eq!(record.header_str("ce_id").map(str::len), Some(32));
    assert_eq!(record.header_str("ce_partitionkey"), record.key_str());
}

#[tokio::test]
async fn what_is_refused_for_now_arrives_once_it_is_allowed() {
    let broker = Broker::start().await;
    broker.create_topic(TOPIC, 1).await;
    let client = broker.client().await;
    for refusal in [Refusal::Overloaded, Refusal::DiskFull, Refusal::OutcomeUnknown] {
        broker.refuse(Call::Publish, TOPIC, refusal);
        let hurried = client.producer(TOPIC).delivery_timeout(Duration::from_millis(300)).build();
        let sent = async { hurried.send("lost").await?.await };
        let error = soon("giving up", sent).await.unwrap_err();
        let is_unknown = refusal == Refusal::OutcomeUnknown;
        assert!(error.may_have_been_written() == is_unknown, "{refusal:?}: {error}");

        broker.refuse_next(3, Call::Publish, TOPIC, refusal);
        publish(&client, &format!("{refusal:?}")).await.unwrap();
    }
    assert_eq!(values(&broker).await, ["Overloaded", "DiskFull", "OutcomeUnknown"]);
}

#[tokio::test]
async fn what_is_refused_for_good_is_told_at_once() {
    let broker = Broker::start().await;
    broker.create_topic(TOPIC, 1).await;
    let client = broker.client().await;
    for (refusal, may_be_written) in [(Refusal::TooLarge, false), (Refusal::Internal, true)] {
        broker.refuse(Call::Publish, TOPIC, refusal);
        let error = publish(&client, "lost").await.unwrap_err();
        assert!(!error.is_retriable(), "{refusal:?}: {error}");
        assert_eq!(error.may_have_been_written(), may_be_written, "{refusal:?}: {error}");
    }
    broker.allow();
    publish(&client, "a").await.unwrap();
    assert_eq!(values(&broker).await, ["a"]);
}

#[tokio::test]
async fn a_reader_that_is_refused_goes_on_where_it_was() {
    let broker = Broker::start().await;
    broker.create_topic(TOPIC, 1).await;
    let client = broker.client().await;
    let mut events = client.consumer(TOPIC).subscribe().await.unwrap();
    publish(&client, "a").await.unwrap();
    let first = soon("reading", events.next()).await.unwrap().unwrap();
    assert_eq!(first.value_str(), Some("a"));

    broker.refuse(Call::Read, TOPIC, Refusal::Overloaded);
    publish(&client, "b").await.unwrap();
    let admin = client.admin();
    let fetched = admin.fetch(TOPIC, 0, FetchOptions::default());
    let error = soon("being refused", fetched).await.unwrap_err();
    assert_eq!(error.reason(), reason::OVERLOADED);
    broker.allow();
    let next = async {
        loop {
            match events.next().await.unwrap() {
                Ok(event) => return event,
                Err(error) => assert!(error.is_retriable(), "{error}"),
            }
        }
    };
    assert_eq!(soon("reading on", next).await.value_str(), Some("b"));
}

#[tokio::test]
async fn progress_that_is_refused_is_stored_once_it_is_allowed() {
    let broker = Broker::start().await;
    broker.create_topic(TOPIC, 1).await;
    let client = broker.client().await;
    for value in ["a", "b"] {
        publish(&client, value).await.unwrap();
    }
    let mut events = client.consumer(TOPIC).group("billing").subscribe().await.unwrap();
    soon("reading", events.next()).await.unwrap().unwrap();
    let second = soon("reading", events.next()).await.unwrap().unwrap();
    assert_eq!(second.value_str(), Some("b"));

    broker.refuse(Call::Commit, TOPIC, Refusal::DiskFull);
    let error = soon("being refused", events.commit()).await.unwrap_err();
    assert_eq!(error.reason(), reason::DISK_FULL);
    let admin = client.admin();
    let stored = soon("asking", admin.group_offsets("billing")).await.unwrap();
    assert!(stored.is_empty(), "{stored:?}");

    broker.allow();
    soon("closing", events.close()).await;
    let stored = soon("asking", admin.group_offsets("billing")).await.unwrap();
    assert_eq!(stored.iter().map(|it| it.offset).collect::<Vec<_>>(), [2]);
}

#[tokio::test]
async fn a_broker_that_hangs_holds_up_and_loses_nothing() {
    let broker = Broker::start().await;
    broker.create_topic(TOPIC, 1).await;
    let producer = broker.client().await.producer(TOPIC).build();
    soon("publishing", async { producer.send("a").await?.await }).await.unwrap();
    broker.faults().stall();
    let mut sent = Box::pin(async { producer.send("b").await?.await });
    assert!(tokio::time::timeout(Duration::from_millis(300), &mut sent).await.is_err());
    broker.faults().clear();
    soon("publishing", sent).await.unwrap();
    assert_eq!(values(&broker).await, ["a", "b"]);
}
