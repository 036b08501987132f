//! A small state machine for the simulation's second kind of group: a ledger that numbers commands and takes each once.
//!
//! Owns: its rules. Never: knows whether a command is committed; applying one twice or out of order is a panic.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use parking_lot::Mutex;

use crate::replica::core::StateMachine;

/// What the ledger holds after the command at `applied`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Accounts {
    pub(super) applied: u64,
    /// Over all commands so far, in order.
    pub(super) digest: u64,
    pub(super) count: u64,
    /// By client: its last command's sequence, and the number that got.
    pub(super) clients: BTreeMap<u64, (u64, u64)>,
}

/// Shared, so that the oracle can look.
#[derive(Clone, Debug, Default)]
pub(super) struct Ledger(pub(super) Arc<Mutex<Accounts>>);

/// A command of a client. Attempts of one command may differ in nothing but the padding.
pub(super) fn command(client: u64, sequence: u64, padding: usize) -> Bytes {
    let mut out = BytesMut::with_capacity(16 + padding);
    out.put_u64_le(client);
    out.put_u64_le(sequence);
    out.put_bytes(b'x', padding);
    out.freeze()
}

impl StateMachine for Ledger {
    fn apply(&mut self, index: u64, command: &Bytes) -> Bytes {
        let mut accounts = self.0.lock();
        assert!(index > accounts.applied, "{index} applied behind {}", accounts.applied);
        let mut hasher = DefaultHasher::new();
        (accounts.digest, index, command).hash(&mut hasher);
        accounts.digest = hasher.finish();
        accounts.applied = index;
        let mut content = command.clone();
        let (client, sequence) = (content.get_u64_le(), content.get_u64_le());
        let (last, number) = accounts.clients.get(&client).copied().unwrap_or_default();
        let number = if sequence == last {
            number
        } else {
            assert_eq!(sequence, last + 1, "a command of client {client} is missing");
            accounts.count += 1;
            let number = accounts.count;
            accounts.clients.insert(client, (sequence, number));
            number
        };
        Bytes::copy_from_slice(&number.to_le_bytes())
    }

    fn restore(&mut self, index: u64, image: &Bytes) -> Result<(), String> {
        let mut image = image.clone();
        if image.len() < 24 || !image.len().is_multiple_of(24) {
            return Err(format!("an image of {} bytes", image.len()));
        }
        let mut accounts = Accounts {
            applied: image.get_u64_le(),
            digest: image.get_u64_le(),
            count: image.get_u64_le(),
            clients: BTreeMap::new(),
        };
        while image.has_remaining() {
            let (client, last) = (image.get_u64_le(), image.get_u64_le());
            accounts.clients.insert(client, (last, image.get_u64_le()));
        }
        assert!(accounts.applied <= index, "an image of {} as of {index}", accounts.applied);
        *self.0.lock() = accounts;
        Ok(())
    }

    fn image(&self) -> Bytes {
        let accounts = self.0.lock();
        let mut out = BytesMut::new();
        out.put_u64_le(accounts.applied);
        out.put_u64_le(accounts.digest);
        out.put_u64_le(accounts.count);
        for (client, (last, number)) in &accounts.clients {
            out.put_u64_le(*client);
            out.put_u64_le(*last);
            out.put_u64_le(*number);
        }
        out.freeze()
    }
}
