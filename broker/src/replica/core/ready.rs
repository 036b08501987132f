//! Handling raft's Ready: append, hand over what must be synced, send, commit, apply.
//!
//! Owns: the order of these steps. The asynchronous contract of the raft crate, in short: entries are readable in the log
//! before `advance_append_async`; a leader's messages leave at once; everyone else's wait in `unpersisted` until
//! [`Core::persisted`] says that this Ready and all before it are durable.

use highwater_proto::batch::stamped_checksum;
use highwater_proto::internal::{AdvanceLogStart, ReplicaCheckpoint};
use highwater_storage::{HardState, LogStart, StagedCompaction, StorageError};
use prost::Message as _;
use raft::eraftpb::{Entry, Message, MessageType, Snapshot};
use raft::{Ready, SnapshotStatus};

use super::open::last_append_time;
use super::{
    Answer, AppendedAck, Core, Derived, Effects, Outbound, Persist, Quarantine, Unpersisted,
    rebuild,
};
use crate::replica::envelope::{self, Described, EntryKind};
use crate::replica::producers::{Produced, Producers};
use crate::replica::raft_log::decode_snapshot;

/// Commands applied between two checkpoints of a state machine.
const COMMANDS_PER_CHECKPOINT: u64 = if cfg!(test) { 64 } else { 1024 };
/// What a frame takes beside its payload, at most.
const FRAME_OVERHEAD_BYTES: u64 = 128;
/// Kept free in the active segment for entries that raft adds by itself, so that a full disk does not stop an election.
const SLACK_BYTES: u64 = 8 << 10;

/// What is to be appended, which says whose room it may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RoomFor {
    /// What runs the group.
    Control,
    /// Batches that a publisher can keep.
    OwnBatches,
    /// Batches that the leader's log holds already. Behind them may stand the entry that makes room, a new log start, so that a
    /// follower takes some of them into the reserve.
    LeadersBatches,
}

impl Core {
    /// Handles everything that is ready. Called after every change, so that between calls all of raft's log is in the log.
    pub(super) fn handle_ready(&mut self, effects: &mut Effects) {
        loop {
            while self.broken.is_none() && self.raw.has_ready() {
                let ready = self.raw.ready();
                if let Err(error) = self.handle_one(ready, effects) {
                    let why = format!("the log cannot be written: {error}");
                    self.take_out(Quarantine { why, is_damage: error.is_corrupt() });
                    // What was about to be acknowledged may rest on what could not be written.
                    effects.messages.clear();
                }
                self.notice_damage();
            }
            self.notice_damage();
            self.follow_commit(effects);
            self.answer_reads(effects);
            if !self.begin_round() {
                return;
            }
        }
    }

    fn handle_one(&mut self, mut ready: Ready, effects: &mut Effects) -> Result<(), StorageError> {
        let installed = match ready.snapshot().is_empty() {
            true => None,
            false => self.install(ready.snapshot())?,
        };
        self.reads.proved(ready.read_states());
        let entries = ready.take_entries();
        if !entries.is_empty() {
            self.append(&entries, effects)?;
        }
        self.report_appended(effects);

        let wants_appended = self.waiters.has_quorum_waiters();
        let mut leader_messages = ready.take_messages();
        // A leader speaks at once: whoever voted for it knew that its term was durable. One that is the only voter leads before that.
        // After a power loss it may lead in the same term again, with other entries, and learners must not have heard of these.
        let is_term_durable = self.durable_term >= self.raw.raft.term;
        if is_term_durable {
            self.send(std::mem::take(&mut leader_messages), wants_appended, effects);
        }
        let number = ready.number();
        let must_sync = ready.must_sync();
        let (unhurried, mut messages): (Vec<Message>, Vec<Message>) = ready
            .take_persisted_messages()
            .into_iter()
            .partition(|message| message.get_msg_type() == MessageType::MsgHeartbeatResponse);
        // An answer to a heartbeat promises nothing about the log. Waiting for a slow disk it would cost a healthy leader its
        // majority.
        self.send(unhurried, false, effects);
        messages.append(&mut leader_messages);
        let committed = ready.take_committed_entries();
        self.raw.advance_append_async(ready);
        if let Some(index) = installed {
            // A snapshot is durable once installed. Raft must hear so at once: an election looks for entries behind `applied`,
            // and those before the snapshot are gone. The messages of this Ready still wait for its hard state.
            self.raw.on_persist_ready(number);
            self.raw.advance_apply_to(index);
        }
        if must_sync || !self.unpersisted.is_empty() {
            // Messages wait for this Ready *and* those before it: an answer may speak of entries that an earlier one brought.
            self.unpersisted.push_back(Unpersisted { number, term: self.raw.raft.term, messages });
            let hard_state = self.changed_hard_state();
            let merged = effects.persist.take().and_then(|earlier| earlier.hard_state);
            effects.persist = Some(Persist {
                number,
                point: self.log.sync_point(),
                hard_state: hard_state.or(merged),
            });
        } else {
            self.raw.on_persist_ready(number);
            self.send(messages, false, effects);
        }
        self.apply(&committed, effects)
    }

