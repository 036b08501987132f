//! What happened in a run, one JSON object a line: what was published, acknowledged, refused, read.
//!
//! Owns: the format of the file. Never: judges it (`check` does), so that every harness can write one.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use anyhow::Context;
use serde::{Deserialize, Serialize};

/// One thing that happened. Times are milliseconds since the run began; `sequence` identifies an event; `hash` is the CRC-32
/// of its value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case", deny_unknown_fields)]
#[expect(missing_docs, reason = "the fields' names are explained above and in the glossary")]
pub enum Happening {
    /// The producer was given the event.
    Published { sequence: u64, key: String, hash: u32, at_ms: u64 },
    /// The broker acknowledged it as durable.
    Acknowledged { sequence: u64, partition: u32, offset: i64, duplicate: bool, at_ms: u64 },
    /// The producer gave up.
    Refused { sequence: u64, may_have_been_written: bool, at_ms: u64 },
    /// A reader saw it. Each reader reads every partition from its start, once.
    Read {
        reader: String,
        partition: u32,
        offset: i64,
        sequence: u64,
        key: String,
        hash: u32,
        at_ms: u64,
    },
}

/// The hash of an event's value.
pub fn hash(value: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(value);
    crc.sum()
}

/// A history being written; shared by the tasks of a run.
#[derive(Debug)]
pub struct Recorder {
    file: Mutex<BufWriter<File>>,
}

impl Recorder {
    /// Begins a new file, or continues one.
    pub fn open(path: &Path, fresh: bool) -> anyhow::Result<Self> {
        let mut options = OpenOptions::new();
        options.create(true);
        if fresh {
            options.write(true).truncate(true)
        } else {
            options.append(true)
        };
        let file =
            options.open(path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self { file: Mutex::new(BufWriter::with_capacity(1 << 20, file)) })
    }

    /// Adds a line.
    pub fn note(&self, happening: &Happening) -> anyhow::Result<()> {
        let mut line = serde_json::to_vec(happening)?;
        line.push(b'\n');
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(file.write_all(&line)?)
    }

    /// Hands everything to the operating system.
    pub fn flush(&self) -> anyhow::Result<()> {
        Ok(self.file.lock().unwrap_or_else(PoisonError::into_inner).flush()?)
    }
}

/// The lines of a history file.
pub fn read(path: &Path) -> anyhow::Result<impl Iterator<Item = anyhow::Result<Happening>>> {
    let name = path.display().to_string();
    let file = File::open(path).with_context(|| format!("cannot open {name}"))?;
    Ok(BufReader::new(file).lines().enumerate().map(move |(number, line)| {
        let line = line.with_context(|| format!("{name}, line {}", number + 1))?;
        serde_json::from_str(&line).with_context(|| format!("{name}, line {}", number + 1))
    }))
}
