//! Brokers in this process, clients for them, and the small helpers every test needs. Owns no assertion about behaviour.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use highwater_broker::config::Config;
use highwater_broker::{Broker, StartError};
use highwater_proto::batch::{BatchBuilder, Compression};
use highwater_proto::v1;
use highwater_proto::v1::cluster_service_client::ClusterServiceClient;
use highwater_proto::v1::consumer_service_client::ConsumerServiceClient;
use highwater_proto::v1::group_service_client::GroupServiceClient;
use highwater_proto::v1::producer_service_client::ProducerServiceClient;
use highwater_proto::v1::registry_service_client::RegistryServiceClient;
use highwater_proto::v1::topic_service_client::TopicServiceClient;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};
use tonic_types::StatusExt;

/// Longest wait for anything; a test that needs it fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits for something that must happen.
pub(crate) async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(output) => output,
        Err(_) => panic!("{what} did not happen within {PATIENCE:?}"),
    }
}

/// Waits until a condition holds.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    soon(what, async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

/// A configuration with a quick clock, so that elections do not take the tests' time.
pub(crate) fn quick_config(dir: &TempDir) -> Config {
    let mut config = Config::in_process(dir.path());
    config.raft.tick_ms = 10;
    config.node.shutdown_ms_max = 2_000;
    config
}

/// A broker with a data directory of its own.
pub(crate) struct TestBroker {
    pub(crate) broker: Broker,
    pub(crate) dir: TempDir,
}

impl TestBroker {
    /// A cluster of one, ready.
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub(crate) async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = quick_config(&dir);
        change(&mut config);
        let broker = Broker::start(config).await.unwrap();
        soon("being ready", broker.wait_ready()).await;
        Self { broker, dir }
    }

    /// A second broker on the same directory or ports, which is expected to fail.
    pub(crate) async fn start_error(config: Config) -> StartError {
        Broker::start(config).await.expect_err("it must not start")
    }

    pub(crate) fn clients(&self) -> Clients {
        Clients::of(self.broker.client_addr())
    }
}

/// Clients of one broker. Every kind shares one connection.
#[derive(Clone)]
pub(crate) struct Clients {
    channel: Channel,
}

