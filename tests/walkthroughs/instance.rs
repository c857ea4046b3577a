//! An instance and what is the host's: directories, kubeconfigs, the systemd unit, the shell's completion.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use testbed::{Host, Testbed};

/// The processes of Skiff that run on a host.
fn daemons(host: &Host) -> Vec<String> {
    host.processes().unwrap().into_iter().filter(|line| line.contains("skiff")).collect()
}

#[test]
fn what_is_not_skiffs_is_neither_taken_nor_removed() {
    let bed = Testbed::new().unwrap();
    let host = bed.host().unwrap();
    // The machine's own directory is out of reach, whatever this shows.
    host.must_sh("mount -t tmpfs tmpfs /var/lib && mkdir -m 755 /var/lib/theirs /run/mixed /run/own");
    host.must_sh("echo precious | tee /var/lib/theirs/lock /run/mixed/instance.json > /dev/null");
    let state = || host.must_sh("cd / && ls -lR /var/lib /run/mixed /run/own; cat /var/lib/theirs/lock");
    let before = state();
    for args in [&["down"][..], &["down", "--purge"]] {
        for name in ["theirs", "mixed", "never"] {
            let ran = host.skiff(&[&["--name", name], args].concat()).unwrap();
            assert_eq!((ran.code, &*ran.err), (0, ""), "{name} {args:?}: {ran:?}");
            assert_eq!(ran.out, format!("no instance {name:?} was ever started here\n"));
        }
    }
    for (name, flag) in [("theirs", "--data-dir"), ("mixed", "--run-dir")] {
        let ran = host.skiff(&["--name", name, "up"]).unwrap();
        assert_eq!((ran.code, ran.err.lines().count()), (1, 1), "{name}: {ran:?}");
        assert!(
            ran.err.contains("holds files that are not of instance") && ran.err.contains(flag),
            "{ran:?}"
        );
    }
    assert_eq!(state(), before);

    // One instance's directory is not another's.
    let own = ["--data-dir", "/run/own"];
    host.must_skiff(&[&own[..], &["up", "--kubeconfig", ""]].concat());
    let belongs = format!("/run/own belongs to instance {:?}", host.name);
    for args in [&["up"][..], &["down", "--purge"]] {
        let ran = host.skiff(&[&["--name", "two"], &own[..], args].concat()).unwrap();
        assert!(ran.code == 1 && ran.err.contains(&belongs), "{ran:?}");
    }
    let wrong = host.skiff(&["--data-dir", "/run/elsewhere", "down", "--purge"]).unwrap();
    assert!(
        wrong.code == 1 && wrong.err.contains("has --data-dir /run/own, not /run/elsewhere"),
        "{wrong:?}"
    );
    host.must_skiff(&["status"]);
    host.must_skiff(&["down", "--purge"]);
    let gone = format!("ls -d /run/own /run/{} 2> /dev/null || true", host.name);
    assert_eq!(host.must_sh(&gone), "");
}

#[test]
fn directories_and_kubeconfigs_need_not_be_repeated() {
    let bed = Testbed::new().unwrap();
    let host = bed.host().unwrap();
    let home = host.directory().join("home");
    let (data, config) = (host.directory().join("elsewhere"), home.join("sub/k"));
    let path = |path: &std::path::Path| path.to_string_lossy().into_owned();
    host.must_sh(&format!("chown 1234:1235 {}", path(&home)));
    host.must_skiff(&["up", "--data-dir", &path(&data), "--kubeconfig", &path(&config)]);
    let owner = host.must_sh(&format!("stat -c %u:%g:%a {}", path(&config)));
    assert_eq!(owner, "1234:1235:600\n", "root wrote it into another's home");
    assert!(host.must_skiff(&["kubeconfig"]).contains("certificate-authority-data"));
    host.must_kubectl(&["--kubeconfig", &path(&config), "get", "nodes"]);
    let again = host.skiff(&["up"]).unwrap();
    assert!(again.code == 1 && again.err.contains("is already running with --data-dir"), "{again:?}");

    // As a kubectl of the user's leaves it.
    let other = ["config", "set-context", "other", "--cluster=x", "--user=y"];
    host.must_kubectl(&[&["--kubeconfig", &path(&config)][..], &other].concat());
    host.must_skiff(&["down"]);
    assert_eq!(daemons(&host), Vec::<String>::new());
    assert!(data.join("store").is_dir());
    host.must_skiff(&["down", "--purge"]);
    assert!(!data.exists());
    let left = host.must_sh(&format!("cat {}", path(&config)));
    assert!(left.contains("other") && !left.contains(&host.name), "{left}");
    assert_eq!(host.skiff(&["down", "--purge"]).unwrap().code, 0);
    assert_eq!(host.must_sh("nft list tables"), "");
}

