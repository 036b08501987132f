//! Appending, rolling, truncating, resetting, and what fails on the way.

use std::io;

use super::*;
use crate::disk::SimOp;

#[test]
fn appended_entries_are_readable_at_once_with_their_offsets() {
    let (_, disk) = sim(1);
    let mut log = create(&disk);
    let reader = log.reader();
    assert_eq!(log.append(&meta(1, 1, 0), &[]).unwrap(), 0);
    assert_eq!(log.append(&meta(2, 1, 3), &[b"ab", b"", b"c"]).unwrap(), 0);
    assert_eq!(log.append(&meta(3, 2, 1), &[b"d"]).unwrap(), 3);
    let entries = reader.entries(1, 4, u64::MAX).unwrap();
    assert_eq!(entries[1].meta, meta(2, 1, 3));
    assert_eq!(&entries[1].payload[..], b"abc");
    assert_eq!((entries[1].base_offset, entries[1].end_offset()), (0, 3));
    assert_eq!((reader.last_index(), reader.next_offset()), (3, 4));
    assert_eq!(log.durable_index(), 0);
    sync(&mut log);
    assert_eq!(log.durable_index(), 3);
}

#[test]
fn entries_out_of_order_and_payloads_beyond_the_limit_are_refused() {
    let (_, disk) = sim(1);
    let mut log = create(&disk);
    fill(&mut log, 2, 5);
    let error = log.append(&meta(5, 5, 1), &[]).unwrap_err();
    assert!(matches!(error, StorageError::OutOfSequence { expected: 3, got: 5 }));
    let error = log.append(&meta(3, 4, 1), &[]).unwrap_err();
    assert!(matches!(error, StorageError::TermDecreased { last: 5, got: 4, .. }));
    let error = log.append(&meta(3, 5, 1), &[&[0; 4097]]).unwrap_err();
    assert!(matches!(error, StorageError::PayloadTooLarge { bytes: 4097, bytes_max: 4096 }));
    fill(&mut log, 1, 5);
    assert_eq!(all(&log).len(), 3);
}

#[test]
fn a_log_may_begin_anywhere() {
    let (_, disk) = sim(1);
    let start = LogStart { first_index: 100, prev_term: 7, next_offset: 5000 };
    let mut log = Log::create(Arc::clone(&disk), Path::new(DIR), start, options()).unwrap();
    assert_eq!((log.first_index(), log.last_index(), log.last_term()), (100, 99, 7));
    assert_eq!((log.start(), log.next_offset(), log.durable_index()), (start, 5000, 99));
    assert_eq!(log.reader().term(99), Some(7));
    assert_eq!(log.reader().end_offset(99), Some(5000));
    fill(&mut log, 1, 8);
    let (log, _) = open(&disk);
    assert_eq!(log.start(), start);
    assert_eq!(all(&log)[0].base_offset, 5000);
}

#[test]
fn creating_a_log_where_there_is_one_is_refused() {
    let (_, disk) = sim(1);
    create(&disk);
    let again = Log::create(Arc::clone(&disk), Path::new(DIR), START, options());
    assert!(matches!(again, Err(StorageError::AlreadyExists { .. })));
    assert!(matches!(
        Log::open(disk, Path::new("data/none"), options(), 0),
        Err(StorageError::NotFound { .. })
    ));
}

#[test]
fn a_full_segment_rolls_and_says_so_before() {
    let (_, disk) = sim(1);
    let mut log = create(&disk);
    let mut rolls = 0;
    for index in 1..=20 {
        let segments = log.segments().len();
        let will_roll = log.will_roll(100);
        fill(&mut log, 1, 1);
        assert_eq!(log.segments().len() > segments, will_roll, "entry {index}");
        rolls += u64::from(will_roll);
    }
    assert_eq!(rolls, 4);
    let segments = log.segments();
    assert!(segments.windows(2).all(|pair| pair[0].end_index == pair[1].first_index));
    assert!(segments.windows(2).all(|pair| pair[0].end_offset == pair[1].base_offset));
    assert!(segments.iter().all(|segment| segment.bytes <= 1024));
    assert_eq!(segments.iter().map(|segment| segment.bytes).sum::<u64>(), log.size_bytes());
    assert_eq!(segments[0].last_append_time_ms, 40);
    assert_eq!(segments[0].max_timestamp_ms, 37);
    assert_eq!(all(&log).len(), 20);
}

