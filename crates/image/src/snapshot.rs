//! Snapshots: an image's layers unpacked once, and one writable directory per container over them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use crate::Error;
use crate::blobs::sync_directory;
use crate::compression::decompress;
use crate::digest::{Digest, HashReader};
use crate::error::During;
use crate::overlay::Layers;
use crate::pack::{PackedLayer, pack};
use crate::root::Root;
use crate::state::{ImageRecord, LayerRecord};
use crate::store::Store;
use crate::unpack::Unpack;

const KEY_LENGTH_MAX: usize = 128;

/// What a container's root file system is mounted from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Read-only directories, the topmost first; at least one.
    pub lowerdirs: Vec<PathBuf>,
    /// The writable directory.
    pub upper: PathBuf,
    /// Overlayfs's work directory.
    pub work: PathBuf,
}

impl Snapshot {
    /// As directories of an overlay mount.
    pub fn layers(&self) -> Layers {
        Layers { lower: self.lowerdirs.clone(), upper: Some((self.upper.clone(), self.work.clone())) }
    }
}

/// Which snapshots there are, and of which images.
#[derive(Debug)]
pub(crate) struct Snapshots {
    directory: PathBuf,
    images: Mutex<BTreeMap<String, Digest>>,
}

impl Snapshots {
    pub(crate) fn load(root: &Path) -> Result<Self, Error> {
        let directory = root.join("snapshots");
        fs::create_dir_all(&directory).during_on("create", &directory)?;
        let mut images = BTreeMap::new();
        for entry in fs::read_dir(&directory).during_on("read", &directory)? {
            let path = entry.during_on("read", &directory)?.path();
            let key = path.file_name().and_then(|name| name.to_str());
            match (key, named_image(&path)?) {
                (Some(key), Some(image)) => drop(images.insert(key.to_owned(), image)),
                // Not made by this store: nobody can ask for it.
                _ => fs::remove_dir_all(&path).during_on("remove", &path)?,
            }
        }
        Ok(Self { directory, images: Mutex::new(images) })
    }

    /// A snapshot of an image, if there is one.
    pub(crate) fn user_of(&self, id: &Digest) -> Option<String> {
        self.images.lock().iter().find(|(_, image)| *image == id).map(|(key, _)| key.clone())
    }

    fn image_of(&self, key: &str) -> Result<Digest, Error> {
        let known = self.images.lock().get(key).cloned();
        known.ok_or_else(|| Error::NotFound(format!("snapshot {key}")))
    }

    fn path(&self, key: &str) -> Result<PathBuf, Error> {
        let safe = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        if key.is_empty() || key.len() > KEY_LENGTH_MAX || !key.bytes().all(safe) {
            return Err(Error::Invalid(format!(
                "{key:?} is no snapshot key: letters, digits, '-' and '_' only"
            )));
        }
        Ok(self.directory.join(key))
    }
}

impl Store {
    /// Makes the writable snapshot of a container over an image; the same key again gives the same snapshot.
    pub fn prepare(&self, key: &str, image_id: &Digest) -> Result<Snapshot, Error> {
        let path = self.inner.snapshots.path(key)?;
        let known = self.inner.snapshots.images.lock().get(key).cloned();
        if let Some(known) = known {
            if known != *image_id {
                return Err(Error::Conflict(format!(
                    "snapshot {key} belongs to image {known}: remove it first"
                )));
            }
            return self.snapshot(key);
        }
        // Before anything else, so that the image is not removed meanwhile.
        self.inner.snapshots.images.lock().insert(key.to_owned(), image_id.clone());
        let made = self.unpacked(image_id).and_then(|lowerdirs| {
            let staged = self.stage_snapshot(key, image_id, &lowerdirs)?;
            fs::rename(&staged, &path).during_on("rename to", &path)?;
            Ok(Snapshot { lowerdirs, upper: path.join("upper"), work: path.join("work") })
        });
        if made.is_err() {
            self.inner.snapshots.images.lock().remove(key);
        }
        made
    }

    /// A snapshot that was prepared before.
    pub fn snapshot(&self, key: &str) -> Result<Snapshot, Error> {
        let path = self.inner.snapshots.path(key)?;
        let lowerdirs = self.unpacked(&self.inner.snapshots.image_of(key)?)?;
        Ok(Snapshot { lowerdirs, upper: path.join("upper"), work: path.join("work") })
    }

