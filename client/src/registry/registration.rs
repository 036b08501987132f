//! One announced instance: a task that renews its lease, and announces it again when the lease was lost.
//!
//! Owns: when to renew. Never: says who is there; the lease on the broker does.

use std::sync::Arc;
use std::time::Duration;

use highwater_proto::v1;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::admin::{Admin, Repeat};
use crate::client::Client;
use crate::config::Backoff;
use crate::connections::registry_service;
use crate::error::{AdminError, reason};

/// Renewals in the time of one lease.
const RENEWALS_PER_LEASE: u32 = 3;
/// The shortest time that a renewal is given.
const PATIENCE_MIN: Duration = Duration::from_secs(1);
/// Longest wait for the cluster to take the instance out.
const FAREWELL_MAX: Duration = Duration::from_secs(5);

/// Who waits for an instance to be taken out.
type Farewell = oneshot::Sender<Result<(), AdminError>>;

/// An instance that is announced; from [`Registry::announce`](super::Registry::announce).
///
/// It renews its lease in the background. If the lease was lost, because the cluster could not be reached for that long, it announces the
/// instance again as soon as it can. Dropped, it takes the instance out, without waiting for that; [`Registration::close`] waits.
#[derive(Debug)]
pub struct Registration {
    client: Client,
    service: String,
    id: String,
    /// The instance is certainly announced until then.
    held_until: Arc<Mutex<Instant>>,
    /// Its end, or somebody who waits, ends the task.
    closing: oneshot::Sender<Farewell>,
}

impl Registration {
    pub(super) async fn begin(
        client: Client,
        instance: v1::ServiceInstance,
    ) -> Result<Self, AdminError> {
        let shared = &client.shared;
        let held_until = Arc::new(Mutex::new(shared.env.now()));
        let (service, id) = (instance.service.clone(), instance.id.clone());
        let keeper = Keeper {
            admin: Admin::new(client.clone()),
            lease: Duration::from_millis(instance.lease_ms.into()),
            instance,
            held_until: Arc::clone(&held_until),
        };
        keeper.register(shared.config.request_timeout).await?;
        let (closing, closed) = oneshot::channel();
        shared.env.spawn(keeper.run(closed));
        Ok(Self { client, service, id, held_until, closing })
    }

    /// The service.
    pub fn service(&self) -> &str {
        &self.service
    }

    /// The instance's id, by which others find it among those of the service.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Whether the lease is certainly held: the cluster was heard from within its time. If not, others may not see the instance.
    pub fn is_held(&self) -> bool {
        self.client.shared.env.now() < *self.held_until.lock()
    }

    /// Takes the instance out; others know it when this returns. If it fails, the instance goes when its lease ends.
    pub async fn close(self) -> Result<(), AdminError> {
        let (farewell, gone) = oneshot::channel();
        // Its task ends only when it is told to, or with the runtime.
        _ = self.closing.send(farewell);
        gone.await.unwrap_or(Ok(()))
    }
}

/// The task's side.
struct Keeper {
    admin: Admin,
    instance: v1::ServiceInstance,
    lease: Duration,
    held_until: Arc<Mutex<Instant>>,
}

impl Keeper {
    async fn run(self, mut closed: oneshot::Receiver<Farewell>) {
        let waiting = tokio::select! {
            waiting = &mut closed => waiting.ok(),
            () = self.keep() => None,
        };
        let gone = self.leave().await;
        match waiting {
            // Nobody may be waiting.
            Some(waiting) => _ = waiting.send(gone),
            None => {
                if let Err(error) = gone {
                    let (service, id) = (&self.instance.service, &self.instance.id);
                    tracing::debug!(%error, service, id, "not taken out; its lease will end");
                }
            }
        }
    }

    /// Renews for ever.
    async fn keep(&self) {
        let shared = &self.admin.client.shared;
        let patience = (self.lease / RENEWALS_PER_LEASE).max(PATIENCE_MIN);
        let patience = patience.min(shared.config.request_timeout);
        let mut backoff = Backoff::default();
        let mut next = shared.env.now() + self.pause();
        loop {
            tokio::time::sleep_until(next).await;
            let renewed = match self.renew(patience).await {
                Err(error) if error.reason() == reason::UNKNOWN_INSTANCE => {
                    self.warn("the lease of a service's instance was lost", &error);
                    *self.held_until.lock() = shared.env.now();
                    self.register(patience).await
                }
                outcome => outcome,
            };
            next = match renewed {
                Ok(()) => {
                    backoff.succeeded();
                    shared.env.now() + self.pause()
                }
                Err(error) => {
                    if backoff.failures() == 0 {
                        self.warn("a service's instance cannot be kept announced", &error);
                    }
                    backoff.failed(&shared.config.retry, &shared.env)
                }
            };
        }
    }

    fn pause(&self) -> Duration {
        self.admin.client.shared.env.jittered(self.lease / RENEWALS_PER_LEASE)
    }

    fn warn(&self, what: &str, error: &AdminError) {
        let (service, id) = (&self.instance.service, &self.instance.id);
        tracing::warn!(%error, service, id, "{what}; trying again");
    }

    async fn register(&self, patience: Duration) -> Result<(), AdminError> {
        let sent_at = self.admin.client.shared.env.now();
        let request = v1::RegistryServiceRegisterRequest { instance: Some(self.instance.clone()) };
        // The same twice is the same as once.
        self.admin
            .call_within(patience, Repeat::Freely, request, async |channel, request| {
                registry_service(channel).register(request).await
            })
            .await?;
        self.hold(sent_at);
        Ok(())
    }

    async fn renew(&self, patience: Duration) -> Result<(), AdminError> {
        let sent_at = self.admin.client.shared.env.now();
        let (service, id) = (self.instance.service.clone(), self.instance.id.clone());
        let request = v1::RegistryServiceRenewRequest { service, id };
        self.admin
            .call_within(patience, Repeat::Freely, request, async |channel, request| {
                registry_service(channel).renew(request).await
            })
            .await?;
        self.hold(sent_at);
        Ok(())
    }

    /// The broker counts from when the call arrived, which is later.
    fn hold(&self, sent_at: Instant) {
        *self.held_until.lock() = sent_at + self.lease;
    }

    async fn leave(&self) -> Result<(), AdminError> {
        let (service, id) = (self.instance.service.clone(), self.instance.id.clone());
        let request = v1::RegistryServiceDeregisterRequest { service, id };
        let patience = self.admin.client.shared.config.request_timeout.min(FAREWELL_MAX);
        self.admin
            .call_within(patience, Repeat::Freely, request, async |channel, request| {
                registry_service(channel).deregister(request).await
            })
            .await
            .map(drop)
    }
}
