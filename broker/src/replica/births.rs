//! Creating many replicas behind a few syncs: a topic may have thousands of partitions.
//!
//! Owns: the directories under names that count for nothing, until all of them are durable. Never: puts a replica into service
//! before that.

use std::path::Path;
use std::sync::Arc;

use highwater_storage::{Disk, Settled, StorageError, UnsyncedDisk};

use super::core::{Birth, Core, CoreConfig};
use super::engine::{Engine, NewReplica, ReplicaError};

/// From so many on they are created together.
const TOGETHER_MIN: usize = 4;
/// So many are created together at most: the first are in service while the rest are made.
const TOGETHER_MAX: usize = 1_000;
/// What the name of a directory that is being made begins with: no group's does.
const STAGING_PREFIX: &str = "new-";

impl Engine {
    /// Creates replicas of partitions and puts them into service; returns what could not be created.
    pub fn create_many(&self, news: Vec<NewReplica>) -> Vec<(u64, ReplicaError)> {
        let mut failures = Vec::new();
        let mut news = news.into_iter().peekable();
        while news.peek().is_some() {
            let some: Vec<NewReplica> = news.by_ref().take(TOGETHER_MAX).collect();
            let outcome = match some.len() < TOGETHER_MIN {
                true => Ok(some),
                false => self.create_together(some, &mut failures),
            };
            match outcome {
                Ok(one_by_one) => failures.extend(one_by_one.into_iter().filter_map(|new| {
                    let group = new.group;
                    self.create(new, None).err().map(|error| (group, error))
                })),
                Err((groups, error)) => {
                    let why = |group| (group, ReplicaError::State(error.to_string()));
                    failures.extend(groups.into_iter().map(why));
                }
            }
        }
        failures
    }

    /// Creates all or none; returns those that must be created one by one because the disk cannot sync a tree.
    fn create_together(
        &self,
        news: Vec<NewReplica>,
        failures: &mut Vec<(u64, ReplicaError)>,
    ) -> Result<Vec<NewReplica>, (Vec<u64>, StorageError)> {
        let groups = self.groups_dir();
        let disk = self.disk();
        let unsynced: Arc<dyn Disk> = Arc::new(UnsyncedDisk::new(Arc::clone(disk)));
        let staging = |group: u64| groups.join(format!("{STAGING_PREFIX}{group}"));
        let mut staged = Vec::new();
        for new in news {
            let dir = staging(new.group);
            match self.stage(&unsynced, &dir, &new) {
                Ok(()) => staged.push(new),
                Err(error) => {
                    let _ = disk.remove_dir_all(&dir);
                    failures.push((new.group, error));
                }
            }
        }
        let ids = |staged: &[NewReplica]| staged.iter().map(|new| new.group).collect();
        // They must be whole on disk before they have names that count.
        let settled = Settled::below(&**disk, &groups).map_err(|error| (ids(&staged), error))?;
        if !settled.covers(&groups) {
            for new in &staged {
                let _ = disk.remove_dir_all(&staging(new.group));
            }
            return Ok(staged);
        }
        staged.retain(|new| {
            let (from, to) = (staging(new.group), self.group_dir(new.group));
            let named = clear(&**disk, &to)
                .and_then(|()| disk.rename(&from, &to).map_err(io("rename", &from)));
            named.map_err(|error| failures.push((new.group, error.into()))).is_ok()
        });
        disk.sync_dir(&groups).map_err(|error| (ids(&staged), io("sync", &groups)(error)))?;
        let settled = Arc::new(settled);
        for new in staged {
            let config = self.core_config(new.group, &new.settings, None);
            let config = CoreConfig { settled: Some(Arc::clone(&settled)), ..config };
            match Core::open_new(config, new.preferred) {
                Ok(core) => drop(self.add(core, new.settings)),
                Err(error) => failures.push((new.group, error.into())),
            }
        }
        Ok(Vec::new())
    }

    fn stage(
        &self,
        disk: &Arc<dyn Disk>,
        dir: &Path,
        new: &NewReplica,
    ) -> Result<(), ReplicaError> {
        self.check_is_new(new)?;
        let config = self.core_config(new.group, &new.settings, None);
        let config = CoreConfig { disk: Arc::clone(disk), dir: dir.to_owned(), ..config };
        Ok(Core::write_files(&config, Birth::from(new.clone()))?)
    }
}

/// Removes what a crash left of directories that were being made.
pub(super) fn remove_unfinished(disk: &dyn Disk, groups: &Path) -> Result<(), StorageError> {
    for name in disk.list(groups).map_err(io("list", groups))? {
        if name.starts_with(STAGING_PREFIX) {
            clear(disk, &groups.join(name))?;
        }
    }
    Ok(())
}

fn clear(disk: &dyn Disk, dir: &Path) -> Result<(), StorageError> {
    if disk.exists(dir) { disk.remove_dir_all(dir).map_err(io("clear", dir)) } else { Ok(()) }
}

fn io(operation: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> StorageError {
    let path = path.to_owned();
    move |source| StorageError::Io { operation, path, source }
}
