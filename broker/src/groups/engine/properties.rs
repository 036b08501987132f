//! Properties of the engine under random histories: members that come, go, crash, freeze and answer late, topics that grow.
//!
//! The members here behave as the client does: they read what they were told they own, drop what they are told they lost, release
//! what is wanted back when they get to it, and stop reading when no answer came for a session's time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use proptest::prelude::*;

use super::{Group, JoinSpec, Owned, Place, Topic};

const SESSION: Duration = Duration::from_secs(10);
const TOPIC: &str = "orders";

/// A member as it is on its own side.
#[derive(Default)]
struct Side {
    /// What it reads, with epochs.
    reads: BTreeMap<Place, u64>,
    wanted_back: BTreeSet<Place>,
    /// What it has released, with epochs: what it is told of those was said before.
    released: BTreeMap<Place, u64>,
    /// What it was told and has not taken in yet.
    inbox: VecDeque<Vec<(Owned, bool)>>,
    /// When it stops by itself.
    lease_ends: Duration,
    is_frozen: bool,
}

struct World {
    now: Duration,
    group: Group,
    sides: BTreeMap<String, Side>,
    partitions: u32,
    /// How often the topic was deleted and created again.
    incarnation: u32,
    /// The group's epochs before it was created again.
    created_at: Vec<u64>,
}

impl World {
    fn new() -> Self {
        let (now, group) = (Duration::ZERO, Group::new(0));
        Self {
            now,
            group,
            sides: BTreeMap::new(),
            partitions: 7,
            incarnation: 0,
            created_at: vec![],
        }
    }

    /// Tells members what followed.
    fn settle(&mut self) {
        let effects = self.group.take_effects();
        for (id, _) in effects.gone {
            // It may not hear of it: its lease must do.
            if let Some(side) = self.sides.get_mut(&id) {
                side.inbox.clear();
            }
        }
        for id in effects.tell {
            let owned = self.group.owned_by(&id).map(|(place, owner)| {
                let (topic, partition) = place.clone();
                (Owned { topic, partition, epoch: owner.epoch }, owner.is_wanted_back)
            });
            let owned = owned.collect();
            if let Some(side) = self.sides.get_mut(&id) {
                side.inbox.push_back(owned);
            }
        }
        let partitions = self.partitions;
        let id = self.incarnation.to_string();
        let topic_of = |name: &str| (name == TOPIC).then(|| Topic { id: id.clone(), partitions });
        self.group.set_topics(topic_of, usize::MAX);
        let again = self.group.effects.clone();
        if again != super::Effects::default() {
            self.settle();
        }
    }

    fn join(&mut self, id: &str) {
        let spec = JoinSpec {
            member_id: id.to_owned(),
            static_id: String::new(),
            client_id: String::new(),
            topics: BTreeSet::from([TOPIC.to_owned()]),
            session_timeout: SESSION,
            progress_timeout: Duration::from_secs(1_000_000),
        };
        let side = self.sides.entry(id.to_owned()).or_default();
        side.is_frozen = false;
        // Whatever an earlier stream said is lost with it.
        side.inbox.clear();
        if side.lease_ends <= self.now {
            side.reads.clear();
            side.wanted_back.clear();
        }
        side.lease_ends = self.now + SESSION;
        self.group.join(self.now, spec);
        self.settle();
    }

    fn heartbeat(&mut self, id: &str) {
        let Some(side) = self.sides.get_mut(id) else { return };
        if side.is_frozen || side.lease_ends <= self.now {
            return;
        }
        if self.group.heard(self.now, id, true, Duration::ZERO) {
            side.lease_ends = self.now + SESSION;
        }
    }

