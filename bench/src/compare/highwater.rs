//! Highwater under the load, by the same code as `bench produce`, `consume` and `e2e`.
//!
//! Owns: topics for the turns. Never: another way of measuring it.

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use futures::FutureExt;
use futures::future::BoxFuture;
use highwater_client::{Acks, Client, ClientBuilder, Compression, NewTopic, reason};

use super::{Server, Side, Workload};
use crate::args::{Load, Output};
use crate::report::Measured;
use crate::{consume, end_to_end, produce};

/// A topic that need not keep everything keeps so many segments and uses the files of what it drops again, as one does that has run
/// for a while.
const KEPT_SEGMENTS: u64 = 4;
/// Of one partition; many have smaller ones. The segment that a partition writes to is reserved ahead, by the MiB, so that a
/// thousand with the usual ones would fill a disk with reserved space.
const SEGMENT_BYTES: RangeInclusive<u64> = 1 << 20..=64 << 20;
/// What the segments that are written to may take together, on one node.
const ACTIVE_BYTES: u64 = 256 << 20;

struct Highwater {
    name: String,
    client: Client,
    pids: Vec<u32>,
    acks: Acks,
    durability: &'static str,
    topics: AtomicU64,
}

/// Adds a side for each kind of acknowledgement that is compared.
pub(super) async fn connect(server: &Server, sides: &mut Vec<Box<dyn Side>>) -> anyhow::Result<()> {
    let client = ClientBuilder::from_env()?
        .servers(server.addresses.join(",").as_str())
        .client_id("bench-compare")
        .connect_timeout(Duration::from_secs(10))
        .connect()
        .await?;
    let acks =
        [(Acks::QuorumFsync, "synced on a majority"), (Acks::Leader, "in the leader's memory")];
    for (acks, durability) in acks {
        sides.push(Box::new(Highwater {
            name: format!("{} {acks}", server.setting),
            client: client.clone(),
            pids: server.pids.clone(),
            acks,
            durability,
            topics: AtomicU64::new(0),
        }));
    }
    Ok(())
}

impl Highwater {
    fn load(&self, workload: &Workload, time: Duration, topic: &str) -> Load {
        Load {
            servers: String::new(),
            topic: topic.to_owned(),
            create: false,
            partitions: workload.partitions,
            replication_factor: 0,
            records: None,
            duration: Some(time.as_secs()),
            record_bytes: workload.record_bytes,
            rate: workload.rate,
            producers: workload.producers,
            acks: self.acks,
            compression: Compression::None,
            linger_ms: 0,
            batch_bytes: 1 << 20,
            unacked_bytes: 32 << 20,
            each: false,
            group: None,
            seed: 1,
            broker_pids: Vec::new(),
            output: Output::Json,
        }
    }

    /// Publishes so much that files are used again from then on: a schedule would take minutes to come to that.
    async fn fill(&self, workload: &Workload, topic: &str, bytes: u64) -> anyhow::Result<()> {
        let load = Load {
            records: Some(bytes / u64::from(workload.record_bytes)),
            duration: None,
            rate: None,
            ..self.load(workload, Duration::ZERO, topic)
        };
        let filled = produce::run(&self.client, &load).await?;
        ensure!(filled.errors == 0, "filling '{topic}' failed: {}", filled.first_error);
        Ok(())
    }

    async fn measure(
        &self,
        workload: &Workload,
        time: Duration,
        topic: &str,
    ) -> anyhow::Result<Measured> {
        let load = self.load(workload, time, topic);
        if workload.rate.is_some() {
            return end_to_end::run(&self.client, &load).await;
        }
        let published = produce::run(&self.client, &load).await?;
        if !workload.read || published.errors > 0 {
            return Ok(published);
        }
        consume::run(&self.client, &Load { duration: None, ..load }).await
    }
}

impl Side for Highwater {
    fn name(&self) -> &str {
        &self.name
    }

    fn durability(&self) -> &'static str {
        self.durability
    }

    fn pids(&self) -> &[u32] {
        &self.pids
    }

    fn run<'a>(
        &'a self,
        workload: &'a Workload,
        time: Duration,
    ) -> BoxFuture<'a, anyhow::Result<Option<Measured>>> {
        async move {
            let admin = self.client.admin();
            if !workload.read {
                let topic = format!("{}.{}", self.acks, workload.name);
                let segment_bytes = (ACTIVE_BYTES / u64::from(workload.partitions))
                    .clamp(*SEGMENT_BYTES.start(), *SEGMENT_BYTES.end());
                let new = NewTopic::new(&topic)
                    .partitions(workload.partitions)
                    .config("segment.bytes", segment_bytes.to_string())
                    .config("retention.bytes", (KEPT_SEGMENTS * segment_bytes).to_string());
                let is_new = match admin.create_topic(new).await {
                    Ok(_) => true,
                    Err(error) if error.reason() == reason::TOPIC_EXISTS => false,
                    Err(error) => return Err(error).context("cannot create the topic"),
                };
                let measured = self.measure(workload, time, &topic).await?;
                if is_new && workload.rate.is_some() {
                    self.fill(workload, &topic, (KEPT_SEGMENTS + 1) * segment_bytes).await?;
                }
                return Ok(Some(measured));
            }
            let number = self.topics.fetch_add(1, Ordering::Relaxed);
            let topic = format!("{}.{}.{number}", self.acks, workload.name);
            let new = NewTopic::new(&topic).partitions(workload.partitions);
            admin.create_topic(new).await.context("cannot create the topic")?;
            let measured = self.measure(workload, time, &topic).await;
            admin.delete_topic(&topic).await.context("cannot delete the topic")?;
            measured.map(Some)
        }
        .boxed()
    }
}
