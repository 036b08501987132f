//! Typed events: what a service publishes and handles, with a name, a version and a key of its own.
//!
//! Owns: [`Event`], how its payload is written, and decoding with errors that say where. Never: topics; the same type may travel in
//! several.
//!
//! ```
//! use highwater_client::event::{Attributes, Event};
//! use highwater_client::Record;
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Serialize, Deserialize, Event)]
//! #[event(name = "order.placed", version = 2, key = "order_id")]
//! struct OrderPlaced {
//!     order_id: String,
//!     amount_cents: u64,
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let event = OrderPlaced { order_id: "o-1".into(), amount_cents: 1250 };
//! let record = Record::of(&event, &Attributes::new("e-1", "/shop/orders"))?;
//! assert_eq!(record.key.as_deref(), Some(&b"o-1"[..]));
//! assert_eq!(OrderPlaced::event_type(), "order.placed.v2");
//! # Ok(()) }
//! ```
//!
//! A key has to have a text, and the format must be able to write the type. Neither of these compiles:
//!
//! ```compile_fail
//! # use highwater_client::event::Event;
//! #[derive(serde::Serialize, serde::Deserialize, Event)]
//! #[event(name = "order.placed", key = "lines")]
//! struct OrderPlaced {
//!     lines: Vec<u8>,
//! }
//! ```
//!
//! ```compile_fail
//! # use highwater_client::event::Event;
//! #[derive(Event)]
//! #[event(name = "order.placed")]
//! struct OrderPlaced;
//! ```
//!
//! [`Producer::publish`](crate::Producer::publish) does the same and sends it, with an id drawn and the time taken;
//! [`crate::Event::decode`] is the way back.
//!
//! # On the wire
//!
//! Events are [CloudEvents 1.0](https://github.com/cloudevents/spec) in the binary mode of their Kafka protocol binding: the payload is
//! the record's value, attributes are headers, the partition key is the record's key. Any CloudEvents library reads them.
//!
//! | header | value |
//! | --- | --- |
//! | `ce_specversion` | `1.0` |
//! | `ce_id` | unique for its source; the same when an event is sent again, which is what an [`Inbox`](crate::worker::Inbox) looks at |
//! | `ce_source` | who published it, a URI reference |
//! | `ce_type` | [`Event::event_type`]: `order.placed.v2` |
//! | `ce_time` | when, as RFC 3339 |
//! | `ce_subject` | what it is about, if [`Attributes::subject`] says |
//! | `ce_partitionkey` | the key, if there is one and it is text |
//! | `content-type` | `application/json` or `application/protobuf` |
//! | `traceparent` | [W3C trace context](https://www.w3.org/TR/trace-context/), if there is one |

mod cloud;
mod trace;

use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use cloud::{Attributes, ID, SOURCE, SUBJECT, TIME, TRACEPARENT, TYPE};
pub(crate) use trace::within as within_trace;
pub use trace::{InvalidTrace, TraceContext};

/// Derives [`Event`](trait@Event): `#[event(name = "order.placed", version = 2, key = "order_id")]`.
///
/// - `name`: [`Event::NAME`]; needed.
/// - `version`: [`Event::VERSION`]; 1 if it is left out.
/// - `key`: the field whose text is the key; without it events have no key, and no order among them.
/// - `format`: `"json"` (as it is, needs serde's `Serialize` and `Deserialize`) or `"protobuf"` (needs `prost::Message`).
///
/// ```
/// use highwater_client::event::Event;
///
/// #[derive(Clone, PartialEq, prost::Message, Event)]
/// #[event(name = "stock.reserved", key = "order_id", format = "protobuf")]
/// struct StockReserved {
///     #[prost(string, tag = "1")]
///     order_id: String,
/// }
/// assert_eq!(StockReserved::event_type(), "stock.reserved.v1");
/// ```
pub use highwater_derive::Event;

