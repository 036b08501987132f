//! Users who ask where the partition ends, of anybody who believes to lead it.
//!
//! Owns: the questions that are on their way, and what had been acknowledged before each. Never: an answer's way through the replicas.

use std::collections::BTreeMap;

use rand::Rng;

use super::World;
use super::machine::Machine;
use super::plan::Kind;
use crate::error::BrokerError;
use crate::replica::core::{Answer, Visible};

/// Tokens of questions, from here on.
const END_TOKENS: u64 = 1 << 61;

/// A question that has not been answered.
#[derive(Debug)]
struct Question {
    node: u64,
    /// Which start of its process it is.
    boots: u64,
    /// End of what had been acknowledged when it was asked.
    acknowledged: u64,
}

#[derive(Debug, Default)]
pub(super) struct Ends {
    open: BTreeMap<u64, Question>,
    asked: u64,
    next_at: u64,
}

impl Ends {
    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }
}

impl World {
    /// Asks somebody, if it is time: mostly one of those who believe that they lead, be it rightly or not.
    pub(super) fn ask_for_ends(&mut self) {
        let Self { ends, machines, .. } = self;
        ends.open.retain(|_, question| {
            // With its process the connection ends, too.
            let machine = &machines[&question.node];
            machine.running.is_some() && machine.boots == question.boots
        });
        if self.ends.next_at > self.now || self.clients.quiet {
            return;
        }
        self.ends.next_at = self.now + self.random.random_range(5..80);
        if self.setting.kind == Kind::Machine {
            return;
        }
        let asks_anybody = self.random.random_range(0..10) == 0;
        let takes =
            |machine: &&Machine| machine.running.is_some() && (asks_anybody || machine.leads());
        let able: Vec<u64> = self.machines.values().filter(takes).map(|m| m.node).collect();
        if able.is_empty() {
            return;
        }
        let node = able[self.random.random_range(0..able.len())];
        let acknowledged = self.oracle.acknowledged_end();
        let boots = self.machines[&node].boots;
        // Often several at once.
        for _ in 0..self.random.random_range(1..4) {
            let token = END_TOKENS + self.ends.asked;
            self.ends.asked += 1;
            self.ends.open.insert(token, Question { node, boots, acknowledged });
            let machine = self.machine(node);
            machine.questions.push(token);
            let sleeps = machine.leads()
                && machine.running.as_ref().is_some_and(|running| running.core.is_asleep());
            self.tally.count("ends asked for");
            if sleeps {
                self.tally.count("ends asked of sleeping leaders");
            }
        }
    }

    /// Whether an answer was one to such a question; the oracle judges it.
    pub(super) fn told_end(&mut self, token: u64, answer: &Result<Answer, BrokerError>) -> bool {
        let Some(question) = self.ends.open.remove(&token) else { return false };
        let Question { node, acknowledged, .. } = question;
        match answer {
            Ok(Answer::Leads(Visible { high_watermark, .. })) => {
                self.oracle.told_end(node, *high_watermark, acknowledged);
                self.note(format_args!("{node} ends at {high_watermark}, acked {acknowledged}"));
                self.tally.count("ends told");
            }
            Ok(other) => panic!("{other:?} answers where the partition ends"),
            Err(error) => {
                let reason = error.reason();
                self.note(format_args!("{node} does not say where it ends: {reason}"));
                self.tally.count("ends not told: not the leader, or lost the leadership");
            }
        }
        true
    }
}
