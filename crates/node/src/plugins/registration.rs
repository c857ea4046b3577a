//! How plugins become known: each lays a socket into a directory of the node, which asks at it who is there, takes the
//! plugin in or not, and says so. When the socket goes the plugin is forgotten; a new one in its place is asked anew.
//! Source: `pkg/kubelet/pluginmanager`, `pluginwatcher`, `operationexecutor`.

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base::backoff::Policy;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use inotify::{EventMask, Inotify, WatchMask};
use jiff::Timestamp;
use protos::registration::v1::registration_client::RegistrationClient;
use protos::registration::v1::{InfoRequest, PluginInfo, RegistrationStatus};
use tokio_util::sync::CancellationToken;

use super::driver::{self, Driver};
use super::socket::{ask, channel};
use super::{csi_node, dra, sweep};
use crate::admission::Workers;
use crate::deps::{Deps, blocking};
use crate::root::REGISTRY;

/// Plugins that one node has; who lays more sockets is not asked.
const PLUGINS_MAX: usize = 128;
const EVENTS_AT_ONCE: usize = 256;
/// Each of the two questions at the registration's socket. Source: upstream's `dialTimeoutDuration`.
const QUESTION_MAX: Duration = Duration::from_secs(10);
/// What a plugin says of itself is short.
const INFO_MAX: usize = 64 << 10;
/// A plugin that does not answer, or is refused. Source: upstream's `goroutinemap`'s back-off.
const AGAIN: Policy = Policy { first: Duration::from_millis(500), max: Duration::from_secs(122) };

/// What tells a socket from another one of its name: also one that was changed is the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    /// Where the file system knows: inodes are used again.
    made: Option<SystemTime>,
}

/// A socket that is looked after.
struct Attended {
    identity: Identity,
    gone: CancellationToken,
}

/// Who left, and who is new, when the directory looks like `found`. Pure.
fn differences(
    known: &HashMap<PathBuf, Identity>,
    found: &HashMap<PathBuf, Identity>,
) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let gone = known.iter().filter(|(path, identity)| found.get(*path) != Some(identity));
    let new = found.iter().filter(|(path, identity)| known.get(*path) != Some(identity));
    (gone.map(|(path, _)| path.clone()).collect(), new.map(|(path, _)| path.clone()).collect())
}

/// The sockets of a directory; names that begin with a dot are being made. Blocks.
fn sockets(directory: &Path) -> io::Result<HashMap<PathBuf, Identity>> {
    let mut found = HashMap::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let Ok(metadata) = entry.metadata() else { continue };
        let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        if hidden || !metadata.file_type().is_socket() {
            continue;
        }
        if found.len() == PLUGINS_MAX {
            tracing::warn!(directory = %directory.display(), "there are more than {PLUGINS_MAX} plugins: the rest is not asked");
            break;
        }
        let made = metadata.created().ok();
        let identity = Identity { device: metadata.dev(), inode: metadata.ino(), made };
        found.insert(entry.path(), identity);
    }
    Ok(found)
}

fn watch(directory: &Path) -> io::Result<inotify::EventStream<Vec<u8>>> {
    std::fs::create_dir_all(directory)?;
    let inotify = Inotify::init()?;
    // A driver may make its socket readable after it was made, and so change it: that is no other one.
    let mask = WatchMask::CREATE | WatchMask::DELETE | WatchMask::MOVE | WatchMask::ONLYDIR;
    inotify.watches().add(directory, mask)?;
    inotify.into_event_stream(vec![0; 4096])
}

/// Looks after the plugins of the node until it is dropped.
pub(crate) async fn keep(deps: Arc<Deps>, workers: Workers) {
    let directory = deps.config.data_dir.join(REGISTRY);
    let mut attended: HashMap<PathBuf, Attended> = HashMap::new();
    // All of them in one task: none computes, and each only waits for its own plugin.
    let mut works = FuturesUnordered::new();
    let mut failures = 0;
    loop {
        match watch(&directory) {
            Ok(events) => {
                let mut events = events.ready_chunks(EVENTS_AT_ONCE);
                loop {
                    // What came before the watch began has told nobody.
                    let Some(new) = look(&directory, &mut attended).await else { break };
                    failures = 0;
                    for (path, gone) in new {
                        works.push(attend(deps.clone(), workers.clone(), path, gone));
                    }
                    if !wait(&mut events, &mut works).await {
                        break;
                    }
                }
            }
            Err(error) => {
                tracing::error!(directory = %directory.display(), %error, "plugins are not seen");
            }
        }
        failures += 1;
        let again = deps.now().saturating_add(AGAIN.delay(failures)).unwrap_or(Timestamp::MAX);
        let pause = deps.clock.sleep_until(again);
        tokio::pin!(pause);
        loop {
            tokio::select! {
                () = &mut pause => break,
                Some(()) = works.next() => {}
            }
        }
    }
}

