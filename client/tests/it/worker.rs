//! Workers over a real broker: what becomes of events, in which order, and how a worker ends.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use highwater_client::event::{Attributes, Event};
use highwater_client::worker::{
    BreakerPolicy, BreakerState, Context, DEAD_LETTER_ATTEMPTS, DEAD_LETTER_GROUP,
    DEAD_LETTER_OFFSET, DEAD_LETTER_REASON, DEAD_LETTER_TOPIC, MemoryInbox, Outcome, Worker,
    WorkerBuilder, WorkerError,
};
use highwater_client::{Client, Record, RetryPolicy};
use highwater_testing::{Broker, soon, until};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tower::ServiceBuilder;
use tower::timeout::TimeoutLayer;

const TOPIC: &str = "orders";
const DEAD: &str = "billing.dead-letter";
const DRAIN: Duration = Duration::from_secs(30);

#[derive(Clone, Debug, Serialize, Deserialize, Event)]
#[event(name = "order.placed", key = "order")]
struct Placed {
    order: String,
    number: u32,
}

#[derive(Clone, Debug, Serialize, Deserialize, Event)]
#[event(name = "order.billed", key = "order")]
struct Billed {
    order: String,
}

/// What handlers saw: the numbers of each order.
#[derive(Default)]
struct Log {
    seen: Mutex<BTreeMap<String, Vec<u32>>>,
    is_down: AtomicBool,
    calls: AtomicU32,
}

impl Log {
    fn note(&self, event: &Placed) {
        self.seen.lock().entry(event.order.clone()).or_default().push(event.number);
    }

    fn count(&self) -> usize {
        self.seen.lock().values().map(Vec::len).sum()
    }

    fn of(&self, order: &str) -> Vec<u32> {
        self.seen.lock().get(order).cloned().unwrap_or_default()
    }
}

struct Case {
    broker: Broker,
    client: Client,
    log: Arc<Log>,
}

impl Case {
    async fn start() -> Self {
        let broker = Broker::start().await;
        broker.create_topic(TOPIC, 3).await;
        let client = broker.client().await;
        Self { broker, client, log: Arc::default() }
    }

    /// Numbered events: `count` of each order, in turns.
    async fn publish(&self, orders: &[&str], numbers: std::ops::Range<u32>) {
        let producer = self.client.producer(TOPIC).build();
        for number in numbers {
            for order in orders {
                let placed = Placed { order: (*order).to_owned(), number };
                drop(soon("publishing", producer.publish(&placed)).await.unwrap());
            }
        }
        soon("publishing", producer.flush()).await.unwrap();
    }

    fn builder(&self) -> WorkerBuilder<Log> {
        self.client.worker("billing", Arc::clone(&self.log)).topic(TOPIC).retry(RetryPolicy {
            backoff_first: Duration::from_millis(1),
            backoff_max: Duration::from_millis(10),
        })
    }

    async fn handled(&self, count: usize) {
        until(format_args!("{count} events handled"), async || self.log.count() >= count).await;
    }

    async fn lag(&self) -> i64 {
        let group = self.client.admin().describe_group("billing").await.unwrap();
        group.partitions.iter().map(|partition| partition.lag).sum()
    }
}

async fn start(builder: WorkerBuilder<Log>) -> Worker {
    soon("starting a worker", builder.start()).await.unwrap()
}

async fn note(event: Placed, context: Context<Log>) {
    context.state.note(&event);
}

#[tokio::test]
async fn events_with_a_key_are_handled_in_order_and_others_do_not_wait_for_them() {
    let case = Case::start().await;
    let orders = ["a", "b", "c", "d", "e", "f", "g"];
    case.publish(&orders, 0..30).await;
    let handler = |event: Placed, context: Context<Log>| async move {
        // Later events of an order are quicker: without lanes they would come first.
        let pause = if event.number.is_multiple_of(2) { 3 } else { 0 };
        tokio::time::sleep(Duration::from_millis(pause)).await;
        // The first attempt of some fails: the order's later events wait all the same.
        if event.number % 7 == 3 && context.attempt == 1 {
            return Err("not yet");
        }
        context.state.note(&event);
        Ok(())
    };
    let worker = start(case.builder().on(handler)).await;
    case.handled(orders.len() * 30).await;
    for order in orders {
        assert_eq!(case.log.of(order), (0..30).collect::<Vec<_>>(), "{order}");
    }
    let retried = worker.stats().retried;
    assert_eq!(retried, 4 * 7, "3, 10, 17 and 24 of each");
    soon("shutting down", worker.shutdown(DRAIN)).await.unwrap();
    assert_eq!(case.lag().await, 0);
}