/// Something that happened, as services name it to one another. Derive it: [`macro@Event`].
pub trait Event: Sized + Send + 'static {
    /// What happened, in words separated by dots: `order.placed`.
    const NAME: &'static str;
    /// Which shape of it; grows when old readers could not read the new one.
    const VERSION: u32;
    /// How it is written as bytes.
    type Format: Format<Self>;

    /// What it is about: events with the same key are in one partition, in order, and handled in order. `None`: any partition.
    fn key(&self) -> Option<Key>;

    /// The CloudEvents type: name and version.
    fn event_type() -> String {
        format!("{}.v{}", Self::NAME, Self::VERSION)
    }
}

/// What events of a kind have in common when they are about the same thing; bytes, most often text.
pub type Key = Bytes;

/// Why bytes could not be made, or made no sense.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// How events are written as bytes.
#[diagnostic::on_unimplemented(
    message = "`{E}` cannot be written as `{Self}`",
    note = "JSON needs `#[derive(serde::Serialize, serde::Deserialize)]`",
    note = "Protocol Buffers need `#[derive(prost::Message)]`"
)]
pub trait Format<E> {
    /// What the `content-type` header says.
    const CONTENT_TYPE: &'static str;
    /// Writes an event.
    fn encode(event: &E) -> Result<Bytes, Cause>;
    /// Reads one.
    fn decode(bytes: &Bytes) -> Result<E, Cause>;
}

/// JSON, as serde writes it.
#[derive(Clone, Copy, Debug)]
pub struct Json;

#[diagnostic::do_not_recommend]
impl<E: Serialize + DeserializeOwned> Format<E> for Json {
    const CONTENT_TYPE: &'static str = "application/json";

    fn encode(event: &E) -> Result<Bytes, Cause> {
        Ok(serde_json::to_vec(event)?.into())
    }

    fn decode(bytes: &Bytes) -> Result<E, Cause> {
        Ok(serde_json::from_slice(bytes)?)
    }
}

/// Protocol Buffers, as prost writes them.
#[derive(Clone, Copy, Debug)]
pub struct Protobuf;

#[diagnostic::do_not_recommend]
impl<E: prost::Message + Default> Format<E> for Protobuf {
    const CONTENT_TYPE: &'static str = "application/protobuf";

    fn encode(event: &E) -> Result<Bytes, Cause> {
        Ok(event.encode_to_vec().into())
    }

    fn decode(bytes: &Bytes) -> Result<E, Cause> {
        Ok(E::decode(bytes.clone())?)
    }
}

/// An event that cannot be written as bytes.
#[derive(Clone, Debug, thiserror::Error)]
#[error("an event of type {event_type} cannot be encoded: {cause}")]
pub struct EncodeError {
    /// Its type.
    pub event_type: String,
    /// What the format says.
    pub cause: Arc<dyn std::error::Error + Send + Sync>,
}

/// A record that is no event of the expected type. Trying again does not help: the record stays as it is.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{topic}:{partition}@{offset} is no {expected}: {why}")]
pub struct DecodeError {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition.
    pub partition: u32,
    /// The record's offset.
    pub offset: i64,
    /// The type that was asked for.
    pub expected: String,
    /// The type that its headers name, if they do.
    pub found: Option<String>,
    /// What is wrong.
    pub why: String,
}

impl crate::Record {
    /// A typed event as a record, with its attributes as headers.
    pub fn of<E: Event>(event: &E, attributes: &Attributes) -> Result<Self, EncodeError> {
        let encoded = E::Format::encode(event).map_err(|cause| EncodeError {
            event_type: E::event_type(),
            cause: Arc::from(cause),
        })?;
        let (key, content_type) = (event.key(), E::Format::CONTENT_TYPE);
        let headers = attributes.headers(&E::event_type(), content_type, key.as_deref());
        Ok(Self { key, value: Some(encoded), headers, ..Self::default() })
    }
}

