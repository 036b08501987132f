//! The compacted part of a partition: immutable segments below the dense log, replaced all at once.
//!
//! Owns the directory `compacted` beside the log: its segment files (frames as in the log, but with gaps in indexes and
//! offsets) and the manifest that names them. What the manifest does not name does not count and is removed. Never
//! looks into a payload, never decides what is dropped, and never touches the log.
//!
//! The order of a replacement: new files are written and synced, then their names, then the manifest; from there on they are
//! the compacted part. The caller then drops the log's prefix. After a crash in between the caller finds that the log begins
//! before `end` and drops the prefix then.

mod manifest;
mod receive;
mod scrub;
#[cfg(test)]
mod tests;
mod writer;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::RwLock;

pub use manifest::{CompactedManifest, CompactedSegment};
pub use receive::{CompactedReceiver, Wanted};
pub use writer::{CompactedWriter, StagedCompaction};

use super::frame::{DecodedSegmentHeader, SEGMENT_HEADER_BYTES, SegmentHeader};
use super::index::{Points, SparsePoint};
use super::segment::{Cursor, Found, Segment};
use super::state::OpenSealed;
use super::types::{LogOptions, LogStart, StoredEntry};
use crate::disk::Disk;
use crate::error::{IoContext, StorageError};

/// The directory beside a log's segments.
const DIR_NAME: &str = "compacted";
const EXTENSION: &str = "log";
/// A read that loses its files to a replacement looks again so many times.
const LOOKS_MAX: usize = 10;

/// The compacted part of one partition: its one owner, which replaces segments.
///
/// Invariant: what `state` names is on disk and named by the manifest there, durably.
#[derive(Debug)]
pub struct Compacted {
    shared: Arc<Shared>,
}

/// Read at once when files are verified.
const VERIFY_BYTES: u64 = 1 << 20;

/// Reads a compacted part. Cheap to clone; sees replacements at once.
#[derive(Clone, Debug)]
pub struct CompactedReader {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    /// Numbers of files are given out once while the process lives.
    next_file: AtomicU64,
    state: RwLock<Arc<State>>,
    open: OpenSealed,
    /// The part was closed: what is still being staged for it comes to nothing, and its files are no longer ours to touch.
    is_closed: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    /// Counts replacements.
    version: u64,
    /// `None` before anything was compacted.
    manifest: Option<CompactedManifest>,
    /// As the manifest names them.
    segments: Vec<Arc<Segment>>,
}

impl State {
    fn infos(&self) -> &[CompactedSegment] {
        self.manifest.as_ref().map_or(&[], |manifest| &manifest.segments)
    }
}

impl Compacted {
    /// Opens the compacted part beside the log in `log_dir`; there may be none yet. Removes files that do not count. `open`
    /// bounds the files that are kept open, as `LogOptions::open_sealed` does.
    pub fn open(
        disk: Arc<dyn Disk>,
        log_dir: &Path,
        open: OpenSealed,
    ) -> Result<Self, StorageError> {
        let dir = log_dir.join(DIR_NAME);
        let manifest = CompactedManifest::load(&*disk, &dir)?;
        let named = |file: u64| {
            manifest.as_ref().is_some_and(|m| m.segments.iter().any(|segment| segment.file == file))
        };
        let mut next_file = 1;
        for name in disk.list(&dir).io_context("list", &dir)? {
            let file = parse_file_name(&name);
            next_file = next_file.max(file.map_or(0, |file| file.saturating_add(1)));
            if name != manifest::FILE_NAME && !file.is_some_and(named) {
                let path = dir.join(&name);
                disk.remove_file(&path).io_context("remove", &path)?;
            }
        }
        let infos = manifest.as_ref().map_or(&[][..], |manifest| &manifest.segments);
        let segments = infos
            .iter()
            .map(|info| open_segment(&*disk, &dir, info))
            .collect::<Result<Vec<_>, StorageError>>()?;
        let is_there = manifest.is_some();
        let state = State { version: 0, manifest, segments };
        let shared = Shared {
            disk,
            dir,
            next_file: AtomicU64::new(next_file),
            state: RwLock::new(Arc::new(state)),
            open,
            is_closed: AtomicBool::new(false),
        };
        if is_there {
            // A process that ended in the middle may have left a manifest whose name is not durable yet, and what it
            // stands for is about to be dropped from the log.
            shared.sync_names()?;
        }
        Ok(Self { shared: Arc::new(shared) })
    }

