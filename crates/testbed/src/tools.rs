//! The programs that tests run, and small helpers around processes.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};

/// The `skiff` binary of this build: `$SKIFF_BINARY`, or the one beside the running test's directory.
pub fn skiff_binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("SKIFF_BINARY") {
        return Ok(path.into());
    }
    let test = std::env::current_exe()?;
    let built = test.parent().and_then(Path::parent).map(|directory| directory.join("skiff"));
    built
        .filter(|path| path.exists())
        .context("no skiff binary: run `cargo build -p skiff` first, or set SKIFF_BINARY")
}

/// Where set-up keeps what it fetched and made.
fn cache() -> PathBuf {
    let home = || {
        std::env::var_os("HOME").map_or_else(|| PathBuf::from("/root"), PathBuf::from).join(".cache/skiff")
    };
    std::env::var_os("SKIFF_CACHE").map_or_else(home, PathBuf::from)
}

/// A file that set-up fetched or made, by its path in the cache.
pub fn cached(path: &str) -> PathBuf {
    cache().join(path)
}

/// The pinned real `kubectl`.
pub fn kubectl() -> Result<PathBuf> {
    let path = cache().join("kubectl/bin/kubectl");
    if path.exists() { Ok(path) } else { bail!("no kubectl: run scripts/setup first") }
}

/// An archive that set-up made for tests, such as `debian-bookworm-slim.tar`.
pub fn base_image(name: &str) -> Result<PathBuf> {
    let path = cache().join("base").join(name);
    if path.exists() { Ok(path) } else { bail!("no {}: run scripts/base-image first", path.display()) }
}

/// The root of the repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The archive of an example's images, and of the base image that its pages are built on.
pub fn example_images(example: &str) -> Result<PathBuf> {
    let path = run(Command::new(repository().join("scripts/example-images")).args(["path", example]))?;
    Ok(PathBuf::from(path.trim_end()))
}

/// Ends a process in the host's namespaces together with `nsenter`, which waits for it outside.
pub fn end(child: &mut Child) {
    let inside = format!("/proc/{pid}/task/{pid}/children", pid = child.id());
    let inside = fs::read_to_string(inside).unwrap_or_default();
    let _ = Command::new("kill").args(inside.split_ascii_whitespace()).stderr(Stdio::null()).status();
    let _ = child.wait();
}

/// Runs a command that has to succeed; gives its standard output.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("start {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Starts a process that holds new namespaces until it is killed or this process ends, and returns once it has them.
pub(crate) fn hold(namespaces: &[&str]) -> Result<Child> {
    // The first process says that it runs (so the namespaces are there). In a process namespace of its own it then
    // reaps what is left to it; elsewhere it is one process, so that its end leaves no child behind.
    let script = if namespaces.contains(&"--pid") {
        "echo ready; sleep infinity & while :; do wait -n || true; done"
    } else {
        "echo ready; exec sleep infinity"
    };
    let mut child = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "unshare"])
        .args(namespaces)
        .args(["--", "bash", "-c", script])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("start a namespace holder; it needs root, and setpriv and unshare of util-linux")?;
    let mut line = String::new();
    let out = child.stdout.take().context("the holder has no standard output")?;
    BufReader::new(out).read_line(&mut line)?;
    if line.trim() == "ready" {
        return Ok(child);
    }
    let _ = child.kill();
    let status = child.wait()?;
    bail!("cannot make namespaces {namespaces:?}: {status}")
}

/// The only child of a process.
pub(crate) fn first_child(pid: u32) -> Result<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    let first = children.split_ascii_whitespace().next().context("the namespace holder has no child")?;
    Ok(first.parse()?)
}

/// Directories named `name` below the machine's cgroup hierarchies, parents before children.
pub(crate) fn cgroup_directories(name: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        collect(&hierarchy.path().join(name), &mut found);
    }
    collect(&Path::new("/sys/fs/cgroup").join(name), &mut found);
    found
}

fn collect(directory: &Path, found: &mut Vec<PathBuf>) {
    if !directory.is_dir() {
        return;
    }
    found.push(directory.to_owned());
    for child in fs::read_dir(directory).into_iter().flatten().flatten() {
        if child.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(&child.path(), found);
        }
    }
}
