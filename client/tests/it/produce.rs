//! What a producer promises: acknowledged events are in the log once, in order, at the offset that was acknowledged.

use std::collections::HashMap;
use std::time::Duration;

use futures::future::join_all;
use highwater_client::{Ack, Acks, Client, Compression, Record, SendError, Ticket};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::fake::{Fake, ProduceFault, TOPIC, soon, until};

/// What was sent to one partition, in order, with what became of it.
type History = Vec<(String, Result<Ack, SendError>)>;

/// The oracle of the log: acknowledged values are there once, at their offset; others at most once; none out of order.
fn check(values: &[String], history: &History) {
    let mut places: HashMap<&str, Vec<usize>> = HashMap::new();
    for (at, value) in values.iter().enumerate() {
        places.entry(value).or_default().push(at);
    }
    let mut last = None;
    for (value, outcome) in history {
        let found = places.remove(value.as_str()).unwrap_or_default();
        match outcome {
            Ok(ack) => {
                let offset = usize::try_from(ack.offset).unwrap();
                assert_eq!(found, [offset], "{value} was acknowledged at {offset}");
                assert!(last < Some(offset), "{value} at {offset} comes before {last:?}");
                last = Some(offset);
            }
            Err(error) => {
                assert!(found.len() <= 1, "{value} is there {} times", found.len());
                let there = !found.is_empty();
                assert!(error.may_have_been_written() || !there, "{value}: {error}");
            }
        }
    }
    assert!(places.is_empty(), "values from nowhere: {places:?}");
}

async fn outcomes(sent: Vec<(String, Ticket)>) -> History {
    let (values, tickets): (Vec<_>, Vec<_>) = sent.into_iter().unzip();
    values.into_iter().zip(soon(join_all(tickets)).await).collect()
}

/// Sends numbered values to partition 0, each in a batch of its own as far as the bound of five in flight allows.
async fn send_numbered(
    producer: &highwater_client::Producer,
    numbers: std::ops::Range<u32>,
) -> Vec<(String, Ticket)> {
    let mut sent = Vec::new();
    for number in numbers {
        // About the size of a batch, so that no two share one.
        let value = format!("{number}-{}", "x".repeat(900));
        let ticket = producer.send_to_partition(0, value.as_str()).await.unwrap();
        sent.push((value, ticket));
    }
    sent
}

