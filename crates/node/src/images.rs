//! Makes a container's image available: which rule of `imagePullPolicy` applies, whether the pod may use what is here, who is
//! asked, and what is reported. Source: `pkg/kubelet/images/image_manager.go`.

mod config;
pub(crate) mod gc;
mod keyring;
mod providers;
mod puller;
mod reasons;
mod records;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use api::Key;
use async_trait::async_trait;
use base::backoff::Policy;
use base::go_duration::show;
use engine_api::{EngineError, ErrorKind, Image, ImageName, ImageOrigin, RegistryAuth, Resolution};
use futures::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ImageVolumeSource};
use reconcile::{EventType, kinds};
use serde::Deserialize;

pub use config::{CredentialProviderFiles, GarbagePolicy, ImagesConfig, Verification};
pub(crate) use reasons::Missing;

use crate::deps::{Deps, blocking};
use crate::pod::PodView;
use keyring::Keyring;
use providers::{Account, Accounts, Providers};
use puller::{Pulled, Pulls, shared};
use records::{AccountSource, Known, Records, Source, Tracked, untagged};

/// Credentials that a registry is asked with for one image, at most.
const CREDENTIALS_MAX: usize = 16;

/// Pull failures in a row: 10 s, 20 s, … up to 300 s.
pub(crate) const PULL_BACKOFF: Policy =
    Policy { first: Duration::from_secs(10), max: Duration::from_secs(300) };

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

/// The policy for an image; the API server sets a container's, so the default is for volumes, and for old objects.
fn policy<'a>(image: Option<&str>, policy: Option<&'a str>) -> &'a str {
    let image = image.unwrap_or_default();
    let tagged = image.rsplit('/').next().and_then(|last| last.split_once(':'));
    match policy {
        Some(policy) if !policy.is_empty() => policy,
        _ if image.contains('@') => "IfNotPresent",
        _ if tagged.is_none_or(|(_, tag)| tag == "latest") => "Always",
        _ => "IfNotPresent",
    }
}

/// Pulls that are under way, what is known of those before, and programs that know credentials.
pub(crate) struct Puller {
    pulls: Pulls,
    records: Arc<Records>,
    providers: Providers,
    verification: Verification,
}

impl Puller {
    /// Reads what is configured; records lie below the node's directory. Blocks.
    ///
    /// # Errors
    /// If a credential provider is not there, or its configuration says what cannot be.
    pub(crate) fn open(config: &ImagesConfig, node: &Path) -> Result<Self, String> {
        let files = config.credential_providers.as_ref();
        Ok(Self {
            pulls: Pulls::bounded(config.max_parallel_pulls),
            records: Arc::new(Records::new(node)),
            providers: files.map(Providers::load).transpose()?.unwrap_or_default(),
            verification: config.verification.clone(),
        })
    }

    /// Works on the records; what cannot be done is told of and `None`.
    async fn on_records<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Records) -> io::Result<T> + Send + 'static,
    ) -> Option<T> {
        let records = self.records.clone();
        match blocking(move || work(&records)).await {
            Ok(Ok(done)) => Some(done),
            Ok(Err(error)) => {
                tracing::error!(%error, "records of pulled images cannot be read or written");
                None
            }
            Err(error) => {
                tracing::error!(%error, "records of pulled images cannot be worked on");
                None
            }
        }
    }

    /// Forgets the records of images that were not in a list from `listed`.
    pub(super) async fn prune(&self, images: &[Image], listed: Timestamp) {
        let there: BTreeSet<String> = images.iter().map(|image| image.id.clone()).collect();
        let prune =
            move |records: &Records| records.prune(&there.iter().map(String::as_str).collect(), listed);
        self.on_records(prune).await;
    }
}

/// Finishes what the node before this one noted of pulls that it did not see the end of, and lets go of what it held for pods
/// that nothing is left of.
pub(crate) async fn recover(deps: &Deps) {
    let held = deps.images.held().await.unwrap_or_else(|error| {
        tracing::warn!(%error, "which images pods have as volumes is not known: none is released");
        Default::default()
    });
    for (holder, _) in held {
        if !deps.directories(&holder).run().exists()
            && let Err(error) = deps.images.release(&holder).await
        {
            tracing::warn!(pod = holder, %error, "an image that a pod had as a volume is not released");
        }
    }
    settle(deps, Duration::ZERO).await;
}

