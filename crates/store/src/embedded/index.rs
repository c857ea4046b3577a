//! The versioned index: every version of every key since the compaction, in memory.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;

use crate::{KeyValue, LeaseId, RangeEnd, Revision};

/// One version of a key.
#[derive(Debug, Clone)]
struct Version {
    mod_revision: Revision,
    create_revision: Revision,
    version: i64,
    lease: LeaseId,
    /// `None` says that the key was deleted.
    value: Option<Bytes>,
}

/// Every version of every key, ordered by key and then by revision.
#[derive(Debug, Default)]
pub(crate) struct Index {
    keys: BTreeMap<Bytes, Vec<Version>>,
}

/// What a walk over a range looks for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Walk {
    /// The revision to read at.
    pub(crate) at: Revision,
    /// At most so many keys are looked at.
    pub(crate) max: usize,
}

impl Index {
    /// A key at a revision.
    pub(crate) fn get(&self, key: &[u8], at: Revision) -> Option<KeyValue> {
        let (key, versions) = self.keys.get_key_value(key)?;
        live(versions, at).map(|version| version.key_value(key))
    }

    /// Visits the live keys of a range in order. Returns where to go on when `walk.max` keys were looked at.
    pub(crate) fn walk(
        &self,
        range: &Range,
        walk: Walk,
        mut visit: impl FnMut(&Bytes, Hit<'_>),
    ) -> Option<Range> {
        if range.is_empty() {
            return None;
        }
        for (looked_at, (key, versions)) in self.keys.range::<[u8], _>(range.bounds()).enumerate() {
            if looked_at == walk.max {
                return Some(Range { start: key.clone(), stop: range.stop.clone() });
            }
            if let Some(version) = live(versions, walk.at) {
                visit(key, Hit { key, version });
            }
        }
        None
    }

    /// The live keys of a range.
    pub(crate) fn keys(&self, range: &Range, at: Revision) -> Vec<Bytes> {
        let mut keys = Vec::new();
        self.walk(range, Walk { at, max: usize::MAX }, |key, _| keys.push(key.clone()));
        keys
    }

    /// Writes a key at a revision, which is newer than every other; returns the new version and the one before.
    pub(crate) fn put(
        &mut self,
        key: Bytes,
        value: Bytes,
        lease: LeaseId,
        revision: Revision,
    ) -> (KeyValue, Option<KeyValue>) {
        let before = self.get(&key, revision);
        let (create_revision, version) =
            before.as_ref().map_or((revision, 1), |kv| (kv.create_revision, kv.version + 1));
        let kv = KeyValue { key, value, create_revision, mod_revision: revision, version, lease };
        self.insert(&kv);
        (kv, before)
    }

    /// Adds a version that is newer than every other of its key.
    pub(crate) fn insert(&mut self, kv: &KeyValue) {
        let version = Version {
            mod_revision: kv.mod_revision,
            create_revision: kv.create_revision,
            version: kv.version,
            lease: kv.lease,
            value: Some(kv.value.clone()),
        };
        match self.keys.get_mut(&kv.key) {
            Some(versions) => versions.push(version),
            None => drop(self.keys.insert(kv.key.clone(), vec![version])),
        }
    }

    /// Deletes a key at a revision, which is newer than every other; returns the version before, if it was live.
    pub(crate) fn delete(&mut self, key: &[u8], revision: Revision) -> Option<KeyValue> {
        let before = self.get(key, revision)?;
        let deleted =
            Version { mod_revision: revision, create_revision: 0, version: 0, lease: 0, value: None };
        self.keys.get_mut(key)?.push(deleted);
        Some(before)
    }

    /// Forgets the versions of one key that cannot be read at `revision` or later.
    pub(crate) fn compact(&mut self, key: &[u8], revision: Revision) {
        let Some(versions) = self.keys.get_mut(key) else { return };
        let newer = versions.partition_point(|version| version.mod_revision <= revision);
        // The newest version at `revision` stays, unless it says that the key is gone.
        let keep = match newer.checked_sub(1) {
            Some(newest) if versions[newest].value.is_some() => newest,
            _ => newer,
        };
        versions.drain(..keep);
        if versions.is_empty() {
            self.keys.remove(key);
        } else if versions.capacity() > 2 * versions.len() {
            versions.shrink_to_fit();
        }
    }
}

/// The version to be seen at a revision, if the key is live there.
fn live(versions: &[Version], at: Revision) -> Option<&Version> {
    let newer = versions.partition_point(|version| version.mod_revision <= at);
    let version = &versions[newer.checked_sub(1)?];
    version.value.is_some().then_some(version)
}

impl Version {
    fn key_value(&self, key: &Bytes) -> KeyValue {
        KeyValue {
            key: key.clone(),
            value: self.value.clone().unwrap_or_default(),
            create_revision: self.create_revision,
            mod_revision: self.mod_revision,
            version: self.version,
            lease: self.lease,
        }
    }
}

/// A live key found by a walk; made into a [`KeyValue`] only where one is wanted.
pub(crate) struct Hit<'a> {
    key: &'a Bytes,
    version: &'a Version,
}

