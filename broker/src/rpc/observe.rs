//! Counts every gRPC call by method and code, and times unary ones.
//!
//! Owns: the list of methods that get a series of their own; whatever else a client calls counts as `unknown`, so that
//! nobody can create series at will. Never: changes a request or an answer.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{HeaderMap, Request, Response};
use http_body::{Frame, SizeHint};
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Layer, Service};

use super::status::code_name;
use crate::env::Clock;
use crate::metrics::Metrics;

/// Path, name in the metrics, and whether its time is of interest (unary).
const METHODS: &[(&str, &str, bool)] = &[
    ("/highwater.v1.ProducerService/Produce", "ProducerService/Produce", true),
    ("/highwater.v1.ProducerService/ProduceStream", "ProducerService/ProduceStream", false),
    ("/highwater.v1.ConsumerService/Fetch", "ConsumerService/Fetch", true),
    ("/highwater.v1.ConsumerService/Subscribe", "ConsumerService/Subscribe", false),
    ("/highwater.v1.TopicService/Create", "TopicService/Create", true),
    ("/highwater.v1.TopicService/Update", "TopicService/Update", true),
    ("/highwater.v1.TopicService/Get", "TopicService/Get", true),
    ("/highwater.v1.TopicService/List", "TopicService/List", true),
    ("/highwater.v1.TopicService/Delete", "TopicService/Delete", true),
    ("/highwater.v1.TopicService/Trim", "TopicService/Trim", true),
    ("/highwater.v1.TopicService/ListOptions", "TopicService/ListOptions", true),
    ("/highwater.v1.GroupService/Join", "GroupService/Join", false),
    ("/highwater.v1.GroupService/List", "GroupService/List", true),
    ("/highwater.v1.GroupService/Describe", "GroupService/Describe", true),
    ("/highwater.v1.GroupService/Delete", "GroupService/Delete", true),
    ("/highwater.v1.GroupService/CommitOffsets", "GroupService/CommitOffsets", true),
    ("/highwater.v1.GroupService/FetchOffsets", "GroupService/FetchOffsets", true),
    ("/highwater.v1.GroupService/ResetOffsets", "GroupService/ResetOffsets", true),
    ("/highwater.v1.ClusterService/GetCluster", "ClusterService/GetCluster", true),
    ("/highwater.v1.ClusterService/GetHealth", "ClusterService/GetHealth", true),
    ("/highwater.v1.ClusterService/GetMetadata", "ClusterService/GetMetadata", true),
    ("/highwater.v1.ClusterService/WatchMetadata", "ClusterService/WatchMetadata", false),
    ("/highwater.v1.ClusterService/TransferLeadership", "ClusterService/TransferLeadership", true),
    ("/highwater.v1.ClusterService/ReassignPartition", "ClusterService/ReassignPartition", true),
    ("/highwater.v1.ClusterService/AddNode", "ClusterService/AddNode", true),
    ("/highwater.v1.ClusterService/RemoveNode", "ClusterService/RemoveNode", true),
    ("/highwater.v1.ClusterService/Rebalance", "ClusterService/Rebalance", true),
    ("/highwater.v1.RegistryService/Register", "RegistryService/Register", true),
    ("/highwater.v1.RegistryService/Renew", "RegistryService/Renew", true),
    ("/highwater.v1.RegistryService/Deregister", "RegistryService/Deregister", true),
    ("/highwater.v1.RegistryService/List", "RegistryService/List", true),
    ("/highwater.v1.RegistryService/Watch", "RegistryService/Watch", false),
    ("/grpc.health.v1.Health/Check", "Health/Check", true),
    ("/grpc.health.v1.Health/Watch", "Health/Watch", false),
];

/// Wraps services with counting.
#[derive(Clone)]
pub(super) struct ObserveLayer {
    pub(super) metrics: Arc<Metrics>,
    pub(super) clock: Arc<dyn Clock>,
}

impl<S> Layer<S> for ObserveLayer {
    type Service = Observe<S>;

    fn layer(&self, inner: S) -> Observe<S> {
        Observe { inner, layer: self.clone() }
    }
}