impl Clients {
    pub(crate) fn of(address: SocketAddr) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
        Self { channel: endpoint.connect_lazy() }
    }

    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    pub(crate) fn producer(&self) -> ProducerServiceClient<Channel> {
        ProducerServiceClient::new(self.channel.clone()).max_encoding_message_size(64 << 20)
    }

    pub(crate) fn consumer(&self) -> ConsumerServiceClient<Channel> {
        ConsumerServiceClient::new(self.channel.clone()).max_decoding_message_size(8 << 20)
    }

    pub(crate) fn topics(&self) -> TopicServiceClient<Channel> {
        TopicServiceClient::new(self.channel.clone())
    }

    pub(crate) fn groups(&self) -> GroupServiceClient<Channel> {
        GroupServiceClient::new(self.channel.clone())
    }

    pub(crate) fn registry(&self) -> RegistryServiceClient<Channel> {
        RegistryServiceClient::new(self.channel.clone())
    }

    pub(crate) fn cluster(&self) -> ClusterServiceClient<Channel> {
        ClusterServiceClient::new(self.channel.clone())
    }

    /// Creates a topic with this many partitions.
    pub(crate) async fn create_topic(&self, name: &str, partitions: u32) -> v1::Topic {
        let request = v1::TopicServiceCreateRequest {
            name: name.to_owned(),
            partitions,
            ..Default::default()
        };
        let created = soon("creating a topic", async { self.topics().create(request).await }).await;
        let mut topic = created.unwrap().into_inner().topic.unwrap();
        // Creating waits for leaders, but not for ever; on a busy machine it may have given up.
        while topic.partitions.iter().any(|partition| partition.leader == 0) {
            let get = v1::TopicServiceGetRequest { name: name.to_owned() };
            let got = soon("leaders", async { self.topics().get(get).await }).await;
            topic = got.unwrap().into_inner().topic.unwrap();
        }
        topic
    }

    /// Publishes values to a partition, one batch for the call.
    pub(crate) async fn publish(
        &self,
        topic: &str,
        partition: u32,
        values: &[&str],
    ) -> v1::ProduceAck {
        let request = v1::ProduceRequest {
            topic: topic.to_owned(),
            partition: Some(partition),
            records: values.iter().map(|value| record(value)).collect(),
            ..Default::default()
        };
        let response = soon("publishing", async { self.producer().produce(request).await }).await;
        response.unwrap().into_inner().acks.remove(0)
    }

    /// Fetches structured records from a position on.
    pub(crate) async fn fetch(
        &self,
        topic: &str,
        partition: u32,
        at: v1::position::At,
    ) -> Result<v1::FetchResponse, Status> {
        let request = v1::FetchRequest {
            topic: topic.to_owned(),
            partition,
            position: position(at),
            ..Default::default()
        };
        soon("fetching", async { self.consumer().fetch(request).await })
            .await
            .map(tonic::Response::into_inner)
    }

    /// Opens a produce stream and says what `init` says.
    pub(crate) async fn produce_stream(&self, init: v1::ProduceInit) -> ProduceStream {
        let (sender, receiver) = mpsc::channel(1_024);
        let outbound = ReceiverStream::new(receiver);
        let inbound = self.producer().produce_stream(outbound).await.unwrap().into_inner();
        let stream = ProduceStream { sender: Some(sender), inbound };
        stream.send(v1::produce_stream_request::Message::Init(init)).await;
        stream
    }

    /// Joins a group as this member, reading one topic; waits until the broker has taken it in.
    pub(crate) async fn join(&self, group: &str, member: &str, topic: &str) -> Member {
        let init = v1::JoinInit {
            group: group.to_owned(),
            member_id: member.to_owned(),
            topics: vec![topic.to_owned()],
            session_timeout_ms: 60_000,
            ..Default::default()
        };
        self.join_with(init).await
    }

    /// The same with everything said; tries again while the group has no coordinator.
    pub(crate) async fn join_with(&self, init: v1::JoinInit) -> Member {
        soon("joining", async {
            loop {
                match self.try_join(init.clone()).await {
                    Ok(member) => return member,
                    Err(status) if reason(&status) == "NOT_COORDINATOR" => {}
                    Err(status) => panic!("{status}"),
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await
    }

    /// One try to join.
    pub(crate) async fn try_join(&self, init: v1::JoinInit) -> Result<Member, Status> {
        let (sender, receiver) = mpsc::channel(1_024);
        let outbound = ReceiverStream::new(receiver);
        let first = v1::JoinRequest { message: Some(v1::join_request::Message::Init(init)) };
        sender.send(first).await.expect("the receiver is there");
        let inbound = self.groups().join(outbound).await?.into_inner();
        let mut member = Member { sender, inbound };
        match member.next().await {
            Some(Ok(v1::join_response::Message::Joined(_))) => Ok(member),
            Some(Err(status)) => Err(status),
            other => panic!("expected joined, got {other:?}"),
        }
    }

    /// Opens a subscription.
    pub(crate) async fn subscribe(&self, init: v1::SubscribeInit) -> Subscription {
        let (sender, receiver) = mpsc::channel(1_024);
        let outbound = ReceiverStream::new(receiver);
        let inbound = self.consumer().subscribe(outbound).await.unwrap().into_inner();
        let subscription = Subscription { sender, inbound };
        subscription.send(v1::subscribe_request::Message::Init(init)).await;
        subscription
    }
}

/// A produce stream from the client's side.
pub(crate) struct ProduceStream {
    sender: Option<mpsc::Sender<v1::ProduceStreamRequest>>,
    inbound: Streaming<v1::ProduceStreamResponse>,
}

impl ProduceStream {
    pub(crate) async fn send(&self, message: v1::produce_stream_request::Message) {
        let request = v1::ProduceStreamRequest { message: Some(message) };
        // A stream that the broker has ended says so on the other side.
        let _ = self.sender.as_ref().expect("not closed").send(request).await;
    }

    pub(crate) async fn send_batch(&self, batch: v1::ProduceBatch) {
        self.send(v1::produce_stream_request::Message::Batch(batch)).await;
    }

    /// Says that nothing more comes.
    pub(crate) fn close(&mut self) {
        self.sender = None;
    }

    /// The next answer; `None` at the end of the stream.
    pub(crate) async fn next(
        &mut self,
    ) -> Option<Result<v1::produce_stream_response::Message, Status>> {
        let item = soon("an answer", self.inbound.next()).await?;
        Some(item.map(|response| response.message.expect("a known message")))
    }

    pub(crate) async fn initialized(&mut self) -> v1::ProduceInitialized {
        match self.next().await {
            Some(Ok(v1::produce_stream_response::Message::Initialized(initialized))) => initialized,
            other => panic!("expected initialized, got {other:?}"),
        }
    }

    pub(crate) async fn ack(&mut self) -> v1::ProduceAck {
        match self.next().await {
            Some(Ok(v1::produce_stream_response::Message::Ack(ack))) => ack,
            other => panic!("expected an ack, got {other:?}"),
        }
    }

    /// The reason of the next answer, which must be a failure of this request.
    pub(crate) async fn failure(&mut self, request_id: u64) -> v1::ErrorDetail {
        match self.next().await {
            Some(Ok(v1::produce_stream_response::Message::Failure(failure))) => {
                assert_eq!(failure.request_id, request_id);
                failure.error.unwrap()
            }
            other => panic!("expected a failure, got {other:?}"),
        }
    }
}

/// A member of a consumer group from the client's side. Sends no heartbeats by itself.
pub(crate) struct Member {
    sender: mpsc::Sender<v1::JoinRequest>,
    inbound: Streaming<v1::JoinResponse>,
}

impl Member {
    pub(crate) async fn send(&self, message: v1::join_request::Message) {
        let _ = self.sender.send(v1::JoinRequest { message: Some(message) }).await;
    }

    /// The next message; `None` at the end of the stream.
    pub(crate) async fn next(&mut self) -> Option<Result<v1::join_response::Message, Status>> {
        let item = soon("a message", self.inbound.next()).await?;
        Some(item.map(|response| response.message.expect("a known message")))
    }

    /// The next assignment, whatever else comes before it.
    pub(crate) async fn assignment(&mut self) -> Vec<v1::AssignedPartition> {
        loop {
            match self.next().await {
                Some(Ok(v1::join_response::Message::Assignment(assignment))) => {
                    return assignment.partitions;
                }
                Some(Ok(_)) => {}
                other => panic!("expected an assignment, got {other:?}"),
            }
        }
    }

    /// Waits for an assignment of so many partitions of which so many are wanted back.
    pub(crate) async fn assigned(
        &mut self,
        count: usize,
        wanted_back: usize,
    ) -> Vec<v1::AssignedPartition> {
        loop {
            let assigned = self.assignment().await;
            let wanted = assigned.iter().filter(|partition| partition.is_wanted_back).count();
            if (assigned.len(), wanted) == (count, wanted_back) {
                return assigned;
            }
        }
    }

    pub(crate) async fn release(&self, partitions: &[v1::AssignedPartition]) {
        let partitions = partitions.iter().map(owned).collect();
        let release = v1::ReleasePartitions { partitions };
        self.send(v1::join_request::Message::Release(release)).await;
    }

    /// Commits an offset; answers with the outcome, whatever else comes before it.
    pub(crate) async fn commit(
        &mut self,
        partition: &v1::AssignedPartition,
        offset: i64,
    ) -> v1::MemberCommitted {
        let partition = Some(owned(partition));
        let offset = v1::OwnedOffset { partition, offset, metadata: "m".into() };
        let commit = v1::MemberCommit { request_id: 7, offsets: vec![offset] };
        self.send(v1::join_request::Message::Commit(commit)).await;
        loop {
            match self.next().await {
                Some(Ok(v1::join_response::Message::Committed(committed))) => return committed,
                Some(Ok(_)) => {}
                other => panic!("expected an outcome, got {other:?}"),
            }
        }
    }

    /// The status that the stream ends with.
    pub(crate) async fn ended(&mut self) -> Option<Status> {
        loop {
            match self.next().await {
                Some(Ok(_)) => {}
                Some(Err(status)) => return Some(status),
                None => return None,
            }
        }
    }
}

/// What a member names when it speaks of a partition.
pub(crate) fn owned(partition: &v1::AssignedPartition) -> v1::OwnedPartition {
    v1::OwnedPartition {
        topic: partition.topic.clone(),
        partition: partition.partition,
        epoch: partition.epoch,
    }
}

/// A subscription from the client's side.
pub(crate) struct Subscription {
    sender: mpsc::Sender<v1::SubscribeRequest>,
    inbound: Streaming<v1::SubscribeResponse>,
}

impl Subscription {
    pub(crate) async fn send(&self, message: v1::subscribe_request::Message) {
        let _ = self.sender.send(v1::SubscribeRequest { message: Some(message) }).await;
    }

    pub(crate) async fn credit(&self, bytes: u64, records: u64) {
        self.send(v1::subscribe_request::Message::Credit(v1::Credit { bytes, records })).await;
    }

    /// The next message that is not a heartbeat; `None` at the end of the stream.
    pub(crate) async fn next(&mut self) -> Option<Result<v1::subscribe_response::Message, Status>> {
        loop {
            let item = soon("a message", self.inbound.next()).await?;
            match item.map(|response| response.message.expect("a known message")) {
                Ok(v1::subscribe_response::Message::Heartbeat(_)) => {}
                other => return Some(other),
            }
        }
    }

    pub(crate) async fn assigned(&mut self) -> v1::Assigned {
        match self.next().await {
            Some(Ok(v1::subscribe_response::Message::Assigned(assigned))) => assigned,
            other => panic!("expected assigned, got {other:?}"),
        }
    }

    pub(crate) async fn batch(&mut self) -> v1::FetchedBatch {
        match self.next().await {
            Some(Ok(v1::subscribe_response::Message::Batch(batch))) => batch,
            other => panic!("expected a batch, got {other:?}"),
        }
    }

    pub(crate) async fn revoked(&mut self) -> v1::Revoked {
        match self.next().await {
            Some(Ok(v1::subscribe_response::Message::Revoked(revoked))) => revoked,
            other => panic!("expected revoked, got {other:?}"),
        }
    }

    /// Whether nothing but heartbeats comes for a moment.
    pub(crate) async fn is_silent(&mut self) -> bool {
        tokio::time::timeout(Duration::from_millis(300), self.next()).await.is_err()
    }
}

pub(crate) fn record(value: &str) -> v1::Record {
    v1::Record { value: Some(Bytes::copy_from_slice(value.as_bytes())), ..Default::default() }
}

pub(crate) fn position(at: v1::position::At) -> Option<v1::Position> {
    Some(v1::Position { at: Some(at) })
}

pub(crate) fn start() -> v1::position::At {
    v1::position::At::Start(v1::position::Start {})
}

/// An encoded batch of these values.
pub(crate) fn batch(values: &[&str]) -> Bytes {
    batch_of(values, None)
}

/// The same from a producer: its id and the sequence of the first record.
pub(crate) fn batch_of(values: &[&str], producer: Option<(i64, i32)>) -> Bytes {
    let mut builder = BatchBuilder::new(Compression::None);
    if let Some((id, sequence)) = producer {
        builder.set_producer(id, 0, sequence);
    }
    for value in values {
        builder.push(1_000, None, Some(value.as_bytes()), &[]).unwrap();
    }
    builder.build().unwrap()
}

pub(crate) fn values(records: &[v1::FetchedRecord]) -> Vec<String> {
    let text = |record: &v1::FetchedRecord| {
        String::from_utf8(record.value.clone().unwrap_or_default().to_vec()).unwrap()
    };
    records.iter().map(text).collect()
}

/// The machine-readable reason of a failed call, and the facts with it.
pub(crate) fn reason(status: &Status) -> String {
    let info = status.get_details_error_info();
    info.map_or_else(|| format!("none: {status}"), |info| info.reason)
}

pub(crate) fn fact(status: &Status, name: &str) -> Option<String> {
    status.get_details_error_info()?.metadata.get(name).cloned()
}

/// Status code and body of a GET over HTTP/1.1.
pub(crate) async fn http_get(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    soon("an HTTP answer", stream.read_to_string(&mut answer)).await.unwrap();
    let code = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap();
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap();
    (code, body)
}
