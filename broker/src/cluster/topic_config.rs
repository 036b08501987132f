//! Configuration of a topic: every key with its default, bounds and meaning.
//!
//! Owns: the one table that creation, alteration, `options` and the replicas read. The names are Kafka's on purpose. Never:
//! where the configuration is kept.

use std::collections::BTreeMap;

use highwater_proto::batch::{Compression, RECORD_BYTES_MAX};

use crate::error::BrokerError;

/// One key.
#[derive(Debug)]
pub struct TopicKey {
    /// Its name.
    pub name: &'static str,
    /// Its default, as it would be written.
    pub default_value: &'static str,
    /// Accepted values, for people.
    pub bounds: &'static str,
    /// What it does, in a sentence.
    pub description: &'static str,
    kind: Kind,
}

/// How a value is read.
#[derive(Debug)]
enum Kind {
    /// A whole number within bounds.
    Number { min: i64, max: i64 },
    /// -1 for no limit, or a whole number from 1 on.
    NumberOrUnlimited,
    /// One of a few words; some may be known but not available yet.
    Word { accepted: &'static [&'static str], later: &'static [&'static str] },
}

const CLEANUP_POLICY: &str = "cleanup.policy";

/// Every key, by name.
pub const TOPIC_KEYS: &[TopicKey] = &[
    TopicKey {
        name: CLEANUP_POLICY,
        default_value: "delete",
        bounds: "delete, compact (fixed when the topic is created)",
        description: "What happens to old records: delete drops whole segments by age and size, compact keeps the last record of each key.",
        kind: Kind::Word { accepted: &["delete", "compact"], later: &["compact,delete"] },
    },
    TopicKey {
        name: "compression.type",
        default_value: "producer",
        bounds: "producer, none, gzip, snappy, lz4, zstd",
        description: "Codec that batches are stored with; producer keeps the publisher's.",
        kind: Kind::Word {
            accepted: &["producer", "none", "gzip", "snappy", "lz4", "zstd"],
            later: &[],
        },
    },
    TopicKey {
        name: "delete.retention.ms",
        default_value: "86400000",
        bounds: "0.. (milliseconds)",
        description: "How long tombstones are kept in compacted topics.",
        kind: Kind::Number { min: 0, max: i64::MAX },
    },
    TopicKey {
        name: "max.message.bytes",
        default_value: "1048576",
        bounds: "1..1048576 (bytes)",
        description: "Largest record: key, value and headers together, before compression.",
        kind: Kind::Number { min: 1, max: RECORD_BYTES_MAX as i64 },
    },
    TopicKey {
        name: "message.timestamp.type",
        default_value: "CreateTime",
        bounds: "CreateTime (LogAppendTime comes with a later version)",
        description: "Whose clock a record's timestamp is: CreateTime is the publisher's.",
        kind: Kind::Word { accepted: &["CreateTime"], later: &["LogAppendTime"] },
    },
    TopicKey {
        name: "retention.bytes",
        default_value: "-1",
        bounds: "-1 (no limit) or 1.. (bytes for each partition)",
        description: "Size from which on a partition's oldest segments are deleted.",
        kind: Kind::NumberOrUnlimited,
    },
    TopicKey {
        name: "retention.ms",
        default_value: "604800000",
        bounds: "-1 (no limit) or 1.. (milliseconds)",
        description: "Age from which on a partition's segments are deleted.",
        kind: Kind::NumberOrUnlimited,
    },
    TopicKey {
        name: "segment.bytes",
        default_value: "67108864",
        bounds: "1048576..1073741824 (bytes)",
        description: "Size at which a partition begins a new file; only whole files are deleted.",
        kind: Kind::Number { min: 1 << 20, max: 1 << 30 },
    },
    TopicKey {
        name: "segment.ms",
        default_value: "604800000",
        bounds: "1000.. (milliseconds)",
        description: "Age at which a partition begins a new file although it is not full.",
        kind: Kind::Number { min: 1_000, max: i64::MAX },
    },
];

/// Longest value of a key: far more than any accepted one needs.
const VALUE_BYTES_MAX: usize = 64;

