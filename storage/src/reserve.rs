//! Disk space kept back for what must still be written when the disk is full.
//!
//! Owns: one file of a fixed size that is removed when its room is needed, and made again when there is some. What
//! may use that room is for the caller to say. Never: holds data.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::disk::Disk;
use crate::error::{IoContext, StorageError};

const FILE_NAME: &str = "reserve";

/// A node's reserve of disk space. Shared by all that may need it.
#[derive(Debug)]
pub struct DiskReserve {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    bytes: u64,
    state: Mutex<ReserveState>,
}

#[derive(Debug)]
struct ReserveState {
    is_whole: bool,
    /// Bytes that were drawn since it was whole.
    drawn: u64,
}

impl DiskReserve {
    /// The reserve in `dir`, which must exist; 0 bytes means none. On a disk that is full already there is nothing in it yet.
    pub fn open(disk: Arc<dyn Disk>, dir: &Path, bytes: u64) -> Result<Self, StorageError> {
        let state = Mutex::new(ReserveState { is_whole: bytes == 0, drawn: 0 });
        let reserve = Self { disk, path: dir.join(FILE_NAME), bytes, state };
        match reserve.refill() {
            Err(error) if !error.is_disk_full() => Err(error),
            _ => Ok(reserve),
        }
    }

    /// False from the moment its room was given away until there is enough to take it back.
    pub fn is_whole(&self) -> bool {
        self.state.lock().is_whole
    }

    /// Whether so many bytes more may be written at its expense by what could also wait: half of it, until it is whole again.
    pub fn draw(&self, bytes: u64) -> bool {
        let mut state = self.state.lock();
        let fits = state.drawn.saturating_add(bytes) <= self.bytes / 2;
        if fits {
            state.drawn += bytes;
        }
        fits
    }

    /// Gives its room away; false if there is nothing left to give.
    pub fn release(&self) -> bool {
        let mut state = self.state.lock();
        if !state.is_whole || self.bytes == 0 {
            return false;
        }
        // A file that cannot be removed takes room for nothing, and is no reserve.
        state.is_whole = false;
        self.disk.remove_file(&self.path).is_ok()
    }

    /// Takes its room back if it was given away. `is_disk_full` while there is not enough.
    pub fn refill(&self) -> Result<(), StorageError> {
        let mut state = self.state.lock();
        if state.is_whole {
            return Ok(());
        }
        if self.disk.exists(&self.path) {
            let file = self.disk.open(&self.path, 0).io_context("open", &self.path)?;
            if file.len() == self.bytes {
                *state = ReserveState { is_whole: true, drawn: 0 };
                return Ok(());
            }
            self.disk.remove_file(&self.path).io_context("remove", &self.path)?;
        }
        let file = self.disk.create(&self.path, 0).io_context("create", &self.path)?;
        if let Err(error) = file.allocate(self.bytes) {
            drop(file);
            let _ = self.disk.remove_file(&self.path);
            return Err(error).io_context("allocate space in", &self.path);
        }
        *state = ReserveState { is_whole: true, drawn: 0 };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::SimDisk;

    #[test]
    fn its_room_is_there_when_the_disk_is_full_and_comes_back_when_it_is_not() {
        let disk = SimDisk::new(1);
        let dir = Path::new("data");
        disk.create_dir_all(dir).unwrap();
        disk.set_capacity(Some(3_000));
        let reserve = DiskReserve::open(Arc::new(disk.clone()), dir, 1_000).unwrap();
        assert!(reserve.is_whole());
        let file = disk.create(&dir.join("data"), 0).unwrap();
        file.allocate(2_000).unwrap();
        file.allocate(2_500).unwrap_err();
        assert!(reserve.release() && !reserve.release());
        file.allocate(2_500).unwrap();
        assert!(reserve.refill().unwrap_err().is_disk_full() && !reserve.is_whole());
        // Opened anew on the full disk it is not there either, and that is no error.
        let reserve = DiskReserve::open(Arc::new(disk.clone()), dir, 1_000).unwrap();
        assert!(!reserve.is_whole() && !reserve.release());
        disk.set_capacity(Some(5_000));
        reserve.refill().unwrap();
        assert!(reserve.is_whole());
        assert_eq!(disk.used_bytes(), 3_500);
    }

    #[test]
    fn none_is_always_whole_and_gives_nothing() {
        let disk = SimDisk::new(1);
        disk.create_dir_all(Path::new("data")).unwrap();
        let reserve = DiskReserve::open(Arc::new(disk), Path::new("data"), 0).unwrap();
        assert!(reserve.is_whole() && !reserve.release());
    }
}
