//! Sandboxes: made, stopped, removed.

use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use engine_api::{
    ContainerEvent, ContainerEventKind, ContainerState, EngineError, Resources, SandboxSpec, SandboxStatus,
};
use jiff::Timestamp;
use parking_lot::Mutex;
use shim::{Call, IdRange, SandboxConfig};
use sys::cgroup::Limits;

use crate::engine::{Engine, KILL_MAX, SILENCE_MAX, Sandbox, clear_directory};
use crate::layout::shared_memory;
use crate::link::Link;
use crate::records::{self, SandboxRecord};

/// The size of a sandbox's shared memory, as container engines have it.
const SHARED_MEMORY_BYTES: u64 = 64 << 20;

impl Engine {
    pub(crate) async fn make_sandbox(&self, spec: SandboxSpec) -> Result<SandboxStatus, EngineError> {
        check_id(&spec.id)?;
        check_sandbox(&spec)?;
        self.handlers.program(&spec.runtime_handler)?;
        self.expect_moves();
        let id = spec.id.clone();
        let record = SandboxRecord {
            spec,
            created_at: Timestamp::now(),
            boot_id: self.boot_id.clone(),
            stopped: false,
            shim: None,
            users: None,
        };
        let sandbox = Arc::new(Sandbox {
            record: Mutex::new(record),
            shim: Mutex::new(None),
            gate: tokio::sync::Mutex::new(()),
            steps: Arc::default(),
        });
        let _gate = sandbox.gate.lock().await;
        {
            let mut sandboxes = self.sandboxes.write();
            if sandboxes.contains_key(&id) {
                return Err(EngineError::conflict(format!("sandbox {id} exists already")));
            }
            sandboxes.insert(id.clone(), sandbox.clone());
        }
        if let Err(error) = self.bring_up(&id, &sandbox).await {
            self.take_down(&id, &sandbox).await?;
            self.free_ids(&id)?;
            self.sandboxes.write().remove(&id);
            return Err(error);
        }
        self.tell_sandbox(&id, ContainerEventKind::Created);
        Ok(self.status_of(&sandbox))
    }

    /// Directories, cgroup, shared memory, shim.
    async fn bring_up(&self, id: &str, sandbox: &Arc<Sandbox>) -> Result<(), EngineError> {
        let step = sandbox.steps.open("engine: prepare the sandbox", "");
        if sandbox.record.lock().spec.own_users {
            let name = id.to_owned();
            let users = self.aside("taking user ids", move |engine| engine.id_ranges.take(&name)).await?;
            sandbox.record.lock().users = Some(users);
        }
        let record = sandbox.record.lock().clone();
        // First, so that whatever follows is found again after a crash.
        records::save(&self.layout.sandbox_record(id), &record)?;
        let me = self.me();
        let (spec, users) = (record.spec, record.users);
        let listener = self
            .blocking("preparing the sandbox", move || {
                let engine = me.upgrade().ok_or_else(|| std::io::Error::other("the engine is closing"))?;
                engine.prepare_sandbox(&spec, users)
            })
            .await?;
        drop(step);
        let step = sandbox.steps.open("engine: start the shim", "");
        let dir = self.layout.run_sandbox(id);
        let mut shim = tokio::process::Command::new(&self.shim_program);
        shim.arg("serve").arg(&dir).env_clear().stdin(listener).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = shim.spawn().map_err(|error| EngineError::internal("starting the shim", &error))?;
        let pid = child.id();
        let shim = pid.map(|pid| (pid, sys::process::start_time(pid).unwrap_or(0)));
        // Reaps it, if this process is still there when it ends.
        self.tasks.spawn(async move {
            let _ = child.wait().await;
        });
        // While the shim sets up: one that never greets is found again by its record.
        let record = {
            let mut record = sandbox.record.lock();
            record.shim = shim;
            record.clone()
        };
        records::save(&self.layout.sandbox_record(id), &record)?;
        drop(step);
        let _step = sandbox.steps.open("engine: greet the shim", "");
        match Link::open(&dir).await {
            Ok((link, welcome)) => {
                self.adopt(id, sandbox, link, welcome);
                Ok(())
            }
            // The shim is ended by who clears up.
            Err(error) => Err(EngineError::internal("making the sandbox", &error)),
        }
    }

