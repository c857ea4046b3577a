//! Containers: made, started, stopped, removed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use engine_api::logs::FILE_BYTES_MAX;
use engine_api::{
    ContainerEventKind, ContainerSpec, ContainerState, ContainerStatus, Device, EngineError, ErrorKind, Exit,
    Identity, ImageConfig, Mount, MountPropagation, MountSource,
};
use jiff::Timestamp;
use serde_json::Value;
use shim::{Answer, Call, CallError, ContainerConfig, RUNTIME_DIR};
use sys::device_filter::Rule;
use sys::host::DeviceNode;
use sys::process::Pidfd;

use crate::cdi::Injected;
use crate::engine::{Container, Engine, KILL_MAX, SILENCE_MAX, clear_directory, killed_exit};
use crate::images::engine_error;
use crate::labels::{Labels, Modules};
use crate::layout::namespace;
use crate::mapping::Users;
use crate::oci::{self, Surroundings};
use crate::records::{self, ContainerRecord};
use crate::sandboxes::{check_below, check_id, limits_of};
use crate::stops::Stops;
use crate::user::{self, ResolvedUser};

// What is told of the logs is what the shim does.
const _: () = assert!(shim::LOG_FILES_KEPT + 1 == engine_api::logs::FILES_MAX);

/// In a bundle: the PID namespace of another container, held.
const PID_NAMESPACE: &str = "pidns";
/// In a bundle: what is mounted into the container with its ids mapped.
const MOUNTS: &str = "mounts";

impl Engine {
    pub(crate) async fn make_container(&self, spec: ContainerSpec) -> Result<ContainerStatus, EngineError> {
        check_id(&spec.id)?;
        if !spec.log_path.as_os_str().is_empty() {
            check_below("log path", &spec.log_path)?;
        }
        self.link_of(&spec.sandbox_id)?;
        self.expect_moves_to_limits();
        // What is wrong with profiles, labels and devices is told before anything is made.
        let checked = self.aside("checking the container", move |engine| {
            oci::seccomp(&spec, &engine.capabilities_of(&spec)?)?;
            engine.labels_of(&spec)?;
            engine.injected(&spec)?;
            Ok(spec)
        });
        let spec = checked.await?;
        let id = spec.id.clone();
        let log_path = self.log_file(&spec);
        let record = ContainerRecord {
            spec,
            created_at: Timestamp::now(),
            state: ContainerState::Created,
            identity: None,
        };
        let container = Arc::new(Container {
            record: tokio::sync::watch::Sender::new(record),
            log_path,
            gate: Arc::default(),
            stops: Stops::default(),
            unknown_to_shim: AtomicBool::new(false),
        });
        let _gate = container.gate.lock().await;
        {
            let mut containers = self.containers.write();
            if containers.contains_key(&id) {
                return Err(EngineError::conflict(format!("container {id} exists already")));
            }
            containers.insert(id.clone(), container.clone());
        }
        if let Err(error) = self.set_up(&container).await {
            if let Err(left) = self.clear_container(&container).await {
                tracing::warn!(container = id, error = %left, "a container that could not be made left something");
            }
            self.containers.write().remove(&id);
            return Err(error);
        }
        self.tell(&container, ContainerEventKind::Created);
        Ok(status(&container))
    }

    /// Record, root file system, and the shim's knowledge of it.
    async fn set_up(&self, container: &Arc<Container>) -> Result<(), EngineError> {
        let (me, of) = (self.me(), container.clone());
        let prepared = tokio::task::spawn_blocking(move || match me.upgrade() {
            Some(engine) => engine.prepare_container(&of),
            None => Err(EngineError::new(ErrorKind::Internal, "the engine is closing")),
        });
        prepared.await.map_err(|error| EngineError::internal("preparing the container", &error))??;
        self.introduce(container).await
    }

