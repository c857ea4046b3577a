//! The engine: what it holds, how it opens, how it takes its shims back.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use base::lifecycle::Tasks;
use base::spans::{Open, Span, Spans};
use engine_api::{
    ContainerEvent, ContainerEventKind, ContainerSpec, ContainerState, EngineError, Exit, SandboxState,
    SandboxStatus,
};
use jiff::Timestamp;
use parking_lot::{Mutex, RwLock};
use shim::{Event, ExitRecord, FromShim, State};
use sys::cgroup::{CgroupHost, Group};
use sys::process::Pidfd;
use tokio::sync::{broadcast, watch};

use crate::cdi::Registry;
use crate::containers::failed_exit;
use crate::handlers::Handlers;
use crate::id_ranges::IdRanges;
use crate::layout::{Layout, namespace, shared_memory};
use crate::link::{Link, Outcome, Waiting, Welcome};
use crate::records::{self, ContainerRecord, SandboxRecord};
use crate::stops::Stops;

/// How many events a receiver may be behind.
const EVENTS_KEPT: usize = 1024;
/// How long killed processes may take to end.
pub(crate) const KILL_MAX: Duration = Duration::from_secs(20);
/// How long a shim may take for its answer where something has to end that can be ended without it.
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(5);
/// How long the engine waits for starts that an earlier one asked for, before it goes on without knowing their end.
const STARTS_MAX: Duration = Duration::from_secs(10);
/// How long a shim whose connection ended may take to end itself, before it counts as living.
const SHIM_END_MAX: Duration = Duration::from_secs(2);

/// What an engine is made from.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Data that survives a reboot: records and logs.
    pub data_dir: PathBuf,
    /// Run-time state: sockets, namespaces, root file systems. Only this engine's.
    pub run_dir: PathBuf,
    /// The cgroup below which all of this engine's are: one name, such as `skiff`. Only this engine's.
    pub cgroup_root: String,
    /// Programs of further OCI runtimes, by the names under which sandboxes ask for them.
    pub runtimes: BTreeMap<String, PathBuf>,
    /// Where vendors describe devices (CDI); the later ones count more.
    pub cdi_directories: Vec<PathBuf>,
}

/// A sandbox.
pub(crate) struct Sandbox {
    pub(crate) record: Mutex<SandboxRecord>,
    /// The connection to its shim, with a handle on the shim's process.
    pub(crate) shim: Mutex<Option<(Arc<Link>, Arc<Pidfd>)>>,
    /// Held while it is made, stopped or removed.
    pub(crate) gate: tokio::sync::Mutex<()>,
    /// What making it and starting its containers took.
    pub(crate) steps: Arc<Spans>,
}

/// A container.
pub(crate) struct Container {
    pub(crate) record: watch::Sender<ContainerRecord>,
    pub(crate) log_path: PathBuf,
    /// Held while it is started, stopped or removed.
    pub(crate) gate: Arc<tokio::sync::Mutex<()>>,
    /// Who wants it to end, and by when.
    pub(crate) stops: Stops,
    /// The shim has to be told of it before it can be started.
    pub(crate) unknown_to_shim: AtomicBool,
}

/// Sandboxes and containers on this machine, behind [`engine_api::Runtime`].
///
/// Each sandbox belongs to a shim, a process of its own, which keeps the containers' processes, streams and exits.
/// Dropping the engine (or killing its process) leaves them alone; opening it again takes them back.
pub struct Engine {
    me: Weak<Engine>,
    pub(crate) layout: Layout,
    pub(crate) cgroup_root: String,
    pub(crate) store: image::Store,
    pub(crate) cgroups: CgroupHost,
    /// The kernel is being prepared for moves between cgroups.
    moves_prepared: Arc<AtomicBool>,
    pub(crate) shim_program: PathBuf,
    pub(crate) handlers: Handlers,
    pub(crate) cdi: Registry,
    pub(crate) id_ranges: IdRanges,
    pub(crate) boot_id: String,
    pub(crate) sandboxes: RwLock<HashMap<String, Arc<Sandbox>>>,
    pub(crate) containers: RwLock<HashMap<String, Arc<Container>>>,
    events: broadcast::Sender<ContainerEvent>,
    pub(crate) tasks: Tasks,
}

