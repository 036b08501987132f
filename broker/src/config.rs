//! The broker's configuration: one typed value, put together from defaults, a file, the environment and flags.
//!
//! Owns: every key, its default and bounds, where each value came from, and the checks between keys. Never: sockets or
//! directories; a configuration that passes may still meet a port in use.

mod keys;
mod sources;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use highwater_proto::batch::BATCH_BYTES_MAX;

use crate::cluster::{NodeConfig, NodeId};
use crate::groups::GroupOptions;

pub use sources::{Command, ConfigCommand, Flags, Invocation};

/// Name of the client listener that always exists.
pub const DEFAULT_LISTENER: &str = "default";

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// The configuration file.
    File(PathBuf),
    /// An environment variable, by its name.
    Environment(String),
    /// A flag, as written.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => formatter.write_str("default"),
            Self::File(path) => write!(formatter, "file {}", path.display()),
            Self::Environment(name) => write!(formatter, "environment {name}"),
            Self::Flag(flag) => write!(formatter, "flag {flag}"),
        }
    }
}

/// A configuration that cannot be used. Every message names the key, the place and the mend; the process exits with 2.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// No key has this name.
    #[error("unknown key '{key}' ({place}); did you mean '{nearest}'?")]
    UnknownKey {
        /// The key as written.
        key: String,
        /// Where it was written.
        place: Origin,
        /// The known key that looks most like it.
        nearest: String,
    },
    /// A value is not what its key takes.
    #[error("{key} = '{value}' ({place}): {why}")]
    InvalidValue {
        /// The key.
        key: String,
        /// The value as written.
        value: String,
        /// Where it was written.
        place: Origin,
        /// What would be right.
        why: String,
    },
    /// A file cannot be read.
    #[error("cannot read {} ({place}): {source}", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Who asked for it.
        place: Origin,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{} is not valid TOML: {source}", .path.display())]
    NotToml {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and column.
        source: Box<toml::de::Error>,
    },
    /// Values that are fine by themselves do not go together.
    #[error("{key}: {why}")]
    Conflict {
        /// The key to change.
        key: String,
        /// What is wrong and how to mend it.
        why: String,
    },
}

/// `node.*`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSection {
    /// The node's id; `None`: what the data directory holds, else what the cluster assigns.
    pub id: Option<NodeId>,
    /// The rack it stands in: replicas of a partition go to different racks where they can; empty: nobody says.
    pub rack: String,
    /// Where everything is kept.
    pub data_dir: PathBuf,
    /// Internal addresses of the founding nodes, the same list on every node; empty: a cluster of one.
    pub seeds: Vec<String>,
    /// Longest graceful stop, in milliseconds.
    pub shutdown_ms_max: u64,
}

/// `listen.*`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenSection {
    /// Where the default client listener binds.
    pub client: String,
    /// What it tells clients; `None`: the bound address.
    pub advertise: Option<String>,
    /// Where other nodes connect.
    pub internal: String,
    /// What other nodes are told; `None`: the bound address.
    pub internal_advertise: Option<String>,
    /// Where health and metrics are served.
    pub http: String,
}

/// One of `[[listeners]]`: another client listener with an address of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamedListener {
    /// Where it binds.
    pub bind: String,
    /// What it tells clients; `None`: the bound address.
    pub advertise: Option<String>,
}

/// `tls.*`: the client listeners. Certificate and key go together; without them clients are served in plain text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsSection {
    /// The certificate that clients are shown, with its intermediates behind it (PEM).
    pub cert_file: Option<PathBuf>,
    /// Its private key (PEM).
    pub key_file: Option<PathBuf>,
    /// Authorities whose certificates clients must show one of (PEM); `None`: clients need none.
    pub client_ca_file: Option<PathBuf>,
    /// Pause between two looks at the files, those of `internal_tls` too, in milliseconds.
    pub reload_ms: u64,
}

/// `internal_tls.*`: the internal listener and the connections to those of other nodes. All three or none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InternalTlsSection {
    /// The certificate that names this node, with its intermediates behind it (PEM).
    pub cert_file: Option<PathBuf>,
    /// Its private key (PEM).
    pub key_file: Option<PathBuf>,
    /// Authorities whose certificates other nodes must show one of (PEM).
    pub ca_file: Option<PathBuf>,
}

