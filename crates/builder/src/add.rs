//! COPY and ADD: what they name, what of it the cache knows, and the layer that they make. Blocks.

use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};

use base::ignore::Ignore;
use image::root::Root;
use image::{Digest, Owner, PackedLayer, Store, Unpack, decompress};
use rustix::fs::Timespec;
use sha2::{Digest as _, Sha256};

use crate::Error;
use crate::copy::{Target, owner};
use crate::parser::Document;
use crate::tree::{Node, Source};

/// Where the files are.
pub(crate) enum Origin {
    /// The build context.
    Context(PathBuf),
    /// The file system of an image or stage.
    Image(Digest),
}

/// A file that ADD fetched.
pub(crate) struct Download {
    /// The last component of its address.
    pub(crate) name: String,
    pub(crate) file: File,
    /// Seconds since 1970, from the server.
    pub(crate) modified: i64,
}

/// A COPY or ADD, variables replaced.
pub(crate) struct Transfer {
    pub(crate) origin: Origin,
    pub(crate) sources: Vec<String>,
    pub(crate) documents: Vec<Document>,
    pub(crate) downloads: Vec<Download>,
    /// Absolute.
    pub(crate) destination: String,
    pub(crate) chown: Option<String>,
    pub(crate) chmod: Option<String>,
    /// ADD unpacks archives.
    pub(crate) unpacks: bool,
}

/// The files of a transfer.
pub(crate) struct Files {
    root: Root,
    ignore: Ignore,
    /// Each source that was found with everything below it.
    found: Vec<Vec<Node>>,
}

impl Transfer {
    /// Finds the files.
    pub(crate) fn find(&self, store: &Store) -> Result<Files, Error> {
        let (root, ignore) = match &self.origin {
            Origin::Image(id) => (store.view(id)?, Ignore::default()),
            Origin::Context(path) => {
                let fail = |error| Error::io(format!("open the build context {}", path.display()), error);
                (Root::open(path).map_err(fail)?, read_ignore(path)?)
            }
        };
        let source = Source { root: &root, ignore: &ignore };
        let mut found = Vec::new();
        for argument in &self.sources {
            for path in source.find(argument)? {
                found.push(source.nodes(&path)?);
            }
        }
        let count = found.len() + self.documents.len() + self.downloads.len();
        if count > 1 && !self.to_directory() {
            return Err(Error::invalid(
                "when using more than one source file, the destination must be a directory and end with a /",
            ));
        }
        Ok(Files { root, ignore, found })
    }

    /// A digest of all that decides the layer beside the image below: content, names, owner, permissions.
    pub(crate) fn sum(&self, files: &Files) -> Result<String, Error> {
        let source = Source { root: &files.root, ignore: &files.ignore };
        let mut sum = Sha256::new();
        let with_owners = self.keeps_owners();
        let options = format!("{:?} {:?} {} {with_owners}", self.chown, self.chmod, self.unpacks);
        let options = [&self.destination, &options];
        for text in options {
            sum.update((text.len() as u64).to_le_bytes());
            sum.update(text);
        }
        for nodes in &files.found {
            // The name counts where it ends up in the image.
            let name = nodes.first().and_then(|node| node.path.file_name()).unwrap_or_default();
            sum.update(format!("source {} {name:?}", nodes.len()));
            for node in nodes {
                source.sum(node, with_owners, &mut sum)?;
            }
        }
        for document in &self.documents {
            sum.update(format!("document {:?} {:?}", document.name, document.content));
        }
        for download in &self.downloads {
            sum.update(format!("download {:?} {}", download.name, download.modified));
            std::io::copy(&mut rewound(&download.file)?, &mut sum)
                .map_err(|error| Error::io("read a download", error))?;
        }
        Ok(format!("{:x}", sum.finalize()))
    }

    /// Whether files belong to whom they belong in the source: another image's do, a context's are root's.
    fn keeps_owners(&self) -> bool {
        matches!(self.origin, Origin::Image(_)) && self.chown.is_none()
    }

    /// Makes the layer over an image.
    pub(crate) fn apply(&self, store: &Store, parent: &Digest, files: &Files) -> Result<PackedLayer, Error> {
        let snapshot = Scratch::new(store, parent)?;
        {
            let view = store.writable_view(&snapshot.key)?;
            let chown = self.chown.as_deref().map(|text| owner(&view, text)).transpose()?;
            let mode = self.chmod.as_deref().map(parse_mode).transpose()?;
            let target = Target::new(&view, chown.unwrap_or_default(), mode);
            let mut target = if self.keeps_owners() { target.keep_owners() } else { target };
            self.write(&mut target, &view, chown, files)?;
            target.finish()?;
        }
        Ok(store.diff(&snapshot.key)?)
    }

