//! How many files and mappings this process may have open.
//!
//! Owns: raising the limit, and saying when it is too low. Never: counts what is open.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What a broker needs besides its partitions: connections, sealed segments that are being read, everything else.
const BESIDE_PARTITIONS: u64 = 3_000;

/// Raises this process's soft limit of open files to the hard one. Every partition takes a descriptor, and what a shell or a
/// service manager starts with is often 1,024. For the binary: what embeds a broker decides for itself.
pub fn raise_limit() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    if let Err(error) =
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
    {
        tracing::warn!(%error, "the limit of open files could not be raised");
    }
}

/// Says in the log what is too low for so many partitions.
pub(crate) fn check(partitions: usize) {
    let needed = partitions as u64 + BESIDE_PARTITIONS;
    let files_max = getrlimit(Resource::Nofile).current;
    if let Some(files_max) = files_max.filter(|max| *max < needed) {
        tracing::warn!(
            partitions,
            files_max,
            needed,
            "too few open files are allowed for the partitions of this node: raise the limit (ulimit -Hn, LimitNOFILE=) or have fewer partitions"
        );
    }
    let mappings_max = std::fs::read_to_string("/proc/sys/vm/max_map_count")
        .ok()
        .and_then(|text| text.trim().parse::<u64>().ok());
    if let Some(mappings_max) = mappings_max.filter(|max| *max < needed) {
        tracing::warn!(
            partitions,
            mappings_max,
            needed,
            "too few mappings are allowed for the partitions of this node: raise vm.max_map_count (sysctl)"
        );
    }
}
