//! The files of the bare loops and the logs beside them.
//!
//! Owns: what both write, so that they write the same. Never: times anything.

use std::fs::{self, File, OpenOptions};
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use highwater_storage::{Disk, EntryMeta, Log, LogOptions, LogStart, RealDisk, SparePool};

use super::compare::Side;

pub(crate) const KIB: usize = 1 << 10;
pub(crate) const MIB: usize = 1 << 20;
pub(super) const START: LogStart = LogStart { first_index: 1, prev_term: 0, next_offset: 0 };
/// Bare files are as large as a segment, and are written from the start again when they are full.
pub(super) const FILE_BYTES: usize = 64 * MIB;
/// Of a frame before its payload.
const FRAME_HEADER_BYTES: usize = 80;

/// What the log writes for a payload of this size.
pub(super) fn frame_bytes(payload: usize) -> usize {
    (FRAME_HEADER_BYTES + payload).next_multiple_of(8)
}

/// What comes after each write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum After {
    Nothing,
    /// The loop checksums what it writes, as the log does, and nothing is synced.
    Checksum,
    Sync,
}

/// A file that is written from end to end, again and again if it holds data from the start.
pub(crate) struct BareAppend {
    file: File,
    path: PathBuf,
    recycled: bool,
    position: usize,
    body: Vec<u8>,
    after: After,
}

impl BareAppend {
    pub(crate) fn new(
        path: &Path,
        recycled: bool,
        payload_bytes: usize,
        after: After,
    ) -> anyhow::Result<Self> {
        let file = open_new(path)?;
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, FILE_BYTES as u64)?;
        if recycled {
            file.write_all_at(&payload(FILE_BYTES), 0)?;
        }
        file.sync_all()?;
        let body = payload(frame_bytes(payload_bytes));
        Ok(Self { file, path: path.to_path_buf(), recycled, position: 0, body, after })
    }
}

impl Side for BareAppend {
    fn operation(&mut self) -> anyhow::Result<()> {
        if self.position + self.body.len() > FILE_BYTES {
            if !self.recycled {
                fs::remove_file(&self.path)?;
                let payload_bytes = self.body.len() - FRAME_HEADER_BYTES;
                *self = Self::new(&self.path.clone(), false, payload_bytes, self.after)?;
            }
            self.position = 0;
        }
        if self.after == After::Checksum {
            black_box(crc32fast::hash(&self.body));
        }
        self.file.write_all_at(&self.body, self.position as u64)?;
        self.position += self.body.len();
        if self.after == After::Sync {
            self.file.sync_data()?;
        }
        Ok(())
    }
}

/// A log that drops what it sealed between the rounds, so that the disk does not fill up.
pub(super) struct LogAppend {
    pub(super) log: Log,
    body: Vec<u8>,
    after: After,
}

impl LogAppend {
    /// With `recycled`, the active segment stands in the file of an earlier one from the start, and so do the next ones.
    pub(super) fn new(
        dir: &Path,
        recycled: bool,
        payload_bytes: usize,
        after: After,
    ) -> anyhow::Result<Self> {
        let disk: Arc<dyn Disk> = Arc::new(RealDisk::new());
        let spares = recycled.then(|| SparePool::new(1 << 30));
        let options = LogOptions { spares, ..LogOptions::default() };
        let log = Log::create(disk, dir, START, options)?;
        let mut new = Self { log, body: payload(MIB), after: After::Nothing };
        while recycled && new.log.first_index() < 100 {
            new.operation()?;
            new.rest()?;
        }
        sync(&mut new.log)?;
        Ok(Self { body: payload(payload_bytes), after, ..new })
    }
}

impl Side for LogAppend {
    fn operation(&mut self) -> anyhow::Result<()> {
        append(&mut self.log, &self.body)?;
        if self.after == After::Sync { sync(&mut self.log) } else { Ok(()) }
    }

    fn rest(&mut self) -> anyhow::Result<()> {
        let segments = self.log.segments();
        if let (true, Some(active)) = (segments.len() > 1, segments.last()) {
            self.log.truncate_prefix(active.first_index)?;
        }
        Ok(())
    }
}

pub(super) fn append(log: &mut Log, body: &[u8]) -> anyhow::Result<()> {
    let index = log.last_index() + 1;
    black_box(log.append(&meta(index), &[body])?);
    Ok(())
}

pub(super) fn sync(log: &mut Log) -> anyhow::Result<()> {
    let point = log.sync_point();
    point.sync()?;
    log.mark_durable(&point);
    Ok(())
}

pub(super) fn open_new(path: &Path) -> anyhow::Result<File> {
    Ok(OpenOptions::new().read(true).write(true).create_new(true).open(path)?)
}

/// Lets the system forget the pages of the files in a directory; only clean ones go.
pub(super) fn forget_pages(dir: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(dir)? {
        let file = File::open(entry?.path())?;
        file.sync_all()?;
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    }
    Ok(())
}

fn meta(index: u64) -> EntryMeta {
    EntryMeta {
        index,
        term: 1,
        kind: 1,
        offset_span: 1,
        append_time_ms: 0,
        max_timestamp_ms: i64::try_from(index).unwrap_or(0),
    }
}

/// Bytes that do not compress.
pub(super) fn payload(len: usize) -> Vec<u8> {
    let mut word = 1_u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        bytes.extend_from_slice(&word.to_be_bytes());
    }
    bytes.truncate(len);
    bytes
}
