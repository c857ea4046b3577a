//! A person at the terminal of a host: commands are typed into a shell, with the real clients on its path.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use testbed::{Host, Ran};

/// Asks until there is an answer: an application that has just been started may not listen yet.
pub(crate) const CURL: &str =
    "curl --silent --show-error --fail --max-time 10 --retry 60 --retry-delay 1 --retry-all-errors";
/// What stands for Docker Hub: Debian's registry, on the host.
pub(crate) const REGISTRY: &str = "127.0.0.1:5000";

/// A person at the terminal of a host, in one directory.
pub(crate) struct Terminal<'a> {
    pub(crate) host: &'a Host,
    pub(crate) directory: PathBuf,
    path: String,
}

impl<'a> Terminal<'a> {
    pub(crate) fn open(host: &'a Host, directory: &Path) -> Self {
        let parent = |program: PathBuf| program.parent().unwrap().display().to_string();
        let path = [testbed::skiff_binary().unwrap(), testbed::kubectl().unwrap()].map(parent).join(":");
        Self { host, directory: directory.to_owned(), path }
    }

    /// A shell of a person whose `docker` speaks to Skiff. Without its plugin for BuildKit newer clients fall back, and
    /// say so at length.
    fn line(&self, typed: &str) -> String {
        let docker = format!("DOCKER_HOST=unix:///run/{}/docker.sock DOCKER_BUILDKIT=0", self.host.name);
        let user = format!("DOCKER_USER_ID={REGISTRY}/rinormaloku");
        let place = self.directory.display();
        format!("cd {place} && export {docker} {user} PATH={}:$PATH && {typed}", self.path)
    }

    /// Types a command, which has to succeed.
    #[track_caller]
    pub(crate) fn ran(&self, typed: &str) -> Ran {
        let ran = self.host.sh(&self.line(typed)).unwrap();
        assert_eq!(ran.code, 0, "{typed}: {}{}", ran.out, ran.err);
        ran
    }

    /// What a command prints.
    #[track_caller]
    pub(crate) fn types(&self, typed: &str) -> String {
        self.ran(typed).out
    }

    /// The lines that a command prints, in columns.
    #[track_caller]
    pub(crate) fn table(&self, typed: &str) -> Vec<Vec<String>> {
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect();
        self.types(typed).lines().map(words).collect()
    }

    /// Starts a command that goes on. It ends with the handle.
    pub(crate) fn starts(&self, typed: &str) -> Running {
        let mut command = self.host.command("setpriv");
        command.args([
            "--pdeathsig",
            "KILL",
            "timeout",
            "180",
            "sh",
            "-c",
            &self.line(&format!("exec {typed}")),
        ]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Running { child, lines, typed: typed.to_owned() }
    }

    /// The names of the pods that a command line of `kubectl get pods` selects, all of which must be Running and Ready.
    #[track_caller]
    pub(crate) fn running(&self, selected: &str) -> BTreeSet<String> {
        let rows = self.table(&format!("kubectl get {selected}"));
        assert_eq!(rows[0], ["NAME", "READY", "STATUS", "RESTARTS", "AGE"]);
        for row in &rows[1..] {
            assert_eq!(row[1..4], ["1/1", "Running", "0"], "{rows:?}");
        }
        rows[1..].iter().map(|row| row[0].clone()).collect()
    }

    /// Waits until a Deployment has been rolled out and nothing is left of the pods that it had before, so that its
    /// Service answers from the new ones only. Gives what `rollout status` prints.
    #[track_caller]
    pub(crate) fn rolled_out(&self, deployment: &str, before: &BTreeSet<String>) -> String {
        let status = self.types(&format!("kubectl rollout status deployment {deployment} --timeout=300s"));
        for pod in before {
            self.types(&format!("kubectl wait pod {pod} --for=delete --timeout=120s"));
        }
        status
    }

    /// What stands in the frame of `skiff service`: `namespace/name` and the address.
    #[track_caller]
    pub(crate) fn services(&self, typed: &str) -> BTreeMap<String, String> {
        let shown = self.types(typed);
        let mut rows = shown.lines().filter(|line| !line.starts_with("|-")).map(|line| {
            let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
            (format!("{}/{}", cells[0], cells[1]), cells[2].to_owned())
        });
        assert_eq!(rows.next().unwrap(), ("NAMESPACE/NAME".to_owned(), "URL".to_owned()));
        rows.collect()
    }

    /// Where a Service is reached: its cluster address, and its balancer's.
    #[track_caller]
    pub(crate) fn addresses(&self, service: &str) -> Vec<SocketAddr> {
        let cluster = self.types(&format!("kubectl get service {service} -o jsonpath='{{.spec.clusterIP}}'"));
        let balancer = self.balancer(service);
        [&*cluster, balancer.trim_start_matches("http://")]
            .map(|address| format!("{address}:80").parse().unwrap())
            .into()
    }

    /// `http://address` of a Service's balancer.
    #[track_caller]
    pub(crate) fn balancer(&self, service: &str) -> String {
        let ingress = "'{.status.loadBalancer.ingress[0].ip}'";
        self.types(&format!("kubectl wait service {service} --for=jsonpath={ingress} --timeout=120s"));
        format!("http://{}", self.types(&format!("kubectl get service {service} -o jsonpath={ingress}")))
    }
}

/// A command that goes on, and what it prints.
pub(crate) struct Running {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
    typed: String,
}

impl Running {
    /// Reads until a line that fits.
    #[track_caller]
    pub(crate) fn until(&mut self, fits: impl Fn(&str) -> bool) -> String {
        let mut seen = String::new();
        loop {
            let start = seen.len();
            let ended = self.lines.read_line(&mut seen).unwrap() == 0;
            assert!(!ended, "{} ended after: {seen}", self.typed);
            if fits(seen[start..].trim_end()) {
                return seen[start..].trim_end().to_owned();
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
