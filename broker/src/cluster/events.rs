//! What this node hears from its peers.
//!
//! Owns: who is let in (cluster, node, incarnation, boot counter), and when each peer was last heard from. Never: the
//! streams themselves.

use highwater_proto::internal::{NodeImage, PeerBatch, PeerHello};

use super::NodeId;
use super::metadata::{removed_message, too_old_message};
use super::node::Node;
use super::peer::PeerEvents;
use crate::error::BrokerError;

impl Node {
    /// Checks who a peer says it is against what the cluster knows of that node.
    fn admit(&self, hello: &PeerHello) -> Result<(), BrokerError> {
        let refuse = |why: String| Err(BrokerError::InvalidArgument { field: "hello".into(), why });
        let inner = &self.inner;
        let cluster_id = inner.identity.lock().cluster_id.clone();
        if cluster_id.is_empty() {
            return Err(BrokerError::NotReady { why: inner.waiting.lock().clone() });
        }
        if hello.cluster_id != cluster_id {
            return refuse(format!("cluster {} is not this one, {cluster_id}", hello.cluster_id));
        }
        if hello.to_node_id != self.id() {
            return refuse(format!("this is node {}, not {}", self.id(), hello.to_node_id));
        }
        let metadata = inner.metadata.borrow().clone();
        if metadata.removed_nodes.contains(&hello.node_id) {
            return refuse(removed_message(hello.node_id));
        }
        let Some(known) = metadata.nodes.get(&hello.node_id) else {
            return refuse(format!("node {} is not in this cluster", hello.node_id));
        };
        admit_directory(known, hello)?;
        if hello.feature_level < metadata.feature_level {
            let (level, cluster) = (hello.feature_level, metadata.feature_level);
            return refuse(too_old_message(hello.node_id, &hello.version, level, cluster));
        }
        let mut boots = inner.boots.lock();
        let (directory, seen) = boots.entry(hello.node_id).or_default();
        if *directory != known.incarnation {
            // Another directory took the place of one that was lost, and counts from 1.
            directory.clone_from(&known.incarnation);
            *seen = 0;
        }
        *seen = (*seen).max(known.boot_counter);
        if hello.boot_counter < *seen {
            return refuse(format!(
                "the data directory of node {} is an old copy: its start {} comes after start {seen} was seen",
                hello.node_id, hello.boot_counter
            ));
        }
        *seen = hello.boot_counter;
        drop(boots);
        inner.levels.lock().insert(hello.node_id, hello.feature_level);
        self.hear(hello.node_id);
        Ok(())
    }

    fn hear(&self, node: NodeId) {
        let now = self.inner.deps.clock.monotonic();
        self.inner.heard.lock().insert(node, now);
    }
}

fn admit_directory(known: &NodeImage, hello: &PeerHello) -> Result<(), BrokerError> {
    if known.incarnation == hello.incarnation {
        return Ok(());
    }
    Err(BrokerError::InvalidArgument {
        field: "hello".into(),
        why: format!(
            "node {} comes with another data directory than the one it joined with; it is not that member any more",
            hello.node_id
        ),
    })
}

impl PeerEvents for Node {
    fn hello(&self, from: &PeerHello) -> Result<PeerHello, BrokerError> {
        self.admit(from)?;
        Ok(self.own_hello(from.node_id))
    }

    fn own_hello(&self, to: NodeId) -> PeerHello {
        let identity = self.inner.identity.lock();
        PeerHello {
            cluster_id: identity.cluster_id.clone(),
            node_id: self.id(),
            incarnation: identity.incarnation.clone(),
            boot_counter: identity.boot_counter,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            feature_level: self.inner.deps.feature_level,
            to_node_id: to,
        }
    }

    fn hello_answered(&self, answer: &PeerHello) -> Result<(), BrokerError> {
        self.admit(answer)?;
        // A peer that has just come (back) knows nothing of who leads what.
        let leaders = self.inner.leadership.own();
        if !leaders.is_empty() {
            let batch = PeerBatch { leaders, ..PeerBatch::default() };
            self.inner.deps.streams.send(answer.node_id, batch);
        }
        Ok(())
    }

    fn deliver(&self, from: NodeId, batch: PeerBatch) {
        self.hear(from);
        for leader in &batch.leaders {
            self.inner.leadership.learn(leader.group_id, from, leader.term);
        }
        self.inner.engine.deliver(from, batch);
    }

    fn unreachable(&self, node: NodeId) {
        self.inner.engine.unreachable(node);
    }

    fn broke(&self, node: NodeId) {
        self.inner.engine.broke(node);
    }
}