impl Engine {
    /// Opens the engine: takes back the sandboxes whose shims live, and clears up after those whose do not.
    pub async fn open(config: EngineConfig, store: image::Store) -> Result<Arc<Self>, EngineError> {
        let failed = |what: &'static str| move |error: std::io::Error| EngineError::internal(what, &error);
        let mut layout = Layout { data: config.data_dir, run: config.run_dir };
        for dir in [layout.sandboxes(), layout.containers(), layout.run_sandboxes()] {
            std::fs::create_dir_all(dir).map_err(failed("making the engine's directories"))?;
        }
        // As the table of mounts shows them.
        for dir in [&mut layout.data, &mut layout.run] {
            *dir = dir.canonicalize().map_err(failed("finding the engine's directories"))?;
        }
        let shim_program = crate::embed::install(&layout.run).map_err(failed("installing the shim"))?;
        let cgroups = CgroupHost::detect().map_err(failed("looking for cgroups"))?;
        let boot_id = sys::host::boot_id().map_err(failed("reading the boot id"))?;
        let id_ranges = IdRanges::new(layout.id_ranges());
        if !cgroups.limits_memory() && sys::entrance::in_user_namespace() {
            tracing::warn!(
                "no cgroups with limits were given to this user: nothing is limited, and no use is counted"
            );
        }
        let handlers = Handlers::open(config.runtimes).await;
        let engine = Arc::new_cyclic(|me| Self {
            me: me.clone(),
            layout,
            cgroup_root: config.cgroup_root,
            store,
            cgroups,
            moves_prepared: Arc::default(),
            shim_program,
            handlers,
            cdi: Registry::new(config.cdi_directories),
            id_ranges,
            boot_id,
            sandboxes: RwLock::default(),
            containers: RwLock::default(),
            events: broadcast::Sender::new(EVENTS_KEPT),
            tasks: Tasks::default(),
        });
        engine.take_back().await?;
        Ok(engine)
    }

    /// Reads every record and connects to the shims.
    async fn take_back(&self) -> Result<(), EngineError> {
        for path in entries(&self.layout.sandboxes()) {
            if let Some(record) = records::load::<SandboxRecord>(&path) {
                let sandbox = Sandbox {
                    record: Mutex::new(record.clone()),
                    shim: Mutex::new(None),
                    gate: tokio::sync::Mutex::new(()),
                    steps: Arc::default(),
                };
                self.sandboxes.write().insert(record.spec.id, Arc::new(sandbox));
            }
        }
        for path in entries(&self.layout.containers()) {
            if let Some(record) = records::load::<ContainerRecord>(&path.join("container.json")) {
                let id = record.spec.id.clone();
                let log_path = self.log_file(&record.spec);
                let container = Container {
                    record: watch::Sender::new(record),
                    log_path,
                    gate: Arc::default(),
                    stops: Stops::default(),
                    unknown_to_shim: AtomicBool::new(false),
                };
                self.containers.write().insert(id, Arc::new(container));
            }
        }
        let ids: Vec<String> = self.sandboxes.read().keys().cloned().collect();
        // Beside each other: one whose shim does not answer holds up no other.
        futures::future::join_all(ids.iter().map(|id| self.take_back_sandbox(id))).await;
        self.await_starts().await;
        self.clear_unknown();
        self.free_unknown_ids();
        Ok(())
    }

    /// Waits for the starts that an earlier engine asked for: those who use this one shall find what runs running. One that
    /// hangs is not waited for; it keeps its container's gate closed.
    async fn await_starts(&self) {
        let sandboxes: Vec<Arc<Sandbox>> = self.sandboxes.read().values().cloned().collect();
        let links = sandboxes.iter().filter_map(|sandbox| Some(sandbox.shim.lock().as_ref()?.0.clone()));
        let starting: Vec<_> = links.flat_map(|link| link.held()).collect();
        let settled = starting.iter().filter_map(|id| self.find_container(id)).map(|container| async move {
            let mut watched = container.record.subscribe();
            let _ = watched.wait_for(|record| record.state != ContainerState::Created).await;
        });
        if tokio::time::timeout(STARTS_MAX, futures::future::join_all(settled)).await.is_err() {
            tracing::warn!(containers = ?starting, "containers are still being started");
        }
    }

