//! Helm, its newest release and the one that most people still use: a chart's life from its installation to its removal.

use serde_json::Value;

use crate::{Site, file};

/// One of the two Helms on a host.
struct Helm<'a> {
    site: &'a Site,
    program: &'static str,
}

const WAIT: [&str; 3] = ["--wait", "--timeout", "180s"];

impl Helm<'_> {
    #[track_caller]
    fn must(&self, args: &[&str]) -> String {
        self.site.must(self.program, args)
    }

    #[track_caller]
    fn refuses(&self, args: &[&str], why: &str) {
        let refused = self.site.run(self.program, args);
        assert!(refused.code != 0 && refused.err.contains(why), "{refused:?}");
    }

    /// What the chart's server says.
    fn greeting(&self) -> String {
        self.site.host.must_kubectl(&["exec", "deploy/web", "--", "wget", "-qO-", "http://web/"])
    }

    fn hook_said(&self) -> String {
        self.site.host.must_kubectl(&["logs", "web-before"])
    }

    fn history(&self) -> Vec<(u64, String)> {
        let history: Value = serde_json::from_str(&self.must(&["history", "web", "-o", "json"])).unwrap();
        let entry = |entry: &Value| {
            (entry["revision"].as_u64().unwrap(), entry["status"].as_str().unwrap().to_owned())
        };
        history.as_array().unwrap().iter().map(entry).collect()
    }
}

#[test]
fn a_charts_life_in_helm_4() {
    a_charts_life("go/helm");
}

#[test]
fn a_charts_life_in_helm_3() {
    a_charts_life("go/helm3");
}

fn a_charts_life(program: &'static str) {
    let site = Site::up();
    let chart = file("chart");
    let helm = Helm { site: &site, program };
    let kubectl = |args: &[&str]| site.host.must_kubectl(args);

    let notes = helm.must(&[&["install", "web", &chart][..], &WAIT].concat());
    assert!(notes.contains("web says hello on Kubernetes v1.37."), "{notes}");
    assert_eq!(helm.greeting(), "hello, revision 1\n");
    assert_eq!(helm.hook_said(), "before revision 1\n");
    // The chart's definition was there before its object, which got its defaults.
    assert_eq!(
        kubectl(&["get", "welcome", "web", "-o", "jsonpath={.spec}"]),
        r#"{"text":"hello","times":1}"#
    );
    helm.refuses(&["install", "web", &chart], "still in use");
    // Whether the server would take it.
    let rendered = helm.must(&["upgrade", "web", &chart, "--dry-run=server", "--set", "greeting=never"]);
    assert!(rendered.contains("never, revision 2"), "{rendered}");
    assert_eq!(helm.greeting(), "hello, revision 1\n");

    // What others added is kept where the chart does not speak of it.
    kubectl(&["annotate", "service", "web", "note=kept"]);
    helm.must(&[&["upgrade", "web", &chart, "--set", "greeting=goodbye,replicas=2"][..], &WAIT].concat());
    assert_eq!(helm.greeting(), "goodbye, revision 2\n");
    assert_eq!(helm.hook_said(), "before revision 2\n");
    assert_eq!(kubectl(&["get", "svc", "web", "-o", "jsonpath={.metadata.annotations.note}"]), "kept");
    assert_eq!(kubectl(&["get", "welcome", "web", "-o", "jsonpath={.spec.text}"]), "goodbye");
    helm.must(&["test", "web", "--timeout", "180s"]);
    // A change by hand is put right by the next revision.
    kubectl(&["delete", "service", "web"]);
    helm.must(&[&["rollback", "web", "1"][..], &WAIT].concat());
    assert_eq!(helm.greeting(), "hello, revision 1\n");
    let told = [(1, "superseded"), (2, "superseded"), (3, "deployed")];
    assert_eq!(helm.history(), told.map(|(revision, state)| (revision, state.to_owned())));
    helm.refuses(&["upgrade", "web", &chart, "--set", "replicas=many"], "replicas");
    assert_eq!(kubectl(&["get", "deploy", "web", "-o", "jsonpath={.spec.replicas}"]), "1");

    helm.must(&[&["uninstall", "web"][..], &WAIT].concat());
    let left = kubectl(&["get", "deploy,svc,sa,role,rolebinding,netpol,pdb,welcomes", "-o", "name"]);
    assert_eq!(left, "service/kubernetes\nserviceaccount/default\n");
    // Helm never removes definitions.
    kubectl(&["get", "crd", "welcomes.chart.example.com"]);
    site.end();
}
