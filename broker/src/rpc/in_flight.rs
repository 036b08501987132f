//! Permits for produce bytes that wait for their acknowledgement.
//!
//! Owns: the two bounds, one a connection and one a node. Waiting for a permit means that the connection is not read, so
//! the publisher feels it through HTTP/2 flow control. Never refuses: only the size of a batch does that.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::metrics::{GaugeGuard, Metrics};

/// A number of bytes that can be taken in parts.
#[derive(Debug)]
pub(super) struct ByteBudget {
    semaphore: Arc<Semaphore>,
    bytes_max: u32,
}

impl ByteBudget {
    /// At most 4 GiB can be told apart; more is taken as that.
    pub(super) fn new(bytes_max: u64) -> Self {
        let bytes_max = u32::try_from(bytes_max).unwrap_or(u32::MAX);
        let permits = usize::try_from(bytes_max).unwrap_or(Semaphore::MAX_PERMITS);
        Self { semaphore: Arc::new(Semaphore::new(permits.min(Semaphore::MAX_PERMITS))), bytes_max }
    }

    /// Waits for its turn; first come, first served, so that large batches are not passed by small ones for ever.
    async fn acquire(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        // More than there is at all would wait for ever.
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).min(self.bytes_max);
        // It fails only when the semaphore is closed, which nobody does.
        Arc::clone(&self.semaphore).acquire_many_owned(bytes).await.ok()
    }

    #[cfg(test)]
    fn available(&self) -> usize {
        self.semaphore.available_permits()
    }
}

/// The bounds that hold for one connection.
#[derive(Debug)]
pub(super) struct InFlight {
    connection: ByteBudget,
    node: Arc<ByteBudget>,
    metrics: Arc<Metrics>,
}

/// Bytes in flight until this is dropped.
#[derive(Debug)]
pub(super) struct InFlightPermit {
    _connection: Option<OwnedSemaphorePermit>,
    _node: Option<OwnedSemaphorePermit>,
    _gauge: GaugeGuard,
}

impl InFlight {
    /// For a new connection.
    pub(super) fn new(
        connection_bytes_max: u64,
        node: Arc<ByteBudget>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { connection: ByteBudget::new(connection_bytes_max), node, metrics }
    }

    /// Most bytes of this connection.
    pub(super) fn connection_bytes_max(&self) -> u32 {
        self.connection.bytes_max
    }

    /// Waits until both bounds have room.
    pub(super) async fn acquire(&self, bytes: usize) -> InFlightPermit {
        // The connection's first: who waits for its own answers holds nothing of the node's.
        let connection = self.connection.acquire(bytes).await;
        let node = self.node.acquire(bytes).await;
        let gauge = self.metrics.produce_in_flight(bytes as u64);
        InFlightPermit { _connection: connection, _node: node, _gauge: gauge }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn in_flight(connection: u64, node: &Arc<ByteBudget>) -> InFlight {
        InFlight::new(connection, Arc::clone(node), Arc::new(Metrics::new()))
    }

    #[test]
    fn a_connection_waits_for_its_own_answers() {
        let node = Arc::new(ByteBudget::new(100));
        let connection = in_flight(10, &node);
        let first = connection.acquire(8).now_or_never().unwrap();
        let mut second = Box::pin(connection.acquire(3));
        assert!(second.as_mut().now_or_never().is_none());
        assert_eq!(node.available(), 92, "who waits holds nothing of the node's");
        drop(first);
        let second = second.now_or_never().unwrap();
        assert_eq!(node.available(), 97);
        drop(second);
        assert_eq!(node.available(), 100);
    }

    #[test]
    fn all_connections_together_stay_within_the_node() {
        let node = Arc::new(ByteBudget::new(10));
        let (one, two) = (in_flight(10, &node), in_flight(10, &node));
        let first = one.acquire(6).now_or_never().unwrap();
        let mut second = Box::pin(two.acquire(6));
        assert!(second.as_mut().now_or_never().is_none());
        drop(first);
        assert!(second.now_or_never().is_some());
    }

    #[test]
    fn a_batch_larger_than_the_bound_takes_all_of_it_and_does_not_wait_for_ever() {
        let node = Arc::new(ByteBudget::new(10));
        let connection = in_flight(5, &node);
        let all = connection.acquire(50).now_or_never().unwrap();
        assert!(connection.acquire(1).now_or_never().is_none());
        drop(all);
        assert!(connection.acquire(1).now_or_never().is_some());
    }
}
