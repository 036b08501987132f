//! `cluster`: info, health, members, transfer-leader, move, replace-replica.
//!
//! Owns: these verbs' calls and tables, and the small HTTP request of `health --readyz`. Never: judges health (the cluster
//! does).

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::ProgressBar;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::Session;
use crate::args::Out;
use crate::env;
use crate::failure::{Exit, Failure};
use crate::output::{self, or_dash, table};
use crate::shapes::{ClusterShape, HealthShape, LeaderShape, NodeShape};

/// Time between two looks while waiting.
const POLL: Duration = Duration::from_millis(200);
/// Longest answer read from `/readyz`.
const READY_ANSWER_BYTES_MAX: u64 = 64 << 10;

pub(crate) async fn info(session: &Session, out: Out) -> Result<(), Failure> {
    let admin = session.connect().await?.admin();
    let cluster = session.within("asking for the cluster", admin.cluster_info()).await?;
    output::show(session.format(out), &ClusterShape::from(cluster), |cluster| {
        format!(
            "cluster          {}\nversion          {} (feature level {})\nmetadata leader  {}\n\
             nodes            {} ({} alive)\ntopics           {}\npartitions       {}\n",
            cluster.cluster_id,
            cluster.version,
            cluster.feature_level,
            cluster.metadata_leader.map_or_else(|| "none".to_owned(), |id| format!("node {id}")),
            cluster.nodes,
            cluster.nodes_alive,
            cluster.topics,
            cluster.partitions,
        )
    })
}

pub(crate) async fn members(session: &Session, out: Out) -> Result<(), Failure> {
    let admin = session.connect().await?.admin();
    let cluster = session.within("asking for the nodes", admin.cluster_info()).await?;
    let removed = cluster.removed_nodes.into_iter().map(NodeShape::removed);
    let nodes: Vec<NodeShape> = cluster.nodes.into_iter().map(Into::into).chain(removed).collect();
    output::show(session.format(out), &nodes, |nodes| {
        table(
            &[
                "node", "address", "internal", "state", "alive", "leads", "replicas", "rack",
                "version",
            ],
            nodes.iter().map(|node| {
                [
                    node.id.to_string(),
                    or_dash(Some(&node.address).filter(|address| !address.is_empty())),
                    or_dash(Some(&node.internal_address).filter(|address| !address.is_empty())),
                    node.state.clone(),
                    if node.alive { "yes" } else { "no" }.to_owned(),
                    node.leaders.to_string(),
                    node.replicas.to_string(),
                    or_dash(Some(&node.rack).filter(|rack| !rack.is_empty())),
                    or_dash(Some(&node.version).filter(|version| !version.is_empty())),
                ]
            }),
        )
    })
}

/// Prints the cluster's health; with `wait` only when it is well or the timeout ends.
pub(crate) async fn health(session: &Session, wait: bool, out: Out) -> Result<(), Failure> {
    let deadline = env::now() + session.timeout;
    let spinner = (wait && std::io::stderr().is_terminal()).then(ProgressBar::new_spinner);
    let looked = loop {
        let looked = look(session).await;
        let well = matches!(&looked, Ok(health) if health.healthy);
        let hopeless = matches!(&looked, Err(failure) if failure.exit_code() == Exit::Usage as u8);
        if well || hopeless || !wait || env::now() + POLL >= deadline {
            break looked;
        }
        if let Some(spinner) = &spinner {
            spinner.set_message(match &looked {
                Ok(health) => health.problems.join("; "),
                Err(_) => "no node answers yet".to_owned(),
            });
            spinner.tick();
        }
        tokio::time::sleep(POLL).await;
    };
    if let Some(spinner) = spinner {
        spinner.finish_and_clear();
    }
    let health = looked?;
    output::show(session.format(out), &health, |health| {
        let lines = |lines: &[String]| -> String {
            lines.iter().map(|line| format!("- {line}\n")).collect()
        };
        let mut text = match health.healthy {
            true => "healthy\n".to_owned(),
            false => format!("unhealthy\n{}", lines(&health.problems)),
        };
        if !health.in_progress.is_empty() {
            text += &format!("on its way\n{}", lines(&health.in_progress));
        }
        text
    })?;
    if health.healthy { Ok(()) } else { Err(Failure::new(Exit::Unhealthy, "")) }
}

async fn look(session: &Session) -> Result<HealthShape, Failure> {
    let admin = session.connect().await?.admin();
    Ok(session.within("asking for the cluster's health", admin.health()).await?.into())
}

/// Asks one node's HTTP port whether it is ready.
pub(crate) async fn ready(session: &Session, address: &str) -> Result<(), Failure> {
    let asked = tokio::time::timeout(session.timeout, get_ready(address)).await;
    let answer = match asked {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => {
            return Err(Failure::new(Exit::Unhealthy, format!("{address}: {error}"))
                .mend("check that the broker runs and that this is its HTTP address"));
        }
        Err(_elapsed) => {
            let what = format!("{address}: no answer within {:?}", session.timeout);
            return Err(Failure::new(Exit::TimedOut, what));
        }
    };
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    if head.split(' ').nth(1) == Some("200") {
        return output::print("ready\n");
    }
    let why = if body.trim().is_empty() { head.lines().next().unwrap_or_default() } else { body };
    Err(Failure::new(Exit::Unhealthy, format!("not ready: {}", why.trim())))
}

/// One HTTP/1.0 request: no client library is worth it.
async fn get_ready(address: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET /readyz?verbose HTTP/1.0\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(READY_ANSWER_BYTES_MAX).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

pub(crate) async fn transfer_leader(
    session: &Session,
    topic: &str,
    partition: u32,
    to: Option<u64>,
    out: Out,
) -> Result<(), Failure> {
    let admin = session.connect().await?.admin();
    let doing = format!("transferring partition {partition} of '{topic}'");
    let leader = session.within(&doing, admin.transfer_leadership(topic, partition, to)).await?;
    let shape = LeaderShape { topic: topic.to_owned(), partition, leader };
    output::show(session.format(out), &shape, |shape| {
        format!("node {} leads partition {} of {}\n", shape.leader, shape.partition, shape.topic)
    })
}

pub(crate) async fn move_partition(
    session: &Session,
    topic: &str,
    partition: u32,
    to: &[u64],
) -> Result<(), Failure> {
    let admin = session.connect().await?.admin();
    let doing = format!("moving partition {partition} of '{topic}'");
    session.within(&doing, admin.reassign_partition(topic, partition, to, &[])).await?;
    output::notice("decided; 'topic describe' shows the new replicas once they have the data");
    Ok(())
}

pub(crate) async fn replace_replica(
    session: &Session,
    topic: &str,
    partition: u32,
    node: u64,
) -> Result<(), Failure> {
    output::confirm(
        session.yes,
        &format!("gives up the data that node {node} holds of partition {partition} of '{topic}'"),
    )?;
    let admin = session.connect().await?.admin();
    let doing =
        format!("replacing the replica of partition {partition} of '{topic}' on node {node}");
    session.within(&doing, admin.reassign_partition(topic, partition, &[], &[node])).await?;
    output::notice("decided; 'cluster health' says when the new replica has the data");
    Ok(())
}
