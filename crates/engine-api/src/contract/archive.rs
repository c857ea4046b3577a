//! Root file systems that the cases run in.

/// Programs of busybox that the cases use.
const PROGRAMS: [&str; 33] = [
    "sh", "cat", "echo", "sleep", "true", "false", "id", "ls", "mount", "unshare", "grep", "head", "dd",
    "kill", "ps", "stty", "tty", "hostname", "wc", "nc", "env", "pwd", "touch", "seq", "tail", "yes",
    "nproc", "printenv", "mknod", "df", "stat", "cmp", "readlink",
];

/// The archive of a root file system of busybox, with a user `app` and a file that is no program.
pub fn busybox() -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut entry = |path: &str, kind: tar::EntryType, mode: u32, contents: &[u8], link: Option<&str>| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(contents.len() as u64);
        match link {
            Some(target) => archive.append_link(&mut header, path, target).unwrap(),
            None => archive.append_data(&mut header, path, contents).unwrap(),
        }
    };
    for dir in ["bin", "etc", "tmp", "dev", "proc", "sys"] {
        entry(dir, tar::EntryType::Directory, 0o755, &[], None);
    }
    let busybox = std::fs::read("/bin/busybox").expect("Debian's busybox-static is installed");
    entry("bin/busybox", tar::EntryType::Regular, 0o755, &busybox, None);
    for program in PROGRAMS {
        entry(&format!("bin/{program}"), tar::EntryType::Symlink, 0o777, &[], Some("busybox"));
    }
    entry("etc/dangling", tar::EntryType::Symlink, 0o777, &[], Some("../run/deep/file"));
    let passwd = b"root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/srv:/bin/sh\n";
    entry("etc/passwd", tar::EntryType::Regular, 0o644, passwd, None);
    entry("etc/group", tar::EntryType::Regular, 0o644, b"root:x:0:\napp:x:1001:\nweb:x:60:app\n", None);
    entry("etc/noexec", tar::EntryType::Regular, 0o644, b"no program", None);
    archive.into_inner().unwrap()
}

/// An archive of small files, each with its path and contents.
pub fn layer(files: &[(&str, &str)]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (path, contents) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(contents.len() as u64);
        archive.append_data(&mut header, path, contents.as_bytes()).unwrap();
    }
    archive.into_inner().unwrap()
}

/// A docker archive of one image: its configuration as JSON, the archive of its only layer, its name.
pub fn docker_archive(config: &str, layer: &[u8], name: &str) -> Vec<u8> {
    let manifest = format!(r#"[{{"Config":"config.json","RepoTags":["{name}"],"Layers":["layer.tar"]}}]"#);
    let mut archive = tar::Builder::new(Vec::new());
    for (path, contents) in
        [("config.json", config.as_bytes()), ("layer.tar", layer), ("manifest.json", manifest.as_bytes())]
    {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(contents.len() as u64);
        archive.append_data(&mut header, path, contents).unwrap();
    }
    archive.into_inner().unwrap()
}
