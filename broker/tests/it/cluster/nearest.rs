//! Consumers that read from the replica in their own rack, and go back to the leader when that is gone.

use std::process::Command;
use std::time::Duration;

use futures::StreamExt;
use highwater_client::{Client, Events, NewTopic};
use highwater_proto::v1;
use v1::position::At;

use super::full_disk::SmallDisk;
use super::processes::*;
use crate::harness::*;

const TOPIC: &str = "orders";
const FROM_FOLLOWERS: &str = "highwater_fetch_follower_bytes_total";

/// Three nodes, each in a rack of its own.
async fn start() -> Processes {
    let rack = |place| vec![format!("--rack=rack-{place}")];
    Processes::start_each(&["--set=raft.tick_ms=30"], rack).await
}

/// A client that looks soon for a nearer replica again.
async fn client(cluster: &Processes) -> Client {
    let servers: Vec<&str> = cluster.nodes.iter().map(|node| &*node.client_address).collect();
    let builder = Client::builder().servers(servers.join(",")).client_id("near");
    let builder = builder.metadata_age_max(Duration::from_millis(500));
    builder.request_timeout(Duration::from_secs(30)).connect().await.unwrap()
}

/// Creates the topic; the places of its leader and of a follower.
async fn create(cluster: &Processes, client: &Client, replicas: u32) -> (usize, usize) {
    let topic = NewTopic::new(TOPIC).partitions(1).replication_factor(replicas);
    client.admin().create_topic(topic).await.unwrap();
    let leader = cluster.leader(client, TOPIC, 0).await;
    let topic = client.admin().get_topic(TOPIC).await.unwrap();
    let place = |id: &u64| usize::try_from(id - 1).unwrap();
    let mut places = topic.partitions[0].replicas.iter().map(place);
    (leader, places.find(|place| *place != leader).unwrap())
}

async fn subscribe(client: &Client, place: usize) -> Events {
    // As quick as brokers allow that send a heartbeat every few seconds.
    let consumer = client.consumer(TOPIC).rack(format!("rack-{place}"));
    soon("subscribing", consumer.silence_max(Duration::from_secs(12)).subscribe()).await.unwrap()
}

/// Numbered events, published and read in order.
struct Flow {
    client: Client,
    published: usize,
    read: usize,
    events: Events,
}

impl Flow {
    async fn publish(&mut self, count: usize) {
        self.publish_large(count, 0).await;
    }

    async fn publish_large(&mut self, count: usize, bytes: usize) {
        let producer = self.client.producer(TOPIC).build();
        for number in self.published..self.published + count {
            let value = format!("{number}:{}", "x".repeat(bytes));
            let ticket = producer.send(("key", value)).await.unwrap();
            soon("an acknowledgement", ticket).await.unwrap();
        }
        self.published += count;
        producer.close().await.unwrap();
    }

    /// Reads all that was published: each once, in order.
    async fn read(&mut self) {
        while self.read < self.published {
            let event = soon("the next event", self.events.next()).await.unwrap();
            let event = match event {
                Ok(event) => event,
                Err(error) if error.is_retriable() => continue,
                Err(error) => panic!("{error}"),
            };
            assert_eq!(event.offset, self.read as i64);
            let (number, _) = event.value_str().unwrap().split_once(':').unwrap();
            assert_eq!(number, self.read.to_string());
            self.read += 1;
        }
    }

