//! One record: finding its parts in place, and the owned view that readers get.
//!
//! Never allocates while walking; only a view with headers does, for their list.

use bytes::Bytes;

use super::RECORD_HEADERS_MAX;
use super::varint::{Cursor, Problem};

/// Fewest bytes of a record: length, attributes, two deltas, two null lengths, no headers.
pub(super) const RECORD_ENCODED_BYTES_MIN: usize = 7;

/// One record as a reader sees it. Its bytes are slices of the batch (or of its decompressed records) and keep that alive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordView {
    /// Position in the partition; counted from the batch's base offset.
    pub offset: i64,
    /// Create time, or append time if the batch says so, in milliseconds since the Unix epoch.
    pub timestamp_ms: i64,
    /// The key, if there is one.
    pub key: Option<Bytes>,
    /// The value; absent is a tombstone.
    pub value: Option<Bytes>,
    /// Header keys (UTF-8 in every batch that `validate` let pass) and values, in the order written.
    pub headers: Vec<(Bytes, Option<Bytes>)>,
}

impl RecordView {
    /// Bytes of key, value, header keys and header values together.
    pub fn payload_bytes(&self) -> usize {
        let of = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, Bytes::len);
        let headers: usize = self.headers.iter().map(|(key, value)| key.len() + of(value)).sum();
        of(&self.key) + of(&self.value) + headers
    }
}

/// A record where it lies. Its headers have not been looked at yet.
pub(super) struct RecordRef<'a> {
    pub(super) attributes: u8,
    pub(super) timestamp_delta: i64,
    pub(super) offset_delta: i32,
    pub(super) key: Option<&'a [u8]>,
    pub(super) value: Option<&'a [u8]>,
    pub(super) headers: HeaderRefs<'a>,
}

impl<'a> RecordRef<'a> {
    /// Reads the record under `cursor` and moves behind it.
    #[inline]
    pub(super) fn read(cursor: &mut Cursor<'a>) -> Result<Self, Problem> {
        let length = cursor.varint()?;
        let length = usize::try_from(length).map_err(|_| "its length is negative")?;
        let mut body = Cursor::new(cursor.take(length)?);
        let attributes = body.byte()?;
        let timestamp_delta = body.varlong()?;
        let offset_delta = body.varint()?;
        let key = nullable(&mut body)?;
        let value = nullable(&mut body)?;
        let count = body.varint()?;
        let count = u32::try_from(count).map_err(|_| "its header count is negative")?;
        if count == 0 && !body.rest().is_empty() {
            return Err(BYTES_LEFT);
        }
        let headers = HeaderRefs { left: count, body };
        Ok(Self { attributes, timestamp_delta, offset_delta, key, value, headers })
    }
}

const BYTES_LEFT: Problem = "bytes follow its last header";

/// The headers of a record, found one after the other. Yields an error if they are malformed or bytes follow the last.
pub(super) struct HeaderRefs<'a> {
    left: u32,
    body: Cursor<'a>,
}

impl HeaderRefs<'_> {
    /// How many headers the record says it has.
    pub(super) fn stated_count(&self) -> u32 {
        self.left
    }
}

impl<'a> Iterator for HeaderRefs<'a> {
    type Item = Result<(&'a [u8], Option<&'a [u8]>), Problem>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        self.left -= 1;
        let header = read_header(&mut self.body).and_then(|header| {
            if self.left == 0 && !self.body.rest().is_empty() {
                Err(BYTES_LEFT)
            } else {
                Ok(header)
            }
        });
        if header.is_err() {
            self.left = 0;
        }
        Some(header)
    }
}

fn read_header<'a>(body: &mut Cursor<'a>) -> Result<(&'a [u8], Option<&'a [u8]>), Problem> {
    let key = nullable(body)?.ok_or("a header has no key")?;
    Ok((key, nullable(body)?))
}

/// A length varint and that many bytes; -1 means null.
#[inline]
fn nullable<'a>(body: &mut Cursor<'a>) -> Result<Option<&'a [u8]>, Problem> {
    match body.varint()? {
        -1 => Ok(None),
        length => {
            let length = usize::try_from(length).map_err(|_| "a length is negative")?;
            Ok(Some(body.take(length)?))
        }
    }
}

/// Reads all headers into slices of `whole`, in which they lie. The list grows as headers are found, not as counted.
pub(super) fn owned_headers(
    whole: &Bytes,
    headers: HeaderRefs<'_>,
) -> Result<Vec<(Bytes, Option<Bytes>)>, Problem> {
    if headers.stated_count() > RECORD_HEADERS_MAX {
        return Err("it has too many headers");
    }
    let mut owned = Vec::new();
    for header in headers {
        let (key, value) = header?;
        owned.push((whole.slice_ref(key), value.map(|value| whole.slice_ref(value))));
    }
    Ok(owned)
}
