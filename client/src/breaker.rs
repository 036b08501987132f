//! Circuit breaker: when what is called keeps failing, stop calling it for a while.
//!
//! Owns: the states and when they change, from what it is told about calls. Never: makes calls, reads a clock, or knows what is called.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// Parts that the window is counted in: what is older than the window is forgotten one part at a time.
const PARTS: u32 = 10;

/// When a circuit breaker opens, and how it closes again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BreakerPolicy {
    /// Calls that ended so long ago or earlier do not count. Default: 10 s.
    pub window: Duration,
    /// With fewer calls in the window nothing can be said. Default: 5.
    pub calls_min: u32,
    /// It opens when this part of the calls failed, from 0 to 1. Default: 0.5.
    pub failure_rate: f64,
    /// A call that takes so long is slow. Default: 30 s.
    pub slow_call: Duration,
    /// It opens when this part of the calls was slow; above 1, never. Default: 0.8.
    pub slow_rate: f64,
    /// How long it stays open before it tries again. Default: 5 s.
    pub open_for: Duration,
    /// So many calls are let through then: if all succeed it closes, if one fails it opens again. Default: 3.
    pub probes: u32,
}

impl Default for BreakerPolicy {
    fn default() -> Self {
        Self {
            window: Duration::from_secs(10),
            calls_min: 5,
            failure_rate: 0.5,
            slow_call: Duration::from_secs(30),
            slow_rate: 0.8,
            open_for: Duration::from_secs(5),
            probes: 3,
        }
    }
}

/// What a circuit breaker lets through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerState {
    /// Everything.
    Closed,
    /// Nothing.
    Open,
    /// A few calls, to see how they do.
    HalfOpen,
}

impl BreakerPolicy {
    /// For connections to brokers: opens after three failures in ten seconds if they are half of the calls, and tries again
    /// after a quarter of a second: a broker that was started again must not be waited for.
    pub(crate) fn for_connections() -> Self {
        Self {
            calls_min: 3,
            slow_call: Duration::from_millis(1_500),
            open_for: Duration::from_millis(250),
            probes: 1,
            ..Self::default()
        }
    }
}

impl std::fmt::Display for BreakerState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half-open",
        })
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Part {
    number: u64,
    calls: u32,
    failed: u32,
    slow: u32,
}

#[derive(Debug)]
enum Phase {
    Closed,
    Open { until: Instant },
    HalfOpen { under_way: u32, succeeded: u32 },
}

#[derive(Debug)]
struct Core {
    phase: Phase,
    /// Grows with every change of the state: what was let through before does not count after it.
    generation: u64,
    parts: [Part; PARTS as usize],
}

/// See the module.
#[derive(Debug)]
pub(crate) struct CircuitBreaker {
    policy: BreakerPolicy,
    began: Instant,
    core: Mutex<Core>,
    states: watch::Sender<BreakerState>,
    /// A call may be let through that was not before.
    changed: Notify,
}

/// Leave to make one call. Dropped without a word, the call does not count.
#[derive(Debug)]
pub(crate) struct Pass {
    breaker: Arc<CircuitBreaker>,
    generation: u64,
    is_over: bool,
}

impl CircuitBreaker {
    pub(crate) fn new(policy: BreakerPolicy, now: Instant) -> Self {
        let core = Core { phase: Phase::Closed, generation: 0, parts: Default::default() };
        let (states, _) = watch::channel(BreakerState::Closed);
        Self { policy, began: now, core: Mutex::new(core), states, changed: Notify::new() }
    }

    pub(crate) fn state(&self) -> BreakerState {
        *self.states.borrow()
    }

    /// The state, and how it changes.
    pub(crate) fn watch(&self) -> watch::Receiver<BreakerState> {
        self.states.subscribe()
    }

    fn enter(&self, core: &mut Core, phase: Phase) {
        let state = match phase {
            Phase::Closed => BreakerState::Closed,
            Phase::Open { .. } => BreakerState::Open,
            Phase::HalfOpen { .. } => BreakerState::HalfOpen,
        };
        core.phase = phase;
        core.generation += 1;
        core.parts = Default::default();
        self.states.send_replace(state);
        self.changed.notify_waiters();
    }

