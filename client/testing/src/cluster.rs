//! Brokers under test: [`Broker`], which is one, and [`Cluster`], which is several.
//!
//! Owns: what tests ask of them. Never: how one of them lives (`node`).

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::join_all;
use highwater_broker::Call;
use highwater_broker::config::Config;
use highwater_client::{Client, Event, FetchOptions, NewTopic, Record, Start, event};
use parking_lot::Mutex;
use tokio::runtime::Runtime;

use crate::env::{TestClock, soon, until};
use crate::faults::Faults;
use crate::node::Node;
use crate::ports::free_address;
use crate::refusals::{Refusal, Refusals};

/// Raft's clock: fast, so that elections do not take the tests' time; slower where nodes must hear one another on a busy machine.
const TICK_ALONE_MS: u64 = 10;
const TICK_AMONG_MS: u64 = 30;

/// What tests change of a broker's configuration.
type Change = Box<dyn Fn(&mut Config) + Send>;

/// Says what to start; from [`Cluster::builder`].
pub struct ClusterBuilder {
    nodes: usize,
    changes: Vec<Change>,
}

impl std::fmt::Debug for ClusterBuilder {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("ClusterBuilder").field("nodes", &self.nodes).finish_non_exhaustive()
    }
}

impl ClusterBuilder {
    /// How many brokers. Default: 3.
    pub fn nodes(mut self, nodes: usize) -> Self {
        self.nodes = nodes;
        self
    }

    /// Changes the configuration of every broker before it starts.
    pub fn configure(mut self, change: impl Fn(&mut Config) + Send + 'static) -> Self {
        self.changes.push(Box::new(change));
        self
    }

    /// Starts them; returns when all are ready.
    ///
    /// # Panics
    ///
    /// If there are to be none, or they cannot be started.
    pub async fn start(self) -> Cluster {
        assert!(self.nodes > 0, "a cluster has at least one node");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("test-network")
            .enable_all()
            .build()
            .expect("a runtime can be made");
        let clock = Arc::new(TestClock::default());
        let refusals = Arc::new(Refusals::default());
        // Known before anybody binds them. A cluster of one has none.
        let seeds: Vec<String> = match self.nodes {
            1 => Vec::new(),
            nodes => (0..nodes).map(|_| free_address()).collect(),
        };
        let mut nodes = Vec::new();
        for index in 0..self.nodes {
            let dir = tempfile::tempdir().expect("a temporary directory can be made");
            let mut config = Config::in_process(dir.path());
            config.node.shutdown_ms_max = 2_000;
            config.raft.tick_ms = TICK_ALONE_MS;
            // One coordinator is enough for the groups of a test, and is found at once.
            config.groups.offsets_partitions = 1;
            if let Some(seed) = seeds.get(index) {
                config.raft.tick_ms = TICK_AMONG_MS;
                config.listen.internal = seed.clone();
                config.node.seeds = seeds.clone();
            }
            self.changes.iter().for_each(|change| change(&mut config));
            let (clock, refusals) = (Arc::clone(&clock), Arc::clone(&refusals));
            nodes.push(Node::new(config, dir, clock, refusals, runtime.handle()).await);
        }
        join_all(nodes.iter().map(Node::start)).await;
        join_all(nodes.iter().map(Node::wait_ready)).await;
        Cluster { nodes, clock, refusals, expected: Mutex::default(), runtime: Some(runtime) }
    }
}

