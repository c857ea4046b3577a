//! CPUs that one container has for itself: with the policy `static`, containers of guaranteed pods that ask for whole CPUs
//! get them, and all other containers of pods share the rest. Who shares follows at once when the rest becomes smaller or
//! larger; nobody looks for differences now and then. Source: `pkg/kubelet/cm/cpumanager`, KEP-3570.
//!
//! What others run on this host, containers beside pods among it, is not kept from those CPUs, as with upstream.

mod assign;
mod book;
mod checkpoint;
pub(crate) mod limits;
mod set;
mod topology;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base::backoff::Policy;
use engine_api::Resources;
use jiff::Timestamp;
use parking_lot::Mutex;
use sys::cgroup::CgroupHost;
use tokio::sync::Notify;

use book::{Book, State, wishes};
pub use set::CpuSet;
use topology::{SYSTEM, Topology};

use crate::admission::Refusal;
use crate::config::Reserved;
use crate::deps::{Deps, blocking};
use crate::pod::PodView;

/// Source: `cpuManagerStateFileName`.
const STATE: &str = "cpu_manager_state";
/// A container's set that could not be set is tried again.
const RETRY: Policy = Policy { first: Duration::from_secs(1), max: Duration::from_secs(60) };
/// A container's set is waited for so long: one that is being stopped is the stopper's for all of its grace.
const SET_MAX: Duration = Duration::from_secs(1);

/// Who may have CPUs for itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CpuPolicy {
    /// Nobody.
    #[default]
    None,
    /// Containers of guaranteed pods that ask for whole CPUs.
    Static,
}

impl CpuPolicy {
    /// Its name in upstream's configuration.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Static => "static",
        }
    }
}

/// How CPUs are given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CpuSettings {
    /// Who may have some.
    pub policy: CpuPolicy,
    /// Whole cores only: no two containers share one by its threads (`full-pcpus-only`).
    pub full_cores_only: bool,
    /// Reserved CPUs are nobody's, also not of those that share (`strict-cpu-reservation`).
    pub strict_reservation: bool,
    /// The CPUs that are not given away; `None`: as many as are reserved of `cpu`.
    pub reserved: Option<CpuSet>,
}

/// Who has which CPUs on this node.
#[derive(Default)]
pub(crate) struct Cpus {
    /// Absent where nobody has any.
    book: Option<Mutex<Book>>,
    path: PathBuf,
    /// Held by who writes down, or sets, what the book says.
    settling: tokio::sync::Mutex<()>,
    /// Somebody has not the set that it is to have.
    due: Notify,
}

impl Cpus {
    /// The node's CPUs, given as they were before. `directory` is where the node keeps its state. Blocks.
    ///
    /// # Errors
    /// If the host confines nobody to CPUs, the settings cannot be met, or what an earlier run left does not fit to them: a
    /// container's CPUs might be given to another.
    pub(crate) fn open(
        settings: &CpuSettings,
        reserved: &Reserved,
        directory: &Path,
    ) -> Result<Self, String> {
        if settings.policy == CpuPolicy::Static {
            let host = CgroupHost::detect().map_err(|error| format!("cpuManagerPolicy static: {error}"))?;
            if !host.has("cpuset") {
                return Err("cpuManagerPolicy static: this host has no cpuset controller".to_owned());
            }
        }
        Self::of_machine(settings, reserved, directory, || {
            Topology::read(Path::new(SYSTEM))
                .map_err(|error| format!("the host's CPUs cannot be read: {error}"))
        })
    }

    fn of_machine(
        settings: &CpuSettings,
        reserved: &Reserved,
        directory: &Path,
        machine: impl FnOnce() -> Result<Topology, String>,
    ) -> Result<Self, String> {
        let path = directory.join(STATE);
        let remedy = |error: String| {
            format!(
                "could not restore state from checkpoint: {error}, please drain this node and delete the CPU manager \
                 checkpoint file {:?} before starting it again",
                path.display().to_string()
            )
        };
        let left = checkpoint::read(&path, settings.policy.name()).map_err(remedy)?;
        let book = match settings.policy {
            CpuPolicy::None => None,
            CpuPolicy::Static => {
                let count = usize::try_from(reserved.milli_cpu()).unwrap_or(0).div_ceil(1000);
                let restored = left.is_some();
                let book = Book::open(machine()?, settings, count, left);
                Some(Mutex::new(book.map_err(|error| match restored {
                    true => remedy(error),
                    false => format!("cpuManagerPolicy static: {error}"),
                })?))
            }
        };
        Ok(Self { book, path, ..Self::default() })
    }

    /// Whether containers may have CPUs for themselves.
    pub(crate) fn are_given(&self) -> bool {
        self.book.is_some()
    }