/// `raft.*`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RaftSection {
    /// Raft's clock tick, in milliseconds.
    pub tick_ms: u64,
    /// Ticks between a leader's heartbeats.
    pub heartbeat_ticks: u32,
    /// Shortest election timeout, in ticks; the actual one is drawn between this and twice this.
    pub election_ticks: u32,
}

/// `cluster.*`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterSection {
    /// Partitions whose replicas this node moves at the same time.
    pub moves_max: u32,
    /// Pause between two looks for leaders that are not the preferred ones, in milliseconds; 0 means never.
    pub leader_balance_ms: u64,
    /// Whether a replica that cannot be repaired is replaced without an operator, once the others are well.
    pub replace_damaged: bool,
}

/// `topics.*`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicsSection {
    /// Replicas of a partition when a topic does not say; bounded by the number of nodes.
    pub default_replication_factor: u32,
    /// Partitions of a topic that does not say.
    pub default_partitions: u32,
    /// Whether writing to a topic that does not exist creates it.
    pub auto_create: bool,
    /// How often retention looks for segments to delete, in milliseconds.
    pub retention_check_ms: u64,
}

/// `groups.*`: consumer groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupsSection {
    /// Partitions of the internal topic that groups are kept in, when it is created.
    pub offsets_partitions: u32,
    /// Replicas of each; bounded by the number of nodes.
    pub offsets_replication_factor: u32,
    /// How long progress is kept after the last member has gone, in milliseconds.
    pub offsets_retention_ms: u64,
    /// How long a member that does not say otherwise counts as alive without a sign of life, in milliseconds.
    pub session_timeout_ms: u32,
    /// How long a member that does not say otherwise may hold partitions without progress, in milliseconds.
    pub progress_timeout_ms: u32,
    /// Groups in one partition of the internal topic.
    pub groups: u32,
    /// Members of one group.
    pub members: u32,
}

/// `storage.*`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StorageSection {
    /// Disk space kept back for what must still be written when the disk is full, in bytes; 0 means none.
    pub reserve_bytes: u64,
    /// Bytes a second at which sealed segments are read again in search of rot; 0 means never.
    pub scrub_bytes_per_s: u64,
    /// Disk space for files of dropped segments that wait to hold the next ones.
    pub spare_bytes: u64,
    /// Memory for the keys of one compaction, in bytes.
    pub compaction_map_bytes: u64,
}

/// `limits.*`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitsSection {
    /// Open client connections of this node.
    pub connections: u32,
    /// Open calls on one connection.
    pub streams_per_connection: u32,
    /// Unacknowledged produce bytes on one connection; beyond it the broker stops reading from it.
    pub in_flight_bytes_per_connection: u64,
    /// Unacknowledged produce bytes on this node.
    pub in_flight_bytes: u64,
    /// Partitions on one Subscribe stream.
    pub subscribe_partitions: u32,
    /// Topics in the cluster.
    pub topics: u32,
    /// Partitions in the cluster, replicas not counted.
    pub partitions: u32,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Pretty on a terminal, JSON otherwise.
    Auto,
    /// For people.
    Pretty,
    /// One JSON object a line.
    Json,
}

/// `log.*`: what the process says, not where events are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSection {
    /// How lines look.
    pub format: LogFormat,
    /// Least level, or directives as `RUST_LOG` takes them (which wins).
    pub level: String,
}

/// Everything that can be configured. [`Config::default`] is a node on the default ports with its data in `./data`.
#[derive(Clone, Debug)]
pub struct Config {
    /// The node and its cluster.
    pub node: NodeSection,
    /// The listeners every node has.
    pub listen: ListenSection,
    /// Further client listeners, by name.
    pub listeners: BTreeMap<String, NamedListener>,
    /// TLS for clients.
    pub tls: TlsSection,
    /// TLS between nodes.
    pub internal_tls: InternalTlsSection,
    /// Raft's clock.
    pub raft: RaftSection,
    /// What goes on among the nodes.
    pub cluster: ClusterSection,
    /// Topics.
    pub topics: TopicsSection,
    /// Consumer groups.
    pub groups: GroupsSection,
    /// Limits.
    pub limits: LimitsSection,
    /// `storage.*`
    pub storage: StorageSection,
    /// Log lines.
    pub log: LogSection,
    origins: BTreeMap<String, Origin>,
}

/// One line of `broker config print`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigLine {
    /// The key.
    pub key: String,
    /// Its value, as it would be written.
    pub value: String,
    /// Where the value came from.
    pub origin: Origin,
    /// What the key takes, for people.
    pub values: &'static str,
}

