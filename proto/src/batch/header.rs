//! The 61 bytes before the records: decoding, encoding, and the two rewrites that leave the records alone.
//!
//! Never looks at a record.

use bytes::Bytes;

use super::{BatchError, Compression, HEADER_BYTES, MAGIC, checksum};

/// Where the batch length's own count begins.
const LENGTH_END: usize = 12;
/// The stated batch length of a batch without record bytes.
const BATCH_LENGTH_MIN: i32 = 49;
const _: () = assert!(BATCH_LENGTH_MIN as usize + LENGTH_END == HEADER_BYTES);
/// Where the checksum is, and what it covers: everything from `CRC_COVERS_FROM` on.
const CRC_AT: usize = 17;
const CRC_COVERS_FROM: usize = 21;
const PRODUCER_AT: usize = 43;

const ATTRIBUTES_CODEC: i16 = 0b0000_0111;
const ATTRIBUTE_LOG_APPEND_TIME: i16 = 1 << 3;
const ATTRIBUTE_TRANSACTIONAL: i16 = 1 << 4;
const ATTRIBUTE_CONTROL: i16 = 1 << 5;
const ATTRIBUTE_DELETE_HORIZON: i16 = 1 << 6;

/// The header of a batch, decoded.
///
/// Invariant of every value that `read` returns: `magic` is 2, `batch_length` is at least 49, `last_offset_delta` and
/// `record_count` are not negative.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    /// Offset of the first record; a client writes 0, the leader stamps it.
    pub base_offset: i64,
    /// Bytes of the batch behind this field (the whole batch has 12 more).
    pub batch_length: i32,
    /// Leader epoch in which the batch was appended; a client writes -1, the leader stamps it.
    pub leader_epoch: i32,
    /// Format version, always 2.
    pub magic: i8,
    /// CRC-32C of everything behind this field.
    pub crc: u32,
    /// Codec and flags.
    pub attributes: i16,
    /// Offset of the last record minus `base_offset`.
    pub last_offset_delta: i32,
    /// What records' timestamp deltas are added to, in milliseconds since the Unix epoch.
    pub base_timestamp_ms: i64,
    /// Largest timestamp among the records, in milliseconds since the Unix epoch.
    pub max_timestamp_ms: i64,
    /// Who produced the batch, for deduplication; -1 for nobody in particular.
    pub producer_id: i64,
    /// Epoch of the producer; -1 without one.
    pub producer_epoch: i16,
    /// The producer's sequence number of the first record; -1 without a producer.
    pub base_sequence: i32,
    /// Number of records.
    pub record_count: i32,
}

impl BatchHeader {
    /// Decodes the header at the front of `bytes`, which may go on behind the batch or end inside its records.
    ///
    /// # Errors
    /// If there are fewer than 61 bytes, the format is another, or a field breaks the invariant of this type. The
    /// checksum is not looked at.
    pub fn read(bytes: &[u8]) -> Result<Self, BatchError> {
        let Some(fixed) = bytes.first_chunk::<HEADER_BYTES>() else {
            // A batch in an old format may be shorter: name the format rather than the length.
            return match bytes.get(16) {
                Some(&magic) if magic.cast_signed() != MAGIC => {
                    Err(BatchError::UnsupportedMagic(magic.cast_signed()))
                }
                _ => Err(BatchError::Truncated { have: bytes.len(), need: HEADER_BYTES }),
            };
        };
        let header = Self {
            base_offset: i64::from_be_bytes(field(fixed, 0)),
            batch_length: i32::from_be_bytes(field(fixed, 8)),
            leader_epoch: i32::from_be_bytes(field(fixed, 12)),
            magic: i8::from_be_bytes(field(fixed, 16)),
            crc: u32::from_be_bytes(field(fixed, CRC_AT)),
            attributes: i16::from_be_bytes(field(fixed, CRC_COVERS_FROM)),
            last_offset_delta: i32::from_be_bytes(field(fixed, 23)),
            base_timestamp_ms: i64::from_be_bytes(field(fixed, 27)),
            max_timestamp_ms: i64::from_be_bytes(field(fixed, 35)),
            producer_id: i64::from_be_bytes(field(fixed, PRODUCER_AT)),
            producer_epoch: i16::from_be_bytes(field(fixed, 51)),
            base_sequence: i32::from_be_bytes(field(fixed, 53)),
            record_count: i32::from_be_bytes(field(fixed, 57)),
        };
        header.check_invariant()?;
        Ok(header)
    }

