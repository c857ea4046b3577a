//! Containers: their life, what they are given, what they use, what is told of them.

use cri::proto::*;
use tonic::Code;

use crate::world::{World, code, map, script, with};

fn stop(id: &str, timeout: i64) -> StopContainerRequest {
    StopContainerRequest { container_id: id.into(), timeout }
}

fn remove(id: &str) -> RemoveContainerRequest {
    RemoveContainerRequest { container_id: id.into() }
}

fn start(id: &str) -> StartContainerRequest {
    StartContainerRequest { container_id: id.into() }
}

#[tokio::test]
async fn a_container_lives_from_creation_to_removal() {
    with(async |mut world: World| {
        let pod = world.run_pod(world.pod("a")).await;
        let config = script("c", "echo said; sleep 1000");
        let id = world.create(&pod, config.clone()).await.unwrap();
        let status = world.status(&id).await;
        assert_eq!(status.state(), ContainerState::ContainerCreated);
        assert_eq!(
            (status.metadata.clone(), status.labels.clone()),
            (config.metadata.clone(), config.labels.clone())
        );
        assert_eq!(status.image.unwrap().image, "docker.io/library/busybox:test");
        assert!(status.image_id.starts_with("sha256:"));
        assert_eq!(code(world.create(&pod, config).await), Code::AlreadyExists);

        world.runtime.start_container(start(&id)).await.unwrap();
        let status = world.status(&id).await;
        assert_eq!(status.state(), ContainerState::ContainerRunning);
        assert!(status.started_at >= status.created_at);
        assert_eq!(code(world.runtime.start_container(start(&id)).await), Code::FailedPrecondition);
        world.runtime.stop_container(stop(&id, 0)).await.unwrap();
        world.runtime.stop_container(stop(&id, 0)).await.unwrap();
        let status = world.status(&id).await;
        assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 137));
        assert_eq!(status.reason, "Error");
        let log = std::fs::read_to_string(&status.log_path).unwrap();
        assert!(status.log_path.ends_with("logs/a/c/0.log") && log.ends_with(" stdout F said\n"), "{log}");
        assert_eq!(code(world.runtime.start_container(start(&id)).await), Code::FailedPrecondition);

        world.runtime.remove_container(remove(&id)).await.unwrap();
        world.runtime.remove_container(remove(&id)).await.unwrap();
        world.runtime.stop_container(stop(&id, 0)).await.unwrap();
        let gone = ContainerStatusRequest { container_id: id, verbose: false };
        assert_eq!(code(world.runtime.container_status(gone).await), Code::NotFound);
        let running = world.start(&pod, script("c", "sleep 1000")).await;
        world.runtime.remove_container(remove(&running)).await.unwrap();
        world
    })
    .await;
}

#[tokio::test]
async fn ends_are_told_with_their_reasons() {
    with(async |mut world: World| {
        let pod = world.run_pod(world.pod("a")).await;
        let id = world.start(&pod, script("fails", "exit 3")).await;
        let status = world.ended(&id).await;
        assert_eq!((status.exit_code, status.reason.as_str()), (3, "Error"));
        let id = world.start(&pod, script("ends", "exit 0")).await;
        assert_eq!(world.ended(&id).await.reason, "Completed");
        let missing = ContainerConfig { command: vec!["/none".into()], ..script("missing", "") };
        let id = world.create(&pod, missing).await.unwrap();
        assert_eq!(code(world.runtime.start_container(start(&id)).await), Code::InvalidArgument);
        let status = world.status(&id).await;
        assert_eq!((status.state(), status.reason.as_str()), (ContainerState::ContainerExited, "StartError"));
        let image = ContainerConfig {
            image: Some(ImageSpec { image: "none:1".into(), ..Default::default() }),
            ..script("n", "")
        };
        assert_eq!(code(world.create(&pod, image).await), Code::NotFound);
        assert_eq!(code(world.create("none", script("n", "")).await), Code::NotFound);
        world
    })
    .await;
}

