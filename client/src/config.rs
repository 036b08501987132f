//! How a client is set up: addresses, TLS, timeouts, retries.
//!
//! Owns: [`ClientBuilder`], [`RetryPolicy`] and the reading of address lists. Never: connections.

use std::path::PathBuf;
use std::time::Duration;

use tokio::time::Instant;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

use crate::breaker::BreakerPolicy;
use crate::client::Client;
use crate::env::Env;
use crate::error::ConnectError;

/// The port that brokers listen on for clients unless told otherwise.
pub const DEFAULT_PORT: u16 = 7420;
/// The environment variable that [`Client::from_env`] reads.
pub const SERVERS_VARIABLE: &str = "HIGHWATER_SERVERS";

/// The environment variables that [`Client::from_env`] reads beside it, all of them paths of PEM files: authorities to believe,
/// and the client's own certificate and key.
const CA_FILE_VARIABLE: &str = "HIGHWATER_CA_FILE";
const CERT_FILE_VARIABLE: &str = "HIGHWATER_CERT_FILE";
const KEY_FILE_VARIABLE: &str = "HIGHWATER_KEY_FILE";

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
    pub(crate) breaker: BreakerPolicy,
    pub(crate) seed: Option<u64>,
    /// `None`: connections are in plain text.
    pub(crate) tls: Option<ClientTlsConfig>,
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
    tls: TlsFiles,
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
            breaker: BreakerPolicy::for_connections(),
            seed: None,
            tls: None,
        };
        let servers = format!("127.0.0.1:{DEFAULT_PORT}");
        Self { servers, tls: TlsFiles::default(), config }
    }
}

impl ClientBuilder {
    /// Addresses to begin with: `host:port` separated by commas, with or without `highwater://` before them, or `https://` for
    /// TLS. One that answers is enough; the others of the cluster are learned from it. Default: `127.0.0.1:7420`.
    pub fn servers(mut self, servers: impl Into<String>) -> Self {
        self.servers = servers.into();
        self
    }

    /// TLS, with the authorities in this PEM file instead of the system's: only brokers whose certificates come from one of
    /// them are believed.
    pub fn tls_ca_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.tls.ca = Some(path.into());
        self
    }

    /// TLS, showing brokers this certificate, which belongs to this key; both are PEM files.
    pub fn tls_identity_files(
        mut self,
        certificate: impl Into<PathBuf>,
        key: impl Into<PathBuf>,
    ) -> Self {
        self.tls.identity = Some((certificate.into(), key.into()));
        self
    }

    /// What the environment says of servers and TLS, where it says something: see [`Client::from_env`].
    pub fn from_env() -> Result<Self, ConnectError> {
        let read = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let mut builder = Self::default();
        if let Some(servers) = read(SERVERS_VARIABLE) {
            builder = builder.servers(servers);
        }
        if let Some(path) = read(CA_FILE_VARIABLE) {
            builder = builder.tls_ca_file(path);
        }
        match (read(CERT_FILE_VARIABLE), read(KEY_FILE_VARIABLE)) {
            (None, None) => Ok(builder),
            (Some(certificate), Some(key)) => Ok(builder.tls_identity_files(certificate, key)),
            (certificate, key) => Err(ConnectError::InvalidOption {
                what: "tls identity",
                value: certificate.or(key).unwrap_or_default(),
                why: format!("set both {CERT_FILE_VARIABLE} and {KEY_FILE_VARIABLE}, or none"),
            }),
        }
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

    /// When calls to a broker stop being made for a while because they keep failing; each address has a circuit breaker of its
    /// own, [`Client::connections`](Client::connections) shows them. Default: opens after three failures in ten seconds if they are
    /// half of the calls or more, or if four fifths took longer than 1.5 s, and lets one call try again after
    /// 250 ms.
    pub fn connection_breaker(mut self, policy: BreakerPolicy) -> Self {
        self.config.breaker = policy;
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
        let Self { servers, tls, mut config } = self;
        let (scheme, bootstrap) = parse_servers(&servers)?;
        config.bootstrap = bootstrap;
        config.tls = tls.read(scheme, &servers)?;
        let runtime =
            tokio::runtime::Handle::try_current().map_err(|_none| ConnectError::NoRuntime)?;
        let env = Env::new(runtime, config.seed);
        Client::connect_with(config, env).await
    }
}

/// The files that TLS is set up with.
#[derive(Clone, Debug, Default)]
struct TlsFiles {
    ca: Option<PathBuf>,
    /// Certificate and key.
    identity: Option<(PathBuf, PathBuf)>,
}

