//! Containers: made, started, stopped, waited for, removed.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use engine_api::{
    ContainerEvent, ContainerEventKind, ContainerState, ContainerStatus, EngineError, EventsLost, Exit,
    SandboxStatus, TerminalSize,
};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use http::StatusCode;
use serde_json::{Value, json};
use tokio::sync::broadcast;

use crate::answer::{Answer, Failure, json as json_answer, ok, status};
use crate::container_spec::{
    CreateRequest, Directories, OWNER, OWNER_LABEL, Owner, Plan, REQUEST_LABEL, plan,
};
use crate::server::{Call, Shared, unchanged};
use crate::system::check_platform;

const STOP_GRACE: Duration = Duration::from_secs(10);
const STOP_FOR_EVER: Duration = Duration::from_secs(i32::MAX as u64);
const SYSTEMD_RESOLVER: &str = "/run/systemd/resolve/resolv.conf";

type Events = BoxStream<'static, Result<ContainerEvent, EventsLost>>;

/// A container with its surroundings.
pub(crate) struct Found {
    pub(crate) container: ContainerStatus,
    pub(crate) sandbox: Option<SandboxStatus>,
    pub(crate) owner: Owner,
    /// The request that made it, as it came; `null` for others' containers.
    pub(crate) raw: Value,
}

impl Found {
    pub(crate) fn id(&self) -> &str {
        &self.container.spec.id
    }

    pub(crate) fn is_ours(&self) -> bool {
        matches!(self.owner, Owner::Docker(_))
    }

    pub(crate) fn is_running(&self) -> bool {
        matches!(self.container.state, ContainerState::Running { .. })
    }

    /// Refuses to change what belongs to somebody else.
    pub(crate) fn changeable(&self) -> Result<&CreateRequest, Failure> {
        match &self.owner {
            Owner::Docker(request) => Ok(request),
            Owner::Other => {
                let message = format!(
                    "container {} belongs to a Kubernetes pod: change it with kubectl",
                    &self.id()[..12]
                );
                Err(Failure::conflict(message))
            }
        }
    }
}

impl Shared {
    /// Every container with its surroundings.
    pub(crate) async fn all(&self) -> Result<Vec<Found>, Failure> {
        let mut sandboxes: std::collections::HashMap<String, SandboxStatus> = self
            .runtime
            .sandboxes()
            .await?
            .into_iter()
            .map(|sandbox| (sandbox.spec.id.clone(), sandbox))
            .collect();
        let mut all = Vec::new();
        for container in self.runtime.containers().await? {
            let ours = |sandbox: &SandboxStatus| {
                sandbox.spec.labels.get(OWNER_LABEL).is_some_and(|owner| owner == OWNER)
            };
            // A sandbox made here has one container and can be taken out; a pod's is left for its other containers.
            let sandbox = match sandboxes.get(&container.spec.sandbox_id) {
                Some(sandbox) if ours(sandbox) => sandboxes.remove(&container.spec.sandbox_id),
                other => other.cloned(),
            };
            let raw = sandbox.as_ref().and_then(|sandbox| sandbox.spec.labels.get(REQUEST_LABEL));
            let raw: Value = raw.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
            let owner = match serde_json::from_value::<CreateRequest>(raw.clone()) {
                Ok(request) if sandbox.as_ref().is_some_and(ours) => Owner::Docker(Box::new(request)),
                _ => Owner::Other,
            };
            all.push(Found { container, sandbox, owner, raw });
        }
        Ok(all)
    }

    /// The container that a name, an id or the unique start of an id means.
    pub(crate) async fn find(&self, name: &str) -> Result<Found, Failure> {
        let bare = name.trim_start_matches('/');
        let mut all = self.all().await?;
        let exact = all.iter().position(|found| found.id() == bare);
        let named = || all.iter().position(|found| found.is_ours() && found.container.spec.name == bare);
        if let Some(position) = exact.or_else(named) {
            return Ok(all.swap_remove(position));
        }
        let is_hex = !bare.is_empty() && bare.bytes().all(|byte| byte.is_ascii_hexdigit());
        all.retain(|found| is_hex && found.id().starts_with(bare));
        match all.len() {
            0 => Err(Failure::not_found(format!("No such container: {name}"))),
            1 => Ok(all.swap_remove(0)),
            _ => Err(Failure::bad_request(format!(
                "{name} is the start of several container ids: give more digits"
            ))),
        }
    }

