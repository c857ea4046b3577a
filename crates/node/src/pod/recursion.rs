//! Mounts that are read-only with all that is mounted below them: who gets them, and what status says of it.
//! Source: KEP-3857, `resolveRecursiveReadOnly` in `pkg/kubelet`.

use engine_api::{Mount, RuntimeHandler};
use k8s_openapi::api::core::v1::{Container, VolumeMount, VolumeMountStatus};

/// Whether sandboxes of a runtime can have them.
pub(crate) fn supported(handlers: &[RuntimeHandler], handler: &str) -> bool {
    handlers.iter().any(|known| known.name == handler && known.recursive_read_only_mounts)
}

/// Whether a mount asks for it, be it only where that is possible.
pub(crate) fn wanted(mount: &VolumeMount) -> bool {
    matches!(mount.recursive_read_only.as_deref(), Some("Enabled" | "IfPossible"))
        && mount.read_only == Some(true)
}

/// Whether a mount is made so; why not, where somebody insists.
fn resolve(mount: &VolumeMount, supported: bool) -> Result<bool, String> {
    let propagates = mount.mount_propagation.as_deref().filter(|propagation| *propagation != "None");
    let obstacle = match propagates {
        _ if mount.read_only != Some(true) => Some("it is not read-only".to_owned()),
        Some(propagation) => Some(format!("it is not compatible with propagation {propagation:?}")),
        None if !supported => Some("it is not supported by the runtime".to_owned()),
        None => None,
    };
    match (mount.recursive_read_only.as_deref(), obstacle) {
        (Some("Enabled"), Some(why)) => Err(format!(
            "failed to resolve recursive read-only mode: volumeMount {:?} requested recursive read-only mode, but {why}",
            mount.name
        )),
        (Some("Enabled" | "IfPossible"), None) => Ok(true),
        _ => Ok(false),
    }
}

/// Takes from a container's mounts what its runtime cannot do, unless it insists.
pub(crate) fn settle(container: &Container, mounts: &mut [Mount], supported: bool) -> Result<(), String> {
    container.volume_mounts.iter().flatten().try_for_each(|mount| resolve(mount, supported).map(drop))?;
    mounts.iter_mut().for_each(|mount| mount.recursive_read_only &= supported);
    Ok(())
}

/// A container's mounts as status shows them.
pub(crate) fn statuses(container: &Container, supported: bool) -> Option<Vec<VolumeMountStatus>> {
    let mounts = container.volume_mounts.as_ref().filter(|mounts| !mounts.is_empty())?;
    let status = |mount: &VolumeMount| {
        let mode = if resolve(mount, supported).unwrap_or(false) { "Enabled" } else { "Disabled" };
        VolumeMountStatus {
            name: mount.name.clone(),
            mount_path: mount.mount_path.clone(),
            read_only: mount.read_only,
            recursive_read_only: (mount.read_only == Some(true)).then(|| mode.to_owned()),
            ..VolumeMountStatus::default()
        }
    };
    Some(mounts.iter().map(status).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn container(mount: serde_json::Value) -> Container {
        let mut whole = json!({"name": "v", "mountPath": "/v"});
        whole.as_object_mut().unwrap().extend(mount.as_object().cloned().unwrap());
        serde_json::from_value(json!({"name": "main", "volumeMounts": [whole]})).unwrap()
    }

    #[test]
    fn who_insists_gets_it_or_is_told_why_not() {
        let resolved = |mount: serde_json::Value, supported| {
            resolve(&container(mount).volume_mounts.unwrap()[0], supported)
        };
        let asked = |mode: &str| json!({"readOnly": true, "recursiveReadOnly": mode});
        for (mode, supported, made) in [
            ("Disabled", true, Ok(false)),
            ("IfPossible", true, Ok(true)),
            ("IfPossible", false, Ok(false)),
            ("Enabled", true, Ok(true)),
        ] {
            assert_eq!(resolved(asked(mode), supported), made, "{mode} {supported}");
        }
        for (mount, supported, why) in [
            (asked("Enabled"), false, "it is not supported by the runtime"),
            (json!({"recursiveReadOnly": "Enabled"}), true, "it is not read-only"),
            (
                json!({"readOnly": true, "recursiveReadOnly": "Enabled", "mountPropagation": "Bidirectional"}),
                true,
                "it is not compatible with propagation \"Bidirectional\"",
            ),
        ] {
            let error = resolved(mount, supported).unwrap_err();
            let wanted = format!(
                "failed to resolve recursive read-only mode: volumeMount \"v\" requested recursive read-only mode, but {why}"
            );
            assert_eq!(error, wanted);
        }
        assert_eq!(resolved(json!({"readOnly": true}), true), Ok(false));
    }

    #[test]
    fn status_tells_what_came_of_it() {
        let shown = |mount: serde_json::Value, supported| {
            let status = statuses(&container(mount), supported).unwrap().remove(0);
            (status.read_only, status.recursive_read_only)
        };
        let possible = json!({"readOnly": true, "recursiveReadOnly": "IfPossible"});
        assert_eq!(shown(possible.clone(), true), (Some(true), Some("Enabled".into())));
        assert_eq!(shown(possible, false), (Some(true), Some("Disabled".into())));
        assert_eq!(shown(json!({"readOnly": true}), true), (Some(true), Some("Disabled".into())));
        assert_eq!(shown(json!({}), true), (None, None));
    }
}
