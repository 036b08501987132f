//! The registry of services: which instances are announced, and under which lease.
//!
//! Owns: what the metadata group knows of it, its bounds, and the image of it. Never: when a lease expires (`leases` knows, on the
//! leader): here an instance stays until a command ends it.

use std::collections::BTreeMap;
use std::sync::Arc;

use highwater_proto::internal::{EndedLease, LeaseImage};
use highwater_proto::v1::ServiceInstance;
use prost::Message;

use super::names;
use crate::error::BrokerError;

/// Most instances. Like [`BYTES_MAX`] this is part of what the state machine does: it may change with a feature level only.
const INSTANCES_MAX: usize = 10_000;
/// Most bytes of all instances, encoded: so the whole registry fits into one message, and into the metadata group's image.
const BYTES_MAX: usize = 4 << 20;
/// Longest name of a service, longest id and longest address.
const SERVICE_BYTES_MAX: usize = 249;
const ID_BYTES_MAX: usize = 64;
const ADDRESS_BYTES_MAX: usize = 256;
/// Most attributes, and their longest key and value.
const ATTRIBUTES_MAX: usize = 32;
const KEY_BYTES_MAX: usize = 64;
const VALUE_BYTES_MAX: usize = 256;
/// Bounds of a lease. Shorter than the shortest, a pause of the network would look like an end.
const LEASE_MS_MIN: u32 = 1_000;
const LEASE_MS_MAX: u32 = 3_600_000;
const LEASE_MS_DEFAULT: u32 = 10_000;

/// An instance and its lease.
#[derive(Clone, Debug)]
pub struct Lease {
    /// The instance.
    pub instance: Arc<ServiceInstance>,
    /// Index of the command that granted the lease, which names it: each has another one.
    pub granted_index: u64,
}

/// A service's instances by id.
pub type Service = BTreeMap<String, Lease>;

/// What is announced. A service that does not change is shared between one state and the next.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    services: BTreeMap<String, Arc<Service>>,
    /// Instances of all services, and their encoded bytes: derived.
    instances: usize,
    bytes: usize,
}

impl Registry {
    /// A service's instances; none where nobody has announced it.
    pub fn service(&self, name: &str) -> Arc<Service> {
        self.services.get(name).cloned().unwrap_or_default()
    }

    /// How many instances there are.
    pub fn len(&self) -> usize {
        self.instances
    }

    /// Whether nothing is announced.
    pub fn is_empty(&self) -> bool {
        self.instances == 0
    }

    /// All instances, by service and id.
    pub fn leases(&self) -> impl Iterator<Item = &Lease> {
        self.services.values().flat_map(|service| service.values())
    }

    /// Announces an instance under a new lease, in the place of one of the same id; why not, if there is no room.
    pub(super) fn grant(
        &mut self,
        instance: &ServiceInstance,
        granted_index: u64,
    ) -> Result<(), String> {
        let before = self.services.get(&instance.service).and_then(|all| all.get(&instance.id));
        let freed = before.map(|lease| lease.instance.encoded_len());
        let bytes = self.bytes - freed.unwrap_or(0) + instance.encoded_len();
        if freed.is_none() && self.instances >= INSTANCES_MAX {
            return Err(format!("{INSTANCES_MAX} instances"));
        }
        if bytes > BYTES_MAX {
            return Err(format!("{BYTES_MAX} bytes"));
        }
        // Who watches compares instances: what is announced again as it was is the same one.
        let same = before.map(|lease| &lease.instance).filter(|before| ***before == *instance);
        let lease = Lease {
            instance: same.cloned().unwrap_or_else(|| Arc::new(instance.clone())),
            granted_index,
        };
        let service = self.services.entry(instance.service.clone()).or_default();
        Arc::make_mut(service).insert(instance.id.clone(), lease);
        self.bytes = bytes;
        self.instances += usize::from(freed.is_none());
        Ok(())
    }

