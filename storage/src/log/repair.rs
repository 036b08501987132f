//! Making a log whole again that holds damage, with entries of another replica.
//!
//! Works on the closed log. A damaged segment is written anew beside the old file: what is intact is copied, what is not
//! is a [`Gap`] that the caller fills. Owns: which entries are needed, and the proof that those supplied are the ones that were lost.
//! Never: cuts anything that had been durable, changes a file in place, or throws a damaged file away.
//!
//! The proof is Raft's log matching property: two logs that hold an entry of the same index and term are equal up to
//! there. A gap with an intact entry behind it therefore takes only entries from a log that holds that entry too. A log whose
//! end is lost is not repaired: nobody knows how much more this node had acknowledged. Its replica is replaced by a new one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::frame::{
    DecodedSegmentHeader, FRAME_HEADER_BYTES, FrameHeader, PayloadSum, SEGMENT_HEADER_BYTES,
    SegmentHeader, frame_bytes, padding, segment_identity,
};
use super::segment::{self, Cursor, Found, parse_file_name};
use super::types::{LogOptions, LogStart, StoredEntry};
use super::{index, recovery, summary};
use crate::disk::{Disk, DiskFile};
use crate::error::{IoContext, StorageError};

/// Where the damaged files of a log are kept, below its directory.
const DAMAGED_DIR: &str = "damaged";
/// Bytes that are copied at once.
const COPY_BYTES: u64 = 1 << 20;

/// Entries that are damaged or missing: `first_index..end_index`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The first one.
    pub first_index: u64,
    /// The entry after the last one.
    pub end_index: u64,
}

/// What the log that entries come from says of the gap that they were asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Term of its entry right before the gap's end.
    pub last_term: Option<u64>,
    /// Term of its entry at the gap's end: the first one behind it.
    pub end_term: Option<u64>,
    /// The last entry known there to be committed.
    pub committed: u64,
}

/// What stands behind a gap, and proves that the entries supplied for it are the right ones.
#[derive(Clone, Copy, Debug)]
enum Anchor {
    /// An intact entry of this log, of this term and base offset.
    Entry { term: u64, base_offset: u64 },
    /// A segment that says what was before it.
    Segment(LogStart),
    /// A segment that does not: its header is damaged too. Only committed entries are taken.
    Unknown,
}

/// A repair under way. Dropping it leaves the log as damaged as it was, less the segments that are whole by then.
#[derive(Debug)]
pub struct Repair {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    options: LogOptions,
    log_identity: u64,
    segments: Vec<Piece>,
    /// The segment that is looked at.
    at: usize,
    /// What the segments before it end with.
    end: LogStart,
    /// Entries up to here had been durable.
    durable_index: u64,
    rebuild: Option<Rebuild>,
    gap: Option<(Gap, Anchor)>,
    repaired: u64,
}

/// A segment file, or the place of one that is gone.
#[derive(Debug)]
struct Piece {
    path: PathBuf,
    sequence: u64,
    first_index: u64,
    header: Option<SegmentHeader>,
    is_lost: bool,
}

/// A segment that is being written anew.
#[derive(Debug)]
struct Rebuild {
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    header: SegmentHeader,
    position: u64,
    end: LogStart,
    /// The old file, unless it is lost, and where to look for its next intact frame.
    source: Option<Arc<dyn DiskFile>>,
    source_position: u64,
}

impl Repair {
    /// Looks through a log that does not open, or in which damage was found; `durable_floor` as for `Log::open`. Reads all of it.
    /// `Corrupt` if what is left does not say enough to repair it.
    pub fn begin(
        disk: Arc<dyn Disk>,
        dir: &Path,
        options: LogOptions,
        durable_floor: u64,
    ) -> Result<Self, StorageError> {
        let begins_at = recovery::read_start_file(&*disk, dir)?;
        let mut pieces = Vec::new();
        for (sequence, (first_index, path)) in segment_files(&*disk, dir)? {
            if sequence >= begins_at.unwrap_or(0) {
                pieces.push(read_piece(&*disk, path, sequence, first_index)?);
            }
        }
        let log_identity = pieces.iter().rev().find_map(|p| p.header.map(|h| h.log_identity));
        let Some(log_identity) = log_identity else {
            return Err(StorageError::corrupt(dir, 0, "no segment has a readable header"));
        };
        let segments = visible(&*disk, pieces, log_identity)?;
        let first = segments.first().and_then(|first| first.header);
        let begins = first.filter(|first| first.resets || Some(first.sequence) == begins_at);
        let Some(first) = begins else {
            let index = segments.first().map_or(0, |first| first.first_index);
            return Err(StorageError::corrupt(dir, index, "the first segment is missing"));
        };
        let durable_index = durable_index(&*disk, &segments, durable_floor, log_identity)?;
        let mut repair = Self {
            disk,
            dir: dir.to_path_buf(),
            options,
            log_identity,
            segments,
            at: 0,
            end: first.start,
            durable_index,
            rebuild: None,
            gap: None,
            repaired: 0,
        };
        repair.advance()?;
        Ok(repair)
    }