/// A topic's configuration, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicConfig {
    /// Age from which on segments are deleted, in milliseconds; `None`: never.
    pub retention_ms: Option<u64>,
    /// Size from which on segments are deleted, in bytes; `None`: never.
    pub retention_bytes: Option<u64>,
    /// Size at which a new segment begins, in bytes.
    pub segment_bytes: u64,
    /// Age at which a new segment begins, in milliseconds.
    pub segment_ms: u64,
    /// Largest record, in bytes.
    pub record_bytes_max: u32,
    /// Codec to store with; `None`: the publisher's.
    pub compression: Option<Compression>,
    /// The last record of each key is kept, and nothing is deleted by age or size.
    pub compact: bool,
    /// How long tombstones are kept in a compacted topic, in milliseconds.
    pub delete_retention_ms: u64,
}

impl TopicConfig {
    /// Reads what a topic sets over the defaults. What cannot be read, which no checked topic holds, counts as not set.
    pub fn read(config: &BTreeMap<String, String>) -> Self {
        let word = |name: &str| {
            let key = find(name);
            let stored = config.get(name).map(String::as_str);
            match (stored, key) {
                (Some(text), Some(key)) if key.accepts(text).is_ok() => text,
                (_, Some(key)) => key.default_value,
                (_, None) => "",
            }
        };
        let number = |name: &str| word(name).parse::<i64>().unwrap_or_default();
        let limit = |name: &str| u64::try_from(number(name)).ok();
        let compression = word("compression.type");
        Self {
            retention_ms: limit("retention.ms"),
            retention_bytes: limit("retention.bytes"),
            segment_bytes: limit("segment.bytes").unwrap_or_default(),
            segment_ms: limit("segment.ms").unwrap_or_default(),
            record_bytes_max: u32::try_from(number("max.message.bytes")).unwrap_or_default(),
            compression: Compression::ALL.into_iter().find(|codec| codec.name() == compression),
            compact: word(CLEANUP_POLICY) == "compact",
            delete_retention_ms: limit("delete.retention.ms").unwrap_or_default(),
        }
    }
}

impl TopicKey {
    /// The rest of a sentence that begins with the value, if the value is not accepted.
    fn accepts(&self, value: &str) -> Result<(), String> {
        if value.len() > VALUE_BYTES_MAX {
            return Err(format!(
                "a value has at most {VALUE_BYTES_MAX} bytes, not {}",
                value.len()
            ));
        }
        let is_accepted = match self.kind {
            Kind::Number { min, max } => {
                value.parse::<i64>().is_ok_and(|number| (min..=max).contains(&number))
            }
            Kind::NumberOrUnlimited => {
                value.parse::<i64>().is_ok_and(|number| number == -1 || number >= 1)
            }
            Kind::Word { accepted, later } => {
                if later.contains(&value) {
                    return Err(format!("'{value}' comes with a later version"));
                }
                accepted.contains(&value)
            }
        };
        if is_accepted { Ok(()) } else { Err(format!("'{value}' is not one of {}", self.bounds)) }
    }
}

fn find(name: &str) -> Option<&'static TopicKey> {
    TOPIC_KEYS.iter().find(|key| key.name == name)
}

/// The key, or an error that lists all of them.
fn known(name: &str) -> Result<&'static TopicKey, BrokerError> {
    find(name).ok_or_else(|| {
        let names: Vec<&str> = TOPIC_KEYS.iter().map(|key| key.name).collect();
        BrokerError::InvalidArgument {
            field: format!("config '{name}'"),
            why: format!("no such key; there are {}", names.join(", ")),
        }
    })
}

/// Checks keys and values before they are proposed.
pub fn check(config: &BTreeMap<String, String>) -> Result<(), BrokerError> {
    for (name, value) in config {
        known(name)?.accepts(value).map_err(|why| BrokerError::InvalidArgument {
            field: format!("config '{name}'"),
            why,
        })?;
    }
    Ok(())
}

/// Checks that a change leaves alone what is fixed when a topic is created: what was compacted cannot be had back, and what was
/// written without keys cannot be compacted.
pub fn check_change(
    current: &BTreeMap<String, String>,
    set: &BTreeMap<String, String>,
    unset: &[String],
) -> Result<(), BrokerError> {
    let mut changed = current.clone();
    changed.extend(set.iter().map(|(name, value)| (name.clone(), value.clone())));
    changed.retain(|name, _| !unset.contains(name));
    if TopicConfig::read(current).compact == TopicConfig::read(&changed).compact {
        return Ok(());
    }
    Err(BrokerError::InvalidArgument {
        field: format!("config '{CLEANUP_POLICY}'"),
        why: "is fixed when the topic is created; create another topic".to_owned(),
    })
}

