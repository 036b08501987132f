//! The records that groups are kept in: keys and values, to bytes and back.
//!
//! Owns: the encoding and its version. Never: where the records lie, or what follows from them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use highwater_proto::batch::RecordView;
use highwater_proto::internal::group_key::Subject;
use highwater_proto::internal::{
    CoordinatorKey, GroupKey, GroupValue, MemberValue, OffsetKey, OffsetValue, OwnedTopic,
};
use prost::Message;

use super::engine::{Group, JoinSpec, Owned, Place};
use super::offsets::Progress;

/// Format of keys and values.
const VERSION: u32 = 1;

/// A record to be written: its key, and its value unless what the key names is gone.
pub(super) type Written = (Bytes, Option<Bytes>);

/// A record that was read.
#[derive(Debug)]
pub(super) enum Read {
    /// A group; without a value it was deleted.
    Group(String, Option<GroupValue>),
    /// Progress in a partition.
    Offset(String, Place, Option<Progress>),
    /// Nothing that this version knows.
    Other,
}

fn key(subject: Subject) -> Bytes {
    GroupKey { version: VERSION, subject: Some(subject) }.encode_to_vec().into()
}

/// The record that begins a coordinator's time.
pub(super) fn beginning() -> Written {
    (key(Subject::Coordinator(CoordinatorKey {})), Some(Bytes::new()))
}

/// A group as it is now.
pub(super) fn group(name: &str, group: &Group, emptied_at_ms: i64) -> Written {
    (key(Subject::Group(name.to_owned())), Some(value(group, emptied_at_ms).encode_to_vec().into()))
}

/// A group that is gone.
pub(super) fn group_gone(name: &str) -> Written {
    (key(Subject::Group(name.to_owned())), None)
}

/// Bytes that a group takes.
pub(super) fn group_bytes(group: &Group) -> usize {
    value(group, 0).encoded_len()
}

/// Progress in a partition, or that there is none any more.
pub(super) fn offset(group: &str, place: &Place, progress: Option<&Progress>) -> Written {
    let name = OffsetKey { group: group.to_owned(), topic: place.0.clone(), partition: place.1 };
    let value = progress.map(|progress| OffsetValue {
        offset: progress.offset,
        topic_id: progress.topic_id.clone(),
        metadata: progress.metadata.clone(),
        committed_at_ms: progress.committed_at_ms,
    });
    (key(Subject::Offset(name)), value.map(|value| value.encode_to_vec().into()))
}

fn value(group: &Group, emptied_at_ms: i64) -> GroupValue {
    let mut owned: BTreeMap<&str, BTreeMap<&str, OwnedTopic>> = BTreeMap::new();
    for ((topic, partition), owner) in &group.owners {
        let topics = owned.entry(&owner.member_id).or_default();
        let entry = topics
            .entry(topic)
            .or_insert_with(|| OwnedTopic { topic: topic.clone(), ..Default::default() });
        entry.partitions.push(*partition);
        entry.epochs.push(owner.epoch);
    }
    let millis = |duration: Duration| u32::try_from(duration.as_millis()).unwrap_or(u32::MAX);
    let members = group.members.iter().map(|(id, member)| MemberValue {
        member_id: id.clone(),
        static_id: member.spec.static_id.clone(),
        client_id: member.spec.client_id.clone(),
        topics: member.spec.topics.iter().cloned().collect(),
        session_timeout_ms: millis(member.spec.session_timeout),
        progress_timeout_ms: millis(member.spec.progress_timeout),
        owned: owned.remove(id.as_str()).unwrap_or_default().into_values().collect(),
    });
    GroupValue { epoch: group.epoch, members: members.collect(), emptied_at_ms }
}

/// The group that a value describes; its members' time counts from `now`.
pub(super) fn restore(now: Duration, value: GroupValue) -> Group {
    let members = value.members.into_iter().map(|member| {
        let owned = member.owned.into_iter().flat_map(|entry| {
            let OwnedTopic { topic, partitions, epochs } = entry;
            let one = move |(partition, epoch)| Owned { topic: topic.clone(), partition, epoch };
            partitions.into_iter().zip(epochs).map(one)
        });
        let spec = JoinSpec {
            member_id: member.member_id,
            static_id: member.static_id,
            client_id: member.client_id,
            topics: member.topics.into_iter().collect::<BTreeSet<_>>(),
            session_timeout: Duration::from_millis(member.session_timeout_ms.into()),
            progress_timeout: Duration::from_millis(member.progress_timeout_ms.into()),
        };
        (spec, owned.collect())
    });
    Group::restore(now, value.epoch, members)
}

/// What a record says. One that cannot be read, or is of a later version, says nothing.
pub(super) fn read(record: &RecordView) -> Read {
    let Some(Ok(key)) = record.key.clone().map(GroupKey::decode) else { return Read::Other };
    if key.version != VERSION {
        return Read::Other;
    }
    match key.subject {
        Some(Subject::Group(name)) => match record.value.clone().map(GroupValue::decode) {
            None => Read::Group(name, None),
            Some(Ok(value)) => Read::Group(name, Some(value)),
            Some(Err(_)) => Read::Other,
        },
        Some(Subject::Offset(OffsetKey { group, topic, partition })) => {
            let place = (topic, partition);
            match record.value.clone().map(OffsetValue::decode) {
                None => Read::Offset(group, place, None),
                Some(Ok(value)) => {
                    let OffsetValue { offset, topic_id, metadata, committed_at_ms } = value;
                    let progress = Progress { offset, topic_id, metadata, committed_at_ms };
                    Read::Offset(group, place, Some(progress))
                }
                Some(Err(_)) => Read::Other,
            }
        }
        Some(Subject::Coordinator(_)) | None => Read::Other,
    }
}
