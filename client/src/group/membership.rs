//! What a member owns, shared by the service's end, the events in handlers' hands, and the session with the coordinator.
//!
//! Owns: when a partition's events may be handed out, and what may be committed and released. Never: waits, or talks to brokers.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicI64};
use std::sync::{Arc, OnceLock};
use std::task::Waker;

use highwater_proto::v1;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, watch};

use super::tracker::Tracker;
use crate::breaker::BreakerState;
use crate::consumer::queue::{Account, Order, Place, Places, Seek};
use crate::error::ConsumeError;
use crate::types::Start;

/// A partition that this member owns.
#[derive(Debug)]
struct Held {
    epoch: u64,
    /// Of the topic that it belongs to; none if the coordinator did not say.
    topic_id: Option<Arc<str>>,
    /// Distinguishes what was asked for before the reading was begun anew.
    generation: u64,
    /// Events may be handed out.
    is_open: bool,
    /// Where to begin if nothing was handed out yet.
    start: Start,
    tracker: Tracker,
    /// What was sent to the coordinator.
    sent: Option<i64>,
}

impl Held {
    /// It is asked back, and its events are in nobody's hands.
    fn is_idle(&self) -> bool {
        !self.is_open && self.tracker.out() == 0
    }
}

#[derive(Debug, Default)]
struct State {
    held: BTreeMap<u32, Held>,
    /// Epochs at which partitions were released: what is still said of those is old.
    released: BTreeMap<u32, u64>,
    /// What the coordinator still counts as this member's after that: the release may have been lost with the coordinator before.
    unheard: BTreeMap<u32, u64>,
    generations: u64,
    /// Events that trackers remember, in all.
    undone: usize,
    /// Counts what shows that the service is at work.
    progress: u64,
    /// What is given event by event, see [`Run`].
    run: Option<HandedOut>,
    extend_ms: u32,
    troubles: VecDeque<ConsumeError>,
    has_ended: bool,
    waker: Option<Waker>,
}

impl State {
    /// A partition is not this member's any more.
    fn let_go(&mut self, partition: u32) {
        if let Some(held) = self.held.remove(&partition) {
            self.undone -= held.tracker.undone();
        }
    }

    /// Tells a partition's tracker something, if this member still has the partition at this epoch. True if the partition is free to
    /// release now.
    fn track(&mut self, it: HandedOut, tell: impl FnOnce(&mut Tracker)) -> bool {
        let held = self.held.get_mut(&it.partition).filter(|held| held.epoch == it.epoch);
        let Some(held) = held else { return false };
        self.undone -= held.tracker.undone();
        tell(&mut held.tracker);
        self.undone += held.tracker.undone();
        held.is_idle()
    }

    /// What the service is to be given; it is woken when there is something else.
    fn next(&mut self, undone_max: usize, waker: &Waker) -> Next {
        if let Some(trouble) = self.troubles.pop_front() {
            return Next::Trouble(trouble);
        }
        if self.has_ended {
            return Next::End;
        }
        if !self.waker.as_ref().is_some_and(|known| known.will_wake(waker)) {
            self.waker = Some(waker.clone());
        }
        if self.undone < undone_max { Next::Event } else { Next::Later }
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// Events of one partition that are given one after the other, each done when the next is asked for. To the tracker they are one
/// thing, which is out: what a lock would cost for each is more than all else that is done for one.
#[derive(Debug)]
struct Run {
    /// The offset of the last one given: all before are done.
    last: AtomicI64,
    /// There is none, or something else has to be looked at before it goes on.
    is_over: AtomicBool,
}

/// See the module.
///
/// Invariant: an event is handed out only while its partition is owned and not asked back; what was released is not committed
/// afterwards.
#[derive(Debug)]
pub(crate) struct Membership {
    topic: Arc<str>,
    /// Where partitions without progress begin.
    start: Start,
    /// Most events that are not done, or wait for one that is not.
    undone_max: usize,
    state: Mutex<State>,
    run: Run,
    /// The session knows that there is something to commit, and will look when its interval is over.
    is_told: AtomicBool,
    orders: mpsc::UnboundedSender<Order>,
    places: Places,
    account: Arc<Account>,
    /// While it is not closed, nothing is taken on purpose.
    breaker: OnceLock<watch::Receiver<BreakerState>>,
    /// Something became done, or free to release.
    pub(super) changed: Notify,
}

/// What a service is to be given.
#[derive(Debug)]
pub(super) enum Next {
    /// An event, when there is one.
    Event,
    /// What it has to be told.
    Trouble(ConsumeError),
    /// As many events as may be are in its hands, or wait for one that is.
    Later,
    /// Nothing follows any more.
    End,
}

/// Events of one partition that arrived together, or one of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrived {
    pub(super) partition: u32,
    /// Of the reading of the partition that they came by.
    pub(super) generation: u64,
    /// Offsets.
    pub(super) first: i64,
    pub(super) last: i64,
    pub(super) events: usize,
}

/// What was handed out together: an event or a batch, by the offset of the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HandedOut {
    pub(super) partition: u32,
    pub(super) epoch: u64,
    pub(super) first: i64,
}

