//! Everything a coordinator knows of one group: the engine, the progress, and which members are connected.
//!
//! Owns: the order of what changes and what is said about it. Never: waits; records and messages are handed out as data, and
//! `shard` sends the messages only when the records are committed.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::mpsc;

use super::commands::{
    Activity, Assigned, Described, DescribedMember, DescribedPartition, Standing, Ticket, ToMember,
};
use super::engine::{Gone, Group, JoinSpec, Owned, Place, Topic};
use super::offsets::{Offsets, Progress};
use super::records::{self, Written};
use crate::cluster::ClusterView;

/// The stream of a member, if it has one.
#[derive(Debug)]
struct Line {
    ticket: Ticket,
    outbox: mpsc::Sender<ToMember>,
}

impl Line {
    fn message(&self, body: ToMember) -> Message {
        Message { to: self.ticket.clone(), outbox: self.outbox.clone(), body }
    }
}

/// Something to be said to a member once what it rests on is committed.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) to: Ticket,
    pub(super) outbox: mpsc::Sender<ToMember>,
    pub(super) body: ToMember,
}

/// What a turn brought: to be stored, then said.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) records: Vec<Written>,
    pub(super) messages: Vec<Message>,
    /// Partitions got other owners.
    pub(super) moved: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct GroupState {
    pub(super) group: Group,
    pub(super) offsets: Offsets,
    /// Since when this coordinator has seen it without members.
    empty_since: Option<Duration>,
    /// How long others had before. Clocks of different nodes are never compared: one that goes wrong would erase everything.
    empty_before: Duration,
    /// How long the log says.
    empty_stored: Duration,
    lines: BTreeMap<String, Line>,
    activity: BTreeMap<Place, Activity>,
}

impl GroupState {
    pub(super) fn new(group: Group) -> Self {
        Self { group, ..Self::default() }
    }

    /// A group as it was stored; `empty_for` says how long it had been without members.
    pub(super) fn restored(&mut self, now: Duration, group: Group, empty_for: Duration) {
        self.empty_since = group.members.is_empty().then_some(now);
        self.group = group;
        (self.empty_before, self.empty_stored) = (empty_for, empty_for);
    }

    /// How long nobody has been in it.
    fn empty_for(&self, now: Duration) -> Duration {
        let since = self.empty_since.map_or(Duration::ZERO, |since| now.saturating_sub(since));
        self.empty_before + since
    }

    /// How long it has been empty counts from now on.
    pub(super) fn touch(&mut self, name: &str, now: Duration, outcome: &mut Outcome) {
        self.empty_since = Some(now);
        self.empty_before = Duration::ZERO;
        self.store(name, now, outcome);
    }

    fn store(&mut self, name: &str, now: Duration, outcome: &mut Outcome) {
        self.empty_stored = self.empty_for(now);
        outcome.records.push(records::group(name, &self.group, self.empty_stored));
    }

    /// Stores how long it has been empty if that has grown by so much, so that the next coordinator counts on from there.
    pub(super) fn age(&mut self, name: &str, now: Duration, step: Duration, outcome: &mut Outcome) {
        if self.empty_for(now) >= self.empty_stored + step {
            self.store(name, now, outcome);
        }
    }

    pub(super) fn join(
        &mut self,
        now: Duration,
        spec: JoinSpec,
        ticket: &Ticket,
        outbox: mpsc::Sender<ToMember>,
        outcome: &mut Outcome,
    ) {
        let id = spec.member_id.clone();
        (self.empty_since, self.empty_before) = (None, Duration::ZERO);
        self.group.join(now, spec);
        let line = Line { ticket: ticket.clone(), outbox };
        if let Some(old) = self.lines.insert(id, line) {
            outcome.messages.push(old.message(ToMember::Gone(Gone::Replaced)));
        }
    }

    /// Takes in which topics there are, as far as what follows can be stored.
    pub(super) fn set_topics(&mut self, name: &str, view: &ClusterView) {
        let before = self.group.left_out();
        let places_max = records::places_max(&self.group).unwrap_or(0);
        self.group.set_topics(|topic| topic_of(view, topic), places_max);
        let left_out = self.group.left_out();
        if left_out != before {
            tracing::warn!(
                group = name,
                partitions = left_out,
                "no room for these partitions of a consumer group: nobody reads them; spread its topics over several groups"
            );
        }
    }

    /// Whether a stream is the one that its member has now.
    pub(super) fn is_current(&self, member_id: &str, session: u64) -> bool {
        self.lines.get(member_id).is_some_and(|line| line.ticket.session == session)
    }

    /// A stream ended; its member may come back with another.
    pub(super) fn disconnected(&mut self, member_id: &str, session: u64) {
        if self.is_current(member_id, session) {
            self.lines.remove(member_id);
        }
    }

    /// Says something to a member, if it is connected.
    pub(super) fn say(&self, member_id: &str, body: ToMember, outcome: &mut Outcome) {
        if let Some(line) = self.lines.get(member_id) {
            outcome.messages.push(line.message(body));
        }
    }

    pub(super) fn report(&mut self, member_id: &str, place: Place, activity: Activity) {
        if self.group.owners.get(&place).is_some_and(|owner| owner.member_id == member_id) {
            self.activity.insert(place, activity);
        }
    }

    /// Turns what the engine did into records and messages.
    pub(super) fn settle(&mut self, name: &str, now: Duration, outcome: &mut Outcome) {
        let effects = self.group.take_effects();
        if effects.must_store {
            outcome.moved = true;
            if self.group.members.is_empty() {
                self.empty_since.get_or_insert(now);
            }
            let owners = &self.group.owners;
            self.activity.retain(|place, _| owners.contains_key(place));
            self.store(name, now, outcome);
        }
        for id in effects.tell {
            self.say(&id, self.assignment(&id), outcome);
        }
        for (id, why) in effects.gone {
            if let Some(line) = self.lines.remove(&id) {
                outcome.messages.push(line.message(ToMember::Gone(why)));
            }
        }
    }

