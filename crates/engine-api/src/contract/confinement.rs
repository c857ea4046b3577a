//! What containers may not do, and what they are held to.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::{Subject, outcome};
use crate::{
    ContainerSpec, Device, ExecSpec, Identity, Mount, MountPropagation, MountSource, Resources, Rlimit,
    SandboxSpec, Security, Stats, User,
};

pub async fn the_default_profile_confines_first_and_further_processes(subject: Subject) {
    let sandbox = subject.sandbox().await;
    let script = "grep -E '^(Seccomp|CapEff|NoNewPrivs):' /proc/self/status; unshare -U true 2>&1; mount -t tmpfs x /tmp 2>&1; \
                  echo x 2>&1 > /proc/sys/kernel/hostname; head -c1 /proc/kcore | wc -c; cat /sys/firmware/* 2>/dev/null | wc -c";
    let first = subject.script(&sandbox, &format!("{script}; echo all; sleep 1000"));
    let (running, first) = subject.start_until(first, "all\n").await;
    let exec = ExecSpec { command: ["sh", "-c", script].map(str::to_owned).to_vec(), ..ExecSpec::default() };
    let (_, stdout, _) = outcome(subject.runtime.exec(&running.spec.id, exec).await.unwrap()).await;
    for text in [&first, &stdout] {
        assert!(text.contains("Seccomp:\t2"), "{text}");
        assert!(text.contains("CapEff:\t00000000a80425fb"), "{text}");
        assert!(text.contains("NoNewPrivs:\t0"), "{text}");
        assert!(text.contains("unshare: unshare(0x10000000): Operation not permitted"), "{text}");
        assert!(text.contains("mount: permission denied"), "{text}");
        assert!(text.lines().filter(|line| *line == "0").count() == 2, "{text}");
    }
}

pub async fn security_settings_hold(subject: Subject) {
    let sandbox = subject.sandbox().await;
    let with =
        |security: Security, script: &str| ContainerSpec { security, ..subject.script(&sandbox, script) };
    let none =
        Security { drop_capabilities: vec!["ALL".into()], no_new_privileges: true, ..Security::default() };
    let (_, log) = subject.run(with(none, "grep -E '^(CapBnd|NoNewPrivs|Seccomp):' /proc/self/status")).await;
    assert_eq!(log, "CapBnd:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n");
    let read_only = Security { read_only_rootfs: true, ..Security::default() };
    let (exit, log) = subject.run(with(read_only, "touch /file 2>&1")).await;
    assert!(exit.code != 0 && log.contains("Read-only file system"), "{log}");
    let privileged = Security { privileged: true, ..Security::default() };
    let (exit, log) =
        subject.run(with(privileged, "mount -t tmpfs x /tmp && grep Seccomp: /proc/self/status")).await;
    assert_eq!((exit.code, log.as_str()), (0, "Seccomp:\t0\n"));
}

pub async fn only_the_default_devices_can_be_used(subject: Subject) {
    let sandbox = subject.sandbox().await;
    // A node of the kernel's log can be made and not be read.
    let script = "echo x > /dev/null && head -c 1 /dev/zero | wc -c; mknod /dev/probe c 1 11 && head -c 1 /dev/probe 2>&1";
    let (_, log) = subject.run(subject.script(&sandbox, script)).await;
    assert!(log.starts_with("1\n") && log.contains("Operation not permitted"), "{log}");
    let privileged = Security { privileged: true, ..Security::default() };
    let script = "mknod /dev/probe c 1 11 && exec 3< /dev/probe && echo opened";
    let spec = ContainerSpec { security: privileged, ..subject.script(&sandbox, script) };
    let (_, log) = subject.run(spec).await;
    assert_eq!(log, "opened\n");
}

/// A device of this host that no container has by default.
fn a_device() -> PathBuf {
    let nodes = ["/dev/loop-control", "/dev/fuse", "/dev/net/tun", "/dev/kmsg"];
    nodes.into_iter().map(PathBuf::from).find(|node| node.exists()).unwrap()
}