/// Brings notes of pulls to an end that nobody saw the end of, and that are so old: what is here was pulled by the node.
async fn settle(deps: &Deps, age: Duration) {
    let intents = deps.puller.on_records(move |records| records.intents(age)).await.unwrap_or_default();
    for image in intents {
        // However long it takes, who pulls tells the end; and nobody begins meanwhile.
        let Some(_turn) = deps.puller.pulls.free_turn(&image) else { continue };
        let now = deps.now();
        match deps.images.resolve(&image).await {
            Ok(found) => {
                let recovered = move |records: &Records| records.recovered(&image, &found.image.id, now);
                deps.puller.on_records(recovered).await;
            }
            Err(error) if error.kind == ErrorKind::NotFound => {
                deps.puller.on_records(move |records| records.failed(&image)).await;
            }
            Err(error) => tracing::warn!(image, %error, "nobody knows whether an image was pulled"),
        }
    }
}

/// An image that somebody asks for.
struct Wanted<'a> {
    asking: &'a Asking<'a>,
    /// As it is written.
    image: &'a str,
    name: ImageName,
}

/// Who asks for an image, and how it is told of it.
struct Asking<'a> {
    deps: &'a Deps,
    pod: &'a PodView,
    container: Option<&'a str>,
}

impl Asking<'_> {
    fn normal(&self, reason: &str, message: String) {
        self.deps.event(self.pod, self.container, EventType::Normal, reason, message);
    }

    fn warning(&self, reason: &str, message: String) {
        self.deps.event(self.pod, self.container, EventType::Warning, reason, message);
    }

    /// Tells that there is no image, as upstream does: with the event that it has for that, and with the reason.
    fn told(&self, event: &str, missing: Missing) -> Missing {
        self.warning(event, missing.message.clone());
        self.warning("Failed", format!("Error: {}", missing.reason));
        missing
    }
}

#[async_trait]
impl Accounts for Asking<'_> {
    async fn account(&self) -> Result<Option<Account>, String> {
        let name = self.pod.spec.service_account_name.clone().filter(|name| !name.is_empty());
        let Some(name) = name else { return Ok(None) };
        let key = Key::new(self.pod.metadata.namespace.clone(), name.clone());
        let object = self.deps.client.get(&kinds::SERVICE_ACCOUNTS.gvr(), &key).await;
        let object = object.map_err(|status| status.to_string())?;
        let meta = object.meta();
        let (uid, namespace) = (meta.uid.clone(), self.pod.metadata.namespace.clone());
        let view: AccountView = object.decode().map_err(|_| "the ServiceAccount is not readable")?;
        let source = AccountSource { uid, namespace, name };
        Ok(Some(Account { source, annotations: view.metadata.annotations }))
    }

    async fn token(&self, audience: &str) -> Result<String, String> {
        crate::tokens::once(self.deps, self.pod, audience).await.map_err(|status| status.to_string())
    }
}

/// The part of a ServiceAccount that is read.
#[derive(Deserialize)]
struct AccountView {
    metadata: AccountMetadata,
}

