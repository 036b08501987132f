//! Shapes of what `group` prints.
//!
//! Owns: these keys. Never: prints them.

use highwater_client::{GroupDescription, GroupListing, GroupMember, GroupPartition};
use serde::Serialize;

/// One line of `group list`.
#[derive(Debug, Serialize)]
pub(crate) struct GroupListShape {
    pub(crate) group: String,
    pub(crate) state: String,
    pub(crate) members: u32,
    pub(crate) coordinator: u64,
}

impl From<GroupListing> for GroupListShape {
    fn from(listing: GroupListing) -> Self {
        let GroupListing { group, state, members, coordinator } = listing;
        Self { group, state: state.to_string(), members, coordinator }
    }
}

/// What `group describe` prints.
#[derive(Debug, Serialize)]
pub(crate) struct GroupShape {
    pub(crate) group: String,
    pub(crate) state: String,
    pub(crate) epoch: u64,
    pub(crate) coordinator: u64,
    pub(crate) members: Vec<GroupMemberShape>,
    pub(crate) partitions: Vec<GroupPartitionShape>,
}

#[derive(Debug, Serialize)]
pub(crate) struct GroupMemberShape {
    pub(crate) member_id: String,
    pub(crate) static_id: String,
    pub(crate) client_id: String,
    pub(crate) connected: bool,
    pub(crate) topics: Vec<String>,
    pub(crate) partitions: u32,
}

#[derive(Debug, Serialize)]
pub(crate) struct GroupPartitionShape {
    pub(crate) topic: String,
    pub(crate) partition: u32,
    pub(crate) member_id: Option<String>,
    pub(crate) committed_offset: Option<i64>,
    pub(crate) committed_at_ms: Option<i64>,
    pub(crate) log_start_offset: i64,
    pub(crate) high_watermark: i64,
    pub(crate) lag: i64,
    pub(crate) lag_ms: Option<i64>,
    pub(crate) status: String,
}

impl From<GroupMember> for GroupMemberShape {
    fn from(member: GroupMember) -> Self {
        Self {
            member_id: member.member_id,
            static_id: member.static_id,
            client_id: member.client_id,
            connected: member.is_connected,
            topics: member.topics,
            partitions: member.partitions,
        }
    }
}

impl From<GroupPartition> for GroupPartitionShape {
    fn from(partition: GroupPartition) -> Self {
        Self {
            topic: partition.topic,
            partition: partition.partition,
            member_id: partition.member_id,
            committed_offset: partition.committed_offset,
            committed_at_ms: partition.committed_at_ms,
            log_start_offset: partition.log_start_offset,
            high_watermark: partition.high_watermark,
            lag: partition.lag,
            lag_ms: partition.lag_ms,
            status: partition.flow.to_string(),
        }
    }
}

impl From<GroupDescription> for GroupShape {
    fn from(group: GroupDescription) -> Self {
        Self {
            group: group.group,
            state: group.state.to_string(),
            epoch: group.epoch,
            coordinator: group.coordinator,
            members: group.members.into_iter().map(Into::into).collect(),
            partitions: group.partitions.into_iter().map(Into::into).collect(),
        }
    }
}

/// What `group lag` prints: the sum of the records, and the longest time.
#[derive(Debug, Serialize)]
pub(crate) struct LagShape {
    pub(crate) group: String,
    pub(crate) lag: i64,
    pub(crate) lag_ms: Option<i64>,
    pub(crate) partitions: Vec<PartitionLagShape>,
}

#[derive(Debug, Serialize)]
pub(crate) struct PartitionLagShape {
    pub(crate) topic: String,
    pub(crate) partition: u32,
    pub(crate) committed_offset: Option<i64>,
    pub(crate) high_watermark: i64,
    pub(crate) lag: i64,
    pub(crate) lag_ms: Option<i64>,
}

impl From<GroupDescription> for LagShape {
    fn from(group: GroupDescription) -> Self {
        let partitions: Vec<PartitionLagShape> = group
            .partitions
            .into_iter()
            .map(|partition| PartitionLagShape {
                topic: partition.topic,
                partition: partition.partition,
                committed_offset: partition.committed_offset,
                high_watermark: partition.high_watermark,
                lag: partition.lag,
                lag_ms: partition.lag_ms,
            })
            .collect();
        Self {
            group: group.group,
            lag: partitions.iter().map(|partition| partition.lag).sum(),
            lag_ms: partitions.iter().filter_map(|partition| partition.lag_ms).max(),
            partitions,
        }
    }
}

