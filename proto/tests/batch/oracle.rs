//! Properties against the `kafka-protocol` crate: what either implementation writes, the other reads as it was meant.

use bytes::{Bytes, BytesMut};
use highwater_proto::batch::{
    BatchError, BatchHeader, BatchLimits, BatchView, Compression, ValidateDepth, stamped_prefix,
    validate,
};
use kafka_protocol::protocol::StrBytes;
use kafka_protocol::records::{
    Compression as TheirCompression, Record, RecordBatchDecoder, RecordBatchEncoder,
    RecordEncodeOptions, RecordSet, TimestampType,
};
use proptest::prelude::*;

use super::{NOBODY, Plain, Producer, build, compressions, producers, records};

fn theirs(compression: Compression) -> TheirCompression {
    match compression {
        Compression::None => TheirCompression::None,
        Compression::Gzip => TheirCompression::Gzip,
        Compression::Snappy => TheirCompression::Snappy,
        Compression::Lz4 => TheirCompression::Lz4,
        Compression::Zstd => TheirCompression::Zstd,
    }
}

fn their_record(index: usize, producer: Producer, plain: &Plain) -> Record {
    let index = i32::try_from(index).unwrap();
    Record {
        transactional: false,
        control: false,
        partition_leader_epoch: -1,
        producer_id: producer.0,
        producer_epoch: producer.1,
        timestamp_type: TimestampType::Creation,
        offset: i64::from(index),
        sequence: producer.2 + index,
        timestamp: plain.timestamp_ms,
        key: plain.key.clone().map(Bytes::from),
        value: plain.value.clone().map(Bytes::from),
        headers: plain
            .headers
            .iter()
            .map(|(key, value)| {
                (StrBytes::from_string(key.clone()), value.clone().map(Bytes::from))
            })
            .collect(),
    }
}

fn encode_theirs(compression: Compression, records: &[Record]) -> Bytes {
    let options = RecordEncodeOptions { version: 2, compression: theirs(compression) };
    let mut encoded = BytesMut::new();
    RecordBatchEncoder::encode(&mut encoded, records, &options).unwrap();
    encoded.freeze()
}

fn their_records(producer: Producer, plain: &[Plain]) -> Vec<Record> {
    plain.iter().enumerate().map(|(index, plain)| their_record(index, producer, plain)).collect()
}

fn decode_theirs(batch: &Bytes) -> RecordSet {
    let mut rest = batch.clone();
    let set = RecordBatchDecoder::decode(&mut rest).unwrap();
    assert!(rest.is_empty());
    set
}

/// What our reader makes of a batch, checked to be at `base_offset` and on.
fn read_ours(batch: &Bytes, base_offset: i64) -> Vec<Plain> {
    let view = BatchView::parse(batch.clone()).unwrap();
    let mut plain = Vec::new();
    for (expected_offset, record) in (base_offset..).zip(view.records().unwrap()) {
        let record = record.unwrap();
        assert_eq!(record.offset, expected_offset);
        let header = |(key, value): (Bytes, Option<Bytes>)| {
            (String::from_utf8(key.to_vec()).unwrap(), value.map(Into::into))
        };
        plain.push(Plain {
            timestamp_ms: record.timestamp_ms,
            key: record.key.map(Into::into),
            value: record.value.map(Into::into),
            headers: record.headers.into_iter().map(header).collect(),
        });
    }
    plain
}

fn check(batch: &[u8]) -> Result<BatchHeader, BatchError> {
    validate(batch, ValidateDepth::Structure, &BatchLimits::default())
}

