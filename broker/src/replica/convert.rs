//! Raft messages between the raft crate's types and our wire types, field by field, payloads shared.
//!
//! Owns: the checks that keep a malformed or foreign message out of the raft crate, which panics on some of them. Never: parses
//! bytes with rust-protobuf (RUSTSEC-2024-0437).

use highwater_proto::internal::{
    RaftConfState, RaftEntry, RaftMessage, RaftSnapshot, RaftSnapshotMetadata,
};
use highwater_proto::{batch, internal};
use highwater_storage::{CompactedManifest, CompactedSegment, LogStart};
use raft::eraftpb::{ConfState, Entry, EntryType, Message, MessageType, Snapshot};

use super::envelope::{self, EntryKind};

/// Entries of one message; far above what `max_size_per_msg` allows with the smallest entries.
const ENTRIES_MAX: usize = 1 << 17;

/// Terms and indexes from here on are made up: at one more each nanosecond, it takes a century to get there. Raft adds to them without a
/// look at overflow.
const NUMBER_MAX: u64 = 1 << 62;

/// The types that peers exchange. Local types and forwarded proposals are never taken from the network: a forwarded batch
/// would get its offsets from the wrong node.
pub(super) const FROM_PEERS: [MessageType; 10] = [
    MessageType::MsgAppend,
    MessageType::MsgAppendResponse,
    MessageType::MsgRequestVote,
    MessageType::MsgRequestVoteResponse,
    MessageType::MsgSnapshot,
    MessageType::MsgHeartbeat,
    MessageType::MsgHeartbeatResponse,
    MessageType::MsgTimeoutNow,
    MessageType::MsgRequestPreVote,
    MessageType::MsgRequestPreVoteResponse,
];

/// A message from a peer that must not reach the core.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("raft message refused: {0}")]
pub(crate) struct RefusedMessage(String);

/// What one replica sends to another, in wire form.
pub(crate) fn to_wire(message: Message) -> RaftMessage {
    let Message {
        msg_type,
        to,
        from,
        term,
        log_term,
        index,
        entries,
        commit,
        commit_term,
        snapshot,
        request_snapshot,
        reject,
        reject_hint,
        context,
        priority,
        ..
    } = message;
    RaftMessage {
        msg_type: msg_type as i32,
        to,
        from,
        term,
        log_term,
        index,
        entries: entries.into_iter().map(entry_to_wire).collect(),
        commit,
        commit_term,
        snapshot: snapshot.into_option().map(snapshot_to_wire),
        request_snapshot,
        reject,
        reject_hint,
        context,
        priority,
    }
}

/// Checks a message from a peer and turns it into raft's type. The checks that need the replica's state are the core's.
pub(crate) fn from_wire(wire: RaftMessage) -> Result<Message, RefusedMessage> {
    let msg_type = message_type(wire.msg_type)?;
    // Raft takes a message without a term for one of its own and skips every check; our logs have no entry of term 0.
    if wire.term == 0 || (msg_type == MessageType::MsgAppend && wire.log_term == 0) {
        return Err(RefusedMessage(format!("{msg_type:?} without a term")));
    }
    let numbers = [
        wire.term,
        wire.log_term,
        wire.index,
        wire.commit,
        wire.commit_term,
        wire.request_snapshot,
        wire.reject_hint,
    ];
    if let Some(number) = numbers.into_iter().find(|number| *number > NUMBER_MAX) {
        return Err(RefusedMessage(format!("{msg_type:?} with {number} for a term or an index")));
    }
    if wire.entries.len() > ENTRIES_MAX {
        return Err(RefusedMessage(format!("{} entries in one message", wire.entries.len())));
    }
    if msg_type != MessageType::MsgAppend && !wire.entries.is_empty() {
        return Err(RefusedMessage(format!("{msg_type:?} with entries")));
    }
    if (msg_type == MessageType::MsgSnapshot) != wire.snapshot.is_some() {
        return Err(RefusedMessage(format!("{msg_type:?} with the wrong kind of content")));
    }
    let mut entries = Vec::with_capacity(wire.entries.len());
    let mut expected = wire.index.saturating_add(1);
    let mut term = wire.log_term;
    for entry in wire.entries {
        let entry = entry_from_wire(entry)?;
        if entry.index != expected || entry.term < term || entry.term > wire.term {
            return Err(RefusedMessage(format!(
                "entry {} of term {} where {expected} of a term from {term} to {} belongs",
                entry.index, entry.term, wire.term
            )));
        }
        expected = expected.saturating_add(1);
        term = entry.term;
        entries.push(entry);
    }
    let mut message = Message {
        msg_type,
        to: wire.to,
        from: wire.from,
        term: wire.term,
        log_term: wire.log_term,
        index: wire.index,
        commit: wire.commit,
        commit_term: wire.commit_term,
        request_snapshot: wire.request_snapshot,
        reject: wire.reject,
        reject_hint: wire.reject_hint,
        context: wire.context,
        priority: wire.priority,
        ..Message::default()
    };
    message.set_entries(entries.into());
    if let Some(snapshot) = wire.snapshot {
        message.set_snapshot(snapshot_from_wire(snapshot)?);
    }
    Ok(message)
}