#[tokio::test]
async fn no_more_handlers_run_at_once_than_allowed() {
    let case = Case::start().await;
    let orders: Vec<String> = (0..60).map(|number| format!("o-{number}")).collect();
    let orders: Vec<&str> = orders.iter().map(String::as_str).collect();
    case.publish(&orders, 0..1).await;
    let (running, most) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let (now, peak) = (Arc::clone(&running), Arc::clone(&most));
    let handler = move |event: Placed, context: Context<Log>| {
        let (now, peak) = (Arc::clone(&now), Arc::clone(&peak));
        async move {
            peak.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(5)).await;
            now.fetch_sub(1, Ordering::SeqCst);
            context.state.note(&event);
        }
    };
    let worker = start(case.builder().concurrency(4).on(handler)).await;
    case.handled(60).await;
    assert!((2..=4).contains(&most.load(Ordering::SeqCst)), "{most:?}");
    assert!(worker.stats().at_hand <= 8);
}

#[tokio::test]
async fn what_cannot_be_handled_goes_to_the_dead_letter_topic_with_the_reason() {
    let case = Case::start().await;
    case.publish(&["refused", "failing", "fine", "panicking", "foreign"], 7..8).await;
    // One that names the type and is none, and one that nobody handles.
    let producer = case.client.producer(TOPIC).build();
    let billed = Billed { order: "x".into() };
    let mut record = Record::of(&billed, &Attributes::new("1", "/t")).unwrap();
    soon("publishing", producer.send(record.clone())).await.unwrap().await.unwrap();
    for header in &mut record.headers {
        if header.key == "ce_type" {
            header.value = Some("order.placed.v1".into());
        }
    }
    soon("publishing", producer.send(record)).await.unwrap().await.unwrap();

    let handler = |event: Placed, context: Context<Log>| async move {
        match event.order.as_str() {
            "refused" => return Outcome::DeadLetter("no such customer".into()),
            "failing" => return Outcome::Retry(format!("try {}", context.attempt)),
            "foreign" => return Outcome::Skip,
            "panicking" if context.attempt == 1 => panic!("out of luck"),
            _ if context.attempt == 2 => return Outcome::RetryAfter(Duration::from_millis(1)),
            _ => {}
        }
        context.state.note(&event);
        Outcome::Done
    };
    let builder = case.builder().on(handler).failures_max(3).without_breaker();
    let worker = start(builder).await;
    until("everything handled", async || {
        worker.stats().done == 2 && worker.stats().dead_lettered == 3
    })
    .await;
    let stats = worker.stats();
    assert_eq!((stats.skipped, stats.duplicates), (2, 0));
    soon("shutting down", worker.shutdown(DRAIN)).await.unwrap();
    assert_eq!(case.lag().await, 0);

    let dead = case.broker.records(DEAD).await;
    let find = |key: &str| dead.iter().find(|event| event.key_str() == Some(key)).unwrap();
    let refused = find("refused");
    assert_eq!(refused.header_str(DEAD_LETTER_REASON), Some("no such customer"));
    assert_eq!(refused.header_str(DEAD_LETTER_ATTEMPTS), Some("1"));
    assert_eq!(refused.header_str(DEAD_LETTER_GROUP), Some("billing"));
    assert_eq!(refused.header_str(DEAD_LETTER_TOPIC), Some(TOPIC));
    assert_eq!(refused.decode::<Placed>().unwrap().number, 7, "the event itself is unchanged");
    let origin: i64 = refused.header_str(DEAD_LETTER_OFFSET).unwrap().parse().unwrap();
    let is_origin = |event: &highwater_client::Event| {
        event.offset == origin && event.key_str() == Some("refused")
    };
    assert!(case.broker.records(TOPIC).await.iter().any(is_origin));
    assert_eq!(find("failing").header_str(DEAD_LETTER_REASON), Some("try 3"));
    assert_eq!(find("failing").header_str(DEAD_LETTER_ATTEMPTS), Some("3"));
    let reason = find("x").header_str(DEAD_LETTER_REASON).unwrap().to_owned();
    assert!(reason.starts_with("orders:") && reason.contains("is no order.placed.v1"), "{reason}");
}

