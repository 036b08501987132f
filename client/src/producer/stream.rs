//! One ProduceStream to one broker: opens it and hands everything that comes back to the driver.
//!
//! Owns: the handshake and its deadline. Never: decides what to send or what an answer means.

use std::sync::Arc;

use highwater_proto::v1::produce_stream_request::Message as Request;
use highwater_proto::v1::produce_stream_response::Message as Response;
use highwater_proto::{grpc, v1};
use tokio::sync::mpsc;
use tonic::Streaming;

use crate::client::Client;
use crate::error::Refusal;

/// What happens on a stream.
#[derive(Debug)]
pub(crate) enum Heard {
    /// The broker is ready for batches.
    Opened(v1::ProduceInitialized),
    /// A batch succeeded.
    Ack(v1::ProduceAck),
    /// A batch failed.
    Failure(v1::ProduceFailure),
    /// Send nothing more here.
    Goodbye,
    /// The stream is gone; nothing follows.
    Lost(Refusal),
}

/// The driver's end of a stream.
#[derive(Debug)]
pub(crate) struct Stream {
    /// Bounded by what the producer may have unacknowledged: everything in it counts there.
    requests: mpsc::UnboundedSender<v1::ProduceStreamRequest>,
    task: tokio::task::JoinHandle<()>,
}

impl Stream {
    /// Opens a stream to `address`; what is heard goes to `heard` with this `id`.
    pub(crate) fn open(
        client: &Client,
        address: Arc<str>,
        init: v1::ProduceInit,
        id: u64,
        heard: mpsc::UnboundedSender<(u64, Heard)>,
    ) -> Self {
        let (requests, outbound) = mpsc::unbounded_channel();
        let message = Some(Request::Init(init));
        // The receiver lives until the task below takes it.
        _ = requests.send(v1::ProduceStreamRequest { message });
        let for_task = client.clone();
        let task = client.shared.env.spawn(async move {
            let lost = listen(&for_task, &address, outbound, id, &heard).await;
            // The driver may have gone first.
            _ = heard.send((id, Heard::Lost(lost)));
        });
        Self { requests, task }
    }

    /// Sends a batch. If the stream is gone, the driver hears of that by [`Heard::Lost`].
    pub(crate) fn send(&self, batch: v1::ProduceBatch) {
        let message = Some(Request::Batch(batch));
        _ = self.requests.send(v1::ProduceStreamRequest { message });
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Reads until the stream ends; returns why it did.
async fn listen(
    client: &Client,
    address: &Arc<str>,
    outbound: mpsc::UnboundedReceiver<v1::ProduceStreamRequest>,
    id: u64,
    heard: &mpsc::UnboundedSender<(u64, Heard)>,
) -> Refusal {
    let connections = &client.shared.connections;
    let patience = connections.connect_timeout();
    let open = async {
        let mut answers: Streaming<v1::ProduceStreamResponse> =
            connections.open(address, grpc::PRODUCE_STREAM, outbound).await?;
        match answers.message().await.map_err(|status| Refusal::from_status(&status))? {
            Some(v1::ProduceStreamResponse { message: Some(Response::Initialized(opened)) }) => {
                Ok((answers, opened))
            }
            other => Err(Refusal::connection(format!("unexpected first answer: {other:?}"))),
        }
    };
    let (mut answers, opened) = match tokio::time::timeout(patience, open).await {
        Ok(Ok(opened)) => opened,
        Ok(Err(refusal)) => return refusal,
        Err(_late) => {
            return Refusal::connection(format!("{address} opened no stream within {patience:?}"));
        }
    };
    if heard.send((id, Heard::Opened(opened))).is_err() {
        return Refusal::connection("the producer is gone");
    }
    loop {
        let message = match answers.message().await {
            Ok(Some(response)) => response.message,
            Ok(None) => return Refusal::connection(format!("{address} ended the stream")),
            Err(status) => return Refusal::from_status(&status),
        };
        let what = match message {
            Some(Response::Ack(ack)) => Heard::Ack(ack),
            Some(Response::Failure(failure)) => Heard::Failure(failure),
            Some(Response::Goodbye(_)) => Heard::Goodbye,
            // A message of a later version; it does not concern batches in flight.
            None => continue,
            Some(Response::Initialized(_)) => {
                return Refusal::connection(format!("{address} opened the stream twice"));
            }
        };
        if heard.send((id, what)).is_err() {
            return Refusal::connection("the producer is gone");
        }
    }
}
