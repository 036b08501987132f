//! The on-disk formats, held by a directory that the first release wrote and every later one must open.
//!
//! What is in `tests/fixtures` is never written again. It was made by the ignored tests below, which stay here to
//! say what is in it: `cargo test -p highwater-storage --test format -- --ignored`. A new format gets a
//! directory of its own beside the others. `v1` is one log and a node's small files; `v1-groups` came later in the first
//! release: two logs behind a journal of appends, one of them with a compacted part and a summary of its segments. `v2` is what
//! `v1` is, with frames of version 2, whose payloads have a CRC-32C.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use highwater_storage::{
    Compacted, Disk, EntryMeta, Epoch, HardState, HardStateJournal, Identity, JournaledDisk, Log,
    LogOptions, LogStart, OpenSealed, RealDisk, StorageError, read_small_file, sync_group,
    write_small_file,
};

const MAGIC: [u8; 8] = *b"HWFIXTR\0";
const START: LogStart = LogStart { first_index: 5, prev_term: 2, next_offset: 100 };

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
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
#[ignore = "writes tests/fixtures/v2, which is never written again"]
fn write_the_fixture() {
    let dir = fixture("v2");
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
        trim(&dir.join(name));
    }
}

/// The last entries of both logs of `v1-groups`: the bytes of the last three are in the journal only.
const GROUPS_LAST: u64 = 140;
const GROUPS_LOST: u64 = 3;
/// The first log's entries before this one were compacted.
const COMPACTED_END: u64 = 48;
const KEYS: u64 = 5;

fn groups_payload(index: u64) -> Vec<u8> {
    [&[(index % KEYS).to_le_bytes()[0]], &payload(index)[..150]].concat()
}

#[test]
#[ignore = "writes tests/fixtures/v1-groups, which is never written again"]
fn write_the_groups() {
    let dir = fixture("v1-groups");
    for group in ["1", "2"] {
        fs::create_dir_all(dir.join(group)).unwrap();
    }
    let disk: Arc<dyn Disk> = Arc::new(JournaledDisk::open(disk(), &dir).unwrap());
    let create =
        |group: &str| Log::create(Arc::clone(&disk), &dir.join(group), START, options()).unwrap();
    let mut logs = [create("1"), create("2")];
    let mut ends = Vec::new();
    for index in 5..=GROUPS_LAST {
        for log in &mut logs {
            log.append(&meta(index, term(index)), &[&groups_payload(index)]).unwrap();
        }
        // A group of two is synced by way of the journal; a file that is new, in its place.
        let points = [logs[0].sync_point(), logs[1].sync_point()];
        sync_group(&points).unwrap();
        for (log, point) in logs.iter_mut().zip(&points) {
            log.mark_durable(point);
        }
        if index == COMPACTED_END + 10 {
            let part = Compacted::open(Arc::clone(&disk), &dir.join("1"), OpenSealed::default());
            compact(&mut logs[0], part.unwrap());
        }
        if index == GROUPS_LAST - GROUPS_LOST {
            ends = logs.iter().map(|log| log.segments().last().unwrap().bytes).collect();
        }
    }
    drop(logs);
    // As after a power loss that took what was in the page cache only.
    for (group, end) in ["1", "2"].into_iter().zip(ends) {
        let newest = files(&dir.join(group), "log").pop().unwrap();
        let mut bytes = fs::read(&newest).unwrap();
        bytes[usize::try_from(end).unwrap()..].fill(0);
        fs::write(&newest, bytes).unwrap();
    }
    for name in ["appends-a.journal", "appends-b.journal"] {
        trim(&dir.join(name));
    }
}

/// Keeps the last entry of each key, of those before the segment with `COMPACTED_END`.
fn compact(log: &mut Log, mut part: Compacted) {
    let segments = log.segments();
    let end = segments.iter().find(|segment| segment.end_index > COMPACTED_END).unwrap().start;
    let reader = log.reader();
    let entries = reader.read_offsets(START.next_offset, end.next_offset, u64::MAX).unwrap();
    let last: BTreeMap<u8, u64> =
        entries.iter().map(|entry| (entry.payload[0], entry.base_offset)).collect();
    let mut writer = part.reader().writer(600);
    for entry in entries.iter().filter(|entry| last[&entry.payload[0]] == entry.base_offset) {
        writer.append(entry).unwrap();
    }
    let mut staged = writer.finish(end, end.next_offset, i64::MAX).unwrap();
    part.install(&mut staged).unwrap();
    log.truncate_prefix(end.first_index).unwrap();
}

/// Cuts reserved space, zeroes which nothing reads, off a journal.
fn trim(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    while bytes.last() == Some(&0) {
        bytes.pop();
    }
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    fs::write(path, bytes).unwrap();
}

/// A copy, because opening writes.
fn copy() -> tempfile::TempDir {
    copy_of("v1")
}

fn copy_of(name: &str) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    copy_dir(&fixture(name), to.path());
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

fn files(log: &Path, extension: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(log).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|found| found == extension));
    files.sort();
    files
}

#[test]
fn the_log_of_the_first_release_opens_and_holds_what_it_held() {
    holds_what_it_held("v1");
}

