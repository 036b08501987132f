//! The state machine of one group: who is a member, who owns what, and who is to.
//!
//! Owns: the rules. Time comes in as an argument; what to store and whom to tell comes out as data ([`Effects`]). Never: clocks,
//! randomness, I/O, protocols: whatever front door members come through, this is what decides.
//!
//! How partitions move: [`assign`] says who is to own what. A partition that nobody owns is given at once. One that has another
//! owner is asked back, and given on when that owner has released it or is no member any more. A member's other partitions are
//! not touched by any of this, so what does not move does not pause.

mod assign;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A partition of a topic.
pub(crate) type Place = (String, u32);

/// A topic that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Topic {
    /// Its id: a topic that was deleted and created again has another.
    pub(crate) id: String,
    /// How many partitions it has.
    pub(crate) partitions: u32,
}

/// How a member introduces itself. Times are within bounds already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct JoinSpec {
    /// Its id, drawn by itself.
    pub(crate) member_id: String,
    /// Its static id; empty if it has none.
    pub(crate) static_id: String,
    /// What its client calls itself.
    pub(crate) client_id: String,
    /// The topics it reads.
    pub(crate) topics: BTreeSet<String>,
    /// How long it counts as alive without a sign of life.
    pub(crate) session_timeout: Duration,
    /// How long it may hold partitions without progress.
    pub(crate) progress_timeout: Duration,
}

/// A partition at the epoch it was given at: what a member names when it speaks of a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Owned {
    pub(crate) topic: String,
    pub(crate) partition: u32,
    pub(crate) epoch: u64,
}

/// A member.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) spec: JoinSpec,
    /// When it counts as dead, unless something is heard from it before.
    pub(crate) session_ends: Duration,
    /// When it must have shown progress.
    pub(crate) progress_due: Duration,
}

/// Who owns a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ownership {
    pub(crate) member_id: String,
    /// The group's epoch when it was given.
    pub(crate) epoch: u64,
    /// Somebody else is to have it.
    pub(crate) is_wanted_back: bool,
}

/// Why a member is none any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gone {
    /// It left.
    Left,
    /// Nothing was heard from it.
    Silent,
    /// It showed no progress.
    Stuck,
    /// Another process came with its static id.
    Replaced,
}

/// What followed from what was said to a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Effects {
    /// Members or ownership changed: the group must be stored before anybody is told.
    pub(crate) must_store: bool,
    /// Members whose partitions changed.
    pub(crate) tell: BTreeSet<String>,
    /// Members that are none any more.
    pub(crate) gone: Vec<(String, Gone)>,
}

/// See the module.
///
/// Invariant: a partition has at most one owner, who is a member that reads its topic. A partition's epoch grows with every owner,
/// also with one that had it before. What is owned is a partition of the topic with the id that the group knows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Group {
    /// Grows whenever a partition gets another owner.
    pub(crate) epoch: u64,
    pub(crate) members: BTreeMap<String, Member>,
    pub(crate) owners: BTreeMap<Place, Ownership>,
    /// Topics that members read and that exist, by name.
    topics: BTreeMap<String, Topic>,
    /// Whether it was said which exist. Until then a group that was restored keeps what it has.
    knows_topics: bool,
    /// Partitions of those that there was no room for.
    left_out: usize,
    effects: Effects,
    /// The epoch has grown since effects were taken.
    has_new_epoch: bool,
}

impl Group {
    /// A group that is new. `epoch` is one that no earlier group of this name came to.
    pub(crate) fn new(epoch: u64) -> Self {
        Self { epoch, ..Self::default() }
    }

    /// What followed since the last call. To be called after each thing said to the group: until then the epoch grows only once.
    pub(crate) fn take_effects(&mut self) -> Effects {
        self.has_new_epoch = false;
        std::mem::take(&mut self.effects)
    }

    /// The epoch for partitions that get an owner now.
    fn new_epoch(&mut self) -> u64 {
        self.epoch += u64::from(!std::mem::replace(&mut self.has_new_epoch, true));
        self.epoch
    }

    /// A member comes, or comes back. It is told what it owns in any case.
    pub(crate) fn join(&mut self, now: Duration, spec: JoinSpec) {
        let id = spec.member_id.clone();
        if !spec.static_id.is_empty() {
            self.replace_static(&spec);
        }
        let member = Member {
            session_ends: now + spec.session_timeout,
            progress_due: now + spec.progress_timeout,
            spec,
        };
        let known = self.members.get(&id).is_some_and(|known| known.spec == member.spec);
        self.effects.must_store |= !known;
        self.members.insert(id.clone(), member);
        self.effects.tell.insert(id);
        self.rebalance();
    }

