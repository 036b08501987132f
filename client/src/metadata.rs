//! What the client knows of the cluster: addresses and partition leaders.
//!
//! Owns: the cache and its refreshing, one at a time for all who ask. Never: talks to a partition's leader.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use highwater_proto::v1;
use parking_lot::Mutex;
use tokio::time::Instant;
use tonic::Code;

use crate::config::ClientConfig;
use crate::connections::{Connections, cluster_service};
use crate::env::Env;
use crate::error::{Refusal, reason};

/// The longest one node may take to answer before the next is asked.
pub(crate) const ATTEMPT_MAX: Duration = Duration::from_secs(2);
/// After so long without an answer the next node is asked too: one that is stopped or cut off must not hold up who it was that
/// took over from it.
const HEDGE: Duration = Duration::from_millis(200);
/// How long a topic that no node knows may still be on its way to them, right after its creation.
const UNKNOWN_TOPIC_GRACE: Duration = Duration::from_millis(500);
/// How long a node that did not answer is asked last.
const PENALTY: Duration = Duration::from_secs(5);

/// A partition's leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Leader {
    pub(crate) node_id: u64,
    pub(crate) epoch: u64,
    pub(crate) address: Arc<str>,
}

/// A topic as of one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TopicView {
    /// Counts answers; a higher one is newer.
    pub(crate) generation: u64,
    pub(crate) id: String,
    pub(crate) record_bytes_max: usize,
    /// By partition number.
    pub(crate) leaders: Vec<Option<Leader>>,
}

impl TopicView {
    /// Number of partitions.
    pub(crate) fn partitions(&self) -> u32 {
        u32::try_from(self.leaders.len()).unwrap_or(u32::MAX)
    }
}

/// Which address comes first, see [`Metadata::candidates`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Steady,
    Turns,
}

/// The cache.
#[derive(Debug)]
pub(crate) struct Metadata {
    env: Env,
    state: Mutex<State>,
    /// Held while a question is under way, so that many who miss the same thing ask once.
    asking: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct State {
    bootstrap: Vec<Arc<str>>,
    nodes: BTreeMap<u64, Arc<str>>,
    topics: HashMap<String, Arc<TopicView>>,
    generation: u64,
    /// Where the next question about a topic goes first.
    turn: usize,
    /// Where administrative calls go first: drawn once, so that clients spread over nodes.
    steady: usize,
    failed: HashMap<Arc<str>, Instant>,
}

impl Metadata {
    pub(crate) fn new(config: &ClientConfig, env: Env) -> Self {
        let bootstrap: Vec<Arc<str>> =
            config.bootstrap.iter().map(|address| Arc::from(address.as_str())).collect();
        let turn = env.below(u32::MAX) as usize;
        let state = State {
            bootstrap,
            nodes: BTreeMap::new(),
            topics: HashMap::new(),
            generation: 0,
            turn,
            steady: turn,
            failed: HashMap::new(),
        };
        Self { env, state: Mutex::new(state), asking: tokio::sync::Mutex::default() }
    }

    /// The topic as last seen.
    pub(crate) fn cached(&self, topic: &str) -> Option<Arc<TopicView>> {
        self.state.lock().topics.get(topic).cloned()
    }

    /// Where a node is, as last seen.
    pub(crate) fn address_of(&self, node_id: u64) -> Option<Arc<str>> {
        self.state.lock().nodes.get(&node_id).cloned()
    }

    /// Every address there is, the one whose turn it is first and those that failed lately last.
    ///
    /// With `Order::Turns` another one is first each time: a node that is cut off from the others knows old leaders only, and
    /// must not be the only one asked. With `Order::Steady` the same is first each time, so that what one call has changed the
    /// next call sees.
    pub(crate) fn candidates(&self, order: Order) -> Vec<Arc<str>> {
        let now = self.env.now();
        let mut state = self.state.lock();
        let mut addresses: Vec<Arc<str>> = state.nodes.values().cloned().collect();
        // A bootstrap address may be an alias of a node; it is still worth asking when nothing else answers.
        for address in &state.bootstrap {
            if !addresses.contains(address) {
                addresses.push(address.clone());
            }
        }
        let turn = match order {
            Order::Steady => state.steady,
            Order::Turns => {
                state.turn = state.turn.wrapping_add(1);
                state.turn
            }
        };
        let known = state.nodes.len().max(1).min(addresses.len());
        addresses[..known].rotate_left(turn % known.max(1));
        state.failed.retain(|_, at| now.duration_since(*at) < PENALTY);
        addresses.sort_by_key(|address| state.failed.contains_key(address));
        addresses
    }

