//! The moment of the change that slices and Endpoints tell of, by which the delay until a proxy knows is measured.
//! Source: `k8s.io/endpointslice/util`, `TriggerTimeTracker`.

use std::collections::{BTreeMap, HashMap};

use api::Key;
use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::types::Service;
use crate::pods::Pod;

/// The annotation that says it.
pub(super) const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// What each Service and its pods said when it was looked at last.
#[derive(Default)]
pub(super) struct Triggers {
    seen: Mutex<HashMap<Key, Seen>>,
}

#[derive(Default)]
struct Seen {
    service: Option<Timestamp>,
    pods: HashMap<String, Timestamp>,
}

impl Triggers {
    /// The oldest of the changes since the Service was looked at last; the first time, when it was made.
    pub(super) fn next(&self, key: &Key, service: &Service, pods: &[Pod]) -> Option<Timestamp> {
        let created = service.metadata.creation_timestamp;
        let now = Seen {
            service: created,
            pods: pods
                .iter()
                .filter_map(|pod| Some((pod.metadata.name.clone(), pod.readiness_changed()?)))
                .collect(),
        };
        let mut seen = self.seen.lock();
        let oldest = match seen.get(key) {
            None => created,
            Some(before) => {
                let newer =
                    now.pods.iter().filter(|(name, at)| before.pods.get(*name).is_none_or(|was| *at > was));
                let service = created.filter(|at| before.service.is_none_or(|was| *at > was));
                newer.map(|(_, at)| *at).chain(service).min()
            }
        };
        seen.insert(key.clone(), now);
        oldest
    }

    /// A Service is gone.
    pub(super) fn forget(&self, key: &Key) {
        self.seen.lock().remove(key);
    }
}

/// The annotation for a merge patch, if it has to change: a write for another reason takes it away.
pub(super) fn annotations(trigger: Option<Timestamp>, held: &BTreeMap<String, String>) -> Option<Value> {
    let wanted = trigger.map(|at| at.to_string());
    (held.get(TRIGGER_TIME) != wanted.as_ref()).then(|| json!({ TRIGGER_TIME: wanted }))
}

/// What a merge patch of a map says so that `held` becomes `wanted`.
pub(super) fn changes(
    held: &BTreeMap<String, String>,
    wanted: &BTreeMap<String, String>,
) -> BTreeMap<String, Value> {
    let kept = wanted.iter().map(|(name, value)| (name.clone(), value.as_str().into()));
    let gone = held.keys().filter(|name| !wanted.contains_key(*name));
    kept.chain(gone.map(|name| (name.clone(), Value::Null))).collect()
}
