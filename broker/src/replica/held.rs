//! Messages that say nothing but how far a group is committed, kept back for a moment.
//!
//! Owns: which of them wait, and since when. While records keep coming, the next entries say the same, so each record costs a
//! leader and its followers one round of messages instead of two. Never: keeps back what somebody waits for; a follower that
//! learns a little later what is committed only shows it a little later.

use std::collections::BTreeMap;
use std::time::Duration;

use raft::eraftpb::MessageType;

use super::core::Outbound;

/// How long a commit is kept back at the most.
const HOLD: Duration = Duration::from_millis(10);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// The latest one by group and replica.
    messages: BTreeMap<(u64, u64), Outbound>,
    /// When the first of them came; `None` if there are none.
    since: Option<Duration>,
}

impl Held {
    /// Answers with the message if it goes out now.
    pub(super) fn pass(
        &mut self,
        group: u64,
        outbound: Outbound,
        now: Duration,
    ) -> Option<Outbound> {
        let message = &outbound.message;
        if message.get_msg_type() != MessageType::MsgAppend {
            return Some(outbound);
        }
        let key = (group, message.to);
        if outbound.wants_appended || !message.entries.is_empty() {
            // It carries a commit too, and no older one.
            self.messages.remove(&key);
            return Some(outbound);
        }
        self.messages.insert(key, outbound);
        self.since.get_or_insert(now);
        None
    }

    /// When those that wait are to go out.
    pub(super) fn due_at(&self) -> Option<Duration> {
        self.since.map(|since| since + HOLD)
    }

    /// Those that have waited long enough, with their groups.
    pub(super) fn take_due(&mut self, now: Duration) -> Vec<(u64, Outbound)> {
        if self.due_at().is_none_or(|due_at| due_at > now) {
            return Vec::new();
        }
        self.since = None;
        let due = std::mem::take(&mut self.messages);
        due.into_iter().map(|((group, _), outbound)| (group, outbound)).collect()
    }
}

#[cfg(test)]
mod tests {
    use raft::eraftpb::{Entry, Message};

    use super::*;

    fn append(to: u64, commit: u64, entries: usize) -> Outbound {
        let mut message = Message { to, commit, ..Message::default() };
        message.set_msg_type(MessageType::MsgAppend);
        message.entries = vec![Entry::default(); entries].into();
        Outbound { message, wants_appended: false }
    }

    fn commits(outbound: impl IntoIterator<Item = (u64, Outbound)>) -> Vec<(u64, u64, u64)> {
        let commit = |(group, sent): (u64, Outbound)| (group, sent.message.to, sent.message.commit);
        outbound.into_iter().map(commit).collect()
    }

    #[test]
    fn a_commit_goes_with_the_next_entries_or_by_itself_after_a_moment() {
        let mut held = Held::default();
        assert!(held.pass(1, append(2, 5, 0), Duration::ZERO).is_none());
        assert!(held.pass(1, append(3, 5, 0), Duration::ZERO).is_none());
        assert!(held.pass(9, append(2, 70, 0), Duration::ZERO).is_none(), "another group");
        assert!(held.pass(1, append(2, 5, 1), Duration::ZERO).is_some(), "entries go at once");
        assert!(held.pass(1, append(3, 6, 0), HOLD / 2).is_none());
        assert!(held.take_due(HOLD / 2).is_empty());
        assert_eq!(commits(held.take_due(HOLD)), [(1, 3, 6), (9, 2, 70)], "the latest of each");
        assert_eq!(held.due_at(), None);
    }

    #[test]
    fn whatever_somebody_waits_for_goes_at_once() {
        let mut held = Held::default();
        let mut heartbeat = Message::default();
        heartbeat.set_msg_type(MessageType::MsgHeartbeat);
        let heartbeat = Outbound { message: heartbeat, wants_appended: false };
        assert!(held.pass(1, heartbeat, Duration::ZERO).is_some());
        let wanted = Outbound { wants_appended: true, ..append(2, 5, 0) };
        assert!(held.pass(1, wanted, Duration::ZERO).is_some());
        assert!(held.take_due(HOLD).is_empty());
    }
}
