//! What the first release says on the wire and keeps on disk, held for ever: a node of another version must understand it.
//!
//! `fixtures/wire-1.txt` has every field of every message by number and kind: lines may be added, none may change or go.
//! `fixtures/messages-1.txt` has messages as bytes: they decode to what `samples` says, and encode to the same bytes.
//! Neither is written again for what it has; `write_the_fixtures`, which is ignored, says how they were made.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::PathBuf;

use highwater_proto::internal::*;
use highwater_proto::v1;
use metadata_command::Command;
use prost::Message;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FileDescriptorSet};

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// One line for each field, call and value of an enumeration.
fn contract() -> BTreeSet<String> {
    let bytes = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
    let descriptors = FileDescriptorSet::decode(&bytes[..]).unwrap();
    let mut lines = BTreeSet::new();
    for file in descriptors.file.iter().filter(|file| file.package().starts_with("highwater.")) {
        for message in &file.message_type {
            describe(file.package(), message, &mut lines);
        }
        for kind in &file.enum_type {
            for value in &kind.value {
                let name = format!("{}.{}", file.package(), kind.name());
                lines.insert(format!("{name} {} {}", value.number(), value.name()));
            }
        }
        for service in &file.service {
            for call in &service.method {
                let way = |streams, kind: &str| match streams {
                    true => format!("stream {kind}"),
                    false => kind.to_owned(),
                };
                lines.insert(format!(
                    "{}.{}/{} {} -> {}",
                    file.package(),
                    service.name(),
                    call.name(),
                    way(call.client_streaming(), call.input_type()),
                    way(call.server_streaming(), call.output_type()),
                ));
            }
        }
    }
    lines
}

fn describe(scope: &str, message: &DescriptorProto, lines: &mut BTreeSet<String>) {
    let name = format!("{scope}.{}", message.name());
    for field in &message.field {
        let kind = match field.r#type() {
            Type::Message | Type::Enum => field.type_name().to_owned(),
            plain => format!("{plain:?}").to_lowercase(),
        };
        let repeated = if field.label() == Label::Repeated { "repeated " } else { "" };
        lines.insert(format!("{name} {} {repeated}{kind} {}", field.number(), field.name()));
    }
    for kind in &message.enum_type {
        for value in &kind.value {
            lines.insert(format!("{name}.{} {} {}", kind.name(), value.number(), value.name()));
        }
    }
    for inner in &message.nested_type {
        describe(&name, inner, lines);
    }
}

fn member() -> FoundingMember {
    FoundingMember {
        node_id: 3,
        incarnation: "b7f3".into(),
        internal_address: "node-3:7421".into(),
        listeners: vec![ListenerAddress { name: "default".into(), address: "node-3:7420".into() }],
        version: "0.1.0".into(),
        rack: "r1".into(),
        feature_level: 1,
    }
}

fn command(command: Command) -> MetadataCommand {
    MetadataCommand { version: 1, command: Some(command) }
}

fn members() -> RaftConfState {
    RaftConfState {
        voters: vec![1, 2, 9],
        learners: vec![4],
        voters_outgoing: vec![1, 2, 3],
        learners_next: vec![5],
        auto_leave: true,
    }
}