    /// Ranges of ids of sandboxes of which nothing is left. One whose record cannot be read may still run.
    fn free_unknown_ids(&self) {
        // A range without a sandbox was being taken when the engine ended.
        let lives = |id: &str| {
            !id.is_empty() && (self.find_sandbox(id).is_some() || self.layout.run_sandbox(id).exists())
        };
        if let Err(error) = self.id_ranges.retain(lives) {
            tracing::warn!(%error, "ranges of user ids that nobody has any more could not be freed");
        }
    }

    async fn take_back_sandbox(&self, id: &str) {
        let Some(sandbox) = self.find_sandbox(id) else { return };
        let record = sandbox.record.lock().clone();
        if record.stopped {
            return;
        }
        let same_boot = record.boot_id == self.boot_id;
        let connected = if same_boot { Link::open(&self.layout.run_sandbox(id)).await.ok() } else { None };
        match connected {
            Some((link, welcome)) => self.adopt(id, &sandbox, link, welcome),
            None => {
                let why = if same_boot { "the sandbox's shim died" } else { "the machine was restarted" };
                self.bury(id, &sandbox, why).await;
            }
        }
    }

    /// Takes a living shim: learns what happened to its containers meanwhile and follows it from now on.
    pub(crate) fn adopt(&self, id: &str, sandbox: &Arc<Sandbox>, link: Link, welcome: Welcome) {
        let link = Arc::new(link);
        add_steps(&sandbox.steps, "", &welcome.steps);
        // The connection lives, so the number still names the shim.
        match Pidfd::open(welcome.pid) {
            Ok(pidfd) => {
                let start_time = sys::process::start_time(welcome.pid).unwrap_or(0);
                sandbox.record.lock().shim = Some((welcome.pid, start_time));
                *sandbox.shim.lock() = Some((link.clone(), Arc::new(pidfd)));
            }
            Err(error) => tracing::warn!(sandbox = id, %error, "the shim ended while it was taken back"),
        }
        let known: HashSet<String> = welcome.containers.iter().map(|report| report.id.clone()).collect();
        for report in welcome.containers {
            match report.state {
                State::Created => {}
                State::Starting => {
                    if let Some(container) = self.find_container(&report.id)
                        && let Ok(gate) = container.gate.clone().try_lock_owned()
                    {
                        link.hold(&report.id, gate);
                    }
                }
                State::Running { pid, started_at } => self.on_started(&report.id, pid, started_at),
                State::Exited { exit, .. } => self.on_exited(&report.id, exit_of(exit)),
            }
        }
        // An engine that ended in the middle of making a container wrote its record and told the shim nothing. It did not
        // run: whoever starts it now has it made to the end first.
        for container in self.containers_of(id) {
            let made = known.contains(&container.record.borrow().spec.id);
            container.unknown_to_shim.store(!made, Ordering::Relaxed);
        }
        let (me, id) = (self.me.clone(), id.to_owned());
        self.tasks.spawn(async move { follow(me, id, link).await });
    }

    /// Something started: the only place where a container becomes running.
    fn on_started(&self, id: &str, pid: u32, started_at: Timestamp) {
        let Some(container) = self.find_container(id) else { return };
        let new = ContainerState::Running { pid, started_at };
        if container.record.borrow().state != new {
            self.set_state(&container, new);
            self.tell(&container, ContainerEventKind::Started);
        }
    }

    /// A container has ended: the only place where a running one becomes exited.
    pub(crate) fn on_exited(&self, id: &str, exit: Exit) {
        let Some(container) = self.find_container(id) else { return };
        let state = container.record.borrow().state.clone();
        let started_at = match state {
            ContainerState::Exited { .. } => return,
            ContainerState::Running { started_at, .. } => Some(started_at),
            ContainerState::Created => None,
        };
        self.set_state(&container, ContainerState::Exited { started_at, exit: exit.clone() });
        self.tell(&container, ContainerEventKind::Exited(exit));
    }

