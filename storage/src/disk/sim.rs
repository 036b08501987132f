//! A file system in memory that loses on a crash what a real one may lose, all drawn from one seed.
//!
//! Every file has a volatile image (what reads see) and a durable one (what survives). A crash keeps any
//! subset of the unsynced 4 KiB pages, some of them torn at 512 bytes, and any subset of the unsynced
//! changes to names. Knows nothing of what is stored; touches no real file and no clock.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::{Disk, DiskFile, Lease, check_range};

const PAGE: usize = 4096;
const SECTOR: usize = 512;

/// An operation that `SimDisk::fail_next` can make fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SimOp {
    /// `Disk::create`.
    Create,
    /// `Disk::open`.
    Open,
    /// `DiskFile::allocate`.
    Allocate,
    /// `DiskFile::write_at`; some or all of the bytes may be written all the same.
    Write,
    /// `DiskFile::read`.
    Read,
    /// `DiskFile::sync` and `Disk::sync_tree`. As with a kernel's page cache, some of what was not written may count as clean
    /// afterwards: a later sync succeeds and leaves it out.
    Sync,
    /// `Disk::sync_dir`.
    SyncDir,
    /// `Disk::rename`.
    Rename,
    /// `Disk::remove_file` and `Disk::remove_dir_all`.
    Remove,
}

/// The simulated disk. Clones are the same disk. Files opened before a crash fail afterwards.
#[derive(Clone, Debug)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
}

impl SimDisk {
    /// An empty disk whose every choice follows from `seed`.
    pub fn new(seed: u64) -> Self {
        Self {
            state: Arc::new(Mutex::new(State {
                random: seed,
                boot: 0,
                next_inode: 0,
                volatile: BTreeMap::new(),
                durable: BTreeMap::new(),
                unsynced_names: BTreeSet::new(),
                files: BTreeMap::new(),
                failures: Vec::new(),
                capacity: None,
            })),
        }
    }

    /// Power loss: forgets what was not synced, except for a random part of it. Open files go stale. Returns how many
    /// pages did not survive as they were last written.
    pub fn crash(&self) -> u64 {
        self.state.lock().crash()
    }

    /// Makes the next operation of this kind fail with `kind`. Calls add up.
    pub fn fail_next(&self, op: SimOp, kind: io::ErrorKind) {
        self.fail_after(op, 0, kind);
    }

    /// Lets `skip` operations of this kind pass and fails the one after.
    pub fn fail_after(&self, op: SimOp, skip: u32, kind: io::ErrorKind) {
        self.state.lock().failures.push((op, skip, kind));
    }

    /// Forgets the failures that did not happen yet.
    pub fn clear_failures(&self) {
        self.state.lock().failures.clear();
    }

    /// Limits the sum of all files' lengths: growing beyond it is `StorageFull`.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state.lock().capacity = bytes;
    }

    /// The sum of all files' lengths.
    pub fn used_bytes(&self) -> u64 {
        self.state.lock().used_bytes()
    }

    /// Rot: flips the bits of `mask` in one byte of a file, in the volatile and the durable image.
    pub fn flip(&self, path: &Path, offset: u64, mask: u8) -> io::Result<()> {
        let mut state = self.state.lock();
        let inode = state.file_at(path)?;
        let file = state.files.get_mut(&inode).ok_or(io::ErrorKind::NotFound)?;
        check_range(offset, 1, file.volatile.len)?;
        for image in [&mut file.volatile, &mut file.durable] {
            let mut byte = [0];
            image.read(offset, &mut byte);
            image.write(offset, &[byte[0] ^ mask]);
        }
        Ok(())
    }
}

/// What every path means. Text, because comparing paths component by component costs most of a simulation's time.
type Names = BTreeMap<String, Node>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Node {
    Dir,
    File(u64),
}

#[derive(Debug)]
struct State {
    random: u64,
    /// Counts crashes; a file handle of an earlier boot is stale.
    boot: u64,
    next_inode: u64,
    volatile: Names,
    durable: Names,
    /// Names that differ (or may) between the two.
    unsynced_names: BTreeSet<String>,
    files: BTreeMap<u64, FileState>,
    failures: Vec<(SimOp, u32, io::ErrorKind)>,
    capacity: Option<u64>,
}

#[derive(Debug, Default)]
struct FileState {
    volatile: Image,
    durable: Image,
    /// Pages that differ (or may) between the images.
    dirty: BTreeSet<u64>,
}

