//! The crate's one error type. Says what happened to which path; never decides what to do about it.

use std::io;
use std::path::{Path, PathBuf};

/// Everything that can go wrong in this crate. Sources are kept.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The operating system refused an operation. `is_disk_full` tells the one kind that passes.
    #[error("cannot {operation} {}: {source}", path.display())]
    Io {
        /// What was attempted, as a verb phrase: "sync", "allocate space in".
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// Bytes that had been durable are damaged or missing. Quarantine and repair; never cut.
    #[error("{} is corrupt at index {index}: {detail}", path.display())]
    Corrupt {
        /// The damaged file or directory.
        path: PathBuf,
        /// The first entry that cannot be trusted (0 where entries have no part in it).
        index: u64,
        /// What was found.
        detail: String,
    },
    /// The entries asked for are below the first one kept.
    #[error("entries below index {first_index} are no longer kept")]
    Compacted {
        /// The first index that is kept.
        first_index: u64,
    },
    /// The entries asked for are above the last one.
    #[error("entries above index {last_index} do not exist yet")]
    Unavailable {
        /// The last index that exists.
        last_index: u64,
    },
    /// An append was not numbered last index + 1, or a truncation reaches outside of the log.
    #[error("index {got} is out of sequence: expected {expected}")]
    OutOfSequence {
        /// The index that would have been right.
        expected: u64,
        /// The index that came.
        got: u64,
    },
    /// An entry's term is lower than that of the entry before it.
    #[error("term {got} of entry {index} is below the last one, {last}")]
    TermDecreased {
        /// The entry.
        index: u64,
        /// The term of the entry before it.
        last: u64,
        /// The term that came.
        got: u64,
    },
    /// The entry's offsets would pass the end of the number space.
    #[error("no offsets are left after {next_offset}")]
    OffsetsExhausted {
        /// The offset that the entry would have begun with.
        next_offset: u64,
    },
    /// A truncation or reset failed halfway: it must be repeated, or the log opened again, before
    /// anything else is written.
    #[error("{} must be truncated again: the last attempt failed halfway", dir.display())]
    Interrupted {
        /// The log's directory.
        dir: PathBuf,
    },
    /// The payload exceeds `LogOptions::payload_bytes_max`.
    #[error("a payload of {bytes} bytes exceeds the limit of {bytes_max}")]
    PayloadTooLarge {
        /// Size of the payload.
        bytes: u64,
        /// The limit.
        bytes_max: u32,
    },
    /// The directory holds no (completely created) log.
    #[error("{} holds no log", dir.display())]
    NotFound {
        /// The directory.
        dir: PathBuf,
    },
    /// The directory already holds a log.
    #[error("{} already holds a log", dir.display())]
    AlreadyExists {
        /// The directory.
        dir: PathBuf,
    },
    /// Another process uses the directory.
    #[error("{} is in use by another process", dir.display())]
    Locked {
        /// The directory.
        dir: PathBuf,
    },
    /// The file was written by a newer release.
    #[error("{} has format version {version}; this release reads up to {version_max}", path.display())]
    UnsupportedVersion {
        /// The file.
        path: PathBuf,
        /// The version found.
        version: u32,
        /// The newest version understood.
        version_max: u32,
    },
}

impl StorageError {
    /// True if the disk (or a quota) is full: nothing is damaged, and the operation may be tried again.
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::Io { source, .. } => {
                matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
            _ => false,
        }
    }

    /// True if data that had been durable is damaged or missing.
    pub fn is_corrupt(&self) -> bool {
        matches!(self, Self::Corrupt { .. })
    }

    pub(crate) fn corrupt(path: &Path, index: u64, detail: impl Into<String>) -> Self {
        Self::Corrupt { path: path.to_path_buf(), index, detail: detail.into() }
    }
}

/// Adds the operation and the path to an `io::Result`.
pub(crate) trait IoContext<T> {
    fn io_context(self, operation: &'static str, path: &Path) -> Result<T, StorageError>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn io_context(self, operation: &'static str, path: &Path) -> Result<T, StorageError> {
        self.map_err(|source| StorageError::Io { operation, path: path.to_path_buf(), source })
    }
}
