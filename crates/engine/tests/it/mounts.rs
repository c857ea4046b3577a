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
