//! What the log costs, on the file system that holds the temporary directory (`TMPDIR`).
//!
//! `cargo bench -p highwater-storage`. Figures belong beside the machine's own limits, measured on the same
//! day; docs/performance.md quotes some.

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use highwater_storage::{Disk, EntryMeta, Log, LogOptions, LogStart, RealDisk};

const START: LogStart = LogStart { first_index: 1, prev_term: 0, next_offset: 0 };

fn create(dir: &Path) -> Log {
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::new());
    Log::create(disk, &dir.join("log"), START, LogOptions::default()).expect("a new log")
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
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        bytes.extend_from_slice(&word.to_be_bytes());
    }
    bytes.truncate(len);
    bytes
}

fn append_one(log: &mut Log, body: &[u8]) {
    let index = log.last_index() + 1;
    // What was sealed goes, so that the disk does not fill up.
    if log.will_roll(body.len()) {
        log.truncate_prefix(index).expect("room");
    }
    black_box(log.append(&meta(index), &[body]).expect("an append"));
}

fn sync(log: &mut Log) {
    let point = log.sync_point();
    point.sync().expect("a sync");
    log.mark_durable(&point);
}

fn append(c: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a directory");
    let mut group = c.benchmark_group("append");
    for (name, len) in [("100 B", 100), ("4 KiB", 4 << 10), ("1 MiB", 1 << 20)] {
        let body = payload(len);
        let mut log = create(&dir.path().join(format!("{len}")));
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(name, |b| b.iter(|| append_one(&mut log, &body)));
    }
    group.finish();
    let mut group = c.benchmark_group("append and sync");
    group.sample_size(20);
    for (name, len) in [("4 KiB", 4 << 10), ("64 KiB", 64 << 10), ("1 MiB", 1 << 20)] {
        let body = payload(len);
        let mut log = create(&dir.path().join(format!("synced-{len}")));
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(name, |b| {
            b.iter(|| {
                append_one(&mut log, &body);
                sync(&mut log);
            });
        });
    }
    group.finish();
}

fn read(c: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a directory");
    let body = payload(4 << 10);
    let mut log = create(dir.path());
    while log.segments().len() < 3 {
        append_one_keeping(&mut log, &body);
    }
    sync(&mut log);
    let reader = log.reader();
    let sealed = log.segments()[0];
    let mut group = c.benchmark_group("read");
    group.throughput(Throughput::Bytes(4 << 10));
    let mut index = sealed.first_index;
    group.bench_function("4 KiB by index", |b| {
        b.iter(|| {
            index = sealed.first_index + (index * 7919) % (sealed.end_index - sealed.first_index);
            black_box(reader.entries(index, index + 1, 0).expect("an entry"))
        });
    });
    group.bench_function("4 KiB by offset, active segment", |b| {
        let offset = log.next_offset() - 1;
        b.iter(|| black_box(reader.read_offsets(offset, offset + 1, 0).expect("an entry")));
    });
    group.throughput(Throughput::Bytes(sealed.bytes));
    group.bench_function("a sealed segment, 1 MiB at a time, checksums verified", |b| {
        b.iter_batched(
            || sealed.first_index,
            |mut index| {
                while index < sealed.end_index {
                    let read = reader.entries(index, sealed.end_index, 1 << 20).expect("entries");
                    index += read.len() as u64;
                    black_box(read);
                }
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

fn append_one_keeping(log: &mut Log, body: &[u8]) {
    let index = log.last_index() + 1;
    log.append(&meta(index), &[body]).expect("an append");
}

criterion_group!(benches, append, read);
criterion_main!(benches);
