//! What must be true in every run, under every fault.
//!
//! Owns: the record of what was acknowledged and committed. Never: influences a run.

use std::collections::BTreeMap;

use bytes::Bytes;
use highwater_proto::batch::BatchView;

use crate::replica::core::{Appended, Core};

/// An entry as every replica must hold it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Committed {
    term: u64,
    kind: u8,
    base_offset: u64,
    payload: Bytes,
}

#[derive(Default)]
pub(super) struct Oracle {
    /// By (producer, sequence): offset and records.
    acknowledged: BTreeMap<(i64, i32), (u64, Bytes)>,
    /// By index: as first seen below a commit.
    committed: BTreeMap<u64, Committed>,
    /// Highest index checked, by replica.
    checked: BTreeMap<u64, u64>,
    /// Leader by term.
    leaders: BTreeMap<u64, u64>,
}

impl Oracle {
    pub(super) fn acknowledged(
        &mut self,
        producer: i64,
        sequence: i32,
        appended: &Appended,
        batch: &Bytes,
    ) {
        let value = (appended.base_offset, record_of(batch.clone()));
        let before = self.acknowledged.insert((producer, sequence), value);
        assert_eq!(before, None, "{producer}:{sequence} acknowledged twice");
    }

    /// One leader a term; what is committed never changes and is the same everywhere.
    pub(super) fn check_core(&mut self, core: &Core) {
        let visible = core.visible();
        assert!(visible.log_start_offset <= visible.high_watermark);
        assert!(visible.high_watermark <= visible.log_end_offset);
        if visible.is_leader {
            let leader = *self.leaders.entry(visible.term).or_insert(core.replica());
            assert_eq!(leader, core.replica(), "two leaders in term {}", visible.term);
        }
        let reader = core.reader();
        let checked = self.checked.entry(core.replica()).or_insert(0);
        // A crash takes the commit index back; what was checked then is checked again.
        let committed = core.committed();
        if committed < *checked {
            *checked = reader.first_index().saturating_sub(1);
        }
        let from = (*checked + 1).max(reader.first_index());
        if from > committed {
            return;
        }
        let entries =
            reader.entries(from, committed + 1, u64::MAX).expect("committed entries are readable");
        for entry in &entries {
            let now = Committed {
                term: entry.meta.term,
                kind: entry.meta.kind,
                base_offset: entry.base_offset,
                payload: entry.payload.clone(),
            };
            let first = self.committed.entry(entry.meta.index).or_insert_with(|| now.clone());
            assert_eq!(
                *first,
                now,
                "entry {} differs on replica {}",
                entry.meta.index,
                core.replica()
            );
            *checked = entry.meta.index;
        }
    }

    /// After healing: every replica has every acknowledged record, once, where it was acknowledged, and each producer's in
    /// order; nothing that was not acknowledged appears twice.
    pub(super) fn check_end<'a>(&self, cores: impl Iterator<Item = &'a Core>) {
        let mut ends = Vec::new();
        let mut producers = Vec::new();
        for core in cores {
            let visible = core.visible();
            let stored = core
                .reader()
                .read_offsets(visible.log_start_offset, visible.high_watermark, u64::MAX)
                .expect("everything is readable");
            let mut seen: BTreeMap<(i64, i32), (u64, Bytes)> = BTreeMap::new();
            let mut last: BTreeMap<i64, i32> = BTreeMap::new();
            for entry in stored {
                let batch =
                    BatchView::parse(entry.payload.clone()).expect("stored batches are whole");
                let header = *batch.header();
                let key = (header.producer_id, header.base_sequence);
                let value = (entry.base_offset, record_of(entry.payload));
                assert_eq!(seen.insert(key, value), None, "{key:?} is in the log twice");
                let before = last.insert(header.producer_id, header.base_sequence);
                assert!(
                    before.is_none_or(|before| before < header.base_sequence),
                    "{key:?} out of order"
                );
            }
            for (key, value) in &self.acknowledged {
                assert_eq!(
                    seen.get(key),
                    Some(value),
                    "{key:?} was acknowledged, replica {}",
                    core.replica()
                );
            }
            ends.push(visible.high_watermark);
            producers.push(core.producers().cloned());
        }
        assert!(ends.windows(2).all(|pair| pair[0] == pair[1]), "replicas end at {ends:?}");
        assert!(producers.windows(2).all(|pair| pair[0] == pair[1]), "producer states differ");
    }
}

/// The only record of a batch of the simulation's producers.
fn record_of(batch: Bytes) -> Bytes {
    let batch = BatchView::parse(batch).expect("a whole batch");
    let record =
        batch.records().expect("records").next().expect("one record").expect("a whole record");
    record.value.expect("a value")
}