    /// Notes how a node did, for the order of [`Metadata::candidates`].
    pub(crate) fn note(&self, address: &Arc<str>, answered: bool) {
        let now = self.env.now();
        let mut state = self.state.lock();
        if answered {
            state.failed.remove(address);
        } else {
            state.failed.insert(address.clone(), now);
        }
    }

    /// The topic, asked for if it is not in the cache; tries until `deadline`.
    pub(crate) async fn lookup(
        &self,
        connections: &Connections,
        config: &ClientConfig,
        topic: &str,
        deadline: Instant,
    ) -> Result<Arc<TopicView>, Refusal> {
        if let Some(view) = self.cached(topic) {
            return Ok(view);
        }
        let started = self.env.now();
        let mut failures = 0;
        loop {
            let refusal = match self.refresh(connections, topic, 0).await {
                Ok(view) => return Ok(view),
                Err(refusal) => refusal,
            };
            failures += 1;
            let now = self.env.now();
            let unknown = refusal.reason() == reason::UNKNOWN_TOPIC;
            let over = if unknown { started + UNKNOWN_TOPIC_GRACE } else { deadline };
            if now >= over.min(deadline) || !(unknown || refusal.is_retriable()) {
                return Err(refusal);
            }
            let next = now + config.retry.backoff(failures, &self.env);
            tokio::time::sleep_until(next.min(deadline)).await;
        }
    }

    /// The topic as it is now: asks node after node, unless somebody else's question was answered since generation `seen`.
    ///
    /// Fails with UNKNOWN_TOPIC if every node that answered says so, else with the last obstacle.
    pub(crate) async fn refresh(
        &self,
        connections: &Connections,
        topic: &str,
        seen: u64,
    ) -> Result<Arc<TopicView>, Refusal> {
        let _one_at_a_time = self.asking.lock().await;
        if let Some(view) = self.cached(topic).filter(|view| view.generation > seen) {
            return Ok(view);
        }
        let mut unknown = None;
        let mut last = None;
        let candidates = self.candidates(Order::Turns);
        let mut next = candidates.iter();
        let mut asked = FuturesUnordered::new();
        loop {
            let address = next.next();
            asked.extend(address.map(|address| self.ask(connections, address, topic)));
            let answer = match tokio::time::timeout(HEDGE, asked.next()).await {
                Ok(Some(answer)) => answer,
                Ok(None) => break,
                Err(_late) => {
                    if let Some(address) = address {
                        self.note(address, false);
                    }
                    continue;
                }
            };
            match answer {
                Ok(()) => match self.cached(topic).filter(|view| view.generation > seen) {
                    Some(view) => return Ok(view),
                    None => {
                        let text = format!(
                            "topic '{topic}' does not exist; create it with 'broker-cli topic create {topic}'"
                        );
                        unknown = Some(Refusal::local(reason::UNKNOWN_TOPIC, Code::NotFound, text));
                    }
                },
                Err(refusal) => last = Some(refusal),
            }
        }
        Err(unknown.or(last).unwrap_or_else(|| Refusal::connection("no address to ask")))
    }

    /// Asks one node who is in the cluster.
    pub(crate) async fn meet(
        &self,
        connections: &Connections,
        address: &Arc<str>,
    ) -> Result<(), Refusal> {
        let answer = async {
            let mut service = cluster_service(connections.channel(address)?);
            let client = Some(connections.client_info());
            let mut request = tonic::Request::new(v1::GetClusterRequest { client });
            request.set_timeout(ATTEMPT_MAX);
            within(ATTEMPT_MAX, service.get_cluster(request)).await
        };
        let answer = answer.await;
        self.note(address, answer.is_ok());
        self.take_nodes(answer?.nodes);
        Ok(())
    }