/// A commit to be sent.
pub(super) type Offsets = Vec<v1::OwnedOffset>;

impl Membership {
    pub(super) fn new(
        topic: Arc<str>,
        start: Start,
        undone_max: usize,
        orders: mpsc::UnboundedSender<Order>,
        places: Places,
        account: Arc<Account>,
    ) -> Self {
        let (state, is_told, breaker, changed) = Default::default();
        let run = Run { last: AtomicI64::new(0), is_over: AtomicBool::new(true) };
        Self {
            topic,
            start,
            undone_max,
            state,
            run,
            is_told,
            orders,
            places,
            account,
            breaker,
            changed,
        }
    }

    /// Takes in what the coordinator says this member owns.
    pub(super) fn assigned(&self, assigned: &[v1::AssignedPartition]) {
        let ours = assigned.iter().filter(|it| it.topic == *self.topic);
        let now: BTreeMap<u32, &v1::AssignedPartition> =
            ours.map(|it| (it.partition, it)).collect();
        let mut state = self.state.lock();
        self.run.is_over.store(true, SeqCst);
        let run = state.run;
        state.unheard.clear();
        let is_lost = |partition: &u32, held: &Held| {
            now.get(partition).is_none_or(|it| it.epoch != held.epoch)
        };
        let lost = state.held.iter().filter(|(partition, held)| is_lost(partition, held));
        let lost: Vec<u32> = lost.map(|(partition, _)| *partition).collect();
        for partition in lost {
            state.let_go(partition);
            self.stop(partition);
        }
        for (partition, it) in now {
            if state.released.get(&partition).is_some_and(|epoch| *epoch >= it.epoch) {
                // Most often the release is on its way, and saying it twice does no harm. Were it lost and not said again, nobody
                // would read the partition for as long as this member lives.
                state.unheard.insert(partition, it.epoch);
                continue;
            }
            state.generations += 1;
            let generation = state.generations;
            let held = state.held.entry(partition).or_insert_with(|| Held {
                epoch: it.epoch,
                topic_id: (!it.topic_id.is_empty()).then(|| Arc::from(&*it.topic_id)),
                generation,
                is_open: false,
                start: it.committed_offset.map_or(self.start, Start::Offset),
                tracker: Tracker::default(),
                sent: it.committed_offset,
            });
            if held.is_open && it.is_wanted_back {
                held.is_open = false;
                self.stop(partition);
            } else if !held.is_open && !it.is_wanted_back {
                held.is_open = true;
                held.generation = generation;
                let run = run.filter(|run| (run.partition, run.epoch) == (partition, held.epoch));
                let behind_run = run.map(|_| self.run.last.load(SeqCst) + 1);
                let position = behind_run.or(held.tracker.position());
                let start = position.map_or(held.start, Start::Offset);
                self.begin(partition, held.topic_id.clone(), start, generation);
            }
        }
        // What was taken away left room.
        state.wake();
        drop(state);
        self.changed.notify_one();
    }

    /// Everything is lost: this member does not count as one any more.
    pub(super) fn lost(&self) {
        self.assigned(&[]);
    }

    fn begin(&self, partition: u32, topic_id: Option<Arc<str>>, to: Start, generation: u64) {
        let position = match to {
            Start::Offset(offset) => Some(offset),
            Start::Earliest | Start::Latest | Start::Timestamp(_) => None,
        };
        let place = Place { position, generation, ..Place::default() };
        self.places.lock().insert(partition, place);
        // The driver lives as long as the service's end.
        _ = self.orders.send(Order::Seek(Seek { partition, to, generation, topic_id }));
    }

    fn stop(&self, partition: u32) {
        self.places.lock().remove(&partition);
        _ = self.orders.send(Order::Stop(partition));
    }

