//! What every service of a listener shares: the node, the limits, and the way from errors to statuses.
//!
//! Owns: the name of the listener, so that addresses in answers are those its clients can reach. Never: a request's logic.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use highwater_proto::batch::BatchLimits;
use highwater_proto::v1;
use tokio::sync::watch;
use tonic::Status;
use tonic::metadata::MetadataMap;

use super::screen::{Call, Screen};
use super::status::{self, CallError};
use crate::cluster::peer::PeerCalls;
use crate::cluster::topic_config::TopicConfig;
use crate::cluster::{ClusterView, Node, NodeId, NodeView, TopicView, check_topic_name};
use crate::config::{Config, DEFAULT_LISTENER};
use crate::env::{Clock, Tasks};
use crate::error::BrokerError;
use crate::groups::Groups;
use crate::metrics::Metrics;

/// Most bytes of records in one answer before the batch that fills it: with one batch on top it stays below the largest message.
pub(super) const FETCH_BYTES_MAX: u64 = 3 << 20;

/// How long a call that any node takes looks for a leader before it says that there is none.
pub(super) const LEADER_WAIT_MAX: Duration = Duration::from_secs(5);

/// Longest pause between two looks for a leader; a change of the view ends it early.
const LEADER_WAIT_STEP: Duration = Duration::from_millis(100);

/// What the services of all listeners of a broker share.
pub(crate) struct Shared {
    pub(crate) node: Node,
    pub(crate) calls: Arc<dyn PeerCalls>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) tasks: Tasks,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) config: Config,
    pub(crate) groups: Groups,
    screen: Option<Screen>,
    next_partition: AtomicU32,
}

impl Shared {
    pub(crate) fn new(
        node: Node,
        calls: Arc<dyn PeerCalls>,
        clock: Arc<dyn Clock>,
        tasks: Tasks,
        metrics: Arc<Metrics>,
        config: Config,
        screen: Option<Screen>,
    ) -> Self {
        let next_partition = AtomicU32::new(0);
        let groups = Groups::new(
            node.clone(),
            Arc::clone(&clock),
            tasks.clone(),
            Arc::clone(&metrics),
            config.to_group_options(),
        );
        Self { node, calls, clock, tasks, metrics, config, groups, screen, next_partition }
    }
}

/// One listener's view of [`Shared`]. Cheap to clone.
#[derive(Clone)]
pub(super) struct Door {
    shared: Arc<Shared>,
    listener: Arc<str>,
}

impl std::ops::Deref for Door {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.shared
    }
}

impl Door {
    pub(super) fn new(shared: Arc<Shared>, listener: &str) -> Self {
        Self { shared, listener: Arc::from(listener) }
    }

    /// Where clients of this listener reach a node: its listener of the same name, else its default one.
    pub(super) fn node_address(&self, node: &NodeView) -> String {
        let own = node.listeners.get(&*self.listener);
        own.or_else(|| node.listeners.get(DEFAULT_LISTENER)).cloned().unwrap_or_default()
    }

    /// The same by id, if the node is known.
    pub(super) fn address_of(&self, node: NodeId) -> Option<String> {
        let view = self.node.view();
        view.nodes.get(&node).map(|node| self.node_address(node)).filter(|text| !text.is_empty())
    }

    /// Where other nodes reach a node.
    pub(super) fn internal_address_of(&self, node: NodeId) -> Result<String, BrokerError> {
        let view = self.node.view();
        view.nodes.get(&node).map(|node| node.internal_address.clone()).ok_or_else(|| {
            BrokerError::NotReady { why: format!("node {node} is not known here yet") }
        })
    }

    /// Refuses what is to be refused; outside of tests nothing is.
    pub(super) fn check(&self, call: Call, topic: &str) -> Result<(), BrokerError> {
        self.screen.as_ref().map_or(Ok(()), |screen| screen(call, topic))
    }

    /// The status of a failed call.
    pub(super) fn status(&self, error: &CallError) -> Status {
        status::call_status(error, |node| self.address_of(node))
    }

    /// The failure of one item of a stream.
    pub(super) fn detail(&self, error: &BrokerError) -> v1::ErrorDetail {
        status::detail(error, |node| self.address_of(node))
    }

    /// What this node says of itself.
    pub(super) fn broker_info(&self) -> v1::BrokerInfo {
        let view = self.node.view();
        v1::BrokerInfo {
            cluster_id: view.cluster_id.clone(),
            node_id: self.node.id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            feature_level: self.node.feature_level(),
        }
    }

    /// The topic of this name; created if the cluster is configured so and `may_create` says that the caller writes.
    pub(super) async fn topic(
        &self,
        name: &str,
        may_create: bool,
    ) -> Result<Arc<TopicView>, BrokerError> {
        let view = self.node.view();
        if let Some(topic) = view.topics.get(name) {
            return Ok(Arc::clone(topic));
        }
        if view.cluster_id.is_empty() {
            return Err(BrokerError::NotReady {
                why: "the cluster has not been founded".to_owned(),
            });
        }
        if !(may_create && self.config.topics.auto_create) {
            return Err(self.node.unknown_topic(name));
        }
        check_topic_name(name)?;
        let partitions = self.config.topics.default_partitions;
        match self.node.create_topic(name, partitions, 0, Default::default()).await {
            // Somebody else was faster.
            Err(BrokerError::TopicExists { .. }) => {
                let view = self.node.view();
                let unknown = || self.node.unknown_topic(name);
                view.topics.get(name).cloned().ok_or_else(unknown)
            }
            created => created,
        }
    }

