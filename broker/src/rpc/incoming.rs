//! Accepting connections: TCP_NODELAY, TLS, the bound on how many, and what every connection carries along.
//!
//! Owns: the sockets until they close. Never: what is said on them.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::{Stream, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::{TlsAcceptor, TlsStream};
use tonic::transport::server::Connected;

use super::in_flight::{ByteBudget, InFlight};
use super::tls::{ClientTls, NodeTls};
use super::wire::Wire;
use crate::cluster::NodeId;
use crate::metrics::{GaugeGuard, Metrics};

/// Pause after a failed accept (no file descriptors left, for example), so that it does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// TLS handshakes of one listener that go on at the same time; further connections wait to be accepted.
const HANDSHAKES_MAX: usize = 1_024;

/// Longest TLS handshake.
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);

/// What connections of one node share.
#[derive(Debug)]
pub(super) struct ConnectionLimits {
    /// One permit for each connection that may be open.
    pub(super) connections: Arc<Semaphore>,
    /// Produce bytes in flight on one connection.
    pub(super) connection_bytes_max: u64,
    /// Produce bytes in flight on the node.
    pub(super) node_bytes: Arc<ByteBudget>,
    /// Where connections are counted.
    pub(super) metrics: Arc<Metrics>,
}

/// What a request finds out about its connection, in its extensions.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    /// The bounds on its produce bytes.
    pub(super) in_flight: Arc<InFlight>,
}

/// An accepted connection with what it carries along; what counts it is dropped with it.
#[derive(Debug)]
pub(super) struct Socket<I> {
    wire: Wire,
    info: I,
    _counted: Option<Counted>,
}

/// Counts a connection for as long as it is open.
type Counted = (OwnedSemaphorePermit, GaugeGuard);

/// What a call between nodes finds out about its connection, in its extensions.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller {
    /// The node that the certificate at the other end names; `None` in plain text.
    pub(super) node: Option<NodeId>,
}

/// Clients as they come in. Never ends and never fails: what fails is logged and the next one is waited for. A connection that
/// takes its time over the TLS handshake does not keep others waiting.
pub(super) fn from_clients(
    listener: TcpListener,
    limits: Arc<ConnectionLimits>,
    tls: Option<Arc<ClientTls>>,
) -> impl Stream<Item = io::Result<Socket<Connection>>> {
    let metrics = Arc::clone(&limits.metrics);
    let admitted = accepted(listener)
        .filter_map(move |stream| std::future::ready(admit(stream, &limits)))
        .map(move |(stream, info, counted)| {
            let acceptor = tls.as_ref().map(|tls| tls.acceptor());
            let metrics = Arc::clone(&metrics);
            async move {
                match shake_hands(stream, acceptor).await {
                    Ok(wire) => Some(Ok(Socket { wire, info, _counted: Some(counted) })),
                    Err(why) => {
                        metrics.handshake_failed();
                        tracing::debug!(why, "a client did not get in");
                        None
                    }
                }
            }
        });
    admitted.buffer_unordered(HANDSHAKES_MAX).filter_map(std::future::ready)
}

/// Other nodes as they come in, in the same way.
pub(super) fn from_nodes(
    listener: TcpListener,
    metrics: Arc<Metrics>,
    tls: Option<Arc<NodeTls>>,
) -> impl Stream<Item = io::Result<Socket<Caller>>> {
    let begun = accepted(listener).map(move |stream| {
        let acceptor = tls.as_ref().map(|tls| tls.acceptor());
        let metrics = Arc::clone(&metrics);
        async move {
            let identified = shake_hands(stream, acceptor).await.and_then(|wire| {
                let node = wire.node()?;
                Ok(Socket { wire, info: Caller { node }, _counted: None })
            });
            match identified {
                Ok(socket) => Some(Ok(socket)),
                Err(why) => {
                    metrics.handshake_failed();
                    tracing::debug!(why, "a connection to the internal port was refused");
                    None
                }
            }
        }
    });
    begun.buffer_unordered(HANDSHAKES_MAX).filter_map(std::future::ready)
}

fn accepted(listener: TcpListener) -> impl Stream<Item = TcpStream> {
    futures::stream::unfold(listener, |listener| async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => return Some((stream, listener)),
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    })
}

/// The connection ready for use. The error is for people.
async fn shake_hands(stream: TcpStream, acceptor: Option<TlsAcceptor>) -> Result<Wire, String> {
    if let Err(error) = stream.set_nodelay(true) {
        // The connection may be gone already; reading from it will say so.
        tracing::debug!(%error, "TCP_NODELAY could not be set");
    }
    let Some(acceptor) = acceptor else { return Ok(Wire::Plain(stream)) };
    let peer = stream.peer_addr().map_or_else(|_| "a peer".to_owned(), |peer| peer.to_string());
    match tokio::time::timeout(HANDSHAKE_MAX, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => Ok(Wire::Tls(Box::new(TlsStream::Server(stream)))),
        Ok(Err(error)) => Err(format!("{peer}: {error}")),
        Err(_) => Err(format!("{peer}: no TLS handshake within {HANDSHAKE_MAX:?}")),
    }
}

/// Counts a connection in, or closes it when there are too many.
fn admit(stream: TcpStream, limits: &ConnectionLimits) -> Option<(TcpStream, Connection, Counted)> {
    let Ok(permit) = Arc::clone(&limits.connections).try_acquire_owned() else {
        limits.metrics.connection_refused();
        tracing::debug!("a connection was closed at once: limits.connections is reached");
        return None;
    };
    let in_flight = InFlight::new(
        limits.connection_bytes_max,
        Arc::clone(&limits.node_bytes),
        Arc::clone(&limits.metrics),
    );
    let connection = Connection { in_flight: Arc::new(in_flight) };
    Some((stream, connection, (permit, limits.metrics.connection_opened())))
}

impl<I: Clone + Send + Sync + 'static> Connected for Socket<I> {
    type ConnectInfo = I;

    fn connect_info(&self) -> I {
        self.info.clone()
    }
}

impl<I: Unpin> AsyncRead for Socket<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_read(context, buffer)
    }
}

impl<I: Unpin> AsyncWrite for Socket<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.wire).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.wire).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.wire.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_shutdown(context)
    }
}
