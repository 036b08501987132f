//! What a log's writer publishes and its readers see: the segments, the epochs, the tail.
//!
//! In memory only. The writer changes it under a lock held for a few stores, after the bytes are in
//! place: whoever sees an entry here can read it.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use super::segment::{Scan, Segment};
use super::types::{EntryMeta, Epoch, LogOptions, LogStart, SegmentInfo};
use crate::disk::Disk;

/// Sealed segments that logs keep open together, unless they are told otherwise.
const OPEN_SEALED_MAX: usize = 4;

/// The sealed segments that are open, of all the logs that share it: each costs a descriptor and a mapping, and a process
/// has only so many of either. The one that was opened first is closed when there are too many.
#[derive(Clone, Debug)]
pub struct OpenSealed {
    segments_max: usize,
    segments: Arc<Mutex<VecDeque<Arc<Segment>>>>,
}

impl OpenSealed {
    /// Keeps up to `segments_max` segments open.
    pub fn new(segments_max: usize) -> Self {
        Self { segments_max, segments: Arc::default() }
    }

    /// Remembers that a segment is open, and closes the one that has been open longest if it is one too many.
    pub(super) fn note(&self, segment: &Arc<Segment>) {
        let mut open = self.segments.lock();
        open.retain(|other| !Arc::ptr_eq(other, segment));
        open.push_back(Arc::clone(segment));
        if open.len() > self.segments_max
            && let Some(oldest) = open.pop_front()
        {
            oldest.close();
        }
    }

    /// Lets go of segments; the caller retires them.
    pub(super) fn forget<'a>(&self, segments: impl Iterator<Item = &'a Arc<Segment>>) {
        let gone: HashSet<*const Segment> = segments.map(Arc::as_ptr).collect();
        self.segments.lock().retain(|segment| !gone.contains(&Arc::as_ptr(segment)));
    }
}

impl Default for OpenSealed {
    fn default() -> Self {
        Self::new(OPEN_SEALED_MAX)
    }
}

/// Shared by a log and its readers.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) index_interval_bytes: u32,
    pub(super) state: RwLock<State>,
    open_sealed: OpenSealed,
}

impl Shared {
    pub(super) fn new(disk: Arc<dyn Disk>, options: &LogOptions, state: State) -> Arc<Self> {
        Arc::new(Self {
            disk,
            index_interval_bytes: options.index_interval_bytes,
            state: RwLock::new(state),
            open_sealed: options.open_sealed.clone(),
        })
    }

    /// Remembers that a sealed segment is open.
    pub(super) fn note_open_sealed(&self, segment: &Arc<Segment>) {
        self.open_sealed.note(segment);
    }

    /// Lets go of segments that left the log; the caller retires them.
    pub(super) fn forget(&self, segments: &[SegmentEntry]) {
        self.open_sealed.forget(segments.iter().map(|entry| &entry.segment));
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // Nobody can read these any more: their files need not stay open on behalf of other logs' room.
        let segments = &self.state.get_mut().segments;
        self.open_sealed.forget(segments.iter().map(|entry| &entry.segment));
    }
}

/// A segment and how much of it belongs to the log.
#[derive(Clone, Debug)]
pub(super) struct SegmentEntry {
    pub(super) info: SegmentInfo,
    pub(super) segment: Arc<Segment>,
}

/// Invariants: at least one segment, the last one is active; each begins where the one before it ends;
/// `epochs` ascend in term and index; `next_index - 1` is the last entry.
#[derive(Debug)]
pub(super) struct State {
    pub(super) start: LogStart,
    pub(super) segments: VecDeque<SegmentEntry>,
    pub(super) epochs: Vec<Epoch>,
    pub(super) next_index: u64,
    pub(super) next_offset: u64,
    pub(super) last_term: u64,
    pub(super) size_bytes: u64,
}

impl State {
    /// A log that begins and ends at `start`.
    pub(super) fn new(start: LogStart) -> Self {
        Self {
            start,
            segments: VecDeque::new(),
            epochs: Vec::new(),
            next_index: start.first_index,
            next_offset: start.next_offset,
            last_term: start.prev_term,
            size_bytes: 0,
        }
    }