#[tokio::test]
async fn a_fatal_outcome_ends_the_worker_and_the_event_comes_again() {
    let case = Case::start().await;
    case.publish(&["a"], 0..3).await;
    let handler = |event: Placed, context: Context<Log>| async move {
        if event.number == 1 {
            return Outcome::Fatal("the licence has expired".into());
        }
        context.state.note(&event);
        Outcome::Done
    };
    let worker = start(case.builder().on(handler)).await;
    let never = std::future::pending();
    let error = soon("failing", worker.run_until(never, DRAIN)).await.unwrap_err();
    assert!(matches!(&error, WorkerError::Fatal { why, .. } if why == "the licence has expired"));
    assert!(!error.is_retriable());

    let worker = start(case.builder().on(note)).await;
    case.handled(3).await;
    assert_eq!(case.log.of("a"), [0, 1, 2], "what was done does not come again");
    soon("shutting down", worker.shutdown(DRAIN)).await.unwrap();
}

#[tokio::test]
async fn duplicates_are_not_handled_again_with_an_inbox() {
    let case = Case::start().await;
    case.publish(&["a", "b", "c"], 0..5).await;
    case.broker.publish_again(TOPIC).await;
    let worker = start(case.builder().inbox(MemoryInbox::new(1_000)).on(note)).await;
    until("everything handled", async || worker.stats().done + worker.stats().duplicates == 30)
        .await;
    assert_eq!(worker.stats().duplicates, 15);
    for order in ["a", "b", "c"] {
        assert_eq!(case.log.of(order), [0, 1, 2, 3, 4]);
    }
}

#[tokio::test]
async fn layers_wrap_each_attempt() {
    let case = Case::start().await;
    case.publish(&["slow", "quick"], 0..1).await;
    let handler = |event: Placed, context: Context<Log>| async move {
        if event.order == "slow" && context.attempt == 1 {
            std::future::pending::<()>().await;
        }
        context.state.note(&event);
    };
    let limited = ServiceBuilder::new().buffer(16).rate_limit(1_000, Duration::from_millis(1));
    let builder = case
        .builder()
        .on(handler)
        .layer(TimeoutLayer::new(Duration::from_millis(50)))
        .layer(limited.into_inner());
    let worker = start(builder).await;
    case.handled(2).await;
    until("counting", async || worker.stats().done == 2).await;
    assert_eq!(worker.stats().retried, 1, "the attempt that took too long");
}

#[tokio::test]
async fn a_worker_that_is_shut_down_finishes_what_it_has_and_leaves_the_rest() {
    let case = Case::start().await;
    case.publish(&["a", "b", "c", "d"], 0..100).await;
    let handler = |event: Placed, context: Context<Log>| async move {
        tokio::time::sleep(Duration::from_millis(2)).await;
        context.state.note(&event);
    };
    let worker = start(case.builder().on(handler)).await;
    case.handled(20).await;
    soon("shutting down", worker.shutdown(DRAIN)).await.unwrap();
    let first = case.log.count();
    assert!(first < 400, "the rest is for the next one");
    let worker = start(case.builder().on(handler)).await;
    case.handled(400).await;
    for order in ["a", "b", "c", "d"] {
        assert_eq!(case.log.of(order), (0..100).collect::<Vec<_>>(), "nothing twice, nothing lost");
    }
    soon("shutting down", worker.shutdown(DRAIN)).await.unwrap();
}

#[tokio::test]
async fn a_handler_that_does_not_end_is_given_up_at_the_deadline_and_its_event_comes_again() {
    let case = Case::start().await;
    case.publish(&["stuck", "fine"], 0..1).await;
    let handler = |event: Placed, context: Context<Log>| async move {
        if event.order == "stuck" {
            std::future::pending::<()>().await;
        }
        context.state.note(&event);
    };
    let worker = start(case.builder().on(handler)).await;
    case.handled(1).await;
    soon("shutting down", worker.shutdown(Duration::from_millis(50))).await.unwrap();
    let worker = start(case.builder().on(note)).await;
    case.handled(2).await;
    assert_eq!((case.log.of("stuck"), case.log.of("fine")), (vec![0], vec![0]));
    drop(worker);
}

