//! Opening a log: which segments count, what of them is whole, and whether what is not may be cut.
//!
//! Pages reach the disk in any order, so a bad frame alone says nothing. It is a torn tail, and cut, unless
//! something shows that its entry had been durable: the caller's floor, or a later frame or segment header
//! that claims it. Then it is corruption, and nothing is changed. The window that remains: an entry that was
//! durable, but after which nothing was ever written that says so, and that rots before the next start.
//! Knows nothing of appending; runs before there is a writer or a reader.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::frame::{
    DecodedSegmentHeader, FRAME_HEADER_BYTES, FrameHeader, SEGMENT_HEADER_BYTES, SegmentHeader,
    segment_identity,
};
use super::index;
use super::segment::{self, Cursor, Scan, Segment, parse_file_name};
use super::spare::is_spare;
use super::state::State;
use super::summary::{self, Sealed};
use super::types::{LogOptions, LogStart, RecoveryReport};
use super::{Active, Log, START_FILE, START_MAGIC, START_VERSION};
use crate::disk::{Disk, DiskFile};
use crate::error::{IoContext, StorageError};
use crate::small_file::read_small_file;

/// So much of a tail is written again at a time.
const COPY_BYTES: u64 = 1 << 20;

/// Makes room for a new log in `dir` and returns the sequence of its first segment.
pub(super) fn prepare_creation(disk: &dyn Disk, dir: &Path) -> Result<u64, StorageError> {
    let mut next_sequence = 1;
    let mut leftovers = Vec::new();
    for name in disk.list(dir).io_context("list", dir)? {
        let path = dir.join(&name);
        if let Some((sequence, _)) = parse_file_name(&name, "log") {
            let file = disk.open(&path, 1).io_context("open", &path)?;
            if read_header(&*file, &path)? != DecodedSegmentHeader::Blank {
                return Err(StorageError::AlreadyExists { dir: dir.to_path_buf() });
            }
            next_sequence = next_sequence.max(sequence.saturating_add(1));
            leftovers.push(path);
        } else if [START_FILE, summary::FILE].contains(&name.as_str())
            || is_spare(&name)
            || parse_file_name(&name, "index").is_some()
        {
            leftovers.push(path);
        }
    }
    for path in leftovers {
        disk.remove_file(&path).io_context("remove", &path)?;
    }
    disk.create_dir_all(dir).io_context("create directory", dir)?;
    Ok(next_sequence)
}

/// Makes the names in `dir` durable, and that of `dir` itself and of the directory it is in.
pub(super) fn sync_dir_and_parents(disk: &dyn Disk, dir: &Path) -> Result<(), StorageError> {
    // Two levels up: a log's directory is commonly created together with its topic's.
    for dir in dir.ancestors().take(3) {
        disk.sync_dir(dir).io_context("sync directory", dir)?;
    }
    Ok(())
}

/// See `Log::open`.
pub(super) fn open(
    disk: Arc<dyn Disk>,
    dir: &Path,
    options: LogOptions,
    durable_floor: u64,
    settled: bool,
) -> Result<(Log, RecoveryReport), StorageError> {
    let found = find_segments(&*disk, dir)?;
    let mut recovery = Recovery {
        disk: &*disk,
        dir,
        options: &options,
        durable_floor,
        report: RecoveryReport::default(),
        whole: Vec::new(),
        rebuilt: Vec::new(),
        summarized: 0,
    };
    let broken = recovery.check_all(&found.candidates)?;
    recovery.write_tail_again()?;
    let last_index = recovery.end().first_index - 1;
    if last_index < durable_floor {
        let detail = format!("the log ends at {last_index}, but {durable_floor} had been durable");
        return Err(StorageError::corrupt(dir, last_index + 1, detail));
    }
    if !settled {
        disk.sync_dir(dir).io_context("sync directory", dir)?;
    }
    let (state, active) = recovery.settle(broken, found.log_identity, found.next_sequence)?;
    let next_sequence = found.next_sequence.max(active.segment.header.sequence + 1);
    recovery.write_rebuilt_indexes();
    let (report, summarized) = (recovery.report, recovery.summarized);
    remove_strays(&*disk, dir, &found.names, &state);
    let mut log =
        Log::assemble(disk, dir, options, found.log_identity, active, next_sequence, state);
    log.summarized = summarized;
    log.summarize_if_due();
    Ok((log, report))
}

