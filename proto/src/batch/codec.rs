//! Compressing and decompressing the records of a batch.
//!
//! Decompression is bounded twice: by a limit on the output, and by growing the output as it comes instead of believing
//! what the compressed data says of its size. Keeps no state between batches.

use std::io::{self, Read, Write};

use super::{BatchError, Compression};

/// What Kafka's clients write in front of Snappy blocks: the magic, then version 1, compatible with 1.
const XERIAL_HEADER: [u8; 16] = *b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01";
const XERIAL_MAGIC_BYTES: usize = 8;
/// Uncompressed bytes of one Snappy block, as Kafka's Java client has it.
const XERIAL_BLOCK_BYTES: usize = 32 << 10;
/// A Snappy block never grows more than this: its best element makes 64 bytes of 3.
const SNAPPY_EXPANSION_MAX: usize = 22;
const LZ4_FRAME_MAGIC: [u8; 4] = 0x184d_2204_u32.to_le_bytes();
/// Zstandard's own default.
const ZSTD_LEVEL: i32 = 3;
/// What zstd answers when the output does not fit; part of its stable interface (`ZSTD_error_dstSize_tooSmall`).
const ZSTD_OUTPUT_TOO_SMALL: usize = 0_usize.wrapping_sub(70);

/// Appends `data`, compressed, to `out`.
pub(super) fn compress(
    compression: Compression,
    data: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), BatchError> {
    let done = match compression {
        Compression::None => {
            out.extend_from_slice(data);
            Ok(())
        }
        Compression::Gzip => compress_gzip(data, out),
        Compression::Snappy => compress_snappy(data, out),
        Compression::Lz4 => compress_lz4(data, out),
        Compression::Zstd => compress_zstd(data, out),
    };
    done.map_err(|source| BatchError::Compress { compression, source })
}

fn compress_gzip(data: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
    let mut encoder = flate2::write::GzEncoder::new(out, flate2::Compression::default());
    encoder.write_all(data)?;
    encoder.finish()?;
    Ok(())
}

fn compress_snappy(data: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
    out.extend_from_slice(&XERIAL_HEADER);
    let mut encoder = snap::raw::Encoder::new();
    for block in data.chunks(XERIAL_BLOCK_BYTES) {
        let length_at = out.len();
        let block_at = length_at + 4;
        out.resize(block_at + snap::raw::max_compress_len(block.len()), 0);
        let bytes = encoder.compress(block, &mut out[block_at..])?;
        out.truncate(block_at + bytes);
        let length = u32::try_from(bytes).map_err(io::Error::other)?;
        out[length_at..block_at].copy_from_slice(&length.to_be_bytes());
    }
    Ok(())
}

fn compress_lz4(data: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
    use lz4_flex::frame::{BlockMode, BlockSize, FrameEncoder, FrameInfo};
    // Kafka's Java client reads independent blocks only.
    let info = FrameInfo::new().block_mode(BlockMode::Independent).block_size(BlockSize::Max64KB);
    let mut encoder = FrameEncoder::with_frame_info(info, out);
    encoder.write_all(data)?;
    encoder.finish()?;
    Ok(())
}

fn compress_zstd(data: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
    let start = out.len();
    out.resize(start + zstd::zstd_safe::compress_bound(data.len()), 0);
    let bytes = zstd::bulk::compress_to_buffer(data, &mut out[start..], ZSTD_LEVEL)?;
    out.truncate(start + bytes);
    Ok(())
}

/// The decompressed `data`.
///
/// # Errors
/// If it is damaged, goes on behind its end, or makes more than `bytes_max` bytes.
pub(super) fn decompress(
    compression: Compression,
    data: &[u8],
    bytes_max: usize,
) -> Result<Vec<u8>, BatchError> {
    let out = match compression {
        Compression::None => Ok((data.len() <= bytes_max).then(|| data.to_vec())),
        Compression::Gzip => {
            let mut decoder = flate2::bufread::MultiGzDecoder::new(data);
            read_bounded(&mut decoder, bytes_max)
        }
        Compression::Snappy => decompress_snappy(data, bytes_max),
        Compression::Lz4 => decompress_lz4(data, bytes_max),
        Compression::Zstd => decompress_zstd(data, bytes_max),
    };
    out.map_err(|source| BatchError::Decompress { compression, source })?
        .ok_or(BatchError::DecompressedTooLarge { bytes_max })
}