    /// The entries that are needed next; `None` once the log is whole and can be opened.
    pub fn gap(&self) -> Option<Gap> {
        self.gap.map(|(gap, _)| gap)
    }

    /// Segments that were written anew so far.
    pub fn segments_repaired(&self) -> u64 {
        self.repaired
    }

    /// Takes entries for the gap, from its first on and in order; they need not fill it. `origin` was read from the log that they
    /// come from after they were, while they were still in it.
    /// `Corrupt` if they are not the ones that were lost: the segment begins anew, and another replica should be asked.
    pub fn supply(&mut self, entries: &[StoredEntry], origin: Origin) -> Result<(), StorageError> {
        let Some((gap, anchor)) = self.gap else { return Ok(()) };
        let outcome = self.try_supply(gap, anchor, entries, origin);
        if let Err(StorageError::Corrupt { .. }) = &outcome {
            self.rebuild = None;
            self.gap = None;
            self.advance()?;
        }
        outcome
    }

    fn try_supply(
        &mut self,
        gap: Gap,
        anchor: Anchor,
        entries: &[StoredEntry],
        origin: Origin,
    ) -> Result<(), StorageError> {
        let Some(rebuild) = &mut self.rebuild else { return Ok(()) };
        let path = rebuild.path.clone();
        let mismatch = |index: u64, detail: &str| {
            Err(StorageError::corrupt(&path, index, format!("the supplied entry {detail}")))
        };
        // Each part has to prove itself, since the next may come from another log.
        let proven = match anchor {
            Anchor::Entry { term, .. } => origin.end_term == Some(term),
            Anchor::Segment(start) => origin.last_term == Some(start.prev_term),
            Anchor::Unknown => true,
        };
        if !proven {
            return mismatch(
                gap.first_index,
                "comes from a log without the intact one behind the gap",
            );
        }
        for entry in entries {
            let (meta, end) = (&entry.meta, &rebuild.end);
            if meta.index != end.first_index || meta.index >= gap.end_index {
                return mismatch(meta.index, "is not the one that was asked for");
            }
            if meta.term < end.prev_term || entry.base_offset != end.next_offset {
                return mismatch(meta.index, "does not follow the one before it");
            }
            if matches!(anchor, Anchor::Unknown) && meta.index > origin.committed {
                return mismatch(meta.index, "is not known to be committed");
            }
            rebuild.append_entry(entry)?;
        }
        let end = rebuild.end;
        if end.first_index < gap.end_index {
            self.gap = Some((Gap { first_index: end.first_index, ..gap }, anchor));
            return Ok(());
        }
        let fits = match anchor {
            Anchor::Entry { term, base_offset } => {
                end.prev_term <= term && end.next_offset == base_offset
            }
            Anchor::Segment(start) => end == start,
            Anchor::Unknown => true,
        };
        if !fits {
            return mismatch(gap.end_index - 1, "does not lead to the intact one behind it");
        }
        self.gap = None;
        self.advance()
    }

    /// Goes on to the next gap, or to the end.
    fn advance(&mut self) -> Result<(), StorageError> {
        while self.gap.is_none() && self.at < self.segments.len() {
            if self.rebuild.is_none() && self.is_whole()? {
                self.at += 1;
                continue;
            }
            if self.rebuild.is_none() {
                self.rebuild = Some(self.begin_rebuild()?);
            }
            self.gap = self.copy_intact()?;
            if self.gap.is_none() {
                self.finish_rebuild()?;
                self.at += 1;
            }
        }
        Ok(())
    }

    /// The segment after the one that is looked at.
    fn successor(&self) -> Option<&Piece> {
        self.segments.get(self.at + 1)
    }