#[tokio::test]
async fn containers_get_what_they_ask_for() {
    with(async |mut world: World| {
        let mut config = world.pod("a");
        config.dns_config = Some(DnsConfig {
            servers: vec!["10.1.2.3".into()],
            searches: vec!["x.example".into()],
            options: vec!["ndots:3".into()],
        });
        let pod = world.run_pod(config).await;
        let host = world.logs.join("made/by/the/mount");
        let context = LinuxContainerSecurityContext {
            run_as_user: Some(Int64Value { value: 1000 }),
            run_as_group: Some(Int64Value { value: 7 }),
            supplemental_groups: vec![8],
            supplemental_groups_policy: SupplementalGroupsPolicy::Strict as i32,
            no_new_privs: true,
            readonly_rootfs: true,
            capabilities: Some(Capability { drop_capabilities: vec!["ALL".into()], ..Default::default() }),
            masked_paths: vec!["/etc/passwd".into()],
            readonly_paths: vec!["/mnt".into()],
            seccomp: Some(SecurityProfile::default()),
            ..LinuxContainerSecurityContext::default()
        };
        let resources = LinuxContainerResources { memory_limit_in_bytes: 64 << 20, ..Default::default() };
        let mount = Mount {
            container_path: "/mnt".into(),
            host_path: host.to_string_lossy().into_owned(),
            ..Mount::default()
        };
        let container = ContainerConfig {
            envs: vec![KeyValue { key: "GREETING".into(), value: b"hello=you".to_vec() }],
            working_dir: "/tmp".into(),
            mounts: vec![mount.clone()],
            linux: Some(LinuxContainerConfig { resources: Some(resources), security_context: Some(context) }),
            stop_signal: Signal::Sigusr1 as i32,
            ..script("c", "sleep 1000")
        };
        let id = world.start(&pod, container).await;
        let mut says = async |command: &str| {
            let answer = world.exec(&id, command).await;
            String::from_utf8([answer.stdout, answer.stderr].concat()).unwrap()
        };
        assert_eq!(says("echo $GREETING; pwd; hostname; cat /etc/hostname").await, "hello=you\n/tmp\na\na\n");
        assert_eq!(
            says("cat /etc/resolv.conf").await,
            "search x.example\nnameserver 10.1.2.3\noptions ndots:3\n"
        );
        assert!(says("cat /etc/hosts").await.contains("10.9.0.2\ta\n"));
        assert_eq!(says("id -u; id -g; id -G").await, "1000\n7\n7 8\n");
        assert_eq!(says("grep -E 'NoNewPrivs|Seccomp:|CapEff' /proc/self/status | wc -l").await, "3\n");
        assert_eq!(says("grep NoNewPrivs /proc/self/status").await, "NoNewPrivs:\t1\n");
        assert_eq!(says("grep Seccomp: /proc/self/status").await, "Seccomp:\t2\n");
        assert_eq!(says("cat /etc/passwd").await, "", "masked paths are empty");
        assert!(says("touch /x").await.contains("Read-only file system"));
        assert!(says("touch /mnt/x").await.contains("Read-only file system"), "asked for as read-only");
        assert!(host.is_dir());
        let status = world.status(&id).await;
        assert_eq!((status.mounts, status.stop_signal), (vec![mount], Signal::Sigusr1 as i32));
        assert_eq!(status.resources.unwrap().linux.unwrap().memory_limit_in_bytes, 64 << 20);

        let linux = LinuxContainerResources { memory_limit_in_bytes: 96 << 20, ..Default::default() };
        let update = UpdateContainerResourcesRequest {
            container_id: id.clone(),
            linux: Some(linux),
            ..Default::default()
        };
        world.runtime.update_container_resources(update).await.unwrap();
        let linux = world.status(&id).await.resources.unwrap().linux.unwrap();
        assert_eq!(linux.memory_limit_in_bytes, 96 << 20);
        let update = UpdatePodSandboxResourcesRequest { pod_sandbox_id: pod, ..Default::default() };
        world.runtime.update_pod_sandbox_resources(update).await.unwrap();
        world
    })
    .await;
}

