//! The store on real overlay mounts, as root.

use std::io::Read;
use std::path::Path;

use tempfile::TempDir;

use super::*;
use crate::root::Root;

fn rootfs(files: &[(&str, &str)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, path, content.as_bytes()).unwrap();
    }
    tar.into_inner().unwrap()
}

fn opened() -> (TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    (dir, store)
}

fn read(view: &Root, path: &str) -> std::io::Result<String> {
    let mut text = String::new();
    view.file(Path::new(path))?.read_to_string(&mut text)?;
    Ok(text)
}

fn write(view: &Root, path: &str, content: &str) {
    let (directory, name) = view.parent(Path::new(path)).unwrap().unwrap();
    let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CREATE | rustix::fs::OFlags::TRUNC;
    let fd = rustix::fs::openat(directory, name, flags, rustix::fs::Mode::from_raw_mode(0o644)).unwrap();
    std::io::Write::write_all(&mut File::from(fd), content.as_bytes()).unwrap();
}

/// An image over `base` in which one thing was changed through a real overlay.
fn derive(store: &Store, base: &Digest, change: impl Fn(&Root)) -> Digest {
    let _lease = store.lease();
    store.prepare("work", base).unwrap();
    change(&store.writable_view("work").unwrap());
    let layer = store.diff("work").unwrap();
    store.remove_snapshot("work").unwrap();
    let document = store.image(base).unwrap().document;
    let new = NewImage {
        parent: Some(base.clone()),
        document,
        layer: Some(layer),
        cache_key: Some("k".to_owned()),
    };
    store.create(new).unwrap()
}

#[test]
fn an_image_is_imported_changed_saved_and_loaded() {
    let (_dir, store) = opened();
    let base =
        store.import(rootfs(&[("etc/a", "1"), ("etc/b", "2"), ("usr/c", "3")]).as_slice(), "base").unwrap();
    let child = derive(&store, &base, |view| {
        write(view, "etc/a", "changed");
        let (etc, _) = view.parent(Path::new("etc/b")).unwrap().unwrap();
        rustix::fs::unlinkat(etc, "b", rustix::fs::AtFlags::empty()).unwrap();
    });
    store.tag(child.as_str(), "localhost:5000/child:v1").unwrap();
    assert_eq!(store.cached("k"), Some(child.clone()));
    let mut archive = Vec::new();
    store.save_archive(&["localhost:5000/child:v1".to_owned()], &mut archive).unwrap();

    let (_other_dir, other) = opened();
    assert_eq!(other.load(archive.as_slice()).unwrap(), ["localhost:5000/child:v1"]);
    let loaded = other.resolve("localhost:5000/child:v1").unwrap();
    assert_eq!(loaded.image.id, child, "the id survives");
    assert_eq!(loaded.image.manifest_digest, store.image(&child).unwrap().manifest_digest);
    assert_eq!(loaded.origin, Origin::Local);
    assert_eq!(loaded.image.layer_bytes.iter().sum::<u64>(), 3 + 7);
    let view = other.view(&child).unwrap();
    assert_eq!(read(&view, "etc/a").unwrap(), "changed");
    assert_eq!(read(&view, "usr/c").unwrap(), "3");
    assert!(read(&view, "etc/b").is_err(), "deleted by the upper layer");
    assert!(other.resolve(child.hex().split_at(12).0).is_ok(), "a unique start of the id is enough");

    // The OCI side alone, as other tools write it.
    let mut layout = tar::Builder::new(Vec::new());
    for entry in tar::Archive::new(archive.as_slice()).entries().unwrap() {
        let mut entry = entry.unwrap();
        if entry.path().unwrap() != Path::new("manifest.json") {
            let header = entry.header().clone();
            layout.append(&header, &mut entry).unwrap();
        }
    }
    let (_third_dir, third) = opened();
    let loaded = third.load(layout.into_inner().unwrap().as_slice()).unwrap();
    assert_eq!(loaded, ["localhost:5000/child:v1"]);
    assert_eq!(third.resolve("localhost:5000/child:v1").unwrap().image.id, child);
}

