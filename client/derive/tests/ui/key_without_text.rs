//! A key that has no text.
use highwater_client::event::Event;

#[derive(serde::Serialize, serde::Deserialize, Event)]
#[event(name = "order.placed", key = "lines")]
struct Placed {
    lines: Vec<u8>,
}

fn main() {}
