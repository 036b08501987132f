//! Reads sealed segments again and again, slowly, so that rot is found while other replicas are still whole.
//!
//! Owns: the pace, and whom it tells. Never: repairs; a replica that is told of damage goes out of service, and the layer
//! above has it repaired.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::handle::PartitionHandle;
use crate::env;
use crate::metrics::Metrics;

/// Read at once.
const STEP_BYTES: u64 = 256 << 10;
/// Pause after a round in which there was next to nothing to read.
const IDLE_PAUSE: Duration = Duration::from_secs(1);

/// The thread, and how to end it.
#[derive(Debug, Default)]
pub(super) struct Scrubber {
    stopping: Arc<(Mutex<bool>, Condvar)>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Scrubber {
    /// Starts the thread. `replicas` lists what is in service, `None` once there is no engine any more.
    pub(super) fn start(
        &self,
        bytes_per_s: u64,
        metrics: Arc<Metrics>,
        replicas: impl Fn() -> Option<Vec<PartitionHandle>> + Send + 'static,
    ) -> std::io::Result<()> {
        let pace = Pace { bytes_per_s, stopping: Arc::clone(&self.stopping) };
        let thread = env::spawn_thread("scrub", move || {
            while let Some(replicas) = replicas() {
                for replica in replicas {
                    if scrub(&replica, &pace, &metrics).is_none() {
                        return;
                    }
                }
                if pace.stops_within(IDLE_PAUSE) {
                    return;
                }
            }
        })?;
        *self.thread.lock() = Some(thread);
        Ok(())
    }

    /// Ends the thread within a step.
    pub(super) fn stop(&self) {
        *self.stopping.0.lock() = true;
        self.stopping.1.notify_all();
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the scrub thread panicked");
        }
    }
}

struct Pace {
    bytes_per_s: u64,
    stopping: Arc<(Mutex<bool>, Condvar)>,
}

impl Pace {
    /// Waits; true if the thread should end.
    fn stops_within(&self, pause: Duration) -> bool {
        let mut stopping = self.stopping.0.lock();
        if !*stopping {
            self.stopping.1.wait_for(&mut stopping, pause);
        }
        *stopping
    }
}

/// One round over one replica; `None` if the thread should end.
fn scrub(replica: &PartitionHandle, pace: &Pace, metrics: &Metrics) -> Option<()> {
    let (group, reader) = (replica.shared.group, &replica.shared.reader.log);
    let mut next = Some(0);
    while let Some(from) = next {
        if replica.quarantined().is_some() {
            return Some(());
        }
        let step = match reader.scrub(from, STEP_BYTES) {
            Ok(step) => step,
            Err(error) => {
                tracing::warn!(group, %error, "a segment could not be read to look for damage");
                return Some(());
            }
        };
        metrics.scrubbed(step.bytes, step.findings.len() as u64);
        if let Some(found) = step.findings.first() {
            let path = found.path.display();
            replica
                .damaged(format!("{path} is corrupt at index {}: {}", found.index, found.detail));
            return Some(());
        }
        next = step.next_index;
        if step.bytes > 0 {
            let nanos = step.bytes.saturating_mul(1_000_000_000) / pace.bytes_per_s.max(1);
            if pace.stops_within(Duration::from_nanos(nanos)) {
                return None;
            }
        }
    }
    Some(())
}
