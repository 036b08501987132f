//! What compaction does to one batch: leave out records, and note from when on its tombstones may go.
//!
//! A rebuilt batch keeps base offset, last offset delta, producer, codec and the bytes of the records that stay; no record
//! changes its offset or timestamp. Knows nothing of keys: the caller says what stays.

use bytes::Bytes;

use super::header::{self, BatchHeader};
use super::record::RecordRef;
use super::varint::{self, Cursor};
use super::{BATCH_BYTES_MAX, BatchError, BatchView, DECOMPRESSED_BYTES_MAX, HEADER_BYTES, codec};

/// A record as far as compaction looks at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompactRecord<'a> {
    /// Position in the partition.
    pub offset: i64,
    /// The key, if there is one.
    pub key: Option<&'a [u8]>,
    /// The record has no value: it says that its key is gone.
    pub is_tombstone: bool,
}

/// What became of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compacted {
    /// Every record stays: the batch is as it was, byte for byte.
    Unchanged,
    /// A batch with fewer records, or with a delete horizon.
    Rebuilt(Bytes),
    /// No record stays.
    Empty,
}

impl BatchView {
    /// Calls `visit` with the records in order, until it answers false.
    ///
    /// # Errors
    /// As [`BatchView::records`], and if a record is malformed.
    pub fn visit(
        &self,
        mut visit: impl FnMut(CompactRecord<'_>) -> bool,
    ) -> Result<(), BatchError> {
        let data = self.decompressed()?;
        for record in RawRecords::new(self.header(), &data) {
            if !visit(record?.seen) {
                break;
            }
        }
        Ok(())
    }

    /// The batch with the records that `keep` picks. If a tombstone stays and the batch has no delete horizon yet, it gets
    /// `delete_horizon_ms`, if there is one.
    ///
    /// # Errors
    /// As [`BatchView::records`], if a record is malformed, or if the codec fails.
    pub fn compact(
        &self,
        mut keep: impl FnMut(CompactRecord<'_>) -> bool,
        delete_horizon_ms: Option<i64>,
    ) -> Result<Compacted, BatchError> {
        let data = self.decompressed()?;
        let mut kept = Vec::new();
        let mut has_tombstone = false;
        let mut records = 0_usize;
        for record in RawRecords::new(self.header(), &data) {
            let record = record?;
            records += 1;
            if keep(record.seen) {
                has_tombstone |= record.seen.is_tombstone;
                kept.push(record);
            }
        }
        if kept.is_empty() {
            return Ok(Compacted::Empty);
        }
        let unstamped = self.header().delete_horizon_ms().is_none();
        let horizon = delete_horizon_ms.filter(|_| has_tombstone && unstamped);
        if let Some(horizon) = horizon
            && let Some(batch) = self.rebuild(&kept, Some(horizon))?
        {
            return Ok(Compacted::Rebuilt(batch));
        }
        // Also where the horizon would make a batch larger than anybody reads: its tombstones stay.
        if kept.len() == records {
            return Ok(Compacted::Unchanged);
        }
        match self.rebuild(&kept, None)? {
            Some(batch) => Ok(Compacted::Rebuilt(batch)),
            None => Ok(Compacted::Unchanged),
        }
    }

    /// A batch of these records; `None` if it would be beyond a limit.
    fn rebuild(
        &self,
        kept: &[RawRecord<'_>],
        horizon_ms: Option<i64>,
    ) -> Result<Option<Bytes>, BatchError> {
        let old = *self.header();
        let base_timestamp_ms = horizon_ms.unwrap_or(old.base_timestamp_ms);
        let mut data = Vec::with_capacity(kept.iter().map(|record| record.whole.len() + 8).sum());
        let mut max_timestamp_ms = i64::MIN;
        for record in kept {
            let Some(timestamp_ms) = old.base_timestamp_ms.checked_add(record.timestamp_delta)
            else {
                return Ok(None);
            };
            max_timestamp_ms = max_timestamp_ms.max(timestamp_ms);
            if horizon_ms.is_none() {
                data.extend_from_slice(record.whole);
                continue;
            }
            let Some(delta) = timestamp_ms.checked_sub(base_timestamp_ms) else { return Ok(None) };
            record.write_with_timestamp(delta, &mut data);
        }
        if data.len() > DECOMPRESSED_BYTES_MAX {
            return Ok(None);
        }
        let mut batch = vec![0; HEADER_BYTES];
        codec::compress(old.compression()?, &data, &mut batch)?;
        if batch.len() > BATCH_BYTES_MAX.max(self.bytes().len()) {
            return Ok(None);
        }
        if old.is_log_append_time() {
            max_timestamp_ms = old.max_timestamp_ms;
        }
        let header = BatchHeader {
            base_timestamp_ms,
            max_timestamp_ms,
            record_count: i32::try_from(kept.len()).unwrap_or(i32::MAX),
            ..old
        };
        let header = if horizon_ms.is_some() { header.with_delete_horizon() } else { header };
        header::seal(&mut batch, &header);
        Ok(Some(Bytes::from(batch)))
    }
}

/// A record and where its bytes are.
struct RawRecord<'a> {
    seen: CompactRecord<'a>,
    timestamp_delta: i64,
    attributes: u8,
    offset_delta: i32,
    /// All of it, its length included.
    whole: &'a [u8],
    /// From its key on.
    payload: &'a [u8],
}

impl RawRecord<'_> {
    fn write_with_timestamp(&self, delta: i64, out: &mut Vec<u8>) {
        let offset_delta = i64::from(self.offset_delta);
        let body = 1
            + varint::encoded_bytes(delta)
            + varint::encoded_bytes(offset_delta)
            + self.payload.len();
        let mut prefix = [0; 5 + 1 + 10 + 5];
        let mut at = varint::write(i64::try_from(body).unwrap_or(i64::MAX), &mut prefix);
        prefix[at] = self.attributes;
        at += 1;
        at += varint::write(delta, &mut prefix[at..]);
        at += varint::write(offset_delta, &mut prefix[at..]);
        out.extend_from_slice(&prefix[..at]);
        out.extend_from_slice(self.payload);
    }
}

/// Walks decompressed records. Ends after the first error.
struct RawRecords<'a> {
    header: BatchHeader,
    cursor: Cursor<'a>,
    index: u32,
    last_offset_delta: i32,
    ended: bool,
}

