//! A log with its compacted part against a map of live values, through replacements, failures and crashes.

use std::collections::BTreeMap;
use std::io::ErrorKind;

use proptest::prelude::*;

use super::*;
use crate::disk::{SimDisk, SimOp};
use crate::log::{EntryMeta, Log};

const DIR: &str = "data/p0";
const START: LogStart = LogStart { first_index: 6, prev_term: 5, next_offset: 0 };

fn options() -> LogOptions {
    LogOptions { segment_bytes: 1024, payload_bytes_max: 4096, ..LogOptions::default() }
}

#[derive(Clone, Debug)]
enum Step {
    /// Entries with these keys.
    Append(Vec<u8>),
    Roll,
    /// Compacts; `fails` makes the so-manieth operation of a kind fail, and `crash` lets the power go after that.
    Compact {
        fails: Option<(SimOp, u32)>,
        crash: bool,
    },
    Crash,
    Reopen,
    /// The part is received from another replica instead, as it stands.
    Receive {
        chunk: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let op = prop::sample::select(vec![
        SimOp::Create,
        SimOp::Allocate,
        SimOp::Write,
        SimOp::Sync,
        SimOp::SyncDir,
        SimOp::Remove,
        SimOp::Rename,
    ]);
    prop_oneof![
        6 => prop::collection::vec(0..12_u8, 1..30).prop_map(Step::Append),
        2 => Just(Step::Roll),
        4 => (prop::option::of((op, 0..6_u32)), any::<bool>())
            .prop_map(|(fails, crash)| Step::Compact { fails, crash }),
        1 => Just(Step::Crash),
        1 => Just(Step::Reopen),
        1 => (1..700_usize).prop_map(|chunk| Step::Receive { chunk }),
    ]
}

struct World {
    sim: SimDisk,
    disk: Arc<dyn Disk>,
    log: Log,
    part: Compacted,
    /// Everything ever appended, by offset: key and payload.
    all: BTreeMap<u64, (u8, Vec<u8>)>,
}

fn open(disk: &Arc<dyn Disk>) -> (Log, Compacted) {
    let (mut log, _) = Log::open(Arc::clone(disk), Path::new(DIR), options(), 0).unwrap();
    let part = Compacted::open(Arc::clone(disk), Path::new(DIR), OpenSealed::default()).unwrap();
    if let Some(end) = part.end() {
        assert!(log.first_index() <= end.first_index, "the log never begins behind the part");
        if log.last_index() + 1 == end.first_index {
            // The segment behind it, still without entries, may have been lost.
            log.roll().unwrap();
        }
        log.truncate_prefix(end.first_index).unwrap();
        assert_eq!(log.start(), end);
    }
    (log, part)
}

impl World {
    fn new(seed: u64) -> Self {
        let sim = SimDisk::new(seed);
        let disk: Arc<dyn Disk> = Arc::new(sim.clone());
        let log = Log::create(Arc::clone(&disk), Path::new(DIR), START, options()).unwrap();
        let part =
            Compacted::open(Arc::clone(&disk), Path::new(DIR), OpenSealed::default()).unwrap();
        Self { sim, disk, log, part, all: BTreeMap::new() }
    }

    fn append(&mut self, keys: &[u8]) {
        for key in keys {
            let index = self.log.last_index() + 1;
            let meta = EntryMeta {
                index,
                term: 5 + index / 50,
                kind: 2,
                offset_span: 1 + u32::from(key % 3),
                append_time_ms: 0,
                max_timestamp_ms: i64::try_from(index).unwrap(),
            };
            let mut payload = vec![*key; 60 + usize::from(*key)];
            payload.extend_from_slice(&index.to_le_bytes());
            let offset = self.log.append(&meta, &[&payload]).unwrap();
            self.all.insert(offset, (*key, payload));
        }
        let point = self.log.sync_point();
        point.sync().unwrap();
        self.log.mark_durable(&point);
    }

    /// Keeps the last entry of each key below the end of the sealed segments.
    fn compact(&mut self) -> Result<(), StorageError> {
        let segments = self.log.segments();
        let start = segments.last().unwrap().start;
        let entries = self.entries_below(start.next_offset);
        let last: BTreeMap<u8, u64> =
            entries.iter().map(|entry| (entry.payload[0], entry.base_offset)).collect();
        let mut writer = self.part.reader().writer(1024);
        for entry in entries.iter().filter(|e| last[&e.payload[0]] == e.base_offset) {
            writer.append(entry)?;
        }
        let mut staged = writer.finish(start, start.next_offset, i64::MAX)?;
        assert!(staged.is_current());
        self.part.install(&mut staged)?;
        self.log.truncate_prefix(start.first_index).map(drop)
    }

