//! What a subscription promises: each event once and in order, wherever it starts and whatever breaks.

use std::time::Duration;

use futures::StreamExt;
use highwater_client::{ConsumeError, ConsumerBuilder, Event, Events, Start};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::fake::{ConsumeFault, Fake, TOPIC, soon, until};

fn numbers(range: std::ops::Range<u32>) -> impl Iterator<Item = String> {
    range.map(|number| number.to_string())
}

async fn subscribe(builder: ConsumerBuilder) -> Events {
    soon(builder.subscribe()).await.unwrap()
}

/// The next `count` events, which must be there.
async fn take(events: &mut Events, count: usize) -> Vec<Event> {
    let mut taken = Vec::new();
    while taken.len() < count {
        taken.push(soon(events.next()).await.unwrap().unwrap());
    }
    taken
}

/// Events of one partition must be the numbers of `range`, at the offsets of the same name.
fn check(events: &[Event], range: std::ops::Range<i64>) {
    let offsets: Vec<_> = events.iter().map(|event| event.offset).collect();
    assert_eq!(offsets, range.collect::<Vec<_>>());
    for event in events {
        assert_eq!(event.value_str(), Some(event.offset.to_string().as_str()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_partitions_are_read_from_the_start_and_what_comes_later_too() {
    let fake = Fake::start(2, 3).await;
    for partition in 0..3 {
        fake.fill(partition, numbers(0..50));
    }
    let mut events = subscribe(fake.client().await.consumer(TOPIC)).await;
    let mut taken = take(&mut events, 150).await;
    fake.fill(1, numbers(50..60));
    taken.extend(take(&mut events, 10).await);
    for partition in 0..3u32 {
        let of: Vec<_> =
            taken.iter().filter(|event| event.partition == partition).cloned().collect();
        check(&of, 0..if partition == 1 { 60 } else { 50 });
        assert_eq!(events.position(partition), Some(of.len() as i64));
        assert_eq!(events.high_watermark(partition), Some(of.len() as i64));
    }
    assert_eq!(events.positions().len(), 3);
    assert_eq!(events.position(3), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_start_position_means_what_it_says() {
    let fake = Fake::start(1, 1).await;
    fake.fill(0, numbers(0..10));
    let client = fake.client().await;
    // The fake resolves any time to the second record.
    let cases = [
        (Start::Earliest, 0),
        (Start::Offset(4), 4),
        (Start::Timestamp(1), 1),
        (Start::Latest, 10),
    ];
    for (start, first) in cases {
        let mut events = subscribe(client.consumer(TOPIC).start(start)).await;
        let end = fake.world.lock().logs[0].next;
        if start == Start::Latest {
            fake.fill(0, numbers(10..12));
        }
        let end = if start == Start::Latest { 12 } else { end };
        let taken = take(&mut events, usize::try_from(end - first).unwrap()).await;
        check(&taken, first..end);
    }
    let mut events = subscribe(client.consumer(TOPIC).start_at(0, Start::Offset(7))).await;
    check(&take(&mut events, 3).await, 7..10);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_partitions_asked_for_are_read() {
    let fake = Fake::start(2, 3).await;
    for partition in 0..3 {
        fake.fill(partition, numbers(0..5));
    }
    let client = fake.client().await;
    let mut events = subscribe(client.consumer(TOPIC).partitions([1])).await;
    let taken = take(&mut events, 5).await;
    assert!(taken.iter().all(|event| event.partition == 1));
    assert_eq!(events.positions().into_keys().collect::<Vec<_>>(), [1]);
    let unknown = soon(client.consumer(TOPIC).partitions([3]).subscribe()).await.unwrap_err();
    assert_eq!(unknown.reason(), "UNKNOWN_PARTITION");
    let nowhere = soon(client.consumer("nowhere").subscribe()).await.unwrap_err();
    assert_eq!(nowhere.reason(), "UNKNOWN_TOPIC");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_of_a_stream_leaves_no_gap_and_no_repeat() {
    let faults = [
        ConsumeFault::Break,
        ConsumeFault::FallSilent,
        ConsumeFault::LeaveOut,
        ConsumeFault::RedirectNowhere,
        ConsumeFault::RevokeForNow,
    ];
    for fault in faults {
        let fake = Fake::start(1, 2).await;
        fake.fill(0, numbers(0..40));
        fake.fill(1, numbers(0..40));
        fake.world.lock().consume_faults =
            [None, Some(fault), None, None, Some(fault), Some(fault)].into();
        let consumer = fake.client().await.consumer(TOPIC);
        let mut events = subscribe(consumer.silence_max(Duration::from_millis(300))).await;
        let taken = take(&mut events, 80).await;
        for partition in 0..2 {
            let of: Vec<_> =
                taken.iter().filter(|event| event.partition == partition).cloned().collect();
            check(&of, 0..40);
        }
        assert!(fake.world.lock().consume_faults.is_empty(), "{fault:?} was met");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_moved_a_killed_and_a_restarted_leader_are_followed() {
    let fake = Fake::start(2, 1).await;
    fake.fill(0, numbers(0..30));
    let mut events = subscribe(fake.client().await.consumer(TOPIC)).await;
    let mut taken = take(&mut events, 10).await;
    fake.lead(0, 1);
    fake.fill(0, numbers(30..40));
    taken.extend(take(&mut events, 30).await);
    fake.kill(1);
    fake.lead(0, 0);
    fake.fill(0, numbers(40..50));
    taken.extend(take(&mut events, 10).await);
    fake.kill(0);
    fake.fill(0, numbers(50..60));
    fake.revive(0).await;
    taken.extend(take(&mut events, 10).await);
    check(&taken, 0..60);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_falls_silent_is_left_as_soon_as_another_leads() {
    let fake = Fake::start(2, 1).await;
    fake.fill(0, numbers(0..20));
    fake.world.lock().consume_faults = [None, Some(ConsumeFault::FallSilent)].into();
    let consumer = fake.client().await.consumer(TOPIC);
    // The driver asks after half of it.
    let mut events = subscribe(consumer.silence_max(Duration::from_secs(10))).await;
    let mut taken = take(&mut events, 6).await;
    fake.lead(0, 1);
    taken.extend(take(&mut events, 14).await);
    check(&taken, 0..20);
    // It was not the silence that ended the old stream.
    assert_eq!(fake.world.lock().open_subscriptions, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_without_a_leader_is_reported_and_read_when_it_has_one_again() {
    let fake = Fake::start(2, 1).await;
    fake.fill(0, numbers(0..5));
    let consumer = fake.client().await.consumer(TOPIC).stall_timeout(Duration::from_millis(100));
    let mut events = subscribe(consumer).await;
    check(&take(&mut events, 5).await, 0..5);
    fake.kill(0);
    let stalled = soon(events.next()).await.unwrap().unwrap_err();
    assert!(matches!(stalled, ConsumeError::Stalled { partition: 0, .. }), "{stalled}");
    assert!(stalled.is_retriable());
    fake.fill(0, numbers(5..8));
    fake.lead(0, 1);
    let mut taken = Vec::new();
    while taken.len() < 3 {
        match soon(events.next()).await.unwrap() {
            Ok(event) => taken.push(event),
            Err(error) => assert!(error.is_retriable(), "{error}"),
        }
    }
    check(&taken, 5..8);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offset_that_is_gone_ends_the_partition_and_a_seek_revives_it() {
    let fake = Fake::start(1, 2).await;
    fake.fill(0, numbers(0..9));
    fake.fill(1, numbers(0..9));
    fake.world.lock().logs[0].start = 6;
    let client = fake.client().await;
    let consumer = client.consumer(TOPIC).start_at(0, Start::Offset(2));
    let mut events = subscribe(consumer.start(Start::Offset(9))).await;
    let ended = soon(events.next()).await.unwrap().unwrap_err();
    assert_eq!(ended.reason(), "OFFSET_OUT_OF_RANGE");
    assert!(!ended.is_retriable());
    assert_eq!(events.ended(), [0]);
    events.seek(0, Start::Earliest).unwrap();
    check(&take(&mut events, 3).await, 6..9);
    assert!(events.ended().is_empty());
    assert!(events.seek(5, Start::Earliest).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_when_all_of_its_partitions_have() {
    let fake = Fake::start(1, 1).await;
    fake.fill(0, numbers(0..3));
    let mut events = subscribe(fake.client().await.consumer(TOPIC)).await;
    take(&mut events, 3).await;
    fake.world.lock().topic_id = "topic-2".into();
    fake.kill(0);
    fake.revive(0).await;
    let ended = soon(events.next()).await.unwrap().unwrap_err();
    assert_eq!(ended.reason(), "TOPIC_ID_MISMATCH");
    assert!(soon(events.next()).await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seek_drops_what_waits_and_goes_on_from_the_new_place() {
    let fake = Fake::start(1, 2).await;
    fake.fill(0, numbers(0..300));
    fake.fill(1, numbers(0..300));
    let client = fake.client().await;
    let mut events = subscribe(client.consumer(TOPIC).partitions([0])).await;
    take(&mut events, 4).await;
    for target in [200, 100, 299] {
        events.seek(0, Start::Offset(target)).unwrap();
        assert_eq!(events.position(0), Some(target));
        check(&take(&mut events, 1).await, target..target + 1);
    }
    events.seek(0, Start::Latest).unwrap();
    events.seek(0, Start::Earliest).unwrap();
    check(&take(&mut events, 300).await, 0..300);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_to_be_taken_stays_within_the_bound() {
    let fake = Fake::start(2, 2).await;
    let value = |n: u32| format!("{n:0>500}");
    for partition in 0..2 {
        fake.fill(partition, (0..2000).map(value));
    }
    let bound = 50_000;
    let consumer = fake.client().await.consumer(TOPIC).credit_bytes(bound);
    let mut events = subscribe(consumer).await;
    // Nothing is taken: after a while the nodes have used up their credit and stop.
    let message_bytes = 2 * 3 * 600;
    let mut given = 0;
    until("nodes stop at the bound", || {
        let before = std::mem::replace(&mut given, fake.world.lock().given_bytes);
        given >= bound && given == before
    })
    .await;
    assert!(given <= bound + 2 * message_bytes, "{given} bytes were sent");
    let mut batches = 0;
    let mut taken = 0;
    while taken < 4000 {
        let batch = soon(events.next_batch()).await.unwrap().unwrap();
        assert_eq!(batch.len(), batch.events().len());
        assert!(batch.encoded_bytes() > 0 && !batch.is_empty());
        taken += batch.len();
        batches += 1;
    }
    assert!(batches > 10, "{batches}");
    assert_eq!(events.positions().into_values().collect::<Vec<_>>(), [2000, 2000]);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_one_by_one_and_in_batches_can_be_mixed() {
    let fake = Fake::start(1, 1).await;
    fake.fill(0, numbers(0..30));
    let consumer = fake.client().await.consumer(TOPIC).start(Start::Offset(1));
    let mut events = subscribe(consumer).await;
    let mut taken = take(&mut events, 1).await;
    while taken.len() < 29 {
        taken.extend(soon(events.next_batch()).await.unwrap().unwrap().into_events());
        if taken.len() < 29 {
            taken.extend(take(&mut events, 1).await);
        }
    }
    check(&taken, 1..30);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_is_added_is_read_from_its_start() {
    let fake = Fake::start(1, 1).await;
    fake.fill(0, numbers(0..3));
    let servers = fake.servers();
    let client = highwater_client::Client::builder()
        .servers(servers)
        .metadata_age_max(Duration::from_millis(50))
        .connect()
        .await
        .unwrap();
    let mut events = subscribe(client.consumer(TOPIC).start(Start::Latest)).await;
    let added = crate::fake::Log::default();
    fake.world.lock().logs.push(added);
    fake.fill(1, numbers(0..4));
    let taken = take(&mut events, 4).await;
    assert!(taken.iter().all(|event| event.partition == 1));
    check(&taken, 0..4);
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_the_events_ends_the_subscription() {
    let fake = Fake::start(1, 1).await;
    let events = subscribe(fake.client().await.consumer(TOPIC).start(Start::Latest)).await;
    assert_eq!(fake.world.lock().open_subscriptions, 1);
    drop(events);
    until("the stream is closed", || fake.world.lock().open_subscriptions == 0).await;
}

/// Random faults, leaders that move, nodes that die, seeks never: whatever happens, nothing is missed or repeated.
async fn soak(seed: u64) {
    let mut random = SmallRng::seed_from_u64(seed);
    let fake = Fake::start(3, 2).await;
    let kinds = [
        ConsumeFault::Break,
        ConsumeFault::FallSilent,
        ConsumeFault::LeaveOut,
        ConsumeFault::RedirectNowhere,
        ConsumeFault::RevokeForNow,
    ];
    let rate = random.random_range(0.01..0.15);
    let faults = (0..200)
        .map(|_| random.random_bool(rate).then(|| kinds[random.random_range(0..kinds.len())]));
    let faults = faults.collect();
    fake.world.lock().consume_faults = faults;
    let consumer = fake.client().await.consumer(TOPIC).silence_max(Duration::from_millis(400));
    let mut events = subscribe(consumer.credit_bytes(random.random_range(100..10_000))).await;
    let mut filled = [0u32; 2];
    let mut taken: [Vec<Event>; 2] = Default::default();
    for _ in 0..60 {
        let partition = random.random_range(0..2);
        let more = random.random_range(1..20);
        let from = filled[partition];
        fake.fill(partition, numbers(from..from + more));
        filled[partition] += more;
        if random.random_bool(0.1) {
            fake.lead(partition, random.random_range(0..3));
        }
        if random.random_bool(0.05) {
            let node = random.random_range(0..3);
            fake.kill(node);
            fake.revive(node).await;
        }
        for event in take(&mut events, random.random_range(0..more as usize)).await {
            taken[event.partition as usize].push(event);
        }
    }
    while taken[0].len() + taken[1].len() < (filled[0] + filled[1]) as usize {
        for event in take(&mut events, 1).await {
            taken[event.partition as usize].push(event);
        }
    }
    for (taken, filled) in taken.iter().zip(filled) {
        check(taken, 0..i64::from(filled));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn any_mixture_of_faults_leaves_no_gap_and_no_repeat() {
    for seed in 0..8 {
        println!("seed {seed}");
        soon(soak(seed)).await;
    }
}
