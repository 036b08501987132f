//! What must be refused, each with a clear reason, and nothing lost by it.

use highwater_broker::StartError;
use highwater_proto::v1;
use v1::position::At;

use crate::harness::*;

#[tokio::test(flavor = "multi_thread")]
async fn illegal_topic_names_are_refused() {
    let broker = TestBroker::start().await;
    let clients = broker.clients();
    for name in ["", ".", "..", "a/b", "../x", "ä", "a b", &"x".repeat(250)] {
        let request = v1::TopicServiceCreateRequest { name: name.into(), ..Default::default() };
        let status = clients.topics().create(request).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::InvalidArgument, "{name:?}: {status}");
        assert_eq!(reason(&status), "INVALID_ARGUMENT");
        assert!(fact(&status, "field").unwrap().contains("name"), "{status}");
    }
    clients.create_topic(&"x".repeat(249), 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_brokers_own_topics_cannot_be_written_or_changed() {
    let broker = TestBroker::start().await;
    let clients = broker.clients();
    let name = "__consumer_offsets".to_owned();
    let create = v1::TopicServiceCreateRequest { name: name.clone(), ..Default::default() };
    let update = v1::TopicServiceUpdateRequest { name: name.clone(), ..Default::default() };
    let delete = v1::TopicServiceDeleteRequest { name: name.clone() };
    let trim = v1::TopicServiceTrimRequest {
        name: name.clone(),
        partition: 0,
        to: position(At::Offset(0)),
    };
    let produce = v1::ProduceRequest {
        topic: name.clone(),
        partition: Some(0),
        records: vec![record("x")],
        ..Default::default()
    };
    let refusals = [
        clients.topics().create(create).await.unwrap_err(),
        clients.topics().update(update).await.unwrap_err(),
        clients.topics().delete(delete).await.unwrap_err(),
        clients.topics().trim(trim).await.unwrap_err(),
        clients.producer().produce(produce).await.unwrap_err(),
    ];
    for status in refusals {
        assert_eq!(reason(&status), "INVALID_ARGUMENT", "{status}");
        assert!(status.message().contains("the broker's own"), "{status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_topics_and_partitions_are_not_found_everywhere() {
    let broker = TestBroker::start().await;
    let clients = broker.clients();
    clients.create_topic("orders", 2).await;
    let produce = |topic: &str, partition| v1::ProduceRequest {
        topic: topic.into(),
        partition: Some(partition),
        records: vec![record("x")],
        ..Default::default()
    };
    let trim = |name: &str, partition| v1::TopicServiceTrimRequest {
        name: name.into(),
        partition,
        to: position(At::Offset(0)),
    };
    let transfer = |topic: &str, partition| v1::TransferLeadershipRequest {
        topic: topic.into(),
        partition,
        to_node_id: 0,
    };
    for (topic, partition, expected) in
        [("nowhere", 0, "UNKNOWN_TOPIC"), ("orders", 2, "UNKNOWN_PARTITION")]
    {
        let statuses = [
            clients.producer().produce(produce(topic, partition)).await.unwrap_err(),
            clients.fetch(topic, partition, start()).await.unwrap_err(),
            clients.topics().trim(trim(topic, partition)).await.unwrap_err(),
            clients.cluster().transfer_leadership(transfer(topic, partition)).await.unwrap_err(),
        ];
        for status in statuses {
            assert_eq!(status.code(), tonic::Code::NotFound);
            assert_eq!(reason(&status), expected);
            assert!(status.message().contains(topic), "{status}");
        }
    }
    let get = v1::TopicServiceGetRequest { name: "nowhere".into() };
    assert_eq!(reason(&clients.topics().get(get).await.unwrap_err()), "UNKNOWN_TOPIC");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_produce_call_that_makes_no_sense_is_refused() {
    let broker = TestBroker::start().await;
    let clients = broker.clients();
    clients.create_topic("orders", 1).await;
    let base = || v1::ProduceRequest { topic: "orders".into(), ..Default::default() };
    let one = || vec![record("x")];
    for (request, field) in [
        (base(), "records"),
        (v1::ProduceRequest { records: one(), batch: batch(&["x"]), ..base() }, "batch"),
        (v1::ProduceRequest { batch: batch(&["x"]), ..base() }, "partition"),
        (v1::ProduceRequest { records: one(), compression: 99, ..base() }, "compression"),
        (v1::ProduceRequest { records: one(), acks: 99, ..base() }, "acks"),
    ] {
        let status = clients.producer().produce(request).await.unwrap_err();
        assert_eq!(reason(&status), "INVALID_ARGUMENT", "{field}");
        assert_eq!(fact(&status, "field").as_deref(), Some(field));
    }
    assert!(clients.fetch("orders", 0, start()).await.unwrap().records.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn oversized_records_batches_and_requests_are_refused_and_the_connection_lives() {
    let broker = TestBroker::start().await;
    let clients = broker.clients();
    clients.create_topic("orders", 1).await;
    let of = |records: Vec<v1::Record>| v1::ProduceRequest {
        topic: "orders".into(),
        records,
        ..Default::default()
    };
    let large = "x".repeat((1 << 20) + 1);
    let status = clients.producer().produce(of(vec![record(&large)])).await.unwrap_err();
    assert_eq!(reason(&status), "INVALID_BATCH");
    assert!(status.message().contains("1048576"), "{status}");
    let fitting = "x".repeat(1 << 20);
    let many = vec![record(&fitting); 5];
    let status = clients.producer().produce(of(many)).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status}");
    let request = vec![record(&fitting); 9];
    let status = clients.producer().produce(of(request)).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::OutOfRange, "{status}");
    clients.publish("orders", 0, &["fine"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_do_not_begin_with_init_end_with_an_error() {
    let broker = TestBroker::start().await;
    let clients = broker.clients();
    clients.create_topic("orders", 1).await;
    let early = v1::produce_stream_request::Message::Batch(v1::ProduceBatch::default());
    let early = v1::ProduceStreamRequest { message: Some(early) };
    let nothing = v1::ProduceStreamRequest { message: None };
    for first in [early, nothing] {
        let requests = tokio_stream::iter([first]);
        let stream = clients.producer().produce_stream(requests).await.unwrap();
        let status = soon("the end", stream.into_inner().message()).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
    }
    let drain = v1::subscribe_request::Message::Drain(v1::Drain {});
    let early = tokio_stream::iter([v1::SubscribeRequest { message: Some(drain) }]);
    let stream = clients.consumer().subscribe(early).await.unwrap();
    let status = soon("the end", stream.into_inner().message()).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
    let mut twice = clients.produce_stream(v1::ProduceInit::default()).await;
    twice.initialized().await;
    twice.send(v1::produce_stream_request::Message::Init(v1::ProduceInit::default())).await;
    let status = twice.next().await.unwrap().unwrap_err();
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
    assert!(twice.next().await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn reading_as_a_group_and_too_many_partitions_are_refused() {
    let broker = TestBroker::start_with(|config| config.limits.subscribe_partitions = 2).await;
    let clients = broker.clients();
    clients.create_topic("orders", 3).await;
    let wanted = |partition| v1::SubscribePartition {
        topic: "orders".into(),
        partition,
        ..Default::default()
    };
    let grouped = v1::SubscribeInit {
        group: "billing".into(),
        partitions: vec![wanted(0)],
        ..Default::default()
    };
    let many = v1::SubscribeInit {
        partitions: vec![wanted(0), wanted(1), wanted(2)],
        ..Default::default()
    };
    let none = v1::SubscribeInit::default();
    let unknown =
        v1::SubscribeInit { format: 99, partitions: vec![wanted(0)], ..Default::default() };
    for (init, expected) in [
        (grouped, "INVALID_ARGUMENT"),
        (many, "INVALID_ARGUMENT"),
        (none, "INVALID_ARGUMENT"),
        (unknown, "INVALID_ARGUMENT"),
    ] {
        let mut subscription = clients.subscribe(init).await;
        let status = subscription.next().await.unwrap().unwrap_err();
        assert_eq!(reason(&status), expected);
    }
    let init = v1::SubscribeInit { partitions: vec![wanted(0), wanted(1)], ..Default::default() };
    let mut subscription = clients.subscribe(init).await;
    subscription.assigned().await;
    subscription.assigned().await;
    subscription.send(v1::subscribe_request::Message::Seek(wanted(2))).await;
    assert_eq!(reason(&subscription.next().await.unwrap().unwrap_err()), "OVERLOADED");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_named_with_the_flag_that_mends_it() {
    let broker = TestBroker::start().await;
    for flag in ["--listen", "--internal-listen", "--http-listen"] {
        let dir = tempfile::tempdir().unwrap();
        let mut config = quick_config(&dir);
        let taken = broker.broker.client_addr().to_string();
        match flag {
            "--listen" => config.listen.client = taken.clone(),
            "--internal-listen" => config.listen.internal = taken.clone(),
            _ => config.listen.http = taken.clone(),
        }
        let error = TestBroker::start_error(config).await;
        assert!(matches!(error, StartError::Config { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains(&taken) && text.contains(flag), "{text}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "no file was touched");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_in_use_or_of_another_node_is_refused() {
    let broker = TestBroker::start_with(|config| config.node.id = Some(3)).await;
    let error = TestBroker::start_error(quick_config(&broker.dir)).await;
    assert!(matches!(&error, StartError::Config { key: "node.data_dir", .. }), "{error}");
    let TestBroker { broker, dir } = broker;
    broker.stop().await;
    drop(broker);
    let mut other = quick_config(&dir);
    other.node.id = Some(4);
    let error = TestBroker::start_error(other).await;
    assert!(matches!(&error, StartError::Config { .. }), "{error}");
    assert!(error.to_string().contains('3') && error.to_string().contains('4'), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_that_cannot_be_written_is_an_error_with_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a-file");
    std::fs::write(&file, "x").unwrap();
    let mut config = quick_config(&dir);
    config.node.data_dir = file.join("data");
    let error = TestBroker::start_error(config).await;
    assert!(error.to_string().contains("a-file"), "{error}");
}
