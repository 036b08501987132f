//! What must be true in every run, under every fault.
//!
//! Owns: the record of everything that was ever appended, committed, acknowledged and read. Never: influences a run.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use bytes::Bytes;
use highwater_proto::batch::BatchHeader;
use highwater_proto::v1::Acks;
use highwater_storage::StoredEntry;

use super::ledger::Accounts;
use super::machine::REPLICA_BASE;
use super::plan::Tally;
use crate::replica::core::{Appended, Core};
use crate::replica::envelope::EntryKind;
use crate::replica::members::Members;

/// An entry that some replica has appended. Log matching: whoever has one with this index and term has this very one.
#[derive(Clone, Copy, Debug)]
struct Known {
    fingerprint: u64,
    prev_term: u64,
    /// Replicas that have ever appended it, and that have ever said it was durable, as bits.
    appended: u128,
    synced: u128,
}

/// A committed entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Committed {
    term: u64,
    /// Term of the leader that committed it.
    by_term: u64,
}

/// What was seen of a replica since it last started.
#[derive(Debug, Default)]
pub(super) struct View {
    /// Index of the first of `terms`.
    base: u64,
    terms: std::collections::VecDeque<u64>,
    durable: u64,
    committed: u64,
    high_watermark: u64,
    log_start: u64,
    /// The term in which it led.
    leads_in: Option<u64>,
    is_new: bool,
    /// The members of the group as this replica has applied them, and those before if they changed just now.
    members: Arc<Members>,
    before: Option<Arc<Members>>,
}

impl View {
    pub(super) fn new() -> Self {
        Self { is_new: true, ..Self::default() }
    }

    /// Takes note of other members; true if that is a joint configuration.
    pub(super) fn note_members(&mut self, changed: Option<Members>) -> bool {
        self.before = None;
        let Some(members) = changed else { return false };
        let is_joint = !members.outgoing.is_empty() && self.members.outgoing.is_empty();
        self.before = Some(std::mem::replace(&mut self.members, Arc::new(members)));
        is_joint
    }

    pub(super) fn members(&self) -> &Members {
        &self.members
    }

    /// Whether these replicas are enough to decide, by the members that counted at the last look or now.
    fn is_quorum(&self, holders: u128) -> bool {
        let enough = |members: &Arc<Members>| is_quorum(members, |id| holders & bit(id) != 0);
        enough(&self.members) || self.before.as_ref().is_some_and(enough)
    }

    fn end(&self) -> u64 {
        self.base + self.terms.len() as u64
    }
}

/// What [`Oracle::observe`] noticed beside violations, which are panics.
#[derive(Debug, Default)]
pub(super) struct Noticed {
    pub(super) truncated: bool,
    /// A new leader, with its term.
    pub(super) elected: Option<u64>,
    /// Something was committed that nobody had committed before.
    pub(super) progress: bool,
    pub(super) log_start_moved: bool,
}

#[derive(Default)]
pub(super) struct Oracle {
    /// Whether acknowledgements are also held against what the replicas have said before, and not only against what is left
    /// in the end. Off, to show that what users would see is enough to find a bug.
    pub(super) omniscient: bool,
    entries: HashMap<(u64, u64), Known>,
    /// Batches by base offset and term: index and checksum.
    batches: HashMap<(u64, u64), (u64, u32)>,
    committed: BTreeMap<u64, Committed>,
    leaders: BTreeMap<u64, u64>,
    /// By (producer, sequence): base offset, term, index.
    acknowledged: BTreeMap<(i64, i32), (u64, u64, u64)>,
    /// Where the last of them ends.
    acknowledged_end: u64,
    /// The ledger's digest by index.
    digests: BTreeMap<u64, u64>,
    /// By (client, sequence): the number it got.
    numbers: BTreeMap<(u64, u64), u64>,
}

impl Oracle {
    pub(super) fn new() -> Self {
        Self { omniscient: true, ..Self::default() }
    }

    /// The highest index that any replica has committed.
    pub(super) fn committed(&self) -> u64 {
        self.committed.last_key_value().map_or(0, |(index, _)| *index)
    }

