//! Topics over three nodes: where replicas and leaders go, and what is left of a topic that was deleted.

use std::collections::BTreeMap;

use highwater_proto::v1;

use super::nodes::*;
use crate::harness::*;

fn create(name: &str, partitions: u32, replication_factor: u32) -> v1::TopicServiceCreateRequest {
    let name = name.to_owned();
    v1::TopicServiceCreateRequest { name, partitions, replication_factor, ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_and_leaders_of_new_topics_are_spread_evenly() {
    let mut nodes = Nodes::start(|_| {}).await;
    let clients = nodes.clients(1);
    for (name, partitions, factor) in [("wide", 6, 3), ("narrow", 3, 2), ("single", 3, 1)] {
        clients.topics().create(create(name, partitions, factor)).await.unwrap();
    }
    for (name, leaders_each, replicas_each) in [("wide", 2, 6), ("narrow", 1, 2), ("single", 1, 1)]
    {
        let get = || v1::TopicServiceGetRequest { name: name.to_owned() };
        until("every partition having its first leader and all replicas", || async {
            let answer = clients.topics().get(get()).await.unwrap().into_inner();
            let partitions = answer.topic.unwrap().partitions;
            partitions
                .iter()
                .all(|p| p.leader == p.replicas[0] && p.in_sync.len() == p.replicas.len())
        })
        .await;
        let topic = clients.topics().get(get()).await.unwrap().into_inner().topic.unwrap();
        let (mut leaders, mut replicas) = (BTreeMap::new(), BTreeMap::new());
        for partition in &topic.partitions {
            *leaders.entry(partition.leader).or_insert(0) += 1;
            for node in &partition.replicas {
                *replicas.entry(*node).or_insert(0) += 1;
            }
        }
        let even = |each: i32| (1..=3).map(|node| (node, each)).collect::<BTreeMap<u64, i32>>();
        assert_eq!(leaders, even(leaders_each), "leaders of {name}");
        assert_eq!(replicas, even(replicas_each), "replicas of {name}");
    }
    let refused = clients.topics().create(create("x", 1, 4)).await.unwrap_err();
    assert_eq!(reason(&refused), "INVALID_ARGUMENT");
    let refused = clients.topics().create(create("wide", 1, 1)).await.unwrap_err();
    assert_eq!(reason(&refused), "TOPIC_EXISTS");
    nodes.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_topic_leaves_every_disk_and_its_name_comes_back_as_another_topic() {
    let mut nodes = Nodes::start(|_| {}).await;
    let clients = nodes.clients(0);
    let first = clients.create_topic("orders", 2).await;
    clients.publish("orders", 0, &["old"]).await;
    clients.publish("orders", 1, &["old"]).await;
    let groups = nodes.groups("orders");
    for place in 0..3 {
        for group in &groups {
            assert!(nodes.group_dir(place, *group).is_dir());
        }
    }
    // One node is away meanwhile.
    nodes.stop(2).await;
    let delete = v1::TopicServiceDeleteRequest { name: "orders".into() };
    until("the deletion", || async {
        // The metadata group may have lost its leader with the node.
        match clients.topics().delete(delete.clone()).await {
            Ok(_) => true,
            Err(status) => reason(&status) == "UNKNOWN_TOPIC",
        }
    })
    .await;
    let gone = |nodes: &Nodes, place: usize| {
        groups.iter().all(|group| !nodes.group_dir(place, *group).exists())
    };
    for place in 0..2 {
        until("the data being deleted", || async { gone(&nodes, place) }).await;
    }
    let refused = clients.fetch("orders", 0, start()).await.unwrap_err();
    assert_eq!(reason(&refused), "UNKNOWN_TOPIC");
    assert!(!gone(&nodes, 2), "nothing is deleted on a node that is away");
    let second = clients.create_topic("orders", 1).await;
    assert_ne!(second.id, first.id);
    nodes.run_all().await;
    until("the data being deleted by who comes back", || async { gone(&nodes, 2) }).await;
    // Who holds the old id is told, wherever the partition is led, and writes nothing.
    let leader = nodes.leader(nodes.groups("orders")[0]).await;
    let mut stream = nodes.clients(leader).produce_stream(v1::ProduceInit::default()).await;
    stream.initialized().await;
    for (request_id, topic_id) in [(1, &first.id), (2, &second.id)] {
        let message = v1::ProduceBatch {
            request_id,
            topic: "orders".into(),
            topic_id: topic_id.clone(),
            batch: batch(&["new"]),
            ..Default::default()
        };
        stream.send_batch(message).await;
    }
    let refused = stream.failure(1).await;
    assert_eq!((refused.reason.as_str(), refused.retriable), ("TOPIC_ID_MISMATCH", false));
    assert_eq!(stream.ack().await.base_offset, 0, "the new topic begins empty");
    let request = v1::FetchRequest {
        topic: "orders".into(),
        topic_id: first.id.clone(),
        ..Default::default()
    };
    let refused = clients.consumer().fetch(request).await.unwrap_err();
    assert_eq!(reason(&refused), "TOPIC_ID_MISMATCH");
    nodes.stop_all().await;
}
