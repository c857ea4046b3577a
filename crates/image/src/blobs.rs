//! Content by digest: written to a staging file, verified, synced, renamed into place.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::Error;
use crate::digest::{Digest, HashWriter};
use crate::error::During;

/// The largest manifest or configuration that is read into memory, in bytes (that of the distribution project).
pub(crate) const DOCUMENT_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// The content store.
#[derive(Debug)]
pub(crate) struct Blobs {
    directory: PathBuf,
    staging: PathBuf,
}

impl Blobs {
    pub(crate) fn open(root: &Path, staging: &Path) -> Result<Self, Error> {
        let directory = root.join("blobs/sha256");
        fs::create_dir_all(&directory).during_on("create", &directory)?;
        Ok(Self { directory, staging: staging.to_owned() })
    }

    pub(crate) fn path(&self, digest: &Digest) -> PathBuf {
        self.directory.join(digest.hex())
    }

    pub(crate) fn contains(&self, digest: &Digest) -> bool {
        self.path(digest).exists()
    }

    pub(crate) fn open_blob(&self, digest: &Digest) -> Result<File, Error> {
        let path = self.path(digest);
        File::open(&path).during_on("open content", &path)
    }

    pub(crate) fn size(&self, digest: &Digest) -> Result<u64, Error> {
        let path = self.path(digest);
        Ok(fs::metadata(&path).during_on("look at content", &path)?.len())
    }

    /// A document's bytes; refuses what is too large for one.
    pub(crate) fn document(&self, digest: &Digest) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        let file = self.open_blob(digest)?;
        file.take(DOCUMENT_BYTES_MAX + 1).read_to_end(&mut bytes).during("read a document")?;
        if bytes.len() as u64 > DOCUMENT_BYTES_MAX {
            return Err(Error::Invalid(format!(
                "{digest} is larger than a manifest or configuration may be"
            )));
        }
        Ok(bytes)
    }

    /// Starts to write content.
    pub(crate) fn ingest(&self) -> Result<Ingest, Error> {
        let file = NamedTempFile::new_in(&self.staging).during_on("create a file in", &self.staging)?;
        Ok(Ingest { writer: HashWriter::new(file) })
    }

    /// Writes a document.
    pub(crate) fn put(&self, bytes: &[u8]) -> Result<Digest, Error> {
        let digest = Digest::of(bytes);
        if !self.contains(&digest) {
            let mut ingest = self.ingest()?;
            ingest.write_all(bytes).during("write content")?;
            self.commit(ingest, Some(&digest))?;
        }
        Ok(digest)
    }

    /// Verifies written content, syncs it and puts it in place. Answers its digest and size in bytes.
    pub(crate) fn commit(&self, ingest: Ingest, expected: Option<&Digest>) -> Result<(Digest, u64), Error> {
        let (file, digest, size) = ingest.writer.finish();
        if let Some(expected) = expected
            && *expected != digest
        {
            return Err(Error::Digest { expected: expected.to_string(), actual: digest.to_string() });
        }
        let path = self.path(&digest);
        if !path.exists() {
            file.as_file().sync_data().during("sync content")?;
            file.persist(&path).map_err(|error| error.error).during_on("rename content to", &path)?;
            sync_directory(&self.directory)?;
        }
        Ok((digest, size))
    }

    /// Takes a verified and synced file in. Blocks.
    pub(crate) fn adopt(&self, file: &Path, digest: &Digest) -> Result<(), Error> {
        let path = self.path(digest);
        fs::rename(file, &path).during_on("rename content to", &path)?;
        sync_directory(&self.directory)
    }

    /// Refuses what the disk has no room for, before it comes.
    pub(crate) fn must_fit(&self, bytes: u64) -> Result<(), Error> {
        let disk = rustix::fs::statvfs(&self.directory).during_on("look at the disk of", &self.directory)?;
        let room = disk.f_bavail.saturating_mul(disk.f_frsize);
        if bytes <= room {
            return Ok(());
        }
        let what = format!("{bytes} bytes are to come, and {} has room for {room}", self.directory.display());
        Err(Error::io(what, io::ErrorKind::StorageFull))
    }

    /// The digests of everything there.
    pub(crate) fn list(&self) -> Result<Vec<Digest>, Error> {
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.directory).during_on("read", &self.directory)? {
            let name = entry.during_on("read", &self.directory)?.file_name();
            if let Some(digest) = name.to_str().and_then(|hex| Digest::parse(&format!("sha256:{hex}")).ok()) {
                all.push(digest);
            }
        }
        Ok(all)
    }

    pub(crate) fn remove(&self, digest: &Digest) -> Result<(), Error> {
        let path = self.path(digest);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).during_on("remove", &path),
            _ => Ok(()),
        }
    }
}

/// Content that is being written; dropped, it leaves nothing.
pub(crate) struct Ingest {
    writer: HashWriter<NamedTempFile>,
}

impl Write for Ingest {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.writer.write(buffer)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

/// Makes a rename or a new entry in a directory durable.
pub(crate) fn sync_directory(path: &Path) -> Result<(), Error> {
    File::open(path).and_then(|directory| directory.sync_all()).during_on("sync", path)
}

/// Replaces a file so that a crash leaves the old or the new content.
pub(crate) fn write_atomically(
    directory: &Path,
    name: &str,
    staging: &Path,
    bytes: &[u8],
) -> Result<(), Error> {
    let mut file = NamedTempFile::new_in(staging).during_on("create a file in", staging)?;
    file.write_all(bytes).during("write")?;
    file.as_file().sync_data().during("sync")?;
    let path = directory.join(name);
    file.persist(&path).map_err(|error| error.error).during_on("rename to", &path)?;
    sync_directory(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_with_the_wrong_digest_never_gets_in() {
        let root = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(root.path(), root.path()).unwrap();
        let mut ingest = blobs.ingest().unwrap();
        ingest.write_all(b"evil").unwrap();
        let error = blobs.commit(ingest, Some(&Digest::of(b"good"))).unwrap_err();
        assert!(matches!(error, Error::Digest { .. }), "{error}");
        assert!(blobs.list().unwrap().is_empty());
        let digest = blobs.put(b"good").unwrap();
        assert_eq!(blobs.document(&digest).unwrap(), b"good");
        assert_eq!(blobs.list().unwrap(), [digest]);
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1, "no staging file is left");
    }
}
