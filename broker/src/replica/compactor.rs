//! Compaction: of each key only the last record stays, and a tombstone until its time has come.
//!
//! Owns: when a partition is compacted, what stays, and the pace. One thread for a node; it reads sealed, committed and durable
//! segments, writes new ones beside the log and hands them to the replica's worker, which puts them in place. Never: changes
//! what readers see, or knows topics.
//!
//! A pass reads the keys of what was not looked at before (from `cleaned_to` on) until the key map is full, then copies all there is
//! without what those keys supersede. Batches that keep all their records are copied byte for byte.

use std::sync::Arc;
use std::time::Duration;

use highwater_proto::batch::{BatchError, BatchView, CompactRecord, Compacted};
use highwater_storage::{SegmentInfo, StagedCompaction, StorageError, StoredEntry};
use tokio::sync::oneshot;

use super::background::Stopping;
use super::engine::PartitionSettings;
use super::handle::PartitionHandle;
use super::inbox::Input;
use super::key_map::KeyMap;
use super::partition_reader::PartitionReader;
use crate::env::Clock;
use crate::metrics::Metrics;

/// Read at once.
const STEP_BYTES: u64 = 1 << 20;

/// What a node's compactor works with.
#[derive(Clone, Debug)]
pub(super) struct CompactorConfig {
    /// How often it looks for partitions that are due.
    pub(super) check: Duration,
    /// Memory for the keys of one pass, in bytes.
    pub(super) map_bytes_max: u64,
    pub(super) seed: u64,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) metrics: Arc<Metrics>,
}

/// The thread's body. `replicas` lists what is in service, `None` once there is no engine any more.
pub(super) fn run(
    config: &CompactorConfig,
    replicas: impl Fn() -> Option<Vec<PartitionHandle>>,
    stopping: &Stopping,
) {
    let mut passes = 0;
    while !stopping.within(config.check) {
        let Some(replicas) = replicas() else { return };
        for replica in replicas {
            passes += 1;
            match look(&replica, config, passes, stopping) {
                Ok(()) => {}
                Err(PassError::Stopped) => return,
                Err(error) => {
                    let group = replica.shared.group;
                    tracing::warn!(group, %error, "a compaction failed; trying again later");
                }
            }
        }
    }
}

/// Why a pass came to nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum PassError {
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error("the batch at offset {base_offset} cannot be compacted: {source}")]
    Batch { base_offset: u64, source: BatchError },
    #[error("the node is stopping")]
    Stopped,
}

/// Compacts a replica if it is due, and has the result put into place.
fn look(
    replica: &PartitionHandle,
    config: &CompactorConfig,
    passes: u64,
    stopping: &Stopping,
) -> Result<(), PassError> {
    let settings = *replica.shared.settings.lock();
    if !settings.compact || replica.quarantined().is_some() {
        return Ok(());
    }
    let reader = &replica.shared.reader;
    // Read before the segments: what is settled is not cut any more.
    let settled = replica.shared.settled_index();
    let log = reader.log.segments();
    let sealed = &log[..log.len().saturating_sub(1)];
    // A snapshot may replace all of this meanwhile: then what is staged here does not fit any more and is dropped.
    let count = sealed.iter().take_while(|segment| segment.end_index <= settled + 1).count();
    let now_ms = config.clock.wall_ms();
    let Some(plan) = Plan::make(reader, &sealed[..count], now_ms) else { return Ok(()) };
    let secret = [config.seed ^ passes.rotate_left(32), config.seed.rotate_left(17)];
    let mut pace = Pace { config, stopping, since: config.clock.monotonic() };
    let (staged, report) =
        plan.carry_out(reader, &settings, config.map_bytes_max, secret, &mut || pace.rest())?;
    let (group, cleaned_to) = (replica.shared.group, staged.manifest().cleaned_to);
    let (done, installed) = oneshot::channel();
    replica.inbox.push(Input::Compacted { group, staged, done });
    // An answer that never comes means that the replica is gone.
    if installed.blocking_recv().unwrap_or(false) {
        tracing::debug!(group, cleaned_to, ?report, "compacted");
        config.metrics.compacted(report.bytes_read, report.bytes_written, report.records_dropped);
    }
    Ok(())
}

/// Leaves the machine to others for as long as it was used.
struct Pace<'a> {
    config: &'a CompactorConfig,
    stopping: &'a Stopping,
    since: Duration,
}

impl Pace<'_> {
    fn rest(&mut self) -> Result<(), PassError> {
        let worked = self.config.clock.monotonic().saturating_sub(self.since);
        if self.stopping.within(worked) {
            return Err(PassError::Stopped);
        }
        self.since = self.config.clock.monotonic();
        Ok(())
    }
}

