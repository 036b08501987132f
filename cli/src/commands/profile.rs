//! `profile`: create, use, list, delete.
//!
//! Owns: these verbs. Never: connects.

use std::path::PathBuf;

use crate::args::{Profile as Verb, Tls};
use crate::failure::{Exit, Failure};
use crate::output::{self, Format, notice, table};
use crate::profile::{Profile, Profiles, file};
use crate::shapes::ProfileShape;

pub(crate) fn run(verb: Verb, tls: Tls, output: Option<Format>) -> Result<(), Failure> {
    let path = file()?;
    let mut profiles = Profiles::load(&path)?;
    match verb {
        Verb::Create { name, servers } => {
            if profiles.profiles.contains_key(&name) {
                return Err(Failure::error(format!("there is a profile '{name}' already"))
                    .mend(format!("'broker-cli profile delete {name}' first")));
            }
            // The profile is used from other folders than this one.
            let profile = Profile::from(servers).with_tls(absolute(tls));
            profile.builder()?;
            profiles.profiles.insert(name.clone(), profile);
            profiles.current.get_or_insert_with(|| name.clone());
            profiles.save(&path)?;
            notice(&format!("created profile {name}"));
        }
        Verb::Use { name } => {
            profiles.get(&name)?;
            profiles.current = Some(name.clone());
            profiles.save(&path)?;
            notice(&format!("using profile {name}"));
        }
        Verb::Delete { name } => {
            if profiles.profiles.remove(&name).is_none() {
                return Err(Failure::new(Exit::NotFound, format!("there is no profile '{name}'")));
            }
            if profiles.current.as_deref() == Some(name.as_str()) {
                profiles.current = None;
            }
            profiles.save(&path)?;
            notice(&format!("deleted profile {name}"));
        }
        Verb::List { out } => {
            let current = profiles.current.as_deref();
            let rows: Vec<ProfileShape> = profiles
                .profiles
                .iter()
                .map(|(name, profile)| ProfileShape {
                    name: name.clone(),
                    servers: profile.servers.clone(),
                    current: current == Some(name.as_str()),
                })
                .collect();
            return output::show(out.format.or(output).unwrap_or_default(), &rows, |rows| {
                table(
                    &["name", "servers", "in use"],
                    rows.iter().map(|row| {
                        let used = if row.current { "yes" } else { "" };
                        [row.name.clone(), row.servers.clone(), used.to_owned()]
                    }),
                )
            });
        }
    }
    Ok(())
}

fn absolute(tls: Tls) -> Tls {
    let absolute = |path: PathBuf| std::path::absolute(&path).unwrap_or(path);
    Tls {
        ca_file: tls.ca_file.map(absolute),
        cert_file: tls.cert_file.map(absolute),
        key_file: tls.key_file.map(absolute),
    }
}
