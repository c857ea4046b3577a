//! The store: what is in it, under which names, and what leaves it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base::lock::FileLock;
use parking_lot::Mutex;

use crate::Error;
use crate::blobs::{Blobs, DOCUMENT_BYTES_MAX};
use crate::digest::{Digest, is_hex};
use crate::document::{self, Descriptor, ImageDocument, Manifest};
use crate::error::During;
use crate::hosts::RegistryConfig;
use crate::pack::PackedLayer;
use crate::partial::Partials;
use crate::reference::{Reference, familiar};
use crate::registry::Registries;
use crate::snapshot::Snapshots;
use crate::state::{ImageRecord, LayerRecord, Origin, State, TagRecord};

/// The image store of one directory. Clones share it.
#[derive(Debug, Clone)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
    pub(crate) registries: Arc<Registries>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) root: PathBuf,
    pub(crate) staging: PathBuf,
    pub(crate) blobs: Blobs,
    pub(crate) partials: Partials,
    pub(crate) state: Mutex<State>,
    pub(crate) snapshots: Snapshots,
    /// Held while layers are unpacked, so that two users of an image do the work once.
    pub(crate) unpacking: Mutex<()>,
    activity: Mutex<Activity>,
    /// Keeps a second process out.
    _lock: FileLock,
}

/// Who is adding content that no image names yet.
#[derive(Debug, Default)]
struct Activity {
    leases: usize,
    /// A collection waits for the last of them.
    collection_due: bool,
}

/// While it lives, nothing is collected: for work that adds content before an image names it.
#[derive(Debug)]
pub struct Lease {
    store: Store,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut activity = self.store.inner.activity.lock();
        activity.leases -= 1;
        let due = activity.leases == 0 && std::mem::take(&mut activity.collection_due);
        drop(activity);
        if due && let Err(error) = self.store.collect_garbage() {
            tracing::warn!(%error, "unused image content could not be removed");
        }
    }
}

/// An image as it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Image {
    /// The configuration's digest.
    pub id: Digest,
    /// The manifest's digest.
    pub manifest_digest: Digest,
    /// Normalised names and who wrote them.
    pub tags: BTreeMap<String, Origin>,
    /// `repository@digest`.
    pub repo_digests: Vec<String>,
    /// The sizes of its unpacked layers in bytes, the lowest first.
    pub layer_bytes: Vec<u64>,
    /// The image that a build made it from.
    pub parent: Option<Digest>,
    /// Its configuration.
    pub document: ImageDocument,
    /// Its configuration as stored.
    pub config_json: String,
}

/// What a name means.
#[derive(Debug, Clone, PartialEq)]
pub struct Resolved {
    /// The name, normalised; the id where the user gave one.
    pub reference: String,
    /// The image.
    pub image: Image,
    /// Who wrote the name.
    pub origin: Origin,
}

/// What a removal did, in Docker's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removed {
    /// A name went; as users read it.
    Untagged(String),
    /// An image went.
    Deleted(Digest),
}

/// An image to be made over another one.
#[derive(Debug, Clone, Default)]
pub struct NewImage {
    /// The image whose layers lie below.
    pub parent: Option<Digest>,
    /// Its configuration; the layers in it are set by the store.
    pub document: ImageDocument,
    /// Its own layer, if it has one.
    pub layer: Option<PackedLayer>,
    /// What a builder would have to do to make it again.
    pub cache_key: Option<String>,
}

impl Store {
    /// Opens or makes the store in a directory, and removes what unfinished work left there.
    pub fn open(root: &Path) -> Result<Self, Error> {
        let staging = root.join("staging");
        fs::create_dir_all(root.join("layers")).during_on("create", root)?;
        let lock = File::create(root.join("lock")).during_on("create a lock in", root)?;
        let lock = FileLock::take(lock).map_err(|error| match error.kind() {
            io::ErrorKind::ResourceBusy => Error::Conflict(format!(
                "{} is in use by another skiff: stop it, or use another data directory",
                root.display()
            )),
            _ => Error::io(format!("lock {}", root.display()), error),
        })?;
        if staging.exists() {
            fs::remove_dir_all(&staging).during_on("empty", &staging)?;
        }
        for directory in [&staging, &root.join("empty")] {
            fs::create_dir_all(directory).during_on("create", directory)?;
        }
        let inner = Inner {
            blobs: Blobs::open(root, &staging)?,
            partials: Partials::open(root)?,
            state: Mutex::new(State::load(root)?),
            snapshots: Snapshots::load(root)?,
            unpacking: Mutex::new(()),
            activity: Mutex::new(Activity::default()),
            root: root.to_owned(),
            staging,
            _lock: lock,
        };
        let store = Self { inner: Arc::new(inner), registries: Arc::default() };
        store.collect_garbage()?;
        Ok(store)
    }

