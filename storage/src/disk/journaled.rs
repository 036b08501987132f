//! A journal in front of the files: what was appended to many of them becomes durable by one write and one sync.
//!
//! A sync costs about the same for each file, however little was written to it. Where many files have a little to sync, their new
//! bytes go into one journal too, in one record, and only that is synced (the idea is that of databases: a redo log).
//! Owns: which bytes of each file are not durable, the two halves of the journal, and putting back at the start what a
//! power loss took from the files. Knows nothing of frames or logs.
//!
//! The halves take turns. A full one is *settled*: everything is synced where it belongs, and only then is the half used again, under
//! the next generation. Rules that this leans on:
//! - The name of a file is durable before its bytes go into the journal: a group with new names is synced in place.
//! - Bytes that were synced never change. So it does no harm to put them back when they are still there.
//! - A name that stands in the journal is not given to another file, nor its file another name, before the journal is settled.

mod record;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex, MutexGuard};

use super::{Disk, DiskFile, Lease};
use crate::error::{IoContext, StorageError};
use record::{HEADER_BYTES, Piece};

const FILE_NAMES: [&str; 2] = ["appends-a.journal", "appends-b.journal"];
/// Each half grows up to this.
const HALF_BYTES_MAX: u64 = 32 << 20;
/// By so much at a time.
const STEP_BYTES: u64 = 1 << 20;
/// A single file is synced where it is.
const FILES_MIN: usize = 2;
/// More than this of one file is not worth writing twice.
const COPY_BYTES_MAX: u64 = 32 << 10;

const _: () = assert!(STEP_BYTES < HALF_BYTES_MAX);

/// The disk beneath it, with a journal in front of what is synced together. Clones share the journal.
#[derive(Clone, Debug)]
pub struct JournaledDisk {
    inner: Arc<dyn Disk>,
    root: PathBuf,
    half_bytes: u64,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    journal: Mutex<Journal>,
    /// A half is full, or settled.
    changed: Condvar,
}

/// Invariant: a half that is neither live nor being settled, nor waits for it, holds nothing that counts.
#[derive(Debug)]
struct Journal {
    halves: [Half; 2],
    live: usize,
    settling: bool,
}

#[derive(Debug)]
struct Half {
    file: Arc<dyn DiskFile>,
    generation: u64,
    /// Number of the next record, and where it goes.
    sequence: u64,
    position: u64,
    /// Whose bytes are in it, and perhaps nowhere else durably; some may be named twice.
    files: Vec<Arc<Path>>,
}

/// What of a file is not durable yet.
#[derive(Debug)]
pub struct Unsynced {
    path: Arc<Path>,
    written: Mutex<Written>,
    /// The generation of the journal that has named it already.
    named_in: AtomicU64,
}

/// What was written since the last sync.
#[derive(Debug, Default)]
struct Written {
    /// All of it is in this range of the file.
    range: Range<u64>,
    /// The bytes of the range, unless they are many or were not written one after the other: reading them back would cost a
    /// system call or a page fault for each file.
    copy: Option<Vec<u8>>,
}

impl Written {
    fn add(&mut self, offset: u64, parts: &[&[u8]]) {
        let bytes: u64 = parts.iter().map(|part| part.len() as u64).sum();
        let end = offset + bytes;
        if self.range.is_empty() {
            *self = Self { range: offset..offset, copy: Some(Vec::new()) };
        }
        let follows = self.range.end == offset && end - self.range.start <= COPY_BYTES_MAX;
        match &mut self.copy {
            Some(copy) if follows => parts.iter().for_each(|part| copy.extend_from_slice(part)),
            copy => *copy = None,
        }
        self.range = self.range.start.min(offset)..self.range.end.max(end);
    }
}

impl Unsynced {
    /// What was written, which is the caller's to make durable from now on.
    fn take(&self) -> Written {
        std::mem::take(&mut *self.written.lock())
    }

    /// Gives back what was not made durable after all.
    fn give_back(&self, before: Written) {
        let mut written = self.written.lock();
        if written.range.is_empty() {
            *written = before;
        } else if !before.range.is_empty() {
            let start = before.range.start.min(written.range.start);
            let end = before.range.end.max(written.range.end);
            *written = Written { range: start..end, copy: None };
        }
    }
}

