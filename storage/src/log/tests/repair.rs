//! Making damaged logs whole with the entries of an intact one.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::log::repair::{Origin, Repair};

/// A log of 40 entries over many segments, in terms 1 and 2, all durable, and an intact twin.
fn twins(seed: u64) -> (SimDisk, Arc<dyn Disk>, Log) {
    let (sim, disk) = sim(seed);
    let (_, donor_disk) = super::sim(seed);
    let mut donor = create(&donor_disk);
    let mut log = create(&disk);
    for log in [&mut donor, &mut log] {
        for term in [1, 1, 2, 2] {
            fill(log, 10, term);
            sync(log);
        }
    }
    (sim, disk, donor)
}

fn begin(disk: &Arc<dyn Disk>, floor: u64) -> Result<Repair, StorageError> {
    Repair::begin(Arc::clone(disk), Path::new(DIR), options(), floor)
}

/// Fills every gap from `donor`, a few entries at a time; the indexes that were asked for.
fn heal(repair: &mut Repair, donor: &Log, committed: u64) -> Result<Vec<u64>, StorageError> {
    let mut asked = Vec::new();
    let reader = donor.reader();
    while let Some(gap) = repair.gap() {
        let entries = reader.entries(gap.first_index, gap.end_index, 250).unwrap();
        asked.extend(entries.iter().map(|entry| entry.meta.index));
        repair.supply(&entries, origin(donor, gap, committed))?;
    }
    Ok(asked)
}

fn origin(donor: &Log, gap: Gap, committed: u64) -> Origin {
    let term = |index| donor.reader().term(index);
    Origin { last_term: term(gap.end_index - 1), end_term: term(gap.end_index), committed }
}

fn damage(sim: &SimDisk, path: &Path, offset: u64) {
    sim.flip(path, offset, 0x55).unwrap();
}

#[test]
fn only_the_damaged_entries_are_asked_for() {
    let (sim, disk, donor) = twins(1);
    let segments = files(&disk, "log");
    // The payload of the second frame of the third segment.
    damage(&sim, &segments[2], 128 + 184 + 80 + 3);
    let first = donor.segments()[2].first_index;
    // The index file vouches for the segment at the start; reading finds the damage.
    let log = open(&disk).0;
    assert!(log.reader().entries(first + 1, first + 2, 1).unwrap_err().is_corrupt());
    drop(log);
    let mut repair = begin(&disk, 0).unwrap();
    assert_eq!(heal(&mut repair, &donor, 0).unwrap(), [first + 1]);
    assert_eq!(repair.segments_repaired(), 1);
    let log = open(&disk).0;
    assert_eq!(all(&log), all(&donor));
    assert_eq!(disk.list(&Path::new(DIR).join("damaged")).unwrap().len(), 1);
}

#[test]
fn a_whole_log_needs_nothing() {
    let (_, disk, donor) = twins(2);
    let repair = begin(&disk, 40).unwrap();
    assert_eq!((repair.gap(), repair.segments_repaired()), (None, 0));
    assert_eq!(all(&open(&disk).0), all(&donor));
}

#[test]
fn a_lost_end_is_not_made_up() {
    let (_, disk, donor) = twins(3);
    let newest = files(&disk, "log").pop().unwrap();
    disk.remove_file(&newest).unwrap();
    let first_lost = donor.segments().last().unwrap().first_index;
    match begin(&disk, 40) {
        Err(StorageError::Corrupt { index, .. }) => assert_eq!(index, first_lost),
        other => panic!("{other:?}"),
    }
}

#[test]
fn behind_a_damaged_header_only_committed_entries_are_taken() {
    let (sim, disk, donor) = twins(3);
    let segments = files(&disk, "log");
    let first = donor.segments()[2].first_index;
    // The last frame of one segment, and the header of the next, which says what was before it.
    let frames = donor.segments()[1].end_index - donor.segments()[1].first_index;
    damage(&sim, &segments[1], 128 + (frames - 1) * 184 + 20);
    damage(&sim, &segments[2], 20);
    let mut repair = begin(&disk, 0).unwrap();
    let gap = repair.gap();
    assert_eq!(gap, Some(Gap { first_index: first - 1, end_index: first }));
    assert!(heal(&mut repair, &donor, first - 2).unwrap_err().is_corrupt());
    assert_eq!(repair.gap(), gap, "begins anew");
    heal(&mut repair, &donor, first - 1).unwrap();
    assert_eq!(all(&open(&disk).0), all(&donor));
}

#[test]
fn entries_of_another_history_are_refused() {
    let (sim, disk, donor) = twins(4);
    let (_, other_disk) = super::sim(9);
    let mut other = create(&other_disk);
    // Equal to the twins up to entry 20; a later leader wrote the rest.
    fill(&mut other, 20, 1);
    fill(&mut other, 20, 3);
    let at = donor.segments().iter().position(|s| s.first_index > 20).unwrap();
    damage(&sim, &files(&disk, "log")[at], 128 + 20);
    let mut repair = begin(&disk, 0).unwrap();
    let gap = repair.gap();
    assert!(heal(&mut repair, &other, 40).unwrap_err().is_corrupt());
    assert_eq!(repair.gap(), gap, "begins anew");
    heal(&mut repair, &donor, 0).unwrap();
    assert_eq!(all(&open(&disk).0), all(&donor));
}

