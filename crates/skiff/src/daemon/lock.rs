//! One daemon per data directory: a lock that the kernel lets go of however the daemon ends, and that names its holder.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, Write};
use std::path::Path;

use anyhow::{Context, Result};
use base::lock::FileLock;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// The lock, held until it is dropped.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: FileLock,
}

/// What became of the wish to have it.
#[derive(Debug)]
pub(crate) enum State {
    /// It is the caller's.
    Taken(Lock),
    /// Another process has it.
    Held {
        /// That process.
        pid: u32,
    },
}

/// Takes the lock of a data directory, or says who has it.
pub(crate) fn take(directory: &Path) -> Result<State> {
    let path = directory.join("lock");
    let failed = || format!("use {}", path.display());
    let open = fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
    let mut file = open.with_context(failed)?;
    match FileLock::take(file.try_clone().with_context(failed)?) {
        Ok(lock) => {
            file.set_len(0).and_then(|()| file.rewind()).with_context(failed)?;
            write!(file, "{}", std::process::id()).with_context(failed)?;
            Ok(State::Taken(Lock { _file: lock }))
        }
        Err(error) if error.kind() == ErrorKind::ResourceBusy => {
            Ok(State::Held { pid: read_pid(&mut file, &path)? })
        }
        Err(error) => Err(error).with_context(failed),
    }
}

/// The process that has the lock of a data directory, if one has. Leaves no trace.
pub(crate) fn holder(directory: &Path) -> Result<Option<u32>> {
    let path = directory.join("lock");
    let mut file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("open {}", path.display())),
    };
    if file.try_lock_shared().is_ok() {
        return Ok(None);
    }
    read_pid(&mut file, &path).map(Some)
}

/// Whether a process has ended, or ends within so many seconds.
pub(crate) fn ended_within(pid: u32, seconds: i64) -> Result<bool> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("the daemon's process id")?;
    let handle = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(handle) => handle,
        Err(rustix::io::Errno::SRCH) => return Ok(true),
        Err(error) => return Err(error).context("open the daemon's process"),
    };
    let limit = Timespec { tv_sec: seconds, tv_nsec: 0 };
    Ok(poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&limit)).context("wait for the daemon")? > 0)
}

fn read_pid(file: &mut File, path: &Path) -> Result<u32> {
    let mut text = String::new();
    file.read_to_string(&mut text).with_context(|| format!("read {}", path.display()))?;
    text.trim().parse().with_context(|| format!("{} names no process; try again", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_one_learns_who_was_first() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(holder(directory.path()).unwrap(), None);
        let State::Taken(first) = take(directory.path()).unwrap() else { panic!("nobody has it") };
        assert_eq!(holder(directory.path()).unwrap(), Some(std::process::id()));
        let State::Held { pid } = take(directory.path()).unwrap() else { panic!("it was taken twice") };
        assert_eq!(pid, std::process::id());
        drop(first);
        assert!(matches!(take(directory.path()).unwrap(), State::Taken(_)));
    }
}