    fn check_invariant(&self) -> Result<(), BatchError> {
        if self.magic != MAGIC {
            return Err(BatchError::UnsupportedMagic(self.magic));
        }
        let invalid = |field, value: i32, problem| BatchError::InvalidField {
            field,
            value: i64::from(value),
            problem,
        };
        if self.batch_length < BATCH_LENGTH_MIN {
            return Err(invalid("batch length", self.batch_length, "a header alone has 49 bytes"));
        }
        if self.last_offset_delta < 0 {
            return Err(invalid("last offset delta", self.last_offset_delta, "it is negative"));
        }
        if self.record_count < 0 {
            return Err(invalid("record count", self.record_count, "it is negative"));
        }
        Ok(())
    }

    /// The 61 bytes of this header.
    pub fn to_bytes(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..8].copy_from_slice(&self.base_offset.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.batch_length.to_be_bytes());
        bytes[12..16].copy_from_slice(&self.leader_epoch.to_be_bytes());
        bytes[16..17].copy_from_slice(&self.magic.to_be_bytes());
        bytes[17..21].copy_from_slice(&self.crc.to_be_bytes());
        bytes[21..23].copy_from_slice(&self.attributes.to_be_bytes());
        bytes[23..27].copy_from_slice(&self.last_offset_delta.to_be_bytes());
        bytes[27..35].copy_from_slice(&self.base_timestamp_ms.to_be_bytes());
        bytes[35..43].copy_from_slice(&self.max_timestamp_ms.to_be_bytes());
        bytes[43..51].copy_from_slice(&self.producer_id.to_be_bytes());
        bytes[51..53].copy_from_slice(&self.producer_epoch.to_be_bytes());
        bytes[53..57].copy_from_slice(&self.base_sequence.to_be_bytes());
        bytes[57..61].copy_from_slice(&self.record_count.to_be_bytes());
        bytes
    }

    /// The codec of the records.
    ///
    /// # Errors
    /// If the attributes name a codec that does not exist.
    pub fn compression(&self) -> Result<Compression, BatchError> {
        match self.attributes & ATTRIBUTES_CODEC {
            0 => Ok(Compression::None),
            1 => Ok(Compression::Gzip),
            2 => Ok(Compression::Snappy),
            3 => Ok(Compression::Lz4),
            4 => Ok(Compression::Zstd),
            other => Err(BatchError::UnknownCompression(other)),
        }
    }

    /// Attribute bits that only a broker, or nobody, may set: all but the codec's.
    pub(super) fn attributes_forbidden_to_clients(&self) -> i16 {
        self.attributes & !ATTRIBUTES_CODEC
    }

    /// Whether all records carry the time of the append (`max_timestamp_ms`) instead of their own.
    pub fn is_log_append_time(&self) -> bool {
        self.attributes & ATTRIBUTE_LOG_APPEND_TIME != 0
    }

    /// Whether the batch belongs to a transaction.
    pub fn is_transactional(&self) -> bool {
        self.attributes & ATTRIBUTE_TRANSACTIONAL != 0
    }

    /// Whether the batch holds markers that are not for users.
    pub fn is_control(&self) -> bool {
        self.attributes & ATTRIBUTE_CONTROL != 0
    }

    /// From when on the batch's tombstones may go, in milliseconds since the Unix epoch; only compaction says so. The base
    /// timestamp then holds it, and records' deltas count from it.
    pub fn delete_horizon_ms(&self) -> Option<i64> {
        (self.attributes & ATTRIBUTE_DELETE_HORIZON != 0).then_some(self.base_timestamp_ms)
    }

    /// The same header, saying that its base timestamp is the delete horizon.
    pub(super) fn with_delete_horizon(self) -> Self {
        Self { attributes: self.attributes | ATTRIBUTE_DELETE_HORIZON, ..self }
    }

    /// Whether the batch has a producer id and is to be deduplicated.
    pub fn is_idempotent(&self) -> bool {
        self.producer_id >= 0
    }

    /// Number of offsets that the batch takes, at least 1.
    pub fn offset_span(&self) -> u32 {
        self.last_offset_delta.max(0).cast_unsigned() + 1
    }

    /// Offset of the last record.
    pub fn last_offset(&self) -> i64 {
        self.base_offset.saturating_add(i64::from(self.last_offset_delta))
    }

    /// Bytes of the whole batch, this header included.
    pub fn total_bytes(&self) -> usize {
        usize::try_from(self.batch_length).unwrap_or(0) + LENGTH_END
    }

    /// Sequence number of the last record; meaningful for idempotent batches only.
    pub fn last_sequence(&self) -> i32 {
        sequence_add(self.base_sequence, self.last_offset_delta.max(0).cast_unsigned())
    }
}

