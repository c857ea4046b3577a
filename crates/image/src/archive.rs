//! Archives of images: Docker's and the OCI layout are read, one that is both is written.
//!
//! Source: OCI image specification, "Image Layout"; the `manifest.json` of `docker save`.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tar::{EntryType, Header};

use crate::Error;
use crate::compression::{self, Compression, decompress};
use crate::digest::Digest;
use crate::document::{self, Descriptor, ImageDocument, Index, Manifest, Platform};
use crate::entries::Entries;
use crate::error::During;
use crate::pack::PackedLayer;
use crate::reference::{Reference, familiar};
use crate::root::archive_path;
use crate::state::{ImageRecord, LayerRecord, Origin};
use crate::store::{NewImage, Store, parse_document};

const ENTRIES_MAX: usize = 100_000;
const NAME_ANNOTATIONS: [&str; 2] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];

/// An image in `manifest.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// What an archive held, by path; the content is in the store.
#[derive(Default)]
struct Contents {
    files: BTreeMap<PathBuf, Digest>,
    links: BTreeMap<PathBuf, PathBuf>,
}

impl Contents {
    fn get(&self, path: &Path) -> Option<&Digest> {
        let path = crate::root::clean(path);
        let path = self.links.get(&path).unwrap_or(&path);
        self.files.get(path)
    }

    /// A file that must be there.
    fn need(&self, path: &str) -> Result<&Digest, Error> {
        self.get(Path::new(path)).ok_or_else(|| Error::Invalid(format!("the archive lacks {path:?}")))
    }

    /// A blob of an OCI layout: stored under its digest, so that what lies there must have it.
    fn blob(&self, digest: &Digest) -> Result<&Digest, Error> {
        let found = self.need(&format!("blobs/sha256/{}", digest.hex()))?;
        match found == digest {
            true => Ok(found),
            false => Err(Error::Digest { expected: digest.to_string(), actual: found.to_string() }),
        }
    }
}

impl Store {
    /// Loads a docker or OCI archive, compressed or not. Answers the names loaded, as users read them; the id for an
    /// image without a name.
    pub fn load(&self, archive: impl Read) -> Result<Vec<String>, Error> {
        let _lease = self.lease();
        let contents = self.ingest_archive(archive)?;
        let index: Option<Index> = self.optional(&contents, "index.json")?;
        let docker: Option<Vec<DockerImage>> = self.optional(&contents, "manifest.json")?;
        let mut loaded = Vec::new();
        match (docker, index) {
            (Some(images), index) => {
                let manifests = self.manifests_by_config(&contents, index.as_ref());
                for image in images {
                    loaded.extend(self.load_docker_image(&contents, &image, &manifests)?);
                }
            }
            (None, Some(index)) => {
                for entry in &index.manifests {
                    loaded.push(self.load_layout_image(&contents, entry)?);
                }
            }
            (None, None) => {
                let message = "this is no image archive: it has neither manifest.json nor index.json \
                               (a plain root file system is imported, not loaded)";
                return Err(Error::Invalid(message.to_owned()));
            }
        }
        // Archives hold files that are no content; they go when the lease ends.
        self.collect_garbage()?;
        Ok(loaded)
    }

    /// Makes an image of one layer from the archive of a root file system. Answers its id.
    pub fn import(&self, archive: impl Read, reference: &str) -> Result<Digest, Error> {
        let name = Reference::parse(reference)?;
        let _lease = self.lease();
        let mut ingest = self.inner.blobs.ingest()?;
        let mut archive = decompress(archive).during("read the archive")?;
        io::copy(&mut archive, &mut ingest).during("read the archive")?;
        let (digest, size_bytes) = self.inner.blobs.commit(ingest, None)?;
        let mut layer = PackedLayer { digest, size_bytes, unpacked_bytes: 0, empty: false };
        let record = layer_record(&layer);
        let image = ImageRecord {
            manifest: layer.digest.clone(),
            layers: vec![record],
            parent: None,
            repo_digests: BTreeSet::new(),
        };
        // Unpacked before it is an image: a file that is no archive never becomes one.
        let unpacked = self.unpack_layers(&image)?.remove(&0);
        let known = || self.known_sizes().get(&layer.digest).copied();
        layer.unpacked_bytes = unpacked.or_else(known).unwrap_or(size_bytes);
        let now = document::timestamp();
        let platform = Platform::host();
        let document = ImageDocument {
            architecture: platform.architecture,
            os: platform.os,
            created: Some(now.clone()),
            history: vec![crate::History {
                created: Some(now),
                comment: "Imported from -".to_owned(),
                ..crate::History::default()
            }],
            ..ImageDocument::default()
        };
        let id = self.create(NewImage { parent: None, document, layer: Some(layer), cache_key: None })?;
        self.tag(id.as_str(), &name.to_string())?;
        Ok(id)
    }

