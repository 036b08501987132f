//! The queue in front of a worker thread.
//!
//! Owns: what can be asked of a worker, and the bound on Raft traffic that waits for it. Never: does any of it.

use std::time::Duration;

use highwater_proto::internal::{AppendedAck, Quiesce};
use highwater_storage::StagedCompaction;
use parking_lot::{Condvar, Mutex};
use raft::eraftpb::Message;
use tokio::sync::oneshot;

use super::core::{Answer, ProposalBody};
use super::engine::PartitionSettings;
use super::syncer::Synced;
use super::worker::Replica;
use crate::error::BrokerError;

/// Payload bytes of Raft messages that may wait in an inbox. Beyond it messages are dropped: raft sends them again.
const MESSAGE_BYTES_MAX: usize = 128 << 20;

/// Something for a worker to do.
#[derive(Debug)]
pub(crate) enum Input {
    /// A message from a replica on this node.
    Step { group: u64, node: u64, message: Message, wants_appended: bool },
    /// A follower has appended, not yet synced.
    PeerAppended {
        /// The node it came from.
        node: u64,
        /// What it says.
        ack: AppendedAck,
    },
    /// What a replica says about sleeping.
    Quiesce {
        /// The node it came from.
        node: u64,
        /// What it says.
        heard: Quiesce,
    },
    /// Something to append.
    Propose { group: u64, body: ProposalBody, answer: oneshot::Sender<Result<Answer, BrokerError>> },
    /// Prove that this replica leads; answered with what it sees then.
    Prove { group: u64, answer: oneshot::Sender<Result<Answer, BrokerError>> },
    /// The syncer has made these durable.
    Synced(Vec<Synced>),
    /// Drive this replica from now on.
    Add(Box<Replica>),
    /// Its log was found to be damaged.
    Damaged { group: u64, why: String },
    /// Stop driving a replica; answered when nothing of it is in use any more.
    Remove { group: u64, done: oneshot::Sender<()> },
    /// Other settings.
    Configure { group: u64, settings: PartitionSettings },
    /// A new compacted part is staged: put it into place; answered with whether it was.
    Compacted { group: u64, staged: StagedCompaction, done: oneshot::Sender<bool> },
    /// The files of a snapshot are here, or could not be had.
    Received { group: u64, message: Message, staged: Result<StagedCompaction, String> },
    /// Hand over leadership; answered with the replica chosen.
    Transfer { group: u64, to: Option<u64>, answer: oneshot::Sender<Option<u64>> },
    /// Nothing sent to this node arrives.
    Unreachable { node: u64 },
    /// The connection to this node broke.
    Broke { node: u64 },
    /// End the thread.
    Stop,
}

#[derive(Debug, Default)]
struct Waiting {
    inputs: Vec<Input>,
    message_bytes: usize,
    /// The worker has ended: whoever asks is told so by the answer's sender being dropped.
    closed: bool,
}

/// A queue with one consumer that always takes everything at once.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    waiting: Mutex<Waiting>,
    arrived: Condvar,
}

impl Inbox {
    /// Adds an input. Proposals are bounded by their callers' in-flight limits.
    pub(crate) fn push(&self, input: Input) {
        let mut waiting = self.waiting.lock();
        if waiting.closed {
            return;
        }
        waiting.inputs.push(input);
        if waiting.inputs.len() == 1 {
            self.arrived.notify_one();
        }
    }

    /// Adds messages from a peer as far as they fit; answers how many were dropped.
    pub(crate) fn push_messages(&self, inputs: impl IntoIterator<Item = Input>) -> usize {
        let mut waiting = self.waiting.lock();
        if waiting.closed {
            return 0;
        }
        let was_empty = waiting.inputs.is_empty();
        let mut dropped = 0;
        for input in inputs {
            if let Input::Step { message, .. } = &input {
                let bytes: usize = message.entries.iter().map(|entry| entry.data.len()).sum();
                if waiting.message_bytes + bytes > MESSAGE_BYTES_MAX {
                    dropped += 1;
                    continue;
                }
                waiting.message_bytes += bytes;
            }
            waiting.inputs.push(input);
        }
        if was_empty && !waiting.inputs.is_empty() {
            self.arrived.notify_one();
        }
        dropped
    }

    /// Nobody takes anything any more.
    pub(crate) fn close(&self) {
        let mut waiting = self.waiting.lock();
        waiting.closed = true;
        waiting.inputs.clear();
    }

    /// Takes everything, waiting for something for up to `timeout`.
    pub(crate) fn take(&self, timeout: Duration, into: &mut Vec<Input>) {
        let mut waiting = self.waiting.lock();
        if waiting.inputs.is_empty() {
            self.arrived.wait_for(&mut waiting, timeout);
        }
        waiting.message_bytes = 0;
        std::mem::swap(&mut waiting.inputs, into);
    }
}
