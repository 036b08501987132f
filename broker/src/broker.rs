//! The broker as one value: sockets, node, servers, and the order in which they start and stop.
//!
//! Owns: what belongs to one broker and to nobody else. Never: globals; the runtime is the caller's.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use highwater_storage::{Disk, RealDisk};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::cluster::peer::PeerStreams;
use crate::cluster::{FEATURE_LEVEL, Node, NodeDeps, NodeId, StartError};
use crate::config::{BoundAddresses, Config, DEFAULT_LISTENER};
use crate::env::{Clock, SystemClock, Tasks, random_seed};
use crate::http;
use crate::metrics::Metrics;
use crate::rpc::{
    Certificates, Dialer, GrpcPeerCalls, GrpcPeerStreams, NodeTls, Screen, Servers, Shared,
};

/// How often the node is asked whether it serves: often at first, for it may be about to, then rarely, for it costs something where
/// there are many partitions.
const READY_CHECK_FIRST: Duration = Duration::from_millis(2);
const READY_CHECK_MAX: Duration = Duration::from_millis(100);

/// How long connections may take to end once everything on them has.
const CLOSE_MAX: Duration = Duration::from_secs(2);

/// What a broker runs on; tests replace parts of it.
#[derive(Clone)]
pub struct BrokerOptions {
    /// Where files are kept.
    pub disk: Arc<dyn Disk>,
    /// Where time comes from.
    pub clock: Arc<dyn Clock>,
    /// Seeds every random choice.
    pub seed: u64,
    /// The highest feature level that the node says it understands; another than [`FEATURE_LEVEL`] makes it pass for another version.
    pub feature_level: u32,
    /// Refuses clients' calls; `None`: none is refused.
    pub screen: Option<Screen>,
}

impl Default for BrokerOptions {
    fn default() -> Self {
        Self {
            disk: Arc::new(RealDisk::new()),
            clock: Arc::new(SystemClock::new()),
            seed: random_seed(),
            feature_level: FEATURE_LEVEL,
            screen: None,
        }
    }
}

/// A running broker: one node of a cluster. Ends with [`Broker::stop`]; one that is dropped instead stops serving, but hands
/// nothing over.
pub struct Broker {
    node: Node,
    metrics: Arc<Metrics>,
    addresses: BoundAddresses,
    http_address: SocketAddr,
    ready: watch::Receiver<bool>,
    closing: watch::Sender<bool>,
    servers: Servers,
    serving: Mutex<Vec<JoinHandle<()>>>,
    streams: Arc<GrpcPeerStreams>,
    tasks: Tasks,
}

impl std::fmt::Debug for Broker {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Broker").field("addresses", &self.addresses).finish_non_exhaustive()
    }
}

/// Sockets, bound before anything else: a port in use is found out before any file is touched.
struct Sockets {
    clients: Vec<(String, TcpListener)>,
    internal: TcpListener,
    http: TcpListener,
}