    /// Removes a container with its sandbox and its files.
    pub(crate) async fn discard(&self, found: &Found) -> Result<(), Failure> {
        let (id, sandbox) = (found.id(), &found.container.spec.sandbox_id);
        // Each waits for the kernel, and neither for the other.
        let (detached, removed) =
            tokio::join!(self.networks.detach(sandbox), self.runtime.remove_sandbox(sandbox));
        detached?;
        removed?;
        self.addresses.lock().remove(id);
        remove_directory(&self.files(id)).await?;
        // Nobody may be waiting.
        let _ = self.removed.send(id.to_owned());
        Ok(())
    }

    /// Starts a container once its ports are its own; they are given back with its end.
    async fn publish_and_start(&self, found: &Found) -> Result<(), Failure> {
        let spec = &found.container.spec;
        let image = self.images.resolve(&spec.image_id).await;
        let exposed = image.map(|found| found.image.config.exposed_ports).unwrap_or_default();
        let ports = crate::ports::asked(found.changeable()?, &exposed)?;
        // The janitor of the run before must not take these ports for that run's.
        let _starting = self.starting.lock(found.id()).await;
        if !ports.is_empty() {
            self.networks.publish(&spec.sandbox_id, &ports).await?;
        }
        if let Err(error) = self.runtime.start_container(found.id()).await {
            self.withdraw_ports(found).await;
            return Err(error.into());
        }
        Ok(())
    }

    /// Takes the ports of a container back if it has ended and is not being started again.
    pub(crate) async fn withdraw(&self, found: &Found) {
        let _starting = self.starting.lock(found.id()).await;
        // What was found may be old by now.
        let runs = self.runtime.container(found.id()).await;
        if runs.is_ok_and(|now| matches!(now.state, ContainerState::Running { .. })) {
            return;
        }
        self.withdraw_ports(found).await;
    }

    async fn withdraw_ports(&self, found: &Found) {
        if let Err(error) = self.networks.publish(&found.container.spec.sandbox_id, &[]).await {
            tracing::warn!(container = found.id(), %error, "the ports of a container that ended stay published");
        }
    }

    fn files(&self, id: &str) -> PathBuf {
        self.config.data_dir.join("containers").join(id)
    }

    /// A container's address in the network, asked for once.
    pub(crate) async fn address(&self, found: &Found) -> String {
        let known = self.addresses.lock().get(found.id()).cloned();
        let connected = found.sandbox.as_ref().is_some_and(|sandbox| !sandbox.spec.host_network);
        if let (None, true, Some(sandbox), Owner::Docker(request)) =
            (&known, connected, &found.sandbox, &found.owner)
        {
            if !found.is_running() || request.host_config.network_mode == "none" {
                return String::new();
            }
            // Attaching again gives the same answer: this is how it is asked for after a restart.
            let Ok(network) = self.networks.attach(&sandbox.spec.id, &sandbox.netns_path).await else {
                return String::new();
            };
            let address = network.addresses.first().map(ToString::to_string).unwrap_or_default();
            self.addresses.lock().insert(found.id().to_owned(), address.clone());
            return address;
        }
        known.unwrap_or_default()
    }
}

async fn remove_directory(path: &Path) -> Result<(), Failure> {
    match tokio::fs::remove_dir_all(path).await {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Failure::internal("remove the container's files", &error))
        }
        _ => Ok(()),
    }
}

pub(crate) async fn create(mut call: Call) -> Answer {
    let raw: Value = call.json().await?;
    let request: CreateRequest = serde_json::from_value(raw.clone())
        .map_err(|error| Failure::bad_request(format!("invalid request: {error}")))?;
    check_platform(call.query.text("platform"))?;
    let shared = &call.shared;
    let image = shared.images.resolve(&request.image).await?.image;
    let id = base::id::hex64();
    let _naming = shared.naming.lock().await;
    let name = choose_name(shared, call.query.text("name"), &id).await?;
    let directories =
        Directories { volumes: shared.config.data_dir.join("volumes"), files: shared.files(&id) };
    let plan = plan(&request, &raw, &image, &id, &name, &directories)?;
    if let Err(failure) = make(shared, &plan, &request, &directories).await {
        // What was half made must not stay; the first failure is the one to tell.
        let _ = shared.networks.detach(&id).await;
        let _ = shared.runtime.remove_sandbox(&id).await;
        let _ = remove_directory(&directories.files).await;
        return Err(failure);
    }
    Ok(json_answer(StatusCode::CREATED, &json!({ "Id": id, "Warnings": [] })))
}