    /// Takes an instance out, unless it has another lease by now.
    pub(super) fn end(&mut self, ended: &EndedLease) {
        let Some(service) = self.services.get_mut(&ended.service) else { return };
        let Some(lease) = service.get(&ended.id) else { return };
        if ended.granted_index != 0 && ended.granted_index != lease.granted_index {
            return;
        }
        self.bytes -= lease.instance.encoded_len();
        self.instances -= 1;
        if service.len() == 1 {
            self.services.remove(&ended.service);
        } else {
            Arc::make_mut(service).remove(&ended.id);
        }
    }

    pub(super) fn to_image(&self) -> Vec<LeaseImage> {
        let image = |lease: &Lease| LeaseImage {
            instance: Some(ServiceInstance::clone(&lease.instance)),
            granted_index: lease.granted_index,
        };
        self.leases().map(image).collect()
    }

    /// From an image, whose bounds are those of when it was taken.
    pub(super) fn from_image(leases: Vec<LeaseImage>) -> Self {
        let mut registry = Self::default();
        for LeaseImage { instance, granted_index } in leases {
            let instance = instance.unwrap_or_default();
            registry.instances += 1;
            registry.bytes += instance.encoded_len();
            let service = registry.services.entry(instance.service.clone()).or_default();
            let lease = Lease { instance: Arc::new(instance), granted_index };
            Arc::make_mut(service).insert(lease.instance.id.clone(), lease);
        }
        registry
    }
}

/// The instance as it is announced, if it may be.
pub(super) fn checked(mut instance: ServiceInstance) -> Result<ServiceInstance, BrokerError> {
    check_key(&instance.service, &instance.id)?;
    check_text("address", &instance.address, ADDRESS_BYTES_MAX)?;
    if instance.attributes.len() > ATTRIBUTES_MAX {
        let why =
            format!("{} are more than the {ATTRIBUTES_MAX} allowed", instance.attributes.len());
        return invalid("attributes", why);
    }
    for (key, value) in &instance.attributes {
        if key.is_empty() {
            return invalid("attributes", "a key must not be empty".to_owned());
        }
        check_text("the key of an attribute", key, KEY_BYTES_MAX)?;
        check_text(&format!("attribute '{key}'"), value, VALUE_BYTES_MAX)?;
    }
    match instance.lease_ms {
        0 => instance.lease_ms = LEASE_MS_DEFAULT,
        LEASE_MS_MIN..=LEASE_MS_MAX => {}
        other => {
            let why = format!(
                "{other} ms are not allowed: at least {LEASE_MS_MIN}, at most {LEASE_MS_MAX}"
            );
            return invalid("lease_ms", why);
        }
    }
    Ok(instance)
}

/// Whether a service may have this name; whoever asks for one that cannot be has made a mistake.
pub(crate) fn check_service_name(name: &str) -> Result<(), BrokerError> {
    check_name("service", name, SERVICE_BYTES_MAX)
}

/// Whether there can be such an instance.
pub(super) fn check_key(service: &str, id: &str) -> Result<(), BrokerError> {
    check_service_name(service)?;
    check_name("id", id, ID_BYTES_MAX)
}

fn check_name(field: &str, name: &str, bytes_max: usize) -> Result<(), BrokerError> {
    if name.is_empty() {
        return invalid(field, "must not be empty".to_owned());
    }
    if name.len() > bytes_max {
        return invalid(field, too_long(name, bytes_max));
    }
    if !name.bytes().all(names::is_legal) {
        return invalid(field, format!("'{name}': {}", names::LEGAL));
    }
    Ok(())
}

fn check_text(field: &str, text: &str, bytes_max: usize) -> Result<(), BrokerError> {
    if text.len() > bytes_max {
        return invalid(field, too_long(text, bytes_max));
    }
    if text.chars().any(char::is_control) {
        return invalid(field, "control characters are not allowed".to_owned());
    }
    Ok(())
}

fn too_long(text: &str, bytes_max: usize) -> String {
    format!("{} bytes are more than the {bytes_max} allowed", text.len())
}

fn invalid<T>(field: &str, why: String) -> Result<T, BrokerError> {
    Err(BrokerError::InvalidArgument { field: field.to_owned(), why })
}

#[cfg(test)]
mod tests;
