//! Taking over the segments of another replica's compacted part, chunk by chunk.
//!
//! Owns the files being received, which no manifest names yet. Believes nothing that the checksums do not confirm; never
//! speaks to anybody: the caller asks for what is wanted next.

use std::sync::Arc;

use super::writer::{NewFile, StagedCompaction, Unnamed};
use super::{CompactedManifest, Shared, open_segment};
use crate::error::StorageError;

/// Receives the files of a manifest in order. Dropped before `finish` it leaves nothing behind.
#[derive(Debug)]
pub struct CompactedReceiver {
    files: Unnamed,
    theirs: CompactedManifest,
    /// Segments that are complete.
    done: usize,
    current: Option<NewFile>,
    /// The manifest with the numbers that the files have here.
    ours: CompactedManifest,
}

/// The next bytes to ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The number of the file at its owner.
    pub file: u64,
    /// The first byte.
    pub from: u64,
    /// How many bytes are left in that file.
    pub bytes: u64,
}

impl CompactedReceiver {
    pub(super) fn new(shared: Arc<Shared>, theirs: CompactedManifest) -> Self {
        let ours = CompactedManifest { segments: Vec::new(), ..theirs };
        Self { files: Unnamed::new(shared), theirs, done: 0, current: None, ours }
    }

    /// What to ask for next; `None` once all is there.
    pub fn wanted(&self) -> Option<Wanted> {
        let info = self.theirs.segments.get(self.done)?;
        let from = self.current.as_ref().map_or(0, |file| file.bytes);
        Some(Wanted { file: info.file, from, bytes: info.bytes - from })
    }

    /// Takes the bytes that were wanted, or the first of them. An error means that the transfer has failed.
    pub fn take(&mut self, data: &[u8]) -> Result<(), StorageError> {
        let Some(wanted) = self.wanted() else { return Ok(()) };
        let info = self.theirs.segments[self.done];
        let mut file = match self.current.take() {
            Some(file) => file,
            None => self.files.create()?,
        };
        if data.is_empty() || data.len() as u64 > wanted.bytes {
            let detail =
                format!("{} bytes came where up to {} were wanted", data.len(), wanted.bytes);
            return Err(StorageError::corrupt(&file.path, info.first_index, detail));
        }
        file.append(data)?;
        if file.bytes < info.bytes {
            self.current = Some(file);
            return Ok(());
        }
        let (number, path) = (file.number, file.path.clone());
        if file.finish()? != info.checksum {
            let detail = "what was received does not have the checksum of the manifest";
            return Err(StorageError::corrupt(&path, info.first_index, detail));
        }
        let here = super::CompactedSegment { file: number, ..info };
        let shared = self.files.shared();
        open_segment(&*shared.disk, &shared.dir, &here)?;
        self.ours.segments.push(here);
        self.done += 1;
        Ok(())
    }

    /// What was received, durable and complete.
    ///
    /// # Panics
    /// If something is still wanted: that is a mistake of the caller.
    pub fn finish(self) -> Result<StagedCompaction, StorageError> {
        assert!(self.wanted().is_none(), "a transfer is finished when nothing is wanted any more");
        self.files.shared().sync_names()?;
        Ok(StagedCompaction::received(self.files, self.ours))
    }
}
