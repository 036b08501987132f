//! Scenarios of the engine, by name.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn spec(id: &str, static_id: &str) -> JoinSpec {
    JoinSpec {
        member_id: id.to_owned(),
        static_id: static_id.to_owned(),
        client_id: "test".to_owned(),
        topics: BTreeSet::from(["orders".to_owned()]),
        session_timeout: SECOND * 10,
        progress_timeout: SECOND * 60,
    }
}

fn topic(id: &str, partitions: u32) -> Option<Topic> {
    Some(Topic { id: id.to_owned(), partitions })
}

fn set_partitions(group: &mut Group, partitions: u32) {
    group.set_topics(|_| topic("1", partitions), usize::MAX);
}

/// A group of these members with four partitions; what followed is taken already.
fn group(members: &[&str]) -> Group {
    let mut group = Group::new(0);
    for id in members {
        group.join(Duration::ZERO, spec(id, ""));
        set_partitions(&mut group, 4);
    }
    let wanted: Vec<(String, Owned)> = wanted_back(&group);
    for (id, owned) in wanted {
        group.release(&id, &[owned]);
    }
    group.take_effects();
    group
}

fn wanted_back(group: &Group) -> Vec<(String, Owned)> {
    let wanted = group.owners.iter().filter(|(_, owner)| owner.is_wanted_back);
    wanted
        .map(|((topic, partition), owner)| {
            let (topic, partition, epoch) = (topic.clone(), *partition, owner.epoch);
            (owner.member_id.clone(), Owned { topic, partition, epoch })
        })
        .collect()
}

fn owned(group: &Group, id: &str) -> Vec<u32> {
    group.owned_by(id).map(|(place, _)| place.1).collect()
}

#[test]
fn a_newcomer_gets_a_partition_only_when_its_owner_has_released_it() {
    let mut group = group(&["a"]);
    group.join(Duration::ZERO, spec("b", ""));
    assert_eq!(owned(&group, "b"), [0; 0]);
    let wanted = wanted_back(&group);
    assert_eq!(wanted.len(), 2);
    group.release("a", &[wanted[0].1.clone()]);
    assert_eq!(owned(&group, "b"), [wanted[0].1.partition]);
    assert!(!group.is_stable());
    group.release("a", &[wanted[1].1.clone()]);
    assert_eq!((owned(&group, "a"), owned(&group, "b")), (vec![0, 1], vec![2, 3]));
    assert!(group.is_stable());
}

#[test]
fn what_a_former_owner_says_does_not_count() {
    let mut group = group(&["a"]);
    let old: Vec<Owned> = (0..4)
        .map(|partition| {
            let epoch = group.owners[&("orders".to_owned(), partition)].epoch;
            Owned { topic: "orders".into(), partition, epoch }
        })
        .collect();
    assert!(old.iter().all(|owned| group.owns("a", owned)));
    group.leave("a");
    group.join(Duration::ZERO, spec("a", ""));
    set_partitions(&mut group, 4);
    group.rebalance();
    assert_eq!(owned(&group, "a"), [0, 1, 2, 3]);
    assert!(!old.iter().any(|owned| group.owns("a", owned)), "it has them at later epochs");
    group.take_effects();
    group.release("a", &old);
    assert_eq!(group.take_effects(), Effects::default());
}

#[test]
fn a_silent_member_goes_when_its_session_is_over_and_not_before() {
    let mut group = group(&["a", "b"]);
    assert_eq!(group.next_deadline(), Some(SECOND * 10));
    group.heard(SECOND * 9, "b", false, Duration::ZERO);
    group.tick(SECOND * 10 - Duration::from_millis(1));
    assert_eq!(group.take_effects(), Effects::default());
    group.tick(SECOND * 10);
    let effects = group.take_effects();
    assert_eq!(effects.gone, [("a".to_owned(), Gone::Silent)]);
    assert!(effects.must_store);
    assert_eq!(owned(&group, "b"), [0, 1, 2, 3]);
}

#[test]
fn a_slow_member_stays_while_it_extends_its_deadline_and_goes_when_it_is_stuck() {
    let mut group = group(&["a"]);
    group.heard(SECOND * 55, "a", false, SECOND * 100);
    for second in 56..155 {
        group.heard(SECOND * second, "a", false, Duration::ZERO);
        group.tick(SECOND * second);
    }
    assert_eq!(group.take_effects().gone, []);
    group.tick(SECOND * 155);
    assert_eq!(group.take_effects().gone, [("a".to_owned(), Gone::Stuck)]);
}

#[test]
fn a_member_without_partitions_need_not_show_progress() {
    let mut group = group(&["a"]);
    set_partitions(&mut group, 0);
    group.take_effects();
    for second in 1..1_000 {
        group.heard(SECOND * second, "a", false, Duration::ZERO);
        group.tick(SECOND * second);
    }
    assert_eq!(group.take_effects().gone, []);
}

