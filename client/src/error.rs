//! What can go wrong, one enum for each kind of operation.
//!
//! Owns: the error types and the one place that reads a broker's refusal ([`Refusal`]). Never: decides to retry; it only
//! says whether that may help.
//!
//! Every error answers three questions: `is_retriable()` (may the same call succeed later?), `may_have_been_written()`
//! (has it perhaps taken effect although it is an error?) and `reason()` (a word for programs; texts are for people).

use std::collections::BTreeMap;
use std::time::Duration;

use highwater_proto::batch::BatchError;
use highwater_proto::v1;
use tonic::Code;
use tonic_types::StatusExt;

use crate::event::EncodeError;

/// Reasons that brokers give, as they travel on the wire. New ones may appear with new versions.
pub mod reason {
    /// No topic has this name.
    pub const UNKNOWN_TOPIC: &str = "UNKNOWN_TOPIC";
    /// The topic has fewer partitions.
    pub const UNKNOWN_PARTITION: &str = "UNKNOWN_PARTITION";
    /// The topic was deleted and created again.
    pub const TOPIC_ID_MISMATCH: &str = "TOPIC_ID_MISMATCH";
    /// Another node leads the partition, or none does at the moment.
    pub const NOT_LEADER: &str = "NOT_LEADER";
    /// The batch may or may not have been written.
    pub const OUTCOME_UNKNOWN: &str = "OUTCOME_UNKNOWN";
    /// The batch is malformed.
    pub const INVALID_BATCH: &str = "INVALID_BATCH";
    /// A record, batch or request is larger than allowed.
    pub const TOO_LARGE: &str = "TOO_LARGE";
    /// An idempotent producer's batch does not follow its predecessor.
    pub const OUT_OF_ORDER_SEQUENCE: &str = "OUT_OF_ORDER_SEQUENCE";
    /// A newer instance of the producer has written.
    pub const PRODUCER_FENCED: &str = "PRODUCER_FENCED";
    /// The partition does not remember the producer.
    pub const UNKNOWN_PRODUCER: &str = "UNKNOWN_PRODUCER";
    /// The offset is not in the log.
    pub const OFFSET_OUT_OF_RANGE: &str = "OFFSET_OUT_OF_RANGE";
    /// The node does not coordinate the consumer group.
    pub const NOT_COORDINATOR: &str = "NOT_COORDINATOR";
    /// No consumer group has this name.
    pub const UNKNOWN_GROUP: &str = "UNKNOWN_GROUP";
    /// The consumer group has members, and only they may change its progress.
    pub const GROUP_NOT_EMPTY: &str = "GROUP_NOT_EMPTY";
    /// The caller is no member of its consumer group any more.
    pub const MEMBER_FENCED: &str = "MEMBER_FENCED";
    /// No such instance of a service is announced, or its lease has ended.
    pub const UNKNOWN_INSTANCE: &str = "UNKNOWN_INSTANCE";
    /// A limit of the broker is reached for now.
    pub const OVERLOADED: &str = "OVERLOADED";
    /// The broker's disk is full.
    pub const DISK_FULL: &str = "DISK_FULL";
    /// The replica holds damaged data.
    pub const QUARANTINED: &str = "QUARANTINED";
    /// The node has not joined its cluster yet, or stops.
    pub const NOT_READY: &str = "NOT_READY";
    /// Nothing came of it in time, and nothing was written.
    pub const TIMEOUT: &str = "TIMEOUT";
    /// A topic of this name exists.
    pub const TOPIC_EXISTS: &str = "TOPIC_EXISTS";
    /// A field of the request is not allowed.
    pub const INVALID_ARGUMENT: &str = "INVALID_ARGUMENT";
    /// A later version brings this.
    pub const UNIMPLEMENTED: &str = "UNIMPLEMENTED";
    /// A defect or a fault of the broker's machine.
    pub const INTERNAL: &str = "INTERNAL";
    /// Not from a broker: the connection failed or broke.
    pub const CONNECTION: &str = "CONNECTION";
    /// Not from a broker: calls to this one kept failing, and for a moment none is made. Nothing was sent.
    pub const CIRCUIT_OPEN: &str = "CIRCUIT_OPEN";
}

/// Where a partition's leader is, as a broker that does not lead it knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaderHint {
    /// The leader's node id.
    pub node_id: u64,
    /// Its address for clients; empty if not known.
    pub address: String,
}