    /// The hard state, if term or vote differ from what the journal holds. A commit alone is not worth a sync: it is found
    /// again by the next election.
    fn changed_hard_state(&mut self) -> Option<HardState> {
        let now = self.hard_state();
        let changed = (now.term, now.vote) != (self.saved.term, self.saved.vote);
        changed.then(|| {
            self.saved = now;
            now
        })
    }

    pub(super) fn send(
        &mut self,
        messages: Vec<Message>,
        wants_appended: bool,
        effects: &mut Effects,
    ) {
        for message in messages {
            if message.get_msg_type() == MessageType::MsgSnapshot {
                // Ours are small and travel as one message. Reporting it as done at once only means that the peer is probed
                // next; a lost one is sent again by that probe.
                self.raw.report_snapshot(message.to, SnapshotStatus::Finish);
            }
            let wants = wants_appended && message.get_msg_type() == MessageType::MsgAppend;
            effects.messages.push(Outbound { message, wants_appended: wants });
        }
    }

    /// Appends entries in order. Those that replace others cut the log first.
    fn append(&mut self, entries: &[Entry], effects: &mut Effects) -> Result<(), StorageError> {
        let first = entries[0].index;
        if first <= self.log.last_index() {
            self.truncate(first)?;
        }
        for entry in entries {
            let described = match envelope::describe(entry, self.append_time_ms) {
                Ok(described) => described,
                Err(error) => {
                    self.quarantine(error.to_string());
                    return Ok(());
                }
            };
            let base_offset = self.log.next_offset();
            if let Some(envelope) = described.envelope
                && envelope.base_offset != base_offset
            {
                self.quarantine(format!(
                    "entry {} has base offset {} on the leader and {base_offset} here",
                    entry.index, envelope.base_offset
                ));
                return Ok(());
            }
            if self.log.will_roll(entry.data.len())
                && self.log.last_index() >= self.log.first_index()
            {
                effects.checkpoints.extend(self.partition_checkpoint());
            }
            self.append_one(entry, &described)?;
            effects.appended_bytes += entry.data.len() as u64;
            effects.appended_entries += 1;
        }
        Ok(())
    }

    /// Seals the active segment, with a checkpoint of what holds before the next.
    pub(crate) fn roll(&mut self, effects: &mut Effects) -> Result<(), StorageError> {
        if self.log.last_index() >= self.log.first_index() {
            effects.checkpoints.extend(self.partition_checkpoint());
            self.log.roll()?;
        }
        Ok(())
    }