/// Checks names that are to be put back to their defaults.
pub fn check_names(names: &[String]) -> Result<(), BrokerError> {
    names.iter().try_for_each(|name| known(name).map(|_| ()))
}

/// Every key with its value, defaults included.
pub fn complete(config: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let defaults = TOPIC_KEYS.iter().map(|key| (key.name.to_owned(), key.default_value.to_owned()));
    let mut all: BTreeMap<String, String> = defaults.collect();
    all.extend(config.iter().map(|(name, value)| (name.clone(), value.clone())));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(name: &str, value: &str) -> BTreeMap<String, String> {
        [(name.to_owned(), value.to_owned())].into()
    }

    #[test]
    fn defaults_are_accepted_and_keys_are_sorted() {
        check(&complete(&BTreeMap::new())).unwrap();
        assert!(TOPIC_KEYS.is_sorted_by_key(|key| key.name));
    }

    #[test]
    fn the_defaults_are_those_of_the_documentation() {
        let week_ms = 7 * 24 * 3_600_000;
        let expected = TopicConfig {
            retention_ms: Some(week_ms),
            retention_bytes: None,
            segment_bytes: 64 << 20,
            segment_ms: week_ms,
            record_bytes_max: 1 << 20,
            compression: None,
            compact: false,
            delete_retention_ms: 24 * 3_600_000,
        };
        assert_eq!(TopicConfig::read(&BTreeMap::new()), expected);
    }

    #[test]
    fn what_a_topic_sets_wins_over_the_default() {
        let config = TopicConfig::read(&one("retention.ms", "-1"));
        assert_eq!(config.retention_ms, None);
        let config = TopicConfig::read(&one("compression.type", "zstd"));
        assert_eq!(config.compression, Some(Compression::Zstd));
        assert_eq!(complete(&one("segment.ms", "5000"))["segment.ms"], "5000");
    }

    #[test]
    fn an_unreadable_stored_value_counts_as_not_set() {
        let config = TopicConfig::read(&one("segment.bytes", "many"));
        assert_eq!(config.segment_bytes, 64 << 20);
    }

    #[test]
    fn unknown_keys_and_values_out_of_bounds_are_refused_with_the_mend() {
        let error = check(&one("retention.hours", "1")).unwrap_err().to_string();
        assert!(error.contains("'retention.hours'") && error.contains("retention.ms"), "{error}");
        for (name, value) in [
            ("retention.ms", "0"),
            ("retention.bytes", "-2"),
            ("segment.bytes", "1"),
            ("max.message.bytes", "1048577"),
            ("max.message.bytes", "1e3"),
            ("compression.type", "brotli"),
            ("cleanup.policy", ""),
        ] {
            let error = check(&one(name, value)).unwrap_err().to_string();
            assert!(error.contains(find(name).unwrap().bounds), "{error}");
        }
        assert!(check_names(&["nonsense".to_owned()]).is_err());
        assert!(check_names(&["segment.ms".to_owned()]).is_ok());
    }

    #[test]
    fn the_cleanup_policy_stays_what_it_was_when_the_topic_was_created() {
        let (plain, compacted) = (BTreeMap::new(), one("cleanup.policy", "compact"));
        assert!(TopicConfig::read(&compacted).compact);
        check_change(&compacted, &one("delete.retention.ms", "5"), &[]).unwrap();
        check_change(&compacted, &compacted, &[]).unwrap();
        check_change(&plain, &one("cleanup.policy", "delete"), &[]).unwrap();
        let unset = ["cleanup.policy".to_owned()];
        let delete = one("cleanup.policy", "delete");
        for refused in [
            check_change(&plain, &compacted, &[]),
            check_change(&compacted, &delete, &[]),
            check_change(&compacted, &plain, &unset),
        ] {
            assert!(refused.unwrap_err().to_string().contains("create another topic"));
        }
    }

    #[test]
    fn what_a_later_version_brings_is_said_so() {
        for (name, value) in
            [("cleanup.policy", "compact,delete"), ("message.timestamp.type", "LogAppendTime")]
        {
            let error = check(&one(name, value)).unwrap_err().to_string();
            assert!(error.contains("later version"), "{error}");
        }
    }
}
