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

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Tracker {
    /// Behind the last event that was handed out.
    position: Option<i64>,
    /// From the first event on that is not done, by offset.
    fates: VecDeque<(i64, Fate)>,
    out: usize,
}

impl Tracker {
    /// An event was handed out, which none before was behind.
    pub(super) fn handed_out(&mut self, offset: i64) {
        debug_assert!(self.position <= Some(offset), "events of a partition come in order");
        self.position = Some(offset + 1);
        self.fates.push_back((offset, Fate::Out));
        self.out += 1;
    }

    /// An event is done. What was dropped can still be: a service may say so late.
    pub(super) fn done(&mut self, offset: i64) {
        self.set(offset, Fate::Done);
        while self.fates.front().is_some_and(|(_, fate)| *fate == Fate::Done) {
            self.fates.pop_front();
        }
    }

    /// An event was dropped without a word.
    pub(super) fn dropped(&mut self, offset: i64) {
        if self.find(offset).is_some_and(|(_, fate)| *fate == Fate::Out) {
            self.set(offset, Fate::Dropped);
        }
    }

    fn set(&mut self, offset: i64, fate: Fate) {
        if let Some((_, known)) = self.find(offset) {
            let was_out = std::mem::replace(known, fate) == Fate::Out;
            self.out -= usize::from(was_out);
        }
    }

    fn find(&mut self, offset: i64) -> Option<&mut (i64, Fate)> {
        let place = self.fates.binary_search_by_key(&offset, |(offset, _)| *offset).ok()?;
        self.fates.get_mut(place)
    }

    /// Where reading would go on if it began anew now; `None` if nothing was handed out.
    pub(super) fn committable(&self) -> Option<i64> {
        let position = self.position?;
        Some(self.fates.front().map_or(position, |(offset, _)| *offset))
    }

    /// Behind the last event that was handed out.
    pub(super) fn position(&self) -> Option<i64> {
        self.position
    }

    /// Events from the first one on that is not done: what has to be remembered.
    pub(super) fn undone(&self) -> usize {
        self.fates.len()
    }

    /// Events that somebody is handling.
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
            tracker.handed_out(offset);
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
        tracker.handed_out(0);
        tracker.handed_out(1);
        tracker.dropped(0);
        tracker.done(1);
        assert_eq!((tracker.committable(), tracker.out()), (Some(0), 0));
        assert_eq!(tracker.undone(), 2, "the one behind it must be remembered too");
        tracker.dropped(1);
        tracker.done(0);
        assert_eq!(tracker.committable(), Some(2));
    }
}
