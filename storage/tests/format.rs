//! The on-disk formats, held by a directory that the first release wrote and every later one must open.
//!
//! `tests/fixtures/v1` is never written again. It was made by `write_the_fixture` below, which stays here to
//! say what is in it: `cargo test -p highwater-storage --test format -- --ignored`. A new format gets a
//! directory of its own beside it.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use highwater_storage::{
    Disk, EntryMeta, Epoch, HardState, HardStateJournal, Identity, Log, LogOptions, LogStart,
    RealDisk, StorageError, read_small_file, write_small_file,
};

const MAGIC: [u8; 8] = *b"HWFIXTR\0";
const START: LogStart = LogStart { first_index: 5, prev_term: 2, next_offset: 100 };

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/v1")
}

fn disk() -> Arc<dyn Disk> {
    Arc::new(RealDisk::new())
}

fn options() -> LogOptions {
    LogOptions {
        segment_bytes: 4096,
        payload_bytes_max: 4096,
        index_interval_bytes: 512,
        allocate_step_bytes: 4096,
        ..LogOptions::default()
    }
}

fn meta(index: u64, term: u64) -> EntryMeta {
    let time = 1_700_000_000_000 + i64::try_from(index).unwrap() * 1000;
    EntryMeta {
        index,
        term,
        kind: u8::from(index.is_multiple_of(7)),
        // Every seventh entry is none of the users'.
        offset_span: if index.is_multiple_of(7) { 0 } else { 3 },
        append_time_ms: time,
        max_timestamp_ms: time - 250,
    }
}

fn payload(index: u64) -> Vec<u8> {
    (0..200 + index).map(|at| (index * 13 + at).to_le_bytes()[0]).collect()
}

/// The term that entry `index` of the fixture has: 3, then 4, and 6 after the truncation.
fn term(index: u64) -> u64 {
    match index {
        ..30 => 3,
        30..45 => 4,
        _ => 6,
    }
}

fn hard_states() -> BTreeMap<u64, HardState> {
    let state = |group| (group, HardState { term: group + 1, vote: group % 4, commit: group * 10 });
    (1..=40).filter(|group| *group != 7).map(state).collect()
}

fn identity() -> Identity {
    Identity {
        cluster_id: "fixture-cluster".to_owned(),
        node_id: 3,
        incarnation: "first".to_owned(),
        boot_counter: 17,
    }
}

fn sync(log: &mut Log) {
    let point = log.sync_point();
    point.sync().unwrap();
    log.mark_durable(&point);
}

#[test]
#[ignore = "writes tests/fixtures/v1, which is never written again"]
fn write_the_fixture() {
    let dir = fixture();
    fs::create_dir_all(&dir).unwrap();
    let mut log = Log::create(disk(), &dir.join("log"), START, options()).unwrap();
    for index in 5..=49 {
        log.append(&meta(index, if index < 30 { 3 } else { 4 }), &[&payload(index)]).unwrap();
        if index % 10 == 0 {
            sync(&mut log);
        }
    }
    sync(&mut log);
    log.truncate_suffix(45).unwrap();
    for index in 45..=70 {
        log.append(&meta(index, 6), &[&payload(index)]).unwrap();
    }
    sync(&mut log);
    log.truncate_prefix(25).unwrap();
    let (mut journal, _) = HardStateJournal::open(disk(), &dir).unwrap();
    for group in 1..=40 {
        let state = HardState { term: group + 1, vote: group % 4, commit: group * 10 };
        journal.put(&[(group, HardState { term: 1, ..state }), (group, state)]).unwrap();
    }
    journal.remove(7).unwrap();
    journal.sync_point().sync().unwrap();
    drop(journal);
    identity().store(&RealDisk::new(), &dir).unwrap();
    write_small_file(&RealDisk::new(), &dir.join("small"), MAGIC, 2, b"a small body").unwrap();
    // The journal's reserved space is a mebibyte of zeroes a file, which nothing reads.
    for name in ["hard-state-a.journal", "hard-state-b.journal"] {
        let mut bytes = fs::read(dir.join(name)).unwrap();
        while bytes.last() == Some(&0) {
            bytes.pop();
        }
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        fs::write(dir.join(name), bytes).unwrap();
    }
}

/// A copy, because opening writes.
fn copy() -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    copy_dir(&fixture(), to.path());
    to
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_dir(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}

fn files(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(dir.join("log")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|found| found == extension));
    files.sort();
    files
}

