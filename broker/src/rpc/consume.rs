//! ConsumerService of one listener. Owns nothing: the unary way is in `fetch`, the stream in `subscribe`.

use std::pin::Pin;

use futures::Stream;
use highwater_proto::v1;
use highwater_proto::v1::consumer_service_server::ConsumerService;
use tonic::{Request, Response, Status, Streaming};

use super::door::{Door, deadline};
use super::subscribe;

/// ConsumerService of one listener.
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
