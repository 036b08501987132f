//! Runs of the simulation by seed.

use super::{Faults, Totals, World};

/// Seeds of one `cargo test`; `HIGHWATER_SIMULATION_SEEDS=N` (and `..._FIRST=S`) runs others: `scripts/simulate`.
const SEEDS: u64 = 30;
const STEPS: u64 = 1_500;

fn run(seed: u64, faults: Faults) -> World {
    let mut world = World::new(seed, 3, faults);
    world.run(STEPS);
    world.totals.terms = world.terms();
    world
}

fn variable(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let (a, b) = (run(42, Faults::ALL), run(42, Faults::ALL));
    assert!(a.trace.len() > 1_000);
    assert_eq!(a.trace, b.trace);
    assert_ne!(a.trace, run(43, Faults::ALL).trace);
}

#[test]
fn without_faults_one_leader_acknowledges_everything() {
    let world = run(1, Faults::NONE);
    assert!(world.totals.acknowledged > 300, "{:?}", world.totals);
    assert_eq!(world.totals.duplicates, 0);
    assert!(world.terms() <= 7, "the preferred leader wins the first election and keeps it");
}

#[test]
fn nothing_acknowledged_is_lost_under_any_fault() {
    let first = variable("HIGHWATER_SIMULATION_FIRST", 1);
    let seeds = variable("HIGHWATER_SIMULATION_SEEDS", SEEDS);
    let mut sum = Totals::default();
    for seed in first..first + seeds {
        let outcome = std::panic::catch_unwind(|| run(seed, Faults::ALL).totals);
        let totals = outcome.unwrap_or_else(|_| {
            panic!("seed {seed} fails; replay it with: HIGHWATER_SIMULATION_FIRST={seed} HIGHWATER_SIMULATION_SEEDS=1 cargo test -p highwater-broker nothing_acknowledged")
        });
        sum.acknowledged += totals.acknowledged;
        sum.duplicates += totals.duplicates;
        sum.crashes += totals.crashes;
        sum.cuts += totals.cuts;
        sum.terms += totals.terms;
    }
    println!("{seeds} seeds of {STEPS} ticks: {sum:?}");
    assert!(
        sum.acknowledged > 20 * seeds && sum.crashes > seeds && sum.terms > 7 * seeds,
        "{sum:?}"
    );
}

/// The oracle must be able to fail: with the syncs left out, some power loss loses something.
#[test]
fn a_skipped_sync_is_found() {
    let faults = Faults { skip_sync: true, crash: 20, ..Faults::ALL };
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let found = (1..=40).any(|seed| std::panic::catch_unwind(|| run(seed, faults)).is_err());
    std::panic::set_hook(hook);
    assert!(found, "40 runs without a single sync passed the oracle");
}
