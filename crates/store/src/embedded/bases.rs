//! Keeps the log short: after a compaction, when enough of the log is superseded, a short-lived thread writes a base
//! beside the running store and removes the segments that it replaces.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use super::index::{Range, Walk};
use super::state::Snapshot;
use super::writer::Shared;
use crate::log::{BaseWriter, Log, abandon, record};

/// So many keys are read under one hold of the lock.
const KEYS_PER_LOCK: usize = 1024;

/// Decides when a base is due and owns the thread that writes it.
pub(crate) struct Bases {
    /// A base is written when it frees at least so many bytes.
    bytes_min: u64,
    /// The thread of the last base, which returns the base's size in bytes, and 0 where none was written.
    running: Option<JoinHandle<u64>>,
    /// The size of the last base: rewriting it has to pay.
    last_bytes: u64,
}

impl Bases {
    pub(crate) fn new(bytes_min: u64) -> Self {
        Self { bytes_min, running: None, last_bytes: 0 }
    }

    /// The history was compacted to `revision`, durably.
    pub(crate) fn compacted(&mut self, revision: i64, log: &mut Log, shared: &Arc<Shared>) {
        if self.running.as_ref().is_some_and(|thread| !thread.is_finished()) {
            return;
        }
        self.join();
        if log.superseded_bytes(revision) < self.bytes_min.max(self.last_bytes) {
            return;
        }
        let first_segment = log.split_off(revision);
        let Some(snapshot) = shared.state.read().snapshot(revision) else { return };
        let (backend, shared) = (log.backend().clone(), shared.clone());
        let write = move || {
            let written = BaseWriter::create(backend.clone(), snapshot.revision)
                .and_then(|writer| write(writer, &snapshot, &shared, first_segment));
            written.unwrap_or_else(|error| {
                // Nothing is lost: the segments stay until a later base succeeds. What there is of this one only takes room.
                let _ = abandon(&*backend, snapshot.revision);
                tracing::warn!(%error, revision = snapshot.revision, "cannot shorten the store's log");
                0
            })
        };
        #[allow(clippy::disallowed_methods, reason = "blocking file I/O; its owner joins it")]
        match std::thread::Builder::new().name("store-base".to_owned()).spawn(write) {
            Ok(thread) => self.running = Some(thread),
            Err(error) => tracing::warn!(%error, "cannot start the thread that shortens the store's log"),
        }
    }

    fn join(&mut self) {
        match self.running.take().map(JoinHandle::join) {
            Some(Ok(bytes)) if bytes > 0 => self.last_bytes = bytes,
            Some(Err(_)) => tracing::error!("the thread that shortens the store's log panicked"),
            _ => {}
        }
    }
}

impl Drop for Bases {
    fn drop(&mut self) {
        self.join();
    }
}

/// Writes the base; 0 if the history was compacted further meanwhile, so that this base cannot be read any more.
fn write(
    mut writer: BaseWriter,
    snapshot: &Snapshot,
    shared: &Shared,
    first_segment: u64,
) -> io::Result<u64> {
    for (lease, ttl_ms) in &snapshot.leases {
        writer.put(|out| record::put_grant(out, *lease, *ttl_ms))?;
    }
    let mut keys = 0;
    let mut rest = Some(Range::all());
    while let Some(range) = rest {
        let mut found = Vec::new();
        {
            let state = shared.state.read();
            if state.compacted > snapshot.revision {
                return writer.abandon().map(|()| 0);
            }
            let walk = Walk { at: snapshot.revision, max: KEYS_PER_LOCK };
            rest = state.index.walk(&range, walk, |_, hit| found.push(hit.key_value(false)));
        }
        keys += found.len() as u64;
        for kv in &found {
            writer.put(|out| record::put_key(out, kv))?;
        }
    }
    for event in snapshot.touched.iter() {
        writer.put(|out| record::put_touched(out, event.kind, &event.kv.key))?;
    }
    writer.put(|out| record::put_end(out, snapshot.revision, keys))?;
    writer.finish(first_segment)
}