    /// Adds a segment with what is in it; it is the active one from now on.
    pub(super) fn push_segment(&mut self, segment: Arc<Segment>, scan: &Scan) {
        for epoch in &scan.epochs {
            self.note_epoch(*epoch);
        }
        self.next_index = scan.info.end_index;
        self.next_offset = scan.info.end_offset;
        self.last_term = scan.last_term;
        self.size_bytes += scan.info.bytes;
        self.segments.push_back(SegmentEntry { info: scan.info, segment });
    }

    /// Publishes an entry whose frame ends at `end_position` of the active segment.
    pub(super) fn push_entry(&mut self, meta: &EntryMeta, end_position: u64) {
        let base_offset = self.next_offset;
        self.note_epoch(Epoch { term: meta.term, first_index: meta.index, base_offset });
        self.next_index += 1;
        self.next_offset += u64::from(meta.offset_span);
        self.last_term = meta.term;
        let Some(active) = self.segments.back_mut() else { return };
        self.size_bytes += end_position - active.info.bytes;
        active.info.end_index = self.next_index;
        active.info.end_offset = self.next_offset;
        active.info.bytes = end_position;
        active.info.last_append_time_ms = meta.append_time_ms;
        if meta.offset_span > 0 {
            active.info.max_timestamp_ms = active.info.max_timestamp_ms.max(meta.max_timestamp_ms);
        }
    }

    fn note_epoch(&mut self, epoch: Epoch) {
        if self.epochs.last().is_none_or(|last| epoch.term > last.term) {
            self.epochs.push(epoch);
        }
    }

    /// The term of an entry, also of the one before the first.
    pub(super) fn term(&self, index: u64) -> Option<u64> {
        if index == self.start.first_index - 1 {
            return Some(self.start.prev_term);
        }
        if index < self.start.first_index || index >= self.next_index {
            return None;
        }
        let count = self.epochs.partition_point(|epoch| epoch.first_index <= index);
        self.epochs[..count].last().map(|epoch| epoch.term)
    }

    /// Cuts everything at or after `from`. `cut` says what is left of the segment that holds `from`.
    /// Returns the segments that are gone. The caller adds a new active segment.
    pub(super) fn cut_suffix(&mut self, from: u64, cut: Option<SegmentInfo>) -> Vec<SegmentEntry> {
        let kept = self.segments.partition_point(|entry| entry.info.first_index < from);
        let gone: Vec<SegmentEntry> = self.segments.drain(kept..).collect();
        if let (Some(info), Some(last)) = (cut, self.segments.back_mut()) {
            last.info = info;
        }
        self.epochs.retain(|epoch| epoch.first_index < from);
        self.size_bytes = self.segments.iter().map(|entry| entry.info.bytes).sum();
        gone
    }

    /// Drops the first `count` segments, which are not all, and returns them.
    pub(super) fn cut_prefix(&mut self, count: usize) -> Vec<SegmentEntry> {
        let gone: Vec<SegmentEntry> = self.segments.drain(..count).collect();
        if let Some(first) = self.segments.front() {
            self.start = first.info.start;
        }
        let first_index = self.start.first_index;
        let passed = self.epochs.partition_point(|epoch| epoch.first_index < first_index);
        let begins_here = self.epochs.get(passed).is_some_and(|e| e.first_index == first_index);
        if passed > 0 && !begins_here && first_index < self.next_index {
            // The epoch that the first kept entry is in goes on; its older entries are gone.
            self.epochs[passed - 1].first_index = first_index;
            self.epochs[passed - 1].base_offset = self.start.next_offset;
            self.epochs.drain(..passed - 1);
        } else {
            self.epochs.drain(..passed);
        }
        self.size_bytes = self.segments.iter().map(|entry| entry.info.bytes).sum();
        gone
    }

    /// The position in `segments` of the one that holds entry `index`, which is in the log.
    pub(super) fn segment_of_index(&self, index: u64) -> usize {
        self.segments.partition_point(|entry| entry.info.end_index <= index)
    }

    /// The position in `segments` of the one that holds `offset`, which is in the log.
    pub(super) fn segment_of_offset(&self, offset: u64) -> usize {
        self.segments.partition_point(|entry| entry.info.end_offset <= offset)
    }
}
