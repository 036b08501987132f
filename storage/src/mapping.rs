//! The read mapping of one file, what happens when a page of it cannot be read, and the only unsafe code in
//! Highwater.
//!
//! Hands out `Bytes` that own the mapping. Never writes, never grows or shrinks the file, and does not
//! know what the bytes mean.
#![expect(unsafe_code, reason = "slices of a mapped file cannot be made otherwise; see `Slice`")]

use std::fs::File;
use std::io;
use std::ptr;
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
        // never shortened keep our own processes from it; a faulty device stops the node
        // (`exit_on_read_fault`).
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().add(self.offset), self.len) }
    }
}

/// Exit code of a process that met a page it could not read: a fault of the machine, as every other.
const EXIT_FAULT: i32 = 1;
/// Longest line of `/proc/self/maps` that is understood.
const MAPS_LINE_BYTES_MAX: usize = 512;

/// From now on a mapped page that cannot be read ends the process with exit code 1 and a line on standard
/// error that names the file. Without it the kernel ends the process all the same, and nobody learns why.
/// For binaries: it is a setting of the whole process.
pub fn exit_on_read_fault() -> io::Result<()> {
    // SAFETY: all zeroes is a valid `sigaction`: no flags, an empty mask, the default handler.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = on_bus_error;
    action.sa_sigaction = handler as libc::sighandler_t;
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: `action` is whole, and its handler has the signature that `SA_SIGINFO` asks for and does
    // nothing that a signal handler may not. Weak point: it replaces whatever handler was there before,
    // for example one of another library.
    match unsafe { libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Runs in the thread that read the page: no allocation, no lock, nothing that may panic.
extern "C" fn on_bus_error(
    _signal: libc::c_int,
    info: *mut libc::siginfo_t,
    _context: *mut libc::c_void,
) {
    // SAFETY: with `SA_SIGINFO` the kernel passes a valid pointer, and SIGBUS comes with an address.
    let address = unsafe { (*info).si_addr() } as usize;
    let mut line = Line { bytes: [0; MAPS_LINE_BYTES_MAX], len: 0 };
    let file = line.about(address).unwrap_or(b"a mapped file");
    let parts: [&[u8]; 4] = [
        b"broker: cannot read a page of ",
        file,
        b": the disk failed, or another program shortened the file. Stopping at once. Check the disk: at the ",
        b"next start what it reads wrongly, or no longer has, is mended from other replicas\n",
    ];
    for part in parts {
        // SAFETY: the pointer and the length are those of a slice.
        unsafe { libc::write(libc::STDERR_FILENO, part.as_ptr().cast(), part.len()) };
    }
    // SAFETY: ends the process without running anything of it.
    unsafe { libc::_exit(EXIT_FAULT) }
}

/// A line of `/proc/self/maps`, without its end if it is too long.
struct Line {
    bytes: [u8; MAPS_LINE_BYTES_MAX],
    len: usize,
}

impl Line {
    /// Reads until the line about an address; the name of the file that is mapped there.
    fn about(&mut self, address: usize) -> Option<&[u8]> {
        use rustix::fs::{Mode, OFlags};
        let maps = rustix::fs::open(c"/proc/self/maps", OFlags::RDONLY, Mode::empty()).ok()?;
        let mut chunk = [0; 512];
        loop {
            let count = rustix::io::read(&maps, &mut chunk).ok().filter(|count| *count > 0)?;
            for byte in chunk.iter().take(count) {
                if *byte != b'\n' {
                    if let Some(place) = self.bytes.get_mut(self.len) {
                        *place = *byte;
                        self.len += 1;
                    }
                    continue;
                }
                let len = std::mem::take(&mut self.len);
                if self.bytes.get(..len).is_some_and(|line| name_at(line, address).is_some()) {
                    return name_at(self.bytes.get(..len)?, address);
                }
            }
        }
    }
}

/// The name in a line of `/proc/self/maps`, `7f00-7f10 r--s 00000000 08:01 42   /path`, if it is about this address.
fn name_at(line: &[u8], address: usize) -> Option<&[u8]> {
    let mut words = line.splitn(6, |byte| *byte == b' ');
    let mut ends = words.next()?.split(|byte| *byte == b'-').map(hexadecimal);
    let (begin, end) = (ends.next()??, ends.next()??);
    let name = words.nth(4)?.trim_ascii();
    ((begin..end).contains(&address) && !name.is_empty()).then_some(name)
}

fn hexadecimal(digits: &[u8]) -> Option<usize> {
    digits.iter().try_fold(0_usize, |number, digit| {
        let digit = char::from(*digit).to_digit(16)? as usize;
        number.checked_mul(16)?.checked_add(digit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_about_an_address_is_told_from_others() {
        let line = b"7f001000-7f003000 r--s 00000000 08:01 42           /data/a segment.log";
        assert_eq!(name_at(line, 0x7f00_1000), Some(&b"/data/a segment.log"[..]));
        assert_eq!(name_at(line, 0x7f00_2fff), Some(&b"/data/a segment.log"[..]));
        assert_eq!(name_at(line, 0x7f00_3000), None);
        assert_eq!(name_at(b"7f001000-7f003000 rw-p 00000000 00:00 0 ", 0x7f00_1000), None);
        assert_eq!(name_at(b"nonsense", 1), None);
        assert_eq!(name_at(b"1-ffffffffffffffffff r--s 0 0 0 /x", 1), None);
    }

    #[test]
    fn the_file_behind_a_mapping_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("segment");
        std::fs::write(&path, [7; 8192]).unwrap();
        let mapping = Mapping::new(&File::open(&path).unwrap(), 8192).unwrap();
        let slice = mapping.slice(5000, 100);
        let mut line = Line { bytes: [0; MAPS_LINE_BYTES_MAX], len: 0 };
        let found = line.about(slice.as_ptr() as usize).unwrap();
        assert_eq!(found, path.as_os_str().as_encoded_bytes());
    }
}
