//! A cluster that exists only in memory: logs, leaders, deduplication by the broker's rules, and faults on demand.
//!
//! Owns: the model and the unary services. `fake_streams` has the two streams. Never: durability; nodes share one world.
#![expect(clippy::disallowed_methods, reason = "the fake is the outside that seams lead to")]

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use highwater_proto::batch::{BatchHeader, BatchView, sequence_add, stamped_prefix};
use highwater_proto::v1;
use highwater_proto::v1::cluster_service_server::{ClusterService, ClusterServiceServer};
use highwater_proto::v1::consumer_service_server::ConsumerServiceServer;
use highwater_proto::v1::producer_service_server::ProducerServiceServer;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

pub(crate) const TOPIC: &str = "orders";

/// What goes wrong with one batch that arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProduceFault {
    /// It is written, and the stream breaks before the answer.
    BreakAfterWrite,
    /// The stream breaks, nothing is written.
    BreakBeforeWrite,
    /// It is written, but the answer says that nobody knows.
    WriteThenUnknown,
    /// It is not written, and the answer says that nobody knows.
    UnknownWithoutWrite,
    /// Refused for now.
    Overloaded,
    /// Refused for good.
    Invalid,
    /// It is written and never answered.
    Swallow,
    /// It is written and answered after the next one.
    AnswerLater,
}

/// What goes wrong with one message that would be sent to a consumer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ConsumeFault {
    /// The stream breaks.
    Break,
    /// Nothing is said any more, not even heartbeats.
    FallSilent,
    /// A batch is left out.
    LeaveOut,
    /// "Not leader" for a partition that is led here.
    RedirectNowhere,
    /// A retriable refusal.
    RevokeForNow,
}

#[derive(Debug, Default)]
pub(crate) struct Log {
    pub(crate) leader: usize,
    pub(crate) epoch: u64,
    pub(crate) start: i64,
    pub(crate) next: i64,
    /// Stamped batches by base offset.
    pub(crate) batches: BTreeMap<i64, Bytes>,
    producers: HashMap<i64, Producer>,
}

#[derive(Debug, Default)]
struct Producer {
    epoch: i16,
    /// First and last sequence and base offset of the last five batches.
    batches: VecDeque<(i32, i32, i64)>,
}

impl Log {
    /// Appends by the broker's rules; the base offset and whether it was a duplicate.
    pub(crate) fn append(&mut self, batch: &Bytes) -> Result<(i64, bool), v1::ErrorDetail> {
        let header = BatchHeader::read(batch).expect("clients send whole batches");
        BatchView::parse(batch.clone()).expect("clients send right checksums");
        if header.is_idempotent() {
            if let Some(original) = self.check(&header)? {
                return Ok((original, true));
            }
            let last = sequence_add(header.base_sequence, header.offset_span() - 1);
            let producer = self.producers.entry(header.producer_id).or_default();
            if producer.epoch != header.producer_epoch {
                *producer = Producer { epoch: header.producer_epoch, batches: VecDeque::new() };
            }
            producer.batches.push_back((header.base_sequence, last, self.next));
            if producer.batches.len() > 5 {
                producer.batches.pop_front();
            }
        }
        let base = self.next;
        let mut stamped = stamped_prefix(batch, base, 1).to_vec();
        stamped.extend_from_slice(&batch[16..]);
        self.batches.insert(base, Bytes::from(stamped));
        self.next += i64::from(header.offset_span());
        Ok((base, false))
    }

    fn check(&self, header: &BatchHeader) -> Result<Option<i64>, v1::ErrorDetail> {
        let Some(known) = self.producers.get(&header.producer_id) else {
            return match header.base_sequence {
                0 => Ok(None),
                _ => Err(detail("UNKNOWN_PRODUCER", false, false)),
            };
        };
        if header.producer_epoch < known.epoch {
            return Err(detail("PRODUCER_FENCED", false, false));
        }
        let same = header.producer_epoch == known.epoch;
        let found = known.batches.iter().find(|(first, ..)| same && *first == header.base_sequence);
        if let Some((_, _, base)) = found {
            return Ok(Some(*base));
        }
        let expected = match known.batches.back() {
            Some((_, last, _)) if same => sequence_add(*last, 1),
            _ => 0,
        };
        if header.base_sequence == expected {
            Ok(None)
        } else {
            Err(detail("OUT_OF_ORDER_SEQUENCE", false, false))
        }
    }

    /// Every record's value as text, in order.
    pub(crate) fn values(&self) -> Vec<String> {
        let mut values = Vec::new();
        for batch in self.batches.values() {
            for record in BatchView::parse(batch.clone()).unwrap().records().unwrap() {
                let value = record.unwrap().value.unwrap();
                values.push(String::from_utf8(value.to_vec()).unwrap());
            }
        }
        values
    }