    /// The blocking part: everything on disk.
    fn prepare_container(&self, container: &Container) -> Result<(), EngineError> {
        let record = container.record.borrow().clone();
        let _step = self.step("engine: record and root file system", &record.spec);
        let dir = self.layout.container(&record.spec.id);
        std::fs::create_dir_all(&dir).map_err(|error| EngineError::internal("making directories", &error))?;
        records::save(&self.layout.container_record(&record.spec.id), &record)?;
        self.mount_rootfs(&record.spec)
    }

    /// Mounts a container's root file system, where it is not yet.
    fn mount_rootfs(&self, spec: &ContainerSpec) -> Result<(), EngineError> {
        let rootfs = self.rootfs(spec);
        let failed = |error: std::io::Error| EngineError::internal("mounting the root file system", &error);
        std::fs::create_dir_all(&rootfs).map_err(failed)?;
        if sys::mount::MountTable::own().map_err(failed)?.below(&rootfs).contains(&rootfs) {
            return Ok(());
        }
        let snapshot = self.store.prepare(&spec.id, &digest_of(spec)?).map_err(engine_error)?;
        let (lower, upper, work) = (&snapshot.lowerdirs, &snapshot.upper, &snapshot.work);
        let mount =
            |lower: &[PathBuf]| sys::mount::overlay(lower, upper, work, image::overlay::options(), &rootfs);
        match self.users_of(&spec.sandbox_id)? {
            None => mount(lower).map_err(failed),
            Some(users) => users.with_layers(&rootfs.with_file_name("layers"), lower, upper, mount),
        }
    }

    /// Makes the shim know the container, so that clients can attach before it starts.
    pub(crate) async fn introduce(&self, container: &Container) -> Result<(), EngineError> {
        let spec = container.record.borrow().spec.clone();
        let _step = self.step("engine: introduce it to the shim", &spec);
        let sandbox = self.sandbox_named(&spec.sandbox_id)?;
        let sandbox = sandbox.record.lock().spec.clone();
        let group = self.cgroups.group(&format!("{}/{}", self.group_path(&sandbox), spec.id));
        let config = ContainerConfig {
            id: spec.id.clone(),
            bundle: self.layout.bundle(&spec.sandbox_id, &spec.id),
            log: container.log_path.clone(),
            log_max_bytes: if spec.log_max_bytes == 0 { FILE_BYTES_MAX } else { spec.log_max_bytes },
            terminal: spec.terminal,
            stdin: spec.stdin,
            stdin_once: spec.stdin_once,
            members: group.members_file(),
            oom_events: group.oom_file(),
            runtime: self.handlers.program(&sandbox.runtime_handler)?,
            users: sandbox.own_users,
            cgroup_entrances: group.entrances_to_limits(),
        };
        self.link_of(&spec.sandbox_id)?.request(Call::Create(config)).await?;
        container.unknown_to_shim.store(false, Ordering::Relaxed);
        Ok(())
    }

    pub(crate) async fn run_container(&self, id: &str) -> Result<ContainerStatus, EngineError> {
        let container = self.container_named(id)?;
        let _gate = container.gate.lock().await;
        let (spec, state) = {
            let record = container.record.borrow();
            (record.spec.clone(), record.state.clone())
        };
        if matches!(state, ContainerState::Running { .. }) {
            return Ok(status(&container));
        }
        let link = self.link_of(&spec.sandbox_id)?;
        if link.is_starting(id) {
            return Err(EngineError::conflict(format!("container {id} is being started")));
        }
        let unknown = container.unknown_to_shim.load(Ordering::Relaxed);
        if unknown || matches!(state, ContainerState::Exited { .. }) {
            self.introduce(&container).await?;
        }
        if let Err(error) = self.write_bundle(&container).await {
            self.on_exited(id, failed_exit(&CallError::new(error.message.clone())));
            return Err(error);
        }
        let _step = self.step("engine: have the shim start it", &spec);
        match link.call(Call::Start { id: id.to_owned() }, Vec::new()).await? {
            Ok((Answer::Started { .. }, _)) => Ok(status(&container)),
            Ok(_) => {
                Err(EngineError::new(ErrorKind::Internal, "the shim answered a start with something else"))
            }
            Err(error) => {
                self.on_exited(id, failed_exit(&error));
                let message = format!("container {} could not be started: {}", spec.name, error.message);
                Err(EngineError::new(ErrorKind::Invalid, message))
            }
        }
    }