    /// Begins a partition anew at its first event: where the group had come to is not in the log any more.
    pub(super) fn begin_anew(&self, partition: u32) {
        let mut state = self.state.lock();
        state.generations += 1;
        let generation = state.generations;
        let Some(held) = state.held.get_mut(&partition).filter(|held| held.is_open) else { return };
        held.generation = generation;
        let forgotten = std::mem::take(&mut held.tracker).undone();
        held.start = Start::Earliest;
        let topic_id = held.topic_id.clone();
        state.undone -= forgotten;
        self.stop(partition);
        self.begin(partition, topic_id, Start::Earliest, generation);
    }

    /// What the service is to be given; `done` is what it had last, if that is done with it. It is woken when there is something else.
    pub(super) fn next(&self, done: Option<HandedOut>, waker: &Waker) -> Next {
        let mut state = self.state.lock();
        let is_news = done.is_some_and(|done| self.note_done(&mut state, done));
        let next = state.next(self.undone_max, waker);
        drop(state);
        self.tell_session(is_news);
        next
    }

    /// Hands out what arrived, if it may be. It may begin a run.
    pub(super) fn hand_out(&self, arrived: Arrived, begins_run: bool) -> Option<HandedOut> {
        let Arrived { partition, generation, first, last, events } = arrived;
        let mut state = self.state.lock();
        let held = state.held.get_mut(&partition)?;
        if !held.is_open || held.generation != generation {
            return None;
        }
        let it = HandedOut { partition, epoch: held.epoch, first };
        state.track(it, |tracker| tracker.handed_out(first, last, events));
        state.progress += 1;
        if begins_run {
            state.run = Some(it);
            self.run.last.store(last, SeqCst);
            self.run.is_over.store(false, SeqCst);
        }
        Some(it)
    }

    /// Whether the next event of the run may be given without a look at anything else.
    pub(super) fn goes_on(&self) -> bool {
        !self.run.is_over.load(SeqCst)
    }

    /// The run goes on with this event.
    pub(super) fn gave(&self, offset: i64) {
        self.run.last.store(offset, SeqCst);
        if !self.is_told.load(SeqCst) {
            self.tell_session(self.is_first_news());
        }
    }

    /// An event is done.
    pub(super) fn done(&self, it: HandedOut) {
        let mut state = self.state.lock();
        let was_full = state.undone >= self.undone_max;
        let is_news = self.note_done(&mut state, it);
        if was_full && state.undone < self.undone_max {
            state.wake();
        }
        drop(state);
        self.tell_session(is_news);
    }

    /// An event was dropped without a word.
    pub(super) fn dropped(&self, it: HandedOut) {
        let mut state = self.state.lock();
        let is_free = state.track(it, |tracker| tracker.dropped(it.first));
        let is_news = is_free | self.is_first_news();
        drop(state);
        self.tell_session(is_news);
    }

    /// Something is done, a run as a whole; true if the session has to be told.
    fn note_done(&self, state: &mut State, it: HandedOut) -> bool {
        let run = state.run.take_if(|run| *run == it);
        let last = run.map(|_| self.run.last.load(SeqCst));
        if last.is_some() {
            self.run.is_over.store(true, SeqCst);
        }
        state.progress += 1 + last.map_or(0, |last| last.abs_diff(it.first));
        let is_free = state.track(it, |tracker| {
            if let Some(last) = last {
                tracker.grown(it.first, last);
            }
            tracker.done(it.first);
        });
        is_free | self.is_first_news()
    }

    /// Whether this is the first news since the session looked.
    fn is_first_news(&self) -> bool {
        !self.is_told.swap(true, SeqCst)
    }

    /// Not with every event: to wake a task costs more than all else that is done for one here.
    fn tell_session(&self, is_news: bool) {
        if is_news {
            self.changed.notify_one();
        }
    }

    /// Progress that was not sent yet.
    pub(super) fn take_commit(&self) -> Offsets {
        let mut state = self.state.lock();
        // Before the look at the run: what is given after it is news again.
        self.is_told.store(false, SeqCst);
        let mut offsets = Vec::new();
        let State { held, run, .. } = &mut *state;
        for (partition, held) in held {
            let Some(offset) = held.tracker.committable() else { continue };
            let is_run =
                *run == Some(HandedOut { partition: *partition, epoch: held.epoch, first: offset });
            let offset = if is_run { self.run.last.load(SeqCst) } else { offset };
            if held.sent.is_some_and(|sent| sent >= offset) {
                continue;
            }
            held.sent = Some(offset);
            let partition = Some(self.owned(*partition, held.epoch));
            offsets.push(v1::OwnedOffset { partition, offset, metadata: String::new() });
        }
        offsets
    }