    /// Makes sure that entries can be appended before raft takes them, since it cannot give them back. Rolls first
    /// where they would not fit the segment. The reserve is for what runs the group: a leader takes no batches until it is whole again.
    pub(super) fn make_room(
        &mut self,
        bytes: u64,
        entries: usize,
        room_for: RoomFor,
        effects: &mut Effects,
    ) -> Result<(), StorageError> {
        let full = |core: &Self| {
            let source = std::io::Error::from(std::io::ErrorKind::StorageFull);
            let path = core.files.dir().to_owned();
            Err(StorageError::Io { operation: "append batches to", path, source })
        };
        match (room_for, self.reserve.is_whole()) {
            (RoomFor::Control, _) => {
                self.insist(|core| core.try_make_room(bytes, entries, effects))
            }
            (RoomFor::OwnBatches, false) => full(self),
            (RoomFor::OwnBatches, true) => self.try_make_room(bytes, entries, effects),
            (RoomFor::LeadersBatches, false) if !self.reserve.draw(bytes) => full(self),
            (RoomFor::LeadersBatches, false) => self.try_make_room(bytes, entries, effects),
            (RoomFor::LeadersBatches, true) => match self.try_make_room(bytes, entries, effects) {
                Err(error) if error.is_disk_full() && self.reserve.draw(bytes) => {
                    self.reserve.release();
                    self.try_make_room(bytes, entries, effects)
                }
                outcome => outcome,
            },
        }
    }

    /// Writes what must be written though the disk is full: with the room of the reserve. Only what may be tried again after
    /// it failed.
    pub(super) fn insist<T>(
        &mut self,
        mut write: impl FnMut(&mut Self) -> Result<T, StorageError>,
    ) -> Result<T, StorageError> {
        match write(self) {
            Err(error) if error.is_disk_full() => {
                if self.reserve.release() {
                    let group = self.group;
                    tracing::warn!(group, %error, "the disk is full; publishing stops until there is room");
                }
                // Somebody else may have given the room away a moment ago: it is tried again in any case.
                write(self)
            }
            outcome => outcome,
        }
    }

    fn try_make_room(
        &mut self,
        bytes: u64,
        entries: usize,
        effects: &mut Effects,
    ) -> Result<(), StorageError> {
        let overhead =
            u64::try_from(entries).unwrap_or(u64::MAX).saturating_mul(FRAME_OVERHEAD_BYTES);
        // Beside what is asked for there is always room for the small entries that raft itself adds.
        let bytes = bytes.saturating_add(SLACK_BYTES);
        let needed = usize::try_from(bytes.saturating_add(overhead)).unwrap_or(usize::MAX);
        if self.log.will_roll(needed) {
            self.roll(effects)?;
        }
        self.log.reserve(bytes, entries)
    }

    fn append_one(&mut self, entry: &Entry, described: &Described) -> Result<(), StorageError> {
        let base_offset = match described.header {
            Some(header) => {
                // The stamp lies outside the batch's checksum, so the payload itself goes to the file untouched.
                let stamp = envelope::stamp(&entry.data, self.log.next_offset(), entry.term);
                let parts: [&[u8]; 2] = [&stamp, &entry.data[stamp.len()..]];
                // What the batch says of its records, checked when it came in, holds for the frame: they are not read again, and
                // a bit that flips between there and the disk is found.
                let sum = stamped_checksum(&stamp, &entry.data);
                let base_offset =
                    self.insist(|core| core.log.append_summed(&described.meta, &parts, sum))?;
                self.record_produced(&header, described, base_offset);
                base_offset
            }
            None => self.insist(|core| core.log.append(&described.meta, &[&entry.data]))?,
        };
        self.append_time_ms = self.append_time_ms.max(described.meta.append_time_ms);
        let end = base_offset + u64::from(described.meta.offset_span);
        self.ends.push_back((entry.index, end));
        Ok(())
    }

    fn record_produced(
        &mut self,
        header: &highwater_proto::batch::BatchHeader,
        described: &Described,
        base_offset: u64,
    ) {
        if let Derived::Partition(producers) = &mut self.derived {
            let meta = &described.meta;
            producers.record(
                header,
                Produced::of(header, meta.index, meta.term, base_offset, meta.append_time_ms),
            );
        }
    }

    /// Cuts a suffix that never committed, and what was derived from it.
    fn truncate(&mut self, from: u64) -> Result<(), StorageError> {
        assert!(
            from > self.committed,
            "committed entries never change: {from} <= {}",
            self.committed
        );
        self.insist(|core| core.log.truncate_suffix(from))?;
        while self.ends.pop_back_if(|(index, _)| *index >= from).is_some() {}
        self.rebuild_derived()
    }

