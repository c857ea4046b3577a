//! Overlay mounts that appear in no mount namespace: a view of an image or a snapshot, gone when it is dropped.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount, move_mount, unmount,
};

use crate::root::Root;

/// Options that keep every change in the upper directory in plain form, so that it can be packed: no renames by
/// reference, no files without their content.
const OPTIONS: [(&str, &str); 3] = [("redirect_dir", "off"), ("metacopy", "off"), ("index", "off")];

/// The same in a user namespace: overlayfs's own marks are attributes that users may set, and it takes no other word for
/// renames. A flag has no value. Source: the kernel's `overlayfs.rst`, "User xattr", and `fs/overlayfs/params.c`.
const OF_USERS: [(&str, &str); 4] =
    [("redirect_dir", "nofollow"), ("metacopy", "off"), ("index", "off"), ("userxattr", "")];

/// The options of this process's overlay mounts.
pub fn options() -> &'static [(&'static str, &'static str)] {
    if sys::entrance::in_user_namespace() { &OF_USERS } else { &OPTIONS }
}

/// The attribute of a directory that hides what lies below it in other layers.
pub(crate) fn opaque_xattr() -> &'static str {
    if sys::entrance::in_user_namespace() { "user.overlay.opaque" } else { "trusted.overlay.opaque" }
}

/// The directories of one overlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layers {
    /// Read-only directories, the topmost first; at least one.
    pub lower: Vec<PathBuf>,
    /// The writable directory and overlayfs's work directory.
    pub upper: Option<(PathBuf, PathBuf)>,
}

impl Layers {
    /// The data of mount(2), options included. At most a page: deep images need short paths.
    pub fn mount_data(&self) -> String {
        let lower: Vec<_> = self.lower.iter().map(|path| path.to_string_lossy()).collect();
        let mut data = format!("lowerdir={}", lower.join(":"));
        if let Some((upper, work)) = &self.upper {
            data.push_str(&format!(",upperdir={},workdir={}", upper.display(), work.display()));
        }
        for &(key, value) in options() {
            data.push_str(&if value.is_empty() { format!(",{key}") } else { format!(",{key}={value}") });
        }
        data
    }

    /// Mounts them where only the answer can reach. `scratch` is an empty directory for kernels before 6.5.
    pub fn view(&self, scratch: &Path) -> io::Result<Root> {
        if let ([only], None) = (self.lower.as_slice(), &self.upper) {
            return Root::open(only);
        }
        match self.detached(MountAttrFlags::empty()) {
            Ok(fd) => Ok(Root::from_fd(fd)),
            // Before Linux 6.5 there is no `lowerdir+`, and no string of more than 255 bytes.
            Err(Errno::INVAL) => Ok(Root::from_fd(self.attached_and_detached(scratch)?)),
            Err(error) => Err(error.into()),
        }
    }

    /// Mounts them where nothing can be written or executed.
    pub fn attach_sealed(&self, target: &Path) -> io::Result<()> {
        let sealed = MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        match self.detached(sealed) {
            Ok(fd) => Ok(move_mount(fd, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?),
            // Before Linux 6.5, as above.
            Err(Errno::INVAL) => {
                let data = std::ffi::CString::new(self.mount_data())?;
                let flags = MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::RDONLY;
                Ok(mount("overlay", target, "overlay", flags, Some(data.as_c_str()))?)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn detached(&self, more: MountAttrFlags) -> Result<OwnedFd, Errno> {
        let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        for path in &self.lower {
            fsconfig_set_string(&context, "lowerdir+", path)?;
        }
        if let Some((upper, work)) = &self.upper {
            fsconfig_set_string(&context, "upperdir", upper)?;
            fsconfig_set_string(&context, "workdir", work)?;
        }
        for &(key, value) in options() {
            match value {
                "" => fsconfig_set_flag(&context, key)?,
                value => fsconfig_set_string(&context, key, value)?,
            }
        }
        fsconfig_create(&context)?;
        let attributes = MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID | more;
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
    }

    fn attached_and_detached(&self, scratch: &Path) -> Result<OwnedFd, Errno> {
        let data = std::ffi::CString::new(self.mount_data()).map_err(|_| Errno::INVAL)?;
        mount("overlay", scratch, "overlay", MountFlags::NODEV | MountFlags::NOSUID, Some(data.as_c_str()))?;
        let fd = openat(CWD, scratch, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        unmount(scratch, UnmountFlags::DETACH)?;
        fd
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    /// Two layers and a writable one; answers what `how` shows of them.
    fn shown(how: impl Fn(&Layers, &Path) -> Result<OwnedFd, Errno>) -> Result<[String; 2], Errno> {
        let dir = tempfile::tempdir().unwrap();
        for name in ["bottom", "top", "upper", "work", "scratch"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        std::fs::write(dir.path().join("bottom/below"), "of the bottom").unwrap();
        std::fs::write(dir.path().join("bottom/both"), "of the bottom").unwrap();
        std::fs::write(dir.path().join("top/both"), "of the top").unwrap();
        let layers = Layers {
            lower: vec![dir.path().join("top"), dir.path().join("bottom")],
            upper: Some((dir.path().join("upper"), dir.path().join("work"))),
        };
        let root = Root::from_fd(how(&layers, &dir.path().join("scratch"))?);
        Ok(["below", "both"].map(|name| {
            let mut text = String::new();
            root.file(Path::new(name)).unwrap().read_to_string(&mut text).unwrap();
            text
        }))
    }

    #[test]
    fn both_ways_to_mount_show_the_same() {
        let expected = Ok(["of the bottom", "of the top"].map(str::to_owned));
        // As kernels before 6.5 need it, whichever kernel this is.
        assert_eq!(shown(Layers::attached_and_detached), expected);
        let detached = shown(|layers, _| layers.detached(MountAttrFlags::empty()));
        // Such a kernel refuses the other way with this error, which `view` goes by.
        assert!(detached == expected || detached == Err(Errno::INVAL), "{detached:?}");
    }
}