    /// Changes a container's state, on disk and for those who wait.
    pub(crate) fn set_state(&self, container: &Container, state: ContainerState) {
        container.record.send_modify(|record| record.state = state);
        self.save_container(container);
    }

    /// Writes a container's record. A failure is told, not returned: what it says has happened.
    pub(crate) fn save_container(&self, container: &Container) {
        let record = container.record.borrow().clone();
        if let Err(error) = records::save(&self.layout.container_record(&record.spec.id), &record) {
            tracing::warn!(container = record.spec.id, %error, "a container's record could not be written");
        }
    }

    pub(crate) fn tell(&self, container: &Container, kind: ContainerEventKind) {
        let (sandbox_id, container_id) = {
            let record = container.record.borrow();
            (record.spec.sandbox_id.clone(), record.spec.id.clone())
        };
        self.tell_event(ContainerEvent { sandbox_id, container_id, kind });
    }

    fn on_warning(&self, sandbox: &str, container: &str, message: String) {
        tracing::warn!(sandbox, container, message, "the shim warns");
        if let Some(container) = self.find_container(container) {
            self.tell(&container, ContainerEventKind::Warning(message));
        }
    }

    pub(crate) fn tell_event(&self, event: ContainerEvent) {
        // Nobody may be listening.
        let _ = self.events.send(event);
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<ContainerEvent> {
        self.events.subscribe()
    }

    /// The connection to a shim ended: the shim died, or it cut this engine off for not reading.
    async fn on_link_lost(&self, id: &str) {
        let Some(sandbox) = self.find_sandbox(id) else { return };
        let _gate = sandbox.gate.lock().await;
        let Some((_, pidfd)) = sandbox.shim.lock().take() else { return };
        if tokio::time::timeout(SHIM_END_MAX, crate::process::ended(&pidfd)).await.is_err() {
            match Link::open(&self.layout.run_sandbox(id)).await {
                Ok((link, welcome)) => return self.adopt(id, &sandbox, link, welcome),
                Err(error) => tracing::warn!(sandbox = id, %error, "a living shim cannot be reached"),
            }
        }
        // Told before the containers' ends: whoever hears of those must not start anything here again.
        self.mark_stopped(&sandbox);
        let sandbox_id = id.to_owned();
        let kind = ContainerEventKind::SandboxDied;
        self.tell_event(ContainerEvent { sandbox_id, container_id: String::new(), kind });
        self.bury(id, &sandbox, "the sandbox's shim died").await;
    }

    /// A sandbox without its shim: what still runs is killed, its containers count as ended, what it held is let go.
    async fn bury(&self, id: &str, sandbox: &Sandbox, why: &str) {
        tracing::warn!(sandbox = id, why, "a sandbox is over");
        self.mark_stopped(sandbox);
        let record = sandbox.record.lock().clone();
        let (me, killed) = (self.me.clone(), self.group_path(&record.spec));
        let run_sandbox = self.layout.run_sandbox(id);
        let cleared = self
            .blocking("clearing up after a shim", move || {
                let Some(engine) = me.upgrade() else { return Ok(()) };
                // One that lives and cannot be reached, or does not answer.
                engine.kill_shim(&record)?;
                engine.clear_sandbox(&engine.cgroups.group(&killed), &run_sandbox)
            })
            .await;
        if let Err(error) = cleared {
            tracing::warn!(sandbox = id, %error, "a sandbox could not be cleared up");
        }
        for container in self.containers_of(id) {
            let spec = container.record.borrow().spec.clone();
            // One that was never started cannot be any more: it counts as ended too, or its users would wait for it.
            if matches!(container.record.borrow().state, ContainerState::Exited { .. }) {
                continue;
            }
            self.on_exited(&spec.id, self.recorded_exit(&spec).unwrap_or_else(|| killed_exit(why)));
        }
    }

    /// The end of a container as its shim wrote it down: it may have seen it before its own.
    pub(crate) fn recorded_exit(&self, spec: &ContainerSpec) -> Option<Exit> {
        let file = self.layout.bundle(&spec.sandbox_id, &spec.id).join(shim::EXIT_FILE);
        shim::decode::<ExitRecord>(&std::fs::read(file).ok()?).ok().map(exit_of)
    }

    /// Kills the shim that a record names, if its number still is that process's. Blocks.
    pub(crate) fn kill_shim(&self, record: &SandboxRecord) -> std::io::Result<()> {
        let Some((pid, start_time)) = record.shim.filter(|_| record.boot_id == self.boot_id) else {
            return Ok(());
        };
        // Opened first: what started at that time then is what the handle names.
        let Ok(pidfd) = Pidfd::open(pid) else { return Ok(()) };
        if sys::process::start_time(pid).ok() != Some(start_time) {
            return Ok(());
        }
        // It may end on its own meanwhile.
        let _ = pidfd.signal(9);
        if pidfd.wait(KILL_MAX)? {
            return Ok(());
        }
        Err(std::io::Error::other(format!("the shim (process {pid}) did not end after SIGKILL")))
    }

    /// Tells that a limit does not hold. Of a user without root that was said once, for all.
    pub(crate) fn warn_of_limits(&self, of: &str, warnings: Vec<String>) {
        if self.cgroups.limits_memory() || !sys::entrance::in_user_namespace() {
            for warning in warnings {
                tracing::warn!(of, warning, "a limit cannot be set on this host");
            }
        }
    }

    /// Kills a sandbox's processes; `shim` is spared, which where there are groups is in another. Blocks.
    pub(crate) fn kill_processes(
        &self,
        group: &Group<'_>,
        run_sandbox: &std::path::Path,
        shim: Option<u32>,
    ) -> std::io::Result<()> {
        match self.cgroups.has_groups() {
            true => group.kill(KILL_MAX),
            false => crate::ungrouped::kill(run_sandbox, shim, KILL_MAX),
        }
    }

    /// Kills a sandbox's processes and lets go of its namespaces and shared memory. Blocks. The containers' root file
    /// systems stay until they are removed.
    pub(crate) fn clear_sandbox(
        &self,
        group: &Group<'_>,
        run_sandbox: &std::path::Path,
    ) -> std::io::Result<()> {
        let killed = self.kill_processes(group, run_sandbox, None);
        let removed = killed.and_then(|()| group.remove_up_to(&self.cgroup_root));
        for file in ["net", "ipc", "uts", "pid", "user"] {
            sys::mount::unmount(&namespace(run_sandbox, file))?;
        }
        for bundle in entries(run_sandbox) {
            crate::containers::let_go(&bundle)?;
        }
        sys::mount::unmount(&shared_memory(run_sandbox))?;
        removed
    }

    pub(crate) fn mark_stopped(&self, sandbox: &Sandbox) {
        let record = {
            let mut record = sandbox.record.lock();
            record.stopped = true;
            record.clone()
        };
        if let Err(error) = records::save(&self.layout.sandbox_record(&record.spec.id), &record) {
            tracing::warn!(sandbox = record.spec.id, %error, "a sandbox's record could not be written");
        }
    }

    /// Clears run-time directories that no record names: of an engine that was killed half-way through a removal. Where a
    /// shim answers, a record could not be read, and containers may run there.
    fn clear_unknown(&self) {
        for dir in entries(&self.layout.run_sandboxes()) {
            let known =
                dir.file_name().and_then(|id| id.to_str()).is_some_and(|id| self.find_sandbox(id).is_some());
            if known {
                continue;
            }
            if sys::seqpacket::connect(&dir, shim::SOCKET).is_ok() {
                let why = "a shim lives where no record of a sandbox can be read: it is left alone";
                tracing::error!(path = %dir.display(), why);
                continue;
            }
            if let Err(error) = clear_directory(&dir) {
                tracing::warn!(path = %dir.display(), %error, "a left-over directory could not be removed");
            }
        }
    }

    /// The cgroup of a sandbox, below every hierarchy's root.
    pub(crate) fn group_path(&self, spec: &engine_api::SandboxSpec) -> String {
        let parent = spec.cgroup_parent.trim_matches('/');
        let parts = [self.cgroup_root.as_str(), parent, spec.id.as_str()];
        parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/")
    }

    pub(crate) fn find_sandbox(&self, id: &str) -> Option<Arc<Sandbox>> {
        self.sandboxes.read().get(id).cloned()
    }

    pub(crate) fn find_container(&self, id: &str) -> Option<Arc<Container>> {
        self.containers.read().get(id).cloned()
    }

    pub(crate) fn sandbox_named(&self, id: &str) -> Result<Arc<Sandbox>, EngineError> {
        self.find_sandbox(id).ok_or_else(|| EngineError::not_found(format!("no sandbox {id}")))
    }

    pub(crate) fn container_named(&self, id: &str) -> Result<Arc<Container>, EngineError> {
        self.find_container(id).ok_or_else(|| EngineError::not_found(format!("no container {id}")))
    }

    /// A step of a container's start begins; it ends when the answer is dropped.
    pub(crate) fn step(&self, step: &'static str, of: &ContainerSpec) -> Open {
        self.find_sandbox(&of.sandbox_id).map_or_else(Open::unseen, |found| found.steps.open(step, &of.name))
    }

    /// What the shim tells of a container's start.
    fn add_start(&self, container: &str, steps: &[shim::Step]) {
        let Some(container) = self.find_container(container) else { return };
        let spec = container.record.borrow().spec.clone();
        if let Some(sandbox) = self.find_sandbox(&spec.sandbox_id) {
            add_steps(&sandbox.steps, &spec.name, steps);
        }
    }

    pub(crate) fn containers_of(&self, sandbox: &str) -> Vec<Arc<Container>> {
        let of_it = |container: &&Arc<Container>| container.record.borrow().spec.sandbox_id == sandbox;
        self.containers.read().values().filter(of_it).cloned().collect()
    }

    /// The connection to a sandbox's shim.
    pub(crate) fn link_of(&self, sandbox: &str) -> Result<Arc<Link>, EngineError> {
        let link = self.sandbox_named(sandbox)?.shim.lock().as_ref().map(|(link, _)| link.clone());
        link.ok_or_else(|| EngineError::conflict(format!("sandbox {sandbox} does not run")))
    }

    pub(crate) fn status_of(&self, sandbox: &Sandbox) -> SandboxStatus {
        let record = sandbox.record.lock();
        let netns = namespace(&self.layout.run_sandbox(&record.spec.id), "net");
        SandboxStatus {
            spec: record.spec.clone(),
            state: if record.stopped { SandboxState::NotReady } else { SandboxState::Ready },
            created_at: record.created_at,
            netns_path: if record.spec.host_network {
                "/proc/self/ns/net".to_owned()
            } else {
                netns.to_string_lossy().into_owned()
            },
        }
    }

    pub(crate) fn me(&self) -> Weak<Engine> {
        self.me.clone()
    }

    /// Runs blocking work of the engine's own off the asynchronous threads.
    pub(crate) async fn aside<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce(&Engine) -> Result<T, EngineError> + Send + 'static,
    ) -> Result<T, EngineError> {
        let me = self.me();
        let done = tokio::task::spawn_blocking(move || match me.upgrade() {
            Some(engine) => work(&engine),
            None => Err(EngineError::new(engine_api::ErrorKind::Internal, "the engine is closing")),
        });
        done.await.map_err(|error| EngineError::internal(what, &error))?
    }

