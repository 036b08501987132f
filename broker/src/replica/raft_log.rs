//! The segment log as the raft crate sees it.
//!
//! Owns: the crate's `Storage` trait. Never: writes; the core appends to the log and this only reads.

use std::cell::RefCell;

use bytes::Bytes;
use highwater_proto::internal::ReplicaCheckpoint;
use highwater_storage::{CompactedReader, EntryMeta, HardState, LogReader, StorageError};
use prost::Message;
use raft::eraftpb::{self, ConfState, Entry, Snapshot};
use raft::{GetEntriesContext, RaftState};

use super::convert;
use super::envelope::{EntryKind, to_raft_entry};

/// Entries of a fetch that names no limit.
const FETCH_BYTES_MAX: u64 = 8 << 20;

/// What raft reads. The core keeps its fields up to date.
pub(crate) struct RaftLog {
    pub(crate) reader: LogReader,
    pub(crate) compacted: CompactedReader,
    pub(crate) members: ConfState,
    /// As of the start, for `initial_state` only.
    pub(crate) hard_state: HardState,
    /// What a follower that is behind the log's start gets.
    pub(crate) snapshot: ReplicaCheckpoint,
    /// A read that failed. Raft cannot be told in every case, so the core looks here after every call and quarantines the
    /// replica.
    pub(crate) damage: RefCell<Option<String>>,
}

impl RaftLog {
    fn damaged(&self, error: &StorageError) -> raft::Error {
        *self.damage.borrow_mut() = Some(error.to_string());
        raft::Error::Store(raft::StorageError::LogTemporarilyUnavailable)
    }
}

impl raft::Storage for RaftLog {
    fn initial_state(&self) -> raft::Result<RaftState> {
        let hard_state = eraftpb::HardState {
            term: self.hard_state.term,
            vote: self.hard_state.vote,
            commit: self.hard_state.commit,
            ..Default::default()
        };
        Ok(RaftState::new(hard_state, self.members.clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        let bytes_max = max_size.into().unwrap_or(u64::MAX).min(FETCH_BYTES_MAX);
        // What is sent, or means something to the state machine, is verified; of a batch that is applied nothing is looked at, and
        // summing it once more would be a sixteenth of a loaded broker's time.
        let is_sent = context.can_async();
        let verify = |meta: &EntryMeta| is_sent || meta.kind != EntryKind::Batch as u8;
        match self.reader.entries_verified_if(low, high, bytes_max, verify) {
            Ok(stored) => Ok(stored.iter().map(to_raft_entry).collect()),
            Err(StorageError::Compacted { .. }) => {
                Err(raft::Error::Store(raft::StorageError::Compacted))
            }
            // "Temporarily unavailable" is only understood where entries are sent; elsewhere the crate would panic, and no entries
            // is an answer that harms nobody until the core has seen the damage.
            Err(error) => {
                let unavailable = self.damaged(&error);
                if context.can_async() { Err(unavailable) } else { Ok(Vec::new()) }
            }
        }
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        self.reader.term(index).ok_or_else(|| {
            let reason = if index + 1 < self.reader.first_index() {
                raft::StorageError::Compacted
            } else {
                raft::StorageError::Unavailable
            };
            raft::Error::Store(reason)
        })
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.reader.first_index())
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.reader.last_index())
    }

    fn snapshot(&self, request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        if self.snapshot.index < request_index {
            return Err(raft::Error::Store(raft::StorageError::SnapshotTemporarilyUnavailable));
        }
        let manifest = self.compacted.manifest();
        if manifest.as_ref().is_some_and(|m| m.end.first_index != self.snapshot.index + 1) {
            // The log's prefix is about to be dropped; until then the two do not fit together.
            return Err(raft::Error::Store(raft::StorageError::SnapshotTemporarilyUnavailable));
        }
        let compacted = manifest.as_ref().map(convert::manifest_to_wire);
        let checkpoint = ReplicaCheckpoint { compacted, ..self.snapshot.clone() };
        let mut snapshot =
            Snapshot { data: checkpoint.encode_to_vec().into(), ..Default::default() };
        let metadata = snapshot.mut_metadata();
        metadata.index = self.snapshot.index;
        metadata.term = self.snapshot.term;
        let members = self
            .snapshot
            .members
            .as_ref()
            .map_or_else(|| self.members.clone(), convert::members_from_wire);
        metadata.set_conf_state(members);
        Ok(snapshot)
    }
}

/// Decodes what [`RaftLog::snapshot`] made; the metadata beside it must agree.
pub(crate) fn decode_snapshot(snapshot: &Snapshot) -> Result<ReplicaCheckpoint, String> {
    let checkpoint = ReplicaCheckpoint::decode(Bytes::clone(&snapshot.data))
        .map_err(|error| format!("snapshot does not decode: {error}"))?;
    let metadata = snapshot.get_metadata();
    if (checkpoint.index, checkpoint.term) != (metadata.index, metadata.term) {
        return Err(format!(
            "snapshot says index {} term {}, its metadata {} and {}",
            checkpoint.index, checkpoint.term, metadata.index, metadata.term
        ));
    }
    Ok(checkpoint)
}
