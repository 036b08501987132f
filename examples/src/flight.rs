//! One departure, as the flights file has it and as its event says it.
//!
//! Owns: reading the file, the event's JSON, its key. Never: knows of brokers.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use anyhow::Context;
use flate2::read::GzDecoder;
use serde::{Deserialize, Deserializer, Serialize};

/// A row of the file. Minutes and local times (`517` is 5:17) are absent where the file says NA: a cancelled flight never
/// departed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names are the data set's own columns")]
pub struct Row {
    pub year: u16,
    pub month: u8,
    pub day: u8,
    #[serde(deserialize_with = "number_or_na")]
    pub dep_time: Option<i32>,
    pub sched_dep_time: i32,
    #[serde(deserialize_with = "number_or_na")]
    pub dep_delay: Option<i32>,
    #[serde(deserialize_with = "number_or_na")]
    pub arr_time: Option<i32>,
    pub sched_arr_time: i32,
    #[serde(deserialize_with = "number_or_na")]
    pub arr_delay: Option<i32>,
    pub carrier: String,
    pub flight: u32,
    pub tailnum: String,
    pub origin: String,
    pub dest: String,
    #[serde(deserialize_with = "number_or_na")]
    pub air_time: Option<i32>,
    pub distance: u32,
    pub hour: u8,
    pub minute: u8,
    pub time_hour: String,
}

/// What is published: a row and its place in the file, from 0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Departure {
    /// The row's place in the file, from 0.
    pub sequence: u64,
    /// The row.
    #[serde(flatten)]
    pub row: Row,
}

impl Departure {
    /// The key that keeps the flights of one aircraft in order: its tail number, `NA` where it is not known.
    pub fn key(&self) -> &str {
        &self.row.tailnum
    }

    /// The event's value.
    pub fn to_json(&self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec(self)
    }

    /// Reads an event's value.
    pub fn from_json(value: &[u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(value)
    }
}

/// A number, or nothing where the text is NA or the value null.
fn number_or_na<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i32>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Cell {
        Number(i32),
        Text(String),
    }
    match Option::<Cell>::deserialize(deserializer)? {
        None => Ok(None),
        Some(Cell::Number(number)) => Ok(Some(number)),
        Some(Cell::Text(text)) if text == "NA" => Ok(None),
        Some(Cell::Text(text)) => {
            Err(serde::de::Error::custom(format!("'{text}' is neither a number nor NA")))
        }
    }
}

/// The departures of a flights file, compressed (`.gz`) or not, in order.
pub fn departures(
    path: &Path,
) -> anyhow::Result<impl Iterator<Item = anyhow::Result<Departure>> + Send + use<>> {
    let name = path.display().to_string();
    let file = File::open(path).with_context(|| format!("cannot open {name}"))?;
    let file = BufReader::with_capacity(1 << 16, file);
    let compressed = path.extension().is_some_and(|extension| extension == "gz");
    let bytes: Box<dyn Read + Send> =
        if compressed { Box::new(GzDecoder::new(file)) } else { Box::new(file) };
    let rows = csv::Reader::from_reader(bytes).into_deserialize::<Row>();
    Ok((0_u64..).zip(rows).map(move |(sequence, row)| {
        let row = row.with_context(|| format!("{name}, row {sequence}"))?;
        Ok(Departure { sequence, row })
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<Departure> {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/data/flights-week1.csv.gz");
        departures(Path::new(file)).unwrap().collect::<Result<_, _>>().unwrap()
    }

    #[test]
    fn the_sample_is_the_first_week_of_january() {
        let sample = sample();
        assert_eq!(sample.len(), 6_099);
        assert!(sample.iter().all(|event| event.row.month == 1 && event.row.day <= 7));
        assert_eq!((sample[0].key(), sample[0].sequence), ("N14228", 0));
        assert_eq!(sample[6_098].sequence, 6_098);
    }

    #[test]
    fn missing_tail_numbers_keep_the_key_na_and_missing_numbers_are_absent() {
        let sample = sample();
        let cancelled: Vec<_> =
            sample.iter().filter(|event| event.row.dep_time.is_none()).collect();
        assert!(!cancelled.is_empty());
        assert!(cancelled.iter().all(|event| event.row.air_time.is_none()));
        assert!(sample.iter().any(|event| event.key() == "NA"));
    }

    #[test]
    fn events_survive_json() {
        for event in sample().iter().step_by(97) {
            assert_eq!(Departure::from_json(&event.to_json().unwrap()).unwrap(), *event);
        }
    }
}