/// A segment file that may be part of the log.
struct Candidate {
    path: PathBuf,
    sequence: u64,
    /// From the name; the header, if there is one, says the same.
    first_index: u64,
    /// Not opened where the summary says all there is to know.
    file: Option<Arc<dyn DiskFile>>,
    /// `None` if it was never written, or not durably.
    header: Option<SegmentHeader>,
    /// What the summary says was in it, without the sparse index.
    summary: Option<Scan>,
}

impl Candidate {
    fn file(&self, disk: &dyn Disk) -> Result<Arc<dyn DiskFile>, StorageError> {
        match &self.file {
            Some(file) => Ok(Arc::clone(file)),
            None => open_to_check(disk, &self.path),
        }
    }
}

/// Not mapped: a page that is looked at once, in each of thousands of logs, need not stay mapped; and one that cannot be
/// read is an error here, and no fault.
fn open_to_check(disk: &dyn Disk, path: &Path) -> Result<Arc<dyn DiskFile>, StorageError> {
    disk.open(path, 0).io_context("open", path)
}

struct FoundSegments {
    candidates: Vec<Candidate>,
    log_identity: u64,
    next_sequence: u64,
    names: Vec<String>,
}

/// The segments that are not hidden by later ones, in order.
fn find_segments(disk: &dyn Disk, dir: &Path) -> Result<FoundSegments, StorageError> {
    let names = disk.list(dir).io_context("list", dir)?;
    let mut files: BTreeMap<u64, (u64, PathBuf)> = BTreeMap::new();
    for name in &names {
        if let Some((sequence, first_index)) = parse_file_name(name, "log")
            && files.insert(sequence, (first_index, dir.join(name))).is_some()
        {
            return Err(StorageError::corrupt(dir, first_index, "two segments of one sequence"));
        }
    }
    let not_found = || StorageError::NotFound { dir: dir.to_path_buf() };
    let newest = *files.keys().next_back().ok_or_else(not_found)?;
    let begins_at = read_start_file(disk, dir)?;
    let mut sealed = if names.iter().any(|name| name == summary::FILE) {
        summary::read(disk, dir)
    } else {
        BTreeMap::new()
    };
    let mut all = Vec::new();
    for (sequence, (first_index, path)) in files.split_off(&begins_at.unwrap_or(0)) {
        let known = sealed.remove(&sequence);
        all.push(match known.filter(|known| known.header.start.first_index == first_index) {
            Some(Sealed { header, scan }) => {
                let (header, summary) = (Some(header), Some(scan));
                Candidate { path, sequence, first_index, file: None, header, summary }
            }
            None => open_candidate(disk, path, sequence, first_index)?,
        });
    }
    let log_identity = all.iter().rev().find_map(|c| c.header.map(|header| header.log_identity));
    let Some(log_identity) = log_identity else {
        return match begins_at {
            None => Err(not_found()),
            Some(_) => Err(StorageError::corrupt(dir, 0, "all segments are missing")),
        };
    };
    let candidates = visible(all, log_identity)?;
    let first = candidates.first().and_then(|first| first.header);
    let begins = first.is_some_and(|first| first.resets || Some(first.sequence) == begins_at);
    if !begins {
        let index = candidates.first().map_or(0, |first| first.first_index);
        return Err(StorageError::corrupt(dir, index, "the first segment is missing"));
    }
    let next_sequence = newest.saturating_add(1);
    Ok(FoundSegments { candidates, log_identity, next_sequence, names })
}

/// The sequence of the first segment, if older ones were ever dropped.
pub(super) fn read_start_file(disk: &dyn Disk, dir: &Path) -> Result<Option<u64>, StorageError> {
    let path = dir.join(START_FILE);
    let Some((_, body)) = read_small_file(disk, &path, START_MAGIC, START_VERSION)? else {
        return Ok(None);
    };
    match body.first_chunk() {
        Some(sequence) if body.len() == 8 => Ok(Some(u64::from_le_bytes(*sequence))),
        _ => Err(StorageError::corrupt(&path, 0, "wrong length")),
    }
}

