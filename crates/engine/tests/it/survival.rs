//! What outlives whom: containers a killed daemon, nothing a killed shim.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use engine_api::contract::{log_text, outcome, patiently};
use engine_api::logs::{self, LogQuery};
use engine_api::{ContainerEventKind, ContainerState, ExecSpec, Runtime, SandboxSpec, SandboxState};
use futures::{FutureExt, StreamExt};
use shim::{Call, ContainerConfig, Event, FromShim, State, ToShim};
use tokio::io::Interest;

use crate::support::{Bench, Place, open_at, own_program};

/// Not a test: the daemon of the tests below, in a process of its own that they kill. Starts the scripts that it is
/// given, or only makes those that begin with `@`, and prints sandbox, container and process ids.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by other tests as their daemon"]
async fn daemon() {
    let variable = |name: &str| std::env::var(name).unwrap();
    let bench = open_at(variable("DIR").as_ref(), &variable("CGROUP"), &variable("IMAGE")).await;
    let subject = bench.subject();
    let sandbox = subject.sandbox().await;
    for script in variable("SCRIPTS").split('|') {
        let spec = subject.script(&sandbox, script.trim_start_matches('@'));
        let (id, status) = match script.starts_with('@') {
            true => (spec.id.clone(), bench.engine.create_container(spec).await.unwrap()),
            false => (spec.id.clone(), subject.start(spec).await),
        };
        let pid = if let ContainerState::Running { pid, .. } = status.state { pid } else { 0 };
        println!("\nMADE {sandbox} {id} {pid}");
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
        let fields: Vec<String> = line.strip_prefix("MADE ")?.split(' ').map(str::to_owned).collect();
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
    // A first process ignores the signal until its trap is set: it is sent until it has been heard.
    let heard = move || {
        (0..300).any(|_| {
            let _ = pidfd.signal(15);
            pidfd.wait(Duration::from_millis(200)).unwrap()
        })
    };
    assert!(tokio::task::spawn_blocking(heard).await.unwrap());
    let bench = place.open().await;
    let status = bench.engine.container(&ticking.1).await.unwrap();
    assert!(matches!(status.state, ContainerState::Running { pid, .. } if pid == ticking.2), "{status:?}");
    assert_eq!(bench.subject().end(&ending.1).await.code, 6);
    let new = LogQuery { follow: true, tail: Some(0), ..LogQuery::default() };
    let mut ticks = Box::pin(logs::read(status.log_path.clone(), new, std::future::pending().boxed()));
    for _ in 0..2 {
        patiently(ticks.next()).await.unwrap().unwrap();
    }
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
    let subject = bench.subject();
    let sandbox = subject.sandbox().await;
    let waiting = subject.script(&sandbox, "true");
    let waiting = bench.engine.create_container(waiting).await.unwrap().spec.id;
    let mut events = bench.engine.events().await;
    let running = subject.start(subject.script(&sandbox, "sleep 1000 & sleep 1000")).await;
    let ContainerState::Running { pid, .. } = running.state else { panic!("{running:?}") };
    let container = sys::process::Pidfd::open(pid).unwrap();
    sys::process::signal(parent_of(pid), 9).unwrap();
    for id in [&running.spec.id, &waiting] {
        let exit = subject.end(id).await;
        assert_eq!((exit.code, exit.message.as_str()), (137, "the sandbox's shim died"));
    }
    assert!(container.wait(Duration::ZERO).unwrap(), "the container's process is dead");
    while patiently(events.next()).await.unwrap().unwrap().kind != ContainerEventKind::SandboxDied {}
    assert_eq!(bench.engine.sandboxes().await.unwrap()[0].state, SandboxState::NotReady);
    assert!(bench.engine.start_container(&running.spec.id).await.is_err());
    bench.engine.remove_sandbox(&sandbox).await.unwrap();
    bench.engine.purge().await.unwrap();
    drop(bench);
    assert_eq!(place.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_shim_takes_the_init_of_its_pid_namespace_along() {
    let place = Place::new();
    let bench = place.open().await;
    let subject = bench.subject();
    let sandbox = subject.sandbox_from(SandboxSpec { share_pid: true, ..SandboxSpec::default() }).await;
    let running = subject.start(subject.script(&sandbox, "sleep 1000 & sleep 1000")).await;
    let ContainerState::Running { pid, .. } = running.state else { panic!("{running:?}") };
    let own = place.own_processes();
    let (init, _) = own.iter().find(|(_, command)| command.contains(" init ")).expect("it has an init");
    let init = sys::process::Pidfd::open(*init).unwrap();
    sys::process::signal(parent_of(pid), 9).unwrap();
    assert_eq!(subject.end(&running.spec.id).await.code, 137);
    let ended = tokio::task::spawn_blocking(move || init.wait(Duration::from_secs(60)).unwrap());
    assert!(ended.await.unwrap(), "the init survived its shim");
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

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_was_made_and_not_started_is_there_also_where_the_shim_was_not_told() {
    let place = Place::new();
    let image = place.image().to_owned();
    let made = orphans(&place, &image, "sleep 1000|@echo late|@true");
    let (sandbox, running, complete, half) = (&made[0].0, made[0].2, &made[1].1, &made[2].1);
    // As if the daemon had ended after it wrote the record: the shim was told of another container.
    let stranger = half.chars().rev().collect::<String>();
    let containers = place.path().join("data/containers");
    let record = std::fs::read_to_string(containers.join(half).join("container.json")).unwrap();
    std::fs::create_dir(containers.join(&stranger)).unwrap();
    let record = record.replace(half.as_str(), &stranger);
    std::fs::write(containers.join(&stranger).join("container.json"), record).unwrap();

    let bench = place.open().await;
    let state = async |id: &str| bench.engine.container(id).await.unwrap().state;
    assert_eq!(state(complete).await, ContainerState::Created);
    // Nothing of it has run: it is no failure of its program.
    assert_eq!(state(&stranger).await, ContainerState::Created);
    bench.engine.start_container(&stranger).await.unwrap();
    assert_eq!(bench.subject().end(&stranger).await.code, 0);
    bench.engine.remove_container(&stranger, false).await.unwrap();
    // The one that is there still starts.
    let log = bench.engine.start_container(complete).await.unwrap().log_path;
    assert_eq!(bench.subject().end(complete).await.code, 0);
    assert_eq!(log_text(&log), "late\n");
    // With the shim, the last one's chance to start is gone.
    sys::process::signal(parent_of(running), 9).unwrap();
    bench.subject().end(half).await;
    assert!(matches!(state(half).await, ContainerState::Exited { started_at: None, .. }));
    bench.engine.remove_sandbox(sandbox).await.unwrap();
    bench.engine.purge().await.unwrap();
    drop(bench);
    assert_eq!(place.leftovers(), Vec::<String>::new());
}

/// A daemon that speaks the shims' protocol by hand.
struct Speaker(tokio::io::unix::AsyncFd<std::os::fd::OwnedFd>);

impl Speaker {
    fn connect(place: &Place, sandbox: &str) -> Self {
        let dir = place.path().join("run/sandboxes").join(sandbox);
        Self(sys::watch::watch(sys::seqpacket::connect(&dir, shim::SOCKET).unwrap()).unwrap())
    }

    fn say(&self, message: &ToShim) {
        sys::seqpacket::send(self.0.get_ref(), &shim::encode(message).unwrap(), &[]).unwrap();
    }

    async fn hear(&self) -> FromShim {
        let mut buffer = vec![0; shim::MAX_MESSAGE];
        let heard = self.0.async_io(Interest::READABLE, |socket| sys::seqpacket::recv(socket, &mut buffer));
        let (length, _) = patiently(heard).await.unwrap();
        shim::decode(&buffer[..length]).unwrap()
    }

    async fn greet(&self, version: u32) -> FromShim {
        self.say(&ToShim::Hello { version });
        self.hear().await
    }
}

/// A container's state in a welcome.
fn welcomed(message: FromShim, id: &str) -> State {
    let FromShim::Welcome { containers, .. } = message else { panic!("{message:?}") };
    containers.into_iter().find(|report| report.id == id).unwrap().state
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_hangs_keeps_no_sandbox_from_being_taken_back() {
    let place = Place::new();
    let image = place.image().to_owned();
    let made = orphans(&place, &image, "sleep 1000|@true");
    let (sandbox, running, hanging) = (&made[0].0, &made[0].1, &made[1].1);
    // Its document is a pipe into which nobody writes.
    let bundle = place.path().join("bundle");
    std::fs::create_dir(&bundle).unwrap();
    let document = bundle.join("config.json");
    assert!(Command::new("mkfifo").arg(&document).status().unwrap().success());
    let asking = Speaker::connect(&place, sandbox);
    asking.greet(shim::VERSION).await;
    let (id, log) = (hanging.clone(), place.path().join("log"));
    let config = ContainerConfig { id: id.clone(), bundle, log, ..ContainerConfig::default() };
    asking.say(&ToShim::Call { id: 1, call: Call::Create(config) });
    let made = asking.hear().await;
    assert!(matches!(made, FromShim::Reply { id: 1, result: Ok(_) }), "{made:?}");
    asking.say(&ToShim::Call { id: 2, call: Call::Start { id } });
    drop(asking);
    // A daemon of the first version cannot be told of it and waits.
    let old = Speaker::connect(&place, sandbox);
    old.say(&ToShim::Hello { version: 1 });
    let new = Speaker::connect(&place, sandbox);
    assert_eq!(welcomed(new.greet(shim::VERSION).await, hanging), State::Starting);

    let bench = place.open().await;
    assert_eq!(bench.engine.sandboxes().await.unwrap()[0].state, SandboxState::Ready);
    let state = bench.engine.container(running).await.unwrap().state;
    assert!(matches!(state, ContainerState::Running { .. }), "{state:?}");
    assert_eq!(bench.engine.container(hanging).await.unwrap().state, ContainerState::Created);
    // Now it fails, and everybody hears of it.
    tokio::task::spawn_blocking(move || std::fs::write(document, "{").unwrap()).await.unwrap();
    assert_eq!(bench.subject().end(hanging).await.code, 128);
    let told = new.hear().await;
    assert!(matches!(&told, FromShim::Event(Event::NotStarted { id, .. }) if id == hanging), "{told:?}");
    assert_eq!(welcomed(old.hear().await, hanging), State::Created);
    bench.engine.remove_container(hanging, false).await.unwrap();
    bench.engine.purge().await.unwrap();
    drop(bench);
    assert_eq!(place.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn shim_and_daemon_compare_versions_before_anything_else() {
    let place = Place::new();
    let bench = place.open().await;
    let sandbox = bench.subject().sandbox().await;
    let refused = Speaker::connect(&place, &sandbox).greet(shim::OLDEST - 1).await;
    let FromShim::Failed { message } = refused else { panic!("{refused:?}") };
    assert!(message.contains("is not spoken any more"), "{message}");
    let newer = Speaker::connect(&place, &sandbox).greet(shim::VERSION + 1).await;
    assert!(matches!(newer, FromShim::Welcome { version: shim::VERSION, .. }), "{newer:?}");
    // Who calls without a greeting is cut off, and nobody else is.
    let rude = Speaker::connect(&place, &sandbox);
    rude.say(&ToShim::Call { id: 1, call: Call::Shutdown });
    let mut end = vec![0; 16];
    let cut = rude.0.async_io(Interest::READABLE, |socket| sys::seqpacket::recv(socket, &mut end));
    let (length, _) = patiently(cut).await.unwrap_or_default();
    assert_eq!(length, 0);
    assert_eq!(bench.subject().run(bench.subject().script(&sandbox, "exit 3")).await.0.code, 3);
    bench.engine.purge().await.unwrap();
    drop(bench);
    assert_eq!(place.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_living_shim_that_cannot_be_reached_ends_with_its_sandbox() {
    let place = Place::new();
    let image = place.image().to_owned();
    let (sandbox, container, pid) = orphans(&place, &image, "sleep 1000").remove(0);
    let shim = sys::process::Pidfd::open(parent_of(pid)).unwrap();
    std::fs::remove_file(place.path().join("run/sandboxes").join(&sandbox).join(shim::SOCKET)).unwrap();
    let bench = place.open().await;
    assert_eq!(bench.engine.wait_container(&container).await.unwrap().code, 137);
    assert!(shim.wait(Duration::ZERO).unwrap(), "the shim is dead");
    assert_eq!(bench.engine.sandboxes().await.unwrap()[0].state, SandboxState::NotReady);
    bench.engine.purge().await.unwrap();
    drop(bench);
    assert_eq!(place.leftovers(), Vec::<String>::new());
}

/// A container that runs, its sandbox, and a handle on the shim.
async fn running_with_shim(bench: &Bench, script: &str) -> (String, String, sys::process::Pidfd) {
    let subject = bench.subject();
    let sandbox = subject.sandbox().await;
    let running = subject.start(subject.script(&sandbox, script)).await;
    let ContainerState::Running { pid, .. } = running.state else { panic!("{running:?}") };
    (sandbox, running.spec.id, sys::process::Pidfd::open(parent_of(pid)).unwrap())
}

const STOP: i32 = 19;
const CONTINUE: i32 = 18;

#[tokio::test(flavor = "multi_thread")]
async fn a_container_whose_shim_is_stopped_ends_and_its_sandbox_goes() {
    let place = Place::new();
    let bench = place.open().await;
    let (sandbox, container, shim) =
        running_with_shim(&bench, "trap '' TERM; while :; do sleep 1; done").await;
    let (_, other, _) = running_with_shim(&bench, "sleep 1000").await;
    shim.signal(STOP).unwrap();
    // What was written can be read meanwhile.
    bench.engine.log_path(&container).await.unwrap();
    let exit = patiently(bench.engine.stop_container(&container, Duration::from_millis(200))).await.unwrap();
    assert_eq!((exit.code, exit.message.as_str()), (137, "the sandbox's shim died"));
    assert!(shim.wait(Duration::from_secs(60)).unwrap(), "the shim is dead");
    let died = bench.engine.sandboxes().await.unwrap();
    let died = died.iter().find(|status| status.spec.id == sandbox).unwrap();
    assert_eq!(died.state, SandboxState::NotReady);
    patiently(bench.engine.remove_sandbox(&sandbox)).await.unwrap();
    let state = bench.engine.container(&other).await.unwrap().state;
    assert!(matches!(state, ContainerState::Running { .. }), "{state:?}");
    bench.engine.purge().await.unwrap();
    drop(bench);
    assert_eq!(place.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_whose_shim_is_stopped_can_be_removed() {
    let place = Place::new();
    let bench = place.open().await;
    let (sandbox, container, shim) = running_with_shim(&bench, "sleep 1000").await;
    shim.signal(STOP).unwrap();
    let removed = tokio::time::timeout(Duration::from_secs(180), bench.engine.remove_sandbox(&sandbox)).await;
    removed.expect("it ends").unwrap();
    assert!(bench.engine.container(&container).await.is_err());
    bench.engine.purge().await.unwrap();
    drop(bench);
    assert_eq!(place.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shim_that_was_stopped_for_a_while_tells_the_truth_afterwards() {
    let place = Place::new();
    let bench = place.open().await;
    let (sandbox, container, shim) =
        running_with_shim(&bench, "trap 'exit 6' TERM; echo ready; while :; do sleep 0.05; done").await;
    // A first process ignores the signal until its trap is set.
    let log = bench.engine.log_path(&container).await.unwrap();
    let query = LogQuery { follow: true, ..LogQuery::default() };
    let mut lines = Box::pin(logs::read(log, query, std::future::pending().boxed()));
    patiently(lines.next()).await.unwrap().unwrap();
    shim.signal(STOP).unwrap();
    let continued = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        shim.signal(CONTINUE).unwrap();
    };
    // Nothing is made up while it may still be told.
    let grace = Duration::from_secs(60);
    let (stopped, ()) =
        patiently(async { tokio::join!(bench.engine.stop_container(&container, grace), continued) }).await;
    assert_eq!(stopped.unwrap().code, 6);
    // It serves as before.
    let subject = bench.subject();
    assert_eq!(subject.run(subject.script(&sandbox, "exit 3")).await.0.code, 3);
    bench.engine.purge().await.unwrap();
    drop(bench);
    assert_eq!(place.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shim_without_descriptors_lets_daemons_in_and_does_not_spin() {
    let place = Place::new();
    let image = place.image().to_owned();
    let (sandbox, container, pid) = orphans(&place, &image, "sleep 1000").remove(0);
    let shim = parent_of(pid);
    // The lowest number that is free: nothing more can be opened.
    let open = |number: &u64| std::fs::symlink_metadata(format!("/proc/{shim}/fd/{number}")).is_ok();
    let limit = (0..).find(|number| !open(number)).unwrap().to_string();
    let limited =
        Command::new("prlimit").args(["--pid", &shim.to_string(), &format!("--nofile={limit}")]).status();
    assert!(limited.unwrap().success());
    // More come than can be let in; those who can are served.
    let mut first = Speaker::connect(&place, &sandbox);
    assert!(matches!(welcomed(first.greet(shim::VERSION).await, &container), State::Running { .. }));
    let others: Vec<Speaker> = (0..5).map(|_| Speaker::connect(&place, &sandbox)).collect();
    let ticks = || {
        let stat = std::fs::read_to_string(format!("/proc/{shim}/stat")).unwrap();
        let fields: Vec<u64> = stat.split(' ').map(|field| field.parse().unwrap_or(0)).collect();
        fields[13] + fields[14]
    };
    let before = ticks();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(ticks() - before < 50, "it spins: {} ticks", ticks() - before);
    // When others go, who waited comes in: the daemon, too.
    first = Speaker::connect(&place, &sandbox);
    drop(others);
    assert!(matches!(welcomed(first.greet(shim::VERSION).await, &container), State::Running { .. }));
    drop(first);
    let bench = place.open().await;
    let state = bench.engine.container(&container).await.unwrap().state;
    assert!(matches!(state, ContainerState::Running { pid: same, .. } if same == pid), "{state:?}");
    bench.engine.purge().await.unwrap();
    drop(bench);
    assert_eq!(place.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_is_left_alone_where_its_record_cannot_be_read() {
    let place = Place::new();
    let image = place.image().to_owned();
    let (sandbox, container, pid) = orphans(&place, &image, "cat /etc/passwd; sleep 1000").remove(0);
    let record = place.path().join("data/sandboxes").join(format!("{sandbox}.json"));
    let text = std::fs::read(&record).unwrap();
    std::fs::write(&record, "{").unwrap();
    drop(place.open().await);
    // Another time it can be read.
    std::fs::write(&record, text).unwrap();
    let bench = place.open().await;
    let state = bench.engine.container(&container).await.unwrap().state;
    assert!(matches!(state, ContainerState::Running { pid: same, .. } if same == pid), "{state:?}");
    let exec = ExecSpec { command: ["true"].map(str::to_owned).to_vec(), ..ExecSpec::default() };
    let (exit, _, _) = outcome(bench.engine.exec(&container, exec).await.unwrap()).await;
    assert_eq!(exit.code, 0, "its root file system is there");
    bench.engine.purge().await.unwrap();
    drop(bench);
    assert_eq!(place.leftovers(), Vec::<String>::new());
}

/// The process whose child a process is.
fn parent_of(pid: u32) -> u32 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok()).unwrap()
}
