//! Devices that plugins have for containers: counted in the Node, given to pods when they come, kept while they live.
//! Source: `pkg/kubelet/cm/devicemanager`, KEP-3573; the plugins' API `v1beta1`.

mod book;
mod checkpoint;
mod report;
mod server;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use engine_api::{Device, Mount, MountPropagation, MountSource};
use k8s_openapi::api::core::v1::Container;
use parking_lot::Mutex;
use protos::devices::v1beta1::device_plugin_client::DevicePluginClient;
use protos::devices::v1beta1::{
    AllocateRequest, ContainerAllocateRequest, ContainerAllocateResponse,
    ContainerPreferredAllocationRequest, DevicePluginOptions, PreStartContainerRequest,
    PreferredAllocationRequest,
};
use tokio::net::UnixListener;
use tokio::sync::Notify;
use tonic::transport::Channel;

use book::{Answer, Bind, Book, Choice, Given, Node, Wish, choose};
use checkpoint::Checkpoint;
pub(crate) use report::keep as keep_report;
pub(crate) use server::keep as keep_server;

use super::socket::{ANSWER_MAX, ask};
use crate::admission::is_extended;
use crate::deps::{Deps, blocking};
use crate::pod::{ContainerKind, PodView, quantity};

/// Where plugins have their sockets, and the node its own.
const DIRECTORY: &str = "device-plugins";
const CHECKPOINT: &str = "skiff_checkpoint";
/// Source: upstream's `KubeletPreStartContainerRPCTimeoutInSecs`; of `Allocate` upstream waits for ever.
const CALL_MAX: Duration = Duration::from_secs(30);
/// More devices no pod asks for.
const WISHES_MAX: usize = 10_000;

/// The devices of the node.
#[derive(Default)]
pub(crate) struct Devices {
    book: Mutex<Book>,
    plugins: Mutex<HashMap<String, Plugin>>,
    /// The numbers have changed.
    due: Notify,
    /// Held by who writes the checkpoint, until it is written.
    writing: Arc<tokio::sync::Mutex<()>>,
}

/// A plugin that is there.
#[derive(Clone)]
struct Plugin {
    client: DevicePluginClient<Channel>,
    options: DevicePluginOptions,
    /// Which registration it is of.
    generation: u64,
}

/// What a container gets with its devices.
#[derive(Default)]
pub(crate) struct Extras {
    pub(crate) env: Vec<String>,
    pub(crate) mounts: Vec<Mount>,
    pub(crate) devices: Vec<Device>,
    /// Names of devices that the runtime knows more of.
    pub(crate) cdi: Vec<String>,
}

impl Devices {
    /// How the devices of a container are, by resource.
    pub(crate) fn health(&self, uid: &str, container: &str) -> BTreeMap<String, Vec<(String, &'static str)>> {
        self.book.lock().health(uid, container)
    }

    /// The devices of a container, each with its resource.
    pub(crate) fn of_container(&self, uid: &str, container: &str) -> Vec<(String, String)> {
        let of = self.health(uid, container).into_iter();
        of.flat_map(|(name, devices)| devices.into_iter().map(move |(id, _)| (name.clone(), id))).collect()
    }

    /// Every device that works, with its resource.
    pub(crate) fn healthy(&self) -> Vec<(String, String)> {
        self.book.lock().healthy()
    }
}

fn client(channel: Channel) -> DevicePluginClient<Channel> {
    DevicePluginClient::new(channel).max_decoding_message_size(ANSWER_MAX)
}

fn checkpoint(deps: &Deps) -> PathBuf {
    deps.config.data_dir.join(DIRECTORY).join(CHECKPOINT)
}

/// Makes the socket at which plugins register, and reads what earlier runs of the node have given. One that cannot be read is left aside: its pods keep what they have,
/// and devices may be given twice, which is told.
pub(crate) async fn begin(deps: &Deps) -> Option<UnixListener> {
    let path = checkpoint(deps);
    let read = blocking(move || Checkpoint::read(&path)).await;
    match read {
        Ok(Ok(read)) => {
            let known = |uid: &str| deps.static_pods.has(uid) || deps.caches.pods.by_uid(uid).is_some();
            deps.plugins.devices.book.lock().awaited(read.resources, read.given, known);
        }
        Ok(Err(error)) => tracing::error!(%error, "who has which devices is not known any more"),
        Err(error) => tracing::error!(%error, "who has which devices is not known any more"),
    }
    server::listen(deps).await
}

