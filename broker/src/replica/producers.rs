//! What a partition remembers of its idempotent producers, so that a batch sent twice is written once.
//!
//! Owns: the rules of sequences and epochs. Never: files (see `checkpoint`) or the log.
//!
//! The state is a function of the log alone: every replica that has applied the same entries holds the same state.

use std::collections::{BTreeMap, VecDeque};

use highwater_proto::batch::{BatchHeader, sequence_add};
use highwater_proto::internal::{ProducedBatch, ProducerImage};

use crate::error::BrokerError;

/// Batches remembered of each producer: how many it may have in flight.
pub(crate) const BATCHES_REMEMBERED: usize = 5;
/// Producers remembered of each partition; the one that was silent longest is forgotten first.
pub(crate) const PRODUCERS_MAX: usize = 10_000;

/// Producers by id.
///
/// Invariants: each producer's remembered batches follow one another in sequence, index and offset; there is at least one.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Producers {
    by_id: BTreeMap<i64, Producer>,
    /// Producers with batches that are proposed but not yet in the log, as they will be. Empty between bursts.
    staged: BTreeMap<i64, Producer>,
    /// Index of each producer's last batch, to find the one that was silent longest.
    by_last_index: BTreeMap<u64, i64>,
}

#[derive(Clone, Debug, PartialEq)]
struct Producer {
    epoch: i16,
    batches: VecDeque<Produced>,
}

/// A remembered batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Produced {
    pub(crate) first_sequence: i32,
    pub(crate) last_sequence: i32,
    pub(crate) base_offset: u64,
    pub(crate) index: u64,
    pub(crate) term: u64,
    pub(crate) append_time_ms: i64,
}

impl Producers {
    /// What to do with a batch: `None` to append it, or the original of which it is a duplicate.
    pub(crate) fn check(&self, header: &BatchHeader) -> Result<Option<Produced>, BrokerError> {
        let producer_id = header.producer_id;
        let known = self.staged.get(&producer_id).or_else(|| self.by_id.get(&producer_id));
        let Some(known) = known else {
            return match header.base_sequence {
                0 => Ok(None),
                _ => Err(BrokerError::UnknownProducer { producer_id }),
            };
        };
        if header.producer_epoch < known.epoch {
            return Err(BrokerError::ProducerFenced {
                producer_id,
                epoch: header.producer_epoch,
                current: known.epoch,
            });
        }
        let last_sequence = header.last_sequence();
        if header.producer_epoch == known.epoch {
            let original = known.batches.iter().find(|batch| {
                batch.first_sequence == header.base_sequence && batch.last_sequence == last_sequence
            });
            if let Some(original) = original {
                return Ok(Some(*original));
            }
        }
        let expected = match known.batches.back() {
            Some(last) if header.producer_epoch == known.epoch => {
                sequence_add(last.last_sequence, 1)
            }
            _ => 0,
        };
        if header.base_sequence != expected {
            return Err(BrokerError::OutOfOrderSequence {
                producer_id,
                expected,
                found: header.base_sequence,
            });
        }
        Ok(None)
    }

    /// Takes a proposed batch into account for the checks of those behind it, until [`Producers::unstage`].
    pub(crate) fn stage(&mut self, header: &BatchHeader, produced: Produced) {
        if header.is_idempotent() {
            let id = header.producer_id;
            let known = self.staged.remove(&id).or_else(|| self.by_id.get(&id).cloned());
            let mut producer = known.unwrap_or_else(|| Producer::new(header.producer_epoch));
            producer.push(header.producer_epoch, produced);
            self.staged.insert(id, producer);
        }
    }

    /// Forgets what was staged: the batches are in the log now, and recorded, or were dropped.
    pub(crate) fn unstage(&mut self) {
        self.staged.clear();
    }

    /// Remembers a batch that is in the log. Batches without a producer leave no trace.
    pub(crate) fn record(&mut self, header: &BatchHeader, produced: Produced) {
        if !header.is_idempotent() {
            return;
        }
        let id = header.producer_id;
        let producer = self.by_id.entry(id).or_insert_with(|| Producer::new(header.producer_epoch));
        if let Some(last) = producer.batches.back() {
            self.by_last_index.remove(&last.index);
        }
        producer.push(header.producer_epoch, produced);
        self.by_last_index.insert(produced.index, id);
        while self.by_id.len() > PRODUCERS_MAX {
            let Some((_, silent)) = self.by_last_index.pop_first() else { break };
            self.by_id.remove(&silent);
        }
    }

    /// The state for a checkpoint or snapshot, by producer id.
    pub(crate) fn to_images(&self) -> Vec<ProducerImage> {
        self.by_id
            .iter()
            .map(|(id, producer)| ProducerImage {
                producer_id: *id,
                epoch: i32::from(producer.epoch),
                batches: producer.batches.iter().copied().map(Produced::to_image).collect(),
            })
            .collect()
    }

    /// The state that a checkpoint or snapshot holds.
    pub(crate) fn from_images(images: &[ProducerImage]) -> Self {
        let mut producers = Self::default();
        for image in images {
            let batches: VecDeque<_> = image.batches.iter().map(Produced::from_image).collect();
            let Some(last) = batches.back() else { continue };
            producers.by_last_index.insert(last.index, image.producer_id);
            let epoch = i16::try_from(image.epoch).unwrap_or(i16::MAX);
            producers.by_id.insert(image.producer_id, Producer { epoch, batches });
        }
        producers
    }
}

impl Producer {
    fn new(epoch: i16) -> Self {
        Self { epoch, batches: VecDeque::new() }
    }

