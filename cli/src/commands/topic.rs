//! `topic`: create, list, describe, alter, delete, trim, options.
//!
//! Owns: these verbs' calls and tables. Never: checks names or values (the broker does, in one place for all clients).

use highwater_client::{NewTopic, Start};

use super::Session;
use crate::args::Topic;
use crate::failure::Failure;
use crate::output::{self, confirm, human_bytes, human_setting, list, notice, or_dash, table};
use crate::shapes::{OptionShape, TopicListShape, TopicShape, TrimShape};

pub(crate) async fn run(session: &Session, verb: Topic) -> Result<(), Failure> {
    match verb {
        Topic::Create { name, partitions, replication_factor, config, out } => {
            let topic = NewTopic {
                name: name.clone(),
                partitions,
                replication_factor: replication_factor.unwrap_or(0),
                config: config.into_iter().collect(),
            };
            let admin = session.connect().await?.admin();
            let doing = format!("creating '{name}'");
            let topic = session.within(&doing, admin.create_topic(topic)).await?;
            notice(&format!("created topic {name}"));
            output::show(session.format(out), &TopicShape::from(topic), describe)
        }
        Topic::List { internal, out } => {
            let admin = session.connect().await?.admin();
            let topics = session.within("listing topics", admin.list_topics(internal)).await?;
            let topics: Vec<TopicListShape> = topics.into_iter().map(Into::into).collect();
            output::show(session.format(out), &topics, |topics| summary(topics))
        }
        Topic::Describe { name, out } => {
            let admin = session.connect().await?.admin();
            let doing = format!("describing '{name}'");
            let topic = session.within(&doing, admin.get_topic(&name)).await?;
            output::show(session.format(out), &TopicShape::from(topic), describe)
        }
        Topic::Alter { name, config, unset, partitions, out } => {
            let admin = session.connect().await?.admin();
            let doing = format!("changing '{name}'");
            let mut topic = None;
            if !config.is_empty() || !unset.is_empty() {
                let changed = admin.update_topic(&name, config, unset);
                topic = Some(session.within(&doing, changed).await?);
            }
            if let Some(partitions) = partitions {
                let added = admin.add_partitions(&name, partitions);
                topic = Some(session.within(&doing, added).await?);
            }
            let topic = match topic {
                Some(topic) => topic,
                None => session.within(&doing, admin.get_topic(&name)).await?,
            };
            notice(&format!("changed topic {name}"));
            output::show(session.format(out), &TopicShape::from(topic), describe)
        }
        Topic::Delete { name } => {
            confirm(session.yes, &format!("deletes topic '{name}' and all its records"))?;
            let admin = session.connect().await?.admin();
            session.within(&format!("deleting '{name}'"), admin.delete_topic(&name)).await?;
            notice(&format!("deleted topic {name}"));
            Ok(())
        }
        Topic::Trim { name, partition, to, out } => {
            confirm(
                session.yes,
                &format!("deletes records of partition {partition} of topic '{name}'"),
            )?;
            let admin = session.connect().await?.admin();
            let doing = format!("trimming '{name}'");
            let trimmed = admin.trim(&name, partition, Start::from(to));
            let log_start_offset = session.within(&doing, trimmed).await?;
            let trim = TrimShape { topic: name, partition, log_start_offset };
            output::show(session.format(out), &trim, |trim| {
                format!("partition {} begins at offset {}\n", trim.partition, trim.log_start_offset)
            })
        }
        Topic::Options { out } => {
            let admin = session.connect().await?.admin();
            let options = session.within("listing options", admin.topic_options()).await?;
            let options: Vec<OptionShape> = options.into_iter().map(Into::into).collect();
            output::show(session.format(out), &options, |options| option_table(options))
        }
    }
}

fn summary(topics: &[TopicListShape]) -> String {
    table(
        &["name", "partitions", "replicas", "configured"],
        topics.iter().map(|topic| {
            let config: Vec<String> =
                topic.config.iter().map(|(key, value)| format!("{key}={value}")).collect();
            [
                topic.name.clone(),
                topic.partitions.to_string(),
                topic.replication_factor.to_string(),
                list(&config),
            ]
        }),
    )
}

fn describe(topic: &TopicShape) -> String {
    let partitions = table(
        &["partition", "leader", "epoch", "replicas", "in sync", "from", "to", "size", "state"],
        topic.partitions.iter().map(|partition| {
            [
                partition.partition.to_string(),
                or_dash(partition.leader),
                partition.epoch.to_string(),
                list(&partition.replicas),
                list(&partition.in_sync),
                partition.log_start_offset.to_string(),
                partition.high_watermark.to_string(),
                human_bytes(partition.size_bytes),
                partition.state.clone(),
            ]
        }),
    );
    let config = table(
        &["key", "value"],
        topic.config.iter().map(|(key, value)| [key.clone(), human_setting(key, value)]),
    );
    let quarantined = topic.partitions.iter().flat_map(|partition| {
        partition.quarantined.iter().map(move |replica| {
            [
                partition.partition.to_string(),
                replica.node.to_string(),
                replica.why.clone(),
                or_dash(Some(&replica.repair).filter(|repair| !repair.is_empty())),
            ]
        })
    });
    let quarantined: Vec<[String; 4]> = quarantined.collect();
    let quarantined = match quarantined.is_empty() {
        true => String::new(),
        false => table(&["partition", "node", "quarantined because", "repair"], quarantined) + "\n",
    };
    format!("topic {}, id {}\n\n{partitions}\n{quarantined}{config}", topic.name, topic.id)
}

fn option_table(options: &[OptionShape]) -> String {
    table(
        &["key", "default", "bounds", "description"],
        options.iter().map(|option| {
            [
                option.key.clone(),
                human_setting(&option.key, &option.default),
                option.bounds.clone(),
                option.description.clone(),
            ]
        }),
    )
}
