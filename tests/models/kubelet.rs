//! What kubelets do to pods: start them, tell that they are ready or not, let them end, and take away what is deleted.

use std::sync::Arc;

use api::{DeleteOptions, Key, Object, PatchType, Status};
use base::clock::Clock;
use reconcile::kinds;
use serde_json::{Value, json};

use crate::witness::{Witness, condition, is_active, value};
use crate::world::{NAMESPACE, World};

/// The node of every pod.
pub(crate) const NODE: &str = "node-0";

impl World {
    /// Puts a pod on the node, as the scheduler does. In a namespace that ends it stays where it is.
    pub(crate) async fn bind(&self, pod: &Object) {
        let binding = json!({ "target": { "kind": "Node", "name": NODE } });
        let bound = self.user.create_subresource(&kinds::PODS.gvr(), &pod.key(), "binding", &binding).await;
        let ends = |status: &Status| {
            status.details.causes.iter().any(|cause| cause.reason == "NamespaceTerminating")
        };
        if !bound.as_ref().is_err_and(ends) {
            or_too_late(bound);
        }
    }

    /// Tells a pod's phase and whether it is ready.
    pub(crate) async fn tell(&self, pod: &Object, phase: &str, ready: bool) {
        let status = if ready { "True" } else { "False" };
        let ready = json!({ "type": "Ready", "status": status, "lastTransitionTime": self.clock.now() });
        self.status(pod, &json!({ "phase": phase, "conditions": [ready] })).await;
    }

    /// Merges into a pod's status.
    pub(crate) async fn status(&self, pod: &Object, status: &Value) {
        let patch = json!({ "metadata": { "uid": pod.meta().uid }, "status": status });
        let told = self.user.patch(&kinds::PODS.gvr(), &pod.key(), "status", PatchType::Merge, &patch).await;
        or_too_late(told);
    }

    /// Takes away a pod that is being deleted.
    pub(crate) async fn end(&self, pod: &Object) {
        let options = DeleteOptions {
            grace_period_seconds: Some(0),
            precondition_uid: Some(pod.meta().uid.clone()),
            ..DeleteOptions::default()
        };
        let gone = self.user.delete(&kinds::PODS.gvr(), &pod.key(), options).await;
        or_too_late(gone);
    }

    /// One step with one pod that has something to do; whether there was one. Where pods also break, any pod may.
    pub(crate) async fn kubelet(&mut self, witness: &Witness, breaks: bool) -> bool {
        let due: Vec<Arc<Object>> =
            witness.all("Pod").filter(|pod| breaks || has_to_do(pod)).cloned().collect();
        let Some(pod) = self.chance.choice(&due) else { return false };
        if pod.meta().is_terminating() {
            self.end(pod).await;
        } else if pod.node_name().is_none() {
            self.bind(pod).await;
        } else if !is_active(pod) {
            return true;
        } else if !condition(pod, "Ready") {
            self.tell(pod, "Running", true).await;
        } else if self.chance.bool() {
            self.tell(pod, "Running", false).await;
        } else {
            self.tell(pod, "Failed", false).await;
        }
        true
    }

    /// All pods come as far as they can, and so do their controllers.
    pub(crate) async fn everything_runs(&mut self, witness: &mut Witness) {
        loop {
            self.settle().await;
            witness.catch_up(|_, _| {}).await;
            if !self.kubelet(witness, false).await {
                return;
            }
        }
    }

    /// Deletes a pod as a user does.
    pub(crate) async fn delete_pod(&mut self, witness: &Witness) {
        self.take_pod(witness).await;
    }

    /// The same, and tells which.
    pub(crate) async fn take_pod(&mut self, witness: &Witness) -> Option<Key> {
        let pods: Vec<_> = witness.all("Pod").map(|pod| pod.key()).collect();
        let key = self.chance.choice(&pods)?;
        assert_eq!(key.namespace, NAMESPACE);
        or_too_late(self.user.delete(&kinds::PODS.gvr(), key, DeleteOptions::default()).await);
        Some(key.clone())
    }
}

/// A pod may have changed since it was looked at, or be gone.
pub(crate) fn or_too_late<T>(done: Result<T, Status>) {
    if let Err(status) = done {
        assert!(matches!(status.code, 404 | 409), "{status:?}");
    }
}

fn has_to_do(pod: &Object) -> bool {
    pod.meta().is_terminating()
        || pod.node_name().is_none()
        || (is_active(pod) && !condition(pod, "Ready") && !value(pod)["status"].is_null())
}
