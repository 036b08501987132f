//! What is asked of a coordinator, and what it says.
//!
//! Owns: the words, for every front door. Never: what follows from them; `shard` has that.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::engine::{Gone, JoinSpec, Owned, Place};
use super::offsets::{NewOffset, Progress};
use crate::error::BrokerError;

/// What is said to a member.
#[derive(Debug)]
pub(crate) enum ToMember {
    /// Everything it owns.
    Assignment { epoch: u64, partitions: Vec<Assigned> },
    /// The outcome of a commit: what was fenced, or why nothing was stored.
    Committed { request_id: u64, outcome: Result<Vec<Owned>, BrokerError> },
    /// The answer to a heartbeat.
    Heartbeat { sequence: u64 },
    /// It is no member any more. Nothing follows.
    Gone(Gone),
}

/// A partition that a member owns.
#[derive(Debug)]
pub(crate) struct Assigned {
    pub(crate) topic_id: String,
    pub(crate) owned: Owned,
    pub(crate) committed: Option<i64>,
    pub(crate) is_wanted_back: bool,
}

/// What a member does with a partition, in its own words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Activity(pub(crate) i32);

/// What a member says of one partition.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) place: Place,
    pub(crate) activity: Activity,
}

/// A sign of life.
#[derive(Debug)]
pub(crate) struct Heartbeat {
    pub(crate) sequence: u64,
    pub(crate) has_progressed: bool,
    pub(crate) extend: Duration,
    pub(crate) reports: Vec<Report>,
}

/// How a group stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Empty,
    Rebalancing,
    Stable,
}

/// A group in a list.
#[derive(Debug)]
pub(crate) struct Listed {
    pub(crate) group: String,
    pub(crate) standing: Standing,
    pub(crate) members: usize,
}

/// A group, described.
#[derive(Debug)]
pub(crate) struct Described {
    pub(crate) standing: Standing,
    pub(crate) epoch: u64,
    pub(crate) members: Vec<DescribedMember>,
    pub(crate) partitions: Vec<DescribedPartition>,
}

/// A member, described.
#[derive(Debug)]
pub(crate) struct DescribedMember {
    pub(crate) member_id: String,
    pub(crate) static_id: String,
    pub(crate) client_id: String,
    pub(crate) is_connected: bool,
    pub(crate) topics: Vec<String>,
    pub(crate) partitions: usize,
    pub(crate) session_ends_in: Duration,
    pub(crate) progress_due_in: Duration,
}

/// A partition of a group, described.
#[derive(Debug)]
pub(crate) struct DescribedPartition {
    pub(crate) place: Place,
    /// Empty while nobody owns it.
    pub(crate) member_id: String,
    pub(crate) epoch: u64,
    pub(crate) is_moving: bool,
    pub(crate) activity: Activity,
    pub(crate) progress: Option<Progress>,
}

impl DescribedPartition {
    pub(super) fn nobodys(place: Place) -> Self {
        Self {
            place,
            member_id: String::new(),
            epoch: 0,
            is_moving: false,
            activity: Activity::default(),
            progress: None,
        }
    }
}

/// A member's stream, as its coordinator knows it.
#[derive(Clone, Debug)]
pub(crate) struct Ticket {
    pub(crate) group: String,
    pub(crate) member_id: String,
    pub(super) session: u64,
}

/// Where the answer to a call goes. Dropped unanswered, the call did not take place, or nobody knows.
pub(super) type Answer<T> = oneshot::Sender<Result<T, BrokerError>>;

/// What is asked of a coordinator.
#[derive(Debug)]
pub(super) enum Command {
    Join {
        ticket: Ticket,
        spec: JoinSpec,
        returns: bool,
        outbox: mpsc::Sender<ToMember>,
        answer: Answer<()>,
    },
    Heartbeat(Ticket, Heartbeat),
    Release(Ticket, Vec<Owned>),
    Commit {
        ticket: Ticket,
        request_id: u64,
        offsets: Vec<(Owned, i64, String)>,
    },
    Leave(Ticket),
    Disconnected(Ticket),
    CommitUnowned {
        group: String,
        offsets: Vec<NewOffset>,
        answer: Answer<()>,
    },
    Reset {
        group: String,
        offsets: Vec<NewOffset>,
        dry_run: bool,
        answer: Answer<()>,
    },
    Fetch {
        group: String,
        answer: Answer<Vec<(Place, Progress)>>,
    },
    Describe {
        group: String,
        answer: Answer<Described>,
    },
    Delete {
        group: String,
        answer: Answer<()>,
    },
    List {
        answer: Answer<Vec<Listed>>,
    },
}