    /// Cgroup and OCI bundle, fresh for each start.
    async fn write_bundle(&self, container: &Arc<Container>) -> Result<(), EngineError> {
        let (me, of) = (self.me(), container.clone());
        let written = tokio::task::spawn_blocking(move || match me.upgrade() {
            Some(engine) => {
                let spec = of.record.borrow().spec.clone();
                let identity = engine.write_bundle_now(&spec)?;
                of.record.send_modify(|record| record.identity = Some(identity));
                Ok(())
            }
            None => Err(EngineError::new(ErrorKind::Internal, "the engine is closing")),
        });
        written.await.map_err(|error| EngineError::internal("writing the bundle", &error))?
    }

    /// Tells who the first process will be.
    fn write_bundle_now(&self, spec: &ContainerSpec) -> Result<Identity, EngineError> {
        let failed = |what: &'static str| move |error: std::io::Error| EngineError::internal(what, &error);
        let sandbox = self.sandbox_named(&spec.sandbox_id)?.record.lock().spec.clone();
        let path = format!("{}/{}", self.group_path(&sandbox), spec.id);
        let step = self.step("engine: cgroup", spec);
        let group = self.cgroups.group(&path);
        let devices = devices_of(spec)?;
        let injected = self.injected(spec)?;
        let given = devices.iter().map(|(node, given)| Rule::device(node, &given.access));
        let described = injected.nodes.iter().filter(|of| !of.access.is_empty());
        let rules: Vec<Rule> = given.chain(described.map(|of| Rule::device(&of.node, &of.access))).collect();
        let made = if spec.security.privileged { group.create() } else { group.create_confined(&rules) };
        made.map_err(failed("making the container's cgroup"))?;
        let limits = limits_of(&spec.resources);
        let warnings = group.apply(&limits).map_err(failed("setting the container's limits"))?;
        self.warn_of_limits(&spec.id, warnings);
        drop(step);
        let _step = self.step("engine: bundle", spec);
        self.mount_rootfs(spec)?;
        let bundle = self.layout.bundle(&spec.sandbox_id, &spec.id);
        records::remove_dir(&bundle.join(RUNTIME_DIR))?;
        records::remove(&bundle.join(shim::EXIT_FILE))?;
        let document = self.document(spec, &sandbox, &path, (&devices, &injected))?;
        let bytes =
            serde_json::to_vec(&document).map_err(|error| EngineError::internal("writing OCI", &error))?;
        sys::files::write_atomic(&bundle.join("config.json"), &bytes)
            .map_err(failed("writing the bundle"))?;
        Ok(oci::identity(&document))
    }

