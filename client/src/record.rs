//! Events as services hold them: [`Record`] to publish, [`Event`] as read, [`Ack`] as promised.
//!
//! Owns: plain data and conversions into it. Never: encoding (the batch codec does that) or I/O.

use std::sync::Arc;

use bytes::Bytes;

pub use highwater_proto::batch::Compression;
use highwater_proto::v1;

/// An attribute beside an event's value. Keys may repeat; order is kept.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Header {
    /// The header's name.
    pub key: String,
    /// The header's value; absent is different from empty.
    pub value: Option<Bytes>,
}

impl Header {
    /// A header with a value.
    pub fn new(key: impl Into<String>, value: impl Into<Bytes>) -> Self {
        Self { key: key.into(), value: Some(value.into()) }
    }
}

/// One event to publish.
///
/// ```
/// use highwater_client::Record;
///
/// let record = Record::new("order placed").with_key("customer-7").with_header("source", "shop");
/// assert_eq!(record.key.as_deref(), Some(&b"customer-7"[..]));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Record {
    /// Decides the partition; absent means any.
    pub key: Option<Bytes>,
    /// The event itself; absent is a tombstone in compacted topics.
    pub value: Option<Bytes>,
    /// Attributes beside the value.
    pub headers: Vec<Header>,
    /// Create time in milliseconds since the Unix epoch; absent means now.
    pub timestamp_ms: Option<i64>,
    /// The partition, whatever the key says.
    pub partition: Option<u32>,
}

impl Record {
    /// A record with this value and nothing else.
    pub fn new(value: impl Into<Bytes>) -> Self {
        Self { value: Some(value.into()), ..Self::default() }
    }

    /// A record without a value: in compacted topics it deletes what the key stood for.
    pub fn tombstone(key: impl Into<Bytes>) -> Self {
        Self { key: Some(key.into()), ..Self::default() }
    }

    /// Sets the key.
    pub fn with_key(mut self, key: impl Into<Bytes>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Appends a header.
    pub fn with_header(mut self, key: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.headers.push(Header::new(key, value));
        self
    }

    /// Sets the create time, in milliseconds since the Unix epoch.
    pub fn with_timestamp_ms(mut self, timestamp_ms: i64) -> Self {
        self.timestamp_ms = Some(timestamp_ms);
        self
    }

    /// Sets the partition.
    pub fn with_partition(mut self, partition: u32) -> Self {
        self.partition = Some(partition);
        self
    }

    /// Bytes of key, value and headers.
    pub fn payload_bytes(&self) -> usize {
        let headers = self
            .headers
            .iter()
            .map(|header| header.key.len() + header.value.as_ref().map_or(0, Bytes::len));
        self.key.as_ref().map_or(0, Bytes::len)
            + self.value.as_ref().map_or(0, Bytes::len)
            + headers.sum::<usize>()
    }
}

impl From<&Record> for Record {
    fn from(record: &Record) -> Self {
        record.clone()
    }
}

macro_rules! record_from_value {
    ($($value:ty),*) => {$(
        impl From<$value> for Record {
            fn from(value: $value) -> Self {
                Self::new(value)
            }
        }
    )*};
}
record_from_value!(Bytes, Vec<u8>, String);

impl From<&str> for Record {
    fn from(value: &str) -> Self {
        Self::new(Bytes::copy_from_slice(value.as_bytes()))
    }
}

impl From<&[u8]> for Record {
    fn from(value: &[u8]) -> Self {
        Self::new(Bytes::copy_from_slice(value))
    }
}

impl<K: Into<Bytes>, V: Into<Bytes>> From<(K, V)> for Record {
    fn from((key, value): (K, V)) -> Self {
        Self::new(value).with_key(key)
    }
}

/// How far an event must have come before its publisher is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Acks {
    /// A majority of the replicas has fsynced it. Only this is covered by the promise that an acknowledged event is never
    /// lost.
    #[default]
    QuorumFsync,
    /// A majority of the replicas holds it, perhaps not yet synced.
    Quorum,
    /// The leader has appended it; its offset is provisional.
    Leader,
}

impl From<Acks> for v1::Acks {
    fn from(acks: Acks) -> Self {
        match acks {
            Acks::QuorumFsync => Self::QuorumFsync,
            Acks::Quorum => Self::Quorum,
            Acks::Leader => Self::Leader,
        }
    }
}

impl From<v1::Acks> for Acks {
    fn from(acks: v1::Acks) -> Self {
        match acks {
            v1::Acks::Unspecified | v1::Acks::QuorumFsync => Self::QuorumFsync,
            v1::Acks::Quorum => Self::Quorum,
            v1::Acks::Leader => Self::Leader,
        }
    }
}

impl std::str::FromStr for Acks {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "quorum-fsync" => Ok(Self::QuorumFsync),
            "quorum" => Ok(Self::Quorum),
            "leader" => Ok(Self::Leader),
            _ => Err(format!("'{text}' is none of quorum-fsync, quorum, leader")),
        }
    }
}

impl std::fmt::Display for Acks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::QuorumFsync => "quorum-fsync",
            Self::Quorum => "quorum",
            Self::Leader => "leader",
        })
    }
}

/// The promise: the event is in the log at this offset, as durable as `reached` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    /// The partition.
    pub partition: u32,
    /// The event's offset. Provisional with [`Acks::Leader`].
    pub offset: i64,
    /// The leader epoch it was appended in.
    pub epoch: u64,
    /// True if an earlier try had written it already; the offset is that one's.
    pub duplicate: bool,
    /// The durability reached.
    pub reached: Acks,
    /// When the leader appended it, in milliseconds since the Unix epoch.
    pub append_time_ms: i64,
}

/// One event as read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition.
    pub partition: u32,
    /// Position in the partition.
    pub offset: i64,
    /// Create time in milliseconds since the Unix epoch.
    pub timestamp_ms: i64,
    /// The key, if it has one.
    pub key: Option<Bytes>,
    /// The value; absent is a tombstone.
    pub value: Option<Bytes>,
    /// Attributes beside the value.
    pub headers: Vec<Header>,
}

impl Event {
    /// The value as text, if it is UTF-8.
    pub fn value_str(&self) -> Option<&str> {
        self.value.as_deref().and_then(|value| std::str::from_utf8(value).ok())
    }

    /// The key as text, if it is UTF-8.
    pub fn key_str(&self) -> Option<&str> {
        self.key.as_deref().and_then(|key| std::str::from_utf8(key).ok())
    }
}