#[test]
fn anothers_context_of_the_same_name_is_left_alone() {
    let bed = Testbed::new().unwrap();
    let host = bed.host().unwrap();
    host.must_kubectl(&["config", "set-cluster", &host.name, "--server=https://theirs.example:6443"]);
    let config = || host.must_sh("cat $HOME/.kube/config");
    let before = config();
    let ran = host.skiff(&["up"]).unwrap();
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.err.contains("choose another --name or --kubeconfig"), "{ran:?}");
    assert_eq!(host.must_sh(&format!("ls -A /var/lib/{}", host.name)), "", "nothing is made before that");
    host.must_skiff(&["up", "--kubeconfig", ""]);
    host.must_skiff(&["down", "--purge"]);
    assert_eq!(config(), before);
}

/// What a unit starts, without systemd: its command line as it stands, in systemd's bare environment.
#[test]
fn the_units_command_runs_the_instance_with_its_configuration() {
    let bed = Testbed::new().unwrap();
    let host = bed.host().unwrap();
    let file = host.directory().join("skiff.yaml");
    std::fs::write(&file, "nodeName: by-file\napiPort: 7443\n").unwrap();
    let file = file.to_string_lossy().into_owned();
    let unit = host.must_skiff(&["unit", "--config", &file, "--node-port", "7444"]);
    let start = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
    let mut command = host.command("env");
    command.args(["-i", "sh", "-c", &format!("exec {start}")]).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut daemon = command.spawn().unwrap();
    let mut said = BufReader::new(daemon.stderr.take().unwrap()).lines();
    let ready = said.by_ref().map_while(Result::ok).any(|line| line.contains("node by-file is Ready"));
    assert!(ready, "it ended before its node was Ready");

    host.must_kubectl(&["get", "node", "by-file"]);
    let settings = ["up", "--config", &file, "--node-port", "7444"];
    assert!(host.must_skiff(&settings).contains("already running"), "its settings are those of the unit");
    let other = host.skiff(&["up", "--config", &file]).unwrap();
    assert!(other.code == 1 && other.err.contains("--node-port \"7444\""), "{other:?}");
    let status = host.must_skiff(&["status", "-o", "json"]);
    assert!(status.contains(":7443\""), "{status}");

    // What comes after the node is Ready is read to the end, as the journal does.
    let rest = std::thread::spawn(move || said.map_while(Result::ok).collect::<Vec<_>>());
    host.must_skiff(&["down"]);
    let ended = daemon.wait().unwrap();
    assert!(ended.success(), "{ended}: systemd would start it again; {:?}", rest.join().unwrap());
    assert_eq!(daemons(&host), Vec::<String>::new());
    host.must_skiff(&["down", "--purge"]);
}

#[test]
fn the_shell_completes_commands() {
    let bed = Testbed::new().unwrap();
    let host = bed.host().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let script = host.must_skiff(&["completion", shell]);
        assert!(script.contains("kubeconfig") && script.contains("purge"), "{shell}: {script}");
    }
    let program = testbed::skiff_binary().unwrap();
    let complete = format!(
        "source <({} completion bash); COMP_WORDS=(skiff do); COMP_CWORD=1; \
         _skiff skiff do skiff; echo \"${{COMPREPLY[@]}}\"",
        program.display()
    );
    let ran = host.command("bash").args(["-c", &complete]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&ran.stdout).trim(), "down", "{ran:?}");
}
