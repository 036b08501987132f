//! Unit tests of the codec: golden bytes, the builder's limits and reuse, rewrites of the header, what validation
//! refuses. Properties against another implementation and hostile bytes are in `tests/batch`.

use bytes::Bytes;

use super::*;

const STRUCTURE: ValidateDepth = ValidateDepth::Structure;

fn check(batch: &[u8]) -> Result<BatchHeader, BatchError> {
    validate(batch, STRUCTURE, &BatchLimits::default())
}

fn one_record(value: &[u8]) -> Bytes {
    let mut builder = BatchBuilder::new(Compression::None);
    builder.push(1_000, Some(b"k"), Some(value), &[]).unwrap();
    builder.build().unwrap()
}

/// `batch` with a changed header and a checksum to match.
fn with_header(batch: &[u8], change: impl FnOnce(&mut BatchHeader)) -> Vec<u8> {
    let mut header = BatchHeader::read(batch).unwrap();
    change(&mut header);
    let mut copy = batch.to_vec();
    header::seal(&mut copy, &header);
    copy
}

/// Every byte of a batch of two records, worked out by hand from the format; the checksum by another implementation.
#[test]
fn a_small_batch_has_these_bytes() {
    let mut builder = BatchBuilder::new(Compression::None);
    builder.set_producer(9, 1, 70);
    builder.push(1_000, Some(b"k1"), Some(b"one"), &[("h", Some(b"x")), ("n", None)]).unwrap();
    builder.push(935, None, None, &[]).unwrap();
    #[rustfmt::skip]
    let golden: &[u8] = &[
        0, 0, 0, 0, 0, 0, 0, 0, // base offset
        0, 0, 0, 76, // batch length
        0xff, 0xff, 0xff, 0xff, // leader epoch -1
        2, // magic
        0x3f, 0x0d, 0xac, 0x98, // CRC-32C
        0, 0, // attributes
        0, 0, 0, 1, // last offset delta
        0, 0, 0, 0, 0, 0, 0x03, 0xe8, // base timestamp 1000
        0, 0, 0, 0, 0, 0, 0x03, 0xe8, // max timestamp 1000
        0, 0, 0, 0, 0, 0, 0, 9, // producer id
        0, 1, // producer epoch
        0, 0, 0, 70, // base sequence
        0, 0, 0, 2, // record count
        36, 0, 0, 0, 4, b'k', b'1', 6, b'o', b'n', b'e', 4, 2, b'h', 2, b'x', 2, b'n', 1,
        14, 0, 0x81, 0x01, 2, 1, 1, 0, // timestamp delta -65 takes two bytes
    ];
    let built = builder.build().unwrap();
    assert_eq!(&built[..], golden);
    let header = check(golden).unwrap();
    assert_eq!((header.offset_span(), header.last_sequence(), header.total_bytes()), (2, 71, 88));
    assert_eq!(header.to_bytes(), golden[..HEADER_BYTES]);
    let records: Vec<RecordView> =
        BatchView::parse(built).unwrap().records().unwrap().map(|record| record.unwrap()).collect();
    assert_eq!(records[0].headers.len(), 2);
    assert_eq!(records[0].payload_bytes(), 2 + 3 + 2 + 1);
    assert_eq!((records[1].offset, records[1].timestamp_ms), (1, 935));
    assert_eq!((&records[1].key, &records[1].value), (&None, &None));
}

#[test]
fn a_stamped_batch_keeps_its_checksum_and_reads_at_its_new_offsets() {
    let batch = one_record(b"value");
    let mut stamped = batch.to_vec();
    let prefix = stamped_prefix(&batch, 5_000_000_000, 7);
    stamped[..16].copy_from_slice(&prefix);
    assert_eq!(stamped_checksum(&prefix, &batch), crc32c::crc32c(&stamped));
    let view = BatchView::parse(Bytes::from(stamped)).unwrap();
    assert_eq!((view.header().base_offset, view.header().leader_epoch), (5_000_000_000, 7));
    assert_eq!(view.records().unwrap().next().unwrap().unwrap().offset, 5_000_000_000);
    assert_eq!(view.bytes()[16..], batch[16..]);
}

