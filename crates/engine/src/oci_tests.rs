//! Tests of the OCI document.

use super::*;
use crate::cdi::{Injected, Node};

fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|text| (*text).to_owned()).collect()
}

fn image() -> ImageConfig {
    ImageConfig {
        entrypoint: strings(&["/entry"]),
        cmd: strings(&["a", "b"]),
        env: strings(&["PATH=/bin", "A=image"]),
        working_dir: "srv/../data".into(),
        ..ImageConfig::default()
    }
}

fn made(spec: &ContainerSpec, sandbox: &SandboxSpec) -> Value {
    made_with(spec, sandbox, &Injected::default())
}

fn made_with(spec: &ContainerSpec, sandbox: &SandboxSpec, injected: &Injected) -> Value {
    let (user, capabilities) = (ResolvedUser { uid: 7, gid: 8, ..ResolvedUser::default() }, BTreeSet::new());
    let node = DeviceNode { path: "/dev/loop3".into(), major: 7, minor: 3, ..DeviceNode::default() };
    let given = (node, Device { access: "rw".into(), ..Device::default() });
    let around = Surroundings {
        sandbox,
        image: &image(),
        user: &user,
        capabilities: &capabilities,
        seccomp: None,
        labels: &crate::labels::Labels::default(),
        rootfs: Path::new("/r"),
        run_sandbox: Path::new("/run/s"),
        cgroup_path: "skiff/s/c",
        cgroup_directories: &[],
        users: None,
        pid_namespace: None,
        devices: &[],
        given: &[given],
        injected,
        device_rules: true,
        oom_score_adj: None,
        shows_host_proc: false,
        has_tty_group: true,
    };
    document(spec, &[vec!["nosuid".to_owned()]], &around).unwrap()
}

fn injected() -> Injected {
    let node = DeviceNode { path: "/dev/gpu0".into(), character: true, major: 195, ..DeviceNode::default() };
    let node = Node { node, gid: Some(44), access: "rw".into(), ..Node::default() };
    let hidden =
        Node { node: DeviceNode { path: "/opt/gpu1".into(), ..node.node.clone() }, ..Node::default() };
    let hooks = json!({"createContainer": [{"path": "/bin/true"}]});
    Injected { nodes: vec![node, hidden], hooks, groups: vec![9], ..Injected::default() }
}

#[test]
fn described_devices_are_made_for_the_user_and_allowed() {
    let mount = Mount {
        source: MountSource::Bind("/opt".into()),
        target: "/usr/gpu".into(),
        read_only: true,
        recursive_read_only: false,
        propagation: MountPropagation::Private,
    };
    let spec = ContainerSpec { mounts: vec![mount], ..ContainerSpec::default() };
    let document = made_with(&spec, &SandboxSpec::default(), &injected());
    let made = json!([{"path": "/dev/gpu0", "type": "c", "major": 195, "minor": 0, "fileMode": 0, "uid": 7, "gid": 44}]);
    assert_eq!(document["linux"]["devices"], made, "the other lies elsewhere: it is a mount");
    let rules = document["linux"]["resources"]["devices"].as_array().unwrap();
    assert!(rules.contains(&json!({"allow": true, "type": "c", "major": 195, "minor": 0, "access": "rw"})));
    assert_eq!(document["process"]["user"]["additionalGids"], json!([8, 9]));
    assert_eq!(document["hooks"]["createContainer"][0]["path"], "/bin/true");
    let mounts = document["mounts"].as_array().unwrap();
    let own = mounts.iter().find(|mount| mount["destination"] == "/usr/gpu").unwrap();
    assert_eq!(own["options"], json!(["rbind", "rprivate", "ro", "nosuid"]));
}

#[test]
fn a_process_that_may_not_set_groups_is_not_asked_to() {
    let mut process = json!({"user": {"uid": 0, "gid": 0, "additionalGids": [0]}, "args": ["sh"]});
    leave_groups(&mut process);
    assert_eq!(process, json!({"user": {"uid": 0, "gid": 0}, "args": ["sh"]}));
}

