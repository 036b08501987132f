//! One segment file: creating it, finding it again, walking its frames.
//!
//! Knows bytes and checksums; knows nothing of what makes a log out of several segments.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};

use super::frame::{
    FRAME_HEADER_BYTES, FrameHeader, SEGMENT_HEADER_BYTES, SegmentHeader, frame_bytes,
};
use super::index::{Points, SparsePoint};
use super::types::{Epoch, LogOptions, LogStart, SegmentInfo, StoredEntry};
use crate::disk::{Disk, DiskFile, Lease};
use crate::error::{IoContext, StorageError};

/// A new file gets so much space at first: an empty partition costs little.
const FIRST_STEP_BYTES: u64 = 32 << 10;
/// How much of a file is looked at at once; a slice of a mapping, so the size costs nothing there.
const WINDOW_BYTES: u64 = 256 << 10;
/// The first window where a whole segment is walked, to the end of a page: of one with next to nothing in it, what is only
/// reserved is not read, nor kept in memory as zeroes from then on.
const FIRST_WINDOW_BYTES: u64 = 4 << 10;

/// A segment of a log. What is in it stands in the log's state; this is how to get at it.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) path: PathBuf,
    pub(super) header: SegmentHeader,
    handle: Mutex<Handle>,
    /// The sparse index; loaded with the file, dropped with it.
    points: RwLock<Option<Arc<RwLock<Points>>>>,
}

/// A segment's way to its file.
#[derive(Debug, Default)]
struct Handle {
    /// Open while the segment is active or was read lately.
    file: Option<Arc<dyn DiskFile>>,
    /// Of every time the file was opened, as far as somebody may still hold it; `None`: nobody can tell.
    leases: Vec<Option<Lease>>,
    /// The segment left the log: its file is not opened again.
    retired: bool,
}

impl Handle {
    fn open(&mut self, file: &Arc<dyn DiskFile>) {
        self.leases.retain(|lease| lease.as_ref().is_none_or(Lease::is_held));
        self.leases.push(file.lease());
        self.file = Some(Arc::clone(file));
    }
}

impl Segment {
    pub(super) fn new(
        path: PathBuf,
        header: SegmentHeader,
        opened: Option<(Arc<dyn DiskFile>, Points)>,
    ) -> Self {
        let (file, points) = opened.unzip();
        let points = points.map(|points| Arc::new(RwLock::new(points)));
        let mut handle = Handle::default();
        if let Some(file) = &file {
            handle.open(file);
        }
        Self { path, header, handle: Mutex::new(handle), points: RwLock::new(points) }
    }

    pub(super) fn identity(&self) -> u64 {
        self.header.identity()
    }

    /// The file, opened now if it is not.
    pub(super) fn file(&self, disk: &dyn Disk) -> Result<Arc<dyn DiskFile>, StorageError> {
        let mut handle = self.handle.lock();
        if let Some(file) = &handle.file {
            return Ok(Arc::clone(file));
        }
        if handle.retired {
            return Err(io::Error::from(io::ErrorKind::NotFound)).io_context("open", &self.path);
        }
        // A sealed segment never grows: the length it has is all that needs mapping, and 1 asks for it.
        let opened = disk.open(&self.path, 1).io_context("open", &self.path)?;
        handle.open(&opened);
        Ok(opened)
    }

    /// Closes the file for good. True if nobody holds it or a slice of it, nor ever will: then, and only
    /// then, it may be written over.
    pub(super) fn retire(&self) -> bool {
        let mut handle = self.handle.lock();
        handle.retired = true;
        handle.file = None;
        *self.points.write() = None;
        handle.leases.iter().all(|lease| lease.as_ref().is_some_and(|lease| !lease.is_held()))
    }

    pub(super) fn is_retired(&self) -> bool {
        self.handle.lock().retired
    }

    /// The sparse index, if it is in memory.
    pub(super) fn points(&self) -> Option<Arc<RwLock<Points>>> {
        self.points.read().clone()
    }

    pub(super) fn set_points(&self, points: Points) -> Arc<RwLock<Points>> {
        let points = Arc::new(RwLock::new(points));
        *self.points.write() = Some(Arc::clone(&points));
        points
    }

    /// Lets the file and the sparse index go; both come back when they are needed.
    pub(super) fn close(&self) {
        self.handle.lock().file = None;
        *self.points.write() = None;
    }