impl Broker {
    /// Starts a node on the caller's runtime. It serves at once; what needs the cluster answers NOT_READY until there is one.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        Self::start_with(config, BrokerOptions::default()).await
    }

    /// The same with parts replaced.
    pub async fn start_with(
        mut config: Config,
        options: BrokerOptions,
    ) -> Result<Self, StartError> {
        config
            .validate()
            .map_err(|error| StartError::Config { key: "configuration", why: error.to_string() })?;
        let tls = Certificates::load(&config)?;
        if let Some(nodes) = &tls.nodes {
            config.node.id = Some(certified_id(&config, nodes)?);
        }
        let sockets = Sockets::bind(&config).await?;
        let addresses = sockets.addresses()?;
        let http_address = sockets.http.local_addr()?;
        let tasks = Tasks::new(tokio::runtime::Handle::current());
        let metrics = Arc::new(Metrics::new());
        let dialer = Dialer::new(tls.nodes.clone());
        let streams = Arc::new(GrpcPeerStreams::new(tasks.clone(), dialer.clone()));
        let calls = Arc::new(GrpcPeerCalls::new(dialer, Arc::clone(&streams)));
        let deps = NodeDeps {
            calls: calls.clone(),
            streams: streams.clone(),
            clock: Arc::clone(&options.clock),
            disk: options.disk,
            tasks: tasks.clone(),
            metrics: Arc::clone(&metrics),
            seed: options.seed,
            feature_level: options.feature_level,
        };
        let node_config = config.to_node_config(&addresses);
        // Recovery reads files.
        let node = tasks.spawn_blocking(move || Node::start(node_config, deps)).await;
        let node = node.map_err(|error| StartError::Io(io::Error::other(error)))??;
        streams.set_events(Arc::new(node.clone()));
        let reload_pause = Duration::from_millis(config.tls.reload_ms);
        let shared = Shared::new(
            node.clone(),
            calls,
            options.clock,
            tasks.clone(),
            Arc::clone(&metrics),
            config,
            options.screen,
        );
        let (closing, closing_seen) = watch::channel(false);
        let keep_up = tls.clone().keep_up(reload_pause, tasks.clone(), Arc::clone(&metrics));
        let mut until_closing = closing_seen.clone();
        tasks.spawn(async move {
            tokio::select! {
                () = keep_up => {}
                _ = until_closing.wait_for(|closing| *closing) => {}
            }
        });
        let servers = Servers::new(Arc::new(shared), tls, closing_seen.clone());
        servers.set_serving(false).await;
        let (ready_sender, ready) = watch::channel(false);
        let watcher =
            watch_ready(node.clone(), servers.clone(), ready_sender, closing_seen.clone());
        tasks.spawn(watcher);
        let broker = Self {
            node,
            metrics,
            addresses,
            http_address,
            ready,
            closing,
            servers,
            serving: Mutex::new(Vec::new()),
            streams,
            tasks,
        };
        broker.serve(sockets, closing_seen);
        Ok(broker)
    }

    fn serve(&self, sockets: Sockets, closing: watch::Receiver<bool>) {
        let mut serving = self.serving.lock();
        for (name, socket) in sockets.clients {
            let servers = self.servers.clone();
            serving.push(self.tasks.spawn(async move {
                if let Err(error) = servers.serve_clients(&name, socket).await {
                    tracing::error!(listener = name, error, "a client listener ended");
                }
            }));
        }
        let servers = self.servers.clone();
        serving.push(self.tasks.spawn(async move {
            if let Err(error) = servers.serve_nodes(sockets.internal).await {
                tracing::error!(error, "the internal listener ended");
            }
        }));
        let (node, metrics) = (self.node.clone(), Arc::clone(&self.metrics));
        serving.push(self.tasks.spawn(async move {
            if let Err(error) = http::serve(sockets.http, node, metrics, closing).await {
                tracing::error!(%error, "the HTTP listener ended");
            }
        }));
    }

    /// Where the default client listener is bound.
    pub fn client_addr(&self) -> SocketAddr {
        self.listener_addr(DEFAULT_LISTENER).unwrap_or(self.addresses.internal)
    }

    /// Where a named client listener is bound.
    pub fn listener_addr(&self, name: &str) -> Option<SocketAddr> {
        self.addresses.clients.get(name).copied()
    }

    /// Where other nodes connect.
    pub fn internal_addr(&self) -> SocketAddr {
        self.addresses.internal
    }

    /// Where health and metrics are served.
    pub fn http_addr(&self) -> SocketAddr {
        self.http_address
    }

    /// The node.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Completes when the node serves: it has joined its cluster and caught up.
    pub async fn wait_ready(&self) {
        let mut ready = self.ready.clone();
        if ready.wait_for(|ready| *ready).await.is_err() {
            // It was stopped before it was ready, and never will be.
            std::future::pending::<()>().await;
        }
    }

    /// Completes with the reason when the node met a fault it must not survive; the process should exit with 1.
    pub async fn wait_fatal(&self) -> String {
        self.node.fatal_fault().await
    }

    /// Ends without a word to anybody, for tests that kill a broker in their own process: end the runtime that it was started on first,
    /// then nothing is answered any more. Blocks until its threads have ended and its directory is free.
    pub fn abandon(&self) {
        self.node.abandon();
    }

    /// Stops gracefully: not serving, leaderships handed over, appends drained, everything synced, connections closed.
    pub async fn stop(&self) {
        self.servers.set_serving(false).await;
        self.node.stop().await;
        self.closing.send_replace(true);
        let serving = std::mem::take(&mut *self.serving.lock());
        for mut server in serving {
            if tokio::time::timeout(CLOSE_MAX, &mut server).await.is_err() {
                // A client that keeps its connection busy does not keep us.
                server.abort();
            }
        }
        self.streams.close();
        if tokio::time::timeout(CLOSE_MAX, self.tasks.finished()).await.is_err() {
            tracing::warn!("some tasks did not end in time");
        }
    }
}

/// The id of this node as its certificate says it, which is the only one that other nodes will believe.
fn certified_id(config: &Config, tls: &NodeTls) -> Result<NodeId, StartError> {
    match config.node.id {
        Some(id) if id != tls.node() => Err(StartError::Config {
            key: "node.id",
            why: format!(
                "is {id}, but the certificate in internal_tls.cert_file is node {}'s; give this node its own, or leave node.id out",
                tls.node()
            ),
        }),
        _ => Ok(tls.node()),
    }
}

/// Passes on whether the node serves: to health checks, and to whoever waits.
async fn watch_ready(
    node: Node,
    servers: Servers,
    ready: watch::Sender<bool>,
    mut closing: watch::Receiver<bool>,
) {
    let mut pause = READY_CHECK_FIRST;
    loop {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = closing.wait_for(|closing| *closing) => return,
        }
        pause = (pause + pause / 4).min(READY_CHECK_MAX);
        let is_ready = node.ready_state().ready && !*node.watch_stopping().borrow();
        if ready.send_if_modified(|was| std::mem::replace(was, is_ready) != is_ready) {
            servers.set_serving(is_ready).await;
        }
    }
}

impl Sockets {
    async fn bind(config: &Config) -> Result<Self, StartError> {
        let mut clients = Vec::new();
        for (name, address, ..) in config.client_listeners() {
            let (key, flag) = match name.as_str() {
                DEFAULT_LISTENER => ("listen.client", "--listen"),
                _ => ("listeners", "--set listeners.NAME.bind=HOST:PORT"),
            };
            clients.push((name, bind(key, flag, &address).await?));
        }
        let internal =
            bind("listen.internal", "--internal-listen", &config.listen.internal).await?;
        let http = bind("listen.http", "--http-listen", &config.listen.http).await?;
        Ok(Self { clients, internal, http })
    }

    fn addresses(&self) -> io::Result<BoundAddresses> {
        let clients: io::Result<BTreeMap<String, SocketAddr>> = self
            .clients
            .iter()
            .map(|(name, socket)| Ok((name.clone(), socket.local_addr()?)))
            .collect();
        Ok(BoundAddresses { internal: self.internal.local_addr()?, clients: clients? })
    }
}

/// Binds an address; what goes wrong names the key, the address and the flag that mends it.
async fn bind(key: &'static str, flag: &str, address: &str) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|error| {
        let why = match error.kind() {
            io::ErrorKind::AddrInUse => format!(
                "{address} is in use by another process; stop that, or choose another port with {flag}"
            ),
            _ => format!("cannot bind {address}: {error}; choose another address with {flag}"),
        };
        StartError::Config { key, why }
    })
}
