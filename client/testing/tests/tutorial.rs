//! The tutorial's code, word for word: it runs here, and docs/tutorial.md is held to it, piece by piece.

use std::time::Duration;

// piece: events
use highwater_client::event::Event;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Event)]
#[event(name = "order.placed", key = "order_id")]
struct OrderPlaced {
    order_id: String,
    amount_cents: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Event)]
#[event(name = "payment.succeeded", key = "order_id")]
struct PaymentSucceeded {
    order_id: String,
}
// end

// piece: orders
use highwater_client::{Client, Producer, SendError};

struct Orders {
    events: Producer,
}

impl Orders {
    fn new(client: &Client) -> Self {
        Self { events: client.producer("orders").source("/shop/orders").build() }
    }

    /// Takes an order: when this returns, the event outlives any one broker.
    async fn place(&self, order_id: &str, amount_cents: u64) -> Result<(), SendError> {
        let placed = OrderPlaced { order_id: order_id.to_owned(), amount_cents };
        self.events.publish(&placed).await?.await?;
        Ok(())
    }
}
// end

// piece: payments
use highwater_client::worker::{Context, MemoryInbox, Outcome, Worker, WorkerError};

struct Payments {
    events: Producer,
}

async fn start_payments(client: &Client) -> Result<Worker, WorkerError> {
    let state = Payments { events: client.producer("payments").source("/shop/payments").build() };
    let worker = client.worker("payments", state).topic("orders").on(charge);
    worker.inbox(MemoryInbox::new(100_000)).start().await
}

async fn charge(order: OrderPlaced, context: Context<Payments>) -> Result<Outcome, SendError> {
    if order.amount_cents == 0 {
        return Ok(Outcome::DeadLetter("an order that costs nothing".into()));
    }
    // Here the card is charged.
    let event = PaymentSucceeded { order_id: order.order_id };
    context.state.events.publish(&event).await?.await?;
    Ok(Outcome::Done)
}
// end

// piece: tests
use highwater_testing::{Broker, until};

type Test = Result<(), Box<dyn std::error::Error>>;

async fn broker() -> Broker {
    let broker = Broker::start().await;
    broker.create_topic("orders", 3).await;
    broker.create_topic("payments", 3).await;
    broker
}

#[tokio::test]
async fn an_order_is_told_to_the_others() -> Test {
    let broker = broker().await;
    Orders::new(&broker.client().await).place("o-1", 1250).await?;
    let placed: OrderPlaced = broker.expect_published().await;
    assert_eq!(placed, OrderPlaced { order_id: "o-1".into(), amount_cents: 1250 });
    Ok(())
}

#[tokio::test]
async fn an_order_is_paid_once_although_it_is_told_twice() -> Test {
    let broker = broker().await;
    let client = broker.client().await;
    Orders::new(&client).place("o-1", 1250).await?;
    broker.publish_again("orders").await;
    let worker = start_payments(&client).await?;
    until("both are handled", async || worker.stats().done + worker.stats().duplicates == 2).await;
    assert_eq!(broker.published::<PaymentSucceeded>().await.len(), 1);
    Ok(())
}

#[tokio::test]
async fn what_makes_no_sense_is_set_aside() -> Test {
    let broker = broker().await;
    let client = broker.client().await;
    let worker = start_payments(&client).await?;
    Orders::new(&client).place("o-1", 0).await?;
    until("it is set aside", async || worker.stats().dead_lettered == 1).await;
    worker.shutdown(Duration::from_secs(5)).await?;
    Ok(())
}
// end

#[test]
fn the_tutorial_shows_this_code() {
    let (this, tutorial) = (include_str!("tutorial.rs"), include_str!("../../../docs/tutorial.md"));
    let pieces: Vec<&str> = this.split("\n// piece: ").skip(1).collect();
    assert_eq!(pieces.len(), 4);
    for piece in pieces {
        let code = piece.split_once('\n').and_then(|(_, rest)| rest.split("// end\n").next());
        let code = code.expect("a piece ends");
        assert!(tutorial.contains(code), "put this into the tutorial:\n{code}");
    }
}
