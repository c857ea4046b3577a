//! What the store knows: one small document, replaced atomically.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Error;
use crate::blobs::write_atomically;
use crate::digest::{Digest, chain_ids};
use crate::error::During;

const FILE: &str = "state.json";
const VERSION: u32 = 1;

/// Who last wrote a tag: decides what `imagePullPolicy: Always` asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Origin {
    /// Build, load, commit, tag or import: no registry is asked for it.
    Local,
    /// Pulled from a registry.
    Registry,
}

/// Everything that outlives the process, but for content and snapshots.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct State {
    version: u32,
    /// By the configuration's digest.
    pub(crate) images: BTreeMap<Digest, ImageRecord>,
    /// By normalised name.
    pub(crate) tags: BTreeMap<String, TagRecord>,
    /// Unpacked layers by chain id: the number that names the directory.
    pub(crate) layers: BTreeMap<Digest, u64>,
    next_layer: u64,
    /// Whether the last save failed: then the file may say what this does not.
    #[serde(skip)]
    pub(crate) unsaved: bool,
    /// Images by what a builder would have to do to make them.
    pub(crate) cache: BTreeMap<String, Digest>,
}

/// An image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    pub(crate) manifest: Digest,
    pub(crate) layers: Vec<LayerRecord>,
    /// The image that a build made it from.
    pub(crate) parent: Option<Digest>,
    /// `repository@digest`.
    pub(crate) repo_digests: BTreeSet<String>,
}

impl ImageRecord {
    /// The chain id of each layer.
    pub(crate) fn chain(&self) -> Vec<Digest> {
        let diff_ids: Vec<_> = self.layers.iter().map(|layer| layer.diff_id.clone()).collect();
        chain_ids(&diff_ids)
    }
}

/// A layer of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    pub(crate) diff_id: Digest,
    /// The archive as it is kept, maybe compressed.
    pub(crate) blob: Digest,
    pub(crate) media_type: String,
    pub(crate) blob_bytes: u64,
    pub(crate) unpacked_bytes: u64,
}

/// A name of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TagRecord {
    pub(crate) id: Digest,
    pub(crate) origin: Origin,
}

impl State {
    pub(crate) fn load(root: &Path) -> Result<Self, Error> {
        let path = root.join(FILE);
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Self { version: VERSION, ..Self::default() });
            }
            other => other.during_on("read", &path)?,
        };
        let state: Self = serde_json::from_slice(&bytes)
            .map_err(|error| Error::Invalid(format!("{} cannot be read: {error}", path.display())))?;
        if state.version != VERSION {
            let message = format!(
                "{} has version {}, not {VERSION}: use the skiff that wrote it",
                path.display(),
                state.version
            );
            return Err(Error::Invalid(message));
        }
        Ok(state)
    }

    pub(crate) fn save(&self, root: &Path, staging: &Path) -> Result<(), Error> {
        let bytes = serde_json::to_vec(self).map_err(|error| Error::io("write the image state", error))?;
        write_atomically(root, FILE, staging, &bytes)
    }

    /// A number that names a new layer directory.
    pub(crate) fn next_layer(&mut self) -> u64 {
        self.next_layer += 1;
        self.next_layer
    }

    /// The names of an image.
    pub(crate) fn tags_of<'a>(&'a self, id: &'a Digest) -> impl Iterator<Item = (&'a String, Origin)> + 'a {
        self.tags.iter().filter(move |(_, tag)| tag.id == *id).map(|(name, tag)| (name, tag.origin))
    }

    /// Whether images were built from it.
    pub(crate) fn has_children(&self, id: &Digest) -> bool {
        self.images.values().any(|image| image.parent.as_ref() == Some(id))
    }

    /// Content that something names.
    pub(crate) fn live_blobs(&self) -> BTreeSet<Digest> {
        let mut live = BTreeSet::new();
        for (id, image) in &self.images {
            live.insert(id.clone());
            live.insert(image.manifest.clone());
            live.extend(image.layers.iter().map(|layer| layer.blob.clone()));
        }
        live
    }

    /// Forgets unpacked layers that no image has; answers whether there were any.
    pub(crate) fn drop_dead_layers(&mut self) -> bool {
        let live: BTreeSet<Digest> = self.images.values().flat_map(ImageRecord::chain).collect();
        let before = self.layers.len();
        self.layers.retain(|chain, _| live.contains(chain));
        self.layers.len() < before
    }
}
