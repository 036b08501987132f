//! What the machine allows without a broker: the disk and a loopback connection.
//!
//! Owns: bare loops. Never: a protocol.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use futures::FutureExt;
use futures::future::BoxFuture;

use super::{Side, Workload};
use crate::env::{Clock, in_parallel};
use crate::latency::Latencies;
use crate::report::Measured;
use crate::storage::compare::Side as _;
use crate::storage::sides::{After, BareAppend, KIB, MIB};

/// Writes and `fdatasync` over blocks that hold data: 1 MiB at a time, for latencies 4 KiB.
pub(super) struct Disk {
    path: PathBuf,
}

impl Disk {
    pub(super) fn new(dir: &Path) -> anyhow::Result<Self> {
        anyhow::ensure!(dir.is_dir(), "{} is no directory; see --dir", dir.display());
        Ok(Self { path: dir.join(format!("bench-compare-{}", std::process::id())) })
    }

    fn write(&self, bytes: usize, time: Duration) -> anyhow::Result<Measured> {
        let mut file = BareAppend::new(&self.path, true, bytes, After::Sync)?;
        repeat(time, bytes, || file.operation())
    }
}

impl Side for Disk {
    fn name(&self) -> &str {
        "limit: write + fdatasync"
    }

    fn durability(&self) -> &'static str {
        "synced"
    }

    fn run<'a>(
        &'a self,
        workload: &'a Workload,
        time: Duration,
    ) -> BoxFuture<'a, anyhow::Result<Option<Measured>>> {
        let bytes = match workload {
            Workload { read: true, .. } | Workload { partitions: 2.., .. } => None,
            Workload { rate: None, .. } => Some(MIB),
            Workload { rate: Some(rate), .. } => (*rate == SLOW).then_some(4 * KIB),
        };
        let measured = bytes.map(|bytes| {
            let measured = tokio::task::block_in_place(|| self.write(bytes, time));
            let removed = std::fs::remove_file(&self.path).context("cannot remove its file");
            measured.and_then(|measured| removed.map(|()| in_records(measured, workload)))
        });
        async move { measured.transpose() }.boxed()
    }
}

/// The limits' latencies are of one operation at a time: they stand beside the lower rate.
pub(super) const SLOW: u64 = 2_000;

/// Bytes counted as records of the workload, unless operations were timed.
pub(super) fn in_records(measured: Measured, workload: &Workload) -> Measured {
    match workload.rate {
        Some(_) => measured,
        None => {
            let records = measured.bytes / u64::from(workload.record_bytes);
            Measured { records, latency: None, ..measured }
        }
    }
}

/// Calls `operation` until the time is over, and times each call.
fn repeat(
    time: Duration,
    bytes: usize,
    mut operation: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<Measured> {
    let mut latencies = Latencies::new();
    let mut measured = Measured::default();
    let clock = Clock::start();
    let mut now = clock.now();
    while now < time {
        operation()?;
        let after = clock.now();
        latencies.record(after - now);
        now = after;
        measured.records += 1;
        measured.bytes += bytes as u64;
    }
    measured.seconds = now.as_secs_f64();
    measured.latency = latencies.percentiles();
    Ok(measured)
}

/// One connection over loopback: 1 MiB writes one way, for latencies 1 KiB there and a byte back.
pub(super) struct Tcp;

impl Tcp {
    fn transfer(bytes: usize, answered: bool, time: Duration) -> anyhow::Result<Measured> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let measured = std::sync::Mutex::new(None);
        in_parallel([true, false].into_iter(), |serves| -> anyhow::Result<()> {
            let mut body = vec![7; bytes];
            if serves {
                let (mut stream, _) = listener.accept()?;
                stream.set_nodelay(true)?;
                while stream.read_exact(&mut body).is_ok() {
                    if answered {
                        stream.write_all(&body[..1])?;
                    }
                }
                return Ok(());
            }
            let mut stream = TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            let found = repeat(time, bytes, || {
                stream.write_all(&body)?;
                if answered {
                    stream.read_exact(&mut [0])?;
                }
                Ok(())
            })?;
            *measured.lock().map_err(|_| anyhow::anyhow!("a thread panicked"))? = Some(found);
            Ok(())
        })?;
        let measured = measured.into_inner().map_err(|_| anyhow::anyhow!("a thread panicked"))?;
        measured.context("the connection's thread ended early")
    }
}

impl Side for Tcp {
    fn name(&self) -> &str {
        "limit: loopback TCP"
    }

    fn durability(&self) -> &'static str {
        "none"
    }

    fn run<'a>(
        &'a self,
        workload: &'a Workload,
        time: Duration,
    ) -> BoxFuture<'a, anyhow::Result<Option<Measured>>> {
        let bytes = match workload {
            Workload { partitions: 2.., .. } => None,
            Workload { rate: None, .. } => Some((MIB, false)),
            Workload { rate: Some(rate), .. } => (*rate == SLOW).then_some((KIB, true)),
        };
        let measured = bytes.map(|(bytes, answered)| {
            let measured = tokio::task::block_in_place(|| Self::transfer(bytes, answered, time));
            measured.map(|measured| in_records(measured, workload))
        });
        async move { measured.transpose() }.boxed()
    }
}
