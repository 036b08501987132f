//! What lies between a subscription's driver and the service that reads: chunks of batches, places, and the bytes bound.
//!
//! Owns: the shared state of the two sides. Never: streams or decoding.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::error::ConsumeError;
use crate::types::Start;

/// What the driver hands over, in order for each partition.
#[derive(Debug)]
pub(crate) enum Item {
    Chunk(Chunk),
    /// Something about a partition; `ends` says that nothing follows until a seek.
    Trouble {
        partition: u32,
        generation: u64,
        ends: bool,
        error: ConsumeError,
    },
}

/// Batches of one partition that arrived together.
#[derive(Debug)]
pub(crate) struct Chunk {
    pub(crate) partition: u32,
    /// How many seeks the partition had seen when they were asked for.
    pub(crate) generation: u64,
    /// Records before this offset are not wanted: a batch may begin before the place asked for.
    pub(crate) from: i64,
    /// The offset behind the last record.
    pub(crate) next_offset: i64,
    pub(crate) batches: Vec<Bytes>,
    pub(crate) held: Held,
}

/// Bytes that wait here to be taken. Gives them back to the bound when dropped.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) bytes: u64,
    account: Arc<Account>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.account.release(self.bytes);
    }
}

/// The bytes bound: what is held here, and what has been given back since the driver last looked.
#[derive(Debug)]
pub(crate) struct Account {
    held: AtomicU64,
    given_back: AtomicU64,
    /// The driver wants to know when this much has been given back.
    tell_at: AtomicU64,
    pub(crate) wake: Notify,
}

impl Account {
    pub(crate) fn new() -> Self {
        Self {
            held: AtomicU64::new(0),
            given_back: AtomicU64::new(0),
            tell_at: AtomicU64::new(1),
            wake: Notify::new(),
        }
    }

    /// Counts bytes that have arrived.
    pub(crate) fn hold(self: &Arc<Self>, bytes: u64) -> Held {
        self.held.fetch_add(bytes, Ordering::AcqRel);
        Held { bytes, account: self.clone() }
    }

    /// Whether anything waits here to be taken.
    pub(crate) fn is_holding(&self) -> bool {
        self.held.load(Ordering::Acquire) > 0
    }

    fn release(&self, bytes: u64) {
        self.held.fetch_sub(bytes, Ordering::AcqRel);
        let given_back = self.given_back.fetch_add(bytes, Ordering::AcqRel) + bytes;
        if given_back >= self.tell_at.load(Ordering::Acquire) {
            self.wake.notify_one();
        }
    }

    /// Bytes held now; what was given back counts from zero again, and the driver is told at `tell_at`.
    pub(crate) fn look(&self, tell_at: u64) -> u64 {
        self.tell_at.store(tell_at.max(1), Ordering::Release);
        self.given_back.store(0, Ordering::Release);
        self.held.load(Ordering::Acquire)
    }
}

/// Where a partition's reader stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    /// The next offset to be given to the service.
    pub(crate) position: Option<i64>,
    pub(crate) high_watermark: Option<i64>,
    /// Counts seeks.
    pub(crate) generation: u64,
    /// The service has been told that nothing follows.
    pub(crate) ended: bool,
}

/// Places by partition.
pub(crate) type Places = Arc<Mutex<BTreeMap<u32, Place>>>;

/// What is asked of the driver.
#[derive(Debug)]
pub(crate) enum Order {
    /// Continue somewhere else. A member of a group also begins a partition with this.
    Seek(Seek),
    /// Read a partition no more.
    Stop(u32),
}

/// Where a partition goes on.
#[derive(Debug)]
pub(crate) struct Seek {
    pub(crate) partition: u32,
    pub(crate) to: Start,
    pub(crate) generation: u64,
    /// The id of the topic, where the coordinator of a group says it.
    pub(crate) topic_id: Option<Arc<str>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_driver_is_told_when_enough_was_given_back_and_not_before() {
        let account = Arc::new(Account::new());
        let (one, two) = (account.hold(60), account.hold(60));
        assert_eq!(account.look(100), 120);
        drop(one);
        assert_eq!(account.given_back.load(Ordering::Acquire), 60);
        let mut woken = Box::pin(account.wake.notified());
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(woken.as_mut().poll(&mut context).is_pending());
        drop(two);
        assert!(woken.as_mut().poll(&mut context).is_ready());
        assert_eq!(account.look(1), 0);
    }
}
