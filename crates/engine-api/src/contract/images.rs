//! Names, archives and removal of images.

use futures::StreamExt as _;

use super::{Subject, bytes, layer};
use crate::{ByteStream, ErrorKind, ImageOrigin, RemovalKind};

fn stream(bytes: Vec<u8>) -> ByteStream {
    futures::stream::iter([Ok(bytes.into())]).boxed()
}

pub async fn names_are_normalised_and_ids_found_by_their_beginning(subject: Subject) {
    let images = &subject.images;
    let found = images.resolve("busybox:test").await.unwrap();
    assert_eq!(found.reference, "docker.io/library/busybox:test");
    assert_eq!((found.image.id.as_str(), found.origin), (subject.image.as_str(), ImageOrigin::Local));
    images.tag("busybox:test", "registry.test:5000/team/tool").await.unwrap();
    let tags = images.resolve("registry.test:5000/team/tool:latest").await.unwrap().image.tags;
    let names: Vec<&str> = tags.keys().map(String::as_str).collect();
    assert_eq!(names, ["docker.io/library/busybox:test", "registry.test:5000/team/tool:latest"]);
    let hexadecimal = subject.image.strip_prefix("sha256:").unwrap();
    for name in [&subject.image, hexadecimal, &hexadecimal[..12]] {
        assert_eq!(images.resolve(name).await.unwrap().image.id, subject.image, "{name}");
    }
    assert_eq!(images.list().await.unwrap().len(), 1);
    for missing in ["busybox:other", "no-such-image", "sha256:0000", "NO NAME"] {
        assert_eq!(images.resolve(missing).await.unwrap_err().kind, ErrorKind::NotFound, "{missing}");
    }
    assert_eq!(images.tag("no-such-image", "x").await.unwrap_err().kind, ErrorKind::NotFound);
    assert_eq!(images.tag("busybox:test", "NO NAME").await.unwrap_err().kind, ErrorKind::Invalid);
}

pub async fn an_archive_carries_images_with_their_names(subject: Subject) {
    let images = &subject.images;
    let small = layer(&[("etc/motd", "hello"), ("etc/other", "there")]);
    let id = images.import(stream(small), "small:v1").await.unwrap();
    images.tag("small:v1", "small:v2").await.unwrap();
    let names = ["small:v1".to_owned(), "small:v2".to_owned()];
    let before = images.resolve("small:v1").await.unwrap().image;
    let archive = bytes(images.save(&names).await.unwrap()).await;
    for name in &names {
        images.remove(name, false).await.unwrap();
    }
    assert_eq!(images.resolve("small:v1").await.unwrap_err().kind, ErrorKind::NotFound);
    // In chunks that have nothing to do with what is inside.
    let chunks: Vec<_> = archive.chunks(777).map(|chunk| Ok(chunk.to_vec().into())).collect();
    let mut loaded = images.load(futures::stream::iter(chunks).boxed()).await.unwrap();
    loaded.sort_unstable();
    assert_eq!(loaded, ["small:v1", "small:v2"]);
    let after = images.resolve("small:v2").await.unwrap().image;
    assert_eq!((&after.id, &after.diff_ids), (&id, &before.diff_ids));
    assert_eq!((after.size_bytes, after.layer_bytes, after.tags.len()), (10, vec![10], 2));
    let missing = images.save(&["no-such-image".to_owned()]).await.err().unwrap();
    assert_eq!(missing.kind, ErrorKind::NotFound);
}

pub async fn the_last_name_takes_the_contents_with_it(subject: Subject) {
    let images = &subject.images;
    let id = images.import(stream(layer(&[("a", "b")])), "gone:1").await.unwrap();
    images.tag(&id, "gone:2").await.unwrap();
    let kinds = |removed: Vec<(RemovalKind, String)>| -> Vec<RemovalKind> {
        removed.into_iter().map(|(kind, _)| kind).collect()
    };
    let of_two_names = images.remove(&id, false).await.unwrap_err();
    assert_eq!(of_two_names.kind, ErrorKind::Conflict);
    assert_eq!(kinds(images.remove("gone:1", false).await.unwrap()), [RemovalKind::Untagged]);
    let last = kinds(images.remove("gone:2", false).await.unwrap());
    assert!(last[0] == RemovalKind::Untagged && last.contains(&RemovalKind::Deleted), "{last:?}");
    assert_eq!(images.resolve(&id).await.unwrap_err().kind, ErrorKind::NotFound);
    assert_eq!(images.remove("gone:2", false).await.unwrap_err().kind, ErrorKind::NotFound);
    // A container keeps its image.
    let sandbox = subject.sandbox().await;
    let spec = subject.script(&sandbox, "true");
    let container = spec.id.clone();
    subject.runtime.create_container(spec).await.unwrap();
    let used = images.remove("busybox:test", false).await.unwrap_err();
    assert_eq!(used.kind, ErrorKind::Conflict);
    subject.runtime.remove_container(&container, false).await.unwrap();
    images.remove("busybox:test", false).await.unwrap();
    assert!(images.list().await.unwrap().is_empty());
}

pub async fn what_is_no_image_is_refused(subject: Subject) {
    let images = &subject.images;
    let rubbish = stream(b"this is no archive, whatever its length may be".repeat(100));
    assert_eq!(images.load(rubbish).await.unwrap_err().kind, ErrorKind::Invalid);
    let plain = stream(layer(&[("etc/motd", "hello")]));
    assert_eq!(images.load(plain).await.unwrap_err().kind, ErrorKind::Invalid);
    let escaping = {
        let mut archive = layer(&[("aa/aa/aa", "x")]);
        archive[..8].copy_from_slice(b"../../aa");
        // The header's sum has to fit, or the archive is refused for that.
        archive[148..156].copy_from_slice(b"        ");
        let sum: u32 = archive[..512].iter().map(|byte| u32::from(*byte)).sum();
        archive[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        archive
    };
    if let Ok(id) = images.import(stream(escaping), "escaping:1").await {
        // Kept inside, as a container's root keeps everything.
        assert_eq!(images.resolve(&id).await.unwrap().image.size_bytes, 1);
    }
    assert_eq!(images.list().await.unwrap().iter().filter(|image| image.id == subject.image).count(), 1);
}
