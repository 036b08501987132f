//! Positions as users write them: `start`, `end`, an offset, `@TIME`.
//!
//! Owns: their grammar. Never: what the broker makes of them.

use std::str::FromStr;

use highwater_client::Start;

use crate::env;
use crate::output::parse_duration;

/// A place in a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Position {
    /// The first retained record.
    Start,
    /// Behind the last record.
    End,
    /// The record with this offset.
    Offset(i64),
    /// The first record at or after this many milliseconds since the Unix epoch.
    TimeMs(i64),
}

impl From<Position> for Start {
    fn from(position: Position) -> Self {
        match position {
            Position::Start => Self::Earliest,
            Position::End => Self::Latest,
            Position::Offset(offset) => Self::Offset(offset),
            Position::TimeMs(timestamp_ms) => Self::Timestamp(timestamp_ms),
        }
    }
}

impl FromStr for Position {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(time) = text.strip_prefix('@') {
            return parse_time(time, env::wall_ms()).map(Self::TimeMs).ok_or_else(|| {
                format!("'{time}' is no time; write @2026-01-31, @2026-01-31T12:00:00Z, @-15m or @MILLISECONDS")
            });
        }
        match text {
            "start" => Ok(Self::Start),
            "end" => Ok(Self::End),
            _ => match text.parse::<i64>() {
                Ok(offset) if offset >= 0 => Ok(Self::Offset(offset)),
                _ => Err(format!("'{text}' is none of start, end, OFFSET, @TIME")),
            },
        }
    }
}

/// Milliseconds since the Unix epoch of `-15m` (before now), milliseconds, a date, or a date and time in UTC or with an
/// offset.
fn parse_time(text: &str, now_ms: i64) -> Option<i64> {
    if let Some(ago) = text.strip_prefix('-') {
        let ago_ms = i64::try_from(parse_duration(ago).ok()?.as_millis()).ok()?;
        return now_ms.checked_sub(ago_ms);
    }
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().ok();
    }
    let (date, time) = text.split_once(['T', 't', ' ']).unwrap_or((text, "00:00:00Z"));
    let days = days_since_epoch(date)?;
    let (clock, shift_ms) = split_zone(time)?;
    let time_ms = clock_ms(clock)?;
    days.checked_mul(86_400_000)?.checked_add(time_ms)?.checked_sub(shift_ms)
}

/// The number in `text`, which must be `digits` ASCII digits and within the bounds.
fn number(text: &str, digits: usize, from: i64, to: i64) -> Option<i64> {
    let plain = text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|value| plain && (from..=to).contains(value))
}

fn days_since_epoch(date: &str) -> Option<i64> {
    let mut parts = date.splitn(3, '-');
    let year = number(parts.next()?, 4, 1, 9999)?;
    let month = number(parts.next()?, 2, 1, 12)?;
    let day = number(parts.next()?, 2, 1, 31)?;
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let month_days = match month {
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    };
    if day > month_days {
        return None;
    }
    // Years begin in March here, so that the leap day is the last one.
    let (year, month) = if month <= 2 { (year - 1, month + 9) } else { (year, month - 3) };
    let day_of_year = (153 * month + 2) / 5 + day - 1;
    let days = 365 * year + year / 4 - year / 100 + year / 400 + day_of_year;
    // 1 March of year 0 lies this many days before 1970.
    Some(days - 719_468)
}

/// Splits `12:00:00+01:00` into the clock and the zone's distance from UTC in milliseconds.
fn split_zone(time: &str) -> Option<(&str, i64)> {
    if let Some(clock) = time.strip_suffix(['Z', 'z']) {
        return Some((clock, 0));
    }
    match time.rfind(['+', '-']) {
        None => Some((time, 0)),
        Some(at) => {
            let (hours, minutes) = time[at + 1..].split_once(':')?;
            let shift_ms =
                number(hours, 2, 0, 23)? * 3_600_000 + number(minutes, 2, 0, 59)? * 60_000;
            Some((&time[..at], if time[at..].starts_with('-') { -shift_ms } else { shift_ms }))
        }
    }
}

fn clock_ms(clock: &str) -> Option<i64> {
    let mut parts = clock.splitn(3, ':');
    let hours = number(parts.next()?, 2, 0, 23)?;
    let minutes = number(parts.next()?, 2, 0, 59)?;
    let seconds = parts.next().unwrap_or("00");
    let (whole, fraction) = seconds.split_once('.').unwrap_or((seconds, "0"));
    let plain = (1..=9).contains(&fraction.len()) && fraction.bytes().all(|b| b.is_ascii_digit());
    let fraction_ms: i64 = format!("{fraction:0<3}").get(..3)?.parse().ok().filter(|_| plain)?;
    Some((hours * 3_600 + minutes * 60 + number(whole, 2, 0, 59)?) * 1_000 + fraction_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_dates_moments_distances_and_milliseconds() {
        let now_ms = 1_000_000;
        for (text, expected) in [
            ("1970-01-01", 0),
            ("2013-01-01T10:00:00Z", 1_357_034_400_000),
            ("2013-01-01T10:00", 1_357_034_400_000),
            ("2013-01-01T11:00:00.250+01:00", 1_357_034_400_250),
            ("2024-02-29", 1_709_164_800_000),
            ("1357034400000", 1_357_034_400_000),
            ("-15m", now_ms - 900_000),
        ] {
            assert_eq!(parse_time(text, now_ms), Some(expected), "{text}");
        }
    }

    #[test]
    fn nonsense_is_not_a_time() {
        for text in [
            "",
            "yesterday",
            "2023-02-29",
            "2023-13-01",
            "2023-1-1",
            "2023-01-01T25:00",
            "-",
            "-15",
        ] {
            assert_eq!(parse_time(text, 0), None, "{text}");
        }
    }

    #[test]
    fn positions_are_words_offsets_or_times() {
        assert_eq!("start".parse(), Ok(Position::Start));
        assert_eq!("end".parse(), Ok(Position::End));
        assert_eq!("42".parse(), Ok(Position::Offset(42)));
        assert_eq!("@1970-01-01".parse(), Ok(Position::TimeMs(0)));
        assert!("-1".parse::<Position>().is_err());
        assert!("begin".parse::<Position>().is_err());
    }
}
