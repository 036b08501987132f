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
//! - After a sync that failed, whoever asked for it, no half is begun again: the kernel reports a failed write once and
//!   then takes the page for clean, so that the bytes may be in the journal only. They are put back at the next start.

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod record;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::{Bound, Range};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex, MutexGuard};

use super::{Disk, DiskFile, Lease};
use crate::error::{IoContext, StorageError};
use record::{Contents, FIRST_RECORD, HalfId, Piece};

const FILE_NAMES: [&str; 2] = ["appends-a.journal", "appends-b.journal"];
/// By so much at a time.
const STEP_BYTES: u64 = 1 << 20;
/// A single file is synced where it is.
const FILES_MIN: usize = 2;
/// More than this of one file is not worth writing twice.
const COPY_BYTES_MAX: u64 = 32 << 10;
/// Buffers that are kept for the next copies: so many, each at most this large.
const BUFFERS_MAX: usize = 1024;
const BUFFER_BYTES_MAX: usize = 8 << 10;
/// So many files are put back before they are synced.
const OPEN_FILES_MAX: usize = 256;

const _: () = assert!(STEP_BYTES < JournaledDisk::HALF_BYTES_MAX);

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
    /// The names in each half: of files whose bytes are in it, and perhaps nowhere else durably. A lock of their own, which
    /// nobody holds while a disk works; taken after that of the journal, if both are.
    names: Mutex<[BTreeSet<Arc<Path>>; 2]>,
    /// Why a sync failed, the first that did.
    failed: OnceLock<String>,
    buffers: Buffers,
    /// The file system of the journal: files on another one are none of its business.
    file_system: Option<u64>,
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
    id: HalfId,
    /// Number of the next record, and where it goes.
    sequence: u64,
    position: u64,
}

impl Half {
    /// Empties it durably, under a generation of its own.
    fn begin(file: Arc<dyn DiskFile>, generation: u64) -> io::Result<Self> {
        let id = HalfId::new(generation);
        record::begin(&*file, id)?;
        Ok(Self { file, id, sequence: 0, position: FIRST_RECORD as u64 })
    }

    fn is_empty(&self) -> bool {
        self.position == FIRST_RECORD as u64
    }
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
    /// How many are making durable what they took.
    taken: u32,
}

impl Written {
    fn add(&mut self, offset: u64, parts: &[&[u8]], buffers: &Buffers) {
        let bytes: usize = parts.iter().map(|part| part.len()).sum();
        let end = offset + bytes as u64;
        let is_first = self.range.is_empty();
        if is_first {
            self.range = offset..offset;
        }
        let follows = self.range.end == offset && end - self.range.start <= COPY_BYTES_MAX;
        if is_first && follows {
            self.copy = Some(buffers.take());
        }
        match &mut self.copy {
            Some(copy) if follows => {
                copy.reserve(bytes);
                parts.iter().for_each(|part| copy.extend_from_slice(part));
            }
            copy => *copy = None,
        }
        self.range = self.range.start.min(offset)..self.range.end.max(end);
    }
}

impl Unsynced {
    /// Takes what was written, to make it durable; to be followed by `done`.
    fn take(&self) -> Taken {
        let mut written = self.written.lock();
        written.taken += 1;
        Taken {
            range: std::mem::take(&mut written.range),
            copy: written.copy.take(),
            is_all: written.taken == 1,
        }
    }

    /// What was taken is durable, and its buffer free, or is given back.
    fn done(&self, taken: Taken, is_durable: bool) -> Option<Vec<u8>> {
        let mut written = self.written.lock();
        written.taken -= 1;
        if is_durable || taken.range.is_empty() {
            return taken.copy;
        }
        if written.range.is_empty() {
            (written.range, written.copy) = (taken.range, taken.copy);
        } else {
            let start = taken.range.start.min(written.range.start);
            let end = taken.range.end.max(written.range.end);
            (written.range, written.copy) = (start..end, None);
        }
        None
    }
}

/// Buffers of copies that are used again: memory that was written to before is cheaper than what the kernel has to clear
/// first.
#[derive(Debug, Default)]
struct Buffers(Mutex<Vec<Vec<u8>>>);

impl Buffers {
    fn take(&self) -> Vec<u8> {
        self.0.lock().pop().unwrap_or_default()
    }

    fn give_back(&self, mut spent: Vec<Vec<u8>>) {
        spent.retain_mut(|buffer| {
            buffer.clear();
            buffer.capacity() <= BUFFER_BYTES_MAX
        });
        let mut buffers = self.0.lock();
        spent.truncate(BUFFERS_MAX.saturating_sub(buffers.len()));
        buffers.append(&mut spent);
    }
}

