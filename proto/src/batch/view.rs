//! Reading a batch in place: the view over its bytes and the iterator over its records.
//!
//! Uncompressed records are never copied; compressed ones are decompressed once, within limits.

use bytes::Bytes;

use super::header::{self, BatchHeader};
use super::record::{self, RecordRef, RecordView};
use super::varint::{Cursor, Problem};
use super::{BatchError, Compression, DECOMPRESSED_BYTES_MAX, HEADER_BYTES, codec};

/// A whole batch whose structure and checksum are right.
#[derive(Clone, Debug)]
pub struct BatchView {
    header: BatchHeader,
    bytes: Bytes,
}

impl BatchView {
    /// Takes `bytes`, which must be exactly one batch.
    ///
    /// # Errors
    /// If it is not one whole batch in format 2, or the checksum is wrong. Attributes and records are not looked at:
    /// what a broker may have stored is readable, also what it would not take from a client.
    pub fn parse(bytes: Bytes) -> Result<Self, BatchError> {
        let header = header::read_checked(&bytes)?;
        Ok(Self { header, bytes })
    }

    /// The batch's header.
    pub fn header(&self) -> &BatchHeader {
        &self.header
    }

    /// The batch's bytes, header included.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The records, in order; decompressed now, if they are compressed.
    ///
    /// # Errors
    /// If the codec is unknown, the data is damaged, or it decompresses to more than [`DECOMPRESSED_BYTES_MAX`].
    pub fn records(&self) -> Result<Records, BatchError> {
        Ok(Records::new(self.header, self.decompressed()?))
    }

    /// The bytes of the records, decompressed within limits.
    pub(super) fn decompressed(&self) -> Result<Bytes, BatchError> {
        let encoded = self.bytes.slice(HEADER_BYTES..);
        Ok(match self.header.compression()? {
            Compression::None => encoded,
            compression => {
                Bytes::from(codec::decompress(compression, &encoded, DECOMPRESSED_BYTES_MAX)?)
            }
        })
    }
}

/// Iterates over the records of a batch. Ends after the first error.
///
/// Offsets are checked to grow and to stay within the batch; gaps, as compaction leaves them, are fine.
#[derive(Debug)]
pub struct Records {
    header: BatchHeader,
    data: Bytes,
    /// Where the next record begins in `data`.
    position: usize,
    /// How many records have been read.
    index: u32,
    last_offset_delta: i32,
    ended: bool,
}

impl Records {
    fn new(header: BatchHeader, data: Bytes) -> Self {
        Self { header, data, position: 0, index: 0, last_offset_delta: -1, ended: false }
    }

    fn read_next(&mut self) -> Result<RecordView, Problem> {
        let mut cursor = Cursor::new(&self.data[self.position..]);
        let record = RecordRef::read(&mut cursor)?;
        if record.offset_delta <= self.last_offset_delta
            || record.offset_delta > self.header.last_offset_delta
        {
            return Err("its offset is out of order or outside the batch");
        }
        let offset = i64::from(record.offset_delta).checked_add(self.header.base_offset);
        let timestamp_ms = if self.header.is_log_append_time() {
            Some(self.header.max_timestamp_ms)
        } else {
            self.header.base_timestamp_ms.checked_add(record.timestamp_delta)
        };
        let view = RecordView {
            offset: offset.ok_or("its offset overflows")?,
            timestamp_ms: timestamp_ms.ok_or("its timestamp overflows")?,
            key: record.key.map(|key| self.data.slice_ref(key)),
            value: record.value.map(|value| self.data.slice_ref(value)),
            headers: record::owned_headers(&self.data, record.headers)?,
        };
        self.last_offset_delta = record.offset_delta;
        self.position = self.data.len() - cursor.rest().len();
        self.index += 1;
        Ok(view)
    }
}

impl Iterator for Records {
    type Item = Result<RecordView, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        if i64::from(self.index) == i64::from(self.header.record_count) {
            self.ended = true;
            let extra = self.data.len() - self.position;
            return (extra > 0).then_some(Err(BatchError::TrailingRecordBytes { extra }));
        }
        let index = self.index;
        let record = self.read_next();
        self.ended = record.is_err();
        Some(record.map_err(|problem| BatchError::InvalidRecord { index, problem }))
    }
}

impl std::iter::FusedIterator for Records {}
