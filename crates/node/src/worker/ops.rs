//! The steps of a pod worker that take time: each a future that the worker polls beside everything else, each with an
//! outcome that the worker absorbs.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use base::BoxError;
use base::backoff::Policy;
use engine_api::{Device, EngineError, ErrorKind, Mount};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Container;
use reconcile::EventType;
use tokio_util::sync::CancellationToken;

use crate::cpus;
use crate::deps::{Deps, blocking};
use crate::env_files::{self, EnvFiles};
use crate::groups;
use crate::hooks;
use crate::images;
use crate::local_path;
use crate::plugins::{devices, dra};
use crate::pod::dns::{ClusterFacts, Resolver, hosts_file, resolver};
use crate::pod::env::{Sources, environment};
use crate::pod::non_root;
use crate::pod::plan::latest;
use crate::pod::recursion;
use crate::pod::security::check_users;
use crate::pod::spec::{Run, container_spec, sandbox_spec};
use crate::pod::{PodView, SandboxRecord};
use crate::resize::Allocation;
use crate::runtime_class;
use crate::sources::{
    env_references, gather, gather_claims, node_labels, service_links, token_projections, volume_references,
};
use crate::tokens::Tokens;
use crate::volumes::mounts::{container_devices, container_mounts, write_etc};
use crate::volumes::payload::Objects as _;
use crate::volumes::set_up::{Setup, set_up};
use crate::volumes::{PodDirectories, VolumeError};

/// Steps of a removal that fail.
pub(crate) const REMOVE_BACKOFF: Policy =
    Policy { first: Duration::from_millis(200), max: Duration::from_secs(30) };

/// What a step came to.
pub(crate) enum Outcome {
    Sandbox(Result<Vec<IpAddr>, NoSandbox>),
    Volumes {
        tokens: Tokens,
        refresh: bool,
        result: Result<(), NoVolume>,
    },
    Image {
        container: String,
        result: Result<String, images::Missing>,
    },
    Started {
        container: String,
        result: Result<(), StartError>,
    },
    Killed {
        id: String,
    },
    Removed {
        id: String,
    },
    Finished,
    /// What a pod is granted was noted.
    Granted {
        granted: Allocation,
        generation: i64,
        saved: std::io::Result<()>,
    },
    /// The groups of a pod that is resized were set.
    Actuated(Result<engine_api::Resources, String>),
    Written(Result<(), api::Status>),
    /// The worker was told to stop before the step was done.
    Cancelled,
}

/// Why there is no sandbox: the event's reason and message.
pub(crate) struct NoSandbox {
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

/// Why a volume cannot be had: the event's reason and message.
pub(crate) struct NoVolume {
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

impl From<String> for NoVolume {
    fn from(message: String) -> Self {
        Self { reason: "FailedMount", message }
    }
}

impl From<VolumeError> for NoVolume {
    fn from(error: VolumeError) -> Self {
        Self { reason: error.reason(), message: error.to_string() }
    }
}

/// Why a container did not start.
pub(crate) struct StartError {
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

impl StartError {
    fn config(message: impl ToString) -> Self {
        Self { reason: "CreateContainerConfigError", message: message.to_string() }
    }

