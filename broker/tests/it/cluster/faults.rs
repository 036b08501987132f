//! Processes that are killed and stopped while events are published: nothing acknowledged is lost, nothing is there twice,
//! each key keeps its order.

use std::collections::BTreeMap;

use highwater_client::{Ack, Client, NewTopic, Producer, SendError, Ticket};

use super::processes::*;
use crate::harness::*;

const TOPIC: &str = "orders";
const KEYS: u32 = 16;

/// Publishes numbered events and remembers what became of each.
struct Publisher {
    producer: Producer,
    next: u32,
    tickets: Vec<(u32, Ticket)>,
}

impl Publisher {
    fn new(client: &Client) -> Self {
        Self { producer: client.producer(TOPIC).build(), next: 0, tickets: Vec::new() }
    }

    /// Publishes this many; waits for the answer of each tenth, so that a fault falls between them.
    async fn publish(&mut self, events: u32) {
        for _ in 0..events {
            let (number, key) = (self.next, format!("key-{}", self.next % KEYS));
            self.next += 1;
            let ticket = soon("being admitted", self.producer.send((key, number.to_string())));
            self.tickets.push((number, ticket.await.unwrap()));
            if number.is_multiple_of(10) {
                tokio::task::yield_now().await;
            }
        }
    }

    /// What became of everything published so far.
    async fn outcomes(self) -> BTreeMap<u32, Result<Ack, SendError>> {
        let _ = soon("everything being answered", self.producer.close()).await;
        let mut outcomes = BTreeMap::new();
        for (number, ticket) in self.tickets {
            outcomes.insert(number, soon("an answer", ticket).await);
        }
        outcomes
    }
}

async fn create_topic(client: &Client) {
    client.admin().create_topic(NewTopic::new(TOPIC).partitions(3)).await.unwrap();
}