proptest! {
    #[test]
    fn what_we_build_they_read(
        compression in compressions(),
        producer in producers(),
        plain in records(),
    ) {
        let batch = build(compression, producer, &plain);
        let header = check(&batch).unwrap();
        prop_assert_eq!(header.is_idempotent(), producer.0 >= 0);
        let set = decode_theirs(&batch);
        prop_assert_eq!(set.compression, theirs(header.compression().unwrap()));
        // Where they count sequences on from "none", we do not look.
        prop_assert_eq!(set.records, their_records(producer, &plain));
        prop_assert_eq!(read_ours(&batch, 0), plain);
    }

    #[test]
    fn what_they_build_we_accept_and_read(
        compression in compressions(),
        producer in producers(),
        plain in records(),
    ) {
        let batch = encode_theirs(compression, &their_records(producer, &plain));
        let header = check(&batch).unwrap();
        prop_assert_eq!(header.compression().unwrap(), compression);
        prop_assert_eq!((header.producer_id, header.producer_epoch, header.base_sequence), producer);
        prop_assert_eq!(header.offset_span() as usize, plain.len());
        prop_assert_eq!(read_ours(&batch, 0), plain);
    }

    #[test]
    fn uncompressed_batches_are_equal_byte_for_byte(
        producer in producers(),
        mut plain in records(),
    ) {
        // They take the smallest timestamp as the base, we the first.
        plain.sort_by_key(|record| record.timestamp_ms);
        let ours = build(Compression::None, producer, &plain);
        prop_assert_eq!(ours, encode_theirs(Compression::None, &their_records(producer, &plain)));
    }

    #[test]
    fn stamped_batches_read_at_their_offsets_on_both_sides(
        compression in compressions(),
        base_offset in 0..i64::MAX / 2,
        epoch in 0..i32::MAX,
        plain in records(),
    ) {
        let batch = build(compression, NOBODY, &plain);
        let stamped = [&stamped_prefix(&batch, base_offset, epoch)[..], &batch[16..]].concat();
        let stamped = Bytes::from(stamped);
        prop_assert_eq!(read_ours(&stamped, base_offset), plain);
        let set = decode_theirs(&stamped);
        prop_assert_eq!(set.records[0].offset, base_offset);
        prop_assert_eq!(set.records[0].partition_leader_epoch, epoch);
    }
}

#[test]
fn every_codec_is_really_used_in_both_directions() {
    let text: Vec<u8> = (0..200_000_u32).flat_map(|n| (n / 7).to_string().into_bytes()).collect();
    let plain = [Plain {
        timestamp_ms: 1,
        key: None,
        value: Some(text[..900_000].to_vec()),
        headers: vec![],
    }];
    for compression in Compression::ALL {
        let ours = build(compression, NOBODY, &plain);
        let set = decode_theirs(&ours);
        assert_eq!(set.compression, theirs(compression));
        assert_eq!(set.records[0].value.as_deref(), plain[0].value.as_deref());
        let batch = encode_theirs(compression, &their_records(NOBODY, &plain));
        assert_eq!(check(&batch).unwrap().compression().unwrap(), compression);
        assert_eq!(read_ours(&batch, 0), plain);
    }
}

#[test]
fn their_transactional_and_control_batches_are_refused_but_readable() {
    let plain = Plain { timestamp_ms: 1, key: None, value: Some(vec![1]), headers: vec![] };
    for (transactional, control) in [(true, false), (false, true), (true, true)] {
        let record = Record { transactional, control, ..their_record(0, (4, 0, 0), &plain) };
        let batch = encode_theirs(Compression::None, &[record]);
        assert!(matches!(check(&batch), Err(BatchError::ForbiddenAttributes(_))));
        let view = BatchView::parse(batch.clone()).unwrap();
        assert_eq!(view.header().is_transactional(), transactional);
        assert_eq!(view.header().is_control(), control);
        assert_eq!(read_ours(&batch, 0), std::slice::from_ref(&plain));
    }
}

#[test]
fn a_batch_with_gaps_as_compaction_leaves_them_is_readable_but_not_publishable() {
    let plain = Plain { timestamp_ms: 1, key: Some(vec![1]), value: None, headers: vec![] };
    let at = |index: usize| their_record(index, NOBODY, &plain);
    let batch = encode_theirs(Compression::Zstd, &[at(0), at(3), at(9)]);
    let offsets: Vec<i64> = BatchView::parse(batch.clone())
        .unwrap()
        .records()
        .unwrap()
        .map(|record| record.unwrap().offset)
        .collect();
    assert_eq!(offsets, [0, 3, 9]);
    assert!(matches!(check(&batch), Err(BatchError::InvalidField { field: "record count", .. })));
}
