//! The socket at which device plugins register, and the following of what they tell. Source:
//! `devicemanager/plugin/v1beta1/{server,client}.go`.

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base::backoff::Policy;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use jiff::Timestamp;
use protos::devices::v1beta1::registration_server::{Registration, RegistrationServer};
use protos::devices::v1beta1::{Device, DevicePluginOptions, Empty, RegisterRequest};
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use super::{DIRECTORY, Plugin, client, note};
use crate::admission::is_extended;
use crate::deps::{Deps, blocking};
use crate::plugins::socket::connected;

const SOCKET: &str = "kubelet.sock";
const VERSION: &str = "v1beta1";
const PLUGINS_MAX: usize = 128;
const DEVICES_MAX: usize = 10_000;
const ID_MAX: usize = 256;
/// Of a registration.
const REQUEST_MAX: usize = 64 << 10;
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// A plugin that is away may come back. Source: upstream's `endpointStopGracePeriod`.
const GRACE: Duration = Duration::from_secs(300);
const AGAIN: Policy = Policy { first: Duration::from_secs(1), max: Duration::from_secs(60) };

/// A plugin that has said that it is there.
struct Registered {
    resource: String,
    channel: Channel,
    options: DevicePluginOptions,
}

/// What plugins call.
struct Door {
    directory: PathBuf,
    registered: mpsc::Sender<Registered>,
}

/// Whether a plugin may register. Pure. Source: `server.Register`.
fn check(request: &RegisterRequest) -> Result<(), String> {
    let shown = |text: &str| text.chars().take(100).collect::<String>();
    if request.version != VERSION {
        return Err(format!(
            "requested API version {:?} is not supported by kubelet. Supported version is {VERSION:?}",
            shown(&request.version)
        ));
    }
    if !is_extended(&request.resource_name) {
        return Err(format!("the ResourceName {:?} is invalid", shown(&request.resource_name)));
    }
    let endpoint = &request.endpoint;
    if endpoint.is_empty() || endpoint.contains('/') || endpoint == ".." || endpoint == SOCKET {
        return Err(format!("the endpoint {:?} is not the name of a socket in {DIRECTORY}", shown(endpoint)));
    }
    Ok(())
}

#[tonic::async_trait]
impl Registration for Door {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<Empty>, Status> {
        let request = request.into_inner();
        if let Err(refused) = check(&request) {
            tracing::warn!(refused, "a plugin of devices is refused");
            return Err(Status::invalid_argument(refused));
        }
        let RegisterRequest { endpoint, resource_name: resource, options, .. } = request;
        let endpoint = self.directory.join(endpoint);
        // One that cannot be reached hears of it, and may register again. Source: `server.Register`, `dial`.
        let channel = connected(&endpoint, CONNECT_MAX).await.map_err(|error| {
            tracing::warn!(resource, error, "a plugin of devices is not reached");
            Status::unavailable(error)
        })?;
        let known = Registered { resource, channel, options: options.unwrap_or_default() };
        let busy = |_| Status::resource_exhausted("too many plugins register at once: try again");
        self.registered.try_send(known).map_err(busy)?;
        Ok(Response::new(Empty {}))
    }
}

/// Makes the directory and the node's socket. The sockets of plugins are of an earlier run of the node: whoever lives sees
/// that they go, and registers again. Blocks.
fn bind(directory: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    std::fs::create_dir_all(directory)?;
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_socket() {
            std::fs::remove_file(entry.path())?;
        }
    }
    let listener = std::os::unix::net::UnixListener::bind(directory.join(SOCKET))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// The node's socket, made anew.
pub(super) async fn listen(deps: &Deps) -> Option<UnixListener> {
    let directory = deps.config.data_dir.join(DIRECTORY);
    let place = directory.clone();
    let bound = blocking(move || bind(&place)).await.ok()?;
    let bound = bound.and_then(UnixListener::from_std);
    let failed = |error: &io::Error| {
        tracing::error!(directory = %directory.display(), %error, "plugins of devices cannot register");
    };
    bound.inspect_err(failed).ok()
}

/// Serves registrations and follows who has registered, until it is dropped.
pub(crate) async fn keep(deps: Arc<Deps>, first: Option<UnixListener>) {
    let directory = deps.config.data_dir.join(DIRECTORY);
    let mut failures = 0;
    let mut bound = first;
    loop {
        if let Some(listener) = bound {
            serve(&deps, &directory, listener).await;
        }
        failures += 1;
        let again = deps.now().saturating_add(AGAIN.delay(failures)).unwrap_or(Timestamp::MAX);
        deps.clock.sleep_until(again).await;
        bound = listen(&deps).await;
    }
}

