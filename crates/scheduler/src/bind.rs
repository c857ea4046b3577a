//! The writes of the scheduler: bindings, conditions, events, and the going of pods that make room.

use std::sync::Arc;
use std::time::Instant;

use api::{DeleteOptions, Object, PatchType, Reason, Status};
use reconcile::{EventType, kinds};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::framework::tally::{point, status};
use crate::framework::{Event, Freed, Preemption, Preparation};
use crate::metrics::{Attempt, Outcome};
use crate::storage::types::Version;
use crate::turns::Ticket;
use crate::types::Pod;
use crate::{SCHEDULER_ERROR, Shared};
use crate::{devices, retry, storage};

impl Shared {
    /// A plugin has done what it does for a pod that was decided on; it counts if the decision was timed.
    fn plugin_ran(&self, attempt: Attempt, point: &str, plugin: &str, well: bool, begun: Instant) {
        if let Some(metrics) = self.metrics.as_ref().filter(|_| attempt.is_timed) {
            let status = if well { status::SUCCESS } else { status::ERROR };
            metrics.plugins().took(plugin, point, status, begun.elapsed());
        }
    }
}

/// Binds a pod to the node that it is assumed on.
pub(crate) async fn bind(shared: Arc<Shared>, pod: Arc<Pod>, attempt: Attempt, prepared: Prepared) {
    let since = Instant::now();
    let body = json!({
        "apiVersion": "v1", "kind": "Binding",
        "metadata": { "name": pod.key.name, "namespace": pod.key.namespace, "uid": &*pod.uid },
        "target": { "apiVersion": "v1", "kind": "Node", "name": &*pod.node },
    });
    let bound = match shared.bound_elsewhere(&pod).await {
        Some(bound) => bound,
        None => {
            let begun = Instant::now();
            let bound = create_binding(&shared, &pod, &body).await;
            shared.plugin_ran(attempt, point::BIND, "DefaultBinder", bound.is_ok(), begun);
            bound.map_err(|status| format!("running Bind plugin \"DefaultBinder\": {}", status.message))
        }
    };
    let (outcome, status) =
        if bound.is_ok() { (Outcome::Scheduled, "Success") } else { (Outcome::Error, "Error") };
    let profile = &pod.spec.scheduler_name;
    shared.attempted(profile, outcome, attempt.begun);
    if let Some(metrics) = &shared.metrics {
        metrics.ran("Bind", profile, status, since.elapsed());
    }
    match bound {
        Ok(()) => {
            let message = format!("Successfully assigned {} to {}", pod.key, pod.node);
            shared.event(&pod, &pod, EventType::Normal, "Scheduled", message);
            // The informer says the same in a moment; until then the assumption stands.
            shared.state.lock().queue.remove(&pod.uid);
            if let (Some(metrics), Some(waited)) = (&shared.metrics, attempt.waited) {
                let took = shared.clock.now().duration_since(waited.since);
                metrics.scheduled(waited.tries, took.try_into().unwrap_or_default());
            }
        }
        Err(message) => {
            let fate = fate(&shared, &pod);
            undo(&shared, &pod, fate);
            if fate != Fate::Waits {
                return tracing::debug!(pod = %pod.key, node = %pod.node, error = message, "binding failed");
            }
            tracing::error!(pod = %pod.key, node = %pod.node, error = message, "binding failed, tried again");
            devices::bind::release(&shared, &pod, prepared.special).await;
            let told = Told { reason: SCHEDULER_ERROR, message, nominated: Some(String::new()), frees: None };
            refuse(shared, pod, told).await;
        }
    }
}

/// What was made for a pod that is about to be bound, and is no use if it is not.
#[derive(Debug, Default)]
pub(crate) struct Prepared {
    /// The claim for its extended resources.
    pub(crate) special: Option<Version>,
}

/// What is said of a pod that another one took the place of before it was bound.
pub(crate) const PUSHED_OUT: &str = "preempted by DefaultPreemption";

