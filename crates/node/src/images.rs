//! Makes a container's image available: which rule of `imagePullPolicy` applies, who is asked, and what is reported.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use api::Key;
use base::backoff::Policy;
use engine_api::{EngineError, ErrorKind, ImageOrigin, RegistryAuth, Resolution};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Container;
use parking_lot::Mutex;
use reconcile::kinds;
use serde::Deserialize;

use crate::deps::Deps;
use crate::pod::PodView;

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

/// Makes the image of a container available; gives its id. Records the events of the rule that applied.
pub(crate) async fn ensure(deps: &Deps, pod: &PodView, container: &Container) -> Result<String, Missing> {
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

async fn pull_and_resolve(deps: &Deps, pod: &PodView, image: &str) -> Result<Resolution, EngineError> {
    let auth = credentials(deps, pod, image).await;
    let mut progress = deps.images.pull(image, auth).await?;
    while let Some(step) = progress.next().await {
        step?;
    }
    deps.images.resolve(image).await
}

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: HashMap<String, DockerAuth>,
}

#[derive(Deserialize)]
struct DockerAuth {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    auth: String,
}

/// Credentials for the image's registry from the pod's `imagePullSecrets` (the ServiceAccount's are copied into the pod
/// at admission).
async fn credentials(deps: &Deps, pod: &PodView, image: &str) -> Option<RegistryAuth> {
    for reference in pod.spec.image_pull_secrets.iter().flatten() {
        let key = Key::new(pod.metadata.namespace.clone(), reference.name.clone());
        let object = crate::sources::look_up(deps, &kinds::SECRETS, &key).await.ok().flatten();
        let Some(view) = object.and_then(|object| object.decode::<SecretData>().ok()) else { continue };
        let config = view.data.get(".dockerconfigjson");
        if let Some(auth) = config.and_then(|config| matching_auth(&config.0, image)) {
            return Some(auth);
        }
    }
    None
}

#[derive(Deserialize)]
struct SecretData {
    #[serde(default)]
    data: HashMap<String, k8s_openapi::ByteString>,
}

/// The entry of a Docker configuration for the registry of an image.
fn matching_auth(config: &[u8], image: &str) -> Option<RegistryAuth> {
    use base64::Engine as _;
    let config: DockerConfig = serde_json::from_slice(config).ok()?;
    let registry = registry_of(image);
    let entry = config.auths.into_iter().find(|(server, _)| {
        let host = server.trim_start_matches("https://").trim_start_matches("http://");
        let host = host.split('/').next().unwrap_or_default();
        host == registry || (registry == "docker.io" && host == "index.docker.io")
    })?;
    let DockerAuth { username, password, auth } = entry.1;
    if !username.is_empty() {
        return Some(RegistryAuth { username, password });
    }
    let decoded = base64::engine::general_purpose::STANDARD.decode(auth).ok()?;
    let (username, password) = std::str::from_utf8(&decoded).ok()?.split_once(':')?;
    Some(RegistryAuth { username: username.to_owned(), password: password.to_owned() })
}

fn registry_of(image: &str) -> &str {
    match image.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        _ => "docker.io",
    }
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

    #[test]
    fn credentials_match_the_registry() {
        let config = br#"{"auths": {"https://index.docker.io/v1/": {"auth": "dTpw"},
            "r.example:5000": {"username": "a", "password": "b"}}}"#;
        assert_eq!(matching_auth(config, "library/x").unwrap().password, "p");
        assert_eq!(matching_auth(config, "r.example:5000/x:1").unwrap().username, "a");
        assert!(matching_auth(config, "other.example/x").is_none());
    }
}