#[derive(Deserialize)]
struct AccountMetadata {
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// Makes the image of a container available; gives its id. Records the events of the rule that applied. From then on it is
/// in use, and stays where the disk is full.
pub(crate) async fn ensure(deps: &Deps, pod: &PodView, container: &Container) -> Result<String, Missing> {
    let asking = Asking { deps, pod, container: Some(&container.name) };
    let policy = policy(container.image.as_deref(), container.image_pull_policy.as_deref());
    keep(&asking, container.image.as_deref().unwrap_or_default(), policy).await
}

/// As [`ensure`], for a volume that shows an image's files.
pub(crate) async fn ensure_for_volume(
    deps: &Deps,
    pod: &PodView,
    source: &ImageVolumeSource,
) -> Result<String, Missing> {
    let asking = Asking { deps, pod, container: None };
    let policy = policy(source.reference.as_deref(), source.pull_policy.as_deref());
    keep(&asking, source.reference.as_deref().unwrap_or_default(), policy).await
}

async fn keep(asking: &Asking<'_>, image: &str, policy: &str) -> Result<String, Missing> {
    let deps = asking.deps;
    let removed = deps.garbage.removed();
    let id = make_available(asking, image, policy).await?;
    let _held = deps.garbage.hold().await;
    deps.garbage.is_used(&id, deps.now());
    // One that went between the last look and now is asked for again.
    if removed != deps.garbage.removed() && resolve(deps, &id).await?.is_none() {
        let message = format!("image {id} was removed because the disk is full; it is pulled again");
        return Err(Missing { reason: "ErrImagePull", message, retry: true });
    }
    Ok(id)
}

async fn make_available(asking: &Asking<'_>, image: &str, policy: &str) -> Result<String, Missing> {
    let deps = asking.deps;
    let name = deps.images.name(image);
    let refused = |error: EngineError| asking.told("InspectFailed", reasons::invalid_name(image, &error));
    let wanted = Wanted { asking, image, name: name.map_err(refused)? };
    let found = resolve(deps, image).await.map_err(|missing| asking.told("InspectFailed", missing))?;
    let origin = found.as_ref().map(|found| found.origin);
    let rule = rule(policy, origin, wanted.name.digest.is_some());
    if let (Rule::Present | Rule::Local, Some(found)) = (rule, found)
        && may_use(&wanted, &found.image.id).await
    {
        asking.normal("Pulled", present(image, rule));
        return Ok(found.image.id);
    }
    // What is here and not for this pod is as good as absent.
    if rule == Rule::Never || policy == "Never" {
        return Err(asking.told("ErrImageNeverPull", reasons::never(image)));
    }
    pull(&wanted).await
}

fn present(image: &str, rule: Rule) -> String {
    let text =
        format!("Container image \"{image}\" already present on machine and can be accessed by the pod");
    match rule {
        Rule::Local => format!(
            "{text} (built or loaded here: imagePullPolicy Always takes its newest local version, no registry is asked)"
        ),
        _ => text,
    }
}

async fn resolve(deps: &Deps, image: &str) -> Result<Option<Resolution>, Missing> {
    match deps.images.resolve(image).await {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(reasons::not_inspected(image, &error)),
    }
}

/// Whether a pod may use an image that is here without showing a registry its credentials.
/// Source: `MustAttemptImagePull` in `pkg/kubelet/images/pullmanager`.
async fn may_use(wanted: &Wanted<'_>, id: &str) -> bool {
    let deps = wanted.asking.deps;
    let puller = &deps.puller;
    let (image, of) = (wanted.image.to_owned(), id.to_owned());
    let Some(known) = puller.on_records(move |records| records.known(&image, &of)).await else {
        return false;
    };
    let repository = wanted.name.path();
    let names = [repository.as_str(), untagged(wanted.image)];
    if known == Known::Open || !puller.verification.is_needed(names, known != Known::Preloaded) {
        return true;
    }
    if known == Known::Preloaded {
        return false;
    }
    let sources: Vec<Source> =
        credentials(deps, wanted).await.into_iter().map(|tracked| tracked.source).collect();
    let (image, of, now) = (wanted.image.to_owned(), id.to_owned(), deps.now());
    let admits = move |records: &Records| records.admits(&image, &of, &sources, now);
    puller.on_records(admits).await.unwrap_or(false)
}

async fn pull(wanted: &Wanted<'_>) -> Result<String, Missing> {
    let Wanted { asking, image, .. } = *wanted;
    let deps = asking.deps;
    asking.normal("Pulling", format!("Pulling image \"{image}\""));
    let asked = deps.now();
    let mut turn = deps.puller.pulls.turn(image).await;
    let place = deps.puller.pulls.place().await;
    let began = deps.now();
    let others = match shared(turn.as_ref(), asked) {
        Some(found) if may_use(wanted, &found.image.id).await => Some(found),
        _ => None,
    };
    let pulled = match others {
        Some(found) => Ok(found),
        None => pull_and_note(deps, wanted).await,
    };
    if let Ok(what) = &pulled {
        *turn = Some(Pulled { began, what: what.clone() });
    }
    drop((place, turn));
    match pulled {
        Ok(resolution) => {
            let since =
                |from: Timestamp| Duration::try_from(deps.now().duration_since(from)).unwrap_or_default();
            deps.figures.pulled(resolution.image.size_bytes, since(began));
            // To the millisecond, as upstream's.
            let [took, waited] = [began, asked].map(|from| {
                let millis = u64::try_from(since(from).as_millis()).unwrap_or(u64::MAX);
                show(Duration::from_millis(millis))
            });
            let message = format!(
                "Successfully pulled image \"{image}\" in {took} ({waited} including waiting). Image size: {} bytes.",
                resolution.image.size_bytes
            );
            asking.normal("Pulled", message);
            Ok(resolution.image.id)
        }
        Err(error) => {
            let missing = reasons::not_pulled(image, &error);
            asking.warning("Failed", format!("Failed to pull image \"{image}\": {error}"));
            asking.warning("Failed", format!("Error: {}", missing.reason));
            Err(missing)
        }
    }
}

/// Pulls, and notes before and after whose credentials that took. A pull that is given up in between stays noted: the store
/// may still finish it.
async fn pull_and_note(deps: &Deps, wanted: &Wanted<'_>) -> Result<Resolution, EngineError> {
    let image = wanted.image.to_owned();
    let noted = deps.puller.on_records(move |records| records.intend(&image)).await;
    let failed = || EngineError::new(ErrorKind::Internal, "Failed to record image pull intent");
    let before = noted.ok_or_else(failed)?;
    let pulled = pull_and_resolve(deps, wanted).await;
    let (image, now) = (wanted.image.to_owned(), deps.now());
    match &pulled {
        Ok((found, source)) => {
            let (id, source) = (found.image.id.clone(), source.clone());
            deps.puller.on_records(move |records| records.pulled(&image, &id, &source, now)).await;
        }
        Err(_) if before => {}
        Err(_) => {
            deps.puller.on_records(move |records| records.failed(&image)).await;
        }
    }
    pulled.map(|(found, _)| found)
}

/// Pulls with what the pod has for the image, one after the other until the registry lets one in; without any, as anybody
/// may. Says with whose. Source: `PullImage` in `pkg/kubelet/kuberuntime/kuberuntime_image.go`.
async fn pull_and_resolve(deps: &Deps, wanted: &Wanted<'_>) -> Result<(Resolution, Source), EngineError> {
    let found = credentials(deps, wanted).await;
    let mut tries: Vec<Option<Tracked>> = found.into_iter().take(CREDENTIALS_MAX).map(Some).collect();
    if tries.is_empty() {
        tries.push(None);
    }
    let mut refused = EngineError::new(ErrorKind::Internal, "nobody was asked");
    for tracked in tries {
        let (auth, source) = tracked.map_or((None, Source::Node), |one| (Some(one.auth), one.source));
        match pull_as(deps, wanted.image, auth).await {
            // Registries say either of who may not see an image.
            Err(error) if matches!(error.kind, ErrorKind::Denied | ErrorKind::NotFound) => refused = error,
            other => return other.map(|found| (found, source)),
        }
    }
    Err(refused)
}

async fn pull_as(deps: &Deps, image: &str, auth: Option<RegistryAuth>) -> Result<Resolution, EngineError> {
    let mut progress = deps.images.pull(image, auth).await?;
    while let Some(step) = progress.next().await {
        step?;
    }
    deps.images.resolve(image).await
}

/// What the pod has for an image: of its `imagePullSecrets` (the ServiceAccount's are copied into the pod at admission),
/// and what the node's programs know. Secrets that cannot be read are told of: without them an image may seem not to be
/// there.
async fn credentials(deps: &Deps, wanted: &Wanted<'_>) -> Vec<Tracked> {
    let (mut secrets, mut failed) = (Keyring::default(), Vec::new());
    let pod = wanted.asking.pod;
    for reference in pod.spec.image_pull_secrets.iter().flatten().filter(|one| !one.name.is_empty()) {
        if let Err(why) = add_secret(deps, pod, &reference.name, &mut secrets).await {
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
    let repository = wanted.name.path();
    let mut programs = Keyring::default();
    for (place, tracked) in deps.puller.providers.credentials(&repository, wanted.asking, deps.now()).await {
        programs.insert(&place, tracked);
    }
    let mut found = secrets.lookup(&repository);
    found.extend(programs.lookup(&repository));
    found
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
        let with = |image: &str| policy(Some(image), None);
        assert_eq!(with("x"), "Always");
        assert_eq!(with("localhost:5000/x"), "Always");
        assert_eq!(with("x:latest"), "Always");
        assert_eq!(with("x:1"), "IfNotPresent");
        assert_eq!(with("x@sha256:00"), "IfNotPresent");
    }
}
