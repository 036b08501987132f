//! The seam to the outside: the clock and tasks.
//!
//! Owns: the only places in the examples that read a clock or start a task. Never: what they are used for.
#![expect(clippy::disallowed_methods, reason = "this file is the seam that the lint protects")]

use std::future::Future;
use std::time::{Duration, Instant, SystemTime};

/// Time since a start of one's own choosing.
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch(Instant);

impl Stopwatch {
    /// Begins at zero.
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Time since the start.
    pub fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }

    /// The same in whole milliseconds.
    pub fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// The machine's date and time.
pub fn wall_clock() -> SystemTime {
    SystemTime::now()
}

/// Starts a task.
pub fn spawn<F>(task: F) -> tokio::task::JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    tokio::spawn(task)
}
