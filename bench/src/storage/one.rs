//! One partition: appends, group syncs, reads.
//!
//! Owns: these cases. Never: more than one log at a time.

use std::fs::File;
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, ensure};
use highwater_storage::{Disk, Log, LogOptions, LogReader, RealDisk, SegmentInfo};

use super::compare::{Case, Repeat, Report, Side, Target};
use super::sides::{
    After, BareAppend, FILE_BYTES, KIB, LogAppend, MIB, START, append, forget_pages, frame_bytes,
    open_new, payload, sync,
};

/// Positioned reads of one measured call.
const READS: usize = 1000;

pub(super) fn appends(report: &mut Report, dir: &Path) -> anyhow::Result<()> {
    let unsynced = Case { calls: 7, bytes: MIB, ..Case::default() };
    let cases = [
        (
            Case {
                name: "1 MiB, append, not synced (bare: checksum and write)",
                target: Target::Speed(0.8),
                ..unsynced
            },
            true,
            After::Checksum,
        ),
        (Case { name: "the same, cold: fresh blocks", ..unsynced }, false, After::Checksum),
        (
            Case {
                name: "4 KiB, append and sync (bare: write and fdatasync)",
                calls: 100,
                bytes: 4 * KIB,
                target: Target::SpeedAndLatency(0.9),
                ..Case::default()
            },
            true,
            After::Sync,
        ),
        (
            Case {
                name: "the same, cold: fresh blocks",
                calls: 100,
                bytes: 4 * KIB,
                ..Case::default()
            },
            false,
            After::Sync,
        ),
        (
            Case {
                name: "1 MiB, append and sync (bare: write and fdatasync)",
                calls: 20,
                bytes: MIB,
                target: Target::SpeedAndLatency(0.9),
                ..Case::default()
            },
            true,
            After::Sync,
        ),
        (
            Case { name: "the same, cold: fresh blocks", calls: 20, bytes: MIB, ..Case::default() },
            false,
            After::Sync,
        ),
    ];
    for (number, (case, recycled, after)) in cases.into_iter().enumerate() {
        let bare_path = dir.join(format!("append-{number}"));
        let log_path = dir.join(format!("append-{number}-log"));
        let mut bare = BareAppend::new(&bare_path, recycled, case.bytes, after)?;
        let mut log = LogAppend::new(&log_path, recycled, case.bytes, after)?;
        report.compare(case, &mut bare, &mut log)?;
        drop((bare, log));
        std::fs::remove_file(bare_path)?;
        std::fs::remove_dir_all(log_path)?;
    }
    Ok(())
}

pub(super) fn reads(report: &mut Report, dir: &Path) -> anyhow::Result<()> {
    let body = payload(4 * KIB);
    let path = dir.join("read-log");
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::new());
    let mut log = Log::create(disk, &path, START, LogOptions::default())?;
    while log.segments().len() < 2 {
        append(&mut log, &body)?;
    }
    sync(&mut log)?;
    let sealed = *log.segments().first().context("a sealed segment")?;
    let bare_path = dir.join("read");
    let bare = open_new(&bare_path)?;
    bare.write_all_at(&payload(FILE_BYTES), 0)?;
    positioned(report, &bare, &log.reader(), sealed, body.len())?;
    sequential(report, &log.reader(), sealed)?;
    drop(log);
    cold(report, &bare_path, &path, sealed)
}

fn positioned(
    report: &mut Report,
    bare: &File,
    reader: &LogReader,
    sealed: SegmentInfo,
    body_bytes: usize,
) -> anyhow::Result<()> {
    let count = sealed.end_index - sealed.first_index;
    let mut buffer = vec![0; body_bytes];
    let (mut at, mut index) = (0_u64, 0_u64);
    let case = Case {
        name: "4 KiB, one positioned read, checksum verified (bare: pread and checksum)",
        calls: 10,
        things: READS,
        bytes: body_bytes,
        target: Target::None,
    };
    report.compare(
        case,
        &mut Repeat(|| {
            (0..READS).try_for_each(|_| {
                at = (at + 7919) % (count - 1);
                bare.read_exact_at(&mut buffer, at * frame_bytes(body_bytes) as u64)?;
                black_box(crc32fast::hash(&buffer));
                Ok(())
            })
        }),
        &mut Repeat(|| {
            (0..READS).try_for_each(|_| {
                index = (index + 7919) % count;
                let from = sealed.first_index + index;
                black_box(reader.entries(from, from + 1, 0)?);
                Ok(())
            })
        }),
    )
}