pub async fn a_device_that_is_given_can_be_used(subject: Subject) {
    let sandbox = subject.sandbox().await;
    let host = a_device();
    let given = |host: &Path, path: &str, access: &str| Device {
        host: host.to_owned(),
        path: path.into(),
        access: access.to_owned(),
    };
    let devices = vec![given(&host, "/dev/given", "r"), given(&host, "/srv/given", "r")];
    let script = "exec 3< /dev/given && exec 4< /srv/given && echo opened; exec 5> /dev/given";
    let (_, log) = subject.run(ContainerSpec { devices, ..subject.script(&sandbox, script) }).await;
    assert!(log.starts_with("opened\n") && log.contains("not permitted"), "{log}");
    let devices = vec![given(Path::new("/dev/null/none"), "/dev/given", "r")];
    let spec = ContainerSpec { devices, ..subject.script(&sandbox, "true") };
    let id = subject.runtime.create_container(spec).await.unwrap().spec.id;
    let error = subject.runtime.start_container(&id).await.unwrap_err().to_string();
    assert!(error.contains("device /dev/null/none"), "{error}");
}

pub async fn devices_that_are_mounted_are_the_hosts(subject: Subject) {
    let sandbox = subject.sandbox().await;
    let listed = || {
        let names = std::fs::read_dir("/dev").unwrap().map(|entry| entry.unwrap().file_name());
        // Those come and go with others' tests.
        names.filter(|name| !name.to_string_lossy().starts_with("loop")).collect::<BTreeSet<_>>()
    };
    let before = listed();
    let privileged = Security { privileged: true, ..Security::default() };
    let bind = |path: &Path| Mount {
        source: MountSource::Bind(path.to_owned()),
        target: path.to_owned(),
        read_only: false,
        recursive_read_only: false,
        propagation: MountPropagation::HostToContainer,
    };
    // All of them, as drivers of volumes want it: with the sandbox's own memory to share, not the host's.
    let script = "ls -a /dev; echo x > /dev/shm/own && echo written; : > /dev/null && echo nothing";
    let spec = ContainerSpec {
        security: privileged.clone(),
        mounts: vec![bind(Path::new("/dev"))],
        ..subject.script(&sandbox, script)
    };
    let (_, log) = subject.run(spec).await;
    assert!(log.ends_with("written\nnothing\n"), "{log}");
    let seen: BTreeSet<_> = log.lines().map(OsString::from).collect();
    assert!(before.iter().all(|name| seen.contains(name)), "{log}");
    assert_eq!(before, listed());
    assert!(!Path::new("/dev/shm/own").exists());
    // And one of them, beside all that a privileged container has.
    let node = a_device();
    let script = &format!("test -c {} && echo there", node.display());
    let spec = ContainerSpec {
        security: privileged.clone(),
        mounts: vec![bind(&node)],
        ..subject.script(&sandbox, script)
    };
    assert_eq!(subject.run(spec).await.1, "there\n");
    let given = Device { host: node.clone(), path: node.clone(), access: "r".to_owned() };
    let spec =
        ContainerSpec { security: privileged, devices: vec![given], ..subject.script(&sandbox, script) };
    assert_eq!(subject.run(spec).await.1, "there\n");
}

pub async fn who_a_container_runs_as_is_told(subject: Subject) {
    let sandbox = subject.sandbox().await;
    let user = User { spec: "1000:3000".to_owned(), supplemental_groups: vec![4000], ..User::default() };
    let spec =
        ContainerSpec { user, ..subject.script(&sandbox, "grep ^Groups: /proc/self/status; sleep 1000") };
    let (running, groups) = subject.start_until(spec, "\n").await;
    let told = subject.runtime.container(&running.spec.id).await.unwrap().identity;
    assert_eq!(groups.split_whitespace().collect::<Vec<_>>(), ["Groups:", "3000", "4000"]);
    assert_eq!(told, Some(Identity { uid: 1000, gid: 3000, groups: vec![3000, 4000] }));
}