    /// The blocking part; answers the socket on which the shim will listen.
    fn prepare_sandbox(&self, spec: &SandboxSpec, users: Option<IdRange>) -> std::io::Result<OwnedFd> {
        let dir = self.layout.run_sandbox(&spec.id);
        std::fs::create_dir_all(&dir)?;
        let group = self.cgroups.group(&self.group_path(spec));
        group.create()?;
        self.warn_of_limits(&spec.id, group.apply(&limits_of(&spec.resources))?);
        // Made by now, and nobody removes it while this sandbox's group is in it.
        if let Some(limits) = &spec.parent_resources {
            self.set_limits(spec.cgroup_parent.trim_matches('/'), limits)?;
        }
        if !spec.host_ipc {
            let shm = shared_memory(&dir);
            std::fs::create_dir_all(&shm)?;
            let size =
                if spec.shared_memory_bytes == 0 { SHARED_MEMORY_BYTES } else { spec.shared_memory_bytes };
            sys::mount::shared_memory(&shm, size)?;
            if let Some(IdRange { first, .. }) = users {
                std::os::unix::fs::chown(&shm, Some(first), Some(first))?;
            }
        }
        let config = SandboxConfig {
            network: !spec.host_network,
            ipc: !spec.host_ipc,
            hostname: (!spec.hostname.is_empty()).then(|| spec.hostname.clone()),
            shared_pid: spec.share_pid && !spec.host_pid,
            sysctls: spec.sysctls.clone(),
            users,
            cgroup_entrances: self.cgroups.group(&format!("{}/shims", self.cgroup_root)).entrances()?,
        };
        std::fs::write(dir.join(shim::CONFIG_FILE), shim::encode(&config)?)?;
        let _ = std::fs::remove_file(dir.join(shim::SOCKET));
        sys::seqpacket::listen(&dir, shim::SOCKET)
    }