    /// Looks at a replica after anything may have changed: log matching, one leader a term, leader completeness; what is
    /// committed was durable on a majority, never changes, and never goes back.
    pub(super) fn observe(&mut self, core: &Core, view: &mut View) -> Noticed {
        let visible = core.visible();
        let is_first = view.is_new;
        // Whoever led at the last look may have committed something and stepped down since.
        let led_in = view.leads_in;
        view.leads_in = visible.is_leader.then_some(visible.term);
        let leads_in = view.leads_in.or(led_in);
        if let Some(by_term) = leads_in {
            self.observe_dropped(core, view, by_term);
        }
        let truncated = self.observe_log(core, view);
        let mut noticed = Noticed { truncated, ..Noticed::default() };
        if visible.is_leader {
            let leader = *self.leaders.entry(visible.term).or_insert(core.replica());
            assert_eq!(leader, core.replica(), "two leaders in term {}", visible.term);
            if led_in != Some(visible.term) {
                noticed.elected = Some(visible.term);
                self.check_completeness(core, visible.term);
            }
        }
        noticed.progress = self.observe_commit(core, view, leads_in);
        assert!(visible.log_start_offset <= visible.high_watermark, "{visible:?}");
        assert!(visible.high_watermark <= visible.log_end_offset, "{visible:?}");
        assert!(visible.high_watermark >= view.high_watermark, "the high watermark goes back");
        assert!(visible.log_start_offset >= view.log_start, "the log's start goes back");
        noticed.log_start_moved = !is_first && visible.log_start_offset > view.log_start;
        view.high_watermark = visible.high_watermark;
        view.log_start = visible.log_start_offset;
        noticed
    }

    /// What a leader has committed, applied, and dropped from the head of its log since the last look.
    fn observe_dropped(&mut self, core: &Core, view: &mut View, by_term: u64) {
        let dropped = core.reader().first_index().min(view.end());
        for index in (view.committed + 1).max(view.base)..dropped {
            let term = view.terms[usize::try_from(index - view.base).expect("in the view")];
            if index <= core.durable_index()
                && let Some(known) = self.entries.get_mut(&(index, term))
            {
                known.synced |= bit(core.replica());
            }
            self.learn_commit(core, view, index, term, by_term);
            view.committed = index;
        }
    }

    /// Learns what was appended and what became durable; true if a suffix was cut.
    fn observe_log(&mut self, core: &Core, view: &mut View) -> bool {
        let reader = core.reader();
        let (first, last) = (reader.first_index(), reader.last_index());
        let mut truncated = false;
        if view.is_new || first > view.end() {
            view.base = first;
            view.terms.clear();
            view.is_new = false;
            view.durable = first - 1;
        }
        while view.base < first {
            view.base += 1;
            view.terms.pop_front();
        }
        while view.end() > last + 1
            || view.terms.back().is_some_and(|term| reader.term(view.end() - 1) != Some(*term))
        {
            view.terms.pop_back();
            truncated = true;
        }
        view.durable = view.durable.min(view.end() - 1).max(first - 1);
        let mut next = view.end();
        let mut prev_term = reader.term(next - 1).expect("the term before an entry is known");
        while next <= last {
            let new =
                reader.entries(next, last + 1, 1 << 20).expect("what was appended is readable");
            for entry in &new {
                self.learn(core.replica(), entry, prev_term);
                prev_term = entry.meta.term;
                view.terms.push_back(prev_term);
            }
            next += new.len() as u64;
        }
        let durable = core.durable_index().min(last);
        for index in view.durable + 1..=durable {
            let at = usize::try_from(index - view.base).expect("in the view");
            if let Some(known) = self.entries.get_mut(&(index, view.terms[at])) {
                known.synced |= bit(core.replica());
            }
        }
        view.durable = view.durable.max(durable);
        truncated
    }

    fn learn(&mut self, replica: u64, entry: &StoredEntry, prev_term: u64) {
        let (index, term) = (entry.meta.index, entry.meta.term);
        let fingerprint = fingerprint(entry);
        let new = Known { fingerprint, prev_term, appended: 0, synced: 0 };
        let known = self.entries.entry((index, term)).or_insert(new);
        assert_eq!(
            known.fingerprint, fingerprint,
            "entry {index} of term {term} differs on {replica}"
        );
        assert_eq!(
            known.prev_term, prev_term,
            "the log before entry {index} of term {term}, {replica}"
        );
        known.appended |= bit(replica);
        if entry.meta.kind == EntryKind::Batch as u8 {
            let header = BatchHeader::read(&entry.payload).expect("a stored batch");
            self.batches.insert((entry.base_offset, term), (index, header.crc));
        }
    }

    fn check_completeness(&self, core: &Core, term: u64) {
        let reader = core.reader();
        let first = reader.first_index();
        for (index, committed) in self.committed.range(first..).rev().take(500) {
            assert!(
                committed.by_term >= term || reader.term(*index) == Some(committed.term),
                "the leader of term {term}, {}, lacks entry {index} of term {}, committed in {}",
                core.replica(),
                committed.term,
                committed.by_term
            );
        }
    }

