//! What tests look at, and the bugs that the simulation plants. Not part of the broker.
//!
//! Owns: nothing. Never: compiled into anything but tests.

use super::{Core, Derived, Producers};

impl Core {
    /// Index of the last committed entry here.
    pub(crate) fn committed(&self) -> u64 {
        self.committed
    }

    /// Producers as this replica remembers them, to compare replicas.
    pub(crate) fn producers(&self) -> Option<&Producers> {
        match &self.derived {
            Derived::Partition(producers) => Some(producers),
            Derived::Machine(_) => None,
        }
    }

    /// The last entry that this replica says is durable.
    pub(crate) fn durable_index(&self) -> u64 {
        self.log.durable_index()
    }

    /// A bug: whoever asks next gets a vote of the same term.
    pub(crate) fn forget_vote(&mut self) {
        self.raw.raft.vote = 0;
    }

    /// A bug, if these are not what the log says.
    pub(crate) fn set_producers(&mut self, producers: Producers) {
        self.derived = Derived::Partition(producers);
    }
}
