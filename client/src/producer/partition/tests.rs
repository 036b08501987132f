//! Rules of sequence and order, one by one.

use highwater_proto::batch::{BatchBuilder, BatchHeader, Compression};
use tonic::Code;

use super::*;
use crate::env::Env;
use crate::record::Acks;

const IDENTITY: Identity = Identity { producer_id: 7, epoch: 0 };
const PATIENCE: Duration = Duration::from_secs(30);

/// A batch by its id: acknowledged, or the reason and whether it may have been written.
type Told = (u64, Result<(), (String, bool)>);

/// A partition, and a leader that remembers what it was sent.
struct Bench {
    partition: Partition,
    now: Instant,
    next_request: u64,
}

impl Bench {
    fn new(idempotent: bool) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let now = Env::new(runtime.handle().clone(), Some(1)).now();
        Self { partition: Partition::new(idempotent), now, next_request: 0 }
    }

    /// Puts a batch of `records` in flight and sends it; its id and request.
    fn send_new(&mut self, records: u32) -> u64 {
        let mut builder = BatchBuilder::new(Compression::None);
        if self.partition.idempotent {
            let (identity, sequence) = self.partition.stamp(IDENTITY);
            builder.set_producer(identity.producer_id, identity.epoch, sequence);
        }
        for _ in 0..records {
            builder.push(0, None, Some(b"v"), &[]).unwrap();
        }
        let id = self.next_request;
        self.partition.add(Pending {
            id,
            completion: Arc::default(),
            cost: 1,
            deadline: self.now + PATIENCE,
            record_count: records,
            batch: builder.build().unwrap(),
            sent: None,
            doubt: false,
            sequence_refused: false,
            outcome: None,
            last: None,
        });
        self.send_unsent();
        id
    }

    /// Sends everything that is to be sent, on stream 1; the requests with epoch and sequence of each.
    fn send_unsent(&mut self) -> Vec<(u64, i16, i32)> {
        let mut sent = Vec::new();
        while let Some(pending) = self.partition.next_unsent() {
            let request_id = self.next_request;
            self.next_request += 1;
            pending.sent = Some(Sent { stream: 1, request_id, at: self.now });
            let header = BatchHeader::read(&pending.batch).unwrap();
            sent.push((request_id, header.producer_epoch, header.base_sequence));
        }
        sent
    }

    fn ack(&mut self, request_id: u64) -> bool {
        let ack = BatchAck {
            partition: 0,
            base_offset: 0,
            epoch: 1,
            duplicate: false,
            reached: Acks::QuorumFsync,
            append_time_ms: 0,
        };
        self.partition.on_ack(request_id, ack)
    }

    fn fail(&mut self, request_id: u64, reason: &str) {
        let refusal = Refusal::local(reason, Code::Unavailable, reason);
        self.partition.on_failure(request_id, refusal);
    }

    fn fail_unknown(&mut self, request_id: u64) {
        self.partition.on_failure(request_id, Refusal::connection("unknown"));
    }

    /// What has been resolved since the last call.
    fn resolved(&mut self) -> Vec<Told> {
        let told = |outcome: Outcome| match outcome {
            Ok(_) => Ok(()),
            Err(error) => Err((error.reason().to_owned(), error.may_have_been_written())),
        };
        let resolved = self.partition.take_resolved().into_iter();
        resolved.map(|resolved| (resolved.id, told(resolved.outcome))).collect()
    }
}

fn failed(reason: &str, may_have_been_written: bool) -> Result<(), (String, bool)> {
    Err((reason.to_owned(), may_have_been_written))
}

#[test]
fn sequences_follow_one_another_and_five_batches_are_in_flight_at_most() {
    let mut bench = Bench::new(true);
    for records in [3, 1, 2, 1, 1] {
        assert!(bench.partition.has_room());
        bench.send_new(records);
    }
    assert!(!bench.partition.has_room());
    assert_eq!(bench.partition.next_sequence, 8);
    assert!(bench.ack(0));
    assert!(bench.partition.has_room());
    assert!(!bench.ack(0), "an answer counts once");
}

#[test]
fn batches_resolve_from_the_front_whatever_order_answers_come_in() {
    let mut bench = Bench::new(true);
    (0..3).for_each(|_| _ = bench.send_new(1));
    bench.ack(2);
    bench.ack(1);
    assert_eq!(bench.resolved(), []);
    bench.ack(0);
    assert_eq!(bench.resolved(), [(0, Ok(())), (1, Ok(())), (2, Ok(()))]);
}

