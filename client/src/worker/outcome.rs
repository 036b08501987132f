//! What became of an event, as its handler says.
//!
//! Owns: [`Outcome`] and what turns into it. Never: what follows from it (`lanes`).

use std::fmt::Display;
use std::time::Duration;

/// What became of an event. Handlers may also return `()` (done), or a `Result`: an error is [`Outcome::Retry`] with its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is done.
    Done,
    /// It is none of this service's business: done, and counted as skipped.
    Skip,
    /// It failed; try again after a pause that grows. After too many failures it goes to the dead-letter topic.
    Retry(String),
    /// It cannot be done yet; try again after this time. Does not count as a failure.
    RetryAfter(Duration),
    /// It can never be done: it goes to the dead-letter topic with this reason.
    DeadLetter(String),
    /// The service cannot go on: the worker ends with this reason, and the event stays undone.
    Fatal(String),
}

impl From<()> for Outcome {
    fn from((): ()) -> Self {
        Self::Done
    }
}

impl<T: Into<Outcome>, E: Display> From<Result<T, E>> for Outcome {
    fn from(result: Result<T, E>) -> Self {
        match result {
            Ok(outcome) => outcome.into(),
            // `#` brings what anyhow's errors were caused by.
            Err(error) => Self::Retry(format!("{error:#}")),
        }
    }
}
