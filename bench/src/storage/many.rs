//! Many partitions: one durable point for all of them, and thousands that are empty.
//!
//! Owns: these cases, and the bare ways of making many files durable. Never: a choice between the ways; the log makes that.

use std::fs::{self, File};
use std::hint::black_box;
use std::num::NonZeroU64;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;
use highwater_storage::{
    Disk, JournaledDisk, Log, LogOptions, RealDisk, Settled, SyncPoint, UnsyncedDisk, sync_group,
};
use rustix::fs::FallocateFlags;

use super::compare::{Case, Repeat, Report, Side, Target};
use super::sides::{KIB, START, append, frame_bytes, open_new, payload};
use crate::env;

/// Threads of the way that syncs in parallel.
const THREADS: usize = 8;
/// How long the settling thread takes to notice that it should end.
const SETTLE_PAUSE: Duration = Duration::from_millis(100);

/// A file for each partition, written alike by several ways.
struct Files {
    files: Vec<File>,
    body: Vec<u8>,
    round: u64,
}

impl Files {
    fn new(dir: &Path, name: &str, count: u32, body: &[u8]) -> anyhow::Result<Self> {
        let dir = dir.join(name);
        fs::create_dir(&dir)?;
        let files = (0..count).map(|number| {
            let file = open_new(&dir.join(number.to_string()))?;
            rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 256 << 10)?;
            Ok(file)
        });
        let files = files.collect::<anyhow::Result<_>>()?;
        Ok(Self { files, body: body.to_owned(), round: 0 })
    }

    /// The next write to each of them.
    fn write(&mut self) -> anyhow::Result<()> {
        let at = self.round * self.body.len() as u64;
        self.round += 1;
        self.files.iter().try_for_each(|file| Ok(file.write_all_at(&self.body, at)?))
    }
}

