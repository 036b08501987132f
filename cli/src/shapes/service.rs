//! Shapes of what `service` prints.
//!
//! Owns: these keys. Never: prints them.

use std::collections::BTreeMap;

use highwater_client::Instance;
use serde::Serialize;

/// One instance: one line of `service list`.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct InstanceShape {
    pub(crate) service: String,
    pub(crate) id: String,
    pub(crate) address: String,
    pub(crate) attributes: BTreeMap<String, String>,
    pub(crate) lease_ms: u64,
}

impl From<&Instance> for InstanceShape {
    fn from(instance: &Instance) -> Self {
        let Instance { service, id, address, attributes, lease } = instance.clone();
        let lease_ms = u64::try_from(lease.as_millis()).unwrap_or(u64::MAX);
        Self { service, id, address, attributes, lease_ms }
    }
}

/// What `service describe` prints.
#[derive(Debug, Serialize)]
pub(crate) struct ServiceShape {
    pub(crate) service: String,
    pub(crate) instances: Vec<InstanceShape>,
}

/// One line of `service watch`.
#[derive(Debug, Serialize)]
pub(crate) struct ChangeShape {
    /// `up`, `changed` or `down`.
    pub(crate) change: &'static str,
    pub(crate) instance: InstanceShape,
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use insta::assert_snapshot;

    use super::*;

    #[test]
    fn services_keep_their_keys() {
        let instance = Instance {
            service: "pricing".into(),
            id: "5ca1ab1e".into(),
            address: "10.0.0.7:9000".into(),
            attributes: BTreeMap::from([("requests".into(), "pricing.requests".into())]),
            lease: Duration::from_secs(10),
        };
        let instance = InstanceShape::from(&instance);
        assert_snapshot!(
            serde_json::to_string(&instance).unwrap(),
            @r#"{"service":"pricing","id":"5ca1ab1e","address":"10.0.0.7:9000","attributes":{"requests":"pricing.requests"},"lease_ms":10000}"#
        );
        let change = ChangeShape { change: "up", instance: instance.clone() };
        assert_snapshot!(
            serde_json::to_string(&change).unwrap(),
            @r#"{"change":"up","instance":{"service":"pricing","id":"5ca1ab1e","address":"10.0.0.7:9000","attributes":{"requests":"pricing.requests"},"lease_ms":10000}}"#
        );
        let service = ServiceShape { service: "pricing".into(), instances: vec![instance] };
        assert_snapshot!(
            serde_json::to_string(&service).unwrap(),
            @r#"{"service":"pricing","instances":[{"service":"pricing","id":"5ca1ab1e","address":"10.0.0.7:9000","attributes":{"requests":"pricing.requests"},"lease_ms":10000}]}"#
        );
    }
}
