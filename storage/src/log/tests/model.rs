//! The log against a plain vector, through random operations and crashes.

use proptest::prelude::*;

use super::*;
use crate::disk::{JournaledDisk, SimOp};

/// What happens to a log.
#[derive(Clone, Debug)]
enum Step {
    Append {
        span: u32,
        bytes: usize,
        new_term: bool,
    },
    Sync,
    /// A sync point that is marked only some steps later.
    TakePoint,
    MarkPoint,
    Roll,
    /// Cuts so many entries, as far as they are above the last durable one that the model committed.
    TruncateSuffix(u64),
    /// Drops so many entries from the front.
    TruncatePrefix(u64),
    Reset,
    Reopen,
    /// The same behind one sync of everything.
    ReopenSettled,
    /// Opened again with or without knowing from elsewhere what had been durable.
    Crash {
        floor_known: bool,
    },
    FullDisk,
    FailAppend(SimOp),
    FailRoll(SimOp),
    /// A sync fails; the next process finds what the page cache holds.
    FailSync,
    /// A truncation fails; then it is repeated, or the power goes.
    FailTruncate {
        op: SimOp,
        count: u64,
        crash: bool,
    },
}

fn op() -> impl Strategy<Value = SimOp> {
    prop::sample::select(vec![
        SimOp::Create,
        SimOp::Allocate,
        SimOp::Write,
        SimOp::Sync,
        SimOp::SyncDir,
        SimOp::Remove,
        SimOp::Rename,
        SimOp::Read,
    ])
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        20 => (0_u32..4, 0_usize..600, any::<bool>())
            .prop_map(|(span, bytes, new_term)| Step::Append { span, bytes, new_term }),
        4 => Just(Step::Sync),
        2 => Just(Step::TakePoint),
        2 => Just(Step::MarkPoint),
        1 => Just(Step::Roll),
        2 => (1_u64..8).prop_map(Step::TruncateSuffix),
        3 => (1_u64..30).prop_map(Step::TruncatePrefix),
        1 => Just(Step::Reset),
        1 => Just(Step::Reopen),
        1 => Just(Step::ReopenSettled),
        3 => any::<bool>().prop_map(|floor_known| Step::Crash { floor_known }),
        1 => Just(Step::FullDisk),
        1 => op().prop_map(Step::FailAppend),
        1 => op().prop_map(Step::FailRoll),
        1 => Just(Step::FailSync),
        1 => (op(), 1_u64..8, any::<bool>())
            .prop_map(|(op, count, crash)| Step::FailTruncate { op, count, crash }),
    ]
}

/// Invariant: `entries` is what the log holds, and everything up to `durable` must survive a crash.
struct Model {
    start: LogStart,
    entries: Vec<StoredEntry>,
    term: u64,
    durable: u64,
    point: Option<SyncPoint>,
    /// Entries whose append failed: until something durable stands in their place, they may come back.
    maybe: Vec<StoredEntry>,
}

impl Model {
    fn next_index(&self) -> u64 {
        self.start.first_index + self.entries.len() as u64
    }

    fn next_offset(&self) -> u64 {
        self.entries.last().map_or(self.start.next_offset, StoredEntry::end_offset)
    }

    fn check(&self, log: &Log) {
        let reader = log.reader();
        assert_eq!(log.first_index(), self.start.first_index);
        assert_eq!(log.last_index() + 1, self.next_index());
        assert_eq!(log.next_offset(), self.next_offset());
        assert_eq!(all(log), self.entries);
        assert_eq!(reader.term(self.start.first_index - 1), Some(self.start.prev_term));
        for entry in &self.entries {
            assert_eq!(reader.term(entry.meta.index), Some(entry.meta.term));
            assert_eq!(reader.end_offset(entry.meta.index), Some(entry.end_offset()));
        }
        let visible: Vec<&StoredEntry> =
            self.entries.iter().filter(|entry| entry.meta.offset_span > 0).collect();
        let offsets = reader.read_offsets(self.start.next_offset, u64::MAX, u64::MAX).unwrap();
        assert!(offsets.iter().eq(visible.iter().copied()));
        for time in [0, 100, 200] {
            let expected = visible.iter().find(|entry| entry.meta.max_timestamp_ms >= time);
            let got = reader.entry_at_time(time, u64::MAX).unwrap();
            assert_eq!(got.as_ref(), expected.copied());
        }
        assert!(log.durable_index() >= self.durable.min(log.last_index()));
    }

