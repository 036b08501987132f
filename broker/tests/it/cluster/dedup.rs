//! Batches sent twice: recognised on every leader, after every restart; and what is not a retry is refused.

use highwater_proto::v1;

use super::nodes::*;
use crate::harness::*;

/// Sends a batch to the partition's leader, as a client would that remembers its producer id.
async fn send(nodes: &Nodes, stamp: Stamp, value: &str) -> Result<v1::ProduceAck, v1::ErrorDetail> {
    let leader = nodes.leader(nodes.groups("orders")[0]).await;
    let init = v1::ProduceInit { producer_id: stamp.id, idempotent: true, ..Default::default() };
    let mut stream = nodes.clients(leader).produce_stream(init).await;
    stream.initialized().await;
    let message = v1::ProduceBatch {
        request_id: 1,
        topic: "orders".into(),
        batch: stamped(stamp, value.as_bytes()),
        ..Default::default()
    };
    stream.send_batch(message).await;
    stream.outcome().await
}

async fn new_producer(nodes: &Nodes) -> i64 {
    let init = v1::ProduceInit { idempotent: true, ..Default::default() };
    let mut stream = nodes.clients(1).produce_stream(init).await;
    stream.initialized().await.producer_id
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_sent_again_is_recognised_on_a_new_leader_and_after_a_restart_of_all() {
    let mut nodes = Nodes::start(|_| {}).await;
    nodes.clients(0).create_topic("orders", 1).await;
    let group = nodes.groups("orders")[0];
    let id = new_producer(&nodes).await;
    let first = Stamp { id, epoch: 0, sequence: 0 };
    let second = Stamp { sequence: 1, ..first };
    let written = send(&nodes, first, "a").await.unwrap();
    assert_eq!((written.base_offset, written.duplicate), (0, false));
    let assert_known = async |nodes: &Nodes, stamp: Stamp, value: &str, offset: i64| {
        let again = send(nodes, stamp, value).await.unwrap();
        assert_eq!((again.base_offset, again.duplicate), (offset, true), "{stamp:?}");
    };
    assert_known(&nodes, first, "a", 0).await;

    let leader = nodes.leader(group).await;
    nodes.transfer("orders", 0, (leader + 1) % 3).await;
    assert_known(&nodes, first, "a", 0).await;
    assert_eq!(send(&nodes, second, "b").await.unwrap().base_offset, 1);

    nodes.stop_all().await;
    nodes.run_all().await;
    assert_known(&nodes, second, "b", 1).await;
    assert_known(&nodes, first, "a", 0).await;

    // Every replica knows them, not only one that happened to lead.
    for place in 0..3 {
        nodes.transfer("orders", 0, place).await;
        assert_known(&nodes, first, "a", 0).await;
        assert_known(&nodes, second, "b", 1).await;
    }
    let fetched = nodes.clients(0).fetch("orders", 0, start()).await.unwrap();
    assert_eq!(values(&fetched.records), ["a", "b"]);
    nodes.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn gaps_strangers_and_old_epochs_are_refused_also_by_the_next_leader() {
    let mut nodes = Nodes::start(|_| {}).await;
    nodes.clients(0).create_topic("orders", 1).await;
    let group = nodes.groups("orders")[0];
    let id = new_producer(&nodes).await;
    let stranger = new_producer(&nodes).await;
    assert_ne!(id, stranger);
    let stamp = Stamp { id, epoch: 0, sequence: 0 };
    send(&nodes, stamp, "a").await.unwrap();
    // A newer instance of the same producer begins at 0 again and fences the older one.
    let newer = Stamp { epoch: 1, ..stamp };
    let written = send(&nodes, newer, "b").await.unwrap();
    assert_eq!((written.base_offset, written.duplicate), (1, false));
    for _ in 0..2 {
        for (refused, reason) in [
            (Stamp { sequence: 2, ..newer }, "OUT_OF_ORDER_SEQUENCE"),
            (Stamp { epoch: 2, sequence: 1, ..newer }, "OUT_OF_ORDER_SEQUENCE"),
            (Stamp { sequence: 1, ..stamp }, "PRODUCER_FENCED"),
            (stamp, "PRODUCER_FENCED"),
            (Stamp { id: stranger, epoch: 0, sequence: 5 }, "UNKNOWN_PRODUCER"),
        ] {
            let error = send(&nodes, refused, "no").await.unwrap_err();
            assert_eq!(error.reason, reason, "{refused:?}");
            assert!(!error.retriable && !error.may_have_been_written, "{error:?}");
        }
        let leader = nodes.leader(group).await;
        nodes.transfer("orders", 0, (leader + 1) % 3).await;
    }
    let fetched = nodes.clients(0).fetch("orders", 0, start()).await.unwrap();
    assert_eq!(values(&fetched.records), ["a", "b"]);
    nodes.stop_all().await;
}