/// The sockets' real addresses, known once they are bound (port 0 is allowed).
#[derive(Clone, Debug)]
pub struct BoundAddresses {
    /// The internal listener.
    pub internal: SocketAddr,
    /// Client listeners, by name.
    pub clients: BTreeMap<String, SocketAddr>,
}

impl Default for Config {
    fn default() -> Self {
        keys::defaults()
    }
}

impl Config {
    /// Every value from where it was set last: default, then file, then environment, then flags; checked as a whole.
    pub fn load(
        flags: &Flags,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let mut config = Self::default();
        for assignment in sources::collect(flags, environment)? {
            config.assign(assignment)?;
        }
        config.validate()?;
        Ok(config)
    }

    /// For a broker inside a test or another process: every port chosen by the system, on the loopback interface.
    pub fn in_process(data_dir: impl Into<PathBuf>) -> Self {
        let mut config = Self::default();
        let any_port = "127.0.0.1:0";
        config.node.data_dir = data_dir.into();
        config.listen.client = any_port.to_owned();
        config.listen.internal = any_port.to_owned();
        config.listen.http = any_port.to_owned();
        config
    }

    fn assign(&mut self, assignment: sources::Assignment) -> Result<(), ConfigError> {
        let sources::Assignment { key, value, origin } = assignment;
        let outcome = match keys::find(&key) {
            Some(known) => (known.set)(self, &value),
            None => match keys::listener_key(&key) {
                Some((name, field)) => keys::set_listener(self, name, field, &value),
                None => {
                    let nearest = keys::nearest(&key);
                    return Err(ConfigError::UnknownKey { key, place: origin, nearest });
                }
            },
        };
        match outcome {
            Ok(()) => {
                self.origins.insert(key, origin);
                Ok(())
            }
            Err(why) => Err(ConfigError::InvalidValue { key, value, place: origin, why }),
        }
    }

