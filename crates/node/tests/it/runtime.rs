//! A runtime in memory: containers run until a test ends them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base::clock::{Clock, VirtualClock};
use bytes::Bytes;
use engine_api::*;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use parking_lot::Mutex;
use tokio::io::AsyncReadExt as _;
use tokio::sync::{broadcast, mpsc, oneshot, watch};

#[derive(Default)]
struct Held {
    sandboxes: BTreeMap<String, SandboxStatus>,
    containers: BTreeMap<String, ContainerStatus>,
}

pub(crate) struct Fake {
    held: Mutex<Held>,
    events: broadcast::Sender<ContainerEvent>,
    /// Counts every change of any fake.
    changed: watch::Sender<u64>,
    clock: VirtualClock,
    /// What happened, in order.
    pub(crate) log: Mutex<Vec<String>>,
    /// Containers that do not heed the stop signal.
    pub(crate) stubborn: Mutex<Vec<String>>,
    /// Limits of groups above sandboxes.
    pub(crate) groups: Mutex<BTreeMap<String, Resources>>,
    /// How often a call will fail from now on, by the words with which the log tells of it.
    failing: Mutex<BTreeMap<&'static str, u32>>,
}

impl Fake {
    pub(crate) fn new(clock: VirtualClock, changed: watch::Sender<u64>) -> Arc<Self> {
        Arc::new(Self {
            held: Mutex::default(),
            events: broadcast::channel(1024).0,
            changed,
            clock,
            log: Mutex::default(),
            stubborn: Mutex::default(),
            groups: Mutex::default(),
            failing: Mutex::default(),
        })
    }

    pub(crate) fn say(&self, line: String) {
        self.log.lock().push(line);
        self.changed.send_modify(|count| *count += 1);
    }

    /// Lets the next calls of a kind fail.
    pub(crate) fn fail(&self, call: &'static str, times: u32) {
        self.failing.lock().insert(call, times);
    }

    /// How often the log has a line.
    pub(crate) fn said(&self, line: &str) -> usize {
        self.log.lock().iter().filter(|known| *known == line).count()
    }

    fn fails(&self, call: &'static str) -> Result<(), EngineError> {
        {
            let mut failing = self.failing.lock();
            let Some(left) = failing.get_mut(call).filter(|left| **left > 0) else { return Ok(()) };
            *left -= 1;
        }
        self.say(format!("{call} failed"));
        Err(EngineError::new(ErrorKind::Internal, "a process cannot be killed"))
    }

    fn event(&self, sandbox_id: &str, container_id: &str, kind: ContainerEventKind) {
        self.changed.send_modify(|count| *count += 1);
        let (sandbox_id, container_id) = (sandbox_id.to_owned(), container_id.to_owned());
        let _ = self.events.send(ContainerEvent { sandbox_id, container_id, kind });
    }

    /// The newest container of a name.
    pub(crate) fn newest(&self, name: &str) -> Option<ContainerStatus> {
        let held = self.held.lock();
        let named = held.containers.values().filter(|status| status.spec.name == name);
        named.max_by_key(|status| status.spec.labels["skiff.dev/attempt"].parse::<u32>().unwrap()).cloned()
    }

    /// What a container has.
    pub(crate) fn resources_of(&self, id: &str) -> Option<Resources> {
        self.held.lock().containers.get(id).map(|status| status.spec.resources.clone())
    }

    pub(crate) fn sandbox_specs(&self) -> Vec<SandboxSpec> {
        self.held.lock().sandboxes.values().map(|status| status.spec.clone()).collect()
    }

    pub(crate) fn sandbox_ids(&self) -> Vec<String> {
        self.held.lock().sandboxes.keys().cloned().collect()
    }

    /// Ends a container's process.
    pub(crate) fn end(&self, id: &str, code: i32) {
        let finished_at = self.clock.now();
        let exit = Exit { code, signal: 0, oom_killed: false, finished_at, message: String::new() };
        let sandbox = {
            let mut held = self.held.lock();
            let Some(status) = held.containers.get_mut(id) else { return };
            let ContainerState::Running { started_at, .. } = status.state else { return };
            status.state = ContainerState::Exited { started_at: Some(started_at), exit: exit.clone() };
            status.spec.sandbox_id.clone()
        };
        self.event(&sandbox, id, ContainerEventKind::Exited(exit));
    }

