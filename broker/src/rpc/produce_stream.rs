//! ProduceStream: a reader that puts batches into queues in the order they come, and a stream of answers in order per partition.
//!
//! Owns: one produce stream from init to end. Backpressure: the reader waits for permits (and for room among the outstanding
//! answers), so the connection is not read meanwhile. Never: the log.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt, Stream};
use highwater_proto::v1;
use tokio::sync::{mpsc, watch};
use tonic::{Status, Streaming};
use v1::produce_stream_request::Message as Request;
use v1::produce_stream_response::Message as Response;

use super::door::{Door, expired};
use super::in_flight::InFlight;
use super::ordered::Ordered;
use super::turned_on;
use crate::error::BrokerError;
use crate::metrics::GaugeGuard;

/// Most answers between reader and writer; a client that does not read its answers is not read either.
const QUEUED_MAX: usize = 1_024;

/// How long batches are still read, and refused, after the goodbye: those that were on their way when it was said.
const GOODBYE_LINGER: Duration = Duration::from_secs(1);

/// Order is kept within a topic's partition.
type Lane = (Arc<str>, u32);

/// From the reader to the writer.
enum Queued {
    /// Goes out before whatever is still outstanding.
    Message(Response),
    /// Goes out when it is there, in its lane's order.
    Answer(Lane, BoxFuture<'static, Response>),
    /// Ends the stream with this, after everything outstanding.
    End(Status),
}

/// Starts the reader; the stream returned is the writer.
pub(super) fn serve(
    door: Door,
    in_flight: Arc<InFlight>,
    inbound: Streaming<v1::ProduceStreamRequest>,
    deadline: Option<Duration>,
) -> impl Stream<Item = Result<v1::ProduceStreamResponse, Status>> {
    let (queue, queued) = mpsc::channel(QUEUED_MAX);
    let guard = door.metrics.stream_opened("produce");
    let tasks = door.tasks.clone();
    let mut stopping = door.node.watch_stopping();
    let reader = Reader { door, in_flight, queue };
    tasks.spawn(async move {
        tokio::select! {
            // The writer is dropped with the connection; waiting for permits must not outlive it.
            () = reader.queue.closed() => {}
            () = expired(deadline) => {
                reader.end(Status::deadline_exceeded("the stream's deadline has passed")).await;
            }
            () = reader.run(inbound, &mut stopping) => {}
        }
    });
    let writer = Writer {
        queued: Some(queued),
        ready: VecDeque::new(),
        outstanding: Ordered::new(),
        end: None,
        _guard: guard,
    };
    futures::stream::unfold(writer, |mut writer| async {
        let item = writer.next().await?;
        Some((item, writer))
    })
}

/// Reads the client's side.
struct Reader {
    door: Door,
    in_flight: Arc<InFlight>,
    queue: mpsc::Sender<Queued>,
}

impl Reader {
    /// A queue that is closed means that the client is gone; nobody is left to tell.
    async fn send(&self, queued: Queued) {
        let _ = self.queue.send(queued).await;
    }

    async fn end(&self, status: Status) {
        self.send(Queued::End(status)).await;
    }

    async fn run(
        &self,
        mut inbound: Streaming<v1::ProduceStreamRequest>,
        stopping: &mut watch::Receiver<bool>,
    ) {
        match self.initialize(&mut inbound).await {
            Ok(Some(initialized)) => {
                self.send(Queued::Message(Response::Initialized(initialized))).await;
            }
            Ok(None) => return,
            Err(status) => return self.end(status).await,
        }
        let read = tokio::select! {
            read = self.read(&mut inbound) => read,
            () = turned_on(stopping) => {
                self.say_goodbye(&mut inbound).await;
                Ok(())
            }
        };
        if let Err(status) = read {
            self.end(status).await;
        }
    }

