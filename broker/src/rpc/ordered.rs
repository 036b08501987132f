//! Answers in order within each lane, and as they come between lanes.
//!
//! Owns: who waits behind whom. Never: what an answer is. A produce stream uses one lane for each partition, so that a slow
//! partition holds up nobody else's answers.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;

/// Futures in lanes. Only the head of each lane is polled: were all of them, one that becomes ready before its first poll
/// could be answered ahead of an earlier one.
///
/// Invariant: a lane is in `waiting` exactly while one future of it is in `heads`.
pub(super) struct Ordered<K, T> {
    heads: FuturesUnordered<BoxFuture<'static, (K, T)>>,
    waiting: HashMap<K, VecDeque<BoxFuture<'static, T>>>,
}

impl<K, T> Ordered<K, T>
where
    K: Clone + Eq + Hash + Send + 'static,
    T: 'static,
{
    pub(super) fn new() -> Self {
        Self { heads: FuturesUnordered::new(), waiting: HashMap::new() }
    }

    /// Adds an answer behind all others of its lane.
    pub(super) fn push(&mut self, lane: K, answer: BoxFuture<'static, T>) {
        match self.waiting.entry(lane) {
            Entry::Occupied(mut behind) => behind.get_mut().push_back(answer),
            Entry::Vacant(vacant) => {
                self.heads.push(head(vacant.key().clone(), answer));
                vacant.insert(VecDeque::new());
            }
        }
    }

    /// Whether no answer is outstanding.
    pub(super) fn is_empty(&self) -> bool {
        self.heads.is_empty()
    }

    /// The next answer; `None` if none is outstanding. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Option<T> {
        let (lane, answer) = self.heads.next().await?;
        let next = self.waiting.get_mut(&lane).and_then(VecDeque::pop_front);
        match next {
            Some(next) => self.heads.push(head(lane, next)),
            None => {
                self.waiting.remove(&lane);
            }
        }
        Some(answer)
    }
}

fn head<K, T>(lane: K, answer: BoxFuture<'static, T>) -> BoxFuture<'static, (K, T)>
where
    K: Send + 'static,
    T: 'static,
{
    Box::pin(async move { (lane, answer.await) })
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use tokio::sync::oneshot;

    use super::*;

    fn ticket(
        ordered: &mut Ordered<&'static str, u32>,
        lane: &'static str,
    ) -> oneshot::Sender<u32> {
        let (sender, receiver) = oneshot::channel();
        ordered.push(lane, Box::pin(async move { receiver.await.unwrap() }));
        sender
    }

    fn ready(ordered: &mut Ordered<&'static str, u32>) -> Vec<u32> {
        std::iter::from_fn(|| ordered.next().now_or_never().flatten()).collect()
    }

    #[test]
    fn answers_of_a_lane_keep_their_order_whatever_is_ready_first() {
        let mut ordered = Ordered::new();
        let (first, second) = (ticket(&mut ordered, "a"), ticket(&mut ordered, "a"));
        second.send(2).unwrap();
        assert!(ready(&mut ordered).is_empty());
        first.send(1).unwrap();
        assert_eq!(ready(&mut ordered), [1, 2]);
        assert!(ordered.is_empty() && ordered.waiting.is_empty());
    }

    #[test]
    fn an_answer_added_after_an_earlier_one_was_polled_stays_behind_it() {
        let mut ordered = Ordered::new();
        let first = ticket(&mut ordered, "a");
        assert!(ready(&mut ordered).is_empty());
        let second = ticket(&mut ordered, "a");
        // The earlier one wakes after the later one was added, as on a real stream.
        second.send(2).unwrap();
        first.send(1).unwrap();
        assert_eq!(ready(&mut ordered), [1, 2]);
    }

    #[test]
    fn a_slow_lane_holds_up_no_other() {
        let mut ordered = Ordered::new();
        let slow = ticket(&mut ordered, "slow");
        ticket(&mut ordered, "fast").send(2).unwrap();
        ticket(&mut ordered, "fast").send(3).unwrap();
        assert_eq!(ready(&mut ordered), [2, 3]);
        assert!(!ordered.is_empty());
        slow.send(1).unwrap();
        assert_eq!(ready(&mut ordered), [1]);
    }

    #[test]
    fn a_lane_can_be_used_again_after_it_emptied() {
        let mut ordered = Ordered::new();
        for round in 0..3 {
            ticket(&mut ordered, "a").send(round).unwrap();
            assert_eq!(ready(&mut ordered), [round]);
        }
    }
}