    fn observe_commit(&mut self, core: &Core, view: &mut View, leads_in: Option<u64>) -> bool {
        let committed = core.committed();
        assert!(committed >= view.committed, "the commit goes back on {}", core.replica());
        let reader = core.reader();
        let mut progress = false;
        for index in (view.committed + 1).max(view.base)..=committed {
            let term = reader.term(index).expect("what is committed is in the log");
            if let Some(known) = self.committed.get(&index) {
                assert_eq!(known.term, term, "committed entry {index} on {}", core.replica());
                continue;
            }
            assert!(
                leads_in.is_some() || !self.omniscient,
                "{} commits entry {index} before its leader",
                core.replica()
            );
            self.learn_commit(core, view, index, term, leads_in.unwrap_or(core.visible().term));
            progress = true;
        }
        view.committed = committed;
        progress
    }

    fn learn_commit(&mut self, core: &Core, view: &View, index: u64, term: u64, by_term: u64) {
        let known = self.entries.get(&(index, term)).expect("what is committed was appended");
        let holders = known.synced;
        assert!(
            view.is_quorum(holders) || !self.omniscient,
            "{} commits entry {index}, which is durable on {holders:b} only, with {:?}",
            core.replica(),
            view.members
        );
        let before = self.committed.insert(index, Committed { term, by_term });
        assert!(before.is_none_or(|before| before.term == term), "{before:?} at {index} before");
    }

    /// A replica lost what it had not synced. What nobody else had appended either was never there: a voter that is alone may lead in
    /// the same term again, and begin it with another entry.
    pub(super) fn power_lost(&mut self, replica: u64) {
        let own = bit(replica);
        self.entries.retain(|_, known| known.appended != own || known.synced & own != 0);
    }

    /// A batch was acknowledged: it is where the publisher is told, and as durable as it is told.
    pub(super) fn acknowledged(
        &mut self,
        (replica, view): (u64, &View),
        (producer, sequence): (i64, i32),
        acks: Acks,
        appended: &Appended,
        batch: &Bytes,
    ) {
        let key = (appended.base_offset, appended.leader_epoch);
        let what = format!("{producer}:{sequence} at {} of term {}", key.0, key.1);
        let (index, crc) = *self.batches.get(&key).unwrap_or_else(|| {
            panic!("{what} was acknowledged, and nobody ever appended such a batch")
        });
        let sent = BatchHeader::read(batch).expect("our own batch");
        assert_eq!(sent.crc, crc, "{what} is another batch");
        let known = self.entries[&(index, key.1)];
        let is_committed = self.committed.get(&index).is_some_and(|found| found.term == key.1);
        match acks {
            _ if is_committed || !self.omniscient => {}
            Acks::Quorum => {
                let holders = known.appended;
                assert!(view.is_quorum(holders), "{what}: appended on {holders:b} only");
            }
            Acks::Leader => {
                assert!(known.appended & bit(replica) != 0, "{what}: not appended");
            }
            _ => panic!("{what}: not committed"),
        }
        if acks == Acks::QuorumFsync {
            let value = (key.0, key.1, index);
            self.acknowledged_end =
                self.acknowledged_end.max(key.0 + u64::from(sent.offset_span()));
            let before = self.acknowledged.insert((producer, sequence), value);
            assert!(
                before.is_none_or(|before| before == value),
                "{what} was acknowledged at {before:?} before"
            );
        }
    }

    /// Where the last batch that was acknowledged as durable ends.
    pub(super) fn acknowledged_end(&self) -> u64 {
        self.acknowledged_end
    }

    /// A node said where the partition ends, which is not before anything that had been acknowledged before it was asked.
    pub(super) fn told_end(&self, node: u64, end: u64, acknowledged: u64) {
        assert!(
            end >= acknowledged,
            "node {node} says the partition ends at {end}, and {acknowledged} had been reached before"
        );
    }

    /// A command was answered: it has this number, for good, and no other has it.
    pub(super) fn answered(&mut self, client: u64, sequence: u64, number: u64) {
        let before = self.numbers.insert((client, sequence), number);
        assert!(
            before.is_none_or(|before| before == number),
            "{client}:{sequence} {before:?} {number}"
        );
    }

    /// The state machine of a replica: equal on all after the same entry.
    pub(super) fn applied(&mut self, accounts: &Accounts) {
        let digest = *self.digests.entry(accounts.applied).or_insert(accounts.digest);
        assert_eq!(digest, accounts.digest, "state machines differ after {}", accounts.applied);
    }