/// A broker's "no", or the connection's: the status of a call, or the failure of one batch in a stream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message} ({reason})")]
pub struct Refusal {
    /// The gRPC status code.
    pub code: Code,
    /// The machine-readable reason, see [`reason`]; the code's name if the broker gave none.
    pub reason: String,
    /// For people.
    pub message: String,
    /// Facts that go with the reason.
    pub metadata: BTreeMap<String, String>,
    retriable: bool,
    may_have_been_written: bool,
}

impl Refusal {
    /// Reads the status of a failed call.
    pub fn from_status(status: &tonic::Status) -> Self {
        let info = status.get_details_error_info();
        let code = status.code();
        let Some(info) = info.filter(|info| !info.reason.is_empty()) else {
            // No reason: not the broker's own refusal, but the connection's or a proxy's.
            let connection = matches!(code, Code::Unavailable | Code::Unknown | Code::Cancelled);
            return Self {
                code,
                reason: if connection { reason::CONNECTION.to_owned() } else { code_name(code) },
                message: with_sources(status),
                metadata: BTreeMap::new(),
                retriable: connection
                    || matches!(
                        code,
                        Code::DeadlineExceeded | Code::ResourceExhausted | Code::Aborted
                    ),
                may_have_been_written: (connection && !never_connected(status))
                    || matches!(code, Code::DeadlineExceeded | Code::Internal | Code::Aborted),
            };
        };
        let (retriable, may_have_been_written) = judge(&info.reason);
        Self {
            code,
            reason: info.reason,
            message: status.message().to_owned(),
            metadata: info.metadata.into_iter().collect(),
            retriable,
            may_have_been_written,
        }
    }

    /// Reads the failure of one item in a stream.
    pub fn from_detail(detail: &v1::ErrorDetail) -> Self {
        Self {
            code: Code::from_i32(detail.code),
            reason: detail.reason.clone(),
            message: detail.message.clone(),
            metadata: detail.metadata.clone().into_iter().collect(),
            retriable: detail.retriable,
            may_have_been_written: detail.may_have_been_written,
        }
    }

    /// A failure of the connection rather than of the request; whether the request arrived is not known.
    pub(crate) fn connection(message: impl Into<String>) -> Self {
        Self {
            code: Code::Unavailable,
            reason: reason::CONNECTION.to_owned(),
            message: message.into(),
            metadata: BTreeMap::new(),
            retriable: true,
            may_have_been_written: true,
        }
    }

    /// A refusal by the client itself, before anything was sent.
    pub(crate) fn local(reason: &str, code: Code, message: impl Into<String>) -> Self {
        let (retriable, _) = judge(reason);
        Self {
            code,
            reason: reason.to_owned(),
            message: message.into(),
            metadata: BTreeMap::new(),
            retriable,
            may_have_been_written: false,
        }
    }

    /// The same, known to have come before anything was sent.
    pub(crate) fn nothing_sent(mut self) -> Self {
        self.may_have_been_written = false;
        self
    }

    /// Whether the same request may succeed when it is tried again.
    pub fn is_retriable(&self) -> bool {
        self.retriable
    }

    /// Whether the request may have taken effect.
    pub fn may_have_been_written(&self) -> bool {
        self.may_have_been_written
    }

    /// Whether a broker said so, rather than that none could be asked.
    pub(crate) fn is_an_answer(&self) -> bool {
        !matches!(self.reason(), reason::CONNECTION | reason::CIRCUIT_OPEN)
    }

    /// The machine-readable reason.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// Who leads instead, if the broker said so.
    pub fn leader_hint(&self) -> Option<LeaderHint> {
        let node_id = self.metadata.get("leader_node_id")?.parse().ok().filter(|id| *id != 0)?;
        let address = self.metadata.get("leader_address").cloned().unwrap_or_default();
        Some(LeaderHint { node_id, address })
    }
}

/// What a reason means, for calls whose status does not carry the two flags: (retriable, may have been written).
fn judge(word: &str) -> (bool, bool) {
    match word {
        reason::NOT_LEADER
        | reason::NOT_COORDINATOR
        | reason::OVERLOADED
        | reason::DISK_FULL
        | reason::QUARANTINED
        | reason::NOT_READY
        | reason::CIRCUIT_OPEN
        | reason::TIMEOUT => (true, false),
        reason::OUTCOME_UNKNOWN | reason::CONNECTION => (true, true),
        reason::INTERNAL => (false, true),
        _ => (false, false),
    }
}

