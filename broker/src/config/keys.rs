//! The table of configuration keys: name, default, accepted values, meaning, and how to read and write each.
//!
//! Owns: the one list that loading, `config print`, the nearest-key hint and the documentation test share. Never: where a
//! value comes from.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::{
    ClusterSection, Config, GroupsSection, InternalTlsSection, LimitsSection, ListenSection,
    LogFormat, LogSection, NamedListener, NodeSection, RaftSection, StorageSection, TlsSection,
    TopicsSection,
};

/// One key of the configuration.
pub(super) struct Key {
    /// `section.key`.
    pub(super) name: &'static str,
    /// Accepted values, for people.
    pub(super) values: &'static str,
    /// Reads a value. The error says what would be right.
    pub(super) set: fn(&mut Config, &str) -> Result<(), String>,
    /// Writes the value as `set` would read it.
    pub(super) get: fn(&Config) -> String,
}

/// What a bound address takes.
pub(super) const ADDRESS_VALUES: &str = "HOST:PORT; port 0 takes any free one";
/// What an advertised address takes.
pub(super) const ADVERTISE_VALUES: &str = "HOST:PORT, or auto: the bound address";

macro_rules! number {
    ($name:literal, $section:ident.$field:ident, $range:expr) => {
        Key {
            name: $name,
            values: concat!("a number in ", stringify!($range)),
            set: |config, text| {
                config.$section.$field = parse_number(text, $range)?;
                Ok(())
            },
            get: |config| config.$section.$field.to_string(),
        }
    };
}

macro_rules! switch {
    ($name:literal, $section:ident.$field:ident) => {
        Key {
            name: $name,
            values: "true or false",
            set: |config, text| {
                config.$section.$field =
                    text.trim().parse().map_err(|_| "takes true or false".to_owned())?;
                Ok(())
            },
            get: |config| config.$section.$field.to_string(),
        }
    };
}

macro_rules! address {
    ($name:literal, $field:ident) => {
        Key {
            name: $name,
            values: ADDRESS_VALUES,
            set: |config, text| {
                config.listen.$field = text.trim().to_owned();
                Ok(())
            },
            get: |config| config.listen.$field.clone(),
        }
    };
}

macro_rules! advertise {
    ($name:literal, $field:ident) => {
        Key {
            name: $name,
            values: ADVERTISE_VALUES,
            set: |config, text| {
                config.listen.$field = parse_auto(text);
                Ok(())
            },
            get: |config| show_auto(&config.listen.$field),
        }
    };
}

macro_rules! file {
    ($name:literal, $section:ident.$field:ident) => {
        Key {
            name: $name,
            values: "a PEM file, or nothing",
            set: |config, text| {
                config.$section.$field =
                    Some(text).filter(|text| !text.is_empty()).map(PathBuf::from);
                Ok(())
            },
            get: |config| {
                let path = config.$section.$field.as_deref();
                path.map(|path| path.display().to_string()).unwrap_or_default()
            },
        }
    };
}

