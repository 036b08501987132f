//! Who asks where a partition ends is told by nobody who may have been deposed.

use std::collections::HashMap;

use highwater_proto::v1::Acks;
use raft::eraftpb::MessageType;

use super::test_group::Group;
use super::{Answer, Effects, Visible};
use crate::error::BrokerError;

impl Group {
    /// So many questions at once; their tokens.
    fn ask(&mut self, replica: u64, questions: u64) -> Vec<u64> {
        let tokens: Vec<u64> = (0..questions).map(|_| self.next_token()).collect();
        let asked = tokens.clone();
        self.call(replica, |core, effects| core.prove_leadership(asked, effects));
        tokens
    }

    fn end(&self, token: u64) -> Option<u64> {
        match self.answers.get(&token)? {
            Ok(Answer::Leads(Visible { high_watermark, .. })) => Some(*high_watermark),
            other => panic!("{other:?} answers where the partition ends"),
        }
    }

    fn is_refused(&self, token: u64) -> bool {
        matches!(self.answers.get(&token), Some(Err(BrokerError::NotLeader { .. })))
    }

    fn heartbeats(&self) -> usize {
        self.sent.iter().filter(|sent| **sent == MessageType::MsgHeartbeat).count()
    }
}

#[test]
fn a_leader_answers_after_a_majority_has_replied_and_many_questions_share_a_round() {
    let mut group = Group::new();
    group.publish(1, Acks::QuorumFsync);
    let before = group.heartbeats();
    let tokens = group.ask(1, 100);
    assert!(tokens.iter().all(|token| group.end(*token) == Some(1)));
    assert_eq!(group.heartbeats() - before, 2, "one to each follower");
}

#[test]
fn questions_that_come_while_a_round_is_on_its_way_wait_for_the_next_one() {
    let mut group = Group::new();
    group.cut.extend([2, 3]);
    let first = group.ask(1, 1)[0];
    let before = group.heartbeats();
    let later = group.ask(1, 50);
    assert_eq!(group.heartbeats(), before, "no round was begun");
    assert_eq!(group.end(first), None);
    group.cut.clear();
    // The heartbeats of the first round are lost; the regular ones repeat the question.
    group.ticks(2);
    assert_eq!(group.end(first), Some(0));
    assert!(later.iter().all(|token| group.end(*token) == Some(0)));
    assert_eq!(group.leader(), Some(1));
}

#[test]
fn a_deposed_leader_that_does_not_know_it_answers_nothing_and_then_that_it_does_not_lead() {
    let mut group = Group::new();
    group.publish(1, Acks::QuorumFsync);
    group.cut.insert(1);
    // Time stands still for the old leader meanwhile.
    for _ in 0..200 {
        for replica in [2, 3] {
            let live = [2, 3].into();
            group.call(replica, |core, effects| core.tick(&live, effects));
        }
    }
    let new = group.leader().expect("the others have elected one of them");
    let token = group.publish(new, Acks::QuorumFsync);
    assert!(matches!(group.answers[&token], Ok(Answer::Appended(_))));
    assert!(group.core(1).visible().is_settled, "it believes that it leads");
    let stale = group.ask(1, 1)[0];
    let fresh = group.ask(new, 1)[0];
    assert_eq!((group.end(stale), group.end(fresh)), (None, Some(2)));
    // Alone it finds out by itself; whoever waits is told.
    group.ticks(25);
    assert!(group.is_refused(stale), "{:?}", group.answers[&stale]);
}

#[test]
fn a_new_leader_answers_once_it_has_committed_in_its_own_term() {
    let mut group = Group::new();
    group.publish(1, Acks::QuorumFsync);
    group.cut.insert(1);
    // Votes and heartbeats get through to the third replica, entries do not arrive yet.
    group.lose = Some(MessageType::MsgAppend);
    group.run(|group| [2, 3].iter().any(|id| group.core(*id).visible().is_leader));
    let new = [2, 3].into_iter().find(|id| group.core(*id).visible().is_leader).unwrap();
    assert!(!group.core(new).visible().is_settled);
    let token = group.ask(new, 1)[0];
    group.ticks(4);
    assert_eq!(group.end(token), None, "what was committed before may not be known to it");
    group.lose = None;
    group.ticks(4);
    assert_eq!(group.end(token), Some(1));
}

#[test]
fn a_group_that_sleeps_wakes_to_answer_and_sleeps_again() {
    let mut group = Group::of(3, 4);
    group.publish(1, Acks::QuorumFsync);
    let sleeps = |group: &Group| (1..=3).all(|id| group.core(id).is_asleep());
    group.run(sleeps);
    let token = group.ask(1, 1)[0];
    assert_eq!(group.end(token), Some(1));
    assert!(!sleeps(&group));
    group.run(sleeps);
    // One that is cut off while it sleeps does not answer from memory either.
    group.cut.insert(1);
    let stale = group.ask(1, 1)[0];
    assert!(!group.core(1).is_asleep());
    assert_eq!(group.end(stale), None);
    group.ticks(25);
    assert!(group.is_refused(stale));
}

#[test]
fn the_only_voter_answers_at_once_and_a_follower_not_at_all() {
    let mut alone = Group::of(1, 0);
    alone.publish(1, Acks::QuorumFsync);
    let token = alone.ask(1, 1)[0];
    assert_eq!(alone.end(token), Some(1));
    assert_eq!(alone.heartbeats(), 0);

    let mut group = Group::new();
    let token = group.ask(2, 1)[0];
    let refused = matches!(group.answers[&token], Err(BrokerError::NotLeader { leader: Some(1) }));
    assert!(refused, "{:?}", group.answers[&token]);
}

#[test]
fn whoever_asks_a_replica_that_is_removed_or_damaged_is_told() {
    let mut group = Group::new();
    group.cut.extend([2, 3]);
    let token = group.ask(1, 1)[0];
    group.call(1, |core, effects| core.abandon(effects));
    assert!(group.is_refused(token));

    let mut group = Group::new();
    group.cut.extend([2, 3]);
    let waiting = group.ask(1, 1)[0];
    let mut effects = Effects::default();
    let core = &mut group.members.get_mut(&1).unwrap().core;
    core.damaged("a bit has flipped".into(), &mut effects);
    core.prove_leadership(vec![7], &mut effects);
    let told: HashMap<_, _> = effects.answers.into_iter().collect();
    for token in [waiting, 7] {
        assert!(matches!(told[&token], Err(BrokerError::Quarantined { .. })), "{told:?}");
    }
}
