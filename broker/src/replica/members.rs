//! Who belongs to a group, and the steps from one set of members to another.
//!
//! Owns: the shape of a membership change on its way (learners first, then a joint configuration, left explicitly), decided from
//! nothing but what is committed, so that whoever leads next goes on where the last one stopped. Never: why a group moves.

use std::collections::{BTreeMap, BTreeSet};

use highwater_proto::internal::{MemberChange, MembersChange};
use raft::eraftpb::{
    ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState,
};

/// The members of a group, as one of its replicas has applied them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// Replicas that vote; in a joint configuration those of the new half.
    pub voters: BTreeSet<u64>,
    /// The old half of a joint configuration; else empty.
    pub outgoing: BTreeSet<u64>,
    /// Replicas that follow without a vote.
    pub learners: BTreeSet<u64>,
    /// Node of each member.
    pub nodes: BTreeMap<u64, u64>,
}

/// Another replica of the group, as its leader sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Follower {
    /// Its id.
    pub replica: u64,
    /// Entries it lacks.
    pub lag_entries: u64,
    /// It holds what was committed a moment ago; a new leader believes so until it knows better.
    pub in_sync: bool,
    /// The leader knows for sure that it holds what was committed a moment ago.
    pub caught_up: bool,
}

/// What a leader does next on the way to other members.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Propose this.
    Change(MembersChange),
    /// Wait for these replicas to catch up.
    Wait(Vec<u64>),
    /// Hand leadership to this replica: the leader itself is to go.
    Transfer(u64),
    /// The members are what they should be.
    Done,
}

impl Members {
    pub(crate) fn new(conf: &ConfState, nodes: &BTreeMap<u64, u64>) -> Self {
        let set = |ids: &[u64]| ids.iter().copied().collect();
        Self {
            voters: set(&conf.voters),
            outgoing: set(&conf.voters_outgoing),
            learners: conf.learners.iter().chain(&conf.learners_next).copied().collect(),
            nodes: nodes.clone(),
        }
    }

    /// The next step towards `target`, the voters that are wanted, and `following`, the learners (replica ids with their nodes).
    /// `leader` is the replica that leads, `followers` what it knows of the others.
    pub fn step_towards(
        &self,
        target: &BTreeMap<u64, u64>,
        following: &BTreeMap<u64, u64>,
        leader: u64,
        followers: &[Follower],
    ) -> Step {
        let is_wanted = |id: &u64| target.contains_key(id) || following.contains_key(id);
        let caught_up = |id: &u64| {
            *id == leader || followers.iter().any(|other| other.replica == *id && other.caught_up)
        };
        if !self.outgoing.is_empty() {
            // A leader that leaves with the old half would go on as one that belongs to nothing.
            if !self.voters.contains(&leader) {
                let heir = self.voters.iter().find(|id| caught_up(id));
                return match heir {
                    Some(heir) => Step::Transfer(*heir),
                    None => Step::Wait(self.voters.iter().copied().collect()),
                };
            }
            return Step::Change(MembersChange::default());
        }
        if let Some(stranger) = self.learners.iter().find(|id| !is_wanted(id)) {
            return Step::Change(one(ConfChangeType::RemoveNode, *stranger, None));
        }
        let known = |id: &u64| self.voters.contains(id) || self.learners.contains(id);
        if let Some((id, node)) = target.iter().chain(following).find(|(id, _)| !known(id)) {
            return Step::Change(one(ConfChangeType::AddLearnerNode, *id, Some(*node)));
        }
        let to_vote = self.learners.iter().filter(|id| target.contains_key(id));
        let behind: Vec<u64> = to_vote.filter(|id| !caught_up(id)).copied().collect();
        if !behind.is_empty() {
            return Step::Wait(behind);
        }
        let joining = target.keys().filter(|id| !self.voters.contains(id));
        let leaving = self.voters.iter().filter(|id| !target.contains_key(id));
        let changes: Vec<MemberChange> = joining
            .map(|id| single(ConfChangeType::AddNode, *id))
            .chain(leaving.map(|id| match following.contains_key(id) {
                true => single(ConfChangeType::AddLearnerNode, *id),
                false => single(ConfChangeType::RemoveNode, *id),
            }))
            .collect();
        if changes.is_empty() {
            return Step::Done;
        }
        let transition = ConfChangeTransition::Explicit as i32;
        Step::Change(MembersChange { transition, changes, nodes: BTreeMap::new() })
    }
}

fn single(change_type: ConfChangeType, replica_id: u64) -> MemberChange {
    MemberChange { change_type: change_type as i32, replica_id }
}

/// One learner more or less: no vote changes, so no joint configuration is needed.
fn one(change_type: ConfChangeType, replica: u64, node: Option<u64>) -> MembersChange {
    MembersChange {
        transition: ConfChangeTransition::Auto as i32,
        changes: vec![single(change_type, replica)],
        nodes: node.map(|node| (replica, node)).into_iter().collect(),
    }
}

