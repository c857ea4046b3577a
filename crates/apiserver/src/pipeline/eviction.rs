//! Eviction: the deletion of a pod that asks the disruption budgets first.
//! Source: `pkg/registry/core/pod/storage/eviction.go`.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::selectors::{LabelSelector, LabelSelectorSpec};
use api::status::Cause;
use api::{DeleteOptions, Key, Object, Reason, Response, Status, Verb, WriteOptions};
use serde_json::{Value, json};

use super::delete::check_preconditions;
use super::subresource::done;
use super::{Asked, Pipeline, meta};
use crate::bootstrap::administrator;
use crate::tree;

/// Who signs for what an eviction changes besides.
const MANAGER: &str = "kube-apiserver";
const VIOLATES: &str = "Cannot evict pod as it would violate the pod's disruption budget.";
const CAUSE: &str = "DisruptionBudget";
/// Evictions that the budget's controller has not confirmed yet.
const UNCONFIRMED_MAX: usize = 2000;
/// Seconds after which a client may ask again while the controller catches up.
const RETRY_SECONDS: u32 = 10;
/// How often a pod that changes under an eviction is looked at anew.
const ATTEMPTS_MAX: u32 = 20;

impl Pipeline {
    pub(super) async fn evict(
        &self,
        asked: &Asked<'_>,
        eviction: &Value,
        warnings: Vec<String>,
        options: &WriteOptions,
    ) -> Result<Response, Status> {
        meta::fit_to_request(asked, &mut eviction.clone())?;
        let given = delete_options(eviction, options.dry_run);
        let key = Key::new(asked.namespace, asked.name);
        for _ in 0..ATTEMPTS_MAX {
            let live = self.read_stored(&asked.stored, &key).await?.ok_or_else(|| asked.not_found())?;
            // Another pod of the name, or version of the pod, never becomes the one that is meant.
            let meta = live.meta();
            check_preconditions(asked, &given, &meta.name, [&meta.uid, &meta.resource_version])?;
            match self.evict_once(asked, &live, given.clone()).await {
                Err(status)
                    if status.reason == Reason::Conflict && given.precondition_resource_version.is_none() => {
                }
                Err(status) => return Err(status),
                Ok(()) => return done(warnings),
            }
        }
        Err(too_many(RETRY_SECONDS, "the pod is changed by others all the time".into()))
    }

    async fn evict_once(
        &self,
        asked: &Asked<'_>,
        live: &Object,
        mut options: DeleteOptions,
    ) -> Result<(), Status> {
        let pod: Value = live.decode().map_err(|error| Status::internal(error.to_string()))?;
        let unchanged = || Some(live.meta().resource_version.clone());
        let mut guarded_by = None;
        if is_free(&pod) {
            // One that begins in the meantime is asked about again.
            if tree::text(&pod, &["status", "phase"]) == "Pending" && !meta::terminating(&pod) {
                options.precondition_resource_version =
                    options.precondition_resource_version.or_else(unchanged);
            }
        } else if let Some(budget) = self.budget_of(asked, &pod).await? {
            let name = budget.meta().name.clone();
            let budget: Value = budget.decode().map_err(|error| Status::internal(error.to_string()))?;
            if goes_anyway(&pod, &budget) {
                guarded_by = options.precondition_resource_version.is_none().then_some(name);
                options.precondition_resource_version =
                    options.precondition_resource_version.or_else(unchanged);
            } else {
                self.charge(asked, &name, options.dry_run).await?;
            }
        }
        let deleted = self.delete_evicted(asked, options).await;
        match (deleted, guarded_by) {
            (Err(status), Some(budget)) if status.reason == Reason::Conflict => {
                Err(too_many(RETRY_SECONDS, being_processed(&budget)))
            }
            (deleted, _) => deleted,
        }
    }

    /// Marks the pod and deletes it. Admission has seen the eviction, and sees neither.
    async fn delete_evicted(&self, asked: &Asked<'_>, mut options: DeleteOptions) -> Result<(), Status> {
        let whole = asked.part("", asked.user);
        if !options.dry_run {
            let version = self.mark_disrupted(asked, &options).await?;
            if options.precondition_resource_version.is_some() {
                options.precondition_resource_version = Some(version);
            }
        }
        self.delete(&whole, &options).await.map(drop)
    }

