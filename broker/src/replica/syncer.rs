//! What makes appends durable: group commit without a timer.
//!
//! Owns: the order journal, then logs, then checkpoints, and the thread that does it. While one sync runs, the next group gathers.
//! Whoever has little to sync while nothing else is synced does it without the thread. Never: retries a failed
//! sync; the node stops instead, since pages that failed to reach the disk may be marked clean.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use highwater_proto::internal::ReplicaCheckpoint;
use highwater_storage::{HardStateJournal, LogReader, SyncPoint, sync_group};
use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use super::checkpoint::SmallFiles;
use super::inbox::{Inbox, Input, Stay};
use crate::env::Clock;
use crate::metrics::Metrics;

/// A disk that takes longer than this keeps only its own thread waiting.
const SYNC_HERE_MAX: Duration = Duration::from_millis(2);

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
    /// A sync is running, on whatever thread. There is never a second one.
    running: bool,
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

/// What one burst of a worker wants made durable.
#[derive(Debug, Default)]
pub(crate) struct SyncRequest {
    pub(crate) points: Vec<Synced>,
    /// Hard states were put into the journal.
    pub(crate) journal: bool,
    pub(crate) checkpoints: Vec<(SmallFiles, LogReader, ReplicaCheckpoint)>,
}

/// What waits for the disk, and the means to sync it.
pub(crate) struct Syncer {
    gathered: Mutex<Gathered>,
    arrived: Condvar,
    /// How long syncs take of late.
    recent: Mutex<Duration>,
    journal: Arc<Mutex<HardStateJournal>>,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    /// Called once, with the reason, when the node must stop.
    fatal: Arc<dyn Fn(String) + Send + Sync>,
}

impl Syncer {
    pub(crate) fn new(
        journal: Arc<Mutex<HardStateJournal>>,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
        fatal: Arc<dyn Fn(String) + Send + Sync>,
    ) -> Self {
        let (gathered, arrived, recent) = Default::default();
        Self { gathered, arrived, recent, journal, clock, metrics, fatal }
    }

    /// Has the syncer's thread make these durable.
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

    /// Lets a thread that has little to sync do it itself, which spares two hand-overs: true if nothing else is synced or waits
    /// to be, and the disk answers quickly. [`Self::sync_here`] must follow.
    pub(crate) fn begin_here(&self) -> bool {
        let mut gathered = self.gathered.lock();
        if gathered.running || !gathered.is_empty() || *self.recent.lock() > SYNC_HERE_MAX {
            return false;
        }
        gathered.running = true;
        true
    }

    /// Makes these durable on the thread that calls. False if the node must stop.
    pub(crate) fn sync_here(&self, points: &[Synced]) -> bool {
        if !self.try_sync(false, points) {
            return false;
        }
        self.rest();
        true
    }

    /// The thread: runs until stopped or until a sync fails.
    pub(crate) fn run(&self, inbox: &Inbox) {
        loop {
            let gathered = self.take();
            let point = |(group, (number, point))| Synced { group, number, point };
            let synced: Vec<Synced> = gathered.points.into_iter().map(point).collect();
            if !self.try_sync(gathered.journal, &synced) {
                return;
            }
            inbox.push_and_work(Input::Synced(synced), Stay::Never);
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
            self.rest();
        }
    }

    fn take(&self) -> Gathered {
        let mut gathered = self.gathered.lock();
        while gathered.is_empty() || gathered.running {
            self.arrived.wait(&mut gathered);
        }
        std::mem::replace(&mut gathered, Gathered { running: true, ..Gathered::default() })
    }

    /// No sync is running any more.
    fn rest(&self) {
        let mut gathered = self.gathered.lock();
        gathered.running = false;
        if !gathered.is_empty() {
            self.arrived.notify_one();
        }
    }

    /// False if the node must stop. What runs then is never said to have ended: nothing is synced any more.
    fn try_sync(&self, journal: bool, points: &[Synced]) -> bool {
        let Err(error) = self.sync(journal, points) else { return true };
        // The error page says why this is not retried: RELIABILITY, "fsyncgate".
        (self.fatal)(format!(
            "a sync failed ({error}); nothing more is acknowledged. Replace or repair the disk, then start again"
        ));
        false
    }

    fn sync(&self, journal: bool, points: &[Synced]) -> std::io::Result<()> {
        if journal {
            // A term must be durable no later than the entries of that term.
            let point = self.journal.lock().sync_point();
            point.sync()?;
        }
        if points.is_empty() {
            return Ok(());
        }
        let started = self.clock.monotonic();
        let points: Vec<SyncPoint> = points.iter().map(|synced| synced.point.clone()).collect();
        sync_group(&points)?;
        let took = self.clock.monotonic() - started;
        self.metrics.sync_done(took.as_secs_f64(), points.len());
        let mut recent = self.recent.lock();
        // A slow one is remembered for some time.
        *recent = took.max(*recent - *recent / 8);
        Ok(())
    }
}
