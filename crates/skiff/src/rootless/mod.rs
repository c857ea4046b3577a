//! Skiff for users without root.
//!
//! Commands that need root run once more as root of a user namespace (user_namespaces(7)), in which the rest of Skiff
//! finds itself as it does on a machine of its own. A small process outside of it, the keeper, holds the namespaces while
//! daemons come and go, joins their network with the host's and carries connections in. Semantics follow RootlessKit
//! (github.com/rootless-containers/rootlesskit) and Podman.
//!
//! | module | what it does |
//! |---|---|
//! | [`ids`] | which user ids the namespace has |
//! | [`place`] | where the keeper's files are, and who lives in its namespaces |
//! | [`keeper`] | the keeper itself |
//! | [`outward`] | the programs that lead its network to the outside |
//! | [`relay`] | connections from the host's loopback into the namespace |
//! | [`ports`] | the daemon's part of that: which ports are wanted |
//! | [`losses`] | what users without root have to do without, in words |

mod ids;
pub(crate) mod keeper;
mod losses;
mod outward;
mod place;
pub(crate) mod ports;
mod relay;

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use cli::instance::{Instance, InstanceArgs};
use sys::process::Pidfd;

use self::place::{Keeper, Place};

/// Names the keeper's directory to whoever runs in its namespaces.
const PLACE: &str = "SKIFF_ROOTLESS";
/// A keeper that was asked to end has so long.
const END_MAX: Duration = Duration::from_secs(10);

/// What is to be done as root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Errand {
    /// To start an instance; `foreground`: and to stay with it.
    Start { foreground: bool },
    /// To end one.
    Down,
}

/// The keeper's directory, where this process runs in its namespaces.
pub(crate) fn inside() -> Option<PathBuf> {
    std::env::var_os(PLACE).filter(|_| sys::entrance::in_user_namespace()).map(PathBuf::from)
}

/// Takes this process's place among the instance's, where it runs in its namespaces.
pub(crate) fn settle() -> Result<()> {
    if inside().is_some() { keeper::join_group() } else { Ok(()) }
}

/// Whether a command that needs root has to be run elsewhere.
pub(crate) fn is_needed() -> bool {
    !rustix::process::geteuid().is_root()
}

/// Runs this command once more, as root of the instance's namespaces; answers its exit code.
pub(crate) fn run(errand: Errand, arguments: &InstanceArgs) -> Result<u8> {
    let instance = match errand {
        Errand::Start { .. } => arguments.resolve()?,
        Errand::Down => arguments.resolve_started()?,
    };
    let place = Place::of(&instance);
    if errand == Errand::Down && crate::home::traces(&instance)?.is_none() {
        cli::output::write_out(&format!("no instance {:?} was ever started here\n", instance.name))?;
        // Of one whose directories were removed by hand, the keeper may be left.
        return match place.keeper()? {
            Some(keeper) => end(&place, &keeper),
            None => remove_unused(&place),
        }
        .map(|()| 0);
    }
    // Held while the keeper is looked for and started: two commands start one.
    let lock = place.lock()?;
    let found = place.keeper()?;
    // Of a keeper that was killed, whose daemon and containers are not this command's to end.
    let survives = found.is_none() && place.survivor().is_some();
    let is_new = found.is_none() && !survives;
    let keeper = match found {
        Some(keeper) => keeper,
        None => start(&place)?,
    };
    drop(lock);
    if let Errand::Start { foreground } = errand {
        for loss in &keeper.losses {
            cli::output::progress(&format!("without root: {loss}"));
        }
        let code = run_inside(&place, &keeper, &instance, foreground)?;
        // What has not come up holds nothing; and what stays in the foreground leaves its containers.
        if code != 0 && is_new && !foreground {
            end(&place, &keeper)?;
        }
        return Ok(code);
    }
    let code = run_inside(&place, &keeper, &instance, false)?;
    if code == 0 {
        end(&place, &keeper)?;
    }
    Ok(code)
}