fn message_type(number: i32) -> Result<MessageType, RefusedMessage> {
    FROM_PEERS
        .into_iter()
        .find(|known| *known as i32 == number)
        .ok_or_else(|| RefusedMessage(format!("message type {number} does not come from peers")))
}

fn entry_to_wire(entry: Entry) -> RaftEntry {
    RaftEntry {
        entry_type: entry.entry_type as i32,
        term: entry.term,
        index: entry.index,
        data: entry.data,
        context: entry.context,
    }
}

fn entry_from_wire(wire: RaftEntry) -> Result<Entry, RefusedMessage> {
    let entry_type =
        [EntryType::EntryNormal, EntryType::EntryConfChange, EntryType::EntryConfChangeV2]
            .into_iter()
            .find(|known| *known as i32 == wire.entry_type)
            .ok_or_else(|| {
                RefusedMessage(format!("entry type {} is not known", wire.entry_type))
            })?;
    let entry = Entry {
        entry_type,
        term: wire.term,
        index: wire.index,
        data: wire.data,
        context: wire.context,
        ..Entry::default()
    };
    let described =
        envelope::describe(&entry, 0).map_err(|error| RefusedMessage(error.to_string()))?;
    if described.meta.kind == EntryKind::Batch as u8 {
        // The network's own checksums are weak; what is appended here may one day be the only copy.
        batch::validate(&entry.data, batch::ValidateDepth::Header, &batch::BatchLimits::default())
            .map_err(|error| RefusedMessage(format!("entry {}: {error}", entry.index)))?;
    }
    Ok(entry)
}

fn snapshot_to_wire(snapshot: Snapshot) -> RaftSnapshot {
    let metadata = snapshot.get_metadata();
    RaftSnapshot {
        metadata: Some(RaftSnapshotMetadata {
            conf_state: Some(members_to_wire(metadata.get_conf_state())),
            index: metadata.index,
            term: metadata.term,
        }),
        data: snapshot.data,
    }
}

fn snapshot_from_wire(wire: RaftSnapshot) -> Result<Snapshot, RefusedMessage> {
    let metadata = wire.metadata.unwrap_or_default();
    let made_up = |number: u64| number == 0 || number > NUMBER_MAX;
    if made_up(metadata.index) || made_up(metadata.term) {
        return Err(RefusedMessage(format!(
            "snapshot at index {} of term {}",
            metadata.index, metadata.term
        )));
    }
    let members = metadata
        .conf_state
        .as_ref()
        .map(members_from_wire)
        .filter(|members| !members.voters.is_empty())
        .ok_or_else(|| RefusedMessage("snapshot without members".into()))?;
    let mut snapshot = Snapshot { data: wire.data, ..Snapshot::default() };
    snapshot.mut_metadata().index = metadata.index;
    snapshot.mut_metadata().term = metadata.term;
    snapshot.mut_metadata().set_conf_state(members);
    Ok(snapshot)
}

pub(crate) fn members_to_wire(members: &ConfState) -> RaftConfState {
    RaftConfState {
        voters: members.voters.clone(),
        learners: members.learners.clone(),
        voters_outgoing: members.voters_outgoing.clone(),
        learners_next: members.learners_next.clone(),
        auto_leave: members.auto_leave,
    }
}

pub(crate) fn members_from_wire(wire: &RaftConfState) -> ConfState {
    ConfState {
        voters: wire.voters.clone(),
        learners: wire.learners.clone(),
        voters_outgoing: wire.voters_outgoing.clone(),
        learners_next: wire.learners_next.clone(),
        auto_leave: wire.auto_leave,
        ..ConfState::default()
    }
}
/// A manifest as a snapshot carries it.
pub(crate) fn manifest_to_wire(manifest: &CompactedManifest) -> internal::CompactedManifest {
    let segment = |segment: &CompactedSegment| internal::CompactedSegment {
        file: segment.file,
        first_index: segment.first_index,
        end_index: segment.end_index,
        base_offset: segment.base_offset,
        end_offset: segment.end_offset,
        bytes: segment.bytes,
        checksum: segment.checksum,
        max_timestamp_ms: segment.max_timestamp_ms,
    };
    internal::CompactedManifest {
        segments: manifest.segments.iter().map(segment).collect(),
        end_index: manifest.end.first_index,
        prev_term: manifest.end.prev_term,
        end_offset: manifest.end.next_offset,
        cleaned_to: manifest.cleaned_to,
        next_horizon_ms: manifest.next_horizon_ms,
    }
}

/// The way back. Whether it makes sense is for [`CompactedManifest::is_sound`] to say.
pub(crate) fn manifest_from_wire(wire: &internal::CompactedManifest) -> CompactedManifest {
    let segment = |segment: &internal::CompactedSegment| CompactedSegment {
        file: segment.file,
        first_index: segment.first_index,
        end_index: segment.end_index,
        base_offset: segment.base_offset,
        end_offset: segment.end_offset,
        bytes: segment.bytes,
        checksum: segment.checksum,
        max_timestamp_ms: segment.max_timestamp_ms,
    };
    CompactedManifest {
        segments: wire.segments.iter().map(segment).collect(),
        end: LogStart {
            first_index: wire.end_index,
            prev_term: wire.prev_term,
            next_offset: wire.end_offset,
        },
        cleaned_to: wire.cleaned_to,
        next_horizon_ms: wire.next_horizon_ms,
    }
}
