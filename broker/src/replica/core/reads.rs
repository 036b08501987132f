//! Proof that this replica leads, for whoever asks where the partition ends.
//!
//! A leader that was deposed and does not know it yet would answer with an end that others have long passed. So it answers only after
//! a majority has replied, in its term, to heartbeats that left after the question: whoever leads by then had not committed anything
//! before that. The raft crate's ReadIndex does the counting. What its callers have to see to is here:
//! - A leader that has not committed an entry of its own term drops the request without a word: it waits here until then.
//! - Requests are forgotten when the role changes: those who wait are told.
//! - Every request sends heartbeats to everybody: those that come while a round is on its way share the next one. If heartbeats
//!   are lost, the next regular ones repeat the question.
//!
//! Every question is answered: a leader that hears from no majority finds out within two election timeouts that it leads no more.
//!
//! Owns: who waits for which round. Never: reads anything.

use raft::ReadState;

use super::{Answer, Core, Effects};
use crate::error::BrokerError;

/// Questions that have not been answered.
#[derive(Debug, Default)]
pub(super) struct Reads {
    /// For the next round.
    waiting: Vec<u64>,
    /// On its way.
    round: Option<Round>,
    /// Answered with what holds once this Ready is handled.
    proved: Vec<u64>,
    /// Rounds so far: no two of a process have the same number, so that no reply is taken for another's.
    rounds: u64,
}

#[derive(Debug)]
struct Round {
    number: u64,
    tokens: Vec<u64>,
}

impl Reads {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.round.is_none() && self.proved.is_empty()
    }

    /// Takes note of what raft says was confirmed.
    pub(super) fn proved(&mut self, states: &[ReadState]) {
        let is_proved = |round: &Round| {
            let context = round.number.to_be_bytes();
            states.iter().any(|state| state.request_ctx == context)
        };
        if let Some(round) = self.round.take_if(|round| is_proved(round)) {
            self.proved.extend(round.tokens);
        }
    }

    fn take_all(&mut self) -> Vec<u64> {
        let mut all = std::mem::take(&mut self.proved);
        all.extend(self.round.take().into_iter().flat_map(|round| round.tokens));
        all.append(&mut self.waiting);
        all
    }
}

impl Core {
    /// Answers each of these with what this replica sees once it has proved that it still led after they were asked.
    pub(crate) fn prove_leadership(&mut self, tokens: Vec<u64>, effects: &mut Effects) {
        self.reads.waiting.extend(tokens);
        if !self.is_leader() || self.broken.is_some() {
            self.refuse_reads(effects);
            return;
        }
        self.wake(effects);
        self.settle(effects);
    }

    /// Begins a round for those who wait, if none is on its way. True if raft has something to do then.
    pub(super) fn begin_round(&mut self) -> bool {
        // A leader that is no voter would be believed without a proof if there is one voter only; it steps down when it learns of it
        // (`step_down_if_removed`).
        let may_begin = !self.reads.waiting.is_empty()
            && self.reads.round.is_none()
            && self.broken.is_none()
            && self.is_leader()
            && self.raw.raft.commit_to_current_term();
        if may_begin {
            self.reads.rounds += 1;
            let number = self.reads.rounds;
            let tokens = std::mem::take(&mut self.reads.waiting);
            self.reads.round = Some(Round { number, tokens });
            self.raw.read_index(number.to_be_bytes().to_vec());
        }
        may_begin
    }

    /// Answers those whose round has come back. The high watermark has followed the commit index by now.
    pub(super) fn answer_reads(&mut self, effects: &mut Effects) {
        if self.reads.proved.is_empty() || self.broken.is_some() {
            return;
        }
        let visible = self.visible();
        let proved = std::mem::take(&mut self.reads.proved).into_iter();
        effects.answers.extend(proved.map(|token| (token, Ok(Answer::Leads(visible)))));
    }

    /// Nothing will be proved here.
    pub(super) fn refuse_reads(&mut self, effects: &mut Effects) {
        for token in self.reads.take_all() {
            let refusal = match &self.broken {
                Some(quarantine) => BrokerError::Quarantined { why: quarantine.why.clone() },
                None => BrokerError::NotLeader { leader: self.leader_node() },
            };
            effects.answers.push((token, Err(refusal)));
        }
    }
}
