//! Files behind the journal against what was synced of them, through crashes, removals and names that are used again.

use proptest::prelude::*;

use super::*;
use crate::disk::{SimDisk, SimOp};

const ROOT: &str = "data";
/// A few records fill a half.
const HALF_BYTES: u64 = FIRST_RECORD as u64 + 4096;
const FILES: usize = 4;
const MAPPED_BYTES: u64 = 1 << 20;

#[derive(Clone, Debug)]
enum Step {
    /// Appends so many bytes to a file.
    Write {
        file: usize,
        bytes: usize,
    },
    /// Syncs these files together.
    SyncMany(Vec<usize>),
    SyncOne(usize),
    /// Takes a file away and puts another one in its place, under the same name.
    Replace {
        file: usize,
        rename: bool,
    },
    Settle,
    Fail(SimOp),
    Reopen,
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    let file = 0..FILES;
    let files = prop::collection::btree_set(0..FILES, 2..=FILES);
    let op = prop::sample::select(vec![SimOp::Allocate, SimOp::Write, SimOp::Sync]);
    prop_oneof![
        12 => (file.clone(), 1..200_usize).prop_map(|(file, bytes)| Step::Write { file, bytes }),
        8 => files.prop_map(|files| Step::SyncMany(files.into_iter().collect())),
        1 => file.clone().prop_map(Step::SyncOne),
        1 => (file, any::<bool>()).prop_map(|(file, rename)| Step::Replace { file, rename }),
        1 => Just(Step::Settle),
        1 => op.prop_map(Step::Fail),
        1 => Just(Step::Reopen),
        2 => Just(Step::Crash),
    ]
}

/// A file, and how much of it must survive. Its bytes are of its own incarnation only.
struct Model {
    file: Arc<dyn DiskFile>,
    incarnation: u8,
    bytes: Vec<u8>,
    synced: usize,
}

struct World {
    sim: SimDisk,
    disk: JournaledDisk,
    files: Vec<Model>,
    incarnations: u8,
}

fn path(file: usize) -> PathBuf {
    Path::new(ROOT).join(format!("group/{file}.log"))
}

fn open(sim: &SimDisk) -> JournaledDisk {
    JournaledDisk::open_with(Arc::new(sim.clone()), Path::new(ROOT), HALF_BYTES).unwrap()
}

impl World {
    fn new(seed: u64) -> Self {
        let sim = SimDisk::new(seed);
        sim.create_dir_all(&Path::new(ROOT).join("group")).unwrap();
        sim.sync_dir(Path::new("")).unwrap();
        sim.sync_dir(Path::new(ROOT)).unwrap();
        let mut world = Self { disk: open(&sim), sim, files: Vec::new(), incarnations: 0 };
        for file in 0..FILES {
            let created = world.create(&path(file));
            world.files.push(created);
        }
        world
    }

    /// A file of a new incarnation whose name is durable.
    fn create(&mut self, path: &Path) -> Model {
        self.incarnations = self.incarnations.wrapping_add(1).max(1);
        let file = self.disk.create(path, MAPPED_BYTES).unwrap();
        self.disk.sync_dir(path.parent().unwrap()).unwrap();
        Model { file, incarnation: self.incarnations, bytes: Vec::new(), synced: 0 }
    }

    fn replace(&mut self, file: usize, rename: bool) {
        let path = path(file);
        self.files[file] = if rename {
            let temporary = path.with_extension("new");
            let mut created = self.create(&temporary);
            self.disk.rename(&temporary, &path).unwrap();
            created.file = self.disk.open(&path, MAPPED_BYTES).unwrap();
            created
        } else {
            self.disk.remove_file(&path).unwrap();
            self.create(&path)
        };
        self.disk.sync_dir(path.parent().unwrap()).unwrap();
    }

    fn write(&mut self, file: usize, bytes: usize) {
        let model = &mut self.files[file];
        let bytes = vec![model.incarnation; bytes];
        let at = model.bytes.len() as u64;
        model.file.allocate((at + bytes.len() as u64).next_multiple_of(512)).unwrap();
        model.file.write_at(at, &[&bytes]).unwrap();
        model.bytes.extend(bytes);
    }

