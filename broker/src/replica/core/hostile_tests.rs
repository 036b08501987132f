//! What no replica of ours says, in the name of one: it may cost this replica its service, never the process.

use bytes::Bytes;
use highwater_proto::internal::{
    RaftConfState, RaftEntry, RaftMessage, RaftSnapshot, RaftSnapshotMetadata,
};
use highwater_proto::v1::Acks;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, RngCore, SeedableRng};

use super::test_group::{Group, Member};
use super::*;
use crate::replica::convert;

/// Groups that are set up anew. Each costs some elections.
const GROUPS: u64 = 400;
const MESSAGES: usize = 60;

/// Says things around what the replica has, where the boundaries are.
struct Liar {
    random: SmallRng,
}

impl Liar {
    fn near(&mut self, numbers: &[u64]) -> u64 {
        let number = *numbers.choose(&mut self.random).unwrap();
        match self.random.random_range(0..40) {
            0 => 0,
            1 => number.wrapping_sub(1),
            2 => number.wrapping_add(1),
            3 => u64::MAX,
            4 => u64::MAX - 1,
            5 => i64::MAX as u64,
            _ => number,
        }
    }

    fn bytes(&mut self) -> Bytes {
        let mut bytes = vec![0; self.random.random_range(0..80)];
        self.random.fill_bytes(&mut bytes);
        Bytes::from(bytes)
    }

    fn members(&mut self) -> RaftConfState {
        let mut ids = || -> Vec<u64> {
            let count = self.random.random_range(0..4);
            (0..count).map(|_| self.random.random_range(0..6)).collect()
        };
        RaftConfState {
            voters: ids(),
            learners: ids(),
            voters_outgoing: ids(),
            learners_next: ids(),
            auto_leave: self.random.random(),
        }
    }

    fn message(&mut self, core: &Core) -> RaftMessage {
        let raft = &core.raw.raft;
        let log = &raft.raft_log;
        let terms = [raft.term, 1];
        let indexes = [log.last_index(), log.committed, log.first_index(), log.applied];
        let term = self.near(&terms);
        let log_term = self.near(&terms);
        let index = self.near(&indexes);
        let entry = |liar: &mut Self, at: u64| RaftEntry {
            entry_type: liar.random.random_range(0..4),
            term: if liar.random.random() { term } else { liar.near(&terms) },
            index: if liar.random.random_ratio(7, 8) { at } else { liar.near(&indexes) },
            data: if liar.random.random() { Bytes::new() } else { liar.bytes() },
            context: liar.bytes(),
        };
        // Most say what belongs to their type; the others are refused before anything else is looked at.
        let msg_type = *convert::FROM_PEERS.choose(&mut self.random).unwrap() as i32;
        let is = |kind: MessageType| msg_type == kind as i32;
        let is_odd = self.random.random_ratio(1, 20);
        let entries_max = if is(MessageType::MsgAppend) || is_odd { 4_u64 } else { 1 };
        let entries = (1..=self.random.random_range(0..entries_max))
            .map(|n| entry(self, index.wrapping_add(n)))
            .collect();
        let snapshot = (is(MessageType::MsgSnapshot) != is_odd).then(|| RaftSnapshot {
            metadata: self.random.random_ratio(7, 8).then(|| RaftSnapshotMetadata {
                conf_state: Some(self.members()),
                index: self.near(&indexes),
                term: self.near(&terms),
            }),
            data: self.bytes(),
        });
        RaftMessage {
            msg_type: if self.random.random_ratio(1, 20) {
                self.random.random_range(-1..20)
            } else {
                msg_type
            },
            to: core.replica,
            from: self.random.random_range(1..4),
            term,
            log_term,
            index,
            entries,
            commit: self.near(&indexes),
            commit_term: self.near(&terms),
            snapshot,
            request_snapshot: self.near(&indexes),
            reject: self.random.random(),
            reject_hint: self.near(&indexes),
            context: self.bytes(),
            priority: self.random.random(),
        }
    }
}

/// Carries out what follows at this replica; nothing is sent.
fn carry_out(member: &mut Member, mut effects: Effects) {
    while let Some(persist) = effects.persist.take() {
        persist.point.sync().unwrap();
        member.core.persisted(persist.number, &persist.point, &mut effects);
    }
}

#[test]
fn no_message_whatever_it_says_panics() {
    let (mut refused, mut taken, mut quarantined) = (0, 0, 0);
    for seed in 0..GROUPS {
        let mut liar = Liar { random: SmallRng::seed_from_u64(seed) };
        let mut group = Group::new();
        for _ in 0..3 {
            group.publish(1, Acks::QuorumFsync);
        }
        let victim = group.members.get_mut(&(1 + seed % 3)).unwrap();
        for _ in 0..MESSAGES {
            let mut effects = Effects::default();
            let message = liar.message(&victim.core);
            let Ok(message) = convert::from_wire(message) else {
                refused += 1;
                continue;
            };
            let _ = victim.core.hear(message.from, message.from);
            match victim.core.step(message, liar.random.random(), &mut effects) {
                Ok(()) => taken += 1,
                Err(_) => refused += 1,
            }
            carry_out(victim, effects);
            let mut effects = Effects::default();
            victim.core.tick(&[1, 2, 3].into(), &mut effects);
            carry_out(victim, effects);
            if victim.core.broken().is_some() {
                // It hears nothing more.
                quarantined += 1;
                break;
            }
        }
    }
    // None is rare: otherwise this says nothing.
    let seen = format!("{refused} refused, {taken} taken, {quarantined} quarantined");
    println!("{seen}");
    assert!(refused > 1_000 && taken > 1_000 && quarantined > 5, "{seen}");
}
