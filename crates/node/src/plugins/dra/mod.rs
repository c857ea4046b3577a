//! Devices that claims stand for: drivers prepare them before a pod's sandbox is made, and take them back when the last pod
//! that uses a claim has ended here. Source: `pkg/kubelet/cm/dra`, KEP-4381.
//!
//! What is asked of a driver is in the book (`book`) before it is asked, so that a node that was killed in the midst of it
//! knows what there is to take back.

mod book;
mod claims;
mod driver;
pub(crate) mod health;
mod presence;
mod slices;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use api::Key;
use k8s_openapi::api::core::v1::Container;
use parking_lot::Mutex;
use protos::registration::v1::PluginInfo;
use reconcile::kinds;
use tokio::sync::OwnedMutexGuard;

pub(super) use book::Entry;
use book::Given;
use book::{Book, ClaimKey};
use claims::{ClaimView, Wanted};
pub(crate) use driver::Driver;
pub(crate) use presence::{attend, left};
pub(crate) use slices::wipe_at_start;

use crate::deps::{Deps, blocking};
use crate::pod::PodView;

/// In the node's directory. Upstream's is `dra_manager_state`, of another form.
const CHECKPOINT: &str = "skiff_claims";

/// The claims that are used on the node, and the drivers of their devices.
#[derive(Default)]
pub(crate) struct Claims {
    book: Mutex<Book>,
    /// By name, the latest last: one may register before the one that it replaces goes.
    drivers: Mutex<BTreeMap<String, Vec<Registered>>>,
    /// Who prepares a claim or takes it back is alone with it.
    alone: Mutex<HashMap<ClaimKey, Weak<tokio::sync::Mutex<()>>>>,
    /// Held by who writes the book, until it is written.
    writing: Arc<tokio::sync::Mutex<()>>,
    health: health::Health,
}

/// A driver that has registered, and whether it can be reached.
struct Registered {
    driver: Arc<Driver>,
    /// The socket at which it registered.
    socket: PathBuf,
    connected: bool,
}

impl Claims {
    /// Who is asked about a driver's devices: the latest that can be reached, else the latest.
    fn driver(&self, name: &str) -> Result<Arc<Driver>, String> {
        let drivers = self.drivers.lock();
        let all = drivers.get(name).map_or(&[][..], Vec::as_slice);
        let connected = all.iter().rev().find(|of| of.connected).or_else(|| all.last());
        connected.map(|of| of.driver.clone()).ok_or_else(|| format!("DRA driver {name} is not registered"))
    }

    fn put(&self, driver: Arc<Driver>, socket: &Path) -> Result<(), String> {
        let mut drivers = self.drivers.lock();
        let all = drivers.entry(driver.name.clone()).or_default();
        if all.iter().any(|known| known.driver.endpoint == driver.endpoint) {
            let Driver { name, endpoint, .. } = &*driver;
            return Err(format!(
                "endpoint {} already registered for DRA driver plugin {name}",
                endpoint.display()
            ));
        }
        all.push(Registered { driver, socket: socket.to_owned(), connected: false });
        Ok(())
    }

    /// Forgets who has registered at a socket that is gone.
    pub(super) fn left(&self, socket: &Path) {
        let mut drivers = self.drivers.lock();
        drivers.values_mut().for_each(|all| all.retain(|known| known.socket != socket));
        drivers.retain(|_, all| !all.is_empty());
    }

    /// Whether a driver can be reached or not any more.
    fn set_connected(&self, driver: &Arc<Driver>, now: bool) {
        let mut drivers = self.drivers.lock();
        let all = drivers.get_mut(&driver.name).into_iter().flatten();
        all.filter(|known| Arc::ptr_eq(&known.driver, driver)).for_each(|known| known.connected = now);
    }

    /// Whether anybody serves a driver's devices.
    fn is_usable(&self, name: &str) -> bool {
        self.drivers.lock().get(name).is_some_and(|all| all.iter().any(|known| known.connected))
    }

    /// Whether another of a driver's name tells how their devices are: one may register before the one that it replaces goes.
    fn is_succeeded(&self, driver: &Driver) -> bool {
        let drivers = self.drivers.lock();
        let tells = |known: &Registered| known.connected && known.driver.health.is_some();
        let mut all = drivers.get(&driver.name).into_iter().flatten();
        all.any(|known| tells(known) && !std::ptr::eq(&*known.driver, driver))
    }

    /// Waits until nobody else has to do with a claim.
    async fn lock(&self, key: &ClaimKey) -> OwnedMutexGuard<()> {
        let lock = {
            let mut all = self.alone.lock();
            all.retain(|_, lock| lock.strong_count() > 0);
            let slot = all.entry(key.clone()).or_default();
            slot.upgrade().unwrap_or_else(|| {
                let fresh = Arc::default();
                *slot = Arc::downgrade(&fresh);
                fresh
            })
        };
        lock.lock_owned().await
    }

    /// Waits for all of some claims, always in the same order.
    async fn lock_all(&self, mut keys: Vec<ClaimKey>) -> Vec<OwnedMutexGuard<()>> {
        keys.sort();
        keys.dedup();
        let mut guards = Vec::new();
        for key in keys {
            guards.push(self.lock(&key).await);
        }
        guards
    }