    /// The same store, whose registries are reached as the host's administrator says.
    #[must_use]
    pub fn with_registries(self, config: RegistryConfig) -> Self {
        Self { registries: Arc::new(Registries { config, ..Registries::default() }), ..self }
    }

    /// Keeps everything until it is dropped.
    pub fn lease(&self) -> Lease {
        self.inner.activity.lock().leases += 1;
        Lease { store: self.clone() }
    }

    /// What a name, id or unique start of an id means.
    pub fn resolve(&self, text: &str) -> Result<Resolved, Error> {
        let (reference, id, origin) = {
            let state = self.inner.state.lock();
            find(&state, text)?
        };
        Ok(Resolved { reference, image: self.image(&id)?, origin })
    }

    /// An image by its id.
    pub fn image(&self, id: &Digest) -> Result<Image, Error> {
        let (record, tags) = {
            let state = self.inner.state.lock();
            let record = state.images.get(id).ok_or_else(|| Error::NotFound(id.to_string()))?.clone();
            (record, state.tags_of(id).map(|(name, origin)| (name.clone(), origin)).collect())
        };
        let bytes = self.inner.blobs.document(id)?;
        let (document, config_json) = parse_document(&bytes)?;
        Ok(Image {
            id: id.clone(),
            manifest_digest: record.manifest,
            tags,
            repo_digests: record.repo_digests.into_iter().collect(),
            layer_bytes: record.layers.iter().map(|layer| layer.unpacked_bytes).collect(),
            parent: record.parent,
            document,
            config_json,
        })
    }

    /// Every image that has a name or that nothing was built from: what users call their images.
    pub fn list(&self) -> Result<Vec<Image>, Error> {
        let ids: Vec<Digest> = {
            let state = self.inner.state.lock();
            let tagged: BTreeSet<&Digest> = state.tags.values().map(|tag| &tag.id).collect();
            let parents: BTreeSet<&Digest> =
                state.images.values().filter_map(|image| image.parent.as_ref()).collect();
            state.images.keys().filter(|id| tagged.contains(id) || !parents.contains(id)).cloned().collect()
        };
        Ok(ids.iter().filter_map(|id| self.listed(id)).collect())
    }

    /// An image for a list: one that cannot be read is no reason to hide the others.
    fn listed(&self, id: &Digest) -> Option<Image> {
        match self.image(id) {
            Ok(image) => Some(image),
            // It left meanwhile.
            Err(Error::NotFound(_)) => None,
            Err(error) => {
                tracing::warn!(image = id.as_str(), %error, "an image is not listed: its configuration cannot be read");
                None
            }
        }
    }

    /// Gives an image one more name.
    pub fn tag(&self, source: &str, target: &str) -> Result<(), Error> {
        let target = Reference::parse(target)?;
        if target.digest.is_some() {
            return Err(Error::Reference(target.to_string(), "a tag cannot carry a digest"));
        }
        self.change(|state| {
            let (_, id, _) = find(state, source)?;
            state.tags.insert(target.to_string(), TagRecord { id, origin: Origin::Local });
            Ok(())
        })
    }

    /// Takes a name away, and the image with its last name, as `docker rmi` does. `force` goes on where other names
    /// or containers are in the way; an image that a container uses only loses its names.
    pub fn remove(&self, text: &str, force: bool) -> Result<Vec<Removed>, Error> {
        let removed = self.change(|state| {
            let (reference, id, _) = find(state, text)?;
            let user = self.inner.snapshots.user_of(&id);
            plan_removal(state, &reference, &id, force, user.as_deref(), |id| {
                self.inner.snapshots.user_of(id).is_some()
            })
        })?;
        self.collect_garbage()?;
        Ok(removed)
    }

    /// The image that a builder made for a key.
    pub fn cached(&self, key: &str) -> Option<Digest> {
        self.inner.state.lock().cache.get(key).cloned()
    }