impl JournaledDisk {
    /// Opens the journal of the files below `root`, which exists, or creates it there. First puts back what the journal holds and
    /// the files lost; that is durable when this returns. `Corrupt` if a record is damaged that had been durable.
    pub fn open(inner: Arc<dyn Disk>, root: &Path) -> Result<Self, StorageError> {
        Self::open_with(inner, root, HALF_BYTES_MAX)
    }

    pub(crate) fn open_with(
        inner: Arc<dyn Disk>,
        root: &Path,
        half_bytes: u64,
    ) -> Result<Self, StorageError> {
        let generation = put_back(&*inner, root)?;
        let mut halves = Vec::new();
        for (number, name) in FILE_NAMES.iter().enumerate() {
            let path = root.join(name);
            let file = if inner.exists(&path) {
                inner.open(&path, 0).io_context("open", &path)?
            } else {
                inner.create(&path, 0).io_context("create", &path)?
            };
            let generation = generation + 1 + number as u64;
            record::begin(&*file, generation).io_context("write", &path)?;
            let files = Vec::new();
            let position = HEADER_BYTES as u64;
            halves.push(Half { file, generation, sequence: 0, position, files });
        }
        inner.sync_dir(root).io_context("sync directory", root)?;
        let [a, b] = <[Half; 2]>::try_from(halves)
            .map_err(|_| StorageError::corrupt(root, 0, "a journal has two halves"))?;
        let journal = Journal { halves: [a, b], live: 0, settling: false };
        let shared = Shared { journal: Mutex::new(journal), changed: Condvar::new() };
        Ok(Self { inner, root: root.to_path_buf(), half_bytes, shared: Arc::new(shared) })
    }

    /// Waits until a half is full, but no longer than `patience`, and settles it, so that nobody who appends has to wait for that.
    /// After an error nothing is known of what was appended: stop acknowledging.
    pub fn settle_full_half(&self, patience: Duration) -> io::Result<()> {
        let mut journal = self.shared.journal.lock();
        if !journal.waits_for_settling() {
            self.shared.changed.wait_for(&mut journal, patience);
        }
        if journal.waits_for_settling() { self.settle_other(journal).map(drop) } else { Ok(()) }
    }

