//! Fuzz targets of the log: headers, whole directories of segments, index files.
//!
//! A checksum stops a fuzzer at the door, so every input is tried as it is and also with its checksums put
//! right. Never touches a real disk.

use std::path::Path;
use std::sync::Arc;

use super::Log;
use super::frame::{
    DecodedSegmentHeader, FRAME_HEADER_BYTES, FrameHeader, PayloadSum, SEGMENT_HEADER_BYTES,
    SegmentHeader, padding,
};
use super::index;
use super::segment::file_name;
use super::state::OpenSealed;
use super::types::{EntryMeta, LogOptions, LogStart, StoredEntry};
use crate::disk::{Disk, DiskFile, SimDisk};
use crate::error::StorageError;
use crate::fuzzing::Input;
use crate::small_file::write_small_file_lazily;

const DIR: &str = "log";
const LOG_IDENTITY: u64 = 77;
const FILES_MAX: u8 = 4;

fn options() -> LogOptions {
    LogOptions {
        segment_bytes: 1024,
        payload_bytes_max: 4096,
        index_interval_bytes: 256,
        allocate_step_bytes: 4096,
        spares: None,
        open_sealed: OpenSealed::default(),
    }
}

/// Decoding takes any bytes, and what it accepts survives encoding.
pub fn frame_decode(data: &[u8]) {
    let mut input = Input::new(data);
    let identity = input.number();
    let bytes = input.bytes(usize::MAX);
    let accepted = |bytes: &[u8]| {
        let header = FrameHeader::decode(bytes, identity)?;
        assert_eq!(FrameHeader::decode(&header.encode(), identity), Some(header));
        assert!(header.end_offset() >= header.base_offset);
        assert!(header.frame_bytes() >= FRAME_HEADER_BYTES as u64 && header.frame_bytes() % 8 == 0);
        Some(header)
    };
    accepted(bytes);
    let mut sealed = [0; FRAME_HEADER_BYTES];
    let len = bytes.len().min(FRAME_HEADER_BYTES);
    sealed[..len].copy_from_slice(&bytes[..len]);
    sealed[..4].copy_from_slice(b"HWfr");
    sealed[4] = 1 + (sealed[4] & 1);
    sealed[8..16].copy_from_slice(&identity.to_le_bytes());
    let crc = crc32fast::hash(&sealed[..76]);
    sealed[76..].copy_from_slice(&crc.to_le_bytes());
    assert!(accepted(&sealed).is_some(), "a sealed header is valid");

    SegmentHeader::decode(bytes);
    let mut sealed = [0; SEGMENT_HEADER_BYTES];
    let len = bytes.len().min(SEGMENT_HEADER_BYTES);
    sealed[..len].copy_from_slice(&bytes[..len]);
    sealed[..8].copy_from_slice(b"HWSEGMT\0");
    let crc = crc32fast::hash(&sealed[..124]);
    sealed[124..].copy_from_slice(&crc.to_le_bytes());
    if let DecodedSegmentHeader::Valid(header) = SegmentHeader::decode(&sealed) {
        assert_eq!(SegmentHeader::decode(&header.encode()), DecodedSegmentHeader::Valid(header));
    }
}

fn create(disk: &SimDisk, path: &Path) -> Option<Arc<dyn DiskFile>> {
    disk.create(path, 0).ok()
}

/// A file of a segment as the input wants it: a header (mostly whole), then frames and rubbish.
fn write_segment(disk: &SimDisk, sequence: u64, input: &mut Input<'_>) {
    let shape = input.byte();
    let mut next = FrameHeader {
        identity: 0,
        meta: EntryMeta {
            index: input.number(),
            term: input.number(),
            kind: 1,
            offset_span: 1,
            append_time_ms: 5,
            max_timestamp_ms: 4,
        },
        base_offset: input.number(),
        payload_len: 0,
        payload_sum: PayloadSum::Crc32c(0),
        durable_index: input.number(),
    };
    let header = SegmentHeader {
        log_identity: LOG_IDENTITY,
        sequence,
        start: LogStart {
            first_index: next.meta.index.max(1),
            prev_term: next.meta.term,
            next_offset: next.base_offset,
        },
        durable_index: next.durable_index,
        resets: sequence == 1 || shape & 1 == 1,
        recycled: shape & 0x0e == 0x0c,
    };
    next.meta.index = header.start.first_index;
    next.identity = header.identity();
    let path = Path::new(DIR).join(file_name(sequence, header.start.first_index));
    let Some(file) = create(disk, &path) else { return };
    let mut bytes = match shape >> 1 & 7 {
        0 => input.bytes(SEGMENT_HEADER_BYTES).to_vec(),
        1 => vec![0; SEGMENT_HEADER_BYTES],
        _ => header.encode().to_vec(),
    };
    for _ in 0..shape >> 4 {
        write_piece(&mut bytes, &mut next, input);
    }
    // Writing into memory does not fail.
    let _ = file.write_at(0, &[&bytes]);
    let _ = file.allocate(input.number().min(8192));
}