/// What `group reset-offsets` prints.
#[derive(Debug, Serialize)]
pub(crate) struct ResetShape {
    pub(crate) group: String,
    pub(crate) executed: bool,
    pub(crate) offsets: Vec<MovedShape>,
}

#[derive(Debug, Serialize)]
pub(crate) struct MovedShape {
    pub(crate) topic: String,
    pub(crate) partition: u32,
    pub(crate) from: Option<i64>,
    pub(crate) to: i64,
}

#[cfg(test)]
mod tests {
    use highwater_client::{GroupState, PartitionFlow};
    use insta::assert_snapshot;

    use super::*;

    fn json<T: Serialize>(shape: &T) -> String {
        serde_json::to_string(shape).unwrap()
    }

    fn group() -> GroupDescription {
        let member = GroupMember {
            member_id: "m".into(),
            static_id: "pod-1".into(),
            client_id: "billing".into(),
            is_connected: true,
            topics: vec!["orders".into()],
            partitions: 1,
        };
        let owned = GroupPartition {
            topic: "orders".into(),
            partition: 0,
            member_id: Some("m".into()),
            committed_offset: Some(7),
            committed_at_ms: Some(1_769_860_800_000),
            log_start_offset: 1,
            high_watermark: 9,
            lag: 2,
            lag_ms: Some(1_500),
            flow: PartitionFlow::OutOfCredit,
        };
        let free = GroupPartition {
            partition: 1,
            member_id: None,
            committed_offset: None,
            committed_at_ms: None,
            lag: 8,
            lag_ms: None,
            flow: PartitionFlow::NotAssigned,
            ..owned.clone()
        };
        GroupDescription {
            group: "billing".into(),
            state: GroupState::Stable,
            epoch: 4,
            coordinator: 2,
            members: vec![member],
            partitions: vec![owned, free],
        }
    }

    #[test]
    fn groups_keep_their_keys() {
        let listing = GroupListing {
            group: "billing".into(),
            state: GroupState::Empty,
            members: 0,
            coordinator: 3,
        };
        assert_snapshot!(
            json(&GroupListShape::from(listing)),
            @r#"{"group":"billing","state":"empty","members":0,"coordinator":3}"#
        );
        assert_snapshot!(
            json(&GroupShape::from(group())),
            @r#"{"group":"billing","state":"stable","epoch":4,"coordinator":2,"members":[{"member_id":"m","static_id":"pod-1","client_id":"billing","connected":true,"topics":["orders"],"partitions":1}],"partitions":[{"topic":"orders","partition":0,"member_id":"m","committed_offset":7,"committed_at_ms":1769860800000,"log_start_offset":1,"high_watermark":9,"lag":2,"lag_ms":1500,"status":"out of credit"},{"topic":"orders","partition":1,"member_id":null,"committed_offset":null,"committed_at_ms":null,"log_start_offset":1,"high_watermark":9,"lag":8,"lag_ms":null,"status":"not assigned"}]}"#
        );
        assert_snapshot!(
            json(&LagShape::from(group())),
            @r#"{"group":"billing","lag":10,"lag_ms":1500,"partitions":[{"topic":"orders","partition":0,"committed_offset":7,"high_watermark":9,"lag":2,"lag_ms":1500},{"topic":"orders","partition":1,"committed_offset":null,"high_watermark":9,"lag":8,"lag_ms":null}]}"#
        );
    }

    #[test]
    fn a_reset_says_from_where_and_whether_it_was_done() {
        let moved = MovedShape { topic: "orders".into(), partition: 0, from: None, to: 3 };
        let shape = ResetShape { group: "billing".into(), executed: false, offsets: vec![moved] };
        assert_snapshot!(
            json(&shape),
            @r#"{"group":"billing","executed":false,"offsets":[{"topic":"orders","partition":0,"from":null,"to":3}]}"#
        );
    }
}
