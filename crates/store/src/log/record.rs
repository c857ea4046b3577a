//! The records of the log and their bytes (`docs/store-format.md`). All integers are little-endian.

use bytes::Bytes;

use crate::{EventKind, KeyValue, LeaseId, Revision};

/// One change of a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// A key was written.
    Put { key: Bytes, value: Bytes, lease: LeaseId },
    /// A key was deleted.
    Delete { key: Bytes },
}

/// One entry of the log or of a base.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Record {
    /// A transaction that wrote.
    Revision { revision: Revision, changes: Vec<Change> },
    /// A lease was granted.
    Grant { lease: LeaseId, ttl_ms: u64 },
    /// A lease ended; the deletion of its keys is a revision of its own in the same frame.
    Revoke { lease: LeaseId },
    /// The history was compacted.
    Compact { revision: Revision },
    /// Base: a key's version at the base's revision.
    Key(KeyValue),
    /// Base: what the base's own revision did, so that a watch may still start there.
    Touched { kind: EventKind, key: Bytes },
    /// Base: the end, with the base's revision and the number of keys before it.
    End { revision: Revision, keys: u64 },
}

const REVISION: u8 = 1;
const GRANT: u8 = 2;
const REVOKE: u8 = 3;
const COMPACT: u8 = 4;
const KEY: u8 = 5;
const TOUCHED: u8 = 6;
const END: u8 = 7;

const PUT: u8 = 1;
const DELETE: u8 = 2;

/// Appends a revision record, from borrowed parts: the writer has no reason to own them.
pub(crate) fn put_revision<'a>(
    out: &mut Vec<u8>,
    revision: Revision,
    changes: impl ExactSizeIterator<Item = (EventKind, &'a KeyValue)>,
) {
    out.push(REVISION);
    put_i64(out, revision);
    put_len(out, changes.len());
    for (kind, kv) in changes {
        match kind {
            EventKind::Put => {
                out.push(PUT);
                put_bytes(out, &kv.key);
                put_bytes(out, &kv.value);
                put_i64(out, kv.lease);
            }
            EventKind::Delete => {
                out.push(DELETE);
                put_bytes(out, &kv.key);
            }
        }
    }
}

/// Appends a grant.
pub(crate) fn put_grant(out: &mut Vec<u8>, lease: LeaseId, ttl_ms: u64) {
    out.push(GRANT);
    put_i64(out, lease);
    out.extend_from_slice(&ttl_ms.to_le_bytes());
}

/// Appends the end of a lease.
pub(crate) fn put_revoke(out: &mut Vec<u8>, lease: LeaseId) {
    out.push(REVOKE);
    put_i64(out, lease);
}

/// Appends a compaction.
pub(crate) fn put_compact(out: &mut Vec<u8>, revision: Revision) {
    out.push(COMPACT);
    put_i64(out, revision);
}

/// Appends a base's key.
pub(crate) fn put_key(out: &mut Vec<u8>, kv: &KeyValue) {
    out.push(KEY);
    put_bytes(out, &kv.key);
    put_bytes(out, &kv.value);
    for number in [kv.create_revision, kv.mod_revision, kv.version, kv.lease] {
        put_i64(out, number);
    }
}

/// Appends what a base's revision did to a key.
pub(crate) fn put_touched(out: &mut Vec<u8>, kind: EventKind, key: &[u8]) {
    out.push(TOUCHED);
    out.push(match kind {
        EventKind::Put => PUT,
        EventKind::Delete => DELETE,
    });
    put_bytes(out, key);
}

/// Appends a base's end.
pub(crate) fn put_end(out: &mut Vec<u8>, revision: Revision, keys: u64) {
    out.push(END);
    put_i64(out, revision);
    out.extend_from_slice(&keys.to_le_bytes());
}

fn put_i64(out: &mut Vec<u8>, number: i64) {
    out.extend_from_slice(&number.to_le_bytes());
}

/// A length. Requests are limited far below 4 GiB before they come here; saturating keeps a slip detectable on reading.
fn put_len(out: &mut Vec<u8>, len: usize) {
    out.extend_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes());
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_len(out, bytes.len());
    out.extend_from_slice(bytes);
}

/// Reads records from a frame's payload; ends with `None` at its end and with `Err` where it makes no sense.
pub(crate) struct Records<'a> {
    rest: &'a [u8],
}

/// A payload with a good checksum that does not parse: written by another version, or a bug.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

impl<'a> Records<'a> {
    pub(crate) fn new(payload: &'a [u8]) -> Self {
        Self { rest: payload }
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self.rest.split_at_checked(len).ok_or(Malformed)?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.take(N)?.try_into().map_err(|_| Malformed)
    }