pub async fn limits_are_set_and_kills_for_memory_are_told(subject: Subject) {
    let sandbox = subject.sandbox().await;
    let resources = Resources {
        memory_limit_bytes: Some(32 << 20),
        swap_limit_bytes: Some(0),
        pids_limit: Some(40),
        cpu_quota_us: Some(50_000),
        cpu_period_us: Some(100_000),
        oom_score_adj: Some(500),
        ..Resources::default()
    };
    let read = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/cpu/cpu.cfs_quota_us \
                /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max 2>/dev/null; cat /proc/self/oom_score_adj; \
                echo swap $(cat /sys/fs/cgroup/memory/memory.memsw.limit_in_bytes /sys/fs/cgroup/memory.swap.max 2>/dev/null); echo all; sleep 1000";
    let spec = ContainerSpec { resources: resources.clone(), ..subject.script(&sandbox, read) };
    let (running, limits) = subject.start_until(spec, "all\n").await;
    assert_eq!(limits.lines().filter(|line| ["33554432", "40", "500"].contains(line)).count(), 3, "{limits}");
    // With memory, or alone; nothing where the kernel does not account for swap.
    let swap = limits.lines().find_map(|line| line.strip_prefix("swap")).unwrap().trim();
    assert!(["33554432", "0", ""].contains(&swap), "{limits}");
    let Stats { pids, memory_usage_bytes, .. } = subject.runtime.stats(&running.spec.id).await.unwrap();
    assert!(pids >= 1 && memory_usage_bytes > 0);
    let more = Resources { memory_limit_bytes: Some(64 << 20), ..resources.clone() };
    subject.runtime.update_resources(&running.spec.id, more).await.unwrap();
    let command = ["sh", "-c", read].map(|word| word.replace("; sleep 1000", "")).to_vec();
    let exec = ExecSpec { command, ..ExecSpec::default() };
    let (_, limits, _) = outcome(subject.runtime.exec(&running.spec.id, exec).await.unwrap()).await;
    assert!(limits.starts_with("67108864\n"), "{limits}");
    let hungry = "x=$(yes | head -c 100000000)";
    let spec = ContainerSpec { resources, ..subject.script(&sandbox, hungry) };
    let (exit, _) = subject.run(spec).await;
    assert!(exit.oom_killed, "{exit:?}");
}

/// It is not in the contract's list: no engine has been asked yet.
pub async fn cpus_are_those_that_were_given_also_while_a_container_runs(subject: Subject) {
    if std::thread::available_parallelism().is_ok_and(|count| count.get() < 2) {
        return;
    }
    let sandbox = subject.sandbox().await;
    let read = "cat /sys/fs/cgroup/cpuset/cpuset.cpus /sys/fs/cgroup/cpuset.cpus 2>/dev/null; \
                grep Cpus_allowed_list /proc/self/status; echo all";
    let resources =
        Resources { cpuset_cpus: Some("1".to_owned()), cpu_shares: Some(512), ..Resources::default() };
    let spec = ContainerSpec { resources, ..subject.script(&sandbox, &format!("{read}; sleep 1000")) };
    let (running, told) = subject.start_until(spec, "all\n").await;
    // A host without the controller says so in a warning, and lets it run.
    let has_controller = told.starts_with('1');
    for cpus in ["0", "0-1"] {
        // What is not said stays.
        let more = Resources { cpuset_cpus: Some(cpus.to_owned()), ..Resources::default() };
        subject.runtime.update_resources(&running.spec.id, more).await.unwrap();
        let has = subject.runtime.container(&running.spec.id).await.unwrap().spec.resources;
        assert_eq!((has.cpuset_cpus.as_deref(), has.cpu_shares), (Some(cpus), Some(512)));
        let exec =
            ExecSpec { command: ["sh", "-c", read].map(str::to_owned).to_vec(), ..ExecSpec::default() };
        let (_, told, _) = outcome(subject.runtime.exec(&running.spec.id, exec).await.unwrap()).await;
        let wanted = format!("{cpus}\nCpus_allowed_list:\t{cpus}\nall\n");
        assert!(!has_controller || told == wanted, "{told}");
    }
}

