//! The pods of sets, and how far each has come: read once for each version of a pod, however often its set is looked at.

use std::collections::HashMap;
use std::sync::Arc;

use api::Object;
use base::BoxError;
use parking_lot::Mutex;

use crate::context::decode;
use crate::pods::{Pod, Standing};

/// A pod of a set.
#[derive(Debug, Clone)]
pub(super) struct Member {
    pub(super) pod: Arc<Object>,
    pub(super) standing: Standing,
}

/// How far pods have come, by uid, with the version that says so.
#[derive(Debug, Default)]
pub(super) struct Standings(Mutex<HashMap<String, (i64, Standing)>>);

impl Standings {
    /// A pod has a new version. One that cannot be read is left to whoever asks for it.
    pub(super) fn put(&self, pod: &Object) {
        let read = read(pod);
        let mut held = self.0.lock();
        match read {
            Ok(standing) => drop(held.insert(pod.meta().uid.clone(), (pod.revision(), standing))),
            Err(_) => drop(held.remove(&pod.meta().uid)),
        }
    }

    /// A pod is gone.
    pub(super) fn remove(&self, uid: &str) {
        self.0.lock().remove(uid);
    }

    /// How far a pod has come in this version of it.
    pub(super) fn of(&self, pod: &Object) -> Result<Standing, BoxError> {
        let held = self.0.lock().get(&pod.meta().uid).copied();
        match held {
            Some((revision, standing)) if revision == pod.revision() => Ok(standing),
            // The cache shows another version than its listeners were told of last.
            _ => read(pod),
        }
    }
}

fn read(pod: &Object) -> Result<Standing, BoxError> {
    decode::<Pod>(pod).map(|pod| Standing::from(&pod))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(revision: &str, phase: &str) -> Object {
        let pod = json!({
            "metadata": { "name": "a", "uid": "u", "resourceVersion": revision }, "status": { "phase": phase },
        });
        Object::parse(serde_json::to_vec(&pod).unwrap().into()).unwrap()
    }

    #[test]
    fn each_version_counts_for_itself() {
        let standings = Standings::default();
        standings.put(&pod("5", "Running"));
        // What is held is what is answered: the object itself is not read again.
        assert!(standings.of(&pod("5", "Failed")).unwrap().is_active());
        assert!(!standings.of(&pod("6", "Failed")).unwrap().is_active());
        standings.remove("u");
        assert!(!standings.of(&pod("5", "Failed")).unwrap().is_active());
        assert!(standings.0.lock().is_empty());
    }
}
