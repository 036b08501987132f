//! What an acknowledgement means when nodes are missing.

use highwater_proto::v1;
use v1::Acks;

use super::nodes::*;
use crate::harness::*;

#[tokio::test(flavor = "multi_thread")]
async fn with_one_of_three_away_every_level_of_acks_is_reached() {
    let mut nodes = Nodes::start(|_| {}).await;
    nodes.clients(0).create_topic("orders", 1).await;
    let group = nodes.groups("orders")[0];
    let leader = nodes.leader(group).await;
    nodes.stop((leader + 1) % 3).await;
    for (offset, acks) in (0..).zip([Acks::QuorumFsync, Acks::Quorum, Acks::Leader]) {
        let ack = nodes.produce(leader, "orders", acks, "x", 30_000).await.unwrap();
        assert_eq!((ack.base_offset, ack.reached()), (offset, acks));
        assert_eq!(ack.leader_epoch, nodes.status(leader, group).leader_epoch);
    }
    nodes.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_two_of_three_away_no_quorum_is_claimed_and_what_was_acknowledged_stays() {
    // A leader without followers steps down after an election timeout: long enough here to ask it while it still leads.
    let mut nodes = Nodes::start(|config| config.raft.tick_ms = 100).await;
    nodes.clients(0).create_topic("orders", 1).await;
    let group = nodes.groups("orders")[0];
    let leader = nodes.leader(group).await;
    let others = [(leader + 1) % 3, (leader + 2) % 3];
    let ack = nodes.produce(leader, "orders", Acks::QuorumFsync, "kept", 30_000).await.unwrap();
    assert_eq!(ack.base_offset, 0);
    for place in others {
        nodes.stop(place).await;
    }
    let mut refusals = Vec::new();
    for (acks, value) in [(Acks::Quorum, "quorum"), (Acks::QuorumFsync, "fsync")] {
        let refused = nodes.produce(leader, "orders", acks, value, 500).await.unwrap_err();
        let reason = refused.reason.as_str();
        assert!(["OUTCOME_UNKNOWN", "NOT_LEADER"].contains(&reason), "{refused:?}");
        // Only what was refused before it was appended certainly is not written.
        assert_eq!(refused.may_have_been_written, reason == "OUTCOME_UNKNOWN", "{refused:?}");
        assert!(refused.retriable);
        if reason == "NOT_LEADER" {
            refusals.push(value);
        }
    }
    match nodes.produce(leader, "orders", Acks::Leader, "leader", 500).await {
        Ok(ack) => assert_eq!(ack.reached(), Acks::Leader),
        Err(refused) => {
            assert_eq!(refused.reason, "NOT_LEADER");
            refusals.push("leader");
        }
    }
    assert_eq!(nodes.status(leader, group).high_watermark, 1, "nothing else is committed");
    until("stepping down", || async { !nodes.replica(leader, group).is_leader() }).await;
    let refused = nodes.produce(leader, "orders", Acks::Leader, "late", 500).await.unwrap_err();
    assert_eq!(refused.reason, "NOT_LEADER");
    refusals.push("late");
    nodes.run_all().await;
    let again = nodes.leader(group).await;
    let ack = nodes.produce(again, "orders", Acks::QuorumFsync, "after", 30_000).await.unwrap();
    let fetched = nodes.clients(again).fetch("orders", 0, start()).await.unwrap();
    let found = values(&fetched.records);
    assert_eq!(found.first().map(String::as_str), Some("kept"));
    assert_eq!(found.last().map(String::as_str), Some("after"));
    assert_eq!(found.len() as i64, ack.base_offset + 1);
    for value in ["quorum", "fsync", "leader", "late"] {
        let times = found.iter().filter(|found| *found == value).count();
        assert!(times <= 1, "{value} is there {times} times: {found:?}");
        assert!(times == 0 || !refusals.contains(&value), "{value} was refused: {found:?}");
    }
    nodes.stop_all().await;
}
