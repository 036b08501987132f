//! How a cluster comes into being: once, from seeds that all answer, are all empty and all hold the same seed list.
//!
//! Owns: the promise on disk and the coordinator's steps. The first seed of the list coordinates; every seed persists its
//! promise before any of them is a member, so that no two clusters can be founded from one list. Never: joins a node to a cluster
//! that exists (`joining` does).

use std::collections::BTreeSet;
use std::sync::Arc;

use highwater_proto::internal::{
    ConfirmFoundingRequest, Founding, FoundingMember, GetFoundingStateRequest,
    GetFoundingStateResponse, PromiseFoundingRequest,
};

use super::held::Held;
use super::peer::PeerCalls;
use crate::error::BrokerError;

/// The highest feature level that this software understands. A cluster starts at its founders' lowest.
pub const FEATURE_LEVEL: u32 = 3;

/// Of the promise file.
pub(super) const MAGIC: [u8; 8] = *b"HWFOUNDG";

/// What a node is before it belongs to a cluster.
pub(crate) struct Founder {
    pub(crate) calls: Arc<dyn PeerCalls>,
    /// A later one replaces an older: only the first seed asks for promises, and it asks for another one only after every seed has
    /// said that it belongs to no cluster.
    pub(crate) promises: Held<Founding>,
    pub(crate) seeds: Vec<String>,
    pub(crate) own: FoundingMember,
}

/// What one round came to.
pub(crate) enum Round {
    /// The cluster exists: become a member of it.
    Founded(Founding),
    /// Not yet, and why, for people.
    Waiting(String),
    /// It was founded without this data directory: ask to join.
    Exists {
        /// A member.
        seed: String,
        /// The cluster.
        cluster_id: String,
    },
}

impl Founder {
    /// Asks every seed where it stands and takes the next step, if there is one. `new_cluster_id` is used if this node
    /// coordinates and has not begun yet.
    pub(crate) async fn round(&self, new_cluster_id: String) -> Round {
        let mut answers = Vec::new();
        let mut missing = Vec::new();
        for seed in self.seeds.iter().filter(|seed| **seed != self.own.internal_address) {
            let request = GetFoundingStateRequest { seeds: self.seeds.clone() };
            match self.calls.get_founding_state(seed, request).await {
                Ok(answer) => answers.push((seed, answer)),
                Err(error) => missing.push(error.to_string()),
            }
        }
        if let Some((seed, answer)) = answers.iter().find(|(_, a)| !a.cluster_id.is_empty()) {
            return self.cluster_exists(seed, answer);
        }
        if !missing.is_empty() {
            return Round::Waiting(format!("waiting for every seed: {}", missing.join("; ")));
        }
        if let Some(other) = answers.iter().find(|(_, answer)| answer.seeds != self.seeds) {
            return Round::Waiting(format!(
                "seed {} has another seed list, {:?}; here it is {:?}. Give every node the same list, in the same order",
                other.0, other.1.seeds, self.seeds
            ));
        }
        if self.seeds.first() != Some(&self.own.internal_address) {
            return Round::Waiting(format!(
                "all seeds answer; waiting for the first of them, {}, to found the cluster",
                self.seeds[0]
            ));
        }
        self.coordinate(answers.into_iter().map(|(_, answer)| answer).collect(), new_cluster_id)
            .await
    }

    fn cluster_exists(&self, seed: &str, answer: &GetFoundingStateResponse) -> Round {
        match self.promises.held() {
            Some(promise) if promise.cluster_id == answer.cluster_id => Round::Founded(promise),
            _ => Round::Exists { seed: seed.to_owned(), cluster_id: answer.cluster_id.clone() },
        }
    }

    /// The first seed's part: promise, collect promises, found, tell.
    async fn coordinate(
        &self,
        answers: Vec<GetFoundingStateResponse>,
        new_cluster_id: String,
    ) -> Round {
        let founding = match self.founding(&answers, new_cluster_id) {
            Ok(founding) => founding,
            Err(why) => return Round::Waiting(why),
        };
        if let Err(error) = self.promises.hold(founding.clone()) {
            return Round::Waiting(format!("the promise cannot be written: {error}"));
        }
        for seed in self.seeds.iter().filter(|seed| **seed != self.own.internal_address) {
            let request = PromiseFoundingRequest { founding: Some(founding.clone()) };
            if let Err(error) = self.calls.promise_founding(seed, request).await {
                return Round::Waiting(format!("waiting for a promise: {error}"));
            }
        }
        Round::Founded(founding)
    }