    /// False if the sync failed: then nothing is promised, and the process would end.
    fn sync(&mut self, files: &[usize]) -> bool {
        let handles: Vec<_> =
            files.iter().map(|file| Arc::clone(&self.files[*file].file)).collect();
        let done = match files {
            [_] => handles[0].sync().is_ok(),
            _ => self.disk.sync_many(&handles, &[]).is_ok(),
        };
        if done {
            files.iter().for_each(|file| {
                let model = &mut self.files[*file];
                model.synced = model.bytes.len();
            });
        }
        done
    }

    fn reopen(&mut self) {
        self.sim.clear_failures();
        self.disk = open(&self.sim);
        for (number, model) in self.files.iter_mut().enumerate() {
            model.file = self.disk.open(&path(number), MAPPED_BYTES).unwrap();
        }
        self.check();
        for model in &mut self.files {
            // Whatever else survived is taken for what it is.
            model.file.sync().unwrap();
            model.bytes.truncate(model.synced);
        }
    }

    fn check(&self) {
        for (number, model) in self.files.iter().enumerate() {
            let len = usize::try_from(model.file.len()).unwrap();
            let bytes = model.file.read(0, len).unwrap();
            assert!(len >= model.synced, "file {number} lost its end");
            assert!(bytes[..model.synced] == model.bytes[..model.synced], "file {number}");
            let own = |byte: &u8| [0, model.incarnation].contains(byte);
            assert!(bytes.iter().all(own), "file {number} holds bytes of another");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    #[test]
    fn what_was_synced_survives_and_nothing_comes_back_under_another_name(
        seed in any::<u64>(),
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let mut world = World::new(seed);
        for step in steps {
            match step {
                Step::Write { file, bytes } => world.write(file, bytes),
                Step::SyncMany(files) => if !world.sync(&files) {
                    world.sim.crash();
                    world.reopen();
                },
                Step::SyncOne(file) => if !world.sync(&[file]) {
                    world.sim.crash();
                    world.reopen();
                },
                Step::Replace { file, rename } => {
                    world.sim.clear_failures();
                    world.replace(file, rename);
                }
                Step::Settle => {
                    world.sim.clear_failures();
                    world.disk.settle_full_half(Duration::ZERO).unwrap();
                }
                Step::Fail(op) => {
                    world.sim.clear_failures();
                    // The next sync, with the write of its record.
                    if op == SimOp::Sync {
                        world.sim.fail_next(op, io::ErrorKind::Other);
                    }
                }
                Step::Reopen => world.reopen(),
                Step::Crash => {
                    world.sim.crash();
                    world.reopen();
                }
            }
        }
        world.sim.crash();
        world.reopen();
    }
}

/// A world with `records` records in the journal, each of two files.
fn journaled(records: usize) -> World {
    let mut world = World::new(1);
    for _ in 0..records {
        world.write(0, 50);
        world.write(1, 50);
        assert!(world.sync(&[0, 1]));
    }
    world
}

#[test]
fn a_group_is_synced_by_one_sync_and_its_files_are_not() {
    let mut world = journaled(0);
    world.write(0, 50);
    world.write(1, 50);
    // The second sync would be of the second file.
    world.sim.fail_after(SimOp::Sync, 1, io::ErrorKind::Other);
    assert!(world.sync(&[0, 1]));
    world.sim.clear_failures();
    world.write(0, 50);
    world.sim.fail_next(SimOp::Sync, io::ErrorKind::Other);
    assert!(!world.sync(&[0, 1]), "a sync of the journal that fails is an error");
}

#[test]
fn what_is_large_or_new_is_synced_in_its_place() {
    let mut world = journaled(0);
    let journal = Path::new(ROOT).join(FILE_NAMES[0]);
    let before = world.sim.open(&journal, 0).unwrap().len();
    world.write(0, 3500);
    world.write(1, 1);
    assert!(world.sync(&[0, 1]));
    world.write(0, 1);
    let file = Arc::clone(&world.files[0].file);
    let dirs = [Path::new(ROOT).join("group")];
    world.disk.sync_many(&[file, Arc::clone(&world.files[1].file)], &dirs).unwrap();
    assert_eq!(world.sim.open(&journal, 0).unwrap().len(), before);
}

#[test]
fn a_full_disk_syncs_in_place() {
    let mut world = journaled(0);
    world.write(0, 50);
    world.write(1, 50);
    world.sim.fail_next(SimOp::Allocate, io::ErrorKind::StorageFull);
    assert!(world.sync(&[0, 1]));
    world.sim.crash();
    world.reopen();
}

#[test]
fn a_damaged_record_is_corrupt_if_a_later_one_shows_that_it_had_been_durable() {
    let journal = Path::new(ROOT).join(FILE_NAMES[0]);
    let world = journaled(3);
    let second = FIRST_RECORD as u64 + record::bytes_of(&pieces());
    world.sim.flip(&journal, second + 60, 1).unwrap();
    let reopened = JournaledDisk::open(Arc::new(world.sim.clone()), Path::new(ROOT));
    let error = reopened.unwrap_err();
    assert!(error.is_corrupt() && error.to_string().contains("appends-a"), "{error}");
    // The last one may as well have been torn.
    let mut world = journaled(2);
    world.sim.flip(&journal, second + 60, 1).unwrap();
    world.reopen();
    let mut world = journaled(3);
    world.sim.flip(&journal, 9, 1).unwrap();
    world.sim.crash();
    world.reopen();
}

fn pieces() -> [Piece<'static>; 2] {
    let piece = |path| Piece { path: Path::new(path), offset: 0, bytes: &[0; 50] };
    ["group/0.log", "group/1.log"].map(piece)
}

#[test]
fn any_bytes_at_all_are_read_or_refused() {
    for seed in 0..500_u64 {
        let world = journaled(4);
        let journal = Path::new(ROOT).join(FILE_NAMES[0]);
        let mut random = seed;
        for _ in 0..=seed % 6 {
            random = crate::log::mix(random + 1);
            world.sim.flip(&journal, random % 700, (random >> 32).to_le_bytes()[0]).unwrap();
        }
        let _ = JournaledDisk::open(Arc::new(world.sim.clone()), Path::new(ROOT));
    }
}

#[test]
fn after_any_sync_that_failed_no_half_is_used_again_and_the_next_start_puts_all_back() {
    let root = Path::new(ROOT);
    for by_directory in [false, true] {
        let mut world = journaled(2);
        if by_directory {
            world.sim.fail_next(SimOp::SyncDir, io::ErrorKind::Other);
            world.disk.sync_dir(&root.join("group")).unwrap_err();
        } else {
            // Of another file, which nobody else hears of. What was not written counts as clean from now on.
            let other = world.disk.create(&root.join("other"), 0).unwrap();
            world.sim.fail_next(SimOp::Sync, io::ErrorKind::Other);
            other.sync().unwrap_err();
            world.sim.fail_next(SimOp::Sync, io::ErrorKind::Other);
            world.sim.sync_tree(root).unwrap_err();
        }
        world.disk.settle_full_half(Duration::ZERO).unwrap_err();
        let said = world.disk.settle_all().unwrap_err().to_string();
        assert!(said.contains("simulated failure of Sync"), "the first cause is named: {said}");
        world.write(0, 50);
        world.write(1, 50);
        assert!(!world.sync(&[0, 1]), "nothing is acknowledged any more");
        world.sim.crash();
        world.reopen();
        assert!(world.files.iter().take(2).all(|file| file.synced == 100));
    }
}

#[test]
fn all_is_settled_when_a_node_stops_and_nothing_has_to_be_put_back() {
    let world = journaled(3);
    world.disk.settle_all().unwrap();
    let held = |name: &str| {
        let path = Path::new(ROOT).join(name);
        record::read(&*world.sim.open(&path, 0).unwrap(), &path).unwrap().pieces().count()
    };
    assert_eq!(FILE_NAMES.map(held), [0, 0]);
    assert!(!world.disk.is_name_kept(&path(0)));
}

#[test]
fn what_another_has_taken_to_sync_is_not_taken_for_durable() {
    let mut world = journaled(0);
    world.write(0, 50);
    world.write(1, 50);
    let other = world.files[0].file.unsynced().unwrap();
    let taken = other.take();
    let handles: Vec<_> = world.files.iter().map(|file| Arc::clone(&file.file)).collect();
    assert!(!world.disk.sync_by_journal(&handles).unwrap());
    other.done(taken, false);
    assert!(world.disk.sync_by_journal(&handles).unwrap());
}

#[test]
fn bytes_that_look_like_records_are_bytes() {
    let mut world = journaled(0);
    let journal = Path::new(ROOT).join(FILE_NAMES[0]);
    let generation =
        record::read(&*world.sim.open(&journal, 0).unwrap(), &journal).unwrap().generation;
    // A whole journal, as somebody would write it who knows everything but the salt.
    let forged = world.sim.create(Path::new("forged"), 0).unwrap();
    record::begin(&*forged, HalfId { generation, salt: 0 }).unwrap();
    for sequence in 0..20 {
        record::write(
            &*forged,
            FIRST_RECORD as u64 + sequence * record::bytes_of(&pieces()),
            0,
            sequence,
            &pieces(),
        )
        .unwrap();
    }
    assert_eq!(record::read(&*forged, &journal).unwrap().pieces().count(), 40);
    let forged = forged.read(0, usize::try_from(forged.len()).unwrap()).unwrap();
    let records = &forged[FIRST_RECORD..][..900];
    for file in [0, 1] {
        let model = &mut world.files[file];
        model.file.allocate(1024).unwrap();
        model.file.write_at(0, &[records]).unwrap();
    }
    let handles: Vec<_> = world.files.iter().map(|file| Arc::clone(&file.file)).collect();
    assert!(world.disk.sync_by_journal(&handles).unwrap());
    // The record that holds them is damaged, or is left of an older generation.
    world.sim.flip(&journal, FIRST_RECORD as u64 + 9, 1).unwrap();
    assert_eq!(
        record::read(&*world.sim.open(&journal, 0).unwrap(), &journal).unwrap().pieces().count(),
        0
    );
}

#[test]
fn one_damaged_header_is_none_and_two_are_a_power_loss_between_generations() {
    let journal = Path::new(ROOT).join(FILE_NAMES[0]);
    let held = |world: &World| {
        record::read(&*world.sim.open(&journal, 0).unwrap(), &journal).unwrap().pieces().count()
    };
    let world = journaled(2);
    world.sim.flip(&journal, 20, 1).unwrap();
    assert_eq!(held(&world), 4);
    world.sim.flip(&journal, 4096, 1).unwrap();
    assert_eq!(held(&world), 0);
}

#[test]
fn a_bad_sector_is_damage_only_where_a_record_may_stand() {
    let world = journaled(2);
    let journal = Path::new(ROOT).join(FILE_NAMES[0]);
    let file = world.sim.open(&journal, 0).unwrap();
    file.allocate(300 << 10).unwrap();
    let read = |windows_before: u32| {
        world.sim.fail_after(SimOp::Read, windows_before, io::ErrorKind::Other);
        record::read(&*file, &journal)
    };
    assert_eq!(read(2).unwrap().pieces().count(), 4);
    world.sim.clear_failures();
    let error = read(0).map(|contents| contents.pieces().count());
    assert_eq!(error.unwrap_or(0), 0, "neither header can be read");
}

#[test]
fn a_directory_has_the_names_of_what_is_below_it() {
    let mut world = journaled(0);
    assert!(!world.disk.is_name_kept(&Path::new(ROOT).join("group")));
    world.write(0, 50);
    world.write(1, 50);
    assert!(world.sync(&[0, 1]));
    let is_kept = |name: &str| world.disk.is_name_kept(&Path::new(ROOT).join(name));
    assert!(is_kept("group") && is_kept("group/0.log") && !is_kept("group/2.log"));
    assert!(!is_kept("grou") && !is_kept("group2") && !is_kept("group/0.log.new"));
}

#[test]
fn a_long_record_is_written_in_parts_and_read_as_one() {
    let sim = SimDisk::new(1);
    let path = Path::new("journal");
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[n as usize % 3]).collect();
    // The last part is short, or there is none behind the end of one.
    for len in [400_000, 1 << 20] {
        let file = sim.create(path, 0).unwrap();
        record::begin(&*file, HalfId { generation: 1, salt: 7 }).unwrap();
        let pieces: Vec<Piece<'_>> = bytes
            .chunks(len)
            .map(|bytes| Piece { path: Path::new("a/b"), offset: 5, bytes })
            .collect();
        file.allocate(FIRST_RECORD as u64 + record::bytes_of(&pieces)).unwrap();
        record::write(&*file, FIRST_RECORD as u64, 7, 0, &pieces).unwrap();
        let contents = record::read(&*file, path).unwrap();
        assert!(contents.pieces().eq(pieces.iter().copied()));
        sim.remove_file(path).unwrap();
    }
}