    /// The sandbox's shim dies.
    pub(crate) fn kill_shim(&self, id: &str) {
        let inside: Vec<String> = {
            let mut held = self.held.lock();
            held.sandboxes.get_mut(id).unwrap().state = SandboxState::NotReady;
            let inside = held.containers.values().filter(|status| status.spec.sandbox_id == id);
            inside.map(|status| status.spec.id.clone()).collect()
        };
        self.event(id, "", ContainerEventKind::SandboxDied);
        for container in inside {
            self.end(&container, 137);
        }
    }
}

#[async_trait]
impl Runtime for Fake {
    async fn create_sandbox(&self, spec: SandboxSpec) -> Result<SandboxStatus, EngineError> {
        self.say(format!("create sandbox {}", spec.name));
        if let Some(limits) = &spec.parent_resources {
            self.groups.lock().insert(spec.cgroup_parent.clone(), limits.clone());
        }
        let status = SandboxStatus {
            state: SandboxState::Ready,
            created_at: self.clock.now(),
            netns_path: "/netns".to_owned(),
            spec,
        };
        self.held.lock().sandboxes.insert(status.spec.id.clone(), status.clone());
        Ok(status)
    }

    async fn stop_sandbox(&self, id: &str) -> Result<(), EngineError> {
        self.fails("stop sandbox")?;
        let inside: Vec<String> = {
            let mut held = self.held.lock();
            let Some(sandbox) = held.sandboxes.get_mut(id) else { return Ok(()) };
            sandbox.state = SandboxState::NotReady;
            let inside = held.containers.values().filter(|status| status.spec.sandbox_id == id);
            inside.map(|status| status.spec.id.clone()).collect()
        };
        for container in inside {
            self.end(&container, 137);
        }
        self.say("stop sandbox".to_owned());
        Ok(())
    }

    async fn remove_sandbox(&self, id: &str) -> Result<(), EngineError> {
        self.fails("remove sandbox")?;
        let mut held = self.held.lock();
        held.sandboxes.remove(id);
        held.containers.retain(|_, status| status.spec.sandbox_id != id);
        drop(held);
        self.say("remove sandbox".to_owned());
        Ok(())
    }

    async fn sandboxes(&self) -> Result<Vec<SandboxStatus>, EngineError> {
        Ok(self.held.lock().sandboxes.values().cloned().collect())
    }

    fn handlers(&self) -> Vec<RuntimeHandler> {
        let able = RuntimeHandler {
            recursive_read_only_mounts: true,
            user_namespaces: true,
            ..RuntimeHandler::default()
        };
        vec![able, RuntimeHandler { name: "other".to_owned(), ..RuntimeHandler::default() }]
    }

    async fn create_container(&self, spec: ContainerSpec) -> Result<ContainerStatus, EngineError> {
        let log_path = {
            let held = self.held.lock();
            let sandbox = held.sandboxes.get(&spec.sandbox_id).ok_or(EngineError::not_found("no sandbox"))?;
            sandbox.spec.log_directory.join(&spec.log_path)
        };
        std::fs::create_dir_all(log_path.parent().unwrap()).unwrap();
        std::fs::write(&log_path, "").unwrap();
        let status = ContainerStatus {
            state: ContainerState::Created,
            created_at: self.clock.now(),
            log_path,
            spec,
            identity: None,
        };
        self.held.lock().containers.insert(status.spec.id.clone(), status.clone());
        Ok(status)
    }

    async fn start_container(&self, id: &str) -> Result<ContainerStatus, EngineError> {
        let status = {
            let mut held = self.held.lock();
            let status = held.containers.get_mut(id).ok_or(EngineError::not_found("no container"))?;
            status.state = ContainerState::Running { pid: 1, started_at: self.clock.now() };
            status.clone()
        };
        self.say(format!("start {} {}", status.spec.name, status.spec.labels["skiff.dev/attempt"]));
        self.event(&status.spec.sandbox_id, id, ContainerEventKind::Started);
        Ok(status)
    }

    async fn stop_container(&self, id: &str, grace: Duration) -> Result<Exit, EngineError> {
        let name = self.container(id).await?.spec.name;
        self.say(format!("stop {name} {}", grace.as_secs()));
        if self.stubborn.lock().contains(&name) && !grace.is_zero() {
            self.clock.sleep_until(self.clock.now() + grace).await;
        }
        self.end(id, if self.stubborn.lock().contains(&name) { 137 } else { 0 });
        self.wait_container(id).await
    }

    async fn signal_container(&self, _: &str, _: i32) -> Result<(), EngineError> {
        Ok(())
    }