#[test]
fn a_payload_larger_than_a_segment_gets_one_of_its_own() {
    let (_, disk) = sim(1);
    let mut log = create(&disk);
    fill(&mut log, 1, 1);
    log.append(&meta(2, 1, 1), &[&[7; 4096]]).unwrap();
    fill(&mut log, 1, 1);
    assert_eq!(log.segments().len(), 3);
    assert_eq!(all(&log)[1].payload.len(), 4096);
}

#[test]
fn rolling_by_hand_seals_what_is_there_and_nothing_if_it_is_empty() {
    let (_, disk) = sim(1);
    let mut log = create(&disk);
    log.roll().unwrap();
    assert_eq!((log.segments().len(), log.active_since_ms()), (1, None));
    fill(&mut log, 2, 1);
    assert_eq!(log.active_since_ms(), Some(10));
    log.roll().unwrap();
    assert_eq!((log.segments().len(), log.active_since_ms()), (2, None));
    fill(&mut log, 1, 1);
    let (log, _) = open(&disk);
    assert_eq!((log.segments().len(), log.active_since_ms()), (2, Some(30)));
}

#[test]
fn a_new_segment_size_holds_from_the_next_roll_on() {
    let (_, disk) = sim(1);
    let mut log = create(&disk);
    log.set_segment_bytes(2048);
    fill(&mut log, 30, 1);
    let bytes: Vec<u64> = log.segments().iter().map(|segment| segment.bytes).collect();
    assert!(bytes[0] <= 1024 && bytes[1] > 1024, "{bytes:?}");
    assert_eq!(all(&log).len(), 30);
}

#[test]
fn truncated_entries_are_gone_and_their_places_are_used_again() {
    for from in 1..=12 {
        let (_, disk) = sim(from);
        let mut log = create(&disk);
        fill(&mut log, 11, 1);
        let old = all(&log);
        log.truncate_suffix(from).unwrap();
        assert_eq!((log.last_index(), log.next_offset()), (from - 1, (from - 1) * 2));
        if from <= 11 {
            assert_eq!(log.durable_index(), from - 1);
        }
        let index = log.last_index() + 1;
        log.append(&meta(index, 9, 5), &[b"new"]).unwrap();
        let check = |log: &Log| {
            let entries = all(log);
            let kept = usize::try_from(from - 1).unwrap();
            assert_eq!(entries[..kept], old[..kept]);
            assert_eq!(&entries[kept].payload[..], b"new");
            assert_eq!(entries.len(), kept + 1);
            assert_eq!(log.last_term(), 9);
            assert_eq!(log.reader().term(from - 1), Some(u64::from(from > 1)));
        };
        check(&log);
        let (log, report) = open(&disk);
        check(&log);
        assert_eq!(report.cut_from, None);
        assert_eq!(old.len(), 11, "what a reader holds does not change");
        assert_eq!(&old[10].payload[..], &payload(11)[..]);
    }
}

#[test]
fn truncating_outside_of_the_log_is_refused() {
    let (_, disk) = sim(1);
    let mut log = create(&disk);
    fill(&mut log, 3, 1);
    log.truncate_suffix(5).unwrap_err();
    log.truncate_suffix(0).unwrap_err();
    log.truncate_suffix(4).unwrap();
    assert_eq!(all(&log).len(), 3);
}