/// A name that nobody has; made from the id where none was asked for.
async fn choose_name(shared: &Shared, wanted: &str, id: &str) -> Result<String, Failure> {
    let wanted = wanted.trim_start_matches('/');
    if wanted.is_empty() {
        return Ok(format!("skiff-{}", &id[..12]));
    }
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    if wanted.len() < 2
        || !wanted.starts_with(|c: char| c.is_ascii_alphanumeric())
        || !wanted.chars().all(fits)
    {
        let message =
            format!("Invalid container name ({wanted}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed");
        return Err(Failure::bad_request(message));
    }
    match shared.all().await?.iter().find(|found| found.is_ours() && found.container.spec.name == wanted) {
        None => Ok(wanted.to_owned()),
        Some(other) => Err(Failure::conflict(format!(
            "Conflict. The container name \"/{wanted}\" is already in use by container \"{}\". You have to remove (or rename) that container to be able to reuse that name.",
            other.id()
        ))),
    }
}

async fn make(
    shared: &Shared,
    plan: &Plan,
    request: &CreateRequest,
    directories: &Directories,
) -> Result<(), Failure> {
    for volume in &plan.volumes {
        if tokio::fs::try_exists(volume).await.unwrap_or(false) {
            continue;
        }
        let made = tokio::fs::create_dir_all(volume).await;
        made.map_err(|error| Failure::internal(&format!("make volume {}", volume.display()), &error))?;
    }
    // Before the container, which mounts them; the address follows when the network is there.
    write_files(plan, request, directories, None).await?;
    let sandbox = shared.runtime.create_sandbox(plan.sandbox.clone()).await?;
    if plan.connected {
        let network = shared.networks.attach(&plan.sandbox.id, &sandbox.netns_path).await?;
        if let Some(address) = network.addresses.first() {
            shared.addresses.lock().insert(plan.sandbox.id.clone(), address.to_string());
            write_files(plan, request, directories, Some(&address.to_string())).await?;
        }
    }
    shared.runtime.create_container(plan.container.clone()).await?;
    let [height, width] = request.host_config.console_size;
    if request.tty && height > 0 && width > 0 {
        // Before the start, so that the program sees it from its first line on; a client resizes again anyway.
        let size = TerminalSize { height, width };
        let _ = shared.runtime.resize_container(&plan.container.id, size).await;
    }
    Ok(())
}

/// The files that the container mounts over those of its image.
async fn write_files(
    plan: &Plan,
    request: &CreateRequest,
    directories: &Directories,
    address: Option<&str>,
) -> Result<(), Failure> {
    let fail = |error| Failure::internal("write the container's files", &error);
    tokio::fs::create_dir_all(&directories.files).await.map_err(fail)?;
    let hostname = &plan.sandbox.hostname;
    let mut hosts = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned();
    for entry in &request.host_config.extra_hosts {
        if let Some((name, address)) = entry.split_once([':', '=']) {
            hosts.push_str(&format!("{address}\t{name}\n"));
        }
    }
    if let Some(address) = address {
        hosts.push_str(&format!("{address}\t{hostname}\n"));
    }
    let resolver = resolver(request).await;
    for (name, text) in [("hosts", hosts), ("hostname", format!("{hostname}\n")), ("resolv.conf", resolver)] {
        // Written in place: what is mounted is the file, not its name.
        tokio::fs::write(directories.files.join(name), text).await.map_err(fail)?;
    }
    Ok(())
}

async fn resolver(request: &CreateRequest) -> String {
    let host = &request.host_config;
    if !host.dns.is_empty() || !host.dns_search.is_empty() || !host.dns_options.is_empty() {
        let mut text: String = host.dns.iter().map(|server| format!("nameserver {server}\n")).collect();
        for (keyword, words) in [("search", &host.dns_search), ("options", &host.dns_options)] {
            if !words.is_empty() {
                text.push_str(&format!("{keyword} {}\n", words.join(" ")));
            }
        }
        return text;
    }
    let text = tokio::fs::read_to_string("/etc/resolv.conf").await.unwrap_or_default();
    let servers: Vec<&str> =
        text.lines().filter_map(|line| line.strip_prefix("nameserver")).map(str::trim).collect();
    let local = |server: &&str| server.starts_with("127.") || *server == "::1";
    // A resolver on the host's loopback is out of reach from a container's network.
    if host.network_mode != "host" && !servers.is_empty() && servers.iter().all(local) {
        return tokio::fs::read_to_string(SYSTEMD_RESOLVER).await.unwrap_or(text);
    }
    text
}

