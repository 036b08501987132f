//! Deduplication: which events were handled already.
//!
//! Owns: [`Inbox`] and the one in memory. Never: decides when to ask (`lanes`).

use std::collections::{HashSet, VecDeque};

use futures::future::BoxFuture;
use parking_lot::Mutex;

use crate::event::{Cause, ID, SOURCE};
use crate::record::Event;

/// What makes an event the same one: its source and its id, as CloudEvents has it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EventId {
    /// Who published it.
    pub source: String,
    /// Its id there.
    pub id: String,
}

impl EventId {
    /// The id in an event's headers; `None` if they do not say.
    pub fn of(event: &Event) -> Option<Self> {
        let text = |name| event.header_str(name).map(str::to_owned);
        Some(Self { source: text(SOURCE)?, id: text(ID)? })
    }
}

/// Remembers which events were handled. Events come at least once, and sometimes twice: what is in the inbox is not handled again.
///
/// An inbox beside the service's store, [`MemoryInbox`] for example, catches most duplicates: not the one that follows a process that died
/// between handling and remembering. To catch that as well, the handler itself writes the id ([`EventId::of`]) in the same transaction as
/// what it does; then [`Inbox::remember`] has nothing to do.
pub trait Inbox: Send + Sync + 'static {
    /// Whether the event was handled. An error is tried again like a failed handler.
    fn contains<'a>(&'a self, id: &'a EventId) -> BoxFuture<'a, Result<bool, Cause>>;

    /// The event is handled. Called before its progress is committed. An error is tried again like a failed handler, without the handler.
    fn remember<'a>(&'a self, id: &'a EventId) -> BoxFuture<'a, Result<(), Cause>>;
}

/// An inbox in memory: it knows the last so many events, and none after a restart.
#[derive(Debug)]
pub struct MemoryInbox {
    events_max: usize,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    ids: HashSet<EventId>,
    order: VecDeque<EventId>,
}

impl MemoryInbox {
    /// Remembers so many events; the oldest is forgotten for a new one.
    pub fn new(events_max: usize) -> Self {
        Self { events_max: events_max.max(1), known: Mutex::default() }
    }
}

impl Inbox for MemoryInbox {
    fn contains<'a>(&'a self, id: &'a EventId) -> BoxFuture<'a, Result<bool, Cause>> {
        let known = self.known.lock().ids.contains(id);
        Box::pin(std::future::ready(Ok(known)))
    }

    fn remember<'a>(&'a self, id: &'a EventId) -> BoxFuture<'a, Result<(), Cause>> {
        let mut known = self.known.lock();
        if known.ids.insert(id.clone()) {
            known.order.push_back(id.clone());
            if known.order.len() > self.events_max
                && let Some(oldest) = known.order.pop_front()
            {
                known.ids.remove(&oldest);
            }
        }
        Box::pin(std::future::ready(Ok(())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u32) -> EventId {
        EventId { source: "/shop".into(), id: number.to_string() }
    }

    #[tokio::test]
    async fn the_oldest_event_is_forgotten_for_a_new_one() {
        let inbox = MemoryInbox::new(2);
        for number in [1, 2, 2, 3] {
            inbox.remember(&id(number)).await.unwrap();
        }
        assert!(!inbox.contains(&id(1)).await.unwrap());
        assert!(inbox.contains(&id(2)).await.unwrap() && inbox.contains(&id(3)).await.unwrap());
        let elsewhere = EventId { source: "/other".into(), id: "3".into() };
        assert!(!inbox.contains(&elsewhere).await.unwrap());
    }
}
