//! The envelope that goes with every entry, and the translation between raft's entries and stored frames.
//!
//! Owns: the meaning of `Entry.context` and of a frame's kind. Never: decides what to append.
//!
//! Layout of `Entry.context`, little endian, 20 bytes: version u8, kind u8, reserved u16 (0), append time i64 (ms since the
//! Unix epoch), base offset u64. Entries that raft itself makes (a new leader's first) have no envelope and no data.

use bytes::{BufMut, Bytes, BytesMut};
use highwater_proto::batch::{self, BatchHeader};
use highwater_storage::{EntryMeta, StoredEntry};
use raft::eraftpb::{Entry, EntryType};

const VERSION: u8 = 1;
const ENVELOPE_BYTES: usize = 20;

/// What an entry is; the number is the frame's kind on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum EntryKind {
    /// A record batch: the only kind that takes offsets.
    Batch = 1,
    /// A new leader's first entry.
    NewLeader = 2,
    /// A membership change.
    Members = 3,
    /// Moves the start of the log.
    AdvanceLogStart = 4,
    /// A command for the metadata state machine.
    Command = 5,
}

impl EntryKind {
    pub(crate) fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Batch,
            2 => Self::NewLeader,
            3 => Self::Members,
            4 => Self::AdvanceLogStart,
            5 => Self::Command,
            _ => return None,
        })
    }
}

/// The decoded envelope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Envelope {
    pub(crate) kind: EntryKind,
    pub(crate) append_time_ms: i64,
    /// Offset of the first record; of the next record for kinds that take none.
    pub(crate) base_offset: u64,
}

/// An entry from a peer or from the log that is not what it claims.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("entry {index} is malformed: {why}")]
pub(crate) struct MalformedEntry {
    pub(crate) index: u64,
    pub(crate) why: String,
}

impl Envelope {
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(ENVELOPE_BYTES);
        out.put_u8(VERSION);
        out.put_u8(self.kind as u8);
        out.put_u16_le(0);
        out.put_i64_le(self.append_time_ms);
        out.put_u64_le(self.base_offset);
        out.freeze()
    }

    fn decode(bytes: &[u8]) -> Result<Self, String> {
        let Ok(fixed) = <&[u8; ENVELOPE_BYTES]>::try_from(bytes) else {
            return Err(format!("its envelope has {} bytes, not {ENVELOPE_BYTES}", bytes.len()));
        };
        if fixed[0] != VERSION {
            return Err(format!("envelope version {} is not known to this broker", fixed[0]));
        }
        let Some(kind) = EntryKind::from_number(fixed[1]) else {
            return Err(format!("entry kind {} is not known to this broker", fixed[1]));
        };
        let mut time = [0; 8];
        time.copy_from_slice(&fixed[4..12]);
        let mut offset = [0; 8];
        offset.copy_from_slice(&fixed[12..20]);
        Ok(Self {
            kind,
            append_time_ms: i64::from_le_bytes(time),
            base_offset: u64::from_le_bytes(offset),
        })
    }
}

/// What storage needs to know of a raft entry.
pub(crate) struct Described {
    pub(crate) meta: EntryMeta,
    /// `None` for entries that raft made.
    pub(crate) envelope: Option<Envelope>,
    /// Header of the batch, for [`EntryKind::Batch`].
    pub(crate) header: Option<BatchHeader>,
}

/// Reads envelope and batch header of an entry. `append_time_floor_ms` is used for entries that raft made.
pub(crate) fn describe(
    entry: &Entry,
    append_time_floor_ms: i64,
) -> Result<Described, MalformedEntry> {
    let malformed = |why: String| MalformedEntry { index: entry.index, why };
    let mut meta = EntryMeta {
        index: entry.index,
        term: entry.term,
        kind: EntryKind::NewLeader as u8,
        offset_span: 0,
        append_time_ms: append_time_floor_ms,
        max_timestamp_ms: i64::MIN,
    };
    if entry.context.is_empty() {
        let kind = match entry.entry_type {
            EntryType::EntryNormal if entry.data.is_empty() => EntryKind::NewLeader,
            EntryType::EntryNormal => return Err(malformed("data without an envelope".into())),
            EntryType::EntryConfChange | EntryType::EntryConfChangeV2 => EntryKind::Members,
        };
        meta.kind = kind as u8;
        return Ok(Described { meta, envelope: None, header: None });
    }
    let envelope = Envelope::decode(&entry.context).map_err(malformed)?;
    meta.kind = envelope.kind as u8;
    meta.append_time_ms = envelope.append_time_ms;
    let is_members = entry.entry_type != EntryType::EntryNormal;
    if is_members != (envelope.kind == EntryKind::Members) {
        return Err(malformed(format!("{:?} in an entry of another type", envelope.kind)));
    }
    let mut header = None;
    if envelope.kind == EntryKind::Batch {
        let read = BatchHeader::read(&entry.data).map_err(|error| malformed(error.to_string()))?;
        if read.total_bytes() != entry.data.len() {
            return Err(malformed("its batch and its data differ in length".into()));
        }
        meta.offset_span = read.offset_span();
        meta.max_timestamp_ms = read.max_timestamp_ms;
        header = Some(read);
    }
    Ok(Described { meta, envelope: Some(envelope), header })
}

/// Whether an entry holds a batch, as far as its envelope can be read.
pub(crate) fn is_batch(entry: &Entry) -> bool {
    Envelope::decode(&entry.context).is_ok_and(|envelope| envelope.kind == EntryKind::Batch)
}

/// The raft entry of a stored frame: what [`describe`] would turn into the same frame again.
pub(crate) fn to_raft_entry(stored: &StoredEntry) -> Entry {
    let mut entry = Entry {
        term: stored.meta.term,
        index: stored.meta.index,
        data: stored.payload.clone(),
        ..Entry::default()
    };
    if let Some(kind) = EntryKind::from_number(stored.meta.kind) {
        if kind == EntryKind::Members {
            entry.entry_type = EntryType::EntryConfChangeV2;
        }
        if kind != EntryKind::NewLeader {
            let envelope = Envelope {
                kind,
                append_time_ms: stored.meta.append_time_ms,
                base_offset: stored.base_offset,
            };
            entry.context = envelope.encode();
        }
    }
    entry
}

/// The first bytes of a batch with base offset and leader epoch stamped; the rest of the batch follows unchanged.
pub(crate) fn stamp(data: &[u8], base_offset: u64, term: u64) -> [u8; 16] {
    let base_offset = i64::try_from(base_offset).unwrap_or(i64::MAX);
    // Kafka's field has 32 bits; a term beyond them keeps its low ones, and the frame holds all 64.
    let epoch = (term & 0x7fff_ffff) as i32;
    batch::stamped_prefix(data, base_offset, epoch)
}
