//! Links for pods: their service account and its token, default tolerations, priority.

use std::sync::Arc;

use api::{Object, Status};
use async_trait::async_trait;
use serde_json::{Value, json};

use super::lifecycle::{creates_pod, forbidden, spec_text};
use super::{Link, Review, World};
use crate::tree;

/// Where a pod finds its token, the cluster's CA and its namespace.
const TOKEN_MOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// A projected token is renewed by the node long before this. Source: upstream's bound service account volume.
const TOKEN_SECONDS: i64 = 3607;

/// Gives a pod its service account (`default`), and that account's token as a projected volume.
/// Source: `plugin/pkg/admission/serviceaccount/admission.go`.
#[derive(Debug, Default, Clone, Copy)]
pub struct ServiceAccounts;

#[async_trait]
impl Link for ServiceAccounts {
    fn name(&self) -> &'static str {
        "ServiceAccount"
    }

    async fn mutate(&self, review: &Review<'_>, pod: &mut Value, world: &dyn World) -> Result<(), Status> {
        let mirror = !tree::at(pod, &["metadata", "annotations", "kubernetes.io/config.mirror"]).is_null();
        if !creates_pod(review) || mirror {
            return Ok(());
        }
        let named = spec_text(pod, "serviceAccountName");
        let name = if named.is_empty() { "default".to_owned() } else { named.to_owned() };
        let spec = tree::object(pod, "spec");
        spec.insert("serviceAccountName".into(), name.clone().into());
        spec.insert("serviceAccount".into(), name.clone().into());
        let Some(account) = world.find("", "serviceaccounts", review.namespace, &name).await? else {
            let why = format!(
                "error looking up service account {}/{name}: serviceaccount \"{name}\" not found",
                review.namespace
            );
            return Err(forbidden(review, &why));
        };
        let account: Value = account.decode().map_err(|error| Status::internal(error.to_string()))?;
        if tree::items(pod, &["spec", "imagePullSecrets"]).is_empty() {
            tree::copy(&account, tree::member(pod, "spec"), "imagePullSecrets");
        }
        if mounts_token(pod, &account) {
            mount_token(tree::member(pod, "spec"));
        }
        Ok(())
    }
}

/// The pod's word counts before the account's; unsaid means yes.
fn mounts_token(pod: &Value, account: &Value) -> bool {
    let said = |value: &Value| value.as_bool();
    said(tree::at(pod, &["spec", "automountServiceAccountToken"]))
        .or_else(|| said(tree::at(account, &["automountServiceAccountToken"])))
        .unwrap_or(true)
}

/// How the volume of a token begins its name.
const TOKEN_VOLUME: &str = "kube-api-access-";

/// Mounts the token into every container that has nothing at its place yet, from the volume that is there for it if
/// there is one. Pure, but for the random name of a new volume.
fn mount_token(spec: &mut Value) {
    let volumes = tree::items(spec, &["volumes"]).iter();
    let known =
        volumes.map(|volume| tree::text(volume, &["name"])).find(|name| name.starts_with(TOKEN_VOLUME));
    let known = known.map(str::to_owned);
    let name = known.clone().unwrap_or_else(|| format!("{TOKEN_VOLUME}{}", base::id::suffix(5)));
    let mut used = false;
    for list in ["initContainers", "containers"] {
        let containers = tree::members(spec).get_mut(list).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            let taken = tree::items(container, &["volumeMounts"])
                .iter()
                .any(|mount| tree::text(mount, &["mountPath"]) == TOKEN_MOUNT);
            if !taken {
                used = true;
                let mounts = tree::members(container).entry("volumeMounts").or_insert_with(|| json!([]));
                if let Some(mounts) = mounts.as_array_mut() {
                    mounts.push(json!({ "name": name, "readOnly": true, "mountPath": TOKEN_MOUNT }));
                }
            }
        }
    }
    if !used || known.is_some() {
        return;
    }
    let volume = json!({
        "name": name,
        "projected": { "defaultMode": 420, "sources": [
            { "serviceAccountToken": { "expirationSeconds": TOKEN_SECONDS, "path": "token" } },
            { "configMap": { "name": "kube-root-ca.crt", "items": [{ "key": "ca.crt", "path": "ca.crt" }] } },
            { "downwardAPI": { "items": [
                { "path": "namespace", "fieldRef": { "apiVersion": "v1", "fieldPath": "metadata.namespace" } },
            ] } },
        ] },
    });
    let volumes = tree::members(spec).entry("volumes").or_insert_with(|| json!([]));
    if let Some(volumes) = volumes.as_array_mut() {
        volumes.push(volume);
    }
}

