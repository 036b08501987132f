//! Cores whose group changes: replicas join, leave and lead while others crash.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use bytes::Bytes;
use highwater_proto::batch::{BatchBuilder, BatchHeader, Compression};
use highwater_proto::v1::Acks;
use highwater_storage::{Disk, SimDisk};
use raft::eraftpb::Message;

use super::test_group::{GROUP, Group, config};
use super::{Answer, Birth, Core, Effects, ProposalBody};
use crate::error::BrokerError;
use crate::replica::members::Step;

impl Group {
    /// One step towards other members by whoever leads; true when there is none left to do.
    fn step_towards(&mut self, target: &BTreeMap<u64, u64>) -> bool {
        self.run(|group| group.leader().is_some());
        let leader = self.leader().unwrap();
        self.publish(leader, Acks::QuorumFsync);
        let followers = self.core(leader).followers();
        match self.core(leader).members().step_towards(target, &BTreeMap::new(), leader, &followers)
        {
            Step::Done => return true,
            Step::Wait(_) => self.tick(),
            Step::Change(change) => {
                self.propose(leader, ProposalBody::Members(change));
            }
            Step::Transfer(to) => {
                self.call(leader, |core, effects| {
                    core.transfer_leadership(Some(to), effects);
                });
            }
        }
        false
    }

    fn change_to(&mut self, ids: &[u64]) {
        let target = target(ids);
        for _ in 0..500 {
            if self.step_towards(&target) {
                return;
            }
        }
        panic!("not there: {:?}", self.states());
    }

    /// Everything that was acknowledged is on all of these replicas, and they agree on who belongs to the group.
    fn check(&mut self, ids: &[u64]) {
        self.ticks(60);
        let leader = self.leader().expect("somebody leads");
        let now = *self.core(leader).members().voters.iter().next_back().unwrap();
        assert!(ids.contains(&now));
        let end = self.core(leader).visible().high_watermark;
        assert!(end >= self.acknowledged && self.acknowledged > 0);
        for id in ids {
            let core = self.core(*id);
            assert_eq!(core.visible().high_watermark, end, "replica {id}");
            assert_eq!(core.members().voters, ids.iter().copied().collect(), "replica {id}");
            assert!(core.members().outgoing.is_empty() && core.members().learners.is_empty());
            let nodes: Vec<u64> = core.nodes().keys().copied().collect();
            assert_eq!(nodes, ids, "replica {id}");
            let records = core.reader().read_offsets(0, end, u64::MAX).unwrap();
            assert_eq!(records.iter().map(|r| u64::from(r.meta.offset_span)).sum::<u64>(), end);
        }
    }
}

fn target(ids: &[u64]) -> BTreeMap<u64, u64> {
    ids.iter().map(|id| (*id, *id)).collect()
}

#[test]
fn a_batch_for_another_leader_epoch_is_refused() {
    let mut group = Group::new();
    group.run(|group| group.leader().is_some());
    let leader = group.leader().unwrap();
    let term = group.core(leader).visible().term;
    for (only_in, is_taken) in [(term, true), (term - 1, false), (term + 1, false)] {
        let mut builder = BatchBuilder::new(Compression::None);
        builder.push(1, None, Some(b"v"), &[]).unwrap();
        let batch = builder.build().unwrap();
        let header = BatchHeader::read(&batch).unwrap();
        let (acks, only_in) = (Acks::Leader, Some(only_in));
        let token = group.propose(leader, ProposalBody::Batch { batch, header, acks, only_in });
        let is_refused =
            matches!(group.answers.get(&token), Some(Err(BrokerError::NotLeader { .. })));
        assert_eq!(is_refused, !is_taken, "{only_in:?} in {term}");
    }
}

#[test]
fn a_replica_joins_as_a_learner_and_takes_the_place_of_another() {
    let mut group = Group::new();
    for _ in 0..20 {
        group.publish(1, Acks::QuorumFsync);
    }
    group.join(4);
    group.change_to(&[1, 2, 4]);
    group.check(&[1, 2, 4]);
}

#[test]
fn all_replicas_are_replaced_at_once_and_the_leader_among_them() {
    let mut group = Group::new();
    for replica in 4..=6 {
        group.join(replica);
    }
    group.change_to(&[4, 5, 6]);
    for old in 1..=3 {
        group.members.remove(&old);
    }
    group.check(&[4, 5, 6]);
    assert!(group.leader().unwrap() > 3);
}

/// Every replica loses power after every step, and whoever leads then goes on.
#[test]
fn a_change_is_finished_though_the_power_fails_after_every_step() {
    let mut group = Group::new();
    group.join(4);
    group.join(5);
    let target = target(&[1, 4, 5]);
    let mut steps = 0;
    while !group.step_towards(&target) {
        steps += 1;
        assert!(steps < 200, "{:?}", group.states());
        for replica in 1..=5 {
            group.crash(replica);
        }
        // A new leader takes a while to know for sure who has caught up.
        group.run(|group| group.leader().is_some());
        group.ticks(25);
    }
    for old in [2, 3] {
        group.members.remove(&old);
    }
    for replica in [1, 4, 5] {
        group.crash(replica);
    }
    group.check(&[1, 4, 5]);
}

#[test]
fn another_leader_leaves_the_joint_configuration() {
    let mut group = Group::new();
    group.join(4);
    let target = target(&[1, 2, 4]);
    while group.core(1).members().outgoing.is_empty() {
        assert!(!group.step_towards(&target));
    }
    group.cut.insert(1);
    group.run(|group| group.leader().is_some());
    group.change_to(&[1, 2, 4]);
    group.cut.clear();
    group.members.remove(&3);
    group.check(&[1, 2, 4]);
}

