//! A full disk: publishing is refused with a clear reason, reading goes on, and service resumes when there is room.

use std::path::{Path, PathBuf};
use std::process::Command;

use highwater_proto::v1;
use tempfile::TempDir;

use super::nodes::free_address;
use super::processes::*;
use crate::harness::*;

/// A small file system in memory; gone when this is dropped.
struct SmallDisk {
    dir: TempDir,
}

impl SmallDisk {
    /// `None` where mounting is not allowed.
    fn mount(size: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "highwater-test"])
            .arg(dir.path())
            .output();
        mounted.is_ok_and(|mounted| mounted.status.success()).then_some(Self { dir })
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Takes all room but this many bytes; the file to remove afterwards.
    fn fill(&self, left: u64) -> PathBuf {
        let ballast = self.path().join("ballast");
        let output = Command::new("df").args(["-B1", "--output=avail"]).arg(self.path()).output();
        let text = String::from_utf8(output.unwrap().stdout).unwrap();
        let available: u64 = text.lines().nth(1).unwrap().trim().parse().unwrap();
        let bytes = vec![1_u8; usize::try_from(available.saturating_sub(left)).unwrap()];
        std::fs::write(&ballast, bytes).unwrap();
        ballast
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.dir.path()).status();
    }
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
