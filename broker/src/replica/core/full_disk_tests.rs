//! Cores on disks that fill up: nothing is quarantined, and service resumes by itself.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use highwater_proto::batch::{BatchBuilder, BatchHeader, Compression};
use highwater_proto::v1::Acks;
use highwater_storage::{Disk, DiskReserve, LogOptions, SimDisk};
use raft::eraftpb::Message;

use super::{Answer, Birth, Core, CoreConfig, Effects, Proposal, ProposalBody};
use crate::error::BrokerError;

const DIR: &str = "/data/groups/7";
const SEGMENT_BYTES: u64 = 64 << 10;
const RESERVE_BYTES: u64 = 1 << 20;

struct Member {
    core: Core,
    disk: SimDisk,
    reserve: Arc<DiskReserve>,
}

/// Replicas 1.. of one group; messages arrive at once unless a replica is cut off.
struct Group {
    members: BTreeMap<u64, Member>,
    cut: BTreeSet<u64>,
    answers: HashMap<u64, Result<Answer, BrokerError>>,
    tokens: u64,
}

impl Group {
    fn new(replicas: u64, reserve_bytes: u64) -> Self {
        let mut group = Self {
            members: BTreeMap::new(),
            cut: BTreeSet::new(),
            answers: HashMap::new(),
            tokens: 0,
        };
        for replica in 1..=replicas {
            let disk = SimDisk::new(replica);
            disk.create_dir_all(Path::new("/data/groups")).unwrap();
            let (config, reserve) = config(&disk, replica, reserve_bytes);
            let birth = Birth {
                group: 7,
                replica,
                topic_id: "topic".into(),
                partition: 0,
                voters: (1..=replicas).map(|id| (id, id)).collect(),
                learners: BTreeMap::new(),
                image: Bytes::new(),
                preferred: replica == 1,
            };
            let core = Core::create(config, birth).unwrap();
            group.members.insert(replica, Member { core, disk, reserve });
        }
        for replica in 1..=replicas {
            group.call(replica, Core::begin);
        }
        group.wait_for_leader(1);
        group
    }

    /// Calls a core and carries out everything that follows, at once.
    fn call(&mut self, replica: u64, call: impl FnOnce(&mut Core, &mut Effects)) {
        let mut effects = Effects::default();
        call(&mut self.members.get_mut(&replica).unwrap().core, &mut effects);
        let mut messages = self.carry_out(replica, effects);
        while let Some((from, message)) = messages.pop_front() {
            let to = message.to;
            if self.cut.contains(&from) || self.cut.contains(&to) {
                continue;
            }
            let mut effects = Effects::default();
            let _ = self.members.get_mut(&to).unwrap().core.step(message, false, &mut effects);
            messages.extend(self.carry_out(to, effects));
        }
    }

    /// Answers the messages to send, with their sender.
    fn carry_out(&mut self, replica: u64, mut effects: Effects) -> VecDeque<(u64, Message)> {
        let core = &mut self.members.get_mut(&replica).unwrap().core;
        while let Some(persist) = effects.persist.take() {
            persist.point.sync().unwrap();
            core.persisted(persist.number, &persist.point, &mut effects);
        }
        for checkpoint in effects.checkpoints {
            let _ = core.files().store_checkpoint(&checkpoint);
        }
        self.answers.extend(effects.answers);
        effects.messages.into_iter().map(|outbound| (replica, outbound.message)).collect()
    }

    fn ticks(&mut self, count: usize) {
        for _ in 0..count {
            for replica in self.members.keys().copied().collect::<Vec<_>>() {
                self.call(replica, |core, effects| core.tick(&BTreeSet::new(), effects));
            }
        }
    }

    fn wait_for_leader(&mut self, replica: u64) {
        for _ in 0..2_000 {
            if self.core(replica).visible().is_settled {
                return;
            }
            self.ticks(1);
        }
        panic!("replica {replica} does not lead");
    }

    fn core(&self, replica: u64) -> &Core {
        &self.members[&replica].core
    }

