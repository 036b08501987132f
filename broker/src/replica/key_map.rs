//! The last offset of each key, in memory that is fixed beforehand.
//!
//! Owns a table of hashes. Knows no batches. Two keys with the same 128-bit hash would pass for one: with a secret drawn for each
//! run nobody can bring that about, and by chance it does not happen.

use std::hash::{DefaultHasher, Hasher};

/// Bytes of one slot.
const SLOT_BYTES: u64 = size_of::<Slot>() as u64;

/// Hash and offset of a key. An offset of `u64::MAX`, which no record has, marks a free slot.
#[derive(Clone, Copy, Debug)]
struct Slot {
    hash: [u64; 2],
    offset: u64,
}

const FREE: Slot = Slot { hash: [0; 2], offset: u64::MAX };

/// Maps keys to offsets. Invariant: at least a quarter of the slots is free.
#[derive(Debug)]
pub(super) struct KeyMap {
    secret: [u64; 2],
    slots: Vec<Slot>,
    used: usize,
}

impl KeyMap {
    /// A map for up to `keys` keys, as far as that fits `bytes_max`; for one key at least.
    pub(super) fn new(keys: u64, bytes_max: u64, secret: [u64; 2]) -> Self {
        let slots = (keys.saturating_mul(4) / 3 + 2).min(bytes_max / SLOT_BYTES).max(2);
        let slots = usize::try_from(slots).unwrap_or(usize::MAX);
        Self { secret, slots: vec![FREE; slots], used: 0 }
    }

    /// Notes the offset of a key, higher than any before. False if there is no room for another key.
    pub(super) fn insert(&mut self, key: &[u8], offset: u64) -> bool {
        let hash = self.hash(key);
        let at = self.find(hash);
        if self.slots[at].offset == u64::MAX {
            if self.used >= (self.slots.len() * 3 / 4).max(1) {
                return false;
            }
            self.used += 1;
        }
        self.slots[at] = Slot { hash, offset };
        true
    }

    /// The last offset noted for a key.
    pub(super) fn get(&self, key: &[u8]) -> Option<u64> {
        let offset = self.slots[self.find(self.hash(key))].offset;
        (offset != u64::MAX).then_some(offset)
    }

    /// The slot that holds the hash, or where it would go.
    fn find(&self, hash: [u64; 2]) -> usize {
        let count = self.slots.len();
        let mut at = usize::try_from(hash[0] % count as u64).unwrap_or(0);
        loop {
            let slot = &self.slots[at];
            if slot.offset == u64::MAX || slot.hash == hash {
                return at;
            }
            at = (at + 1) % count;
        }
    }

    fn hash(&self, key: &[u8]) -> [u64; 2] {
        let half = |which: u64| {
            let mut hasher = DefaultHasher::new();
            hasher.write_u64(self.secret[0]);
            hasher.write_u64(self.secret[1]);
            hasher.write_u64(which);
            hasher.write(key);
            hasher.finish()
        };
        [half(0), half(1)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_offset_of_each_key_is_kept_and_a_full_map_takes_known_keys_only() {
        let mut map = KeyMap::new(1_000_000, 100 * SLOT_BYTES, [1, 2]);
        let keys: Vec<String> = (0..75).map(|n| format!("key-{n}")).collect();
        for (offset, key) in (0..).zip(keys.iter().chain(&keys)) {
            assert!(map.insert(key.as_bytes(), offset));
        }
        assert!(!map.insert(b"another", 150), "three quarters of a hundred slots");
        assert!(map.insert(b"key-3", 151));
        assert_eq!(map.get(b"key-3"), Some(151));
        assert_eq!(map.get(b"key-74"), Some(149));
        assert_eq!(map.get(b"another"), None);
        assert_eq!(map.get(b""), None);
    }

    #[test]
    fn the_smallest_map_holds_one_key() {
        let mut map = KeyMap::new(0, 0, [1, 2]);
        assert!(map.insert(b"a", 0) && map.insert(b"a", 1));
        assert!(!map.insert(b"b", 2));
        assert_eq!((map.get(b"a"), map.get(b"b")), (Some(1), None));
    }
}
