//! A sandbox's processes where there are no cgroups to list them, as for users without root on a host that delegates none:
//! who lives in one of its own namespaces is its. Of a sandbox that shares all of them with the host, only the containers'
//! first processes are known, by its shim.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use sys::process::Pidfd;

use crate::layout::namespace;

/// The namespaces that a sandbox may have of its own, by their files in /proc/PID/ns.
const KINDS: [&str; 4] = ["ipc", "net", "uts", "pid"];

/// A namespace: its kind, and what tells it from others.
type Mark = (&'static str, (u64, u64));

/// Kills who lives in the sandbox's own namespaces, but for one process, and returns when all have ended; with an error
/// after `timeout`. Blocks.
pub(crate) fn kill(run_sandbox: &Path, but_for: Option<u32>, timeout: Duration) -> io::Result<()> {
    let deadline = Instant::now() + timeout;
    let marks = marks(run_sandbox);
    loop {
        let found: Vec<Pidfd> = processes(but_for).filter_map(|pid| open_member(pid, &marks)).collect();
        if found.is_empty() {
            return Ok(());
        }
        for process in &found {
            // It may end on its own meanwhile.
            let _ = process.signal(9);
        }
        for process in &found {
            if !process.wait(deadline.saturating_duration_since(Instant::now()))? {
                let why = "a process of the sandbox did not end after SIGKILL";
                return Err(io::Error::new(io::ErrorKind::TimedOut, why));
            }
        }
    }
}

/// The namespaces that are pinned in the sandbox's directory. A file without its mount is on another file system.
fn marks(run_sandbox: &Path) -> Vec<Mark> {
    let of = |kind: &'static str| {
        let own = identity(&std::fs::metadata(Path::new("/proc/self/ns").join(kind)).ok()?);
        let pinned = identity(&std::fs::metadata(namespace(run_sandbox, kind)).ok()?);
        (pinned.0 == own.0 && pinned.1 != own.1).then_some((kind, pinned))
    };
    KINDS.into_iter().filter_map(of).collect()
}

fn identity(of: &Metadata) -> (u64, u64) {
    (of.dev(), of.ino())
}

fn processes(but_for: Option<u32>) -> impl Iterator<Item = u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(move |pid| Some(*pid) != but_for)
}

/// A handle on a process that lives in one of the namespaces. Looked at after the handle was opened, so that it names who
/// was seen. One that has ended and waits for its parent has no namespaces any more.
fn open_member(pid: u32, marks: &[Mark]) -> Option<Pidfd> {
    let lives_in = |(kind, mark): &Mark| {
        let seen = std::fs::metadata(format!("/proc/{pid}/ns/{kind}"));
        seen.is_ok_and(|seen| identity(&seen) == *mark)
    };
    if !marks.iter().any(lives_in) {
        return None;
    }
    let process = Pidfd::open(pid).ok()?;
    marks.iter().any(lives_in).then_some(process)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use sys::ns::Namespace;

    use super::*;

    #[test]
    fn who_lives_in_a_pinned_namespace_ends_and_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let pin = namespace(dir.path(), "uts");
        std::fs::create_dir_all(pin.parent().unwrap()).unwrap();
        // A file without a mount marks nobody.
        std::fs::write(namespace(dir.path(), "net"), "").unwrap();
        let sleeper = || {
            let sleep = Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn();
            sleep.unwrap()
        };
        let mut other = sleeper();
        let inside = pin.clone();
        let (mut spared, mut member) = std::thread::spawn(move || {
            sys::ns::unshare(&[Namespace::Uts]).unwrap();
            sys::ns::pin_own(Namespace::Uts, &inside).unwrap();
            (sleeper(), sleeper())
        })
        .join()
        .unwrap();
        let killed = kill(dir.path(), Some(spared.id()), Duration::from_secs(60));
        let lives = [spared.try_wait().unwrap().is_none(), other.try_wait().unwrap().is_none()];
        let rest = kill(dir.path(), None, Duration::from_secs(60));
        sys::mount::unmount(&pin).unwrap();
        for child in [&mut other, &mut spared, &mut member] {
            let _ = child.kill();
        }
        let ends = [member.wait().unwrap(), spared.wait().unwrap()];
        other.wait().unwrap();
        killed.unwrap();
        rest.unwrap();
        assert_eq!(lives, [true, true]);
        assert!(ends.iter().all(|end| !end.success()));
    }
}