/// What the containers of a pod ask for, in the order of their starts. Pure.
fn wishes(pod: &PodView, knows: impl Fn(&str) -> bool) -> Vec<Wish> {
    let of = |kind: ContainerKind, container: &Container| {
        let limits = container.resources.as_ref().and_then(|resources| resources.limits.clone());
        let container = container.name.clone();
        let wanted = limits.into_iter().flatten().filter(|(name, _)| is_extended(name) && knows(name));
        let wanted = wanted.map(move |(resource, amount)| Wish {
            container: container.clone(),
            resource,
            count: usize::try_from(quantity::value(&amount)).unwrap_or(0).min(WISHES_MAX),
            passes_on: kind == ContainerKind::Init,
        });
        wanted.filter(|wish| wish.count > 0).collect::<Vec<_>>()
    };
    let mut containers: Vec<_> = pod.containers().collect();
    containers.sort_by_key(|(kind, _)| !matches!(kind, ContainerKind::Init | ContainerKind::Sidecar));
    containers.into_iter().flat_map(|(kind, container)| of(kind, container)).collect()
}

/// Whose devices are not free.
fn is_alive(deps: &Deps, uid: &str) -> bool {
    if deps.static_pods.has(uid) {
        return true;
    }
    let Some(object) = deps.caches.pods.by_uid(uid) else { return false };
    PodView::decode(&object).is_ok_and(|pod| !pod.is_terminal())
}

/// Gives a pod its devices, and notes them. An error is why the node does not take the pod.
pub(crate) async fn allocate(deps: &Deps, pod: &PodView) -> Result<(), String> {
    let devices = &deps.plugins.devices;
    let begun = pod.status.start_time.is_some() || pod.is_terminal() || pod.metadata.is_terminating();
    let wishes = {
        let book = devices.book.lock();
        if begun || book.of_pod(pod.uid()).is_some() {
            Vec::new()
        } else {
            wishes(pod, |name| book.knows(name))
        }
    };
    if wishes.is_empty() {
        return Ok(());
    }
    devices.book.lock().asks(pod.uid());
    let given = give_all(deps, pod.uid(), &wishes).await;
    devices.book.lock().has_all(pod.uid());
    let noted = match given {
        Ok(()) => note(deps).await.map_err(|error| format!("{}: {error}", checkpoint(deps).display())),
        failed => failed,
    };
    if noted.is_err() {
        devices.book.lock().free(pod.uid());
    }
    noted.map_err(|error| format!("Allocate failed due to {error}, which is unexpected"))
}

async fn give_all(deps: &Deps, uid: &str, wishes: &[Wish]) -> Result<(), String> {
    // By resource, what containers that will have ended leave to others.
    let mut over: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for wish in wishes {
        let left = over.entry(&wish.resource).or_default();
        let ids = give(deps, uid, wish, left).await?;
        match wish.passes_on {
            true => left.extend(ids),
            // Those that are taken over go on.
            false => left.retain(|id| !ids.contains(id)),
        }
    }
    Ok(())
}

/// Gives one container its devices of one resource: taken before the plugin is asked, so that nobody else gets them.
async fn give(
    deps: &Deps,
    uid: &str,
    wish: &Wish,
    over: &BTreeSet<String>,
) -> Result<BTreeSet<String>, String> {
    let devices = &deps.plugins.devices;
    let plugin = devices.plugins.lock().get(&wish.resource).cloned();
    let plugin = plugin.ok_or_else(|| format!("cannot allocate unregistered device {}", wish.resource))?;
    let look = |book: &Book| book.choice(uid, wish, over, |other| is_alive(deps, other));
    let choice = look(&devices.book.lock())?;
    let pre_start = plugin.options.pre_start_required;
    let preferred = preferred(&plugin, wish, &choice).await;
    let ids = {
        let mut book = devices.book.lock();
        // Others may have been given some meanwhile.
        let ids = choose(&look(&book)?, wish.count, &preferred);
        book.give(uid, wish, Given { ids: ids.clone(), answer: Answer::default(), pre_start });
        ids
    };
    let request = ContainerAllocateRequest { devices_ids: ids.iter().cloned().collect() };
    let mut client = plugin.client;
    let asked = client.allocate(AllocateRequest { container_requests: vec![request] });
    let answer = ask(CALL_MAX, asked).await?;
    let [answer] = <[_; 1]>::try_from(answer.container_responses)
        .map_err(|_| "the plugin's answer is not for one container".to_owned())?;
    let answer = read(answer)?;
    devices.book.lock().give(uid, wish, Given { ids: ids.clone(), answer, pre_start });
    Ok(ids)
}

