//! Small checksummed files that are replaced as a whole: identity, checkpoints, manifests.
//!
//! Owns their envelope (magic, version, length, checksum) and the durable replacement. Knows nothing of
//! the bodies; never changes a file in place.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use crate::disk::{Disk, DiskFile};
use crate::error::{IoContext, StorageError};

/// magic 8, version 4, body length 4, checksum 4 (of all before it and of the body).
const HEADER_BYTES: usize = 20;

/// Replaces the file at `path` by one with `body` (less than 4 GiB), durably and in one step: after a
/// crash the old or the new one is there, whole. Whatever is left of an interrupted write is replaced.
pub fn write_small_file(
    disk: &dyn Disk,
    path: &Path,
    magic: [u8; 8],
    version: u32,
    body: &[u8],
) -> Result<(), StorageError> {
    let temporary = temporary_path(path);
    let file = write_anew(disk, &temporary, magic, version, body)?;
    // The name must not point at bytes that a crash could still take away.
    file.sync().io_context("sync", &temporary)?;
    disk.rename(&temporary, path).io_context("rename into place", path)?;
    let dir = path.parent().unwrap_or_else(|| Path::new(""));
    disk.sync_dir(dir).io_context("sync directory", dir)
}

/// Writes a file that may be lost or torn in a crash, because it can be built anew: `read_small_file`
/// then says that it is missing or corrupt.
pub(crate) fn write_small_file_lazily(
    disk: &dyn Disk,
    path: &Path,
    magic: [u8; 8],
    version: u32,
    body: &[u8],
) -> Result<(), StorageError> {
    write_anew(disk, path, magic, version, body).map(drop)
}

fn write_anew(
    disk: &dyn Disk,
    path: &Path,
    magic: [u8; 8],
    version: u32,
    body: &[u8],
) -> Result<Arc<dyn DiskFile>, StorageError> {
    let body_len = u32::try_from(body.len()).map_err(|_| StorageError::PayloadTooLarge {
        bytes: body.len() as u64,
        bytes_max: u32::MAX,
    })?;
    let mut header = [0_u8; HEADER_BYTES];
    header[0..8].copy_from_slice(&magic);
    header[8..12].copy_from_slice(&version.to_le_bytes());
    header[12..16].copy_from_slice(&body_len.to_le_bytes());
    let crc = checksum(&header[..16], body);
    header[16..20].copy_from_slice(&crc.to_le_bytes());
    if disk.exists(path) {
        disk.remove_file(path).io_context("remove", path)?;
    }
    let file = disk.create(path, 0).io_context("create", path)?;
    file.write_at(0, &[&header, body]).io_context("write", path)?;
    Ok(file)
}

/// Reads a file that `write_small_file` wrote: its version and body; `None` if there is none. A wrong
/// magic, length or checksum is `Corrupt`, a version above `version_max` is `UnsupportedVersion`.
pub fn read_small_file(
    disk: &dyn Disk,
    path: &Path,
    magic: [u8; 8],
    version_max: u32,
) -> Result<Option<(u32, Bytes)>, StorageError> {
    if !disk.exists(path) {
        return Ok(None);
    }
    let file = disk.open(path, 0).io_context("open", path)?;
    let len = usize::try_from(file.len())
        .map_err(|_| StorageError::corrupt(path, 0, "too large for a small file"))?;
    if len < HEADER_BYTES {
        return Err(StorageError::corrupt(path, 0, "shorter than its header"));
    }
    let bytes = file.read(0, len).io_context("read", path)?;
    let body = bytes.slice(HEADER_BYTES..);
    if bytes[0..8] != magic {
        return Err(StorageError::corrupt(path, 0, "not a file of this kind"));
    }
    if le_u32(&bytes[16..20]) != checksum(&bytes[..16], &body) {
        return Err(StorageError::corrupt(path, 0, "wrong checksum"));
    }
    if u64::from(le_u32(&bytes[12..16])) != body.len() as u64 {
        return Err(StorageError::corrupt(path, 0, "wrong length"));
    }
    let version = le_u32(&bytes[8..12]);
    if version == 0 || version > version_max {
        return Err(StorageError::UnsupportedVersion {
            path: path.to_path_buf(),
            version,
            version_max,
        });
    }
    Ok(Some((version, body)))
}

