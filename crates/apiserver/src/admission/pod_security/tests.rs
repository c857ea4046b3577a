//! Pods against every check.

use std::sync::atomic::{AtomicI64, Ordering};

use api::connect::User;
use serde_json::json;

use super::policy::Version;
use super::*;
use crate::admission::{Notes, Options};

fn judged(level: Level, version: Version, spec: Value) -> String {
    let pod = json!({ "metadata": {}, "spec": spec });
    details(&judge(Standard { level, version }, &whole(&pod)))
}

fn baseline(spec: Value) -> String {
    judged(Level::Baseline, Version::Latest, spec)
}

fn restricted(spec: Value) -> String {
    judged(Level::Restricted, Version::Latest, spec)
}

/// A pod with which every level is content.
fn hardened() -> Value {
    json!({
        "securityContext": { "runAsNonRoot": true, "seccompProfile": { "type": "RuntimeDefault" } },
        "containers": [{
            "name": "a",
            "securityContext": { "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] } },
        }],
        "volumes": [{ "name": "v", "emptyDir": {} }],
    })
}

fn with(path: &str, value: Value) -> Value {
    let mut spec = hardened();
    let (parent, field) = path.rsplit_once('/').unwrap();
    spec.pointer_mut(parent).unwrap()[field] = value;
    spec
}

#[test]
fn a_hardened_pod_passes_every_release() {
    for minor in 0..40 {
        for level in [Level::Baseline, Level::Restricted] {
            assert_eq!(judged(level, Version::Minor(minor), hardened()), "", "1.{minor}");
        }
    }
    assert_eq!(restricted(hardened()), "");
}

#[test]
fn an_ordinary_pod_is_told_all_that_the_restricted_level_wants() {
    let spec = json!({ "containers": [{ "name": "a" }, { "name": "b" }] });
    assert_eq!(baseline(spec.clone()), "");
    assert_eq!(
        restricted(spec),
        "allowPrivilegeEscalation != false (containers \"a\", \"b\" must set \
         securityContext.allowPrivilegeEscalation=false), unrestricted capabilities (containers \"a\", \"b\" must set \
         securityContext.capabilities.drop=[\"ALL\"]), runAsNonRoot != true (pod or containers \"a\", \"b\" must set \
         securityContext.runAsNonRoot=true), seccompProfile (pod or containers \"a\", \"b\" must set \
         securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")"
    );
}

#[test]
fn every_check_of_the_baseline_has_its_sentence() {
    let rows = [
        ("/hostNetwork", json!(true), "host namespaces (hostNetwork=true)"),
        (
            "/volumes",
            json!([{ "name": "v", "hostPath": { "path": "/" } }]),
            "hostPath volumes (volume \"v\")",
        ),
        (
            "/containers/0/ports",
            json!([{ "hostPort": 80 }, { "hostPort": 443 }, { "containerPort": 1 }]),
            "hostPort (container \"a\" uses hostPorts 443, 80)",
        ),
        (
            "/containers/0/livenessProbe",
            json!({ "httpGet": { "host": "10.0.0.1" } }),
            "probe or lifecycle host (container \"a\" uses probe or lifecycle host \"10.0.0.1\")",
        ),
        (
            "/containers/0/securityContext/privileged",
            json!(true),
            "privileged (container \"a\" must not set securityContext.privileged=true)",
        ),
        (
            "/containers/0/securityContext/procMount",
            json!("Unmasked"),
            "procMount (container \"a\" must not set securityContext.procMount to \"Unmasked\")",
        ),
        (
            "/containers/0/securityContext/capabilities/add",
            json!(["NET_ADMIN", "CHOWN"]),
            "non-default capabilities (container \"a\" must not include \"NET_ADMIN\" in \
             securityContext.capabilities.add)",
        ),
        (
            "/securityContext/seLinuxOptions",
            json!({ "type": "x_t", "user": "u", "role": "r" }),
            "seLinuxOptions (pod set forbidden securityContext.seLinuxOptions: type \"x_t\"; user may not be set; \
             role may not be set)",
        ),
        (
            "/securityContext/seccompProfile",
            json!({ "type": "Unconfined" }),
            "seccompProfile (pod must not set securityContext.seccompProfile.type to \"Unconfined\")",
        ),
        (
            "/securityContext/sysctls",
            json!([{ "name": "kernel.msgmax" }, { "name": "net.ipv4.tcp_rmem" }]),
            "forbidden sysctls (kernel.msgmax)",
        ),
        (
            "/securityContext/appArmorProfile",
            json!({ "type": "Unconfined" }),
            "forbidden AppArmor profile (pod must not set AppArmor profile type to \"Unconfined\")",
        ),
        (
            "/containers/0/securityContext/windowsOptions",
            json!({ "hostProcess": true }),
            "hostProcess (container \"a\" must not set securityContext.windowsOptions.hostProcess=true)",
        ),
    ];
    for (path, value, expected) in rows {
        assert_eq!(baseline(with(path, value)), expected, "{path}");
    }
}

