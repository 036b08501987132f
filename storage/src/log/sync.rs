//! Making appends durable, apart from the thread that appends.
//!
//! A sync point is taken by the writer, synced anywhere, and handed back. Owns no file for longer than
//! that; never retries.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::{Disk, DiskFile};
use crate::error::{IoContext, StorageError};

/// What must be synced for everything appended so far to be durable.
#[derive(Clone, Debug)]
pub struct SyncPoint {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) files: Vec<Arc<dyn DiskFile>>,
    /// The log's directory, if a segment was added to it.
    pub(super) dir: Option<PathBuf>,
    /// Which of the log's changes of names this covers.
    pub(super) dir_version: u64,
    /// Counts truncations and resets: a point of before one says nothing about after.
    pub(super) generation: u64,
    pub(super) last_index: u64,
}

impl SyncPoint {
    /// The last entry that is durable once this is synced.
    pub fn last_index(&self) -> u64 {
        self.last_index
    }

    /// True if everything was durable already.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty() && self.dir.is_none()
    }

    /// Makes this one point durable.
    pub fn sync(&self) -> io::Result<()> {
        sync_group(std::slice::from_ref(self))
    }
}

/// Proof that all names below a directory were made durable at once, and by whom it may be relied on: nobody
/// may have written there since. Of bytes that an earlier process wrote it proves nothing: a sync of its own may have failed.
#[derive(Debug)]
pub struct Settled {
    root: Option<PathBuf>,
}

impl Settled {
    /// Makes durable whatever the operating system holds for files below `root`, which are not in use, in
    /// one step if the disk can; if not, this covers nothing, and every log syncs by itself.
    pub fn below(disk: &dyn Disk, root: &Path) -> Result<Self, StorageError> {
        let done = disk.sync_tree(root).io_context("sync the file system of", root)?;
        Ok(Self { root: done.then(|| root.to_path_buf()) })
    }

    /// True if it holds for what is in `dir`.
    pub fn covers(&self, dir: &Path) -> bool {
        self.root.as_ref().is_some_and(|root| dir.starts_with(root))
    }
}

/// Makes all the points durable together; blocks until they are. How is the disk's choice
/// (`Disk::sync_many`). After an error nothing is known about any of them, and trying again proves
/// nothing: the caller stops acknowledging.
pub fn sync_group(points: &[SyncPoint]) -> io::Result<()> {
    let Some(first) = points.first() else { return Ok(()) };
    if points.iter().all(|point| Arc::ptr_eq(&point.disk, &first.disk)) {
        return sync_together(&first.disk, points.iter());
    }
    points.iter().try_for_each(|point| sync_together(&point.disk, std::iter::once(point)))
}

fn sync_together<'a>(
    disk: &Arc<dyn Disk>,
    points: impl Iterator<Item = &'a SyncPoint>,
) -> io::Result<()> {
    let mut files: Vec<Arc<dyn DiskFile>> = Vec::new();
    let mut dirs: Vec<PathBuf> = Vec::new();
    for point in points {
        files.extend(point.files.iter().cloned());
        dirs.extend(point.dir.iter().cloned());
    }
    disk.sync_many(&files, &dirs)
}
