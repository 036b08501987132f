//! Handles to a replica: enqueue appends, read what is committed.
//!
//! Owns: the types the layers above hold. Never: consensus; reading never enters the core.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use highwater_proto::batch::{BatchHeader, BatchView};
use highwater_proto::internal::MembersChange;
use highwater_proto::v1;
use highwater_storage::{Origin, StorageError, StoredEntry};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{oneshot, watch};

use super::core::{Answer, Appended, ProposalBody, Quarantine, Visible};
use super::engine::PartitionSettings;
use super::inbox::{Inbox, Input, Stay};
use super::members::{Follower, Members, Step};
use super::partition_reader::{PartitionReader, Stored};
use crate::error::BrokerError;

/// Longest wait for the proof that a replica leads. One that does not any more finds out by itself within two election timeouts.
const PROOF_MAX: Duration = Duration::from_secs(3);

/// The answer to one append, in the future. Dropping it gives up the answer, not the append.
#[derive(Debug)]
pub struct AppendTicket {
    answer: oneshot::Receiver<Result<Answer, BrokerError>>,
}

impl Future for AppendTicket {
    type Output = Result<Appended, BrokerError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.answer).poll(context).map(|answer| match answer {
            Ok(Ok(Answer::Appended(appended))) => Ok(appended),
            Ok(Ok(other)) => Err(BrokerError::Internal(format!("{other:?} answers an append"))),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(BrokerError::OutcomeUnknown { why: "the replica stopped" }),
        })
    }
}

/// What a replica knows of its partition. Complete only on the leader.
#[derive(Clone, Debug, Default)]
pub struct PartitionStatus {
    /// Whether this replica leads.
    pub is_leader: bool,
    /// Node of the leader; 0 if none is known.
    pub leader_node: u64,
    /// The leader epoch.
    pub leader_epoch: u64,
    /// Nodes whose replicas hold what was committed a moment ago (leader only). A node that has died since is still in it.
    pub in_sync: Vec<u64>,
    /// Entries each follower still lacks, by node (leader only).
    pub lag_entries: Vec<(u64, u64)>,
    /// First retained offset.
    pub log_start_offset: u64,
    /// First offset that is not readable yet.
    pub high_watermark: u64,
    /// Next offset to be assigned.
    pub log_end_offset: u64,
    /// Bytes of the log on disk.
    pub size_bytes: u64,
    /// Why the replica is quarantined, if it is.
    pub quarantined: Option<Quarantine>,
}

/// Which replicas may answer who reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Only the one that leads.
    Leader,
    /// Any that is in service: what it knows to be committed. That it lags is no error; whatever is one is for the leader to judge, so
    /// that all of them are `NotLeader`.
    Replica,
}

/// What a worker publishes of one replica.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) group: u64,
    pub(crate) replica: u64,
    pub(crate) node: u64,
    /// Replaced as a whole when they change.
    pub(crate) members: RwLock<Arc<Members>>,
    pub(crate) reader: PartitionReader,
    pub(crate) settings: Mutex<PartitionSettings>,
    /// The last entry that is applied and durable here.
    pub(crate) settled: AtomicU64,
    pub(crate) visible: watch::Sender<Visible>,
    /// Refreshed a few times a second.
    pub(crate) followers: Mutex<Vec<Follower>>,
    pub(crate) quarantined: Mutex<Option<Quarantine>>,
}

impl Shared {
    /// The last entry that is applied and durable here: up to it nothing is ever truncated.
    pub(crate) fn settled_index(&self) -> u64 {
        self.settled.load(Ordering::Acquire)
    }
}

/// A replica on this node, as the layers above see it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct PartitionHandle {
    pub(crate) shared: Arc<Shared>,
    pub(crate) inbox: Arc<Inbox>,
}

