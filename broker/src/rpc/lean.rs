//! Services of which one method carries batches, and copies none of them.
//!
//! Owns: which methods go by way of [`highwater_proto::grpc`]. Never: what they do.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use highwater_proto::grpc;
use highwater_proto::internal::raft_transport_service_server::{
    RaftTransportService, RaftTransportServiceServer,
};
use highwater_proto::v1::consumer_service_server::{ConsumerService, ConsumerServiceServer};
use highwater_proto::v1::producer_service_server::{ProducerService, ProducerServiceServer};
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;

use super::consume::Consumers;
use super::produce::Producers;
use super::raft_transport::RaftTransport;
use super::{INTERNAL_MESSAGE_BYTES_MAX, MESSAGE_BYTES_MAX};

type Answer = BoxFuture<'static, Result<http::Response<Body>, Infallible>>;

/// The handlers of a service, one of whose methods is not served by the generated code.
pub(super) trait Lean: Sized + Send + Sync + 'static {
    /// The generated service.
    type Server: Service<
            http::Request<Body>,
            Response = http::Response<Body>,
            Error = Infallible,
            Future = Answer,
        > + NamedService
        + Clone
        + Send
        + 'static;
    /// Path of that method.
    const PATH: &'static str;
    fn server(handlers: Arc<Self>) -> Self::Server;
    fn answer(handlers: Arc<Self>, request: http::Request<Body>) -> Answer;
}

/// See the module.
pub(super) struct LeanServer<H: Lean> {
    handlers: Arc<H>,
    others: H::Server,
}

impl<H: Lean> LeanServer<H> {
    pub(super) fn new(handlers: H) -> Self {
        let handlers = Arc::new(handlers);
        Self { others: H::server(Arc::clone(&handlers)), handlers }
    }
}

impl<H: Lean> Clone for LeanServer<H> {
    fn clone(&self) -> Self {
        Self { handlers: Arc::clone(&self.handlers), others: self.others.clone() }
    }
}

impl<H: Lean> NamedService for LeanServer<H> {
    const NAME: &'static str = H::Server::NAME;
}

impl<H: Lean> Service<http::Request<Body>> for LeanServer<H> {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.others.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Answer {
        if request.uri().path() == H::PATH {
            return H::answer(Arc::clone(&self.handlers), request);
        }
        self.others.call(request)
    }
}

impl Lean for Producers {
    type Server = ProducerServiceServer<Self>;
    const PATH: &'static str = "/highwater.v1.ProducerService/ProduceStream";

    fn server(handlers: Arc<Self>) -> Self::Server {
        ProducerServiceServer::from_arc(handlers)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    fn answer(handlers: Arc<Self>, request: http::Request<Body>) -> Answer {
        Box::pin(grpc::answer(request, MESSAGE_BYTES_MAX, async move |request| {
            handlers.produce_stream(request).await
        }))
    }
}

impl Lean for Consumers {
    type Server = ConsumerServiceServer<Self>;
    const PATH: &'static str = "/highwater.v1.ConsumerService/Subscribe";

    fn server(handlers: Arc<Self>) -> Self::Server {
        ConsumerServiceServer::from_arc(handlers)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    fn answer(handlers: Arc<Self>, request: http::Request<Body>) -> Answer {
        Box::pin(grpc::answer(request, MESSAGE_BYTES_MAX, async move |request| {
            handlers.subscribe(request).await
        }))
    }
}

impl Lean for RaftTransport {
    type Server = RaftTransportServiceServer<Self>;
    const PATH: &'static str = "/highwater.internal.v1.RaftTransportService/Exchange";

    fn server(handlers: Arc<Self>) -> Self::Server {
        RaftTransportServiceServer::from_arc(handlers)
            .max_decoding_message_size(INTERNAL_MESSAGE_BYTES_MAX)
    }

    fn answer(handlers: Arc<Self>, request: http::Request<Body>) -> Answer {
        Box::pin(grpc::answer(request, INTERNAL_MESSAGE_BYTES_MAX, async move |request| {
            handlers.exchange(request).await
        }))
    }
}
