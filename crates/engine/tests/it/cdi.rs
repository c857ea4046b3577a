//! Devices that vendors describe in files.

use engine_api::{ContainerSpec, Runtime as _, SandboxSpec, User};

use crate::support::{Place, RUNC};

/// A file that describes a device by the numbers of `/dev/fuse`, which no container has by itself. A hook leaves a mark.
fn describe(place: &Place) {
    let directory = place.path().join("cdi");
    std::fs::create_dir_all(directory.join("library")).unwrap();
    std::fs::write(directory.join("library/text"), "of the driver\n").unwrap();
    let here = directory.display();
    let spec = format!(
        r#"
cdiVersion: "0.7.0"
kind: example.com/gpu
containerEdits:
  env: ["GPU=any", "ALL=1"]
  mounts:
  - {{hostPath: "{here}/library", containerPath: /usr/gpu, options: [ro, nosuid, nodev, rbind, rprivate]}}
devices:
- name: "0"
  containerEdits:
    env: ["GPU=0"]
    additionalGids: [4711]
    deviceNodes:
    - {{path: /dev/gpu0, type: c, major: 10, minor: 229, fileMode: 384, permissions: rw}}
    - {{path: /dev/shown, type: c, major: 10, minor: 235, permissions: none}}
    hooks:
    - {{hookName: createContainer, path: /bin/sh, args: [sh, -c, "cat > {here}/hooked"], timeout: 20}}
"#
    );
    std::fs::write(directory.join("example.yaml"), spec).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_gets_what_its_devices_files_say() {
    let place = Place::new();
    let bench = place.open().await;
    let subject = bench.subject();
    describe(&place);
    let script = "echo $GPU $ALL $OWN; stat -c '%t:%T %u:%g %a' /dev/gpu0; cat /usr/gpu/text; id -G; \
        exec 3<>/dev/gpu0 && echo opened; touch /usr/gpu/x 2>/dev/null || echo read-only; \
        grep ' /usr/gpu ' /proc/self/mounts | grep -c nosuid,nodev";
    for handler in ["", RUNC] {
        let spec =
            SandboxSpec { id: base::id::hex64(), runtime_handler: handler.into(), ..SandboxSpec::default() };
        let sandbox = bench.engine.create_sandbox(spec).await.unwrap().spec.id;
        let with = |devices: &[&str]| ContainerSpec {
            cdi_devices: devices.iter().map(|name| (*name).to_owned()).collect(),
            env: vec!["OWN=own".to_owned(), "GPU=own".to_owned()],
            user: User { spec: "1000:1000".to_owned(), ..User::default() },
            ..subject.script(&sandbox, script)
        };
        let (_, log) = subject.run(with(&["example.com/gpu=0"])).await;
        let wanted = "0 1 own\na:e5 1000:1000 600\nof the driver\n1000 4711\nopened\nread-only\n1\n";
        assert_eq!(log, wanted, "{handler}");
        let hooked = std::fs::read_to_string(place.path().join("cdi/hooked")).unwrap();
        assert!(hooked.contains("\"bundle\""), "the container's state: {hooked}");
        std::fs::remove_file(place.path().join("cdi/hooked")).unwrap();

        let script = "cat /dev/shown 2>&1 | grep -o 'Operation not permitted'";
        let spec = ContainerSpec {
            cdi_devices: vec!["example.com/gpu=0".into()],
            ..subject.script(&sandbox, script)
        };
        let (_, log) = subject.run(spec).await;
        assert_eq!(log, "Operation not permitted\n", "{handler}: a node that may be seen alone");

        let unknown = bench.engine.create_container(with(&["example.com/gpu=1"])).await.unwrap_err();
        let wanted = "CDI device injection failed: unresolvable CDI devices example.com/gpu=1";
        assert!(unknown.message.starts_with(wanted), "{}", unknown.message);
    }
    bench.engine.purge().await.unwrap();
    drop(bench);
    assert_eq!(place.leftovers(), Vec::<String>::new());
}
