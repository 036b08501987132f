//! Mending damaged replicas with the entries of others.
//!
//! Owns: which replicas are out of service and why, whom to ask for entries, and when to try again. Never: decides that an
//! entry is the right one (`highwater_storage::Repair` proves that), and never deletes what is damaged.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use highwater_proto::internal::{FetchEntriesRequest, FetchEntriesResponse, LogEntry};
use highwater_proto::v1::QuarantinedReplica;
use highwater_storage::{EntryMeta, Origin, Repair, StorageError, StoredEntry};
use tokio::sync::Semaphore;

use super::node::Node;
use super::{GroupId, METADATA_GROUP, NodeId};
use crate::error::BrokerError;
use crate::replica::{Quarantine, ReplicaError};

/// Pause between two looks for damaged replicas.
const LOOK_PAUSE: Duration = Duration::from_millis(250);
/// Replicas that are repaired at the same time.
const REPAIRS_MAX: usize = 2;
/// Pause after a repair that came no further, since no other replica had what is needed.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Payload of the entries that are asked for at once.
const FETCH_BYTES: u64 = 2 << 20;

const _: () = assert!(FETCH_BYTES + highwater_proto::batch::BATCH_BYTES_MAX as u64 <= 7 << 20);

/// A replica that is on disk here and not in service.
#[derive(Clone, Debug)]
pub(super) struct OutOfService {
    pub(super) quarantine: Quarantine,
    /// It could not be opened because the disk was full.
    pub(super) lacks_room: bool,
    /// How its repair goes, for people; empty before it begins.
    pub(super) repair: String,
}

impl OutOfService {
    pub(super) fn new(error: &ReplicaError) -> Self {
        let is =
            |kind: fn(&StorageError) -> bool| matches!(error, ReplicaError::Storage(e) if kind(e));
        let quarantine =
            Quarantine { why: error.to_string(), is_damage: is(StorageError::is_corrupt) };
        Self { quarantine, lacks_room: is(StorageError::is_disk_full), repair: String::new() }
    }
}

/// Why a repair came to nothing.
pub(super) enum Stuck {
    /// It may work later.
    ForNow(String),
    /// It will not.
    ForGood(String),
}

impl Node {
    /// Runs until the node stops: repairs what is damaged, a few replicas at a time.
    pub(super) async fn repair_loop(self) {
        let slots = Semaphore::new(REPAIRS_MAX);
        // Groups that are being repaired, or cannot be and wait for a replacement.
        let mut taken = BTreeSet::new();
        let mut repairs = FuturesUnordered::new();
        loop {
            tokio::select! {
                () = self.inner.cancel.cancelled() => return,
                () = tokio::time::sleep(LOOK_PAUSE) => {
                    self.open_where_there_is_room().await;
                    taken.retain(|group| self.inner.unusable.lock().contains_key(group));
                    for group in self.damaged() {
                        if taken.insert(group) {
                            repairs.push(self.repair_until_done(group, &slots));
                        }
                    }
                }
                Some(group) = repairs.next() => {
                    taken.remove(&group);
                }
            }
        }
    }

    /// Tries again to open what a full disk kept from opening.
    async fn open_where_there_is_room(&self) {
        let unusable = self.inner.unusable.lock().clone();
        for (group, _) in unusable.into_iter().filter(|(_, out)| out.lacks_room) {
            let node = self.clone();
            match self.off_thread(move || node.reopen(group)).await {
                Ok(()) => {
                    tracing::info!(group, "there is room again: the replica is in service");
                    self.inner.unusable.lock().remove(&group);
                }
                Err(ReplicaError::Storage(error)) if error.is_disk_full() => {}
                Err(error) => self.set_unusable(group, &error),
            }
        }
    }

    /// Whether a newer replica is to come in this one's place: then it is left alone.
    pub(super) fn is_replaced(&self, group: GroupId) -> bool {
        if group == METADATA_GROUP {
            let newer = self.inner.joined.metadata_replica();
            return newer.is_some_and(|new| self.inner.engine.is_superseded(group, new.replica));
        }
        let metadata = self.inner.metadata.borrow().clone();
        let Some(partition) = metadata.partition(group) else { return false };
        let assigned = partition.assigned_to(self.id());
        let newer = assigned.filter(|assigned| !partition.is_founding(*assigned));
        newer.is_some_and(|newer| self.inner.engine.is_superseded(group, newer))
    }

    /// Repairs a replica, however long that takes, unless it is replaced; answers its group.
    async fn repair_until_done(&self, group: GroupId, slots: &Semaphore) -> GroupId {
        loop {
            self.inner.repairing.lock().insert(group);
            let outcome = match self.is_replaced(group) {
                true if group == METADATA_GROUP => self.begin_metadata_anew().await,
                true => Ok(()),
                false => self.repair(group, slots).await,
            };
            self.inner.repairing.lock().remove(&group);
            match outcome {
                Ok(()) => return group,
                Err(Stuck::ForNow(why)) => self.wait_for_others(group, &why).await,
                Err(Stuck::ForGood(why)) => {
                    tracing::error!(group, %why, "the replica cannot be repaired");
                    self.inner.deps.metrics.repaired(false, 0);
                    self.wait_until_replaced(group, &why).await;
                    return group;
                }
            }
        }
    }

