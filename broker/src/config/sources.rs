//! Where values come from: the file, the environment and the flags, each turned into plain assignments of text to keys.
//!
//! Owns: the flags, the environment's names, the file's shape. Never: what a key means.

use std::path::{Path, PathBuf};

use super::{ConfigError, Origin, keys, read_text};

/// Prefix of the environment variables that are ours. Everything that begins with it must be a known key.
const ENVIRONMENT_PREFIX: &str = "HIGHWATER__";
/// Ending of a variable that names a file which holds the value, for secrets.
const FILE_SUFFIX: &str = "_FILE";

/// One value for one key.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Assignment {
    pub(super) key: String,
    pub(super) value: String,
    pub(super) origin: Origin,
}

/// Highwater's broker: one node of an event streaming cluster.
#[derive(Debug, clap::Parser)]
#[command(name = "broker", version)]
pub struct Invocation {
    /// What to do; without it the broker runs.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// What to run it with.
    #[command(flatten)]
    pub flags: Flags,
}

/// What the binary does beside running the broker.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Looks at the configuration without starting anything.
    Config {
        /// What to do with it.
        #[command(subcommand)]
        command: ConfigCommand,
    },
}

/// What can be done with a configuration.
#[derive(Clone, Copy, Debug, clap::Subcommand)]
pub enum ConfigCommand {
    /// Checks it and says what is wrong; exit code 2 if anything is.
    Check,
    /// Prints every key with its value and where that came from.
    Print,
}

/// The flags. A flag wins over the environment, which wins over the file.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Flags {
    /// Configuration file (TOML)
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// This node's id (node.id) [default: assigned by the cluster]
    #[arg(long, global = true, value_name = "ID")]
    pub node_id: Option<String>,
    /// The rack this node stands in (node.rack) [default: none]
    #[arg(long, global = true, value_name = "NAME")]
    pub rack: Option<String>,
    /// Where everything is kept (node.data_dir) [default: data]
    #[arg(long, global = true, value_name = "DIR")]
    pub data_dir: Option<String>,
    /// Internal addresses of the founding nodes, or of members to join (node.seeds) [default: none, a cluster of one]
    #[arg(long, global = true, value_name = "HOST:PORT,...")]
    pub seeds: Option<String>,
    /// Where clients connect (listen.client) [default: 127.0.0.1:7420]
    #[arg(long, global = true, value_name = "HOST:PORT")]
    pub listen: Option<String>,
    /// The address clients are told (listen.advertise) [default: the bound address]
    #[arg(long, global = true, value_name = "HOST:PORT")]
    pub advertise: Option<String>,
    /// Where other nodes connect (listen.internal) [default: 127.0.0.1:7421]
    #[arg(long, global = true, value_name = "HOST:PORT")]
    pub internal_listen: Option<String>,
    /// The address other nodes are told (listen.internal_advertise) [default: the bound address]
    #[arg(long, global = true, value_name = "HOST:PORT")]
    pub internal_advertise: Option<String>,
    /// Where health and metrics are served (listen.http) [default: 127.0.0.1:7422]
    #[arg(long, global = true, value_name = "HOST:PORT")]
    pub http_listen: Option<String>,
    /// Sets any key of the configuration; may be repeated
    #[arg(long = "set", global = true, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// Every assignment, the weakest first.
