//! The record batch: Kafka's record batch format version 2 ("magic 2"), byte for byte.
//!
//! Owns: reading batches in place, checking what comes from the network, and building batches. Knows nothing of topics,
//! partitions, logs or durability, and never trusts a length, a count or a codec's own idea of its output: everything
//! here is total over arbitrary bytes, and nothing is allocated because a field said so.
//!
//! ```text
//! byte  0  base offset            i64   stamped by the leader, outside the checksum
//!       8  batch length           i32   bytes behind this field
//!      12  leader epoch           i32   stamped by the leader, outside the checksum
//!      16  magic                  i8    2
//!      17  CRC-32C                u32   over everything from byte 21 on
//!      21  attributes             i16   bits 0-2 codec, 3 append time, 4 transactional, 5 control, 6 delete horizon
//!      23  last offset delta      i32
//!      27  base timestamp         i64   ms
//!      35  max timestamp          i64   ms
//!      43  producer id            i64   -1: none
//!      51  producer epoch         i16
//!      53  base sequence          i32
//!      57  record count           i32
//!      61  records, as a whole compressed with the codec
//!
//! record: length varint, attributes i8, timestamp delta varlong, offset delta varint, key and value (each a length
//!         varint, -1 for null, then bytes), header count varint, headers (key and value like those of the record)
//! ```
//!
//! Numbers are big-endian; varints are zig-zag.

mod builder;
mod checksum;
mod codec;
mod compact;
mod header;
mod record;
#[cfg(test)]
mod tests;
mod validate;
mod varint;
mod view;

pub use builder::BatchBuilder;
pub use compact::{CompactRecord, Compacted};
pub use header::{BatchHeader, restamp_producer, sequence_add, stamped_checksum, stamped_prefix};
pub use record::RecordView;
pub use validate::{BatchLimits, ValidateDepth, validate};
pub use view::{BatchView, Records};

/// Bytes of a batch before its records.
pub const HEADER_BYTES: usize = 61;
/// Most records in one batch.
pub const RECORDS_MAX: u32 = 1_000_000;
/// Largest size of a batch's records when decompressed, in bytes.
pub const DECOMPRESSED_BYTES_MAX: usize = 32 << 20;
/// Largest record, in bytes of its key, value, header keys and header values together.
pub const RECORD_BYTES_MAX: usize = 1 << 20;
/// Largest batch, header included, as encoded (and compressed, if it is), in bytes.
pub const BATCH_BYTES_MAX: usize = 4 << 20;
/// Most headers on one record. Headers cost a reader far more memory than their two or more bytes on the wire.
pub const RECORD_HEADERS_MAX: u32 = 4096;
/// Magic byte of the only format spoken here.
pub const MAGIC: i8 = 2;

/// Most bytes that the encoding adds to one record: its own fields and two lengths for each header.
const RECORD_OVERHEAD_BYTES_MAX: usize = 40 + 10 * RECORD_HEADERS_MAX as usize;

const _: () = {
    assert!(RECORD_BYTES_MAX + RECORD_OVERHEAD_BYTES_MAX + HEADER_BYTES <= BATCH_BYTES_MAX);
    assert!(BATCH_BYTES_MAX <= DECOMPRESSED_BYTES_MAX);
    // A batch of the most records, each of the fewest bytes (seven), must be able to exist.
    assert!(RECORDS_MAX as usize * record::RECORD_ENCODED_BYTES_MIN <= DECOMPRESSED_BYTES_MAX);
    // Positions within decompressed records are carried in `i32` lengths by the format.
    assert!(DECOMPRESSED_BYTES_MAX <= i32::MAX as usize && RECORDS_MAX <= i32::MAX as u32);
};

/// How the records of a batch are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// gzip.
    Gzip,
    /// Snappy; written in the framing of Kafka's Java client, read in that framing or as one raw block.
    Snappy,
    /// LZ4 frame.
    Lz4,
    /// Zstandard.
    Zstd,
}

impl Compression {
    /// Every codec, for tests and listings.
    pub const ALL: [Self; 5] = [Self::None, Self::Gzip, Self::Snappy, Self::Lz4, Self::Zstd];

    /// The codec's number in a batch's attributes.
    fn bits(self) -> i16 {
        match self {
            Self::None => 0,
            Self::Gzip => 1,
            Self::Snappy => 2,
            Self::Lz4 => 3,
            Self::Zstd => 4,
        }
    }

    /// The codec's name, as in the topic key `compression.type`.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Snappy => "snappy",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }
}

