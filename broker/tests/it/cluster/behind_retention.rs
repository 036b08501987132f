//! A follower that comes back when what it lacks has been deleted: it gets a snapshot, and is the same replica as the others.

use highwater_proto::v1;

use super::nodes::*;
use crate::harness::*;

/// Four of these make more than a segment.
const VALUE_BYTES: usize = 300 << 10;

struct Publisher {
    stamp: Stamp,
    stream: ProduceStream,
}

impl Publisher {
    async fn new(nodes: &Nodes, leader: usize) -> Self {
        let init = v1::ProduceInit { idempotent: true, ..Default::default() };
        let mut stream = nodes.clients(leader).produce_stream(init).await;
        let id = stream.initialized().await.producer_id;
        Self { stamp: Stamp { id, epoch: 0, sequence: 0 }, stream }
    }

    async fn send(&mut self, batches: i32) {
        for _ in 0..batches {
            let message = batch_message(self.stamp);
            self.stream.send_batch(message).await;
            let ack = self.stream.outcome().await.unwrap();
            assert_eq!(ack.base_offset, i64::from(self.stamp.sequence));
            self.stamp.sequence += 1;
        }
    }
}

/// Every batch has its sequence's own content, so that what was read can be told apart.
fn batch_message(stamp: Stamp) -> v1::ProduceBatch {
    let value = format!("{:08}", stamp.sequence).repeat(VALUE_BYTES / 8);
    v1::ProduceBatch {
        request_id: 1,
        topic: "orders".into(),
        batch: stamped(stamp, value.as_bytes()),
        ..Default::default()
    }
}

/// Index of the first entry that a replica has on disk, as the name of its first segment says.
fn first_index_on_disk(nodes: &Nodes, place: usize, group: u64) -> u64 {
    let names = std::fs::read_dir(nodes.group_dir(place, group)).unwrap();
    let first_index =
        |name: String| name.strip_suffix(".log")?.split_once('-')?.1.parse::<u64>().ok();
    let indexes =
        names.filter_map(|entry| first_index(entry.unwrap().file_name().into_string().ok()?));
    indexes.min().expect("a segment")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_behind_retention_catches_up_by_snapshot_and_is_the_same_replica() {
    let mut nodes = Nodes::start(|config| config.topics.retention_check_ms = 50).await;
    let create = v1::TopicServiceCreateRequest {
        name: "orders".into(),
        partitions: 1,
        config: [("segment.bytes".into(), "1048576".into())].into(),
        ..Default::default()
    };
    nodes.clients(0).topics().create(create).await.unwrap();
    let group = nodes.groups("orders")[0];
    let leader = nodes.leader(group).await;
    let behind = (leader + 1) % 3;
    let mut publisher = Publisher::new(&nodes, leader).await;
    publisher.send(3).await;
    until("the follower being level", || async { nodes.status(behind, group).log_end_offset == 3 })
        .await;
    nodes.stop(behind).await;
    let had = first_index_on_disk(&nodes, behind, group);
    publisher.send(12).await;
    // Three segments are sealed by now; retention keeps about the last one.
    let update = v1::TopicServiceUpdateRequest {
        name: "orders".into(),
        set: [("retention.bytes".into(), "1048576".into())].into(),
        ..Default::default()
    };
    let clients = nodes.clients(leader);
    until("the retention being set", || async {
        clients.topics().update(update.clone()).await.is_ok()
    })
    .await;
    let third = 3 - leader - behind;
    until("retention passing the follower's end", || async {
        [leader, third].iter().all(|place| {
            nodes.status(*place, group).log_start_offset > 3
                && first_index_on_disk(&nodes, *place, group) > had + 4
        })
    })
    .await;
    nodes.run(behind).await;
    until("catching up", || async {
        let (ours, theirs) = (nodes.status(leader, group), nodes.status(behind, group));
        ours.log_start_offset == theirs.log_start_offset
            && ours.high_watermark == theirs.high_watermark
            && ours.log_end_offset == theirs.log_end_offset
            && ours.leader_epoch == theirs.leader_epoch
            && theirs.high_watermark == 15
    })
    .await;
    assert!(first_index_on_disk(&nodes, behind, group) > had + 4, "it begins where the others do");
    assert_eq!(nodes.status(behind, group).quarantined, None);
    let fetch = async |place: usize| {
        let page = nodes.clients(place).fetch("orders", 0, start()).await.unwrap();
        (nodes.fetch_all(place, "orders").await, page.log_start_offset)
    };
    let before = fetch(leader).await;
    nodes.transfer("orders", 0, behind).await;
    assert_eq!(fetch(behind).await, before, "it serves the same records at the same offsets");
    // It has never seen most of the producer's batches, and knows the last ones all the same.
    let id = publisher.stamp.id;
    let init = v1::ProduceInit { producer_id: id, idempotent: true, ..Default::default() };
    let mut stream = nodes.clients(behind).produce_stream(init).await;
    stream.initialized().await;
    for sequence in [14, 11, 13] {
        stream.send_batch(batch_message(Stamp { sequence, ..publisher.stamp })).await;
        let ack = stream.outcome().await.unwrap();
        assert_eq!((ack.base_offset, ack.duplicate), (i64::from(sequence), true));
    }
    stream.send_batch(batch_message(Stamp { sequence: 16, ..publisher.stamp })).await;
    assert_eq!(stream.outcome().await.unwrap_err().reason, "OUT_OF_ORDER_SEQUENCE");
    stream.send_batch(batch_message(publisher.stamp)).await;
    let ack = stream.outcome().await.unwrap();
    assert_eq!((ack.base_offset, ack.duplicate), (15, false));
    // And all of it is still so after the rebuilt replica was opened again from its disk.
    nodes.stop_all().await;
    nodes.run_all().await;
    nodes.transfer("orders", 0, behind).await;
    let init = v1::ProduceInit { producer_id: id, idempotent: true, ..Default::default() };
    let mut stream = nodes.clients(behind).produce_stream(init).await;
    stream.initialized().await;
    stream.send_batch(batch_message(publisher.stamp)).await;
    let ack = stream.outcome().await.unwrap();
    assert_eq!((ack.base_offset, ack.duplicate), (15, true));
    nodes.stop_all().await;
}