    /// What was sent may not have arrived: it will be sent again.
    pub(super) fn forget_sent(&self) {
        for held in self.state.lock().held.values_mut() {
            held.sent = None;
        }
        // Also if nothing else becomes done.
        self.changed.notify_one();
    }

    /// Partitions that are asked back and whose events are in nobody's hands: they are released from here on. With them those whose
    /// release the coordinator has not heard of.
    pub(super) fn take_released(&self) -> Vec<v1::OwnedPartition> {
        let mut state = self.state.lock();
        // What became done since the last commit is committed first.
        let is_free = |held: &Held| {
            held.is_idle() && held.tracker.committable().is_none_or(|it| held.sent >= Some(it))
        };
        let free = state.held.iter().filter(|(_, held)| is_free(held));
        let free: Vec<(u32, u64)> =
            free.map(|(partition, held)| (*partition, held.epoch)).collect();
        for (partition, epoch) in &free {
            state.let_go(*partition);
            state.released.insert(*partition, *epoch);
        }
        let unheard = std::mem::take(&mut state.unheard);
        let all = free.into_iter().chain(unheard);
        all.map(|(partition, epoch)| self.owned(partition, epoch)).collect()
    }

    /// Whether some partition is asked back and could be released now.
    pub(super) fn can_release(&self) -> bool {
        let state = self.state.lock();
        !state.unheard.is_empty() || state.held.values().any(Held::is_idle)
    }

    /// No event is handed out any more.
    pub(super) fn shut(&self) {
        let mut state = self.state.lock();
        self.run.is_over.store(true, SeqCst);
        for (partition, held) in &mut state.held {
            if std::mem::take(&mut held.is_open) {
                self.stop(*partition);
            }
        }
    }

    fn owned(&self, partition: u32, epoch: u64) -> v1::OwnedPartition {
        v1::OwnedPartition { topic: self.topic.to_string(), partition, epoch }
    }

    /// The partitions whose events this member is given.
    pub(super) fn partitions(&self) -> Vec<u32> {
        let state = self.state.lock();
        state
            .held
            .iter()
            .filter(|(_, held)| held.is_open)
            .map(|(partition, _)| *partition)
            .collect()
    }

    /// What shows that the service is at work: a count that grows, and whether it has nothing to do.
    pub(super) fn progress(&self) -> (u64, bool) {
        let state = self.state.lock();
        let is_handling = state.held.values().any(|held| held.tracker.out() > 0);
        let of_run = state.run.map_or(0, |run| self.run.last.load(SeqCst).abs_diff(run.first));
        (state.progress + of_run, !is_handling && !self.account.is_holding())
    }

    /// The service takes nothing while this breaker is not closed: its partitions are paused then.
    pub(super) fn pauses_with(&self, breaker: watch::Receiver<BreakerState>) {
        // A member has one breaker at the most.
        _ = self.breaker.set(breaker);
    }

    fn is_paused(&self) -> bool {
        self.breaker.get().is_some_and(|breaker| *breaker.borrow() != BreakerState::Closed)
    }

    /// The handler needs so much longer.
    pub(super) fn extend(&self, ms: u32) {
        let mut state = self.state.lock();
        state.extend_ms = state.extend_ms.max(ms);
        drop(state);
        self.changed.notify_one();
    }

    /// Whether the coordinator has to be told of more time.
    pub(super) fn is_extended(&self) -> bool {
        self.state.lock().extend_ms > 0
    }

    pub(super) fn take_extension(&self) -> u32 {
        std::mem::take(&mut self.state.lock().extend_ms)
    }

    /// What this member says of its partitions.
    pub(super) fn reports(&self) -> Vec<v1::PartitionReport> {
        use v1::MemberActivity as Activity;
        let state = self.state.lock();
        let places = self.places.lock();
        let (holds, is_paused) = (self.account.is_holding(), self.is_paused());
        let report = |partition: &u32| {
            let place = places.get(partition).copied().unwrap_or_default();
            let activity = match (place.position, place.high_watermark) {
                _ if place.ended => Activity::RetentionPassed,
                _ if is_paused => Activity::Paused,
                (_, None) => Activity::NoLeader,
                (Some(position), Some(high_watermark)) if position >= high_watermark => {
                    Activity::CaughtUp
                }
                _ if holds => Activity::OutOfCredit,
                _ => Activity::Reading,
            };
            let (topic, partition) = (self.topic.to_string(), *partition);
            v1::PartitionReport { topic, partition, activity: activity.into() }
        };
        state.held.keys().map(report).collect()
    }