/// Which devices the plugin would have. One that has no preference, or does not answer, gets none.
async fn preferred(plugin: &Plugin, wish: &Wish, choice: &Choice) -> Vec<String> {
    if !plugin.options.get_preferred_allocation_available {
        return Vec::new();
    }
    let request = ContainerPreferredAllocationRequest {
        available_device_i_ds: choice.available.iter().cloned().collect(),
        must_include_device_i_ds: choice.must.iter().cloned().collect(),
        allocation_size: i32::try_from(wish.count).unwrap_or(i32::MAX),
    };
    let mut client = plugin.client.clone();
    let asked =
        client.get_preferred_allocation(PreferredAllocationRequest { container_requests: vec![request] });
    match ask(CALL_MAX, asked).await {
        Ok(answer) => {
            answer.container_responses.into_iter().next().map(|of| of.device_i_ds).unwrap_or_default()
        }
        Err(error) => {
            tracing::warn!(
                resource = wish.resource,
                error,
                "a plugin of devices does not say which it prefers"
            );
            Vec::new()
        }
    }
}

/// What a plugin wants, if the node can give it: what it cannot give a container must not miss in silence.
fn read(answer: ContainerAllocateResponse) -> Result<Answer, String> {
    let cdi = answer.cdi_devices.into_iter().map(|device| device.name).collect();
    let mounts = answer.mounts.into_iter().map(|mount| {
        check_paths("a mount", &mount.host_path, &mount.container_path)?;
        Ok(Bind {
            host_path: mount.host_path,
            container_path: mount.container_path,
            read_only: mount.read_only,
        })
    });
    let mounts = mounts.collect::<Result<_, String>>()?;
    let nodes = answer.devices.into_iter().map(|device| {
        check_paths("a device", &device.host_path, &device.container_path)?;
        if device.permissions.chars().any(|access| !"rwm".contains(access)) {
            return Err(format!("the plugin gives device {} with unknown rights", device.host_path));
        }
        Ok(Node {
            host_path: device.host_path,
            container_path: device.container_path,
            permissions: device.permissions,
        })
    });
    let nodes = nodes.collect::<Result<_, String>>()?;
    Ok(Answer { envs: answer.envs.into_iter().collect(), mounts, nodes, cdi })
}

/// Both paths have to be absolute and lead nowhere else.
fn check_paths(what: &str, host: &str, container: &str) -> Result<(), String> {
    let plain = |path: &str| {
        path.starts_with('/')
            && Path::new(path).components().all(|part| part != std::path::Component::ParentDir)
    };
    if plain(host) && plain(container) {
        return Ok(());
    }
    Err(format!("the plugin names {what} by a path that is not absolute, or contains '..'"))
}

async fn note(deps: &Deps) -> Result<(), String> {
    let devices = &deps.plugins.devices;
    let alone = devices.writing.clone().lock_owned().await;
    let now = {
        let book = devices.book.lock();
        Checkpoint::new(book.names(), book.settled())
    };
    let path = checkpoint(deps);
    let write = move || {
        // Who waits for it may go: a write goes on, and the next one comes after it.
        let _alone = alone;
        now.write(&path)
    };
    let written = blocking(write).await.map_err(|error| error.to_string())?;
    written.map_err(|error| error.to_string())
}

/// A pod has left the node: its devices are free.
pub(crate) async fn release(deps: &Deps, uid: &str) {
    let freed = deps.plugins.devices.book.lock().free(uid);
    if freed && let Err(error) = note(deps).await {
        // Whose pod is gone is nobody, whatever is written.
        tracing::warn!(uid, error, "that devices are free is not noted");
    }
}

