//! Connections to brokers, one for each address, and the generated stubs on top of them.
//!
//! Owns: HTTP/2 settings, TLS, message limits, and a circuit breaker for each address. Never: retries; a channel reconnects by
//! itself with the next call.

mod guarded;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use highwater_proto::v1::cluster_service_client::ClusterServiceClient;
use highwater_proto::v1::consumer_service_client::ConsumerServiceClient;
use highwater_proto::v1::group_service_client::GroupServiceClient;
use highwater_proto::v1::registry_service_client::RegistryServiceClient;
use highwater_proto::v1::topic_service_client::TopicServiceClient;
use highwater_proto::{grpc, v1};
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::{ClientTlsConfig, Endpoint};
use tonic::{Code, Streaming};

use crate::breaker::{BreakerPolicy, BreakerState, CircuitBreaker};
use crate::config::ClientConfig;
use crate::env::Env;
use crate::error::{Refusal, reason};
pub(crate) use guarded::{Guarded, Waits};

/// Unread bytes of one stream that a broker may send ahead.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
/// The same for all streams of a connection together.
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// Largest message in either direction: a batch of 4 MiB with room around it.
const MESSAGE_BYTES_MAX: usize = 8 << 20;
/// Largest HTTP/2 frame accepted: one that holds a batch of the usual size is not put together again.
const FRAME_BYTES_MAX: u32 = 2 << 20;
/// The longest a TCP connection may take to come up, so that another address gets its turn.
const TCP_CONNECT_MAX: Duration = Duration::from_secs(5);
/// A peer that is gone without a word is noticed after these two together.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// What the client says it is.
pub(crate) const CLIENT_VERSION: &str = concat!("highwater-client/", env!("CARGO_PKG_VERSION"));
/// The highest feature level the client understands.
pub(crate) const FEATURE_LEVEL: u32 = 1;

/// A connection to a broker, as its circuit breaker sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionState {
    /// Where the broker is: `host:port`.
    pub address: String,
    /// Closed is well; while it is open, calls to this address fail at once.
    pub state: BreakerState,
}

/// Channels by address.
#[derive(Debug)]
pub(crate) struct Connections {
    client_id: String,
    connect_timeout: Duration,
    tls: Option<ClientTlsConfig>,
    env: Env,
    policy: BreakerPolicy,
    channels: Mutex<BTreeMap<Arc<str>, Guarded>>,
}

impl Connections {
    pub(crate) fn new(config: &ClientConfig, env: Env) -> Self {
        let client_id = config.client_id.clone();
        let connect_timeout = config.connect_timeout.min(TCP_CONNECT_MAX);
        Self {
            client_id,
            connect_timeout,
            tls: config.tls.clone(),
            env,
            policy: config.breaker,
            channels: Mutex::default(),
        }
    }

    /// The longest a connection may take to come up.
    pub(crate) fn connect_timeout(&self) -> Duration {
        self.connect_timeout
    }

    /// What the client says of itself at the start of every stream.
    pub(crate) fn client_info(&self) -> v1::ClientInfo {
        v1::ClientInfo {
            client_id: self.client_id.clone(),
            version: CLIENT_VERSION.to_owned(),
            feature_level: FEATURE_LEVEL,
        }
    }

    /// The connections there are, by address.
    pub(crate) fn states(&self) -> Vec<ConnectionState> {
        let channels = self.channels.lock();
        let state = |(address, channel): (&Arc<str>, &Guarded)| ConnectionState {
            address: address.to_string(),
            state: channel.state(),
        };
        channels.iter().map(state).collect()
    }

    /// The channel to an address; connects with its first call.
    pub(crate) fn channel(&self, address: &Arc<str>) -> Result<Guarded, Refusal> {
        let mut channels = self.channels.lock();
        if let Some(channel) = channels.get(address) {
            return Ok(channel.clone());
        }
        let endpoint = self.endpoint(address).map_err(|error| {
            let text = format!("'{address}' is not an address: {error}");
            Refusal::local(reason::INVALID_ARGUMENT, Code::InvalidArgument, text)
        })?;
        // The channel starts a task of its own.
        let _runtime = self.env.enter();
        let breaker = CircuitBreaker::new(self.policy, self.env.now());
        let channel = Guarded::new(address, endpoint.connect_lazy(), breaker, self.env.clone());
        channels.insert(address.clone(), channel.clone());
        Ok(channel)
    }

    /// Opens a stream of batches at `path`, by the way that copies none of them.
    pub(crate) async fn open<Q, A>(
        &self,
        address: &Arc<str>,
        path: &'static str,
        requests: mpsc::UnboundedReceiver<Q>,
    ) -> Result<Streaming<A>, Refusal>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let channel = self.channel(address)?;
        let requests = UnboundedReceiverStream::new(requests);
        let answers = grpc::open(channel, path, requests, MESSAGE_BYTES_MAX).await;
        answers.map_err(|status| Refusal::from_status(&status))
    }

    fn endpoint(&self, address: &str) -> Result<Endpoint, tonic::transport::Error> {
        let endpoint = match &self.tls {
            None => Endpoint::from_shared(format!("http://{address}"))?,
            Some(tls) => {
                Endpoint::from_shared(format!("https://{address}"))?.tls_config(tls.clone())?
            }
        };
        Ok(endpoint
            .user_agent(CLIENT_VERSION)?
            .connect_timeout(self.connect_timeout)
            .tcp_nodelay(true)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .http2_adaptive_window(false)
            .max_frame_size(FRAME_BYTES_MAX)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true))
    }
}

/// The consumer service over a channel.
pub(crate) fn consumer_service(channel: Guarded) -> ConsumerServiceClient<Guarded> {
    ConsumerServiceClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

/// The topic service over a channel.
pub(crate) fn topic_service(channel: Guarded) -> TopicServiceClient<Guarded> {
    TopicServiceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

/// The group service over a channel.
pub(crate) fn group_service(channel: Guarded) -> GroupServiceClient<Guarded> {
    GroupServiceClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

/// The registry of services over a channel.
pub(crate) fn registry_service(channel: Guarded) -> RegistryServiceClient<Guarded> {
    RegistryServiceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

/// The cluster service over a channel.
pub(crate) fn cluster_service(channel: Guarded) -> ClusterServiceClient<Guarded> {
    ClusterServiceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX)
}