    /// A reader of this part, which also stages replacements.
    pub fn reader(&self) -> CompactedReader {
        CompactedReader { shared: Arc::clone(&self.shared) }
    }

    /// The manifest, once something was compacted.
    pub fn manifest(&self) -> Option<CompactedManifest> {
        self.shared.state().manifest.clone()
    }

    /// Where the dense log goes on; `None` before anything was compacted.
    pub fn end(&self) -> Option<LogStart> {
        self.shared.state().manifest.as_ref().map(|manifest| manifest.end)
    }

    /// Reads every file and compares it with the manifest. `Corrupt` at the first that is not what was written.
    pub fn verify(&self) -> Result<(), StorageError> {
        let shared = &self.shared;
        for info in shared.state().infos() {
            let path = shared.dir.join(file_name(info.file));
            let file = shared.disk.open(&path, 0).io_context("open", &path)?;
            let mut hasher = crc32fast::Hasher::new();
            let mut from = 0;
            while from < info.bytes {
                let now = (info.bytes - from).min(VERIFY_BYTES);
                let len = usize::try_from(now).unwrap_or(usize::MAX);
                hasher.update(&file.read(from, len).io_context("read", &path)?);
                from += now;
            }
            if hasher.finalize() != info.checksum {
                let detail = "it does not have the checksum that its manifest says";
                return Err(StorageError::corrupt(&path, info.first_index, detail));
            }
        }
        Ok(())
    }

    /// Whether this was staged for this part as it is now: not for one that was opened before, nor before another replacement.
    pub fn accepts(&self, staged: &StagedCompaction) -> bool {
        staged.is_of(&self.shared) && staged.is_current()
    }

    /// Makes what was staged the compacted part; durable when it returns, and after a crash all or nothing of it has
    /// happened. Readers keep what they hold. After an error it may be tried again; what was staged may count once the part is opened again.
    pub fn install(&mut self, staged: &mut StagedCompaction) -> Result<(), StorageError> {
        let shared = &self.shared;
        assert!(staged.is_of(shared), "a replacement is installed where it was staged");
        let manifest = staged.manifest().clone();
        let segments = manifest
            .segments
            .iter()
            .map(|info| open_segment(&*shared.disk, &shared.dir, info))
            .collect::<Result<Vec<_>, StorageError>>()?;
        // Whatever comes of it, these files may be named by the manifest from here on.
        staged.keep();
        manifest.store(&*shared.disk, &shared.dir)?;
        let old = {
            let mut state = shared.state.write();
            let new = State { version: state.version + 1, manifest: Some(manifest), segments };
            std::mem::replace(&mut *state, Arc::new(new))
        };
        shared.open.forget(old.segments.iter());
        for segment in &old.segments {
            segment.retire();
            // Best effort: what stays behind is not named by the manifest.
            let _ = shared.disk.remove_file(&segment.path);
        }
        Ok(())
    }
}

impl Drop for Compacted {
    fn drop(&mut self) {
        self.shared.is_closed.store(true, Ordering::Release);
    }
}

/// Checks that a file is what the manifest says, as far as that costs no reading of all of it.
fn open_segment(
    disk: &dyn Disk,
    dir: &Path,
    info: &CompactedSegment,
) -> Result<Arc<Segment>, StorageError> {
    let path = dir.join(file_name(info.file));
    let corrupt = |detail: &str| StorageError::corrupt(&path, info.first_index, detail);
    if !disk.exists(&path) {
        return Err(corrupt("the manifest names this file, and it is missing"));
    }
    let file = disk.open(&path, 0).io_context("open", &path)?;
    if file.len() < info.bytes {
        return Err(corrupt("the file is shorter than the manifest says"));
    }
    let bytes = file.read(0, SEGMENT_HEADER_BYTES).io_context("read", &path)?;
    match SegmentHeader::decode(&bytes) {
        DecodedSegmentHeader::Valid(header) => Ok(Arc::new(Segment::new(path, header, None))),
        DecodedSegmentHeader::Newer(version) => Err(StorageError::UnsupportedVersion {
            path,
            version,
            version_max: SegmentHeader::VERSION_MAX,
        }),
        DecodedSegmentHeader::Blank | DecodedSegmentHeader::Damaged => {
            Err(corrupt("damaged segment header"))
        }
    }
}

