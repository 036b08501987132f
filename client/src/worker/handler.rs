//! Handlers: async functions by event type, and what is put around them.
//!
//! Owns: [`Context`], the routing by type, and the service that tower's layers wrap. Never: retries, order, progress (`lanes`).

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context as Wake, Poll};

use futures::future::BoxFuture;
use tower::Service;
use tower::util::BoxCloneSyncService;

use super::Outcome;
use crate::client::Client;
use crate::event::{self, Cause};
use crate::record::Event;

/// What a handler is given beside the event. Cheap to clone.
#[derive(Debug)]
#[non_exhaustive]
pub struct Context<S> {
    /// What all handlers of the worker share.
    pub state: Arc<S>,
    /// The event as it was read: topic, partition, offset, headers.
    pub event: Arc<Event>,
    /// How often it was tried, this time included; 1 for the first.
    pub attempt: u32,
    /// The worker's client.
    pub client: Client,
}

impl<S> Clone for Context<S> {
    fn clone(&self) -> Self {
        Self {
            state: Arc::clone(&self.state),
            event: Arc::clone(&self.event),
            attempt: self.attempt,
            client: self.client.clone(),
        }
    }
}

impl<S> Context<S> {
    pub(super) fn new(state: Arc<S>, event: Arc<Event>, attempt: u32, client: Client) -> Self {
        Self { state, event, attempt, client }
    }
}

/// The handlers as a tower service: what [`WorkerBuilder::layer`](super::WorkerBuilder::layer) wraps.
pub type HandlerService<S> = BoxCloneSyncService<Context<S>, Outcome, Cause>;

type Handler<S> = Box<dyn Fn(Context<S>) -> BoxFuture<'static, Outcome> + Send + Sync>;

/// Handlers by event type.
pub(super) struct Routes<S> {
    handlers: HashMap<String, Handler<S>>,
}

impl<S> Default for Routes<S> {
    fn default() -> Self {
        Self { handlers: HashMap::new() }
    }
}

impl<S: Send + Sync + 'static> Routes<S> {
    /// False if the type has a handler already.
    pub(super) fn add<E, F, Fut>(&mut self, handler: F) -> bool
    where
        E: event::Event,
        F: Fn(E, Context<S>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output: Into<Outcome>> + Send + 'static,
    {
        let handler: Handler<S> = Box::new(move |context: Context<S>| {
            match context.event.decode::<E>() {
                Ok(event) => {
                    let handling = handler(event, context);
                    Box::pin(async move { handling.await.into() })
                }
                // However often it is read, it stays as it is.
                Err(error) => Box::pin(std::future::ready(Outcome::DeadLetter(error.to_string()))),
            }
        });
        self.handlers.insert(E::event_type(), handler).is_none()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.handlers.is_empty()
    }

    pub(super) fn handle(&self, event: &Event) -> bool {
        event.event_type().is_some_and(|name| self.handlers.contains_key(name))
    }
}

/// The innermost service.
pub(super) struct Router<S> {
    pub(super) routes: Arc<Routes<S>>,
}

impl<S> Clone for Router<S> {
    fn clone(&self) -> Self {
        Self { routes: Arc::clone(&self.routes) }
    }
}

impl<S: Send + Sync + 'static> Service<Context<S>> for Router<S> {
    type Response = Outcome;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Outcome, Infallible>>;

    fn poll_ready(&mut self, _: &mut Wake<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, context: Context<S>) -> Self::Future {
        let name = context.event.event_type().unwrap_or_default();
        match self.routes.handlers.get(name) {
            Some(handler) => {
                let handling = handler(context);
                Box::pin(async move { Ok(handling.await) })
            }
            None => Box::pin(std::future::ready(Ok(Outcome::Skip))),
        }
    }
}
