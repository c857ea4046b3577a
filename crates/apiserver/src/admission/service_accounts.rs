//! ServiceAccount: gives a pod its service account (`default`) and that account's token as a projected volume, and keeps
//! mirror pods, which no server starts, from either. Source: `plugin/pkg/admission/serviceaccount`.

use api::Status;
use async_trait::async_trait;
use serde_json::{Value, json};

use super::lifecycle::{creates_pod, forbidden, is, spec_text};
use super::node::{MIRROR, projects};
use super::{Link, Operation, Review, World, decoded};
use crate::authz::node as references;
use crate::tree;

/// Where a pod finds its token, the cluster's CA and its namespace.
const TOKEN_MOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// A projected token is renewed by the node long before this. Source: upstream's bound service account volume.
const TOKEN_SECONDS: i64 = 3607;

/// The link.
#[derive(Debug, Default, Clone, Copy)]
pub struct ServiceAccounts;

#[async_trait]
impl Link for ServiceAccounts {
    fn name(&self) -> &'static str {
        "ServiceAccount"
    }

    fn about(&self) -> &'static [(&'static str, &'static str)] {
        &[("", "pods")]
    }

    async fn mutate(&self, review: &Review<'_>, pod: &mut Value, world: &dyn World) -> Result<(), Status> {
        if !creates_pod(review) || is_mirror(pod) {
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
        let account = decoded(&account)?;
        if tree::items(pod, &["spec", "imagePullSecrets"]).is_empty() {
            tree::copy(&account, tree::member(pod, "spec"), "imagePullSecrets");
        }
        if mounts_token(pod, &account) {
            mount_token(tree::member(pod, "spec"));
        }
        Ok(())
    }

    async fn validate(
        &self,
        review: &Review<'_>,
        object: Option<&Value>,
        world: &dyn World,
    ) -> Result<(), Status> {
        let adds = review.operation == Operation::Update && is(review, "", "pods", "ephemeralcontainers");
        let Some(pod) = object.filter(|_| adds || creates_pod(review)) else { return Ok(()) };
        if is_mirror(pod) && !adds {
            return of_mirror(pod).map_or(Ok(()), |why| Err(forbidden(review, why)));
        }
        let (namespace, name) = (review.namespace, spec_text(pod, "serviceAccountName"));
        if name.is_empty() {
            let why = format!("no service account specified for pod {namespace}/{}", review.name);
            return Err(forbidden(review, &why));
        }
        let Some(account) = world.find("", "serviceaccounts", namespace, name).await? else {
            let why = format!(
                "error looking up service account {namespace}/{name}: serviceaccount \"{name}\" not found"
            );
            return Err(forbidden(review, &why));
        };
        let account = decoded(&account)?;
        // Spelled as Go's `strconv.ParseBool` takes it.
        let enforced = tree::text(&account, &["metadata", "annotations", ENFORCED]);
        if !["1", "t", "T", "true", "TRUE", "True"].contains(&enforced) {
            return Ok(());
        }
        let why =
            if adds { unlisted_in(pod, EPHEMERAL, &account, name) } else { unlisted(pod, &account, name) };
        why.map_or(Ok(()), |why| Err(forbidden(review, &why)))
    }
}

/// The annotation by which an account lets its pods use only the Secrets that it lists.
const ENFORCED: &str = "kubernetes.io/enforce-mountable-secrets";

fn is_mirror(pod: &Value) -> bool {
    !tree::at(pod, &["metadata", "annotations", MIRROR]).is_null()
}

/// What a pod may not have that only shows what a node runs. Pure.
fn of_mirror(pod: &Value) -> Option<&'static str> {
    if !spec_text(pod, "serviceAccountName").is_empty() {
        return Some("a mirror pod may not reference service accounts");
    }
    if references::secrets(pod).next().is_some() {
        return Some("a mirror pod may not reference secrets");
    }
    projects(pod, "serviceAccountToken")
        .next()
        .map(|_| "a mirror pod may not use ServiceAccountToken volume projections")
}

/// Containers that are added to a pod, and what messages call one.
const EPHEMERAL: (&str, &str) = ("ephemeralContainers", "ephemeral container");

/// Whether an account lists a Secret, for mounting (`secrets`) or pulling (`imagePullSecrets`).
fn lists(account: &Value, field: &str, secret: &str) -> bool {
    tree::items(account, &[field]).iter().any(|held| tree::text(held, &["name"]) == secret)
}