/// A file's content. Pages that were never written are not kept; they read as zeroes.
#[derive(Clone, Debug, Default)]
struct Image {
    len: u64,
    pages: BTreeMap<u64, Box<[u8; PAGE]>>,
}

impl Image {
    fn read(&self, offset: u64, into: &mut [u8]) {
        for_each_page(offset, into.len(), |page, at, range| {
            if let Some(bytes) = self.pages.get(&page) {
                into[range.clone()].copy_from_slice(&bytes[at..at + range.len()]);
            } else {
                into[range].fill(0);
            }
        });
    }

    fn write(&mut self, offset: u64, from: &[u8]) {
        for_each_page(offset, from.len(), |page, at, range| {
            let bytes = self.pages.entry(page).or_insert_with(|| Box::new([0; PAGE]));
            bytes[at..at + range.len()].copy_from_slice(&from[range]);
        });
        self.len = self.len.max(offset + from.len() as u64);
    }
}

/// Calls `each(page number, offset in the page, range of the buffer)` for every page that is touched.
fn for_each_page(
    offset: u64,
    len: usize,
    mut each: impl FnMut(u64, usize, std::ops::Range<usize>),
) {
    let mut done = 0;
    while done < len {
        let position = offset + done as u64;
        #[expect(clippy::cast_possible_truncation, reason = "a remainder of PAGE is below PAGE")]
        let at = (position % PAGE as u64) as usize;
        let now = (PAGE - at).min(len - done);
        each(position / PAGE as u64, at, done..done + now);
        done += now;
    }
}