    /// Passes an answer on. Where nobody waits for it any more, a start that failed is seen to, and a process that was
    /// executed for nobody is ended.
    fn answer(&self, link: &Arc<Link>, waiting: Waiting, outcome: Outcome) {
        let (starts, executes) = (waiting.starts.clone(), waiting.executes.clone());
        let failed = outcome.as_ref().err().cloned();
        if waiting.answer(outcome) {
            return;
        }
        match (starts, executes, failed) {
            (Some(container), _, Some(error)) => self.on_exited(&container, failed_exit(&error)),
            (_, Some(exec_id), failed) => {
                link.forget_exec(&exec_id);
                if failed.is_none() {
                    let link = link.clone();
                    self.tasks.spawn(async move {
                        // It may have ended by itself.
                        let _ = link.request(shim::Call::SignalExec { exec_id, signal: 9 }).await;
                    });
                }
            }
            _ => {}
        }
    }

    /// A shim will enter its cgroups in a moment.
    pub(crate) fn expect_moves(&self) {
        if self.moves_prepared.swap(true, Ordering::Relaxed) {
            return;
        }
        let (cgroups, prepared) = (self.cgroups.clone(), self.moves_prepared.clone());
        // Nobody waits for its end.
        drop(tokio::task::spawn_blocking(move || {
            cgroups.prepare_moves();
            prepared.store(false, Ordering::Relaxed);
        }));
    }

