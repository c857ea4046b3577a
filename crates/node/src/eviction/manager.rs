//! Looks at the host, makes room, and lets pods go. Source: `pkg/kubelet/eviction/eviction_manager.go`.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use api::resources::Side;
use api::{Key, Object};
use engine_api::ContainerState;
use futures::future::join_all;
use jiff::Timestamp;
use reconcile::{EventType, Involved, kinds};

use super::observe::{Observations, observe};
use super::rank::{ContainerUse, PodUse, message, rank, resource};
use super::state::{Look, is_met};
use super::storage::{excess, is_limited};
use super::{EVICTED, Signal, State, Threshold, Verdict};
use crate::admission::Workers;
use crate::deps::{Deps, blocking};
use crate::images;
use crate::pod::quantity::value;
use crate::pod::resources::{SYSTEM_CRITICAL, request, sum};
use crate::pod::{ContainerRecord, PodView};
use crate::server::disk_use::{Bounds, Counted, Used, Walks};
use crate::volumes::PodDirectories;
use crate::worker::mailbox::Mailbox;

/// So often the host is looked at, as upstream does (`monitoringInterval`). The kernel could tell of memory that falls
/// below a threshold, but what it counts has file pages in it that it would give back at once: the notice would have to be
/// set anew with each look, and upstream's default does without it as well (`kernelMemcgNotification`). Of disks and process
/// ids it tells nothing.
const PERIOD: Duration = Duration::from_secs(10);
/// So long the end of a pod is waited for before there is another look. Source: `podCleanupTimeout`.
const END_MAX: Duration = Duration::from_secs(30);
/// What pods have to end that go at once. Source: `immediateEvictionGracePeriodSeconds`.
const AT_ONCE_SECONDS: i64 = 1;

/// Who lets pods go.
pub(crate) struct Manager {
    state: State,
    walks: Arc<Walks>,
    /// Pods that were told to go, by uid: as long as they are there they hold what they hold.
    going: HashSet<String>,
}

impl Default for Manager {
    fn default() -> Self {
        Self {
            state: State::default(),
            walks: Arc::new(Walks::within(Bounds::ENFORCED)),
            going: HashSet::new(),
        }
    }
}

/// A pod that runs.
struct Active {
    pod: PodView,
    mailbox: Arc<Mailbox>,
    running: Vec<ContainerRecord>,
    directories: PodDirectories,
    critical: bool,
}

/// What lies on the disk of a pod, at least.
#[derive(Default)]
struct Stored {
    /// Bytes in volumes of its own, by name.
    volumes: BTreeMap<String, u64>,
    /// Bytes of containers' writable layers and logs, by name.
    containers: BTreeMap<String, u64>,
    /// Everything that lies on the node's disk.
    all: Used,
}

/// Lets pods go until it is dropped.
pub(crate) async fn keep(deps: Arc<Deps>, workers: Workers, mut manager: Manager) {
    loop {
        deps.clock.sleep_until(deps.now().saturating_add(PERIOD).unwrap_or(Timestamp::MAX)).await;
        manager.round(&deps, &workers).await;
    }
}

impl Manager {
    /// Looks at the host; the node's conditions follow.
    pub(crate) async fn look(&mut self, deps: &Deps) -> Option<(Look, Observations)> {
        let data_dir = deps.config.data_dir.clone();
        let seen = blocking(move || observe(&data_dir)).await.ok()?;
        let look = self.state.look(deps.now(), &deps.config.eviction, &seen);
        deps.pressure.set(look.pressure);
        Some((look, seen))
    }

    async fn round(&mut self, deps: &Arc<Deps>, workers: &Workers) {
        let now = deps.now();
        self.act(deps, workers, now).await;
        self.walks.keep(now);
    }

    async fn act(&mut self, deps: &Arc<Deps>, workers: &Workers, now: Timestamp) {
        let Some((look, seen)) = self.look(deps).await else { return };
        let pods = deps.caches.pods.list();
        self.going.retain(|uid| pods.iter().any(|pod| pod.meta().uid == *uid));
        if self.end_excess(deps, workers, &pods, now).await {
            return;
        }
        let Some(first) = look.met.first() else { return };
        let text = format!("Attempting to reclaim {}", resource(first.signal));
        let node = Involved::named(&kinds::NODES, &Key::new("", deps.config.node_name.clone()), "");
        deps.recorder.event(node, EventType::Warning, "EvictionThresholdMet", text);
        if !make_room(deps, first.signal).await {
            self.evict_one(deps, workers, &pods, (first, &seen), now).await;
        }
    }

