//! Hooks of containers. Source: `test/e2e/common/node/lifecycle_hook.go`, `test/e2e/node/pre_stop.go`.

use serde_json::{Value, json};

use crate::space::{IDLE, Space, container, main, pod, text};

/// A server that prints the paths that it is asked for.
const SERVER: &str = "mkdir -p /w; cd /w; touch started-exec started-http stopped-exec stopped-http; \
                      exec httpd -f -vv -p 8080 -h /w";

/// Starts the server; gives its address.
fn serve(space: &Space<'_>) -> String {
    let mut server = pod("server", SERVER);
    let probe = json!({"tcpSocket": {"port": 8080}, "periodSeconds": 1});
    main(&mut server)["readinessProbe"] = probe;
    text(&space.start(&server)["status"]["podIP"])
}

/// A pod with a hook that asks the server, by a command or by the node.
fn hooked(name: &str, when: &str, by_command: bool, server: &str) -> Value {
    let mut pod = pod(name, IDLE);
    let path = format!("/{name}");
    let action = if by_command {
        json!({"exec": {"command": ["wget", "-qO-", format!("http://{server}:8080{path}")]}})
    } else {
        json!({"httpGet": {"path": path, "host": server, "port": 8080}})
    };
    main(&mut pod)["lifecycle"] = json!({when: action});
    pod["spec"]["terminationGracePeriodSeconds"] = 120.into();
    pod
}

pub(crate) fn hooks_after_the_start_are_called(space: &Space<'_>) {
    let server = serve(space);
    for (name, by_command) in [("started-exec", true), ("started-http", false)] {
        space.start(&hooked(name, "postStart", by_command, &server));
        // It is running only when its hook has been called.
        assert!(space.log("server", "main").contains(&format!("url:/{name}")));
    }
}

pub(crate) fn hooks_before_the_end_are_called(space: &Space<'_>) {
    let server = serve(space);
    for (name, by_command) in [("stopped-exec", true), ("stopped-http", false)] {
        space.start(&hooked(name, "preStop", by_command, &server));
        assert!(!space.log("server", "main").contains(name));
        space.stop(name);
        space.until_printed("server", "main", &format!("url:/{name}"), 1);
    }
}

pub(crate) fn a_hook_that_fails_after_the_start_ends_its_container(space: &Space<'_>) {
    let mut pod = pod("fails", IDLE);
    main(&mut pod)["lifecycle"] =
        json!({"postStart": {"exec": {"command": ["sh", "-c", "echo because; exit 3"]}}});
    space.create("pods", &pod);
    space.until_event("fails", "FailedPostStartHook", "PostStartHook failed");
    space.until_pod("fails", "ended", |pod| !container(pod, "main")["state"]["terminated"].is_null());
}

pub(crate) fn a_hook_before_the_end_counts_against_the_grace_period(space: &Space<'_>) {
    let mut sleeps = pod("sleeps", IDLE);
    main(&mut sleeps)["lifecycle"] = json!({"preStop": {"sleep": {"seconds": 1}}});
    sleeps["spec"]["terminationGracePeriodSeconds"] = 120.into();
    let mut fails = pod("fails", IDLE);
    main(&mut fails)["lifecycle"] = json!({"preStop": {"exec": {"command": ["false"]}}});
    fails["spec"]["terminationGracePeriodSeconds"] = 120.into();
    let mut hangs = pod("hangs", IDLE);
    main(&mut hangs)["lifecycle"] = json!({"preStop": {"exec": {"command": ["sleep", "3600"]}}});
    hangs["spec"]["terminationGracePeriodSeconds"] = 2.into();
    for pod in [&sleeps, &fails, &hangs] {
        space.start(pod);
    }
    let mut watch = space.watch("pods");
    for name in ["sleeps", "fails", "hangs"] {
        space.delete(&format!("pods/{name}"));
    }
    watch.until("gone", |pods| pods.is_empty());
    let ended = |name: &str| {
        let last = watch.deleted.iter().find(|pod| pod["metadata"]["name"] == name).unwrap();
        container(last, "main")["state"]["terminated"]["exitCode"].clone()
    };
    // Who was told to end in time ended by itself. Where the hook takes it all, two seconds are left, which may be too few.
    assert_eq!(["sleeps", "fails"].map(ended), [json!(0), json!(0)]);
    space.until_event("fails", "FailedPreStopHook", "PreStopHook failed");
}
