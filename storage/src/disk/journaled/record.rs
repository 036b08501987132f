//! The bytes of the journal: a header that names the generation, then records of the pieces that were synced together: first which
//! they are, then their bytes.
//!
//! Every record ends at a multiple of 8 bytes. A half is read up to its first record that is not valid; a valid one with the same salt
//! behind that shows that the record had been durable, and is damaged. The salt is random and new for every generation, so
//! that neither an older record nor what somebody published as the bytes of an event passes for one of ours.
//!
//! The header stands there twice, in blocks of its own. It is only written when all the bytes of older records are in their places: when
//! neither of the two is valid, the power went while they were being written, and there is nothing to put back.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::ops::Range;
use std::path::Path;

use crate::disk::DiskFile;
use crate::error::StorageError;

/// magic 8, version 4, checksum 4, generation 8, salt 8.
const HEADER_BYTES: usize = 32;
const HEADERS_AT: [usize; 2] = [0, 4096];
/// Where the first record stands.
pub(super) const FIRST_RECORD: usize = 8192;
const MAGIC: [u8; 8] = *b"HWAPPEND";
const VERSION: u32 = 1;
const RECORD_MAGIC: [u8; 4] = *b"HWap";
/// magic 4, checksum 4 (of all behind it), salt 8, sequence 8, count 4, zero 4, bytes 8 (of all behind them).
const RECORD_HEADER_BYTES: usize = 40;
/// offset 8, length 4, length of the path 4; then the path.
const PIECE_HEADER_BYTES: usize = 16;
const ALIGNMENT: usize = 8;
/// So much of a record is written at a time.
const CHUNK_BYTES: u64 = 1 << 19;
/// So much is read at a time; what cannot be read of it counts as zeroes.
const WINDOW_BYTES: usize = 64 << 10;

/// Which contents of a half these are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HalfId {
    /// The later half's is higher.
    pub(super) generation: u64,
    /// Random.
    pub(super) salt: u64,
}

impl HalfId {
    pub(super) fn new(generation: u64) -> Self {
        // The standard library's only source of numbers that nobody can guess.
        Self { generation, salt: RandomState::new().hash_one(generation) }
    }
}

/// Bytes of one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece<'a> {
    /// Below the journal's directory.
    pub(super) path: &'a Path,
    pub(super) offset: u64,
    pub(super) bytes: &'a [u8],
}

/// What a half holds.
#[derive(Debug, Default)]
pub(super) struct Contents {
    pub(super) generation: u64,
    bytes: Vec<u8>,
    records: Vec<Record>,
}

impl Contents {
    /// In the order in which they were synced.
    pub(super) fn pieces(&self) -> impl Iterator<Item = Piece<'_>> {
        let of = |record: &Record| pieces_of(&self.bytes[record.body.clone()], record.count);
        self.records.iter().flat_map(of)
    }
}

/// Empties a half, durably: whatever is in it is an older one's from now on.
pub(super) fn begin(file: &dyn DiskFile, id: HalfId) -> io::Result<()> {
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(&MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[16..24].copy_from_slice(&id.generation.to_le_bytes());
    header[24..].copy_from_slice(&id.salt.to_le_bytes());
    let checksum = header_checksum(&header);
    header[12..16].copy_from_slice(&checksum.to_le_bytes());
    file.allocate(FIRST_RECORD as u64)?;
    for position in HEADERS_AT {
        file.write_at(position as u64, &[&header])?;
    }
    file.sync()
}

fn header_checksum(header: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&header[..12]);
    hasher.update(&header[16..]);
    hasher.finalize()
}

