//! Three nodes in one process: calls that any node takes, redirects, and leaders that move.

mod bad_disk;
mod behind_retention;
mod compaction;
mod dedup;
mod directories;
mod durability;
mod ends;
mod faults;
mod founding;
mod full_disk;
mod group_faults;
mod groups;
mod hostile_bytes;
mod membership;
mod moves;
mod nearest;
mod nodes;
mod processes;
mod quiesce;
mod repair;
mod services;
mod tls;
mod topic_life;
mod upgrade;

use std::collections::BTreeSet;

use highwater_broker::Broker;
use highwater_proto::v1;
use highwater_testing::free_address;
use tempfile::TempDir;
use v1::subscribe_response::Message as Response;

use crate::harness::*;

struct Three {
    brokers: Vec<Broker>,
    _dirs: Vec<TempDir>,
}

impl Three {
    async fn start() -> Self {
        // Seeds are addresses that must be known before anybody binds them.
        let seeds: Vec<String> = (0..3).map(|_| free_address()).collect();
        let dirs: Vec<TempDir> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
        let mut brokers = Vec::new();
        for (dir, seed) in dirs.iter().zip(&seeds) {
            let mut config = quick_config(dir);
            config.raft.tick_ms = 30;
            config.node.seeds = seeds.clone();
            config.listen.internal = seed.clone();
            brokers.push(Broker::start(config).await.unwrap());
        }
        for broker in &brokers {
            soon("being ready", broker.wait_ready()).await;
        }
        Self { brokers, _dirs: dirs }
    }

    fn clients(&self, place: usize) -> Clients {
        Clients::of(self.brokers[place].client_addr())
    }

    /// The place of a node among the brokers.
    fn place_of(&self, node: u64) -> usize {
        self.brokers.iter().position(|broker| broker.node().id() == node).unwrap()
    }

    async fn leader_of(&self, topic: &str, partition: usize) -> u64 {
        let request = v1::TopicServiceGetRequest { name: topic.to_owned() };
        let topic = self.clients(0).topics().get(request).await.unwrap().into_inner().topic;
        topic.unwrap().partitions[partition].leader
    }

    async fn stop(self) {
        let stopping = self.brokers.iter().map(Broker::stop);
        soon("stopping", futures::future::join_all(stopping)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn any_node_takes_produce_fetch_trim_and_describe() {
    let three = Three::start().await;
    let created = three.clients(0).create_topic("orders", 3).await;
    assert_eq!(created.replication_factor, 3);
    let leaders: BTreeSet<u64> =
        created.partitions.iter().map(|partition| partition.leader).collect();
    assert_eq!(leaders.len(), 3, "leaders are spread: {created:?}");
    for place in 0..3 {
        let clients = three.clients(place);
        for partition in 0..3 {
            let ack = clients.publish("orders", partition, &["x"]).await;
            assert_eq!(ack.base_offset, i64::try_from(place).unwrap());
        }
    }
    for place in 0..3 {
        let clients = three.clients(place);
        for partition in 0..3 {
            let fetched = clients.fetch("orders", partition, start()).await.unwrap();
            assert_eq!(fetched.records.len(), 3);
        }
        let request = v1::TopicServiceGetRequest { name: "orders".into() };
        let topic = clients.topics().get(request).await.unwrap().into_inner().topic.unwrap();
        assert!(topic.partitions.iter().all(|partition| partition.high_watermark == 3));
    }
    for partition in 0..3 {
        let trim = v1::TopicServiceTrimRequest {
            name: "orders".into(),
            partition,
            to: position(v1::position::At::Offset(1)),
        };
        let trimmed = three.clients(0).topics().trim(trim).await.unwrap().into_inner();
        assert_eq!(trimmed.log_start_offset, 1);
    }
    three.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_to_the_wrong_node_learn_the_leaders_address() {
    let three = Three::start().await;
    three.clients(0).create_topic("orders", 1).await;
    let leader = three.leader_of("orders", 0).await;
    let place = three.place_of(leader);
    let address = three.brokers[place].client_addr().to_string();
    let clients = three.clients((place + 1) % 3);
    let mut stream = clients.produce_stream(v1::ProduceInit::default()).await;
    stream.initialized().await;
    let message = v1::ProduceBatch {
        request_id: 1,
        topic: "orders".into(),
        batch: batch(&["x"]),
        ..Default::default()
    };
    stream.send_batch(message).await;
    let error = stream.failure(1).await;
    assert_eq!((error.reason.as_str(), error.retriable), ("NOT_LEADER", true));
    assert_eq!(error.metadata["leader_node_id"], leader.to_string());
    assert_eq!(error.metadata["leader_address"], address);
    let wanted = v1::SubscribePartition { topic: "orders".into(), ..Default::default() };
    let init = v1::SubscribeInit { partitions: vec![wanted], ..Default::default() };
    let mut subscription = clients.subscribe(init).await;
    match subscription.next().await.unwrap().unwrap() {
        Response::Redirect(redirect) => {
            assert_eq!((redirect.leader_node_id, redirect.leader_address), (leader, address));
        }
        other => panic!("expected a redirect, got {other:?}"),
    }
    three.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_moves_the_leader_and_redirects_who_reads() {
    let three = Three::start().await;
    three.clients(0).create_topic("orders", 1).await;
    let leader = three.leader_of("orders", 0).await;
    let place = three.place_of(leader);
    let wanted = v1::SubscribePartition { topic: "orders".into(), ..Default::default() };
    let init = v1::SubscribeInit { partitions: vec![wanted], ..Default::default() };
    let mut subscription = three.clients(place).subscribe(init).await;
    subscription.assigned().await;
    // Asked of a node that does not lead, to move to another one that does not either.
    let other = three.brokers[(place + 1) % 3].node().id();
    let transfer =
        v1::TransferLeadershipRequest { topic: "orders".into(), partition: 0, to_node_id: other };
    let moved = three.clients((place + 2) % 3).cluster().transfer_leadership(transfer).await;
    assert_eq!(moved.unwrap().into_inner().leader, other);
    match subscription.next().await.unwrap().unwrap() {
        Response::Redirect(_) => {}
        unexpected => panic!("expected a redirect, got {unexpected:?}"),
    }
    until("the new leader being known", || async { three.leader_of("orders", 0).await == other })
        .await;
    three.clients(place).publish("orders", 0, &["after"]).await;
    three.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_node_is_a_problem_with_a_name_and_the_others_serve() {
    let mut three = Three::start().await;
    three.clients(0).create_topic("orders", 3).await;
    three.clients(0).publish("orders", 0, &["before"]).await;
    until("health", || async {
        let request = v1::GetHealthRequest {};
        three.clients(0).cluster().get_health(request).await.unwrap().into_inner().healthy
    })
    .await;
    let stopped = three.brokers.remove(2);
    let gone = stopped.node().id();
    soon("stopping", stopped.stop()).await;
    drop(stopped);
    until("the problem", || async {
        let request = v1::GetHealthRequest {};
        let health = three.clients(0).cluster().get_health(request).await.unwrap().into_inner();
        !health.healthy
            && health.dead_nodes == [gone]
            && health.leaderless_partitions == 0
            && health.under_replicated_partitions == 3
    })
    .await;
    for partition in 0..3 {
        three.clients(1).publish("orders", partition, &["after"]).await;
    }
    three.stop().await;
}
