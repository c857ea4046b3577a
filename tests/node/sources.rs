//! Volumes of other sources than objects. Source: `test/e2e/common/storage/host_path.go`, `test/e2e/common/node/image_volume.go`,
//! `test/e2e/auth/service_accounts.go`, `pkg/volume/hostpath`.

use serde_json::{Value, json};

use crate::space::{OWN_IMAGE, Space, main, mount, pod, text};

pub(crate) fn paths_of_the_host_are_what_they_are_said_to_be(space: &Space<'_>) {
    let place = space.cluster.host.directory().join(&space.name);
    std::fs::create_dir(&place).unwrap();
    std::fs::write(place.join("file"), "of the host\n").unwrap();
    let of_type = |name: &str, path: &str, kind: &str, script: &str| {
        let mut pod = pod(name, script);
        let source = json!({"hostPath": {"path": place.join(path), "type": kind}});
        mount(&mut pod, "host", source, "/host", Value::Null);
        pod
    };
    let right = [
        ("untyped", "", "", "cat /host/file", "of the host\n"),
        ("directory", "", "Directory", "cat /host/file", "of the host\n"),
        ("file", "file", "File", "cat /host", "of the host\n"),
        ("made-directory", "a/b", "DirectoryOrCreate", "stat -c %a /host", "755\n"),
        ("made-file", "c", "FileOrCreate", "stat -c %a /host", "644\n"),
    ];
    let pods: Vec<Value> =
        right.iter().map(|(name, path, kind, script, _)| of_type(name, path, kind, script)).collect();
    let printed = space.outputs(&pods);
    for (name, .., wanted) in right {
        assert_eq!(printed[name], wanted, "{name}");
    }
    for (name, path, kind, what) in [
        ("no-directory", "file", "Directory", "is not a directory"),
        ("no-file", "", "File", "is not a file"),
        ("no-socket", "file", "Socket", "is not a socket file"),
        ("no-device", "file", "CharDevice", "is not a character device"),
        ("nothing", "nothing", "Directory", "is not a directory"),
    ] {
        space.create("pods", &of_type(name, path, kind, "true"));
        let said = format!("hostPath type check failed: {} {what}", place.join(path).display());
        space.until_event(name, "FailedMount", said.trim_end_matches('/'));
        space.stop(name);
    }
}

pub(crate) fn an_image_is_a_volume(space: &Space<'_>) {
    let mut pod = pod("reader", "ls -l /image/rooted/busybox && cat /file && ! touch /image/f 2>/dev/null");
    let source = json!({"image": {"reference": OWN_IMAGE, "pullPolicy": "Never"}});
    mount(&mut pod, "image", source, "/image", Value::Null);
    let below = json!({"name": "image", "mountPath": "/file", "subPath": "etc/group"});
    main(&mut pod)["volumeMounts"].as_array_mut().unwrap().push(below);
    // A single file is mounted as well as a directory.
    let said = space.output(&pod);
    assert!(said.starts_with("-rwsr-xr-x") && said.contains("root:x:0:"), "{said}");
}

pub(crate) fn a_volume_in_memory_has_its_size(space: &Space<'_>) {
    let script = "dd if=/dev/zero of=/v/f bs=64k count=64 2>/dev/null; stat -c %s /v/f";
    let mut pod = pod("full", script);
    mount(&mut pod, "v", json!({"emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}), "/v", Value::Null);
    assert_eq!(space.output(&pod), "1048576\n");
}

pub(crate) fn tokens_are_for_whom_they_are_asked(space: &Space<'_>) {
    let mut pod = pod("bearer", "cut -d. -f2 /v/token; cat /v/namespace; ls /v");
    let token = json!({"serviceAccountToken": {"path": "token", "audience": "oidc-discovery-test", "expirationSeconds": 600}});
    let name = json!({"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}});
    let authority =
        json!({"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}});
    let sources = json!({"projected": {"sources": [token, name, authority]}});
    mount(&mut pod, "v", sources, "/v", Value::Null);
    let said = space.output(&pod);
    let (payload, rest) = said.split_once('\n').unwrap();
    assert_eq!(rest, format!("{}ca.crt\nnamespace\ntoken\n", space.name));
    let claims = crate::api::claims(payload);
    assert_eq!(claims["aud"], json!(["oidc-discovery-test"]), "{claims}");
    assert_eq!(claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap(), 600, "{claims}");
    let bound = &claims["kubernetes.io"];
    assert_eq!(
        (text(&bound["namespace"]), text(&bound["pod"]["name"])),
        (space.name.clone(), "bearer".to_owned())
    );
}

pub(crate) fn a_token_is_mounted_into_every_pod(space: &Space<'_>) {
    let script = "cd /var/run/secrets/kubernetes.io/serviceaccount && cat token && echo && cat namespace && echo && cat ca.crt";
    let said = space.output(&pod("bearer", script));
    let mut parts = said.splitn(3, '\n');
    let mut part = || parts.next().unwrap_or_default();
    let (token, namespace, authority) = (part(), part(), part());
    assert_eq!(namespace, space.name);
    assert_eq!(authority, text(&space.get("configmaps/kube-root-ca.crt")["data"]["ca.crt"]));
    let review =
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}});
    let status = &space.create("/apis/authentication.k8s.io/v1/tokenreviews", &review)["status"];
    assert_eq!(status["authenticated"], true, "{status}");
    let user = &status["user"];
    assert_eq!(text(&user["username"]), format!("system:serviceaccount:{}:default", space.name), "{user}");
    assert_eq!(user["extra"]["authentication.kubernetes.io/pod-name"], json!(["bearer"]), "{user}");
}
