//! What types make of ValidatingAdmissionPolicies: whenever one changes, its expressions are checked against the schemas
//! of the kinds that it names, and the warnings are written into its status. They change nothing of what it does.
//! Source: `controller/validatingadmissionpolicystatus`, `policy/validating/typechecking.go`.

use std::collections::BTreeSet;
use std::sync::Weak;
use std::time::Duration;

use api::cel::{Environment, declared};
use api::connect::User;
use api::{Call, GroupVersionResource, Request, Status, WriteOptions};
use base::backoff::Policy;
use serde_json::{Value, json};

use crate::admission::rules::GROUP;
use crate::lengthy;
use crate::pipeline::Pipeline;
use crate::tree;

const PLURAL: &str = "validatingadmissionpolicies";
/// Who writes here.
const MANAGER: &str = "skiff:policy-status";
/// Between attempts to write what was not written.
const RETRY: Policy = Policy { first: Duration::from_millis(100), max: Duration::from_secs(30) };
/// How many kinds one rule may name. Source: `maxTypesToCheck`.
const TYPES_MAX: usize = 10;

/// Follows the policies for as long as there is a pipeline.
pub(crate) async fn follow(pipeline: Weak<Pipeline>) {
    let cache = pipeline
        .upgrade()
        .and_then(|pipeline| pipeline.catalog().storage_of(GROUP, PLURAL).map(|kind| pipeline.cache(&kind)));
    let Some(cache) = cache else { return };
    cache.synced().await;
    let mut failures = 0;
    loop {
        let mut written = true;
        let present = cache.list("", 0, |_| true);
        for object in present.items {
            let Some(pipeline) = pipeline.upgrade() else { return };
            let Ok(policy) = object.decode::<Value>() else { continue };
            let rows = pipeline.catalog().rows();
            let Some(status) = lengthy::run(|| status_of(&policy, &rows)) else { continue };
            match write(&pipeline, policy, status).await {
                Ok(()) => {}
                // Somebody else wrote it: there will be another change to look at.
                Err(status) if [404, 409].contains(&status.code) => {}
                Err(status) => {
                    tracing::warn!(%status, "the status of an admission policy was not written");
                    written = false;
                }
            }
        }
        failures = if written { 0 } else { failures + 1 };
        tokio::select! {
            () = cache.happened(present.revision, |_| true) => {}
            () = tokio::time::sleep(RETRY.delay(failures)), if failures > 0 => {}
        }
    }
}

async fn write(pipeline: &Pipeline, mut policy: Value, status: Value) -> Result<(), Status> {
    policy["status"] = status;
    let options = WriteOptions { field_manager: MANAGER.into(), ..WriteOptions::default() };
    let request = Request {
        resource: GroupVersionResource::new(GROUP, "v1", PLURAL),
        namespace: String::new(),
        name: tree::text(&policy, &["metadata", "name"]).into(),
        subresource: "status".into(),
        call: Call::Update { body: policy.to_string().into(), options },
    };
    let user = User { name: MANAGER.into(), groups: vec!["system:masters".into()], ..User::default() };
    pipeline.call(&user, request).await.map(drop)
}

/// The status that a policy should have, if it has another. Pure.
fn status_of(policy: &Value, catalog: &api::catalog::Catalog) -> Option<Value> {
    let generation = tree::at(policy, &["metadata", "generation"]);
    if tree::at(policy, &["status", "observedGeneration"]) == generation {
        return None;
    }
    let mut status = tree::at(policy, &["status"]).clone();
    tree::members(&mut status);
    status["observedGeneration"] = generation.clone();
    let warnings = warnings(tree::at(policy, &["spec"]), catalog);
    status["typeChecking"] =
        if warnings.is_empty() { json!({}) } else { json!({ "expressionWarnings": warnings }) };
    Some(status)
}

fn warnings(spec: &Value, catalog: &api::catalog::Catalog) -> Vec<Value> {
    let environments: Vec<(String, Environment)> =
        kinds(spec, catalog).iter().filter_map(|kind| environment(spec, kind, catalog)).collect();
    let mut warnings = Vec::new();
    for (place, validation) in tree::items(spec, &["validations"]).iter().enumerate() {
        for field in ["expression", "messageExpression"] {
            let source = tree::text(validation, &[field]);
            if source.is_empty() {
                continue;
            }
            let problems = environments.iter().filter_map(|(kind, environment)| {
                environment.check(source).err().map(|problem| format!("{kind}: {problem}\n"))
            });
            let problems: Vec<String> = problems.collect();
            if !problems.is_empty() {
                let field = format!("spec.validations[{place}].{field}");
                warnings.push(json!({ "fieldRef": field, "warning": problems.join("\n") }));
            }
        }
    }
    warnings
}

