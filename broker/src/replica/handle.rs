//! Handles to a replica: enqueue appends, read what is committed.
//!
//! Owns: the types the layers above hold. Never: consensus; reading never enters the core.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use highwater_proto::batch::BatchHeader;
use highwater_proto::v1;
use highwater_storage::StoredEntry;

use crate::error::BrokerError;

/// A batch that reached the durability asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Offset of the first record.
    pub base_offset: u64,
    /// The leader epoch it was appended in.
    pub leader_epoch: u64,
    /// It had been written before; `base_offset` is the original's.
    pub duplicate: bool,
    /// When the leader appended it, in milliseconds since the Unix epoch.
    pub append_time_ms: i64,
}

/// The answer to one append, in the future. Dropping it gives up the answer, not the append.
#[derive(Debug)]
pub struct AppendTicket {
    answer: tokio::sync::oneshot::Receiver<Result<Appended, BrokerError>>,
}

impl Future for AppendTicket {
    type Output = Result<Appended, BrokerError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.answer).poll(context).map(|answer| {
            answer.unwrap_or(Err(BrokerError::OutcomeUnknown { why: "the replica stopped" }))
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
    /// Nodes whose replicas are in sync (leader only).
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
    pub quarantined: Option<String>,
}

/// A replica on this node, as the layers above see it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct PartitionHandle {}

impl PartitionHandle {
    /// Puts a validated batch into the replica's queue; the order of calls is the order in the log. Fails at once when
    /// this replica does not lead. The caller bounds the bytes in flight.
    pub fn append(
        &self,
        batch: Bytes,
        header: &BatchHeader,
        acks: v1::Acks,
    ) -> Result<AppendTicket, BrokerError> {
        let _ = (batch, header, acks);
        todo!()
    }

    /// First offset that is not readable yet.
    pub fn high_watermark(&self) -> u64 {
        todo!()
    }

    /// First retained offset.
    pub fn log_start_offset(&self) -> u64 {
        todo!()
    }

    /// The leader epoch this replica is in.
    pub fn leader_epoch(&self) -> u64 {
        todo!()
    }

    /// Waits until the record at `offset` is readable. Fails with `NotLeader` when leadership moves, `OffsetOutOfRange` when
    /// the offset is below the log's start or, on a leader that has committed in its own term, above the log's end.
    pub async fn wait_readable(&self, offset: u64) -> Result<(), BrokerError> {
        let _ = offset;
        todo!()
    }

    /// Reads whole stored batches from the one that contains `from` on, all below the high watermark, about `bytes_max`
    /// in all and at least one; none if `from` is not readable yet. Payloads are slices of the mapping, base offset and leader epoch stamped.
    pub fn read(&self, from: u64, bytes_max: u64) -> Result<Vec<StoredEntry>, BrokerError> {
        let _ = (from, bytes_max);
        todo!()
    }

    /// The offset that a position means now. A position behind the high watermark by time means the high watermark.
    pub fn resolve(&self, position: &v1::Position) -> Result<u64, BrokerError> {
        let _ = position;
        todo!()
    }

    /// Moves the start of the log up, replicated; answers with the new start once applied here.
    pub async fn trim(&self, to_offset: u64) -> Result<u64, BrokerError> {
        let _ = to_offset;
        todo!()
    }

    /// The state of the replica at this moment.
    pub fn status(&self) -> PartitionStatus {
        todo!()
    }

    /// Starts handing leadership to the replica on `to_node` (0: the most caught-up one); answers with the node chosen.
    pub async fn transfer_leadership(&self, to_node: u64) -> Result<u64, BrokerError> {
        let _ = to_node;
        todo!()
    }
}
