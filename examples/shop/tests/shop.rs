//! The shop in one process, over a real broker: the saga to its end, with everything that may happen to events on the way.

use std::time::Duration;

use anyhow::Result;
use highwater_client::worker::Worker;
use highwater_shop::events::{OrderPlaced, Paid, PaymentChanged};
use highwater_shop::orders::Orders;
use highwater_shop::verify::Stores;
use highwater_shop::{inventory, notifications, payments, run};
use highwater_testing::{Broker, soon, until};
use tempfile::TempDir;

const DRAIN: Duration = Duration::from_secs(20);

fn placed(number: u32) -> OrderPlaced {
    OrderPlaced {
        order_id: format!("o-{number}"),
        item: format!("item-{}", number % 2),
        quantity: 30,
        amount_cents: 1_000 + u64::from(number),
    }
}

struct Shop {
    broker: Broker,
    orders: Orders,
    stores: Stores,
    _dir: TempDir,
}

impl Shop {
    async fn open() -> Result<Self> {
        let broker = Broker::start().await;
        let client = broker.client().await;
        run::ensure_topics(&client).await?;
        let dir = tempfile::tempdir()?;
        let stores = Stores::open(dir.path())?;
        let orders = Orders::new(&client, stores.orders.clone());
        Ok(Self { broker, orders, stores, _dir: dir })
    }

    async fn start(&self) -> Result<Vec<Worker>> {
        let client = self.broker.client().await;
        let Stores { payments, inventory, notifications, .. } = &self.stores;
        Ok(vec![
            self.orders.start(&client).await?,
            payments::start(&client, payments.clone()).await?,
            inventory::start(&client, inventory.clone()).await?,
            notifications::start(&client, notifications.clone()).await?,
        ])
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_order_is_paid_and_reserved_or_neither_whatever_happens_on_the_way() -> Result<()> {
    const ORDERS: u32 = 60;
    let shop = Shop::open().await?;
    let outbox = shop.orders.clone().publish_outbox();
    let scenario = async {
        let workers = shop.start().await?;
        for number in 0..ORDERS {
            shop.orders.place(placed(number)).await?;
            // A customer who is not sure orders again.
            shop.orders.place(placed(number)).await?;
            if number == ORDERS / 2 {
                // Processes die: nothing at hand is finished, nothing is committed.
                drop(workers.into_iter().collect::<Vec<_>>());
                break;
            }
        }
        shop.broker.faults().cut();
        let workers = shop.start().await?;
        for number in ORDERS / 2 + 1..ORDERS {
            shop.orders.place(placed(number)).await?;
        }
        shop.broker.restart().await;
        until("every order being decided", async || {
            shop.orders.summary().is_ok_and(|it| it.open == 0 && it.confirmed + it.cancelled == 60)
        })
        .await;
        // Everything once more: who heard it knows it.
        for topic in highwater_shop::TOPICS {
            shop.broker.publish_again(topic).await;
        }
        until("the services agreeing", async || {
            shop.stores.is_settled(ORDERS as usize).is_ok_and(|settled| settled)
        })
        .await;
        for worker in workers {
            soon("ending", worker.shutdown(DRAIN)).await?;
        }
        anyhow::Ok(())
    };
    tokio::select! {
        done = scenario => done?,
        () = outbox => {}
    }
    let report = shop.stores.verify(ORDERS as usize)?;
    assert_eq!(report.problems, Vec::<String>::new());
    // 6 of 60 amounts end in 7; of each item there are 23 reservations to be had.
    assert!(report.confirmed > 0 && report.cancelled >= 60 - 46, "{report:?}");
    assert_eq!(report.confirmed + report.cancelled, 60);
    assert!(report.refunded > 0, "who was charged for what was out of stock has the money back");
    Ok(())
}

#[tokio::test]
async fn a_declined_payment_is_told() -> Result<()> {
    let shop = Shop::open().await?;
    let client = shop.broker.client().await;
    let _worker = payments::start(&client, shop.stores.payments.clone()).await?;
    client.producer("orders").build().publish(&placed(7)).await?.await?;
    let changed: PaymentChanged = shop.broker.expect_published().await;
    assert_eq!(changed, PaymentChanged { order_id: "o-7".into(), to: Paid::Declined });
    Ok(())
}

#[test]
fn the_proof_finds_a_customer_who_was_charged_twice() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let stores = Stores::open(dir.path())?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let charge = stores.payments.change(|store| {
        store.put(payments::CHARGES, "0", &"o-1")?;
        store.put(payments::CHARGES, "1", &"o-1")
    });
    runtime.block_on(charge)?;
    assert_eq!(stores.verify(0)?.problems, ["o-1: charged twice"]);
    assert_eq!(stores.verify(1)?.problems.len(), 2, "and an order that is missing");
    Ok(())
}
