//! How data is printed: tables for people, JSON and YAML for programs, sizes and durations that can be read.
//!
//! Owns: formats, tables, units, the question before something is deleted. Never: which fields there are (`shapes` has
//! those).

use std::io::{self, BufRead, IsTerminal, Write};
use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;
use comfy_table::{Table, presets};
use serde::Serialize;

use crate::failure::Failure;

/// How to print data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs; the keys are a contract.
    Json,
    /// The same as json, in YAML.
    Yaml,
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        <Self as ValueEnum>::from_str(text, false)
    }
}

/// Writes to standard output. A reader that went away (`| head`) ends the command quietly.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    quiet_when_closed(stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()))
}

/// Turns a closed standard output into a silent end.
pub(crate) fn quiet_when_closed(written: io::Result<()>) -> Result<(), Failure> {
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Failure::error("")),
        written => Ok(written?),
    }
}

/// Prints `data` as the format says; `table` is what people see.
pub(crate) fn show<T: Serialize>(
    format: Format,
    data: &T,
    table: impl FnOnce(&T) -> String,
) -> Result<(), Failure> {
    let unprintable =
        |error: &dyn std::fmt::Display| Failure::error(format!("cannot print: {error}"));
    let text = match format {
        Format::Table => table(data),
        Format::Json => {
            serde_json::to_string_pretty(data).map_err(|error| unprintable(&error))? + "\n"
        }
        Format::Yaml => serde_yaml_ng::to_string(data).map_err(|error| unprintable(&error))?,
    };
    print(&text)
}

/// Says something to the person, on standard error.
pub(crate) fn notice(text: &str) {
    // Notices are a courtesy: nothing fails because nobody can read them.
    let _ = writeln!(io::stderr(), "{text}");
}

/// A table with these headings and rows, ending in a line break; only the headings when there are no rows.
pub(crate) fn table<R, C>(headings: &[&str], rows: R) -> String
where
    R: IntoIterator<Item = C>,
    C: IntoIterator<Item = String>,
{
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(headings.iter().map(|text| text.to_uppercase()));
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Numbers as `1, 2, 3`; a dash when there are none.
pub(crate) fn list<T: ToString>(values: &[T]) -> String {
    if values.is_empty() {
        return "-".to_owned();
    }
    values.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}

/// The value, or a dash.
pub(crate) fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// `1536` as `1.5 KiB`.
pub(crate) fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64;
    let mut unit = "B";
    for next in UNITS {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    format!("{value:.1} {unit}")
}

/// `90061000` as `1d 1h 1m 1s`.
pub(crate) fn human_duration_ms(ms: u64) -> String {
    if ms < 1000 {
        return format!("{ms} ms");
    }
    let mut rest = ms / 1000;
    let mut parts = Vec::new();
    for (unit, seconds) in [("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)] {
        if rest >= seconds {
            parts.push(format!("{}{unit}", rest / seconds));
            rest %= seconds;
        }
    }
    parts.join(" ")
}

/// A configuration value with what it means to people: `604800000 (7d)`, `67108864 (64.0 MiB)`, `-1 (no limit)`.
pub(crate) fn human_setting(key: &str, value: &str) -> String {
    let meaning = match value.parse::<i64>() {
        Ok(-1) => Some("no limit".to_owned()),
        Ok(number) => u64::try_from(number).ok().and_then(|number| match key.rsplit('.').next() {
            Some("ms") => Some(human_duration_ms(number)),
            Some("bytes") => Some(human_bytes(number)),
            _ => None,
        }),
        Err(_) => None,
    };
    meaning.map_or_else(|| value.to_owned(), |meaning| format!("{value} ({meaning})"))
}

/// Reads `500ms`, `5s`, `2m`, `1h`, `7d`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("'{text}' is no duration; write 500ms, 5s, 2m, 1h or 7d");
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let (number, unit) = text.split_at(digits);
    let unit_ms: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(wrong()),
    };
    let ms = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit_ms));
    ms.map(Duration::from_millis).ok_or_else(wrong)
}

/// Asks on a terminal before something is lost; elsewhere `--yes` must have been given.
pub(crate) fn confirm(yes: bool, loss: &str) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    let stdin = io::stdin();
    if !stdin.is_terminal() || !io::stderr().is_terminal() {
        return Err(Failure::usage(format!("this {loss}; nobody can be asked here"))
            .mend("add --yes if that is what you want"));
    }
    let mut stderr = io::stderr();
    write!(stderr, "This {loss}. Go on? [y/N] ")?;
    stderr.flush()?;
    let mut answer = String::new();
    stdin.lock().read_line(&mut answer)?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(Failure::error("nothing was done")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_durations_read_well() {
        assert_eq!(human_bytes(0), "0 B");
        assert_eq!(human_bytes(1536), "1.5 KiB");
        assert_eq!(human_bytes(64 << 20), "64.0 MiB");
        assert_eq!(human_bytes(u64::MAX), "16.0 EiB");
        assert_eq!(human_duration_ms(0), "0 ms");
        assert_eq!(human_duration_ms(604_800_000), "7d");
        assert_eq!(human_duration_ms(90_061_000), "1d 1h 1m 1s");
    }

    #[test]
    fn settings_say_what_they_mean() {
        assert_eq!(human_setting("retention.ms", "604800000"), "604800000 (7d)");
        assert_eq!(human_setting("segment.bytes", "67108864"), "67108864 (64.0 MiB)");
        assert_eq!(human_setting("retention.bytes", "-1"), "-1 (no limit)");
        assert_eq!(human_setting("cleanup.policy", "delete"), "delete");
    }

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("7d"), Ok(Duration::from_secs(604_800)));
        for bad in ["", "5", "s", "5 s", "1w", "99999999999999999999d"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn tables_line_up_and_have_no_trailing_blanks() {
        let rows = [["a".to_owned(), "1".to_owned()], ["long".to_owned(), "2".to_owned()]];
        assert_eq!(table(&["name", "n"], rows), "NAME  N\na     1\nlong  2\n");
    }
}