    /// Forgets every producer, as a broker may that has seen too many.
    pub(crate) fn forget_producers(&mut self) {
        self.producers.clear();
    }
}

pub(crate) fn detail(reason: &str, retriable: bool, may: bool) -> v1::ErrorDetail {
    v1::ErrorDetail {
        code: 14,
        reason: reason.to_owned(),
        message: format!("scripted {reason}"),
        metadata: Default::default(),
        retriable,
        may_have_been_written: may,
    }
}

/// What all nodes share.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) addresses: Vec<SocketAddr>,
    pub(crate) topic_id: String,
    pub(crate) logs: Vec<Log>,
    pub(crate) exists: bool,
    /// Faults of the next batches, by arrival at any node. None is no fault.
    pub(crate) produce_faults: VecDeque<Option<ProduceFault>>,
    /// Faults of the next messages to consumers.
    pub(crate) consume_faults: VecDeque<Option<ConsumeFault>>,
    /// Nodes that say in their answers that nobody leads anywhere else.
    pub(crate) hints: bool,
    /// A node that reads no produce stream and says nothing on them.
    pub(crate) held: Option<usize>,
    pub(crate) next_producer_id: i64,
    /// Batches that have arrived: their partition and base sequence.
    pub(crate) arrivals: Vec<(u32, i32)>,
    pub(crate) open_subscriptions: usize,
    /// Bytes of batches sent to consumers.
    pub(crate) given_bytes: usize,
    pub(crate) heartbeat: Duration,
}

#[derive(Clone, Debug)]
pub(crate) struct Fake {
    pub(crate) world: Arc<Mutex<World>>,
    pub(crate) changed: Arc<Notify>,
    nodes: Arc<Mutex<Vec<Life>>>,
}

/// A node while it lives: its runtime holds its sockets, so that ending it breaks every connection.
#[derive(Debug, Default)]
struct Life(Option<tokio::runtime::Runtime>);

impl Life {
    fn end(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        self.end();
    }
}

/// One node's services.
#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) index: usize,
    pub(crate) fake: Fake,
}

impl Fake {
    /// A cluster of `nodes` with one topic; partition n is led by node n modulo nodes.
    pub(crate) async fn start(nodes: usize, partitions: usize) -> Self {
        let logs = (0..partitions)
            .map(|number| Log { leader: number % nodes, epoch: 1, ..Log::default() })
            .collect();
        let world = World {
            addresses: Vec::new(),
            topic_id: "topic-1".into(),
            logs,
            exists: true,
            produce_faults: VecDeque::new(),
            consume_faults: VecDeque::new(),
            hints: true,
            held: None,
            next_producer_id: 100,
            arrivals: Vec::new(),
            open_subscriptions: 0,
            given_bytes: 0,
            heartbeat: Duration::from_millis(100),
        };
        let fake = Self {
            world: Arc::new(Mutex::new(world)),
            changed: Arc::default(),
            nodes: Arc::default(),
        };
        for index in 0..nodes {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            fake.world.lock().addresses.push(listener.local_addr().unwrap());
            fake.nodes.lock().push(Life::default());
            fake.serve(index, listener);
        }
        fake
    }

    fn serve(&self, index: usize, listener: std::net::TcpListener) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        // A fake that lives in its own node's services would never be dropped.
        let node = Node { index, fake: Self { nodes: Arc::default(), ..self.clone() } };
        listener.set_nonblocking(true).unwrap();
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            let limit = 8 << 20;
            tonic::transport::Server::builder()
                .add_service(ClusterServiceServer::new(node.clone()))
                .add_service(
                    ProducerServiceServer::new(node.clone()).max_decoding_message_size(limit),
                )
                .add_service(
                    ConsumerServiceServer::new(node.clone()).max_decoding_message_size(limit),
                )
                .serve_with_incoming(TcpListenerStream::new(listener))
                .await
                .unwrap();
        });
        self.nodes.lock()[index].0 = Some(runtime);
    }

    /// Kills a node: its connections break, its port refuses.
    pub(crate) fn kill(&self, index: usize) {
        self.nodes.lock()[index].end();
    }

    /// Starts it again on its old port.
    pub(crate) async fn revive(&self, index: usize) {
        let address = self.world.lock().addresses[index];
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        loop {
            // Only tokio's way of binding lets a port be used again at once.
            match TcpListener::bind(address).await {
                Ok(listener) => return self.serve(index, listener.into_std().unwrap()),
                Err(error) if tokio::time::Instant::now() > deadline => panic!("{error}"),
                Err(_in_use) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }

    /// Moves a partition to another leader.
    pub(crate) fn lead(&self, partition: usize, node: usize) {
        {
            let mut world = self.world.lock();
            world.logs[partition].leader = node;
            world.logs[partition].epoch += 1;
        }
        self.changed.notify_waiters();
    }

    pub(crate) fn servers(&self) -> String {
        let world = self.world.lock();
        let texts: Vec<_> = world.addresses.iter().map(ToString::to_string).collect();
        texts.join(",")
    }

    pub(crate) async fn client(&self) -> highwater_client::Client {
        let servers = self.servers();
        highwater_client::Client::builder().servers(servers).seed(7).connect().await.unwrap()
    }

    /// Puts records into a log, as another producer would.
    pub(crate) fn fill(&self, partition: usize, values: impl IntoIterator<Item = String>) {
        use highwater_proto::batch::{BatchBuilder, Compression};
        {
            let mut world = self.world.lock();
            let mut builder = BatchBuilder::new(Compression::None);
            for (n, value) in values.into_iter().enumerate() {
                let timestamp_ms = i64::try_from(n).unwrap();
                builder.push(timestamp_ms, None, Some(value.as_bytes()), &[]).unwrap();
                if builder.record_count() == 3 {
                    let batch = builder.build().unwrap();
                    world.logs[partition].append(&batch).unwrap();
                }
            }
            if !builder.is_empty() {
                let batch = builder.build().unwrap();
                world.logs[partition].append(&batch).unwrap();
            }
        }
        self.changed.notify_waiters();
    }
}

/// Waits until something is so.
pub(crate) async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while !is_so() {
        assert!(tokio::time::Instant::now() < deadline, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// What must come to an end, though nobody says when.
pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), what).await.expect("within a minute")
}