    /// True, and the end moved on, if the segment has all its entries.
    fn is_whole(&mut self) -> Result<bool, StorageError> {
        let piece = &self.segments[self.at];
        let (Some(header), Some(file)) = (&piece.header, piece.open(&*self.disk)?) else {
            return Ok(false);
        };
        if header.start != self.end {
            return Ok(false);
        }
        let limit = self.successor().map_or(u64::MAX, |next| next.first_index);
        let interval = self.options.index_interval_bytes;
        let scan = segment::scan(&file, header, file.len(), limit, 0, interval)
            .io_context("read", &piece.path)?;
        let end = LogStart {
            first_index: scan.info.end_index,
            prev_term: scan.last_term,
            next_offset: scan.info.end_offset,
        };
        let has_room_for_lost =
            self.successor().is_some_and(|next| next.sequence > piece.sequence + 1);
        if end.first_index < limit
            && has_room_for_lost
            && segment::is_blank_from(&*file, scan.info.bytes).io_context("read", &piece.path)?
        {
            // The file of the segment behind it is gone.
            let sequence = piece.sequence + 1;
            let name = segment::file_name(sequence, end.first_index);
            let lost = Piece {
                path: self.dir.join(name),
                sequence,
                first_index: end.first_index,
                header: None,
                is_lost: true,
            };
            self.end = end;
            self.segments.insert(self.at + 1, lost);
            return Ok(true);
        }
        let whole = match self.successor() {
            Some(next) => {
                scan.info.end_index == next.first_index
                    && next.header.is_none_or(|next| {
                        next.start.prev_term == scan.last_term
                            && next.start.next_offset == scan.info.end_offset
                    })
            }
            None => scan.info.end_index > self.durable_index,
        };
        if whole {
            self.end = end;
        }
        Ok(whole)
    }

    fn begin_rebuild(&self) -> Result<Rebuild, StorageError> {
        let piece = &self.segments[self.at];
        if piece.first_index != self.end.first_index {
            let detail = "it does not continue the segment before it";
            return Err(StorageError::corrupt(&piece.path, piece.first_index, detail));
        }
        let header = SegmentHeader {
            log_identity: self.log_identity,
            sequence: piece.sequence,
            start: self.end,
            durable_index: piece.header.map_or(self.end.first_index - 1, |h| h.durable_index),
            resets: piece.header.is_some_and(|header| header.resets),
            recycled: false,
        };
        let path = piece.path.with_extension("repair");
        if self.disk.exists(&path) {
            self.disk.remove_file(&path).io_context("remove", &path)?;
        }
        let source = piece.open(&*self.disk)?;
        let len = source.as_ref().map_or(0, |source| source.len());
        // It may have been written while segments were larger than they are now.
        let segment_bytes = self.options.segment_bytes.max(len);
        let options = LogOptions { segment_bytes, ..self.options.clone() };
        let file = segment::create_file(&*self.disk, &path, &header, &options)
            .map_err(|failure| failure.error)?;
        file.allocate(len.max(file.len())).io_context("allocate space in", &path)?;
        let begin = SEGMENT_HEADER_BYTES as u64;
        Ok(Rebuild {
            path,
            file,
            header,
            position: begin,
            end: self.end,
            source,
            source_position: begin,
        })
    }

    /// Copies intact frames of the old file as long as they continue the new one. The gap, where one is met.
    fn copy_intact(&mut self) -> Result<Option<(Gap, Anchor)>, StorageError> {
        let piece = &self.segments[self.at];
        let next = self.segments.get(self.at + 1);
        let Some(rebuild) = &mut self.rebuild else { return Ok(None) };
        let limit = next.map_or(u64::MAX, |next| next.first_index);
        let gap =
            |first_index, end_index, anchor| Ok(Some((Gap { first_index, end_index }, anchor)));
        loop {
            let wanted = rebuild.end.first_index;
            let found = match &rebuild.source {
                Some(source) if wanted < limit => {
                    next_intact(source, rebuild, limit).io_context("read", &piece.path)?
                }
                _ => None,
            };
            match found {
                Some(found) if found.header.meta.index == wanted => {
                    rebuild.append_frame(&found)?;
                    rebuild.source_position = found.end_position();
                }
                // Behind what had been durable stands a torn tail: it may be cut there.
                Some(found) if next.is_some() || wanted <= self.durable_index => {
                    let (term, base_offset) = (found.header.meta.term, found.header.base_offset);
                    rebuild.source_position = found.position;
                    return gap(
                        wanted,
                        found.header.meta.index,
                        Anchor::Entry { term, base_offset },
                    );
                }
                _ => {
                    return match next {
                        Some(next) if wanted < limit => {
                            let known = next.header.map(|header| header.start);
                            gap(wanted, limit, known.map_or(Anchor::Unknown, Anchor::Segment))
                        }
                        None if wanted <= self.durable_index => {
                            let last = self.durable_index;
                            let detail = format!(
                                "the end of the log is lost; up to {last} it had been durable"
                            );
                            Err(StorageError::corrupt(&piece.path, wanted, detail))
                        }
                        _ => Ok(None),
                    };
                }
            }
        }
    }

