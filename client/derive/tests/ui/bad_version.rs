//! A version that is no number from 1 on.
use highwater_client::event::Event;

#[derive(Event)]
#[event(name = "order.placed", version = 0)]
struct Placed;

fn main() {}