    fn append(&mut self, log: &mut Log, span: u32, bytes: usize) -> Result<(), StorageError> {
        let mut meta = meta(self.next_index(), self.term, span);
        meta.max_timestamp_ms = i64::try_from(meta.index * 37 % 256).unwrap();
        let payload: Vec<u8> =
            payload(meta.index + self.term).into_iter().cycle().take(bytes).collect();
        let base_offset = self.next_offset();
        let appended = log.append(&meta, &[&payload]);
        let entry = StoredEntry { meta, base_offset, payload: payload.into() };
        match appended {
            Ok(got) => {
                assert_eq!(got, base_offset);
                self.entries.push(entry);
                Ok(())
            }
            Err(error) => {
                self.maybe.push(entry);
                Err(error)
            }
        }
    }

    /// Where a truncation of `count` entries cuts.
    fn cut_point(&self, count: u64) -> u64 {
        self.next_index().saturating_sub(count).max(self.start.first_index)
    }

    fn cut(&mut self, from: u64) {
        self.entries.truncate(usize::try_from(from - self.start.first_index).unwrap());
    }

    /// After a crash the log may end anywhere between what was durable and what was appended.
    fn settle(&mut self, log: &Log) {
        assert!(log.last_index() >= self.durable, "{} < {}", log.last_index(), self.durable);
        let last = all(log).pop();
        if let Some(back) = last.filter(|last| self.maybe.contains(last)) {
            self.cut(back.meta.index.min(self.next_index()));
            self.entries.push(back);
        }
        let kept = log.last_index() + 1 - self.start.first_index;
        self.entries.truncate(usize::try_from(kept).unwrap());
        self.durable = log.last_index();
        self.point = None;
    }
}

/// Another log behind the same journal, so that syncs go by way of that.
struct Companion {
    log: Log,
    durable: u64,
}

const COMPANION_DIR: &str = "data/p1";

impl Companion {
    fn create(disk: &Arc<dyn Disk>) -> Self {
        let dir = Path::new(COMPANION_DIR);
        Self { log: Log::create(Arc::clone(disk), dir, START, options()).unwrap(), durable: 0 }
    }

    /// Syncs the log together with something of its own.
    fn sync_with(&mut self, log: &mut Log) {
        fill(&mut self.log, 1, 1);
        let points = [log.sync_point(), self.log.sync_point()];
        sync_group(&points).unwrap();
        log.mark_durable(&points[0]);
        self.log.mark_durable(&points[1]);
        self.durable = self.log.last_index();
    }

    fn reopen(&mut self, disk: &Arc<dyn Disk>) {
        let dir = Path::new(COMPANION_DIR);
        self.log = Log::open(Arc::clone(disk), dir, options(), self.durable).unwrap().0;
        self.durable = self.log.last_index();
        let entries = all(&self.log);
        assert!(entries.iter().all(|entry| entry.payload == payload(entry.meta.index)));
    }
}

/// The disk as a process finds it at its start.
fn start_of(sim: &SimDisk, journaled: bool) -> Arc<dyn Disk> {
    let disk: Arc<dyn Disk> = Arc::new(sim.clone());
    if !journaled {
        return disk;
    }
    // A few records fill a half.
    Arc::new(JournaledDisk::open_with(disk, Path::new("data"), 8192).unwrap())
}

/// The log as the next process finds it, after a power loss or not. `durable` is known from elsewhere, or 0.
fn restart(
    log: Log,
    sim: &SimDisk,
    disk: &mut Arc<dyn Disk>,
    companion: &mut Option<Companion>,
    (power_loss, durable): (bool, u64),
) -> Log {
    drop(log);
    if power_loss {
        sim.crash();
    }
    *disk = start_of(sim, companion.is_some());
    if let Some(companion) = companion {
        companion.reopen(disk);
    }
    try_open(disk, durable).unwrap().0
}

