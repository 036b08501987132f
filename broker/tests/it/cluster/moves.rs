//! Partitions whose replicas change: moved under load, replaced where they lost their data.

use std::sync::atomic::{AtomicBool, Ordering};

use highwater_proto::v1;

use super::nodes::*;
use crate::harness::*;

async fn reassign(nodes: &Nodes, place: usize, node_ids: &[u64], replace_node_ids: &[u64]) {
    let request = v1::ReassignPartitionRequest {
        topic: "orders".into(),
        partition: 0,
        node_ids: node_ids.to_vec(),
        replace_node_ids: replace_node_ids.to_vec(),
    };
    nodes.clients(place).cluster().reassign_partition(request).await.unwrap();
}

/// Waits until the metadata says that a reassignment is finished; the nodes with replicas.
async fn moved(nodes: &Nodes, place: usize) -> Vec<u64> {
    let partition = || nodes.broker(place).node().view().topics["orders"].partitions[0].clone();
    until("the move being finished", || async {
        partition().target.is_empty() && partition().joined_from != 0
    })
    .await;
    partition().replicas.iter().map(|(_, node)| *node).collect()
}

/// Publishes to whoever leads until told to stop; what was acknowledged, in order.
async fn publish_until(nodes: &Nodes, group: u64, done: &AtomicBool) -> Vec<String> {
    let mut acknowledged = Vec::new();
    let mut number = 0;
    while !done.load(Ordering::Acquire) {
        number += 1;
        // Never the same twice: an attempt whose outcome is unknown may be in the log.
        let value = format!("{number}:{}", "x".repeat(20_000));
        let leader = nodes.leader(group).await;
        if nodes.produce(leader, "orders", v1::Acks::QuorumFsync, &value, 5_000).await.is_ok() {
            acknowledged.push(value);
        }
    }
    acknowledged
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_moves_away_from_its_leader_under_load() {
    let nodes = Nodes::start(|_| {}).await;
    let group = create_in_small_segments(&nodes, 2).await;
    let leader = nodes.leader(group).await;
    let before = moved_from(&nodes);
    let free = (0..3).find(|place| !before.contains(&(*place as u64 + 1))).unwrap();
    let other = (0..3).find(|place| *place != leader && *place != free).unwrap();
    let (from, to) = (leader as u64 + 1, [free as u64 + 1, other as u64 + 1]);
    let done = AtomicBool::new(false);
    let moving = async {
        reassign(&nodes, leader, &to, &[]).await;
        let replicas = moved(&nodes, leader).await;
        done.store(true, Ordering::Release);
        replicas
    };
    let (acknowledged, replicas) = tokio::join!(publish_until(&nodes, group, &done), moving);
    assert_eq!(replicas, to);
    assert!(!acknowledged.is_empty());
    until("the data being gone from where it was", || async {
        nodes.broker(leader).node().replica(group).is_none()
            && !nodes.group_dir(leader, group).exists()
    })
    .await;
    let leads = nodes.leader(group).await;
    assert_ne!(leads as u64 + 1, from);
    for place in [free, other] {
        nodes.transfer("orders", 0, place).await;
        let found = values(&nodes.fetch_all(place, "orders").await);
        let found: Vec<&String> = found.iter().filter(|v| acknowledged.contains(v)).collect();
        assert_eq!(found, acknowledged.iter().collect::<Vec<_>>(), "once each, in order");
    }
    let mut nodes = nodes;
    nodes.stop_all().await;
    nodes.run_all().await;
    nodes.leader(group).await;
    nodes.stop_all().await;
}

fn moved_from(nodes: &Nodes) -> Vec<u64> {
    let view = nodes.broker(0).node().view();
    view.topics["orders"].partitions[0].replicas.iter().map(|(_, node)| *node).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_whose_directory_is_gone_is_replaced_on_the_same_node() {
    let mut nodes = Nodes::start(|_| {}).await;
    let group = create_in_small_segments(&nodes, 3).await;
    let leader = nodes.leader(group).await;
    for number in 0..12 {
        let value = format!("{number}:{}", "x".repeat(300_000));
        nodes.produce(leader, "orders", v1::Acks::QuorumFsync, &value, 10_000).await.unwrap();
    }
    let before = values(&nodes.fetch_all(leader, "orders").await);
    let victim = (leader + 1) % 3;
    nodes.stop(victim).await;
    std::fs::remove_dir_all(nodes.group_dir(victim, group)).unwrap();
    nodes.run(victim).await;
    until("the loss being noticed", || async {
        nodes.checks(victim).contains("have the cluster replace the replica")
    })
    .await;
    assert!(
        nodes.broker(victim).node().replica(group).is_none(),
        "it does not begin anew by itself"
    );
    reassign(&nodes, leader, &[], &[victim as u64 + 1]).await;
    moved(&nodes, victim).await;
    until("the new replica being level", || async {
        let replica = nodes.broker(victim).node().replica(group);
        replica.is_some_and(|replica| replica.high_watermark() == 12)
    })
    .await;
    nodes.transfer("orders", 0, victim).await;
    assert_eq!(values(&nodes.fetch_all(victim, "orders").await), before);
    // It is a replica like any other, also after a restart of everything.
    nodes.stop_all().await;
    nodes.run_all().await;
    nodes.leader(group).await;
    nodes.transfer("orders", 0, victim).await;
    assert_eq!(values(&nodes.fetch_all(victim, "orders").await), before);
    let health = nodes.clients(victim).cluster();
    until("a healthy cluster", || async {
        let mut health = health.clone();
        health.get_health(v1::GetHealthRequest {}).await.unwrap().into_inner().healthy
    })
    .await;
    nodes.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_in_service_is_set_aside_when_it_is_replaced() {
    let mut nodes = Nodes::start(|_| {}).await;
    let group = create_in_small_segments(&nodes, 3).await;
    let leader = nodes.leader(group).await;
    nodes.produce(leader, "orders", v1::Acks::QuorumFsync, "first", 10_000).await.unwrap();
    let victim = (leader + 1) % 3;
    until("the victim being level", || async {
        let replica = nodes.broker(victim).node().replica(group);
        replica.is_some_and(|replica| replica.high_watermark() == 1)
    })
    .await;
    let old = nodes.replica(victim, group).replica_id();
    let aside =
        nodes.group_dir(victim, group).join("../../set-aside").join(format!("{group}-{old}"));
    reassign(&nodes, victim, &[], &[victim as u64 + 1]).await;
    moved(&nodes, victim).await;
    until("the new replica being level", || async {
        let replica = nodes.broker(victim).node().replica(group);
        replica.is_some_and(|r| r.replica_id() > old && r.high_watermark() == 1)
    })
    .await;
    assert!(aside.join("replica").exists(), "{}", aside.display());
    let leader = nodes.leader(group).await;
    assert_eq!(nodes.replica(leader, group).members().voters.len(), 3);
    assert!(!nodes.replica(leader, group).members().voters.contains(&old));
    nodes.stop_all().await;
}
