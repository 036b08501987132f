//! The verbs: what each asks of the cluster and what it prints.
//!
//! Owns: dispatch and what all verbs share ([`Session`]). Never: parsing of flags, JSON shapes.

pub(crate) mod cluster;
mod consume;
mod group;
mod nodes;
mod produce;
pub(crate) mod profile;
mod service;
mod topic;

use std::time::Duration;

use highwater_client::{Client, SERVERS_VARIABLE};

use crate::args::{Cluster, Command, Global, Out};
use crate::failure::{Exit, Failure};
use crate::output::{self, Format};
use crate::profile::{self as profiles, Profile, Profiles};
use crate::shapes::VersionShape;

/// What every verb that talks to a cluster needs.
#[derive(Debug)]
pub(crate) struct Session {
    /// What to connect to.
    profile: Profile,
    /// How long to wait for the cluster.
    pub(crate) timeout: Duration,
    /// Whether `--yes` was given.
    pub(crate) yes: bool,
    /// `-o` before the verb.
    output: Option<Format>,
}

impl Session {
    /// Finds out which cluster is meant; does not connect yet.
    pub(crate) fn new(global: Global, output: Option<Format>) -> Result<Self, Failure> {
        let profile = profiles::servers(
            global.server,
            global.profile.as_deref(),
            std::env::var(SERVERS_VARIABLE).ok(),
            || match crate::args::config_file() {
                Some(path) => Profiles::load(&path),
                None => Ok(Profiles::default()),
            },
        )?;
        let profile = profile.with_tls(global.tls);
        Ok(Self { profile, timeout: global.timeout, yes: global.yes, output })
    }

    /// Connects, within the timeout.
    pub(crate) async fn connect(&self) -> Result<Client, Failure> {
        let client = self
            .profile
            .builder()?
            .client_id("broker-cli")
            .connect_timeout(self.timeout)
            .request_timeout(self.timeout)
            .connect()
            .await?;
        Ok(client)
    }

    /// `-o` behind the verb, else before it, else a table.
    pub(crate) fn format(&self, out: Out) -> Format {
        out.format.or(self.output).unwrap_or_default()
    }

    /// `-o` before the verb.
    pub(crate) fn output(&self) -> Option<Format> {
        self.output
    }

    /// The answer, unless it takes longer than the timeout.
    pub(crate) async fn within<T, E: Into<Failure>>(
        &self,
        doing: &str,
        answer: impl Future<Output = Result<T, E>>,
    ) -> Result<T, Failure> {
        // The client has the same timeout and better words: its error should come first.
        let patience = self.timeout + Duration::from_millis(500);
        match tokio::time::timeout(patience, answer).await {
            Ok(answer) => answer.map_err(|error| error.into().context(doing)),
            Err(_elapsed) => {
                let what = format!("{doing}: no answer within {:?}", self.timeout);
                Err(Failure::new(Exit::TimedOut, what).mend(
                    "'broker-cli cluster health' says what is missing; try a longer --timeout",
                ))
            }
        }
    }
}

/// Runs a verb that talks to a cluster.
pub(crate) async fn run(session: Session, command: Command) -> Result<(), Failure> {
    match command {
        Command::Topic(verb) => topic::run(&session, verb).await,
        Command::Produce(produce) => produce::run(&session, produce).await,
        Command::Consume(consume) => consume::run(&session, consume).await,
        Command::Cluster(verb) => run_cluster(&session, verb).await,
        Command::Group(verb) => group::run(&session, verb).await,
        Command::Service(verb) => service::run(&session, verb).await,
        Command::Version { out } => version(session.format(out)),
        // Done before there is a session.
        Command::Completion { .. } | Command::Profile(_) => Ok(()),
    }
}

async fn run_cluster(session: &Session, verb: Cluster) -> Result<(), Failure> {
    match verb {
        Cluster::Info { out } => cluster::info(session, out).await,
        Cluster::Health { readyz: Some(address), .. } => cluster::ready(session, &address).await,
        Cluster::Health { wait, readyz: None, out } => cluster::health(session, wait, out).await,
        Cluster::Members { out } => cluster::members(session, out).await,
        Cluster::TransferLeader { topic, partition, to, out } => {
            cluster::transfer_leader(session, &topic, partition, to, out).await
        }
        Cluster::Move { topic, partition, to } => {
            cluster::move_partition(session, &topic, partition, &to).await
        }
        Cluster::ReplaceReplica { topic, partition, node } => {
            cluster::replace_replica(session, &topic, partition, node).await
        }
        Cluster::AddNode { node } => nodes::add(session, node).await,
        Cluster::RemoveNode { node, wait } => nodes::remove(session, node, wait).await,
        Cluster::Rebalance { execute, out } => nodes::rebalance(session, execute, out).await,
    }
}

/// Prints the tool's version.
pub(crate) fn version(format: Format) -> Result<(), Failure> {
    let shape = VersionShape { version: env!("CARGO_PKG_VERSION") };
    output::show(format, &shape, |shape| format!("broker-cli {}\n", shape.version))
}
