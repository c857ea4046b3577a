//! Mounts that travel: what a container mounts in a shared directory of the host is seen by the host and by others, as
//! drivers of volumes need it.

use engine_api::contract::log_text;
use engine_api::{ContainerSpec, Mount, MountPropagation, MountSource, Security};

use crate::support;

/// A directory that is a shared mount, gone with the test, also a failed one.
struct Shared(tempfile::TempDir);

impl Shared {
    fn new() -> Self {
        let shared = Self(tempfile::tempdir().unwrap());
        let path = shared.0.path();
        std::fs::create_dir(path.join("volume")).unwrap();
        sys::mount::bind(path, path).unwrap();
        sys::mount::share(path).unwrap();
        shared
    }

    fn at(&self, propagation: MountPropagation) -> Mount {
        Mount {
            source: MountSource::Bind(self.0.path().to_owned()),
            target: "/shared".into(),
            read_only: false,
            recursive_read_only: false,
            propagation,
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        for mounted in sys::mount::MountTable::own().unwrap().below(self.0.path()) {
            let _ = sys::mount::unmount(&mounted);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_driver_mounts_is_seen_by_the_host_and_by_others() {
    support::with(async |subject| {
        let shared = Shared::new();
        let sandbox = subject.sandbox().await;
        let seen = shared.0.path().join("volume/file");
        let waits =
            "echo ready; until [ -e /shared/volume/file ]; do sleep 0.1; done; cat /shared/volume/file";
        let with = |script: &str, propagation: MountPropagation| {
            let mut spec = subject.script(&sandbox, script);
            spec.mounts.push(shared.at(propagation));
            spec
        };
        // It began before there was anything to see.
        let other = with(waits, MountPropagation::HostToContainer);
        let (other, _) = subject.start_until(other, "ready").await;

        let mounts = "mount -t tmpfs x /shared/volume && echo hello > /shared/volume/file && echo mounted";
        let driver = ContainerSpec {
            security: Security { privileged: true, ..Security::default() },
            ..with(mounts, MountPropagation::Bidirectional)
        };
        let (exit, log) = subject.run(driver).await;
        assert_eq!((exit.code, log.as_str()), (0, "mounted\n"));
        assert_eq!(std::fs::read_to_string(&seen).unwrap(), "hello\n", "also when its container has ended");
        assert_eq!(subject.end(&other.spec.id).await.code, 0);
        assert_eq!(log_text(&other.log_path), "ready\nhello\n");
    })
    .await;
}
