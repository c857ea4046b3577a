//! One host: namespaces held by a first process, directories of its own, and commands run inside.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context, Result, bail};

use crate::directory::{remove_cgroups, remove_mount_point};
use crate::tools::{cgroup_directories, first_child, hold, kubectl, run, skiff_binary};

/// How each kind of trace is listed. Addresses and routes of the host's own links change by the test's own hand; files
/// elsewhere are found by the instance's name.
const TRACES: [(&str, &str); 9] = [
    ("mounts", "cut -d' ' -f4- /proc/1/mountinfo | sed 's/ master:[0-9]*\\| shared:[0-9]*//g' | sort"),
    // Beside those of the host itself, which change at its reboot.
    (
        "namespaces",
        "readlink /proc/[0-9]*/ns/* 2>/dev/null | sort -u | grep -vxF \"$(readlink /proc/1/ns/*)\"; true",
    ),
    ("tables", "nft list tables"),
    ("links", "ip -o link | cut -d: -f2 | cut -d@ -f1 | sort"),
    ("routes", "ip route show table all | grep -vE 'dev (lo|eth0)' | sort"),
    ("rules", "ip rule"),
    ("sysctls", "grep -rs '' /proc/sys/net --exclude=nf_conntrack_count --exclude=nf_conntrack_max | sort"),
    ("running system", "find /run | sort"),
    (
        "files",
        "ls -A /var/lib/$SKIFF_NAME; find /etc /tmp /var /dev/shm /usr/local -xdev -name \"*$SKIFF_NAME*\" \
         -not -path '/tmp/skiff-testbed-*' -not -path /var/lib/$SKIFF_NAME 2>/dev/null | sort; \
         grep -l $SKIFF_NAME $HOME/.kube/config 2>/dev/null; true",
    ),
];

/// A host. Dropping it ends every process on it and removes its cgroups.
pub struct Host {
    /// Its name, which is also the name of its Skiff instance.
    pub name: String,
    /// Its address on the switch.
    pub address: String,
    directory: PathBuf,
    /// The process that holds the switch's network.
    switch: u32,
    holder: Child,
    init: u32,
}