    /// A partition for records without a key: each call another one.
    pub(super) fn any_partition(&self, partitions: usize) -> u32 {
        let partitions = u32::try_from(partitions).unwrap_or(u32::MAX).max(1);
        self.next_partition.fetch_add(1, Ordering::Relaxed) % partitions
    }

    /// Does something with a partition's leader, wherever that is, and looks again for a while when it is not there.
    /// `attempt` must have changed nothing when it fails with NOT_LEADER.
    pub(super) async fn until_led<T, F>(&self, attempt: impl Fn() -> F) -> Result<T, CallError>
    where
        F: Future<Output = Result<T, CallError>>,
    {
        let mut views = self.node.watch_view();
        let give_up_at = self.clock.monotonic() + LEADER_WAIT_MAX;
        loop {
            views.mark_unchanged();
            let error = match attempt().await {
                Err(error) if error.is_not_leader() => error,
                done => return done,
            };
            if self.clock.monotonic() >= give_up_at {
                return Err(error);
            }
            wait_for_change(&mut views).await;
        }
    }
}

/// Waits for another view, but not long: leadership may move without one.
async fn wait_for_change(views: &mut watch::Receiver<Arc<ClusterView>>) {
    // Three outcomes, one meaning: look again. A closed channel must not spin, hence the sleep behind it.
    if let Ok(Err(_)) = tokio::time::timeout(LEADER_WAIT_STEP, views.changed()).await {
        tokio::time::sleep(LEADER_WAIT_STEP).await;
    }
}

/// What a topic allows a batch to measure.
pub(super) fn batch_limits(config: &TopicConfig) -> BatchLimits {
    let defaults = BatchLimits::default();
    let record_bytes_max = usize::try_from(config.record_bytes_max).unwrap_or(usize::MAX);
    BatchLimits {
        record_bytes_max: record_bytes_max.min(defaults.record_bytes_max),
        keys_required: config.compact,
        ..defaults
    }
}

/// The acknowledgement level a client asks for.
pub(super) fn acks(number: i32) -> Result<v1::Acks, BrokerError> {
    match v1::Acks::try_from(number) {
        Ok(v1::Acks::Unspecified) => Ok(v1::Acks::QuorumFsync),
        Ok(acks) => Ok(acks),
        Err(_) => Err(BrokerError::InvalidArgument {
            field: "acks".to_owned(),
            why: format!("{number} is not a known level"),
        }),
    }
}

/// An offset as the wire has it. Offsets are below `i64::MAX` by construction.
pub(super) fn wire_offset(offset: u64) -> i64 {
    i64::try_from(offset).unwrap_or(i64::MAX)
}

/// How long the caller waits at the most, from `grpc-timeout`; the transport ends unary calls by itself, streams ask here.
pub(super) fn deadline(metadata: &MetadataMap) -> Option<Duration> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    // The protocol allows eight digits.
    let amount = digits.parse::<u64>().ok().filter(|_| digits.len() <= 8)?;
    match unit {
        "H" => Some(Duration::from_secs(amount.saturating_mul(3_600))),
        "M" => Some(Duration::from_secs(amount.saturating_mul(60))),
        "S" => Some(Duration::from_secs(amount)),
        "m" => Some(Duration::from_millis(amount)),
        "u" => Some(Duration::from_micros(amount)),
        "n" => Some(Duration::from_nanos(amount)),
        _ => None,
    }
}

/// Completes when the deadline has passed; never without one.
pub(super) async fn expired(deadline: Option<Duration>) {
    match deadline {
        Some(deadline) => tokio::time::sleep(deadline).await,
        None => std::future::pending().await,
    }
}

/// Topics whose names begin like this are written by the broker itself.
const INTERNAL_PREFIX: &str = "__";

/// Refuses to change a topic of the broker's own.
pub(super) fn refuse_internal(name: &str) -> Result<(), BrokerError> {
    if !name.starts_with(INTERNAL_PREFIX) {
        return Ok(());
    }
    Err(BrokerError::InvalidArgument {
        field: "topic name".to_owned(),
        why: format!(
            "'{name}': names that begin with '{INTERNAL_PREFIX}' are the broker's own, which can be read but not written or changed"
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_are_read_in_every_unit_and_nonsense_is_none() {
        let read = |text: &'static str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", text.parse().unwrap());
            deadline(&metadata)
        };
        assert_eq!(read("2H"), Some(Duration::from_secs(7_200)));
        assert_eq!(read("3M"), Some(Duration::from_secs(180)));
        assert_eq!(read("4S"), Some(Duration::from_secs(4)));
        assert_eq!(read("5m"), Some(Duration::from_millis(5)));
        assert_eq!(read("6u"), Some(Duration::from_micros(6)));
        assert_eq!(read("7n"), Some(Duration::from_nanos(7)));
        for nonsense in ["", "S", "5", "123456789S", "-1S", "5x"] {
            assert_eq!(read(nonsense), None, "{nonsense}");
        }
        assert_eq!(deadline(&MetadataMap::new()), None);
    }

    #[test]
    fn unspecified_acks_mean_the_safest_level() {
        assert_eq!(acks(0).unwrap(), v1::Acks::QuorumFsync);
        assert_eq!(acks(3).unwrap(), v1::Acks::Leader);
        assert!(acks(9).is_err());
    }

    #[test]
    fn a_topic_can_only_lower_the_record_limit() {
        let config = TopicConfig::read(&[("max.message.bytes".into(), "100".into())].into());
        assert_eq!(batch_limits(&config).record_bytes_max, 100);
        assert_eq!(batch_limits(&TopicConfig::read(&Default::default())), BatchLimits::default());
    }
}
