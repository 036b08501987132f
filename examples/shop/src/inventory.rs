//! The inventory service: sets stock aside for orders, and takes back what was set aside for those that are cancelled.
//!
//! Owns: how much there is. Never: prices or payments.

use anyhow::Result;
use highwater_client::worker::{Context, EventId, Worker, WorkerError};
use highwater_client::{Client, Producer};
use redb::TableDefinition;
use serde::{Deserialize, Serialize};

use crate::events::{OrderCancelled, OrderPlaced, StockChanged, Stocked};
use crate::run::publish_decision;
use crate::store::{Rows, Store};

/// How many pieces of an item are free.
pub const STOCK: Rows = TableDefinition::new("stock");
/// What was set aside for an order.
pub const RESERVATIONS: Rows = TableDefinition::new("reservations");

/// A row of [`RESERVATIONS`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Reservation {
    /// Of what.
    pub item: String,
    /// How many.
    pub quantity: u32,
    /// What became of it.
    pub state: Stocked,
}

/// What handlers share.
pub struct Inventory {
    store: Store,
    events: Producer,
}

/// How many pieces of each item a new store begins with.
pub const PIECES: u32 = 700;

/// Starts the service.
pub async fn start(client: &Client, store: Store) -> Result<Worker, WorkerError> {
    let state = Inventory { store, events: client.producer("stock").build() };
    client.worker("inventory", state).topic("orders").on(reserve).on(release).start().await
}

async fn reserve(order: OrderPlaced, context: Context<Inventory>) -> Result<()> {
    let (event, order_id) = (EventId::of(&context.event), order.order_id.clone());
    let decide = context.state.store.change(move |store| {
        if store.is_new(event.as_ref())? {
            let free = store.get::<u32>(STOCK, &order.item)?.unwrap_or(PIECES);
            let state = match free.checked_sub(order.quantity) {
                Some(rest) => {
                    store.put(STOCK, &order.item, &rest)?;
                    Stocked::Reserved
                }
                None => Stocked::Rejected,
            };
            let (item, quantity) = (order.item.clone(), order.quantity);
            store.put(RESERVATIONS, &order.order_id, &Reservation { item, quantity, state })?;
        }
        store.get::<Reservation>(RESERVATIONS, &order.order_id)
    });
    // It may have been released since; what is published is what was decided here.
    let to = match decide.await?.map(|reservation| reservation.state) {
        Some(Stocked::Rejected) => Stocked::Rejected,
        _ => Stocked::Reserved,
    };
    publish(&context.state, &order_id, to).await
}

async fn release(cancelled: OrderCancelled, context: Context<Inventory>) -> Result<()> {
    let order_id = cancelled.order_id.clone();
    let decide = context.state.store.change(move |store| {
        let Some(mut held) = store.get::<Reservation>(RESERVATIONS, &cancelled.order_id)? else {
            return Ok(false);
        };
        if held.state == Stocked::Reserved {
            let free = store.get::<u32>(STOCK, &held.item)?.unwrap_or(PIECES);
            store.put(STOCK, &held.item, &(free + held.quantity))?;
            held.state = Stocked::Released;
            store.put(RESERVATIONS, &cancelled.order_id, &held)?;
        }
        Ok(held.state == Stocked::Released)
    });
    if decide.await? {
        publish(&context.state, &order_id, Stocked::Released).await?;
    }
    Ok(())
}

async fn publish(service: &Inventory, order_id: &str, to: Stocked) -> Result<()> {
    let event = StockChanged { order_id: order_id.to_owned(), to };
    publish_decision(&service.events, "/shop/inventory", format!("{order_id}-{to:?}"), &event).await
}
