//! What is configured about groups, and the fixed limits beside it.

use std::time::Duration;

/// The internal topic that groups are kept in.
pub(crate) const OFFSETS_TOPIC: &str = "__consumer_offsets";

/// Longest name of a group, and longest static id, in bytes.
pub(super) const NAME_BYTES_MAX: usize = 249;
/// Longest id of a member, in bytes.
pub(super) const MEMBER_ID_BYTES_MAX: usize = 64;
/// Longest client id that is kept, in bytes; the rest is cut off.
pub(super) const CLIENT_ID_BYTES_MAX: usize = 128;
/// Most topics of one member.
pub(super) const MEMBER_TOPICS_MAX: usize = 32;
/// Most that may be kept with the progress in one partition, in bytes.
pub(super) const METADATA_BYTES_MAX: usize = 4 << 10;
/// Most offsets in one commit.
pub(super) const COMMIT_OFFSETS_MAX: usize = 20_000;
/// Largest stored group, in bytes: below what a record may measure.
pub(super) const GROUP_BYTES_MAX: usize = 768 << 10;
/// How long ago a majority must have stored something for a coordinator that it tells members anything: until then nobody else had taken
/// over. By so much a new one waits longer for members, which an old one may have answered meanwhile.
pub(super) const PROOF_AGE_MAX: Duration = Duration::from_secs(2);
/// Shortest and longest session timeout.
const SESSION_TIMEOUT_MIN: Duration = Duration::from_millis(500);
const SESSION_TIMEOUT_MAX: Duration = Duration::from_secs(1_800);
/// Shortest and longest progress timeout, and the most that a member may put it off at once.
const PROGRESS_TIMEOUT_MIN: Duration = Duration::from_secs(1);
pub(super) const PROGRESS_TIMEOUT_MAX: Duration = Duration::from_secs(86_400);

/// `groups.*`, as the coordinator needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GroupOptions {
    /// Partitions of the offsets topic, when it is created.
    pub(crate) offsets_partitions: u32,
    /// Replicas of each, never more than there are nodes.
    pub(crate) offsets_replication_factor: u32,
    /// How long progress is kept after its group has become empty.
    pub(crate) offsets_retention: Duration,
    /// The session timeout of members that do not say one.
    pub(crate) session_timeout: Duration,
    /// The progress timeout of members that do not say one.
    pub(crate) progress_timeout: Duration,
    /// Most groups of one coordinator (one partition of the offsets topic).
    pub(crate) groups_max: usize,
    /// Most members of one group.
    pub(crate) members_max: usize,
}

impl GroupOptions {
    /// The session timeout for a member that asks for this many milliseconds; 0 leaves it to the broker.
    pub(crate) fn session_timeout(&self, asked_ms: u32) -> Duration {
        bounded(asked_ms, self.session_timeout, SESSION_TIMEOUT_MIN, SESSION_TIMEOUT_MAX)
    }

    /// The same for its progress timeout.
    pub(crate) fn progress_timeout(&self, asked_ms: u32) -> Duration {
        bounded(asked_ms, self.progress_timeout, PROGRESS_TIMEOUT_MIN, PROGRESS_TIMEOUT_MAX)
    }
}

fn bounded(asked_ms: u32, default: Duration, min: Duration, max: Duration) -> Duration {
    match asked_ms {
        0 => default,
        asked_ms => Duration::from_millis(asked_ms.into()).clamp(min, max),
    }
}
