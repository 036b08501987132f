//! The seam to the outside: the clocks.
//!
//! Owns: the only places in the tool that read a clock. Never: what the time is used for.
#![expect(clippy::disallowed_methods, reason = "this file is the seam that the lint protects")]

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Now, for durations and deadlines.
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Milliseconds since the Unix epoch.
pub(crate) fn wall_ms() -> i64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX)
}