/// The first part of a gap from a log that has other entries there, and nothing behind them.
#[test]
fn a_part_of_a_gap_from_another_history_is_refused() {
    let (sim, disk, donor) = twins(6);
    let (_, other_disk) = super::sim(9);
    let mut other = create(&other_disk);
    let at = donor.segments().iter().position(|s| s.first_index > 20).unwrap();
    let first = donor.segments()[at].first_index;
    // Entries of the same sizes and terms as the lost ones, of which the first two were never committed.
    fill(&mut other, first - 1, 1);
    for index in [first, first + 1] {
        other.append(&meta(index, 2, 2), &[&[9; 100]]).unwrap();
    }
    let path = &files(&disk, "log")[at];
    for frame in 0..3 {
        damage(&sim, path, 128 + frame * 184 + 20);
    }
    let mut repair = begin(&disk, 0).unwrap();
    let gap = repair.gap().unwrap();
    assert_eq!(gap, Gap { first_index: first, end_index: first + 3 });
    let wrong = other.reader().entries(first, first + 2, u64::MAX).unwrap();
    assert!(repair.supply(&wrong, origin(&other, gap, 0)).unwrap_err().is_corrupt());
    heal(&mut repair, &donor, 0).unwrap();
    assert_eq!(all(&open(&disk).0), all(&donor));
}

#[test]
fn a_torn_tail_is_no_damage() {
    let (sim, disk, _) = twins(5);
    let mut log = open(&disk).0;
    fill(&mut log, 4, 2);
    let newest = files(&disk, "log").pop().unwrap();
    let first = log.segments().last().unwrap().first_index;
    let position = 128 + (42 - first) * 184;
    drop(log);
    // Entry 42 of 44; nothing says that more than 40 had been durable.
    damage(&sim, &newest, position + 100);
    assert_eq!(begin(&disk, 40).unwrap().gap(), None);
    assert_eq!(try_open(&disk, 40).unwrap().0.last_index(), 41);
    // With the saved commit at 43 it is: what stands intact behind it, 43 and 44, is kept.
    let (sim, disk, _) = twins(5);
    let mut log = open(&disk).0;
    fill(&mut log, 4, 2);
    let whole = all(&log);
    drop(log);
    damage(&sim, &newest, position + 100);
    let mut repair = begin(&disk, 43).unwrap();
    assert_eq!(repair.gap(), Some(Gap { first_index: 42, end_index: 43 }));
    let origin = Origin { last_term: Some(2), end_term: Some(2), committed: 0 };
    repair.supply(&whole[41..42], origin).unwrap();
    assert_eq!(all(&try_open(&disk, 43).unwrap().0), whole);
}

/// Damages anything anywhere, and repairs it through crashes.
#[test]
fn whatever_is_damaged_is_whole_after_repair_and_a_crash_in_it() {
    let (mut repaired, mut refused, mut crashed) = (0, 0, 0);
    for seed in 0..400 {
        let mut random = SmallRng::seed_from_u64(seed);
        let (sim, disk, donor) = twins(seed);
        for _ in 0..random.random_range(1..4) {
            let segments = files(&disk, "log");
            let path = &segments[random.random_range(0..segments.len())];
            let len = disk.open(path, 0).unwrap().len().min(1100);
            let offset = random.random_range(0..len);
            match random.random_range(0..6) {
                0 if segments.len() > 4 => disk.remove_file(path).unwrap(),
                1 => {
                    // A few sectors of zeroes.
                    let bytes = usize::try_from((len - offset).min(400)).unwrap();
                    let bytes = disk.open(path, 0).unwrap().read(offset, bytes).unwrap();
                    for (at, byte) in (offset..).zip(&bytes) {
                        sim.flip(path, at, *byte).unwrap();
                    }
                }
                2 => disk.remove_file(&path.with_extension("index")).unwrap_or(()),
                _ => damage(&sim, path, offset),
            }
        }
        let healed = begin(&disk, 40).and_then(|mut repair| {
            if random.random_bool(0.3) {
                // The power goes while it is repaired; it begins again.
                let gap = repair.gap();
                if let Some(gap) = gap {
                    let entries =
                        donor.reader().entries(gap.first_index, gap.end_index, 250).unwrap();
                    repair.supply(&entries, origin(&donor, gap, 40))?;
                }
                drop(repair);
                sim.crash();
                crashed += 1;
                repair = begin(&disk, 40)?;
            }
            heal(&mut repair, &donor, 40)
        });
        match healed {
            Ok(_) => {
                let log = try_open(&disk, 40).unwrap_or_else(|e| panic!("seed {seed}: {e}")).0;
                assert_eq!(all(&log), all(&donor), "seed {seed}");
                log.reader().scrub(0, u64::MAX).unwrap();
                repaired += 1;
            }
            // The first segment's header is gone and nothing says what was before it, or the end is lost.
            Err(StorageError::Corrupt { .. }) => refused += 1,
            Err(other) => panic!("seed {seed}: {other}"),
        }
    }
    assert!(repaired > 250 && refused < 140 && crashed > 50, "{repaired} {refused} {crashed}");
}