impl PartitionHandle {
    /// Puts a validated batch into the replica's queue; the order of calls is the order in the log. Fails at once when
    /// this replica does not lead. The caller bounds the bytes in flight.
    pub fn append(
        &self,
        batch: Bytes,
        header: &BatchHeader,
        acks: v1::Acks,
    ) -> Result<AppendTicket, BrokerError> {
        self.check_leads()?;
        let acks = match acks {
            v1::Acks::Unspecified => v1::Acks::QuorumFsync,
            acks => acks,
        };
        let body = ProposalBody::Batch { batch, header: *header, acks, only_in: None };
        Ok(AppendTicket { answer: self.propose(body) })
    }

    /// The same, durable on a quorum, for a batch that is right only while this replica leads in `leader_epoch`: in another one it
    /// is refused with `NotLeader`, as somebody else may have written in between.
    pub(crate) fn append_in_epoch(
        &self,
        batch: Bytes,
        header: &BatchHeader,
        leader_epoch: u64,
    ) -> Result<AppendTicket, BrokerError> {
        self.check_leads()?;
        let (acks, only_in) = (v1::Acks::QuorumFsync, Some(leader_epoch));
        let body = ProposalBody::Batch { batch, header: *header, acks, only_in };
        Ok(AppendTicket { answer: self.propose(body) })
    }

    /// Proposes a command for the group's state machine; answers with its outcome once it is applied here.
    pub(crate) async fn command(&self, command: Bytes) -> Result<Bytes, BrokerError> {
        match self.propose(ProposalBody::Command(command)).await {
            Ok(Ok(Answer::Applied(outcome))) => Ok(outcome),
            other => Err(unexpected(other)),
        }
    }

    fn propose(&self, body: ProposalBody) -> oneshot::Receiver<Result<Answer, BrokerError>> {
        let (sender, answer) = oneshot::channel();
        let input = Input::Propose { group: self.shared.group, body, answer: sender };
        self.inbox.push_and_work(input, Stay::ForTheDisk);
        answer
    }

    fn check_leads(&self) -> Result<(), BrokerError> {
        self.check_in_service()?;
        let visible = *self.shared.visible.borrow();
        if visible.is_leader { Ok(()) } else { Err(self.not_leader(&visible)) }
    }

    fn check_in_service(&self) -> Result<(), BrokerError> {
        match self.quarantined() {
            Some(Quarantine { why, .. }) => Err(BrokerError::Quarantined { why }),
            None => Ok(()),
        }
    }

    /// Why the replica is quarantined, if it is.
    pub fn quarantined(&self) -> Option<Quarantine> {
        self.shared.quarantined.lock().clone()
    }

    /// Tells the replica that its log is damaged: it goes out of service until it is repaired.
    pub(crate) fn damaged(&self, why: String) {
        self.inbox.push(Input::Damaged { group: self.shared.group, why });
    }

    /// What a failed read means for whoever asked, and for the replica.
    fn unreadable(&self, error: StorageError) -> BrokerError {
        if error.is_corrupt() {
            let why = format!("the log cannot be read: {error}");
            self.damaged(why.clone());
            return BrokerError::Quarantined { why };
        }
        BrokerError::Internal(error.to_string())
    }

    /// The first entry that is kept.
    pub(crate) fn first_index(&self) -> u64 {
        self.shared.reader.log.first_index()
    }

    /// Entries for a replica elsewhere that has lost them, about `bytes_max` of payload and at least one, and what this log says of
    /// the end of what was asked for.
    pub(crate) fn entries(
        &self,
        first_index: u64,
        end_index: u64,
        bytes_max: u64,
    ) -> Result<(Vec<StoredEntry>, Origin), BrokerError> {
        self.check_in_service()?;
        // Read before the entries, so that it never speaks of ones that replaced them.
        let committed = self.shared.visible.borrow().committed_index;
        let reader = &self.shared.reader.log;
        let last_index = reader.last_index();
        let missing = |why: String| BrokerError::NotReady { why };
        if first_index >= end_index || first_index > last_index {
            return Err(missing(format!("entry {first_index} is not here yet")));
        }
        let entries = match reader.entries(first_index, end_index.min(last_index + 1), bytes_max) {
            Err(error @ StorageError::Compacted { .. }) => return Err(missing(error.to_string())),
            other => other.map_err(|error| self.unreadable(error))?,
        };
        let origin = Origin {
            last_term: reader.term(end_index - 1),
            end_term: reader.term(end_index),
            committed,
        };
        // Unless a new leader replaced them meanwhile: then the term behind them says nothing about these.
        match entries.last() {
            Some(last) if reader.term(last.meta.index) == Some(last.meta.term) => {
                Ok((entries, origin))
            }
            _ => Err(missing(format!("entry {first_index} was replaced just now"))),
        }
    }