#[test]
fn every_check_of_the_restricted_level_has_its_sentence() {
    let rows = [
        (
            "/volumes",
            json!([{ "name": "v", "hostPath": {} }, { "name": "w", "nfs": {} }, { "name": "x", "secret": {} }]),
            "restricted volume types (volumes \"v\", \"w\" use restricted volume types \"hostPath\", \"nfs\")",
        ),
        (
            "/containers/0/securityContext/runAsNonRoot",
            json!(false),
            "runAsNonRoot != true (container \"a\" must not set securityContext.runAsNonRoot=false)",
        ),
        ("/securityContext/runAsUser", json!(0), "runAsUser=0 (pod must not set runAsUser=0)"),
        (
            "/containers/0/securityContext/capabilities/add",
            json!(["NET_BIND_SERVICE", "CHOWN"]),
            "unrestricted capabilities (container \"a\" must not include \"CHOWN\" in \
             securityContext.capabilities.add)",
        ),
    ];
    for (path, value, expected) in rows {
        assert_eq!(restricted(with(path, value)), expected, "{path}");
    }
}

#[test]
fn checks_hold_since_their_release() {
    let at = |minor, spec: Value| judged(Level::Restricted, Version::Minor(minor), spec);
    assert_eq!(at(22, with("/securityContext/runAsUser", json!(0))), "");
    assert!(!at(23, with("/securityContext/runAsUser", json!(0))).is_empty());
    let mut mapped = with("/securityContext/runAsUser", json!(0));
    mapped["hostUsers"] = false.into();
    assert!(!at(34, mapped.clone()).is_empty());
    assert_eq!(at(35, mapped), "");
    let mut windows = json!({ "os": { "name": "windows" }, "containers": [{ "name": "a" }] });
    windows["securityContext"] = json!({ "runAsNonRoot": true });
    assert_eq!(at(25, windows.clone()), "");
    assert!(!at(24, windows).is_empty());
    let sysctl = |name| with("/securityContext/sysctls", json!([{ "name": name }]));
    assert!(!at(36, sysctl("net.ipv4.tcp_notsent_lowat")).is_empty());
    assert_eq!(at(37, sysctl("net.ipv4.tcp_notsent_lowat")), "");
}

#[test]
fn existing_pods_are_told_by_reason() {
    let pod =
        |name: &str| json!({ "metadata": { "name": name }, "spec": { "hostPID": true, "containers": [] } });
    let pods = [pod("b"), pod("a"), json!({ "metadata": { "name": "c" }, "spec": hardened() })];
    let asked = Standard { level: Level::Baseline, version: Version::Latest };
    let mut judged = Judged { total: 4, ..Judged::default() };
    for pod in pods {
        judged.add(asked, &Object::parse(pod.to_string().into()).unwrap()).unwrap();
    }
    let lines = judged.warnings("shop", asked);
    assert_eq!(
        lines,
        [
            "new PodSecurity enforce level only checked against the first 3 of 4 existing pods",
            "existing pods in namespace \"shop\" violate the new PodSecurity enforce level \"baseline:latest\"",
            "a (and 1 other pod): host namespaces",
        ]
    );
}