    async fn remove_container(&self, id: &str, _: bool) -> Result<(), EngineError> {
        self.fails("remove container")?;
        self.held.lock().containers.remove(id);
        self.say("remove container".to_owned());
        Ok(())
    }

    async fn container(&self, id: &str) -> Result<ContainerStatus, EngineError> {
        self.held.lock().containers.get(id).cloned().ok_or_else(|| EngineError::not_found("no container"))
    }

    async fn containers(&self) -> Result<Vec<ContainerStatus>, EngineError> {
        Ok(self.held.lock().containers.values().cloned().collect())
    }

    async fn wait_container(&self, id: &str) -> Result<Exit, EngineError> {
        let mut changed = self.changed.subscribe();
        loop {
            if let ContainerState::Exited { exit, .. } = self.container(id).await?.state {
                return Ok(exit);
            }
            changed.changed().await.unwrap();
        }
    }

    /// `cat` gives its input back; `exit N` ends with N; `size` tells the first resize; others print their command.
    async fn exec(&self, _: &str, spec: ExecSpec) -> Result<Process, EngineError> {
        self.say(format!("exec {}", spec.command.join(" ")));
        let (stdin, mut input) = tokio::io::duplex(1024);
        let (resize, mut resized) = mpsc::channel::<TerminalSize>(4);
        let (exit, receiver) = oneshot::channel();
        let finished_at = self.clock.now();
        let stdout = async move {
            let words: Vec<&str> = spec.command.iter().map(String::as_str).collect();
            let mut code = 0;
            let text = match words.as_slice() {
                ["cat"] => {
                    let mut text = String::new();
                    input.read_to_string(&mut text).await.unwrap();
                    text
                }
                ["exit", number] => {
                    code = number.parse().unwrap();
                    String::new()
                }
                ["size"] => {
                    let size = resized.recv().await.unwrap();
                    format!("{}x{}", size.width, size.height)
                }
                words => words.join(" "),
            };
            let _ = exit.send(Ok(Exit {
                code,
                signal: 0,
                oom_killed: false,
                finished_at,
                message: String::new(),
            }));
            Ok(Bytes::from(text))
        };
        let io = ProcessIo {
            stdin: Some(Box::pin(stdin)),
            stdout: Some(futures::stream::once(stdout).boxed()),
            stderr: None,
            resize,
        };
        Ok(Process { io, exit: receiver, pid: 2 })
    }

    async fn attach(&self, id: &str) -> Result<Process, EngineError> {
        self.exec(id, ExecSpec { command: vec!["cat".to_owned()], ..ExecSpec::default() }).await
    }

    async fn resize_container(&self, _: &str, _: TerminalSize) -> Result<(), EngineError> {
        Ok(())
    }

    /// Port 7 is an echo; nobody listens elsewhere.
    async fn connect(&self, _: &str, port: u16) -> Result<Box<dyn Connection>, EngineError> {
        if port != 7 {
            return Err(EngineError::new(ErrorKind::Unreachable, "connection refused"));
        }
        let (near, far) = tokio::io::duplex(1024);
        let (mut read, mut write) = tokio::io::split(far);
        base::lifecycle::Context::detached("echo").spawn(async move {
            let _ = tokio::io::copy(&mut read, &mut write).await;
            let _ = tokio::io::AsyncWriteExt::shutdown(&mut write).await;
        });
        Ok(Box::new(near))
    }

    async fn log_path(&self, id: &str) -> Result<std::path::PathBuf, EngineError> {
        Ok(self.container(id).await?.log_path)
    }

    async fn stats(&self, _: &str) -> Result<Stats, EngineError> {
        Ok(Stats { cpu_usage_ns: 5, ..Stats::default() })
    }

    async fn update_resources(&self, id: &str, resources: Resources) -> Result<(), EngineError> {
        self.fails("update")?;
        let name = {
            let mut held = self.held.lock();
            let status = held.containers.get_mut(id).ok_or(EngineError::not_found("no container"))?;
            let had = std::mem::take(&mut status.spec.resources);
            status.spec.resources = resources.over(had);
            status.spec.name.clone()
        };
        self.say(format!("update {name}"));
        Ok(())
    }

    async fn limit_group(&self, path: &str, resources: Resources) -> Result<(), EngineError> {
        self.groups.lock().insert(path.to_owned(), resources);
        self.changed.send_modify(|count| *count += 1);
        Ok(())
    }

    async fn events(&self) -> BoxStream<'static, Result<ContainerEvent, EventsLost>> {
        let receiver = self.events.subscribe();
        futures::stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.ok().map(|event| (Ok(event), receiver))
        })
        .boxed()
    }
}