impl Hit<'_> {
    /// The key with its value, or without (`keys_only`).
    pub(crate) fn key_value(&self, keys_only: bool) -> KeyValue {
        let kv = self.version.key_value(self.key);
        if keys_only { KeyValue { value: Bytes::new(), ..kv } } else { kv }
    }
}

/// A range of keys with its end worked out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Range {
    start: Bytes,
    stop: Stop,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Stop {
    /// The start alone.
    Single,
    Before(Bytes),
    Never,
}

impl Range {
    pub(crate) fn new(key: Bytes, end: RangeEnd) -> Self {
        let stop = match end {
            RangeEnd::Single => Stop::Single,
            RangeEnd::Before(end) => Stop::Before(end),
            RangeEnd::Prefix => after_prefix(&key).map_or(Stop::Never, Stop::Before),
        };
        Self { start: key, stop }
    }

    /// Every key.
    pub(crate) fn all() -> Self {
        Self { start: Bytes::new(), stop: Stop::Never }
    }

    pub(crate) fn contains(&self, key: &[u8]) -> bool {
        match &self.stop {
            Stop::Single => key == self.start,
            Stop::Before(end) => key >= &self.start[..] && key < &end[..],
            Stop::Never => key >= &self.start[..],
        }
    }

    fn is_empty(&self) -> bool {
        matches!(&self.stop, Stop::Before(end) if *end <= self.start)
    }

    /// Only for ranges that are not empty: `BTreeMap::range` panics on a reversed one.
    fn bounds(&self) -> (Bound<&[u8]>, Bound<&[u8]>) {
        let stop = match &self.stop {
            Stop::Single => Bound::Included(&self.start[..]),
            Stop::Before(end) => Bound::Excluded(&end[..]),
            Stop::Never => Bound::Unbounded,
        };
        (Bound::Included(&self.start[..]), stop)
    }
}

/// The first key behind all that start with `prefix`; none where no key is behind (empty or all 0xff).
pub(crate) fn after_prefix(prefix: &[u8]) -> Option<Bytes> {
    let last = prefix.iter().rposition(|byte| *byte != 0xff)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(key: &'static str, end: RangeEnd) -> Range {
        Range::new(Bytes::from_static(key.as_bytes()), end)
    }

    #[test]
    fn prefixes_end_where_they_should() {
        assert_eq!(after_prefix(b"ab"), Some(Bytes::from_static(b"ac")));
        assert_eq!(after_prefix(b"a\xff\xff"), Some(Bytes::from_static(b"b")));
        assert_eq!(after_prefix(b"\xff"), None);
        assert_eq!(after_prefix(b""), None);
        assert!(range("a", RangeEnd::Prefix).contains(b"a\xff\xff"));
        assert!(!range("a", RangeEnd::Prefix).contains(b"b"));
        assert!(range("", RangeEnd::Prefix).contains(b"\xff"));
    }

    #[test]
    fn a_reversed_range_is_empty() {
        let mut index = Index::default();
        index.put("b".into(), "1".into(), 0, 2);
        assert!(index.keys(&range("b", RangeEnd::Before("a".into())), 2).is_empty());
        assert!(index.keys(&range("b", RangeEnd::Before("b".into())), 2).is_empty());
        assert_eq!(index.keys(&range("a", RangeEnd::Before("c".into())), 2), ["b"]);
    }

    #[test]
    fn compaction_keeps_what_can_still_be_read() {
        let mut index = Index::default();
        for revision in 2..6 {
            index.put("k".into(), revision.to_string().into(), 0, revision);
        }
        index.delete(b"k", 6);
        index.compact(b"k", 4);
        assert_eq!(index.get(b"k", 4).unwrap().value, "4");
        assert_eq!(index.get(b"k", 5).unwrap().version, 4);
        assert!(index.get(b"k", 3).is_none());
        index.compact(b"k", 6);
        assert!(index.keys.is_empty());
    }

    #[test]
    fn a_walk_goes_on_where_it_stopped() {
        let mut index = Index::default();
        for key in ["a", "b", "c"] {
            index.put(key.into(), "1".into(), 0, 2);
        }
        let mut seen = Vec::new();
        let rest = index.walk(&Range::all(), Walk { at: 2, max: 2 }, |key, _| seen.push(key.clone()));
        let end = index.walk(&rest.unwrap(), Walk { at: 2, max: 2 }, |key, _| seen.push(key.clone()));
        assert_eq!(end, None);
        assert_eq!(seen, ["a", "b", "c"]);
    }
}