    /// Asks one node about a topic and takes in what it says.
    async fn ask(
        &self,
        connections: &Connections,
        address: &Arc<str>,
        topic: &str,
    ) -> Result<(), Refusal> {
        let answer = async {
            let mut service = cluster_service(connections.channel(address)?);
            let client = Some(connections.client_info());
            let topics = vec![topic.to_owned()];
            let mut request = tonic::Request::new(v1::GetMetadataRequest { client, topics });
            request.set_timeout(ATTEMPT_MAX);
            within(ATTEMPT_MAX, service.get_metadata(request)).await
        };
        let answer = answer.await;
        self.note(address, answer.is_ok());
        self.take_in(answer?);
        Ok(())
    }

    fn take_nodes(&self, nodes: Vec<v1::Node>) {
        if !nodes.is_empty() {
            let known = nodes.into_iter().filter(|node| !node.address.is_empty());
            let known = known.map(|node| (node.id, Arc::from(node.address))).collect();
            self.state.lock().nodes = known;
        }
    }

    fn take_in(&self, answer: v1::GetMetadataResponse) {
        self.take_nodes(answer.nodes);
        let mut state = self.state.lock();
        state.generation += 1;
        let generation = state.generation;
        for topic in answer.topics {
            let name = topic.name.clone();
            let before = state.topics.get(&name).filter(|before| before.id == topic.id).cloned();
            let view = view_of(topic, before.as_deref(), &state.nodes, generation);
            state.topics.insert(name, Arc::new(view));
        }
    }
}

/// A unary call's answer, if it comes in time.
pub(crate) async fn within<T>(
    patience: Duration,
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, Refusal> {
    match tokio::time::timeout(patience, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(Refusal::from_status(&status)),
        Err(_late) => Err(Refusal::connection(format!("no answer within {patience:?}"))),
    }
}

/// A topic as a node describes it, except that a leader known from a higher epoch stays: the node is behind.
fn view_of(
    topic: v1::TopicMetadata,
    before: Option<&TopicView>,
    nodes: &BTreeMap<u64, Arc<str>>,
    generation: u64,
) -> TopicView {
    let count = topic.partitions.len();
    let mut leaders = vec![None; count];
    for partition in topic.partitions {
        // Numbers are dense; anything else is a confused broker, whose word is ignored.
        let Some(slot) = leaders.get_mut(partition.partition as usize) else { continue };
        let known = before.and_then(|before| before.leaders.get(partition.partition as usize));
        let known = known.cloned().flatten();
        *slot = match known {
            Some(known) if known.epoch > partition.leader_epoch => Some(known),
            _ => nodes.get(&partition.leader).map(|address| Leader {
                node_id: partition.leader,
                epoch: partition.leader_epoch,
                address: address.clone(),
            }),
        };
    }
    let record_bytes_max = match topic.record_bytes_max {
        0 => highwater_proto::batch::RECORD_BYTES_MAX,
        bytes => bytes as usize,
    };
    TopicView { generation, id: topic.id, record_bytes_max, leaders }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic(leaders: &[(u64, u64)]) -> v1::TopicMetadata {
        let partitions = leaders.iter().zip(0..).map(|(&(leader, leader_epoch), partition)| {
            v1::PartitionMetadata { partition, leader, leader_epoch }
        });
        v1::TopicMetadata {
            name: "t".into(),
            id: "a".into(),
            partitions: partitions.collect(),
            record_bytes_max: 9,
        }
    }

    #[test]
    fn a_node_that_is_behind_does_not_bring_an_old_leader_back() {
        let nodes = BTreeMap::from([(1, Arc::from("h1:1")), (2, Arc::from("h2:1"))]);
        let new = view_of(topic(&[(2, 7), (1, 7)]), None, &nodes, 1);
        let mixed = view_of(topic(&[(1, 6), (2, 8)]), Some(&new), &nodes, 2);
        let ids: Vec<_> = mixed.leaders.iter().flatten().map(|leader| leader.node_id).collect();
        assert_eq!(ids, [2, 2]);
    }

    #[test]
    fn a_leader_without_an_address_or_beyond_the_count_is_none() {
        let nodes = BTreeMap::from([(1, Arc::from("h1:1"))]);
        let mut odd = topic(&[(1, 1), (9, 1), (0, 1)]);
        odd.partitions[0].partition = 4_000_000_000;
        let view = view_of(odd, None, &nodes, 1);
        assert_eq!(view.leaders, [None, None, None]);
    }
}
