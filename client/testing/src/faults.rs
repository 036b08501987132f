//! A network that misbehaves on command: what stands between clients and one broker.
//!
//! Owns: a relay in front of the broker's client port, and its faults. Never: looks into what it passes on.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::env;

/// Bytes read at once, and chunks that may be on their way: what a slow network holds.
const CHUNK_BYTES: usize = 64 << 10;
const CHUNKS_MAX: usize = 64;

/// What is wrong with the network.
#[derive(Clone, Copy, Debug, Default)]
struct Weather {
    delay: Duration,
    refuses: bool,
    loses_answers: bool,
    stalls: bool,
    /// Connections of an earlier generation are cut.
    generation: u64,
}

/// The faults of the network between clients and one broker. They begin at once, on connections that there are as well as on new
/// ones, and last until [`Faults::clear`].
///
/// ```
/// # #[tokio::main]
/// # async fn main() {
/// use std::time::Duration;
///
/// let broker = highwater_testing::Broker::start().await;
/// broker.faults().delay(Duration::from_millis(50));
/// // ... what is tested must stand this ...
/// broker.faults().clear();
/// # }
/// ```
#[derive(Debug)]
pub struct Faults {
    weather: watch::Sender<Weather>,
}

impl Faults {
    /// Everything takes so much longer, in each direction.
    pub fn delay(&self, delay: Duration) {
        self.weather.send_modify(|weather| weather.delay = delay);
    }

    /// What clients send arrives, and no answer comes back: calls are carried out, and clients cannot know.
    pub fn lose_answers(&self) {
        self.weather.send_modify(|weather| weather.loses_answers = true);
    }

    /// Nothing moves any more in either direction, and nobody is told: as a broker is that hangs, or a network that swallows
    /// everything. What is on its way arrives when this is over.
    pub fn stall(&self) {
        self.weather.send_modify(|weather| weather.stalls = true);
    }

    /// Cuts the connections that there are; clients may connect again at once.
    pub fn cut(&self) {
        self.weather.send_modify(|weather| weather.generation += 1);
    }

    /// Cuts the connections that there are, and takes no new ones.
    pub fn refuse(&self) {
        self.weather.send_modify(|weather| {
            weather.generation += 1;
            weather.refuses = true;
        });
    }

    /// The network is well again. Connections whose answers were lost are cut: a stream with a hole in it is no stream.
    pub fn clear(&self) {
        self.weather.send_modify(|weather| {
            let lost = u64::from(weather.loses_answers);
            *weather = Weather { generation: weather.generation + lost, ..Weather::default() };
        });
    }
}

/// Opens the relay: where clients connect, and its faults. `upstream` is where the broker listens, if it does.
pub(crate) async fn open(
    runtime: &tokio::runtime::Handle,
    upstream: watch::Receiver<Option<SocketAddr>>,
) -> io::Result<(SocketAddr, Faults)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let (weather, seen) = watch::channel(Weather::default());
    let runtime_of_relays = runtime.clone();
    let accepting = async move {
        // A connection that fails before it is accepted is nobody's.
        while let Ok((client, _)) = listener.accept().await {
            let to = *upstream.borrow();
            let Some(to) = to.filter(|_| !seen.borrow().refuses) else { continue };
            let seen = seen.clone();
            // Either side may go at any time: that is what connections do.
            env::spawn(&runtime_of_relays, async move { _ = relay(client, to, seen).await });
        }
    };
    // Listening goes on under the relay's own runtime, whatever becomes of the broker's.
    env::spawn(runtime, accepting);
    Ok((address, Faults { weather }))
}

async fn relay(
    client: TcpStream,
    to: SocketAddr,
    mut seen: watch::Receiver<Weather>,
) -> io::Result<()> {
    let generation = seen.borrow().generation;
    let broker = TcpStream::connect(to).await?;
    client.set_nodelay(true)?;
    broker.set_nodelay(true)?;
    let ((from_client, to_client), (from_broker, to_broker)) =
        (client.into_split(), broker.into_split());
    let forth = pass(from_client, to_broker, seen.clone(), |_| false);
    let back = pass(from_broker, to_client, seen.clone(), |weather| weather.loses_answers);
    let cut = seen.wait_for(|weather| weather.generation != generation);
    tokio::select! {
        passed = futures::future::try_join(forth, back) => passed.map(drop),
        // The other case is that the test is over.
        _ = cut => Ok(()),
    }
}

/// Passes on one direction. What is delayed waits in order beside what follows it, so that a delay costs time and not throughput.
async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut seen: watch::Receiver<Weather>,
    is_lost: impl Fn(&Weather) -> bool,
) -> io::Result<()> {
    let (chunks, mut due) = mpsc::channel::<(Instant, Vec<u8>)>(CHUNKS_MAX);
    let read = async {
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            let count = from.read(&mut buffer).await?;
            if count == 0 {
                break;
            }
            // What reads no further holds up who sends. The other case is that the test is over.
            let Ok(weather) = seen.wait_for(|weather| !weather.stalls).await.map(|it| *it) else {
                break;
            };
            if is_lost(&weather) {
                continue;
            }
            let at = env::now() + weather.delay;
            if chunks.send((at, buffer[..count].to_vec())).await.is_err() {
                break;
            }
        }
        drop(chunks);
        Ok(())
    };
    let write = async {
        while let Some((at, chunk)) = due.recv().await {
            tokio::time::sleep_until(at).await;
            to.write_all(&chunk).await?;
        }
        to.shutdown().await
    };
    futures::future::try_join(read, write).await.map(drop)
}
