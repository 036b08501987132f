//! Services of which one method carries batches, and copies none of them.
//!
//! Owns: sending that method's calls to [`highwater_proto::grpc`], and all others to the generated code. Never: what they do.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;

/// What a call is answered with.
pub(super) type Answer = BoxFuture<'static, Result<http::Response<Body>, Infallible>>;

/// See the module.
#[derive(Clone)]
pub(super) struct LeanServer<S> {
    path: &'static str,
    lean: Arc<dyn Fn(http::Request<Body>) -> Answer + Send + Sync>,
    others: S,
}

impl<S> LeanServer<S> {
    /// Calls of the method at `path` go to `lean`, calls of the service's `others` to those.
    pub(super) fn new(
        path: &'static str,
        lean: impl Fn(http::Request<Body>) -> Answer + Send + Sync + 'static,
        others: S,
    ) -> Self {
        Self { path, lean: Arc::new(lean), others }
    }
}

impl<S: NamedService> NamedService for LeanServer<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for LeanServer<S>
where
    S: Service<
            http::Request<Body>,
            Response = http::Response<Body>,
            Error = Infallible,
            Future = Answer,
        >,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.others.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Answer {
        if request.uri().path() == self.path {
            return (self.lean)(request);
        }
        self.others.call(request)
    }
}