/// This command line again, with the instance's directories said: root's defaults are others.
fn run_inside(place: &Place, keeper: &Keeper, instance: &Instance, foreground: bool) -> Result<u8> {
    let mut command = Command::new(std::env::current_exe().context("find this program")?);
    command
        .args(std::env::args_os().skip(1))
        .env(PLACE, place.directory())
        .env("SKIFF_DATA_DIR", &instance.data_dir)
        .env("SKIFF_RUN_DIR", &instance.run_dir);
    let network = place.network();
    let there =
        sys::entrance::Place { network: Some(&network), own_ipc: false, ends_with_starter: foreground };
    let mut child = sys::entrance::spawn_in(command, &keeper.process, there)
        .context("enter the instance's namespaces")?;
    let status = child.wait().context("wait for the command in the namespaces")?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

/// Starts a keeper: in the namespaces that a killed one left with somebody in them, else in new ones.
fn start(place: &Place) -> Result<Keeper> {
    let survivor = place.survivor();
    if let (None, Some(said)) = (&survivor, place.said()) {
        // Containers whose shims are gone: nobody will ever tell of them, nor find them once new namespaces are noted.
        end_all(|| place.left(&said))?;
    }
    let program = std::env::current_exe().context("find this program")?;
    let mut command = Command::new(program);
    command.arg(keeper::COMMAND).arg(place.directory()).args(survivor.is_some().then_some("--again"));
    keeper::apart(&mut command, place)?;
    let child = match &survivor {
        Some(survivor) => {
            let there = sys::entrance::Place { own_ipc: true, ..Default::default() };
            sys::entrance::spawn_in(command, survivor, there)
                .context("go on in the namespaces of a keeper that was killed")?
        }
        None => {
            let ids = ids::Ids::of_this_user();
            command.arg("--ids").arg(ids.state());
            if let Some(name) = ids::own_name() {
                command.arg("--user").arg(name);
            }
            sys::entrance::spawn_in_new(command, |pid| ids.give(pid)).map_err(|error| refused(&error))?
        }
    };
    keeper::await_ready(child, place)?;
    place.keeper()?.context("the keeper of the namespaces ended at once")
}

/// Why there is no user namespace, and what helps.
fn refused(error: &std::io::Error) -> anyhow::Error {
    if error.raw_os_error().is_none() {
        // It is there; the programs that give it ids refuse these.
        return anyhow::anyhow!("{error}: correct this user's lines in /etc/subuid and /etc/subgid");
    }
    anyhow::anyhow!(
        "this user may not have a user namespace ({error}): {}; or run Skiff as root",
        losses::remedy_for_namespaces(|file| std::fs::read_to_string(file).ok())
    )
}

/// Ends who lives in the keeper's namespaces, then the keeper, and removes its files.
fn end(place: &Place, keeper: &Keeper) -> Result<()> {
    let _lock = place.lock()?;
    // Another command may have ended it before this one had the lock, and a third have started anew.
    let Some(said) = place.said() else { return place.remove() };
    if (said.pid, &said.namespace) != (keeper.pid, &keeper.namespace) {
        return Ok(());
    }
    if place.keeper()?.is_none() {
        end_all(|| place.left(&said))?;
        return place.remove();
    }
    // While the keeper lives, the namespace is what its number names. What leads outside is the keeper's to end.
    end_all(|| keeper.inhabitants())?;
    let mut started_meanwhile = keeper.inhabitants();
    let _ = keeper.process.signal(15);
    if !keeper.process.wait(END_MAX).context("wait for the keeper")? {
        let _ = keeper.process.signal(9);
    }
    end_all(|| std::mem::take(&mut started_meanwhile))?;
    place.remove()
}

/// Removes the directory of a keeper that is gone, unless one was started meanwhile.
fn remove_unused(place: &Place) -> Result<()> {
    if !place.directory().exists() {
        return Ok(());
    }
    let _lock = place.lock()?;
    if place.keeper()?.is_none() { place.remove() } else { Ok(()) }
}

/// Kills everybody who is found, until nobody is: others may be made meanwhile.
fn end_all(mut find: impl FnMut() -> Vec<Pidfd>) -> Result<()> {
    loop {
        let found = find();
        if found.is_empty() {
            return Ok(());
        }
        for process in &found {
            // It may end on its own meanwhile.
            let _ = process.signal(9);
        }
        for process in &found {
            if !process.wait(END_MAX).context("wait for a process")? {
                bail!("a process of the instance does not end, also not when it is killed; try again");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_ids_are_no_refused_namespace() {
        let ids = refused(&std::io::Error::other("newuidmap gives no ids: no")).to_string();
        assert!(ids.starts_with("newuidmap") && ids.contains("/etc/subuid"), "{ids}");
        let namespace = refused(&std::io::Error::from_raw_os_error(1)).to_string();
        assert!(namespace.contains("may not have a user namespace"), "{namespace}");
    }
}
