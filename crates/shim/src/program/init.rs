//! PID 1 of a PID namespace that containers share: reaps, does nothing else, can do nothing else.

use std::io;
use std::path::Path;

use rustix::event::{PollFd, PollFlags};
use sys::ns::Namespace;

use super::sandbox::during;

/// Goes into an empty read-only root over `directory` without any right, so that /proc/1 opens no way to the host to
/// the containers that see it; then reaps orphans until it is killed or its shim ends.
pub(crate) fn run(directory: &Path) -> io::Result<()> {
    rustix::thread::set_name(c"skiff-init")?;
    let signals = sys::children::ChildSignals::new()?;
    sys::ns::unshare(&[Namespace::Mount]).map_err(during("making a mount namespace"))?;
    sys::mount::make_private().map_err(during("making mounts private"))?;
    sys::mount::enter_empty_root(directory).map_err(during("entering an empty root"))?;
    // Of the host's root in a user namespace: there it is the namespace's, which has the rights to become that.
    sys::users::become_user(0, 0, &[]).map_err(during("becoming the namespace's root"))?;
    sys::process::drop_all_rights().map_err(during("giving up all rights"))?;
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