    /// Makes an image from its parent's layers, a new layer and a configuration. It is durable when this returns.
    pub fn create(&self, new: NewImage) -> Result<Digest, Error> {
        let _lease = self.lease();
        let mut layers = match &new.parent {
            None => Vec::new(),
            Some(parent) => {
                let state = self.inner.state.lock();
                state.images.get(parent).ok_or_else(|| Error::NotFound(parent.to_string()))?.layers.clone()
            }
        };
        layers.extend(new.layer.iter().map(|layer| LayerRecord {
            diff_id: layer.digest.clone(),
            blob: layer.digest.clone(),
            media_type: document::LAYER.to_owned(),
            blob_bytes: layer.size_bytes,
            unpacked_bytes: layer.unpacked_bytes,
        }));
        let mut document = new.document;
        document.rootfs.diff_ids = layers.iter().map(|layer| layer.diff_id.clone()).collect();
        let bytes =
            serde_json::to_vec(&document).map_err(|error| Error::io("write a configuration", error))?;
        if bytes.len() as u64 > DOCUMENT_BYTES_MAX {
            return Err(Error::Invalid(format!(
                "the image's configuration is larger than {DOCUMENT_BYTES_MAX} bytes: make its variables and labels smaller"
            )));
        }
        let id = self.inner.blobs.put(&bytes)?;
        let manifest = self.put_manifest(&id, bytes.len() as u64, &layers)?;
        self.change(|state| {
            state.images.entry(id.clone()).or_insert_with(|| ImageRecord {
                manifest,
                layers,
                parent: new.parent,
                repo_digests: BTreeSet::new(),
            });
            if let Some(key) = new.cache_key {
                state.cache.insert(key, id.clone());
            }
            Ok(())
        })?;
        Ok(id)
    }

    /// The content of a small document (manifest or configuration) in the store.
    pub fn read_document(&self, digest: &Digest) -> Result<Vec<u8>, Error> {
        self.inner.blobs.document(digest)
    }

    /// Removes content that no image needs: at once, or when the last lease ends.
    pub fn collect_garbage(&self) -> Result<(), Error> {
        let mut activity = self.inner.activity.lock();
        if activity.leases > 0 {
            activity.collection_due = true;
            return Ok(());
        }
        let mut state = self.inner.state.lock();
        let mut next = state.clone();
        // Nothing goes before the file on disk has let go of it.
        if next.drop_dead_layers() || state.unsaved {
            self.replace(&mut state, next)?;
        }
        let live = state.live_blobs();
        for digest in self.inner.blobs.list()?.iter().filter(|digest| !live.contains(*digest)) {
            self.inner.blobs.remove(digest)?;
        }
        let dead = self.unknown_layers(&state)?;
        let trash = self.inner.staging.join(format!("trash-{}", base::id::suffix(10)));
        if !dead.is_empty() {
            fs::create_dir(&trash).during_on("create", &trash)?;
        }
        for path in &dead {
            let name = path.file_name().unwrap_or_default();
            fs::rename(path, trash.join(name)).during_on("move away", path)?;
        }
        drop(state);
        drop(activity);
        match dead.is_empty() {
            true => Ok(()),
            false => fs::remove_dir_all(&trash).during_on("remove", &trash),
        }
    }

    /// Records an image whose content is in the store.
    pub(crate) fn record(
        &self,
        id: &Digest,
        record: ImageRecord,
        names: &[(String, Origin)],
    ) -> Result<(), Error> {
        self.change(|state| {
            let known = state.images.entry(id.clone()).or_insert_with(|| record.clone());
            known.repo_digests.extend(record.repo_digests);
            for (name, origin) in names {
                state.tags.insert(name.clone(), TagRecord { id: id.clone(), origin: *origin });
            }
            Ok(())
        })
    }

    /// Changes the state on disk and in memory; where the disk refuses, in neither.
    pub(crate) fn change<T>(&self, work: impl FnOnce(&mut State) -> Result<T, Error>) -> Result<T, Error> {
        let mut state = self.inner.state.lock();
        let mut next = state.clone();
        let done = work(&mut next)?;
        self.replace(&mut state, next)?;
        Ok(done)
    }

    /// Saves a state and puts it in place of the one before.
    pub(crate) fn replace(&self, state: &mut State, mut next: State) -> Result<(), Error> {
        if let Err(error) = next.save(&self.inner.root, &self.inner.staging) {
            state.unsaved = true;
            return Err(error);
        }
        next.unsaved = false;
        *state = next;
        Ok(())
    }

    pub(crate) fn put_manifest(
        &self,
        id: &Digest,
        size: u64,
        layers: &[LayerRecord],
    ) -> Result<Digest, Error> {
        let descriptor = |media_type: &str, digest: &Digest, size| Descriptor {
            media_type: media_type.to_owned(),
            digest: digest.clone(),
            size,
            annotations: BTreeMap::new(),
            platform: None,
        };
        let manifest = Manifest::new(
            descriptor(document::CONFIG, id, size),
            layers.iter().map(|layer| descriptor(&layer.media_type, &layer.blob, layer.blob_bytes)).collect(),
        );
        let bytes = serde_json::to_vec(&manifest).map_err(|error| Error::io("write a manifest", error))?;
        self.inner.blobs.put(&bytes)
    }