#[test]
fn the_state_survives_and_garbage_does_not() {
    let (dir, store) = opened();
    let base = store.import(rootfs(&[("f", "1")]).as_slice(), "base").unwrap();
    let snapshot = store.prepare("c1", &base).unwrap();
    fs::write(snapshot.upper.join("mine"), "m").unwrap();
    assert!(matches!(Store::open(dir.path()), Err(Error::Conflict(_))), "one process at a time");
    drop(store);
    fs::write(dir.path().join("blobs/sha256").join("0".repeat(64)), "left by a crash").unwrap();
    fs::create_dir(dir.path().join("layers/999")).unwrap();
    fs::write(dir.path().join("staging/half"), "").unwrap();

    let store = Store::open(dir.path()).unwrap();
    assert_eq!(store.resolve("base:latest").unwrap().image.id, base);
    assert_eq!(store.snapshot("c1").unwrap(), snapshot);
    assert_eq!(read(&store.writable_view("c1").unwrap(), "mine").unwrap(), "m");
    assert_eq!(store.inner.blobs.list().unwrap().len(), 3, "layer, configuration, manifest");
    assert!(!dir.path().join("layers/999").exists() && !dir.path().join("staging/half").exists());

    let error = store.remove("base", false).unwrap_err();
    assert!(error.to_string().contains("is using its referenced image"), "{error}");
    store.remove_snapshot("c1").unwrap();
    store.remove_snapshot("c1").unwrap();
    let removed = store.remove("base", false).unwrap();
    assert_eq!(removed, [Removed::Untagged("base:latest".to_owned()), Removed::Deleted(base)]);
    assert!(store.inner.blobs.list().unwrap().is_empty());
    assert_eq!(fs::read_dir(dir.path().join("layers")).unwrap().count(), 0);
}

#[test]
fn removal_keeps_what_is_needed() {
    let (_dir, store) = opened();
    let base = store.import(rootfs(&[("f", "1")]).as_slice(), "base").unwrap();
    let middle = derive(&store, &base, |view| write(view, "g", "2"));
    let top = derive(&store, &middle, |view| write(view, "h", "3"));
    store.tag(top.as_str(), "top").unwrap();
    store.tag(top.as_str(), "again").unwrap();
    let listed: Vec<_> = store.list().unwrap().into_iter().map(|image| image.id).collect();
    assert!(listed.contains(&base) && listed.contains(&top) && !listed.contains(&middle));
    assert!(matches!(store.remove(top.as_str(), false), Err(Error::Conflict(_))), "two names");
    assert_eq!(store.remove("base", false).unwrap(), [Removed::Untagged("base:latest".to_owned())]);
    assert!(store.resolve(base.as_str()).is_ok(), "others stand on it");
    assert_eq!(store.remove("again", false).unwrap(), [Removed::Untagged("again:latest".to_owned())]);
    let removed = store.remove("top", false).unwrap();
    let untagged = Removed::Untagged("top:latest".to_owned());
    assert_eq!(removed, [untagged, Removed::Deleted(top), Removed::Deleted(middle), Removed::Deleted(base)]);
    assert!(store.cached("k").is_none());
}

#[test]
fn a_lease_keeps_unnamed_content_until_it_ends() {
    let (_dir, store) = opened();
    let lease = store.lease();
    let digest = store.inner.blobs.put(b"not named yet").unwrap();
    store.collect_garbage().unwrap();
    assert!(store.inner.blobs.contains(&digest));
    drop(lease);
    assert!(!store.inner.blobs.contains(&digest));
}

