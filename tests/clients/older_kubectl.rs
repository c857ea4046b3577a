//! A `kubectl` three releases older than the API.

use crate::Site;

const KUBECTL: &str = "go/kubectl";

#[test]
fn an_older_kubectl_does_its_work() {
    let site = Site::up();
    let kubectl = |args: &[&str]| site.must(KUBECTL, args);
    assert!(kubectl(&["version"]).contains("Server Version: v1.37."));
    kubectl(&["create", "deployment", "web", "--image=busybox", "--replicas=2", "--", "sleep", "3600"]);
    kubectl(&["rollout", "status", "deployment/web", "--timeout=180s"]);
    kubectl(&["expose", "deployment", "web", "--port=80"]);
    let table = kubectl(&["get", "deploy,rs,pods,svc", "-o", "wide", "--show-labels"]);
    assert!(table.contains("deployment.apps/web") && table.contains("2/2"), "{table}");
    kubectl(&["set", "env", "deployment/web", "A=B"]);
    kubectl(&["rollout", "status", "deployment/web", "--timeout=180s"]);
    kubectl(&["rollout", "undo", "deployment/web"]);
    kubectl(&["rollout", "status", "deployment/web", "--timeout=180s"]);
    assert!(kubectl(&["rollout", "history", "deployment/web"]).contains("REVISION"));
    assert_eq!(kubectl(&["exec", "deploy/web", "--", "echo", "hi"]), "hi\n");
    kubectl(&["label", "pods", "-l", "app=web", "tier=front"]);
    kubectl(&["annotate", "service", "web", "note=seen"]);
    kubectl(&["patch", "service", "web", "-p", r#"{"spec":{"sessionAffinity":"ClientIP"}}"#]);
    let applied = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"c"},"data":{"a":"b"}}"#;
    let apply = format!("echo '{applied}' | $0 apply --server-side -f - && echo '{applied}' | $0 diff -f -");
    let path = crate::client(KUBECTL);
    let said = site.host.command("sh").arg("-c").arg(apply).arg(path).output().unwrap();
    let said = testbed::Ran::from(said).ok().unwrap_or_else(|error| panic!("{error:#}"));
    assert_eq!(said, "configmap/c serverside-applied\n");
    assert!(kubectl(&["describe", "deployment", "web"]).contains("ScalingReplicaSet"));
    assert!(kubectl(&["explain", "deployment.spec.strategy"]).contains("rollingUpdate"));
    assert!(kubectl(&["api-resources", "--categories=all"]).contains("deployments"));
    assert_eq!(kubectl(&["auth", "can-i", "delete", "nodes"]), "yes\n");
    assert!(kubectl(&["events", "--for", "deployment/web"]).contains("ScalingReplicaSet"));
    kubectl(&["delete", "deployment/web", "service/web", "configmap/c", "--wait"]);
    site.end();
}