    /// Says in the pod why it goes; gives the pod's version after that.
    async fn mark_disrupted(&self, asked: &Asked<'_>, options: &DeleteOptions) -> Result<String, Status> {
        let system = administrator();
        let status = asked.part("status", &system);
        let now = meta::rfc3339(self.parts.clock.now());
        let change = |live: &Value| {
            let present = ["uid", "resourceVersion"].map(|field| tree::text(live, &["metadata", field]));
            check_preconditions(asked, options, asked.name, present)?;
            let mut new = live.clone();
            let condition = json!({
                "type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
                "message": "Eviction API: evicting", "lastProbeTime": null, "lastTransitionTime": now,
            });
            set_condition(tree::object(&mut new, "status"), condition);
            Ok((new, Vec::new()))
        };
        let signed = WriteOptions { field_manager: MANAGER.into(), ..WriteOptions::default() };
        match self.system_change(&status, &change, &signed).await? {
            Response::Object { object, .. } => Ok(object.meta().resource_version.clone()),
            _ => Err(Status::internal("a pod's status was written, and no pod came back")),
        }
    }

    /// The budget that protects a pod; one of several cannot be chosen.
    async fn budget_of(&self, asked: &Asked<'_>, pod: &Value) -> Result<Option<Arc<Object>>, Status> {
        let Some(kind) = self.parts.catalog.storage_of("policy", "poddisruptionbudgets") else {
            return Ok(None);
        };
        let cache = self.cache(&kind);
        cache.make_current().await?;
        let labels: BTreeMap<String, String> =
            serde_json::from_value(tree::at(pod, &["metadata", "labels"]).clone()).unwrap_or_default();
        let selects = |budget: &Arc<Object>| {
            let Ok(budget) = budget.decode::<Value>() else { return false };
            let selector = tree::at(&budget, &["spec", "selector"]);
            let spec: Option<LabelSelectorSpec> = serde_json::from_value(selector.clone()).ok();
            let parsed = spec.and_then(|spec| LabelSelector::from_spec(&spec).ok());
            parsed.is_some_and(|selector| selector.matches(&labels))
        };
        let mut budgets = cache.list(asked.namespace, 0, |_| true).items.into_iter().filter(selects);
        let first = budgets.next();
        if budgets.next().is_some() {
            let message = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not \
                           support.";
            return Err(Status::internal(message));
        }
        Ok(first)
    }

    /// Takes one disruption from a budget, or says why there is none.
    async fn charge(&self, asked: &Asked<'_>, budget: &str, dry_run: bool) -> Result<(), Status> {
        let missing = || Status::internal("poddisruptionbudgets are not stored");
        let kind = self.parts.catalog.storage_of("policy", "poddisruptionbudgets").ok_or_else(missing)?;
        let system = administrator();
        let status = Asked {
            user: &system,
            verb: Verb::Update,
            resource: kind.resource(),
            strategy: self.parts.strategies.of(&kind.group, &kind.plural).clone(),
            kind: kind.clone(),
            stored: kind,
            namespace: asked.namespace,
            name: budget,
            subresource: "status",
            admitted: false,
            notes: asked.notes.clone(),
        };
        let now = meta::rfc3339(self.parts.clock.now());
        let change = |live: &Value| {
            allowed(live)?;
            Ok((charged(live, asked.name, &now), Vec::new()))
        };
        let signed = WriteOptions { field_manager: MANAGER.into(), dry_run, ..WriteOptions::default() };
        self.system_change(&status, &change, &signed).await.map(drop)
    }
}

fn delete_options(eviction: &Value, dry_run: bool) -> DeleteOptions {
    let options = tree::at(eviction, &["deleteOptions"]);
    // None says the same as an empty one.
    let text = |path: &[&str]| Some(tree::text(options, path).to_owned()).filter(|text| !text.is_empty());
    DeleteOptions {
        dry_run: dry_run || !tree::items(options, &["dryRun"]).is_empty(),
        grace_period_seconds: tree::at(options, &["gracePeriodSeconds"]).as_i64(),
        propagation: None,
        precondition_uid: text(&["preconditions", "uid"]),
        precondition_resource_version: text(&["preconditions", "resourceVersion"]),
        ignore_read_error: false,
        pending_is_accepted: false,
    }
}

