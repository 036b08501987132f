//! How a client is set up: addresses, timeouts, retries.
//!
//! Owns: [`ClientBuilder`], [`RetryPolicy`] and the reading of address lists. Never: connections.

use std::time::Duration;

use tokio::time::Instant;

use crate::client::Client;
use crate::env::Env;
use crate::error::ConnectError;

/// The port that brokers listen on for clients unless told otherwise.
pub const DEFAULT_PORT: u16 = 7420;
/// The environment variable that [`Client::from_env`] reads.
pub const SERVERS_VARIABLE: &str = "HIGHWATER_SERVERS";

/// How long to wait between tries: doubling from the first to the longest, each shortened by a random part of up to half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Wait after the first failure.
    pub backoff_first: Duration,
    /// The longest wait.
    pub backoff_max: Duration,
}

impl Default for RetryPolicy {
    /// 20 ms to 1 s.
    fn default() -> Self {
        Self { backoff_first: Duration::from_millis(20), backoff_max: Duration::from_secs(1) }
    }
}

impl RetryPolicy {
    /// The wait after this many failures in a row (1 for the first).
    pub(crate) fn backoff(&self, failures: u32, env: &Env) -> Duration {
        let doublings = failures.saturating_sub(1).min(16);
        env.jittered((self.backoff_first * (1 << doublings)).min(self.backoff_max))
    }
}

/// Everything a client is told before it connects.
#[derive(Clone, Debug)]
pub(crate) struct ClientConfig {
    pub(crate) bootstrap: Vec<String>,
    pub(crate) client_id: String,
    pub(crate) connect_timeout: Duration,
    pub(crate) request_timeout: Duration,
    pub(crate) metadata_age_max: Duration,
    pub(crate) retry: RetryPolicy,
    pub(crate) seed: Option<u64>,
}

/// Builds a [`Client`].
///
/// ```no_run
/// # async fn run() -> Result<(), highwater_client::ConnectError> {
/// use std::time::Duration;
///
/// let client = highwater_client::Client::builder()
///     .servers("h1:7420,h2:7420")
///     .client_id("billing")
///     .request_timeout(Duration::from_secs(10))
///     .connect()
///     .await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct ClientBuilder {
    servers: String,
    config: ClientConfig,
}

impl Default for ClientBuilder {
    fn default() -> Self {
        let config = ClientConfig {
            bootstrap: Vec::new(),
            client_id: String::new(),
            connect_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(10),
            metadata_age_max: Duration::from_secs(30),
            retry: RetryPolicy::default(),
            seed: None,
        };
        Self { servers: format!("127.0.0.1:{DEFAULT_PORT}"), config }
    }
}

impl ClientBuilder {
    /// Addresses to begin with: `host:port` separated by commas, with or without `highwater://` before them. One that
    /// answers is enough; the others of the cluster are learned from it. Default: `127.0.0.1:7420`.
    pub fn servers(mut self, servers: impl Into<String>) -> Self {
        self.servers = servers.into();
        self
    }

    /// Free text that shows up in the brokers' logs, for example the service's name.
    pub fn client_id(mut self, client_id: impl Into<String>) -> Self {
        self.config.client_id = client_id.into();
        self
    }

    /// How long `connect` tries, and how long one TCP connection may take to come up (at most 5 s of it). Default: 10 s.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.config.connect_timeout = timeout;
        self
    }

    /// How long an administrative call may take, retries included. Default: 10 s.
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.config.request_timeout = timeout;
        self
    }

    /// After how long consumers look for new partitions although nothing failed. Default: 30 s.
    pub fn metadata_age_max(mut self, age: Duration) -> Self {
        self.config.metadata_age_max = age;
        self
    }

    /// How long to wait between tries. Default: 20 ms doubling to 1 s, jittered.
    pub fn retry_policy(mut self, policy: RetryPolicy) -> Self {
        self.config.retry = policy;
        self
    }

    /// Makes the client's random choices (jitter) repeatable.
    pub fn seed(mut self, seed: u64) -> Self {
        self.config.seed = Some(seed);
        self
    }

    /// Connects: succeeds as soon as one of the addresses has told about its cluster.
    pub async fn connect(self) -> Result<Client, ConnectError> {
        let Self { servers, mut config } = self;
        config.bootstrap = parse_servers(&servers)?;
        let runtime =
            tokio::runtime::Handle::try_current().map_err(|_none| ConnectError::NoRuntime)?;
        let env = Env::new(runtime, config.seed);
        Client::connect_with(config, env).await
    }
}

