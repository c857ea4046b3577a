//! Who a pod of a StatefulSet is: its name and ordinal, its labels, its host name, its volumes. Pure.

use reconcile::kinds;
use serde_json::{Map, Value, json};

use super::claims;
use super::types::{Member, REVISION_LABEL, StatefulSet};
use crate::template;

const NAME_LABEL: &str = "statefulset.kubernetes.io/pod-name";
const INDEX_LABEL: &str = "apps.kubernetes.io/pod-index";

/// The ordinal that a pod's name says, if it is one of the set.
pub(super) fn ordinal(set: &str, pod: &str) -> Option<i64> {
    let digits = pod.strip_prefix(set)?.strip_prefix('-')?;
    // A sign, or a zero in front, would make two names of one ordinal.
    let plain =
        digits.bytes().all(|digit| digit.is_ascii_digit()) && (digits == "0" || !digits.starts_with('0'));
    digits.parse::<i32>().ok().filter(|_| plain).map(i64::from)
}

/// The name of the pod with an ordinal.
pub(super) fn pod_name(set: &StatefulSet, ordinal: i64) -> String {
    format!("{}-{ordinal}", set.metadata.name)
}

/// A pod of a revision, with its identity. Source: `newStatefulSetPod`.
pub(super) fn pod(set: &StatefulSet, template: &Value, revision: &str, ordinal: i64) -> Value {
    let name = pod_name(set, ordinal);
    let mut pod = template::pod(template, &kinds::STATEFUL_SETS, &set.metadata);
    let labels = &mut pod["metadata"]["labels"];
    if !labels.is_object() {
        *labels = Value::Object(Map::new());
    }
    labels[NAME_LABEL] = name.as_str().into();
    labels[INDEX_LABEL] = ordinal.to_string().into();
    labels[REVISION_LABEL] = revision.into();
    let own = pod["spec"]["volumes"].take();
    let volumes = volumes(set, ordinal, own);
    if volumes.is_empty() {
        pod["spec"].as_object_mut().map(|spec| spec.remove("volumes"));
    } else {
        pod["spec"]["volumes"] = volumes.into();
    }
    pod["spec"]["hostname"] = name.as_str().into();
    if !set.spec.service_name.is_empty() {
        pod["spec"]["subdomain"] = set.spec.service_name.as_str().into();
    }
    pod["metadata"]["name"] = name.into();
    pod
}

/// The volumes of a pod: one for each claim, then its template's own; a claim takes the place of one of the same name.
fn volumes(set: &StatefulSet, ordinal: i64, own: Value) -> Vec<Value> {
    let mut volumes: Vec<Value> = claims::names(set, ordinal)
        .map(|(volume, claim)| json!({ "name": volume, "persistentVolumeClaim": { "claimName": claim } }))
        .collect();
    let Value::Array(own) = own else { return volumes };
    let claimed: Vec<&str> = set.spec.volume_claim_templates.iter().map(claims::template_name).collect();
    let is_claimed = |volume: &Value| volume["name"].as_str().is_some_and(|name| claimed.contains(&name));
    volumes.extend(own.into_iter().filter(|volume| !is_claimed(volume)));
    volumes
}

/// A strategic merge patch that gives a pod the identity and the volumes that it lacks. Source: `UpdateStatefulPod`.
pub(super) fn correction(set: &StatefulSet, member: &Member) -> Option<Value> {
    let meta = &member.pod.metadata;
    let mut patch = json!({});
    if meta.labels.get(NAME_LABEL) != Some(&meta.name) {
        patch["metadata"]["labels"] =
            json!({ NAME_LABEL: meta.name, INDEX_LABEL: member.ordinal.to_string() });
    }
    if claims::names(set, member.ordinal).any(|(volume, claim)| member.claims.get(volume) != Some(&claim)) {
        patch["spec"]["volumes"] = volumes(set, member.ordinal, Value::Null).into();
    }
    if patch == json!({}) {
        return None;
    }
    patch["metadata"]["uid"] = meta.uid.as_str().into();
    Some(patch)
}