impl crate::Event {
    /// The value of the first header of this name, if it has one.
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        let found = self.headers.iter().find(|header| header.key == name)?;
        found.value.as_deref()
    }

    /// The same as text, if it is UTF-8.
    pub fn header_str(&self, name: &str) -> Option<&str> {
        self.header(name).and_then(|value| std::str::from_utf8(value).ok())
    }

    /// The type that its headers name (`ce_type`).
    pub fn event_type(&self) -> Option<&str> {
        self.header_str(TYPE)
    }

    /// The trace that its publisher was in.
    pub fn trace(&self) -> Option<TraceContext> {
        // CloudEvents' own spelling is taken as well.
        let found = self.header_str(TRACEPARENT).or_else(|| self.header_str("ce_traceparent"));
        found?.parse().ok()
    }

    /// Whether this is an event of this type.
    pub fn is<E: Event>(&self) -> bool {
        self.event_type() == Some(E::event_type().as_str())
    }

    /// Reads a typed event. A record without a type in its headers is read as what is asked for.
    pub fn decode<E: Event>(&self) -> Result<E, DecodeError> {
        let error = |why: String| DecodeError {
            topic: self.topic.clone(),
            partition: self.partition,
            offset: self.offset,
            expected: E::event_type(),
            found: self.event_type().map(str::to_owned),
            why,
        };
        match self.event_type() {
            Some(found) if found != E::event_type() => {
                return Err(error(format!("its headers say {TYPE}: {found}")));
            }
            _ => {}
        }
        let Some(value) = &self.value else {
            return Err(error("it has no value".to_owned()));
        };
        E::Format::decode(value).map_err(|cause| error(cause.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::record::Header;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Placed {
        order: String,
    }

    impl Event for Placed {
        const NAME: &'static str = "order.placed";
        const VERSION: u32 = 2;
        type Format = Json;

        fn key(&self) -> Option<Bytes> {
            Some(self.order.clone().into())
        }
    }

    #[derive(Clone, PartialEq, prost::Message)]
    struct Reserved {
        #[prost(uint32, tag = "1")]
        pieces: u32,
    }

    impl Event for Reserved {
        const NAME: &'static str = "stock.reserved";
        const VERSION: u32 = 1;
        type Format = Protobuf;

        fn key(&self) -> Option<Bytes> {
            None
        }
    }

    fn read(record: crate::Record) -> crate::Event {
        crate::Event {
            topic: "orders".into(),
            partition: 3,
            offset: 42,
            timestamp_ms: 0,
            key: record.key,
            value: record.value,
            headers: record.headers,
        }
    }

    fn attributes() -> Attributes {
        Attributes::new("e-1", "/shop")
    }

    #[test]
    fn an_event_comes_back_as_it_was_in_either_format() {
        let placed = Placed { order: "o-1".into() };
        let event = read(crate::Record::of(&placed, &attributes()).unwrap());
        assert_eq!(event.decode::<Placed>().unwrap(), placed);
        assert!(event.is::<Placed>() && !event.is::<Reserved>());
        let reserved = Reserved { pieces: 7 };
        let event = read(crate::Record::of(&reserved, &attributes()).unwrap());
        assert_eq!(event.decode::<Reserved>().unwrap(), reserved);
        assert_eq!(event.header_str("content-type"), Some("application/protobuf"));
    }

    #[test]
    fn what_cannot_be_decoded_says_where_it_is_and_what_it_is() {
        let placed = Placed { order: "o-1".into() };
        let mut event = read(crate::Record::of(&placed, &attributes()).unwrap());
        let error = event.decode::<Reserved>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "orders:3@42 is no stock.reserved.v1: its headers say ce_type: order.placed.v2"
        );
        assert_eq!(error.found.as_deref(), Some("order.placed.v2"));
        event.value = Some("{".into());
        let error = event.decode::<Placed>().unwrap_err().to_string();
        assert!(error.starts_with("orders:3@42 is no order.placed.v2: EOF"), "{error}");
        event.value = None;
        let error = event.decode::<Placed>().unwrap_err().to_string();
        assert!(error.ends_with("it has no value"), "{error}");
    }

    #[test]
    fn a_record_that_names_no_type_is_read_as_what_is_asked_for() {
        let mut event = read(crate::Record::new(r#"{"order":"o-1"}"#));
        assert_eq!(event.decode::<Placed>().unwrap().order, "o-1");
        assert!(!event.is::<Placed>());
        event.headers.push(Header::new(TYPE, "other"));
        assert!(event.decode::<Placed>().is_err());
    }
}
