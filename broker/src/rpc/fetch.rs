//! Reading stored batches for an answer: as they are stored, or decoded into records. And the unary Fetch.
//!
//! Owns: how much goes into one answer and where the next one starts. Never: credit, or who reads what.

use std::time::Duration;

use bytes::Bytes;
use highwater_proto::batch::BatchView;
use highwater_proto::v1;

use super::door::{Door, FETCH_BYTES_MAX, wire_offset};
use super::screen::Call;
use super::status::{CallError, from_peer};
use crate::cluster::TopicView;
use crate::error::BrokerError;
use crate::replica::{PartitionHandle, Source, Stored};

/// Longest wait of a Fetch.
const WAIT_MS_MAX: u32 = 60_000;

/// Bytes of a Fetch that does not say.
const BYTES_DEFAULT: u64 = 1 << 20;

/// What one read is bounded by.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReadBounds {
    /// Bytes after which no further batch or record is added; at least one is.
    pub(super) bytes_max: u64,
    /// The same for records.
    pub(super) records_max: u64,
}

/// Part of a partition, ready to be sent.
#[derive(Debug, Default)]
pub(super) struct Chunk {
    /// Stored batches; empty with structured records.
    pub(super) batches: Vec<Bytes>,
    /// Structured records; empty with stored batches.
    pub(super) records: Vec<v1::FetchedRecord>,
    /// Where to go on.
    pub(super) next_offset: u64,
    /// What it costs in bytes.
    pub(super) bytes: u64,
    /// What it costs in records.
    pub(super) record_count: u64,
    /// Offsets were passed over that hold no records any more.
    pub(super) has_gaps: bool,
}

/// The format asked for.
pub(super) fn format(number: i32) -> Result<v1::FetchFormat, BrokerError> {
    match v1::FetchFormat::try_from(number) {
        Ok(v1::FetchFormat::Unspecified) => Ok(v1::FetchFormat::Records),
        Ok(format) => Ok(format),
        Err(_) => Err(BrokerError::InvalidArgument {
            field: "format".to_owned(),
            why: format!("{number} is not a known format"),
        }),
    }
}

/// Reads from an offset on; an empty chunk if nothing is readable there yet. Stored batches are slices of the mapping.
pub(super) fn read(
    handle: &PartitionHandle,
    source: Source,
    from: u64,
    format: v1::FetchFormat,
    bounds: ReadBounds,
) -> Result<Chunk, BrokerError> {
    let Stored { entries, next_offset } = handle.read(from, bounds.bytes_max, source)?;
    if entries.is_empty() {
        return Ok(Chunk { next_offset, has_gaps: next_offset > from, ..Chunk::default() });
    }
    let stored = entries.into_iter().map(|entry| {
        let end = entry.base_offset + u64::from(entry.meta.offset_span);
        (entry.base_offset, end, entry.payload)
    });
    match format {
        v1::FetchFormat::Batches => Ok(as_batches(from, stored, bounds)),
        _ => as_records(from, stored, bounds),
    }
}

/// Takes whole batches; the first may begin before `from`, and only its records from there on count.
fn as_batches(
    from: u64,
    stored: impl Iterator<Item = (u64, u64, Bytes)>,
    bounds: ReadBounds,
) -> Chunk {
    let mut chunk = Chunk { next_offset: from, ..Chunk::default() };
    for (base_offset, end, batch) in stored {
        let is_first = chunk.batches.is_empty();
        let over = chunk.bytes >= bounds.bytes_max || chunk.record_count >= bounds.records_max;
        if over && !is_first {
            break;
        }
        chunk.bytes += batch.len() as u64;
        chunk.has_gaps |= base_offset > chunk.next_offset;
        chunk.record_count += end.saturating_sub(chunk.next_offset.max(base_offset));
        chunk.next_offset = end;
        chunk.batches.push(batch);
    }
    chunk
}

