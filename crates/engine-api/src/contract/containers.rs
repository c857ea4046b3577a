//! Running, ending, executing, removing.

use std::time::Duration;

use futures::StreamExt as _;

use super::{PATIENCE, Subject, outcome, patiently, until};
use crate::{ContainerEventKind, ContainerSpec, ContainerState, ErrorKind, ExecSpec, SandboxState, User};

pub async fn containers_run_log_and_tell_how_they_ended(subject: Subject) {
    let sandbox = subject.sandbox().await;
    let (exit, log) = subject.run(subject.script(&sandbox, "echo out; echo err >&2; hostname; exit 7")).await;
    assert_eq!((exit.code, exit.signal, exit.oom_killed), (7, 0, false));
    let mut lines: Vec<&str> = log.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["err", "out", "pod"]);
    let (exit, _) = subject.run(subject.script(&sandbox, "kill -9 $$")).await;
    // PID 1 of its own namespace ignores signals from inside: the shell goes on and ends well.
    assert_eq!(exit.code, 0);
    let running = subject.start(subject.script(&sandbox, "sleep 1000")).await;
    subject.runtime.signal_container(&running.spec.id, 9).await.unwrap();
    let exit = subject.end(&running.spec.id).await;
    assert_eq!((exit.code, exit.signal), (137, 9));
}

pub async fn a_container_that_is_removed_is_gone(subject: Subject) {
    let sandbox = subject.sandbox().await;
    let running = subject.start(subject.script(&sandbox, "sleep 1000")).await;
    let made = subject.script(&sandbox, "true");
    subject.runtime.create_container(made.clone()).await.unwrap();
    assert_eq!(subject.runtime.create_container(made).await.unwrap_err().kind, ErrorKind::Conflict);
    let refused = subject.runtime.remove_container(&running.spec.id, false).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Conflict);
    subject.runtime.remove_container(&running.spec.id, true).await.unwrap();
    // Repeated by a caller that crashed meanwhile.
    subject.runtime.remove_container(&running.spec.id, true).await.unwrap();
    assert_eq!(subject.runtime.containers().await.unwrap().len(), 1);
    subject.runtime.stop_sandbox(&sandbox).await.unwrap();
    subject.runtime.stop_sandbox(&sandbox).await.unwrap();
    assert_eq!(subject.runtime.sandboxes().await.unwrap()[0].state, SandboxState::NotReady);
    subject.runtime.remove_sandbox(&sandbox).await.unwrap();
    subject.runtime.remove_sandbox(&sandbox).await.unwrap();
    assert!(subject.runtime.containers().await.unwrap().is_empty());
    assert!(subject.runtime.sandboxes().await.unwrap().is_empty());
}

pub async fn stopping_asks_first_and_kills_after_the_grace(subject: Subject) {
    let sandbox = subject.sandbox().await;
    let polite = subject.script(&sandbox, "trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done");
    let stubborn = subject.script(&sandbox, "trap '' TERM; while :; do sleep 0.05; done");
    // The trap is set once it says so.
    let (polite, _) = subject.start_until(polite, "ready").await;
    let stubborn = subject.start(stubborn).await;
    let exit = subject.runtime.stop_container(&polite.spec.id, PATIENCE).await.unwrap();
    assert_eq!(exit.code, 3);
    let exit = subject.runtime.stop_container(&stubborn.spec.id, Duration::from_millis(200)).await.unwrap();
    assert_eq!(exit.signal, 9);
    let again = subject.runtime.stop_container(&stubborn.spec.id, Duration::from_secs(1)).await.unwrap();
    assert_eq!(again, exit);
}

pub async fn a_sooner_end_hastens_a_stop_that_is_under_way(subject: Subject) {
    let sandbox = subject.sandbox().await;
    let script = "trap 'echo asked' TERM; echo ready; while :; do sleep 0.05; done";
    let hour = Duration::from_secs(3600);
    let sooner = Duration::from_millis(100);
    for (name, grace) in [("forced", Some(Duration::ZERO)), ("shortened", Some(sooner)), ("removed", None)] {
        let id = base::id::hex64();
        let spec = ContainerSpec { id: id.clone(), ..subject.script(&sandbox, script) };
        subject.runtime.create_container(spec).await.unwrap();
        let mut output = subject.runtime.attach(&id).await.unwrap().io.stdout.unwrap();
        subject.runtime.start_container(&id).await.unwrap();
        until(&mut output, "ready").await;
        let hasten = async {
            // The first stop is under way.
            until(&mut output, "asked").await;
            match grace {
                Some(grace) => drop(subject.runtime.stop_container(&id, grace).await.unwrap()),
                None => subject.runtime.remove_container(&id, true).await.unwrap(),
            }
        };
        let (first, ()) =
            patiently(async { tokio::join!(subject.runtime.stop_container(&id, hour), hasten) }).await;
        // Who asked first may find the container removed already.
        match first {
            Ok(exit) => assert_eq!(exit.signal, 9, "{name}"),
            Err(error) => assert_eq!((name, error.kind), ("removed", ErrorKind::NotFound)),
        }
    }
}

