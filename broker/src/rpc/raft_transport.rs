//! RaftTransportService: the receiving end of the streams that other nodes open.
//!
//! Owns: the handshake and the order of deliveries of one stream. Never: what a message means.

use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use highwater_proto::internal::exchange_request::Message;
use highwater_proto::internal::raft_transport_service_server::{
    RaftTransportService, RaftTransportServiceServer,
};
use highwater_proto::{grpc, internal};
use tokio::sync::watch;
use tonic::{Request, Response, Status, Streaming};

use super::lean::{self, LeanServer};
use super::{INTERNAL_MESSAGE_BYTES_MAX, sender, status, turned_on};
use crate::cluster::NodeId;
use crate::cluster::peer::PeerEvents;

/// RaftTransportService of the internal listener.
pub(super) struct RaftTransport {
    pub(super) events: Arc<dyn PeerEvents>,
    /// True once the broker closes its streams.
    pub(super) closing: watch::Receiver<bool>,
}

impl RaftTransport {
    pub(super) fn server(self) -> LeanServer<RaftTransportServiceServer<Self>> {
        let handlers = Arc::new(self);
        let others = RaftTransportServiceServer::from_arc(Arc::clone(&handlers))
            .max_decoding_message_size(INTERNAL_MESSAGE_BYTES_MAX);
        let lean = move |request| -> lean::Answer {
            let handlers = Arc::clone(&handlers);
            Box::pin(grpc::answer(request, INTERNAL_MESSAGE_BYTES_MAX, async move |request| {
                handlers.exchange(request).await
            }))
        };
        LeanServer::new(grpc::EXCHANGE, lean, others)
    }
}

#[tonic::async_trait]
impl RaftTransportService for RaftTransport {
    type ExchangeStream =
        Pin<Box<dyn Stream<Item = Result<internal::ExchangeResponse, Status>> + Send>>;

    async fn exchange(
        &self,
        request: Request<Streaming<internal::ExchangeRequest>>,
    ) -> Result<Response<Self::ExchangeStream>, Status> {
        let certified = sender::certified(&request);
        let mut inbound = request.into_inner();
        let hello = match inbound.message().await? {
            Some(internal::ExchangeRequest { message: Some(Message::Hello(hello)) }) => hello,
            _ => return Err(Status::invalid_argument("the first message must be hello")),
        };
        sender::check_node(certified, hello.node_id).map_err(Status::permission_denied)?;
        let own = self.events.hello(&hello).map_err(|error| status::status(&error, |_| None))?;
        let receiver = Receiver {
            inbound,
            from: hello.node_id,
            events: Arc::clone(&self.events),
            closing: self.closing.clone(),
            own: Some(own),
        };
        // The stream of answers drives the receiving: it ends with the connection, and nothing is left behind.
        let answers = futures::stream::unfold(receiver, |mut receiver| async {
            let answer = receiver.next().await?;
            Some((answer, receiver))
        });
        Ok(Response::new(Box::pin(answers)))
    }
}

/// One stream from another node.
struct Receiver {
    inbound: Streaming<internal::ExchangeRequest>,
    from: NodeId,
    events: Arc<dyn PeerEvents>,
    closing: watch::Receiver<bool>,
    own: Option<internal::PeerHello>,
}

impl Receiver {
    /// Answers hello first; then delivers until the stream ends, which is its only other answer.
    async fn next(&mut self) -> Option<Result<internal::ExchangeResponse, Status>> {
        if let Some(hello) = self.own.take() {
            return Some(Ok(internal::ExchangeResponse { hello: Some(hello) }));
        }
        loop {
            let message = tokio::select! {
                message = self.inbound.message() => message,
                () = turned_on(&mut self.closing) => return None,
            };
            match message {
                Ok(Some(internal::ExchangeRequest { message: Some(Message::Batch(batch)) })) => {
                    self.events.deliver(self.from, batch);
                }
                Ok(Some(_)) => {
                    return Some(Err(Status::invalid_argument("only batches follow hello")));
                }
                // The sender notices by itself and tells its groups.
                Ok(None) | Err(_) => return None,
            }
        }
    }
}