/// Commands of the metadata group, as they are in its log.
fn commands() -> Vec<(&'static str, MetadataCommand)> {
    let placement = PartitionPlacement { nodes: vec![1, 2, 3] };
    let config = BTreeMap::from([("retention.ms".to_owned(), "1000".to_owned())]);
    let topic = ("orders".to_owned(), "1f0e".to_owned());
    let create = CreateTopic {
        name: topic.0.clone(),
        id: topic.1.clone(),
        placements: vec![placement.clone()],
        config: config.clone(),
    };
    let update =
        UpdateTopic { name: topic.0.clone(), set: config, unset: vec!["segment.bytes".into()] };
    let add = AddPartitions {
        name: topic.0.clone(),
        id: topic.1.clone(),
        partitions: 1,
        placements: vec![placement],
    };
    let started = NodeStarted {
        node_id: 3,
        incarnation: "b7f3".into(),
        boot_counter: 7,
        internal_address: "node-3:7421".into(),
        listeners: member().listeners,
        version: "0.1.0".into(),
        rack: "r1".into(),
        feature_level: 1,
    };
    let reassign = ReassignPartition {
        group_id: 5,
        node_ids: vec![1, 2, 4],
        replace_node_ids: vec![2],
        reassignments: 6,
    };
    let finish = FinishReassignment { group_id: 5, reassignments: 7 };
    let raise = RaiseFeatureLevel { to: 2, node_ids: vec![1, 2, 3] };
    let lease = LeaseProducerIds { node_id: 1, count: 1_000 };
    vec![
        ("create_topic", command(Command::CreateTopic(create))),
        ("update_topic", command(Command::UpdateTopic(update))),
        ("delete_topic", command(Command::DeleteTopic(DeleteTopic { name: topic.0, id: topic.1 }))),
        ("node_started", command(Command::NodeStarted(started))),
        ("lease_producer_ids", command(Command::LeaseProducerIds(lease))),
        ("reassign_partition", command(Command::ReassignPartition(reassign))),
        ("finish_reassignment", command(Command::FinishReassignment(finish))),
        ("join_node", command(Command::JoinNode(JoinNode { node: Some(member()) }))),
        ("admit_node", command(Command::AdmitNode(AdmitNode { node_id: 3 }))),
        ("drain_node", command(Command::DrainNode(DrainNode { node_id: 3 }))),
        ("retire_node", command(Command::RetireNode(RetireNode { node_id: 3 }))),
        ("add_partitions", command(Command::AddPartitions(add))),
        ("raise_feature_level", command(Command::RaiseFeatureLevel(raise))),
    ]
}

fn image() -> MetadataImage {
    let replica = |replica_id, node_id| ReplicaImage { replica_id, node_id };
    MetadataImage {
        cluster_id: "c0ffee".into(),
        feature_level: 1,
        nodes: vec![NodeImage {
            id: 3,
            incarnation: "b7f3".into(),
            boot_counter: 7,
            internal_address: "node-3:7421".into(),
            listeners: member().listeners,
            version: "0.1.0".into(),
            metadata_replica_id: 8,
            rack: "r1".into(),
            is_draining: true,
            awaits_directory: true,
        }],
        topics: vec![TopicImage {
            name: "orders".into(),
            id: "1f0e".into(),
            partitions: vec![PartitionImage {
                group_id: 5,
                replicas: vec![replica(10, 1), replica(11, 2)],
                target: vec![replica(10, 1), replica(13, 4)],
                leaving: vec![replica(12, 3)],
                removed_replica_ids: vec![9],
                joined_from: 12,
                reassignments: 2,
            }],
            config: BTreeMap::from([("cleanup.policy".to_owned(), "compact".to_owned())]),
        }],
        deleted_topic_ids: vec!["0bad".into()],
        next_group_id: 6,
        next_replica_id: 14,
        next_producer_id: 1_001,
        removed_node_ids: vec![2],
        applied_index: 77,
        leases: Vec::new(),
    }
}

fn instance() -> v1::ServiceInstance {
    v1::ServiceInstance {
        service: "pricing".into(),
        id: "5ca1ab1e".into(),
        address: "10.0.0.7:9000".into(),
        attributes: BTreeMap::from([("requests".to_owned(), "pricing.requests".to_owned())]),
        lease_ms: 10_000,
    }
}

/// What came with feature level 2: commands, and the image that they lead to.
fn level_two() -> Vec<Sample> {
    let grant = GrantLease { instance: Some(instance()) };
    let ended = EndedLease { service: "pricing".into(), id: "5ca1ab1e".into(), granted_index: 78 };
    let end = EndLeases { leases: vec![ended] };
    let leases = vec![LeaseImage { instance: Some(instance()), granted_index: 78 }];
    vec![
        sample("grant_lease", command(Command::GrantLease(grant))),
        sample("end_leases", command(Command::EndLeases(end))),
        sample("image_with_leases", MetadataImage { leases, feature_level: 2, ..image() }),
    ]
}