/// Takes single records, skipping those before `from`: a batch that decompresses to much is sent in parts.
fn as_records(
    from: u64,
    stored: impl Iterator<Item = (u64, u64, Bytes)>,
    bounds: ReadBounds,
) -> Result<Chunk, BrokerError> {
    let damaged = |base_offset: u64, error: &dyn std::fmt::Display| {
        BrokerError::Internal(format!(
            "stored batch at offset {base_offset} cannot be read: {error}"
        ))
    };
    let mut chunk = Chunk { next_offset: from, ..Chunk::default() };
    for (base_offset, end, batch) in stored {
        let view = BatchView::parse(batch).map_err(|error| damaged(base_offset, &error))?;
        let records = view.records().map_err(|error| damaged(base_offset, &error))?;
        chunk.has_gaps |= base_offset > chunk.next_offset;
        for record in records {
            let record = record.map_err(|error| damaged(base_offset, &error))?;
            let Some(offset) = u64::try_from(record.offset).ok().filter(|offset| *offset >= from)
            else {
                continue;
            };
            let bytes = record.payload_bytes() as u64;
            let over = chunk.record_count >= bounds.records_max
                || chunk.bytes.saturating_add(bytes) > bounds.bytes_max;
            if over && !chunk.records.is_empty() {
                return Ok(chunk);
            }
            chunk.bytes += bytes;
            chunk.record_count += 1;
            chunk.next_offset = offset + 1;
            chunk.records.push(record.into());
        }
        // Behind the last record there may be offsets without one.
        chunk.next_offset = end;
    }
    Ok(chunk)
}

fn check_wait(request: &v1::FetchRequest) -> Result<(), BrokerError> {
    if request.wait_ms_max <= WAIT_MS_MAX {
        return Ok(());
    }
    Err(BrokerError::InvalidArgument {
        field: "wait_ms_max".to_owned(),
        why: format!("{} is more than {WAIT_MS_MAX}", request.wait_ms_max),
    })
}

/// Where reading starts when the client does not say.
pub(super) fn start() -> v1::Position {
    v1::Position { at: Some(v1::position::At::Start(v1::position::Start {})) }
}

impl Door {
    /// Fetches for a client: any partition, wherever its leader is.
    pub(super) async fn fetch(
        &self,
        request: v1::FetchRequest,
    ) -> Result<v1::FetchResponse, CallError> {
        if request.from_replica
            && let Ok(answer) = self.fetch_from_replica(&request).await
        {
            return Ok(answer);
        }
        self.until_led(|| self.fetch_at_leader(&request)).await
    }

    async fn fetch_at_leader(
        &self,
        request: &v1::FetchRequest,
    ) -> Result<v1::FetchResponse, CallError> {
        let leader = match self.fetch_here(request).await {
            Err(BrokerError::NotLeader { leader: Some(leader) }) if leader != self.node.id() => {
                leader
            }
            outcome => return Ok(outcome?),
        };
        let address = self.internal_address_of(leader)?;
        self.calls.forward_fetch(&address, request.clone()).await.map_err(from_peer)
    }

    /// Fetches from a partition that this node leads; what other nodes pass on ends here.
    pub(super) async fn fetch_here(
        &self,
        request: &v1::FetchRequest,
    ) -> Result<v1::FetchResponse, BrokerError> {
        check_wait(request)?;
        self.check(Call::Read, &request.topic)?;
        self.topic(&request.topic, false).await?;
        let (topic, handle) =
            self.node.route(&request.topic, &request.topic_id, request.partition)?;
        let from = handle.resolve(request.position.as_ref().unwrap_or(&start())).await?;
        self.fetch_from(request, &topic, &handle, Source::Leader, from).await
    }

    /// Fetches from the replica on this node, leading or not. Whatever fails, the leader is to be asked.
    async fn fetch_from_replica(
        &self,
        request: &v1::FetchRequest,
    ) -> Result<v1::FetchResponse, BrokerError> {
        check_wait(request)?;
        self.check(Call::Read, &request.topic)?;
        let (topic, handle) =
            self.node.route_to_replica(&request.topic, &request.topic_id, request.partition)?;
        if !handle.knows_leader() {
            // It may be cut off, and would answer with less and less of what there is.
            return Err(BrokerError::NotLeader { leader: None });
        }
        let from = handle.resolve_here(request.position.as_ref().unwrap_or(&start()))?;
        self.fetch_from(request, &topic, &handle, Source::Replica, from).await
    }

