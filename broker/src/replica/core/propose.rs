//! Taking proposals: deduplication, room, offsets, and who waits for what.
//!
//! Owns: how a burst of proposals becomes one step of raft. Never: appends; that is Ready's part.

use bytes::Bytes;
use highwater_proto::batch::BatchHeader;
use highwater_proto::internal::AdvanceLogStart;
use highwater_proto::v1::Acks;
use prost::Message as _;
use raft::eraftpb::{Entry, EntryType, Message, MessageType};

use super::ready::RoomFor;
use super::waiters::Waiter;
use super::{
    Answer, Appended, COMMAND_BYTES_MAX, Core, Derived, Effects, Proposal, ProposalBody,
    Quarantine, UNCOMMITTED_BYTES_MAX,
};
use crate::error::BrokerError;
use crate::replica::envelope::{EntryKind, Envelope};
use crate::replica::producers::Produced;

impl Core {
    /// Appends what is proposed, in order, and answers each in its time. `now_ms` is the wall clock.
    pub(crate) fn propose(&mut self, proposals: Vec<Proposal>, now_ms: i64, effects: &mut Effects) {
        if let Some(refusal) = self.refusal() {
            for proposal in proposals {
                effects.answers.push((proposal.token, Err(refusal())));
            }
            return;
        }
        self.wake(effects);
        debug_assert_eq!(self.raw.raft.raft_log.last_index(), self.log.last_index());
        let mut draft = Draft {
            entries: Vec::with_capacity(proposals.len()),
            waiters: Vec::with_capacity(proposals.len()),
            next_index: self.log.last_index() + 1,
            next_offset: self.log.next_offset(),
            append_time_ms: now_ms.max(self.append_time_ms),
            bytes: 0,
            has_batches: false,
        };
        // What is handed over at once fits a segment: then whether there is room for it is known before raft takes it.
        let draft_bytes_max = self.log.segment_bytes() / 2;
        let mut proposals = proposals.into_iter();
        for proposal in proposals.by_ref() {
            let token = proposal.token;
            if let Err(error) = self.draft(proposal, &mut draft, effects) {
                effects.answers.push((token, Err(error)));
            }
            if draft.bytes >= draft_bytes_max {
                let full = draft.split();
                if let Err(refused) = self.commit_draft(full, effects) {
                    // They may repeat, or follow, what was refused.
                    for proposal in proposals {
                        effects.answers.push((proposal.token, Err(self.refused(refused))));
                    }
                    break;
                }
            }
        }
        // What is left after a refusal is empty.
        let _ = self.commit_draft(draft, effects);
        if let Derived::Partition(producers) = &mut self.derived {
            producers.unstage();
        }
    }

