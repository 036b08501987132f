//! The command line: every verb, flag and default.
//!
//! Owns: names and help texts. Never: what a verb does.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use highwater_client::{Acks, Compression};

use crate::output::{Format, parse_duration};
use crate::position::Position;

/// Administers a Highwater cluster, produces and consumes.
///
/// Exit codes: 0 done, 1 error, 2 usage, 3 not found, 4 not allowed, 5 timed out, 10 unhealthy.
#[derive(Debug, Parser)]
#[command(name = "broker-cli", version, propagate_version = false, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    /// How to print data.
    #[arg(short = 'o', long = "output", value_name = "FORMAT")]
    pub(crate) output: Option<Format>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags that go with every verb.
#[derive(Clone, Debug, Args)]
pub(crate) struct Global {
    /// Addresses of one or more brokers. Without it: --profile, then HIGHWATER_SERVERS, then the profile in use, then
    /// 127.0.0.1:7420.
    #[arg(long, global = true, value_name = "HOST:PORT,...")]
    pub(crate) server: Option<String>,
    /// A named set of addresses, see `broker-cli profile`.
    #[arg(long, global = true, value_name = "NAME", env = "HIGHWATER_PROFILE")]
    pub(crate) profile: Option<String>,
    #[command(flatten)]
    pub(crate) tls: Tls,
    /// How long to wait for the cluster, for example 500ms, 5s, 2m.
    #[arg(long, global = true, value_name = "TIME", default_value = "5s", value_parser = parse_duration)]
    pub(crate) timeout: Duration,
    /// Do not ask before something is deleted.
    #[arg(short = 'y', long, global = true)]
    pub(crate) yes: bool,
}

/// What TLS is done with; any of them turns it on, as `https://` before the addresses does.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Tls {
    /// Authorities to believe instead of the system's (PEM).
    #[arg(long, global = true, value_name = "FILE", env = "HIGHWATER_CA_FILE")]
    pub(crate) ca_file: Option<PathBuf>,
    /// The certificate to show the brokers (PEM); goes with --key-file.
    #[arg(long, global = true, value_name = "FILE", env = "HIGHWATER_CERT_FILE")]
    pub(crate) cert_file: Option<PathBuf>,
    /// Its private key (PEM).
    #[arg(long, global = true, value_name = "FILE", env = "HIGHWATER_KEY_FILE")]
    pub(crate) key_file: Option<PathBuf>,
}

