//! Files of dropped segments that wait to hold the next one: syncing blocks that already hold data is cheaper.
//!
//! A node bounds how many there are. A spare's name is none of a segment's and its header is durably blank, so
//! that nothing in it counts. Spares are not kept over a restart.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::frame::SEGMENT_HEADER_BYTES;
use crate::disk::Disk;

const EXTENSION: &str = "spare";

/// How much space the spare files of all the logs that share it may take; each log keeps one at most.
#[derive(Clone, Debug)]
pub struct SparePool {
    free_bytes: Arc<AtomicU64>,
}

impl SparePool {
    /// A pool of files that take `bytes_max` together.
    pub fn new(bytes_max: u64) -> Self {
        Self { free_bytes: Arc::new(AtomicU64::new(bytes_max)) }
    }

    fn take(&self, bytes: u64) -> Option<Permit> {
        let less = |free: u64| free.checked_sub(bytes);
        self.free_bytes.fetch_update(Ordering::AcqRel, Ordering::Acquire, less).ok()?;
        Some(Permit { free_bytes: Arc::clone(&self.free_bytes), bytes })
    }
}

/// A place in the pool; given back when dropped.
#[derive(Debug)]
struct Permit {
    free_bytes: Arc<AtomicU64>,
    bytes: u64,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.free_bytes.fetch_add(self.bytes, Ordering::AcqRel);
    }
}

/// A file that waits. Invariant: its first bytes are zeroes, durably.
#[derive(Debug)]
pub(super) struct Spare {
    path: PathBuf,
    _permit: Permit,
}

impl Spare {
    /// Makes the file of a dropped segment a spare; `None` if the pool is full, or the disk refuses or would make us wait: then
    /// the file is the caller's to remove.
    pub(super) fn make(disk: &dyn Disk, pool: &SparePool, path: &Path) -> Option<Self> {
        let to = path.with_extension(EXTENSION);
        if disk.is_name_kept(path) {
            return None;
        }
        let file = disk.open(path, 0).ok()?;
        let permit = pool.take(file.len())?;
        file.write_at(0, &[&[0; SEGMENT_HEADER_BYTES]]).ok()?;
        // Were the old header to come back under the new segment's name, it would pass for damage.
        file.sync().ok()?;
        disk.rename(path, &to).ok()?;
        Some(Self { path: to, _permit: permit })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

/// True of the name of a spare file.
pub(super) fn is_spare(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|extension| extension == EXTENSION)
}