#[test]
fn a_static_member_that_restarts_keeps_its_partitions_and_fences_its_old_process() {
    let mut group = Group::new(0);
    group.join(Duration::ZERO, spec("a1", "a"));
    group.join(Duration::ZERO, spec("b1", "b"));
    set_partitions(&mut group, 4);
    group.take_effects();
    let before = owned(&group, "a1");
    let old = wanted_epoch(&group, "a1");
    group.join(SECOND, spec("a2", "a"));
    let effects = group.take_effects();
    assert_eq!(effects.gone, [("a1".to_owned(), Gone::Replaced)]);
    assert_eq!(effects.tell, BTreeSet::from(["a2".to_owned()]), "nobody else notices");
    assert_eq!(owned(&group, "a2"), before);
    assert!(wanted_epoch(&group, "a2") > old);
    assert!(group.was_replaced(&spec("a1", "a")), "it may not evict its successor");
    assert!(!group.was_replaced(&spec("a2", "a")) && !group.was_replaced(&spec("x", "")));
    group.leave("a2");
    assert!(!group.was_replaced(&spec("a1", "a")), "its place is free");
}

fn wanted_epoch(group: &Group, id: &str) -> u64 {
    group.owned_by(id).map(|(_, owner)| owner.epoch).max().unwrap()
}

#[test]
fn the_epoch_grows_once_for_each_thing_that_is_stored() {
    let mut group = Group::new(100);
    group.join(Duration::ZERO, spec("a", ""));
    set_partitions(&mut group, 50);
    assert_eq!((group.epoch, group.owners.len()), (101, 50));
}

#[test]
fn a_deleted_topic_takes_its_partitions_with_it() {
    let mut group = group(&["a"]);
    group.set_topics(|_| None, usize::MAX);
    let effects = group.take_effects();
    assert!(effects.must_store && effects.tell.contains("a"));
    assert_eq!(owned(&group, "a"), [0; 0]);
}

#[test]
fn members_that_read_different_topics_get_only_those() {
    let mut group = Group::new(0);
    group.join(Duration::ZERO, spec("a", ""));
    let topics = BTreeSet::from(["orders".to_owned(), "payments".to_owned()]);
    group.join(Duration::ZERO, JoinSpec { topics, ..spec("b", "") });
    group.set_topics(|name| topic("1", if name == "orders" { 2 } else { 4 }), usize::MAX);
    for (id, owned) in wanted_back(&group) {
        group.release(&id, &[owned]);
    }
    assert!(group.owned_by("a").all(|(place, _)| place.0 == "orders"));
    assert_eq!((group.owned_by("a").count(), group.owned_by("b").count()), (2, 4));
}

#[test]
fn a_topic_that_was_made_again_is_given_out_anew() {
    let mut group = group(&["a"]);
    let before = wanted_epoch(&group, "a");
    group.set_topics(|_| topic("2", 4), usize::MAX);
    let effects = group.take_effects();
    assert!(effects.must_store && effects.tell.contains("a"));
    assert_eq!(owned(&group, "a"), [0, 1, 2, 3]);
    assert!(group.owned_by("a").all(|(_, owner)| owner.epoch > before), "another topic");
    // Also if it happened while nobody looked.
    let members = [(spec("a", ""), vec![Owned { topic: "orders".into(), partition: 0, epoch: 9 }])];
    let known = topic("2", 4).map(|topic| ("orders".to_owned(), topic));
    let mut group = Group::restore(Duration::ZERO, 9, known.into_iter().collect(), members);
    group.set_topics(|_| topic("3", 4), usize::MAX);
    assert_eq!(owned(&group, "a"), [0, 1, 2, 3]);
    assert!(wanted_epoch(&group, "a") > 9);
}

#[test]
fn a_topic_grows_only_as_far_as_there_is_room() {
    let mut group = group(&["a"]);
    group.set_topics(|_| topic("1", 100), 10);
    assert_eq!((group.owners.len(), group.left_out()), (10, 90));
    group.set_topics(|_| topic("1", 100), 5);
    assert_eq!((group.owners.len(), group.left_out()), (10, 90), "nothing is taken away");
    group.set_topics(|_| topic("1", 100), 1_000);
    assert_eq!((group.owners.len(), group.left_out()), (100, 0));
}

#[test]
fn a_release_of_nothing_changes_nothing() {
    let mut group = group(&["a"]);
    group.owners.get_mut(&("orders".to_owned(), 0)).unwrap().is_wanted_back = true;
    group.release("a", &[]);
    assert!(!group.is_stable(), "nothing was computed anew");
}
