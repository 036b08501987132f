//! What a measurement says, for people and as JSON: figures, settings, and the machine they are from.
//!
//! Owns: units and keys. Never: measures.

use std::fmt;
use std::fs;

use serde::{Deserialize, Serialize};

use crate::args::Load;
use crate::latency::Percentiles;
use crate::processes::Sample;

/// What was measured.
#[derive(Clone, Debug, Default)]
pub(crate) struct Measured {
    pub(crate) records: u64,
    pub(crate) bytes: u64,
    pub(crate) seconds: f64,
    pub(crate) errors: u64,
    pub(crate) first_error: String,
    /// From due to acknowledged.
    pub(crate) latency: Option<Percentiles>,
    /// From due to read.
    pub(crate) end_to_end: Option<Percentiles>,
    pub(crate) client_cpu_seconds: f64,
}

/// All of it.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    kind: &'static str,
    settings: Settings,
    records: u64,
    payload_bytes: u64,
    seconds: f64,
    records_per_second: f64,
    megabytes_per_second: f64,
    errors: u64,
    ack_latency_us: Option<Percentiles>,
    end_to_end_latency_us: Option<Percentiles>,
    client_cpu_seconds_per_million_records: f64,
    /// `None` if no broker's process could be seen.
    broker_cpu_seconds_per_million_records: Option<f64>,
    brokers: Vec<Sample>,
    machine: Machine,
}

#[derive(Debug, Serialize)]
struct Settings {
    topic: String,
    record_bytes: u32,
    rate: Option<u64>,
    producers: u32,
    acks: String,
    compression: String,
    linger_ms: u64,
    batch_bytes: usize,
    unacked_bytes: usize,
    seed: u64,
    version: &'static str,
    optimized: bool,
}

#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Machine {
    cpu: String,
    cores: usize,
    memory_bytes: u64,
    kernel: String,
}

impl Machine {
    pub(crate) fn look() -> Self {
        let field = |file: &str, key: &str| {
            let text = fs::read_to_string(file).unwrap_or_default();
            let line = text.lines().find(|line| line.starts_with(key)).unwrap_or_default();
            line.split_once(':').map_or("unknown", |(_, value)| value).trim().to_owned()
        };
        let memory = field("/proc/meminfo", "MemTotal");
        let kib = memory.split(' ').next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0);
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            cpu: field("/proc/cpuinfo", "model name"),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_bytes: kib * 1024,
            kernel: kernel.trim().to_owned(),
        }
    }
}

impl Report {
    /// The figures of a measurement; `before` and `after` are the brokers' processes around it.
    pub(crate) fn new(
        kind: &'static str,
        load: &Load,
        measured: &Measured,
        before: &[Sample],
        after: &[Sample],
    ) -> Self {
        let per_million = |seconds: f64| seconds * 1e6 / measured.records.max(1) as f64;
        let spent: f64 = after
            .iter()
            .filter_map(|end| {
                let begin = before.iter().find(|begin| begin.pid == end.pid)?;
                Some(end.cpu_seconds - begin.cpu_seconds)
            })
            .sum();
        let seconds = measured.seconds.max(f64::MIN_POSITIVE);
        Self {
            kind,
            settings: Settings {
                topic: load.topic.clone(),
                record_bytes: load.record_bytes,
                rate: load.rate,
                producers: load.producers,
                acks: load.acks.to_string(),
                compression: format!("{:?}", load.compression).to_lowercase(),
                linger_ms: load.linger_ms,
                batch_bytes: load.batch_bytes,
                unacked_bytes: load.unacked_bytes,
                seed: load.seed,
                version: env!("CARGO_PKG_VERSION"),
                optimized: !cfg!(debug_assertions),
            },
            records: measured.records,
            payload_bytes: measured.bytes,
            seconds: measured.seconds,
            records_per_second: measured.records as f64 / seconds,
            megabytes_per_second: measured.bytes as f64 / 1e6 / seconds,
            errors: measured.errors,
            ack_latency_us: measured.latency.clone(),
            end_to_end_latency_us: measured.end_to_end.clone(),
            client_cpu_seconds_per_million_records: per_million(measured.client_cpu_seconds),
            broker_cpu_seconds_per_million_records: (!after.is_empty()).then(|| per_million(spent)),
            brokers: after.to_vec(),
            machine: Machine::look(),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let settings = &self.settings;
        let rate = settings.rate.map_or_else(|| "unlimited".to_owned(), |rate| format!("{rate}/s"));
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let slow = if settings.optimized { "" } else { " (NOT an optimized build)" };
        if self.kind == "consume" {
            let mean = self.payload_bytes / self.records.max(1);
            writeln!(f, "consume {}: records of {mean} B on average{slow}", settings.topic)?;
        } else {
            writeln!(
                f,
                "{} {}: {} B records, rate {rate}, {} producers, acks {}, compression {}{slow}",
                self.kind,
                settings.topic,
                settings.record_bytes,
                settings.producers,
                settings.acks,
                settings.compression,
            )?;
        }
        writeln!(
            f,
            "records      {} in {:.3} s, {} errors",
            self.records, self.seconds, self.errors
        )?;
        writeln!(
            f,
            "throughput   {:.0} records/s, {:.1} MB/s",
            self.records_per_second, self.megabytes_per_second
        )?;
        let latencies =
            [("ack", &self.ack_latency_us), ("end to end", &self.end_to_end_latency_us)];
        for (what, latency) in latencies {
            if let Some(Percentiles { p50, p90, p99, p99_9, max, .. }) = latency {
                writeln!(
                    f,
                    "{what:<12} p50 {p50}  p90 {p90}  p99 {p99}  p99.9 {p99_9}  max {max} us"
                )?;
            }
        }
        match self.broker_cpu_seconds_per_million_records {
            Some(cpu) => writeln!(f, "broker CPU   {cpu:.2} s per million records")?,
            None => writeln!(f, "broker CPU   not seen; give --broker-pid")?,
        }
        writeln!(
            f,
            "client CPU   {:.2} s per million records",
            self.client_cpu_seconds_per_million_records
        )?;
        for broker in &self.brokers {
            let (rss, own) = (mib(broker.rss_bytes), mib(broker.rss_anonymous_bytes));
            writeln!(
                f,
                "broker {:<6}{rss:.1} MiB resident, {own:.1} MiB of it its own",
                broker.pid
            )?;
        }
        writeln!(f, "machine      {}", self.machine)
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cpu, cores, memory_bytes, kernel } = self;
        let memory = *memory_bytes as f64 / f64::from(1 << 30);
        write!(f, "{cores} cores, {cpu}, {memory:.1} GiB, Linux {kernel}")
    }
}