    fn push(&mut self, epoch: i16, produced: Produced) {
        if self.epoch != epoch {
            self.epoch = epoch;
            self.batches.clear();
        }
        if self.batches.len() == BATCHES_REMEMBERED {
            self.batches.pop_front();
        }
        self.batches.push_back(produced);
    }
}

impl Produced {
    pub(crate) fn of(
        header: &BatchHeader,
        index: u64,
        term: u64,
        base_offset: u64,
        append_time_ms: i64,
    ) -> Self {
        Self {
            first_sequence: header.base_sequence,
            last_sequence: header.last_sequence(),
            base_offset,
            index,
            term,
            append_time_ms,
        }
    }

    fn to_image(self) -> ProducedBatch {
        ProducedBatch {
            first_sequence: self.first_sequence,
            last_sequence: self.last_sequence,
            base_offset: self.base_offset,
            index: self.index,
            term: self.term,
            append_time_ms: self.append_time_ms,
        }
    }

    fn from_image(image: &ProducedBatch) -> Self {
        Self {
            first_sequence: image.first_sequence,
            last_sequence: image.last_sequence,
            base_offset: image.base_offset,
            index: image.index,
            term: image.term,
            append_time_ms: image.append_time_ms,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(producer_id: i64, epoch: i16, base_sequence: i32, count: i32) -> BatchHeader {
        let mut builder =
            highwater_proto::batch::BatchBuilder::new(highwater_proto::batch::Compression::None);
        builder.set_producer(producer_id, epoch, base_sequence);
        for _ in 0..count {
            builder.push(0, None, Some(b"v"), &[]).unwrap();
        }
        BatchHeader::read(&builder.build().unwrap()).unwrap()
    }

    fn record(
        producers: &mut Producers,
        header: &BatchHeader,
        (index, term, offset, time): (u64, u64, u64, i64),
    ) {
        producers.record(header, Produced::of(header, index, term, offset, time));
    }

    #[test]
    fn staged_batches_count_for_those_behind_them_until_they_are_unstaged() {
        let mut producers = Producers::default();
        let first = header(7, 0, 0, 1);
        producers.stage(&first, Produced::of(&first, 10, 2, 0, 5));
        assert!(producers.check(&header(7, 0, 1, 1)).unwrap().is_none());
        producers.unstage();
        assert_eq!(producers.check(&header(7, 0, 1, 1)).unwrap_err().reason(), "UNKNOWN_PRODUCER");
    }

    #[test]
    fn a_batch_sent_twice_is_a_duplicate_of_the_first() {
        let mut producers = Producers::default();
        record(&mut producers, &header(7, 0, 0, 3), (10, 2, 100, 5));
        let original = producers.check(&header(7, 0, 0, 3)).unwrap().unwrap();
        assert_eq!((original.base_offset, original.index), (100, 10));
    }

    #[test]
    fn only_the_last_five_batches_are_recognised() {
        let mut producers = Producers::default();
        for n in 0..6u64 {
            let sequence = i32::try_from(n).unwrap();
            record(&mut producers, &header(7, 0, sequence, 1), (10 + n, 2, n, 5));
        }
        assert!(producers.check(&header(7, 0, 1, 1)).unwrap().is_some());
        let error = producers.check(&header(7, 0, 0, 1)).unwrap_err();
        assert_eq!(error.reason(), "OUT_OF_ORDER_SEQUENCE");
    }

    #[test]
    fn a_gap_is_out_of_order_and_an_unknown_producer_must_start_at_zero() {
        let mut producers = Producers::default();
        assert_eq!(producers.check(&header(7, 0, 4, 1)).unwrap_err().reason(), "UNKNOWN_PRODUCER");
        record(&mut producers, &header(7, 0, 0, 2), (10, 2, 0, 5));
        assert!(producers.check(&header(7, 0, 2, 1)).unwrap().is_none());
        assert_eq!(
            producers.check(&header(7, 0, 3, 1)).unwrap_err().reason(),
            "OUT_OF_ORDER_SEQUENCE"
        );
    }

    #[test]
    fn a_newer_epoch_fences_the_older_and_starts_at_zero() {
        let mut producers = Producers::default();
        record(&mut producers, &header(7, 0, 0, 2), (10, 2, 0, 5));
        assert!(producers.check(&header(7, 1, 0, 1)).unwrap().is_none());
        record(&mut producers, &header(7, 1, 0, 1), (11, 2, 2, 5));
        assert_eq!(producers.check(&header(7, 0, 2, 1)).unwrap_err().reason(), "PRODUCER_FENCED");
    }

    #[test]
    fn sequences_wrap_to_zero() {
        let mut producers = Producers::default();
        record(&mut producers, &header(7, 0, 0, 1), (9, 2, 0, 5));
        let id = 7;
        producers.by_id.get_mut(&id).unwrap().batches[0].last_sequence = i32::MAX;
        assert!(producers.check(&header(7, 0, 0, 1)).unwrap().is_none());
    }

    #[test]
    fn images_round_trip_and_the_longest_silent_producer_is_forgotten_first() {
        let mut producers = Producers::default();
        for n in 0..=PRODUCERS_MAX {
            let id = i64::try_from(n).unwrap();
            record(&mut producers, &header(id, 0, 0, 1), (10 + n as u64, 2, n as u64, 5));
        }
        assert_eq!(producers.by_id.len(), PRODUCERS_MAX);
        assert!(!producers.by_id.contains_key(&0));
        assert_eq!(Producers::from_images(&producers.to_images()), producers);
    }
}
