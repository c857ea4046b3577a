//! Known ways out of a container, each by its name: none of them is one, also not for root in a default container.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use engine_api::contract::{Subject, outcome};
use engine_api::{
    ContainerSpec, EngineError, ExecSpec, Mount, MountPropagation, MountSource, Runtime as _, SandboxSpec,
};

use crate::support::{Bench, Place, RUNC};

/// What the host keeps to itself.
const MARKER: &str = "the host's own";

/// A place with a file that no container may see.
struct Host {
    place: Place,
    marker: PathBuf,
    bench: Box<Bench>,
}

impl Host {
    async fn new() -> Self {
        let place = Place::new();
        let marker = place.path().join("marker");
        std::fs::write(&marker, MARKER).unwrap();
        let bench = place.open().await;
        Self { place, marker, bench }
    }

    fn subject(&self) -> Subject {
        self.bench.subject()
    }

    async fn sandbox(&self, handler: &str, share_pid: bool) -> String {
        let spec = SandboxSpec {
            id: base::id::hex64(),
            hostname: "pod".into(),
            share_pid,
            runtime_handler: handler.to_owned(),
            ..SandboxSpec::default()
        };
        self.bench.engine.create_sandbox(spec).await.unwrap().spec.id
    }

    async fn end(self) {
        self.bench.engine.purge().await.unwrap();
        drop(self.bench);
        assert_eq!(self.place.leftovers(), Vec::<String>::new());
        assert_eq!(std::fs::read_to_string(&self.marker).unwrap(), MARKER);
    }
}

fn bind(source: &Path, target: &str, read_only: bool) -> Mount {
    Mount {
        source: MountSource::Bind(source.to_owned()),
        target: target.into(),
        read_only,
        recursive_read_only: false,
        propagation: MountPropagation::Private,
    }
}

