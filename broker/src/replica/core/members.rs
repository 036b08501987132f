//! Membership changes in the core: which may be proposed, what applying one does, and which senders count.
//!
//! Owns: the order in which a change becomes effective. It is durable in the file `replica` before this replica says anything more:
//! what it acknowledges next may rest on its knowing that the change was committed. Never: decides on a change.

use highwater_proto::internal::{MembersChange, ReplicaCheckpoint, ReplicaState};
use highwater_storage::StorageError;
use prost::Message as _;
use raft::StateRole;
use raft::eraftpb::{ConfState, Entry, Message, MessageType};

use super::{Answer, Core, Effects};
use crate::error::BrokerError;
use crate::replica::convert;
use crate::replica::members::{self, Members};

/// Senders that are newer than what is known here, remembered so that they can be answered.
const STRANGERS_MAX: usize = 16;

impl Core {
    /// Refuses what raft would silently replace by an empty entry.
    pub(super) fn check_members_change(&self, change: &MembersChange) -> Result<(), BrokerError> {
        let refuse = |why: String| BrokerError::InvalidArgument { field: "members".into(), why };
        members::to_raft(change).map_err(refuse)?;
        let raft = &self.raw.raft;
        if raft.has_pending_conf() {
            return Err(BrokerError::NotReady {
                why: "another membership change of the partition is not applied yet".into(),
            });
        }
        let is_joint = !self.raw.store().members.voters_outgoing.is_empty();
        if is_joint != change.changes.is_empty() {
            let why = if is_joint {
                "the joint configuration must be left first"
            } else {
                "there is no joint configuration to leave"
            };
            return Err(refuse(why.into()));
        }
        Ok(())
    }

    /// Applies a committed change, once: what the file `replica` reflects already is not done again.
    pub(super) fn apply_members(
        &mut self,
        entry: &Entry,
        effects: &mut Effects,
    ) -> Result<(), StorageError> {
        if entry.index <= self.state.members_index {
            return Ok(());
        }
        let decoded = MembersChange::decode(entry.data.clone()).map_err(|error| error.to_string());
        let changed = decoded.and_then(|change| {
            let raft_change = members::to_raft(&change)?;
            let conf = self.raw.apply_conf_change(&raft_change);
            conf.map(|conf| (conf, change)).map_err(|error| error.to_string())
        });
        self.state.members_index = entry.index;
        let answer = match changed {
            Ok((conf, change)) => {
                self.take_members(conf, change);
                Ok(Answer::MembersChanged)
            }
            // Every replica comes to the same end: the entry changes nothing.
            Err(why) => {
                tracing::warn!(group = self.group, index = entry.index, %why, "membership change without effect");
                Err(BrokerError::InvalidArgument { field: "members".into(), why })
            }
        };
        self.state.applied_index = entry.index;
        self.insist(|core| core.files.store_state(&core.state))?;
        self.state_unsaved = false;
        self.stored_applied = entry.index;
        let snapshot = std::mem::take(&mut self.raw.mut_store().snapshot);
        self.raw.mut_store().snapshot = self.with_members(snapshot);
        self.waiters.answer_outcome(entry.index, answer, effects);
        self.step_down_if_removed();
        Ok(())
    }

    fn take_members(&mut self, conf: ConfState, change: MembersChange) {
        let state = &mut self.state;
        state.highest_replica_id =
            change.nodes.keys().copied().fold(state.highest_replica_id, u64::max);
        state.nodes.extend(change.nodes);
        let is_member = |id: &u64| {
            let lists = [&conf.voters, &conf.voters_outgoing, &conf.learners, &conf.learners_next];
            lists.iter().any(|list| list.contains(id))
        };
        state.nodes.retain(|id, _| is_member(id));
        state.members = Some(convert::members_to_wire(&conf));
        self.strangers.retain(|id, _| !self.state.nodes.contains_key(id));
        tracing::info!(group = self.group, replica = self.replica, members = ?conf, "members changed");
        self.raw.mut_store().members = conf;
        self.members_changed = true;
    }

