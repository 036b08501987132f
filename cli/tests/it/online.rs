//! What the verbs print and how they end against a real broker, which runs in this process.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use highwater_broker::Broker;
use highwater_broker::config::Config;
use highwater_client::{Client, NewInstance};

use crate::{cli, stderr, stdout};

/// A broker of its own, and a folder for its data and the tool's configuration.
struct Cluster {
    broker: Option<Broker>,
    runtime: tokio::runtime::Runtime,
    folder: tempfile::TempDir,
    server: String,
}

impl Cluster {
    fn start() -> Self {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let folder = tempfile::tempdir().expect("a folder");
        let broker = runtime.block_on(async {
            let broker = Broker::start(Config::in_process(folder.path().join("data"))).await;
            let broker = broker.expect("the broker starts");
            broker.wait_ready().await;
            broker
        });
        let server = broker.client_addr().to_string();
        Self { broker: Some(broker), runtime, folder, server }
    }

    fn with_server<'a>(&'a self, arguments: &[&'a str]) -> Vec<&'a str> {
        [&["--server", &self.server, "--timeout", "30s"], arguments].concat()
    }

    fn cli(&self, arguments: &[&str]) -> Output {
        cli(self.folder.path(), &self.with_server(arguments))
    }

    /// Standard output of a command that succeeds.
    fn done(&self, arguments: &[&str]) -> String {
        let output = self.cli(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
        stdout(&output)
    }

    fn json(&self, arguments: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.done(arguments)).expect("JSON")
    }

    /// Publishes these lines.
    fn produce(&self, arguments: &[&str], lines: &[u8]) -> Output {
        produce(self.folder.path(), &self.with_server(arguments), lines)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(broker) = self.broker.take() {
            self.runtime.block_on(broker.stop());
        }
    }
}

fn produce(folder: &Path, arguments: &[&str], lines: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_broker-cli"))
        .args(arguments)
        .env("HIGHWATER_CLI_CONFIG", folder.join("cli.toml"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("broker-cli starts");
    // Dropped at once, which ends the input. A command that fails early may leave before it has read everything.
    let _ = child.stdin.take().expect("a pipe").write_all(lines);
    child.wait_with_output().expect("broker-cli ends")
}

#[test]
fn a_topic_lives_from_create_to_delete() {
    let cluster = Cluster::start();
    cluster.done(&["topic", "create", "orders", "-p", "2", "-c", "retention.ms=60000"]);
    let again = cluster.cli(&["topic", "create", "orders"]);
    assert_eq!(again.status.code(), Some(1), "{}", stderr(&again));
    let illegal = cluster.cli(&["topic", "create", "a/b"]);
    assert_eq!(illegal.status.code(), Some(2), "{}", stderr(&illegal));
    let unknown_key = cluster.cli(&["topic", "create", "other", "-c", "retention=1"]);
    assert_eq!(unknown_key.status.code(), Some(2), "{}", stderr(&unknown_key));

    let listed = cluster.json(&["topic", "list", "-o", "json"]);
    assert_eq!(listed[0]["name"], "orders");
    assert_eq!(listed[0]["partitions"], 2);
    assert_eq!(listed[0]["config"]["retention.ms"], "60000");

    let described = cluster.json(&["topic", "describe", "orders", "-o", "json"]);
    let keys: Vec<&String> = described["partitions"][0].as_object().unwrap().keys().collect();
    assert_eq!(
        keys,
        [
            "epoch",
            "high_watermark",
            "in_sync",
            "leader",
            "log_start_offset",
            "partition",
            "replicas",
            "size_bytes",
            "state"
        ]
    );
    assert_eq!(described["partitions"][1]["state"], "healthy");

    cluster.done(&["topic", "alter", "orders", "-c", "retention.bytes=1000000"]);
    cluster.done(&["topic", "alter", "orders", "--unset", "retention.ms"]);
    let config = &cluster.json(&["topic", "describe", "orders", "-o", "json"])["config"];
    assert_eq!(config["retention.bytes"], "1000000");
    assert_eq!(config["retention.ms"], "604800000");

    cluster.done(&["topic", "alter", "orders", "-p", "3"]);
    let described = cluster.json(&["topic", "describe", "orders", "-o", "json"]);
    assert_eq!(described["partitions"][2]["state"], "healthy");
    let fewer = cluster.cli(&["topic", "alter", "orders", "--partitions", "1"]);
    assert_eq!(fewer.status.code(), Some(2), "{}", stderr(&fewer));
    assert!(stderr(&fewer).contains("not taken away"), "{}", stderr(&fewer));

    cluster.done(&["topic", "delete", "orders", "--yes"]);
    let gone = cluster.cli(&["topic", "describe", "orders"]);
    assert_eq!(gone.status.code(), Some(3), "{}", stderr(&gone));
    assert!(stderr(&gone).contains("mend: "), "{}", stderr(&gone));
}

#[test]
fn what_is_produced_is_consumed_with_keys_headers_and_offsets() {
    let cluster = Cluster::start();
    cluster.done(&["topic", "create", "orders"]);
    let arguments =
        ["produce", "orders", "--key-separator", ":", "-H", "source=shop", "-o", "json"];
    let output = cluster.produce(&arguments, b"a:one\nb:two\nc:\xff\n");
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(stdout(&output).lines().count(), 3);
    assert!(stderr(&output).contains("published 3 records"), "{}", stderr(&output));

    let text = cluster.done(&["consume", "orders", "-n", "2", "-f", "%t/%p@%o %k=%v %h\\n"]);
    assert_eq!(text, "orders/0@0 a=one source=shop\norders/0@1 b=two source=shop\n");
    let line = cluster.done(&["consume", "orders", "-o", "2", "-o", "json"]);
    let record: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(record["offset"], 2);
    assert_eq!(record["key"], "c");
    assert_eq!(record["value"]["base64"], "/w==");
    assert_eq!(record["headers"][0]["value"], "shop");
    assert_eq!(cluster.done(&["consume", "orders", "-o", "end"]), "");

    cluster.done(&["topic", "trim", "orders", "-p", "0", "--to", "2", "--yes"]);
    assert_eq!(cluster.done(&["consume", "orders", "-f", "%o "]), "2 ");
    let before = cluster.cli(&["consume", "orders", "-o", "0"]);
    assert_eq!(before.status.code(), Some(1), "{}", stderr(&before));
    assert!(stderr(&before).contains("out of range"), "{}", stderr(&before));
}

#[test]
fn a_record_that_is_refused_ends_produce_and_says_which_line() {
    let cluster = Cluster::start();
    cluster.done(&["topic", "create", "small", "-c", "max.message.bytes=100"]);
    let lines = [b"fits\n".as_slice(), &[b'x'; 200], b"\n"].concat();
    let output = cluster.produce(&["produce", "small"], &lines);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).contains("line 2: "), "{}", stderr(&output));
    let missing = cluster.produce(&["produce", "nowhere"], b"event\n");
    assert_eq!(missing.status.code(), Some(3), "{}", stderr(&missing));
    let no_partition = cluster.cli(&["consume", "small", "-p", "9"]);
    assert_eq!(no_partition.status.code(), Some(3), "{}", stderr(&no_partition));
}

#[test]
fn a_cluster_of_one_is_healthy_ready_and_has_one_member() {
    let cluster = Cluster::start();
    assert_eq!(cluster.done(&["cluster", "health", "--wait"]), "healthy\n");
    let http = cluster.broker.as_ref().unwrap().http_addr().to_string();
    assert_eq!(cluster.done(&["cluster", "health", "--readyz", &http]), "ready\n");
    let info = cluster.json(&["cluster", "info", "-o", "json"]);
    assert_eq!((&info["nodes"], &info["nodes_alive"]), (&1.into(), &1.into()));
    let members = cluster.json(&["cluster", "members", "-o", "json"]);
    assert_eq!(members[0]["address"], cluster.server);
    assert_eq!(members[0]["state"], "active");
}

#[test]
fn an_even_cluster_needs_no_plan_and_its_last_node_stays() {
    let cluster = Cluster::start();
    cluster.done(&["topic", "create", "orders", "-p", "2"]);
    assert_eq!(cluster.done(&["cluster", "rebalance"]), "the cluster is even\n");
    let plan = cluster.json(&["cluster", "rebalance", "--execute", "-o", "json"]);
    assert_eq!(plan["started"], 0);
    let unasked = cluster.cli(&["cluster", "remove-node", "1"]);
    assert_eq!(unasked.status.code(), Some(2), "{}", stderr(&unasked));
    let last = cluster.cli(&["--yes", "cluster", "remove-node", "1"]);
    assert_eq!(last.status.code(), Some(2), "{}", stderr(&last));
    let unknown = cluster.cli(&["--yes", "cluster", "add-node", "7"]);
    assert!(stderr(&unknown).contains("joins by itself"), "{}", stderr(&unknown));
}

#[test]
fn a_group_reads_on_where_it_was_shows_its_lag_and_can_be_reset_and_deleted() {
    let cluster = Cluster::start();
    cluster.done(&["topic", "create", "orders"]);
    assert!(cluster.produce(&["produce", "orders"], b"a\nb\nc\n").status.success());
    assert_eq!(cluster.done(&["consume", "orders", "-g", "billing", "-n", "2"]), "a\nb\n");
    let lag = cluster.json(&["group", "lag", "billing", "-o", "json"]);
    assert_eq!((&lag["lag"], &lag["partitions"][0]["committed_offset"]), (&1.into(), &2.into()));
    assert!(lag["lag_ms"].as_i64().is_some_and(|ms| ms < 600_000), "{lag}");
    assert_eq!(cluster.done(&["consume", "orders", "-g", "billing", "-n", "1"]), "c\n");
    let listed = cluster.json(&["group", "list", "-o", "json"]);
    assert_eq!((&listed[0]["group"], &listed[0]["state"]), (&"billing".into(), &"empty".into()));
    let table = cluster.done(&["group", "describe", "billing"]);
    assert!(table.contains("not assigned"), "{table}");
    let reset = ["group", "reset-offsets", "billing", "--to", "1", "-o", "json"];
    let planned = cluster.json(&reset);
    assert_eq!((&planned["executed"], &planned["offsets"][0]["to"]), (&false.into(), &1.into()));
    assert_eq!(cluster.json(&["group", "lag", "billing", "-o", "json"])["lag"], 0);
    cluster.json(&[&reset[..], &["--execute"]].concat());
    assert_eq!(cluster.done(&["consume", "orders", "-g", "billing", "-n", "2"]), "b\nc\n");
    cluster.done(&["group", "delete", "billing", "--yes"]);
    let gone = cluster.cli(&["group", "describe", "billing"]);
    assert_eq!(gone.status.code(), Some(3), "{}", stderr(&gone));
}

#[test]
fn services_are_listed_described_and_watched() {
    let cluster = Cluster::start();
    assert_eq!(cluster.json(&["service", "list", "-o", "json"]), serde_json::json!([]));
    let nobody = cluster.cli(&["service", "describe", "pricing"]);
    assert_eq!(nobody.status.code(), Some(3), "{}", stderr(&nobody));
    let registration = cluster.runtime.block_on(async {
        let client = Client::connect(&cluster.server).await.expect("it connects");
        let instance = NewInstance::at("10.0.0.7:9000").attribute("requests", "pricing.requests");
        client.registry().announce("pricing", instance).await.expect("it is announced")
    });
    let instance = serde_json::json!({
        "service": "pricing",
        "id": registration.id(),
        "address": "10.0.0.7:9000",
        "attributes": {"requests": "pricing.requests"},
        "lease_ms": 10_000,
    });
    assert_eq!(cluster.json(&["service", "list", "-o", "json"]), serde_json::json!([instance]));
    assert_eq!(cluster.json(&["service", "list", "other", "-o", "json"]), serde_json::json!([]));
    let described = cluster.json(&["service", "describe", "pricing", "-o", "json"]);
    assert_eq!(described, serde_json::json!({"service": "pricing", "instances": [instance]}));
    let table = cluster.done(&["service", "list", "pricing"]);
    assert!(table.starts_with("SERVICE") && table.contains("10.0.0.7:9000"), "{table}");
    assert!(table.contains("requests=pricing.requests"), "{table}");
    let watched = cluster.json(&["service", "watch", "pricing", "-n", "1", "-o", "json"]);
    assert_eq!(watched, serde_json::json!({"change": "up", "instance": instance}));
    let illegal = cluster.cli(&["service", "list", "a/b"]);
    assert_eq!(illegal.status.code(), Some(2), "{}", stderr(&illegal));
    cluster.runtime.block_on(registration.close()).expect("it is taken out");
    assert_eq!(cluster.json(&["service", "list", "-o", "json"]), serde_json::json!([]));
}