pub(super) fn one_durable_point(
    report: &mut Report,
    dir: &Path,
    partitions: u32,
) -> anyhow::Result<()> {
    let body = payload(4 * KIB);
    let frame = payload(frame_bytes(body.len()));
    let journaled = JournaledDisk::open(Arc::new(RealDisk::new()), dir)?;
    let settler = Settler::start(journaled.clone());
    let disk: Arc<dyn Disk> = Arc::new(journaled);
    let mut logs = (0..partitions)
        .map(|partition| {
            let path = dir.join(format!("p{partition}-log"));
            let unsynced: Arc<dyn Disk> = Arc::new(UnsyncedDisk::new(Arc::clone(&disk)));
            drop(Log::create(unsynced, &path, START, LogOptions::default())?);
            Ok(Log::open(Arc::clone(&disk), &path, LogOptions::default(), 0)?.0)
        })
        .collect::<anyhow::Result<Vec<Log>>>()?;
    let new_files = |name: &str| Files::new(dir, name, partitions, &frame);
    let (mut all, mut each) = (new_files("all")?, new_files("each")?);
    let (mut threads, mut ranges) = (new_files("threads")?, new_files("ranges")?);
    let mut behind = new_files("behind-journal")?;
    let journal_bytes = frame.len() * partitions as usize;
    let (mut journal, mut ahead) = (
        Journal::new(&dir.join("journal"), journal_bytes)?,
        Journal::new(&dir.join("journal-ahead"), journal_bytes)?,
    );
    let root = File::open(dir)?;
    rustix::fs::syncfs(&root)?;
    let mut log = Repeat(|| {
        logs.iter_mut().try_for_each(|log| append(log, &body))?;
        let points: Vec<SyncPoint> = logs.iter().map(Log::sync_point).collect();
        sync_group(&points)?;
        for (log, point) in logs.iter_mut().zip(&points) {
            log.mark_durable(point);
        }
        Ok(())
    });
    // As for the bare journals: in steady state both halves consist of blocks that already hold data.
    let mut cold = Vec::new();
    for _ in 0..(2 * JournaledDisk::HALF_BYTES_MAX).div_ceil(journal_bytes as u64) {
        let clock = env::Clock::start();
        log.operation()?;
        cold.push(clock.now());
    }
    cold.sort();
    report.fact(
        "4 KiB to each of many partitions, cold: a journal never written before, median".into(),
        cold[cold.len() / 2].as_secs_f64() * 1e3,
        "ms",
        None,
    );
    let mut ways: Vec<(&'static str, Box<dyn Side + '_>)> = vec![
        (
            "a write to each, one syncfs",
            Box::new(Repeat(|| {
                all.write()?;
                Ok(rustix::fs::syncfs(&root)?)
            })),
        ),
        (
            "one journal for all, written out as it is filled, fdatasync; nothing in their own files",
            Box::new(Repeat(|| journal.write())),
        ),
        (
            "one journal for all, written out as it is filled, fdatasync, then a write to each that is not synced",
            Box::new(Repeat(|| {
                ahead.write()?;
                behind.write()
            })),
        ),
        (
            "a write to each, fdatasync one by one",
            Box::new(Repeat(|| {
                each.write()?;
                each.files.iter().try_for_each(|file| Ok(file.sync_data()?))
            })),
        ),
        (
            "a write to each, fadvise(DONTNEED) to start writing them all, then fdatasync one by one",
            Box::new(Repeat(|| {
                ranges.write()?;
                for file in &ranges.files {
                    start_writing(file, 0, None)?;
                }
                ranges.files.iter().try_for_each(|file| Ok(file.sync_data()?))
            })),
        ),
        (
            "a write to each, fdatasync in 8 threads",
            Box::new(Repeat(|| {
                threads.write()?;
                let chunk = threads.files.len().div_ceil(THREADS);
                env::in_parallel(threads.files.chunks(chunk), |files| {
                    files.iter().try_for_each(File::sync_data)
                })?;
                Ok(())
            })),
        ),
        ("the log", Box::new(log)),
    ];
    let case = |name, target| Case { name, calls: 1, target, ..Case::default() };
    let cases = [
        (
            case(
                "4 KiB to each of many partitions, one durable point for all (bare: syncfs)",
                Target::Speed(0.8),
            ),
            0,
        ),
        (case("the same (bare: one journal, and nothing in their own files)", Target::None), 1),
        (case("the same (bare: one journal, then their own files)", Target::Speed(0.8)), 2),
    ];
    report.compare_ways(&cases, &mut ways)?;
    drop(ways);
    settler.stop()
}

/// The thread that a broker has for it too: settles the journal, half by half.
struct Settler {
    stopping: Arc<AtomicBool>,
    thread: JoinHandle<std::io::Result<()>>,
}

impl Settler {
    fn start(disk: JournaledDisk) -> Self {
        let stopping = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stopping);
        let thread = env::spawn_punctual(move || {
            while !flag.load(Ordering::Relaxed) {
                disk.settle_full_half(SETTLE_PAUSE)?;
            }
            Ok(())
        });
        Self { stopping, thread }
    }

    fn stop(self) -> anyhow::Result<()> {
        self.stopping.store(true, Ordering::Relaxed);
        Ok(self.thread.join().map_err(|_| anyhow::anyhow!("the settling thread panicked"))??)
    }
}

/// Starts writing a file's dirty pages and does not wait; `None` is to its end.
fn start_writing(file: &File, from: u64, bytes: Option<NonZeroU64>) -> anyhow::Result<()> {
    // `sync_file_range` would need unsafe code; this too begins to write dirty pages out, and does not wait.
    Ok(rustix::fs::fadvise(file, from, bytes, rustix::fs::Advice::DontNeed)?)
}

/// One file that takes the writes of all partitions. The disk begins with the first while the rest is written.
struct Journal {
    file: File,
    body: Vec<u8>,
    round: u64,
}

