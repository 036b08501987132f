//! When old records may go: by age, by size, and when segments are rolled because of their age.
//!
//! Owns: the rules. The leader proposes a new start of the log; every replica unlinks after applying it. Never: unlinks.

use super::core::{Core, Effects};
use super::engine::PartitionSettings;

/// Rolls an old segment, drops what is below the start of the log already, and on the leader answers the start of the log to
/// propose, if it should move.
pub(crate) fn check(
    core: &mut Core,
    settings: &PartitionSettings,
    now_ms: i64,
    effects: &mut Effects,
) -> Option<u64> {
    if core.broken().is_some() || core.is_machine() {
        return None;
    }
    if let (Some(age), Some(since)) = (settings.segment_ms, core.log_mut().active_since_ms())
        && now_ms.saturating_sub(since) > age
        && let Err(error) = core.roll(effects)
    {
        // On a full disk what follows may make the room that this needs.
        tracing::warn!(group = core.group(), %error, "a segment could not be rolled; trying again later");
    }
    if let Err(error) = core.drop_prefix() {
        tracing::warn!(group = core.group(), %error, "old segments could not be dropped; trying again later");
    }
    let visible = core.visible();
    if !visible.is_settled {
        return None;
    }
    let segments = core.log_mut().segments();
    let sealed = &segments[..segments.len().saturating_sub(1)];
    let mut excess = match settings.retention_bytes {
        Some(bytes_max) => {
            segments.iter().map(|segment| segment.bytes).sum::<u64>().saturating_sub(bytes_max)
        }
        None => 0,
    };
    let mut start = visible.log_start_offset;
    for segment in sealed {
        let too_old = settings
            .retention_ms
            .is_some_and(|age| now_ms.saturating_sub(segment.last_append_time_ms) > age);
        // A segment goes for its size only when the rest is still larger than what is allowed.
        let too_much = excess >= segment.bytes;
        if !(too_old || too_much) || segment.end_offset > visible.high_watermark {
            break;
        }
        excess = excess.saturating_sub(segment.bytes);
        start = start.max(segment.end_offset);
    }
    (start > visible.log_start_offset).then_some(start)
}