/// Waits for news of the directory while the plugins are looked after. Answers whether the directory is still watched.
async fn wait<S, F>(events: &mut S, works: &mut FuturesUnordered<F>) -> bool
where
    S: futures::Stream<Item = Vec<io::Result<inotify::Event<std::ffi::OsString>>>> + Unpin,
    F: Future<Output = ()>,
{
    loop {
        tokio::select! {
            happened = events.next() => {
                let Some(happened) = happened else { return false };
                let over = |event: &inotify::Event<_>| event.mask.contains(EventMask::IGNORED);
                return !happened.iter().flatten().any(over);
            }
            Some(()) = works.next() => {}
        }
    }
}

/// Compares the directory with what is attended to, lets go of who left, and answers who is new; `None` where it cannot be
/// listed.
async fn look(
    directory: &Path,
    attended: &mut HashMap<PathBuf, Attended>,
) -> Option<Vec<(PathBuf, CancellationToken)>> {
    let place = directory.to_owned();
    let found = match blocking(move || sockets(&place)).await {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => {
            tracing::warn!(directory = %directory.display(), %error, "the plugins' sockets cannot be listed");
            return None;
        }
        Err(_) => return None,
    };
    let known = attended.iter().map(|(path, of)| (path.clone(), of.identity)).collect();
    let (gone, new) = differences(&known, &found);
    for path in gone {
        if let Some(left) = attended.remove(&path) {
            left.gone.cancel();
        }
    }
    let mut begun = Vec::new();
    for path in new {
        let Some(identity) = found.get(&path).copied() else { continue };
        let gone = CancellationToken::new();
        attended.insert(path.clone(), Attended { identity, gone: gone.clone() });
        begun.push((path, gone));
    }
    Some(begun)
}

/// Looks after the plugin at a socket until the socket is gone.
async fn attend(deps: Arc<Deps>, workers: Workers, socket: PathBuf, gone: CancellationToken) {
    let mut failures = 0;
    let taken = loop {
        let done = tokio::select! {
            done = register(&deps, &socket) => done,
            // It may have been taken in, and not been told yet.
            () = gone.cancelled() => return left(&deps, &socket).await,
        };
        match done {
            Ok(taken) => break taken,
            Err(error) => {
                tracing::warn!(socket = %socket.display(), error, "a plugin is not registered, trying again");
                failures += 1;
            }
        }
        let again = deps.now().saturating_add(AGAIN.delay(failures)).unwrap_or(Timestamp::MAX);
        tokio::select! {
            () = deps.clock.sleep_until(again) => {}
            () = gone.cancelled() => return,
        }
    };
    match taken {
        Taken::Volumes(name) => {
            tracing::info!(driver = name, socket = %socket.display(), "a driver of volumes has registered");
            for mailbox in workers.lock().values() {
                mailbox.volumes_may_be_had();
            }
            tokio::select! {
                () = sweep::after(&deps, &name) => gone.cancelled().await,
                () = gone.cancelled() => {}
            }
            left(&deps, &socket).await;
        }
        Taken::Devices(driver) => {
            let name = driver.name().to_owned();
            tracing::info!(driver = name, socket = %socket.display(), "a driver of devices has registered");
            dra::attend(&deps, &workers, driver, &gone).await;
            left(&deps, &socket).await;
            dra::left(&deps, &name).await;
        }
    }
}

/// Forgets whoever has registered at a socket that is gone.
async fn left(deps: &Deps, socket: &Path) {
    deps.plugins.claims.left(socket);
    for name in deps.plugins.at(socket) {
        forget(deps, &name, socket).await;
    }
}

/// Who was taken in.
enum Taken {
    /// A driver of volumes, by its name.
    Volumes(String),
    /// A driver of devices.
    Devices(Arc<dra::Driver>),
}