#[test]
fn a_truncation_stands_after_every_crash() {
    for seed in 0..100 {
        let (sim, disk) = sim(seed);
        let mut log = create(&disk);
        fill(&mut log, 11, 1);
        sync(&mut log);
        log.truncate_suffix(4).unwrap();
        sim.crash();
        let (log, _) = open(&disk);
        assert_eq!(log.last_index(), 3, "seed {seed}");
        assert_eq!(all(&log).len(), 3);
    }
}

#[test]
fn a_sync_point_of_before_a_truncation_proves_nothing_after() {
    let (_, disk) = sim(1);
    let mut log = create(&disk);
    fill(&mut log, 8, 1);
    let point = log.sync_point();
    log.truncate_suffix(4).unwrap();
    fill(&mut log, 8, 2);
    point.sync().unwrap();
    log.mark_durable(&point);
    assert_eq!(log.durable_index(), 3);
    sync(&mut log);
    assert_eq!(log.durable_index(), 11);
}

#[test]
fn dropping_old_segments_moves_the_start_and_frees_bytes() {
    let (_, disk) = sim(1);
    let mut log = create(&disk);
    fill(&mut log, 5, 1);
    fill(&mut log, 7, 2);
    let size = log.size_bytes();
    assert_eq!(log.truncate_prefix(3).unwrap(), 0);
    let freed = log.truncate_prefix(10).unwrap();
    let start = LogStart { first_index: 9, prev_term: 2, next_offset: 16 };
    assert_eq!((log.start(), log.size_bytes()), (start, size - freed));
    assert_eq!(log.reader().term(8), Some(2));
    assert_eq!(log.reader().term(7), None);
    assert_eq!(log.reader().end_offset(8), Some(16));
    assert_eq!(log.reader().epochs(), [Epoch { term: 2, first_index: 9, base_offset: 16 }]);
    let error = log.reader().entries(8, 10, 100).unwrap_err();
    assert!(matches!(error, StorageError::Compacted { first_index: 9 }));
    let error = log.reader().read_offsets(15, 20, 100).unwrap_err();
    assert!(matches!(error, StorageError::Compacted { .. }));
    let entries = all(&log);
    let (log, _) = open(&disk);
    assert_eq!((log.start(), all(&log)), (start, entries));
    assert_eq!(log.reader().epochs(), [Epoch { term: 2, first_index: 9, base_offset: 16 }]);
}

#[test]
fn the_active_segment_is_never_dropped() {
    let (_, disk) = sim(1);
    let mut log = create(&disk);
    fill(&mut log, 2, 1);
    assert_eq!(log.truncate_prefix(100).unwrap(), 0);
    log.roll().unwrap();
    assert!(log.truncate_prefix(100).unwrap() > 0);
    assert_eq!((log.first_index(), log.last_index(), log.next_offset()), (3, 2, 4));
    assert_eq!(log.last_term(), 1);
    let (mut log, _) = open(&disk);
    assert_eq!((log.first_index(), log.last_index(), log.next_offset()), (3, 2, 4));
    fill(&mut log, 1, 1);
    assert_eq!(all(&log).len(), 1);
}

#[test]
fn a_reset_drops_everything_and_stands_after_every_crash() {
    for seed in 0..50 {
        let (sim, disk) = sim(seed);
        let mut log = create(&disk);
        fill(&mut log, 11, 1);
        let start = LogStart { first_index: 500, prev_term: 3, next_offset: 900 };
        log.reset(start).unwrap();
        assert_eq!((log.start(), log.last_index(), log.durable_index()), (start, 499, 499));
        sim.crash();
        let (mut log, _) = open(&disk);
        assert_eq!((log.start(), log.last_index(), log.last_term()), (start, 499, 3));
        fill(&mut log, 1, 4);
        assert_eq!(all(&log)[0].base_offset, 900);
    }
}

