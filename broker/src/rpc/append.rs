//! From a client's batch to a ticket: the checks, the permits and the hand-over to the replica. Both ways of producing share it.
//!
//! Owns: what a broker looks at before anything is written. Never: answers.

use std::time::Duration;

use bytes::Bytes;
use highwater_proto::batch::{
    self, BATCH_BYTES_MAX, BatchBuilder, BatchError, BatchHeader, BatchLimits, BatchView,
    Compression, ValidateDepth,
};
use highwater_proto::v1;

use super::door::{Door, acks, batch_limits, refuse_internal, wire_offset};
use super::in_flight::{InFlight, InFlightPermit};
use super::screen::Call;
use crate::cluster::topic_config::TopicConfig;
use crate::error::BrokerError;
use crate::replica::{AppendTicket, Appended};

/// Wait for durability when the client does not say, in milliseconds.
pub(super) const TIMEOUT_MS_DEFAULT: u32 = 30_000;

/// Compressed batches from this size on are checked off the runtime's threads: they may grow to 32 MiB.
const CHECK_INLINE_BYTES_MAX: usize = 16 << 10;

/// A batch that is in its replica's queue.
pub(super) struct Enqueued {
    ticket: AppendTicket,
    records: u32,
    bytes: u64,
    acks: v1::Acks,
    /// By the node's monotonic clock.
    expires_at: Duration,
    _permit: InFlightPermit,
}

impl Door {
    /// Checks a batch and puts it into the queue of the replica that leads its partition here. The order of calls is the
    /// order in the log. Waits while too many bytes are in flight.
    pub(super) async fn append(
        &self,
        in_flight: &InFlight,
        produce: v1::ProduceBatch,
    ) -> Result<Enqueued, BrokerError> {
        let acks = acks(produce.acks)?;
        check_batch_bytes(produce.batch.len())?;
        refuse_internal(&produce.topic)?;
        self.check(Call::Publish, &produce.topic)?;
        self.topic(&produce.topic, true).await?;
        let (topic, handle) =
            self.node.route(&produce.topic, &produce.topic_id, produce.partition)?;
        let config = TopicConfig::read(&topic.config);
        let (batch, header) = self.checked(produce.batch, &config).await?;
        let bytes = batch.len();
        let permit = in_flight.acquire(bytes).await;
        let ticket = handle.append(batch, &header, acks)?;
        Ok(Enqueued {
            ticket,
            records: header.offset_span(),
            bytes: bytes as u64,
            acks,
            expires_at: self.clock.monotonic() + timeout(produce.timeout_ms),
            _permit: permit,
        })
    }

    /// Waits until a batch is as durable as asked for, or its time is up.
    pub(super) async fn appended(
        &self,
        enqueued: Enqueued,
        request_id: u64,
        topic: String,
        partition: u32,
    ) -> Result<v1::ProduceAck, BrokerError> {
        let remaining = enqueued.expires_at.saturating_sub(self.clock.monotonic());
        let late = || BrokerError::OutcomeUnknown { why: "it was not durable within its timeout" };
        let outcome = tokio::time::timeout(remaining, enqueued.ticket).await;
        let Appended { base_offset, leader_epoch, duplicate, append_time_ms } =
            outcome.map_err(|_| late())??;
        self.metrics.produced(u64::from(enqueued.records), enqueued.bytes);
        Ok(v1::ProduceAck {
            request_id,
            topic,
            partition,
            base_offset: wire_offset(base_offset),
            record_count: enqueued.records,
            leader_epoch,
            duplicate,
            reached: enqueued.acks.into(),
            append_time_ms,
        })
    }

    /// The batch as it will be stored: checked in every byte, with the topic's codec if that has one.
    async fn checked(
        &self,
        batch: Bytes,
        config: &TopicConfig,
    ) -> Result<(Bytes, BatchHeader), BrokerError> {
        let limits = batch_limits(config);
        let codec = config.compression;
        let header = BatchHeader::read(&batch)?;
        let compression = header.compression()?;
        let is_quick = compression == Compression::None || batch.len() <= CHECK_INLINE_BYTES_MAX;
        if is_quick && codec.is_none_or(|codec| codec == compression) {
            return check(batch, codec, &limits);
        }
        let work = move || check(batch, codec, &limits);
        let failed = |error| BrokerError::Internal(format!("checking a batch failed: {error}"));
        self.tasks.spawn_blocking(work).await.map_err(failed)?
    }
}

