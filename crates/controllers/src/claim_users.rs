//! Which pods use which claims, kept as pods change: a pod without claims costs a look-up.
//! Source: `pvc_protection_controller.go`, `common.PodPVCIndexFunc`.

use std::collections::{BTreeSet, HashMap};

use api::{Key, Object, ObjectMeta};
use parking_lot::Mutex;
use reconcile::Change;
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::pods::PodState;

/// The pods that use claims. A pod that has ended uses none any more; one that has no node yet does.
#[derive(Default)]
pub(crate) struct ClaimUsers(Mutex<Held>);

#[derive(Default)]
struct Held {
    /// The claims of each pod, by its uid.
    claims: HashMap<String, Vec<Key>>,
    /// The uids of each claim's pods.
    users: HashMap<Key, BTreeSet<String>>,
}

impl ClaimUsers {
    /// Takes over what became of a pod; gives the claims that it began or ceased to use.
    pub(crate) fn changed(&self, change: &Change) -> Vec<Key> {
        let mut held = self.0.lock();
        let (old, new) = (change.old.as_deref(), change.new.as_deref());
        let gone = old.filter(|old| new.is_none_or(|new| new.meta().uid != old.meta().uid));
        let mut touched = gone.map(|gone| held.drop_pod(&gone.meta().uid)).unwrap_or_default();
        let Some(pod) = new else { return touched };
        if held.claims.contains_key(&pod.meta().uid) {
            if read(pod).has_ended() {
                touched.extend(held.drop_pod(&pod.meta().uid));
            }
        } else if old.is_none() || gone.is_some() {
            // What a pod uses is said when it is made.
            touched.extend(held.put_pod(pod));
        }
        touched
    }

    /// Whether some pod uses a claim.
    pub(crate) fn uses(&self, claim: &Key) -> bool {
        self.0.lock().users.contains_key(claim)
    }
}

impl Held {
    fn put_pod(&mut self, pod: &Object) -> Vec<Key> {
        let (meta, body) = (pod.meta(), read(pod));
        if body.has_ended() {
            return Vec::new();
        }
        let claims = body.claims(&meta.namespace, &meta.name);
        if claims.is_empty() {
            return claims;
        }
        for claim in &claims {
            self.users.entry(claim.clone()).or_default().insert(meta.uid.clone());
        }
        self.claims.insert(meta.uid.clone(), claims.clone());
        claims
    }

    fn drop_pod(&mut self, uid: &str) -> Vec<Key> {
        let claims = self.claims.remove(uid).unwrap_or_default();
        for claim in &claims {
            let Some(users) = self.users.get_mut(claim) else { continue };
            users.remove(uid);
            if users.is_empty() {
                self.users.remove(claim);
            }
        }
        claims
    }
}

/// What is looked at of a pod.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Body {
    metadata: ObjectMeta,
    spec: Spec,
    status: PodState,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Spec {
    volumes: Vec<Volume>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Volume {
    name: String,
    persistent_volume_claim: Option<Source>,
    ephemeral: Option<IgnoredAny>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Source {
    claim_name: String,
}

impl Body {
    fn has_ended(&self) -> bool {
        self.status.is_terminated(self.metadata.is_terminating())
    }

    /// The claims that it names as a pod of this name.
    fn claims(self, namespace: &str, pod: &str) -> Vec<Key> {
        let claim = |volume: Volume| match (volume.persistent_volume_claim, volume.ephemeral) {
            (Some(source), _) => Some(Key::new(namespace, source.claim_name)),
            (None, Some(_)) => Some(Key::new(namespace, format!("{pod}-{}", volume.name))),
            (None, None) => None,
        };
        self.spec.volumes.into_iter().filter_map(claim).collect()
    }
}

/// A pod that cannot be read names no claims and has not ended.
fn read(pod: &Object) -> Body {
    pod.decode().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;

    fn pod(uid: &str, phase: &str, claims: &[&str]) -> Option<Arc<Object>> {
        let volumes: Vec<Value> =
            claims.iter().map(|name| json!({ "persistentVolumeClaim": { "claimName": name } })).collect();
        let pod = json!({ "metadata": { "namespace": "ns", "name": "p", "uid": uid },
            "spec": { "volumes": volumes }, "status": { "phase": phase } });
        Some(Arc::new(Object::parse(pod.to_string().into()).unwrap()))
    }

    #[test]
    fn claims_are_used_by_pods_that_have_not_ended() {
        let users = ClaimUsers::default();
        let told = |old: &Option<Arc<Object>>, new: &Option<Arc<Object>>| {
            let change = Change { key: Key::new("ns", "p"), old: old.clone(), new: new.clone() };
            users.changed(&change).into_iter().map(|key| key.name).collect::<Vec<_>>()
        };
        let used = || ["a", "b"].map(|name| users.uses(&Key::new("ns", name)));
        let [first, running, ended] =
            ["Pending", "Running", "Succeeded"].map(|phase| pod("1", phase, &["a", "b"]));
        assert_eq!((told(&None, &first), used()), (vec!["a".to_owned(), "b".to_owned()], [true, true]));
        assert_eq!(told(&first, &running), [""; 0]);
        let second = pod("2", "Pending", &["b"]);
        assert_eq!(told(&None, &second), ["b"]);
        assert_eq!((told(&running, &ended), used()), (vec!["a".to_owned(), "b".to_owned()], [false, true]));
        assert_eq!(told(&ended, &None), [""; 0]);
        // Another one of the name has come meanwhile.
        let other = pod("3", "Pending", &["a"]);
        assert_eq!((told(&second, &other), used()), (vec!["b".to_owned(), "a".to_owned()], [true, false]));
        assert_eq!((told(&other, &None), used()), (vec!["a".to_owned()], [false, false]));
        assert_eq!(told(&None, &pod("4", "Failed", &["a"])), [""; 0]);
        assert_eq!((told(&None, &pod("5", "Pending", &[])), used()), (Vec::new(), [false, false]));
        let held = users.0.lock();
        assert!(held.claims.is_empty() && held.users.is_empty());
    }

    #[test]
    fn a_pod_that_goes_and_runs_nothing_uses_no_claim() {
        let going = |statuses: Value| -> Arc<Object> {
            let pod = json!({ "metadata": { "namespace": "ns", "name": "p", "uid": "u",
                    "deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": 30 },
                "spec": { "volumes": [{ "name": "v", "persistentVolumeClaim": { "claimName": "a" } }] },
                "status": { "phase": "Running", "containerStatuses": statuses } });
            Arc::new(Object::parse(serde_json::to_vec(&pod).unwrap().into()).unwrap())
        };
        let (users, claim) = (ClaimUsers::default(), Key::new("ns", "a"));
        let change = |old, new| Change { key: Key::new("ns", "p"), old, new };
        let running = going(json!([{ "state": { "running": {} } }]));
        users.changed(&change(None, Some(running.clone())));
        assert!(users.uses(&claim));
        let ended = going(json!([{ "state": { "terminated": { "exitCode": 0 } } }]));
        assert_eq!(users.changed(&change(Some(running), Some(ended))), std::slice::from_ref(&claim));
        assert!(!users.uses(&claim));
    }
}
