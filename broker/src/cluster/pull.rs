//! Fetches the compacted segments that a snapshot calls for from the node that sent it, and gives out our own.
//!
//! Owns: the transfer, chunk by chunk, one chunk in flight for each group and a few groups at once. Never: installs anything, or
//! tries again; the leader sends a newer snapshot.

use std::sync::Arc;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use highwater_proto::internal::{ReadCompactedRequest, ReadCompactedResponse};
use highwater_storage::{CompactedReceiver, StagedCompaction};
use tokio::sync::{Semaphore, mpsc};

use super::NodeId;
use super::node::Node;
use crate::error::BrokerError;
use crate::replica::Pull;

/// Asked for, and given, at once.
const CHUNK_BYTES: u64 = 1 << 20;
/// Groups whose segments are fetched at once.
const PULLS_MAX: usize = 4;

impl Node {
    /// Runs until the node stops.
    pub(super) async fn pull_loop(self, mut wanted: mpsc::UnboundedReceiver<Pull>) {
        let slots = Arc::new(Semaphore::new(PULLS_MAX));
        let mut pulls = FuturesUnordered::new();
        loop {
            tokio::select! {
                () = self.inner.cancel.cancelled() => return,
                pull = wanted.recv() => match pull {
                    Some(pull) => pulls.push(self.pull(pull, &slots)),
                    None => return,
                },
                Some(()) = pulls.next() => {}
            }
        }
    }

    async fn pull(&self, pull: Pull, slots: &Semaphore) {
        let Pull { group, from_node, receiver, done } = pull;
        let Ok(_slot) = slots.acquire().await else { return };
        done(self.receive(group, from_node, receiver).await);
    }

    async fn receive(
        &self,
        group_id: u64,
        from_node: NodeId,
        mut receiver: CompactedReceiver,
    ) -> Result<StagedCompaction, String> {
        while let Some(wanted) = receiver.wanted() {
            let address =
                self.view().nodes.get(&from_node).map(|node| node.internal_address.clone());
            let address = address.ok_or_else(|| format!("node {from_node} is not known"))?;
            let request = ReadCompactedRequest {
                group_id,
                file: wanted.file,
                from: wanted.from,
                bytes_max: wanted.bytes.min(CHUNK_BYTES),
            };
            let answer = self.inner.deps.calls.read_compacted(&address, request).await;
            let data = answer.map_err(|error| error.to_string())?.data;
            let took = self.blocking(move || receiver.take(&data).map(|()| receiver)).await?;
            receiver = took.map_err(|error| error.to_string())?;
        }
        self.blocking(|| receiver.finish()).await?.map_err(|error| error.to_string())
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, String> {
        let done = self.inner.deps.tasks.spawn_blocking(work).await;
        done.map_err(|error| format!("writing compacted segments failed: {error}"))
    }

    /// Answers NodeService.ReadCompacted.
    pub fn read_compacted(
        &self,
        request: &ReadCompactedRequest,
    ) -> Result<ReadCompactedResponse, BrokerError> {
        let not_ready = |why: String| BrokerError::NotReady { why };
        let group = request.group_id;
        let handle =
            self.inner.engine.get(group).ok_or_else(|| {
                not_ready(format!("no replica of group {group} is in service here"))
            })?;
        let bytes_max = request.bytes_max.min(CHUNK_BYTES);
        let data = handle.read_compacted(request.file, request.from, bytes_max)?;
        let gone = || not_ready(format!("file {} of group {group} was replaced", request.file));
        Ok(ReadCompactedResponse { data: data.ok_or_else(gone)? })
    }
}
