//! Opening after crashes, torn tails, bit flips and lost files.

use super::*;
use crate::disk::RealDisk;

#[test]
fn everything_is_there_after_reopening_without_a_sync() {
    let (_, disk) = sim(1);
    let mut log = create(&disk);
    fill(&mut log, 23, 1);
    let entries = all(&log);
    drop(log);
    let (log, report) = open(&disk);
    assert_eq!(all(&log), entries);
    assert_eq!((log.durable_index(), report.cut_from), (23, None));
}

#[test]
fn synced_entries_survive_every_crash_and_the_rest_is_a_prefix() {
    let (mut cut, mut kept) = (0, 0);
    for seed in 0..300 {
        let (sim, disk) = sim(seed);
        let mut log = create(&disk);
        fill(&mut log, 1 + seed % 13, 1);
        sync(&mut log);
        let durable = log.last_index();
        fill(&mut log, seed % 17, 2);
        let entries = all(&log);
        sim.crash();
        let (mut log, report) = try_open(&disk, durable).unwrap();
        let last = log.last_index();
        assert!(last >= durable, "seed {seed}");
        assert_eq!(all(&log), entries[..usize::try_from(last).unwrap()], "seed {seed}");
        cut += u64::from(report.cut_from.is_some());
        kept += last - durable;
        // It goes on, and the second crash finds what the first left.
        fill(&mut log, 3, 3);
        sync(&mut log);
        let entries = all(&log);
        sim.crash();
        assert_eq!(all(&open(&disk).0), entries, "seed {seed}");
    }
    assert!(cut > 0 && kept > 0, "the crashes tore {cut} tails and kept {kept} entries");
}

/// Entries 1..=12 over three segments, in two syncs, so that frames claim their predecessors.
fn two_syncs(disk: &Arc<dyn Disk>) -> Log {
    let mut log = create(disk);
    fill(&mut log, 9, 1);
    sync(&mut log);
    fill(&mut log, 3, 1);
    sync(&mut log);
    log
}

fn expect_corrupt(result: Result<(Log, RecoveryReport), StorageError>, at: u64) {
    match result {
        Err(StorageError::Corrupt { index, .. }) => assert_eq!(index, at),
        other => panic!("expected corruption at {at}: {other:?}"),
    }
}

#[test]
fn a_flipped_bit_in_what_had_been_durable_is_reported_and_never_cut() {
    let (sim, disk) = sim(1);
    drop(two_syncs(&disk));
    let newest = files(&disk, "log").pop().unwrap();
    // Entry 9 is the first of the newest segment; the ones after it claim that it was durable.
    for offset in (128..128 + 80 + 100).filter(|offset| *offset != 128 + 6 && *offset != 128 + 7) {
        sim.flip(&newest, offset, 1 << (offset % 8)).unwrap();
        expect_corrupt(try_open(&disk, 0), 9);
        sim.flip(&newest, offset, 1 << (offset % 8)).unwrap();
    }
    let (log, report) = open(&disk);
    assert_eq!((log.last_index(), report.cut_from), (12, None));
}

#[test]
fn a_flipped_bit_in_a_segment_header_is_reported() {
    let (sim, disk) = sim(1);
    drop(two_syncs(&disk));
    for (path, first_index) in files(&disk, "log").into_iter().zip([1, 5, 9]) {
        for offset in [0, 9, 24, 33, 60, 127] {
            sim.flip(&path, offset, 16).unwrap();
            expect_corrupt(try_open(&disk, 0), first_index);
            sim.flip(&path, offset, 16).unwrap();
        }
    }
}

#[test]
fn damage_at_the_very_end_is_a_torn_tail_unless_the_commit_says_otherwise() {
    let (sim, disk) = sim(1);
    drop(two_syncs(&disk));
    let newest = files(&disk, "log").pop().unwrap();
    // Entry 12, the last: nothing was written after it was durable.
    let offset = 128 + 3 * 184 + 85;
    sim.flip(&newest, offset, 1).unwrap();
    // Its payload is only read here if the floor does not cover it.
    let (log, _) = try_open(&disk, 12).unwrap();
    assert!(log.reader().entries(12, 13, 10).unwrap_err().is_corrupt());
    drop(log);
    sim.flip(&newest, offset - 80, 1).unwrap();
    expect_corrupt(try_open(&disk, 12), 12);
    let (mut log, report) = try_open(&disk, 11).unwrap();
    assert_eq!((log.last_index(), report.cut_from), (11, Some(12)));
    fill(&mut log, 2, 4);
    sync(&mut log);
    assert_eq!(open(&disk).0.last_index(), 13);
}