    fn entries_below(&self, to: u64) -> Vec<StoredEntry> {
        let reader = self.part.reader();
        let mut entries = reader.read_offsets(0, u64::MAX, u64::MAX).unwrap();
        let from = reader.end_offset().max(self.log.start().next_offset);
        entries.extend(self.log.reader().read_offsets(from, to, u64::MAX).unwrap());
        entries
    }

    fn reopen(&mut self) {
        (self.log, self.part) = open(&self.disk);
    }

    fn receive(&mut self, chunk: usize) {
        let Some(theirs) = self.part.manifest() else { return };
        let reader = self.part.reader();
        let mut receiver = reader.receiver(theirs.clone());
        while let Some(wanted) = receiver.wanted() {
            let bytes = wanted.bytes.min(chunk as u64);
            receiver
                .take(&reader.read_file(wanted.file, wanted.from, bytes).unwrap().unwrap())
                .unwrap();
        }
        let mut staged = receiver.finish().unwrap();
        self.part.install(&mut staged).unwrap();
        let ours = self.part.manifest().unwrap();
        let sums =
            |m: &CompactedManifest| m.segments.iter().map(|s| s.checksum).collect::<Vec<_>>();
        assert_eq!((ours.end, sums(&ours)), (theirs.end, sums(&theirs)));
    }