    /// Leave to make a call now, if there is; else when to ask again (`None`: when [`CircuitBreaker::changed`] says).
    pub(crate) fn try_pass(self: &Arc<Self>, now: Instant) -> Result<Pass, Option<Instant>> {
        let mut core = self.core.lock();
        if let Phase::Open { until } = core.phase {
            if now < until {
                return Err(Some(until));
            }
            self.enter(&mut core, Phase::HalfOpen { under_way: 0, succeeded: 0 });
        }
        if let Phase::HalfOpen { under_way, succeeded } = &mut core.phase {
            if *under_way + *succeeded >= self.policy.probes.max(1) {
                return Err(None);
            }
            *under_way += 1;
        }
        let generation = core.generation;
        Ok(Pass { breaker: Arc::clone(self), generation, is_over: false })
    }

    /// Waits for leave to make a call. `now` reads the clock.
    pub(crate) async fn pass(self: &Arc<Self>, now: impl Fn() -> Instant) -> Pass {
        loop {
            let changed = self.changed.notified();
            match self.try_pass(now()) {
                Ok(pass) => return pass,
                Err(None) => changed.await,
                Err(Some(until)) => tokio::select! {
                    () = tokio::time::sleep_until(until) => {}
                    () = changed => {}
                },
            }
        }
    }

    /// Takes in how a call went. True if the breaker is closed and was when the call began: then the failure is the call's own affair.
    fn record(&self, generation: u64, failed: bool, took: Duration, now: Instant) -> bool {
        let mut core = self.core.lock();
        if core.generation != generation {
            return false;
        }
        let slow = self.is_slow(took);
        match &mut core.phase {
            Phase::Closed => {
                self.count(&mut core.parts, failed, slow, now);
                if self.has_tripped(&core.parts, now) {
                    self.enter(&mut core, Phase::Open { until: now + self.policy.open_for });
                    return false;
                }
                true
            }
            Phase::HalfOpen { under_way, succeeded } => {
                *under_way = under_way.saturating_sub(1);
                if failed || slow {
                    self.enter(&mut core, Phase::Open { until: now + self.policy.open_for });
                    return false;
                }
                *succeeded += 1;
                if *succeeded >= self.policy.probes.max(1) {
                    self.enter(&mut core, Phase::Closed);
                }
                false
            }
            // Nothing is let through with the generation of an open breaker.
            Phase::Open { .. } => false,
        }
    }

    pub(crate) fn is_slow(&self, took: Duration) -> bool {
        took >= self.policy.slow_call
    }

    fn part_number(&self, now: Instant) -> u64 {
        let part = (self.policy.window / PARTS).max(Duration::from_millis(1));
        let number = now.saturating_duration_since(self.began).as_nanos() / part.as_nanos();
        u64::try_from(number).unwrap_or(u64::MAX)
    }

    fn count(&self, parts: &mut [Part], failed: bool, slow: bool, now: Instant) {
        let number = self.part_number(now);
        let index = usize::try_from(number % u64::from(PARTS)).unwrap_or(0);
        let part = &mut parts[index];
        if part.number != number {
            *part = Part { number, ..Part::default() };
        }
        part.calls = part.calls.saturating_add(1);
        part.failed = part.failed.saturating_add(failed.into());
        part.slow = part.slow.saturating_add(slow.into());
    }

    fn has_tripped(&self, parts: &[Part], now: Instant) -> bool {
        let newest = self.part_number(now);
        let counted = parts.iter().filter(|part| part.number + u64::from(PARTS) > newest);
        let (mut calls, mut failed, mut slow) = (0.0, 0.0, 0.0);
        for part in counted {
            calls += f64::from(part.calls);
            failed += f64::from(part.failed);
            slow += f64::from(part.slow);
        }
        calls >= f64::from(self.policy.calls_min.max(1))
            && (failed >= calls * self.policy.failure_rate || slow >= calls * self.policy.slow_rate)
    }
}

