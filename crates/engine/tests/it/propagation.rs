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
        self.mounted("/shared", propagation)
    }

    fn mounted(&self, target: &str, propagation: MountPropagation) -> Mount {
        Mount {
            source: MountSource::Bind(self.0.path().to_owned()),
            target: target.into(),
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

#[tokio::test(flavor = "multi_thread")]
async fn each_mount_travels_as_far_as_it_is_asked_to_and_no_further() {
    support::with(async |subject| {
        let (shared, own, other) = (Shared::new(), Shared::new(), Shared::new());
        let sandbox = subject.sandbox().await;
        let looks = "echo ready; until [ -e /shared/volume/file ]; do sleep 0.1; done; \
                     ls /own/volume /followed/volume";
        let with = |script: &str, followed: MountPropagation, privileged: bool| {
            let mut spec = subject.script(&sandbox, script);
            spec.security.privileged = privileged;
            spec.mounts.push(shared.mounted(
                "/shared",
                if privileged { MountPropagation::Bidirectional } else { MountPropagation::HostToContainer },
            ));
            spec.mounts.push(own.mounted("/own", MountPropagation::Private));
            spec.mounts.push(other.mounted("/followed", followed));
            spec
        };
        let (sees, _) =
            subject.start_until(with(looks, MountPropagation::HostToContainer, false), "ready").await;
        // Mounted by the host, the one that is waited for last.
        for of in [&own, &other, &shared] {
            let volume = of.0.path().join("volume");
            sys::mount::tmpfs(&volume, None).unwrap();
            std::fs::write(volume.join("file"), "x").unwrap();
        }
        assert_eq!(subject.end(&sees.spec.id).await.code, 0);
        assert_eq!(log_text(&sees.log_path), "ready\n/followed/volume:\nfile\n\n/own/volume:\n");

        // Who mounts in all of them reaches the host by the one alone that is shared both ways.
        let mounts = "for of in shared own followed; do mkdir /$of/new && mount -t tmpfs x /$of/new && \
                      touch /$of/new/file; done; ls /own/new /followed/new";
        let (exit, log) = subject.run(with(mounts, MountPropagation::HostToContainer, true)).await;
        assert_eq!((exit.code, log.as_str()), (0, "/followed/new:\nfile\n\n/own/new:\nfile\n"));
        let reached = [&shared, &own, &other].map(|of| of.0.path().join("new/file").exists());
        assert_eq!(reached, [true, false, false]);
    })
    .await;
}
