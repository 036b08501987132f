//! Where a partition ends, as told by nodes that led it and may not know yet that they do not any more.

use std::time::Duration;

use highwater_client::{Client, NewTopic};
use highwater_proto::v1;

use super::processes::*;
use crate::harness::*;

const TOPIC: &str = "orders";

async fn publish(client: &Client, events: usize) -> i64 {
    let producer = client.producer(TOPIC).build();
    let mut end = 0;
    for _ in 0..events {
        let ticket = producer.send(("key", "event")).await.unwrap();
        end = soon("an acknowledgement", ticket).await.unwrap().offset + 1;
    }
    producer.close().await.unwrap();
    end
}

fn fetch(at: v1::position::At) -> v1::FetchRequest {
    v1::FetchRequest { topic: TOPIC.into(), position: position(at), ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_stood_still_tells_no_old_end_and_no_false_out_of_range() {
    let cluster = Processes::start(&["--set=raft.tick_ms=30"]).await;
    let client = cluster.client().await;
    client.admin().create_topic(NewTopic::new(TOPIC).partitions(1)).await.unwrap();
    publish(&client, 5).await;
    for _ in 0..2 {
        let old = cluster.leader(&client, TOPIC, 0).await;
        let address = cluster.nodes[old].client_address.parse().unwrap();
        // The connection is there before: what is asked waits in it.
        let clients = Clients::of(address);
        clients.fetch(TOPIC, 0, start()).await.unwrap();
        cluster.nodes[old].pause();
        let end = publish(&client, 20).await;
        let asked = (0..8).flat_map(|_| {
            let at_end = fetch(v1::position::At::End(v1::position::End {}));
            [at_end, fetch(v1::position::At::Offset(end))]
        });
        let asked = asked.map(|request| {
            let mut consumer = clients.consumer();
            async move { consumer.fetch(request).await }
        });
        let mut topics = clients.topics();
        let described = topics.get(v1::TopicServiceGetRequest { name: TOPIC.into() });
        let resumed = async {
            // All is asked by then: it waits for the node, with what the others have sent it.
            tokio::time::sleep(Duration::from_millis(200)).await;
            cluster.nodes[old].resume();
        };
        let all = async { futures::join!(futures::future::join_all(asked), described, resumed) };
        let (answers, described, ()) = soon("answers", all).await;
        for fetched in answers {
            let fetched = fetched.unwrap().into_inner();
            assert!(fetched.next_offset >= end, "{} after {end}", fetched.next_offset);
        }
        let described = described.unwrap().into_inner();
        let partition = described.topic.unwrap().partitions.remove(0);
        let is_known = partition.state() != v1::PartitionState::Leaderless
            && partition.state() != v1::PartitionState::Unspecified;
        assert!(!is_known || partition.high_watermark >= end, "{partition:?} after {end}");
    }
}
