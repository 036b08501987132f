//! Files of dropped segments that hold the next ones: who may still see what, and what a crash makes of it.

use std::os::unix::fs::MetadataExt;

use super::*;
use crate::disk::{RealDisk, SimOp};

/// Appends until the log has begun another segment.
fn fill_until_roll(log: &mut Log) {
    let count = log.segments().len();
    while log.segments().len() == count {
        fill(log, 1, log.last_term().max(1));
    }
}

/// A log whose active segment, with one entry, stands in the file of an earlier one.
fn recycled(disk: &Arc<dyn Disk>) -> Log {
    let mut log = create(disk);
    fill_until_roll(&mut log);
    sync(&mut log);
    log.truncate_prefix(log.last_index()).unwrap();
    assert_eq!(files(disk, "spare").len(), 1);
    fill_until_roll(&mut log);
    assert_eq!(files(disk, "spare").len(), 0);
    assert!(log.active.segment.header.recycled);
    log
}

#[test]
fn what_stands_behind_the_end_of_a_recycled_segment_is_no_torn_tail() {
    let (_, disk) = sim(1);
    let mut log = recycled(&disk);
    sync(&mut log);
    let entries = all(&log);
    // The old frames have the size of the new ones, so they stand exactly where the next would.
    let (active, position) = (Arc::clone(&log.active.file), log.active.position);
    assert!(active.read(position, 4).unwrap()[..] == *b"HWfr");
    drop((log, active));
    let (mut log, report) = open(&disk);
    assert_eq!((all(&log), report.cut_from), (entries, None));
    assert!(log.active.segment.header.recycled, "it goes on in the same file");
    fill(&mut log, 2, 2);
    sync(&mut log);
    let entries = all(&log);
    assert_eq!(all(&open(&disk).0), entries);
}

#[test]
fn old_frames_are_never_accepted_whatever_a_crash_leaves_of_the_new_ones() {
    let (mut lost, mut kept, mut cut) = (0, 0, 0);
    for seed in 0..400 {
        let (sim, disk) = sim(seed);
        let mut log = recycled(&disk);
        let durable = if seed % 3 == 0 {
            log.durable_index()
        } else {
            sync(&mut log);
            log.last_index()
        };
        fill(&mut log, seed % 4, 2);
        let (first, entries) = (log.first_index(), all(&log));
        drop(log);
        sim.crash();
        let (mut log, report) = try_open(&disk, durable).unwrap();
        assert!(log.last_index() >= durable, "seed {seed}");
        let found = all(&log);
        assert_eq!((log.first_index(), &found[..]), (first, &entries[..found.len()]), "{seed}");
        (lost, kept) = (lost + entries.len() - found.len(), kept + log.last_index() - durable);
        cut += u64::from(report.cut_from.is_some());
        assert!(files(&disk, "spare").is_empty(), "spares do not outlive a restart");
        // On it goes, over another drop, another roll and another crash.
        fill_until_roll(&mut log);
        sync(&mut log);
        log.truncate_prefix(log.last_index()).unwrap();
        fill_until_roll(&mut log);
        sync(&mut log);
        let entries = all(&log);
        sim.crash();
        assert_eq!(all(&open(&disk).0), entries, "seed {seed}");
    }
    assert!(lost > 0 && kept > 0 && cut > 0, "{lost} lost, {kept} kept, {cut} cut");
}

#[test]
fn rot_in_a_recycled_segment_is_reported_and_never_cut() {
    let (sim, disk) = sim(1);
    let mut log = recycled(&disk);
    let first = log.last_index();
    sync(&mut log);
    fill(&mut log, 2, 1);
    sync(&mut log);
    drop(log);
    let newest = files(&disk, "log").pop().unwrap();
    for offset in [128, 128 + 20, 128 + 79, 128 + 80, 128 + 179] {
        sim.flip(&newest, offset, 4).unwrap();
        match try_open(&disk, 0) {
            Err(StorageError::Corrupt { index, .. }) => assert_eq!(index, first),
            other => panic!("expected corruption at {first}: {other:?}"),
        }
        sim.flip(&newest, offset, 4).unwrap();
    }
    assert_eq!(open(&disk).1.cut_from, None);
}

