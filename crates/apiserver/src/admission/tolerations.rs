//! DefaultTolerationSeconds: pods stay for five minutes on a node that is unreachable or not ready, unless they say
//! otherwise. Source: `plugin/pkg/admission/defaulttolerationseconds`.

use api::Status;
use async_trait::async_trait;
use serde_json::{Value, json};

use super::lifecycle::is;
use super::{Link, Operation, Review, World};
use crate::tree;

const TOLERATED: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];
const TOLERATION_SECONDS: i64 = 300;

/// The link.
#[derive(Debug, Default, Clone, Copy)]
pub struct DefaultTolerationSeconds;

#[async_trait]
impl Link for DefaultTolerationSeconds {
    fn name(&self) -> &'static str {
        "DefaultTolerationSeconds"
    }

    fn about(&self) -> &'static [(&'static str, &'static str)] {
        &[("", "pods")]
    }

    async fn mutate(&self, review: &Review<'_>, pod: &mut Value, _: &dyn World) -> Result<(), Status> {
        let writes = matches!(review.operation, Operation::Create | Operation::Update);
        if writes && is(review, "", "pods", "") {
            add_tolerations(tree::member(pod, "spec"));
        }
        Ok(())
    }
}

fn add_tolerations(spec: &mut Value) {
    for key in TOLERATED {
        let tolerates = |toleration: &Value| {
            let (known, effect) = (tree::text(toleration, &["key"]), tree::text(toleration, &["effect"]));
            (known == key || known.is_empty()) && matches!(effect, "NoExecute" | "")
        };
        if tree::items(spec, &["tolerations"]).iter().any(tolerates) {
            continue;
        }
        let list = tree::members(spec).entry("tolerations").or_insert_with(|| json!([]));
        if !list.is_array() {
            *list = json!([]);
        }
        if let Some(list) = list.as_array_mut() {
            list.push(json!({
                "key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": TOLERATION_SECONDS,
            }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tolerations_are_added_once() {
        let mut spec =
            json!({ "tolerations": [{ "key": "node.kubernetes.io/not-ready", "effect": "NoExecute" }] });
        add_tolerations(&mut spec);
        add_tolerations(&mut spec);
        assert_eq!(spec["tolerations"].as_array().unwrap().len(), 2);
    }
}
