//! Mounts that containers are given of the host.

use std::path::Path;

use engine_api::{ContainerSpec, Mount, MountPropagation, MountSource, Runtime as _, SandboxSpec};

use crate::support::{Place, RUNC};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_mounted_below_a_mount_is_read_only_where_that_is_asked() {
    let place = Place::new();
    let source = place.path().join("source");
    std::fs::create_dir_all(source.join("below")).unwrap();
    sys::mount::tmpfs(&source.join("below"), Some(1 << 20)).unwrap();
    let bench = place.open().await;
    let subject = bench.subject();
    let script =
        "for file in /v/f /v/below/f; do touch $file 2>/dev/null && echo written || echo refused; done";
    let mounting = |sandbox: &str, source: &Path, recursive_read_only: bool| {
        let mount = Mount {
            source: MountSource::Bind(source.to_owned()),
            target: "/v".into(),
            read_only: true,
            recursive_read_only,
            propagation: MountPropagation::Private,
        };
        ContainerSpec { mounts: vec![mount], ..subject.script(sandbox, script) }
    };
    for handler in ["", RUNC] {
        let spec =
            SandboxSpec { id: base::id::hex64(), runtime_handler: handler.into(), ..SandboxSpec::default() };
        let sandbox = bench.engine.create_sandbox(spec).await.unwrap().spec.id;
        for (recursive, below) in [(false, "written"), (true, "refused")] {
            let (_, log) = subject.run(mounting(&sandbox, &source, recursive)).await;
            assert_eq!(log, format!("refused\n{below}\n"), "{handler} {recursive}");
        }
    }
    sys::mount::unmount(&source.join("below")).unwrap();
    bench.engine.purge().await.unwrap();
    drop(bench);
    assert_eq!(place.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_mounted_at_dev_is_seen_there_and_nothing_is_made_in_it() {
    let place = Place::new();
    let (dev, message) = (place.path().join("dev"), place.path().join("message"));
    std::fs::create_dir_all(dev.join("shm")).unwrap();
    // What the container's own would have.
    for name in ["fd", "kcore", "null", "ptmx", "log"] {
        std::fs::write(dev.join(name), "theirs").unwrap();
    }
    std::fs::write(&message, "").unwrap();
    let entries = || {
        let names = std::fs::read_dir(&dev).unwrap().map(|entry| entry.unwrap().file_name());
        names.collect::<std::collections::BTreeSet<_>>()
    };
    let before = entries();
    let bench = place.open().await;
    let subject = bench.subject();
    let sandbox = subject.sandbox().await;
    let mounted = |source: &Path, target: &str, propagation| Mount {
        source: MountSource::Bind(source.to_owned()),
        target: target.into(),
        read_only: false,
        recursive_read_only: false,
        propagation,
    };
    for (privileged, propagation) in [
        (false, MountPropagation::Private),
        (true, MountPropagation::HostToContainer),
        (true, MountPropagation::Bidirectional),
    ] {
        let script = "ls /dev | tr '\\n' ' '; cat /dev/ptmx; echo said > /dev/log";
        let mut spec = subject.script(&sandbox, script);
        spec.security.privileged = privileged;
        spec.mounts = vec![
            mounted(&dev, "/dev", propagation),
            mounted(&message, "/dev/log", MountPropagation::Private),
        ];
        let (exit, log) = subject.run(spec).await;
        assert_eq!((exit.code, log.as_str()), (0, "fd kcore log null ptmx shm theirs"), "{privileged}");
        assert_eq!(std::fs::read_to_string(&message).unwrap(), "said\n");
        std::fs::write(&message, "").unwrap();
    }
    assert_eq!(entries(), before);
    assert_eq!(std::fs::read_to_string(dev.join("log")).unwrap(), "theirs");
    bench.engine.purge().await.unwrap();
    drop(bench);
    assert_eq!(place.leftovers(), Vec::<String>::new());
}
