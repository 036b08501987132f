//! CloudEvents attributes as headers, spelled as the Kafka protocol binding does.
//!
//! Owns: [`Attributes`] and the headers' names. Never: payloads.

use prost_types::Timestamp;

use super::TraceContext;
use crate::record::Header;

/// The header with the version of CloudEvents.
const SPEC_VERSION: &str = "ce_specversion";
/// The header with the event's id.
pub const ID: &str = "ce_id";
/// The header with who published it.
pub const SOURCE: &str = "ce_source";
/// The header with the event's type.
pub const TYPE: &str = "ce_type";
/// The header with when it happened.
pub const TIME: &str = "ce_time";
/// The header with what it is about.
pub const SUBJECT: &str = "ce_subject";
/// The header with the key.
const PARTITION_KEY: &str = "ce_partitionkey";
/// The header with the payload's format: CloudEvents' `datacontenttype`.
const CONTENT_TYPE: &str = "content-type";
/// The header with the trace.
pub const TRACEPARENT: &str = "traceparent";

/// What is said of an event beside its payload, in CloudEvents' words. The type, the key and the format come from the event itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Unique for the source. Whoever sends an event again gives it the same one.
    pub id: String,
    /// Who publishes it: a URI reference, `/shop/orders` for example.
    pub source: String,
    /// When it happened, in milliseconds since the Unix epoch.
    pub time_ms: Option<i64>,
    /// What it is about, where the key does not say.
    pub subject: Option<String>,
    /// The trace it belongs to.
    pub trace: Option<TraceContext>,
}

impl Attributes {
    /// What must be said, and nothing else.
    pub fn new(id: impl Into<String>, source: impl Into<String>) -> Self {
        let (id, source) = (id.into(), source.into());
        Self { id, source, time_ms: None, subject: None, trace: None }
    }

    pub(super) fn headers(
        &self,
        event_type: &str,
        content_type: &str,
        key: Option<&[u8]>,
    ) -> Vec<Header> {
        let mut headers = vec![
            Header::new(SPEC_VERSION, "1.0"),
            Header::new(ID, self.id.clone()),
            Header::new(SOURCE, self.source.clone()),
            Header::new(TYPE, event_type.to_owned()),
            Header::new(CONTENT_TYPE, content_type.to_owned()),
        ];
        if let Some(time_ms) = self.time_ms {
            headers.push(Header::new(TIME, rfc3339(time_ms)));
        }
        if let Some(subject) = &self.subject {
            headers.push(Header::new(SUBJECT, subject.clone()));
        }
        if let Some(key) = key.and_then(|key| std::str::from_utf8(key).ok()) {
            headers.push(Header::new(PARTITION_KEY, key.to_owned()));
        }
        if let Some(trace) = &self.trace {
            headers.push(Header::new(TRACEPARENT, trace.to_string()));
        }
        headers
    }
}

fn rfc3339(time_ms: i64) -> String {
    let nanos = i32::try_from(time_ms.rem_euclid(1_000) * 1_000_000).unwrap_or(0);
    Timestamp { seconds: time_ms.div_euclid(1_000), nanos }.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_spelled_as_the_kafka_binding_of_cloudevents_does() {
        let mut attributes = Attributes::new("e-1", "/shop/orders");
        attributes.time_ms = Some(1_700_000_000_123);
        attributes.subject = Some("o-1".into());
        let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        attributes.trace = trace.parse().ok();
        let headers = attributes.headers("order.placed.v2", "application/json", Some(b"o-1"));
        let text = |header: Header| {
            let value = header.value.unwrap().to_vec();
            (header.key, String::from_utf8(value).unwrap())
        };
        let headers: Vec<(String, String)> = headers.into_iter().map(text).collect();
        let expected = [
            ("ce_specversion", "1.0"),
            ("ce_id", "e-1"),
            ("ce_source", "/shop/orders"),
            ("ce_type", "order.placed.v2"),
            ("content-type", "application/json"),
            ("ce_time", "2023-11-14T22:13:20.123Z"),
            ("ce_subject", "o-1"),
            ("ce_partitionkey", "o-1"),
            ("traceparent", trace),
        ];
        assert_eq!(headers, expected.map(|(key, value)| (key.to_owned(), value.to_owned())));
    }

    #[test]
    fn a_key_that_is_no_text_is_only_the_key() {
        let headers = Attributes::new("e", "/s").headers("t.v1", "application/json", Some(&[0xff]));
        assert!(headers.iter().all(|header| header.key != PARTITION_KEY));
    }
}
