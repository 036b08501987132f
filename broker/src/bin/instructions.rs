//! The hot paths as cases whose instructions `scripts/instructions` counts under callgrind: building and validating a batch,
//! appending to the log, fetching, and a proposal until it is applied.
//!
//! Owns: the cases and what one operation of each is. Never: measures time, or counts by itself; what is counted is what
//! happens inside of [`measured`]. The figures stand in docs/performance/instructions.tsv.

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use highwater_broker::replica::measured::{MeasuredGroup, Outcome};
use highwater_proto::batch::{
    BatchBuilder, BatchLimits, Compression, ValidateDepth, stamped_prefix, validate,
};
use highwater_storage::{Disk, EntryMeta, Log, LogOptions, LogStart, RealDisk};

// As in the broker.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Operations that go before the counted ones, so that buffers are grown and files are there.
const WARM: u32 = 20;

type Run = fn(&Path) -> Outcome<u32>;

/// Name, what one operation is, what runs it and says how many operations were counted.
const CASES: &[(&str, &str, Run)] = &[
    ("build-100b", "build a batch of 10,000 records of 100 B", build),
    ("validate-1k", "validate a batch of 1,000 records of 1 KiB", |_| validated(1024, 1_000)),
    ("validate-100b", "validate a batch of 10,000 records of 100 B", |_| validated(100, 10_000)),
    ("append-1k", "append a batch of 1 KiB to a log, not synced", |dir| append(dir, 1, 200)),
    ("append-64k", "append a batch of 64 KiB to a log, not synced", |dir| append(dir, 64, 100)),
    ("fetch-1k", "read one batch of 1 KiB", |dir| fetch(dir, 1, 200, 1)),
    ("fetch-1m", "read 1 MiB in batches of 64 KiB", |dir| fetch(dir, 64, 100, 1 << 20)),
    ("propose-1", "a batch of 1 KiB from proposal to answer, one replica", |dir| propose(dir, 1)),
    ("propose-3", "the same with three replicas, the work of all", |dir| propose(dir, 3)),
];

fn main() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1);
    match (arguments.next().as_deref(), arguments.next()) {
        (Some("--list"), None) => {
            for (name, what, _) in CASES {
                println!("{name}\t{what}");
            }
            Ok(())
        }
        (Some(wanted), Some(dir)) => {
            let case = CASES.iter().find(|(name, ..)| *name == wanted);
            let (_, _, run) = case.ok_or("there is no such case; see --list")?;
            println!("operations {}", run(Path::new(&dir))?);
            Ok(())
        }
        _ => Err("usage: instructions --list | CASE EMPTY_FOLDER".into()),
    }
}

/// What is counted: callgrind knows this function by its name.
#[inline(never)]
fn measured(times: u32, operation: &mut dyn FnMut() -> Outcome<()>) -> Outcome<()> {
    for _ in 0..times {
        operation()?;
    }
    Ok(())
}

fn count(times: u32, mut operation: impl FnMut() -> Outcome<()>) -> Outcome<u32> {
    for _ in 0..WARM {
        operation()?;
    }
    measured(times, &mut operation)?;
    Ok(times)
}

/// Bytes without a pattern, the same in every run.
fn noise(bytes: usize) -> Vec<u8> {
    let mut word = 1_u64;
    let words = std::iter::repeat_with(|| {
        word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        word.to_be_bytes()
    });
    words.flatten().take(bytes).collect()
}

fn batch(builder: &mut BatchBuilder, values: &[u8], record_bytes: usize) -> Outcome<Bytes> {
    for (timestamp_ms, value) in (1_700_000_000_000..).zip(values.chunks_exact(record_bytes)) {
        builder.push(timestamp_ms, Some(b"N14228"), Some(value), &[])?;
    }
    Ok(builder.build()?)
}

fn batch_of(record_bytes: usize, records: usize) -> Outcome<Bytes> {
    let values = noise(record_bytes * records);
    batch(&mut BatchBuilder::new(Compression::None), &values, record_bytes)
}

fn build(_: &Path) -> Outcome<u32> {
    let values = noise(100 * 10_000);
    let mut builder = BatchBuilder::with_capacity(Compression::None, 2 << 20);
    count(5, || {
        black_box(batch(&mut builder, black_box(&values), 100)?);
        Ok(())
    })
}

fn validated(record_bytes: usize, records: usize) -> Outcome<u32> {
    let batch = batch_of(record_bytes, records)?;
    let limits = BatchLimits::default();
    count(5, || {
        black_box(validate(black_box(&batch), ValidateDepth::Structure, &limits)?);
        Ok(())
    })
}

fn append(dir: &Path, kib: usize, times: u32) -> Outcome<u32> {
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::new());
    let start = LogStart { first_index: 1, prev_term: 0, next_offset: 0 };
    let mut log = Log::create(disk, &dir.join("log"), start, LogOptions::default())?;
    let batch = batch_of(1024, kib)?;
    let records = u32::try_from(kib)?;
    count(times, || {
        let meta = EntryMeta {
            index: log.last_index() + 1,
            term: 1,
            kind: 1,
            offset_span: records,
            append_time_ms: 1,
            max_timestamp_ms: 1,
        };
        let prefix = stamped_prefix(&batch, i64::try_from(log.next_offset())?, 1);
        log.append(&meta, &[&prefix, &batch[prefix.len()..]])?;
        Ok(())
    })
}

fn fetch(dir: &Path, kib: usize, batches: u32, bytes_max: u64) -> Outcome<u32> {
    let mut group = MeasuredGroup::new(dir, 1)?;
    let batch = batch_of(1024, kib)?;
    for _ in 0..batches {
        group.publish(&batch)?;
    }
    let mut from = 0;
    count(100, || {
        let (bytes, next) = black_box(group.read(from, bytes_max)?);
        // From the start again when nothing is left.
        from = if bytes == 0 { 0 } else { next };
        Ok(())
    })
}

fn propose(dir: &Path, replicas: u64) -> Outcome<u32> {
    let mut group = MeasuredGroup::new(dir, replicas)?;
    let batch = batch_of(1024, 1)?;
    count(200, || group.publish(&batch))
}