async fn serve(deps: &Arc<Deps>, directory: &Path, listener: UnixListener) {
    let (registered, mut news) = mpsc::channel(PLUGINS_MAX);
    let door = Door { directory: directory.to_owned(), registered };
    let server = tonic::transport::Server::builder()
        .timeout(CONNECT_MAX * 2)
        .concurrency_limit_per_connection(4)
        .add_service(RegistrationServer::new(door).max_decoding_message_size(REQUEST_MAX))
        .serve_with_incoming(UnixListenerStream::new(listener));
    tokio::pin!(server);
    let mut followed: HashMap<String, CancellationToken> = HashMap::new();
    let mut works = FuturesUnordered::new();
    let mut generation = 0;
    loop {
        tokio::select! {
            ended = &mut server => {
                if let Err(error) = ended {
                    tracing::error!(%error, "the server at which plugins of devices register has ended");
                }
                return;
            }
            Some(new) = news.recv() => {
                if !followed.contains_key(&new.resource) && followed.len() == PLUGINS_MAX {
                    tracing::warn!(resource = new.resource, "more than {PLUGINS_MAX} resources have plugins: this one has none");
                    continue;
                }
                let replaced = CancellationToken::new();
                if let Some(before) = followed.insert(new.resource.clone(), replaced.clone()) {
                    before.cancel();
                }
                generation += 1;
                works.push(follow(deps.clone(), new, generation, replaced));
            }
            Some(()) = works.next() => {}
        }
    }
}

/// Follows a plugin until another takes its place, or it is away for long.
async fn follow(deps: Arc<Deps>, new: Registered, generation: u64, replaced: CancellationToken) {
    let resource = new.resource.clone();
    let ended = tokio::select! {
        ended = watch(&deps, new, generation) => ended,
        () = replaced.cancelled() => return,
    };
    let why = ended.err().unwrap_or_else(|| "it has ended its list".to_owned());
    tracing::warn!(resource, why, "a plugin of devices is away");
    let devices = &deps.plugins.devices;
    devices.plugins.lock().retain(|name, plugin| *name != resource || plugin.generation != generation);
    devices.book.lock().lost(&resource);
    devices.due.notify_one();
    let grace_ends = deps.now().saturating_add(GRACE).unwrap_or(Timestamp::MAX);
    tokio::select! {
        () = deps.clock.sleep_until(grace_ends) => {}
        () = replaced.cancelled() => return,
    }
    devices.book.lock().withdrawn(&resource);
    devices.due.notify_one();
}

async fn watch(deps: &Deps, new: Registered, generation: u64) -> Result<(), String> {
    let Registered { resource, channel, options } = new;
    let client = client(channel);
    let mut asking = client.clone();
    let ended = |status: Status| {
        format!("{}: {}", status.code(), status.message().chars().take(1000).collect::<String>())
    };
    // Servers in Go send not even headers before the first list, and that one may look for its devices as long as it likes:
    // a plugin that dies ends the wait.
    let mut lists = asking.list_and_watch(Empty {}).await.map_err(ended)?.into_inner();
    let devices = &deps.plugins.devices;
    devices.plugins.lock().insert(resource.clone(), Plugin { client, options, generation });
    while let Some(list) = lists.message().await.map_err(ended)? {
        let listed = read(list.devices)?;
        let unknown = !devices.book.lock().knows(&resource);
        if devices.book.lock().listed(&resource, listed.into_iter()) {
            devices.due.notify_one();
        }
        if unknown {
            note(deps).await?;
        }
    }
    Ok(())
}

/// The devices of a list, and whether they work. Pure.
fn read(devices: Vec<Device>) -> Result<Vec<(String, bool)>, String> {
    if devices.len() > DEVICES_MAX {
        return Err(format!("it lists more than {DEVICES_MAX} devices"));
    }
    let odd = |device: &&Device| device.id.is_empty() || device.id.len() > ID_MAX;
    if devices.iter().any(|device| odd(&device)) {
        return Err(format!("it lists a device whose id has no or more than {ID_MAX} bytes"));
    }
    Ok(devices.into_iter().map(|device| (device.id, device.health == "Healthy")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_registers_says_who_it_is() {
        let request = |version: &str, resource: &str, endpoint: &str| RegisterRequest {
            version: version.into(),
            resource_name: resource.into(),
            endpoint: endpoint.into(),
            options: None,
        };
        check(&request(VERSION, "example.com/gpu", "gpu.sock")).unwrap();
        let old = check(&request("v1alpha", "example.com/gpu", "gpu.sock")).unwrap_err();
        assert!(old.contains("Supported version is \"v1beta1\""), "{old}");
        assert!(check(&request(VERSION, "cpu", "gpu.sock")).unwrap_err().contains("is invalid"));
        for endpoint in ["", "..", "../x.sock", "/etc/x.sock", "a/b", SOCKET] {
            assert!(check(&request(VERSION, "example.com/gpu", endpoint)).is_err(), "{endpoint}");
        }
    }

    #[test]
    fn lists_are_bounded() {
        let device = |id: &str, health: &str| Device { id: id.into(), health: health.into(), topology: None };
        let listed = read(vec![device("a", "Healthy"), device("b", "Unhealthy"), device("c", "")]).unwrap();
        assert_eq!(listed, [("a".into(), true), ("b".into(), false), ("c".into(), false)]);
        assert!(read(vec![device("a", ""); DEVICES_MAX + 1]).is_err());
        assert!(read(vec![device("", "Healthy")]).is_err());
        assert!(read(vec![device(&"x".repeat(ID_MAX + 1), "Healthy")]).is_err());
    }
}
