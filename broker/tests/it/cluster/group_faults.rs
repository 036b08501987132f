//! Members of a group and nodes of the cluster as processes that are killed while events flow: everything is handled, in order, by
//! one member at a time.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::StreamExt;
use highwater_client::{Client, NewTopic, Producer};

use super::processes::*;
use crate::harness::*;

const TOPIC: &str = "orders";
const GROUP: &str = "billing";
const PARTITIONS: u32 = 12;
const SERVERS: &str = "TEST_MEMBER_SERVERS";
const LOG: &str = "TEST_MEMBER_LOG";

/// Not a test: what a member process runs until it is killed. It writes down each event before it asks for the next one.
#[tokio::test]
#[ignore = "the other tests here start it as a process"]
async fn a_member_process() {
    let (Ok(servers), Ok(log)) = (std::env::var(SERVERS), std::env::var(LOG)) else { return };
    // All members append to one file, so that its order is the order in which events were handled.
    let mut log = std::fs::File::options().append(true).open(log).unwrap();
    let client = Client::builder().servers(servers).connect().await.unwrap();
    let builder = client.consumer(TOPIC).group(GROUP).session_timeout(Duration::from_secs(2));
    let mut events = builder.commit_interval(Duration::from_millis(50)).subscribe().await.unwrap();
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                let line = format!("{} {} {}\n", std::process::id(), event.partition, event.offset);
                log.write_all(line.as_bytes()).unwrap();
            }
            Err(error) => assert!(error.is_retriable(), "{error}"),
        }
    }
}

/// A member, killed when dropped.
struct MemberProcess(Child);

impl MemberProcess {
    fn start(cluster: &Processes, log: &Path) -> Self {
        let servers: Vec<&str> = cluster.nodes.iter().map(|node| &*node.client_address).collect();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "cluster::group_faults::a_member_process", "--ignored"]);
        command.env(SERVERS, servers.join(",")).env(LOG, log);
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for MemberProcess {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Publishes until it is stopped; answers with where each partition ends as far as that was acknowledged.
async fn publish(producer: Producer, stop: Arc<AtomicBool>) -> BTreeMap<u32, i64> {
    let mut tickets = Vec::new();
    for number in 0_u32.. {
        if stop.load(Ordering::Acquire) {
            break;
        }
        let sent = producer.send_to_partition(number % PARTITIONS, number.to_string());
        tickets.push(soon("being admitted", sent).await.unwrap());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let _ = soon("everything being answered", producer.close()).await;
    let mut ends = BTreeMap::new();
    for ticket in tickets {
        let ack = soon("an answer", ticket).await.unwrap();
        let end = ends.entry(ack.partition).or_insert(0);
        *end = (*end).max(ack.offset + 1);
    }
    ends
}

/// What was handled so far: process, partition and offset, in order. A line that is being written is not in it.
fn handled(log: &Path) -> Vec<(u32, u32, i64)> {
    let text = std::fs::read_to_string(log).unwrap();
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let number = |field: Option<&str>| field.unwrap().parse::<i64>().unwrap();
    let line = |line: &str| {
        let mut fields = line.split(' ');
        let (process, partition) = (number(fields.next()), number(fields.next()));
        let (process, partition) = (process.try_into().unwrap(), partition.try_into().unwrap());
        (process, partition, number(fields.next()))
    };
    whole.lines().map(line).collect()
}

fn ends(handled: &[(u32, u32, i64)]) -> BTreeMap<u32, i64> {
    let mut ends = BTreeMap::new();
    for (_, partition, offset) in handled {
        let end = ends.entry(*partition).or_insert(0);
        *end = (*end).max(offset + 1);
    }
    ends
}

/// Waits until every partition has come further than it is now.
async fn until_all_flow(log: &Path) {
    let before = ends(&handled(log));
    until("all partitions flowing", || async {
        let now = ends(&handled(log));
        (0..PARTITIONS).all(|partition| now.get(&partition) > before.get(&partition))
    })
    .await;
}

/// The place of the group's coordinator.
async fn coordinator(client: &Client) -> usize {
    soon("a coordinator", async {
        loop {
            if let Ok(described) = client.admin().describe_group(GROUP).await {
                return usize::try_from(described.coordinator - 1).unwrap();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
}

/// Nothing was passed over, and whoever goes on in a partition, but does not begin there, goes on at the next event.
fn assert_in_order(handled: &[(u32, u32, i64)]) {
    let mut ends: BTreeMap<u32, i64> = BTreeMap::new();
    let mut last: BTreeMap<u32, (u32, i64)> = BTreeMap::new();
    for (process, partition, offset) in handled {
        let end = ends.entry(*partition).or_insert(0);
        assert!(offset <= end, "partition {partition}: {offset} was handled before {end}");
        *end = (*end).max(offset + 1);
        if let Some((before, at)) = last.insert(*partition, (*process, *offset))
            && before == *process
            && *offset > at
        {
            assert_eq!(*offset, at + 1, "partition {partition}, process {process}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn members_and_coordinators_that_are_killed_cost_no_event_and_no_order() {
    let mut cluster = Processes::start(&[]).await;
    let client = cluster.client().await;
    client.admin().create_topic(NewTopic::new(TOPIC).partitions(PARTITIONS)).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let log: PathBuf = dir.path().join("handled");
    std::fs::File::create(&log).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let producer = client.producer(TOPIC).build();
    let publishing = tokio::runtime::Handle::current().spawn(publish(producer, stop.clone()));
    let mut members: Vec<MemberProcess> =
        (0..3).map(|_| MemberProcess::start(&cluster, &log)).collect();
    until_all_flow(&log).await;
    for round in 0..4 {
        // A member, the coordinator, then both at once.
        if round != 1 {
            members.remove(0);
        }
        if round > 0 {
            let place = coordinator(&client).await;
            cluster.nodes[place].kill();
        }
        until_all_flow(&log).await;
        cluster.run_all().await;
        while members.len() < 3 {
            members.push(MemberProcess::start(&cluster, &log));
        }
        until_all_flow(&log).await;
    }
    stop.store(true, Ordering::Release);
    let published = soon("the end of publishing", publishing).await.unwrap();
    until("everything being handled", || async {
        let handled = ends(&handled(&log));
        published.iter().all(|(partition, end)| handled.get(partition) >= Some(end))
    })
    .await;
    drop(members);
    let handled = handled(&log);
    assert_in_order(&handled);
    let events: i64 = published.values().sum();
    println!("{events} events, {} handled again", handled.len() as i64 - events);
}