    /// Derived state that appends change, as of the last entry.
    fn rebuild_derived(&mut self) -> Result<(), StorageError> {
        match &mut self.derived {
            Derived::Partition(producers) => {
                let last = self.log.last_index();
                let rebuilt = rebuild::as_of(last, &self.files, &self.log.reader())?;
                *producers = rebuilt.producers;
                self.append_time_ms = rebuilt.append_time_ms;
            }
            Derived::Machine(_) => {
                let before = self.raw.store().snapshot.append_time_ms;
                self.append_time_ms = before.max(last_append_time(&self.log));
            }
        }
        Ok(())
    }

    /// Derived state as of the last appended entry.
    fn partition_checkpoint(&self) -> Option<ReplicaCheckpoint> {
        match &self.derived {
            Derived::Partition(producers) => {
                Some(self.checkpoint_of(producers, self.log.last_index(), self.append_time_ms))
            }
            Derived::Machine(_) => None,
        }
    }

    fn checkpoint_of(
        &self,
        producers: &Producers,
        index: u64,
        append_time_ms: i64,
    ) -> ReplicaCheckpoint {
        let reader = self.log.reader();
        ReplicaCheckpoint {
            index,
            term: reader.term(index).unwrap_or_default(),
            next_offset: reader.end_offset(index).unwrap_or_default(),
            // What is only in memory would be lost if raft never handed it over again.
            applied_index: match self.state_unsaved {
                true => self.stored_applied,
                false => self.raw.raft.raft_log.applied.min(index),
            },
            producers: producers.to_images(),
            append_time_ms,
            ..ReplicaCheckpoint::default()
        }
    }

    /// Tells the leader what is appended here, if it asked.
    fn report_appended(&mut self, effects: &mut Effects) {
        let Some(asked) = self.wants_appended.take() else { return };
        let raft = &self.raw.raft;
        let holds = self.log.reader().term(asked.index) == Some(asked.entry_term);
        if raft.term == asked.leader_term && raft.leader_id != 0 && holds {
            effects.appended.push(AppendedAck {
                group_id: self.group,
                from_replica: self.replica,
                to_replica: raft.leader_id,
                term: asked.leader_term,
                index: asked.index,
            });
        }
    }

    /// The high watermark follows raft's commit index, not the entries handed over for applying: those wait for this
    /// replica's own disk.
    pub(super) fn follow_commit(&mut self, effects: &mut Effects) {
        let committed = self.raw.raft.raft_log.committed.min(self.log.last_index());
        if committed <= self.committed {
            return;
        }
        let mut end = None;
        while let Some((_, passed)) = self.ends.pop_front_if(|(index, _)| *index <= committed) {
            end = Some(passed);
        }
        // Entries from before the start of this process are not in `ends`.
        if let Some(end) = end.or_else(|| self.log.reader().end_offset(committed)) {
            self.high_watermark = self.high_watermark.max(end);
        }
        self.committed = committed;
        self.waiters.answer_committed(committed, effects);
    }

    fn apply(&mut self, committed: &[Entry], effects: &mut Effects) -> Result<(), StorageError> {
        let Some(last) = committed.last() else { return Ok(()) };
        for entry in committed {
            self.apply_one(entry, effects)?;
        }
        self.raw.advance_apply_to(last.index);
        if let Derived::Machine(machine) = &self.derived
            && last.index >= self.raw.store().snapshot.index + COMMANDS_PER_CHECKPOINT
        {
            let image = machine.image();
            match self.checkpoint_machine(image, last.index, last.term) {
                Err(error) if error.is_disk_full() => {
                    tracing::warn!(group = self.group, %error, "no room for a checkpoint; trying again later");
                }
                outcome => outcome?,
            }
        }
        Ok(())
    }