/// Asks who is there and takes it in; says what came of it.
async fn register(deps: &Deps, socket: &Path) -> Result<Taken, String> {
    let mut client = RegistrationClient::new(channel(socket)).max_decoding_message_size(INFO_MAX);
    let info = ask(QUESTION_MAX, client.get_info(InfoRequest {})).await;
    let info = info.map_err(|error| format!("failed to get plugin info: {error}"))?;
    let done = take_in(deps, socket, &info).await;
    let status = RegistrationStatus {
        plugin_registered: done.is_ok(),
        error: done.as_ref().err().cloned().unwrap_or_default(),
    };
    let told = ask(QUESTION_MAX, client.notify_registration_status(status)).await;
    if let (Ok(_), Err(error)) = (&done, told) {
        left(deps, socket).await;
        return Err(format!("failed to send registration status: {error}"));
    }
    done
}

async fn take_in(deps: &Deps, socket: &Path, info: &PluginInfo) -> Result<Taken, String> {
    match info.r#type.as_str() {
        "CSIPlugin" => take_in_volumes(deps, socket, info).await.map(|()| Taken::Volumes(info.name.clone())),
        "DRAPlugin" => dra::register(deps, socket, info).map(Taken::Devices),
        kind => {
            let kind: String = kind.chars().take(64).collect();
            Err(format!("no handler registered for plugin type: {kind} at socket {}", socket.display()))
        }
    }
}

async fn take_in_volumes(deps: &Deps, socket: &Path, info: &PluginInfo) -> Result<(), String> {
    driver::check_name(&info.name)?;
    let version = driver::version(&info.name, &info.supported_versions)?;
    let endpoint = if info.endpoint.is_empty() { socket.to_owned() } else { PathBuf::from(&info.endpoint) };
    let driver = Arc::new(Driver::new(&info.name, &endpoint));
    let node = driver.node_info().await?;
    deps.plugins.put(driver, version, node.clone(), socket)?;
    let installed = {
        let _alone = deps.plugins.objects.lock().await;
        csi_node::install(deps, &info.name, &node).await
    };
    if installed.is_err() {
        deps.plugins.remove(&info.name, socket);
    }
    installed
}

/// Forgets a driver whose socket is gone, unless another has taken its place.
async fn forget(deps: &Deps, name: &str, socket: &Path) {
    if !deps.plugins.remove(name, socket) {
        return;
    }
    let _alone = deps.plugins.objects.lock().await;
    if deps.plugins.driver(name).is_some() {
        return;
    }
    if let Err(error) = csi_node::uninstall(deps, name).await {
        tracing::warn!(driver = name, error, "a driver that has left is still named by the CSINode");
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_socket_that_was_made_anew_is_another() {
        let identity = |inode| Identity { device: 1, inode, made: None };
        let path = |name: &str| PathBuf::from(name);
        let known = HashMap::from([(path("a"), identity(1)), (path("b"), identity(2))]);
        let found = HashMap::from([(path("b"), identity(3)), (path("c"), identity(4))]);
        let (mut gone, mut new) = differences(&known, &found);
        gone.sort();
        new.sort();
        assert_eq!((gone, new), (vec![path("a"), path("b")], vec![path("b"), path("c")]));
        assert_eq!(differences(&found, &found), (Vec::new(), Vec::new()));
    }

    #[test]
    fn only_sockets_are_plugins() {
        let dir = tempfile::tempdir().unwrap();
        let bind = |name: &str| std::os::unix::net::UnixListener::bind(dir.path().join(name)).unwrap();
        let _listeners = [bind("d-reg.sock"), bind(".making.sock")];
        std::fs::write(dir.path().join("file"), "").unwrap();
        std::fs::create_dir(dir.path().join("directory")).unwrap();
        let found = sockets(dir.path()).unwrap();
        let path = dir.path().join("d-reg.sock");
        assert_eq!(found.keys().collect::<Vec<_>>(), [&path]);
        // A driver makes its socket writable to others after it was made.
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).unwrap();
        assert_eq!(sockets(dir.path()).unwrap(), found);
    }

    #[tokio::test]
    async fn a_directory_that_cannot_be_listed_has_not_lost_its_sockets() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("registry");
        std::fs::create_dir(&place).unwrap();
        let _listener = std::os::unix::net::UnixListener::bind(place.join("d-reg.sock")).unwrap();
        let mut attended = HashMap::new();
        assert_eq!(look(&place, &mut attended).await.map(|new| new.len()), Some(1));
        std::fs::rename(&place, dir.path().join("away")).unwrap();
        assert!(look(&place, &mut attended).await.is_none());
        assert_eq!(attended.len(), 1);
    }
}