fn damaged(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Reads to the end; `None` if that is more than `bytes_max` bytes. Memory follows what has really come.
fn read_bounded(reader: &mut impl Read, bytes_max: usize) -> io::Result<Option<Vec<u8>>> {
    let mut out = Vec::new();
    reader.take(bytes_max as u64 + 1).read_to_end(&mut out)?;
    Ok((out.len() <= bytes_max).then_some(out))
}

fn decompress_lz4(data: &[u8], bytes_max: usize) -> io::Result<Option<Vec<u8>>> {
    // The decoder would also take the legacy format, which Kafka never had.
    if !data.starts_with(&LZ4_FRAME_MAGIC) {
        return Err(damaged("not an lz4 frame"));
    }
    let mut decoder = lz4_flex::frame::FrameDecoder::new(data);
    let out = read_bounded(&mut decoder, bytes_max)?;
    if out.is_some() && !decoder.get_ref().is_empty() {
        return Err(damaged("bytes follow the lz4 frame"));
    }
    Ok(out)
}

/// Decompresses in one shot, so that no window is allocated because a frame asks for one.
fn decompress_zstd(data: &[u8], bytes_max: usize) -> io::Result<Option<Vec<u8>>> {
    let mut capacity = data.len().saturating_mul(8).max(4096).min(bytes_max);
    loop {
        let mut out = Vec::with_capacity(capacity);
        match zstd::zstd_safe::decompress(&mut out, data) {
            // The allocator may have given more room than was asked for.
            Ok(bytes) => return Ok((bytes <= bytes_max).then_some(out)),
            Err(ZSTD_OUTPUT_TOO_SMALL) if capacity == bytes_max => return Ok(None),
            // Growing by four keeps the work that is thrown away below a third of the whole.
            Err(ZSTD_OUTPUT_TOO_SMALL) => capacity = capacity.saturating_mul(4).min(bytes_max),
            Err(code) => return Err(damaged(zstd::zstd_safe::get_error_name(code))),
        }
    }
}

fn decompress_snappy(data: &[u8], bytes_max: usize) -> io::Result<Option<Vec<u8>>> {
    let mut out = Vec::new();
    if !data.starts_with(&XERIAL_HEADER[..XERIAL_MAGIC_BYTES]) {
        let fits = append_snappy_block(data, bytes_max, &mut out)?;
        return Ok(fits.then_some(out));
    }
    let mut rest = data.get(XERIAL_HEADER.len()..).ok_or(damaged("the snappy header is cut"))?;
    while !rest.is_empty() {
        let (length, behind) = rest.split_first_chunk().ok_or(damaged("a snappy length is cut"))?;
        let length = u32::from_be_bytes(*length) as usize;
        let (block, behind) =
            behind.split_at_checked(length).ok_or(damaged("a snappy block is cut"))?;
        if !append_snappy_block(block, bytes_max, &mut out)? {
            return Ok(None);
        }
        rest = behind;
    }
    Ok(Some(out))
}

/// Decompresses one raw block behind what `out` holds; false if that would be more than `bytes_max` in all.
fn append_snappy_block(block: &[u8], bytes_max: usize, out: &mut Vec<u8>) -> io::Result<bool> {
    let stated = snap::raw::decompress_len(block)?;
    if stated > block.len().saturating_mul(SNAPPY_EXPANSION_MAX) {
        return Err(damaged("a snappy block cannot be as large as it says"));
    }
    let start = out.len();
    if stated > bytes_max - start {
        return Ok(false);
    }
    out.resize(start + stated, 0);
    let bytes = snap::raw::Decoder::new().decompress(block, &mut out[start..])?;
    out.truncate(start + bytes);
    Ok(true)
}
