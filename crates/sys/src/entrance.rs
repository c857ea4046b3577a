//! Programs that begin in other namespaces than their starter's: as root of a new user namespace, or in the namespaces of
//! a process that runs. For users without root; sources: user_namespaces(7), setns(2).
//!
//! Both need a process of one thread, which a child is between its fork and its program. What runs there allocates
//! nothing and takes no lock.

use std::ffi::CString;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::process::Signal;
use rustix::thread::{LinkNameSpaceType, ThreadNameSpaceType, UnshareFlags};

use crate::process::Pidfd;

/// What the starter says once the new namespace has its ids, and when it gets none.
const GO_ON: u8 = 1;
const GIVE_UP: u8 = 0;

/// Whether this process lives in a user namespace other than the machine's first, where much belongs to others: devices,
/// limits, parts of /proc/sys. As the ids that it has tell: user_namespaces(7), `uid_map`.
pub fn in_user_namespace() -> bool {
    std::fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| !has_every_id(&map))
}

fn has_every_id(map: &str) -> bool {
    map.split_ascii_whitespace().eq(["0", "0", "4294967295"])
}

/// Starts a program as root of a new user namespace, to which its new mounts, IPC and cgroup root belong. `map` gives the
/// namespace its ids: it is told the process, and called while that waits.
///
/// # Errors
/// What `map` says, else what the kernel says.
pub fn spawn_in_new(
    mut command: Command,
    map: impl FnOnce(u32) -> io::Result<()> + Send,
) -> io::Result<Child> {
    let (mut told, tell) = io::pipe()?;
    let (verdict, mut say) = io::pipe()?;
    let (tell, verdict) = (OwnedFd::from(tell), OwnedFd::from(verdict));
    // SAFETY: the closure only makes system calls, on descriptors that it owns; see the module.
    unsafe { command.pre_exec(move || begin_in_new(&tell, &verdict)) };
    std::thread::scope(|scope| {
        let mapping = std::thread::Builder::new().name("ids".into()).spawn_scoped(scope, move || {
            let mut pid = [0; 4];
            // Its end without a word: there is no child, or it has said why itself.
            if told.read_exact(&mut pid).is_err() {
                return Ok(());
            }
            let mapped = map(u32::from_ne_bytes(pid));
            say.write_all(&[if mapped.is_ok() { GO_ON } else { GIVE_UP }])?;
            mapped
        })?;
        let spawned = command.spawn();
        // The thread's pipe has no other writer then.
        drop(command);
        let mapped = mapping.join().unwrap_or_else(|_| Err(io::Error::other("the giving of ids panicked")));
        mapped.and(spawned)
    })
}

/// In the child.
fn begin_in_new(tell: &OwnedFd, verdict: &OwnedFd) -> io::Result<()> {
    // SAFETY: the flag that is unsafe is `FILES`; and this process has one thread.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWUSER)? };
    // It has the other side of the verdict's pipe too, and would wait for ever where its starter was killed.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    let pid = rustix::process::getpid().as_raw_nonzero().get();
    rustix::io::write(tell, &pid.to_ne_bytes())?;
    let mut answer = [GIVE_UP];
    rustix::io::read(verdict, &mut answer)?;
    if answer != [GO_ON] {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    become_root()?;
    rustix::process::set_parent_process_death_signal(None)?;
    // SAFETY: as above.
    unsafe {
        rustix::thread::unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::NEWIPC | UnshareFlags::NEWCGROUP)?;
    };
    Ok(())
}

fn become_root() -> io::Result<()> {
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)?;
    Ok(rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)?)
}

/// Where a program is to begin.
#[derive(Debug, Clone, Copy, Default)]
pub struct Place<'a> {
    /// The pin of a network namespace, as the mounts there show it; else the starter's network.
    pub network: Option<&'a Path>,
    /// With an IPC namespace of its own; else that of the process.
    pub own_ipc: bool,
    /// It is told to end (SIGTERM) when its starter ends.
    pub ends_with_starter: bool,
}

