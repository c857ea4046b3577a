//! Sandboxes with a user namespace: root inside is nobody outside, and volumes look as they did.

use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::{Path, PathBuf};

use engine_api::contract::{Subject, outcome, until};
use engine_api::{
    ContainerSpec, ContainerState, ExecSpec, Mount, MountPropagation, MountSource, Runtime as _, SandboxSpec,
};

use sys::mount::MountTable;

use crate::support::{Bench, Place, RUNC};

async fn sandbox(bench: &Bench, handler: &str, share_pid: bool) -> String {
    let spec = SandboxSpec {
        id: base::id::hex64(),
        hostname: "pod".into(),
        runtime_handler: handler.to_owned(),
        own_users: true,
        share_pid,
        sysctls: [("net.ipv4.ip_unprivileged_port_start".to_owned(), "80".to_owned())].into(),
        ..SandboxSpec::default()
    };
    bench.engine.create_sandbox(spec).await.unwrap().spec.id
}

fn mounted(spec: ContainerSpec, source: &Path, read_only: bool) -> ContainerSpec {
    let mount = Mount {
        source: MountSource::Bind(source.to_owned()),
        target: "/volume".into(),
        read_only,
        recursive_read_only: false,
        propagation: MountPropagation::Private,
    };
    ContainerSpec { mounts: vec![mount], ..spec }
}

/// The host's id of a running container's root.
fn root_of(pid: u32) -> u32 {
    let map = std::fs::read_to_string(format!("/proc/{pid}/uid_map")).unwrap();
    let fields: Vec<u32> = map.split_whitespace().map(|field| field.parse().unwrap()).collect();
    assert_eq!((fields.len(), fields[0], fields[2]), (3, 0, 65536), "{map}");
    fields[1]
}

async fn running(subject: &Subject, spec: ContainerSpec) -> (String, u32) {
    let status = subject.start(spec).await;
    let ContainerState::Running { pid, .. } = status.state else { panic!("{status:?}") };
    (status.spec.id, pid)
}

fn volume(place: &Place) -> PathBuf {
    let volume = place.path().join("volume");
    std::fs::create_dir_all(&volume).unwrap();
    std::fs::write(volume.join("theirs"), "x").unwrap();
    chown(volume.join("theirs"), Some(1000), Some(60)).unwrap();
    volume
}

