//! The gRPC front door: one server for each client listener, one for other nodes, and the calls this node makes to them.
//!
//! Owns: every name of tonic's in this crate, the transport's limits, and the table between errors and statuses. Never:
//! what a request does; that is [`crate::groups`]', [`crate::cluster`]'s and [`crate::replica`]'s.

mod append;
mod clusters;
mod consume;
mod credit;
mod describe;
mod dial;
mod door;
mod fetch;
mod groups;
mod in_flight;
mod incoming;
mod lean;
mod membership;
mod nearest;
mod nodes;
mod observe;
mod ordered;
mod peer_calls;
mod peer_streams;
mod produce;
mod produce_stream;
mod raft_transport;
mod registry;
mod screen;
mod sender;
mod status;
mod subscribe;
mod tls;
mod topics;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use highwater_proto::internal::node_service_server::NodeServiceServer;
use highwater_proto::v1::cluster_service_server::{self, ClusterServiceServer};
use highwater_proto::v1::consumer_service_server;
use highwater_proto::v1::group_service_server::{self, GroupServiceServer};
use highwater_proto::v1::producer_service_server;
use highwater_proto::v1::registry_service_server::{self, RegistryServiceServer};
use highwater_proto::v1::topic_service_server::{self, TopicServiceServer};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tonic::transport::Server;
use tonic::{Request, Status};
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};

pub(crate) use dial::Dialer;
pub(crate) use door::Shared;
pub(crate) use peer_calls::GrpcPeerCalls;
pub(crate) use peer_streams::GrpcPeerStreams;
pub use screen::{Call, Screen};
pub(crate) use tls::{Certificates, NodeTls};

use door::Door;
use in_flight::ByteBudget;
use incoming::{Connection, ConnectionLimits};
use observe::ObserveLayer;

/// HTTP/2 flow control: bytes on their way to this side of one stream.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
/// The same for all streams of one connection.
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// Largest HTTP/2 frame accepted: one that holds a batch of the usual size is not put together again.
const FRAME_BYTES_MAX: u32 = 2 << 20;
/// Largest header block accepted.
const HEADER_BYTES_MAX: u32 = 16 << 10;
/// Largest message on a client listener, either way.
const MESSAGE_BYTES_MAX: usize = 8 << 20;
/// Largest message between nodes.
const INTERNAL_MESSAGE_BYTES_MAX: usize = 16 << 20;
/// Pause after which a silent connection is asked for a sign of life.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// How long the sign of life may take.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

// A batch fits into a request with room for what goes around it, and an answer holds one batch more than was asked for.
const _: () = {
    use highwater_proto::batch::BATCH_BYTES_MAX;
    assert!(BATCH_BYTES_MAX + (1 << 20) <= MESSAGE_BYTES_MAX);
    assert!(BATCH_BYTES_MAX as u64 + door::FETCH_BYTES_MAX + (1 << 19) <= MESSAGE_BYTES_MAX as u64);
    assert!(MESSAGE_BYTES_MAX <= INTERNAL_MESSAGE_BYTES_MAX);
};

/// A server's end: an error of the transport, for people.
pub(crate) type Served = Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// The servers of one broker: what they share, and the switch that ends them.
#[derive(Clone)]
pub(crate) struct Servers {
    shared: Arc<Shared>,
    limits: Arc<ConnectionLimits>,
    health: HealthReporter,
    closing: watch::Receiver<bool>,
    tls: Certificates,
}

impl Servers {
    /// Nothing is served yet. `closing` turning true, or its sender's end, ends every server and stream between nodes.
    pub(crate) fn new(
        shared: Arc<Shared>,
        tls: Certificates,
        closing: watch::Receiver<bool>,
    ) -> Self {
        let config = &shared.config.limits;
        let connections = usize::try_from(config.connections).unwrap_or(Semaphore::MAX_PERMITS);
        let limits = ConnectionLimits {
            connections: Arc::new(Semaphore::new(connections)),
            connection_bytes_max: config.in_flight_bytes_per_connection,
            node_bytes: Arc::new(ByteBudget::new(config.in_flight_bytes)),
            metrics: Arc::clone(&shared.metrics),
        };
        Self { shared, limits: Arc::new(limits), health: HealthReporter::new(), closing, tls }
    }

