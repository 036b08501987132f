//! Figures of one broker, in Prometheus' terms.
//!
//! Owns: the registry and every series; belongs to a `Broker` value, never to the process. Never: HTTP, or where the
//! figures of a partition come from (the scraper hands them in).

use std::fmt;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// Prefix of every series.
const PREFIX: &str = "highwater";

/// From 50 microseconds to about 26 seconds, a factor of two apart.
fn latency_buckets() -> impl Iterator<Item = f64> {
    exponential_buckets(0.000_05, 2.0, 20)
}

fn latency_histogram() -> Histogram {
    Histogram::new(latency_buckets())
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    method: &'static str,
    code: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MethodLabels {
    method: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VersionLabels {
    version: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PartitionLabels {
    topic: String,
    partition: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FollowerLabels {
    topic: String,
    partition: u32,
    node: u64,
}

/// What one replica on this node looked like when it was scraped.
#[derive(Clone, Debug, Default)]
pub struct ReplicaFigures {
    /// The topic's name; `__metadata` for the metadata group.
    pub topic: String,
    /// The partition.
    pub partition: u32,
    /// Whether this replica leads.
    pub is_leader: bool,
    /// The leader epoch.
    pub leader_epoch: u64,
    /// First retained offset.
    pub log_start_offset: u64,
    /// First offset that is not readable yet.
    pub high_watermark: u64,
    /// Next offset to be assigned.
    pub log_end_offset: u64,
    /// Bytes of the log on disk.
    pub size_bytes: u64,
    /// Whether the replica is quarantined.
    pub is_quarantined: bool,
    /// Entries each follower still lacks, by node; only on the leader.
    pub follower_lag_entries: Vec<(u64, u64)>,
}

/// What is read at the moment of a scrape rather than counted as it happens.
#[derive(Clone, Debug, Default)]
pub struct ScrapeFigures {
    /// Whether the node serves.
    pub ready: bool,
    /// Nodes of the cluster that are alive, as this node sees it.
    pub nodes_alive: u64,
    /// Nodes of the cluster.
    pub nodes: u64,
    /// Instances of services in the registry.
    pub service_instances: usize,
    /// Every replica on this node.
    pub replicas: Vec<ReplicaFigures>,
}

/// One coordinator's part of the figures of groups; gone when it is dropped.
#[derive(Debug)]
pub struct GroupGauges {
    groups: Gauge,
    members: Gauge,
    shown: (i64, i64),
}

impl GroupGauges {
    /// Shows these counts instead of the last ones.
    pub fn set(&mut self, groups: usize, members: usize) {
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        let new = (count(groups), count(members));
        self.groups.inc_by(new.0 - self.shown.0);
        self.members.inc_by(new.1 - self.shown.1);
        self.shown = new;
    }
}

impl Drop for GroupGauges {
    fn drop(&mut self) {
        self.set(0, 0);
    }
}

/// Every series that is counted as things happen. Cheap to share; all methods take `&self` and may be called from any thread.
pub struct Metrics {
    registry: Registry,
    sync_seconds: Histogram,
    sync_groups: Histogram,
    append_bytes: Counter,
    append_entries: Counter,
    scrub_bytes: Counter,
    scrub_findings: Counter,
    compactions: Counter,
    compaction_read_bytes: Counter,
    compaction_written_bytes: Counter,
    compaction_dropped_records: Counter,
    repairs: Family<OutcomeLabels, Counter>,
    repair_entries: Counter,
    replicas_asleep: Gauge,
    elections_started: Counter,
    leader_changes: Counter,
    raft_messages_sent: Counter,
    raft_sent_bytes: Counter,
    raft_messages_dropped: Counter,
    commit_seconds: Histogram,
    requests: Family<RequestLabels, Counter>,
    request_seconds: Family<MethodLabels, Histogram, fn() -> Histogram>,
    produce_batches: Counter,
    produce_records: Counter,
    produce_bytes: Counter,
    produce_failures: Family<ReasonLabels, Counter>,
    produce_in_flight_bytes: Gauge,
    fetch_records: Counter,
    fetch_bytes: Counter,
    fetch_follower_bytes: Counter,
    streams: Family<KindLabels, Gauge>,
    connections: Gauge,
    connections_refused: Counter,
    handshakes_failed: Counter,
    tls_files_refused: Gauge,
    groups: Gauge,
    group_members: Gauge,
    group_rebalances: Counter,
    group_commits: Counter,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All series, at zero.
    pub fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix(PREFIX),
            sync_seconds: latency_histogram(),
            sync_groups: Histogram::new(exponential_buckets(1.0, 2.0, 12)),
            append_bytes: Counter::default(),
            scrub_bytes: Counter::default(),
            scrub_findings: Counter::default(),
            compactions: Counter::default(),
            compaction_read_bytes: Counter::default(),
            compaction_written_bytes: Counter::default(),
            compaction_dropped_records: Counter::default(),
            repairs: Family::default(),
            repair_entries: Counter::default(),
            append_entries: Counter::default(),
            replicas_asleep: Gauge::default(),
            elections_started: Counter::default(),
            leader_changes: Counter::default(),
            raft_messages_sent: Counter::default(),
            raft_sent_bytes: Counter::default(),
            raft_messages_dropped: Counter::default(),
            commit_seconds: latency_histogram(),
            requests: Family::default(),
            request_seconds: Family::new_with_constructor(latency_histogram),
            produce_batches: Counter::default(),
            produce_records: Counter::default(),
            produce_bytes: Counter::default(),
            produce_failures: Family::default(),
            produce_in_flight_bytes: Gauge::default(),
            fetch_records: Counter::default(),
            fetch_bytes: Counter::default(),
            fetch_follower_bytes: Counter::default(),
            streams: Family::default(),
            connections: Gauge::default(),
            connections_refused: Counter::default(),
            handshakes_failed: Counter::default(),
            tls_files_refused: Gauge::default(),
            groups: Gauge::default(),
            group_members: Gauge::default(),
            group_rebalances: Counter::default(),
            group_commits: Counter::default(),
        };
        metrics.register_log_and_raft();
        metrics.register_requests();
        metrics.register_groups();
        metrics
    }

    fn register_log_and_raft(&mut self) {
        let registry = &mut self.registry;
        let build = Family::<VersionLabels, Gauge>::default();
        build.get_or_create(&VersionLabels { version: env!("CARGO_PKG_VERSION") }).set(1);
        registry.register("build_info", "Version of the broker; always 1", build);
        registry.register(
            "sync_seconds",
            "Time to make a group of replicas durable with one sync",
            self.sync_seconds.clone(),
        );
        registry.register(
            "sync_groups",
            "Replicas made durable by one sync",
            self.sync_groups.clone(),
        );
        registry.register("append_bytes", "Bytes appended to logs", self.append_bytes.clone());
        registry.register(
            "append_entries",
            "Entries appended to logs",
            self.append_entries.clone(),
        );
        registry.register(
            "scrub_bytes",
            "Bytes of sealed segments read again in search of rot",
            self.scrub_bytes.clone(),
        );
        registry.register("scrub_findings", "Damage found by it", self.scrub_findings.clone());
        registry.register("compactions", "Compactions of partitions", self.compactions.clone());
        registry.register(
            "compaction_read_bytes",
            "Bytes of batches read by compactions",
            self.compaction_read_bytes.clone(),
        );
        registry.register(
            "compaction_written_bytes",
            "Bytes of batches that stayed and were written again",
            self.compaction_written_bytes.clone(),
        );
        registry.register(
            "compaction_dropped_records",
            "Records superseded by a later one of their key, and tombstones whose time was up",
            self.compaction_dropped_records.clone(),
        );
        registry.register(
            "repairs",
            "Damaged replicas, by outcome (repaired, failed)",
            self.repairs.clone(),
        );
        registry.register(
            "repair_entries",
            "Entries fetched from other replicas for repairs",
            self.repair_entries.clone(),
        );
        registry.register(
            "replicas_asleep",
            "Replicas in whose group nothing happens: they neither tick nor send heartbeats",
            self.replicas_asleep.clone(),
        );
        registry.register(
            "elections_started",
            "Elections started by replicas on this node",
            self.elections_started.clone(),
        );
        registry.register(
            "leader_changes",
            "Changes of leader seen by replicas on this node",
            self.leader_changes.clone(),
        );
        registry.register(
            "raft_messages_sent",
            "Raft messages queued for other nodes",
            self.raft_messages_sent.clone(),
        );
        registry.register(
            "raft_sent_bytes",
            "Bytes of Raft messages queued for other nodes",
            self.raft_sent_bytes.clone(),
        );
        registry.register(
            "raft_messages_dropped",
            "Raft messages dropped: a full queue, a broken stream, or not valid",
            self.raft_messages_dropped.clone(),
        );
        registry.register(
            "commit_seconds",
            "Time from append to commit on the leader",
            self.commit_seconds.clone(),
        );
    }

    fn register_groups(&mut self) {
        let registry = &mut self.registry;
        registry.register("groups", "Consumer groups coordinated here", self.groups.clone());
        registry.register(
            "group_members",
            "Members of the consumer groups coordinated here",
            self.group_members.clone(),
        );
        registry.register(
            "group_rebalances",
            "Times that members or owners of partitions changed in groups coordinated here",
            self.group_rebalances.clone(),
        );
        registry.register(
            "group_commits",
            "Commits of members of consumer groups",
            self.group_commits.clone(),
        );
    }

    fn register_requests(&mut self) {
        let registry = &mut self.registry;
        registry.register(
            "requests",
            "gRPC calls ended, by method and status code",
            self.requests.clone(),
        );
        registry.register(
            "request_seconds",
            "Time of unary gRPC calls, by method",
            self.request_seconds.clone(),
        );
        registry.register(
            "produce_batches",
            "Record batches acknowledged to publishers",
            self.produce_batches.clone(),
        );
        registry.register(
            "produce_records",
            "Records acknowledged to publishers",
            self.produce_records.clone(),
        );
        registry.register(
            "produce_bytes",
            "Bytes of record batches acknowledged to publishers",
            self.produce_bytes.clone(),
        );
        registry.register(
            "produce_failures",
            "Record batches answered with an error, by reason",
            self.produce_failures.clone(),
        );
        registry.register(
            "produce_in_flight_bytes",
            "Bytes of record batches that wait for their acknowledgement",
            self.produce_in_flight_bytes.clone(),
        );
        registry.register("fetch_records", "Records sent to consumers", self.fetch_records.clone());
        registry.register(
            "fetch_bytes",
            "Bytes of records sent to consumers",
            self.fetch_bytes.clone(),
        );
        registry.register(
            "fetch_follower_bytes",
            "Bytes of records sent to consumers from replicas that do not lead",
            self.fetch_follower_bytes.clone(),
        );
        registry.register(
            "streams",
            "Open streams, by kind (produce, subscribe, metadata)",
            self.streams.clone(),
        );
        registry.register("connections", "Open client connections", self.connections.clone());
        registry.register(
            "connections_refused",
            "Client connections closed at once because limits.connections was reached",
            self.connections_refused.clone(),
        );
        registry.register(
            "tls_handshakes_failed",
            "Connections of clients and other nodes closed because their TLS handshake failed",
            self.handshakes_failed.clone(),
        );
        registry.register(
            "tls_files_refused",
            "1 while the files for TLS hold something that cannot be used; what they held before is",
            self.tls_files_refused.clone(),
        );
    }

    /// One sync made `groups` replicas durable in `seconds`.
    pub fn sync_done(&self, seconds: f64, groups: usize) {
        self.sync_seconds.observe(seconds);
        self.sync_groups.observe(u32::try_from(groups).map_or(f64::MAX, f64::from));
    }

    /// Entries were appended to a log.
    pub fn append_done(&self, bytes: u64, entries: u64) {
        self.append_bytes.inc_by(bytes);
        self.append_entries.inc_by(entries);
    }

    /// Sealed segments were read again.
    pub fn scrubbed(&self, bytes: u64, findings: u64) {
        self.scrub_bytes.inc_by(bytes);
        self.scrub_findings.inc_by(findings);
    }

    /// A partition was compacted.
    pub fn compacted(&self, read_bytes: u64, written_bytes: u64, dropped_records: u64) {
        self.compactions.inc();
        self.compaction_read_bytes.inc_by(read_bytes);
        self.compaction_written_bytes.inc_by(written_bytes);
        self.compaction_dropped_records.inc_by(dropped_records);
    }

    /// The repair of a damaged replica ended.
    pub fn repaired(&self, is_whole: bool, entries: u64) {
        let outcome = if is_whole { "repaired" } else { "failed" };
        self.repairs.get_or_create(&OutcomeLabels { outcome }).inc();
        self.repair_entries.inc_by(entries);
    }

    /// So many replicas sleep now.
    pub fn replicas_asleep(&self, now: usize) {
        self.replicas_asleep.set(i64::try_from(now).unwrap_or(i64::MAX));
    }

    /// Replicas on this node started elections.
    pub fn elections_started(&self, n: u64) {
        self.elections_started.inc_by(n);
    }

    /// Replicas on this node saw other leaders.
    pub fn leader_changes(&self, n: u64) {
        self.leader_changes.inc_by(n);
    }

    /// Raft messages were queued for other nodes.
    pub fn raft_messages_sent(&self, n: u64, bytes: u64) {
        self.raft_messages_sent.inc_by(n);
        self.raft_sent_bytes.inc_by(bytes);
    }

    /// Raft messages were dropped.
    pub fn raft_messages_dropped(&self, n: u64) {
        self.raft_messages_dropped.inc_by(n);
    }

    /// An append was committed this long after it came in.
    pub fn commit_latency(&self, seconds: f64) {
        self.commit_seconds.observe(seconds);
    }

    /// A gRPC call ended. `seconds` is given for unary calls: the length of a stream says nothing of speed.
    pub fn request_done(&self, method: &'static str, code: &'static str, seconds: Option<f64>) {
        self.requests.get_or_create(&RequestLabels { method, code }).inc();
        if let Some(seconds) = seconds {
            self.request_seconds.get_or_create(&MethodLabels { method }).observe(seconds);
        }
    }

    /// A batch was acknowledged to its publisher.
    pub fn produced(&self, records: u64, bytes: u64) {
        self.produce_batches.inc();
        self.produce_records.inc_by(records);
        self.produce_bytes.inc_by(bytes);
    }

    /// A batch was answered with an error.
    pub fn produce_failed(&self, reason: &'static str) {
        self.produce_failures.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// A batch begins to wait for its acknowledgement; the guard ends it.
    pub fn produce_in_flight(&self, bytes: u64) -> GaugeGuard {
        GaugeGuard::add(&self.produce_in_flight_bytes, i64::try_from(bytes).unwrap_or(i64::MAX))
    }

    /// Records were sent to a consumer.
    pub fn fetched(&self, records: u64, bytes: u64) {
        self.fetch_records.inc_by(records);
        self.fetch_bytes.inc_by(bytes);
    }

    /// Of these, bytes that a replica sent which does not lead.
    pub fn fetched_from_follower(&self, bytes: u64) {
        self.fetch_follower_bytes.inc_by(bytes);
    }

    /// What one coordinator shows of its groups.
    pub fn group_gauges(&self) -> GroupGauges {
        GroupGauges {
            groups: self.groups.clone(),
            members: self.group_members.clone(),
            shown: (0, 0),
        }
    }

    /// Members or owners of partitions changed.
    pub fn group_rebalanced(&self) {
        self.group_rebalances.inc();
    }

    /// A member committed.
    pub fn group_committed(&self) {
        self.group_commits.inc();
    }

    /// A stream is open until the guard is dropped.
    pub fn stream_opened(&self, kind: &'static str) -> GaugeGuard {
        GaugeGuard::add(&self.streams.get_or_create(&KindLabels { kind }), 1)
    }

    /// A client connection is open until the guard is dropped.
    pub fn connection_opened(&self) -> GaugeGuard {
        GaugeGuard::add(&self.connections, 1)
    }

    /// A client connection was closed at once.
    pub fn connection_refused(&self) {
        self.connections_refused.inc();
    }

    /// A connection was closed because its TLS handshake failed.
    pub fn handshake_failed(&self) {
        self.handshakes_failed.inc();
    }

    /// Whether the files for TLS hold something that cannot be used.
    pub fn set_tls_files_refused(&self, is_refused: bool) {
        self.tls_files_refused.set(i64::from(is_refused));
    }

    /// Every series in Prometheus' text format (OpenMetrics 1.0), with what the scraper read just now.
    pub fn render(&self, figures: &ScrapeFigures) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail; if an encoder refused a value, what there is so far is still worth having.
        let outcome = encode_registry(&mut text, &self.registry)
            .and_then(|()| encode_registry(&mut text, &scrape_registry(figures)))
            .and_then(|()| encode_eof(&mut text));
        if let Err(error) = outcome {
            tracing::error!(%error, "metrics could not be rendered in full");
        }
        text
    }
}

/// Takes back what it added to a gauge when it is dropped.
#[derive(Debug)]
pub struct GaugeGuard {
    gauge: Gauge,
    amount: i64,
}

impl GaugeGuard {
    fn add(gauge: &Gauge, amount: i64) -> Self {
        gauge.inc_by(amount);
        Self { gauge: gauge.clone(), amount }
    }
}

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.gauge.dec_by(self.amount);
    }
}