    async fn fetch_from(
        &self,
        request: &v1::FetchRequest,
        topic: &TopicView,
        handle: &PartitionHandle,
        source: Source,
        from: u64,
    ) -> Result<v1::FetchResponse, BrokerError> {
        let format = format(request.format)?;
        let wait = Duration::from_millis(u64::from(request.wait_ms_max));
        // Polled at least once, so that an offset out of range is told even without waiting.
        if let Ok(outcome) = tokio::time::timeout(wait, handle.wait_readable(from, source)).await {
            outcome?;
        }
        let or_default = |value: u32, default: u64| if value == 0 { default } else { value.into() };
        let bounds = ReadBounds {
            bytes_max: or_default(request.bytes_max, BYTES_DEFAULT).min(FETCH_BYTES_MAX),
            records_max: or_default(request.records_max, u64::MAX),
        };
        let chunk = read(handle, source, from, format, bounds)?;
        self.metrics.fetched(chunk.record_count, chunk.bytes);
        if !handle.is_leader() {
            self.metrics.fetched_from_follower(chunk.bytes);
        }
        Ok(v1::FetchResponse {
            topic_id: topic.id.clone(),
            high_watermark: wire_offset(handle.high_watermark()),
            log_start_offset: wire_offset(handle.log_start_offset()),
            next_offset: wire_offset(chunk.next_offset),
            records: chunk.records,
            batches: chunk.batches,
            leader_epoch: handle.leader_epoch(),
        })
    }
}

#[cfg(test)]
mod tests {
    use highwater_proto::batch::{BatchBuilder, Compression, stamped_prefix};

    use super::*;

    const UNBOUNDED: ReadBounds = ReadBounds { bytes_max: u64::MAX, records_max: u64::MAX };

    /// A stored batch of ten-byte records at an offset.
    fn stored(base_offset: u64, records: u64) -> (u64, u64, Bytes) {
        let mut builder = BatchBuilder::new(Compression::Lz4);
        for _ in 0..records {
            builder.push(0, None, Some(b"0123456789"), &[]).unwrap();
        }
        let batch = builder.build().unwrap();
        let mut bytes = batch.to_vec();
        bytes[..16].copy_from_slice(&stamped_prefix(&batch, wire_offset(base_offset), 1));
        (base_offset, base_offset + records, Bytes::from(bytes))
    }

    fn offsets(chunk: &Chunk) -> Vec<i64> {
        chunk.records.iter().map(|record| record.offset).collect()
    }

    #[test]
    fn records_before_the_position_are_skipped() {
        let chunk = as_records(12, [stored(10, 4)].into_iter(), UNBOUNDED).unwrap();
        assert_eq!(offsets(&chunk), [12, 13]);
        assert_eq!((chunk.next_offset, chunk.record_count, chunk.bytes), (14, 2, 20));
    }

    #[test]
    fn a_bound_within_a_batch_continues_there() {
        let bounds = ReadBounds { bytes_max: 25, ..UNBOUNDED };
        let chunk = as_records(0, [stored(0, 4)].into_iter(), bounds).unwrap();
        assert_eq!((offsets(&chunk), chunk.next_offset), (vec![0, 1], 2));
        let bounds = ReadBounds { records_max: 3, ..UNBOUNDED };
        let chunk = as_records(2, [stored(0, 4), stored(4, 4)].into_iter(), bounds).unwrap();
        assert_eq!((offsets(&chunk), chunk.next_offset), (vec![2, 3, 4], 5));
    }

    #[test]
    fn one_record_is_sent_however_small_the_bound() {
        let bounds = ReadBounds { bytes_max: 1, records_max: 1 };
        let chunk = as_records(0, [stored(0, 2)].into_iter(), bounds).unwrap();
        assert_eq!((offsets(&chunk), chunk.next_offset), (vec![0], 1));
    }

    #[test]
    fn batches_go_out_whole_and_untouched() {
        let all = [stored(0, 4), stored(4, 4)];
        let first = all[0].2.clone();
        let bounds = ReadBounds { records_max: 2, ..UNBOUNDED };
        let chunk = as_batches(1, all.into_iter(), bounds);
        assert_eq!(chunk.batches.len(), 1);
        assert_eq!(chunk.batches[0].as_ptr(), first.as_ptr());
        assert_eq!((chunk.next_offset, chunk.record_count), (4, 3));
    }

    #[test]
    fn a_damaged_stored_batch_is_an_error_not_a_panic() {
        let junk = (0, 1, Bytes::from_static(b"junk"));
        let error = as_records(0, [junk].into_iter(), UNBOUNDED).unwrap_err();
        assert_eq!(error.reason(), "INTERNAL");
    }
}
