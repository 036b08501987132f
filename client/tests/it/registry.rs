//! The registry of services over real brokers: who is there, who is not any more, and who must not be taken for dead.
#![expect(clippy::disallowed_methods, reason = "a task of the test's own")]

use std::sync::Arc;
use std::time::Duration;

use highwater_client::{Client, Instance, Instances, NewInstance, Registration, reason};
use highwater_proto::v1;
use highwater_proto::v1::registry_service_client::RegistryServiceClient;
use highwater_testing::{Broker, Cluster, soon, until};
use parking_lot::Mutex;
use tonic::transport::Endpoint;

const SERVICE: &str = "pricing";
const LEASE: Duration = Duration::from_secs(2);

fn at(address: &str) -> NewInstance {
    NewInstance::at(address).attribute("requests", "pricing.requests").lease(LEASE)
}

async fn announce(client: &Client, address: &str) -> Registration {
    let registry = client.registry();
    soon("announcing", registry.announce(SERVICE, at(address))).await.unwrap()
}

async fn watch(client: &Client) -> Instances {
    let registry = client.registry();
    soon("watching", registry.watch(SERVICE)).await.unwrap()
}

fn addresses(instances: &[Instance]) -> Vec<&str> {
    let mut addresses: Vec<_> = instances.iter().map(|it| it.address.as_str()).collect();
    addresses.sort_unstable();
    addresses
}

