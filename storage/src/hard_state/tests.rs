//! The journal against a map, through crashes, damage and full disks.

use super::*;
use crate::disk::{SimDisk, SimOp};

fn state(term: u64) -> HardState {
    HardState { term, vote: term % 3, commit: term * 10 }
}

/// States of ten groups: enough to fill a file in some ten thousand records.
fn many(term: u64) -> [(u64, HardState); 10] {
    std::array::from_fn(|group| (group as u64, state(term)))
}

/// The formats of the first release: these strings never change.
#[test]
fn the_bytes_of_a_header_and_of_a_record_are_these() {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert_eq!(hex(&encode_header(3)), "485748415244000103000000000000007fd5909900000000");
    let record = encode_record(Kind::Put, &[(7, state(5))], 3, 9, 8);
    assert_eq!(
        hex(&record),
        concat!(
            "4857687302000000",
            "0300000000000000",
            "0900000000000000",
            "0800000000000000",
            "01000000a8f8a998",
            "0700000000000000",
            "0500000000000000",
            "0200000000000000",
            "3200000000000000"
        )
    );
}

fn sim(seed: u64) -> (SimDisk, Arc<dyn Disk>) {
    let disk = SimDisk::new(seed);
    disk.create_dir_all(Path::new("node")).unwrap();
    disk.sync_dir(Path::new("")).unwrap();
    (disk.clone(), Arc::new(disk))
}

fn open(disk: &Arc<dyn Disk>) -> (HardStateJournal, BTreeMap<u64, HardState>) {
    HardStateJournal::open(Arc::clone(disk), Path::new("node")).unwrap()
}

#[test]
fn what_was_put_and_removed_is_there_after_reopening() {
    let (_, disk) = sim(1);
    let (mut journal, states) = open(&disk);
    assert!(states.is_empty());
    journal.put(&[(1, state(1)), (2, state(2))]).unwrap();
    journal.put(&[(1, state(5))]).unwrap();
    journal.put(&[(3, state(3))]).unwrap();
    journal.remove(2).unwrap();
    let (_, states) = open(&disk);
    assert_eq!(states, BTreeMap::from([(1, state(5)), (3, state(3))]));
}

#[test]
fn synced_states_survive_every_crash_and_unsynced_ones_are_lost_in_order() {
    for seed in 0..200 {
        let (sim, disk) = sim(seed);
        let (mut journal, _) = open(&disk);
        for term in 1..=20 {
            journal.put(&[(7, state(term)), (8 + term, state(term))]).unwrap();
            if term == 10 {
                journal.sync_point().sync().unwrap();
            }
        }
        sim.crash();
        let (mut journal, states) = open(&disk);
        let term = states[&7].term;
        assert!((10..=20).contains(&term), "seed {seed}: {term}");
        for group in 9..=28 {
            let expected = (group - 8 <= term).then(|| state(group - 8));
            assert_eq!(states.get(&group).copied(), expected, "seed {seed}");
        }
        // What was read is durable, and the journal goes on.
        journal.put(&[(7, state(30))]).unwrap();
        journal.sync_point().sync().unwrap();
        sim.crash();
        assert_eq!(open(&disk).1[&7], state(30));
    }
}

#[test]
fn the_journal_stays_small_however_much_is_put() {
    let (sim, disk) = sim(3);
    let (mut journal, _) = open(&disk);
    let generation = journal.generation;
    for term in 1..=5_000 {
        journal.put(&many(term)).unwrap();
    }
    assert!(journal.generation > generation);
    assert_eq!(sim.used_bytes(), 2 * FILE_BYTES_MIN);
    assert_eq!(open(&disk).1, BTreeMap::from(many(5_000)));
}

