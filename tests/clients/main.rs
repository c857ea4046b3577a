//! The habits of foreign Kubernetes clients, against a running Skiff. They need root, a built `skiff`, `scripts/setup`,
//! `scripts/clients` and the base images of `scripts/base-image`.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

mod controller_runtime;
mod helm;
mod kube_rs;
mod kubectl;
mod libraries;
mod older_kubectl;
mod operator;

use std::path::PathBuf;

use testbed::{Host, Ran, Testbed};

/// A host with a running instance and the image `busybox`.
struct Site {
    bed: Testbed,
    host: Host,
}

impl Site {
    fn up() -> Self {
        let bed = Testbed::new().unwrap();
        let host = bed.host().unwrap();
        host.must_skiff(&["up"]);
        let archive = testbed::base_image("busybox-bookworm.tar").unwrap();
        host.must_skiff(&["load", "-i", &archive.to_string_lossy()]);
        Self { bed, host }
    }

    /// Runs one of the programs of `scripts/clients`.
    fn run(&self, program: &str, args: &[&str]) -> Ran {
        let path = client(program);
        self.host.command(&path.to_string_lossy()).args(args).output().unwrap().into()
    }

    /// The same, which has to succeed: its standard output.
    #[track_caller]
    fn must(&self, program: &str, args: &[&str]) -> String {
        self.run(program, args).ok().unwrap_or_else(|error| panic!("{program} {args:?}: {error:#}"))
    }

    fn end(self) {
        self.host.must_skiff(&["down", "--purge"]);
        assert_eq!(self.host.processes().unwrap(), Vec::<String>::new());
        assert_eq!(self.bed.leaked_packets().unwrap(), 0, "{}", self.bed.leaks().unwrap());
    }
}

/// Where `scripts/clients` put a program.
fn client(program: &str) -> PathBuf {
    let path = testbed::cached(&format!("clients/{program}"));
    assert!(path.exists(), "no {}: run scripts/clients first", path.display());
    path
}

/// A file of this directory.
fn file(name: &str) -> String {
    testbed::repository().join("tests/clients").join(name).to_string_lossy().into_owned()
}
