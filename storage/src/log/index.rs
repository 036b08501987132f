//! The sparse index of a segment (offset, index, time -> position) and its file beside a sealed one.
//!
//! Derived state: everything in it can be built from the frames, and is whenever the file is missing,
//! damaged or does not fit. The file is written only once its segment is durable to the end, so that
//! its existence proves as much.

use std::path::Path;

use super::frame::SegmentHeader;
use super::segment::Scan;
use super::types::Epoch;
use crate::disk::Disk;
use crate::error::StorageError;
use crate::small_file::{read_small_file, write_small_file_lazily};

pub(super) const MAGIC: [u8; 8] = *b"HWINDEX\0";
pub(super) const VERSION: u32 = 1;
const WORDS_FIXED: usize = 11;

/// A frame that is found without walking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SparsePoint {
    pub(super) position: u64,
    pub(super) index: u64,
    pub(super) base_offset: u64,
    /// Greatest create time of all frames of the segment before this one.
    pub(super) max_timestamp_before_ms: i64,
}

/// The sparse index. Invariant: all fields ascend from point to point.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Points {
    points: Vec<SparsePoint>,
}

impl Points {
    /// Adds `point` unless the last one is less than `interval` bytes away.
    pub(super) fn note(&mut self, interval: u32, position: u64, point: SparsePoint) {
        let far = self
            .points
            .last()
            .is_none_or(|last| position >= last.position.saturating_add(u64::from(interval)));
        if far {
            self.points.push(point);
        }
    }

    /// Forgets the points at or after `position`.
    pub(super) fn cut(&mut self, position: u64) {
        self.points.retain(|point| point.position < position);
    }

    /// Where to start walking for entry `index`; `None` means at the first frame.
    pub(super) fn before_index(&self, index: u64) -> Option<u64> {
        self.last_where(|point| point.index <= index)
    }

    /// Where to start walking for the entry that holds `offset`.
    pub(super) fn before_offset(&self, offset: u64) -> Option<u64> {
        self.last_where(|point| point.base_offset <= offset)
    }

    /// Where to start walking for the first entry with a create time of at least `timestamp_ms`.
    pub(super) fn before_time(&self, timestamp_ms: i64) -> Option<u64> {
        self.last_where(|point| point.max_timestamp_before_ms < timestamp_ms)
    }

    fn last_where(&self, holds: impl Fn(&SparsePoint) -> bool) -> Option<u64> {
        let count = self.points.partition_point(holds);
        self.points[..count].last().map(|point| point.position)
    }
}

/// Writes the index file of a sealed and durable segment. It need not be durable itself.
pub(super) fn write(
    disk: &dyn Disk,
    path: &Path,
    header: &SegmentHeader,
    scan: &Scan,
) -> Result<(), StorageError> {
    let mut words = Vec::new();
    push_scan(&mut words, header, scan, scan.points.points.len());
    for point in &scan.points.points {
        let before = point.max_timestamp_before_ms.cast_unsigned();
        words.extend([point.position, point.index, point.base_offset, before]);
    }
    write_small_file_lazily(disk, path, MAGIC, VERSION, &bytes_of(&words))
}

/// Reads the index file of a segment; `None` if there is none, it is damaged, or another segment's.
pub(super) fn read(disk: &dyn Disk, path: &Path, header: &SegmentHeader) -> Option<Scan> {
    // Any trouble with this file means the same: build it from the frames.
    let (_, body) = read_small_file(disk, path, MAGIC, VERSION).ok()??;
    let words = words_of(&body);
    let mut rest = &words[..];
    let (mut scan, point_count) = take_scan(&mut rest, header)?;
    if rest.len() as u64 != point_count.checked_mul(4)? {
        return None;
    }
    scan.points.points = rest
        .chunks_exact(4)
        .map(|words| SparsePoint {
            position: words[0],
            index: words[1],
            base_offset: words[2],
            max_timestamp_before_ms: words[3].cast_signed(),
        })
        .collect();
    // Written by ourselves and checksummed; still, nothing here may lead a walk astray.
    let last_position = scan.points.points.last().map_or(0, |point| point.position);
    let ascends = scan.points.points.is_sorted_by(|a, b| a.position < b.position);
    (ascends && last_position < scan.info.bytes).then_some(scan)
}

/// Adds what a walk over a segment found, less the sparse index, of which only the size is told.
pub(super) fn push_scan(
    words: &mut Vec<u64>,
    header: &SegmentHeader,
    scan: &Scan,
    point_count: usize,
) {
    let info = &scan.info;
    let fixed: [u64; WORDS_FIXED] = [
        header.identity(),
        header.sequence,
        info.first_index,
        info.end_index,
        info.end_offset,
        info.bytes,
        info.last_append_time_ms.cast_unsigned(),
        info.max_timestamp_ms.cast_unsigned(),
        scan.last_term,
        scan.epochs.len() as u64,
        point_count as u64,
    ];
    words.extend(fixed);
    for epoch in &scan.epochs {
        words.extend([epoch.term, epoch.first_index, epoch.base_offset]);
    }
}

/// Takes what `push_scan` added off the front, and how many points there were; `None` if it is not this
/// segment's.
pub(super) fn take_scan(words: &mut &[u64], header: &SegmentHeader) -> Option<(Scan, u64)> {
    let (fixed, rest) = words.split_first_chunk::<WORDS_FIXED>()?;
    let is_of_segment = fixed[0] == header.identity()
        && fixed[1] == header.sequence
        && fixed[2] == header.start.first_index;
    let epoch_words = usize::try_from(fixed[9].checked_mul(3)?).ok()?;
    let (epochs, rest) = rest.split_at_checked(epoch_words)?;
    *words = rest;
    let mut scan = Scan::empty(header.start);
    scan.info.end_index = fixed[3];
    scan.info.end_offset = fixed[4];
    scan.info.bytes = fixed[5];
    scan.info.last_append_time_ms = fixed[6].cast_signed();
    scan.info.max_timestamp_ms = fixed[7].cast_signed();
    scan.last_term = fixed[8];
    // It is written once all of the segment is durable.
    scan.claim = scan.info.end_index.saturating_sub(1);
    scan.epochs = epochs
        .chunks_exact(3)
        .map(|words| Epoch { term: words[0], first_index: words[1], base_offset: words[2] })
        .collect();
    is_of_segment.then_some((scan, fixed[10]))
}

/// The body of a file of words.
pub(super) fn bytes_of(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// The words of a body.
pub(super) fn words_of(body: &[u8]) -> Vec<u64> {
    body.chunks_exact(8).map(word).collect()
}

fn word(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or(0, |chunk| u64::from_le_bytes(*chunk))
}
