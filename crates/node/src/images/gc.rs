//! Images are removed where the disk is full beyond a threshold: those first that nobody has used for the longest time,
//! never one that a container uses, and never one that was built or loaded here, which no registry could give back. Only
//! what pods have used goes: what somebody has pulled for himself, by the Docker API, is his.
//! Source: `pkg/kubelet/images/image_gc_manager.go`, its thresholds and period.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use api::Key;
use async_trait::async_trait;
use engine_api::{ContainerStatus, EngineError, Image, ImageOrigin, Images};
use jiff::Timestamp;
use parking_lot::Mutex;
use reconcile::{EventType, Involved, kinds};
use serde::{Deserialize, Serialize};
use tokio::sync::{RwLock, RwLockReadGuard};

use super::config::GarbagePolicy as Policy;
use crate::deps::{Deps, blocking};
use crate::pod::ContainerRecord;

/// The disk is looked at so often.
const PERIOD: Duration = Duration::from_secs(300);

/// A pull of which nobody has told the end for so long has been given up.
const LOST_AFTER: Duration = Duration::from_secs(3600);

/// A disk, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Disk {
    capacity: u64,
    available: u64,
}

impl Disk {
    /// The one of a directory. Blocks.
    fn of(directory: &Path) -> io::Result<Self> {
        let read = rustix::fs::statvfs(directory)?;
        let bytes = |blocks: u64| blocks.saturating_mul(read.f_frsize);
        Ok(Self { capacity: bytes(read.f_blocks), available: bytes(read.f_bavail) })
    }

    /// Percent in use.
    fn used_percent(&self) -> u64 {
        let left = u128::from(self.available) * 100 / u128::from(self.capacity.max(1));
        100 - u64::try_from(left).unwrap_or(100).min(100)
    }
}

/// Bytes that have to go; `None` while the disk is not full.
fn surplus(disk: Disk, policy: Policy) -> Option<u64> {
    if disk.capacity == 0 || disk.used_percent() < u64::from(policy.high_percent) {
        return None;
    }
    let wanted = u128::from(disk.capacity) * u128::from(100 - policy.low_percent) / 100;
    Some(u64::try_from(wanted).unwrap_or(u64::MAX).saturating_sub(disk.available))
}

/// When an image was first seen with a pod, and last used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Seen {
    first: Timestamp,
    used: Option<Timestamp>,
}

/// Whether a registry could give an image back.
fn is_replaceable(image: &Image) -> bool {
    let local = image.tags.values().any(|origin| *origin == ImageOrigin::Local);
    let known = !image.tags.is_empty() || !image.repo_digests.is_empty();
    known && !local
}

/// The images that may go, in their order, with their sizes.
fn candidates(
    images: &[Image],
    seen: &BTreeMap<String, Seen>,
    in_use: &BTreeSet<String>,
    now: Timestamp,
    policy: Policy,
) -> Vec<(String, u64)> {
    let old = |at: Timestamp| now.duration_since(at).unsigned_abs() >= policy.min_age && at < now;
    let mut may_go: Vec<(Seen, &Image)> = images
        .iter()
        .filter(|image| is_replaceable(image) && !in_use.contains(&image.id))
        .filter_map(|image| Some((*seen.get(&image.id)?, image)))
        .filter(|(seen, _)| old(seen.first) && seen.used.is_none_or(old))
        .collect();
    may_go.sort_by(|(a, one), (b, other)| (a.used, a.first, &one.id).cmp(&(b.used, b.first, &other.id)));
    may_go.into_iter().map(|(_, image)| (image.id.clone(), image.size_bytes)).collect()
}

/// Those of them that nobody has used for longer than they may lie here. Of what nobody has used since it was seen first,
/// that counts. Source: `freeOldImages`.
fn outdated(
    candidates: &[(String, u64)],
    seen: &BTreeMap<String, Seen>,
    now: Timestamp,
    policy: Policy,
) -> Vec<(String, u64)> {
    let Some(max_age) = policy.max_age else { return Vec::new() };
    let old = |id: &String| {
        let last = seen.get(id).map(|seen| seen.used.unwrap_or(seen.first));
        last.is_some_and(|last| last < now && now.duration_since(last).unsigned_abs() > max_age)
    };
    candidates.iter().filter(|(id, _)| old(id)).cloned().collect()
}

