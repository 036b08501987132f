//! Calls that are refused on purpose, by who tests a service against a real broker.
//!
//! Owns: the words in which that is asked. Never: refuses anything by itself.

use std::sync::Arc;

use crate::error::BrokerError;

/// What a client wants of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Call {
    /// One batch is to be published; nothing of it is written when this is refused.
    Publish,
    /// Records are to be read: asked once when reading begins and before each message of a subscription.
    Read,
    /// Progress of a group is to be stored; nothing of the commit is when this is refused.
    Commit,
}

/// Asked before a call on a topic, by its name, is carried out; an error is what the client gets instead.
pub type Screen = Arc<dyn Fn(Call, &str) -> Result<(), BrokerError> + Send + Sync>;
