//! Reading a log from any thread: by index, by offset, by time.
//!
//! A reader takes what it needs from the shared state and lets the lock go before it touches a segment.
//! Every frame that is handed out has passed its checksums. Never writes, and never sees an entry before
//! its bytes are in place.

use std::io;
use std::sync::Arc;

use parking_lot::RwLock;

use super::frame::{FRAME_HEADER_BYTES, SEGMENT_HEADER_BYTES};
use super::index::{self, Points};
use super::segment::{self, Cursor, Found};
use super::state::{SegmentEntry, Shared};
use super::types::{EntryMeta, Epoch, LogStart, SegmentInfo, StoredEntry};
use crate::disk::DiskFile;
use crate::error::{IoContext, StorageError};

/// Reads one log. Cheap to clone; sees appends at once, and may outlive the `Log`.
#[derive(Clone, Debug)]
pub struct LogReader {
    shared: Arc<Shared>,
}

impl LogReader {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// The first entry that is kept.
    pub fn first_index(&self) -> u64 {
        self.shared.state.read().start.first_index
    }

    /// The last entry; `first_index - 1` if there is none.
    pub fn last_index(&self) -> u64 {
        self.shared.state.read().next_index - 1
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

    /// Where the kept log begins.
    pub fn start(&self) -> LogStart {
        self.shared.state.read().start
    }

    /// The term of an entry, also of the one before the first; `None` outside of the log. From memory.
    pub fn term(&self, index: u64) -> Option<u64> {
        self.shared.state.read().term(index)
    }

    /// The terms of the log and where they begin, oldest first.
    pub fn epochs(&self) -> Vec<Epoch> {
        self.shared.state.read().epochs.clone()
    }

    /// The offset after entry `index`, also for the one before the first; `None` outside of the log, and
    /// if its frame cannot be read. Finds the ends of segments in memory; others cost a walk of up to
    /// one index interval.
    pub fn end_offset(&self, index: u64) -> Option<u64> {
        let entry = {
            let state = self.shared.state.read();
            if index == state.start.first_index - 1 {
                return Some(state.start.next_offset);
            }
            if index < state.start.first_index || index >= state.next_index {
                return None;
            }
            state.segments.get(state.segment_of_index(index))?.clone()
        };
        if index + 1 == entry.info.end_index {
            return Some(entry.info.end_offset);
        }
        let found = self.frame_at(&entry, index).ok()?;
        Some(found.header.end_offset())
    }

    /// The entries from index `from` up to `to` (not included): as many as hold at most `bytes_max` bytes
    /// of payload together (or fewer), and at least one if there is any. `Compacted` if `from` is no longer kept,
    /// `Unavailable` if `to` is beyond the last entry + 1.
    pub fn entries(
        &self,
        from: u64,
        to: u64,
        bytes_max: u64,
    ) -> Result<Vec<StoredEntry>, StorageError> {
        self.entries_verified_if(from, to, bytes_max, |_| true)
    }

    /// The same, but only the payloads of entries for which `verify` holds are read and checked. The others are as they stand there:
    /// for a caller that needs to know of them, and not what is in them.
    pub fn entries_verified_if(
        &self,
        from: u64,
        to: u64,
        bytes_max: u64,
        verify: impl Fn(&EntryMeta) -> bool,
    ) -> Result<Vec<StoredEntry>, StorageError> {
        let segments = {
            let state = self.shared.state.read();
            if from < state.start.first_index {
                return Err(StorageError::Compacted { first_index: state.start.first_index });
            }
            if to > state.next_index {
                return Err(StorageError::Unavailable { last_index: state.next_index - 1 });
            }
            if from >= to {
                return Ok(Vec::new());
            }
            let first = state.segment_of_index(from);
            collect(state.segments.range(first..), |entry| entry.info.first_index < to, bytes_max)
        };
        let mut out = Vec::new();
        let mut budget = Budget::new(bytes_max);
        let mut next = from;
        for entry in &segments {
            let mut walk = self.walk(entry, |points| points.before_index(from))?;
            while next < entry.info.end_index.min(to) {
                let found = walk.next()?.ok_or_else(|| walk.missing(next))?;
                if found.header.meta.index < next {
                    continue;
                }
                if found.header.meta.index != next {
                    return Err(walk.missing(next));
                }
                if !budget.admits(&found) {
                    return Ok(out);
                }
                let verified = verify(&found.header.meta);
                out.push(if verified { walk.verified(found)? } else { found.into_entry() });
                next += 1;
            }
        }
        Ok(out)
    }

    /// The entries with a span that hold offsets in `from..to` and end at or below `to`: as many as hold at
    /// most `bytes_max` bytes of payload together, and at least one if there is any. The first one contains
    /// `from`. Empty if `from` is at or beyond the end; `Compacted` if it is no longer kept.
    pub fn read_offsets(
        &self,
        from: u64,
        to: u64,
        bytes_max: u64,
    ) -> Result<Vec<StoredEntry>, StorageError> {
        let segments = {
            let state = self.shared.state.read();
            if from < state.start.next_offset {
                return Err(StorageError::Compacted { first_index: state.start.first_index });
            }
            if from >= to || from >= state.next_offset {
                return Ok(Vec::new());
            }
            let first = state.segment_of_offset(from);
            collect(state.segments.range(first..), |entry| entry.info.base_offset < to, bytes_max)
        };
        let mut out = Vec::new();
        let mut budget = Budget::new(bytes_max);
        for entry in segments.iter().filter(|entry| entry.info.base_offset < entry.info.end_offset)
        {
            let mut walk = self.walk(entry, |points| points.before_offset(from))?;
            while walk.next_index < entry.info.end_index {
                let found = walk.next()?.ok_or_else(|| walk.missing(walk.next_index))?;
                let end_offset = found.header.end_offset();
                if found.header.meta.offset_span == 0 || end_offset <= from {
                    continue;
                }
                if end_offset > to || !budget.admits(&found) {
                    return Ok(out);
                }
                out.push(walk.verified(found)?);
            }
        }
        Ok(out)
    }

    /// The first entry with a span whose greatest create time is at least `timestamp_ms` and that ends at
    /// or below `to_offset`; `None` if there is none.
    pub fn entry_at_time(
        &self,
        timestamp_ms: i64,
        to_offset: u64,
    ) -> Result<Option<StoredEntry>, StorageError> {
        let candidates: Vec<SegmentEntry> = {
            let state = self.shared.state.read();
            let late = |entry: &&SegmentEntry| {
                entry.info.max_timestamp_ms >= timestamp_ms
                    && entry.info.base_offset < entry.info.end_offset.min(to_offset)
            };
            // The first segment with such a time holds such an entry; the next is for none below `to`.
            state.segments.iter().filter(late).take(1).cloned().collect()
        };
        for entry in &candidates {
            let mut walk = self.walk(entry, |points| points.before_time(timestamp_ms))?;
            while walk.next_index < entry.info.end_index {
                let found = walk.next()?.ok_or_else(|| walk.missing(walk.next_index))?;
                let meta = &found.header.meta;
                if meta.offset_span > 0 && meta.max_timestamp_ms >= timestamp_ms {
                    let entry = walk.verified(found)?;
                    return Ok((entry.end_offset() <= to_offset).then_some(entry));
                }
            }
        }
        Ok(None)
    }

    /// The frame of entry `index`, which is in `entry`; its payload is not checked.
    pub(super) fn frame_at(&self, entry: &SegmentEntry, index: u64) -> Result<Found, StorageError> {
        let mut walk = self.walk(entry, |points| points.before_index(index))?;
        loop {
            let found = walk.next()?.ok_or_else(|| walk.missing(index))?;
            if found.header.meta.index == index {
                return Ok(found);
            }
            if found.header.meta.index > index {
                return Err(walk.missing(index));
            }
        }
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// A walk over a segment from where its sparse index says.
    pub(super) fn walk<'a>(
        &self,
        entry: &'a SegmentEntry,
        seek: impl Fn(&Points) -> Option<u64>,
    ) -> Result<Walk<'a>, StorageError> {
        let file = self.file_of(entry)?;
        let points = match entry.segment.points() {
            Some(points) => points,
            None => self.load_points(entry, &file)?,
        };
        let position = seek(&points.read()).unwrap_or(SEGMENT_HEADER_BYTES as u64);
        let cursor = Cursor::new(file, entry.segment.identity(), position, entry.info.bytes);
        Ok(Walk { entry, cursor, next_index: 0 })
    }