    fn not_leader(&self, visible: &Visible) -> BrokerError {
        let leader = self.members().nodes.get(&visible.leader).copied();
        BrokerError::NotLeader { leader: leader.filter(|node| *node != self.shared.node) }
    }

    /// Whether the group has replicas on other nodes.
    pub fn has_peers(&self) -> bool {
        self.members().nodes.len() > 1
    }

    /// Its replica id.
    pub fn replica_id(&self) -> u64 {
        self.shared.replica
    }

    /// The members of the group, as applied here.
    pub fn members(&self) -> Arc<Members> {
        Arc::clone(&self.shared.members.read())
    }

    /// On the leader: the next step from the members there are to `target` as voters and `following` as learners, replica ids with
    /// their nodes.
    pub fn step_towards(
        &self,
        target: &BTreeMap<u64, u64>,
        following: &BTreeMap<u64, u64>,
    ) -> Step {
        let followers = self.shared.followers.lock().clone();
        self.members().step_towards(target, following, self.shared.replica, &followers)
    }

    /// Changes the members; done once it is applied here.
    pub async fn change_members(&self, change: MembersChange) -> Result<(), BrokerError> {
        self.check_leads()?;
        match self.propose(ProposalBody::Members(change)).await {
            Ok(Ok(Answer::MembersChanged)) => Ok(()),
            other => Err(unexpected(other)),
        }
    }

    /// Proves that this replica still leads after this was called, and answers what it sees then: its high watermark is at least the
    /// end of everything acknowledged (durable on a quorum) before. Fails with `NotLeader` if it does not lead any more.
    async fn prove_leadership(&self) -> Result<Visible, BrokerError> {
        self.check_leads()?;
        let (sender, answer) = oneshot::channel();
        let input = Input::Prove { group: self.shared.group, answer: sender };
        self.inbox.push_and_work(input, Stay::Never);
        match tokio::time::timeout(PROOF_MAX, answer).await {
            Ok(Ok(Ok(Answer::Leads(visible)))) => Ok(visible),
            Ok(Err(_)) => Err(BrokerError::NotLeader { leader: None }),
            Ok(other) => Err(unexpected(other)),
            Err(_) => Err(BrokerError::NotReady {
                why: format!(
                    "this node may not lead the partition any more: no majority of the replicas has confirmed it within {PROOF_MAX:?}"
                ),
            }),
        }
    }

    /// The end of the partition: at least that of everything that was acknowledged (durable on a quorum) before this was called.
    pub async fn end_offset(&self) -> Result<u64, BrokerError> {
        Ok(self.prove_leadership().await?.high_watermark)
    }

    /// Whether this replica leads.
    pub fn is_leader(&self) -> bool {
        self.shared.visible.borrow().is_leader
    }

    /// Whether this replica leads, and what its predecessors have written is committed and so no longer in question.
    pub fn is_settled(&self) -> bool {
        self.shared.visible.borrow().is_settled
    }

    /// First offset that is not readable yet.
    pub fn high_watermark(&self) -> u64 {
        self.shared.visible.borrow().high_watermark
    }

    /// First retained offset.
    pub fn log_start_offset(&self) -> u64 {
        self.shared.visible.borrow().log_start_offset
    }

    /// The leader epoch this replica is in.
    pub fn leader_epoch(&self) -> u64 {
        self.shared.visible.borrow().term
    }