/// What was taken of a file to be made durable.
#[derive(Debug)]
struct Taken {
    range: Range<u64>,
    copy: Option<Vec<u8>>,
    /// Nobody else is at it: with this, all that was written is durable.
    is_all: bool,
}

impl JournaledDisk {
    /// Each half of the journal grows up to this.
    pub const HALF_BYTES_MAX: u64 = 32 << 20;

    /// Opens the journal of the files below `root`, which exists, or creates it there. First puts back what the journal holds and
    /// the files lost; that is durable when this returns. `Corrupt` if a record is damaged that had been durable.
    pub fn open(inner: Arc<dyn Disk>, root: &Path) -> Result<Self, StorageError> {
        Self::open_with(inner, root, Self::HALF_BYTES_MAX)
    }

    pub(crate) fn open_with(
        inner: Arc<dyn Disk>,
        root: &Path,
        half_bytes: u64,
    ) -> Result<Self, StorageError> {
        let generation = put_back(&*inner, root)?;
        let begin = |name: &str, generation: u64| {
            let path = root.join(name);
            let file = if inner.exists(&path) {
                inner.open(&path, 0).io_context("open", &path)?
            } else {
                inner.create(&path, 0).io_context("create", &path)?
            };
            Half::begin(file, generation).io_context("write", &path)
        };
        let [a, b] = FILE_NAMES;
        let halves = [begin(a, generation + 1)?, begin(b, generation + 2)?];
        inner.sync_dir(root).io_context("sync directory", root)?;
        let shared = Shared {
            file_system: halves[0].file.file_system(),
            journal: Mutex::new(Journal { halves, live: 0, settling: false }),
            changed: Condvar::new(),
            names: Mutex::default(),
            buffers: Buffers::default(),
            failed: OnceLock::new(),
        };
        Ok(Self { inner, root: root.to_path_buf(), half_bytes, shared: Arc::new(shared) })
    }

    /// Waits until a half is full, but no longer than `patience`, and settles it, so that nobody who appends has to wait for that.
    /// After an error nothing is known of what was appended, also if it was another's sync that failed: stop acknowledging.
    pub fn settle_full_half(&self, patience: Duration) -> io::Result<()> {
        let mut journal = self.shared.journal.lock();
        if !journal.waits_for_settling() {
            self.shared.check()?;
            self.shared.changed.wait_for(&mut journal, patience);
        }
        self.shared.check()?;
        if journal.waits_for_settling() { self.settle_other(journal).map(drop) } else { Ok(()) }
    }

    /// Settles all there is, so that nothing has to be put back at the next start.
    pub fn settle_all(&self) -> io::Result<()> {
        let mut journal = self.settle_other(self.shared.journal.lock())?;
        if journal.half().is_empty() {
            return Ok(());
        }
        journal.live = 1 - journal.live;
        self.settle_other(journal).map(drop)
    }

