//! Another OCI runtime than the built-in library: a program with runc's command line, executed by the launcher.
//!
//! Its processes become the shim's children, as the library's do: the launcher is a subreaper until it ends, so that
//! nobody can reap them before the shim has their handles. Source: runc(8) and its subcommands; what the program says
//! of failures comes by its log, since its standard error is the container's.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde::Deserialize;
use shim::{CallError, RUNTIME_DIR};
use sys::process::Pidfd;

use super::launch::{Errand, failure};

/// How long an errand may take.
const ERRAND_MAX: Duration = Duration::from_secs(15);
/// How long a process may take to be made, as nodes wait for their runtimes. Source: upstream's `runtimeRequestTimeout`.
const START_MAX: Duration = Duration::from_secs(120);
/// The most that is read of a log.
const LOG_MAX_BYTES: u64 = 64 << 10;
/// Some runtimes look for helpers; the shim has no environment.
const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A runtime, for one container.
pub(crate) struct Runtime<'a> {
    /// The program.
    pub(crate) program: &'a Path,
    /// The container's bundle.
    pub(crate) bundle: &'a Path,
    /// The container.
    pub(crate) id: &'a str,
}

impl Runtime<'_> {
    /// Makes the container and has its first process executed. `fds`: its standard streams, where it has no `terminal`.
    pub(crate) fn start(&self, fds: Vec<OwnedFd>, terminal: Option<&str>) -> Result<u32, CallError> {
        let files = Files::new(self.bundle);
        let mut create = self.command(&files, "create");
        create.arg("--bundle").arg(self.bundle).arg("--pid-file").arg(&files.pid);
        create.args(terminal.iter().flat_map(|socket| ["--console-socket", socket])).arg(self.id);
        let pid = self.run_process(create, &files, fds).inspect_err(|fault| {
            // What it has made by then is nobody's.
            if matches!(fault, Fault::Hung(_)) {
                let _ = self.run_errand(Errand::Delete);
            }
        })?;
        let mut start = self.command(&files, "start");
        start.arg(self.id);
        if let Err(error) = wait(&mut start, &files, START_MAX) {
            // What was made waits for a start that never comes.
            let _ = self.run_errand(Errand::Delete);
            return Err(error.into());
        }
        Ok(pid)
    }

    /// Executes a further process, as a file describes it.
    pub(crate) fn execute(
        &self,
        process: &Path,
        fds: Vec<OwnedFd>,
        terminal: Option<&str>,
    ) -> Result<u32, CallError> {
        let files = Files::new(self.bundle);
        let mut exec = self.command(&files, "exec");
        exec.arg("--detach").arg("--pid-file").arg(&files.pid).arg("--process").arg(process);
        exec.args(terminal.iter().flat_map(|socket| ["--console-socket", socket])).arg(self.id);
        Ok(self.run_process(exec, &files, fds)?)
    }

    /// Does what else there is to do.
    pub(crate) fn run_errand(&self, errand: Errand) -> Result<(), CallError> {
        let files = Files::new(self.bundle);
        let mut command = match errand {
            Errand::Kill(signal) => {
                let mut kill = self.command(&files, "kill");
                kill.arg(self.id).arg(signal.to_string());
                kill
            }
            Errand::Delete => self.deletion(&files),
        };
        Ok(wait(&mut command, &files, ERRAND_MAX)?)
    }

    fn deletion(&self, files: &Files) -> Command {
        let mut delete = self.command(files, "delete");
        delete.arg("--force").arg(self.id);
        delete
    }

    fn command(&self, files: &Files, verb: &str) -> Command {
        let mut command = Command::new(self.program);
        command
            .arg("--root")
            .arg(self.bundle.join(RUNTIME_DIR))
            .arg("--log")
            .arg(&files.log)
            .args(["--log-format", "json", verb])
            .env_clear()
            .env("PATH", SEARCH_PATH)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }

    /// Runs a command that leaves a process behind; its number.
    fn run_process(&self, mut command: Command, files: &Files, fds: Vec<OwnedFd>) -> Result<u32, Fault> {
        let failed = |error: io::Error| Fault::Failed(failure(&error));
        sys::process::become_subreaper().map_err(failed)?;
        let mut fds = fds.into_iter();
        if let (Some(stdin), Some(stdout), Some(stderr)) = (fds.next(), fds.next(), fds.next()) {
            command.stdin(stdin).stdout(stdout).stderr(stderr);
        }
        wait(&mut command, files, START_MAX)?;
        // The pipes' ends that it holds would keep them open.
        drop(command);
        let pid = std::fs::read_to_string(&files.pid).map_err(failed)?;
        pid.trim().parse().map_err(|_| {
            let message = format!("{} wrote `{pid}` for a process id", self.program.display());
            Fault::Failed(CallError::new(message))
        })
    }
}

/// Has containers deleted, all at once and in the time that one may take.
pub(crate) fn delete_all<'a>(all: impl Iterator<Item = Runtime<'a>>) {
    let begun: Vec<(Files, Child)> = all
        .filter_map(|runtime| {
            let files = Files::new(runtime.bundle);
            let child = sys::process::bind_to_caller(&mut runtime.deletion(&files)).spawn().ok()?;
            Some((files, child))
        })
        .collect();
    let until = Instant::now() + ERRAND_MAX;
    for (_files, child) in begun {
        // What it leaves the daemon removes by cgroup and directory.
        let _ = finish(child, until.saturating_duration_since(Instant::now()));
    }
}

/// Why a command was not done.
#[derive(Debug)]
enum Fault {
    /// It came to no end, and was killed.
    Hung(CallError),
    Failed(CallError),
}