    /// Answers init; `None` if the client left without one.
    async fn initialize(
        &self,
        inbound: &mut Streaming<v1::ProduceStreamRequest>,
    ) -> Result<Option<v1::ProduceInitialized>, Status> {
        let init = match inbound.message().await {
            Ok(Some(v1::ProduceStreamRequest { message: Some(Request::Init(init)) })) => init,
            Ok(Some(_)) => return Err(Status::invalid_argument("the first message must be init")),
            Ok(None) => return Ok(None),
            Err(status) => return Err(status),
        };
        let producer_id = match (init.idempotent, init.producer_id) {
            (false, _) => 0,
            (true, 0) => {
                let allocated = self.door.node.allocate_producer_id().await;
                allocated.map_err(|error| self.door.status(&error.into()))?
            }
            (true, known) => known,
        };
        Ok(Some(v1::ProduceInitialized {
            broker: Some(self.door.broker_info()),
            producer_id,
            producer_epoch: 0,
            batch_bytes_max: u32::try_from(highwater_proto::batch::BATCH_BYTES_MAX)
                .unwrap_or(u32::MAX),
            in_flight_bytes_max: self.in_flight.connection_bytes_max(),
        }))
    }

    /// Reads batches until the client has sent its last one.
    async fn read(&self, inbound: &mut Streaming<v1::ProduceStreamRequest>) -> Result<(), Status> {
        while let Some(batch) = next_batch(inbound).await? {
            self.take(batch).await;
        }
        Ok(())
    }

    /// Puts one batch into its replica's queue and its answer into ours.
    async fn take(&self, batch: v1::ProduceBatch) {
        let request_id = batch.request_id;
        let topic = batch.topic.clone();
        let partition = batch.partition;
        let lane = (Arc::from(topic.as_str()), partition);
        let enqueued = self.door.append(&self.in_flight, batch).await;
        let door = self.door.clone();
        let answer = async move {
            let outcome = match enqueued {
                Ok(enqueued) => door.appended(enqueued, request_id, topic, partition).await,
                Err(error) => Err(error),
            };
            outcome.map_or_else(|error| failure(&door, request_id, &error), Response::Ack)
        };
        self.send(Queued::Answer(lane, answer.boxed())).await;
    }

    /// Says goodbye, then refuses what was already on its way: the client learns that it was not written.
    async fn say_goodbye(&self, inbound: &mut Streaming<v1::ProduceStreamRequest>) {
        let message = "this node is shutting down; follow the new leaders".to_owned();
        self.send(Queued::Message(Response::Goodbye(v1::Goodbye { message }))).await;
        let refuse = async {
            while let Ok(Some(batch)) = next_batch(inbound).await {
                let why = "it is shutting down".to_owned();
                let error = BrokerError::NotReady { why };
                let response = failure(&self.door, batch.request_id, &error);
                let lane = (Arc::from(batch.topic.as_str()), batch.partition);
                self.send(Queued::Answer(lane, std::future::ready(response).boxed())).await;
            }
        };
        // Either way the stream ends now; a batch that comes later was not read and not written.
        let _ = tokio::time::timeout(GOODBYE_LINGER, refuse).await;
    }
}

/// The next batch; `None` when the client has sent its last one.
async fn next_batch(
    inbound: &mut Streaming<v1::ProduceStreamRequest>,
) -> Result<Option<v1::ProduceBatch>, Status> {
    match inbound.message().await? {
        None => Ok(None),
        Some(v1::ProduceStreamRequest { message: Some(Request::Batch(batch)) }) => Ok(Some(batch)),
        Some(v1::ProduceStreamRequest { message: Some(Request::Init(_)) }) => {
            Err(Status::invalid_argument("init may come only once"))
        }
        Some(v1::ProduceStreamRequest { message: None }) => {
            Err(Status::invalid_argument("a message without content, or of a newer version"))
        }
    }
}

fn failure(door: &Door, request_id: u64, error: &BrokerError) -> Response {
    door.metrics.produce_failed(error.reason());
    Response::Failure(v1::ProduceFailure { request_id, error: Some(door.detail(error)) })
}

/// Writes the broker's side.
struct Writer {
    /// `None` when the reader has ended.
    queued: Option<mpsc::Receiver<Queued>>,
    ready: VecDeque<Response>,
    outstanding: Ordered<Lane, Response>,
    end: Option<Status>,
    _guard: GaugeGuard,
}

impl Writer {
    /// The next message; `None` at the end: the reader is done and every answer is out.
    async fn next(&mut self) -> Option<Result<v1::ProduceStreamResponse, Status>> {
        loop {
            if let Some(message) = self.ready.pop_front() {
                return Some(Ok(v1::ProduceStreamResponse { message: Some(message) }));
            }
            if self.queued.is_none() && self.outstanding.is_empty() {
                return self.end.take().map(Err);
            }
            tokio::select! {
                Some(answer) = self.outstanding.next(), if !self.outstanding.is_empty() => {
                    self.ready.push_back(answer);
                }
                queued = receive(&mut self.queued) => self.took(queued),
            }
        }
    }