    /// Settles the half that is not live; waits if somebody does already.
    fn settle_other<'a>(
        &'a self,
        mut journal: MutexGuard<'a, Journal>,
    ) -> io::Result<MutexGuard<'a, Journal>> {
        while journal.settling {
            self.shared.changed.wait(&mut journal);
        }
        self.shared.check()?;
        let other = 1 - journal.live;
        if journal.halves[other].is_empty() {
            return Ok(journal);
        }
        journal.settling = true;
        // Above both: when both are read at a start, the one with the later bytes comes last.
        let generation = journal.half().id.generation + 1;
        let file = Arc::clone(&journal.halves[other].file);
        drop(journal);
        let settled = self.sync_in_place(other).and_then(|()| {
            self.shared.check()?;
            self.shared.watch(Half::begin(file, generation))
        });
        let mut journal = self.shared.journal.lock();
        journal.settling = false;
        self.shared.changed.notify_all();
        journal.halves[other] = settled?;
        self.shared.names.lock()[other].clear();
        Ok(journal)
    }

    fn sync_in_place(&self, half: usize) -> io::Result<()> {
        if self.sync_tree(&self.root)? {
            return Ok(());
        }
        let names = self.shared.names.lock()[half].clone();
        for path in names.iter().map(|path| self.root.join(path)) {
            // What was removed since needs no syncing.
            if self.inner.exists(&path) {
                self.shared.watch(self.inner.open(&path, 0)?.sync())?;
            }
        }
        Ok(())
    }

    /// Before the name `path` goes to another file or directory: nothing in the journal may be put back under it.
    fn free_name(&self, path: &Path) -> io::Result<()> {
        if self.is_name_kept(path) { self.settle_all() } else { Ok(()) }
    }

    /// Makes what was written to `files` durable by way of the journal; false, and nothing done, if that is not the better way.
    fn sync_by_journal(&self, files: &[Arc<dyn DiskFile>]) -> io::Result<bool> {
        if files.len() < FILES_MIN {
            return Ok(false);
        }
        let Some(unsynced) = files.iter().map(|f| f.unsynced()).collect::<Option<Vec<_>>>() else {
            return Ok(false);
        };
        let taken: Vec<Taken> = unsynced.iter().map(|unsynced| unsynced.take()).collect();
        let bytes: u64 = taken.iter().map(|taken| taken.range.end - taken.range.start).sum();
        // What somebody else has taken is not durable before that one is done.
        let is_small = taken
            .iter()
            .all(|taken| taken.is_all && (taken.copy.is_some() || taken.range.is_empty()));
        let done = if is_small && bytes <= self.half_bytes / 4 {
            let pieces = unsynced.iter().zip(&taken).filter_map(|(unsynced, taken)| {
                let (path, offset) = (&*unsynced.path, taken.range.start);
                Some(Piece { path, offset, bytes: taken.copy.as_deref()? })
            });
            self.append(&unsynced, &pieces.collect::<Vec<_>>())
        } else {
            Ok(false)
        };
        let is_durable = matches!(done, Ok(true));
        let taken = unsynced.iter().zip(taken);
        let spent = taken.filter_map(|(unsynced, taken)| unsynced.done(taken, is_durable));
        self.shared.buffers.give_back(spent.collect());
        done
    }

    /// Appends a record and makes it durable; false if there is no room for it on the disk.
    fn append(&self, files: &[&Unsynced], pieces: &[Piece<'_>]) -> io::Result<bool> {
        let bytes = record::bytes_of(pieces);
        let mut journal = self.shared.journal.lock();
        self.shared.check()?;
        while journal.half().position + bytes > self.half_bytes {
            if journal.half().is_empty() {
                return Ok(false);
            }
            if journal.settling || journal.waits_for_settling() {
                journal = self.settle_other(journal)?;
            } else {
                journal.live = 1 - journal.live;
                self.shared.changed.notify_all();
            }
        }
        let live = journal.live;
        let half = journal.half();
        let end = half.position + bytes;
        let grown = end.next_multiple_of(STEP_BYTES).min(self.half_bytes).max(end);
        if half.file.len() < end && half.file.allocate(grown).is_err() {
            return Ok(false);
        }
        self.name(live, half.id.generation, files);
        if record::write(&*half.file, half.position, half.id.salt, half.sequence, pieces).is_err() {
            // Whatever stands there now, the next record is written over it.
            return Ok(false);
        }
        self.shared.watch(half.file.sync())?;
        half.position = end;
        half.sequence += 1;
        Ok(true)
    }

    /// Notes the names of `files`, whose bytes go into a half.
    fn name(&self, half: usize, generation: u64, files: &[&Unsynced]) {
        let is_new =
            |file: &&&Unsynced| file.named_in.swap(generation, Ordering::Relaxed) != generation;
        let mut new = files.iter().filter(is_new).peekable();
        if new.peek().is_some() {
            let mut names = self.shared.names.lock();
            names[half].extend(new.map(|file| Arc::clone(&file.path)));
        }
    }

    fn wrap(&self, file: Arc<dyn DiskFile>, path: &Path, mapped_len: u64) -> Arc<dyn DiskFile> {
        // Files that are not mapped are replaced as a whole, or have a journal's part themselves.
        let is_journaled = mapped_len > 0 && file.file_system() == self.shared.file_system;
        let path = path.strip_prefix(&self.root).ok().filter(|_| is_journaled);
        let unsynced = path.map(|path| Unsynced {
            path: path.into(),
            written: Mutex::default(),
            named_in: AtomicU64::new(0),
        });
        Arc::new(JournaledFile { inner: file, unsynced, shared: Arc::clone(&self.shared) })
    }
}

impl Shared {
    /// The outcome of a sync, remembered if it is an error.
    fn watch<T>(&self, outcome: io::Result<T>) -> io::Result<T> {
        outcome.inspect_err(|error| {
            // What was removed meanwhile needs no syncing.
            if error.kind() != io::ErrorKind::NotFound {
                self.failed.get_or_init(|| error.to_string());
                self.changed.notify_all();
            }
        })
    }

    /// An error once a sync has failed.
    fn check(&self) -> io::Result<()> {
        match self.failed.get() {
            // Perhaps the only word of it that is heard: the process may end before the one whose sync it was speaks.
            Some(why) => Err(io::Error::other(format!(
                "another sync has failed: {why}; what was written since may be lost"
            ))),
            None => Ok(()),
        }
    }
}