/// What a container gets with its devices; plugins that asked for it hear of the start before it happens.
pub(crate) async fn extras(deps: &Deps, uid: &str, container: &str) -> Result<Extras, String> {
    let devices = &deps.plugins.devices;
    let of = devices.book.lock().of_pod(uid).and_then(|of| of.get(container).cloned()).unwrap_or_default();
    let mut extras = Extras::default();
    for (resource, given) in of {
        let plugin = devices.plugins.lock().get(&resource).cloned();
        // One that is away cannot be told: nothing starts on devices that are not prepared.
        if given.pre_start || plugin.as_ref().is_some_and(|plugin| plugin.options.pre_start_required) {
            let away = || format!("endpoint not found in cache for a registered resource: {resource}");
            let mut plugin = plugin.ok_or_else(away)?;
            let request = PreStartContainerRequest { devices_ids: given.ids.iter().cloned().collect() };
            let started = ask(CALL_MAX, plugin.client.pre_start_container(request)).await;
            let failed = |error| format!("device plugin PreStartContainer rpc failed with err: {error}");
            started.map_err(failed)?;
        }
        extras.cdi.extend(given.answer.cdi);
        extras.env.extend(given.answer.envs.into_iter().map(|(name, value)| format!("{name}={value}")));
        extras.mounts.extend(given.answer.mounts.into_iter().map(|bind| Mount {
            source: MountSource::Bind(bind.host_path.into()),
            target: bind.container_path.into(),
            read_only: bind.read_only,
            recursive_read_only: false,
            propagation: MountPropagation::Private,
        }));
        extras.devices.extend(given.answer.nodes.into_iter().map(|node| Device {
            host: node.host_path.into(),
            path: node.container_path.into(),
            access: node.permissions,
        }));
    }
    Ok(extras)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::pod::tests::pod;

    #[test]
    fn containers_ask_in_the_order_of_their_starts() {
        let container =
            |name: &str, limits: serde_json::Value| json!({"name": name, "resources": {"limits": limits}});
        let pod = pod(json!({
            "containers": [container("main", json!({"example.com/gpu": "2", "cpu": "1", "other.com/x": "1"}))],
            "initContainers": [container("init", json!({"example.com/gpu": "1"}))]}));
        let found = wishes(&pod, |name| name == "example.com/gpu");
        let wish = |container: &str, count, passes_on| Wish {
            container: container.into(),
            resource: "example.com/gpu".into(),
            count,
            passes_on,
        };
        assert_eq!(found, [wish("init", 1, true), wish("main", 2, false)]);
    }

    #[test]
    fn what_a_container_would_miss_is_refused() {
        use protos::devices::v1beta1 as api;
        let mount =
            |host: &str| api::Mount { host_path: host.into(), container_path: "/x".into(), read_only: true };
        let with = |host: &str| ContainerAllocateResponse { mounts: vec![mount(host)], ..Default::default() };
        assert_eq!(read(with("/usr/lib/x")).unwrap().mounts[0].host_path, "/usr/lib/x");
        for bad in ["", "usr", "/usr/../etc"] {
            assert!(read(with(bad)).is_err(), "{bad}");
        }
        let node = |inside: &str, permissions: &str| {
            let (container_path, permissions) = (inside.to_owned(), permissions.to_owned());
            let node = api::DeviceSpec { host_path: "/dev/x".into(), container_path, permissions };
            read(ContainerAllocateResponse { devices: vec![node], ..Default::default() })
        };
        assert_eq!(node("/dev/y", "rw").unwrap().nodes[0].container_path, "/dev/y");
        assert!(node("dev/y", "rw").unwrap_err().contains("not absolute"));
        assert!(node("/dev/y", "rx").unwrap_err().contains("unknown rights"));
        let named = api::CdiDevice { name: "vendor.com/gpu=0".into() };
        let cdi = ContainerAllocateResponse { cdi_devices: vec![named], ..Default::default() };
        assert_eq!(read(cdi).unwrap().cdi, ["vendor.com/gpu=0"]);
    }
}