    /// The containers of a pod that have CPUs for themselves.
    pub(crate) fn owners(&self, uid: &str) -> BTreeSet<String> {
        let Some(book) = &self.book else { return BTreeSet::new() };
        book.lock().state.given.get(uid).into_iter().flat_map(|of| of.keys().cloned()).collect()
    }

    /// The CPUs that a container has for itself. Source: `GetExclusiveCPUs`.
    pub(crate) fn own(&self, uid: &str, container: &str) -> CpuSet {
        let Some(book) = &self.book else { return CpuSet::default() };
        book.lock().of(uid, container).cloned().unwrap_or_default()
    }

    /// The CPUs that containers may have for themselves, had or not. Source: `GetAllocatableCPUs`.
    pub(crate) fn allocatable(&self) -> CpuSet {
        let Some(book) = &self.book else { return CpuSet::default() };
        let book = book.lock();
        let given = book.state.given.values().flat_map(BTreeMap::values);
        given.fold(book.state.pool.clone(), |all, of| all.with(of)).without(&book.reserved)
    }

    /// Where a container may run; `None`: everywhere.
    pub(crate) fn allowed(&self, uid: &str, container: &str) -> Option<CpuSet> {
        Some(self.book.as_ref()?.lock().allowed(uid, container))
    }

    fn state(&self) -> State {
        self.book.as_ref().map(|book| book.lock().state.clone()).unwrap_or_default()
    }

    /// Takes back what pods had that are not there any more.
    fn forget(&self, lives: impl Fn(&str) -> bool) {
        let Some(book) = &self.book else { return };
        let mut book = book.lock();
        let gone: Vec<String> = book.state.given.keys().filter(|uid| !lives(uid)).cloned().collect();
        for uid in gone {
            book.free(&uid);
        }
    }
}

/// Before any pod is begun: takes back what pods had that are gone, and brings about what an earlier run could not.
pub(crate) async fn begin(deps: &Deps) {
    if !deps.cpus.are_given() {
        return;
    }
    deps.cpus.forget(|uid| {
        let object = deps.caches.pods.by_uid(uid);
        let lives =
            object.and_then(|object| PodView::decode(&object).ok()).is_some_and(|pod| !pod.is_terminal());
        lives || deps.static_pods.has(uid)
    });
    if let Err(error) = note(deps).await {
        tracing::warn!(error, "who has which CPUs is not noted");
    }
    settle_now(deps).await;
}

/// Gives a pod the CPUs that its containers want for themselves. A refusal is why the node does not take it; one that runs
/// already shares instead.
pub(crate) async fn allocate(deps: &Deps, pod: &PodView) -> Result<(), Refusal> {
    let cpus = &deps.cpus;
    let over = pod.is_terminal() || pod.metadata.is_terminating();
    let wanted = if cpus.are_given() && !over { wishes(pod) } else { Vec::new() };
    let Some(book) = cpus.book.as_ref().filter(|_| !wanted.is_empty()) else { return Ok(()) };
    let given = {
        let mut book = book.lock();
        let before = book.state.clone();
        book.give(pod.uid(), &wanted).map(|()| book.state != before)
    };
    let result = match given {
        Ok(false) => return Ok(()),
        Ok(true) => note(deps).await.map_err(|error| {
            let message = format!("Allocate failed due to {error}, which is unexpected");
            Refusal::new("UnexpectedAdmissionError", message)
        }),
        Err(refusal) => Err(refusal),
    };
    match result {
        Ok(()) => {
            // Others leave before the pod begins.
            settle_now(deps).await;
            Ok(())
        }
        Err(refusal) => {
            let freed = book.lock().free(pod.uid());
            if freed {
                had_left(deps, pod.uid()).await;
            }
            if pod.status.start_time.is_none() {
                return Err(refusal);
            }
            tracing::warn!(pod = %pod.key(), reason = refusal.reason, message = refusal.message, "no CPUs of its own");
            Ok(())
        }
    }
}

/// A pod has left, or is over: its CPUs are for all again.
pub(crate) async fn leave(deps: &Deps, uid: &str) {
    let Some(book) = &deps.cpus.book else { return };
    let freed = book.lock().free(uid);
    if freed {
        had_left(deps, uid).await;
    }
}

/// CPUs are for all again that were a pod's.
async fn had_left(deps: &Deps, uid: &str) {
    if let Err(error) = note(deps).await {
        // Whose pod is gone is nobody, whatever is written.
        tracing::warn!(uid, error, "that CPUs are free is not noted");
    }
    settle_now(deps).await;
}

/// Writes down who has what.
async fn note(deps: &Deps) -> Result<(), String> {
    let _alone = deps.cpus.settling.lock().await;
    let (path, state) = (deps.cpus.path.clone(), deps.cpus.state());
    let written = blocking(move || {
        let written = checkpoint::write(&path, CpuPolicy::Static.name(), &state);
        written.map_err(|error| format!("{}: {error}", path.display()))
    });
    written.await.map_err(|error| error.to_string())?
}