    /// Directories of layers that the state does not name (any more): a crash or a failed save left them before.
    fn unknown_layers(&self, state: &State) -> Result<Vec<PathBuf>, Error> {
        let known: BTreeSet<String> = state.layers.values().map(u64::to_string).collect();
        let directory = self.inner.root.join("layers");
        let mut unknown = Vec::new();
        for entry in fs::read_dir(&directory).during_on("read", &directory)? {
            let entry = entry.during_on("read", &directory)?;
            if !entry.file_name().to_str().is_some_and(|name| known.contains(name)) {
                unknown.push(entry.path());
            }
        }
        Ok(unknown)
    }
}

impl Inner {
    pub(crate) fn layer_path(&self, number: u64) -> PathBuf {
        self.root.join("layers").join(number.to_string())
    }
}

/// A configuration's parsed form and its text.
pub(crate) fn parse_document(bytes: &[u8]) -> Result<(ImageDocument, String), Error> {
    let text = std::str::from_utf8(bytes)
        .map_err(|_| Error::Invalid("an image configuration is not UTF-8".to_owned()))?;
    let document = serde_json::from_str(text)
        .map_err(|error| Error::Invalid(format!("an image configuration cannot be read: {error}")))?;
    Ok((document, text.to_owned()))
}

/// What a text means: a name first, then an id, then the start of one.
fn find(state: &State, text: &str) -> Result<(String, Digest, Origin), Error> {
    let missing = || Error::NotFound(familiar(text));
    let by_id = |id: &Digest| {
        // An id says nothing of origin: local, unless every name came from a registry.
        let local = state.tags_of(id).any(|(_, origin)| origin == Origin::Local)
            || state.tags_of(id).next().is_none();
        (id.to_string(), id.clone(), if local { Origin::Local } else { Origin::Registry })
    };
    let bare = text.strip_prefix("sha256:").unwrap_or(text);
    if let Ok(reference) = Reference::parse(text) {
        let name = reference.to_string();
        if let Some(tag) = state.tags.get(&name) {
            return Ok((name, tag.id.clone(), tag.origin));
        }
        if let Some(digest) = &reference.digest {
            let wanted = reference.with_digest(digest);
            let holds = |image: &ImageRecord| image.repo_digests.contains(&wanted);
            let (id, _) = state.images.iter().find(|(_, image)| holds(image)).ok_or_else(missing)?;
            return Ok((name, id.clone(), Origin::Registry));
        }
    }
    if !is_hex(bare) || bare.len() > 64 {
        return Err(missing());
    }
    let mut matching = state.images.keys().filter(|id| id.hex().starts_with(bare));
    match (matching.next(), matching.next()) {
        (Some(id), None) => Ok(by_id(id)),
        (Some(_), Some(_)) => {
            Err(Error::Conflict(format!("{text} is the start of several image ids: give more digits")))
        }
        (None, _) => Err(missing()),
    }
}

/// Decides and carries out, in the state only, what removing a name or an id means.
fn plan_removal(
    state: &mut State,
    reference: &str,
    id: &Digest,
    force: bool,
    user: Option<&str>,
    in_use: impl Fn(&Digest) -> bool,
) -> Result<Vec<Removed>, Error> {
    let names: Vec<String> = state.tags_of(id).map(|(name, _)| name.clone()).collect();
    let short = |id: &Digest| id.hex()[..12].to_owned();
    let (going, last) = if state.tags.contains_key(reference) {
        (vec![reference.to_owned()], names.len() == 1)
    } else {
        if names.len() > 1 && !force {
            let message = format!(
                "conflict: unable to delete {} (must be forced) - image is referenced in multiple repositories",
                short(id)
            );
            return Err(Error::Conflict(message));
        }
        (names, true)
    };
    if let (true, Some(user), false) = (last, user, force) {
        let message = format!(
            "conflict: unable to remove repository reference \"{}\" (must force) - container {} is using its referenced image {}",
            familiar(reference),
            &user[..user.len().min(12)],
            short(id)
        );
        return Err(Error::Conflict(message));
    }
    if last && going.is_empty() && state.has_children(id) {
        let message = format!(
            "conflict: unable to delete {} (cannot be forced) - image has dependent child images",
            short(id)
        );
        return Err(Error::Conflict(message));
    }
    let mut removed = Vec::new();
    for name in going {
        state.tags.remove(&name);
        removed.push(Removed::Untagged(familiar(&name)));
    }
    let mut next = last.then(|| id.clone());
    while let Some(id) = next.take() {
        if state.has_children(&id) || in_use(&id) || state.tags_of(&id).next().is_some() {
            break;
        }
        if let Some(record) = state.images.remove(&id) {
            removed.extend(record.repo_digests.iter().map(|name| Removed::Untagged(familiar(name))));
            state.cache.retain(|_, made| *made != id);
            removed.push(Removed::Deleted(id));
            next = record.parent;
        }
    }
    Ok(removed)
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