impl World {
    fn nodes(&self) -> Vec<v1::Node> {
        let node = |(index, address): (usize, &SocketAddr)| v1::Node {
            id: index as u64 + 1,
            address: address.to_string(),
            alive: true,
            ..Default::default()
        };
        self.addresses.iter().enumerate().map(node).collect()
    }

    /// "Not leader", with a hint if nodes give any.
    pub(crate) fn not_leader(&self, partition: usize) -> v1::ErrorDetail {
        let mut detail = detail("NOT_LEADER", true, false);
        if self.hints {
            let leader = self.logs[partition].leader;
            let address = self.addresses[leader].to_string();
            detail.metadata.insert("leader_node_id".into(), (leader + 1).to_string());
            detail.metadata.insert("leader_address".into(), address);
        }
        detail
    }
}

#[tonic::async_trait]
impl ClusterService for Node {
    async fn get_cluster(
        &self,
        _: Request<v1::GetClusterRequest>,
    ) -> Result<Response<v1::GetClusterResponse>, Status> {
        let nodes = self.fake.world.lock().nodes();
        Ok(Response::new(v1::GetClusterResponse { nodes, ..Default::default() }))
    }

    async fn get_metadata(
        &self,
        _: Request<v1::GetMetadataRequest>,
    ) -> Result<Response<v1::GetMetadataResponse>, Status> {
        let world = self.fake.world.lock();
        let partitions = world.logs.iter().zip(0..).map(|(log, partition)| v1::PartitionMetadata {
            partition,
            leader: log.leader as u64 + 1,
            leader_epoch: log.epoch,
        });
        let topic = v1::TopicMetadata {
            name: TOPIC.into(),
            id: world.topic_id.clone(),
            partitions: partitions.collect(),
            record_bytes_max: 1 << 20,
        };
        let topics = world.exists.then_some(topic).into_iter().collect();
        let nodes = world.nodes();
        Ok(Response::new(v1::GetMetadataResponse { nodes, topics, ..Default::default() }))
    }

    type WatchMetadataStream = tokio_stream::Empty<Result<v1::WatchMetadataResponse, Status>>;

    async fn watch_metadata(
        &self,
        _: Request<v1::WatchMetadataRequest>,
    ) -> Result<Response<Self::WatchMetadataStream>, Status> {
        Err(Status::unimplemented("not scripted"))
    }

    async fn get_health(
        &self,
        _: Request<v1::GetHealthRequest>,
    ) -> Result<Response<v1::GetHealthResponse>, Status> {
        Ok(Response::new(v1::GetHealthResponse { healthy: true, ..Default::default() }))
    }

    async fn transfer_leadership(
        &self,
        _: Request<v1::TransferLeadershipRequest>,
    ) -> Result<Response<v1::TransferLeadershipResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }

    async fn reassign_partition(
        &self,
        _: Request<v1::ReassignPartitionRequest>,
    ) -> Result<Response<v1::ReassignPartitionResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }

    async fn add_node(
        &self,
        _: Request<v1::AddNodeRequest>,
    ) -> Result<Response<v1::AddNodeResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }

    async fn rebalance(
        &self,
        _: Request<v1::RebalanceRequest>,
    ) -> Result<Response<v1::RebalanceResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }

    async fn remove_node(
        &self,
        _: Request<v1::RemoveNodeRequest>,
    ) -> Result<Response<v1::RemoveNodeResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }
}
