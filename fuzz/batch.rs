//! What the fuzz target of the batch codec runs, shared with the test that replays its corpus.

use bytes::Bytes;
use highwater_proto::batch::{BatchLimits, BatchView, ValidateDepth, validate};

/// Panics if the codec accepts what it then cannot read. Any bytes will do; they are tried as they are and
/// with length, format and checksum put right.
pub(crate) fn decode(data: &[u8]) {
    check(data);
    let mut sealed = data.to_vec();
    if sealed.len() < 61 {
        return;
    }
    let length = u32::try_from(sealed.len() - 12).unwrap_or(0);
    sealed[8..12].copy_from_slice(&length.to_be_bytes());
    sealed[16] = 2;
    let crc = crc32c::crc32c(&sealed[21..]);
    sealed[17..21].copy_from_slice(&crc.to_be_bytes());
    check(&sealed);
}

fn check(data: &[u8]) {
    // Small, so that a bomb costs the fuzzer little time.
    let limits = BatchLimits { decompressed_bytes_max: 64 << 10, ..BatchLimits::default() };
    let shallow = validate(data, ValidateDepth::Header, &limits);
    let deep = validate(data, ValidateDepth::Structure, &limits);
    if let Ok(header) = &deep {
        let shallow = shallow.expect("what is valid in depth is valid on the surface");
        assert_eq!(shallow.record_count, header.record_count);
    }
    let Ok(view) = BatchView::parse(Bytes::copy_from_slice(data)) else {
        assert!(deep.is_err(), "a valid batch can be viewed");
        return;
    };
    let Ok(records) = view.records() else {
        assert!(deep.is_err(), "a valid batch has records");
        return;
    };
    let count = records.take_while(Result::is_ok).count();
    if let Ok(header) = deep {
        assert_eq!(i64::try_from(count).ok(), Some(i64::from(header.record_count)));
    }
}
