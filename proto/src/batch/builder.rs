//! Building batches: the client's hot path.
//!
//! Records are written once, straight into the buffer that becomes the batch. Knows no clock and no topic.

use bytes::Bytes;

use super::header::{self, BatchHeader, sequence_add};
use super::{
    BatchError, BatchLimits, Compression, HEADER_BYTES, MAGIC, RECORD_HEADERS_MAX, codec, varint,
};

/// Bytes of a record's fields before its key at most: length, attributes, two deltas, key length.
const PREFIX_BYTES_MAX: usize = 5 + 1 + 10 + 5 + 5;

/// Collects records and encodes them as one batch, again and again.
///
/// Invariants: `buffer` is empty while there are no records, else it holds room for the header and then the records,
/// and is no longer than `limits.batch_bytes_max`; `max_timestamp_ms >= base_timestamp_ms`.
#[derive(Debug)]
pub struct BatchBuilder {
    compression: Compression,
    limits: BatchLimits,
    buffer: Vec<u8>,
    /// What to give the next buffer.
    capacity_bytes: usize,
    record_count: u32,
    base_timestamp_ms: i64,
    max_timestamp_ms: i64,
    producer_id: i64,
    producer_epoch: i16,
    base_sequence: i32,
}

impl BatchBuilder {
    /// A builder without records, without a producer, with the default limits.
    pub fn new(compression: Compression) -> Self {
        Self::with_capacity(compression, 0)
    }

    /// The same, which reserves `bytes` with the first record of each batch.
    pub fn with_capacity(compression: Compression, bytes: usize) -> Self {
        Self {
            compression,
            limits: BatchLimits::default(),
            buffer: Vec::new(),
            capacity_bytes: bytes,
            record_count: 0,
            base_timestamp_ms: 0,
            max_timestamp_ms: 0,
            producer_id: -1,
            producer_epoch: -1,
            base_sequence: -1,
        }
    }

    /// Sets what later pushes are held to; `decompressed_bytes_max` plays no part here. The limits of this module
    /// stay the outermost.
    pub fn set_limits(&mut self, limits: BatchLimits) {
        let outermost = BatchLimits::default();
        self.limits = BatchLimits {
            record_bytes_max: limits.record_bytes_max.min(outermost.record_bytes_max),
            batch_bytes_max: limits.batch_bytes_max.min(outermost.batch_bytes_max),
            records_max: limits.records_max.min(outermost.records_max),
            ..limits
        };
    }

    /// Sets who produces the batch under construction, and the sequence number of its first record. Building a batch
    /// moves the sequence on by its records, so that the next batch of the same producer follows.
    pub fn set_producer(&mut self, id: i64, epoch: i16, base_sequence: i32) {
        self.producer_id = id;
        self.producer_epoch = epoch;
        self.base_sequence = base_sequence;
    }

    /// Adds a record. `timestamp_ms` is its create time in milliseconds since the Unix epoch.
    ///
    /// # Errors
    /// If the record is beyond a limit ([`BatchError::RecordTooLarge`], [`BatchError::TooManyHeaders`]), if it does
    /// not fit any more ([`BatchError::BatchTooLarge`], [`BatchError::TooManyRecords`]: build first, then push again),
    /// or if its timestamp is too far from the first one's. The builder is then as it was before.
    pub fn push(
        &mut self,
        timestamp_ms: i64,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[(&str, Option<&[u8]>)],
    ) -> Result<(), BatchError> {
        self.check_record(key, value, headers)?;
        let base_timestamp_ms =
            if self.record_count == 0 { timestamp_ms } else { self.base_timestamp_ms };
        let timestamp_delta = timestamp_ms
            .checked_sub(base_timestamp_ms)
            .ok_or(BatchError::TimestampOutOfRange { timestamp_ms, base_timestamp_ms })?;
        let offset_delta = i64::from(self.record_count);
        let body_bytes = 1
            + varint::encoded_bytes(timestamp_delta)
            + varint::encoded_bytes(offset_delta)
            + nullable_bytes(key)
            + nullable_bytes(value)
            + headers_bytes(headers);
        let record_bytes = varint::encoded_bytes(length(body_bytes)) + body_bytes;
        let bytes = self.estimated_bytes() + record_bytes;
        if bytes > self.limits.batch_bytes_max {
            let bytes_max = self.limits.batch_bytes_max;
            return Err(BatchError::BatchTooLarge { bytes, bytes_max });
        }

        if self.record_count == 0 {
            self.buffer.reserve(self.capacity_bytes.max(bytes));
            self.buffer.resize(HEADER_BYTES, 0);
            self.base_timestamp_ms = timestamp_ms;
            self.max_timestamp_ms = timestamp_ms;
        }
        self.max_timestamp_ms = self.max_timestamp_ms.max(timestamp_ms);
        self.buffer.reserve(record_bytes);
        self.write_prefix(length(body_bytes), timestamp_delta, offset_delta, key);
        self.write_nullable(value);
        self.write_varint(length(headers.len()));
        for &(key, value) in headers {
            self.write_nullable(Some(key.as_bytes()));
            self.write_nullable(value);
        }
        self.record_count += 1;
        debug_assert_eq!(self.buffer.len(), bytes, "the size was computed as it was written");
        Ok(())
    }