/// Whether a pod's place is still its own: else nothing more is begun for it.
pub(crate) fn still_wanted(pushed_out: &CancellationToken) -> Result<(), String> {
    if pushed_out.is_cancelled() { Err(PUSHED_OUT.to_owned()) } else { Ok(()) }
}

/// Does what has to be done before a pod is bound, if it may be; `prepared` tells what was made, also where this is not
/// waited for to the end. One that is pushed out waits for nothing any more, but writes to the end what it has begun: what
/// the server has been told must not be taken for free. If it fails, that is said and the pod is tried again.
pub(crate) async fn prepare(
    shared: &Arc<Shared>,
    pod: &Arc<Pod>,
    preparations: &[Preparation],
    attempt: Attempt,
    pushed_out: &CancellationToken,
    prepared: &mut Prepared,
) -> bool {
    let (since, profile) = (Instant::now(), &pod.spec.scheduler_name);
    let ran = |status: &str| {
        if let Some(metrics) = &shared.metrics {
            metrics.ran("PreBind", profile, status, since.elapsed());
        }
    };
    // It may take long: where the pod is about to go is said meanwhile. Source: KEP-5278.
    if *pod.nominated != *pod.node && !pushed_out.is_cancelled() {
        patch_status(shared, pod, &json!({ "nominatedNodeName": &*pod.node })).await;
    }
    for preparation in preparations {
        let begun = Instant::now();
        let (plugin, done) = match preparation {
            Preparation::Volumes(plan) => {
                ("VolumeBinding", storage::bind::carry_out(shared, pod, plan, pushed_out).await)
            }
            Preparation::Devices(plan) => {
                let done =
                    devices::bind::carry_out(shared, pod, plan, pushed_out, &mut prepared.special).await;
                ("DynamicResources", done)
            }
        };
        shared.plugin_ran(attempt, point::PRE_BIND, plugin, done.is_ok(), begun);
        let Err(why) = done else { continue };
        ran("Error");
        let why = match pushed_out.is_cancelled() {
            true => PUSHED_OUT.to_owned(),
            false => format!("running PreBind plugin {plugin:?}: {why}"),
        };
        not_prepared(shared, pod, &why, attempt, prepared.special.take()).await;
        return false;
    }
    ran("Success");
    true
}

/// What has to be done for a pod before it is bound is not done, which is said: it is tried again.
pub(crate) async fn not_prepared(
    shared: &Arc<Shared>,
    pod: &Arc<Pod>,
    why: &str,
    attempt: Attempt,
    made: Option<Version>,
) {
    shared.attempted(&pod.spec.scheduler_name, Outcome::Error, attempt.begun);
    let fate = fate(shared, pod);
    undo(shared, pod, fate);
    if fate == Fate::Waits {
        devices::bind::release(shared, pod, made).await;
        let (message, nominated) = (why.to_owned(), Some(String::new()));
        refuse(
            shared.clone(),
            pod.clone(),
            Told { reason: SCHEDULER_ERROR, message, nominated, frees: None },
        )
        .await;
    }
}

/// What has become of a pod, as far as is known. What the server said of its binding does not count: the informer takes
/// the pod away if it is gone. Source: `handleSchedulingFailure`.
fn fate(shared: &Shared, pod: &Pod) -> Fate {
    match shared.sources.pods.get(&pod.key).filter(|held| *held.meta().uid == *pod.uid) {
        Some(held) if held.node_name().is_some() => Fate::Bound,
        Some(_) => Fate::Waits,
        None => Fate::Gone,
    }
}

/// What has become of a pod whose binding failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is on a node all the same.
    Bound,
    /// It is gone.
    Gone,
    /// It still waits.
    Waits,
}

