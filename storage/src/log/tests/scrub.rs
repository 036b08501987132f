//! The scrub of sealed segments, and readers while segments retire.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::disk::RealDisk;

/// Scrubs all there is in steps of `bytes_max`; what was found, and how many steps and bytes it took.
fn scrub_all(log: &Log, bytes_max: u64) -> (Vec<Finding>, usize, u64) {
    let reader = log.reader();
    let (mut findings, mut steps, mut bytes, mut next) = (Vec::new(), 0, 0, Some(0));
    while let Some(from) = next {
        let step = reader.scrub(from, bytes_max).unwrap();
        assert!(
            step.bytes <= bytes_max.saturating_add(128 + 2 * 184),
            "{} bytes in a step",
            step.bytes
        );
        findings.extend(step.findings);
        (steps, bytes, next) = (steps + 1, bytes + step.bytes, step.next_index);
        assert!(next.is_none_or(|next| next > from), "it gets on");
    }
    (findings, steps, bytes)
}

#[test]
fn a_scrub_reads_every_sealed_byte_once_in_steps_as_small_as_asked_for() {
    let (_, disk) = sim(1);
    let mut log = create(&disk);
    fill(&mut log, 23, 1);
    sync(&mut log);
    let sealed: u64 = log.segments().iter().rev().skip(1).map(|segment| segment.bytes).sum();
    assert_eq!(scrub_all(&log, u64::MAX), (Vec::new(), 1, sealed));
    let (findings, steps, bytes) = scrub_all(&log, 1);
    assert_eq!((findings, bytes), (Vec::new(), sealed));
    assert!(steps >= 20, "one frame a step: {steps}");
    log.truncate_prefix(12).unwrap();
    assert!(scrub_all(&log, 300).2 < sealed);
}

#[test]
fn every_flipped_bit_of_a_sealed_segment_is_a_finding_and_the_other_segments_are_looked_at() {
    let (sim, disk) = sim(1);
    let mut log = create(&disk);
    fill(&mut log, 23, 1);
    sync(&mut log);
    let paths = files(&disk, "log");
    let (first, third) = (&paths[0], &paths[2]);
    let info = log.segments()[2];
    for offset in (0..info.bytes).filter(|offset| {
        // Padding is covered by nothing, and means nothing.
        *offset < 128 || (offset - 128) % 184 < 180
    }) {
        sim.flip(first, 140, 2).unwrap();
        sim.flip(third, offset, 1).unwrap();
        let (findings, _, _) = scrub_all(&log, 500);
        let expected = info.first_index + offset.saturating_sub(128) / 184;
        let found: Vec<(&PathBuf, u64)> =
            findings.iter().map(|finding| (&finding.path, finding.index)).collect();
        assert_eq!(found, [(first, 1), (third, expected)], "offset {offset}");
        sim.flip(first, 140, 2).unwrap();
        sim.flip(third, offset, 1).unwrap();
    }
    assert_eq!(scrub_all(&log, 500).0, []);
}

#[test]
fn readers_and_a_scrub_see_whole_entries_while_segments_retire_and_their_files_are_reused() {
    let dir = tempfile::tempdir().unwrap();
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::new());
    let options = LogOptions { segment_bytes: 16 << 10, ..options() };
    let mut log = Log::create(disk, &dir.path().join("log"), START, options).unwrap();
    let done = AtomicBool::new(false);
    let read = |reader: LogReader| {
        let mut held = std::collections::VecDeque::new();
        while !done.load(Ordering::Acquire) {
            let from = reader.first_index();
            match reader.entries(from, (from + 40).min(reader.last_index() + 1), u64::MAX) {
                Ok(entries) => held.push_back(entries),
                Err(StorageError::Compacted { .. } | StorageError::Unavailable { .. }) => {}
                Err(error) => panic!("{error}"),
            }
            if held.len() > 8 {
                held.pop_front();
            }
            // What is held says the same, long after its segment retired.
            for entry in held.iter().flatten() {
                assert_eq!(entry.payload, payload(entry.meta.index));
            }
        }
    };
    let mut recycled = 0;
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let reader = log.reader();
            scope.spawn(move || read(reader));
        }
        let scrubber = log.reader();
        scope.spawn(|| {
            let scrubber = scrubber;
            while !done.load(Ordering::Acquire) {
                assert_eq!(scrubber.scrub(0, u64::MAX).unwrap().findings, []);
            }
        });
        for _ in 0..300 {
            fill(&mut log, 40, 1);
            sync(&mut log);
            let keep = log.last_index().saturating_sub(100);
            log.truncate_prefix(keep).unwrap();
            recycled += u32::from(log.active.segment.header.recycled);
        }
        // Nobody reads any more: the next files are reused for certain.
        done.store(true, Ordering::Release);
    });
    for _ in 0..10 {
        fill(&mut log, 100, 1);
        sync(&mut log);
        log.truncate_prefix(log.last_index()).unwrap();
        recycled += u32::from(log.active.segment.header.recycled);
    }
    assert!(recycled > 0);
}

#[test]
fn logs_open_without_a_sync_of_their_own_behind_one_for_all() {
    let (sim, disk) = sim(1);
    let mut log = create(&disk);
    fill(&mut log, 9, 1);
    let entries = all(&log);
    drop(log);
    let elsewhere = Settled::below(&*disk, Path::new("other")).unwrap();
    assert!(!elsewhere.covers(Path::new(DIR)));
    let settled = Settled::below(&*disk, Path::new("data")).unwrap();
    for op in [crate::disk::SimOp::Sync, crate::disk::SimOp::SyncDir] {
        sim.fail_next(op, std::io::ErrorKind::Other);
    }
    let open_settled =
        |floor| Log::open_settled(Arc::clone(&disk), Path::new(DIR), options(), floor, &settled);
    let (log, _) = open_settled(9).unwrap();
    assert_eq!(all(&log), entries);
    drop(log);
    // Not known to be durable: the sync of everything may have left out what an earlier, failed one took for clean.
    open_settled(0).unwrap_err();
    // Without that proof the names are synced too.
    try_open(&disk, 9).unwrap_err();
    sim.crash();
    assert_eq!(all(&open(&disk).0), entries, "it was durable");
}

#[test]
fn what_a_failed_sync_left_in_memory_only_is_durable_once_the_next_process_has_opened_the_log() {
    for seed in 0..100 {
        let (sim, disk) = sim(seed);
        let mut log = create(&disk);
        fill(&mut log, 3 + seed % 7, 1);
        sync(&mut log);
        fill(&mut log, 1 + seed % 9, 1);
        sim.fail_next(crate::disk::SimOp::Sync, std::io::ErrorKind::Other);
        log.sync_point().sync().unwrap_err();
        drop(log);
        // The machine did not lose power: the page cache still has it all, and may call it clean.
        let entries = all(&open(&disk).0);
        sim.crash();
        assert_eq!(all(&open(&disk).0), entries, "seed {seed}");
    }
}
