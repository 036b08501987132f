//! The proof: what four stores say of the same orders must fit together.
//!
//! Owns: the rules. Never: changes anything; the services must not run, for their stores are theirs alone.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::Result;

use crate::events::{Paid, Stocked};
use crate::inventory::{PIECES, RESERVATIONS, Reservation, STOCK};
use crate::notifications::SENT;
use crate::orders::{ORDERS, Order, Status};
use crate::payments::{CHARGES, PAYMENTS};
use crate::store::Store;

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Orders that are paid and reserved.
    pub confirmed: usize,
    /// Orders that are cancelled, of which nothing is paid or reserved.
    pub cancelled: usize,
    /// Those of them that had been charged.
    pub refunded: usize,
    /// Those of them that had stock set aside.
    pub released: usize,
    /// What is wrong.
    pub problems: Vec<String>,
}

/// What the services' stores hold.
pub struct Stores {
    /// The order service's.
    pub orders: Store,
    /// The payment service's.
    pub payments: Store,
    /// The inventory service's.
    pub inventory: Store,
    /// The notification service's.
    pub notifications: Store,
}

impl Stores {
    /// Opens what services left in this folder.
    pub fn open(data: &Path) -> Result<Self> {
        let open = |name: &str| Store::open(&data.join(format!("{name}.redb")));
        Ok(Self {
            orders: open("orders")?,
            payments: open("payments")?,
            inventory: open("inventory")?,
            notifications: open("notifications")?,
        })
    }

    /// Holds the stores against one another. `expected`: how many orders were placed.
    pub fn verify(&self, expected: usize) -> Result<Report> {
        let orders = self.orders.rows::<Order>(ORDERS)?;
        let payments: BTreeMap<_, _> = self.payments.rows::<Paid>(PAYMENTS)?.into_iter().collect();
        let reservations: BTreeMap<_, _> =
            self.inventory.rows::<Reservation>(RESERVATIONS)?.into_iter().collect();
        let mut report = Report::default();
        if orders.len() != expected {
            report.problems.push(format!("{} orders, {expected} were placed", orders.len()));
        }
        let mut taken: BTreeMap<&str, u32> = BTreeMap::new();
        for (order_id, order) in &orders {
            let paid = payments.get(order_id).copied();
            let held = reservations.get(order_id);
            let stocked = held.map(|held| held.state);
            if let Some(held) = held.filter(|held| held.state == Stocked::Reserved) {
                *taken.entry(&held.item).or_default() += held.quantity;
            }
            let is_right = match order.status {
                Status::Open => false,
                Status::Confirmed => {
                    report.confirmed += 1;
                    paid == Some(Paid::Charged) && stocked == Some(Stocked::Reserved)
                }
                Status::Cancelled => {
                    report.cancelled += 1;
                    report.refunded += usize::from(paid == Some(Paid::Refunded));
                    report.released += usize::from(stocked == Some(Stocked::Released));
                    paid != Some(Paid::Charged) && stocked != Some(Stocked::Reserved)
                }
            };
            if !is_right {
                let status = order.status;
                report
                    .problems
                    .push(format!("{order_id}: {status:?}, but {paid:?} and {stocked:?}"));
            }
        }
        for (item, free) in self.inventory.rows::<u32>(STOCK)? {
            let taken = taken.get(item.as_str()).copied().unwrap_or(0);
            if free + taken != PIECES {
                report.problems.push(format!("{item}: {free} free, {taken} taken, of {PIECES}"));
            }
        }
        twice(&self.payments.rows(CHARGES)?, "charged", &mut report.problems);
        let sent = self.notifications.rows(SENT)?;
        twice(&sent, "notified", &mut report.problems);
        if sent.len() != orders.len() {
            let (sent, orders) = (sent.len(), orders.len());
            report.problems.push(format!("{sent} notifications for {orders} orders"));
        }
        Ok(report)
    }

    /// Whether every service has heard of everything that was decided: before that, it is too early to verify.
    pub fn is_settled(&self, expected: usize) -> Result<bool> {
        let orders = self.orders.rows::<Order>(ORDERS)?;
        let is_decided = |(_, order): &(String, Order)| order.status != Status::Open;
        let report = self.verify(expected)?;
        Ok(orders.len() == expected && orders.iter().all(is_decided) && report.problems.is_empty())
    }
}

fn twice(rows: &[(String, String)], what: &str, problems: &mut Vec<String>) {
    let mut seen = BTreeSet::new();
    for (_, order_id) in rows {
        if !seen.insert(order_id) {
            problems.push(format!("{order_id}: {what} twice"));
        }
    }
}
