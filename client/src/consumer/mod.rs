//! Reading: [`ConsumerBuilder`] says what, [`Events`] is the stream.
//!
//! Owns: the public face and its settings. Never: streams to brokers (`driver`).

mod cursor;
mod driver;
mod events;
pub(crate) mod queue;
mod stream;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tonic::Code;

use crate::client::Client;
use crate::error::{ConsumeError, Refusal, reason};
use crate::group::GroupConsumerBuilder;
use crate::metadata::TopicView;
use crate::types::Start;

use driver::{Driver, Ends};
pub use events::{EventBatch, Events};
use queue::{Account, Order};

/// Says what to read; from [`Client::consumer`]. Clones subscribe independently.
#[derive(Clone, Debug)]
pub struct ConsumerBuilder {
    pub(crate) client: Client,
    pub(crate) settings: Settings,
}

/// What a consumer was told.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) topic: String,
    pub(crate) partitions: Option<Vec<u32>>,
    pub(crate) start: Start,
    pub(crate) starts: BTreeMap<u32, Start>,
    pub(crate) credit_bytes: usize,
    pub(crate) group: Option<String>,
    pub(crate) stall_timeout: Duration,
    pub(crate) silence_max: Duration,
    /// Empty: only leaders are read.
    pub(crate) rack: String,
}

impl ConsumerBuilder {
    pub(crate) fn new(client: Client, topic: String) -> Self {
        let settings = Settings {
            topic,
            partitions: None,
            start: Start::Earliest,
            starts: BTreeMap::new(),
            credit_bytes: 8 << 20,
            group: None,
            stall_timeout: Duration::from_secs(30),
            silence_max: Duration::from_secs(15),
            rack: String::new(),
        };
        Self { client, settings }
    }

    /// Reads only these partitions. Default: all, also those that are added later.
    pub fn partitions(mut self, partitions: impl IntoIterator<Item = u32>) -> Self {
        self.settings.partitions = Some(partitions.into_iter().collect());
        self
    }

    /// Where to start. Default: [`Start::Earliest`]. Partitions that are added later start at their beginning.
    pub fn start(mut self, start: Start) -> Self {
        self.settings.start = start;
        self
    }

    /// Where to start in one partition; goes before [`ConsumerBuilder::start`].
    pub fn start_at(mut self, partition: u32, start: Start) -> Self {
        self.settings.starts.insert(partition, start);
        self
    }

    /// About how many bytes may wait here, read and not yet taken. Default: 8 MiB. One batch of each broker may exceed it.
    pub fn credit_bytes(mut self, bytes: usize) -> Self {
        self.settings.credit_bytes = bytes.max(1);
        self
    }

    /// Reads as a member of a consumer group: the group's coordinator says which partitions. Each goes on where the group has come
    /// to, or at [`ConsumerBuilder::start`] if it has not begun with it.
    pub fn group(mut self, group: impl Into<String>) -> GroupConsumerBuilder {
        self.settings.group = Some(group.into());
        GroupConsumerBuilder::new(self)
    }

    /// How long a partition may be unreachable before the stream says so ([`ConsumeError::Stalled`]), and again after as
    /// long. It keeps trying all the while. Default: 30 s.
    pub fn stall_timeout(mut self, timeout: Duration) -> Self {
        self.settings.stall_timeout = timeout;
        self
    }

    /// How long a broker may send nothing, not even a heartbeat, before the connection is given up and made anew. Brokers
    /// send something at least every ten seconds. Default: 15 s.
    pub fn silence_max(mut self, silence: Duration) -> Self {
        self.settings.silence_max = silence;
        self
    }

    /// Reads each partition from a replica in this rack (`node.rack` of the brokers), where there is one that is in sync, and from its
    /// leader otherwise: that spares the way between racks. Events come as they are committed there, a moment later than on the
    /// leader, in the same order. Default: everything is read from the leaders.
    pub fn rack(mut self, rack: impl Into<String>) -> Self {
        self.settings.rack = rack.into();
        self
    }

