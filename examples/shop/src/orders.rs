//! The order service: takes orders over HTTP, and sees each of them through.
//!
//! Owns: orders, the saga's decisions, the outbox. Never: money or stock; it asks by event and hears by event.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use highwater_client::event::{Attributes, Event};
use highwater_client::worker::{Context, EventId, Worker, WorkerError};
use highwater_client::{Client, Producer, Record};
use redb::TableDefinition;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::events::{
    OrderCancelled, OrderConfirmed, OrderPlaced, Paid, PaymentChanged, StockChanged, Stocked,
};
use crate::store::{Rows, Store, Transaction};

/// Orders by id.
pub const ORDERS: Rows = TableDefinition::new("orders");
/// What is to be published, by number.
const OUTBOX: Rows = TableDefinition::new("outbox");
/// The outbox' next number.
const NUMBERS: Rows = TableDefinition::new("numbers");

/// How long the outbox waits after a failure.
const PAUSE: Duration = Duration::from_millis(200);

/// How far an order has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Status {
    /// Payment or stock have not answered.
    Open,
    /// Both said yes.
    Confirmed,
    /// One of them said no.
    Cancelled,
}

/// A row of [`ORDERS`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Order {
    /// What was ordered.
    pub placed: OrderPlaced,
    /// What payment said first.
    pub paid: Option<Paid>,
    /// What inventory said first.
    pub stocked: Option<Stocked>,
    /// What follows from that.
    pub status: Status,
}

/// How many orders there are of each status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Not decided.
    pub open: usize,
    /// Paid and reserved.
    pub confirmed: usize,
    /// Cancelled.
    pub cancelled: usize,
}

/// An event that waits to be published.
#[derive(Serialize, Deserialize)]
enum Waiting {
    Placed(OrderPlaced),
    Confirmed(OrderConfirmed),
    Cancelled(OrderCancelled),
}

/// The service: what its HTTP side and its handlers share.
#[derive(Clone)]
pub struct Orders {
    store: Store,
    events: Producer,
    /// Something is in the outbox.
    waiting: Arc<Notify>,
}

impl Orders {
    /// The service on its store.
    pub fn new(client: &Client, store: Store) -> Self {
        let events = client.producer("orders").build();
        Self { store, events, waiting: Arc::new(Notify::new()) }
    }

    /// Starts to listen to payments and inventory.
    pub async fn start(&self, client: &Client) -> Result<Worker, WorkerError> {
        let builder = client.worker("orders", self.clone()).topic("payments").topic("stock");
        builder.on(payment_changed).on(stock_changed).start().await
    }

    /// Takes an order; the same order again changes nothing.
    pub async fn place(&self, placed: OrderPlaced) -> Result<()> {
        let place = self.store.change(move |store| {
            if store.get::<Order>(ORDERS, &placed.order_id)?.is_some() {
                return Ok(());
            }
            let (order_id, status) = (placed.order_id.clone(), Status::Open);
            enqueue(store, &Waiting::Placed(placed.clone()))?;
            store.put(ORDERS, &order_id, &Order { placed, paid: None, stocked: None, status })
        });
        place.await?;
        self.waiting.notify_one();
        Ok(())
    }

    /// How many orders there are of each status.
    pub fn summary(&self) -> Result<Summary> {
        let mut summary = Summary::default();
        for (_, order) in self.store.rows::<Order>(ORDERS)? {
            match order.status {
                Status::Open => summary.open += 1,
                Status::Confirmed => summary.confirmed += 1,
                Status::Cancelled => summary.cancelled += 1,
            }
        }
        Ok(summary)
    }

