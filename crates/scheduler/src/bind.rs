//! The writes of the scheduler: bindings, conditions, events, and the going of pods that make room.

use std::sync::Arc;

use api::{DeleteOptions, PatchType, Reason, Status};
use reconcile::{EventType, kinds};
use serde_json::json;

use crate::Shared;
use crate::framework::{Event, Preemption};
use crate::types::Pod;

/// Binds a pod to the node that it is assumed on.
pub(crate) async fn bind(shared: Arc<Shared>, pod: Arc<Pod>) {
    let body = json!({
        "apiVersion": "v1", "kind": "Binding",
        "metadata": { "name": pod.key.name, "namespace": pod.key.namespace, "uid": &*pod.uid },
        "target": { "apiVersion": "v1", "kind": "Node", "name": &*pod.node },
    });
    match create_binding(&shared, &pod, &body).await {
        Ok(()) => {
            let message = format!("Successfully assigned {} to {}", pod.key, pod.node);
            shared.event(&pod, &pod, EventType::Normal, "Scheduled", message);
            // The informer says the same in a moment; until then the assumption stands.
            shared.state.lock().queue.remove(&pod.uid);
        }
        Err(status) => {
            tracing::debug!(pod = %pod.key, node = %pod.node, error = %status, "binding failed");
            let current = shared.sources.pods.get(&pod.key).filter(|held| *held.meta().uid == *pod.uid);
            let fate = match current {
                Some(held) if held.node_name().is_some() => Fate::Bound,
                Some(_) if status.reason != Reason::NotFound => Fate::Waits,
                _ => Fate::Gone,
            };
            undo(&shared, &pod, fate);
        }
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
async fn create_binding(shared: &Shared, pod: &Pod, body: &serde_json::Value) -> Result<(), Status> {
    let resource = kinds::PODS.gvr();
    let body = serde_json::to_vec(body).map_err(|error| Status::internal(error.to_string()))?;
    let request = api::Request {
        resource,
        namespace: pod.key.namespace.clone(),
        name: pod.key.name.clone(),
        subresource: "binding".to_owned(),
        call: api::Call::Create { body: body.into(), options: api::WriteOptions::default() },
    };
    shared.client.send(request).await.map(drop)
}

/// The binding failed: the pod is not where it was assumed, and is tried again unless it is gone or bound already.
pub(crate) fn undo(shared: &Shared, pod: &Arc<Pod>, fate: Fate) {
    let state = &mut *shared.state.lock();
    if fate == Fate::Waits {
        state.queue.failed(&pod.uid, shared.clock.now());
    } else {
        state.queue.remove(&pod.uid);
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
}

/// Says on the pod and in an event why it goes nowhere.
pub(crate) async fn refuse(shared: Arc<Shared>, pod: Arc<Pod>, told: Told) {
    shared.event(&pod, &pod, EventType::Warning, "FailedScheduling", told.message.clone());
    write_status(&shared, &pod, &told).await;
}

/// Writes the condition PodScheduled=False and the node on which room is made, unless the pod says so already.
pub(crate) async fn write_status(shared: &Shared, pod: &Pod, told: &Told) {
    let mut status = serde_json::Map::new();
    let held = pod.scheduled.as_deref();
    let same = held.is_some_and(|(status, reason, message)| {
        status == "False" && reason == told.reason && *message == told.message
    });
    if !same {
        let mut condition = json!({
            "type": "PodScheduled", "status": "False", "reason": told.reason, "message": told.message,
            "observedGeneration": pod.generation,
        });
        if held.is_none_or(|(status, ..)| status != "False") {
            condition["lastTransitionTime"] = reconcile::time::seconds(shared.clock.now()).into();
        }
        status.insert("conditions".to_owned(), json!([condition]));
    }
    if let Some(node) = told.nominated.as_ref().filter(|node| ***node != *pod.nominated) {
        let node = if node.is_empty() { serde_json::Value::Null } else { node.as_str().into() };
        status.insert("nominatedNodeName".to_owned(), node);
    }
    if !status.is_empty() {
        patch_status(shared, pod, &status.into()).await;
    }
}

async fn patch_status(shared: &Shared, pod: &Pod, status: &serde_json::Value) -> bool {
    let patch = json!({ "metadata": { "uid": &*pod.uid }, "status": status });
    let (resource, kind) = (kinds::PODS.gvr(), PatchType::StrategicMerge);
    let written = shared.client.patch(&resource, &pod.key, "status", kind, &patch).await;
    match written {
        Ok(_) => true,
        // Who is gone needs no status.
        Err(error) if error.reason == Reason::NotFound => true,
        Err(error) => {
            tracing::debug!(pod = %pod.key, %error, "status not written");
            false
        }
    }
}

/// Has pods go to make room for one, which waits meanwhile. Source: `prepareCandidateAsync`.
pub(crate) async fn preempt(shared: Arc<Shared>, pod: Arc<Pod>, preemption: Preemption) {
    for displaced in preemption.displaced.iter().filter(|displaced| !displaced.nominated.is_empty()) {
        patch_status(&shared, displaced, &json!({ "nominatedNodeName": null })).await;
    }
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

/// Says on a pod why it goes, and has it go.
async fn evict(shared: &Shared, pod: &Pod, victim: &Pod, node: &str) -> bool {
    let condition = json!({
        "type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler",
        "message": format!("{}: preempting to accommodate a higher priority pod", pod.spec.scheduler_name),
        "lastTransitionTime": reconcile::time::seconds(shared.clock.now()),
        "observedGeneration": victim.generation,
    });
    if !patch_status(shared, victim, &json!({ "conditions": [condition] })).await {
        return false;
    }
    let options =
        DeleteOptions { precondition_uid: Some(victim.uid.to_string()), ..DeleteOptions::default() };
    match shared.client.delete(&kinds::PODS.gvr(), &victim.key, options).await {
        Ok(()) => {
            let message = format!("Preempted by pod {} on node {node}", pod.uid);
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