#[test]
fn commands_follow_the_rules_of_kubernetes() {
    let command = |entrypoint: &[&str], args: &[&str]| {
        let spec = ContainerSpec {
            entrypoint: strings(entrypoint),
            args: strings(args),
            ..ContainerSpec::default()
        };
        command(&spec, &image()).unwrap()
    };
    assert_eq!(command(&[], &[]), ["/entry", "a", "b"]);
    assert_eq!(command(&[], &["x"]), ["/entry", "x"]);
    assert_eq!(command(&["e"], &[]), ["e"]);
    assert_eq!(command(&["e"], &["x"]), ["e", "x"]);
    assert!(super::command(&ContainerSpec::default(), &ImageConfig::default()).is_err());
}

#[test]
fn a_document_merges_image_and_specification() {
    let spec = ContainerSpec { env: strings(&["A=spec", "B=1"]), ..ContainerSpec::default() };
    let sandbox = SandboxSpec { hostname: "pod".into(), ..SandboxSpec::default() };
    let document = made(&spec, &sandbox);
    assert_eq!(document["process"]["env"], json!(["PATH=/bin", "HOSTNAME=pod", "A=spec", "B=1"]));
    assert_eq!(document["process"]["cwd"], "/data");
    assert_eq!(identity(&document), Identity { uid: 7, gid: 8, groups: vec![8] });
    assert!(document["process"].get("noNewPrivileges").is_none());
    let rules = &document["linux"]["resources"]["devices"];
    assert_eq!(rules[0]["allow"], false);
    assert_eq!(rules[1], json!({"allow": true, "type": "b", "major": 7, "minor": 3, "access": "rw"}));
    assert!(document["linux"]["namespaces"].as_array().unwrap().contains(&json!({"type": "pid"})));
}

#[test]
fn paths_are_closed_beside_the_engines_own() {
    let security = engine_api::Security {
        masked_paths: strings(&["/secret", "/proc/kcore"]),
        read_only_paths: strings(&["/data"]),
        ..engine_api::Security::default()
    };
    let spec = ContainerSpec { args: strings(&["x"]), security, ..ContainerSpec::default() };
    let paths = |spec: &ContainerSpec, field: &str| -> Vec<String> {
        serde_json::from_value(made(spec, &SandboxSpec::default())["linux"][field].clone()).unwrap()
    };
    let masked = paths(&spec, "maskedPaths");
    assert_eq!(masked.len(), MASKED.len() + 1);
    assert_eq!(masked.last().unwrap(), "/secret");
    assert_eq!(paths(&spec, "readonlyPaths").last().unwrap(), "/data");
    let mut unmasked = spec.clone();
    unmasked.security.unmask_proc = true;
    assert_eq!(paths(&unmasked, "readonlyPaths"), ["/data"]);
    let mut privileged = spec;
    privileged.security.privileged = true;
    assert!(paths(&privileged, "maskedPaths").is_empty());
}

#[test]
fn mounts_of_the_specification_win() {
    let shm = Mount {
        source: MountSource::Tmpfs { size_bytes: 5, options: Vec::new() },
        target: "/dev/shm".into(),
        read_only: false,
        recursive_read_only: false,
        propagation: MountPropagation::Private,
    };
    let spec = ContainerSpec { mounts: vec![shm], ..ContainerSpec::default() };
    let document = made(&spec, &SandboxSpec::default());
    let mounts = document["mounts"].as_array().unwrap();
    let at: Vec<&Value> = mounts.iter().filter(|mount| mount["destination"] == "/dev/shm").collect();
    assert_eq!(at.len(), 1);
    assert_eq!(at[0]["type"], "tmpfs");
}

#[test]
fn an_exec_inherits_what_it_does_not_say() {
    let document = made(&ContainerSpec::default(), &SandboxSpec::default());
    let exec = ExecSpec { command: strings(&["sh"]), env: strings(&["A=exec"]), ..ExecSpec::default() };
    let process = exec_process(&document["process"], &exec, None, None).unwrap();
    assert_eq!(process["args"], json!(["sh"]));
    assert_eq!(process["env"], json!(["PATH=/bin", "A=exec"]));
    assert_eq!(process["user"]["uid"], 7);
    assert!(exec_process(&document["process"], &ExecSpec::default(), None, None).is_err());
}