/// Whether the call never left, because there was no connection to send it on.
fn never_connected(status: &tonic::Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

/// The name of a status code as gRPC spells it.
fn code_name(code: Code) -> String {
    let camel = format!("{code:?}");
    let mut name = String::with_capacity(camel.len() + 4);
    for (at, letter) in camel.char_indices() {
        if at > 0 && letter.is_ascii_uppercase() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}

/// A status' message with the messages of what caused it, which is where "connection refused" hides.
fn with_sources(status: &tonic::Status) -> String {
    let mut text = status.message().to_owned();
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        let next = error.to_string();
        if !text.contains(&next) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&next);
        }
        source = error.source();
    }
    if text.is_empty() { "no message".to_owned() } else { text }
}

/// No connection to a cluster.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The address list or another option cannot be understood.
    #[error("{what} '{value}': {why}")]
    InvalidOption {
        /// Which option.
        what: &'static str,
        /// Its value.
        value: String,
        /// What is wrong and what would be right.
        why: String,
    },
    /// None of the addresses answered in time.
    #[error("no broker answered within {after:?}: {}", list(.attempts))]
    Unreachable {
        /// How long it was tried.
        after: Duration,
        /// The last failure of each address.
        attempts: Vec<(String, Refusal)>,
    },
    /// Called outside of a tokio runtime.
    #[error("a client needs a tokio runtime: connect from within one")]
    NoRuntime,
}

fn list(attempts: &[(String, Refusal)]) -> String {
    let texts: Vec<_> =
        attempts.iter().map(|(address, why)| format!("{address}: {}", why.message)).collect();
    texts.join("; ")
}

impl ConnectError {
    /// Whether the same call may succeed later.
    pub fn is_retriable(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }

    /// Always false: connecting writes nothing.
    pub fn may_have_been_written(&self) -> bool {
        false
    }

    /// A word for programs.
    pub fn reason(&self) -> &str {
        match self {
            Self::InvalidOption { .. } => reason::INVALID_ARGUMENT,
            Self::Unreachable { .. } => reason::CONNECTION,
            Self::NoRuntime => reason::INTERNAL,
        }
    }
}

/// An event that was not acknowledged. Cheap to clone: all events of a batch share its fate.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The broker refused the batch for good.
    #[error("refused by the broker: {refusal}")]
    Refused {
        /// Why.
        refusal: Refusal,
        /// Whether an earlier try of the same batch may have been written.
        may_have_been_written: bool,
    },
    /// The delivery timeout ended before an acknowledgement came.
    #[error("not acknowledged within {after:?}{}{}", outcome(*.may_have_been_written), last_text(.last))]
    TimedOut {
        /// The delivery timeout.
        after: Duration,
        /// Whether the event may have been written all the same.
        may_have_been_written: bool,
        /// The last obstacle, if there was one.
        last: Option<Refusal>,
    },
    /// The broker no longer knows where this producer's sequence stands, and an earlier try may have been written: to send
    /// it again could duplicate it.
    #[error("the producer's sequence broke: {refusal}; the event may have been written")]
    SequenceBroken {
        /// What the broker said.
        refusal: Refusal,
    },
    /// The record can never be sent: it is too large or malformed.
    #[error("the record cannot be encoded: {source}")]
    InvalidRecord {
        /// What is wrong with it.
        #[from]
        source: std::sync::Arc<BatchError>,
    },
    /// The typed event cannot be written as bytes.
    #[error(transparent)]
    NotEncoded(#[from] EncodeError),
    /// The record is larger than the topic allows.
    #[error("the record's {bytes} bytes are more than the {bytes_max} allowed (max.message.bytes)")]
    TooLarge {
        /// Size of key, value and headers in bytes.
        bytes: usize,
        /// The topic's limit.
        bytes_max: usize,
    },
    /// The topic or the partition cannot be found, or no broker can say.
    #[error("cannot route the event: {0}")]
    Unroutable(Refusal),
    /// `try_send` only: the bytes bound is reached, or the topic's metadata has not been learned yet.
    #[error("the producer is full for now")]
    Full,
    /// The producer was closed before this event was admitted.
    #[error("the producer is closed")]
    Closed,
}

fn outcome(may_have_been_written: bool) -> &'static str {
    if may_have_been_written { "; it may have been written" } else { "; it was not written" }
}

fn last_text(last: &Option<Refusal>) -> String {
    last.as_ref().map_or_else(String::new, |last| format!("; last obstacle: {last}"))
}

impl SendError {
    /// Whether sending the event again may succeed. If [`SendError::may_have_been_written`] too, that may duplicate it.
    pub fn is_retriable(&self) -> bool {
        match self {
            Self::Refused { refusal, .. } | Self::Unroutable(refusal) => refusal.is_retriable(),
            Self::TimedOut { .. } | Self::SequenceBroken { .. } | Self::Full => true,
            Self::InvalidRecord { .. }
            | Self::NotEncoded(_)
            | Self::TooLarge { .. }
            | Self::Closed => false,
        }
    }

