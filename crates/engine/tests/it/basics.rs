//! Running, ending, executing, removing.

use std::time::Duration;

use engine_api::{ContainerSpec, ContainerState, ErrorKind, ExecSpec, Runtime, User};

use crate::support::{Place, outcome};

#[tokio::test(flavor = "multi_thread")]
async fn containers_run_log_and_tell_how_they_ended() {
    let place = Place::new();
    let bench = place.open().await;
    let sandbox = bench.sandbox().await;
    let (exit, log) = bench.run(bench.script(&sandbox, "echo out; echo err >&2; hostname; exit 7")).await;
    assert_eq!((exit.code, exit.signal, exit.oom_killed), (7, 0, false));
    let mut lines: Vec<&str> = log.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["err", "out", "pod"]);
    let (exit, _) = bench.run(bench.script(&sandbox, "kill -9 $$")).await;
    // PID 1 of its own namespace ignores signals from inside: the shell goes on and ends well.
    assert_eq!(exit.code, 0);
    let running = bench.start(bench.script(&sandbox, "sleep 1000")).await;
    bench.engine.signal_container(&running.spec.id, 9).await.unwrap();
    let exit = bench.engine.wait_container(&running.spec.id).await.unwrap();
    assert_eq!((exit.code, exit.signal), (137, 9));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_of_what_is_removed() {
    let place = Place::new();
    let bench = place.open().await;
    let sandbox = bench.sandbox().await;
    let running = bench.start(bench.script(&sandbox, "sleep 1000")).await;
    bench.engine.create_container(bench.script(&sandbox, "true")).await.unwrap();
    let refused = bench.engine.remove_container(&running.spec.id, false).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Conflict);
    bench.engine.remove_container(&running.spec.id, true).await.unwrap();
    bench.engine.remove_container(&running.spec.id, true).await.unwrap();
    assert_eq!(bench.engine.containers().await.unwrap().len(), 1);
    bench.engine.remove_sandbox(&sandbox).await.unwrap();
    bench.engine.remove_sandbox(&sandbox).await.unwrap();
    assert!(bench.engine.containers().await.unwrap().is_empty());
    bench.engine.purge().await.unwrap();
    drop(bench);
    assert_eq!(place.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_asks_first_and_kills_after_the_grace() {
    let place = Place::new();
    let bench = place.open().await;
    let sandbox = bench.sandbox().await;
    let polite = bench.script(&sandbox, "trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done");
    let stubborn = bench.script(&sandbox, "trap '' TERM; while :; do sleep 0.05; done");
    let (polite, stubborn) = (bench.start(polite).await, bench.start(stubborn).await);
    // The trap is set once `ready` is in the log.
    while !std::fs::read_to_string(&polite.log_path).unwrap().contains("ready") {
        tokio::task::yield_now().await;
    }
    let exit = bench.engine.stop_container(&polite.spec.id, Duration::from_secs(30)).await.unwrap();
    assert_eq!(exit.code, 3);
    let exit = bench.engine.stop_container(&stubborn.spec.id, Duration::from_millis(200)).await.unwrap();
    assert_eq!(exit.signal, 9);
    let again = bench.engine.stop_container(&stubborn.spec.id, Duration::from_secs(1)).await.unwrap();
    assert_eq!(again, exit);
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_that_cannot_run_say_why() {
    let place = Place::new();
    let bench = place.open().await;
    let sandbox = bench.sandbox().await;
    for (program, code, why) in [
        ("no-such-program", 127, "executable file not found in $PATH"),
        ("/no/such", 127, "no such file or directory"),
        ("/etc/noexec", 126, "permission denied"),
    ] {
        let spec = ContainerSpec { args: vec![program.to_owned()], ..bench.script(&sandbox, "") };
        let id = spec.id.clone();
        bench.engine.create_container(spec).await.unwrap();
        let error = bench.engine.start_container(&id).await.unwrap_err();
        assert!(error.message.contains(why), "{}", error.message);
        let ContainerState::Exited { started_at: None, exit } =
            bench.engine.container(&id).await.unwrap().state
        else {
            panic!("{program} counts as started")
        };
        assert_eq!(exit.code, code, "{}", exit.message);
    }
    let nobody = User { spec: "nobody".into(), ..User::default() };
    let spec = ContainerSpec { user: nobody, ..bench.script(&sandbox, "true") };
    let id = spec.id.clone();
    bench.engine.create_container(spec).await.unwrap();
    let error = bench.engine.start_container(&id).await.unwrap_err();
    assert!(error.message.contains("unable to find user nobody"), "{}", error.message);
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_are_executed_in_running_containers() {
    let place = Place::new();
    let bench = place.open().await;
    let sandbox = bench.sandbox().await;
    let app = User { spec: "app".into(), ..User::default() };
    let spec = ContainerSpec {
        user: app,
        env: vec!["A=1".into(), "B=1".into()],
        working_dir: "/made/here".into(),
        ..bench.script(&sandbox, "sleep 1000")
    };
    let running = bench.start(spec).await;
    let exec = |words: &[&str]| ExecSpec {
        command: words.iter().map(|word| (*word).to_owned()).collect(),
        ..ExecSpec::default()
    };
    let id = &running.spec.id;
    let script = "id -u; id -g; id -G; echo $A$B; pwd; echo problem >&2; exit 5";
    let process =
        bench.engine.exec(id, ExecSpec { env: vec!["B=2".into()], ..exec(&["sh", "-c", script]) }).await;
    let (exit, stdout, stderr) = outcome(process.unwrap()).await;
    assert_eq!(stdout, "1000\n1001\n1001 60\n12\n/made/here\n");
    assert_eq!((exit.code, stderr.as_str()), (5, "problem\n"));
    let process = bench.engine.exec(id, ExecSpec { user: "0:60".into(), ..exec(&["id"]) }).await.unwrap();
    assert_eq!(outcome(process).await.1, "uid=0(root) gid=60(web)\n");
    let error = bench.engine.exec(id, exec(&["no-such-program"])).await.err().unwrap();
    assert!(error.message.contains("executable file not found"), "{}", error.message);
    // Giving up on a process ends it.
    let process = bench.engine.exec(id, exec(&["sleep", "1000"])).await.unwrap();
    let pidfd = sys::process::Pidfd::open(process.pid).unwrap();
    drop(process);
    assert!(tokio::task::spawn_blocking(move || pidfd.wait(Duration::from_secs(20)).unwrap()).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_of_a_sandbox_share_network_and_shared_memory_but_not_processes() {
    let place = Place::new();
    let bench = place.open().await;
    let sandbox = bench.sandbox().await;
    let server = bench
        .script(&sandbox, "echo shared > /dev/shm/file; echo hello | nc -l -p 8080 127.0.0.1; sleep 1000");
    bench.start(server).await;
    let client = "until nc 127.0.0.1 8080 2>/dev/null </dev/null; do sleep 0.05; done; cat /dev/shm/file; ls /proc | grep -c '^[0-9]'";
    let (_, log) = bench.run(bench.script(&sandbox, client)).await;
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!(lines[..2], ["hello", "shared"]);
    assert!(lines[2].parse::<u32>().unwrap() <= 3, "{log}");
    let status = &bench.engine.sandboxes().await.unwrap()[0];
    assert!(std::path::Path::new(&status.netns_path).exists());
}