/// What a pass did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Report {
    pub(super) bytes_read: u64,
    pub(super) bytes_written: u64,
    pub(super) records_dropped: u64,
}

/// A pass that is due.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    /// Segments of the log that may be compacted.
    sealed: &'a [SegmentInfo],
    /// Where the compacted part ends now.
    end_offset: u64,
    cleaned_to: u64,
    now_ms: i64,
}

impl<'a> Plan<'a> {
    /// A pass over the compacted part and these segments, if it is worth it: when at least half of the bytes have not been
    /// looked at, or tombstones may go.
    pub(super) fn make(
        reader: &PartitionReader,
        sealed: &'a [SegmentInfo],
        now_ms: i64,
    ) -> Option<Self> {
        let manifest = reader.compacted.manifest();
        let end_offset = manifest.as_ref().map_or(0, |manifest| manifest.end.next_offset);
        let cleaned_to = manifest.as_ref().map_or(0, |manifest| manifest.cleaned_to);
        // Those that a compaction has taken over already are on their way out of the log.
        let passed = sealed.partition_point(|segment| segment.end_offset <= end_offset);
        let sealed = &sealed[passed..];
        let of_log: u64 = sealed.iter().map(|segment| segment.bytes).sum();
        let segments = manifest.as_ref().map_or(&[][..], |manifest| &manifest.segments);
        let unclean = segments.iter().filter(|segment| segment.end_offset > cleaned_to);
        let dirty = of_log + unclean.map(|segment| segment.bytes).sum::<u64>();
        let all = of_log + segments.iter().map(|segment| segment.bytes).sum::<u64>();
        let horizon_passed = manifest.is_some_and(|manifest| manifest.next_horizon_ms <= now_ms);
        let has_new = sealed.last().map_or(end_offset, |last| last.end_offset) > cleaned_to;
        let due = (has_new && dirty >= all - dirty) || horizon_passed;
        due.then_some(Self { sealed, end_offset, cleaned_to, now_ms })
    }

    /// Stages the new compacted part. `rest` is called between steps.
    pub(super) fn carry_out(
        &self,
        reader: &PartitionReader,
        settings: &PartitionSettings,
        map_bytes_max: u64,
        secret: [u64; 2],
        rest: &mut dyn FnMut() -> Result<(), PassError>,
    ) -> Result<(StagedCompaction, Report), PassError> {
        // Begun first, so that a replacement from here on is noticed when this is installed.
        let mut writer = reader.compacted.writer(settings.segment_bytes);
        let mut report = Report::default();
        let last = self.sealed.last().map_or(self.end_offset, |segment| segment.end_offset);
        let mut map = KeyMap::new(last - self.cleaned_to, map_bytes_max, secret);
        let cleaned_to = self.fill(reader, &mut map, last, &mut report, rest)?;
        // No further into the log than the keys are known.
        let taken = self.sealed.partition_point(|segment| segment.base_offset < cleaned_to);
        let end = match taken.checked_sub(1).and_then(|at| self.sealed.get(at)) {
            Some(segment) => segment_end(reader, segment)?,
            None => reader.compacted.manifest().map(|manifest| manifest.end),
        };
        let Some(end) = end else { return Err(moved(reader)) };
        let mut cleaning = Cleaning {
            map: &map,
            cleaned_to,
            end_offset: end.next_offset,
            now_ms: self.now_ms,
            delete_horizon_ms: self.now_ms.saturating_add(settings.delete_retention_ms),
            next_horizon_ms: i64::MAX,
        };
        let mut from = 0;
        while from < end.next_offset {
            let stored = reader.read_offsets(from, end.next_offset, STEP_BYTES)?;
            if stored.next_offset == from {
                return Err(moved(reader));
            }
            for entry in stored.entries {
                report.bytes_read += entry.payload.len() as u64;
                if let Some(entry) = cleaning.clean(entry, &mut report.records_dropped)? {
                    report.bytes_written += entry.payload.len() as u64;
                    writer.append(&entry)?;
                }
            }
            from = stored.next_offset;
            rest()?;
        }
        let cleaned_to = cleaned_to.min(end.next_offset);
        Ok((writer.finish(end, cleaned_to, cleaning.next_horizon_ms)?, report))
    }