    fn document(
        &self,
        spec: &ContainerSpec,
        sandbox: &engine_api::SandboxSpec,
        cgroup_path: &str,
        (given, injected): (&[(DeviceNode, Device)], &Injected),
    ) -> Result<Value, EngineError> {
        let rootfs = self.rootfs(spec);
        let image = self.image_config(spec)?;
        let user = self.user_of(spec, &image)?;
        if spec.user.must_not_be_root && user.uid == 0 {
            return Err(EngineError::invalid(
                "container has runAsNonRoot and image will run as root: give a user other than 0",
            ));
        }
        let users = self.users_of(&spec.sandbox_id)?;
        let first = users.as_ref().map_or(0, |users| users.range.first);
        let cwd = oci::working_dir(spec, &image);
        let owner = (first.saturating_add(user.uid), first.saturating_add(user.gid));
        sys::files::create_dir_in_root(&rootfs, &cwd, owner).map_err(|error| {
            EngineError::internal(&format!("making the directory {}", cwd.display()), &error)
        })?;
        let capabilities = self.capabilities_of(spec)?;
        let mut devices = if spec.security.privileged {
            sys::host::device_nodes(Path::new("/dev"))
                .map_err(|error| EngineError::internal("reading /dev", &error))?
        } else {
            Vec::new()
        };
        // What is mounted at its place is there already.
        devices.retain(|node| {
            let mounted = spec.mounts.iter().any(|mount| mount.target == node.path);
            !mounted && given.iter().all(|(_, device)| device.path != node.path)
        });
        let run_sandbox = self.layout.run_sandbox(&spec.sandbox_id);
        let around = Surroundings {
            sandbox,
            image: &image,
            user: &user,
            capabilities: &capabilities,
            seccomp: oci::seccomp(spec, &capabilities)?,
            labels: &self.labels_of(spec)?,
            rootfs: &rootfs,
            run_sandbox: &run_sandbox,
            cgroup_path,
            cgroup_directories: &self.cgroups.group(cgroup_path).v1_directories(),
            users: users.as_ref().map(|users| (users.path.clone(), users.range)),
            pid_namespace: self.pid_namespace(spec, sandbox, &run_sandbox)?,
            devices: &devices,
            given,
            injected,
            device_rules: self.cgroups.has_v1_devices(),
            oom_score_adj: possible_oom_score(spec.resources.oom_score_adj, spec),
            shows_host_proc: sys::entrance::in_user_namespace(),
            has_tty_group: sys::users::Ids::own().group_or_root(TTY_GROUP) == TTY_GROUP,
        };
        let nodes = given.iter().map(|(node, device)| bound_device(node, device));
        let mounts = spec.mounts.iter().cloned().chain(nodes).collect();
        let (mounts, options): (Vec<Mount>, Vec<_>) =
            with_injected(mounts, injected, users.is_some()).into_iter().unzip();
        let mounts = mounts_followed(&rootfs, &mounts)
            .map_err(|error| EngineError::internal("finding the container's mount points", &error))?;
        let bundle = self.layout.bundle(&spec.sandbox_id, &spec.id);
        let mounts = match &users {
            Some(users) => users.map_mounts(&bundle.join(MOUNTS), mounts)?,
            None => mounts,
        };
        let env = spec.env.iter().chain(&injected.env).cloned().collect();
        let mut document = oci::document(&ContainerSpec { mounts, env, ..spec.clone() }, &options, &around)?;
        if !crate::mapping::may_set_groups() {
            oci::leave_groups(&mut document["process"]);
        }
        Ok(document)
    }

    /// What a container gets with devices that vendors describe. Blocks.
    fn injected(&self, spec: &ContainerSpec) -> Result<Injected, EngineError> {
        let sandbox = self.sandbox_named(&spec.sandbox_id)?;
        let built_in = sandbox.record.lock().spec.runtime_handler.is_empty();
        self.cdi.resolve(&spec.cdi_devices, built_in)
    }

    /// The PID namespace that a container joins in place of its own.
    fn pid_namespace(
        &self,
        spec: &ContainerSpec,
        sandbox: &engine_api::SandboxSpec,
        run_sandbox: &Path,
    ) -> Result<Option<PathBuf>, EngineError> {
        if let Some(target) = &spec.namespaces.pid_of {
            return self.hold_pid_namespace(spec, sandbox, target).map(Some);
        }
        Ok((sandbox.share_pid && !sandbox.host_pid).then(|| namespace(run_sandbox, "pid")))
    }