    /// Whether the event may be in the log although this is an error.
    pub fn may_have_been_written(&self) -> bool {
        match self {
            Self::Refused { may_have_been_written, .. }
            | Self::TimedOut { may_have_been_written, .. } => *may_have_been_written,
            Self::SequenceBroken { .. } => true,
            _ => false,
        }
    }

    /// A word for programs: the broker's, or what it would have been.
    pub fn reason(&self) -> &str {
        match self {
            Self::Refused { refusal, .. }
            | Self::Unroutable(refusal)
            | Self::SequenceBroken { refusal } => refusal.reason(),
            Self::TimedOut { may_have_been_written: true, .. } => reason::OUTCOME_UNKNOWN,
            Self::TimedOut { .. } => reason::TIMEOUT,
            Self::InvalidRecord { .. } | Self::NotEncoded(_) => reason::INVALID_BATCH,
            Self::TooLarge { .. } => reason::TOO_LARGE,
            Self::Full => reason::OVERLOADED,
            Self::Closed => "CLOSED",
        }
    }

    /// The broker's own words, if it had any.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refused { refusal, .. }
            | Self::Unroutable(refusal)
            | Self::SequenceBroken { refusal } => Some(refusal),
            Self::TimedOut { last, .. } => last.as_ref(),
            _ => None,
        }
    }
}

/// Events that could not be read.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConsumeError {
    /// The broker refuses to go on with a partition. The others go on; `seek` revives this one.
    #[error("partition {partition} of '{topic}' ended: {refusal}")]
    PartitionEnded {
        /// The topic.
        topic: String,
        /// The partition.
        partition: u32,
        /// Why, for example OFFSET_OUT_OF_RANGE.
        refusal: Refusal,
    },
    /// The partition has not been reachable for this long. The consumer keeps trying: reading on continues without a gap.
    #[error("partition {partition} of '{topic}' unreachable for {silent:?}: {last}")]
    Stalled {
        /// The topic.
        topic: String,
        /// The partition.
        partition: u32,
        /// How long.
        silent: Duration,
        /// The last obstacle.
        last: Refusal,
    },
    /// A batch arrived damaged. The partition stops; `seek` revives it.
    #[error("partition {partition} of '{topic}': damaged batch at offset {offset}: {source}")]
    Damaged {
        /// The topic.
        topic: String,
        /// The partition.
        partition: u32,
        /// Offset up to which everything had been read.
        offset: i64,
        /// What is wrong with it.
        source: std::sync::Arc<BatchError>,
    },
    /// The subscription could not begin.
    #[error("cannot subscribe to '{topic}': {refusal}")]
    CannotSubscribe {
        /// The topic.
        topic: String,
        /// Why.
        refusal: Refusal,
    },
    /// Another process took this member's place in its consumer group: one with the same static id. Nothing follows.
    #[error("fenced from consumer group '{group}': {refusal}")]
    Fenced {
        /// The group.
        group: String,
        /// What the coordinator said.
        refusal: Refusal,
    },
    /// The consumer group's coordinator has not been reachable for so long that this member does not count as one any more: what it
    /// was reading goes to others. It keeps trying to come back.
    #[error("lost the membership of consumer group '{group}': {last}")]
    MembershipLost {
        /// The group.
        group: String,
        /// The last obstacle.
        last: Refusal,
    },
    /// Progress could not be stored; it will be tried again in the background.
    #[error("progress was not stored: {refusal}")]
    NotCommitted {
        /// Why.
        refusal: Refusal,
    },
    /// The subscription does not have this partition.
    #[error("the subscription to '{topic}' has no partition {partition}")]
    NoSuchPartition {
        /// The topic.
        topic: String,
        /// The partition.
        partition: u32,
    },
}

impl ConsumeError {
    /// Whether reading on may succeed without doing anything else.
    pub fn is_retriable(&self) -> bool {
        match self {
            Self::Stalled { .. } | Self::MembershipLost { .. } => true,
            Self::CannotSubscribe { refusal, .. } | Self::NotCommitted { refusal } => {
                refusal.is_retriable()
            }
            Self::PartitionEnded { .. }
            | Self::Damaged { .. }
            | Self::Fenced { .. }
            | Self::NoSuchPartition { .. } => false,
        }
    }

    /// Always false: reading writes nothing.
    pub fn may_have_been_written(&self) -> bool {
        false
    }

