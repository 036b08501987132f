//! Profiles: named sets of broker addresses, and files for TLS, in a small TOML file.
//!
//! Owns: that file. Never: connects.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use highwater_client::{Client, ClientBuilder};
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
    /// `host:port`, comma separated; `https://` before it for TLS.
    pub(crate) servers: String,
    /// Authorities to believe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ca_file: Option<PathBuf>,
    /// The certificate to show.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cert_file: Option<PathBuf>,
    /// Its key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) key_file: Option<PathBuf>,
}

impl Profile {
    /// With the files that the command line names, which win.
    pub(crate) fn with_tls(self, tls: args::Tls) -> Self {
        Self {
            servers: self.servers,
            ca_file: tls.ca_file.or(self.ca_file),
            cert_file: tls.cert_file.or(self.cert_file),
            key_file: tls.key_file.or(self.key_file),
        }
    }

    /// A client that is set up with all of it.
    pub(crate) fn builder(&self) -> Result<ClientBuilder, Failure> {
        let mut builder = Client::builder().servers(self.servers.as_str());
        if let Some(path) = &self.ca_file {
            builder = builder.tls_ca_file(path);
        }
        match (&self.cert_file, &self.key_file) {
            (None, None) => Ok(builder),
            (Some(certificate), Some(key)) => Ok(builder.tls_identity_files(certificate, key)),
            _ => Err(Failure::new(Exit::Usage, "a certificate goes with its key")
                .mend("give both --cert-file and --key-file, or none")),
        }
    }
}

impl From<String> for Profile {
    fn from(servers: String) -> Self {
        Self { servers, ca_file: None, cert_file: None, key_file: None }
    }
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

/// What to connect to: `--server`, then `--profile`, then `HIGHWATER_SERVERS`, then the profile in use, then loopback.
pub(crate) fn servers(
    server: Option<String>,
    profile: Option<&str>,
    variable: Option<String>,
    load: impl Fn() -> Result<Profiles, Failure>,
) -> Result<Profile, Failure> {
    if let Some(server) = server {
        return Ok(server.into());
    }
    if let Some(name) = profile {
        return Ok(load()?.get(name)?.clone());
    }
    if let Some(variable) = variable.filter(|value| !value.is_empty()) {
        return Ok(variable.into());
    }
    let profiles = load()?;
    match &profiles.current {
        Some(name) => Ok(profiles.get(name)?.clone()),
        None => Ok("127.0.0.1:7420".to_owned().into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two() -> Profiles {
        let profile = |servers: &str| Profile::from(servers.to_owned());
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
                .servers
        };
        assert_eq!(chosen(Some("s:1"), Some("b"), Some("v:1")), "s:1");
        assert_eq!(chosen(None, Some("b"), Some("v:1")), "b:1");
        assert_eq!(chosen(None, None, Some("v:1")), "v:1");
        assert_eq!(chosen(None, None, None), "a:1");
        let default = servers(None, None, None, || Ok(Profiles::default())).unwrap();
        assert_eq!(default.servers, "127.0.0.1:7420");
    }

    #[test]
    fn files_named_on_the_command_line_win_over_those_of_the_profile() {
        let profile = Profile { ca_file: Some("a.pem".into()), ..Profile::from("h".to_owned()) };
        let tls = args::Tls { cert_file: Some("c.pem".into()), ..args::Tls::default() };
        let profile = profile.with_tls(tls);
        assert_eq!(profile.ca_file.as_deref(), Some(Path::new("a.pem")));
        assert_eq!(profile.builder().unwrap_err().exit_code(), 2, "a certificate without its key");
        let tls = args::Tls { ca_file: Some("b.pem".into()), ..args::Tls::default() };
        assert_eq!(profile.with_tls(tls).ca_file.as_deref(), Some(Path::new("b.pem")));
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
