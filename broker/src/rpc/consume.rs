//! ConsumerService of one listener. Owns nothing: the unary way is in `fetch`, the stream in `subscribe`.

use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use highwater_proto::v1::consumer_service_server::{ConsumerService, ConsumerServiceServer};
use highwater_proto::{grpc, v1};
use tonic::{Request, Response, Status, Streaming};

use super::door::{Door, deadline};
use super::lean::{self, LeanServer};
use super::{MESSAGE_BYTES_MAX, subscribe};

/// ConsumerService of one listener.
pub(super) struct Consumers {
    pub(super) door: Door,
}

impl Consumers {
    pub(super) fn server(self) -> LeanServer<ConsumerServiceServer<Self>> {
        let handlers = Arc::new(self);
        let others = ConsumerServiceServer::from_arc(Arc::clone(&handlers))
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let lean = move |request| -> lean::Answer {
            let handlers = Arc::clone(&handlers);
            Box::pin(grpc::answer(request, MESSAGE_BYTES_MAX, async move |request| {
                handlers.subscribe(request).await
            }))
        };
        LeanServer::new(grpc::SUBSCRIBE, lean, others)
    }
}

#[tonic::async_trait]
impl ConsumerService for Consumers {
    async fn fetch(
        &self,
        request: Request<v1::FetchRequest>,
    ) -> Result<Response<v1::FetchResponse>, Status> {
        let fetched = self.door.fetch(request.into_inner()).await;
        fetched.map(Response::new).map_err(|error| self.door.status(&error))
    }

    type SubscribeStream =
        Pin<Box<dyn Stream<Item = Result<v1::SubscribeResponse, Status>> + Send>>;

    async fn subscribe(
        &self,
        request: Request<Streaming<v1::SubscribeRequest>>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let time_left = deadline(request.metadata());
        let pushed = subscribe::serve(self.door.clone(), request.into_inner(), time_left);
        Ok(Response::new(Box::pin(pushed)))
    }
}
