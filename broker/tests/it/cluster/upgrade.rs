//! Another version, node by node: both work together, and what only the newer one understands waits for the last of the older.

use std::sync::atomic::{AtomicBool, Ordering};

use highwater_broker::cluster::FEATURE_LEVEL;

use super::membership::{create, publish_until};
use super::nodes::*;
use crate::harness::*;

/// The level of a version that does not exist yet.
const NEXT: u32 = FEATURE_LEVEL + 1;

fn levels(nodes: &Nodes, places: &[usize]) -> Vec<u32> {
    places.iter().map(|place| nodes.broker(*place).node().feature_level()).collect()
}

/// One that passes for the next version is restarted after the other.
async fn restart(nodes: &mut Nodes, place: usize, level: u32) {
    nodes.stop(place).await;
    nodes.set_level(place, level);
    nodes.run_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_are_upgraded_one_after_the_other_and_the_level_rises_with_the_last() {
    let mut nodes = Nodes::start(|_| {}).await;
    create(&nodes, 1, 3).await;
    let mut acknowledged = Vec::new();
    for place in 0..3 {
        assert_eq!(levels(&nodes, &[0, 1, 2]), [FEATURE_LEVEL; 3]);
        restart(&mut nodes, place, NEXT).await;
        // Old and new nodes lead, follow and change metadata side by side.
        let name = format!("made-with-{place}-upgraded");
        nodes.clients((place + 1) % 3).create_topic(&name, 3).await;
        let done = AtomicBool::new(false);
        let publishing = publish_until(&nodes, &[0, 1, 2], &done);
        let moving = async {
            for to in 0..3 {
                nodes.transfer("orders", 0, to).await;
            }
            done.store(true, Ordering::Release);
        };
        acknowledged.extend(tokio::join!(publishing, moving).0);
    }
    until("the higher level everywhere", || async { levels(&nodes, &[0, 1, 2]) == [NEXT; 3] })
        .await;
    assert!(!acknowledged.is_empty());
    let found = values(&nodes.fetch_all(0, "orders").await);
    let mut rest = found.iter();
    // An event whose acknowledgement was lost may lie between them.
    for value in &acknowledged {
        assert!(rest.any(|found| found == value), "{value} is lost or out of order: {found:?}");
    }
    // It stays through a restart of all, which read it from their disks.
    nodes.stop_all().await;
    nodes.run_all().await;
    assert_eq!(levels(&nodes, &[0, 1, 2]), [NEXT; 3]);
    nodes.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_a_version_that_is_too_old_is_told_so_and_changes_nothing() {
    let mut nodes = Nodes::prepare(|_| {});
    for place in 0..3 {
        nodes.set_level(place, NEXT);
    }
    nodes.run_all().await;
    assert_eq!(levels(&nodes, &[0, 1, 2]), [NEXT; 3], "founders decide for the lowest among them");
    create(&nodes, 1, 3).await;
    // Back to the version before: its own metadata say that it must not.
    nodes.stop(2).await;
    nodes.set_level(2, FEATURE_LEVEL);
    nodes.run(2).await;
    let why = soon("the end of the node", nodes.broker(2).wait_fatal()).await;
    let expected = format!("the cluster is at {NEXT}");
    assert!(why.contains("node 3") && why.contains(&expected), "{why}");
    assert!(nodes.broker(2).node().is_misconfigured());
    // With an empty directory it is not let in either.
    nodes.stop(2).await;
    let fourth = nodes.prepare_another();
    nodes.set_level(fourth, FEATURE_LEVEL);
    nodes.run(fourth).await;
    nodes.waits_for(fourth, &[expected.as_str()]).await;
    nodes.clients(0).publish("orders", 0, &["x"]).await;
    nodes.stop(fourth).await;
    nodes.set_level(fourth, NEXT);
    nodes.run(fourth).await;
    soon("joining", nodes.broker(fourth).wait_ready()).await;
    nodes.stop_all().await;
}