    /// Tells the service about something.
    pub(super) fn tell(&self, trouble: ConsumeError) {
        let mut state = self.state.lock();
        // A service that does not listen is told the latest.
        state.troubles.truncate(TROUBLES_MAX - 1);
        state.troubles.push_back(trouble);
        self.run.is_over.store(true, SeqCst);
        state.wake();
    }

    /// Nothing follows any more.
    pub(super) fn end(&self) {
        let mut state = self.state.lock();
        state.has_ended = true;
        self.run.is_over.store(true, SeqCst);
        state.wake();
    }
}

/// Things that a service has to be told and did not listen to.
const TROUBLES_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn membership() -> Membership {
        let (orders, _) = mpsc::unbounded_channel();
        let account = Arc::new(Account::new());
        Membership::new("orders".into(), Start::Earliest, 3, orders, Places::default(), account)
    }

    fn assigned(epoch: u64, is_wanted_back: bool) -> v1::AssignedPartition {
        let (topic, committed_offset) = ("orders".to_owned(), None);
        let topic_id = "1".to_owned();
        v1::AssignedPartition {
            topic,
            topic_id,
            partition: 0,
            epoch,
            committed_offset,
            is_wanted_back,
        }
    }

    #[test]
    fn a_release_that_the_coordinator_did_not_hear_is_said_again() {
        let membership = membership();
        let released = [membership.owned(0, 7)];
        membership.assigned(&[assigned(7, false)]);
        membership.assigned(&[assigned(7, true)]);
        assert_eq!(membership.take_released(), released);
        // It died before that was stored; the next one knows nothing of it.
        membership.assigned(&[assigned(7, false)]);
        assert_eq!(membership.partitions(), [0; 0], "it was released at this epoch");
        assert!(membership.can_release());
        assert_eq!(membership.take_released(), released);
        assert!(!membership.can_release());
        membership.assigned(&[assigned(8, false)]);
        assert!(!membership.can_release());
        assert_eq!(membership.partitions(), [0], "given anew");
    }

    fn hand_out(membership: &Membership, offset: i64) -> Option<HandedOut> {
        let (partition, generation, first, last) = (0, 1, offset, offset);
        membership.hand_out(Arrived { partition, generation, first, last, events: 1 }, false)
    }

    fn has_room(membership: &Membership, waker: &Waker) -> bool {
        match membership.next(None, waker) {
            Next::Event => true,
            Next::Later => false,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn no_more_is_handed_out_than_may_be_undone() {
        let membership = membership();
        let (waker, woken) = counting_waker();
        let of = |first| HandedOut { partition: 0, epoch: 1, first };
        membership.assigned(&[assigned(1, false)]);
        for offset in 0..3 {
            assert!(has_room(&membership, &waker));
            assert!(hand_out(&membership, offset).is_some());
        }
        assert!(!has_room(&membership, &waker));
        membership.done(of(1));
        assert!(!has_room(&membership, &waker), "it waits for the one before");
        assert_eq!(woken.0.load(Ordering::Relaxed), 0);
        membership.done(of(0));
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
        assert!(has_room(&membership, &waker));
        for offset in 3..5 {
            assert!(hand_out(&membership, offset).is_some());
        }
        assert!(!has_room(&membership, &waker));
        membership.lost();
        assert_eq!(woken.0.load(Ordering::Relaxed), 2, "what is lost need not be remembered");
        assert!(has_room(&membership, &waker));
    }

    /// Whether the session was told something since the last call.
    fn is_told(membership: &Membership) -> bool {
        use futures::FutureExt;
        membership.changed.notified().now_or_never().is_some()
    }

    #[test]
    fn the_session_is_told_of_the_first_news_and_of_what_is_free() {
        let membership = membership();
        let (waker, _) = counting_waker();
        membership.assigned(&[assigned(1, false)]);
        assert!(is_told(&membership), "what it owns changed");
        let first = hand_out(&membership, 0);
        let next = |done| _ = membership.next(done, &waker);
        next(first);
        assert!(is_told(&membership), "there is something to commit");
        let second = hand_out(&membership, 1);
        next(second);
        assert!(!is_told(&membership), "it will look anyway");
        assert_eq!(membership.take_commit().first().map(|it| it.offset), Some(2));
        let third = hand_out(&membership, 2);
        next(third);
        assert!(is_told(&membership), "it has looked since");
        let last = hand_out(&membership, 3);
        membership.assigned(&[assigned(1, true)]);
        assert!(is_told(&membership));
        membership.done(last.unwrap());
        assert!(is_told(&membership), "the partition is free to release");
        membership.forget_sent();
        assert!(is_told(&membership), "what was sent has to be sent again");
    }

    #[test]
    fn partitions_are_reported_as_paused_while_the_breaker_is_open() {
        let membership = membership();
        membership.assigned(&[assigned(1, false)]);
        let said = || membership.reports().first().map(v1::PartitionReport::activity);
        assert_eq!(said(), Some(v1::MemberActivity::NoLeader));
        let (state, watched) = watch::channel(BreakerState::Closed);
        membership.pauses_with(watched);
        assert_eq!(said(), Some(v1::MemberActivity::NoLeader));
        state.send_replace(BreakerState::Open);
        assert_eq!(said(), Some(v1::MemberActivity::Paused));
        state.send_replace(BreakerState::Closed);
        assert_eq!(said(), Some(v1::MemberActivity::NoLeader));
    }

    fn begin_run(membership: &Membership, offset: i64) -> Option<HandedOut> {
        let (partition, generation, first, last) = (0, 1, offset, offset);
        membership.hand_out(Arrived { partition, generation, first, last, events: 1 }, true)
    }

    /// What a commit says now, of the one partition there is.
    fn committed(membership: &Membership) -> Option<i64> {
        membership.take_commit().first().map(|it| it.offset)
    }

    #[test]
    fn of_a_run_all_but_the_last_given_is_done() {
        let membership = membership();
        let (waker, _) = counting_waker();
        membership.assigned(&[assigned(1, false)]);
        assert!(!membership.goes_on(), "nothing was given yet");
        let run = begin_run(&membership, 10);
        assert!(membership.goes_on());
        assert_eq!(committed(&membership), Some(10));
        membership.gave(11);
        membership.gave(15);
        let (progress, _) = membership.progress();
        assert_eq!(committed(&membership), Some(15), "it is still being handled");
        assert!(is_told(&membership));
        membership.gave(16);
        assert!(is_told(&membership), "it has looked since");
        membership.next(run, &waker);
        assert!(!membership.goes_on());
        assert!(membership.progress().0 > progress);
        assert_eq!(committed(&membership), Some(17));
    }

    #[test]
    fn a_run_ends_when_its_partition_is_asked_back_and_goes_on_behind_it() {
        let (orders, mut ordered) = mpsc::unbounded_channel();
        let (places, account) = (Places::default(), Arc::new(Account::new()));
        let membership =
            Membership::new("orders".into(), Start::Earliest, 3, orders, places, account);
        let (waker, _) = counting_waker();
        membership.assigned(&[assigned(1, false)]);
        let run = begin_run(&membership, 0);
        membership.gave(1);
        membership.assigned(&[assigned(1, true)]);
        assert!(!membership.goes_on());
        assert!(!membership.can_release(), "an event is being handled");
        membership.assigned(&[assigned(1, false)]);
        let mut begun = None;
        while let Ok(order) = ordered.try_recv() {
            if let Order::Seek(seek) = order {
                begun = Some(seek.to);
            }
        }
        assert_eq!(begun, Some(Start::Offset(2)), "what was given does not come again");
        membership.next(run, &waker);
        assert_eq!(committed(&membership), Some(2));
        membership.assigned(&[assigned(1, true)]);
        assert!(membership.can_release());
        let run = begin_run(&membership, 2);
        assert!(run.is_none() && !membership.goes_on(), "it is asked back");
    }

    #[test]
    fn whatever_a_service_has_to_be_told_ends_a_run() {
        type Happens = fn(&Membership);
        let cases: [Happens; 3] = [Membership::end, Membership::shut, Membership::lost];
        for happens in cases {
            let membership = membership();
            membership.assigned(&[assigned(1, false)]);
            assert!(begin_run(&membership, 0).is_some());
            happens(&membership);
            assert!(!membership.goes_on());
        }
    }

    struct Woken(AtomicUsize);

    impl std::task::Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn counting_waker() -> (Waker, Arc<Woken>) {
        let woken = Arc::new(Woken(AtomicUsize::new(0)));
        (Waker::from(Arc::clone(&woken)), woken)
    }
}
