//! The record-batch codec from outside: against another implementation, and against hostile bytes.
//!
//! Owns the generators of records that both share. Never looks inside the codec.

#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "all of this crate is tests, its helpers too"
)]

mod bombs;
mod compacted;
mod hostile;
mod oracle;

use bytes::Bytes;
use highwater_proto::batch::{BatchBuilder, Compression, HEADER_BYTES};
use proptest::prelude::*;

/// A record as a test writes it down.
#[derive(Clone, Debug, PartialEq)]
struct Plain {
    timestamp_ms: i64,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Vec<(String, Option<Vec<u8>>)>,
}

/// Who produced a batch: id, epoch, base sequence.
type Producer = (i64, i16, i32);

const NOBODY: Producer = (-1, -1, -1);

/// Bytes that compress well or not at all, down to none, or null.
fn payloads(bytes_max: usize) -> impl Strategy<Value = Option<Vec<u8>>> {
    prop_oneof![
        1 => Just(None),
        1 => Just(Some(Vec::new())),
        3 => prop::collection::vec(any::<u8>(), 0..64).prop_map(Some),
        3 => (any::<u8>(), 0..bytes_max).prop_map(|(byte, bytes)| Some(vec![byte; bytes])),
    ]
}

/// Records whose timestamps go up and down, by less than the 31 bits that the other implementation can write.
fn records() -> impl Strategy<Value = Vec<Plain>> {
    let headers = prop::collection::btree_map("[a-zäß☃]{0,6}", payloads(40), 0..4);
    let record = (-1_000_000_000_i64..1_000_000_000, payloads(300), payloads(3000), headers);
    (0..4_000_000_000_000_i64, prop::collection::vec(record, 1..40)).prop_map(|(base, records)| {
        let plain = |(delta, key, value, headers): (i64, _, _, _)| Plain {
            timestamp_ms: base + delta,
            key,
            value,
            headers: std::collections::BTreeMap::into_iter(headers).collect(),
        };
        records.into_iter().map(plain).collect()
    })
}

fn producers() -> impl Strategy<Value = Producer> {
    prop_oneof![Just(NOBODY), (0..i64::MAX, 0..i16::MAX, 0..i32::MAX - 100)]
}

fn compressions() -> impl Strategy<Value = Compression> {
    prop::sample::select(&Compression::ALL[..])
}

/// The batch that the codec builds of `records`.
fn build(compression: Compression, (id, epoch, sequence): Producer, records: &[Plain]) -> Bytes {
    let mut builder = BatchBuilder::new(compression);
    builder.set_producer(id, epoch, sequence);
    for record in records {
        let headers: Vec<_> =
            record.headers.iter().map(|(key, value)| (key.as_str(), value.as_deref())).collect();
        builder
            .push(record.timestamp_ms, record.key.as_deref(), record.value.as_deref(), &headers)
            .unwrap();
    }
    builder.build().unwrap()
}

/// Makes length and checksum of a batch, however damaged, say what its bytes are.
fn reseal(batch: &mut [u8]) {
    let length = u32::try_from(batch.len() - 12).unwrap();
    batch[8..12].copy_from_slice(&length.to_be_bytes());
    let crc = crc32c::crc32c(&batch[21..]);
    batch[17..21].copy_from_slice(&crc.to_be_bytes());
}

/// A batch of `count` records whose encoded (and compressed) records are `body`, whatever that is. All timestamps are 0.
fn batch_around(compression: Compression, count: u32, body: &[u8]) -> Vec<u8> {
    let mut batch = vec![0; HEADER_BYTES];
    batch[16] = 2;
    batch[22] = Compression::ALL.iter().position(|&it| it == compression).unwrap() as u8;
    batch[23..27].copy_from_slice(&count.saturating_sub(1).to_be_bytes());
    batch[43..57].fill(0xff);
    batch[57..61].copy_from_slice(&count.to_be_bytes());
    batch.extend_from_slice(body);
    reseal(&mut batch);
    batch
}
