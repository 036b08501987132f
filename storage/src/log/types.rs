//! What callers of the log see: entries, positions, options, reports. Plain data; no files.

use bytes::Bytes;

use super::spare::SparePool;
use super::state::OpenSealed;

/// Everything about an entry but its payload and its base offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryMeta {
    /// Position in the log, dense, from `LogStart::first_index`.
    pub index: u64,
    /// The leader epoch it was written in. Never decreases along the log.
    pub term: u64,
    /// What the entry is, in the caller's numbering.
    pub kind: u8,
    /// How many offsets the entry takes; 0 for what users never see.
    pub offset_span: u32,
    /// When the leader appended it, milliseconds since 1970.
    pub append_time_ms: i64,
    /// Greatest create time of what is in it, milliseconds since 1970. Ignored where the span is 0.
    pub max_timestamp_ms: i64,
}

/// An entry as read back; the payload points into the segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredEntry {
    /// As appended.
    pub meta: EntryMeta,
    /// Its first offset.
    pub base_offset: u64,
    /// As appended.
    pub payload: Bytes,
}

impl StoredEntry {
    /// The offset after the entry's last: `base_offset` + span.
    pub fn end_offset(&self) -> u64 {
        self.base_offset.saturating_add(u64::from(self.meta.offset_span))
    }
}

/// Where a log begins: the next entry has `first_index`, the one before it had `prev_term`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogStart {
    /// Index of the first entry, at least 1.
    pub first_index: u64,
    /// Term of the entry `first_index - 1`.
    pub prev_term: u64,
    /// Base offset of the first entry.
    pub next_offset: u64,
}

/// Sizes of a log. Bytes throughout.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// A segment takes no further entry that would make it larger than this.
    pub segment_bytes: u64,
    /// The largest payload that is taken.
    pub payload_bytes_max: u32,
    /// One point of the sparse index for so many bytes of frames.
    pub index_interval_bytes: u32,
    /// The most by which a file grows at once. The first step is small, and steps double up to this.
    pub allocate_step_bytes: u64,
    /// From where the log may keep the file of one dropped segment for its next one; `None`: every file
    /// is removed. All logs of a node share one pool.
    pub spares: Option<SparePool>,
    /// Bounds the sealed segments that are kept open. All logs of a node share one.
    pub open_sealed: OpenSealed,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            payload_bytes_max: 8 << 20,
            index_interval_bytes: 16 << 10,
            allocate_step_bytes: 4 << 20,
            spares: None,
            open_sealed: OpenSealed::default(),
        }
    }
}

/// A leader epoch and where it begins in this log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Epoch {
    /// The term.
    pub term: u64,
    /// Its first entry that is still kept.
    pub first_index: u64,
    /// That entry's base offset.
    pub base_offset: u64,
}

/// What opening a log found and did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// The first index that was cut off as a torn tail, if one was.
    pub cut_from: Option<u64>,
    /// Index files that were missing or wrong and were built anew.
    pub index_files_rebuilt: u64,
    /// Frames that were looked at.
    pub frames_checked: u64,
}

/// One segment. Ranges are half-open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentInfo {
    /// Its first entry.
    pub first_index: u64,
    /// The index after its last entry.
    pub end_index: u64,
    /// Offset of its first entry.
    pub base_offset: u64,
    /// The offset after its last entry.
    pub end_offset: u64,
    /// Bytes in use, headers included.
    pub bytes: u64,
    /// Append time of its last entry; `i64::MIN` if it has none.
    pub last_append_time_ms: i64,
    /// Greatest create time in it; `i64::MIN` if no entry has a span.
    pub max_timestamp_ms: i64,
    /// What `Log::start` says once the log begins with this segment.
    pub start: LogStart,
}
