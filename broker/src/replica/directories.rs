//! What a node has on disk of a group: whose it is, setting it aside, removing it.
//!
//! Owns: the directories of replicas as a whole and what the hard-state journal holds of them. Never: decides that data may go; whoever
//! calls has read that in committed metadata.

use std::path::PathBuf;
use std::sync::Arc;

use highwater_proto::internal::ReplicaState;
use highwater_storage::{HardState, StorageError};

use super::checkpoint::SmallFiles;
use super::core::{joined_key, journal_key};
use super::engine::{Engine, NewReplica, ReplicaError};

/// Where directories go that are not used any more and that nobody has said may be deleted.
const SET_ASIDE: &str = "set-aside";

impl Engine {
    /// The topic of a group that is on disk here.
    pub fn topic_of(&self, group: u64) -> Result<Option<String>, StorageError> {
        Ok(self.state_of(group)?.map(|state| state.topic_id))
    }

    /// The nodes that hold replicas of a group, as far as its directory here says so.
    pub(crate) fn nodes_of(&self, group: u64) -> Result<Vec<u64>, StorageError> {
        let state = self.state_of(group)?;
        Ok(state.map(|state| state.nodes.into_values().collect()).unwrap_or_default())
    }

    /// Which replica of a group is in service, or on disk, here.
    pub(crate) fn replica_of(&self, group: u64) -> Result<Option<u64>, StorageError> {
        if let Some(handle) = self.get(group) {
            return Ok(Some(handle.replica_id()));
        }
        Ok(self.state_of(group)?.map(|state| state.replica_id))
    }

    /// Whether the directory of a group holds an older replica than the one that belongs here.
    pub(crate) fn is_superseded(&self, group: u64, assigned: u64) -> bool {
        if let Some(handle) = self.get(group) {
            return handle.replica_id() < assigned;
        }
        if !self.disk().exists(&self.group_dir(group)) {
            return false;
        }
        match self.state_of(group) {
            Ok(Some(state)) => state.replica_id < assigned,
            // Created in part: it never promised anything, and creating it again clears it away.
            Ok(None) => false,
            // Nobody can read whose it is. It is the assigned one's only if that one has ever been in service.
            Err(_) => self.inner.journal.lock().get(joined_key(assigned)).is_none(),
        }
    }

    /// Whether there is no directory of a group.
    pub(crate) fn has_nothing_of(&self, group: u64) -> bool {
        !self.disk().exists(&self.group_dir(group))
    }

    /// Takes a replica out of service and moves its directory to `set-aside/GROUP-REPLICA`, where nothing uses it any more. Its votes
    /// are forgotten: the replica will never speak again.
    pub(crate) async fn set_aside(&self, group: u64) -> Result<PathBuf, StorageError> {
        self.take_out(group).await;
        let state = self.state_of(group).ok().flatten();
        let replica = match &state {
            Some(state) => state.replica_id.to_string(),
            None => "unknown".to_owned(),
        };
        let disk = self.disk();
        let parent = self.inner.config.dir.join(SET_ASIDE);
        let mut to = parent.join(format!("{group}-{replica}"));
        let mut copies = 1;
        while disk.exists(&to) {
            copies += 1;
            to = parent.join(format!("{group}-{replica}-{copies}"));
        }
        let failed = |source| StorageError::Io {
            operation: "move a directory to",
            path: to.clone(),
            source,
        };
        if !self.has_nothing_of(group) {
            disk.create_dir_all(&parent).map_err(failed)?;
            disk.rename(&self.group_dir(group), &to).map_err(failed)?;
            for dir in [&parent, &self.groups_dir(), &self.inner.config.dir] {
                disk.sync_dir(dir).map_err(failed)?;
            }
        }
        self.forget(group, state.as_ref())?;
        Ok(to)
    }

    /// Takes a replica out of service and deletes its data. Only for a replica that its group has given up: a committed command
    /// deleted its topic, or took it from the members.
    pub async fn remove(&self, group: u64) -> Result<(), StorageError> {
        self.take_out(group).await;
        let state = self.state_of(group).ok().flatten();
        self.forget(group, state.as_ref())?;
        let dir = self.group_dir(group);
        self.disk().remove_dir_all(&dir).map_err(|source| StorageError::Io {
            operation: "remove",
            path: dir,
            source,
        })
    }

    fn forget(&self, group: u64, state: Option<&ReplicaState>) -> Result<(), StorageError> {
        self.inner.journal.lock().remove(state.map_or(group, journal_key))
    }

    /// What the journal holds of the replica that is on disk.
    pub(super) fn saved(&self, group: u64) -> Result<Option<HardState>, StorageError> {
        let key = self.state_of(group)?.map_or(group, |state| journal_key(&state));
        Ok(self.inner.journal.lock().get(key))
    }

    /// Refuses to begin a replica anew that has been in service: the journal remembers terms and votes of it, and begun anew it
    /// would forget what it promised.
    pub(super) fn check_is_new(&self, new: &NewReplica) -> Result<(), ReplicaError> {
        let mut journal = self.inner.journal.lock();
        let was_founder = journal.get(new.group).is_some();
        let known = match new.is_founding {
            true => was_founder,
            false => journal.get(joined_key(new.replica)).is_some(),
        };
        if known {
            return Err(ReplicaError::State(format!(
                "replica {} was in service here and its directory {} is gone; restore it, or have the cluster replace the replica \
                 ('broker-cli cluster replace-replica')",
                new.replica,
                self.group_dir(new.group).display()
            )));
        }
        if was_founder {
            // Of a replica that this one comes in place of.
            journal.remove(new.group)?;
        }
        Ok(())
    }

    fn state_of(&self, group: u64) -> Result<Option<ReplicaState>, StorageError> {
        let files = SmallFiles::new(Arc::clone(self.disk()), &self.group_dir(group));
        files.load_state()
    }
}