    /// Limits of a group below the engine's own, if it is there. Blocks.
    pub(crate) fn set_limits(&self, path: &str, limits: &Resources) -> std::io::Result<()> {
        let group = self.cgroups.group(&format!("{}/{path}", self.cgroup_root));
        match group.apply(&limits_of(limits)) {
            Ok(warnings) => {
                self.warn_of_limits(group.path(), warnings);
                Ok(())
            }
            // Gone, and its limits with it; a file that is missing in a group that is there is another matter.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !group.exists() => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Takes their own limits from the sandboxes of a group: an earlier version gave those of a pod to its sandbox, and they
    /// would hold beside the group's. Before these are set: version 1 takes no quota below one further down.
    pub(crate) async fn lift_limits_in(&self, parent: &str) -> Result<(), EngineError> {
        let limited: Vec<_> = {
            let sandboxes = self.sandboxes.read();
            let here = |sandbox: &Sandbox| is_limited_in(parent, &sandbox.record.lock());
            sandboxes.iter().filter(|(_, sandbox)| here(sandbox)).map(|(id, _)| id.clone()).collect()
        };
        for id in limited {
            let Some(sandbox) = self.find_sandbox(&id) else { continue };
            let _gate = sandbox.gate.lock().await;
            // It may have been stopped or removed meanwhile, and its record must not come back.
            if self.find_sandbox(&id).is_some() && is_limited_in(parent, &sandbox.record.lock()) {
                self.lift_limits(&id, &sandbox).await?;
            }
        }
        Ok(())
    }

    async fn lift_limits(&self, id: &str, sandbox: &Sandbox) -> Result<(), EngineError> {
        let spec = sandbox.record.lock().spec.clone();
        let path = format!("{}/{id}", spec.cgroup_parent.trim_matches('/'));
        let me = self.me();
        self.blocking("lifting the sandbox's limits", move || match me.upgrade() {
            Some(engine) => engine.set_limits(&path, &lifted(&spec.resources)),
            None => Ok(()),
        })
        .await?;
        let record = {
            let mut record = sandbox.record.lock();
            record.spec.resources = Resources::default();
            record.clone()
        };
        records::save(&self.layout.sandbox_record(id), &record)
    }

    pub(crate) async fn halt_sandbox(&self, id: &str) -> Result<(), EngineError> {
        let Some(sandbox) = self.find_sandbox(id) else { return Ok(()) };
        let _gate = sandbox.gate.lock().await;
        if sandbox.record.lock().stopped {
            return Ok(());
        }
        self.end_sandbox(id, &sandbox).await
    }

    /// Kills the containers, learns their exits, ends the shim, lets go of everything but root file systems.
    async fn end_sandbox(&self, id: &str, sandbox: &Sandbox) -> Result<(), EngineError> {
        let record = sandbox.record.lock().clone();
        let (me, path, dir) = (self.me(), self.group_path(&record.spec), self.layout.run_sandbox(id));
        let shim = record.shim.map(|(pid, _)| pid);
        self.blocking("killing the sandbox", move || {
            let Some(engine) = me.upgrade() else { return Ok(()) };
            engine.kill_processes(&engine.cgroups.group(&path), &dir, shim)
        })
        .await?;
        let containers = self.containers_of(id);
        futures::future::join_all(containers.iter().map(|container| async {
            let mut watched = container.record.subscribe();
            let ended = watched.wait_for(|record| !matches!(record.state, ContainerState::Running { .. }));
            // A shim that does not tell is dead or stuck: it is ended below, and the exit made up.
            if tokio::time::timeout(KILL_MAX, ended).await.is_err() {
                let spec = container.record.borrow().spec.clone();
                let made_up = || crate::engine::killed_exit("its end was not reported");
                self.on_exited(&spec.id, self.recorded_exit(&spec).unwrap_or_else(made_up));
            }
        }))
        .await;
        self.take_down(id, sandbox).await?;
        self.mark_stopped(sandbox);
        Ok(())
    }

    /// Ends the shim, if it lives, and clears up.
    async fn take_down(&self, id: &str, sandbox: &Sandbox) -> Result<(), EngineError> {
        let shim = sandbox.shim.lock().take();
        if let Some((link, pidfd)) = shim {
            // One that does not even answer is not asked to end itself.
            let ended = async {
                let asked = tokio::time::timeout(SILENCE_MAX, link.request(Call::Shutdown)).await;
                matches!(asked, Ok(Ok(())))
                    && tokio::time::timeout(KILL_MAX, crate::process::ended(&pidfd)).await.is_ok()
            };
            if !ended.await {
                let _ = pidfd.signal(9);
            }
        }
        let record = sandbox.record.lock().clone();
        let (me, path, dir) = (self.me(), self.group_path(&record.spec), self.layout.run_sandbox(id));
        self.blocking("clearing the sandbox", move || {
            let Some(engine) = me.upgrade() else { return Ok(()) };
            engine.kill_shim(&record)?;
            engine.clear_sandbox(&engine.cgroups.group(&path), &dir)
        })
        .await
    }

    pub(crate) async fn delete_sandbox(&self, id: &str) -> Result<(), EngineError> {
        let Some(sandbox) = self.find_sandbox(id) else { return Ok(()) };
        self.halt_sandbox(id).await?;
        for container in self.containers_of(id) {
            let id = container.record.borrow().spec.id.clone();
            self.delete_container(&id, true).await?;
        }
        let _gate = sandbox.gate.lock().await;
        let dir = self.layout.run_sandbox(id);
        self.blocking("removing the sandbox", move || clear_directory(&dir)).await?;
        records::remove(&self.layout.sandbox_record(id))?;
        self.free_ids(id)?;
        self.sandboxes.write().remove(id);
        self.tell_sandbox(id, ContainerEventKind::Removed);
        Ok(())
    }

    /// Removes every sandbox and container and what the engine itself made: cgroups, the shim's executable, both
    /// directories. For the removal of the whole installation; the engine is of no use afterwards.
    pub async fn purge(&self) -> Result<(), EngineError> {
        let ids: Vec<String> = self.sandboxes.read().keys().cloned().collect();
        for id in ids {
            self.delete_sandbox(&id).await?;
        }
        let me = self.me();
        self.blocking("removing the engine's own", move || {
            let Some(engine) = me.upgrade() else { return Ok(()) };
            engine.cgroups.group(&engine.cgroup_root).remove()?;
            clear_directory(&engine.layout.run)?;
            clear_directory(&engine.layout.data)
        })
        .await
    }

    fn free_ids(&self, id: &str) -> Result<(), EngineError> {
        self.id_ranges.free(id).map_err(|error| EngineError::internal("freeing user ids", &error))
    }

    fn tell_sandbox(&self, id: &str, kind: ContainerEventKind) {
        self.tell_event(ContainerEvent { sandbox_id: id.to_owned(), container_id: String::new(), kind });
    }
}

fn is_limited_in(parent: &str, record: &SandboxRecord) -> bool {
    let SandboxRecord { spec, stopped, .. } = record;
    !stopped
        && spec.cgroup_parent.trim_matches('/') == parent.trim_matches('/')
        && spec.resources != Resources::default()
}

/// What lifts these limits, as far as they can be changed while something runs: shares alone in a group say nothing, and
/// huge pages stay what they are.
fn lifted(limits: &Resources) -> Resources {
    Resources {
        cpu_quota_us: limits.cpu_quota_us.map(|_| -1),
        memory_limit_bytes: limits.memory_limit_bytes.map(|_| -1),
        swap_limit_bytes: limits.memory_limit_bytes.or(limits.swap_limit_bytes).map(|_| -1),
        pids_limit: limits.pids_limit.map(|_| -1),
        ..Resources::default()
    }
}

/// The engine's resources in the words of cgroups.
pub(crate) fn limits_of(resources: &Resources) -> Limits {
    Limits {
        cpu_shares: resources.cpu_shares,
        cpu_quota_us: resources.cpu_quota_us,
        cpu_period_us: resources.cpu_period_us,
        memory_bytes: resources.memory_limit_bytes,
        swap_bytes: resources.swap_limit_bytes,
        pids: resources.pids_limit,
        cpuset_cpus: resources.cpuset_cpus.clone(),
        huge_pages: resources.hugepages.clone(),
    }
}

/// Ids name directories and cgroups: nothing but the agreed form is let through.
pub(crate) fn check_id(id: &str) -> Result<(), EngineError> {
    let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if id.len() == 64 && id.bytes().all(digit) {
        return Ok(());
    }
    Err(EngineError::invalid(format!("`{id}` is no id: 64 lower-case hexadecimal digits are expected")))
}

/// A path below a directory of the engine's: relative, without a way up.
pub(crate) fn check_below(what: &str, path: &Path) -> Result<(), EngineError> {
    let plain = path.components().all(|component| matches!(component, Component::Normal(_)));
    if plain {
        Ok(())
    } else {
        Err(EngineError::invalid(format!("{what} `{}` must be a plain relative path", path.display())))
    }
}

fn check_sandbox(spec: &SandboxSpec) -> Result<(), EngineError> {
    check_below("cgroup parent", &PathBuf::from(spec.cgroup_parent.trim_matches('/')))?;
    if spec.hostname.len() > 64 {
        return Err(EngineError::invalid("hostname: at most 64 bytes"));
    }
    if spec.own_users && (spec.host_network || spec.host_pid || spec.host_ipc) {
        return Err(EngineError::invalid(
            "user ids of its own cannot be had together with the host's namespaces: give one of them up",
        ));
    }
    for name in spec.sysctls.keys() {
        check_sysctl(name, spec)?;
    }
    Ok(())
}

/// Only parameters of the sandbox's own namespaces: others would change the host.
fn check_sysctl(name: &str, spec: &SandboxSpec) -> Result<(), EngineError> {
    let dotted = name.replace('/', ".");
    let ipc = ["kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue."];
    let refused = if dotted.starts_with("net.") {
        spec.host_network.then_some("the sandbox uses the host's network")
    } else if ipc.iter().any(|prefix| dotted.starts_with(prefix)) {
        spec.host_ipc.then_some("the sandbox uses the host's IPC namespace")
    } else {
        Some("it belongs to no namespace of the sandbox")
    };
    match refused {
        Some(why) => Err(EngineError::invalid(format!("sysctl {name} cannot be set: {why}"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_paths_cannot_leave_their_place() {
        assert!(check_id(&"0a".repeat(32)).is_ok());
        for bad in ["", "../../etc", &"0A".repeat(32), &"0a".repeat(31)] {
            assert!(check_id(bad).is_err(), "{bad}");
        }
        assert!(check_below("log path", Path::new("app/0.log")).is_ok());
        for bad in ["/etc/passwd", "../x", "a/../../x"] {
            assert!(check_below("log path", Path::new(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_namespaced_parameters_are_set() {
        let own = SandboxSpec::default();
        assert!(check_sysctl("net.ipv4.ip_forward", &own).is_ok());
        assert!(check_sysctl("kernel.shmmax", &own).is_ok());
        assert!(check_sysctl("kernel.core_pattern", &own).is_err());
        let hosts = SandboxSpec { host_network: true, ..SandboxSpec::default() };
        assert!(check_sysctl("net.ipv4.ip_forward", &hosts).is_err());
    }
}