/// Gauges that exist only for one scrape, so that a replica that is gone leaves no series behind.
#[derive(Default)]
struct ReplicaGauges {
    leader: Family<PartitionLabels, Gauge>,
    leader_epoch: Family<PartitionLabels, Gauge>,
    log_start_offset: Family<PartitionLabels, Gauge>,
    high_watermark: Family<PartitionLabels, Gauge>,
    log_end_offset: Family<PartitionLabels, Gauge>,
    log_bytes: Family<PartitionLabels, Gauge>,
    quarantined: Family<PartitionLabels, Gauge>,
    follower_lag: Family<FollowerLabels, Gauge>,
}

impl ReplicaGauges {
    fn set(&self, replica: &ReplicaFigures) {
        let labels = PartitionLabels { topic: replica.topic.clone(), partition: replica.partition };
        let set = |family: &Family<PartitionLabels, Gauge>, value: i64| {
            family.get_or_create(&labels).set(value);
        };
        set(&self.leader, i64::from(replica.is_leader));
        set(&self.leader_epoch, gauge_value(replica.leader_epoch));
        set(&self.log_start_offset, gauge_value(replica.log_start_offset));
        set(&self.high_watermark, gauge_value(replica.high_watermark));
        set(&self.log_end_offset, gauge_value(replica.log_end_offset));
        set(&self.log_bytes, gauge_value(replica.size_bytes));
        set(&self.quarantined, i64::from(replica.is_quarantined));
        for &(node, entries) in &replica.follower_lag_entries {
            let labels =
                FollowerLabels { topic: replica.topic.clone(), partition: replica.partition, node };
            self.follower_lag.get_or_create(&labels).set(gauge_value(entries));
        }
    }