/// Reads an address list into `host:port` strings.
fn parse_servers(servers: &str) -> Result<Vec<String>, ConnectError> {
    let invalid = |why: &str| ConnectError::InvalidOption {
        what: "servers",
        value: servers.to_owned(),
        why: why.to_owned(),
    };
    let rest = servers.trim();
    let rest = match rest.split_once("://") {
        Some(("highwater" | "http", rest)) => rest,
        Some((scheme, _)) => {
            return Err(invalid(&format!(
                "scheme '{scheme}' is not known; write highwater://host:port,host:port"
            )));
        }
        None => rest,
    };
    let mut addresses = Vec::new();
    for part in rest.trim_end_matches('/').split(',') {
        let part = part.trim().trim_end_matches('/');
        if part.is_empty() {
            return Err(invalid("an address is empty; write host:port,host:port"));
        }
        let address = with_port(part).ok_or_else(|| {
            invalid(&format!("'{part}' is not an address; write host:port or [v6]:port"))
        })?;
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    Ok(addresses)
}

/// `host:port` of `host` or `host:port`; `None` if it is neither.
fn with_port(part: &str) -> Option<String> {
    let (host, port) = match part.strip_prefix('[') {
        Some(v6) => {
            let (inside, behind) = v6.split_once(']')?;
            inside.parse::<std::net::Ipv6Addr>().ok()?;
            (&part[..inside.len() + 2], behind.strip_prefix(':'))
        }
        None => match part.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (part, None),
        },
    };
    let port = match port {
        Some(port) => port.parse::<u16>().ok().filter(|port| *port != 0)?,
        None => DEFAULT_PORT,
    };
    let plausible = !host.is_empty()
        && (host.starts_with('[')
            || host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_')));
    plausible.then(|| format!("{host}:{port}"))
}

/// When to try again after failures in a row.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Counts a failure; the moment of the next try.
    pub(crate) fn failed(&mut self, policy: &RetryPolicy, env: &Env) -> Instant {
        self.failures = self.failures.saturating_add(1);
        env.now() + policy.backoff(self.failures, env)
    }

    /// Failures since the last success.
    pub(crate) fn failures(&self) -> u32 {
        self.failures
    }

    /// Forgets the failures.
    pub(crate) fn succeeded(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_lists_are_read_with_and_without_scheme_and_ports() {
        let read = |text: &str| parse_servers(text).unwrap();
        assert_eq!(read("highwater://h1:7420,h2:7421"), ["h1:7420", "h2:7421"]);
        assert_eq!(read("h1, h2:1 ,h1"), ["h1:7420", "h2:1"]);
        assert_eq!(read("http://127.0.0.1:9/"), ["127.0.0.1:9"]);
        assert_eq!(read("[::1]:5,[::1]"), ["[::1]:5", "[::1]:7420"]);
    }

    #[test]
    fn bad_address_lists_say_what_is_wrong() {
        for bad in
            ["", "h1:", "h1:x", "h1:0", "h1:70000", "kafka://h1", "a,,b", "[::1", "h 1:3", "::1"]
        {
            let error = parse_servers(bad).unwrap_err();
            assert_eq!(error.reason(), "INVALID_ARGUMENT", "{bad}");
        }
    }

    #[tokio::test]
    async fn backoff_doubles_from_the_first_to_the_longest_and_never_waits_less_than_half() {
        let env = Env::new(tokio::runtime::Handle::current(), Some(1));
        let policy = RetryPolicy::default();
        for (failures, longest_ms) in [(1, 20), (2, 40), (4, 160), (7, 1000), (400, 1000)] {
            let wait = policy.backoff(failures, &env);
            let longest = Duration::from_millis(longest_ms);
            assert!(wait <= longest && wait >= longest / 2, "{failures}: {wait:?}");
        }
    }
}
