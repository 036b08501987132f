//! Payloads: random bytes that no codec can shrink, the same for the same seed.
//!
//! Owns: the pool they are cut from. Never: allocates for each record, except for stamped ones.

use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};

/// Longer than any codec's window within a batch, so that the cuts of a batch share nothing.
const POOL_BYTES: usize = 32 << 20;
/// The longest stamp.
const STAMP_BYTES: usize = 8;

/// An endless supply of values of one size.
#[derive(Clone, Debug)]
pub(crate) struct Payloads {
    pool: Bytes,
    record_bytes: usize,
    next: usize,
}

impl Payloads {
    pub(crate) fn new(seed: u64, record_bytes: usize) -> Self {
        let mut pool = vec![0; POOL_BYTES.max(2 * record_bytes)];
        SmallRng::seed_from_u64(seed).fill_bytes(&mut pool);
        Self { pool: pool.into(), record_bytes, next: 0 }
    }

    /// The same supply from elsewhere in the pool: for the `index`th of several producers.
    pub(crate) fn for_producer(&self, index: usize, producers: usize) -> Self {
        let mut other = self.clone();
        let share = self.pool.len() / producers.max(1);
        other.next = (share * index).min(self.pool.len() - self.record_bytes);
        other
    }

    /// The next value; no copy.
    pub(crate) fn next(&mut self) -> Bytes {
        if self.next + self.record_bytes > self.pool.len() {
            self.next = 0;
        }
        let begin = self.next;
        self.next += self.record_bytes;
        self.pool.slice(begin..self.next)
    }

    /// The next value, beginning with `stamp`.
    pub(crate) fn next_stamped(&mut self, stamp: u64) -> Bytes {
        let mut value = self.next().to_vec();
        value[..STAMP_BYTES].copy_from_slice(&stamp.to_le_bytes());
        value.into()
    }
}

/// The stamp of a value; `None` if it is too short to have one.
pub(crate) fn stamp_of(value: &[u8]) -> Option<u64> {
    value.first_chunk::<STAMP_BYTES>().map(|bytes| u64::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_values_and_they_do_not_repeat_soon() {
        let mut one = Payloads::new(7, 1000);
        let mut two = Payloads::new(7, 1000);
        let first = one.next();
        assert_eq!(first, two.next());
        for _ in 1..POOL_BYTES / 1000 {
            let value = one.next();
            assert_eq!(value.len(), 1000);
            assert_ne!(value, first);
        }
        assert_eq!(one.next(), first, "the pool begins again");
    }

    #[test]
    fn producers_begin_at_different_places() {
        let payloads = Payloads::new(7, 100);
        let firsts: std::collections::HashSet<_> =
            (0..8).map(|index| payloads.for_producer(index, 8).next()).collect();
        assert_eq!(firsts.len(), 8);
    }

    #[test]
    fn stamps_can_be_read_back() {
        let value = Payloads::new(7, 100).next_stamped(42);
        assert_eq!((value.len(), stamp_of(&value)), (100, Some(42)));
        assert_eq!(stamp_of(b"short"), None);
    }
}