    /// Begins to read without a partition; a member of a group orders what to read as it goes.
    pub(crate) async fn subscribe_to_nothing(mut self) -> Result<Reading, ConsumeError> {
        self.settings.partitions = Some(Vec::new());
        let view = self.look_up(self.deadline()).await.map_err(|refusal| self.refused(refusal))?;
        let (placed, _) = oneshot::channel();
        Ok(self.begin(&view, placed))
    }

    /// Begins to read. When it returns, the topic exists and, for [`Start::Latest`] and [`Start::Timestamp`], every partition's
    /// place is fixed: an event published afterwards will be read.
    pub async fn subscribe(self) -> Result<Events, ConsumeError> {
        let deadline = self.deadline();
        let view = self.look_up(deadline).await.map_err(|refusal| self.refused(refusal))?;
        check_partitions(&self.settings, &view).map_err(|refusal| self.refused(refusal))?;
        let must_be_placed = self.settings.must_be_placed();
        let text = "not every partition could be reached in time";
        let late = self.refused(Refusal::local(reason::TIMEOUT, Code::DeadlineExceeded, text));
        let (placed_in, placed) = oneshot::channel();
        let Reading { events, .. } = self.begin(&view, placed_in);
        if must_be_placed && tokio::time::timeout_at(deadline, placed).await.is_err() {
            return Err(late);
        }
        Ok(events)
    }

    fn deadline(&self) -> Instant {
        let shared = &self.client.shared;
        shared.env.now() + shared.config.request_timeout
    }

    fn refused(&self, refusal: Refusal) -> ConsumeError {
        ConsumeError::CannotSubscribe { topic: self.settings.topic.clone(), refusal }
    }

    async fn look_up(&self, deadline: Instant) -> Result<Arc<TopicView>, Refusal> {
        let shared = &self.client.shared;
        let (connections, config) = (&shared.connections, &shared.config);
        let found = shared.metadata.lookup(connections, config, &self.settings.topic, deadline);
        found.await.map_err(Refusal::nothing_sent)
    }

    /// Starts the driver; `placed` hears when every partition's place is fixed.
    fn begin(self, view: &TopicView, placed: oneshot::Sender<()>) -> Reading {
        let Self { client, settings } = self;
        let topic = Arc::from(settings.topic.as_str());
        let shared = client.shared.clone();
        let (items_in, items) = mpsc::unbounded_channel();
        let (orders_in, orders) = mpsc::unbounded_channel();
        let account = Arc::new(Account::new());
        let places = queue::Places::default();
        let (account_in, places_in) = (account.clone(), places.clone());
        let ends = Ends { account: account_in, places: places_in, items: items_in, orders, placed };
        shared.env.spawn(Driver::new(client, settings, view, ends).run());
        let events = Events::new(topic, items, orders_in.clone(), places.clone());
        Reading { events, orders: orders_in, places, account }
    }
}

/// A subscription whose partitions are ordered from outside.
pub(crate) struct Reading {
    pub(crate) events: Events,
    pub(crate) orders: mpsc::UnboundedSender<Order>,
    pub(crate) places: queue::Places,
    pub(crate) account: Arc<Account>,
}

impl Settings {
    /// Whether some partition starts at a place that moves with time: it must be fixed before `subscribe` returns.
    fn must_be_placed(&self) -> bool {
        let mut starts = self.starts.values().chain(std::iter::once(&self.start));
        starts.any(|start| matches!(start, Start::Latest | Start::Timestamp(_)))
    }
}

/// Every partition that was asked for must exist.
fn check_partitions(settings: &Settings, view: &TopicView) -> Result<(), Refusal> {
    let count = view.partitions();
    let asked = settings.partitions.iter().flatten().chain(settings.starts.keys());
    let Some(unknown) = asked.copied().find(|partition| *partition >= count) else {
        return Ok(());
    };
    let topic = &settings.topic;
    let text = format!("topic '{topic}' has no partition {unknown}: it has {count}, from 0");
    Err(Refusal::local(reason::UNKNOWN_PARTITION, Code::NotFound, text))
}
