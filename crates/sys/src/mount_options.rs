//! What is asked of a mount, in the words of mount(8): some are flags of the kernel's, others are for the file system, and
//! a few are for programs that mount at start or for others, and mean nothing here.

use std::ffi::CString;
use std::io;
use std::path::Path;

use rustix::mount::MountFlags;

/// So much the kernel reads of what is for the file system.
const DATA_MAX: usize = 4095;

/// Words that set a flag, or take it away.
const FLAGS: [(&str, MountFlags, bool); 21] = [
    ("ro", MountFlags::RDONLY, true),
    ("rw", MountFlags::RDONLY, false),
    ("nosuid", MountFlags::NOSUID, true),
    ("suid", MountFlags::NOSUID, false),
    ("nodev", MountFlags::NODEV, true),
    ("dev", MountFlags::NODEV, false),
    ("noexec", MountFlags::NOEXEC, true),
    ("exec", MountFlags::NOEXEC, false),
    ("sync", MountFlags::SYNCHRONOUS, true),
    ("async", MountFlags::SYNCHRONOUS, false),
    ("dirsync", MountFlags::DIRSYNC, true),
    ("noatime", MountFlags::NOATIME, true),
    ("atime", MountFlags::NOATIME, false),
    ("nodiratime", MountFlags::NODIRATIME, true),
    ("diratime", MountFlags::NODIRATIME, false),
    ("relatime", MountFlags::RELATIME, true),
    ("norelatime", MountFlags::RELATIME, false),
    ("strictatime", MountFlags::STRICTATIME, true),
    ("nostrictatime", MountFlags::STRICTATIME, false),
    ("lazytime", MountFlags::LAZYTIME, true),
    ("nolazytime", MountFlags::LAZYTIME, false),
];

/// Words for others than the kernel.
const FOR_OTHERS: [&str; 10] =
    ["defaults", "auto", "noauto", "user", "nouser", "users", "owner", "group", "nofail", "_netdev"];

/// Words that ask for something else than a mount of a file system.
const REFUSED: [&str; 14] = [
    "bind",
    "rbind",
    "move",
    "remount",
    "loop",
    "shared",
    "rshared",
    "slave",
    "rslave",
    "private",
    "rprivate",
    "unbindable",
    "runbindable",
    "silent",
];

/// Flags, and what is for the file system, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    flags: MountFlags,
    data: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self { flags: MountFlags::empty(), data: Vec::new() }
    }
}

impl Options {
    /// Understands words, each of them one option or several with commas between.
    ///
    /// # Errors
    /// If a word asks for something else than a mount of a file system.
    pub fn parse<W: AsRef<str>>(words: &[W]) -> Result<Self, String> {
        let mut options = Self::default();
        let words = words.iter().flat_map(|words| words.as_ref().split(',')).map(str::trim);
        for word in words.filter(|word| !word.is_empty()) {
            if REFUSED.contains(&word) || word.contains('\0') {
                return Err(format!("mount option {word:?} is none of a volume's: leave it out"));
            }
            match FLAGS.iter().find(|(name, ..)| *name == word) {
                Some((_, flag, set)) => options.flags.set(*flag, *set),
                None if FOR_OTHERS.contains(&word) || word.starts_with("x-") => {}
                None => options.data.push(word.to_owned()),
            }
        }
        Ok(options)
    }

    /// Adds an option of the file system.
    pub fn push(&mut self, option: String) {
        self.data.push(option);
    }

    /// Nothing can be written through the mount.
    pub fn read_only(&mut self) {
        self.flags |= MountFlags::RDONLY;
    }

    /// Whether nothing can be written through the mount.
    pub fn is_read_only(&self) -> bool {
        self.flags.contains(MountFlags::RDONLY)
    }

    /// What is for the file system.
    pub fn data(&self) -> &[String] {
        &self.data
    }

    /// Mounts a file system of this kind: a device, or what the kind takes for one. Blocks, for ever where a server does not
    /// answer.
    pub fn mount(&self, source: impl rustix::path::Arg, target: &Path, kind: &str) -> io::Result<()> {
        let data = self.data.join(",");
        if data.len() > DATA_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the mount options are too long"));
        }
        let data = CString::new(data)?;
        Ok(rustix::mount::mount(source, target, kind, self.flags, Some(data.as_c_str()))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_flags_or_for_the_file_system() {
        let options =
            Options::parse(&["ro,noatime", "vers=4.1", "defaults", "_netdev", "x-systemd.automount"]);
        let options = options.unwrap();
        assert_eq!(options.flags, MountFlags::RDONLY | MountFlags::NOATIME);
        assert_eq!(options.data(), ["vers=4.1"]);
        let options = Options::parse(&["noexec", "exec", "", " nosuid "]).unwrap();
        assert_eq!((options.flags, options.data().len()), (MountFlags::NOSUID, 0));
        for refused in ["bind", "ro,remount", "rshared"] {
            assert!(Options::parse(&[refused]).is_err(), "{refused}");
        }
    }

    #[test]
    fn a_file_system_is_mounted_with_what_was_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let options = Options::parse(&["size=65536,mode=700", "ro"]).unwrap();
        options.mount("none", dir.path(), "tmpfs").unwrap();
        let written = std::fs::write(dir.path().join("f"), "");
        crate::mount::unmount(dir.path()).unwrap();
        assert_eq!(written.unwrap_err().kind(), io::ErrorKind::ReadOnlyFilesystem);
        let many = Options { data: vec!["x".repeat(5000)], ..Options::default() };
        assert!(many.mount("none", dir.path(), "tmpfs").unwrap_err().to_string().contains("too long"));
    }
}
