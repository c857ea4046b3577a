//! Skiff of a user without root: the walk through it, kills of its parts, and that nothing is left.
//!
//! The user is made up, in the host's own view of /etc; the machine's is not touched.

use std::path::Path;
use std::process::{Command, Stdio};

use testbed::{Host, Ran, Testbed};

const UID: &str = "4242";
/// Where the user's programs and directories are shown: whoever runs the tests may have a home that nobody else enters.
const SHOWN: &str = "/run/for-user";

struct User {
    _bed: Testbed,
    host: Host,
}

impl User {
    /// A user, with ranges of ids or without; `None`, with the reason said, where the kernel is set to give users no
    /// namespaces.
    fn new(with_ids: bool) -> Option<Self> {
        let bed = Testbed::new().unwrap();
        let host = bed.host().unwrap();
        // A mount in /proc keeps the kernel from letting users mount their own where no other is whole. Hosts have had a
        // second, whole one since; whether this is needed still has not been tried.
        host.must_sh("umount /proc/sys/kernel/random/boot_id");
        host.must_sh(&format!(
            "mkdir -p {SHOWN}/etc {SHOWN}/bin {SHOWN}/kubectl {SHOWN}/home /run/user/{UID}"
        ));
        // The home is on a disk: an overlay's upper layer needs a file system for it.
        host.must_sh(&format!("mkdir -p {}/user", host.directory().display()));
        let bind = |from: &Path, to: &str| {
            host.must_sh(&format!("mount --bind '{}' {to}", from.display()));
        };
        bind(&host.directory().join("user"), &format!("{SHOWN}/home"));
        bind(testbed::skiff_binary().unwrap().parent().unwrap(), &format!("{SHOWN}/bin"));
        bind(testbed::kubectl().unwrap().parent().unwrap(), &format!("{SHOWN}/kubectl"));
        let archive = testbed::base_image("busybox-bookworm.tar").unwrap();
        host.must_sh(&format!("cp '{}' {SHOWN}/home/busybox.tar", archive.display()));
        host.must_sh(&format!(
            "chown -R {UID}:{UID} {SHOWN}/home /run/user/{UID}; chmod 700 /run/user/{UID}"
        ));
        let ids = if with_ids { "someone:200000:65536" } else { "" };
        for (file, line) in [
            ("passwd", format!("someone:x:{UID}:{UID}::{SHOWN}/home:/bin/sh")),
            ("group", format!("someone:x:{UID}:")),
            ("subuid", ids.to_owned()),
            ("subgid", ids.to_owned()),
        ] {
            host.must_sh(&format!(
                "touch {SHOWN}/etc/{file}; [ ! -e /etc/{file} ] || cp /etc/{file} {SHOWN}/etc/{file}; \
                 echo '{line}' >> {SHOWN}/etc/{file}; mount --bind {SHOWN}/etc/{file} /etc/{file}"
            ));
        }
        let user = Self { _bed: bed, host };
        let able = user.run("unshare", &["--user", "--map-root-user", "--mount", "true"]);
        if able.code == 0 {
            return Some(user);
        }
        let Some(setting) = forbids_namespaces() else {
            panic!("a user gets no namespaces, and no setting says so: {able:?}");
        };
        eprintln!("skipped: this kernel gives users no namespaces, by {setting}: {}", able.err.trim());
        None
    }

    fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = self.host.command("setpriv");
        command.args(["--reuid", UID, "--regid", UID, "--clear-groups", "env", "-i"]);
        command.arg(format!("PATH={SHOWN}/bin:{SHOWN}/kubectl:/usr/local/bin:/usr/bin:/bin"));
        command.arg(format!("HOME={SHOWN}/home"));
        command.arg(format!("XDG_RUNTIME_DIR=/run/user/{UID}"));
        command.arg(program).args(args);
        command
    }

    fn run(&self, program: &str, args: &[&str]) -> Ran {
        self.command(program, args).stdin(Stdio::null()).output().unwrap().into()
    }

    #[track_caller]
    fn must(&self, program: &str, args: &[&str]) -> String {
        self.run(program, args)
            .ok()
            .unwrap_or_else(|error| panic!("{program} {args:?}: {error:#}{}", self.log()))
    }

    /// The end of the daemon's log, and the keeper's.
    fn log(&self) -> String {
        let home = format!("{SHOWN}/home/.local/share/skiff/skiff.log");
        let keeper = format!("/run/user/{UID}/skiff.rootless/keeper.log");
        self.host.sh(&format!("echo; tail -n 30 {home} {keeper}")).map(|ran| ran.out).unwrap_or_default()
    }

    /// The daemon's process, or the keeper's.
    fn pid_in(&self, file: &str) -> String {
        let text = self.host.must_sh(&format!("cat /run/user/{UID}/{file}"));
        let said: serde_json::Value = serde_json::from_str(&text).unwrap();
        said["pid"].to_string()
    }

    #[track_caller]
    fn nothing_is_left(&self) {
        let of_user =
            self.host.must_sh(&format!("ps -eo uid=,pid=,args= | grep -E '^ *({UID}|2[0-9]{{5}}) ' || true"));
        assert_eq!(of_user, "", "processes");
        assert_eq!(self.host.must_sh(&format!("ls -A /run/user/{UID}")), "");
        assert_eq!(self.host.must_sh(&format!("find {SHOWN}/home/.local -type f 2>/dev/null || true")), "");
        let kubeconfig = self.host.must_sh(&format!("cat {SHOWN}/home/.kube/config 2>/dev/null || true"));
        assert!(!kubeconfig.contains("skiff"), "{kubeconfig}");
    }
}