    /// The keys of all snapshots.
    pub fn snapshots(&self) -> Vec<String> {
        self.inner.snapshots.images.lock().keys().cloned().collect()
    }

    /// Removes a snapshot, which must not be mounted; one that is gone is fine.
    pub fn remove_snapshot(&self, key: &str) -> Result<(), Error> {
        let path = self.inner.snapshots.path(key)?;
        let trash = self.inner.staging.join(format!("snapshot-{}", base::id::suffix(10)));
        match fs::rename(&path, &trash) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other.during_on("move away", &path)?,
        }
        self.inner.snapshots.images.lock().remove(key);
        match fs::remove_dir_all(&trash) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).during_on("remove", &trash),
            _ => Ok(()),
        }
    }

    /// Packs what a snapshot changed into a layer of the content store. Hold a [`Store::lease`] until an image has it.
    pub fn diff(&self, key: &str) -> Result<PackedLayer, Error> {
        self.diff_without(key, &BTreeSet::new())
    }

    /// As [`Store::diff`], but for mount points: empty files at these paths, which are relative to the root.
    pub fn diff_without(&self, key: &str, mount_points: &BTreeSet<PathBuf>) -> Result<PackedLayer, Error> {
        let upper = self.inner.snapshots.path(key)?.join("upper");
        self.inner.snapshots.image_of(key)?;
        let root = Root::open(&upper).during_on("open", &upper)?;
        let ingest = self.inner.blobs.ingest()?;
        let buffered = io::BufWriter::with_capacity(1 << 20, ingest);
        let (packed, buffered) = pack_flushed(&root, mount_points, buffered).during_on("pack", &upper)?;
        let (digest, size_bytes) = self.inner.blobs.commit(buffered, None)?;
        Ok(PackedLayer {
            digest,
            size_bytes,
            unpacked_bytes: packed.unpacked_bytes,
            empty: packed.entries == 0,
        })
    }

    /// A read-only view of an image's whole file system.
    pub fn view(&self, image_id: &Digest) -> Result<Root, Error> {
        let layers = Layers { lower: self.unpacked(image_id)?, upper: None };
        self.mount_view(&layers)
    }

    /// A writable view of a snapshot, which must not be mounted elsewhere meanwhile.
    pub fn writable_view(&self, key: &str) -> Result<Root, Error> {
        let layers = self.snapshot(key)?.layers();
        self.mount_view(&layers)
    }

    fn mount_view(&self, layers: &Layers) -> Result<Root, Error> {
        let scratch = tempfile::tempdir_in(&self.inner.staging).during("create a mount point")?;
        layers.view(scratch.path()).during("mount the image's layers")
    }

    /// An image's layers as directories, the topmost first; unpacks those that are missing.
    pub fn unpacked(&self, image_id: &Digest) -> Result<Vec<PathBuf>, Error> {
        let record = {
            let state = self.inner.state.lock();
            state.images.get(image_id).ok_or_else(|| Error::NotFound(image_id.to_string()))?.clone()
        };
        let _lease = self.lease();
        self.unpack_layers(&record)?;
        self.layer_directories(&record)
    }

    fn layer_directories(&self, record: &ImageRecord) -> Result<Vec<PathBuf>, Error> {
        let state = self.inner.state.lock();
        let mut directories = Vec::with_capacity(record.layers.len() + 1);
        for chain in record.chain().iter().rev() {
            let number = state.layers.get(chain).ok_or_else(|| Error::NotFound(format!("layer {chain}")))?;
            directories.push(self.inner.layer_path(*number));
        }
        if directories.is_empty() {
            directories.push(self.inner.root.join("empty"));
        }
        Ok(directories)
    }

    /// Unpacks the layers of an image that are not yet, verifying each. Answers the sizes of those, by position.
    pub(crate) fn unpack_layers(&self, record: &ImageRecord) -> Result<BTreeMap<usize, u64>, Error> {
        let _one_at_a_time = self.inner.unpacking.lock();
        let chain = record.chain();
        let mut below = Vec::new();
        let mut staged = Vec::new();
        for (position, (layer, chain_id)) in record.layers.iter().zip(&chain).enumerate() {
            let known = self.inner.state.lock().layers.get(chain_id).copied();
            let path = match known {
                Some(number) => self.inner.layer_path(number),
                None => {
                    let (directory, size) = self.unpack_layer(layer, &below)?;
                    let path = directory.path().to_owned();
                    staged.push((position, directory, size));
                    path
                }
            };
            below.insert(0, Root::open(&path).during_on("open", &path)?);
        }
        if staged.is_empty() {
            return Ok(BTreeMap::new());
        }
        // One sync for all files of all layers, before anything names them.
        let root = fs::File::open(&self.inner.root).during_on("open", &self.inner.root)?;
        rustix::fs::syncfs(&root).during("sync the layers")?;
        let mut state = self.inner.state.lock();
        let mut layers = state.layers.clone();
        let mut sizes = BTreeMap::new();
        for (position, directory, size) in staged {
            // A number is used up even if this fails: its directory may be there, until the next collection.
            let number = state.next_layer();
            let path = self.inner.layer_path(number);
            fs::rename(directory.keep(), &path).during_on("rename to", &path)?;
            layers.insert(chain[position].clone(), number);
            sizes.insert(position, size);
        }
        sync_directory(&self.inner.root.join("layers"))?;
        let mut next = state.clone();
        next.layers = layers;
        self.replace(&mut state, next)?;
        Ok(sizes)
    }

    fn unpack_layer(&self, layer: &LayerRecord, below: &[Root]) -> Result<(tempfile::TempDir, u64), Error> {
        let directory = tempfile::tempdir_in(&self.inner.staging).during("create a directory for a layer")?;
        let path = directory.path();
        match below.first() {
            Some(parent) => {
                copy_attributes(&rustix::fs::fstat(parent.as_fd()).during("look at a layer")?, path)?
            }
            None => fs::set_permissions(path, fs::Permissions::from_mode(0o755))
                .during_on("set the mode of", path)?,
        }
        let blob = self.inner.blobs.open_blob(&layer.blob)?;
        let mut archive = HashReader::new(decompress(blob).during("read a layer")?);
        let root = Root::open(path).during_on("open", path)?;
        let size = Unpack::layer(&root, below).run(&mut archive)?;
        let actual = archive.finish().during("read a layer")?;
        if actual != layer.diff_id {
            return Err(Error::Digest { expected: layer.diff_id.to_string(), actual: actual.to_string() });
        }
        Ok((directory, size))
    }

    fn stage_snapshot(&self, key: &str, image_id: &Digest, lower: &[PathBuf]) -> Result<PathBuf, Error> {
        let staged = self.inner.staging.join(format!("{key}-{}", base::id::suffix(10)));
        for directory in [&staged, &staged.join("upper"), &staged.join("work")] {
            fs::create_dir(directory).during_on("create", directory)?;
        }
        let upper = staged.join("upper");
        if let Some(top) = lower.first() {
            // The root of an overlay has the attributes of its upper directory.
            let metadata = fs::metadata(top).during_on("look at", top)?;
            chown(&upper, Some(metadata.uid()), Some(metadata.gid()))
                .during_on("set the owner of", &upper)?;
            fs::set_permissions(&upper, metadata.permissions()).during_on("set the mode of", &upper)?;
        }
        // The image is told by the name of an empty file. A name belongs to the directory, whose changes file systems keep
        // in order: whoever finds the snapshot after a crash finds this too, and no start of a container waits for the
        // disk. (What containers write into snapshots is not synced for them either.)
        let path = staged.join(image_id.as_str());
        fs::File::create_new(&path).during_on("create", &path)?;
        Ok(staged)
    }
}

/// The image that a snapshot's directory is of.
fn named_image(directory: &Path) -> Result<Option<Digest>, Error> {
    for entry in fs::read_dir(directory).during_on("read", directory)? {
        let name = entry.during_on("read", directory)?.file_name();
        if let Some(image) = name.to_str().and_then(|name| Digest::parse(name).ok()) {
            return Ok(Some(image));
        }
    }
    Ok(None)
}

fn copy_attributes(stat: &rustix::fs::Stat, path: &Path) -> Result<(), Error> {
    chown(path, Some(stat.st_uid), Some(stat.st_gid)).during_on("set the owner of", path)?;
    let mode = fs::Permissions::from_mode(stat.st_mode & 0o7777);
    fs::set_permissions(path, mode).during_on("set the mode of", path)
}

/// Packs into a buffered writer and gives back the one inside.
fn pack_flushed<W: Write>(
    root: &Root,
    mount_points: &BTreeSet<PathBuf>,
    out: io::BufWriter<W>,
) -> io::Result<(crate::pack::Packed, W)> {
    let (packed, buffered) = pack(root, mount_points, out)?;
    Ok((packed, buffered.into_inner().map_err(io::IntoInnerError::into_error)?))
}
