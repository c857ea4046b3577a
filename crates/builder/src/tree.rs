//! Files to copy: found by pattern, listed in order, summed up for the cache.

use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use base::ignore::Ignore;
use base::pattern::{clean, has_wildcards, matches};
use image::root::Root;
use rustix::fs::{Dir, FileType, Stat, readlinkat};
use sha2::{Digest, Sha256};

use crate::Error;

/// Where files come from: a context or the file system of an image. Paths never leave it.
pub(crate) struct Source<'a> {
    pub(crate) root: &'a Root,
    pub(crate) ignore: &'a Ignore,
}

/// A file, link or directory to copy.
#[derive(Debug)]
pub(crate) struct Node {
    /// Where it is in the source's root.
    pub(crate) path: PathBuf,
    /// Its path below what was named; empty for that itself.
    pub(crate) below: PathBuf,
    pub(crate) kind: FileType,
    pub(crate) stat: Stat,
    /// Where a link points.
    pub(crate) target: Option<PathBuf>,
}

impl Source<'_> {
    /// The paths that an argument names, sorted. An argument without wildcards names one, which must exist.
    pub(crate) fn find(&self, argument: &str) -> Result<Vec<PathBuf>, Error> {
        let pattern = clean(argument);
        if !has_wildcards(&pattern) {
            let path = PathBuf::from(&pattern);
            let there = self.root.stat(&path).is_ok();
            // A directory that is left out may hold files that are not.
            let wanted =
                path.as_os_str().is_empty() || !self.ignore.excludes(&path) || self.ignore.has_exceptions();
            return if there && wanted { Ok(vec![path]) } else { Err(missing(argument)) };
        }
        let mut found = Vec::new();
        self.walk(PathBuf::new(), &mut |node| {
            if matches(&pattern, &node.path.to_string_lossy()) {
                found.push(node.path);
            }
        })?;
        if found.is_empty() { Err(missing(argument)) } else { Ok(found) }
    }

    /// What a path is, after following links, with everything below it, in order of the names.
    pub(crate) fn nodes(&self, path: &Path) -> Result<Vec<Node>, Error> {
        let stat = self.root.stat(path).map_err(|error| Error::io(path.display().to_string(), error))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let mut nodes = vec![Node { path: path.to_owned(), below: PathBuf::new(), kind, stat, target: None }];
        if kind.is_dir() {
            self.walk(path.to_owned(), &mut |node| nodes.push(node))?;
        }
        Ok(nodes)
    }

    fn walk(&self, base: PathBuf, visit: &mut impl FnMut(Node)) -> Result<(), Error> {
        let mut waiting = vec![PathBuf::new()];
        while let Some(below) = waiting.pop() {
            let path = base.join(&below);
            let fail = |error: io::Error| Error::io(format!("read {}", path.display()), error);
            let mut descends = true;
            if !below.as_os_str().is_empty() {
                let node = self.node(&path, &below).map_err(fail)?;
                descends = node.kind.is_dir();
                let excluded = self.ignore.excludes(&path);
                if !excluded {
                    visit(node);
                } else if !self.ignore.has_exceptions() {
                    descends = false;
                }
            }
            if descends {
                let names = self.names(&path).map_err(fail)?;
                waiting.extend(names.into_iter().rev().map(|name| below.join(name)));
            }
        }
        Ok(())
    }

    fn node(&self, path: &Path, below: &Path) -> io::Result<Node> {
        let stat = self.root.stat_itself(path)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let mut target = None;
        if let (FileType::Symlink, Some((parent, name))) = (kind, self.root.parent(path)?) {
            let bytes = readlinkat(parent, name, Vec::new())?.into_bytes();
            target = Some(PathBuf::from(std::ffi::OsString::from_vec(bytes)));
        }
        Ok(Node { path: path.to_owned(), below: below.to_owned(), kind, stat, target })
    }

    fn names(&self, path: &Path) -> io::Result<Vec<std::ffi::OsString>> {
        let mut names = Vec::new();
        for entry in Dir::read_from(self.root.read_directory(path)?)? {
            let entry = entry?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                names.push(std::ffi::OsString::from_vec(entry.file_name().to_bytes().to_vec()));
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Adds what a node is and holds to a cache key: everything that ends up in the layer, but for times. Its owner is
    /// part of that only where `with_owners` says that the copy keeps it.
    pub(crate) fn sum(&self, node: &Node, with_owners: bool, sum: &mut Sha256) -> Result<(), Error> {
        let path = node.below.as_os_str().as_bytes();
        sum.update((path.len() as u64).to_le_bytes());
        sum.update(path);
        sum.update((node.stat.st_mode).to_le_bytes());
        if with_owners {
            sum.update(node.stat.st_uid.to_le_bytes());
            sum.update(node.stat.st_gid.to_le_bytes());
        }
        if let Some(target) = &node.target {
            sum.update((target.as_os_str().len() as u64).to_le_bytes());
            sum.update(target.as_os_str().as_bytes());
        }
        if node.kind.is_file() {
            let fail = |error| Error::io(format!("read {}", node.path.display()), error);
            let mut file = self.root.file(&node.path).map_err(fail)?;
            let mut content = Sha256::new();
            let mut buffer = vec![0; 256 * 1024];
            loop {
                match file.read(&mut buffer).map_err(fail)? {
                    0 => break,
                    read => content.update(&buffer[..read]),
                }
            }
            sum.update(content.finalize());
        }
        Ok(())
    }
}

fn missing(argument: &str) -> Error {
    Error::invalid(format!(
        "file not found in build context or excluded by .dockerignore: stat {argument}: file does not exist"
    ))
}
