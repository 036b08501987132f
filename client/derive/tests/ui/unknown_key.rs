//! A key that is no field.
use highwater_client::event::Event;

#[derive(serde::Serialize, serde::Deserialize, Event)]
#[event(name = "order.placed", key = "id")]
struct Placed {
    order_id: String,
    amount: u64,
}

fn main() {}
