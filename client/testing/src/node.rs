//! One broker of a test: its place on disk and in the network, which stay, and its process, which comes and goes.
//!
//! Owns: starting, stopping and killing it. Never: what it serves.

use std::net::SocketAddr;
use std::sync::Arc;

use highwater_broker::{BrokerOptions, config::Config};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::watch;

use crate::disk::QuickDisk;
use crate::env::{TestClock, soon};
use crate::faults::{self, Faults};
use crate::refusals::Refusals;

/// The process: a broker on a runtime of its own, so that ending that ends the broker without a word to anybody.
struct Process {
    broker: Arc<highwater_broker::Broker>,
    runtime: Option<Runtime>,
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // A runtime must not be waited for from within another one.
            runtime.shutdown_background();
        }
    }
}

/// See the module.
pub(crate) struct Node {
    config: Config,
    clock: Arc<TestClock>,
    refusals: Arc<Refusals>,
    process: tokio::sync::Mutex<Option<Process>>,
    /// Where the broker listens for clients, while it runs.
    listening: watch::Sender<Option<SocketAddr>>,
    pub(crate) address: SocketAddr,
    pub(crate) faults: Faults,
    /// Last, so that it outlives the process.
    _dir: TempDir,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Node").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Node {
    /// A node that does not run yet. `runtime` is for what stands before it.
    pub(crate) async fn new(
        mut config: Config,
        dir: TempDir,
        clock: Arc<TestClock>,
        refusals: Arc<Refusals>,
        runtime: &tokio::runtime::Handle,
    ) -> Self {
        let (listening, seen) = watch::channel(None);
        let (address, faults) =
            faults::open(runtime, seen).await.expect("the loopback interface has a free port");
        // Clients that are told of this node are told of what stands before it.
        config.listen.advertise = Some(address.to_string());
        let process = tokio::sync::Mutex::new(None);
        Self { config, clock, refusals, process, listening, address, faults, _dir: dir }
    }

    /// Starts the process if it does not run.
    pub(crate) async fn start(&self) {
        let mut process = self.process.lock().await;
        if process.is_some() {
            return;
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("test-broker")
            .enable_all()
            .build()
            .expect("a runtime can be made");
        let disk = Arc::new(QuickDisk::default());
        let options = BrokerOptions {
            clock: self.clock.clone(),
            disk,
            screen: Some(Arc::clone(&self.refusals).screen()),
            ..BrokerOptions::default()
        };
        let starting =
            runtime.spawn(highwater_broker::Broker::start_with(self.config.clone(), options));
        let broker = match soon("starting a broker", starting).await {
            Ok(Ok(broker)) => Arc::new(broker),
            Ok(Err(error)) => panic!("the broker did not start: {error}"),
            Err(error) => panic!("the broker did not start: {error}"),
        };
        self.listening.send_replace(Some(broker.client_addr()));
        *process = Some(Process { broker, runtime: Some(runtime) });
    }

    /// The broker, if it runs.
    pub(crate) async fn broker(&self) -> Option<Arc<highwater_broker::Broker>> {
        self.process.lock().await.as_ref().map(|process| Arc::clone(&process.broker))
    }

    pub(crate) async fn wait_ready(&self) {
        if let Some(broker) = self.broker().await {
            soon("being ready", broker.wait_ready()).await;
        }
    }

    /// Stops the process in good order.
    pub(crate) async fn stop(&self) {
        let process = self.process.lock().await.take();
        if let Some(process) = process {
            soon("stopping a broker", process.broker.stop()).await;
            self.listening.send_replace(None);
        }
    }

    /// Ends the process without a word to anybody: connections break, ports refuse, files stay as they are.
    pub(crate) async fn kill(&self) {
        let mut slot = self.process.lock().await;
        let Some(mut process) = slot.take() else { return };
        self.listening.send_replace(None);
        // The relay must not hold up what the end of a process would have cut.
        self.faults.cut();
        if let Some(runtime) = process.runtime.take() {
            runtime.shutdown_background();
        }
        // Threads that go on would write beside the ones that are started next.
        let ending = tokio::task::spawn_blocking(move || process.broker.abandon());
        if let Err(error) = soon("ending a broker's threads", ending).await {
            panic!("the broker's threads did not end: {error}");
        }
    }
}
