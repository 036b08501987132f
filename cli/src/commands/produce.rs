//! `produce`: one record for each line of standard input.
//!
//! Owns: lines, keys, the bound on what is not acknowledged yet. Never: batches or retries (the client does).

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesOrdered;
use highwater_client::{Ack, Header, Producer, Record};
use indicatif::ProgressBar;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, BufReader};

use super::Session;
use crate::args::Produce;
use crate::failure::Failure;
use crate::output::{Format, notice, quiet_when_closed};
use crate::shapes::AckShape;

/// Longest line accepted; the topic's own limit is checked by the client.
const LINE_BYTES_MAX: usize = 8 << 20;
/// Records that may wait for their acknowledgement.
const UNACKNOWLEDGED_MAX: usize = 10_000;

/// Makes records of lines.
#[derive(Debug)]
struct Lines {
    key: Option<Bytes>,
    separator: Option<Vec<u8>>,
    headers: Vec<Header>,
}

impl Lines {
    fn record(&self, line: Vec<u8>) -> Result<Record, String> {
        let line = Bytes::from(line);
        let (key, value) = match &self.separator {
            None => (self.key.clone(), line),
            Some(separator) => {
                let at = line
                    .windows(separator.len())
                    .position(|window| window == separator.as_slice())
                    .ok_or_else(|| "the key separator is not in it".to_owned())?;
                (Some(line.slice(..at)), line.slice(at + separator.len()..))
            }
        };
        let headers = self.headers.clone();
        Ok(Record { key, value: Some(value), headers, ..Record::default() })
    }
}

pub(crate) async fn run(session: &Session, produce: Produce) -> Result<(), Failure> {
    let format = session.format(produce.out);
    let separator = produce.key_separator.map(|text| text.replace("\\t", "\t").into_bytes());
    if separator.as_ref().is_some_and(Vec::is_empty) {
        return Err(Failure::usage("--key-separator is empty"));
    }
    let lines = Lines {
        key: produce.key.map(Bytes::from),
        separator,
        headers: produce.headers.iter().map(|(k, v)| Header::new(k, v.clone())).collect(),
    };
    let client = session.connect().await?;
    // Fails at once, with exit code 3, for a topic that does not exist.
    session.within("looking for the topic", client.admin().get_topic(&produce.topic)).await?;
    let mut builder = client
        .producer(&produce.topic)
        .acks(produce.acks)
        .compression(produce.compression)
        .linger(Duration::from_millis(2))
        .delivery_timeout(session.timeout.max(Duration::from_secs(30)));
    if let Some(partition) = produce.partition {
        builder = builder.partition(partition);
    }
    let producer = builder.build();
    let mut report = Report::new(&produce.topic, format);
    let done = publish(&producer, &lines, &mut report).await;
    report.finish();
    done?;
    producer.close().await?;
    Ok(())
}

/// Reads lines to the end and sends them, in order; stops at the first record that fails.
async fn publish(producer: &Producer, lines: &Lines, report: &mut Report) -> Result<(), Failure> {
    let mut input = BufReader::with_capacity(1 << 16, tokio::io::stdin());
    let mut tickets = FuturesOrdered::new();
    let mut line = Vec::new();
    let mut number = 0_u64;
    let mut at_end = false;
    loop {
        tokio::select! {
            biased;
            Some(outcome) = tickets.next(), if !tickets.is_empty() => {
                let outcome: Result<Ack, highwater_client::SendError> = outcome;
                let at = report.acknowledged + 1;
                let ack = outcome.map_err(|error| Failure::from(error).context(&format!("line {at}")))?;
                report.acknowledged(&ack)?;
            }
            more = read_line(&mut input, &mut line), if !at_end && tickets.len() < UNACKNOWLEDGED_MAX => {
                number += 1;
                if !more.map_err(|error| Failure::from(error).context(&format!("line {number}")))? {
                    at_end = true;
                    continue;
                }
                let record = lines.record(std::mem::take(&mut line));
                let record = record.map_err(|why| Failure::usage(format!("line {number}: {why}")))?;
                let ticket = producer.send(record).await;
                tickets.push_back(ticket.map_err(|error| Failure::from(error).context(&format!("line {number}")))?);
            }
            else => return Ok(()),
        }
    }
}