#[test]
fn a_log_that_ends_below_the_floor_is_corrupt() {
    let (_, disk) = sim(1);
    drop(two_syncs(&disk));
    expect_corrupt(try_open(&disk, 13), 13);
    assert_eq!(try_open(&disk, 12).unwrap().0.last_index(), 12);
}

#[test]
fn a_missing_segment_is_reported_wherever_it_was() {
    for missing in 0..2 {
        let (_, disk) = sim(1);
        drop(two_syncs(&disk));
        disk.remove_file(&files(&disk, "log")[missing]).unwrap();
        assert!(try_open(&disk, 0).unwrap_err().is_corrupt(), "segment {missing}");
    }
    let (_, disk) = sim(1);
    let mut log = two_syncs(&disk);
    log.truncate_prefix(5).unwrap();
    drop(log);
    disk.remove_file(&files(&disk, "log")[0]).unwrap();
    assert!(try_open(&disk, 0).unwrap_err().is_corrupt());
}

#[test]
fn index_files_are_rebuilt_when_they_are_missing_or_wrong() {
    let (sim, disk) = sim(1);
    let mut log = create(&disk);
    fill(&mut log, 23, 1);
    sync(&mut log);
    let entries = all(&log);
    drop(log);
    let indexes = files(&disk, "index");
    assert_eq!(indexes.len(), 5);
    assert_eq!(open(&disk).1.index_files_rebuilt, 0);
    let break_one: [&dyn Fn(&Path); 4] = [
        &|path| disk.remove_file(path).unwrap(),
        &|path| sim.flip(path, 40, 1).unwrap(),
        &|path| sim.flip(path, 3, 1).unwrap(),
        &|path| {
            // Whole and intact, but another segment's.
            disk.remove_file(path).unwrap();
            disk.rename(&indexes[4], path).unwrap();
        },
    ];
    for break_it in break_one {
        break_it(&indexes[1]);
        disk.remove_file(&Path::new(DIR).join(summary::FILE)).unwrap();
        let (log, report) = open(&disk);
        assert!((1..=2).contains(&report.index_files_rebuilt), "{report:?}");
        assert_eq!(all(&log), entries);
        assert_eq!(files(&disk, "index"), indexes);
        // With the summary nobody asks for the index file before the first reader.
        break_it(&indexes[1]);
        let (log, report) = open(&disk);
        assert_eq!(report.index_files_rebuilt, 0);
        assert_eq!(all(&log), entries);
        assert_eq!(files(&disk, "index"), indexes);
        drop(log);
        disk.remove_file(&Path::new(DIR).join(summary::FILE)).unwrap();
        assert_eq!(open(&disk).1.index_files_rebuilt, 0);
    }
}

/// 30 sealed segments, all of them in the summary.
fn summarized(disk: &Arc<dyn Disk>) -> Log {
    let mut log = create(disk);
    while log.segments().len() <= 30 {
        fill(&mut log, 1, 1);
    }
    sync(&mut log);
    drop(log);
    open(disk).0
}

#[test]
fn sealed_segments_in_the_summary_are_not_opened() {
    let (sim, disk) = sim(1);
    let log = summarized(&disk);
    let entries = all(&log);
    drop(log);
    for path in files(&disk, "log").iter().take(26) {
        // Nobody looks at it: a scrub will, and does.
        sim.flip(path, 9, 1).unwrap();
    }
    let (log, _) = open(&disk);
    assert_eq!(all(&log), entries);
    assert_eq!(log.reader().scrub(0, u64::MAX).unwrap().findings.len(), 26);
    drop(log);
    disk.remove_file(&Path::new(DIR).join(summary::FILE)).unwrap();
    assert!(try_open(&disk, 0).unwrap_err().is_corrupt());
}

#[test]
fn a_log_opens_the_same_with_any_summary() {
    let path = Path::new(DIR).join(summary::FILE);
    for seed in 0..60 {
        let (sim, disk) = sim(seed);
        let mut log = summarized(&disk);
        let stale = disk.open(&path, 0).unwrap();
        let stale = stale.read(0, usize::try_from(stale.len()).unwrap()).unwrap();
        // What the summary says of these segments is no longer so.
        if seed % 2 == 0 {
            log.truncate_suffix(log.last_index() - seed).unwrap();
        }
        if seed % 3 == 0 {
            log.truncate_prefix(seed).unwrap();
        }
        fill(&mut log, seed % 30, 2);
        sync(&mut log);
        let entries = all(&log);
        drop(log);
        match seed % 4 {
            0 => disk.remove_file(&path).unwrap(),
            1 => sim.flip(&path, 25 + seed * 50, 1).unwrap(),
            2 => {
                disk.remove_file(&path).unwrap();
                disk.create(&path, 0).unwrap().write_at(0, &[&stale]).unwrap();
            }
            _ => {}
        }
        let (log, report) = open(&disk);
        assert_eq!(report.cut_from, None, "seed {seed}");
        assert_eq!(all(&log), entries, "seed {seed}");
    }
}