impl State {
    /// SplitMix64.
    fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        crate::log::mix(self.random)
    }

    fn coin(&mut self) -> bool {
        self.next_random() & 1 == 0
    }

    fn check_failure(&mut self, op: SimOp) -> io::Result<()> {
        let Some(at) = self.failures.iter().position(|failure| failure.0 == op) else {
            return Ok(());
        };
        if self.failures[at].1 > 0 {
            self.failures[at].1 -= 1;
            return Ok(());
        }
        let (_, _, kind) = self.failures.remove(at);
        Err(io::Error::new(kind, format!("simulated failure of {op:?}")))
    }

    /// A sync of these files that fails: each stays dirty, or counts as clean from now on without being durable.
    fn check_sync_failure(&mut self, inodes: &[u64]) -> io::Result<()> {
        let outcome = self.check_failure(SimOp::Sync);
        if outcome.is_err() {
            for inode in inodes {
                let stays = self.coin();
                if let Some(file) = self.files.get_mut(inode).filter(|_| !stays) {
                    file.dirty.clear();
                }
            }
        }
        outcome
    }

    fn used_bytes(&self) -> u64 {
        self.volatile
            .values()
            .filter_map(|node| match node {
                Node::File(inode) => self.files.get(inode).map(|file| file.volatile.len),
                Node::Dir => None,
            })
            .sum()
    }

    fn check_capacity(&self, growth: u64) -> io::Result<()> {
        match self.capacity {
            Some(capacity) if growth > 0 && self.used_bytes() + growth > capacity => {
                Err(io::ErrorKind::StorageFull.into())
            }
            _ => Ok(()),
        }
    }

    fn dir_exists(&self, dir: &Path) -> bool {
        is_root(dir) || self.volatile.get(text(dir)) == Some(&Node::Dir)
    }

    /// Gives a path another meaning, or none; not durable yet.
    fn name(&mut self, path: &Path, node: Option<Node>) {
        let path = text(path);
        match node {
            Some(node) => self.volatile.insert(path.to_owned(), node),
            None => self.volatile.remove(path),
        };
        self.unsynced_names.insert(path.to_owned());
    }

    fn file_at(&self, path: &Path) -> io::Result<u64> {
        match self.volatile.get(text(path)) {
            Some(Node::File(inode)) => Ok(*inode),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn handle(&mut self, boot: u64, inode: u64) -> io::Result<&mut FileState> {
        if boot != self.boot {
            return Err(io::Error::other("the file was opened before a crash"));
        }
        self.files.get_mut(&inode).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn crash(&mut self) -> u64 {
        self.boot += 1;
        self.failures.clear();
        let inodes: Vec<u64> = self.files.keys().copied().collect();
        let lost = inodes.into_iter().map(|inode| self.crash_file(inode)).sum();
        self.crash_names();
        lost
    }

    /// Returns how many of its pages are not as they were last written.
    fn crash_file(&mut self, inode: u64) -> u64 {
        let Some(mut file) = self.files.remove(&inode) else { return 0 };
        let mut lost = 0;
        let grew = file.volatile.len > file.durable.len;
        let len = if grew && self.coin() { file.volatile.len } else { file.durable.len };
        for page in std::mem::take(&mut file.dirty) {
            let Some(new) = file.volatile.pages.get(&page) else { continue };
            let old = file.durable.pages.entry(page).or_insert_with(|| Box::new([0; PAGE]));
            match self.next_random() % 3 {
                0 => {}
                1 => *old = new.clone(),
                _ => {
                    let sectors = self.next_random();
                    for sector in 0..PAGE / SECTOR {
                        if sectors >> sector & 1 == 1 {
                            let range = sector * SECTOR..(sector + 1) * SECTOR;
                            old[range.clone()].copy_from_slice(&new[range]);
                        }
                    }
                }
            }
            lost += u64::from(*old != *new);
        }
        // What a lost growth leaves beyond the end is gone, and reads as zeroes if the file grows again.
        file.durable.pages.retain(|page, _| page * PAGE as u64 <= len);
        if let Some(bytes) = file.durable.pages.get_mut(&(len / PAGE as u64)) {
            #[expect(clippy::cast_possible_truncation, reason = "a remainder of PAGE")]
            bytes[(len % PAGE as u64) as usize..].fill(0);
        }
        file.durable.len = len;
        file.volatile = file.durable.clone();
        self.files.insert(inode, file);
        lost
    }

    /// Every name that changed since its directory was synced takes the old or the new meaning.
    fn crash_names(&mut self) {
        let unsynced = std::mem::take(&mut self.unsynced_names);
        let mut kept = std::mem::take(&mut self.durable);
        for path in unsynced {
            let (new, old) = (self.volatile.get(&path).copied(), kept.get(&path).copied());
            if new != old && self.coin() {
                match new {
                    Some(node) => kept.insert(path, node),
                    None => kept.remove(&path),
                };
            }
        }
        let mut names = Names::new();
        // A directory's name is the beginning of its children's, so it comes before them.
        for (path, node) in kept {
            let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
            if parent.is_empty() || names.get(parent) == Some(&Node::Dir) {
                names.insert(path, node);
            }
        }
        let inodes: BTreeSet<u64> = names
            .values()
            .filter_map(|node| match node {
                Node::File(inode) => Some(*inode),
                Node::Dir => None,
            })
            .collect();
        self.files.retain(|inode, _| inodes.contains(inode));
        self.volatile = names.clone();
        self.durable = names;
    }
}

/// A path as the key of [`Names`].
fn text(path: &Path) -> &str {
    path.to_str().unwrap_or_default()
}

/// What the paths below `dir` begin with.
fn prefix(dir: &Path) -> String {
    let mut prefix = text(dir).to_owned();
    if !prefix.is_empty() && !prefix.ends_with('/') {
        prefix.push('/');
    }
    prefix
}

/// Whether a path that begins with `prefix` lies directly there.
fn is_child(path: &str, prefix: &str) -> bool {
    path.len() > prefix.len() && !path[prefix.len()..].contains('/')
}

/// The roots of absolute and of relative paths always exist.
fn is_root(dir: &Path) -> bool {
    dir.as_os_str().is_empty() || dir == Path::new(".") || dir.parent().is_none()
}

impl Disk for SimDisk {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        for ancestor in dir.ancestors().filter(|ancestor| !is_root(ancestor)) {
            match state.volatile.get(text(ancestor)) {
                Some(Node::File(_)) => return Err(io::ErrorKind::AlreadyExists.into()),
                Some(Node::Dir) => {}
                None => {
                    state.name(ancestor, Some(Node::Dir));
                }
            }
        }
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = self.state.lock();
        let prefix = prefix(dir);
        let from = state.volatile.range(prefix.clone()..).map(|(path, _)| path);
        let below = from.take_while(|path| path.starts_with(&prefix));
        let here = below.filter(|path| is_child(path, &prefix));
        Ok(here.map(|path| path[prefix.len()..].to_owned()).collect())
    }

    fn exists(&self, path: &Path) -> bool {
        let state = self.state.lock();
        is_root(path) || state.volatile.contains_key(text(path))
    }

    fn create(&self, path: &Path, _mapped_len: u64) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.state.lock();
        state.check_failure(SimOp::Create)?;
        if state.volatile.contains_key(text(path)) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        if !path.parent().is_some_and(|parent| state.dir_exists(parent)) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let inode = state.next_inode;
        state.next_inode += 1;
        state.files.insert(inode, FileState::default());
        state.name(path, Some(Node::File(inode)));
        Ok(self.handle(state.boot, inode))
    }

    fn open(&self, path: &Path, _mapped_len: u64) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.state.lock();
        state.check_failure(SimOp::Open)?;
        let inode = state.file_at(path)?;
        Ok(self.handle(state.boot, inode))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.check_failure(SimOp::Rename)?;
        let inode = state.file_at(from)?;
        if state.volatile.get(text(to)) == Some(&Node::Dir) {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        state.name(from, None);
        state.name(to, Some(Node::File(inode)));
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.check_failure(SimOp::Remove)?;
        state.file_at(path)?;
        state.name(path, None);
        Ok(())
    }

    fn remove_dir_all(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.check_failure(SimOp::Remove)?;
        if !state.dir_exists(dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let gone: Vec<String> = state
            .volatile
            .keys()
            .filter(|path| Path::new(path).starts_with(dir))
            .cloned()
            .collect();
        for path in gone {
            state.name(Path::new(&path), None);
        }
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.check_failure(SimOp::SyncDir)?;
        if !state.dir_exists(dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let prefix = prefix(dir);
        let from = state.unsynced_names.range(prefix.clone()..);
        let now: Vec<String> = from
            .take_while(|path| path.starts_with(&prefix))
            .filter(|path| is_child(path, &prefix))
            .cloned()
            .collect();
        for path in now {
            state.unsynced_names.remove(&path);
            match state.volatile.get(&path).copied() {
                Some(node) => state.durable.insert(path, node),
                None => state.durable.remove(&path),
            };
        }
        Ok(())
    }

    fn sync_tree(&self, _root: &Path) -> io::Result<bool> {
        let mut state = self.state.lock();
        let inodes: Vec<u64> = state.files.keys().copied().collect();
        state.check_sync_failure(&inodes)?;
        // As `syncfs` does, everything: names and files.
        inodes.into_iter().for_each(|inode| state.sync_inode(inode));
        state.durable = state.volatile.clone();
        state.unsynced_names.clear();
        Ok(true)
    }
}

impl State {
    fn sync_inode(&mut self, inode: u64) {
        let Some(file) = self.files.get_mut(&inode) else { return };
        for page in std::mem::take(&mut file.dirty) {
            if let Some(bytes) = file.volatile.pages.get(&page) {
                file.durable.pages.insert(page, bytes.clone());
            }
        }
        file.durable.len = file.volatile.len;
    }
}

impl SimDisk {
    fn handle(&self, boot: u64, inode: u64) -> Arc<dyn DiskFile> {
        Arc::new(SimFile { disk: Arc::clone(&self.state), boot, inode, held: Arc::new(()) })
    }
}

#[derive(Debug)]
struct SimFile {
    disk: Arc<Mutex<State>>,
    boot: u64,
    inode: u64,
    /// Shared with every slice, as the mapping of a real file is.
    held: Arc<()>,
}

/// What was read, and a share in the file it is from.
struct SimSlice {
    bytes: Vec<u8>,
    _held: Arc<()>,
}

impl AsRef<[u8]> for SimSlice {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DiskFile for SimFile {
    fn len(&self) -> u64 {
        let mut state = self.disk.lock();
        state.handle(self.boot, self.inode).map_or(0, |file| file.volatile.len)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        let mut state = self.disk.lock();
        state.check_failure(SimOp::Allocate)?;
        let old = state.handle(self.boot, self.inode)?.volatile.len;
        state.check_capacity(len.saturating_sub(old))?;
        state.handle(self.boot, self.inode)?.volatile.len = old.max(len);
        Ok(())
    }

    fn write_at(&self, offset: u64, parts: &[&[u8]]) -> io::Result<()> {
        let mut state = self.disk.lock();
        let failure = state.check_failure(SimOp::Write);
        let mut bytes = parts.concat();
        let old = state.handle(self.boot, self.inode)?.volatile.len;
        state.check_capacity((offset + bytes.len() as u64).saturating_sub(old))?;
        if failure.is_err() {
            // The page cache takes what it takes in whole sectors, or everything before the error.
            let end = (offset + state.next_random() % (bytes.len() as u64 + 1)) / SECTOR as u64;
            let some = (end * SECTOR as u64).saturating_sub(offset);
            let kept = if state.coin() { some } else { bytes.len() as u64 };
            bytes.truncate(usize::try_from(kept).unwrap_or(0));
        }
        let file = state.handle(self.boot, self.inode)?;
        file.volatile.write(offset, &bytes);
        for_each_page(offset, bytes.len(), |page, _, _| {
            file.dirty.insert(page);
        });
        failure
    }

    fn read(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        let mut state = self.disk.lock();
        state.check_failure(SimOp::Read)?;
        let file = state.handle(self.boot, self.inode)?;
        check_range(offset, len, file.volatile.len)?;
        let mut bytes = vec![0; len];
        file.volatile.read(offset, &mut bytes);
        Ok(Bytes::from_owner(SimSlice { bytes, _held: Arc::clone(&self.held) }))
    }

    fn lease(&self) -> Option<Lease> {
        Some(Lease::new(&self.held))
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.lock();
        state.handle(self.boot, self.inode)?;
        state.check_sync_failure(&[self.inode])?;
        state.sync_inode(self.inode);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk_with_file(seed: u64) -> (SimDisk, Arc<dyn DiskFile>) {
        let disk = SimDisk::new(seed);
        disk.create_dir_all(Path::new("d")).unwrap();
        disk.sync_dir(Path::new("")).unwrap();
        let file = disk.create(Path::new("d/f"), 0).unwrap();
        (disk, file)
    }

    #[test]
    fn synced_bytes_and_names_survive_every_crash() {
        for seed in 0..50 {
            let (disk, file) = disk_with_file(seed);
            file.write_at(5000, &[b"kept"]).unwrap();
            file.sync().unwrap();
            disk.sync_dir(Path::new("d")).unwrap();
            file.write_at(9000, &[b"maybe"]).unwrap();
            disk.crash();
            assert!(file.read(0, 1).is_err(), "handles of before the crash are stale");
            let file = disk.open(Path::new("d/f"), 0).unwrap();
            assert_eq!(&file.read(5000, 4).unwrap()[..], b"kept");
        }
    }

    #[test]
    fn unsynced_bytes_and_names_are_lost_in_some_crashes_and_kept_in_others() {
        let (mut lost_name, mut kept_name, mut lost_byte, mut kept_byte) = (0, 0, 0, 0);
        for seed in 0..50 {
            let (disk, file) = disk_with_file(seed);
            file.allocate(4096).unwrap();
            file.sync().unwrap();
            file.write_at(0, &[b"x"]).unwrap();
            disk.crash();
            match disk.open(Path::new("d/f"), 0) {
                Err(_) => lost_name += 1,
                Ok(file) if file.read(0, 1).unwrap()[0] == b'x' => (kept_name, kept_byte) = (1, 1),
                Ok(_) => lost_byte += 1,
            }
        }
        assert!(lost_name > 0 && kept_name > 0 && lost_byte > 0 && kept_byte > 0);
    }

    #[test]
    fn a_page_may_be_torn_between_sectors() {
        let torn = (0..50).any(|seed| {
            let (disk, file) = disk_with_file(seed);
            disk.sync_dir(Path::new("d")).unwrap();
            file.allocate(4096).unwrap();
            file.sync().unwrap();
            file.write_at(0, &[&[7; PAGE]]).unwrap();
            disk.crash();
            let bytes = disk.open(Path::new("d/f"), 0).unwrap().read(0, PAGE).unwrap();
            bytes.contains(&0) && bytes.contains(&7)
        });
        assert!(torn);
    }

    #[test]
    fn failures_and_a_full_disk_happen_when_asked_for_and_pass() {
        let (disk, file) = disk_with_file(1);
        disk.fail_after(SimOp::Sync, 1, io::ErrorKind::Other);
        file.sync().unwrap();
        file.sync().unwrap_err();
        file.sync().unwrap();
        disk.set_capacity(Some(100));
        let full = file.allocate(101).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        disk.set_capacity(None);
        file.allocate(101).unwrap();
        assert_eq!(disk.used_bytes(), 101);
    }

    #[test]
    fn the_same_seed_crashes_the_same_way() {
        let run = || {
            let (disk, file) = disk_with_file(42);
            disk.sync_dir(Path::new("d")).unwrap();
            file.allocate(64 << 10).unwrap();
            file.sync().unwrap();
            file.write_at(0, &[&[9; 64 << 10]]).unwrap();
            disk.crash();
            disk.open(Path::new("d/f"), 0).unwrap().read(0, 64 << 10).unwrap()
        };
        assert_eq!(run(), run());
    }
}
