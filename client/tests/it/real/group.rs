//! Consumer groups: who is given what, what comes again, and what a group remembers.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::StreamExt;
use highwater_client::{Client, Delivery, Event, GroupConsumerBuilder, GroupEvents, Start};

use super::{Cluster, TOPIC, create, publish_until};
use crate::fake::soon;

const PARTITIONS: u32 = 6;

fn member(client: &Client) -> GroupConsumerBuilder {
    let builder = client.consumer(TOPIC).group("billing");
    builder.session_timeout(Duration::from_secs(3)).commit_interval(Duration::from_millis(20))
}

async fn join(builder: GroupConsumerBuilder) -> GroupEvents {
    soon(builder.subscribe()).await.unwrap()
}

/// Publishes these numbers round robin.
async fn publish(client: &Client, numbers: std::ops::Range<u32>) {
    let producer = client.producer(TOPIC).build();
    for number in numbers {
        let value = number.to_string();
        drop(soon(producer.send_to_partition(number % PARTITIONS, value)).await.unwrap());
    }
    soon(producer.flush()).await.unwrap();
}

async fn next(events: &mut GroupEvents) -> Delivery {
    soon(events.next()).await.unwrap().unwrap()
}

fn number(delivery: &Delivery) -> u32 {
    number_of(delivery.event())
}

fn number_of(event: &Event) -> u32 {
    event.value_str().unwrap().parse().unwrap()
}

/// Takes so many events; answers with their numbers.
async fn take(events: &mut GroupEvents, count: usize) -> BTreeSet<u32> {
    let mut numbers = BTreeSet::new();
    for _ in 0..count {
        numbers.insert(number(&next(events).await));
    }
    numbers
}

/// Takes events that come within a moment.
async fn drain(events: &mut GroupEvents) -> BTreeSet<u32> {
    let mut numbers = BTreeSet::new();
    let moment = Duration::from_millis(300);
    while let Ok(event) = tokio::time::timeout(moment, events.next()).await {
        numbers.insert(number(&event.unwrap().unwrap()));
    }
    numbers
}

