//! The hard states (term, vote, commit) of all replicas of a node, in one journal.
//!
//! Two files of equal make take turns: the live one takes records until it is full, then everything goes as
//! a snapshot into the other, and that is the live one. No copy that counts is ever written over. Space is
//! reserved ahead, so that a full disk does not stop an election. Knows nothing of what the numbers mean.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use crate::disk::{Disk, DiskFile};
use crate::error::{IoContext, StorageError};

const FILE_NAMES: [&str; 2] = ["hard-state-a.journal", "hard-state-b.journal"];
/// Ends with the format's version.
const MAGIC: [u8; 8] = *b"HWHARD\0\x01";
const VERSION: u8 = MAGIC[7];
/// No journal ever counts so far: a larger number is damage, and arithmetic below it never overflows.
const NUMBER_MAX: u64 = u64::MAX >> 1;
/// magic 8, generation 8, checksum 4, zero 4.
const HEADER_BYTES: u64 = 24;
const RECORD_MAGIC: u32 = u32::from_le_bytes(*b"HWhs");
/// magic 4, kind 1, zero 3, generation 8, sequence 8, durable sequence 8, count 4, checksum 4.
const RECORD_HEADER_BYTES: usize = 40;
/// group, term, vote, commit.
const STATE_BYTES: usize = 32;
/// Both files get so much space at once.
const FILE_BYTES_MIN: u64 = 1 << 20;
/// A new live file has room for this many times its snapshot.
const ROOM_FACTOR: u64 = 4;

/// What raft wants remembered of a replica.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct HardState {
    /// The latest term the replica has seen.
    pub term: u64,
    /// Whom it voted for in that term; 0 for nobody.
    pub vote: u64,
    /// A lower bound of the commit index; never above what was durable.
    pub commit: u64,
}

/// The node's journal; the single writer of its two files.
///
/// Invariant: the live file begins with a durable snapshot of the state when it became live, and the records
/// behind it, in order, lead to `states`.
#[derive(Debug)]
pub struct HardStateJournal {
    dir: PathBuf,
    files: [Arc<dyn DiskFile>; 2],
    live: usize,
    generation: u64,
    /// Sequence of the last record.
    sequence: u64,
    /// The greatest sequence known to be durable; sync points raise it.
    durable_sequence: Arc<AtomicU64>,
    position: u64,
    states: BTreeMap<u64, HardState>,
    /// A write failed: the end of the live file is unknown, so the next record begins a new one.
    must_compact: bool,
}

/// What must be synced for all states put so far to be durable.
#[derive(Clone, Debug)]
pub struct JournalSyncPoint {
    file: Arc<dyn DiskFile>,
    sequence: u64,
    durable_sequence: Arc<AtomicU64>,
}

impl JournalSyncPoint {
    /// Makes everything put before this point was taken durable; blocks until it is. After an error nothing
    /// is known: the caller stops.
    pub fn sync(&self) -> io::Result<()> {
        if self.durable_sequence.load(Ordering::Acquire) >= self.sequence {
            return Ok(());
        }
        self.file.sync()?;
        self.durable_sequence.fetch_max(self.sequence, Ordering::AcqRel);
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// All states there are.
    Snapshot = 1,
    Put = 2,
    Remove = 3,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        [Self::Snapshot, Self::Put, Self::Remove].into_iter().find(|kind| *kind as u8 == byte)
    }
}