    /// A word for programs.
    pub fn reason(&self) -> &str {
        match self {
            Self::PartitionEnded { refusal, .. }
            | Self::Fenced { refusal, .. }
            | Self::NotCommitted { refusal }
            | Self::CannotSubscribe { refusal, .. } => refusal.reason(),
            Self::Stalled { last, .. } | Self::MembershipLost { last, .. } => last.reason(),
            Self::Damaged { .. } => reason::INVALID_BATCH,
            Self::NoSuchPartition { .. } => reason::UNKNOWN_PARTITION,
        }
    }
}

/// An administrative call or a unary fetch that failed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdminError {
    /// A broker refused, or none could be reached in time.
    #[error("{0}")]
    Refused(Refusal),
    /// The answer makes no sense, for example lacks a part that must be there.
    #[error("malformed answer: {what}")]
    Malformed {
        /// What is wrong.
        what: String,
    },
}

impl AdminError {
    /// Whether the same call may succeed later.
    pub fn is_retriable(&self) -> bool {
        match self {
            Self::Refused(refusal) => refusal.is_retriable(),
            Self::Malformed { .. } => false,
        }
    }

    /// Whether the change may have been made although this is an error.
    pub fn may_have_been_written(&self) -> bool {
        match self {
            Self::Refused(refusal) => refusal.may_have_been_written(),
            Self::Malformed { .. } => true,
        }
    }

    /// A word for programs.
    pub fn reason(&self) -> &str {
        match self {
            Self::Refused(refusal) => refusal.reason(),
            Self::Malformed { .. } => "MALFORMED",
        }
    }

    /// The gRPC status code.
    pub fn code(&self) -> Code {
        match self {
            Self::Refused(refusal) => refusal.code,
            Self::Malformed { .. } => Code::Internal,
        }
    }

    /// The broker's own words.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refused(refusal) => Some(refusal),
            Self::Malformed { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic_types::ErrorDetails;

    #[test]
    fn a_status_with_error_info_gives_its_reason_and_leader_hint() {
        let facts = [("leader_node_id", "3"), ("leader_address", "h3:7420")];
        let facts = facts.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let mut details = ErrorDetails::new();
        details.set_error_info("NOT_LEADER", "highwater", std::collections::HashMap::from(facts));
        let status = tonic::Status::with_error_details(Code::Unavailable, "not here", details);
        let refusal = Refusal::from_status(&status);
        assert_eq!(refusal.reason(), reason::NOT_LEADER);
        assert!(refusal.is_retriable() && !refusal.may_have_been_written());
        let hint = LeaderHint { node_id: 3, address: "h3:7420".to_owned() };
        assert_eq!(refusal.leader_hint(), Some(hint));
    }

    #[test]
    fn a_status_without_a_reason_is_judged_by_its_code() {
        let lost = Refusal::from_status(&tonic::Status::unavailable("gone"));
        assert_eq!(lost.reason(), reason::CONNECTION);
        assert!(lost.is_retriable() && lost.may_have_been_written());
        let late = Refusal::from_status(&tonic::Status::deadline_exceeded("late"));
        assert_eq!(late.reason(), "DEADLINE_EXCEEDED");
        assert!(late.is_retriable() && late.may_have_been_written());
        let denied = Refusal::from_status(&tonic::Status::permission_denied("no"));
        assert!(!denied.is_retriable() && !denied.may_have_been_written());
    }

    #[test]
    fn a_leader_hint_without_a_leader_is_none() {
        let mut detail = v1::ErrorDetail { reason: "NOT_LEADER".into(), ..Default::default() };
        assert_eq!(Refusal::from_detail(&detail).leader_hint(), None);
        detail.metadata.insert("leader_node_id".into(), "0".into());
        assert_eq!(Refusal::from_detail(&detail).leader_hint(), None);
        detail.metadata.insert("leader_node_id".into(), "x".into());
        assert_eq!(Refusal::from_detail(&detail).leader_hint(), None);
    }

    #[test]
    fn reasons_are_told_apart_by_outcome() {
        let certain = SendError::TimedOut {
            after: Duration::from_secs(1),
            may_have_been_written: false,
            last: None,
        };
        assert_eq!((certain.reason(), certain.is_retriable()), (reason::TIMEOUT, true));
        assert!(certain.to_string().contains("was not written"));
        let unknown = SendError::TimedOut {
            after: Duration::from_secs(1),
            may_have_been_written: true,
            last: Some(Refusal::connection("broken")),
        };
        assert_eq!(unknown.reason(), reason::OUTCOME_UNKNOWN);
        assert!(unknown.may_have_been_written());
        assert!(unknown.to_string().contains("broken"));
    }
}
