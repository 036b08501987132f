//! What a broker checks of a batch from a client before it proposes it.
//!
//! Reads in place; allocates only to decompress, and no more than the data itself and the limits allow.

use super::header::{self, BatchHeader};
use super::record::RecordRef;
use super::varint::Cursor;
use super::{
    BATCH_BYTES_MAX, BatchError, Compression, DECOMPRESSED_BYTES_MAX, HEADER_BYTES,
    RECORD_BYTES_MAX, RECORD_HEADERS_MAX, RECORDS_MAX, codec,
};

/// How much of a batch to check. Both check the checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValidateDepth {
    /// The header's fields, alone and against each other.
    Header,
    /// Every record as well, decompressed if need be.
    Structure,
}

/// What a batch may measure. The default is the limits of this module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchLimits {
    /// Largest record, in bytes of its key, value, header keys and header values together.
    pub record_bytes_max: usize,
    /// Largest batch as encoded, header included, in bytes.
    pub batch_bytes_max: usize,
    /// Largest size of the records when decompressed, in bytes.
    pub decompressed_bytes_max: usize,
    /// Most records.
    pub records_max: u32,
    /// Every record needs a key: compaction would not know what to do with one that has none.
    pub keys_required: bool,
}

impl Default for BatchLimits {
    fn default() -> Self {
        Self {
            record_bytes_max: RECORD_BYTES_MAX,
            batch_bytes_max: BATCH_BYTES_MAX,
            decompressed_bytes_max: DECOMPRESSED_BYTES_MAX,
            records_max: RECORDS_MAX,
            keys_required: false,
        }
    }
}

/// Checks that `bytes` are exactly one batch that a client may publish, and returns its header.
///
/// The base offset and the leader epoch may hold anything: the leader overwrites them.
///
/// # Errors
/// The first thing that is wrong: length, format, checksum, attributes a client may not set, counts that do not agree,
/// limits; and with [`ValidateDepth::Structure`] malformed records, offset deltas other than 0, 1, 2 and so on, header
/// keys that are not UTF-8, a max timestamp that is not the largest, bytes behind the last record.
pub fn validate(
    bytes: &[u8],
    depth: ValidateDepth,
    limits: &BatchLimits,
) -> Result<BatchHeader, BatchError> {
    // Before the checksum, so that what is too large costs nothing.
    if bytes.len() > limits.batch_bytes_max {
        let bytes_max = limits.batch_bytes_max;
        return Err(BatchError::BatchTooLarge { bytes: bytes.len(), bytes_max });
    }
    let header = header::read_checked(bytes)?;
    let compression = header.compression()?;
    check_header(&header, limits)?;
    if depth == ValidateDepth::Structure {
        let encoded = &bytes[HEADER_BYTES..];
        match compression {
            Compression::None => check_records(encoded, &header, limits)?,
            _ => {
                let bytes_max = limits.decompressed_bytes_max;
                let data = codec::decompress(compression, encoded, bytes_max)?;
                check_records(&data, &header, limits)?;
            }
        }
    }
    Ok(header)
}

/// Checks the fields of a header that `BatchHeader::read` returned, against each other and the limits.
fn check_header(header: &BatchHeader, limits: &BatchLimits) -> Result<(), BatchError> {
    let forbidden = header.attributes_forbidden_to_clients();
    if forbidden != 0 {
        return Err(BatchError::ForbiddenAttributes(forbidden));
    }
    let records = i64::from(header.record_count);
    if records == 0 {
        return Err(BatchError::Empty);
    }
    if records > i64::from(limits.records_max) {
        return Err(BatchError::TooManyRecords { records, records_max: limits.records_max });
    }
    let invalid = |field, value, problem| Err(BatchError::InvalidField { field, value, problem });
    if records != i64::from(header.offset_span()) {
        return invalid("record count", records, "it is not the last offset delta plus one");
    }
    if header.max_timestamp_ms < header.base_timestamp_ms {
        return invalid(
            "max timestamp",
            header.max_timestamp_ms,
            "it is before the base timestamp",
        );
    }
    if header.producer_id < -1 {
        return invalid("producer id", header.producer_id, "only -1 means none");
    }
    if header.is_idempotent() {
        if header.producer_epoch < 0 {
            let epoch = i64::from(header.producer_epoch);
            return invalid("producer epoch", epoch, "a producer id needs one from 0 on");
        }
        if header.base_sequence < 0 {
            let sequence = i64::from(header.base_sequence);
            return invalid("base sequence", sequence, "a producer id needs one from 0 on");
        }
    }
    Ok(())
}

/// Walks the (decompressed) records.
fn check_records(
    data: &[u8],
    header: &BatchHeader,
    limits: &BatchLimits,
) -> Result<(), BatchError> {
    let mut cursor = Cursor::new(data);
    let mut max_timestamp_ms = i64::MIN;
    for index in 0..header.record_count.max(0).cast_unsigned() {
        let malformed = |problem| BatchError::InvalidRecord { index, problem };
        let record = RecordRef::read(&mut cursor).map_err(malformed)?;
        if record.attributes != 0 {
            return Err(malformed("it has unknown attribute bits"));
        }
        if i64::from(record.offset_delta) != i64::from(index) {
            return Err(malformed("its offset delta is not its position in the batch"));
        }
        if limits.keys_required && record.key.is_none() {
            return Err(malformed("it has no key, and the topic is compacted by key"));
        }
        let timestamp_ms = header
            .base_timestamp_ms
            .checked_add(record.timestamp_delta)
            .ok_or(malformed("its timestamp overflows"))?;
        max_timestamp_ms = max_timestamp_ms.max(timestamp_ms);
        check_payload(index, record, limits.record_bytes_max)?;
    }
    let extra = cursor.rest().len();
    if extra > 0 {
        return Err(BatchError::TrailingRecordBytes { extra });
    }
    if max_timestamp_ms != header.max_timestamp_ms {
        let stated = header.max_timestamp_ms;
        return Err(BatchError::MaxTimestampMismatch { stated, actual: max_timestamp_ms });
    }
    Ok(())
}

/// Checks the headers of a record, and its size.
#[inline]
fn check_payload(index: u32, record: RecordRef<'_>, bytes_max: usize) -> Result<(), BatchError> {
    let mut bytes = record.key.map_or(0, <[u8]>::len) + record.value.map_or(0, <[u8]>::len);
    let headers = record.headers.stated_count();
    if headers > RECORD_HEADERS_MAX {
        let headers = headers as usize;
        let headers_max = RECORD_HEADERS_MAX;
        return Err(BatchError::TooManyHeaders { index, headers, headers_max });
    }
    for header in record.headers {
        let malformed = |problem| BatchError::InvalidRecord { index, problem };
        let (key, value) = header.map_err(malformed)?;
        if std::str::from_utf8(key).is_err() {
            return Err(malformed("a header key is not UTF-8"));
        }
        bytes += key.len() + value.map_or(0, <[u8]>::len);
    }
    if bytes > bytes_max {
        return Err(BatchError::RecordTooLarge { index, bytes, bytes_max });
    }
    Ok(())
}