pub(super) fn collect(
    flags: &Flags,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<Vec<Assignment>, ConfigError> {
    let mut all = match &flags.config {
        Some(path) => from_file(path)?,
        None => Vec::new(),
    };
    all.extend(from_environment(environment)?);
    all.extend(from_flags(flags)?);
    Ok(all)
}

fn from_flags(flags: &Flags) -> Result<Vec<Assignment>, ConfigError> {
    let named = [
        ("node.id", "--node-id", &flags.node_id),
        ("node.rack", "--rack", &flags.rack),
        ("node.data_dir", "--data-dir", &flags.data_dir),
        ("node.seeds", "--seeds", &flags.seeds),
        ("listen.client", "--listen", &flags.listen),
        ("listen.advertise", "--advertise", &flags.advertise),
        ("listen.internal", "--internal-listen", &flags.internal_listen),
        ("listen.internal_advertise", "--internal-advertise", &flags.internal_advertise),
        ("listen.http", "--http-listen", &flags.http_listen),
    ];
    let mut all = Vec::new();
    // Before the named flags: who writes both means the named one.
    for set in &flags.set {
        let origin = Origin::Flag("--set".to_owned());
        let Some((key, value)) = set.split_once('=') else {
            return Err(ConfigError::InvalidValue {
                key: "--set".to_owned(),
                value: set.clone(),
                place: origin,
                why: "takes KEY=VALUE, for example raft.tick_ms=50".to_owned(),
            });
        };
        all.push(Assignment { key: key.trim().to_owned(), value: value.to_owned(), origin });
    }
    all.extend(named.into_iter().filter_map(|(key, flag, value)| {
        let value = value.clone()?;
        Some(Assignment { key: key.to_owned(), value, origin: Origin::Flag(flag.to_owned()) })
    }));
    Ok(all)
}

fn from_environment(
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<Vec<Assignment>, ConfigError> {
    let mut all = Vec::new();
    for (name, value) in environment {
        let Some(tail) = name.strip_prefix(ENVIRONMENT_PREFIX) else { continue };
        let origin = Origin::Environment(name.clone());
        let key_of = |tail: &str| tail.to_ascii_lowercase().replace("__", ".");
        // A key whose own name ends like this holds a path, not what is in the file.
        let value_is_in_file =
            tail.strip_suffix(FILE_SUFFIX).filter(|_| keys::find(&key_of(tail)).is_none());
        let (tail, value) = match value_is_in_file {
            Some(tail) => {
                let text = read_text(Path::new(&value), &origin)?;
                (tail, text.trim_end_matches(['\n', '\r']).to_owned())
            }
            None => (tail, value),
        };
        all.push(Assignment { key: key_of(tail), value, origin });
    }
    // The environment has no order; errors should.
    all.sort_by(|a, b| a.key.cmp(&b.key));
    Ok(all)
}

fn from_file(path: &Path) -> Result<Vec<Assignment>, ConfigError> {
    let flag = Origin::Flag("--config".to_owned());
    let text = read_text(path, &flag)?;
    let table: toml::Table = toml::from_str(&text).map_err(|source| ConfigError::NotToml {
        path: path.to_owned(),
        source: Box::new(source),
    })?;
    let mut all = Vec::new();
    let origin = Origin::File(path.to_owned());
    for (section, value) in &table {
        match value {
            toml::Value::Array(listeners) if section == "listeners" => {
                for listener in listeners {
                    named_listener(listener, &origin, &mut all)?;
                }
            }
            other => flatten(section, other, &origin, &mut all)?,
        }
    }
    Ok(all)
}

/// One `[[listeners]]` table becomes `listeners.NAME.bind` and `listeners.NAME.advertise`.
fn named_listener(
    listener: &toml::Value,
    origin: &Origin,
    all: &mut Vec<Assignment>,
) -> Result<(), ConfigError> {
    let name = listener.get("name").and_then(toml::Value::as_str).ok_or_else(|| {
        ConfigError::InvalidValue {
            key: "listeners".to_owned(),
            value: listener.to_string(),
            place: origin.clone(),
            why: "every [[listeners]] needs name = \"...\" and bind = \"HOST:PORT\"".to_owned(),
        }
    })?;
    for (field, value) in listener.as_table().into_iter().flatten() {
        if field != "name" {
            flatten(&format!("listeners.{name}.{field}"), value, origin, all)?;
        }
    }
    Ok(())
}

/// Tables become dotted keys, lists of text are joined with commas, everything else is written as text.
fn flatten(
    key: &str,
    value: &toml::Value,
    origin: &Origin,
    all: &mut Vec<Assignment>,
) -> Result<(), ConfigError> {
    let refuse = |why: &str| {
        Err(ConfigError::InvalidValue {
            key: key.to_owned(),
            value: value.to_string(),
            place: origin.clone(),
            why: why.to_owned(),
        })
    };
    let text = match value {
        toml::Value::Table(table) => {
            for (name, inner) in table {
                flatten(&format!("{key}.{name}"), inner, origin, all)?;
            }
            return Ok(());
        }
        toml::Value::String(text) => text.clone(),
        toml::Value::Integer(number) => number.to_string(),
        toml::Value::Boolean(flag) => flag.to_string(),
        toml::Value::Array(items) => {
            let texts: Option<Vec<&str>> = items.iter().map(toml::Value::as_str).collect();
            match texts {
                Some(texts) => texts.join(","),
                None => return refuse("a list holds text only"),
            }
        }
        toml::Value::Float(_) | toml::Value::Datetime(_) => {
            return refuse("takes text, a whole number, true or false, or a list of text");
        }
    };
    all.push(Assignment { key: key.to_owned(), value: text, origin: origin.clone() });
    Ok(())
}
