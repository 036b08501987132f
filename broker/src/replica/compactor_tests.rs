//! Passes over a log of real batches: what stays, what goes, and with how little memory.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use highwater_proto::batch::{BatchBuilder, BatchView, Compression};
use highwater_storage::{
    Compacted, Disk, EntryMeta, Log, LogOptions, LogStart, OpenSealed, SimDisk,
};

use super::compactor::{Plan, Report};
use super::engine::PartitionSettings;
use super::envelope;
use super::partition_reader::PartitionReader;

const DIR: &str = "g";
const START: LogStart = LogStart { first_index: 6, prev_term: 5, next_offset: 0 };
const RETENTION_MS: i64 = 1_000;

type Records<'a> = &'a [(&'a str, Option<&'a str>)];

struct Partition {
    disk: Arc<dyn Disk>,
    log: Log,
    part: Compacted,
    map_bytes_max: u64,
}

impl Partition {
    fn new() -> Self {
        let disk: Arc<dyn Disk> = Arc::new(SimDisk::new(1));
        let options = LogOptions::default();
        let log = Log::create(Arc::clone(&disk), Path::new(DIR), START, options).unwrap();
        let part =
            Compacted::open(Arc::clone(&disk), Path::new(DIR), OpenSealed::default()).unwrap();
        Self { disk, log, part, map_bytes_max: 1 << 20 }
    }

    fn reader(&self) -> PartitionReader {
        PartitionReader { log: self.log.reader(), compacted: self.part.reader() }
    }

    /// Appends a batch whose records have their keys and values, all of the same time.
    fn append(&mut self, codec: Compression, timestamp_ms: i64, records: Records<'_>) {
        let mut builder = BatchBuilder::new(codec);
        for (key, value) in records {
            let key = Some(key.as_bytes()).filter(|key| !key.is_empty());
            builder.push(timestamp_ms, key, value.map(str::as_bytes), &[]).unwrap();
        }
        let batch = builder.build().unwrap();
        let meta = EntryMeta {
            index: self.log.last_index() + 1,
            term: 5,
            kind: 1,
            offset_span: u32::try_from(records.len()).unwrap(),
            append_time_ms: timestamp_ms,
            max_timestamp_ms: timestamp_ms,
        };
        let stamp = envelope::stamp(&batch, self.log.next_offset(), 5);
        self.log.append(&meta, &[&stamp, &batch[stamp.len()..]]).unwrap();
    }

    fn is_due(&self, now_ms: i64) -> bool {
        let segments = self.log.segments();
        Plan::make(&self.reader(), &segments[..segments.len() - 1], now_ms).is_some()
    }

    fn pass(&mut self, now_ms: i64) -> Report {
        let (reader, segments) = (self.reader(), self.log.segments());
        let plan =
            Plan::make(&reader, &segments[..segments.len() - 1], now_ms).expect("a pass is due");
        let settings = PartitionSettings {
            compact: true,
            delete_retention_ms: RETENTION_MS,
            ..PartitionSettings::default()
        };
        let (mut staged, report) =
            plan.carry_out(&reader, &settings, self.map_bytes_max, [1, 2], &mut || Ok(())).unwrap();
        self.part.install(&mut staged).unwrap();
        self.log.truncate_prefix(self.part.end().unwrap().first_index).unwrap();
        report
    }

    /// Offset, timestamp, key and value of all records.
    fn records(&self) -> Vec<(u64, i64, String, Option<String>)> {
        let (reader, mut out, mut from) = (self.reader(), Vec::new(), 0);
        loop {
            let stored = reader.read_offsets(from, self.log.next_offset(), 1).unwrap();
            if stored.next_offset == from {
                return out;
            }
            for entry in stored.entries {
                let view = BatchView::parse(entry.payload).unwrap();
                for record in view.records().unwrap().map(Result::unwrap) {
                    let text = |bytes: Bytes| String::from_utf8(bytes.to_vec()).unwrap();
                    let offset = u64::try_from(record.offset).unwrap();
                    let key = record.key.map(text).unwrap_or_default();
                    out.push((offset, record.timestamp_ms, key, record.value.map(text)));
                }
            }
            from = stored.next_offset;
        }
    }

    fn offsets(&self) -> Vec<u64> {
        self.records().into_iter().map(|(offset, ..)| offset).collect()
    }
}

#[test]
fn the_last_record_of_each_key_stays_at_its_offset_with_every_codec() {
    for codec in Compression::ALL {
        let mut partition = Partition::new();
        partition.append(codec, 10, &[("a", Some("1")), ("b", Some("1")), ("c", Some("1"))]);
        partition.append(codec, 20, &[("a", Some("2")), ("d", Some("1"))]);
        partition.append(codec, 30, &[("a", Some("3")), ("b", Some("2"))]);
        let untouched =
            partition.reader().read_offsets(5, 7, 1).unwrap().entries[0].payload.clone();
        partition.log.roll().unwrap();
        partition.append(codec, 40, &[("a", Some("4"))]);
        let report = partition.pass(100);
        assert_eq!(report.records_dropped, 3);
        let stays = |offset, time, key: &str, value: &str| {
            (offset, time, key.to_owned(), Some(value.to_owned()))
        };
        // The active segment is not looked at: what it supersedes stays for now.
        let expected = [
            stays(2, 10, "c", "1"),
            stays(4, 20, "d", "1"),
            stays(5, 30, "a", "3"),
            stays(6, 30, "b", "2"),
            stays(7, 40, "a", "4"),
        ];
        assert_eq!(partition.records(), expected);
        let reader = partition.reader();
        let kept = reader.read_offsets(5, 7, 1).unwrap().entries[0].payload.clone();
        assert_eq!(kept, untouched, "a batch that keeps its records is the same to the byte");
        assert_eq!(reader.read_offsets(0, 8, 1).unwrap().next_offset, 3, "spans stay as well");
        assert!(!partition.is_due(100), "nothing new is sealed");
    }
}

