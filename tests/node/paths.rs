//! Paths in volumes. Source: `test/e2e/storage/subpath.go`, `test/e2e/common/node/expansion.go`.

use serde_json::{Value, json};

use crate::space::{IDLE, Space, config_map, container, is_ready, main, mount, pod, secret, shell};

pub(crate) fn a_single_file_of_a_volume_is_mounted(space: &Space<'_>) {
    space.create("configmaps", &config_map("things", json!({"configmap-key": "configmap-value"})));
    space.create("secrets", &secret("things", json!({"secret-key": "secret-value"})));
    let config = json!({"configMap": {"name": "things"}});
    let name = json!({"path": "downward/podname", "fieldRef": {"fieldPath": "metadata.name"}});
    let item = json!({"key": "configmap-key", "path": "projected/configmap-key"});
    let projected = json!({"projected": {"sources": [{"configMap": {"name": "things", "items": [item]}}]}});
    let cases = [
        (
            "of-a-secret",
            json!({"secret": {"secretName": "things"}}),
            "secret-key",
            "/test-volume",
            "secret-value",
        ),
        ("of-a-config-map", config.clone(), "configmap-key", "/test-volume", "configmap-value"),
        ("over-a-file", config, "configmap-key", "/etc/resolv.conf", "configmap-value"),
        (
            "of-fields",
            json!({"downwardAPI": {"items": [name]}}),
            "downward/podname",
            "/test-volume",
            "of-fields",
        ),
        ("of-a-projection", projected, "projected/configmap-key", "/test-volume", "configmap-value"),
    ];
    let pods: Vec<Value> = cases
        .iter()
        .map(|(name, source, path, place, _)| {
            let mut pod = pod(name, &format!("cat {place}"));
            mount(&mut pod, "volume", source.clone(), place, json!({"subPath": path}));
            pod
        })
        .collect();
    let printed = space.outputs(&pods);
    for (name, .., content) in cases {
        assert_eq!(printed[name], content, "{name}");
    }
}

/// A pod with a volume under two paths, one of which an expression leads into.
fn expressed(name: &str, script: &str, expression: &str, env: Value) -> Value {
    let mut pod = pod(name, script);
    mount(&mut pod, "workdir", json!({"emptyDir": {}}), "/subpath_mount", json!({"subPathExpr": expression}));
    let mounts = main(&mut pod)["volumeMounts"].as_array_mut().unwrap();
    mounts.push(json!({"name": "workdir", "mountPath": "/volume_mount"}));
    main(&mut pod)["env"] = env;
    pod
}

/// Variables of which one is an annotation of the pod.
fn of_an_annotation() -> Value {
    json!([{"name": "POD_NAME", "value": "foo"},
        {"name": "ANNOTATION", "valueFrom": {"fieldRef": {"fieldPath": "metadata.annotations['mysubpath']"}}}])
}

pub(crate) fn a_path_in_a_volume_may_come_of_the_environment(space: &Space<'_>) {
    let env = json!([{"name": "POD_NAME", "value": "expanded"}]);
    let script = "test -d /volume_mount/expanded && touch /subpath_mount/f && ls /volume_mount/expanded";
    assert_eq!(space.output(&expressed("expanded", script, "$(POD_NAME)", env)), "f\n");
}

pub(crate) fn paths_that_leave_their_volume_are_refused(space: &Space<'_>) {
    for (name, value) in [("upwards", ".."), ("absolute", "/tmp")] {
        let env = json!([{"name": "POD_NAME", "value": value}]);
        space.create("pods", &expressed(name, IDLE, "$(POD_NAME)", env));
        let pod = space.until_pod(name, "refused", |pod| {
            container(pod, "main")["state"]["waiting"]["reason"] == "CreateContainerConfigError"
        });
        assert_eq!(pod["status"]["phase"], "Pending", "{pod}");
        space.stop(name);
    }
}

pub(crate) fn a_path_that_failed_is_taken_when_it_is_right(space: &Space<'_>) {
    let mut pod = expressed("late", IDLE, "$(ANNOTATION)/$(POD_NAME)", of_an_annotation());
    pod["metadata"]["annotations"] = json!({"notmysubpath": "mypath"});
    space.create("pods", &pod);
    space.until_pod("late", "refused", |pod| {
        container(pod, "main")["state"]["waiting"]["reason"] == "CreateContainerConfigError"
    });
    space.patch("pods/late", &json!({"metadata": {"annotations": {"mysubpath": "mypath"}}}));
    space.until_pod("late", "Ready", is_ready);
    space.exec("late", "main", "test -d /volume_mount/mypath/foo");
    space.stop("late");
}

pub(crate) fn what_is_written_under_a_path_is_in_the_volume(space: &Space<'_>) {
    let mut pod = expressed("writes", IDLE, "$(ANNOTATION)/$(POD_NAME)", of_an_annotation());
    pod["metadata"]["annotations"] = json!({"mysubpath": "mypath"});
    space.start(&pod);
    space.exec("writes", "main", "touch /volume_mount/mypath/foo/test.log");
    space.exec("writes", "main", "test -f /subpath_mount/test.log");
    // The volume is cleared away though nothing leads to where it was mounted any more.
    space.patch("pods/writes", &json!({"metadata": {"annotations": {"mysubpath": "mynewpath"}}}));
    space.until_pod("writes", "Ready", is_ready);
    space.stop("writes");
}

/// Upstream refuses such a link; here it leads to the volume's own root, as it would in a container that has only that.
pub(crate) fn links_in_a_volume_lead_nowhere_else(space: &Space<'_>) {
    let mut pod = pod("linked", "ls /sub && cat /sub/mark");
    mount(&mut pod, "workdir", json!({"emptyDir": {}}), "/sub", json!({"subPath": "link"}));
    let mut before = shell("before", "ln -s / /v/link; echo of the volume > /v/mark");
    before["volumeMounts"] = json!([{"name": "workdir", "mountPath": "/v"}]);
    pod["spec"]["initContainers"] = json!([before]);
    assert_eq!(space.output(&pod), "link\nmark\nof the volume\n");
}
