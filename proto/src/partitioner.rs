//! Which partition a key belongs to: murmur2, exactly as Kafka's default partitioner, so that clients of either kind
//! agree.
//!
//! Knows nothing of topics; records without a key are spread by the caller.

/// Kafka's seed.
const SEED: u32 = 0x9747_b28c;
const MULTIPLIER: u32 = 0x5bd1_e995;
const SHIFT: u32 = 24;

/// The partition, from 0, that records with this key go to. The same key goes to another partition when the number of
/// partitions changes.
///
/// # Panics
/// If `partitions` is 0: no topic has none.
pub fn partition_for_key(key: &[u8], partitions: u32) -> u32 {
    assert!(partitions > 0, "a topic has at least one partition");
    // Kafka clears the sign bit instead of taking the absolute value.
    (murmur2(key) & 0x7fff_ffff) % partitions
}

/// Austin Appleby's MurmurHash2, 32 bits, with Kafka's seed.
fn murmur2(data: &[u8]) -> u32 {
    // Only the low 32 bits of the length take part, as in the Java original.
    #[expect(clippy::cast_possible_truncation, reason = "the hash is defined on the low 32 bits")]
    let mut hash = SEED ^ data.len() as u32;
    let (words, tail) = data.as_chunks::<4>();
    for word in words {
        let mut part = u32::from_le_bytes(*word).wrapping_mul(MULTIPLIER);
        part ^= part >> SHIFT;
        hash = hash.wrapping_mul(MULTIPLIER) ^ part.wrapping_mul(MULTIPLIER);
    }
    if !tail.is_empty() {
        for (position, &byte) in tail.iter().enumerate() {
            hash ^= u32::from(byte) << (8 * position);
        }
        hash = hash.wrapping_mul(MULTIPLIER);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(MULTIPLIER);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_kafkas_own_tests() {
        let cases: [(&[u8], i32); 6] = [
            (b"21", -973_932_308),
            (b"foobar", -790_332_482),
            (b"a-little-bit-long-string", -985_981_536),
            (b"a-little-bit-longer-string", -1_486_304_829),
            (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            (b"abc", 479_470_107),
        ];
        for (key, hash) in cases {
            assert_eq!(murmur2(key).cast_signed(), hash, "{key:?}");
        }
    }

    #[test]
    fn a_negative_hash_loses_its_sign_bit_and_not_its_sign() {
        assert_eq!(partition_for_key(b"21", 6), (-973_932_308_i32).cast_unsigned() % (1 << 31) % 6);
        assert_eq!(partition_for_key(b"abc", 1000), 479_470_107 % 1000);
        assert_eq!(partition_for_key(b"", 1), 0);
    }

    #[test]
    fn keys_spread_over_all_partitions() {
        let mut counts = [0_u32; 6];
        for number in 0..6000 {
            counts[partition_for_key(format!("N{number}").as_bytes(), 6) as usize] += 1;
        }
        assert!(counts.iter().all(|&count| (800..1200).contains(&count)), "{counts:?}");
    }
}
