//! The records that groups are kept in: keys and values, to bytes and back.
//!
//! Owns: the encoding and its version. Never: where the records lie, or what follows from them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use highwater_proto::batch::RecordView;
use highwater_proto::internal::group_key::Subject;
use highwater_proto::internal::{
    CoordinatorKey, GroupKey, GroupValue, MemberValue, OffsetKey, OffsetValue, OwnedTopic, SeenKey,
    SeenValue, TopicValue,
};
use prost::Message;

use super::engine::{Group, JoinSpec, Owned, Place, Topic};
use super::offsets::Progress;
use super::options::GROUP_BYTES_MAX;

/// Format of keys and values.
const VERSION: u32 = 1;
/// Most bytes that the ownership of one partition takes: its number and its epoch.
const PLACE_BYTES_MAX: usize = 5 + 10;
/// Most bytes that the ownership of partitions of one topic takes beside those.
const OWNED_TOPIC_BYTES_MAX: usize = 24;

/// A record to be written: its key, and its value unless what the key names is gone.
pub(super) type Written = (Bytes, Option<Bytes>);

/// A record that was read.
#[derive(Debug)]
pub(super) enum Read {
    /// A group; without a value it was deleted.
    Group(String, Option<GroupValue>),
    /// Progress in a partition.
    Offset(String, Place, Option<Progress>),
    /// How far the metadata had been seen.
    Seen(u64),
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

/// How far the metadata have been seen.
pub(super) fn seen(metadata_index: u64) -> Written {
    let value = SeenValue { metadata_index };
    (key(Subject::Seen(SeenKey {})), Some(value.encode_to_vec().into()))
}

/// A group as it is now.
pub(super) fn group(name: &str, group: &Group, empty_for: Duration) -> Written {
    (key(Subject::Group(name.to_owned())), Some(value(group, empty_for).encode_to_vec().into()))
}

/// A group that is gone.
pub(super) fn group_gone(name: &str) -> Written {
    (key(Subject::Group(name.to_owned())), None)
}

/// How many partitions the members of a group could own, whoever owns what, so that it can still be stored; `None` if these members
/// alone are too many.
pub(super) fn places_max(group: &Group) -> Option<usize> {
    let mut members = value(group, Duration::MAX);
    for member in &mut members.members {
        member.owned.clear();
    }
    let topics: usize = members.members.iter().map(|member| member.topics.len()).sum();
    let bytes = members.encoded_len() + topics * OWNED_TOPIC_BYTES_MAX;
    Some(GROUP_BYTES_MAX.checked_sub(bytes)? / PLACE_BYTES_MAX)
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

fn value(group: &Group, empty_for: Duration) -> GroupValue {
    let topics = group.topics_read();
    let numbers: BTreeMap<&str, u32> = topics.iter().copied().zip(0..).collect();
    let number = |topic: &str| numbers.get(topic).copied().unwrap_or(u32::MAX);
    let mut owned: BTreeMap<&str, BTreeMap<u32, OwnedTopic>> = BTreeMap::new();
    for ((topic, partition), owner) in &group.owners {
        let topic = number(topic);
        let topics = owned.entry(&owner.member_id).or_default();
        let entry =
            topics.entry(topic).or_insert_with(|| OwnedTopic { topic, ..Default::default() });
        entry.partitions.push(*partition);
        entry.epochs.push(owner.epoch);
    }
    let topic_value = |name: &&str| {
        let known = group.topics().get(*name);
        TopicValue {
            name: (*name).to_owned(),
            id: known.map(|topic| topic.id.clone()).unwrap_or_default(),
            partitions: known.map_or(0, |topic| topic.partitions),
        }
    };
    let topics = topics.iter().map(topic_value).collect();
    let millis = |duration: Duration| u32::try_from(duration.as_millis()).unwrap_or(u32::MAX);
    let members = group.members.iter().map(|(id, member)| MemberValue {
        member_id: id.clone(),
        static_id: member.spec.static_id.clone(),
        client_id: member.spec.client_id.clone(),
        topics: member.spec.topics.iter().map(|topic| number(topic)).collect(),
        session_timeout_ms: millis(member.spec.session_timeout),
        progress_timeout_ms: millis(member.spec.progress_timeout),
        owned: owned.remove(id.as_str()).unwrap_or_default().into_values().collect(),
    });
    let empty_for_ms = u64::try_from(empty_for.as_millis()).unwrap_or(u64::MAX);
    GroupValue { epoch: group.epoch, members: members.collect(), empty_for_ms, topics }
}

/// The group that a value describes; its members' time counts from `now`.
pub(super) fn restore(now: Duration, value: GroupValue) -> Group {
    let topics = value.topics;
    let name = |number: u32| {
        let topic = usize::try_from(number).ok().and_then(|number| topics.get(number));
        topic.map(|topic| topic.name.clone())
    };
    let members = value.members.into_iter().map(|member| {
        let owned = member.owned.into_iter().filter_map(|entry| {
            let OwnedTopic { topic, partitions, epochs } = entry;
            let topic = name(topic)?;
            let one = move |(partition, epoch)| Owned { topic: topic.clone(), partition, epoch };
            Some(partitions.into_iter().zip(epochs).map(one))
        });
        let owned = owned.flatten();
        let spec = JoinSpec {
            member_id: member.member_id,
            static_id: member.static_id,
            client_id: member.client_id,
            topics: member.topics.into_iter().filter_map(name).collect::<BTreeSet<_>>(),
            session_timeout: Duration::from_millis(member.session_timeout_ms.into()),
            progress_timeout: Duration::from_millis(member.progress_timeout_ms.into()),
        };
        (spec, owned.collect())
    });
    let exist = topics.iter().filter(|topic| !topic.id.is_empty()).map(|topic| {
        let TopicValue { name, id, partitions } = topic.clone();
        (name, Topic { id, partitions })
    });
    Group::restore(now, value.epoch, exist.collect(), members)
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
        Some(Subject::Seen(_)) => match record.value.clone().map(SeenValue::decode) {
            Some(Ok(value)) => Read::Seen(value.metadata_index),
            None | Some(Err(_)) => Read::Other,
        },
        Some(Subject::Coordinator(_)) | None => Read::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::super::options::NAME_BYTES_MAX;
    use super::*;

    /// A group with members and topics of long names, as large as it may be, where everybody owns something of everything.
    fn large() -> Group {
        let topics: BTreeSet<String> =
            (0..30).map(|n| format!("{n:0>width$}", width = NAME_BYTES_MAX)).collect();
        let mut group = Group::new(u64::MAX - 1_000_000);
        for n in 0..200 {
            let spec = JoinSpec {
                member_id: format!("{n:0>64}"),
                static_id: format!("{n:0>width$}", width = NAME_BYTES_MAX),
                client_id: "c".repeat(128),
                topics: topics.clone(),
                session_timeout: Duration::from_secs(1_800),
                progress_timeout: Duration::from_secs(86_400),
            };
            group.join(Duration::ZERO, spec);
        }
        let max = places_max(&group).unwrap();
        let id = "i".repeat(36);
        group.set_topics(|_| Some(Topic { id: id.clone(), partitions: 1_000_000 }), max);
        assert!(group.left_out() > 0);
        assert_eq!(group.places().count(), max);
        group
    }

    #[test]
    fn what_fits_can_be_stored_whoever_owns_it() {
        let (_, stored) = group("g", &large(), Duration::MAX);
        assert!(stored.unwrap().len() <= GROUP_BYTES_MAX);
    }

    #[test]
    fn a_group_comes_back_as_it_was_stored() {
        let group = large();
        let before = value(&group, Duration::from_secs(7));
        let again = restore(Duration::ZERO, before.clone());
        assert_eq!(value(&again, Duration::from_secs(7)), before);
        assert_eq!(again.owners, group.owners);
        assert_eq!(again.topics(), group.topics());
    }

    #[test]
    fn too_many_members_have_no_room_for_partitions() {
        let mut group = Group::new(0);
        for n in 0..1_000 {
            let spec = JoinSpec {
                member_id: format!("{n:0>64}"),
                static_id: format!("{n:0>width$}", width = NAME_BYTES_MAX),
                client_id: "c".repeat(1_000),
                topics: BTreeSet::from(["orders".to_owned()]),
                session_timeout: Duration::from_secs(10),
                progress_timeout: Duration::from_secs(10),
            };
            group.join(Duration::ZERO, spec);
        }
        assert_eq!(places_max(&group), None);
    }
}