pub async fn a_group_without_a_user_keeps_the_image_s_user(subject: Subject) {
    let base = subject.images.resolve("busybox:test").await.unwrap().image;
    let config = format!(
        r#"{{"architecture":"{}","os":"linux","config":{{"User":"app"}},"rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
        base.architecture, base.diff_ids[0]
    );
    let archive = super::docker_archive(&config, &super::busybox(), "unprivileged:test");
    let archive = futures::stream::iter([Ok(archive.into())]).boxed();
    subject.images.load(archive).await.unwrap();
    let image = subject.images.resolve("unprivileged:test").await.unwrap().image;
    assert_eq!(image.config.user, "app");
    let sandbox = subject.sandbox().await;
    for (image_id, user, ids) in [
        (&image.id, "", "1000 1001\n"),
        (&image.id, ":2000", "1000 2000\n"),
        (&image.id, ":web", "1000 60\n"),
        (&image.id, "0:2000", "0 2000\n"),
        (&subject.image, ":2000", "0 2000\n"),
    ] {
        let user = User { spec: user.into(), must_not_be_root: ids.starts_with("1000"), ..User::default() };
        let spec = subject.script(&sandbox, "echo $(id -u) $(id -g)");
        let (_, log) = subject.run(ContainerSpec { user, image_id: image_id.clone(), ..spec }).await;
        assert_eq!(log, ids);
    }
    // The groups that the image puts its user into, unless nobody wants them.
    for (only_these_groups, groups) in [(false, "1001 60 7\n"), (true, "1001 7\n")] {
        let user = User { supplemental_groups: vec![7], only_these_groups, ..User::default() };
        let spec = subject.script(&sandbox, "id -G");
        let (_, log) = subject.run(ContainerSpec { user, image_id: image.id.clone(), ..spec }).await;
        let sorted = |text: &str| {
            let mut words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
            words.sort();
            words
        };
        assert_eq!(sorted(&log), sorted(groups));
    }
}

pub async fn programs_that_cannot_run_say_why(subject: Subject) {
    let sandbox = subject.sandbox().await;
    for (program, code, why) in [
        ("no-such-program", 127, "executable file not found in $PATH"),
        ("/no/such", 127, "no such file or directory"),
        ("/etc/noexec", 126, "permission denied"),
    ] {
        let spec = ContainerSpec { args: vec![program.to_owned()], ..subject.script(&sandbox, "") };
        let id = spec.id.clone();
        subject.runtime.create_container(spec).await.unwrap();
        let error = subject.runtime.start_container(&id).await.unwrap_err();
        assert!(error.message.contains(why), "{}", error.message);
        let ContainerState::Exited { started_at: None, exit } =
            subject.runtime.container(&id).await.unwrap().state
        else {
            panic!("{program} counts as started")
        };
        assert_eq!(exit.code, code, "{}", exit.message);
    }
    let nobody = User { spec: "nobody".into(), ..User::default() };
    let spec = ContainerSpec { user: nobody, ..subject.script(&sandbox, "true") };
    let id = spec.id.clone();
    subject.runtime.create_container(spec).await.unwrap();
    let error = subject.runtime.start_container(&id).await.unwrap_err();
    assert!(error.message.contains("unable to find user nobody"), "{}", error.message);
}

pub async fn processes_are_executed_in_running_containers(subject: Subject) {
    let sandbox = subject.sandbox().await;
    let app = User { spec: "app".into(), ..User::default() };
    let spec = ContainerSpec {
        user: app,
        env: vec!["A=1".into(), "B=1".into()],
        working_dir: "/made/here".into(),
        ..subject.script(&sandbox, "sleep 1000")
    };
    let running = subject.start(spec).await;
    let exec = |words: &[&str]| ExecSpec {
        command: words.iter().map(|word| (*word).to_owned()).collect(),
        ..ExecSpec::default()
    };
    let id = &running.spec.id;
    let script = "id -u; id -g; id -G; echo $A$B; pwd; echo problem >&2; exit 5";
    let process =
        subject.runtime.exec(id, ExecSpec { env: vec!["B=2".into()], ..exec(&["sh", "-c", script]) }).await;
    let (exit, stdout, stderr) = outcome(process.unwrap()).await;
    assert_eq!(stdout, "1000\n1001\n1001 60\n12\n/made/here\n");
    assert_eq!((exit.code, stderr.as_str()), (5, "problem\n"));
    let process = subject.runtime.exec(id, ExecSpec { user: "0:60".into(), ..exec(&["id"]) }).await.unwrap();
    assert_eq!(outcome(process).await.1, "uid=0(root) gid=60(web) groups=60(web)\n");
    let error = subject.runtime.exec(id, exec(&["no-such-program"])).await.err().unwrap();
    assert!(error.message.contains("executable file not found"), "{}", error.message);
    // Giving up on a process ends it.
    let process = subject.runtime.exec(id, exec(&["sleep", "4321"])).await.unwrap();
    drop(process);
    let gone = exec(&["sh", "-c", "while ps | grep -q 'sleep 432[1]'; do sleep 0.05; done"]);
    let gone = subject.runtime.exec(id, gone).await.unwrap();
    assert_eq!(outcome(gone).await.0.code, 0);
}

