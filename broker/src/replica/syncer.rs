//! The thread that makes appends durable: group commit without a timer.
//!
//! Owns: the order journal, then logs, then checkpoints. While one sync runs, the next group gathers. Never: retries a failed
//! sync; the node stops instead, since pages that failed to reach the disk may be marked clean.

use std::collections::BTreeMap;
use std::sync::Arc;

use highwater_proto::internal::ReplicaCheckpoint;
use highwater_storage::{HardStateJournal, LogReader, SyncPoint, sync_group};
use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use super::checkpoint::SmallFiles;
use super::inbox::{Inbox, Input};
use crate::env::Clock;
use crate::metrics::Metrics;

/// A group up to a Ready whose state is durable.
#[derive(Debug)]
pub(crate) struct Synced {
    pub(crate) group: u64,
    pub(crate) number: u64,
    pub(crate) point: SyncPoint,
}

/// What waits for the next sync.
#[derive(Debug, Default)]
struct Gathered {
    /// By group; a later point covers an earlier one.
    points: BTreeMap<u64, (u64, SyncPoint)>,
    journal: bool,
    checkpoints: Vec<(SmallFiles, LogReader, ReplicaCheckpoint)>,
    /// Groups that are gone: nothing of them is touched any more once this is answered.
    removed: Vec<(u64, oneshot::Sender<()>)>,
    stop: bool,
}

impl Gathered {
    fn is_empty(&self) -> bool {
        self.points.is_empty()
            && !self.journal
            && self.checkpoints.is_empty()
            && self.removed.is_empty()
            && !self.stop
    }
}

/// The syncer's end of things that the worker holds.
#[derive(Debug, Default)]
pub(crate) struct SyncQueue {
    gathered: Mutex<Gathered>,
    arrived: Condvar,
}

/// What one burst of a worker wants made durable.
#[derive(Debug, Default)]
pub(crate) struct SyncRequest {
    pub(crate) points: Vec<Synced>,
    /// Hard states were put into the journal.
    pub(crate) journal: bool,
    pub(crate) checkpoints: Vec<(SmallFiles, LogReader, ReplicaCheckpoint)>,
}

impl SyncQueue {
    pub(crate) fn submit(&self, request: SyncRequest) {
        let mut gathered = self.gathered.lock();
        for synced in request.points {
            gathered.points.insert(synced.group, (synced.number, synced.point));
        }
        gathered.journal |= request.journal;
        gathered.checkpoints.extend(request.checkpoints);
        self.arrived.notify_one();
    }

    /// A replica is gone; answered when no sync of it is running or waiting.
    pub(crate) fn remove(&self, group: u64, done: oneshot::Sender<()>) {
        let mut gathered = self.gathered.lock();
        gathered.points.remove(&group);
        gathered.removed.push((group, done));
        self.arrived.notify_one();
    }

    /// Ends the thread after what has been submitted.
    pub(crate) fn stop(&self) {
        self.gathered.lock().stop = true;
        self.arrived.notify_one();
    }

    fn take(&self) -> Gathered {
        let mut gathered = self.gathered.lock();
        while gathered.is_empty() {
            self.arrived.wait(&mut gathered);
        }
        std::mem::take(&mut gathered)
    }
}

/// The thread.
pub(crate) struct Syncer {
    pub(crate) queue: Arc<SyncQueue>,
    pub(crate) journal: Arc<Mutex<HardStateJournal>>,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) metrics: Arc<Metrics>,
    /// Called once, with the reason, when the node must stop.
    pub(crate) fatal: Arc<dyn Fn(String) + Send + Sync>,
}

impl Syncer {
    /// Runs until stopped or until a sync fails.
    pub(crate) fn run(self) {
        loop {
            let gathered = self.queue.take();
            if let Err(error) = self.sync(&gathered) {
                // The error page says why this is not retried: RELIABILITY, "fsyncgate".
                (self.fatal)(format!(
                    "a sync failed ({error}); nothing more is acknowledged. Replace or repair the disk, then start again"
                ));
                return;
            }
            let synced = gathered
                .points
                .into_iter()
                .map(|(group, (number, point))| Synced { group, number, point })
                .collect();
            self.inbox.push(Input::Synced(synced));
            for (files, log, checkpoint) in &gathered.checkpoints {
                // Derived state: without it, an older one and more of the log do as well.
                if let Err(error) = files.store_checkpoint_of(log, checkpoint) {
                    tracing::warn!(%error, "a checkpoint could not be written");
                }
            }
            for (_, done) in gathered.removed {
                let _ = done.send(());
            }
            if gathered.stop {
                return;
            }
        }
    }

    fn sync(&self, gathered: &Gathered) -> std::io::Result<()> {
        if gathered.journal {
            // A term must be durable no later than the entries of that term.
            let point = self.journal.lock().sync_point();
            point.sync()?;
        }
        if gathered.points.is_empty() {
            return Ok(());
        }
        let started = self.clock.monotonic();
        let points: Vec<SyncPoint> =
            gathered.points.values().map(|(_, point)| point.clone()).collect();
        sync_group(&points)?;
        let seconds = (self.clock.monotonic() - started).as_secs_f64();
        self.metrics.sync_done(seconds, points.len());
        Ok(())
    }
}