    /// Lets a replica append `count` batches in one burst; the tokens.
    fn publish(&mut self, replica: u64, count: u64, bytes: usize) -> Vec<u64> {
        let proposals: Vec<Proposal> = (0..count)
            .map(|_| {
                self.tokens += 1;
                let mut builder = BatchBuilder::new(Compression::None);
                builder.push(1, None, Some(&vec![7; bytes]), &[]).unwrap();
                let batch = builder.build().unwrap();
                let header = BatchHeader::read(&batch).unwrap();
                let body =
                    ProposalBody::Batch { batch, header, acks: Acks::QuorumFsync, only_in: None };
                Proposal { token: self.tokens, body }
            })
            .collect();
        let tokens = proposals.iter().map(|proposal| proposal.token).collect();
        self.call(replica, |core, effects| core.propose(proposals, 1, effects));
        tokens
    }

    fn outcome(&self, token: u64) -> &'static str {
        match self.answers.get(&token) {
            Some(Ok(_)) => "ok",
            Some(Err(BrokerError::DiskFull)) => "full",
            Some(Err(_)) => "error",
            None => "waiting",
        }
    }

    /// No more than what is used now, and `more` bytes.
    fn fill(&mut self, replica: u64, more: u64) {
        let disk = &self.members[&replica].disk;
        disk.set_capacity(Some(disk.used_bytes() + more));
    }

    fn make_room(&mut self, replica: u64) {
        self.members[&replica].disk.set_capacity(None);
        self.members[&replica].reserve.refill().unwrap();
    }

    fn wait_for_any_leader(&mut self) {
        for _ in 0..2_000 {
            if self.members.values().any(|member| member.core.visible().is_settled) {
                return;
            }
            self.ticks(1);
        }
        panic!("nobody leads");
    }

    fn restart(&mut self, replica: u64) {
        let member = self.members.remove(&replica).unwrap();
        let saved = member.core.hard_state();
        let disk = member.disk.clone();
        drop(member);
        let (config, reserve) = config(&disk, replica, RESERVE_BYTES);
        let core = Core::open(config, Some(saved)).unwrap().unwrap();
        self.members.insert(replica, Member { core, disk, reserve });
        self.call(replica, Core::begin);
    }

    fn assert_in_service(&self) {
        for (replica, member) in &self.members {
            assert_eq!(member.core.broken(), None, "replica {replica}");
        }
    }
}

fn config(disk: &SimDisk, seed: u64, reserve_bytes: u64) -> (CoreConfig, Arc<DiskReserve>) {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    let reserve = DiskReserve::open(Arc::clone(&disk), Path::new("/data"), reserve_bytes);
    let reserve = Arc::new(reserve.unwrap());
    let config = CoreConfig {
        settled: None,
        disk,
        dir: PathBuf::from(DIR),
        log: LogOptions {
            segment_bytes: SEGMENT_BYTES,
            allocate_step_bytes: 8 << 10,
            ..LogOptions::default()
        },
        reserve: Arc::clone(&reserve),
        heartbeat_ticks: 2,
        election_ticks: 10,
        quiet_ticks: 0,
        seed,
        machine: None,
        logger: slog::Logger::root(slog::Discard, slog::o!()),
    };
    (config, reserve)
}

#[test]
fn a_burst_larger_than_a_segment_is_taken_in_part_and_the_rest_is_refused() {
    let mut group = Group::new(1, RESERVE_BYTES);
    group.fill(1, 2 * SEGMENT_BYTES);
    let tokens = group.publish(1, 20, 20 << 10);
    let outcomes: Vec<&str> = tokens.iter().map(|token| group.outcome(*token)).collect();
    let taken = outcomes.iter().take_while(|outcome| **outcome == "ok").count();
    assert!((2..19).contains(&taken), "{outcomes:?}");
    assert!(outcomes[taken..].iter().all(|outcome| *outcome == "full"), "{outcomes:?}");
    group.assert_in_service();
    assert_eq!(group.core(1).visible().high_watermark, taken as u64);
    group.make_room(1);
    let tokens = group.publish(1, 3, 100);
    assert!(tokens.iter().all(|token| group.outcome(*token) == "ok"));
}

