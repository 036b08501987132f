//! The template of `consume -f`: `%t %p %o %k %v %h %T`, `\n`, `\t`.
//!
//! Owns: its grammar and how a record fills it in. Never: where the result goes. Keys and values are written as the bytes
//! they are.

use std::io::{self, Write};

use highwater_client::Event;

/// A parsed template.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Template {
    parts: Vec<Part>,
}

#[derive(Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Topic,
    Partition,
    Offset,
    Key,
    Value,
    Headers,
    TimestampMs,
}

impl Template {
    /// Parses a template; the error says what is wrong.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut plain = String::new();
        let mut letters = text.chars();
        while let Some(letter) = letters.next() {
            let part = match letter {
                '\\' => {
                    plain.push(match letters.next() {
                        Some('n') => '\n',
                        Some('t') => '\t',
                        Some('r') => '\r',
                        Some('0') => '\0',
                        Some('\\') => '\\',
                        other => return Err(unknown('\\', other)),
                    });
                    continue;
                }
                '%' => match letters.next() {
                    Some('%') => {
                        plain.push('%');
                        continue;
                    }
                    Some('t') => Part::Topic,
                    Some('p') => Part::Partition,
                    Some('o') => Part::Offset,
                    Some('k') => Part::Key,
                    Some('v') => Part::Value,
                    Some('h') => Part::Headers,
                    Some('T') => Part::TimestampMs,
                    other => return Err(unknown('%', other)),
                },
                letter => {
                    plain.push(letter);
                    continue;
                }
            };
            if !plain.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut plain)));
            }
            parts.push(part);
        }
        if !plain.is_empty() {
            parts.push(Part::Text(plain));
        }
        Ok(Self { parts })
    }

    /// Writes one record.
    pub(crate) fn write(&self, event: &Event, to: &mut impl Write) -> io::Result<()> {
        for part in &self.parts {
            match part {
                Part::Text(text) => to.write_all(text.as_bytes())?,
                Part::Topic => to.write_all(event.topic.as_bytes())?,
                Part::Partition => write!(to, "{}", event.partition)?,
                Part::Offset => write!(to, "{}", event.offset)?,
                Part::Key => to.write_all(event.key.as_deref().unwrap_or_default())?,
                Part::Value => to.write_all(event.value.as_deref().unwrap_or_default())?,
                Part::TimestampMs => write!(to, "{}", event.timestamp_ms)?,
                Part::Headers => {
                    for (number, header) in event.headers.iter().enumerate() {
                        write!(to, "{}{}=", if number > 0 { "," } else { "" }, header.key)?;
                        to.write_all(header.value.as_deref().unwrap_or_default())?;
                    }
                }
            }
        }
        Ok(())
    }
}

fn unknown(sign: char, letter: Option<char>) -> String {
    let found = letter.map_or_else(|| sign.to_string(), |letter| format!("{sign}{letter}"));
    format!(
        "'{found}' means nothing in a template; there are %t %p %o %k %v %h %T %% \\n \\t \\r \\0 \\\\"
    )
}

#[cfg(test)]
mod tests {
    use highwater_client::Header;

    use super::*;

    fn event() -> Event {
        Event {
            topic: "orders".into(),
            partition: 2,
            offset: 7,
            timestamp_ms: 1_700_000_000_000,
            key: Some("k".into()),
            value: Some("v\u{e9}".into()),
            headers: vec![Header::new("a", "1"), Header { key: "b".into(), value: None }],
        }
    }

    fn filled(template: &str) -> String {
        let mut out = Vec::new();
        Template::parse(template).unwrap().write(&event(), &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn every_escape_is_filled_in() {
        assert_eq!(filled(r"%t %p %o %k %v\n"), "orders 2 7 k v\u{e9}\n");
        assert_eq!(filled(r"%h\t%T %%"), "a=1,b=\t1700000000000 %");
    }

    #[test]
    fn unknown_escapes_are_refused() {
        for bad in ["%x", "%", "\\", "\\q"] {
            assert!(Template::parse(bad).is_err(), "{bad}");
        }
    }
}