/// Waits until a member is given so many partitions. Both are polled: a member that is asked for nothing does nothing.
async fn until_shared(one: &mut GroupEvents, other: &mut GroupEvents, counts: (usize, usize)) {
    soon(async {
        while (one.partitions().len(), other.partitions().len()) != counts {
            drain(one).await;
            drain(other).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_goes_on_where_it_was_and_another_one_begins_at_the_start() {
    let mut cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    create(&client, PARTITIONS).await;
    publish(&client, 0..60).await;
    let mut events = join(member(&client)).await;
    let first = take(&mut events, 25).await;
    assert_eq!(first.len(), 25);
    soon(events.close()).await;

    cluster.restart(0).await;
    let mut events = join(member(&client)).await;
    let rest = take(&mut events, 35).await;
    assert!(first.is_disjoint(&rest), "what was done does not come again");
    assert_eq!(drain(&mut events).await, BTreeSet::new());
    publish(&client, 60..66).await;
    assert_eq!(take(&mut events, 6).await, (60..66).collect());
    soon(events.close()).await;

    let mut other = join(client.consumer(TOPIC).group("shipping")).await;
    assert_eq!(take(&mut other, 66).await, (0..66).collect());
    let mut late = join(client.consumer(TOPIC).group("late").start(Start::Latest)).await;
    assert_eq!(drain(&mut late).await, BTreeSet::new());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_done_when_the_next_is_asked_for_and_not_before() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    create(&client, PARTITIONS).await;
    publish(&client, 0..60).await;
    let mut events = join(member(&client)).await;
    let mut done = take(&mut events, 1).await;
    let mut last = BTreeSet::new();
    while done.len() + last.len() < 60 {
        done.append(&mut last);
        let batch = soon(events.next_batch()).await.unwrap().unwrap();
        last = batch.events().iter().map(number_of).collect();
        assert!(last.is_disjoint(&done), "{last:?} came twice");
    }
    // It commits and leaves, and nobody asked for more than the last batch.
    drop(events);
    let mut again = join(member(&client)).await;
    assert_eq!(take(&mut again, last.len()).await, last);
    assert_eq!(drain(&mut again).await, BTreeSet::new());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn members_share_and_a_member_that_leaves_hands_over_without_repetition() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    create(&client, PARTITIONS).await;
    let mut a = join(member(&client)).await;
    let mut b = join(member(&client)).await;
    until_shared(&mut a, &mut b, (3, 3)).await;
    publish(&client, 0..60).await;
    let (of_a, of_b) = (take(&mut a, 30).await, take(&mut b, 30).await);
    assert!(of_a.is_disjoint(&of_b));
    assert_eq!(of_a.len() + of_b.len(), 60);
    soon(b.close()).await;
    publish(&client, 60..120).await;
    assert_eq!(take(&mut a, 60).await, (60..120).collect());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_explicit_acks_progress_stops_at_what_is_not_acknowledged() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    create(&client, PARTITIONS).await;
    // All in partition 0.
    let producer = client.producer(TOPIC).build();
    for number in 0..10u32 {
        let ticket = soon(producer.send_to_partition(0, number.to_string())).await.unwrap();
        soon(ticket).await.unwrap();
    }
    let mut events = join(member(&client).explicit_acks()).await;
    let mut taken = Vec::new();
    for _ in 0..10 {
        taken.push(next(&mut events).await);
    }
    // All but 4, backwards.
    for event in taken.into_iter().rev() {
        match number(&event) {
            4 => drop(event),
            _ => event.ack(),
        }
    }
    soon(events.commit()).await.unwrap();
    soon(events.close()).await;
    let mut events = join(member(&client)).await;
    assert_eq!(take(&mut events, 6).await, (4..10).collect());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_acknowledges_nothing_is_given_no_more_than_it_may_have() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    create(&client, PARTITIONS).await;
    publish(&client, 0..60).await;
    let mut events = join(member(&client).explicit_acks().undone_max(10)).await;
    let mut in_hand = Vec::new();
    for _ in 0..10 {
        in_hand.push(next(&mut events).await);
    }
    assert_eq!(drain(&mut events).await, BTreeSet::new());
    let mut seen = BTreeSet::new();
    while seen.len() < 50 {
        let event = in_hand.remove(0);
        seen.insert(number(&event));
        event.ack();
        in_hand.push(next(&mut events).await);
    }
    seen.extend(in_hand.iter().map(number));
    assert_eq!(seen, (0..60).collect());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_is_not_handed_over_while_somebody_is_handling_an_event_of_it() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    create(&client, 1).await;
    let producer = client.producer(TOPIC).build();
    drop(soon(producer.send_to_partition(0, "0")).await.unwrap());
    soon(producer.flush()).await.unwrap();
    let mut a = join(member(&client).static_id("z").explicit_acks()).await;
    let event = next(&mut a).await;
    // Only one of two can have it, and it stays where it is.
    let mut b = join(member(&client)).await;
    assert_eq!(drain(&mut b).await, BTreeSet::new());
    assert_eq!((a.partitions(), b.partitions()), (vec![0], vec![]));
    event.ack();
    soon(a.commit()).await.unwrap();
    soon(a.close()).await;
    // A static member does not leave; when its session is over, the other one has it.
    soon(async {
        while b.partitions().is_empty() {
            assert_eq!(drain(&mut b).await, BTreeSet::new(), "it is done");
        }
    })
    .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crashed_member_is_replaced_and_nothing_that_was_not_done_is_lost() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    create(&client, PARTITIONS).await;
    let mut a = join(member(&client)).await;
    let servers = cluster.nodes[0].client_address.clone();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let crashing = runtime.spawn(async move {
        let client = Client::builder().servers(servers).connect().await.unwrap();
        let events = member(&client).subscribe().await.unwrap();
        // It lives until it is killed.
        (client, events)
    });
    let (_client, mut b) = soon(crashing).await.unwrap();
    until_shared(&mut a, &mut b, (3, 3)).await;
    publish(&client, 0..60).await;
    let mut seen = take(&mut b, 10).await;
    runtime.shutdown_background();
    seen.extend(
        soon(async {
            let mut all = BTreeSet::new();
            while all.len() < 50 || a.partitions().len() < 6 {
                all.extend(drain(&mut a).await);
            }
            all
        })
        .await,
    );
    assert_eq!(seen, (0..60).collect());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_is_killed_interrupts_nobody_and_moves_nothing() {
    let mut cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    create(&client, PARTITIONS).await;
    let builder = || member(&client).session_timeout(Duration::from_secs(30));
    let mut a = join(builder()).await;
    let mut b = join(builder()).await;
    until_shared(&mut a, &mut b, (3, 3)).await;
    let before = (a.partitions(), b.partitions());
    let epoch = soon(client.admin().describe_group("billing")).await.unwrap();
    let id = epoch.coordinator;
    let is_it = |slot: &super::Slot| slot.broker.as_ref().unwrap().node().id() == id;
    let index = cluster.nodes.iter().position(is_it).unwrap();
    cluster.kill(index);
    publish(&client, 0..60).await;
    let (of_a, of_b) = (take(&mut a, 30).await, take(&mut b, 30).await);
    assert_eq!(of_a.len() + of_b.len(), 60);
    assert_eq!((a.partitions(), b.partitions()), before);
    // Stored by the new coordinator, which was told the same epochs.
    let committed = async {
        while a.commit().await.is_err() || b.commit().await.is_err() {
            drain(&mut a).await;
        }
    };
    soon(committed).await;
    let after = soon(client.admin().describe_group("billing")).await.unwrap();
    assert_eq!(after.epoch, epoch.epoch);
    assert_ne!(after.coordinator, id);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_restarts_in_turn_twenty_times_and_members_never_need_to() {
    let mut cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    create(&client, PARTITIONS).await;
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let producer = client.producer(TOPIC).delivery_timeout(Duration::from_secs(45)).build();
    let runtime = tokio::runtime::Handle::current();
    let publishing = runtime.spawn(publish_until(stop.clone(), producer, PARTITIONS));
    let mut readers = Vec::new();
    for _ in 0..2 {
        let (client, stop) = (client.clone(), stop.clone());
        readers.push(runtime.spawn(async move {
            let mut events = join(member(&client)).await;
            let mut read: BTreeMap<u32, Vec<i64>> = BTreeMap::new();
            let mut quiet = 0;
            // When publishing is over, until nothing has come for a while.
            while quiet < 40 {
                match tokio::time::timeout(Duration::from_millis(100), events.next()).await {
                    Ok(Some(Ok(event))) => {
                        quiet = 0;
                        read.entry(event.partition).or_default().push(event.offset);
                    }
                    Ok(Some(Err(error))) => assert!(error.is_retriable(), "{error}"),
                    Ok(None) => panic!("the stream ended"),
                    Err(_nothing) => {
                        quiet += u32::from(stop.load(std::sync::atomic::Ordering::Acquire));
                    }
                }
            }
            soon(events.close()).await;
            read
        }));
    }
    for restart in 0..20 {
        cluster.restart(restart % 3).await;
    }
    stop.store(true, std::sync::atomic::Ordering::Release);
    let histories = soon(publishing).await.unwrap();
    let mut seen: BTreeMap<u32, BTreeSet<i64>> = BTreeMap::new();
    for reader in readers {
        for (partition, offsets) in soon(reader).await.unwrap() {
            seen.entry(partition).or_default().extend(offsets);
        }
    }
    let published: usize = histories.values().map(Vec::len).sum();
    assert!(published > 100, "{published} is no load");
    for (partition, history) in histories {
        // Every event was acknowledged and given to some member; there is nothing else in the log.
        let mut acknowledged = BTreeSet::new();
        for (value, outcome) in history {
            let ack = outcome.unwrap_or_else(|error| panic!("{partition}: {value}: {error}"));
            acknowledged.insert(ack.offset);
        }
        assert_eq!(seen.remove(&partition), Some(acknowledged), "partition {partition}");
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_made_again_is_read_from_its_start() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    create(&client, PARTITIONS).await;
    publish(&client, 0..60).await;
    let mut events = join(member(&client)).await;
    assert_eq!(take(&mut events, 60).await, (0..60).collect());
    soon(client.admin().delete_topic(TOPIC)).await.unwrap();
    create(&client, PARTITIONS).await;
    let client = cluster.client().await;
    publish(&client, 60..72).await;
    assert_eq!(take(&mut events, 12).await, (60..72).collect());
    assert_eq!(drain(&mut events).await, BTreeSet::new());
    soon(events.close()).await;
    cluster.stop().await;
}