    /// What grpc.health.v1 answers, for the server as a whole and for every service.
    pub(crate) async fn set_serving(&self, is_serving: bool) {
        let status = if is_serving { ServingStatus::Serving } else { ServingStatus::NotServing };
        for name in [
            "",
            producer_service_server::SERVICE_NAME,
            consumer_service_server::SERVICE_NAME,
            topic_service_server::SERVICE_NAME,
            group_service_server::SERVICE_NAME,
            cluster_service_server::SERVICE_NAME,
            registry_service_server::SERVICE_NAME,
        ] {
            self.health.set_service_status(name, status).await;
        }
    }

    /// Serves clients that come through the listener of this name, until closing.
    pub(crate) async fn serve_clients(self, listener: &str, socket: TcpListener) -> Served {
        let door = Door::new(Arc::clone(&self.shared), listener);
        let health = HealthServer::new(HealthService::from_health_reporter(self.health.clone()));
        let observe = ObserveLayer {
            metrics: Arc::clone(&self.shared.metrics),
            clock: Arc::clone(&self.shared.clock),
        };
        let producers = produce::Producers { door: door.clone() }.server();
        let consumers = consume::Consumers { door: door.clone() }.server();
        let topics = TopicServiceServer::new(topics::Topics { door: door.clone() });
        let groups = GroupServiceServer::new(groups::Groups { door: door.clone() });
        let clusters = ClusterServiceServer::new(clusters::Clusters { door: door.clone() });
        let services = RegistryServiceServer::new(registry::Services { door });
        let (in_max, out_max) = (MESSAGE_BYTES_MAX, MESSAGE_BYTES_MAX);
        let streams_max = self.shared.config.limits.streams_per_connection;
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(highwater_proto::PUBLIC_DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        server(streams_max)
            .layer(observe)
            .add_service(producers)
            .add_service(consumers)
            .add_service(
                topics.max_decoding_message_size(in_max).max_encoding_message_size(out_max),
            )
            .add_service(
                groups.max_decoding_message_size(in_max).max_encoding_message_size(out_max),
            )
            .add_service(clusters.max_encoding_message_size(out_max))
            .add_service(services.max_encoding_message_size(out_max))
            .add_service(health)
            .add_service(reflection().build_v1()?)
            .add_service(reflection().build_v1alpha()?)
            .serve_with_incoming_shutdown(
                incoming::from_clients(socket, self.limits, self.tls.clients),
                closed(self.closing),
            )
            .await?;
        Ok(())
    }

    /// Serves other nodes, until closing.
    pub(crate) async fn serve_nodes(self, socket: TcpListener) -> Served {
        let door = Door::new(Arc::clone(&self.shared), crate::config::DEFAULT_LISTENER);
        let node_bytes = Arc::clone(&self.limits.node_bytes);
        let in_flight = Arc::new(produce::forwarded_in_flight(&door, node_bytes));
        let events = Arc::new(self.shared.node.clone());
        let metrics = Arc::clone(&self.shared.metrics);
        let nodes = NodeServiceServer::new(nodes::Nodes { door, in_flight })
            .max_decoding_message_size(INTERNAL_MESSAGE_BYTES_MAX)
            .max_encoding_message_size(INTERNAL_MESSAGE_BYTES_MAX);
        let closing = self.closing.clone();
        let raft = raft_transport::RaftTransport { events, closing }.server();
        server(self.shared.config.limits.streams_per_connection)
            .add_service(nodes)
            .add_service(raft)
            .serve_with_incoming_shutdown(
                incoming::from_nodes(socket, metrics, self.tls.nodes),
                closed(self.closing),
            )
            .await?;
        Ok(())
    }
}

/// A server with this crate's limits.
fn server(streams_max: u32) -> Server {
    Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_adaptive_window(Some(false))
        .max_frame_size(FRAME_BYTES_MAX)
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .max_concurrent_streams(streams_max)
        .concurrency_limit_per_connection(usize::try_from(streams_max).unwrap_or(usize::MAX))
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
}

/// Completes when the broker closes.
async fn closed(mut closing: watch::Receiver<bool>) {
    turned_on(&mut closing).await;
}

/// Completes when a switch is turned on. One whose owner is gone counts as on: there is nothing left to wait for.
async fn turned_on(switch: &mut watch::Receiver<bool>) {
    let _ = switch.wait_for(|is_on| *is_on).await;
}

/// The connection a request came on.
fn connection_of<T>(request: &Request<T>) -> Result<Connection, Status> {
    let connection = request.extensions().get::<Connection>();
    connection.cloned().ok_or_else(|| Status::internal("a request without its connection"))
}