    fn apply_one(&mut self, entry: &Entry, effects: &mut Effects) -> Result<(), StorageError> {
        let kind = match envelope::describe(entry, 0) {
            Ok(described) => EntryKind::from_number(described.meta.kind),
            Err(error) => {
                self.quarantine(error.to_string());
                return Ok(());
            }
        };
        match (kind, &mut self.derived) {
            (Some(EntryKind::AdvanceLogStart), _) => {
                let advance = AdvanceLogStart::decode(entry.data.clone()).unwrap_or_default();
                self.advance_log_start(advance.log_start_offset, entry.index)?;
                let start = self.state.log_start_offset;
                self.waiters.answer_applied(entry.index, Answer::LogStart(start), effects);
            }
            (Some(EntryKind::Command), Derived::Machine(machine)) => {
                let outcome = machine.apply(entry.index, &entry.data);
                self.waiters.answer_applied(entry.index, Answer::Applied(outcome), effects);
            }
            (Some(EntryKind::Members), _) => self.apply_members(entry, effects)?,
            _ => {}
        }
        Ok(())
    }

    /// Applies a new start of the log. What lies wholly below it is unlinked only after the new start is durable.
    fn advance_log_start(&mut self, offset: u64, index: u64) -> Result<(), StorageError> {
        let end = self.log.reader().end_offset(index).unwrap_or(self.high_watermark);
        self.state.log_start_offset = self.state.log_start_offset.max(offset.min(end));
        self.state.applied_index = index;
        self.state_unsaved = true;
        match self.drop_prefix() {
            // Nothing is lost by waiting: the entry is in the log, and the next look at retention tries again.
            Err(error) if error.is_disk_full() => {
                tracing::warn!(group = self.group, %error, "the log's start will be saved when there is room");
                Ok(())
            }
            outcome => outcome,
        }
    }

    /// Puts a new compacted part into place and drops what it covers from the log. False if it does not fit (any more).
    pub(crate) fn swap_compacted(&mut self, mut staged: StagedCompaction) -> bool {
        let end = staged.manifest().end;
        let fits = self.broken.is_none()
            && self.compacted.accepts(&staged)
            && self.log.first_index() <= end.first_index
            && self.log.reader().term(end.first_index - 1) == Some(end.prev_term)
            && self.log.reader().end_offset(end.first_index - 1) == Some(end.next_offset)
            && end.first_index <= self.settled_index() + 1;
        if !fits {
            return false;
        }
        match self.compacted.install(&mut staged).and_then(|()| self.drop_prefix()) {
            Ok(()) => true,
            Err(error) if error.is_disk_full() => {
                tracing::warn!(group = self.group, %error, "no room to put compacted segments into place; trying again later");
                false
            }
            Err(error) => {
                self.quarantine(format!("compacted segments cannot be put into place: {error}"));
                false
            }
        }
    }

    /// Drops sealed segments whose records are all below the start of the log, or in the compacted part.
    pub(crate) fn drop_prefix(&mut self) -> Result<(), StorageError> {
        if self.state_unsaved {
            self.insist(|core| core.files.store_state(&core.state))?;
            self.state_unsaved = false;
            self.stored_applied = self.state.applied_index;
        }
        let log_start = self.state.log_start_offset;
        let applied = self.raw.raft.raft_log.applied.max(self.state.applied_index);
        let segments = self.log.segments();
        let sealed = &segments[..segments.len().saturating_sub(1)];
        let compacted_to = self.compacted.end().map_or(0, |end| end.first_index);
        let condemned = sealed.iter().take_while(|s| {
            let superfluous = s.end_offset <= log_start || s.end_index <= compacted_to;
            superfluous && s.end_index <= applied + 1
        });
        let Some(last) = condemned.last() else { return Ok(()) };
        let first = last.end_index;
        if let Derived::Partition(_) = &self.derived {
            let found = self.files.load_checkpoint(first - 1);
            let fits =
                |found: &ReplicaCheckpoint| self.log.reader().term(first - 1) == Some(found.term);
            let (mut checkpoint, stored) = match found.filter(fits) {
                Some(found) => (found, Ok(())),
                None => {
                    let rebuilt = rebuild::as_of(first - 1, &self.files, &self.log.reader())?;
                    let append_time_ms = rebuilt.append_time_ms;
                    let made = self.checkpoint_of(&rebuilt.producers, first - 1, append_time_ms);
                    let stored = self.files.store_checkpoint(&made);
                    (made, stored)
                }
            };
            checkpoint = self.with_members(checkpoint);
            checkpoint.log_start_offset = log_start.min(checkpoint.next_offset);
            if let Err(error) = stored {
                // The syncer may be writing the same one; until it is there, nothing may be dropped.
                tracing::warn!(group = self.group, %error, "old segments are dropped at the next look");
                return Ok(());
            }
            self.raw.mut_store().snapshot = checkpoint;
        }
        self.log.truncate_prefix(first)?;
        self.files.remove_checkpoints(|index| index + 1 < first)
    }

