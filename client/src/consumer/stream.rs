//! One Subscribe stream to one broker: opens it and hands everything that comes back to the driver.
//!
//! Owns: the handshake and its deadline. Never: decides what an answer means.

use std::sync::Arc;

use highwater_proto::v1::subscribe_request::Message as Request;
use highwater_proto::v1::subscribe_response::Message as Response;
use highwater_proto::{grpc, v1};
use tokio::sync::mpsc;
use tonic::Streaming;

use crate::client::Client;
use crate::error::Refusal;

/// What happens on a stream.
#[derive(Debug)]
pub(crate) enum Heard {
    /// The broker takes requests.
    Opened,
    /// It said something.
    Message(Response),
    /// The stream is gone; nothing follows.
    Lost(Refusal),
}

/// The driver's end of a stream.
#[derive(Debug)]
pub(crate) struct Stream {
    /// Carries credits and seeks: few and small.
    requests: mpsc::UnboundedSender<v1::SubscribeRequest>,
    task: tokio::task::JoinHandle<()>,
}

impl Stream {
    /// Opens a stream to `address`; what is heard goes to `heard` with this `id`. What arrives there is bounded by the credit
    /// that was given.
    pub(crate) fn open(
        client: &Client,
        address: Arc<str>,
        init: v1::SubscribeInit,
        id: u64,
        heard: mpsc::UnboundedSender<(u64, Heard)>,
    ) -> Self {
        let (requests, outbound) = mpsc::unbounded_channel();
        let stream = Self {
            requests,
            task: client.shared.env.spawn({
                let client = client.clone();
                async move {
                    let lost = listen(&client, &address, outbound, id, &heard).await;
                    // The driver may have gone first.
                    _ = heard.send((id, Heard::Lost(lost)));
                }
            }),
        };
        stream.send(Request::Init(init));
        stream
    }

    /// Sends a request. If the stream is gone, the driver hears of that by [`Heard::Lost`].
    pub(crate) fn send(&self, message: Request) {
        _ = self.requests.send(v1::SubscribeRequest { message: Some(message) });
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
    outbound: mpsc::UnboundedReceiver<v1::SubscribeRequest>,
    id: u64,
    heard: &mpsc::UnboundedSender<(u64, Heard)>,
) -> Refusal {
    let connections = &client.shared.connections;
    let patience = connections.connect_timeout();
    let open = connections.open(address, grpc::SUBSCRIBE, outbound);
    let opened = tokio::time::timeout(patience, open).await;
    let mut answers: Streaming<v1::SubscribeResponse> = match opened {
        Ok(Ok(answers)) => answers,
        Ok(Err(refusal)) => return refusal,
        Err(_late) => {
            return Refusal::connection(format!("{address} opened no stream within {patience:?}"));
        }
    };
    if heard.send((id, Heard::Opened)).is_err() {
        return Refusal::connection("the consumer is gone");
    }
    loop {
        let message = match answers.message().await {
            Ok(Some(response)) => response.message,
            Ok(None) => return Refusal::connection(format!("{address} ended the stream")),
            Err(status) => return Refusal::from_status(&status),
        };
        // None is a message of a later version.
        if let Some(message) = message
            && heard.send((id, Heard::Message(message))).is_err()
        {
            return Refusal::connection("the consumer is gone");
        }
    }
}
