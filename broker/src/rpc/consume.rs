//! ConsumerService of one listener. Owns nothing: the unary way is in `fetch`, the stream in `subscribe`.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::Stream;
use futures::future::BoxFuture;
use highwater_proto::v1::consumer_service_server::{self, ConsumerService, ConsumerServiceServer};
use highwater_proto::{grpc, v1};
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;
use tonic::{Request, Response, Status, Streaming};

use super::door::{Door, deadline};
use super::{MESSAGE_BYTES_MAX, subscribe};

const SUBSCRIBE: &str = "/highwater.v1.ConsumerService/Subscribe";

/// ConsumerService of one listener.
#[derive(Clone)]
pub(super) struct Consumers {
    pub(super) door: Door,
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

/// The service, whose `Subscribe` sends records without copying them.
#[derive(Clone)]
pub(super) struct ConsumerFront {
    consumers: Consumers,
    others: ConsumerServiceServer<Consumers>,
}

impl ConsumerFront {
    pub(super) fn new(consumers: Consumers) -> Self {
        let others = ConsumerServiceServer::new(consumers.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        Self { consumers, others }
    }
}

impl NamedService for ConsumerFront {
    const NAME: &'static str = consumer_service_server::SERVICE_NAME;
}

impl Service<http::Request<Body>> for ConsumerFront {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        if request.uri().path() != SUBSCRIBE {
            return self.others.call(request);
        }
        let consumers = self.consumers.clone();
        Box::pin(grpc::answer(request, MESSAGE_BYTES_MAX, async move |request| {
            consumers.subscribe(request).await
        }))
    }
}