#[test]
fn a_file_is_written_over_only_when_nobody_holds_a_slice_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let real: Arc<dyn Disk> = Arc::new(RealDisk::new());
    let inode = |log: &Log| std::fs::metadata(&log.active.segment.path).unwrap().ino();
    let options = LogOptions { segment_bytes: 16 << 10, ..options() };
    let path = dir.path().join("log");
    let mut log = Log::create(Arc::clone(&real), &path, START, options).unwrap();
    let reader = log.reader();
    for held in [true, false, true] {
        let old_inode = inode(&log);
        let first = log.first_index();
        let index = log.last_index().max(first);
        fill_until_roll(&mut log);
        sync(&mut log);
        let slices = reader.entries(index, log.last_index(), u64::MAX).unwrap();
        assert!(slices.len() > 10);
        // The segment is closed and opened again: the first mapping's slices count as well.
        log.shared.state.read().segments[0].segment.close();
        let again = reader.entries(index, log.last_index(), u64::MAX).unwrap();
        drop(again);
        let slices = held.then_some(slices);
        log.truncate_prefix(log.last_index()).unwrap();
        fill_until_roll(&mut log);
        sync(&mut log);
        assert_eq!(inode(&log) == old_inode, !held, "held: {held}");
        for entry in slices.iter().flatten() {
            assert_eq!(entry.payload, payload(entry.meta.index));
        }
        log.truncate_prefix(log.last_index()).unwrap();
        log.spare = None;
    }
}

#[test]
fn a_reader_that_comes_too_late_is_told_so_and_sees_nothing_new_under_an_old_name() {
    let (_, disk) = sim(1);
    let mut log = create(&disk);
    fill_until_roll(&mut log);
    sync(&mut log);
    let old = log.shared.state.read().segments[0].clone();
    log.truncate_prefix(log.last_index()).unwrap();
    fill_until_roll(&mut log);
    let error = log.reader().frame_at(&old, 1).unwrap_err();
    assert!(matches!(error, StorageError::Compacted { .. }), "{error}");
}

#[test]
fn a_pool_bounds_the_spares_of_all_its_logs_and_gets_them_back() {
    let (_, disk) = sim(1);
    // Room for one file, not for two.
    let options = LogOptions { spares: Some(SparePool::new(1500)), ..options() };
    let mut logs: Vec<Log> = ["a", "b"]
        .map(|name| {
            Log::create(Arc::clone(&disk), Path::new(name), START, options.clone()).unwrap()
        })
        .into();
    let spares = |disk: &Arc<dyn Disk>| {
        let names = ["a", "b"].map(|dir| disk.list(Path::new(dir)).unwrap());
        names.concat().iter().filter(|name| name.ends_with("spare")).count()
    };
    for log in &mut logs {
        fill_until_roll(log);
        sync(log);
        log.truncate_prefix(log.last_index()).unwrap();
    }
    assert_eq!(spares(&disk), 1);
    assert!(logs[0].spare.is_some() && logs[1].spare.is_none());
    fill_until_roll(&mut logs[0]);
    sync(&mut logs[1]);
    fill_until_roll(&mut logs[1]);
    sync(&mut logs[1]);
    let last = logs[1].last_index();
    logs[1].truncate_prefix(last).unwrap();
    assert_eq!(spares(&disk), 1);
    assert!(logs[1].spare.is_some());
}

#[test]
fn a_spare_that_cannot_be_used_costs_nothing_but_itself() {
    for op in [SimOp::Open, SimOp::Write, SimOp::Rename] {
        let (sim, disk) = sim(1);
        let mut log = create(&disk);
        fill_until_roll(&mut log);
        sync(&mut log);
        log.truncate_prefix(log.last_index()).unwrap();
        while !log.will_roll(100) {
            fill(&mut log, 1, 1);
        }
        sim.fail_next(op, std::io::ErrorKind::Other);
        let next = log.last_index() + 1;
        // Only a header that may have been written stops the roll; then it may be tried again.
        let appended = log.append(&meta(next, 1, 2), &[&payload(next)]);
        assert_eq!(appended.is_ok(), op != SimOp::Write, "{op:?}");
        if appended.is_err() {
            fill(&mut log, 1, 1);
        }
        sync(&mut log);
        let entries = all(&log);
        assert_eq!(log.last_index(), next);
        sim.crash();
        assert_eq!(all(&open(&disk).0), entries, "{op:?}");
        assert!(files(&disk, "spare").is_empty());
    }
}