#[tokio::test]
async fn containers_share_what_the_sandbox_says() {
    with(async |mut world: World| {
        let mut shared = world.pod("shared");
        shared.linux = None;
        let pod = world.run_pod(shared).await;
        let id = world.start(&pod, script("c", "sleep 1000")).await;
        assert_ne!(world.exec(&id, "cat /proc/1/cmdline | head -c 5").await.stdout, b"sleep");
        let own = world.run_pod(world.pod("own")).await;
        let target = world.start(&own, script("c", "sleep 1000")).await;
        let pid = NamespaceMode::Target as i32;
        let options = NamespaceOption { pid, target_id: target, ..NamespaceOption::default() };
        let context =
            LinuxContainerSecurityContext { namespace_options: Some(options), ..Default::default() };
        let linux = LinuxContainerConfig { security_context: Some(context), resources: None };
        let joined =
            world.start(&own, ContainerConfig { linux: Some(linux), ..script("d", "sleep 1000") }).await;
        let first = world.exec(&joined, "cat /proc/1/cmdline").await.stdout;
        assert_eq!(first, b"sleep\x001000\0");
        world
    })
    .await;
}

#[tokio::test]
async fn commands_run_at_once_are_bounded_in_time_and_output() {
    with(async |mut world: World| {
        let pod = world.run_pod(world.pod("a")).await;
        let id = world.start(&pod, script("c", "sleep 1000")).await;
        let answer = world.exec(&id, "echo out; echo err >&2; exit 5").await;
        assert_eq!(
            (answer.stdout.as_slice(), answer.stderr.as_slice(), answer.exit_code),
            (&b"out\n"[..], &b"err\n"[..], 5)
        );
        let much = world.exec(&id, "head -c 20000000 /dev/zero").await;
        assert_eq!((much.stdout.len(), much.exit_code), ((16 << 20) - 1024, 0));
        let exec = |id: &str, cmd: &[&str], timeout| ExecSyncRequest {
            container_id: id.into(),
            cmd: cmd.iter().map(|word| (*word).to_owned()).collect(),
            timeout,
        };
        let late = world.runtime.exec_sync(exec(&id, &["sleep", "2345"], 1)).await;
        assert_eq!(code(late), Code::DeadlineExceeded);
        let left = world.exec(&id, "ps | grep -c '[s]leep 2345'").await;
        assert_eq!(left.stdout, b"0\n", "the process is gone when that is said");
        assert_eq!(code(world.runtime.exec_sync(exec(&id, &[], 1)).await), Code::InvalidArgument);
        assert_eq!(code(world.runtime.exec_sync(exec("none", &["true"], 1)).await), Code::NotFound);
        world.runtime.stop_container(stop(&id, 0)).await.unwrap();
        assert_eq!(code(world.runtime.exec_sync(exec(&id, &["true"], 1)).await), Code::FailedPrecondition);
        world
    })
    .await;
}