    fn register(self, registry: &mut Registry) {
        registry.register("partition_leader", "1 where this node leads the partition", self.leader);
        registry.register(
            "partition_leader_epoch",
            "Leader epoch of the partition as this node knows it",
            self.leader_epoch,
        );
        registry.register(
            "partition_log_start_offset",
            "First retained offset",
            self.log_start_offset,
        );
        registry.register(
            "partition_high_watermark",
            "First offset that is not readable yet",
            self.high_watermark,
        );
        registry.register(
            "partition_log_end_offset",
            "Next offset to be assigned",
            self.log_end_offset,
        );
        registry.register(
            "partition_log_bytes",
            "Bytes of the partition's segments on this node",
            self.log_bytes,
        );
        registry.register(
            "partition_quarantined",
            "1 where the replica found damaged data",
            self.quarantined,
        );
        registry.register(
            "follower_lag_entries",
            "Entries a follower still lacks; reported by the leader",
            self.follower_lag,
        );
    }
}

fn scrape_registry(figures: &ScrapeFigures) -> Registry {
    let mut registry = Registry::with_prefix(PREFIX);
    let single = |value: i64| {
        let gauge = Gauge::<i64>::default();
        gauge.set(value);
        gauge
    };
    let leaders = figures.replicas.iter().filter(|replica| replica.is_leader).count();
    let count = |n: usize| single(i64::try_from(n).unwrap_or(i64::MAX));
    registry.register("ready", "1 while the node serves", single(i64::from(figures.ready)));
    registry.register("nodes", "Nodes of the cluster", single(gauge_value(figures.nodes)));
    registry.register(
        "nodes_alive",
        "Nodes heard from within the election timeout, this one included",
        single(gauge_value(figures.nodes_alive)),
    );
    registry.register(
        "service_instances",
        "Instances of services in the registry, as this node knows it",
        count(figures.service_instances),
    );
    registry.register("replicas", "Replicas on this node", count(figures.replicas.len()));
    registry.register("leaders", "Replicas on this node that lead", count(leaders));
    let gauges = ReplicaGauges::default();
    figures.replicas.iter().for_each(|replica| gauges.set(replica));
    gauges.register(&mut registry);
    registry
}