impl TlsFiles {
    /// What connections are encrypted with, if scheme or files ask for it.
    fn read(self, scheme: Scheme, servers: &str) -> Result<Option<ClientTlsConfig>, ConnectError> {
        let is_asked = self.ca.is_some() || self.identity.is_some();
        match scheme {
            Scheme::Plain if is_asked => {
                return Err(ConnectError::InvalidOption {
                    what: "servers",
                    value: servers.to_owned(),
                    why: "certificates are of no use in plain text; write https://".to_owned(),
                });
            }
            Scheme::None if !is_asked => return Ok(None),
            Scheme::Plain => return Ok(None),
            Scheme::None | Scheme::Tls => {}
        }
        let mut named = Vec::new();
        let mut pem = |path: PathBuf| {
            let content = std::fs::read(&path).map_err(|error| ConnectError::InvalidOption {
                what: "tls file",
                value: path.display().to_string(),
                why: format!("{error}; name a PEM file that can be read"),
            });
            named.push(path.display().to_string());
            content
        };
        let mut tls = match self.ca {
            Some(path) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem(path)?)),
            None => ClientTlsConfig::new().with_native_roots(),
        };
        if let Some((certificate, key)) = self.identity {
            tls = tls.identity(Identity::from_pem(pem(certificate)?, pem(key)?));
        }
        // Looks at what was read; nothing is connected.
        match Endpoint::from_static("https://localhost").tls_config(tls.clone()) {
            Ok(_) => Ok(Some(tls)),
            Err(error) => Err(ConnectError::InvalidOption {
                what: "tls files",
                value: named.join(", "),
                why: format!("cannot be used: {}", with_causes(&error)),
            }),
        }
    }
}

/// An error with what caused it.
fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// What an address list begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scheme {
    /// Nothing that says whether connections are encrypted.
    None,
    /// `http://`
    Plain,
    /// `https://`
    Tls,
}

/// Reads an address list into `host:port` strings.
fn parse_servers(servers: &str) -> Result<(Scheme, Vec<String>), ConnectError> {
    let invalid = |why: &str| ConnectError::InvalidOption {
        what: "servers",
        value: servers.to_owned(),
        why: why.to_owned(),
    };
    let rest = servers.trim();
    let (scheme, rest) = match rest.split_once("://") {
        Some(("highwater", rest)) => (Scheme::None, rest),
        Some(("http", rest)) => (Scheme::Plain, rest),
        Some(("https", rest)) => (Scheme::Tls, rest),
        Some((scheme, _)) => {
            return Err(invalid(&format!(
                "scheme '{scheme}' is not known; write highwater://host:port,host:port, or https:// for TLS"
            )));
        }
        None => (Scheme::None, rest),
    };
    let mut addresses = Vec::new();
    for part in rest.trim_end_matches('/').split(',') {
        let part = part.trim().trim_end_matches('/');
        // The scheme may stand before every address as well; it is the same for all.
        let part = match part.split_once("://") {
            Some(("https", part)) if scheme == Scheme::Tls => part,
            Some(("http", part)) if scheme == Scheme::Plain => part,
            Some(_) => return Err(invalid("all addresses must have the scheme of the first")),
            None => part,
        };
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
    Ok((scheme, addresses))
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
        let read = |text: &str| parse_servers(text).unwrap().1;
        assert_eq!(read("highwater://h1:7420,h2:7421"), ["h1:7420", "h2:7421"]);
        assert_eq!(read("h1, h2:1 ,h1"), ["h1:7420", "h2:1"]);
        assert_eq!(read("http://127.0.0.1:9/"), ["127.0.0.1:9"]);
        assert_eq!(read("[::1]:5,[::1]"), ["[::1]:5", "[::1]:7420"]);
        let (scheme, addresses) = parse_servers("https://h1:1,https://h2:2,h3:3").unwrap();
        assert_eq!((scheme, addresses.len()), (Scheme::Tls, 3));
        assert_eq!(parse_servers("highwater://h").unwrap().0, Scheme::None);
        assert!(parse_servers("http://h1,https://h2").is_err());
    }

    #[test]
    fn files_for_tls_that_are_missing_wrong_or_not_used_are_named() {
        let read = |tls: TlsFiles, scheme| tls.read(scheme, "h:1").map(|tls| tls.is_some());
        let with_ca = |path: &std::path::Path| TlsFiles { ca: Some(path.into()), identity: None };
        assert!(!read(TlsFiles::default(), Scheme::None).unwrap());
        assert!(!read(TlsFiles::default(), Scheme::Plain).unwrap());
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("nowhere.pem");
        let error = read(with_ca(&missing), Scheme::None).unwrap_err().to_string();
        assert!(error.contains("nowhere.pem"), "{error}");
        let nonsense = folder.path().join("nonsense.pem");
        std::fs::write(&nonsense, "not PEM").unwrap();
        let identity = Some((nonsense.clone(), nonsense.clone()));
        let error = read(TlsFiles { ca: None, identity }, Scheme::Tls).unwrap_err().to_string();
        assert!(error.contains("nonsense.pem"), "{error}");
        let error = read(with_ca(&nonsense), Scheme::Plain).unwrap_err().to_string();
        assert!(error.contains("https://"), "{error}");
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
