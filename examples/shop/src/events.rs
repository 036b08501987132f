//! The contract: every event that one service tells another.
//!
//! Owns: names, versions and fields. A field may be added with a default; anything else is a new version. Never: what services do.

use highwater_client::event::Event;
use serde::{Deserialize, Serialize};

/// A customer has ordered. Topic `orders`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Event)]
#[event(name = "order.placed", key = "order_id")]
pub struct OrderPlaced {
    /// The order.
    pub order_id: String,
    /// What is bought.
    pub item: String,
    /// How many.
    pub quantity: u32,
    /// What all of it costs.
    pub amount_cents: u64,
}

/// The order is paid and its stock reserved. Topic `orders`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Event)]
#[event(name = "order.confirmed", key = "order_id")]
pub struct OrderConfirmed {
    /// The order.
    pub order_id: String,
}

/// The order came to nothing: whoever did something for it undoes that. Topic `orders`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Event)]
#[event(name = "order.cancelled", key = "order_id")]
pub struct OrderCancelled {
    /// The order.
    pub order_id: String,
    /// Why.
    pub why: String,
}

/// What became of a payment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Paid {
    /// The customer was charged.
    Charged,
    /// The customer's bank said no.
    Declined,
    /// The customer was charged and has the money back.
    Refunded,
}

/// The state of an order's payment has changed. Topic `payments`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Event)]
#[event(name = "payment.changed", key = "order_id")]
pub struct PaymentChanged {
    /// The order.
    pub order_id: String,
    /// To what.
    pub to: Paid,
}

/// What became of an order's stock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stocked {
    /// It is set aside.
    Reserved,
    /// There is not enough.
    Rejected,
    /// It was set aside and is back.
    Released,
}

/// The state of an order's stock has changed. Topic `stock`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Event)]
#[event(name = "stock.changed", key = "order_id")]
pub struct StockChanged {
    /// The order.
    pub order_id: String,
    /// To what.
    pub to: Stocked,
}