fn file_name(file: u64) -> String {
    format!("{file:020}.{EXTENSION}")
}

fn parse_file_name(name: &str) -> Option<u64> {
    let (number, extension) = name.split_once('.')?;
    let digits = number.len() == 20 && number.bytes().all(|byte| byte.is_ascii_digit());
    (digits && extension == EXTENSION).then(|| number.parse().ok())?
}

impl Shared {
    fn state(&self) -> Arc<State> {
        Arc::clone(&self.state.read())
    }

    /// A name for a new file, and the directory to hold it.
    fn new_file(&self) -> Result<(u64, PathBuf), StorageError> {
        if self.is_closed.load(Ordering::Acquire) {
            return Err(io::Error::from(io::ErrorKind::NotFound)).io_context("add to", &self.dir);
        }
        if !self.disk.exists(&self.dir) {
            self.disk.create_dir_all(&self.dir).io_context("create", &self.dir)?;
        }
        let file = self.next_file.fetch_add(1, Ordering::Relaxed);
        Ok((file, self.dir.join(file_name(file))))
    }

    /// Makes the names of new files durable, and that of the directory they are in.
    fn sync_names(&self) -> Result<(), StorageError> {
        if !self.disk.exists(&self.dir) {
            self.disk.create_dir_all(&self.dir).io_context("create", &self.dir)?;
        }
        for dir in [Some(&*self.dir), self.dir.parent()].into_iter().flatten() {
            self.disk.sync_dir(dir).io_context("sync directory", dir)?;
        }
        Ok(())
    }
}

impl CompactedReader {
    /// The manifest, once something was compacted.
    pub fn manifest(&self) -> Option<CompactedManifest> {
        self.shared.state().manifest.clone()
    }

    /// The first offset that is not the compacted part's: 0 before anything was compacted.
    pub fn end_offset(&self) -> u64 {
        self.shared.state().manifest.as_ref().map_or(0, |manifest| manifest.end.next_offset)
    }

    /// Bytes of all files.
    pub fn size_bytes(&self) -> u64 {
        self.shared.state().manifest.as_ref().map_or(0, CompactedManifest::bytes)
    }

    /// Begins a replacement of all segments.
    pub fn writer(&self, segment_bytes: u64) -> CompactedWriter {
        CompactedWriter::new(Arc::clone(&self.shared), segment_bytes)
    }

    /// Begins to take over the segments of another replica's manifest.
    pub fn receiver(&self, theirs: CompactedManifest) -> CompactedReceiver {
        CompactedReceiver::new(Arc::clone(&self.shared), theirs)
    }

