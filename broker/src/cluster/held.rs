//! A message in a small file of the data directory: none yet, or the last one that was written.
//!
//! Owns: the file. Never: what the message says.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use highwater_storage::{Disk, StorageError, read_small_file, write_small_file};
use parking_lot::Mutex;
use prost::Message;

const VERSION: u32 = 1;

/// See the module.
pub(crate) struct Held<M> {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    magic: [u8; 8],
    held: Mutex<Option<M>>,
}

impl<M: Message + Default + Clone + PartialEq> Held<M> {
    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        path: PathBuf,
        magic: [u8; 8],
    ) -> Result<Self, StorageError> {
        let held = match read_small_file(&*disk, &path, magic, VERSION)? {
            None => None,
            Some((_, body)) => Some(M::decode(Bytes::clone(&body)).map_err(|error| {
                let detail = format!("its content does not decode: {error}");
                StorageError::Corrupt { path: path.clone(), index: 0, detail }
            })?),
        };
        Ok(Self { disk, path, magic, held: Mutex::new(held) })
    }

    pub(crate) fn held(&self) -> Option<M> {
        self.held.lock().clone()
    }

    /// Durable when it returns; replaces what there was.
    pub(crate) fn hold(&self, message: M) -> Result<(), StorageError> {
        let mut held = self.held.lock();
        if held.as_ref() != Some(&message) {
            write_small_file(
                &*self.disk,
                &self.path,
                self.magic,
                VERSION,
                &message.encode_to_vec(),
            )?;
            *held = Some(message);
        }
        Ok(())
    }
}
