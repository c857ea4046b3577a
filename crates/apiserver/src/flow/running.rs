//! Requests as those see them who look on: who asks for what, and which of them run.

use std::sync::Arc;
use std::time::Instant;

use foldhash::HashMap;

use super::config::{Digest, Schema};

const PARTS: usize = 10;

/// What a request asks for. It is one piece of memory, as every request that runs has it.
#[derive(Clone)]
pub(super) struct About {
    texts: Box<str>,
    ends: [usize; PARTS],
}

/// The parts of [`About`].
pub(super) struct Parts<'a> {
    pub(super) distinguisher: &'a str,
    pub(super) user: &'a str,
    pub(super) verb: &'a str,
    pub(super) path: &'a str,
    pub(super) namespace: &'a str,
    pub(super) name: &'a str,
    pub(super) group: &'a str,
    pub(super) version: &'a str,
    pub(super) resource: &'a str,
    pub(super) subresource: &'a str,
}

impl About {
    pub(super) fn of(digest: &Digest<'_>, schema: &Schema) -> Self {
        let named = digest.resource.unwrap_or_default();
        let parts: [&str; PARTS] = [
            schema.distinguisher(digest),
            &digest.user.name,
            digest.verb,
            digest.path,
            named.namespace,
            named.name,
            named.group,
            named.version,
            named.resource,
            named.subresource,
        ];
        let mut end = 0;
        let ends = parts.map(|part| {
            end += part.len();
            end
        });
        Self { texts: parts.concat().into(), ends }
    }

    pub(super) fn parts(&self) -> Parts<'_> {
        let mut start = 0;
        let parts = self.ends.map(|end| {
            let part = self.texts.get(start..end).unwrap_or_default();
            start = end;
            part
        });
        let [distinguisher, user, verb, path, namespace, name, group, version, resource, subresource] = parts;
        Parts { distinguisher, user, verb, path, namespace, name, group, version, resource, subresource }
    }
}

/// A request that runs.
pub(super) struct Running {
    pub(super) schema: Arc<Schema>,
    pub(super) about: About,
    /// The queue that it is counted in, if its level has some.
    pub(super) queue: Option<usize>,
    pub(super) seats: u32,
    pub(super) arrived: Instant,
    pub(super) began: Instant,
}

/// All requests that run.
#[derive(Default)]
pub(super) struct Register {
    last: u64,
    known: HashMap<u64, Running>,
}

impl Register {
    /// A request begins; what it is known by until it ends.
    pub(super) fn begin(&mut self, request: Running) -> u64 {
        self.last += 1;
        self.known.insert(self.last, request);
        self.last
    }

    /// A request ended.
    pub(super) fn end(&mut self, id: u64) {
        self.known.remove(&id);
    }

    /// Those of a level, as they began.
    pub(super) fn of(&self, level: &str) -> Vec<&Running> {
        let own = self.known.iter().filter(|(_, running)| *running.schema.level == *level);
        let mut own: Vec<_> = own.collect();
        own.sort_by_key(|(id, _)| **id);
        own.into_iter().map(|(_, running)| running).collect()
    }
}