#[tokio::test]
async fn lists_and_statistics_are_filtered() {
    with(async |mut world: World| {
        let pod = world.run_pod(world.pod("a")).await;
        let one = world.start(&pod, script("one", "sleep 1000")).await;
        let two = world.create(&pod, script("two", "sleep 1000")).await.unwrap();
        let mut ids = async |filter: Option<ContainerFilter>| {
            let listed =
                world.runtime.list_containers(ListContainersRequest { filter: filter.clone() }).await;
            let listed = listed.unwrap().into_inner().containers;
            let streamed = world.runtime.stream_containers(StreamContainersRequest { filter }).await;
            let piece = streamed.unwrap().into_inner().message().await.unwrap();
            assert_eq!(piece.map(|piece| piece.containers).unwrap_or_default(), listed);
            listed.into_iter().map(|container| container.id).collect::<Vec<_>>()
        };
        assert_eq!(ids(None).await, [two.clone(), one.clone()]);
        let state = Some(ContainerStateValue { state: ContainerState::ContainerRunning as i32 });
        assert_eq!(ids(Some(ContainerFilter { state, ..Default::default() })).await, [one.as_str()]);
        let labelled = ContainerFilter { label_selector: map(&[("container", "two")]), ..Default::default() };
        assert_eq!(ids(Some(labelled)).await, [two.as_str()]);
        let of_pod = ContainerFilter { pod_sandbox_id: "none".into(), ..Default::default() };
        assert!(ids(Some(of_pod)).await.is_empty());

        let told = world.runtime.list_pod_sandbox_metrics(ListPodSandboxMetricsRequest {}).await.unwrap();
        let [told] = told.into_inner().pod_metrics.try_into().unwrap();
        assert_eq!((told.container_metrics.len(), &*told.container_metrics[0].container_id), (1, &*one));
        let stats = world.runtime.list_container_stats(ListContainerStatsRequest::default()).await.unwrap();
        let stats = stats.into_inner().stats;
        assert_eq!(stats.len(), 1);
        assert_eq!(stats[0].attributes.as_ref().unwrap().id, one);
        assert!(stats[0].memory.as_ref().unwrap().usage_bytes.is_some());
        let one_of =
            world.runtime.container_stats(ContainerStatsRequest { container_id: two }).await.unwrap();
        assert!(one_of.into_inner().stats.is_some());
        let streamed = world.runtime.stream_container_stats(StreamContainerStatsRequest::default()).await;
        let piece = streamed.unwrap().into_inner().message().await.unwrap().unwrap();
        assert_eq!(piece.container_stats.len(), 1);
        let request = PodSandboxStatsRequest { pod_sandbox_id: pod };
        let of_pod = world.runtime.pod_sandbox_stats(request).await.unwrap().into_inner().stats.unwrap();
        let linux = of_pod.linux.unwrap();
        assert_eq!(linux.containers.len(), 1);
        assert!(linux.process.unwrap().process_count.unwrap().value >= 1);
        let all = world.runtime.list_pod_sandbox_stats(ListPodSandboxStatsRequest::default()).await.unwrap();
        assert_eq!(all.into_inner().stats.len(), 1);
        let streamed = world.runtime.stream_pod_sandbox_stats(StreamPodSandboxStatsRequest::default()).await;
        assert!(streamed.unwrap().into_inner().message().await.unwrap().is_some());
        world
    })
    .await;
}

#[tokio::test]
async fn a_log_that_was_moved_is_opened_anew() {
    with(async |mut world: World| {
        let pod = world.run_pod(world.pod("a")).await;
        let ticks = "while true; do echo tick; sleep 0.1; done";
        let id = world.start(&pod, script("c", ticks)).await;
        let path = std::path::PathBuf::from(world.status(&id).await.log_path);
        std::fs::rename(&path, path.with_extension("old")).unwrap();
        let request = ReopenContainerLogRequest { container_id: id.clone() };
        world.runtime.reopen_container_log(request.clone()).await.unwrap();
        assert!(path.exists());
        world.runtime.stop_container(stop(&id, 0)).await.unwrap();
        assert_eq!(code(world.runtime.reopen_container_log(request).await), Code::FailedPrecondition);
        world
    })
    .await;
}