#[test]
fn a_tombstone_stays_for_its_time_and_then_goes() {
    for codec in Compression::ALL {
        let mut partition = Partition::new();
        partition.append(codec, 10, &[("a", Some("1")), ("b", Some("1"))]);
        partition.append(codec, 5_000_000, &[("a", None), ("c", Some("1"))]);
        partition.log.roll().unwrap();
        partition.pass(6_000_000);
        let expected = [(1, 10, "b"), (2, 5_000_000, "a"), (3, 5_000_000, "c")];
        let brief = |p: &Partition| -> Vec<_> {
            p.records().into_iter().map(|(offset, time, key, _)| (offset, time, key)).collect()
        };
        let owned = |(offset, time, key): (u64, i64, &str)| (offset, time, key.to_owned());
        assert_eq!(brief(&partition), expected.map(owned), "with the timestamps they had");
        assert!(!partition.is_due(6_000_000 + RETENTION_MS - 1));
        assert!(partition.is_due(6_000_000 + RETENTION_MS), "only because its time is up");
        partition.pass(6_000_000 + RETENTION_MS);
        assert_eq!(partition.offsets(), [1, 3]);
        assert!(!partition.is_due(1 << 60));
    }
}

#[test]
fn the_last_record_of_all_stays_even_as_a_tombstone_until_another_follows() {
    let mut partition = Partition::new();
    partition.append(Compression::None, 10, &[("a", Some("1")), ("a", None)]);
    partition.log.roll().unwrap();
    partition.pass(100);
    partition.pass(100 + RETENTION_MS);
    assert_eq!(partition.offsets(), [1]);
    assert!(!partition.is_due(1 << 60), "and is no reason to look again and again");
    partition.append(Compression::None, 20, &[("b", Some("1"))]);
    partition.log.roll().unwrap();
    partition.pass(200 + RETENTION_MS);
    assert_eq!(partition.offsets(), [2]);
}

#[test]
fn a_batch_whose_records_are_all_superseded_leaves_a_gap_that_reading_passes_over() {
    let mut partition = Partition::new();
    for round in 0..5 {
        partition.append(Compression::Lz4, round, &[("a", Some("x")), ("b", Some("y"))]);
    }
    partition.log.roll().unwrap();
    partition.pass(100);
    assert_eq!(partition.offsets(), [8, 9]);
    let reader = partition.reader();
    for from in 0..8 {
        assert_eq!(reader.read_offsets(from, 10, 1).unwrap().entries[0].base_offset, 8);
    }
    assert_eq!(reader.entry_at_time(0, 10).unwrap().unwrap().base_offset, 8);
    assert_eq!(reader.read_offsets(10, 10, 1).unwrap().next_offset, 10);
}

#[test]
fn records_without_a_key_from_before_stay() {
    let mut partition = Partition::new();
    partition.append(Compression::None, 1, &[("", Some("1")), ("a", Some("1")), ("", Some("2"))]);
    partition.append(Compression::None, 1, &[("a", Some("2"))]);
    partition.log.roll().unwrap();
    partition.pass(100);
    assert_eq!(partition.offsets(), [0, 2, 3]);
}

#[test]
fn a_map_of_few_keys_needs_more_passes_and_comes_to_the_same() {
    let mut partition = Partition::new();
    // 24 bytes a slot, three quarters of them used: six keys.
    partition.map_bytes_max = 8 * 24;
    let mut live = BTreeMap::new();
    for n in 0..400_u64 {
        let (key, value) = (format!("key-{}", n * n % 37), n.to_string());
        partition.append(Compression::ALL[(n % 5) as usize], 1, &[(&key, Some(&value))]);
        live.insert(key, n);
        if n % 40 == 39 {
            partition.log.roll().unwrap();
        }
    }
    let mut expected: Vec<u64> = live.into_values().collect();
    expected.sort_unstable();
    let mut passes = 0;
    let mut cleaned_to = 0;
    while partition.is_due(100) {
        partition.pass(100);
        passes += 1;
        let now = partition.part.manifest().unwrap().cleaned_to;
        assert!(now > cleaned_to, "every pass gets further");
        cleaned_to = now;
        let live = |p: &Partition| -> BTreeMap<String, Option<String>> {
            p.records().into_iter().map(|(.., key, value)| (key, value)).collect()
        };
        assert_eq!(live(&partition).len(), expected.len());
    }
    assert!(passes > 3, "{passes}");
    // What is left unclean is less than half, and no reason for another pass.
    let (offsets, manifest) = (partition.offsets(), partition.part.manifest().unwrap());
    assert!(expected.iter().all(|offset| offsets.contains(offset)));
    let clean = |offsets: &[u64]| offsets.iter().filter(|o| **o < manifest.cleaned_to).count();
    assert!(clean(&offsets) <= expected.len());
    partition.map_bytes_max = 1 << 20;
    partition.append(Compression::None, 1, &[("key-0", Some(&"x".repeat(100_000)))]);
    partition.log.roll().unwrap();
    partition.pass(100);
    expected.retain(|offset| offset * offset % 37 != 0);
    expected.push(400);
    assert_eq!(partition.offsets(), expected);
    let part = Compacted::open(Arc::clone(&partition.disk), Path::new(DIR), OpenSealed::default())
        .unwrap();
    assert_eq!(part.manifest(), partition.part.manifest(), "and it is all on disk");
}