/// Whether a pod serves nobody, so that no budget counts it.
fn is_free(pod: &Value) -> bool {
    let phase = tree::text(pod, &["status", "phase"]);
    matches!(phase, "Succeeded" | "Failed" | "Pending") || meta::terminating(pod)
}

/// Whether a pod that is not ready goes without being counted. Source: KEP-3017.
fn goes_anyway(pod: &Value, budget: &Value) -> bool {
    let ready = tree::items(pod, &["status", "conditions"]).iter().any(|condition| {
        tree::text(condition, &["type"]) == "Ready" && tree::text(condition, &["status"]) == "True"
    });
    let count = |name: &str| tree::at(budget, &["status", name]).as_i64().unwrap_or(0);
    let always = tree::text(budget, &["spec", "unhealthyPodEvictionPolicy"]) == "AlwaysAllow";
    let healthy = count("currentHealthy") >= count("desiredHealthy") && count("desiredHealthy") > 0;
    !ready && (always || healthy)
}

/// Whether a budget allows one more disruption. Pure.
fn allowed(budget: &Value) -> Result<(), Status> {
    let name = tree::text(budget, &["metadata", "name"]);
    let status = tree::at(budget, &["status"]);
    let count = |name: &str| tree::at(status, &[name]).as_i64().unwrap_or(0);
    let generation = tree::at(budget, &["metadata", "generation"]).as_i64().unwrap_or(0);
    if count("observedGeneration") < generation {
        return Err(too_many(RETRY_SECONDS, being_processed(name)));
    }
    let refuse = |why: &str, what: &str| {
        let message = format!("poddisruptionbudget.policy \"{name}\" is forbidden: {why}");
        let mut status = Status::new(Reason::Forbidden, message).about("policy", "poddisruptionbudget", name);
        let what = format!("The disruption budget {name} does not allow evicting pods currently: {what}");
        status.details.causes.push(cause(what));
        status
    };
    if count("disruptionsAllowed") < 0 {
        let why = "pdb disruptions allowed is negative";
        return Err(refuse(why, why));
    }
    let pending = tree::at(status, &["disruptedPods"]).as_object().map_or(0, serde_json::Map::len);
    if pending > UNCONFIRMED_MAX {
        return Err(refuse(
            "DisruptedPods map too big - too many evictions not confirmed by PDB controller",
            "too many pending evictions not confirmed by PDB controller",
        ));
    }
    if count("disruptionsAllowed") > 0 {
        return Ok(());
    }
    let conditions = tree::items(status, &["conditions"]).iter();
    let said = conditions
        .filter(|condition| tree::text(condition, &["type"]) == "DisruptionAllowed")
        .find(|condition| tree::text(condition, &["status"]) == "False")
        .map(|condition| (tree::text(condition, &["reason"]), tree::text(condition, &["message"])))
        .filter(|(_, message)| !message.is_empty());
    let (healthy, desired) = (count("currentHealthy"), count("desiredHealthy"));
    let why = match said {
        Some(("SyncFailed", message)) => format!(
            "The disruption budget {name} does not allow evicting pods currently because it failed sync: {message}"
        ),
        _ if healthy <= desired => {
            format!("The disruption budget {name} needs {desired} healthy pods and has {healthy} currently")
        }
        Some((reason, message)) => {
            format!(
                "The disruption budget {name} does not allow evicting pods currently ({reason}): {message}"
            )
        }
        None => format!("The disruption budget {name} does not allow evicting pods currently"),
    };
    Err(too_many(0, why))
}