impl HardStateJournal {
    /// Opens the journal in `dir`, which must exist, or creates it there, and returns the state of every
    /// group. What it returns is durable. A torn end is left out; damage to what had been durable is
    /// `Corrupt`: then nobody can say whom this node voted for.
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
    ) -> Result<(Self, BTreeMap<u64, HardState>), StorageError> {
        let mut files = Vec::new();
        let mut generations = Vec::new();
        for name in FILE_NAMES {
            let path = dir.join(name);
            let file = if disk.exists(&path) {
                disk.open(&path, 0).io_context("open", &path)?
            } else {
                disk.create(&path, 0).io_context("create", &path)?
            };
            generations.push(read_generation(&*file, &path)?);
            file.allocate(FILE_BYTES_MIN).io_context("allocate space in", &path)?;
            files.push(file);
        }
        disk.sync_dir(dir).io_context("sync directory", dir)?;
        let live = usize::from(generations[1] >= generations[0]);
        let is_new = matches!(generations[..], [0, 0] | [1, 0] | [1, 2]);
        let newest = match (generations[live], generations[1 - live]) {
            // Created just now, or creation was interrupted: nothing was ever put.
            _ if is_new => Loaded::default(),
            // Creation uses both files: a blank one was wiped.
            (_, 0) => {
                let path = dir.join(FILE_NAMES[1 - live]);
                return Err(StorageError::corrupt(&path, 0, "the other file's header is missing"));
            }
            (generation, _) => load(&*files[live], &dir.join(FILE_NAMES[live]), generation)?,
        };
        let [a, b] = <[Arc<dyn DiskFile>; 2]>::try_from(files)
            .map_err(|_| StorageError::corrupt(dir, 0, "a journal has two files"))?;
        let mut journal = Self {
            dir: dir.to_path_buf(),
            files: [a, b],
            live,
            generation: generations[live],
            sequence: newest.sequence,
            durable_sequence: Arc::new(AtomicU64::new(0)),
            position: 0,
            states: newest.states,
            must_compact: true,
        };
        // A new file at every start: what stands behind the end that was read never counts again, and what
        // was only in the page cache becomes durable.
        journal.compact()?;
        // A whole journal is told from one whose creation was interrupted by its third generation.
        while journal.generation < 3 {
            journal.compact()?;
        }
        let states = journal.states.clone();
        Ok((journal, states))
    }

    /// Notes new states, all in one write; not yet durable. After an error nothing was noted, and it may
    /// be tried again.
    pub fn put(&mut self, states: &[(u64, HardState)]) -> Result<(), StorageError> {
        if states.is_empty() {
            return Ok(());
        }
        self.write(Kind::Put, states)?;
        self.states.extend(states.iter().copied());
        Ok(())
    }

    /// Forgets a group; not yet durable.
    pub fn remove(&mut self, group: u64) -> Result<(), StorageError> {
        if !self.states.contains_key(&group) {
            return Ok(());
        }
        self.write(Kind::Remove, &[(group, HardState::default())])?;
        self.states.remove(&group);
        Ok(())
    }

    /// What was last put for a group, durable or not.
    pub fn get(&self, group: u64) -> Option<HardState> {
        self.states.get(&group).copied()
    }

    /// What must be synced for all states put so far to be durable.
    pub fn sync_point(&self) -> JournalSyncPoint {
        JournalSyncPoint {
            file: Arc::clone(&self.files[self.live]),
            sequence: self.sequence,
            durable_sequence: Arc::clone(&self.durable_sequence),
        }
    }

    fn write(&mut self, kind: Kind, states: &[(u64, HardState)]) -> Result<(), StorageError> {
        let bytes = (RECORD_HEADER_BYTES + states.len() * STATE_BYTES) as u64;
        if self.must_compact || self.position + bytes > self.files[self.live].len() {
            self.compact()?;
            let path = self.path(self.live);
            // Only a put of more groups than ever were is larger than the room behind a snapshot.
            self.files[self.live]
                .allocate(self.position + bytes)
                .io_context("allocate space in", &path)?;
        }
        let record = self.record(kind, states, self.sequence + 1);
        let written = self.files[self.live].write_at(self.position, &[&record]);
        if written.is_err() {
            self.must_compact = true;
        }
        written.io_context("write", &self.path(self.live))?;
        self.sequence += 1;
        self.position += bytes;
        Ok(())
    }

    fn record(&self, kind: Kind, states: &[(u64, HardState)], sequence: u64) -> Vec<u8> {
        let durable = self.durable_sequence.load(Ordering::Acquire);
        encode_record(kind, states, self.generation, sequence, durable)
    }

    /// Writes all states into the other file, durably, and makes that the live one.
    fn compact(&mut self) -> Result<(), StorageError> {
        let next = 1 - self.live;
        let path = self.path(next);
        let file = Arc::clone(&self.files[next]);
        let states: Vec<(u64, HardState)> = self.states.iter().map(|(g, s)| (*g, *s)).collect();
        let generation = self.generation + 1;
        let sequence = self.sequence + 1;
        let record = encode_record(Kind::Snapshot, &states, generation, sequence, 0);
        let position = HEADER_BYTES + record.len() as u64;
        let room = HEADER_BYTES + record.len() as u64 * ROOM_FACTOR;
        file.allocate(room.max(FILE_BYTES_MIN)).io_context("allocate space in", &path)?;
        // The attempt uses its numbers up, so that a failed one is never mistaken for the next.
        self.generation = generation;
        self.sequence = sequence;
        file.write_at(HEADER_BYTES, &[&record]).io_context("write", &path)?;
        file.sync().io_context("sync", &path)?;
        // Only now does the file say that it is the newer one.
        file.write_at(0, &[&encode_header(generation)]).io_context("write", &path)?;
        file.sync().io_context("sync", &path)?;
        self.live = next;
        self.position = position;
        self.must_compact = false;
        self.durable_sequence.fetch_max(sequence, Ordering::AcqRel);
        Ok(())
    }

    fn path(&self, at: usize) -> PathBuf {
        self.dir.join(FILE_NAMES[at])
    }
}

