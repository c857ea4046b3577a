//! Images whose files somebody looks at without a container of them: mounted read-only, and kept as long as they are held.
//! Source: KEP-4639 (image volumes).

use std::path::Path;

use crate::Error;
use crate::digest::Digest;
use crate::error::During;
use crate::overlay::Layers;
use crate::store::Store;

/// What the snapshots begin with that keep images for their holders.
const PREFIX: &str = "held-";

impl Store {
    /// Mounts an image's files at a directory of the host, where nothing of it can be written or executed, and keeps the
    /// image for a holder (letters, digits and `-`). Needs the right to mount.
    pub fn mount_read_only(&self, holder: &str, image_id: &Digest, target: &Path) -> Result<(), Error> {
        self.prepare(&format!("{PREFIX}{holder}-{}", image_id.hex()), image_id)?;
        let mut lower = self.unpacked(image_id)?;
        // An overlay without a writable directory has two at least.
        lower.push(self.inner.root.join("empty"));
        let layers = Layers { lower, upper: None };
        layers.attach_sealed(target).during_on("mount an image at", target)
    }

    /// Lets go of what is kept for a holder. What was mounted for it has to be unmounted before.
    pub fn release(&self, holder: &str) -> Result<(), Error> {
        for (key, (known, _)) in self.snapshots().iter().filter_map(|key| Some((key, parsed(key)?))) {
            if known == holder {
                self.remove_snapshot(key)?;
            }
        }
        Ok(())
    }

    /// Who holds which images.
    pub fn held(&self) -> Vec<(String, Digest)> {
        let owned = |key: &String| parsed(key).map(|(holder, image)| (holder.to_owned(), image));
        self.snapshots().iter().filter_map(owned).collect()
    }
}

/// The holder and the image of a key.
fn parsed(key: &str) -> Option<(&str, Digest)> {
    let (holder, hex) = key.strip_prefix(PREFIX)?.rsplit_once('-')?;
    Some((holder, Digest::parse(&format!("sha256:{hex}")).ok()?))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn an_image_is_mounted_sealed_and_kept_while_it_is_held() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(5);
        header.set_mode(0o755);
        tar.append_data(&mut header, "data/file", &b"hello"[..]).unwrap();
        let archive = tar.into_inner().unwrap();
        let id = store.import(archive.as_slice(), "content:1").unwrap();
        let target = dir.path().join("volume");
        fs::create_dir(&target).unwrap();
        store.mount_read_only("pod-1", &id, &target).unwrap();
        let seen = fs::read(target.join("data/file"));
        let written = fs::write(target.join("data/file"), "x").map_err(|error| error.kind());
        let ran = std::process::Command::new(target.join("data/file")).spawn().map(drop);
        assert_eq!(store.held(), [("pod-1".to_owned(), id.clone())]);
        store.remove("content:1", true).unwrap();
        store.collect_garbage().unwrap();
        let kept = fs::read(target.join("data/file"));
        // Before anything is looked at: a mount that is left would outlive the test.
        rustix::mount::unmount(&target, rustix::mount::UnmountFlags::DETACH).unwrap();
        assert_eq!((seen.unwrap(), kept.unwrap()), (b"hello".to_vec(), b"hello".to_vec()));
        assert_eq!(written, Err(std::io::ErrorKind::ReadOnlyFilesystem));
        assert_eq!(ran.unwrap_err().kind(), std::io::ErrorKind::PermissionDenied);
        store.release("pod").unwrap();
        assert_eq!(store.held().len(), 1, "that is somebody else");
        store.release("pod-1").unwrap();
        assert!(store.held().is_empty() && store.snapshots().is_empty());
    }
}
