//! PID 1 of a PID namespace that containers share: reaps, does nothing else, can do nothing else.

use std::io;
use std::path::Path;

use rustix::event::{PollFd, PollFlags};
use sys::ns::Namespace;

/// Goes into an empty read-only root over `directory` without any right, so that /proc/1 opens no way to the host to
/// the containers that see it; then reaps orphans until it is killed or its shim ends.
pub(crate) fn run(directory: &Path) -> io::Result<()> {
    rustix::thread::set_name(c"skiff-init")?;
    let signals = sys::children::ChildSignals::new()?;
    sys::ns::unshare(&[Namespace::Mount])?;
    sys::mount::make_private()?;
    sys::mount::enter_empty_root(directory)?;
    sys::process::drop_all_rights()?;
    sys::process::hide()?;
    // A shim that is killed takes the namespace and everything in it along. One that ended before this line reads no
    // longer, so that the write fails.
    sys::process::die_with_parent()?;
    rustix::io::write(rustix::stdio::stdout(), b".")?;
    loop {
        while let Some(pid) = sys::children::peek()? {
            sys::children::try_reap(pid)?;
        }
        let mut poll = [PollFd::new(&signals, PollFlags::IN)];
        match rustix::event::poll(&mut poll, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => signals.clear(),
            Err(error) => return Err(error.into()),
        }
    }
}
