//! What compaction makes of batches: read by both implementations, refused from clients.

use bytes::Bytes;
use highwater_proto::batch::{
    BatchError, BatchHeader, BatchLimits, BatchView, Compacted, Compression, RecordView,
    ValidateDepth, validate,
};
use kafka_protocol::records::RecordBatchDecoder;
use proptest::prelude::*;

use super::{NOBODY, Plain, build, compressions, producers, records};

fn view(batch: &Bytes) -> BatchView {
    BatchView::parse(batch.clone()).unwrap()
}

fn ours(batch: &Bytes) -> Vec<RecordView> {
    view(batch).records().unwrap().map(Result::unwrap).collect()
}

/// Offset, timestamp, key and value of every record, as the other implementation reads them.
fn theirs(batch: &Bytes) -> Vec<(i64, i64, Option<Bytes>, Option<Bytes>)> {
    let set = RecordBatchDecoder::decode(&mut batch.clone()).unwrap();
    let plain = |r: kafka_protocol::records::Record| (r.offset, r.timestamp, r.key, r.value);
    set.records.into_iter().map(plain).collect()
}

fn plain(record: &RecordView) -> (i64, i64, Option<Bytes>, Option<Bytes>) {
    (record.offset, record.timestamp_ms, record.key.clone(), record.value.clone())
}

proptest! {
    #[test]
    fn what_stays_is_as_it_was_and_both_sides_read_it(
        compression in compressions(),
        producer in producers(),
        plains in records(),
        picks in prop::collection::vec(any::<bool>(), 40),
        horizon_after in prop::option::of(0..100_000_000_i64),
    ) {
        let batch = build(compression, producer, &plains);
        let before = ours(&batch);
        let horizon = horizon_after.map(|after| plains[0].timestamp_ms + after);
        let keep = |offset: i64| picks[usize::try_from(offset).unwrap()];
        let expected: Vec<_> = before.iter().filter(|r| keep(r.offset)).cloned().collect();
        let has_tombstone = expected.iter().any(|record| record.value.is_none());
        let compacted = view(&batch).compact(|record| keep(record.offset), horizon).unwrap();
        let rebuilt = match compacted {
            Compacted::Empty => {
                prop_assert!(expected.is_empty());
                return Ok(());
            }
            Compacted::Unchanged => {
                prop_assert_eq!(expected.len(), before.len());
                prop_assert!(!has_tombstone || horizon.is_none());
                return Ok(());
            }
            Compacted::Rebuilt(rebuilt) => rebuilt,
        };
        prop_assert_eq!(&ours(&rebuilt), &expected);
        prop_assert_eq!(theirs(&rebuilt), expected.iter().map(plain).collect::<Vec<_>>());
        let (old, new) = (*view(&batch).header(), *view(&rebuilt).header());
        prop_assert_eq!(new.record_count as usize, expected.len());
        prop_assert_eq!(new.delete_horizon_ms(), horizon.filter(|_| has_tombstone));
        prop_assert_eq!(new.compression().unwrap(), old.compression().unwrap());
        let fixed = |h: &BatchHeader| (h.base_offset, h.leader_epoch, h.last_offset_delta,
            h.producer_id, h.producer_epoch, h.base_sequence);
        prop_assert_eq!(fixed(&new), fixed(&old));
        prop_assert_eq!(Some(new.max_timestamp_ms), expected.iter().map(|r| r.timestamp_ms).max());
        // And once more: a horizon that is there stays, and so does what needs no change.
        let again = view(&rebuilt).compact(|_| true, Some(7)).unwrap();
        let stamps_now = has_tombstone && new.delete_horizon_ms().is_none();
        prop_assert_eq!(again == Compacted::Unchanged, !stamps_now);
        if new.delete_horizon_ms().is_some() || expected.len() < before.len() {
            let refused = validate(&rebuilt, ValidateDepth::Structure, &BatchLimits::default());
            prop_assert!(refused.is_err(), "a client may not publish it");
        }
    }
}

#[test]
fn a_visit_sees_keys_and_tombstones_and_may_end_early() {
    for compression in Compression::ALL {
        let record = |key: &[u8], value: Option<&[u8]>| Plain {
            timestamp_ms: 5,
            key: Some(key.to_vec()),
            value: value.map(<[u8]>::to_vec),
            headers: vec![("h".to_owned(), None)],
        };
        let plains = [record(b"a", Some(b"1")), record(b"b", None), record(b"c", Some(b""))];
        let batch = build(compression, NOBODY, &plains);
        let mut seen = Vec::new();
        view(&batch)
            .visit(|record| {
                seen.push((record.offset, record.key.unwrap().to_vec(), record.is_tombstone));
                record.offset < 1
            })
            .unwrap();
        assert_eq!(seen, [(0, b"a".to_vec(), false), (1, b"b".to_vec(), true)]);
    }
}

#[test]
fn a_record_without_a_key_is_refused_where_keys_are_needed() {
    let keyed = Plain { timestamp_ms: 1, key: Some(vec![]), value: None, headers: vec![] };
    let keyless = Plain { key: None, ..keyed.clone() };
    let limits = BatchLimits { keys_required: true, ..BatchLimits::default() };
    for compression in Compression::ALL {
        let check = |plains: &[Plain]| {
            validate(&build(compression, NOBODY, plains), ValidateDepth::Structure, &limits)
        };
        check(&[keyed.clone(), keyed.clone()]).unwrap();
        let error = check(&[keyed.clone(), keyless.clone()]).unwrap_err();
        assert!(matches!(error, BatchError::InvalidRecord { index: 1, .. }), "{error}");
        assert!(error.to_string().contains("no key"), "{error}");
    }
}