    /// Whether a member that comes back was replaced while it was away: another one has its static id.
    pub(crate) fn was_replaced(&self, spec: &JoinSpec) -> bool {
        let mut members = self.members.values();
        !spec.static_id.is_empty()
            && !self.members.contains_key(&spec.member_id)
            && members.any(|member| member.spec.static_id == spec.static_id)
    }

    /// Whoever had this static id is gone; what it owned goes to the newcomer, at new epochs, so that nothing the old process says
    /// counts any more.
    fn replace_static(&mut self, spec: &JoinSpec) {
        let same = |member: &&Member| {
            member.spec.static_id == spec.static_id && member.spec.member_id != spec.member_id
        };
        let Some(old) = self.members.values().find(same).map(|old| old.spec.member_id.clone())
        else {
            return;
        };
        self.members.remove(&old);
        self.effects.gone.push((old.clone(), Gone::Replaced));
        self.effects.must_store = true;
        let epoch = self.new_epoch();
        for owner in self.owners.values_mut().filter(|owner| owner.member_id == old) {
            owner.member_id.clone_from(&spec.member_id);
            owner.epoch = epoch;
        }
    }

    /// Something was heard from a member. False if it is none.
    pub(crate) fn heard(
        &mut self,
        now: Duration,
        member_id: &str,
        has_progressed: bool,
        extend: Duration,
    ) -> bool {
        let Some(member) = self.members.get_mut(member_id) else { return false };
        member.session_ends = now + member.spec.session_timeout;
        if has_progressed {
            member.progress_due = member.progress_due.max(now + member.spec.progress_timeout);
        }
        member.progress_due = member.progress_due.max(now + extend);
        true
    }

    /// A member does not read these any more. What it does not own at that epoch is passed over: it may be an old message.
    pub(crate) fn release(&mut self, member_id: &str, partitions: &[Owned]) {
        let before = self.owners.len();
        for owned in partitions {
            if self.owns(member_id, owned) {
                self.owners.remove(&(owned.topic.clone(), owned.partition));
                self.effects.must_store = true;
                self.effects.tell.insert(member_id.to_owned());
            }
        }
        if self.owners.len() != before {
            self.rebalance();
        }
    }

    /// Whether a member owns a partition at this epoch. Only then what it says of it counts.
    pub(crate) fn owns(&self, member_id: &str, owned: &Owned) -> bool {
        let owner = self.owners.get(&(owned.topic.clone(), owned.partition));
        owner.is_some_and(|owner| owner.member_id == member_id && owner.epoch == owned.epoch)
    }

    /// A member goes.
    pub(crate) fn leave(&mut self, member_id: &str) {
        self.remove(member_id, Gone::Left);
        self.rebalance();
    }

    fn remove(&mut self, member_id: &str, why: Gone) {
        if self.members.remove(member_id).is_none() {
            return;
        }
        self.owners.retain(|_, owner| owner.member_id != member_id);
        self.effects.must_store = true;
        self.effects.tell.remove(member_id);
        self.effects.gone.push((member_id.to_owned(), why));
    }

    /// Removes members whose time has run out. A member that owns nothing need not show progress.
    pub(crate) fn tick(&mut self, now: Duration) {
        let mut over = Vec::new();
        for (id, member) in &self.members {
            if member.session_ends <= now {
                over.push((id.clone(), Gone::Silent));
            } else if member.progress_due <= now && self.owns_any(id) {
                over.push((id.clone(), Gone::Stuck));
            }
        }
        if over.is_empty() {
            return;
        }
        for (id, why) in over {
            self.remove(&id, why);
        }
        self.rebalance();
    }

    fn owns_any(&self, member_id: &str) -> bool {
        self.owners.values().any(|owner| owner.member_id == member_id)
    }

    /// When [`Group::tick`] has something to do, unless more is heard.
    pub(crate) fn next_deadline(&self) -> Option<Duration> {
        let due = self.members.iter().map(|(id, member)| match self.owns_any(id) {
            true => member.session_ends.min(member.progress_due),
            false => member.session_ends,
        });
        due.min()
    }