fn open_candidate(
    disk: &dyn Disk,
    path: PathBuf,
    sequence: u64,
    first_index: u64,
) -> Result<Candidate, StorageError> {
    let file = open_to_check(disk, &path)?;
    let header = match read_header(&*file, &path)? {
        DecodedSegmentHeader::Valid(header)
            if header.sequence == sequence && header.start.first_index == first_index =>
        {
            Some(header)
        }
        DecodedSegmentHeader::Blank => None,
        DecodedSegmentHeader::Newer(version) => {
            let version_max = SegmentHeader::VERSION_MAX;
            return Err(StorageError::UnsupportedVersion { path, version, version_max });
        }
        DecodedSegmentHeader::Valid(_) | DecodedSegmentHeader::Damaged => {
            return Err(StorageError::corrupt(&path, first_index, "damaged segment header"));
        }
    };
    Ok(Candidate { path, sequence, first_index, file: Some(file), header, summary: None })
}

pub(super) fn read_header(
    file: &dyn DiskFile,
    path: &Path,
) -> Result<DecodedSegmentHeader, StorageError> {
    let len = usize::try_from(file.len()).unwrap_or(usize::MAX).min(SEGMENT_HEADER_BYTES);
    let bytes = file.read(0, len).io_context("read", path)?;
    Ok(SegmentHeader::decode(&bytes))
}

/// A later segment hides everything at or after its first index in earlier ones; one that resets hides
/// all. One without a header hides nothing: nobody can say what it was meant to be.
fn visible(all: Vec<Candidate>, log_identity: u64) -> Result<Vec<Candidate>, StorageError> {
    let mut visible: Vec<Candidate> = Vec::new();
    for candidate in all {
        if let Some(header) = candidate.header {
            if header.log_identity != log_identity {
                let index = candidate.first_index;
                return Err(StorageError::corrupt(&candidate.path, index, "of another log"));
            }
            if header.resets {
                visible.clear();
            }
            visible.retain(|earlier| earlier.first_index < candidate.first_index);
        }
        visible.push(candidate);
    }
    Ok(visible)
}

/// A segment of which some frames are part of the log.
struct Whole<'a> {
    candidate: &'a Candidate,
    header: SegmentHeader,
    scan: Scan,
}

impl Whole<'_> {
    /// Where the entries after `index` begin; at the segment's header, which is no more durable than its first entry.
    fn position_after(&self, file: &Arc<dyn DiskFile>, index: u64) -> io::Result<u64> {
        if index < self.header.start.first_index {
            return Ok(0);
        }
        let from = self.scan.points.before_index(index).unwrap_or(SEGMENT_HEADER_BYTES as u64);
        let end = self.scan.info.bytes;
        let mut cursor = Cursor::new(Arc::clone(file), self.header.identity(), from, end);
        while let Some(found) = cursor.next()? {
            if found.header.meta.index > index {
                return Ok(found.position);
            }
        }
        Ok(end)
    }
}

/// Where the whole part of the log ends, if not at the end of its last segment.
#[derive(Clone, Copy)]
struct Broken {
    index: u64,
}

struct Recovery<'a> {
    disk: &'a dyn Disk,
    dir: &'a Path,
    options: &'a LogOptions,
    durable_floor: u64,
    report: RecoveryReport,
    whole: Vec<Whole<'a>>,
    /// Positions in `whole` of the segments that need an index file.
    rebuilt: Vec<usize>,
    /// Segments that the summary spoke for.
    summarized: usize,
}

