//! Reading by index, offset and time.

use super::*;

/// Entries 1..=30 in five terms, every third without a span, the others with 1 to 3 offsets.
fn mixed(disk: &Arc<dyn Disk>) -> Log {
    let mut log = create(disk);
    for index in 1..=30_u64 {
        let span = u32::try_from(if index % 3 == 0 { 0 } else { index % 4 + 1 }).unwrap();
        let mut meta = meta(index, 1 + index / 7, span);
        // Create times jump back and forth.
        meta.max_timestamp_ms = i64::try_from(index * 7 % 50).unwrap();
        log.append(&meta, &[&payload(index)]).unwrap();
    }
    log
}

fn both(disk: &Arc<dyn Disk>, check: impl Fn(&LogReader, &[StoredEntry])) {
    let log = mixed(disk);
    let entries = all(&log);
    check(&log.reader(), &entries);
    drop(log);
    let (log, _) = open(disk);
    check(&log.reader(), &entries);
}

#[test]
fn every_range_of_indexes_reads_what_was_appended() {
    both(&sim(1).1, |reader, entries| {
        for from in 1..=31_usize {
            for to in from..=31 {
                let got = reader.entries(from as u64, to as u64, u64::MAX).unwrap();
                assert_eq!(got, entries[from - 1..to - 1]);
            }
        }
    });
}

#[test]
fn a_read_is_bounded_in_bytes_but_never_empty() {
    both(&sim(1).1, |reader, entries| {
        for bytes_max in [0, 99, 100, 199, 200, 350, 2900] {
            let count = usize::try_from(bytes_max / 100).unwrap().max(1);
            let got = reader.entries(2, 31, bytes_max).unwrap();
            assert_eq!(got, entries[1..=count], "{bytes_max}");
        }
        assert_eq!(reader.read_offsets(0, 1000, 0).unwrap().len(), 1);
        assert_eq!(reader.read_offsets(0, 1000, 200).unwrap().len(), 2);
    });
}

#[test]
fn reading_outside_of_the_log_says_which_side() {
    let (_, disk) = sim(1);
    let log = mixed(&disk);
    let reader = log.reader();
    let error = reader.entries(0, 5, 10).unwrap_err();
    assert!(matches!(error, StorageError::Compacted { first_index: 1 }));
    let error = reader.entries(30, 32, 10).unwrap_err();
    assert!(matches!(error, StorageError::Unavailable { last_index: 30 }));
    assert!(reader.entries(31, 31, 10).unwrap().is_empty());
    assert!(reader.read_offsets(log.next_offset(), u64::MAX, 10).unwrap().is_empty());
}

#[test]
fn every_range_of_offsets_reads_the_entries_that_end_within() {
    both(&sim(1).1, |reader, entries| {
        let end = reader.next_offset();
        for from in 0..end {
            for to in from..=end + 1 {
                let expected: Vec<StoredEntry> = entries
                    .iter()
                    .filter(|e| e.meta.offset_span > 0)
                    .filter(|e| e.end_offset() > from && e.end_offset() <= to)
                    .cloned()
                    .collect();
                let got = reader.read_offsets(from, to, u64::MAX).unwrap();
                assert_eq!(got, if from < to { expected } else { Vec::new() }, "{from}..{to}");
            }
        }
    });
}

#[test]
fn the_first_entry_at_a_time_is_the_first_in_offset_order() {
    both(&sim(1).1, |reader, entries| {
        for time in -1..=51 {
            for to in [0, 5, 20, reader.next_offset()] {
                let expected = entries
                    .iter()
                    .find(|e| e.meta.offset_span > 0 && e.meta.max_timestamp_ms >= time)
                    .filter(|e| e.end_offset() <= to);
                let got = reader.entry_at_time(time, to).unwrap();
                assert_eq!(got.as_ref(), expected, "time {time} below {to}");
            }
        }
    });
}

#[test]
fn terms_epochs_and_ends_of_entries_are_known_for_the_whole_log() {
    both(&sim(1).1, |reader, entries| {
        assert_eq!((reader.term(0), reader.end_offset(0)), (Some(0), Some(0)));
        assert_eq!((reader.term(31), reader.end_offset(31)), (None, None));
        for entry in entries {
            assert_eq!(reader.term(entry.meta.index), Some(entry.meta.term));
            assert_eq!(reader.end_offset(entry.meta.index), Some(entry.end_offset()));
        }
        let epochs = reader.epochs();
        assert_eq!(epochs.len(), 5);
        for epoch in epochs {
            let first = entries.iter().find(|e| e.meta.term == epoch.term).unwrap();
            assert_eq!(
                (epoch.first_index, epoch.base_offset),
                (first.meta.index, first.base_offset)
            );
        }
    });
}

#[test]
fn readers_of_other_threads_see_whole_entries_only() {
    let (_, disk) = sim(1);
    let mut log = create(&disk);
    let reader = log.reader();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut next = 1;
            while next <= 400 {
                let to = reader.last_index() + 1;
                for entry in reader.entries(next, to, 1000).unwrap() {
                    assert_eq!(entry.meta, meta(next, 1, 2));
                    assert_eq!(&entry.payload[..], &payload(next)[..]);
                    next += 1;
                }
            }
        });
        fill(&mut log, 400, 1);
    });
}

#[test]
fn damage_is_reported_by_the_read_and_never_served() {
    let (sim, disk) = sim(1);
    let mut log = create(&disk);
    fill(&mut log, 9, 1);
    // A byte of the payload of entry 2, one of the header of entry 6.
    let (first, second) = (files(&disk, "log")[0].clone(), files(&disk, "log")[1].clone());
    sim.flip(&first, 128 + 184 + 90, 4).unwrap();
    sim.flip(&second, 128 + 184 + 20, 4).unwrap();
    let reader = log.reader();
    assert_eq!(reader.entries(1, 2, u64::MAX).unwrap().len(), 1);
    for (from, index) in [(2, 2), (5, 6), (6, 6)] {
        match reader.entries(from, 9, u64::MAX) {
            Err(StorageError::Corrupt { index: got, .. }) => assert_eq!(got, index),
            other => panic!("{other:?}"),
        }
    }
    assert!(reader.read_offsets(2, 4, u64::MAX).unwrap_err().is_corrupt());
}