    /// A member takes in the next thing it was told.
    fn listen(&mut self, id: &str) {
        let Some(side) = self.sides.get_mut(id) else { return };
        if side.is_frozen || side.lease_ends <= self.now {
            return;
        }
        if let Some(owned) = side.inbox.pop_front() {
            let place = |owned: &Owned| (owned.topic.clone(), owned.partition);
            let is_news = |(it, _): &&(Owned, bool)| {
                side.released.get(&place(it)).is_none_or(|released| it.epoch > *released)
            };
            let (owned, unheard): (Vec<_>, Vec<_>) =
                owned.iter().cloned().partition(|it| is_news(&it));
            side.wanted_back =
                owned.iter().filter(|(_, wanted)| *wanted).map(|(it, _)| place(it)).collect();
            side.reads = owned.iter().map(|(it, _)| (place(it), it.epoch)).collect();
            if !unheard.is_empty() {
                let unheard: Vec<Owned> = unheard.into_iter().map(|(it, _)| it).collect();
                self.group.release(id, &unheard);
                self.settle();
            }
        }
    }

    /// A member releases one partition that is wanted back, and reads it no more. `is_heard` is false if the coordinator dies before
    /// that is stored.
    fn release(&mut self, id: &str, is_heard: bool) {
        let Some(side) = self.sides.get_mut(id) else { return };
        if side.is_frozen || side.lease_ends <= self.now {
            return;
        }
        let Some(place) = side.wanted_back.pop_first() else { return };
        let Some(epoch) = side.reads.remove(&place) else { return };
        side.released.insert(place.clone(), epoch);
        if !is_heard {
            return self.fail_over();
        }
        let owned = Owned { topic: place.0, partition: place.1, epoch };
        self.group.release(id, &[owned]);
        self.settle();
    }

