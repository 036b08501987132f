//! Reads sealed segments again and again, slowly, so that rot is found while other replicas are still whole.
//!
//! Owns: the pace, and whom it tells. Never: repairs; a replica that is told of damage goes out of service, and the layer
//! above has it repaired.

use std::time::Duration;

use highwater_storage::{ScrubStep, StorageError};

use super::background::Stopping;
use super::handle::PartitionHandle;
use crate::metrics::Metrics;

/// Read at once.
const STEP_BYTES: u64 = 256 << 10;
/// Pause after a round in which there was next to nothing to read.
const IDLE_PAUSE: Duration = Duration::from_secs(1);

/// The thread's body. `replicas` lists what is in service, `None` once there is no engine any more.
pub(super) fn run(
    bytes_per_s: u64,
    metrics: &Metrics,
    replicas: impl Fn() -> Option<Vec<PartitionHandle>>,
    stopping: Stopping,
) {
    let pace = Pace { bytes_per_s, stopping };
    while let Some(replicas) = replicas() {
        for replica in replicas {
            if scrub(&replica, &pace, metrics).is_none() {
                return;
            }
        }
        if pace.stopping.within(IDLE_PAUSE) {
            return;
        }
    }
}

struct Pace {
    bytes_per_s: u64,
    stopping: Stopping,
}

/// One round over one replica; `None` if the thread should end.
fn scrub(replica: &PartitionHandle, pace: &Pace, metrics: &Metrics) -> Option<()> {
    let reader = &replica.shared.reader;
    scrub_part(replica, pace, metrics, |from| reader.compacted.scrub(from, STEP_BYTES))?;
    scrub_part(replica, pace, metrics, |from| reader.log.scrub(from, STEP_BYTES))
}

/// One round over what is above, or below, the seam.
fn scrub_part(
    replica: &PartitionHandle,
    pace: &Pace,
    metrics: &Metrics,
    read: impl Fn(u64) -> Result<ScrubStep, StorageError>,
) -> Option<()> {
    let group = replica.shared.group;
    let mut next = Some(0);
    while let Some(from) = next {
        if replica.quarantined().is_some() {
            return Some(());
        }
        let step = match read(from) {
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
            if pace.stopping.within(Duration::from_nanos(nanos)) {
                return None;
            }
        }
    }
    Some(())
}
