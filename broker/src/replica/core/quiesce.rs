//! Groups in which nothing happens go to sleep: neither their leader nor its followers tick, and nothing is sent.
//!
//! A leader that has had nothing to do for a while, and whose followers hold all it has, asks them to sleep; once all have agreed
//! it sleeps too. Whatever else reaches a sleeping replica wakes it: a proposal, a message, news of the nodes of the others.
//! Sleeping is no state of the consensus: a replica that sleeps is one to which no time passes, and nothing is promised that was
//! not before. So waking too often costs a little, and only waking too late would do harm. Three things wake a follower whose
//! leader is gone, each on its own: its leader's node is not heard from for an election timeout (nodes say that they live, for all
//! their groups at once), the connection to that node broke, or the leader has not asked again in time.
//!
//! The idea is that of other systems with many groups: CockroachDB's quiescence, TiKV's hibernating regions.
//! Owns: who may sleep, and what wakes. Never: counts time; its driver does, by an [`Alarm`], and calls [`Core::rest_is_over`].

use std::collections::BTreeSet;

use highwater_proto::internal::{Quiesce, QuiesceKind};
use raft::StateRole;

use super::{Core, Effects};

/// A group that sleeps is asked again so often, in election timeouts: its leader finds out that a follower has gone astray,
/// and its followers that their leader has.
const ASK_AGAIN_TIMEOUTS: u64 = 20;
/// Followers wait for so many such times.
const PATIENCE: u64 = 3;
/// A group whose members did not agree in time waits so many times longer, each time, to a power of two: on a machine that is too
/// busy to answer, thousands that ask again and again would keep it so.
const FAILURES_MAX: u32 = 4;

/// Whether a replica sleeps.
#[derive(Debug, Default)]
pub(super) enum Rest {
    /// It ticks; `idle_ticks` of them with nothing but heartbeats.
    #[default]
    Awake,
    /// A leader that waits for the agreement of some; the absent are not asked, because their nodes are not heard from.
    Asking { waiting: BTreeSet<u64>, absent: BTreeSet<u64>, ticks_left: u64 },
    /// A leader.
    Leading { absent: BTreeSet<u64> },
    /// A follower.
    Following,
}

/// What a group looks like from outside. As long as that stays the same nothing happens in it.
type Look = (StateRole, u64, u64, u64, u64);

/// When a replica sleeps, and since when it could.
#[derive(Debug, Default)]
pub(super) struct Quiescence {
    pub(super) rest: Rest,
    /// After so many idle ticks it may sleep; 0 is never.
    quiet_ticks: u32,
    idle_ticks: u32,
    look: Look,
    /// How often in a row it has asked in vain.
    failures: u32,
    /// How often it has fallen asleep, or agreed again to sleep on.
    rests: u64,
    /// Counts what was asked, so that no agreement is taken for another question's.
    round: u64,
}

/// When a driver looks at a sleeping replica again.
#[derive(Debug, Default)]
pub(crate) struct Alarm(Option<Set>);

#[derive(Debug)]
struct Set {
    /// For the how-manieth rest.
    rest: u64,
    tick: u64,
}

impl Alarm {
    /// Notes whether the replica sleeps, at tick `now`. If it has fallen asleep since, or agreed to sleep on: when this rings.
    pub(crate) fn note(&mut self, core: &Core, now: u64) -> Option<u64> {
        let rest = core.quiescence.rests;
        if !core.is_asleep() {
            self.0 = None;
        } else if self.0.as_ref().is_none_or(|set| set.rest != rest) {
            let tick = now + core.rest_ticks();
            self.0 = Some(Set { rest, tick });
            return Some(tick);
        }
        None
    }

    /// Whether its time has come.
    pub(crate) fn rings(&self, now: u64) -> bool {
        self.0.as_ref().is_some_and(|set| set.tick <= now)
    }
}

impl Quiescence {
    pub(super) fn after(quiet_ticks: u32) -> Self {
        Self { quiet_ticks, ..Self::default() }
    }
}

impl Core {
    /// Whether it sleeps: then it need not tick before its [`Alarm`] rings.
    pub(crate) fn is_asleep(&self) -> bool {
        matches!(self.quiescence.rest, Rest::Leading { .. } | Rest::Following)
    }

