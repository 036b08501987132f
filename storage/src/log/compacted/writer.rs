//! Writing the files of a replacement, before it counts.
//!
//! Owns files that no manifest names yet, and removes them if nothing comes of them. Never changes what readers see.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{CompactedManifest, CompactedSegment, Shared};
use crate::disk::DiskFile;
use crate::error::{IoContext, StorageError};
use crate::log::frame::{
    FrameHeader, PayloadSum, SEGMENT_HEADER_BYTES, SegmentHeader, mix, padding,
};
use crate::log::types::{LogStart, StoredEntry};

/// Written at once.
const BUFFER_BYTES: usize = 256 << 10;

/// Files that count for nothing yet; removed when this is dropped.
#[derive(Debug)]
pub(super) struct Unnamed {
    shared: Arc<Shared>,
    paths: Vec<PathBuf>,
}

impl Unnamed {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, paths: Vec::new() }
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Creates the next file.
    pub(super) fn create(&mut self) -> Result<NewFile, StorageError> {
        let (number, path) = self.shared.new_file()?;
        let file = self.shared.disk.create(&path, 0).io_context("create", &path)?;
        self.paths.push(path.clone());
        Ok(NewFile { number, path, file, bytes: 0, hasher: crc32fast::Hasher::new() })
    }
}

impl Drop for Unnamed {
    fn drop(&mut self) {
        if self.shared.is_closed.load(Ordering::Acquire) {
            // Whoever opens the part again removes what does not count, and may have files of these names by now.
            return;
        }
        for path in &self.paths {
            // Best effort: what stays behind is removed when the part is opened again.
            let _ = self.shared.disk.remove_file(path);
        }
    }
}

/// A file that grows by appending, no further than what is in it.
#[derive(Debug)]
pub(super) struct NewFile {
    pub(super) number: u64,
    pub(super) path: PathBuf,
    file: Arc<dyn DiskFile>,
    pub(super) bytes: u64,
    hasher: crc32fast::Hasher,
}

impl NewFile {
    pub(super) fn append(&mut self, data: &[u8]) -> Result<(), StorageError> {
        let end = self.bytes + data.len() as u64;
        self.file.allocate(end).io_context("allocate space in", &self.path)?;
        self.file.write_at(self.bytes, &[data]).io_context("write", &self.path)?;
        self.hasher.update(data);
        self.bytes = end;
        Ok(())
    }

    /// Makes it durable; returns its checksum.
    pub(super) fn finish(self) -> Result<u32, StorageError> {
        self.file.sync().io_context("sync", &self.path)?;
        Ok(self.hasher.finalize())
    }
}

/// Writes a new compacted part, entry by entry. Holds no more than a buffer and one entry in memory. Dropped before
/// `finish` it leaves nothing behind.
#[derive(Debug)]
pub struct CompactedWriter {
    files: Unnamed,
    segment_bytes: u64,
    /// The state that the new one is made from.
    version: u64,
    done: Vec<CompactedSegment>,
    current: Option<NewSegment>,
}

#[derive(Debug)]
struct NewSegment {
    file: NewFile,
    identity: u64,
    buffer: Vec<u8>,
    /// Bytes and checksum are not known before the end.
    info: CompactedSegment,
}

impl NewSegment {
    fn bytes(&self) -> u64 {
        self.file.bytes + self.buffer.len() as u64
    }

    fn flush(&mut self) -> Result<(), StorageError> {
        if !self.buffer.is_empty() {
            self.file.append(&self.buffer)?;
            self.buffer.clear();
        }
        Ok(())
    }
}

impl CompactedWriter {
    pub(super) fn new(shared: Arc<Shared>, segment_bytes: u64) -> Self {
        let version = shared.state().version;
        let files = Unnamed::new(shared);
        Self { files, segment_bytes, version, done: Vec::new(), current: None }
    }

