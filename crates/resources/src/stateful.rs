//! StatefulSets. Source: `apps/validation/validation.go`, `apps/v1/defaults.go`, `registry/apps/statefulset`.

use apiserver::field::FieldErrors;
use apiserver::strategy::{NameRule, Strategy};
use apiserver::tree;
use serde_json::{Value, json};

use crate::at::At;
use crate::{claims, pod_spec, template, workloads};

/// Pods with names and claims of their own.
pub(crate) struct StatefulSets;

const POLICIES: [&str; 2] = ["Retain", "Delete"];

impl Strategy for StatefulSets {
    fn name_rule(&self) -> NameRule {
        NameRule::Label
    }

    fn default(&self, object: &mut Value) {
        let spec = tree::member(object, "spec");
        tree::set_default(spec, "replicas", 1);
        tree::set_default(spec, "revisionHistoryLimit", 10);
        tree::set_default(spec, "podManagementPolicy", "OrderedReady");
        let strategy = tree::member(spec, "updateStrategy");
        if tree::text(strategy, &["type"]).is_empty() {
            tree::members(strategy).insert("type".into(), "RollingUpdate".into());
            tree::set_default(strategy, "rollingUpdate", json!({}));
        }
        if tree::text(strategy, &["type"]) == "RollingUpdate"
            && let Some(rolling) = strategy.get_mut("rollingUpdate").filter(|rolling| rolling.is_object())
        {
            tree::set_default(rolling, "partition", 0);
            tree::set_default(rolling, "maxUnavailable", 1);
        }
        let retention = tree::member(spec, "persistentVolumeClaimRetentionPolicy");
        for event in ["whenDeleted", "whenScaled"] {
            tree::set_default(retention, event, "Retain");
        }
        if let Some(templates) = spec.get_mut("volumeClaimTemplates").and_then(Value::as_array_mut) {
            for claim in templates {
                tree::set_default(claim, "apiVersion", "v1");
                tree::set_default(claim, "kind", "PersistentVolumeClaim");
                claims::default(claim);
                tree::object(claim, "status").insert("phase".into(), "Pending".into());
            }
        }
        pod_spec::default_template(tree::member(spec, "template"));
    }

    fn validate(&self, object: &Value, errors: &mut FieldErrors) {
        let spec = At::object(object).get("spec");
        let management = spec.get("podManagementPolicy");
        match management.text() {
            "" => errors.push(management.required("")),
            "OrderedReady" | "Parallel" => {}
            _ => errors.push(management.invalid("must be 'OrderedReady' or 'Parallel'")),
        }
        update_strategy(&spec.get("updateStrategy"), errors);
        let retention = spec.get("persistentVolumeClaimRetentionPolicy");
        if retention.is_set() {
            retention.get("whenDeleted").one_of(&POLICIES, errors);
            retention.get("whenScaled").one_of(&POLICIES, errors);
        }
        spec.get("replicas").not_negative(errors);
        spec.get("minReadySeconds").not_negative(errors);
        spec.down(&["ordinals", "start"]).not_negative(errors);
        let selector = spec.get("selector");
        if !selector.is_set() {
            errors.push(selector.required(""));
        } else {
            selector.selector(errors);
            if selector.selects_all() {
                errors.push(selector.invalid("empty selector is invalid for statefulset"));
            }
        }
        // The pods' volumes are those of the template and one per claim.
        let mut whole = spec.get("template").value.clone();
        add_claims(&mut whole, &spec);
        let template = At::new(&whole, spec.child("template"));
        if !selector.selects_all() {
            workloads::selects(&selector, &template, errors);
        }
        template::validate(&template, errors);
        template::always(&template, "StatefulSet", errors);
    }

    fn validate_create(&self, object: &Value, errors: &mut FieldErrors) {
        let spec = At::object(object).get("spec");
        spec.get("serviceName").name_if_set(NameRule::Label, errors);
        for claim in spec.each("volumeClaimTemplates") {
            claims::validate_spec(&claim.get("spec"), errors);
        }
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut FieldErrors) {
        let fields = ["selector", "volumeClaimTemplates", "serviceName", "podManagementPolicy"];
        workloads::kept(new, old, &fields, errors);
    }

    fn validate_status(&self, new: &Value, old: &Value, errors: &mut FieldErrors) {
        let parts = ["readyReplicas", "currentReplicas", "updatedReplicas", "availableReplicas"];
        workloads::counted(new, old, &["replicas", parts[0], parts[1], parts[2], parts[3]], errors);
        workloads::replicas_within(new, &parts, errors);
    }

    fn warnings(&self, object: &Value) -> Vec<String> {
        let spec = At::object(object).get("spec");
        let mut warnings = template::warnings(&spec.get("template"));
        if spec.get("revisionHistoryLimit").number() < 0 {
            warnings.push(
                "spec.revisionHistoryLimit: a negative value retains all historical revisions; a value >= 0 is \
                 recommended"
                    .into(),
            );
        }
        warnings
    }
}

fn update_strategy(strategy: &At<'_>, errors: &mut FieldErrors) {
    let rolling = strategy.get("rollingUpdate");
    match strategy.get("type").text() {
        "" => errors.push(strategy.required("")),
        "OnDelete" if rolling.is_set() => {
            errors.push(rolling.invalid("only allowed for updateStrategy 'RollingUpdate'"));
        }
        "OnDelete" => {}
        "RollingUpdate" => {
            rolling.get("partition").not_negative(errors);
            let unavailable = rolling.get("maxUnavailable");
            if unavailable.is_set() {
                unavailable.int_or_percent(errors);
                if unavailable.amount() == 0 {
                    errors.push(unavailable.invalid("cannot be 0"));
                }
                unavailable.at_most_all(errors);
            }
        }
        _ => errors.push(strategy.invalid("must be 'RollingUpdate' or 'OnDelete'")),
    }
}

/// Each claim template is a volume, in place of one of the same name; names that the controller gives are not judged.
fn add_claims(template: &mut Value, spec: &At<'_>) {
    if !template.is_object() {
        return;
    }
    let pod = tree::object(template, "spec");
    pod.remove("subdomain");
    pod.remove("hostname");
    let names: Vec<&str> = spec
        .each("volumeClaimTemplates")
        .map(|claim| tree::text(claim.value, &["metadata", "name"]))
        .collect();
    if names.is_empty() {
        return;
    }
    let claimed = |name: &&str| json!({ "name": name, "persistentVolumeClaim": { "claimName": name } });
    let own = pod.get("volumes").and_then(Value::as_array).cloned().unwrap_or_default();
    let own = own.into_iter().filter(|volume| !names.contains(&tree::text(volume, &["name"])));
    let all: Vec<Value> = names.iter().map(claimed).chain(own).collect();
    pod.insert("volumes".into(), all.into());
}