/// Length of the record of these pieces.
pub(super) fn bytes_of(pieces: &[Piece<'_>]) -> u64 {
    let len =
        |piece: &Piece<'_>| PIECE_HEADER_BYTES + piece.path.as_os_str().len() + piece.bytes.len();
    let body: usize = pieces.iter().map(len).sum();
    (RECORD_HEADER_BYTES + body).next_multiple_of(ALIGNMENT) as u64
}

/// Writes a record; not yet durable.
pub(super) fn write(
    file: &dyn DiskFile,
    position: u64,
    salt: u64,
    sequence: u64,
    pieces: &[Piece<'_>],
) -> io::Result<()> {
    let mut table = Vec::new();
    for piece in pieces {
        let path = piece.path.as_os_str().as_encoded_bytes();
        table.extend(piece.offset.to_le_bytes());
        table.extend(u32::try_from(piece.bytes.len()).map_err(io::Error::other)?.to_le_bytes());
        table.extend(u32::try_from(path.len()).map_err(io::Error::other)?.to_le_bytes());
        table.extend(path);
    }
    let body = table.len() + pieces.iter().map(|piece| piece.bytes.len()).sum::<usize>();
    let mut header = [0; RECORD_HEADER_BYTES];
    header[..4].copy_from_slice(&RECORD_MAGIC);
    header[8..16].copy_from_slice(&salt.to_le_bytes());
    header[16..24].copy_from_slice(&sequence.to_le_bytes());
    let count = u32::try_from(pieces.len()).map_err(io::Error::other)?;
    header[24..28].copy_from_slice(&count.to_le_bytes());
    header[32..40].copy_from_slice(&(body as u64).to_le_bytes());
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&header[8..]);
    let mut parts: Vec<&[u8]> = Vec::with_capacity(2 + pieces.len());
    parts.extend([&[], &table[..]]);
    parts.extend(pieces.iter().map(|piece| piece.bytes));
    let (mut begin, mut bytes, mut at) = (1, 0, position + RECORD_HEADER_BYTES as u64);
    for end in 1..parts.len() {
        hasher.update(parts[end]);
        bytes += parts[end].len() as u64;
        if bytes >= CHUNK_BYTES {
            // The disk may begin with these while the rest is gathered.
            file.write_at(at, &parts[begin..=end])?;
            file.start_sync(at, bytes);
            (begin, bytes, at) = (end + 1, 0, at + bytes);
        }
    }
    header[4..8].copy_from_slice(&hasher.finalize().to_le_bytes());
    if begin == 1 {
        parts[0] = &header;
        return file.write_at(position, &parts);
    }
    file.write_at(at, &parts[begin..])?;
    file.write_at(position, &[&header])
}

/// Everything in a half. `Corrupt` if a record is damaged that had been durable.
pub(super) fn read(file: &dyn DiskFile, path: &Path) -> Result<Contents, StorageError> {
    let (bytes, unreadable) = read_what_can_be(file);
    let Some(id) = id_of(&bytes, path)? else { return Ok(Contents::default()) };
    let mut records = Vec::new();
    let (mut position, mut sequence) = (FIRST_RECORD, 0);
    while let Some(record) = record_at(&bytes, position, id.salt)
        && record.sequence == sequence
    {
        position = record.body.end.next_multiple_of(ALIGNMENT);
        records.push(record);
        sequence += 1;
    }
    let mut later = (position..bytes.len()).step_by(ALIGNMENT);
    let detail = if later
        .any(|at| record_at(&bytes, at, id.salt).is_some_and(|record| record.sequence > sequence))
    {
        "a record is damaged, and a later one shows that it had been durable"
    } else if unreadable.iter().any(|window| window.contains(&position)) {
        "cannot be read where a record may stand"
    } else {
        return Ok(Contents { generation: id.generation, bytes, records });
    };
    let mend = "If the machine has not lost power since the broker last ran, this file may be removed: all that is in it is in the logs too";
    Err(StorageError::corrupt(path, sequence, format!("{detail}. {mend}")))
}

/// The bytes of the file, and what could not be read: a bad sector in what is left of an older generation hurts nobody.
fn read_what_can_be(file: &dyn DiskFile) -> (Vec<u8>, Vec<Range<usize>>) {
    let len = usize::try_from(file.len()).unwrap_or(usize::MAX);
    let (mut bytes, mut unreadable) = (Vec::with_capacity(len), Vec::new());
    while bytes.len() < len {
        let window = bytes.len()..len.min(bytes.len() + WINDOW_BYTES);
        match file.read(window.start as u64, window.len()) {
            Ok(read) => bytes.extend_from_slice(&read),
            Err(_) => {
                bytes.resize(window.end, 0);
                unreadable.push(window);
            }
        }
    }
    (bytes, unreadable)
}

/// Which half it is; `None` if it was never used, or was being begun when the power went.
fn id_of(bytes: &[u8], path: &Path) -> Result<Option<HalfId>, StorageError> {
    let mut found = None;
    for position in HEADERS_AT {
        let header = bytes.get(position..).and_then(|rest| rest.get(..HEADER_BYTES));
        let is_valid = |header: &&[u8]| {
            header[..8] == MAGIC && le_u32(&header[12..]) == header_checksum(header)
        };
        let Some(header) = header.filter(is_valid) else { continue };
        let version = le_u32(&header[8..]);
        if version != VERSION {
            let path = path.to_path_buf();
            return Err(StorageError::UnsupportedVersion { path, version, version_max: VERSION });
        }
        let id = HalfId { generation: le_u64(&header[16..]), salt: le_u64(&header[24..]) };
        // Two that differ: the power went between them, when all that the older one has was in its place.
        if found.is_none_or(|other: HalfId| other.generation < id.generation) {
            found = Some(id);
        }
    }
    Ok(found)
}

#[derive(Debug)]
struct Record {
    sequence: u64,
    count: u32,
    body: Range<usize>,
}

/// The record at `position`, if a valid one stands there.
fn record_at(bytes: &[u8], position: usize, salt: u64) -> Option<Record> {
    let header = bytes.get(position..)?.get(..RECORD_HEADER_BYTES)?;
    if header[..4] != RECORD_MAGIC || le_u64(&header[8..]) != salt {
        return None;
    }
    let begin = position + RECORD_HEADER_BYTES;
    let end = begin.checked_add(usize::try_from(le_u64(&header[32..])).ok()?)?;
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&header[8..]);
    hasher.update(bytes.get(begin..end)?);
    (hasher.finalize() == le_u32(&header[4..])).then(|| Record {
        sequence: le_u64(&header[16..]),
        count: le_u32(&header[24..]),
        body: begin..end,
    })
}

/// The pieces of a valid record; those that make no sense, which no release ever wrote, are left out.
fn pieces_of(body: &[u8], count: u32) -> Vec<Piece<'_>> {
    let mut rest = body;
    let mut table = Vec::new();
    for _ in 0..count {
        let Some((header, behind)) = rest.split_at_checked(PIECE_HEADER_BYTES) else { break };
        let (offset, len, path_len) = (le_u64(header), le_u32(&header[8..]), le_u32(&header[12..]));
        let Some((path, behind)) = behind.split_at_checked(path_len as usize) else { break };
        table.push((offset, len as usize, path));
        rest = behind;
    }
    let mut pieces = Vec::with_capacity(table.len());
    for (offset, len, path) in table {
        let (Ok(path), Some((bytes, behind))) = (str::from_utf8(path), rest.split_at_checked(len))
        else {
            break;
        };
        pieces.push(Piece { path: Path::new(path), offset, bytes });
        rest = behind;
    }
    pieces
}

fn le_u32(bytes: &[u8]) -> u32 {
    bytes.first_chunk().map_or(0, |chunk| u32::from_le_bytes(*chunk))
}

fn le_u64(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or(0, |chunk| u64::from_le_bytes(*chunk))
}
