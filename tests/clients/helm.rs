//! Helm: a chart's life from its installation to its removal.

use serde_json::Value;

use crate::{Site, file};

const HELM: &str = "go/helm";

#[test]
fn a_charts_life() {
    let site = Site::up();
    let chart = file("chart");
    let helm = |args: &[&str]| site.must(HELM, args);
    let greeting = || {
        let wget = ["exec", "deploy/web", "--", "wget", "-qO-", "http://web/"];
        site.host.must_kubectl(&wget)
    };
    let wait = ["--wait", "--timeout", "180s"];

    let notes = helm(&[&["install", "web", &chart][..], &wait].concat());
    assert!(notes.contains("web says hello on Kubernetes v1.37."), "{notes}");
    assert_eq!(greeting(), "hello, revision 1\n");
    assert_eq!(site.host.must_kubectl(&["logs", "web-before"]), "before revision 1\n");
    let refused = site.run(HELM, &["install", "web", &chart]);
    assert!(refused.code != 0 && refused.err.contains("still in use"), "{refused:?}");

    helm(&[&["upgrade", "web", &chart, "--set", "greeting=goodbye,replicas=2"][..], &wait].concat());
    assert_eq!(greeting(), "goodbye, revision 2\n");
    assert_eq!(site.host.must_kubectl(&["logs", "web-before"]), "before revision 2\n");
    helm(&["test", "web", "--timeout", "180s"]);
    // A change by hand is put right by the next revision.
    site.host.must_kubectl(&["delete", "service", "web"]);
    helm(&[&["rollback", "web", "1"][..], &wait].concat());
    assert_eq!(greeting(), "hello, revision 1\n");
    let history: Value = serde_json::from_str(&helm(&["history", "web", "-o", "json"])).unwrap();
    let told: Vec<(u64, &str)> = history
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| (entry["revision"].as_u64().unwrap(), entry["status"].as_str().unwrap()))
        .collect();
    assert_eq!(told, [(1, "superseded"), (2, "superseded"), (3, "deployed")]);
    let wrong = site.run(HELM, &["upgrade", "web", &chart, "--set", "replicas=many"]);
    assert!(wrong.code != 0 && wrong.err.contains("replicas"), "{wrong:?}");

    helm(&[&["uninstall", "web"][..], &wait].concat());
    let left = site.host.must_kubectl(&["get", "deploy,svc,sa,role,rolebinding,netpol,pdb", "-o", "name"]);
    assert_eq!(left, "service/kubernetes\nserviceaccount/default\n");
    site.end();
}
