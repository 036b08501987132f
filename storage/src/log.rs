//! A partition's log: numbered entries in segments, one writer, any number of readers.
//!
//! `Log` is the writer: it owns the directory, appends, rolls, truncates, and knows what is durable. It
//! never syncs appends by itself (`SyncPoint` is for that), never reads a clock, and never looks into a
//! payload. What it needs from disk at the start is in `recovery`.

mod compacted;
mod frame;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod index;
mod reader;
mod recovery;
mod repair;
mod scrub;
mod segment;
mod spare;
mod state;
mod summary;
mod sync;
mod types;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use compacted::{
    Compacted, CompactedManifest, CompactedReader, CompactedReceiver, CompactedSegment,
    CompactedWriter, StagedCompaction, Wanted,
};
pub(crate) use frame::mix;
pub use reader::LogReader;
pub use repair::{Gap, Origin, Repair};
pub use scrub::{Finding, ScrubStep};
pub use spare::SparePool;
pub use state::OpenSealed;
pub use sync::{Settled, SyncPoint, sync_group};
pub use types::{EntryMeta, Epoch, LogOptions, LogStart, RecoveryReport, SegmentInfo, StoredEntry};

use crate::disk::{Disk, DiskFile};
use crate::error::{IoContext, StorageError};
use crate::small_file::write_small_file;
use frame::{FrameHeader, PayloadSum, SEGMENT_HEADER_BYTES, SegmentHeader, frame_bytes, padding};
use index::{Points, SparsePoint};
use segment::{CreateFailure, Scan, Segment};
use spare::Spare;
use state::{SegmentEntry, Shared, State};
use summary::Sealed;

/// The file that says which segment the log begins with, once older ones were dropped.
const START_FILE: &str = "start";
const START_MAGIC: [u8; 8] = *b"HWSTART\0";
const START_VERSION: u32 = 1;

/// The single writer of one partition's directory.
///
/// Invariants: `durable_index <= last_index`; bytes below a segment's published end never change; a file
/// is never shortened.
#[derive(Debug)]
pub struct Log {
    shared: Arc<Shared>,
    dir: PathBuf,
    options: LogOptions,
    identity: u64,
    active: Active,
    /// Sealed segments that are not known to be durable to their ends, oldest first.
    sealed_unsynced: VecDeque<(Arc<Segment>, Arc<dyn DiskFile>)>,
    next_sequence: u64,
    /// How many of the sealed segments the summary on disk speaks for.
    summarized: usize,
    /// The file of a segment that was dropped, for the next one.
    spare: Option<Spare>,
    durable_index: u64,
    /// Counts truncations and resets.
    generation: u64,
    /// Counts added files, and how many of those are durable in the directory.
    dir_version: u64,
    dir_version_synced: u64,
    /// A write failed: what stands behind the tail is unknown, so the next entry goes to a new file.
    must_roll: bool,
    /// A truncation or reset failed after its new segment may have reached the disk.
    interrupted: bool,
}

/// The segment that takes appends.
#[derive(Debug)]
struct Active {
    segment: Arc<Segment>,
    file: Arc<dyn DiskFile>,
    /// Where the next frame goes.
    position: u64,
    /// The size it may grow to.
    bytes_max: u64,
    since_ms: Option<i64>,
}

impl Log {
    /// Creates a log in `dir` (created too) that begins at `start`; durable when it returns.
    /// `AlreadyExists` if there is one; what an interrupted creation left behind is replaced.
    pub fn create(
        disk: Arc<dyn Disk>,
        dir: &Path,
        start: LogStart,
        options: LogOptions,
    ) -> Result<Self, StorageError> {
        let start = LogStart { first_index: start.first_index.max(1), ..start };
        let next_sequence = recovery::prepare_creation(&*disk, dir)?;
        // Two logs of a node never share a directory, nor two of one directory their first sequence:
        // this keeps their frames apart without a random number.
        let path_hash =
            dir.as_os_str().as_encoded_bytes().iter().fold(next_sequence, |hash, byte| {
                mix(hash ^ u64::from(*byte)).wrapping_add(0x9E37_79B9_7F4A_7C15)
            });
        let identity = mix(path_hash ^ mix(start.first_index) ^ start.next_offset.rotate_left(32));
        let header = SegmentHeader {
            log_identity: identity,
            sequence: next_sequence,
            start,
            durable_index: start.first_index - 1,
            resets: true,
            recycled: false,
        };
        let active =
            Active::create(&*disk, dir, header, &options).map_err(|failure| failure.error)?;
        active.file.sync().io_context("sync", &active.segment.path)?;
        recovery::sync_dir_and_parents(&*disk, dir)?;
        let mut state = State::new(start);
        state.push_segment(Arc::clone(&active.segment), &Scan::empty(start));
        Ok(Self::assemble(disk, dir, options, identity, active, next_sequence + 1, state))
    }

