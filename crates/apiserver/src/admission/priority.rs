//! Priority: turns the name of a priority class into a number, and keeps the classes' order: one default, none above the
//! system's own. Source: `plugin/pkg/admission/priority`.

use api::Status;
use async_trait::async_trait;
use serde_json::Value;

use super::lifecycle::{forbidden, is, spec_text};
use super::{Link, Operation, Review, World, decoded};
use crate::tree;

const GROUP: &str = "scheduling.k8s.io";
const CLASSES: &str = "priorityclasses";

/// The link.
#[derive(Debug, Default, Clone, Copy)]
pub struct Priority;

#[async_trait]
impl Link for Priority {
    fn name(&self) -> &'static str {
        "Priority"
    }

    fn about(&self) -> &'static [(&'static str, &'static str)] {
        &[("", "pods"), (GROUP, CLASSES)]
    }

    async fn mutate(&self, review: &Review<'_>, pod: &mut Value, world: &dyn World) -> Result<(), Status> {
        if !is(review, "", "pods", "") {
            return Ok(());
        }
        match (review.operation, review.old) {
            (Operation::Create, _) => {
                let class = class_of(review, pod, world).await?;
                give(pod, &class).map_err(|why| forbidden(review, &why))
            }
            // An update that leaves out what was given here says nothing about it.
            (Operation::Update, Some(old)) => {
                for field in ["priority", "preemptionPolicy"] {
                    let spec = tree::member(pod, "spec");
                    if tree::at(spec, &[field]).is_null() {
                        tree::copy(tree::at(old, &["spec"]), spec, field);
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    async fn validate(
        &self,
        review: &Review<'_>,
        object: Option<&Value>,
        world: &dyn World,
    ) -> Result<(), Status> {
        let writes = matches!(review.operation, Operation::Create | Operation::Update);
        let Some(class) = object.filter(|_| writes && is(review, GROUP, CLASSES, "")) else { return Ok(()) };
        if tree::at(class, &["globalDefault"]).as_bool() != Some(true) {
            return Ok(());
        }
        let Some(known) = default_class(world)? else { return Ok(()) };
        let name = tree::text(&known, &["metadata", "name"]);
        if review.operation == Operation::Update && name == review.name {
            return Ok(());
        }
        let why = format!("PriorityClass {name} is already marked as default. Only one default can exist");
        Err(forbidden(review, &why))
    }
}

/// The class that a pod names, or the default; null where there is neither.
async fn class_of(review: &Review<'_>, pod: &Value, world: &dyn World) -> Result<Value, Status> {
    let name = spec_text(pod, "priorityClassName");
    if name.is_empty() {
        return Ok(default_class(world)?.unwrap_or_default());
    }
    match world.find(GROUP, CLASSES, "", name).await? {
        Some(class) => decoded(&class),
        None => Err(forbidden(review, &format!("no PriorityClass with name {name} was found"))),
    }
}

/// The default; should two have come in at once, the lower one.
fn default_class(world: &dyn World) -> Result<Option<Value>, Status> {
    let classes = world.all(GROUP, CLASSES, "");
    let classes: Vec<Value> = classes.iter().map(|class| decoded(class)).collect::<Result<_, _>>()?;
    let marked = classes.into_iter().filter(|class| tree::at(class, &["globalDefault"]) == true);
    Ok(marked.min_by_key(|class| tree::at(class, &["value"]).as_i64()))
}

/// Gives a new pod what its class says, unless the pod says otherwise. Pure.
fn give(pod: &mut Value, class: &Value) -> Result<(), String> {
    let value = tree::at(class, &["value"]).as_i64().unwrap_or(0);
    let policy = tree::text(class, &["preemptionPolicy"]);
    let policy = if policy.is_empty() { "PreemptLowerPriority" } else { policy };
    let spec = tree::object(pod, "spec");
    if let Some(asked) = spec.get("priority").and_then(Value::as_i64).filter(|asked| *asked != value) {
        return Err(format!(
            "the integer value of priority ({asked}) must not be provided in pod spec; priority admission controller \
             computed {value} from the given PriorityClass name"
        ));
    }
    if let Some(asked) = spec.get("preemptionPolicy").and_then(Value::as_str).filter(|asked| *asked != policy)
    {
        return Err(format!(
            "the string value of PreemptionPolicy ({asked}) must not be provided in pod spec; priority admission \
             controller computed {policy} from the given PriorityClass name"
        ));
    }
    spec.insert("priority".into(), value.into());
    spec.insert("preemptionPolicy".into(), policy.into());
    if let Some(name) = tree::at(class, &["metadata", "name"]).as_str() {
        spec.insert("priorityClassName".into(), name.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_gets_its_classes_number_and_no_other() {
        let class = json!({ "metadata": { "name": "high" }, "value": 1000, "preemptionPolicy": "Never" });
        let mut pod = json!({ "spec": { "priority": 1000 } });
        give(&mut pod, &class).unwrap();
        assert_eq!(
            pod["spec"],
            json!({ "priority": 1000, "preemptionPolicy": "Never", "priorityClassName": "high" })
        );
        let why = give(&mut json!({ "spec": { "priority": 7 } }), &class).unwrap_err();
        assert!(
            why.starts_with("the integer value of priority (7) must not be provided in pod spec;"),
            "{why}"
        );
        assert!(why.contains("computed 1000 from"), "{why}");
        let why = give(&mut json!({ "spec": { "preemptionPolicy": "PreemptLowerPriority" } }), &class);
        assert!(why.unwrap_err().contains("(PreemptLowerPriority) must not be provided"));
        let mut plain = json!({});
        give(&mut plain, &Value::Null).unwrap();
        assert_eq!(plain["spec"], json!({ "priority": 0, "preemptionPolicy": "PreemptLowerPriority" }));
    }
}
