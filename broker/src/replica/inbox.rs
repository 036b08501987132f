//! The queue in front of a worker.
//!
//! Owns: what can be asked of a worker, the bound on Raft traffic that waits for it, and on whose thread it is done. Never: what
//! is done.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use highwater_proto::internal::{AppendedAck, Quiesce};
use highwater_storage::StagedCompaction;
use parking_lot::{Condvar, Mutex};
use raft::eraftpb::Message;
use tokio::sync::oneshot;

use super::core::{Answer, ProposalBody};
use super::engine::PartitionSettings;
use super::syncer::Synced;
use super::worker::{Left, Replica, Worker};
use crate::error::BrokerError;

/// Payload bytes of Raft messages that may wait in an inbox. Beyond it messages are dropped: raft sends them again.
const MESSAGE_BYTES_MAX: usize = 128 << 20;
/// Up to so many payload bytes are worked off by whoever brings them.
pub(super) const LITTLE_BYTES: usize = 64 << 10;
/// The same for inputs.
const LITTLE_INPUTS: usize = 64;

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

/// Whether who brings an input may stay to sync what comes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stay {
    /// It has other things to do.
    Never,
    /// It may wait for a quick disk.
    ForTheDisk,
}

#[derive(Debug, Default)]
struct Waiting {
    inputs: Vec<Input>,
    /// Payload of what waits.
    bytes: usize,
    /// The part of it that peers' messages carry.
    message_bytes: usize,
    /// The worker has ended: whoever asks is told so by the answer's sender being dropped.
    closed: bool,
    /// Something will be due sooner than the worker's thread thinks.
    woken: bool,
}

/// The queue in front of a worker, and the worker.
///
/// A worker has a thread, but waking a thread costs more than most of what it is asked to do. So whoever brings something small
/// and finds the worker at rest does the work on the spot. Everybody takes all that waits: the order of inputs is kept, whoever works.
#[derive(Default)]
pub(crate) struct Inbox {
    waiting: Mutex<Waiting>,
    arrived: Condvar,
    /// Held by whoever works; `None` before the start and after the end.
    worker: Mutex<Option<Worker>>,
}

impl std::fmt::Debug for Inbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inbox").field("waiting", &self.waiting).finish_non_exhaustive()
    }
}

impl Inbox {
    /// Puts the worker behind the queue.
    pub(crate) fn begin(&self, worker: Worker) {
        *self.worker.lock() = Some(worker);
    }

    /// Adds an input. Proposals are bounded by their callers' in-flight limits.
    pub(crate) fn push(&self, input: Input) {
        if self.add(input).is_first {
            self.arrived.notify_one();
        }
    }

    /// Adds an input, and does what waits here and now if it is little and nobody is at it.
    pub(crate) fn push_and_work(&self, input: Input, stay: Stay) {
        let added = self.add(input);
        self.work_or_wake(added, stay);
    }

    /// Adds messages from a peer as far as they fit, and does the same; answers how many were dropped.
    pub(crate) fn push_messages(&self, inputs: impl IntoIterator<Item = Input>) -> usize {
        let mut dropped = 0;
        let mut waiting = self.waiting.lock();
        if waiting.closed {
            return 0;
        }
        let was_empty = waiting.inputs.is_empty();
        for input in inputs {
            if matches!(input, Input::Step { .. })
                && waiting.message_bytes + input.bytes() > MESSAGE_BYTES_MAX
            {
                dropped += 1;
                continue;
            }
            waiting.add(input);
        }
        let added = waiting.added(was_empty);
        drop(waiting);
        self.work_or_wake(added, Stay::ForTheDisk);
        dropped
    }

    fn add(&self, input: Input) -> Added {
        let mut waiting = self.waiting.lock();
        if waiting.closed {
            return Added::default();
        }
        let was_empty = waiting.inputs.is_empty();
        waiting.add(input);
        waiting.added(was_empty)
    }

    /// Sees to it that somebody works. Who was not the first need not: the first has seen to it, and has not begun yet.
    fn work_or_wake(&self, added: Added, stay: Stay) {
        if !added.is_first {
            return;
        }
        match self.worker.try_lock() {
            Some(mut worker) if added.is_little => {
                let left = self.burst(&mut worker, stay, false);
                drop(worker);
                if let Left::ToSync(syncer, points) = left
                    && syncer.sync_here(&points)
                {
                    self.push_and_work(Input::Synced(points), Stay::Never);
                }
            }
            _ => {
                self.arrived.notify_one();
            }
        }
    }

    /// The worker's thread: ticks, and does what others left. Until told to stop.
    pub(crate) fn run(&self) {
        let mut timeout = Duration::ZERO;
        loop {
            self.wait(timeout);
            let mut worker = self.worker.lock();
            self.burst(&mut worker, Stay::Never, true);
            let Some(worker) = worker.as_ref() else { return };
            timeout = worker.until_due();
        }
    }

    fn burst(&self, slot: &mut Option<Worker>, stay: Stay, ticks: bool) -> Left {
        let Some(worker) = slot else { return Left::Nothing };
        // What a panic leaves behind cannot be trusted, and half a node helps nobody.
        let outcome = catch_unwind(AssertUnwindSafe(|| worker.burst(stay, ticks)));
        let left = outcome.unwrap_or_else(|_| {
            (worker.fatal)("what drives replicas panicked; this is a defect".to_owned());
            Left::Ended
        });
        if matches!(left, Left::Ended) {
            *slot = None;
            self.close();
        }
        left
    }

    /// Nobody takes anything any more.
    fn close(&self) {
        let mut waiting = self.waiting.lock();
        waiting.closed = true;
        waiting.inputs.clear();
        self.arrived.notify_one();
    }

    /// Has the worker's thread look again at what is due when.
    pub(crate) fn wake(&self) {
        self.waiting.lock().woken = true;
        self.arrived.notify_one();
    }

    /// Waits until there is something to do, or for `timeout`.
    fn wait(&self, timeout: Duration) {
        let mut waiting = self.waiting.lock();
        if waiting.inputs.is_empty() && !waiting.closed && !waiting.woken {
            self.arrived.wait_for(&mut waiting, timeout);
        }
        waiting.woken = false;
    }

    /// Takes everything.
    pub(crate) fn take(&self, into: &mut Vec<Input>) {
        let mut waiting = self.waiting.lock();
        (waiting.bytes, waiting.message_bytes) = (0, 0);
        std::mem::swap(&mut waiting.inputs, into);
    }
}

/// What the queue was like when something was added.
#[derive(Clone, Copy, Debug, Default)]
struct Added {
    /// Nothing waited.
    is_first: bool,
    /// All of it is done in less time than it takes to wake a thread.
    is_little: bool,
}

impl Waiting {
    fn add(&mut self, input: Input) {
        let bytes = input.bytes();
        self.bytes += bytes;
        if matches!(input, Input::Step { .. }) {
            self.message_bytes += bytes;
        }
        self.inputs.push(input);
    }

    fn added(&self, was_empty: bool) -> Added {
        Added {
            is_first: was_empty && !self.inputs.is_empty(),
            is_little: self.bytes <= LITTLE_BYTES && self.inputs.len() <= LITTLE_INPUTS,
        }
    }
}

impl Input {
    /// Payload that it carries.
    fn bytes(&self) -> usize {
        match self {
            Self::Step { message, .. } => {
                message.entries.iter().map(|entry| entry.data.len()).sum()
            }
            Self::Propose { body: ProposalBody::Batch { batch, .. }, .. } => batch.len(),
            _ => 0,
        }
    }
}