/// Waits until these are there.
async fn shows(instances: &mut Instances, expected: &[&str]) {
    let waiting = async {
        while addresses(&instances.current()) != expected {
            instances.changed().await.expect("the client's runtime lives");
        }
    };
    soon(format_args!("{expected:?} being there"), waiting).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_are_seen_from_announcement_to_farewell() {
    let broker = Broker::start().await;
    let (here, there) = (broker.client().await, broker.client().await);
    let mut seen = watch(&there).await;
    assert!(seen.current().is_empty() && seen.pick().is_none());
    let first = announce(&here, "h1").await;
    assert!(first.is_held());
    let found = soon("somebody", seen.wait_for_any()).await.unwrap();
    assert_eq!((found.id.as_str(), found.address.as_str(), found.lease), (first.id(), "h1", LEASE));
    assert_eq!(found.attribute("requests"), Some("pricing.requests"));
    // It would stay long enough to fail the test.
    let long = at("h2").lease(Duration::from_secs(3_600));
    let second = here.registry().announce(SERVICE, long).await.unwrap();
    shows(&mut seen, &["h1", "h2"]).await;
    // One after the other.
    assert_ne!(seen.pick().unwrap().address, seen.pick().unwrap().address);
    let other = here.registry().announce("billing", NewInstance::default()).await.unwrap();
    let listed = |service| {
        let there = there.clone();
        async move { soon("listing", there.registry().list(service)).await.unwrap() }
    };
    assert_eq!(addresses(&listed(Some(SERVICE)).await), ["h1", "h2"]);
    assert_eq!(listed(None).await.len(), 3);
    assert!(listed(Some("nobody")).await.is_empty());

    soon("closing", first.close()).await.unwrap();
    assert_eq!(addresses(&listed(Some(SERVICE)).await), ["h2"]);
    shows(&mut seen, &["h2"]).await;
    drop(second);
    shows(&mut seen, &[]).await;
    drop(other);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_dies_without_a_word_goes_when_its_lease_ends_and_others_stay() {
    let broker = Broker::start().await;
    let client = broker.client().await;
    let mut seen = watch(&client).await;
    let survivor = announce(&client, "survivor").await;
    // A process of its own, as far as the client can tell.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let servers = broker.servers();
    let victim = runtime.spawn(async move {
        let client = Client::connect(&servers).await.unwrap();
        client.registry().announce(SERVICE, at("victim")).await.unwrap()
    });
    let victim = soon("announcing", victim).await.unwrap();
    shows(&mut seen, &["survivor", "victim"]).await;
    // It outlives its lease, because it renews it.
    tokio::time::sleep(LEASE + LEASE / 2).await;
    assert_eq!(addresses(&seen.current()), ["survivor", "victim"]);
    runtime.shutdown_background();
    drop(victim);
    shows(&mut seen, &["survivor"]).await;
    until("the survivor's lease", || async { survivor.is_held() }).await;
    broker.stop().await;
}

/// Every list that a watcher was shown.
fn record(mut instances: Instances) -> Arc<Mutex<Vec<Vec<String>>>> {
    let lists = Arc::new(Mutex::new(Vec::new()));
    let recorded = Arc::clone(&lists);
    tokio::spawn(async move {
        loop {
            let list = instances.current();
            recorded.lock().push(list.iter().map(|it| it.address.clone()).collect());
            if instances.changed().await.is_none() {
                return;
            }
        }
    });
    lists
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_taken_for_dead_because_a_leader_died() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    let registration = announce(&client, "h1").await;
    let watchers = [cluster.client().await, cluster.client().await, cluster.client().await];
    let mut recorded = Vec::new();
    for watcher in &watchers {
        recorded.push(record(watch(watcher).await));
    }
    let leader = || async {
        let info = soon("asking", client.admin().cluster_info()).await;
        info.ok().and_then(|info| info.metadata_leader)
    };
    let mut old = None;
    until("a leader of the metadata", || async { leader().await.is_some() }).await;
    for _ in 0..2 {
        let leads = leader().await.expect("the metadata group has a leader");
        assert_ne!(Some(leads), old);
        old = Some(leads);
        // Founders have the ids 1, 2 and 3, in this order.
        let index = usize::try_from(leads).unwrap() - 1;
        cluster.kill(index).await;
        until("another leader", || async { leader().await.is_some_and(|now| now != leads) }).await;
        // Longer than a lease lasts.
        tokio::time::sleep(LEASE + LEASE / 2).await;
        until("a renewal", || async { registration.is_held() }).await;
        cluster.start_again(index).await;
    }
    for lists in &recorded {
        assert_eq!(*lists.lock(), [["h1"]], "it was there all the time");
    }
    // The watchers have found nodes that live.
    let second = announce(&client, "h2").await;
    for lists in &recorded {
        until("the news", || async { lists.lock().last().is_some_and(|list| list.len() == 2) })
            .await;
    }
    drop((registration, second));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_was_taken_out_announces_itself_again() {
    let broker = Broker::start().await;
    let client = broker.client().await;
    let registration = announce(&client, "h1").await;
    let mut seen = watch(&client).await;
    shows(&mut seen, &["h1"]).await;
    // As if the lease had ended.
    let endpoint = Endpoint::from_shared(format!("http://{}", broker.servers())).unwrap();
    let mut raw = RegistryServiceClient::new(endpoint.connect_lazy());
    let (service, id) = (SERVICE.to_owned(), registration.id().to_owned());
    let request = v1::RegistryServiceDeregisterRequest { service, id };
    raw.deregister(request).await.unwrap();
    let next = soon("news", seen.changed()).await.unwrap();
    if !next.is_empty() {
        // Gone and back are one change to whoever looks later.
        assert_eq!(addresses(&next), ["h1"]);
    }
    shows(&mut seen, &["h1"]).await;
    assert_eq!(seen.current()[0].id, registration.id());
    // Others may hear of it before it does.
    until("the lease being held", || async { registration.is_held() }).await;
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_cut_off_knows_it_and_comes_back() {
    let broker = Broker::start().await;
    let client = broker.client().await;
    let registration = announce(&client, "h1").await;
    let mut seen = watch(&client).await;
    broker.faults().refuse();
    until("the lease being lost", || async { !registration.is_held() }).await;
    // Better the last that was known than nothing.
    assert_eq!(addresses(&seen.current()), ["h1"]);
    broker.faults().clear();
    until("the lease being held", || async { registration.is_held() }).await;
    shows(&mut seen, &["h1"]).await;
    // The watch goes on too.
    let second = announce(&client, "h2").await;
    shows(&mut seen, &["h1", "h2"]).await;
    soon("closing", second.close()).await.unwrap();
    shows(&mut seen, &["h1"]).await;
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_is_refused_and_what_cannot_be_reached_is_worth_another_try() {
    let broker = Broker::start().await;
    let builder = Client::builder().servers(broker.servers());
    let client = builder.request_timeout(Duration::from_millis(300)).connect().await.unwrap();
    let registry = client.registry();
    let bad = [
        registry.announce("no spaces", at("h")).await.unwrap_err(),
        registry.announce(SERVICE, at("h").lease(Duration::from_millis(10))).await.unwrap_err(),
        registry.announce(SERVICE, at("h").lease(Duration::ZERO)).await.unwrap_err(),
        registry.announce(SERVICE, at(&"h".repeat(300))).await.unwrap_err(),
        registry.watch("").await.unwrap_err(),
        registry.list(Some("no spaces")).await.unwrap_err(),
    ];
    for error in bad {
        assert_eq!(error.reason(), reason::INVALID_ARGUMENT, "{error}");
        assert!(!error.is_retriable() && !error.may_have_been_written(), "{error}");
    }
    let registration = registry.announce(SERVICE, at("h1")).await.unwrap();
    broker.faults().refuse();
    let announcing = soon("giving up", registry.announce(SERVICE, at("h2"))).await;
    assert!(announcing.unwrap_err().is_retriable());
    let error = soon("giving up", registry.watch(SERVICE)).await.unwrap_err();
    assert!(error.is_retriable() && !error.may_have_been_written(), "{error}");
    let error = soon("giving up", registration.close()).await.unwrap_err();
    assert!(error.is_retriable(), "{error}");
    broker.stop().await;
}
