//! What a consumer group looks like to whoever administers it.
//!
//! Owns: plain data and its conversion from protobuf, and the words for why a partition's events do not flow. Never: I/O.

use highwater_proto::v1;

/// How a group stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GroupState {
    /// It has no members, but progress.
    Empty,
    /// Partitions are moving between members.
    Rebalancing,
    /// Every partition is with the member that is to have it.
    Stable,
    /// Something that a later version has a word for.
    Unknown,
}

impl From<v1::GroupState> for GroupState {
    fn from(state: v1::GroupState) -> Self {
        match state {
            v1::GroupState::Empty => Self::Empty,
            v1::GroupState::Rebalancing => Self::Rebalancing,
            v1::GroupState::Stable => Self::Stable,
            v1::GroupState::Unspecified => Self::Unknown,
        }
    }
}

impl std::fmt::Display for GroupState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Empty => "empty",
            Self::Rebalancing => "rebalancing",
            Self::Stable => "stable",
            Self::Unknown => "unknown",
        })
    }
}

/// A group in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupListing {
    /// Its name.
    pub group: String,
    /// How it stands.
    pub state: GroupState,
    /// How many members it has.
    pub members: u32,
    /// The node that coordinates it.
    pub coordinator: u64,
}

impl From<v1::GroupListing> for GroupListing {
    fn from(listing: v1::GroupListing) -> Self {
        Self {
            state: listing.state().into(),
            group: listing.group,
            members: listing.members,
            coordinator: listing.coordinator_node_id,
        }
    }
}

/// A group with its members and partitions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupDescription {
    /// Its name.
    pub group: String,
    /// How it stands.
    pub state: GroupState,
    /// Grows whenever a partition gets another owner.
    pub epoch: u64,
    /// The node that coordinates it.
    pub coordinator: u64,
    /// Its members.
    pub members: Vec<GroupMember>,
    /// Its partitions, by topic and number.
    pub partitions: Vec<GroupPartition>,
}

/// A member of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupMember {
    /// Its id.
    pub member_id: String,
    /// Its static id; empty if it has none.
    pub static_id: String,
    /// What its client calls itself.
    pub client_id: String,
    /// Whether it is connected to the coordinator.
    pub is_connected: bool,
    /// The topics it reads.
    pub topics: Vec<String>,
    /// How many partitions it owns.
    pub partitions: u32,
}

impl From<v1::GroupMember> for GroupMember {
    fn from(member: v1::GroupMember) -> Self {
        Self {
            member_id: member.member_id,
            static_id: member.static_id,
            client_id: member.client_id,
            is_connected: member.is_connected,
            topics: member.topics,
            partitions: member.partitions,
        }
    }
}

/// How a partition's events flow to the group, or why they do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PartitionFlow {
    /// They flow.
    Reading,
    /// There is nothing more to read.
    CaughtUp,
    /// No member owns the partition: the group has none, or it is about to be given to one.
    NotAssigned,
    /// Its owner is not connected; when its session is over, others get what it owns.
    MemberAway,
    /// Its owner has not given it up yet, and another member is to have it.
    Moving,
    /// Events wait in the member for its handler.
    OutOfCredit,
    /// The service paused the partition.
    Paused,
    /// The partition has no leader, or its member cannot reach it.
    LeaderMissing,
    /// The next event is not retained any more.
    RetentionPassed,
}

impl std::fmt::Display for PartitionFlow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Reading => "reading",
            Self::CaughtUp => "caught up",
            Self::NotAssigned => "not assigned",
            Self::MemberAway => "member away",
            Self::Moving => "moving",
            Self::OutOfCredit => "out of credit",
            Self::Paused => "paused",
            Self::LeaderMissing => "leader missing",
            Self::RetentionPassed => "retention passed",
        })
    }
}

/// A partition of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupPartition {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: u32,
    /// The member that owns it.
    pub member_id: Option<String>,
    /// The next offset to read, as committed.
    pub committed_offset: Option<i64>,
    /// When that was committed, in milliseconds since the Unix epoch.
    pub committed_at_ms: Option<i64>,
    /// First retained offset.
    pub log_start_offset: i64,
    /// First offset that is not readable yet.
    pub high_watermark: i64,
    /// Records that are not done: those from the committed offset on, or all if there is none.
    pub lag: i64,
    /// How long ago the first of those was created, in milliseconds; `None` if there are none, or it cannot be read.
    pub lag_ms: Option<i64>,
    /// How its events flow, or why they do not.
    pub flow: PartitionFlow,
}

