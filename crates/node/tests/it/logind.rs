//! A stand-in for logind on a real message bus: `dbus-daemon` of Debian, with a configuration of its own.

#[allow(dead_code, reason = "the node's own, used from the other side")]
#[path = "../../src/shutdown/bus.rs"]
mod bus;
#[path = "../../src/shutdown/wire.rs"]
mod wire;

use std::io::BufRead as _;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bus::Bus;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use wire::{Kind, Message, Value};

const NAME: &str = "org.freedesktop.login1";

/// A bus of a test's own.
pub(crate) struct Daemon {
    child: Child,
    pub(crate) socket: PathBuf,
}

impl Daemon {
    /// Starts one; `None` where this machine has no `dbus-daemon`.
    pub(crate) fn start(directory: &Path) -> Option<Self> {
        let (socket, config) = (directory.join("bus"), directory.join("bus.conf"));
        let text = format!(
            "<busconfig><type>system</type><listen>unix:path={}</listen><auth>EXTERNAL</auth><policy context=\"default\">\
             <allow send_destination=\"*\" eavesdrop=\"true\"/><allow receive_sender=\"*\"/><allow own=\"*\"/>\
             <allow user=\"*\"/></policy></busconfig>",
            socket.display()
        );
        std::fs::write(&config, text).unwrap();
        let mut command = Command::new("dbus-daemon");
        command.args(["--nofork", "--nopidfile", "--nosyslog", "--print-address=1"]);
        command.arg(format!("--config-file={}", config.display())).stdout(Stdio::piped());
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
            Err(error) => panic!("{error}"),
        };
        // It listens when it says where.
        let mut line = String::new();
        std::io::BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Some(Self { child, socket })
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Who answers as logind.
pub(crate) struct Logind {
    bus: Bus,
    waits: Duration,
    /// The other end of the lock that was given.
    lock: Option<pipe::Receiver>,
}

impl Logind {
    /// Is there on the bus, and waits so long for others.
    pub(crate) async fn on(daemon: &Daemon, waits: Duration) -> Self {
        let mut bus = Bus::connect(&daemon.socket).await.unwrap();
        let own = "org.freedesktop.DBus";
        let name = [Value::Text(NAME.to_owned()), Value::Count(0)];
        bus.call(own, "/org/freedesktop/DBus", own, "RequestName", &name).await.unwrap();
        Self { bus, waits, lock: None }
    }

    /// Answers until somebody holds a lock and knows how long logind waits.
    pub(crate) async fn until_held(&mut self) {
        self.answer_until(false).await;
    }

    /// Answers until somebody holds a lock.
    pub(crate) async fn until_held_again(&mut self) {
        self.answer_until(true).await;
    }

    async fn answer_until(&mut self, mut told: bool) {
        while self.lock.is_none() || !told {
            let call = self.bus.next().await.unwrap();
            match (call.kind, call.member.as_str()) {
                (Kind::Call, "Inhibit") => {
                    let words =
                        call.body.iter().map(|word| format!("{word:?}")).collect::<Vec<_>>().join(" ");
                    assert!(words.contains("\"shutdown\"") && words.ends_with("Text(\"delay\")"), "{words}");
                    let (sender, receiver) = pipe::pipe().unwrap();
                    let answer = Message { body: vec![Value::Fd(0)], fds: 1, ..answer(&call) };
                    self.bus.send(answer, false, Some(sender.as_fd())).await.unwrap();
                    self.lock = Some(receiver);
                }
                (Kind::Call, "Get") => {
                    let waits = u64::try_from(self.waits.as_micros()).unwrap();
                    let answer = Message { body: vec![Value::Number(waits)], ..answer(&call) };
                    self.bus.send(answer, true, None).await.unwrap();
                    told = true;
                }
                _ => {}
            }
        }
    }

    /// Tells everybody that the machine goes down, or that it does not.
    pub(crate) async fn goes_down(&mut self, down: bool) {
        let signal = Message {
            kind: Kind::Signal,
            path: "/org/freedesktop/login1".to_owned(),
            interface: "org.freedesktop.login1.Manager".to_owned(),
            member: "PrepareForShutdown".to_owned(),
            body: vec![Value::Bool(down)],
            ..Message::default()
        };
        self.bus.send(signal, false, None).await.unwrap();
    }

    /// Returns when the lock was given back.
    pub(crate) async fn until_released(&mut self) {
        let read = self.lock.take().unwrap().read(&mut [0]).await;
        assert_eq!(read.unwrap(), 0);
    }
}

fn answer(call: &Message) -> Message {
    Message {
        kind: Kind::Answer,
        answers: Some(call.serial),
        destination: call.sender.clone(),
        ..Message::default()
    }
}
