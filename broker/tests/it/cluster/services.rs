//! The registry of services on three nodes: whichever is asked, and whoever leads the metadata group.

use std::time::Duration;

use highwater_broker::cluster::{FEATURE_LEVEL, METADATA_GROUP};
use highwater_broker::env::{Clock, SystemClock};
use highwater_proto::v1;
use tonic::Status;

use super::nodes::*;
use crate::harness::*;

const SERVICE: &str = "pricing";
const LEASE: Duration = Duration::from_secs(3);

fn instance(id: &str, lease: Duration) -> v1::ServiceInstance {
    v1::ServiceInstance {
        service: SERVICE.to_owned(),
        id: id.to_owned(),
        address: "10.0.0.7:9000".to_owned(),
        lease_ms: u32::try_from(lease.as_millis()).unwrap(),
        ..Default::default()
    }
}

async fn register(clients: &Clients, instance: v1::ServiceInstance) -> Result<(), Status> {
    let request = v1::RegistryServiceRegisterRequest { instance: Some(instance) };
    let mut service = clients.registry();
    soon("registering", async { service.register(request).await }).await.map(drop)
}

async fn renew(clients: &Clients, id: &str) -> Result<(), Status> {
    let (service, id) = (SERVICE.to_owned(), id.to_owned());
    let request = v1::RegistryServiceRenewRequest { service, id };
    soon("renewing", async { clients.registry().renew(request).await }).await.map(drop)
}

async fn deregister(clients: &Clients, id: &str) -> Result<(), Status> {
    let (service, id) = (SERVICE.to_owned(), id.to_owned());
    let request = v1::RegistryServiceDeregisterRequest { service, id };
    soon("deregistering", async { clients.registry().deregister(request).await }).await.map(drop)
}

async fn listed(clients: &Clients, service: &str) -> Vec<String> {
    let request = v1::RegistryServiceListRequest { service: service.to_owned() };
    let answer = soon("listing", async { clients.registry().list(request).await }).await;
    answer.unwrap().into_inner().instances.into_iter().map(|instance| instance.id).collect()
}

async fn everywhere(nodes: &Nodes, expected: &[&str]) {
    for place in 0..3 {
        let clients = nodes.clients(place);
        until(&format!("node {} listing {expected:?}", place + 1), || async {
            listed(&clients, SERVICE).await == expected
        })
        .await;
    }
}

/// Moves the metadata group's leadership to another node.
async fn move_metadata_leader(nodes: &Nodes) {
    let before = nodes.leader(METADATA_GROUP).await;
    until("another leader of the metadata group", || async {
        let leader = nodes.leader(METADATA_GROUP).await;
        // A target that has only just caught up may be refused once.
        let _ = nodes.replica(leader, METADATA_GROUP).transfer_leadership(0).await;
        nodes.leader(METADATA_GROUP).await != before
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn any_node_takes_every_call_and_a_watch_sees_who_comes_and_goes() {
    let mut nodes = Nodes::start(|_| {}).await;
    let leader = nodes.leader(METADATA_GROUP).await;
    let (one, other) = (nodes.clients((leader + 1) % 3), nodes.clients((leader + 2) % 3));
    let request = v1::RegistryServiceWatchRequest { service: SERVICE.to_owned() };
    let mut watch = other.registry().watch(request).await.unwrap().into_inner();
    let mut next = async || soon("news", watch.message()).await.unwrap().unwrap();
    let first = next().await;
    assert!(first.is_whole && first.instances.is_empty());

    register(&one, instance("a", LEASE)).await.unwrap();
    let came = next().await;
    assert!(!came.is_whole);
    assert_eq!(came.instances, [instance("a", LEASE)]);
    // Whoever registered through a node sees it there at once.
    assert_eq!(listed(&one, SERVICE).await, ["a"]);
    register(&one, v1::ServiceInstance { service: "other".into(), ..instance("z", LEASE) })
        .await
        .unwrap();
    everywhere(&nodes, &["a"]).await;
    assert_eq!(listed(&one, "").await, ["z", "a"], "by service");

    // Renewed at every node in turn, for longer than the lease; "b" is not.
    let since = SystemClock::new();
    register(&other, instance("b", LEASE)).await.unwrap();
    assert_eq!(next().await.instances[0].id, "b");
    let mut turn = 0;
    let gone = loop {
        renew(&nodes.clients(turn % 3), "a").await.unwrap();
        turn += 1;
        match tokio::time::timeout(Duration::from_millis(200), next()).await {
            Ok(news) => break news,
            Err(_nothing_yet) => assert!(since.monotonic() < Duration::from_secs(60)),
        }
    };
    assert!(since.monotonic() >= LEASE, "too early");
    assert_eq!((gone.gone_ids, gone.instances), (vec!["b".to_owned()], vec![]));
    let unknown = renew(&one, "b").await.unwrap_err();
    assert_eq!(
        (reason(&unknown).as_str(), unknown.code()),
        ("UNKNOWN_INSTANCE", tonic::Code::NotFound)
    );

    deregister(&other, "a").await.unwrap();
    assert_eq!(next().await.gone_ids, ["a"]);
    deregister(&other, "a").await.unwrap();
    let refused = register(&one, instance("no spaces", LEASE)).await.unwrap_err();
    assert_eq!(reason(&refused), "INVALID_ARGUMENT");
    nodes.stop_all().await;
    // A watch ends with its node, so that the client looks for another one.
    assert!(soon("the end", watch.message()).await.is_ok_and(|end| end.is_none()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_leader_of_the_metadata_gives_every_lease_its_whole_duration() {
    let mut nodes = Nodes::start(|_| {}).await;
    register(&nodes.clients(0), instance("a", LEASE)).await.unwrap();
    // Nobody renews; but no leader leads for as long as the lease lasts.
    let since = SystemClock::new();
    while since.monotonic() < 2 * LEASE {
        let since_move = SystemClock::new();
        move_metadata_leader(&nodes).await;
        let leader = nodes.leader(METADATA_GROUP).await;
        let is_there = listed(&nodes.clients(leader), SERVICE).await == ["a"];
        assert!(is_there || since_move.monotonic() >= LEASE, "it expired too early");
        if !is_there {
            // The machine stood still.
            register(&nodes.clients(0), instance("a", LEASE)).await.unwrap();
        }
        tokio::time::sleep(LEASE / 10).await;
    }
    // This one does.
    everywhere(&nodes, &[]).await;
    nodes.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn services_wait_for_the_last_node_of_an_older_version_and_are_kept_over_restarts() {
    let mut nodes = Nodes::prepare(|_| {});
    for place in 0..3 {
        nodes.set_level(place, 1);
    }
    nodes.run_all().await;
    let refused = register(&nodes.clients(0), instance("a", LEASE)).await.unwrap_err();
    assert_eq!(reason(&refused), "NOT_READY");
    assert!(refused.message().contains("feature level 2"), "{refused}");
    assert!(listed(&nodes.clients(1), "").await.is_empty());
    for place in 0..3 {
        nodes.stop(place).await;
        nodes.set_level(place, FEATURE_LEVEL);
        nodes.run_all().await;
    }
    let hour = Duration::from_secs(3_600);
    until("the level having risen", || async {
        register(&nodes.clients(0), instance("a", hour)).await.is_ok()
    })
    .await;
    nodes.stop_all().await;
    nodes.run_all().await;
    everywhere(&nodes, &["a"]).await;
    renew(&nodes.clients(2), "a").await.unwrap();
    nodes.stop_all().await;
}