    /// Ends pods that hold more of the disk than they may; tells whether there was one. Who was told of that before does not
    /// keep the node from what else there is to do.
    async fn end_excess(
        &mut self,
        deps: &Arc<Deps>,
        workers: &Workers,
        pods: &[Arc<Object>],
        now: Timestamp,
    ) -> bool {
        // A glance at the bytes: few pods have such limits.
        let may_be_limited = |pod: &&Arc<Object>| {
            let text = std::str::from_utf8(pod.bytes()).unwrap_or_default();
            text.contains("\"sizeLimit\"") || text.contains("\"ephemeral-storage\"")
        };
        let mut told = Vec::new();
        for object in pods.iter().filter(may_be_limited) {
            let Some(active) = self.active(deps, workers, object) else { continue };
            if active.critical || !is_limited(&active.pod.spec) {
                continue;
            }
            let stored = self.stored(&active, now).await;
            let used = used(deps, &active, &stored).await;
            if let Some(message) = excess(&active.pod.spec, &used, &stored.volumes) {
                let verdict =
                    Verdict { reason: EVICTED, message, grace_seconds: AT_ONCE_SECONDS, disrupts: false };
                if self.tell(deps, &active, verdict, "ephemeral-storage.limit") {
                    told.push(active.mailbox);
                }
            }
        }
        end_of(deps, &told).await;
        !told.is_empty()
    }

    /// Ends the first of those that may go. Who ends already is one of them: it is told to be quicker and waited for, and
    /// nobody else goes for what it has yet to give back. Source: `filterOutInactivePods`.
    async fn evict_one(
        &mut self,
        deps: &Arc<Deps>,
        workers: &Workers,
        pods: &[Arc<Object>],
        (threshold, seen): (&Threshold, &Observations),
        now: Timestamp,
    ) {
        let active: Vec<Active> =
            pods.iter().filter_map(|object| self.active(deps, workers, object)).collect();
        let mut uses = Vec::with_capacity(active.len());
        for pod in &active {
            // Who is short of memory has no time for a walk over all disks.
            let stored = match threshold.signal.is_of_disk() {
                true => self.stored(pod, now).await,
                false => Stored::default(),
            };
            uses.push(used(deps, pod, &stored).await);
        }
        rank(threshold.signal, &mut uses);
        let Some(first) = uses.iter().find(|used| !used.critical) else {
            tracing::warn!(signal = threshold.signal.name(), "the node is short of it, and no pod may go");
            return;
        };
        let Some(pod) = active.iter().find(|active| active.pod.uid() == first.uid) else { return };
        let grace_seconds = match threshold.grace {
            None => AT_ONCE_SECONDS,
            Some(_) => {
                pod.pod.spec_grace_seconds().min(deps.config.eviction.grace_seconds_max).max(AT_ONCE_SECONDS)
            }
        };
        let message = message(threshold, seen, first);
        let verdict = Verdict { reason: EVICTED, message, grace_seconds, disrupts: true };
        self.tell(deps, pod, verdict, threshold.signal.name());
        end_of(deps, std::slice::from_ref(&pod.mailbox)).await;
    }

    /// Tells a pod to go; whether for the first time.
    fn tell(&mut self, deps: &Deps, active: &Active, verdict: Verdict, signal: &str) -> bool {
        let first = self.going.insert(active.pod.uid().to_owned());
        if first {
            tracing::warn!(pod = %active.pod.key(), message = verdict.message, "a pod is evicted");
            deps.figures.evicted(signal);
        }
        active.mailbox.evict(verdict);
        first
    }

    /// A pod of which something runs.
    fn active(&self, deps: &Deps, workers: &Workers, object: &Object) -> Option<Active> {
        let pod = PodView::decode(object).ok().filter(|pod| !pod.is_terminal())?;
        let uid = deps.runs_as(&pod);
        let mailbox = workers.lock().get(&uid).cloned()?;
        let mut running = deps.state.pod(&uid).containers;
        running.retain(ContainerRecord::is_running);
        let of_a_file = uid != pod.uid() || pod.is_of_a_file();
        let critical = of_a_file || pod.spec.priority.is_some_and(|priority| priority >= SYSTEM_CRITICAL);
        let directories = deps.directories(&uid);
        (!running.is_empty()).then_some(Active { pod, mailbox, running, directories, critical })
    }

    /// Walks what lies on the disk of a pod, if that was not done a moment ago.
    async fn stored(&self, active: &Active, now: Timestamp) -> Stored {
        let (walks, uid) = (self.walks.clone(), active.pod.uid().to_owned());
        let empty = active.pod.spec.volumes.iter().flatten().filter_map(|volume| {
            let in_memory = volume.empty_dir.as_ref()?.medium.as_deref() == Some("Memory");
            let path = match in_memory {
                true => active.directories.memory_volume(&volume.name),
                false => active.directories.disk_volume(&volume.name),
            };
            Some((volume.name.clone(), path, in_memory))
        });
        let empty: Vec<(String, PathBuf, bool)> = empty.collect();
        let running = active.running.clone();
        let walked = blocking(move || {
            let mut stored = Stored::default();
            for (name, path, in_memory) in empty {
                let Some(Counted { used, .. }) = walks.used(&format!("{uid}/{name}"), &path, now) else {
                    continue;
                };
                stored.volumes.insert(name, used.bytes);
                if !in_memory {
                    stored.all.add(used);
                }
            }
            for record in running {
                let layer = writable_layer(&record).and_then(|path| walks.used(&record.id, &path, now));
                let mut used = layer.map(|counted| counted.used).unwrap_or_default();
                used.bytes = used.bytes.saturating_add(engine_api::logs::bytes(&record.log_path));
                stored.containers.insert(record.name.clone(), used.bytes);
                stored.all.add(used);
            }
            stored
        });
        walked.await.unwrap_or_default()
    }
}