/// Brokers in this process that form a cluster, named by their index. Ports and directories stay a broker's own when it is started again;
/// all is gone when this is dropped.
///
/// ```
/// # #[tokio::main]
/// # async fn main() {
/// use highwater_testing::Cluster;
///
/// let cluster = Cluster::start(3).await;
/// cluster.create_topic("orders", 1).await;
/// let leader = cluster.leader_of("orders", 0).await;
/// cluster.kill(leader).await;
/// // Another one leads now.
/// assert_ne!(cluster.leader_of("orders", 0).await, leader);
/// # }
/// ```
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Node>,
    clock: Arc<TestClock>,
    refusals: Arc<Refusals>,
    /// How many events of a type the test has been given.
    expected: Mutex<BTreeMap<String, usize>>,
    /// Of what stands between clients and brokers.
    runtime: Option<Runtime>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Cluster {
    /// Says more than how many.
    pub fn builder() -> ClusterBuilder {
        ClusterBuilder { nodes: 3, changes: Vec::new() }
    }

    /// Starts so many brokers; returns when all are ready.
    pub async fn start(nodes: usize) -> Self {
        Self::builder().nodes(nodes).start().await
    }

    /// Where clients connect: what [`highwater_client::ClientBuilder::servers`] takes.
    pub fn servers(&self) -> String {
        let addresses: Vec<String> =
            self.nodes.iter().map(|node| node.address.to_string()).collect();
        addresses.join(",")
    }

    /// A new client.
    pub async fn client(&self) -> Client {
        let builder = Client::builder().servers(self.servers()).client_id("test");
        match soon("connecting", builder.connect()).await {
            Ok(client) => client,
            Err(error) => panic!("cannot connect: {error}"),
        }
    }

    /// Creates a topic; returns when its partitions have leaders.
    pub async fn create_topic(&self, name: &str, partitions: u32) {
        self.create(NewTopic::new(name).partitions(partitions)).await;
    }

    /// Creates a topic with settings of its own; returns when its partitions have leaders.
    pub async fn create(&self, topic: NewTopic) {
        let client = self.client().await;
        match soon("creating a topic", client.admin().create_topic(topic)).await {
            Ok(topic) => {
                for partition in 0..topic.partitions.len() {
                    let partition = u32::try_from(partition).expect("partitions are numbered");
                    self.leader_of(&topic.name, partition).await;
                }
            }
            Err(error) => panic!("the topic was not created: {error}"),
        }
    }

    /// Every record that is readable in a topic now: partition after partition, each in order.
    pub async fn records(&self, topic: &str) -> Vec<Event> {
        let admin = self.client().await.admin();
        let described = soon("describing the topic", admin.get_topic(topic)).await;
        let described = described.unwrap_or_else(|error| panic!("topic '{topic}': {error}"));
        let mut records = Vec::new();
        for partition in described.partitions {
            let mut from = Start::Earliest;
            loop {
                let options = FetchOptions { start: from, ..FetchOptions::default() };
                let fetching = admin.fetch(topic, partition.partition, options);
                let fetched = soon("fetching", fetching).await;
                let fetched = fetched.unwrap_or_else(|error| panic!("topic '{topic}': {error}"));
                records.extend(fetched.events);
                if fetched.next_offset >= fetched.high_watermark {
                    break;
                }
                from = Start::Offset(fetched.next_offset);
            }
        }
        records
    }

    /// Waits for the next record of a topic that matches, from its beginning on; answers with it.
    ///
    /// # Panics
    ///
    /// If there is none within a minute; the message lists what there was.
    pub async fn expect_record(&self, topic: &str, matches: impl Fn(&Event) -> bool) -> Event {
        let client = self.client().await;
        let mut events = match client.consumer(topic).subscribe().await {
            Ok(events) => events,
            Err(error) => panic!("cannot read '{topic}': {error}"),
        };
        let mut others = Vec::new();
        let search = async {
            loop {
                match events.next().await {
                    Some(Ok(event)) if matches(&event) => return event,
                    Some(Ok(event)) => others.push(event),
                    // It goes on by itself: the test may have killed somebody.
                    Some(Err(error)) if error.is_retriable() => {}
                    Some(Err(error)) => panic!("reading '{topic}': {error}"),
                    None => panic!("reading '{topic}' ended"),
                }
            }
        };
        match tokio::time::timeout(crate::env::PATIENCE, search).await {
            Ok(event) => event,
            Err(_late) => panic!("no such record in '{topic}'; there were {others:#?}"),
        }
    }

    /// Waits for the next event of type `E`, in whatever topic; answers with it. Events that earlier calls answered with do not count, so
    /// that a test says one after the other what it expects.
    ///
    /// # Panics
    ///
    /// If there is none within a minute; the message lists the events that there were. If one of this type cannot be decoded.
    pub async fn expect_published<E: event::Event>(&self) -> E {
        let name = E::event_type();
        let seen = || self.expected.lock().get(&name).copied().unwrap_or(0);
        let mut types = Vec::new();
        let search = async {
            loop {
                let mut found = Vec::new();
                types.clear();
                for event in self.all_records().await {
                    types.push(format!(
                        "{}: {}",
                        event.topic,
                        event.event_type().unwrap_or("no type")
                    ));
                    if event.is::<E>() {
                        found.push(event);
                    }
                }
                // By time, because they may be in several topics and partitions.
                found.sort_by_key(|event| event.timestamp_ms);
                if let Some(event) = found.into_iter().nth(seen()) {
                    return event;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let Ok(event) = tokio::time::timeout(crate::env::PATIENCE, search).await else {
            let count = seen();
            panic!("no {name} was published after the first {count}; there are {types:#?}");
        };
        *self.expected.lock().entry(name).or_default() += 1;
        match event.decode() {
            Ok(event) => event,
            Err(error) => panic!("{error}"),
        }
    }

    /// Every event of type `E` that is readable now, in whatever topic, by time.
    ///
    /// # Panics
    ///
    /// If one of them cannot be decoded.
    pub async fn published<E: event::Event>(&self) -> Vec<E> {
        let mut found = self.all_records().await;
        found.retain(Event::is::<E>);
        found.sort_by_key(|event| event.timestamp_ms);
        let decode = |event: &Event| event.decode().unwrap_or_else(|error| panic!("{error}"));
        found.iter().map(decode).collect()
    }

    async fn all_records(&self) -> Vec<Event> {
        let admin = self.client().await.admin();
        let topics = soon("listing the topics", admin.list_topics(false)).await;
        let mut records = Vec::new();
        for topic in topics.unwrap_or_else(|error| panic!("topics: {error}")) {
            records.extend(self.records(&topic.name).await);
        }
        records
    }

    /// Publishes every record of a topic once more, as it is: key, value, headers and partition. To whoever reads the topic these are
    /// duplicates, as a publisher makes them that was cut off and could not know.
    pub async fn publish_again(&self, topic: &str) {
        let producer = self.client().await.producer(topic).build();
        for event in self.records(topic).await {
            let record = Record {
                key: event.key,
                value: event.value,
                headers: event.headers,
                timestamp_ms: Some(event.timestamp_ms),
                partition: Some(event.partition),
            };
            let sent = async { producer.send(record).await?.await };
            if let Err(error) = soon("publishing again", sent).await {
                panic!("not published again: {error}");
            }
        }
    }

    /// The faults of the network between clients and this broker.
    ///
    /// # Panics
    ///
    /// If there is no such broker, as everywhere that takes an index.
    pub fn faults_of(&self, index: usize) -> &Faults {
        &self.node(index).faults
    }

    /// Every broker refuses this call on this topic, until [`Cluster::allow`]. Nothing is written of what is refused. A call on behalf of
    /// the test itself is a call too: [`Cluster::records`] cannot read what nobody may.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use highwater_testing::{Broker, Call, Refusal};
    ///
    /// let broker = Broker::start().await;
    /// broker.create_topic("orders", 3).await;
    /// broker.refuse(Call::Publish, "orders", Refusal::TooLarge);
    ///
    /// let producer = broker.client().await.producer("orders").build();
    /// let error = producer.send("order placed").await?.await.unwrap_err();
    /// assert!(!error.is_retriable() && !error.may_have_been_written());
    /// # Ok(()) }
    /// ```
    pub fn refuse(&self, call: Call, topic: &str, refusal: Refusal) {
        self.refusals.refuse(call, topic, refusal, None);
    }

    /// The same for the next so many calls only: batches that are published, whatever number of records is in them, or commits.
    pub fn refuse_next(&self, times: u32, call: Call, topic: &str, refusal: Refusal) {
        self.refusals.refuse(call, topic, refusal, Some(times));
    }

    /// Nothing is refused any more.
    pub fn allow(&self) {
        self.refusals.allow();
    }

    fn node(&self, index: usize) -> &Node {
        let count = self.nodes.len();
        self.nodes.get(index).unwrap_or_else(|| panic!("no broker {index}: there are {count}"))
    }

    /// The broker that leads a partition; waits until there is one.
    pub async fn leader_of(&self, topic: &str, partition: u32) -> usize {
        let client = self.client().await;
        soon(format_args!("a leader for partition {partition} of '{topic}'"), async {
            loop {
                if let Ok(found) = client.admin().get_topic(topic).await
                    && let Some(it) = found.partitions.iter().find(|it| it.partition == partition)
                    && let Some(leader) = it.leader
                    && let Some(index) = self.index_of(leader).await
                {
                    return index;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await
    }

    /// The index of a running node.
    async fn index_of(&self, node_id: u64) -> Option<usize> {
        for (index, node) in self.nodes.iter().enumerate() {
            if node.broker().await.is_some_and(|broker| broker.node().id() == node_id) {
                return Some(index);
            }
        }
        None
    }

    /// Moves a partition's leadership to another broker; answers with its index.
    ///
    /// # Panics
    ///
    /// If there is no other broker.
    pub async fn move_leader(&self, topic: &str, partition: u32) -> usize {
        assert!(self.nodes.len() > 1, "with one broker there is nowhere to move a leader");
        let client = self.client().await;
        let before = self.leader_of(topic, partition).await;
        until(format_args!("moving partition {partition} of '{topic}'"), async || {
            // It may be refused while another replica catches up.
            _ = client.admin().transfer_leadership(topic, partition, None).await;
            self.leader_of(topic, partition).await != before
        })
        .await;
        self.leader_of(topic, partition).await
    }

    /// Stops a broker in good order and starts it again; returns when it is ready.
    pub async fn restart(&self, index: usize) {
        self.node(index).stop().await;
        self.start_again(index).await;
    }

    /// Ends a broker as `kill -9` would, but for what the operating system had not written yet: that is not lost.
    pub async fn kill(&self, index: usize) {
        self.node(index).kill().await;
    }

    /// Starts a broker that was killed; returns when it is ready.
    pub async fn start_again(&self, index: usize) {
        self.node(index).start().await;
        self.node(index).wait_ready().await;
    }

    /// Puts the brokers' clocks forward: retention passes, members that are not heard lose their session, deadlines end. Leaders
    /// stay, and so do instances of services: a node that was late does not hold it against others. The clock of the test and of its
    /// clients goes on as it does.
    pub fn advance(&self, time: Duration) {
        self.clock.advance(time);
    }

    /// Stops everything in good order. Dropping ends it all without a word.
    pub async fn stop(self) {
        join_all(self.nodes.iter().map(Node::stop)).await;
    }
}

/// One broker in this process: a [`Cluster`] of one, with everything that has.
///
/// ```
/// # #[tokio::main]
/// # async fn main() {
/// let broker = highwater_testing::Broker::start().await;
/// broker.create_topic("orders", 3).await;
/// broker.restart().await;
/// assert!(broker.records("orders").await.is_empty());
/// # }
/// ```
#[derive(Debug)]
pub struct Broker {
    cluster: Cluster,
}

impl Deref for Broker {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.cluster
    }
}

impl Broker {
    /// Starts a broker on ports that the system chooses, in a temporary directory; returns when it is ready.
    ///
    /// # Panics
    ///
    /// If it cannot be started.
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// The same with its configuration changed.
    pub async fn start_with(change: impl Fn(&mut Config) + Send + 'static) -> Self {
        Self { cluster: Cluster::builder().nodes(1).configure(change).start().await }
    }

    /// Stops it in good order and starts it again; returns when it is ready.
    pub async fn restart(&self) {
        self.cluster.restart(0).await;
    }

    /// The faults of the network between clients and the broker.
    pub fn faults(&self) -> &Faults {
        self.cluster.faults_of(0)
    }

    /// Stops it in good order. Dropping ends it without a word.
    pub async fn stop(self) {
        self.cluster.stop().await;
    }
}