    /// The PID namespace of another container of the sandbox, held by the bundle: its first process may end, and its
    /// number be another's, before the namespace is joined.
    fn hold_pid_namespace(
        &self,
        spec: &ContainerSpec,
        sandbox: &engine_api::SandboxSpec,
        target: &str,
    ) -> Result<PathBuf, EngineError> {
        let gone =
            || EngineError::conflict("the container whose PID namespace is to be joined does not run here");
        let record = self.container_named(target)?.record.borrow().clone();
        let ContainerState::Running { pid, .. } = record.state else { return Err(gone()) };
        if record.spec.sandbox_id != spec.sandbox_id {
            return Err(gone());
        }
        let group = self.cgroups.group(&format!("{}/{target}", self.group_path(sandbox)));
        let process = Pidfd::open(pid).map_err(|_| gone())?;
        // From here on the number is this process's as long as that lives; it is the container's if its group has it.
        // Without groups its record has to do, which the shim's word changes as soon as it ends.
        let is_member = || group.processes().is_ok_and(|members| members.contains(&pid));
        if self.cgroups.has_groups() && !is_member() {
            return Err(gone());
        }
        let pin = self.layout.bundle(&spec.sandbox_id, &spec.id).join(PID_NAMESPACE);
        let held = sys::mount::unmount(&pin)
            .and_then(|()| sys::ns::pin_of(&process, pid, sys::ns::Namespace::Pid, &pin));
        held.map(|()| pin).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => gone(),
            _ => EngineError::internal("holding the PID namespace to be joined", &error),
        })
    }

    pub(crate) fn capabilities_of(&self, spec: &ContainerSpec) -> Result<BTreeSet<String>, EngineError> {
        crate::capabilities::resolve(&spec.security, false, sys::host::has_capability)
    }

    fn labels_of(&self, spec: &ContainerSpec) -> Result<Labels, EngineError> {
        let sandbox = self.sandbox_named(&spec.sandbox_id)?;
        let built_in = sandbox.record.lock().spec.runtime_handler.is_empty();
        Modules::detect().of(&spec.security, built_in)
    }

    /// The user namespace of a sandbox.
    fn users_of(&self, sandbox_id: &str) -> Result<Option<Users>, EngineError> {
        let range = self.sandbox_named(sandbox_id)?.record.lock().users;
        let path = namespace(&self.layout.run_sandbox(sandbox_id), "user");
        Ok(range.map(|range| Users { path, range }))
    }

    fn user_of(&self, spec: &ContainerSpec, image: &ImageConfig) -> Result<ResolvedUser, EngineError> {
        let rootfs = self.rootfs(spec);
        let mut user = user::lookup(&rootfs, &user::over_image(&spec.user.spec, &image.user))?;
        if spec.user.only_these_groups {
            user.additional_gids.clear();
        }
        user.additional_gids.extend(user::lookup_groups(&rootfs, &spec.user.groups)?);
        Ok(user)
    }

    pub(crate) fn image_config(&self, spec: &ContainerSpec) -> Result<ImageConfig, EngineError> {
        let image = self.store.image(&digest_of(spec)?).map_err(engine_error)?;
        Ok(crate::images::to_api(image).config)
    }

    /// Where a container's root file system is mounted.
    pub(crate) fn rootfs(&self, spec: &ContainerSpec) -> PathBuf {
        self.layout.bundle(&spec.sandbox_id, &spec.id).join("rootfs")
    }

    /// The absolute path of a container's log.
    pub(crate) fn log_file(&self, spec: &ContainerSpec) -> PathBuf {
        let directory = self
            .find_sandbox(&spec.sandbox_id)
            .map(|sandbox| sandbox.record.lock().spec.log_directory.clone());
        let directory = directory.filter(|directory| !directory.as_os_str().is_empty());
        let name = match spec.log_path.as_os_str().is_empty() {
            true => PathBuf::from(format!("{}.log", spec.id)),
            false => spec.log_path.clone(),
        };
        directory.unwrap_or_else(|| self.layout.container(&spec.id)).join(name)
    }

    pub(crate) async fn halt_container(&self, id: &str, grace: Duration) -> Result<Exit, EngineError> {
        let container = self.container_named(id)?;
        // Before the gate: who holds it may be waiting for the end of a longer grace.
        let _request = container.stops.request(grace);
        let _gate = container.gate.lock().await;
        self.end_container(id, &container).await
    }

    /// Ends a container by when the soonest of the present requests says.
    async fn end_container(&self, id: &str, container: &Container) -> Result<Exit, EngineError> {
        let (spec, state) = {
            let record = container.record.borrow();
            (record.spec.clone(), record.state.clone())
        };
        match state {
            ContainerState::Exited { exit, .. } => return Ok(exit),
            ContainerState::Created => {
                self.on_exited(
                    id,
                    Exit { code: 0, signal: 0, ..killed_exit("stopped before it was started") },
                );
                return ended(container).await;
            }
            ContainerState::Running { .. } => {}
        }
        if !container.stops.are_due() {
            let signal = self.stop_signal(&spec)?;
            // The grace is the same where the shim is slow to send it, or does not answer at all.
            let asked = async {
                match self.signal(&spec, signal).await {
                    Err(error) if error.kind != ErrorKind::Internal => Err(error),
                    _ => ended(container).await,
                }
            };
            tokio::select! {
                exit = asked => return exit,
                () = container.stops.due() => {}
            }
        }
        self.kill(&spec, container).await
    }

    /// Kills a container: by its shim, whose word on the end counts; without it where it does not answer.
    async fn kill(&self, spec: &ContainerSpec, container: &Container) -> Result<Exit, EngineError> {
        let asked = tokio::time::timeout(SILENCE_MAX, self.signal(spec, 9)).await;
        let heard = matches!(asked, Ok(Ok(())));
        if !heard {
            self.kill_group(spec).await?;
        }
        if let Ok(exit) = tokio::time::timeout(KILL_MAX, ended(container)).await {
            return exit;
        }
        let lives = || {
            let message = format!("container {} did not end after SIGKILL", spec.id);
            EngineError::new(ErrorKind::Internal, message)
        };
        // Where its processes are gone it is the shim that hangs: it goes too, and its end tells of the container's.
        if !self.kill_group(spec).await? || !self.kill_silent_shim(&spec.sandbox_id) {
            return Err(lives());
        }
        tokio::time::timeout(KILL_MAX, ended(container)).await.map_err(|_| lives())?
    }

    /// Kills what is in a container's cgroup; answers whether nothing is left there.
    async fn kill_group(&self, spec: &ContainerSpec) -> Result<bool, EngineError> {
        if !self.cgroups.has_groups() {
            return self.kill_first(spec).await;
        }
        let sandbox = self.sandbox_named(&spec.sandbox_id)?;
        let path = format!("{}/{}", self.group_path(&sandbox.record.lock().spec), spec.id);
        let me = self.me();
        self.blocking("killing the container", move || {
            let Some(engine) = me.upgrade() else { return Ok(false) };
            let group = engine.cgroups.group(&path);
            match group.kill(SILENCE_MAX) {
                Err(error) if error.kind() == std::io::ErrorKind::TimedOut => Ok(false),
                killed => killed.map(|()| true),
            }
        })
        .await
    }

    /// Kills a container's first process, with which the others of its PID namespace end: where there are no groups, no more
    /// of them is known. Answers whether it is gone.
    async fn kill_first(&self, spec: &ContainerSpec) -> Result<bool, EngineError> {
        let container = self.container_named(&spec.id)?;
        let first = move || match container.record.borrow().state {
            ContainerState::Running { pid, .. } => Some(pid),
            _ => None,
        };
        self.blocking("killing the container", move || {
            let found = first().and_then(|pid| Some((pid, Pidfd::open(pid).ok()?)));
            let Some((pid, process)) = found else { return Ok(true) };
            // From here on the number is this process's; it is the container's if the record still says so.
            if first() != Some(pid) {
                return Ok(true);
            }
            // It may end on its own meanwhile.
            let _ = process.signal(9);
            process.wait(SILENCE_MAX)
        })
        .await
    }

    /// Kills a shim that hangs; answers whether there was one.
    fn kill_silent_shim(&self, sandbox_id: &str) -> bool {
        let Some(sandbox) = self.find_sandbox(sandbox_id) else { return false };
        let shim = sandbox.shim.lock().as_ref().map(|(_, pidfd)| pidfd.clone());
        tracing::warn!(sandbox = sandbox_id, "the sandbox's shim does not answer: it is killed");
        shim.is_some_and(|shim| shim.signal(9).is_ok())
    }

    fn stop_signal(&self, spec: &ContainerSpec) -> Result<i32, EngineError> {
        let image = self.image_config(spec).map(|image| image.stop_signal).unwrap_or_default();
        let named = [&spec.stop_signal, &image].into_iter().find(|name| !name.is_empty());
        named.map_or(Ok(15), |name| crate::signals::parse(name))
    }

    /// Signals a running container's first process; one that ended meanwhile is fine.
    pub(crate) async fn signal(&self, spec: &ContainerSpec, signal: i32) -> Result<(), EngineError> {
        let sent =
            self.link_of(&spec.sandbox_id)?.request(Call::Signal { id: spec.id.clone(), signal }).await;
        let runs = |container: Arc<Container>| {
            matches!(container.record.borrow().state, ContainerState::Running { .. })
        };
        match sent {
            Err(error) if self.find_container(&spec.id).is_some_and(runs) => Err(error),
            _ => Ok(()),
        }
    }

    pub(crate) async fn delete_container(&self, id: &str, force: bool) -> Result<(), EngineError> {
        let Some(container) = self.find_container(id) else { return Ok(()) };
        let _request = force.then(|| container.stops.request(Duration::ZERO));
        let _gate = container.gate.lock().await;
        if matches!(container.record.borrow().state, ContainerState::Running { .. }) {
            if !force {
                return Err(EngineError::conflict(format!(
                    "container {id} runs: stop it first, or use force"
                )));
            }
            self.end_container(id, &container).await?;
        }
        self.clear_container(&container).await?;
        self.containers.write().remove(id);
        self.tell(&container, ContainerEventKind::Removed);
        Ok(())
    }

    /// Takes away everything that a container has.
    async fn clear_container(&self, container: &Container) -> Result<(), EngineError> {
        let spec = container.record.borrow().spec.clone();
        if let Ok(link) = self.link_of(&spec.sandbox_id) {
            // The shim may not know it (it was never introduced, or the sandbox was made anew), or not answer.
            let _ = link.request(Call::Delete { id: spec.id.clone() }).await;
        }
        let me = self.me();
        let cleared = tokio::task::spawn_blocking(move || match me.upgrade() {
            Some(engine) => engine.clear_container_now(&spec),
            None => Ok(()),
        });
        cleared.await.map_err(|error| EngineError::internal("removing the container", &error))?
    }

    fn clear_container_now(&self, spec: &ContainerSpec) -> Result<(), EngineError> {
        let failed = |what: &'static str| move |error: std::io::Error| EngineError::internal(what, &error);
        if let Some(sandbox) = self.find_sandbox(&spec.sandbox_id) {
            let group =
                self.cgroups.group(&format!("{}/{}", self.group_path(&sandbox.record.lock().spec), spec.id));
            group
                .kill(KILL_MAX)
                .and_then(|()| group.remove())
                .map_err(failed("removing the container's cgroup"))?;
        }
        let bundle = self.layout.bundle(&spec.sandbox_id, &spec.id);
        clear_directory(&bundle).map_err(failed("removing the container's bundle"))?;
        self.store.remove_snapshot(&spec.id).map_err(engine_error)?;
        records::remove_dir(&self.layout.container(&spec.id))
    }
}

