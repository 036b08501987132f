//! Three nodes as processes of their own, to be killed as a machine kills them. Owns no assertion about behaviour.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use highwater_client::{Client, FetchOptions, Start};
use highwater_testing::free_address;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::*;

/// The broker's binary as the tests were built with.
const BROKER: &str = env!("CARGO_BIN_EXE_broker");

/// A command that starts the binary with only what the test says: nothing from the environment.
pub(crate) fn broker_command() -> Command {
    let mut command = Command::new(BROKER);
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("HIGHWATER")) {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null());
    command
}

/// One node as a process.
pub(crate) struct Process {
    child: Option<Child>,
    pub(crate) data_dir: PathBuf,
    log: PathBuf,
    flags: Vec<String>,
    pub(crate) client_address: String,
    http_address: String,
}

impl Process {
    /// What a node needs; it is not started. The log goes beside the data directory.
    pub(crate) fn prepare(data_dir: PathBuf, internal: &str, more: &[String]) -> Self {
        let (client_address, http_address) = (free_address(), free_address());
        let log = data_dir.with_extension("log");
        let flags = [
            format!("--data-dir={}", data_dir.display()),
            format!("--listen={client_address}"),
            format!("--internal-listen={internal}"),
            format!("--http-listen={http_address}"),
        ];
        let flags = flags.into_iter().chain(more.iter().cloned()).collect();
        Self { child: None, data_dir, log, flags, client_address, http_address }
    }

    pub(crate) fn run(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        let mut command = broker_command();
        command.args(&self.flags).stdout(log.try_clone().unwrap()).stderr(log);
        self.child = Some(command.spawn().unwrap());
    }

    pub(crate) fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// As a machine that loses its process: no goodbye.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Asks it to stop, without waiting.
    pub(crate) fn terminate(&self) {
        self.signal("-TERM");
    }

    /// Lets it stand still, with its connections open.
    pub(crate) fn pause(&self) {
        self.signal("-STOP");
    }

    /// Lets it go on.
    pub(crate) fn resume(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.as_ref().expect("it runs").id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    /// A figure of its metrics.
    pub(crate) async fn figure(&self, name: &str) -> Option<f64> {
        let page = http_try(&self.http_address, "/metrics").await?;
        let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line?.trim().parse().ok()
    }

    /// Memory that it has in RAM.
    pub(crate) fn resident_kib(&self) -> u64 {
        let pid = self.child.as_ref().expect("it runs").id();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        resident.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Waits for the end of a process that was asked to stop, or ends by itself.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let child = self.child.as_mut().expect("it runs");
        let mut status = None;
        until("the end of the process", || {
            status = child.try_wait().unwrap();
            let has_ended = status.is_some();
            async move { has_ended }
        })
        .await;
        self.child = None;
        status.expect("it has ended")
    }

    pub(crate) async fn ready(&self) {
        until("a process being ready", || async {
            let answer = http_try(&self.http_address, "/readyz").await;
            answer.is_some_and(|answer| answer.starts_with("HTTP/1.1 200"))
        })
        .await;
    }

    /// What it has logged so far.
    pub(crate) fn logged(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            let log = self.logged();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("--- the end of {}", self.log.display());
            eprintln!("{}", lines[lines.len().saturating_sub(40)..].join("\n"));
        }
    }
}

async fn http_try(address: &str, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    Some(answer)
}

/// Three nodes of one cluster. The node at place `n` has the id `n + 1`.
pub(crate) struct Processes {
    pub(crate) nodes: Vec<Process>,
    dir: TempDir,
    flags: Vec<String>,
}

impl Processes {
    /// Three that serve. `more` are flags for each.
    pub(crate) async fn start(more: &[&str]) -> Self {
        Self::start_each(more, |_| Vec::new()).await
    }

    /// The same, with flags that each has for itself, by its place.
    pub(crate) async fn start_each(more: &[&str], own: impl Fn(usize) -> Vec<String>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let seeds: Vec<String> = (0..3).map(|_| free_address()).collect();
        let mut flags = vec![format!("--seeds={}", seeds.join(","))];
        flags.extend(more.iter().map(|flag| (*flag).to_owned()));
        let node = |(place, seed): (usize, &String)| {
            let flags: Vec<String> = flags.iter().cloned().chain(own(place)).collect();
            Process::prepare(dir.path().join(format!("node-{}", place + 1)), seed, &flags)
        };
        let nodes = seeds.iter().enumerate().map(node).collect();
        let mut processes = Self { nodes, dir, flags };
        processes.run_all().await;
        processes
    }

    /// Another node, which joins the cluster by its seeds and gets the next id.
    pub(crate) async fn join_another(&mut self) {
        let dir = self.dir.path().join(format!("node-{}", self.nodes.len() + 1));
        let mut node = Process::prepare(dir, &free_address(), &self.flags);
        node.run();
        node.ready().await;
        self.nodes.push(node);
    }

    /// Starts those that do not run and waits until all serve.
    pub(crate) async fn run_all(&mut self) {
        for node in &mut self.nodes {
            if !node.is_running() {
                node.run();
            }
        }
        for node in &self.nodes {
            node.ready().await;
        }
    }

    /// A client that knows all nodes.
    pub(crate) async fn client(&self) -> Client {
        let servers: Vec<&str> = self.nodes.iter().map(|node| &*node.client_address).collect();
        let builder = Client::builder().servers(servers.join(","));
        builder.request_timeout(Duration::from_secs(30)).connect().await.unwrap()
    }

    /// The place of a partition's leader.
    pub(crate) async fn leader(&self, client: &Client, topic: &str, partition: usize) -> usize {
        let mut found = None;
        soon("a leader", async {
            while found.is_none() {
                let topic = client.admin().get_topic(topic).await;
                found = topic.ok().and_then(|topic| topic.partitions[partition].leader);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        usize::try_from(found.expect("it was found") - 1).unwrap()
    }
}

/// Everything in a topic: key, value and offset of each record, by partition.
pub(crate) async fn read_all(client: &Client, topic: &str) -> Vec<Vec<(i64, String, String)>> {
    let partitions = client.admin().get_topic(topic).await.unwrap().partitions.len();
    let text = |bytes: Option<bytes::Bytes>| {
        String::from_utf8(bytes.unwrap_or_default().to_vec()).unwrap()
    };
    let mut all = Vec::new();
    for partition in 0..u32::try_from(partitions).unwrap() {
        let mut records = Vec::new();
        let mut start = Start::Earliest;
        soon("reading a partition", async {
            loop {
                let options = FetchOptions { start, ..FetchOptions::default() };
                let Ok(page) = client.admin().fetch(topic, partition, options).await else {
                    // The leader may be about to change; reading again does no harm.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                };
                for event in page.events {
                    records.push((event.offset, text(event.key), text(event.value)));
                }
                if page.next_offset == page.high_watermark {
                    return;
                }
                start = Start::Offset(page.next_offset);
            }
        })
        .await;
        all.push(records);
    }
    all
}

/// Runs the binary to its end and answers with its exit code and what it said on standard error.
pub(crate) async fn run_to_end(data_dir: &Path, more: &[String]) -> (Option<i32>, String) {
    let mut process = Process::prepare(data_dir.to_owned(), &free_address(), more);
    let log = tempfile::NamedTempFile::new().unwrap();
    process.log = log.path().to_owned();
    process.run();
    let status = process.ended().await;
    (status.code(), process.logged())
}