    /// Why proposals cannot be taken now, if they cannot.
    fn refusal(&self) -> Option<Box<dyn Fn() -> BrokerError + '_>> {
        if let Some(Quarantine { why, .. }) = &self.broken {
            return Some(Box::new(move || BrokerError::Quarantined { why: why.clone() }));
        }
        if !self.is_leader() || self.raw.raft.lead_transferee.is_some() {
            return Some(Box::new(|| BrokerError::NotLeader { leader: self.leader_node() }));
        }
        None
    }

    /// Turns one proposal into an entry of the draft, or answers it where nothing needs to be appended.
    fn draft(
        &mut self,
        proposal: Proposal,
        draft: &mut Draft,
        effects: &mut Effects,
    ) -> Result<(), BrokerError> {
        let token = proposal.token;
        let (kind, data, acks) = match proposal.body {
            ProposalBody::Batch { only_in: Some(term), .. } if term != self.raw.raft.term => {
                return Err(BrokerError::NotLeader { leader: self.leader_node() });
            }
            ProposalBody::Batch { batch, header, acks, only_in: _ } => {
                if self.answer_duplicate(token, &header, acks, draft, effects)? {
                    return Ok(());
                }
                if !self.reserve.is_whole() {
                    return Err(BrokerError::DiskFull);
                }
                draft.check_room(batch.len() as u64, self.raw.raft.uncommitted_size() as u64)?;
                self.stage(&header, draft);
                draft.push(EntryKind::Batch, batch, header.offset_span());
                let waiter = Waiter {
                    token,
                    index: draft.next_index - 1,
                    acks,
                    appended: Appended {
                        base_offset: draft.next_offset - u64::from(header.offset_span()),
                        leader_epoch: self.raw.raft.term,
                        duplicate: false,
                        append_time_ms: draft.append_time_ms,
                    },
                    applies: false,
                };
                draft.waiters.push(waiter);
                return Ok(());
            }
            ProposalBody::Command(command) if command.len() > COMMAND_BYTES_MAX => {
                return Err(BrokerError::TooLarge {
                    what: "metadata command",
                    bytes: command.len() as u64,
                    bytes_max: COMMAND_BYTES_MAX as u64,
                    setting: "fixed",
                });
            }
            ProposalBody::Command(command) => (EntryKind::Command, command, Acks::QuorumFsync),
            ProposalBody::AdvanceLogStart(offset) => {
                let entry = AdvanceLogStart { log_start_offset: offset };
                (EntryKind::AdvanceLogStart, entry.encode_to_vec().into(), Acks::QuorumFsync)
            }
            ProposalBody::Members(change) => {
                self.check_members_change(&change)?;
                if draft.entries.iter().any(|entry| entry.entry_type != EntryType::EntryNormal) {
                    return Err(BrokerError::NotReady {
                        why: "another membership change of the partition is on its way".into(),
                    });
                }
                (EntryKind::Members, change.encode_to_vec().into(), Acks::QuorumFsync)
            }
        };
        draft.check_room(data.len() as u64, self.raw.raft.uncommitted_size() as u64)?;
        draft.push(kind, data, 0);
        draft.waiters.push(Waiter {
            token,
            index: draft.next_index - 1,
            acks,
            appended: Appended {
                base_offset: draft.next_offset,
                leader_epoch: self.raw.raft.term,
                duplicate: false,
                append_time_ms: draft.append_time_ms,
            },
            applies: true,
        });
        Ok(())
    }

    fn stage(&mut self, header: &BatchHeader, draft: &Draft) {
        let term = self.raw.raft.term;
        if let Derived::Partition(producers) = &mut self.derived {
            let produced = Produced::of(
                header,
                draft.next_index,
                term,
                draft.next_offset,
                draft.append_time_ms,
            );
            producers.stage(header, produced);
        }
    }

    /// Answers a batch that is in the log (or this draft) already with the original's outcome, now or when that is known.
    fn answer_duplicate(
        &mut self,
        token: u64,
        header: &BatchHeader,
        acks: Acks,
        draft: &mut Draft,
        effects: &mut Effects,
    ) -> Result<bool, BrokerError> {
        let Derived::Partition(producers) = &self.derived else {
            return Err(BrokerError::Internal("a batch for a group that holds none".into()));
        };
        if !header.is_idempotent() {
            return Ok(false);
        }
        let Some(original) = producers.check(header)? else { return Ok(false) };
        let appended = Appended {
            base_offset: original.base_offset,
            leader_epoch: original.term,
            duplicate: true,
            append_time_ms: original.append_time_ms,
        };
        // An original of an earlier term cannot be counted towards a quorum in this one: it is answered when committed.
        let acks = if original.term == self.raw.raft.term { acks } else { Acks::QuorumFsync };
        let index = original.index;
        let waiter = Waiter { token, index, acks, appended, applies: false };
        if index > self.log.last_index() {
            // Its original is in this very draft, and shares its fate.
            draft.waiters.push(waiter);
        } else if index <= self.committed || acks == Acks::Leader {
            effects.answers.push((token, Ok(Answer::Appended(appended))));
        } else {
            self.waiters.insert(waiter);
        }
        Ok(true)
    }

    /// Hands the draft to raft in one step.
    fn commit_draft(&mut self, draft: Draft, effects: &mut Effects) -> Result<(), Refused> {
        if draft.entries.is_empty() {
            return Ok(());
        }
        let (bytes, entries) = (draft.bytes, draft.entries.len());
        if let Err(error) = self.make_room(bytes, entries, draft.room_for(), effects) {
            tracing::warn!(group = self.group, %error, "no room for proposals");
            // From now on batches are refused one by one, and what makes room, as the log's new start, gets through.
            self.reserve.release();
            return Err(self.refuse(draft.waiters, Refused::DiskFull, effects));
        }
        let last_index = draft.next_index - 1;
        let mut message = Message { from: self.replica, ..Message::default() };
        message.set_msg_type(MessageType::MsgPropose);
        message.set_entries(draft.entries.into());
        if let Err(error) = self.raw.step(message) {
            tracing::warn!(group = self.group, %error, "proposals dropped");
            return Err(self.refuse(draft.waiters, Refused::NotLeader, effects));
        }
        assert_eq!(
            self.raw.raft.raft_log.last_index(),
            last_index,
            "raft numbers proposals as they were drafted"
        );
        let (at_append, later): (Vec<_>, Vec<_>) = draft
            .waiters
            .into_iter()
            .partition(|waiter| waiter.acks == Acks::Leader && !waiter.applies);
        for waiter in later {
            self.waiters.insert(waiter);
        }
        self.settle(effects);
        // Settling has appended the entries; only then may they be acknowledged as appended.
        for waiter in at_append {
            let answer = match &self.broken {
                None => Ok(Answer::Appended(waiter.appended)),
                Some(_) => Err(BrokerError::OutcomeUnknown {
                    why: "the replica was quarantined while the batch was appended",
                }),
            };
            effects.answers.push((waiter.token, answer));
        }
        self.answer_quorum(effects);
        Ok(())
    }

    fn refuse(&self, waiters: Vec<Waiter>, why: Refused, effects: &mut Effects) -> Refused {
        for waiter in waiters {
            effects.answers.push((waiter.token, Err(self.refused(why))));
        }
        why
    }

    fn refused(&self, why: Refused) -> BrokerError {
        match why {
            Refused::DiskFull => BrokerError::DiskFull,
            Refused::NotLeader => BrokerError::NotLeader { leader: self.leader_node() },
        }
    }
}

