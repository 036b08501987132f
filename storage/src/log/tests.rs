//! Tests of the log as a whole, on the simulated disk except where they say otherwise.

mod model;
mod read;
mod recover;
mod recycle;
mod repair;
mod scrub;
mod write;

use std::sync::Arc;

use super::*;
use crate::disk::SimDisk;

/// Small segments, so that a few entries make several.
fn options() -> LogOptions {
    LogOptions {
        segment_bytes: 1024,
        payload_bytes_max: 4096,
        index_interval_bytes: 256,
        allocate_step_bytes: 4096,
        spares: Some(SparePool::new(1 << 20)),
        open_sealed: OpenSealed::default(),
    }
}

const START: LogStart = LogStart { first_index: 1, prev_term: 0, next_offset: 0 };
const DIR: &str = "data/p0";

fn sim(seed: u64) -> (SimDisk, Arc<dyn Disk>) {
    let disk = SimDisk::new(seed);
    (disk.clone(), Arc::new(disk))
}

fn create(disk: &Arc<dyn Disk>) -> Log {
    Log::create(Arc::clone(disk), Path::new(DIR), START, options()).unwrap()
}

fn try_open(disk: &Arc<dyn Disk>, floor: u64) -> Result<(Log, RecoveryReport), StorageError> {
    Log::open(Arc::clone(disk), Path::new(DIR), options(), floor)
}

fn open(disk: &Arc<dyn Disk>) -> (Log, RecoveryReport) {
    try_open(disk, 0).unwrap()
}

fn meta(index: u64, term: u64, span: u32) -> EntryMeta {
    let time = i64::try_from(index).unwrap() * 10;
    EntryMeta {
        index,
        term,
        kind: 1,
        offset_span: span,
        append_time_ms: time,
        max_timestamp_ms: time - 3,
    }
}

/// 100 bytes that differ from entry to entry.
fn payload(index: u64) -> Vec<u8> {
    (0..100).map(|at| (index * 31 + at).to_le_bytes()[0]).collect()
}

/// Appends `count` entries with a span of 2.
fn fill(log: &mut Log, count: u64, term: u64) {
    for _ in 0..count {
        let index = log.last_index() + 1;
        log.append(&meta(index, term, 2), &[&payload(index)]).unwrap();
    }
}

fn sync(log: &mut Log) {
    let point = log.sync_point();
    point.sync().unwrap();
    log.mark_durable(&point);
}

fn all(log: &Log) -> Vec<StoredEntry> {
    log.reader().entries(log.first_index(), log.last_index() + 1, u64::MAX).unwrap()
}

fn files(disk: &Arc<dyn Disk>, extension: &str) -> Vec<PathBuf> {
    let dir = Path::new(DIR);
    let names = disk.list(dir).unwrap();
    names.iter().filter(|name| name.ends_with(extension)).map(|name| dir.join(name)).collect()
}

#[test]
fn the_writer_may_move_between_threads_and_readers_may_be_shared() {
    fn send<T: Send>() {}
    fn send_and_sync<T: Send + Sync + Clone>() {}
    send::<Log>();
    send_and_sync::<SyncPoint>();
    send_and_sync::<LogReader>();
}