pub(crate) async fn start(call: &Call, name: &str) -> Answer {
    let found = call.shared.find(name).await?;
    found.changeable()?;
    if found.is_running() {
        return unchanged();
    }
    if let Err(failure) = call.shared.publish_and_start(&found).await {
        if found.changeable()?.host_config.auto_remove {
            call.shared.discard(&found).await?;
        }
        return Err(failure);
    }
    status(StatusCode::NO_CONTENT)
}

pub(crate) async fn stop(call: &Call, name: &str) -> Answer {
    let found = call.shared.find(name).await?;
    found.changeable()?;
    if !found.is_running() {
        return unchanged();
    }
    let grace = stop_grace(call.query.text("t"), found.changeable()?.stop_timeout);
    call.shared.runtime.stop_container(found.id(), grace).await?;
    status(StatusCode::NO_CONTENT)
}

/// How long a stop waits: as it says, else as the container was made, else ten seconds. Negative is for ever, which is
/// as long as a signed number of seconds can say.
fn stop_grace(asked: &str, of_container: Option<i64>) -> Duration {
    match asked.parse().ok().or(of_container) {
        None => STOP_GRACE,
        Some(seconds) => u64::try_from(seconds).map_or(STOP_FOR_EVER, Duration::from_secs),
    }
}

pub(crate) async fn kill(call: &Call, name: &str) -> Answer {
    let found = call.shared.find(name).await?;
    found.changeable()?;
    if !found.is_running() {
        return Err(Failure::conflict(format!("container {name} is not running")));
    }
    let text = call.query.text("signal");
    let signal = signal_number(if text.is_empty() { "KILL" } else { text })
        .ok_or_else(|| Failure::bad_request(format!("Invalid signal: {text}")))?;
    call.shared.runtime.signal_container(found.id(), signal).await?;
    status(StatusCode::NO_CONTENT)
}

/// A signal by number or name, with or without `SIG`.
fn signal_number(text: &str) -> Option<i32> {
    use rustix::process::Signal;
    if let Ok(number) = text.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let signal = match upper.trim_start_matches("SIG") {
        "HUP" => Signal::HUP,
        "INT" => Signal::INT,
        "QUIT" => Signal::QUIT,
        "ABRT" => Signal::ABORT,
        "KILL" => Signal::KILL,
        "USR1" => Signal::USR1,
        "USR2" => Signal::USR2,
        "PIPE" => Signal::PIPE,
        "ALRM" => Signal::ALARM,
        "TERM" => Signal::TERM,
        "CHLD" => Signal::CHILD,
        "CONT" => Signal::CONT,
        "STOP" => Signal::STOP,
        "TSTP" => Signal::TSTP,
        "TTIN" => Signal::TTIN,
        "TTOU" => Signal::TTOU,
        "WINCH" => Signal::WINCH,
        _ => return None,
    };
    Some(signal.as_raw())
}

/// Answers at once with the head, and with the exit when it is there: clients start the container in between.
pub(crate) async fn wait(call: &Call, name: &str) -> Answer {
    let removed = call.shared.removed.subscribe();
    let events = call.shared.runtime.events().await;
    let found = call.shared.find(name).await?;
    let condition = call.query.text("condition");
    let until_removed = condition == "removed";
    // The end of a further run, which the client is about to start.
    let next = condition == "next-exit" && matches!(found.container.state, ContainerState::Exited { .. });
    let (shared, id) = (call.shared.clone(), found.id().to_owned());
    let exit = async move {
        let ended = match next {
            true => next_exit(&shared, &id, events).await,
            false => shared.runtime.wait_container(&id).await,
        };
        let answer = match ended {
            Ok(exit) => wait_document(&exit),
            Err(error) => json!({ "StatusCode": 125, "Error": { "Message": error.message } }),
        };
        if until_removed {
            wait_removed(&shared, &id, removed).await;
        }
        answer
    };
    Ok(crate::answer::documents(futures::stream::once(exit)))
}

