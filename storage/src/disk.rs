//! The disk seam: everything this crate asks of a file system, as two traits.
//!
//! `RealDisk` is production; `SimDisk` keeps files in memory, loses on a crash what was not synced,
//! and draws every choice from its seed. Knows nothing of frames or logs.

mod journaled;
mod real;
mod sim;
mod unsynced;

use std::any::Any;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use bytes::Bytes;

#[cfg(any(test, feature = "fuzzing"))]
pub use journaled::fuzzing::append_journal;
pub use journaled::{JournaledDisk, Unsynced};
pub use real::RealDisk;
pub use sim::{SimDisk, SimOp};
pub use unsynced::UnsyncedDisk;

/// A file system. Paths are absolute or relative to the working directory.
pub trait Disk: Send + Sync + std::fmt::Debug + 'static {
    /// Creates `dir` and what is missing above it. Durable once the parents are synced.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;
    /// The names of the files and directories in `dir`, sorted; empty if `dir` is missing.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// True if something is at `path`.
    fn exists(&self, path: &Path) -> bool;
    /// Creates an empty file; fails if it exists. `mapped_len` is the most it will ever hold; with 0 the
    /// file is not mapped and reads copy.
    fn create(&self, path: &Path, mapped_len: u64) -> io::Result<Arc<dyn DiskFile>>;
    /// Opens an existing file for reading and writing. `mapped_len` as in `create`. What is written to a file that is open more
    /// than once is synced by the one it was written through.
    fn open(&self, path: &Path, mapped_len: u64) -> io::Result<Arc<dyn DiskFile>>;
    /// Renames a file over whatever is at `to`. Durable once the directory is synced. Whoever goes on using the file opens it
    /// again by its new name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file. Slices of it that readers hold stay valid.
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Removes a directory and everything in it.
    fn remove_dir_all(&self, dir: &Path) -> io::Result<()>;
    /// Makes the names in `dir` durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Makes all files and names below `root` durable in one step; false, and nothing done, if that cannot
    /// be. All of it is on one file system.
    fn sync_tree(&self, _root: &Path) -> io::Result<bool> {
        Ok(false)
    }
    /// True if giving `path`, or what is below it, another name or another file would have to wait for the disk first.
    fn is_name_kept(&self, _path: &Path) -> bool {
        false
    }
    /// Makes the bytes of all `files` and the names in all `dirs` durable: the group sync. One by one
    /// unless the disk knows better.
    fn sync_many(&self, files: &[Arc<dyn DiskFile>], dirs: &[PathBuf]) -> io::Result<()> {
        files.iter().try_for_each(|file| file.sync())?;
        dirs.iter().try_for_each(|dir| self.sync_dir(dir))
    }
}

/// Tells whether anybody still holds an open file or a slice that was read from it.
#[derive(Clone, Debug)]
pub struct Lease(Weak<dyn Any + Send + Sync>);

impl Lease {
    /// A lease that lasts as long as `held` or a clone of it lives.
    pub fn new<T: Any + Send + Sync>(held: &Arc<T>) -> Self {
        let held: Arc<dyn Any + Send + Sync> = Arc::<T>::clone(held);
        Self(Arc::downgrade(&held))
    }

    /// False once the file is closed and all its slices are gone, for good.
    pub fn is_held(&self) -> bool {
        self.0.strong_count() > 0
    }
}

/// An open file.
pub trait DiskFile: Send + Sync + std::fmt::Debug {
    /// Length in bytes, allocated space included.
    fn len(&self) -> u64;
    /// True if the length is 0.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Grows the file to `len` with space reserved; never shrinks it. A full disk is an error here, so
    /// that it never is a fault on a mapped page later. New bytes read as zeroes.
    fn allocate(&self, len: u64) -> io::Result<()>;
    /// Writes the parts one after the other at `offset`, all or an error (which may leave some written).
    fn write_at(&self, offset: u64, parts: &[&[u8]]) -> io::Result<()>;
    /// Reads exactly `len` bytes. Fails, without allocating, if the range passes the end of the file.
    /// The result of a mapped file is a slice that keeps the mapping alive: no copy. Whoever asks for a
    /// range promises not to write to it while the result lives.
    fn read(&self, offset: u64, len: usize) -> io::Result<Bytes>;
    /// The first byte at or after `offset` that was ever written, as far as the disk can tell: everything before it reads as
    /// zeroes. `None` if there is none.
    fn written_from(&self, offset: u64) -> io::Result<Option<u64>> {
        Ok((offset < self.len()).then_some(offset))
    }
    /// Who holds this file or slices of it; `None` if the disk cannot tell. Only a file that nobody
    /// holds is ever written over.
    fn lease(&self) -> Option<Lease> {
        None
    }
    /// Begins to write these bytes to the disk, and does not wait; only a hint.
    fn start_sync(&self, _offset: u64, _bytes: u64) {}
    /// Makes the bytes written so far durable.
    fn sync(&self) -> io::Result<()>;
    /// Which file system the file is on, if that can be synced as a whole.
    fn file_system(&self) -> Option<u64> {
        None
    }
    /// What of the file is not durable, if the disk keeps account of that.
    fn unsynced(&self) -> Option<&Unsynced> {
        None
    }
    /// Makes everything on the file's file system durable; where that cannot be, only the file.
    fn sync_file_system(&self) -> io::Result<()> {
        self.sync()
    }
}

/// Fails unless `offset..offset + len` lies within `file_len`; returns the end of the range.
fn check_range(offset: u64, len: usize, file_len: u64) -> io::Result<u64> {
    let end = u64::try_from(len).ok().and_then(|len| offset.checked_add(len));
    match end {
        Some(end) if end <= file_len => Ok(end),
        _ => Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            format!("{len} bytes at {offset} pass the end of the file at {file_len}"),
        )),
    }
}
