//! A user namespace of a sandbox's own, and the namespaces that belong to it.
//!
//! The shim stays outside: it has to reach cgroups and files of the host. A helper goes in and makes the others there, so
//! that root inside may change them; the shim then joins those, which it may from above.

use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use shim::IdRange;
use sys::ns::Namespace;
use sys::users::Range;

use super::sandbox::during;

/// The most that is told of a helper's failure.
const WORDS_MAX_BYTES: u64 = 4096;

/// The kinds that can belong to it.
const KINDS: [Namespace; 3] = [Namespace::Network, Namespace::Ipc, Namespace::Uts];

/// Makes a user namespace with a range of ids and namespaces of `kinds` that belong to it, and pins all of them.
pub(crate) fn make(pins: &Path, range: IdRange, kinds: &[Namespace]) -> io::Result<()> {
    let names: Vec<&str> = kinds.iter().map(|kind| kind.file()).collect();
    // Without any there is still an argument.
    let mut helper = start(&["users", &format!("-{}", names.join(","))])?;
    let made = pin(&mut helper, pins, range, kinds);
    // It ends with its input.
    drop(helper.stdin.take());
    if made.is_err() {
        let _ = helper.kill();
    }
    helper.wait()?;
    made
}

fn pin(helper: &mut Child, pins: &Path, range: IdRange, kinds: &[Namespace]) -> io::Result<()> {
    hear(helper)?;
    sys::users::give_ids(helper.id(), Range { first: range.first, count: range.count })?;
    pin_one(helper, Namespace::User.file(), &pins.join(Namespace::User.file()))?;
    helper.stdin.as_mut().ok_or(io::ErrorKind::BrokenPipe)?.write_all(b".")?;
    hear(helper)?;
    kinds.iter().try_for_each(|kind| pin_one(helper, kind.file(), &pins.join(kind.file())))
}

/// Keeps a namespace of a child's, which has not been reaped.
fn pin_one(child: &Child, file: &str, target: &Path) -> io::Result<()> {
    std::fs::File::create(target)?;
    sys::mount::bind(Path::new(&format!("/proc/{}/ns/{file}", child.id())), target)
}

/// The helper's whole life. `names`: the kinds that it makes.
pub(crate) fn help(names: &str) -> io::Result<()> {
    sys::process::die_with_parent()?;
    sys::ns::unshare(&[Namespace::User])?;
    say()?;
    // Its ids are given meanwhile.
    if io::stdin().read(&mut [0])? == 0 {
        return Ok(());
    }
    let asked = |kind: &Namespace| names.trim_start_matches('-').split(',').any(|name| name == kind.file());
    let kinds: Vec<Namespace> = KINDS.into_iter().filter(asked).collect();
    sys::ns::unshare(&kinds)?;
    say()?;
    // What is made here is pinned meanwhile.
    io::stdin().read(&mut [0]).map(drop)
}

/// Starts PID 1 of a PID namespace that belongs to the user namespace in `pins`, and pins that. The child that is
/// answered is its parent, and it ends with that.
pub(crate) fn start_init(pins: &Path, empty: &Path) -> io::Result<Child> {
    let pins_given = pins.to_str().ok_or(io::ErrorKind::InvalidInput)?;
    let empty = empty.to_str().ok_or(io::ErrorKind::InvalidInput)?;
    let mut parent = start(&["users-init", pins_given, empty])?;
    hear(&mut parent)?;
    pin_one(&parent, "pid_for_children", &pins.join(Namespace::Pid.file()))?;
    Ok(parent)
}

/// The whole life of that parent: its child says over the same output that it is ready.
pub(crate) fn keep_init(pins: &Path, empty: &Path) -> io::Result<()> {
    let users = std::fs::File::open(pins.join(Namespace::User.file()))?;
    sys::ns::join(&users, Namespace::User).map_err(during("joining the user namespace"))?;
    sys::process::die_with_parent()?;
    sys::ns::unshare(&[Namespace::Pid]).map_err(during("making a PID namespace"))?;
    // It is the host's root until it has left the host's files: with the namespace's rights and no others.
    sys::process::pass_rights_on()?;
    let child = Command::new("/proc/self/exe").arg("init").arg(empty).env_clear().spawn();
    let mut child = child.map_err(during("starting its init"))?;
    child.wait().map(drop)
}

fn start(arguments: &[&str]) -> io::Result<Child> {
    Command::new("/proc/self/exe")
        .args(arguments)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
}

fn say() -> io::Result<()> {
    rustix::io::write(rustix::stdio::stdout(), b".")?;
    Ok(())
}

fn hear(child: &mut Child) -> io::Result<()> {
    let heard = child.stdout.as_mut().ok_or(io::ErrorKind::BrokenPipe)?.read_exact(&mut [0]);
    heard.map_err(|error| {
        let mut why = String::new();
        let said = child.stderr.take().map(|stderr| stderr.take(WORDS_MAX_BYTES).read_to_string(&mut why));
        match said {
            Some(Ok(_)) if !why.is_empty() => io::Error::new(error.kind(), why.trim().to_owned()),
            _ => io::Error::new(error.kind(), "a helper for the user namespace ended early"),
        }
    })
}