/// Appends the next line, without its end, to `line`; false at the end of the input. When it is dropped midway, the next
/// call continues the same line.
async fn read_line(
    input: &mut (impl AsyncBufRead + Unpin),
    line: &mut Vec<u8>,
) -> io::Result<bool> {
    loop {
        let buffer = input.fill_buf().await?;
        if buffer.is_empty() {
            return Ok(!line.is_empty());
        }
        let end = buffer.iter().position(|byte| *byte == b'\n');
        let taken = end.unwrap_or(buffer.len());
        if line.len() + taken > LINE_BYTES_MAX {
            return Err(io::Error::other(format!("longer than {LINE_BYTES_MAX} bytes")));
        }
        line.extend_from_slice(&buffer[..taken]);
        input.consume(end.map_or(taken, |end| end + 1));
        if end.is_some() {
            if line.last() == Some(&b'\r') {
                line.pop();
            }
            return Ok(true);
        }
    }
}

/// What is told of the acknowledged records.
#[derive(Debug)]
struct Report {
    topic: String,
    format: Format,
    acknowledged: u64,
    progress: Option<ProgressBar>,
}

impl Report {
    fn new(topic: &str, format: Format) -> Self {
        let watched = io::stderr().is_terminal() && !io::stdin().is_terminal();
        let progress = watched.then(ProgressBar::new_spinner);
        Self { topic: topic.to_owned(), format, acknowledged: 0, progress }
    }

    fn acknowledged(&mut self, ack: &Ack) -> Result<(), Failure> {
        self.acknowledged += 1;
        if let Some(progress) = &self.progress {
            progress.set_message(format!("{} records", self.acknowledged));
            progress.inc(1);
        }
        let shape = AckShape::new(&self.topic, ack);
        let failed =
            |error: &dyn std::fmt::Display| Failure::error(format!("cannot print: {error}"));
        let text = match self.format {
            Format::Table => return Ok(()),
            Format::Json => serde_json::to_string(&shape).map_err(|error| failed(&error))? + "\n",
            Format::Yaml => {
                let yaml = serde_yaml_ng::to_string(&shape).map_err(|error| failed(&error))?;
                format!("---\n{yaml}")
            }
        };
        quiet_when_closed(io::stdout().lock().write_all(text.as_bytes()))
    }

    fn finish(&self) {
        if let Some(progress) = &self.progress {
            progress.finish_and_clear();
        }
        let plural = if self.acknowledged == 1 { "" } else { "s" };
        notice(&format!("published {} record{plural} to {}", self.acknowledged, self.topic));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(separator: Option<&str>) -> Lines {
        let separator = separator.map(|text| text.as_bytes().to_vec());
        Lines { key: Some("fixed".into()), separator, headers: vec![] }
    }

    #[test]
    fn a_separator_splits_at_its_first_place() {
        let record = lines(Some("::")).record(b"k::v::w".to_vec()).unwrap();
        assert_eq!(record.key.as_deref(), Some(&b"k"[..]));
        assert_eq!(record.value.as_deref(), Some(&b"v::w"[..]));
        assert!(lines(Some("::")).record(b"no separator".to_vec()).is_err());
    }

    #[test]
    fn without_a_separator_the_line_is_the_value() {
        let record = lines(None).record(b"k::v".to_vec()).unwrap();
        assert_eq!(record.key.as_deref(), Some(&b"fixed"[..]));
        assert_eq!(record.value.as_deref(), Some(&b"k::v"[..]));
    }

    #[tokio::test]
    async fn lines_end_with_either_line_break_or_the_input() {
        let mut input = BufReader::with_capacity(3, &b"one\r\n\nthree"[..]);
        let mut line = Vec::new();
        for expected in ["one", "", "three"] {
            assert!(read_line(&mut input, &mut line).await.unwrap());
            assert_eq!(std::mem::take(&mut line), expected.as_bytes());
        }
        assert!(!read_line(&mut input, &mut line).await.unwrap());
    }

    #[tokio::test]
    async fn endless_lines_are_refused() {
        let endless = vec![b'x'; LINE_BYTES_MAX + 1];
        let mut input = BufReader::new(&endless[..]);
        assert!(read_line(&mut input, &mut Vec::new()).await.is_err());
    }
}