    /// Every key with its value and where it came from, in the order of the documentation.
    pub fn lines(&self) -> Vec<ConfigLine> {
        let line = |key: String, value: String, values: &'static str| {
            let origin = self.origins.get(&key).cloned().unwrap_or(Origin::Default);
            ConfigLine { key, value, origin, values }
        };
        let mut lines: Vec<_> = keys::KEYS
            .iter()
            .map(|key| line(key.name.to_owned(), (key.get)(self), key.values))
            .collect();
        for (name, listener) in &self.listeners {
            let bind = format!("listeners.{name}.bind");
            lines.push(line(bind, listener.bind.clone(), keys::ADDRESS_VALUES));
            let advertise = format!("listeners.{name}.advertise");
            let value = keys::show_auto(&listener.advertise);
            lines.push(line(advertise, value, keys::ADVERTISE_VALUES));
        }
        lines
    }

    /// The client listeners in the order they are opened: name, bind address, advertised address, and the key of the
    /// bind address.
    pub fn client_listeners(&self) -> Vec<(String, String, Option<String>, String)> {
        let mut all = vec![(
            DEFAULT_LISTENER.to_owned(),
            self.listen.client.clone(),
            self.listen.advertise.clone(),
            "listen.client".to_owned(),
        )];
        all.extend(self.listeners.iter().map(|(name, listener)| {
            let key = format!("listeners.{name}.bind");
            (name.clone(), listener.bind.clone(), listener.advertise.clone(), key)
        }));
        all
    }

    /// Checks every value against the others.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.validate_addresses()?;
        self.validate_seeds()?;
        self.validate_tls()?;
        let conflict =
            |key: &str, why: String| Err(ConfigError::Conflict { key: key.to_owned(), why });
        if self.raft.election_ticks <= 2 * self.raft.heartbeat_ticks {
            let least = 2 * self.raft.heartbeat_ticks + 1;
            return conflict(
                "raft.election_ticks",
                format!("a leader must get two heartbeats across within it: set at least {least}"),
            );
        }
        let batch_bytes_max = BATCH_BYTES_MAX as u64;
        if self.limits.in_flight_bytes_per_connection < batch_bytes_max {
            let why = format!("must hold at least one batch: set {batch_bytes_max} or more");
            return conflict("limits.in_flight_bytes_per_connection", why);
        }
        if self.limits.in_flight_bytes < self.limits.in_flight_bytes_per_connection {
            let why = "must be at least limits.in_flight_bytes_per_connection".to_owned();
            return conflict("limits.in_flight_bytes", why);
        }
        if (1..batch_bytes_max).contains(&self.storage.reserve_bytes) {
            let why = format!("must hold at least one batch: set {batch_bytes_max} or more, or 0");
            return conflict("storage.reserve_bytes", why);
        }
        Ok(())
    }

    fn validate_addresses(&self) -> Result<(), ConfigError> {
        let mut seen: BTreeMap<String, String> = BTreeMap::new();
        for (bind_key, bind, advertise_key, advertise) in self.bindings() {
            let conflict = |key: &str, why| ConfigError::Conflict { key: key.to_owned(), why };
            let (host, port) = split_address(&bind)
                .map_err(|why| conflict(&bind_key, format!("'{bind}' {why}")))?;
            if port != 0
                && let Some(other) = seen.insert(bind.clone(), bind_key.clone())
            {
                return Err(conflict(&bind_key, format!("{bind} is taken by {other} already")));
            }
            let Some(advertise_key) = advertise_key else { continue };
            match &advertise {
                Some(address) => check_reachable(address)
                    .map_err(|why| conflict(&advertise_key, format!("'{address}' {why}")))?,
                None if is_unspecified(host) => {
                    let why = format!(
                        "nobody can connect to {host}, where {bind_key} binds: set the HOST:PORT to tell others"
                    );
                    return Err(conflict(&advertise_key, why));
                }
                None => {}
            }
        }
        Ok(())
    }

    fn validate_seeds(&self) -> Result<(), ConfigError> {
        let key = "node.seeds".to_owned();
        for (place, seed) in self.node.seeds.iter().enumerate() {
            check_reachable(seed).map_err(|why| ConfigError::Conflict {
                key: key.clone(),
                why: format!("'{seed}' {why}"),
            })?;
            if self.node.seeds.iter().take(place).any(|earlier| earlier == seed) {
                return Err(ConfigError::Conflict { key, why: format!("'{seed}' is there twice") });
            }
        }
        Ok(())
    }

    fn validate_tls(&self) -> Result<(), ConfigError> {
        let conflict = |key: &str, why: &str| {
            Err(ConfigError::Conflict { key: key.to_owned(), why: why.to_owned() })
        };
        let InternalTlsSection { cert_file, key_file, ca_file } = &self.internal_tls;
        let files = [
            ("internal_tls.cert_file", cert_file),
            ("internal_tls.key_file", key_file),
            ("internal_tls.ca_file", ca_file),
        ];
        if files.iter().any(|(_, file)| file.is_some())
            && let Some((missing, _)) = files.iter().find(|(_, file)| file.is_none())
        {
            return conflict(missing, "is missing: the three of internal_tls go together");
        }
        match &self.tls {
            TlsSection { cert_file: Some(_), key_file: None, .. } => {
                conflict("tls.key_file", "is missing: tls.cert_file is of no use without its key")
            }
            TlsSection { cert_file: None, key_file: Some(_), .. } => conflict(
                "tls.cert_file",
                "is missing: tls.key_file is of no use without its certificate",
            ),
            TlsSection { cert_file: None, client_ca_file: Some(_), .. } => conflict(
                "tls.client_ca_file",
                "clients can show certificates only where TLS is on: set tls.cert_file and tls.key_file too",
            ),
            _ => Ok(()),
        }
    }

    /// Key and value of every bound address, with key and value of what is advertised for it.
    fn bindings(&self) -> Vec<(String, String, Option<String>, Option<String>)> {
        let mut all = vec![
            (
                "listen.client".to_owned(),
                self.listen.client.clone(),
                Some("listen.advertise".to_owned()),
                self.listen.advertise.clone(),
            ),
            (
                "listen.internal".to_owned(),
                self.listen.internal.clone(),
                Some("listen.internal_advertise".to_owned()),
                self.listen.internal_advertise.clone(),
            ),
            ("listen.http".to_owned(), self.listen.http.clone(), None, None),
        ];
        all.extend(self.listeners.iter().map(|(name, listener)| {
            (
                format!("listeners.{name}.bind"),
                listener.bind.clone(),
                Some(format!("listeners.{name}.advertise")),
                listener.advertise.clone(),
            )
        }));
        all
    }

    /// What is allowed but should be known, one line each.
    pub fn warnings(&self) -> Vec<String> {
        let warning = |key: &str, bind: &str| {
            let lacks = match key {
                "listen.http" => "TLS or authentication",
                "listen.internal" if self.internal_tls.cert_file.is_none() => {
                    "TLS or authentication"
                }
                "listen.internal" => return None,
                _ if self.tls.cert_file.is_none() => "TLS or authentication",
                // Whoever has no certificate does not get in.
                _ if self.tls.client_ca_file.is_some() => return None,
                _ => "authentication (tls.client_ca_file)",
            };
            Some(format!(
                "{key} = {bind} is reachable from other machines without {lacks}: keep it in a trusted network"
            ))
        };
        let bindings = self.bindings().into_iter();
        bindings
            .filter(|(_, bind, ..)| split_address(bind).is_ok_and(|(host, _)| !is_loopback(host)))
            .filter_map(|(key, bind, ..)| warning(&key, &bind))
            .collect()
    }

    /// What the node needs of it, with the addresses that were really bound.
    pub fn to_node_config(&self, bound: &BoundAddresses) -> NodeConfig {
        let advertised = |configured: &Option<String>, bound: &SocketAddr| {
            configured.clone().unwrap_or_else(|| bound.to_string())
        };
        let listeners = self
            .client_listeners()
            .into_iter()
            .filter_map(|(name, _, advertise, _)| {
                let address = advertised(&advertise, bound.clients.get(&name)?);
                Some((name, address))
            })
            .collect();
        NodeConfig {
            node_id: self.node.id,
            rack: self.node.rack.clone(),
            moves_max: self.cluster.moves_max,
            leader_balance_ms: self.cluster.leader_balance_ms,
            replace_damaged: self.cluster.replace_damaged,
            data_dir: self.node.data_dir.clone(),
            seeds: self.node.seeds.clone(),
            internal_advertise: advertised(&self.listen.internal_advertise, &bound.internal),
            listeners,
            tick_ms: self.raft.tick_ms,
            heartbeat_ticks: self.raft.heartbeat_ticks,
            election_ticks: self.raft.election_ticks,
            default_replication_factor: self.topics.default_replication_factor,
            topics_max: self.limits.topics,
            partitions_max: self.limits.partitions,
            retention_check_ms: self.topics.retention_check_ms,
            reserve_bytes: self.storage.reserve_bytes,
            scrub_bytes_per_s: self.storage.scrub_bytes_per_s,
            spare_bytes: self.storage.spare_bytes,
            compaction_map_bytes: self.storage.compaction_map_bytes,
            shutdown_ms_max: self.node.shutdown_ms_max,
        }
    }

    /// What coordinators of consumer groups need to know.
    pub(crate) fn to_group_options(&self) -> GroupOptions {
        let size = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
        let groups = &self.groups;
        GroupOptions {
            offsets_partitions: groups.offsets_partitions,
            offsets_replication_factor: groups.offsets_replication_factor,
            offsets_retention: Duration::from_millis(groups.offsets_retention_ms),
            session_timeout: Duration::from_millis(groups.session_timeout_ms.into()),
            progress_timeout: Duration::from_millis(groups.progress_timeout_ms.into()),
            groups_max: size(groups.groups),
            members_max: size(groups.members),
        }
    }
}