    fn check(&self) {
        let entries = self.entries_below(u64::MAX);
        assert!(entries.is_sorted_by(|a, b| a.end_offset() <= b.base_offset));
        let mut live: BTreeMap<u8, u64> = BTreeMap::new();
        for entry in &entries {
            let (key, payload) = &self.all[&entry.base_offset];
            assert_eq!(entry.payload, payload, "an entry is as it was appended");
            live.insert(*key, entry.base_offset);
        }
        let expected: BTreeMap<u8, u64> =
            self.all.iter().map(|(offset, (key, _))| (*key, *offset)).collect();
        assert_eq!(live, expected, "the last entry of every key is there");
        let reader = self.part.reader();
        let compacted = reader.read_offsets(0, u64::MAX, u64::MAX).unwrap();
        for from in (0..reader.end_offset()).step_by(7) {
            let expected = compacted.iter().find(|entry| entry.end_offset() > from);
            let found = reader.read_offsets(from, u64::MAX, 1).unwrap();
            assert_eq!(found.first(), expected, "reading on from {from}");
        }
        for time in [0, 20, 60, 10_000] {
            let expected = compacted.iter().find(|entry| entry.meta.max_timestamp_ms >= time);
            assert_eq!(reader.entry_at_time(time).unwrap().as_ref(), expected);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn live_values_survive_compactions_failures_and_crashes(
        seed in any::<u64>(),
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let mut world = World::new(seed);
        for step in steps {
            match step {
                Step::Append(keys) => world.append(&keys),
                Step::Roll => world.log.roll().unwrap(),
                Step::Compact { fails, crash } => {
                    if let Some((op, skip)) = fails {
                        world.sim.fail_after(op, skip, ErrorKind::Other);
                    }
                    let outcome = world.compact();
                    prop_assert!(outcome.is_ok() || fails.is_some());
                    world.sim.clear_failures();
                    // A sync that failed is the last: what it left out may count as clean.
                    let crash = crash || fails.is_some_and(|(op, _)| op == SimOp::Sync);
                    if crash {
                        world.sim.crash();
                    }
                    if crash || outcome.is_err() {
                        world.reopen();
                    }
                }
                Step::Crash => {
                    world.sim.crash();
                    world.reopen();
                }
                Step::Reopen => world.reopen(),
                Step::Receive { chunk } => world.receive(chunk),
            }
            world.check();
        }
    }
}

fn compacted_world() -> World {
    let mut world = World::new(1);
    world.append(&(0..60).map(|n| n % 11).collect::<Vec<_>>());
    world.log.roll().unwrap();
    world.compact().unwrap();
    world
}

#[test]
fn files_that_no_manifest_names_are_removed_and_dropped_writers_leave_none() {
    let mut world = compacted_world();
    let dir = Path::new(DIR).join(DIR_NAME);
    let before = world.disk.list(&dir).unwrap();
    let entry = world.entries_below(u64::MAX)[0].clone();
    let mut writer = world.part.reader().writer(1024);
    writer.append(&entry).unwrap();
    assert_eq!(world.disk.list(&dir).unwrap().len(), before.len() + 1);
    drop(writer);
    assert_eq!(world.disk.list(&dir).unwrap(), before);
    let mut writer = world.part.reader().writer(1024);
    writer.append(&entry).unwrap();
    std::mem::forget(writer);
    world.reopen();
    assert_eq!(world.disk.list(&dir).unwrap(), before);
}

#[test]
fn a_manifest_whose_name_was_not_durable_yet_is_made_so_before_the_log_is_cut() {
    for seed in 0..20 {
        let mut world = World::new(seed);
        world.append(&(0..60).map(|n| n % 11).collect::<Vec<_>>());
        world.log.roll().unwrap();
        // Two directories for the new files; the third time it is for the manifest.
        world.sim.fail_after(SimOp::SyncDir, 2, ErrorKind::Other);
        world.compact().unwrap_err();
        world.reopen();
        world.sim.crash();
        world.reopen();
        world.check();
    }
}

#[test]
fn a_missing_short_or_foreign_file_is_corrupt_and_a_flipped_bit_is_found() {
    let flipped = compacted_world();
    let info = flipped.part.manifest().unwrap().segments[0];
    let path = Path::new(DIR).join(DIR_NAME).join(file_name(info.file));
    flipped.sim.flip(&path, info.bytes - 20, 4).unwrap();
    let error = flipped.part.reader().read_offsets(0, u64::MAX, u64::MAX).unwrap_err();
    assert!(error.is_corrupt(), "{error}");
    let (reader, theirs) = (flipped.part.reader(), flipped.part.manifest().unwrap());
    let mut receiver = reader.receiver(theirs);
    let data = reader.read_file(info.file, 0, info.bytes).unwrap().unwrap();
    assert!(
        receiver.take(&data).unwrap_err().is_corrupt(),
        "the checksum of the whole file says so"
    );
    flipped.sim.flip(&path, 3, 1).unwrap();
    assert!(
        Compacted::open(Arc::clone(&flipped.disk), Path::new(DIR), OpenSealed::default())
            .unwrap_err()
            .is_corrupt()
    );
    let missing = compacted_world();
    missing.disk.remove_file(&path).unwrap();
    let error = Compacted::open(Arc::clone(&missing.disk), Path::new(DIR), OpenSealed::default())
        .unwrap_err();
    assert!(error.is_corrupt() && error.to_string().contains("missing"), "{error}");
}

#[test]
fn a_scrub_in_steps_of_any_size_finds_what_is_damaged_and_goes_on() {
    let world = compacted_world();
    let manifest = world.part.manifest().unwrap();
    let reader = world.part.reader();
    let scrub = |bytes_max: u64| {
        let (mut findings, mut bytes, mut next) = (Vec::new(), 0, Some(0));
        while let Some(from) = next {
            let step = reader.scrub(from, bytes_max).unwrap();
            assert!(step.next_index.is_none_or(|next| next > from), "it gets on");
            (bytes, next) = (bytes + step.bytes, step.next_index);
            findings.extend(step.findings);
        }
        (findings, bytes)
    };
    for bytes_max in [1, 300, u64::MAX] {
        assert_eq!(scrub(bytes_max), (Vec::new(), manifest.bytes()));
    }
    let info = manifest.segments[1];
    let path = Path::new(DIR).join(DIR_NAME).join(file_name(info.file));
    for at in [3, SEGMENT_HEADER_BYTES as u64 + 9, info.bytes - 20] {
        world.sim.flip(&path, at, 4).unwrap();
        for bytes_max in [1, 300, u64::MAX] {
            let (findings, _) = scrub(bytes_max);
            assert_eq!(findings.len(), 1, "byte {at}, steps of {bytes_max}");
            assert_eq!(findings[0].path, path);
        }
        world.sim.flip(&path, at, 4).unwrap();
    }
}

#[test]
fn what_was_staged_before_a_replacement_is_not_current_after_it() {
    let mut world = compacted_world();
    let (manifest, entries) = (world.part.manifest().unwrap(), world.entries_below(u64::MAX));
    let stage = |world: &World| {
        let mut writer = world.part.reader().writer(1024);
        entries.iter().for_each(|entry| writer.append(entry).unwrap());
        writer.finish(manifest.end, manifest.cleaned_to, i64::MAX).unwrap()
    };
    let (mut first, second) = (stage(&world), stage(&world));
    world.part.install(&mut first).unwrap();
    assert!(!second.is_current());
    drop(second);
    world.reopen();
    world.check();
}

#[test]
fn an_unsound_manifest_is_told_from_a_sound_one() {
    let sound = compacted_world().part.manifest().unwrap();
    assert!(sound.is_sound() && sound.segments.len() > 1);
    let mut swapped = sound.clone();
    swapped.segments.swap(0, 1);
    let mut short = sound.clone();
    short.end.next_offset = 1;
    let mut empty = sound.clone();
    empty.segments[0].end_offset = empty.segments[0].base_offset;
    for unsound in [swapped, short, empty] {
        assert!(!unsound.is_sound());
    }
}
