//! Passes what the raft crate logs (through slog) on to `tracing`.
//!
//! Owns: the mapping of levels. Never: filters; the subscriber does.

/// A logger for raft nodes.
pub(crate) fn logger() -> slog::Logger {
    slog::Logger::root(ToTracing, slog::o!())
}

struct ToTracing;

impl slog::Drain for ToTracing {
    type Ok = ();
    type Err = slog::Never;

    fn log(
        &self,
        record: &slog::Record<'_>,
        values: &slog::OwnedKVList,
    ) -> Result<Self::Ok, Self::Err> {
        let mut text = Text(record.msg().to_string());
        let _ = slog::KV::serialize(&record.kv(), record, &mut text);
        let _ = slog::KV::serialize(values, record, &mut text);
        match record.level() {
            slog::Level::Critical | slog::Level::Error => {
                tracing::error!(target: "raft", "{}", text.0)
            }
            slog::Level::Warning => tracing::warn!(target: "raft", "{}", text.0),
            // What raft calls information is one line for each election and message of it: detail, for us.
            slog::Level::Info => tracing::debug!(target: "raft", "{}", text.0),
            slog::Level::Debug | slog::Level::Trace => {
                tracing::trace!(target: "raft", "{}", text.0)
            }
        }
        Ok(())
    }

    fn is_enabled(&self, level: slog::Level) -> bool {
        match level {
            slog::Level::Critical | slog::Level::Error | slog::Level::Warning => true,
            slog::Level::Info => tracing::enabled!(target: "raft", tracing::Level::DEBUG),
            slog::Level::Debug | slog::Level::Trace => {
                tracing::enabled!(target: "raft", tracing::Level::TRACE)
            }
        }
    }
}

struct Text(String);

impl slog::Serializer for Text {
    fn emit_arguments(&mut self, key: slog::Key, value: &std::fmt::Arguments<'_>) -> slog::Result {
        use std::fmt::Write as _;
        write!(self.0, " {key}={value}").map_err(|_| slog::Error::Other)
    }
}
