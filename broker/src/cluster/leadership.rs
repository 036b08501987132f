//! Who leads which group, as far as this node knows: from its own replicas, and from what leaders tell.
//!
//! Owns: that knowledge. Never: decides who leads.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use highwater_proto::internal::LeaderStatus;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{GroupId, NodeId};

#[derive(Debug, Default)]
struct Known {
    /// Leader and term; leader 0 where the latest term has none yet.
    leaders: BTreeMap<GroupId, (NodeId, u64)>,
    /// Won by this node since the last call of [`Leadership::take_won`].
    won: Vec<LeaderStatus>,
}

/// Leaders by group; shared between worker threads and tasks.
#[derive(Debug, Default)]
pub(crate) struct Leadership {
    own: AtomicU64,
    known: Mutex<Known>,
    /// Something changed.
    pub(crate) changed: Notify,
}

impl Leadership {
    pub(crate) fn new(own: NodeId) -> Self {
        Self { own: AtomicU64::new(own), ..Self::default() }
    }

    /// The node has an id now. Before it leads anything.
    pub(crate) fn set_own(&self, own: NodeId) {
        self.own.store(own, Ordering::Release);
    }

    fn is_own(&self, leader: NodeId) -> bool {
        leader == self.own.load(Ordering::Acquire)
    }

    /// A replica on this node, or the leader itself, says so. Older terms are ignored.
    pub(crate) fn learn(&self, group: GroupId, leader: NodeId, term: u64) {
        let mut known = self.known.lock();
        let entry = known.leaders.entry(group).or_insert((0, 0));
        let is_news = term > entry.1 || (term == entry.1 && *entry != (leader, term));
        // Within a term a leader once known is not forgotten because one replica has not heard of it yet.
        if !is_news || (term == entry.1 && leader == 0 && !self.is_own(entry.0)) {
            return;
        }
        *entry = (leader, term);
        if self.is_own(leader) {
            known.won.push(LeaderStatus { group_id: group, term });
        }
        drop(known);
        self.changed.notify_one();
    }

    /// A replica left this node; what it knew may be stale.
    pub(crate) fn forget(&self, group: GroupId) {
        self.known.lock().leaders.remove(&group);
        self.changed.notify_one();
    }

    /// Groups with a known leader.
    pub(crate) fn leaders(&self) -> BTreeMap<GroupId, (NodeId, u64)> {
        let known = self.known.lock();
        known.leaders.iter().filter(|(_, (id, _))| *id != 0).map(|(g, l)| (*g, *l)).collect()
    }

    /// What this node leads.
    pub(crate) fn own(&self) -> Vec<LeaderStatus> {
        let known = self.known.lock();
        let own = known.leaders.iter().filter(|(_, (leader, _))| self.is_own(*leader));
        own.map(|(group, (_, term))| LeaderStatus { group_id: *group, term: *term }).collect()
    }

    pub(crate) fn take_won(&self) -> Vec<LeaderStatus> {
        std::mem::take(&mut self.known.lock().won)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn older_terms_do_not_replace_newer_ones() {
        let leadership = Leadership::new(1);
        leadership.learn(7, 2, 5);
        leadership.learn(7, 3, 4);
        assert_eq!(leadership.leaders()[&7], (2, 5));
        leadership.learn(7, 0, 6);
        assert!(!leadership.leaders().contains_key(&7));
        leadership.learn(7, 1, 6);
        assert_eq!(leadership.own(), [LeaderStatus { group_id: 7, term: 6 }]);
        assert_eq!(leadership.take_won().len(), 1);
    }
}
