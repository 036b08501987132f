//! The seam to the outside: time, randomness and tasks.
//!
//! Owns: the only places in the client that read a clock, draw randomness or start tasks. Never: any knowledge of what runs
//! on them.
#![expect(clippy::disallowed_methods, reason = "this file is the seam that the lint protects")]

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::time::Instant;

/// The client's surroundings. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Env {
    runtime: tokio::runtime::Handle,
    random: Arc<Mutex<SmallRng>>,
}

impl Env {
    /// The surroundings of a client on `runtime`; without a seed the operating system gives one.
    pub(crate) fn new(runtime: tokio::runtime::Handle, seed: Option<u64>) -> Self {
        let random = SmallRng::seed_from_u64(seed.unwrap_or_else(rand::random));
        Self { runtime, random: Arc::new(Mutex::new(random)) }
    }

    /// Now, for durations and deadlines.
    pub(crate) fn now(&self) -> Instant {
        Instant::now()
    }

    /// Milliseconds since the Unix epoch, for records' timestamps.
    pub(crate) fn wall_ms(&self) -> i64 {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX)
    }

    /// Starts a task on the client's runtime.
    pub(crate) fn spawn<F>(&self, future: F) -> tokio::task::JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.runtime.spawn(future)
    }

    /// Makes the client's runtime the current one, for libraries that start tasks of their own.
    pub(crate) fn enter(&self) -> tokio::runtime::EnterGuard<'_> {
        self.runtime.enter()
    }

    /// A duration between half of `duration` and all of it, so that many clients do not retry in step.
    pub(crate) fn jittered(&self, duration: Duration) -> Duration {
        duration.mul_f64(self.random.lock().random_range(0.5..=1.0))
    }

    /// A number below `end`; 0 if `end` is 0.
    pub(crate) fn below(&self, end: u32) -> u32 {
        if end == 0 { 0 } else { self.random.lock().random_range(0..end) }
    }

    /// A number that nobody else has: 128 random bits.
    pub(crate) fn unique(&self) -> u128 {
        self.random.lock().random()
    }

    /// 64 random bits.
    pub(crate) fn unique_half(&self) -> u64 {
        self.random.lock().random()
    }
}
