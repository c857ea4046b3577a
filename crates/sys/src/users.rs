//! User namespaces: the ids that one has, becoming one of its users, and mounts that show a file system's ids as its own.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use rustix::fs::{Gid, Uid};

use crate::mount::{attach, clone_tree};

/// So many ids of the host's, from the first on, which are 0 and up inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// The host's id of the namespace's root.
    pub first: u32,
    /// How many there are.
    pub count: u32,
}

/// The ids that this process's user namespace has. Source: user_namespaces(7), `uid_map` and `gid_map`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ids {
    users: Vec<(u32, u32)>,
    groups: Vec<(u32, u32)>,
}

impl Ids {
    /// Where the maps cannot be read, every id.
    pub fn own() -> Self {
        let read = |kind: &str| std::fs::read_to_string(format!("/proc/self/{kind}_map")).unwrap_or_default();
        Self::from_maps(&read("uid"), &read("gid"))
    }

    fn from_maps(users: &str, groups: &str) -> Self {
        let ranges = |map: &str| {
            let of_line = |line: &str| {
                let mut numbers = line.split_ascii_whitespace().map(|word| word.parse().ok());
                Some((numbers.next()??, numbers.nth(1)??))
            };
            let found: Vec<(u32, u32)> = map.lines().filter_map(of_line).collect();
            if found.is_empty() { vec![(0, u32::MAX)] } else { found }
        };
        Self { users: ranges(users), groups: ranges(groups) }
    }

    /// The user, or root in the place of one that is not there: so a user with few ids can have others' files.
    pub fn user_or_root(&self, uid: u32) -> u32 {
        if has(&self.users, uid) { uid } else { 0 }
    }

    /// The group, or root's in the place of one that is not there.
    pub fn group_or_root(&self, gid: u32) -> u32 {
        if has(&self.groups, gid) { gid } else { 0 }
    }
}

fn has(ranges: &[(u32, u32)], id: u32) -> bool {
    ranges.iter().any(|(first, count)| id.checked_sub(*first).is_some_and(|offset| offset < *count))
}

/// Gives the user namespace of a process, which has no ids yet, its range.
pub fn give_ids(pid: u32, range: Range) -> io::Result<()> {
    let line = format!("0 {} {}\n", range.first, range.count);
    ["uid_map", "gid_map"].iter().try_for_each(|file| std::fs::write(format!("/proc/{pid}/{file}"), &line))
}

/// Makes this single-threaded process one of a user, by its numbers in the process's user namespace. Rights inside that
/// namespace stay.
pub fn become_user(uid: u32, gid: u32, groups: &[u32]) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    let groups: Vec<Gid> = groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    rustix::thread::set_thread_groups(&groups)?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    Ok(rustix::thread::set_thread_res_uid(uid, uid, uid)?)
}

/// Shows `source` at `target` too, with its ids as those of the user namespace `users`: what belongs to root there
/// belongs to the namespace's root here, and the other way round for what is written. What is mounted below `source`
/// comes along; where that cannot be so shown, only `source` itself is. What happens to the copy, its end above all, reaches
/// nobody. Source: mount_setattr(2), `MOUNT_ATTR_IDMAP`.
pub fn bind_mapped(source: &Path, users: impl AsFd, target: &Path) -> io::Result<()> {
    let tree = clone_tree(source)?;
    // A copy of a shared mount is its peer: who unmounts what is below the one would unmount it below the other.
    let follows = libc::mount_attr { attr_set: 0, attr_clr: 0, propagation: libc::MS_SLAVE, userns_fd: 0 };
    set_attributes(&tree, &follows, true)?;
    let users = users.as_fd().as_raw_fd();
    let mapped = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::try_from(users).map_err(io::Error::other)?,
    };
    match set_attributes(&tree, &mapped, true) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => set_attributes(&tree, &mapped, false)?,
        other => other?,
    }
    attach(&tree, target)
}