/// What a command printed and how it ended.
#[derive(Debug, Clone)]
pub struct Ran {
    /// Exit code; -1 where a signal ended it.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Ran {
    /// The output of a command that has to succeed.
    pub fn ok(self) -> Result<String> {
        if self.code == 0 { Ok(self.out) } else { bail!("exit code {}: {}{}", self.code, self.out, self.err) }
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Host {
    pub(crate) fn start(name: String, address: String, directory: PathBuf, switch: u32) -> Result<Self> {
        for part in ["data", "home"] {
            fs::create_dir_all(directory.join(part))?;
        }
        let (holder, init) = boot(&name, &directory)?;
        Ok(Self { name, address, directory, switch, holder, init })
    }

    /// The host's first process, as the machine sees it.
    pub fn pid(&self) -> u32 {
        self.init
    }

    /// A directory of this host that survives its reboot; `/var/lib/<name>` is `data` in it.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Sets the address of `eth0` and the default route. The switch knows it before anybody asks for it.
    pub(crate) fn set_address(&self, address: &str) -> Result<()> {
        let known = format!("add element bridge leak hosts {{ {address} }}");
        run(Command::new("nsenter").args([
            "--target",
            &self.switch.to_string(),
            "--net",
            "--",
            "nft",
            &known,
        ]))?;
        for command in [
            "ip link set lo up".to_owned(),
            "ip addr flush dev eth0".to_owned(),
            format!("ip addr add {address}/24 dev eth0"),
            "ip link set eth0 up".to_owned(),
            "ip route replace default via 198.18.0.1".to_owned(),
        ] {
            run(self.command("sh").args(["-c", &command]))?;
        }
        Ok(())
    }

    /// Gives the host another address while it runs.
    pub fn change_address(&mut self, address: &str) -> Result<()> {
        address.clone_into(&mut self.address);
        self.set_address(address)
    }

    /// A command on the host, in its namespaces and with its own home directory.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args([
            "--target",
            &self.init.to_string(),
            "--net",
            "--mount",
            "--pid",
            "--uts",
            "--ipc",
            "--",
            program,
        ]);
        command
            .env("HOME", self.directory.join("home"))
            .env("SKIFF_NAME", &self.name)
            .env_remove("KUBECONFIG");
        command.stdin(Stdio::null());
        command
    }

    /// Runs a shell command line on the host.
    pub fn sh(&self, line: &str) -> Result<Ran> {
        Ok(self.command("sh").args(["-c", line]).output().context("run a shell on the host")?.into())
    }

    /// `skiff …` on the host, not started yet.
    pub fn skiff_command(&self, args: &[&str]) -> Result<Command> {
        let mut command = self.command(&skiff_binary()?.to_string_lossy());
        command.args(args);
        Ok(command)
    }

    /// Runs `skiff …` on the host.
    pub fn skiff(&self, args: &[&str]) -> Result<Ran> {
        Ok(self.skiff_command(args)?.output().context("run skiff")?.into())
    }

    /// `kubectl …` on the host, not started yet.
    pub fn kubectl_command(&self, args: &[&str]) -> Result<Command> {
        let mut command = self.command(&kubectl()?.to_string_lossy());
        command.args(args);
        Ok(command)
    }

    /// Runs `kubectl …` on the host.
    pub fn kubectl(&self, args: &[&str]) -> Result<Ran> {
        Ok(self.kubectl_command(args)?.output().context("run kubectl")?.into())
    }

    /// Runs `skiff …`, which has to succeed: its standard output. Panics with what it said otherwise.
    #[track_caller]
    pub fn must_skiff(&self, args: &[&str]) -> String {
        self.skiff(args).and_then(Ran::ok).unwrap_or_else(|error| panic!("skiff {args:?}: {error:#}"))
    }

    /// Runs `kubectl …`, which has to succeed: its standard output. Panics with what it said otherwise.
    #[track_caller]
    pub fn must_kubectl(&self, args: &[&str]) -> String {
        self.kubectl(args).and_then(Ran::ok).unwrap_or_else(|error| panic!("kubectl {args:?}: {error:#}"))
    }

    /// Runs a shell command line, which has to succeed: its standard output. Panics with what it said otherwise.
    #[track_caller]
    pub fn must_sh(&self, line: &str) -> String {
        self.sh(line).and_then(Ran::ok).unwrap_or_else(|error| panic!("{line}: {error:#}"))
    }

    /// Power failure and reboot: every process, mount and namespace goes at once, the boot id changes, directories
    /// stay. The caller connects the host to its switch again.
    pub fn reboot(&mut self) -> Result<()> {
        self.end();
        let (holder, init) = boot(&self.name, &self.directory)?;
        self.holder = holder;
        self.init = init;
        Ok(())
    }

    /// Processes on the host beside its first one, as `pid command`.
    pub fn processes(&self) -> Result<Vec<String>> {
        let listing = self.sh("ps -eo pid=,args=")?.ok()?;
        let own = |line: &&str| {
            !line.contains("ps -eo")
                && !line.trim_start().starts_with("1 ")
                && !line.contains("sleep infinity")
        };
        Ok(listing.lines().filter(own).map(|line| line.trim().to_owned()).collect())
    }

    /// The host's cgroups that are still there, in every hierarchy.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        cgroup_directories(&self.name)
    }

    /// What an instance could leave on the host, by what it is. Equal before `skiff up` and after `skiff down --purge`.
    pub fn traces(&self) -> Result<BTreeMap<&'static str, String>> {
        let mut traces = BTreeMap::from([
            ("processes", self.processes()?.join("\n")),
            ("cgroups", self.cgroups().iter().map(|path| path.display().to_string() + "\n").collect()),
        ]);
        for (what, line) in TRACES {
            traces.insert(what, self.sh(line)?.ok().with_context(|| format!("list {what}"))?);
        }
        Ok(traces)
    }

    /// Panics with the differences unless the host is as it was.
    #[track_caller]
    pub fn must_be_as(&self, before: &BTreeMap<&'static str, String>) {
        let after = self.traces().unwrap_or_else(|error| panic!("{error:#}"));
        let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
        for (what, now) in &after {
            let (then, now) = (lines(&before[what]), lines(now));
            let more: Vec<_> = now.iter().filter(|line| !then.contains(line)).collect();
            let less: Vec<_> = then.iter().filter(|line| !now.contains(line)).collect();
            assert!(more.is_empty() && less.is_empty(), "{what}: left behind {more:#?}, lost {less:#?}");
        }
    }

    fn end(&mut self) {
        // The first process takes its whole process namespace with it, and that the mounts and the network.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
        // The holder has gone before its namespace: the first process's end is what frees the cgroups.
        let _ = Command::new("tail").args(["--pid", &self.init.to_string(), "-f", "/dev/null"]).status();
        remove_cgroups(&self.name);
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.end();
        remove_mount_point(&self.name);
    }
}

/// Starts the first process and lays out the host's directories.
fn boot(name: &str, directory: &Path) -> Result<(Child, u32)> {
    let holder =
        hold(&["--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc"])?;
    let init = first_child(holder.id())?;
    let boot_id = directory.join("boot_id");
    fs::write(&boot_id, base::id::uuid() + "\n")?;
    let data = directory.join("data");
    // No resolver: a name outside of the cluster is asked of nobody.
    let resolv_conf = directory.join("resolv.conf");
    fs::write(&resolv_conf, "")?;
    // A second /proc with nothing over it: where none is whole, the kernel lets no user namespace mount another.
    let proc = directory.join("proc");
    // A fresh sysfs shows the host's own network devices; the cgroup hierarchies are carried over from the machine's.
    let layout = format!(
        "set -e; hostname {name}; mount -t tmpfs tmpfs /run; mkdir -p /var/lib/{name}; \
         mount --bind {data} /var/lib/{name}; mount --bind {boot_id} /proc/sys/kernel/random/boot_id; \
         mkdir -p {proc}; mount -t proc proc {proc}; \
         mkdir /run/cgroup; mount --rbind /sys/fs/cgroup /run/cgroup; mount -t sysfs sysfs /sys; \
         mount --rbind /run/cgroup /sys/fs/cgroup; umount -l /run/cgroup; rmdir /run/cgroup; \
         if [ -e /etc/resolv.conf ]; then mount --bind {resolv_conf} /etc/resolv.conf; fi",
        resolv_conf = resolv_conf.display(),
        data = data.display(),
        proc = proc.display(),
        boot_id = boot_id.display(),
    );
    let mut command = Command::new("nsenter");
    command.args([
        "--target",
        &init.to_string(),
        "--net",
        "--mount",
        "--pid",
        "--uts",
        "--ipc",
        "--",
        "sh",
        "-c",
        &layout,
    ]);
    run(&mut command).with_context(|| format!("lay out host {name}"))?;
    Ok((holder, init))
}
