//! Durable, checksummed, numbered entries in memory-mapped segments: append, read, truncate, sync.
//!
//! Owns the on-disk formats of a node: segments and their index files, the hard-state journal, small
//! checksummed files, the identity file. Names no async runtime, transport or consensus library, takes
//! time from nobody and never parses a record: the caller says how many offsets an entry spans.

pub mod disk;
mod error;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod hard_state;
mod identity;
mod log;
mod mapping;
mod reserve;
mod small_file;

pub use disk::{Disk, DiskFile, JournaledDisk, Lease, RealDisk, SimDisk, SimOp, UnsyncedDisk};
pub use error::StorageError;
pub use hard_state::{HardState, HardStateJournal, JournalSyncPoint};
pub use identity::{DirLock, Identity};
pub use log::{
    Compacted, CompactedManifest, CompactedReader, CompactedReceiver, CompactedSegment,
    CompactedWriter, EntryMeta, Epoch, Finding, Gap, Log, LogOptions, LogReader, LogStart,
    OpenSealed, Origin, RecoveryReport, Repair, ScrubStep, SegmentInfo, Settled, SparePool,
    StagedCompaction, StoredEntry, SyncPoint, Wanted, sync_group,
};
pub use mapping::exit_on_read_fault;
pub use reserve::DiskReserve;
pub use small_file::{read_small_file, write_small_file};