#[test]
fn restamping_changes_the_producer_and_nothing_else() {
    let mut builder = BatchBuilder::new(Compression::Zstd);
    builder.set_producer(1, 0, 12);
    builder.push(5, None, Some(&[7; 5000]), &[]).unwrap();
    let batch = builder.build().unwrap();
    let restamped = restamp_producer(&batch, 2, 3, 0).unwrap();
    let header = check(&restamped).unwrap();
    assert_eq!((header.producer_id, header.producer_epoch, header.base_sequence), (2, 3, 0));
    assert_eq!(restamp_producer(&restamped, 1, 0, 12).unwrap(), batch);

    let mut damaged = batch.to_vec();
    *damaged.last_mut().unwrap() ^= 1;
    let refused = restamp_producer(&damaged, 2, 3, 0);
    assert!(matches!(refused, Err(BatchError::ChecksumMismatch { .. })));
}

#[test]
fn sequences_go_on_at_zero_after_the_largest() {
    assert_eq!(sequence_add(0, 5), 5);
    assert_eq!(sequence_add(i32::MAX, 1), 0);
    assert_eq!(sequence_add(i32::MAX - 2, 5), 2);
    let mut builder = BatchBuilder::new(Compression::None);
    builder.set_producer(1, 0, i32::MAX);
    for expected in [i32::MAX, 1] {
        builder.push(0, None, None, &[]).unwrap();
        builder.push(0, None, None, &[]).unwrap();
        let header = check(&builder.build().unwrap()).unwrap();
        assert_eq!(header.base_sequence, expected);
    }
}

#[test]
fn a_builder_is_reused_without_traces_of_the_last_batch() {
    for compression in Compression::ALL {
        let mut builder = BatchBuilder::with_capacity(compression, 1 << 16);
        let mut built = Vec::new();
        for value in [&[1_u8; 40_000][..], &[2; 100], &[3; 60_000], &[1; 40_000]] {
            assert!(builder.is_empty());
            assert_eq!(builder.estimated_bytes(), HEADER_BYTES);
            builder.push(50, None, Some(value), &[]).unwrap();
            assert!(!builder.is_empty());
            assert_eq!(builder.record_count(), 1);
            let batch = builder.build().unwrap();
            let view = BatchView::parse(batch.clone()).unwrap();
            let records: Vec<_> = view.records().unwrap().map(|record| record.unwrap()).collect();
            assert_eq!(records.len(), 1);
            assert_eq!(records[0].value.as_deref(), Some(value));
            built.push(batch);
        }
        assert_eq!(built[0], built[3]);
        assert!(matches!(builder.build(), Err(BatchError::Empty)));
    }
}

#[test]
fn compression_is_used_where_it_helps_and_only_there() {
    for compression in Compression::ALL {
        let mut builder = BatchBuilder::new(compression);
        builder.push(0, None, Some(&[0; 100_000]), &[]).unwrap();
        let batch = builder.build().unwrap();
        let header = check(&batch).unwrap();
        assert_eq!(header.compression().unwrap(), compression);
        assert_eq!(batch.len() < 10_000, compression != Compression::None, "{compression}");

        builder.push(0, None, Some(b"x"), &[]).unwrap();
        let header = check(&builder.build().unwrap()).unwrap();
        assert_eq!(header.compression().unwrap(), Compression::None);
    }
}

#[test]
fn a_refused_push_leaves_the_builder_as_it_was() {
    let mut builder = BatchBuilder::new(Compression::None);
    builder.push(0, Some(b"a"), Some(b"1"), &[]).unwrap();
    let mut twin = BatchBuilder::new(Compression::None);
    twin.push(0, Some(b"a"), Some(b"1"), &[]).unwrap();

    let too_large = vec![0; RECORD_BYTES_MAX + 1];
    let refused = builder.push(9, None, Some(&too_large), &[]);
    assert!(matches!(refused, Err(BatchError::RecordTooLarge { index: 1, bytes: 1_048_577, .. })));
    let headers = vec![("", None); RECORD_HEADERS_MAX as usize + 1];
    let refused = builder.push(9, None, None, &headers);
    assert!(matches!(refused, Err(BatchError::TooManyHeaders { index: 1, headers: 4097, .. })));
    builder.push(i64::MAX, None, None, &[]).unwrap();
    twin.push(i64::MAX, None, None, &[]).unwrap();
    let refused = builder.push(i64::MIN, None, None, &[]);
    assert!(refused.is_ok(), "a delta of i64::MIN from a base of 0 can be written");
    twin.push(i64::MIN, None, None, &[]).unwrap();
    assert_eq!(builder.build().unwrap(), twin.build().unwrap());

    builder.push(1, None, None, &[]).unwrap();
    let refused = builder.push(i64::MIN, None, None, &[]);
    assert!(matches!(refused, Err(BatchError::TimestampOutOfRange { .. })));
    assert_eq!(builder.record_count(), 1);
}

