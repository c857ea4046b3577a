//! Decides how many pods to make, or which to delete.

use std::collections::HashMap;

use jiff::Timestamp;
use reconcile::Kind;
use serde_json::Value;

use super::members::Member;
use super::types::Set;
use crate::pods::{Candidate, deletion_order};
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
    /// Delete these, by index into the active pods.
    Delete(Vec<usize>),
}

/// Compares the active pods with what is wanted. `per_node` counts the active pods of this set and its siblings (sets of
/// the same owner) by node: pods on crowded nodes go first. It is asked only where pods have to go.
pub(super) fn plan(
    set: &Set,
    active: &[Member],
    per_node: impl FnOnce() -> HashMap<String, usize>,
    now: Timestamp,
) -> Decision {
    let wanted = usize::try_from(set.replicas()).unwrap_or(0);
    if active.len() < wanted {
        return Decision::Create((wanted - active.len()).min(BURST));
    }
    let surplus = (active.len() - wanted).min(BURST);
    if surplus == 0 {
        return Decision::Nothing;
    }
    let per_node = per_node();
    let candidates: Vec<Candidate<'_>> = active
        .iter()
        .map(|Member { pod, standing }| Candidate {
            standing,
            uid: &pod.meta().uid,
            siblings: pod.node_name().and_then(|node| per_node.get(node)).copied().unwrap_or(0),
        })
        .collect();
    let mut order: Vec<usize> = (0..active.len()).collect();
    order.sort_by(|a, b| deletion_order(candidates[*a], candidates[*b], now));
    order.truncate(surplus);
    Decision::Delete(order)
}

/// The pod that a set's template stands for.
pub(super) fn pod_body(kind: &Kind, set: &Set) -> Value {
    template::pod(&set.spec.template, kind, &set.metadata)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use api::Object;
    use serde_json::json;

    use super::super::members::Standings;
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

    fn running(node: &str) -> Member {
        let pod = json!({ "spec": { "nodeName": node }, "status": { "phase": "Running" } });
        let pod = Arc::new(Object::parse(serde_json::to_vec(&pod).unwrap().into()).unwrap());
        Member { standing: Standings::default().of(&pod).unwrap(), pod }
    }

    #[test]
    fn makes_what_is_missing_and_deletes_from_crowded_nodes() {
        let now = Timestamp::UNIX_EPOCH;
        let pods = [running("a"), running("b"), running("b")];
        let none = HashMap::new;
        assert_eq!(plan(&set(3), &pods, none, now), Decision::Nothing);
        assert_eq!(plan(&set(5), &pods, none, now), Decision::Create(2));
        assert_eq!(plan(&set(2000), &pods, none, now), Decision::Create(500));
        let crowd = HashMap::from([("a".to_owned(), 1), ("b".to_owned(), 2)]);
        let Decision::Delete(victims) = plan(&set(2), &pods, || crowd, now) else {
            panic!("one is too many")
        };
        assert!(victims == [1] || victims == [2]);
        assert_eq!(plan(&set(-1), &pods[..1], none, now), Decision::Delete(vec![0]));
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