async fn next_exit(shared: &Shared, id: &str, mut events: Events) -> Result<Exit, EngineError> {
    while let Some(event) = events.next().await {
        match event {
            Ok(event) if event.container_id == id => match event.kind {
                ContainerEventKind::Exited(exit) => return Ok(exit),
                ContainerEventKind::Removed => break,
                _ => {}
            },
            Ok(_) => {}
            // What was missed may be the end.
            Err(_lost) => return shared.runtime.wait_container(id).await,
        }
    }
    Err(EngineError::not_found(format!("No such container: {id}")))
}

async fn wait_removed(shared: &Arc<Shared>, id: &str, mut removed: broadcast::Receiver<String>) {
    loop {
        match removed.recv().await {
            Ok(gone) if gone == id => return,
            Ok(_) => {}
            // Missed some: look.
            Err(broadcast::error::RecvError::Lagged(_)) if shared.find(id).await.is_ok() => {}
            Err(_) => return,
        }
    }
}

fn wait_document(exit: &Exit) -> Value {
    match exit.message.as_str() {
        "" => json!({ "StatusCode": exit.code }),
        message => json!({ "StatusCode": exit.code, "Error": { "Message": message } }),
    }
}

pub(crate) async fn remove(call: &Call, name: &str) -> Answer {
    let found = call.shared.find(name).await?;
    found.changeable()?;
    if found.is_running() && !call.query.flag("force") {
        let message = format!(
            "cannot remove container \"/{}\": container is running: stop the container before removing or force remove",
            found.container.spec.name
        );
        return Err(Failure::conflict(message));
    }
    call.shared.discard(&found).await?;
    status(StatusCode::NO_CONTENT)
}

pub(crate) async fn prune(call: &Call) -> Answer {
    let mut deleted = Vec::new();
    for found in call.shared.all().await? {
        if found.is_ours() && !found.is_running() {
            call.shared.discard(&found).await?;
            deleted.push(found.id().to_owned());
        }
    }
    ok(&json!({ "ContainersDeleted": deleted, "SpaceReclaimed": 0 }))
}

/// `h` and `w` of a resize request.
pub(crate) fn terminal_size(call: &Call) -> Result<TerminalSize, Failure> {
    let side = |name: &str| {
        call.query
            .text(name)
            .parse()
            .map_err(|_| Failure::bad_request(format!("{name} is not a number of characters")))
    };
    Ok(TerminalSize { height: side("h")?, width: side("w")? })
}

pub(crate) async fn resize(call: &Call, name: &str) -> Answer {
    let size = terminal_size(call)?;
    let found = call.shared.find(name).await?;
    if !found.is_running() {
        return Err(Failure::conflict(format!("container {name} is not running")));
    }
    call.shared.runtime.resize_container(found.id(), size).await?;
    status(StatusCode::OK)
}

pub(crate) async fn attach(call: Call, name: &str) -> Answer {
    let found = call.shared.find(name).await?;
    let wants = crate::hijack::Wants {
        stdin: call.query.flag("stdin"),
        stdout: call.query.flag("stdout"),
        stderr: call.query.flag("stderr"),
        terminal: found.container.spec.terminal,
    };
    let process = call.shared.runtime.attach(found.id()).await?;
    let (shared, id) = (call.shared.clone(), found.id().to_owned());
    shared.attached.send_modify(|all| *all.entry(id.clone()).or_default() += 1);
    let detached = Attachment { shared, id };
    crate::hijack::upgrade(call, process.io, wants, async move { drop(detached) })
}

/// Counts an attached client until it is dropped.
struct Attachment {
    shared: Arc<Shared>,
    id: String,
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.shared.attached.send_modify(|all| {
            if let Some(count) = all.get_mut(&self.id) {
                *count -= 1;
                if *count == 0 {
                    all.remove(&self.id);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grace_of_a_stop_is_asked_for_or_the_containers() {
        assert_eq!(stop_grace("", None), STOP_GRACE);
        assert_eq!(stop_grace("", Some(3)), Duration::from_secs(3));
        assert_eq!(stop_grace("1", Some(3)), Duration::from_secs(1));
        assert_eq!(stop_grace("-1", None), STOP_FOR_EVER);
    }

    #[test]
    fn signals_have_names_and_numbers() {
        assert_eq!(signal_number("HUP"), Some(1));
        assert_eq!(signal_number("sigterm"), Some(15));
        assert_eq!(signal_number("9"), Some(9));
        assert_eq!(signal_number("0"), None);
        assert_eq!(signal_number("NOPE"), None);
    }
}