pub async fn limits_of_a_group_hold_for_all_that_is_in_it(subject: Subject) {
    let memory = |bytes: i64| Resources { memory_limit_bytes: Some(bytes), ..Resources::default() };
    let group = format!("group/{}", &base::id::hex64()[..8]);
    let spec = SandboxSpec {
        cgroup_parent: group.clone(),
        parent_resources: Some(memory(32 << 20)),
        ..SandboxSpec::default()
    };
    let sandbox = subject.sandbox_from(spec).await;
    let hungry = || subject.script(&sandbox, "x=$(yes | head -c 100000000)");
    let (exit, _) = subject.run(hungry()).await;
    assert!(exit.oom_killed, "{exit:?}");
    subject.runtime.limit_group(&group, memory(1 << 30)).await.unwrap();
    let (exit, _) = subject.run(hungry()).await;
    assert!(!exit.oom_killed && exit.code == 0, "{exit:?}");
    // What is not there has no limits, and nothing outside can be named.
    subject.runtime.limit_group("group/absent", memory(1 << 20)).await.unwrap();
    assert!(subject.runtime.limit_group("../../elsewhere", memory(1 << 20)).await.is_err());
}

pub async fn limits_of_a_group_take_the_place_of_its_sandboxes_own(subject: Subject) {
    let group = format!("group/{}", &base::id::hex64()[..8]);
    let limits = |bytes: i64, quota: i64| Resources {
        memory_limit_bytes: Some(bytes),
        cpu_quota_us: Some(quota),
        cpu_period_us: Some(100_000),
        ..Resources::default()
    };
    let spec = SandboxSpec {
        cgroup_parent: group.clone(),
        resources: Resources {
            pids_limit: Some(1000),
            swap_limit_bytes: Some(0),
            ..limits(32 << 20, 90_000)
        },
        ..SandboxSpec::default()
    };
    let sandbox = subject.sandbox_from(spec).await;
    let hungry = || subject.script(&sandbox, "x=$(yes | head -c 100000000)");
    let (exit, _) = subject.run(hungry()).await;
    assert!(exit.oom_killed, "{exit:?}");
    // More memory than the sandbox has, and less time.
    subject.runtime.limit_group(&group, limits(1 << 30, 80_000)).await.unwrap();
    let (exit, _) = subject.run(hungry()).await;
    assert!(!exit.oom_killed && exit.code == 0, "{exit:?}");
    subject.runtime.limit_group(&group, limits(32 << 20, 80_000)).await.unwrap();
    let (exit, _) = subject.run(hungry()).await;
    assert!(exit.oom_killed, "{exit:?}");
}

pub async fn a_shared_pid_namespace_has_an_init_without_rights(subject: Subject) {
    let sandbox = subject.sandbox_from(SandboxSpec { share_pid: true, ..SandboxSpec::default() }).await;
    let other = subject.script(&sandbox, "echo ready; exec sleep 1234");
    let (other, _) = subject.start_until(other, "ready").await;
    let script = "grep -E '^(Name|CapEff|CapBnd):' /proc/1/status; ls /proc/1/root/ 2>&1; until ps | grep 'sleep 123[4]'; do :; done; \
                  (sleep 0.01 &) ; echo $$";
    let (_, log) = subject.run(subject.script(&sandbox, script)).await;
    assert!(log.contains("Name:\tskiff-init") && log.contains("CapEff:\t0000000000000000"), "{log}");
    assert!(log.contains("CapBnd:\t0000000000000000") && log.contains("Permission denied"), "{log}");
    assert!(log.contains("sleep 1234"), "the other container's process is seen: {log}");
    let exit = subject.runtime.stop_container(&other.spec.id, std::time::Duration::ZERO).await.unwrap();
    assert_eq!(exit.signal, 9);
}

