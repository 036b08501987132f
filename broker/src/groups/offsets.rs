//! A group's progress: how far it has come in each partition.
//!
//! Owns: the rule that progress only grows unless it is reset. Never: who may commit; the group's engine knows that.

use std::collections::BTreeMap;

use super::engine::Place;

/// Progress in one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Progress {
    /// The next offset to read.
    pub(crate) offset: i64,
    /// Of the topic it was made in: another topic of the same name is not it.
    pub(crate) topic_id: String,
    /// What the committer keeps with it.
    pub(crate) metadata: String,
    /// When it was stored, in milliseconds since 1970.
    pub(crate) committed_at_ms: i64,
}

/// Progress that somebody wants stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NewOffset {
    pub(crate) topic: String,
    /// Of the topic it was made in; empty if that does not matter.
    pub(crate) topic_id: String,
    pub(crate) partition: u32,
    pub(crate) offset: i64,
    pub(crate) metadata: String,
}

/// All progress of a group.
#[derive(Clone, Debug, Default)]
pub(super) struct Offsets {
    by_place: BTreeMap<Place, Progress>,
}

impl Offsets {
    /// Stores progress unless there is as much already. True if something changed.
    pub(super) fn advance(&mut self, place: Place, progress: Progress) -> bool {
        let known = self.by_place.get(&place);
        let known = known.filter(|known| known.topic_id == progress.topic_id);
        if known.is_some_and(|known| {
            known.offset > progress.offset
                || (known.offset == progress.offset && known.metadata == progress.metadata)
        }) {
            return false;
        }
        self.by_place.insert(place, progress);
        true
    }

    /// Stores progress, whatever there was.
    pub(super) fn set(&mut self, place: Place, progress: Progress) {
        self.by_place.insert(place, progress);
    }

    /// Forgets what was made in a topic that is not there any more; `id_of` says which is. Answers with what is forgotten.
    pub(super) fn forget_deleted<'a>(
        &mut self,
        id_of: impl Fn(&str) -> Option<&'a str>,
    ) -> Vec<Place> {
        let is_gone = |place: &Place, progress: &Progress| {
            id_of(&place.0).is_none_or(|id| id != progress.topic_id)
        };
        let gone: Vec<Place> = self
            .by_place
            .iter()
            .filter(|(place, progress)| is_gone(place, progress))
            .map(|(place, _)| place.clone())
            .collect();
        for place in &gone {
            self.by_place.remove(place);
        }
        gone
    }

    pub(super) fn get(&self, place: &Place) -> Option<&Progress> {
        self.by_place.get(place)
    }

    pub(super) fn remove(&mut self, place: &Place) {
        self.by_place.remove(place);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Place, &Progress)> {
        self.by_place.iter()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_place.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(offset: i64, topic_id: &str) -> Progress {
        let (topic_id, metadata) = (topic_id.to_owned(), String::new());
        Progress { offset, topic_id, metadata, committed_at_ms: 0 }
    }

    #[test]
    fn progress_only_grows_within_a_topic_and_starts_anew_in_another_of_the_same_name() {
        let place = || ("orders".to_owned(), 0);
        let mut offsets = Offsets::default();
        assert!(offsets.advance(place(), progress(5, "a")));
        assert!(!offsets.advance(place(), progress(4, "a")));
        assert!(!offsets.advance(place(), progress(5, "a")));
        assert!(offsets.advance(place(), progress(2, "b")));
        assert_eq!(offsets.get(&place()).unwrap().offset, 2);
        offsets.set(place(), progress(1, "b"));
        assert_eq!(offsets.get(&place()).unwrap().offset, 1);
        assert_eq!(offsets.forget_deleted(|_| Some("b")), []);
        assert_eq!(offsets.forget_deleted(|_| Some("c")), [place()]);
        assert!(offsets.is_empty());
    }
}
