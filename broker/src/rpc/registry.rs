//! RegistryService. Owns: how a watch is told of changes, and where renewals go. Never: what may be announced, or when leases end.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt, stream};
use highwater_proto::v1;
use highwater_proto::v1::registry_service_server::RegistryService;
use tonic::{Request, Response, Status};

use super::door::{Door, deadline, expired};
use super::status::{CallError, from_peer};
use super::turned_on;
use crate::cluster::{Lease, Registry, Service, check_service_name};
use crate::error::BrokerError;

/// RegistryService of one listener.
pub(super) struct Services {
    pub(super) door: Door,
}

#[tonic::async_trait]
impl RegistryService for Services {
    async fn register(
        &self,
        request: Request<v1::RegistryServiceRegisterRequest>,
    ) -> Result<Response<v1::RegistryServiceRegisterResponse>, Status> {
        let instance = request.into_inner().instance.unwrap_or_default();
        let registered = self.door.node.register_instance(instance).await;
        self.answer(
            registered
                .map_err(CallError::from)
                .map(|instance| v1::RegistryServiceRegisterResponse { instance: Some(instance) }),
        )
    }

    async fn renew(
        &self,
        request: Request<v1::RegistryServiceRenewRequest>,
    ) -> Result<Response<v1::RegistryServiceRenewResponse>, Status> {
        let request = request.into_inner();
        self.answer(self.door.until_led(|| self.door.renew_at_leader(&request)).await)
    }

    async fn deregister(
        &self,
        request: Request<v1::RegistryServiceDeregisterRequest>,
    ) -> Result<Response<v1::RegistryServiceDeregisterResponse>, Status> {
        let v1::RegistryServiceDeregisterRequest { service, id } = request.into_inner();
        let gone = self.door.node.deregister_instance(service, id).await;
        let gone = gone.map(|()| v1::RegistryServiceDeregisterResponse {});
        self.answer(gone.map_err(CallError::from))
    }

    async fn list(
        &self,
        request: Request<v1::RegistryServiceListRequest>,
    ) -> Result<Response<v1::RegistryServiceListResponse>, Status> {
        let listed = self.door.list_instances(&request.get_ref().service);
        self.answer(listed.map_err(CallError::from))
    }

    type WatchStream =
        Pin<Box<dyn Stream<Item = Result<v1::RegistryServiceWatchResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<v1::RegistryServiceWatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let time_left = deadline(request.metadata());
        let service = request.into_inner().service;
        let ready = check_service_name(&service).and_then(|()| self.door.registry().map(drop));
        ready.map_err(|error| self.door.status(&error.into()))?;
        let guard = self.door.metrics.stream_opened("registry");
        let mut stopping = self.door.node.watch_stopping();
        let ended = async move {
            tokio::select! {
                () = turned_on(&mut stopping) => {}
                () = expired(time_left) => {}
            }
        };
        // What was told last is all that is kept for a watcher, however slowly it reads: it is asked for the next message only
        // when the last one is on its way.
        let state = (self.door.node.watch_view(), None::<Arc<Service>>);
        let changes = stream::unfold(state, move |(mut views, told)| {
            let service = service.clone();
            async move {
                loop {
                    let now = views.borrow_and_update().registry.service(&service);
                    if let Some(message) = news(told.as_deref(), &now) {
                        return Some((Ok(message), (views, Some(now))));
                    }
                    views.changed().await.ok()?;
                }
            }
        });
        let changes = changes.map(move |message| {
            let _open = &guard;
            message
        });
        Ok(Response::new(Box::pin(changes.take_until(Box::pin(ended)))))
    }
}

impl Services {
    fn answer<T>(&self, outcome: Result<T, CallError>) -> Result<Response<T>, Status> {
        outcome.map(Response::new).map_err(|error| self.door.status(&error))
    }
}