pub async fn a_container_runs_again(subject: Subject) {
    let sandbox = subject.sandbox().await;
    let spec = subject.script(&sandbox, "echo x >> /tmp/runs; wc -l < /tmp/runs");
    let (id, (first, _)) = (spec.id.clone(), subject.run(spec).await);
    assert_eq!(first.code, 0);
    let attached = subject.runtime.attach(&id).await.unwrap();
    let again = subject.runtime.start_container(&id).await.unwrap();
    let (second, output, _) = outcome(attached).await;
    assert_eq!((second.code, output.as_str()), (0, "2\n"));
    assert_eq!(super::log_text(&again.log_path), "1\n2\n", "file system and log go on");
}

pub async fn events_tell_a_container_s_life(subject: Subject) {
    let sandbox = subject.sandbox().await;
    let mut events = subject.runtime.events().await;
    let spec = subject.script(&sandbox, "exit 5");
    let id = spec.id.clone();
    subject.run(spec).await;
    subject.runtime.remove_container(&id, false).await.unwrap();
    let mut kinds = Vec::new();
    while kinds.last() != Some(&ContainerEventKind::Removed) {
        let event = patiently(events.next()).await.unwrap().unwrap();
        assert_eq!((&event.sandbox_id, &event.container_id), (&sandbox, &id));
        kinds.push(event.kind);
    }
    let [ContainerEventKind::Created, ContainerEventKind::Started, ContainerEventKind::Exited(exit), _] =
        &kinds[..]
    else {
        panic!("{kinds:?}")
    };
    assert_eq!(exit.code, 5);
}

pub async fn what_is_not_there_is_not_found(subject: Subject) {
    let (runtime, nobody) = (&subject.runtime, base::id::hex64());
    let errors = [
        runtime.container(&nobody).await.err(),
        runtime.start_container(&nobody).await.err(),
        runtime.stop_container(&nobody, Duration::ZERO).await.err(),
        runtime.signal_container(&nobody, 15).await.err(),
        runtime.wait_container(&nobody).await.err(),
        runtime.exec(&nobody, ExecSpec { command: vec!["true".into()], ..ExecSpec::default() }).await.err(),
        runtime.attach(&nobody).await.err(),
        runtime.stats(&nobody).await.err(),
        runtime.log_path(&nobody).await.err(),
        runtime.connect(&nobody, 80).await.err(),
        runtime.create_container(subject.script(&nobody, "true")).await.err(),
    ];
    for error in errors {
        assert_eq!(error.unwrap().kind, ErrorKind::NotFound);
    }
    let sandbox = subject.sandbox().await;
    let spec = ContainerSpec { id: "../escape".into(), ..subject.script(&sandbox, "true") };
    assert_eq!(runtime.create_container(spec).await.unwrap_err().kind, ErrorKind::Invalid);
    let image_id = format!("sha256:{nobody}");
    let spec = ContainerSpec { image_id, ..subject.script(&sandbox, "true") };
    assert_eq!(runtime.create_container(spec).await.unwrap_err().kind, ErrorKind::NotFound);
    assert!(runtime.containers().await.unwrap().is_empty());
}

pub async fn containers_of_a_sandbox_share_network_and_shared_memory_but_not_processes(subject: Subject) {
    let sandbox = subject.sandbox().await;
    let server = subject
        .script(&sandbox, "echo shared > /dev/shm/file; echo hello | nc -l -p 8080 127.0.0.1; sleep 1000");
    subject.start(server).await;
    let client = "until nc 127.0.0.1 8080 2>/dev/null </dev/null; do sleep 0.05; done; cat /dev/shm/file; ls /proc | grep -c '^[0-9]'";
    let (_, log) = subject.run(subject.script(&sandbox, client)).await;
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!(lines[..2], ["hello", "shared"]);
    assert!(lines[2].parse::<u32>().unwrap() <= 3, "{log}");
    let status = &subject.runtime.sandboxes().await.unwrap()[0];
    assert!(std::path::Path::new(&status.netns_path).exists());
}