    /// Publishes what is in the outbox, in order, for ever.
    pub async fn publish_outbox(self) {
        loop {
            match self.publish_waiting().await {
                Ok(()) => self.waiting.notified().await,
                Err(error) => {
                    tracing::warn!("the outbox waits: {error:#}");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    async fn publish_waiting(&self) -> Result<()> {
        let mut sent = Vec::new();
        for (number, waiting) in self.store.rows::<Waiting>(OUTBOX)? {
            let record = match &waiting {
                Waiting::Placed(event) => record(event, &event.order_id),
                Waiting::Confirmed(event) => record(event, &event.order_id),
                Waiting::Cancelled(event) => record(event, &event.order_id),
            };
            sent.push((number, self.events.send(record?).await?));
        }
        let mut published = Vec::new();
        for (number, ticket) in sent {
            ticket.await?;
            published.push(number);
        }
        // A crash before this publishes them once more, with the same ids.
        let remove = self.store.change(move |store| {
            published.iter().try_for_each(|number| store.remove(OUTBOX, number))
        });
        remove.await
    }

    /// What customers see.
    pub fn routes(self) -> Router {
        Router::new()
            .route("/orders", post(place))
            .route("/orders/{order_id}", get(look))
            .route("/summary", get(summary))
            .with_state(self)
    }
}

/// There is one event of a type for an order: together they are its id.
fn record<E: Event>(event: &E, order_id: &str) -> Result<Record> {
    let id = format!("{order_id}-{}", E::NAME);
    Ok(Record::of(event, &Attributes::new(id, "/shop/orders"))?)
}

fn enqueue(store: &Transaction, waiting: &Waiting) -> Result<()> {
    let number: u64 = store.get(NUMBERS, "outbox")?.unwrap_or(0);
    store.put(NUMBERS, "outbox", &(number + 1))?;
    store.put(OUTBOX, &format!("{number:016}"), waiting)
}

async fn payment_changed(event: PaymentChanged, context: Context<Orders>) -> Result<()> {
    let heard = move |order: &mut Order| {
        // A refund follows from our own decision.
        order.paid.get_or_insert(event.to);
    };
    hear(event.order_id, &context, heard).await
}

async fn stock_changed(event: StockChanged, context: Context<Orders>) -> Result<()> {
    let heard = move |order: &mut Order| {
        order.stocked.get_or_insert(event.to);
    };
    hear(event.order_id, &context, heard).await
}

/// Takes in an answer and decides, if it can be decided now.
async fn hear(
    order_id: String,
    context: &Context<Orders>,
    heard: impl FnOnce(&mut Order) + Send + 'static,
) -> Result<()> {
    let event = EventId::of(&context.event);
    let decide = context.state.store.change(move |store| {
        if !store.is_new(event.as_ref())? {
            return Ok(());
        }
        let order = store.get::<Order>(ORDERS, &order_id)?;
        let mut order = order.with_context(|| format!("no order {order_id}"))?;
        heard(&mut order);
        if order.status == Status::Open {
            let no = |why: &str| {
                let why = why.to_owned();
                Waiting::Cancelled(OrderCancelled { order_id: order_id.clone(), why })
            };
            let decided = match (order.paid, order.stocked) {
                (Some(Paid::Declined), _) => Some(no("payment declined")),
                (_, Some(Stocked::Rejected)) => Some(no("out of stock")),
                (Some(_), Some(_)) => {
                    Some(Waiting::Confirmed(OrderConfirmed { order_id: order_id.clone() }))
                }
                _ => None,
            };
            if let Some(decided) = decided {
                order.status = match decided {
                    Waiting::Confirmed(_) => Status::Confirmed,
                    _ => Status::Cancelled,
                };
                enqueue(store, &decided)?;
            }
        }
        store.put(ORDERS, &order_id, &order)
    });
    decide.await?;
    context.state.waiting.notify_one();
    Ok(())
}

async fn place(
    State(orders): State<Orders>,
    Json(placed): Json<OrderPlaced>,
) -> Result<StatusCode, (StatusCode, String)> {
    orders.place(placed).await.map_err(broken)?;
    Ok(StatusCode::ACCEPTED)
}

async fn look(
    State(orders): State<Orders>,
    Path(order_id): Path<String>,
) -> Result<Json<Order>, (StatusCode, String)> {
    let order = orders.store.row::<Order>(ORDERS, &order_id).map_err(broken)?;
    order.map(Json).ok_or_else(|| (StatusCode::NOT_FOUND, format!("no order {order_id}")))
}

async fn summary(State(orders): State<Orders>) -> Result<Json<Summary>, (StatusCode, String)> {
    orders.summary().map(Json).map_err(broken)
}

fn broken(error: anyhow::Error) -> (StatusCode, String) {
    (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}"))
}
