//! Files of the operating system: appends by `pwritev`, reads through a mapping, space by `fallocate`.
//!
//! Owns descriptors and mappings. Never shortens a file.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice};
use std::num::NonZeroU64;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use rustix::fs::{Advice, FallocateFlags, SeekFrom};

use super::{Disk, DiskFile, Lease, check_range};
use crate::mapping::Mapping;

/// The most slices the kernel takes in one `pwritev`.
const IO_SLICES_MAX: usize = 1024;

/// From so many files on, one `syncfs` is cheaper than a sync for each (docs/performance.md): it may also
/// wait for what others wrote to the same file system, so a few files are not worth it.
const SYNCFS_FILES_MIN: usize = 8;

/// The machine's file systems. Clones share what they know about them.
#[derive(Clone, Debug)]
pub struct RealDisk {
    syncfs: bool,
    anchors: Arc<Mutex<Vec<Arc<Anchor>>>>,
}

/// A descriptor on a file system that was opened before anything was written to it through this disk.
/// `syncfs` reports the write errors since its descriptor was opened: one that is opened later than an
/// error would miss it.
#[derive(Debug)]
struct Anchor {
    device: u64,
    dir: File,
}

impl RealDisk {
    /// The machine's file systems.
    pub fn new() -> Self {
        Self { syncfs: syncfs_reports_errors(), anchors: Arc::default() }
    }

    fn file(&self, file: File, path: &Path, mapped_len: u64) -> io::Result<Arc<dyn DiskFile>> {
        let metadata = file.metadata()?;
        let anchor = self.anchor(metadata.dev(), path.parent().unwrap_or(path))?;
        Ok(Arc::new(RealFile::new(file, metadata.len(), mapped_len, anchor)?))
    }

    fn anchor(&self, device: u64, dir: &Path) -> io::Result<Arc<Anchor>> {
        let mut anchors = self.anchors.lock();
        if let Some(anchor) = anchors.iter().find(|anchor| anchor.device == device) {
            return Ok(Arc::clone(anchor));
        }
        let anchor = Arc::new(Anchor { device, dir: open_dir(dir)? });
        anchors.push(Arc::clone(&anchor));
        Ok(anchor)
    }
}

/// Opens a directory; the empty path is the working directory.
fn open_dir(dir: &Path) -> io::Result<File> {
    File::open(if dir.as_os_str().is_empty() { Path::new(".") } else { dir })
}

impl Default for RealDisk {
    fn default() -> Self {
        Self::new()
    }
}

impl Disk for RealDisk {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        fs::create_dir_all(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut names = Vec::new();
        for entry in entries {
            // Names that are not UTF-8 are not ours.
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn exists(&self, path: &Path) -> bool {
        path.exists()
    }

    fn create(&self, path: &Path, mapped_len: u64) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        self.file(file, path, mapped_len)
    }

    fn open(&self, path: &Path, mapped_len: u64) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        if mapped_len == 0 {
            // Read as asked for and no further: what the read-ahead brings in stays in memory, and is mapped with
            // the first page of the file that anybody reads. Only advice: an error changes nothing.
            let _ = rustix::fs::fadvise(&file, 0, None, Advice::Random);
        }
        self.file(file, path, mapped_len)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_dir_all(&self, dir: &Path) -> io::Result<()> {
        fs::remove_dir_all(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        open_dir(dir)?.sync_all()
    }

    fn sync_tree(&self, root: &Path) -> io::Result<bool> {
        if !self.syncfs {
            return Ok(false);
        }
        let dir = open_dir(root)?;
        let anchor = self.anchor(dir.metadata()?.dev(), root)?;
        rustix::fs::syncfs(&anchor.dir)?;
        Ok(true)
    }

    /// A few files one by one; many by `syncfs`, which makes the directories durable too.
    fn sync_many(&self, files: &[Arc<dyn DiskFile>], dirs: &[PathBuf]) -> io::Result<()> {
        if self.syncfs && files.len() + dirs.len() >= SYNCFS_FILES_MIN {
            return sync_file_systems(files, dirs);
        }
        files.iter().try_for_each(|file| file.sync())?;
        dirs.iter().try_for_each(|dir| self.sync_dir(dir))
    }
}

/// One `syncfs` for each file system that any of the files and directories is on.
fn sync_file_systems(files: &[Arc<dyn DiskFile>], dirs: &[PathBuf]) -> io::Result<()> {
    let mut done: Vec<Option<u64>> = Vec::new();
    for file in files {
        if !done.contains(&file.file_system()) {
            file.sync_file_system()?;
            done.push(file.file_system());
        }
    }
    for dir in dirs {
        let dir = open_dir(dir)?;
        if !done.contains(&Some(dir.metadata()?.dev())) {
            dir.sync_all()?;
        }
    }
    Ok(())
}

/// Invariant: `len` only grows, and is what the file has space for.
#[derive(Debug)]
struct RealFile {
    file: File,
    mapping: Option<Mapping>,
    len: AtomicU64,
    anchor: Arc<Anchor>,
}

impl RealFile {
    fn new(file: File, len: u64, mapped_len: u64, anchor: Arc<Anchor>) -> io::Result<Self> {
        let mapping = if mapped_len == 0 {
            None
        } else {
            let mapped_len = usize::try_from(mapped_len.max(len)).map_err(io::Error::other)?;
            Some(Mapping::new(&file, mapped_len)?)
        };
        Ok(Self { file, mapping, len: AtomicU64::new(len), anchor })
    }
}

impl DiskFile for RealFile {
    fn len(&self) -> u64 {
        self.len.load(Ordering::Acquire)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        let old = self.len();
        if len <= old {
            return Ok(());
        }
        match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), old, len - old) {
            Ok(()) => {}
            Err(rustix::io::Errno::OPNOTSUPP) => write_zeroes(&self.file, old, len)?,
            Err(error) => return Err(error.into()),
        }
        self.len.fetch_max(len, Ordering::AcqRel);
        Ok(())
    }

