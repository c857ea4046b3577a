//! Makes a container's image available: which rule of `imagePullPolicy` applies, who is asked, and what is reported.

pub(crate) mod gc;
mod keyring;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use api::Key;
use base::backoff::Policy;
use engine_api::{EngineError, ErrorKind, ImageOrigin, RegistryAuth, Resolution};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Container;
use parking_lot::Mutex;
use reconcile::{EventType, kinds};

use crate::deps::Deps;
use crate::pod::PodView;
use keyring::Keyring;

/// Credentials that a registry is asked with for one image, at most.
const CREDENTIALS_MAX: usize = 16;

/// Pull failures in a row: 10 s, 20 s, … up to 300 s.
pub(crate) const PULL_BACKOFF: Policy =
    Policy { first: Duration::from_secs(10), max: Duration::from_secs(300) };

/// The reason of a container whose image cannot be any.
const INVALID_NAME: &str = "InvalidImageName";

/// What `imagePullPolicy` and the store say is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rule {
    /// What the store has is used.
    Present,
    /// `Always` with a tag that was written locally: the store is asked again, no registry.
    Local,
    /// A registry is asked.
    Pull,
    /// `Never`, and it is absent.
    Never,
}

/// Decides. `origin`: who last wrote the tag, if the store has it. Pinned names (`@sha256:`) never change.
pub(crate) fn rule(policy: &str, origin: Option<ImageOrigin>, pinned: bool) -> Rule {
    match (policy, origin) {
        ("Never", Some(_)) | ("IfNotPresent", Some(_)) => Rule::Present,
        ("Never", None) => Rule::Never,
        ("Always", Some(ImageOrigin::Local)) => Rule::Local,
        (_, Some(_)) if pinned => Rule::Present,
        _ => Rule::Pull,
    }
}

/// The policy of a container; the API server sets it, so the default is for old objects only.
pub(crate) fn policy(container: &Container) -> &str {
    let image = container.image.as_deref().unwrap_or_default();
    let tagged = image.rsplit('/').next().and_then(|last| last.split_once(':'));
    match container.image_pull_policy.as_deref() {
        Some(policy) if !policy.is_empty() => policy,
        _ if image.contains('@') => "IfNotPresent",
        _ if tagged.is_none_or(|(_, tag)| tag == "latest") => "Always",
        _ => "IfNotPresent",
    }
}

/// Why there is no image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Missing {
    pub(crate) reason: &'static str,
    pub(crate) message: String,
    /// Whether trying again can help.
    pub(crate) retry: bool,
}

