//! Processes by pidfd: signals that cannot hit another process, and exits that are told and not asked for.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags, Signal};

/// A handle on a process that never names another one. It becomes readable when the process has ended.
#[derive(Debug)]
pub struct Pidfd {
    fd: OwnedFd,
}

impl Pidfd {
    /// Opens a handle. Another process may have taken the number since the caller learned it: the caller shows by
    /// some other means (a living connection, an unreaped child) that it has not.
    pub fn open(pid: u32) -> io::Result<Self> {
        let fd = rustix::process::pidfd_open(to_pid(pid)?, PidfdFlags::NONBLOCK)?;
        Ok(Self { fd })
    }

    /// A handle from a descriptor that was received.
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// Sends a signal, by number.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        Ok(rustix::process::pidfd_send_signal(&self.fd, to_signal(signal)?)?)
    }

    /// Waits for the process's end; `false` if it still runs after `timeout`. Blocks.
    pub fn wait(&self, timeout: Duration) -> io::Result<bool> {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = rustix::event::Timespec::try_from(left).map_err(io::Error::other)?;
            let mut poll = [PollFd::new(&self.fd, PollFlags::IN)];
            match rustix::event::poll(&mut poll, Some(&left)) {
                Ok(ready) => return Ok(ready > 0),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for Pidfd {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<Pidfd> for OwnedFd {
    fn from(pidfd: Pidfd) -> Self {
        pidfd.fd
    }
}

/// Sends a signal to a process by number; only for processes that the caller holds in a cgroup or has not reaped yet.
/// One that is gone already is no error.
pub fn signal(pid: u32, signal: i32) -> io::Result<()> {
    match rustix::process::kill_process(to_pid(pid)?, to_signal(signal)?) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The moment that a process started, in clock ticks since boot: with its number it names one process of this boot.
pub fn start_time(pid: u32) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_start_time(&stat).ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat has no start time")))
}

/// Field 22 of proc(5)'s `stat`. The command in field 2 is in parentheses and may itself contain any character.
fn parse_start_time(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// Starts a session of its own, away from the caller's terminal and process group.
pub fn new_session() -> io::Result<()> {
    rustix::process::setsid()?;
    Ok(())
}

/// Orphans among the descendants become children of this process.
pub fn become_subreaper() -> io::Result<()> {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    Ok(())
}

/// Has the kernel kill this process when its parent ends, however that ends. Giving up rights undoes it: it comes after.
/// A parent that ended before is not noticed; the caller finds that out by some other means.
pub fn die_with_parent() -> io::Result<()> {
    Ok(rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?)
}

/// Has what a command runs be killed when the calling thread ends, and be the leader of a process group, by which it can be
/// ended with what it starts ([`kill_group`]).
pub fn bind_to_caller(command: &mut Command) -> &mut Command {
    command.process_group(0);
    // SAFETY: one system call between fork and exec, which allocates nothing and takes no lock.
    unsafe { command.pre_exec(die_with_parent) }
}

/// Kills every process of a group whose leader the caller has not reaped yet. One that is gone is no error.
pub fn kill_group(leader: u32) -> io::Result<()> {
    match rustix::process::kill_process_group(to_pid(leader)?, Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Closes /proc/<pid> of this process to others that have fewer rights.
pub fn hide() -> io::Result<()> {
    Ok(rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?)
}

/// Has programs that this process executes keep its rights, also where it is not root for its user namespace. Until
/// [`drop_all_rights`], for their part.
pub fn pass_rights_on() -> io::Result<()> {
    use rustix::thread::CapabilitySets;
    let held = rustix::thread::capabilities(None)?;
    let inheritable = held.permitted;
    rustix::thread::set_capabilities(None, CapabilitySets { inheritable, ..held })?;
    for capability in inheritable.iter() {
        rustix::thread::configure_capability_in_ambient_set(capability, true)?;
    }
    Ok(())
}

/// Takes every capability from this process, for good, and keeps it from gaining any.
pub fn drop_all_rights() -> io::Result<()> {
    use rustix::thread::{CapabilitySet, CapabilitySets};
    for capability in CapabilitySet::all().iter() {
        // The kernel may know fewer capabilities than the library.
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
    rustix::thread::set_capabilities(None, sets)?;
    rustix::thread::set_no_new_privs(true)?;
    Ok(())
}

fn to_pid(pid: u32) -> io::Result<Pid> {
    i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("{pid} is no process id")))
}

fn to_signal(signal: i32) -> io::Result<Signal> {
    if !(1..=64).contains(&signal) || matches!(signal, 32 | 33) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{signal} is no signal")));
    }
    // SAFETY: the number is a signal of the kernel's and none that the C library reserves (32, 33); this process only
    // passes it on and attaches no handler to it.
    Ok(unsafe { Signal::from_raw_unchecked(signal) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_times_survive_odd_names() {
        let tail = "S 1 2 3 0 -1 4194560 0 0 0 0 0 0 0 0 20 0 1 0 77 0 0";
        assert_eq!(parse_start_time(&format!("12 (a) b) {tail}")), Some(77));
        assert_eq!(parse_start_time("nonsense"), None);
        assert!(start_time(std::process::id()).unwrap() > 0);
    }

    #[test]
    fn a_pidfd_signals_and_tells_the_end() {
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let pidfd = Pidfd::open(child.id()).unwrap();
        pidfd.signal(15).unwrap();
        assert!(pidfd.wait(Duration::from_secs(60)).unwrap());
        use std::os::unix::process::ExitStatusExt;
        assert_eq!(child.wait().unwrap().signal(), Some(15));
        assert!(pidfd.signal(15).is_err());
        assert!(pidfd.signal(65).is_err());
    }
}