#[tokio::test(flavor = "multi_thread")]
async fn root_of_a_sandbox_with_its_own_users_is_nobody_outside() {
    let place = Place::new();
    let volume = volume(&place);
    let bench = place.open().await;
    let subject = bench.subject();
    for handler in ["", RUNC] {
        let sandbox = sandbox(&bench, handler, false).await;
        let script = "id -u; stat -c '%u %g' /bin/busybox /volume/theirs; touch /made /volume/made; \
                      stat -c %u /made /volume/made; cat /proc/sys/net/ipv4/ip_unprivileged_port_start; \
                      echo shared > /dev/shm/file; stat -c %u /dev/shm/file; mkdir /tmp/x && mount -t tmpfs x /tmp/x 2>&1; pwd; exec sleep 1000";
        let spec = ContainerSpec {
            working_dir: "/made/here".into(),
            ..mounted(
                subject.script(
                    &sandbox,
                    &script.replace("touch /made ", "touch /new ").replace("%u /made", "%u /new"),
                ),
                &volume,
                false,
            )
        };
        let (status, log) = subject.start_until(spec, "/made/here\n").await;
        let id = status.spec.id;
        let ContainerState::Running { pid, .. } = status.state else { panic!() };
        let wanted = "0\n0 0\n1000 60\n0\n0\n80\n0\nmount: permission denied (are you root?)\n/made/here\n";
        assert_eq!(log, wanted, "{handler}");
        let root = root_of(pid);
        assert!(root >= 1 << 30, "{root}");
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        assert!(status.contains(&format!("Uid:\t{root}\t{root}\t{root}\t{root}")), "{status}");
        // What it wrote belongs to the host's root there, and to nobody in its own layer.
        assert_eq!(std::fs::metadata(volume.join("made")).unwrap().uid(), 0);
        std::fs::remove_file(volume.join("made")).unwrap();
        // Further processes are in it too, with no more rights than the first.
        let exec = |user: &str, script: &str| ExecSpec {
            command: ["sh", "-c", script].map(str::to_owned).to_vec(),
            user: user.to_owned(),
            ..ExecSpec::default()
        };
        let script =
            "id; grep -E '^(CapEff|CapBnd|Seccomp):' /proc/self/status; cat /proc/self/uid_map | tr -s ' '";
        let (exit, stdout, stderr) = outcome(bench.engine.exec(&id, exec("", script)).await.unwrap()).await;
        let map = format!(" 0 {root} 65536\n");
        let caps = "CapEff:\t00000000a80425fb\nCapBnd:\t00000000a80425fb\nSeccomp:\t2\n";
        assert!(stdout.starts_with("uid=0(root) gid=0(root)"), "{handler}: {exit:?} {stdout}{stderr}");
        assert!(stdout.ends_with(&format!("{caps}{map}")), "{handler}: {stdout}{stderr}");
        let (_, stdout, _) =
            outcome(bench.engine.exec(&id, exec("app", "id -u; id -G; touch /volume/x 2>&1")).await.unwrap())
                .await;
        assert!(
            stdout.starts_with("1000\n1001 60\n") && stdout.contains("Permission denied"),
            "{handler}: {stdout}"
        );
        bench.engine.stop_container(&id, std::time::Duration::ZERO).await.unwrap();
        // It starts again, with what it has.
        let (again, _) =
            running(&subject, mounted(subject.script(&sandbox, "exec sleep 1000"), &volume, true)).await;
        let command =
            ExecSpec { command: ["touch", "/volume/y"].map(str::to_owned).to_vec(), ..ExecSpec::default() };
        let (exit, _, stderr) = outcome(bench.engine.exec(&again, command).await.unwrap()).await;
        assert!(exit.code != 0 && stderr.contains("Read-only file system"), "{handler}: {stderr}");
        // Volumes are let go with the sandbox's end: nobody else has them in use.
        bench.engine.stop_sandbox(&sandbox).await.unwrap();
        let held = MountTable::own().unwrap().below(&place.path().join("run/sandboxes").join(&sandbox));
        assert!(held.iter().all(|path| path.ends_with("rootfs")), "{handler}: {held:?}");
    }
    bench.engine.purge().await.unwrap();
    drop(bench);
    assert_eq!(place.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_with_users_of_its_own_runs_again_and_has_terminals() {
    let place = Place::new();
    let bench = place.open().await;
    let subject = bench.subject();
    for handler in ["", RUNC] {
        let sandbox = sandbox(&bench, handler, true).await;
        let spec = subject.script(&sandbox, "echo x >> /runs; wc -l < /runs; head -n 1 /proc/1/status");
        let (id, (exit, log)) = (spec.id.clone(), subject.run(spec).await);
        assert_eq!((exit.code, log.as_str()), (0, "1\nName:\tskiff-init\n"), "{handler}");
        let again = bench.engine.start_container(&id).await.unwrap();
        assert_eq!(subject.end(&id).await.code, 0);
        let log = engine_api::contract::log_text(&again.log_path);
        assert!(log.ends_with("2\nName:\tskiff-init\n"), "{handler}: {log}");
        let terminal =
            ContainerSpec { terminal: true, ..subject.script(&sandbox, "tty; ls -l /proc/1/root/ 2>&1") };
        let (_, log) = subject.run(terminal).await;
        assert!(log.contains("/dev/") && log.contains("Permission denied"), "{handler}: {log}");
        let (sleeping, _) = running(&subject, subject.script(&sandbox, "exec sleep 1000")).await;
        let command =
            ["sh", "-c", "tty; id -u; echo direct > $(tty) && echo end"].map(str::to_owned).to_vec();
        let exec = ExecSpec { command, terminal: true, stdin: true, ..ExecSpec::default() };
        let mut process = bench.engine.exec(&sleeping, exec).await.unwrap();
        let shown = until(process.io.stdout.as_mut().unwrap(), "end").await;
        assert!(
            shown.contains("/dev/pts/") && shown.contains("\n0\r") && shown.contains("direct"),
            "{handler}: {shown}"
        );
    }
    bench.engine.purge().await.unwrap();
    drop(bench);
    assert_eq!(place.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_two_sandboxes_have_ids_in_common() {
    let place = Place::new();
    let bench = place.open().await;
    let subject = bench.subject();
    let mut roots = Vec::new();
    let mut first = String::new();
    for _ in 0..4 {
        first = sandbox(&bench, "", false).await;
        let (_, pid) = running(&subject, subject.script(&first, "exec sleep 1000")).await;
        roots.push(root_of(pid));
    }
    roots.sort_unstable();
    assert!(roots.windows(2).all(|pair| pair[1] - pair[0] >= 65536), "{roots:?}");
    let ranges = place.path().join("data/id-ranges");
    assert_eq!(std::fs::read_dir(&ranges).unwrap().count(), 4);
    bench.engine.remove_sandbox(&first).await.unwrap();
    assert_eq!(std::fs::read_dir(&ranges).unwrap().count(), 3);
    // What has no ids of its own is said by name.
    let sandbox = sandbox(&bench, "", false).await;
    let spec = mounted(subject.script(&sandbox, "true"), Path::new("/proc/sys"), false);
    let id = spec.id.clone();
    bench.engine.create_container(spec).await.unwrap();
    let error = bench.engine.start_container(&id).await.unwrap_err();
    assert!(error.message.contains("/proc/sys: its file system cannot"), "{}", error.message);
    bench.engine.purge().await.unwrap();
    drop(bench);
    assert_eq!(place.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_a_volume_for_users_of_its_own_too() {
    let place = Place::new();
    let bench = place.open().await;
    let subject = bench.subject();
    let (whole, part) = (place.path().join("image"), place.path().join("part"));
    for path in [&whole, &part] {
        std::fs::create_dir(path).unwrap();
    }
    subject.images.mount_read_only("pod", place.image(), &whole).await.unwrap();
    sys::mount::bind(&whole.join("etc"), &part).unwrap();
    for handler in ["", RUNC] {
        let sandbox = sandbox(&bench, handler, false).await;
        let script =
            "stat -c '%u %g' /volume/bin/busybox; touch /volume/x 2>&1; /volume/bin/busybox true 2>&1";
        let (exit, log) = subject.run(mounted(subject.script(&sandbox, script), &whole, false)).await;
        assert_eq!(exit.code, 126, "{handler}: {log}");
        assert!(log.starts_with("0 0\n") && log.contains("Read-only file system"), "{handler}: {log}");
        let (_, log) =
            subject.run(mounted(subject.script(&sandbox, "ls -n /volume/passwd"), &part, false)).await;
        assert!(log.contains(" 0        0 ") || log.contains(" 0 0 "), "{handler}: {log}");
    }
    for path in [&part, &whole] {
        sys::mount::unmount(path).unwrap();
    }
    bench.engine.purge().await.unwrap();
    drop(bench);
    assert_eq!(place.leftovers(), Vec::<String>::new());
}