impl<'a> RawRecords<'a> {
    fn new(header: &BatchHeader, data: &'a [u8]) -> Self {
        let cursor = Cursor::new(data);
        Self { header: *header, cursor, index: 0, last_offset_delta: -1, ended: false }
    }

    fn read(&mut self) -> Result<RawRecord<'a>, &'static str> {
        let before = self.cursor.rest();
        let record = RecordRef::read(&mut self.cursor)?;
        let whole = &before[..before.len() - self.cursor.rest().len()];
        if record.offset_delta <= self.last_offset_delta
            || record.offset_delta > self.header.last_offset_delta
        {
            return Err("its offset is out of order or outside the batch");
        }
        self.last_offset_delta = record.offset_delta;
        self.index += 1;
        let mut body = Cursor::new(whole);
        body.varint()?;
        body.byte()?;
        body.varlong()?;
        body.varint()?;
        let offset = i64::from(record.offset_delta).checked_add(self.header.base_offset);
        Ok(RawRecord {
            seen: CompactRecord {
                offset: offset.ok_or("its offset overflows")?,
                key: record.key,
                is_tombstone: record.value.is_none(),
            },
            timestamp_delta: record.timestamp_delta,
            attributes: record.attributes,
            offset_delta: record.offset_delta,
            whole,
            payload: body.rest(),
        })
    }
}

impl<'a> Iterator for RawRecords<'a> {
    type Item = Result<RawRecord<'a>, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        if i64::from(self.index) == i64::from(self.header.record_count) {
            self.ended = true;
            let extra = self.cursor.rest().len();
            return (extra > 0).then_some(Err(BatchError::TrailingRecordBytes { extra }));
        }
        let index = self.index;
        let record = self.read();
        self.ended = record.is_err();
        Some(record.map_err(|problem| BatchError::InvalidRecord { index, problem }))
    }
}
