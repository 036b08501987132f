//! When leases end, by hand and under random renewals, pauses and changes of leader.

use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);
const LEASE: Duration = Duration::from_secs(10);

fn registry(ids: &[u64]) -> Registry {
    let mut registry = Registry::default();
    for id in ids {
        grant(&mut registry, *id, *id);
    }
    registry
}

fn grant(registry: &mut Registry, id: u64, granted_index: u64) {
    let instance = v1::ServiceInstance {
        service: "pricing".into(),
        id: id.to_string(),
        lease_ms: u32::try_from(LEASE.as_millis()).unwrap(),
        ..Default::default()
    };
    registry.grant(&instance, granted_index).unwrap();
}

/// A leader that looks as often as it should.
struct Leader {
    leases: Leases,
    epoch: u64,
    clock: Duration,
}

impl Leader {
    fn new() -> Self {
        Self { leases: Leases::default(), epoch: 3, clock: Duration::from_secs(1_000) }
    }

    /// Lets time pass; the ids of those that are over then.
    fn pass(&mut self, time: Duration, registry: &Registry) -> Vec<String> {
        let until = self.clock + time;
        loop {
            let over = self.leases.over(self.epoch, self.clock, registry);
            if self.clock >= until || !over.is_empty() {
                return over.into_iter().map(|lease| lease.id).collect();
            }
            self.clock = (self.clock + LOOK_PAUSE).min(until);
        }
    }

    fn renew(&mut self, registry: &Registry, id: u64) -> bool {
        let service = registry.service("pricing");
        self.leases.renew(self.epoch, self.clock, &service[&id.to_string()])
    }
}

#[test]
fn a_lease_that_is_not_renewed_is_over_after_its_duration() {
    let (mut leader, registry) = (Leader::new(), registry(&[1, 2]));
    assert!(leader.pass(LEASE / 2, &registry).is_empty());
    assert!(leader.renew(&registry, 2));
    assert!(leader.pass(LEASE / 2 - MS, &registry).is_empty());
    assert_eq!(leader.pass(MS, &registry), ["1"]);
    // It is over until another one is granted, even before the command that says so.
    assert!(!leader.renew(&registry, 1));
    assert_eq!(leader.leases.over(3, leader.clock, &registry)[0].granted_index, 1);
}

#[test]
fn an_instance_that_is_announced_again_has_a_whole_lease() {
    let (mut leader, mut registry) = (Leader::new(), registry(&[1]));
    assert!(leader.pass(LEASE - MS, &registry).is_empty());
    grant(&mut registry, 1, 9);
    assert!(leader.renew(&registry, 1));
    assert!(leader.pass(LEASE - MS, &registry).is_empty());
    assert_eq!(leader.pass(MS, &registry), ["1"]);
}

#[test]
fn a_new_leader_gives_every_lease_its_whole_duration() {
    let (mut leader, registry) = (Leader::new(), registry(&[1, 2]));
    assert!(leader.pass(LEASE - MS, &registry).is_empty());
    leader.epoch += 1;
    assert!(leader.pass(LEASE - MS, &registry).is_empty());
    assert!(leader.renew(&registry, 2));
    assert_eq!(leader.pass(MS, &registry), ["1"]);
    // The one before it comes back: what it knew is not true any more.
    leader.epoch += 1;
    assert!(leader.renew(&registry, 1));
}

#[test]
fn time_in_which_the_leader_stood_still_does_not_count() {
    let (mut leader, registry) = (Leader::new(), registry(&[1]));
    assert!(leader.pass(Duration::ZERO, &registry).is_empty());
    leader.clock += 60 * LEASE;
    assert!(leader.pass(LEASE - AGED_MAX - MS, &registry).is_empty());
    assert_eq!(leader.pass(MS, &registry), ["1"]);
}

#[test]
fn what_is_gone_is_forgotten() {
    let (mut leader, mut registry) = (Leader::new(), registry(&[1, 2]));
    leader.pass(Duration::ZERO, &registry);
    registry.end(&EndedLease { service: "pricing".into(), id: "1".into(), granted_index: 0 });
    leader.pass(Duration::ZERO, &registry);
    assert_eq!(leader.leases.ends.len(), 1);
}

#[derive(Clone, Debug)]
enum Step {
    Pass(u64),
    Stall(u64),
    Renew(u64),
    Elect,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..6_000u64).prop_map(Step::Pass),
        1 => (0..60_000u64).prop_map(Step::Stall),
        4 => (1..4u64).prop_map(Step::Renew),
        1 => Just(Step::Elect),
    ]
}

proptest! {
    /// Never before its duration has passed since the last renewal and since this leader leads; and no later than that, with one look
    /// more, of the time in which the leader looked.
    #[test]
    fn leases_end_neither_early_nor_late(steps in proptest::collection::vec(step(), 0..40)) {
        let (mut leader, registry) = (Leader::new(), registry(&[1, 2, 3]));
        // By instance: since when it lasts, by the clock, and how much of that the leader looked.
        let mut since = [(leader.clock, Duration::ZERO); 3];
        leader.pass(Duration::ZERO, &registry);
        for step in steps {
            match step {
                Step::Pass(ms) => {
                    let from = leader.clock;
                    let over = leader.pass(Duration::from_millis(ms), &registry);
                    for it in &mut since {
                        it.1 += leader.clock - from;
                    }
                    for (id, (start, looked)) in (1u64..).zip(since) {
                        match over.contains(&id.to_string()) {
                            true => prop_assert!(leader.clock - start >= LEASE),
                            false => prop_assert!(looked < LEASE + LOOK_PAUSE),
                        }
                    }
                    // The instances announce themselves again; the test goes on from there.
                    if !over.is_empty() {
                        leader.epoch += 1;
                        since = [(leader.clock, Duration::ZERO); 3];
                        leader.pass(Duration::ZERO, &registry);
                    }
                }
                Step::Stall(ms) => leader.clock += Duration::from_millis(ms),
                Step::Renew(id) => {
                    if leader.renew(&registry, id) {
                        since[usize::try_from(id - 1).unwrap()] = (leader.clock, Duration::ZERO);
                    } else {
                        let (start, _) = since[usize::try_from(id - 1).unwrap()];
                        prop_assert!(leader.clock - start >= LEASE);
                    }
                }
                Step::Elect => {
                    leader.epoch += 1;
                    since = [(leader.clock, Duration::ZERO); 3];
                    leader.pass(Duration::ZERO, &registry);
                }
            }
        }
    }
}
