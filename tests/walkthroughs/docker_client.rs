//! The real `docker` client on Skiff's socket: what people do with images and containers.
//!
//! Proved on Docker's own daemon: with `SKIFF_TEST_DOCKERD=/path/to/dockerd` the same steps run against that (20.10, of
//! Debian 12; `containerd` and `runc` on the path).

use std::fs;
use std::io::{BufRead, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use testbed::{Host, Testbed};

/// A host with a daemon, and a client of it.
struct Docker {
    host: Host,
    bed: Testbed,
    /// Docker's own daemon, where the test is proved on it.
    reference: Option<Child>,
}

impl Docker {
    fn start() -> Self {
        let bed = Testbed::new().unwrap();
        let host = bed.host().unwrap();
        let Some(dockerd) = std::env::var_os("SKIFF_TEST_DOCKERD") else {
            host.must_skiff(&["up"]);
            return Self { host, bed, reference: None };
        };
        fs::create_dir_all(host.directory().join("docker")).unwrap();
        host.must_sh(&format!("mkdir -p /run/{}", host.name));
        let mut daemon = host.command(&dockerd.to_string_lossy());
        daemon.args(["--iptables=false", "--bridge=none", "--storage-driver=overlay2", "--data-root"]);
        daemon.arg(host.directory().join("docker")).arg("--host").arg(format!("unix://{}", socket(&host)));
        daemon.args(["--exec-root", "/run/docker-exec", "--pidfile", "/run/docker.pid"]);
        let log = fs::File::create(host.directory().join("dockerd.log")).unwrap();
        let child = daemon.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let docker = Self { host, bed, reference: Some(child) };
        docker.host.must_sh(&format!("until [ -S {} ]; do sleep 0.1; done", socket(&docker.host)));
        docker
    }

    /// The client's command line, not started yet. The context of the host's user is that of a fresh machine.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.host.command("docker");
        command.args(args).env("DOCKER_HOST", format!("unix://{}", socket(&self.host)));
        // Clients since 23 would rather have BuildKit; without its plugin they fall back, and say so at length.
        command.env("DOCKER_BUILDKIT", "0");
        command
    }

    fn run(&self, args: &[&str]) -> testbed::Ran {
        self.command(args).output().unwrap().into()
    }

    /// Runs a command that has to succeed: its standard output.
    #[track_caller]
    fn must(&self, args: &[&str]) -> String {
        let ran = self.run(args);
        assert_eq!(ran.code, 0, "docker {args:?}: {}{}", ran.out, ran.err);
        ran.out
    }

    /// Runs a command that has to fail: its exit code and what it said.
    #[track_caller]
    fn fails(&self, args: &[&str]) -> (i32, String) {
        let ran = self.run(args);
        assert_ne!(ran.code, 0, "docker {args:?}: {}", ran.out);
        (ran.code, ran.out + &ran.err)
    }

    /// Runs a command with this on its standard input.
    fn feed(&self, args: &[&str], input: &str) -> String {
        let mut child = self.command(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let ran = testbed::Ran::from(child.wait_with_output().unwrap());
        assert_eq!(ran.code, 0, "docker {args:?}: {}", ran.err);
        ran.out
    }

    /// Runs a command line of the client on a terminal.
    fn on_terminal(&self, line: &str) -> String {
        let mut command = self.host.command("script");
        command.args(["--quiet", "--return", "--command", line, "/dev/null"]);
        command.env("DOCKER_HOST", format!("unix://{}", socket(&self.host)));
        let ran = testbed::Ran::from(command.output().unwrap());
        assert_eq!(ran.code, 0, "{line}: {}{}", ran.out, ran.err);
        ran.out
    }

    fn inspect(&self, what: &str) -> Value {
        serde_json::from_str::<Value>(&self.must(&["inspect", what])).unwrap()[0].take()
    }

    /// A directory of the host for files of this test.
    fn directory(&self, name: &str) -> PathBuf {
        let path = self.host.directory().join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// Loads the base image and ends as a clean host.
    fn load_base(&self) {
        let archive = testbed::base_image("busybox-bookworm.tar").unwrap();
        let said = self.must(&["load", "-i", &archive.to_string_lossy()]);
        assert!(said.contains("Loaded image: busybox:latest"), "{said}");
    }

    fn end(mut self) {
        assert_eq!(self.bed.leaked_packets().unwrap(), 0);
        if let Some(mut daemon) = self.reference.take() {
            self.host.must_sh("kill $(cat /run/docker.pid)");
            daemon.wait().unwrap();
            return;
        }
        self.host.must_skiff(&["down", "--purge"]);
        assert_eq!(self.host.processes().unwrap(), Vec::<String>::new());
        assert_eq!(self.host.cgroups(), Vec::<PathBuf>::new());
    }
}

fn socket(host: &Host) -> String {
    format!("/run/{}/docker.sock", host.name)
}

const DOCKERFILE: &str = r#"ARG BASE=nothing
FROM ${BASE} AS tools
ARG GREETING=hello
ENV SAID=$GREETING
RUN mkdir -p /out/bin && echo "$SAID" > /out/bin/greeting
COPY --chown=1000:1000 files/ /out/files/
ADD data.tar.gz /out/unpacked/
ADD data.tar.xz /out/unpacked/xz/
ADD data.tar.bz2 /out/unpacked/bz2/

FROM ${BASE}
LABEL org.example.app="docker client"
ENV MODE=prod HOME_OF=/srv
WORKDIR ${HOME_OF}/app
COPY --from=tools /out/ ./
COPY ["with space.txt", "./"]
SHELL ["/bin/sh", "-ec"]
RUN id -u > /tmp/uid; chmod 644 /tmp/uid
USER 1000:1000
EXPOSE 8080
VOLUME /data
STOPSIGNAL SIGINT
HEALTHCHECK --interval=5s --timeout=2s --retries=4 CMD ["true"]
ONBUILD USER root
ONBUILD RUN echo triggered > /onbuild
ENTRYPOINT ["cat"]
CMD ["bin/greeting"]
"#;

/// Lays out a build context.
fn context(docker: &Docker) -> String {
    let dir = docker.directory("context");
    fs::write(dir.join("Dockerfile"), DOCKERFILE).unwrap();
    fs::write(dir.join(".dockerignore"), "**/*.log\n!**/keep.log\n").unwrap();
    fs::create_dir_all(dir.join("files")).unwrap();
    for (name, text) in [("a.txt", "a\n"), ("left.log", "x"), ("keep.log", "kept\n")] {
        fs::write(dir.join("files").join(name), text).unwrap();
    }
    fs::write(dir.join("with space.txt"), "spaced\n").unwrap();
    docker.host.must_sh(&format!(
        "cd {} && mkdir data && echo inside > data/file && tar -czf data.tar.gz -C data . && tar -cJf data.tar.xz -C data . && \
         tar -cjf data.tar.bz2 -C data . && rm -r data",
        dir.display()
    ));
    dir.to_string_lossy().into_owned()
}

#[test]
fn images_are_built_listed_and_removed() {
    let docker = Docker::start();
    docker.load_base();
    let version = docker.must(&["version", "--format", "{{.Server.Version}} {{.Server.Os}}"]);
    assert!(version.trim().ends_with(" linux"), "{version}");
    let dir = context(&docker);
    let build = ["build", "-t", "team/app:1", "--build-arg", "BASE=busybox", "--build-arg", "GREETING=howdy"];
    let first = docker.must(&[&build[..], &[&dir]].concat());
    assert!(first.contains("Successfully tagged team/app:1"), "{first}");
    assert_eq!(docker.must(&["run", "--rm", "team/app:1"]), "howdy\n");
    let script = "id -u; pwd; cat /tmp/uid files/* unpacked/file unpacked/xz/file unpacked/bz2/file 'with space.txt'; ls -n files | tail -n 1";
    let seen = docker.must(&["run", "--rm", "--entrypoint", "sh", "team/app:1", "-c", script]);
    let lines: Vec<&str> = seen.lines().collect();
    assert_eq!(
        lines[..9],
        ["1000", "/srv/app", "0", "a", "kept", "inside", "inside", "inside", "spaced"],
        "{seen}"
    );
    assert!(lines[9].contains(" 1000 ") && lines[9].ends_with("keep.log"), "{seen}");

    let config = docker.inspect("team/app:1")["Config"].take();
    assert_eq!(config["User"], "1000:1000");
    assert_eq!(config["WorkingDir"], "/srv/app");
    assert_eq!(config["StopSignal"], "SIGINT");
    assert_eq!(config["Labels"]["org.example.app"], "docker client");
    assert_eq!(config["Healthcheck"]["Retries"], 4);
    assert_eq!(config["OnBuild"][0], "USER root");
    assert!(config["ExposedPorts"]["8080/tcp"].is_object() && config["Volumes"]["/data"].is_object());

    // Unchanged, nothing is done again; a changed argument concerns what comes after it.
    let again = docker.must(&[&build[..], &[&dir]].concat());
    assert!(again.contains("Using cache") && !again.contains("Running in"), "{again}");
    let other = docker.must(&[&build[..5], &["--build-arg", "GREETING=hi", &dir]].concat());
    assert!(other.contains("Running in"), "{other}");
    docker.must(&["build", "-q", "-t", "tools", "--target", "tools", "--build-arg", "BASE=busybox", &dir]);
    assert_eq!(docker.must(&["run", "--rm", "tools", "cat", "/out/bin/greeting"]), "hello\n");

    // From standard input, with triggers of the base.
    let child =
        docker.feed(&["build", "-t", "child", "-"], "FROM team/app:1\nENTRYPOINT []\nCMD cat /onbuild\n");
    assert!(child.contains("build trigger"), "{child}");
    assert_eq!(docker.must(&["run", "--rm", "child"]), "triggered\n");
    docker.feed(&["build", "-t", "empty", "-"], "FROM scratch\nLABEL a=b\n");

    images_and_history(&docker);
    docker.end();
}

fn images_and_history(docker: &Docker) {
    fs::write(docker.directory("bad").join("Dockerfile"), "FROM busybox\nRUN echo no >&2; exit 3\n").unwrap();
    let bad = docker.directory("bad").to_string_lossy().into_owned();
    let (_, said) = docker.fails(&["build", &bad]);
    assert!(said.contains("returned a non-zero code: 3") && said.contains("no\n"), "{said}");
    fs::write(docker.directory("bad").join("Dockerfile"), "FROM busybox\nFETCH x\n").unwrap();
    let (_, said) = docker.fails(&["build", &bad]);
    assert!(said.to_lowercase().contains("unknown instruction: fetch"), "{said}");

    let names =
        docker.must(&["images", "--format", "{{.Repository}}:{{.Tag}}", "--filter", "dangling=false"]);
    for name in ["busybox:latest", "team/app:1", "tools:latest", "child:latest"] {
        assert!(names.lines().any(|line| line == name), "{name} in {names}");
    }
    assert_eq!(docker.must(&["images", "-q", "team/app"]).lines().count(), 1);
    let history = docker.must(&["history", "--no-trunc", "--format", "{{.Size}} {{.CreatedBy}}", "tools"]);
    let size = |needle: &str| {
        let line = history.lines().find(|line| line.contains(needle)).unwrap_or_else(|| panic!("{history}"));
        line.split(' ').next().unwrap().to_owned()
    };
    assert_eq!((size("mkdir -p /out/bin").as_str(), size("ENV SAID=hello").as_str()), ("6B", "0B"));

    docker.must(&["tag", "child", "child:2"]);
    assert!(docker.must(&["rmi", "child:2"]).contains("Untagged: child:2"));
    docker.must(&["create", "--name", "keeper", "child"]);
    let (_, said) = docker.fails(&["rmi", "child"]);
    assert!(said.contains("conflict") && said.contains("container"), "{said}");
    docker.must(&["rm", "keeper"]);
    assert!(docker.must(&["rmi", "child"]).contains("Deleted: sha256:"));
    let (_, said) = docker.fails(&["rmi", "child"]);
    assert!(said.contains("No such image"), "{said}");
}

#[test]
fn containers_run_in_front_behind_and_on_terminals() {
    let docker = Docker::start();
    docker.load_base();
    assert_eq!(docker.must(&["run", "--rm", "busybox", "echo", "hello"]), "hello\n");
    let ran =
        docker.run(&["run", "--rm", "-e", "A=1", "busybox", "sh", "-c", "echo $A; echo err >&2; exit 7"]);
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (7, "1\n", "err\n"));
    assert_eq!(docker.feed(&["run", "-i", "--rm", "busybox", "wc", "-c"], &"x".repeat(100_000)), "100000\n");
    let (code, said) = docker.fails(&["run", "--rm", "busybox", "no-such-program"]);
    assert!(code == 127 && said.contains("executable file not found in $PATH"), "{code} {said}");
    let (code, _) = docker.fails(&["run", "--rm", "busybox", "/etc"]);
    assert_eq!(code, 126);
    let terminal = docker.on_terminal("docker run -it --rm busybox sh -c 'tty; echo $TERM'");
    assert!(terminal.contains("/dev/pts/0") && terminal.contains("xterm"), "{terminal}");

    let ticking = "trap 'echo bye; exit 3' TERM; echo first; echo second >&2; while :; do sleep 0.1; done";
    let id = docker.must(&["run", "-d", "--name", "web", "-e", "MODE=test", "busybox", "sh", "-c", ticking]);
    let (_, said) = docker.fails(&["run", "--name", "web", "busybox"]);
    assert!(said.contains("already in use"), "{said}");
    let listed = docker.must(&["ps", "--no-trunc", "--format", "{{.ID}} {{.Names}} {{.Image}} {{.Status}}"]);
    assert!(listed.starts_with(&format!("{} web busybox Up", id.trim())), "{listed}");
    executes(&docker);
    logs_and_ends(&docker);
    attaches(&docker);
    assert_eq!(docker.must(&["ps", "-aq"]), "");
    docker.end();
}

fn executes(docker: &Docker) {
    assert_eq!(
        docker.must(&["exec", "-e", "B=2", "-w", "/tmp", "web", "sh", "-c", "echo $MODE$B; pwd"]),
        "test2\n/tmp\n"
    );
    assert_eq!(docker.feed(&["exec", "-i", "web", "cat"], "through\n"), "through\n");
    assert_eq!(docker.run(&["exec", "web", "sh", "-c", "exit 5"]).code, 5);
    assert_eq!(docker.must(&["exec", "-u", "nobody", "web", "id", "-un"]), "nobody\n");
    assert!(docker.on_terminal("docker exec -it web tty").contains("/dev/pts/"));
    docker.must(&["exec", "-d", "web", "touch", "/tmp/behind"]);
    docker.must(&["exec", "web", "sh", "-c", "until [ -e /tmp/behind ]; do sleep 0.05; done"]);
    let (_, said) = docker.fails(&["exec", "nobody-there", "true"]);
    assert!(said.contains("No such container"), "{said}");
    let state = docker.inspect("web");
    assert_eq!(state["State"]["Running"], true);
    assert_eq!(state["Config"]["Image"], "busybox");
    assert!(state["State"]["Pid"].as_u64().unwrap() > 0);
}

fn logs_and_ends(docker: &Docker) {
    let lines = |ran: testbed::Ran| (ran.out, ran.err);
    // The container has written both before it could be executed in; their streams are told apart.
    assert_eq!(lines(docker.run(&["logs", "web"])), ("first\n".to_owned(), "second\n".to_owned()));
    let tail = docker.run(&["logs", "--tail", "1", "-t", "web"]);
    let (time, text) = tail.err.split_once(' ').unwrap();
    assert!(time.ends_with('Z') && text == "second\n" && tail.out.is_empty(), "{tail:?}");
    assert_eq!(lines(docker.run(&["logs", "--until", "1", "web"])), (String::new(), String::new()));
    assert_eq!(docker.run(&["logs", "--since", "1h", "web"]).out, "first\n");

    let mut follower = docker.command(&["logs", "-f", "web"]);
    let mut follower = follower.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut followed = BufReader::new(follower.stdout.take().unwrap()).lines();
    assert_eq!(followed.next().unwrap().unwrap(), "first");
    let waiter = docker.command(&["wait", "web"]).stdout(Stdio::piped()).spawn().unwrap();
    docker.must(&["stop", "-t", "60", "web"]);
    assert_eq!(testbed::Ran::from(waiter.wait_with_output().unwrap()).out, "3\n");
    assert_eq!(followed.map_while(Result::ok).collect::<Vec<_>>(), ["bye"]);
    assert!(follower.wait().unwrap().success());
    assert_eq!(docker.must(&["wait", "web"]), "3\n");
    assert!(docker.must(&["ps", "-a", "--format", "{{.Names}} {{.Status}}"]).starts_with("web Exited (3)"));
    assert_eq!(docker.must(&["ps", "-q"]), "");
    // Once more, in front.
    let mut again = docker.command(&["start", "-a", "web"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut output = BufReader::new(again.stdout.take().unwrap()).lines();
    assert_eq!(output.next().unwrap().unwrap(), "first");
    docker.must(&["kill", "-s", "KILL", "web"]);
    assert_eq!(again.wait().unwrap().code(), Some(137));
    docker.must(&["rm", "web"]);
    let (_, said) = docker.fails(&["logs", "web"]);
    assert!(said.contains("No such container"), "{said}");
}

fn attaches(docker: &Docker) {
    docker.must(&[
        "run",
        "-d",
        "-i",
        "--name",
        "reader",
        "busybox",
        "sh",
        "-c",
        "read line; echo got $line; sleep 1000",
    ]);
    let mut client = docker.command(&["attach", "--sig-proxy=false", "reader"]);
    let mut client = client.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    client.stdin.as_mut().unwrap().write_all(b"this\n").unwrap();
    let mut output = BufReader::new(client.stdout.take().unwrap()).lines();
    assert_eq!(output.next().unwrap().unwrap(), "got this");
    let (_, said) = docker.fails(&["rm", "reader"]);
    assert!(said.contains("running container") || said.contains("container is running"), "{said}");
    docker.must(&["rm", "-f", "reader"]);
    assert!(output.next().is_none());
    client.wait().unwrap();
}

/// A registry on the host's loopback address.
fn registry(docker: &Docker, more: &str) -> Child {
    let config = docker.directory("registry").join("config.yml");
    let text = format!(
        "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '127.0.0.1:5000'}}\n{more}",
        docker.directory("registry").join("data").display()
    );
    fs::write(&config, text).unwrap();
    let line = format!("echo $$ > /run/registry.pid; exec docker-registry serve {}", config.display());
    let mut command = docker.host.command("sh");
    command.args(["-c", &line]).env("OTEL_TRACES_EXPORTER", "none");
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    docker.host.must_sh("until curl -s http://127.0.0.1:5000/v2/ > /dev/null; do sleep 0.1; done");
    child
}

#[test]
fn images_travel_in_archives_and_through_a_registry() {
    let docker = Docker::start();
    docker.load_base();
    docker.feed(&["build", "-t", "thing:1", "-"], "FROM busybox\nRUN echo thing > /thing\nCMD cat /thing\n");
    let id = docker.must(&["images", "-q", "--no-trunc", "thing:1"]);

    docker.must(&["tag", "thing:1", "thing:2"]);
    let archive = docker.directory("archives").join("both.tar").to_string_lossy().into_owned();
    docker.must(&["save", "-o", &archive, "thing:1", "thing:2"]);
    docker.must(&["rmi", "thing:1", "thing:2"]);
    let said = docker.must(&["load", "-i", &archive]);
    assert!(said.contains("Loaded image: thing:1") && said.contains("Loaded image: thing:2"), "{said}");
    assert_eq!(docker.must(&["images", "-q", "--no-trunc", "thing:2"]), id);

    let mut registry = registry(&docker, "");
    let name = "127.0.0.1:5000/team/thing:1";
    docker.must(&["tag", "thing:1", name]);
    let pushed = docker.must(&["push", name]);
    assert!(pushed.contains("1: digest: sha256:"), "{pushed}");
    docker.must(&["rmi", "thing:1", "thing:2", name]);
    let pulled = docker.must(&["pull", name]);
    assert!(
        pulled.contains("Status: Downloaded newer image") && pulled.contains("Digest: sha256:"),
        "{pulled}"
    );
    assert!(docker.must(&["pull", name]).contains("Status: Image is up to date"));
    assert_eq!(docker.must(&["images", "-q", "--no-trunc", name]), id);
    let digest = docker.inspect(name)["RepoDigests"][0].as_str().unwrap().to_owned();
    assert!(digest.starts_with("127.0.0.1:5000/team/thing@sha256:"), "{digest}");
    // An image that is not here is fetched by run, also by its digest.
    docker.must(&["rmi", name]);
    assert_eq!(docker.must(&["run", "--rm", name]), "thing\n");
    assert_eq!(docker.must(&["run", "--rm", &digest]), "thing\n");
    docker.feed(&["build", "-t", "child", "-"], &format!("FROM {name}\nRUN cat /thing\n"));
    let (_, said) = docker.fails(&["pull", "127.0.0.1:5000/team/none"]);
    assert!(said.contains("not found"), "{said}");
    let (code, said) = docker.fails(&["run", "--rm", "127.0.0.1:5000/team/none"]);
    assert!(code == 125 && said.contains("not found"), "{code} {said}");
    docker.host.must_sh("kill $(cat /run/registry.pid)");
    registry.wait().unwrap();
    docker.end();
}

/// `tester:secret`, as the registry keeps it (bcrypt) and as the client does.
const HTPASSWD: &str = "tester:$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";
const CLIENT_CONFIG: &str = r#"{"auths": {"127.0.0.1:5000": {"auth": "dGVzdGVyOnNlY3JldA=="}}}"#;

#[test]
fn base_images_come_from_a_registry_that_asks_for_a_password() {
    let docker = Docker::start();
    docker.load_base();
    let passwords = docker.directory("registry").join("htpasswd");
    fs::write(&passwords, HTPASSWD).unwrap();
    let auth = format!("auth: {{htpasswd: {{realm: test, path: {}}}}}\n", passwords.display());
    let mut registry = registry(&docker, &auth);
    let known = docker.directory("client");
    fs::write(known.join("config.json"), CLIENT_CONFIG).unwrap();
    let known = known.to_string_lossy().into_owned();
    let name = "127.0.0.1:5000/team/private:1";
    docker.must(&["tag", "busybox", name]);
    docker.must(&["--config", &known, "push", name]);
    docker.must(&["rmi", name]);
    let dir = docker.directory("private");
    fs::write(dir.join("Dockerfile"), format!("FROM {name}\nRUN echo built > /built\n")).unwrap();
    let dir = dir.to_string_lossy().into_owned();
    let (_, said) = docker.fails(&["build", &dir]);
    assert!(said.contains("denied") || said.contains("auth"), "{said}");
    docker.must(&["--config", &known, "build", "-t", "child", &dir]);
    assert_eq!(docker.must(&["run", "--rm", "child", "cat", "/built"]), "built\n");
    docker.host.must_sh("kill $(cat /run/registry.pid)");
    registry.wait().unwrap();
    docker.end();
}

#[test]
fn options_are_carried_out_or_refused_by_name() {
    let docker = Docker::start();
    docker.load_base();
    let made = docker.directory("binds").join("made").to_string_lossy().into_owned();
    let script = "id -G; ulimit -n; ulimit -Hn; df -k /dev/shm | tail -n 1; grep ' /t ' /proc/mounts; \
                  [ $$ = 1 ] || echo under init; touch /made/here; touch /sealed/x 2>&1";
    let seen = docker.run(
        &[
            &[
                "run",
                "--rm",
                "--init",
                "--group-add",
                "1234",
                "--ulimit",
                "nofile=100:200",
                "--shm-size",
                "8m",
            ][..],
            &["--tmpfs", "/t:size=1m,mode=700", "--mount", "type=tmpfs,target=/sealed,readonly"],
            &["-v", &format!("{made}:/made"), "busybox", "sh", "-c", script],
        ]
        .concat(),
    );
    let lines: Vec<&str> = seen.out.lines().collect();
    assert!(lines[0].split(' ').any(|gid| gid == "1234"), "{seen:?}");
    assert_eq!(lines[1..3], ["100", "200"], "{seen:?}");
    assert_eq!(lines[3].split_whitespace().nth(1), Some("8192"), "{seen:?}");
    for option in ["noexec", "nosuid", "size=1024k", "mode=700"] {
        assert!(lines[4].contains(option), "{option} in {seen:?}");
    }
    assert_eq!(lines[5], "under init", "{seen:?}");
    assert!(lines[6].contains("Read-only file system"), "{seen:?}");
    assert!(PathBuf::from(&made).join("here").exists(), "a bind makes its directory");

    docker.must(&[
        "run",
        "-d",
        "--name",
        "deaf",
        "--stop-timeout",
        "1",
        "busybox",
        "sh",
        "-c",
        "trap '' TERM; while :; do sleep 0.1; done",
    ]);
    docker.must(&["stop", "deaf"]);
    assert_eq!(docker.must(&["wait", "deaf"]), "137\n");
    docker.must(&["rm", "deaf"]);

    let dir = docker.directory("options");
    let text = "FROM busybox\nRUN grep db /etc/hosts; ls /sys/class/net\nRUN cat /etc/hosts | wc -c\n";
    fs::write(dir.join("Dockerfile"), text).unwrap();
    let dir = dir.to_string_lossy().into_owned();
    let said =
        docker.must(&["build", "--network", "none", "--add-host", "db:10.9.8.7", "-t", "options", &dir]);
    assert!(said.contains("10.9.8.7\tdb\n"), "{said}");
    let links = said
        .lines()
        .skip_while(|line| !line.contains("\tdb"))
        .skip(1)
        .take_while(|line| !line.starts_with("Removing"));
    let links: Vec<&str> = links.filter(|line| !line.starts_with(" --->")).collect();
    assert_eq!(links, ["lo"], "{said}");
    let (_, said) = docker.fails(&["build", "--platform", "linux/s390x", &dir]);
    assert!(said.contains("linux/s390x"), "{said}");
    if docker.reference.is_none() {
        refusals(&docker, &dir);
    }
    docker.end();
}

/// What Docker's daemon does and Skiff does not: said, and nothing is made.
fn refusals(docker: &Docker, context: &str) {
    for option in [
        "--device=/dev/fuse",
        "--gpus=all",
        "--volumes-from=web",
        "--memory-reservation=1m",
        "--uts=host",
        "--cgroup-parent=/x",
        "--log-driver=syslog",
        "--health-cmd=true",
        "--link=web",
        "--mac-address=02:00:00:00:00:01",
    ] {
        let name = option.split('=').next().unwrap();
        let (code, said) = docker.fails(&["run", "--rm", option, "busybox", "true"]);
        assert!(
            code == 125 && said.contains(name) && said.contains("not supported"),
            "{option}: {code} {said}"
        );
    }
    for option in ["--memory=64m", "--cpu-shares=5", "--ulimit=nofile=5", "--shm-size=1m"] {
        let (_, said) = docker.fails(&["build", option, context]);
        let name = option.split('=').next().unwrap();
        assert!(said.contains(name), "{option}: {said}");
    }
    assert_eq!(docker.must(&["ps", "-aq"]), "");
}

#[test]
fn a_container_is_committed_to_a_local_image() {
    let docker = Docker::start();
    docker.load_base();
    let run = [
        "run",
        "--name",
        "work",
        "-e",
        "A=1",
        "--expose",
        "81",
        "busybox",
        "sh",
        "-c",
        "echo made > /made; rm /etc/passwd",
    ];
    docker.must(&run);
    let id = docker.must(
        &[
            &["commit", "-m", "by hand", "-a", "me", "-c", "CMD [\"cat\", \"/made\"]"][..],
            &["-c", "ENV B=2", "-c", "LABEL c=d", "work", "team/made:1"],
        ]
        .concat(),
    );
    assert!(id.starts_with("sha256:"), "{id}");
    assert_eq!(docker.must(&["run", "--rm", "team/made:1"]), "made\n");
    let script = "echo $A$B; ls /etc/passwd 2>&1";
    let ran = docker.run(&["run", "--rm", "team/made:1", "sh", "-c", script]);
    assert!(ran.out.starts_with("12\n") && ran.out.contains("No such file"), "{ran:?}");
    let image = docker.inspect("team/made:1");
    assert_eq!(image["Id"].as_str().unwrap(), id.trim());
    assert_eq!(image["Config"]["Labels"]["c"], "d");
    assert!(image["Config"]["ExposedPorts"]["81/tcp"].is_object(), "{image}");
    if docker.reference.is_none() {
        assert_eq!(image["Origin"], "local", "no registry is asked for it");
    }
    let history = docker.must(&["history", "--format", "{{.Comment}}|{{.Size}}", "team/made:1"]);
    assert!(history.starts_with("by hand|5B\n"), "{history}");
    // A container that runs, without a name for the image.
    docker.must(&["run", "-d", "--name", "running", "busybox", "sh", "-c", "echo x > /x; sleep 1000"]);
    docker.must(&["exec", "running", "sh", "-c", "until [ -s /x ]; do sleep 0.05; done"]);
    let id = docker.must(&["commit", "running"]);
    assert_eq!(docker.must(&["run", "--rm", id.trim(), "cat", "/x"]), "x\n");
    let (_, said) = docker.fails(&["commit", "-c", "RUN x", "running"]);
    assert!(said.contains("RUN is not a valid change command"), "{said}");
    docker.must(&["rm", "-f", "running", "work"]);
    docker.end();
}