    /// Settles the half that is not live; waits if somebody does already.
    fn settle_other<'a>(
        &'a self,
        mut journal: MutexGuard<'a, Journal>,
    ) -> io::Result<MutexGuard<'a, Journal>> {
        while journal.settling {
            self.shared.changed.wait(&mut journal);
        }
        let other = 1 - journal.live;
        if journal.halves[other].files.is_empty() {
            return Ok(journal);
        }
        journal.settling = true;
        let files = journal.halves[other].files.clone();
        // Above both: when both are read at a start, the one with the later bytes comes last.
        let generation = journal.halves[journal.live].generation + 1;
        let file = Arc::clone(&journal.halves[other].file);
        drop(journal);
        let outcome = self.sync_in_place(&files).and_then(|()| record::begin(&*file, generation));
        let mut journal = self.shared.journal.lock();
        journal.settling = false;
        self.shared.changed.notify_all();
        outcome?;
        let half = &mut journal.halves[other];
        half.generation = generation;
        (half.sequence, half.position) = (0, HEADER_BYTES as u64);
        half.files.clear();
        Ok(journal)
    }

    /// Settles all there is.
    fn settle_all(&self) -> io::Result<()> {
        let mut journal = self.settle_other(self.shared.journal.lock())?;
        if journal.halves[journal.live].files.is_empty() {
            return Ok(());
        }
        journal.live = 1 - journal.live;
        self.settle_other(journal).map(drop)
    }

    fn sync_in_place(&self, files: &[Arc<Path>]) -> io::Result<()> {
        if self.inner.sync_tree(&self.root)? {
            return Ok(());
        }
        for path in files.iter().map(|path| self.root.join(path)) {
            // What was removed since needs no syncing.
            if self.inner.exists(&path) {
                self.inner.open(&path, 0)?.sync()?;
            }
        }
        Ok(())
    }

    /// Before the name `path` goes to another file or directory: nothing in the journal may be put back under it.
    fn free_name(&self, path: &Path) -> io::Result<()> {
        let Ok(name) = path.strip_prefix(&self.root) else { return Ok(()) };
        let is_in_journal = {
            let journal = self.shared.journal.lock();
            let mut files = journal.halves.iter().flat_map(|half| &half.files);
            files.any(|file| file.starts_with(name))
        };
        if is_in_journal { self.settle_all() } else { Ok(()) }
    }

    /// Makes what was written to `files` durable by way of the journal; false, and nothing done, if that is not the better way.
    fn sync_by_journal(&self, files: &[Arc<dyn DiskFile>]) -> io::Result<bool> {
        if files.len() < FILES_MIN {
            return Ok(false);
        }
        let Some(unsynced) = files.iter().map(|f| f.unsynced()).collect::<Option<Vec<_>>>() else {
            return Ok(false);
        };
        let written: Vec<Written> = unsynced.iter().map(|unsynced| unsynced.take()).collect();
        let bytes: u64 =
            written.iter().map(|written| written.range.end - written.range.start).sum();
        let is_small =
            written.iter().all(|written| written.copy.is_some() || written.range.is_empty());
        if !is_small || bytes > self.half_bytes / 4 {
            for (unsynced, written) in unsynced.iter().zip(written) {
                unsynced.give_back(written);
            }
            return Ok(false);
        }
        let piece = |(unsynced, written): (&&Unsynced, Written)| Piece {
            path: Arc::clone(&unsynced.path),
            offset: written.range.start,
            bytes: Bytes::from(written.copy.unwrap_or_default()),
        };
        let pieces: Vec<Piece> = unsynced.iter().zip(written).map(piece).collect();
        let done = self.append(&unsynced, &pieces);
        if !matches!(done, Ok(true)) {
            for (unsynced, piece) in unsynced.iter().zip(pieces) {
                let range = piece.offset..piece.offset + piece.bytes.len() as u64;
                unsynced.give_back(Written { range, copy: Some(piece.bytes.into()) });
            }
        }
        done
    }

    /// Appends a record and makes it durable; false if there is no room for it on the disk.
    fn append(&self, files: &[&Unsynced], pieces: &[Piece]) -> io::Result<bool> {
        let mut journal = self.shared.journal.lock();
        let bytes = record::bytes_of(pieces);
        if journal.half().position + bytes > self.half_bytes {
            journal = self.settle_other(journal)?;
            // Somebody else may have changed over meanwhile.
            if journal.half().position + bytes > self.half_bytes {
                journal.live = 1 - journal.live;
                self.shared.changed.notify_all();
            }
        }
        let half = journal.half();
        let end = half.position + bytes;
        let grown = end.next_multiple_of(STEP_BYTES).min(self.half_bytes).max(end);
        if half.file.len() < end && half.file.allocate(grown).is_err() {
            return Ok(false);
        }
        if record::write(&*half.file, half.position, half.generation, half.sequence, pieces)
            .is_err()
        {
            // Whatever stands there now, the next record is written over it.
            return Ok(false);
        }
        half.file.sync()?;
        half.position = end;
        half.sequence += 1;
        for file in files {
            if file.named_in.swap(half.generation, Ordering::Relaxed) != half.generation {
                half.files.push(Arc::clone(&file.path));
            }
        }
        Ok(true)
    }

    fn wrap(&self, file: Arc<dyn DiskFile>, path: &Path, mapped_len: u64) -> Arc<dyn DiskFile> {
        // Files that are not mapped are replaced as a whole, or have a journal's part themselves.
        match path.strip_prefix(&self.root) {
            Ok(path) if mapped_len > 0 => {
                let unsynced = Unsynced {
                    path: path.into(),
                    written: Mutex::default(),
                    named_in: AtomicU64::new(0),
                };
                Arc::new(JournaledFile { inner: file, unsynced })
            }
            _ => file,
        }
    }
}

impl Journal {
    fn half(&mut self) -> &mut Half {
        &mut self.halves[self.live]
    }

    fn waits_for_settling(&self) -> bool {
        !self.settling && !self.halves[1 - self.live].files.is_empty()
    }
}

