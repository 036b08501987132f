//! The dead-letter topic: where events go that could not be handled, with why.
//!
//! Owns: the headers that say so. Never: decides which events go there.

use crate::client::Client;
use crate::error::{AdminError, SendError, reason};
use crate::producer::Producer;
use crate::record::{Event, Header, Record};
use crate::types::NewTopic;

/// The header that says why an event is in a dead-letter topic.
pub const DEAD_LETTER_REASON: &str = "dead-letter-reason";
/// How often it was tried.
pub const DEAD_LETTER_ATTEMPTS: &str = "dead-letter-attempts";
/// The consumer group whose worker gave it up.
pub const DEAD_LETTER_GROUP: &str = "dead-letter-group";
/// The topic that it was read from.
pub const DEAD_LETTER_TOPIC: &str = "dead-letter-topic";
/// The partition.
pub const DEAD_LETTER_PARTITION: &str = "dead-letter-partition";
/// The offset.
pub const DEAD_LETTER_OFFSET: &str = "dead-letter-offset";

/// What headers hold at the most of a reason: the record must not outgrow what its topic takes.
const REASON_BYTES_MAX: usize = 4 << 10;

/// Creates the topic if it is not there.
pub(super) async fn ensure(client: &Client, topic: &str) -> Result<(), AdminError> {
    let admin = client.admin();
    match admin.get_topic(topic).await {
        Ok(_) => return Ok(()),
        Err(error) if error.reason() == reason::UNKNOWN_TOPIC => {}
        Err(error) => return Err(error),
    }
    match admin.create_topic(NewTopic::new(topic).partitions(1)).await {
        // Another worker of the group starts as well.
        Err(error) if error.reason() != reason::TOPIC_EXISTS => Err(error),
        _ => Ok(()),
    }
}

/// Publishes an event as it is, with why it could not be handled; returns when that is durable.
pub(super) async fn bury(
    producer: &Producer,
    group: &str,
    event: &Event,
    why: &str,
    attempts: u32,
) -> Result<(), SendError> {
    let mut headers = event.headers.clone();
    // An event that was buried before says where it came from this time.
    headers.retain(|header| !header.key.starts_with("dead-letter-"));
    let mut end = why.len().min(REASON_BYTES_MAX);
    while !why.is_char_boundary(end) {
        end -= 1;
    }
    let said = [
        (DEAD_LETTER_REASON, why[..end].to_owned()),
        (DEAD_LETTER_ATTEMPTS, attempts.to_string()),
        (DEAD_LETTER_GROUP, group.to_owned()),
        (DEAD_LETTER_TOPIC, event.topic.to_string()),
        (DEAD_LETTER_PARTITION, event.partition.to_string()),
        (DEAD_LETTER_OFFSET, event.offset.to_string()),
    ];
    headers.extend(said.map(|(name, value)| Header::new(name, value)));
    let record = Record {
        key: event.key.clone(),
        value: event.value.clone(),
        headers,
        timestamp_ms: Some(event.timestamp_ms),
        partition: None,
    };
    producer.send(record).await?.await.map(drop)
}
