//! RabbitMQ streams: what of their protocol publishing and reading take, written out, as the client that there is brings a second
//! TLS library along, and copies more than it must.
//!
//! Owns: frames, confirms, credit. Never: measures.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, bail, ensure};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Mutex, oneshot};

use super::peer::{Ack, Driver, Publisher, Values};
use crate::env::spawn;

/// Messages of one frame, which may have 1 MiB, and frames of one publisher that are under way when there is no schedule.
const WINDOW: (usize, usize) = (900, 4);
/// Chunks that the server may send ahead.
const CREDIT: u16 = 10;
/// A frame is larger only if it is none.
const FRAME_BYTES_MAX: u32 = 64 << 20;

const VERSION: u16 = 1;
const RESPONSE: u16 = 0x8000;
const OK: u16 = 1;
const DECLARE_PUBLISHER: u16 = 1;
const PUBLISH: u16 = 2;
const PUBLISH_CONFIRM: u16 = 3;
const SUBSCRIBE: u16 = 7;
const DELIVER: u16 = 8;
const CREDIT_MORE: u16 = 9;
const CREATE: u16 = 13;
const DELETE: u16 = 14;
const PEER_PROPERTIES: u16 = 17;
const SASL_HANDSHAKE: u16 = 18;
const SASL_AUTHENTICATE: u16 = 19;
const TUNE: u16 = 20;
const OPEN: u16 = 21;
/// A data section of AMQP 1.0, as clients wrap what they are given: short, long.
const DATA_SHORT: [u8; 4] = [0x00, 0x53, 0x75, 0xa0];
const DATA_LONG: [u8; 4] = [0x00, 0x53, 0x75, 0xb0];

/// Streams of one server.
pub(super) struct Streams {
    address: String,
}

impl Streams {
    pub(super) async fn new(address: &str) -> anyhow::Result<Self> {
        Wire::dial(address).await?;
        Ok(Self { address: address.to_owned() })
    }
}

fn put_string(body: &mut BytesMut, text: &str) {
    body.put_i16(i16::try_from(text.len()).unwrap_or(i16::MAX));
    body.put_slice(text.as_bytes());
}

fn frame(command: u16, body: &[u8]) -> BytesMut {
    let mut frame = BytesMut::with_capacity(8 + body.len());
    frame.put_u32(u32::try_from(body.len() + 4).unwrap_or(u32::MAX));
    frame.put_u16(command);
    frame.put_u16(VERSION);
    frame.put_slice(body);
    frame
}

/// The next frame: its command and what is in it.
async fn next(from: &mut OwnedReadHalf) -> anyhow::Result<(u16, Bytes)> {
    let size = from.read_u32().await?;
    ensure!((4..=FRAME_BYTES_MAX).contains(&size), "a frame of {size} bytes");
    let mut body = vec![0; size as usize];
    from.read_exact(&mut body).await?;
    let mut body = Bytes::from(body);
    let command = body.get_u16();
    body.advance(2);
    Ok((command, body))
}

/// A connection that is open.
struct Wire {
    read: OwnedReadHalf,
    write: OwnedWriteHalf,
}

impl Wire {
    async fn dial(address: &str) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (read, write) = stream.into_split();
        let mut wire = Self { read, write };
        wire.ask(PEER_PROPERTIES, |body| body.put_i32(0)).await?;
        wire.ask(SASL_HANDSHAKE, |_| {}).await?;
        wire.ask(SASL_AUTHENTICATE, |body| {
            put_string(body, "PLAIN");
            let secret = b"\0guest\0guest";
            body.put_i32(i32::try_from(secret.len()).unwrap_or(0));
            body.put_slice(secret);
        })
        .await?;
        let (command, mut limits) = next(&mut wire.read).await?;
        ensure!(command == TUNE && limits.len() >= 8, "command {command} instead of limits");
        let mut answer = BytesMut::new();
        answer.put_u32(limits.get_u32());
        // No heartbeats.
        answer.put_u32(0);
        wire.write.write_all(&frame(TUNE, &answer)).await?;
        wire.ask(OPEN, |body| put_string(body, "/")).await?;
        Ok(wire)
    }

    /// Asks, and waits for the answer.
    async fn ask(&mut self, command: u16, fill: impl FnOnce(&mut BytesMut)) -> anyhow::Result<()> {
        let mut body = BytesMut::new();
        // One question at a time.
        body.put_u32(1);
        fill(&mut body);
        self.write.write_all(&frame(command, &body)).await?;
        loop {
            let (answered, mut body) = next(&mut self.read).await?;
            if answered != command | RESPONSE {
                continue;
            }
            ensure!(body.len() >= 6, "a short answer to command {command}");
            body.advance(4);
            let code = body.get_u16();
            ensure!(code == OK, "command {command} was answered with code {code}");
            return Ok(());
        }
    }
}

#[tonic::async_trait]
impl Driver for Streams {
    async fn create(&self, stream: &str) -> anyhow::Result<()> {
        let create = |body: &mut BytesMut| {
            put_string(body, stream);
            body.put_i32(0);
        };
        Wire::dial(&self.address).await?.ask(CREATE, create).await
    }

    async fn remove(&self, stream: &str) -> anyhow::Result<()> {
        Wire::dial(&self.address).await?.ask(DELETE, |body| put_string(body, stream)).await
    }

