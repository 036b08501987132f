//! The payment service: charges for orders, and gives back what was charged for those that are cancelled.
//!
//! Owns: charges. Never: knows why an order was cancelled.

use anyhow::Result;
use highwater_client::worker::{Context, EventId, Worker, WorkerError};
use highwater_client::{Client, Producer};
use redb::TableDefinition;

use crate::events::{OrderCancelled, OrderPlaced, Paid, PaymentChanged};
use crate::run::publish_decision;
use crate::store::{Rows, Store};

/// What an order's payment has come to.
pub const PAYMENTS: Rows = TableDefinition::new("payments");
/// Every charge ever made, in the order in which they were: what a card company's statement would say.
pub const CHARGES: Rows = TableDefinition::new("charges");

/// What handlers share.
pub struct Payments {
    store: Store,
    events: Producer,
}

/// Starts the service.
pub async fn start(client: &Client, store: Store) -> Result<Worker, WorkerError> {
    let state = Payments { store, events: client.producer("payments").build() };
    client.worker("payments", state).topic("orders").on(charge).on(refund).start().await
}

async fn charge(order: OrderPlaced, context: Context<Payments>) -> Result<()> {
    let (event, order_id) = (EventId::of(&context.event), order.order_id.clone());
    let decide = context.state.store.change(move |store| {
        if store.is_new(event.as_ref())? {
            let to = if is_declined(&order) { Paid::Declined } else { Paid::Charged };
            if to == Paid::Charged {
                let number = format!("{:08}", store.count(CHARGES)?);
                store.put(CHARGES, &number, &order.order_id)?;
            }
            store.put(PAYMENTS, &order.order_id, &to)?;
        }
        // Decided now or before: a refund may have followed, and what is published is what was decided here.
        store.get::<Paid>(PAYMENTS, &order.order_id)
    });
    let to = match decide.await? {
        Some(Paid::Declined) => Paid::Declined,
        _ => Paid::Charged,
    };
    publish(&context.state, &order_id, to).await
}

/// Some banks say no.
fn is_declined(order: &OrderPlaced) -> bool {
    order.amount_cents % 10 == 7
}

async fn refund(cancelled: OrderCancelled, context: Context<Payments>) -> Result<()> {
    let order_id = cancelled.order_id.clone();
    let decide = context.state.store.change(move |store| {
        let paid = store.get::<Paid>(PAYMENTS, &cancelled.order_id)?;
        if paid == Some(Paid::Charged) {
            store.put(PAYMENTS, &cancelled.order_id, &Paid::Refunded)?;
        }
        Ok(matches!(paid, Some(Paid::Charged | Paid::Refunded)))
    });
    if decide.await? {
        publish(&context.state, &order_id, Paid::Refunded).await?;
    }
    Ok(())
}

async fn publish(service: &Payments, order_id: &str, to: Paid) -> Result<()> {
    let event = PaymentChanged { order_id: order_id.to_owned(), to };
    publish_decision(&service.events, "/shop/payments", format!("{order_id}-{to:?}"), &event).await
}
