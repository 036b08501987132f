//! Who a data directory belongs to, and the lock that keeps a second process out of it.
//!
//! Owns the identity file's format. Decides nothing about founding or joining.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};

use crate::disk::Disk;
use crate::error::{IoContext, StorageError};
use crate::small_file::{read_small_file, write_small_file};

const MAGIC: [u8; 8] = *b"HWIDENT\0";
const VERSION: u32 = 1;
const FILE_NAME: &str = "identity";
const LOCK_NAME: &str = "lock";
/// Names are short; a longer one is not ours.
const TEXT_BYTES_MAX: usize = 256;

/// What a data directory says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster; empty before it is founded or joined.
    pub cluster_id: String,
    /// The node in the cluster; 0 before one is assigned.
    pub node_id: u64,
    /// Made once with the directory: tells a wiped and refilled directory from the old one.
    pub incarnation: String,
    /// Raised at every start: peers refuse a directory that comes back with a lower one.
    pub boot_counter: u64,
}

impl Identity {
    /// Reads the identity in `dir`; `None` if the directory has none yet.
    pub fn load(disk: &dyn Disk, dir: &Path) -> Result<Option<Self>, StorageError> {
        let path = dir.join(FILE_NAME);
        let Some((_, body)) = read_small_file(disk, &path, MAGIC, VERSION)? else {
            return Ok(None);
        };
        Self::decode(&body)
            .map(Some)
            .ok_or_else(|| StorageError::corrupt(&path, 0, "the identity does not decode"))
    }

    /// Writes the identity into `dir`, durably and in one step. The directory must exist.
    pub fn store(&self, disk: &dyn Disk, dir: &Path) -> Result<(), StorageError> {
        for text in [&self.cluster_id, &self.incarnation] {
            if text.len() > TEXT_BYTES_MAX {
                return Err(StorageError::PayloadTooLarge {
                    bytes: text.len() as u64,
                    bytes_max: 256,
                });
            }
        }
        write_small_file(disk, &dir.join(FILE_NAME), MAGIC, VERSION, &self.encode())
    }

    /// node id, boot counter, then both texts, each after its length in two bytes. Little endian.
    fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        body.extend_from_slice(&self.node_id.to_le_bytes());
        body.extend_from_slice(&self.boot_counter.to_le_bytes());
        for text in [&self.cluster_id, &self.incarnation] {
            let len = u16::try_from(text.len()).unwrap_or(u16::MAX);
            body.extend_from_slice(&len.to_le_bytes());
            body.extend_from_slice(text.as_bytes());
        }
        body
    }

    fn decode(body: &[u8]) -> Option<Self> {
        let (node_id, rest) = body.split_first_chunk::<8>()?;
        let (boot_counter, rest) = rest.split_first_chunk::<8>()?;
        let (cluster_id, rest) = decode_text(rest)?;
        let (incarnation, rest) = decode_text(rest)?;
        rest.is_empty().then_some(Self {
            cluster_id,
            node_id: u64::from_le_bytes(*node_id),
            incarnation,
            boot_counter: u64::from_le_bytes(*boot_counter),
        })
    }
}

fn decode_text(bytes: &[u8]) -> Option<(String, &[u8])> {
    let (len, rest) = bytes.split_first_chunk::<2>()?;
    let (text, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*len)))?;
    let text = std::str::from_utf8(text).ok()?;
    Some((text.to_owned(), rest))
}

/// Held while a process uses a data directory. The kernel releases it when the process ends, however.
#[derive(Debug)]
pub struct DirLock {
    _file: File,
}

impl DirLock {
    /// Locks `dir`, which must exist. Fails at once with `Locked` if another process (or another
    /// `DirLock` in this one) holds it. Real directories only: the simulator has no processes.
    pub fn acquire(dir: &Path) -> Result<Self, StorageError> {
        let path: PathBuf = dir.join(LOCK_NAME);
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .io_context("open", &path)?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => Err(StorageError::Locked { dir: dir.to_path_buf() }),
            Err(TryLockError::Error(source)) => {
                Err(StorageError::Io { operation: "lock", path, source })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::SimDisk;

    fn identity() -> Identity {
        Identity {
            cluster_id: "c-1".to_owned(),
            node_id: 3,
            incarnation: "i-9".to_owned(),
            boot_counter: 12,
        }
    }

    #[test]
    fn an_identity_is_stored_and_loaded() {
        let disk = SimDisk::new(1);
        let dir = Path::new("node");
        disk.create_dir_all(dir).unwrap();
        disk.sync_dir(Path::new("")).unwrap();
        assert_eq!(Identity::load(&disk, dir).unwrap(), None);
        let unfounded =
            Identity { cluster_id: String::new(), node_id: 0, boot_counter: 1, ..identity() };
        unfounded.store(&disk, dir).unwrap();
        assert_eq!(Identity::load(&disk, dir).unwrap(), Some(unfounded));
        identity().store(&disk, dir).unwrap();
        disk.crash();
        assert_eq!(Identity::load(&disk, dir).unwrap(), Some(identity()));
        disk.flip(&dir.join(FILE_NAME), 30, 1).unwrap();
        assert!(Identity::load(&disk, dir).unwrap_err().is_corrupt());
    }

    #[test]
    fn bodies_of_any_other_length_do_not_decode() {
        let body = identity().encode();
        assert_eq!(Identity::decode(&body), Some(identity()));
        for len in 0..body.len() {
            assert_eq!(Identity::decode(&body[..len]), None);
        }
        assert_eq!(Identity::decode(&[&body[..], b"x"].concat()), None);
        let long = Identity { incarnation: "x".repeat(257), ..identity() };
        assert!(long.store(&SimDisk::new(1), Path::new("node")).is_err());
    }

    #[test]
    fn a_directory_is_locked_once_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let lock = DirLock::acquire(dir.path()).unwrap();
        let error = DirLock::acquire(dir.path()).unwrap_err();
        assert!(matches!(&error, StorageError::Locked { dir: named } if named == dir.path()));
        drop(lock);
        DirLock::acquire(dir.path()).unwrap();
    }
}