#[tokio::test]
async fn events_follow_containers_and_sandboxes() {
    with(async |mut world: World| {
        let request = GetEventsRequest {};
        let mut events = world.runtime.get_container_events(request).await.unwrap().into_inner();
        let pod = world.run_pod(world.pod("a")).await;
        let id = world.start(&pod, script("c", "sleep 1000")).await;
        world.runtime.stop_container(stop(&id, 0)).await.unwrap();
        let mut next = async || {
            let event = events.message().await.unwrap().unwrap();
            assert_eq!(event.pod_sandbox_status.as_ref().unwrap().metadata.as_ref().unwrap().name, "a");
            (event.container_id.clone(), event.container_event_type())
        };
        use ContainerEventType::*;
        assert_eq!(next().await, (pod.clone(), ContainerCreatedEvent));
        assert_eq!(next().await, (pod.clone(), ContainerStartedEvent));
        assert_eq!(next().await, (id.clone(), ContainerCreatedEvent));
        assert_eq!(next().await, (id.clone(), ContainerStartedEvent));
        assert_eq!(next().await, (id.clone(), ContainerStoppedEvent));
        world.runtime.remove_container(remove(&id)).await.unwrap();
        assert_eq!(next().await, (id, ContainerDeletedEvent));
        let request = StopPodSandboxRequest { pod_sandbox_id: pod.clone() };
        world.runtime.stop_pod_sandbox(request).await.unwrap();
        assert_eq!(next().await, (pod.clone(), ContainerStoppedEvent));
        let request = RemovePodSandboxRequest { pod_sandbox_id: pod.clone() };
        world.runtime.remove_pod_sandbox(request).await.unwrap();
        assert_eq!(next().await, (pod, ContainerDeletedEvent));
        world
    })
    .await;
}

/// Runs a command of the host's.
fn host(command: &[&str]) {
    let status = std::process::Command::new(command[0]).args(&command[1..]).status().unwrap();
    assert!(status.success(), "{command:?}");
}

#[tokio::test]
async fn mounts_travel_as_far_as_was_asked_for() {
    with(async |mut world: World| {
        let directory = world.logs.join("shared");
        let (from_host, up) = (directory.join("from-host"), directory.join("up"));
        std::fs::create_dir_all(&from_host).unwrap();
        std::fs::create_dir_all(&up).unwrap();
        let path = directory.to_str().unwrap();
        host(&["mount", "--bind", path, path]);
        host(&["mount", "--make-shared", path]);
        let pod = world.run_pod(world.pod("a")).await;
        let mut started = Vec::new();
        for (name, propagation) in [
            ("down", MountPropagation::PropagationHostToContainer),
            ("both", MountPropagation::PropagationBidirectional),
        ] {
            let mount = Mount {
                container_path: "/mnt".into(),
                host_path: path.into(),
                propagation: propagation as i32,
                ..Mount::default()
            };
            let context = LinuxContainerSecurityContext { privileged: true, ..Default::default() };
            let linux = LinuxContainerConfig { security_context: Some(context), resources: None };
            let config =
                ContainerConfig { mounts: vec![mount], linux: Some(linux), ..script(name, "sleep 1000") };
            started.push(world.start(&pod, config).await);
        }
        host(&["mount", "-t", "tmpfs", "tmpfs", from_host.to_str().unwrap()]);
        let mut seen = Vec::new();
        for id in &started {
            let answer = world.exec(id, "grep -c ' /mnt/from-host ' /proc/self/mounts").await;
            seen.push(String::from_utf8(answer.stdout).unwrap());
        }
        assert_eq!(seen, ["1\n", "1\n"]);
        let on_host = || sys::mount::MountTable::own().unwrap().below(&directory).contains(&up);
        assert_eq!(world.exec(&started[0], "mount -t tmpfs tmpfs /mnt/up").await.exit_code, 0);
        assert!(!on_host());
        assert_eq!(world.exec(&started[1], "mount -t tmpfs tmpfs /mnt/up").await.exit_code, 0);
        assert!(on_host());
        for mounted in [&up, &from_host, &directory] {
            host(&["umount", mounted.to_str().unwrap()]);
        }
        world
    })
    .await;
}