impl<'a> Recovery<'a> {
    /// Checks the segments one after the other, up to the first break.
    fn check_all(&mut self, candidates: &'a [Candidate]) -> Result<Option<Broken>, StorageError> {
        for (at, candidate) in candidates.iter().enumerate() {
            let later = &candidates[at + 1..];
            let Some(header) = candidate.header else {
                match self.check_headless(candidate, later)? {
                    None => continue,
                    broken => return Ok(broken),
                }
            };
            if at > 0 && header.start != self.end() {
                // The segment before ends too early, or it is not what this one was built upon.
                let end = self.end().first_index;
                // A segment that was lost in between may have hidden what stands here now: an entry whose append failed.
                let last = self.whole.last().map_or(0, |last| last.header.sequence);
                if header.start.first_index == end && candidate.sequence == last + 1 {
                    let detail = "does not continue the segment before it";
                    return Err(StorageError::corrupt(&candidate.path, end, detail));
                }
                return self.judge(end, &candidates[at..], None, &candidate.path).map(Some);
            }
            let successor = later.iter().find_map(|later| later.header);
            if let Some(broken) = self.check_one(candidate, header, successor, later)? {
                return Ok(Some(broken));
            }
        }
        Ok(None)
    }

    /// A file without a header is a segment whose creation was lost, unless something in it was durable.
    fn check_headless(
        &mut self,
        candidate: &Candidate,
        later: &[Candidate],
    ) -> Result<Option<Broken>, StorageError> {
        let end = self.end().first_index;
        let first_index = candidate.first_index;
        let log_identity = self.whole.first().map_or(0, |first| first.header.log_identity);
        let identity = segment_identity(log_identity, candidate.sequence);
        let claim = segment::greatest_claim(&*candidate.file(self.disk)?, identity, 0)
            .io_context("read", &candidate.path)?;
        // Frames behind the end of a roll may have outlived its header. Those of a truncation cannot: its
        // header was durable before there were any.
        if claim >= Some(first_index) || (claim.is_some() && first_index < end) {
            let detail = "the segment header is missing";
            return Err(StorageError::corrupt(&candidate.path, first_index, detail));
        }
        if claim.is_none() && first_index <= end {
            return Ok(None);
        }
        self.judge(end, later, None, &candidate.path).map(Some)
    }

    fn check_one(
        &mut self,
        candidate: &'a Candidate,
        header: SegmentHeader,
        successor: Option<SegmentHeader>,
        later: &[Candidate],
    ) -> Result<Option<Broken>, StorageError> {
        let limit = successor.map_or(u64::MAX, |successor| successor.start.first_index);
        // As with an index file: that it is in the summary says that it is durable, up to the end that stands there.
        if let Some(scan) = &candidate.summary
            && scan.info.end_index == limit
        {
            self.whole.push(Whole { candidate, header, scan: scan.clone() });
            self.summarized += 1;
            return Ok(None);
        }
        let file = candidate.file(self.disk)?;
        let index_path = candidate.path.with_extension("index");
        let from_file = successor.and_then(|_| index::read(self.disk, &index_path, &header));
        if let Some(scan) = from_file.filter(|scan| scan.info.end_index == limit) {
            // The index file exists, so everything up to its end is durable.
            let whole = scan.info.bytes <= file.len();
            self.whole.push(Whole { candidate, header, scan });
            if !whole {
                let detail = "the file is shorter than its index says";
                return Err(StorageError::corrupt(
                    &candidate.path,
                    header.start.first_index,
                    detail,
                ));
            }
            return Ok(None);
        }
        let scan = self.scan(&file, candidate, &header, limit)?;
        let (end_index, end_position) = (scan.info.end_index, scan.info.bytes);
        self.report.frames_checked += scan.frames;
        if successor.is_some() {
            self.rebuilt.push(self.whole.len());
        }
        self.whole.push(Whole { candidate, header, scan });
        if end_index == limit {
            return Ok(None);
        }
        refuse_unknown_frame(&*file, candidate, &header, end_position)?;
        let blank = if header.recycled {
            // Behind the end stands what an earlier segment left. Without a frame of this one nothing is
            // torn off that could come back.
            segment::greatest_claim(&*file, header.identity(), end_position)
                .map(|claim| claim.is_none())
        } else {
            segment::is_blank_from(&*file, end_position)
        };
        let blank = blank.io_context("read", &candidate.path)?;
        if blank && successor.is_none() {
            return Ok(None);
        }
        let broken_here = Some((candidate, header.identity(), end_position));
        self.judge(end_index, later, broken_here, &candidate.path).map(Some)
    }

