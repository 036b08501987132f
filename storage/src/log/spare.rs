//! Files of dropped segments that wait to hold the next one: syncing blocks that already hold data is cheaper.
//!
//! A node bounds how many there are. A spare's name is none of a segment's and its header is durably blank, so
//! that nothing in it counts. Spares are not kept over a restart.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::frame::SEGMENT_HEADER_BYTES;
use crate::disk::Disk;

const EXTENSION: &str = "spare";

/// How many spare files all the logs that share it may keep together; each log keeps one at most.
#[derive(Clone, Debug)]
pub struct SparePool {
    free: Arc<AtomicUsize>,
}

impl SparePool {
    /// A pool of `files_max` files. Each is as large as a segment.
    pub fn new(files_max: usize) -> Self {
        Self { free: Arc::new(AtomicUsize::new(files_max)) }
    }

    fn take(&self) -> Option<Permit> {
        let less = |free: usize| free.checked_sub(1);
        self.free.fetch_update(Ordering::AcqRel, Ordering::Acquire, less).ok()?;
        Some(Permit { free: Arc::clone(&self.free) })
    }
}

/// A place in the pool; given back when dropped.
#[derive(Debug)]
struct Permit {
    free: Arc<AtomicUsize>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.free.fetch_add(1, Ordering::AcqRel);
    }
}

/// A file that waits. Invariant: its first bytes are zeroes, durably.
#[derive(Debug)]
pub(super) struct Spare {
    path: PathBuf,
    _permit: Permit,
}

impl Spare {
    /// Makes the file of a dropped segment a spare; `None` if the pool is full or the disk refuses: then
    /// the file is the caller's to remove.
    pub(super) fn make(disk: &dyn Disk, pool: &SparePool, path: &Path) -> Option<Self> {
        let permit = pool.take()?;
        let to = path.with_extension(EXTENSION);
        let file = disk.open(path, 0).ok()?;
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