fn set_attributes(tree: impl AsFd, attributes: &libc::mount_attr, recursive: bool) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a terminated string, and the attributes outlive the call and are as long as is said.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attributes),
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::process::{Child, Command};

    use super::*;

    #[test]
    fn ids_that_are_not_there_are_roots() {
        let several = "         0       1000          1\n         1     100000      65536\n";
        let ids = Ids::from_maps(several, "0 1000 1\n");
        assert_eq!([0, 1, 65536, 65537].map(|id| ids.user_or_root(id)), [0, 1, 65536, 0]);
        assert_eq!([0, 5].map(|id| ids.group_or_root(id)), [0, 0]);
        let all = Ids::from_maps("0 0 4294967295", "");
        assert_eq!((all.user_or_root(70_000), all.group_or_root(70_000)), (70_000, 70_000));
    }

    const RANGE: Range = Range { first: 1_000_000, count: 65536 };

    /// A process in a user namespace of its own.
    fn other() -> Child {
        let child = Command::new("unshare").args(["-U", "sleep", "1000"]).spawn().unwrap();
        let path = format!("/proc/{}/ns/user", child.id());
        let own = std::fs::metadata("/proc/self/ns/user").unwrap().ino();
        while std::fs::metadata(&path).unwrap().ino() == own {
            std::thread::yield_now();
        }
        child
    }

    /// A user namespace with ids, in which nobody is.
    fn users() -> std::fs::File {
        let mut child = other();
        give_ids(child.id(), RANGE).unwrap();
        let users = std::fs::File::open(format!("/proc/{}/ns/user", child.id())).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        users
    }

    #[test]
    fn the_end_of_a_copy_does_not_reach_what_it_is_a_copy_of() {
        let (dir, users) = (tempfile::tempdir().unwrap(), users());
        let (source, target) = (dir.path().join("source"), dir.path().join("target"));
        let inner = source.join("inner");
        for directory in [&source, &target] {
            std::fs::create_dir(directory).unwrap();
        }
        crate::mount::tmpfs(&source, Some(1 << 20)).unwrap();
        crate::mount::share(&source).unwrap();
        std::fs::create_dir(&inner).unwrap();
        crate::mount::tmpfs(&inner, Some(1 << 20)).unwrap();
        std::fs::write(inner.join("file"), "x").unwrap();
        let mapped = bind_mapped(&source, &users, &target);
        let came = target.join("inner/file").exists();
        crate::mount::unmount(&target.join("inner")).unwrap();
        crate::mount::unmount(&target).unwrap();
        let stays = inner.join("file").exists();
        crate::mount::unmount(&inner).unwrap();
        crate::mount::unmount(&source).unwrap();
        mapped.unwrap();
        assert!(came && stays, "{came} {stays}");
    }

    #[test]
    fn files_are_shown_as_the_namespaces_and_written_as_the_hosts() {
        let (dir, users) = (tempfile::tempdir().unwrap(), users());
        let (source, target) = (dir.path().join("source"), dir.path().join("target"));
        for directory in [&source, &target] {
            std::fs::create_dir(directory).unwrap();
        }
        crate::mount::tmpfs(&source, Some(1 << 20)).unwrap();
        std::fs::write(source.join("file"), "x").unwrap();
        std::os::unix::fs::chown(source.join("file"), Some(5), Some(6)).unwrap();
        let mapped = bind_mapped(&source, &users, &target);
        let owner = std::fs::metadata(target.join("file")).map(|file| (file.uid(), file.gid()));
        let given = std::os::unix::fs::chown(target.join("file"), Some(RANGE.first + 7), None);
        let written = std::fs::metadata(source.join("file")).unwrap().uid();
        crate::mount::unmount(&target).unwrap();
        crate::mount::unmount(&source).unwrap();
        mapped.unwrap();
        given.unwrap();
        assert_eq!(owner.unwrap(), (RANGE.first + 5, RANGE.first + 6));
        assert_eq!(written, 7);
    }
}