/// A container has been started, with the set that it was to have when it was made.
pub(crate) fn started(deps: &Deps, uid: &str, id: &str) {
    let record = deps.state.container(id);
    if record.is_some_and(|record| change(deps, uid, &record.name, &record.resources).is_some()) {
        deps.cpus.due.notify_one();
    }
}

/// What a container is to have and has not.
fn change(deps: &Deps, uid: &str, name: &str, has: &Resources) -> Option<Resources> {
    let allowed = deps.cpus.allowed(uid, name)?.to_string();
    let resources = Resources { cpuset_cpus: Some(allowed), ..Resources::default() };
    (has.cpuset_cpus != resources.cpuset_cpus).then_some(resources)
}

/// Lets every container that runs have what it is to have; what fails is tried again later.
async fn settle_now(deps: &Deps) {
    if !settle(deps).await {
        deps.cpus.due.notify_one();
    }
}

/// Lets every container that runs have what it is to have: those that share first, so that they leave before others come.
/// Whether all have it.
async fn settle(deps: &Deps) -> bool {
    let _alone = deps.cpus.settling.lock().await;
    let mut running = deps.state.running();
    running.sort_by_key(|(uid, record)| deps.cpus.owners(uid).contains(&record.name));
    let mut done = true;
    for (uid, record) in running {
        let Some(resources) = change(deps, &uid, &record.name, &record.resources) else { continue };
        let cpus = resources.cpuset_cpus.clone();
        let setting = deps.runtime.update_resources(&record.id, resources);
        // Everybody who comes or leaves waits for this: what takes longer is tried again.
        let Ok(set) = tokio::time::timeout(SET_MAX, setting).await else {
            done = false;
            continue;
        };
        deps.state.refresh_container(&*deps.runtime, &record.id).await;
        let runs = deps.state.container(&record.id).is_some_and(|record| record.is_running());
        if let Err(error) = set
            && runs
        {
            tracing::warn!(container = record.id, ?cpus, %error, "a container's CPUs are not set, trying again");
            done = false;
        }
    }
    done
}

/// Sets what could not be set at once, until it is dropped.
pub(crate) async fn keep(deps: Arc<Deps>) {
    loop {
        deps.cpus.due.notified().await;
        let mut failures = 0;
        while !settle(&deps).await {
            failures += 1;
            let again = deps.now().saturating_add(RETRY.delay(failures)).unwrap_or(Timestamp::MAX);
            deps.clock.sleep_until(again).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::topology::tests::round;
    use super::*;

    #[test]
    fn what_an_earlier_run_left_has_to_fit() {
        let directory = tempfile::tempdir().unwrap();
        let open = |policy: CpuPolicy, reserved: &str| {
            let reserved = Some(reserved.parse().unwrap());
            let settings = CpuSettings { policy, reserved, ..CpuSettings::default() };
            Cpus::of_machine(&settings, &Reserved::default(), directory.path(), || Ok(round(1, 4, 1)))
        };
        assert!(!open(CpuPolicy::None, "").unwrap().are_given());
        let cpus = open(CpuPolicy::Static, "0").unwrap();
        assert_eq!(cpus.allowed("u", "main").unwrap().to_string(), "0-3");
        let of_pod = [("main".to_owned(), "3".parse().unwrap())].into();
        let state = State { pool: "0-2".parse().unwrap(), given: [("u".to_owned(), of_pod)].into() };
        let path = directory.path().join(STATE);
        checkpoint::write(&path, "static", &state).unwrap();
        let cpus = open(CpuPolicy::Static, "0").unwrap();
        assert_eq!(cpus.allowed("u", "main").unwrap().to_string(), "3");
        assert_eq!((cpus.own("u", "main").to_string().as_str(), cpus.own("u", "x").len()), ("3", 0));
        assert_eq!(cpus.allocatable().to_string(), "1-3", "but for what is reserved");
        cpus.forget(|uid| uid != "u");
        assert_eq!(cpus.allowed("u", "main").unwrap().to_string(), "0-3");
        for (policy, reserved, told) in [
            (
                CpuPolicy::None,
                "",
                "configured policy \"none\" differs from state checkpoint policy \"static\"",
            ),
            (CpuPolicy::Static, "3", "not all reserved cpus: \"3\" are present in defaultCpuSet: \"0-2\""),
        ] {
            let error = open(policy, reserved).err().unwrap();
            let remedy = format!(
                "could not restore state from checkpoint: {told}, please drain this node and delete the CPU manager \
                 checkpoint file {:?} before starting it again",
                path.display().to_string()
            );
            assert_eq!(error, remedy);
        }
    }
}
