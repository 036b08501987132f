//! Snapshots of every shape: a change here breaks scripts.

use highwater_client::{Acks, BrokerDescription, Header, NodeState, PartitionState};
use insta::assert_snapshot;

use super::*;

fn json<T: Serialize>(shape: &T) -> String {
    serde_json::to_string(shape).unwrap()
}

#[test]
fn consume_prints_text_where_it_is_utf8_and_base64_elsewhere() {
    let mut event = Event {
        topic: "orders".into(),
        partition: 1,
        offset: 42,
        timestamp_ms: 1_700_000_000_000,
        key: Some("customer-7".into()),
        value: Some(Bytes::from_static(&[0xff, 0x00])),
        headers: vec![Header::new("source", "shop"), Header { key: "empty".into(), value: None }],
    };
    assert_snapshot!(json(&RecordShape::from(&event)), @r#"{"topic":"orders","partition":1,"offset":42,"timestamp_ms":1700000000000,"key":"customer-7","value":{"base64":"/wA="},"headers":[{"key":"source","value":"shop"},{"key":"empty","value":null}]}"#);
    event.key = None;
    event.value = None;
    event.headers.clear();
    assert_snapshot!(json(&RecordShape::from(&event)), @r#"{"topic":"orders","partition":1,"offset":42,"timestamp_ms":1700000000000,"key":null,"value":null,"headers":[]}"#);
}

#[test]
fn produce_prints_where_each_record_went() {
    let ack = Ack {
        partition: 1,
        offset: 42,
        epoch: 3,
        duplicate: false,
        reached: Acks::QuorumFsync,
        append_time_ms: 0,
    };
    assert_snapshot!(json(&AckShape::new("orders", &ack)), @r#"{"topic":"orders","partition":1,"offset":42,"epoch":3,"duplicate":false,"acks":"quorum-fsync"}"#);
}

#[test]
fn topic_describe_prints_partitions_and_configuration() {
    let topic = TopicDescription {
        name: "orders".to_owned(),
        id: "7a6c".to_owned(),
        replication_factor: 3,
        partitions: vec![
            PartitionDescription {
                partition: 0,
                leader: Some(2),
                epoch: 5,
                replicas: vec![2, 3, 1],
                in_sync: vec![2, 3],
                log_start_offset: 10,
                high_watermark: 42,
                size_bytes: 65_536,
                state: PartitionState::UnderReplicated,
                quarantined: vec![],
            },
            PartitionDescription {
                partition: 1,
                leader: None,
                epoch: 0,
                replicas: vec![3, 1, 2],
                in_sync: vec![],
                log_start_offset: 0,
                high_watermark: 0,
                size_bytes: 0,
                state: PartitionState::Quarantined,
                quarantined: vec![QuarantinedReplica {
                    node: 1,
                    why: "rot".to_owned(),
                    repair: String::new(),
                }],
            },
        ],
        config: BTreeMap::from([("retention.ms".to_owned(), "604800000".to_owned())]),
    };
    assert_snapshot!(json(&TopicShape::from(topic)), @r#"{"name":"orders","id":"7a6c","partitions":[{"partition":0,"leader":2,"epoch":5,"replicas":[2,3,1],"in_sync":[2,3],"log_start_offset":10,"high_watermark":42,"size_bytes":65536,"state":"under-replicated"},{"partition":1,"leader":null,"epoch":0,"replicas":[3,1,2],"in_sync":[],"log_start_offset":0,"high_watermark":0,"size_bytes":0,"state":"quarantined","quarantined":[{"node":1,"why":"rot","repair":""}]}],"config":{"retention.ms":"604800000"}}"#);
}

#[test]
fn topic_list_options_and_trim_have_their_keys() {
    let topic = TopicListing {
        name: "orders".to_owned(),
        id: "7a6c".to_owned(),
        partitions: 6,
        replication_factor: 3,
        config: BTreeMap::new(),
    };
    assert_snapshot!(json(&TopicListShape::from(topic)), @r#"{"name":"orders","id":"7a6c","partitions":6,"replication_factor":3,"config":{}}"#);
    let option = TopicOption {
        key: "retention.bytes".to_owned(),
        default_value: "-1".to_owned(),
        bounds: "-1 or 0..".to_owned(),
        description: "How much to keep.".to_owned(),
    };
    assert_snapshot!(json(&OptionShape::from(option)), @r#"{"key":"retention.bytes","default":"-1","bounds":"-1 or 0..","description":"How much to keep."}"#);
    let trim = TrimShape { topic: "orders".to_owned(), partition: 0, log_start_offset: 9 };
    assert_snapshot!(json(&trim), @r#"{"topic":"orders","partition":0,"log_start_offset":9}"#);
}

#[test]
fn cluster_verbs_have_their_keys() {
    let node = |id, alive| NodeDescription {
        id,
        address: format!("h{id}:7420"),
        internal_address: format!("h{id}:7421"),
        alive,
        leaders: 2,
        replicas: 6,
        version: "0.1.0".to_owned(),
        state: NodeState::Active,
        rack: "r1".to_owned(),
    };
    let cluster = ClusterInfo {
        broker: BrokerDescription {
            cluster_id: "c0ffee".to_owned(),
            node_id: 1,
            version: "0.1.0".to_owned(),
            feature_level: 1,
        },
        metadata_leader: Some(1),
        nodes: vec![node(1, true), node(2, false)],
        topics: 1,
        partitions: 6,
        removed_nodes: vec![7],
    };
    assert_snapshot!(json(&ClusterShape::from(cluster)), @r#"{"cluster_id":"c0ffee","version":"0.1.0","feature_level":1,"metadata_leader":1,"nodes":2,"nodes_alive":1,"topics":1,"partitions":6}"#);
    assert_snapshot!(json(&NodeShape::from(node(1, true))), @r#"{"id":1,"address":"h1:7420","internal_address":"h1:7421","alive":true,"leaders":2,"replicas":6,"version":"0.1.0","state":"active","rack":"r1"}"#);
    assert_snapshot!(json(&NodeShape::removed(7)), @r#"{"id":7,"address":"","internal_address":"","alive":false,"leaders":0,"replicas":0,"version":"","state":"removed","rack":""}"#);
    let health = ClusterHealth {
        healthy: false,
        problems: vec!["node 2 does not answer".to_owned()],
        leaderless_partitions: 0,
        under_replicated_partitions: 6,
        dead_nodes: vec![2],
        in_progress: vec!["node 3 is draining".to_owned()],
    };
    assert_snapshot!(json(&HealthShape::from(health)), @r#"{"healthy":false,"problems":["node 2 does not answer"],"leaderless_partitions":0,"under_replicated_partitions":6,"dead_nodes":[2],"in_progress":["node 3 is draining"]}"#);
    let plan = RebalancePlan {
        moves: vec![PlannedMove {
            topic: "orders".to_owned(),
            partition: 0,
            from: vec![1, 2],
            to: vec![3, 2],
        }],
        started: 0,
    };
    assert_snapshot!(json(&PlanShape::from(plan)), @r#"{"moves":[{"topic":"orders","partition":0,"from":[1,2],"to":[3,2]}],"started":0}"#);
    let leader = LeaderShape { topic: "orders".to_owned(), partition: 0, leader: 3 };
    assert_snapshot!(json(&leader), @r#"{"topic":"orders","partition":0,"leader":3}"#);
}

#[test]
fn profile_list_and_version_have_their_keys() {
    let profile =
        ProfileShape { name: "local".to_owned(), servers: "h:7420".to_owned(), current: true };
    assert_snapshot!(json(&profile), @r#"{"name":"local","servers":"h:7420","current":true}"#);
    assert_snapshot!(json(&VersionShape { version: "0.1.0" }), @r#"{"version":"0.1.0"}"#);
}