    fn create(message: impl ToString) -> Self {
        Self { reason: "CreateContainerError", message: message.to_string() }
    }
}

/// Makes the sandbox, or takes up the one that is there, and connects it. `dead`: sandboxes of the pod that have ended.
pub(crate) async fn sandbox(
    deps: Arc<Deps>,
    pod: Arc<PodView>,
    attempt: u32,
    current: Option<SandboxRecord>,
    dead: Vec<String>,
    cancel: CancellationToken,
) -> Outcome {
    if current.is_none() {
        // A driver may let it wait; the pod's end does not.
        let prepared = tokio::select! {
            biased;
            () = cancel.cancelled() => return Outcome::Cancelled,
            prepared = dra::prepare(&deps, &pod) => prepared,
        };
        if let Err(message) = prepared {
            return Outcome::Sandbox(Err(NoSandbox { reason: "FailedPrepareDynamicResources", message }));
        }
    }
    let made = make_sandbox(&deps, &pod, attempt, current, &dead).await;
    Outcome::Sandbox(made.map_err(|error| NoSandbox {
        reason: "FailedCreatePodSandBox",
        message: format!("Failed to create pod sandbox: {error}"),
    }))
}

async fn make_sandbox(
    deps: &Deps,
    pod: &PodView,
    attempt: u32,
    current: Option<SandboxRecord>,
    dead: &[String],
) -> Result<Vec<IpAddr>, String> {
    for id in dead {
        release(deps, id).await?;
    }
    let sandbox = match current {
        Some(sandbox) => sandbox,
        None => {
            let handler = runtime_class::handler(deps, pod).await?;
            check_users(&pod.spec, &deps.runtime.handlers(), &handler)?;
            let spec = sandbox_spec(pod, attempt, &deps.facts, &deps.dns.domain(), handler)?;
            let _step = deps.traces.step(pod.uid(), "node: sandbox", "");
            let status = deps.runtime.create_sandbox(spec).await.map_err(|error| error.to_string())?;
            deps.state.put_sandbox(&status);
            SandboxRecord::from_status(&status).ok_or("the engine lost the sandbox's labels")?
        }
    };
    groups::enter(deps, pod).await;
    let addresses =
        if sandbox.host_network { deps.addresses() } else { connect(deps, pod, &sandbox).await? };
    write_etc_files(deps, pod, &addresses).await?;
    Ok(addresses)
}

/// Gives the sandbox its interface, and the host's ports that its pod asks for.
async fn connect(deps: &Deps, pod: &PodView, sandbox: &SandboxRecord) -> Result<Vec<IpAddr>, String> {
    let failed = |error: BoxError| format!("failed to set up pod network: {}", base::error::chain(&*error));
    let _step = deps.traces.step(pod.uid(), "node: network", "");
    let ports = pod.host_ports()?;
    let addresses = deps.networks.attach(&sandbox.id, &sandbox.netns_path).await.map_err(failed)?;
    if !ports.is_empty() {
        deps.networks.publish(&sandbox.id, &ports).await.map_err(failed)?;
    }
    Ok(addresses)
}

/// Repeats a step of a removal, with back-off, until it succeeds; `failed` is told of each failure. Answers whether it
/// has succeeded: not if `cancel` came first.
pub(crate) async fn insist<F: Future<Output = Result<(), String>>>(
    deps: &Deps,
    cancel: &CancellationToken,
    mut step: impl FnMut() -> F,
    failed: impl Fn(&str),
) -> bool {
    let mut failures = 0;
    while let Err(error) = step().await {
        failed(&error);
        failures += 1;
        let again = deps.now().saturating_add(REMOVE_BACKOFF.delay(failures)).unwrap_or(Timestamp::MAX);
        tokio::select! {
            () = deps.clock.sleep_until(again) => {}
            () = cancel.cancelled() => return false,
        }
    }
    true
}

/// Ends what is left of a sandbox and takes its network back.
pub(crate) async fn release(deps: &Deps, sandbox_id: &str) -> Result<(), String> {
    done_or_gone(deps.runtime.stop_sandbox(sandbox_id).await)
        .map_err(|error| format!("failed to stop sandbox {sandbox_id}: {error}"))?;
    deps.state.sandbox_ended(sandbox_id);
    deps.networks.detach(sandbox_id).await.map_err(|error| {
        format!("failed to release the network of sandbox {sandbox_id}: {}", base::error::chain(&*error))
    })?;
    for id in deps.state.containers_of(sandbox_id) {
        deps.state.refresh_container(&*deps.runtime, &id).await;
    }
    Ok(())
}

/// A removal of what is gone already has succeeded.
pub(crate) fn done_or_gone(result: Result<(), EngineError>) -> Result<(), EngineError> {
    match result {
        Err(error) if error.kind != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// `resolv.conf`, `hosts` and `hostname` of the pod.
async fn write_etc_files(deps: &Deps, pod: &PodView, addresses: &[IpAddr]) -> Result<(), String> {
    let _step = deps.traces.step(pod.uid(), "node: files of /etc", "");
    let directories = deps.directories(pod.uid());
    let cluster = ClusterFacts { nameservers: deps.dns.nameservers(), domain: deps.dns.domain() };
    let (resolv_conf, pod, addresses) = (deps.config.resolv_conf.clone(), pod.clone(), addresses.to_vec());
    let hostname = match pod.host_network() {
        true => deps.config.hostname.clone(),
        false => pod.kernel_hostname(&cluster.domain)?,
    };
    blocking(move || {
        let host = std::fs::read_to_string(resolv_conf).unwrap_or_default();
        let own_hosts = pod.host_network().then(|| std::fs::read_to_string("/etc/hosts").unwrap_or_default());
        let hosts = hosts_file(&pod, &cluster.domain, &addresses, own_hosts.as_deref());
        let resolver = resolver(&pod, &cluster, &Resolver::parse(&host)).render();
        write_etc(&directories, "resolv.conf", &resolver)?;
        write_etc(&directories, "hosts", &hosts)?;
        write_etc(&directories, "hostname", &format!("{hostname}\n"))
    })
    .await
    .map_err(|error| error.to_string())?
    .map_err(|error: std::io::Error| format!("failed to write the pod's /etc files: {error}"))
}

/// Makes and fills the pod's volumes, or brings them up to date. The pod's end does not wait for volumes that do not
/// answer.
pub(crate) async fn volumes(
    deps: Arc<Deps>,
    pod: Arc<PodView>,
    mut tokens: Tokens,
    refresh: bool,
    cancel: CancellationToken,
) -> Outcome {
    // A refresh is no part of the start.
    let _step = (!refresh).then(|| deps.traces.step(pod.uid(), "node: volumes", ""));
    let result = tokio::select! {
        // Whoever calls it off may be about to take away what it makes.
        biased;
        () = cancel.cancelled() => return Outcome::Cancelled,
        result = fill_volumes(&deps, &pod, &mut tokens) => result,
    };
    Outcome::Volumes { tokens, refresh, result }
}

async fn fill_volumes(deps: &Arc<Deps>, pod: &Arc<PodView>, tokens: &mut Tokens) -> Result<(), NoVolume> {
    let mut gathered = gather(deps, &pod.metadata.namespace, &volume_references(pod))
        .await
        .map_err(|status| status.to_string())?;
    let projections = token_projections(pod);
    gathered.tokens = tokens
        .ensure(deps, pod, &projections)
        .await
        .map_err(|status| format!("failed to fetch token: {status}"))?;
    gathered.certificates = tokens.certificates.ensure(deps, pod).await?;
    let claims = gather_claims(deps, pod).await.map_err(|status| status.to_string())?;
    tokens.republish(claims.republishes(), deps.now());
    let setup = Setup {
        pod: pod.clone(),
        directories: deps.directories(pod.uid()),
        fields: deps.field_context(&[]),
        objects: Box::new(gathered),
        claims,
        node: node_labels(deps),
        around: deps.clone(),
        local_paths: local_path::root(&deps.config),
        now: deps.now(),
    };
    let images = crate::volumes::image::mount_all(deps, pod);
    let (done, mounted) = tokio::join!(set_up(Arc::new(setup), &deps.threads), images);
    Ok(done.and(mounted)?)
}

/// Makes a container's image available.
pub(crate) async fn image(
    deps: Arc<Deps>,
    pod: Arc<PodView>,
    container: String,
    cancel: CancellationToken,
) -> Outcome {
    let Some((_, spec)) = pod.container(&container) else { return Outcome::Cancelled };
    let _step = deps.traces.step(pod.uid(), "node: image", &container);
    tokio::select! {
        result = images::ensure(&deps, &pod, spec) => Outcome::Image { container, result },
        () = cancel.cancelled() => Outcome::Cancelled,
    }
}

/// What a start needs to know.
pub(crate) struct Start {
    pub(crate) pod: Arc<PodView>,
    pub(crate) container: String,
    pub(crate) attempt: u32,
    pub(crate) failures: u32,
    pub(crate) epoch: u32,
    pub(crate) sandbox_id: String,
    pub(crate) image_id: String,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) cancel: CancellationToken,
}

/// Makes and starts a container and runs its `postStart` hook.
pub(crate) async fn start(deps: Arc<Deps>, start: Start) -> Outcome {
    let result = make_and_start(&deps, &start).await;
    if let Err(error) = &result {
        deps.warning(&start.pod, &start.container, "Failed", format!("Error: {}", error.message));
    }
    Outcome::Started { container: start.container, result }
}

async fn make_and_start(deps: &Arc<Deps>, start: &Start) -> Result<(), StartError> {
    let pod = &start.pod;
    let (_, container) = pod
        .container(&start.container)
        .ok_or_else(|| StartError::config("the pod has no such container any more"))?;
    let step = deps.traces.step(pod.uid(), "node: environment and mounts", &start.container);
    let spec = tokio::select! {
        spec = prepare(deps, start) => spec?,
        () = start.cancel.cancelled() => return Ok(()),
    };
    drop(step);
    let step = deps.traces.step(pod.uid(), "node: make the container", &start.container);
    let id = spec.id.clone();
    let made = deps.runtime.create_container(spec).await.map_err(StartError::create)?;
    deps.state.put_container(&made);
    drop(step);
    let step = deps.traces.step(pod.uid(), "node: start the container", &start.container);
    deps.normal(pod, &start.container, "Created", "Container created");
    match deps.runtime.start_container(&id).await {
        Ok(status) => {
            deps.state.put_container(&status);
            cpus::started(deps, pod.uid(), &id);
        }
        Err(error) => {
            deps.state.refresh_container(&*deps.runtime, &id).await;
            return Err(StartError { reason: "RunContainerError", message: error.to_string() });
        }
    }
    drop(step);
    deps.normal(pod, &start.container, "Started", "Container started");
    let hook = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.post_start.as_ref());
    if let Some(hook) = hook {
        let _step = deps.traces.step(pod.uid(), "node: postStart hook", &start.container);
        let done = tokio::select! {
            done = hooks::run(&*deps.runtime, &*deps.clock, container, &id, start.addresses.first().copied(), hook) => done,
            () = start.cancel.cancelled() => return Ok(()),
        };
        if let Ok(Some(told)) = &done {
            deps.warning(pod, &start.container, hooks::HTTP_FALLBACK, told.clone());
        }
        if let Err(error) = done {
            let message = format!("PostStartHook failed: {error}");
            deps.warning(pod, &start.container, "FailedPostStartHook", message.clone());
            let grace = Duration::from_secs(u64::try_from(pod.spec_grace_seconds()).unwrap_or(0));
            // Its failure is reported; what is left to do is to end the container, unless the pod's own end does that.
            tokio::select! {
                _ = deps.runtime.stop_container(&id, grace) => {}
                () = start.cancel.cancelled() => {}
            }
            deps.state.refresh_container(&*deps.runtime, &id).await;
            return Err(StartError { reason: "PostStartHookError", message });
        }
    }
    Ok(())
}

/// Environment, mounts and specification of a start.
async fn prepare(deps: &Arc<Deps>, start: &Start) -> Result<engine_api::ContainerSpec, StartError> {
    let (pod, name) = (start.pod.clone(), start.container.clone());
    let missing = || StartError::config("the pod has no such container any more");
    let (_, container) = pod.container(&name).ok_or_else(missing)?;
    check_user(deps, &pod, container, &start.image_id).await?;
    let gathered = gather(deps, &pod.metadata.namespace, &env_references(container))
        .await
        .map_err(StartError::config)?;
    let fields = deps.field_context(&start.addresses);
    let links = service_links(deps, &pod);
    let directories = deps.directories(pod.uid());
    let files = files_of(&pod, &directories, &name).await?;
    let env = {
        let config_map = |name: &str| gathered.text(name);
        let secret = |name: &str| gathered.secret(name);
        let sources = Sources { config_map: &config_map, secret: &secret, files: &files };
        environment(&pod, container, &fields, &links, &sources).map_err(StartError::config)?
    };
    let message_file = directories.termination_message(&name, start.attempt);
    let (mut mounts, mut devices) = mounts_of(deps, &pod, &directories, &name, start.attempt, &env).await?;
    recursion::settle(container, &mut mounts, recursive(deps, start)).map_err(StartError::config)?;
    let extras = devices::extras(deps, pod.uid(), &name).await.map_err(StartError::config)?;
    let env = with_others(env, extras.env);
    mounts.extend(extras.mounts);
    devices.extend(extras.devices);
    let pid_of = target(deps, &pod, &name).map_err(StartError::config)?;
    let claimed = dra::cdi_devices(deps, &pod, container).map_err(StartError::config)?;
    let run = Run {
        pod: &pod,
        container,
        attempt: start.attempt,
        failures: start.failures,
        epoch: start.epoch,
        sandbox_id: &start.sandbox_id,
        image_id: &start.image_id,
        env,
        mounts,
        devices,
        cdi_devices: extras.cdi.into_iter().chain(claimed).collect(),
        message_file,
        address: start.addresses.first().copied(),
        pid_of,
    };
    let mut spec = container_spec(run, &deps.facts).map_err(StartError::config)?;
    spec.resources.cpuset_cpus = deps.cpus.allowed(pod.uid(), &name).map(|cpus| cpus.to_string());
    Ok(spec)
}

/// A container's environment with what plugins add to it: its own variables are what it says. Pure. Source:
/// `GenerateRunContainerOptions`, where the pod's come last.
fn with_others(mut own: Vec<String>, mut others: Vec<String>) -> Vec<String> {
    let name = |line: &str| line.split_once('=').map_or(line, |(name, _)| name).to_owned();
    let names: BTreeSet<String> = own.iter().map(|line| name(line)).collect();
    others.retain(|line| !names.contains(&name(line)));
    own.append(&mut others);
    own
}

/// Whether the runtime of the pod's sandbox makes mounts read-only with all that is mounted below them.
fn recursive(deps: &Deps, start: &Start) -> bool {
    let sandboxes = deps.state.pod(start.pod.uid()).sandboxes;
    let sandbox = sandboxes.iter().find(|sandbox| sandbox.id == start.sandbox_id);
    sandbox.is_some_and(|sandbox| recursion::supported(&deps.runtime.handlers(), &sandbox.runtime_handler))
}

/// Refuses a container that must not be root's and might be.
async fn check_user(
    deps: &Deps,
    pod: &PodView,
    container: &Container,
    image_id: &str,
) -> Result<(), StartError> {
    let image_user = match non_root::asks_for_the_images_user(pod, container) {
        true => deps.images.resolve(image_id).await.map_err(StartError::config)?.image.config.user,
        false => String::new(),
    };
    non_root::verify(pod, container, &image_user).map_err(StartError::config)
}

/// The id of the container whose processes an ephemeral one is to see; none where all containers see each other.
fn target(deps: &Deps, pod: &PodView, name: &str) -> Result<Option<String>, String> {
    let Some(ephemeral) = pod.ephemeral.iter().find(|own| own.container.name == name) else {
        return Ok(None);
    };
    let shared = pod.spec.share_process_namespace == Some(true) || pod.spec.host_pid == Some(true);
    let Some(wanted) = ephemeral.target.as_deref().filter(|_| !shared) else { return Ok(None) };
    let runtime = deps.state.pod(pod.uid());
    let found = latest(&runtime.containers, wanted).map(|record| record.id.clone());
    found.map(Some).ok_or_else(|| format!("unable to find target container {wanted}"))
}

/// The files that the container's environment is taken from.
async fn files_of(
    pod: &Arc<PodView>,
    directories: &PodDirectories,
    name: &str,
) -> Result<EnvFiles, StartError> {
    let needs_files = pod.container(name).is_some_and(|(_, container)| env_files::needed(container));
    if !needs_files {
        return Ok(EnvFiles::new());
    }
    let (pod, directories, name) = (pod.clone(), directories.clone(), name.to_owned());
    let read = blocking(move || {
        let (_, container) = pod.container(&name).ok_or("the pod has no such container any more")?;
        env_files::gather(&pod, container, &directories)
    });
    read.await.map_err(StartError::config)?.map_err(StartError::config)
}

async fn mounts_of(
    deps: &Deps,
    pod: &Arc<PodView>,
    directories: &PodDirectories,
    name: &str,
    attempt: u32,
    env: &[String],
) -> Result<(Vec<Mount>, Vec<Device>), StartError> {
    let (pod, directories, name, env) = (pod.clone(), directories.clone(), name.to_owned(), env.to_vec());
    let work = (pod.uid().to_owned(), format!("container {name}"));
    let made = deps.threads.run(work, move || {
        let (_, container) = pod.container(&name).ok_or("the pod has no such container any more")?;
        let lookup = |wanted: &str| {
            let line = env.iter().find_map(|line| line.split_once('=').filter(|(name, _)| *name == wanted));
            line.map(|(_, value)| value.to_owned())
        };
        let mounts = container_mounts(&pod, &directories, container, attempt, &lookup)?;
        Ok::<_, String>((mounts, container_devices(&directories, container)?))
    });
    made.await.map_err(StartError::config)?.map_err(StartError::config)
}

/// Removes a dead container, however often that takes.
pub(crate) async fn remove_container(deps: Arc<Deps>, id: String, cancel: CancellationToken) -> Outcome {
    let step = || async {
        done_or_gone(deps.runtime.remove_container(&id, true).await).map_err(|error| error.to_string())
    };
    let failed = |error: &str| tracing::warn!(container = id, error, "container not removed, trying again");
    if insist(&deps, &cancel, step, failed).await {
        deps.state.forget_container(&id);
    }
    Outcome::Removed { id }
}

/// Removes a dead sandbox with its containers, however often that takes.
pub(crate) async fn remove_sandbox(deps: Arc<Deps>, id: String, cancel: CancellationToken) -> Outcome {
    let step = || async {
        release(&deps, &id).await?;
        delete_sandbox(&deps, &id).await
    };
    let failed = |error: &str| tracing::warn!(sandbox = id, error, "sandbox not removed, trying again");
    insist(&deps, &cancel, step, failed).await;
    Outcome::Removed { id }
}

/// Has the runtime remove a sandbox that was released.
pub(crate) async fn delete_sandbox(deps: &Deps, id: &str) -> Result<(), String> {
    done_or_gone(deps.runtime.remove_sandbox(id).await)
        .map_err(|error| format!("failed to remove sandbox {id}: {error}"))?;
    deps.state.forget_sandbox(id);
    Ok(())
}

/// Records that a pod could not be ended; it is tried again.
pub(crate) fn failed_kill(deps: &Deps, pod: &PodView, error: &str) {
    tracing::warn!(pod = %pod.key(), error, "pod not ended, trying again");
    deps.event(pod, None, EventType::Warning, "FailedKillPod", format!("error killing pod: {error}"));
}

/// Records that a volume could not be had.
pub(crate) fn no_volume(deps: &Deps, pod: &PodView, error: NoVolume) {
    deps.event(pod, None, EventType::Warning, error.reason, error.message);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plugins_do_not_change_what_a_container_says() {
        let lines = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>();
        let env = with_others(lines(&["A=own", "B="]), lines(&["A=theirs", "B=theirs", "C=a=b"]));
        assert_eq!(env, ["A=own", "B=", "C=a=b"]);
    }
}