    /// Until another replica is in the place of one that cannot be repaired.
    async fn wait_until_replaced(&self, group: GroupId, why: &str) {
        while self.inner.unusable.lock().contains_key(&group) {
            let replaced = match group {
                METADATA_GROUP => self.replace_metadata_here().await,
                _ => self.replace_here(group).await,
            };
            let next = match replaced {
                Ok(()) => "a new replica takes its place".to_owned(),
                Err(waits_for) => waits_for,
            };
            self.note_repair(group, format!("not possible: {why}; {next}"));
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    async fn wait_for_others(&self, group: GroupId, why: &str) {
        self.note_repair(group, format!("waiting: {why}"));
        tokio::time::sleep(RETRY_PAUSE).await;
    }

    /// Groups whose replicas here have damaged data.
    fn damaged(&self) -> Vec<GroupId> {
        let unusable = self.inner.unusable.lock();
        let closed = unusable.iter().filter(|(_, out)| out.quarantine.is_damage).map(|(g, _)| *g);
        let open = self.inner.engine.quarantined().into_iter();
        let open = open.filter(|(_, quarantine)| quarantine.is_damage);
        closed.chain(open.map(|(group, _)| group)).collect()
    }

    /// Every replica on this node that is out of service.
    pub fn quarantined_replicas(&self) -> Vec<(GroupId, QuarantinedReplica)> {
        let replica =
            |why: String, repair: String| QuarantinedReplica { node: self.id(), why, repair };
        let unusable = self.inner.unusable.lock();
        let closed = unusable
            .iter()
            .map(|(group, out)| (*group, replica(out.quarantine.why.clone(), out.repair.clone())));
        let open = self.inner.engine.quarantined().into_iter();
        let open = open.filter(|(group, _)| !unusable.contains_key(group));
        closed.chain(open.map(|(group, q)| (group, replica(q.why, String::new())))).collect()
    }

    fn note_repair(&self, group: GroupId, repair: String) {
        if let Some(out) = self.inner.unusable.lock().get_mut(&group)
            && out.repair != repair
        {
            tracing::info!(group, %repair, "repair of a damaged replica");
            out.repair = repair;
        }
    }

    async fn repair(&self, group: GroupId, slots: &Semaphore) -> Result<(), Stuck> {
        if let Some(quarantine) = self.inner.engine.get(group).and_then(|h| h.quarantined()) {
            let out = OutOfService { quarantine, lacks_room: false, repair: String::new() };
            self.inner.unusable.lock().insert(group, out);
            self.inner.engine.take_out(group).await;
        }
        let Ok(_slot) = slots.acquire().await else { return Ok(()) };
        if !self.inner.unusable.lock().contains_key(&group) {
            return Ok(());
        }
        self.note_repair(group, "looking for what is damaged".into());
        let engine = self.inner.engine.clone();
        let mut repair = match self.off_thread(move || engine.begin_repair(group)).await {
            Ok(repair) => repair,
            Err(ReplicaError::Storage(error @ StorageError::Corrupt { .. })) => {
                return Err(Stuck::ForGood(error.to_string()));
            }
            Err(error) => return Err(Stuck::ForNow(error.to_string())),
        };
        let mut entries = 0;
        while repair.gap().is_some() {
            // Its topic may be deleted meanwhile, too.
            if self.is_replaced(group) || !self.inner.unusable.lock().contains_key(&group) {
                return Ok(());
            }
            let filled;
            (repair, filled) = self.fill(group, repair).await;
            match filled {
                Ok(count) => entries += count,
                Err(Stuck::ForNow(why)) => self.wait_for_others(group, &why).await,
                Err(stuck) => return Err(stuck),
            }
        }
        let segments = repair.segments_repaired();
        drop(repair);
        if !self.inner.unusable.lock().contains_key(&group) {
            return Ok(());
        }
        let node = self.clone();
        if let Err(error) = self.off_thread(move || node.reopen(group)).await {
            // Beside the log there are small files, and those cannot be mended from entries.
            self.set_unusable(group, &error);
            return Err(Stuck::ForGood(error.to_string()));
        }
        self.inner.unusable.lock().remove(&group);
        self.inner.deps.metrics.repaired(true, entries);
        tracing::info!(
            group,
            segments,
            entries,
            "a damaged replica is repaired and in service again"
        );
        Ok(())
    }

    /// Fills what it can of the gap from the first replica that has the right entries; answers how many.
    async fn fill(&self, group: GroupId, mut repair: Repair) -> (Repair, Result<u64, Stuck>) {
        let addresses = match self.holders(group) {
            Ok(addresses) => addresses,
            Err(stuck) => return (repair, Err(stuck)),
        };
        let mut answers = Vec::new();
        let mut have_dropped_it = 0;
        let holders = addresses.len();
        for (node, address) in addresses {
            // What was refused begins anew, maybe further back.
            let Some(gap) = repair.gap() else { break };
            let (first, last) = (gap.first_index, gap.end_index - 1);
            self.note_repair(group, format!("fetching entries {first} to {last} from node {node}"));
            let request = FetchEntriesRequest {
                group_id: group,
                first_index: gap.first_index,
                end_index: gap.end_index,
            };
            let answer = match self.inner.deps.calls.fetch_entries(&address, request).await {
                Ok(answer) => answer,
                Err(error) => {
                    answers.push(error.to_string());
                    continue;
                }
            };
            if answer.first_index > first {
                have_dropped_it += 1;
                answers.push(format!("node {node} keeps entries from {} on", answer.first_index));
                continue;
            }
            let count = answer.entries.len() as u64;
            let supplying = self.off_thread(move || {
                let origin = Origin {
                    last_term: answer.last_term,
                    end_term: answer.end_term,
                    committed: answer.committed_index,
                };
                let entries: Vec<StoredEntry> = answer.entries.into_iter().map(stored).collect();
                let outcome = repair.supply(&entries, origin);
                (repair, outcome)
            });
            let outcome;
            (repair, outcome) = supplying.await;
            match outcome {
                Ok(()) if count > 0 => return (repair, Ok(count)),
                Ok(()) => answers.push(format!("node {node} has none of them")),
                // Another replica may have the right ones.
                Err(error) => answers.push(format!("node {node}: {error}")),
            }
        }
        let why = answers.join("; ");
        match have_dropped_it == holders && holders > 0 {
            true => (repair, Err(Stuck::ForGood(why))),
            false => (repair, Err(Stuck::ForNow(why))),
        }
    }

    /// The other nodes that hold a replica of a group, with their addresses.
    fn holders(&self, group: GroupId) -> Result<Vec<(NodeId, String)>, Stuck> {
        let nodes = self.inner.engine.nodes_of(group);
        let nodes = nodes.map_err(|error| Stuck::ForGood(error.to_string()))?;
        let others: Vec<NodeId> = nodes.into_iter().filter(|node| *node != self.id()).collect();
        if others.is_empty() {
            return Err(Stuck::ForGood("no other node holds a replica of it".into()));
        }
        let known = self.other_nodes();
        Ok(known.into_iter().filter(|(node, _)| others.contains(node)).collect())
    }

    /// The other nodes of the cluster, with their addresses. Without metadata those are known that were there when this node became
    /// a member.
    pub(super) fn other_nodes(&self) -> BTreeMap<NodeId, String> {
        let founding = self.inner.founder.promises.held().unwrap_or_default();
        let founders = founding.members.into_iter().map(|it| (it.node_id, it.internal_address));
        let joined = self.inner.joined.nodes().into_iter().map(|it| (it.id, it.internal_address));
        let view = self.view();
        let now = view.nodes.values().map(|node| (node.id, node.internal_address.clone()));
        // Of two addresses the newer one counts.
        let mut nodes: BTreeMap<NodeId, String> = founders.chain(joined).chain(now).collect();
        nodes.remove(&self.id());
        nodes
    }

    pub(super) async fn off_thread<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        match self.inner.deps.tasks.spawn_blocking(work).await {
            Ok(done) => done,
            // The runtime cancels it only when it ends, and then nobody waits here.
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    /// Answers NodeService.FetchEntries.
    pub fn fetch_entries(
        &self,
        request: &FetchEntriesRequest,
    ) -> Result<FetchEntriesResponse, BrokerError> {
        let Some(handle) = self.inner.engine.get(request.group_id) else {
            return Err(BrokerError::NotReady {
                why: format!("no replica of group {} is in service here", request.group_id),
            });
        };
        let first_index = handle.first_index();
        if request.first_index < first_index {
            return Ok(FetchEntriesResponse { first_index, ..FetchEntriesResponse::default() });
        }
        let (entries, origin) =
            handle.entries(request.first_index, request.end_index, FETCH_BYTES)?;
        Ok(FetchEntriesResponse {
            entries: entries.into_iter().map(wire).collect(),
            last_term: origin.last_term,
            end_term: origin.end_term,
            committed_index: origin.committed,
            first_index,
        })
    }
}

fn wire(entry: StoredEntry) -> LogEntry {
    LogEntry {
        index: entry.meta.index,
        term: entry.meta.term,
        kind: u32::from(entry.meta.kind),
        offset_span: entry.meta.offset_span,
        base_offset: entry.base_offset,
        append_time_ms: entry.meta.append_time_ms,
        max_timestamp_ms: entry.meta.max_timestamp_ms,
        payload: entry.payload,
    }
}

fn stored(entry: LogEntry) -> StoredEntry {
    StoredEntry {
        meta: EntryMeta {
            index: entry.index,
            term: entry.term,
            // One that is out of range is of a newer version, and is met as such when it is read.
            kind: u8::try_from(entry.kind).unwrap_or(u8::MAX),
            offset_span: entry.offset_span,
            append_time_ms: entry.append_time_ms,
            max_timestamp_ms: entry.max_timestamp_ms,
        },
        base_offset: entry.base_offset,
        payload: entry.payload,
    }
}