#[test]
fn an_index_file_spares_the_walk_over_its_segment() {
    let (_, disk) = sim(1);
    let mut log = create(&disk);
    fill(&mut log, 23, 1);
    sync(&mut log);
    drop(log);
    assert_eq!(open(&disk).1.frames_checked, 3);
}

#[test]
fn an_interrupted_creation_is_replaced() {
    for seed in 0..50 {
        let (sim, disk) = sim(seed);
        sim.fail_next(crate::disk::SimOp::Sync, std::io::ErrorKind::Other);
        Log::create(Arc::clone(&disk), Path::new(DIR), START, options()).unwrap_err();
        sim.crash();
        match Log::create(Arc::clone(&disk), Path::new(DIR), START, options()) {
            Ok(_) | Err(StorageError::AlreadyExists { .. }) => {}
            Err(error) => panic!("seed {seed}: {error}"),
        }
        assert_eq!(open(&disk).0.last_index(), 0, "seed {seed}");
    }
}

#[test]
fn any_bytes_at_all_open_or_are_refused_without_a_panic() {
    let mut random = 7_u64;
    for round in 0..400_u64 {
        let (sim, disk) = sim(round);
        let mut log = two_syncs(&disk);
        fill(&mut log, 2, 1);
        drop(log);
        let mut paths = files(&disk, "log");
        paths.extend(files(&disk, "index"));
        for _ in 0..=round % 5 {
            random = mix(random + 1);
            let path = &paths[usize::try_from(random % paths.len() as u64).unwrap()];
            let len = disk.open(path, 0).unwrap().len();
            let _ = sim.flip(path, (random >> 8) % len.min(900), (random >> 40).to_le_bytes()[0]);
        }
        if let Ok((log, _)) = try_open(&disk, 0) {
            let reader = log.reader();
            let _ = reader.entries(log.first_index(), log.last_index() + 1, u64::MAX);
            let _ = reader.read_offsets(0, u64::MAX, u64::MAX);
            let _ = reader.entry_at_time(50, u64::MAX);
        }
    }
}

#[test]
fn a_real_directory_keeps_its_log_through_reopening_growth_and_truncation() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("topic/0");
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::new());
    let options = LogOptions { segment_bytes: 300_000, ..LogOptions::default() };
    let mut log = Log::create(Arc::clone(&disk), &path, START, options.clone()).unwrap();
    let body = vec![5; 10_000];
    let reader = log.reader();
    for index in 1..=100 {
        log.append(&meta(index, 1, 1), &[&body[..5000], &body[5000..]]).unwrap();
        assert_eq!(reader.entries(index, index + 1, 0).unwrap()[0].payload, body);
    }
    assert_eq!(log.segments().len(), 4);
    let held = reader.entries(95, 97, u64::MAX).unwrap();
    log.truncate_suffix(96).unwrap();
    log.append(&meta(96, 2, 1), &[b"other"]).unwrap();
    log.truncate_prefix(40).unwrap();
    let entries = all(&log);
    drop((log, reader));
    assert!(held.iter().all(|entry| entry.payload == body));
    let (mut log, report) = Log::open(Arc::clone(&disk), &path, options.clone(), 95).unwrap();
    assert_eq!(report.cut_from, None);
    assert_eq!(all(&log), entries);
    for index in 97..=120 {
        log.append(&meta(index, 2, 1), &[&body]).unwrap();
    }
    sync(&mut log);
    let entries = all(&log);
    drop(log);
    let (log, _) = Log::open(Arc::clone(&disk), &path, options, 120).unwrap();
    assert_eq!(all(&log), entries);
}

#[test]
fn many_real_logs_become_durable_in_one_group() {
    let dir = tempfile::tempdir().unwrap();
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::new());
    let mut logs: Vec<Log> = (0..20)
        .map(|p| {
            let path = dir.path().join(format!("{p}"));
            let mut log = Log::create(Arc::clone(&disk), &path, START, options()).unwrap();
            fill(&mut log, 9, 1);
            log
        })
        .collect();
    let points: Vec<SyncPoint> = logs.iter().map(Log::sync_point).collect();
    sync_group(&points).unwrap();
    for (log, point) in logs.iter_mut().zip(&points) {
        log.mark_durable(point);
        assert_eq!(log.durable_index(), 9);
    }
}
