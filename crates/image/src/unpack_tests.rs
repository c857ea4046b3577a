//! Layers and archives, honest and hostile. As root: device nodes and owners are real.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};

use rustix::fs::getxattr;
use tar::{Builder, Header};

use super::*;
use crate::pack::pack;

/// One entry: kind, path, link target or content.
fn add(tar: &mut Builder<Vec<u8>>, kind: EntryType, path: &str, content: &str) {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(if kind == EntryType::Directory { 0o751 } else { 0o640 });
    header.set_uid(7);
    header.set_gid(8);
    header.set_mtime(1_000_000);
    // Written straight into the field: the library refuses to make hostile names.
    let name = &mut header.as_old_mut().name;
    name[..path.len()].copy_from_slice(path.as_bytes());
    let is_link = matches!(kind, EntryType::Link | EntryType::Symlink);
    if is_link {
        header.as_old_mut().linkname[..content.len()].copy_from_slice(content.as_bytes());
    }
    let content = if is_link { "" } else { content };
    header.set_size(content.len() as u64);
    header.set_cksum();
    tar.append(&header, content.as_bytes()).unwrap();
}

fn archive(entries: &[(EntryType, &str, &str)]) -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    for (kind, path, content) in entries {
        add(&mut tar, *kind, path, content);
    }
    tar.into_inner().unwrap()
}

fn unpack(directory: &Path, entries: &[(EntryType, &str, &str)]) -> Result<u64, Error> {
    Unpack::layer(&Root::open(directory).unwrap(), &[]).run(archive(entries).as_slice())
}

const FILE: EntryType = EntryType::Regular;
const DIR: EntryType = EntryType::Directory;
const LINK: EntryType = EntryType::Link;
const SYMLINK: EntryType = EntryType::Symlink;

#[test]
fn attributes_arrive() {
    let dir = tempfile::tempdir().unwrap();
    let size = unpack(
        dir.path(),
        &[
            (DIR, "./d/", ""),
            (FILE, "./d/f", "12345"),
            (LINK, "d/h", "./d/f"),
            (SYMLINK, "l", "/d/f"),
            (FILE, "a/b/c", ""),
        ],
    )
    .unwrap();
    assert_eq!(size, 5);
    let file = fs::metadata(dir.path().join("d/f")).unwrap();
    assert_eq!((file.uid(), file.gid(), file.mode() & 0o7777, file.mtime()), (7, 8, 0o640, 1_000_000));
    let directory = fs::metadata(dir.path().join("d")).unwrap();
    assert_eq!(
        (directory.mode() & 0o7777, directory.mtime()),
        (0o751, 1_000_000),
        "set after its files were made"
    );
    assert_eq!(fs::metadata(dir.path().join("d/h")).unwrap().ino(), file.ino());
    assert_eq!(fs::read_link(dir.path().join("l")).unwrap(), Path::new("/d/f"));
    assert_eq!(fs::metadata(dir.path().join("a/b")).unwrap().mode() & 0o7777, 0o755);
}

#[test]
fn nothing_escapes() {
    let outside = tempfile::tempdir().unwrap();
    let out = outside.path().to_str().unwrap();
    fs::write(outside.path().join("victim"), "safe").unwrap();
    let victim = format!("{out}/victim");
    let through = format!("{}/evil", "x");
    let hostile: &[&[(EntryType, &str, &str)]] = &[
        &[(FILE, "../evil", "e")],
        &[(FILE, "a/../../evil", "e")],
        &[(SYMLINK, "x", out), (FILE, &through, "e")],
        &[(SYMLINK, "x", "../../../../../../../.."), (FILE, &format!("x{out}/evil"), "e")],
        &[(LINK, "x", &victim), (FILE, "x", "evil")],
        &[(SYMLINK, "x", &victim), (FILE, "x", "evil")],
        &[(SYMLINK, "x", out), (LINK, "y", "x/victim")],
        &[(SYMLINK, "x", out), (FILE, "x/.wh.victim", "")],
        &[(SYMLINK, "x", out), (FILE, "x/.wh..wh..opq", "")],
        &[(FILE, ".wh...", "")],
    ];
    for entries in hostile {
        let dir = tempfile::tempdir().unwrap();
        // Refused or made inside: both are fine, touching the outside is not.
        let _ = unpack(dir.path(), entries);
        assert_eq!(fs::read_to_string(outside.path().join("victim")).unwrap(), "safe", "{entries:?}");
        assert_eq!(fs::metadata(&victim).unwrap().nlink(), 1, "{entries:?}");
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1, "{entries:?}");
        assert_eq!(fs::metadata(&victim).unwrap().mode() & 0o7777, 0o644, "{entries:?}");
    }
    let dir = tempfile::tempdir().unwrap();
    let error = unpack(dir.path(), &[(FILE, "a/../../evil", "e")]).unwrap_err();
    assert!(error.to_string().contains("leads out"), "{error}");
}

