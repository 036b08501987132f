//! An event without a name.
use highwater_client::event::Event;

#[derive(Event)]
struct Placed;

fn main() {}
