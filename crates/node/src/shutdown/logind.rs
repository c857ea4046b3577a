//! What the node asks of systemd's logind: to wait when the machine is to go down, and to say when that is.
//! Source: `org.freedesktop.login1`(5), systemd's "Inhibitor Locks"; `pkg/kubelet/nodeshutdown/systemd`.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use super::bus::Bus;
use super::wire::{Kind, Message, Value};

/// Where buses listen. Source: the D-Bus Specification, "Well-known Message Bus Instances".
pub(super) const SYSTEM_BUS: &str = "/run/dbus/system_bus_socket";
pub(super) const NAME: &str = "org.freedesktop.login1";
pub(super) const PATH: &str = "/org/freedesktop/login1";
pub(super) const MANAGER: &str = "org.freedesktop.login1.Manager";
pub(super) const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
pub(super) const PREPARE: &str = "PrepareForShutdown";

/// A connection to logind, and the lock for which it waits.
pub(super) struct Logind {
    bus: Bus,
    /// Closed, it lets the machine go down.
    lock: Option<OwnedFd>,
}

impl Logind {
    /// Connects, and asks to be told.
    pub(super) async fn connect(bus: &Path) -> io::Result<Self> {
        let mut bus = Bus::connect(bus).await?;
        let rule =
            format!("type='signal',sender='{NAME}',interface='{MANAGER}',member='{PREPARE}',path='{PATH}'");
        bus.watch(&rule).await?;
        let mut logind = Self { bus, lock: None };
        logind.hold().await?;
        Ok(logind)
    }

    /// How long it waits at most for those who hold a lock.
    pub(super) async fn waits(&mut self) -> io::Result<Duration> {
        let asked = [MANAGER, "InhibitDelayMaxUSec"].map(|word| Value::Text(word.to_owned()));
        let answer = self.bus.call(NAME, PATH, PROPERTIES, "Get", &asked).await?;
        match answer.body.first() {
            Some(Value::Number(microseconds)) => Ok(Duration::from_micros(*microseconds)),
            _ => Err(io::Error::other("logind does not say how long it waits")),
        }
    }

    /// Takes the lock.
    pub(super) async fn hold(&mut self) -> io::Result<()> {
        let words = ["shutdown", "skiff", "Skiff needs time to handle node shutdown", "delay"];
        let words = words.map(|word| Value::Text(word.to_owned()));
        self.bus.call(NAME, PATH, MANAGER, "Inhibit", &words).await?;
        let lock = self.bus.take_fd();
        self.lock = Some(lock.ok_or_else(|| io::Error::other("logind gives no lock"))?);
        Ok(())
    }

    /// Lets the machine go down.
    pub(super) fn release(&mut self) {
        self.lock = None;
    }

    /// Returns when the machine is to go down (`true`), or is not any more. Cancel safe.
    pub(super) async fn told(&mut self) -> io::Result<bool> {
        loop {
            if let Some(down) = says(&self.bus.next().await?) {
                return Ok(down);
            }
        }
    }
}

fn says(message: &Message) -> Option<bool> {
    let of_logind = message.kind == Kind::Signal && message.interface == MANAGER && message.member == PREPARE;
    match message.body.first() {
        Some(Value::Bool(down)) if of_logind => Some(*down),
        _ => None,
    }
}