/// Compares what was promised with what can be read.
async fn assert_kept(client: &Client, outcomes: &BTreeMap<u32, Result<Ack, SendError>>) {
    let partitions = read_all(client, TOPIC).await;
    let mut found = BTreeMap::new();
    for (partition, records) in (0_u32..).zip(&partitions) {
        let mut last_of_key: BTreeMap<&str, u32> = BTreeMap::new();
        for (position, (offset, key, value)) in records.iter().enumerate() {
            assert_eq!(*offset, position as i64, "offsets are dense");
            let number: u32 = value.parse().unwrap();
            assert_eq!(*key, format!("key-{}", number % KEYS));
            let before = last_of_key.insert(key, number);
            assert!(before.is_none_or(|before| before < number), "{number} after {before:?}");
            let twice = found.insert(number, (partition, *offset));
            assert_eq!(twice, None, "{number} is there twice");
        }
    }
    for (number, outcome) in outcomes {
        match outcome {
            Ok(ack) => {
                assert_eq!(found.get(number), Some(&(ack.partition, ack.offset)), "event {number}");
            }
            Err(error) if !error.may_have_been_written() => {
                assert_eq!(found.get(number), None, "event {number}: {error}");
            }
            Err(_) => {}
        }
    }
    assert!(found.keys().all(|number| outcomes.contains_key(number)), "nothing else is there");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_killed_under_load_costs_nothing_but_a_pause() {
    let mut cluster = Processes::start(&[]).await;
    let client = cluster.client().await;
    create_topic(&client).await;
    let mut publisher = Publisher::new(&client);
    publisher.publish(500).await;
    for partition in 0..2 {
        let leader = cluster.leader(&client, TOPIC, partition).await;
        publisher.publish(300).await;
        cluster.nodes[leader].kill();
        publisher.publish(500).await;
        until("another leader", || async {
            cluster.leader(&client, TOPIC, partition).await != leader
        })
        .await;
        publisher.publish(300).await;
        cluster.run_all().await;
    }
    let outcomes = publisher.outcomes().await;
    let failed: Vec<_> = outcomes.iter().filter(|(_, outcome)| outcome.is_err()).collect();
    assert!(failed.is_empty(), "every event is acknowledged in the end: {failed:?}");
    assert_kept(&client, &outcomes).await;
    let duplicates = outcomes.values().flatten().filter(|ack| ack.duplicate).count();
    println!("{} events, {duplicates} of them recognised as sent before", outcomes.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stops_hands_over_without_an_election_and_exits_with_0() {
    // Were it not for the handover, nobody would stand for election within a minute, and the publisher would give up.
    let mut cluster =
        Processes::start(&["--set=raft.tick_ms=200", "--set=raft.election_ticks=400"]).await;
    let client = cluster.client().await;
    create_topic(&client).await;
    let leader = cluster.leader(&client, TOPIC, 0).await;
    let mut publisher = Publisher::new(&client);
    publisher.publish(300).await;
    cluster.nodes[leader].terminate();
    publisher.publish(300).await;
    assert_eq!(cluster.nodes[leader].ended().await.code(), Some(0));
    publisher.publish(300).await;
    let outcomes = publisher.outcomes().await;
    let failed: Vec<_> = outcomes.iter().filter(|(_, outcome)| outcome.is_err()).collect();
    assert!(failed.is_empty(), "{failed:?}");
    assert_kept(&client, &outcomes).await;
    let logged = cluster.nodes[leader].logged();
    assert!(!logged.contains("stopping with leaderships still here"), "{logged}");
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_acknowledged_survives_the_kill_of_all_and_a_stop_of_all() {
    let mut cluster = Processes::start(&["--set=node.shutdown_ms_max=1000"]).await;
    let client = cluster.client().await;
    create_topic(&client).await;
    let mut publisher = Publisher::new(&client);
    publisher.publish(600).await;
    publisher.producer.flush().await.unwrap();
    // Some of these are on their way when everything dies; the client tries again until the nodes are back.
    publisher.publish(600).await;
    for node in &mut cluster.nodes {
        node.kill();
    }
    cluster.run_all().await;
    publisher.publish(100).await;
    let outcomes = publisher.outcomes().await;
    let acknowledged = outcomes.values().filter(|outcome| outcome.is_ok()).count();
    assert!(acknowledged >= 600);
    assert_kept(&client, &outcomes).await;
    let before = read_all(&client, TOPIC).await;
    for node in &cluster.nodes {
        node.terminate();
    }
    for node in &mut cluster.nodes {
        assert_eq!(node.ended().await.code(), Some(0));
    }
    cluster.run_all().await;
    assert_eq!(read_all(&client, TOPIC).await, before, "nothing is different");
    assert_kept(&client, &outcomes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_joins_and_another_leaves_while_coordinator_and_leader_are_killed() {
    let mut cluster = Processes::start(&[]).await;
    let client = cluster.client().await;
    create_topic(&client).await;
    let mut publisher = Publisher::new(&client);
    publisher.publish(500).await;
    cluster.join_another().await;
    let leaves = cluster.leader(&client, TOPIC, 0).await;
    let id = leaves as u64 + 1;
    client.admin().remove_node(id).await.unwrap();
    for round in 0..4 {
        let info = client.admin().cluster_info().await;
        let coordinator = info.ok().and_then(|info| info.metadata_leader);
        let place = match (round % 2, coordinator) {
            (0, Some(coordinator)) => usize::try_from(coordinator - 1).unwrap(),
            _ => cluster.leader(&client, TOPIC, 1).await,
        };
        // The one that leaves may have ended by itself, as it should.
        if place == leaves {
            continue;
        }
        cluster.nodes[place].kill();
        publisher.publish(200).await;
        cluster.nodes[place].run();
        cluster.nodes[place].ready().await;
        publisher.publish(100).await;
    }
    until("the node having left", || async {
        let info = client.admin().cluster_info().await;
        info.is_ok_and(|info| info.removed_nodes == [id])
    })
    .await;
    let status = cluster.nodes[leaves].ended().await;
    assert_eq!(status.code(), Some(2));
    assert!(cluster.nodes[leaves].logged().contains("was removed from the cluster"));
    publisher.publish(300).await;
    let outcomes = publisher.outcomes().await;
    let failed: Vec<_> = outcomes.iter().filter(|(_, outcome)| outcome.is_err()).collect();
    assert!(failed.is_empty(), "every event is acknowledged in the end: {failed:?}");
    assert_kept(&client, &outcomes).await;
    let topic = client.admin().get_topic(TOPIC).await.unwrap();
    for partition in topic.partitions {
        assert!(partition.replicas.len() == 3 && !partition.replicas.contains(&id));
    }
    // Started once more, it is told so at once and speaks to nobody.
    cluster.nodes[leaves].run();
    assert_eq!(cluster.nodes[leaves].ended().await.code(), Some(2));
}