    pub(super) fn index_path(&self) -> PathBuf {
        self.path.with_extension("index")
    }
}

/// The name of a segment file.
pub(super) fn file_name(sequence: u64, first_index: u64) -> String {
    format!("{sequence:020}-{first_index:020}.log")
}

/// The sequence and first index in the name of a file with this extension.
pub(super) fn parse_file_name(name: &str, extension: &str) -> Option<(u64, u64)> {
    let (sequence, first_index) =
        name.strip_suffix(extension)?.strip_suffix('.')?.split_once('-')?;
    let digits = |text: &str| text.len() == 20 && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(sequence) || !digits(first_index) {
        return None;
    }
    Some((sequence.parse().ok()?, first_index.parse().ok()?))
}

/// The most a segment file may come to hold: one large frame may exceed `segment_bytes`.
pub(super) fn capacity(options: &LogOptions) -> u64 {
    let one_frame = frame_bytes(u64::from(options.payload_bytes_max));
    options.segment_bytes.max(SEGMENT_HEADER_BYTES as u64 + one_frame)
}

/// Grows `file` so that it reaches `end`, in steps that double up to the configured one.
pub(super) fn reserve(file: &dyn DiskFile, end: u64, options: &LogOptions) -> io::Result<()> {
    let len = file.len();
    if end <= len {
        return Ok(());
    }
    let step = len.clamp(FIRST_STEP_BYTES, options.allocate_step_bytes.max(FIRST_STEP_BYTES));
    // No further than a full segment, unless this very frame needs it.
    file.allocate((len + step).min(options.segment_bytes).max(end))
}

/// How far the creation of a segment got before it failed.
#[derive(Debug)]
pub(super) struct CreateFailure {
    pub(super) error: StorageError,
    /// The header may be on disk: the file may count when the log is opened again.
    pub(super) header_written: bool,
}

/// Creates the file of a segment and writes its header; not yet durable. After a failure the file is
/// removed, as far as that is possible.
pub(super) fn create_file(
    disk: &dyn Disk,
    path: &Path,
    header: &SegmentHeader,
    options: &LogOptions,
) -> Result<Arc<dyn DiskFile>, CreateFailure> {
    let clean = |error| CreateFailure { error, header_written: false };
    let file = disk.create(path, capacity(options)).io_context("create", path).map_err(clean)?;
    let reserved = reserve(&*file, SEGMENT_HEADER_BYTES as u64, options);
    let result = match reserved.io_context("allocate space in", path) {
        Err(error) => Err(clean(error)),
        Ok(()) => file
            .write_at(0, &[&header.encode()])
            .io_context("write", path)
            .map_err(|error| CreateFailure { error, header_written: true }),
    };
    match result {
        Ok(()) => Ok(file),
        Err(failure) => {
            // Best effort: a file that stays behind has no header, or is hidden by the next one.
            let _ = disk.remove_file(path);
            Err(failure)
        }
    }
}

/// Makes a file that held another segment the file of a new one. After a failure neither is left, as far as
/// that is possible.
pub(super) fn reuse_file(
    disk: &dyn Disk,
    spare: &Path,
    path: &Path,
    header: &SegmentHeader,
    options: &LogOptions,
) -> Result<Arc<dyn DiskFile>, CreateFailure> {
    // The header of a spare is blank: under its new name, too, the file counts for nothing before it has one.
    let opened = disk
        .rename(spare, path)
        .io_context("rename into place", path)
        .and_then(|()| disk.open(path, capacity(options)).io_context("open", path));
    let result =
        opened.map_err(|error| CreateFailure { error, header_written: false }).and_then(|file| {
            match file.write_at(0, &[&header.encode()]).io_context("write", path) {
                Ok(()) => Ok(file),
                Err(error) => Err(CreateFailure { error, header_written: true }),
            }
        });
    if result.is_err() {
        let _ = disk.remove_file(spare);
        let _ = disk.remove_file(path);
    }
    result
}

/// A frame that was found.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) position: u64,
    pub(super) header: FrameHeader,
    pub(super) payload: Bytes,
}

impl Found {
    pub(super) fn end_position(&self) -> u64 {
        self.position + self.header.frame_bytes()
    }