    /// A leader that is no member any more would keep the others quiet without serving them.
    fn step_down_if_removed(&mut self) {
        let members = &self.raw.store().members;
        let votes =
            [&members.voters, &members.voters_outgoing].iter().any(|v| v.contains(&self.replica));
        if self.raw.raft.state == StateRole::Leader && !votes {
            // The others hear of the commit that removed it.
            self.raw.ping();
            let term = self.raw.raft.term;
            self.raw.raft.become_follower(term, 0);
        }
    }

    /// A checkpoint as it goes into snapshots: with the members as they are now, which may be newer than its entries. A replica
    /// that is new finds itself among them, and skips the changes that they reflect already.
    pub(super) fn with_members(&self, mut checkpoint: ReplicaCheckpoint) -> ReplicaCheckpoint {
        describe_members(&self.state, &mut checkpoint);
        checkpoint
    }

    /// Takes members, nodes and what goes with them from a snapshot.
    pub(super) fn install_members(&mut self, checkpoint: &ReplicaCheckpoint, conf: &ConfState) {
        self.state.members = Some(convert::members_to_wire(conf));
        take_from_checkpoint(checkpoint, &mut self.state);
        self.strangers.retain(|id, _| !self.state.nodes.contains_key(id));
        self.members_changed = true;
    }

    /// A message came from a replica on this node. Remembered if the replica is none that is known here, so that it can be
    /// answered before its membership arrives. An error if the replica is another node's: no node speaks for another one.
    pub(crate) fn hear(&mut self, replica: u64, node: u64) -> Result<(), String> {
        if let Some(&owner) = self.state.nodes.get(&replica)
            && owner != node
        {
            return Err(format!("replica {replica} is on node {owner}, not on node {node}"));
        }
        if !self.state.nodes.contains_key(&replica) {
            if self.strangers.len() >= STRANGERS_MAX && !self.strangers.contains_key(&replica) {
                self.strangers.pop_first();
            }
            self.strangers.insert(replica, node);
        }
        Ok(())
    }

    /// Node of a replica that may be written to.
    pub(crate) fn node_of(&self, replica: u64) -> Option<u64> {
        let known = self.state.nodes.get(&replica).or_else(|| self.strangers.get(&replica));
        known.copied()
    }

    /// Whether a message may be heard at all. Who leads or stands for election may be a member by a change that this replica has
    /// not applied yet; refused, it would be missing for ever what it lacks, or the group a vote that it needs. So raft decides on
    /// these by their terms and logs, as it does for members. Everything else counts only if it is from a member.
    pub(super) fn check_sender(&self, message: &Message) -> Result<(), String> {
        let may_be_heard = match message.get_msg_type() {
            MessageType::MsgAppend | MessageType::MsgHeartbeat | MessageType::MsgSnapshot => {
                message.term >= self.raw.raft.term
            }
            // One that knows no members yet has no vote to give.
            MessageType::MsgRequestVote | MessageType::MsgRequestPreVote => {
                !self.state.nodes.is_empty()
            }
            _ => false,
        };
        if may_be_heard || self.raw.raft.prs().get(message.from).is_some() {
            return Ok(());
        }
        Err(format!("replica {} is not a member", message.from))
    }

    /// The members, if they changed since this was last called.
    pub(crate) fn take_changed_members(&mut self) -> Option<Members> {
        std::mem::take(&mut self.members_changed).then(|| self.members())
    }

    /// The members as applied here.
    pub(crate) fn members(&self) -> Members {
        Members::new(&self.raw.store().members, &self.state.nodes)
    }
}

/// Puts the members that `state` holds into a checkpoint.
pub(super) fn describe_members(state: &ReplicaState, checkpoint: &mut ReplicaCheckpoint) {
    checkpoint.members.clone_from(&state.members);
    checkpoint.nodes.clone_from(&state.nodes);
    checkpoint.members_index = state.members_index;
    checkpoint.highest_replica_id = state.highest_replica_id;
}

/// The reverse, all but the members themselves.
pub(super) fn take_from_checkpoint(checkpoint: &ReplicaCheckpoint, state: &mut ReplicaState) {
    if !checkpoint.nodes.is_empty() {
        // One from before members could change has none, and then those known here are right.
        state.nodes.clone_from(&checkpoint.nodes);
    }
    state.members_index = checkpoint.members_index;
    let known = state.nodes.keys().copied().fold(checkpoint.highest_replica_id, u64::max);
    state.highest_replica_id = state.highest_replica_id.max(known);
}
