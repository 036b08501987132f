//! A shop as four services: orders, payments, inventory, notifications. Each has its own process and its own store; they know one another
//! by events only.
//!
//! Owns: the contract ([`events`]), the services, and the proof that they agree ([`verify`]). Never: a shared store.
//!
//! # The saga
//!
//! ```text
//! customer ─▶ orders ──order.placed──▶ payments ──payment.succeeded / declined──▶ orders
//!                           └────────▶ inventory ──stock.reserved / rejected────▶ orders
//! orders ──order.confirmed (both succeeded) / order.cancelled (one did not)──▶ notifications
//!                                           order.cancelled ──▶ payments: refund what was paid
//!                                                           └─▶ inventory: release what was reserved
//! ```
//!
//! # How nothing happens twice and nothing is forgotten
//!
//! A service decides within one transaction of its store: the event's id goes into the inbox, the new state beside it. Then it publishes what
//! it decided, and only then is the event done. A crash in between brings the event again; the inbox says that it is decided, and the
//! service publishes the same decision with the same id. The order service, where orders come from outside and no event would come again,
//! has an outbox: the order and the event that tells of it are one transaction, and a task publishes what is in the outbox, as often as it
//! takes.
//!
//! # Running it
//!
//! `docker compose --profile shop up` in the repository's root, or `scripts/shop`, which breaks everything meanwhile.

pub mod events;
pub mod inventory;
pub mod notifications;
pub mod orders;
pub mod payments;
pub mod run;
pub mod store;
pub mod verify;

/// Topics: one for each service that publishes. The key is the order everywhere.
pub const TOPICS: [&str; 3] = ["orders", "payments", "stock"];
