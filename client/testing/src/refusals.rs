//! Errors that brokers give on command.
//!
//! Owns: which calls are refused, as what, and how often yet. Never: what a client makes of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use highwater_broker::error::BrokerError;
use highwater_broker::{Call, Screen};
use parking_lot::Mutex;

/// What a broker answers instead of doing what it is asked for: one of each kind that a service has to tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// OVERLOADED: nothing was written, and it may go well later. Clients go on trying until their deadline.
    Overloaded,
    /// DISK_FULL: the same, and it may take somebody with a shovel.
    DiskFull,
    /// OUTCOME_UNKNOWN: it may have been written (it was not), and it may go well later.
    OutcomeUnknown,
    /// TOO_LARGE: nothing was written, and trying again does not help.
    TooLarge,
    /// INTERNAL: a defect; it may have been written (it was not), and trying again does not help.
    Internal,
}

impl Refusal {
    fn error(self) -> BrokerError {
        const WHY: &str = "the test wants it so";
        match self {
            Self::Overloaded => BrokerError::Overloaded { what: WHY, limit: "none".to_owned() },
            Self::DiskFull => BrokerError::DiskFull,
            Self::OutcomeUnknown => BrokerError::OutcomeUnknown { why: WHY },
            Self::TooLarge => {
                BrokerError::TooLarge { what: "batch", bytes: 1, bytes_max: 0, setting: WHY }
            }
            Self::Internal => BrokerError::Internal(WHY.to_owned()),
        }
    }
}

#[derive(Debug)]
struct Rule {
    refusal: Refusal,
    /// `None`: until it is lifted.
    times: Option<u32>,
}

/// What all brokers of a cluster refuse.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    rules: Mutex<BTreeMap<(Call, String), Rule>>,
}

impl Refusals {
    pub(crate) fn refuse(&self, call: Call, topic: &str, refusal: Refusal, times: Option<u32>) {
        self.rules.lock().insert((call, topic.to_owned()), Rule { refusal, times });
    }

    pub(crate) fn allow(&self) {
        self.rules.lock().clear();
    }

    fn check(&self, call: Call, topic: &str) -> Result<(), BrokerError> {
        let mut rules = self.rules.lock();
        match rules.get_mut(&(call, topic.to_owned())) {
            None | Some(Rule { times: Some(0), .. }) => Ok(()),
            Some(Rule { refusal, times }) => {
                *times = times.map(|times| times - 1);
                Err(refusal.error())
            }
        }
    }

    /// As brokers take it.
    pub(crate) fn screen(self: Arc<Self>) -> Screen {
        Arc::new(move |call, topic| self.check(call, topic))
    }
}
