//! A core that is opened again after its log's start has moved.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use highwater_storage::{Disk, DiskReserve, LogOptions, SimDisk};

use super::{Birth, Core, CoreConfig, Effects};

const DIR: &str = "/data/groups/7";

fn config(disk: &SimDisk) -> CoreConfig {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    let reserve = DiskReserve::open(Arc::clone(&disk), Path::new("/data"), 1 << 20).unwrap();
    CoreConfig {
        disk,
        dir: PathBuf::from(DIR),
        log: LogOptions::default(),
        settled: None,
        reserve: Arc::new(reserve),
        heartbeat_ticks: 2,
        election_ticks: 10,
        quiet_ticks: 0,
        seed: 1,
        machine: None,
        logger: slog::Logger::root(slog::Discard, slog::o!()),
    }
}

/// Makes everything durable at once. A segment that has just got its first entry is sealed before that.
fn carry_out(core: &mut Core, mut effects: Effects) {
    while let Some(persist) = effects.persist.take() {
        if core.log.last_index() == core.log.first_index() && core.log.segments().len() == 1 {
            core.roll(&mut effects).unwrap();
        }
        persist.point.sync().unwrap();
        core.persisted(persist.number, &persist.point, &mut effects);
    }
    for checkpoint in effects.checkpoints {
        core.files().store_checkpoint(&checkpoint).unwrap();
    }
}

/// The segment held nothing but an election's entry, and its checkpoint was made before that was applied: neither it nor the
/// file `replica` says that it was.
#[test]
fn a_log_that_begins_behind_what_its_checkpoint_had_applied_opens() {
    let disk = SimDisk::new(1);
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
    let mut core = Core::create(config(&disk), birth).unwrap();
    let mut effects = Effects::default();
    core.begin(&mut effects);
    carry_out(&mut core, effects);
    for _ in 0..100 {
        let mut effects = Effects::default();
        core.tick(&BTreeSet::new(), &mut effects);
        carry_out(&mut core, effects);
    }
    assert!(core.visible().is_settled);
    let first_index = core.log.first_index();
    core.drop_prefix().unwrap();
    assert!(core.log.first_index() > first_index, "the first segment is gone");
    assert!(core.state.applied_index < core.log.first_index() - 1, "or this shows nothing");
    let saved = core.hard_state();
    drop(core);
    let core = Core::open(config(&disk), Some(saved)).unwrap().unwrap();
    assert_eq!(core.high_watermark, 0);
}