    /// Publishes and reads until this node has sent some of it as a follower.
    async fn flow_from(&mut self, node: &Process) {
        let before = node.figure(FROM_FOLLOWERS).await.unwrap_or(0.0);
        let mut rounds = 0;
        while node.figure(FROM_FOLLOWERS).await.is_none_or(|now| now <= before) {
            assert!(rounds < 500, "the replica nearby is not read");
            rounds += 1;
            self.publish(1).await;
            self.read().await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_reads_from_its_rack_whatever_becomes_of_the_replica_there() {
    let mut cluster = start().await;
    let client = client(&cluster).await;
    let (leader, near) = create(&cluster, &client, 3).await;
    let events = subscribe(&client, near).await;
    let mut flow = Flow { client: client.clone(), published: 0, read: 0, events };
    flow.flow_from(&cluster.nodes[near]).await;
    let other = (0..3).find(|place| ![leader, near].contains(place)).unwrap();
    for place in [leader, other] {
        assert_eq!(cluster.nodes[place].figure(FROM_FOLLOWERS).await, Some(0.0));
    }

    // It stands still with its connections open.
    cluster.nodes[near].pause();
    flow.publish(50).await;
    flow.read().await;
    cluster.nodes[near].resume();
    flow.flow_from(&cluster.nodes[near]).await;

    cluster.nodes[near].kill();
    flow.publish(50).await;
    flow.read().await;
    cluster.run_all().await;
    flow.flow_from(&cluster.nodes[near]).await;

    cluster.nodes[near].terminate();
    flow.publish(50).await;
    flow.read().await;
    assert_eq!(cluster.nodes[near].ended().await.code(), Some(0));
    cluster.run_all().await;
    flow.flow_from(&cluster.nodes[near]).await;

    // The leader goes; what is read may lead next.
    let leader = cluster.leader(&client, TOPIC, 0).await;
    cluster.nodes[leader].kill();
    flow.publish(50).await;
    flow.read().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_goes_back_to_the_leader_when_the_replica_in_its_rack_is_moved_away() {
    let cluster = start().await;
    let client = client(&cluster).await;
    let (leader, near) = create(&cluster, &client, 2).await;
    let events = subscribe(&client, near).await;
    let mut flow = Flow { client: client.clone(), published: 0, read: 0, events };
    flow.flow_from(&cluster.nodes[near]).await;
    let other = (0..3).find(|place| ![leader, near].contains(place)).unwrap();
    let nodes = [leader as u64 + 1, other as u64 + 1];
    client.admin().reassign_partition(TOPIC, 0, &nodes, &[]).await.unwrap();
    until("the move", || async {
        let topic = client.admin().get_topic(TOPIC).await;
        topic.is_ok_and(|topic| {
            let mut replicas = topic.partitions[0].replicas.clone();
            replicas.sort_unstable();
            replicas.iter().all(|node| nodes.contains(node)) && replicas.len() == 2
        })
    })
    .await;
    let before = cluster.nodes[near].figure(FROM_FOLLOWERS).await;
    flow.publish(100).await;
    flow.read().await;
    assert_eq!(cluster.nodes[near].figure(FROM_FOLLOWERS).await, before);
    // And to the rack again when there is a replica.
    let nodes = [leader as u64 + 1, near as u64 + 1];
    client.admin().reassign_partition(TOPIC, 0, &nodes, &[]).await.unwrap();
    flow.flow_from(&cluster.nodes[near]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_goes_back_to_the_leader_when_the_replica_in_its_rack_falls_behind() {
    let Some(disk) = SmallDisk::mount("96m") else {
        eprintln!("skipped: mounting a small file system is not allowed here");
        return;
    };
    let mut cluster = start().await;
    let client = client(&cluster).await;
    let (_, near) = create(&cluster, &client, 3).await;
    // It lives on, on a disk that can be filled.
    let node = &mut cluster.nodes[near];
    node.terminate();
    node.ended().await;
    let moved = disk.path().join("data");
    let copied = Command::new("cp").arg("-a").arg(&node.data_dir).arg(&moved).status();
    assert!(copied.unwrap().success());
    std::fs::remove_dir_all(&node.data_dir).unwrap();
    std::os::unix::fs::symlink(&moved, &node.data_dir).unwrap();
    cluster.run_all().await;
    let events = subscribe(&client, near).await;
    let mut flow = Flow { client: client.clone(), published: 0, read: 0, events };
    flow.flow_from(&cluster.nodes[near]).await;

    let ballast = disk.fill(0);
    let is_in_sync = async || {
        let topic = client.admin().get_topic(TOPIC).await;
        topic.is_ok_and(|topic| topic.partitions[0].in_sync.contains(&(near as u64 + 1)))
    };
    soon("the follower falling behind", async {
        while is_in_sync().await {
            flow.publish_large(4, 400_000).await;
        }
    })
    .await;
    // Some of this is nowhere but on the leader and the third node.
    flow.publish(50).await;
    flow.read().await;
    assert!(!is_in_sync().await, "it is still behind");
    // It lives, and is read again when it has caught up.
    std::fs::remove_file(ballast).unwrap();
    flow.flow_from(&cluster.nodes[near]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sleeping_follower_serves_all_that_was_committed_and_sleeps_on() {
    let cluster = start().await;
    let client = client(&cluster).await;
    let (leader, near) = create(&cluster, &client, 3).await;
    let mut flow = Flow {
        client: client.clone(),
        published: 0,
        read: 0,
        // Without a rack the leader is read.
        events: soon("subscribing", client.consumer(TOPIC).subscribe()).await.unwrap(),
    };
    flow.publish(200).await;
    flow.read().await;
    assert_eq!(cluster.nodes[near].figure(FROM_FOLLOWERS).await, Some(0.0));
    let asleep = || async {
        for node in &cluster.nodes {
            if node.figure("highwater_replicas_asleep").await != Some(1.0) {
                return false;
            }
        }
        true
    };
    until("all replicas sleeping", asleep).await;
    flow.events = subscribe(&client, near).await;
    flow.read = 0;
    flow.read().await;
    let bytes = cluster.nodes[near].figure(FROM_FOLLOWERS).await.unwrap();
    assert!(bytes > 0.0);
    assert_eq!(cluster.nodes[leader].figure(FROM_FOLLOWERS).await, Some(0.0));
    assert!(asleep().await, "reading what is committed wakes nobody");
    flow.publish(20).await;
    flow.read().await;
    assert!(cluster.nodes[near].figure(FROM_FOLLOWERS).await.unwrap() > bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_may_be_answered_by_a_follower_and_what_only_the_leader_knows_is_not() {
    let cluster = start().await;
    let client = client(&cluster).await;
    let (_, near) = create(&cluster, &client, 3).await;
    let clients = Clients::of(cluster.nodes[near].client_address.parse().unwrap());
    let ack = clients.publish(TOPIC, 0, &["a", "b", "c"]).await;
    assert_eq!(ack.base_offset, 0);
    let fetch = async |at, from_replica, wait_ms_max| {
        let request = v1::FetchRequest {
            topic: TOPIC.into(),
            position: position(at),
            from_replica,
            wait_ms_max,
            ..Default::default()
        };
        let answer = soon("an answer", clients.consumer().fetch(request)).await;
        answer.map(tonic::Response::into_inner)
    };
    // The news of the commit is on its way to the follower: it waits for it.
    for from in [0, 2] {
        let fetched = fetch(At::Offset(from), true, 30_000).await.unwrap();
        assert_eq!(fetched.records[0].offset, from);
    }
    until("the commit being known", || async {
        fetch(At::Offset(0), true, 0).await.unwrap().records.len() == 3
    })
    .await;
    let bytes = cluster.nodes[near].figure(FROM_FOLLOWERS).await.unwrap();
    assert!(bytes > 0.0);
    // That a follower has not got so far is no error; that the leader has not is one.
    let beyond = fetch(At::Offset(1_000), true, 100).await.unwrap();
    assert!(beyond.records.is_empty() && beyond.next_offset == 1_000, "{beyond:?}");
    let refused = fetch(At::Offset(1_000), false, 100).await.unwrap_err();
    assert_eq!(reason(&refused), "OFFSET_OUT_OF_RANGE");
    // What lies before the log is for the leader to judge, and where the partition ends is for it to say.
    let trim = v1::TopicServiceTrimRequest {
        name: TOPIC.into(),
        partition: 0,
        to: position(At::Offset(2)),
    };
    clients.topics().trim(trim).await.unwrap();
    until("the new start", || async {
        fetch(At::Start(v1::position::Start {}), true, 0).await.unwrap().next_offset == 3
            && fetch(At::Offset(0), true, 0).await.is_err()
    })
    .await;
    let refused = fetch(At::Offset(0), true, 0).await.unwrap_err();
    assert_eq!(reason(&refused), "OFFSET_OUT_OF_RANGE");
    let at_end = fetch(At::End(v1::position::End {}), true, 0).await.unwrap();
    assert_eq!(at_end.next_offset, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_of_a_group_reads_from_its_rack_too() {
    let mut cluster = start().await;
    let client = client(&cluster).await;
    let (_, near) = create(&cluster, &client, 3).await;
    let consumer = client.consumer(TOPIC).rack(format!("rack-{near}")).group("billing");
    let mut events = soon("joining", consumer.subscribe()).await.unwrap();
    let producer = client.producer(TOPIC).build();
    let mut next = 0;
    let mut round = async |next: &mut i64| {
        let ticket = producer.send(("key", "event")).await.unwrap();
        soon("an acknowledgement", ticket).await.unwrap();
        loop {
            match soon("the event", events.next()).await.unwrap() {
                Ok(event) => {
                    assert_eq!(event.offset, *next);
                    *next += 1;
                    return;
                }
                Err(error) => assert!(error.is_retriable(), "{error}"),
            }
        }
    };
    soon("reading from the rack", async {
        while cluster.nodes[near].figure(FROM_FOLLOWERS).await.is_none_or(|bytes| bytes == 0.0) {
            round(&mut next).await;
        }
    })
    .await;
    cluster.nodes[near].kill();
    for _ in 0..20 {
        round(&mut next).await;
    }
}