/// `-o` behind the verb.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Out {
    /// How to print data.
    #[arg(short = 'o', long = "output", value_name = "FORMAT")]
    pub(crate) format: Option<Format>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create, inspect, change and delete topics.
    #[command(subcommand)]
    Topic(Topic),
    /// Publish one record for each line of standard input.
    Produce(Produce),
    /// Print records.
    Consume(Consume),
    /// Consumer groups: members, progress, lag.
    #[command(subcommand)]
    Group(Group),
    /// The nodes and how they are doing.
    #[command(subcommand)]
    Cluster(Cluster),
    /// The registry of services: which instances are there.
    #[command(subcommand)]
    Service(Service),
    /// Named sets of broker addresses.
    #[command(subcommand)]
    Profile(Profile),
    /// Print a completion script for a shell.
    Completion {
        /// The shell.
        shell: Shell,
    },
    /// Print the version.
    Version {
        #[command(flatten)]
        out: Out,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Service {
    /// List the instances that are announced.
    List {
        /// Of this service only.
        service: Option<String>,
        #[command(flatten)]
        out: Out,
    },
    /// Show one service's instances; fails if there are none.
    Describe {
        /// The service.
        name: String,
        #[command(flatten)]
        out: Out,
    },
    /// Print a line for each instance of a service that is there, comes, changes or goes.
    Watch {
        /// The service.
        name: String,
        /// End after so many lines.
        #[arg(short = 'n', long)]
        count: Option<u64>,
        #[command(flatten)]
        out: Out,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Topic {
    /// Create a topic and wait until its partitions have leaders.
    Create {
        /// Letters, digits, '.', '_' and '-'; at most 249.
        name: String,
        /// Number of partitions.
        #[arg(short = 'p', long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        partitions: u32,
        /// Replicas of each partition; the cluster's default without it.
        #[arg(short = 'r', long, value_parser = clap::value_parser!(u32).range(1..))]
        replication_factor: Option<u32>,
        /// A configuration key, see `topic options`; may be repeated.
        #[arg(short = 'c', long = "config", value_name = "KEY=VALUE", value_parser = parse_pair)]
        config: Vec<(String, String)>,
        #[command(flatten)]
        out: Out,
    },
    /// List the topics.
    List {
        /// Also those whose names begin with two underscores.
        #[arg(long)]
        internal: bool,
        #[command(flatten)]
        out: Out,
    },
    /// Show a topic, its partitions and its configuration.
    Describe {
        /// The topic.
        name: String,
        #[command(flatten)]
        out: Out,
    },
    /// Change a topic's configuration, or give it more partitions.
    Alter {
        /// The topic.
        name: String,
        /// A key to set; may be repeated.
        #[arg(short = 'c', long = "config", value_name = "KEY=VALUE", value_parser = parse_pair, required_unless_present_any = ["unset", "partitions"])]
        config: Vec<(String, String)>,
        /// A key to put back to its default; may be repeated.
        #[arg(long, value_name = "KEY")]
        unset: Vec<String>,
        /// How many partitions it is to have: more than now. Keys go to other partitions from then on.
        #[arg(short = 'p', long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
        partitions: Option<u32>,
        #[command(flatten)]
        out: Out,
    },
    /// Delete a topic and its data.
    Delete {
        /// The topic.
        name: String,
    },
    /// Delete the records of a partition before an offset or a time.
    Trim {
        /// The topic.
        name: String,
        /// The partition.
        #[arg(short = 'p', long)]
        partition: u32,
        /// The first record to keep: start, end, an offset, or @TIME.
        #[arg(long, value_name = "OFFSET|@TIME")]
        to: Position,
        #[command(flatten)]
        out: Out,
    },
    /// List every configuration key with its default and bounds.
    Options {
        #[command(flatten)]
        out: Out,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Group {
    /// List the groups.
    List {
        #[command(flatten)]
        out: Out,
    },
    /// Show a group's members and partitions, and why events do not flow where they do not.
    Describe {
        /// The group.
        name: String,
        #[command(flatten)]
        out: Out,
    },
    /// Show how far a group is behind, in records and in time.
    Lag {
        /// The group.
        name: String,
        #[command(flatten)]
        out: Out,
    },
    /// Show where a group's progress would be moved; with --execute, move it. The group must have no members.
    ResetOffsets(Reset),
    /// Delete a group without members, and its progress.
    Delete {
        /// The group.
        name: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Reset {
    /// The group.
    pub(crate) name: String,
    /// Where to: start, end, an offset, or @TIME.
    #[arg(long, value_name = "OFFSET|@TIME")]
    pub(crate) to: Position,
    /// Only in this topic; in all that the group has progress in without it.
    #[arg(long)]
    pub(crate) topic: Option<String>,
    /// Only in this partition; may be repeated.
    #[arg(short = 'p', long = "partition", value_delimiter = ',')]
    pub(crate) partitions: Vec<u32>,
    /// Do it.
    #[arg(long)]
    pub(crate) execute: bool,
    #[command(flatten)]
    pub(crate) out: Out,
}

#[derive(Debug, Args)]
pub(crate) struct Produce {
    /// The topic.
    pub(crate) topic: String,
    /// The key of every record.
    #[arg(short = 'k', long, conflicts_with = "key_separator")]
    pub(crate) key: Option<String>,
    /// A header of every record; may be repeated.
    #[arg(short = 'H', long = "header", value_name = "KEY=VALUE", value_parser = parse_pair)]
    pub(crate) headers: Vec<(String, String)>,
    /// Splits each line into key and value. \t is a tab.
    #[arg(long, value_name = "TEXT")]
    pub(crate) key_separator: Option<String>,
    /// The partition of every record; by key without it.
    #[arg(short = 'p', long)]
    pub(crate) partition: Option<u32>,
    /// How durable a record must be before it counts as published: quorum-fsync, quorum or leader.
    #[arg(long, default_value = "quorum-fsync")]
    pub(crate) acks: Acks,
    /// none, gzip, snappy, lz4 or zstd.
    #[arg(short = 'z', long, value_name = "CODEC", default_value = "none", value_parser = parse_compression)]
    pub(crate) compression: Compression,
    /// With json or yaml: print where each record went.
    #[command(flatten)]
    pub(crate) out: Out,
}

/// Either of the two things that `-o` may say behind `consume`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum PositionOrFormat {
    Position(Position),
    Format(Format),
}

impl std::str::FromStr for PositionOrFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(format) = text.parse() {
            return Ok(Self::Format(format));
        }
        text.parse().map(Self::Position).map_err(|why: String| format!("{why}, table, json, yaml"))
    }
}

#[derive(Debug, Args)]
pub(crate) struct Consume {
    /// The topic.
    pub(crate) topic: String,
    /// Read as a member of a consumer group: go on where the group has come to (at the position given by -o where it has not
    /// begun), wait for more, and count what was printed as done.
    #[arg(short = 'g', long, conflicts_with = "partitions")]
    pub(crate) group: Option<String>,
    /// Only this partition; may be repeated.
    #[arg(short = 'p', long = "partition", value_delimiter = ',')]
    pub(crate) partitions: Vec<u32>,
    /// Where to start: start (the default), end, an offset, or @TIME (@2026-01-31T12:00:00Z, @-15m, @MILLISECONDS). As
    /// everywhere it also takes table, json or yaml; give it twice for both.
    #[arg(
        short = 'o',
        long = "output",
        visible_alias = "position",
        value_name = "POSITION|FORMAT"
    )]
    pub(crate) position_or_format: Vec<PositionOrFormat>,
    /// Stop after this many records.
    #[arg(short = 'n', long, value_name = "COUNT")]
    pub(crate) number: Option<u64>,
    /// Go on at the end and wait for more.
    #[arg(long)]
    pub(crate) follow: bool,
    /// Read from replicas in this rack (node.rack) where they are in sync, and from the leaders otherwise.
    #[arg(long, value_name = "RACK", default_value = "", hide_default_value = true)]
    pub(crate) rack: String,
    /// One record: %t topic, %p partition, %o offset, %k key, %v value, %h headers, %T milliseconds since 1970, %% a
    /// percent sign, \n, \t.
    #[arg(short = 'f', long, value_name = "TEMPLATE")]
    pub(crate) format: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Cluster {
    /// Show the cluster's id, version and size.
    Info {
        #[command(flatten)]
        out: Out,
    },
    /// Say whether all is well, and if not, why (exit code 10).
    Health {
        /// Wait until it is well, at most --timeout.
        #[arg(long)]
        wait: bool,
        /// Ask this one node's HTTP port whether it is ready, instead of the cluster: for health checks of containers.
        #[arg(long, value_name = "HOST:PORT", conflicts_with = "wait")]
        readyz: Option<String>,
        #[command(flatten)]
        out: Out,
    },
    /// List the nodes.
    Members {
        #[command(flatten)]
        out: Out,
    },
    /// Hand the leadership of a partition to another replica.
    TransferLeader {
        /// The topic.
        topic: String,
        /// The partition.
        #[arg(short = 'p', long)]
        partition: u32,
        /// Id of the node that should lead; without it the most caught-up replica.
        #[arg(long, value_name = "NODE")]
        to: Option<u64>,
        #[command(flatten)]
        out: Out,
    },
    /// Give a partition other nodes; its data moves in the background.
    Move {
        /// The topic.
        topic: String,
        /// The partition.
        #[arg(short = 'p', long)]
        partition: u32,
        /// Ids of the nodes that are to hold a replica, the preferred leader first.
        #[arg(long, value_name = "NODE,...", value_delimiter = ',', required = true)]
        to: Vec<u64>,
    },
    /// Put a new replica in the place of one that has lost its data; what is left of the old one is set aside.
    ReplaceReplica {
        /// The topic.
        topic: String,
        /// The partition.
        #[arg(short = 'p', long)]
        partition: u32,
        /// Id of the node whose replica is to be replaced.
        #[arg(long, value_name = "NODE")]
        node: u64,
    },
    /// Keep a node that is draining, or let one that lost its data come back with an empty data directory. A new node needs no
    /// command: it joins by itself.
    AddNode {
        /// Id of the node.
        node: u64,
    },
    /// Let a node leave, alive or dead: its replicas move to other nodes first. Its id is never used again.
    RemoveNode {
        /// Id of the node.
        node: u64,
        /// Wait until it has left, at most --timeout.
        #[arg(long)]
        wait: bool,
    },
    /// Show what would spread replicas and leaders evenly.
    Rebalance {
        /// Do it, in the background; 'cluster health' shows what is on its way.
        #[arg(long)]
        execute: bool,
        #[command(flatten)]
        out: Out,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Profile {
    /// Store addresses under a name, with the files for TLS; the first profile is used from then on.
    Create {
        /// The profile's name.
        name: String,
        /// The addresses, also as --server.
        #[arg(value_name = "HOST:PORT,...")]
        servers: String,
    },
    /// Use a profile whenever nothing else is said.
    Use {
        /// The profile's name.
        name: String,
    },
    /// List the profiles.
    List {
        #[command(flatten)]
        out: Out,
    },
    /// Forget a profile.
    Delete {
        /// The profile's name.
        name: String,
    },
}

/// Where profiles are kept: `HIGHWATER_CLI_CONFIG`, else `highwater/cli.toml` in the user's configuration folder.
pub(crate) fn config_file() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(file) = variable("HIGHWATER_CLI_CONFIG") {
        return Some(file.into());
    }
    let folder = variable("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(variable("HOME")?).join(".config")))?;
    Some(folder.join("highwater").join("cli.toml"))
}

fn parse_pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE".to_owned()),
    }
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
    fn output_format_may_stand_before_and_behind_the_verb() {
        let cli = Cli::parse_from(["broker-cli", "-o", "json", "topic", "list"]);
        assert_eq!(cli.output, Some(Format::Json));
        let cli = Cli::parse_from(["broker-cli", "topic", "list", "-o", "yaml"]);
        let Command::Topic(Topic::List { out, .. }) = cli.command else { panic!("not a list") };
        assert_eq!(out.format, Some(Format::Yaml));
    }

    #[test]
    fn o_behind_consume_is_a_position_or_a_format_or_both() {
        let cli = Cli::parse_from(["broker-cli", "consume", "t", "-o", "end", "-o", "json"]);
        let Command::Consume(consume) = cli.command else { panic!("not a consume") };
        let expected =
            [PositionOrFormat::Position(Position::End), PositionOrFormat::Format(Format::Json)];
        assert_eq!(consume.position_or_format, expected);
        let wrong = Cli::try_parse_from(["broker-cli", "consume", "t", "-o", "begin"]);
        assert_eq!(wrong.expect_err("not a position").exit_code(), 2);
    }
}
