//! Each fault, made by hand, must be found; a clean history must be clean.

use super::*;

fn published(sequence: u64, key: &str) -> Happening {
    let hash = u32::try_from(sequence).unwrap();
    Happening::Published { sequence, key: key.to_owned(), hash, at_ms: sequence }
}

fn acknowledged(sequence: u64, partition: u32, offset: i64) -> Happening {
    let at_ms = 10 * (sequence + 1);
    Happening::Acknowledged { sequence, partition, offset, duplicate: false, at_ms }
}

fn read(sequence: u64, partition: u32, offset: i64, key: &str) -> Happening {
    read_by("live", sequence, partition, offset, key)
}

fn read_by(reader: &str, sequence: u64, partition: u32, offset: i64, key: &str) -> Happening {
    let hash = u32::try_from(sequence).unwrap();
    let (reader, key) = (reader.to_owned(), key.to_owned());
    Happening::Read { reader, partition, offset, sequence, key, hash, at_ms: 0 }
}

/// Three events of two keys, acknowledged.
fn three() -> Vec<Happening> {
    let mut lines = vec![published(0, "a"), published(1, "b"), published(2, "a")];
    lines.extend([acknowledged(0, 0, 0), acknowledged(1, 1, 0), acknowledged(2, 0, 1)]);
    lines
}

fn judge(lines: impl IntoIterator<Item = Happening>) -> Verdict {
    let mut checker = Checker::default();
    for line in three().into_iter().chain(lines) {
        checker.add(line);
    }
    checker.finish()
}

fn live(verdict: &Verdict) -> &Reading {
    &verdict.readers["live"]
}

#[test]
fn a_clean_history_is_clean() {
    let verdict = judge([read(1, 1, 0, "b"), read(0, 0, 0, "a"), read(2, 0, 1, "a")]);
    assert!(verdict.is_clean(), "{verdict}");
    assert_eq!((verdict.published, verdict.acknowledged, live(&verdict).read), (3, 3, 3));
    assert_eq!((verdict.pause_ms_longest, verdict.duration_ms), (20, 30));
    assert_eq!(verdict.acknowledgement_ms_slowest, 28);
}

#[test]
fn an_acknowledged_event_that_is_not_read_is_lost() {
    let verdict = judge([read(0, 0, 0, "a"), read(2, 0, 1, "a")]);
    assert_eq!(live(&verdict).lost, 1);
    assert!(!verdict.is_clean());
    assert_eq!(verdict.problems, ["live: event 1 at 1:0 is lost"]);
}

#[test]
fn an_event_that_is_read_twice_is_duplicated() {
    let lines = [read(0, 0, 0, "a"), read(1, 1, 0, "b"), read(2, 0, 1, "a"), read(2, 0, 1, "a")];
    let verdict = judge(lines);
    assert_eq!((live(&verdict).duplicated, live(&verdict).out_of_order), (1, 0));
    assert!(!verdict.is_clean());
}

#[test]
fn an_earlier_event_after_a_later_one_is_out_of_order() {
    let verdict = judge([read(2, 0, 1, "a"), read(0, 0, 0, "a"), read(1, 1, 0, "b")]);
    assert_eq!(live(&verdict).out_of_order, 1);
    assert!(!verdict.is_clean());
}

#[test]
fn a_key_in_two_partitions_is_out_of_order() {
    let mut checker = Checker::default();
    for line in [published(0, "a"), published(1, "a"), acknowledged(0, 0, 0), acknowledged(1, 1, 0)]
    {
        checker.add(line);
    }
    checker.add(read(0, 0, 0, "a"));
    checker.add(read(1, 1, 0, "a"));
    assert_eq!(checker.finish().readers["live"].out_of_order, 1);
}

#[test]
fn an_event_elsewhere_than_acknowledged_is_altered() {
    let verdict = judge([read(0, 0, 0, "a"), read(1, 1, 5, "b"), read(2, 0, 1, "a")]);
    assert_eq!(live(&verdict).altered, 1);
    assert!(!verdict.is_clean());
}

#[test]
fn an_event_with_other_bytes_is_altered() {
    let mut other = read(1, 1, 0, "b");
    if let Happening::Read { hash, .. } = &mut other {
        *hash += 1;
    }
    let verdict = judge([read(0, 0, 0, "a"), other, read(2, 0, 1, "a")]);
    assert_eq!(live(&verdict).altered, 1);
}

#[test]
fn an_event_that_nobody_published_is_altered() {
    let lines = [read(0, 0, 0, "a"), read(1, 1, 0, "b"), read(2, 0, 1, "a"), read(9, 1, 1, "b")];
    assert_eq!(live(&judge(lines)).altered, 1);
}

#[test]
fn a_place_that_changed_between_readers_is_altered() {
    let mut lines = vec![read(0, 0, 0, "a"), read(1, 1, 0, "b"), read(2, 0, 1, "a")];
    lines.extend([read_by("later", 0, 0, 0, "a"), read_by("later", 2, 0, 1, "a")]);
    lines.push(read_by("later", 7, 1, 0, "b"));
    let verdict = judge(lines);
    assert!(verdict.readers["later"].altered >= 1);
    assert_eq!(verdict.readers["later"].lost, 1);
    assert_eq!(live(&verdict).altered, 0);
}

#[test]
fn an_unacknowledged_event_may_be_read_once_but_the_run_is_not_clean() {
    let mut lines = vec![published(3, "b")];
    lines.push(Happening::Refused { sequence: 3, may_have_been_written: true, at_ms: 99 });
    lines.extend([read(0, 0, 0, "a"), read(1, 1, 0, "b"), read(2, 0, 1, "a"), read(3, 1, 1, "b")]);
    let verdict = judge(lines);
    assert_eq!((verdict.unacknowledged, live(&verdict).duplicated), (1, 0));
    assert_eq!((live(&verdict).lost, live(&verdict).altered), (0, 0));
    assert!(!verdict.is_clean());
}

#[test]
fn nothing_read_is_not_clean() {
    assert!(!judge([]).is_clean());
    assert!(!Checker::default().finish().is_clean());
}