/// Lets go of what a path in a sandbox's directory, if it is a container's bundle, holds beside its root file system: its volumes are not in use any more.
pub(crate) fn let_go(bundle: &Path) -> std::io::Result<()> {
    let (namespace, mounts) = (bundle.join(PID_NAMESPACE), bundle.join(MOUNTS));
    if namespace.exists() {
        sys::mount::unmount(&namespace)?;
    }
    if mounts.exists() { clear_directory(&mounts) } else { Ok(()) }
}

/// Mounts whose targets are links to what is not there, at the place where they lead: the library makes a missing mount
/// point, but not through a link. (Images have `/etc/resolv.conf` as such a link where systemd's resolver is used.)
fn mounts_followed(rootfs: &Path, mounts: &[Mount]) -> std::io::Result<Vec<Mount>> {
    let root = image::root::Root::open(rootfs)?;
    let followed = |mount: &Mount| match root.stat(&mount.target) {
        Ok(_) => Ok(mount.clone()),
        Err(_) => Ok(Mount { target: Path::new("/").join(root.follow(&mount.target)?), ..mount.clone() }),
    };
    mounts.iter().map(followed).collect()
}

/// The devices that a container is given.
fn devices_of(spec: &ContainerSpec) -> Result<Vec<(DeviceNode, Device)>, EngineError> {
    let found = |device: &Device| {
        let node = sys::host::device_node(&device.host)
            .map_err(|error| EngineError::invalid(format!("device {}: {error}", device.host.display())))?;
        Ok((node, device.clone()))
    };
    spec.devices.iter().map(found).collect()
}

