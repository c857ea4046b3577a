//! The testbed itself: hosts reach each other and nobody else, reboot, and leave nothing. Needs root.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use testbed::Testbed;

/// Tells the test below that it is the child, which is to be killed.
const CHILD: &str = "SKIFF_TESTBED_CHILD";

#[test]
fn hosts_reach_each_other_and_nothing_leaves() {
    let bed = Testbed::new().unwrap();
    let (one, mut two) = (bed.host().unwrap(), bed.host().unwrap());
    assert_eq!(one.sh("hostname").unwrap().ok().unwrap().trim(), one.name);
    one.sh(&format!("ping -c1 -W2 {}", two.address)).unwrap().ok().unwrap();
    assert_eq!(bed.leaked_packets().unwrap(), 0);
    // An address that nobody has is counted at the switch and goes no further.
    assert_ne!(one.sh("ping -c1 -W1 198.51.100.7").unwrap().code, 0);
    assert_eq!(bed.leaked_packets().unwrap(), 1);
    assert!(bed.leaks().unwrap().contains("198.51.100.7 . icmp"), "{}", bed.leaks().unwrap());
    // So is who asks the switch itself, who asks for a neighbour that is not there, and who tries IPv6.
    for (line, seen) in [
        ("ping -c1 -W1 198.18.0.1", "198.18.0.1 . icmp"),
        ("ping -c1 -W1 198.18.0.200", "198.18.0.200"),
        ("ip -6 addr add 2001:db8::2/64 dev eth0 nodad && ping -c1 -W1 2001:db8::7", "ff02::1:ff00:7"),
    ] {
        let before = bed.leaked_packets().unwrap();
        assert_ne!(one.sh(line).unwrap().code, 0);
        let leaks = bed.leaks().unwrap();
        assert!(bed.leaked_packets().unwrap() > before && leaks.contains(seen), "{line}: {leaks}");
    }

    let boot_id = two.sh("cat /proc/sys/kernel/random/boot_id").unwrap().ok().unwrap();
    two.sh("echo kept > /var/lib/$SKIFF_NAME/file; sleep 1000 >/dev/null 2>&1 & exit 0")
        .unwrap()
        .ok()
        .unwrap();
    let before = two.pid();
    two.reboot().unwrap();
    bed.connect(&two).unwrap();
    assert!(!std::path::Path::new(&format!("/proc/{before}/ns")).exists());
    assert_ne!(two.sh("cat /proc/sys/kernel/random/boot_id").unwrap().ok().unwrap(), boot_id);
    assert_eq!(two.sh("cat /var/lib/$SKIFF_NAME/file").unwrap().ok().unwrap(), "kept\n");
    one.sh(&format!("ping -c1 -W2 {}", two.address)).unwrap().ok().unwrap();
    assert_eq!(two.processes().unwrap(), Vec::<String>::new());
}

#[test]
fn what_a_killed_test_left_is_removed_by_the_next() {
    if std::env::var_os(CHILD).is_some() {
        be_killed();
    }
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["what_a_killed_test_left_is_removed_by_the_next", "--exact", "--nocapture"])
        .env(CHILD, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let said = lines.find_map(|line| line.split_once("host ").map(|(_, host)| host.to_owned())).unwrap();
    let (name, directory) = said.split_once(' ').unwrap();
    let left = [Path::new(directory).to_owned(), Path::new("/var/lib").join(name)];
    let there = |paths: &[PathBuf]| paths.iter().filter(|path| path.exists()).count();

    // A living testbed is left alone.
    drop(Testbed::new().unwrap());
    assert_eq!(there(&left), 2, "{said}");
    let cgroups = cgroups_of(name);
    assert!(!cgroups.is_empty());
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!((there(&left), cgroups_of(name)), (2, cgroups), "{said}: nobody cleans up after a kill");
    let _bed = Testbed::new().unwrap();
    assert_eq!((there(&left), cgroups_of(name)), (0, Vec::new()), "{said}");
    assert!(!Path::new(directory).parent().unwrap().exists());
}

/// Makes a host with a cgroup in every hierarchy, in which a process runs, says its name and directory, and waits.
fn be_killed() -> ! {
    let bed = Testbed::new().unwrap();
    let host = bed.host().unwrap();
    host.must_sh(
        "for all in /sys/fs/cgroup/cgroup.procs /sys/fs/cgroup/*/cgroup.procs; do \
             [ -e $all ] || continue; own=${all%/*}/$SKIFF_NAME; mkdir -p $own/part; \
             case $all in */cpuset/*) continue ;; esac; \
             sleep 1000 >/dev/null 2>&1 & echo $! >$own/part/cgroup.procs; done; exit 0",
    );
    println!("host {} {}", host.name, host.directory().display());
    loop {
        std::thread::park();
    }
}

/// The cgroups of a host, as the machine sees them.
fn cgroups_of(name: &str) -> Vec<PathBuf> {
    let hierarchies = std::fs::read_dir("/sys/fs/cgroup").unwrap().map(|entry| entry.unwrap().path());
    let all = hierarchies.chain([PathBuf::from("/sys/fs/cgroup")]).map(|hierarchy| hierarchy.join(name));
    all.filter(|own| own.is_dir()).collect()
}