#[test]
fn a_log_with_frames_of_version_two_opens_and_holds_what_it_held() {
    holds_what_it_held("v2");
}

fn holds_what_it_held(name: &str) {
    let dir = copy_of(name);
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
        // It also goes on from there, in frames of today.
        log.append(&meta(71 + round, 6), &[&payload(71 + round)]).unwrap();
        sync(&mut log);
    }
}

#[test]
fn the_groups_of_the_first_release_open_with_what_only_their_journal_holds() {
    let dir = copy_of("v1-groups");
    for _ in 0..2 {
        let disk: Arc<dyn Disk> = Arc::new(JournaledDisk::open(disk(), dir.path()).unwrap());
        let part = Compacted::open(Arc::clone(&disk), &dir.path().join("1"), OpenSealed::default());
        let part = part.unwrap();
        for (group, first) in [("1", part.end().unwrap().first_index), ("2", 5)] {
            let (log, report) =
                Log::open(Arc::clone(&disk), &dir.path().join(group), options(), GROUPS_LAST)
                    .unwrap();
            assert_eq!((report.cut_from, report.index_files_rebuilt), (None, 0), "{report:?}");
            // The summary and the index files spoke for the others.
            let active = log.segments().pop().unwrap();
            assert_eq!(report.frames_checked, active.end_index - active.first_index);
            assert_eq!((log.first_index(), log.last_index()), (first, GROUPS_LAST));
            for entry in log.reader().entries(first, GROUPS_LAST + 1, u64::MAX).unwrap() {
                let index = entry.meta.index;
                assert_eq!(entry.meta, meta(index, term(index)));
                assert_eq!(entry.payload, groups_payload(index));
            }
        }
        let manifest = part.manifest().unwrap();
        assert!(manifest.segments.len() > 1 && manifest.end.first_index <= COMPACTED_END);
        part.verify().unwrap();
        let kept = part.reader().read_offsets(0, u64::MAX, u64::MAX).unwrap();
        let keys: BTreeMap<u8, u64> =
            kept.iter().map(|entry| (entry.payload[0], entry.meta.index)).collect();
        assert_eq!((kept.len() as u64, keys.len() as u64), (KEYS, KEYS));
        for entry in kept {
            assert_eq!(entry.payload, groups_payload(entry.meta.index));
        }
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
    for path in files(&dir.path().join("log"), "log") {
        let whole = fs::read(&path).unwrap();
        rewrite(&path, 8, 2, 0, 124, false);
        let newer = fs::read(&path).unwrap();
        refused(open_log(), &path, 2, 1);
        assert_eq!(fs::read(&path).unwrap(), newer);
        fs::write(&path, whole).unwrap();
    }
    // The first frame of the newest segment.
    let newest = files(&dir.path().join("log"), "log").pop().unwrap();
    let whole = fs::read(&newest).unwrap();
    rewrite(&newest, 128 + 4, 9, 128, 128 + 76, false);
    refused(open_log(), &newest, 9, 2);
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
fn a_newer_version_of_a_groups_files_is_refused_too() {
    let dir = copy_of("v1-groups");
    for name in ["appends-a.journal", "appends-b.journal"] {
        let path = dir.path().join(name);
        let whole = fs::read(&path).unwrap();
        // Both copies of the header; their checksum covers what stands around it.
        let mut newer = whole.clone();
        for at in [0, 4096] {
            newer[at + 8] = 2;
            let crc = crc32fast::hash(&[&newer[at..at + 12], &newer[at + 16..at + 32]].concat());
            newer[at + 12..at + 16].copy_from_slice(&crc.to_le_bytes());
        }
        fs::write(&path, newer).unwrap();
        refused(JournaledDisk::open(disk(), dir.path()), &path, 2, 1);
        fs::write(&path, whole).unwrap();
    }
    let group = dir.path().join("1");
    let manifest = walk(&group).into_iter().find(|path| path.ends_with("manifest")).unwrap();
    rewrite(&manifest, 8, 2, 0, 16, true);
    refused(Compacted::open(disk(), &group, OpenSealed::default()), &manifest, 2, 1);
    // The summary can be done without: whatever it is, the segments themselves are looked at.
    let group = dir.path().join("2");
    rewrite(&group.join("sealed"), 8, 2, 0, 16, true);
    let journaled: Arc<dyn Disk> = Arc::new(JournaledDisk::open(disk(), dir.path()).unwrap());
    assert_eq!(Log::open(journaled, &group, options(), 0).unwrap().0.last_index(), GROUPS_LAST);
}

/// Every file below a directory.
fn walk(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

#[test]
fn an_index_file_of_another_version_is_built_anew() {
    let dir = copy();
    for path in files(&dir.path().join("log"), "index") {
        let whole = fs::read(&path).unwrap();
        rewrite(&path, 8, 2, 0, 16, true);
        // With it nobody would look at the index file before the first reader.
        let _ = fs::remove_file(dir.path().join("log/sealed"));
        let (_, report) = Log::open(disk(), &dir.path().join("log"), options(), 0).unwrap();
        assert_eq!(report.index_files_rebuilt, 1);
        assert_eq!(fs::read(&path).unwrap(), whole);
    }
}
