//! Opening connections to other nodes.
//!
//! Owns: HTTP/2 settings, TLS, and the check that the node at the other end is the one that was meant. Never: what is said on them,
//! or trying again.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;
use tokio_rustls::rustls::pki_types::{IpAddr, Ipv4Addr, ServerName};
use tonic::transport::{Channel, Endpoint, Error};

use super::tls::NodeTls;
use super::wire::Wire;
use super::{CONNECTION_WINDOW_BYTES, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, STREAM_WINDOW_BYTES};
use crate::cluster::NodeId;

/// Longest wait for a connection, its TLS handshake included.
const CONNECT_MAX: Duration = Duration::from_secs(2);

/// Opens connections to other nodes.
#[derive(Clone)]
pub(crate) struct Dialer {
    tls: Option<Arc<NodeTls>>,
}

impl Dialer {
    /// In plain text, or with what nodes show one another.
    pub(crate) fn new(tls: Option<Arc<NodeTls>>) -> Self {
        Self { tls }
    }

    /// Connects to a node.
    pub(super) async fn connect(&self, address: &str, node: NodeId) -> Result<Channel, Error> {
        let dialer = self.clone();
        let address = address.to_owned();
        let to = address.clone();
        let connector = tower::service_fn(move |_: Uri| {
            let (dialer, address) = (dialer.clone(), address.clone());
            async move { dialer.open(&address, &[node]).await }
        });
        endpoint(&to)?.connect_with_connector(connector).await
    }

    /// A channel that connects when it is used, as often as it has to. `nodes_at` says which nodes are known to be at the address;
    /// if none is, every node of the cluster will do.
    pub(super) fn channel(
        &self,
        address: &str,
        nodes_at: impl Fn(&str) -> Vec<NodeId> + Send + Sync + 'static,
    ) -> Result<Channel, Error> {
        let dialer = self.clone();
        let to = address.to_owned();
        let connector = tower::service_fn(move |_: Uri| {
            let (dialer, to, nodes) = (dialer.clone(), to.clone(), nodes_at(&to));
            async move { dialer.open(&to, &nodes).await }
        });
        Ok(endpoint(address)?.connect_with_connector_lazy(connector))
    }

    async fn open(&self, address: &str, nodes: &[NodeId]) -> io::Result<TokioIo<Wire>> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let Some(tls) = &self.tls else { return Ok(TokioIo::new(Wire::Plain(stream))) };
        // The name is sent to nobody and checked by nobody: the certificate says which node it is.
        let name = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::from([0, 0, 0, 0])));
        let stream = tls.connector().connect(name, stream).await?;
        let wire = Wire::Tls(Box::new(TlsStream::Client(stream)));
        let found = wire.node().map_err(io::Error::other)?;
        match found {
            Some(found) if !nodes.is_empty() && !nodes.contains(&found) => {
                Err(io::Error::other(format!(
                    "the certificate at {address} is node {found}'s, expected was node {nodes:?}'s"
                )))
            }
            _ => Ok(TokioIo::new(wire)),
        }
    }
}

fn endpoint(address: &str) -> Result<Endpoint, Error> {
    Ok(Endpoint::from_shared(format!("http://{address}"))?
        .connect_timeout(CONNECT_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_adaptive_window(false)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true))
}

#[cfg(test)]
#[path = "../../tests/it/certs.rs"]
mod certs;

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::config::Config;

    fn load(authority: &certs::Authority, issued: &certs::Issued) -> Arc<NodeTls> {
        let mut config = Config::default();
        config.internal_tls.cert_file = Some(issued.certificate.clone());
        config.internal_tls.key_file = Some(issued.key.clone());
        config.internal_tls.ca_file = Some(authority.file.clone());
        NodeTls::load(&config).unwrap().unwrap()
    }

    #[tokio::test]
    async fn the_node_that_answers_must_be_the_one_that_was_meant() {
        let dir = tempfile::tempdir().unwrap();
        let authority = certs::Authority::new(dir.path(), "authority");
        let node = |id: u64| authority.issue(dir.path(), &format!("node-{id}"), &certs::node(id));
        let ninth = load(&authority, &node(9));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let answering = async {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                // The dialer may hang up first.
                let _ = ninth.acceptor().accept(stream).await;
            }
        };
        let asking = async {
            let dialer = Dialer::new(Some(load(&authority, &node(1))));
            for fine in [&[9][..], &[3, 9], &[]] {
                dialer.open(&address, fine).await.unwrap();
            }
            let why = dialer.open(&address, &[3]).await.unwrap_err().to_string();
            assert!(why.contains("is node 9's"), "{why}");
        };
        tokio::select! {
            () = answering => {}
            () = asking => {}
        }
    }
}
