//! Disks that fail one node: a page that cannot be read, hard states that rotted, index files that lie.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use highwater_broker::Broker;
use highwater_broker::config::Config;
use highwater_client::{Client, NewTopic};
use highwater_proto::batch::{BatchBuilder, Compression};
use highwater_proto::v1;

use super::processes::*;
use super::repair::{rot, segments, was_repaired};
use crate::harness::*;

const TOPIC: &str = "orders";

/// Publishes `count` values of which three make more than a segment of the smallest size.
async fn publish_large(client: &Client, count: u32) {
    let producer = client.producer(TOPIC).build();
    for number in 0..count {
        let value = format!("{number:08}").repeat(50 << 10);
        let ticket = producer.send((format!("key-{number}"), value));
        soon("an acknowledgement", soon("being admitted", ticket).await.unwrap()).await.unwrap();
    }
}

/// The directory of the one partition on a node, which is not the metadata group's.
fn partition_dir(node: &Process) -> PathBuf {
    let groups = std::fs::read_dir(node.data_dir.join("groups")).unwrap();
    let mut dirs = groups.map(|entry| entry.unwrap().path()).filter(|path| !path.ends_with("0"));
    let dir = dirs.next().expect("the partition's replica");
    assert_eq!(dirs.next(), None, "one partition");
    dir
}