    fn write_at(&self, offset: u64, parts: &[&[u8]]) -> io::Result<()> {
        let mut position = offset;
        let mut all: Vec<IoSlice<'_>> =
            parts.iter().filter(|part| !part.is_empty()).map(|part| IoSlice::new(part)).collect();
        let mut slices = &mut all[..];
        while !slices.is_empty() {
            let now = slices.len().min(IO_SLICES_MAX);
            match rustix::io::pwritev(&self.file, &slices[..now], position) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    IoSlice::advance_slices(&mut slices, written);
                    position += written as u64;
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.len.fetch_max(position, Ordering::AcqRel);
        Ok(())
    }

    fn read(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        check_range(offset, len, self.len())?;
        if len == 0 {
            return Ok(Bytes::new());
        }
        let Some(mapping) = &self.mapping else {
            let mut bytes = vec![0; len];
            self.file.read_exact_at(&mut bytes, offset)?;
            return Ok(bytes.into());
        };
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        check_range(offset as u64, len, mapping.len() as u64)?;
        Ok(mapping.slice(offset, len))
    }

    fn written_from(&self, offset: u64) -> io::Result<Option<u64>> {
        // Moves the descriptor's position, which nothing else uses.
        match rustix::fs::seek(&self.file, SeekFrom::Data(offset)) {
            Ok(written) => Ok(Some(written)),
            Err(rustix::io::Errno::NXIO) => Ok(None),
            // Not every file system knows.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => {
                Ok((offset < self.len()).then_some(offset))
            }
            Err(error) => Err(error.into()),
        }
    }

    fn lease(&self) -> Option<Lease> {
        self.mapping.as_ref().map(Mapping::lease)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn start_sync(&self, offset: u64, bytes: u64) {
        // `sync_file_range` would need unsafe code; this begins to write too, and keeps the pages that are on their way.
        let bytes = NonZeroU64::new(bytes);
        let _ = rustix::fs::fadvise(&self.file, offset, bytes, Advice::DontNeed);
    }

    fn file_system(&self) -> Option<u64> {
        Some(self.anchor.device)
    }

    fn sync_file_system(&self) -> io::Result<()> {
        rustix::fs::syncfs(&self.anchor.dir).map_err(io::Error::from)
    }
}

/// Reserves space where the file system has no `fallocate`: by writing it.
fn write_zeroes(file: &File, from: u64, to: u64) -> io::Result<()> {
    let zeroes = vec![0_u8; 64 << 10];
    let mut position = from;
    while position < to {
        let now = usize::try_from(to - position).unwrap_or(usize::MAX).min(zeroes.len());
        file.write_all_at(&zeroes[..now], position)?;
        position += now as u64;
    }
    Ok(())
}

/// True from Linux 5.8 on: before, `syncfs` could swallow a failed write, and must not be relied on.
fn syncfs_reports_errors() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    kernel_version(&release).is_some_and(|version| version >= (5, 8))
}