    fn scan(
        &self,
        file: &Arc<dyn DiskFile>,
        candidate: &Candidate,
        header: &SegmentHeader,
        limit: u64,
    ) -> Result<Scan, StorageError> {
        let verify_from = self.durable_floor.saturating_add(1);
        let interval = self.options.index_interval_bytes;
        segment::scan(file, header, file.len(), limit, verify_from, interval)
            .io_context("read", &candidate.path)
    }

    /// Makes durable what nothing shows to be. A sync is not enough for that: after one that failed, pages that are in memory
    /// only count as clean, also for the process that was started next.
    fn write_tail_again(&self) -> Result<(), StorageError> {
        let claims =
            self.whole.iter().map(|whole| whole.scan.claim.max(whole.header.durable_index));
        let durable = claims.fold(self.durable_floor, u64::max);
        for whole in self.whole.iter().filter(|whole| whole.scan.info.end_index > durable + 1) {
            let path = &whole.candidate.path;
            let file = whole.candidate.file(self.disk)?;
            let mut position = whole.position_after(&file, durable).io_context("read", path)?;
            while position < whole.scan.info.bytes {
                let len = (whole.scan.info.bytes - position).min(COPY_BYTES);
                let len = usize::try_from(len).unwrap_or(usize::MAX);
                let bytes = file.read(position, len).io_context("read", path)?;
                file.write_at(position, &[&bytes]).io_context("write", path)?;
                position += bytes.len() as u64;
            }
            file.sync().io_context("sync", path)?;
        }
        Ok(())
    }

    /// There is no whole entry `index`. Corruption if anything shows that there had been one.
    fn judge(
        &self,
        index: u64,
        later: &[Candidate],
        broken: Option<(&Candidate, u64, u64)>,
        path: &Path,
    ) -> Result<Broken, StorageError> {
        let corrupt = |by: &str| {
            let detail = format!("no valid frame, but {by} shows that the entry had been durable");
            Err(StorageError::corrupt(path, index, detail))
        };
        if self.durable_floor >= index {
            return corrupt("the saved commit");
        }
        if let Some((candidate, identity, position)) = broken {
            let file = candidate.file(self.disk)?;
            let claim = segment::greatest_claim(&*file, identity, position)
                .io_context("read", &candidate.path)?;
            if claim >= Some(index) {
                return corrupt("a later frame");
            }
        }
        for candidate in later {
            let Some(header) = candidate.header else { continue };
            if candidate.summary.is_some() {
                return corrupt("the summary of a later segment");
            }
            let file = candidate.file(self.disk)?;
            let begin = SEGMENT_HEADER_BYTES as u64;
            let claim = segment::greatest_claim(&*file, header.identity(), begin)
                .io_context("read", &candidate.path)?;
            if header.durable_index >= index || claim >= Some(index) {
                return corrupt("a later segment");
            }
            if index::read(self.disk, &candidate.path.with_extension("index"), &header).is_some() {
                return corrupt("a later segment's index file");
            }
        }
        Ok(Broken { index })
    }

    /// The end of what is whole so far: what the next segment begins with.
    fn end(&self) -> LogStart {
        match self.whole.last() {
            None => LogStart { first_index: 1, prev_term: 0, next_offset: 0 },
            Some(last) => LogStart {
                first_index: last.scan.info.end_index,
                prev_term: last.scan.last_term,
                next_offset: last.scan.info.end_offset,
            },
        }
    }

