//! One partition's records, wherever they are: in the compacted part below, in the dense log above.
//!
//! Owns the seam between the two, which moves up while readers read. Never: writes, or decides what is readable.

use highwater_storage::{CompactedReader, LogReader, StorageError, StoredEntry};

/// A read that finds its entries moved to the compacted part looks again so many times.
const LOOKS_MAX: usize = 10;

/// Reads a partition. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct PartitionReader {
    pub(crate) log: LogReader,
    pub(crate) compacted: CompactedReader,
}

/// What one read found.
#[derive(Debug, PartialEq, Eq)]
pub struct Stored {
    /// Whole stored batches, in order. Compaction leaves gaps between them.
    pub entries: Vec<StoredEntry>,
    /// Where to go on: behind the last of them. Without any, behind the gap that the read began in; or where it began.
    pub next_offset: u64,
}

impl PartitionReader {
    /// The batches that hold offsets from `from` on, or the next ones behind a gap, and end at or below `to`: as many as
    /// hold at most `bytes_max` bytes together, and at least one if there is any.
    pub(crate) fn read_offsets(
        &self,
        from: u64,
        to: u64,
        bytes_max: u64,
    ) -> Result<Stored, StorageError> {
        let mut looks = 0;
        loop {
            let end = self.compacted.end_offset();
            if from < end {
                let entries = self.compacted.read_offsets(from, to, bytes_max)?;
                if !entries.is_empty() {
                    return Ok(stored(entries, from));
                }
                if end > to {
                    return Ok(Stored { entries, next_offset: from });
                }
            }
            looks += 1;
            match self.log.read_offsets(from.max(end), to, bytes_max) {
                Ok(entries) => return Ok(stored(entries, from.max(end))),
                // A compaction has moved the seam meanwhile.
                Err(StorageError::Compacted { .. })
                    if looks < LOOKS_MAX && self.compacted.end_offset() > end => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The first batch whose greatest create time is at least `timestamp_ms` and that ends at or below `to`.
    pub(crate) fn entry_at_time(
        &self,
        timestamp_ms: i64,
        to: u64,
    ) -> Result<Option<StoredEntry>, StorageError> {
        let mut looks = 0;
        loop {
            let end = self.compacted.end_offset();
            if let Some(entry) = self.compacted.entry_at_time(timestamp_ms)? {
                return Ok((entry.end_offset() <= to).then_some(entry));
            }
            looks += 1;
            let outcome = self.log.entry_at_time(timestamp_ms, to);
            // What a compaction moved meanwhile was in neither.
            if self.compacted.end_offset() == end || looks == LOOKS_MAX {
                return outcome;
            }
        }
    }

    /// Bytes on disk.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.log.size_bytes() + self.compacted.size_bytes()
    }
}

fn stored(entries: Vec<StoredEntry>, from: u64) -> Stored {
    let next_offset = entries.last().map_or(from, StoredEntry::end_offset);
    Stored { entries, next_offset }
}
