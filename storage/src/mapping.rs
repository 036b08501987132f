//! The read mapping of one file, and the only unsafe code in Highwater.
//!
//! Hands out `Bytes` that own the mapping. Never writes, never grows or shrinks the file, and does not
//! know what the bytes mean.
#![expect(unsafe_code, reason = "slices of a mapped file cannot be made otherwise; see `Slice`")]

use std::fs::File;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use memmap2::{MmapOptions, MmapRaw};

use crate::disk::Lease;

/// A shared, read-only mapping of a file from its first byte, possibly longer than the file is yet.
#[derive(Debug)]
pub(crate) struct Mapping {
    map: Arc<MmapRaw>,
}

impl Mapping {
    /// Maps the first `len` bytes (at least 1) of `file`. The file may be shorter and grow later.
    pub(crate) fn new(file: &File, len: usize) -> io::Result<Self> {
        let map = MmapOptions::new().len(len).map_raw_read_only(file)?;
        Ok(Self { map: Arc::new(map) })
    }

    /// Length of the mapping in bytes; the file may be shorter.
    pub(crate) fn len(&self) -> usize {
        self.map.len()
    }

    /// Held by this mapping and its slices.
    pub(crate) fn lease(&self) -> Lease {
        Lease::new(&self.map)
    }

    /// A slice that keeps the mapping alive. The caller has checked that the file reaches
    /// `offset + len`. Panics if the mapping does not: that is a mistake in this crate.
    pub(crate) fn slice(&self, offset: usize, len: usize) -> Bytes {
        let end = offset.checked_add(len);
        assert!(end.is_some_and(|end| end <= self.map.len()), "a slice passes its mapping");
        Bytes::from_owner(Slice { map: Arc::clone(&self.map), offset, len })
    }
}

/// A range of a mapping that no longer changes.
struct Slice {
    map: Arc<MmapRaw>,
    offset: usize,
    len: usize,
}

impl AsRef<[u8]> for Slice {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: `Mapping::slice` checked that the range lies within the mapping, and `map` keeps it
        // mapped for as long as `self` lives. The mapping is read-only and its address is fixed. The
        // bytes are below the file's allocated length (the caller's promise, checked by `RealDisk`
        // against a length that only grows), so that no page of it is missing. No reference to bytes
        // that may still change is made: the log asks only for bytes below its published tail, which
        // it never writes again (`DiskFile::read` states it) unless it is told by the file's lease that
        // neither this slice nor any other of the file is left (`Segment::retire`).
        // Weak points, all outside of the compiler's sight: another process that shortens the file
        // makes an access fault (SIGBUS), one that writes to it changes bytes under a `&[u8]`, and a
        // read error of the device is a fault too. The directory lock and the rule that a file is
        // never shortened keep our own processes from it; a faulty device stops the node.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().add(self.offset), self.len) }
    }
}