/// Why a draft was not taken.
#[derive(Clone, Copy, Debug)]
enum Refused {
    DiskFull,
    NotLeader,
}

/// Proposals of one burst on their way into raft.
struct Draft {
    entries: Vec<Entry>,
    waiters: Vec<Waiter>,
    next_index: u64,
    next_offset: u64,
    append_time_ms: i64,
    bytes: u64,
    has_batches: bool,
}

impl Draft {
    /// Takes out what was drafted so far; what is drafted from now on follows it.
    fn split(&mut self) -> Self {
        let rest = Self {
            entries: Vec::new(),
            waiters: Vec::new(),
            bytes: 0,
            has_batches: false,
            ..*self
        };
        std::mem::replace(self, rest)
    }

    fn room_for(&self) -> RoomFor {
        if self.has_batches { RoomFor::OwnBatches } else { RoomFor::Control }
    }

    fn check_room(&self, bytes: u64, uncommitted: u64) -> Result<(), BrokerError> {
        let waiting = uncommitted + self.bytes;
        if waiting > 0 && waiting + bytes > UNCOMMITTED_BYTES_MAX {
            return Err(BrokerError::Overloaded {
                what: "uncommitted bytes of the partition",
                limit: format!("{} MiB", UNCOMMITTED_BYTES_MAX >> 20),
            });
        }
        Ok(())
    }

    fn push(&mut self, kind: EntryKind, data: Bytes, span: u32) {
        let envelope =
            Envelope { kind, append_time_ms: self.append_time_ms, base_offset: self.next_offset };
        self.has_batches |= kind == EntryKind::Batch;
        self.bytes += data.len() as u64;
        let entry_type = match kind {
            EntryKind::Members => EntryType::EntryConfChangeV2,
            _ => EntryType::EntryNormal,
        };
        let context = envelope.encode();
        self.entries.push(Entry { entry_type, data, context, ..Entry::default() });
        self.next_index += 1;
        self.next_offset += u64::from(span);
    }
}
