//! Installing a snapshot with compacted segments, cut short at every step: the replica is the old one or the new one.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use highwater_proto::internal::ReplicaCheckpoint;
use highwater_storage::{
    Disk, DiskReserve, EntryMeta, LogOptions, LogStart, SimDisk, SimOp, StoredEntry,
};
use prost::Message as _;
use raft::eraftpb::{ConfState, Message, MessageType, Snapshot};

use super::{Birth, Core, CoreConfig, Effects};
use crate::replica::convert;

const DIR: &str = "data/groups/1";
const END: LogStart = LogStart { first_index: 101, prev_term: 7, next_offset: 500 };

fn config(disk: &Arc<dyn Disk>) -> CoreConfig {
    CoreConfig {
        disk: Arc::clone(disk),
        dir: PathBuf::from(DIR),
        log: LogOptions::default(),
        settled: None,
        reserve: Arc::new(DiskReserve::open(Arc::clone(disk), Path::new("data"), 0).unwrap()),
        heartbeat_ticks: 2,
        election_ticks: 10,
        quiet_ticks: 0,
        seed: 1,
        machine: None,
        logger: slog::Logger::root(slog::Discard, slog::o!()),
    }
}

/// One of three replicas, with nothing in its log.
fn replica(sim: &SimDisk) -> (Arc<dyn Disk>, Core) {
    let disk: Arc<dyn Disk> = Arc::new(sim.clone());
    disk.create_dir_all(Path::new("data/groups")).unwrap();
    for dir in ["", "data"] {
        disk.sync_dir(Path::new(dir)).unwrap();
    }
    let birth = Birth {
        group: 1,
        replica: 101,
        topic_id: "t".into(),
        partition: 0,
        voters: [(101, 1), (102, 2), (103, 3)].into(),
        learners: BTreeMap::new(),
        image: Bytes::new(),
        preferred: false,
    };
    let mut core = Core::create(config(&disk), birth).unwrap();
    core.begin(&mut Effects::default());
    (disk, core)
}

/// A snapshot from replica 102 and what was fetched for it: one entry below its end.
fn snapshot(core: &Core) -> (Message, highwater_storage::StagedCompaction) {
    let mut writer = core.partition_reader().compacted.writer(1 << 20);
    let meta = EntryMeta {
        index: 90,
        term: 6,
        kind: 1,
        offset_span: 10,
        append_time_ms: 1,
        max_timestamp_ms: 1,
    };
    let payload = Bytes::from_static(b"what stayed");
    writer.append(&StoredEntry { meta, base_offset: 400, payload }).unwrap();
    let staged = writer.finish(END, 500, i64::MAX).unwrap();
    let members = ConfState { voters: vec![101, 102, 103], ..ConfState::default() };
    let checkpoint = ReplicaCheckpoint {
        index: 100,
        term: 7,
        next_offset: 500,
        applied_index: 100,
        members: Some(convert::members_to_wire(&members)),
        compacted: Some(convert::manifest_to_wire(staged.manifest())),
        ..ReplicaCheckpoint::default()
    };
    let mut snapshot = Snapshot { data: checkpoint.encode_to_vec().into(), ..Snapshot::default() };
    snapshot.mut_metadata().index = 100;
    snapshot.mut_metadata().term = 7;
    snapshot.mut_metadata().set_conf_state(members);
    let mut message = Message { from: 102, to: 101, term: 7, ..Message::default() };
    message.set_msg_type(MessageType::MsgSnapshot);
    message.set_snapshot(snapshot);
    (message, staged)
}

/// Whether the replica is the new one; it must be all of it.
fn is_new(core: &mut Core) -> bool {
    let read = core.partition_reader().read_offsets(0, u64::MAX, u64::MAX).unwrap();
    if core.log_mut().first_index() < END.first_index {
        assert!(read.entries.is_empty());
        return false;
    }
    assert_eq!(core.log_mut().start(), END);
    assert_eq!(core.visible().high_watermark, 500);
    assert_eq!(read.entries[0].payload, &b"what stayed"[..]);
    true
}

#[test]
fn an_installation_that_is_cut_short_leaves_the_old_replica_or_the_new_one() {
    let ops = [SimOp::Create, SimOp::Write, SimOp::Sync, SimOp::SyncDir, SimOp::Rename];
    let (mut old, mut new) = (0, 0);
    for (op, skip, crash) in
        ops.into_iter().flat_map(|op| (0..8).flat_map(move |n| [(op, n, false), (op, n, true)]))
    {
        let sim = SimDisk::new(u64::from(skip));
        let (disk, mut core) = replica(&sim);
        let (message, staged) = snapshot(&core);
        sim.fail_after(op, skip, ErrorKind::Other);
        let _ = core.step_snapshot(message, staged, &mut Effects::default());
        sim.clear_failures();
        drop(core);
        if crash {
            sim.crash();
        }
        for _ in 0..2 {
            let mut core = Core::open(config(&disk), None).unwrap().expect("the replica is there");
            let count = if is_new(&mut core) { &mut new } else { &mut old };
            *count += 1;
            sim.crash();
        }
    }
    assert!(old > 0 && new > 0, "{old} {new}");
}

#[test]
fn a_snapshot_is_not_stepped_before_its_files_are_here() {
    let (_, mut core) = replica(&SimDisk::new(1));
    let (message, staged) = snapshot(&core);
    assert_eq!(core.files_wanted(&message).as_ref(), Some(staged.manifest()));
    let refused = core.step(message.clone(), false, &mut Effects::default());
    assert!(refused.unwrap_err().contains("come first"));
    assert!(!is_new(&mut core));
    core.step_snapshot(message.clone(), staged, &mut Effects::default()).unwrap();
    assert!(is_new(&mut core));
    assert_eq!(core.files_wanted(&message), None, "it is all here");
    assert_eq!(core.broken(), None);
}

#[test]
fn a_manifest_that_does_not_end_where_the_snapshot_stands_is_refused() {
    let (_, mut core) = replica(&SimDisk::new(1));
    let (mut message, staged) = snapshot(&core);
    let mut checkpoint = super::decode_snapshot(message.get_snapshot()).unwrap();
    checkpoint.next_offset = 499;
    message.mut_snapshot().data = checkpoint.encode_to_vec().into();
    let refused = core.step_snapshot(message, staged, &mut Effects::default());
    assert!(refused.unwrap_err().contains("do not end"));
}