    /// The file of a segment; `Compacted` if it left the log meanwhile.
    pub(super) fn file_of(&self, entry: &SegmentEntry) -> Result<Arc<dyn DiskFile>, StorageError> {
        match entry.segment.file(&*self.shared.disk) {
            // Retention was faster than this reader.
            Err(_)
                if entry.segment.is_retired() || !self.shared.disk.exists(&entry.segment.path) =>
            {
                Err(StorageError::Compacted { first_index: self.first_index() })
            }
            other => other,
        }
    }

    /// The sparse index of a sealed segment: from its file, else from its frames.
    fn load_points(
        &self,
        entry: &SegmentEntry,
        file: &Arc<dyn DiskFile>,
    ) -> Result<Arc<RwLock<Points>>, StorageError> {
        let segment = &entry.segment;
        self.shared.note_open_sealed(segment);
        let from_file = index::read(&*self.shared.disk, &segment.index_path(), &segment.header)
            .filter(|scan| scan.info.end_index == entry.info.end_index);
        let points = match from_file {
            Some(scan) => scan.points,
            None => {
                let interval = self.shared.index_interval_bytes;
                let (end, end_index) = (entry.info.bytes, entry.info.end_index);
                let scan = segment::scan(file, &segment.header, end, end_index, u64::MAX, interval)
                    .io_context("read", &segment.path)?;
                // Only sealed and durable segments were ever closed. Best effort: the next reader would walk again.
                if scan.info.end_index == end_index && !segment.is_retired() {
                    let path = segment.index_path();
                    let _ = index::write(&*self.shared.disk, &path, &segment.header, &scan);
                }
                scan.points
            }
        };
        Ok(segment.set_points(points))
    }
}