impl Door {
    /// The registry as this node knows it, once it knows what there was when it started: "nobody" would be a wrong answer before.
    fn registry(&self) -> Result<Arc<Registry>, BrokerError> {
        let view = self.node.member_view()?;
        match self.node.is_caught_up() {
            true => Ok(Arc::clone(&view.registry)),
            false => Err(BrokerError::NotReady {
                why: "the node is still catching up with the cluster's metadata".to_owned(),
            }),
        }
    }

    fn list_instances(
        &self,
        service: &str,
    ) -> Result<v1::RegistryServiceListResponse, BrokerError> {
        let registry = self.registry()?;
        let instances = match service {
            "" => registry.leases().map(instance).collect(),
            service => {
                check_service_name(service)?;
                registry.service(service).values().map(instance).collect()
            }
        };
        Ok(v1::RegistryServiceListResponse { instances })
    }

    async fn renew_at_leader(
        &self,
        request: &v1::RegistryServiceRenewRequest,
    ) -> Result<v1::RegistryServiceRenewResponse, CallError> {
        let leader = match self.renew_here(request) {
            Err(BrokerError::NotLeader { leader: Some(leader) }) => leader,
            outcome => return Ok(outcome?),
        };
        let address = self.internal_address_of(leader)?;
        self.calls.forward_renew(&address, request.clone()).await.map_err(from_peer)
    }

    /// Renews a lease if this node leads the metadata group; what other nodes pass on ends here.
    pub(super) fn renew_here(
        &self,
        request: &v1::RegistryServiceRenewRequest,
    ) -> Result<v1::RegistryServiceRenewResponse, BrokerError> {
        self.node.renew_instance_here(&request.service, &request.id)?;
        Ok(v1::RegistryServiceRenewResponse {})
    }
}

fn instance(lease: &Lease) -> v1::ServiceInstance {
    v1::ServiceInstance::clone(&lease.instance)
}

/// What to tell a watcher that was told this before; none if nothing has changed.
fn news(told: Option<&Service>, now: &Service) -> Option<v1::RegistryServiceWatchResponse> {
    if told.is_some_and(|told| std::ptr::eq(told, now)) {
        return None;
    }
    let none = BTreeMap::new();
    let before = told.unwrap_or(&none);
    let is_known = |lease: &&Lease| {
        before.get(&lease.instance.id).is_some_and(|known| known.instance == lease.instance)
    };
    let instances: Vec<_> = now.values().filter(|lease| !is_known(lease)).map(instance).collect();
    let gone_ids: Vec<_> = before.keys().filter(|id| !now.contains_key(*id)).cloned().collect();
    let is_whole = told.is_none();
    let is_news = is_whole || !instances.is_empty() || !gone_ids.is_empty();
    is_news.then_some(v1::RegistryServiceWatchResponse { is_whole, instances, gone_ids })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(id: &str, address: &str, granted_index: u64) -> (String, Lease) {
        let instance = v1::ServiceInstance {
            service: "pricing".into(),
            id: id.into(),
            address: address.into(),
            ..Default::default()
        };
        (id.to_owned(), Lease { instance: Arc::new(instance), granted_index })
    }

    #[test]
    fn a_watcher_is_told_everything_first_and_then_what_is_new_to_it() {
        let first = Service::from([lease("a", "h1", 1), lease("b", "h2", 2)]);
        let told = news(None, &first).unwrap();
        assert!(told.is_whole && told.gone_ids.is_empty());
        assert_eq!(told.instances.len(), 2);
        // Also that there is nobody.
        assert!(news(None, &Service::new()).unwrap().is_whole);
        // Another lease is no news.
        let again = Service::from([lease("a", "h1", 7), lease("b", "h2", 8)]);
        assert_eq!(news(Some(&first), &again), None);
        // One went, one came, one is elsewhere, all told at once.
        let next = Service::from([lease("b", "h9", 9), lease("c", "h3", 10)]);
        let told = news(Some(&first), &next).unwrap();
        assert!(!told.is_whole);
        assert_eq!(told.gone_ids, ["a"]);
        let ids: Vec<_> = told.instances.iter().map(|it| it.id.as_str()).collect();
        assert_eq!(ids, ["b", "c"]);
    }
}
