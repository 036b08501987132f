//! The small files beside a replica's log: its identity and applied control state, and checkpoints of derived state.
//!
//! Owns: their names, formats and the order in which they are written and removed. Never: what the state means.
//!
//! A checkpoint only under-claims: it is durable before anything relies on it, and is removed before the log is truncated
//! below it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use highwater_proto::internal::{ReplicaCheckpoint, ReplicaState};
use highwater_storage::{Disk, LogReader, StorageError, read_small_file, write_small_file};
use prost::Message;

const STATE_MAGIC: [u8; 8] = *b"HWREPLIC";
const CHECKPOINT_MAGIC: [u8; 8] = *b"HWCHECKP";
const VERSION: u32 = 1;
const STATE_FILE: &str = "replica";
const CHECKPOINT_PREFIX: &str = "checkpoint-";

/// The small files of one replica.
#[derive(Clone, Debug)]
pub(crate) struct SmallFiles {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
}

impl SmallFiles {
    pub(crate) fn new(disk: Arc<dyn Disk>, dir: &Path) -> Self {
        Self { disk, dir: dir.to_owned() }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The file `replica`, or `None` where no replica was ever created completely.
    pub(crate) fn load_state(&self) -> Result<Option<ReplicaState>, StorageError> {
        self.load(STATE_FILE, STATE_MAGIC)
    }

    /// Durable when it returns.
    pub(crate) fn store_state(&self, state: &ReplicaState) -> Result<(), StorageError> {
        let path = self.dir.join(STATE_FILE);
        write_small_file(&*self.disk, &path, STATE_MAGIC, VERSION, &state.encode_to_vec())
    }

    /// Durable when it returns.
    pub(crate) fn store_checkpoint(
        &self,
        checkpoint: &ReplicaCheckpoint,
    ) -> Result<(), StorageError> {
        let path = self.dir.join(checkpoint_name(checkpoint.index));
        write_small_file(&*self.disk, &path, CHECKPOINT_MAGIC, VERSION, &checkpoint.encode_to_vec())
    }

    /// The same for a checkpoint that was made a while ago: not if its entry has been cut from the log since. The one for the
    /// entry that is there now may have been stored already, and the log may begin right behind it.
    pub(crate) fn store_checkpoint_of(
        &self,
        log: &LogReader,
        checkpoint: &ReplicaCheckpoint,
    ) -> Result<(), StorageError> {
        if log.term(checkpoint.index) != Some(checkpoint.term) {
            return Ok(());
        }
        self.store_checkpoint(checkpoint)
    }

    /// Indexes of all checkpoints, ascending.
    pub(crate) fn checkpoints(&self) -> Result<Vec<u64>, StorageError> {
        let names = self.disk.list(&self.dir).map_err(self.failed("list", &self.dir))?;
        let mut found: Vec<u64> = names
            .iter()
            .filter_map(|name| name.strip_prefix(CHECKPOINT_PREFIX)?.parse().ok())
            .collect();
        found.sort_unstable();
        Ok(found)
    }

    /// One checkpoint; `None` if it is missing or cannot be read: it is derived, an older one does as well.
    pub(crate) fn load_checkpoint(&self, index: u64) -> Option<ReplicaCheckpoint> {
        match self.load(&checkpoint_name(index), CHECKPOINT_MAGIC) {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(%error, index, "ignoring a checkpoint that cannot be read");
                None
            }
        }
    }

    /// Removes the checkpoints that `condemned` picks.
    pub(crate) fn remove_checkpoints(
        &self,
        condemned: impl Fn(u64) -> bool,
    ) -> Result<(), StorageError> {
        let mut removed = false;
        for index in self.checkpoints()?.into_iter().filter(|index| condemned(*index)) {
            let path = self.dir.join(checkpoint_name(index));
            self.disk.remove_file(&path).map_err(self.failed("remove", &path))?;
            removed = true;
        }
        if removed {
            self.disk.sync_dir(&self.dir).map_err(self.failed("sync", &self.dir))?;
        }
        Ok(())
    }

    fn load<M: Message + Default>(
        &self,
        name: &str,
        magic: [u8; 8],
    ) -> Result<Option<M>, StorageError> {
        let path = self.dir.join(name);
        let Some((_, body)): Option<(u32, Bytes)> =
            read_small_file(&*self.disk, &path, magic, VERSION)?
        else {
            return Ok(None);
        };
        M::decode(body).map(Some).map_err(|error| {
            let detail = format!("its checksum holds but its content does not decode: {error}");
            StorageError::Corrupt { path, index: 0, detail }
        })
    }

    fn failed<'a>(
        &self,
        operation: &'static str,
        path: &'a Path,
    ) -> impl FnOnce(std::io::Error) -> StorageError + 'a {
        move |source| StorageError::Io { operation, path: path.to_owned(), source }
    }
}

fn checkpoint_name(index: u64) -> String {
    format!("{CHECKPOINT_PREFIX}{index:020}")
}

#[cfg(test)]
mod tests {
    use highwater_storage::{EntryMeta, Log, LogOptions, LogStart, SimDisk};

    use super::*;

    fn append(log: &mut Log, index: u64, term: u64) {
        let meta = EntryMeta {
            index,
            term,
            kind: 2,
            offset_span: 0,
            append_time_ms: 0,
            max_timestamp_ms: 0,
        };
        log.append(&meta, &[]).unwrap();
    }

    /// A checkpoint waited for a slow disk while its entry was cut and the log came to begin behind the one in its place.
    #[test]
    fn a_checkpoint_of_an_entry_that_was_cut_does_not_replace_that_of_the_entry_in_its_place() {
        let disk: Arc<dyn Disk> = Arc::new(SimDisk::new(1));
        let dir = Path::new("/group");
        disk.create_dir_all(dir).unwrap();
        let start = LogStart { first_index: 6, prev_term: 5, next_offset: 0 };
        let mut log = Log::create(Arc::clone(&disk), dir, start, LogOptions::default()).unwrap();
        let files = SmallFiles::new(disk, dir);
        let checkpoint =
            |term| ReplicaCheckpoint { index: 7, term, ..ReplicaCheckpoint::default() };
        append(&mut log, 6, 6);
        append(&mut log, 7, 6);
        let waiting = checkpoint(6);
        log.truncate_suffix(7).unwrap();
        append(&mut log, 7, 7);
        files.store_checkpoint(&checkpoint(7)).unwrap();
        files.store_checkpoint_of(&log.reader(), &waiting).unwrap();
        assert_eq!(files.load_checkpoint(7).unwrap().term, 7);
        files.store_checkpoint_of(&log.reader(), &checkpoint(7)).unwrap();
        assert_eq!(files.load_checkpoint(7).unwrap().term, 7);
    }
}