impl Journal {
    fn half(&mut self) -> &mut Half {
        &mut self.halves[self.live]
    }

    fn waits_for_settling(&self) -> bool {
        !self.settling && !self.halves[1 - self.live].is_empty()
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
    let mut by_file: BTreeMap<&Path, Vec<Piece<'_>>> = BTreeMap::new();
    for piece in halves.iter().flat_map(Contents::pieces) {
        by_file.entry(piece.path).or_default().push(piece);
    }
    let by_file: Vec<_> = by_file.into_iter().collect();
    for some in by_file.chunks(OPEN_FILES_MAX) {
        let mut files = Vec::new();
        for (path, pieces) in some {
            files.extend(put_back_file(disk, root, path, pieces)?);
        }
        disk.sync_many(&files, &[]).io_context("sync files below", root)?;
    }
    Ok(halves.last().map_or(0, |half| half.generation))
}

/// Writes into one file, if it is there.
fn put_back_file(
    disk: &dyn Disk,
    root: &Path,
    path: &Path,
    pieces: &[Piece<'_>],
) -> Result<Option<Arc<dyn DiskFile>>, StorageError> {
    let is_plain = path.components().all(|part| matches!(part, Component::Normal(_)));
    let path = root.join(path);
    // A file that is gone was removed after its bytes had been synced.
    if !is_plain || !disk.exists(&path) {
        return Ok(None);
    }
    let file = disk.open(&path, 0).io_context("open", &path)?;
    for piece in pieces {
        if piece.offset > file.len() {
            // What stands before these bytes had been durable too, and is gone: the log's own check says so.
            continue;
        }
        let end = piece.offset + piece.bytes.len() as u64;
        file.allocate(end).io_context("allocate space in", &path)?;
        file.write_at(piece.offset, &[piece.bytes]).io_context("write", &path)?;
    }
    Ok(Some(file))
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
        // Only the names of mapped files are ever in the journal.
        if mapped_len > 0 {
            self.free_name(path)?;
        }
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
        self.shared.watch(self.inner.sync_dir(dir))
    }

    fn sync_tree(&self, root: &Path) -> io::Result<bool> {
        self.shared.watch(self.inner.sync_tree(root))
    }

    fn sync_many(&self, files: &[Arc<dyn DiskFile>], dirs: &[PathBuf]) -> io::Result<()> {
        if dirs.is_empty() && self.sync_by_journal(files)? {
            return Ok(());
        }
        self.shared.check()?;
        let unsynced: Vec<&Unsynced> = files.iter().filter_map(|file| file.unsynced()).collect();
        let taken: Vec<Taken> = unsynced.iter().map(|unsynced| unsynced.take()).collect();
        let outcome = self.shared.watch(self.inner.sync_many(files, dirs));
        let taken = unsynced.iter().zip(taken);
        let spent = taken.filter_map(|(unsynced, taken)| unsynced.done(taken, outcome.is_ok()));
        self.shared.buffers.give_back(spent.collect());
        outcome
    }

    fn is_name_kept(&self, path: &Path) -> bool {
        let Ok(name) = path.strip_prefix(&self.root) else { return false };
        let names = self.shared.names.lock();
        // What is below a directory comes right behind it.
        let from = (Bound::Included(name), Bound::Unbounded);
        let first = |names: &BTreeSet<Arc<Path>>| {
            names.range::<Path, _>(from).next().is_some_and(|found| found.starts_with(name))
        };
        names.iter().any(first)
    }
}

/// A file whose unsynced bytes are known. It keeps the name that it was opened by: after a rename it is opened again.
#[derive(Debug)]
struct JournaledFile {
    inner: Arc<dyn DiskFile>,
    /// `None` if it is always synced in its place.
    unsynced: Option<Unsynced>,
    shared: Arc<Shared>,
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
        if let Some(unsynced) = &self.unsynced {
            unsynced.written.lock().add(offset, parts, &self.shared.buffers);
        }
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
        let taken = self.unsynced.as_ref().map(|unsynced| (unsynced, unsynced.take()));
        let outcome = self.shared.watch(self.inner.sync());
        if let Some((unsynced, taken)) = taken {
            self.shared
                .buffers
                .give_back(unsynced.done(taken, outcome.is_ok()).into_iter().collect());
        }
        outcome
    }

    fn file_system(&self) -> Option<u64> {
        self.inner.file_system()
    }

    fn sync_file_system(&self) -> io::Result<()> {
        self.shared.watch(self.inner.sync_file_system())
    }

    fn unsynced(&self) -> Option<&Unsynced> {
        self.unsynced.as_ref()
    }
}