/// Images that are there, by name.
#[derive(Default)]
pub(crate) struct FakeImages {
    pub(crate) tags: Mutex<BTreeMap<String, (String, ImageOrigin)>>,
    pub(crate) pulls: Mutex<Vec<String>>,
    /// Who runs containers of all images.
    pub(crate) user: Mutex<String>,
    /// As whom images of `private.test` were asked for; the user `right` may have them.
    pub(crate) users: Mutex<Vec<String>>,
    /// By whom images are held.
    pub(crate) held: Mutex<Vec<(String, String)>>,
}

#[async_trait]
impl Images for FakeImages {
    async fn mount_read_only(
        &self,
        holder: &str,
        image: &str,
        target: &std::path::Path,
    ) -> Result<(), EngineError> {
        assert!(target.is_dir());
        self.held.lock().push((holder.to_owned(), image.to_owned()));
        Ok(())
    }

    async fn release(&self, holder: &str) -> Result<(), EngineError> {
        self.held.lock().retain(|(known, _)| known != holder);
        Ok(())
    }

    async fn held(&self) -> Result<Vec<(String, String)>, EngineError> {
        Ok(self.held.lock().clone())
    }

    fn name(&self, reference: &str) -> Result<ImageName, EngineError> {
        let untagged = reference.rsplit_once(':').map_or(reference, |(name, _)| name);
        let (registry, repository) = untagged.split_once('/').unwrap_or(("docker.io", untagged));
        if repository.is_empty() || repository.contains(|letter: char| letter.is_ascii_uppercase()) {
            return Err(EngineError::invalid("no name of an image"));
        }
        let (registry, repository) = (registry.to_owned(), repository.to_owned());
        Ok(ImageName { registry, repository, tag: None, digest: None })
    }

    async fn resolve(&self, reference: &str) -> Result<Resolution, EngineError> {
        let tags = self.tags.lock().clone();
        let known = tags.get(reference).or_else(|| tags.values().find(|(id, _)| id == reference)).cloned();
        let (id, origin) = known.ok_or_else(|| EngineError::not_found("no such image"))?;
        let image = Image {
            id,
            manifest_digest: String::new(),
            tags: BTreeMap::from([(reference.to_owned(), origin)]),
            repo_digests: Vec::new(),
            size_bytes: 7,
            created: None,
            architecture: "amd64".to_owned(),
            config: ImageConfig { user: self.user.lock().clone(), ..ImageConfig::default() },
            config_json: String::new(),
            diff_ids: Vec::new(),
            layer_bytes: Vec::new(),
        };
        Ok(Resolution { reference: reference.to_owned(), image, origin })
    }

    async fn list(&self) -> Result<Vec<Image>, EngineError> {
        Ok(Vec::new())
    }

    async fn pull(&self, reference: &str, auth: Option<RegistryAuth>) -> Result<ProgressStream, EngineError> {
        self.pulls.lock().push(reference.to_owned());
        if reference.starts_with("private.test/") {
            let user = auth.map_or_else(|| "nobody".to_owned(), |auth| auth.username);
            self.users.lock().push(user.clone());
            if user != "right" {
                return Err(EngineError::new(ErrorKind::Denied, "unauthorized: authentication required"));
            }
        } else if !reference.starts_with("registry.test/") {
            return Err(EngineError::new(ErrorKind::Unreachable, "registry not reachable"));
        }
        self.tags.lock().insert(reference.to_owned(), ("sha256:pulled".to_owned(), ImageOrigin::Registry));
        Ok(futures::stream::empty().boxed())
    }

    async fn push(&self, _: &str, _: Option<RegistryAuth>) -> Result<ProgressStream, EngineError> {
        Err(EngineError::invalid("not here"))
    }

    async fn tag(&self, _: &str, _: &str) -> Result<(), EngineError> {
        Err(EngineError::invalid("not here"))
    }

    async fn remove(&self, _: &str, _: bool) -> Result<Vec<(RemovalKind, String)>, EngineError> {
        Err(EngineError::invalid("not here"))
    }

    async fn load(&self, _: ByteStream) -> Result<Vec<String>, EngineError> {
        Err(EngineError::invalid("not here"))
    }

    async fn import(&self, _: ByteStream, _: &str) -> Result<String, EngineError> {
        Err(EngineError::invalid("not here"))
    }

    async fn save(&self, _: &[String]) -> Result<ByteStream, EngineError> {
        Err(EngineError::invalid("not here"))
    }
}
