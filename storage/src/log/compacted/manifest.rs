//! The manifest: which files make up a compacted part, and where the dense log goes on.
//!
//! Owns its format. Replacing the manifest is what replaces segments, all at once; knows nothing of what is in them.

use std::path::Path;

use crate::disk::Disk;
use crate::error::StorageError;
use crate::log::types::LogStart;
use crate::small_file::{read_small_file, write_small_file};

pub(super) const FILE_NAME: &str = "manifest";
const MAGIC: [u8; 8] = *b"HWCOMPCT";
const VERSION: u32 = 1;
const WORDS_FIXED: usize = 6;
const WORDS_SEGMENT: usize = 8;

/// One immutable file of a compacted part. Ranges are half-open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompactedSegment {
    /// The file's number in its directory.
    pub file: u64,
    /// Its first entry.
    pub first_index: u64,
    /// The index after its last entry.
    pub end_index: u64,
    /// Offset of its first entry.
    pub base_offset: u64,
    /// The offset after its last entry.
    pub end_offset: u64,
    /// Length of the file in use, header included.
    pub bytes: u64,
    /// CRC-32 of those bytes.
    pub checksum: u32,
    /// Greatest create time in it.
    pub max_timestamp_ms: i64,
}

/// What a compacted part is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompactedManifest {
    /// The files, in order. Between and within them indexes and offsets may be missing.
    pub segments: Vec<CompactedSegment>,
    /// Where the dense log goes on: everything before is the compacted part's.
    pub end: LogStart,
    /// The caller's: up to this offset superseded entries have been dropped.
    pub cleaned_to: u64,
    /// The caller's: when there is something more to drop even if nothing is appended; `i64::MAX` for never.
    pub next_horizon_ms: i64,
}

impl CompactedManifest {
    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.segments.iter().fold(0, |sum, segment| sum.saturating_add(segment.bytes))
    }

    /// True if the segments are in order and end where the manifest says. Manifests also come from other nodes.
    pub fn is_sound(&self) -> bool {
        let (mut index, mut offset) = (1, 0);
        for segment in &self.segments {
            let sound = segment.first_index >= index
                && segment.end_index > segment.first_index
                && segment.base_offset >= offset
                && segment.end_offset > segment.base_offset
                && segment.bytes > crate::log::frame::SEGMENT_HEADER_BYTES as u64;
            if !sound {
                return false;
            }
            (index, offset) = (segment.end_index, segment.end_offset);
        }
        self.end.first_index >= index
            && self.end.next_offset >= offset
            && self.cleaned_to <= self.end.next_offset
    }

    /// Writes the manifest, durably and in one step.
    pub(super) fn store(&self, disk: &dyn Disk, dir: &Path) -> Result<(), StorageError> {
        let mut words = vec![
            self.end.first_index,
            self.end.prev_term,
            self.end.next_offset,
            self.cleaned_to,
            self.next_horizon_ms.cast_unsigned(),
            self.segments.len() as u64,
        ];
        debug_assert_eq!(words.len(), WORDS_FIXED);
        for segment in &self.segments {
            words.extend([
                segment.file,
                segment.first_index,
                segment.end_index,
                segment.base_offset,
                segment.end_offset,
                segment.bytes,
                u64::from(segment.checksum),
                segment.max_timestamp_ms.cast_unsigned(),
            ]);
        }
        let body: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        write_small_file(disk, &dir.join(FILE_NAME), MAGIC, VERSION, &body)
    }

    /// Reads the manifest in `dir`; `None` if there is none.
    pub(super) fn load(disk: &dyn Disk, dir: &Path) -> Result<Option<Self>, StorageError> {
        let path = dir.join(FILE_NAME);
        let Some((_, body)) = read_small_file(disk, &path, MAGIC, VERSION)? else {
            return Ok(None);
        };
        let words: Vec<u64> =
            body.as_chunks::<8>().0.iter().map(|w| u64::from_le_bytes(*w)).collect();
        let manifest = Self::from_words(&words).filter(Self::is_sound);
        manifest
            .map(Some)
            .ok_or_else(|| StorageError::corrupt(&path, 0, "the manifest does not decode"))
    }

    fn from_words(words: &[u64]) -> Option<Self> {
        let (fixed, rest) = words.split_first_chunk::<WORDS_FIXED>()?;
        let (segments, left) = rest.as_chunks::<WORDS_SEGMENT>();
        if !left.is_empty() || segments.len() as u64 != fixed[5] {
            return None;
        }
        let segment = |words: &[u64; WORDS_SEGMENT]| {
            Some(CompactedSegment {
                file: words[0],
                first_index: words[1],
                end_index: words[2],
                base_offset: words[3],
                end_offset: words[4],
                bytes: words[5],
                checksum: u32::try_from(words[6]).ok()?,
                max_timestamp_ms: words[7].cast_signed(),
            })
        };
        Some(Self {
            segments: segments.iter().map(segment).collect::<Option<_>>()?,
            end: LogStart { first_index: fixed[0], prev_term: fixed[1], next_offset: fixed[2] },
            cleaned_to: fixed[3],
            next_horizon_ms: fixed[4].cast_signed(),
        })
    }
}
