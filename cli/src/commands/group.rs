//! `group`: list, describe, lag, reset-offsets, delete.
//!
//! Owns: these verbs' calls and tables. Never: says who reads what (the coordinator does).

use std::collections::{BTreeMap, BTreeSet};

use highwater_client::{Admin, Start};

use super::Session;
use crate::args::{Group, Reset};
use crate::failure::{Exit, Failure};
use crate::output::{self, confirm, human_duration_ms, list, notice, or_dash, table};
use crate::shapes::{GroupListShape, GroupShape, LagShape, MovedShape, ResetShape};

pub(crate) async fn run(session: &Session, verb: Group) -> Result<(), Failure> {
    match verb {
        Group::List { out } => {
            let admin = session.connect().await?.admin();
            let groups = session.within("listing groups", admin.list_groups()).await?;
            let groups: Vec<GroupListShape> = groups.into_iter().map(Into::into).collect();
            output::show(session.format(out), &groups, |groups| summary(groups))
        }
        Group::Describe { name, out } => {
            let admin = session.connect().await?.admin();
            let doing = format!("describing group '{name}'");
            let group = session.within(&doing, admin.describe_group(&name)).await?;
            output::show(session.format(out), &GroupShape::from(group), describe)
        }
        Group::Lag { name, out } => {
            let admin = session.connect().await?.admin();
            let doing = format!("looking how far group '{name}' has come");
            let group = session.within(&doing, admin.describe_group(&name)).await?;
            output::show(session.format(out), &LagShape::from(group), lag)
        }
        Group::ResetOffsets(reset) => reset_offsets(session, reset).await,
        Group::Delete { name } => {
            confirm(session.yes, &format!("deletes group '{name}' and its progress"))?;
            let admin = session.connect().await?.admin();
            let doing = format!("deleting group '{name}'");
            session.within(&doing, admin.delete_group(&name)).await?;
            notice(&format!("deleted group {name}"));
            Ok(())
        }
    }
}

async fn reset_offsets(session: &Session, reset: Reset) -> Result<(), Failure> {
    let admin = session.connect().await?.admin();
    let doing = format!("resetting group '{}'", reset.name);
    let moved = session.within(&doing, moves(&admin, &reset)).await?;
    if !reset.execute {
        notice("nothing was changed; --execute does it");
    }
    let shape = ResetShape { group: reset.name, executed: reset.execute, offsets: moved };
    output::show(session.format(reset.out), &shape, |shape| {
        table(
            &["topic", "partition", "from", "to"],
            shape.offsets.iter().map(|moved| {
                [
                    moved.topic.clone(),
                    moved.partition.to_string(),
                    or_dash(moved.from),
                    moved.to.to_string(),
                ]
            }),
        )
    })
}

/// Moves the progress, or says what would be moved.
async fn moves(admin: &Admin, reset: &Reset) -> Result<Vec<MovedShape>, Failure> {
    let before = admin.group_offsets(&reset.name).await?;
    let topics: BTreeSet<String> = match &reset.topic {
        Some(topic) => BTreeSet::from([topic.clone()]),
        None => before.iter().map(|offset| offset.topic.clone()).collect(),
    };
    if topics.is_empty() {
        let what = format!("group '{}' has no progress", reset.name);
        return Err(Failure::new(Exit::NotFound, what)
            .mend("name a topic with --topic to begin with one, or look with 'group list'"));
    }
    let before: BTreeMap<(String, u32), i64> = before
        .into_iter()
        .map(|offset| ((offset.topic, offset.partition), offset.offset))
        .collect();
    let mut moved = Vec::new();
    for topic in topics {
        let (to, dry_run) = (Start::from(reset.to), !reset.execute);
        let after =
            admin.reset_group_offsets(&reset.name, &topic, &reset.partitions, to, dry_run).await?;
        moved.extend(after.into_iter().map(|offset| MovedShape {
            from: before.get(&(offset.topic.clone(), offset.partition)).copied(),
            topic: offset.topic,
            partition: offset.partition,
            to: offset.offset,
        }));
    }
    Ok(moved)
}

fn summary(groups: &[GroupListShape]) -> String {
    table(
        &["group", "state", "members", "coordinator"],
        groups.iter().map(|group| {
            [
                group.group.clone(),
                group.state.clone(),
                group.members.to_string(),
                group.coordinator.to_string(),
            ]
        }),
    )
}

fn describe(group: &GroupShape) -> String {
    let members = table(
        &["member", "static id", "client", "connected", "topics", "partitions"],
        group.members.iter().map(|member| {
            [
                member.member_id.clone(),
                or_dash(Some(&member.static_id).filter(|id| !id.is_empty())),
                member.client_id.clone(),
                if member.connected { "yes" } else { "no" }.to_owned(),
                list(&member.topics),
                member.partitions.to_string(),
            ]
        }),
    );
    let partitions = table(
        &["topic", "partition", "member", "committed", "from", "to", "lag", "behind", "status"],
        group.partitions.iter().map(|partition| {
            [
                partition.topic.clone(),
                partition.partition.to_string(),
                or_dash(partition.member_id.as_ref()),
                or_dash(partition.committed_offset),
                partition.log_start_offset.to_string(),
                partition.high_watermark.to_string(),
                partition.lag.to_string(),
                behind(partition.lag_ms),
                partition.status.clone(),
            ]
        }),
    );
    let (name, state) = (&group.group, &group.state);
    let (epoch, coordinator) = (group.epoch, group.coordinator);
    format!(
        "group {name}, {state}, epoch {epoch}, coordinated by node {coordinator}\n\n{members}\n{partitions}"
    )
}

fn lag(lag: &LagShape) -> String {
    let partitions = table(
        &["topic", "partition", "committed", "to", "lag", "behind"],
        lag.partitions.iter().map(|partition| {
            [
                partition.topic.clone(),
                partition.partition.to_string(),
                or_dash(partition.committed_offset),
                partition.high_watermark.to_string(),
                partition.lag.to_string(),
                behind(partition.lag_ms),
            ]
        }),
    );
    let total = format!("{} records, {} behind", lag.lag, behind(lag.lag_ms));
    format!("{partitions}\nin all: {total}\n")
}

fn behind(lag_ms: Option<i64>) -> String {
    or_dash(lag_ms.map(|ms| human_duration_ms(u64::try_from(ms).unwrap_or(0))))
}