    /// A launcher will enter a container's cgroups in a moment.
    pub(crate) fn expect_moves_to_limits(&self) {
        if self.cgroups.limits_are_waited_for() {
            self.expect_moves();
        }
    }

    /// Runs blocking work off the asynchronous threads.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
    ) -> Result<T, EngineError> {
        match tokio::task::spawn_blocking(work).await {
            Ok(result) => result.map_err(|error| EngineError::internal(what, &error)),
            Err(error) => Err(EngineError::internal(what, &error)),
        }
    }
}

/// Keeps what a shim tells of the time that its steps took.
fn add_steps(kept: &Spans, of: &str, steps: &[shim::Step]) {
    for shim::Step { name, began_ns, ended_ns } in steps {
        kept.add(Span { step: name.clone(), of: of.to_owned(), began_ns: *began_ns, ended_ns: *ended_ns });
    }
}

/// Handles what a shim says until its connection ends. Holds the engine only while it handles something.
async fn follow(me: Weak<Engine>, sandbox: String, link: Arc<Link>) {
    while let Ok(Some((message, fds))) = link.receive().await {
        let Some(engine) = me.upgrade() else { return };
        match message {
            FromShim::Reply { id, result } => {
                let Some(waiting) = link.take(id) else { continue };
                if let (Some(container), Ok(shim::Answer::Started { pid, started_at, steps })) =
                    (&waiting.starts, &result)
                {
                    engine.on_started(container, *pid, *started_at);
                    engine.add_start(container, steps);
                }
                engine.answer(&link, waiting, result.map(|answer| (answer, fds)));
            }
            FromShim::Event(Event::Exited { id, exit }) => engine.on_exited(&id, exit_of(exit)),
            FromShim::Event(Event::Started { id, pid, started_at }) => {
                engine.on_started(&id, pid, started_at);
                link.let_go(&id);
            }
            FromShim::Event(Event::NotStarted { id, error }) => {
                engine.on_exited(&id, failed_exit(&error));
                link.let_go(&id);
            }
            FromShim::Event(Event::Warning { message, id }) => engine.on_warning(&sandbox, &id, message),
            FromShim::Event(Event::ExecExited { exec_id, exit }) => link.exec_ended(&exec_id, exit),
            FromShim::Welcome { .. } | FromShim::Failed { .. } => {}
        }
    }
    link.close();
    if let Some(engine) = me.upgrade() {
        engine.on_link_lost(&sandbox).await;
    }
}

/// A shim's record of an exit in the engine's words.
pub(crate) fn exit_of(record: ExitRecord) -> Exit {
    Exit {
        code: record.code,
        signal: record.signal,
        oom_killed: record.oom_killed,
        finished_at: record.finished_at,
        message: String::new(),
    }
}

/// The exit of a container whose end nobody saw.
pub(crate) fn killed_exit(why: &str) -> Exit {
    Exit { code: 137, signal: 9, oom_killed: false, finished_at: Timestamp::now(), message: why.to_owned() }
}

/// Unmounts what is mounted in a directory and removes it. Blocks. What is mounted there still, or anew, is left as it is.
pub(crate) fn clear_directory(dir: &std::path::Path) -> std::io::Result<()> {
    for target in sys::mount::MountTable::own()?.below(dir) {
        sys::mount::unmount(&target)?;
    }
    sys::removal::remove_tree(dir)
}

/// The paths in a directory.
fn entries(dir: &std::path::Path) -> Vec<PathBuf> {
    std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}
