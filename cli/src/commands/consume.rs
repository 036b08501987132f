//! `consume`: prints records, up to the end or as they come.
//!
//! Owns: where to stop and how a record is printed. Never: reconnects (the client does).

use std::collections::BTreeMap;
use std::io::{self, BufWriter, Write};

use futures::future::try_join_all;
use futures::{FutureExt, StreamExt};
use highwater_client::{Admin, Event, Events, FetchOptions, Start};

use super::Session;
use crate::args::{Consume, PositionOrFormat};
use crate::failure::{Exit, Failure};
use crate::output::{Format, quiet_when_closed};
use crate::position::Position;
use crate::shapes::RecordShape;
use crate::template::Template;

/// How records are printed.
#[derive(Debug)]
enum Style {
    Template(Template),
    Table,
    Json,
    Yaml,
}

pub(crate) async fn run(session: &Session, consume: Consume) -> Result<(), Failure> {
    let (position, format) = choose(&consume.position_or_format)?;
    let style = style(format.or(session.output()), consume.format.as_deref())?;
    if let Some(group) = &consume.group {
        return as_member(session, &consume, group, position, &style).await;
    }
    let client = session.connect().await?;
    let admin = client.admin();
    let topic = session.within("looking for the topic", admin.get_topic(&consume.topic)).await?;
    let mut partitions = consume.partitions.clone();
    if partitions.is_empty() {
        partitions = topic.partitions.iter().map(|partition| partition.partition).collect();
    }
    if let Some(missing) = partitions
        .iter()
        .find(|number| !topic.partitions.iter().any(|partition| partition.partition == **number))
    {
        let count = topic.partitions.len();
        let what = format!("'{}' has no partition {missing}: it has {count}", consume.topic);
        return Err(Failure::new(Exit::NotFound, what));
    }
    let start = Start::from(position);
    let ends = if consume.follow {
        None
    } else {
        let found = ends(&admin, &consume.topic, &partitions, start);
        Some(session.within("looking for the end", found).await?)
    };
    let mut stop = Stop { ends, left: consume.number };
    if stop.reached() {
        return Ok(());
    }
    let mut builder = client.consumer(&consume.topic).start(start).stall_timeout(session.timeout);
    builder = builder.rack(&consume.rack);
    if !consume.partitions.is_empty() {
        builder = builder.partitions(consume.partitions);
    }
    let events = session.within("subscribing", builder.subscribe()).await?;
    print(events, &style, &mut stop, consume.follow).await
}

/// Reads as a member of a group, until interrupted or as many records as asked for were printed.
async fn as_member(
    session: &Session,
    consume: &Consume,
    group: &str,
    position: Position,
    style: &Style,
) -> Result<(), Failure> {
    let client = session.connect().await?;
    let builder = client.consumer(&consume.topic).stall_timeout(session.timeout).group(group);
    let subscribing = builder.start(position.into()).rack(&consume.rack).subscribe();
    let mut events = session.within("joining the group", subscribing).await?;
    let mut out = BufWriter::with_capacity(1 << 16, io::stdout());
    head(style, &mut out)?;
    let mut left = consume.number;
    let mut outcome = Ok(());
    while left != Some(0) && outcome.is_ok() {
        // What was printed counts as done when the next one is asked for: it must be out by then.
        quiet_when_closed(out.flush())?;
        let event = tokio::select! {
            event = events.next() => event,
            _ = tokio::signal::ctrl_c() => break,
        };
        match event {
            Some(Ok(event)) => {
                outcome = quiet_when_closed(write_event(&event, style, &mut out));
                left = left.map(|left| left - 1);
            }
            Some(Err(error)) if error.is_retriable() => crate::output::notice(&error.to_string()),
            Some(Err(error)) => outcome = Err(error.into()),
            None => break,
        }
    }
    let flushed = quiet_when_closed(out.flush());
    // What could not be printed is not done: then the group only hears that its member is gone.
    if outcome.is_ok() && flushed.is_ok() {
        events.close().await;
    }
    outcome.and(flushed)
}

/// What stands above a table.
fn head(style: &Style, out: &mut impl Write) -> Result<(), Failure> {
    match style {
        Style::Table => {
            quiet_when_closed(writeln!(out, "PARTITION  OFFSET      TIMESTAMP      KEY  VALUE"))
        }
        Style::Template(_) | Style::Json | Style::Yaml => Ok(()),
    }
}

/// What the values of `-o` say.
fn choose(values: &[PositionOrFormat]) -> Result<(Position, Option<Format>), Failure> {
    let (mut position, mut format) = (None, None);
    for value in values {
        let twice = match *value {
            PositionOrFormat::Position(new) => position.replace(new).is_some(),
            PositionOrFormat::Format(new) => format.replace(new).is_some(),
        };
        if twice {
            return Err(Failure::usage("-o gives two positions or two formats")
                .mend("give at most one of each, for example '-o end -o json'"));
        }
    }
    Ok((position.unwrap_or(Position::Start), format))
}

fn style(format: Option<Format>, template: Option<&str>) -> Result<Style, Failure> {
    match (format, template) {
        (Some(Format::Json | Format::Yaml), Some(_)) => {
            Err(Failure::usage("-f goes with neither json nor yaml"))
        }
        (_, Some(text)) => Ok(Style::Template(Template::parse(text).map_err(Failure::usage)?)),
        (Some(Format::Json), None) => Ok(Style::Json),
        (Some(Format::Yaml), None) => Ok(Style::Yaml),
        (Some(Format::Table), None) => Ok(Style::Table),
        (None, None) => Ok(Style::Template(Template::parse("%v\\n").map_err(Failure::usage)?)),
    }
}