/// The segments that a bounded read can reach: as long as `wanted` holds, and no more than fill it.
fn collect<'a>(
    segments: impl Iterator<Item = &'a SegmentEntry>,
    wanted: impl Fn(&SegmentEntry) -> bool,
    bytes_max: u64,
) -> Vec<SegmentEntry> {
    let mut out: Vec<SegmentEntry> = Vec::new();
    let mut whole = 0_u64;
    for entry in segments {
        // The read may begin at the end of the first one, so that one does not count.
        if !wanted(entry) || (out.len() > 1 && whole > bytes_max) {
            break;
        }
        if !out.is_empty() {
            // No less payload than this is in it.
            let frames = entry.info.end_index - entry.info.first_index;
            let headers = SEGMENT_HEADER_BYTES as u64 + frames * (FRAME_HEADER_BYTES as u64 + 8);
            whole += entry.info.bytes.saturating_sub(headers);
        }
        out.push(entry.clone());
    }
    out
}

/// Counts payload bytes; always admits the first entry.
struct Budget {
    left: u64,
    first: bool,
}

impl Budget {
    fn new(bytes_max: u64) -> Self {
        Self { left: bytes_max, first: true }
    }

    fn admits(&mut self, found: &Found) -> bool {
        let bytes = u64::from(found.header.payload_len);
        let admitted = self.first || bytes <= self.left;
        self.first = false;
        self.left = self.left.saturating_sub(bytes);
        admitted
    }
}

/// A walk over the frames of one segment that knows whom to blame.
pub(super) struct Walk<'a> {
    entry: &'a SegmentEntry,
    cursor: Cursor,
    /// The entry after the last one that was found; 0 before the first.
    next_index: u64,
}

impl Walk<'_> {
    /// The next frame; `None` where there should be one but is not.
    pub(super) fn next(&mut self) -> Result<Option<Found>, StorageError> {
        let found = match self.cursor.next() {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => None,
            other => other.io_context("read", &self.entry.segment.path)?,
        };
        let found = found
            .filter(|found| self.next_index == 0 || found.header.meta.index == self.next_index);
        if let Some(found) = &found {
            self.next_index = found.header.meta.index.saturating_add(1);
        }
        Ok(found)
    }

    /// An entry whose payload passed its checksum.
    pub(super) fn verified(&self, found: Found) -> Result<StoredEntry, StorageError> {
        if !found.payload_is_intact() {
            return Err(StorageError::corrupt(
                &self.entry.segment.path,
                found.header.meta.index,
                "wrong payload checksum",
            ));
        }
        Ok(found.into_entry())
    }

    pub(super) fn missing(&self, index: u64) -> StorageError {
        let index = index.max(self.entry.info.first_index);
        let detail = format!("no valid frame at byte {}", self.cursor.position());
        StorageError::corrupt(&self.entry.segment.path, index, detail)
    }
}