/// Starts a program as root of the user namespace in which `of` lives, among its mounts, at the starter's directory.
pub fn spawn_in(mut command: Command, of: &Pidfd, place: Place<'_>) -> io::Result<Child> {
    let process = of.as_fd().try_clone_to_owned()?;
    let network = place.network.map(|path| CString::new(path.as_os_str().as_bytes())).transpose()?;
    let directory = CString::new(std::env::current_dir()?.as_os_str().as_bytes())?;
    let (own_ipc, ends) = (place.own_ipc, place.ends_with_starter);
    let begin = move || {
        let mut kinds =
            ThreadNameSpaceType::USER | ThreadNameSpaceType::MOUNT | ThreadNameSpaceType::CONTROL_GROUP;
        if !own_ipc {
            kinds |= ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION;
        }
        rustix::thread::move_into_thread_name_spaces(process.as_fd(), kinds)?;
        become_root()?;
        if own_ipc {
            // SAFETY: the flag that is unsafe is `FILES`.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWIPC)? };
        }
        if let Some(path) = &network {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            let pin = rustix::fs::open(path.as_c_str(), flags, Mode::empty())?;
            rustix::thread::move_into_link_name_space(pin.as_fd(), Some(LinkNameSpaceType::Network))?;
        }
        // Joining mounts leads to their root.
        rustix::process::chdir(directory.as_c_str()).or_else(|_| rustix::process::chdir(c"/"))?;
        if ends {
            rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
        }
        Ok(())
    };
    // SAFETY: the closure only makes system calls, on descriptors and strings that it owns; see the module.
    unsafe { command.pre_exec(begin) };
    command.spawn()
}

/// A limit of the user namespace in which a process lives: `max_time_namespaces`. Each namespace has values of its own,
/// which show only there. Source: namespaces(7), `/proc/sys/user`.
pub fn limit_of(of: &Pidfd, name: &str) -> io::Result<String> {
    let process = of.as_fd().try_clone_to_owned()?;
    let mut command = Command::new("cat");
    command.arg(Path::new(LIMITS).join(name)).stdin(Stdio::null()).stderr(Stdio::null());
    let enter =
        move || Ok(rustix::thread::move_into_thread_name_spaces(process.as_fd(), ThreadNameSpaceType::USER)?);
    // SAFETY: the closure only makes a system call, on a descriptor that it owns; see the module.
    unsafe { command.pre_exec(enter) };
    Ok(String::from_utf8_lossy(&command.output()?.stdout).trim().to_owned())
}

/// Sets a limit of this process's user namespace.
pub fn set_limit(name: &str, value: &str) -> io::Result<()> {
    std::fs::write(Path::new(LIMITS).join(name), value)
}

const LIMITS: &str = "/proc/sys/user";

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_first_namespace_has_every_id() {
        assert!(has_every_id("         0          0 4294967295\n"));
        assert!(!has_every_id("         0       1000          1\n         1     100000      65536\n"));
        assert!(!has_every_id("         0          0      65536\n"));
    }

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdout(Stdio::piped()).stdin(Stdio::piped());
        command
    }

    fn give(pid: u32) -> io::Result<()> {
        crate::users::give_ids(pid, crate::users::Range { first: 100_000, count: 10 })
    }

    #[test]
    fn a_program_is_root_of_its_own_namespace_and_others_follow_it_there() {
        // It says which namespaces it has and waits for its input to end.
        let mut first = spawn_in_new(shell("id -u; readlink /proc/self/ns/user; cat"), give).unwrap();
        let mut said = String::new();
        let mut out = first.stdout.take().unwrap();
        let mut byte = [0];
        while said.lines().count() < 2 || !said.ends_with('\n') {
            assert_eq!(out.read(&mut byte).unwrap(), 1, "{said}");
            said.push(char::from(byte[0]));
        }
        let own = std::fs::read_link("/proc/self/ns/user").unwrap();
        assert!(said.starts_with("0\nuser:[") && !said.contains(own.to_str().unwrap()), "{said}");
        let process = Pidfd::open(first.id()).unwrap();
        let second = spawn_in(shell("id -u; readlink /proc/self/ns/user; pwd"), &process, Place::default());
        let second = second.unwrap().wait_with_output().unwrap();
        let here = std::env::current_dir().unwrap();
        assert_eq!(String::from_utf8_lossy(&second.stdout), format!("{said}{}\n", here.display()));
        assert_ne!(limit_of(&process, "max_time_namespaces").unwrap(), "1234");
        let set = shell("echo 1234 > /proc/sys/user/max_time_namespaces");
        assert!(spawn_in(set, &process, Place::default()).unwrap().wait().unwrap().success());
        assert_eq!(limit_of(&process, "max_time_namespaces").unwrap(), "1234");
        assert_ne!(std::fs::read_to_string("/proc/sys/user/max_time_namespaces").unwrap().trim(), "1234");
        drop(first.stdin.take());
        assert!(process.wait(Duration::from_secs(60)).unwrap());
        first.wait().unwrap();
    }

    #[test]
    fn without_ids_there_is_no_program_and_the_reason_is_told() {
        let refuse = |_| Err(io::Error::other("no ids for you"));
        let refused = spawn_in_new(shell("echo never"), refuse).unwrap_err();
        assert_eq!(refused.to_string(), "no ids for you");
        let missing = spawn_in_new(Command::new("/nowhere/at/all"), give).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }
}