    /// Notes the keys from `cleaned_to` up to `to`, or up to where the map is full; returns the offset it came to.
    fn fill(
        &self,
        reader: &PartitionReader,
        map: &mut KeyMap,
        to: u64,
        report: &mut Report,
        rest: &mut dyn FnMut() -> Result<(), PassError>,
    ) -> Result<u64, PassError> {
        let mut from = self.cleaned_to;
        while from < to {
            let stored = reader.read_offsets(from, to, STEP_BYTES)?;
            if stored.next_offset == from {
                return Err(moved(reader));
            }
            for entry in &stored.entries {
                report.bytes_read += entry.payload.len() as u64;
                let mut full_at = None;
                visit(entry, |offset, record| {
                    let known = offset < self.cleaned_to;
                    let fits = |key| map.insert(key, offset);
                    if !known && !record.key.is_none_or(fits) {
                        full_at = Some(offset);
                    }
                    full_at.is_none()
                })?;
                if let Some(full_at) = full_at {
                    return Ok(full_at);
                }
            }
            from = stored.next_offset;
            rest()?;
        }
        Ok(to)
    }
}

/// What the log begins with behind a segment.
fn segment_end(
    reader: &PartitionReader,
    segment: &SegmentInfo,
) -> Result<Option<highwater_storage::LogStart>, StorageError> {
    let prev_term = reader.log.term(segment.end_index - 1);
    Ok(prev_term.map(|prev_term| highwater_storage::LogStart {
        first_index: segment.end_index,
        prev_term,
        next_offset: segment.end_offset,
    }))
}

/// The log was replaced while it was looked at.
fn moved(reader: &PartitionReader) -> PassError {
    StorageError::Compacted { first_index: reader.log.first_index() }.into()
}

fn visit(
    entry: &StoredEntry,
    mut visit: impl FnMut(u64, CompactRecord<'_>) -> bool,
) -> Result<(), PassError> {
    let failed = |source| PassError::Batch { base_offset: entry.base_offset, source };
    let batch = BatchView::parse(entry.payload.clone()).map_err(failed)?;
    batch.visit(|record| visit(offset_of(entry, record), record)).map_err(failed)
}

fn offset_of(entry: &StoredEntry, record: CompactRecord<'_>) -> u64 {
    u64::try_from(record.offset).unwrap_or(entry.base_offset)
}

/// Decides what stays.
struct Cleaning<'a> {
    map: &'a KeyMap,
    /// Nothing is known of the keys from here on.
    cleaned_to: u64,
    /// The record before it stays whatever it is: whoever reads up to the end finds one there.
    end_offset: u64,
    now_ms: i64,
    /// For tombstones that get theirs now.
    delete_horizon_ms: i64,
    /// The first one of all that stay.
    next_horizon_ms: i64,
}

impl Cleaning<'_> {
    /// What is left of a batch.
    fn clean(
        &mut self,
        mut entry: StoredEntry,
        dropped: &mut u64,
    ) -> Result<Option<StoredEntry>, PassError> {
        if entry.base_offset >= self.cleaned_to {
            return Ok(Some(entry));
        }
        let failed = |source| PassError::Batch { base_offset: entry.base_offset, source };
        let batch = BatchView::parse(entry.payload.clone()).map_err(failed)?;
        let expired = batch.header().delete_horizon_ms().is_some_and(|at| at <= self.now_ms);
        let mut tombstones = false;
        let keep = |record: CompactRecord<'_>| {
            let stays = self.stays(offset_of(&entry, record), record, expired);
            *dropped += u64::from(!stays);
            let is_last = offset_of(&entry, record) + 1 == self.end_offset;
            tombstones |= stays && record.is_tombstone && !(is_last && expired);
            stays
        };
        match batch.compact(keep, Some(self.delete_horizon_ms)).map_err(failed)? {
            Compacted::Empty => return Ok(None),
            Compacted::Unchanged => {
                self.note_horizon(tombstones, batch.header().delete_horizon_ms());
            }
            Compacted::Rebuilt(bytes) => {
                let rebuilt = BatchView::parse(bytes).map_err(failed)?;
                self.note_horizon(tombstones, rebuilt.header().delete_horizon_ms());
                entry.meta.max_timestamp_ms = rebuilt.header().max_timestamp_ms;
                entry.payload = rebuilt.bytes().clone();
            }
        }
        Ok(Some(entry))
    }

    fn stays(&self, offset: u64, record: CompactRecord<'_>, expired: bool) -> bool {
        // A record without a key, from before the topic needed them, is superseded by nothing.
        let Some(key) = record.key else { return true };
        if offset >= self.cleaned_to {
            return true;
        }
        let superseded = self.map.get(key).is_some_and(|last| last > offset);
        // Older records of its key went with the pass that looked at the tombstone, or go with this one.
        let goes = expired && record.is_tombstone && offset + 1 < self.end_offset;
        !superseded && !goes
    }

    fn note_horizon(&mut self, has_tombstones: bool, horizon_ms: Option<i64>) {
        if let Some(horizon_ms) = horizon_ms.filter(|_| has_tombstones) {
            self.next_horizon_ms = self.next_horizon_ms.min(horizon_ms);
        }
    }
}