#[test]
fn batches_are_refused_but_a_new_log_start_is_taken_while_the_disk_is_full() {
    let mut group = Group::new(1, RESERVE_BYTES);
    group.publish(1, 8, 20 << 10);
    group.fill(1, 0);
    let refused = loop {
        let token = group.publish(1, 1, 20 << 10)[0];
        if group.outcome(token) == "full" {
            break token;
        }
    };
    assert_eq!(group.outcome(refused), "full");
    let trim = Proposal { token: 1_000, body: ProposalBody::AdvanceLogStart(6) };
    group.call(1, |core, effects| core.propose(vec![trim], 1, effects));
    assert_eq!(group.outcome(1_000), "ok");
    assert_eq!(group.core(1).visible().log_start_offset, 6);
    group.assert_in_service();
}

/// The entry that makes room stands behind batches that the leader has taken: followers without room take those too.
#[test]
fn a_new_log_start_gets_through_to_followers_without_room() {
    let mut group = Group::new(3, RESERVE_BYTES);
    group.publish(1, 8, 20 << 10);
    group.fill(2, 0);
    group.fill(3, 0);
    let mut published = 8;
    while group.members[&2].reserve.is_whole() || group.members[&3].reserve.is_whole() {
        let token = group.publish(1, 1, 20 << 10)[0];
        assert_eq!(group.outcome(token), "ok", "after {published}");
        published += 1;
        assert!(published < 30);
    }
    let trim = Proposal { token: 1_000, body: ProposalBody::AdvanceLogStart(7) };
    group.call(1, |core, effects| core.propose(vec![trim], 1, effects));
    assert_eq!(group.outcome(1_000), "ok");
    // But not without end: the other half of the reserve is for what runs the group.
    let mut waiting = None;
    for _ in 0..60 {
        let token = group.publish(1, 1, 20 << 10)[0];
        if group.outcome(token) == "waiting" {
            waiting = Some(token);
            break;
        }
    }
    let waiting = waiting.expect("followers stop taking batches");
    group.assert_in_service();
    group.make_room(2);
    group.ticks(20);
    assert_eq!(group.outcome(waiting), "ok");
    group.assert_in_service();
}

#[test]
fn a_restarted_replica_is_elected_on_a_full_disk() {
    let mut group = Group::new(3, RESERVE_BYTES);
    group.publish(1, 3, 20 << 10);
    for replica in 1..=3 {
        group.fill(replica, 0);
        group.restart(replica);
    }
    group.wait_for_any_leader();
    group.assert_in_service();
}

/// Replica 1 leads alone with entries that nobody else has, and then meets those of a later leader on a full disk.
fn diverge(reserve_bytes: u64) -> Group {
    let mut group = Group::new(3, reserve_bytes);
    group.publish(1, 2, 20 << 10);
    group.cut = [1].into();
    let lost = group.publish(1, 4, 20 << 10);
    group.call(2, |core, _| core.campaign());
    group.wait_for_leader(2);
    group.publish(2, 1, 1 << 10);
    group.fill(1, 0);
    group.cut.clear();
    group.ticks(60);
    assert!(lost.iter().all(|token| group.outcome(*token) == "error"));
    group
}

#[test]
fn a_diverged_replica_cuts_its_end_on_a_full_disk_and_catches_up_later() {
    let mut group = diverge(RESERVE_BYTES);
    group.assert_in_service();
    group.make_room(1);
    group.ticks(60);
    group.assert_in_service();
    assert_eq!(group.core(1).visible().high_watermark, group.core(2).visible().high_watermark);
    assert_eq!(group.core(1).visible().high_watermark, 3);
}

/// Without the reserve the same ends in a quarantine: the test above can fail.
#[test]
fn without_a_reserve_it_cannot() {
    let group = diverge(0);
    assert!(group.core(1).broken().is_some());
}

#[test]
fn a_snapshot_is_installed_on_a_full_disk() {
    let mut group = Group::new(3, RESERVE_BYTES);
    group.publish(1, 2, 20 << 10);
    group.cut = [3].into();
    group.publish(1, 12, 20 << 10);
    let trim = Proposal { token: 1_000, body: ProposalBody::AdvanceLogStart(12) };
    group.call(1, |core, effects| core.propose(vec![trim], 1, effects));
    assert_eq!(group.outcome(1_000), "ok");
    group.fill(3, 0);
    group.cut.clear();
    group.ticks(60);
    group.assert_in_service();
    group.make_room(3);
    group.ticks(60);
    assert_eq!(group.core(3).visible().high_watermark, 14);
    assert_eq!(group.core(3).visible().log_start_offset, 12);
    group.assert_in_service();
}
