//! The command line.
//!
//! Owns: names, defaults, bounds. Never: what is done with them.

use clap::{Args, Parser, Subcommand, ValueEnum};
use highwater_client::{Acks, Compression};

use crate::failover::FailoverArgs;
use crate::rebalance::RebalanceArgs;
use crate::storage::StorageArgs;

/// Measures a running Highwater cluster.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Publish as fast as it goes, or at a rate.
    Produce(Load),
    /// Read a topic from its start.
    Consume(Load),
    /// Publish at a rate and read beside it: time from when an event was due until it was read.
    E2e(Load),
    /// Publish while a command does something to the cluster: the longest time without an acknowledgement.
    Failover(FailoverArgs),
    /// Read as a group while members join, leave and crash: how long partitions pause, those that move and those that do not.
    Rebalance(RebalanceArgs),
    /// The log engine beside a bare loop of the same work.
    Storage(StorageArgs),
    /// Other brokers and the machine's limits under the same load; scripts/compare starts them.
    #[cfg(feature = "compare")]
    Compare(crate::compare::CompareArgs),
    /// The server of the bare tonic limit, which `compare` starts.
    #[cfg(feature = "compare")]
    #[command(hide = true)]
    TonicLimit,
    /// Other brokers under the same load; only in a build with `--features compare`.
    #[cfg(not(feature = "compare"))]
    Compare,
}

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Load {
    /// Brokers, comma separated.
    #[arg(long, env = "HIGHWATER_SERVERS", default_value = "127.0.0.1:7420")]
    pub(crate) servers: String,
    /// The topic.
    #[arg(long)]
    pub(crate) topic: String,
    /// Create the topic if it does not exist.
    #[arg(long)]
    pub(crate) create: bool,
    /// Partitions of a topic that is created.
    #[arg(long, default_value_t = 1)]
    pub(crate) partitions: u32,
    /// Replicas of a topic that is created; 0 means the cluster's default.
    #[arg(long, default_value_t = 0)]
    pub(crate) replication_factor: u32,
    /// How many records.
    #[arg(long, required_unless_present = "duration", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) records: Option<u64>,
    /// How many seconds.
    #[arg(long, conflicts_with = "records", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) duration: Option<u64>,
    /// Bytes of each value.
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(16..=1_000_000))]
    pub(crate) record_bytes: u32,
    /// Records a second, over all producers. Without it as fast as it goes; e2e takes 2000.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub(crate) rate: Option<u64>,
    /// Independent producers.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) producers: u32,
    /// quorum-fsync, quorum or leader.
    #[arg(long, default_value = "quorum-fsync")]
    pub(crate) acks: Acks,
    /// none, gzip, snappy, lz4 or zstd. Payloads cannot be compressed.
    #[arg(long, default_value = "none", value_parser = parse_compression)]
    pub(crate) compression: Compression,
    /// How long a record may wait for company, in milliseconds.
    #[arg(long, default_value_t = 0)]
    pub(crate) linger_ms: u64,
    /// Largest batch, in bytes.
    #[arg(long, default_value_t = 1 << 20)]
    pub(crate) batch_bytes: usize,
    /// Bytes a producer may have under way.
    #[arg(long, default_value_t = 32 << 20)]
    pub(crate) unacked_bytes: usize,
    /// Take events one by one instead of batch by batch; for consume.
    #[arg(long)]
    pub(crate) each: bool,
    /// Read as the only member of this group; for consume.
    #[arg(long)]
    pub(crate) group: Option<String>,
    /// Seed of the payloads.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Process ids of the brokers, comma separated. Without it they are looked for by their ports on this machine.
    #[arg(long = "broker-pid", value_delimiter = ',')]
    pub(crate) broker_pids: Vec<u32>,
    /// How to print the result.
    #[arg(short = 'o', long, value_enum, default_value = "text")]
    pub(crate) output: Output,
}

fn parse_compression(text: &str) -> Result<Compression, String> {
    Ok(match text {
        "none" => Compression::None,
        "gzip" => Compression::Gzip,
        "snappy" => Compression::Snappy,
        "lz4" => Compression::Lz4,
        "zstd" => Compression::Zstd,
        _ => return Err("choose one of none, gzip, snappy, lz4, zstd".to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_load_is_so_many_records_or_so_many_seconds() {
        let parse = |more: &[&str]| {
            Cli::try_parse_from([&["bench", "produce", "--topic", "t"], more].concat())
        };
        assert!(parse(&["--records", "10"]).is_ok());
        assert!(parse(&["--duration", "10"]).is_ok());
        assert!(parse(&[]).is_err());
        assert!(parse(&["--records", "10", "--duration", "10"]).is_err());
    }
}