    /// Whether a pod uses claims here.
    pub(crate) fn holds(&self, uid: &str) -> bool {
        self.book.lock().holds(uid)
    }

    /// The pods that use claims here.
    pub(crate) fn pods(&self) -> Vec<String> {
        self.book.lock().pods().into_iter().collect()
    }

    /// A claim that is used here.
    pub(crate) fn claim(&self, namespace: &str, name: &str) -> Option<Entry> {
        self.book.lock().get(&(namespace.to_owned(), name.to_owned())).cloned()
    }
}

fn checkpoint(deps: &Deps) -> PathBuf {
    deps.config.data_dir.join(CHECKPOINT)
}

/// Reads what earlier runs of the node have prepared. A book that cannot be read is kept aside for its administrator.
pub(crate) async fn begin(deps: &Deps) {
    // Those of an earlier run in this process register again.
    deps.plugins.claims.drivers.lock().clear();
    let path = checkpoint(deps);
    let place = path.clone();
    let read = blocking(move || {
        let read = Book::read(&place);
        if read.is_err() {
            let _ = std::fs::rename(&place, place.with_extension("unreadable"));
        }
        read
    });
    match read.await {
        Ok(Ok(book)) => *deps.plugins.claims.book.lock() = book,
        Ok(Err(error)) => {
            tracing::error!(path = %path.display(), %error, "claims of earlier pods are not taken back: drain the node");
        }
        Err(error) => tracing::error!(%error, "claims of earlier pods are not known"),
    }
}

async fn note(deps: &Deps) -> Result<(), String> {
    let claims = &deps.plugins.claims;
    let alone = claims.writing.clone().lock_owned().await;
    let bytes = claims.book.lock().as_bytes().map_err(|error| error.to_string())?;
    let path = checkpoint(deps);
    let write = move || {
        // Who waits for it may go: a write goes on, and the next one comes after it.
        let _alone = alone;
        sys::files::write_durable(&path, &bytes)
    };
    let written = blocking(write).await.map_err(|error| error.to_string())?;
    written.map_err(|error| error.to_string())
}

/// Takes a driver in that has registered at a socket.
pub(super) fn register(deps: &Deps, socket: &Path, info: &PluginInfo) -> Result<Arc<Driver>, String> {
    super::driver::check_name(&info.name)?;
    let endpoint = if info.endpoint.is_empty() { socket.to_owned() } else { PathBuf::from(&info.endpoint) };
    let driver = Arc::new(Driver::new(&info.name, &endpoint, &info.supported_versions)?);
    deps.plugins.claims.put(driver.clone(), socket)?;
    Ok(driver)
}

/// Has drivers prepare the claims of a pod, before its sandbox is made. Source: `Manager.prepareResources`.
///
/// # Errors
/// In upstream's words: the pod waits.
pub(crate) async fn prepare(deps: &Deps, pod: &PodView) -> Result<(), String> {
    if !claims::has_some(pod) {
        return Ok(());
    }
    let begun = deps.now();
    let done = prepare_all(deps, pod).await;
    let took = Duration::try_from(deps.now().duration_since(begun)).unwrap_or_default();
    deps.figures.dra.operation("PrepareResources", done.is_err(), took);
    done.map_err(|error| format!("Failed to prepare dynamic resources: prepare dynamic resources: {error}"))
}

async fn prepare_all(deps: &Deps, pod: &PodView) -> Result<(), String> {
    let claims = &deps.plugins.claims;
    let mut entries = Vec::new();
    for wanted in claims::wanted(pod)? {
        let entry = claims::check(pod, &wanted, &fetch(deps, pod, &wanted).await?)?;
        // A driver that is away is told before anything is noted: a pod that goes meanwhile need not wait for it.
        entry.drivers.keys().try_for_each(|name| claims.driver(name).map(drop))?;
        entries.push(entry);
    }
    let _alone = claims.lock_all(entries.iter().map(Entry::key).collect()).await;
    let mut open = Vec::new();
    for entry in &entries {
        let known = claims.book.lock().uses(entry, pod.uid())?;
        if !known.prepared {
            open.push(known);
        }
    }
    note(deps).await.map_err(|error| format!("checkpoint ResourceClaim cache: {error}"))?;
    let mut given: BTreeMap<String, BTreeMap<String, Vec<Given>>> = BTreeMap::new();
    for (name, batch) in by_driver(&open) {
        let driver = claims.driver(&name)?;
        for (uid, devices) in driver
            .prepare(&batch, &|name, method, failed, took| deps.figures.dra.call(name, method, failed, took))
            .await?
        {
            given.entry(uid).or_default().insert(name.clone(), devices);
        }
    }
    if open.is_empty() {
        return Ok(());
    }
    {
        let mut book = claims.book.lock();
        for entry in &open {
            book.prepared(&entry.key(), given.remove(&entry.uid).unwrap_or_default());
        }
    }
    note(deps).await.map_err(|error| format!("checkpoint ResourceClaim state: {error}"))
}