    /// Part of a file, for another replica; `None` if the file is not (or no longer) part of it.
    pub fn read_file(
        &self,
        file: u64,
        from: u64,
        bytes_max: u64,
    ) -> Result<Option<Bytes>, StorageError> {
        let state = self.shared.state();
        let found = state.infos().iter().zip(&state.segments).find(|(info, _)| info.file == file);
        let Some((info, segment)) = found.filter(|(info, _)| from < info.bytes) else {
            return Ok(None);
        };
        let bytes = usize::try_from(bytes_max.min(info.bytes - from)).unwrap_or(usize::MAX);
        match segment.file(&*self.shared.disk) {
            Ok(file) => {
                self.shared.open.note(segment);
                file.read(from, bytes).map(Some).io_context("read", &segment.path)
            }
            Err(_) if segment.is_retired() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The entries that hold offsets from `from` on, or the next ones behind a gap, and end at or below `to`: as many as
    /// hold at most `bytes_max` bytes of payload together, and at least one if there is any.
    pub fn read_offsets(
        &self,
        from: u64,
        to: u64,
        bytes_max: u64,
    ) -> Result<Vec<StoredEntry>, StorageError> {
        self.look(|state| {
            let infos = state.infos();
            let first = infos.partition_point(|info| info.end_offset <= from);
            let (mut out, mut left) = (Vec::new(), bytes_max);
            for (info, segment) in infos.iter().zip(&state.segments).skip(first) {
                let mut walk = self.walk(info, segment, |points| points.before_offset(from))?;
                while let Some(found) = walk.next()? {
                    if found.header.end_offset() <= from {
                        continue;
                    }
                    let bytes = u64::from(found.header.payload_len);
                    if found.header.end_offset() > to || (bytes > left && !out.is_empty()) {
                        return Ok(out);
                    }
                    left = left.saturating_sub(bytes);
                    out.push(walk.verified(found)?);
                }
                if left == 0 {
                    break;
                }
            }
            Ok(out)
        })
    }

    /// The first entry whose greatest create time is at least `timestamp_ms`; `None` if there is none.
    pub fn entry_at_time(&self, timestamp_ms: i64) -> Result<Option<StoredEntry>, StorageError> {
        self.look(|state| {
            for (info, segment) in state.infos().iter().zip(&state.segments) {
                if info.max_timestamp_ms < timestamp_ms {
                    continue;
                }
                let mut walk =
                    self.walk(info, segment, |points| points.before_time(timestamp_ms))?;
                while let Some(found) = walk.next()? {
                    if found.header.meta.max_timestamp_ms >= timestamp_ms {
                        return walk.verified(found).map(Some);
                    }
                }
            }
            Ok(None)
        })
    }

    /// Reads, and reads again if the segments were replaced meanwhile.
    fn look<T>(&self, read: impl Fn(&State) -> Result<T, StorageError>) -> Result<T, StorageError> {
        let mut looks = 0;
        loop {
            let state = self.shared.state();
            let outcome = read(&state);
            looks += 1;
            if outcome.is_ok() || looks == LOOKS_MAX || self.shared.state().version == state.version
            {
                return outcome;
            }
        }
    }

    fn walk<'a>(
        &self,
        info: &'a CompactedSegment,
        segment: &'a Arc<Segment>,
        seek: impl Fn(&Points) -> Option<u64>,
    ) -> Result<Walk<'a>, StorageError> {
        let file = segment.file(&*self.shared.disk)?;
        self.shared.open.note(segment);
        let begin = SEGMENT_HEADER_BYTES as u64;
        let at = |position| {
            let cursor = Cursor::new(Arc::clone(&file), segment.identity(), position, info.bytes);
            Walk { info, segment, cursor }
        };
        let points = match segment.points() {
            Some(points) => points,
            None => segment.set_points(at(begin).points()?),
        };
        let position = seek(&points.read()).unwrap_or(begin);
        Ok(at(position))
    }
}

/// A walk over the frames of one compacted segment.
struct Walk<'a> {
    info: &'a CompactedSegment,
    segment: &'a Segment,
    cursor: Cursor,
}

impl Walk<'_> {
    /// The next frame; `None` at the end. Anything else in its place is damage: the whole file had been durable.
    fn next(&mut self) -> Result<Option<Found>, StorageError> {
        if self.cursor.position() == self.info.bytes {
            return Ok(None);
        }
        let path = &self.segment.path;
        let found = self.cursor.next().io_context("read", path)?;
        let detail = || format!("no valid frame at byte {}", self.cursor.position());
        found.map(Some).ok_or_else(|| StorageError::corrupt(path, self.info.first_index, detail()))
    }

    fn verified(&self, found: Found) -> Result<StoredEntry, StorageError> {
        let meta = found.header.meta;
        if !found.payload_is_intact() {
            let detail = "wrong payload checksum";
            return Err(StorageError::corrupt(&self.segment.path, meta.index, detail));
        }
        Ok(StoredEntry { meta, base_offset: found.header.base_offset, payload: found.payload })
    }

    /// The sparse index, from the frames.
    fn points(mut self) -> Result<Points, StorageError> {
        let interval = LogOptions::default().index_interval_bytes;
        let mut points = Points::default();
        let mut max_timestamp_before_ms = i64::MIN;
        while let Some(found) = self.next()? {
            let meta = &found.header.meta;
            let point = SparsePoint {
                position: found.position,
                index: meta.index,
                base_offset: found.header.base_offset,
                max_timestamp_before_ms,
            };
            points.note(interval, found.position, point);
            max_timestamp_before_ms = max_timestamp_before_ms.max(meta.max_timestamp_ms);
        }
        Ok(points)
    }
}