#[test]
fn a_full_disk_refuses_appends_and_resumes_when_there_is_room() {
    let (sim, disk) = sim(1);
    let mut log = create(&disk);
    fill(&mut log, 4, 1);
    sim.set_capacity(Some(sim.used_bytes()));
    while !log.will_roll(100) {
        fill(&mut log, 1, 1);
    }
    let last = log.last_index();
    let error = log.append(&meta(last + 1, 1, 2), &[&payload(last + 1)]).unwrap_err();
    assert!(error.is_disk_full(), "{error}");
    assert!(log.roll().unwrap_err().is_disk_full());
    assert!(log.truncate_suffix(2).unwrap_err().is_disk_full());
    assert_eq!(all(&log).len() as u64, last);
    sync(&mut log);
    assert_eq!(log.durable_index(), last);
    sim.set_capacity(None);
    fill(&mut log, 10, 1);
    assert_eq!(all(&log).len() as u64, last + 10);
    assert_eq!(all(&open(&disk).0), all(&log));
}

#[test]
fn a_failed_roll_may_be_tried_again_whatever_failed() {
    for op in [SimOp::Create, SimOp::Allocate, SimOp::Write] {
        for seed in 0..20 {
            let (sim, disk) = sim(seed);
            let mut log = create(&disk);
            fill(&mut log, 2, 1);
            sim.fail_next(op, io::ErrorKind::Other);
            log.roll().unwrap_err();
            fill(&mut log, 2, 1);
            log.roll().unwrap();
            fill(&mut log, 1, 1);
            sync(&mut log);
            let entries = all(&log);
            assert_eq!(entries.len(), 5);
            sim.crash();
            assert_eq!(all(&open(&disk).0), entries, "{op:?} {seed}");
        }
    }
}

#[test]
fn a_failed_roll_whose_file_stays_behind_hides_nothing() {
    for seed in 0..20 {
        let (sim, disk) = sim(seed);
        let mut log = create(&disk);
        fill(&mut log, 2, 1);
        sim.fail_next(SimOp::Write, io::ErrorKind::Other);
        sim.fail_next(SimOp::Remove, io::ErrorKind::Other);
        log.roll().unwrap_err();
        assert_eq!(files(&disk, "log").len(), 2);
        fill(&mut log, 1, 1);
        sync(&mut log);
        let entries = all(&log);
        assert_eq!(all(&open(&disk).0), entries, "seed {seed}");
    }
}

#[test]
fn a_failed_append_leaves_no_trace() {
    for seed in 0..50 {
        let (sim, disk) = sim(seed);
        let mut log = create(&disk);
        if seed % 2 == 0 {
            fill(&mut log, 2, 1);
        }
        let next = log.last_index() + 1;
        sim.fail_next(SimOp::Write, io::ErrorKind::Other);
        log.append(&meta(next, 1, 2), &[b"never"]).unwrap_err();
        assert_eq!(log.last_index(), next - 1);
        fill(&mut log, 3, 1);
        sync(&mut log);
        let entries = all(&log);
        assert_eq!(entries.len() as u64, next + 2);
        sim.crash();
        assert_eq!(all(&open(&disk).0), entries, "seed {seed}");
    }
}

#[test]
fn after_a_truncation_that_failed_halfway_nothing_is_written_until_it_is_repeated() {
    for op in [SimOp::Sync, SimOp::SyncDir, SimOp::Write] {
        for seed in 0..20 {
            let (sim, disk) = sim(seed);
            let mut log = create(&disk);
            fill(&mut log, 7, 1);
            sync(&mut log);
            sim.fail_next(op, io::ErrorKind::Other);
            log.truncate_suffix(3).unwrap_err();
            let error = log.append(&meta(8, 1, 1), &[]).unwrap_err();
            assert!(matches!(error, StorageError::Interrupted { .. }));
            if seed % 2 == 0 {
                log.truncate_suffix(3).unwrap();
                fill(&mut log, 2, 2);
                sync(&mut log);
                let entries = all(&log);
                sim.crash();
                assert_eq!(all(&open(&disk).0), entries, "{op:?} {seed}");
            } else {
                sim.crash();
                let last = open(&disk).0.last_index();
                assert!(last == 7 || last == 2, "{op:?} {seed}: {last}");
            }
        }
    }
}