    /// The new file takes the place of the old one, of which a copy is kept.
    fn finish_rebuild(&mut self) -> Result<(), StorageError> {
        let Some(rebuild) = self.rebuild.take() else { return Ok(()) };
        let piece = &self.segments[self.at];
        let successor = self.successor().and_then(|next| next.header);
        if successor.is_some_and(|next| next.start != rebuild.end) {
            let detail = "the next segment does not continue it";
            return Err(StorageError::corrupt(&piece.path, rebuild.end.first_index, detail));
        }
        rebuild.file.sync().io_context("sync", &rebuild.path)?;
        if let Some(old) = &rebuild.source {
            self.keep_damaged(old, &piece.path)?;
        }
        // Both say that the segment is durable to its end, and how it begins: they must be gone before the old bytes are.
        for derived in [piece.path.with_extension("index"), self.dir.join(summary::FILE)] {
            if self.disk.exists(&derived) {
                self.disk.remove_file(&derived).io_context("remove", &derived)?;
                self.disk.sync_dir(&self.dir).io_context("sync directory", &self.dir)?;
            }
        }
        self.disk
            .rename(&rebuild.path, &piece.path)
            .io_context("rename into place", &piece.path)?;
        self.disk.sync_dir(&self.dir).io_context("sync directory", &self.dir)?;
        self.end = rebuild.end;
        self.repaired += 1;
        Ok(())
    }

    fn keep_damaged(&self, old: &Arc<dyn DiskFile>, path: &Path) -> Result<(), StorageError> {
        let dir = self.dir.join(DAMAGED_DIR);
        self.disk.create_dir_all(&dir).io_context("create directory", &dir)?;
        let kept = dir.join(path.file_name().unwrap_or_default());
        if self.disk.exists(&kept) {
            self.disk.remove_file(&kept).io_context("remove", &kept)?;
        }
        let copy = self.disk.create(&kept, 0).io_context("create", &kept)?;
        copy.allocate(old.len()).io_context("allocate space in", &kept)?;
        let mut from = 0;
        while from < old.len() {
            let now = (old.len() - from).min(COPY_BYTES);
            let len = usize::try_from(now).unwrap_or(usize::MAX);
            let bytes = old.read(from, len).io_context("read", path)?;
            copy.write_at(from, &[&bytes]).io_context("write", &kept)?;
            from += now;
        }
        copy.sync().io_context("sync", &kept)?;
        self.disk.sync_dir(&dir).io_context("sync directory", &dir)?;
        self.disk.sync_dir(&self.dir).io_context("sync directory", &self.dir)
    }
}

impl Rebuild {
    fn append_frame(&mut self, found: &Found) -> Result<(), StorageError> {
        self.append(&found.header, &found.payload)
    }

    fn append_entry(&mut self, entry: &StoredEntry) -> Result<(), StorageError> {
        let payload_len = u32::try_from(entry.payload.len()).map_err(|_| {
            StorageError::PayloadTooLarge { bytes: entry.payload.len() as u64, bytes_max: u32::MAX }
        })?;
        let header = FrameHeader {
            identity: self.header.identity(),
            meta: entry.meta,
            base_offset: entry.base_offset,
            payload_len,
            payload_sum: PayloadSum::of(&[&entry.payload]),
            // May only claim too little.
            durable_index: self.header.durable_index,
        };
        self.append(&header, &entry.payload)
    }

    fn append(&mut self, header: &FrameHeader, payload: &[u8]) -> Result<(), StorageError> {
        let end = self.position + frame_bytes(payload.len() as u64);
        if end > self.file.len() {
            self.file.allocate(end).io_context("allocate space in", &self.path)?;
        }
        self.file
            .write_at(self.position, &[&header.encode(), payload, padding(payload.len())])
            .io_context("write", &self.path)?;
        self.position = end;
        self.end = LogStart {
            first_index: header.meta.index + 1,
            prev_term: header.meta.term,
            next_offset: header.end_offset(),
        };
        Ok(())
    }
}

