//! A channel with a circuit breaker in front of it.
//!
//! Owns: what counts as a call that failed. Never: when the breaker opens (`breaker` has the rule), or tries again.
//!
//! A call is over when its answer begins: for a stream that is its opening. What a broker refuses by its own word is no failure
//! of the connection.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use tonic::Code;
use tonic::body::Body;
use tonic::codegen::{Service, StdError, http};
use tonic::transport::Channel;
use tonic_types::{ErrorDetails, StatusExt};

use crate::breaker::{BreakerState, CircuitBreaker, Pass};
use crate::env::Env;
use crate::error::reason;

/// An extension of a request: the broker may take so much longer, because it was told to wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Waits(pub(crate) Duration);

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Guarded {
    address: Arc<str>,
    channel: Channel,
    breaker: Arc<CircuitBreaker>,
    env: Env,
}

/// A call under way. Given up after a time in which it should have been answered, it has failed; before, it does not count.
struct Call {
    pass: Option<Pass>,
    guarded: Guarded,
    began: tokio::time::Instant,
    waits: Duration,
}

impl Guarded {
    pub(crate) fn new(
        address: &Arc<str>,
        channel: Channel,
        breaker: CircuitBreaker,
        env: Env,
    ) -> Self {
        Self { address: Arc::clone(address), channel, breaker: Arc::new(breaker), env }
    }

    pub(crate) fn state(&self) -> BreakerState {
        self.breaker.state()
    }

    /// What a call is told that is not made.
    fn refusal(&self) -> tonic::Status {
        let text = format!(
            "calls to {} kept failing and are not made for a while: its circuit breaker is {}",
            self.address,
            self.state()
        );
        let details = ErrorDetails::with_error_info(reason::CIRCUIT_OPEN, "client", []);
        tonic::Status::with_error_details(Code::Unavailable, text, details)
    }
}

impl Call {
    /// Without the time that the broker was told to wait.
    fn took(&self, now: tokio::time::Instant) -> Duration {
        now.saturating_duration_since(self.began).saturating_sub(self.waits)
    }

    fn over(&mut self, failed: bool) {
        let Some(pass) = self.pass.take() else { return };
        let now = self.guarded.env.now();
        let before = self.guarded.state();
        pass.over(failed, self.took(now), now);
        let (address, after) = (&self.guarded.address, self.guarded.state());
        if before != after {
            match after {
                BreakerState::Open => {
                    tracing::warn!(%address, "calls keep failing: circuit breaker open")
                }
                _ => tracing::info!(%address, state = %after, "circuit breaker"),
            }
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let took = self.took(self.guarded.env.now());
        if self.guarded.breaker.is_slow(took) {
            self.over(true);
        }
    }
}

/// Whether an answer says that there is nobody who could answer: a gRPC status without a broker's word for the reason.
fn is_from_nobody(headers: &http::HeaderMap) -> bool {
    let code = headers.get("grpc-status").map(|code| Code::from_bytes(code.as_bytes()));
    matches!(code, Some(Code::Unavailable | Code::Unknown | Code::Cancelled))
        && !headers.contains_key("grpc-status-details-bin")
}

impl Service<http::Request<Body>> for Guarded {
    type Response = http::Response<Body>;
    type Error = StdError;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.channel.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let began = self.env.now();
        let Ok(pass) = self.breaker.try_pass(began) else {
            let refusal = self.refusal();
            return Box::pin(async move { Err(refusal.into()) });
        };
        let waits = request.extensions().get().map_or(Duration::ZERO, |Waits(waits)| *waits);
        let mut call = Call { pass: Some(pass), guarded: self.clone(), began, waits };
        let answer = self.channel.call(request);
        Box::pin(async move {
            let answer = answer.await;
            call.over(answer.as_ref().map_or(true, |answer| is_from_nobody(answer.headers())));
            Ok(answer?)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_brokers_own_refusal_is_no_failure_of_the_connection() {
        let mut headers = http::HeaderMap::new();
        assert!(!is_from_nobody(&headers), "an answer that goes on");
        headers.insert("grpc-status", http::HeaderValue::from_static("5"));
        assert!(!is_from_nobody(&headers));
        headers.insert("grpc-status", http::HeaderValue::from_static("14"));
        assert!(is_from_nobody(&headers), "of a proxy, for example");
        headers.insert("grpc-status-details-bin", http::HeaderValue::from_static("AA"));
        assert!(!is_from_nobody(&headers), "not ready yet, for example");
    }
}
