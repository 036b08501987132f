//! Groups in which nothing happens: they sleep, and wake when they are needed.

use highwater_client::{Client, NewTopic};

use super::processes::*;
use crate::harness::*;

const TOPIC: &str = "quiet";
const PARTITIONS: u32 = 6;

async fn all_asleep(nodes: &[Process]) {
    until("all replicas sleeping", || async {
        for node in nodes.iter().filter(|node| node.is_running()) {
            // The metadata group, which never sleeps, is not among them.
            if node.figure("highwater_replicas_asleep").await != Some(f64::from(PARTITIONS)) {
                return false;
            }
        }
        true
    })
    .await;
}

async fn publish(client: &Client, events: u32) {
    let producer = client.producer(TOPIC).build();
    for number in 0..events {
        let ticket = producer.send((format!("key-{number}"), "event")).await.unwrap();
        soon("an acknowledgement", ticket).await.unwrap();
    }
    producer.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn sleeping_groups_wake_for_publishers_and_when_their_leader_is_gone() {
    // Were it not for the nodes that watch one another, followers would sleep on for 60 election timeouts, 72 seconds here.
    let mut cluster =
        Processes::start(&["--set=raft.tick_ms=60", "--set=raft.election_ticks=20"]).await;
    let client = cluster.client().await;
    client.admin().create_topic(NewTopic::new(TOPIC).partitions(PARTITIONS)).await.unwrap();
    all_asleep(&cluster.nodes).await;
    publish(&client, 50).await;
    all_asleep(&cluster.nodes).await;

    // Its connections stand; it only says nothing any more.
    let paused = cluster.leader(&client, TOPIC, 0).await;
    cluster.nodes[paused].pause();
    publish(&client, 50).await;
    cluster.nodes[paused].resume();
    all_asleep(&cluster.nodes).await;

    // Those that are left sleep without it, and let it catch up when it is back.
    let killed = cluster.leader(&client, TOPIC, 1).await;
    cluster.nodes[killed].kill();
    publish(&client, 50).await;
    all_asleep(&cluster.nodes).await;
    cluster.run_all().await;
    publish(&client, 50).await;
    all_asleep(&cluster.nodes).await;

    let found = read_all(&client, TOPIC).await;
    assert_eq!(found.iter().map(Vec::len).sum::<usize>(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_where_a_sleeping_partition_ends_wakes_it_and_who_asks_how_it_is_does_not() {
    let cluster = Processes::start(&["--set=raft.tick_ms=30"]).await;
    let client = cluster.client().await;
    client.admin().create_topic(NewTopic::new(TOPIC).partitions(PARTITIONS)).await.unwrap();
    publish(&client, 50).await;
    all_asleep(&cluster.nodes).await;
    for _ in 0..20 {
        assert!(client.admin().health().await.unwrap().healthy);
        for node in &cluster.nodes {
            let asleep = node.figure("highwater_replicas_asleep").await;
            assert_eq!(asleep, Some(f64::from(PARTITIONS)));
        }
    }
    let topic = client.admin().get_topic(TOPIC).await.unwrap();
    assert_eq!(topic.partitions.iter().map(|it| it.high_watermark).sum::<i64>(), 50);
    all_asleep(&cluster.nodes).await;
}