/// Group, version and kind of what a policy's rules name without wildcards, in order.
fn kinds(spec: &Value, catalog: &api::catalog::Catalog) -> BTreeSet<[String; 3]> {
    let mut found = BTreeSet::new();
    for rule in tree::items(spec, &["matchConstraints", "resourceRules"]) {
        let texts = |field: &str| -> Vec<&str> {
            let mut texts: Vec<&str> = tree::items(rule, &[field]).iter().filter_map(Value::as_str).collect();
            texts.sort_unstable();
            texts
        };
        let (groups, versions) = (texts("apiGroups"), texts("apiVersions"));
        if groups.iter().chain(&versions).any(|name| name.contains('*')) {
            continue;
        }
        let mut count = 0;
        for (group, version) in
            groups.iter().flat_map(|group| versions.iter().map(move |version| (group, version)))
        {
            for resource in texts("resources").into_iter().filter(|name| !name.contains(['*', '/'])) {
                let row = catalog.get(&GroupVersionResource::new(group, version, resource));
                let Some(row) = row.filter(|_| count < TYPES_MAX) else { continue };
                count += 1;
                found.insert([row.group.to_string(), row.version.to_string(), row.kind.to_string()]);
            }
        }
    }
    found
}

/// What a policy's expressions know where objects are of a kind; with the kind's name as upstream prints it.
fn environment(
    spec: &Value,
    [group, version, kind]: &[String; 3],
    catalog: &api::catalog::Catalog,
) -> Option<(String, Environment)> {
    let object = declared::of_kind(catalog.by_kind(group, version, kind)?);
    let params = tree::at(spec, &["paramKind"]);
    let mut environment = declared::admission(params.is_object(), true)
        .with("object", object.clone())
        .with("oldObject", object);
    let row = catalog.by_api_version(tree::text(params, &["apiVersion"]), tree::text(params, &["kind"]));
    if let Some(row) = row {
        environment = environment.with("params", declared::of_kind(row));
    }
    let composed = tree::items(spec, &["variables"]).iter();
    let composed = composed.map(|one| (tree::text(one, &["name"]), tree::text(one, &["expression"])));
    Some((format!("{group}/{version}, Kind={kind}"), environment.composed(composed)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_types_find_is_said_once_a_generation() {
        let catalog = api::catalog::Catalog::builtin();
        let rule = json!({ "apiGroups": ["apps"], "apiVersions": ["v1"], "resources": ["deployments"] });
        let mut policy = json!({ "metadata": { "generation": 2 }, "status": { "observedGeneration": 1 }, "spec": {
            "matchConstraints": { "resourceRules": [rule] },
            "validations": [
                { "expression": "object.spec.replicas > '1'", "messageExpression": "'wants replicas > 1, got ' + object.spec.replicas" },
                { "expression": "object.spec.replicas > 1" },
            ] } });
        let status = status_of(&policy, &catalog).unwrap();
        let warnings = status["typeChecking"]["expressionWarnings"].as_array().unwrap();
        assert_eq!(warnings.len(), 2);
        assert_eq!(warnings[0]["fieldRef"], "spec.validations[0].expression");
        let warning = warnings[0]["warning"].as_str().unwrap();
        let wanted = "apps/v1, Kind=Deployment: ERROR: <input>:1:22: found no matching overload for '_>_' applied to '(int, \
                      string)'\n | object.spec.replicas > '1'\n | .....................^\n";
        assert_eq!(warning, wanted);
        policy["status"] = status;
        assert_eq!(status_of(&policy, &catalog), None);
        policy["spec"]["validations"] = json!([{ "expression": "object.spec.replicas > 1" }]);
        policy["metadata"]["generation"] = json!(3);
        let status = status_of(&policy, &catalog).unwrap();
        assert_eq!(status, json!({ "observedGeneration": 3, "typeChecking": {} }));
    }
}
