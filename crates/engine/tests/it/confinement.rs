//! What containers may not do, and what they are held to.

use engine_api::{ContainerSpec, ExecSpec, Resources, Runtime, SandboxSpec, Security, Stats};

use crate::support::{Place, outcome};

#[tokio::test(flavor = "multi_thread")]
async fn the_default_profile_confines_first_and_further_processes() {
    let place = Place::new();
    let bench = place.open().await;
    let sandbox = bench.sandbox().await;
    let script = "grep -E '^(Seccomp|CapEff|NoNewPrivs):' /proc/self/status; unshare -U true 2>&1; mount -t tmpfs x /tmp 2>&1; \
                  echo x 2>&1 > /proc/sys/kernel/hostname; head -c1 /proc/kcore | wc -c; cat /sys/firmware/* 2>/dev/null | wc -c";
    let running = bench.start(bench.script(&sandbox, &format!("{script}; sleep 1000"))).await;
    let exec = ExecSpec { command: ["sh", "-c", script].map(str::to_owned).to_vec(), ..ExecSpec::default() };
    let (_, stdout, _) = outcome(bench.engine.exec(&running.spec.id, exec).await.unwrap()).await;
    bench.engine.stop_container(&running.spec.id, std::time::Duration::ZERO).await.unwrap();
    let log = crate::support::log_text(&running.log_path);
    for text in [&log, &stdout] {
        assert!(text.contains("Seccomp:\t2"), "{text}");
        assert!(text.contains("CapEff:\t00000000a80425fb"), "{text}");
        assert!(text.contains("NoNewPrivs:\t0"), "{text}");
        assert!(text.contains("unshare: unshare(0x10000000): Operation not permitted"), "{text}");
        assert!(text.contains("mount: permission denied"), "{text}");
        assert!(text.lines().filter(|line| *line == "0").count() == 2, "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn security_settings_hold() {
    let place = Place::new();
    let bench = place.open().await;
    let sandbox = bench.sandbox().await;
    let with =
        |security: Security, script: &str| ContainerSpec { security, ..bench.script(&sandbox, script) };
    let none =
        Security { drop_capabilities: vec!["ALL".into()], no_new_privileges: true, ..Security::default() };
    let (_, log) = bench.run(with(none, "grep -E '^(CapBnd|NoNewPrivs|Seccomp):' /proc/self/status")).await;
    assert_eq!(log, "CapBnd:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n");
    let read_only = Security { read_only_rootfs: true, ..Security::default() };
    let (exit, log) = bench.run(with(read_only, "touch /file 2>&1")).await;
    assert!(exit.code != 0 && log.contains("Read-only file system"), "{log}");
    let privileged = Security { privileged: true, ..Security::default() };
    let (exit, log) =
        bench.run(with(privileged, "mount -t tmpfs x /tmp && grep Seccomp: /proc/self/status")).await;
    assert_eq!((exit.code, log.as_str()), (0, "Seccomp:\t0\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_set_and_kills_for_memory_are_told() {
    let place = Place::new();
    let bench = place.open().await;
    let sandbox = bench.sandbox().await;
    let resources = Resources {
        memory_limit_bytes: Some(32 << 20),
        pids_limit: Some(40),
        cpu_quota_us: Some(50_000),
        cpu_period_us: Some(100_000),
        oom_score_adj: Some(500),
        ..Resources::default()
    };
    let read = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/cpu/cpu.cfs_quota_us \
                /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max 2>/dev/null; cat /proc/self/oom_score_adj; sleep 1000";
    let spec = ContainerSpec { resources: resources.clone(), ..bench.script(&sandbox, read) };
    let running = bench.start(spec).await;
    let Stats { pids, memory_usage_bytes, .. } = bench.engine.stats(&running.spec.id).await.unwrap();
    assert!(pids >= 1 && memory_usage_bytes > 0);
    let more = Resources { memory_limit_bytes: Some(64 << 20), ..resources.clone() };
    bench.engine.update_resources(&running.spec.id, more).await.unwrap();
    let hungry = "x=$(yes | head -c 100000000)";
    let spec = ContainerSpec { resources, ..bench.script(&sandbox, hungry) };
    let (exit, _) = bench.run(spec).await;
    assert!(exit.oom_killed, "{exit:?}");
    bench.engine.stop_container(&running.spec.id, std::time::Duration::ZERO).await.unwrap();
    let log = crate::support::log_text(&running.log_path);
    assert!(log.contains("33554432") && log.contains("40") && log.contains("500"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shared_pid_namespace_has_an_init_without_rights() {
    let place = Place::new();
    let bench = place.open().await;
    let sandbox = bench.sandbox_from(SandboxSpec { share_pid: true, ..SandboxSpec::default() }).await;
    let other = bench.start(bench.script(&sandbox, "exec sleep 1234")).await;
    let script = "grep -E '^(Name|CapEff|CapBnd):' /proc/1/status; ls /proc/1/root/ 2>&1; ps | grep -c 'sleep 123[4]'; \
                  (sleep 0.01 &) ; echo $$";
    let (_, log) = bench.run(bench.script(&sandbox, script)).await;
    assert!(log.contains("Name:\tskiff-init") && log.contains("CapEff:\t0000000000000000"), "{log}");
    assert!(log.contains("CapBnd:\t0000000000000000") && log.contains("Permission denied"), "{log}");
    assert!(log.lines().any(|line| line == "1"), "the other container's process is seen: {log}");
    let engine = &bench.engine;
    let exit = engine.stop_container(&other.spec.id, std::time::Duration::ZERO).await.unwrap();
    assert_eq!(exit.signal, 9);
}

#[tokio::test(flavor = "multi_thread")]
async fn kernel_parameters_of_the_sandbox_are_set_and_the_hosts_refused() {
    let place = Place::new();
    let bench = place.open().await;
    let sysctls = [("net.ipv4.ip_unprivileged_port_start".to_owned(), "80".to_owned())].into();
    let sandbox = bench.sandbox_from(SandboxSpec { sysctls, ..SandboxSpec::default() }).await;
    let (_, log) =
        bench.run(bench.script(&sandbox, "cat /proc/sys/net/ipv4/ip_unprivileged_port_start")).await;
    assert_eq!(log, "80\n");
    let sysctls = [("net.ipv4.no_such_thing".to_owned(), "1".to_owned())].into();
    let spec = SandboxSpec { id: base::id::hex64(), sysctls, ..SandboxSpec::default() };
    let error = bench.engine.create_sandbox(spec).await.unwrap_err();
    assert!(error.message.contains("net.ipv4.no_such_thing"), "{}", error.message);
    assert_eq!(bench.engine.sandboxes().await.unwrap().len(), 1);
}
