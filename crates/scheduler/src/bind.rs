//! The writes of the scheduler: bindings, conditions and events.

use std::sync::Arc;

use api::{PatchType, Reason, Status};
use reconcile::{EventType, Involved, kinds};
use serde_json::json;

use crate::Shared;
use crate::types::Pod;

/// Binds a pod to the node that it is assumed on.
pub(crate) async fn bind(shared: Arc<Shared>, pod: Arc<Pod>) {
    let body = json!({
        "apiVersion": "v1", "kind": "Binding",
        "metadata": { "name": pod.key.name, "namespace": pod.key.namespace, "uid": pod.uid },
        "target": { "apiVersion": "v1", "kind": "Node", "name": pod.node },
    });
    match create_binding(&shared, &pod, &body).await {
        Ok(()) => {
            let message = format!("Successfully assigned {} to {}", pod.key, pod.node);
            shared.events.event(involved(&pod), EventType::Normal, "Scheduled", message);
            // The informer says the same in a moment; until then the assumption stands.
            shared.state.lock().queue.remove(&pod.uid);
        }
        Err(status) => undo(&shared, &pod, &status),
    }
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
fn undo(shared: &Shared, pod: &Pod, status: &Status) {
    let now = shared.clock.now();
    let current = shared.pods.get(&pod.key).filter(|held| held.meta().uid == pod.uid);
    let bound = current.as_ref().is_some_and(|held| held.node_name().is_some());
    let mut state = shared.state.lock();
    if bound {
        // The informer has put it where it is.
        state.queue.remove(&pod.uid);
        return;
    }
    state.cache.remove_pod(&pod.uid);
    if current.is_none() || status.reason == Reason::NotFound {
        state.queue.remove(&pod.uid);
    } else {
        tracing::debug!(pod = %pod.key, node = pod.node, error = %status, "binding failed, trying again");
        state.queue.failed(&pod.uid, now);
    }
    drop(state);
    shared.wake.notify_one();
}

/// Says on the pod and in an event why it goes nowhere.
pub(crate) async fn refuse(shared: Arc<Shared>, pod: Arc<Pod>, reason: &str, message: String) {
    shared.events.event(involved(&pod), EventType::Warning, "FailedScheduling", message.as_str());
    write_condition(&shared, &pod, reason, &message).await;
}

/// Writes the condition PodScheduled=False, unless it says so already.
pub(crate) async fn write_condition(shared: &Shared, pod: &Pod, reason: &str, message: &str) {
    let same = pod.scheduled.as_ref().is_some_and(|(status, held_reason, held_message)| {
        status == "False" && held_reason == reason && held_message == message
    });
    if same {
        return;
    }
    let since = reconcile::time::seconds(shared.clock.now());
    let mut condition =
        json!({ "type": "PodScheduled", "status": "False", "reason": reason, "message": message });
    if pod.scheduled.as_ref().is_none_or(|(status, ..)| status != "False") {
        condition["lastTransitionTime"] = since.into();
    }
    let patch = json!({
        "metadata": { "uid": pod.uid },
        "status": { "conditions": [condition] },
    });
    let resource = kinds::PODS.gvr();
    let kind = PatchType::StrategicMerge;
    if let Err(error) = shared.client.patch(&resource, &pod.key, "status", kind, &patch).await {
        tracing::debug!(pod = %pod.key, %error, "condition PodScheduled not written");
    }
}

fn involved(pod: &Pod) -> Involved {
    Involved::named(&kinds::PODS, &pod.key, &pod.uid)
}