#[test]
fn the_largest_record_fits_and_passes() {
    let mut builder = BatchBuilder::new(Compression::Lz4);
    let headers = vec![("", None); RECORD_HEADERS_MAX as usize];
    builder.push(0, None, Some(&vec![b'x'; RECORD_BYTES_MAX]), &headers).unwrap();
    check(&builder.build().unwrap()).unwrap();
}

#[test]
fn a_full_builder_says_so_and_what_it_holds_passes() {
    let mut builder = BatchBuilder::new(Compression::None);
    let value = vec![b'x'; 1 << 20];
    let mut pushed = 0;
    let full = loop {
        match builder.push(0, None, Some(&value), &[]) {
            Ok(()) => pushed += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(full, BatchError::BatchTooLarge { bytes_max: BATCH_BYTES_MAX, .. }));
    assert!(full.is_over_limit());
    let batch = builder.build().unwrap();
    assert_eq!((pushed, check(&batch).unwrap().record_count), (3, 3));

    builder.set_limits(BatchLimits { records_max: 2, ..BatchLimits::default() });
    builder.push(0, None, None, &[]).unwrap();
    builder.push(0, None, None, &[]).unwrap();
    let full = builder.push(0, None, None, &[]);
    assert!(matches!(full, Err(BatchError::TooManyRecords { records: 3, records_max: 2 })));
}

#[test]
fn validation_holds_batches_to_the_limits_it_is_given() {
    let limits = BatchLimits {
        record_bytes_max: 10,
        batch_bytes_max: 100,
        decompressed_bytes_max: 5_000,
        records_max: 2,
        ..BatchLimits::default()
    };
    let check = |batch: &[u8]| validate(batch, STRUCTURE, &limits);
    check(&one_record(b"123456789")).unwrap();
    let refused = check(&one_record(b"1234567890"));
    assert!(matches!(refused, Err(BatchError::RecordTooLarge { bytes: 11, bytes_max: 10, .. })));
    let refused = check(&one_record(&[0; 40]));
    assert!(matches!(refused, Err(BatchError::BatchTooLarge { bytes: 109, bytes_max: 100 })));

    let mut builder = BatchBuilder::new(Compression::Zstd);
    builder.push(0, None, Some(&[0; 5_000]), &[]).unwrap();
    let refused = check(&builder.build().unwrap());
    assert!(matches!(refused, Err(BatchError::DecompressedTooLarge { bytes_max: 5_000 })));

    let mut builder = BatchBuilder::new(Compression::None);
    (0..3).for_each(|_| builder.push(0, None, None, &[]).unwrap());
    let refused = check(&builder.build().unwrap());
    assert!(matches!(refused, Err(BatchError::TooManyRecords { records: 3, records_max: 2 })));
}

#[test]
fn attributes_that_clients_may_not_set_are_refused() {
    let batch = one_record(b"v");
    for bit in 3..16 {
        let changed = with_header(&batch, |header| header.attributes |= 1_i16 << bit);
        let refused = validate(&changed, ValidateDepth::Header, &BatchLimits::default());
        assert!(matches!(refused, Err(BatchError::ForbiddenAttributes(bits)) if bits == 1 << bit));
        // What a broker may have stored is readable all the same.
        let view = BatchView::parse(Bytes::from(changed)).unwrap();
        assert_eq!(view.records().unwrap().count(), 1);
    }
    for codec in 5..8 {
        let changed = with_header(&batch, |header| header.attributes = codec);
        assert!(matches!(check(&changed), Err(BatchError::UnknownCompression(it)) if it == codec));
        let view = BatchView::parse(Bytes::from(changed)).unwrap();
        assert!(matches!(view.records(), Err(BatchError::UnknownCompression(_))));
    }
}

#[test]
fn append_time_replaces_the_records_own_timestamps() {
    let changed = with_header(&one_record(b"v"), |header| {
        header.attributes |= 1 << 3;
        header.max_timestamp_ms = 77;
    });
    let view = BatchView::parse(Bytes::from(changed)).unwrap();
    assert_eq!(view.records().unwrap().next().unwrap().unwrap().timestamp_ms, 77);
}

#[test]
fn header_fields_that_contradict_each_other_are_refused_at_either_depth() {
    let batch = one_record(b"v");
    type Change = fn(&mut BatchHeader);
    let cases: [(&str, Change); 9] = [
        ("record count", |header| header.record_count = 2),
        ("record count", |header| header.last_offset_delta = 1),
        ("record count", |header| header.last_offset_delta = i32::MAX),
        ("record count", |header| header.record_count = -1),
        ("last offset delta", |header| header.last_offset_delta = -1),
        ("max timestamp", |header| header.max_timestamp_ms = 999),
        ("producer id", |header| header.producer_id = -2),
        ("producer epoch", |header| header.producer_id = 1),
        ("base sequence", |header| (header.producer_id, header.producer_epoch) = (1, 0)),
    ];
    for (expected, change) in cases {
        let changed = with_header(&batch, change);
        for depth in [ValidateDepth::Header, STRUCTURE] {
            match validate(&changed, depth, &BatchLimits::default()) {
                Err(BatchError::InvalidField { field, .. }) => assert_eq!(field, expected),
                other => panic!("{expected}: {other:?}"),
            }
        }
    }
    let none = with_header(&batch, |header| header.record_count = 0);
    assert!(matches!(check(&none), Err(BatchError::Empty)));
    let many = with_header(&batch, |header| header.record_count = 1_000_001);
    assert!(matches!(check(&many), Err(BatchError::TooManyRecords { .. })));
}

#[test]
fn a_max_timestamp_that_no_record_has_is_refused() {
    let lying = with_header(&one_record(b"v"), |header| header.max_timestamp_ms = 1_001);
    let refused = check(&lying);
    assert!(matches!(
        refused,
        Err(BatchError::MaxTimestampMismatch { stated: 1_001, actual: 1_000 })
    ));
}

#[test]
fn timestamps_that_overflow_are_refused() {
    let mut builder = BatchBuilder::new(Compression::None);
    builder.push(0, None, None, &[]).unwrap();
    builder.push(1, None, None, &[]).unwrap();
    let lying = with_header(&builder.build().unwrap(), |header| {
        header.base_timestamp_ms = i64::MAX;
        header.max_timestamp_ms = i64::MAX;
    });
    assert!(matches!(check(&lying), Err(BatchError::InvalidRecord { index: 1, .. })));
    let records: Vec<_> = BatchView::parse(lying.into()).unwrap().records().unwrap().collect();
    assert!(matches!(records[..], [Ok(_), Err(BatchError::InvalidRecord { index: 1, .. })]));
}

#[test]
fn exactly_one_batch_is_taken() {
    let batch = one_record(b"v");
    let two = [&batch[..], &batch[..]].concat();
    let extra = batch.len();
    assert!(matches!(check(&two), Err(BatchError::TrailingBytes { extra: it }) if it == extra));
    // The header alone can be read off the front of a longer run of batches.
    assert_eq!(BatchHeader::read(&two).unwrap().total_bytes(), batch.len());
    assert!(matches!(check(b""), Err(BatchError::Truncated { have: 0, need: HEADER_BYTES })));
}

#[test]
fn older_formats_are_named_even_where_they_are_shorter_than_a_header() {
    for magic in [0_u8, 1, 3, 0xff] {
        let mut old = vec![0; 34];
        old[16] = magic;
        let refused = check(&old);
        assert!(
            matches!(refused, Err(BatchError::UnsupportedMagic(it)) if it == magic.cast_signed())
        );
    }
}

#[test]
fn reading_does_not_copy_uncompressed_records() {
    let batch = one_record(b"value");
    let range = batch.as_ptr_range();
    let view = BatchView::parse(batch).unwrap();
    let value = view.records().unwrap().next().unwrap().unwrap().value.unwrap();
    assert!(range.contains(&value.as_ptr()));
}