/// A device within a container is the host's node: a node made anew would not open in a user namespace.
fn bound_device(node: &DeviceNode, device: &Device) -> Mount {
    Mount {
        source: MountSource::Bind(node.path.clone()),
        target: device.path.clone(),
        read_only: false,
        recursive_read_only: false,
        propagation: MountPropagation::Private,
    }
}

/// A container's mounts with those of its devices, which take the place of others at the same path, each with options
/// that the engine's own have not. Pure.
fn with_injected(mounts: Vec<Mount>, injected: &Injected, has_users: bool) -> Vec<(Mount, Vec<String>)> {
    let bound = injected.nodes.iter().filter(|of| !of.is_made(has_users)).map(|of| Mount {
        source: MountSource::Bind(of.host.clone()),
        target: of.node.path.clone(),
        read_only: false,
        recursive_read_only: false,
        propagation: MountPropagation::Private,
    });
    let more: Vec<(Mount, Vec<String>)> =
        bound.map(|mount| (mount, Vec::new())).chain(injected.mounts.iter().cloned()).collect();
    let is_replaced = |mount: &Mount| more.iter().any(|(other, _)| other.target == mount.target);
    let mut all: Vec<(Mount, Vec<String>)> =
        mounts.into_iter().filter(|mount| !is_replaced(mount)).map(|mount| (mount, Vec::new())).collect();
    all.extend(more);
    all
}

