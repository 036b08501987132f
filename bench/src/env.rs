//! The seam to the outside: the clock, threads, the payloads' generator.
//!
//! Owns: the only places in the benchmark that read a clock or start a thread or task. Never: what is measured.
#![expect(clippy::disallowed_methods, reason = "this file is the seam that the lint protects")]

use std::future::Future;
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

/// The clock of one measurement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock(Instant);

impl Clock {
    /// Begins at zero.
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    /// Time since the start.
    pub(crate) fn now(&self) -> Duration {
        self.0.elapsed()
    }

    /// The same in nanoseconds.
    pub(crate) fn now_ns(&self) -> u64 {
        u64::try_from(self.now().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// Starts a task.
pub(crate) fn spawn<F>(task: F) -> tokio::task::JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    tokio::spawn(task)
}

/// Starts a thread whose sleeps end when they should: the kernel otherwise rounds them up by 50 microseconds, and the
/// runtime's timer by a millisecond.
pub(crate) fn spawn_punctual<T: Send + 'static>(
    body: impl FnOnce() -> T + Send + 'static,
) -> std::thread::JoinHandle<T> {
    std::thread::spawn(move || {
        // Only precision is lost where this is not allowed; the latency is measured from the due time all the same.
        let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
        body()
    })
}

/// Calls `work` with each item in a thread of its own and waits for all; the first error, if there is one.
pub(crate) fn in_parallel<T: Send, E: Send>(
    items: impl Iterator<Item = T>,
    work: impl Fn(T) -> Result<(), E> + Sync,
) -> Result<(), E> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = items.map(|item| scope.spawn(|| work(item))).collect();
        let outcomes: Vec<_> =
            threads.into_iter().filter_map(|thread| thread.join().ok()).collect();
        outcomes.into_iter().collect()
    })
}
