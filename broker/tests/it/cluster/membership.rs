//! Nodes that come and go: a fresh one joins, one leaves alive or dead, a lost data directory is welcomed again.

use std::sync::atomic::{AtomicBool, Ordering};

use highwater_proto::v1;

use super::nodes::*;
use crate::harness::*;

pub(super) async fn create(nodes: &Nodes, partitions: u32, replication_factor: u32) {
    let create = v1::TopicServiceCreateRequest {
        name: "orders".into(),
        partitions,
        replication_factor,
        config: Default::default(),
    };
    nodes.clients(0).topics().create(create).await.unwrap();
}

async fn remove(nodes: &Nodes, place: usize, node_id: u64) -> Result<(), tonic::Status> {
    let request = v1::RemoveNodeRequest { node_id };
    nodes.clients(place).cluster().remove_node(request).await.map(drop)
}

async fn add(nodes: &Nodes, place: usize, node_id: u64) -> Result<(), tonic::Status> {
    let request = v1::AddNodeRequest { node_id };
    nodes.clients(place).cluster().add_node(request).await.map(drop)
}

/// Waits until a node says that another one has left.
async fn gone(nodes: &Nodes, place: usize, node_id: u64) {
    until("the node having left", || async {
        let view = nodes.broker(place).node().view();
        view.removed_nodes.contains(&node_id) && !view.nodes.contains_key(&node_id)
    })
    .await;
}

async fn healthy(nodes: &Nodes, place: usize) {
    until("a healthy cluster with nothing on its way", || async {
        let request = v1::GetHealthRequest {};
        let health = nodes.clients(place).cluster().get_health(request).await;
        health.is_ok_and(|health| {
            let health = health.into_inner();
            health.healthy && health.in_progress.is_empty()
        })
    })
    .await;
}

fn holders(nodes: &Nodes, place: usize) -> Vec<Vec<u64>> {
    let view = nodes.broker(place).node().view();
    let partitions = view.topics["orders"].partitions.iter();
    partitions.map(|p| p.replicas.iter().map(|(_, node)| *node).collect()).collect()
}

