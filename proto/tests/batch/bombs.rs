//! Compressed data that lies about its size, or tells the truth about far too much of it.

use std::io::Write;

use bytes::Bytes;
use highwater_proto::batch::{
    BATCH_BYTES_MAX, BatchError, BatchLimits, BatchView, Compression, DECOMPRESSED_BYTES_MAX,
    ValidateDepth, validate,
};

use super::batch_around;

const XERIAL_HEADER: &[u8] = b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01";

/// Validates and reads a batch around `body`; both must refuse it alike.
fn refusal(compression: Compression, body: &[u8]) -> BatchError {
    let batch = batch_around(compression, 1, body);
    assert!(batch.len() <= BATCH_BYTES_MAX, "the bomb must pass the limit on encoded bytes");
    let refused = validate(&batch, ValidateDepth::Structure, &BatchLimits::default()).unwrap_err();
    let view = BatchView::parse(Bytes::from(batch)).unwrap();
    let unread = view.records().unwrap_err();
    assert_eq!(std::mem::discriminant(&refused), std::mem::discriminant(&unread));
    refused
}

fn compress(compression: Compression, data: &[u8]) -> Vec<u8> {
    match compression {
        Compression::None => data.to_vec(),
        Compression::Gzip => {
            let level = flate2::Compression::fast();
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
            encoder.write_all(data).unwrap();
            encoder.finish().unwrap()
        }
        Compression::Snappy => snap::raw::Encoder::new().compress_vec(data).unwrap(),
        Compression::Lz4 => {
            let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::new());
            encoder.write_all(data).unwrap();
            encoder.finish().unwrap()
        }
        Compression::Zstd => zstd::bulk::compress(data, 1).unwrap(),
    }
}

const CODECS: [Compression; 4] =
    [Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd];

#[test]
fn more_than_the_limit_is_refused_by_every_codec_and_the_limit_itself_is_not() {
    let zeros = vec![0; DECOMPRESSED_BYTES_MAX + 1];
    for compression in CODECS {
        let error = refusal(compression, &compress(compression, &zeros));
        assert!(
            matches!(error, BatchError::DecompressedTooLarge { bytes_max: DECOMPRESSED_BYTES_MAX }),
            "{compression}: {error:?}"
        );
        // Zero bytes as records have length zero: read, and found wanting.
        let batch = batch_around(compression, 1, &compress(compression, &zeros[1..]));
        let refused = validate(&batch, ValidateDepth::Structure, &BatchLimits::default());
        assert!(matches!(refused, Err(BatchError::InvalidRecord { .. })), "{compression}");
    }
}

#[test]
fn snappy_blocks_that_add_up_to_too_much_are_refused() {
    let block = compress(Compression::Snappy, &vec![0; 1 << 20]);
    let length = u32::try_from(block.len()).unwrap().to_be_bytes();
    let mut body = XERIAL_HEADER.to_vec();
    for _ in 0..33 {
        body.extend_from_slice(&length);
        body.extend_from_slice(&block);
    }
    let error = refusal(Compression::Snappy, &body);
    assert!(matches!(error, BatchError::DecompressedTooLarge { .. }), "{error:?}");
}

#[test]
fn concatenated_frames_do_not_get_around_the_limit() {
    let part = vec![0; DECOMPRESSED_BYTES_MAX / 2 + 1];
    for compression in [Compression::Gzip, Compression::Zstd] {
        let frame = compress(compression, &part);
        let error = refusal(compression, &[&frame[..], &frame[..]].concat());
        assert!(matches!(error, BatchError::DecompressedTooLarge { .. }), "{error:?}");
    }
    let frame = compress(Compression::Lz4, &part);
    let error = refusal(Compression::Lz4, &[&frame[..], &frame[..]].concat());
    assert!(matches!(error, BatchError::Decompress { .. }), "{error:?}");
}

#[test]
fn sizes_that_compressed_data_merely_states_are_not_believed() {
    // A raw snappy block that says 4 GiB - 1, one that says 1 MiB, and a framed one.
    let four_gib: &[u8] = &[0xff, 0xff, 0xff, 0xff, 0x0f, 0];
    let one_mib: &[u8] = &[0x80, 0x80, 0x40, 0];
    let framed = [XERIAL_HEADER, &[0, 0, 0, 4], one_mib].concat();
    let framed_length = [XERIAL_HEADER, &[0xff, 0xff, 0xff, 0xff], one_mib].concat();
    let cases: [(&[u8], &str); 5] = [
        (four_gib, "a snappy block cannot be as large as it says"),
        (one_mib, "a snappy block cannot be as large as it says"),
        (&framed, "a snappy block cannot be as large as it says"),
        (&framed_length, "a snappy block is cut"),
        (&XERIAL_HEADER[..9], "the snappy header is cut"),
    ];
    for (body, expected) in cases {
        match refusal(Compression::Snappy, body) {
            // The text tells that the refusal came before the allocation.
            BatchError::Decompress { source, .. } => assert_eq!(source.to_string(), expected),
            other => panic!("{expected}: {other:?}"),
        }
    }
    // A zstd frame with a content size of 2^56 bytes and then one raw block of one byte; the same with a window of
    // more than a TiB instead.
    let magic: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
    let block: &[u8] = &[9, 0, 0, 7];
    let content_size = [magic, &[0xe0], &[0, 0, 0, 0, 0, 0, 0, 1], block].concat();
    let window = [magic, &[0x00, 0xff], block].concat();
    for body in [content_size, window] {
        let batch = batch_around(Compression::Zstd, 1, &body);
        let refused = validate(&batch, ValidateDepth::Structure, &BatchLimits::default());
        assert!(refused.is_err(), "{body:?}");
    }
    // An lz4 frame of one zero byte that states a content size of 2^56 bytes.
    let info = lz4_flex::frame::FrameInfo::new().content_size(Some(1));
    let mut encoder = lz4_flex::frame::FrameEncoder::with_frame_info(info, Vec::new());
    encoder.write_all(&[0]).unwrap();
    let mut frame = encoder.finish().unwrap();
    frame[13] = 1;
    let error = refusal(Compression::Lz4, &frame);
    assert!(matches!(error, BatchError::Decompress { .. }), "{error:?}");
}

#[test]
fn bytes_behind_compressed_data_are_refused() {
    // One record without key, value and headers.
    let record = [12, 0, 0, 0, 1, 1, 0];
    for compression in CODECS {
        let body = compress(compression, &record);
        let batch = batch_around(compression, 1, &body);
        validate(&batch, ValidateDepth::Structure, &BatchLimits::default()).unwrap();
        let error = refusal(compression, &[&body[..], b"x"].concat());
        assert!(matches!(error, BatchError::Decompress { .. }), "{compression}: {error:?}");
    }
}

#[test]
fn no_compressed_data_at_all_is_refused_by_every_codec() {
    for compression in CODECS {
        let batch = batch_around(compression, 1, b"");
        let refused = validate(&batch, ValidateDepth::Structure, &BatchLimits::default());
        assert!(refused.is_err(), "{compression}");
    }
}
