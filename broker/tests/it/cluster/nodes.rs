//! Several nodes of one cluster in this process, which can be stopped and started again on the same directories and ports.
//! Owns no assertion about behaviour.

use std::path::PathBuf;

use highwater_broker::cluster::FEATURE_LEVEL;
use highwater_broker::config::Config;
use highwater_broker::replica::{PartitionHandle, PartitionStatus};
use highwater_broker::{Broker, BrokerOptions, StartError};
use highwater_proto::batch::{BatchBuilder, Compression};
use highwater_proto::v1;
use highwater_testing::free_address;
use tempfile::TempDir;

use crate::harness::*;

/// Nodes of one cluster. The node at place `n` has the id `n + 1`, as its place in the seed list says.
pub(crate) struct Nodes {
    brokers: Vec<Option<Broker>>,
    /// The highest feature level that each says it understands.
    levels: Vec<u32>,
    configs: Vec<Config>,
    dirs: Vec<TempDir>,
}

impl Nodes {
    /// What three nodes need; none is started.
    pub(crate) fn prepare(change: impl Fn(&mut Config)) -> Self {
        let seeds: Vec<String> = (0..3).map(|_| free_address()).collect();
        let dirs: Vec<TempDir> = seeds.iter().map(|_| tempfile::tempdir().unwrap()).collect();
        let config = |(dir, seed): (&TempDir, &String)| {
            let mut config = quick_config(dir);
            config.raft.tick_ms = 30;
            config.node.seeds = seeds.clone();
            config.listen.internal = seed.clone();
            config.listen.client = free_address();
            change(&mut config);
            config
        };
        let configs = dirs.iter().zip(&seeds).map(config).collect();
        let levels = vec![FEATURE_LEVEL; seeds.len()];
        Self { brokers: seeds.iter().map(|_| None).collect(), levels, configs, dirs }
    }

    /// Three nodes that serve.
    pub(crate) async fn start(change: impl Fn(&mut Config)) -> Self {
        let mut nodes = Self::prepare(change);
        nodes.run_all().await;
        nodes
    }

    /// Adds a node with an empty data directory and the seed list of the others, in which it is not; it joins when it is run. Its
    /// place.
    pub(crate) fn prepare_another(&mut self) -> usize {
        let dir = tempfile::tempdir().unwrap();
        let mut config = self.configs[0].clone();
        config.node.data_dir = dir.path().to_owned();
        config.listen.internal = free_address();
        config.listen.client = free_address();
        self.brokers.push(None);
        self.levels.push(FEATURE_LEVEL);
        self.configs.push(config);
        self.dirs.push(dir);
        self.brokers.len() - 1
    }

    /// Adds a node and waits until it serves. It gets the next id.
    pub(crate) async fn join_another(&mut self) -> usize {
        let place = self.prepare_another();
        self.run(place).await;
        soon("joining", self.broker(place).wait_ready()).await;
        assert_eq!(self.broker(place).node().id(), place as u64 + 1);
        place
    }

    /// Starts those that do not run, and waits until all serve.
    pub(crate) async fn run_all(&mut self) {
        for place in 0..self.brokers.len() {
            if self.brokers[place].is_none() {
                self.run(place).await;
            }
        }
        self.all_ready().await;
    }

    pub(crate) async fn all_ready(&self) {
        for broker in self.brokers.iter().flatten() {
            soon("being ready", broker.wait_ready()).await;
        }
    }

    /// Starts one; it may not serve yet.
    pub(crate) async fn run(&mut self, place: usize) {
        self.try_run(place).await.unwrap();
    }

    pub(crate) async fn try_run(&mut self, place: usize) -> Result<(), StartError> {
        assert!(self.brokers[place].is_none(), "it runs already");
        let options =
            BrokerOptions { feature_level: self.levels[place], ..BrokerOptions::default() };
        let broker = Broker::start_with(self.configs[place].clone(), options).await?;
        self.brokers[place] = Some(broker);
        Ok(())
    }

