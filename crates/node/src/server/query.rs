//! Query parameters, and the container that a request means.

use api::{Key, Reason, Status};
use http::Request;
use k8s_openapi::api::core::v1::ContainerState;

use super::route::Target;
use crate::deps::Deps;
use crate::pod::plan::{current_sandbox, latest};
pub(crate) use crate::pod::view::reported;
use crate::pod::{ContainerRecord, PodView, SandboxRecord};

/// The query's parameters, decoded, in order.
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    /// Reads a request's query.
    pub(crate) fn of<B>(request: &Request<B>) -> Self {
        let pairs = request.uri().query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        Self(
            pairs
                .map(|pair| {
                    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (decode(name), decode(value))
                })
                .collect(),
        )
    }

    /// The first value of a parameter.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Every value of a parameter.
    pub(crate) fn all(&self, name: &str) -> Vec<String> {
        self.0.iter().filter(|(known, _)| known == name).map(|(_, value)| value.clone()).collect()
    }

    /// Whether one of the names is set to a true value: the API says `stdin=true`, the kubelet `input=1`.
    pub(crate) fn flag(&self, names: &[&str]) -> bool {
        names.iter().any(|name| self.get(name).is_some_and(|value| matches!(value, "1" | "true" | "True")))
    }

    /// A number, if the parameter is there.
    pub(crate) fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, Status> {
        match self.get(name).filter(|text| !text.is_empty()) {
            None => Ok(None),
            Some(text) => text.parse().map(Some).map_err(|_| {
                Status::bad_request(format!("query parameter {name}: \"{text}\" is no valid number"))
            }),
        }
    }
}

/// Percent-decoding with `+` as a space. What is no valid escape stays as it is.
fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escape = bytes.get(at + 1..at + 3).and_then(|digits| std::str::from_utf8(digits).ok());
        match (bytes[at], escape.and_then(|digits| u8::from_str_radix(digits, 16).ok())) {
            (b'%', Some(byte)) => {
                out.push(byte);
                at += 3;
            }
            (b'+', _) => {
                out.push(b' ');
                at += 1;
            }
            (byte, _) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The pod that a request means.
pub(crate) fn pod(deps: &Deps, target: &Target) -> Result<PodView, Status> {
    let missing = || {
        Status::new(Reason::NotFound, format!("pod {}/{} is not on this node", target.namespace, target.pod))
    };
    let object = deps.caches.pods.get(&Key::new(&target.namespace, &target.pod)).ok_or_else(missing)?;
    if target.uid.as_ref().is_some_and(|uid| *uid != object.meta().uid) {
        return Err(missing());
    }
    let mut pod =
        PodView::decode(&object).map_err(|error| Status::internal(format!("pod not readable: {error}")))?;
    pod.metadata.uid = deps.runs_as(&pod);
    Ok(pod)
}

/// The newest run of the container that a request means.
pub(crate) fn container(deps: &Deps, target: &Target) -> Result<ContainerRecord, Status> {
    let pod = pod(deps, target)?;
    let runtime = deps.state.pod(pod.uid());
    latest(&runtime.containers, &target.container).cloned().ok_or_else(|| {
        if pod.container(&target.container).is_some() {
            let state = reported(&pod.status, &target.container).and_then(|status| status.state.as_ref());
            let container = format!("container \"{}\" in pod \"{}\"", target.container, target.pod);
            Status::bad_request(format!("{container} is {}", absence(state)))
        } else {
            let text = format!("container {} is not valid for pod {}", target.container, target.pod);
            Status::bad_request(text)
        }
    })
}

/// Why there is no run of a container. Source: `validateContainerLogStatus` in `pkg/kubelet/kubelet_pods.go`.
fn absence(state: Option<&ContainerState>) -> String {
    let Some(state) = state else { return "not available".to_owned() };
    let waiting = state.waiting.as_ref().map(|waiting| waiting.reason.as_deref().unwrap_or_default());
    match waiting {
        Some("ErrImagePull") => "waiting to start: image can't be pulled".to_owned(),
        Some("ImagePullBackOff") => "waiting to start: trying and failing to pull image".to_owned(),
        Some(reason) => format!("waiting to start: {reason}"),
        None if state.terminated.is_some() => "terminated".to_owned(),
        None => "waiting to start - no logs yet".to_owned(),
    }
}

/// The running container that a request means.
pub(crate) fn running(deps: &Deps, target: &Target) -> Result<ContainerRecord, Status> {
    let record = container(deps, target)?;
    if record.is_running() {
        return Ok(record);
    }
    Err(Status::bad_request(format!(
        "container \"{}\" of pod {}/{} is not running: see kubectl logs --previous and kubectl describe pod",
        target.container, target.namespace, target.pod
    )))
}

/// The living sandbox of the pod that a request means.
pub(crate) fn sandbox(deps: &Deps, target: &Target) -> Result<SandboxRecord, Status> {
    let pod = pod(deps, target)?;
    let runtime = deps.state.pod(pod.uid());
    current_sandbox(&runtime.sandboxes)
        .filter(|sandbox| sandbox.ready)
        .cloned()
        .ok_or_else(|| Status::bad_request(format!("pod {}/{} is not running", target.namespace, target.pod)))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::PodStatus;

    use super::*;

    #[test]
    fn a_container_without_a_run_says_what_it_waits_for() {
        let said = |state: serde_json::Value| {
            let status = serde_json::json!({ "containerStatuses": [{ "name": "main", "image": "", "imageID": "",
                "ready": false, "restartCount": 0, "state": state }] });
            let status: PodStatus = serde_json::from_value(status).unwrap();
            assert!(reported(&status, "other").is_none());
            absence(reported(&status, "main").and_then(|status| status.state.as_ref()))
        };
        let waiting = |reason: &str| said(serde_json::json!({ "waiting": { "reason": reason } }));
        assert_eq!(waiting("ContainerCreating"), "waiting to start: ContainerCreating");
        assert_eq!(waiting("ErrImagePull"), "waiting to start: image can't be pulled");
        assert_eq!(waiting("ImagePullBackOff"), "waiting to start: trying and failing to pull image");
        assert_eq!(said(serde_json::json!({ "terminated": { "exitCode": 1 } })), "terminated");
        assert_eq!(said(serde_json::json!({})), "waiting to start - no logs yet");
        assert_eq!(absence(None), "not available");
    }

    #[test]
    fn parameters_are_decoded() {
        let request =
            Request::get("/x?command=sh&command=-c&command=echo+a%20%26b&tty=1&stdin=true&n=5&bad=%zz")
                .body(())
                .unwrap();
        let query = Query::of(&request);
        assert_eq!(query.all("command"), ["sh", "-c", "echo a &b"]);
        assert!(query.flag(&["tty"]) && query.flag(&["input", "stdin"]) && !query.flag(&["stdout"]));
        assert_eq!(query.number::<u64>("n").unwrap(), Some(5));
        assert!(query.number::<u64>("bad").is_err());
    }
}
