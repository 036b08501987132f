//! Health and metrics over HTTP/1.1, for probes and Prometheus.
//!
//! Owns: four paths. Never: anything that changes something.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::cluster::{GroupId, Node};
use crate::metrics::{Metrics, ReplicaFigures, ScrapeFigures};

/// Content type of OpenMetrics text.
const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The group that holds the cluster's metadata.
const METADATA_GROUP: GroupId = 0;

/// Topic name under which the metadata group is shown.
const METADATA_TOPIC: &str = "__metadata";

#[derive(Clone)]
struct Shown {
    node: Node,
    metrics: Arc<Metrics>,
}

/// Serves until closing turns true or its sender is gone.
pub(crate) async fn serve(
    socket: TcpListener,
    node: Node,
    metrics: Arc<Metrics>,
    mut closing: watch::Receiver<bool>,
) -> std::io::Result<()> {
    let router = Router::new()
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(readyz))
        .route("/healthz", get(readyz))
        .route("/metrics", get(show_metrics))
        .with_state(Shown { node, metrics });
    let closed = async move {
        let _ = closing.wait_for(|closing| *closing).await;
    };
    axum::serve(socket, router).with_graceful_shutdown(closed).await
}

/// 200 while the node serves, 503 otherwise; with `?verbose` one line for each check.
async fn readyz(State(shown): State<Shown>, RawQuery(query): RawQuery) -> impl IntoResponse {
    let state = shown.node.ready_state();
    let (code, verdict) = match state.ready {
        true => (StatusCode::OK, "ready"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "not ready"),
    };
    let is_verbose = query.is_some_and(|query| query.split('&').any(is_verbose_parameter));
    let mut text = String::new();
    if is_verbose {
        for check in &state.checks {
            text.push_str(check);
            text.push('\n');
        }
    }
    text.push_str(verdict);
    text.push('\n');
    (code, text)
}

fn is_verbose_parameter(parameter: &str) -> bool {
    parameter.split('=').next() == Some("verbose")
}

async fn show_metrics(State(shown): State<Shown>) -> impl IntoResponse {
    let text = shown.metrics.render(&figures(&shown.node));
    ([(header::CONTENT_TYPE, METRICS_TYPE)], text)
}

/// What every replica on this node looks like now.
fn figures(node: &Node) -> ScrapeFigures {
    let view = node.view();
    let mut names: BTreeMap<GroupId, (&str, u32)> = BTreeMap::new();
    for topic in view.topics.values() {
        for (place, number) in topic.partitions.iter().zip(0_u32..) {
            names.insert(place.group, (topic.name.as_str(), number));
        }
    }
    let name_of = |group: GroupId| match group {
        METADATA_GROUP => Some((METADATA_TOPIC, 0)),
        group => names.get(&group).copied(),
    };
    let mut replicas = Vec::new();
    let metadata = node.replica(METADATA_GROUP).map(|handle| (METADATA_GROUP, handle));
    for (group, handle) in metadata.into_iter().chain(node.replicas()) {
        // A group without a topic is about to be deleted.
        let Some((topic, partition)) = name_of(group) else { continue };
        let status = handle.status();
        replicas.push(ReplicaFigures {
            topic: topic.to_owned(),
            partition,
            is_leader: status.is_leader,
            leader_epoch: status.leader_epoch,
            log_start_offset: status.log_start_offset,
            high_watermark: status.high_watermark,
            log_end_offset: status.log_end_offset,
            size_bytes: status.size_bytes,
            is_quarantined: status.quarantined.is_some(),
            follower_lag_entries: status.lag_entries,
        });
    }
    let in_service: Vec<GroupId> = node.replicas().into_iter().map(|(group, _)| group).collect();
    for (group, _) in node.quarantined_replicas() {
        let Some((topic, partition)) = name_of(group) else { continue };
        if in_service.contains(&group) {
            continue;
        }
        let topic = topic.to_owned();
        replicas.push(ReplicaFigures {
            topic,
            partition,
            is_quarantined: true,
            ..Default::default()
        });
    }
    let alive = view.nodes.keys().filter(|&&id| node.is_alive(id)).count();
    ScrapeFigures {
        ready: node.ready_state().ready,
        nodes_alive: alive as u64,
        nodes: view.nodes.len() as u64,
        service_instances: view.registry.len(),
        replicas,
    }
}
