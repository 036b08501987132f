//! The machine's files without the wait for the disk.
//!
//! Owns: the rule that a sync does nothing here. What was written outlives the broker that wrote it, restarted or killed, because the
//! operating system has it. Never: durability; the power loss that a sync guards against does not happen between two lines of a test.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use highwater_storage::{Disk, DiskFile, Lease, RealDisk};

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct QuickDisk {
    real: RealDisk,
}

#[derive(Debug)]
struct QuickFile {
    real: Arc<dyn DiskFile>,
}

fn quick(real: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
    Arc::new(QuickFile { real })
}

impl Disk for QuickDisk {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.real.create_dir_all(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.real.list(dir)
    }

    fn exists(&self, path: &Path) -> bool {
        self.real.exists(path)
    }

    fn create(&self, path: &Path, mapped_len: u64) -> io::Result<Arc<dyn DiskFile>> {
        self.real.create(path, mapped_len).map(quick)
    }

    fn open(&self, path: &Path, mapped_len: u64) -> io::Result<Arc<dyn DiskFile>> {
        self.real.open(path, mapped_len).map(quick)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.real.rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.real.remove_file(path)
    }

    fn remove_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.real.remove_dir_all(dir)
    }

    fn sync_dir(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }

    fn sync_tree(&self, _root: &Path) -> io::Result<bool> {
        Ok(true)
    }

    fn sync_many(&self, _files: &[Arc<dyn DiskFile>], _dirs: &[PathBuf]) -> io::Result<()> {
        Ok(())
    }
}

impl DiskFile for QuickFile {
    fn len(&self) -> u64 {
        self.real.len()
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.real.allocate(len)
    }

    fn write_at(&self, offset: u64, parts: &[&[u8]]) -> io::Result<()> {
        self.real.write_at(offset, parts)
    }

    fn read(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        self.real.read(offset, len)
    }

    fn written_from(&self, offset: u64) -> io::Result<Option<u64>> {
        self.real.written_from(offset)
    }

    fn lease(&self) -> Option<Lease> {
        self.real.lease()
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn file_system(&self) -> Option<u64> {
        self.real.file_system()
    }

    fn sync_file_system(&self) -> io::Result<()> {
        Ok(())
    }
}
