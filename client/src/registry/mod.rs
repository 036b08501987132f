//! The registry of services: announce an instance, find those of others.
//!
//! Owns: [`Registry`] and what instances look like to services. Never: keeps a lease (`registration` does) or follows changes
//! (`instances` does).

mod instances;
mod registration;

use std::collections::BTreeMap;
use std::time::Duration;

use highwater_proto::v1;

use crate::admin::{Admin, Repeat};
use crate::client::Client;
use crate::connections::registry_service;
use crate::error::AdminError;

pub use instances::Instances;
pub use registration::Registration;

/// The lease of an instance that does not say otherwise.
const LEASE_DEFAULT: Duration = Duration::from_secs(10);

/// The registry of services, kept by the cluster; from [`Client::registry`]. Cheap to clone.
///
/// A service announces its instance when it is ready to work. The instance stays as long as its [`Registration`] lives; if the process dies
/// without a word, it goes when its lease ends. Others watch the service and always have somebody who lives.
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let config = highwater_broker::config::Config::in_process(dir.path());
/// # let broker = highwater_broker::Broker::start(config).await?;
/// # broker.wait_ready().await;
/// # let client = highwater_client::Client::connect(&broker.client_addr().to_string()).await?;
/// use highwater_client::NewInstance;
///
/// // The service:
/// let instance = NewInstance::at("10.0.0.7:9000").attribute("requests", "pricing.requests");
/// let registration = client.registry().announce("pricing", instance).await?;
///
/// // Who needs it:
/// let mut pricing = client.registry().watch("pricing").await?;
/// let somebody = pricing.pick().ok_or("nobody is there")?;
/// assert_eq!(somebody.attribute("requests"), Some("pricing.requests"));
///
/// registration.close().await?;
/// assert!(pricing.changed().await.is_some_and(|instances| instances.is_empty()));
/// # broker.stop().await;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Registry {
    client: Client,
}

impl Registry {
    pub(crate) fn new(client: Client) -> Self {
        Self { client }
    }

    /// Announces an instance of a service under an id that nobody else has, and keeps it announced for as long as the answer lives.
    pub async fn announce(
        &self,
        service: impl Into<String>,
        instance: NewInstance,
    ) -> Result<Registration, AdminError> {
        let NewInstance { address, attributes, lease } = instance;
        let instance = v1::ServiceInstance {
            service: service.into(),
            id: format!("{:032x}", self.client.shared.env.unique()),
            address,
            attributes,
            // 0 would mean the default; the broker refuses what is too short or too long.
            lease_ms: u32::try_from(lease.as_millis()).unwrap_or(u32::MAX).max(1),
        };
        Registration::begin(self.client.clone(), instance).await
    }

    /// The instances of a service, kept up to date. It is no error if there are none.
    pub async fn watch(&self, service: impl Into<String>) -> Result<Instances, AdminError> {
        Instances::begin(self.client.clone(), service.into()).await
    }

    /// The instances there are now, by service and id: of one service, or of all.
    pub async fn list(&self, service: Option<&str>) -> Result<Vec<Instance>, AdminError> {
        let request =
            v1::RegistryServiceListRequest { service: service.unwrap_or_default().to_owned() };
        let answer = Admin::new(self.client.clone())
            .call(Repeat::Freely, request, async |channel, request| {
                registry_service(channel).list(request).await
            })
            .await?;
        Ok(answer.instances.into_iter().map(Into::into).collect())
    }
}

/// An instance to announce.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewInstance {
    /// Where it is reached, in whatever form its users understand; empty if requests go over topics.
    pub address: String,
    /// What else its users must know. At most 32, with keys of up to 64 and values of up to 256 bytes.
    pub attributes: BTreeMap<String, String>,
    /// How long it stays without a sign of life: from 1 s to 1 h. It gives one every third of that time.
    pub lease: Duration,
}

impl Default for NewInstance {
    /// Without address and attributes, with a lease of 10 s.
    fn default() -> Self {
        Self { address: String::new(), attributes: BTreeMap::new(), lease: LEASE_DEFAULT }
    }
}

impl NewInstance {
    /// An instance that is reached at this address.
    pub fn at(address: impl Into<String>) -> Self {
        Self { address: address.into(), ..Self::default() }
    }

    /// Adds something that its users must know, for example the topic that it takes requests from.
    pub fn attribute(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.attributes.insert(key.into(), value.into());
        self
    }

    /// Sets how long it stays without a sign of life. A short lease takes a dead instance out sooner, and a live one that cannot reach the
    /// cluster for a while too.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }
}

/// An instance of a service that is announced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// The service.
    pub service: String,
    /// Its id, which no other instance has, nor the same process after a restart.
    pub id: String,
    /// Where it is reached; may be empty.
    pub address: String,
    /// What else its users must know.
    pub attributes: BTreeMap<String, String>,
    /// How long it stays without a sign of life.
    pub lease: Duration,
}

impl Instance {
    /// An attribute, if the instance has it.
    pub fn attribute(&self, key: &str) -> Option<&str> {
        self.attributes.get(key).map(String::as_str)
    }
}

impl From<v1::ServiceInstance> for Instance {
    fn from(instance: v1::ServiceInstance) -> Self {
        Self {
            service: instance.service,
            id: instance.id,
            address: instance.address,
            attributes: instance.attributes,
            lease: Duration::from_millis(instance.lease_ms.into()),
        }
    }
}