/// Pulls that are under way, so that pods which need the same image ask for it once.
#[derive(Default)]
pub(crate) struct Puller {
    locks: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

impl Puller {
    fn lock(&self, image: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.locks.lock();
        locks.retain(|_, lock| Arc::strong_count(lock) > 1);
        locks.entry(image.to_owned()).or_default().clone()
    }
}

/// Makes the image of a container available; gives its id. Records the events of the rule that applied. From then on it is
/// in use, and stays where the disk is full.
pub(crate) async fn ensure(deps: &Deps, pod: &PodView, container: &Container) -> Result<String, Missing> {
    let removed = deps.garbage.removed();
    let id = make_available(deps, pod, container).await?;
    let _held = deps.garbage.hold().await;
    deps.garbage.is_used(&id, deps.now());
    // One that went between the last look and now is asked for again.
    if removed != deps.garbage.removed() && resolve(deps, &id).await?.is_none() {
        let message = format!("image {id} was removed because the disk is full; it is pulled again");
        return Err(Missing { reason: "ErrImagePull", message, retry: true });
    }
    Ok(id)
}

async fn make_available(deps: &Deps, pod: &PodView, container: &Container) -> Result<String, Missing> {
    let image = container.image.as_deref().unwrap_or_default();
    let name = container.name.as_str();
    let policy = policy(container);
    let found = match resolve(deps, image).await {
        Err(missing) if missing.reason == INVALID_NAME => return Err(refused(deps, pod, name, missing)),
        found => found?,
    };
    let origin = found.as_ref().map(|found| found.origin);
    match (rule(policy, origin, image.contains('@')), found) {
        (Rule::Present, Some(found)) => {
            deps.normal(
                pod,
                name,
                "Pulled",
                format!("Container image \"{image}\" already present on machine"),
            );
            Ok(found.image.id)
        }
        (Rule::Local, Some(found)) => {
            let message = format!(
                "Container image \"{image}\" already present on machine (built or loaded here: \
                 imagePullPolicy Always takes its newest local version, no registry is asked)"
            );
            deps.normal(pod, name, "Pulled", message);
            Ok(found.image.id)
        }
        (Rule::Never, _) => {
            let message = format!("Container image \"{image}\" is not present with pull policy of Never");
            deps.warning(pod, name, "ErrImageNeverPull", message.clone());
            deps.warning(pod, name, "Failed", "Error: ErrImageNeverPull");
            Err(Missing { reason: "ErrImageNeverPull", message, retry: true })
        }
        _ => pull(deps, pod, name, image, policy).await,
    }
}

async fn resolve(deps: &Deps, image: &str) -> Result<Option<Resolution>, Missing> {
    match deps.images.resolve(image).await {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind == ErrorKind::NotFound => Ok(None),
        Err(error) if error.kind == ErrorKind::Invalid => Err(invalid_name(image, &error)),
        Err(error) => Err(Missing { reason: "ImageInspectError", message: error.to_string(), retry: true }),
    }
}

fn invalid_name(image: &str, error: &EngineError) -> Missing {
    let message = format!("Failed to apply default image tag \"{image}\": {error}");
    Missing { reason: INVALID_NAME, message, retry: false }
}

/// Says of a name that no image can have it.
fn refused(deps: &Deps, pod: &PodView, container: &str, missing: Missing) -> Missing {
    deps.warning(pod, container, "InspectFailed", missing.message.clone());
    deps.warning(pod, container, "Failed", format!("Error: {INVALID_NAME}"));
    missing
}

async fn pull(
    deps: &Deps,
    pod: &PodView,
    container: &str,
    image: &str,
    policy: &str,
) -> Result<String, Missing> {
    deps.normal(pod, container, "Pulling", format!("Pulling image \"{image}\""));
    let asked_at = deps.now();
    let lock = deps.puller.lock(image);
    let guard = lock.lock().await;
    let started_at = deps.now();
    let another_pulled = started_at > asked_at && policy != "Always";
    let found = if another_pulled { resolve(deps, image).await? } else { None };
    let resolution = match found {
        Some(found) => Ok(found),
        None => pull_and_resolve(deps, pod, image).await,
    };
    drop(guard);
    match resolution {
        Ok(resolution) => {
            let done = deps.now();
            let took = Duration::try_from(done.duration_since(started_at)).unwrap_or_default();
            deps.figures.pulled(resolution.image.size_bytes, took);
            let seconds = |from: jiff::Timestamp| done.duration_since(from).as_secs_f64();
            let message = format!(
                "Successfully pulled image \"{image}\" in {:.3}s ({:.3}s including waiting). Image size: {} bytes.",
                seconds(started_at),
                seconds(asked_at),
                resolution.image.size_bytes
            );
            deps.normal(pod, container, "Pulled", message);
            Ok(resolution.image.id)
        }
        Err(error) if error.kind == ErrorKind::Invalid => {
            Err(refused(deps, pod, container, invalid_name(image, &error)))
        }
        Err(error) => {
            deps.warning(pod, container, "Failed", format!("Failed to pull image \"{image}\": {error}"));
            deps.warning(pod, container, "Failed", "Error: ErrImagePull");
            let message = format!(
                "failed to pull image \"{image}\": {error}; check the name and the way to its registry, or put the \
                 image here with: skiff build -t {image} . or: skiff load -i FILE"
            );
            Err(Missing { reason: "ErrImagePull", message, retry: true })
        }
    }
}

/// Pulls with what the pod's secrets hold for the image, one after the other until the registry lets one in; without any,
/// as anybody may. Source: `PullImage` in `pkg/kubelet/kuberuntime/kuberuntime_image.go`.
async fn pull_and_resolve(deps: &Deps, pod: &PodView, image: &str) -> Result<Resolution, EngineError> {
    let found = credentials(deps, pod).await.lookup(image);
    let mut tries: Vec<Option<RegistryAuth>> = found.into_iter().take(CREDENTIALS_MAX).map(Some).collect();
    if tries.is_empty() {
        tries.push(None);
    }
    let last = tries.pop().flatten();
    for auth in tries {
        match pull_as(deps, image, auth).await {
            // Registries say either of who may not see an image.
            Err(error) if matches!(error.kind, ErrorKind::Denied | ErrorKind::NotFound) => {}
            other => return other,
        }
    }
    pull_as(deps, image, last).await
}

async fn pull_as(deps: &Deps, image: &str, auth: Option<RegistryAuth>) -> Result<Resolution, EngineError> {
    let mut progress = deps.images.pull(image, auth).await?;
    while let Some(step) = progress.next().await {
        step?;
    }
    deps.images.resolve(image).await
}

/// What the pod's `imagePullSecrets` hold (the ServiceAccount's are copied into the pod at admission). Those that cannot be
/// read are told of: without them an image may seem not to be there.
async fn credentials(deps: &Deps, pod: &PodView) -> Keyring {
    let (mut keyring, mut failed) = (Keyring::default(), Vec::new());
    for reference in pod.spec.image_pull_secrets.iter().flatten().filter(|one| !one.name.is_empty()) {
        if let Err(why) = add_secret(deps, pod, &reference.name, &mut keyring).await {
            failed.push(format!("{} ({why})", reference.name));
        }
    }
    if !failed.is_empty() {
        let text = format!(
            "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
            failed.join(", ")
        );
        deps.event(pod, None, EventType::Warning, "FailedToRetrieveImagePullSecret", text);
    }
    keyring
}

async fn add_secret(deps: &Deps, pod: &PodView, name: &str, keyring: &mut Keyring) -> Result<(), String> {
    let key = Key::new(pod.metadata.namespace.clone(), name);
    let object = crate::sources::look_up(deps, &kinds::SECRETS, &key).await;
    let object = object.map_err(|status| status.message)?.ok_or("not found")?;
    keyring.add(&object.decode().map_err(|_| "not readable")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_local_tag_asks_no_registry() {
        let (local, registry) = (Some(ImageOrigin::Local), Some(ImageOrigin::Registry));
        for (policy, origin, pinned, wanted) in [
            ("Always", local, false, Rule::Local),
            ("Always", registry, false, Rule::Pull),
            ("Always", registry, true, Rule::Present),
            ("Always", None, false, Rule::Pull),
            ("IfNotPresent", local, false, Rule::Present),
            ("IfNotPresent", registry, false, Rule::Present),
            ("IfNotPresent", None, false, Rule::Pull),
            ("Never", local, false, Rule::Present),
            ("Never", None, false, Rule::Never),
        ] {
            assert_eq!(rule(policy, origin, pinned), wanted, "{policy} {origin:?} {pinned}");
        }
    }

    #[test]
    fn the_default_policy_follows_the_tag() {
        let with = |image: &str| {
            let container = Container { image: Some(image.to_owned()), ..Container::default() };
            policy(&container).to_owned()
        };
        assert_eq!(with("x"), "Always");
        assert_eq!(with("localhost:5000/x"), "Always");
        assert_eq!(with("x:latest"), "Always");
        assert_eq!(with("x:1"), "IfNotPresent");
        assert_eq!(with("x@sha256:00"), "IfNotPresent");
    }
}
