//! `bench storage`: the log engine beside the machine's limit: a bare loop of the same work, in one run, taking turns.
//!
//! Owns: the settings, the order of the cases, the directory. Never: needs a broker, or leaves files behind.

pub(crate) mod compare;
mod large;
mod many;
mod one;
pub(crate) mod sides;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;

use crate::args::Output;
use compare::Report;

/// The settings of `bench storage`.
#[derive(Args, Clone, Debug)]
pub(crate) struct StorageArgs {
    /// Where to write: on the file system to be measured. What is written is removed in the end.
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// Rounds of each case; the bare loop and the log take turns.
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Partitions of the case with one durable point for all.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    partitions: u32,
    /// Empty partitions of the case that opens them; each takes an open file.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    empty_partitions: u32,
    /// Also opens a log of so many GiB, beside one of 1 GiB; both are written first.
    #[arg(long, value_parser = clap::value_parser!(u32).range(2..))]
    large_gib: Option<u32>,
    /// Only cases whose group is named: append, read, partitions, empty, large. All by default.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// How results are printed.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// Runs the cases and prints the table.
pub(crate) fn run(args: &StorageArgs) -> anyhow::Result<()> {
    let dir = args.dir.join(format!("bench-storage-{}", std::process::id()));
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let measured = measure(args, &dir);
    fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    let report = measured?;
    match args.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
        Output::Text => print!("{report}"),
    }
    Ok(())
}

fn measure(args: &StorageArgs, dir: &Path) -> anyhow::Result<Report> {
    let wanted = |group: &str| args.only.is_empty() || args.only.iter().any(|only| only == group);
    let mut report = Report::new(args.rounds);
    if wanted("append") {
        one::appends(&mut report, dir)?;
    }
    if wanted("read") {
        one::reads(&mut report, dir)?;
    }
    if wanted("partitions") {
        many::one_durable_point(&mut report, dir, args.partitions)?;
    }
    if wanted("empty") {
        many::empty(&mut report, dir, args.empty_partitions)?;
    }
    if let Some(gib) = args.large_gib.filter(|_| wanted("large")) {
        large::open(&mut report, dir, gib)?;
    }
    Ok(report)
}
