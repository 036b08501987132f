//! CRC-32C of bytes whose parts have been summed already.
//!
//! A CRC is the remainder of a polynomial over the field of two elements. Bytes that follow multiply what came before by x^8 each, so
//! the checksum of two parts comes from theirs by one multiplication modulo the CRC's polynomial (as zlib's `crc32_combine` does it).

/// CRC-32C's polynomial, bits reversed: the highest bit is x^0.
const POLYNOMIAL: u32 = 0x82f6_3b78;
/// x^0.
const ONE: u32 = 1 << 31;
/// x^(2^k) modulo the polynomial.
const POWERS: [u32; 32] = {
    // x^1.
    let mut powers = [1 << 30; 32];
    let mut k = 1;
    while k < powers.len() {
        powers[k] = product(powers[k - 1], powers[k - 1]);
        k += 1;
    }
    powers
};

/// Modulo the polynomial.
const fn product(a: u32, mut b: u32) -> u32 {
    let (mut product, mut bit) = (0, ONE);
    while bit != 0 {
        if a & bit != 0 {
            product ^= b;
        }
        b = if b & 1 == 0 { b >> 1 } else { (b >> 1) ^ POLYNOMIAL };
        bit >>= 1;
    }
    product
}

/// The checksum of some bytes and others behind them, from those of both and the length of the latter.
pub(super) fn combine(first: u32, second: u32, second_bytes: usize) -> u32 {
    // A byte is x^8, and powers come back after 2^32 - 1.
    let shifted = (0..usize::BITS as usize).filter(|bit| second_bytes >> bit & 1 == 1);
    let factor = shifted.fold(ONE, |factor, bit| product(POWERS[(bit + 3) % POWERS.len()], factor));
    product(factor, first) ^ second
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn parts_make_the_whole(
            first in proptest::collection::vec(any::<u8>(), 0..100),
            second in proptest::collection::vec(any::<u8>(), 0..3_000),
        ) {
            let whole = [&first[..], &second[..]].concat();
            let combined = combine(crc32c::crc32c(&first), crc32c::crc32c(&second), second.len());
            prop_assert_eq!(combined, crc32c::crc32c(&whole));
        }
    }

    #[test]
    fn long_parts_too() {
        for bytes in [0, 1, 1 << 20, (4 << 20) - 21, (8 << 20) + 1] {
            let second: Vec<u8> = (0..bytes).map(|at: usize| at.to_le_bytes()[0]).collect();
            let whole = [b"in front", &second[..]].concat();
            let combined = combine(crc32c::crc32c(b"in front"), crc32c::crc32c(&second), bytes);
            assert_eq!(combined, crc32c::crc32c(&whole), "{bytes}");
        }
    }
}
