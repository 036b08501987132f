//! Connections to brokers, one for each address, and the generated stubs on top of them.
//!
//! Owns: HTTP/2 settings, TLS and message limits. Never: retries; a channel reconnects by itself with the next call.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use highwater_proto::v1;
use highwater_proto::v1::cluster_service_client::ClusterServiceClient;
use highwater_proto::v1::consumer_service_client::ConsumerServiceClient;
use highwater_proto::v1::group_service_client::GroupServiceClient;
use highwater_proto::v1::registry_service_client::RegistryServiceClient;
use highwater_proto::v1::topic_service_client::TopicServiceClient;
use parking_lot::Mutex;
use tonic::Code;
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};

use crate::config::ClientConfig;
use crate::env::Env;
use crate::error::{Refusal, reason};

/// Unread bytes of one stream that a broker may send ahead.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
/// The same for all streams of a connection together.
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// Largest message in either direction: a batch of 4 MiB with room around it.
pub(crate) const MESSAGE_BYTES_MAX: usize = 8 << 20;
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

/// Channels by address.
#[derive(Debug)]
pub(crate) struct Connections {
    client_id: String,
    connect_timeout: Duration,
    tls: Option<ClientTlsConfig>,
    env: Env,
    channels: Mutex<HashMap<Arc<str>, Channel>>,
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

    /// The channel to an address; connects with its first call.
    pub(crate) fn channel(&self, address: &Arc<str>) -> Result<Channel, Refusal> {
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
        let channel = endpoint.connect_lazy();
        channels.insert(address.clone(), channel.clone());
        Ok(channel)
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
pub(crate) fn consumer_service(channel: Channel) -> ConsumerServiceClient<Channel> {
    ConsumerServiceClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

/// The topic service over a channel.
pub(crate) fn topic_service(channel: Channel) -> TopicServiceClient<Channel> {
    TopicServiceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

/// The group service over a channel.
pub(crate) fn group_service(channel: Channel) -> GroupServiceClient<Channel> {
    GroupServiceClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

/// The registry of services over a channel.
pub(crate) fn registry_service(channel: Channel) -> RegistryServiceClient<Channel> {
    RegistryServiceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

/// The cluster service over a channel.
pub(crate) fn cluster_service(channel: Channel) -> ClusterServiceClient<Channel> {
    ClusterServiceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX)
}
