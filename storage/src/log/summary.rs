//! What all sealed segments of a log hold, in one file: a log with thousands of them opens as fast as one with a few.
//!
//! Derived state, as the index files are: written without a sync, only of segments that are durable to their ends, and
//! ignored where it is missing, damaged or does not fit. It lags behind by a few segments, so that a roll seldom
//! pays for it; those are opened one by one.

use std::collections::BTreeMap;
use std::path::Path;

use super::frame::SegmentHeader;
use super::index::{bytes_of, push_scan, take_scan, words_of};
use super::segment::Scan;
use super::types::LogStart;
use crate::disk::Disk;
use crate::error::StorageError;
use crate::small_file::{read_small_file, write_small_file_lazily};

/// The file, in the log's directory.
pub(super) const FILE: &str = "sealed";
const MAGIC: [u8; 8] = *b"HWSEALED";
const VERSION: u32 = 1;
/// Of each segment, before what the index file says too.
const WORDS_HEADER: usize = 7;

/// So many segments may be missing in the file before it is written again: a log with few segments has none.
const LAG_MIN: usize = 4;
/// Or this part of those that are in it, so that each roll of a long log pays for a handful of them.
const LAG_PART: usize = 16;

/// True if `missing` sealed segments of `sealed` are too many.
pub(super) fn is_due(missing: usize, sealed: usize) -> bool {
    missing > LAG_MIN.max(sealed / LAG_PART)
}

/// What is known of a sealed segment without opening its file.
#[derive(Clone, Debug)]
pub(super) struct Sealed {
    pub(super) header: SegmentHeader,
    /// Without its sparse index.
    pub(super) scan: Scan,
}

/// Writes the file anew. Every segment in it is durable to its end.
pub(super) fn write(
    disk: &dyn Disk,
    dir: &Path,
    sealed: impl Iterator<Item = Sealed>,
) -> Result<(), StorageError> {
    let mut words = Vec::new();
    for Sealed { header, scan } in sealed {
        let fixed: [u64; WORDS_HEADER] = [
            header.log_identity,
            header.sequence,
            header.start.first_index,
            header.start.prev_term,
            header.start.next_offset,
            header.durable_index,
            u64::from(header.resets) | u64::from(header.recycled) << 1,
        ];
        words.extend(fixed);
        push_scan(&mut words, &header, &scan, 0);
    }
    write_small_file_lazily(disk, &dir.join(FILE), MAGIC, VERSION, &bytes_of(&words))
}

/// The segments in the file, by sequence; none if there is anything wrong with it.
pub(super) fn read(disk: &dyn Disk, dir: &Path) -> BTreeMap<u64, Sealed> {
    let body = read_small_file(disk, &dir.join(FILE), MAGIC, VERSION);
    let Ok(Some((_, body))) = body else { return BTreeMap::new() };
    decode(&words_of(&body)).unwrap_or_default()
}

fn decode(mut words: &[u64]) -> Option<BTreeMap<u64, Sealed>> {
    let mut all = BTreeMap::new();
    while !words.is_empty() {
        let (fixed, rest) = words.split_first_chunk::<WORDS_HEADER>()?;
        words = rest;
        let header = SegmentHeader {
            log_identity: fixed[0],
            sequence: fixed[1],
            start: LogStart { first_index: fixed[2], prev_term: fixed[3], next_offset: fixed[4] },
            durable_index: fixed[5],
            resets: fixed[6] & 1 != 0,
            recycled: fixed[6] & 2 != 0,
        };
        let (scan, _) = take_scan(&mut words, &header)?;
        all.insert(header.sequence, Sealed { header, scan });
    }
    Some(all)
}