impl Pass {
    /// The call is over. True if its failure is its own affair; see [`CircuitBreaker`].
    pub(crate) fn over(mut self, failed: bool, took: Duration, now: Instant) -> bool {
        self.is_over = true;
        self.breaker.record(self.generation, failed, took, now)
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        let mut core = self.breaker.core.lock();
        if core.generation == self.generation
            && let Phase::HalfOpen { under_way, .. } = &mut core.phase
        {
            *under_way = under_way.saturating_sub(1);
            drop(core);
            self.breaker.changed.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUICK: Duration = Duration::from_millis(1);

    /// A breaker and a clock that the test moves; the runtime's is paused and never asked.
    struct Case {
        breaker: Arc<CircuitBreaker>,
        now: Instant,
    }

    impl Case {
        fn new() -> Self {
            let policy = BreakerPolicy {
                window: Duration::from_secs(10),
                calls_min: 4,
                slow_call: Duration::from_secs(1),
                slow_rate: 0.5,
                open_for: Duration::from_secs(5),
                probes: 2,
                ..BreakerPolicy::default()
            };
            #[expect(clippy::disallowed_methods, reason = "a place to count from")]
            let now = Instant::now();
            Self { breaker: Arc::new(CircuitBreaker::new(policy, now)), now }
        }

        fn pass(&self) -> Pass {
            self.breaker.try_pass(self.now).expect("calls are let through")
        }

        fn call(&self, failed: bool) -> bool {
            self.pass().over(failed, QUICK, self.now)
        }

        fn state(&self) -> BreakerState {
            self.breaker.state()
        }

        fn later(&mut self, seconds: u64) {
            self.now += Duration::from_secs(seconds);
        }

        fn open(&mut self) {
            while self.state() != BreakerState::Open {
                self.call(true);
            }
        }
    }

    #[test]
    fn it_opens_when_enough_calls_failed_and_not_before() {
        let case = Case::new();
        assert!(case.call(true), "three failures could be three bad events");
        assert!(case.call(true));
        assert!(case.call(true));
        assert!(!case.call(true), "the fourth is not the event's fault");
        assert_eq!(case.state(), BreakerState::Open);
        assert_eq!(
            case.breaker.try_pass(case.now).err(),
            Some(Some(case.now + Duration::from_secs(5)))
        );
    }

    #[test]
    fn failures_among_successes_do_not_open_it() {
        let case = Case::new();
        for _ in 0..50 {
            assert!(case.call(false) && case.call(false) && case.call(true));
        }
        assert_eq!(case.state(), BreakerState::Closed);
    }

    #[test]
    fn failures_of_long_ago_are_forgotten() {
        let mut case = Case::new();
        for _ in 0..20 {
            case.call(true);
            case.later(4);
        }
        assert_eq!(case.state(), BreakerState::Closed, "never four within ten seconds");
    }

    #[test]
    fn slow_calls_open_it_too() {
        let case = Case::new();
        for _ in 0..4 {
            case.pass().over(false, Duration::from_secs(2), case.now);
        }
        assert_eq!(case.state(), BreakerState::Open);
    }

    #[test]
    fn half_open_lets_a_few_through_and_closes_when_all_succeed() {
        let mut case = Case::new();
        case.open();
        case.later(5);
        let (one, two) = (case.pass(), case.pass());
        assert_eq!(case.state(), BreakerState::HalfOpen);
        assert_eq!(case.breaker.try_pass(case.now).err(), Some(None));
        one.over(false, QUICK, case.now);
        assert_eq!(case.breaker.try_pass(case.now).err(), Some(None), "one more is under way");
        two.over(false, QUICK, case.now);
        assert_eq!(case.state(), BreakerState::Closed);
        assert!(case.call(true), "what was counted before is forgotten");
    }

    #[test]
    fn half_open_opens_again_with_one_failure() {
        let mut case = Case::new();
        case.open();
        case.later(5);
        assert!(!case.call(true), "a probe's failure is nobody's fault");
        assert_eq!(case.state(), BreakerState::Open);
        case.later(4);
        assert!(case.breaker.try_pass(case.now).is_err());
        case.later(1);
        assert!(case.breaker.try_pass(case.now).is_ok());
    }

    #[test]
    fn a_probe_that_is_given_up_leaves_its_place_to_another() {
        let mut case = Case::new();
        case.open();
        case.later(5);
        let (one, two) = (case.pass(), case.pass());
        drop(one);
        let three = case.pass();
        two.over(false, QUICK, case.now);
        three.over(false, QUICK, case.now);
        assert_eq!(case.state(), BreakerState::Closed);
    }

    #[test]
    fn a_call_that_began_before_the_breaker_opened_does_not_count_after() {
        let mut case = Case::new();
        let early = case.pass();
        case.open();
        case.later(5);
        let (one, two) = (case.pass(), case.pass());
        assert!(!early.over(true, QUICK, case.now));
        one.over(false, QUICK, case.now);
        two.over(false, QUICK, case.now);
        assert_eq!(case.state(), BreakerState::Closed);
    }
}