    /// Checks a record against the limits that do not depend on its encoding.
    fn check_record(
        &self,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[(&str, Option<&[u8]>)],
    ) -> Result<(), BatchError> {
        let index = self.record_count;
        let records_max = self.limits.records_max;
        if index >= records_max {
            return Err(BatchError::TooManyRecords { records: i64::from(index) + 1, records_max });
        }
        if headers.len() > RECORD_HEADERS_MAX as usize {
            let headers_max = RECORD_HEADERS_MAX;
            return Err(BatchError::TooManyHeaders { index, headers: headers.len(), headers_max });
        }
        let of = |bytes: Option<&[u8]>| bytes.map_or(0, <[u8]>::len);
        let in_headers: usize = headers.iter().map(|&(key, value)| key.len() + of(value)).sum();
        let bytes = of(key) + of(value) + in_headers;
        let bytes_max = self.limits.record_bytes_max;
        if bytes > bytes_max {
            return Err(BatchError::RecordTooLarge { index, bytes, bytes_max });
        }
        Ok(())
    }

    /// Writes everything of a record up to and including its key.
    fn write_prefix(
        &mut self,
        body_bytes: i64,
        timestamp_delta: i64,
        offset_delta: i64,
        key: Option<&[u8]>,
    ) {
        let mut prefix = [0; PREFIX_BYTES_MAX];
        let mut at = varint::write(body_bytes, &mut prefix);
        // The attributes of a record have no meaning yet: zero.
        at += 1;
        at += varint::write(timestamp_delta, &mut prefix[at..]);
        at += varint::write(offset_delta, &mut prefix[at..]);
        at += varint::write(key.map_or(-1, |key| length(key.len())), &mut prefix[at..]);
        self.buffer.extend_from_slice(&prefix[..at]);
        self.buffer.extend_from_slice(key.unwrap_or_default());
    }

    fn write_nullable(&mut self, bytes: Option<&[u8]>) {
        self.write_varint(bytes.map_or(-1, |bytes| length(bytes.len())));
        self.buffer.extend_from_slice(bytes.unwrap_or_default());
    }

    fn write_varint(&mut self, value: i64) {
        let mut encoded = [0; 10];
        let bytes = varint::write(value, &mut encoded);
        self.buffer.extend_from_slice(&encoded[..bytes]);
    }

    /// Bytes that the batch has if it is not compressed, header included: what it will have at most.
    pub fn estimated_bytes(&self) -> usize {
        self.buffer.len().max(HEADER_BYTES)
    }

    /// Records pushed since the last build.
    pub fn record_count(&self) -> u32 {
        self.record_count
    }

    /// Whether no record has been pushed since the last build.
    pub fn is_empty(&self) -> bool {
        self.record_count == 0
    }

    /// Encodes the records as one batch, with base offset 0 and leader epoch -1, and starts over without records.
    ///
    /// Records that the codec cannot make smaller are left uncompressed.
    ///
    /// # Errors
    /// If there is no record, or the codec fails; the builder is then as it was before.
    pub fn build(&mut self) -> Result<Bytes, BatchError> {
        if self.is_empty() {
            return Err(BatchError::Empty);
        }
        let compressed = self.compress()?;
        let record_count = self.record_count.cast_signed();
        let header = BatchHeader {
            base_offset: 0,
            batch_length: 0,
            leader_epoch: -1,
            magic: MAGIC,
            crc: 0,
            attributes: if compressed.is_some() { self.compression.bits() } else { 0 },
            last_offset_delta: record_count - 1,
            base_timestamp_ms: self.base_timestamp_ms,
            max_timestamp_ms: self.max_timestamp_ms,
            producer_id: self.producer_id,
            producer_epoch: self.producer_epoch,
            base_sequence: self.base_sequence,
            record_count,
        };
        if header.is_idempotent() {
            self.base_sequence = sequence_add(self.base_sequence, self.record_count);
        }
        self.record_count = 0;
        Ok(match compressed {
            Some(mut batch) => {
                header::seal(&mut batch, &header);
                self.buffer.clear();
                batch.shrink_to_fit();
                Bytes::from(batch)
            }
            None => {
                header::seal(&mut self.buffer, &header);
                self.take_buffer()
            }
        })
    }

    /// Room for a header and then the compressed records, if compression is asked for and makes them smaller.
    fn compress(&self) -> Result<Option<Vec<u8>>, BatchError> {
        if self.compression == Compression::None {
            return Ok(None);
        }
        let mut batch = Vec::with_capacity(self.buffer.len() / 2);
        batch.resize(HEADER_BYTES, 0);
        codec::compress(self.compression, &self.buffer[HEADER_BYTES..], &mut batch)?;
        Ok((batch.len() < self.buffer.len()).then_some(batch))
    }

    /// The buffer's bytes; the buffer is empty afterwards. One that is mostly unused is copied from and kept, so that
    /// batches in flight take the memory they are counted with.
    fn take_buffer(&mut self) -> Bytes {
        if self.buffer.len() < self.buffer.capacity() / 2 {
            let batch = Bytes::copy_from_slice(&self.buffer);
            self.buffer.clear();
            return batch;
        }
        self.capacity_bytes = self.capacity_bytes.max(self.buffer.len());
        Bytes::from(std::mem::take(&mut self.buffer))
    }
}

/// A length as varints take it. Slices are never longer than `isize::MAX`.
fn length(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// Encoded bytes of a key or value: its length, and itself.
fn nullable_bytes(bytes: Option<&[u8]>) -> usize {
    match bytes {
        None => 1,
        Some(bytes) => varint::encoded_bytes(length(bytes.len())) + bytes.len(),
    }
}

/// Encoded bytes of the header count and the headers.
fn headers_bytes(headers: &[(&str, Option<&[u8]>)]) -> usize {
    let each = |&(key, value): &(&str, Option<&[u8]>)| {
        nullable_bytes(Some(key.as_bytes())) + nullable_bytes(value)
    };
    varint::encoded_bytes(length(headers.len())) + headers.iter().map(each).sum::<usize>()
}