/// A container's image.
fn digest_of(spec: &ContainerSpec) -> Result<image::Digest, EngineError> {
    image::Digest::parse(&spec.image_id).map_err(engine_error)
}

/// A container as its users see it.
pub(crate) fn status(container: &Container) -> ContainerStatus {
    let record = container.record.borrow();
    ContainerStatus {
        spec: record.spec.clone(),
        state: record.state.clone(),
        created_at: record.created_at,
        log_path: container.log_path.clone(),
        identity: record.identity.clone(),
    }
}

/// Returns when a container has ended, with how.
pub(crate) async fn ended(container: &Container) -> Result<Exit, EngineError> {
    let mut watched = container.record.subscribe();
    let record = watched.wait_for(|record| matches!(record.state, ContainerState::Exited { .. })).await;
    match record.as_ref().map(|record| &record.state) {
        Ok(ContainerState::Exited { exit, .. }) => Ok(exit.clone()),
        _ => Err(EngineError::not_found("the container was removed")),
    }
}

/// The exit of a container whose program could not be executed.
pub(crate) fn failed_exit(error: &CallError) -> Exit {
    Exit {
        code: error.code,
        signal: 0,
        oom_killed: false,
        finished_at: Timestamp::now(),
        message: error.message.clone(),
    }
}

/// Group `tty` of every distribution, to which terminals belong.
const TTY_GROUP: u32 = 5;

/// The OOM score that the kernel lets this process give: lowering below its own needs `CAP_SYS_RESOURCE`.
fn possible_oom_score(wanted: Option<i32>, spec: &ContainerSpec) -> Option<i32> {
    let wanted = wanted?;
    let own = sys::host::own_oom_score_adj().unwrap_or(0);
    let may_lower =
        || sys::host::has_capability(sys::host::CAP_SYS_RESOURCE) && !sys::entrance::in_user_namespace();
    if wanted >= own || may_lower() {
        return Some(wanted.clamp(-1000, 1000));
    }
    tracing::warn!(
        container = spec.id,
        wanted,
        own,
        "the OOM score stays: lowering it needs CAP_SYS_RESOURCE, which this process lacks"
    );
    None
}
