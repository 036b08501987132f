//! The one table between errors and what goes over the wire.
//!
//! Owns: which gRPC code a reason has, the facts that go with it, and the way back for calls between nodes. Never: text
//! that anybody branches on.

use std::collections::{BTreeMap, HashMap};

use highwater_proto::v1;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::cluster::NodeId;
use crate::cluster::peer::PeerError;
use crate::error::BrokerError;

/// `ErrorInfo.domain` of every error.
pub(super) const DOMAIN: &str = "highwater";

/// A call that failed here, or at the node it was passed on to.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// Failed here.
    #[error(transparent)]
    Here(#[from] BrokerError),
    /// Another node answered with this error; it is passed on as it is.
    #[error("{message}")]
    There { reason: String, message: String, metadata: BTreeMap<String, String> },
}

impl CallError {
    /// Whether the partition's leader is elsewhere, so that nothing was done and another try may find it.
    pub(super) fn is_not_leader(&self) -> bool {
        match self {
            Self::Here(error) => matches!(error, BrokerError::NotLeader { .. }),
            Self::There { reason, .. } => reason == "NOT_LEADER",
        }
    }
}

/// The gRPC code of a reason. Reasons are those of [`BrokerError::reason`].
pub(super) fn code(reason: &str) -> Code {
    match reason {
        "UNKNOWN_TOPIC" | "UNKNOWN_PARTITION" | "UNKNOWN_GROUP" | "UNKNOWN_INSTANCE" => {
            Code::NotFound
        }
        "TOPIC_EXISTS" => Code::AlreadyExists,
        "INVALID_BATCH" | "TOO_LARGE" | "INVALID_ARGUMENT" => Code::InvalidArgument,
        "OFFSET_OUT_OF_RANGE" => Code::OutOfRange,
        "TOPIC_ID_MISMATCH"
        | "OUT_OF_ORDER_SEQUENCE"
        | "PRODUCER_FENCED"
        | "UNKNOWN_PRODUCER"
        | "GROUP_NOT_EMPTY"
        | "MEMBER_FENCED" => Code::FailedPrecondition,
        // Libraries retry UNAVAILABLE on their own, which is right where nothing was written and only there.
        "NOT_LEADER" | "NOT_COORDINATOR" | "NOT_READY" | "QUARANTINED" => Code::Unavailable,
        "OUTCOME_UNKNOWN" => Code::Unknown,
        "OVERLOADED" | "DISK_FULL" => Code::ResourceExhausted,
        "TIMEOUT" => Code::DeadlineExceeded,
        "UNIMPLEMENTED" => Code::Unimplemented,
        _ => Code::Internal,
    }
}