    /// Waits until the record at `offset` is readable from that source.
    pub async fn wait_readable(&self, offset: u64, source: Source) -> Result<(), BrokerError> {
        match source {
            Source::Leader => self.wait_readable_on_leader(offset).await,
            Source::Replica => self.wait_committed(offset).await,
        }
    }

    /// Waits until this replica, leading or not, knows that the record at `offset` is committed.
    async fn wait_committed(&self, offset: u64) -> Result<(), BrokerError> {
        let mut visible = self.shared.visible.subscribe();
        loop {
            let now = *visible.borrow_and_update();
            if !now.serves || offset < now.log_start_offset {
                return Err(self.not_leader(&now));
            }
            if offset < now.high_watermark {
                return Ok(());
            }
            if visible.changed().await.is_err() {
                return Err(BrokerError::NotLeader { leader: None });
            }
        }
    }

    /// Fails with `NotLeader` when leadership moves, `OffsetOutOfRange` when
    /// the offset is below the log's start or, on a leader that has just proved that it leads, above the log's end.
    async fn wait_readable_on_leader(&self, offset: u64) -> Result<(), BrokerError> {
        let mut visible = self.shared.visible.subscribe();
        loop {
            let now = *visible.borrow_and_update();
            if !now.is_leader {
                return Err(self.not_leader(&now));
            }
            if offset < now.log_start_offset {
                return Err(out_of_range(wire(offset), &now));
            }
            if offset < now.high_watermark {
                return Ok(());
            }
            self.check_within_end(offset, &now).await?;
            if visible.changed().await.is_err() {
                return Err(BrokerError::NotLeader { leader: None });
            }
        }
    }

    /// Fails with `OffsetOutOfRange` for an offset that is above the log's end on a leader that has just proved that it leads: otherwise
    /// others may have written more, and it is this replica that is behind.
    async fn check_within_end(&self, offset: u64, seen: &Visible) -> Result<(), BrokerError> {
        if !seen.is_settled || offset <= seen.log_end_offset {
            return Ok(());
        }
        let proved = self.prove_leadership().await?;
        if offset <= proved.log_end_offset {
            return Ok(());
        }
        Err(out_of_range(wire(offset), &proved))
    }

    /// Reads whole stored batches from the one that contains `from` on (or the next one, where compaction left a gap), all below
    /// the high watermark, about `bytes_max` in all and at least one; none if nothing is readable there yet. Payloads are slices
    /// of the mapping, base offset and leader epoch stamped.
    pub fn read(&self, from: u64, bytes_max: u64, source: Source) -> Result<Stored, BrokerError> {
        let visible = *self.shared.visible.borrow();
        let may_read = match source {
            Source::Leader => visible.is_leader,
            Source::Replica => visible.serves,
        };
        if !may_read {
            return Err(self.not_leader(&visible));
        }
        self.read_below(from, bytes_max, &visible).map_err(|error| match source {
            Source::Leader => error,
            Source::Replica => self.not_leader(&visible),
        })
    }

    fn read_below(
        &self,
        from: u64,
        bytes_max: u64,
        visible: &Visible,
    ) -> Result<Stored, BrokerError> {
        if from >= visible.high_watermark {
            return Ok(Stored { entries: Vec::new(), next_offset: from });
        }
        let asked = wire(from);
        if from < visible.log_start_offset {
            return Err(out_of_range(asked, visible));
        }
        match self.shared.reader.read_offsets(from, visible.high_watermark, bytes_max) {
            Ok(stored) => Ok(stored),
            Err(StorageError::Compacted { .. }) => Err(out_of_range(asked, visible)),
            Err(error) => Err(self.unreadable(error)),
        }
    }

    /// Part of a file of the compacted part, for another replica; `None` if it is not part of it any more.
    pub(crate) fn read_compacted(
        &self,
        file: u64,
        from: u64,
        bytes_max: u64,
    ) -> Result<Option<Bytes>, BrokerError> {
        self.check_in_service()?;
        let read = self.shared.reader.compacted.read_file(file, from, bytes_max);
        read.map_err(|error| BrokerError::Internal(error.to_string()))
    }