fn sequential(report: &mut Report, reader: &LogReader, sealed: SegmentInfo) -> anyhow::Result<()> {
    ensure_no_copies(reader, sealed)?;
    let whole = payload(FILE_BYTES);
    let bytes = usize::try_from(sealed.bytes)?;
    let case = Case { calls: 1, bytes, ..Case::default() };
    for (name, by_reader, target) in [
        (
            "sealed segment, read, checksums verified (bare: checksum of memory)",
            false,
            Target::None,
        ),
        (
            "sealed segment, read, verified, and every byte checksummed by the reader (bare: the same once)",
            true,
            Target::Rate(5.0),
        ),
    ] {
        report.compare(
            Case { name, target, ..case },
            &mut Repeat(|| {
                black_box(crc32fast::hash(&whole));
                Ok(())
            }),
            &mut Repeat(|| read_all(reader, sealed, by_reader)),
        )?;
    }
    Ok(())
}

fn read_all(reader: &LogReader, sealed: SegmentInfo, checksum: bool) -> anyhow::Result<()> {
    let mut next = sealed.first_index;
    while next < sealed.end_index {
        let read = reader.entries(next, sealed.end_index, MIB as u64)?;
        next += read.len() as u64;
        for entry in read.iter().filter(|_| checksum) {
            black_box(crc32fast::hash(&entry.payload));
        }
        black_box(read);
    }
    Ok(())
}

/// Entries that are read apart from one another stand as far apart in memory as in the file: they are the mapping.
fn ensure_no_copies(reader: &LogReader, sealed: SegmentInfo) -> anyhow::Result<()> {
    let payload_of = |index: u64| -> anyhow::Result<(usize, usize)> {
        let read = reader.entries(index, index + 1, 0)?;
        let payload = &read.first().context("an entry")?.payload;
        Ok((payload.as_ptr().addr(), payload.len()))
    };
    let (first, len) = payload_of(sealed.first_index)?;
    for index in sealed.first_index..sealed.end_index {
        let position = usize::try_from(index - sealed.first_index)? * frame_bytes(len);
        ensure!(payload_of(index)?.0 == first + position, "entry {index} was copied");
    }
    Ok(())
}

/// From the disk: the pages are dropped before each round.
fn cold(report: &mut Report, bare: &Path, log: &Path, sealed: SegmentInfo) -> anyhow::Result<()> {
    struct Bare(PathBuf, Vec<u8>);
    impl Side for Bare {
        fn operation(&mut self) -> anyhow::Result<()> {
            let file = File::open(&self.0)?;
            for at in (0..FILE_BYTES).step_by(MIB) {
                file.read_exact_at(&mut self.1, at as u64)?;
                black_box(crc32fast::hash(&self.1));
            }
            Ok(())
        }
        fn rest(&mut self) -> anyhow::Result<()> {
            let file = File::open(&self.0)?;
            file.sync_all()?;
            Ok(rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?)
        }
    }
    struct Cold {
        dir: PathBuf,
        log: Option<Log>,
        sealed: SegmentInfo,
    }
    impl Side for Cold {
        fn operation(&mut self) -> anyhow::Result<()> {
            let log = self.log.as_ref().context("an open log")?;
            read_all(&log.reader(), self.sealed, false)
        }
        fn rest(&mut self) -> anyhow::Result<()> {
            // Mapped pages stay: the log is closed meanwhile.
            self.log = None;
            forget_pages(&self.dir)?;
            let disk: Arc<dyn Disk> = Arc::new(RealDisk::new());
            self.log = Some(Log::open(disk, &self.dir, LogOptions::default(), 0)?.0);
            Ok(())
        }
    }
    let mut bare = Bare(bare.to_owned(), vec![0; MIB]);
    let mut cold = Cold { dir: log.to_owned(), log: None, sealed };
    bare.rest()?;
    cold.rest()?;
    let case = Case {
        name: "sealed segment, cold: from the disk (bare: pread by the MiB and checksum)",
        calls: 1,
        bytes: usize::try_from(sealed.bytes)?,
        ..Case::default()
    };
    report.compare(case, &mut bare, &mut cold)
}