fn encode_header(generation: u64) -> [u8; 24] {
    let mut bytes = [0; 24];
    bytes[0..8].copy_from_slice(&MAGIC);
    bytes[8..16].copy_from_slice(&generation.to_le_bytes());
    let crc = crc32fast::hash(&bytes[..16]);
    bytes[16..20].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// The generation a file says it is; 0 if its header was never written. Written in one sector, it can
/// only be whole or not there: anything else is corruption.
fn read_generation(file: &dyn DiskFile, path: &Path) -> Result<u64, StorageError> {
    if file.len() < HEADER_BYTES {
        return Ok(0);
    }
    let bytes = file.read(0, 24).io_context("read", path)?;
    if bytes.iter().all(|byte| *byte == 0) {
        return Ok(0);
    }
    let generation = u64_at(&bytes, 8);
    let version = bytes[7];
    let intact = u32_at(&bytes, 16) == crc32fast::hash(&bytes[..16]);
    if intact && bytes[..7] == MAGIC[..7] && version > VERSION {
        return Err(StorageError::UnsupportedVersion {
            path: path.to_path_buf(),
            version: version.into(),
            version_max: VERSION.into(),
        });
    }
    let possible = (1..=NUMBER_MAX).contains(&generation);
    if !possible || bytes[..] != encode_header(generation) {
        return Err(StorageError::corrupt(path, 0, "damaged journal header"));
    }
    Ok(generation)
}

fn encode_record(
    kind: Kind,
    states: &[(u64, HardState)],
    generation: u64,
    sequence: u64,
    durable_sequence: u64,
) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(RECORD_HEADER_BYTES + states.len() * STATE_BYTES);
    bytes.extend_from_slice(&RECORD_MAGIC.to_le_bytes());
    bytes.extend_from_slice(&[kind as u8, 0, 0, 0]);
    bytes.extend_from_slice(&generation.to_le_bytes());
    bytes.extend_from_slice(&sequence.to_le_bytes());
    bytes.extend_from_slice(&durable_sequence.to_le_bytes());
    // More groups than that do not fit into a node's memory.
    let count = u32::try_from(states.len()).unwrap_or(u32::MAX);
    bytes.extend_from_slice(&count.to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    for (group, state) in states {
        for word in [*group, state.term, state.vote, state.commit] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
    }
    let crc = record_checksum(&bytes);
    bytes[36..40].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// Of everything but the checksum itself.
fn record_checksum(record: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&record[..36]);
    hasher.update(&record[RECORD_HEADER_BYTES..]);
    hasher.finalize()
}

/// A valid record at the start of some bytes.
struct Record {
    kind: Kind,
    sequence: u64,
    durable_sequence: u64,
    states: Vec<(u64, HardState)>,
    bytes: usize,
}

fn decode_record(bytes: &[u8], generation: u64) -> Option<Record> {
    let header = bytes.get(..RECORD_HEADER_BYTES)?;
    if u32_at(header, 0) != RECORD_MAGIC || u64_at(header, 8) != generation {
        return None;
    }
    let kind = Kind::from_byte(header[4])?;
    let count = usize::try_from(u32_at(header, 32)).ok()?;
    let len = count.checked_mul(STATE_BYTES)?.checked_add(RECORD_HEADER_BYTES)?;
    let record = bytes.get(..len)?;
    if u32_at(header, 36) != record_checksum(record) || u64_at(header, 16) > NUMBER_MAX {
        return None;
    }
    let states = record[RECORD_HEADER_BYTES..]
        .chunks_exact(STATE_BYTES)
        .map(|state| {
            let (term, vote) = (u64_at(state, 8), u64_at(state, 16));
            (u64_at(state, 0), HardState { term, vote, commit: u64_at(state, 24) })
        })
        .collect();
    Some(Record {
        kind,
        sequence: u64_at(header, 16),
        durable_sequence: u64_at(header, 24),
        states,
        bytes: len,
    })
}

/// What the records of a file lead to.
#[derive(Default)]
struct Loaded {
    sequence: u64,
    states: BTreeMap<u64, HardState>,
}

fn load(file: &dyn DiskFile, path: &Path, generation: u64) -> Result<Loaded, StorageError> {
    let len =
        usize::try_from(file.len()).map_err(|_| StorageError::corrupt(path, 0, "too large"))?;
    let bytes: Bytes = file.read(0, len).io_context("read", path)?;
    let mut at = 24;
    // The snapshot was durable before the header said that it is there.
    let snapshot = decode_record(&bytes[at..], generation)
        .filter(|record| record.kind == Kind::Snapshot)
        .ok_or_else(|| StorageError::corrupt(path, 0, "damaged snapshot of hard states"))?;
    let mut loaded = Loaded { sequence: snapshot.sequence, states: BTreeMap::new() };
    loaded.states.extend(snapshot.states);
    at += snapshot.bytes;
    while let Some(record) = decode_record(&bytes[at..], generation)
        .filter(|record| record.sequence == loaded.sequence + 1 && record.kind != Kind::Snapshot)
    {
        loaded.sequence = record.sequence;
        at += record.bytes;
        match record.kind {
            Kind::Remove => record.states.iter().for_each(|(group, _)| {
                loaded.states.remove(group);
            }),
            Kind::Put | Kind::Snapshot => loaded.states.extend(record.states),
        }
    }
    // Records reach the disk in any order: one that says more had been durable makes the gap corruption.
    let mut next = at;
    while next < bytes.len() {
        let record = decode_record(&bytes[next..], generation);
        if record.is_some_and(|record| record.durable_sequence > loaded.sequence) {
            let detail = format!("hard states after record {} are damaged", loaded.sequence);
            return Err(StorageError::corrupt(path, 0, detail));
        }
        next += 8;
    }
    Ok(loaded)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..].first_chunk().map_or(0, |chunk| u32::from_le_bytes(*chunk))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes[at..].first_chunk().map_or(0, |chunk| u64::from_le_bytes(*chunk))
}

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;

#[cfg(test)]
mod tests;
