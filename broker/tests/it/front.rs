//! What surrounds the services: health, reflection, HTTP, metadata, and what a later version brings.

use highwater_broker::cluster::FEATURE_LEVEL;
use highwater_proto::v1;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

use crate::harness::*;

async fn reflect(
    clients: &Clients,
    message: MessageRequest,
) -> Result<MessageResponse, tonic::Status> {
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(message) };
    let mut client = ServerReflectionClient::new(clients.channel());
    let answers = client.server_reflection_info(tokio_stream::iter([request])).await.unwrap();
    let answer: ServerReflectionResponse =
        soon("reflection", answers.into_inner().message()).await?.unwrap();
    Ok(answer.message_response.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn reflection_lists_the_public_services_and_nothing_internal() {
    let broker = TestBroker::start().await;
    let clients = broker.clients();
    let Ok(MessageResponse::ListServicesResponse(list)) =
        reflect(&clients, MessageRequest::ListServices(String::new())).await
    else {
        panic!("not a list");
    };
    let names: Vec<String> = list.service.into_iter().map(|service| service.name).collect();
    for service in ["Producer", "Consumer", "Topic", "Group", "Cluster"] {
        let name = format!("highwater.v1.{service}Service");
        assert!(names.contains(&name), "{name} is not in {names:?}");
    }
    assert!(names.contains(&"grpc.health.v1.Health".to_owned()));
    assert!(!names.iter().any(|name| name.contains("internal")), "{names:?}");
    let symbol = "highwater.v1.ProducerService.Produce".to_owned();
    let found = reflect(&clients, MessageRequest::FileContainingSymbol(symbol)).await;
    assert!(matches!(found, Ok(MessageResponse::FileDescriptorResponse(_))));
    let internal = "highwater.internal.v1.NodeService".to_owned();
    let hidden = reflect(&clients, MessageRequest::FileContainingSymbol(internal)).await;
    assert_eq!(hidden.unwrap_err().code(), tonic::Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn health_turns_to_serving_and_back_when_the_broker_stops() {
    let broker = TestBroker::start().await;
    let mut health = HealthClient::new(broker.clients().channel());
    for service in ["", "highwater.v1.ProducerService"] {
        let request = HealthCheckRequest { service: service.to_owned() };
        until("serving", || {
            let (mut health, request) = (health.clone(), request.clone());
            async move {
                let answer = health.check(request).await.unwrap().into_inner();
                answer.status() == ServingStatus::Serving
            }
        })
        .await;
    }
    let mut watching = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    let first = soon("health", watching.message()).await.unwrap().unwrap();
    assert_eq!(first.status(), ServingStatus::Serving);
    let next = async {
        let next = soon("health", watching.message()).await.unwrap().unwrap();
        assert_eq!(next.status(), ServingStatus::NotServing);
        drop(watching);
    };
    tokio::join!(next, soon("stopping", broker.broker.stop()));
}

#[tokio::test(flavor = "multi_thread")]
async fn http_tells_liveness_readiness_and_figures() {
    let broker = TestBroker::start().await;
    let clients = broker.clients();
    clients.create_topic("orders", 1).await;
    clients.publish("orders", 0, &["a", "b", "c"]).await;
    clients.fetch("orders", 0, start()).await.unwrap();
    let address = broker.broker.http_addr();
    assert_eq!(http_get(address, "/livez").await.0, 200);
    assert_eq!(http_get(address, "/readyz").await, (200, "ready\n".to_owned()));
    let (code, verbose) = http_get(address, "/readyz?verbose").await;
    assert!(code == 200 && verbose.lines().count() > 2, "{verbose}");
    assert!(verbose.lines().any(|line| line.starts_with("ok metadata")), "{verbose}");
    assert_eq!(http_get(address, "/healthz").await.0, 200);
    assert_eq!(http_get(address, "/nothing").await.0, 404);
    let (code, metrics) = http_get(address, "/metrics").await;
    assert_eq!(code, 200);
    for line in [
        "highwater_ready 1",
        "highwater_partition_high_watermark{topic=\"orders\",partition=\"0\"} 3",
        "highwater_partition_leader{topic=\"orders\",partition=\"0\"} 1",
        "highwater_partition_leader{topic=\"__metadata\",partition=\"0\"} 1",
        "highwater_produce_records_total 3",
        "highwater_fetch_records_total 3",
        "highwater_requests_total{method=\"ProducerService/Produce\",code=\"OK\"} 1",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} is missing in\n{metrics}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_seeds_do_not_answer_is_alive_but_not_ready_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = quick_config(&dir);
    // Nobody listens on the discard port.
    config.node.seeds = vec!["127.0.0.1:9".to_owned()];
    config.node.id = Some(1);
    let broker = highwater_broker::Broker::start(config).await.unwrap();
    assert_eq!(http_get(broker.http_addr(), "/livez").await.0, 200);
    until("the reason", || async {
        let (code, text) = http_get(broker.http_addr(), "/readyz?verbose").await;
        assert_eq!(code, 503);
        text.contains("127.0.0.1:9")
    })
    .await;
    let clients = Clients::of(broker.client_addr());
    let request = v1::TopicServiceGetRequest { name: "orders".into() };
    let status = clients.topics().get(request).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (tonic::Code::Unavailable, "NOT_READY"));
    let health = clients.cluster().get_health(v1::GetHealthRequest {}).await.unwrap().into_inner();
    assert!(!health.healthy && !health.problems.is_empty());
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_is_told_at_once_and_after_every_change() {
    let broker = TestBroker::start().await;
    let clients = broker.clients();
    let watch = v1::WatchMetadataRequest { topics: vec!["orders".into()], ..Default::default() };
    let mut watching = clients.cluster().watch_metadata(watch).await.unwrap().into_inner();
    let first = soon("metadata", watching.message()).await.unwrap().unwrap().metadata.unwrap();
    assert!(first.topics.is_empty());
    assert_eq!(first.nodes[0].address, broker.broker.client_addr().to_string());
    clients.create_topic("other", 1).await;
    let created = clients.create_topic("orders", 2).await;
    let told = soon("the topic with its leaders", async {
        loop {
            let told = watching.message().await.unwrap().unwrap().metadata.unwrap();
            let is_led =
                |topic: &v1::TopicMetadata| topic.partitions.iter().all(|place| place.leader != 0);
            if told.topics.first().is_some_and(is_led) {
                return told;
            }
        }
    })
    .await;
    assert!(told.version > first.version);
    assert_eq!((told.topics.len(), &told.topics[0].id), (1, &created.id));
    let node = broker.broker.node().id();
    assert!(told.topics[0].partitions.iter().all(|partition| partition.leader == node));
    let all = clients.cluster().get_metadata(v1::GetMetadataRequest::default()).await.unwrap();
    assert_eq!(all.into_inner().topics.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cluster_describes_itself_and_is_healthy() {
    let broker = TestBroker::start().await;
    let clients = broker.clients();
    clients.create_topic("orders", 2).await;
    let request = v1::GetClusterRequest::default();
    let cluster = clients.cluster().get_cluster(request).await.unwrap().into_inner();
    let info = cluster.broker.unwrap();
    assert_eq!(info.version, env!("CARGO_PKG_VERSION"));
    assert!(!info.cluster_id.is_empty() && info.feature_level == FEATURE_LEVEL);
    assert_eq!((cluster.topics, cluster.partitions, cluster.nodes.len()), (1, 2, 1));
    assert_eq!(cluster.metadata_leader, info.node_id);
    let node = &cluster.nodes[0];
    assert!(node.alive && node.leaders == 2 && node.replicas == 2, "{node:?}");
    let health = clients.cluster().get_health(v1::GetHealthRequest {}).await.unwrap().into_inner();
    assert!(health.healthy && health.problems.is_empty(), "{health:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_listener_tells_its_own_addresses() {
    let broker = TestBroker::start_with(|config| {
        let listener = highwater_broker::config::NamedListener {
            bind: "127.0.0.1:0".into(),
            advertise: Some("inside.example:7777".into()),
        };
        config.listeners.insert("inside".into(), listener);
    })
    .await;
    let address_by = |clients: Clients| async move {
        let request = v1::GetMetadataRequest::default();
        let answer = clients.cluster().get_metadata(request).await.unwrap().into_inner();
        answer.nodes[0].address.clone()
    };
    let inside = Clients::of(broker.broker.listener_addr("inside").unwrap());
    assert_eq!(address_by(inside).await, "inside.example:7777");
    let outside = broker.broker.client_addr();
    assert_eq!(address_by(Clients::of(outside)).await, outside.to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_beyond_the_limit_are_closed_and_counted() {
    let broker = TestBroker::start_with(|config| config.limits.connections = 1).await;
    let first = broker.clients();
    first.create_topic("orders", 1).await;
    let list = || v1::TopicServiceListRequest::default();
    assert!(broker.clients().topics().list(list()).await.is_err());
    assert!(first.topics().list(list()).await.is_ok(), "the first one lives");
    let (_, metrics) = http_get(broker.broker.http_addr(), "/metrics").await;
    assert!(metrics.contains("highwater_connections 1"), "{metrics}");
    assert!(!metrics.contains("highwater_connections_refused_total 0"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_published_is_there_after_a_restart() {
    let TestBroker { broker, dir } = TestBroker::start().await;
    let clients = Clients::of(broker.client_addr());
    clients.create_topic("orders", 1).await;
    clients.publish("orders", 0, &["a", "b"]).await;
    soon("stopping", broker.stop()).await;
    drop(broker);
    let broker = highwater_broker::Broker::start(quick_config(&dir)).await.unwrap();
    soon("being ready", broker.wait_ready()).await;
    let clients = Clients::of(broker.client_addr());
    let fetched = clients.fetch("orders", 0, start()).await.unwrap();
    assert_eq!(values(&fetched.records), ["a", "b"]);
    clients.publish("orders", 0, &["c"]).await;
    let fetched = clients.fetch("orders", 0, start()).await.unwrap();
    assert_eq!(values(&fetched.records), ["a", "b", "c"]);
    broker.stop().await;
}