    /// Takes in which topics there are; what is not in it does not exist. Of partitions that are new only so many are taken in that
    /// there are `places_max` in all: a group must not outgrow what can be stored of it.
    pub(crate) fn set_topics(
        &mut self,
        topic_of: impl Fn(&str) -> Option<Topic>,
        places_max: usize,
    ) {
        let mut topics: BTreeMap<String, Topic> = self
            .topics_read()
            .into_iter()
            .filter_map(|name| topic_of(name).map(|topic| (name.to_owned(), topic)))
            .collect();
        let known = |name: &str, topic: &Topic| {
            let known = self.topics.get(name).filter(|known| known.id == topic.id);
            known.map_or(0, |known| known.partitions)
        };
        let kept = topics.iter().map(|(name, topic)| known(name, topic) as usize).sum();
        let mut room = places_max.saturating_sub(kept);
        let mut left_out = 0;
        for (name, topic) in &mut topics {
            let more = topic.partitions.saturating_sub(known(name, topic));
            let taken = more.min(u32::try_from(room).unwrap_or(u32::MAX));
            room -= taken as usize;
            topic.partitions -= more - taken;
            left_out += (more - taken) as usize;
        }
        self.left_out = left_out;
        if self.knows_topics && self.topics == topics {
            return;
        }
        let Self { owners, effects, .. } = self;
        owners.retain(|(name, _), owner| {
            let is_same = topics.get(name).map(|topic| &topic.id)
                == self.topics.get(name).map(|topic| &topic.id);
            if !is_same {
                effects.must_store = true;
                effects.tell.insert(owner.member_id.clone());
            }
            is_same
        });
        self.effects.must_store |= self.topics != topics;
        self.topics = topics;
        self.knows_topics = true;
        self.rebalance();
    }

    /// Topics that members read and that exist, by name.
    pub(crate) fn topics(&self) -> &BTreeMap<String, Topic> {
        &self.topics
    }

    /// Partitions that nobody is given because there was no room for them.
    pub(crate) fn left_out(&self) -> usize {
        self.left_out
    }

    /// The topics that members read.
    pub(crate) fn topics_read(&self) -> BTreeSet<&str> {
        let topics = self.members.values().flat_map(|member| &member.spec.topics);
        topics.map(String::as_str).collect()
    }

    /// Every partition that members are to read.
    pub(crate) fn places(&self) -> impl Iterator<Item = Place> + '_ {
        let of = |(name, topic): (&String, &Topic)| {
            let name = name.clone();
            (0..topic.partitions).map(move |partition| (name.clone(), partition))
        };
        self.topics.iter().flat_map(of)
    }

    /// Brings ownership nearer to what it is to be: gives what nobody owns, asks back what is to move.
    fn rebalance(&mut self) {
        if !self.knows_topics {
            return;
        }
        let places: BTreeSet<Place> = self.places().collect();
        let before = self.owners.len();
        self.owners.retain(|place, owner| {
            let reads = |member: &Member| member.spec.topics.contains(&place.0);
            let stays =
                places.contains(place) && self.members.get(&owner.member_id).is_some_and(reads);
            if !stays {
                self.effects.tell.insert(owner.member_id.clone());
            }
            stays
        });
        self.effects.must_store |= self.owners.len() != before;
        let members: BTreeMap<&str, &BTreeSet<String>> =
            self.members.iter().map(|(id, member)| (id.as_str(), &member.spec.topics)).collect();
        let owned = |place: &Place| self.owners.get(place).map(|owner| owner.member_id.as_str());
        for (place, to) in assign::target(&places, &members, owned) {
            match self.owners.get_mut(&place) {
                Some(owner) => {
                    let is_wanted_back = owner.member_id != to;
                    if owner.is_wanted_back != is_wanted_back {
                        owner.is_wanted_back = is_wanted_back;
                        self.effects.tell.insert(owner.member_id.clone());
                    }
                }
                None => {
                    let epoch = self.new_epoch();
                    let owner = Ownership { member_id: to.clone(), epoch, is_wanted_back: false };
                    self.owners.insert(place, owner);
                    self.effects.must_store = true;
                    self.effects.tell.insert(to);
                }
            }
        }
        self.effects.tell.retain(|id| self.members.contains_key(id));
    }

    /// Whether every partition is with the member that is to have it.
    pub(crate) fn is_stable(&self) -> bool {
        !self.owners.values().any(|owner| owner.is_wanted_back)
    }

    /// What a member owns.
    pub(crate) fn owned_by(&self, member_id: &str) -> impl Iterator<Item = (&Place, &Ownership)> {
        self.owners.iter().filter(move |(_, owner)| owner.member_id == member_id)
    }

    /// A group as it was stored. Its members have their whole session's time to come back from `now` on.
    pub(crate) fn restore(
        now: Duration,
        epoch: u64,
        topics: BTreeMap<String, Topic>,
        members: impl IntoIterator<Item = (JoinSpec, Vec<Owned>)>,
    ) -> Self {
        let mut group = Self { epoch, topics, ..Self::default() };
        for (spec, owned) in members {
            let id = spec.member_id.clone();
            for Owned { topic, partition, epoch } in owned {
                let owner = Ownership { member_id: id.clone(), epoch, is_wanted_back: false };
                group.epoch = group.epoch.max(epoch);
                group.owners.insert((topic, partition), owner);
            }
            let session_ends = now + spec.session_timeout;
            let progress_due = now + spec.progress_timeout;
            group.members.insert(id, Member { spec, session_ends, progress_due });
        }
        group
    }
}