/// The sequence number `records` after `sequence`. After `i32::MAX` comes 0. Both must be within `i32`'s non-negatives.
pub fn sequence_add(sequence: i32, records: u32) -> i32 {
    let modulus = i64::from(i32::MAX) + 1;
    let sum = (i64::from(sequence) + i64::from(records)).rem_euclid(modulus);
    i32::try_from(sum).unwrap_or(0)
}

/// Reads the header of the one batch that `bytes` must be, and checks length and checksum.
pub(super) fn read_checked(bytes: &[u8]) -> Result<BatchHeader, BatchError> {
    let header = BatchHeader::read(bytes)?;
    let need = header.total_bytes();
    if bytes.len() < need {
        return Err(BatchError::Truncated { have: bytes.len(), need });
    }
    if bytes.len() > need {
        return Err(BatchError::TrailingBytes { extra: bytes.len() - need });
    }
    let computed = crc_of(bytes);
    if computed != header.crc {
        return Err(BatchError::ChecksumMismatch { stated: header.crc, computed });
    }
    Ok(header)
}

/// The checksum that `batch`, at least a header long, should carry.
fn crc_of(batch: &[u8]) -> u32 {
    crc32c::crc32c(&batch[CRC_COVERS_FROM..])
}

/// Writes `header` over the front of `batch`, with the length and checksum that the rest of `batch` calls for.
/// `batch` must be at least a header long and at most `i32::MAX` bytes: the builder's limits see to that.
pub(super) fn seal(batch: &mut [u8], header: &BatchHeader) {
    let behind_length = batch.len() - LENGTH_END;
    let batch_length = i32::try_from(behind_length).expect("a batch is far below 2 GiB");
    batch[..HEADER_BYTES].copy_from_slice(&BatchHeader { batch_length, ..*header }.to_bytes());
    let crc = crc_of(batch);
    batch[CRC_AT..CRC_COVERS_FROM].copy_from_slice(&crc.to_be_bytes());
}

/// CRC-32C of the whole of `batch` with `prefix`, from [`stamped_prefix`], over its front, without reading the records: their
/// checksum is the one that the batch carries. Whether that is right is for whoever reads the bytes to find out.
///
/// # Panics
/// If `batch` is shorter than a header.
pub fn stamped_checksum(prefix: &[u8; 16], batch: &[u8]) -> u32 {
    let header = batch.first_chunk().expect("only validated batches are stamped");
    let crc = u32::from_be_bytes(field(header, CRC_AT));
    let front = [&prefix[..], &batch[prefix.len()..CRC_COVERS_FROM]];
    let front = front.iter().fold(0, |sum, part| crc32c::crc32c_append(sum, part));
    checksum::combine(front, crc, batch.len() - CRC_COVERS_FROM)
}

/// The first 16 bytes of `batch` with base offset and leader epoch written in: they lie outside the checksum, so the
/// rest of the batch stays as it is.
///
/// # Panics
/// If `batch` is shorter than a header: only validated batches are stamped.
pub fn stamped_prefix(batch: &[u8], base_offset: i64, leader_epoch: i32) -> [u8; 16] {
    assert!(batch.len() >= HEADER_BYTES, "only a validated batch may be stamped");
    let mut prefix = [0; 16];
    prefix[0..8].copy_from_slice(&base_offset.to_be_bytes());
    prefix[8..12].copy_from_slice(&batch[8..12]);
    prefix[12..16].copy_from_slice(&leader_epoch.to_be_bytes());
    prefix
}

/// A copy of `batch` with another producer id, epoch and base sequence, and the checksum to match: for a client that
/// got a new producer id while batches were waiting.
///
/// # Errors
/// If `batch` is not exactly one whole batch with a right checksum. A damaged batch is not given a fresh checksum.
pub fn restamp_producer(
    batch: &[u8],
    producer_id: i64,
    producer_epoch: i16,
    base_sequence: i32,
) -> Result<Bytes, BatchError> {
    let header = read_checked(batch)?;
    let mut copy = batch.to_vec();
    seal(&mut copy, &BatchHeader { producer_id, producer_epoch, base_sequence, ..header });
    Ok(Bytes::from(copy))
}

fn field<const N: usize>(header: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&header[at..at + N]);
    out
}