    /// Writes images as one archive that docker and OCI tools both read.
    pub fn save_archive(&self, references: &[String], out: impl Write) -> Result<(), Error> {
        let _lease = self.lease();
        let mut writer = ArchiveWriter { tar: tar::Builder::new(out), written: BTreeSet::new() };
        let mut index =
            Index { schema_version: 2, media_type: document::INDEX.to_owned(), manifests: Vec::new() };
        let mut docker: BTreeMap<Digest, DockerImage> = BTreeMap::new();
        for reference in references {
            let resolved = self.resolve(reference)?;
            let record = {
                let state = self.inner.state.lock();
                state
                    .images
                    .get(&resolved.image.id)
                    .cloned()
                    .ok_or_else(|| Error::NotFound(reference.clone()))?
            };
            self.write_content(&mut writer, &resolved.image.id, &record)?;
            let name = resolved.image.tags.contains_key(&resolved.reference).then_some(resolved.reference);
            index.manifests.push(self.layout_entry(&record, name.as_deref())?);
            let entry = docker.entry(resolved.image.id.clone()).or_insert_with(|| DockerImage {
                config: blob_path(&resolved.image.id),
                repo_tags: None,
                layers: record.layers.iter().map(|layer| blob_path(&layer.blob)).collect(),
            });
            if let Some(name) = name {
                entry.repo_tags.get_or_insert_default().push(familiar(&name));
            }
        }
        writer.json("index.json", &index)?;
        writer.json("oci-layout", &serde_json::json!({ "imageLayoutVersion": "1.0.0" }))?;
        writer.json("manifest.json", &docker.into_values().collect::<Vec<_>>())?;
        writer.tar.into_inner().and_then(|mut out| out.flush()).during("write the archive")
    }

    fn write_content<W: Write>(
        &self,
        writer: &mut ArchiveWriter<W>,
        id: &Digest,
        record: &ImageRecord,
    ) -> Result<(), Error> {
        let layers = record.layers.iter().map(|layer| &layer.blob);
        for digest in [id, &record.manifest].into_iter().chain(layers) {
            if writer.written.insert(digest.clone()) {
                let size = self.inner.blobs.size(digest)?;
                writer.file(&blob_path(digest), size, self.inner.blobs.open_blob(digest)?)?;
            }
        }
        Ok(())
    }

    fn layout_entry(&self, record: &ImageRecord, name: Option<&str>) -> Result<Descriptor, Error> {
        let bytes = self.inner.blobs.document(&record.manifest)?;
        let manifest: Manifest = parse(&bytes, "a manifest")?;
        let media_type =
            if manifest.media_type.is_empty() { document::MANIFEST.to_owned() } else { manifest.media_type };
        let mut annotations = BTreeMap::new();
        if let Some(name) = name {
            annotations.insert(NAME_ANNOTATIONS[0].to_owned(), name.to_owned());
            let tag = name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
            annotations.insert(NAME_ANNOTATIONS[1].to_owned(), tag.to_owned());
        }
        Ok(Descriptor {
            media_type,
            digest: record.manifest.clone(),
            size: bytes.len() as u64,
            annotations,
            platform: None,
        })
    }