/// The server answers a binding with a Status or with the pod, as it is made; only the success counts.
async fn create_binding(shared: &Shared, pod: &Pod, body: &Value) -> Result<(), Status> {
    let resource = kinds::PODS.gvr();
    let body = serde_json::to_vec(body).map_err(|error| Status::internal(error.to_string()))?;
    let request = api::Request {
        resource,
        namespace: pod.key.namespace.clone(),
        name: pod.key.name.clone(),
        subresource: "binding".to_owned(),
        call: api::Call::Create { body: body.into(), options: api::WriteOptions::default() },
    };
    retry::passing(&shared.clock, || shared.client.send(request.clone())).await.map(drop)
}

/// The binding failed: the pod is not where it was assumed, and is tried again unless it is gone or bound already.
pub(crate) fn undo(shared: &Shared, pod: &Arc<Pod>, fate: Fate) {
    let state = &mut *shared.state.lock();
    state.preparing.remove(&pod.uid);
    if fate == Fate::Waits {
        state.queue.failed(&pod.uid, shared.clock.now());
    } else {
        state.queue.remove(&pod.uid);
    }
    for claim in state.cluster.devices.give_back(&pod.uid) {
        let before = Some(claim.with_devices());
        shared.raise(state, &Event::ResourceClaim(before, claim));
    }
    for volume in state.cluster.storage.unreserve(&pod.uid) {
        shared.raise(state, &Event::Volume(None, volume));
    }
    // Where it is bound already, the informer has put it there, or will.
    if fate != Fate::Bound
        && state.assumed.remove(&pod.uid)
        && let Some(pod) = state.cluster.remove_pod(&pod.uid)
    {
        shared.raise(state, &Event::PodLeft(pod));
    }
    shared.wake.notify_one();
}

/// What is said of a pod that goes nowhere.
pub(crate) struct Told {
    /// The condition's reason.
    pub(crate) reason: &'static str,
    /// The condition's message, and the event's.
    pub(crate) message: String,
    /// The node on which room is made for it from now on; empty: none any more. `None`: as it was.
    pub(crate) nominated: Option<String>,
    /// What is taken from the pod before that is said.
    pub(crate) frees: Option<Freed>,
}

/// Says on the pod and in an event why it goes nowhere.
pub(crate) async fn refuse(shared: Arc<Shared>, pod: Arc<Pod>, mut told: Told) {
    let freed = match told.frees.take() {
        None => Ok(()),
        Some(Freed::Devices(claim)) => {
            let freed = devices::bind::deallocate(&shared, &pod, &claim).await;
            freed.map_err(|why| (devices::of_pod::DEALLOCATED, why))
        }
        Some(Freed::Claim(claim)) => {
            let deleted = devices::bind::delete(&shared, &claim).await;
            deleted.map_err(|why| (devices::of_pod::DELETED, why))
        }
    };
    if let Err((said, why)) = freed {
        told.message = told.message.replacen(said, &why, 1);
    }
    shared.event(&pod, &pod, EventType::Warning, "FailedScheduling", told.message.clone());
    write_status(&shared, &pod, &told).await;
}

/// Writes the condition PodScheduled=False and the node on which room is made, unless the pod says so already.
async fn write_status(shared: &Shared, pod: &Pod, told: &Told) {
    let Some(held) = shared.sources.pods.get(&pod.key).filter(|held| *held.meta().uid == *pod.uid) else {
        return;
    };
    // What was written last may not be told yet: then there is nothing to compare with.
    let known = shared.state.lock().written.get(&pod.uid).is_none_or(|written| *written <= held.revision());
    let said = known.then(|| Said::of(&held));
    if let Some(status) = change(told, said.as_ref(), pod.generation, shared.clock.now())
        && let Some(revision) = patch_status(shared, pod, &status).await
    {
        let state = &mut *shared.state.lock();
        let told_of = |held: Arc<Object>| held.revision() >= revision;
        if !shared.sources.pods.get(&pod.key).is_none_or(told_of) {
            state.written.insert(pod.uid.clone(), revision);
        }
    }
}

/// What a pod says of its placing.
#[derive(Debug, Default, PartialEq, Eq)]
struct Said {
    /// Status, reason and message of the condition PodScheduled.
    scheduled: Option<(String, String, String)>,
    nominated: String,
}