/// Pods stay for five minutes on a node that is unreachable or not ready, unless they say otherwise.
/// Source: `plugin/pkg/admission/defaulttolerationseconds`.
#[derive(Debug, Default, Clone, Copy)]
pub struct DefaultTolerationSeconds;

const TOLERATED: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];
const TOLERATION_SECONDS: i64 = 300;

#[async_trait]
impl Link for DefaultTolerationSeconds {
    fn name(&self) -> &'static str {
        "DefaultTolerationSeconds"
    }

    async fn mutate(&self, review: &Review<'_>, pod: &mut Value, _: &dyn World) -> Result<(), Status> {
        if creates_pod(review) {
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

/// Turns a priority class into a number. Source: `plugin/pkg/admission/priority`.
#[derive(Debug, Default, Clone, Copy)]
pub struct Priority;

#[async_trait]
impl Link for Priority {
    fn name(&self) -> &'static str {
        "Priority"
    }

    async fn mutate(&self, review: &Review<'_>, pod: &mut Value, world: &dyn World) -> Result<(), Status> {
        if !creates_pod(review) {
            return Ok(());
        }
        let name = spec_text(pod, "priorityClassName").to_owned();
        let class = if name.is_empty() {
            world.all("scheduling.k8s.io", "priorityclasses", "").into_iter().find_map(default_class)
        } else {
            let class = world.find("scheduling.k8s.io", "priorityclasses", "", &name).await?;
            let Some(class) = class else {
                return Err(forbidden(review, &format!("no PriorityClass with name {name} was found")));
            };
            Some(decoded(&class)?)
        };
        let class = class.unwrap_or(Value::Null);
        let value = tree::at(&class, &["value"]).as_i64().unwrap_or(0);
        let spec = tree::object(pod, "spec");
        if spec.get("priority").and_then(Value::as_i64).is_some_and(|asked| asked != value) {
            let why = format!(
                "the integer value of priority ({value}) must not be provided in pod spec; priority \
                               admission controller computed it from the given PriorityClass name"
            );
            return Err(forbidden(review, &why));
        }
        spec.insert("priority".into(), value.into());
        let preempts = tree::text(&class, &["preemptionPolicy"]);
        let preempts = if preempts.is_empty() { "PreemptLowerPriority" } else { preempts };
        spec.insert("preemptionPolicy".into(), preempts.into());
        if let Some(name) = tree::at(&class, &["metadata", "name"]).as_str() {
            spec.insert("priorityClassName".into(), name.into());
        }
        Ok(())
    }
}

fn decoded(object: &Object) -> Result<Value, Status> {
    object.decode().map_err(|error| Status::internal(error.to_string()))
}

/// The class of pods that name none, if the object is that.
fn default_class(object: Arc<Object>) -> Option<Value> {
    decoded(&object).ok().filter(|class| class.get("globalDefault") == Some(&Value::Bool(true)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_mounted_where_nothing_is() {
        let mut spec = json!({ "containers": [
            { "name": "a" }, { "name": "b", "volumeMounts": [{ "name": "x", "mountPath": TOKEN_MOUNT }] },
        ]});
        mount_token(&mut spec);
        assert_eq!(spec["volumes"].as_array().unwrap().len(), 1);
        assert_eq!(spec["containers"][0]["volumeMounts"][0]["name"], spec["volumes"][0]["name"]);
        assert_eq!(spec["containers"][1]["volumeMounts"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn tolerations_are_added_once() {
        let mut spec =
            json!({ "tolerations": [{ "key": "node.kubernetes.io/not-ready", "effect": "NoExecute" }] });
        add_tolerations(&mut spec);
        add_tolerations(&mut spec);
        assert_eq!(spec["tolerations"].as_array().unwrap().len(), 2);
    }
}
