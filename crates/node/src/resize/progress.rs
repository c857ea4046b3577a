//! How far a resize is: the door's answer, and what the pod's conditions and events say of it.
//! Source: `pkg/kubelet/status/status_manager.go`, `pkg/kubelet/events`.

use k8s_openapi::api::core::v1::Container;
use serde_json::{Value, json};

use super::Allocation;
use crate::pod::PodView;

/// Condition types. Source: `v1.PodResizePending`, `v1.PodResizeInProgress`.
pub(crate) const PENDING: &str = "PodResizePending";
pub(crate) const IN_PROGRESS: &str = "PodResizeInProgress";
/// Reasons of the first: the node has no room for now, or never will have. Source: `v1.PodReasonDeferred`, `…Infeasible`.
pub(crate) const DEFERRED: &str = "Deferred";
pub(crate) const INFEASIBLE: &str = "Infeasible";

/// What the door says to what a pod asks for now.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Answer {
    /// It has that.
    Settled,
    /// It is to have that.
    Granted(Allocation),
    /// Not now: the condition's reason and message, and what it wished for.
    Pending(&'static str, String, Allocation),
}

/// An answer, and to which generation of the pod.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Resized {
    pub(crate) generation: i64,
    pub(crate) answer: Answer,
}

/// What a condition says that holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) generation: i64,
}

/// What is told of a resize.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) pending: Option<Told>,
    pub(crate) in_progress: Option<Told>,
    /// Runs that were ended so that their containers begin anew with what they have now, whatever their policy says of ends.
    pub(crate) anew: Vec<String>,
}

impl Progress {
    /// What a generation of the pod asks for was granted; what was said of a newer one meanwhile still holds.
    pub(crate) fn begins(&mut self, generation: i64) {
        self.pending.take_if(|told| told.generation <= generation);
        self.in_progress = Some(Told { generation, ..Told::default() });
    }
}

/// The message of an event: `Pod resize started: {…}`. Source: `podResizeMessage`.
pub(crate) fn message(what: &str, pod: &PodView, generation: i64, error: &str) -> String {
    let listed = |containers: &[Container]| -> Vec<Value> {
        let shown = |container: &Container| {
            let resources = container.resources.clone().unwrap_or_default();
            json!({ "name": container.name, "resources": resources })
        };
        containers.iter().map(shown).collect()
    };
    let mut summary = json!({ "containers": listed(&pod.spec.containers), "generation": generation });
    let init = listed(pod.init_containers());
    if !init.is_empty() {
        summary["initContainers"] = init.into();
    }
    if !error.is_empty() {
        summary["error"] = error.into();
    }
    format!("Pod resize {what}: {summary}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::tests::pod;

    #[test]
    fn a_grant_leaves_what_was_said_of_newer_wishes() {
        let pending =
            |generation: i64| Some(Told { generation, reason: DEFERRED.to_owned(), ..Told::default() });
        for (said_of, stays) in [(2, None), (3, None), (4, pending(4))] {
            let mut progress = Progress { pending: pending(said_of), ..Progress::default() };
            progress.begins(3);
            let begun = Some(Told { generation: 3, ..Told::default() });
            assert_eq!((progress.pending, progress.in_progress), (stays, begun));
        }
    }

    #[test]
    fn events_tell_all_amounts() {
        let resources = json!({ "limits": { "cpu": "100m" }, "requests": { "cpu": "100m" } });
        let pod = pod(json!({ "containers": [{ "name": "c0", "resources": resources }, { "name": "c1" }] }));
        assert_eq!(
            message("started", &pod, 2, ""),
            "Pod resize started: {\"containers\":[{\"name\":\"c0\",\"resources\":{\"limits\":{\"cpu\":\"100m\"},\
             \"requests\":{\"cpu\":\"100m\"}}},{\"name\":\"c1\",\"resources\":{}}],\"generation\":2}"
        );
        let refused = "Pod resize Deferred: {\"containers\":[{\"name\":\"c0\",";
        let told = message(DEFERRED, &pod, 2, "no room");
        assert!(told.starts_with(refused), "{told}");
        let shown: Value = serde_json::from_str(&told["Pod resize Deferred: ".len()..]).unwrap();
        assert_eq!((&shown["generation"], &shown["error"]), (&json!(2), &json!("no room")));
    }
}
