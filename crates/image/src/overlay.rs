//! Overlay mounts that appear in no mount namespace: a view of an image or a snapshot, gone when it is dropped.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, mount, unmount,
};

use crate::root::Root;

/// Options that keep every change in the upper directory in plain form, so that it can be packed: no renames by
/// reference, no files without their content.
pub const OPTIONS: [(&str, &str); 3] = [("redirect_dir", "off"), ("metacopy", "off"), ("index", "off")];

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
        for (key, value) in OPTIONS {
            data.push_str(&format!(",{key}={value}"));
        }
        data
    }

    /// Mounts them where only the answer can reach. `scratch` is an empty directory for kernels before 6.5.
    pub fn view(&self, scratch: &Path) -> io::Result<Root> {
        if let ([only], None) = (self.lower.as_slice(), &self.upper) {
            return Root::open(only);
        }
        match self.detached() {
            Ok(fd) => Ok(Root::from_fd(fd)),
            // Before Linux 6.5 there is no `lowerdir+`, and no string of more than 255 bytes.
            Err(Errno::INVAL) => Ok(Root::from_fd(self.attached_and_detached(scratch)?)),
            Err(error) => Err(error.into()),
        }
    }

    fn detached(&self) -> Result<OwnedFd, Errno> {
        let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        for path in &self.lower {
            fsconfig_set_string(&context, "lowerdir+", path)?;
        }
        if let Some((upper, work)) = &self.upper {
            fsconfig_set_string(&context, "upperdir", upper)?;
            fsconfig_set_string(&context, "workdir", work)?;
        }
        for (key, value) in OPTIONS {
            fsconfig_set_string(&context, key, value)?;
        }
        fsconfig_create(&context)?;
        let attributes = MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID;
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
