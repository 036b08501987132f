//! Looking for rot in a compacted part, as `log/scrub.rs` does in the log.

use std::sync::Arc;

use super::{CompactedReader, CompactedSegment};
use crate::error::{IoContext, StorageError};
use crate::log::frame::{DecodedSegmentHeader, SEGMENT_HEADER_BYTES, SegmentHeader};
use crate::log::segment::Segment;
use crate::log::{Finding, ScrubStep};

impl CompactedReader {
    /// Checks the files from entry `from` on, until about `bytes_max` bytes were read: at least one frame, at most one frame
    /// more. Begin with 0 and go on with `next_index`. Damage is a finding and not an error; an error means that
    /// the disk would not read.
    pub fn scrub(&self, from: u64, bytes_max: u64) -> Result<ScrubStep, StorageError> {
        self.look(|state| {
            let mut step = ScrubStep::default();
            let mut next = from;
            for (info, segment) in state.infos().iter().zip(&state.segments) {
                if info.end_index <= next {
                    continue;
                }
                if step.bytes >= bytes_max && step.bytes > 0 {
                    step.next_index = Some(next);
                    return Ok(step);
                }
                next = next.max(info.first_index);
                next = match self.scrub_file(info, segment, next, bytes_max, &mut step) {
                    Ok(next) => next,
                    Err(StorageError::Corrupt { path, index, detail }) => {
                        step.findings.push(Finding { path, index, detail });
                        info.end_index
                    }
                    Err(error) => return Err(error),
                };
                if next < info.end_index {
                    step.next_index = Some(next);
                    return Ok(step);
                }
            }
            Ok(step)
        })
    }

    /// Checks one file from entry `from` on; returns the first entry that was not checked.
    fn scrub_file(
        &self,
        info: &CompactedSegment,
        segment: &Arc<Segment>,
        from: u64,
        bytes_max: u64,
        step: &mut ScrubStep,
    ) -> Result<u64, StorageError> {
        if from == info.first_index {
            let file = segment.file(&*self.shared.disk)?;
            let bytes = file.read(0, SEGMENT_HEADER_BYTES).io_context("read", &segment.path)?;
            if SegmentHeader::decode(&bytes) != DecodedSegmentHeader::Valid(segment.header) {
                return Err(StorageError::corrupt(&segment.path, from, "damaged segment header"));
            }
            step.bytes += SEGMENT_HEADER_BYTES as u64;
        }
        let mut walk = self.walk(info, segment, |points| points.before_index(from))?;
        while let Some(found) = walk.next()? {
            let index = found.header.meta.index;
            if index < from {
                continue;
            }
            step.bytes += found.header.frame_bytes();
            walk.verified(found)?;
            if step.bytes >= bytes_max {
                return Ok(index + 1);
            }
        }
        Ok(info.end_index)
    }
}
