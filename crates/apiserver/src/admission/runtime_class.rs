//! RuntimeClass: a pod gets its class's overhead, node selector and tolerations.
//! Source: `plugin/pkg/admission/runtimeclass`, `pkg/util/tolerations`.

use api::Status;
use api::resources::amounts;
use async_trait::async_trait;
use serde_json::Value;

use super::lifecycle::{creates_pod, forbidden, spec_text};
use super::{Link, Review, World, decoded};
use crate::tree;

const MISMATCH: &str = "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead";
const UNFOUNDED: &str = "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead";

/// The link.
#[derive(Debug, Default, Clone, Copy)]
pub struct RuntimeClass;

#[async_trait]
impl Link for RuntimeClass {
    fn name(&self) -> &'static str {
        "RuntimeClass"
    }

    fn about(&self) -> &'static [(&'static str, &'static str)] {
        &[("", "pods")]
    }

    async fn mutate(&self, review: &Review<'_>, pod: &mut Value, world: &dyn World) -> Result<(), Status> {
        if !creates_pod(review) {
            return Ok(());
        }
        let class = class_of(review, pod, world).await?;
        give_overhead(pod, &class).map_err(|why| forbidden(review, why))?;
        give_scheduling(pod, tree::at(&class, &["scheduling"])).map_err(|why| forbidden(review, &why))
    }

    async fn validate(
        &self,
        review: &Review<'_>,
        object: Option<&Value>,
        world: &dyn World,
    ) -> Result<(), Status> {
        let Some(pod) = object.filter(|_| creates_pod(review)) else { return Ok(()) };
        let class = class_of(review, pod, world).await?;
        let overhead = tree::at(pod, &["spec", "overhead"]);
        let why = match tree::at(&class, &["overhead"]) {
            Value::Null if overhead.is_null() => return Ok(()),
            Value::Null => UNFOUNDED,
            defined if amounts(tree::at(defined, &["podFixed"])) == amounts(overhead) => return Ok(()),
            _ => MISMATCH,
        };
        Err(forbidden(review, why))
    }
}

/// The class that a pod names; null where it names none.
async fn class_of(review: &Review<'_>, pod: &Value, world: &dyn World) -> Result<Value, Status> {
    let name = spec_text(pod, "runtimeClassName");
    if name.is_empty() {
        return Ok(Value::Null);
    }
    match world.find("node.k8s.io", "runtimeclasses", "", name).await? {
        Some(class) => decoded(&class),
        None => Err(forbidden(review, &format!("pod rejected: RuntimeClass \"{name}\" not found"))),
    }
}

fn give_overhead(pod: &mut Value, class: &Value) -> Result<(), &'static str> {
    let defined = tree::at(class, &["overhead"]);
    if defined.is_null() {
        return Ok(());
    }
    let fixed = tree::at(defined, &["podFixed"]);
    let said = tree::at(pod, &["spec", "overhead"]);
    if !said.is_null() && amounts(said) != amounts(fixed) {
        return Err(MISMATCH);
    }
    if !fixed.is_null() {
        tree::object(pod, "spec").insert("overhead".into(), fixed.clone());
    }
    Ok(())
}

fn give_scheduling(pod: &mut Value, scheduling: &Value) -> Result<(), String> {
    if scheduling.is_null() {
        return Ok(());
    }
    let selector = tree::at(scheduling, &["nodeSelector"]).as_object();
    if let Some(selector) = selector.filter(|selector| !selector.is_empty()) {
        let own = tree::object(tree::member(pod, "spec"), "nodeSelector");
        for (key, wanted) in selector {
            if let Some(said) = own.get(key).filter(|said| *said != wanted) {
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                return Err(format!(
                    "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {}; pod.spec.nodeSelector[{key}] = {}",
                    text(wanted),
                    text(said)
                ));
            }
            own.insert(key.clone(), wanted.clone());
        }
    }
    let own = tree::items(pod, &["spec", "tolerations"]);
    let merged = merge(own, tree::items(scheduling, &["tolerations"]));
    if !merged.is_empty() {
        tree::object(pod, "spec").insert("tolerations".into(), merged.into());
    }
    Ok(())
}

/// Both lists, without those that another one of them contains. Pure.
fn merge(first: &[Value], second: &[Value]) -> Vec<Value> {
    let all: Vec<&Value> = first.iter().chain(second).collect();
    let mut merged: Vec<Value> = Vec::new();
    for (at, one) in all.iter().enumerate() {
        let earlier = merged.iter().any(|known| contains(known, one));
        let later = all[at + 1..].iter().any(|other| other != one && contains(other, one));
        if !earlier && !later {
            merged.push((*one).clone());
        }
    }
    merged
}

/// Whether a toleration tolerates all that another does.
fn contains(large: &Value, small: &Value) -> bool {
    let text = |toleration, field| tree::text(toleration, &[field]);
    let seconds = |toleration: &Value| tree::at(toleration, &["tolerationSeconds"]).as_i64();
    if large == small {
        return true;
    }
    let any_key = text(large, "key").is_empty() && text(large, "operator") == "Exists";
    let same_key = text(large, "key") == text(small, "key");
    let effect = text(large, "effect");
    let same_effect = effect.is_empty() || effect == text(small, "effect");
    let shorter = effect == "NoExecute"
        && seconds(large).is_some_and(|most| seconds(small).is_none_or(|asked| asked > most));
    if !(any_key || same_key) || !same_effect || shorter {
        return false;
    }
    match text(large, "operator") {
        "Equal" | "" => text(small, "operator") == "Equal" && text(small, "value") == text(large, "value"),
        "Exists" => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn overhead_is_the_classes() {
        let class = json!({ "overhead": { "podFixed": { "cpu": "100m" } } });
        let mut pod = json!({ "spec": {} });
        give_overhead(&mut pod, &class).unwrap();
        assert_eq!(pod["spec"]["overhead"], json!({ "cpu": "100m" }));
        assert_eq!(give_overhead(&mut json!({ "spec": { "overhead": { "cpu": "0.1" } } }), &class), Ok(()));
        let other = &mut json!({ "spec": { "overhead": { "cpu": "1" } } });
        assert_eq!(give_overhead(other, &class), Err(MISMATCH));
    }

    #[test]
    fn selectors_merge_or_conflict() {
        let scheduling = json!({ "nodeSelector": { "a": "1" } });
        let mut pod = json!({ "spec": { "nodeSelector": { "b": "2" } } });
        give_scheduling(&mut pod, &scheduling).unwrap();
        assert_eq!(pod["spec"]["nodeSelector"], json!({ "a": "1", "b": "2" }));
        let mut other = json!({ "spec": { "nodeSelector": { "a": "2" } } });
        assert_eq!(
            give_scheduling(&mut other, &scheduling).unwrap_err(),
            "conflict: runtimeClass.scheduling.nodeSelector[a] = 1; pod.spec.nodeSelector[a] = 2"
        );
    }

    #[test]
    fn contained_tolerations_go() {
        let all = json!({ "operator": "Exists" });
        let one = json!({ "key": "k", "operator": "Equal", "value": "v", "effect": "NoSchedule" });
        let other =
            json!({ "key": "k", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5 });
        let longer =
            json!({ "key": "k", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 9 });
        let merged =
            |first: &Value, second: &Value| merge(std::slice::from_ref(first), std::slice::from_ref(second));
        assert_eq!(merged(&one, &all), [all]);
        assert_eq!(merged(&one, &one).len(), 1);
        assert_eq!(merged(&other, &longer), [longer]);
        assert_eq!(merged(&one, &other), [one, other]);
    }
}