impl Journal {
    fn new(path: &Path, body_bytes: usize) -> anyhow::Result<Self> {
        let file = open_new(path)?;
        let body = payload(body_bytes);
        // Blocks that already hold data: a journal goes round.
        for round in 0..4 {
            file.write_all_at(&body, round * body_bytes as u64)?;
        }
        file.sync_all()?;
        Ok(Self { file, body, round: 0 })
    }

    fn write(&mut self) -> anyhow::Result<()> {
        let mut at = (self.round % 4) * self.body.len() as u64;
        self.round += 1;
        for chunk in self.body.chunks(512 * KIB) {
            black_box(crc32fast::hash(chunk));
            self.file.write_all_at(chunk, at)?;
            start_writing(&self.file, at, NonZeroU64::new(chunk.len() as u64))?;
            at += chunk.len() as u64;
        }
        Ok(self.file.sync_data()?)
    }
}

/// Opens partitions without a record, and looks at what they cost.
pub(super) fn empty(report: &mut Report, dir: &Path, partitions: u32) -> anyhow::Result<()> {
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::new());
    let root = dir.join("empty");
    let unsynced: Arc<dyn Disk> = Arc::new(UnsyncedDisk::new(Arc::clone(&disk)));
    let path = |partition: u32| root.join(partition.to_string());
    for partition in 0..partitions {
        let unsynced = Arc::clone(&unsynced);
        drop(Log::create(unsynced, &path(partition), START, LogOptions::default())?);
    }
    drop(Settled::below(&*disk, &root)?);
    let mut bare = Repeat(|| {
        let mut page = vec![0; 4 * KIB];
        for partition in 0..partitions {
            for entry in fs::read_dir(path(partition))? {
                File::open(entry?.path())?.read_at(&mut page, 0)?;
            }
        }
        Ok(())
    });
    let open_all = || -> anyhow::Result<Vec<Log>> {
        let proof = Settled::below(&*disk, &root)?;
        let open = |partition| {
            let options = LogOptions::default();
            Ok(Log::open_settled(Arc::clone(&disk), &path(partition), options, 0, &proof)?.0)
        };
        (0..partitions).map(open).collect()
    };
    let before = private_bytes()?;
    let logs = open_all()?;
    let private = private_bytes()?.saturating_sub(before);
    drop(logs);
    let case = Case {
        name: "open an empty partition, one sync for all (bare: list, open and read one page)",
        calls: 1,
        things: partitions as usize,
        ..Case::default()
    };
    let mut slowest = 0.0_f64;
    report.compare(
        case,
        &mut bare,
        &mut Repeat(|| {
            let clock = env::Clock::start();
            drop(open_all()?);
            slowest = slowest.max(clock.now().as_secs_f64());
            Ok(())
        }),
    )?;
    let each = |bytes: u64| bytes as f64 / 1024.0 / f64::from(partitions);
    report.fact(
        format!("open {partitions} empty partitions, and close them, slowest"),
        slowest,
        "s",
        Some(5.0),
    );
    report.fact("private memory of each".into(), each(private), "KiB", Some(16.0));
    report.fact("disk of each".into(), each(disk_bytes(&root)?), "KiB", Some(64.0));
    Ok(())
}

/// Memory of this process that no other shares, pages of files included.
fn private_bytes() -> anyhow::Result<u64> {
    let rollup = fs::read_to_string("/proc/self/smaps_rollup")?;
    let kib = rollup
        .lines()
        .filter(|line| line.starts_with("Private_"))
        .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    Ok(kib.sum::<u64>() << 10)
}

/// Blocks of everything below a directory.
fn disk_bytes(root: &Path) -> anyhow::Result<u64> {
    let metadata = fs::symlink_metadata(root).with_context(|| root.display().to_string())?;
    let mut bytes = metadata.blocks() * 512;
    if metadata.is_dir() {
        for entry in fs::read_dir(root)? {
            bytes += disk_bytes(&entry?.path())?;
        }
    }
    Ok(bytes)
}