fn not_listed(name: &str) -> String {
    format!("is not allowed because service account {name} does not reference that")
}

/// The first Secret that a new pod uses and its account does not list. Pure.
fn unlisted(pod: &Value, account: &Value, name: &str) -> Option<String> {
    let end = not_listed(name);
    for volume in tree::items(pod, &["spec", "volumes"]) {
        let secret = tree::text(volume, &["secret", "secretName"]);
        if !secret.is_empty() && !lists(account, "secrets", secret) {
            return Some(format!("volume with secret.secretName=\"{secret}\" {end} secret"));
        }
    }
    let containers = [("initContainers", "init container"), ("containers", "container")];
    if let Some(why) = containers.into_iter().find_map(|list| unlisted_in(pod, list, account, name)) {
        return Some(why);
    }
    let pulls = tree::items(pod, &["spec", "imagePullSecrets"]).iter().enumerate();
    let mut pulls = pulls.map(|(at, held)| (at, tree::text(held, &["name"])));
    let (at, secret) = pulls.find(|(_, secret)| !lists(account, "imagePullSecrets", secret))?;
    Some(format!("imagePullSecrets[{at}].name=\"{secret}\" {end} imagePullSecret"))
}

/// The first Secret that the environment of one of these containers uses and the account does not list. Pure.
fn unlisted_in(pod: &Value, (list, word): (&str, &str), account: &Value, name: &str) -> Option<String> {
    let end = not_listed(name);
    let missing = |secret: &str| !secret.is_empty() && !lists(account, "secrets", secret);
    for container in tree::items(pod, &["spec", list]) {
        let one = tree::text(container, &["name"]);
        for from in tree::items(container, &["envFrom"]) {
            let secret = tree::text(from, &["secretRef", "name"]);
            if missing(secret) {
                return Some(format!(
                    "{word} {one} with envFrom referencing secret.secretName=\"{secret}\" {end} secret"
                ));
            }
        }
        for env in tree::items(container, &["env"]) {
            let secret = tree::text(env, &["valueFrom", "secretKeyRef", "name"]);
            if missing(secret) {
                let env = tree::text(env, &["name"]);
                return Some(format!(
                    "{word} {one} with envVar {env} referencing secret.secretName=\"{secret}\" {end} secret"
                ));
            }
        }
    }
    None
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_may_bind_its_pods_to_the_secrets_that_it_lists() {
        let account = json!({ "secrets": [{ "name": "known" }], "imagePullSecrets": [{ "name": "pull" }] });
        let why = |spec: Value| unlisted(&json!({ "spec": spec }), &account, "sa");
        let volume = |name: &str| json!({ "volumes": [{ "name": "v", "secret": { "secretName": name } }] });
        assert_eq!(why(volume("known")), None);
        assert_eq!(
            why(volume("other")).unwrap(),
            "volume with secret.secretName=\"other\" is not allowed because service account sa does not reference \
             that secret"
        );
        let env = json!({ "name": "E", "valueFrom": { "secretKeyRef": { "name": "other", "key": "k" } } });
        assert_eq!(
            why(json!({ "containers": [{ "name": "c", "env": [env] }] })).unwrap(),
            "container c with envVar E referencing secret.secretName=\"other\" is not allowed because service account \
             sa does not reference that secret"
        );
        assert_eq!(
            why(json!({ "imagePullSecrets": [{ "name": "pull" }, { "name": "x" }] })).unwrap(),
            "imagePullSecrets[1].name=\"x\" is not allowed because service account sa does not reference that \
             imagePullSecret"
        );
    }

    #[test]
    fn a_mirror_pod_has_no_identity() {
        let pod = |spec: Value| json!({ "spec": spec });
        assert_eq!(of_mirror(&pod(json!({}))), None);
        assert_eq!(
            of_mirror(&pod(json!({ "serviceAccountName": "x" }))),
            Some("a mirror pod may not reference service accounts")
        );
        let token = json!({ "volumes": [{ "projected": { "sources": [{ "serviceAccountToken": {} }] } }] });
        assert_eq!(
            of_mirror(&pod(token)),
            Some("a mirror pod may not use ServiceAccountToken volume projections")
        );
    }

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
}
