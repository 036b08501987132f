//! Derived state of a partition from the newest checkpoint that fits its log and the entries behind it.
//!
//! Owns: which checkpoint may be believed. Never: changes anything.

use highwater_proto::batch::BatchHeader;
use highwater_proto::internal::ReplicaCheckpoint;
use highwater_storage::{LogReader, StorageError};

use crate::replica::checkpoint::SmallFiles;
use crate::replica::envelope::EntryKind;
use crate::replica::producers::{Produced, Producers};

/// Entries read at once.
const READ_BYTES: u64 = 4 << 20;

/// Derived state as of one entry.
pub(super) struct Rebuilt {
    pub(super) producers: Producers,
    /// Highest append time up to that entry.
    pub(super) append_time_ms: i64,
    /// Control entries up to here are known to be in the file `replica`.
    pub(super) applied_index: u64,
}

/// Derived state after entry `last`, which is in the log or stands right before it.
pub(super) fn as_of(
    last: u64,
    files: &SmallFiles,
    reader: &LogReader,
) -> Result<Rebuilt, StorageError> {
    let checkpoint = newest(last, files, reader)?;
    let mut rebuilt = Rebuilt {
        producers: Producers::from_images(&checkpoint.producers),
        append_time_ms: checkpoint.append_time_ms,
        applied_index: checkpoint.applied_index,
    };
    let mut next = checkpoint.index + 1;
    while next <= last {
        let stored = reader.entries(next, last + 1, READ_BYTES)?;
        for entry in &stored {
            let meta = &entry.meta;
            rebuilt.append_time_ms = rebuilt.append_time_ms.max(meta.append_time_ms);
            if meta.kind == EntryKind::Batch as u8 {
                let header = BatchHeader::read(&entry.payload).map_err(|error| {
                    let detail = format!("the batch does not decode: {error}");
                    StorageError::Corrupt {
                        path: files.dir().to_owned(),
                        index: meta.index,
                        detail,
                    }
                })?;
                let produced = Produced::of(
                    &header,
                    meta.index,
                    meta.term,
                    entry.base_offset,
                    meta.append_time_ms,
                );
                rebuilt.producers.record(&header, produced);
            }
        }
        next += stored.len() as u64;
    }
    Ok(rebuilt)
}

fn newest(
    last: u64,
    files: &SmallFiles,
    reader: &LogReader,
) -> Result<ReplicaCheckpoint, StorageError> {
    let indexes = files.checkpoints()?;
    let in_reach = |index: &u64| *index <= last && *index + 1 >= reader.first_index();
    indexes
        .into_iter()
        .rev()
        .filter(in_reach)
        // A checkpoint of a suffix that was cut since has another term at its index.
        .find_map(|index| {
            files.load_checkpoint(index).filter(|found| reader.term(index) == Some(found.term))
        })
        .ok_or_else(|| StorageError::Corrupt {
            path: files.dir().to_owned(),
            index: reader.first_index() - 1,
            detail: "the checkpoint for the start of the log is missing or damaged".into(),
        })
}