impl Said {
    fn of(pod: &Object) -> Self {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Body {
            status: PodStatus,
        }
        #[derive(Default, Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        struct PodStatus {
            nominated_node_name: String,
            conditions: Vec<Condition>,
        }
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Condition {
            r#type: String,
            status: String,
            reason: String,
            message: String,
        }
        // Nothing is said by a status that cannot be read.
        let status = pod.decode::<Body>().unwrap_or_default().status;
        let held = status.conditions.into_iter().find(|held| held.r#type == "PodScheduled");
        let scheduled = held.map(|held| (held.status, held.reason, held.message));
        Self { scheduled, nominated: status.nominated_node_name }
    }
}

/// What has to be changed in a status so that it says what is told; `None`: nothing. `said` is what it says, if that is
/// known; if not, it is something that was told before.
fn change(told: &Told, said: Option<&Said>, generation: i64, now: jiff::Timestamp) -> Option<Value> {
    let mut status = serde_json::Map::new();
    let held = said.map(|said| said.scheduled.as_ref());
    let same = held.flatten().is_some_and(|(status, reason, message)| {
        status == "False" && reason == told.reason && *message == told.message
    });
    if !same {
        let mut condition = json!({
            "type": "PodScheduled", "status": "False", "reason": told.reason, "message": told.message,
            "observedGeneration": generation,
        });
        if held.is_some_and(|held| held.is_none_or(|(status, ..)| status != "False")) {
            condition["lastTransitionTime"] = reconcile::time::seconds(now).into();
        }
        status.insert("conditions".to_owned(), json!([condition]));
    }
    let nominated = said.map(|said| said.nominated.as_str());
    if let Some(node) = told.nominated.as_deref().filter(|node| Some(*node) != nominated) {
        let node = if node.is_empty() { Value::Null } else { node.into() };
        status.insert("nominatedNodeName".to_owned(), node);
    }
    (!status.is_empty()).then(|| status.into())
}

/// Changes a pod's status; gives the revision of the change. Who is gone needs no status: its revision is 0.
async fn patch_status(shared: &Shared, pod: &Pod, status: &Value) -> Option<i64> {
    let patch = json!({ "metadata": { "uid": &*pod.uid }, "status": status });
    let (resource, kind) = (kinds::PODS.gvr(), PatchType::StrategicMerge);
    let write = || shared.client.patch(&resource, &pod.key, "status", kind, &patch);
    match retry::passing(&shared.clock, write).await {
        Ok(written) => Some(written.revision()),
        Err(error) if error.reason == Reason::NotFound => Some(0),
        Err(error) => {
            tracing::warn!(pod = %pod.key, %error, "status not written");
            None
        }
    }
}

/// Pods that waited for room which a more important one gets say so no more, each after what was decided about it before.
pub(crate) async fn displace(shared: &Shared, displaced: Vec<(Ticket, Arc<Pod>)>) {
    for (mut ticket, pod) in displaced {
        ticket.turn().await;
        patch_status(shared, &pod, &json!({ "nominatedNodeName": null })).await;
    }
}

/// Has pods go to make room for one, which waits meanwhile. Source: `prepareCandidateAsync`.
pub(crate) async fn preempt(shared: Arc<Shared>, pod: Arc<Pod>, preemption: Preemption) {
    let mut all_went = true;
    for victim in preemption.victims.iter().filter(|victim| !victim.terminating) {
        all_went &= evict(&shared, &pod, victim, &preemption.node).await;
        if !all_went {
            break;
        }
    }
    told_to_go(&shared, &pod, all_went);
}

/// The others have been told to go, all of them or not: the pod may be tried again.
pub(crate) fn told_to_go(shared: &Shared, pod: &Pod, all_went: bool) {
    let state = &mut *shared.state.lock();
    let asked_meanwhile = state.preempting.remove(&*pod.uid) == Some(true);
    if !all_went {
        // Whoever refuses it once may well do so again.
        state.queue.in_vain(&pod.uid, shared.clock.now());
    } else if asked_meanwhile {
        state.queue.retry(&pod.uid);
    } else {
        return;
    }
    shared.wake.notify_one();
}