fn batch() -> PeerBatch {
    let entry = RaftEntry {
        entry_type: 0,
        term: 4,
        index: 21,
        data: vec![1, 2, 3].into(),
        context: vec![4, 5].into(),
    };
    let snapshot = RaftSnapshot {
        data: vec![6].into(),
        metadata: Some(RaftSnapshotMetadata { conf_state: Some(members()), index: 20, term: 3 }),
    };
    let message = RaftMessage {
        msg_type: 3,
        to: 11,
        from: 10,
        term: 4,
        log_term: 3,
        index: 20,
        entries: vec![entry],
        commit: 19,
        commit_term: 3,
        snapshot: Some(snapshot),
        request_snapshot: 1,
        reject: true,
        reject_hint: 18,
        context: vec![7].into(),
        priority: -1,
    };
    let appended =
        AppendedAck { group_id: 5, from_replica: 11, to_replica: 10, term: 4, index: 21 };
    PeerBatch {
        messages: vec![GroupMessage { group_id: 5, message: Some(message), wants_appended: true }],
        appended: vec![appended],
        leaders: vec![LeaderStatus { group_id: 5, term: 4 }],
        ..PeerBatch::default()
    }
}

/// What groups that sleep add: a leader's question, a follower's word, a leader that goes, and the beat that stands in for heartbeats.
fn sleeping() -> PeerBatch {
    let quiesce = |kind: QuiesceKind, round| Quiesce {
        group_id: 5,
        from_replica: 10,
        to_replica: 11,
        term: 4,
        index: 21,
        round,
        kind: kind.into(),
    };
    let quiesces = vec![
        quiesce(QuiesceKind::Ask, 6),
        quiesce(QuiesceKind::Agreed, 6),
        quiesce(QuiesceKind::Over, 7),
    ];
    PeerBatch { quiesces, beat: 7, ..PeerBatch::default() }
}

/// What came with feature level 3.
fn level_three() -> Vec<Sample> {
    let replace = ReplaceMetadataReplica { node_id: 3, incarnation: "b7f3".into(), replica_id: 8 };
    let join = JoinClusterRequest { node: Some(member()), replaces_metadata_replica_id: 8 };
    vec![
        sample("replace_metadata_replica", command(Command::ReplaceMetadataReplica(replace))),
        sample("join_in_place_of_a_replica", join),
    ]
}

/// From bytes to a message and back to bytes.
type Again = Box<dyn Fn(&[u8]) -> Vec<u8>>;

/// A message as bytes, and the way there and back.
struct Sample {
    name: String,
    bytes: Vec<u8>,
    /// Decodes bytes and encodes the outcome, if that is what the sample says.
    again: Again,
}

fn sample<M: Message + Default + PartialEq + std::fmt::Debug + 'static>(
    name: &str,
    message: M,
) -> Sample {
    let bytes = message.encode_to_vec();
    let again = move |bytes: &[u8]| {
        let decoded = M::decode(bytes).unwrap();
        assert_eq!(decoded, message);
        decoded.encode_to_vec()
    };
    Sample { name: name.to_owned(), bytes, again: Box::new(again) }
}