#[test]
fn the_log_of_the_first_release_opens_and_holds_what_it_held() {
    let dir = copy();
    for round in 0..2 {
        let (mut log, report) = Log::open(disk(), &dir.path().join("log"), options(), 70).unwrap();
        assert_eq!((report.cut_from, report.index_files_rebuilt), (None, 0), "{report:?}");
        let first = log.first_index();
        assert_eq!((first, log.last_index(), log.last_term()), (18, 70 + round, 6));
        let reader = log.reader();
        let mut offset =
            START.next_offset + 3 * (5..first).filter(|i| !i.is_multiple_of(7)).count() as u64;
        assert_eq!(log.start(), LogStart { first_index: first, prev_term: 3, next_offset: offset });
        for entry in reader.entries(first, 71, u64::MAX).unwrap() {
            let index = entry.meta.index;
            assert_eq!(entry.meta, meta(index, term(index)));
            assert_eq!(entry.base_offset, offset);
            assert_eq!(entry.payload, payload(index));
            offset = entry.end_offset();
        }
        let epochs: Vec<u64> = reader.epochs().iter().map(|epoch: &Epoch| epoch.term).collect();
        assert_eq!(epochs, [3, 4, 6]);
        let found = reader.entry_at_time(meta(40, 4).max_timestamp_ms, u64::MAX).unwrap().unwrap();
        assert_eq!(found.meta.index, 40);
        // It also goes on from there.
        log.append(&meta(71 + round, 6), &[&payload(71 + round)]).unwrap();
        sync(&mut log);
    }
}

#[test]
fn the_hard_states_identity_and_small_file_of_the_first_release_open() {
    let dir = copy();
    for _ in 0..2 {
        let (_, states) = HardStateJournal::open(disk(), dir.path()).unwrap();
        assert_eq!(states, hard_states());
    }
    let real = RealDisk::new();
    assert_eq!(Identity::load(&real, dir.path()).unwrap(), Some(identity()));
    let (version, body) =
        read_small_file(&real, &dir.path().join("small"), MAGIC, 2).unwrap().unwrap();
    assert_eq!((version, &body[..]), (2, &b"a small body"[..]));
}

/// Changes one byte and puts the checksum at `crc_at` right, which covers all before it, and `after`.
fn rewrite(path: &Path, at: usize, value: u8, covered_from: usize, crc_at: usize, after: bool) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] = value;
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes[covered_from..crc_at]);
    if after {
        hasher.update(&bytes[crc_at + 4..]);
    }
    let crc = hasher.finalize().to_le_bytes();
    bytes[crc_at..crc_at + 4].copy_from_slice(&crc);
    fs::write(path, bytes).unwrap();
}

#[track_caller]
fn refused<T>(result: Result<T, StorageError>, path: &Path, found: u32, newest: u32) {
    let Err(error) = result else { panic!("{} was accepted", path.display()) };
    let text = error.to_string();
    let expected =
        format!("{} has format version {found}; this release reads up to {newest}", path.display());
    assert_eq!(text, expected);
}

#[test]
fn a_newer_version_of_any_file_is_refused_by_name_and_nothing_is_changed() {
    let dir = copy();
    let log = dir.path().join("log");
    let open_log = || Log::open(disk(), &log, options(), 0);
    for path in files(dir.path(), "log") {
        let whole = fs::read(&path).unwrap();
        rewrite(&path, 8, 2, 0, 124, false);
        let newer = fs::read(&path).unwrap();
        refused(open_log(), &path, 2, 1);
        assert_eq!(fs::read(&path).unwrap(), newer);
        fs::write(&path, whole).unwrap();
    }
    // The first frame of the newest segment.
    let newest = files(dir.path(), "log").pop().unwrap();
    let whole = fs::read(&newest).unwrap();
    rewrite(&newest, 128 + 4, 9, 128, 128 + 76, false);
    refused(open_log(), &newest, 9, 1);
    fs::write(&newest, whole).unwrap();

    let start = log.join("start");
    let whole = fs::read(&start).unwrap();
    rewrite(&start, 8, 2, 0, 16, true);
    refused(open_log(), &start, 2, 1);
    fs::write(&start, whole).unwrap();
    open_log().unwrap();

    let small = dir.path().join("small");
    rewrite(&small, 8, 3, 0, 16, true);
    refused(read_small_file(&RealDisk::new(), &small, MAGIC, 2), &small, 3, 2);
    let identity = dir.path().join("identity");
    rewrite(&identity, 8, 2, 0, 16, true);
    refused(Identity::load(&RealDisk::new(), dir.path()), &identity, 2, 1);
    for name in ["hard-state-a.journal", "hard-state-b.journal"] {
        let path = dir.path().join(name);
        let whole = fs::read(&path).unwrap();
        rewrite(&path, 7, 2, 0, 16, false);
        refused(HardStateJournal::open(disk(), dir.path()), &path, 2, 1);
        fs::write(&path, whole).unwrap();
    }
}

#[test]
fn an_index_file_of_another_version_is_built_anew() {
    let dir = copy();
    for path in files(dir.path(), "index") {
        let whole = fs::read(&path).unwrap();
        rewrite(&path, 8, 2, 0, 16, true);
        // With it nobody would look at the index file before the first reader.
        let _ = fs::remove_file(dir.path().join("log/sealed"));
        let (_, report) = Log::open(disk(), &dir.path().join("log"), options(), 0).unwrap();
        assert_eq!(report.index_files_rebuilt, 1);
        assert_eq!(fs::read(&path).unwrap(), whole);
    }
}
