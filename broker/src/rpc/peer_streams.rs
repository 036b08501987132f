//! Raft traffic to other nodes: one bounded queue and one stream for each peer.
//!
//! Owns: connecting, saying hello first, reconnecting with backoff, and the queues. A queue exists only while its stream's
//! hello stands accepted: nothing is kept for a peer that cannot be reached, since raft sends again what is still needed.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::Stream;
use highwater_proto::internal::exchange_request::Message;
use highwater_proto::{grpc, internal};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tonic::{Status, Streaming};

use super::INTERNAL_MESSAGE_BYTES_MAX;
use super::dial::Dialer;
use crate::cluster::NodeId;
use crate::cluster::peer::{PeerEvents, PeerStreams};
use crate::env::Tasks;

/// Most batches in the queue of a peer.
const QUEUED_BATCHES_MAX: usize = 1_024;

/// Most bytes in the queue of a peer.
const QUEUED_BYTES_MAX: u64 = 64 << 20;

/// A batch is cut into messages of about this many bytes; one Raft message is never cut.
const MESSAGE_BYTES_TARGET: u64 = 4 << 20;

/// First and longest pause between two tries to connect.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// Longest wait for the answer to hello.
const HELLO_MAX: Duration = Duration::from_secs(2);

// One entry of the largest batch fits into one message, with room for the rest of it.
const _: () = assert!(
    MESSAGE_BYTES_TARGET + highwater_proto::batch::BATCH_BYTES_MAX as u64 + (1 << 20)
        <= INTERNAL_MESSAGE_BYTES_MAX as u64
);

type Events = watch::Receiver<Option<Arc<dyn PeerEvents>>>;

/// [`PeerStreams`] over gRPC.
pub(crate) struct GrpcPeerStreams {
    tasks: Tasks,
    dialer: Dialer,
    peers: Mutex<HashMap<NodeId, Peer>>,
    events: watch::Sender<Option<Arc<dyn PeerEvents>>>,
}

/// One peer: its address, its task and, while the stream stands, its queue.
struct Peer {
    address: String,
    slot: Slot,
    task: AbortHandle,
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Where the queue is while there is one.
type Slot = Arc<Mutex<Option<Queue>>>;

/// The sending end of a queue.
#[derive(Clone)]
struct Queue {
    batches: mpsc::Sender<(u64, internal::PeerBatch)>,
    bytes: Arc<AtomicU64>,
}

impl Queue {
    fn new() -> (Self, mpsc::Receiver<(u64, internal::PeerBatch)>) {
        let (batches, receiver) = mpsc::channel(QUEUED_BATCHES_MAX);
        (Self { batches, bytes: Arc::new(AtomicU64::new(0)) }, receiver)
    }

    /// Whether the batch was taken.
    fn push(&self, batch: internal::PeerBatch) -> bool {
        let bytes = batch_bytes(&batch);
        // Several workers may push at once and overshoot by what each holds; the bound is about memory, not exact.
        if self.bytes.load(Ordering::Relaxed) + bytes > QUEUED_BYTES_MAX {
            return false;
        }
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let is_taken = self.batches.try_send((bytes, batch)).is_ok();
        if !is_taken {
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
        is_taken
    }
}

impl GrpcPeerStreams {
    /// No streams yet; they begin once there are peers and somebody to tell of events.
    pub(crate) fn new(tasks: Tasks, dialer: Dialer) -> Self {
        Self { tasks, dialer, peers: Mutex::new(HashMap::new()), events: watch::Sender::new(None) }
    }

    /// The peers that are at this address.
    pub(super) fn nodes_at(&self, address: &str) -> Vec<NodeId> {
        let peers = self.peers.lock();
        peers.iter().filter(|(_, peer)| peer.address == address).map(|(node, _)| *node).collect()
    }

    /// Cluster and id of this node; `None` while it starts.
    pub(super) fn own_identity(&self) -> Option<(String, NodeId)> {
        let events = self.events.borrow().clone()?;
        let hello = events.own_hello(0);
        Some((hello.cluster_id, hello.node_id))
    }

    /// Whom to tell. Comes after the node was built, which needs these streams itself.
    pub(crate) fn set_events(&self, events: Arc<dyn PeerEvents>) {
        self.events.send_replace(Some(events));
    }

