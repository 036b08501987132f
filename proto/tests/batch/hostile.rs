//! Damaged and lying batches: every answer is an error or right, and none is a panic.

use bytes::Bytes;
use highwater_proto::batch::{
    BatchError, BatchHeader, BatchLimits, BatchView, Compression, HEADER_BYTES, ValidateDepth,
    restamp_producer, validate,
};
use proptest::prelude::*;

use super::{NOBODY, Plain, batch_around, build, compressions, records, reseal};

fn check(batch: &[u8]) -> Result<BatchHeader, BatchError> {
    validate(batch, ValidateDepth::Structure, &BatchLimits::default())
}

/// A small batch with one of everything; compressible, so that each codec is used.
fn small(compression: Compression) -> Bytes {
    let record = |timestamp_ms, key: Option<&[u8]>, value: Option<&[u8]>| Plain {
        timestamp_ms,
        key: key.map(Into::into),
        value: value.map(Into::into),
        headers: vec![("h".into(), Some(vec![1; 40])), ("n".into(), None)],
    };
    let records = [
        record(500, Some(b"key"), Some(&[b'v'; 90])),
        record(-400, None, Some(b"")),
        record(70_000, Some(b""), None),
    ];
    let batch = build(compression, (3, 1, 5), &records);
    assert_eq!(check(&batch).unwrap().compression().unwrap(), compression);
    batch
}

/// What every reader must be able to rely on: a validated batch is readable to its end, and any other bytes give errors.
fn run_all(bytes: &[u8]) {
    let validated = check(bytes);
    let _ = validate(bytes, ValidateDepth::Header, &BatchLimits::default());
    let _ = restamp_producer(bytes, 1, 1, 1);
    let view = BatchView::parse(Bytes::copy_from_slice(bytes));
    let Ok(view) = view else {
        assert!(validated.is_err(), "what cannot be parsed must not be valid");
        return;
    };
    let Ok(records) = view.records() else {
        assert!(validated.is_err(), "what cannot be decompressed must not be valid");
        return;
    };
    let mut read = 0_i64;
    for record in records {
        match record {
            Ok(_) => read += 1,
            Err(_) => assert!(validated.is_err(), "what cannot be read must not be valid"),
        }
    }
    if let Ok(header) = validated {
        assert_eq!(read, i64::from(header.record_count));
    }
}

#[test]
fn every_truncation_is_an_error() {
    for compression in Compression::ALL {
        let batch = small(compression);
        for end in 0..batch.len() {
            let cut = &batch[..end];
            assert!(matches!(check(cut), Err(BatchError::Truncated { .. })), "{compression} {end}");
            run_all(cut);
        }
    }
}

#[test]
fn every_truncation_with_a_matching_length_and_checksum_is_an_error() {
    for compression in Compression::ALL {
        let batch = small(compression);
        for end in HEADER_BYTES..batch.len() {
            let mut cut = batch[..end].to_vec();
            reseal(&mut cut);
            run_all(&cut);
            // The end mark of an lz4 frame adds nothing to the records; all other cuts lose some.
            if compression != Compression::Lz4 || end < batch.len() - 4 {
                assert!(check(&cut).is_err(), "{compression} {end}");
            }
        }
    }
}

#[test]
fn every_changed_byte_is_an_error_but_for_what_the_leader_stamps() {
    for compression in Compression::ALL {
        let batch = small(compression);
        for at in 0..batch.len() {
            for change in 1..=255_u8 {
                let mut changed = batch.to_vec();
                changed[at] ^= change;
                let stamped_over = matches!(at, 0..8 | 12..16);
                assert_eq!(check(&changed).is_ok(), stamped_over, "{compression} {at} {change}");
            }
        }
    }
}