    fn assignment(&self, member_id: &str) -> ToMember {
        let partitions = self.group.owned_by(member_id).map(|(place, owner)| Assigned {
            topic_id: self.group.topics().get(&place.0).map(|it| it.id.clone()).unwrap_or_default(),
            owned: Owned { topic: place.0.clone(), partition: place.1, epoch: owner.epoch },
            committed: self.offsets.get(place).map(|progress| progress.offset),
            is_wanted_back: owner.is_wanted_back,
        });
        ToMember::Assignment { epoch: self.group.epoch, partitions: partitions.collect() }
    }

    pub(super) fn standing(&self) -> Standing {
        match (self.group.members.is_empty(), self.group.is_stable()) {
            (true, _) => Standing::Empty,
            (false, true) => Standing::Stable,
            (false, false) => Standing::Rebalancing,
        }
    }

    pub(super) fn describe(&self, now: Duration) -> Described {
        let members = self.group.members.iter().map(|(id, member)| DescribedMember {
            member_id: id.clone(),
            static_id: member.spec.static_id.clone(),
            client_id: member.spec.client_id.clone(),
            is_connected: self.lines.contains_key(id),
            topics: member.spec.topics.iter().cloned().collect(),
            partitions: self.group.owned_by(id).count(),
            session_ends_in: member.session_ends.saturating_sub(now),
            progress_due_in: member.progress_due.saturating_sub(now),
        });
        let mut places: BTreeMap<Place, DescribedPartition> = self
            .group
            .places()
            .map(|place| (place.clone(), DescribedPartition::nobodys(place)))
            .collect();
        for (place, owner) in &self.group.owners {
            let described = places
                .entry(place.clone())
                .or_insert_with(|| DescribedPartition::nobodys(place.clone()));
            described.member_id.clone_from(&owner.member_id);
            described.epoch = owner.epoch;
            described.is_moving = owner.is_wanted_back;
            described.activity = self.activity.get(place).copied().unwrap_or_default();
        }
        for (place, progress) in self.offsets.iter() {
            let described = places
                .entry(place.clone())
                .or_insert_with(|| DescribedPartition::nobodys(place.clone()));
            described.progress = Some(progress.clone());
        }
        Described {
            standing: self.standing(),
            epoch: self.group.epoch,
            members: members.collect(),
            partitions: places.into_values().collect(),
        }
    }

    /// Stores progress unless there is as much already.
    pub(super) fn advance(
        &mut self,
        name: &str,
        place: Place,
        progress: Progress,
        outcome: &mut Outcome,
    ) {
        if self.offsets.advance(place.clone(), progress.clone()) {
            outcome.records.push(records::offset(name, &place, Some(&progress)));
        }
    }

    /// Stores progress, whatever there was.
    pub(super) fn reset(
        &mut self,
        name: &str,
        place: Place,
        progress: Progress,
        outcome: &mut Outcome,
    ) {
        outcome.records.push(records::offset(name, &place, Some(&progress)));
        self.offsets.set(place, progress);
    }

    /// The records that undo everything that was stored of the group.
    pub(super) fn erase(&self, name: &str, outcome: &mut Outcome) {
        for (place, _) in self.offsets.iter() {
            outcome.records.push(records::offset(name, place, None));
        }
        outcome.records.push(records::group_gone(name));
    }

    /// Whether nobody is in it any more and its progress has been kept long enough, or there is none.
    pub(super) fn is_over(&self, now: Duration, retention: Duration) -> bool {
        let is_old = self.empty_for(now) >= retention;
        self.group.members.is_empty() && (is_old || self.offsets.is_empty())
    }
}

/// A topic as groups know it.
pub(super) fn topic_of(view: &ClusterView, name: &str) -> Option<Topic> {
    let topic = view.topics.get(name)?;
    let partitions = u32::try_from(topic.partitions.len()).ok()?;
    Some(Topic { id: topic.id.clone(), partitions })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);

    #[test]
    fn how_long_a_group_has_been_empty_is_counted_on_by_the_next_coordinator() {
        let mut outcome = Outcome::default();
        let mut state = GroupState::default();
        let progress = Progress {
            offset: 1,
            topic_id: "1".into(),
            metadata: String::new(),
            committed_at_ms: 0,
        };
        state.offsets.set(("orders".into(), 0), progress);
        // Its clock began an hour ago, which says nothing of the group.
        state.restored(HOUR, Group::new(0), HOUR * 5);
        assert!(!state.is_over(HOUR * 5, HOUR * 10));
        state.age("g", HOUR + HOUR / 2, HOUR, &mut outcome);
        assert_eq!(outcome.records.len(), 0, "too little to be stored");
        state.age("g", HOUR * 2, HOUR, &mut outcome);
        state.age("g", HOUR * 2, HOUR, &mut outcome);
        let (key, value) = outcome.records.pop().unwrap();
        assert_eq!(outcome.records.len(), 0, "once");
        assert_eq!((key, value), records::group("g", &state.group, HOUR * 6));
        assert!(state.is_over(HOUR * 6, HOUR * 10));
        state.touch("g", HOUR * 6, &mut outcome);
        assert!(!state.is_over(HOUR * 15, HOUR * 10));
        assert!(state.is_over(HOUR * 16, HOUR * 10));
    }
}
