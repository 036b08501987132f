//! The README's test of a service, word for word: it runs here, and the README is held to it.

use highwater_client::event::Event;
use highwater_client::worker::{Context, Worker};
use highwater_client::{Client, Producer, SendError};
use highwater_testing::Broker;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Event)]
#[event(name = "order.placed", key = "order_id")]
struct OrderPlaced {
    order_id: String,
}

#[derive(Serialize, Deserialize, Event)]
#[event(name = "order.billed", key = "order_id")]
struct OrderBilled {
    order_id: String,
}

async fn bill(order: OrderPlaced, context: Context<Producer>) -> Result<(), SendError> {
    let billed = OrderBilled { order_id: order.order_id };
    context.state.publish(&billed).await?.await?;
    Ok(())
}

async fn start_billing(client: &Client) -> Worker {
    let bills = client.producer("bills").build();
    let worker = client.worker("billing", bills).topic("orders").on(bill);
    worker.start().await.expect("billing starts")
}

// README: from here
#[tokio::test]
async fn an_order_is_billed() -> Result<(), Box<dyn std::error::Error>> {
    let broker = Broker::start().await;
    broker.create_topic("orders", 3).await;
    broker.create_topic("bills", 3).await;
    let client = broker.client().await;
    let _worker = start_billing(&client).await;

    let orders = client.producer("orders").build();
    orders.publish(&OrderPlaced { order_id: "o-1".into() }).await?.await?;

    let billed: OrderBilled = broker.expect_published().await;
    assert_eq!(billed.order_id, "o-1");
    Ok(())
}
// README: to here

#[test]
fn the_readme_shows_this_test() {
    let (this, readme) = (include_str!("readme.rs"), include_str!("../../../README.md"));
    let shown = this
        .split("// README: from here\n")
        .nth(1)
        .and_then(|rest| rest.split("// README: to here").next());
    let shown = shown.expect("the test is marked");
    assert!(readme.contains(shown), "put this into the README:\n{shown}");
    assert!(shown.lines().filter(|line| !line.is_empty()).count() <= 15);
}
