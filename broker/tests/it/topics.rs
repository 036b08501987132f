//! Administration of topics.

use std::collections::BTreeMap;

use highwater_proto::v1;
use v1::position::At;

use crate::harness::*;

fn config(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_lives_from_create_to_delete() {
    let broker = TestBroker::start().await;
    let clients = broker.clients();
    let request = v1::TopicServiceCreateRequest {
        name: "orders".into(),
        partitions: 3,
        config: config(&[("retention.ms", "60000")]),
        ..Default::default()
    };
    let created = clients.topics().create(request).await.unwrap().into_inner().topic.unwrap();
    assert_eq!((created.name.as_str(), created.partitions.len()), ("orders", 3));
    assert_eq!(created.replication_factor, 1, "never more than there are nodes");
    assert_eq!(created.config["retention.ms"], "60000");
    assert_eq!(created.config["segment.bytes"], "67108864", "defaults are shown");
    for (partition, number) in created.partitions.iter().zip(0..) {
        assert_eq!(partition.partition, number);
        assert_eq!(partition.leader, broker.broker.node().id());
        assert_eq!(partition.state(), v1::PartitionState::Healthy, "{partition:?}");
        assert_eq!(partition.replicas, partition.in_sync);
    }
    clients.publish("orders", 1, &["a", "b"]).await;
    let get = v1::TopicServiceGetRequest { name: "orders".into() };
    let got = clients.topics().get(get).await.unwrap().into_inner().topic.unwrap();
    assert_eq!(got.partitions[1].high_watermark, 2);
    assert!(got.partitions[1].size_bytes > 0);
    let list = v1::TopicServiceListRequest::default();
    let listed = clients.topics().list(list).await.unwrap().into_inner().topics;
    assert_eq!((listed.len(), listed[0].partitions), (1, 3));
    assert_eq!(listed[0].config, config(&[("retention.ms", "60000")]), "only what differs");
    let delete = v1::TopicServiceDeleteRequest { name: "orders".into() };
    let deleted = clients.topics().delete(delete.clone()).await.unwrap().into_inner();
    assert_eq!(deleted.id, created.id);
    let status = clients.topics().delete(delete).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (tonic::Code::NotFound, "UNKNOWN_TOPIC"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_created_again_is_another_topic() {
    let broker = TestBroker::start().await;
    let clients = broker.clients();
    let first = clients.create_topic("orders", 1).await;
    clients.publish("orders", 0, &["old"]).await;
    let delete = v1::TopicServiceDeleteRequest { name: "orders".into() };
    clients.topics().delete(delete).await.unwrap();
    let second = clients.create_topic("orders", 1).await;
    assert_ne!(first.id, second.id);
    assert!(clients.fetch("orders", 0, start()).await.unwrap().records.is_empty());
    let stale = v1::FetchRequest {
        topic: "orders".into(),
        topic_id: first.id.clone(),
        ..Default::default()
    };
    let status = clients.consumer().fetch(stale).await.unwrap_err();
    assert_eq!(reason(&status), "TOPIC_ID_MISMATCH");
    assert_eq!(fact(&status, "topic_id"), Some(second.id));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_taken_only_once() {
    let broker = TestBroker::start().await;
    let clients = broker.clients();
    clients.create_topic("orders", 1).await;
    let again = v1::TopicServiceCreateRequest { name: "orders".into(), ..Default::default() };
    let status = clients.topics().create(again).await.unwrap_err();
    let found = (status.code(), reason(&status));
    assert_eq!(found, (tonic::Code::AlreadyExists, "TOPIC_EXISTS".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn configuration_is_changed_key_by_key() {
    let broker = TestBroker::start().await;
    let clients = broker.clients();
    clients.create_topic("orders", 1).await;
    let update = |set: &[(&str, &str)], unset: &[&str]| v1::TopicServiceUpdateRequest {
        name: "orders".into(),
        set: config(set),
        unset: unset.iter().map(|&name| name.to_owned()).collect(),
        partitions: 0,
    };
    let changed = clients
        .topics()
        .update(update(&[("retention.ms", "5000"), ("segment.bytes", "2097152")], &[]))
        .await
        .unwrap();
    let changed = changed.into_inner().topic.unwrap().config;
    assert_eq!((&*changed["retention.ms"], &*changed["segment.bytes"]), ("5000", "2097152"));
    let back = clients.topics().update(update(&[], &["retention.ms"])).await.unwrap();
    let back = back.into_inner().topic.unwrap().config;
    assert_eq!((&*back["retention.ms"], &*back["segment.bytes"]), ("604800000", "2097152"));
    for (wrong, mentioned) in [
        (update(&[("retention.hours", "1")], &[]), "retention.hours"),
        (update(&[("segment.bytes", "7")], &[]), "1048576"),
        (update(&[("cleanup.policy", "compact")], &[]), "create another topic"),
        (update(&[], &["nonsense"]), "nonsense"),
        (update(&[("segment.ms", "5000")], &["segment.ms"]), "at once"),
    ] {
        let status = clients.topics().update(wrong).await.unwrap_err();
        assert_eq!(reason(&status), "INVALID_ARGUMENT");
        assert!(status.message().contains(mentioned), "{status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_smaller_record_limit_holds_at_once() {
    let broker = TestBroker::start().await;
    let clients = broker.clients();
    clients.create_topic("orders", 1).await;
    let update = v1::TopicServiceUpdateRequest {
        name: "orders".into(),
        set: config(&[("max.message.bytes", "10")]),
        ..Default::default()
    };
    clients.topics().update(update).await.unwrap();
    let request = v1::ProduceRequest {
        topic: "orders".into(),
        records: vec![record("more than ten bytes")],
        ..Default::default()
    };
    let status = clients.producer().produce(request).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
    assert!(status.message().contains("10"), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trim_moves_the_start_and_only_forward() {
    let broker = TestBroker::start().await;
    let clients = broker.clients();
    clients.create_topic("orders", 1).await;
    clients.publish("orders", 0, &["a", "b", "c", "d"]).await;
    let trim = |at| v1::TopicServiceTrimRequest { name: "orders".into(), partition: 0, to: at };
    let trimmed = clients.topics().trim(trim(position(At::Offset(2)))).await.unwrap();
    assert_eq!(trimmed.into_inner().log_start_offset, 2);
    let status = clients.fetch("orders", 0, At::Offset(0)).await.unwrap_err();
    assert_eq!(fact(&status, "log_start_offset").as_deref(), Some("2"));
    let fetched = clients.fetch("orders", 0, start()).await.unwrap();
    assert_eq!(values(&fetched.records), ["c", "d"]);
    let status = clients.topics().trim(trim(position(At::Offset(99)))).await.unwrap_err();
    assert_eq!(reason(&status), "OFFSET_OUT_OF_RANGE");
    let status = clients.topics().trim(trim(None)).await.unwrap_err();
    assert_eq!(reason(&status), "INVALID_ARGUMENT");
    let all = clients.topics().trim(trim(position(At::End(v1::position::End {})))).await.unwrap();
    assert_eq!(all.into_inner().log_start_offset, 4);
    clients.publish("orders", 0, &["e"]).await;
    let fetched = clients.fetch("orders", 0, start()).await.unwrap();
    assert_eq!((fetched.records[0].offset, values(&fetched.records)), (4, vec!["e".to_owned()]));
}

#[tokio::test(flavor = "multi_thread")]
async fn options_list_every_key_with_default_and_bounds() {
    let broker = TestBroker::start().await;
    let request = v1::TopicServiceListOptionsRequest {};
    let answer = broker.clients().topics().list_options(request).await.unwrap();
    let options = answer.into_inner().options;
    assert!(options.len() >= 9 && options.is_sorted_by_key(|option| option.key.clone()));
    for option in &options {
        assert!(!option.default_value.is_empty() && !option.bounds.is_empty());
        assert!(option.description.ends_with('.'), "{option:?}");
    }
    assert!(options.iter().any(|option| option.key == "retention.ms"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_of_many_partitions_is_there_again_after_a_restart() {
    const PARTITIONS: u32 = 100;
    let TestBroker { broker, dir } = TestBroker::start().await;
    let clients = Clients::of(broker.client_addr());
    clients.create_topic("wide", PARTITIONS).await;
    clients.publish("wide", PARTITIONS - 1, &["a"]).await;
    soon("stopping", broker.stop()).await;
    drop(broker);
    // What a crash leaves of partitions that were being made.
    let unfinished = dir.path().join("groups/new-4711");
    std::fs::create_dir(&unfinished).unwrap();
    std::fs::write(unfinished.join("replica"), "half").unwrap();
    let broker = highwater_broker::Broker::start(quick_config(&dir)).await.unwrap();
    soon("being ready", broker.wait_ready()).await;
    assert!(!unfinished.exists());
    let clients = Clients::of(broker.client_addr());
    let fetched = clients.fetch("wide", PARTITIONS - 1, start()).await.unwrap();
    assert_eq!(values(&fetched.records), ["a"]);
    clients.publish("wide", 0, &["b"]).await;
    let get = v1::TopicServiceGetRequest { name: "wide".into() };
    let topic = clients.topics().get(get).await.unwrap().into_inner().topic.unwrap();
    assert_eq!(topic.partitions.len(), PARTITIONS as usize);
    let faulty: Vec<_> = topic.partitions.iter().filter(|p| !p.quarantined.is_empty()).collect();
    assert!(faulty.is_empty(), "{faulty:?}");
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_of_size_holds_as_soon_as_a_segment_is_full() {
    let broker =
        TestBroker::start_with(|config| config.topics.retention_check_ms = 86_400_000).await;
    let clients = broker.clients();
    let create = v1::TopicServiceCreateRequest {
        name: "orders".into(),
        partitions: 1,
        config: config(&[("segment.bytes", "1048576"), ("retention.bytes", "1048576")]),
        ..Default::default()
    };
    clients.topics().create(create).await.unwrap();
    let large = "x".repeat(300 << 10);
    for _ in 0..12 {
        clients.publish("orders", 0, &[&large]).await;
    }
    let get = v1::TopicServiceGetRequest { name: "orders".into() };
    until("old segments going before the next look of the day", || async {
        let topic = clients.topics().get(get.clone()).await.unwrap().into_inner().topic.unwrap();
        topic.partitions[0].size_bytes < 3 << 20
    })
    .await;
}
