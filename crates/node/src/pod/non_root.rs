//! `runAsNonRoot`: whether a container may run as the user that its pod, itself or its image names.
//! Source: `verifyRunAsNonRoot` in `pkg/kubelet/kuberuntime`.

use k8s_openapi::api::core::v1::Container;

use super::PodView;

/// Whether the image's user has to be known to decide: nobody has named another one.
pub(crate) fn asks_for_the_images_user(pod: &PodView, container: &Container) -> bool {
    non_root(pod, container) && run_as_user(pod, container).is_none()
}

/// Refuses who would run as root, and whose image names a user of whom nobody outside of it knows the number.
/// `image_user`: as the image says (`app:staff`).
pub(crate) fn verify(pod: &PodView, container: &Container, image_user: &str) -> Result<(), String> {
    if !non_root(pod, container) {
        return Ok(());
    }
    let name = image_user.split(':').next().unwrap_or_default();
    let why = match (run_as_user(pod, container), name.parse::<i64>()) {
        (Some(0), _) => "container's runAsUser breaks non-root policy".to_owned(),
        (Some(_), _) => return Ok(()),
        (None, Ok(0)) => "container has runAsNonRoot and image will run as root".to_owned(),
        (None, Ok(_)) => return Ok(()),
        (None, Err(_)) if name.is_empty() => {
            "container has runAsNonRoot and image will run as root".to_owned()
        }
        (None, Err(_)) => format!(
            "container has runAsNonRoot and image has non-numeric user ({name}), cannot verify user is non-root"
        ),
    };
    Err(format!("{why} (pod: \"{}\", container: {})", pod.described(), container.name))
}

fn non_root(pod: &PodView, container: &Container) -> bool {
    let own = container.security_context.as_ref().and_then(|context| context.run_as_non_root);
    let of_pod = || pod.spec.security_context.as_ref().and_then(|context| context.run_as_non_root);
    own.or_else(of_pod).unwrap_or(false)
}

fn run_as_user(pod: &PodView, container: &Container) -> Option<i64> {
    let own = container.security_context.as_ref().and_then(|context| context.run_as_user);
    own.or_else(|| pod.spec.security_context.as_ref()?.run_as_user)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::pod::tests::pod;

    #[test]
    fn who_cannot_be_proved_not_to_be_root_is_refused() {
        let with = |of_pod: Value, own: Value, image_user: &str| {
            let pod = pod(json!({"securityContext": of_pod,
                "containers": [{"name": "main", "securityContext": own}]}));
            verify(&pod, &pod.spec.containers[0], image_user).err().unwrap_or_default()
        };
        let (none, non_root) = (json!({}), json!({"runAsNonRoot": true}));
        let as_root = "container has runAsNonRoot and image will run as root (pod: \"web_default(u1)\", container: main)";
        let named = "container has runAsNonRoot and image has non-numeric user (app), cannot verify user is \
                     non-root (pod: \"web_default(u1)\", container: main)";
        let breaks =
            "container's runAsUser breaks non-root policy (pod: \"web_default(u1)\", container: main)";
        for (of_pod, own, image_user, error) in [
            (none.clone(), none.clone(), "", ""),
            (none.clone(), non_root.clone(), "", as_root),
            (non_root.clone(), none.clone(), "0:5", as_root),
            (non_root.clone(), none.clone(), "1000:5", ""),
            (non_root.clone(), none.clone(), "app:staff", named),
            (non_root.clone(), json!({"runAsUser": 7}), "app", ""),
            (non_root.clone(), json!({"runAsUser": 0}), "7", breaks),
            (non_root.clone(), json!({"runAsNonRoot": false}), "", ""),
            (json!({"runAsNonRoot": true, "runAsUser": 7}), none.clone(), "", ""),
        ] {
            assert_eq!(with(of_pod.clone(), own.clone(), image_user), error, "{of_pod} {own} {image_user}");
        }
    }
}