    /// How many ticks it may sleep.
    fn rest_ticks(&self) -> u64 {
        let ask_again = ASK_AGAIN_TIMEOUTS * self.election_ticks as u64;
        match self.quiescence.rest {
            Rest::Leading { .. } => ask_again,
            Rest::Following => PATIENCE * ask_again,
            Rest::Awake | Rest::Asking { .. } => 0,
        }
    }

    /// The ticks that it may sleep are over: a leader asks again, a follower was forgotten.
    pub(crate) fn rest_is_over(&mut self, live: &BTreeSet<u64>, effects: &mut Effects) {
        match self.quiescence.rest {
            Rest::Leading { .. } if self.may_sleep(live) => self.ask(live, effects),
            Rest::Leading { .. } | Rest::Following => self.wake(effects),
            Rest::Awake | Rest::Asking { .. } => {}
        }
    }

    /// Notes how long nothing has happened, and asks the others to sleep when that is long enough. True if this tick is not to be
    /// counted by raft: a heartbeat would wake those who have agreed.
    pub(super) fn tick_towards_sleep(
        &mut self,
        live: &BTreeSet<u64>,
        effects: &mut Effects,
    ) -> bool {
        if let Rest::Asking { ticks_left, .. } = &mut self.quiescence.rest {
            *ticks_left -= 1;
            if *ticks_left > 0 {
                return true;
            }
            let failures = &mut self.quiescence.failures;
            *failures = (*failures + 1).min(FAILURES_MAX);
            self.wake(effects);
        }
        let raft = &self.raw.raft;
        let look = (raft.state, raft.term, raft.leader_id, self.log.last_index(), self.committed);
        let before = std::mem::replace(&mut self.quiescence.look, look);
        let idle = &mut self.quiescence.idle_ticks;
        *idle = if look == before { idle.saturating_add(1) } else { 0 };
        let quiet_ticks = u64::from(self.quiescence.quiet_ticks);
        let idle_ticks = u64::from(*idle);
        if quiet_ticks > 0 && idle_ticks >= self.patience(quiet_ticks) && self.may_sleep(live) {
            self.ask(live, effects);
        }
        !matches!(self.quiescence.rest, Rest::Awake)
    }

    /// How many idle ticks it takes. Not the same for all groups: many that became idle at once should not all ask at once.
    fn patience(&self, quiet_ticks: u64) -> u64 {
        (quiet_ticks + self.group % quiet_ticks) << self.quiescence.failures
    }

    /// On the leader: nothing is under way, and every member whose node is heard from holds all that there is; with this one they
    /// are a majority.
    fn may_sleep(&self, live: &BTreeSet<u64>) -> bool {
        let raft = &self.raw.raft;
        let last_index = self.log.last_index();
        let is_still = raft.state == StateRole::Leader
            && raft.commit_to_current_term()
            && raft.lead_transferee.is_none()
            && !raft.has_pending_conf()
            && !self.is_machine()
            && self.is_level();
        let members = &self.raw.store().members;
        if !is_still || !members.voters_outgoing.is_empty() {
            return false;
        }
        let holds_all = |id: u64| {
            id == self.replica || raft.prs().get(id).is_some_and(|p| p.matched == last_index)
        };
        let is_there = |id: u64| self.is_there(id, live);
        let there = members.voters.iter().filter(|id| holds_all(**id) && is_there(**id)).count();
        raft.prs().iter().all(|(id, _)| holds_all(*id) || !is_there(*id))
            && 2 * there > members.voters.len()
    }

    /// Whether a replica's node is heard from. True for this one.
    fn is_there(&self, id: u64, live: &BTreeSet<u64>) -> bool {
        id == self.replica || self.node_of(id).is_some_and(|node| live.contains(&node))
    }

    fn others(&self) -> impl Iterator<Item = u64> {
        self.raw.raft.prs().iter().map(|(id, _)| *id).filter(|id| *id != self.replica)
    }

    /// All that is in the log is durable, committed and applied, and nobody waits.
    fn is_level(&self) -> bool {
        let last_index = self.log.last_index();
        let ends = [self.committed, self.log.durable_index(), self.raw.raft.raft_log.applied];
        ends.iter().all(|end| *end == last_index)
            && self.unpersisted.is_empty()
            && self.waiters.is_empty()
            && self.reads.is_empty()
            && !self.state_unsaved
            && self.broken.is_none()
    }