    /// Another coordinator goes on from what is stored, and who is alive opens a stream to it.
    fn fail_over(&mut self) {
        let group = &self.group;
        let members = group.members.values().map(|member| {
            let owned = group.owned_by(&member.spec.member_id).map(|(place, owner)| {
                let (topic, partition) = place.clone();
                Owned { topic, partition, epoch: owner.epoch }
            });
            (member.spec.clone(), owned.collect())
        });
        let members = members.collect::<Vec<_>>();
        self.group = Group::restore(self.now, group.epoch, group.topics().clone(), members);
        self.settle();
        let (now, members) = (self.now, self.group.members.keys().cloned().collect::<Vec<_>>());
        for id in members {
            let is_awake = |side: &Side| !side.is_frozen && side.lease_ends > now;
            if self.sides.get(&id).is_some_and(is_awake) {
                self.join(&id);
            }
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.group.tick(self.now);
        self.settle();
    }

    /// At no time do two members read the same partition of the same topic.
    fn check(&self) {
        let mut readers: BTreeMap<(&Place, usize), &str> = BTreeMap::new();
        for (id, side) in &self.sides {
            if side.is_frozen || side.lease_ends <= self.now {
                continue;
            }
            for (place, epoch) in &side.reads {
                let incarnation = self.created_at.partition_point(|created| created < epoch);
                let other = readers.insert((place, incarnation), id);
                assert!(other.is_none(), "{place:?} is read by {id} and {other:?}");
            }
        }
        for (place, owner) in &self.group.owners {
            assert!(self.group.members.contains_key(&owner.member_id), "{place:?}: {owner:?}");
        }
    }

    /// Lets everybody alive do what there is to do, until nothing changes.
    fn calm_down(&mut self) {
        let ids: Vec<String> = self.sides.keys().cloned().collect();
        self.quiet(&ids);
        // Long enough for those to be gone who do nothing any more.
        for _ in 0..3 {
            self.pass(SESSION / 2);
            for id in &ids {
                self.heartbeat(id);
            }
        }
        self.quiet(&ids);
    }

    fn quiet(&mut self, ids: &[String]) {
        let has_work = |side: &Side| !side.inbox.is_empty() || !side.wanted_back.is_empty();
        let now = self.now;
        let is_awake = |side: &Side| !side.is_frozen && side.lease_ends > now;
        while self.sides.values().any(|side| is_awake(side) && has_work(side)) {
            for id in ids {
                self.heartbeat(id);
                self.listen(id);
                self.release(id, true);
            }
            self.check();
        }
    }

    fn step(&mut self, action: u8, who: u8, amount: u8) {
        let id = format!("m{}", who % 5);
        match action % 9 {
            0 => self.join(&id),
            1 => {
                if self.sides.remove(&id).is_some() {
                    self.group.leave(&id);
                    self.settle();
                }
            }
            // It crashes: it does nothing any more, and may come back as the same.
            2 => self.sides.entry(id).or_default().is_frozen = true,
            3 => self.heartbeat(&id),
            4 | 5 => self.listen(&id),
            6 => self.release(&id, amount < 128),
            7 => self.pass(Duration::from_millis(u64::from(amount) * 20)),
            _ if amount > 250 => {
                self.incarnation += 1;
                self.created_at.push(self.group.epoch);
                self.settle();
            }
            _ => {
                self.partitions = (self.partitions + u32::from(amount % 3)).min(40);
                self.settle();
            }
        }
        self.check();
    }
}

#[test]
fn a_release_that_died_with_its_coordinator_is_said_to_the_next_one() {
    let mut world = World::new();
    world.join("a");
    world.join("b");
    while world.sides["a"].wanted_back.is_empty() {
        world.listen("a");
    }
    world.release("a", false);
    world.calm_down();
    assert_eq!(world.group.owned_by("b").count(), 3);
    assert_eq!(world.sides["a"].reads.len(), 4);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn never_two_readers_and_in_the_end_everything_is_owned_and_balanced(
        steps in prop::collection::vec((any::<u8>(), any::<u8>(), any::<u8>()), 1..200),
    ) {
        let mut world = World::new();
        for (action, who, amount) in steps {
            world.step(action, who, amount);
        }
        world.calm_down();
        let group = &world.group;
        if group.members.is_empty() {
            prop_assert!(group.owners.is_empty());
            return Ok(());
        }
        prop_assert_eq!(group.owners.len(), world.partitions as usize);
        prop_assert!(group.is_stable());
        let counts = group.members.keys().map(|id| group.owned_by(id).count());
        let (least, most) = (counts.clone().min().unwrap(), counts.max().unwrap());
        prop_assert!(most - least <= 1, "{} to {}", least, most);
        for (id, side) in world.sides.iter().filter(|(id, _)| group.members.contains_key(*id)) {
            let owned: BTreeMap<Place, u64> =
                group.owned_by(id).map(|(place, owner)| (place.clone(), owner.epoch)).collect();
            prop_assert_eq!(&side.reads, &owned);
        }
    }

    #[test]
    fn one_member_more_or_less_moves_no_more_than_its_share(
        members in 1_usize..12, partitions in 0_u32..100,
    ) {
        let mut world = World { partitions, ..World::new() };
        for member in 0..members {
            world.join(&format!("m{member:02}"));
        }
        world.calm_down();
        let owners = |world: &World| -> BTreeMap<Place, String> {
            let owners = world.group.owners.iter();
            owners.map(|(place, owner)| (place.clone(), owner.member_id.clone())).collect()
        };
        let before = owners(&world);
        world.join("newcomer");
        world.calm_down();
        let with = owners(&world);
        let moved = before.iter().filter(|(place, owner)| with[*place] != **owner);
        let share = partitions as usize / (members + 1);
        prop_assert_eq!(moved.clone().count(), share);
        prop_assert!(moved.clone().all(|(place, _)| with[place] == "newcomer"));
        world.sides.remove("newcomer");
        world.group.leave("newcomer");
        world.settle();
        world.calm_down();
        let after = owners(&world);
        let moved = with.iter().filter(|(place, owner)| after[*place] != **owner).count();
        prop_assert_eq!(moved, share);
    }
}