#[test]
fn after_a_failure_nothing_is_sent_until_all_answers_are_in_and_then_all_in_order() {
    let mut bench = Bench::new(true);
    (0..3).for_each(|_| _ = bench.send_new(2));
    bench.fail(0, reason::OVERLOADED);
    assert!(bench.partition.is_recovering() && bench.partition.is_waiting());
    assert!(!bench.partition.has_room());
    bench.fail(1, reason::OUT_OF_ORDER_SEQUENCE);
    bench.fail(2, reason::OUT_OF_ORDER_SEQUENCE);
    assert!(!bench.partition.is_waiting());
    bench.partition.end_recovery().unwrap();
    assert_eq!(bench.send_unsent(), [(3, 0, 0), (4, 0, 2), (5, 0, 4)], "the same sequences");
    assert_eq!(bench.resolved(), []);
}

#[test]
fn a_batch_refused_for_good_leaves_no_gap_for_those_behind_it() {
    let mut bench = Bench::new(true);
    (0..3).for_each(|_| _ = bench.send_new(2));
    bench.fail(0, reason::INVALID_BATCH);
    bench.fail(1, reason::OUT_OF_ORDER_SEQUENCE);
    bench.fail(2, reason::OUT_OF_ORDER_SEQUENCE);
    assert_eq!(bench.resolved(), [(0, failed(reason::INVALID_BATCH, false))]);
    bench.partition.end_recovery().unwrap();
    assert_eq!(bench.send_unsent(), [(3, 1, 0), (4, 1, 2)], "the next epoch, from zero");
    assert_eq!(bench.partition.next_sequence, 4);
}

#[test]
fn batches_before_a_gap_go_on_under_the_old_epoch_and_those_behind_it_wait() {
    let mut bench = Bench::new(true);
    (0..3).for_each(|_| _ = bench.send_new(1));
    bench.fail_unknown(0);
    bench.fail(1, reason::INVALID_BATCH);
    bench.fail(2, reason::OUT_OF_ORDER_SEQUENCE);
    bench.partition.end_recovery().unwrap();
    assert_eq!(bench.send_unsent(), [(3, 0, 0)], "only what stands before the gap");
    assert!(!bench.partition.has_room());
    bench.ack(3);
    assert_eq!(bench.resolved(), [(0, Ok(())), (1, failed(reason::INVALID_BATCH, false))]);
    assert!(bench.partition.is_recovering());
    bench.partition.end_recovery().unwrap();
    assert_eq!(bench.send_unsent(), [(4, 1, 0)]);
}

#[test]
fn a_lost_stream_puts_only_its_own_batches_in_doubt() {
    let mut bench = Bench::new(true);
    (0..2).for_each(|_| _ = bench.send_new(1));
    assert!(!bench.partition.on_stream_lost(9, &Refusal::connection("another")));
    assert!(bench.partition.on_stream_lost(1, &Refusal::connection("broken")));
    assert!(bench.partition.pending.iter().all(|pending| pending.doubt));
    bench.partition.end_recovery().unwrap();
    assert_eq!(bench.send_unsent(), [(2, 0, 0), (3, 0, 1)]);
    bench.ack(2);
    bench.ack(3);
    assert_eq!(bench.resolved(), [(0, Ok(())), (1, Ok(()))]);
}

#[test]
fn a_batch_given_up_in_doubt_takes_those_in_doubt_behind_it_along() {
    let mut bench = Bench::new(true);
    (0..2).for_each(|_| _ = bench.send_new(1));
    bench.partition.on_stream_lost(1, &Refusal::connection("broken"));
    bench.partition.pending[1].deadline += PATIENCE;
    let late = bench.now + PATIENCE;
    assert!(bench.partition.expire(late, PATIENCE));
    assert_eq!(bench.resolved(), [(0, failed(reason::OUTCOME_UNKNOWN, true))]);
    bench.partition.end_recovery().unwrap();
    assert_eq!(bench.resolved(), [(1, failed(reason::CONNECTION, true))]);
    assert_eq!(bench.partition.stamp(IDENTITY).0.epoch, 1);
    assert_eq!(bench.partition.stamp(IDENTITY).1, 0);
}