/// Waits for the end of pods, all together: what they give back counts before others have to go.
async fn end_of(deps: &Deps, told: &[Arc<Mailbox>]) {
    let at_most = deps.now().saturating_add(END_MAX).unwrap_or(Timestamp::MAX);
    tokio::select! {
        _ = join_all(told.iter().map(|mailbox| mailbox.over())) => {}
        () = deps.clock.sleep_until(at_most) => {}
    }
}

/// What a pod uses and asked for; of disks as much as is known to be stored there.
async fn used(deps: &Deps, active: &Active, stored: &Stored) -> PodUse {
    let spec = &active.pod.spec;
    let asked = sum(spec, Side::Requests);
    let asked = |name: &str| asked.get(name).map_or(0, |amount| u64::try_from(amount.value()).unwrap_or(0));
    let mut used = PodUse {
        uid: active.pod.uid().to_owned(),
        priority: spec.priority.unwrap_or(0),
        critical: active.critical,
        memory_request: asked("memory"),
        disk: stored.all.bytes,
        disk_request: asked("ephemeral-storage"),
        inodes: stored.all.inodes,
        ..PodUse::default()
    };
    for record in &active.running {
        let stats = deps.runtime.stats(&record.id).await.unwrap_or_default();
        used.memory = used.memory.saturating_add(stats.memory_working_set_bytes);
        used.processes = used.processes.saturating_add(stats.pids);
        let Some(container) = spec.containers.iter().find(|container| container.name == record.name) else {
            continue;
        };
        let asked = |name: &str| {
            request(container, name).map_or(0, |amount| u64::try_from(value(amount)).unwrap_or(0))
        };
        used.containers.push(ContainerUse {
            name: record.name.clone(),
            memory: stats.memory_working_set_bytes,
            memory_request: asked("memory"),
            disk: stored.containers.get(&record.name).copied().unwrap_or(0),
            disk_request: asked("ephemeral-storage"),
        });
    }
    used
}

/// The directory in which a container's writes lie: the upper one of the overlay that is its root. Blocks.
fn writable_layer(record: &ContainerRecord) -> Option<PathBuf> {
    let ContainerState::Running { pid, .. } = record.state else { return None };
    let table = std::fs::read(format!("/proc/{pid}/mountinfo")).ok()?;
    upper_directory(&sys::mount::MountTable::parse(&table))
}

fn upper_directory(table: &sys::mount::MountTable) -> Option<PathBuf> {
    let root =
        table.entries().iter().find(|entry| entry.target.as_os_str() == "/" && entry.fs_type == "overlay")?;
    root.super_options.split(',').find_map(|option| option.strip_prefix("upperdir=")).map(PathBuf::from)
}

/// Takes away what nobody needs; tells whether that was enough. Only the disk has something of that kind.
/// Source: `reclaimNodeLevelResources`.
async fn make_room(deps: &Arc<Deps>, signal: Signal) -> bool {
    if !signal.is_of_disk() {
        return false;
    }
    remove_dead_containers(deps).await;
    images::gc::reclaim(deps).await;
    let data_dir = deps.config.data_dir.clone();
    let Ok(seen) = blocking(move || observe(&data_dir)).await else { return false };
    !deps.config.eviction.thresholds.iter().any(|threshold| is_met(threshold, &seen, true))
}

/// Removes the containers of pods that are over: the API knows how they have ended.
async fn remove_dead_containers(deps: &Deps) {
    for object in deps.caches.pods.list() {
        let Ok(pod) = PodView::decode(&object) else { continue };
        if !pod.is_terminal() {
            continue;
        }
        for record in deps.state.pod(&deps.runs_as(&pod)).containers {
            if record.exit().is_some() && deps.runtime.remove_container(&record.id, false).await.is_ok() {
                deps.state.forget_container(&record.id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use sys::mount::MountTable;

    use super::*;

    #[test]
    fn what_a_container_writes_lies_in_the_upper_directory_of_its_root() {
        let overlay = "30 1 0:40 / / rw - overlay overlay rw,lowerdir=/l,upperdir=/data/up,workdir=/data/work\n\
                       31 30 0:41 / /x rw - overlay overlay rw,upperdir=/other\n";
        assert_eq!(upper_directory(&MountTable::parse(overlay.as_bytes())), Some("/data/up".into()));
        let disk = "30 1 8:1 / / rw - ext4 /dev/sda rw\n";
        assert_eq!(upper_directory(&MountTable::parse(disk.as_bytes())), None);
    }
}
