//! `service`: list, describe, watch.
//!
//! Owns: these verbs' calls and tables, and what has changed between two lists. Never: says who lives (leases do).

use std::collections::BTreeMap;

use highwater_client::Instance;

use super::Session;
use crate::args::{Out, Service};
use crate::failure::{Exit, Failure};
use crate::output::{self, Format, human_duration_ms, or_dash, table};
use crate::shapes::{ChangeShape, InstanceShape, ServiceShape};

pub(crate) async fn run(session: &Session, verb: Service) -> Result<(), Failure> {
    match verb {
        Service::List { service, out } => {
            let instances = listed(session, service.as_deref()).await?;
            output::show(session.format(out), &instances, |instances| lines(instances))
        }
        Service::Describe { name, out } => {
            let instances = listed(session, Some(&name)).await?;
            if instances.is_empty() {
                let what = format!("service '{name}' has no instances");
                return Err(Failure::new(Exit::NotFound, what)
                    .mend("'broker-cli service list' shows every service that has some"));
            }
            let shape = ServiceShape { service: name, instances };
            output::show(session.format(out), &shape, |shape| lines(&shape.instances))
        }
        Service::Watch { name, count, out } => watch(session, &name, count, out).await,
    }
}

async fn listed(session: &Session, service: Option<&str>) -> Result<Vec<InstanceShape>, Failure> {
    let registry = session.connect().await?.registry();
    let instances = session.within("listing services", registry.list(service)).await?;
    Ok(instances.iter().map(Into::into).collect())
}

async fn watch(session: &Session, name: &str, count: Option<u64>, out: Out) -> Result<(), Failure> {
    let registry = session.connect().await?.registry();
    let doing = format!("watching service '{name}'");
    let mut instances = session.within(&doing, registry.watch(name)).await?;
    let format = session.format(out);
    let mut left = count.unwrap_or(u64::MAX);
    let mut known = BTreeMap::new();
    let mut list = instances.current();
    loop {
        for change in changes(&mut known, &list) {
            if left == 0 {
                return Ok(());
            }
            left -= 1;
            print(format, &change)?;
        }
        if left == 0 {
            return Ok(());
        }
        list = match instances.changed().await {
            Some(list) => list,
            // The runtime ends with this process.
            None => return Ok(()),
        };
    }
}

/// What a list has that was not known, and the other way round; it is known from then on.
fn changes(known: &mut BTreeMap<String, Instance>, list: &[Instance]) -> Vec<ChangeShape> {
    let now: BTreeMap<String, Instance> =
        list.iter().map(|instance| (instance.id.clone(), instance.clone())).collect();
    let before = std::mem::replace(known, now);
    let shape = |change, instance: &Instance| ChangeShape { change, instance: instance.into() };
    let gone = before.values().filter(|instance| !known.contains_key(&instance.id));
    let mut changes: Vec<_> = gone.map(|instance| shape("down", instance)).collect();
    for instance in known.values() {
        match before.get(&instance.id) {
            None => changes.push(shape("up", instance)),
            Some(before) if before != instance => changes.push(shape("changed", instance)),
            Some(_) => {}
        }
    }
    changes
}

fn print(format: Format, change: &ChangeShape) -> Result<(), Failure> {
    let text = match format {
        Format::Table => {
            let InstanceShape { id, address, attributes, .. } = &change.instance;
            let address = or_dash(Some(address).filter(|text| !text.is_empty()));
            format!("{} {id} {address} {}\n", change.change, pairs(attributes))
        }
        Format::Json => serde_json::to_string(change).map_err(unprintable)? + "\n",
        Format::Yaml => {
            format!("---\n{}", serde_yaml_ng::to_string(change).map_err(unprintable)?)
        }
    };
    output::print(&text)
}

fn unprintable(error: impl std::fmt::Display) -> Failure {
    Failure::error(format!("cannot print: {error}"))
}

fn lines(instances: &[InstanceShape]) -> String {
    table(
        &["service", "id", "address", "lease", "attributes"],
        instances.iter().map(|instance| {
            [
                instance.service.clone(),
                instance.id.clone(),
                or_dash(Some(&instance.address).filter(|text| !text.is_empty())),
                human_duration_ms(instance.lease_ms),
                pairs(&instance.attributes),
            ]
        }),
    )
}

fn pairs(attributes: &BTreeMap<String, String>) -> String {
    let pairs: Vec<String> =
        attributes.iter().map(|(key, value)| format!("{key}={value}")).collect();
    or_dash(Some(pairs.join(",")).filter(|text| !text.is_empty()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn between_two_lists_instances_come_change_and_go() {
        let instance = |id: &str, address: &str| Instance {
            service: "pricing".into(),
            id: id.into(),
            address: address.into(),
            attributes: BTreeMap::new(),
            lease: Duration::from_secs(10),
        };
        let mut known = BTreeMap::new();
        let mut told = |list: &[Instance]| -> Vec<String> {
            let changes = changes(&mut known, list);
            changes.iter().map(|it| format!("{} {}", it.change, it.instance.id)).collect()
        };
        assert_eq!(told(&[instance("a", "1"), instance("b", "1")]), ["up a", "up b"]);
        assert_eq!(told(&[instance("a", "1"), instance("b", "1")]), [""; 0]);
        assert_eq!(
            told(&[instance("b", "2"), instance("c", "1")]),
            ["down a", "changed b", "up c"]
        );
        assert_eq!(told(&[]), ["down b", "down c"]);
    }
}