/// For each partition that has something to read from `start` on: the first offset that was not readable yet.
async fn ends(
    admin: &Admin,
    topic: &str,
    partitions: &[u32],
    start: Start,
) -> Result<BTreeMap<u32, i64>, Failure> {
    let looks = partitions.iter().map(|&partition| async move {
        let options = |start| FetchOptions { start, records_max: 1, ..FetchOptions::default() };
        // Asked for, and not taken from what is read: that may come from a leader that has been deposed and does not know it.
        let end = admin.fetch(topic, partition, options(Start::Latest)).await?.next_offset;
        let fetched = admin.fetch(topic, partition, options(start)).await?;
        let some = fetched.events.first().is_some_and(|event| event.offset < end);
        Ok::<_, Failure>(some.then_some((partition, end)))
    });
    Ok(try_join_all(looks).await?.into_iter().flatten().collect())
}

/// When to stop.
#[derive(Debug)]
struct Stop {
    /// Partitions that have not reached their end yet, and that end; `None`: never.
    ends: Option<BTreeMap<u32, i64>>,
    /// Records that may still be printed.
    left: Option<u64>,
}

impl Stop {
    fn reached(&self) -> bool {
        self.left == Some(0) || self.ends.as_ref().is_some_and(BTreeMap::is_empty)
    }

    /// Whether this record is still to be printed; notes that it was.
    fn admits(&mut self, event: &Event) -> bool {
        if let Some(ends) = &mut self.ends {
            let Some(end) = ends.get(&event.partition) else { return false };
            if event.offset + 1 >= *end {
                let beyond = event.offset >= *end;
                ends.remove(&event.partition);
                if beyond {
                    return false;
                }
            }
        }
        if let Some(left) = &mut self.left {
            *left -= 1;
        }
        true
    }
}

async fn print(
    mut events: Events,
    style: &Style,
    stop: &mut Stop,
    follow: bool,
) -> Result<(), Failure> {
    let mut out = BufWriter::with_capacity(1 << 16, io::stdout());
    head(style, &mut out)?;
    while !stop.reached() {
        // What has been printed must be seen before waiting for more.
        let event = match events.next().now_or_never() {
            Some(event) => event,
            None => {
                quiet_when_closed(out.flush())?;
                events.next().await
            }
        };
        let event = match event {
            Some(Ok(event)) => event,
            // Someone who follows waits until the cluster is back; else the timeout has passed and that is the answer.
            Some(Err(error)) if follow && error.is_retriable() => {
                crate::output::notice(&error.to_string());
                continue;
            }
            Some(Err(error)) => {
                quiet_when_closed(out.flush())?;
                return Err(error.into());
            }
            None => break,
        };
        if stop.admits(&event) {
            quiet_when_closed(write_event(&event, style, &mut out))?;
        }
    }
    quiet_when_closed(out.flush())
}

fn write_event(event: &Event, style: &Style, out: &mut impl Write) -> io::Result<()> {
    let text = |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or(b"-")).into_owned();
    match style {
        Style::Template(template) => template.write(event, out),
        Style::Json => {
            serde_json::to_writer(&mut *out, &RecordShape::from(event))?;
            out.write_all(b"\n")
        }
        Style::Yaml => {
            out.write_all(b"---\n")?;
            serde_yaml_ng::to_writer(out, &RecordShape::from(event)).map_err(io::Error::other)
        }
        Style::Table => writeln!(
            out,
            "{:<9}  {:<10}  {:<13}  {}  {}",
            event.partition,
            event.offset,
            event.timestamp_ms,
            text(event.key.as_deref()),
            text(event.value.as_deref()),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(partition: u32, offset: i64) -> Event {
        Event {
            topic: "t".into(),
            partition,
            offset,
            timestamp_ms: 0,
            key: None,
            value: Some("v".into()),
            headers: vec![],
        }
    }

    #[test]
    fn reading_stops_when_every_partition_is_at_the_end_it_had() {
        let mut stop = Stop { ends: Some([(0, 2), (1, 1)].into()), left: None };
        assert!(stop.admits(&event(0, 0)) && stop.admits(&event(1, 0)) && !stop.reached());
        assert!(!stop.admits(&event(1, 1)), "written after reading began");
        assert!(stop.admits(&event(0, 1)) && stop.reached());
    }

    #[test]
    fn an_end_that_was_skipped_over_still_ends() {
        let mut stop = Stop { ends: Some([(0, 2)].into()), left: None };
        assert!(!stop.admits(&event(0, 5)) && stop.reached());
    }

    #[test]
    fn reading_stops_after_the_number_asked_for() {
        let mut stop = Stop { ends: None, left: Some(1) };
        assert!(stop.admits(&event(0, 0)) && stop.reached());
    }

    #[test]
    fn two_positions_or_formats_are_refused() {
        let position = PositionOrFormat::Position(Position::End);
        let format = PositionOrFormat::Format(Format::Json);
        assert!(choose(&[position, position]).is_err());
        assert!(choose(&[format, format]).is_err());
        assert_eq!(choose(&[format, position]).unwrap(), (Position::End, Some(Format::Json)));
        assert_eq!(choose(&[]).unwrap(), (Position::Start, None));
    }

    #[test]
    fn tables_show_a_dash_for_what_is_absent() {
        let mut out = Vec::new();
        write_event(&event(3, 7), &Style::Table, &mut out).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "3          7           0              -  v\n");
    }
}