impl From<Fault> for CallError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Hung(error) | Fault::Failed(error) => error,
        }
    }
}

/// What a command writes beside its bundle, gone when it is dropped.
struct Files {
    log: PathBuf,
    pid: PathBuf,
}

impl Files {
    fn new(bundle: &Path) -> Self {
        // One launcher runs one command at a time.
        let of = |kind: &str| bundle.join(format!("runtime-{}.{kind}", std::process::id()));
        Self { log: of("log"), pid: of("pid") }
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.log);
        let _ = std::fs::remove_file(&self.pid);
    }
}

/// Runs a command to its end, for at most as long as is said.
fn wait(command: &mut Command, files: &Files, at_most: Duration) -> Result<(), Fault> {
    let name = command.get_program().to_owned();
    let ended = run(command, at_most).map_err(|error| {
        let told = CallError::new(format!("{}: {error}", name.to_string_lossy()));
        if error.kind() == io::ErrorKind::TimedOut { Fault::Hung(told) } else { Fault::Failed(told) }
    })?;
    if ended.success() {
        return Ok(());
    }
    let log = File::open(&files.log).and_then(|file| sys::files::read_bounded(file, LOG_MAX_BYTES));
    let told = last_error(&String::from_utf8_lossy(&log.unwrap_or_default()));
    let message = told.unwrap_or_else(|| format!("{} ended with {ended}", name.to_string_lossy()));
    Err(Fault::Failed(CallError { code: code_of(&message), message }))
}

/// It ends with whoever runs it, and where it hangs with all that it has started.
fn run(command: &mut Command, at_most: Duration) -> io::Result<ExitStatus> {
    finish(sys::process::bind_to_caller(command).spawn()?, at_most)
}

fn finish(mut child: Child, at_most: Duration) -> io::Result<ExitStatus> {
    if !Pidfd::open(child.id()).and_then(|pidfd| pidfd.wait(at_most))? {
        sys::process::kill_group(child.id())?;
        child.wait()?;
        return Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {at_most:?}")));
    }
    child.wait()
}

/// A line of a log.
#[derive(Deserialize)]
struct Line {
    level: String,
    msg: String,
}

/// What a log says last of failures.
fn last_error(log: &str) -> Option<String> {
    let lines = log.lines().rev().filter_map(|line| serde_json::from_str::<Line>(line).ok());
    lines.into_iter().find(|line| matches!(line.level.as_str(), "error" | "fatal")).map(|line| line.msg)
}

/// The exit code that stands for a program that could not be executed, from the words of the runtime's language.
fn code_of(message: &str) -> i32 {
    let Some((_, why)) = message.split_once("exec: \"") else { return 128 };
    match why {
        _ if why.contains("executable file not found") || why.contains("no such file or directory") => 127,
        _ if why.contains("permission denied") || why.contains("exec format error") => 126,
        _ => 128,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_read_off_the_log() {
        let log = "{\"level\":\"error\",\"msg\":\"first\",\"time\":\"x\"}\n\
                   {\"level\":\"error\",\"msg\":\"exec: \\\"a\\\": executable file not found in $PATH\"}\n\
                   {\"level\":\"warning\",\"msg\":\"later\"}\nhalf";
        let told = last_error(log).unwrap();
        assert_eq!(told, "exec: \"a\": executable file not found in $PATH");
        assert_eq!(code_of(&told), 127);
        assert_eq!(code_of("exec: \"/x\": permission denied"), 126);
        assert_eq!(code_of("error mounting \"/x\": no such file or directory"), 128);
        assert_eq!(last_error("nonsense"), None);
    }

    #[test]
    fn nothing_runs_on_without_whoever_waits_for_it() {
        let begin = || sys::process::bind_to_caller(Command::new("sleep").arg("1000")).spawn().unwrap();
        let mut child = std::thread::spawn(begin).join().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&child.wait().unwrap()), Some(9));
    }

    #[test]
    fn many_are_deleted_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("slow");
        // Each waits for the other's file.
        let script = "#!/bin/sh\nfor id; do :; done; cd $(dirname $0); touch $id\n\
                      until [ -e a ] && [ -e b ]; do sleep 0.01; done; touch done-$id\n";
        // Not written here: a process that another test makes meanwhile would hold it open, and nobody could execute it.
        let source = dir.path().join("source");
        std::fs::write(&source, script).unwrap();
        assert!(
            Command::new("install").args(["-m", "755"]).args([&source, &program]).status().unwrap().success()
        );
        delete_all(["a", "b"].into_iter().map(|id| Runtime { program: &program, bundle: dir.path(), id }));
        assert!(dir.path().join("done-a").exists() && dir.path().join("done-b").exists());
    }

    #[test]
    fn one_that_hangs_is_given_up_with_all_that_it_has_started() {
        let dir = tempfile::tempdir().unwrap();
        let mut slow = Command::new("sh");
        slow.args(["-c", "sleep 1000 & echo $!; wait"]).stdout(Stdio::piped());
        let mut child = sys::process::bind_to_caller(&mut slow).spawn().unwrap();
        let mut line = String::new();
        let said = child.stdout.take().unwrap();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(said), &mut line).unwrap();
        let pid = line.trim().parse().unwrap();
        let started = Pidfd::open(pid).unwrap();
        let error = finish(child, Duration::from_millis(50)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(started.wait(Duration::from_secs(60)).unwrap());
        let runtime = Runtime { program: Path::new("/no/such/runtime"), bundle: dir.path(), id: "c" };
        let error = runtime.run_errand(Errand::Delete).unwrap_err();
        assert!(error.message.starts_with("/no/such/runtime: No such file"), "{}", error.message);
    }
}
