//! The switch that connects hosts, and the counter of what tried to leave.

use std::process::{Child, Command};
use std::sync::atomic::{AtomicU8, Ordering};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::host::Host;
use crate::tools::{hold, run};

/// Some hosts and the switch between them. Dropping it ends all of them.
pub struct Testbed {
    id: String,
    switch: Child,
    next: AtomicU8,
    directory: TempDir,
}

impl Testbed {
    /// A switch without hosts. Needs root.
    pub fn new() -> Result<Self> {
        let id = base::id::suffix(4);
        // No process namespace for the switch: it runs nothing.
        let switch = hold(&["--net"])?;
        let bed =
            Self { id, switch, next: AtomicU8::new(2), directory: TempDir::with_prefix("skiff-testbed-")? };
        bed.wire(&[
            "ip link set lo up",
            "ip link add br0 type bridge",
            "ip addr add 198.18.0.1/24 dev br0",
            "ip link set br0 up",
            "sysctl -qw net.ipv4.ip_forward=0",
            // The counter is for what is routed: traffic between hosts is the switch's own business.
            "sysctl -qw -e net.bridge.bridge-nf-call-iptables=0",
            // Whatever is not meant for the testbed's own hosts has left its host by the default route: count it.
            "nft add table ip leak",
            "nft add chain ip leak pre { type filter hook prerouting priority -300 ; }",
            "nft add set ip leak seen { type ipv4_addr . inet_proto . inet_service ; flags dynamic ; }",
            "nft add rule ip leak pre ip daddr != { 198.18.0.0/24, 224.0.0.0/4, 255.255.255.255 } \
             add @seen { ip daddr . meta l4proto . th dport }",
            "nft add rule ip leak pre ip daddr != { 198.18.0.0/24, 224.0.0.0/4, 255.255.255.255 } counter drop",
        ])?;
        Ok(bed)
    }

    fn wire(&self, commands: &[&str]) -> Result<()> {
        for command in commands {
            run(self.inside().args(command.split_ascii_whitespace()))?;
        }
        Ok(())
    }

    /// A command in the switch's network.
    fn inside(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.switch.id().to_string(), "--net", "--"]);
        command
    }

    /// A new host at the next address, with a default route to the switch.
    pub fn host(&self) -> Result<Host> {
        let number = self.next.fetch_add(1, Ordering::SeqCst);
        ensure!(number < 250, "a testbed has at most 248 hosts");
        let name = format!("t{}{number}", self.id);
        let directory = self.directory.path().join(&name);
        let host = Host::start(name, format!("198.18.0.{number}"), directory)?;
        self.connect(&host)?;
        Ok(host)
    }

    /// Wires a host (again, after its reboot) to the switch.
    pub fn connect(&self, host: &Host) -> Result<()> {
        let port = format!("p-{}", host.name);
        let (switch, guest) = (self.switch.id().to_string(), host.pid().to_string());
        // The same hardware address after a reboot, as a real machine has it: neighbours' caches stay right.
        let number: u8 = host.address.rsplit('.').next().and_then(|last| last.parse().ok()).unwrap_or(0);
        let mac = format!("02:00:c6:12:00:{number:02x}");
        // The pair is born inside the switch's namespace: the machine's own never sees it.
        self.wire(&[
            &format!("ip link add {port} type veth peer name eth0 address {mac} netns {guest}"),
            &format!("ip link set {port} master br0 up"),
        ])
        .with_context(|| format!("wire host {} to the switch in process {switch}", host.name))?;
        host.set_address(&host.address)?;
        Ok(())
    }

    /// How many packets left a host by its default route: none should.
    pub fn leaked_packets(&self) -> Result<u64> {
        let text = run(self.inside().args(["nft", "-j", "list", "chain", "ip", "leak", "pre"]))?;
        let rules: serde_json::Value = serde_json::from_str(&text).context("nft's listing")?;
        let counters = rules["nftables"].as_array().into_iter().flatten();
        let counters = counters.filter_map(|item| item["rule"]["expr"].as_array()).flatten();
        counters
            .filter_map(|expr| expr["counter"]["packets"].as_u64())
            .next()
            .context("the leak counter is not there")
    }

    /// Where those packets wanted to go, as `address . protocol . port` in the words of nft: for a failing test.
    pub fn leaks(&self) -> Result<String> {
        run(self.inside().args(["nft", "list", "set", "ip", "leak", "seen"]))
    }
}

impl Drop for Testbed {
    fn drop(&mut self) {
        let _ = self.switch.kill();
        let _ = self.switch.wait();
    }
}