    async fn publisher(&self, stream: &str) -> anyhow::Result<Arc<dyn Publisher>> {
        let mut wire = Wire::dial(&self.address).await?;
        let declare = |body: &mut BytesMut| {
            body.put_u8(1);
            // Without a name there is no deduplication.
            put_string(body, "");
            put_string(body, stream);
        };
        wire.ask(DECLARE_PUBLISHER, declare).await?;
        let waiting = Arc::new(Mutex::new(VecDeque::new()));
        spawn(take_confirms(wire.read, Arc::clone(&waiting)));
        let publisher =
            StreamPublisher { write: Mutex::new(wire.write), sent: AtomicU64::new(0), waiting };
        Ok(Arc::new(publisher))
    }

    async fn read(&self, stream: &str) -> anyhow::Result<Values> {
        let mut wire = Wire::dial(&self.address).await?;
        let subscribe = |body: &mut BytesMut| {
            body.put_u8(1);
            put_string(body, stream);
            // From the first offset.
            body.put_u16(1);
            body.put_u16(CREDIT);
        };
        wire.ask(SUBSCRIBE, subscribe).await?;
        Ok(futures::stream::try_unfold(wire, |mut wire| async move {
            loop {
                let (command, body) = next(&mut wire.read).await?;
                if command == DELIVER {
                    let mut credit = BytesMut::new();
                    credit.put_u8(1);
                    credit.put_u16(1);
                    wire.write.write_all(&frame(CREDIT_MORE, &credit)).await?;
                    return Ok(Some((delivered(body)?, wire)));
                }
            }
        })
        .boxed())
    }

    fn window(&self) -> (usize, usize) {
        WINDOW
    }
}

/// The messages of a chunk.
fn delivered(mut chunk: Bytes) -> anyhow::Result<Vec<Bytes>> {
    // Subscription, magic, kind, entries; records; time, epoch, offset; checksum; length; trailer, reserved.
    const HEAD: usize = 1 + 1 + 1 + 2 + 4 + 8 + 8 + 8 + 4 + 4 + 4 + 4;
    ensure!(chunk.len() >= HEAD, "a chunk of {} bytes", chunk.len());
    let entries = chunk.slice(3..5).get_u16();
    chunk.advance(HEAD);
    let mut values = Vec::with_capacity(entries.into());
    for _ in 0..entries {
        ensure!(chunk.len() >= 4, "a chunk that ends early");
        let size = usize::try_from(chunk.get_i32()).context("entries of several messages")?;
        ensure!(chunk.len() >= size, "a chunk that ends early");
        values.push(unwrapped(chunk.split_to(size))?);
    }
    Ok(values)
}

fn unwrapped(mut message: Bytes) -> anyhow::Result<Bytes> {
    let head = if message.starts_with(&DATA_SHORT) { 5 } else { 8 };
    if message.len() < head || !(head == 5 || message.starts_with(&DATA_LONG)) {
        bail!("a message that is no data section");
    }
    message.advance(head);
    Ok(message)
}

/// How many are confirmed when this one's last message is, and who is told.
type Waiting = Arc<Mutex<VecDeque<(u64, oneshot::Sender<()>)>>>;

/// Confirms of one publisher come in the order of its messages. Ends with the connection; who waits still is told by that.
async fn take_confirms(mut read: OwnedReadHalf, waiting: Waiting) {
    let mut confirmed = 0;
    while let Ok((command, mut body)) = next(&mut read).await {
        if command != PUBLISH_CONFIRM || body.len() < 5 {
            break;
        }
        body.advance(1);
        confirmed += u64::from(body.get_u32());
        let mut waiting = waiting.lock().await;
        while let Some((_, told)) = waiting.pop_front_if(|(end, _)| *end <= confirmed) {
            let _ = told.send(());
        }
    }
    waiting.lock().await.clear();
}

struct StreamPublisher {
    write: Mutex<OwnedWriteHalf>,
    sent: AtomicU64,
    waiting: Waiting,
}

impl Publisher for StreamPublisher {
    fn submit(&self, values: Vec<Bytes>) -> BoxFuture<'_, anyhow::Result<Ack>> {
        async move {
            let count = values.len() as u64;
            // The order of ids is that on the wire.
            let mut write = self.write.lock().await;
            let first = self.sent.fetch_add(count, Ordering::Relaxed);
            let (told, confirmed) = oneshot::channel();
            self.waiting.lock().await.push_back((first + count, told));
            let bytes: usize = values.iter().map(|value| value.len() + 20).sum();
            let mut body = BytesMut::with_capacity(5 + bytes);
            body.put_u8(1);
            body.put_u32(u32::try_from(count)?);
            for (id, value) in (first..).zip(&values) {
                body.put_u64(id);
                let length = u32::try_from(value.len())?;
                if let Ok(short) = u8::try_from(length) {
                    body.put_u32(length + 5);
                    body.put_slice(&DATA_SHORT);
                    body.put_u8(short);
                } else {
                    body.put_u32(length + 8);
                    body.put_slice(&DATA_LONG);
                    body.put_u32(length);
                }
                body.put_slice(value);
            }
            write.write_all(&frame(PUBLISH, &body)).await?;
            let ack = async move { confirmed.await.context("messages were not confirmed") };
            Ok(ack.boxed())
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_is_taken_apart() {
        let mut chunk = BytesMut::new();
        chunk.put_slice(&[1, 0x50, 0, 0, 2]);
        chunk.put_slice(&[0; 44]);
        chunk.put_i32(7);
        chunk.put_slice(&DATA_SHORT);
        chunk.put_slice(&[2, 8, 9]);
        chunk.put_i32(9);
        chunk.put_slice(&DATA_LONG);
        chunk.put_slice(&[0, 0, 0, 1, 5]);
        let values = delivered(chunk.freeze()).unwrap();
        assert_eq!(values, [Bytes::from_static(&[8, 9]), Bytes::from_static(&[5])]);
        assert!(delivered(Bytes::from_static(&[1, 2])).is_err());
    }
}