fn check(
    batch: Bytes,
    codec: Option<Compression>,
    limits: &BatchLimits,
) -> Result<(Bytes, BatchHeader), BrokerError> {
    let header = batch::validate(&batch, ValidateDepth::Structure, limits)?;
    match codec {
        Some(codec) if codec != header.compression()? => recompressed(batch, codec),
        _ => Ok((batch, header)),
    }
}

/// The same records with another codec; producer and sequence stay, so that a retry is recognised.
fn recompressed(batch: Bytes, codec: Compression) -> Result<(Bytes, BatchHeader), BrokerError> {
    let view = BatchView::parse(batch)?;
    let header = *view.header();
    let mut builder = BatchBuilder::new(codec);
    builder.set_producer(header.producer_id, header.producer_epoch, header.base_sequence);
    let not_utf8 = || BatchError::InvalidRecord { index: 0, problem: "a header key is not UTF-8" };
    for record in view.records()? {
        let record = record?;
        let mut headers = Vec::with_capacity(record.headers.len());
        for (key, value) in &record.headers {
            let key = std::str::from_utf8(key).map_err(|_| not_utf8())?;
            headers.push((key, value.as_deref()));
        }
        let (key, value) = (record.key.as_deref(), record.value.as_deref());
        builder.push(record.timestamp_ms, key, value, &headers)?;
    }
    let bytes = builder.build()?;
    check_batch_bytes(bytes.len())?;
    let header = BatchHeader::read(&bytes)?;
    Ok((bytes, header))
}

/// Refuses what is too large before anything is done with it.
fn check_batch_bytes(bytes: usize) -> Result<(), BrokerError> {
    if bytes <= BATCH_BYTES_MAX {
        return Ok(());
    }
    Err(BrokerError::TooLarge {
        what: "batch",
        bytes: bytes as u64,
        bytes_max: BATCH_BYTES_MAX as u64,
        setting: "fixed",
    })
}

fn timeout(timeout_ms: u32) -> Duration {
    let ms = if timeout_ms == 0 { TIMEOUT_MS_DEFAULT } else { timeout_ms };
    Duration::from_millis(u64::from(ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one_batch(compression: Compression) -> Bytes {
        let mut builder = BatchBuilder::new(compression);
        builder.set_producer(7, 0, 40);
        for number in 0..3_u8 {
            let value = [number; 100];
            builder.push(1_000, Some(b"key"), Some(&value), &[("h", None)]).unwrap();
        }
        builder.build().unwrap()
    }

    #[test]
    fn another_codec_changes_the_bytes_but_neither_records_nor_producer() {
        let plain = one_batch(Compression::None);
        let limits = BatchLimits::default();
        let (stored, header) = check(plain.clone(), Some(Compression::Zstd), &limits).unwrap();
        assert_eq!(header.compression().unwrap(), Compression::Zstd);
        assert_eq!((header.producer_id, header.producer_epoch, header.base_sequence), (7, 0, 40));
        let records = |batch: Bytes| -> Vec<_> {
            let view = BatchView::parse(batch).unwrap();
            view.records().unwrap().map(Result::unwrap).collect()
        };
        assert_eq!(records(stored), records(plain));
    }

    #[test]
    fn a_batch_that_fits_the_topic_is_stored_as_it_came() {
        let batch = one_batch(Compression::Lz4);
        for codec in [None, Some(Compression::Lz4)] {
            let (stored, _) = check(batch.clone(), codec, &BatchLimits::default()).unwrap();
            assert_eq!(stored.as_ptr(), batch.as_ptr(), "no copy");
        }
    }

    #[test]
    fn a_record_beyond_the_topics_limit_is_refused() {
        let limits = BatchLimits { record_bytes_max: 50, ..BatchLimits::default() };
        let error = check(one_batch(Compression::None), None, &limits).unwrap_err();
        assert!(matches!(error, BrokerError::InvalidBatch(ref batch) if batch.is_over_limit()));
    }
}