/// Writes into the files what stands in the journal, and makes all of it durable. Answers the last generation there was.
fn put_back(disk: &dyn Disk, root: &Path) -> Result<u64, StorageError> {
    let mut halves = Vec::new();
    for name in FILE_NAMES {
        let path = root.join(name);
        if disk.exists(&path) {
            halves.push(record::read(&*disk.open(&path, 0).io_context("open", &path)?, &path)?);
        }
    }
    halves.sort_by_key(|half| half.generation);
    let mut touched = BTreeSet::new();
    for piece in halves.iter().flat_map(|half| &half.pieces) {
        let is_plain = piece.path.components().all(|part| matches!(part, Component::Normal(_)));
        let path = root.join(&piece.path);
        // A file that is gone was removed after its bytes had been synced.
        if !is_plain || !disk.exists(&path) {
            continue;
        }
        let file = disk.open(&path, 0).io_context("open", &path)?;
        if piece.offset > file.len() {
            // What stands before these bytes had been durable too, and is gone: the log's own check says so.
            continue;
        }
        let end = piece.offset + piece.bytes.len() as u64;
        file.allocate(end).io_context("allocate space in", &path)?;
        file.write_at(piece.offset, &[&piece.bytes]).io_context("write", &path)?;
        touched.insert(path);
    }
    for path in &touched {
        // Each by itself: what is synced as a tree is what was there before.
        let file = disk.open(path, 0).io_context("open", path)?;
        file.sync().io_context("sync", path)?;
    }
    Ok(halves.last().map_or(0, |half| half.generation))
}

impl Disk for JournaledDisk {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.inner.create_dir_all(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.inner.list(dir)
    }

    fn exists(&self, path: &Path) -> bool {
        self.inner.exists(path)
    }

    fn create(&self, path: &Path, mapped_len: u64) -> io::Result<Arc<dyn DiskFile>> {
        self.free_name(path)?;
        Ok(self.wrap(self.inner.create(path, mapped_len)?, path, mapped_len))
    }

    fn open(&self, path: &Path, mapped_len: u64) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.wrap(self.inner.open(path, mapped_len)?, path, mapped_len))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        // After a crash the file may have both names: under the old one, too, nothing may be put back into it.
        self.free_name(from)?;
        self.free_name(to)?;
        self.inner.rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.inner.remove_file(path)
    }

    fn remove_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.inner.remove_dir_all(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.inner.sync_dir(dir)
    }

    fn sync_tree(&self, root: &Path) -> io::Result<bool> {
        self.inner.sync_tree(root)
    }

    fn sync_many(&self, files: &[Arc<dyn DiskFile>], dirs: &[PathBuf]) -> io::Result<()> {
        if dirs.is_empty() && self.sync_by_journal(files)? {
            return Ok(());
        }
        let before: Vec<_> =
            files.iter().filter_map(|file| file.unsynced()).map(|u| (u, u.take())).collect();
        self.inner.sync_many(files, dirs).inspect_err(|_| {
            before.into_iter().for_each(|(unsynced, written)| unsynced.give_back(written));
        })
    }
}

/// A file whose unsynced bytes are known. It keeps the name that it was opened by: after a rename it is opened again.
#[derive(Debug)]
struct JournaledFile {
    inner: Arc<dyn DiskFile>,
    unsynced: Unsynced,
}

impl DiskFile for JournaledFile {
    fn len(&self) -> u64 {
        self.inner.len()
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.inner.allocate(len)
    }

    fn write_at(&self, offset: u64, parts: &[&[u8]]) -> io::Result<()> {
        self.inner.write_at(offset, parts)?;
        self.unsynced.written.lock().add(offset, parts);
        Ok(())
    }

    fn read(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        self.inner.read(offset, len)
    }

    fn written_from(&self, offset: u64) -> io::Result<Option<u64>> {
        self.inner.written_from(offset)
    }

    fn lease(&self) -> Option<Lease> {
        self.inner.lease()
    }

    fn sync(&self) -> io::Result<()> {
        let before = self.unsynced.take();
        self.inner.sync().inspect_err(|_| self.unsynced.give_back(before))
    }

    fn file_system(&self) -> Option<u64> {
        self.inner.file_system()
    }

    fn sync_file_system(&self) -> io::Result<()> {
        self.inner.sync_file_system()
    }

    fn unsynced(&self) -> Option<&Unsynced> {
        Some(&self.unsynced)
    }
}