#[test]
fn a_removed_replica_is_not_heard_and_raises_no_term() {
    let mut group = Group::new();
    group.cut.insert(3);
    group.join(4);
    group.change_to(&[1, 2, 4]);
    let term = group.core(1).visible().term;
    group.cut.clear();
    // It has never heard that it was removed, and asks for votes for as long as it lives.
    for _ in 0..5 {
        group.call(3, |core, _| core.campaign());
        group.ticks(30);
    }
    group.crash(3);
    group.ticks(100);
    assert_eq!(group.core(1).visible().term, term);
    assert_eq!(group.leader(), Some(1));
    let refused = Message { from: 3, to: 1, term: term + 9, ..Message::default() };
    let outcome =
        group.members.get_mut(&1).unwrap().core.step(refused, false, &mut Effects::default());
    assert_eq!(outcome.unwrap_err(), "replica 3 is not a member");
    group.members.remove(&3);
    group.check(&[1, 2, 4]);
}

#[test]
fn a_member_that_was_away_follows_a_leader_it_has_never_heard_of() {
    let mut group = Group::new();
    group.cut.insert(2);
    group.join(4);
    group.change_to(&[1, 2, 4]);
    let leader = group.leader().unwrap();
    if leader != 4 {
        group.call(leader, |core, effects| {
            core.transfer_leadership(Some(4), effects);
        });
        group.run(|group| group.leader() == Some(4));
    }
    // Only the stranger can give the news, and only with this vote.
    group.cut = [1, 3].into();
    group.run(|group| group.leader() == Some(4) && group.core(2).visible().leader == 4);
    group.cut.clear();
    group.members.remove(&3);
    group.check(&[1, 2, 4]);
}

#[test]
fn appended_by_a_majority_means_of_both_halves() {
    let mut group = Group::new();
    for replica in [4, 5] {
        group.join(replica);
    }
    let target = target(&[1, 4, 5]);
    while group.core(1).members().outgoing.is_empty() {
        assert!(!group.step_towards(&target));
    }
    group.cut = [4, 5].into();
    let half = group.publish(1, Acks::Quorum);
    assert!(!group.answers.contains_key(&half), "the new half has not appended it");
    group.cut = [5].into();
    group.ticks(10);
    assert!(matches!(group.answers.get(&half), Some(Ok(_))));
}

#[test]
fn a_new_replica_catches_up_behind_a_trimmed_log() {
    let mut group = Group::new();
    for _ in 0..30 {
        group.publish(1, Acks::QuorumFsync);
    }
    let token = group.propose(1, ProposalBody::AdvanceLogStart(20));
    assert!(matches!(group.answers[&token], Ok(Answer::LogStart(20))));
    group.members.get_mut(&1).unwrap().core.drop_prefix().unwrap();
    group.join(4);
    group.change_to(&[1, 2, 4]);
    group.crash(4);
    group.ticks(30);
    let core = group.core(4);
    assert_eq!(core.visible().log_start_offset, 20);
    assert_eq!(core.members().voters, [1, 2, 4].into());
    assert_eq!(core.visible().high_watermark, group.core(1).visible().high_watermark);
}

#[test]
fn changes_that_cannot_be_are_refused_and_change_nothing() {
    let mut group = Group::new();
    let before = group.core(1).members();
    let leave = group.propose(1, ProposalBody::Members(Default::default()));
    assert!(matches!(group.answers[&leave], Err(BrokerError::InvalidArgument { .. })));
    // All voters gone: raft refuses it only when it is applied.
    let gone = highwater_proto::internal::MembersChange {
        transition: 2,
        changes: (1..=3)
            .map(|replica_id| highwater_proto::internal::MemberChange {
                change_type: 1,
                replica_id,
            })
            .collect(),
        nodes: BTreeMap::new(),
    };
    let gone = group.propose(1, ProposalBody::Members(gone));
    assert!(matches!(group.answers[&gone], Err(BrokerError::InvalidArgument { .. })));
    assert_eq!(group.core(1).members(), before);
    group.join(4);
    group.change_to(&[1, 2, 4]);
    group.check(&[1, 2, 4]);
}

#[test]
fn a_lone_voter_tells_its_learners_nothing_of_a_term_that_is_not_durable() {
    let disk = SimDisk::new(1);
    disk.create_dir_all(Path::new("/data/groups")).unwrap();
    let birth = Birth {
        group: GROUP,
        replica: 1,
        topic_id: "topic".into(),
        partition: 0,
        voters: [(1, 1)].into(),
        learners: [(2, 2)].into(),
        image: Bytes::new(),
        preferred: true,
    };
    let mut core = Core::create(config(&disk, 1, 0), birth).unwrap();
    let mut effects = Effects::default();
    core.begin(&mut effects);
    while !core.visible().is_leader {
        core.tick(&BTreeSet::new(), &mut effects);
    }
    (0..10).for_each(|_| core.tick(&BTreeSet::new(), &mut effects));
    let told = effects.messages.iter().map(|out| (out.message.to, out.message.term));
    assert_eq!(told.collect::<Vec<_>>(), [], "its vote for itself may be lost with the power");
    let persist = effects.persist.take().unwrap();
    persist.point.sync().unwrap();
    core.persisted(persist.number, &persist.point, &mut effects);
    let term = core.visible().term;
    assert!(effects.messages.iter().any(|out| (out.message.to, out.message.term) == (2, term)));
}