    fn ask(&mut self, live: &BTreeSet<u64>, effects: &mut Effects) {
        self.quiescence.round += 1;
        let (waiting, absent): (BTreeSet<u64>, BTreeSet<u64>) =
            self.others().partition(|id| self.is_there(*id, live));
        let questions = waiting.iter().map(|id| self.quiesce(*id, QuiesceKind::Ask));
        effects.quiesces.extend(questions);
        if waiting.is_empty() {
            self.fall_asleep(absent);
        } else {
            // Raft's clock stands still meanwhile: no longer than followers can do without heartbeats.
            let ticks_left = (self.election_ticks as u64 / 2).max(1);
            self.quiescence.rest = Rest::Asking { waiting, absent, ticks_left };
        }
    }

    fn quiesce(&self, to_replica: u64, kind: QuiesceKind) -> Quiesce {
        Quiesce {
            group_id: self.group,
            from_replica: self.replica,
            to_replica,
            term: self.raw.raft.term,
            index: self.log.last_index(),
            round: self.quiescence.round,
            kind: kind.into(),
        }
    }

    /// Takes what another replica says about sleeping.
    pub(crate) fn step_quiesce(&mut self, heard: &Quiesce, effects: &mut Effects) {
        if self.broken.is_some() || heard.to_replica != self.replica {
            return;
        }
        let raft = &self.raw.raft;
        let is_current = heard.term == raft.term;
        let from_leader = is_current && raft.leader_id == heard.from_replica;
        match heard.kind() {
            QuiesceKind::Ask => {
                let agrees = from_leader
                    && raft.state == StateRole::Follower
                    && heard.index == self.log.last_index()
                    && self.is_level();
                if agrees {
                    self.quiescence.rest = Rest::Following;
                    self.quiescence.rests += 1;
                    let agreed = self.quiesce(heard.from_replica, QuiesceKind::Agreed);
                    effects.quiesces.push(Quiesce { round: heard.round, ..agreed });
                }
            }
            QuiesceKind::Agreed => {
                let round = self.quiescence.round;
                if let Rest::Asking { waiting, absent, .. } = &mut self.quiescence.rest
                    && is_current
                    && heard.round == round
                {
                    waiting.remove(&heard.from_replica);
                    if waiting.is_empty() {
                        let absent = std::mem::take(absent);
                        self.fall_asleep(absent);
                    }
                }
            }
            QuiesceKind::Over if from_leader => self.wake(effects),
            QuiesceKind::Over | QuiesceKind::Unspecified => {}
        }
    }

    fn fall_asleep(&mut self, absent: BTreeSet<u64>) {
        self.quiescence.rest = Rest::Leading { absent };
        self.quiescence.rests += 1;
        self.quiescence.failures = 0;
        self.committed_before = [self.committed; 2];
    }

    /// Time passes again. A leader lets the others know at once: they may have been woken by what woke it.
    pub(super) fn wake(&mut self, effects: &mut Effects) {
        let rest = std::mem::take(&mut self.quiescence.rest);
        self.quiescence.idle_ticks = 0;
        if matches!(rest, Rest::Awake) {
            return;
        }
        // Whom it heard from before it slept says nothing now: it gets a whole timeout to hear from a majority again, and a
        // follower from its leader.
        self.raw.raft.election_elapsed = 0;
        self.raw.ping();
        self.settle(effects);
    }

    /// Before a leader goes out of service: its followers would sleep on.
    pub(crate) fn wake_others(&mut self, effects: &mut Effects) {
        let rest = std::mem::take(&mut self.quiescence.rest);
        if matches!(rest, Rest::Leading { .. } | Rest::Asking { .. }) {
            effects.quiesces.extend(self.others().map(|id| self.quiesce(id, QuiesceKind::Over)));
        }
    }

    /// A node has not been heard from for an election timeout.
    pub(crate) fn node_is_silent(&mut self, node: u64, effects: &mut Effects) {
        match self.quiescence.rest {
            Rest::Following if self.leader_node() == Some(node) => self.leader_lost(node, effects),
            Rest::Leading { .. } if self.state.nodes.values().any(|on| *on == node) => {
                // If that was one too many, it must find out that it does not lead any more.
                self.wake(effects);
            }
            _ => {}
        }
    }

    /// A node is heard from again: members there may lack what was written meanwhile, or the news that they sleep.
    pub(crate) fn node_is_back(&mut self, node: u64, effects: &mut Effects) {
        if let Rest::Leading { absent } = &self.quiescence.rest
            && absent.iter().any(|id| self.node_of(*id) == Some(node))
        {
            self.wake(effects);
        }
    }
}
