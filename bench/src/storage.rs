//! `bench storage`: the log engine beside a bare loop of the same work, in one run, taking turns.
//!
//! Owns: the cases, their bare counterparts, the table. Never: needs a broker, or leaves files behind.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use highwater_storage::{
    Disk, EntryMeta, Log, LogOptions, LogStart, RealDisk, Settled, SparePool, SyncPoint, sync_group,
};
use serde::Serialize;

use crate::args::Output;
use crate::env::Clock;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
const START: LogStart = LogStart { first_index: 1, prev_term: 0, next_offset: 0 };
/// Bare files are as large as a segment, and are written from the start again when they are full.
const FILE_BYTES: usize = 64 * MIB;

/// The settings of `bench storage`.
#[derive(Args, Clone, Debug)]
pub(crate) struct StorageArgs {
    /// Where to write: on the file system to be measured. What is written is removed in the end.
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// Rounds of each case; the bare loop and the log take turns.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Partitions of the case with one durable point for all.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    partitions: u32,
    /// How results are printed.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// Microseconds for one operation: the median of the rounds, the fastest and the slowest.
#[derive(Clone, Copy, Debug, Serialize)]
struct Spread {
    median_us: f64,
    fastest_us: f64,
    slowest_us: f64,
}

impl Spread {
    fn of(mut rounds: Vec<f64>) -> Self {
        rounds.sort_by(f64::total_cmp);
        let at = |index: usize| rounds.get(index).copied().unwrap_or(f64::NAN);
        Self {
            median_us: at(rounds.len() / 2),
            fastest_us: at(0),
            slowest_us: at(rounds.len().saturating_sub(1)),
        }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} ({:.2} to {:.2})", self.median_us, self.fastest_us, self.slowest_us)
    }
}

/// One case.
#[derive(Debug, Serialize)]
struct Row {
    case: &'static str,
    bare: Spread,
    log: Spread,
    /// The speed of the log in parts of the bare loop's, medians.
    of_bare: f64,
}

#[derive(Debug, Serialize)]
struct StorageReport {
    rounds: u32,
    partitions: u32,
    optimized: bool,
    rows: Vec<Row>,
}

/// One round of a case: so many operations took so long.
type Round<'a> = &'a mut dyn FnMut() -> anyhow::Result<()>;

/// Runs every case and prints the table.
pub(crate) fn run(args: &StorageArgs) -> anyhow::Result<()> {
    let dir = args.dir.join(format!("bench-storage-{}", std::process::id()));
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let measured = measure_all(args, &dir);
    fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    let report = StorageReport {
        rounds: args.rounds,
        partitions: args.partitions,
        optimized: !cfg!(debug_assertions),
        rows: measured?,
    };
    match args.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
        Output::Text => {
            println!("microseconds an operation: median of {} rounds (range)", report.rounds);
            println!("| case | bare | log | of bare |\n| --- | ---: | ---: | ---: |");
            for row in &report.rows {
                let part = row.of_bare * 100.0;
                println!("| {} | {} | {} | {part:.0} % |", row.case, row.bare, row.log);
            }
        }
    }
    Ok(())
}

fn measure_all(args: &StorageArgs, dir: &Path) -> anyhow::Result<Vec<Row>> {
    let one = payload(MIB);
    let small = payload(4 * KIB);
    let mut rows = Vec::new();
    rows.push(append_unsynced(args, dir, &one)?);
    for (fresh, recycled, body, count) in [
        ("4 KiB, append and sync, fresh", "4 KiB, append and sync, recycled", &small, 100),
        ("1 MiB, append and sync, fresh", "1 MiB, append and sync, recycled", &one, 20),
    ] {
        rows.extend(append_synced(args, dir, [fresh, recycled], body, count)?);
    }
    rows.extend(reads(args, dir, &small)?);
    rows.push(many_partitions(args, dir, &small)?);
    rows.push(open_many(args, dir, "open a small partition, one sync for all", true)?);
    rows.push(open_many(args, dir, "open a small partition, each syncs its own", false)?);
    Ok(rows)
}

/// Lets the bare loop and the log take turns; the first round of each warms up and does not count.
fn compare(
    args: &StorageArgs,
    case: &'static str,
    operations: usize,
    bare: Round<'_>,
    log: Round<'_>,
) -> anyhow::Result<Row> {
    let mut times = [Vec::new(), Vec::new()];
    for round in 0..=args.rounds {
        for (of_log, times) in times.iter_mut().enumerate() {
            let clock = Clock::start();
            if of_log == 0 {
                bare()?
            } else {
                log()?
            }
            if round > 0 {
                times.push(clock.now().as_secs_f64() * 1e6 / operations as f64);
            }
        }
    }
    let [bare, log] = times.map(Spread::of);
    Ok(Row { case, bare, log, of_bare: bare.median_us / log.median_us })
}