fn temporary_path(path: &Path) -> PathBuf {
    let mut name = OsString::from(path.as_os_str());
    name.push(".new");
    PathBuf::from(name)
}

fn checksum(header: &[u8], body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(header);
    hasher.update(body);
    hasher.finalize()
}

fn le_u32(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{SimDisk, SimOp};

    const MAGIC: [u8; 8] = *b"HWTEST\0\0";

    fn sim(seed: u64) -> SimDisk {
        let disk = SimDisk::new(seed);
        disk.create_dir_all(Path::new("d")).unwrap();
        disk.sync_dir(Path::new("")).unwrap();
        disk
    }

    #[test]
    fn a_file_reads_back_and_a_missing_one_is_none() {
        let disk = sim(1);
        let path = Path::new("d/f");
        assert_eq!(read_small_file(&disk, path, MAGIC, 3).unwrap(), None);
        write_small_file(&disk, path, MAGIC, 2, b"body").unwrap();
        let (version, body) = read_small_file(&disk, path, MAGIC, 3).unwrap().unwrap();
        assert_eq!((version, &body[..]), (2, &b"body"[..]));
        let error = read_small_file(&disk, path, MAGIC, 1).unwrap_err();
        assert!(matches!(error, StorageError::UnsupportedVersion { version: 2, .. }));
        assert!(read_small_file(&disk, path, *b"HWOTHER\0", 3).unwrap_err().is_corrupt());
        assert_eq!(disk.list(Path::new("d")).unwrap(), ["f"]);
    }

    #[test]
    fn the_old_or_the_new_body_is_there_after_any_failure_and_crash() {
        for seed in 0..100 {
            for op in [SimOp::Create, SimOp::Write, SimOp::Sync, SimOp::Rename, SimOp::SyncDir] {
                let disk = sim(seed);
                let path = Path::new("d/f");
                write_small_file(&disk, path, MAGIC, 1, &[1; 5000]).unwrap();
                disk.fail_next(op, std::io::ErrorKind::Other);
                write_small_file(&disk, path, MAGIC, 1, &[2; 6000]).unwrap_err();
                disk.crash();
                let (_, body) = read_small_file(&disk, path, MAGIC, 1).unwrap().unwrap();
                assert!(body == vec![1; 5000] || body == vec![2; 6000], "{op:?} {seed}");
                write_small_file(&disk, path, MAGIC, 1, b"third").unwrap();
                disk.crash();
                let (_, body) = read_small_file(&disk, path, MAGIC, 1).unwrap().unwrap();
                assert_eq!(&body[..], b"third");
            }
        }
    }

    #[test]
    fn any_flipped_bit_and_any_lost_end_is_corrupt() {
        let disk = sim(1);
        let path = Path::new("d/f");
        write_small_file(&disk, path, MAGIC, 1, b"some body").unwrap();
        let whole = disk.open(path, 0).unwrap().read(0, 29).unwrap();
        for bit in 0..29 * 8 {
            disk.flip(path, bit / 8, 1 << (bit % 8)).unwrap();
            assert!(read_small_file(&disk, path, MAGIC, 1).unwrap_err().is_corrupt(), "bit {bit}");
            disk.flip(path, bit / 8, 1 << (bit % 8)).unwrap();
        }
        for len in 0..whole.len() {
            disk.remove_file(path).unwrap();
            disk.create(path, 0).unwrap().write_at(0, &[&whole[..len]]).unwrap();
            assert!(read_small_file(&disk, path, MAGIC, 1).unwrap_err().is_corrupt(), "{len}");
        }
    }
}