    /// Makes one pass for another version from its next start on.
    pub(crate) fn set_level(&mut self, place: usize, level: u32) {
        self.levels[place] = level;
    }

    /// Stops one; what it keeps on disk stays.
    pub(crate) async fn stop(&mut self, place: usize) {
        let broker = self.brokers[place].take().expect("it runs");
        soon("stopping", broker.stop()).await;
    }

    /// Stops all that run, at the same time.
    pub(crate) async fn stop_all(&mut self) {
        let running: Vec<Broker> = self.brokers.iter_mut().filter_map(Option::take).collect();
        soon("stopping", futures::future::join_all(running.iter().map(Broker::stop))).await;
    }

    /// Empties the data directory of one that does not run.
    pub(crate) fn wipe(&mut self, place: usize) {
        assert!(self.brokers[place].is_none(), "it runs");
        self.dirs[place] = tempfile::tempdir().unwrap();
        self.configs[place].node.data_dir = self.dirs[place].path().to_owned();
    }

    pub(crate) fn broker(&self, place: usize) -> &Broker {
        self.brokers[place].as_ref().expect("it runs")
    }

    pub(crate) fn config(&mut self, place: usize) -> &mut Config {
        &mut self.configs[place]
    }

    pub(crate) fn seeds(&self) -> Vec<String> {
        self.configs[0].node.seeds.clone()
    }

    pub(crate) fn clients(&self, place: usize) -> Clients {
        Clients::of(self.broker(place).client_addr())
    }

    /// Everything in a topic's first partition; the node must lead it.
    pub(crate) async fn fetch_all(&self, place: usize, topic: &str) -> Vec<v1::FetchedRecord> {
        let (mut records, mut at) = (Vec::new(), start());
        let reading = async {
            loop {
                let page = self.clients(place).fetch(topic, 0, at).await.unwrap();
                records.extend(page.records);
                if page.next_offset == page.high_watermark {
                    return records;
                }
                at = v1::position::At::Offset(page.next_offset);
            }
        };
        soon("reading to the end", reading).await
    }

    /// The cluster that a node belongs to; empty if none.
    pub(crate) fn cluster_id(&self, place: usize) -> String {
        self.broker(place).node().view().cluster_id.clone()
    }

    /// What a node says about being ready.
    pub(crate) fn checks(&self, place: usize) -> String {
        self.broker(place).node().ready_state().checks.join("\n")
    }

    /// Waits until a node that does not serve gives a reason that contains all of these.
    pub(crate) async fn waits_for(&self, place: usize, reasons: &[&str]) {
        until(&format!("node {} saying {reasons:?}", place + 1), || async {
            let checks = self.checks(place);
            reasons.iter().all(|reason| checks.contains(reason))
        })
        .await;
        assert!(!self.broker(place).node().ready_state().ready);
    }

    /// Where a partition's replica on a node keeps its data.
    pub(crate) fn group_dir(&self, place: usize, group: u64) -> PathBuf {
        self.configs[place].node.data_dir.join("groups").join(group.to_string())
    }

    /// The Raft groups of a topic's partitions, as a node that runs knows them.
    pub(crate) fn groups(&self, topic: &str) -> Vec<u64> {
        let broker = self.brokers.iter().flatten().next().expect("one runs");
        let view = broker.node().view();
        let groups = view.topics[topic].partitions.iter().map(|partition| partition.group);
        groups.collect()
    }

    pub(crate) fn replica(&self, place: usize, group: u64) -> PartitionHandle {
        let node = self.broker(place).node();
        node.replica(group).expect("the node has a replica of the group")
    }

    pub(crate) fn status(&self, place: usize, group: u64) -> PartitionStatus {
        self.replica(place, group).status()
    }

