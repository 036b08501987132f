//! A type that cannot be written as JSON.
use highwater_client::event::Event;

#[derive(Event)]
#[event(name = "order.placed")]
struct Placed;

fn main() {}