/// A group's progress in one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupOffset {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: u32,
    /// The next offset to read.
    pub offset: i64,
}

impl From<v1::CommittedOffset> for GroupOffset {
    fn from(offset: v1::CommittedOffset) -> Self {
        Self { topic: offset.topic, partition: offset.partition, offset: offset.offset }
    }
}

/// What is known of the partition itself.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Log {
    pub(super) has_leader: bool,
    pub(super) log_start_offset: i64,
    pub(super) high_watermark: i64,
}

/// Puts together what the coordinator and the partition's leader say. `is_away` says of a member whether it is not connected.
pub(super) fn partition(
    it: v1::GroupPartition,
    log: Log,
    is_away: impl Fn(&str) -> bool,
) -> GroupPartition {
    use v1::MemberActivity as Activity;
    let from = it.committed_offset.unwrap_or(log.log_start_offset);
    let lag = (log.high_watermark - from.max(log.log_start_offset)).max(0);
    let is_lost = it.committed_offset.is_some_and(|offset| offset < log.log_start_offset);
    let flow = match it.activity() {
        _ if !log.has_leader => PartitionFlow::LeaderMissing,
        Activity::RetentionPassed => PartitionFlow::RetentionPassed,
        _ if is_lost => PartitionFlow::RetentionPassed,
        _ if it.member_id.is_empty() => PartitionFlow::NotAssigned,
        _ if is_away(&it.member_id) => PartitionFlow::MemberAway,
        _ if it.is_moving => PartitionFlow::Moving,
        Activity::Paused => PartitionFlow::Paused,
        _ if lag == 0 => PartitionFlow::CaughtUp,
        Activity::NoLeader => PartitionFlow::LeaderMissing,
        Activity::OutOfCredit => PartitionFlow::OutOfCredit,
        Activity::CaughtUp | Activity::Reading | Activity::Unspecified => PartitionFlow::Reading,
    };
    GroupPartition {
        topic: it.topic,
        partition: it.partition,
        member_id: Some(it.member_id).filter(|id| !id.is_empty()),
        committed_offset: it.committed_offset,
        committed_at_ms: Some(it.committed_at_ms).filter(|at| *at > 0),
        log_start_offset: log.log_start_offset,
        high_watermark: log.high_watermark,
        lag,
        lag_ms: None,
        flow,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_says_why_nothing_flows() {
        use v1::MemberActivity as Activity;
        let log = Log { has_leader: true, log_start_offset: 5, high_watermark: 9 };
        let of = |activity: Activity, committed_offset, member: &str, log| {
            let it = v1::GroupPartition {
                member_id: member.to_owned(),
                committed_offset,
                activity: activity.into(),
                ..Default::default()
            };
            let partition = partition(it, log, |member| member == "away");
            (partition.flow, partition.lag)
        };
        let none = Log { has_leader: false, ..log };
        assert_eq!(of(Activity::Reading, Some(7), "m", none).0, PartitionFlow::LeaderMissing);
        assert_eq!(of(Activity::Reading, Some(7), "m", log), (PartitionFlow::Reading, 2));
        assert_eq!(of(Activity::Reading, Some(9), "m", log), (PartitionFlow::CaughtUp, 0));
        assert_eq!(of(Activity::Reading, None, "m", log), (PartitionFlow::Reading, 4));
        assert_eq!(of(Activity::Reading, Some(3), "m", log), (PartitionFlow::RetentionPassed, 4));
        assert_eq!(of(Activity::Unspecified, Some(7), "", log).0, PartitionFlow::NotAssigned);
        assert_eq!(of(Activity::Reading, Some(7), "away", log).0, PartitionFlow::MemberAway);
        assert_eq!(of(Activity::OutOfCredit, Some(7), "m", log).0, PartitionFlow::OutOfCredit);
        assert_eq!(of(Activity::Paused, Some(7), "m", log).0, PartitionFlow::Paused);
        assert_eq!(of(Activity::NoLeader, Some(7), "m", log).0, PartitionFlow::LeaderMissing);
    }
}