async fn fetch(deps: &Deps, pod: &PodView, wanted: &Wanted) -> Result<ClaimView, String> {
    let key = Key::new(pod.metadata.namespace.clone(), wanted.name.clone());
    let found = deps.client.get(&kinds::RESOURCE_CLAIMS.gvr(), &key).await;
    let failed = |error: String| format!("fetch ResourceClaim {}: {error}", wanted.name);
    let object = found.map_err(|status| failed(status.to_string()))?;
    object.decode().map_err(|error| failed(error.to_string()))
}

/// Claims with those who have devices of them. Pure.
fn by_driver(entries: &[Entry]) -> BTreeMap<String, Vec<Entry>> {
    let mut batches: BTreeMap<String, Vec<Entry>> = BTreeMap::new();
    for entry in entries {
        for name in entry.drivers.keys() {
            batches.entry(name.clone()).or_default().push(entry.clone());
        }
    }
    batches
}

/// Has drivers take back the claims that a pod was the last to use. Repeated, it goes on where it failed. Source:
/// `Manager.unprepareResources`.
///
/// # Errors
/// In upstream's words; the claims stay the pod's.
pub(crate) async fn unprepare(deps: &Deps, uid: &str) -> Result<(), String> {
    let claims = &deps.plugins.claims;
    let of_pod = claims.book.lock().of_pod(uid);
    if of_pod.is_empty() {
        return Ok(());
    }
    let begun = deps.now();
    let done = unprepare_all(deps, uid, &of_pod).await;
    let took = Duration::try_from(deps.now().duration_since(begun)).unwrap_or_default();
    deps.figures.dra.operation("UnprepareResources", done.is_err(), took);
    done.map_err(|error| format!("unprepare dynamic resources: {error}"))
}

async fn unprepare_all(deps: &Deps, uid: &str, of_pod: &[Entry]) -> Result<(), String> {
    let claims = &deps.plugins.claims;
    let _alone = claims.lock_all(of_pod.iter().map(Entry::key).collect()).await;
    // As they stand now that nobody else changes them.
    let of_pod = claims.book.lock().of_pod(uid);
    let last: Vec<Entry> = of_pod.iter().filter(|entry| entry.pods.len() == 1).cloned().collect();
    {
        let mut book = claims.book.lock();
        last.iter().for_each(|entry| book.doubt(&entry.key()));
    }
    for (name, batch) in by_driver(&last) {
        let driver = claims.driver(&name)?;
        driver
            .unprepare(&batch, &|name, method, failed, took| {
                deps.figures.dra.call(name, method, failed, took)
            })
            .await?;
    }
    {
        let mut book = claims.book.lock();
        of_pod.iter().for_each(|entry| book.leaves(&entry.key(), uid));
    }
    note(deps).await.map_err(|error| format!("checkpoint ResourceClaim state: {error}"))
}

/// What the runtime knows the devices of a container by. Source: `Manager.GetResources`.
///
/// # Errors
/// If one of its claims was not prepared here.
pub(crate) fn cdi_devices(deps: &Deps, pod: &PodView, container: &Container) -> Result<Vec<String>, String> {
    let mut names: Vec<String> = Vec::new();
    for (name, request) in claims::asked(pod, container)? {
        let namespace = &pod.metadata.namespace;
        let claim = deps.plugins.claims.claim(namespace, &name).ok_or_else(|| {
            format!(
                "internal error: unable to get claim info for ResourceClaim {name} in namespace {namespace}"
            )
        })?;
        let devices = claim.drivers.into_values().flatten();
        let own = devices.filter(|given| claims::is_of(&given.requests, &request));
        for device in own.flat_map(|given| given.cdi) {
            if !names.contains(&device) {
                names.push(device);
            }
        }
    }
    Ok(names)
}

/// The claims of a container that are prepared here, each once. Source: `Manager.GetContainerClaimInfos`.
pub(super) fn claims_of(deps: &Deps, pod: &PodView, container: &Container) -> Vec<Entry> {
    let asked = claims::asked(pod, container).unwrap_or_default();
    let mut names: Vec<String> = asked.into_iter().map(|(name, _)| name).collect();
    names.sort();
    names.dedup();
    let of = |name: &String| deps.plugins.claims.claim(&pod.metadata.namespace, name);
    names.iter().filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_a_driver_said_is_kept_for_another_that_tells_too() {
        let claims = Claims::default();
        let put = |place: &str, services: &[&str]| {
            let services: Vec<String> = services.iter().map(|service| (*service).to_owned()).collect();
            let driver = Arc::new(Driver::new("d", Path::new(place), &services).unwrap());
            claims.put(driver.clone(), Path::new(place)).unwrap();
            claims.set_connected(&driver, true);
            driver
        };
        let tells = ["v1.DRAPlugin", "v1.DRAResourceHealth"];
        let old = put("/old", &tells);
        put("/mute", &["v1.DRAPlugin"]);
        assert!(!claims.is_succeeded(&old));
        let new = put("/new", &tells);
        assert!(claims.is_succeeded(&old));
        claims.set_connected(&new, false);
        assert!(!claims.is_succeeded(&old));
    }
}
