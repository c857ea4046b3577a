//! The switch that connects hosts, and the counter of what tried to leave.

use std::process::{Child, Command};
use std::sync::atomic::{AtomicU8, Ordering};

use anyhow::{Context, Result, ensure};

use crate::directory::BedDirectory;
use crate::host::Host;
use crate::tools::{hold, run};

/// The switch's own hardware address, to which everything goes that leaves by a default route.
const MAC: &str = "02:00:c6:12:00:01";

/// What leaves a host, though it should not, counted where frames enter the switch: what goes to the switch itself,
/// whoever it is meant for; questions for an address that no host ever had; and IPv6, which is not there, but for what
/// a kernel says on each link of its own. What hosts send each other passes.
const LEAKS: [&str; 11] = [
    "nft add table bridge leak",
    "nft add set bridge leak hosts { type ipv4_addr ; }",
    "nft add set bridge leak seen { type ipv4_addr . inet_proto . inet_service ; flags dynamic ; }",
    "nft add set bridge leak asked { type ipv4_addr ; flags dynamic ; }",
    "nft add set bridge leak seen6 { type ipv6_addr . inet_proto ; flags dynamic ; }",
    "nft add chain bridge leak pre { type filter hook prerouting priority -300 ; }",
    "nft add rule bridge leak pre ether type ip ether daddr 02:00:c6:12:00:01 \
     add @seen { ip daddr . meta l4proto . th dport } counter drop",
    "nft add rule bridge leak pre arp operation request arp daddr ip != 198.18.0.1 arp daddr ip != @hosts \
     add @asked { arp daddr ip } counter drop",
    // 0x3fa: the target begins as link-local addresses do, fe80::/10.
    "nft add rule bridge leak pre icmpv6 type nd-neighbor-solicit @th,64,10 0x3fa accept",
    "nft add rule bridge leak pre icmpv6 type { mld2-listener-report, mld-listener-report, mld-listener-done, \
     nd-router-solicit } accept",
    "nft add rule bridge leak pre ether type ip6 add @seen6 { ip6 daddr . meta l4proto } counter drop",
];

/// Some hosts and the switch between them. Dropping it ends all of them.
pub struct Testbed {
    id: String,
    switch: Child,
    next: AtomicU8,
    directory: BedDirectory,
}

impl Testbed {
    /// A switch without hosts. Needs root.
    pub fn new() -> Result<Self> {
        let directory = BedDirectory::new()?;
        let id = base::id::suffix(4);
        // No process namespace for the switch: it runs nothing.
        let switch = hold(&["--net"])?;
        let bed = Self { id, switch, next: AtomicU8::new(2), directory };
        bed.wire(&[
            "ip link set lo up",
            &format!("ip link add br0 address {MAC} type bridge"),
            "ip addr add 198.18.0.1/24 dev br0",
            "ip link set br0 up",
            "sysctl -qw net.ipv4.ip_forward=0",
        ])?;
        bed.wire(&LEAKS)?;
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
        let host = Host::start(name, format!("198.18.0.{number}"), directory, self.switch.id())?;
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

    /// How many packets left a host for somewhere else than another host: none should.
    pub fn leaked_packets(&self) -> Result<u64> {
        let text = run(self.inside().args(["nft", "-j", "list", "chain", "bridge", "leak", "pre"]))?;
        let rules: serde_json::Value = serde_json::from_str(&text).context("nft's listing")?;
        let rules = rules["nftables"].as_array().into_iter().flatten();
        let exprs = rules.filter_map(|item| item["rule"]["expr"].as_array()).flatten();
        let counters: Vec<u64> = exprs.filter_map(|expr| expr["counter"]["packets"].as_u64()).collect();
        ensure!(counters.len() == 3, "the leak counters are not there: {text}");
        Ok(counters.iter().sum())
    }

    /// Where those packets wanted to go, in the words of nft: for a failing test.
    pub fn leaks(&self) -> Result<String> {
        run(self.inside().args(["nft", "list", "table", "bridge", "leak"]))
    }
}

impl Drop for Testbed {
    fn drop(&mut self) {
        let _ = self.switch.kill();
        let _ = self.switch.wait();
    }
}
