//! Connections that speak HTTP/2 as nobody should, and ten thousand that say nothing: the process stays small and serves.

use std::net::SocketAddr;
use std::time::Duration;

use highwater_client::{Client, NewTopic};
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::processes::*;
use crate::harness::*;

const TOPIC: &str = "orders";
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Conversations with random bytes changed.
const MUTATIONS: u64 = 400;
/// Memory of the process that no number of such connections may make it pass, in a build without optimisation.
const RESIDENT_KIB_MAX: u64 = 300 << 10;
const IDLE_CONNECTIONS: u64 = 9_900;

/// Kinds of HTTP/2 frames, by their numbers (RFC 9113, section 6).
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;

/// A frame whose header claims `claimed` bytes of payload.
fn lying_frame(claimed: u32, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = claimed.to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    lying_frame(u32::try_from(payload.len()).unwrap(), kind, flags, stream, payload)
}

/// Literal header fields without indexing (RFC 7541, 6.2.2); names and values of less than 127 bytes.
fn fields(of: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for text in of.iter().flat_map(|(name, value)| [("\0", *name), ("", *value)]) {
        block.extend(text.0.as_bytes());
        block.push(u8::try_from(text.1.len()).unwrap());
        block.extend(text.1.as_bytes());
    }
    block
}

fn request(path: &str) -> Vec<u8> {
    fields(&[
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "broker"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ])
}

const PATHS: [&str; 3] = [
    "/highwater.v1.ProducerService/ProduceStream",
    "/highwater.v1.ConsumerService/Subscribe",
    "/highwater.internal.v1.RaftTransportService/Exchange",
];

/// A call of which nothing but the message is strange.
fn call(path: &str, message: &[u8]) -> Vec<u8> {
    let mut all = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
    all.extend(frame(HEADERS, END_HEADERS, 1, &request(path)));
    all.extend(frame(DATA, 0, 1, message));
    all
}

/// What follows the preface, each by itself.
fn strange_frames() -> Vec<Vec<u8>> {
    let headers = || frame(HEADERS, END_HEADERS, 1, &request(PATHS[0]));
    let setting = |id: u16, value: u32| {
        frame(SETTINGS, 0, 0, &[&id.to_be_bytes()[..], &value.to_be_bytes()[..]].concat())
    };
    let flood = |one: Vec<u8>, count: usize| one.repeat(count);
    let resets = (0..2_000_u32).flat_map(|n| {
        let stream = 2 * n + 1;
        let cancel = 8_u32.to_be_bytes();
        let opened = frame(HEADERS, END_HEADERS, stream, &request(PATHS[0]));
        [opened, frame(RST_STREAM, 0, stream, &cancel)].concat()
    });
    let mut endless = frame(HEADERS, 0, 1, &request(PATHS[0]));
    endless.extend(flood(frame(CONTINUATION, 0, 1, &fields(&[("x", "y")]).repeat(200)), 2_000));
    vec![
        lying_frame(0x00ff_ffff, DATA, 0, 1, b"short"),
        lying_frame(0x00ff_ffff, SETTINGS, 0, 0, b"short"),
        frame(SETTINGS, 0, 0, b"five!"),
        frame(SETTINGS, 0, 1, &[]),
        setting(4, u32::MAX),
        setting(5, 0),
        setting(5, u32::MAX),
        flood(setting(1, 4_096), 5_000),
        frame(WINDOW_UPDATE, 0, 0, &0_u32.to_be_bytes()),
        flood(frame(WINDOW_UPDATE, 0, 0, &0x7fff_ffff_u32.to_be_bytes()), 2),
        frame(DATA, 0, 0, b"x"),
        frame(DATA, 0, 99, b"x"),
        frame(HEADERS, END_HEADERS, 2, &request(PATHS[0])),
        frame(HEADERS, END_HEADERS, 1, &[0xff; 64]),
        frame(HEADERS, END_HEADERS | PADDED, 1, &[0xff, 1, 2]),
        frame(HEADERS, END_HEADERS, 1, &fields(&[(":method", "POST"); 40])),
        [headers(), headers()].concat(),
        [headers(), frame(PRIORITY, 0, 1, &[0, 0, 0, 1, 255])].concat(),
        frame(PUSH_PROMISE, END_HEADERS, 1, &[0; 8]),
        frame(CONTINUATION, 0, 1, b""),
        flood(frame(PING, 0, 0, &[7; 8]), 20_000),
        endless,
        resets.collect(),
        frame(200, 255, 7, &[1; 100]),
    ]
}

/// Messages of gRPC and of protobuf that lie about lengths.
fn strange_messages() -> Vec<Vec<u8>> {
    let message = |bytes: &[u8]| {
        let length = u32::try_from(bytes.len()).unwrap().to_be_bytes();
        [&[0][..], &length, bytes].concat()
    };
    vec![
        vec![0, 0xff, 0xff, 0xff, 0xff],
        vec![0, 0, 0x7f, 0xff, 0xff, 1, 2, 3],
        vec![1, 0, 0, 0, 1, 9],
        vec![77, 0, 0, 0, 0],
        message(&[0xff; 40]),
        // Field 1, length-delimited, of 2^63 bytes.
        message(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]),
        // Groups within groups.
        message(&[0x0b; 4_000]),
        // Messages within messages, each a byte shorter than it says.
        message(&[0x0a, 0x7f].repeat(500)),
    ]
}

