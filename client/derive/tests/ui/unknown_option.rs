//! An option that there is not.
use highwater_client::event::Event;

#[derive(Event)]
#[event(name = "order.placed", topic = "orders")]
struct Placed;

fn main() {}