#[test]
fn a_sync_error_is_returned_and_nothing_counts_as_durable() {
    let (sim, disk) = sim(1);
    let mut log = create(&disk);
    fill(&mut log, 3, 1);
    sim.fail_next(SimOp::Sync, io::ErrorKind::Other);
    let point = log.sync_point();
    sync_group(&[point]).unwrap_err();
    assert_eq!(log.durable_index(), 0);
}

#[test]
fn many_logs_become_durable_in_one_group() {
    let (sim, disk) = sim(1);
    let mut logs: Vec<Log> = (0..5)
        .map(|p| {
            let dir = PathBuf::from(format!("data/p{p}"));
            let mut log = Log::create(Arc::clone(&disk), &dir, START, options()).unwrap();
            fill(&mut log, 9, 1);
            log
        })
        .collect();
    let points: Vec<SyncPoint> = logs.iter().map(Log::sync_point).collect();
    sync_group(&points).unwrap();
    for (log, point) in logs.iter_mut().zip(&points) {
        log.mark_durable(point);
        assert_eq!(log.durable_index(), 9);
        assert!(log.sync_point().is_empty());
    }
    sim.crash();
    for p in 0..5 {
        let dir = PathBuf::from(format!("data/p{p}"));
        let (log, _) = Log::open(Arc::clone(&disk), &dir, options(), 9).unwrap();
        assert_eq!(log.last_index(), 9);
    }
}

#[test]
fn offsets_and_indexes_at_the_end_of_their_numbers_are_errors_not_panics() {
    let (_, disk) = sim(1);
    let start = LogStart { first_index: 1, prev_term: 0, next_offset: u64::MAX - 1 };
    let mut log = Log::create(Arc::clone(&disk), Path::new(DIR), start, options()).unwrap();
    let error = log.append(&meta(1, 1, 2), &[]).unwrap_err();
    assert!(matches!(error, StorageError::OffsetsExhausted { .. }));
    log.append(&meta(1, 1, 1), &[]).unwrap();
    let reader = log.reader();
    assert_eq!(reader.term(u64::MAX), None);
    assert_eq!(reader.end_offset(u64::MAX), None);
    assert!(reader.entries(u64::MAX, u64::MAX, 1).is_err());
    assert!(log.truncate_suffix(u64::MAX).is_err());
    assert_eq!(log.truncate_prefix(u64::MAX).unwrap(), 0);
}

#[test]
fn a_checksum_that_the_caller_knows_is_the_frames_own() {
    let (_, disk) = sim(1);
    let mut log = create(&disk);
    let body = payload(1);
    let summed = crc32c::crc32c(&body);
    log.append_summed(&meta(1, 1, 1), &[&body[..10], &body[10..]], summed).unwrap();
    log.append_summed(&meta(2, 1, 1), &[&body], summed ^ 1).unwrap();
    log.append(&meta(3, 1, 1), &[&body]).unwrap();
    assert_eq!(log.reader().entries(1, 2, u64::MAX).unwrap()[0].payload, body);
    let error = log.reader().entries(2, 4, u64::MAX).unwrap_err();
    assert!(error.is_corrupt() && error.to_string().contains("payload checksum"), "{error}");
}

#[test]
fn payloads_that_are_not_to_be_verified_are_not() {
    let (_, disk) = sim(1);
    let mut log = create(&disk);
    let body = payload(1);
    log.append_summed(&meta(1, 1, 1), &[&body], 0).unwrap();
    log.append_summed(&meta(2, 1, 0), &[&body], 0).unwrap();
    let reader = log.reader();
    let entries = reader.entries_verified_if(1, 2, u64::MAX, |meta| meta.offset_span == 0).unwrap();
    assert_eq!((entries[0].meta, &entries[0].payload[..]), (meta(1, 1, 1), &body[..]));
    assert!(reader.entries_verified_if(1, 3, u64::MAX, |meta| meta.offset_span == 0).is_err());
}