/// Says it, and listens until the broker has had enough or says nothing more.
async fn say(address: SocketAddr, bytes: Vec<u8>) {
    let Ok(mut stream) = TcpStream::connect(address).await else { return };
    let (mut reading, mut writing) = stream.split();
    let write = async {
        // The broker may close before it has heard everything.
        _ = writing.write_all(&bytes).await;
        std::future::pending::<()>().await;
    };
    let read = async {
        let mut buffer = vec![0; 64 << 10];
        let quiet = Duration::from_millis(300);
        while let Ok(Ok(1..)) = tokio::time::timeout(quiet, reading.read(&mut buffer)).await {}
    };
    tokio::select! { () = write => {}, () = read => {} }
}

async fn one_node() -> (Process, TempDir, SocketAddr, Client) {
    let dir = tempfile::tempdir().unwrap();
    let internal = highwater_testing::free_address();
    let seeds = format!("--seeds={internal}");
    let mut node = Process::prepare(dir.path().join("node"), &internal, &[seeds]);
    node.run();
    node.ready().await;
    let client = Client::connect(&node.client_address).await.unwrap();
    client.admin().create_topic(NewTopic::new(TOPIC).partitions(1)).await.unwrap();
    (node, dir, internal.parse().unwrap(), client)
}

async fn publish(client: &Client, value: &str) {
    let producer = client.producer(TOPIC).build();
    let ticket = soon("being admitted", producer.send(value.to_owned())).await.unwrap();
    soon("an acknowledgement", ticket).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_make_no_sense_cost_their_connection_and_nothing_else() {
    let (node, _dir, internal, client) = one_node().await;
    publish(&client, "before").await;
    let mut cases = vec![b"GET / HTTP/1.1\r\n\r\n".to_vec(), vec![0x16, 3, 1, 0, 0]];
    cases.extend(strange_frames().into_iter().map(|frames| [PREFACE, &frames].concat()));
    for path in PATHS {
        cases.extend(strange_messages().iter().map(|message| call(path, message)));
    }
    for seed in 0..MUTATIONS {
        let mut random = SmallRng::seed_from_u64(seed);
        let path = PATHS[random.random_range(0..PATHS.len())];
        let mut bytes = call(path, &[0, 0, 0, 0, 4, 0x0a, 2, 8, 1]);
        for _ in 0..random.random_range(1..6) {
            let at = random.random_range(0..bytes.len());
            bytes[at] = random.random();
        }
        let mut garbage = vec![0; random.random_range(0..2_000)];
        random.fill_bytes(&mut garbage);
        cases.push([bytes, garbage].concat());
    }
    let clients: SocketAddr = node.client_address.parse().unwrap();
    let mut under_way = JoinSet::new();
    for bytes in cases {
        for address in [clients, internal] {
            under_way.spawn(say(address, bytes.clone()));
        }
        if under_way.len() > 40 {
            under_way.join_next().await;
        }
    }
    soon("the last conversations", under_way.join_all()).await;
    publish(&client, "after").await;
    let values = read_all(&client, TOPIC).await;
    let values: Vec<&str> = values[0].iter().map(|(_, _, value)| &**value).collect();
    assert_eq!(values, ["before", "after"]);
    assert!(!node.logged().contains("panicked"), "{}", node.logged());
    let resident = node.resident_kib();
    assert!(resident < RESIDENT_KIB_MAX, "{resident} KiB");
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_idle_connections_cost_memory_in_proportion_and_nobody_elses_service() {
    let limit = getrlimit(Resource::Nofile);
    let (current, maximum) = (limit.maximum, limit.maximum);
    setrlimit(Resource::Nofile, Rlimit { current, maximum }).unwrap();
    // A machine that allows fewer shows the same with fewer.
    let connections = maximum.map_or(IDLE_CONNECTIONS, |max| (max / 2).min(IDLE_CONNECTIONS));
    let (node, _dir, _, client) = one_node().await;
    publish(&client, "before").await;
    let before = node.resident_kib();
    let greeting = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
    let mut idle = Vec::new();
    for _ in 0..connections {
        let mut stream =
            soon("connecting", TcpStream::connect(&node.client_address)).await.unwrap();
        stream.write_all(&greeting).await.unwrap();
        idle.push(stream);
    }
    // They are all served: each is answered with the broker's settings.
    for stream in &mut idle {
        let mut answer = [0; 9];
        soon("the broker's settings", stream.read_exact(&mut answer)).await.unwrap();
        assert_eq!(answer[3], SETTINGS);
    }
    for _ in 0..20 {
        publish(&client, "beside them").await;
    }
    let each = node.resident_kib().saturating_sub(before) / connections;
    println!("{connections} idle connections take {each} KiB each");
    assert!(each < 64, "{each} KiB each");
    drop(idle);
    publish(&client, "after").await;
    assert!(!node.logged().contains("panicked"), "{}", node.logged());
}