    /// Puts every file of an archive into the content store.
    fn ingest_archive(&self, archive: impl Read) -> Result<Contents, Error> {
        let bad = |error| Error::io("read the archive", error);
        let mut entries = Entries::new(decompress(archive).map_err(bad)?);
        let mut contents = Contents::default();
        while let Some(entry) = entries.next().map_err(bad)? {
            if contents.files.len() + contents.links.len() >= ENTRIES_MAX {
                return Err(Error::Invalid(format!("the archive has more than {ENTRIES_MAX} entries")));
            }
            let Some(path) = archive_path(&entry.path) else {
                let shown = String::from_utf8_lossy(&entry.path).into_owned();
                return Err(Error::Invalid(format!("the archive's path {shown:?} leads out of it")));
            };
            match entry.kind() {
                EntryType::Regular | EntryType::Continuous => {
                    let mut ingest = self.inner.blobs.ingest()?;
                    io::copy(&mut entries.content(), &mut ingest).map_err(bad)?;
                    contents.files.insert(path, self.inner.blobs.commit(ingest, None)?.0);
                }
                kind @ (EntryType::Symlink | EntryType::Link) => {
                    let target = PathBuf::from(OsStr::from_bytes(entry.link.as_deref().unwrap_or_default()));
                    let from = if kind == EntryType::Link { None } else { path.parent() };
                    let target = crate::root::clean(&from.unwrap_or(Path::new("")).join(target));
                    contents.links.insert(path, target);
                }
                _ => {}
            }
        }
        Ok(contents)
    }

    fn optional<T: for<'de> Deserialize<'de>>(
        &self,
        contents: &Contents,
        name: &str,
    ) -> Result<Option<T>, Error> {
        match contents.get(Path::new(name)) {
            None => Ok(None),
            Some(digest) => parse(&self.inner.blobs.document(digest)?, name).map(Some),
        }
    }

    /// The manifests of a layout by the configuration that they name; what cannot be read is left out.
    fn manifests_by_config(&self, contents: &Contents, index: Option<&Index>) -> BTreeMap<Digest, Digest> {
        let mut found = BTreeMap::new();
        for entry in index.into_iter().flat_map(|index| &index.manifests) {
            let manifest = contents.blob(&entry.digest).and_then(|digest| self.inner.blobs.document(digest));
            let manifest = manifest.and_then(|bytes| parse::<Manifest>(&bytes, "a manifest"));
            if let Ok(manifest) = manifest {
                found.insert(manifest.config.digest, entry.digest.clone());
            }
        }
        found
    }

    fn load_docker_image(
        &self,
        contents: &Contents,
        image: &DockerImage,
        manifests: &BTreeMap<Digest, Digest>,
    ) -> Result<Vec<String>, Error> {
        let id = contents.need(&image.config)?;
        let mut blobs = Vec::new();
        for layer in &image.layers {
            blobs.push(contents.need(layer)?.clone());
        }
        let mut names = Vec::new();
        for tag in image.repo_tags.iter().flatten() {
            names.push(Reference::parse(tag)?.to_string());
        }
        self.adopt(id, &blobs, manifests.get(id).cloned(), names.clone(), Origin::Local, None)?;
        match names.is_empty() {
            true => Ok(vec![id.to_string()]),
            false => Ok(names.iter().map(|name| familiar(name)).collect()),
        }
    }

    fn load_layout_image(&self, contents: &Contents, entry: &Descriptor) -> Result<String, Error> {
        let mut digest = contents.blob(&entry.digest)?.clone();
        let mut bytes = self.inner.blobs.document(&digest)?;
        if matches!(entry.media_type.as_str(), document::INDEX | document::DOCKER_LIST) {
            let index: Index = parse(&bytes, "an index")?;
            let host = Platform::host();
            let chosen = index.select(&host).ok_or_else(|| {
                Error::Invalid(format!("the archive has no image for {}/{}", host.os, host.architecture))
            })?;
            digest = contents.blob(&chosen.digest)?.clone();
            bytes = self.inner.blobs.document(&digest)?;
        }
        let manifest: Manifest = parse(&bytes, "a manifest")?;
        let id = contents.blob(&manifest.config.digest)?;
        let mut blobs = Vec::new();
        for layer in &manifest.layers {
            blobs.push(contents.blob(&layer.digest)?.clone());
        }
        let name = NAME_ANNOTATIONS
            .iter()
            .find_map(|key| entry.annotations.get(*key).filter(|name| is_full_name(name)));
        let name = name.map(|name| Reference::parse(name)).transpose()?;
        let names = name.iter().map(Reference::to_string).collect();
        self.adopt(id, &blobs, Some(digest), names, Origin::Local, None)?;
        Ok(name.map_or_else(|| id.to_string(), |name| name.familiar()))
    }

