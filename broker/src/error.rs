//! What can go wrong with a request, in the words of the client API.
//!
//! Owns: the error enum, its reasons and what they mean for a retry. Never: gRPC statuses (`rpc/status.rs` has the one
//! table that turns these into them).

use highwater_proto::batch::BatchError;

use crate::cluster::NodeId;

/// A request that could not be answered as asked. [`BrokerError::reason`] is what clients branch on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BrokerError {
    /// No topic has this name.
    #[error("topic '{topic}' does not exist; create it with 'broker-cli topic create {topic}'")]
    UnknownTopic {
        /// The name asked for.
        topic: String,
    },
    /// The topic has fewer partitions.
    #[error("topic '{topic}' has no partition {partition}: it has {partitions}, numbered from 0")]
    UnknownPartition {
        /// The topic.
        topic: String,
        /// The partition asked for.
        partition: u32,
        /// How many there are.
        partitions: u32,
    },
    /// The topic was deleted and created again since the client learned its id.
    #[error("topic '{topic}' was deleted and created again: its id is {found}, not {expected}")]
    TopicIdMismatch {
        /// The topic.
        topic: String,
        /// The id the client holds.
        expected: String,
        /// The id it has now.
        found: String,
    },
    /// Another node leads the partition, or none does at the moment.
    #[error("this node does not lead the partition; leader: {}", .leader.map_or("none known".to_owned(), |id| format!("node {id}")))]
    NotLeader {
        /// The leader as far as this node knows.
        leader: Option<NodeId>,
    },
    /// Leadership was lost, or the wait for durability ended, after the batch had been appended.
    #[error("outcome unknown: {why}; the batch may have been written")]
    OutcomeUnknown {
        /// What happened.
        why: &'static str,
    },
    /// The batch is malformed or not allowed.
    #[error("record batch refused: {0}")]
    InvalidBatch(#[from] BatchError),
    /// A batch or record is larger than the topic allows.
    #[error("{what} of {bytes} bytes is larger than the {bytes_max} allowed ({setting})")]
    TooLarge {
        /// "record", "batch" or "request".
        what: &'static str,
        /// Its size.
        bytes: u64,
        /// The limit.
        bytes_max: u64,
        /// The setting that holds the limit.
        setting: &'static str,
    },
    /// A batch of an idempotent producer does not follow its predecessor.
    #[error("out of order: producer {producer_id} sent sequence {found}, expected {expected}")]
    OutOfOrderSequence {
        /// The producer.
        producer_id: i64,
        /// The sequence that would follow.
        expected: i32,
        /// The sequence that came.
        found: i32,
    },
    /// A newer instance of this producer has written.
    #[error("producer {producer_id} with epoch {epoch} is fenced by epoch {current}")]
    ProducerFenced {
        /// The producer.
        producer_id: i64,
        /// Its epoch.
        epoch: i16,
        /// The epoch that counts.
        current: i16,
    },
    /// The partition knows nothing (any more) of the producer, whose batch is not its first.
    #[error(
        "producer {producer_id} is not known here and its batch does not start at sequence 0; ask for a new producer id"
    )]
    UnknownProducer {
        /// The producer.
        producer_id: i64,
    },
    /// The position is not in the log.
    #[error(
        "offset {offset} is out of range: records {log_start_offset} to {high_watermark} (exclusive) can be read"
    )]
    OffsetOutOfRange {
        /// The offset asked for.
        offset: i64,
        /// First retained offset.
        log_start_offset: u64,
        /// First offset that cannot be read yet.
        high_watermark: u64,
    },
    /// Another node coordinates the consumer group, or none does at the moment.
    #[error("this node does not coordinate the group; coordinator: {}", .leader.map_or("none known".to_owned(), |id| format!("node {id}")))]
    NotCoordinator {
        /// The coordinator as far as this node knows.
        leader: Option<NodeId>,
    },
    /// No consumer group has this name.
    #[error("consumer group '{group}' does not exist")]
    UnknownGroup {
        /// The name asked for.
        group: String,
    },
    /// The group has members, and only they may change its progress.
    #[error("consumer group '{group}' has {members} members; stop them first")]
    GroupNotEmpty {
        /// The group.
        group: String,
        /// How many there are.
        members: usize,
    },
    /// The caller is no member of the group any more.
    #[error("no member of the group any more: {why}")]
    MemberFenced {
        /// The same for programs: SILENT, STUCK or REPLACED.
        cause: &'static str,
        /// Why.
        why: &'static str,
    },
    /// No such instance of a service is announced, or its lease has ended.
    #[error(
        "service '{service}' has no instance '{id}': it was not announced, or its lease has ended; announce it again"
    )]
    UnknownInstance {
        /// The service.
        service: String,
        /// The instance's id.
        id: String,
    },
    /// A limit was reached; try again when the load is lower.
    #[error("overloaded: {what} is at its limit of {limit}")]
    Overloaded {
        /// What is full.
        what: &'static str,
        /// The limit, with its unit.
        limit: String,
    },
    /// The disk is full: nothing was written; reads go on.
    #[error(
        "no space left for partition data; free some space or lower retention; reads still work"
    )]
    DiskFull,
    /// The replica on this node found damaged data.
    #[error("the replica on this node is quarantined: {why}")]
    Quarantined {
        /// What it found.
        why: String,
    },
    /// The node has not joined its cluster yet, or is shutting down.
    #[error("node not ready: {why}")]
    NotReady {
        /// Why.
        why: String,
    },
    /// Nothing came of it in time, and nothing was written.
    #[error("timed out: {what}")]
    Timeout {
        /// What was waited for.
        what: String,
    },
    /// A topic of this name exists.
    #[error("topic '{topic}' exists already")]
    TopicExists {
        /// Its name.
        topic: String,
    },
    /// A field of the request has a value that is not allowed.
    #[error("{field}: {why}")]
    InvalidArgument {
        /// The field, as the client wrote it.
        field: String,
        /// What is wrong and what would be right.
        why: String,
    },
    /// Part of the API that a later version brings.
    #[error("{what} is not available in this version")]
    Unimplemented {
        /// What was asked for.
        what: &'static str,
    },
    /// A defect or a fault of the machine.
    #[error("internal error: {0}")]
    Internal(String),
}