    /// Opens the log in `dir`. A torn tail is cut (the report says where), anything else that is wrong is `Corrupt`, and nothing is
    /// changed. What is whole, and nothing shows to be durable, is written again and synced: all of the log is durable. `durable_floor` is an index that other evidence shows to have been durable (0 for none):
    /// a log that ends below it is corrupt, and payloads up to it are not read again here.
    /// `NotFound` if there is no log.
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        options: LogOptions,
        durable_floor: u64,
    ) -> Result<(Self, RecoveryReport), StorageError> {
        recovery::open(disk, dir, options, durable_floor, false)
    }

    /// As `open`, without a sync of names where `settled` covers `dir`: the way to open thousands of logs.
    pub fn open_settled(
        disk: Arc<dyn Disk>,
        dir: &Path,
        options: LogOptions,
        durable_floor: u64,
        settled: &Settled,
    ) -> Result<(Self, RecoveryReport), StorageError> {
        recovery::open(disk, dir, options, durable_floor, settled.covers(dir))
    }

    /// A log whose segments are all durable.
    fn assemble(
        disk: Arc<dyn Disk>,
        dir: &Path,
        options: LogOptions,
        identity: u64,
        active: Active,
        next_sequence: u64,
        state: State,
    ) -> Self {
        let durable_index = state.next_index - 1;
        Self {
            shared: Shared::new(disk, &options, state),
            dir: dir.to_path_buf(),
            options,
            identity,
            active,
            sealed_unsynced: VecDeque::new(),
            next_sequence,
            summarized: 0,
            spare: None,
            durable_index,
            generation: 0,
            dir_version: 0,
            dir_version_synced: 0,
            must_roll: false,
            interrupted: false,
        }
    }

    /// Appends an entry, whose payload is the parts one after the other, and returns its base offset. It
    /// can be read at once and is not yet durable. Rolls when the segment is full. After an error nothing
    /// was appended; a full disk may be tried again. After any other error the entry may be there all the
    /// same once the log is opened again, unless something else was appended in its place and synced.
    pub fn append(&mut self, meta: &EntryMeta, payload: &[&[u8]]) -> Result<u64, StorageError> {
        self.append_with(meta, payload, || PayloadSum::of(payload))
    }

    /// The same for a payload whose CRC-32C is known already, so that it need not be read for that. It is taken at its word:
    /// with a wrong one the entry counts as damaged from the start.
    pub fn append_summed(
        &mut self,
        meta: &EntryMeta,
        payload: &[&[u8]],
        crc32c: u32,
    ) -> Result<u64, StorageError> {
        self.append_with(meta, payload, || PayloadSum::Crc32c(crc32c))
    }

    fn append_with(
        &mut self,
        meta: &EntryMeta,
        payload: &[&[u8]],
        sum: impl FnOnce() -> PayloadSum,
    ) -> Result<u64, StorageError> {
        let payload_len = self.check_append(meta, payload)?;
        if self.will_roll(payload_len as usize) {
            self.start_next_segment()?;
        }
        let (base_offset, last_max_timestamp) = {
            let state = self.shared.state.read();
            let last = state.segments.back().map_or(i64::MIN, |last| last.info.max_timestamp_ms);
            (state.next_offset, last)
        };
        let header = FrameHeader {
            identity: self.active.segment.identity(),
            meta: *meta,
            base_offset,
            payload_len,
            payload_sum: sum(),
            durable_index: self.durable_index,
        };
        let position = self.active.position;
        let end = position + header.frame_bytes();
        self.write_frame(&header, payload, end)?;
        if let Some(points) = self.active.segment.points() {
            let point = SparsePoint {
                position,
                index: meta.index,
                base_offset,
                max_timestamp_before_ms: last_max_timestamp,
            };
            points.write().note(self.options.index_interval_bytes, position, point);
        }
        self.active.position = end;
        self.active.since_ms.get_or_insert(meta.append_time_ms);
        // The bytes are in place: now readers may know.
        self.shared.state.write().push_entry(meta, end);
        Ok(base_offset)
    }

    /// Refuses what would break the order of the log; returns the payload's length.
    fn check_append(&self, meta: &EntryMeta, payload: &[&[u8]]) -> Result<u32, StorageError> {
        self.check_not_interrupted()?;
        let bytes: u64 = payload.iter().map(|part| part.len() as u64).sum();
        let bytes_max = self.options.payload_bytes_max;
        let len = u32::try_from(bytes).ok().filter(|len| *len <= bytes_max);
        let len = len.ok_or(StorageError::PayloadTooLarge { bytes, bytes_max })?;
        let state = self.shared.state.read();
        // The greatest number is never an entry's: the one after it has to exist.
        if meta.index != state.next_index || meta.index == u64::MAX {
            return Err(StorageError::OutOfSequence {
                expected: state.next_index,
                got: meta.index,
            });
        }
        if meta.term < state.last_term {
            return Err(StorageError::TermDecreased {
                index: meta.index,
                last: state.last_term,
                got: meta.term,
            });
        }
        if state.next_offset.checked_add(u64::from(meta.offset_span)).is_none() {
            return Err(StorageError::OffsetsExhausted { next_offset: state.next_offset });
        }
        Ok(len)
    }

    fn write_frame(
        &mut self,
        header: &FrameHeader,
        payload: &[&[u8]],
        end: u64,
    ) -> Result<(), StorageError> {
        let path = &self.active.segment.path;
        segment::reserve(&*self.active.file, end, &self.options)
            .io_context("allocate space in", path)?;
        let head = header.encode();
        let mut parts: Vec<&[u8]> = Vec::with_capacity(payload.len() + 2);
        parts.push(&head);
        parts.extend_from_slice(payload);
        parts.push(padding(header.payload_len as usize));
        let written = self.active.file.write_at(self.active.position, &parts);
        if written.is_err() {
            self.must_roll = true;
        }
        written.io_context("write", path)
    }

    /// Makes sure that appending `entries` payloads of `bytes` in all to the active segment will not run out of
    /// disk space. What does not fit this segment is not looked after: roll first. A full disk is an error
    /// here and changes nothing.
    pub fn reserve(&mut self, bytes: u64, entries: usize) -> Result<(), StorageError> {
        self.check_not_interrupted()?;
        let frames = bytes + entries as u64 * frame_bytes(0) + entries as u64 * 8;
        let end = (self.active.position + frames).min(segment::capacity(&self.options));
        segment::reserve(&*self.active.file, end, &self.options)
            .io_context("allocate space in", &self.active.segment.path)
    }

    /// True if an append of `payload_len` bytes now would begin a new segment.
    pub fn will_roll(&self, payload_len: usize) -> bool {
        let end = self.active.position + frame_bytes(payload_len as u64);
        self.must_roll || (!self.active.is_empty() && end > self.active.bytes_max)
    }

    /// Seals the active segment and begins a new one; does nothing if it is empty. A failed roll changes
    /// nothing and may be tried again.
    pub fn roll(&mut self) -> Result<(), StorageError> {
        self.check_not_interrupted()?;
        if self.active.is_empty() && !self.must_roll {
            return Ok(());
        }
        self.start_next_segment()
    }

    fn start_next_segment(&mut self) -> Result<(), StorageError> {
        if self.active.is_empty() {
            // Only after a failed write: an empty segment is replaced, not sealed.
            return self.cut_and_restart(self.last_index() + 1);
        }
        let start = self.end();
        let active = match self.create_segment(start, false) {
            Ok(active) => active,
            Err(failure) => {
                // If the new header reached the disk it hides what is appended to this file from now on.
                self.must_roll |= failure.header_written;
                return Err(failure.error);
            }
        };
        let old = std::mem::replace(&mut self.active, active);
        self.sealed_unsynced.push_back((old.segment, old.file));
        self.must_roll = false;
        self.dir_version += 1;
        let segment = Arc::clone(&self.active.segment);
        self.shared.state.write().push_segment(segment, &Scan::empty(start));
        self.finish_sealed();
        Ok(())
    }

    /// Creates the file of the next segment. It is not part of the log until the caller says so.
    fn create_segment(&mut self, start: LogStart, resets: bool) -> Result<Active, CreateFailure> {
        let header = SegmentHeader {
            log_identity: self.identity,
            sequence: self.next_sequence,
            start,
            durable_index: self.durable_index.min(start.first_index - 1),
            resets,
            recycled: false,
        };
        // Whatever becomes of the attempt, the number is used up.
        self.next_sequence += 1;
        if let Some(spare) = self.spare.take() {
            let header = SegmentHeader { recycled: true, ..header };
            let reused = Active::reuse(&*self.shared.disk, &self.dir, spare, header, &self.options);
            // What went wrong with the old file need not go wrong with a new one.
            if !matches!(&reused, Err(failure) if !failure.header_written) {
                return reused;
            }
        }
        Active::create(&*self.shared.disk, &self.dir, header, &self.options)
    }

    /// Index of the first entry in the active segment, or of the next one if it is empty.
    pub fn active_since(&self) -> u64 {
        self.shared.state.read().segments.back().map_or(0, |active| active.info.first_index)
    }

    /// Append time of the first entry in the active segment; `None` if it is empty.
    pub fn active_since_ms(&self) -> Option<i64> {
        self.active.since_ms
    }

    /// Cuts every entry at or after `from_index`; durable when it returns, and so is everything before.
    /// Later appends go to a new file. After an error call it again (or open the log again) before
    /// anything else; only a full disk leaves the log as it was.
    pub fn truncate_suffix(&mut self, from_index: u64) -> Result<(), StorageError> {
        let (first, next) = (self.first_index(), self.last_index() + 1);
        if from_index < first || from_index > next {
            let expected = from_index.clamp(first, next);
            return Err(StorageError::OutOfSequence { expected, got: from_index });
        }
        if from_index == next && !self.interrupted {
            return Ok(());
        }
        self.cut_and_restart(from_index)
    }

    fn cut_and_restart(&mut self, from: u64) -> Result<(), StorageError> {
        let cut = self.scan_before(from)?;
        let start = match &cut {
            Some((scan, _)) => LogStart {
                first_index: from,
                prev_term: scan.last_term,
                next_offset: scan.info.end_offset,
            },
            None => self.shared.state.read().start,
        };
        // What stays must be durable before the new segment says that it is.
        self.sync_before(from)?;
        let active = self.create_durable_segment(start, cut.is_none())?;
        let gone = {
            let mut state = self.shared.state.write();
            let gone = state.cut_suffix(from, cut.as_ref().map(|(scan, _)| scan.info));
            state.push_segment(Arc::clone(&active.segment), &Scan::empty(start));
            gone
        };
        self.begin_generation(active, from - 1);
        if let Some((scan, entry)) = cut {
            if let Some(points) = entry.segment.points() {
                points.write().cut(scan.info.bytes);
            }
            self.shared.note_open_sealed(&entry.segment);
            self.write_index(&entry.segment, &scan);
        }
        self.remove_segments(&gone);
        Ok(())
    }

    /// What is left of the segment that entry `from - 1` is in; `None` if nothing is left at all.
    fn scan_before(&self, from: u64) -> Result<Option<(Scan, SegmentEntry)>, StorageError> {
        let entry = {
            let state = self.shared.state.read();
            let count = state.segments.partition_point(|entry| entry.info.first_index < from);
            match count.checked_sub(1).and_then(|last| state.segments.get(last)) {
                None => return Ok(None),
                Some(entry) => entry.clone(),
            }
        };
        let path = &entry.segment.path;
        let file = entry.segment.file(&*self.shared.disk)?;
        let interval = self.options.index_interval_bytes;
        let (header, end) = (&entry.segment.header, entry.info.bytes);
        let scan =
            segment::scan(&file, header, end, from, u64::MAX, interval).io_context("read", path)?;
        if scan.info.end_index != from {
            return Err(StorageError::corrupt(path, scan.info.end_index, "no valid frame"));
        }
        Ok(Some((scan, entry)))
    }

    /// Syncs what is not known to be durable of the entries before `from`.
    fn sync_before(&mut self, from: u64) -> Result<(), StorageError> {
        if self.durable_index + 1 >= from {
            return Ok(());
        }
        let point = self.sync_point();
        point.sync().io_context("sync", &self.dir)?;
        self.mark_durable(&point);
        Ok(())
    }

    /// Creates a segment that hides entries of older ones, durably.
    fn create_durable_segment(
        &mut self,
        start: LogStart,
        resets: bool,
    ) -> Result<Active, StorageError> {
        let active = self.create_segment(start, resets).map_err(|failure| {
            self.interrupted |= failure.header_written;
            failure.error
        })?;
        // From here on the new segment may or may not count after a crash.
        self.interrupted = true;
        active.file.sync().io_context("sync", &active.segment.path)?;
        self.shared.disk.sync_dir(&self.dir).io_context("sync directory", &self.dir)?;
        self.interrupted = false;
        Ok(active)
    }

    /// Takes over after a truncation or reset: everything up to `durable_index`, the end, is durable.
    fn begin_generation(&mut self, active: Active, durable_index: u64) {
        self.active = active;
        self.sealed_unsynced.clear();
        // The segment that was cut is not what it was; those before it are.
        let unchanged = self.shared.state.read().segments.len().saturating_sub(2);
        self.summarized = self.summarized.min(unchanged);
        self.durable_index = durable_index;
        self.generation += 1;
        self.dir_version += 1;
        self.dir_version_synced = self.dir_version;
        self.must_roll = false;
    }

    /// Drops the segments that lie wholly below `first_index`, never the active one, and returns how many
    /// bytes were in them. The log then begins with the first segment that is left: `first_index()` may be
    /// lower than asked for. Readers keep what they hold.
    pub fn truncate_prefix(&mut self, first_index: u64) -> Result<u64, StorageError> {
        self.check_not_interrupted()?;
        let (count, first) = {
            let state = self.shared.state.read();
            let passed =
                state.segments.partition_point(|entry| entry.info.end_index <= first_index);
            let count = passed.min(state.segments.len() - 1);
            (count, state.segments.get(count).cloned())
        };
        let Some(first) = first.filter(|_| count > 0) else { return Ok(0) };
        // The start file will insist on this segment: it must not be lost.
        let file = first.segment.file(&*self.shared.disk)?;
        file.sync().io_context("sync", &first.segment.path)?;
        let body = first.segment.header.sequence.to_le_bytes();
        let path = self.dir.join(START_FILE);
        write_small_file(&*self.shared.disk, &path, START_MAGIC, START_VERSION, &body)?;
        let gone = self.shared.state.write().cut_prefix(count);
        self.summarized = self.summarized.saturating_sub(count);
        self.sealed_unsynced
            .retain(|(segment, _)| gone.iter().all(|e| !Arc::ptr_eq(&e.segment, segment)));
        let freed = gone.iter().map(|entry| entry.info.bytes).sum();
        // Only here: the start file says for good that these files count for nothing. What a truncation
        // or reset drops might count again if its new segment were lost.
        self.keep_spare(&gone);
        self.remove_segments(&gone);
        Ok(freed)
    }

    /// Drops everything and begins anew at `start`; durable when it returns, and after a crash all or
    /// nothing of it has happened.
    pub fn reset(&mut self, start: LogStart) -> Result<(), StorageError> {
        let start = LogStart { first_index: start.first_index.max(1), ..start };
        let active = self.create_durable_segment(start, true)?;
        let gone = {
            let mut state = self.shared.state.write();
            let gone = std::mem::replace(&mut *state, State::new(start)).segments;
            state.push_segment(Arc::clone(&active.segment), &Scan::empty(start));
            Vec::from(gone)
        };
        self.begin_generation(active, start.first_index - 1);
        self.remove_segments(&gone);
        Ok(())
    }

    /// Removes the files of segments that left the log. Best effort: what stays behind is hidden, and is
    /// removed when the log is opened again.
    fn remove_segments(&self, gone: &[SegmentEntry]) {
        self.shared.forget(gone);
        for entry in gone {
            entry.segment.retire();
            let _ = self.shared.disk.remove_file(&entry.segment.index_path());
            let _ = self.shared.disk.remove_file(&entry.segment.path);
        }
    }

    /// Keeps the file of one of the segments that left the log, if nobody holds any of it.
    fn keep_spare(&mut self, gone: &[SegmentEntry]) {
        if self.spare.is_some() {
            return;
        }
        self.shared.forget(gone);
        let Some(pool) = &self.options.spares else { return };
        let bytes_min = self.options.segment_bytes / 2;
        let nobodys = |entry: &&SegmentEntry| {
            let large = entry.info.bytes >= bytes_min;
            large && entry.segment.retire()
        };
        if let Some(entry) = gone.iter().find(nobodys) {
            self.spare = Spare::make(&*self.shared.disk, pool, &entry.segment.path);
        }
    }

    /// What must be synced for all appended so far to be durable.
    pub fn sync_point(&self) -> SyncPoint {
        let last_index = self.last_index();
        let mut files: Vec<Arc<dyn DiskFile>> = Vec::new();
        let mut dir = None;
        if last_index > self.durable_index {
            files.extend(self.sealed_unsynced.iter().map(|(_, file)| Arc::clone(file)));
            if !self.active.is_empty() {
                files.push(Arc::clone(&self.active.file));
            }
            dir = (self.dir_version > self.dir_version_synced).then(|| self.dir.clone());
        }
        SyncPoint {
            disk: Arc::clone(&self.shared.disk),
            files,
            dir,
            dir_version: self.dir_version,
            generation: self.generation,
            last_index,
        }
    }

    /// Takes note that a sync point is durable. Ignored if a truncation or reset came in between: it made
    /// durable itself what it kept.
    pub fn mark_durable(&mut self, point: &SyncPoint) {
        if point.generation != self.generation {
            return;
        }
        self.durable_index = self.durable_index.max(point.last_index);
        if !point.files.is_empty() {
            self.dir_version_synced = self.dir_version_synced.max(point.dir_version);
        }
        self.finish_sealed();
    }

    /// Writes the index files of sealed segments that have become durable to their ends.
    fn finish_sealed(&mut self) {
        while let Some((segment, _)) = self.sealed_unsynced.front() {
            let sequence = segment.header.sequence;
            let scan = {
                let state = self.shared.state.read();
                let at = state.segments.iter().rposition(|e| e.segment.header.sequence == sequence);
                at.and_then(|at| state.segments.get(at)).map(|entry| scan_of(&state, entry))
            };
            let Some(scan) = scan else {
                self.sealed_unsynced.pop_front();
                continue;
            };
            if scan.info.end_index - 1 > self.durable_index {
                break;
            }
            if let Some(points) = segment.points() {
                let points = points.read().clone();
                self.write_index(segment, &Scan { points, ..scan });
            }
            // From now on it may be closed: what the index file was made of is on disk.
            self.shared.note_open_sealed(segment);
            self.sealed_unsynced.pop_front();
        }
        self.summarize_if_due();
    }

    /// Writes the summary of the sealed segments once it lags too far behind. Best effort, as with index files.
    fn summarize_if_due(&mut self) {
        let state = self.shared.state.read();
        let durable = state.segments.len() - 1 - self.sealed_unsynced.len();
        if !summary::is_due(durable.saturating_sub(self.summarized), durable) {
            return;
        }
        let sealed = state
            .segments
            .iter()
            .take(durable)
            .map(|entry| Sealed { header: entry.segment.header, scan: scan_of(&state, entry) });
        let _ = summary::write(&*self.shared.disk, &self.dir, sealed);
        // Also after a failure: the next one is not worth trying at each roll.
        self.summarized = durable;
    }

    /// Best effort: a missing index file is built when the log is opened.
    fn write_index(&self, segment: &Segment, scan: &Scan) {
        let _ = index::write(&*self.shared.disk, &segment.index_path(), &segment.header, scan);
    }

    fn check_not_interrupted(&self) -> Result<(), StorageError> {
        if self.interrupted {
            return Err(StorageError::Interrupted { dir: self.dir.clone() });
        }
        Ok(())
    }

    /// What the next segment begins with.
    fn end(&self) -> LogStart {
        let state = self.shared.state.read();
        LogStart {
            first_index: state.next_index,
            prev_term: state.last_term,
            next_offset: state.next_offset,
        }
    }

    /// The last entry known to be durable on this node; `first_index - 1` if none.
    pub fn durable_index(&self) -> u64 {
        self.durable_index
    }

    /// The first entry that is kept.
    pub fn first_index(&self) -> u64 {
        self.shared.state.read().start.first_index
    }

    /// The last entry; `first_index - 1` if there is none.
    pub fn last_index(&self) -> u64 {
        self.shared.state.read().next_index - 1
    }

    /// The term of the last entry, or of the one before the log's first.
    pub fn last_term(&self) -> u64 {
        self.shared.state.read().last_term
    }

    /// Where the kept log begins.
    pub fn start(&self) -> LogStart {
        self.shared.state.read().start
    }

    /// The offset that the next entry will begin with.
    pub fn next_offset(&self) -> u64 {
        self.shared.state.read().next_offset
    }

    /// Bytes in use by all segments, headers included.
    pub fn size_bytes(&self) -> u64 {
        self.shared.state.read().size_bytes
    }

    /// The segments, oldest first; the last one is active.
    pub fn segments(&self) -> Vec<SegmentInfo> {
        self.shared.state.read().segments.iter().map(|entry| entry.info).collect()
    }

    /// Bytes that a segment may hold, from the next one on.
    pub fn segment_bytes(&self) -> u64 {
        self.options.segment_bytes
    }

    /// Changes the size of segments, from the next one on.
    pub fn set_segment_bytes(&mut self, bytes: u64) {
        self.options.segment_bytes = bytes;
    }

    /// A reader of this log.
    pub fn reader(&self) -> LogReader {
        LogReader::new(Arc::clone(&self.shared))
    }
}