    fn byte(&mut self) -> Result<u8, Malformed> {
        Ok(self.array::<1>()?[0])
    }

    fn number(&mut self) -> Result<i64, Malformed> {
        Ok(i64::from_le_bytes(self.array()?))
    }

    fn unsigned(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn len(&mut self) -> Result<usize, Malformed> {
        usize::try_from(u32::from_le_bytes(self.array()?)).map_err(|_| Malformed)
    }

    /// A copy, so that one small value does not keep a whole file in memory.
    fn bytes(&mut self) -> Result<Bytes, Malformed> {
        let len = self.len()?;
        Ok(Bytes::copy_from_slice(self.take(len)?))
    }

    fn kind(&mut self) -> Result<EventKind, Malformed> {
        match self.byte()? {
            PUT => Ok(EventKind::Put),
            DELETE => Ok(EventKind::Delete),
            _ => Err(Malformed),
        }
    }

    fn change(&mut self) -> Result<Change, Malformed> {
        match self.kind()? {
            EventKind::Put => {
                Ok(Change::Put { key: self.bytes()?, value: self.bytes()?, lease: self.number()? })
            }
            EventKind::Delete => Ok(Change::Delete { key: self.bytes()? }),
        }
    }

    fn record(&mut self) -> Result<Record, Malformed> {
        match self.byte()? {
            REVISION => {
                let revision = self.number()?;
                let len = self.len()?;
                let changes = (0..len).map(|_| self.change()).collect::<Result<_, _>>()?;
                Ok(Record::Revision { revision, changes })
            }
            GRANT => Ok(Record::Grant { lease: self.number()?, ttl_ms: self.unsigned()? }),
            REVOKE => Ok(Record::Revoke { lease: self.number()? }),
            COMPACT => Ok(Record::Compact { revision: self.number()? }),
            KEY => Ok(Record::Key(KeyValue {
                key: self.bytes()?,
                value: self.bytes()?,
                create_revision: self.number()?,
                mod_revision: self.number()?,
                version: self.number()?,
                lease: self.number()?,
            })),
            TOUCHED => Ok(Record::Touched { kind: self.kind()?, key: self.bytes()? }),
            END => Ok(Record::End { revision: self.number()?, keys: self.unsigned()? }),
            _ => Err(Malformed),
        }
    }
}

impl Iterator for Records<'_> {
    type Item = Result<Record, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let record = self.record();
        if record.is_err() {
            self.rest = &[];
        }
        Some(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kv(key: &'static str, value: &'static str) -> KeyValue {
        KeyValue {
            key: Bytes::from_static(key.as_bytes()),
            value: Bytes::from_static(value.as_bytes()),
            create_revision: 2,
            mod_revision: 7,
            version: 3,
            lease: 9,
        }
    }

    fn every_record() -> Vec<u8> {
        let mut out = Vec::new();
        let (put, deleted) = (kv("a", "1"), kv("b", ""));
        put_revision(&mut out, 7, [(EventKind::Put, &put), (EventKind::Delete, &deleted)].into_iter());
        put_grant(&mut out, 9, 1500);
        put_revoke(&mut out, 9);
        put_compact(&mut out, 5);
        put_key(&mut out, &put);
        put_touched(&mut out, EventKind::Delete, b"b");
        put_end(&mut out, 7, 1);
        out
    }

    #[test]
    fn records_read_back() {
        let bytes = every_record();
        let records: Vec<_> = Records::new(&bytes).collect::<Result<_, _>>().unwrap();
        let put = Change::Put { key: "a".into(), value: "1".into(), lease: 9 };
        assert_eq!(
            records,
            [
                Record::Revision { revision: 7, changes: vec![put, Change::Delete { key: "b".into() }] },
                Record::Grant { lease: 9, ttl_ms: 1500 },
                Record::Revoke { lease: 9 },
                Record::Compact { revision: 5 },
                Record::Key(kv("a", "1")),
                Record::Touched { kind: EventKind::Delete, key: "b".into() },
                Record::End { revision: 7, keys: 1 },
            ]
        );
    }

    #[test]
    fn garbage_is_refused_and_never_panics() {
        let bytes = every_record();
        for cut in 1..bytes.len() {
            // A cut payload gives whole records and at most one refusal, at its end.
            let read: Vec<_> = Records::new(&bytes[..cut]).collect();
            assert!(read.iter().rev().skip(1).all(Result::is_ok));
        }
        assert_eq!(Records::new(&[0]).next(), Some(Err(Malformed)));
        // A huge length must not allocate.
        let huge = [&[REVISION][..], &7_i64.to_le_bytes(), &u32::MAX.to_le_bytes()].concat();
        assert_eq!(Records::new(&huge).next(), Some(Err(Malformed)));
    }
}
