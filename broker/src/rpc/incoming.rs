//! Accepting connections: TCP_NODELAY, the bound on how many, and what every connection carries along.
//!
//! Owns: the sockets until they close. Never: what is said on them.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::transport::server::Connected;

use super::in_flight::{ByteBudget, InFlight};
use crate::metrics::{GaugeGuard, Metrics};

/// Pause after a failed accept (no file descriptors left, for example), so that it does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

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

/// An accepted connection; counted until it is dropped.
#[derive(Debug)]
pub(super) struct Socket {
    stream: TcpStream,
    connection: Connection,
    _permit: OwnedSemaphorePermit,
    _gauge: GaugeGuard,
}

/// Connections as they come in. Never ends and never fails: what fails is logged and the next one is waited for.
pub(super) fn incoming(
    listener: TcpListener,
    limits: Arc<ConnectionLimits>,
) -> impl Stream<Item = io::Result<Socket>> {
    futures::stream::unfold((listener, limits), |(listener, limits)| async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    if let Some(socket) = admit(stream, &limits) {
                        return Some((Ok(socket), (listener, limits)));
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    })
}

/// Counts a connection in, or closes it when there are too many.
fn admit(stream: TcpStream, limits: &ConnectionLimits) -> Option<Socket> {
    let Ok(permit) = Arc::clone(&limits.connections).try_acquire_owned() else {
        limits.metrics.connection_refused();
        tracing::debug!("a connection was closed at once: limits.connections is reached");
        return None;
    };
    if let Err(error) = stream.set_nodelay(true) {
        // The connection may be gone already; reading from it will say so.
        tracing::debug!(%error, "TCP_NODELAY could not be set");
    }
    let in_flight = InFlight::new(
        limits.connection_bytes_max,
        Arc::clone(&limits.node_bytes),
        Arc::clone(&limits.metrics),
    );
    Some(Socket {
        stream,
        connection: Connection { in_flight: Arc::new(in_flight) },
        _permit: permit,
        _gauge: limits.metrics.connection_opened(),
    })
}

impl Connected for Socket {
    type ConnectInfo = Connection;

    fn connect_info(&self) -> Connection {
        self.connection.clone()
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
