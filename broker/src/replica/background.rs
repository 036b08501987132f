//! A thread that works slowly beside the workers, and can be told to end.
//!
//! Owns: starting it, its pauses, and ending it. Never: what it does.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::env;

/// The thread, from outside. It runs once it is started, and at most once.
#[derive(Debug, Default)]
pub(super) struct Background {
    stopping: Stopping,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// The thread's end of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Stopping(Arc<(Mutex<bool>, Condvar)>);

impl Background {
    /// Starts the thread; `body` must end soon after [`Stopping::within`] says so.
    pub(super) fn start(
        &self,
        name: &str,
        body: impl FnOnce(Stopping) + Send + 'static,
    ) -> std::io::Result<()> {
        let stopping = self.stopping.clone();
        *self.thread.lock() = Some(env::spawn_thread(name, move || body(stopping))?);
        Ok(())
    }

    /// Ends the thread and waits for that.
    pub(super) fn stop(&self) {
        let (stopping, told) = &*self.stopping.0;
        *stopping.lock() = true;
        told.notify_all();
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("a background thread panicked");
        }
    }
}

impl Stopping {
    /// Waits; true if the thread should end.
    pub(super) fn within(&self, pause: Duration) -> bool {
        let (stopping, told) = &*self.0;
        let mut stopping = stopping.lock();
        if !*stopping {
            told.wait_for(&mut stopping, pause);
        }
        *stopping
    }
}
