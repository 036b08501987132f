//! A format that there is not.
use highwater_client::event::Event;

#[derive(Event)]
#[event(name = "order.placed", format = "avro")]
struct Placed;

fn main() {}