    /// The offset that a position means to a replica that need not lead. What only the leader can say fails with `NotLeader`.
    pub fn resolve_here(&self, position: &v1::Position) -> Result<u64, BrokerError> {
        use v1::position::At;
        let visible = *self.shared.visible.borrow();
        let offset = match position.at {
            None | Some(At::Start(_)) => Some(visible.log_start_offset),
            Some(At::Offset(asked)) => u64::try_from(asked).ok(),
            Some(At::End(_) | At::TimestampMs(_)) => None,
        };
        let readable =
            offset.filter(|offset| visible.serves && *offset >= visible.log_start_offset);
        readable.ok_or_else(|| self.not_leader(&visible))
    }

    /// The group.
    pub fn group(&self) -> u64 {
        self.shared.group
    }

    /// Whether this replica knows who leads: it is not cut off, as far as it knows.
    pub fn knows_leader(&self) -> bool {
        self.shared.visible.borrow().leader != 0
    }

    /// The offset that a position means now. A position behind the last record by time means the high watermark. What depends on where
    /// the partition ends waits for the proof that this replica leads.
    pub async fn resolve(&self, position: &v1::Position) -> Result<u64, BrokerError> {
        use v1::position::At;
        let visible = *self.shared.visible.borrow();
        if !visible.is_leader {
            return Err(self.not_leader(&visible));
        }
        match position.at {
            None | Some(At::Start(_)) => Ok(visible.log_start_offset),
            Some(At::End(_)) => self.end_offset().await,
            Some(At::Offset(asked)) => {
                let offset = u64::try_from(asked).map_err(|_| out_of_range(asked, &visible))?;
                if offset < visible.log_start_offset {
                    return Err(out_of_range(asked, &visible));
                }
                self.check_within_end(offset, &visible).await?;
                Ok(offset)
            }
            Some(At::TimestampMs(timestamp_ms)) => {
                self.resolve_time(timestamp_ms, &self.prove_leadership().await?)
            }
        }
    }

    fn resolve_time(&self, timestamp_ms: i64, visible: &Visible) -> Result<u64, BrokerError> {
        let internal = |error: String| BrokerError::Internal(error);
        let found = self
            .shared
            .reader
            .entry_at_time(timestamp_ms, visible.high_watermark)
            .map_err(|error| self.unreadable(error))?;
        let Some(entry) = found else { return Ok(visible.high_watermark) };
        let batch = BatchView::parse(entry.payload).map_err(|error| internal(error.to_string()))?;
        for record in batch.records().map_err(|error| internal(error.to_string()))? {
            let record = record.map_err(|error| internal(error.to_string()))?;
            if record.timestamp_ms >= timestamp_ms {
                let offset = u64::try_from(record.offset).unwrap_or(entry.base_offset);
                return Ok(offset.max(visible.log_start_offset));
            }
        }
        Ok(entry.base_offset.max(visible.log_start_offset))
    }

    /// Moves the start of the log up, replicated; answers with the new start once applied here.
    pub async fn trim(&self, to_offset: u64) -> Result<u64, BrokerError> {
        self.check_leads()?;
        let mut visible = *self.shared.visible.borrow();
        if to_offset > visible.high_watermark {
            visible = self.prove_leadership().await?;
        }
        if to_offset > visible.high_watermark {
            return Err(out_of_range(wire(to_offset), &visible));
        }
        match self.propose(ProposalBody::AdvanceLogStart(to_offset)).await {
            Ok(Ok(Answer::LogStart(start))) => Ok(start),
            other => Err(unexpected(other)),
        }
    }

    /// Commits an entry that changes nothing: done only if this replica leads, and has applied all that was committed before.
    pub(crate) async fn confirm_leadership(&self) -> Result<(), BrokerError> {
        self.trim(self.log_start_offset()).await.map(drop)
    }