/// The next frame, with the fields of `next` changed as the input wants, or something else.
fn write_piece(bytes: &mut Vec<u8>, next: &mut FrameHeader, input: &mut Input<'_>) {
    let what = input.byte();
    match what & 15 {
        0 => return bytes.extend_from_slice(input.bytes(64)),
        1 => return bytes.resize(bytes.len() + FRAME_HEADER_BYTES, 0),
        2 => next.meta.index = input.number(),
        3 => next.base_offset = input.number(),
        4 => next.meta.term = input.number(),
        5 => next.identity = input.number(),
        6 => next.meta.offset_span = u32::MAX,
        7 => next.durable_index = input.number(),
        8 => next.meta.max_timestamp_ms = input.number().cast_signed(),
        _ => {}
    }
    let payload = input.bytes(usize::from(what >> 4) * 8);
    next.payload_len = u32::try_from(payload.len()).unwrap_or(0);
    next.payload_sum = match what & 15 {
        9 => PayloadSum::Crc32c(!crc32c::crc32c(payload)),
        11 => PayloadSum::Crc32(crc32fast::hash(payload)),
        _ => PayloadSum::of(&[payload]),
    };
    if what & 15 == 10 {
        // A length that lies.
        next.payload_len = u32::MAX - u32::from(input.byte());
    }
    bytes.extend_from_slice(&next.encode());
    bytes.extend_from_slice(payload);
    bytes.extend_from_slice(padding(payload.len()));
    next.base_offset = next.end_offset();
    next.meta.index = next.meta.index.wrapping_add(1);
}

fn read_all(log: &Log) -> Result<Vec<StoredEntry>, StorageError> {
    log.reader().entries(log.first_index(), log.last_index() + 1, u64::MAX)
}

/// A directory of segment files opens or is refused; what opens can be read, appended to and opened again,
/// with the same entries.
pub fn segment_recovery(data: &[u8]) {
    let mut input = Input::new(data);
    let sim = SimDisk::new(1);
    let disk: Arc<dyn Disk> = Arc::new(sim.clone());
    let dir = Path::new(DIR);
    let _ = disk.create_dir_all(dir);
    for sequence in 1..=u64::from(input.byte() % FILES_MAX + 1) {
        write_segment(&sim, sequence, &mut input);
    }
    let floor = input.number();
    let open = |floor| Log::open(Arc::clone(&disk), dir, options(), floor);
    let Ok((mut log, _)) = open(floor) else { return };
    let entries = read_all(&log);
    assert!(log.last_index() >= floor, "the log ends below what had been durable");
    // Payloads up to the floor are not read when the log is opened.
    assert!(floor > 0 || entries.is_ok(), "{entries:?}");
    let (next_offset, last_index) = (log.next_offset(), log.last_index());
    let meta = EntryMeta {
        index: last_index.saturating_add(1),
        term: log.last_term(),
        kind: 1,
        offset_span: 1,
        append_time_ms: 0,
        max_timestamp_ms: 0,
    };
    let appended = log.append(&meta, &[b"appended"]).is_ok();
    assert!(appended || next_offset == u64::MAX || last_index == u64::MAX - 1);
    drop(log);
    let (log, report) = open(floor).expect("what opened once opens again");
    assert_eq!(report.cut_from, None, "nothing is cut twice");
    assert_eq!(log.last_index(), last_index + u64::from(appended));
    if let (Ok(before), Ok(after)) = (entries, read_all(&log)) {
        assert_eq!(before[..], after[..before.len()]);
    }
}

/// The log's answers with an index file that is not its own: the right ones, or none.
pub fn index_load(data: &[u8]) {
    let mut input = Input::new(data);
    let disk: Arc<dyn Disk> = Arc::new(SimDisk::new(1));
    let dir = Path::new(DIR);
    let start = LogStart { first_index: 1, prev_term: 0, next_offset: 0 };
    let mut log = Log::create(Arc::clone(&disk), dir, start, options()).expect("a new log");
    for index in 1..=12 {
        let meta = EntryMeta {
            index,
            term: 1 + index / 3,
            kind: 1,
            offset_span: 2,
            append_time_ms: 0,
            max_timestamp_ms: i64::from(index == 3),
        };
        log.append(&meta, &[&[7; 100]]).expect("an append");
    }
    let point = log.sync_point();
    point.sync().expect("a sync");
    log.mark_durable(&point);
    let entries = read_all(&log).expect("its entries");
    let first = log.shared.state.read().segments.front().cloned().expect("a segment");
    drop(log);
    let path = first.segment.index_path();
    let sealed = input.byte() & 1 == 1;
    let mut body = index_body(&*disk, &path);
    if sealed {
        while !input.is_empty() {
            let word = usize::from(input.byte()) * 8 % body.len();
            let value = input.number().to_le_bytes();
            body[word..word + 8].copy_from_slice(&value);
        }
        write_small_file_lazily(&*disk, &path, index::MAGIC, index::VERSION, &body)
            .expect("a file");
    } else {
        disk.remove_file(&path).expect("it exists");
        let file = disk.create(&path, 0).expect("a file");
        file.write_at(0, &[input.bytes(usize::MAX)]).expect("a write");
    }
    assert_index_answers(&disk, dir, sealed, &entries);
}

fn index_body(disk: &dyn Disk, path: &Path) -> Vec<u8> {
    let (_, body) = crate::small_file::read_small_file(disk, path, index::MAGIC, index::VERSION)
        .expect("it is whole")
        .expect("it exists");
    body.to_vec()
}

fn assert_index_answers(disk: &Arc<dyn Disk>, dir: &Path, sealed: bool, entries: &[StoredEntry]) {
    let (log, _) = match Log::open(Arc::clone(disk), dir, options(), 0) {
        Ok(opened) => opened,
        Err(error) => {
            // Only an index file with the right checksum is believed.
            assert!(sealed, "{error}");
            return;
        }
    };
    let reader = log.reader();
    for index in 0..=log.last_index() + 1 {
        let _ = (reader.term(index), reader.end_offset(index), reader.entries(index, index + 1, 0));
    }
    for at in [0, 1, 5, u64::MAX] {
        let _ = (reader.read_offsets(at, u64::MAX, 300), reader.entry_at_time(1, at));
    }
    let got = read_all(&log);
    match got {
        Ok(got) => assert_eq!(got, entries),
        Err(error) => assert!(sealed && error.is_corrupt(), "{error}"),
    }
}