/// A service whose calls are counted.
#[derive(Clone)]
pub(super) struct Observe<S> {
    inner: S,
    layer: ObserveLayer,
}

impl<S> Service<Request<Body>> for Observe<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Send,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let call = Call::begin(self.layer.clone(), request.uri().path());
        let answer = self.inner.call(request);
        Box::pin(async move {
            // A call that is dropped here, because the client went away or its time was up, counts as cancelled.
            let response = answer.await?;
            Ok(call.continue_with(response))
        })
    }
}

/// One call; counted when it ends or is dropped.
struct Call {
    layer: ObserveLayer,
    method: &'static str,
    started: Option<Duration>,
    is_counted: bool,
}

impl Call {
    fn begin(layer: ObserveLayer, path: &str) -> Self {
        let known = METHODS.iter().find(|(known, ..)| *known == path);
        let (method, is_unary) =
            known.map_or(("unknown", false), |&(_, name, unary)| (name, unary));
        let started = is_unary.then(|| layer.clock.monotonic());
        Self { layer, method, started, is_counted: false }
    }

    fn continue_with(mut self, response: Response<Body>) -> Response<Body> {
        // An answer that is an error from the start has its status among the headers.
        if let Some(status) = Status::from_header_map(response.headers()) {
            self.end(status.code());
            return response;
        }
        response.map(|body| Body::new(ObservedBody { inner: body, call: self }))
    }

    fn end(&mut self, code: Code) {
        if std::mem::replace(&mut self.is_counted, true) {
            return;
        }
        let now = self.layer.clock.monotonic();
        let seconds = self.started.map(|started| now.saturating_sub(started).as_secs_f64());
        self.layer.metrics.request_done(self.method, code_name(code), seconds);
    }

    fn end_with_trailers(&mut self, trailers: &HeaderMap) {
        self.end(Status::from_header_map(trailers).map_or(Code::Unknown, |status| status.code()));
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.end(Code::Cancelled);
    }
}

/// A body whose trailers tell how the call ended.
struct ObservedBody {
    inner: Body,
    call: Call,
}

impl http_body::Body for ObservedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = Pin::new(&mut self.inner).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &frame
            && let Some(trailers) = frame.trailers_ref()
        {
            self.call.end_with_trailers(trailers);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost::Message;

    use super::*;
    use crate::env::SystemClock;
    use crate::metrics::ScrapeFigures;

    #[test]
    fn every_method_of_the_public_services_has_a_series_of_its_own() {
        let descriptors =
            prost_types::FileDescriptorSet::decode(highwater_proto::PUBLIC_DESCRIPTORS).unwrap();
        let mut declared = BTreeSet::new();
        for file in &descriptors.file {
            for service in &file.service {
                for method in &service.method {
                    let is_unary = !method.client_streaming() && !method.server_streaming();
                    let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                    declared.insert((path, is_unary));
                }
            }
        }
        let observed: BTreeSet<_> = METHODS
            .iter()
            .filter(|(path, ..)| path.starts_with("/highwater."))
            .map(|&(path, _, is_unary)| (path.to_owned(), is_unary))
            .collect();
        assert_eq!(observed, declared);
    }

    #[test]
    fn a_call_is_counted_once_and_an_abandoned_one_as_cancelled() {
        let metrics = Arc::new(Metrics::new());
        let layer =
            ObserveLayer { metrics: Arc::clone(&metrics), clock: Arc::new(SystemClock::new()) };
        let mut ended = Call::begin(layer.clone(), "/highwater.v1.TopicService/List");
        ended.end(Code::Ok);
        drop(ended);
        drop(Call::begin(layer, "/made.up/Name"));
        let text = metrics.render(&ScrapeFigures::default());
        for line in [
            "highwater_requests_total{method=\"TopicService/List\",code=\"OK\"} 1",
            "highwater_requests_total{method=\"unknown\",code=\"CANCELLED\"} 1",
            "highwater_request_seconds_count{method=\"TopicService/List\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
        assert!(!text.contains("made.up"));
    }
}