/// What a page is that the disk cannot read: the kernel answers both with the same signal.
fn take_away_the_end(path: &Path) {
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.set_len(file.metadata().unwrap().len() / 4096 / 2 * 4096).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_cannot_be_read_stops_the_node_with_the_files_name_and_the_others_serve() {
    let mut cluster = Processes::start(&[]).await;
    let client = cluster.client().await;
    let topic = NewTopic::new(TOPIC).partitions(1).config("segment.bytes", "1048576");
    client.admin().create_topic(topic).await.unwrap();
    publish_large(&client, 12).await;
    let before = read_all(&client, TOPIC).await;
    assert_eq!(before[0].len(), 12);
    let leader = cluster.leader(&client, TOPIC, 0).await;
    let dir = partition_dir(&cluster.nodes[leader]);
    let damaged = segments(&dir)[1].clone();
    take_away_the_end(&damaged);
    // Whoever reads it first, the reader or the scrub, meets the page.
    assert_eq!(read_all(&client, TOPIC).await, before, "another node answers");
    assert_eq!(cluster.nodes[leader].ended().await.code(), Some(1));
    let logged = cluster.nodes[leader].logged();
    let name = damaged.file_name().unwrap().to_str().unwrap();
    let why = logged.lines().find(|line| line.contains("cannot read a page of"));
    assert!(why.is_some_and(|line| line.contains(name)), "{logged}");
    publish_large(&client, 1).await;
    // At the next start it is an ordinary damage, and mended.
    cluster.run_all().await;
    until("the repair", || async { was_repaired(&dir) }).await;
    until("a healthy cluster", || async {
        client.admin().health().await.is_ok_and(|health| health.healthy)
    })
    .await;
    until("the repaired replica leading", || async {
        let to = leader as u64 + 1;
        let _ = client.admin().transfer_leadership(TOPIC, 0, Some(to)).await;
        cluster.leader(&client, TOPIC, 0).await == leader
    })
    .await;
    assert_eq!(read_all(&client, TOPIC).await[0][..12], before[0]);
}

/// The journal that counts, and where its snapshot of the hard states begins.
fn live_journal(data_dir: &Path) -> (PathBuf, u64) {
    let paths = ["a", "b"].map(|name| data_dir.join(format!("hard-state-{name}.journal")));
    let generation = |path: &PathBuf| {
        let mut bytes = [0; 8];
        std::fs::File::open(path).unwrap().read_exact_at(&mut bytes, 8).unwrap();
        u64::from_le_bytes(bytes)
    };
    (paths.into_iter().max_by_key(generation).unwrap(), 24)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_hard_states_rotted_refuses_to_vote_and_the_others_serve() {
    let mut cluster = Processes::start(&[]).await;
    let client = cluster.client().await;
    client.admin().create_topic(NewTopic::new(TOPIC).partitions(3)).await.unwrap();
    publish_large(&client, 2).await;
    let victim = cluster.leader(&client, TOPIC, 0).await;
    cluster.nodes[victim].kill();
    let (journal, snapshot) = live_journal(&cluster.nodes[victim].data_dir);
    // A header, a record's own fields, a term.
    for at in [9, snapshot + 5, snapshot + 40 + 8] {
        rot(&journal, at);
        cluster.nodes[victim].run();
        assert_eq!(cluster.nodes[victim].ended().await.code(), Some(1), "byte {at}");
        rot(&journal, at);
    }
    let logged = cluster.nodes[victim].logged();
    let name = journal.file_name().unwrap().to_str().unwrap();
    let told = logged.lines().filter(|line| line.starts_with("broker: ") && line.contains(name));
    assert_eq!(told.count(), 3, "{logged}");
    publish_large(&client, 2).await;
    // Nothing was written over: with the right bytes it is a member as before.
    cluster.run_all().await;
    let values: usize = read_all(&client, TOPIC).await.iter().map(Vec::len).sum();
    assert_eq!(values, 4);
}

/// Everything that index files help to find: the first record at each offset and at each time.
async fn answers(clients: &Clients, records: i64) -> Vec<(i64, String)> {
    let mut answers = Vec::new();
    for number in 0..records {
        for at in [v1::position::At::Offset(number), v1::position::At::TimestampMs(number * 10)] {
            let page = clients.fetch(TOPIC, 0, at).await.unwrap();
            let first = page.records.first().expect("a record");
            let value = String::from_utf8(first.value.clone().unwrap().to_vec()).unwrap();
            answers.push((first.offset, value[..8].to_owned()));
        }
    }
    answers
}

#[tokio::test(flavor = "multi_thread")]
async fn index_files_that_are_gone_or_wrong_change_no_answer_and_are_written_again() {
    const RECORDS: i64 = 24;
    let quiet = |config: &mut Config| config.storage.scrub_bytes_per_s = 0;
    let TestBroker { mut broker, dir: data_dir } = TestBroker::start_with(quiet).await;
    let clients = Clients::of(broker.client_addr());
    let create = v1::TopicServiceCreateRequest {
        name: TOPIC.into(),
        partitions: 1,
        config: [("segment.bytes".into(), "1048576".into())].into(),
        ..Default::default()
    };
    clients.topics().create(create).await.unwrap();
    let mut stream = clients.produce_stream(v1::ProduceInit::default()).await;
    stream.initialized().await;
    for number in 0..RECORDS {
        let mut builder = BatchBuilder::new(Compression::None);
        let value = format!("{number:08}").repeat(30 << 10);
        builder.push(number * 10, None, Some(value.as_bytes()), &[]).unwrap();
        let batch = v1::ProduceBatch {
            request_id: u64::try_from(number).unwrap(),
            topic: TOPIC.into(),
            batch: builder.build().unwrap(),
            ..Default::default()
        };
        stream.send_batch(batch).await;
        stream.ack().await;
    }
    drop(stream);
    let before = answers(&clients, RECORDS).await;
    let group = broker.node().view().topics[TOPIC].partitions[0].group;
    let dir = data_dir.path().join("groups").join(group.to_string());
    let indexes: Vec<PathBuf> =
        segments(&dir).iter().map(|path| path.with_extension("index")).collect();
    let sealed = &indexes[..indexes.len() - 1];
    let whole: Vec<Vec<u8>> = sealed.iter().map(|path| std::fs::read(path).unwrap()).collect();
    assert!(sealed.len() >= 5, "{indexes:?}");
    type Spoil<'a> = Box<dyn Fn(usize, &Path) + 'a>;
    let spoils: [(&str, Spoil<'_>); 5] = [
        ("gone", Box::new(|_, path| std::fs::remove_file(path).unwrap())),
        ("flipped", Box::new(|n, path| rot(path, (n * 37 % whole[n].len()) as u64))),
        ("cut", Box::new(|n, path| std::fs::write(path, &whole[n][..whole[n].len() / 2]).unwrap())),
        (
            "another's",
            Box::new(|n, path| std::fs::write(path, &whole[(n + 1) % whole.len()]).unwrap()),
        ),
        ("empty", Box::new(|_, path| std::fs::write(path, []).unwrap())),
    ];
    for (how, spoil) in spoils {
        soon("stopping", broker.stop()).await;
        drop(broker);
        for (number, path) in sealed.iter().enumerate() {
            spoil(number, path);
        }
        let mut config = quick_config(&data_dir);
        quiet(&mut config);
        broker = Broker::start(config).await.unwrap();
        soon("being ready", broker.wait_ready()).await;
        until("the partition's leader", || async {
            let replica = broker.node().replica(group);
            replica.is_some_and(|replica| replica.high_watermark() == RECORDS as u64)
        })
        .await;
        let clients = Clients::of(broker.client_addr());
        assert_eq!(answers(&clients, RECORDS).await, before, "{how}");
        let again: Vec<Vec<u8>> = sealed.iter().map(|path| std::fs::read(path).unwrap()).collect();
        assert!(again == whole, "{how}: the files are as they were");
    }
}
