//! Figures of one broker, in Prometheus' terms.
//!
//! Owns: the registry and every series; belongs to a `Broker` value, never to the process. Never: HTTP.

/// Every series. Cheap to share; all methods take `&self`.
#[derive(Debug, Default)]
pub struct Metrics {}