fn run(seed: u64, steps: Vec<Step>, journaled: bool) {
    let (sim, disk) = sim(seed);
    disk.create_dir_all(Path::new("data")).unwrap();
    disk.sync_dir(Path::new("")).unwrap();
    let mut disk = start_of(&sim, journaled);
    let mut log = create(&disk);
    let mut companion = journaled.then(|| Companion::create(&disk));
    let mut model = Model {
        start: START,
        entries: Vec::new(),
        term: 1,
        durable: 0,
        point: None,
        maybe: Vec::new(),
    };
    // A sync that failed is the last: what it left out may count as clean, and only a power loss shows that.
    let ends_the_process = |op| matches!(op, SimOp::Sync | SimOp::SyncDir);
    for step in steps {
        match step {
            Step::Append { span, bytes, new_term } => {
                model.term += u64::from(new_term);
                model.append(&mut log, span, bytes).unwrap();
            }
            Step::Sync => {
                match &mut companion {
                    Some(companion) => companion.sync_with(&mut log),
                    None => sync(&mut log),
                }
                model.durable = log.last_index();
            }
            Step::TakePoint => model.point = Some(log.sync_point()),
            Step::MarkPoint => {
                if let Some(point) = model.point.take() {
                    point.sync().unwrap();
                    log.mark_durable(&point);
                    model.durable = log.durable_index();
                }
            }
            Step::Roll => log.roll().unwrap(),
            Step::TruncateSuffix(count) => {
                let from = model.cut_point(count);
                log.truncate_suffix(from).unwrap();
                model.cut(from);
                model.durable = log.durable_index();
            }
            Step::TruncatePrefix(count) => {
                // The caller never drops what is not committed.
                let first_index = (model.start.first_index + count).min(model.durable + 1);
                log.truncate_prefix(first_index).unwrap();
                let dropped = log.first_index() - model.start.first_index;
                model.entries.drain(..usize::try_from(dropped).unwrap());
                model.start = log.start();
                assert!(model.start.first_index <= first_index.max(1));
            }
            Step::Reset => {
                let start = LogStart {
                    first_index: model.next_index() + 10,
                    prev_term: model.term,
                    next_offset: model.next_offset() + 5,
                };
                log.reset(start).unwrap();
                model = Model { start, entries: Vec::new(), point: None, ..model };
                model.durable = start.first_index - 1;
            }
            Step::Reopen => {
                let next = model.next_index();
                drop(log);
                log = open(&disk).0;
                model.settle(&log);
                assert!(log.last_index() + 1 >= next);
            }
            Step::ReopenSettled => {
                drop(log);
                let settled = Settled::below(&*disk, Path::new("data")).unwrap();
                // It syncs nothing itself, unless a tail is cut.
                sim.fail_next(SimOp::Sync, std::io::ErrorKind::Other);
                let opened =
                    Log::open_settled(Arc::clone(&disk), Path::new(DIR), options(), 0, &settled);
                sim.clear_failures();
                log = opened
                    .unwrap_or_else(|_| {
                        disk = start_of(&sim, journaled);
                        companion.iter_mut().for_each(|companion| companion.reopen(&disk));
                        open(&disk)
                    })
                    .0;
                model.settle(&log);
            }
            Step::Crash { floor_known } => {
                let floor = if floor_known { model.durable } else { 0 };
                log = restart(log, &sim, &mut disk, &mut companion, (true, floor));
                model.settle(&log);
            }
            Step::FullDisk => {
                sim.set_capacity(Some(sim.used_bytes()));
                let big = model.append(&mut log, 1, 4000);
                sim.set_capacity(None);
                assert!(big.is_ok() || big.is_err_and(|error| error.is_disk_full()));
            }
            Step::FailAppend(op) => {
                sim.fail_next(op, std::io::ErrorKind::Other);
                let _ = model.append(&mut log, 2, 300);
                sim.clear_failures();
                // Replacing an empty segment can itself fail halfway.
                let _ = log.truncate_suffix(model.next_index());
                if ends_the_process(op) {
                    log = restart(log, &sim, &mut disk, &mut companion, (true, model.durable));
                    model.settle(&log);
                }
            }
            Step::FailRoll(op) => {
                sim.fail_next(op, std::io::ErrorKind::Other);
                let _ = log.roll();
                sim.clear_failures();
                let _ = log.truncate_suffix(model.next_index());
                if ends_the_process(op) {
                    log = restart(log, &sim, &mut disk, &mut companion, (true, model.durable));
                    model.settle(&log);
                }
            }
            Step::FailSync => {
                sim.fail_next(SimOp::Sync, std::io::ErrorKind::Other);
                let _ = log.sync_point().sync();
                sim.clear_failures();
                let how = (false, model.durable);
                log = restart(log, &sim, &mut disk, &mut companion, how);
                model.settle(&log);
            }
            Step::FailTruncate { op, count, crash } => {
                let from = model.cut_point(count);
                sim.fail_next(op, std::io::ErrorKind::Other);
                let result = log.truncate_suffix(from);
                sim.clear_failures();
                if result.is_err() && (crash || ends_the_process(op)) {
                    // It may or may not have happened.
                    model.durable = model.durable.min(from - 1);
                    let how = (true, model.durable);
                    log = restart(log, &sim, &mut disk, &mut companion, how);
                    model.settle(&log);
                } else {
                    log.truncate_suffix(from).unwrap();
                    model.cut(from);
                    model.durable = model.durable.min(from - 1);
                }
            }
        }
        model.check(&log);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_log_is_the_vector_whatever_happens(
        seed in any::<u64>(),
        steps in prop::collection::vec(step(), 1..80),
    ) {
        run(seed, steps, false);
    }

    #[test]
    fn the_same_behind_a_journal(
        seed in any::<u64>(),
        steps in prop::collection::vec(step(), 1..80),
    ) {
        run(seed, steps, true);
    }
}