/// The images of all containers, also of those that have ended: they may be started again.
#[derive(Debug, Default)]
struct InUse {
    all: BTreeSet<String>,
    of_pods: BTreeSet<String>,
}

impl InUse {
    fn by(containers: Vec<ContainerStatus>) -> Self {
        let mut used = Self::default();
        for container in containers {
            if ContainerRecord::from_status(&container).is_some() {
                used.of_pods.insert(container.spec.image_id.clone());
            }
            used.all.insert(container.spec.image_id);
        }
        used
    }
}

/// Who knows which images containers are made of.
#[async_trait]
trait Uses: Sync {
    async fn in_use(&self) -> Result<BTreeSet<String>, EngineError>;
}

#[async_trait]
impl Uses for Deps {
    async fn in_use(&self) -> Result<BTreeSet<String>, EngineError> {
        let mut in_use = InUse::by(self.runtime.containers().await?).all;
        in_use.extend(self.images.held().await?.into_iter().map(|(_, id)| id));
        Ok(in_use)
    }
}

/// What is known of images, and who may count on them.
#[derive(Default)]
pub(crate) struct Garbage {
    seen: Mutex<BTreeMap<String, Seen>>,
    /// Held for writing while an image goes.
    gate: RwLock<()>,
    removed: AtomicU64,
}

/// What a round did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Freed {
    images: u64,
    bytes: u64,
}

impl Garbage {
    /// How many images have gone.
    pub(super) fn removed(&self) -> u64 {
        self.removed.load(Ordering::Acquire)
    }

    /// As long as what is given back is held, no image goes.
    pub(super) async fn hold(&self) -> RwLockReadGuard<'_, ()> {
        self.gate.read().await
    }

    /// A container is about to use an image: from now on, and not only when there is a container.
    pub(super) fn is_used(&self, id: &str, now: Timestamp) {
        let mut seen = self.seen.lock();
        seen.entry(id.to_owned()).or_insert(Seen { first: now, used: None }).used = Some(now);
    }

    /// Notes which images are those of pods, and which are in use, and forgets those that are gone.
    fn note(&self, images: &[Image], used: &InUse, now: Timestamp) {
        let mut seen = self.seen.lock();
        for id in &used.of_pods {
            seen.entry(id.clone()).or_insert(Seen { first: now, used: None });
        }
        let in_use = seen.iter_mut().filter(|(id, _)| used.all.contains(*id));
        in_use.for_each(|(_, entry)| entry.used = Some(now));
        let there: BTreeSet<&String> = images.iter().map(|image| &image.id).collect();
        seen.retain(|id, _| there.contains(id));
    }

    /// What a node before this one has noted; nothing where there is none, or it cannot be read: the images are noted anew
    /// when they are used. Blocks.
    fn load(&self, file: &Path) {
        let text = std::fs::read(file).unwrap_or_default();
        let noted: BTreeMap<String, Seen> = serde_json::from_slice(&text).unwrap_or_default();
        let mut seen = self.seen.lock();
        for (id, noted) in noted {
            seen.entry(id).or_insert(noted);
        }
    }

    /// Blocks.
    fn save(&self, file: &Path) -> io::Result<()> {
        let text = serde_json::to_vec(&*self.seen.lock())?;
        sys::files::write_atomic(file, &text)
    }

    /// Removes images until so many bytes are free, in the order of `plan`. `uses` is asked again before each: others than
    /// this node may have made a container of it meanwhile.
    async fn free(
        &self,
        images: &dyn Images,
        uses: &dyn Uses,
        plan: Vec<(String, u64)>,
        surplus: u64,
        begun: Timestamp,
    ) -> Freed {
        let mut freed = Freed::default();
        for (id, bytes) in plan {
            if freed.bytes >= surplus {
                break;
            }
            let _alone = self.gate.write().await;
            let used = self.seen.lock().get(&id).and_then(|seen| seen.used);
            if used.is_some_and(|used| used >= begun) {
                continue;
            }
            match uses.in_use().await {
                Ok(in_use) if in_use.contains(&id) => continue,
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, "no images are removed: nobody knows which are in use");
                    break;
                }
            }
            match images.remove(&id, true).await {
                Ok(_) => {
                    self.removed.fetch_add(1, Ordering::Release);
                    self.seen.lock().remove(&id);
                    freed.images += 1;
                    freed.bytes = freed.bytes.saturating_add(bytes);
                }
                Err(error) => tracing::warn!(image = id, %error, "an image that nobody uses is not removed"),
            }
        }
        freed
    }
}

