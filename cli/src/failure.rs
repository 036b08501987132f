//! What a user sees when something fails: a line that says what, a line that says how to mend it, and an exit code.
//!
//! Owns: the exit codes and the mends. Never: decides what counts as a failure.

use std::io::{self, Write};

use highwater_client::{AdminError, ConnectError, ConsumeError, SendError, reason};

/// Exit codes, a contract with scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Anything that has no code of its own.
    Error = 1,
    /// The command line or an argument is wrong.
    Usage = 2,
    /// The topic, partition or profile does not exist.
    NotFound = 3,
    /// The cluster does not allow it.
    NotAllowed = 4,
    /// No answer in time.
    TimedOut = 5,
    /// The cluster is not well.
    Unhealthy = 10,
}

/// Why a command failed.
#[derive(Debug)]
pub(crate) struct Failure {
    exit: Exit,
    what: String,
    mend: Option<String>,
}

impl Failure {
    /// A failure with its exit code.
    pub(crate) fn new(exit: Exit, what: impl Into<String>) -> Self {
        Self { exit, what: what.into(), mend: None }
    }

    /// A failure that has no exit code of its own.
    pub(crate) fn error(what: impl Into<String>) -> Self {
        Self::new(Exit::Error, what)
    }

    /// A wrong argument.
    pub(crate) fn usage(what: impl Into<String>) -> Self {
        Self::new(Exit::Usage, what)
    }

    /// Adds how to mend it.
    pub(crate) fn mend(mut self, mend: impl Into<String>) -> Self {
        self.mend = Some(mend.into());
        self
    }

    /// Says first what was being done.
    pub(crate) fn context(mut self, doing: &str) -> Self {
        self.what = format!("{doing}: {}", self.what);
        self
    }

    /// The process' exit code.
    pub(crate) fn exit_code(&self) -> u8 {
        self.exit as u8
    }

    /// Prints both lines to standard error; nothing for a reader that went away.
    pub(crate) fn report(&self) {
        let mut stderr = io::stderr().lock();
        if !self.what.is_empty() {
            // Nobody is left to tell if standard error is closed.
            let _ = writeln!(stderr, "error: {}", self.what);
        }
        if let Some(mend) = &self.mend {
            let _ = writeln!(stderr, "  mend: {mend}");
        }
    }

    fn by_reason(reason: &str, what: String) -> Self {
        let (exit, mend) = judge(reason);
        Self { exit, what, mend: mend.map(str::to_owned) }
    }
}

/// The exit code and the mend that go with a broker's reason.
fn judge(word: &str) -> (Exit, Option<&'static str>) {
    match word {
        reason::UNKNOWN_TOPIC => {
            (Exit::NotFound, Some("'broker-cli topic list' shows what exists"))
        }
        reason::UNKNOWN_PARTITION => {
            (Exit::NotFound, Some("'broker-cli topic describe TOPIC' shows the partitions"))
        }
        reason::UNKNOWN_GROUP => {
            (Exit::NotFound, Some("'broker-cli group list' shows what exists"))
        }
        "NOT_FOUND" => (Exit::NotFound, None),
        "PERMISSION_DENIED" | "UNAUTHENTICATED" => {
            (Exit::NotAllowed, Some("ask whoever runs the cluster for access"))
        }
        reason::INVALID_ARGUMENT => (Exit::Usage, None),
        reason::CONNECTION => (
            Exit::TimedOut,
            Some(
                "check --server (or HIGHWATER_SERVERS, or the profile) and that a broker runs there; one with TLS takes https:// only",
            ),
        ),
        reason::TIMEOUT
        | "DEADLINE_EXCEEDED"
        | reason::NOT_LEADER
        | reason::NOT_COORDINATOR
        | reason::NOT_READY => (
            Exit::TimedOut,
            Some("'broker-cli cluster health' says what is missing; try a longer --timeout"),
        ),
        reason::OUTCOME_UNKNOWN => {
            (Exit::TimedOut, Some("it may have been written: read before you send it again"))
        }
        reason::TOPIC_EXISTS => {
            (Exit::Error, Some("choose another name, or 'topic alter' this one"))
        }
        reason::GROUP_NOT_EMPTY => {
            (Exit::Error, Some("stop its members; 'broker-cli group describe' shows them"))
        }
        reason::TOO_LARGE => {
            (Exit::Error, Some("'topic describe' shows the topic's max.message.bytes"))
        }
        reason::OFFSET_OUT_OF_RANGE => (
            Exit::Error,
            Some("start inside the range, with one partition (-p), or at '-o start' or '-o end'"),
        ),
        reason::DISK_FULL => (Exit::Error, Some("free space on the brokers or lower retention")),
        reason::OVERLOADED => (Exit::Error, Some("try again when there is less load")),
        _ => (Exit::Error, None),
    }
}

impl From<AdminError> for Failure {
    fn from(error: AdminError) -> Self {
        Self::by_reason(error.reason(), error.to_string())
    }
}

impl From<ConsumeError> for Failure {
    fn from(error: ConsumeError) -> Self {
        Self::by_reason(error.reason(), error.to_string())
    }
}

impl From<SendError> for Failure {
    fn from(error: SendError) -> Self {
        Self::by_reason(error.reason(), error.to_string())
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        Self::by_reason(error.reason(), error.to_string())
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::error(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_become_the_documented_exit_codes() {
        for (word, code) in [
            (reason::UNKNOWN_TOPIC, 3),
            (reason::UNKNOWN_PARTITION, 3),
            ("PERMISSION_DENIED", 4),
            (reason::TIMEOUT, 5),
            (reason::CONNECTION, 5),
            (reason::INVALID_ARGUMENT, 2),
            (reason::TOPIC_EXISTS, 1),
            ("SOMETHING_NEW", 1),
        ] {
            assert_eq!(Failure::by_reason(word, String::new()).exit_code(), code, "{word}");
        }
        assert_eq!(Failure::new(Exit::Unhealthy, "").exit_code(), 10);
    }
}
