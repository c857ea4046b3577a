//! Standard streams: attached clients, terminals, connections into a sandbox.

use futures::StreamExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{Subject, all, log_text, patiently, until};
use crate::{ContainerSpec, ExecSpec, TerminalSize};

pub async fn an_attached_client_misses_nothing(subject: Subject) {
    let sandbox = subject.sandbox().await;
    let spec = ContainerSpec {
        stdin: true,
        stdin_once: true,
        log_max_bytes: 100 << 20,
        ..subject.script(&sandbox, "cat; seq 200000; echo end >&2")
    };
    let id = spec.id.clone();
    let log_path = subject.runtime.create_container(spec).await.unwrap().log_path;
    let process = subject.runtime.attach(&id).await.unwrap();
    subject.runtime.start_container(&id).await.unwrap();
    let mut stdin = process.io.stdin.unwrap();
    let sent = "line\n".repeat(50_000);
    let writing = async {
        stdin.write_all(sent.as_bytes()).await.unwrap();
        stdin.shutdown().await.unwrap();
        drop(stdin);
    };
    let ((), stdout, stderr) = tokio::join!(writing, all(process.io.stdout), all(process.io.stderr));
    let expected: String = sent + &(1..=200_000).map(|number| format!("{number}\n")).collect::<String>();
    assert!(stdout == expected, "{} of {} bytes came", stdout.len(), expected.len());
    assert_eq!(stderr, "end\n");
    assert_eq!(process.exit.await.unwrap().unwrap().code, 0);
    let logged: String = log_text(&log_path)
        .lines()
        .filter(|line| *line != "end")
        .fold(String::new(), |text, line| text + line + "\n");
    assert!(logged == expected, "{} of {} bytes were logged", logged.len(), expected.len());
}

pub async fn terminals_work_for_containers_and_further_processes(subject: Subject) {
    let sandbox = subject.sandbox().await;
    let spec = ContainerSpec {
        terminal: true,
        stdin: true,
        args: vec!["sh".into()],
        ..subject.script(&sandbox, "")
    };
    let id = spec.id.clone();
    subject.runtime.create_container(spec).await.unwrap();
    let process = subject.runtime.attach(&id).await.unwrap();
    subject.runtime.resize_container(&id, TerminalSize { height: 31, width: 99 }).await.unwrap();
    subject.runtime.start_container(&id).await.unwrap();
    let (mut stdin, mut stdout) = (process.io.stdin.unwrap(), process.io.stdout.unwrap());
    stdin.write_all(b"stty size; tty\n").await.unwrap();
    let text = until(&mut stdout, "/dev/pts/").await;
    assert!(text.contains("31 99"), "{text}");
    let exec = ExecSpec { command: vec!["sh".into()], terminal: true, stdin: true, ..ExecSpec::default() };
    let exec = subject.runtime.exec(&id, exec).await.unwrap();
    exec.io.resize.send(TerminalSize { height: 20, width: 70 }).await.unwrap();
    let (mut exec_in, mut exec_out) = (exec.io.stdin.unwrap(), exec.io.stdout.unwrap());
    exec_in.write_all(b"until stty size | grep '20 70'; do :; done; echo $TERM; exit 4\n").await.unwrap();
    until(&mut exec_out, "xterm").await;
    while patiently(exec_out.next()).await.is_some() {}
    assert_eq!(exec.exit.await.unwrap().unwrap().code, 4);
    stdin.write_all(b"exit 9\n").await.unwrap();
    while patiently(stdout.next()).await.is_some() {}
    assert_eq!(process.exit.await.unwrap().unwrap().code, 9);
}

pub async fn an_exec_reads_standard_input_to_its_end(subject: Subject) {
    let sandbox = subject.sandbox().await;
    let running = subject.start(subject.script(&sandbox, "sleep 1000")).await;
    let exec =
        ExecSpec { command: ["wc", "-c"].map(str::to_owned).to_vec(), stdin: true, ..ExecSpec::default() };
    let process = subject.runtime.exec(&running.spec.id, exec).await.unwrap();
    let mut stdin = process.io.stdin.unwrap();
    stdin.write_all(&[b'x'; 300_000]).await.unwrap();
    drop(stdin);
    assert_eq!(all(process.io.stdout).await, "300000\n");
}

pub async fn connections_reach_into_the_sandbox(subject: Subject) {
    let sandbox = subject.sandbox().await;
    let mut events = subject.runtime.events().await;
    let running = subject.start(subject.script(&sandbox, "echo ready; nc -l -p 9000 -e cat")).await;
    let mut stream = loop {
        // `nc` needs a moment after its container has started.
        match subject.runtime.connect(&sandbox, 9000).await {
            Ok(stream) => break stream,
            Err(error) => assert!(error.message.contains("refused"), "{}", error.message),
        }
    };
    stream.write_all(b"there and back").await.unwrap();
    let mut back = [0; 14];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"there and back");
    drop(stream);
    subject.runtime.wait_container(&running.spec.id).await.unwrap();
    let mut kinds = Vec::new();
    while kinds.len() < 3 {
        kinds.push(format!("{:?}", events.next().await.unwrap().unwrap().kind));
    }
    assert!(kinds[0] == "Created" && kinds[1] == "Started" && kinds[2].starts_with("Exited"), "{kinds:?}");
}
