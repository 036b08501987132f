//! The two fixed-size headers on disk: of a frame and of a segment. Little endian, checksummed.
//!
//! Decoding accepts any bytes. Knows nothing of files.

use super::types::{EntryMeta, LogStart};

/// Bytes of a frame before its payload.
pub(super) const FRAME_HEADER_BYTES: usize = 80;
/// Bytes of a segment before its first frame. Below one sector, so that it is written whole or not at all.
pub(super) const SEGMENT_HEADER_BYTES: usize = 128;

const FRAME_MAGIC: u32 = u32::from_le_bytes(*b"HWfr");
const SEGMENT_MAGIC: [u8; 8] = *b"HWSEGMT\0";
const SEGMENT_VERSION: u32 = 1;
const FLAG_RESETS: u32 = 1;
const FLAG_RECYCLED: u32 = 2;

const _: () = assert!(FRAME_HEADER_BYTES.is_multiple_of(8));
const _: () = assert!(SEGMENT_HEADER_BYTES.is_multiple_of(8) && SEGMENT_HEADER_BYTES <= 512);

/// The finishing function of SplitMix64: spreads the bits of `value` over the result.
pub(crate) fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

/// What the frames of one segment carry, so that bytes of any other segment never pass for its own.
pub(super) fn segment_identity(log_identity: u64, sequence: u64) -> u64 {
    mix(log_identity ^ mix(sequence))
}

/// Bytes of a frame with a payload of `payload_len`: frames start at multiples of 8.
pub(super) fn frame_bytes(payload_len: u64) -> u64 {
    (FRAME_HEADER_BYTES as u64 + payload_len).next_multiple_of(8)
}

/// Zeroes that fill a frame up to a multiple of 8.
pub(super) fn padding(payload_len: usize) -> &'static [u8] {
    &[0; 8][..payload_len.next_multiple_of(8) - payload_len]
}

/// The checksum of a frame's payload, of which there is one kind in each version of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PayloadSum {
    /// Version 1, no longer written.
    Crc32(u32),
    /// Version 2: what writes the payload may know it already, as batches carry theirs.
    Crc32c(u32),
}

impl PayloadSum {
    pub(super) fn of(parts: &[&[u8]]) -> Self {
        Self::Crc32c(parts.iter().fold(0, |sum, part| crc32c::crc32c_append(sum, part)))
    }

    pub(super) fn is_of(self, payload: &[u8]) -> bool {
        match self {
            Self::Crc32(sum) => crc32fast::hash(payload) == sum,
            Self::Crc32c(sum) => crc32c::crc32c(payload) == sum,
        }
    }

    fn encode(self) -> (u8, u32) {
        match self {
            Self::Crc32(sum) => (1, sum),
            Self::Crc32c(sum) => (2, sum),
        }
    }

    fn decode(frame_version: u8, sum: u32) -> Option<Self> {
        match frame_version {
            1 => Some(Self::Crc32(sum)),
            2 => Some(Self::Crc32c(sum)),
            _ => None,
        }
    }
}

/// A frame's header.
///
/// ```text
///  0 magic      4 version  5 kind  6 zero      8 segment identity   16 index    24 term
/// 32 base offset         40 append time       48 max timestamp      56 span     60 payload length
/// 64 durable index       72 payload checksum  76 header checksum
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrameHeader {
    pub(super) identity: u64,
    pub(super) meta: EntryMeta,
    pub(super) base_offset: u64,
    pub(super) payload_len: u32,
    pub(super) payload_sum: PayloadSum,
    /// Everything up to this index was durable on this node when the frame was written.
    pub(super) durable_index: u64,
}