#[tokio::test]
async fn a_database_that_is_down_costs_no_event() {
    let case = Case::start().await;
    case.log.is_down.store(true, Ordering::SeqCst);
    case.publish(&["a", "b", "c", "d", "e"], 0..20).await;
    let handler = |event: Placed, context: Context<Log>| async move {
        context.state.calls.fetch_add(1, Ordering::SeqCst);
        if context.state.is_down.load(Ordering::SeqCst) {
            return Err("connection refused");
        }
        context.state.note(&event);
        Ok(())
    };
    let policy = BreakerPolicy {
        calls_min: 3,
        open_for: Duration::from_millis(20),
        ..BreakerPolicy::default()
    };
    // So few failures are allowed that without the breaker all would be given up at once.
    let worker = start(case.builder().on(handler).breaker(policy).failures_max(4)).await;
    let mut states = worker.breaker().unwrap();
    soon("opening", states.wait_for(|state| *state == BreakerState::Open)).await.unwrap();
    // Several rounds of open and half-open.
    until("more calls", async || case.log.calls.load(Ordering::SeqCst) > 20).await;
    assert_eq!((case.log.count(), worker.stats().dead_lettered), (0, 0));
    case.log.is_down.store(false, Ordering::SeqCst);
    case.handled(100).await;
    soon("closing", states.wait_for(|state| *state == BreakerState::Closed)).await.unwrap();
    for order in ["a", "b", "c", "d", "e"] {
        assert_eq!(case.log.of(order), (0..20).collect::<Vec<_>>());
    }
    soon("shutting down", worker.shutdown(DRAIN)).await.unwrap();
    assert_eq!(case.broker.records(DEAD).await.len(), 0);
}

#[tokio::test]
async fn a_trace_goes_on_in_what_a_handler_publishes() {
    let case = Case::start().await;
    case.broker.create_topic("bills", 1).await;
    let mut attributes = Attributes::new("e-1", "/shop");
    let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    attributes.trace = text.parse().ok();
    let placed = Placed { order: "a".into(), number: 0 };
    let record = Record::of(&placed, &attributes).unwrap();
    let producer = case.client.producer(TOPIC).build();
    soon("publishing", producer.send(record)).await.unwrap().await.unwrap();
    let bills = case.client.producer("bills").build();
    let handler = move |event: Placed, _: Context<Log>| {
        let bills = bills.clone();
        async move {
            bills.publish(&Billed { order: event.order }).await?.await?;
            Ok::<(), highwater_client::SendError>(())
        }
    };
    let _worker = start(case.builder().on(handler)).await;
    let billed: Billed = case.broker.expect_published().await;
    assert_eq!(billed.order, "a");
    let trace = case.broker.records("bills").await[0].trace().unwrap();
    assert_eq!(trace.trace_id(), attributes.trace.unwrap().trace_id());
    assert_ne!(trace.parent_id(), attributes.trace.unwrap().parent_id(), "a step of its own");
    assert!(trace.is_sampled());
}

#[tokio::test]
async fn what_a_worker_is_told_must_make_sense() {
    let case = Case::start().await;
    let misconfigured = async |builder: WorkerBuilder<Log>| {
        let error = soon("refusing", builder.start()).await.unwrap_err();
        assert!(matches!(error, WorkerError::Misconfigured { .. }), "{error}");
        error.to_string()
    };
    let worker = || case.client.worker("billing", Arc::clone(&case.log));
    assert!(misconfigured(worker().on(note)).await.contains("no topic"));
    assert!(misconfigured(worker().topic(TOPIC)).await.contains("no handler"));
    let twice = misconfigured(case.builder().on(note).on(note)).await;
    assert!(twice.contains("order.placed.v1 has two handlers"), "{twice}");
    let early = misconfigured(case.builder().on(note).failures_max(5)).await;
    assert!(early.contains("before the breaker can open"), "{early}");
}
