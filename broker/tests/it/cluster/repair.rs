//! Rot on one node's disk: it is found, never served, and mended with the entries of the others.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use highwater_client::NewTopic;
use highwater_proto::v1;

use super::nodes::*;
use super::processes::*;
use crate::harness::*;

/// Four of these make more than a segment.
const VALUE_BYTES: usize = 300 << 10;

pub(super) fn segments(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
        .collect();
    files.sort();
    files
}

/// Flips one byte, as a disk might.
pub(super) fn rot(path: &Path, at: u64) {
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
}

pub(super) fn was_repaired(dir: &Path) -> bool {
    std::fs::read_dir(dir.join("damaged")).is_ok_and(|mut files| files.next().is_some())
}

async fn publish(nodes: &Nodes, leader: usize, batches: usize) {
    for number in 0..batches {
        let value = format!("{number:08}").repeat(VALUE_BYTES / 8);
        nodes.produce(leader, "orders", v1::Acks::QuorumFsync, &value, 10_000).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rot_found_at_the_start_is_mended_and_nothing_is_lost() {
    let mut nodes = Nodes::start(|_| {}).await;
    let group = create_in_small_segments(&nodes, 3).await;
    let leader = nodes.leader(group).await;
    publish(&nodes, leader, 12).await;
    let before = nodes.fetch_all(leader, "orders").await;
    let victim = (leader + 1) % 3;
    until("the victim being level", || async { nodes.status(victim, group).high_watermark == 12 })
        .await;
    nodes.stop(victim).await;
    let dir = nodes.group_dir(victim, group);
    let files = segments(&dir);
    assert!(files.len() > 3);
    // In a payload of a sealed segment, whose index file vouches for it; in the header of another segment; and in the
    // metadata group's log.
    rot(&files[1], 128 + 200_000);
    std::fs::remove_file(files[1].with_extension("index")).unwrap();
    rot(&files[2], 20);
    rot(segments(&nodes.group_dir(victim, 0)).last().unwrap(), 128 + 84);
    nodes.run(victim).await;
    nodes.all_ready().await;
    until("the repair", || async {
        let repaired = was_repaired(&dir) && was_repaired(&nodes.group_dir(victim, 0));
        let back = nodes.broker(victim).node().replica(group);
        repaired && back.is_some_and(|replica| replica.status().high_watermark == 12)
    })
    .await;
    nodes.transfer("orders", 0, victim).await;
    assert_eq!(nodes.fetch_all(victim, "orders").await, before);
    let health = nodes.clients(victim).cluster();
    until("a healthy cluster", || async {
        let mut health = health.clone();
        health.get_health(v1::GetHealthRequest {}).await.unwrap().into_inner().healthy
    })
    .await;
    nodes.stop_all().await;
}

/// How long nobody must lead: several election timeouts.
const LEADERLESS: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_replica_does_not_lead_though_its_log_is_the_longest() {
    let mut nodes = Nodes::start(|_| {}).await;
    let group = create_in_small_segments(&nodes, 3).await;
    let leader = nodes.leader(group).await;
    let (victim, behind) = ((leader + 1) % 3, (leader + 2) % 3);
    publish(&nodes, leader, 6).await;
    until("all being level", || async {
        [victim, behind].iter().all(|place| nodes.status(*place, group).high_watermark == 6)
    })
    .await;
    nodes.stop(behind).await;
    publish(&nodes, leader, 6).await;
    until("the victim being level", || async { nodes.status(victim, group).high_watermark == 12 })
        .await;
    let before = nodes.fetch_all(leader, "orders").await;
    nodes.stop(victim).await;
    nodes.stop(leader).await;
    // What the one that is behind never had, so that nobody who is there can mend it.
    let dir = nodes.group_dir(victim, group);
    let files = segments(&dir);
    let rotten = &files[files.len() - 2];
    rot(rotten, 128 + 200_000);
    std::fs::remove_file(rotten.with_extension("index")).unwrap();
    nodes.run(victim).await;
    nodes.run(behind).await;
    until("the one that is behind being there", || async {
        nodes.broker(behind).node().replica(group).is_some()
    })
    .await;
    // By its log it would win: there is nothing to wait for but that it does not.
    for _ in 0..30 {
        for place in [victim, behind] {
            let replica = nodes.broker(place).node().replica(group);
            assert!(replica.is_none_or(|replica| !replica.is_leader()), "node {place} leads");
        }
        tokio::time::sleep(LEADERLESS / 30).await;
    }
    assert!(nodes.broker(victim).node().replica(group).is_none(), "it is out of service");
    nodes.run(leader).await;
    nodes.all_ready().await;
    let found = nodes.leader(group).await;
    assert_eq!(nodes.fetch_all(found, "orders").await, before);
    until("the repair", || async {
        let back = nodes.broker(victim).node().replica(group);
        was_repaired(&dir) && back.is_some_and(|replica| replica.status().high_watermark == 12)
    })
    .await;
    nodes.transfer("orders", 0, victim).await;
    assert_eq!(nodes.fetch_all(victim, "orders").await, before);
    nodes.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rot_under_a_leader_is_found_by_the_scrub_and_mended() {
    let mut nodes = Nodes::start(|config| config.storage.scrub_bytes_per_s = 1 << 30).await;
    let group = create_in_small_segments(&nodes, 3).await;
    let leader = nodes.leader(group).await;
    publish(&nodes, leader, 12).await;
    let before = nodes.fetch_all(leader, "orders").await;
    let dir = nodes.group_dir(leader, group);
    rot(&segments(&dir)[1], 128 + 200_000);
    until("the repair", || async {
        was_repaired(&dir) && nodes.broker(leader).node().replica(group).is_some()
    })
    .await;
    let found = nodes.leader(group).await;
    assert_eq!(nodes.fetch_all(found, "orders").await, before, "whoever leads meanwhile");
    nodes.transfer("orders", 0, leader).await;
    assert_eq!(nodes.fetch_all(leader, "orders").await, before);
    nodes.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_cannot_be_repaired_is_replaced_once_the_others_are_well() {
    let mut nodes = Nodes::start(|_| {}).await;
    let group = create_in_small_segments(&nodes, 3).await;
    let leader = nodes.leader(group).await;
    publish(&nodes, leader, 6).await;
    let before = nodes.fetch_all(leader, "orders").await;
    let victim = (leader + 1) % 3;
    let other = (leader + 2) % 3;
    until("the victim being level", || async { nodes.status(victim, group).high_watermark == 6 })
        .await;
    let old = nodes.replica(victim, group).replica_id();
    nodes.stop(victim).await;
    // What no entry can mend: whose replica this is.
    rot(&nodes.group_dir(victim, group).join("replica"), 40);
    nodes.stop(other).await;
    nodes.run(victim).await;
    until("the damage being shown, and what its replacement waits for", || async {
        let request = v1::GetHealthRequest {};
        let health = nodes.clients(victim).cluster().get_health(request).await;
        health.is_ok_and(|health| {
            let problems = health.into_inner().problems.join("\n");
            let waits = ["are in sync, and 2 are needed", "has no leader"];
            problems.contains("not possible") && waits.iter().any(|text| problems.contains(text))
        })
    })
    .await;
    assert!(nodes.broker(victim).node().replica(group).is_none());
    nodes.run(other).await;
    until("a new replica that is level", || async {
        let replica = nodes.broker(victim).node().replica(group);
        replica.is_some_and(|r| r.replica_id() > old && r.high_watermark() == 6)
    })
    .await;
    until("a healthy cluster", || async {
        let request = v1::GetHealthRequest {};
        let health = nodes.clients(victim).cluster().get_health(request).await;
        health.is_ok_and(|health| health.into_inner().healthy)
    })
    .await;
    nodes.transfer("orders", 0, victim).await;
    assert_eq!(nodes.fetch_all(victim, "orders").await, before);
    nodes.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rot_that_nobody_can_mend_is_shown_and_never_served_or_cut() {
    let mut nodes = Nodes::start(|config| config.storage.scrub_bytes_per_s = 0).await;
    let group = create_in_small_segments(&nodes, 1).await;
    let holds = |place: usize| nodes.broker(place).node().replica(group).is_some();
    until("the replica", || async { (0..3).any(holds) }).await;
    let place = (0..3).find(|place| holds(*place)).unwrap();
    until("a leader", || async { nodes.status(place, group).is_leader }).await;
    publish(&nodes, place, 12).await;
    let dir = nodes.group_dir(place, group);
    let files = segments(&dir);
    rot(&files[1], 128 + 200_000);
    // A reader comes upon it.
    let offset = v1::position::At::Offset(3);
    until("the rot being refused", || async {
        let fetched = nodes.clients(place).fetch("orders", 0, offset).await;
        !fetched.is_ok_and(|page| !page.records.is_empty())
    })
    .await;
    let asked = (place + 1) % 3;
    until("the quarantine being shown", || async {
        let request = v1::TopicServiceGetRequest { name: "orders".into() };
        let topic = nodes.clients(asked).topics().get(request).await.unwrap().into_inner();
        let partition = topic.topic.unwrap().partitions.remove(0);
        let mut shown = partition.quarantined.iter();
        shown.any(|replica| {
            replica.node == place as u64 + 1
                && replica.why.contains("corrupt at index")
                && replica.repair.contains("no other node")
        })
    })
    .await;
    let health = nodes.clients(asked).cluster().get_health(v1::GetHealthRequest {}).await;
    let problems = health.unwrap().into_inner().problems.join("\n");
    assert!(problems.contains("orders/0 is quarantined on node"), "{problems}");
    assert_eq!(segments(&dir), files, "nothing is cut or removed");
    nodes.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_of_the_metadata_group_that_cannot_be_repaired_is_replaced_and_votes() {
    let mut cluster = Processes::start(&[]).await;
    let client = cluster.client().await;
    client.admin().create_topic(NewTopic::new("before").partitions(3)).await.unwrap();
    let victim = 2;
    cluster.nodes[victim].kill();
    // What no entry can mend: whose replica this is.
    let dir = cluster.nodes[victim].data_dir.clone();
    rot(&dir.join("groups/0/replica"), 40);
    cluster.run_all().await;
    let aside = std::fs::read_dir(dir.join("set-aside")).unwrap();
    let aside: Vec<String> =
        aside.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(aside, ["0-unknown"], "the old one is kept");
    until("a healthy cluster", || async {
        let health = client.admin().health().await;
        health.is_ok_and(|health| health.healthy && health.in_progress.is_empty())
    })
    .await;
    // The new one votes: without another one there is no majority but with it.
    cluster.nodes[0].kill();
    until("a topic created by the new majority", || async {
        // A try whose answer was lost has created it all the same.
        let _ = client.admin().create_topic(NewTopic::new("after").partitions(1)).await;
        client.admin().get_topic("after").await.is_ok()
    })
    .await;
    // Also after everything has started again.
    for node in &mut cluster.nodes[1..] {
        node.kill();
    }
    cluster.run_all().await;
    until("both topics", || async {
        let admin = client.admin();
        admin.get_topic("before").await.is_ok() && admin.get_topic("after").await.is_ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_of_the_metadata_group_waits_for_an_operator_where_that_is_wanted() {
    let mut nodes = Nodes::start(|config| config.cluster.replace_damaged = false).await;
    nodes.stop(1).await;
    rot(&nodes.group_dir(1, 0).join("replica"), 40);
    nodes.run(1).await;
    nodes.waits_for(1, &["not possible", "cluster.replace_damaged is off", "add-node"]).await;
    // Told otherwise, it goes on without being touched.
    nodes.stop(1).await;
    nodes.config(1).cluster.replace_damaged = true;
    nodes.run(1).await;
    nodes.all_ready().await;
    nodes.stop_all().await;
}