    /// The state of the replica, which still led after this was called: its high watermark is at least the end of everything
    /// acknowledged before.
    pub async fn proved_status(&self) -> Result<PartitionStatus, BrokerError> {
        self.prove_leadership().await?;
        Ok(self.status())
    }

    /// The state of the replica at this moment.
    pub fn status(&self) -> PartitionStatus {
        let visible = *self.shared.visible.borrow();
        let members = self.members();
        let node_of = |replica: &u64| members.nodes.get(replica).copied();
        let mut in_sync = Vec::new();
        // Of two replicas on one node the newer is about to replace the other.
        let mut lag_entries = BTreeMap::new();
        if visible.is_leader {
            in_sync.push(self.shared.node);
            for follower in self.shared.followers.lock().iter() {
                let Some(node) = node_of(&follower.replica) else { continue };
                lag_entries.insert(node, follower.lag_entries);
                if follower.in_sync && members.voters.contains(&follower.replica) {
                    in_sync.push(node);
                }
            }
            in_sync.sort_unstable();
            in_sync.dedup();
        }
        PartitionStatus {
            is_leader: visible.is_leader,
            leader_node: node_of(&visible.leader).unwrap_or(0),
            leader_epoch: visible.term,
            in_sync,
            lag_entries: lag_entries.into_iter().collect(),
            log_start_offset: visible.log_start_offset,
            high_watermark: visible.high_watermark,
            log_end_offset: visible.log_end_offset,
            size_bytes: self.shared.reader.size_bytes(),
            quarantined: self.quarantined(),
        }
    }

    /// Starts handing leadership to the replica on `to_node` (0: the most caught-up one); answers with the node chosen.
    pub async fn transfer_leadership(&self, to_node: u64) -> Result<u64, BrokerError> {
        self.check_leads()?;
        let to = match to_node {
            0 => None,
            node => {
                let members = self.members();
                let is_there = |id: &&u64| members.nodes.get(*id) == Some(&node);
                let Some(replica) = members.voters.iter().find(is_there) else {
                    return Err(BrokerError::InvalidArgument {
                        field: "to_node_id".into(),
                        why: format!("node {node} holds no replica of this partition"),
                    });
                };
                Some(*replica)
            }
        };
        if to == Some(self.shared.replica) {
            return Ok(self.shared.node);
        }
        let (sender, answer) = oneshot::channel();
        self.inbox.push(Input::Transfer { group: self.shared.group, to, answer: sender });
        let chosen = answer.await.ok().flatten();
        chosen.and_then(|replica| self.members().nodes.get(&replica).copied()).ok_or(
            BrokerError::NotReady { why: "no other replica is fit to lead the partition".into() },
        )
    }

    /// Starts handing leadership to another replica.
    pub(crate) async fn transfer_to(&self, replica: u64) {
        let (sender, answer) = oneshot::channel();
        let to = Some(replica);
        self.inbox.push(Input::Transfer { group: self.shared.group, to, answer: sender });
        // Whether it worked shows in who leads next.
        let _ = answer.await;
    }
}

fn unexpected(
    answer: Result<Result<Answer, BrokerError>, oneshot::error::RecvError>,
) -> BrokerError {
    match answer {
        Ok(Ok(other)) => BrokerError::Internal(format!("{other:?} answers another question")),
        Ok(Err(error)) => error,
        Err(_) => BrokerError::OutcomeUnknown { why: "the replica stopped" },
    }
}

/// An offset as the wire has it. Offsets are below `i64::MAX` by construction, those that clients ask for need not be.
fn wire(offset: u64) -> i64 {
    i64::try_from(offset).unwrap_or(i64::MAX)
}

fn out_of_range(offset: i64, visible: &Visible) -> BrokerError {
    BrokerError::OffsetOutOfRange {
        offset,
        log_start_offset: visible.log_start_offset,
        high_watermark: visible.high_watermark,
    }
}
