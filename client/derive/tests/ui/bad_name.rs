//! A name that is not one.
use highwater_client::event::Event;

#[derive(Event)]
#[event(name = "Order Placed")]
struct Placed;

fn main() {}
