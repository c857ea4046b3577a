//! Whether a container's processes listen yet. A container without a readiness probe is ready once it runs, and a Service
//! sends requests to it from then on. Upstream's kubelet hears of a new process up to a second later, in which the process
//! has long begun to listen; here it is milliseconds, and the first requests would be refused. So the TCP ports that the
//! container names are looked for, for as long as upstream would take at most.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::time::Duration;

use base::clock::Clock;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Container;

/// After so long a container is ready whether it listens or not: twice upstream's period of relisting
/// (`genericPlegRelistPeriod`), for machines that are busy.
const PATIENCE: Duration = Duration::from_secs(2);
/// The first look comes after so long, each later one after twice the time: the kernel has no event for a new listener.
const FIRST_LOOK: Duration = Duration::from_millis(2);
/// Sockets of `/proc/net/tcp` in the state `TCP_LISTEN`.
const LISTEN: &str = "0A";

/// The TCP ports that a container without a readiness probe names.
pub(crate) fn expected(container: &Container) -> Vec<u16> {
    if container.readiness_probe.is_some() {
        return Vec::new();
    }
    let ports = container.ports.iter().flatten();
    let tcp = ports.filter(|port| port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP"));
    tcp.filter_map(|port| u16::try_from(port.container_port).ok()).collect()
}

/// Returns when each of `ports` is listened to in the network namespace of a process that started at `started_at`, when
/// the process is gone, or when patience is at its end.
pub(super) async fn until(clock: &dyn Clock, pid: u32, ports: &[u16], started_at: Timestamp) {
    let end = started_at.saturating_add(PATIENCE).unwrap_or(Timestamp::MAX);
    let mut pause = FIRST_LOOK;
    while clock.now() < end && !all(pid, ports) {
        let next = clock.now().saturating_add(pause).unwrap_or(Timestamp::MAX);
        clock.sleep_until(next.min(end)).await;
        pause *= 2;
    }
}

/// Whether each port is listened to; also true of a process that is gone.
fn all(pid: u32, ports: &[u16]) -> bool {
    let listening: std::io::Result<Vec<Vec<u16>>> =
        ["tcp", "tcp6"].into_iter().map(|table| read(format!("/proc/{pid}/net/{table}").into())).collect();
    listening
        .map_or(true, |tables| ports.iter().all(|port| tables.iter().flatten().any(|known| known == port)))
}

/// The local ports of the listening sockets of a table. The kernel shows these before all others, so that a host with
/// many connections is read no further. Without IPv6 its table is not there.
fn read(table: PathBuf) -> std::io::Result<Vec<u16>> {
    let file = match std::fs::File::open(&table) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && table.ends_with("tcp6") => {
            return Ok(Vec::new());
        }
        file => file?,
    };
    let mut ports = Vec::new();
    for line in BufReader::new(file).lines().skip(1) {
        match listener(&line?) {
            Some(port) => ports.push(port),
            None => break,
        }
    }
    Ok(ports)
}

/// The port of a line like `0: 00000000:0050 00000000:0000 0A …`; `None` for what does not listen.
fn listener(line: &str) -> Option<u16> {
    let mut words = line.split_whitespace().skip(1);
    let (_, port) = words.next()?.rsplit_once(':')?;
    (words.nth(1)? == LISTEN).then(|| u16::from_str_radix(port, 16).ok())?
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn lines_of_listeners_tell_their_port() {
        let line = "   0: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0";
        assert_eq!(listener(line), Some(80));
        assert_eq!(listener(&line.replace(" 0A ", " 01 ")), None);
        assert_eq!(listener("sl  local_address rem_address   st"), None);
    }

    #[test]
    fn a_port_is_listened_to_from_bind_to_close() {
        let own = std::process::id();
        let sockets = ["127.0.0.1:0", "0.0.0.0:0"].map(|address| TcpListener::bind(address).unwrap());
        let ports = sockets.each_ref().map(|socket| socket.local_addr().unwrap().port());
        assert!(all(own, &ports));
        let [first, _second] = sockets;
        drop(first);
        assert!(!all(own, &ports));
        assert!(all(u32::MAX, &ports), "nobody waits for a process that is gone");
    }

    #[test]
    fn what_has_a_readiness_probe_is_not_looked_at() {
        let container = |more: serde_json::Value| -> Container {
            let mut container = serde_json::json!({"name": "a", "ports": [
                {"containerPort": 80}, {"containerPort": 53, "protocol": "UDP"}, {"containerPort": 443, "protocol": "TCP"},
            ]});
            container.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap());
            serde_json::from_value(container).unwrap()
        };
        assert_eq!(expected(&container(serde_json::json!({}))), [80, 443]);
        let probe = serde_json::json!({"readinessProbe": {"tcpSocket": {"port": 80}}});
        assert_eq!(expected(&container(probe)), [0; 0]);
    }
}