/// The program that tries them, built for the image, which has no C library.
fn program(place: &Place) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/data/escape.c");
    let built = place.path().join("escape");
    let status = Command::new("cc").args(["-static", "-O1", "-o"]).arg(&built).arg(source).status().unwrap();
    assert!(status.success());
    built
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kernels_ways_out_are_closed() {
    try_the_kernels_ways_out("").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kernels_ways_out_are_closed_on_another_runtime() {
    try_the_kernels_ways_out(RUNC).await;
}

async fn try_the_kernels_ways_out(handler: &str) {
    let host = Host::new().await;
    let (subject, program) = (host.subject(), program(&host.place));
    let disk = std::fs::metadata(host.place.path()).unwrap().dev();
    let (major, minor) = (rustix::fs::major(disk).to_string(), rustix::fs::minor(disk).to_string());
    let sandbox = host.sandbox(handler, false).await;
    let spec = ContainerSpec {
        args: vec!["/escape".into(), host.marker.display().to_string(), major.clone(), minor.clone()],
        mounts: vec![bind(&program, "/escape", true)],
        ..subject.script(&sandbox, "")
    };
    let (exit, log) = subject.run(spec.clone()).await;
    let out: Vec<&str> = log.lines().filter(|line| line.ends_with(" OUT")).collect();
    assert!(out.is_empty(), "{handler}: {out:?} of\n{log}");
    assert!(log.ends_with("tried\n") && exit.code == 0, "{handler}: {exit:?} {log}");
    // Further processes are held no less.
    let id = base::id::hex64();
    let running = ContainerSpec { id, args: ["sleep", "1000"].map(str::to_owned).to_vec(), ..spec.clone() };
    let running = subject.start(running).await.spec.id;
    let exec = ExecSpec { command: spec.args, ..ExecSpec::default() };
    let (_, log, _) = outcome(host.bench.engine.exec(&running, exec).await.unwrap()).await;
    let out: Vec<&str> = log.lines().filter(|line| line.ends_with(" OUT")).collect();
    assert!(out.is_empty() && log.ends_with("tried\n"), "{handler}, by exec: {out:?} of\n{log}");
    host.end().await;
}

/// CVE-2019-5736: whoever has the runtime execute itself inside of the container can reach its file by /proc/PID/exe. It
/// is busy only as long as somebody runs it.
#[tokio::test(flavor = "multi_thread")]
async fn the_runtimes_own_program_cannot_be_overwritten() {
    let host = Host::new().await;
    let subject = host.subject();
    let sandbox = host.sandbox("", false).await;
    // It waits for somebody to write into what it takes for a namespace.
    let pins = host.place.path().join("pins");
    std::fs::create_dir(&pins).unwrap();
    assert!(Command::new("mkfifo").arg(pins.join("user")).status().unwrap().success());
    let spec = ContainerSpec {
        args: ["/proc/self/exe", "users-init", "/pins", "/"].map(str::to_owned).to_vec(),
        mounts: vec![bind(&pins, "/pins", false)],
        ..subject.script(&sandbox, "")
    };
    let running = subject.start(spec).await.spec.id;
    let script = "readlink /proc/1/exe; echo x 2>&1 > /proc/1/exe; echo end";
    let exec = ExecSpec { command: ["sh", "-c", script].map(str::to_owned).to_vec(), ..ExecSpec::default() };
    let (_, stdout, stderr) = outcome(host.bench.engine.exec(&running, exec).await.unwrap()).await;
    assert!(stdout.contains("skiff-shim"), "{stdout}{stderr}");
    let said = format!("{stdout}{stderr}");
    assert!(said.contains("Read-only file system"), "{said}");
    host.end().await;
}

/// Whether somebody was refused for where he wanted to begin.
fn is_of_directory(error: &EngineError, working_dir: &str) -> bool {
    let said = &error.message;
    // The library has no words for it but these.
    [working_dir, "director", "chdir", "cwd", "failed to unix syscall"].iter().any(|word| said.contains(word))
}

/// CVE-2024-21626: a working directory through a descriptor that the runtime holds.
#[tokio::test(flavor = "multi_thread")]
async fn no_descriptor_of_the_runtimes_leads_out() {
    let host = Host::new().await;
    let subject = host.subject();
    let marker = host.marker.strip_prefix("/").unwrap().display().to_string();
    let script = format!("cat ../../../../../../../../../../{marker} 2>&1; ls -l /proc/self/fd | wc -l");
    for handler in ["", RUNC] {
        let sandbox = host.sandbox(handler, false).await;
        let sleeping = subject.start(subject.script(&sandbox, "sleep 1000")).await.spec.id;
        for descriptor in 3..16 {
            let working_dir = format!("/proc/self/fd/{descriptor}");
            let spec =
                ContainerSpec { working_dir: working_dir.clone(), ..subject.script(&sandbox, &script) };
            let id = spec.id.clone();
            host.bench.engine.create_container(spec).await.unwrap();
            match host.bench.engine.start_container(&id).await {
                Ok(status) => {
                    subject.end(&id).await;
                    let log = engine_api::contract::log_text(&status.log_path);
                    assert!(!log.contains(MARKER), "{handler} {working_dir}: {log}");
                }
                // For the directory's sake and no other.
                Err(error) => assert!(is_of_directory(&error, &working_dir), "{handler}: {error}"),
            }
            let command = ["sh", "-c", &script].map(str::to_owned).to_vec();
            let exec = ExecSpec { command, working_dir: working_dir.clone(), ..ExecSpec::default() };
            if let Ok(process) = host.bench.engine.exec(&sleeping, exec).await {
                let (_, stdout, _) = outcome(process).await;
                assert!(!stdout.contains(MARKER), "{handler} {working_dir}, by exec: {stdout}");
            }
        }
    }
    host.end().await;
}

/// What a container has put into its own root file system leads the runtime nowhere when it starts again.
#[tokio::test(flavor = "multi_thread")]
async fn links_in_the_root_lead_nowhere_outside() {
    let host = Host::new().await;
    let subject = host.subject();
    let outside = host.place.path().join("outside");
    let given = host.place.path().join("given");
    for directory in [&outside, &given] {
        std::fs::create_dir(directory).unwrap();
    }
    let link = outside.display();
    let script = format!(
        "test -L /place && exit; rm -rf /place /mounted; ln -s /../../../..{link} /place; ln -s {link} /mounted"
    );
    for handler in ["", RUNC] {
        let sandbox = host.sandbox(handler, false).await;
        let spec = ContainerSpec {
            working_dir: "/place/made".into(),
            mounts: vec![bind(&given, "/mounted/inner", false)],
            ..subject.script(&sandbox, &script)
        };
        let id = spec.id.clone();
        let (exit, log) = subject.run(spec).await;
        assert_eq!(exit.code, 0, "{handler}: {log}");
        // Whether it starts does not matter here.
        if host.bench.engine.start_container(&id).await.is_ok() {
            subject.end(&id).await;
        }
        let made: Vec<_> = std::fs::read_dir(&outside).unwrap().flatten().map(|entry| entry.path()).collect();
        assert!(made.is_empty(), "{handler}: {made:?}");
    }
    host.end().await;
}

/// CVE-2025-31133: what is masked is covered by /dev/null, which somebody else's volume may have put there.
#[tokio::test(flavor = "multi_thread")]
async fn a_null_device_that_is_none_masks_nothing() {
    let host = Host::new().await;
    let subject = host.subject();
    let dev = host.place.path().join("dev");
    std::fs::create_dir(&dev).unwrap();
    std::os::unix::fs::symlink("/proc/sys/kernel/core_pattern", dev.join("null")).unwrap();
    let script = "for file in /proc/kcore /proc/keys /proc/timer_list; do test -w $file && \
                  grep -q . $file 2>/dev/null && echo $file is open; done; true";
    for handler in ["", RUNC] {
        let sandbox = host.sandbox(handler, false).await;
        let spec =
            ContainerSpec { mounts: vec![bind(&dev, "/dev", false)], ..subject.script(&sandbox, script) };
        let id = spec.id.clone();
        host.bench.engine.create_container(spec).await.unwrap();
        if let Ok(status) = host.bench.engine.start_container(&id).await {
            subject.end(&id).await;
            let log = engine_api::contract::log_text(&status.log_path);
            assert!(!log.contains("is open"), "{handler}: {log}");
        }
    }
    host.end().await;
}

/// PID 1 of a shared namespace is the engine's own.
#[tokio::test(flavor = "multi_thread")]
async fn the_init_that_containers_share_opens_no_way_to_the_host() {
    let host = Host::new().await;
    let subject = host.subject();
    let marker = host.marker.display();
    for handler in ["", RUNC] {
        let sandbox = host.sandbox(handler, true).await;
        let script = format!(
            "cat /proc/1/root{marker} /proc/1/cwd{marker} 2>&1; for fd in 0 1 2 3 4 5 6; do \
             echo x > /proc/1/fd/$fd; done 2>&1; cat /proc/1/environ /proc/1/mem 2>&1; kill -9 1; echo x 2>&1 > /proc/1/exe; echo tried"
        );
        let (_, log) = subject.run(subject.script(&sandbox, &script)).await;
        assert!(!log.contains(MARKER) && log.ends_with("tried\n"), "{handler}: {log}");
    }
    host.end().await;
}

/// A target that ends before it is joined: nobody else's processes are seen under its number.
#[tokio::test(flavor = "multi_thread")]
async fn only_living_containers_of_the_sandbox_share_their_processes() {
    let host = Host::new().await;
    let subject = host.subject();
    let sandbox = host.sandbox("", false).await;
    let target = subject.start(subject.script(&sandbox, "sleep 1234")).await.spec.id;
    let joining = |script: &str| {
        let mut spec = subject.script(&sandbox, script);
        spec.namespaces.pid_of = Some(target.clone());
        spec
    };
    let (_, log) = subject.run(joining("ps | grep -c 'sleep 123[4]'")).await;
    assert_eq!(log, "1\n");
    host.bench.engine.stop_container(&target, std::time::Duration::ZERO).await.unwrap();
    let late = joining("true");
    let id = late.id.clone();
    host.bench.engine.create_container(late).await.unwrap();
    let EngineError { message, .. } = host.bench.engine.start_container(&id).await.unwrap_err();
    assert!(message.contains("does not run here"), "{message}");
    host.end().await;
}