fn append_unsynced(args: &StorageArgs, dir: &Path, body: &[u8]) -> anyhow::Result<Row> {
    let mut bare = BareFile::create(&dir.join("unsynced"), true)?;
    let mut log = BenchLog::create(&dir.join("unsynced-log"), true)?;
    // So few that neither comes to the end of its file in the rounds of a default run.
    let count = 7;
    compare(
        args,
        "1 MiB, append, not synced (bare: checksum and write)",
        count,
        &mut || {
            (0..count).try_for_each(|_| {
                // The log checks what it writes; so does the loop.
                black_box(crc32fast::hash(body));
                bare.write(body)
            })
        },
        &mut || (0..count).try_for_each(|_| log.append(body)),
    )
}

fn append_synced(
    args: &StorageArgs,
    dir: &Path,
    cases: [&'static str; 2],
    body: &[u8],
    count: usize,
) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (case, recycled) in cases.into_iter().zip([false, true]) {
        let name = format!("synced-{}-{recycled}", body.len());
        let mut bare = BareFile::create(&dir.join(&name), recycled)?;
        let mut log = BenchLog::create(&dir.join(format!("{name}-log")), recycled)?;
        rows.push(compare(
            args,
            case,
            count,
            &mut || {
                (0..count).try_for_each(|_| {
                    bare.write(body)?;
                    Ok(bare.file.sync_data()?)
                })
            },
            &mut || {
                (0..count).try_for_each(|_| {
                    log.append(body)?;
                    log.sync()
                })
            },
        )?);
    }
    Ok(rows)
}

fn reads(args: &StorageArgs, dir: &Path, body: &[u8]) -> anyhow::Result<Vec<Row>> {
    let mut log = BenchLog::create(&dir.join("read-log"), false)?;
    while log.log.segments().len() < 2 {
        log.append_keeping(body)?;
    }
    log.sync()?;
    let sealed = *log.log.segments().first().context("a sealed segment")?;
    let count = sealed.end_index - sealed.first_index;
    let bare = BareFile::create(&dir.join("read"), true)?;
    let reader = log.log.reader();
    let mut buffer = vec![0; body.len()];
    let (mut at, mut index) = (0_u64, 0_u64);
    let positioned = compare(
        args,
        "4 KiB, positioned read, checksums verified (bare: pread and checksum)",
        10_000,
        &mut || {
            (0..10_000).try_for_each(|_| {
                at = (at + 7919) % count;
                bare.file.read_exact_at(&mut buffer, at * body.len() as u64)?;
                black_box(crc32fast::hash(&buffer));
                Ok(())
            })
        },
        &mut || {
            (0..10_000).try_for_each(|_| {
                index = (index + 7919) % count;
                let from = sealed.first_index + index;
                black_box(reader.entries(from, from + 1, 0)?);
                Ok(())
            })
        },
    )?;
    let whole = vec![7_u8; FILE_BYTES];
    let sequential = compare(
        args,
        "64 MiB, sealed segment read, checksums verified (bare: checksum of memory)",
        1,
        &mut || {
            black_box(crc32fast::hash(&whole));
            Ok(())
        },
        &mut || {
            let mut next = sealed.first_index;
            while next < sealed.end_index {
                let read = reader.entries(next, sealed.end_index, MIB as u64)?;
                next += read.len() as u64;
                black_box(read);
            }
            Ok(())
        },
    )?;
    Ok(vec![positioned, sequential])
}

fn many_partitions(args: &StorageArgs, dir: &Path, body: &[u8]) -> anyhow::Result<Row> {
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::new());
    let (mut files, mut logs) = (Vec::new(), Vec::new());
    for partition in 0..args.partitions {
        // The best bare way found (docs/performance.md): a write to each, then one sync of the file system.
        let file = open_new(&dir.join(format!("p{partition}")))?;
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 64 << 10)?;
        files.push(file);
        let path = dir.join(format!("p{partition}-log"));
        logs.push(Log::create(Arc::clone(&disk), &path, START, LogOptions::default())?);
    }
    let root = File::open(dir)?;
    rustix::fs::syncfs(&root)?;
    let mut round = 0;
    compare(
        args,
        "4 KiB to each partition, one durable point for all",
        1,
        &mut || {
            round += 1;
            files.iter().try_for_each(|file| file.write_all_at(body, round * body.len() as u64))?;
            Ok(rustix::fs::syncfs(&root)?)
        },
        &mut || {
            for log in &mut logs {
                let index = log.last_index() + 1;
                log.append(&meta(index), &[body])?;
            }
            let points: Vec<SyncPoint> = logs.iter().map(Log::sync_point).collect();
            sync_group(&points)?;
            for (log, point) in logs.iter_mut().zip(&points) {
                log.mark_durable(point);
            }
            Ok(())
        },
    )
}

