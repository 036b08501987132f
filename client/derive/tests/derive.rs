//! What the derive makes.

use highwater_client::event::{Event, Format, Json};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Event)]
#[event(name = "order.placed", version = 2, key = "order_id")]
struct OrderPlaced {
    order_id: u64,
}

#[derive(Serialize, Deserialize, Event)]
#[event(name = "clock.ticked")]
enum Ticked {
    Once,
}

#[derive(Serialize, Deserialize, Event)]
#[event(name = "customer.moved", key = "0")]
struct Moved(String, String);

#[test]
fn name_version_and_key_are_what_the_attribute_says() {
    assert_eq!((OrderPlaced::NAME, OrderPlaced::VERSION), ("order.placed", 2));
    assert_eq!(OrderPlaced { order_id: 17 }.key().as_deref(), Some(&b"17"[..]));
    assert_eq!(Ticked::event_type(), "clock.ticked.v1");
    assert_eq!(Ticked::Once.key(), None);
    let moved = Moved("c-1".into(), "Oslo".into());
    assert_eq!(moved.key().as_deref(), Some(&b"c-1"[..]));
    assert_eq!(<Json as Format<Moved>>::CONTENT_TYPE, "application/json");
}