/// Every key, in the order of the documentation.
pub(super) const KEYS: &[Key] = &[
    Key {
        name: "node.id",
        values: "auto, or a number from 1 on",
        set: |config, text| {
            config.node.id = match text.trim() {
                "auto" | "" => None,
                number => Some(parse_number(number, 1..=u64::MAX)?),
            };
            Ok(())
        },
        get: |config| config.node.id.map_or_else(|| "auto".to_owned(), |id| id.to_string()),
    },
    Key {
        name: "node.rack",
        values: "a name of at most 64 letters, digits, '.', '_' and '-', or nothing",
        set: |config, text| {
            let text = text.trim();
            let is_legal = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
            if text.len() > 64 || !text.bytes().all(is_legal) {
                return Err("takes at most 64 letters, digits, '.', '_' and '-'".to_owned());
            }
            config.node.rack = text.to_owned();
            Ok(())
        },
        get: |config| config.node.rack.clone(),
    },
    Key {
        name: "node.data_dir",
        values: "a directory",
        set: |config, text| {
            if text.is_empty() {
                return Err("name a directory, for example ./data".to_owned());
            }
            config.node.data_dir = PathBuf::from(text);
            Ok(())
        },
        get: |config| config.node.data_dir.display().to_string(),
    },
    Key {
        name: "node.seeds",
        values: "HOST:PORT,... or a list",
        set: |config, text| {
            config.node.seeds = text
                .split(',')
                .map(|seed| seed.trim().to_owned())
                .filter(|seed| !seed.is_empty())
                .collect();
            Ok(())
        },
        get: |config| config.node.seeds.join(","),
    },
    number!("node.shutdown_ms_max", node.shutdown_ms_max, 0..=600_000),
    address!("listen.client", client),
    advertise!("listen.advertise", advertise),
    address!("listen.internal", internal),
    advertise!("listen.internal_advertise", internal_advertise),
    address!("listen.http", http),
    file!("tls.cert_file", tls.cert_file),
    file!("tls.key_file", tls.key_file),
    file!("tls.client_ca_file", tls.client_ca_file),
    number!("tls.reload_ms", tls.reload_ms, 10..=86_400_000),
    file!("internal_tls.cert_file", internal_tls.cert_file),
    file!("internal_tls.key_file", internal_tls.key_file),
    file!("internal_tls.ca_file", internal_tls.ca_file),
    number!("raft.tick_ms", raft.tick_ms, 1..=10_000),
    number!("raft.heartbeat_ticks", raft.heartbeat_ticks, 1..=1_000),
    number!("raft.election_ticks", raft.election_ticks, 3..=10_000),
    number!("cluster.moves_max", cluster.moves_max, 1..=1_000),
    number!("cluster.leader_balance_ms", cluster.leader_balance_ms, 0..=86_400_000),
    switch!("cluster.replace_damaged", cluster.replace_damaged),
    number!("topics.default_replication_factor", topics.default_replication_factor, 1..=9),
    number!("topics.default_partitions", topics.default_partitions, 1..=10_000),
    switch!("topics.auto_create", topics.auto_create),
    number!("topics.retention_check_ms", topics.retention_check_ms, 10..=86_400_000),
    number!("groups.offsets_partitions", groups.offsets_partitions, 1..=1_000),
    number!("groups.offsets_replication_factor", groups.offsets_replication_factor, 1..=9),
    number!("groups.offsets_retention_ms", groups.offsets_retention_ms, 1_000..=3_153_600_000_000),
    number!("groups.session_timeout_ms", groups.session_timeout_ms, 500..=1_800_000),
    number!("groups.progress_timeout_ms", groups.progress_timeout_ms, 1_000..=86_400_000),
    number!("groups.groups", groups.groups, 1..=1_000_000),
    number!("groups.members", groups.members, 1..=10_000),
    number!("storage.reserve_bytes", storage.reserve_bytes, 0..=1_099_511_627_776),
    number!("storage.scrub_bytes_per_s", storage.scrub_bytes_per_s, 0..=u64::MAX),
    number!("storage.spare_bytes", storage.spare_bytes, 0..=1_099_511_627_776),
    number!("storage.compaction_map_bytes", storage.compaction_map_bytes, 64..=1 << 36),
    number!("limits.connections", limits.connections, 1..=1_000_000),
    number!("limits.streams_per_connection", limits.streams_per_connection, 1..=100_000),
    number!(
        "limits.in_flight_bytes_per_connection",
        limits.in_flight_bytes_per_connection,
        1..=1_073_741_824
    ),
    number!("limits.in_flight_bytes", limits.in_flight_bytes, 1..=1_099_511_627_776),
    number!("limits.subscribe_partitions", limits.subscribe_partitions, 1..=100_000),
    number!("limits.topics", limits.topics, 1..=1_000_000),
    number!("limits.partitions", limits.partitions, 1..=10_000_000),
    Key {
        name: "log.format",
        values: "auto, pretty or json",
        set: |config, text| {
            config.log.format = match text.trim() {
                "auto" => LogFormat::Auto,
                "pretty" => LogFormat::Pretty,
                "json" => LogFormat::Json,
                _ => return Err("takes auto, pretty or json".to_owned()),
            };
            Ok(())
        },
        get: |config| {
            match config.log.format {
                LogFormat::Auto => "auto",
                LogFormat::Pretty => "pretty",
                LogFormat::Json => "json",
            }
            .to_owned()
        },
    },
    Key {
        name: "log.level",
        values: "error, warn, info, debug, trace, or directives as RUST_LOG takes them",
        set: |config, text| {
            tracing_subscriber::EnvFilter::try_new(text)
                .map_err(|error| format!("is not a level or a filter: {error}"))?;
            config.log.level = text.to_owned();
            Ok(())
        },
        get: |config| config.log.level.clone(),
    },
];

