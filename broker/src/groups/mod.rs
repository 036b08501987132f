//! Consumer groups: who reads which partition, and how far each group has come.
//!
//! Owns: the state machine of a group ([`engine`]), the records it is kept in ([`records`]), and the coordinators of the groups
//! whose partition of the offsets topic this node leads ([`coordinator`], [`shard`]). Never: gRPC, or a socket.

mod commands;
mod coordinator;
mod engine;
mod offsets;
mod options;
mod records;
mod shard;
mod state;

pub(crate) use commands::{Activity, Described, Heartbeat, Report, Standing, ToMember};
pub(crate) use coordinator::{Groups, MemberLine, check_count};
pub(crate) use engine::{Gone, JoinSpec, Owned};
pub(crate) use offsets::NewOffset;
pub(crate) use options::GroupOptions;
