//! What outlives whom: containers a killed daemon, nothing a killed shim.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use engine_api::{ContainerEventKind, ContainerState, ExecSpec, Runtime, SandboxState};
use futures::StreamExt;

use crate::support::{Place, log_text, open_at, outcome, own_program};

/// Not a test: the daemon of the tests below, in a process of its own that they kill. Starts the scripts that it is
/// given and prints sandbox and container ids.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by other tests as their daemon"]
async fn daemon() {
    let variable = |name: &str| std::env::var(name).unwrap();
    let bench = open_at(variable("DIR").as_ref(), &variable("CGROUP"), &variable("IMAGE")).await;
    let sandbox = bench.sandbox().await;
    for script in variable("SCRIPTS").split('|') {
        let status = bench.start(bench.script(&sandbox, script)).await;
        let ContainerState::Running { pid, .. } = status.state else { panic!("{status:?}") };
        println!("\nSTARTED {sandbox} {} {pid}", status.spec.id);
        std::io::stdout().flush().unwrap();
    }
    std::future::pending::<()>().await;
}

/// Runs scripts under a daemon process, kills that with SIGKILL, and answers (sandbox, container, pid) of each.
fn orphans(place: &Place, image: &str, scripts: &str) -> Vec<(String, String, u32)> {
    let mut daemon = Command::new(own_program())
        .args(["--exact", "survival::daemon", "--ignored", "--nocapture"])
        .env("DIR", place.path())
        .env("CGROUP", &place.cgroup)
        .env("IMAGE", image)
        .env("SCRIPTS", scripts)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(daemon.stdout.take().unwrap()).lines();
    let started = lines.map_while(Result::ok).filter_map(|line| {
        let fields: Vec<String> = line.strip_prefix("STARTED ")?.split(' ').map(str::to_owned).collect();
        Some((fields[0].clone(), fields[1].clone(), fields[2].parse().ok()?))
    });
    let started: Vec<_> = started.take(scripts.split('|').count()).collect();
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    assert_eq!(started.len(), scripts.split('|').count());
    started
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_daemon_takes_its_containers_back() {
    let place = Place::new();
    let image = place.image().to_owned();
    let scripts = "while :; do sleep 0.02; echo tick; done|trap 'exit 6' TERM; while :; do sleep 0.02; done";
    let started = orphans(&place, &image, scripts);
    let (ticking, ending) = (&started[0], &started[1]);
    // While no daemon is there, one container ends and the other goes on to write.
    let pidfd = sys::process::Pidfd::open(ending.2).unwrap();
    pidfd.signal(15).unwrap();
    assert!(tokio::task::spawn_blocking(move || pidfd.wait(Duration::from_secs(20)).unwrap()).await.unwrap());
    let bench = place.open().await;
    let status = bench.engine.container(&ticking.1).await.unwrap();
    assert!(matches!(status.state, ContainerState::Running { pid, .. } if pid == ticking.2), "{status:?}");
    let exit = tokio::time::timeout(Duration::from_secs(20), bench.engine.wait_container(&ending.1)).await;
    assert_eq!(exit.unwrap().unwrap().code, 6);
    assert!(log_text(&status.log_path).lines().count() > 1);
    let exec =
        ExecSpec { command: ["echo", "still here"].map(str::to_owned).to_vec(), ..ExecSpec::default() };
    let (_, stdout, _) = outcome(bench.engine.exec(&ticking.1, exec).await.unwrap()).await;
    assert_eq!(stdout, "still here\n");
    bench.engine.purge().await.unwrap();
    drop(bench);
    assert_eq!(place.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_containers_of_a_killed_shim_count_as_died() {
    let place = Place::new();
    let bench = place.open().await;
    let sandbox = bench.sandbox().await;
    let mut events = bench.engine.events().await;
    let running = bench.start(bench.script(&sandbox, "sleep 1000 & sleep 1000")).await;
    let ContainerState::Running { pid, .. } = running.state else { panic!("{running:?}") };
    let container = sys::process::Pidfd::open(pid).unwrap();
    sys::process::signal(parent_of(pid), 9).unwrap();
    let exit =
        tokio::time::timeout(Duration::from_secs(20), bench.engine.wait_container(&running.spec.id)).await;
    let exit = exit.unwrap().unwrap();
    assert_eq!((exit.code, exit.message.as_str()), (137, "the sandbox's shim died"));
    assert!(container.wait(Duration::ZERO).unwrap(), "the container's process is dead");
    while events.next().await.unwrap().unwrap().kind != ContainerEventKind::SandboxDied {}
    assert_eq!(bench.engine.sandboxes().await.unwrap()[0].state, SandboxState::NotReady);
    assert!(bench.engine.start_container(&running.spec.id).await.is_err());
    bench.engine.remove_sandbox(&sandbox).await.unwrap();
    bench.engine.purge().await.unwrap();
    drop(bench);
    assert_eq!(place.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn shim_and_daemon_killed_together_leave_nothing_running() {
    let place = Place::new();
    let image = place.image().to_owned();
    let (sandbox, container, pid) = orphans(&place, &image, "sleep 1000").remove(0);
    let process = sys::process::Pidfd::open(pid).unwrap();
    sys::process::signal(parent_of(pid), 9).unwrap();
    let bench = place.open().await;
    assert!(process.wait(Duration::ZERO).unwrap());
    assert_eq!(bench.engine.wait_container(&container).await.unwrap().code, 137);
    assert_eq!(bench.engine.sandboxes().await.unwrap()[0].state, SandboxState::NotReady);
    bench.engine.remove_sandbox(&sandbox).await.unwrap();
    bench.engine.purge().await.unwrap();
    drop(bench);
    assert_eq!(place.leftovers(), Vec::<String>::new());
}

/// The process whose child a process is.
fn parent_of(pid: u32) -> u32 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok()).unwrap()
}