pub async fn kernel_parameters_of_the_sandbox_are_set_and_the_hosts_refused(subject: Subject) {
    let sysctls = [("net.ipv4.ip_unprivileged_port_start".to_owned(), "80".to_owned())].into();
    let sandbox = subject.sandbox_from(SandboxSpec { sysctls, ..SandboxSpec::default() }).await;
    let (_, log) =
        subject.run(subject.script(&sandbox, "cat /proc/sys/net/ipv4/ip_unprivileged_port_start")).await;
    assert_eq!(log, "80\n");
    let sysctls = [("net.ipv4.no_such_thing".to_owned(), "1".to_owned())].into();
    let spec = SandboxSpec { id: base::id::hex64(), sysctls, ..SandboxSpec::default() };
    let error = subject.runtime.create_sandbox(spec).await.unwrap_err();
    assert!(error.message.contains("net.ipv4.no_such_thing"), "{}", error.message);
    assert_eq!(subject.runtime.sandboxes().await.unwrap().len(), 1);
}

pub async fn a_mount_on_a_link_to_nowhere_is_where_the_link_leads(subject: Subject) {
    let sandbox = subject.sandbox().await;
    let of_host = std::fs::read_to_string("/etc/passwd").unwrap();
    let script = "readlink /etc/dangling; cat /etc/dangling; cmp /etc/dangling /run/deep/file";
    let mut spec = subject.script(&sandbox, script);
    spec.mounts.push(Mount {
        source: MountSource::Bind("/etc/passwd".into()),
        target: "/etc/dangling".into(),
        read_only: true,
        recursive_read_only: false,
        propagation: MountPropagation::Private,
    });
    let (exit, log) = subject.run(spec).await;
    assert_eq!((exit.code, log), (0, format!("../run/deep/file\n{of_host}")));
}

pub async fn groups_limits_of_processes_and_temporary_file_systems_are_as_asked(subject: Subject) {
    let spec = SandboxSpec { shared_memory_bytes: 8 << 20, ..SandboxSpec::default() };
    let sandbox = subject.sandbox_from(spec).await;
    let script = "id -G; ulimit -n; ulimit -Hn; df -k /dev/shm | tail -n 1; \
                  grep ' /scratch ' /proc/mounts; stat -c %a /scratch; touch /sealed/x 2>&1";
    let mut spec = subject.script(&sandbox, script);
    spec.user.spec = "app".into();
    spec.user.groups = vec!["web".into(), "77".into()];
    spec.rlimits = vec![Rlimit { name: "nofile".into(), soft: 100, hard: 200 }];
    let tmpfs = |target: &str, read_only: bool, options: &[&str]| Mount {
        source: MountSource::Tmpfs {
            size_bytes: 1 << 20,
            options: options.iter().map(|option| (*option).to_owned()).collect(),
        },
        target: target.into(),
        read_only,
        recursive_read_only: false,
        propagation: MountPropagation::Private,
    };
    spec.mounts =
        vec![tmpfs("/scratch", false, &["noexec", "mode=700", "uid=1000"]), tmpfs("/sealed", true, &[])];
    let (_, log) = subject.run(spec).await;
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!(lines[..3], ["1001 60 77", "100", "200"], "{log}");
    assert_eq!(lines[3].split_whitespace().nth(1), Some("8192"), "{log}");
    for option in ["noexec", "nosuid", "nodev", "size=1024k", "mode=700"] {
        assert!(lines[4].contains(option), "{option} in {log}");
    }
    assert_eq!(lines[5], "700", "{log}");
    assert!(lines[6].contains("Read-only file system"), "{log}");
    let mut spec = subject.script(&sandbox, "true");
    spec.user.groups = vec!["no-such-group".into()];
    subject.runtime.create_container(spec.clone()).await.unwrap();
    let error = subject.runtime.start_container(&spec.id).await.unwrap_err();
    assert!(error.message.contains("unable to find group no-such-group"), "{}", error.message);
}
