//! A full disk: publishing is refused with a clear reason, reading goes on, and service resumes when there is room.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use highwater_proto::v1;
use highwater_testing::free_address;
use tempfile::{NamedTempFile, TempDir};

use super::processes::*;
use crate::harness::*;

/// What a file system gives away at once.
const BLOCK_BYTES: usize = 4096;

/// A small file system; gone when this is dropped.
pub(crate) struct SmallDisk {
    dir: TempDir,
    /// What a loop device is made of.
    _image: Option<NamedTempFile>,
}

impl SmallDisk {
    /// In memory; `None` where mounting is not allowed.
    pub(crate) fn mount(size: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let options = format!("size={size}");
        run("mount", &["-t", "tmpfs", "-o", &options, "highwater-test", &text(dir.path())])?;
        Some(Self { dir, _image: None })
    }

    /// A real file system in a file; `None` where that cannot be mounted.
    fn mount_loop(bytes: u64) -> Option<Self> {
        let (dir, image) = (tempfile::tempdir().unwrap(), NamedTempFile::new().unwrap());
        image.as_file().set_len(bytes).unwrap();
        // Blocks that only root may use would let the broker go on for longer.
        run("mkfs.ext4", &["-q", "-m", "0", "-F", &text(image.path())])?;
        run("mount", &["-o", "loop", &text(image.path()), &text(dir.path())])?;
        Some(Self { dir, _image: Some(image) })
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Takes all room but this many bytes; the file to remove afterwards.
    pub(crate) fn fill(&self, left: u64) -> PathBuf {
        let ballast = self.path().join("ballast");
        let output = Command::new("df").args(["-B1", "--output=avail"]).arg(self.path()).output();
        let text = String::from_utf8(output.unwrap().stdout).unwrap();
        let available: u64 = text.lines().nth(1).unwrap().trim().parse().unwrap();
        let file = File::create(&ballast).unwrap();
        for _ in 0..available.saturating_sub(left) / BLOCK_BYTES as u64 {
            // A file system needs blocks for itself too: full is when it says so.
            if (&file).write_all(&[1; BLOCK_BYTES]).is_err() {
                break;
            }
        }
        ballast
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.dir.path()).status();
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// `None` if the command is not there or fails.
fn run(command: &str, arguments: &[&str]) -> Option<()> {
    let done = Command::new(command).args(arguments).output();
    done.is_ok_and(|done| done.status.success()).then_some(())
}

/// Publishes one record; the reason if that was refused.
async fn publish(clients: &Clients, topic: &str, value: &str) -> Result<i64, String> {
    let request = v1::ProduceRequest {
        topic: topic.to_owned(),
        partition: Some(0),
        records: vec![record(value)],
        ..Default::default()
    };
    match soon("an answer", async { clients.producer().produce(request).await }).await {
        Ok(answer) => Ok(answer.into_inner().acks[0].base_offset),
        Err(status) => Err(reason(&status)),
    }
}

async fn first_values(clients: &Clients, topic: &str) -> Vec<String> {
    let fetched = clients.fetch(topic, 0, start()).await.unwrap();
    values(&fetched.records).iter().map(|value| value[..8].to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_publishing_and_nothing_else_until_there_is_room() {
    let Some(disk) = SmallDisk::mount("32m") else {
        eprintln!("skipped: mounting a small file system is not allowed here");
        return;
    };
    let flags = ["--node-id=1".to_owned()];
    let mut process = Process::prepare(disk.path().join("data"), &free_address(), &flags);
    process.run();
    process.ready().await;
    let clients = Clients::of(process.client_address.parse().unwrap());
    clients.create_topic("kept", 1).await;
    clients.create_topic("bulk", 1).await;
    let value = |number: i64| format!("{number:08}").repeat(16 << 10);
    let mut acknowledged = 0;
    for _ in 0..4 {
        assert_eq!(publish(&clients, "kept", &value(acknowledged)).await, Ok(acknowledged));
        acknowledged += 1;
        publish(&clients, "bulk", &value(0)).await.unwrap();
    }
    let ballast = disk.fill(512 << 10);
    let mut refusal = None;
    for _ in 0..200 {
        match publish(&clients, "kept", &value(acknowledged)).await {
            Ok(offset) => {
                assert_eq!(offset, acknowledged);
                acknowledged += 1;
            }
            Err(reason) => {
                refusal = Some(reason);
                break;
            }
        }
    }
    assert_eq!(refusal.as_deref(), Some("DISK_FULL"));
    // It is still so when asked again, it still reads, and it is still there.
    assert_eq!(publish(&clients, "kept", &value(0)).await, Err("DISK_FULL".to_owned()));
    let high_watermark = async || {
        let get = v1::TopicServiceGetRequest { name: "kept".into() };
        let topic = clients.topics().get(get).await.unwrap().into_inner().topic.unwrap();
        topic.partitions[0].high_watermark
    };
    assert_eq!(high_watermark().await, acknowledged);
    assert_eq!(first_values(&clients, "kept").await[0], "00000000");
    // Room comes from a topic that goes, or from the operator.
    let delete = v1::TopicServiceDeleteRequest { name: "bulk".into() };
    clients.topics().delete(delete).await.unwrap();
    until("publishing again after a topic was deleted", || async {
        match publish(&clients, "kept", &value(acknowledged)).await {
            Ok(offset) => offset == acknowledged,
            Err(reason) => {
                assert_eq!(reason, "DISK_FULL");
                false
            }
        }
    })
    .await;
    acknowledged += 1;
    std::fs::remove_file(ballast).unwrap();
    for _ in 0..4 {
        assert_eq!(publish(&clients, "kept", &value(acknowledged)).await, Ok(acknowledged));
        acknowledged += 1;
    }
    // A kill and a start find every acknowledged record.
    process.kill();
    process.run();
    process.ready().await;
    until("the high watermark", || async { high_watermark().await == acknowledged }).await;
    let mut at = 0;
    while at < acknowledged {
        let page = clients.fetch("kept", 0, v1::position::At::Offset(at)).await.unwrap();
        for value in values(&page.records) {
            assert_eq!(value[..8], format!("{at:08}"));
            at += 1;
        }
    }
    process.kill();
    drop(disk);
}

/// One replica's log, hard states and small files each on a file system of its own that is full to the last block.
#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_on_full_disks_hold_elections_lose_nothing_and_resume() {
    let disks: Vec<SmallDisk> = (0..3).map_while(|_| SmallDisk::mount_loop(96 << 20)).collect();
    if disks.len() < 3 {
        eprintln!("skipped: a loop file system cannot be mounted here");
        return;
    }
    let seeds: Vec<String> = (0..3).map(|_| free_address()).collect();
    let flags = [format!("--seeds={}", seeds.join(","))];
    let mut nodes: Vec<Process> = disks
        .iter()
        .zip(&seeds)
        .map(|(disk, seed)| Process::prepare(disk.path().join("data"), seed, &flags))
        .collect();
    for node in &mut nodes {
        node.run();
    }
    for node in &nodes {
        node.ready().await;
    }
    let clients: Vec<Clients> =
        nodes.iter().map(|node| Clients::of(node.client_address.parse().unwrap())).collect();
    let create = v1::TopicServiceCreateRequest {
        name: "kept".into(),
        partitions: 1,
        config: [("segment.bytes".into(), "1048576".into())].into(),
        ..Default::default()
    };
    clients[0].topics().create(create).await.unwrap();
    let value = |number: usize| format!("{number:08}").repeat(16 << 10);
    // Who leads, as a node says that is not the one that died.
    let leader = async |dead: Option<usize>| {
        let asked = &clients[dead.map_or(0, |dead| (dead + 1) % 3)];
        let led_by = async || {
            let get = v1::TopicServiceGetRequest { name: "kept".into() };
            let topic = asked.topics().get(get).await.ok()?.into_inner().topic?;
            let place = usize::try_from(topic.partitions.first()?.leader).ok()?.checked_sub(1)?;
            (Some(place) != dead).then_some(place)
        };
        until("a leader", || async { led_by().await.is_some() }).await;
        led_by().await.expect("it leads a moment later")
    };
    let mut kept = Vec::new();
    let first = leader(None).await;
    for _ in 0..6 {
        let offset = publish(&clients[first], "kept", &value(kept.len())).await.unwrap();
        kept.push(offset);
    }
    let ballasts: Vec<PathBuf> = disks.iter().map(|disk| disk.fill(0)).collect();
    // Some room is left in the segments: until it is used up, records go in.
    let mut refused = None;
    for _ in 0..100 {
        match publish(&clients[first], "kept", &value(kept.len())).await {
            Ok(offset) => kept.push(offset),
            Err(reason) => {
                refused = Some(reason);
                break;
            }
        }
    }
    assert_eq!(refused.as_deref(), Some("DISK_FULL"));
    // The leader dies. The others elect another, with nothing but the reserve to write to, and it serves what was kept.
    nodes[first].kill();
    let second = leader(Some(first)).await;
    until("reading on a full disk", || async {
        let page = clients[second].fetch("kept", 0, start()).await;
        page.is_ok_and(|page| page.high_watermark >= i64::try_from(kept.len()).unwrap())
    })
    .await;
    assert_eq!(publish(&clients[second], "kept", &value(0)).await, Err("DISK_FULL".to_owned()));
    // It comes back on its own full disk.
    nodes[first].run();
    nodes[first].ready().await;
    for ballast in ballasts {
        std::fs::remove_file(ballast).unwrap();
    }
    until("publishing again", || async {
        let offset = publish(&clients[second], "kept", &value(kept.len())).await;
        offset.is_ok()
    })
    .await;
    let last = leader(Some(first)).await;
    let mut at = 0;
    let mut seen = Vec::new();
    soon("reading everything", async {
        loop {
            let from = v1::position::At::Offset(at);
            let page = clients[last].fetch("kept", 0, from).await.unwrap();
            at = page.next_offset;
            seen.extend(values(&page.records).iter().map(|value| value[..8].to_owned()));
            if page.next_offset == page.high_watermark {
                return;
            }
        }
    })
    .await;
    for (number, offset) in kept.iter().enumerate() {
        assert_eq!(seen[usize::try_from(*offset).unwrap()], format!("{number:08}"));
    }
    let quarantined = nodes.iter().any(|node| node.logged().contains("replica quarantined"));
    assert!(!quarantined, "a full disk is no damage");
    for node in &mut nodes {
        node.kill();
    }
}