/// Opening the logs of the case before, each with a few entries. Bare: listing each directory, and reading
/// the first page of each file in it.
fn open_many(
    args: &StorageArgs,
    dir: &Path,
    case: &'static str,
    settled: bool,
) -> anyhow::Result<Row> {
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::new());
    let mut page = vec![0; 4 * KIB];
    let count = args.partitions;
    compare(
        args,
        case,
        count as usize,
        &mut || {
            for partition in 0..count {
                for entry in fs::read_dir(dir.join(format!("p{partition}-log")))? {
                    File::open(entry?.path())?.read_at(&mut page, 0)?;
                }
            }
            Ok(())
        },
        &mut || {
            let proof = settled.then(|| Settled::below(&*disk, dir)).transpose()?;
            for partition in 0..count {
                let path = dir.join(format!("p{partition}-log"));
                let (disk, options) = (Arc::clone(&disk), LogOptions::default());
                black_box(match &proof {
                    Some(proof) => Log::open_settled(disk, &path, options, 0, proof)?,
                    None => Log::open(disk, &path, options, 0)?,
                });
            }
            Ok(())
        },
    )
}

/// A file that is written from end to end, again and again if it holds data from the start.
struct BareFile {
    file: File,
    path: PathBuf,
    recycled: bool,
    position: usize,
}

impl BareFile {
    fn create(path: &Path, recycled: bool) -> anyhow::Result<Self> {
        let file = open_new(path)?;
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, FILE_BYTES as u64)?;
        if recycled {
            file.write_all_at(&payload(FILE_BYTES), 0)?;
        }
        file.sync_all()?;
        Ok(Self { file, path: path.to_path_buf(), recycled, position: 0 })
    }

    fn write(&mut self, body: &[u8]) -> anyhow::Result<()> {
        if self.position + body.len() > FILE_BYTES {
            if !self.recycled {
                fs::remove_file(&self.path)?;
                *self = Self::create(&self.path.clone(), false)?;
            }
            self.position = 0;
        }
        self.file.write_all_at(body, self.position as u64)?;
        self.position += body.len();
        Ok(())
    }
}

fn open_new(path: &Path) -> anyhow::Result<File> {
    Ok(OpenOptions::new().read(true).write(true).create_new(true).open(path)?)
}

/// A log that drops what it sealed, so that the disk does not fill up.
struct BenchLog {
    log: Log,
}

impl BenchLog {
    /// With `recycled`, the active segment stands in the file of an earlier one from the start.
    fn create(dir: &Path, recycled: bool) -> anyhow::Result<Self> {
        let disk: Arc<dyn Disk> = Arc::new(RealDisk::new());
        let spares = recycled.then(|| SparePool::new(1));
        let options = LogOptions { spares, ..LogOptions::default() };
        let mut log = Self { log: Log::create(disk, dir, START, options)? };
        let body = payload(MIB);
        while recycled && log.log.first_index() < 100 {
            log.append(&body)?;
        }
        log.sync()?;
        Ok(log)
    }

    fn append(&mut self, body: &[u8]) -> anyhow::Result<()> {
        if self.log.will_roll(body.len()) {
            let next = self.log.last_index() + 1;
            self.log.roll()?;
            self.log.truncate_prefix(next)?;
        }
        self.append_keeping(body)
    }

    fn append_keeping(&mut self, body: &[u8]) -> anyhow::Result<()> {
        let index = self.log.last_index() + 1;
        black_box(self.log.append(&meta(index), &[body])?);
        Ok(())
    }

    fn sync(&mut self) -> anyhow::Result<()> {
        let point = self.log.sync_point();
        point.sync()?;
        self.log.mark_durable(&point);
        Ok(())
    }
}

fn meta(index: u64) -> EntryMeta {
    EntryMeta {
        index,
        term: 1,
        kind: 1,
        offset_span: 1,
        append_time_ms: 0,
        max_timestamp_ms: i64::try_from(index).unwrap_or(0),
    }
}

/// Bytes that do not compress.
fn payload(len: usize) -> Vec<u8> {
    let mut word = 1_u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        bytes.extend_from_slice(&word.to_be_bytes());
    }
    bytes.truncate(len);
    bytes
}
