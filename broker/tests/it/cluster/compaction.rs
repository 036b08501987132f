//! Compacted partitions in a cluster: a follower that was away while the others compacted what it lacks gets their segments, and
//! has the same live records.

use std::collections::BTreeMap;

use highwater_proto::batch::{BatchBuilder, Compression};
use highwater_proto::v1;

use super::nodes::*;
use crate::harness::*;

const TOPIC: &str = "profiles";
const VALUE_BYTES: usize = 60 << 10;

/// The last value of each key, with its offset.
type Live = BTreeMap<String, (i64, Vec<u8>)>;

async fn start() -> Nodes {
    let nodes = Nodes::start(|config| config.topics.retention_check_ms = 50).await;
    let create = v1::TopicServiceCreateRequest {
        name: TOPIC.into(),
        partitions: 1,
        config: [("cleanup.policy", "compact"), ("segment.bytes", "1048576")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        ..Default::default()
    };
    nodes.clients(0).topics().create(create).await.unwrap();
    nodes
}

/// Publishes values for the keys in turn, one batch each.
async fn publish(nodes: &Nodes, leader: usize, live: &mut Live, numbers: std::ops::Range<u32>) {
    let mut stream = nodes.clients(leader).produce_stream(v1::ProduceInit::default()).await;
    stream.initialized().await;
    for number in numbers {
        let key = format!("key-{}", number % 30);
        let value = format!("{number:08}").repeat(VALUE_BYTES / 8).into_bytes();
        let mut builder = BatchBuilder::new(Compression::None);
        builder.push(1_000, Some(key.as_bytes()), Some(&value), &[]).unwrap();
        let batch = v1::ProduceBatch {
            request_id: 1,
            topic: TOPIC.into(),
            batch: builder.build().unwrap(),
            ..Default::default()
        };
        stream.send_batch(batch).await;
        let ack = stream.outcome().await.unwrap();
        live.insert(key, (ack.base_offset, value));
    }
}

/// Checks that the node has every key's last value at its offset, in order, and far less than was published.
async fn has_all(nodes: &Nodes, place: usize, live: &Live, published: usize) {
    nodes.transfer(TOPIC, 0, place).await;
    let records = nodes.fetch_all(place, TOPIC).await;
    assert!(records.is_sorted_by_key(|record| record.offset));
    assert!(records.len() < published, "{} of {published} records are left", records.len());
    let mut found = Live::new();
    for record in records {
        let key = String::from_utf8(record.key.unwrap().to_vec()).unwrap();
        found.insert(key, (record.offset, record.value.unwrap().to_vec()));
    }
    assert!(found == *live, "node {} has the last value of every key", place + 1);
}

/// Index of the first entry in the log of a replica, as the name of its first segment says.
fn first_index(nodes: &Nodes, place: usize, group: u64) -> u64 {
    let names = std::fs::read_dir(nodes.group_dir(place, group)).unwrap();
    let names = names.filter_map(|entry| entry.unwrap().file_name().into_string().ok());
    let index = |name: String| name.strip_suffix(".log")?.split_once('-')?.1.parse::<u64>().ok();
    names.filter_map(index).min().expect("a segment")
}

async fn is_level(nodes: &Nodes, place: usize, with: usize, group: u64) {
    until("catching up", || async {
        let (ours, theirs) = (nodes.status(place, group), nodes.status(with, group));
        assert_eq!(ours.quarantined, None);
        ours.log_end_offset == theirs.log_end_offset
            && ours.high_watermark == theirs.high_watermark
            && ours.leader_epoch == theirs.leader_epoch
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_was_away_while_the_others_compacted_has_the_same_live_records() {
    let mut nodes = start().await;
    let group = nodes.groups(TOPIC)[0];
    let leader = nodes.leader(group).await;
    let behind = (leader + 1) % 3;
    let third = 3 - leader - behind;
    let mut live = Live::new();
    publish(&nodes, leader, &mut live, 0..5).await;
    is_level(&nodes, behind, leader, group).await;
    nodes.stop(behind).await;
    // About nine segments, in which every key comes five times.
    publish(&nodes, leader, &mut live, 5..155).await;
    until("the others compacting beyond what it has", || async {
        [leader, third].iter().all(|place| first_index(&nodes, *place, group) > 100)
    })
    .await;
    nodes.run(behind).await;
    is_level(&nodes, behind, leader, group).await;
    assert!(first_index(&nodes, behind, group) > 100, "it came by snapshot");
    assert!(nodes.group_dir(behind, group).join("compacted").join("manifest").exists());
    publish(&nodes, leader, &mut live, 155..160).await;
    for place in [behind, third, leader] {
        is_level(&nodes, place, leader, group).await;
        has_all(&nodes, place, &live, 160).await;
    }
    nodes.stop_all().await;
    nodes.run_all().await;
    has_all(&nodes, behind, &live, 160).await;
    nodes.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_that_is_cut_short_begins_again_and_leaves_no_half_log() {
    let mut nodes = start().await;
    let group = nodes.groups(TOPIC)[0];
    let leader = nodes.leader(group).await;
    let behind = (leader + 1) % 3;
    let third = 3 - leader - behind;
    let mut live = Live::new();
    publish(&nodes, leader, &mut live, 0..5).await;
    nodes.stop(behind).await;
    publish(&nodes, leader, &mut live, 5..155).await;
    until("the others compacting", || async {
        [leader, third].iter().all(|place| first_index(&nodes, *place, group) > 100)
    })
    .await;
    // Stopped at any moment of its catching up; every time it comes back to a log that is whole, old or new.
    for _ in 0..4 {
        nodes.run(behind).await;
        until("something being fetched, or all of it", || async {
            let dir = nodes.group_dir(behind, group).join("compacted");
            std::fs::read_dir(dir).is_ok_and(|mut files| files.next().is_some())
        })
        .await;
        nodes.stop(behind).await;
    }
    nodes.run(behind).await;
    let leader = nodes.leader(group).await;
    is_level(&nodes, behind, leader, group).await;
    has_all(&nodes, behind, &live, 155).await;
    nodes.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_replica_that_is_replaced_gets_the_compacted_segments() {
    let mut nodes = start().await;
    let group = nodes.groups(TOPIC)[0];
    let leader = nodes.leader(group).await;
    let wiped = (leader + 1) % 3;
    let mut live = Live::new();
    publish(&nodes, leader, &mut live, 0..155).await;
    until("everybody compacting", || async {
        (0..3).all(|place| first_index(&nodes, place, group) > 100)
    })
    .await;
    nodes.stop(wiped).await;
    std::fs::remove_dir_all(nodes.group_dir(wiped, group)).unwrap();
    nodes.run(wiped).await;
    until("the loss being noticed", || async {
        nodes.checks(wiped).contains("have the cluster replace the replica")
    })
    .await;
    let leader = nodes.leader(group).await;
    let request = v1::ReassignPartitionRequest {
        topic: TOPIC.into(),
        partition: 0,
        node_ids: vec![],
        replace_node_ids: vec![wiped as u64 + 1],
    };
    let reassigning = async { nodes.clients(leader).cluster().reassign_partition(request).await };
    soon("the reassignment", reassigning).await.unwrap();
    until("the new replica", || async { nodes.broker(wiped).node().replica(group).is_some() })
        .await;
    publish(&nodes, leader, &mut live, 155..160).await;
    is_level(&nodes, wiped, leader, group).await;
    assert!(first_index(&nodes, wiped, group) > 100, "it came by snapshot");
    has_all(&nodes, wiped, &live, 160).await;
    nodes.stop_all().await;
    nodes.run_all().await;
    has_all(&nodes, wiped, &live, 160).await;
    nodes.stop_all().await;
}