#[test]
fn whiteouts_take_overlay_form_and_come_back() {
    let dir = tempfile::tempdir().unwrap();
    unpack(
        dir.path(),
        &[
            (FILE, ".wh.gone", ""),
            (DIR, "o", ""),
            (FILE, "o/.wh..wh..opq", ""),
            (FILE, "o/kept", "k"),
            (DIR, "same", ""),
            (FILE, ".wh.same", ""),
            (FILE, "file", "f"),
            (FILE, ".wh.file", ""),
            (FILE, ".wh..wh.aufs", ""),
        ],
    )
    .unwrap();
    let gone = fs::symlink_metadata(dir.path().join("gone")).unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    let mut value = [0; 4];
    for opaque in ["o", "same"] {
        assert_eq!(getxattr(dir.path().join(opaque), opaque_xattr(), &mut value[..]).unwrap(), 1, "{opaque}");
    }
    assert_eq!(
        fs::read_to_string(dir.path().join("file")).unwrap(),
        "f",
        "a whiteout hides what lies below only"
    );
    let (_, bytes) = pack(&Root::open(dir.path()).unwrap(), &Default::default(), Vec::new()).unwrap();
    let mut tar = tar::Archive::new(bytes.as_slice());
    let names: Vec<String> = tar
        .entries()
        .unwrap()
        .map(|entry| entry.unwrap().path().unwrap().to_string_lossy().into_owned())
        .collect();
    assert_eq!(names, ["file", ".wh.gone", "o/", "o/.wh..wh..opq", "o/kept", "same/", "same/.wh..wh..opq"]);
}

#[test]
fn packing_is_exact_and_repeatable() {
    let dir = tempfile::tempdir().unwrap();
    let long = "n".repeat(200);
    fs::create_dir(dir.path().join(&long)).unwrap();
    fs::write(dir.path().join(&long).join(&long), "deep").unwrap();
    fs::write(dir.path().join("ünï"), "utf").unwrap();
    fs::hard_link(dir.path().join("ünï"), dir.path().join("zz")).unwrap();
    symlink(format!("/{long}"), dir.path().join("link")).unwrap();
    fs::set_permissions(dir.path().join("ünï"), fs::Permissions::from_mode(0o4755)).unwrap();
    rustix::fs::setxattr(dir.path().join("ünï"), "user.note", b"\0\xff=\n", XattrFlags::empty()).unwrap();
    let root = Root::open(dir.path()).unwrap();
    let (packed, first) = pack(&root, &Default::default(), Vec::new()).unwrap();
    assert_eq!(packed.unpacked_bytes, 7);
    assert_eq!(first, pack(&root, &Default::default(), Vec::new()).unwrap().1);

    let copy = tempfile::tempdir().unwrap();
    Unpack::layer(&Root::open(copy.path()).unwrap(), &[]).run(first.as_slice()).unwrap();
    assert_eq!(fs::read_to_string(copy.path().join(&long).join(&long)).unwrap(), "deep");
    let file = fs::metadata(copy.path().join("ünï")).unwrap();
    assert_eq!((file.mode() & 0o7777, file.nlink()), (0o4755, 2));
    assert_eq!(fs::read_link(copy.path().join("link")).unwrap(), Path::new(&format!("/{long}")));
    let mut value = [0; 8];
    let length = getxattr(copy.path().join("ünï"), "user.note", &mut value[..]).unwrap();
    assert_eq!(&value[..length], b"\0\xff=\n");
    assert_eq!(pack(&Root::open(copy.path()).unwrap(), &Default::default(), Vec::new()).unwrap().1, first);
}

#[test]
fn directories_without_an_entry_are_like_those_below() {
    let below = tempfile::tempdir().unwrap();
    fs::create_dir(below.path().join("tmp")).unwrap();
    fs::set_permissions(below.path().join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let layers = [Root::open(below.path()).unwrap()];
    let bytes = archive(&[(FILE, "tmp/f", "")]);
    Unpack::layer(&Root::open(dir.path()).unwrap(), &layers).run(bytes.as_slice()).unwrap();
    assert_eq!(fs::metadata(dir.path().join("tmp")).unwrap().mode() & 0o7777, 0o1777);
}

#[test]
fn a_plain_archive_goes_to_its_base_with_its_owner() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("base")).unwrap();
    let root = Root::open(dir.path()).unwrap();
    let bytes = archive(&[(FILE, "f", "1"), (LINK, "h", "f"), (FILE, ".wh.literal", "x")]);
    Unpack::archive(&root, Path::new("/base"), Some(Owner { uid: 3, gid: 4 })).run(bytes.as_slice()).unwrap();
    let file = fs::metadata(dir.path().join("base/h")).unwrap();
    assert_eq!((file.uid(), file.gid(), file.nlink()), (3, 4, 2));
    assert!(dir.path().join("base/.wh.literal").is_file(), "whiteouts mean nothing in a plain archive");
}

#[test]
fn pax_times_have_fractions() {
    assert_eq!(pax_time("5.25"), Some(Timespec { tv_sec: 5, tv_nsec: 250_000_000 }));
    assert_eq!(pax_time("5"), Some(Timespec { tv_sec: 5, tv_nsec: 0 }));
    assert_eq!(pax_time("-1.5"), Some(Timespec { tv_sec: -2, tv_nsec: 500_000_000 }));
    assert_eq!(pax_time("x"), None);
    assert_eq!(pax_time("1.ü"), None);
}