    /// The place of the node that leads a group now, by its own word; the others must agree that it does.
    pub(crate) async fn leader(&self, group: u64) -> usize {
        let led = || {
            let running = (0..self.brokers.len()).filter(|place| self.brokers[*place].is_some());
            let mut leaders = running.clone().filter(|place| {
                let replica = self.broker(*place).node().replica(group);
                replica.is_some_and(|replica| replica.is_leader())
            });
            let leader = leaders.next()?;
            let agreed = running.clone().all(|place| {
                let view = self.broker(place).node().view();
                view.leaders.get(&group).is_some_and(|(node, _)| *node == leader as u64 + 1)
            });
            (agreed && leaders.next().is_none()).then_some(leader)
        };
        let mut found = None;
        until("one leader, known to all", || {
            found = led();
            let is_found = found.is_some();
            async move { is_found }
        })
        .await;
        found.expect("it was found")
    }

    /// Moves the leadership of a topic's partition to a node.
    pub(crate) async fn transfer(&self, topic: &str, partition: u32, to: usize) {
        let group = self.groups(topic)[partition as usize];
        until("the leadership moving", || async {
            let request = v1::TransferLeadershipRequest {
                topic: topic.to_owned(),
                partition,
                to_node_id: to as u64 + 1,
            };
            let leader = self.leader(group).await;
            // A target that has only just caught up may be refused once.
            let _ = self.clients(leader).cluster().transfer_leadership(request).await;
            self.leader(group).await == to
        })
        .await;
    }

    /// Publishes one batch to a partition at its leader, which must be at this place.
    pub(crate) async fn produce(
        &self,
        place: usize,
        topic: &str,
        acks: v1::Acks,
        value: &str,
        timeout_ms: u32,
    ) -> Result<v1::ProduceAck, v1::ErrorDetail> {
        let mut stream = self.clients(place).produce_stream(v1::ProduceInit::default()).await;
        stream.initialized().await;
        stream
            .send_batch(v1::ProduceBatch {
                request_id: 1,
                topic: topic.to_owned(),
                batch: batch(&[value]),
                acks: acks.into(),
                timeout_ms,
                ..Default::default()
            })
            .await;
        stream.outcome().await
    }
}

/// What a producer stamps on its batches.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stamp {
    pub(crate) id: i64,
    pub(crate) epoch: i16,
    pub(crate) sequence: i32,
}

/// A batch of one record from an idempotent producer.
pub(crate) fn stamped(stamp: Stamp, value: &[u8]) -> bytes::Bytes {
    let mut builder = BatchBuilder::new(Compression::None);
    builder.set_producer(stamp.id, stamp.epoch, stamp.sequence);
    builder.push(1_000, None, Some(value), &[]).unwrap();
    builder.build().unwrap()
}

impl ProduceStream {
    /// The answer to the one batch that is outstanding.
    pub(crate) async fn outcome(&mut self) -> Result<v1::ProduceAck, v1::ErrorDetail> {
        loop {
            match self.next().await {
                Some(Ok(v1::produce_stream_response::Message::Ack(ack))) => return Ok(ack),
                Some(Ok(v1::produce_stream_response::Message::Failure(failure))) => {
                    return Err(failure.error.expect("a failure says why"));
                }
                // A node that stops says goodbye first and answers all the same.
                Some(Ok(v1::produce_stream_response::Message::Goodbye(_))) => {}
                other => panic!("expected an answer, got {other:?}"),
            }
        }
    }
}

/// Creates "orders" with one partition of small segments; its group.
pub(crate) async fn create_in_small_segments(nodes: &Nodes, replication_factor: u32) -> u64 {
    let create = v1::TopicServiceCreateRequest {
        name: "orders".into(),
        partitions: 1,
        replication_factor,
        config: [("segment.bytes".into(), "1048576".into())].into(),
    };
    nodes.clients(0).topics().create(create).await.unwrap();
    nodes.groups("orders")[0]
}