impl FrameHeader {
    pub(super) fn encode(&self) -> [u8; FRAME_HEADER_BYTES] {
        let mut bytes = [0; FRAME_HEADER_BYTES];
        put(&mut bytes, 0, &FRAME_MAGIC.to_le_bytes());
        let (version, payload_sum) = self.payload_sum.encode();
        bytes[4] = version;
        bytes[5] = self.meta.kind;
        put(&mut bytes, 8, &self.identity.to_le_bytes());
        put(&mut bytes, 16, &self.meta.index.to_le_bytes());
        put(&mut bytes, 24, &self.meta.term.to_le_bytes());
        put(&mut bytes, 32, &self.base_offset.to_le_bytes());
        put(&mut bytes, 40, &self.meta.append_time_ms.to_le_bytes());
        put(&mut bytes, 48, &self.meta.max_timestamp_ms.to_le_bytes());
        put(&mut bytes, 56, &self.meta.offset_span.to_le_bytes());
        put(&mut bytes, 60, &self.payload_len.to_le_bytes());
        put(&mut bytes, 64, &self.durable_index.to_le_bytes());
        put(&mut bytes, 72, &payload_sum.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..76]);
        put(&mut bytes, 76, &crc.to_le_bytes());
        bytes
    }

    /// The newest format of frames that this release reads.
    pub(super) const VERSION_MAX: u32 = 2;

    /// The version of the frame at the start of `bytes`, if it is one of this segment in a format that
    /// this release does not know. Every format keeps magic, version, identity and checksum in place.
    pub(super) fn unknown_version(bytes: &[u8], identity: u64) -> Option<u32> {
        let bytes = bytes.first_chunk::<FRAME_HEADER_BYTES>()?;
        let is_known = PayloadSum::decode(bytes[4], 0).is_some();
        (is_sealed(bytes, identity) && !is_known).then(|| u32::from(bytes[4]))
    }

    /// The header in `bytes`, if it is a valid one of the segment with `identity`.
    pub(super) fn decode(bytes: &[u8], identity: u64) -> Option<Self> {
        let bytes = bytes.first_chunk::<FRAME_HEADER_BYTES>()?;
        let payload_sum = PayloadSum::decode(bytes[4], u32_at(bytes, 72))?;
        is_sealed(bytes, identity).then(|| Self {
            identity,
            meta: EntryMeta {
                index: u64_at(bytes, 16),
                term: u64_at(bytes, 24),
                kind: bytes[5],
                offset_span: u32_at(bytes, 56),
                append_time_ms: i64_at(bytes, 40),
                max_timestamp_ms: i64_at(bytes, 48),
            },
            base_offset: u64_at(bytes, 32),
            payload_len: u32_at(bytes, 60),
            payload_sum,
            durable_index: u64_at(bytes, 64),
        })
    }

    /// The offset after the entry's last. Saturates: a checksum is no proof against an absurd header.
    pub(super) fn end_offset(&self) -> u64 {
        self.base_offset.saturating_add(u64::from(self.meta.offset_span))
    }

    /// Bytes of the whole frame.
    pub(super) fn frame_bytes(&self) -> u64 {
        frame_bytes(u64::from(self.payload_len))
    }
}

/// True of a frame's header, of whichever version, that belongs to the segment and is whole.
fn is_sealed(bytes: &[u8; FRAME_HEADER_BYTES], identity: u64) -> bool {
    u32_at(bytes, 0) == FRAME_MAGIC
        && u64_at(bytes, 8) == identity
        && u32_at(bytes, 76) == crc32fast::hash(&bytes[..76])
}

/// A segment's header.
///
/// ```text
///  0 magic       8 version    12 flags       16 log identity   24 sequence
/// 32 first index 40 previous term            48 next offset    56 durable index   124 checksum
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    /// The same in all segments of a log.
    pub(super) log_identity: u64,
    /// Grows from segment to segment, and is never used twice.
    pub(super) sequence: u64,
    /// The state of the log before its first entry.
    pub(super) start: LogStart,
    /// Everything up to this index was durable when the segment was created.
    pub(super) durable_index: u64,
    /// The log begins here: segments with a lower sequence have no part in it.
    pub(super) resets: bool,
    /// The file held another segment before: what stands behind the last frame may be that one's.
    pub(super) recycled: bool,
}

/// What a segment file begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DecodedSegmentHeader {
    Valid(SegmentHeader),
    /// Zeroes, or nothing: the header was never written, or not durably.
    Blank,
    /// Anything else cannot come from a lost write, because the header lies in one sector.
    Damaged,
    /// Written by a newer release.
    Newer(u32),
}

impl SegmentHeader {
    pub(super) fn identity(&self) -> u64 {
        segment_identity(self.log_identity, self.sequence)
    }

    pub(super) fn encode(&self) -> [u8; SEGMENT_HEADER_BYTES] {
        let mut bytes = [0; SEGMENT_HEADER_BYTES];
        put(&mut bytes, 0, &SEGMENT_MAGIC);
        put(&mut bytes, 8, &SEGMENT_VERSION.to_le_bytes());
        let resets = if self.resets { FLAG_RESETS } else { 0 };
        let recycled = if self.recycled { FLAG_RECYCLED } else { 0 };
        put(&mut bytes, 12, &(resets | recycled).to_le_bytes());
        put(&mut bytes, 16, &self.log_identity.to_le_bytes());
        put(&mut bytes, 24, &self.sequence.to_le_bytes());
        put(&mut bytes, 32, &self.start.first_index.to_le_bytes());
        put(&mut bytes, 40, &self.start.prev_term.to_le_bytes());
        put(&mut bytes, 48, &self.start.next_offset.to_le_bytes());
        put(&mut bytes, 56, &self.durable_index.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..124]);
        put(&mut bytes, 124, &crc.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> DecodedSegmentHeader {
        let Some(bytes) = bytes.first_chunk::<SEGMENT_HEADER_BYTES>() else {
            // A file shorter than its header never had its space allocated durably.
            return DecodedSegmentHeader::Blank;
        };
        if bytes.iter().all(|byte| *byte == 0) {
            return DecodedSegmentHeader::Blank;
        }
        if bytes[..8] != SEGMENT_MAGIC || u32_at(bytes, 124) != crc32fast::hash(&bytes[..124]) {
            return DecodedSegmentHeader::Damaged;
        }
        let version = u32_at(bytes, 8);
        if version > SEGMENT_VERSION {
            return DecodedSegmentHeader::Newer(version);
        }
        let header = Self {
            log_identity: u64_at(bytes, 16),
            sequence: u64_at(bytes, 24),
            start: LogStart {
                first_index: u64_at(bytes, 32),
                prev_term: u64_at(bytes, 40),
                next_offset: u64_at(bytes, 48),
            },
            durable_index: u64_at(bytes, 56),
            resets: u32_at(bytes, 12) & FLAG_RESETS != 0,
            recycled: u32_at(bytes, 12) & FLAG_RECYCLED != 0,
        };
        if version == 0 || header.start.first_index == 0 {
            return DecodedSegmentHeader::Damaged;
        }
        DecodedSegmentHeader::Valid(header)
    }

    /// The newest format this release reads.
    pub(super) const VERSION_MAX: u32 = SEGMENT_VERSION;
}

/// Copies `from` into `bytes` at `at`.
fn put(bytes: &mut [u8], at: usize, from: &[u8]) {
    bytes[at..at + from.len()].copy_from_slice(from);
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..].first_chunk().map_or(0, |chunk| u32::from_le_bytes(*chunk))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes[at..].first_chunk().map_or(0, |chunk| u64::from_le_bytes(*chunk))
}

