//! When old records may go: by age, by size, and when segments are rolled because of their age.
//!
//! Owns: the rules. The leader proposes a new start of the log; every replica unlinks after applying it. Never: unlinks.

use super::core::{Core, Effects};
use super::engine::PartitionSettings;

/// Rolls an old segment, drops what is below the start of the log already, and on the leader answers the start of the log to
/// propose, if it should move.
pub(crate) fn check(
    core: &mut Core,
    settings: &PartitionSettings,
    now_ms: i64,
    effects: &mut Effects,
) -> Option<u64> {
    if core.broken().is_some() || core.is_machine() {
        return None;
    }
    if let (Some(age), Some(since)) = (settings.segment_ms, active_since(core))
        && now_ms.saturating_sub(since) > age
        && let Err(error) = core.roll(effects)
    {
        // On a full disk what follows may make the room that this needs.
        tracing::warn!(group = core.group(), %error, "a segment could not be rolled; trying again later");
    }
    if let Err(error) = core.drop_prefix() {
        tracing::warn!(group = core.group(), %error, "old segments could not be dropped; trying again later");
    }
    let visible = core.visible();
    if !visible.is_settled {
        return None;
    }
    let segments = core.log_mut().segments();
    let sealed = &segments[..segments.len().saturating_sub(1)];
    let mut excess = match settings.retention_bytes {
        Some(bytes_max) => {
            segments.iter().map(|segment| segment.bytes).sum::<u64>().saturating_sub(bytes_max)
        }
        None => 0,
    };
    let mut start = visible.log_start_offset;
    for segment in sealed {
        let too_old = settings
            .retention_ms
            .is_some_and(|age| now_ms.saturating_sub(segment.last_append_time_ms) > age);
        // A segment goes for its size only when the rest is still larger than what is allowed.
        let too_much = excess >= segment.bytes;
        if !(too_old || too_much) || segment.end_offset > visible.high_watermark {
            break;
        }
        excess = excess.saturating_sub(segment.bytes);
        start = start.max(segment.end_offset);
    }
    (start > visible.log_start_offset).then_some(start)
}

/// Since when the active segment holds entries. Raft's own carry the time of the entry before them, which a new partition does
/// not have: then the last entry's time stands in, and without a record there is nothing to roll.
fn active_since(core: &mut Core) -> Option<i64> {
    let log = core.log_mut();
    let since = log.active_since_ms()?;
    let last = log.segments().last().map_or(0, |active| active.last_append_time_ms);
    [since, last].into_iter().find(|time| *time > 0)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::path::Path;
    use std::sync::Arc;

    use bytes::Bytes;
    use highwater_storage::{Disk, DiskReserve, HardState, LogOptions, SimDisk};

    use super::*;
    use crate::replica::core::{Birth, CoreConfig, Persist};

    const DIR: &str = "/data/groups/7";

    fn config(disk: &Arc<dyn Disk>) -> CoreConfig {
        CoreConfig {
            disk: Arc::clone(disk),
            dir: DIR.into(),
            log: LogOptions::default(),
            settled: None,
            reserve: Arc::new(DiskReserve::open(Arc::clone(disk), Path::new("/data"), 0).unwrap()),
            heartbeat_ticks: 2,
            election_ticks: 10,
            quiet_ticks: 0,
            seed: 1,
            machine: None,
            logger: slog::Logger::root(slog::Discard, slog::o!()),
        }
    }

    /// A replica without peers that has appended its first entry, which is not durable yet.
    fn new_leader(disk: &Arc<dyn Disk>) -> (Core, HardState, Persist) {
        disk.create_dir_all(Path::new("/data/groups")).unwrap();
        let birth = Birth {
            group: 7,
            replica: 1,
            topic_id: "topic".into(),
            partition: 0,
            voters: BTreeMap::from([(1, 1)]),
            learners: BTreeMap::new(),
            image: Bytes::new(),
            preferred: true,
        };
        let mut core = Core::create(config(disk), birth).unwrap();
        for _ in 0..100 {
            let mut effects = Effects::default();
            core.tick(&BTreeSet::new(), &mut effects);
            let Some(persist) = effects.persist else { continue };
            let hard_state = persist.hard_state.unwrap_or_default();
            if core.reader().last_index() >= core.reader().first_index() {
                return (core, hard_state, persist);
            }
            persist.point.sync().unwrap();
            core.persisted(persist.number, &persist.point, &mut Effects::default());
        }
        panic!("no leader");
    }

    #[test]
    fn a_new_partition_without_records_is_not_rolled() {
        let disk: Arc<dyn Disk> = Arc::new(SimDisk::new(1));
        let (mut core, _, persist) = new_leader(&disk);
        persist.point.sync().unwrap();
        core.persisted(persist.number, &persist.point, &mut Effects::default());
        let settings = PartitionSettings { segment_ms: Some(1), ..PartitionSettings::default() };
        let start = check(&mut core, &settings, 1_700_000_000_000, &mut Effects::default());
        assert_eq!((start, core.reader().first_index(), core.reader().last_index()), (None, 6, 6));
    }

    #[test]
    fn a_log_whose_first_segment_went_before_anything_else_was_saved_is_opened_again() {
        let disk: Arc<dyn Disk> = Arc::new(SimDisk::new(1));
        let (mut core, mut hard_state, persist) = new_leader(&disk);
        // Rolled between append and commit: the checkpoint knows nothing as applied.
        let mut effects = Effects::default();
        core.roll(&mut effects).unwrap();
        for checkpoint in &effects.checkpoints {
            core.files().store_checkpoint(checkpoint).unwrap();
        }
        persist.point.sync().unwrap();
        core.persisted(persist.number, &persist.point, &mut Effects::default());
        hard_state.commit = core.committed();
        core.drop_prefix().unwrap();
        assert_eq!((hard_state.commit, core.reader().first_index()), (6, 7));
        drop(core);
        let core = Core::open(config(&disk), Some(hard_state)).unwrap().unwrap();
        assert_eq!((core.committed(), core.reader().first_index()), (6, 7));
    }
}