/// Says on a pod why it goes, and has it go. One that is not bound yet need not: it waits again. Source: `PreemptPod`.
async fn evict(shared: &Shared, pod: &Pod, victim: &Pod, node: &str) -> bool {
    let message = format!("Preempted by pod {} on node {node}", pod.uid);
    let preparing = shared.state.lock().preparing.remove(&victim.uid);
    if let Some(push_out) = preparing {
        push_out.cancel();
        let message = format!("{message} (in kube-scheduler memory).");
        shared.event(victim, pod, EventType::Normal, "Preempted", message);
        return true;
    }
    let condition = json!({
        "type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler",
        "message": format!("{}: preempting to accommodate a higher priority pod", pod.spec.scheduler_name),
        "lastTransitionTime": reconcile::time::seconds(shared.clock.now()),
        "observedGeneration": victim.generation,
    });
    if patch_status(shared, victim, &json!({ "conditions": [condition] })).await.is_none() {
        return false;
    }
    let options =
        DeleteOptions { precondition_uid: Some(victim.uid.to_string()), ..DeleteOptions::default() };
    match shared.client.delete(&kinds::PODS.gvr(), &victim.key, options).await {
        Ok(()) => {
            shared.event(victim, pod, EventType::Normal, "Preempted", message);
            true
        }
        Err(error) => {
            tracing::debug!(pod = %victim.key, %error, "pod not evicted");
            // Another of its name, or none: it has gone by itself.
            matches!(error.reason, Reason::Conflict | Reason::NotFound)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(value: &Value) -> Said {
        Said::of(&Object::parse(serde_json::to_vec(value).unwrap().into()).unwrap())
    }

    fn changed(said: Option<&Said>, message: &str, nominated: Option<&str>) -> Option<Value> {
        let nominated = nominated.map(str::to_owned);
        let told = Told { reason: "Unschedulable", message: message.to_owned(), nominated, frees: None };
        change(&told, said, 3, jiff::Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn only_what_is_news_is_written() {
        let condition = |status: &str, message: &str| {
            json!({ "metadata": { "name": "p" }, "status": { "nominatedNodeName": "n", "conditions": [
                { "type": "PodScheduled", "status": status, "reason": "Unschedulable", "message": message }] } })
        };
        let held = said(&condition("False", "full"));
        assert_eq!(changed(Some(&held), "full", None), None);
        assert_eq!(changed(Some(&held), "full", Some("n")), None);
        assert_eq!(changed(Some(&held), "full", Some("")), Some(json!({ "nominatedNodeName": null })));
        assert_eq!(changed(Some(&held), "full", Some("m")), Some(json!({ "nominatedNodeName": "m" })));
        let other = changed(Some(&held), "fuller", Some("n")).unwrap();
        assert_eq!(other["conditions"][0]["message"], "fuller");
        assert_eq!(other["conditions"][0]["observedGeneration"], 3);
        assert!(other["conditions"][0].get("lastTransitionTime").is_none());
        let first = changed(Some(&Said::default()), "full", None).unwrap();
        assert_eq!(first["conditions"][0]["lastTransitionTime"], "1970-01-01T00:00:00Z");
        // What was written last is not known: everything is, and the condition was False before.
        let unknown = changed(None, "full", Some("")).unwrap();
        assert_eq!(unknown["nominatedNodeName"], Value::Null);
        assert!(unknown["conditions"][0].get("lastTransitionTime").is_none());
    }

    #[test]
    fn a_status_that_cannot_be_read_says_nothing() {
        let broken = json!({ "metadata": { "name": "p" }, "status": { "conditions": "none" } });
        assert_eq!(said(&broken), Said::default());
    }
}