impl BrokerError {
    /// The caller is no member any more because another process, or another stream of its own, is in its place.
    pub(crate) fn replaced() -> Self {
        Self::MemberFenced { cause: "REPLACED", why: "another stream took its place" }
    }

    /// The machine-readable reason, part of the wire contract.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::UnknownTopic { .. } => "UNKNOWN_TOPIC",
            Self::UnknownPartition { .. } => "UNKNOWN_PARTITION",
            Self::TopicIdMismatch { .. } => "TOPIC_ID_MISMATCH",
            Self::NotLeader { .. } => "NOT_LEADER",
            Self::OutcomeUnknown { .. } => "OUTCOME_UNKNOWN",
            Self::InvalidBatch(_) => "INVALID_BATCH",
            Self::TooLarge { .. } => "TOO_LARGE",
            Self::OutOfOrderSequence { .. } => "OUT_OF_ORDER_SEQUENCE",
            Self::ProducerFenced { .. } => "PRODUCER_FENCED",
            Self::UnknownProducer { .. } => "UNKNOWN_PRODUCER",
            Self::OffsetOutOfRange { .. } => "OFFSET_OUT_OF_RANGE",
            Self::NotCoordinator { .. } => "NOT_COORDINATOR",
            Self::UnknownGroup { .. } => "UNKNOWN_GROUP",
            Self::GroupNotEmpty { .. } => "GROUP_NOT_EMPTY",
            Self::MemberFenced { .. } => "MEMBER_FENCED",
            Self::UnknownInstance { .. } => "UNKNOWN_INSTANCE",
            Self::Overloaded { .. } => "OVERLOADED",
            Self::DiskFull => "DISK_FULL",
            Self::Quarantined { .. } => "QUARANTINED",
            Self::NotReady { .. } => "NOT_READY",
            Self::Timeout { .. } => "TIMEOUT",
            Self::TopicExists { .. } => "TOPIC_EXISTS",
            Self::InvalidArgument { .. } => "INVALID_ARGUMENT",
            Self::Unimplemented { .. } => "UNIMPLEMENTED",
            Self::Internal(_) => "INTERNAL",
        }
    }

    /// Whether the same request may succeed when it is tried again, here or at the leader hint.
    pub fn is_retriable(&self) -> bool {
        matches!(
            self,
            Self::NotLeader { .. }
                | Self::NotCoordinator { .. }
                | Self::OutcomeUnknown { .. }
                | Self::Overloaded { .. }
                | Self::DiskFull
                | Self::Quarantined { .. }
                | Self::NotReady { .. }
                | Self::Timeout { .. }
        )
    }

    /// Whether an event may have been written although this is an error.
    pub fn may_have_been_written(&self) -> bool {
        matches!(self, Self::OutcomeUnknown { .. } | Self::Internal(_))
    }
}
