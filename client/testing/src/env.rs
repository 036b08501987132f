//! The seam to the outside: tasks, time, and waiting with a deadline.
//!
//! Owns: the only places of this crate that start tasks or read a clock, and the clock that brokers under test read. Never: any
//! knowledge of what is waited for.
#![expect(clippy::disallowed_methods, reason = "this file is the seam that the lint protects")]

use std::fmt::Display;
use std::future::Future;
use std::time::Duration;

use highwater_broker::env::{Clock, SystemClock};
use parking_lot::Mutex;
use tokio::time::Instant;

/// Longest wait for anything; a test that needs it fails. Long, because a machine that runs a test suite is a busy one.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Waits for something that must happen.
///
/// # Panics
///
/// If it has not happened within a minute.
pub async fn soon<F: Future>(what: impl Display, future: F) -> F::Output {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(output) => output,
        Err(_late) => panic!("{what} did not happen within {PATIENCE:?}"),
    }
}

/// Waits until a condition holds, asking again and again.
///
/// # Panics
///
/// If it does not hold within a minute.
pub async fn until<F: Future<Output = bool>>(what: impl Display, mut condition: impl FnMut() -> F) {
    soon(what, async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

pub(crate) fn now() -> Instant {
    Instant::now()
}

pub(crate) fn spawn(
    on: &tokio::runtime::Handle,
    task: impl Future<Output = ()> + Send + 'static,
) -> tokio::task::JoinHandle<()> {
    on.spawn(task)
}

/// The machine's clock, and what the test put it forward by.
#[derive(Debug, Default)]
pub(crate) struct TestClock {
    machine: SystemClock,
    ahead: Mutex<Duration>,
}

impl TestClock {
    pub(crate) fn advance(&self, time: Duration) {
        *self.ahead.lock() += time;
    }
}

impl Clock for TestClock {
    fn monotonic(&self) -> Duration {
        self.machine.monotonic() + *self.ahead.lock()
    }

    fn wall_ms(&self) -> i64 {
        let ahead_ms = i64::try_from(self.ahead.lock().as_millis()).unwrap_or(i64::MAX);
        self.machine.wall_ms().saturating_add(ahead_ms)
    }
}