    fn took(&mut self, queued: Option<Queued>) {
        match queued {
            Some(Queued::Message(message)) => self.ready.push_back(message),
            Some(Queued::Answer(lane, answer)) => self.outstanding.push(lane, answer),
            Some(Queued::End(status)) => {
                self.end = Some(status);
                self.queued = None;
            }
            None => self.queued = None,
        }
    }
}

/// The reader's next item; pending for ever once it has ended.
async fn receive(queued: &mut Option<mpsc::Receiver<Queued>>) -> Option<Queued> {
    match queued {
        Some(queued) => queued.recv().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use futures::future::{pending, ready};

    use super::*;
    use crate::metrics::Metrics;

    fn writer() -> (mpsc::Sender<Queued>, Writer) {
        let (sender, receiver) = mpsc::channel(8);
        let writer = Writer {
            queued: Some(receiver),
            ready: VecDeque::new(),
            outstanding: Ordered::new(),
            end: None,
            _guard: Metrics::new().stream_opened("produce"),
        };
        (sender, writer)
    }

    fn ack(request_id: u64) -> Response {
        Response::Ack(v1::ProduceAck { request_id, ..Default::default() })
    }

    fn answer(lane: &str, response: impl Future<Output = Response> + Send + 'static) -> Queued {
        Queued::Answer((Arc::from(lane), 0), response.boxed())
    }

    /// What the writer has to say now, by request id; 0 for anything but an ack.
    fn now(writer: &mut Writer) -> Vec<Result<u64, tonic::Code>> {
        let mut all = Vec::new();
        while let Some(Some(item)) = writer.next().now_or_never() {
            all.push(item.map_err(|status| status.code()).map(|response| match response.message {
                Some(Response::Ack(ack)) => ack.request_id,
                _ => 0,
            }));
        }
        all
    }

    #[tokio::test]
    async fn the_stream_ends_only_when_every_answer_is_out() {
        let (queue, mut writer) = writer();
        let (late, outcome) = tokio::sync::oneshot::channel::<u64>();
        queue.send(answer("a", async move { ack(outcome.await.unwrap()) })).await.ok().unwrap();
        drop(queue);
        assert!(now(&mut writer).is_empty());
        assert!(writer.next().now_or_never().is_none(), "not ended while an answer is outstanding");
        late.send(7).unwrap();
        assert_eq!(now(&mut writer), [Ok(7)]);
        assert!(writer.next().now_or_never().unwrap().is_none());
    }

    #[tokio::test]
    async fn a_fault_of_the_client_ends_the_stream_after_the_outstanding_answers() {
        let (queue, mut writer) = writer();
        queue.send(answer("a", ready(ack(1)))).await.ok().unwrap();
        queue.send(Queued::End(Status::invalid_argument("x"))).await.ok().unwrap();
        assert_eq!(now(&mut writer), [Ok(1), Err(tonic::Code::InvalidArgument)]);
        assert!(writer.next().now_or_never().unwrap().is_none());
    }

    #[tokio::test]
    async fn a_goodbye_does_not_wait_for_outstanding_answers() {
        let (queue, mut writer) = writer();
        queue.send(answer("a", pending())).await.ok().unwrap();
        let goodbye = Response::Goodbye(v1::Goodbye::default());
        queue.send(Queued::Message(goodbye)).await.ok().unwrap();
        assert_eq!(now(&mut writer), [Ok(0)]);
    }
}
