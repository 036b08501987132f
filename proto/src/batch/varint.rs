//! Zig-zag varints, as records use them, and a cursor that reads them from a slice.
//!
//! Never panics and never reads behind its slice; what is wrong comes back as a phrase for `BatchError::InvalidRecord`.

/// What is wrong with the bytes under a cursor.
pub(super) type Problem = &'static str;

const ENDS_EARLY: Problem = "it ends early";
const BAD_VARINT: Problem = "a variable-length integer is too long";

/// A forward-only reader.
#[derive(Clone, Copy)]
pub(super) struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// What has not been read yet.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub(super) fn byte(&mut self) -> Result<u8, Problem> {
        let (&first, rest) = self.rest.split_first().ok_or(ENDS_EARLY)?;
        self.rest = rest;
        Ok(first)
    }

    pub(super) fn take(&mut self, bytes: usize) -> Result<&'a [u8], Problem> {
        let (taken, rest) = self.rest.split_at_checked(bytes).ok_or(ENDS_EARLY)?;
        self.rest = rest;
        Ok(taken)
    }

    /// A signed 32-bit varint of at most five bytes.
    #[inline]
    pub(super) fn varint(&mut self) -> Result<i32, Problem> {
        let raw = u32::try_from(self.unsigned(5)?).map_err(|_| BAD_VARINT)?;
        Ok((raw >> 1).cast_signed() ^ -((raw & 1).cast_signed()))
    }

    /// A signed 64-bit varint of at most ten bytes.
    #[inline]
    pub(super) fn varlong(&mut self) -> Result<i64, Problem> {
        let raw = self.unsigned(10)?;
        Ok((raw >> 1).cast_signed() ^ -((raw & 1).cast_signed()))
    }

    #[inline]
    fn unsigned(&mut self, bytes_max: u32) -> Result<u64, Problem> {
        let first = self.byte()?;
        if first < 0x80 {
            return Ok(u64::from(first));
        }
        let mut value = u64::from(first & 0x7f);
        for position in 1..bytes_max {
            let byte = self.byte()?;
            let part = u64::from(byte & 0x7f);
            let shift = 7 * position;
            // The tenth byte has room for one bit only.
            if (part << shift) >> shift != part {
                return Err(BAD_VARINT);
            }
            value |= part << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(BAD_VARINT)
    }
}

/// Maps small magnitudes of either sign to small unsigned numbers.
fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}

/// Bytes that `write` makes of `value`. A value in `i32` takes the same bytes as a varint and as a varlong.
pub(super) fn encoded_bytes(value: i64) -> usize {
    let bits = 64 - (zigzag(value) | 1).leading_zeros();
    bits.div_ceil(7) as usize
}

/// Writes `value` to the front of `out`, which must have room (ten bytes always suffice); returns the bytes written.
pub(super) fn write(value: i64, out: &mut [u8]) -> usize {
    let mut rest = zigzag(value);
    let mut at = 0;
    while rest >= 0x80 {
        out[at] = (rest & 0x7f) as u8 | 0x80;
        rest >>= 7;
        at += 1;
    }
    out[at] = (rest & 0x7f) as u8;
    at + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_width_reads_back_as_written() {
        let mut values =
            vec![0, 1, -1, i64::MAX, i64::MIN, i64::from(i32::MAX), i64::from(i32::MIN)];
        for shift in 0..63 {
            values.extend([1_i64 << shift, -(1_i64 << shift), (1_i64 << shift) - 1]);
        }
        for value in values {
            let mut buffer = [0; 10];
            let written = write(value, &mut buffer);
            assert_eq!(written, encoded_bytes(value), "{value}");
            let mut cursor = Cursor::new(&buffer[..written]);
            assert_eq!(cursor.varlong(), Ok(value));
            assert!(cursor.rest().is_empty());
            if let Ok(small) = i32::try_from(value) {
                assert_eq!(Cursor::new(&buffer[..written]).varint(), Ok(small));
            } else {
                assert!(Cursor::new(&buffer[..written]).varint().is_err(), "{value}");
            }
            for cut in 0..written {
                assert_eq!(Cursor::new(&buffer[..cut]).varlong(), Err(ENDS_EARLY));
            }
        }
    }

    #[test]
    fn endless_and_overflowing_varints_are_errors() {
        assert_eq!(Cursor::new(&[0xff; 64]).varint(), Err(BAD_VARINT));
        assert_eq!(Cursor::new(&[0xff; 64]).varlong(), Err(BAD_VARINT));
        // The fifth byte of a varint has room for four bits, the tenth of a varlong for one.
        assert_eq!(Cursor::new(&[0x80, 0x80, 0x80, 0x80, 0x10]).varint(), Err(BAD_VARINT));
        let mut long = [0x80; 10];
        long[9] = 2;
        assert_eq!(Cursor::new(&long).varlong(), Err(BAD_VARINT));
    }
}