    fn write(
        &self,
        target: &mut Target<'_>,
        view: &Root,
        chown: Option<Owner>,
        files: &Files,
    ) -> Result<(), Error> {
        let source = Source { root: &files.root, ignore: &files.ignore };
        let destination = PathBuf::from(&self.destination);
        for nodes in &files.found {
            let Some(top) = nodes.first() else { continue };
            if top.kind.is_dir() {
                for node in nodes {
                    target.copy(&source, node, &destination.join(&node.below))?;
                }
            } else if self.unpacks && is_archive(&source, top)? {
                let fail = |error| Error::io(format!("read {}", top.path.display()), error);
                target.make_directory(&destination)?;
                let archive = decompress(source.root.file(&top.path).map_err(fail)?).map_err(fail)?;
                Unpack::archive(view, &destination, chown).run(archive)?;
            } else {
                let name = top.path.file_name().unwrap_or_default();
                let path = self.place(target, Path::new(name));
                target.copy(&source, top, &path)?;
            }
        }
        for document in &self.documents {
            let path = self.place(target, Path::new(&document.name));
            let mode = target_mode(self.chmod.as_deref(), 0o644)?;
            target.write(&path, document.content.as_bytes(), mode, Timespec { tv_sec: 0, tv_nsec: 0 })?;
        }
        for download in &self.downloads {
            let path = self.place(target, Path::new(&download.name));
            let mode = target_mode(self.chmod.as_deref(), 0o600)?;
            let time = Timespec { tv_sec: download.modified, tv_nsec: 0 };
            target.write(&path, rewound(&download.file)?, mode, time)?;
        }
        Ok(())
    }

    /// Whether the destination is written as a directory.
    fn to_directory(&self) -> bool {
        self.destination.ends_with('/') || self.destination.ends_with("/.")
    }

    /// Where a single file goes.
    fn place(&self, target: &Target<'_>, name: &Path) -> PathBuf {
        let destination = PathBuf::from(&self.destination);
        match self.to_directory() || target.is_directory(&destination) {
            true => destination.join(name),
            false => destination,
        }
    }
}

/// Makes a directory in an image where it is missing. `None` if it is there.
pub(crate) fn make_directory(
    store: &Store,
    parent: &Digest,
    path: &str,
) -> Result<Option<PackedLayer>, Error> {
    let inside = image::root::clean(Path::new(path));
    if store.view(parent)?.directory(&inside).is_ok() {
        return Ok(None);
    }
    let snapshot = Scratch::new(store, parent)?;
    {
        let view = store.writable_view(&snapshot.key)?;
        let mut target = Target::new(&view, Owner::default(), None);
        target.make_directory(&inside)?;
        target.finish()?;
    }
    Ok(Some(store.diff(&snapshot.key)?))
}

/// A snapshot that is removed with this value.
struct Scratch<'a> {
    store: &'a Store,
    key: String,
}

impl<'a> Scratch<'a> {
    fn new(store: &'a Store, parent: &Digest) -> Result<Self, Error> {
        let key = format!("build-{}", base::id::hex64());
        store.prepare(&key, parent)?;
        Ok(Self { store, key })
    }
}

impl Drop for Scratch<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.store.remove_snapshot(&self.key) {
            tracing::warn!(%error, "a build's snapshot could not be removed");
        }
    }
}

fn read_ignore(context: &Path) -> Result<Ignore, Error> {
    const FILE_BYTES_MAX: u64 = 1 << 20;
    let fail = |error| Error::io("read .dockerignore", error);
    let root = Root::open(context).map_err(fail)?;
    match root.file(Path::new(".dockerignore")) {
        Err(_) => Ok(Ignore::default()),
        Ok(file) => {
            let mut text = String::new();
            file.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(fail)?;
            Ok(Ignore::parse(&text))
        }
    }
}

/// Whether a file is a tar archive, maybe compressed: only its content decides.
fn is_archive(source: &Source<'_>, node: &Node) -> Result<bool, Error> {
    let fail = |error| Error::io(format!("read {}", node.path.display()), error);
    let file = source.root.file(&node.path).map_err(fail)?;
    Ok(decompress(file).is_ok_and(image::is_archive))
}

fn target_mode(chmod: Option<&str>, default: u32) -> Result<u32, Error> {
    chmod.map_or(Ok(default), parse_mode)
}

fn parse_mode(text: &str) -> Result<u32, Error> {
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777);
    mode.ok_or_else(|| {
        Error::invalid(format!("invalid --chmod {text:?}: give permissions as octal digits, like 0755"))
    })
}

fn rewound(file: &File) -> Result<File, Error> {
    let fail = |error| Error::io("read a download", error);
    let mut file = file.try_clone().map_err(fail)?;
    file.rewind().map_err(fail)?;
    Ok(file)
}
