//! How a cluster comes into being: once, from seeds that all answer, are empty and agree.

use std::collections::BTreeSet;

use highwater_proto::internal;
use highwater_proto::internal::node_service_client::NodeServiceClient;
use highwater_proto::v1;
use tonic::transport::{Channel, Endpoint};

use super::nodes::*;
use crate::harness::*;

fn internal_calls(nodes: &Nodes, place: usize) -> NodeServiceClient<Channel> {
    let address = nodes.broker(place).internal_addr();
    NodeServiceClient::new(
        Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy(),
    )
}

/// All belong to one cluster, which has these nodes.
fn assert_one_cluster(nodes: &Nodes) {
    let ids: BTreeSet<String> = (0..3).map(|place| nodes.cluster_id(place)).collect();
    assert_eq!(ids.len(), 1, "one cluster: {ids:?}");
    assert!(!ids.contains(""));
    for place in 0..3 {
        let node = nodes.broker(place).node();
        assert_eq!(node.id(), place as u64 + 1);
        assert_eq!(node.view().nodes.keys().copied().collect::<Vec<_>>(), [1, 2, 3]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_founded_before_the_last_seed_is_there_whatever_the_order_of_start() {
    for order in [[2, 1, 0], [0, 2, 1]] {
        let mut nodes = Nodes::prepare(|_| {});
        let missing = nodes.seeds()[order[2]].clone();
        nodes.run(order[0]).await;
        nodes.run(order[1]).await;
        for place in [order[0], order[1]] {
            nodes.waits_for(place, &["waiting for every seed", &missing]).await;
            assert_eq!(nodes.cluster_id(place), "");
            let http = nodes.broker(place).http_addr();
            let (code, body) = http_get(http, "/readyz?verbose").await;
            assert_eq!(code, 503);
            assert!(body.contains(&missing), "{body}");
            let create = v1::TopicServiceCreateRequest { name: "x".into(), ..Default::default() };
            let refused = nodes.clients(place).topics().create(create).await.unwrap_err();
            assert_eq!(reason(&refused), "NOT_READY");
            assert!(refused.message().contains(&missing), "{refused}");
            let list = v1::TopicServiceListRequest::default();
            let refused = nodes.clients(place).topics().list(list).await.unwrap_err();
            assert_eq!(reason(&refused), "NOT_READY");
        }
        nodes.run(order[2]).await;
        nodes.all_ready().await;
        assert_one_cluster(&nodes);
        let founded = nodes.cluster_id(0);
        nodes.stop_all().await;
        nodes.run_all().await;
        assert_one_cluster(&nodes);
        assert_eq!(nodes.cluster_id(0), founded, "founded once");
        nodes.stop_all().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_different_seed_lists_found_nothing_and_both_are_named() {
    let mut nodes = Nodes::prepare(|_| {});
    let right = nodes.seeds();
    let turned: Vec<String> = right.iter().rev().cloned().collect();
    nodes.config(2).node.seeds = turned.clone();
    for place in 0..3 {
        nodes.run(place).await;
    }
    let (right_text, turned_text) = (format!("{right:?}"), format!("{turned:?}"));
    for place in 0..3 {
        nodes.waits_for(place, &["another seed list", &right_text, &turned_text]).await;
    }
    for place in 0..3 {
        assert_eq!(nodes.cluster_id(place), "");
    }
    // The list is mended, and the place in it decides the node's id as if it had been right from the start.
    nodes.stop(2).await;
    nodes.config(2).node.seeds = right;
    nodes.run_all().await;
    assert_one_cluster(&nodes);
    nodes.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_seed_says_so_and_neither_votes_nor_founds_while_the_others_go_on() {
    let mut nodes = Nodes::start(|_| {}).await;
    nodes.clients(0).create_topic("orders", 1).await;
    let group = nodes.groups("orders")[0];
    let cluster = nodes.cluster_id(0);
    nodes.stop(2).await;
    nodes.wipe(2);
    nodes.run(2).await;
    nodes.waits_for(2, &[&cluster, "this data directory is empty"]).await;
    nodes.clients(0).publish("orders", 0, &["two of three"]).await;
    assert_eq!(nodes.cluster_id(2), "");
    assert!(nodes.broker(2).node().replica(group).is_none());
    // With one more node away there is no majority, whatever the wiped one would say.
    nodes.stop(1).await;
    until("the last member stepping down", || async {
        !nodes.replica(0, group).is_leader() && nodes.broker(0).node().metadata_leader() != 1
    })
    .await;
    let refused = nodes.produce(0, "orders", v1::Acks::Leader, "alone", 1_000).await.unwrap_err();
    assert_eq!(refused.reason, "NOT_LEADER");
    nodes.waits_for(2, &[&cluster, "this data directory is empty"]).await;
    nodes.run(1).await;
    soon("being ready", nodes.broker(1).wait_ready()).await;
    let ack = nodes.clients(1).publish("orders", 0, &["two again"]).await;
    assert_eq!(ack.base_offset, 1);
    nodes.stop_all().await;
}

/// What a node would be in a cluster.
async fn member(nodes: &Nodes, place: usize) -> internal::FoundingMember {
    let request = internal::GetFoundingStateRequest { seeds: nodes.seeds() };
    let answer = internal_calls(nodes, place).get_founding_state(request).await.unwrap();
    let mut member = answer.into_inner().member.unwrap();
    member.node_id = place as u64 + 1;
    member
}

async fn promise(nodes: &Nodes, place: usize, founding: &internal::Founding) {
    let request = internal::PromiseFoundingRequest { founding: Some(founding.clone()) };
    internal_calls(nodes, place).promise_founding(request).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_between_promise_and_confirmation_is_completed_with_the_promised_cluster() {
    for is_confirmed in [false, true] {
        let mut nodes = Nodes::prepare(|_| {});
        // Never two of them at once, so that nothing happens but what is asked for here.
        let mut members = Vec::new();
        for place in 0..3 {
            nodes.run(place).await;
            members.push(member(&nodes, place).await);
            nodes.stop(place).await;
        }
        let founding = internal::Founding {
            cluster_id: "promised".into(),
            members,
            seeds: nodes.seeds(),
            feature_level: 1,
        };
        for place in [1, 2, 0] {
            nodes.run(place).await;
            promise(&nodes, place, &founding).await;
            if place == 0 && is_confirmed {
                let request = internal::ConfirmFoundingRequest { cluster_id: "promised".into() };
                internal_calls(&nodes, 0).confirm_founding(request).await.unwrap();
            }
            nodes.stop(place).await;
        }
        for place in [2, 1, 0] {
            nodes.run(place).await;
        }
        nodes.all_ready().await;
        assert_one_cluster(&nodes);
        assert_eq!(nodes.cluster_id(1), "promised");
        nodes.stop_all().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn promises_that_do_not_fit_are_refused_and_not_kept() {
    let mut nodes = Nodes::prepare(|_| {});
    nodes.run(1).await;
    let own = member(&nodes, 1).await;
    let founding = |change: &dyn Fn(&mut internal::Founding)| {
        let mut founding = internal::Founding {
            cluster_id: "c".into(),
            members: vec![own.clone()],
            seeds: nodes.seeds(),
            feature_level: 1,
        };
        change(&mut founding);
        internal::PromiseFoundingRequest { founding: Some(founding) }
    };
    let bad = [
        founding(&|founding| founding.seeds.reverse()),
        founding(&|founding| founding.members.clear()),
        founding(&|founding| founding.members[0].incarnation = "another".into()),
        founding(&|founding| founding.members[0].node_id = 7),
        founding(&|founding| founding.cluster_id.clear()),
        internal::PromiseFoundingRequest { founding: None },
    ];
    let mut calls = internal_calls(&nodes, 1);
    for request in bad {
        let text = format!("{request:?}");
        let refused = calls.promise_founding(request).await.expect_err(&text);
        assert_eq!(reason(&refused), "INVALID_ARGUMENT", "{text}");
    }
    let request = internal::ConfirmFoundingRequest { cluster_id: "c".into() };
    assert_eq!(reason(&calls.confirm_founding(request).await.unwrap_err()), "INVALID_ARGUMENT");
    let state = calls.get_founding_state(internal::GetFoundingStateRequest::default()).await;
    assert_eq!(state.unwrap().into_inner().promised_cluster_id, "");
    nodes.stop_all().await;
}