/// Publishes to partition 0 at whoever leads until told to stop; what was acknowledged, in order.
pub(super) async fn publish_until(
    nodes: &Nodes,
    places: &[usize],
    done: &AtomicBool,
) -> Vec<String> {
    let mut acknowledged = Vec::new();
    let mut number = 0;
    while !done.load(Ordering::Acquire) {
        number += 1;
        let value = format!("value {number}");
        for place in places {
            let outcome = nodes.produce(*place, "orders", v1::Acks::QuorumFsync, &value, 5_000);
            match outcome.await {
                Ok(_) => {
                    acknowledged.push(value);
                    break;
                }
                Err(error) if error.reason == "NOT_LEADER" => {}
                Err(_) => break,
            }
        }
        tokio::task::yield_now().await;
    }
    acknowledged
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fresh_node_joins_by_its_seeds_alone_and_is_a_member_like_any_other() {
    let mut nodes = Nodes::start(|_| {}).await;
    create(&nodes, 2, 3).await;
    let fourth = nodes.join_another().await;
    assert_eq!(nodes.cluster_id(fourth), nodes.cluster_id(0));
    let metadata = |place: usize| nodes.replica(place, 0).members();
    until("four voters of the metadata group", || async {
        let members = metadata(fourth);
        members.voters.len() == 4 && members.outgoing.is_empty() && members.learners.is_empty()
    })
    .await;
    // It holds replicas and answers clients.
    let request = v1::ReassignPartitionRequest {
        topic: "orders".into(),
        partition: 0,
        node_ids: vec![4, 1, 2],
        replace_node_ids: Vec::new(),
    };
    nodes.clients(fourth).cluster().reassign_partition(request).await.unwrap();
    until("the move being finished", || async { holders(&nodes, fourth)[0] == [4, 1, 2] }).await;
    let group = nodes.groups("orders")[0];
    until("the preferred leader leading", || async { nodes.leader(group).await == fourth }).await;
    nodes.produce(fourth, "orders", v1::Acks::QuorumFsync, "hello", 10_000).await.unwrap();
    healthy(&nodes, fourth).await;
    // Also when everything starts again.
    nodes.stop_all().await;
    nodes.run_all().await;
    assert_eq!(nodes.broker(fourth).node().id(), 4);
    until("a leader after the restart", || async {
        nodes
            .clients(fourth)
            .fetch("orders", 0, start())
            .await
            .is_ok_and(|page| values(&page.records) == ["hello"])
    })
    .await;
    nodes.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_leaves_under_load_while_the_coordinator_changes_and_never_comes_back() {
    let mut nodes = Nodes::start(|_| {}).await;
    create(&nodes, 3, 3).await;
    nodes.join_another().await;
    let leaves = nodes.leader(nodes.groups("orders")[0]).await;
    let id = leaves as u64 + 1;
    let stays: Vec<usize> = (0..4).filter(|place| *place != leaves).collect();
    let done = AtomicBool::new(false);
    let all: Vec<usize> = (0..4).collect();
    let leaving = async {
        remove(&nodes, stays[0], id).await.unwrap();
        // The coordinator hands over in the middle, more than once.
        for _ in 0..3 {
            let coordinator = nodes.leader(0).await;
            let _ = nodes.replica(coordinator, 0).transfer_leadership(0).await;
        }
        gone(&nodes, stays[0], id).await;
        done.store(true, Ordering::Release);
    };
    let (acknowledged, ()) = tokio::join!(publish_until(&nodes, &all, &done), leaving);
    assert!(!acknowledged.is_empty());
    for nodes in holders(&nodes, stays[1]) {
        assert!(nodes.len() == 3 && !nodes.contains(&id), "{nodes:?}");
    }
    let why = soon("the node ending", nodes.broker(leaves).wait_fatal()).await;
    assert!(why.contains(&format!("node {id} was removed from the cluster")), "{why}");
    let members = nodes.replica(stays[0], 0).members();
    assert!(!members.nodes.values().any(|node| *node == id));
    // Its replicas are started once more: nobody listens to them.
    let group = nodes.groups("orders")[0];
    nodes.stop(leaves).await;
    healthy(&nodes, stays[0]).await;
    let epochs = || stays.iter().map(|at| nodes.status(*at, group).leader_epoch).max();
    let before = epochs();
    let mut nodes = nodes;
    nodes.run(leaves).await;
    let why = soon("the node ending again", nodes.broker(leaves).wait_fatal()).await;
    assert!(why.contains("its id is never used again"), "{why}");
    let epochs = || stays.iter().map(|at| nodes.status(*at, group).leader_epoch).max();
    assert_eq!(epochs(), before, "no election because of it");
    nodes.stop(leaves).await;
    // With an empty directory it is another node; its old id is not to be had.
    nodes.wipe(leaves);
    nodes.config(leaves).node.id = Some(id);
    nodes.run(leaves).await;
    nodes.waits_for(leaves, &["was removed from the cluster", "never used again"]).await;
    let page = values(&nodes.fetch_all(stays[0], "orders").await);
    let found: Vec<&String> = page.iter().filter(|value| acknowledged.contains(value)).collect();
    assert_eq!(found, acknowledged.iter().collect::<Vec<_>>(), "once each, in order");
    nodes.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_node_is_replaced_by_a_fresh_one() {
    let mut nodes = Nodes::start(|_| {}).await;
    create(&nodes, 3, 3).await;
    nodes.clients(0).publish("orders", 0, &["kept"]).await;
    nodes.stop(2).await;
    let refused = remove(&nodes, 0, 3).await.unwrap_err();
    assert_eq!(reason(&refused), "INVALID_ARGUMENT");
    assert!(refused.message().contains("let another node join first"), "{refused}");
    let fourth = nodes.join_another().await;
    remove(&nodes, fourth, 3).await.unwrap();
    gone(&nodes, fourth, 3).await;
    healthy(&nodes, fourth).await;
    for mut holders in holders(&nodes, fourth) {
        holders.sort_unstable();
        assert_eq!(holders, [1, 2, 4]);
    }
    nodes.transfer("orders", 0, fourth).await;
    assert_eq!(values(&nodes.fetch_all(fourth, "orders").await), ["kept"]);
    nodes.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_node_is_refused_and_welcomed_by_a_command() {
    let mut nodes = Nodes::start(|_| {}).await;
    create(&nodes, 2, 3).await;
    nodes.clients(0).publish("orders", 0, &["kept"]).await;
    let group = nodes.groups("orders")[0];
    let old = nodes.replica(2, group).replica_id();
    nodes.stop(2).await;
    nodes.wipe(2);
    nodes.run(2).await;
    nodes.waits_for(2, &["broker-cli cluster add-node 3"]).await;
    add(&nodes, 0, 3).await.unwrap();
    soon("being a member again", nodes.broker(2).wait_ready()).await;
    healthy(&nodes, 2).await;
    assert!(nodes.replica(2, group).replica_id() > old);
    let members = nodes.replica(2, 0).members();
    assert_eq!(members.voters.len(), 3, "{members:?}");
    nodes.transfer("orders", 0, 2).await;
    assert_eq!(values(&nodes.fetch_all(2, "orders").await), ["kept"]);
    nodes.stop_all().await;
    nodes.run_all().await;
    healthy(&nodes, 2).await;
    nodes.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_gets_more_partitions_but_never_fewer() {
    let nodes = Nodes::start(|_| {}).await;
    create(&nodes, 1, 2).await;
    let mut watch = nodes.clients(1).cluster();
    let request = v1::WatchMetadataRequest { topics: vec!["orders".into()], client: None };
    let mut changes = watch.watch_metadata(request).await.unwrap().into_inner();
    let update = |partitions| v1::TopicServiceUpdateRequest {
        name: "orders".into(),
        partitions,
        ..Default::default()
    };
    let topic = nodes.clients(1).topics().update(update(4)).await.unwrap().into_inner().topic;
    let topic = topic.unwrap();
    assert_eq!(topic.partitions.len(), 4);
    assert!(topic.partitions.iter().all(|p| p.replicas.len() == 2 && p.leader != 0), "{topic:?}");
    soon("clients hearing of it", async {
        loop {
            let metadata = changes.message().await.unwrap().unwrap().metadata.unwrap();
            if metadata.topics.iter().any(|topic| topic.partitions.len() == 4) {
                return;
            }
        }
    })
    .await;
    let fewer = nodes.clients(0).topics().update(update(3)).await.unwrap_err();
    assert_eq!(reason(&fewer), "INVALID_ARGUMENT");
    let same = nodes.clients(0).topics().update(update(4)).await.unwrap().into_inner();
    assert_eq!(same.topic.unwrap().partitions.len(), 4);
    let mut nodes = nodes;
    nodes.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_is_shown_and_then_carried_out_and_leaders_go_back_where_they_belong() {
    let mut nodes = Nodes::start(|config| config.cluster.leader_balance_ms = 200).await;
    create(&nodes, 8, 2).await;
    let fourth = nodes.join_another().await;
    let before = holders(&nodes, fourth);
    let rebalance = |execute| {
        let mut cluster = nodes.clients(fourth).cluster();
        async move {
            let request = v1::RebalanceRequest { execute };
            cluster.rebalance(request).await.unwrap().into_inner()
        }
    };
    let plan = rebalance(false).await;
    assert!(!plan.moves.is_empty() && plan.started == 0, "{plan:?}");
    assert_eq!(holders(&nodes, fourth), before, "nothing moves by itself");
    let executed = rebalance(true).await;
    assert_eq!(executed.moves, plan.moves);
    assert_eq!(executed.started as usize, plan.moves.len());
    healthy(&nodes, fourth).await;
    let after = holders(&nodes, fourth);
    for planned in &plan.moves {
        assert_eq!(after[planned.partition as usize], planned.to_node_ids);
    }
    for node in 1..=4u64 {
        assert_eq!(after.iter().filter(|nodes| nodes.contains(&node)).count(), 4, "{after:?}");
        assert_eq!(after.iter().filter(|nodes| nodes[0] == node).count(), 2, "{after:?}");
    }
    assert_eq!(rebalance(false).await.moves, []);
    until("every preferred leader leading", || async {
        let view = nodes.broker(fourth).node().view();
        let mut partitions = view.topics["orders"].partitions.iter();
        partitions.all(|partition| {
            let leader = view.leaders.get(&partition.group).map(|(node, _)| *node);
            leader == partition.replicas.first().map(|(_, node)| *node)
        })
    })
    .await;
    // Not on a node that is away, and again when it is back.
    nodes.stop(fourth).await;
    nodes.run(fourth).await;
    until("the node leading again what it should", || async {
        nodes.broker(0).node().view().leaders.values().filter(|(node, _)| *node == 4).count() >= 2
    })
    .await;
    nodes.stop_all().await;
}