    /// Builds the log's state. Where a tail was cut, a new segment takes over: the old bytes are hidden
    /// for good before anything is written in their place.
    fn settle(
        &mut self,
        broken: Option<Broken>,
        log_identity: u64,
        sequence: u64,
    ) -> Result<(State, Active), StorageError> {
        let start = self.end();
        let mut cut = None;
        if let Some(Broken { index }) = broken {
            self.report.cut_from = Some(index);
            // A segment of which nothing is left is hidden altogether.
            self.whole.retain(|whole| whole.scan.info.first_index < start.first_index);
            self.rebuilt.retain(|at| *at + 1 < self.whole.len());
            let resets = self.whole.is_empty();
            let durable_index = start.first_index - 1;
            let header = SegmentHeader {
                log_identity,
                sequence,
                start,
                durable_index,
                resets,
                recycled: false,
            };
            let active = Active::create(self.disk, self.dir, header, self.options)
                .map_err(|failure| failure.error)?;
            active.file.sync().io_context("sync", &active.segment.path)?;
            self.disk.sync_dir(self.dir).io_context("sync directory", self.dir)?;
            self.rebuilt.extend(self.whole.len().checked_sub(1));
            cut = Some(active);
        }
        let first = self.whole.first().map_or(start, |first| first.header.start);
        let mut state = State::new(first);
        state.segments = VecDeque::with_capacity(self.whole.len() + 1);
        let mut active = None;
        for (at, whole) in self.whole.iter().enumerate() {
            if at + 1 == self.whole.len() && cut.is_none() {
                let reopened = self.activate(whole)?;
                state.push_segment(Arc::clone(&reopened.segment), &whole.scan);
                active = Some(reopened);
            } else {
                let path = whole.candidate.path.clone();
                let segment = Arc::new(Segment::new(path, whole.header, None));
                state.push_segment(segment, &whole.scan);
            }
        }
        if let Some(cut) = cut {
            state.push_segment(Arc::clone(&cut.segment), &Scan::empty(start));
            return Ok((state, cut));
        }
        let missing = || StorageError::NotFound { dir: self.dir.to_path_buf() };
        Ok((state, active.ok_or_else(missing)?))
    }

    /// The last segment goes on taking appends.
    fn activate(&self, whole: &Whole<'_>) -> Result<Active, StorageError> {
        let path = whole.candidate.path.clone();
        let position = whole.scan.info.bytes;
        // Mapped anew: it may grow beyond the length it has now.
        let file =
            self.disk.open(&path, segment::capacity(self.options)).io_context("open", &path)?;
        let opened = Some((Arc::clone(&file), whole.scan.points.clone()));
        Ok(Active {
            segment: Arc::new(Segment::new(path, whole.header, opened)),
            file,
            position,
            bytes_max: self.options.segment_bytes,
            since_ms: whole.scan.first_append_time_ms,
        })
    }

    /// Everything is durable by now. Best effort: what fails is built again next time.
    fn write_rebuilt_indexes(&mut self) {
        for at in &self.rebuilt {
            let Some(whole) = self.whole.get(*at) else { continue };
            let path = whole.candidate.path.with_extension("index");
            if index::write(self.disk, &path, &whole.header, &whole.scan).is_ok() {
                self.report.index_files_rebuilt += 1;
            }
        }
    }
}

/// A frame that a newer release wrote is neither torn nor rotten: nothing may be cut there.
fn refuse_unknown_frame(
    file: &dyn DiskFile,
    candidate: &Candidate,
    header: &SegmentHeader,
    position: u64,
) -> Result<(), StorageError> {
    let left = file.len().saturating_sub(position);
    let len = usize::try_from(left).unwrap_or(usize::MAX).min(FRAME_HEADER_BYTES);
    let bytes = file.read(position, len).io_context("read", &candidate.path)?;
    match FrameHeader::unknown_version(&bytes, header.identity()) {
        None => Ok(()),
        Some(version) => Err(StorageError::UnsupportedVersion {
            path: candidate.path.clone(),
            version,
            version_max: FrameHeader::VERSION_MAX,
        }),
    }
}

/// Removes what is hidden, and index files without a segment. Best effort: it stays hidden.
fn remove_strays(disk: &dyn Disk, dir: &Path, names: &[String], state: &State) {
    let kept: HashSet<u64> = state.segments.iter().map(|e| e.segment.header.sequence).collect();
    for name in names {
        let parsed = parse_file_name(name, "log").or_else(|| parse_file_name(name, "index"));
        if parsed.is_some_and(|(sequence, _)| !kept.contains(&sequence)) || is_spare(name) {
            let _ = disk.remove_file(&dir.join(name));
        }
    }
}