/// The values when nobody sets anything.
pub(super) fn defaults() -> Config {
    Config {
        node: NodeSection {
            id: None,
            rack: String::new(),
            data_dir: PathBuf::from("data"),
            seeds: Vec::new(),
            shutdown_ms_max: 10_000,
        },
        listen: ListenSection {
            client: "127.0.0.1:7420".to_owned(),
            advertise: None,
            internal: "127.0.0.1:7421".to_owned(),
            internal_advertise: None,
            http: "127.0.0.1:7422".to_owned(),
        },
        listeners: BTreeMap::new(),
        tls: TlsSection {
            cert_file: None,
            key_file: None,
            client_ca_file: None,
            reload_ms: 10_000,
        },
        internal_tls: InternalTlsSection::default(),
        raft: RaftSection { tick_ms: 50, heartbeat_ticks: 2, election_ticks: 10 },
        cluster: ClusterSection { moves_max: 4, leader_balance_ms: 300_000, replace_damaged: true },
        topics: TopicsSection {
            default_replication_factor: 3,
            default_partitions: 1,
            auto_create: false,
            retention_check_ms: 10_000,
        },
        groups: GroupsSection {
            offsets_partitions: 16,
            offsets_replication_factor: 3,
            offsets_retention_ms: 604_800_000,
            session_timeout_ms: 10_000,
            progress_timeout_ms: 300_000,
            groups: 10_000,
            members: 1_000,
        },
        storage: StorageSection {
            reserve_bytes: 16 << 20,
            scrub_bytes_per_s: 4 << 20,
            spare_bytes: 512 << 20,
            compaction_map_bytes: 32 << 20,
        },
        limits: LimitsSection {
            connections: 10_000,
            streams_per_connection: 1_024,
            in_flight_bytes_per_connection: 8 << 20,
            in_flight_bytes: 256 << 20,
            subscribe_partitions: 10_000,
            topics: 10_000,
            partitions: 100_000,
        },
        log: LogSection { format: LogFormat::Auto, level: "info".to_owned() },
        origins: BTreeMap::new(),
    }
}

/// The key with this name.
pub(super) fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// Name and field of `listeners.NAME.FIELD`, where such a field exists.
pub(super) fn listener_key(key: &str) -> Option<(&str, &str)> {
    let (name, field) = key.strip_prefix("listeners.")?.split_once('.')?;
    matches!(field, "bind" | "advertise").then_some((name, field))
}

/// Sets one field of a named listener, which thereby exists.
pub(super) fn set_listener(
    config: &mut Config,
    name: &str,
    field: &str,
    text: &str,
) -> Result<(), String> {
    let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
    if name.is_empty() || name.len() > 32 || !name.chars().all(legal) {
        return Err("a listener's name is made of at most 32 of a-z, 0-9, '-' and '_'".to_owned());
    }
    if name == super::DEFAULT_LISTENER {
        return Err("the default listener is configured with listen.client".to_owned());
    }
    let listener: &mut NamedListener = config.listeners.entry(name.to_owned()).or_default();
    match field {
        "bind" => listener.bind = text.trim().to_owned(),
        _ => listener.advertise = parse_auto(text),
    }
    Ok(())
}

/// The known key that takes the fewest edits to get to.
pub(super) fn nearest(key: &str) -> String {
    let patterns = ["listeners.NAME.bind", "listeners.NAME.advertise"];
    KEYS.iter()
        .map(|known| known.name)
        .chain(patterns)
        .min_by_key(|known| {
            // A right key in the wrong section is nearer than its spelling says.
            let tail = |name: &str| name.rsplit('.').next().unwrap_or_default().to_owned();
            edits(key, known).min(1 + edits(&tail(key), &tail(known)))
        })
        .unwrap_or_default()
        .to_owned()
}

/// Levenshtein distance in bytes; keys are short.
fn edits(from: &str, to: &str) -> usize {
    let to = to.as_bytes();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (line, a) in from.bytes().enumerate() {
        let mut diagonal = line;
        let mut left = line + 1;
        for (cell, b) in row.iter_mut().skip(1).zip(to) {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = *cell;
            left = replaced.min(left + 1).min(*cell + 1);
            *cell = left;
        }
        if let Some(first) = row.first_mut() {
            *first = line + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

/// A number with optional underscores and an optional unit KiB, MiB or GiB.
fn parse_number<T>(text: &str, range: std::ops::RangeInclusive<u64>) -> Result<T, String>
where
    T: TryFrom<u64>,
{
    let wanted = || format!("takes a number from {} to {}", range.start(), range.end());
    let text = text.trim();
    let units = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];
    let (digits, unit) = units
        .into_iter()
        .find_map(|(name, unit)| Some((text.strip_suffix(name)?.trim_end(), unit)))
        .unwrap_or((text, 1_u64));
    digits
        .replace('_', "")
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(unit))
        .filter(|number| range.contains(number))
        .and_then(|number| T::try_from(number).ok())
        .ok_or_else(wanted)
}

fn parse_auto(text: &str) -> Option<String> {
    match text.trim() {
        "" | "auto" => None,
        address => Some(address.to_owned()),
    }
}

/// An advertised address as it would be written.
pub(super) fn show_auto(value: &Option<String>) -> String {
    value.clone().unwrap_or_else(|| "auto".to_owned())
}
