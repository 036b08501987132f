//! Looking for rot in sealed segments before somebody reads them or a restart trips over it.
//!
//! Reads, and says what it found; what to do about it is the caller's. So is the pace: a step reads no more
//! than it was allowed. Reads through the page cache: rot beneath a cached page shows once the page is gone.

use std::path::PathBuf;

use super::frame::{DecodedSegmentHeader, SEGMENT_HEADER_BYTES, SegmentHeader};
use super::reader::LogReader;
use super::state::SegmentEntry;
use crate::error::{IoContext, StorageError};

/// Damage in a sealed segment, which had been durable: quarantine and repair, never cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The damaged file.
    pub path: PathBuf,
    /// The first entry in it that is damaged. Later ones of the same segment were not looked at.
    pub index: u64,
    /// What is wrong.
    pub detail: String,
}

/// What one step of a scrub did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScrubStep {
    /// Where the next step goes on; `None` once all sealed segments have been looked at.
    pub next_index: Option<u64>,
    /// Bytes that were read, headers included.
    pub bytes: u64,
    /// What is damaged.
    pub findings: Vec<Finding>,
}

impl LogReader {
    /// Checks the sealed segments from entry `from` on, until about `bytes_max` bytes were read: at least
    /// one frame, at most one frame more. Begin with 0 and go on with `next_index`. Damage is a finding
    /// and not an error; an error means that the disk would not read.
    pub fn scrub(&self, from: u64, bytes_max: u64) -> Result<ScrubStep, StorageError> {
        let mut step = ScrubStep::default();
        let mut next = from;
        while let Some(entry) = self.sealed_segment(next) {
            next = next.max(entry.info.first_index);
            if step.bytes >= bytes_max && step.bytes > 0 {
                step.next_index = Some(next);
                return Ok(step);
            }
            next = match self.scrub_segment(&entry, next, bytes_max, &mut step) {
                Ok(next) => next,
                // Retention was faster.
                Err(StorageError::Compacted { .. }) => entry.info.end_index,
                Err(StorageError::Corrupt { path, index, detail }) => {
                    step.findings.push(Finding { path, index, detail });
                    entry.info.end_index
                }
                Err(error) => return Err(error),
            };
        }
        Ok(step)
    }

    /// The sealed segment that holds entry `index` or, if that is no longer kept, the first one.
    fn sealed_segment(&self, index: u64) -> Option<SegmentEntry> {
        let state = self.shared().state.read();
        let sealed = state.segments.len().checked_sub(1)?;
        let at = state.segment_of_index(index);
        state.segments.get(at).filter(|_| at < sealed).cloned()
    }

    /// Checks one segment from entry `from` on; returns the first entry that was not checked.
    fn scrub_segment(
        &self,
        entry: &SegmentEntry,
        from: u64,
        bytes_max: u64,
        step: &mut ScrubStep,
    ) -> Result<u64, StorageError> {
        if from == entry.info.first_index {
            self.scrub_header(entry)?;
            step.bytes += SEGMENT_HEADER_BYTES as u64;
        }
        let mut walk = self.walk(entry, |points| points.before_index(from))?;
        let mut next = from;
        while next < entry.info.end_index {
            let found = walk.next()?.ok_or_else(|| walk.missing(next))?;
            let index = found.header.meta.index;
            if index < next {
                continue;
            }
            if index > next {
                return Err(walk.missing(next));
            }
            step.bytes += found.header.frame_bytes();
            walk.verified(found)?;
            next += 1;
            if step.bytes >= bytes_max {
                break;
            }
        }
        Ok(next)
    }

    fn scrub_header(&self, entry: &SegmentEntry) -> Result<(), StorageError> {
        let segment = &entry.segment;
        let file = self.file_of(entry)?;
        let bytes = file.read(0, SEGMENT_HEADER_BYTES).io_context("read", &segment.path)?;
        if SegmentHeader::decode(&bytes) == DecodedSegmentHeader::Valid(segment.header) {
            return Ok(());
        }
        let index = entry.info.first_index;
        Err(StorageError::corrupt(&segment.path, index, "damaged segment header"))
    }
}