impl std::fmt::Display for Compression {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Why bytes are not an acceptable batch, or a record does not fit into one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BatchError {
    /// The bytes end inside the batch.
    #[error("the batch ends early: {have} bytes, but at least {need} are needed")]
    Truncated {
        /// Bytes that are there.
        have: usize,
        /// Bytes that are needed.
        need: usize,
    },
    /// There is more than the one batch.
    #[error("{extra} bytes follow the batch; send exactly one batch")]
    TrailingBytes {
        /// Bytes behind the batch.
        extra: usize,
    },
    /// Not record batch format version 2.
    #[error("record batch format (magic) {0} is not supported, only 2 is")]
    UnsupportedMagic(i8),
    /// The checksum does not match the bytes.
    #[error("checksum mismatch: the batch says {stated:#010x}, its bytes say {computed:#010x}")]
    ChecksumMismatch {
        /// What the header holds.
        stated: u32,
        /// What the bytes give.
        computed: u32,
    },
    /// The codec number is not one of the five.
    #[error("unknown compression codec {0}")]
    UnknownCompression(i16),
    /// An attribute that clients may not set, or one that nobody knows.
    #[error("attribute bits {0:#06x} may not be set by a client")]
    ForbiddenAttributes(i16),
    /// A header field cannot be what it says.
    #[error("{field} {value} is not valid: {problem}")]
    InvalidField {
        /// Which field.
        field: &'static str,
        /// What it holds.
        value: i64,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A record is malformed.
    #[error("record {index} is malformed: {problem}")]
    InvalidRecord {
        /// Position of the record in the batch, from 0.
        index: u32,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The records end, but the batch does not.
    #[error("{extra} bytes follow the last record")]
    TrailingRecordBytes {
        /// Bytes behind the last record.
        extra: usize,
    },
    /// The header's max timestamp is not the largest timestamp of the records.
    #[error("max timestamp is stated as {stated} but is {actual}")]
    MaxTimestampMismatch {
        /// What the header holds.
        stated: i64,
        /// The largest timestamp among the records.
        actual: i64,
    },
    /// A timestamp is too far from the batch's base timestamp to be written down.
    #[error("timestamp {timestamp_ms} is too far from the batch's first, {base_timestamp_ms}")]
    TimestampOutOfRange {
        /// The record's timestamp.
        timestamp_ms: i64,
        /// The batch's base timestamp.
        base_timestamp_ms: i64,
    },
    /// A record is larger than the limit.
    #[error("record {index} has {bytes} bytes, more than the {bytes_max} allowed")]
    RecordTooLarge {
        /// Position of the record in the batch, from 0.
        index: u32,
        /// Bytes of key, value and headers.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// A record has more headers than the limit.
    #[error("record {index} has {headers} headers, more than the {headers_max} allowed")]
    TooManyHeaders {
        /// Position of the record in the batch, from 0.
        index: u32,
        /// Headers of the record.
        headers: usize,
        /// The limit.
        headers_max: u32,
    },
    /// The batch is larger than the limit.
    #[error("the batch has {bytes} bytes, more than the {bytes_max} allowed")]
    BatchTooLarge {
        /// Bytes of the batch.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// The batch has more records than the limit.
    #[error("the batch has {records} records, more than the {records_max} allowed")]
    TooManyRecords {
        /// Records in the batch.
        records: i64,
        /// The limit.
        records_max: u32,
    },
    /// The records are larger than the limit when decompressed.
    #[error("the batch decompresses to more than the {bytes_max} bytes allowed")]
    DecompressedTooLarge {
        /// The limit.
        bytes_max: usize,
    },
    /// The records cannot be decompressed.
    #[error("the batch's {compression} data is damaged")]
    Decompress {
        /// The codec.
        compression: Compression,
        /// What the codec said.
        source: std::io::Error,
    },
    /// The records could not be compressed.
    #[error("compressing the batch with {compression} failed")]
    Compress {
        /// The codec.
        compression: Compression,
        /// What the codec said.
        source: std::io::Error,
    },
    /// There is no record in the batch.
    #[error("a batch needs at least one record")]
    Empty,
}

impl BatchError {
    /// True if the bytes may be well-formed but are beyond a limit: smaller records or batches would be taken.
    pub fn is_over_limit(&self) -> bool {
        matches!(
            self,
            Self::RecordTooLarge { .. }
                | Self::TooManyHeaders { .. }
                | Self::BatchTooLarge { .. }
                | Self::TooManyRecords { .. }
                | Self::DecompressedTooLarge { .. }
        )
    }
}