fn samples() -> Vec<Sample> {
    let hello = PeerHello {
        cluster_id: "c0ffee".into(),
        node_id: 3,
        incarnation: "b7f3".into(),
        boot_counter: 7,
        version: "0.1.0".into(),
        feature_level: 1,
        to_node_id: 1,
    };
    let exchange = |message| ExchangeRequest { message: Some(message) };
    let founding = Founding {
        cluster_id: "c0ffee".into(),
        members: vec![member()],
        seeds: vec!["node-3:7421".into()],
        feature_level: 1,
    };
    let joined = JoinClusterResponse {
        cluster_id: "c0ffee".into(),
        node_id: 3,
        metadata_replica_id: 8,
        feature_level: 1,
        nodes: image().nodes,
    };
    let outcome = MetadataOutcome {
        reason: "TOPIC_EXISTS".into(),
        message: "exists".into(),
        first_producer_id: 1,
        applied_index: 77,
    };
    let replica = ReplicaState {
        group_id: 5,
        replica_id: 10,
        topic_id: "1f0e".into(),
        partition: 2,
        members: Some(members()),
        log_start_offset: 100,
        applied_index: 21,
        nodes: BTreeMap::from([(10, 1), (11, 2)]),
        members_index: 22,
        highest_replica_id: 13,
        joined: true,
    };
    let key = GroupKey {
        version: 1,
        subject: Some(group_key::Subject::Offset(OffsetKey {
            group: "billing".into(),
            topic: "orders".into(),
            partition: 2,
        })),
    };
    let value = OffsetValue {
        offset: 41,
        topic_id: "1f0e".into(),
        metadata: "m".into(),
        committed_at_ms: 1_700_000_000_000,
    };
    let mut all: Vec<Sample> =
        commands().into_iter().map(|(name, command)| sample(name, command)).collect();
    all.push(sample("hello", exchange(exchange_request::Message::Hello(hello.clone()))));
    all.push(sample("hello_answer", ExchangeResponse { hello: Some(hello) }));
    all.push(sample("batch", exchange(exchange_request::Message::Batch(batch()))));
    all.push(sample("outcome", outcome));
    all.push(sample("image", image()));
    all.push(sample("founding", founding));
    all.push(sample("joined", joined));
    all.push(sample("replica", replica));
    all.push(sample("group_key", key));
    all.push(sample("group_value", value));
    all.extend(level_two());
    all.push(sample("sleeping", exchange(exchange_request::Message::Batch(sleeping()))));
    all.extend(level_three());
    all
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
        .collect()
}

#[test]
fn nothing_that_the_first_release_says_has_changed_its_number_or_kind() {
    let now = contract();
    let text = std::fs::read_to_string(fixture("wire-1.txt")).unwrap();
    let gone: Vec<&str> = text.lines().filter(|line| !now.contains(*line)).collect();
    assert!(
        gone.is_empty(),
        "these are relied on by other versions, give what is new another number: {gone:#?}"
    );
    assert!(text.lines().count() > 300, "the fixture is whole");
}

#[test]
fn messages_of_the_first_release_decode_to_what_they_meant_and_encode_to_the_same_bytes() {
    let text = std::fs::read_to_string(fixture("messages-1.txt")).unwrap();
    let kept: BTreeMap<&str, &str> =
        text.lines().map(|line| line.split_once(' ').unwrap()).collect();
    let samples = samples();
    assert_eq!(kept.len(), samples.len(), "every line is looked at");
    for sample in samples {
        let kept = unhex(kept[sample.name.as_str()]);
        assert_eq!(hex(&(sample.again)(&kept)), hex(&kept), "{}", sample.name);
    }
}

#[test]
fn what_a_newer_version_adds_is_passed_over() {
    // Field 1000, a number, behind everything else.
    let unknown = [0xc0, 0x3e, 0x01];
    for sample in samples() {
        let newer = [&sample.bytes[..], &unknown].concat();
        assert_eq!(hex(&(sample.again)(&newer)), hex(&sample.bytes), "{}", sample.name);
    }
    // A command that this version does not know is none, and never half of another one.
    let newer = MetadataCommand::decode(&[0x08, 0x01, 0xc2, 0x3e, 0x01, 0x00][..]).unwrap();
    assert_eq!(newer, MetadataCommand { version: 1, command: None });
}

#[test]
#[ignore = "the fixtures are what the first release says; only what they lack may be added"]
fn write_the_fixtures() {
    let lines: Vec<String> = contract().into_iter().collect();
    std::fs::create_dir_all(fixture("")).unwrap();
    std::fs::write(fixture("wire-1.txt"), lines.join("\n") + "\n").unwrap();
    let lines: String = samples()
        .iter()
        .map(|sample| format!("{} {}\n", sample.name, hex(&sample.bytes)))
        .collect();
    std::fs::write(fixture("messages-1.txt"), lines).unwrap();
}