fn i64_at(bytes: &[u8], at: usize) -> i64 {
    bytes[at..].first_chunk().map_or(0, |chunk| i64::from_le_bytes(*chunk))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame() -> FrameHeader {
        FrameHeader {
            identity: 0x1122_3344_5566_7788,
            meta: EntryMeta {
                index: 7,
                term: 3,
                kind: 2,
                offset_span: 10,
                append_time_ms: 1_700_000_000_000,
                max_timestamp_ms: -5,
            },
            base_offset: 40,
            payload_len: 5,
            payload_sum: PayloadSum::of(&[b"hel", b"lo"]),
            durable_index: 6,
        }
    }

    fn segment() -> SegmentHeader {
        SegmentHeader {
            log_identity: 99,
            sequence: 4,
            start: LogStart { first_index: 8, prev_term: 2, next_offset: 50 },
            durable_index: 7,
            resets: true,
            recycled: false,
        }
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Formats that were released: these strings never change.
    #[test]
    fn the_bytes_of_both_headers_are_these() {
        assert_eq!(hex(&frame().encode()), GOLDEN_FRAME);
        let payload_sum = PayloadSum::Crc32(crc32fast::hash(b"hello"));
        assert_eq!(hex(&FrameHeader { payload_sum, ..frame() }.encode()), GOLDEN_FRAME_1);
        assert_eq!(hex(&segment().encode()), GOLDEN_SEGMENT);
    }

    const GOLDEN_FRAME_1: &str = concat!(
        "4857667201020000",
        "8877665544332211",
        "0700000000000000",
        "0300000000000000",
        "2800000000000000",
        "0068e5cf8b010000",
        "fbffffffffffffff",
        "0a00000005000000",
        "0600000000000000",
        "86a610364dcb65aa",
    );
    const GOLDEN_FRAME: &str = concat!(
        "4857667202020000",
        "8877665544332211",
        "0700000000000000",
        "0300000000000000",
        "2800000000000000",
        "0068e5cf8b010000",
        "fbffffffffffffff",
        "0a00000005000000",
        "0600000000000000",
        "4cbb719ad4b2812d",
    );
    const GOLDEN_SEGMENT: &str = concat!(
        "48575345474d5400",
        "0100000001000000",
        "6300000000000000",
        "0400000000000000",
        "0800000000000000",
        "0200000000000000",
        "3200000000000000",
        "0700000000000000",
        "0000000000000000000000000000000000000000000000000000000000000000",
        "000000000000000000000000000000000000000000000000",
        "00000000b074985b",
    );

    #[test]
    fn headers_decode_to_what_was_encoded() {
        let first = FrameHeader { payload_sum: PayloadSum::Crc32(7), ..frame() };
        for frame in [frame(), first] {
            assert_eq!(FrameHeader::decode(&frame.encode(), frame.identity), Some(frame));
        }
        assert_eq!(
            SegmentHeader::decode(&segment().encode()),
            DecodedSegmentHeader::Valid(segment())
        );
    }

    #[test]
    fn any_flipped_bit_makes_a_header_invalid() {
        for bit in 0..FRAME_HEADER_BYTES * 8 {
            let mut bytes = frame().encode();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(FrameHeader::decode(&bytes, frame().identity), None, "bit {bit}");
        }
        for bit in 0..SEGMENT_HEADER_BYTES * 8 {
            let mut bytes = segment().encode();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(SegmentHeader::decode(&bytes), DecodedSegmentHeader::Damaged, "bit {bit}");
        }
    }

    #[test]
    fn zeroes_and_frames_of_other_segments_are_no_frames() {
        assert_eq!(FrameHeader::decode(&[0; FRAME_HEADER_BYTES], 0), None);
        assert_eq!(FrameHeader::decode(&frame().encode(), frame().identity + 1), None);
        assert_eq!(FrameHeader::decode(&frame().encode()[1..], frame().identity), None);
        assert_eq!(SegmentHeader::decode(&[0; 200]), DecodedSegmentHeader::Blank);
        assert_eq!(SegmentHeader::decode(&[]), DecodedSegmentHeader::Blank);
    }
}
