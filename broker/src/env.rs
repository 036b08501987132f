//! The seams to the outside: time, randomness and tasks.
//!
//! Owns: the only places in the broker that read a clock, draw randomness or start threads and tasks, so that the
//! simulator can replace them and several brokers can live in one process. Never: any knowledge of what runs on them.
#![expect(clippy::disallowed_methods, reason = "this file is the seam that the lint protects")]

use std::fmt::Debug;
use std::future::Future;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio_util::task::TaskTracker;

/// Reads time. Durations and timeouts use [`Clock::monotonic`]; only record timestamps use [`Clock::wall_ms`].
pub trait Clock: Send + Sync + Debug {
    /// Time since an arbitrary start; never goes back.
    fn monotonic(&self) -> Duration;
    /// Milliseconds since the Unix epoch; may jump.
    fn wall_ms(&self) -> i64;
}

/// The machine's clocks.
#[derive(Debug)]
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    /// Starts its monotonic time at zero.
    pub fn new() -> Self {
        Self { start: Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }

    fn wall_ms(&self) -> i64 {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX)
    }
}

/// Starts tasks on the runtime a [`crate::Broker`] was given, and knows when all of them have ended.
#[derive(Clone, Debug)]
pub struct Tasks {
    runtime: tokio::runtime::Handle,
    tracker: TaskTracker,
}

impl Tasks {
    /// Tasks on this runtime.
    pub fn new(runtime: tokio::runtime::Handle) -> Self {
        Self { runtime, tracker: TaskTracker::new() }
    }

    /// Threads that run tasks.
    pub fn threads(&self) -> usize {
        self.runtime.metrics().num_workers()
    }

    /// Starts a task.
    pub fn spawn<F>(&self, future: F) -> tokio::task::JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.tracker.spawn_on(future, &self.runtime)
    }

    /// Runs work that blocks (file access) off the runtime's threads.
    pub fn spawn_blocking<F, T>(&self, work: F) -> tokio::task::JoinHandle<T>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        self.tracker.spawn_blocking_on(work, &self.runtime)
    }

    /// Completes when every task started so far has ended.
    pub async fn finished(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }
}

/// Starts a named thread.
pub fn spawn_thread(
    name: &str,
    body: impl FnOnce() + Send + 'static,
) -> std::io::Result<std::thread::JoinHandle<()>> {
    std::thread::Builder::new().name(name.to_owned()).spawn(body)
}

/// A seed for a generator, from the operating system.
pub fn random_seed() -> u64 {
    rand::random()
}
