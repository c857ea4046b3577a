//! Takes the place of youki's crate of this name below its runtime library (`[patch.crates-io]` of the workspace).
//!
//! The library moves each process that it makes into the container's cgroups, by its number: the kernel then waits until
//! no thread is on its way through fork or exec (a grace period of its read-copy-update, 11 ms on an idle machine), and the
//! library reads the mount table once for each controller. Skiff's launchers are in those groups before they call the
//! library, where a process goes by itself without such a wait; the engine makes the groups, sets their limits, empties
//! and removes them. So here is nothing to be done, and what would be is refused.
//!
//! The shapes are those of `libcgroups` 0.7, as far as `libcontainer` 0.7 names them.

pub mod common;

/// Version 1 of cgroups.
pub mod v1 {
    /// Where its hierarchies are.
    pub mod util {
        use std::io;
        use std::path::PathBuf;

        /// The mount points of all hierarchies.
        pub fn list_subsystem_mount_points() -> io::Result<Vec<PathBuf>> {
            let table = std::fs::read_to_string("/proc/self/mountinfo")?;
            Ok(table.lines().filter_map(hierarchy).collect())
        }

        /// The mount point in a line of proc(5)'s `mountinfo`, if it is a hierarchy's.
        fn hierarchy(line: &str) -> Option<PathBuf> {
            let (mount, what) = line.split_once(" - ")?;
            what.starts_with("cgroup ").then(|| mount.split(' ').nth(4).map(PathBuf::from))?
        }

        #[cfg(test)]
        mod tests {
            use super::*;

            #[test]
            fn only_hierarchies_of_version_1_are_told() {
                let line = |kind: &str| {
                    format!("33 31 0:30 / /sys/fs/cgroup/pids rw shared:9 - {kind} cgroup rw,pids")
                };
                assert_eq!(hierarchy(&line("cgroup")), Some(PathBuf::from("/sys/fs/cgroup/pids")));
                assert_eq!(hierarchy(&line("cgroup2")), None);
                assert_eq!(hierarchy("rubbish"), None);
            }
        }
    }
}

/// Version 2 of cgroups.
pub mod v2 {
    /// Where its hierarchy is.
    pub mod util {
        use std::io;
        use std::path::PathBuf;

        use crate::common::{CgroupSetup, DEFAULT_CGROUP_ROOT, get_cgroup_setup};

        /// The mount point of the hierarchy, where everything is in it.
        pub fn get_unified_mount_point() -> io::Result<PathBuf> {
            match get_cgroup_setup().map_err(io::Error::other)? {
                CgroupSetup::Unified => Ok(PathBuf::from(DEFAULT_CGROUP_ROOT)),
                CgroupSetup::Hybrid | CgroupSetup::Legacy => Err(io::ErrorKind::NotFound.into()),
            }
        }
    }
}