    /// Writes the state machine's image down and drops the log below it.
    fn checkpoint_machine(
        &mut self,
        image: bytes::Bytes,
        index: u64,
        term: u64,
    ) -> Result<(), StorageError> {
        // As of this entry: what stands behind it may be cut, and its time with it.
        let entry = self.log.reader().entries(index, index + 1, u64::MAX)?;
        let append_time_ms = entry.last().map_or(self.append_time_ms, |e| e.meta.append_time_ms);
        let checkpoint = self.with_members(ReplicaCheckpoint {
            index,
            term,
            applied_index: index,
            state_machine: image,
            append_time_ms,
            ..ReplicaCheckpoint::default()
        });
        self.files.store_checkpoint(&checkpoint)?;
        self.raw.mut_store().snapshot = checkpoint;
        if self.log.last_index() >= self.log.first_index() {
            self.log.roll()?;
        }
        self.log.truncate_prefix(index + 1)?;
        self.files.remove_checkpoints(|other| other < index)
    }

    /// Replaces log and derived state by a snapshot from the leader. Its checkpoint is durable before the log is reset to
    /// it, and `open` finishes an installation that a crash interrupts after that. Answers the index it stands at; `None` if it
    /// cannot be used and the replica is quarantined.
    fn install(&mut self, snapshot: &Snapshot) -> Result<Option<u64>, StorageError> {
        let mut checkpoint = match decode_snapshot(snapshot) {
            Ok(checkpoint) => checkpoint,
            Err(why) => {
                self.quarantine(why);
                return Ok(None);
            }
        };
        tracing::info!(group = self.group, index = checkpoint.index, "installing a snapshot");
        // Its segments are in place before the log is reset; `open` finds the checkpoint and finishes that, too.
        let compacted = checkpoint.compacted.take();
        self.insist(|core| core.files.store_checkpoint(&checkpoint))?;
        match (compacted, self.received.take()) {
            (Some(_), Some(mut staged)) => {
                self.insist(|core| core.compacted.install(&mut staged))?;
            }
            (None, _) => {}
            (Some(_), None) => {
                self.quarantine("a snapshot came without its compacted segments".into());
                return Ok(None);
            }
        }
        let start = LogStart {
            first_index: checkpoint.index + 1,
            prev_term: checkpoint.term,
            next_offset: checkpoint.next_offset,
        };
        self.insist(|core| core.log.reset(start))?;
        let members = snapshot.get_metadata().get_conf_state();
        self.install_members(&checkpoint, members);
        self.state.log_start_offset = checkpoint.log_start_offset;
        self.state.applied_index = checkpoint.index;
        self.insist(|core| core.files.store_state(&core.state))?;
        self.files.remove_checkpoints(|index| index != checkpoint.index)?;
        match &mut self.derived {
            Derived::Partition(producers) => {
                *producers = Producers::from_images(&checkpoint.producers)
            }
            Derived::Machine(machine) => {
                if let Err(why) = machine.restore(checkpoint.index, &checkpoint.state_machine) {
                    self.quarantine(why);
                    return Ok(None);
                }
            }
        }
        self.state_unsaved = false;
        self.stored_applied = checkpoint.index;
        self.ends.clear();
        self.append_time_ms = checkpoint.append_time_ms;
        self.committed = checkpoint.index;
        self.high_watermark = checkpoint.next_offset;
        let store = self.raw.mut_store();
        store.members = members.clone();
        store.snapshot = checkpoint;
        Ok(Some(self.committed))
    }
}
