//! How long opening a log takes when there is more in it.
//!
//! Owns: two logs, one of them large. Never: keeps them.

use std::path::Path;
use std::sync::Arc;

use highwater_storage::{Disk, Log, LogOptions, RealDisk};

use super::compare::{Case, Repeat, Report, Target};
use super::sides::{MIB, START, append, payload, sync};

/// Entries that are not known to be durable at the next start: a sync point was not marked, or the power went.
const UNKNOWN: u64 = 16;

/// Opens a log of 1 GiB and one of `gib` GiB, in turns.
pub(super) fn open(report: &mut Report, dir: &Path, gib: u32) -> anyhow::Result<()> {
    let (small, large) = (dir.join("one-gib"), dir.join("large"));
    let small_floor = write(&small, 1)?;
    let large_floor = write(&large, gib)?;
    let open = |path: &Path, floor: u64| -> anyhow::Result<()> {
        let disk: Arc<dyn Disk> = Arc::new(RealDisk::new());
        drop(Log::open(disk, path, LogOptions::default(), floor)?);
        Ok(())
    };
    let case = Case {
        name: "open a large log (bare: the log with 1 GiB in it)",
        calls: 5,
        // Within 20 % of it.
        target: Target::Speed(1.0 / 1.2),
        ..Case::default()
    };
    report.compare(
        case,
        &mut Repeat(|| open(&small, small_floor)),
        &mut Repeat(|| open(&large, large_floor)),
    )
}

/// Writes a log of so many GiB whose active segment is half full, and answers what is known of it to be durable.
fn write(path: &Path, gib: u32) -> anyhow::Result<u64> {
    let body = payload(MIB);
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::new());
    let mut log = Log::create(disk, path, START, LogOptions::default())?;
    let half = LogOptions::default().segment_bytes / 2;
    let is_half = |log: &Log| log.segments().last().is_some_and(|active| active.bytes > half);
    while log.size_bytes() < u64::from(gib) << 30 || !is_half(&log) {
        append(&mut log, &body)?;
        if log.last_index().is_multiple_of(256) {
            sync(&mut log)?;
        }
    }
    sync(&mut log)?;
    Ok(log.last_index() - UNKNOWN)
}
