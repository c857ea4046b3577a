//! Decides how many pods to make or to delete.

use std::cmp::Ordering;

use reconcile::Kind;
use serde_json::Value;

use super::roster::Aim;
use super::types::Set;
use crate::template;

/// At most so many pods are made or deleted in one go. Source: `BurstReplicas`.
const BURST: usize = 500;

/// What to do about the number of pods.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// It is right.
    Nothing,
    /// Make so many.
    Create(usize),
    /// Delete some.
    Delete(Aim),
}

/// Compares the number of active pods with what is wanted.
pub(super) fn plan(set: &Set, active: usize) -> Decision {
    let wanted = usize::try_from(set.replicas()).unwrap_or(0);
    match active.cmp(&wanted) {
        Ordering::Less => Decision::Create((wanted - active).min(BURST)),
        Ordering::Equal => Decision::Nothing,
        Ordering::Greater => Decision::Delete(Aim { wanted, most: BURST }),
    }
}

/// The pod that a set's template stands for.
pub(super) fn pod_body(kind: &Kind, set: &Set) -> Value {
    template::pod(&set.spec.template, kind, &set.metadata)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn set(replicas: i64) -> Set {
        serde_json::from_value(json!({
            "metadata": { "name": "web", "namespace": "ns", "uid": "u" },
            "spec": { "replicas": replicas, "template": {
                "metadata": { "labels": { "app": "web" }, "creationTimestamp": null },
                "spec": { "containers": [], "future": { "field": 1 } } } },
        }))
        .unwrap()
    }

    #[test]
    fn what_is_missing_is_made_and_what_is_too_much_deleted() {
        for (wanted, active, decision) in [
            (3, 3, Decision::Nothing),
            (5, 3, Decision::Create(2)),
            (2000, 3, Decision::Create(500)),
            (2, 3, Decision::Delete(Aim { wanted: 2, most: 500 })),
            (-1, 1, Decision::Delete(Aim { wanted: 0, most: 500 })),
        ] {
            assert_eq!(plan(&set(wanted), active), decision);
        }
    }

    #[test]
    fn pods_keep_what_the_template_says() {
        let body = pod_body(&reconcile::kinds::REPLICA_SETS, &set(1));
        assert_eq!(body["spec"]["future"]["field"], 1);
        assert_eq!(body["metadata"]["generateName"], "web-");
        assert_eq!(body["metadata"]["ownerReferences"][0]["apiVersion"], "apps/v1");
        assert!(body["metadata"].get("creationTimestamp").is_none());
    }
}