fn producer_of_small_batches(client: &Client) -> highwater_client::ProducerBuilder {
    client.producer(TOPIC).batch_bytes_max(1024).request_timeout(Duration::from_secs(5))
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_acknowledged_at_their_offsets_and_keys_keep_to_their_partitions() {
    let fake = Fake::start(2, 3).await;
    let client = fake.client().await;
    for compression in Compression::ALL {
        let producer = client.producer(TOPIC).compression(compression).acks(Acks::Quorum).build();
        let mut sent = Vec::new();
        for n in 0..500 {
            let record = Record::new(format!("{compression} {n}")).with_key(format!("k{}", n % 7));
            sent.push((n % 7, producer.send(record.with_header("h", "v")).await.unwrap()));
        }
        producer.flush().await.unwrap();
        let mut by_key: HashMap<u32, (u32, i64)> = HashMap::new();
        for (key, ticket) in sent {
            let ack = ticket.await.unwrap();
            assert_eq!(ack.reached, Acks::Quorum);
            let (partition, offset) = *by_key.entry(key).or_insert((ack.partition, -1));
            assert_eq!(partition, ack.partition, "a key stays where it is");
            assert!(ack.offset > offset, "later events of a key come behind earlier ones");
            by_key.insert(key, (partition, ack.offset));
        }
    }
    let total: usize = fake.world.lock().logs.iter().map(|log| log.values().len()).sum();
    assert_eq!(total, 5 * 500);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_of_a_stream_leaves_each_event_in_the_log_once_and_in_order() {
    let faults = [
        ProduceFault::BreakAfterWrite,
        ProduceFault::BreakBeforeWrite,
        ProduceFault::WriteThenUnknown,
        ProduceFault::UnknownWithoutWrite,
        ProduceFault::Overloaded,
        ProduceFault::AnswerLater,
    ];
    for fault in faults {
        let fake = Fake::start(1, 1).await;
        fake.world.lock().produce_faults = [None, None, Some(fault), None, Some(fault)].into();
        let producer = producer_of_small_batches(&fake.client().await).build();
        let history = outcomes(send_numbered(&producer, 0..20).await).await;
        assert!(history.iter().all(|(_, outcome)| outcome.is_ok()), "{fault:?}: {history:?}");
        check(&fake.world.lock().logs[0].values(), &history);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_never_comes_is_asked_for_again_and_recognised() {
    let fake = Fake::start(1, 1).await;
    fake.world.lock().produce_faults = [None, Some(ProduceFault::Swallow)].into();
    let client = fake.client().await;
    let producer = producer_of_small_batches(&client).request_timeout(Duration::from_millis(50));
    let history = outcomes(send_numbered(&producer.build(), 0..8).await).await;
    check(&fake.world.lock().logs[0].values(), &history);
    assert!(history[1].1.as_ref().unwrap().duplicate);
    assert!(!history[0].1.as_ref().unwrap().duplicate);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_refused_for_good_fails_alone_and_the_others_go_on_in_order() {
    let fake = Fake::start(1, 1).await;
    fake.world.lock().produce_faults = [None, None, Some(ProduceFault::Invalid)].into();
    let producer = producer_of_small_batches(&fake.client().await).build();
    let history = outcomes(send_numbered(&producer, 0..20).await).await;
    let failed: Vec<_> = history.iter().filter_map(|(_, outcome)| outcome.as_ref().err()).collect();
    assert_eq!(failed.len(), 1, "{failed:?}");
    assert_eq!(failed[0].reason(), "INVALID_BATCH");
    assert!(!failed[0].may_have_been_written() && !failed[0].is_retriable());
    check(&fake.world.lock().logs[0].values(), &history);
    assert_eq!(producer.flush().await.unwrap_err().reason(), "INVALID_BATCH");
    producer.flush().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn leaders_that_move_are_followed_with_and_without_hints() {
    for hints in [true, false] {
        let fake = Fake::start(3, 1).await;
        fake.world.lock().hints = hints;
        let producer = producer_of_small_batches(&fake.client().await).build();
        let mut sent = Vec::new();
        for round in 0..6 {
            sent.extend(send_numbered(&producer, round * 10..round * 10 + 10).await);
            fake.lead(0, (round as usize + 1) % 3);
        }
        let history = outcomes(sent).await;
        assert!(history.iter().all(|(_, outcome)| outcome.is_ok()), "{hints}: {history:?}");
        check(&fake.world.lock().logs[0].values(), &history);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_leader_is_replaced_and_a_restarted_one_is_found_again() {
    let fake = Fake::start(2, 1).await;
    let producer = producer_of_small_batches(&fake.client().await).build();
    let mut sent = send_numbered(&producer, 0..10).await;
    fake.kill(0);
    sent.extend(send_numbered(&producer, 10..20).await);
    fake.lead(0, 1);
    sent.extend(send_numbered(&producer, 20..30).await);
    producer.flush().await.unwrap();
    fake.revive(0).await;
    fake.kill(1);
    sent.extend(send_numbered(&producer, 30..40).await);
    fake.lead(0, 0);
    let history = outcomes(sent).await;
    assert!(history.iter().all(|(_, outcome)| outcome.is_ok()), "{history:?}");
    check(&fake.world.lock().logs[0].values(), &history);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_falls_silent_is_left_as_soon_as_another_leads() {
    let fake = Fake::start(2, 1).await;
    let client = fake.client().await;
    let hour = Duration::from_secs(3600);
    let producer = producer_of_small_batches(&client).request_timeout(hour).delivery_timeout(hour);
    let producer = producer.build();
    let mut sent = send_numbered(&producer, 0..5).await;
    producer.flush().await.unwrap();
    fake.world.lock().held = Some(0);
    sent.extend(send_numbered(&producer, 5..15).await);
    fake.lead(0, 1);
    let history = outcomes(sent).await;
    assert!(history.iter().all(|(_, outcome)| outcome.is_ok()), "{history:?}");
    // What the old leader was sent reaches it after all, and is refused there.
    fake.world.lock().held = None;
    let arrived = fake.world.lock().arrivals.len();
    until("old batches arrive", || fake.world.lock().arrivals.len() > arrived).await;
    check(&fake.world.lock().logs[0].values(), &history);
}

#[tokio::test(flavor = "multi_thread")]
async fn send_waits_at_the_bound_and_goes_on_when_there_is_room() {
    let fake = Fake::start(1, 1).await;
    let client = fake.client().await;
    let producer = producer_of_small_batches(&client).unacked_bytes_max(10_000).build();
    let mut sent = send_numbered(&producer, 0..1).await;
    producer.flush().await.unwrap();
    fake.world.lock().held = Some(0);
    sent.extend(send_numbered(&producer, 1..11).await);
    let value = "one too many".repeat(80);
    let mut blocked = Box::pin(producer.send(value.clone()));
    assert!(futures::poll!(&mut blocked).is_pending());
    assert!(producer.unacked_bytes() <= 10_000);
    assert!(matches!(producer.try_send(value.clone()), Err(SendError::Full)));
    fake.world.lock().held = None;
    sent.push((value, soon(blocked).await.unwrap()));
    let history = outcomes(sent).await;
    check(&fake.world.lock().logs[0].values(), &history);
    assert_eq!(producer.unacked_bytes(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_larger_than_the_bound_is_admitted_alone() {
    let fake = Fake::start(1, 1).await;
    let producer = fake.client().await.producer(TOPIC).unacked_bytes_max(100).build();
    let ack = producer.send("x".repeat(50_000)).await.unwrap();
    let ack = soon(ack).await.unwrap();
    assert_eq!(ack.offset, 0);
    assert_eq!(producer.unacked_bytes(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_out_of_time_fail_with_the_truth_about_their_outcome_and_later_ones_go_on() {
    let fake = Fake::start(1, 1).await;
    let client = fake.client().await;
    let patience = Duration::from_millis(300);
    let producer = producer_of_small_batches(&client).delivery_timeout(patience).build();
    let mut sent = send_numbered(&producer, 0..3).await;
    producer.flush().await.unwrap();
    fake.world.lock().held = Some(0);
    sent.extend(send_numbered(&producer, 3..13).await);
    let mut history = outcomes(sent).await;
    let unknown = |outcome: &Result<Ack, SendError>| {
        outcome.as_ref().err().map(SendError::may_have_been_written)
    };
    let truths: Vec<_> = history.iter().map(|(_, outcome)| unknown(outcome)).collect();
    assert_eq!(truths[..3], [None; 3]);
    // Five were in flight. The others never left, but for those that took their places before they were out of time themselves,
    // which they are a little later; the log shows at the end whether that is the truth.
    assert_eq!(truths[3..8], [Some(true); 5]);
    assert!(truths[8..].iter().all(Option::is_some), "{truths:?}");
    assert_eq!(history[3].1.as_ref().unwrap_err().reason(), "OUTCOME_UNKNOWN");
    fake.world.lock().held = None;
    until("what was in flight arrives late", || fake.world.lock().arrivals.len() >= 8).await;
    history.extend(outcomes(send_numbered(&producer, 13..20).await).await);
    assert!(history[13..].iter().all(|(_, outcome)| outcome.is_ok()), "{history:?}");
    check(&fake.world.lock().logs[0].values(), &history);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forgotten_producer_goes_on_when_nothing_is_in_doubt() {
    let fake = Fake::start(1, 1).await;
    let producer = producer_of_small_batches(&fake.client().await).build();
    let mut sent = send_numbered(&producer, 0..10).await;
    producer.flush().await.unwrap();
    fake.world.lock().logs[0].forget_producers();
    sent.extend(send_numbered(&producer, 10..30).await);
    let history = outcomes(sent).await;
    assert!(history.iter().all(|(_, outcome)| outcome.is_ok()), "{history:?}");
    check(&fake.world.lock().logs[0].values(), &history);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forgotten_producer_in_doubt_fails_rather_than_duplicates() {
    let fake = Fake::start(1, 1).await;
    let producer = producer_of_small_batches(&fake.client().await).build();
    let mut sent = send_numbered(&producer, 0..5).await;
    producer.flush().await.unwrap();
    {
        let mut world = fake.world.lock();
        world.produce_faults = [Some(ProduceFault::Swallow), Some(ProduceFault::Swallow)].into();
    }
    // The third is not full, so that it waits here while the other two are in flight.
    sent.extend(send_numbered(&producer, 5..8).await);
    until("two are written", || fake.world.lock().logs[0].next == 7).await;
    fake.world.lock().logs[0].forget_producers();
    // Breaks the stream: what is out is in doubt.
    fake.kill(0);
    fake.revive(0).await;
    let mut history = outcomes(sent).await;
    for at in [5, 6] {
        let error = history[at].1.as_ref().unwrap_err();
        assert!(matches!(error, SendError::SequenceBroken { .. }), "{error}");
    }
    history.extend(outcomes(send_numbered(&producer, 8..12).await).await);
    check(&fake.world.lock().logs[0].values(), &history);
    assert!(history[8..].iter().all(|(_, outcome)| outcome.is_ok()), "{history:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_idempotence_an_unknown_outcome_is_an_error_and_order_is_kept() {
    let fake = Fake::start(1, 1).await;
    fake.world.lock().produce_faults =
        [None, Some(ProduceFault::WriteThenUnknown), None, Some(ProduceFault::Overloaded)].into();
    let producer = producer_of_small_batches(&fake.client().await).idempotent(false).build();
    let history = outcomes(send_numbered(&producer, 0..20).await).await;
    let failed: Vec<_> = history.iter().filter_map(|(_, outcome)| outcome.as_ref().err()).collect();
    assert_eq!(failed.len(), 1, "{failed:?}");
    assert!(failed[0].may_have_been_written());
    check(&fake.world.lock().logs[0].values(), &history);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_made_anew_is_another_topic() {
    let fake = Fake::start(1, 1).await;
    let producer = fake.client().await.producer(TOPIC).build();
    soon(producer.send("a").await.unwrap()).await.unwrap();
    fake.world.lock().topic_id = "topic-2".into();
    let error = soon(producer.send("b").await.unwrap()).await.unwrap_err();
    assert_eq!(error.reason(), "TOPIC_ID_MISMATCH");
    assert!(!error.may_have_been_written() && !error.is_retriable());
    assert_eq!(fake.world.lock().logs[0].values(), ["a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_topic_fails_what_is_sent_to_it() {
    let fake = Fake::start(1, 1).await;
    let producer = fake.client().await.producer(TOPIC).build();
    soon(producer.send("a").await.unwrap()).await.unwrap();
    fake.kill(0);
    fake.world.lock().exists = false;
    let ticket = producer.send("b").await.unwrap();
    fake.revive(0).await;
    // It leads nothing any more, so the metadata is what tells.
    fake.world.lock().produce_faults = vec![Some(ProduceFault::Overloaded); 1000].into();
    let error = soon(ticket).await.unwrap_err();
    assert_eq!(error.reason(), "UNKNOWN_TOPIC");
    let error = producer.send("c").await.unwrap_err();
    assert_eq!(error.reason(), "UNKNOWN_TOPIC");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_sent_is_said_at_once() {
    let fake = Fake::start(1, 1).await;
    let client = fake.client().await;
    let unknown = soon(client.producer("nowhere").build().send("a")).await.unwrap_err();
    assert_eq!(unknown.reason(), "UNKNOWN_TOPIC");
    assert!(!unknown.may_have_been_written());
    let producer = client.producer(TOPIC).build();
    assert!(matches!(producer.try_send("too early"), Err(SendError::Full)));
    let far = producer.send_to_partition(9, "a").await.unwrap_err();
    assert_eq!(far.reason(), "UNKNOWN_PARTITION");
    let large = producer.send(vec![0u8; (1 << 20) + 1]).await.unwrap_err();
    assert_eq!(large.reason(), "TOO_LARGE");
    assert_eq!(producer.unacked_bytes(), 0);
    producer.close().await.unwrap();
    assert!(matches!(producer.send("late").await, Err(SendError::Closed)));
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_linger_together_share_a_batch() {
    let fake = Fake::start(1, 1).await;
    let producer =
        fake.client().await.producer(TOPIC).linger(Duration::from_secs(3600)).partition(0).build();
    let mut sent = Vec::new();
    for n in 0..100 {
        sent.push((n.to_string(), producer.send(n.to_string()).await.unwrap()));
    }
    // An hour has not passed: flushing sends what lingers.
    producer.flush().await.unwrap();
    let history = outcomes(sent).await;
    check(&fake.world.lock().logs[0].values(), &history);
    assert_eq!(fake.world.lock().logs[0].batches.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_without_keys_are_spread_over_partitions() {
    let fake = Fake::start(1, 4).await;
    let producer = fake.client().await.producer(TOPIC).build();
    for n in 0..40 {
        soon(producer.send(n.to_string()).await.unwrap()).await.unwrap();
    }
    let counts: Vec<_> = fake.world.lock().logs.iter().map(|log| log.next).collect();
    assert_eq!(counts.iter().sum::<i64>(), 40);
    assert!(counts.iter().all(|count| *count >= 5), "{counts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_producer_still_sends_what_it_admitted() {
    let fake = Fake::start(1, 1).await;
    let producer = fake.client().await.producer(TOPIC).linger(Duration::from_secs(3600)).build();
    let ticket = producer.send("last words").await.unwrap();
    drop(producer);
    assert_eq!(soon(ticket).await.unwrap().offset, 0);
}

/// Random faults, leaders that move, nodes that die: whatever happens, the oracle holds.
async fn soak(seed: u64) {
    let mut random = SmallRng::seed_from_u64(seed);
    let fake = Fake::start(3, 2).await;
    fake.world.lock().hints = random.random_bool(0.5);
    let kinds = [
        ProduceFault::BreakAfterWrite,
        ProduceFault::BreakBeforeWrite,
        ProduceFault::WriteThenUnknown,
        ProduceFault::UnknownWithoutWrite,
        ProduceFault::Overloaded,
        ProduceFault::Invalid,
        ProduceFault::AnswerLater,
    ];
    let rate = random.random_range(0.02..0.3);
    let faults = (0..400)
        .map(|_| random.random_bool(rate).then(|| kinds[random.random_range(0..kinds.len())]));
    let faults = faults.collect();
    fake.world.lock().produce_faults = faults;
    let client = fake.client().await;
    let batch_bytes_max = random.random_range(1024..4096);
    let producer = client.producer(TOPIC).batch_bytes_max(batch_bytes_max);
    let producer = producer.unacked_bytes_max(30_000).delivery_timeout(Duration::from_secs(20));
    let producer = producer.build();
    let mut sent = [Vec::new(), Vec::new()];
    for n in 0..600 {
        let partition = random.random_range(0..2u32);
        let value = format!("{n}-{}", "y".repeat(random.random_range(0..600)));
        let ticket = soon(producer.send_to_partition(partition, value.as_str())).await.unwrap();
        sent[partition as usize].push((value, ticket));
        if random.random_bool(0.01) {
            fake.lead(partition as usize, random.random_range(0..3));
        }
        if random.random_bool(0.005) {
            let node = random.random_range(0..3);
            fake.kill(node);
            fake.revive(node).await;
        }
    }
    for (partition, sent) in sent.into_iter().enumerate() {
        let history = outcomes(sent).await;
        let acknowledged = history.iter().filter(|(_, outcome)| outcome.is_ok()).count();
        assert!(acknowledged > 0, "seed {seed}");
        check(&fake.world.lock().logs[partition].values(), &history);
    }
    assert_eq!(producer.unacked_bytes(), 0, "seed {seed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn any_mixture_of_faults_keeps_events_once_and_in_order() {
    for seed in 0..8 {
        println!("seed {seed}");
        soon(soak(seed)).await;
    }
}
