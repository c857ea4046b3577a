//! This process's children: a descriptor that tells of ended ones, and reaping by number.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::process::{Pid, WaitId, WaitIdOptions, WaitIdStatus};

/// A descriptor that becomes readable when a child has ended (`signalfd` for SIGCHLD).
#[derive(Debug)]
pub struct ChildSignals {
    fd: OwnedFd,
}

impl ChildSignals {
    /// Blocks SIGCHLD for this thread and takes it through a descriptor. For single-threaded programs, at their start.
    pub fn new() -> io::Result<Self> {
        let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: `sigemptyset` initialises the set before the others read it; all pointers are to live locals, and
        // the descriptor that `signalfd` answers is owned by nobody else.
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            libc::sigaddset(set.as_mut_ptr(), libc::SIGCHLD);
            if libc::sigprocmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut()) != 0 {
                return Err(io::Error::last_os_error());
            }
            let fd = libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(Self { fd: OwnedFd::from_raw_fd(fd) })
        }
    }

    /// Takes what is pending, so that the descriptor is readable again only for later ends.
    pub fn clear(&self) {
        let mut buffer = [0u8; 8 * size_of::<libc::signalfd_siginfo>()];
        while rustix::io::read(&self.fd, &mut buffer).is_ok_and(|length| length == buffer.len()) {}
    }
}

impl AsFd for ChildSignals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Its process id.
    pub pid: u32,
    /// The exit code; 128 + signal where a signal ended it.
    pub code: i32,
    /// The signal that ended it, or 0.
    pub signal: i32,
}

/// A child that has ended and is not reaped yet, if there is one.
pub fn peek() -> io::Result<Option<u32>> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    match rustix::process::waitid(WaitId::All, options) {
        Ok(status) => Ok(status.as_ref().and_then(pid_of)),
        Err(rustix::io::Errno::CHILD) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Reaps a child if it has ended.
pub fn try_reap(pid: u32) -> io::Result<Option<Ended>> {
    wait(pid, WaitIdOptions::EXITED | WaitIdOptions::NOHANG)
}

/// Waits for a child's end and reaps it: for children that are known to end at once.
pub fn reap(pid: u32) -> io::Result<Ended> {
    loop {
        match wait(pid, WaitIdOptions::EXITED) {
            Ok(Some(ended)) => return Ok(ended),
            Ok(None) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn wait(pid: u32, options: WaitIdOptions) -> io::Result<Option<Ended>> {
    let id = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
    let status = rustix::process::waitid(WaitId::Pid(id), options)?;
    Ok(status.map(|status| {
        let signal = status.terminating_signal().unwrap_or(0);
        let code = status.exit_status().unwrap_or(128 + signal);
        Ended { pid, code, signal }
    }))
}

/// The process that a status is about, which rustix does not tell.
fn pid_of(status: &WaitIdStatus) -> Option<u32> {
    // SAFETY: `WaitIdStatus` is `repr(transparent)` over the `siginfo_t` that waitid(2) filled; its `si_pid` is valid
    // for SIGCHLD, the only signal that waitid(2) reports.
    let pid = unsafe {
        let info = &*std::ptr::from_ref(status).cast::<libc::siginfo_t>();
        info.si_pid()
    };
    u32::try_from(pid).ok().filter(|pid| *pid != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::zombie_processes, reason = "reaped by the function under test")]
    fn ends_are_reported_as_code_or_signal() {
        let child = std::process::Command::new("sh").args(["-c", "exit 7"]).spawn().unwrap();
        assert_eq!(reap(child.id()).unwrap(), Ended { pid: child.id(), code: 7, signal: 0 });
        let child = std::process::Command::new("sh").args(["-c", "kill -9 $$"]).spawn().unwrap();
        assert_eq!(reap(child.id()).unwrap(), Ended { pid: child.id(), code: 137, signal: 9 });
        assert!(try_reap(child.id()).is_err());
    }
}
