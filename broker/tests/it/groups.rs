//! Consumer groups on one broker: who gets which partition, and whose progress counts.

use std::collections::BTreeSet;

use highwater_proto::batch::{BatchBuilder, BatchView, Compression};
use highwater_proto::partitioner::partition_for_key;
use highwater_proto::{internal, v1};
use prost::Message;
use v1::position::At;

use crate::harness::*;

fn numbers(assigned: &[v1::AssignedPartition]) -> BTreeSet<u32> {
    assigned.iter().map(|partition| partition.partition).collect()
}

fn wanted_back(assigned: &[v1::AssignedPartition]) -> Vec<v1::AssignedPartition> {
    assigned.iter().filter(|partition| partition.is_wanted_back).cloned().collect()
}

async fn fetch_offsets(clients: &Clients, group: &str) -> Vec<(u32, i64)> {
    let request = v1::FetchOffsetsRequest { group: group.to_owned() };
    let fetched = soon("fetching offsets", async {
        loop {
            match clients.groups().fetch_offsets(request.clone()).await {
                Ok(fetched) => return fetched.into_inner(),
                // Right after a start the partition may have no leader yet.
                Err(status) => assert_eq!(reason(&status), "NOT_COORDINATOR", "{status}"),
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
    fetched.offsets.iter().map(|offset| (offset.partition, offset.offset)).collect()
}

async fn describe(clients: &Clients, group: &str) -> v1::GroupServiceDescribeResponse {
    let request = v1::GroupServiceDescribeRequest { group: group.to_owned() };
    clients.groups().describe(request).await.unwrap().into_inner()
}

#[tokio::test(flavor = "multi_thread")]
async fn members_share_the_partitions_and_only_what_moves_is_touched() {
    let broker = TestBroker::start().await;
    let clients = broker.clients();
    clients.create_topic("orders", 6).await;
    let mut a = clients.join("billing", "a", "orders").await;
    let all = a.assigned(6, 0).await;
    let mut b = clients.join("billing", "b", "orders").await;
    b.assigned(0, 0).await;
    let asked = a.assigned(6, 3).await;
    for partition in asked.iter().filter(|partition| !partition.is_wanted_back) {
        assert!(all.contains(partition), "what stays keeps its epoch");
    }
    a.release(&wanted_back(&asked)).await;
    let of_b = b.assigned(3, 0).await;
    let of_a = a.assigned(3, 0).await;
    assert!(numbers(&of_a).is_disjoint(&numbers(&of_b)));
    let described = describe(&clients, "billing").await;
    assert_eq!(described.state(), v1::GroupState::Stable);
    assert_eq!(described.members.len(), 2);
    assert!(described.members.iter().all(|it| it.is_connected && it.partitions == 3));
    b.send(v1::join_request::Message::Leave(v1::LeaveGroup {})).await;
    assert!(b.ended().await.is_none(), "leaving ends the stream without an error");
    a.assigned(6, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_is_the_owners_and_only_grows() {
    let broker = TestBroker::start().await;
    let clients = broker.clients();
    clients.create_topic("orders", 1).await;
    clients.publish("orders", 0, &["0", "1", "2", "3", "4", "5"]).await;
    let mut a = clients.join("billing", "a", "orders").await;
    let first = a.assigned(1, 0).await.remove(0);
    assert_eq!(first.committed_offset, None);
    assert_eq!(a.commit(&first, 3).await.fenced, []);
    assert_eq!(a.commit(&first, 2).await.fenced, []);
    assert_eq!(fetch_offsets(&clients, "billing").await, [(0, 3)]);
    let wrong = a.commit(&first, -1).await;
    assert_eq!(wrong.error.unwrap().reason, "INVALID_ARGUMENT");

    // Another life of the same member has it at a later epoch: the first life is fenced.
    a.send(v1::join_request::Message::Leave(v1::LeaveGroup {})).await;
    assert!(a.ended().await.is_none());
    let mut a = clients.join("billing", "a", "orders").await;
    let second = a.assigned(1, 0).await.remove(0);
    assert!(second.epoch > first.epoch);
    assert_eq!(second.committed_offset, Some(3));
    assert_eq!(a.commit(&first, 5).await.fenced, [owned(&first)]);
    assert_eq!(a.commit(&second, 4).await.fenced, []);
    assert_eq!(fetch_offsets(&clients, "billing").await, [(0, 4)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_keeps_its_partitions_over_a_lost_connection_but_not_over_its_session() {
    let broker = TestBroker::start().await;
    let clients = broker.clients();
    clients.create_topic("orders", 2).await;
    let init = |member: &str, session_timeout_ms| v1::JoinInit {
        group: "billing".into(),
        member_id: member.into(),
        topics: vec!["orders".into()],
        session_timeout_ms,
        ..Default::default()
    };
    let mut a = clients.join_with(init("a", 60_000)).await;
    let before = a.assigned(2, 0).await;
    drop(a);
    let mut a = clients.join_with(init("a", 60_000)).await;
    assert_eq!(a.assignment().await, before, "nothing moved");
    // The same with a short session, which ends while it is away.
    drop(a);
    let mut a = clients.join_with(init("a", 500)).await;
    assert_eq!(a.assignment().await, before);
    drop(a);
    let mut b = clients.join("billing", "b", "orders").await;
    assert_eq!(numbers(&b.assigned(2, 0).await), BTreeSet::from([0, 1]));
    let described = describe(&clients, "billing").await;
    assert_eq!(described.members.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_stream_of_a_member_and_a_second_process_with_its_static_id_fence_the_first() {
    let broker = TestBroker::start().await;
    let clients = broker.clients();
    clients.create_topic("orders", 2).await;
    let init = |member: &str| v1::JoinInit {
        group: "billing".into(),
        member_id: member.into(),
        static_id: "pod-1".into(),
        topics: vec!["orders".into()],
        session_timeout_ms: 60_000,
        ..Default::default()
    };
    let mut first = clients.join_with(init("a")).await;
    let before = first.assigned(2, 0).await;
    let mut second = clients.join_with(init("a")).await;
    assert_eq!(second.assignment().await, before);
    assert_eq!(reason(&first.ended().await.unwrap()), "MEMBER_FENCED");
    let mut third = clients.join_with(init("b")).await;
    let after = third.assigned(2, 0).await;
    assert!(after.iter().zip(&before).all(|(after, before)| after.epoch > before.epoch));
    assert_eq!(reason(&second.ended().await.unwrap()), "MEMBER_FENCED");
    assert_eq!(third.commit(&before[0], 1).await.fenced, [owned(&before[0])]);
    // The first process was only cut off, and comes back.
    let back = v1::JoinInit { returns: true, ..init("a") };
    let status = clients.try_join(back).await.map(drop).unwrap_err();
    assert_eq!(reason(&status), "MEMBER_FENCED");
    assert_eq!(third.commit(&after[0], 1).await.fenced, [], "its successor stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn heartbeats_are_answered_and_keep_a_member_that_makes_no_progress_only_so_long() {
    let broker = TestBroker::start().await;
    let clients = broker.clients();
    clients.create_topic("orders", 1).await;
    let init = v1::JoinInit {
        group: "billing".into(),
        member_id: "a".into(),
        topics: vec!["orders".into()],
        session_timeout_ms: 60_000,
        progress_timeout_ms: 1_000,
        ..Default::default()
    };
    let mut a = clients.join_with(init).await;
    a.assigned(1, 0).await;
    let beat = v1::MemberHeartbeat { sequence: 9, extend_ms: 1_500, ..Default::default() };
    a.send(v1::join_request::Message::Heartbeat(beat)).await;
    match a.next().await {
        Some(Ok(v1::join_response::Message::Heartbeat(answer))) => assert_eq!(answer.sequence, 9),
        other => panic!("{other:?}"),
    }
    let status = a.ended().await.unwrap();
    assert_eq!(reason(&status), "MEMBER_FENCED");
    assert!(status.message().contains("progress"), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_are_listed_reset_and_deleted_only_without_members() {
    let broker = TestBroker::start().await;
    let clients = broker.clients();
    clients.create_topic("orders", 2).await;
    clients.publish("orders", 0, &["0", "1", "2"]).await;
    let mut a = clients.join("billing", "a", "orders").await;
    let assigned = a.assigned(2, 0).await;
    a.commit(&assigned[0], 2).await;
    let reset = |to: At, dry_run| v1::ResetOffsetsRequest {
        group: "billing".into(),
        topic: "orders".into(),
        to: position(to),
        dry_run,
        partitions: Vec::new(),
    };
    let status = clients.groups().reset_offsets(reset(start(), true)).await.unwrap_err();
    assert_eq!(reason(&status), "GROUP_NOT_EMPTY");
    let delete = || v1::GroupServiceDeleteRequest { group: "billing".into() };
    assert_eq!(reason(&clients.groups().delete(delete()).await.unwrap_err()), "GROUP_NOT_EMPTY");
    a.send(v1::join_request::Message::Leave(v1::LeaveGroup {})).await;
    a.ended().await;
    let moved = clients.groups().reset_offsets(reset(start(), true)).await.unwrap().into_inner();
    assert_eq!(moved.offsets.iter().map(|it| it.offset).collect::<Vec<_>>(), [0, 0]);
    assert_eq!(fetch_offsets(&clients, "billing").await, [(0, 2)], "a dry run moves nothing");
    clients.groups().reset_offsets(reset(At::End(v1::position::End {}), false)).await.unwrap();
    assert_eq!(fetch_offsets(&clients, "billing").await, [(0, 3), (1, 0)]);
    clients.groups().reset_offsets(reset(start(), false)).await.unwrap();
    assert_eq!(fetch_offsets(&clients, "billing").await, [(0, 0), (1, 0)]);
    let status = clients.groups().reset_offsets(reset(At::Offset(99), true)).await.unwrap_err();
    assert_eq!(reason(&status), "OFFSET_OUT_OF_RANGE");
    let listed = clients.groups().list(v1::GroupServiceListRequest {}).await.unwrap().into_inner();
    assert_eq!(listed.groups, ["billing"]);
    assert_eq!(listed.listings[0].state(), v1::GroupState::Empty);
    clients.groups().delete(delete()).await.unwrap();
    assert_eq!(reason(&clients.groups().delete(delete()).await.unwrap_err()), "UNKNOWN_GROUP");
    assert_eq!(fetch_offsets(&clients, "billing").await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn members_and_progress_are_there_after_a_restart() {
    let TestBroker { broker, dir } = TestBroker::start().await;
    let clients = Clients::of(broker.client_addr());
    clients.create_topic("orders", 2).await;
    let mut a = clients.join("billing", "a", "orders").await;
    let before = a.assigned(2, 0).await;
    a.commit(&before[0], 5).await;
    soon("stopping", broker.stop()).await;
    assert_eq!(reason(&a.ended().await.unwrap()), "NOT_COORDINATOR");
    drop(broker);
    let broker = highwater_broker::Broker::start(quick_config(&dir)).await.unwrap();
    soon("being ready", broker.wait_ready()).await;
    let clients = Clients::of(broker.client_addr());
    let mut a = clients.join("billing", "a", "orders").await;
    let after = a.assignment().await;
    assert_eq!(after[0].committed_offset, Some(5));
    let epochs = |all: &[v1::AssignedPartition]| -> Vec<u64> {
        all.iter().map(|partition| partition.epoch).collect()
    };
    assert_eq!(epochs(&after), epochs(&before), "nothing moved");
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_grows_is_shared_anew_and_one_that_is_made_again_is_read_anew() {
    let broker = TestBroker::start().await;
    let clients = broker.clients();
    clients.create_topic("orders", 1).await;
    let mut a = clients.join("billing", "a", "orders").await;
    let assigned = a.assigned(1, 0).await;
    a.commit(&assigned[0], 4).await;
    let delete = v1::TopicServiceDeleteRequest { name: "orders".into() };
    clients.topics().delete(delete).await.unwrap();
    a.assigned(0, 0).await;
    clients.create_topic("orders", 3).await;
    let assigned = a.assigned(3, 0).await;
    assert!(assigned.iter().all(|partition| partition.committed_offset.is_none()));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_was_done_in_a_topic_counts_in_the_next_one_of_its_name() {
    let broker = TestBroker::start().await;
    let clients = broker.clients();
    let first = clients.create_topic("orders", 1).await.id;
    clients.publish("orders", 0, &["0", "1", "2", "3", "4", "5"]).await;
    let mut a = clients.join("billing", "a", "orders").await;
    let before = a.assigned(1, 0).await.remove(0);
    assert_eq!(before.topic_id, first);
    a.commit(&before, 4).await;
    // As quickly as can be: it may be that nobody saw it gone.
    let delete = v1::TopicServiceDeleteRequest { name: "orders".into() };
    clients.topics().delete(delete).await.unwrap();
    let second = clients.create_topic("orders", 1).await.id;
    assert_eq!(a.commit(&before, 5).await.fenced, [owned(&before)], "it is of the first topic");
    let mut b = clients.join("billing", "b", "orders").await;
    let of_b = b.assignment().await;
    assert!(of_b.iter().all(|partition| partition.committed_offset.is_none()), "{of_b:?}");
    assert_eq!(fetch_offsets(&clients, "billing").await, []);
    a.send(v1::join_request::Message::Leave(v1::LeaveGroup {})).await;
    let after = b.assigned(1, 0).await.remove(0);
    assert_eq!((after.committed_offset, &after.topic_id), (None, &second));
    assert!(after.epoch > before.epoch);
    let commit = |topic_id: &str| v1::CommitOffsetsRequest {
        group: "other".into(),
        offsets: vec![v1::CommittedOffset {
            topic: "orders".into(),
            topic_id: topic_id.to_owned(),
            ..Default::default()
        }],
    };
    let status = clients.groups().commit_offsets(commit(&first)).await.unwrap_err();
    assert_eq!(reason(&status), "TOPIC_ID_MISMATCH");
    clients.groups().commit_offsets(commit(&second)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_knows_less_of_the_topics_than_the_one_before_waits() {
    let TestBroker { broker, dir } = TestBroker::start().await;
    let clients = Clients::of(broker.client_addr());
    clients.create_topic("orders", 2).await;
    let mut a = clients.join("billing", "a", "orders").await;
    let before = a.assigned(2, 0).await;
    a.commit(&before[0], 5).await;
    // As if one on a node that is further had written it.
    let ahead = broker.node().view().metadata_index + 30;
    let partitions = broker.node().view().topics["__consumer_offsets"].partitions.len();
    let partition = partition_for_key(b"billing", u32::try_from(partitions).unwrap());
    let (_, offsets) = broker.node().route("__consumer_offsets", "", partition).unwrap();
    let subject = Some(internal::group_key::Subject::Seen(internal::SeenKey {}));
    let key = internal::GroupKey { version: 1, subject }.encode_to_vec();
    let value = internal::SeenValue { metadata_index: ahead }.encode_to_vec();
    let mut builder = BatchBuilder::new(Compression::None);
    builder.push(0, Some(&key), Some(&value), &[]).unwrap();
    let batch = builder.build().unwrap();
    let header = *BatchView::parse(batch.clone()).unwrap().header();
    offsets.append(batch, &header, v1::Acks::QuorumFsync).unwrap().await.unwrap();
    soon("stopping", broker.stop()).await;
    drop(broker);
    let broker = highwater_broker::Broker::start(quick_config(&dir)).await.unwrap();
    soon("being ready", broker.wait_ready()).await;
    assert!(broker.node().view().metadata_index < ahead);
    let clients = Clients::of(broker.client_addr());
    let asking = clients.clone();
    let runtime = tokio::runtime::Handle::current();
    let asked = runtime.spawn(async move { fetch_offsets(&asking, "billing").await });
    let mut topics = 0;
    while broker.node().view().metadata_index < ahead {
        assert!(!asked.is_finished(), "it has not seen what its predecessor saw");
        clients.create_topic(&format!("other-{topics}"), 1).await;
        topics += 1;
    }
    assert_eq!(soon("an answer", asked).await.unwrap(), [(0, 5)]);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_is_forgotten_when_nobody_has_been_in_the_group_for_long() {
    let broker = TestBroker::start_with(|config| config.groups.offsets_retention_ms = 1_000).await;
    let clients = broker.clients();
    clients.create_topic("orders", 1).await;
    let mut a = clients.join("billing", "a", "orders").await;
    let assigned = a.assigned(1, 0).await;
    a.commit(&assigned[0], 0).await;
    let commit = v1::CommitOffsetsRequest {
        group: "nobody".into(),
        offsets: vec![v1::CommittedOffset { topic: "orders".into(), ..Default::default() }],
    };
    until("a commit", || async { clients.groups().commit_offsets(commit.clone()).await.is_ok() })
        .await;
    until("the end of a group", || async { fetch_offsets(&clients, "nobody").await.is_empty() })
        .await;
    assert_eq!(fetch_offsets(&clients, "billing").await, [(0, 0)], "it has a member");
    a.send(v1::join_request::Message::Leave(v1::LeaveGroup {})).await;
    a.ended().await;
    until("the end of a group", || async { fetch_offsets(&clients, "billing").await.is_empty() })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_is_refused() {
    let broker = TestBroker::start_with(|config| config.groups.members = 1).await;
    let clients = broker.clients();
    clients.create_topic("orders", 1).await;
    let good = v1::JoinInit {
        group: "billing".into(),
        member_id: "a".into(),
        topics: vec!["orders".into()],
        ..Default::default()
    };
    let _a = clients.join_with(good.clone()).await;
    let long = || "x".repeat(300);
    for (init, expected) in [
        (v1::JoinInit { group: String::new(), ..good.clone() }, "INVALID_ARGUMENT"),
        (v1::JoinInit { group: long(), ..good.clone() }, "INVALID_ARGUMENT"),
        (v1::JoinInit { member_id: String::new(), ..good.clone() }, "INVALID_ARGUMENT"),
        (v1::JoinInit { member_id: long(), ..good.clone() }, "INVALID_ARGUMENT"),
        (v1::JoinInit { static_id: long(), ..good.clone() }, "INVALID_ARGUMENT"),
        (v1::JoinInit { topics: Vec::new(), ..good.clone() }, "INVALID_ARGUMENT"),
        (v1::JoinInit { topics: vec!["nope".into()], ..good.clone() }, "UNKNOWN_TOPIC"),
        (v1::JoinInit { member_id: "b".into(), ..good.clone() }, "OVERLOADED"),
    ] {
        let status = clients.try_join(init).await.map(drop).unwrap_err();
        assert_eq!(reason(&status), expected, "{status}");
    }
    let commit = |topic: &str, partition, offset| v1::CommitOffsetsRequest {
        group: "other".into(),
        offsets: vec![v1::CommittedOffset {
            topic: topic.into(),
            partition,
            offset,
            ..Default::default()
        }],
    };
    for (request, expected) in [
        (commit("nope", 0, 0), "UNKNOWN_TOPIC"),
        (commit("orders", 9, 0), "UNKNOWN_PARTITION"),
        (commit("orders", 0, -1), "INVALID_ARGUMENT"),
    ] {
        let status = clients.groups().commit_offsets(request).await.unwrap_err();
        assert_eq!(reason(&status), expected, "{status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_survives_compaction_and_a_restart() {
    let TestBroker { broker, dir } =
        TestBroker::start_with(|config| config.topics.retention_check_ms = 50).await;
    let clients = Clients::of(broker.client_addr());
    clients.create_topic("orders", 2).await;
    // As brokers would create it, but with the smallest segments.
    let config = [("cleanup.policy", "compact"), ("segment.bytes", "1048576")]
        .map(|(key, value)| (key.to_owned(), value.to_owned()));
    broker.node().create_topic("__consumer_offsets", 1, 1, config.into()).await.unwrap();
    let commit = |group: &str, partition, offset| v1::CommitOffsetsRequest {
        group: group.to_owned(),
        offsets: vec![v1::CommittedOffset {
            topic: "orders".into(),
            partition,
            offset,
            metadata: "x".repeat(4_000),
            ..Default::default()
        }],
    };
    clients.groups().commit_offsets(commit("early", 1, 77)).await.unwrap();
    let mut offset = 0;
    until("a compaction", || {
        let clients = clients.clone();
        offset += 50;
        let (from, to, address) = (offset - 50, offset, broker.http_addr());
        let requests: Vec<_> = (from..to).map(|offset| commit("billing", 0, offset)).collect();
        async move {
            for request in requests {
                clients.groups().commit_offsets(request).await.unwrap();
            }
            let (_, metrics) = http_get(address, "/metrics").await;
            !metrics.contains("highwater_compaction_dropped_records_total 0\n")
        }
    })
    .await;
    soon("stopping", broker.stop()).await;
    drop(broker);
    let broker = highwater_broker::Broker::start(quick_config(&dir)).await.unwrap();
    soon("being ready", broker.wait_ready()).await;
    let clients = Clients::of(broker.client_addr());
    assert_eq!(fetch_offsets(&clients, "billing").await, [(0, offset - 1)]);
    assert_eq!(fetch_offsets(&clients, "early").await, [(1, 77)]);
    broker.stop().await;
}
