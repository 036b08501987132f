//! An option said twice.
use highwater_client::event::Event;

#[derive(Event)]
#[event(name = "order.placed", name = "order.paid")]
struct Placed;

fn main() {}