/// The next frame of the old file that is intact and can be part of the log from `rebuild.end` on.
fn next_intact(
    file: &Arc<dyn DiskFile>,
    rebuild: &Rebuild,
    limit: u64,
) -> std::io::Result<Option<Found>> {
    let identity = rebuild.header.identity();
    let mut position = rebuild.source_position;
    while position + FRAME_HEADER_BYTES as u64 <= file.len() {
        let mut cursor = Cursor::new(Arc::clone(file), identity, position, file.len());
        if let Some(found) = cursor.next()? {
            let (meta, end) = (&found.header.meta, &rebuild.end);
            let follows = meta.index >= end.first_index
                && meta.index < limit
                && meta.term >= end.prev_term
                && found.header.base_offset >= end.next_offset
                && (meta.index > end.first_index || found.header.base_offset == end.next_offset);
            if follows && found.payload_is_intact() {
                return Ok(Some(found));
            }
        }
        match segment::next_header(&**file, identity, position + 8)? {
            Some((next, _)) => position = next,
            None => return Ok(None),
        }
    }
    Ok(None)
}

fn segment_files(
    disk: &dyn Disk,
    dir: &Path,
) -> Result<BTreeMap<u64, (u64, PathBuf)>, StorageError> {
    let names = disk.list(dir).io_context("list", dir)?;
    Ok(names
        .iter()
        .filter_map(|name| {
            let (sequence, first_index) = parse_file_name(name, "log")?;
            Some((sequence, (first_index, dir.join(name))))
        })
        .collect())
}

impl Piece {
    fn open(&self, disk: &dyn Disk) -> Result<Option<Arc<dyn DiskFile>>, StorageError> {
        if self.is_lost {
            return Ok(None);
        }
        disk.open(&self.path, 1).io_context("open", &self.path).map(Some)
    }
}

fn read_piece(
    disk: &dyn Disk,
    path: PathBuf,
    sequence: u64,
    first_index: u64,
) -> Result<Piece, StorageError> {
    let file = disk.open(&path, 1).io_context("open", &path)?;
    let header = match recovery::read_header(&*file, &path)? {
        DecodedSegmentHeader::Valid(header) => {
            Some(header).filter(|h| h.sequence == sequence && h.start.first_index == first_index)
        }
        DecodedSegmentHeader::Blank | DecodedSegmentHeader::Damaged => None,
        DecodedSegmentHeader::Newer(version) => {
            let version_max = SegmentHeader::VERSION_MAX;
            return Err(StorageError::UnsupportedVersion { path, version, version_max });
        }
    };
    Ok(Piece { path, sequence, first_index, header, is_lost: false })
}

/// The segments that are part of the log. As in recovery, a later segment hides what earlier ones hold at or after its
/// first index; here one with a damaged header does so too.
fn visible(
    disk: &dyn Disk,
    pieces: Vec<Piece>,
    log_identity: u64,
) -> Result<Vec<Piece>, StorageError> {
    let mut visible: Vec<Piece> = Vec::new();
    for piece in pieces {
        if piece.header.is_none() && was_never_created(disk, &piece, log_identity)? {
            continue;
        }
        if piece.header.is_some_and(|header| header.resets) {
            visible.clear();
        }
        visible.retain(|earlier| earlier.first_index < piece.first_index);
        visible.push(piece);
    }
    Ok(visible)
}

/// True of a file that a crash left without anything in it.
fn was_never_created(
    disk: &dyn Disk,
    piece: &Piece,
    log_identity: u64,
) -> Result<bool, StorageError> {
    let Some(file) = piece.open(disk)? else { return Ok(true) };
    let identity = segment_identity(log_identity, piece.sequence);
    let frames = segment::greatest_claim(&*file, identity, 0).io_context("read", &piece.path)?;
    let blank = segment::is_blank_from(&*file, 0).io_context("read", &piece.path)?;
    Ok(frames.is_none() && blank)
}

/// The last entry of which anything says that it had been durable.
fn durable_index(
    disk: &dyn Disk,
    segments: &[Piece],
    floor: u64,
    log_identity: u64,
) -> Result<u64, StorageError> {
    let mut durable = floor;
    for (at, piece) in segments.iter().enumerate() {
        let Some(header) = &piece.header else { continue };
        durable = durable.max(header.durable_index);
        if let Some(scan) = index::read(disk, &piece.path.with_extension("index"), header) {
            // It may be from before a truncation, which the segment behind it shows.
            let end = segments.get(at + 1).map_or(u64::MAX, |next| next.first_index);
            durable = durable.max(scan.info.end_index.min(end) - 1);
        }
    }
    if let Some(last) = segments.last()
        && let Some(file) = last.open(disk)?
    {
        let identity = segment_identity(log_identity, last.sequence);
        let claim = segment::greatest_claim(&*file, identity, 0).io_context("read", &last.path)?;
        durable = durable.max(claim.unwrap_or(0));
    }
    Ok(durable)
}