/// Looks at the disk every five minutes until it is dropped.
pub(crate) async fn keep(deps: Arc<Deps>) {
    let (noted, loading) = (deps.config.data_dir.join("images.json"), deps.clone());
    let file = noted.clone();
    let _ = blocking(move || loading.garbage.load(&file)).await;
    loop {
        if let Err(error) = round(&deps).await {
            tracing::warn!(error = %base::error::chain(&*error), "images cannot be looked through");
        }
        let (file, saving) = (noted.clone(), deps.clone());
        if let Ok(Err(error)) = blocking(move || saving.garbage.save(&file)).await {
            tracing::warn!(%error, "which images pods have used cannot be written down");
        }
        deps.clock.sleep_until(deps.now().saturating_add(PERIOD).unwrap_or(Timestamp::MAX)).await;
    }
}

/// Removes every image that nobody uses, to make room on the disk; who was just pulled is about to be used, also then.
/// Source: `DeleteUnusedImages`, whose `freeSpace` keeps to the least age.
pub(crate) async fn reclaim(deps: &Deps) {
    let begun = deps.now();
    let policy = deps.config.images.garbage;
    let (images, used) = match looked_through(deps, begun).await {
        Ok(found) => found,
        Err(error) => {
            return tracing::warn!(%error, "no image goes to make room: nobody knows which are in use");
        }
    };
    let plan = candidates(&images, &deps.garbage.seen.lock().clone(), &used.all, begun, policy);
    free(deps, plan, u64::MAX, begun).await;
}

/// All images, and which of them are in use, which is noted.
async fn looked_through(deps: &Deps, now: Timestamp) -> Result<(Vec<Image>, InUse), EngineError> {
    let images = deps.images.list().await?;
    let mut used = InUse::by(deps.runtime.containers().await?);
    // Those that pods have as volumes.
    let held = deps.images.held().await?.into_iter().map(|(_, id)| id);
    used.of_pods.extend(held);
    used.all.extend(used.of_pods.iter().cloned());
    deps.garbage.note(&images, &used, now);
    Ok((images, used))
}

async fn round(deps: &Deps) -> Result<(), base::BoxError> {
    let begun = deps.now();
    let (images, used) = looked_through(deps, begun).await?;
    let (garbage, policy) = (&deps.garbage, deps.config.images.garbage);
    deps.puller.prune(&images, begun).await;
    super::settle(deps, LOST_AFTER).await;
    let mut plan = candidates(&images, &garbage.seen.lock().clone(), &used.all, begun, policy);
    let outdated = outdated(&plan, &garbage.seen.lock().clone(), begun, policy);
    plan.retain(|image| !outdated.contains(image));
    let freed = free(deps, outdated, u64::MAX, begun).await;
    if freed.images > 0 {
        tracing::info!(
            images = freed.images,
            bytes = freed.bytes,
            "images removed that nobody has used for long"
        );
    }
    // Images lie on the disk of the node's own directory.
    let data_dir = deps.config.data_dir.clone();
    let disk = blocking(move || Disk::of(&data_dir)).await??;
    let Some(surplus) = surplus(disk, policy) else { return Ok(()) };
    let freed = free(deps, plan, surplus, begun).await;
    tracing::info!(
        used_percent = disk.used_percent(),
        images = freed.images,
        bytes = freed.bytes,
        "images removed"
    );
    if freed.bytes < surplus {
        fell_short(deps, disk, surplus, freed.bytes);
    }
    Ok(())
}

async fn free(deps: &Deps, plan: Vec<(String, u64)>, surplus: u64, begun: Timestamp) -> Freed {
    let freed = deps.garbage.free(&*deps.images, deps, plan, surplus, begun).await;
    deps.figures.collected(freed.images);
    freed
}

fn fell_short(deps: &Deps, disk: Disk, surplus: u64, freed: u64) {
    let node = Involved::named(&kinds::NODES, &Key::new("", deps.config.node_name.clone()), "");
    let text = format!(
        "Failed to garbage collect required amount of images. Attempted to free {surplus} bytes, but only found \
         {freed} bytes eligible to free. The disk is {} % full: make room on it",
        disk.used_percent()
    );
    deps.recorder.event(node, EventType::Warning, "FreeDiskSpaceFailed", text);
}

#[cfg(test)]
#[path = "gc_tests.rs"]
mod tests;