/// The first two numbers of "6.1.0-18-amd64".
fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_file_is_read_as_it_grows_and_after_it_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk::new();
        let path = dir.path().join("f");
        let file = disk.create(&path, 1 << 20).unwrap();
        assert!(file.is_empty() && file.read(0, 1).is_err());
        file.allocate(8192).unwrap();
        assert_eq!(file.read(8000, 192).unwrap(), vec![0; 192]);
        assert!(file.read(8000, 193).is_err());
        file.write_at(5000, &[b"ab", b"", b"cd"]).unwrap();
        let held = file.read(5000, 4).unwrap();
        assert_eq!(&held[..], b"abcd");
        file.allocate(1 << 20).unwrap();
        file.allocate(10).unwrap();
        assert_eq!(file.len(), 1 << 20);
        file.write_at((1 << 20) - 1, &[b"z"]).unwrap();
        assert_eq!(&file.read((1 << 20) - 1, 1).unwrap()[..], b"z");
        file.sync().unwrap();
        drop(file);
        disk.remove_file(&path).unwrap();
        assert_eq!(&held[..], b"abcd");
    }

    #[test]
    fn space_that_was_only_reserved_is_told_from_what_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let file = RealDisk::new().create(&dir.path().join("f"), 1 << 20).unwrap();
        file.allocate(1 << 20).unwrap();
        file.write_at(10, &[b"a"]).unwrap();
        file.write_at((512 << 10) + 7, &[b"b"]).unwrap();
        file.sync().unwrap();
        assert_eq!(file.written_from(0).unwrap(), Some(0));
        // Wherever the disk says, nothing that was written is left out.
        let next = file.written_from(64 << 10).unwrap().unwrap();
        assert!((64 << 10..=(512 << 10) + 7).contains(&next), "{next}");
        assert_eq!(file.written_from(1 << 20).unwrap(), None);
        if let Some(rest) = file.written_from(768 << 10).unwrap() {
            assert_eq!(rest, 768 << 10, "a file system that cannot tell");
        }
    }

    #[test]
    fn reading_beyond_the_mapping_or_any_number_space_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk::new();
        let file = disk.create(&dir.path().join("f"), 4096).unwrap();
        file.allocate(8192).unwrap();
        assert!(file.read(4096, 1).is_err());
        assert!(file.read(u64::MAX, usize::MAX).is_err());
        assert!(file.read(4095, 1).is_ok());
        assert!(disk.create(&dir.path().join("f"), 4096).is_err());
        assert!(disk.open(&dir.path().join("none"), 4096).is_err());
    }

    #[test]
    fn more_parts_than_the_kernel_takes_are_written_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let file = RealDisk::new().create(&dir.path().join("f"), 0).unwrap();
        let bytes: Vec<u8> = (0..3000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let parts: Vec<&[u8]> = bytes.chunks(1).collect();
        file.write_at(7, &parts).unwrap();
        assert_eq!(file.read(7, 3000).unwrap(), bytes);
    }

    #[test]
    fn a_missing_directory_lists_nothing_and_others_are_sorted() {
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk::new();
        assert!(disk.list(&dir.path().join("none")).unwrap().is_empty());
        disk.create_dir_all(&dir.path().join("b/c")).unwrap();
        disk.create(&dir.path().join("a"), 0).unwrap();
        assert_eq!(disk.list(dir.path()).unwrap(), ["a", "b"]);
        disk.rename(&dir.path().join("a"), &dir.path().join("c")).unwrap();
        disk.remove_dir_all(&dir.path().join("b")).unwrap();
        disk.sync_dir(dir.path()).unwrap();
        assert!(disk.exists(&dir.path().join("c")) && !disk.exists(&dir.path().join("b")));
    }

    #[test]
    fn kernel_versions_are_told_apart() {
        assert_eq!(kernel_version("6.18.44-fc"), Some((6, 18)));
        assert_eq!(kernel_version("5.4"), Some((5, 4)));
        assert_eq!(kernel_version("unknown"), None);
    }
}