/// A budget with one disruption less, for this pod. Pure.
fn charged(budget: &Value, pod: &str, now: &str) -> Value {
    let mut new = budget.clone();
    let generation = tree::at(budget, &["status", "observedGeneration"]).clone();
    let status = tree::object(&mut new, "status");
    let left = status.get("disruptionsAllowed").and_then(Value::as_i64).unwrap_or(0) - 1;
    status.insert("disruptionsAllowed".into(), left.into());
    let pods = status.entry("disruptedPods").or_insert_with(|| json!({}));
    tree::members(pods).insert(pod.to_owned(), now.into());
    if left == 0 {
        let mut condition = json!({
            "type": "DisruptionAllowed", "status": "False", "reason": "InsufficientPods", "message": "",
            "lastTransitionTime": now,
        });
        if generation.is_i64() {
            tree::members(&mut condition).insert("observedGeneration".into(), generation);
        }
        set_condition(status, condition);
    }
    new
}

/// Puts a condition in place of the one of its type; the moment stays where its status does.
fn set_condition(status: &mut serde_json::Map<String, Value>, mut condition: Value) {
    let list = status.entry("conditions").or_insert_with(|| json!([]));
    let Some(list) = list.as_array_mut() else { return };
    let same = |known: &Value, field: &str| tree::at(known, &[field]) == tree::at(&condition, &[field]);
    match list.iter().position(|known| same(known, "type")) {
        Some(at) => {
            if same(&list[at], "status") {
                tree::copy(&list[at], &mut condition, "lastTransitionTime");
            }
            list[at] = condition;
        }
        None => list.push(condition),
    }
}

fn being_processed(budget: &str) -> String {
    format!("The disruption budget {budget} is still being processed by the server.")
}

fn cause(message: String) -> Cause {
    Cause { reason: CAUSE.into(), message, field: String::new() }
}

fn too_many(retry_seconds: u32, why: String) -> Status {
    let mut status = Status::new(Reason::TooManyRequests, VIOLATES);
    status.details.retry_after_seconds = retry_seconds;
    status.details.causes.push(cause(why));
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(status: Value) -> Value {
        json!({ "metadata": { "name": "b", "generation": 2 }, "status": status })
    }

    #[test]
    fn budgets_say_why_they_refuse() {
        let rows = [
            (
                json!({ "observedGeneration": 1, "disruptionsAllowed": 1 }),
                Some((429, 10, "The disruption budget b is still being processed by the server.")),
            ),
            (json!({ "observedGeneration": 2, "disruptionsAllowed": 1 }), None),
            (
                json!({ "observedGeneration": 2, "disruptionsAllowed": 0, "currentHealthy": 1, "desiredHealthy": 2 }),
                Some((429, 0, "The disruption budget b needs 2 healthy pods and has 1 currently")),
            ),
            (
                json!({ "observedGeneration": 2, "disruptionsAllowed": 0, "currentHealthy": 3, "desiredHealthy": 2 }),
                Some((429, 0, "The disruption budget b does not allow evicting pods currently")),
            ),
            (
                json!({ "observedGeneration": 2, "disruptionsAllowed": -1 }),
                Some((
                    403,
                    0,
                    "The disruption budget b does not allow evicting pods currently: pdb disruptions allowed is negative",
                )),
            ),
        ];
        for (status, expected) in rows {
            let said = allowed(&budget(status.clone())).err();
            let said = said.as_ref().map(|status| {
                let details = &status.details;
                (status.code, details.retry_after_seconds, details.causes[0].message.as_str())
            });
            assert_eq!(said, expected, "{status}");
        }
    }

    #[test]
    fn a_charge_counts_the_pod() {
        let new = charged(&budget(json!({ "disruptionsAllowed": 1, "observedGeneration": 2 })), "a", "T");
        let status = &new["status"];
        assert_eq!((&status["disruptionsAllowed"], &status["disruptedPods"]["a"]), (&json!(0), &json!("T")));
        assert_eq!(status["conditions"][0]["reason"], "InsufficientPods");
    }

    #[test]
    fn only_ready_pods_are_counted() {
        let pod = |ready: &str| json!({ "status": { "conditions": [{ "type": "Ready", "status": ready }] } });
        let healthy = budget(json!({ "currentHealthy": 2, "desiredHealthy": 2 }));
        assert!(goes_anyway(&pod("False"), &healthy) && !goes_anyway(&pod("True"), &healthy));
        assert!(!goes_anyway(&pod("False"), &budget(json!({ "currentHealthy": 1, "desiredHealthy": 2 }))));
    }
}