#[test]
fn every_changed_byte_with_a_matching_checksum_is_an_error_or_readable() {
    for compression in Compression::ALL {
        let batch = small(compression);
        for at in 16..batch.len() {
            for change in [1, 2, 4, 8, 16, 32, 64, 128, 255] {
                let mut changed = batch.to_vec();
                changed[at] ^= change;
                reseal(&mut changed);
                run_all(&changed);
            }
        }
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_errors(mut bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        run_all(&bytes);
        prop_assert!(check(&bytes).is_err());
        // With everything before the records in order, the records are reached.
        if bytes.len() > HEADER_BYTES {
            bytes[16] = 2;
            bytes[21..23].fill(0);
            reseal(&mut bytes);
            run_all(&bytes);
        }
    }

    #[test]
    fn arbitrary_record_bytes_are_errors_or_readable(
        compression in compressions(),
        count in prop_oneof![1..5_u32, 0..=u32::MAX],
        body in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        run_all(&batch_around(compression, count, &body));
    }

    #[test]
    fn damage_anywhere_with_a_matching_checksum_is_an_error_or_readable(
        compression in compressions(),
        plain in records(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
    ) {
        let mut batch = build(compression, NOBODY, &plain).to_vec();
        for (at, byte) in damage {
            let at = at.index(batch.len());
            batch[at] = byte;
        }
        batch[16] = 2;
        reseal(&mut batch);
        run_all(&batch);
    }
}

/// The varint of `value`, the plain way.
fn varint(value: i64) -> Vec<u8> {
    let mut rest = ((value << 1) ^ (value >> 63)).cast_unsigned();
    let mut bytes = Vec::new();
    loop {
        let byte = (rest & 0x7f) as u8;
        rest >>= 7;
        if rest == 0 {
            bytes.push(byte);
            return bytes;
        }
        bytes.push(byte | 0x80);
    }
}

/// A record of the given parts behind a true length.
fn record(parts: &[&[u8]]) -> Vec<u8> {
    let body = parts.concat();
    [varint(i64::try_from(body.len()).unwrap()), body].concat()
}

#[test]
fn lying_record_fields_are_named() {
    let huge = varint(i64::from(i32::MAX));
    let beyond = varint(i64::from(i32::MAX) + 1);
    let negative = varint(-2);
    let start: &[u8] = &[0, 0, 0];
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("it ends early", vec![]),
        ("it ends early", huge.clone()),
        ("it ends early", [varint(8), vec![0; 7]].concat()),
        ("its length is negative", [varint(-1), vec![0; 7]].concat()),
        ("a variable-length integer is too long", beyond.clone()),
        ("a variable-length integer is too long", vec![0xff; 20]),
        ("a variable-length integer is too long", record(&[&[0], &[0xff; 11], &[0; 5]])),
        ("it ends early", record(&[&[0, 0x80]])),
        ("it has unknown attribute bits", record(&[&[1, 0, 0, 1, 1, 0]])),
        ("its offset delta is not its position in the batch", record(&[&[0, 0, 2, 1, 1, 0]])),
        ("its offset delta is not its position in the batch", record(&[&[0, 0, 1, 1, 1, 0]])),
        ("it ends early", record(&[start, &huge, &[1, 0]])),
        ("a length is negative", record(&[start, &negative, &[1, 0]])),
        ("it ends early", record(&[start, &[1], &huge, &[0]])),
        ("a length is negative", record(&[start, &[1], &negative, &[0]])),
        ("a variable-length integer is too long", record(&[start, &[1, 1], &beyond])),
        ("its header count is negative", record(&[start, &[1, 1], &negative])),
        ("it ends early", record(&[start, &[1, 1], &varint(4096)])),
        ("a header has no key", record(&[start, &[1, 1, 2, 1, 1]])),
        ("it ends early", record(&[start, &[1, 1, 2], &huge, &[1]])),
        ("it ends early", record(&[start, &[1, 1, 2, 0], &huge])),
        ("a length is negative", record(&[start, &[1, 1, 2, 0], &negative])),
        ("a header key is not UTF-8", record(&[start, &[1, 1, 2, 2, 0xff, 1]])),
        ("bytes follow its last header", record(&[start, &[1, 1, 0, 9]])),
        ("bytes follow its last header", record(&[start, &[1, 1, 2, 0, 1, 9]])),
    ];
    for (expected, body) in cases {
        let batch = batch_around(Compression::None, 1, &body);
        run_all(&batch);
        match check(&batch) {
            Err(BatchError::InvalidRecord { index: 0, problem }) => {
                assert_eq!(problem, expected, "{body:?}");
            }
            other => panic!("{expected}: {other:?}"),
        }
    }
}

#[test]
fn header_counts_beyond_the_limit_are_refused_before_they_are_believed() {
    for count in [4097, i64::from(i32::MAX)] {
        let batch =
            batch_around(Compression::None, 1, &record(&[&[0, 0, 0, 1, 1], &varint(count)]));
        assert!(matches!(check(&batch), Err(BatchError::TooManyHeaders { index: 0, .. })));
        run_all(&batch);
    }
}

#[test]
fn counts_that_are_not_those_of_the_records_are_refused() {
    let one = record(&[&[0, 0, 0, 1, 1, 0]]);
    let two = [one.clone(), record(&[&[0, 0, 2, 1, 1, 0]])].concat();
    assert!(check(&batch_around(Compression::None, 1, &one)).is_ok());
    assert!(check(&batch_around(Compression::None, 2, &two)).is_ok());
    let fewer = check(&batch_around(Compression::None, 1, &two));
    assert!(matches!(fewer, Err(BatchError::TrailingRecordBytes { extra: 7 })));
    for count in [3, 1_000_000] {
        let more = batch_around(Compression::None, count, &two);
        assert!(matches!(check(&more), Err(BatchError::InvalidRecord { index: 2, .. })));
        run_all(&more);
    }
    // Two records at the same offset.
    let twice = [one.clone(), one].concat();
    let refused = batch_around(Compression::None, 2, &twice);
    assert!(matches!(check(&refused), Err(BatchError::InvalidRecord { index: 1, .. })));
    let read: Vec<_> = BatchView::parse(refused.into()).unwrap().records().unwrap().collect();
    assert!(matches!(read[..], [Ok(_), Err(BatchError::InvalidRecord { index: 1, .. })]));
}

#[test]
fn one_byte_behind_the_last_record_is_an_error_for_validation_and_for_readers() {
    let mut body = record(&[&[0, 0, 0, 1, 1, 0]]);
    body.push(0);
    let batch = batch_around(Compression::None, 1, &body);
    assert!(matches!(check(&batch), Err(BatchError::TrailingRecordBytes { extra: 1 })));
    let mut records = BatchView::parse(batch.into()).unwrap().records().unwrap();
    assert!(matches!(records.next(), Some(Ok(_))));
    assert!(matches!(records.next(), Some(Err(BatchError::TrailingRecordBytes { extra: 1 }))));
    assert!(records.next().is_none());
}
