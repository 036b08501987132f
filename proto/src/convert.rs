//! Between the record-batch codec and the protobuf messages that carry the same things in structured form.
//!
//! Owns no rule of its own: limits are the codec's.

use bytes::Bytes;

use crate::batch::{BatchBuilder, BatchError, Compression, RecordView};
use crate::v1;

impl From<Compression> for v1::Compression {
    fn from(compression: Compression) -> Self {
        match compression {
            Compression::None => Self::None,
            Compression::Gzip => Self::Gzip,
            Compression::Snappy => Self::Snappy,
            Compression::Lz4 => Self::Lz4,
            Compression::Zstd => Self::Zstd,
        }
    }
}

impl From<v1::Compression> for Compression {
    /// Unspecified means none, as the .proto file says.
    fn from(compression: v1::Compression) -> Self {
        match compression {
            v1::Compression::Unspecified | v1::Compression::None => Self::None,
            v1::Compression::Gzip => Self::Gzip,
            v1::Compression::Snappy => Self::Snappy,
            v1::Compression::Lz4 => Self::Lz4,
            v1::Compression::Zstd => Self::Zstd,
        }
    }
}

impl v1::Record {
    /// Pushes this record; `now_ms` is its create time if it has none of its own.
    ///
    /// # Errors
    /// Those of [`BatchBuilder::push`].
    pub fn push_to(&self, builder: &mut BatchBuilder, now_ms: i64) -> Result<(), BatchError> {
        let headers: Vec<(&str, Option<&[u8]>)> =
            self.headers.iter().map(|header| (&*header.key, header.value.as_deref())).collect();
        let timestamp_ms = self.timestamp_ms.unwrap_or(now_ms);
        builder.push(timestamp_ms, self.key.as_deref(), self.value.as_deref(), &headers)
    }
}

impl From<RecordView> for v1::FetchedRecord {
    /// Copies nothing but header keys. Those are text in protobuf: what is not UTF-8 in them, which no broker takes from
    /// a client, becomes U+FFFD.
    fn from(record: RecordView) -> Self {
        let header = |(key, value): (Bytes, Option<Bytes>)| v1::Header {
            key: String::from_utf8_lossy(&key).into_owned(),
            value,
        };
        Self {
            offset: record.offset,
            timestamp_ms: record.timestamp_ms,
            key: record.key,
            value: record.value,
            headers: record.headers.into_iter().map(header).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::BatchView;

    #[test]
    fn a_record_survives_the_way_through_a_batch() {
        let record = v1::Record {
            key: None,
            value: Some(Bytes::from_static(b"v")),
            headers: vec![
                v1::Header { key: "a".into(), value: None },
                v1::Header { key: "a".into(), value: Some(Bytes::new()) },
            ],
            timestamp_ms: None,
        };
        let mut builder = BatchBuilder::new(Compression::None);
        record.push_to(&mut builder, 77).unwrap();
        v1::Record { timestamp_ms: Some(5), ..record.clone() }.push_to(&mut builder, 77).unwrap();
        let batch = BatchView::parse(builder.build().unwrap()).unwrap();
        let read: Vec<v1::FetchedRecord> =
            batch.records().unwrap().map(|record| record.unwrap().into()).collect();
        let expected = |offset, timestamp_ms| v1::FetchedRecord {
            offset,
            timestamp_ms,
            key: None,
            value: record.value.clone(),
            headers: record.headers.clone(),
        };
        assert_eq!(read, [expected(0, 77), expected(1, 5)]);
    }

    #[test]
    fn compressions_convert_both_ways() {
        for compression in Compression::ALL {
            assert_eq!(Compression::from(v1::Compression::from(compression)), compression);
        }
        assert_eq!(Compression::from(v1::Compression::Unspecified), Compression::None);
    }
}