    pub(super) fn into_entry(self) -> StoredEntry {
        let FrameHeader { meta, base_offset, .. } = self.header;
        StoredEntry { meta, base_offset, payload: self.payload }
    }

    pub(super) fn payload_is_intact(&self) -> bool {
        self.header.payload_sum.is_of(&self.payload)
    }
}

/// Walks the frames of a file from one position to another, through windows that are slices of it.
#[derive(Debug)]
pub(super) struct Cursor {
    file: Arc<dyn DiskFile>,
    identity: u64,
    position: u64,
    end: u64,
    window: Bytes,
    window_start: u64,
    /// Size of the next window.
    window_bytes: u64,
}

impl Cursor {
    /// Nothing at or after `end` is touched.
    pub(super) fn new(file: Arc<dyn DiskFile>, identity: u64, position: u64, end: u64) -> Self {
        Self {
            file,
            identity,
            position,
            end,
            window: Bytes::new(),
            window_start: position,
            window_bytes: WINDOW_BYTES,
        }
    }

    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// The next frame with a valid header that fits; `None` at the end and at anything else. The payload
    /// is not checked, nor looked at.
    pub(super) fn next(&mut self) -> io::Result<Option<Found>> {
        let header_end = self.position + FRAME_HEADER_BYTES as u64;
        if header_end > self.end {
            return Ok(None);
        }
        let header = self.slice(self.position, header_end)?;
        let Some(header) = FrameHeader::decode(&header, self.identity) else {
            return Ok(None);
        };
        let frame_end = self.position + header.frame_bytes();
        if frame_end > self.end {
            return Ok(None);
        }
        let payload = self.slice(header_end, header_end + u64::from(header.payload_len))?;
        let found = Found { position: self.position, header, payload };
        self.position = frame_end;
        Ok(Some(found))
    }

    /// The bytes from `from` to `to`, both within the walk's range.
    fn slice(&mut self, from: u64, to: u64) -> io::Result<Bytes> {
        let window_end = self.window_start + self.window.len() as u64;
        if from < self.window_start || to > window_end {
            let end = to.max(page_end(from, self.window_bytes)).min(self.end);
            let len = usize::try_from(end - from).map_err(io::Error::other)?;
            self.window = self.file.read(from, len)?;
            self.window_start = from;
            self.window_bytes = wider(self.window_bytes);
        }
        let begin = usize::try_from(from - self.window_start).map_err(io::Error::other)?;
        let end = usize::try_from(to - self.window_start).map_err(io::Error::other)?;
        Ok(self.window.slice(begin..end))
    }
}

/// Where a window that begins at `from` ends: with a page.
fn page_end(from: u64, bytes: u64) -> u64 {
    (from + bytes) / FIRST_WINDOW_BYTES * FIRST_WINDOW_BYTES
}

/// The size of the window after one of `bytes`.
fn wider(bytes: u64) -> u64 {
    (bytes * 4).min(WINDOW_BYTES)
}

/// What a walk over a whole segment found.
#[derive(Clone, Debug)]
pub(super) struct Scan {
    pub(super) info: SegmentInfo,
    pub(super) last_term: u64,
    pub(super) epochs: Vec<Epoch>,
    pub(super) points: Points,
    pub(super) frames: u64,
    /// The greatest durable index that any of these frames claims, or the index file that speaks for them; 0 if none does.
    pub(super) claim: u64,
    /// Append time of the first entry, if its frame was looked at.
    pub(super) first_append_time_ms: Option<i64>,
}

impl Scan {
    /// A segment without a frame.
    pub(super) fn empty(start: LogStart) -> Self {
        Self {
            info: SegmentInfo {
                first_index: start.first_index,
                end_index: start.first_index,
                base_offset: start.next_offset,
                end_offset: start.next_offset,
                bytes: SEGMENT_HEADER_BYTES as u64,
                last_append_time_ms: i64::MIN,
                max_timestamp_ms: i64::MIN,
                start,
            },
            last_term: start.prev_term,
            epochs: Vec::new(),
            points: Points::default(),
            frames: 0,
            claim: 0,
            first_append_time_ms: None,
        }
    }

