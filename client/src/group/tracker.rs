//! What of one partition was handed out, and what of that is done: up to where progress may be committed.
//!
//! Owns: the rule that progress never passes an event that is not done. Never: sockets, clocks, tasks.

use std::collections::VecDeque;

/// What became of an event that was handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Somebody is handling it.
    Out,
    /// It is done.
    Done,
    /// Whoever had it dropped it without a word: it will come again, to whoever reads the partition next.
    Dropped,
}

/// Events that were handed out together.
#[derive(Clone, Copy, Debug)]
struct Portion {
    /// The offset of the first, by which the portion is known.
    first: i64,
    events: usize,
    fate: Fate,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Tracker {
    /// Behind the last event that was handed out.
    position: Option<i64>,
    /// From the first one on that is not done, by offset.
    portions: VecDeque<Portion>,
    /// Events in them.
    undone: usize,
    /// Portions that somebody is handling.
    out: usize,
}

impl Tracker {
    /// So many events, from the first to the last, were handed out; all before were before them.
    pub(super) fn handed_out(&mut self, first: i64, last: i64, events: usize) {
        debug_assert!(self.position <= Some(first), "events of a partition come in order");
        self.position = Some(last + 1);
        self.portions.push_back(Portion { first, events, fate: Fate::Out });
        self.undone += events;
        self.out += 1;
    }

    /// What begins with this offset has grown, by events behind it, to this last one.
    pub(super) fn grown(&mut self, first: i64, last: i64) {
        if self.find(first).is_some() {
            self.position = Some(last + 1);
        }
    }

    /// What begins with this offset is done. What was dropped can still be: a service may say so late.
    pub(super) fn done(&mut self, first: i64) {
        self.set(first, Fate::Done);
        while let Some(portion) = self.portions.front().filter(|it| it.fate == Fate::Done) {
            self.undone -= portion.events;
            self.portions.pop_front();
        }
    }

    /// What begins with this offset was dropped without a word.
    pub(super) fn dropped(&mut self, first: i64) {
        if self.find(first).is_some_and(|portion| portion.fate == Fate::Out) {
            self.set(first, Fate::Dropped);
        }
    }

    fn set(&mut self, first: i64, fate: Fate) {
        if let Some(portion) = self.find(first) {
            let was_out = std::mem::replace(&mut portion.fate, fate) == Fate::Out;
            self.out -= usize::from(was_out);
        }
    }

    fn find(&mut self, first: i64) -> Option<&mut Portion> {
        let place = self.portions.binary_search_by_key(&first, |portion| portion.first).ok()?;
        self.portions.get_mut(place)
    }

    /// Where reading would go on if it began anew now; `None` if nothing was handed out.
    pub(super) fn committable(&self) -> Option<i64> {
        let position = self.position?;
        Some(self.portions.front().map_or(position, |portion| portion.first))
    }

    /// Behind the last event that was handed out.
    pub(super) fn position(&self) -> Option<i64> {
        self.position
    }

    /// Events from the first one on that is not done: what has to be remembered.
    pub(super) fn undone(&self) -> usize {
        self.undone
    }

    /// What somebody is handling: events, or batches of them.
    pub(super) fn out(&self) -> usize {
        self.out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_stops_at_the_first_event_that_is_not_done() {
        let mut tracker = Tracker::default();
        assert_eq!(tracker.committable(), None);
        for offset in [10, 11, 14] {
            tracker.handed_out(offset, offset, 1);
        }
        assert_eq!((tracker.committable(), tracker.out()), (Some(10), 3));
        tracker.done(11);
        assert_eq!(tracker.committable(), Some(10));
        tracker.done(10);
        assert_eq!(tracker.committable(), Some(14), "a gap that compaction left is no obstacle");
        tracker.done(14);
        tracker.done(14);
        assert_eq!((tracker.committable(), tracker.out()), (Some(15), 0));
    }

    #[test]
    fn what_was_dropped_is_in_nobodys_hands_but_holds_progress_up() {
        let mut tracker = Tracker::default();
        tracker.handed_out(0, 0, 1);
        tracker.handed_out(1, 1, 1);
        tracker.dropped(0);
        tracker.done(1);
        assert_eq!((tracker.committable(), tracker.out()), (Some(0), 0));
        assert_eq!(tracker.undone(), 2, "the one behind it must be remembered too");
        tracker.dropped(1);
        tracker.done(0);
        assert_eq!(tracker.committable(), Some(2));
    }

    #[test]
    fn a_batch_is_done_as_a_whole() {
        let mut tracker = Tracker::default();
        tracker.handed_out(5, 5, 1);
        tracker.handed_out(6, 19, 9);
        assert_eq!((tracker.undone(), tracker.position()), (10, Some(20)));
        tracker.done(6);
        assert_eq!((tracker.committable(), tracker.undone()), (Some(5), 10));
        tracker.done(5);
        assert_eq!((tracker.committable(), tracker.undone()), (Some(20), 0));
    }
}
