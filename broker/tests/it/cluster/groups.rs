//! Consumer groups on three nodes: the hint where a group's coordinator is, and coordinators that move.

use highwater_proto::v1;

use super::Three;
use super::nodes::Nodes;
use crate::harness::*;

fn init(member: &str) -> v1::JoinInit {
    v1::JoinInit {
        group: "billing".into(),
        member_id: member.into(),
        topics: vec!["orders".into()],
        session_timeout_ms: 60_000,
        ..Default::default()
    }
}

/// Joins wherever the coordinator is; answers with its place too.
async fn join(
    clients: impl Fn(usize) -> Clients,
    places: &[usize],
    member: &str,
) -> (usize, Member) {
    soon("joining", async {
        loop {
            for &place in places {
                match clients(place).try_join(init(member)).await {
                    Ok(joined) => return (place, joined),
                    Err(status) => assert!(
                        ["NOT_COORDINATOR", "NOT_READY", "UNKNOWN_TOPIC"]
                            .contains(&reason(&status).as_str())
                            || status.code() == tonic::Code::Unavailable,
                        "{status}"
                    ),
                }
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_goes_on_where_it_was_when_its_coordinator_stops() {
    let three = Three::start().await;
    three.clients(0).create_topic("orders", 4).await;
    let (place, mut a) = join(|place| three.clients(place), &[0, 1, 2], "a").await;
    let before = a.assigned(4, 0).await;
    a.commit(&before[0], 3).await;
    let other = (place + 1) % 3;
    until("the hint", || async {
        let status = three.clients(other).try_join(init("b")).await.map(drop).unwrap_err();
        reason(&status) == "NOT_COORDINATOR"
            && fact(&status, "leader_address")
                == Some(three.brokers[place].client_addr().to_string())
    })
    .await;
    soon("stopping", three.brokers[place].stop()).await;
    let status = a.ended().await.unwrap();
    assert_eq!(reason(&status), "NOT_COORDINATOR");
    let places: Vec<usize> = (0..3).filter(|it| *it != place).collect();
    let (_, mut a) = join(|place| three.clients(place), &places, "a").await;
    let after = a.assignment().await;
    assert_eq!(after[0].committed_offset, Some(3));
    let epochs = |all: &[v1::AssignedPartition]| -> Vec<u64> {
        all.iter().map(|partition| partition.epoch).collect()
    };
    assert_eq!(epochs(&after), epochs(&before), "nothing moved");
    assert_eq!(a.commit(&before[1], 1).await.fenced, []);
    three.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_lists_the_groups_it_coordinates() {
    let three = Three::start().await;
    three.clients(0).create_topic("orders", 1).await;
    let mut commits = Vec::new();
    for number in 0..12 {
        let request = v1::CommitOffsetsRequest {
            group: format!("group-{number}"),
            offsets: vec![v1::CommittedOffset { topic: "orders".into(), ..Default::default() }],
        };
        commits.push(request);
    }
    for request in &commits {
        let stored = || async {
            for place in 0..3 {
                if three.clients(place).groups().commit_offsets(request.clone()).await.is_ok() {
                    return true;
                }
            }
            false
        };
        until("a commit", stored).await;
    }
    let mut all = Vec::new();
    for place in 0..3 {
        let list = v1::GroupServiceListRequest {};
        let listed = three.clients(place).groups().list(list).await.unwrap().into_inner();
        assert!(!listed.groups.is_empty(), "coordinators are spread");
        all.extend(listed.groups);
    }
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 12);
    three.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_has_lost_its_majority_tells_members_nothing() {
    // It believes to lead for six seconds at least after it has heard of others the last time.
    let mut nodes = Nodes::start(|config| config.raft.election_ticks = 200).await;
    nodes.clients(0).create_topic("orders", 1).await;
    let (place, mut a) = join(|place| nodes.clients(place), &[0, 1, 2], "a").await;
    a.assigned(1, 0).await;
    let beat = |sequence| {
        let beat = v1::MemberHeartbeat { sequence, ..Default::default() };
        v1::join_request::Message::Heartbeat(beat)
    };
    a.send(beat(1)).await;
    assert!(matches!(a.next().await, Some(Ok(v1::join_response::Message::Heartbeat(_)))));
    for other in (0..3).filter(|it| *it != place) {
        nodes.stop(other).await;
    }
    // Longer than the last word of a majority may count.
    tokio::time::sleep(std::time::Duration::from_millis(2_500)).await;
    a.send(beat(2)).await;
    match a.next().await {
        Some(Err(status)) => assert_eq!(reason(&status), "NOT_COORDINATOR"),
        other => panic!("{other:?}"),
    }
    nodes.stop_all().await;
}