    fn start(&self, node: NodeId, address: String) -> Peer {
        let slot = Slot::default();
        let connection = Connection {
            dialer: self.dialer.clone(),
            node,
            address: address.clone(),
            slot: Arc::clone(&slot),
            events: self.events.subscribe(),
        };
        let task = self.tasks.spawn(connection.keep()).abort_handle();
        Peer { address, slot, task }
    }
}

impl PeerStreams for GrpcPeerStreams {
    fn send(&self, to: NodeId, batch: internal::PeerBatch) -> bool {
        let queue = self.peers.lock().get(&to).and_then(|peer| peer.slot.lock().clone());
        let Some(queue) = queue else { return false };
        // What follows a part that was not taken would only be refused by its receiver.
        split(batch).into_iter().all(|part| queue.push(part))
    }

    fn set_peers(&self, peers: Vec<(NodeId, String)>) {
        let mut current = self.peers.lock();
        let mut next = HashMap::new();
        for (node, address) in peers {
            let kept = current.remove(&node).filter(|peer| peer.address == address);
            next.insert(node, kept.unwrap_or_else(|| self.start(node, address)));
        }
        *current = next;
    }

    fn close(&self) {
        self.peers.lock().clear();
        self.events.send_replace(None);
    }
}

/// Keeps a stream to one peer.
struct Connection {
    dialer: Dialer,
    node: NodeId,
    address: String,
    slot: Slot,
    events: Events,
}

impl Connection {
    /// Connects again and again, until the task is aborted or nobody is left to tell.
    async fn keep(mut self) {
        let Ok(events) = self.events.wait_for(Option::is_some).await.map(|events| events.clone())
        else {
            return;
        };
        let Some(events) = events else { return };
        let (first, longest) = BACKOFF;
        let mut pause = first;
        let mut told = String::new();
        loop {
            let outcome = self.exchange(events.as_ref(), &mut pause).await;
            let stood = self.slot.lock().take().is_some();
            events.unreachable(self.node);
            if stood {
                events.broke(self.node);
            }
            let why = outcome.map_or_else(|why| why, |()| "the other side ended it".to_owned());
            // Once for each reason, not once for each try.
            if why != told {
                tracing::info!(
                    node = self.node,
                    address = self.address,
                    why,
                    "no stream to a peer"
                );
                told = why;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(longest);
        }
    }

    /// One stream from hello to its end.
    async fn exchange(&self, events: &dyn PeerEvents, pause: &mut Duration) -> Result<(), String> {
        let connected = self.dialer.connect(&self.address, self.node).await;
        let channel = connected.map_err(|error| describe(&error))?;
        let (queue, batches) = Queue::new();
        let outbound = outbound(events.own_hello(self.node), batches, Arc::clone(&queue.bytes));
        let answer = async {
            let inbound = grpc::open(channel, grpc::EXCHANGE, outbound, INTERNAL_MESSAGE_BYTES_MAX);
            let mut inbound: Streaming<internal::ExchangeResponse> = inbound.await?;
            let answer = inbound.message().await?;
            let hello = answer.and_then(|answer| answer.hello);
            let hello = hello.ok_or_else(|| Status::unavailable("no answer to hello"))?;
            Ok::<_, Status>((hello, inbound))
        };
        let answered = tokio::time::timeout(HELLO_MAX, answer).await;
        let answered = answered.map_err(|_| "no answer to hello in time".to_owned())?;
        let (hello, mut inbound) = answered.map_err(|status| status.message().to_owned())?;
        if hello.node_id != self.node {
            return Err(format!("node {} answered instead", hello.node_id));
        }
        events.hello_answered(&hello).map_err(|error| error.to_string())?;
        tracing::info!(node = self.node, address = self.address, "stream to a peer stands");
        *pause = BACKOFF.0;
        *self.slot.lock() = Some(queue);
        loop {
            match inbound.message().await {
                Ok(Some(_)) => {}
                Ok(None) => return Ok(()),
                Err(status) => return Err(status.message().to_owned()),
            }
        }
    }
}

/// Hello first, then whatever is queued.
fn outbound(
    hello: internal::PeerHello,
    batches: mpsc::Receiver<(u64, internal::PeerBatch)>,
    bytes: Arc<AtomicU64>,
) -> impl Stream<Item = internal::ExchangeRequest> + Unpin {
    let state = (Some(hello), batches, bytes);
    let messages = futures::stream::unfold(state, |(hello, mut batches, bytes)| async move {
        let message = match hello {
            Some(hello) => Message::Hello(hello),
            None => {
                let (taken, batch) = batches.recv().await?;
                bytes.fetch_sub(taken, Ordering::Relaxed);
                Message::Batch(batch)
            }
        };
        let request = internal::ExchangeRequest { message: Some(message) };
        Some((request, (None, batches, bytes)))
    });
    Box::pin(messages)
}

/// An error with what caused it: the transport's own words alone say only "transport error".
fn describe(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// About how many bytes a Raft message takes.
fn message_bytes(message: &internal::GroupMessage) -> u64 {
    let inner = message.message.as_ref();
    let entries: usize = inner.map_or(0, |message| {
        let snapshot = message.snapshot.as_ref().map_or(0, |snapshot| snapshot.data.len());
        let entries =
            message.entries.iter().map(|entry| entry.data.len() + entry.context.len() + 32);
        entries.sum::<usize>() + message.context.len() + snapshot
    });
    64 + entries as u64
}

fn batch_bytes(batch: &internal::PeerBatch) -> u64 {
    let small = batch.appended.len() + batch.leaders.len() + batch.quiesces.len();
    let small = small as u64 * 32;
    batch.messages.iter().map(message_bytes).sum::<u64>() + small
}

/// Cuts a batch so that each part fits into one gRPC message. Order is kept.
fn split(mut batch: internal::PeerBatch) -> Vec<internal::PeerBatch> {
    if batch_bytes(&batch) <= MESSAGE_BYTES_TARGET {
        return vec![batch];
    }
    let messages = std::mem::take(&mut batch.messages);
    let mut parts = vec![batch];
    let mut bytes = 0;
    for message in messages {
        let size = message_bytes(&message);
        if bytes > 0 && bytes + size > MESSAGE_BYTES_TARGET {
            parts.push(internal::PeerBatch::default());
            bytes = 0;
        }
        bytes += size;
        if let Some(part) = parts.last_mut() {
            part.messages.push(message);
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(group_id: u64, bytes: usize) -> internal::GroupMessage {
        let entry = internal::RaftEntry { data: vec![0; bytes].into(), ..Default::default() };
        let raft = internal::RaftMessage { entries: vec![entry], ..Default::default() };
        internal::GroupMessage { group_id, message: Some(raft), wants_appended: false }
    }

    fn batch(messages: Vec<internal::GroupMessage>) -> internal::PeerBatch {
        internal::PeerBatch { messages, ..Default::default() }
    }

    #[test]
    fn a_large_batch_is_cut_between_messages_and_keeps_its_order() {
        let mut whole = batch((0..10).map(|group| message(group, 1 << 20)).collect());
        whole.leaders.push(internal::LeaderStatus { group_id: 1, term: 2 });
        let parts = split(whole.clone());
        assert!(parts.len() > 1);
        assert!(parts.iter().all(|part| batch_bytes(part) <= MESSAGE_BYTES_TARGET + 32));
        let messages: Vec<_> = parts.iter().flat_map(|part| part.messages.clone()).collect();
        assert_eq!(messages, whole.messages);
        assert_eq!(parts[0].leaders, whole.leaders);
    }

    #[test]
    fn a_single_large_message_is_not_cut() {
        let whole = batch(vec![message(1, 5 << 20)]);
        assert_eq!(split(whole.clone()), vec![whole]);
    }

    #[tokio::test]
    async fn a_full_queue_drops_and_says_so_and_has_room_again_when_read() {
        let (queue, batches) = Queue::new();
        let mut pushed = 0_u64;
        while queue.push(batch(vec![message(1, 4 << 20)])) {
            pushed += 1;
        }
        assert_eq!(pushed, QUEUED_BYTES_MAX / (4 << 20) - 1);
        let stream = outbound(internal::PeerHello::default(), batches, Arc::clone(&queue.bytes));
        let mut stream = std::pin::pin!(stream);
        for _ in 0..2 {
            futures::StreamExt::next(&mut stream).await.unwrap();
        }
        assert!(queue.push(batch(vec![message(1, 4 << 20)])));
        assert!(!queue.push(batch(vec![message(1, 4 << 20)])));
    }

    #[test]
    fn many_small_batches_are_bounded_by_number() {
        let (queue, _batches) = Queue::new();
        let taken = (0..2 * QUEUED_BATCHES_MAX).filter(|_| queue.push(batch(Vec::new()))).count();
        assert_eq!(taken, QUEUED_BATCHES_MAX);
    }
}
