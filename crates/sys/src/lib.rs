//! The only home of unsafe code: kernel calls behind handles that are passed in, never chosen by `cfg`.
//!
//! What a caller may want to replace in a test is a value with a root that can point elsewhere ([`cgroup::CgroupHost`],
//! [`mount::MountTable`]); the rest are thin, total wrappers over one kernel object each.

pub mod cgroup;
pub mod children;
pub mod device_filter;
pub mod entrance;
pub mod files;
pub mod host;
pub mod mount;
pub mod mount_options;
#[cfg(feature = "net")]
pub mod net;
pub mod ns;
pub mod process;
pub mod removal;
pub mod seccomp;
pub mod seqpacket;
pub mod tty;
pub mod users;
#[cfg(feature = "async")]
pub mod watch;