/// The facts of an error, by name.
fn facts(
    error: &BrokerError,
    address_of: impl FnOnce(NodeId) -> Option<String>,
) -> BTreeMap<String, String> {
    let pairs: Vec<(&str, String)> = match error {
        BrokerError::NotLeader { leader: Some(leader) }
        | BrokerError::NotCoordinator { leader: Some(leader) } => {
            let mut pairs = vec![("leader_node_id", leader.to_string())];
            pairs.extend(address_of(*leader).map(|address| ("leader_address", address)));
            pairs
        }
        BrokerError::OffsetOutOfRange { log_start_offset, high_watermark, .. } => vec![
            ("log_start_offset", log_start_offset.to_string()),
            ("high_watermark", high_watermark.to_string()),
        ],
        BrokerError::OutOfOrderSequence { expected, .. } => {
            vec![("expected_sequence", expected.to_string())]
        }
        BrokerError::ProducerFenced { current, .. } => {
            vec![("current_epoch", current.to_string())]
        }
        BrokerError::TopicIdMismatch { found, .. } => vec![("topic_id", found.clone())],
        BrokerError::UnknownPartition { partitions, .. } => {
            vec![("partitions", partitions.to_string())]
        }
        BrokerError::TooLarge { bytes_max, setting, .. } => {
            vec![("bytes_max", bytes_max.to_string()), ("setting", (*setting).to_owned())]
        }
        BrokerError::MemberFenced { cause, .. } => vec![("cause", (*cause).to_owned())],
        BrokerError::InvalidArgument { field, .. } => vec![("field", field.clone())],
        _ => Vec::new(),
    };
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// The status of a failed unary call. Beside the reason's facts its metadata says `retriable` and
/// `may_have_been_written`, each "true" or "false".
pub(super) fn status(
    error: &BrokerError,
    address_of: impl FnOnce(NodeId) -> Option<String>,
) -> Status {
    let mut metadata = facts(error, address_of);
    metadata.insert("retriable".to_owned(), error.is_retriable().to_string());
    metadata.insert("may_have_been_written".to_owned(), error.may_have_been_written().to_string());
    with_info(error.reason(), &error.to_string(), metadata)
}

/// A status with the reason and facts of an error, wherever it arose.
fn with_info(reason: &str, message: &str, metadata: BTreeMap<String, String>) -> Status {
    let metadata: HashMap<String, String> = metadata.into_iter().collect();
    let details = ErrorDetails::with_error_info(reason, DOMAIN, metadata);
    Status::with_error_details(code(reason), message, details)
}

/// The same for an error that may come from another node.
pub(super) fn call_status(
    error: &CallError,
    address_of: impl FnOnce(NodeId) -> Option<String>,
) -> Status {
    match error {
        CallError::Here(error) => status(error, address_of),
        CallError::There { reason, message, metadata } => {
            let mut metadata = metadata.clone();
            // The node that answered does not know which listener the client came through.
            let leader = metadata.get("leader_node_id").and_then(|id| id.parse().ok());
            if let Some(address) = leader.and_then(address_of) {
                metadata.insert("leader_address".to_owned(), address);
            }
            with_info(reason, message, metadata)
        }
    }
}

/// The failure of one item within a stream.
pub(super) fn detail(
    error: &BrokerError,
    address_of: impl FnOnce(NodeId) -> Option<String>,
) -> v1::ErrorDetail {
    v1::ErrorDetail {
        code: code(error.reason()).into(),
        reason: error.reason().to_owned(),
        message: error.to_string(),
        metadata: facts(error, address_of),
        retriable: error.is_retriable(),
        may_have_been_written: error.may_have_been_written(),
    }
}

/// The way back: what another node's status means. A status without our details was made by the transport.
pub(super) fn peer_error(address: &str, status: &Status) -> PeerError {
    match status.get_details_error_info() {
        Some(info) if info.domain == DOMAIN => PeerError::Refused {
            address: address.to_owned(),
            reason: info.reason,
            message: status.message().to_owned(),
            metadata: info.metadata.into_iter().collect(),
        },
        _ => {
            PeerError::Unreachable { address: address.to_owned(), why: status.message().to_owned() }
        }
    }
}

/// What a failed call to another node means to the caller, where the call changed nothing.
pub(super) fn from_peer(error: PeerError) -> CallError {
    match error {
        PeerError::Refused { reason, message, metadata, .. } => {
            CallError::There { reason, message, metadata }
        }
        unreachable @ PeerError::Unreachable { .. } => {
            CallError::Here(BrokerError::NotReady { why: unreachable.to_string() })
        }
    }
}

/// The name of a code as `highwater_requests_total` shows it.
pub(super) fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use highwater_proto::batch::BatchError;

    use super::*;

    fn every_error() -> Vec<BrokerError> {
        let text = || "x".to_owned();
        vec![
            BrokerError::UnknownTopic { topic: text() },
            BrokerError::UnknownPartition { topic: text(), partition: 4, partitions: 3 },
            BrokerError::TopicIdMismatch { topic: text(), expected: text(), found: "new".into() },
            BrokerError::NotLeader { leader: Some(2) },
            BrokerError::NotLeader { leader: None },
            BrokerError::OutcomeUnknown { why: "x" },
            BrokerError::InvalidBatch(BatchError::Empty),
            BrokerError::TooLarge { what: "record", bytes: 2, bytes_max: 1, setting: "s" },
            BrokerError::OutOfOrderSequence { producer_id: 1, expected: 2, found: 3 },
            BrokerError::ProducerFenced { producer_id: 1, epoch: 2, current: 3 },
            BrokerError::UnknownProducer { producer_id: 1 },
            BrokerError::OffsetOutOfRange { offset: 9, log_start_offset: 1, high_watermark: 5 },
            BrokerError::NotCoordinator { leader: Some(2) },
            BrokerError::UnknownGroup { group: text() },
            BrokerError::GroupNotEmpty { group: text(), members: 2 },
            BrokerError::MemberFenced { cause: "SILENT", why: "x" },
            BrokerError::UnknownInstance { service: text(), id: text() },
            BrokerError::Overloaded { what: "x", limit: text() },
            BrokerError::DiskFull,
            BrokerError::Quarantined { why: text() },
            BrokerError::NotReady { why: text() },
            BrokerError::Timeout { what: text() },
            BrokerError::TopicExists { topic: text() },
            BrokerError::InvalidArgument { field: text(), why: text() },
            BrokerError::Unimplemented { what: "x" },
            BrokerError::Internal(text()),
        ]
    }

    fn address_of(node: NodeId) -> Option<String> {
        Some(format!("node-{node}:7420"))
    }

    #[test]
    fn every_error_keeps_reason_message_and_facts_on_its_way_to_a_peer() {
        for error in every_error() {
            let status = status(&error, address_of);
            assert_eq!(status.code(), code(error.reason()), "{error}");
            let PeerError::Refused { reason, message, metadata, address } =
                peer_error("h:1", &status)
            else {
                panic!("{error} lost its details");
            };
            assert_eq!((reason.as_str(), address.as_str()), (error.reason(), "h:1"));
            assert_eq!(message, error.to_string());
            assert_eq!(metadata["retriable"], error.is_retriable().to_string());
            let here = detail(&error, address_of);
            for (name, value) in &here.metadata {
                assert_eq!(metadata.get(name), Some(value));
            }
        }
    }

    #[test]
    fn only_defects_are_internal() {
        for error in every_error() {
            let is_defect = matches!(error, BrokerError::Internal(_));
            assert_eq!(code(error.reason()) == Code::Internal, is_defect, "{error}");
        }
    }

    #[test]
    fn what_may_have_been_written_is_never_unavailable() {
        for error in every_error() {
            if error.may_have_been_written() {
                assert_ne!(code(error.reason()), Code::Unavailable, "{error}");
            }
        }
    }

    #[test]
    fn not_leader_says_who_leads_and_where() {
        let detail = detail(&BrokerError::NotLeader { leader: Some(2) }, address_of);
        assert_eq!(detail.metadata["leader_node_id"], "2");
        assert_eq!(detail.metadata["leader_address"], "node-2:7420");
        assert!(detail.retriable && !detail.may_have_been_written);
    }

    #[test]
    fn an_error_passed_on_gets_the_address_of_the_clients_listener() {
        let there = from_peer(peer_error(
            "h:1",
            &status(&BrokerError::NotLeader { leader: Some(3) }, |_| None),
        ));
        assert!(there.is_not_leader());
        let status = call_status(&there, address_of);
        assert_eq!(status.code(), Code::Unavailable);
        let info = status.get_details_error_info().unwrap();
        assert_eq!(info.metadata["leader_address"], "node-3:7420");
    }

    #[test]
    fn a_status_of_the_transport_means_unreachable() {
        let error = peer_error("h:1", &Status::unavailable("connection refused"));
        assert!(
            matches!(&error, PeerError::Unreachable { why, .. } if why == "connection refused")
        );
        let CallError::Here(BrokerError::NotReady { why }) = from_peer(error) else {
            panic!("not reachable means not ready");
        };
        assert!(why.contains("h:1"));
    }
}