fn gauge_value(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn touched() -> (Metrics, ScrapeFigures) {
        let metrics = Metrics::new();
        metrics.request_done("Produce", "OK", Some(0.001));
        metrics.repaired(true, 1);
        metrics.produce_failed("NOT_LEADER");
        drop(metrics.stream_opened("produce"));
        let replica = ReplicaFigures {
            topic: "orders".into(),
            is_leader: true,
            high_watermark: 7,
            follower_lag_entries: vec![(2, 3)],
            ..ReplicaFigures::default()
        };
        let figures = ScrapeFigures { ready: true, replicas: vec![replica], ..Default::default() };
        (metrics, figures)
    }

    #[test]
    fn docs_and_registry_name_the_same_series() {
        let (metrics, figures) = touched();
        let rendered = metrics.render(&figures);
        let in_registry: BTreeSet<&str> = rendered
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE "))
            .filter_map(|line| line.split(' ').next())
            .collect();
        let docs = include_str!("../../docs/metrics.md");
        // A counter's series ends in `_total`, which its TYPE line leaves out.
        let in_docs: BTreeSet<&str> = docs
            .lines()
            .filter_map(|line| line.strip_prefix("| `"))
            .filter_map(|line| line.split(['`', '{']).next())
            .map(|name| name.strip_suffix("_total").unwrap_or(name))
            .collect();
        assert_eq!(in_registry, in_docs);
        assert!(in_registry.iter().all(|name| name.starts_with("highwater_")));
    }

    #[test]
    fn a_scrape_shows_counted_and_scraped_figures_and_ends_properly() {
        let (metrics, figures) = touched();
        metrics.append_done(100, 2);
        let text = metrics.render(&figures);
        for line in [
            "highwater_append_bytes_total 100",
            "highwater_partition_high_watermark{topic=\"orders\",partition=\"0\"} 7",
            "highwater_follower_lag_entries{topic=\"orders\",partition=\"0\",node=\"2\"} 3",
            "highwater_requests_total{method=\"Produce\",code=\"OK\"} 1",
            "highwater_leaders 1",
            "highwater_streams{kind=\"produce\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn guards_take_back_what_they_added() {
        let metrics = Metrics::new();
        let guard = metrics.produce_in_flight(10);
        assert_eq!(metrics.produce_in_flight_bytes.get(), 10);
        drop(guard);
        assert_eq!(metrics.produce_in_flight_bytes.get(), 0);
    }
}
