//! `cluster add-node`, `remove-node`, `rebalance`: who belongs to the cluster, and how even it is.
//!
//! Owns: these verbs' calls, questions and tables. Never: decides where a replica goes (the cluster does).

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::ProgressBar;

use super::Session;
use crate::args::Out;
use crate::env;
use crate::failure::{Exit, Failure};
use crate::output::{self, list, table};
use crate::shapes::PlanShape;

/// Time between two looks while waiting.
const POLL: Duration = Duration::from_millis(200);

pub(crate) async fn add(session: &Session, node: u64) -> Result<(), Failure> {
    let admin = session.connect().await?.admin();
    let cluster = session.within("asking for the nodes", admin.cluster_info()).await?;
    let known = cluster.nodes.iter().find(|known| known.id == node);
    if known.is_some_and(|known| known.state == highwater_client::NodeState::Active) {
        output::confirm(
            session.yes,
            &format!("gives up what the lost data directory of node {node} held"),
        )?;
    }
    session.within(&format!("admitting node {node}"), admin.add_node(node)).await?;
    output::notice(&match known {
        Some(known) if known.state == highwater_client::NodeState::Draining => {
            format!("node {node} stays; what has moved away does not come back by itself")
        }
        _ => format!("node {node} may come back once with an empty data directory"),
    });
    Ok(())
}

pub(crate) async fn remove(session: &Session, node: u64, wait: bool) -> Result<(), Failure> {
    output::confirm(
        session.yes,
        &format!("moves everything away from node {node} and removes it for good"),
    )?;
    let admin = session.connect().await?.admin();
    session.within(&format!("removing node {node}"), admin.remove_node(node)).await?;
    if !wait {
        output::notice("decided; 'cluster members' and 'cluster health' show how far it is");
        return Ok(());
    }
    let deadline = env::now() + session.timeout;
    let spinner = std::io::stderr().is_terminal().then(ProgressBar::new_spinner);
    loop {
        let cluster = session.within("asking for the nodes", admin.cluster_info()).await?;
        let left = cluster.nodes.iter().find(|known| known.id == node);
        let Some(left) = left else {
            if let Some(spinner) = spinner {
                spinner.finish_and_clear();
            }
            output::notice(&format!("node {node} has left; its process can be stopped"));
            return Ok(());
        };
        if env::now() + POLL >= deadline {
            let what = format!("node {node} still has {} replicas", left.replicas);
            return Err(Failure::new(Exit::TimedOut, what).mend(
                "it goes on in the background: 'broker-cli cluster health' shows how far it is",
            ));
        }
        if let Some(spinner) = &spinner {
            spinner.set_message(format!("{} replicas are still to move", left.replicas));
            spinner.tick();
        }
        tokio::time::sleep(POLL).await;
    }
}

pub(crate) async fn rebalance(session: &Session, execute: bool, out: Out) -> Result<(), Failure> {
    let admin = session.connect().await?.admin();
    let plan = session.within("planning", admin.rebalance(execute)).await?;
    let shape = PlanShape::from(plan);
    output::show(session.format(out), &shape, |plan| match plan.moves.is_empty() {
        true => "the cluster is even\n".to_owned(),
        false => plan_table(plan),
    })?;
    if execute {
        let (started, planned) = (shape.started, shape.moves.len());
        output::notice(&format!(
            "{started} of {planned} moves are on their way; 'cluster health' shows them"
        ));
    } else if !shape.moves.is_empty() {
        output::notice("nothing has moved; add --execute to do it");
    }
    Ok(())
}

fn plan_table(plan: &PlanShape) -> String {
    table(
        &["topic", "partition", "from", "to"],
        plan.moves.iter().map(|planned| {
            [
                planned.topic.clone(),
                planned.partition.to_string(),
                list(&planned.from),
                list(&planned.to),
            ]
        }),
    )
}