#[test]
fn what_is_no_image_is_refused_and_leaves_nothing() {
    let (_dir, store) = opened();
    assert!(matches!(store.load(rootfs(&[("f", "1")]).as_slice()), Err(Error::Invalid(_))));
    assert!(store.load(&b"no archive at all"[..]).is_err());
    assert!(store.import(&[1_u8; 2048][..], "x").is_err());
    let manifest = r#"[{"Config":"c.json","RepoTags":["x"],"Layers":["l.tar"]}]"#;
    let wrong = Digest::of(b"something else");
    let config = format!(r#"{{"rootfs":{{"type":"layers","diff_ids":["{wrong}"]}}}}"#);
    let layer = String::from_utf8(rootfs(&[("f", "1")])).unwrap();
    let archive = rootfs(&[("manifest.json", manifest), ("c.json", &config), ("l.tar", &layer)]);
    let error = store.load(archive.as_slice()).unwrap_err();
    assert!(matches!(error, Error::Digest { .. }), "{error}");
    assert!(store.list().unwrap().is_empty());
    store.collect_garbage().unwrap();
    assert!(store.inner.blobs.list().unwrap().is_empty());
    for key in ["", "..", "a/b", ".hidden"] {
        assert!(store.prepare(key, &wrong).is_err(), "{key:?}");
    }
}

#[test]
fn an_image_without_layers_has_an_empty_file_system() {
    let (_dir, store) = opened();
    let id = store.create(NewImage::default()).unwrap();
    let snapshot = store.prepare("c", &id).unwrap();
    assert_eq!(snapshot.lowerdirs.len(), 1);
    assert!(store.diff("c").unwrap().empty);
    write(&store.writable_view("c").unwrap(), "new", "x");
    assert!(!store.diff("c").unwrap().empty);
}

/// Makes every save fail until the returned value is dropped.
struct Refusing(std::path::PathBuf);

impl Refusing {
    fn start(root: &Path) -> Self {
        fs::rename(root.join("staging"), root.join("away")).unwrap();
        Self(root.to_owned())
    }
}

impl Drop for Refusing {
    fn drop(&mut self) {
        fs::rename(self.0.join("away"), self.0.join("staging")).unwrap();
    }
}

#[test]
fn what_could_not_be_saved_did_not_happen() {
    let (dir, store) = opened();
    let base = store.import(rootfs(&[("f", "1")]).as_slice(), "base").unwrap();
    let other = store.import(rootfs(&[("f", "2")]).as_slice(), "other").unwrap();
    let refusing = Refusing::start(dir.path());
    assert!(store.tag("base", "new").is_err());
    assert!(store.remove("base", false).is_err());
    assert!(store.create(NewImage { parent: Some(other.clone()), ..NewImage::default() }).is_err());
    assert!(store.collect_garbage().is_err(), "the file may name what memory does not");
    drop(refusing);
    store.collect_garbage().unwrap();
    let check = |store: &Store| {
        assert!(store.resolve("new").is_err());
        assert_eq!(store.resolve("base").unwrap().image.id, base);
        assert_eq!(store.list().unwrap().len(), 2);
        assert_eq!(read(&store.view(&base).unwrap(), "f").unwrap(), "1");
    };
    check(&store);
    drop(store);
    check(&Store::open(dir.path()).unwrap());
}

#[test]
fn layers_that_could_not_be_saved_are_unpacked_again() {
    let (dir, store) = opened();
    let base = store.import(rootfs(&[("f", "1")]).as_slice(), "base").unwrap();
    // The layer is there and the state does not know it: what a save that failed after the rename leaves.
    let chain = {
        let mut state = store.inner.state.lock();
        let layers = std::mem::take(&mut state.layers);
        layers.into_keys().next().unwrap()
    };
    assert_eq!(read(&store.view(&base).unwrap(), "f").unwrap(), "1");
    assert_eq!(fs::read_dir(dir.path().join("layers")).unwrap().count(), 2);
    store.collect_garbage().unwrap();
    assert_eq!(fs::read_dir(dir.path().join("layers")).unwrap().count(), 1);
    assert!(store.inner.state.lock().layers.contains_key(&chain));
    assert_eq!(read(&store.view(&base).unwrap(), "f").unwrap(), "1");
}

#[test]
fn an_unreadable_image_does_not_hide_the_others() {
    let (dir, store) = opened();
    let base = store.import(rootfs(&[("f", "1")]).as_slice(), "base").unwrap();
    let gone = store.import(rootfs(&[("f", "2")]).as_slice(), "gone").unwrap();
    let broken = store.import(rootfs(&[("f", "3")]).as_slice(), "broken").unwrap();
    fs::remove_file(dir.path().join("blobs/sha256").join(gone.hex())).unwrap();
    fs::write(dir.path().join("blobs/sha256").join(broken.hex()), "{").unwrap();
    let listed: Vec<_> = store.list().unwrap().into_iter().map(|image| image.id).collect();
    assert_eq!(listed, [base]);
    for name in ["gone", "broken"] {
        assert!(store.resolve(name).is_err());
        store.remove(name, false).unwrap();
    }
}

#[test]
fn a_configuration_that_could_not_be_read_again_is_not_made() {
    let (_dir, store) = opened();
    let mut document = ImageDocument::default();
    document.config.env = vec![format!("A={}", "x".repeat(5 << 20))];
    let error = store.create(NewImage { document, ..NewImage::default() }).unwrap_err();
    assert!(error.to_string().contains("configuration is larger"), "{error}");
    assert!(store.list().unwrap().is_empty());
}
