//! What gRPC allows without a broker: bare tonic streams of 1 MiB messages with wide windows, over loopback.
//!
//! Owns: a server that only answers, and a codec that hands bytes through. Never: stores anything.

use std::convert::Infallible;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::Context as _;
use bytes::{Buf, BufMut, Bytes};
use futures::future::{self, BoxFuture};
use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt};
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};

use super::limits::{SLOW, in_records};
use super::{Side, Workload};
use crate::env::Clock;
use crate::latency::Latencies;
use crate::payload::Payloads;
use crate::report::Measured;

const MESSAGE_BYTES: usize = 1 << 20;
const WINDOW_BYTES: u32 = 8 << 20;
/// Bytes of a message in the ping-pong that stands beside latencies.
const SMALL_BYTES: usize = 1 << 10;

/// Bytes as they are.
#[derive(Clone, Copy, Debug, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

/// The server. `/bench.Limit/Publish` answers each message with an empty one; `/bench.Limit/Read` answers one with
/// messages until the client has enough.
#[derive(Clone, Debug)]
struct Limit(Payloads);

impl NamedService for Limit {
    const NAME: &'static str = "bench.Limit";
}

impl Service<http::Request<Body>> for Limit {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let reads = request.uri().path().ends_with("/Read");
        let answer = Answer(reads.then(|| self.0.clone()));
        let mut grpc = tonic::server::Grpc::new(Raw).max_decoding_message_size(2 * MESSAGE_BYTES);
        async move { Ok(grpc.streaming(answer, request).await) }.boxed()
    }
}

/// What is answered: one message after the other, or nothing to each.
struct Answer(Option<Payloads>);

impl Service<Request<Streaming<Bytes>>> for Answer {
    type Response = Response<BoxStream<'static, Result<Bytes, Status>>>;
    type Error = Status;
    type Future = future::Ready<Result<Self::Response, Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let messages = request.into_inner();
        let answers = match &self.0 {
            Some(payloads) => endless(payloads.clone()).map(Ok).boxed(),
            None => messages.map(|message| message.map(|_| Bytes::new())).boxed(),
        };
        future::ready(Ok(Response::new(answers)))
    }
}

fn endless(mut payloads: Payloads) -> impl futures::Stream<Item = Bytes> + Send + 'static {
    stream::iter(std::iter::from_fn(move || Some(payloads.next())))
}

/// Serves until standard input ends, on a port that is printed.
pub(crate) async fn serve() -> anyhow::Result<()> {
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse()?)
        .context("cannot listen on loopback")?
        .with_nodelay(Some(true));
    println!("{}", incoming.local_addr()?);
    let until_end = || std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
    let ended = tokio::task::spawn_blocking(until_end).map(drop);
    Server::builder()
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(2 * WINDOW_BYTES)
        .max_frame_size(Some(1 << 20))
        .add_service(Limit(Payloads::new(1, MESSAGE_BYTES)))
        .serve_with_incoming_shutdown(incoming, ended)
        .await?;
    Ok(())
}

/// A client of such a server, which is a process of its own as the brokers are.
pub(super) struct BareTonic {
    channel: Channel,
    payloads: Payloads,
    pids: [u32; 1],
    server: Child,
}

impl Drop for BareTonic {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

impl BareTonic {
    pub(super) fn start() -> anyhow::Result<Self> {
        let mut server = Command::new(std::env::current_exe()?)
            .arg("tonic-limit")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the bare server")?;
        let mut address = String::new();
        let output = server.stdout.take().context("the bare server has no output")?;
        BufReader::new(output).read_line(&mut address)?;
        let address = address.trim();
        let channel = Endpoint::from_shared(format!("http://{address}"))?
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(2 * WINDOW_BYTES)
            .tcp_nodelay(true)
            .connect_lazy();
        let payloads = Payloads::new(1, MESSAGE_BYTES);
        Ok(Self { channel, payloads, pids: [server.id()], server })
    }

    async fn call(
        &self,
        path: &'static str,
        messages: BoxStream<'static, Bytes>,
    ) -> anyhow::Result<Streaming<Bytes>> {
        let mut grpc = tonic::client::Grpc::new(self.channel.clone())
            .max_decoding_message_size(2 * MESSAGE_BYTES);
        grpc.ready().await.context("the bare server does not answer")?;
        let path = PathAndQuery::from_static(path);
        Ok(grpc.streaming(Request::new(messages), path, Raw).await?.into_inner())
    }

    /// As fast as the windows admit; each message is answered, and all answers are awaited.
    async fn publish(&self, time: Duration) -> anyhow::Result<Measured> {
        let clock = Clock::start();
        let messages =
            endless(self.payloads.clone()).take_while(move |_| future::ready(clock.now() < time));
        let mut answers = self.call("/bench.Limit/Publish", messages.boxed()).await?;
        let mut measured = Measured::default();
        while answers.message().await?.is_some() {
            measured.bytes += MESSAGE_BYTES as u64;
        }
        measured.seconds = clock.now().as_secs_f64();
        Ok(measured)
    }

    async fn read(&self, time: Duration) -> anyhow::Result<Measured> {
        let clock = Clock::start();
        let ask = stream::once(future::ready(Bytes::new()));
        let mut messages = self.call("/bench.Limit/Read", ask.boxed()).await?;
        let mut measured = Measured::default();
        while clock.now() < time {
            let message = messages.message().await?.context("the bare server ended")?;
            measured.bytes += message.len() as u64;
        }
        measured.seconds = clock.now().as_secs_f64();
        Ok(measured)
    }

    /// One message there and its answer back, at a time.
    async fn round_trips(&self, time: Duration) -> anyhow::Result<Measured> {
        let (ask, asked) = tokio::sync::mpsc::channel(1);
        let messages = stream::unfold(asked, |mut asked| async {
            asked.recv().await.map(|message| (message, asked))
        });
        let mut answers = self.call("/bench.Limit/Publish", messages.boxed()).await?;
        let message = self.payloads.clone().next().slice(..SMALL_BYTES);
        let mut latencies = Latencies::new();
        let mut measured = Measured::default();
        let clock = Clock::start();
        while clock.now() < time {
            let begin = clock.now();
            ask.send(message.clone()).await?;
            answers.message().await?.context("the bare server ended")?;
            latencies.record(clock.now() - begin);
            measured.records += 1;
            measured.bytes += SMALL_BYTES as u64;
        }
        measured.seconds = clock.now().as_secs_f64();
        measured.latency = latencies.percentiles();
        Ok(measured)
    }
}

impl Side for BareTonic {
    fn name(&self) -> &str {
        "limit: bare tonic"
    }

    fn durability(&self) -> &'static str {
        "none"
    }

    fn pids(&self) -> &[u32] {
        &self.pids
    }

    fn run<'a>(
        &'a self,
        workload: &'a Workload,
        time: Duration,
    ) -> BoxFuture<'a, anyhow::Result<Option<Measured>>> {
        async move {
            let measured = match workload {
                Workload { partitions: 2.., .. } => return Ok(None),
                Workload { rate: Some(rate), .. } if *rate != SLOW => return Ok(None),
                Workload { rate: Some(_), .. } => self.round_trips(time).await?,
                Workload { read: true, .. } => self.read(time).await?,
                _ => self.publish(time).await?,
            };
            Ok(Some(in_records(measured, workload)))
        }
        .boxed()
    }
}
