//! W3C trace context: which trace an event belongs to.
//!
//! Owns: the `traceparent` text. Never: spans or exporters; whatever traces the service reads and gives this.

use std::fmt;
use std::future::Future;
use std::str::FromStr;

tokio::task_local! {
    /// The trace of the event that this task handles.
    static CURRENT: Option<TraceContext>;
}

/// Runs a future within a trace: what is published in it belongs to that.
pub(crate) async fn within<F: Future>(trace: Option<TraceContext>, future: F) -> F::Output {
    CURRENT.scope(trace, future).await
}

/// The `traceparent` of [W3C trace context](https://www.w3.org/TR/trace-context/): which trace, and which step of it came before.
///
/// ```
/// use highwater_client::event::TraceContext;
///
/// let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
/// let trace: TraceContext = text.parse()?;
/// assert!(trace.is_sampled());
/// assert_eq!(trace.to_string(), text);
/// # Ok::<(), highwater_client::event::InvalidTrace>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TraceContext {
    trace_id: u128,
    parent_id: u64,
    flags: u8,
}

/// A text that is no `traceparent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no traceparent: it is written VERSION-TRACE-PARENT-FLAGS, 2, 32, 16 and 2 hexadecimal digits, ids not zero"
)]
pub struct InvalidTrace;

impl TraceContext {
    /// A trace and the step of it that comes before; `None` if one of them is zero, which stands for none.
    pub fn new(trace_id: u128, parent_id: u64, is_sampled: bool) -> Option<Self> {
        let flags = u8::from(is_sampled);
        (trace_id != 0 && parent_id != 0).then_some(Self { trace_id, parent_id, flags })
    }

    /// The trace of the event that is being handled; `None` outside of a worker's handler, or if the event has none.
    pub fn current() -> Option<Self> {
        CURRENT.try_with(|trace| *trace).ok().flatten()
    }

    /// The trace.
    pub fn trace_id(&self) -> u128 {
        self.trace_id
    }

    /// The step that comes before.
    pub fn parent_id(&self) -> u64 {
        self.parent_id
    }

    /// Whether it is recorded.
    pub fn is_sampled(&self) -> bool {
        self.flags & 1 == 1
    }

    /// The same trace after another step; `None` if that is zero.
    pub fn after(&self, parent_id: u64) -> Option<Self> {
        (parent_id != 0).then_some(Self { parent_id, ..*self })
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace_id, self.parent_id, self.flags)
    }
}

impl FromStr for TraceContext {
    type Err = InvalidTrace;

    fn from_str(text: &str) -> Result<Self, InvalidTrace> {
        let is_hex = |part: &&str| {
            part.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
        };
        let sized = |part: Option<&'_ str>, digits: usize| {
            part.map(str::to_owned).filter(|part| part.len() == digits && is_hex(&part.as_str()))
        };
        let mut parts = text.split('-');
        let version = sized(parts.next(), 2).ok_or(InvalidTrace)?;
        let trace = sized(parts.next(), 32).ok_or(InvalidTrace)?;
        let parent = sized(parts.next(), 16).ok_or(InvalidTrace)?;
        let flags = sized(parts.next(), 2).ok_or(InvalidTrace)?;
        // Later versions may say more behind; version ff is forbidden.
        if version == "ff" || (version == "00" && parts.next().is_some()) {
            return Err(InvalidTrace);
        }
        let trace_id = u128::from_str_radix(&trace, 16).map_err(|_| InvalidTrace)?;
        let parent_id = u64::from_str_radix(&parent, 16).map_err(|_| InvalidTrace)?;
        let flags = u8::from_str_radix(&flags, 16).map_err(|_| InvalidTrace)?;
        let is_sampled = flags & 1 == 1;
        Self::new(trace_id, parent_id, is_sampled).ok_or(InvalidTrace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_well_formed_traces_are_taken() {
        let trace = "0af7651916cd43dd8448eb211c80319c";
        let parent = "b7ad6b7169203331";
        let fine = [format!("00-{trace}-{parent}-00"), format!("01-{trace}-{parent}-01-more")];
        for text in fine {
            assert!(text.parse::<TraceContext>().is_ok(), "{text}");
        }
        let zeroes = "0".repeat(32);
        let broken = [
            String::new(),
            format!("00-{trace}-{parent}"),
            format!("00-{trace}-{parent}-00-more"),
            format!("ff-{trace}-{parent}-00"),
            format!("00-{zeroes}-{parent}-00"),
            format!("00-{trace}-0000000000000000-00"),
            format!("00-{}-{parent}-00", trace.to_uppercase()),
            format!("00-+{}-{parent}-00", &trace[1..]),
        ];
        for text in broken {
            assert_eq!(text.parse::<TraceContext>(), Err(InvalidTrace), "{text}");
        }
    }
}