/// Host and port of `HOST:PORT` or `[IPv6]:PORT`. The error is the rest of a sentence that begins with the address.
fn split_address(address: &str) -> Result<(&str, u16), String> {
    let form = "is not HOST:PORT, for example 127.0.0.1:7420 or [::1]:7420";
    let (host, port) = address.rsplit_once(':').ok_or(form)?;
    let port = port.parse().map_err(|_| format!("{form} (the port is a number up to 65535)"))?;
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    match bare {
        Some(inner) if inner.parse::<std::net::Ipv6Addr>().is_ok() => Ok((inner, port)),
        Some(_) => Err(format!("{form} (no IPv6 address between the brackets)")),
        None if host.is_empty() || host.contains([':', '/', '[', ']', ' ']) => Err(form.to_owned()),
        None => Ok((host, port)),
    }
}

/// Whether others could connect to this address as written.
fn check_reachable(address: &str) -> Result<(), String> {
    let (host, port) = split_address(address)?;
    if is_unspecified(host) {
        return Err("is not an address that others can connect to: name a host or IP".to_owned());
    }
    if port == 0 {
        return Err("needs the port that others connect to, not 0".to_owned());
    }
    Ok(())
}

fn is_unspecified(host: &str) -> bool {
    host.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified())
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Reads a file that a key or flag names.
fn read_text(path: &Path, place: &Origin) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable {
        path: path.to_owned(),
        place: place.clone(),
        source,
    })
}
