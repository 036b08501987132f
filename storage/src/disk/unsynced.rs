//! A disk that leaves every sync to whoever finishes the batch.
//!
//! For making many directories at once: written here under names that count for nothing, made durable together by
//! `Settled::below`, and only then renamed. Never: for files that are in use; nothing written through it is durable.

use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::{Disk, DiskFile};

/// The disk beneath it, without its syncs.
#[derive(Clone, Debug)]
pub struct UnsyncedDisk {
    disk: Arc<dyn Disk>,
}

impl UnsyncedDisk {
    /// Writes to `disk`.
    pub fn new(disk: Arc<dyn Disk>) -> Self {
        Self { disk }
    }
}

#[derive(Debug)]
struct UnsyncedFile(Arc<dyn DiskFile>);

impl Disk for UnsyncedDisk {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.disk.create_dir_all(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.disk.list(dir)
    }

    fn exists(&self, path: &Path) -> bool {
        self.disk.exists(path)
    }

    fn create(&self, path: &Path, mapped_len: u64) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(UnsyncedFile(self.disk.create(path, mapped_len)?)))
    }

    fn open(&self, path: &Path, mapped_len: u64) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(UnsyncedFile(self.disk.open(path, mapped_len)?)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.disk.remove_file(path)
    }

    fn remove_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.disk.remove_dir_all(dir)
    }

    fn sync_dir(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }
}

impl DiskFile for UnsyncedFile {
    fn len(&self) -> u64 {
        self.0.len()
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.0.allocate(len)
    }

    fn write_at(&self, offset: u64, parts: &[&[u8]]) -> io::Result<()> {
        self.0.write_at(offset, parts)
    }

    fn read(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        self.0.read(offset, len)
    }

    fn written_from(&self, offset: u64) -> io::Result<Option<u64>> {
        self.0.written_from(offset)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}