    /// Takes in the next frame. False, and nothing taken, if it does not continue the segment.
    fn push(&mut self, found: &Found, interval: u32) -> bool {
        let meta = &found.header.meta;
        let follows = meta.index == self.info.end_index
            && found.header.base_offset == self.info.end_offset
            && meta.term >= self.last_term;
        let end_index = meta.index.checked_add(1);
        let end_offset = found.header.base_offset.checked_add(u64::from(meta.offset_span));
        let (true, Some(end_index), Some(end_offset)) = (follows, end_index, end_offset) else {
            return false;
        };
        self.points.note(interval, found.position, self.point(found));
        if meta.term > self.last_term || self.epochs.is_empty() {
            self.epochs.push(Epoch {
                term: meta.term,
                first_index: meta.index,
                base_offset: found.header.base_offset,
            });
        }
        self.last_term = meta.term;
        self.info.end_index = end_index;
        self.info.end_offset = end_offset;
        self.info.bytes = found.end_position();
        self.info.last_append_time_ms = meta.append_time_ms;
        self.first_append_time_ms.get_or_insert(meta.append_time_ms);
        if meta.offset_span > 0 {
            self.info.max_timestamp_ms = self.info.max_timestamp_ms.max(meta.max_timestamp_ms);
        }
        self.frames += 1;
        self.claim = self.claim.max(found.header.durable_index);
        true
    }

    fn point(&self, found: &Found) -> SparsePoint {
        SparsePoint {
            position: found.position,
            index: found.header.meta.index,
            base_offset: found.header.base_offset,
            max_timestamp_before_ms: self.info.max_timestamp_ms,
        }
    }
}

/// Walks the frames of a segment up to `end` (a position) and `end_index`, whichever comes first, and
/// stops early at whatever is not the next valid frame. Payloads are checked from `verify_from` on.
pub(super) fn scan(
    file: &Arc<dyn DiskFile>,
    header: &SegmentHeader,
    end: u64,
    end_index: u64,
    verify_from: u64,
    interval: u32,
) -> io::Result<Scan> {
    let mut scan = Scan::empty(header.start);
    let mut cursor =
        Cursor::new(Arc::clone(file), header.identity(), SEGMENT_HEADER_BYTES as u64, end);
    cursor.window_bytes = FIRST_WINDOW_BYTES;
    while scan.info.end_index < end_index {
        let Some(found) = cursor.next()? else { break };
        if found.header.meta.index >= verify_from && !found.payload_is_intact() {
            break;
        }
        if !scan.push(&found, interval) {
            break;
        }
    }
    Ok(scan)
}

/// True if nothing but zeroes stands from `position` to the end of the file. Space that was reserved and never written is not
/// read, where the disk can tell: thousands of empty logs would otherwise each hold theirs in memory.
pub(super) fn is_blank_from(file: &dyn DiskFile, position: u64) -> io::Result<bool> {
    let (mut from, mut window) = (position, FIRST_WINDOW_BYTES);
    while let Some(written) = file.written_from(from)?.filter(|at| *at < file.len()) {
        let end = page_end(written, window).min(file.len());
        let len = usize::try_from(end - written).map_err(io::Error::other)?;
        if file.read(written, len)?.iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
        from = end;
        window = wider(window);
    }
    Ok(true)
}

/// The greatest durable index that any frame at or after `position` claims, whatever stands between.
pub(super) fn greatest_claim(
    file: &dyn DiskFile,
    identity: u64,
    position: u64,
) -> io::Result<Option<u64>> {
    let mut greatest = None;
    let mut from = position;
    while let Some((position, header)) = next_header(file, identity, from)? {
        greatest = greatest.max(Some(header.durable_index));
        from = position + 8;
    }
    Ok(greatest)
}

/// The next valid frame header at or after `position`, whatever stands between, and where it is.
pub(super) fn next_header(
    file: &dyn DiskFile,
    identity: u64,
    position: u64,
) -> io::Result<Option<(u64, FrameHeader)>> {
    let mut from = position.next_multiple_of(8);
    while from + FRAME_HEADER_BYTES as u64 <= file.len() {
        let now = (file.len() - from).min(WINDOW_BYTES);
        let bytes = file.read(from, usize::try_from(now).map_err(io::Error::other)?)?;
        let mut at = 0;
        while at + FRAME_HEADER_BYTES <= bytes.len() {
            if let Some(header) = FrameHeader::decode(&bytes[at..], identity) {
                return Ok(Some((from + at as u64, header)));
            }
            at += 8;
        }
        from += at as u64;
    }
    Ok(None)
}
