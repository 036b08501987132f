//! Profiles: named sets of broker addresses in a small TOML file.
//!
//! Owns: that file. Never: connects.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::args;
use crate::failure::{Exit, Failure};

/// The file's content.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Profiles {
    /// The profile in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) current: Option<String>,
    /// All profiles by name.
    #[serde(default)]
    pub(crate) profiles: BTreeMap<String, Profile>,
}

/// One set of addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Profile {
    /// `host:port`, comma separated.
    pub(crate) servers: String,
}

impl Profiles {
    /// Reads the file; one that does not exist is empty.
    pub(crate) fn load(path: &Path) -> Result<Self, Failure> {
        match fs::read_to_string(path) {
            Ok(text) => toml::from_str(&text).map_err(|error| {
                Failure::error(format!("{}: {}", path.display(), error.message()))
                    .mend("correct the file, or delete it and create the profiles again")
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(Failure::error(format!("{}: {error}", path.display()))),
        }
    }

    /// Replaces the file in one step.
    pub(crate) fn save(&self, path: &Path) -> Result<(), Failure> {
        let failed = |error: std::io::Error| Failure::error(format!("{}: {error}", path.display()));
        let text = toml::to_string(self).map_err(|error| Failure::error(error.to_string()))?;
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(failed)?;
        }
        let new = path.with_extension("toml.new");
        fs::write(&new, text).map_err(failed)?;
        fs::rename(&new, path).map_err(failed)
    }

    /// The profile of this name.
    pub(crate) fn get(&self, name: &str) -> Result<&Profile, Failure> {
        self.profiles.get(name).ok_or_else(|| {
            Failure::new(Exit::NotFound, format!("there is no profile '{name}'"))
                .mend("'broker-cli profile list' shows what exists")
        })
    }
}

/// Where profiles are kept.
pub(crate) fn file() -> Result<PathBuf, Failure> {
    args::config_file().ok_or_else(|| {
        Failure::error("there is no place for profiles: HOME is not set")
            .mend("set HIGHWATER_CLI_CONFIG to a file's path")
    })
}

/// The addresses to use: `--server`, then `--profile`, then `HIGHWATER_SERVERS`, then the profile in use, then loopback.
pub(crate) fn servers(
    server: Option<String>,
    profile: Option<&str>,
    variable: Option<String>,
    load: impl Fn() -> Result<Profiles, Failure>,
) -> Result<String, Failure> {
    if let Some(server) = server {
        return Ok(server);
    }
    if let Some(name) = profile {
        return Ok(load()?.get(name)?.servers.clone());
    }
    if let Some(variable) = variable.filter(|value| !value.is_empty()) {
        return Ok(variable);
    }
    let profiles = load()?;
    match &profiles.current {
        Some(name) => Ok(profiles.get(name)?.servers.clone()),
        None => Ok("127.0.0.1:7420".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two() -> Profiles {
        let profile = |servers: &str| Profile { servers: servers.to_owned() };
        Profiles {
            current: Some("a".to_owned()),
            profiles: [("a".to_owned(), profile("a:1")), ("b".to_owned(), profile("b:1"))].into(),
        }
    }

    #[test]
    fn flag_beats_profile_beats_environment_beats_profile_in_use_beats_default() {
        let chosen = |server: Option<&str>, profile, variable: Option<&str>| {
            servers(server.map(str::to_owned), profile, variable.map(str::to_owned), || Ok(two()))
                .unwrap()
        };
        assert_eq!(chosen(Some("s:1"), Some("b"), Some("v:1")), "s:1");
        assert_eq!(chosen(None, Some("b"), Some("v:1")), "b:1");
        assert_eq!(chosen(None, None, Some("v:1")), "v:1");
        assert_eq!(chosen(None, None, None), "a:1");
        let default = servers(None, None, None, || Ok(Profiles::default())).unwrap();
        assert_eq!(default, "127.0.0.1:7420");
    }

    #[test]
    fn profiles_survive_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep").join("cli.toml");
        assert_eq!(Profiles::load(&path).unwrap(), Profiles::default());
        two().save(&path).unwrap();
        assert_eq!(Profiles::load(&path).unwrap(), two());
        fs::write(&path, "current = 3").unwrap();
        assert_eq!(Profiles::load(&path).unwrap_err().exit_code(), 1);
    }

    #[test]
    fn an_unknown_profile_is_not_found() {
        let failure = servers(None, Some("c"), None, || Ok(two())).unwrap_err();
        assert_eq!(failure.exit_code(), 3);
    }
}