/// The change as raft takes it. Field by field: rust-protobuf never parses what may come from the network.
pub(super) fn to_raft(change: &MembersChange) -> Result<ConfChangeV2, String> {
    let transition = match change.transition {
        0 => ConfChangeTransition::Auto,
        // An implicit one would be left by whoever leads then, and would stick if nobody does.
        2 => ConfChangeTransition::Explicit,
        other => return Err(format!("transition {other} is not one that is used here")),
    };
    if transition == ConfChangeTransition::Auto && change.changes.len() > 1 {
        return Err("several changes at once need a joint configuration".into());
    }
    let mut raft = ConfChangeV2 { transition, ..ConfChangeV2::default() };
    for member in &change.changes {
        let change_type = match member.change_type {
            0 => ConfChangeType::AddNode,
            1 => ConfChangeType::RemoveNode,
            2 => ConfChangeType::AddLearnerNode,
            other => return Err(format!("kind of change {other} is not known")),
        };
        if member.replica_id == 0 {
            return Err("replica 0 does not exist".into());
        }
        raft.mut_changes().push(ConfChangeSingle {
            change_type,
            node_id: member.replica_id,
            ..ConfChangeSingle::default()
        });
    }
    Ok(raft)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(voters: &[u64], outgoing: &[u64], learners: &[u64]) -> Members {
        let set = |ids: &[u64]| ids.iter().copied().collect();
        Members {
            voters: set(voters),
            outgoing: set(outgoing),
            learners: set(learners),
            nodes: BTreeMap::new(),
        }
    }

    fn target(ids: &[u64]) -> BTreeMap<u64, u64> {
        ids.iter().map(|id| (*id, id % 10)).collect()
    }

    fn follower(replica: u64, caught_up: bool) -> Follower {
        Follower { replica, lag_entries: 0, in_sync: true, caught_up }
    }

    fn changes(step: Step) -> (i32, Vec<(i32, u64)>) {
        let Step::Change(change) = step else { panic!("{step:?} is no change") };
        let changes = change.changes.iter().map(|c| (c.change_type, c.replica_id)).collect();
        (change.transition, changes)
    }

    #[test]
    fn learners_come_first_and_votes_move_when_they_have_caught_up() {
        let step =
            members(&[1, 2, 3], &[], &[]).step_towards(&target(&[1, 2, 14]), &target(&[]), 1, &[]);
        let Step::Change(change) = &step else { panic!("{step:?}") };
        assert_eq!(change.nodes, [(14, 4)].into());
        assert_eq!(changes(step), (0, vec![(2, 14)]));
        let with_learner = members(&[1, 2, 3], &[], &[14]);
        let behind = [follower(2, true), follower(14, false)];
        let step = with_learner.step_towards(&target(&[1, 2, 14]), &target(&[]), 1, &behind);
        assert_eq!(step, Step::Wait(vec![14]));
        let ready = [follower(14, true)];
        let step = with_learner.step_towards(&target(&[1, 2, 14]), &target(&[]), 1, &ready);
        assert_eq!(changes(step), (2, vec![(0, 14), (1, 3)]));
        let joint = members(&[1, 2, 14], &[1, 2, 3], &[]);
        assert_eq!(
            changes(joint.step_towards(&target(&[1, 2, 14]), &target(&[]), 1, &ready)),
            (0, vec![])
        );
        let after = members(&[1, 2, 14], &[], &[]);
        assert_eq!(after.step_towards(&target(&[1, 2, 14]), &target(&[]), 1, &ready), Step::Done);
    }

    #[test]
    fn a_leader_that_is_to_go_hands_over_before_the_joint_configuration_is_left() {
        let joint = members(&[11, 12], &[1, 2], &[]);
        let target = target(&[11, 12]);
        let heirs = [follower(2, true), follower(11, false), follower(12, true)];
        assert_eq!(joint.step_towards(&target, &BTreeMap::new(), 1, &heirs), Step::Transfer(12));
        assert_eq!(joint.step_towards(&target, &BTreeMap::new(), 1, &[]), Step::Wait(vec![11, 12]));
        assert_eq!(changes(joint.step_towards(&target, &BTreeMap::new(), 12, &[])), (0, vec![]));
    }

    #[test]
    fn learners_of_a_target_that_was_given_up_are_removed() {
        let step = members(&[1, 2, 3], &[], &[14]).step_towards(
            &target(&[1, 2, 15]),
            &target(&[]),
            1,
            &[],
        );
        assert_eq!(changes(step), (0, vec![(1, 14)]));
    }

    #[test]
    fn a_joint_configuration_of_a_target_that_was_given_up_is_left_first() {
        let joint = members(&[1, 2, 14], &[1, 2, 3], &[]);
        assert_eq!(
            changes(joint.step_towards(&target(&[1, 2, 3]), &target(&[]), 1, &[])),
            (0, vec![])
        );
    }

    #[test]
    fn learners_that_are_to_stay_learners_are_added_and_left_alone_and_a_voter_becomes_one() {
        let (voters, following) = (target(&[1, 2]), target(&[3, 14]));
        let step = members(&[1, 2, 3], &[], &[]).step_towards(&voters, &following, 1, &[]);
        assert_eq!(changes(step), (0, vec![(2, 14)]));
        let with_learner = members(&[1, 2, 3], &[], &[14]);
        let step = with_learner.step_towards(&voters, &following, 1, &[follower(14, false)]);
        assert_eq!(changes(step), (2, vec![(2, 3)]), "nobody waits for one that has no vote");
        let after = members(&[1, 2], &[], &[3, 14]);
        assert_eq!(after.step_towards(&voters, &following, 1, &[]), Step::Done);
        let step = after.step_towards(&voters, &target(&[3]), 1, &[]);
        assert_eq!(changes(step), (0, vec![(1, 14)]));
    }
}