    /// Makes an image of content that is in the store: verifies and unpacks its layers, then records it.
    pub(crate) fn adopt(
        &self,
        id: &Digest,
        blobs: &[Digest],
        manifest: Option<Digest>,
        names: Vec<String>,
        origin: Origin,
        repo_digest: Option<String>,
    ) -> Result<(), Error> {
        let bytes = self.inner.blobs.document(id)?;
        let (document, _) = parse_document(&bytes)?;
        if document.rootfs.diff_ids.len() != blobs.len() {
            let message = format!(
                "image {id} names {} layers but comes with {}",
                document.rootfs.diff_ids.len(),
                blobs.len()
            );
            return Err(Error::Invalid(message));
        }
        let mut layers = Vec::new();
        for (blob, diff_id) in blobs.iter().zip(document.rootfs.diff_ids) {
            layers.push(LayerRecord {
                diff_id,
                blob: blob.clone(),
                media_type: self.media_type(blob)?,
                blob_bytes: self.inner.blobs.size(blob)?,
                unpacked_bytes: 0,
            });
        }
        let manifest = match manifest {
            Some(manifest) => manifest,
            None => self.put_manifest(id, bytes.len() as u64, &layers)?,
        };
        let mut record =
            ImageRecord { manifest, layers, parent: None, repo_digests: repo_digest.into_iter().collect() };
        let sizes = self.unpack_layers(&record)?;
        let known = self.known_sizes();
        for (position, layer) in record.layers.iter_mut().enumerate() {
            let size = sizes.get(&position).or_else(|| known.get(&layer.diff_id)).copied();
            layer.unpacked_bytes = size.unwrap_or(layer.blob_bytes);
        }
        let names: Vec<_> = names.into_iter().map(|name| (name, origin)).collect();
        self.record(id, record, &names)
    }

    /// Sizes of layers that other images have.
    fn known_sizes(&self) -> BTreeMap<Digest, u64> {
        let state = self.inner.state.lock();
        let layers = state.images.values().flat_map(|image| &image.layers);
        layers.map(|layer| (layer.diff_id.clone(), layer.unpacked_bytes)).collect()
    }

    fn media_type(&self, blob: &Digest) -> Result<String, Error> {
        let mut start = Vec::new();
        self.inner.blobs.open_blob(blob)?.take(6).read_to_end(&mut start).during("read a layer")?;
        Ok(match compression::detect(&start) {
            Compression::Gzip => format!("{}+gzip", document::LAYER),
            Compression::Zstd => format!("{}+zstd", document::LAYER),
            Compression::None => document::LAYER.to_owned(),
            // There are no media types for these: nobody else could read such a layer.
            Compression::Xz | Compression::Bzip2 => {
                return Err(Error::Invalid(format!(
                    "layer {blob} is compressed with neither gzip nor zstd: save the image anew"
                )));
            }
        })
    }
}

fn layer_record(layer: &PackedLayer) -> LayerRecord {
    LayerRecord {
        diff_id: layer.digest.clone(),
        blob: layer.digest.clone(),
        media_type: document::LAYER.to_owned(),
        blob_bytes: layer.size_bytes,
        unpacked_bytes: layer.unpacked_bytes,
    }
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// Some tools annotate the tag alone, which names nothing.
fn is_full_name(name: &str) -> bool {
    name.contains([':', '/'])
}

pub(crate) fn parse<T: for<'de> Deserialize<'de>>(bytes: &[u8], what: &str) -> Result<T, Error> {
    serde_json::from_slice(bytes).map_err(|error| Error::Invalid(format!("{what} cannot be read: {error}")))
}

struct ArchiveWriter<W: Write> {
    tar: tar::Builder<W>,
    written: BTreeSet<Digest>,
}

impl<W: Write> ArchiveWriter<W> {
    fn json(&mut self, name: &str, value: &impl Serialize) -> Result<(), Error> {
        let bytes = serde_json::to_vec(value).map_err(|error| Error::io("write the archive", error))?;
        self.file(name, bytes.len() as u64, bytes.as_slice())
    }

    fn file(&mut self, name: &str, size: u64, content: impl Read) -> Result<(), Error> {
        let mut header = Header::new_ustar();
        header.set_mode(0o444);
        header.set_size(size);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        self.tar.append_data(&mut header, name, content).during("write the archive")
    }
}