impl Drop for User {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        self.run("skiff", &["down", "--purge"]);
    }
}

/// The setting by which the kernel gives users no namespaces, if there is one.
fn forbids_namespaces() -> Option<String> {
    let settings = [
        ("user/max_user_namespaces", "0"),
        ("kernel/unprivileged_userns_clone", "0"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1"),
    ];
    let holds = |(setting, value): &(&str, &str)| {
        std::fs::read_to_string(format!("/proc/sys/{setting}")).is_ok_and(|text| text.trim() == *value)
    };
    settings.into_iter().find(holds).map(|(setting, value)| format!("{setting}={value}"))
}

const POD: &str = "--image=busybox:latest --image-pull-policy=Never --restart=Never";

fn words(line: &str) -> Vec<&str> {
    line.split_ascii_whitespace().collect()
}

#[test]
fn a_user_without_root_has_a_cluster_that_outlives_its_parts() {
    let Some(user) = User::new(true) else { return };
    let up = user.run("skiff", &["up"]);
    assert_eq!(up.code, 0, "{up:?}{}", user.log());
    assert!(up.err.contains("without root: ") && up.out.contains("127.0.0.1"), "{up:?}");
    user.must("skiff", &["load", "-i", &format!("{SHOWN}/home/busybox.tar")]);
    user.must("kubectl", &["wait", "--for=create", "serviceaccount/default", "--timeout=120s"]);

    // A server, reached by its node port on the host's loopback; logs and commands.
    let server = "echo served; mkdir -p /w; echo hello > /w/index.html; exec httpd -f -p 8080 -h /w";
    let run = [words("run web"), words(POD), words("--labels=app=web -- sh -c"), vec![server]].concat();
    user.must("kubectl", &run);
    user.must("kubectl", &words("wait --for=condition=Ready pod/web --timeout=120s"));
    assert_eq!(user.must("kubectl", &["logs", "web"]), "served\n");
    assert_eq!(user.must("kubectl", &words("exec web -- id -u")), "0\n");
    user.must("kubectl", &words("expose pod web --port=80 --target-port=8080 --type=NodePort"));
    let port = user.must("kubectl", &words("get service web -o jsonpath={.spec.ports[0].nodePort}"));
    let fetch = format!("curl -sf --retry 30 --retry-delay 1 --retry-all-errors http://127.0.0.1:{port}/");
    assert_eq!(user.must("sh", &["-c", &fetch]), "hello\n");
    // Another user's pods, by ids of the range.
    let other = [
        words("run other"),
        words(POD),
        vec!["--overrides={\"spec\":{\"securityContext\":{\"runAsUser\":1000}}}"],
    ];
    user.must("kubectl", &[other.concat(), words("-- sh -c"), vec!["id -u; sleep 10000"]].concat());
    user.must("kubectl", &words("wait --for=condition=Ready pod/other --timeout=120s"));
    assert_eq!(user.must("kubectl", &["logs", "other"]), "1000\n");
    // By Docker's interface.
    let ran = user.must("skiff", &words("run --rm busybox:latest echo contained"));
    assert_eq!(ran, "contained\n");

    // The daemon is killed: pods run on and are taken back.
    let started = words("get pod web -o jsonpath={.status.containerStatuses[0].state.running.startedAt}");
    let before = user.must("kubectl", &started);
    user.must("kill", &["-9", &user.pid_in("skiff/instance.json")]);
    assert_eq!(user.must("sh", &["-c", &fetch]), "hello\n", "while no daemon runs");
    user.must("skiff", &["up"]);
    user.must("kubectl", &words("wait --for=condition=Ready pod/web --timeout=120s"));
    assert_eq!(user.must("kubectl", &started), before);
    // The keeper is killed: the next one finds the namespaces by who lives there.
    user.must("kill", &["-9", &user.pid_in("skiff.rootless/keeper.json")]);
    user.must("skiff", &["up"]);
    user.must(
        "sh",
        &["-c", "for i in $(seq 60); do kubectl get --raw /readyz && exit; sleep 1; done; exit 1"],
    );
    assert_eq!(user.must("kubectl", &started), before);

    user.must("skiff", &["down", "--purge"]);
    user.nothing_is_left();
}

#[test]
fn what_a_killed_instance_of_a_user_leaves_goes_with_down() {
    let Some(user) = User::new(false) else { return };
    let up = user.run("skiff", &["up"]);
    assert_eq!(up.code, 0, "{up:?}{}", user.log());
    assert!(up.err.contains("/etc/subuid"), "without ranges that is said: {}", up.err);
    user.must("skiff", &["load", "-i", &format!("{SHOWN}/home/busybox.tar")]);
    user.must("kubectl", &["wait", "--for=create", "serviceaccount/default", "--timeout=120s"]);
    user.must("kubectl", &[words("run one"), words(POD), words("-- sleep 10000")].concat());
    user.must("kubectl", &words("wait --for=condition=Ready pod/one --timeout=120s"));
    let parts = [user.pid_in("skiff.rootless/keeper.json"), user.pid_in("skiff/instance.json")];
    user.must("kill", &["-9", &parts[0], &parts[1]]);
    user.must("sh", &["-c", "kill -9 $(ps -eo pid=,args= | awk '/skiff-shim-/ && !/awk/ {print $1}')"]);
    user.must("skiff", &["down", "--purge"]);
    user.nothing_is_left();
}
