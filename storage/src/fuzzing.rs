//! What the fuzz targets of `fuzz/` run, one function each; a test runs them over the kept corpus.
//!
//! Every function takes any bytes, and panics if they make this crate do what it must not. Not part of the
//! public API: compiled for tests and with the feature `fuzzing` only.

pub use crate::disk::append_journal;
pub use crate::hard_state::fuzzing::hard_state;
pub use crate::log::fuzzing::{frame_decode, index_load, segment_recovery};

/// Takes small values off the front of a fuzzer's input; zeroes once it is used up.
pub(crate) struct Input<'a> {
    rest: &'a [u8],
}

impl<'a> Input<'a> {
    pub(crate) fn new(rest: &'a [u8]) -> Self {
        Self { rest }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or(0)
    }

    /// A number that is mostly small, and now and then anything.
    pub(crate) fn number(&mut self) -> u64 {
        match self.byte() {
            255 => {
                let mut word = [0; 8];
                let bytes = self.bytes(8);
                word[..bytes.len()].copy_from_slice(bytes);
                u64::from_le_bytes(word)
            }
            small => u64::from(small),
        }
    }

    /// Up to `len` bytes.
    pub(crate) fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.rest.split_at(len.min(self.rest.len()));
        self.rest = rest;
        taken
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    fn replay(target: &str, run: fn(&[u8])) {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
        let mut inputs = 0;
        for entry in std::fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            // Named before it runs, so that a panic says which input it was.
            println!("{}", path.display());
            run(&std::fs::read(path).unwrap());
            inputs += 1;
        }
        assert!(inputs > 0, "{} is empty", dir.display());
        run(&[]);
    }

    #[test]
    fn the_kept_inputs_of_frame_decode_pass() {
        replay("frame_decode", super::frame_decode);
    }

    #[test]
    fn the_kept_inputs_of_segment_recovery_pass() {
        replay("segment_recovery", super::segment_recovery);
    }

    #[test]
    fn the_kept_inputs_of_index_load_pass() {
        replay("index_load", super::index_load);
    }

    #[test]
    fn the_kept_inputs_of_append_journal_pass() {
        replay("append_journal", super::append_journal);
    }

    #[test]
    fn the_kept_inputs_of_hard_state_pass() {
        replay("hard_state", super::hard_state);
    }
}
