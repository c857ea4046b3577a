//! Which of the node's OCI runtimes a pod asks for. Scheduling and overhead of a RuntimeClass are admission's.
//! Source: `pkg/kubelet/runtimeclass`.

use api::Key;
use reconcile::kinds;
use serde::Deserialize;

use crate::deps::Deps;
use crate::pod::PodView;
use crate::sources::look_up;

#[derive(Deserialize)]
struct RuntimeClassView {
    #[serde(default)]
    handler: String,
}

/// The handler that the pod's RuntimeClass names as it is now; empty without one: the node's own runtime.
pub(crate) async fn handler(deps: &Deps, pod: &PodView) -> Result<String, String> {
    let Some(name) = pod.spec.runtime_class_name.as_deref().filter(|name| !name.is_empty()) else {
        return Ok(String::new());
    };
    let found = look_up(deps, &kinds::RUNTIME_CLASSES, &Key::new("", name)).await;
    let found = found.map_err(|status| format!("failed to lookup RuntimeClass {name}: {status}"))?;
    let class = found.ok_or_else(|| format!("runtimeclass.node.k8s.io \"{name}\" not found"))?;
    let view: RuntimeClassView =
        class.decode().map_err(|error| format!("RuntimeClass {name} not readable: {error}"))?;
    Ok(view.handler)
}