    /// Adds an entry, which must have a span and lie behind the one before it.
    pub fn append(&mut self, entry: &StoredEntry) -> Result<(), StorageError> {
        let payload = &entry.payload;
        let payload_len = u32::try_from(payload.len()).map_err(|_| {
            StorageError::PayloadTooLarge { bytes: payload.len() as u64, bytes_max: u32::MAX }
        })?;
        let mut segment = match self.current.take() {
            Some(full) if full.bytes() + payload.len() as u64 > self.segment_bytes => {
                self.seal(full)?;
                self.begin(entry)?
            }
            Some(segment) => segment,
            None => self.begin(entry)?,
        };
        let expected = segment.info.end_index;
        if entry.meta.index < expected || entry.base_offset < segment.info.end_offset {
            let got = entry.meta.index;
            return Err(StorageError::OutOfSequence { expected, got });
        }
        let header = FrameHeader {
            identity: segment.identity,
            meta: entry.meta,
            base_offset: entry.base_offset,
            payload_len,
            payload_sum: PayloadSum::of(&[payload]),
            durable_index: entry.meta.index,
        };
        segment.buffer.extend_from_slice(&header.encode());
        segment.buffer.extend_from_slice(payload);
        segment.buffer.extend_from_slice(padding(payload.len()));
        let info = &mut segment.info;
        info.end_index = entry.meta.index.saturating_add(1);
        info.end_offset = entry.end_offset();
        info.max_timestamp_ms = info.max_timestamp_ms.max(entry.meta.max_timestamp_ms);
        if segment.buffer.len() >= BUFFER_BYTES {
            segment.flush()?;
        }
        self.current = Some(segment);
        Ok(())
    }

    fn begin(&mut self, first: &StoredEntry) -> Result<NewSegment, StorageError> {
        let file = self.files.create()?;
        let (first_index, base_offset) = (first.meta.index, first.base_offset);
        // Frames carry the identity of their segment. No two files of a node share path and first entry at once.
        let path = file.path.as_os_str().as_encoded_bytes();
        let log_identity = path.iter().fold(base_offset, |hash, byte| mix(hash ^ u64::from(*byte)));
        let header = SegmentHeader {
            log_identity,
            sequence: file.number,
            start: LogStart {
                first_index: first_index.max(1),
                prev_term: first.meta.term,
                next_offset: base_offset,
            },
            durable_index: 0,
            resets: false,
            recycled: false,
        };
        let info = CompactedSegment {
            file: file.number,
            first_index,
            end_index: first_index,
            base_offset,
            end_offset: base_offset,
            bytes: SEGMENT_HEADER_BYTES as u64,
            checksum: 0,
            max_timestamp_ms: i64::MIN,
        };
        let buffer = header.encode().to_vec();
        Ok(NewSegment { file, identity: header.identity(), buffer, info })
    }

    fn seal(&mut self, mut segment: NewSegment) -> Result<(), StorageError> {
        segment.flush()?;
        let bytes = segment.file.bytes;
        let checksum = segment.file.finish()?;
        self.done.push(CompactedSegment { bytes, checksum, ..segment.info });
        Ok(())
    }

    /// Makes the files durable. Everything before `end` that was not appended is dropped once this is installed.
    pub fn finish(
        mut self,
        end: LogStart,
        cleaned_to: u64,
        next_horizon_ms: i64,
    ) -> Result<StagedCompaction, StorageError> {
        if let Some(segment) = self.current.take() {
            self.seal(segment)?;
        }
        self.files.shared().sync_names()?;
        let manifest = CompactedManifest { segments: self.done, end, cleaned_to, next_horizon_ms };
        Ok(StagedCompaction { files: self.files, version: self.version, manifest })
    }
}

/// A compacted part that is on disk, durably, and does not count yet. Dropped, its files are removed.
#[derive(Debug)]
pub struct StagedCompaction {
    files: Unnamed,
    version: u64,
    manifest: CompactedManifest,
}

impl StagedCompaction {
    pub(super) fn received(files: Unnamed, manifest: CompactedManifest) -> Self {
        let version = files.shared().state().version;
        Self { files, version, manifest }
    }

    /// What it will be.
    pub fn manifest(&self) -> &CompactedManifest {
        &self.manifest
    }

    /// False if the segments were replaced since this was begun: then it may lack what they hold.
    pub fn is_current(&self) -> bool {
        self.files.shared().state().version == self.version
    }

    pub(super) fn is_of(&self, shared: &Arc<Shared>) -> bool {
        Arc::ptr_eq(self.files.shared(), shared)
    }

    /// Leaves the files to the manifest.
    pub(super) fn keep(&mut self) {
        self.files.paths.clear();
    }
}
