//! The notification service: tells customers what became of their orders, once.
//!
//! Owns: what was sent. Never: publishes.

use anyhow::Result;
use highwater_client::Client;
use highwater_client::worker::{Context, EventId, Worker, WorkerError};
use redb::TableDefinition;

use crate::events::{OrderCancelled, OrderConfirmed};
use crate::store::{Rows, Store};

/// Every message that was sent, in order: the order it is about.
pub const SENT: Rows = TableDefinition::new("sent");

/// Starts the service.
pub async fn start(client: &Client, store: Store) -> Result<Worker, WorkerError> {
    client.worker("notifications", store).topic("orders").on(confirmed).on(cancelled).start().await
}

async fn confirmed(event: OrderConfirmed, context: Context<Store>) -> Result<()> {
    send(event.order_id, &context).await
}

async fn cancelled(event: OrderCancelled, context: Context<Store>) -> Result<()> {
    send(event.order_id, &context).await
}

/// Writing it down stands for sending it. A real one hands the event's id to the mail service, which knows it when it comes again.
async fn send(order_id: String, context: &Context<Store>) -> Result<()> {
    let event = EventId::of(&context.event);
    let send = context.state.change(move |store| {
        if store.is_new(event.as_ref())? {
            store.put(SENT, &format!("{:08}", store.count(SENT)?), &order_id)?;
        }
        Ok(())
    });
    send.await
}