#[test]
fn pods_of_new_controllers_come_first() {
    let pod = |name: &str, owner: Option<&str>| {
        let owners: Vec<Value> = owner
            .iter()
            .map(
                |uid| json!({ "apiVersion": "v1", "kind": "X", "name": "x", "uid": uid, "controller": true }),
            )
            .collect();
        let pod = json!({ "metadata": { "name": name, "ownerReferences": owners } });
        Arc::new(Object::parse(pod.to_string().into()).unwrap())
    };
    let pods = vec![pod("a", Some("1")), pod("b", Some("1")), pod("c", None), pod("d", Some("2"))];
    let names: Vec<String> = by_novelty(pods).iter().map(|pod| pod.meta().name.clone()).collect();
    assert_eq!(names, ["a", "c", "d", "b"]);
}

/// A namespace of three pods, in which two seconds pass whenever somebody looks at the clock.
#[derive(Default)]
struct Slow(AtomicI64);

#[async_trait]
impl World for Slow {
    async fn find(&self, _: &str, _: &str, _: &str, _: &str) -> Result<Option<Arc<Object>>, Status> {
        Ok(None)
    }

    fn all(&self, _: &str, _: &str, _: &str) -> Vec<Arc<Object>> {
        let pod = |name: &str| json!({ "metadata": { "name": name }, "spec": { "hostPID": true } });
        ["a", "b", "c"].map(|name| Arc::new(Object::parse(pod(name).to_string().into()).unwrap())).into()
    }

    fn moment(&self) -> jiff::Timestamp {
        jiff::Timestamp::from_second(self.0.fetch_add(2, Ordering::Relaxed)).unwrap()
    }
}

#[tokio::test]
async fn pods_are_judged_for_a_time_and_no_longer() {
    let (user, given, notes) = (User::default(), api::WriteOptions::default(), Notes::default());
    let resource = api::GroupVersionResource::new("", "v1", "namespaces");
    let kind = crate::words::Catalog::builtin().find(&resource).unwrap();
    let namespace = |level: &str| json!({ "metadata": { "name": "shop", "labels": { "pod-security.kubernetes.io/enforce": level } } });
    let old = namespace("privileged");
    let review = Review {
        user: &user,
        operation: Operation::Update,
        options: Options::Write(&given),
        asked: &kind,
        kind: &kind,
        resource: &resource,
        subresource: "",
        namespace: "shop",
        name: "shop",
        prefix: "",
        old: Some(&old),
        notes: &notes,
        rounds: Default::default(),
    };
    PodSecurity::default().validate(&review, Some(&namespace("baseline")), &Slow::default()).await.unwrap();
    assert_eq!(
        notes.warnings(),
        [
            "new PodSecurity enforce level only checked against the first 1 of 3 existing pods",
            "existing pods in namespace \"shop\" violate the new PodSecurity enforce level \"baseline:latest\"",
            "a: host namespaces"
        ]
    );
}

#[test]
fn images_and_new_ephemeral_containers_are_changes() {
    let old = json!({ "spec": { "containers": [{ "name": "a", "image": "x" }] } });
    assert!(!changes(&old, &old));
    let new = |spec: Value| json!({ "spec": spec });
    assert!(changes(&new(json!({ "containers": [{ "name": "a", "image": "y" }] })), &old));
    let mut debugged = old.clone();
    debugged["spec"]["ephemeralContainers"] = json!([{ "name": "d", "image": "z" }]);
    assert!(changes(&debugged, &old) && !changes(&debugged, &debugged));
}