    /// For a member that cannot reach its cluster: what is wrong if the seeds belong to another one.
    pub(crate) async fn other_cluster(&self, own_cluster_id: &str) -> Option<String> {
        let mut found = None;
        for seed in self.seeds.iter().filter(|seed| **seed != self.own.internal_address) {
            let request = GetFoundingStateRequest { seeds: self.seeds.clone() };
            match self.calls.get_founding_state(seed, request).await {
                Ok(answer) if answer.cluster_id == own_cluster_id => return None,
                Ok(answer) if !answer.cluster_id.is_empty() => {
                    found = Some(format!(
                        "the data directory belongs to cluster {own_cluster_id}, but seed {seed} to cluster {}; give this node \
                         its own directory of that cluster, or the seeds of this one",
                        answer.cluster_id
                    ));
                }
                Ok(_) | Err(_) => {}
            }
        }
        found
    }

    /// What to found: what was begun, if its members are still the same, else anew.
    fn founding(
        &self,
        answers: &[GetFoundingStateResponse],
        new_cluster_id: String,
    ) -> Result<Founding, String> {
        let mut members = Vec::new();
        let mut ids = BTreeSet::new();
        for (place, seed) in (1u64..).zip(&self.seeds) {
            let answered = answers
                .iter()
                .filter_map(|answer| answer.member.as_ref())
                .chain(std::iter::once(&self.own))
                .find(|member| member.internal_address == *seed);
            let Some(member) = answered else {
                return Err(format!(
                    "no node says that {seed} is its own address; check 'internal-advertise' and the seed list"
                ));
            };
            let mut member = member.clone();
            if member.node_id == 0 {
                member.node_id = place;
            }
            if !ids.insert(member.node_id) {
                return Err(format!("two seeds have the node id {}", member.node_id));
            }
            members.push(member);
        }
        let own = self.own.feature_level;
        let lowest = answers.iter().map(|answer| answer.feature_level).min();
        let founding = Founding {
            cluster_id: new_cluster_id,
            members,
            seeds: self.seeds.clone(),
            feature_level: lowest.map_or(own, |lowest| lowest.min(own)),
        };
        match self.promises.held() {
            Some(begun) if begun.members == founding.members => Ok(begun),
            _ => Ok(founding),
        }
    }

    /// Tells the other seeds that the cluster exists. Those that do not hear it find out by asking.
    pub(crate) async fn confirm(&self, cluster_id: &str) {
        for seed in self.seeds.iter().filter(|seed| **seed != self.own.internal_address) {
            let request = ConfirmFoundingRequest { cluster_id: cluster_id.to_owned() };
            if let Err(error) = self.calls.confirm_founding(seed, request).await {
                tracing::debug!(%error, "a seed will find out later that the cluster is founded");
            }
        }
    }

    /// Whether this node, with this directory and this id, is a founding member.
    pub(crate) fn is_among(&self, founding: &Founding) -> bool {
        founding.members.iter().any(|member| {
            member.incarnation == self.own.incarnation && member.node_id == self.own.node_id
        })
    }

    /// Checks a coordinator's request for a promise and persists it.
    pub(crate) fn promise(&self, founding: Founding) -> Result<(), BrokerError> {
        let refuse = |why: String| BrokerError::InvalidArgument { field: "founding".into(), why };
        if founding.seeds != self.seeds {
            let why =
                format!("its seed list is {:?}, this node's {:?}", founding.seeds, self.seeds);
            return Err(refuse(why));
        }
        if !self.is_among(&founding) || founding.cluster_id.is_empty() {
            return Err(refuse("this node is not among its members".into()));
        }
        self.promises.hold(founding).map_err(|error| BrokerError::Internal(error.to_string()))
    }
}