#[test]
fn a_crash_at_any_point_of_a_compaction_loses_nothing() {
    for skip in 0..3 {
        for op in [SimOp::Write, SimOp::Sync] {
            for seed in 0..20 {
                let (sim, disk) = sim(seed);
                let (mut journal, _) = open(&disk);
                journal.put(&[(1, state(4))]).unwrap();
                journal.sync_point().sync().unwrap();
                sim.fail_after(op, skip, io::ErrorKind::Other);
                // Opening compacts; with a larger skip it gets through, and the crash comes after.
                let _ = HardStateJournal::open(Arc::clone(&disk), Path::new("node"));
                sim.crash();
                assert_eq!(open(&disk).1[&1], state(4), "{op:?} {skip} {seed}");
            }
        }
    }
}

#[test]
fn a_full_disk_does_not_stop_the_journal() {
    let (sim, disk) = sim(4);
    let (mut journal, _) = open(&disk);
    sim.set_capacity(Some(sim.used_bytes()));
    let generation = journal.generation;
    for term in 1..=5_000 {
        journal.put(&many(term)).unwrap();
    }
    assert!(journal.generation > generation);
    assert_eq!(open(&disk).1[&1], state(5_000));
}

#[test]
fn a_failed_write_is_an_error_and_the_next_put_succeeds() {
    let (sim, disk) = sim(5);
    let (mut journal, _) = open(&disk);
    journal.put(&[(1, state(1))]).unwrap();
    sim.fail_next(SimOp::Write, io::ErrorKind::Other);
    journal.put(&[(1, state(2))]).unwrap_err();
    journal.put(&[(2, state(3))]).unwrap();
    journal.sync_point().sync().unwrap();
    let (_, states) = open(&disk);
    assert_eq!(states, BTreeMap::from([(1, state(1)), (2, state(3))]));
}

#[test]
fn any_flipped_bit_in_what_had_been_durable_is_reported() {
    let (sim, disk) = sim(6);
    let (mut journal, _) = open(&disk);
    journal.put(&[(1, state(1)), (2, state(2))]).unwrap();
    journal.sync_point().sync().unwrap();
    let end = journal.position;
    // This one tells that everything before it had been durable.
    journal.put(&[(1, state(3))]).unwrap();
    let path = journal.path(journal.live);
    for offset in (0..20).chain(24..end) {
        sim.flip(&path, offset, 1 << (offset % 8)).unwrap();
        let result = HardStateJournal::open(Arc::clone(&disk), Path::new("node"));
        assert!(result.is_err_and(|error| error.is_corrupt()), "byte {offset}");
        sim.flip(&path, offset, 1 << (offset % 8)).unwrap();
    }
}

#[test]
fn a_wiped_file_is_noticed() {
    for which in 0..2 {
        let (_, disk) = sim(7);
        let (journal, _) = open(&disk);
        disk.remove_file(&journal.path(which)).unwrap();
        let result = HardStateJournal::open(Arc::clone(&disk), Path::new("node"));
        assert!(result.is_err_and(|error| error.is_corrupt()));
    }
}

#[test]
fn an_interrupted_creation_is_begun_again() {
    for seed in 0..100 {
        let (sim, disk) = sim(seed);
        sim.fail_after(SimOp::Sync, u32::try_from(seed % 4).unwrap(), io::ErrorKind::Other);
        let first = HardStateJournal::open(Arc::clone(&disk), Path::new("node"));
        assert!(first.is_err());
        sim.crash();
        assert!(open(&disk).1.is_empty(), "seed {seed}");
    }
}

#[test]
fn any_bytes_at_all_open_or_are_refused_without_a_panic() {
    let mut random = 1_u64;
    for round in 0..300 {
        let (_, disk) = sim(8);
        let (mut journal, _) = open(&disk);
        journal.put(&[(1, state(1))]).unwrap();
        let file = &journal.files[journal.live];
        for _ in 0..=round % 7 {
            random = crate::log::mix(random + 1);
            file.write_at(random % 160, &[&random.to_le_bytes()[..5]]).unwrap();
        }
        let _ = HardStateJournal::open(Arc::clone(&disk), Path::new("node"));
    }
}