#[test]
fn a_broken_sequence_with_nothing_in_doubt_starts_over_at_once() {
    let mut bench = Bench::new(true);
    bench.send_new(4);
    bench.ack(0);
    (0..2).for_each(|_| _ = bench.send_new(1));
    bench.fail(1, reason::UNKNOWN_PRODUCER);
    bench.fail(2, reason::UNKNOWN_PRODUCER);
    bench.partition.end_recovery().unwrap();
    assert_eq!(bench.send_unsent(), [(3, 1, 0), (4, 1, 1)]);
}

#[test]
fn a_broken_sequence_in_doubt_is_tried_again_and_then_fails_rather_than_duplicates() {
    let mut bench = Bench::new(true);
    bench.send_new(1);
    bench.ack(0);
    bench.send_new(1);
    bench.fail_unknown(1);
    let mut tries = 0;
    loop {
        bench.partition.end_recovery().unwrap();
        let sent = bench.send_unsent();
        let Some((request, epoch, sequence)) = sent.first().copied() else { break };
        assert_eq!((epoch, sequence), (0, 1), "never under another name");
        bench.fail(request, reason::OUT_OF_ORDER_SEQUENCE);
        tries += 1;
    }
    assert_eq!(tries, SEQUENCE_TRIES_MAX + 1);
    let expected = [(0, Ok(())), (1, failed(reason::OUT_OF_ORDER_SEQUENCE, true))];
    assert_eq!(bench.resolved(), expected);
}

#[test]
fn what_stands_before_an_acknowledged_batch_is_not_put_behind_it() {
    let mut bench = Bench::new(true);
    (0..3).for_each(|_| _ = bench.send_new(1));
    bench.fail(0, reason::OUT_OF_ORDER_SEQUENCE);
    bench.ack(1);
    bench.fail(2, reason::OUT_OF_ORDER_SEQUENCE);
    bench.partition.end_recovery().unwrap();
    let resolved = bench.resolved();
    assert_eq!(resolved[0], (0, failed(reason::OUT_OF_ORDER_SEQUENCE, true)));
    assert_eq!(resolved[1], (1, Ok(())));
    assert_eq!(bench.send_unsent(), [(3, 1, 0)]);
}

#[test]
fn a_fenced_producer_stays_fenced() {
    let mut bench = Bench::new(true);
    bench.send_new(1);
    bench.fail(0, reason::PRODUCER_FENCED);
    assert_eq!(bench.resolved(), [(0, failed(reason::PRODUCER_FENCED, false))]);
    bench.partition.end_recovery().unwrap();
    assert!(!bench.partition.has_room());
}

#[test]
fn without_idempotence_one_batch_is_in_flight_and_an_unknown_outcome_ends_it() {
    let mut bench = Bench::new(false);
    bench.send_new(1);
    assert!(!bench.partition.has_room());
    bench.fail(0, reason::OVERLOADED);
    bench.partition.end_recovery().unwrap();
    assert_eq!(bench.send_unsent(), [(1, -1, -1)], "certainly not written: again");
    bench.partition.on_stream_lost(1, &Refusal::connection("broken"));
    assert_eq!(bench.resolved(), [(0, failed(reason::CONNECTION, true))]);
    bench.partition.end_recovery().unwrap();
    assert!(bench.partition.has_room());
}

#[test]
fn deadlines_are_the_earlier_of_the_delivery_and_the_try() {
    let mut bench = Bench::new(true);
    bench.send_new(1);
    let try_max = Duration::from_secs(10);
    assert_eq!(bench.partition.next_deadline(try_max), Some(bench.now + try_max));
    assert_eq!(bench.partition.stalled_stream(bench.now, try_max), None);
    assert_eq!(bench.partition.stalled_stream(bench.now + try_max, try_max), Some(1));
    bench.partition.on_stream_lost(1, &Refusal::connection("broken"));
    assert_eq!(bench.partition.next_deadline(try_max), Some(bench.now + PATIENCE));
}

#[test]
fn epochs_that_are_used_up_are_an_error_not_a_wrap() {
    let mut bench = Bench::new(true);
    bench.send_new(1);
    bench.partition.identity = Some(Identity { producer_id: 7, epoch: i16::MAX });
    bench.fail(0, reason::INVALID_BATCH);
    assert!(bench.partition.end_recovery().is_err());
}