impl Active {
    fn create(
        disk: &dyn Disk,
        dir: &Path,
        header: SegmentHeader,
        options: &LogOptions,
    ) -> Result<Self, CreateFailure> {
        let path = dir.join(segment::file_name(header.sequence, header.start.first_index));
        let file = segment::create_file(disk, &path, &header, options)?;
        Ok(Self::begin(path, file, header, options))
    }

    fn reuse(
        disk: &dyn Disk,
        dir: &Path,
        spare: Spare,
        header: SegmentHeader,
        options: &LogOptions,
    ) -> Result<Self, CreateFailure> {
        let path = dir.join(segment::file_name(header.sequence, header.start.first_index));
        let file = segment::reuse_file(disk, spare.path(), &path, &header, options)?;
        Ok(Self::begin(path, file, header, options))
    }

    fn begin(
        path: PathBuf,
        file: Arc<dyn DiskFile>,
        header: SegmentHeader,
        options: &LogOptions,
    ) -> Self {
        let opened = Some((Arc::clone(&file), Points::default()));
        Self {
            segment: Arc::new(Segment::new(path, header, opened)),
            file,
            position: SEGMENT_HEADER_BYTES as u64,
            bytes_max: options.segment_bytes,
            since_ms: None,
        }
    }

    fn is_empty(&self) -> bool {
        self.position == SEGMENT_HEADER_BYTES as u64
    }
}

/// What a segment holds, from what the log knows of it; without its sparse index.
fn scan_of(state: &State, entry: &SegmentEntry) -> Scan {
    let info = entry.info;
    let last_term = state.term(info.end_index - 1).unwrap_or(info.start.prev_term);
    let epochs = epochs_within(&state.epochs, &info);
    Scan { info, last_term, epochs, ..Scan::empty(info.start) }
}

/// The epochs of the log as far as they concern one segment: those that begin in it, and the one that
/// was going on when it began.
fn epochs_within(epochs: &[Epoch], info: &SegmentInfo) -> Vec<Epoch> {
    let begun = epochs.partition_point(|epoch| epoch.first_index <= info.first_index);
    let ended = epochs.partition_point(|epoch| epoch.first_index < info.end_index);
    epochs[begun.saturating_sub(1)..ended]
        .iter()
        .map(|epoch| Epoch {
            first_index: epoch.first_index.max(info.first_index),
            base_offset: epoch.base_offset.max(info.base_offset),
            ..*epoch
        })
        .collect()
}