    /// A consumer was given this: it is committed, it is what was appended, and it is what comes next.
    pub(super) fn read(&self, entry: &StoredEntry, position: u64) {
        let (index, term) = (entry.meta.index, entry.meta.term);
        let committed = self.committed.get(&index);
        assert!(
            committed.is_some_and(|committed| committed.term == term),
            "a consumer was given entry {index} of term {term}; committed is {committed:?}"
        );
        self.check_content(entry);
        assert!(
            entry.base_offset <= position && position < entry.end_offset(),
            "a consumer asked for {position} and was given {} to {}",
            entry.base_offset,
            entry.end_offset()
        );
    }

    fn check_content(&self, entry: &StoredEntry) {
        let key = (entry.meta.index, entry.meta.term);
        let known = self.entries.get(&key).unwrap_or_else(|| panic!("{key:?} was never appended"));
        assert_eq!(known.fingerprint, fingerprint(entry), "{key:?} has changed");
    }

    /// After healing and quiet: all replicas hold the same; every acknowledged record that is retained is there once, where it
    /// was acknowledged, each producer's in order; nothing else is there twice.
    pub(super) fn check_end<'a>(&self, cores: impl Iterator<Item = &'a Core>, tally: &mut Tally) {
        let cores: Vec<&Core> = cores.collect();
        for core in &cores {
            let visible = core.visible();
            let reader = core.reader();
            assert_eq!(core.committed(), self.committed(), "replica {} lags", core.replica());
            let all = reader
                .entries(reader.first_index(), reader.last_index() + 1, u64::MAX)
                .expect("everything is readable");
            for entry in &all {
                self.check_content(entry);
                let committed = self.committed.get(&entry.meta.index).map(|found| found.term);
                assert_eq!(committed, Some(entry.meta.term), "entry {}", entry.meta.index);
            }
            self.check_records(core, visible.log_start_offset);
            tally.add("entries compared at the end", all.len() as u64);
        }
        for pair in cores.windows(2) {
            let (a, b) = (pair[0].visible(), pair[1].visible());
            assert_eq!(
                (a.log_start_offset, a.high_watermark, a.log_end_offset),
                (b.log_start_offset, b.high_watermark, b.log_end_offset),
                "replicas {} and {} end differently",
                pair[0].replica(),
                pair[1].replica()
            );
            assert!(pair[0].producers() == pair[1].producers(), "producer states differ");
        }
    }

    fn check_records(&self, core: &Core, log_start: u64) {
        let visible = core.visible();
        let stored = core
            .reader()
            .read_offsets(log_start, visible.high_watermark, u64::MAX)
            .expect("everything is readable");
        let mut last: BTreeMap<i64, i32> = BTreeMap::new();
        let mut found: BTreeMap<(i64, i32), u64> = BTreeMap::new();
        let mut position = log_start;
        for entry in &stored {
            self.read(entry, position);
            position = entry.end_offset();
            let header = BatchHeader::read(&entry.payload).expect("stored batches are whole");
            let before = last.insert(header.producer_id, header.base_sequence);
            assert!(
                before.is_none_or(|before| before + 1 == header.base_sequence),
                "producer {}: sequence {} behind {before:?}",
                header.producer_id,
                header.base_sequence
            );
            found.insert((header.producer_id, header.base_sequence), entry.base_offset);
        }
        assert!(position == visible.high_watermark || stored.is_empty());
        for (key, (offset, term, index)) in &self.acknowledged {
            assert_eq!(
                self.committed.get(index).map(|found| found.term),
                Some(*term),
                "{key:?} was acknowledged at offset {offset}, index {index}"
            );
            if *offset >= log_start {
                assert_eq!(found.get(key), Some(offset), "{key:?}, replica {}", core.replica());
            }
        }
    }
}

/// Whether so many voters are a majority, in a joint configuration of both halves.
pub(super) fn is_quorum(members: &Members, holds: impl Fn(u64) -> bool) -> bool {
    let majority =
        |half: &BTreeSet<u64>| half.iter().filter(|id| holds(**id)).count() > half.len() / 2;
    majority(&members.voters) && (members.outgoing.is_empty() || majority(&members.outgoing))
}

fn bit(replica: u64) -> u128 {
    1 << (replica - REPLICA_BASE)
}

fn fingerprint(entry: &StoredEntry) -> u64 {
    let mut hasher = DefaultHasher::new();
    let meta = &entry.meta;
    (meta.index, meta.term, meta.kind, meta.offset_span, meta.append_time_ms).hash(&mut hasher);
    (entry.base_offset, &entry.payload[..]).hash(&mut hasher);
    hasher.finish()
}
